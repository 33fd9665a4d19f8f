/**
 * "Can not be asked now" is never "is not there", and is not remembered: what needs a descriptor says EMFILE when there is
 * none, and works when there is one again.
 */
import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { closeSync, openSync, readdirSync } from 'node:fs';
import { describe, it } from 'node:test';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { FakeMachine } from '../test/fakes/bus/pci-machine.js';
import { Eal } from './eal.js';
import { isDmaError, type ErrorCode } from './errors.js';
import { HugePages } from './memory/hugepages.js';
import { openPlatform } from './platform/open.js';
import { failingPlatform, type FailingPlatform } from '../test/fakes/platform/platforms.js';
import { KiB, MiB } from './units.js';
import { spawnDevice } from './vfio-user/device-process.js';

const argument = process.argv[2];
const QUIET = { memory: { onNotice: () => undefined } };
if (argument === 'start') {
  // The native part is not loaded yet, and has to be.
  const giveBack = takeDescriptors(0);
  await assert.rejects(Eal.start(QUIET), (error) => isDmaError(error, 'EMFILE'));
  giveBack();
}
const real = openPlatform();
const skip = real.limitation ?? false;

/** What a run without any failure says, as text; each is asked of one Eal twice or more. */
interface Scenario {
  readonly name: string;
  readonly ask: (eal: Eal) => unknown;
}

const A = '0000:00:02.0';
const PAGE = real.memory.pageSize;

const SCENARIOS: readonly Scenario[] = [
  { name: 'scan', ask: async (eal) => (await eal.scan()).filter((name) => name.startsWith('pci:')) },
  {
    name: 'probe of a PCI device that is there',
    ask: (eal) =>
      eal.probe(`pci:${A}`).then(
        () => 'probed',
        (error: unknown) => {
          // No driver of VFIO has it; that is the answer here.
          if (isDmaError(error, 'EBUSY')) return `${error.code} ${error.hint ?? ''}`;
          throw error;
        },
      ),
  },
  {
    name: 'malloc',
    ask: (eal) => {
      const block = eal.malloc(MiB);
      block.free();
      eal.memory.trim();
      return eal.memory.iova.reason;
    },
  },
  { name: 'hugepages', ask: ({ platform }) => new HugePages(platform.kernel).sizes().map(({ pageSize }) => pageSize) },
  { name: 'mounts', ask: ({ platform }) => new HugePages(platform.kernel).mounts() },
  { name: 'the locked-memory limit', ask: ({ platform }) => platform.limits.lockedMemory().limit },
  {
    name: 'fromAddress',
    ask: (eal) => {
      using memory = eal.external.allocate(2 * PAGE);
      const { va } = memory;
      memory.unregister();
      const at = eal.platform.memory.map({ length: PAGE });
      using again = eal.external.fromAddress(at, PAGE);
      const { length } = again;
      again.unregister();
      eal.platform.memory.unmap(at, PAGE);
      return [length, va > 0];
    },
  },
];

/** Calls that open a file, or a folder. */
const OPENING = [
  'kernel.readText',
  'kernel.list',
  'kernel.readLink',
  'kernel.mayOpen',
  'files.open',
  'files.create',
  'memory.memfd',
  'memory.protection',
  'memory.frames',
  'limits.lockedMemory',
  'limits.pinnedMemory',
  'limits.freeHugePages',
  'verbs.devices',
];

/** Processes that a probe asks about: those that are not this one stand for all others there are. */
const PROCESSES: readonly string[] = ['1', String(process.pid), String(process.ppid)];

/** How many descriptors of each of them it sees. */
const DESCRIPTORS = 4;

