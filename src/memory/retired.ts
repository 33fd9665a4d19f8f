/**
 * Addresses of freed memory that something in this process may still use: a thread of Node that works on an ArrayBuffer
 * that was detached meanwhile, or the receiver of a transferred ArrayBuffer.
 *
 * The memory itself is freed at once and replaced by zero pages, which cost nothing until they are touched. The
 * addresses are given back when every ArrayBuffer that was handed out is collected: work in another thread keeps its
 * ArrayBuffer alive (measured for Node's file system, crypto and sockets). If one was transferred, they are never given
 * back, because nothing tells when the new ArrayBuffer is collected. The books belong to the thread, not to an `Eal`:
 * they outlive every `Eal`.
 */
import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';
import { DmaError, undoAll } from '../errors.js';
import type { MemoryPort } from '../platform/ports.js';
import { Range } from '../ranges.js';
import { formatSize, TiB, type Va } from '../units.js';
import { queueMicrotask, setImmediate } from '../timers.js';
import type { Share } from './shared/shares.js';

/**
 * Limits of what may wait. Collection needs turns of the event loop: a loop without any would fill the address space
 * (128 TiB on most machines) or use up the 65,530 mappings of a process. Neighbours share one mapping.
 */
const MOST = { ranges: 2 ** 17, mappings: 2 ** 14, bytes: 16 * TiB };
/** Above this part of a limit, garbage is collected on purpose. */
const HASTE = 1 / 4;

/** How many pieces of memory, and how many bytes of addresses. */
interface RetiredCount {
  readonly ranges: number;
  /** bytes of addresses; they use no memory until something touches them */
  readonly bytes: number;
}

/** Lives as long as the thread: a registry that is collected itself reports nothing. */
const collected = new FinalizationRegistry<HandedOut>((handedOut) => handedOut.collected());

/** What can still reach one piece of memory: the ArrayBuffers over it that were handed out. */
export class HandedOut {
  /** ArrayBuffers that were detached and are not known to be collected. */
  #left = 0;
  #escaped = false;
  #idle: (() => void) | undefined;

  /** Was one of them transferred by somebody else? Then the receiver can reach the memory for ever. */
  get escaped(): boolean {
    return this.#escaped;
  }

  /** Can nothing reach it, apart from ArrayBuffers that were not detached yet? */
  get unreachable(): boolean {
    return this.#left === 0 && !this.#escaped;
  }

  /** `buffer` was detached; work that began before may still use the memory. */
  emptied(buffer: ArrayBuffer): void {
    this.#left++;
    collected.register(buffer, this);
  }

  /**
   * Other threads had views of it, and have let go of it.
   *
   * @param share who they are
   */
  shared(share: Pick<Share, 'escaped' | 'whenUnreachable'>): void {
    if (share.escaped) this.escape();
    else if (share.whenUnreachable(() => this.collected())) this.#left++;
  }

  /** One was transferred by somebody else. */
  escape(): void {
    this.#escaped = true;
  }

  /** Calls `work` once, when nothing reaches the memory any more; never after an escape. */
  whenUnreachable(work: () => void): void {
    if (this.unreachable) work();
    else this.#idle = work;
  }

  /** @internal */
  collected(): void {
    this.#left--;
    if (!this.unreachable) return;
    const work = this.#idle;
    this.#idle = undefined;
    work?.();
  }
}

/** The books of one thread. */
class RetiredAddresses {
  #waiting = { ranges: 0, bytes: 0 };
  #escaped = { ranges: 0, bytes: 0 };
  readonly #starts = new Set<number>();
  readonly #ends = new Set<number>();
  /** How many of them begin where another one ends. */
  #joined = 0;
  /** Addresses that nothing reaches any more. Those that the system could not release stay here. */
  #ready: { readonly va: number; readonly length: number; readonly release: () => void }[] = [];
  #scheduled = false;
  #hasteAt = HASTE;
  #hurrying = false;

