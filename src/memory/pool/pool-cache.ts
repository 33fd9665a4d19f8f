/**
 * One thread's cache of free elements, so that most bursts touch nothing that threads share (DPDK:
 * `rte_mempool_cache`).
 */
import { ended } from '../../check.js';
import { invalid, isDmaError, unlessFails, type DmaError } from '../../errors.js';
import { show } from '../../show.js';
import { checkBurst, copyNumbers, copyReversed, MANY, PartCopies, type ElementStack } from './element-stack.js';
import { STAYS } from '../../stays.js';

/** The largest cache (DPDK: `RTE_MEMPOOL_CACHE_MAX_SIZE`). */
const MOST = 512;

/**
 * A cache in front of an `ElementStack`. It belongs to the thread that made it, and holds up to 1.5 times its size. A
 * get that finds too few elements fills it to its size; a put that exceeds the limit drains it to its size. So
 * alternating gets and puts do neither. Elements in it are free, but not for other threads: {@link flush} it when its
 * thread is done.
 */
export class PoolCache {
  /** @internal */
  readonly stays = STAYS;
  /** Elements in it after it was filled or drained. */
  readonly size: number;
  readonly #stack: ElementStack;
  #threshold: number;
  /**
   * The numbers in the cache, from index 0; the next one to go is the last. Only for {@link getInPlace} and {@link
   * putInPlace}: read and write only the places that they allow, and do not pass it to another thread.
   */
  readonly numbers: Int32Array;
  readonly #parts: PartCopies;
  #length = 0;
  // What was handed out is still in the places behind the length, up to this one. See #isBack.
  #out = 0;
  /** What `ElementStack.claimed` was when the first of them was handed out. */
  #claimed = 0;
  /** {@link numbers}, two in each double. */
  readonly #pairs: Float64Array;
  /** The array that was put last, and the same of it. */
  #from: Int32Array | Uint32Array | undefined;
  #fromPairs: Float64Array = new Float64Array(0);

  /**
   * @internal @param size elements, 1 to 512; 1.5 times that is at most the number of elements of the pool
   * @throws DmaError EINVAL for another size
   */
  constructor(stack: ElementStack, size: number, operation = 'pool.cache') {
    const threshold = Math.floor(size * 1.5);
    if (!Number.isInteger(size) || size < 1 || size > MOST || threshold > stack.elements) {
      // The largest integer of which 1.5 times, rounded down, is at most the number of elements.
      const most = Math.min(MOST, Math.floor((stack.elements * 2 + 1) / 3));
      throw invalid(operation, `a cache of ${show(size)} elements is not possible for a pool of ${stack.elements}`, {
        hint:
          most === 1
            ? '0, for none, or 1'
            : `0, for none, or 1 to ${most}: 1.5 times that is at most what the pool has`,
      });
    }
    this.size = size;
    this.#stack = stack;
    this.#threshold = threshold;
    // A get that is no larger than the cache takes the missing elements and, in addition, the size.
    this.numbers = new Int32Array(size * 2);
    this.#parts = new PartCopies(this.numbers);
    this.#pairs = new Float64Array(this.numbers.buffer);
  }

  /** Number of elements in it. */
  get length(): number {
    return this.#length;
  }