/** This machine, with few processes that have few descriptors, and with PCI functions that are made up. `asked` is told each call to the kernel's files, by name and path. */
function machine(asked: (call: string, path: string) => void = () => undefined): FailingPlatform {
  const pci = new FakeMachine({ functions: [{ address: A, group: 5 }, { address: '0000:00:03.0' }] });
  const isPci = (path: string): boolean => /^\/sys\/(bus\/pci|class\/iommu|module|kernel\/iommu_groups)/.test(path);
  const { kernel } = real;
  const of = (call: string, path: string, isMadeUp: boolean): typeof kernel | FakeMachine => {
    asked(call, path);
    return isMadeUp ? pci : kernel;
  };
  return failingPlatform({
    ...real,
    kernel: {
      ...kernel,
      readText: (path) => of('kernel.readText', path, isPci(path)).readText(path),
      list: (path) => {
        const system = of('kernel.list', path, isPci(path));
        if (path === '/proc') return [...PROCESSES];
        const names = system.list(path);
        return /^\/proc\/\d+\/fd$/.test(path) ? names.slice(0, DESCRIPTORS) : names;
      },
      readLink: (path) => of('kernel.readLink', path, isPci(path)).readLink(path),
      mayOpen: (path) => of('kernel.mayOpen', path, path.startsWith('/dev/')).mayOpen(path),
    },
  });
}

/**
 * Which calls have to fail. A probe asks every process and every disk: of the calls that ask the same of another number, the
 * first stands for all.
 */
class Kinds {
  readonly #seen = new Map<string, number>();
  readonly #repeated = new Map<string, boolean[]>();

  add(call: string, path: string): void {
    const kind = `${call} ${path.replaceAll(/\d+/g, '#')}`;
    const before = this.#seen.get(kind) ?? 0;
    this.#seen.set(kind, before + 1);
    const calls = this.#repeated.get(call) ?? [];
    calls.push(before >= 1);
    this.#repeated.set(call, calls);
  }

  /** Whether the n-th call (from 1) asks what one before it has asked. */
  isRepeated(call: string, n: number): boolean {
    return this.#repeated.get(call)?.[n - 1] ?? false;
  }
}

describe('each question to the system that opens a file fails', { skip: argument === undefined ? skip : true }, () => {
  for (const code of ['EMFILE', 'ENFILE', 'EACCES'] as ErrorCode[])
    for (const { name, ask } of SCENARIOS)
      it(`${name}, ${code}: told as what it is, and asked again`, async () => {
        let reference: unknown;
        let kinds = new Kinds();
        {
          const platform = machine((call, path) => {
            kinds.add(call, path);
          });
          await using eal = await Eal.start({ ...QUIET, platform });
          kinds = new Kinds();
          reference = await ask(eal);
        }
        let failures = 0;
        for (const call of OPENING)
          for (let n = 1; ; n++) {
            if (kinds.isRepeated(call, n)) continue;
            const platform = machine();
            await using eal = await Eal.start({ ...QUIET, platform });
            platform.failCall(n, code, call);
            const outcome = await Promise.resolve()
              .then(() => ask(eal))
              .then(
                (result) => ({ result }),
                (error: unknown) => ({ error }),
              );
            if (platform.failed() === undefined) break;
            failures++;
            const where = `${call} number ${n}`;
            if ('error' in outcome) assert.ok(isDmaError(outcome.error, code), `${where}: ${String(outcome.error)}`);
            // Who may not look can go on with less; who has no descriptor can not.
            else if (code !== 'EACCES') assert.deepEqual(outcome.result, reference, where);
            platform.failCall(0, code);
            const again: unknown = await ask(eal);
            if ('error' in outcome || code !== 'EACCES') assert.deepEqual(again, reference, `${where}, asked again`);
          }
        assert.ok(failures > 0);
      });
});

