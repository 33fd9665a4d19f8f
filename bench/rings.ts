/**
 * Rings and pools in one thread, between two workers and between two processes, against DPDK's: bursts of 32, each side on a CPU of its
 * own. A round between two is short, so that in most of them nothing else gets in between; it is time that goes by.
 */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { fileURLToPath } from 'node:url';
import { Worker } from 'node:worker_threads';
import { Eal, type Pool, type Ring } from '../src/index.js';
import { openPlatform } from '../src/platform/open.js';
import { until } from '../test/shared/until.js';
import { measure, time, type Case, type Effort, type Goal, type Result } from './harness/harness.js';
import { Peer } from './harness/peer.js';
import { cpusOfThis, pinTo } from './harness/placement.js';
import { BOARD_BYTES, DONE, GO, KINDS, ORDER, OVER, READY, type SideTask } from './rings-side.js';

/** Those of `peers/dpdk-rings.c`. */
const SLOTS = 1023;
const POOL = { elements: 8192, cache: 256 };
const BURST = 32;
/** Bursts in a round of one thread, and between two. */
const ALONE = 2000;
const BETWEEN = 300;
/** Of DPDK's time per element. */
const GOALS: Readonly<Record<string, Goal>> = { process: 2.5 };

const SIDE = new URL('rings-side.js', import.meta.url);

type Where = 'alone' | 'thread' | 'process';

/** What is measured in one thread, or with another one. */
interface Setup {
  readonly one: Ring;
  readonly many: Ring;
  readonly pool: Pool;
  readonly board: Int32Array;
  readonly end: () => Promise<void>;
}

/** Measures rings and pools. */
export async function benchRings({ quick, progress }: Effort): Promise<Result[]> {
  const { limitation } = openPlatform();
  const cpus = cpusOfThis();
  if (limitation !== undefined || cpus.length < 2) {
    progress(`rings: left out, ${limitation ?? 'there is one CPU'}`);
    return [];
  }
  const [here, there] = cpus;
  progress('rings: one thread, two workers, two processes');
  const peer = Peer.start('dpdk-rings', [String(here), String(there)]);
  await using _closed = typeof peer === 'string' ? undefined : peer;
  const before = pinTo(here);
  const setups = {
    alone: await setUp('alone', there),
    thread: await setUp('thread', there),
    process: await setUp('process', there),
  };
  try {
    const cases = (['alone', 'thread', 'process'] as const).flatMap((where) =>
      KINDS.flatMap((kind) => casesOf(peer, where, kind, setups[where])),
    );
    return await measure(cases, quick ? { warmUp: 10, measured: 21 } : { warmUp: 100, measured: 401 });
  } finally {
    for (const { end } of Object.values(setups)) await end();
    before();
  }
}

async function setUp(where: Where, cpu: number): Promise<Setup> {
  const name = `bench-${process.pid}`;
  const eal = await Eal.start({ memory: { noHuge: true }, ...(where === 'process' ? { name } : {}) });
  const pool = eal.pools.create({ name: 'pool', elementSize: 2048, ...POOL });
  const one = eal.rings.create('one', { size: SLOTS, producers: 'one', consumers: 'one' });
  const many = eal.rings.create('many', { size: SLOTS });
  const zone = eal.zones.reserve('board', BOARD_BYTES, { zero: true });
  const { buffer, byteOffset } = zone.bytes();
  let endSide: () => Promise<unknown> = () => Promise.resolve();
  if (where === 'thread') {
    const task: SideTask = { one: one.share(), many: many.share(), pool: pool.share(), board: zone.share(), cpu };
    const worker = new Worker(SIDE, { workerData: task });
    endSide = () => worker.terminate();
  } else if (where === 'process') {
    for (const each of [one, many, pool]) each.share();
    const args = [fileURLToPath(SIDE), 'serve', name, String(cpu)];
    const child = spawn(process.execPath, args, { stdio: ['ignore', 'inherit', 'inherit'] });
    const exit = once(child, 'exit');
    endSide = () => {
      child.kill('SIGKILL');
      return exit;
    };
    await until(() => one.threads === 1 && many.threads === 1 && pool.threads === 1);
  }
  const end = async (): Promise<void> => {
    await endSide();
    await until(() => one.threads + many.threads + pool.threads === 0);
    await eal.stop();
  };
  return { one, many, pool, board: new Int32Array(buffer, byteOffset, BOARD_BYTES / 4), end };
}

const WHERE: Readonly<Record<Where, string>> = {
  alone: 'one thread',
  thread: 'two workers',
  process: 'two processes',
};

function casesOf(peer: Peer | string, where: Where, kind: (typeof KINDS)[number], setup: Setup): Case[] {
  const bursts = where === 'alone' ? ALONE : BETWEEN;
  const common = { unit: 'ns', count: bursts * BURST } as const;
  const what = `${kind === 'pool' ? 'pool get + put' : `ring of ${kind} enqueue + dequeue`} of ${BURST}, each, ${WHERE[where]}`;
  const c = `DPDK: ${what}`;
  const compared = typeof peer === 'string' ? { note: peer } : { to: c, goal: GOALS[where] };
  const cases: Case[] = [{ ...common, ...compared, name: what, round: roundOf(where, kind, setup, bursts) }];
  if (typeof peer !== 'string')
    cases.push({
      ...common,
      name: c,
      round: async () =>
        (await peer.ask(`${kind === 'pool' ? 'pool -' : `ring ${kind}`} ${where} ${bursts} ${BURST}`))[0] / 1e6,
    });
  return cases;
}

function roundOf(where: Where, kind: (typeof KINDS)[number], setup: Setup, bursts: number): () => number {
  const { board, pool } = setup;
  const ring = kind === 'pool' ? undefined : setup[kind];
  const burst = new Int32Array(BURST);
  if (where === 'alone')
    return () =>
      time(() => {
        if (ring === undefined) usePool(pool, bursts);
        else pass(ring, burst, bursts);
      });
  return () => {
    board.set([KINDS.indexOf(kind), bursts, BURST], ORDER);
    const round = Atomics.add(board, GO, 1) + 1;
    const is = (at: number): boolean => Atomics.load(board, at) === round;
    while (!is(READY));
    if (ring !== undefined)
      return time(() => {
        send(ring, burst, bursts);
        while (!is(DONE));
      });
    const ms = time(() => usePool(pool, bursts));
    Atomics.store(board, OVER, round);
    while (!is(DONE));
    return ms;
  };
}

function pass(ring: Ring, burst: Int32Array, bursts: number): void {
  for (let i = 0; i < bursts; i++) {
    ring.enqueue(burst, BURST);
    ring.dequeue(burst, BURST);
  }
}

function send(ring: Ring, burst: Int32Array, bursts: number): void {
  for (let i = 0; i < bursts; i++) for (let n = 0; n < BURST;) n += ring.enqueue(burst, BURST - n);
}

function usePool(pool: Pool, bursts: number): void {
  const taken = new Int32Array(BURST);
  for (let i = 0; i < bursts; i++) {
    if (!pool.get(taken, BURST)) throw new Error('the pool is empty');
    pool.put(taken, BURST);
  }
}
