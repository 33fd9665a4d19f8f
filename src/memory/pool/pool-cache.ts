/**
 * One thread's stock of a pool's free elements, so that most bursts touch nothing that threads share (DPDK:
 * `rte_mempool_cache`).
 */
import { invalid } from '../../errors.js';
import { show } from '../../show.js';
import { checkBurst, copyNumbers, copyReversed, type ElementNumbers, type ElementStack } from './element-stack.js';

/** The largest cache (DPDK: `RTE_MEMPOOL_CACHE_MAX_SIZE`). */
const MOST = 512;

/**
 * A cache before an `ElementStack`. It belongs to the thread that made it, and holds up to 1.5 times its size: a get
 * that finds too few fills it up to the size, a put that makes it too full brings it down to the size, so that gets and
 * puts by turns do neither. What is in it is free, but not for other threads: {@link flush} it when its thread is done.
 */
export class PoolCache {
  /** How many elements it keeps when it was filled or emptied. */
  readonly size: number;
  readonly #stack: ElementStack;
  readonly #threshold: number;
  /**
   * The memory of the cache: what is in it from 0 on, the next one to go last. Only for {@link getInPlace} and
   * {@link putInPlace}: read and write nothing but what they say, and give it to no other thread.
   */
  readonly numbers: Int32Array;
  #length = 0;

  /**
   * @internal @param size elements, 1 to 512; 1.5 times that is at most what the pool has
   * @throws DmaError EINVAL for another size
   */
  constructor(stack: ElementStack, size: number, operation = 'pool.cache') {
    const threshold = Math.floor(size * 1.5);
    if (!Number.isInteger(size) || size < 1 || size > MOST || threshold > stack.elements) {
      // The largest whole number of which 1.5 times, rounded down, is not more than the pool has.
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
    // A get that is no larger than the cache takes what it lacks and the size on top.
    this.numbers = new Int32Array(size * 2);
  }

  /** How many elements are in it. */
  get length(): number {
    return this.#length;
  }

  /**
   * As `ElementStack.get`: all or none. What this cache has counts as available, what other caches have does not.
   *
   * @throws DmaError as `ElementStack.get`
   */
  get(into: ElementNumbers, count: number, at = 0): boolean {
    checkBurst(into, count, at);
    let cached = count;
    if (count > this.#length) {
      if (count > this.size) {
        cached = this.#length;
        if (!this.#stack.take(into, count - cached, at + cached)) return false;
      } else if (!this.#fill(count)) return false;
    }
    const length = this.#length;
    copyReversed(into, at, this.numbers, length, cached);
    this.#length = length - cached;
    if (this.#stack.checked) this.#stack.markTaken(into, count, at);
    return true;
  }

  /** As `ElementStack.put`. @throws DmaError as `ElementStack.put`; unless checked, what is wrong shows up later */
  put(from: ElementNumbers, count: number, at = 0): void {
    checkBurst(from, count, at);
    if (this.#stack.checked) this.#stack.markFree(from, count, at);
    if (count > this.size) {
      this.#stack.give(from, count, at);
      return;
    }
    if (this.#length + count > this.#threshold) this.#drain(count);
    const length = this.#length;
    copyNumbers(this.numbers, length, from, at, count);
    this.#length = length + count;
  }

  /**
   * As {@link get}, without a copy (DPDK: `rte_mempool_cache_zc_get_bulk`): the elements are the caller's, and their numbers
   * can be read from the returned place in {@link numbers} and on, until the next call of anything in this cache.
   *
   * @param count 0 to {@link size}
   * @returns the place of the first one; -1 when fewer are available
   * @throws DmaError EINVAL when `count` is not possible, ETIMEDOUT as {@link get}
   */
  getInPlace(count: number): number {
    this.#checkInPlace(count);
    if (count > this.#length && !this.#fill(count)) return -1;
    const start = this.#length - count;
    if (this.#stack.checked) this.#stack.markTaken(this.numbers, count, start);
    this.#length = start;
    return start;
  }

  /**
   * Makes room for {@link putInPlace}. Nothing is put yet: nothing is lost when that does not follow.
   *
   * @param count 0 to {@link size}
   * @returns the place in {@link numbers} from which on the caller may write as many numbers, until the next call of
   *   anything in this cache
   * @throws DmaError EINVAL when `count` is not possible, and as {@link put}
   */
  roomFor(count: number): number {
    this.#checkInPlace(count);
    if (this.#length + count > this.#threshold) this.#drain(count);
    return this.#length;
  }

  /**
   * As {@link put}, without a copy (DPDK: `rte_mempool_cache_zc_put_bulk`), of elements whose numbers were written where
   * {@link roomFor} said; fewer than it was told, when there were fewer.
   *
   * @param start what {@link roomFor} returned
   * @throws DmaError EINVAL when there is no such room (any more), and as {@link put}; then none is put
   */
  putInPlace(start: number, count: number): void {
    this.#checkInPlace(count);
    if (start !== this.#length || start + count > this.#threshold) {
      throw invalid('pool.put', `there is no room for ${count} elements from place ${start} on`, {
        hint: 'ask roomFor just before',
      });
    }
    if (this.#stack.checked) this.#stack.markFree(this.numbers, count, start);
    this.#length = start + count;
  }

  /** Gives all of it back to the pool. */
  flush(): void {
    this.#stack.give(this.numbers, this.#length, 0);
    this.#length = 0;
  }

  /** {@link flush} */
  [Symbol.dispose](): void {
    this.flush();
  }

  /** Takes from the pool so that `count` are here, no more than the size: beyond them the size, or else what is missing. */
  #fill(count: number): boolean {
    const length = this.#length;
    const missing = count - length;
    let more = missing + this.size;
    if (!this.#stack.take(this.numbers, more, length)) {
      more = missing;
      if (!this.#stack.take(this.numbers, more, length)) return false;
    }
    this.#length = length + more;
    return true;
  }

  /** Gives to the pool so that the size is left once `count` are put; those go that were used longest ago. */
  #drain(count: number): void {
    const surplus = this.#length + count - this.size;
    this.#stack.give(this.numbers, surplus, 0);
    this.numbers.copyWithin(0, surplus, this.#length);
    this.#length -= surplus;
  }

  #checkInPlace(count: number): void {
    if ((count | 0) === count && count >= 0 && count <= this.size) return;
    throw invalid('pool', `${count} elements are too many for a cache of ${this.size}`, {
      hint: 'ask for as many as the cache has, or fewer; pool.get and pool.put take any number',
    });
  }
}
