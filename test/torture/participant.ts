/**
 * A thread or process that uses a pool and two rings as fast as it can, and looks after each step whether an element is in its hands alone.
 *
 * The first word of each element says where it is: 0 in the pool, the number of who has it, or minus that number on its way through a
 * ring. So an element that is in two places shows it to whoever takes it next.
 */
import { isMainThread, parentPort, workerData } from 'node:worker_threads';
import { attach, Eal, type Pool, type Ring } from '../../src/index.js';
import type { Shared } from '../../src/index.js';
import type { AttachedMemory } from '../../src/index.js';
import type { RingDescription } from '../../src/memory/pool/ring.js';
import { Random } from '../shared/random.js';
import { BOARD, BOARD_ZONE, LINE_RING, MIX_RING, MOST_IN_HAND, STORE, STOP, wordOf, type Orders } from './board.js';

/** What a worker of the same process is sent. */
export interface WorkerOrders extends Orders {
  readonly mix: RingDescription;
  readonly line: RingDescription;
  readonly board: Shared<AttachedMemory>;
}

const BURST = 16;

/** One that takes part. */
class Participant {
  readonly #orders: Orders;
  readonly #pool: Pool;
  readonly #mix: Ring;
  readonly #line: Ring;
  readonly #board: Int32Array;
  readonly #random: Random;
  /** First words of elements. */
  readonly #words: (element: number) => { readonly words: Int32Array; readonly at: number };
  readonly #hand = new Int32Array(MOST_IN_HAND);
  readonly #burst = new Int32Array(BURST);
  #has = 0;

  constructor(orders: Orders, mix: Ring, line: Ring, board: Int32Array) {
    const { pool } = mix;
    if (pool === undefined) throw new Error('the ring has no pool');
    this.#orders = orders;
    this.#pool = pool;
    this.#mix = mix;
    this.#line = line;
    this.#board = board;
    this.#random = new Random(orders.seed);
    this.#words = wordOf(pool);
  }

  /** Works until it is told to stop; then gives everything back. @returns how many elements it had too many or too few: none */
  run(): void {
    const { id } = this.#orders;
    for (let done = 1; Atomics.load(this.#board, STOP) === 0; done++) {
      this.#step();
      Atomics.store(this.#board, BOARD.operations + id, done);
    }
    while (this.#has > 0) this.#put(Math.min(BURST, this.#has));
    this.#mix.free();
    this.#line.free();
  }

  #step(): void {
    const { slot } = this.#orders;
    const count = 1 + this.#random.below(BURST);
    switch (this.#random.below(6)) {
      case 0:
      case 1:
        if (this.#has + count <= MOST_IN_HAND) this.#get(count);
        break;
      case 2:
        if (count <= this.#has) this.#put(count);
        break;
      case 3:
        if (count <= this.#has) this.#enqueue(slot === 0 ? this.#line : this.#mix, count);
        break;
      case 4:
        this.#dequeue(slot === 1 ? this.#line : this.#mix, count);
        break;
      default:
        this.#dequeue(this.#mix, count);
        if (this.#has === 0 && this.#random.oneIn(50)) this.#mix.wait(1);
    }
  }

  #get(count: number): void {
    if (!this.#pool.get(this.#burst, count)) return;
    for (let i = 0; i < count; i++) {
      const was = this.#mark(this.#burst[i], this.#orders.id);
      if (was !== 0 && !this.#isDead(Math.abs(was))) this.#fail('get', this.#burst[i], was);
      this.#hand[this.#has++] = this.#burst[i];
    }
  }

  #put(count: number): void {
    this.#leaveHand(count, 0, 'put');
    this.#pool.put(this.#burst, count);
  }

  #enqueue(ring: Ring, count: number): void {
    const { id } = this.#orders;
    this.#leaveHand(count, -id, 'enqueue');
    const went = this.#random.oneIn(2)
      ? ring.enqueue(this.#burst, count)
      : ring.enqueueAll(this.#burst, count)
        ? count
        : 0;
    for (let i = went; i < count; i++) {
      const was = this.#mark(this.#burst[i], id);
      if (was !== -id) this.#fail('not enqueued', this.#burst[i], was);
      this.#hand[this.#has++] = this.#burst[i];
    }
  }

  #dequeue(ring: Ring, count: number): void {
    const room = Math.min(count, MOST_IN_HAND - this.#has);
    const came = ring.dequeue(this.#burst, room);
    for (let i = 0; i < came; i++) {
      const was = this.#mark(this.#burst[i], this.#orders.id);
      if (was >= 0) this.#fail('dequeue', this.#burst[i], was);
      this.#hand[this.#has++] = this.#burst[i];
    }
  }

  #leaveHand(count: number, mark: number, what: string): void {
    for (let i = 0; i < count; i++) {
      const element = this.#hand[--this.#has];
      const was = this.#mark(element, mark);
      if (was !== this.#orders.id) this.#fail(what, element, was);
      this.#burst[i] = element;
    }
  }

  #mark(element: number, mark: number): number {
    const { words, at } = this.#words(element);
    return Atomics.exchange(words, at, mark);
  }

  /** It is marked so before it is killed. */
  #isDead(id: number): boolean {
    return Atomics.load(this.#board, BOARD.dead + id) === 1;
  }

  #fail(what: string, element: number, was: number): never {
    throw new Error(`${this.#orders.id}: ${what}: element ${element} was marked ${was}`);
  }
}

function wordsIn({ buffer, byteOffset, length }: Uint8Array): Int32Array {
  return new Int32Array(buffer, byteOffset, length / 4);
}

function runInWorker(orders: WorkerOrders): void {
  const [mix, line, board] = [attach(orders.mix), attach(orders.line), attach(orders.board)];
  new Participant(orders, mix, line, wordsIn(board.bytes())).run();
}

async function runInProcess(orders: Orders): Promise<void> {
  const store = await Eal.attach(STORE, { label: `participant ${orders.id}` });
  const [mix, line] = [await store.rings.find(MIX_RING), await store.rings.find(LINE_RING)];
  const board = await store.zones.find(BOARD_ZONE);
  if (mix === undefined || line === undefined || board === undefined) throw new Error('there is no ring');
  new Participant(orders, mix, line, wordsIn(board.bytes())).run();
  await store.close();
}

if (!isMainThread && parentPort !== null) runInWorker(workerData as WorkerOrders);
else await runInProcess(JSON.parse(process.argv[2] ?? '') as Orders);
