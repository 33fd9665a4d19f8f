/**
 * Runs the suites of test/vm/suites inside virtual machines: `npm run test:vm -- [options]`.
 *
 * A guest is a kernel (kernels.ts) on a machine with or without an IOMMU (machine.ts), all of it emulated: neither KVM nor
 * hardware is needed. Its root is this machine's own file system, read-only, with a layer above it for what it writes
 * (initramfs.ts), so that it runs this very checkout, this Node.js and what else is installed here. One boot runs all suites
 * that want this guest, one after the other; several guests run side by side. Where each suite runs is in suites.ts. A suite
 * can have the host put devices into the running machine and take them out (host.ts).
 *
 * The kernels are made at the first run in $ANYDMA_VM_CACHE, or else in anydma-vm below $XDG_CACHE_HOME or /var/tmp, and kept
 * there: a download of 100 MB, and a build that takes 8 to 30 minutes. It needs Linux on x86-64, QEMU, and apt-get with a mirror
 * of Debian; root is not needed.
 *
 * Exit status: 0 all is well, 1 a suite failed, 2 the command line is wrong, 77 something can not be run here, and the reason is
 * on standard error.
 */
import { spawnSync } from 'node:child_process';
import { existsSync, mkdirSync, mkdtempSync, readdirSync, rmSync } from 'node:fs';
import { availableParallelism, freemem, tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { MiB } from '../../src/units.js';
import { cacheDirectory, Unavailable } from '../shared/cached.js';
import { kernelLog, runGuest } from './boot.js';
import type { JobResult } from './boot.js';
import { makeInitramfs, withFirmwareTable } from './initramfs.js';
import { KERNELS, prepareKernel } from './kernels.js';
import type { Kernel, KernelName } from './kernels.js';
import { DEVICES, GUEST_MEMORY_MIB, IOMMUS } from './machine.js';
import type { IommuName } from './machine.js';
import type { GuestJob } from './start-script.js';
import { SUITES } from './suites.js';
import type { BackendName } from './suites.js';

const USAGE = `npm run test:vm -- [options]

  --only TEXT   only the runs whose name (see --list) contains TEXT; several: contains all of them
  --list        print the names and stop
  --whole       all of the random commands of suites that have a part of them only: a million of NVMe, which take hours
  --run COMMAND run this command of the shell in the guests instead of suites
  --jobs N      so many guests at a time; default: as memory and processors allow
  --keep        keep the guests' files, with the kernel's log, and say where they are
  --prepare     make the kernels that are not there yet, and stop`;

/** Exit status when something is missing on this machine. */
const CAN_NOT_RUN = 77;

/** What a guest needs on the host: a program, and its Debian package. */
const NEEDS: readonly (readonly [string, string])[] = [
  ['qemu-system-x86_64', 'qemu-system-x86'],
  ['cpio', 'cpio'],
  ['depmod', 'kmod'],
  ['xz', 'xz-utils'],
  ['setpriv', 'util-linux'],
  ['ip', 'iproute2'],
  ['dmsetup', 'dmsetup'],
  ['mkfs.ext4', 'e2fsprogs'],
  ['losetup', 'mount'],
];

/** One kind of guest, and what is to run in it. */
interface Plan {
  readonly kernel: KernelName;
  readonly iommu: IommuName;
  readonly name: string;
  readonly jobs: readonly GuestJob[];
}

/** Does this kernel on this machine have it? `undefined`: any. Debian's kernel has no no-IOMMU mode. */
function exists(kernel: KernelName, iommu: IommuName, backend: BackendName | undefined): boolean {
  if (iommu === 'none') return kernel === 'built' && (backend ?? 'noiommu') === 'noiommu';
  return backend !== 'noiommu' && (backend !== 'iommufd' || kernel === 'built');
}

function plan(jobsOf: (kernel: KernelName, iommu: IommuName, name: string) => readonly GuestJob[]): readonly Plan[] {
  return KERNELS.flatMap((kernel) =>
    IOMMUS.map((iommu) => {
      const name = `${kernel}-${iommu}`;
      return { kernel, iommu, name, jobs: jobsOf(kernel, iommu, name) };
    }),
  ).filter(({ jobs }) => jobs.length > 0);
}

function suiteJobs(kernel: KernelName, iommu: IommuName, guest: string, whole: boolean): readonly GuestJob[] {
  return SUITES.flatMap((suite) => {
    const { name, kernels = KERNELS, iommus = ['48', '39'], backends = [undefined], seconds = 300 } = suite;
    return kernels.includes(kernel) && iommus.includes(iommu)
      ? backends
          .filter((backend) => exists(kernel, iommu, backend))
          .map((backend) => ({
            title: [guest, name, ...(backend === undefined ? [] : [backend])].join('/'),
            command: [
              process.execPath,
              '--test-reporter=spec',
              fileURLToPath(new URL(`suites/${name}.js`, import.meta.url)),
            ],
            environment: {
              ANYDMA_VM_KERNEL: kernel,
              ANYDMA_VM_IOMMU: iommu,
              ...(backend === undefined ? {} : { ANYDMA_VM_BACKEND: backend }),
              ...(whole ? { ANYDMA_VM_WHOLE: '1' } : {}),
            },
            seconds: whole ? (suite.wholeSeconds ?? seconds) : seconds,
          }))
      : [];
  });
}

function checkNeeds(): void {
  if (process.platform !== 'linux' || process.arch !== 'x64') throw new Unavailable('it needs Linux on x86-64');
  const places = (process.env.PATH ?? '').split(':');
  const missing = NEEDS.filter(([program]) => !places.some((each) => existsSync(join(each, program)))).map(
    ([, name]) => name,
  );
  // It must run without libraries: ldd fails for such a program.
  if (!existsSync('/bin/busybox') || spawnSync('ldd', ['/bin/busybox']).status === 0) missing.push('busybox-static');
  if (missing.length > 0) throw new Unavailable(`install what is missing: apt-get install ${missing.join(' ')}`);
}

/** So many guests run well side by side here. */
function roomForGuests(): number {
  return Math.max(1, Math.min(availableParallelism(), Math.floor(freemem() / MiB / (GUEST_MEMORY_MIB * 1.25))));
}

/** The command line, or `undefined` when it is wrong. */
function options() {
  try {
    return parseArgs({
      options: {
        only: { type: 'string', multiple: true, default: [] },
        list: { type: 'boolean', default: false },
        run: { type: 'string' },
        jobs: { type: 'string' },
        keep: { type: 'boolean', default: false },
        prepare: { type: 'boolean', default: false },
        whole: { type: 'boolean', default: false },
        help: { type: 'boolean', short: 'h', default: false },
      },
    }).values;
  } catch (error) {
    console.error(`${error instanceof Error ? error.message : String(error)}\n\n${USAGE}`);
    return undefined;
  }
}

async function main(): Promise<number> {
  const given = options();
  if (given === undefined) return 2;
  const { only, list, run, keep, prepare, whole, help } = given;
  const atOnce = given.jobs === undefined ? roomForGuests() : Number(given.jobs);
  if (!Number.isInteger(atOnce) || atOnce < 1) {
    console.error('--jobs takes a number from 1 up');
    return 2;
  }
  if (help) {
    console.log(USAGE);
    return 0;
  }
  const wanted = ({ title }: GuestJob): boolean => only.every((text) => title.includes(text));
  const guests = plan((kernel, iommu, guest) =>
    (run === undefined
      ? suiteJobs(kernel, iommu, guest, whole)
      : [{ title: guest, command: ['sh', '-c', run], environment: {}, seconds: 3600 }]
    ).filter(wanted),
  );
  if (list) for (const { title } of guests.flatMap(({ jobs }) => jobs)) console.log(title);
  if (list) return 0;
  if (guests.length === 0) {
    console.error(`nothing to run has this in its name: ${only.join(' ')}`);
    return 2;
  }
  // Not everybody has them there.
  process.env.PATH = `${process.env.PATH ?? ''}:/usr/sbin:/sbin`;
  checkNeeds();
  if (only.length === 0) checkList();
  return interruptible((signal) => (prepare ? prepareAll(guests, signal) : runAll(guests, { atOnce, keep }, signal)));
}

/** When all suites are asked for, none may have been forgotten. */
function checkList(): void {
  const files = readdirSync('test/vm/suites').map((each) => each.replace(/\.ts$/, ''));
  const unlisted = files.filter((each) => !SUITES.some(({ name }) => name === each));
  if (unlisted.length > 0) throw new Error(`suites.ts does not say where these run: ${unlisted.join(' ')}`);
}

/** Runs something that ends early when a signal asks this process to; then the status is as a shell has it. */
async function interruptible(run: (signal: AbortSignal) => Promise<number>): Promise<number> {
  const stop = new AbortController();
  let status = 0;
  const interrupt = (signal: NodeJS.Signals): void => {
    status ||= signal === 'SIGINT' ? 130 : 143;
    stop.abort();
  };
  for (const signal of ['SIGINT', 'SIGTERM'] as const) process.on(signal, interrupt);
  try {
    const ended = await run(stop.signal);
    return status === 0 ? ended : status;
  } catch (error) {
    if (status === 0) throw error;
    return status;
  } finally {
    for (const signal of ['SIGINT', 'SIGTERM'] as const) process.off(signal, interrupt);
  }
}

/** The kernels that these guests boot; a kernel is left out, and why is said, when it can not be had here. */
async function kernelsOf(guests: readonly Plan[], signal: AbortSignal): Promise<readonly Kernel[]> {
  const cache = cacheDirectory('ANYDMA_VM_CACHE', 'anydma-vm');
  const kernels: Kernel[] = [];
  for (const name of KERNELS.filter((each) => guests.some(({ kernel }) => kernel === each))) {
    try {
      const kernel = await prepareKernel(name, cache, (line) => console.log(line), signal);
      console.log(`${name} kernel: Linux ${kernel.release}`);
      kernels.push(kernel);
    } catch (error) {
      if (!(error instanceof Unavailable)) throw error;
      console.error(`the ${name} kernel can not be had: ${error.message}`);
    }
  }
  return kernels;
}

async function prepareAll(guests: readonly Plan[], signal: AbortSignal): Promise<number> {
  const kernels = await kernelsOf(guests, signal);
  return guests.every(({ kernel }) => kernels.some(({ name }) => name === kernel)) ? 0 : CAN_NOT_RUN;
}

async function runAll(
  guests: readonly Plan[],
  { atOnce, keep }: { readonly atOnce: number; readonly keep: boolean },
  signal: AbortSignal,
): Promise<number> {
  const started = performance.now();
  const results: JobResult[] = [];
  // Before any guest, so that a build does not compete with guests for the processors.
  const kernels = await kernelsOf(guests, signal);
  const directory = mkdtempSync(join(tmpdir(), 'anydma-vm-'));
  try {
    const ready = kernels.flatMap((kernel) => {
      const initramfs = makeInitramfs(kernel, directory);
      return guests
        .filter((each) => each.kernel === kernel.name)
        .map((each) => ({
          ...each,
          kernel,
          initramfs: each.iommu === 'firmware' ? withFirmwareTable(initramfs, DEVICES.edu1) : initramfs,
        }));
    });
    const width = Math.max(...ready.map(({ name }) => name.length));
    const next = async (): Promise<void> => {
      for (let guest = ready.shift(); guest !== undefined && !signal.aborted; guest = ready.shift()) {
        const { name } = guest;
        const own = join(directory, name);
        mkdirSync(own);
        const print = (line: string): void => console.log(`${name.padEnd(width)} | ${line}`);
        const ended = await runGuest({ ...guest, directory: own, print, signal });
        results.push(...ended);
        if (ended.some(({ status }) => status !== 0)) for (const line of kernelLog(own, 25)) print(`kernel: ${line}`);
      }
    };
    await Promise.all(Array.from({ length: atOnce }, next));
  } finally {
    if (keep) console.log(`the guests' files are in ${directory}`);
    else rmSync(directory, { recursive: true, force: true });
  }
  const left = guests.filter(({ kernel }) => !kernels.some(({ name }) => name === kernel));
  return summary(
    results,
    left.flatMap(({ jobs }) => jobs.map(({ title }) => title)),
    (performance.now() - started) / 1000,
  );
}

function summary(results: readonly JobResult[], left: readonly string[], seconds: number): number {
  console.log('');
  for (const { job, status, seconds: took } of results)
    console.log(`${ending(status).padEnd(28)} ${took} s  ${job.title}`);
  for (const title of left) console.log(`${'not run'.padEnd(28)} ${title}`);
  const failed = results.filter(({ status }) => status !== 0).length;
  const counts = `${results.length - failed} passed, ${failed} failed, ${left.length} not run`;
  console.log(`suites in guests: ${counts}, ${Math.round(seconds)} s`);
  if (failed > 0) return 1;
  return left.length > 0 ? CAN_NOT_RUN : 0;
}

function ending(status: number | undefined): string {
  if (status === 0) return 'passed';
  if (status === undefined) return 'failed: the guest went down';
  // As timeout(1) says it.
  return status === 124 || status === 137 ? 'failed: took too long' : `failed: exit status ${status}`;
}

try {
  process.exitCode = await main();
} catch (error) {
  if (!(error instanceof Unavailable)) throw error;
  console.error(`no guest can be run here: ${error.message}`);
  process.exitCode = CAN_NOT_RUN;
}
