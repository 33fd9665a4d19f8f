/**
 * How threads and processes wait for a ring that is empty: an eventfd, which is written only when somebody waits.
 *
 * **No wake-up is lost.** A word has the number of the last who said that it will wait. A waiter *announces* itself (adds 1 to the
 * word), then looks whether there is something, then sleeps. A producer stores the ring's tail, then looks at the word, and *rings* if it
 * is not 0. The producer does not wait until its store is seen, as that takes longer than a burst: if it has not seen an announcement just
 * made, the waiter may not see its store yet. So who has announced itself looks again a millisecond later. To ring is to signal the event, and
 * then to set the word to 0 if it is still what was read: who announced itself before that has the signal, and who did so later has another
 * number there. The event stays signalled, so all sleepers wake. A waiter takes the signal away only between two announcements of its own,
 * and signals again when it stops waiting: the others may have slept through it. A waiter that is killed between taking
 * and announcing could leave others asleep, so each looks by itself every 100 ms.
 */
import type { DmaError } from '../../errors.js';
import { mustGoOn } from '../../long-work.js';
import type { Platform, Watch } from '../../platform/ports.js';
import { clearInterval, clearTimeout, now, setInterval, setTimeout } from '../../timers.js';

/** What waiting needs of the platform. */
export type BellPlatform = Pick<Platform, 'events' | 'readiness'>;

/** How waiting ends besides. */
export interface WaitOptions {
  readonly signal?: AbortSignal;
  readonly timeoutMs?: number;
}

/** How often a waiter looks by itself, in milliseconds. */
const LOOK_MS = 100;

/** When it looks again after it has announced itself: a processor keeps a store to itself for less than a thousandth of that. */
const SETTLE_MS = 1;

/** Looks again soon, once. */
function again(before: NodeJS.Timeout | undefined, look: () => void): NodeJS.Timeout {
  clearTimeout(before);
  return setTimeout(() => look(), SETTLE_MS);
}

/** One thread's end of it. */
export class Bell {
  readonly #platform: BellPlatform;
  readonly #words: Int32Array;
  readonly #at: number;
  /** The event; owned by the maker of this. */
  readonly #fd: number;
  /** Ends the waits that are not over. */
  readonly #waits = new Set<(error: DmaError) => void>();

  /** @param at index of the word, which is 0 at the start @param fd an eventfd */
  constructor(platform: BellPlatform, words: Int32Array, at: number, fd: number) {
    this.#platform = platform;
    this.#words = words;
    this.#at = at;
    this.#fd = fd;
  }

  /** Wakes all that wait. Call it after a store, if the word is not 0. Never throws. */
  ring(): void {
    if (this.#words.length === 0) return;
    const seen = Atomics.load(this.#words, this.#at);
    try {
      this.#platform.events.signal(this.#fd);
    } catch {
      // It is full, and so signalled; whatever else it is: who waits looks by itself, later.
    }
    if (seen !== 0) Atomics.compareExchange(this.#words, this.#at, seen, 0);
  }

  /**
   * Blocks this thread until `isReady`, or the time is over.
   *
   * @returns whether it is ready
   */
  wait(isReady: () => boolean, timeoutMs: number): boolean {
    const end = now() + timeoutMs;
    const event = { fd: this.#fd, readable: true, writable: false };
    this.#announce();
    try {
      for (let ms = SETTLE_MS; ;) {
        if (isReady()) return true;
        const left = end - now();
        if (left <= 0) return false;
        const isRung = this.#platform.readiness.wait([event], Math.min(ms, Math.ceil(left)));
        const isNew = isRung || ms === LOOK_MS;
        if (isRung) this.#take();
        else if (isNew) this.#announce();
        ms = isNew ? SETTLE_MS : LOOK_MS;
      }
    } finally {
      this.ring();
    }
  }

  /**
   * Resolves once `isReady`, or the time is over: then with false.
   *
   * @throws DmaError ECANCELED if the signal is aborted; what `isReady` throws
   */
  readable(isReady: () => boolean, { signal, timeoutMs }: WaitOptions, operation: string): Promise<boolean> {
    return new Promise((resolve, reject) => {
      let watch: Watch | undefined;
      let deadline: NodeJS.Timeout | undefined;
      let settle: NodeJS.Timeout | undefined;
      const over = (): void => {
        this.#waits.delete(fail);
        watch?.close();
        clearInterval(look);
        clearTimeout(deadline);
        clearTimeout(settle);
        signal?.removeEventListener('abort', aborted);
        this.ring();
      };
      const fail = (error: Error): void => {
        over();
        reject(error);
      };
      /** @param announce announces this waiter */
      const check = (announce?: () => void): void => {
        try {
          announce?.();
          mustGoOn(signal, operation);
          if (!isReady()) {
            if (announce !== undefined) settle = again(settle, check);
            return;
          }
        } catch (error) {
          fail(error as Error);
          return;
        }
        over();
        resolve(true);
      };
      const aborted = (): void => check();
      const look = setInterval(() => check(() => this.#announce()), LOOK_MS);
      this.#waits.add(fail);
      signal?.addEventListener('abort', aborted);
      if (timeoutMs !== undefined)
        deadline = setTimeout(() => {
          over();
          resolve(false);
        }, timeoutMs);
      check(() => {
        watch = this.#platform.readiness.watch(this.#fd, { readable: true }, () => check(() => this.#take()));
        this.#announce();
      });
    });
  }

  /** Ends all waits of {@link readable} with this error, before the event is closed. */
  close(error: DmaError): void {
    for (const fail of this.#waits) fail(error);
  }

  #announce(): void {
    // The memory went away: who looks next is told.
    if (this.#words.length === 0) return;
    // 0 is nobody.
    if (Atomics.add(this.#words, this.#at, 1) === -1) Atomics.add(this.#words, this.#at, 1);
  }

  /** Takes the signal away. Whoever comes between is seen by one of the announcements. */
  #take(): void {
    this.#announce();
    this.#platform.events.take(this.#fd);
    this.#announce();
  }
}
