/**
 * Which elements of a pool are free: a stack of their numbers, 0 to n - 1, in memory that all worker threads share.
 *
 * A lock guards it. It is held while at most a few hundred numbers are copied; DPDK's ring would reserve, copy and wait
 * for slower threads to commit. A stack hands out what was used last, which is still in the processor's cache. (A stack
 * without a lock needs a 64-bit compare-and-swap against ABA. JavaScript has that only for BigInts, which are garbage.)
 * Threads seldom meet here, because each has a `PoolCache`.
 */
import { isA } from '../../check.js';
import { DmaError, invalid } from '../../errors.js';
import { typedArrayName } from '../../realms.js';
import { show } from '../../show.js';
import { now } from '../../timers.js';

// The header, in 32-bit words; words that change have cache lines of their own.
const MAGIC_AT = 0;
const ELEMENTS_AT = 1;
const CHECKED_AT = 2;
const LOCK_AT = 16;
const COUNT_AT = 17;
const HEADER_WORDS = 32;

const MAGIC = 0x454c4d53;

/** The lock is free, held, or held with a sleeping waiter (Drepper, "Futexes are tricky", 2011). */
const UNLOCKED = 0;
const LOCKED = 1;
const CONTENDED = 2;
/** How often a held lock is tried before the thread sleeps: longer than a running thread holds it. */
const SPINS = 200;
/** The longest sleep, in milliseconds: a thread that holds the lock longer was terminated. */
const PATIENCE_MS = 10_000;

/** Numbers of elements. Both kinds of array work; a caller that always uses the same kind is faster. */
export type ElementNumbers = Int32Array | Uint32Array;

/** Options of {@link ElementStack.create}. */
export interface ElementStackOptions {
  /**
   * For debugging: a bit per element tells whether it is free, so that an element that is put twice or does not exist
   * is refused at once. Default false: then only a total above the size of the pool is noticed.
   */
  readonly checked?: boolean;
}

/**
 * The free elements of a pool; each thread has an object of its own over the same shared memory. {@link get} and {@link
 * put} make no garbage. A thread that finds the lock held spins, then sleeps (Node allows that on the main thread too).
 *
 * If `worker.terminate()` ends a worker while it holds the lock, the lock stays held: other threads get ETIMEDOUT, and
 * the pool must be created again. Elements that the worker had taken are lost in any case.
 */
export class ElementStack {
  /** What other threads need for {@link attach}. */
  readonly shared: SharedArrayBuffer;
  /** Number of elements of the pool. */
  readonly elements: number;
  /** {@link ElementStackOptions.checked} */
  readonly checked: boolean;
  readonly #header: Int32Array;
  /** The numbers of the free elements; the last one is taken first. */
  readonly #stack: Int32Array;
  /** A bit for each element that no user has; empty unless checked. */
  readonly #isFree: Int32Array;

  private constructor(shared: SharedArrayBuffer) {
    this.shared = shared;
    this.#header = new Int32Array(shared, 0, HEADER_WORDS);
    this.elements = this.#header[ELEMENTS_AT];
    this.checked = this.#header[CHECKED_AT] === 1;
    this.#stack = new Int32Array(shared, HEADER_WORDS * 4, this.elements);
    this.#isFree = new Int32Array(shared, (HEADER_WORDS + this.elements) * 4, bitWords(this.elements, this.checked));
  }

  /**
   * A new pool with all elements free; element 0 is taken first.
   *
   * @param elements number of elements, 1 to 2^28
   * @throws DmaError EINVAL for another number
   */
  static create(elements: number, { checked = false }: ElementStackOptions = {}, operation = 'pool'): ElementStack {
    if (!Number.isInteger(elements) || elements < 1 || elements > 2 ** 28) {
      throw invalid(operation, `${show(elements)} elements are not possible`, {
        hint: 'a pool has 1 to 2^28 elements, all of them from the start: the option "elements" says how many',
      });
    }
    const shared = new SharedArrayBuffer((HEADER_WORDS + elements + bitWords(elements, checked)) * 4);
    const header = new Int32Array(shared, 0, HEADER_WORDS);
    header[MAGIC_AT] = MAGIC;
    header[ELEMENTS_AT] = elements;
    header[CHECKED_AT] = checked ? 1 : 0;
    header[COUNT_AT] = elements;
    const stack = new ElementStack(shared);
    for (let i = 0; i < elements; i++) stack.#stack[i] = elements - 1 - i;
    stack.#isFree.fill(-1);
    return stack;
  }

