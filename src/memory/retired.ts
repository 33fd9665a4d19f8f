/**
 * Addresses that something in this process may still reach although their memory was freed: a thread of Node's that works
 * on an ArrayBuffer which was emptied meanwhile, or whoever was given one by a transfer.
 *
 * The memory itself goes at once: zeroed pages that cost nothing until they are touched take its place. The addresses are
 * given back when every ArrayBuffer that was handed out is collected, because work in another thread holds its ArrayBuffer
 * (measured for Node's file system, crypto and sockets); and never when one of them was transferred away, because nothing
 * tells when the new one goes. This is kept for the whole thread and not by an `Eal`: it outlives every `Eal`.
 */
import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';
import { DmaError, undoAll } from '../errors.js';
import type { MemoryPort } from '../platform/ports.js';
import { Range } from '../ranges.js';
import { formatSize, TiB, type Va } from '../units.js';
import { queueMicrotask, setImmediate } from '../timers.js';

/**
 * What may wait. Collecting takes turns of the event loop, so that a loop without any would fill the address space (128 TiB
 * on most machines) or the 65,530 mappings that a process may have. Neighbours are one mapping.
 */
const MOST = { ranges: 2 ** 17, mappings: 2 ** 14, bytes: 16 * TiB };
/** From this part of them on garbage is collected on purpose. */
const HASTE = 1 / 4;

/** How many pieces of memory, and how many bytes of addresses. */
export interface RetiredCount {
  readonly ranges: number;
  /** bytes of addresses; they cost no memory until something touches them */
  readonly bytes: number;
}

/** Addresses of freed memory that were not given back yet, of this thread. */
export interface RetiredFacts {
  /** Given back once the views are collected. */
  readonly waiting: RetiredCount;
  /** A view was transferred away: they stay to the end of the process. */
  readonly escaped: RetiredCount;
}

/** A registry that is collected itself tells nothing any more: this one lives as long as the thread. */
const collected = new FinalizationRegistry<HandedOut>((handedOut) => handedOut.collected());

/** What can still reach one piece of memory: the ArrayBuffers that were handed out over it. */
export class HandedOut {
  /** Emptied, and not known to be collected. */
  #left = 0;
  #escaped = false;
  #idle: (() => void) | undefined;

  /** Was one of them found empty without our doing? Then another one has the memory, for good. */
  get escaped(): boolean {
    return this.#escaped;
  }

  /** Is there nothing that reaches it, but for ArrayBuffers that were not emptied yet? */
  get unreachable(): boolean {
    return this.#left === 0 && !this.#escaped;
  }

  /** `buffer` was emptied; work that began before may go on with what it had. */
  emptied(buffer: ArrayBuffer): void {
    this.#left++;
    collected.register(buffer, this);
  }

  /** One was moved by somebody else. */
  escape(): void {
    this.#escaped = true;
  }

  /** Calls `work`, once, when nothing reaches the memory any more; never after an escape. */
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

/** The books of a thread. */
class RetiredAddresses {
  #waiting = { ranges: 0, bytes: 0 };
  #escaped = { ranges: 0, bytes: 0 };
  readonly #starts = new Set<number>();
  readonly #ends = new Set<number>();
  /** How many of them go on where another one ends. */
  #joined = 0;
  /** What nothing reaches any more. What the system refuses to take stays here. */
  #ready: { readonly va: number; readonly length: number; readonly release: () => void }[] = [];
  #scheduled = false;
  #hasteAt = HASTE;
  #hurrying = false;

  facts(): RetiredFacts {
    return { waiting: { ...this.#waiting }, escaped: { ...this.#escaped } };
  }

  /** @throws DmaError EBUSY when so much waits that no more may */
  mustHaveRoom(va: Va, length: number, operation: string): void {
    if (this.#ready.length > 0) this.#release();
    if (this.#fullness(length) <= 1) return;
    this.#hurry();
    const { ranges, bytes } = this.#waiting;
    throw new DmaError({
      code: 'EBUSY',
      operation,
      range: new Range(va, length),
      reason: `the addresses of ${ranges} freed pieces of memory, ${formatSize(bytes)}, wait until their views are collected`,
      hint: 'that takes turns of the event loop: await something, such as a timer, between many rounds, and try again',
    });
  }

  /** Calls `release` for addresses whose memory is gone, when nothing reaches them any more, and until it does not throw. */
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
      // Others are collected in the same turn.
      this.#scheduled = true;
      queueMicrotask(() => {
        this.#scheduled = false;
        this.#release();
      });
    });
    if (this.#fullness(0) >= this.#hasteAt) this.#hurry();
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

  /** Gives back what is ready, in ascending order: an end of a mapping can be taken without splitting it. */
  #release(): void {
    const ready = this.#ready.sort((a, b) => a.va - b.va);
    this.#ready = [];
    for (const each of ready) {
      if (undoAll([each.release]).length > 0) this.#ready.push(each);
      else this.#note(each.va, each.length, -1);
    }
    this.#hasteAt = Math.min(this.#hasteAt, Math.max(HASTE, this.#fullness(0) + HASTE));
  }

  /** Collects garbage when the event loop turns: by itself that may come late, because what waits takes next to no memory. */
  #hurry(): void {
    if (this.#hurrying) return;
    this.#hurrying = true;
    setImmediate(() => {
      this.#hurrying = false;
      collectGarbage();
      // Who keeps views is not asked again and again.
      this.#hasteAt = this.#fullness(0) + HASTE;
    }).unref();
  }
}

/** The books of this thread. */
export const retired = new RetiredAddresses();

/**
 * Gives a mapping back: wholly, or without its addresses as long as something reaches them. Views have been detached.
 *
 * @throws DmaError EBUSY when too much waits, ENOMEM of the system; the mapping is as it was then
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

/** Node gives the function by a flag, in contexts that are made after the flag was set. */
function collectGarbage(): void {
  gc ??= Reflect.get(globalThis, 'gc');
  if (typeof gc !== 'function') {
    setFlagsFromString('--expose-gc');
    gc = runInNewContext('gc');
  }
  if (typeof gc === 'function') Reflect.apply(gc, undefined, []);
}
