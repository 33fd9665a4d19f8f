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
  /**
   * The same for pools, which ask whenever elements are put back, so that it has to be quick. Work whose programs look after
   * their memory themselves may be left out. Absent: pools do not ask.
   */
  readonly elements?: ElementUser;
}

/** What pools ask before they take elements back. */
export interface ElementUser {
  /** Does nothing work on any memory now? */
  isIdle(): boolean;
  /** As {@link MemoryUser.uses}. */
  uses(start: number, end: number): string | undefined;
}

/** A user of elements, and its device. */
interface Asked {
  readonly device: string;
  readonly elements: ElementUser;
}

/** The users of all memory of one `Eal`, or of one domain. */
export class MemoryUsers {
  readonly #users = new Set<MemoryUser>();
  /** Those that pools ask. */
  #asked: readonly Asked[] = [];
  readonly #watchers = new Set<(some: boolean) => void>();

  /** @returns ends it; idempotent */
  add(user: MemoryUser): () => void {
    const { device, elements } = user;
    this.#users.add(user);
    if (elements !== undefined) this.#ask([...this.#asked, { device, elements }]);
    return () => {
      this.#users.delete(user);
      this.#ask(this.#asked.filter((each) => each.elements !== elements));
    };
  }

  /**
   * Calls back now, and whenever it changes: are there any that pools have to ask?
   *
   * @returns ends it
   */
  watch(watcher: (some: boolean) => void): () => void {
    this.#watchers.add(watcher);
    watcher(this.#asked.length > 0);
    return () => void this.#watchers.delete(watcher);
  }

  #ask(users: readonly Asked[]): void {
    this.#asked = users;
    for (const watcher of this.#watchers) watcher(users.length > 0);
  }

  /** Does none of those that pools ask work on anything? */
  get areIdle(): boolean {
    for (let i = 0; i < this.#asked.length; i++) if (!this.#asked[i].elements.isIdle()) return false;
    return true;
  }

  /** What works on an element in [start, end), VAs, and by which device: of those that pools ask. */
  workOn(start: number, end: number): { readonly work: string; readonly device: string } | undefined {
    for (const { device, elements } of this.#asked) {
      const work = elements.uses(start, end);
      if (work !== undefined) return { work, device };
    }
    return undefined;
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
