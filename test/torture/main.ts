/**
 * `npm run torture`: four worker threads, and then four processes, use one pool and two rings at full speed while they are killed at random
 * and replaced. Each looks whether its elements are its own; at the end all elements are there, each once.
 *
 * This also shows that `Atomics` on mapped memory are the processor's atomic instructions: between processes nothing else guards the locks.
 */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { Worker } from 'node:worker_threads';
import { Eal, type Pool, type Ring } from '../../src/index.js';
import { Random } from '../shared/random.js';
import {
  BOARD,
  BOARD_ZONE,
  ELEMENTS,
  LINE_RING,
  MIX_RING,
  MOST_IDS,
  SLOTS,
  STOP,
  STORE,
  type Orders,
} from './board.js';
import type { WorkerOrders } from './participant.js';

const PARTICIPANT = new URL('participant.js', import.meta.url);
/** No operation in so many milliseconds: something hangs. */
const STUCK_MS = 120_000;

const USAGE = `Usage: npm run torture -- [--operations N] [--seed N] [--only workers|processes] [--kill-ms N]

  --operations N   calls of get, put, enqueue and dequeue, for each of both (10000000)
  --seed N         of the random numbers (1)
  --only KIND      workers, or processes
  --kill-ms N      one of the four is killed after 1 to 2N milliseconds, again and again (200); 0: none
`;

/** One that takes part, from outside. */
interface Participant {
  readonly orders: Orders;
  /** Ends with an error, unless it was killed or has stopped by itself. */
  readonly ended: Promise<string | undefined>;
  kill(): Promise<void>;
}

interface Settings {
  readonly operations: number;
  readonly seed: number;
  readonly killMs: number;
}

function startWorker(orders: WorkerOrders): Participant {
  const worker = new Worker(PARTICIPANT, { workerData: orders });
  let error: string | undefined;
  worker.on('error', (thrown) => (error = String(thrown)));
  const ended = new Promise<string | undefined>((resolve) => worker.once('exit', () => resolve(error)));
  const kill = async (): Promise<void> => {
    await worker.terminate();
  };
  return { orders, ended, kill };
}

function startProcess(orders: Orders): Participant {
  const child = spawn(process.execPath, [fileURLToPath(PARTICIPANT), JSON.stringify(orders)], { stdio: 'inherit' });
  const exit = once(child, 'exit') as Promise<[number | null, NodeJS.Signals | null]>;
  const ended = exit.then(([status, signal]) =>
    status === 0 || signal === 'SIGKILL' ? undefined : `it ended with ${status ?? signal}`,
  );
  const kill = async (): Promise<void> => {
    child.kill('SIGKILL');
    await ended;
  };
  return { orders, ended, kill };
}

