/** Work in progress on memory, such as commands of a device: memory is not freed or unmapped under it. */
import { DmaError } from '../errors.js';
import { Range } from '../ranges.js';
import type { Va } from '../units.js';

/**
 * Something that works on memory without holding it by a pin for each piece of work, because there are too many of them a
 * second. It is asked when memory is about to be freed or unmapped, so that the work itself costs nothing.
 */
export interface MemoryUser {
  /** The name of the device that does the work. */
  readonly device: string;
  /**
   * What works on a byte of [start, end) now, as a noun phrase for an error: `a read of 8 blocks at LBA 64`; `undefined` if
   * nothing does. Addresses are VAs.
   */
  uses(start: number, end: number): string | undefined;
}

/** The users of all memory of one `Eal`, or of one domain. */
export class MemoryUsers {
  readonly #users = new Set<MemoryUser>();

  /** @returns ends it; idempotent */
  add(user: MemoryUser): () => void {
    this.#users.add(user);
    return () => void this.#users.delete(user);
  }

  /**
   * Checks that nothing works on `length` bytes at `va`.
   *
   * @param counts is it about this device? Default: about each
   * @throws DmaError EBUSY, naming the work and its device
   */
  mustBeIdle(operation: string, va: Va, length: number, counts?: (device: string) => boolean): void {
    // Nearly always there is none.
    if (this.#users.size === 0) return;
    for (const user of this.#users) {
      if (counts?.(user.device) === false) continue;
      const work = user.uses(va, va + length);
      if (work === undefined) continue;
      throw new DmaError({
        code: 'EBUSY',
        operation,
        range: new Range(va, length),
        device: user.device,
        reason: `${work} uses this memory`,
        hint: 'wait until it has ended; aborting its signal, or resetting the device, ends it early',
      });
    }
  }
}
