/**
 * Keeps a queue pair busy: as many requests as may be under way, posted in batches from arrays that are made once, with a
 * completion for some of them only. Nothing is allocated for a request, and nobody is promised anything.
 */
import { completionError } from '../../rdma/completion-error.js';
import { IBV_SEND_SIGNALED, IBV_WC_SUCCESS } from '../../platform/rdma/abi/requests.js';
import { DmaError, type LongWorkOptions, type MemoryPart } from '../../index.js';
import { completionStatusName, type QueuePair, type RemoteMemory, type SendRequests } from '../../entry/rdma.js';
import { progressOf } from '../../long-work.js';
import type { Verb, Wish } from './protocol.js';

/** How long to ask for completions again and again before waiting for the device to tell; milliseconds. */
const SPIN = 0.1;
/** How long to keep the event loop from its other work, at most; milliseconds. */
const TURN = 10;
/** What latencies are measured for, at most; milliseconds. */
const LATENCY_TIME = 2000;
/** So many completions are asked for while that many requests are under way. */
const SIGNALS = 4;

/** What is moved. */
export interface Flow extends Omit<Wish, 'size'> {
  /** All of it in one registration of the device. */
  readonly local: MemoryPart;
  /** Where to or from; of messages there is none. */
  readonly remote: RemoteMemory | undefined;
  /** Of the local memory; default: the one it has now */
  readonly lkey?: number;
}

/** A request that failed. */
export interface FailedRequest {
  /** bytes from the beginning of the memory */
  readonly offset: number;
  /** bytes */
  readonly length: number;
  /** Was it the other side that did not allow it? */
  readonly isByPeer: boolean;
}

/** Moves blocks over one queue pair, which it owns and closes before the memory is freed. */
export class Pump {
  readonly #pair: QueuePair;
  readonly #flow: Flow;
  readonly #lkey: number;
  readonly #requests: SendRequests;
  /** Requests for all of the memory. */
  readonly #blocks: number;
  /** Every so many requests, one asks for a completion. */
  readonly #stride: number;
  #posted = 0;
  #done = 0;
  #failed: FailedRequest | undefined;

  /** @throws DmaError EFAULT when the local memory is not in one registration */
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

  /** Requests that have been done so far. */
  get requests(): number {
    return this.#done;
  }

  /** The first request that failed, if one did. */
  get failed(): FailedRequest | undefined {
    return this.#failed;
  }

  /**
   * Moves all of the memory, `times` times.
   *
   * @throws DmaError when a request fails, as the methods of queue pairs do; {@link Pump.failed} tells which; what the signal says
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
   * Does one request after the other, and takes the time of each, from posting it until its completion is seen.
   *
   * @returns microseconds; fewer than `count` when they take long
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

  /** Posts up to `count` requests, the next ones of the memory; the last one before `end` asks for a completion. */
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

  /** Waits for completions: some time in a loop, which is quickest, then until the device tells. */
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

  /** Lets a signal end what is under way: it comes back, as given up. */
  #haltedBy(signal: AbortSignal | undefined): Disposable {
    const halt = (): void => {
      if (this.#pair.live) this.#pair.halt();
    };
    signal?.addEventListener('abort', halt, { once: true });
    return { [Symbol.dispose]: () => signal?.removeEventListener('abort', halt) };
  }
}

/** What a request of each kind does with local memory. */
export const LOCAL_ACCESS: Readonly<Record<Verb, 'read' | 'write'>> = { write: 'read', read: 'write', send: 'read' };