  /** Opens the pool in `shared`, which another thread made. @throws DmaError EINVAL if it holds no pool */
  static attach(shared: SharedArrayBuffer): ElementStack {
    const header = shared.byteLength < HEADER_WORDS * 4 ? undefined : new Int32Array(shared, 0, HEADER_WORDS);
    const elements = header?.[ELEMENTS_AT] ?? 0;
    const words = HEADER_WORDS + elements + bitWords(elements, header?.[CHECKED_AT] === 1);
    if (header?.[MAGIC_AT] !== MAGIC || shared.byteLength !== words * 4) {
      throw invalid('pool', 'the shared memory holds no pool', {
        hint: 'pool.share() gives what another thread attaches to',
      });
    }
    return new ElementStack(shared);
  }

  /** How many elements are free now, without those in caches. */
  get available(): number {
    return Atomics.load(this.#header, COUNT_AT);
  }

  /**
   * Takes `count` elements, all or none (DPDK: `rte_mempool_get_bulk`), and writes their numbers to `into` from index
   * `at`.
   *
   * @returns false if fewer are available
   * @throws DmaError EINVAL if `into` is too short; ETIMEDOUT if a terminated thread holds the lock
   */
  get(into: ElementNumbers, count: number, at = 0): boolean {
    if (!this.take(into, count, at)) return false;
    if (this.checked) this.markTaken(into, count, at);
    return true;
  }

  /**
   * Returns `count` elements, whose numbers are in `from` from index `at`.
   *
   * @throws DmaError EINVAL if `from` is too short, if there would be more elements than the pool has, or (checked) if
   *   one of them is free already or does not exist; then none is put. ETIMEDOUT if a terminated thread holds the lock.
   */
  put(from: ElementNumbers, count: number, at = 0): void {
    if (this.checked) this.markFree(from, count, at);
    this.give(from, count, at);
  }

  /** As {@link get}, for elements that stay free, in a cache. @internal */
  take(into: ElementNumbers, count: number, at: number): boolean {
    checkBurst(into, count, at);
    const header = this.#header;
    const stack = this.#stack;
    this.#lock();
    try {
      const left = header[COUNT_AT] - count;
      if (left < 0) return false;
      copyReversed(into, at, stack, left + count, count);
      header[COUNT_AT] = left;
      return true;
    } finally {
      this.#unlock();
    }
  }

  /** As {@link put}, for elements that were free, in a cache. @internal */
  give(from: ElementNumbers, count: number, at: number): void {
    checkBurst(from, count, at);
    const header = this.#header;
    const stack = this.#stack;
    this.#lock();
    try {
      const before = header[COUNT_AT];
      if (before + count <= stack.length) {
        copyNumbers(stack, before, from, at, count);
        header[COUNT_AT] = before + count;
        return;
      }
    } finally {
      this.#unlock();
    }
    throw invalid('pool.put', `the pool would have more than its ${stack.length} elements`, {
      hint: 'an element was put twice; create the pool with { checked: true } to find out which',
    });
  }

  /** Checked pools: notes that a user has these elements. @internal */
  markTaken(numbers: ElementNumbers, count: number, at: number): void {
    for (let i = at; i < at + count; i++) Atomics.and(this.#isFree, numbers[i] >>> 5, ~(1 << (numbers[i] & 31)));
  }

  /**
   * Checked pools: notes that no user has these elements any more. @throws DmaError EINVAL, and notes none @internal
   */
  markFree(numbers: ElementNumbers, count: number, at: number): void {
    checkBurst(numbers, count, at);
    for (let i = at; i < at + count; i++) {
      const number = numbers[i];
      const exists = number >= 0 && number < this.elements;
      const bit = 1 << (number & 31);
      if (exists && (Atomics.or(this.#isFree, number >>> 5, bit) & bit) === 0) continue;
      this.markTaken(numbers, i - at, at);
      throw invalid('pool.put', exists ? `element ${number} is free already` : `there is no element ${number}`, {
        hint: exists
          ? 'it was put twice: after put, an element no longer belongs to the caller'
          : `elements have the numbers 0 to ${this.elements - 1}, which get() gives`,
      });
    }
  }

  #lock(): void {
    const header = this.#header;
    if (Atomics.compareExchange(header, LOCK_AT, UNLOCKED, LOCKED) === UNLOCKED) return;
    for (let spin = 0; spin < SPINS; spin++) {
      // Waiters only read: a failed attempt to write would take the cache line from the holder.
      if (Atomics.load(header, LOCK_AT) !== UNLOCKED) continue;
      if (Atomics.compareExchange(header, LOCK_AT, UNLOCKED, LOCKED) === UNLOCKED) return;
    }
    this.#lockAsleep();
  }

  #lockAsleep(): void {
    const header = this.#header;
    const deadline = now() + PATIENCE_MS;
    // A thread that slept does not know whether others sleep, so it leaves the lock contended: at worst one needless
    // wake-up.
    while (Atomics.exchange(header, LOCK_AT, CONTENDED) !== UNLOCKED) {
      const left = deadline - now();
      if (left > 0) Atomics.wait(header, LOCK_AT, CONTENDED, left);
      else {
        throw new DmaError({
          code: 'ETIMEDOUT',
          operation: 'pool',
          reason: `the lock of the pool was held for ${PATIENCE_MS} ms`,
          hint: 'a worker that used the pool was terminated, or its thread is stopped; make the pool anew',
        });
      }
    }
  }

  #unlock(): void {
    if (Atomics.exchange(this.#header, LOCK_AT, UNLOCKED) === CONTENDED) Atomics.notify(this.#header, LOCK_AT, 1);
  }
}

function bitWords(elements: number, checked: boolean): number {
  return checked ? Math.ceil(elements / 32) : 0;
}

function isNumbers(numbers: unknown): boolean {
  // Those of this realm need no call.
  if (isA(numbers, Int32Array) || isA(numbers, Uint32Array)) return true;
  const name = typedArrayName(numbers);
  return name === 'Int32Array' || name === 'Uint32Array';
}

/** A typed array ignores writes past its end, so elements would get lost. @throws DmaError EINVAL @internal */
export function checkBurst(numbers: ElementNumbers, count: number, at: number): void {
  // Other kinds of array would change the numbers, or throw.
  if (!isNumbers(numbers)) {
    const hint = 'new Int32Array(32) takes bursts of 32, and can be used again and again';
    throw invalid('pool', 'numbers of elements are kept in an Int32Array or Uint32Array', { hint });
  }
  // `|` tells the compiler that they are small integers.
  if (
    typeof count === 'number' &&
    typeof at === 'number' &&
    (count | 0) === count &&
    (at | 0) === at &&
    count >= 0 &&
    at >= 0 &&
    at + count <= numbers.length
  )
    return;
  const hint = `the array has places 0 to ${numbers.length - 1}: the second argument is how many, the third the first place`;
  throw invalid('pool', `${show(count)} elements from place ${show(at)} on do not fit an array of ${numbers.length}`, {
    hint,
  });
}

/**
 * Copies `count` numbers from `from[start]` to `to[at]`.
 *
 * Eight at a time: once any ArrayBuffer of the process was detached (as when memory is freed), V8 checks each access
 * for a detached buffer, but only once for accesses that stand together. `set` would need a view of the part to copy,
 * which is garbage. @internal
 */
export function copyNumbers(to: ElementNumbers, at: number, from: ElementNumbers, start: number, count: number): void {
  const end = at + count;
  let i = at;
  let j = start;
  for (; i + 8 <= end; i += 8, j += 8) {
    to[i] = from[j];
    to[i + 1] = from[j + 1];
    to[i + 2] = from[j + 2];
    to[i + 3] = from[j + 3];
    to[i + 4] = from[j + 4];
    to[i + 5] = from[j + 5];
    to[i + 6] = from[j + 6];
    to[i + 7] = from[j + 7];
  }
  for (; i < end; i++, j++) to[i] = from[j];
}

/** As {@link copyNumbers}, in reverse order; `end` is the index after the first one that is copied. @internal */
export function copyReversed(to: ElementNumbers, at: number, from: ElementNumbers, end: number, count: number): void {
  const last = at + count;
  let i = at;
  let j = end - 1;
  for (; i + 8 <= last; i += 8, j -= 8) {
    to[i] = from[j];
    to[i + 1] = from[j - 1];
    to[i + 2] = from[j - 2];
    to[i + 3] = from[j - 3];
    to[i + 4] = from[j - 4];
    to[i + 5] = from[j - 5];
    to[i + 6] = from[j - 6];
    to[i + 7] = from[j - 7];
  }
  for (; i < last; i++, j--) to[i] = from[j];
}
