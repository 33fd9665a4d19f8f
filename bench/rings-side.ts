/** The other thread or process of the rings benchmark: takes what comes, or uses the pool meanwhile, one round for each order. */
import { isMainThread, parentPort, workerData } from 'node:worker_threads';
import {
  attach,
  Eal,
  type AttachedMemory,
  type Pool,
  type PoolDescription,
  type Ring,
  type Shared,
} from '../src/index.js';
import type { RingDescription } from '../src/memory/pool/ring.js';
import { pinTo } from './harness/placement.js';

/** Words of the board: each on a cache line of its own, and then the order. */
export const GO = 0;
export const READY = 16;
export const DONE = 32;
export const OVER = 48;
export const ORDER = 64;
export const BOARD_BYTES = 4096;

/** What a round does. */
export const KINDS = ['one', 'many', 'pool'] as const;

/** What a worker is sent. */
export interface SideTask {
  readonly one: RingDescription;
  readonly many: RingDescription;
  readonly pool: PoolDescription;
  readonly board: Shared<AttachedMemory>;
  readonly cpu: number;
}

/** Sleeps for 0.1 ms, as the C program does between its rounds. */
const bed = new Int32Array(new SharedArrayBuffer(4));

/** Serves rounds, for ever. */
function serve(one: Ring, many: Ring, pool: Pool, board: Int32Array): void {
  for (let round = 0; ; round++) {
    while (Atomics.load(board, GO) === round) Atomics.wait(bed, 0, 0, 0.1);
    const [kind, count, burst] = board.subarray(ORDER, ORDER + 3);
    const taken = new Int32Array(burst);
    Atomics.store(board, READY, round + 1);
    if (KINDS[kind] === 'pool')
      while (Atomics.load(board, OVER) !== round + 1) {
        if (!pool.get(taken, burst)) throw new Error('the pool is empty');
        pool.put(taken, burst);
      }
    else take(KINDS[kind] === 'one' ? one : many, taken, count * burst);
    Atomics.store(board, DONE, round + 1);
  }
}

function take(ring: Ring, into: Int32Array, elements: number): void {
  for (let left = elements; left > 0;) left -= ring.dequeue(into, into.length);
}

function wordsIn({ buffer, byteOffset, length }: Uint8Array): Int32Array {
  return new Int32Array(buffer, byteOffset, length / 4);
}

if (!isMainThread && parentPort !== null) {
  const { one, many, pool, board, cpu } = workerData as SideTask;
  pinTo(cpu);
  serve(attach(one), attach(many), attach(pool), wordsIn(attach(board).bytes()));
} else if (process.argv[2] === 'serve') {
  const [, , , name, cpu] = process.argv;
  pinTo(Number(cpu));
  const store = await Eal.attach(name);
  const [one, many] = [await store.rings.find('one'), await store.rings.find('many')];
  const [pool, board] = [await store.pools.find('pool'), await store.zones.find('board')];
  if (one === undefined || many === undefined || pool === undefined || board === undefined)
    throw new Error('the primary does not have everything');
  serve(one, many, pool, wordsIn(board.bytes()));
}
