/**
 * RDMA against what there is: the data path against perftest, and registering memory against a C program that makes the same
 * calls of libibverbs. It takes the first RDMA device with an active port; `npm run bench:vm -- --only rdma` runs it where
 * there is one.
 *
 * Both data paths are two processes of this machine that poll, of the same MTU, queue depth and completion moderation. Where
 * there are as few processors as there are processes that poll, a device in software (rxe) gets none of them for its own
 * work until a poller has used up its time; so the pollers of both are made to give way at once (SCHED_IDLE).
 */
import { fork, spawnSync, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { release } from 'node:os';
import { fileURLToPath } from 'node:url';
import { Eal, formatSize, KiB, MiB, type Device } from '../src/index.js';
import { verbsDriver } from '../src/entry/rdma.js';
import { measure, time, type Case, type Effort, type Result } from './harness/harness.js';
import { Peer } from './harness/peer.js';
import { perftestVersion, runPerftest } from './harness/perftest.js';
import type { Exchange, Order, SideFacts } from './rdma-side.js';

/** bytes of a message, and how many messages a round has: so many that it takes well over a scheduler's time slice. */
const SIZES = [
  { size: 64, writes: 1024, sends: 300 },
  { size: 4 * KiB, writes: 1024, sends: 300 },
  { size: 64 * KiB, writes: 256, sends: 100 },
  { size: 1 * MiB, writes: 32, sends: 20 },
];
/** How many times perftest's time a message may take from one side to the other. */
const LATENCY_GOAL = 1.3;
/** Requests under way at once, and requests for each completion. */
const DEPTH = 32;
const MODERATION = 16;
/** One second: with the usual 67 ms, a machine that is slow and busy sends everything twice. */
const TIMEOUT = 18;

/** What a round registers, in bytes, and how many times. */
const REGIONS = [
  { size: 4 * KiB, count: 100 },
  { size: 2 * MiB, count: 10 },
  { size: 256 * MiB, count: 1 },
];
const LENGTH = 256 * MiB;
/** How many times the smallest is done first: JavaScript's machine code is made while it runs, and slowly so in an emulated machine. */
const WARM_UP = 20_000;

/** The device, as it is called and as perftest needs to know it. */
interface Where {
  readonly name: string;
  readonly port: number;
  readonly gidIndex: number;
  /** bytes */
  readonly mtu: number;
}

/** Measures both. */
export async function benchRdma(effort: Effort): Promise<Result[]> {
  await using eal = await Eal.start();
  const found = await findDevice(eal);
  if (typeof found === 'string') {
    effort.progress(`rdma: left out, ${found}`);
    return [];
  }
  const { device, where } = found;
  const results = [...(await register({ eal, device }, effort))];
  await eal.remove(device);
  results.push(...(await move(where, effort)));
  return results;
}

/** The first device that can do something, or why there is none. */
async function findDevice(eal: Eal): Promise<{ readonly device: Device; readonly where: Where } | string> {
  const { platform } = eal;
  if (platform.limitation !== undefined) return platform.limitation;
  if (platform.verbs.limitation !== undefined) return platform.verbs.limitation;
  for (const { name, transport } of platform.verbs.devices()) {
    if (transport === 'iwarp') continue;
    const device = await eal.probe(`rdma:${name}`);
    const rdma = device.use(verbsDriver);
    const port = rdma.ports().find(({ state }) => state === 'active');
    const pair = port === undefined ? undefined : rdma.createQueuePair({ port: port.number });
    const { gid } = pair?.address ?? {};
    pair?.close();
    const index = rdma.gids().find((each) => each.port === port?.number && each.gid === gid)?.index;
    if (port !== undefined && index !== undefined)
      return { device, where: { name, port: port.number, gidIndex: index, mtu: port.activeMtu } };
    await eal.remove(device);
  }
  return 'no RDMA device with an active port (npm run bench:vm -- --only rdma has one)';
}

// --- the data path ---

async function move(where: Where, { quick, progress }: Effort): Promise<Result[]> {
  const perftest = perftestVersion();
  const giving = spawnSync('chrt', ['--idle', '0', 'true']).status === 0;
  if (!giving) progress('rdma: pollers do not give way, no chrt(1) of util-linux that is allowed to');
  await using pair = await Pair.start(where, giving);
  const rounds = quick ? { warmUp: 1, measured: 3 } : { warmUp: 2, measured: 9 };
  const results: Result[] = [];
  const all: (readonly [string, Case[]])[] = [
    ['write bandwidth', SIZES.flatMap(({ size, writes }) => writeCases(where, pair, perftest, giving, size, writes))],
    ['send latency', SIZES.flatMap(({ size, sends }) => sendCases(where, pair, perftest, giving, size, sends))],
  ];
  for (const [what, cases] of all) {
    progress(`rdma: ${what}, ${where.name}, MTU ${where.mtu}`);
    results.push(...(await measure(cases, rounds)));
  }
  return results;
}

function writeCases(
  { name: device, port, gidIndex, mtu }: Where,
  pair: Pair,
  perftest: ReturnType<typeof perftestVersion>,
  giving: boolean,
  size: number,
  count: number,
): Case[] {
  const options = `-N -s ${size} -n ${count} -t ${DEPTH} -Q ${MODERATION} -m ${mtu} -u ${TIMEOUT}`.split(' ');
  return against(
    `write bandwidth, ${formatSize(size)}`,
    { unit: 'GB/s', count: size * count },
    () => pair.run({ what: 'write', size, count, depth: DEPTH, moderation: MODERATION, mtu, timeout: TIMEOUT }),
    perftest,
    async () => {
      const prefix = giving ? GIVE_WAY : [];
      const report = await runPerftest({ program: 'ib_write_bw', device, port, gidIndex, options, prefix });
      // It rounds MiB/s to hundredths, and millions of messages to whole messages: the finer one.
      const bytesPerSecond = size < 16 * KiB ? report[4] * 1e6 * size : report[3] * MiB;
      return ((size * count) / bytesPerSecond) * 1e3;
    },
  );
}

function sendCases(
  { name: device, port, gidIndex, mtu }: Where,
  pair: Pair,
  perftest: ReturnType<typeof perftestVersion>,
  giving: boolean,
  size: number,
  count: number,
): Case[] {
  const options = `-I 0 -s ${size} -n ${count} -m ${mtu} -u ${TIMEOUT}`.split(' ');
  return against(
    `send latency, ${formatSize(size)}`,
    { unit: 'us', count: 1 },
    async () => (await pair.run({ what: 'send', size, count, depth: 1, moderation: 1, mtu, timeout: TIMEOUT })) / 2,
    perftest,
    async () => {
      const prefix = giving ? GIVE_WAY : [];
      const report = await runPerftest({ program: 'ib_send_lat', device, port, gidIndex, options, prefix });
      return report[4] / 1e3;
    },
    LATENCY_GOAL,
  );
}

/** The library's case and perftest's, if there is perftest. */
function against(
  name: string,
  common: Pick<Case, 'unit' | 'count'>,
  ours: Case['round'],
  perftest: ReturnType<typeof perftestVersion>,
  theirs: Case['round'],
  goal?: number,
): Case[] {
  if (typeof perftest === 'string') return [{ ...common, name, round: ours, note: perftest, versions: LINUX }];
  const versions = `${LINUX}, perftest ${perftest.version}`;
  const to = `${name}, perftest`;
  return [
    { ...common, name, round: ours, to, goal, versions },
    { ...common, name: to, round: theirs, versions },
  ];
}

/** The library's two processes. */
class Pair implements AsyncDisposable {
  readonly #sides: readonly [ChildProcess, ChildProcess];

  private constructor(sides: readonly [ChildProcess, ChildProcess]) {
    this.#sides = sides;
  }

  static async start({ name }: Where, giving: boolean): Promise<Pair> {
    const main = fileURLToPath(new URL('./rdma-side.js', import.meta.url));
    const start = (): ChildProcess => fork(main, [name], { stdio: ['ignore', 'inherit', 'inherit', 'ipc'] });
    const pair = new Pair([start(), start()]);
    for (const side of pair.#sides) await answerOf(side);
    if (giving) for (const { pid } of pair.#sides) spawnSync('chrt', ['--idle', '--pid', '0', `${pid}`]);
    const message = { size: 64, depth: DEPTH, moderation: 1, mtu: 1024, timeout: TIMEOUT };
    await pair.run({ ...message, what: 'write', count: WARM_UP });
    await pair.run({ ...message, what: 'send', count: WARM_UP / 4 });
    return pair;
  }

  /** One round, with queue pairs of its own. */
  async run(exchange: Exchange): Promise<number> {
    const [first, second] = this.#sides;
    const [ours, theirs] = [
      await ask<SideFacts>(first, { order: 'prepare', exchange }),
      await ask<SideFacts>(second, { order: 'prepare', exchange }),
    ];
    await ask(second, { order: 'connect', peer: ours });
    await ask(first, { order: 'connect', peer: theirs });
    const answered = exchange.what === 'send' ? ask(second, { order: 'answer' }) : undefined;
    const ms = await ask<number>(first, { order: 'start' });
    await answered;
    for (const side of this.#sides) await ask(side, { order: 'close' });
    return ms;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await Promise.all(
      this.#sides.map(async (side) => {
        const ended = side.exitCode !== null || side.signalCode !== null ? undefined : once(side, 'exit');
        if (side.connected) side.disconnect();
        await ended;
      }),
    );
  }
}

const GIVE_WAY = ['chrt', '--idle', '0'];
const LINUX = `Linux ${release()}`;

async function ask<T>(side: ChildProcess, order: Order): Promise<T> {
  side.send(order);
  return (await answerOf(side)) as T;
}

/** @throws Error when the process ends instead */
async function answerOf(side: ChildProcess): Promise<unknown> {
  return await new Promise((resolve, reject) => {
    const ended = (): void => reject(new Error('a side of the RDMA benchmark has ended'));
    side.once('exit', ended);
    side.once('message', (answer) => {
      side.off('exit', ended);
      resolve(answer);
    });
  });
}

// --- registering ---

/** The library with its device, and the memory. */
interface Library {
  readonly eal: Eal;
  readonly device: Device;
}

async function register(library: Library, { quick, progress }: Effort): Promise<Result[]> {
  const { platform } = library.eal;
  const name = library.device.busName;
  await using bare = await Eal.start({ origins: false });
  const libraries = [library, { eal: bare, device: await bare.probe(`rdma:${name}`) }];
  const peer = Peer.start('rdma-reg');
  await using _closed = typeof peer === 'string' ? undefined : peer;
  const versions = typeof peer === 'string' ? LINUX : `${LINUX}, ${await peer.askText('version')}`;
  const rounds = quick ? { warmUp: 3, measured: 7 } : { warmUp: 12, measured: 31 };
  const results: Result[] = [];
  for (const hugePageSize of [undefined, 2 * MiB]) {
    const pages = `${formatSize(hugePageSize ?? 4 * KiB)} pages`;
    let fd: number;
    try {
      fd = platform.memory.memfd({ name: 'bench', length: LENGTH, hugePageSize });
    } catch (error) {
      progress(`rdma: nothing in ${pages}, ${String(error)}`);
      continue;
    }
    try {
      progress(`rdma: registering, ${pages}`);
      if (typeof peer !== 'string') {
        await peer.ask(`open ${name}`);
        await peer.ask(`memory ${LENGTH} /proc/${process.pid}/fd/${fd}`);
      }
      const [work, bareWork] = libraries.map((each) => workOf(each, fd, hugePageSize));
      const cases = REGIONS.flatMap(({ size, count }) =>
        regionCases([work.pairs, bareWork.pairs], peer, { size, count, pages, versions }),
      );
      results.push(...(await measure(cases, rounds)));
      for (const { end } of [work, bareWork]) end();
      if (typeof peer !== 'string') await peer.ask('close');
    } finally {
      platform.files.close(fd);
    }
  }
  return results;
}

/** Registers and deregisters. @returns the milliseconds that go by: the kernel has some of it done by others */
type Pairs = (size: number, count: number) => number;

function workOf(
  { eal, device }: Library,
  fd: number,
  hugePageSize: number | undefined,
): { readonly pairs: Pairs; readonly end: () => void } {
  const memory = eal.external.fromFd(fd, { length: LENGTH, ...(hugePageSize && { pageSize: hugePageSize }) });
  const { va } = memory;
  for (let at = 0, bytes = memory.bytes(); at < LENGTH; at += 4 * KiB) bytes[at] = 1;
  const pairs: Pairs = (size, count) =>
    time(() => {
      for (let done = 0; done < count; done++) device.dmaMap({ va, length: size }).unmap();
    });
  pairs(4 * KiB, WARM_UP);
  return { pairs, end: () => memory.unregister() };
}

function regionCases(
  [ours, bare]: readonly [Pairs, Pairs],
  peer: Peer | string,
  {
    size,
    count,
    pages,
    versions,
  }: { readonly size: number; readonly count: number; readonly pages: string; readonly versions: string },
): Case[] {
  const name = `register + deregister ${formatSize(size)}, ${pages}`;
  const to = `${name}, C`;
  const common = { unit: 'us', count, versions } as const;
  const library = { ...common, ...(typeof peer === 'string' ? { note: peer } : { to }) };
  const cases: Case[] = [
    { ...library, name, round: () => ours(size, count) },
    { ...library, name: `${name}, no origins`, round: () => bare(size, count) },
  ];
  if (typeof peer !== 'string')
    cases.push({ ...common, name: to, round: async () => (await peer.ask(`pairs ${count} ${size}`))[0] / 1e6 });
  return cases;
}
