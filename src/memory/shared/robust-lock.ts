/**
 * A lock between threads and processes that survives the death of its owner: its word has the owner's number, and who waits too long asks
 * the kernel whether the owner lives. So waiting ends within milliseconds, whatever happened to the owner.
 *
 * Waiters sleep for 50 us at a time instead of being woken: `Atomics.wait` between threads needs a SharedArrayBuffer, and there is none
 * between processes. The lock is held for some hundred nanoseconds.
 */
import { DmaError } from '../../errors.js';
import { now } from '../../timers.js';
import { NOBODY, type Holders } from './holders.js';

/** How often a held lock is tried before the thread sleeps: longer than a running thread holds it. */
const SPINS = 200;
/** One sleep, in milliseconds. */
const NAP_MS = 0.05;
/** How long an owner may hold it before it is asked whether it lives, and how long between two such questions. */
const DOUBT_MS = 1;
/** An owner that lives and holds it longer is stopped, or somebody wrote nonsense into the word. */
const PATIENCE_MS = 10_000;

/** Nobody writes it: a thread that waits on it sleeps. */
const bed = new Int32Array(new SharedArrayBuffer(4));

/** A lock in one word of shared memory; 0 is free. Each thread has an object of its own over it. */
export class RobustLock {
  readonly #words: Int32Array;
  readonly #at: number;
  readonly #holders: Holders;
  /** This thread, which is in the table. */
  readonly #me: number;
  readonly #what: string;
  readonly #why: string;

  /**
   * @param at index of the word
   * @param what has the lock, for messages
   * @param why it may be held too long, for messages
   */
  constructor(
    words: Int32Array,
    at: number,
    holders: Holders,
    what: string,
    why = 'it is stopped (a debugger, SIGSTOP), or gets no time to run',
  ) {
    this.#words = words;
    this.#at = at;
    this.#holders = holders;
    this.#me = holders.enter();
    this.#what = what;
    this.#why = why;
  }

  /**
   * Takes the lock.
   *
   * @returns true if it was taken from an owner that has ended: what it guards may be half changed, and must be repaired
   * @throws DmaError ETIMEDOUT, naming the owner, if one that lives held it for 10 s
   */
  lock(operation: string): boolean {
    if (Atomics.compareExchange(this.#words, this.#at, NOBODY, this.#me) === NOBODY) return false;
    for (let spin = 0; spin < SPINS; spin++) {
      // Waiters only read: a failed attempt to write would take the cache line from the owner.
      if (Atomics.load(this.#words, this.#at) !== NOBODY) continue;
      if (Atomics.compareExchange(this.#words, this.#at, NOBODY, this.#me) === NOBODY) return false;
    }
    return this.#lockAsleep(operation);
  }

  /** Frees the lock, unless somebody else has it: then its word was overwritten. */
  unlock(): void {
    Atomics.compareExchange(this.#words, this.#at, this.#me, NOBODY);
  }

  #lockAsleep(operation: string): boolean {
    const begin = now();
    let asked = begin;
    let suspect = NOBODY;
    for (;;) {
      const owner = Atomics.compareExchange(this.#words, this.#at, NOBODY, this.#me);
      if (owner === NOBODY) return false;
      const time = now();
      if (owner !== suspect) {
        // Each owner is given its time.
        suspect = owner;
        asked = time;
      } else if (time - asked >= DOUBT_MS) {
        asked = time;
        // This thread never locks twice: its own number there is what was left behind, or nonsense.
        const isDead = owner === this.#me || !this.#holders.isAlive(owner);
        if (isDead && Atomics.compareExchange(this.#words, this.#at, owner, this.#me) === owner) return true;
      }
      if (time - begin >= PATIENCE_MS) throw this.#heldTooLong(owner, operation);
      Atomics.wait(bed, 0, 0, NAP_MS);
    }
  }

  #heldTooLong(owner: number, operation: string): DmaError {
    const who = this.#holders.describe(owner);
    return new DmaError({
      code: 'ETIMEDOUT',
      operation,
      reason: `the lock of ${this.#what} was held for ${PATIENCE_MS} ms by ${who}`,
      hint: `${this.#why}; when it ends, the lock is free`,
    });
  }
}
