/**
 * A number for each GiB of a part of the address space, in an array that begins where it has to and grows in both
 * directions. A look-up is a subtraction and a load; it is the first step of the hot path of the translation table.
 */

/** Places of a first window, of 4 bytes each. */
const FIRST = 16;

/** Positive 32-bit integers by GiB; 0 stands for none. */
export class GibWindow {
  /** The GiB of the first place. */
  #base = 0;
  #places = new Int32Array(0);
  /** How many places are not 0. */
  #used = 0;

  /** Bytes of memory that it has reserved for itself. */
  get bytes(): number {
    return this.#places.byteLength;
  }

  /** The number of a GiB, wherever that is. */
  get(gib: number): number {
    const places = this.#places;
    const place = (gib - this.#base) >>> 0;
    return place < places.length ? places[place] : 0;
  }

  /** Gives a GiB that the window reaches a number, if it has none, or takes its number away, by 0. */
  set(gib: number, value: number): void {
    this.#used += value === 0 ? -1 : 1;
    this.#places[gib - this.#base] = value;
  }

  /** Does it have a place for this GiB? */
  reaches(gib: number): boolean {
    return gib >= this.#base && gib < this.#base + this.#places.length;
  }

  /**
   * Makes it reach the GiBs from `first` to `last` as well. An empty window moves there.
   *
   * @param limit how many GiBs it may span
   * @returns whether it reaches them: not when that is more than the limit
   * @throws RangeError when there is no memory for it; nothing has changed then
   */
  widen(first: number, last: number, limit: number): boolean {
    if (this.reaches(first) && this.reaches(last)) return true;
    const old = this.#places;
    const moves = this.#used === 0;
    const start = moves ? first : Math.min(first, this.#base);
    const span = (moves ? last + 1 : Math.max(last + 1, this.#base + old.length)) - start;
    if (span > limit) return false;
    let size = Math.max(old.length, FIRST);
    while (size < span) size *= 2;
    // The places beyond what is needed lie where it grows, so that it seldom has to.
    const before = moves ? Math.floor((size - span) / 2) : first < this.#base ? size - span : 0;
    if (size > old.length) {
      this.#places = new Int32Array(size);
      if (!moves) this.#places.set(old, this.#base - start + before);
    }
    this.#base = start - before;
    return true;
  }
}
