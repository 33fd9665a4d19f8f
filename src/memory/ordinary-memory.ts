/**
 * Is there enough ordinary memory? Where hugepages run out the kernel refuses; where ordinary memory runs out it ends a process. So
 * before such pages are taken it is asked whether they are there, and again after each part of many, so that several
 * processes that grow at the same time see each other.
 */
import { DmaError, isDmaError } from '../errors.js';
import { inLanes, Pace, Turns, type RunningWork } from '../long-work.js';
import type { MemoryPort, Platform } from '../platform/ports.js';
import { formatSize, MiB, type Va } from '../units.js';
import { now } from '../timers.js';

/** Most that is taken without asking again, in bytes. */
const MOST = 256 * MiB;
/** At most this part of what is left is taken without asking again. */
const PART = 1 / 16;
/** What was found out holds for so many milliseconds, ... */
const FRESH = 50;
/** ... and for so many where little is wanted, in bytes: asking takes a millisecond, a page some microseconds. */
const FRESH_FOR_LITTLE = 250;
const LITTLE = MiB;

/** Faults pages in on other threads, several pieces at once. @throws DmaError ECANCELED; ENOMEM; some pages may be there then */
export async function populateInLanes(
  memory: MemoryPort,
  what: { va: Va; length: number; pageSize: number; access?: 'read' | 'write'; operation: string; pace?: Pace },
  { signal, report }: RunningWork,
): Promise<void> {
  const { va, length, pageSize, access = 'write', operation, pace = new Pace(pageSize) } = what;
  const piece = async (offset: number, bytes: number): Promise<void> => {
    const at = (va + offset) as Va;
    try {
      await memory.populateAsync(at, bytes, access);
    } catch (error) {
      // Kernels that can do it on this thread only.
      if (!isDmaError(error, 'ENOTSUP')) throw error;
      await new Turns().next();
      memory.populate(at, bytes, access);
    }
  };
  const done = (bytes: number): void => report(bytes, length);
  await inLanes({ length, lanes: memory.lanes, pace, signal, operation, piece, done });
}

/** Asks whether ordinary memory is there. See the head of the file. */
export class OrdinaryMemory {
  readonly #platform: Platform;
  /** What may be taken without asking again, in bytes, by node; -1 for any. */
  readonly #credits = new Map<number, { bytes: number; readonly asked: number }>();

  constructor(platform: Platform) {
    this.#platform = platform;
  }

  /**
   * Nothing is taken: it is only asked.
   *
   * @param bytes how much more memory is wanted
   * @param node NUMA node it has to come from; -1 for any
   * @throws DmaError ENOMEM, with figures, when the kernel would have to end a process for it
   */
  check(bytes: number, node: number, operation: string): void {
    this.#ask(bytes, node, operation);
  }

  /**
   * The parts to take `bytes` in, each to be taken before the next is asked for: they get small as the room does.
   *
   * @throws DmaError ENOMEM as {@link OrdinaryMemory.check}, when the rest is not there (any more)
   */
  *parts(bytes: number, node: number, operation: string): Generator<number, void, undefined> {
    for (let left = bytes; left > 0;) {
      const credit = this.#ask(left, node, operation);
      const part = Math.min(left, credit);
      this.#spend(part, node);
      yield part;
      left -= part;
    }
  }

  /**
   * Faults in ordinary pages that have just been mapped, part by part.
   *
   * @throws DmaError ENOMEM; some pages may be there then
   */
  populate(va: Va, bytes: number, node: number, operation: string, access: 'read' | 'write' = 'write'): void {
    let done = 0;
    for (const part of this.parts(bytes, node, operation)) {
      this.#platform.memory.populate((va + done) as Va, part, access);
      done += part;
    }
  }

  /** As {@link OrdinaryMemory.populate}, on other threads, several pieces of a part at once. */
  async populateAsync(
    va: Va,
    bytes: number,
    node: number,
    operation: string,
    work: RunningWork,
    access: 'read' | 'write' = 'write',
  ): Promise<void> {
    const { memory } = this.#platform;
    const pace = new Pace(memory.pageSize);
    let done = 0;
    for (const part of this.parts(bytes, node, operation)) {
      const before = done;
      const report = (some: number): void => work.report(before + some, bytes);
      const what = { va: (va + done) as Va, length: part, pageSize: memory.pageSize, access, operation, pace };
      await populateInLanes(memory, what, { ...work, report });
      done += part;
    }
  }

  /** How much may be taken before it has to be asked again: whole pages, one at least. Throws when `bytes` are not there. */
  #ask(bytes: number, node: number, operation: string): number {
    const { memory, limits } = this.#platform;
    const credit = this.#credits.get(node);
    const fresh = bytes <= LITTLE ? FRESH_FOR_LITTLE : FRESH;
    if (credit !== undefined && credit.bytes >= bytes && now() < credit.asked + fresh) return credit.bytes;
    const room = limits.room(node);
    if (room.bytes < bytes) {
      throw new DmaError({
        code: 'ENOMEM',
        operation,
        reason: `${formatSize(bytes)} of memory are needed, and ${formatSize(room.bytes)} can be had`,
        hint: `${room.limit}; more would make the kernel end a process`,
      });
    }
    const most = Math.min(MOST, room.bytes * PART);
    const pages = Math.max(1, Math.floor(most / memory.pageSize)) * memory.pageSize;
    this.#credits.set(node, { bytes: pages, asked: now() });
    return pages;
  }

  #spend(bytes: number, node: number): void {
    const credit = this.#credits.get(node);
    if (credit !== undefined) credit.bytes -= bytes;
  }
}