  /**
   * As `ElementStack.get`: all or none. Elements in this cache are available; those in other caches are not.
   *
   * @throws DmaError as `ElementStack.get`
   */
  get(into: Int32Array | Uint32Array, count: number, at = 0): boolean {
    checkBurst(into, count, at);
    const length = this.#length;
    if (count > length) return this.#getMore(into, count, at);
    if (length > this.#out) this.#out = length;
    // What is handed out one by one needs no loop.
    if (count === 1) into[at] = this.numbers[length - 1];
    else if (count < MANY) copyReversed(into, at, this.numbers, length, count);
    else this.#parts.copy(into, at, length - count, count);
    this.#length = length - count;
    if (this.#stack.checked) this.#stack.markTaken(into, count, at);
    return true;
  }

  /** As {@link get}, of more than there are. It is apart, so that the compiler can put the rest into loops. */
  #getMore(into: Int32Array | Uint32Array, count: number, at: number): boolean {
    if (count <= this.size) return this.#fill(count) && this.get(into, count, at);
    this.#mustBeLive('pool.get');
    const cached = this.#length;
    if (!this.#stack.take(into, count - cached, at + cached)) return false;
    copyReversed(into, at, this.numbers, cached, cached);
    this.#length = 0;
    if (this.#stack.checked) this.#stack.markTaken(into, count, at);
    return true;
  }

  /**
   * As `ElementStack.put`. @throws DmaError as `ElementStack.put`; unless checked, an error may be noticed only later
   */
  put(from: Int32Array | Uint32Array, count: number, at = 0): void {
    checkBurst(from, count, at);
    if (!this.#stack.isPlain && this.#isDone(from, count, at)) return;
    const length = this.#length;
    if (length + count > this.#threshold || count > this.size) {
      this.#putMore(from, count, at);
      return;
    }
    if (count === 1) this.numbers[length] = from[at];
    else copyNumbers(this.numbers, length, from, at, count);
    this.#length = length + count;
  }

  /** As {@link put}, of more than there is room for. */
  #putMore(from: Int32Array | Uint32Array, count: number, at: number): void {
    this.#mustBeLive('pool.put');
    if (count > this.size) {
      this.#stack.give(from, count, at);
      return;
    }
    this.#drain(count);
    copyNumbers(this.numbers, this.#length, from, at, count);
    this.#length += count;
  }

  /** Checked and shared pools: checks and notes what is put. @returns whether it is back in its places already */
  #isDone(from: Int32Array | Uint32Array, count: number, at: number): boolean {
    this.#mustBeLive('pool.put');
    const stack = this.#stack;
    if (stack.checked) stack.markFree(from, count, at);
    if (!stack.isShared) return false;
    if (this.#isBack(from, count, at)) {
      this.#length += count;
      return true;
    }
    stack.mustClaim(from, count, at);
    return false;
  }

  /**
   * In a shared pool: are these the last elements that were handed out, in the same order? They are in their places already, and each is
   * still this thread's, unless another one has taken some over meanwhile. So nothing is written, and no owner is looked up: most
   * programs put back what they have just got.
   */
  #isBack(from: Int32Array | Uint32Array, count: number, at: number): boolean {
    const { claimed } = this.#stack;
    if (claimed !== this.#claimed) {
      this.#claimed = claimed;
      this.#out = 0;
    }
    const length = this.#length;
    const end = length + count;
    if (end > this.#out || end > this.#threshold) return false;
    if (count === 1) return this.numbers[length] === from[at];
    return ((length | at | count) & 1) === 0 && this.#arePairs(from, at, length, end);
  }

  /**
   * Are the numbers from place `start` to `end` those from `from[at]` on? Two at a time, as one double: that takes half the time. Two
   * numbers of elements are below 2^28 and not both 0, so they are a positive double, which is equal only to itself.
   */
  #arePairs(from: Int32Array | Uint32Array, at: number, start: number, end: number): boolean {
    if (from !== this.#from) this.#usePairsOf(from);
    const pairs = this.#pairs;
    const theirs = this.#fromPairs;
    for (let i = start >> 1, j = at >> 1; i < end >> 1; i++, j++) {
      const pair = pairs[i];
      if (pair !== theirs[j] || pair <= 0) return false;
    }
    return true;
  }

  /** Programs use the same array again and again. */
  #usePairsOf(from: Int32Array | Uint32Array): void {
    const { buffer, byteOffset, length } = from;
    this.#from = from;
    this.#fromPairs =
      byteOffset % Float64Array.BYTES_PER_ELEMENT === 0
        ? new Float64Array(buffer, byteOffset, length >> 1)
        : new Float64Array(0);
  }

  /**
   * As {@link get}, without a copy (DPDK: `rte_mempool_cache_zc_get_bulk`). The numbers of the elements are in {@link
   * numbers}, from the returned index, until the next call on this cache.
   *
   * @param count 0 to {@link size}
   * @returns the index of the first one; -1 if fewer are available
   * @throws DmaError EINVAL for an impossible `count`; ETIMEDOUT as {@link get}
   */
  getInPlace(count: number): number {
    this.#checkInPlace(count);
    if (count > this.#length && !this.#fill(count)) return -1;
    const start = this.#length - count;
    if (this.#stack.checked) this.#stack.markTaken(this.numbers, count, start);
    if (this.#length > this.#out) this.#out = this.#length;
    this.#length = start;
    return start;
  }

  /**
   * Makes room for {@link putInPlace}. Puts nothing: nothing is lost if `putInPlace` does not follow.
   *
   * @param count 0 to {@link size}
   * @returns the index in {@link numbers} from which the caller may write `count` numbers, until the next call on this
   *   cache
   * @throws DmaError EINVAL for an impossible `count`, and as {@link put}
   */
  roomFor(count: number): number {
    this.#checkInPlace(count);
    this.#mustBeLive('pool.put');
    if (this.#length + count > this.#threshold) this.#drain(count);
    // The caller writes there.
    this.#out = 0;
    return this.#length;
  }

  /**
   * As {@link put}, without a copy (DPDK: `rte_mempool_cache_zc_put_bulk`), for elements whose numbers were written
   * where {@link roomFor} said. `count` may be less than what `roomFor` was given.
   *
   * @param start what {@link roomFor} returned
   * @throws DmaError EINVAL if there is no such room (any more), and as {@link put}; then none is put
   */
  putInPlace(start: number, count: number): void {
    this.#checkInPlace(count);
    if (start !== this.#length || start + count > this.#threshold) {
      this.#mustBeLive('pool.put');
      throw invalid('pool.put', `there is no room for ${count} elements from place ${start} on`, {
        hint: 'ask roomFor just before',
      });
    }
    if (this.#stack.checked) this.#stack.markFree(this.numbers, count, start);
    if (this.#stack.isShared) this.#stack.mustClaim(this.numbers, count, start);
    this.#length = start + count;
  }

  /**
   * Returns all of it to the pool.
   *
   * @throws DmaError EINVAL, naming one, if the pool does not take some back that were put twice: all others are back then
   */
  flush(): void {
    const wrong = this.#give(this.#length);
    if (wrong === undefined) return;
    // What is left can be returned.
    this.#give(this.#length);
    throw wrong;
  }

  /** @internal Returns all of it; the pool ends in this thread. */
  end(): void {
    // The pool has what was put twice.
    unlessFails(['EINVAL'], () => this.flush());
    // So that each use asks whether there is still a pool.
    this.#threshold = -1;
  }

  #mustBeLive(operation: string): void {
    if (this.#threshold < 0) throw ended(operation, 'the pool of this cache was freed', 'pool.live');
  }

  /** {@link flush} */
  [Symbol.dispose](): void {
    this.flush();
  }

  /**
   * Fills the cache so that it has `count`, at most the size, and in addition the size or, if the pool has fewer,
   * nothing.
   */
  #fill(count: number): boolean {
    this.#mustBeLive('pool.get');
    const length = this.#length;
    // What the stack gives overwrites them.
    this.#out = 0;
    const missing = count - length;
    let more = missing + this.size;
    if (!this.#stack.take(this.numbers, more, length)) {
      more = missing;
      if (!this.#stack.take(this.numbers, more, length)) return false;
    }
    this.#length = length + more;
    return true;
  }

  /**
   * Returns elements to the pool so that the size is left once `count` are put; those that were used longest ago go.
   */
  #drain(count: number): void {
    const wrong = this.#give(this.#length + count - this.size);
    if (wrong !== undefined) throw wrong;
  }

  /**
   * Returns the first `count` numbers of the cache. If the pool does not take one back, the cache drops all such numbers, so that the next
   * call succeeds, and returns none.
   *
   * @returns the pool's EINVAL
   */
  #give(count: number): DmaError | undefined {
    this.#out = 0;
    try {
      this.#stack.give(this.numbers, count, 0);
    } catch (error) {
      if (!isDmaError(error, 'EINVAL') || !this.#stack.isShared) throw error;
      const mine = new Set(this.numbers.subarray(0, this.#length).filter((number) => this.#stack.isMine(number)));
      this.numbers.set([...mine]);
      this.#length = mine.size;
      return error;
    }
    this.numbers.copyWithin(0, count, this.#length);
    this.#length -= count;
    return undefined;
  }

  #checkInPlace(count: number): void {
    if ((count | 0) === count && count >= 0 && count <= this.size) return;
    throw invalid('pool', `${count} elements are too many for a cache of ${this.size}`, {
      hint: 'ask for as many as the cache has, or fewer; pool.get and pool.put take any number',
    });
  }
}
