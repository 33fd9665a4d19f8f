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
    let cached = count;
    if (count > this.#length) {
      if (count > this.size) {
        this.#mustBeLive('pool.get');
        cached = this.#length;
        if (!this.#stack.take(into, count - cached, at + cached)) return false;
      } else if (!this.#fill(count)) return false;
    }
    const length = this.#length;
    // What is handed out one by one needs no loop.
    if (cached === 1) into[at] = this.numbers[length - 1];
    else if (cached < MANY) copyReversed(into, at, this.numbers, length, cached);
    else this.#parts.copy(into, at, length - cached, cached);
    this.#length = length - cached;
    if (this.#stack.checked) this.#stack.markTaken(into, count, at);
    return true;
  }

  /**
   * As `ElementStack.put`. @throws DmaError as `ElementStack.put`; unless checked, an error may be noticed only later
   */
  put(from: Int32Array | Uint32Array, count: number, at = 0): void {
    checkBurst(from, count, at);
    this.#mustBeLive('pool.put');
    if (this.#stack.checked) this.#stack.markFree(from, count, at);
    if (this.#stack.isShared) this.#stack.mustClaim(from, count, at);
    if (count > this.size) {
      this.#stack.give(from, count, at);
      return;
    }
    if (this.#length + count > this.#threshold) this.#drain(count);
    const length = this.#length;
    if (count === 1) this.numbers[length] = from[at];
    else copyNumbers(this.numbers, length, from, at, count);
    this.#length = length + count;
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
