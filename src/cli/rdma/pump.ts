/**
 * Keeps a queue pair busy: posts as many requests as allowed, in batches from preallocated arrays, and asks for a
 * completion only for some of them. It allocates nothing per request and uses no promises.
 */
import { completionError } from '../../rdma/completion-error.js';
import { IBV_SEND_SIGNALED, IBV_WC_SUCCESS } from '../../platform/rdma/abi/requests.js';
import { DmaError, type LongWorkOptions, type MemoryPart } from '../../index.js';
import { completionStatusName, type QueuePair, type RemoteMemory, type SendRequests } from '../../entry/rdma.js';
import { progressOf } from '../../long-work.js';
import type { Verb, Wish } from './protocol.js';

/** How long to poll for completions before waiting for a notification of the device, in milliseconds. */
const SPIN = 0.1;
/** How long to block the event loop at most, in milliseconds. */
const TURN = 10;
/** How long a latency measurement may take, in milliseconds. */
const LATENCY_TIME = 2000;
/** How many of the requests in progress ask for a completion. */
const SIGNALS = 4;

/** What is moved. */
export interface Flow extends Omit<Wish, 'size'> {
  /** The local memory, all in one registration of the device. */
  readonly local: MemoryPart;
  /** The remote memory; absent for messages. */
  readonly remote: RemoteMemory | undefined;
  /** The key of the local memory; default: its current key. */
  readonly lkey?: number;
}

/** A request that failed. */
export interface FailedRequest {
  /** Bytes from the beginning of the memory. */
  readonly offset: number;
  /** Bytes. */
  readonly length: number;
  /** Whether the other side refused it. */
  readonly isByPeer: boolean;
}

/** Moves blocks over one queue pair. It owns the queue pair, and closes it before the memory is freed. */
export class Pump {
  readonly #pair: QueuePair;
  readonly #flow: Flow;
  readonly #lkey: number;
  readonly #requests: SendRequests;
  /** The number of requests for the whole memory. */
  readonly #blocks: number;
  /** One in this many requests asks for a completion. */
  readonly #stride: number;
  #posted = 0;
  #done = 0;
  #failed: FailedRequest | undefined;

  /** @throws DmaError EFAULT if the local memory is not in one registration */
  constructor(pair: QueuePair, flow: Flow) {
    const { local, block, depth, verb, lkey = pair.keys.keyOf(local.va, local.length) } = flow;
    if (lkey < 0)
      throw new DmaError({ code: 'EFAULT', operation: verb, reason: 'the local memory is not all in one mapping' });
    this.#pair = pair;
    this.#flow = flow;
    this.#lkey = lkey;
    this.#requests = pair.sendRequests(depth, 1);
    this.#blocks = Math.ceil(local.length / block);
    this.#stride = Math.max(1, Math.floor(depth / SIGNALS));
  }

  /** Requests completed so far. */
  get requests(): number {
    return this.#done;
  }

  /** The first request that failed, if any. */
  get failed(): FailedRequest | undefined {
    return this.#failed;
  }

  /**
   * Moves the whole memory, `times` times.
   *
   * @throws DmaError if a request fails, as the methods of queue pairs do ({@link Pump.failed} says which); the
   *   signal's reason
   */
  async run(times: number, { onProgress, signal }: LongWorkOptions = {}): Promise<void> {
    const { depth, block, local } = this.#flow;
    const report = progressOf(onProgress, times * local.length);
    const first = this.#done;
    const end = first + this.#blocks * times;
    using _stop = this.#haltedBy(signal);
    for (let turn = performance.now(); this.#done < end;) {
      signal?.throwIfAborted();
      const count = Math.min(depth - (this.#posted - this.#done), end - this.#posted);
      if (count > 0) this.#post(count, end);
      await this.#complete(signal);
      if (performance.now() - turn < TURN) continue;
      report(Math.min((this.#done - first) * block, times * local.length));
      await new Promise((resolve) => setImmediate(resolve));
      turn = performance.now();
    }
  }

  /**
   * Does one request after the other, and measures the time of each, from posting to its completion.
   *
   * @returns microseconds; fewer than `count` times if the requests are slow
   */
  async latencies(count: number, { signal }: LongWorkOptions = {}): Promise<Float64Array> {
    const times = new Float64Array(count);
    const started = performance.now();
    let turn = started;
    using _stop = this.#haltedBy(signal);
    for (let n = 0; n < count; n++) {
      signal?.throwIfAborted();
      const before = performance.now();
      this.#post(1, this.#posted + 1);
      while (this.#done < this.#posted) await this.#complete(signal);
      const now = performance.now();
      times[n] = (now - before) * 1000;
      if (now - started > LATENCY_TIME) return times.subarray(0, n + 1);
      if (now - turn < TURN) continue;
      await new Promise((resolve) => setImmediate(resolve));
      turn = performance.now();
    }
    return times;
  }

  /** Posts up to `count` requests, the next ones of the memory. The last request before `end` asks for a completion. */
  #post(count: number, end: number): void {
    const { depth, verb, block, local, remote } = this.#flow;
    const requests = this.#requests;
    for (let number = this.#posted; number < this.#posted + count; number++) {
      const slot = number % depth;
      const offset = (number % this.#blocks) * block;
      const isSignaled = (number + 1) % this.#stride === 0 || number + 1 === end;
      const flags = isSignaled ? IBV_SEND_SIGNALED : 0;
      requests.setId(slot, number);
      requests.setLocal(slot, local.va + offset, Math.min(block, local.length - offset), this.#lkey);
      if (remote === undefined) requests.send(slot, flags);
      else if (verb === 'read') requests.read(slot, remote.address + offset, remote.rkey, flags);
      else requests.write(slot, remote.address + offset, remote.rkey, flags);
    }
    this.#posted += this.#pair.post(requests, this.#posted % depth, count);
  }

  /** Waits for completions: first polls, which is fastest, then waits for a notification of the device. */
  async #complete(signal: AbortSignal | undefined): Promise<void> {
    const { completions } = this.#pair;
    let count = completions.poll();
    if (count === 0) {
      const until = performance.now() + SPIN;
      while (count === 0 && performance.now() < until) count = completions.poll();
      if (count === 0) count = await completions.next();
    }
    for (let index = 0; index < count; index++) {
      const number = completions.completions.id(index);
      const status = completions.completions.status(index);
      if (status !== IBV_WC_SUCCESS) {
        signal?.throwIfAborted();
        throw this.#fail(number, status, completions.completions.vendorError(index));
      }
      this.#done = number + 1;
    }
  }

  #fail(number: number, status: number, vendorError: number): DmaError {
    const { verb, block, local } = this.#flow;
    const offset = (number % this.#blocks) * block;
    const isByPeer = completionStatusName(status) === 'REM_ACCESS_ERR';
    this.#failed = { offset, length: Math.min(block, local.length - offset), isByPeer };
    return completionError(status, vendorError, { operation: verb });
  }

  /** Lets a signal abort the requests in progress: they complete as flushed. */
  #haltedBy(signal: AbortSignal | undefined): Disposable {
    const halt = (): void => {
      if (this.#pair.live) this.#pair.halt();
    };
    signal?.addEventListener('abort', halt, { once: true });
    return { [Symbol.dispose]: () => signal?.removeEventListener('abort', halt) };
  }
}

/** How a request of each kind accesses local memory. */
export const LOCAL_ACCESS: Readonly<Record<Verb, 'read' | 'write'>> = { write: 'read', read: 'write', send: 'read' };
