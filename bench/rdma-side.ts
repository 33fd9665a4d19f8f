/**
 * One side of the RDMA benchmark, in a process of its own: `rdma-side.js DEVICE`. It takes orders from its parent and answers
 * each. What it measures it does as a program in a hurry would: requests that are built once, posted one at a time as perftest
 * does, and completions that are polled for.
 */
import { Eal } from '../src/index.js';
import {
  verbsDriver,
  type CompletionQueue,
  type QueuePair,
  type QueuePairAddress,
  type RemoteMemory,
  type SendRequests,
} from '../src/entry/rdma.js';
import { IBV_SEND_SIGNALED, IBV_WC_SUCCESS } from '../src/platform/rdma/abi/requests.js';

/** What the two sides do together. */
export interface Exchange {
  readonly what: 'write' | 'send';
  /** bytes of a message */
  readonly size: number;
  /** How many; for writes a multiple of `moderation`. */
  readonly count: number;
  /** Requests under way at most. */
  readonly depth: number;
  /** One completion for so many requests. */
  readonly moderation: number;
  /** bytes */
  readonly mtu: number;
  /** As `ConnectOptions.timeout`. */
  readonly timeout: number;
}

/** What the other side has to know. */
export interface SideFacts {
  readonly pair: QueuePairAddress;
  readonly memory: RemoteMemory;
}

/** Orders: make a queue pair (the answer are {@link SideFacts}), connect it, do it (milliseconds, see below), close it. */
export type Order =
  | { readonly order: 'prepare'; readonly exchange: Exchange }
  | { readonly order: 'connect'; readonly peer: SideFacts }
  | { readonly order: 'start' }
  | { readonly order: 'answer' }
  | { readonly order: 'close' };

/** More than a message ever takes. milliseconds */
const SPIN = 60_000;

/** The longest message. bytes */
export const LONGEST = 2 ** 20;

/** The queue pair of one round. */
class Round {
  readonly pair: QueuePair;
  readonly #exchange: Exchange;
  readonly #sent: CompletionQueue;
  readonly #received: CompletionQueue;
  readonly #requests: SendRequests;
  #peer: SideFacts | undefined;

  constructor(exchange: Exchange) {
    const { what, size, count, depth } = exchange;
    const receives = what === 'send' ? count : 1;
    this.#exchange = exchange;
    this.#sent = rdma.createCompletionQueue({ entries: depth, events: false, batch: 16 });
    this.#received = rdma.createCompletionQueue({ entries: receives, events: false, batch: 1 });
    this.pair = rdma.createQueuePair({
      completions: this.#sent,
      receiveCompletions: this.#received,
      sends: depth,
      receives,
    });
    this.#requests = this.pair.sendRequests(depth);
    if (what === 'write') return;
    const requests = this.pair.receiveRequests(receives);
    const va = memory.va + LONGEST;
    for (let slot = 0; slot < receives; slot++) requests.setLocal(slot, va, size, this.pair.keys.keyOf(va, size));
    this.pair.postReceives(requests);
  }

  connect(peer: SideFacts): void {
    const { mtu, timeout, depth, size, what, moderation } = this.#exchange;
    this.pair.connect(peer.pair, { mtu, timeout });
    this.#peer = peer;
    const lkey = this.pair.keys.keyOf(memory.va, size);
    for (let slot = 0; slot < depth; slot++) {
      const flags = slot % moderation === moderation - 1 ? IBV_SEND_SIGNALED : 0;
      this.#requests.setLocal(slot, memory.va, size, lkey);
      if (what === 'write') this.#requests.write(slot, peer.memory.address, peer.memory.rkey, flags);
      else this.#requests.send(slot, flags);
    }
  }

  /** @returns milliseconds: for writes of all of them, for sends the median of there and back again */
  start(): number {
    if (this.#peer === undefined) throw new Error('not connected');
    return this.#exchange.what === 'write' ? this.#write() : this.#ping();
  }

  #write(): number {
    const { count, depth, moderation } = this.#exchange;
    const requests = this.#requests;
    const start = performance.now();
    for (let posted = 0, done = 0, slot = 0; done < count;) {
      while (posted < count && posted - done < depth) {
        this.pair.post(requests, slot, 1);
        slot = slot + 1 === depth ? 0 : slot + 1;
        posted++;
      }
      done += take(this.#sent) * moderation;
    }
    return performance.now() - start;
  }

  #ping(): number {
    const { count } = this.#exchange;
    const times = new Float64Array(count + 1);
    for (let i = 0; i < count; i++) {
      times[i] = performance.now();
      this.pair.post(this.#requests, 0, 1);
      await1(this.#sent);
      await1(this.#received);
    }
    times[count] = performance.now();
    return times
      .subarray(1)
      .map((time, i) => time - times[i])
      .sort()[count >>> 1];
  }

  /** The other side of sends. */
  answer(): number {
    for (let i = 0; i < this.#exchange.count; i++) {
      await1(this.#received);
      this.pair.post(this.#requests, 0, 1);
      await1(this.#sent);
    }
    return 0;
  }

  close(): void {
    this.pair.close();
    this.#sent.close();
    this.#received.close();
  }
}

/** @returns how many completions there were */
function take(queue: CompletionQueue): number {
  const count = queue.poll();
  for (let i = 0; i < count; i++)
    if (queue.completions.status(i) !== IBV_WC_SUCCESS)
      throw new Error(`a request failed with status ${queue.completions.status(i)}`);
  return count;
}

function await1(queue: CompletionQueue): void {
  if (queue.spin(SPIN) === 0) throw new Error('nothing has come');
  if (queue.completions.status(0) !== IBV_WC_SUCCESS)
    throw new Error(`a request failed with status ${queue.completions.status(0)}`);
}

function obey(order: Order): SideFacts | number {
  switch (order.order) {
    case 'prepare':
      round = new Round(order.exchange);
      return { pair: round.pair.address, memory: { address: memory.va + LONGEST, rkey: mapping.rkey ?? 0 } };
    case 'connect':
      round?.connect(order.peer);
      return 0;
    case 'start':
      return round?.start() ?? 0;
    case 'answer':
      return round?.answer() ?? 0;
    case 'close':
      round?.close();
      return 0;
  }
}

const eal = await Eal.start();
const device = await eal.probe(`rdma:${process.argv[2]}`);
const rdma = device.use(verbsDriver);
/** What it sends, and what it receives. */
const memory = eal.external.allocate(2 * LONGEST);
const mapping = device.dmaMap(memory, { remote: 'read-write' });
let round: Round | undefined;
process.on('message', (order: Order) => process.send?.(obey(order)));
process.once('disconnect', () => void eal.stop());
process.send?.(0);
