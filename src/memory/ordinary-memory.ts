/**
 * Checks whether ordinary memory is available. When hugepages run out, the kernel refuses; when ordinary memory runs
 * out, it kills a process. So this is checked before pages are taken, and again after each part of a large amount, so
 * that several processes that grow at the same time see each other.
 */
import { DmaError, isDmaError } from '../errors.js';
import { inLanes, Pace, Turns, type RunningWork } from '../long-work.js';
import type { MemoryPort, Platform } from '../platform/ports.js';
import { formatSize, MiB, type Va } from '../units.js';
import { now } from '../timers.js';

/** The most that is taken between two checks, in bytes. */
const MOST = 256 * MiB;
/** At most this part of what is left is taken between two checks. */
const PART = 1 / 16;
/** How long a check stays valid, in milliseconds. */
const FRESH = 50;
/** The same for amounts of at most LITTLE bytes: a check takes a millisecond, a page some microseconds. */
const FRESH_FOR_LITTLE = 250;
const LITTLE = MiB;

/**
 * Faults in pages on other threads, several pieces at once.
 * @throws DmaError ECANCELED; ENOMEM: some pages may be present then
 */
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
      // This kernel can fault in pages only on this thread.
      if (!isDmaError(error, 'ENOTSUP')) throw error;
      await new Turns().next();
      memory.populate(at, bytes, access);
    }
  };
  const done = (bytes: number): void => report(bytes, length);
  await inLanes({ length, lanes: memory.lanes, pace, signal, operation, piece, done });
}

/** The memory that is available for ordinary pages. */
export class OrdinaryMemory {
  readonly #platform: Platform;
  /** Bytes that may be taken before the next check, by node; -1 for any. */
  readonly #credits = new Map<number, { bytes: number; readonly asked: number }>();

  constructor(platform: Platform) {
    this.#platform = platform;
  }

  /**
   * Checks that memory is available. Takes nothing.
   *
   * @param bytes how much is needed
   * @param node the NUMA node that it must come from; -1 for any
   * @throws DmaError ENOMEM, with figures, if the kernel would have to kill a process
   */
  check(bytes: number, node: number, operation: string): void {
    this.#ask(bytes, node, operation);
  }

  /**
   * Splits `bytes` into parts. The caller takes each part before it asks for the next. Parts get smaller as less is
   * left.
   *
   * @throws DmaError ENOMEM as {@link OrdinaryMemory.check}, if the rest is not available
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
   * Faults in ordinary pages that were just mapped, part by part.
   *
   * @throws DmaError ENOMEM; some pages may be present then
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

  /**
   * How many bytes may be taken before the next check: whole pages, at least one. Throws if `bytes` are not available.
   */
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
        reason: `${formatSize(bytes)} of memory are needed, and ${formatSize(room.bytes)} are available`,
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