/** What a process is asked that has no descriptor left, then one, two ... */
const QUESTIONS: Readonly<Record<string, (eal: Eal) => unknown>> = {
  start: () => undefined,
  scan: (eal) => eal.scan(),
  probe: async (eal) => {
    const [pci] = real.kernel.list('/sys/bus/pci/devices');
    if (pci === undefined) return 'there is no PCI device here';
    // No driver of VFIO has it, and that is the answer.
    return eal.probe(`pci:${pci}`).catch((error: unknown) => {
      if (isDmaError(error, 'EMFILE')) throw error;
      return String(error);
    });
  },
  malloc: async () => {
    await using eal = await Eal.start(QUIET);
    eal.malloc(64 * KiB).free();
    return eal.memory.facts().lists.map(({ pageSize }) => pageSize);
  },
  hugepages: ({ platform }) => new HugePages(platform.kernel).sizes().map(({ pageSize }) => pageSize),
  locked: ({ platform }) => platform.limits.lockedMemory().limit,
  fromAddress: (eal) => {
    const va = eal.platform.memory.map({ length: PAGE });
    try {
      using memory = eal.external.fromAddress(va, PAGE);
      return memory.length;
    } finally {
      eal.platform.memory.unmap(va, PAGE);
    }
  },
  allocate: (eal) => {
    using memory = eal.external.allocate(MiB);
    return memory.length;
  },
  'spawnDevice and probe': async (eal) => {
    await using served = await spawnDevice('edu');
    await eal.remove(await eal.probe(`vfio-user:${served.socketPath}`));
    return true;
  },
};

/** Leaves `left` descriptors to be used, until the result is called. */
function takeDescriptors(left: number): () => void {
  const taken: number[] = [];
  try {
    for (;;) taken.push(openSync('/dev/null', 'r'));
  } catch (error) {
    assert.equal((error as NodeJS.ErrnoException).code, 'EMFILE');
  }
  for (const fd of taken.splice(0, left)) closeSync(fd);
  return () => taken.forEach((fd) => closeSync(fd));
}

/** Runs in a process of its own, whose limit is low. */
async function askWithout(question: string): Promise<void> {
  const ask = QUESTIONS[question];
  await using eal = await Eal.start(QUIET);
  assert.equal(eal.platform.limitation, undefined);
  const reference = await ask(eal);
  const open = readdirSync('/proc/self/fd').length;
  for (let left = 0; question !== 'start'; left++) {
    assert.ok(left < 40, 'it never works');
    let outcome: { readonly result?: unknown; readonly error?: unknown };
    const giveBack = takeDescriptors(left);
    try {
      outcome = { result: await ask(eal) };
    } catch (error) {
      outcome = { error };
    }
    giveBack();
    if (!('error' in outcome)) {
      assert.deepEqual(outcome.result, reference, `with ${left}`);
      assert.ok(left > 0, 'it needs no descriptor');
      break;
    }
    const { error } = outcome;
    assert.ok(
      isDmaError(error, 'EMFILE'),
      `${question} with ${left}: ${error instanceof Error ? error.stack : String(error)}`,
    );
    assert.match(error.hint ?? '', /\d+ descriptors are open, and RLIMIT_NOFILE is \d+ .*ulimit -n/);
    assert.deepEqual(await ask(eal), reference, `asked again after ${left}`);
  }
  assert.ok(readdirSync('/proc/self/fd').length <= open, 'descriptors are left');
}

/** Each is asked with an Eal of its own; those that start no process share one. */
const PROGRAMS: readonly (readonly string[])[] = [
  ['start'],
  ['scan', 'probe', 'malloc', 'hugepages', 'locked', 'fromAddress', 'allocate'],
  ['spawnDevice and probe'],
];

if (argument !== undefined) for (const question of argument.split(', ')) await askWithout(question);
else
  describe('a process without descriptors', { skip }, () => {
    for (const questions of PROGRAMS.map((each) => each.join(', ')))
      it(`${questions}: says EMFILE with the limit, and works when there is one again`, async () => {
        const command = [
          '-c',
          'ulimit -n 400; exec "$0" "$@"',
          process.execPath,
          fileURLToPath(import.meta.url),
          questions,
        ];
        await promisify(execFile)('/bin/sh', command, { timeout: 60_000 });
      });
  });