  /** See `External.retired`. */
  facts(): { readonly waiting: RetiredCount; readonly escaped: RetiredCount } {
    return { waiting: { ...this.#waiting }, escaped: { ...this.#escaped } };
  }

  /** @throws DmaError EBUSY if the limit of what may wait is reached */
  mustHaveRoom(va: Va, length: number, operation: string): void {
    if (this.#ready.length > 0) this.#release();
    if (this.#fullness(length) <= 1) return;
    this.hurry();
    const { ranges, bytes } = this.#waiting;
    throw new DmaError({
      code: 'EBUSY',
      operation,
      range: new Range(va, length),
      reason: `the addresses of ${ranges} freed pieces of memory, ${formatSize(bytes)}, wait until their views are collected`,
      hint: 'collection needs turns of the event loop: await something, such as a timer, and try again',
    });
  }

  /** Calls `release` for addresses whose memory is freed once nothing reaches them; again later each time it throws. */
  add(va: Va, length: number, handedOut: HandedOut, release: () => void): void {
    if (handedOut.escaped) {
      const { ranges, bytes } = this.#escaped;
      this.#escaped = { ranges: ranges + 1, bytes: bytes + length };
      return;
    }
    this.#note(va, length, 1);
    handedOut.whenUnreachable(() => {
      this.#ready.push({ va, length, release });
      if (this.#scheduled) return;
      // Others are often collected in the same turn.
      this.#scheduled = true;
      queueMicrotask(() => {
        this.#scheduled = false;
        this.#release();
      });
    });
    if (this.#fullness(0) >= this.#hasteAt) this.hurry();
  }

  #note(va: number, length: number, sign: 1 | -1): void {
    const end = va + length;
    if (sign === -1) {
      this.#starts.delete(va);
      this.#ends.delete(end);
    }
    this.#joined += sign * (Number(this.#starts.has(end)) + Number(this.#ends.has(va)));
    if (sign === 1) {
      this.#starts.add(va);
      this.#ends.add(end);
    }
    const { ranges, bytes } = this.#waiting;
    this.#waiting = { ranges: ranges + sign, bytes: bytes + sign * length };
  }

  #fullness(more: number): number {
    const { ranges, bytes } = this.#waiting;
    const one = Math.sign(more);
    return Math.max(
      (ranges + one) / MOST.ranges,
      (ranges - this.#joined + one) / MOST.mappings,
      (bytes + more) / MOST.bytes,
    );
  }

  /** Releases what is ready, in ascending order: unmapping the end of a mapping does not split it. */
  #release(): void {
    const ready = this.#ready.sort((a, b) => a.va - b.va);
    this.#ready = [];
    for (const each of ready) {
      if (undoAll([each.release]).length > 0) this.#ready.push(each);
      else this.#note(each.va, each.length, -1);
    }
    this.#hasteAt = Math.min(this.#hasteAt, Math.max(HASTE, this.#fullness(0) + HASTE));
  }

  /**
   * Collects garbage in a later turn of the event loop. V8 would do so late, because what waits uses next to no memory.
   */
  hurry(): void {
    if (this.#hurrying) return;
    this.#hurrying = true;
    setImmediate(() => {
      this.#hurrying = false;
      collectGarbage();
      // If views are still in use, this is not repeated again and again.
      this.#hasteAt = this.#fullness(0) + HASTE;
    }).unref();
  }
}

/** The books of this thread. */
export const retired = new RetiredAddresses();

/**
 * Unmaps memory. Its addresses stay reserved as long as something reaches them. Its views were detached before.
 *
 * @throws DmaError EBUSY if too many addresses wait; ENOMEM from the system; the mapping is unchanged then
 */
export function giveMappingBack(port: MemoryPort, { start, length }: Range<Va>, handedOut: HandedOut): void {
  if (handedOut.unreachable) {
    port.unmap(start, length);
    return;
  }
  if (!handedOut.escaped) retired.mustHaveRoom(start, length, 'unregister');
  port.retire(start, length);
  retired.add(start, length, handedOut, () => port.unmap(start, length));
}

let gc: unknown;

/** V8 offers the function only in contexts that are made after the flag was set. */
function collectGarbage(): void {
  gc ??= Reflect.get(globalThis, 'gc');
  if (typeof gc !== 'function') {
    setFlagsFromString('--expose-gc');
    gc = runInNewContext('gc');
  }
  if (typeof gc === 'function') Reflect.apply(gc, undefined, []);
}