/** Lets four of a kind work. @returns what went wrong */
async function torture(kind: 'workers' | 'processes', settings: Settings): Promise<string | undefined> {
  const options = { memory: { noHuge: true, onNotice: () => undefined }, onForgotten: () => undefined };
  const eal = await Eal.start(kind === 'processes' ? { name: STORE, ...options } : options);
  const pool = eal.pools.create({ name: 'elements', elements: ELEMENTS, elementSize: 64, cache: 32, zero: true });
  const mix = eal.rings.create(MIX_RING, { size: 500, pool });
  const line = eal.rings.create(LINE_RING, { size: 100, pool, producers: 'one', consumers: 'one' });
  const zone = eal.zones.reserve(BOARD_ZONE, BOARD.words * 4, { zero: true });
  const { buffer, byteOffset } = zone.bytes();
  const board = new Int32Array(buffer, byteOffset, BOARD.words);
  const start =
    kind === 'processes'
      ? startProcess
      : (orders: Orders) => startWorker({ ...orders, mix: mix.share(), line: line.share(), board: zone.share() });
  const random = new Random(settings.seed);
  let ids = 0;
  let wrong: string | undefined;
  const next = (slot: number): Participant => {
    const participant = start({ id: ++ids, slot, seed: random.below(2 ** 31) });
    void participant.ended.then((error) => (wrong ??= error));
    return participant;
  };
  const all = Array.from({ length: SLOTS }, (_, slot) => next(slot));
  const total = (): number => board.subarray(BOARD.operations, BOARD.operations + ids + 1).reduce((a, b) => a + b, 0);
  const began = performance.now();
  let kills = 0;
  let [seen, since] = [0, began];
  for (;;) {
    await sleep(settings.killMs === 0 ? 100 : 1 + random.below(2 * settings.killMs));
    const now = total();
    if (now !== seen) [seen, since] = [now, performance.now()];
    else if (performance.now() - since > STUCK_MS) wrong ??= `no operation in ${STUCK_MS} ms`;
    if (wrong !== undefined || now >= settings.operations || ids === MOST_IDS - 1) break;
    if (settings.killMs === 0) continue;
    const slot = random.below(SLOTS);
    const victim = all[slot];
    // One that has not begun shows nothing.
    if (Atomics.load(board, BOARD.operations + victim.orders.id) === 0) continue;
    Atomics.store(board, BOARD.dead + victim.orders.id, 1);
    await victim.kill();
    kills++;
    all[slot] = next(slot);
  }
  Atomics.store(board, STOP, 1);
  if (wrong !== undefined) for (const each of all) await each.kill();
  await Promise.all(all.map(({ ended }) => ended));
  const seconds = (performance.now() - began) / 1000;
  wrong ??= census(pool, [mix, line]);
  const done = total();
  console.log(
    `${kind}: ${done} operations, ${kills} killed, ${ids} took part, ${seconds.toFixed(1)} s` +
      (wrong === undefined ? `: all ${ELEMENTS} elements are there, each once` : ''),
  );
  if (wrong !== undefined) return wrong;
  for (const ring of [mix, line]) ring.free();
  pool.free();
  zone.free();
  await eal.stop();
  return undefined;
}

/** Looks for each element. @returns what is wrong */
function census(pool: Pool, rings: readonly Ring[]): string | undefined {
  pool.recover();
  const seen = new Int32Array(ELEMENTS);
  const burst = new Int32Array(ELEMENTS);
  let count = 0;
  for (const ring of rings) {
    const n = ring.dequeue(burst, ELEMENTS);
    for (const number of burst.subarray(0, n)) seen[number]++;
    pool.put(burst, n);
    count += n;
  }
  if (pool.available !== ELEMENTS)
    return `${pool.available} of ${ELEMENTS} elements are there, ${count} of them were in rings`;
  if (!pool.get(burst, ELEMENTS)) return 'the pool does not give all of its elements';
  const taken = new Set(burst);
  pool.put(burst, ELEMENTS);
  if (taken.size !== ELEMENTS || seen.some((times) => times > 1)) return 'elements are there twice';
  return undefined;
}

const { values } = parseArgs({
  options: {
    operations: { type: 'string', default: '10000000' },
    seed: { type: 'string', default: '1' },
    only: { type: 'string' },
    'kill-ms': { type: 'string', default: '200' },
    help: { type: 'boolean', default: false },
  },
});
if (values.help) {
  console.log(USAGE);
  process.exit(0);
}
const settings = {
  operations: Number(values.operations),
  seed: Number(values.seed),
  killMs: Number(values['kill-ms']),
};
// Names in it are this run's own.
const folder = mkdtempSync(join(tmpdir(), 'torture-'));
process.env['XDG_RUNTIME_DIR'] = folder;
try {
  for (const kind of ['workers', 'processes'] as const) {
    if (values.only !== undefined && values.only !== kind) continue;
    const wrong = await torture(kind, settings);
    if (wrong === undefined) continue;
    console.error(`${kind}: ${wrong} (seed ${settings.seed})`);
    process.exitCode = 1;
    break;
  }
} finally {
  rmSync(folder, { recursive: true, force: true });
}
if (process.exitCode !== undefined) process.exit();
