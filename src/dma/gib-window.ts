/**
 * A number for each GiB of a part of the address space, in an array that grows in both directions. A look-up is a
 * subtraction and a load: the first step of the translation table's hot path.
 */

/** Entries of a first window, 4 bytes each. */
const FIRST = 16;

/** Positive 32-bit integers by GiB; 0 stands for none. */
export class GibWindow {
  /** The GiB of the first entry. */
  #base = 0;
  #places = new Int32Array(0);
  /** How many entries are not 0. */
  #used = 0;

  /** Bytes of memory that are reserved for it. */
  get bytes(): number {
    return this.#places.byteLength;
  }

  /** The number of any GiB; 0 outside of the window. */
  get(gib: number): number {
    const places = this.#places;
    const place = (gib - this.#base) >>> 0;
    return place < places.length ? places[place] : 0;
  }

  /** The GiBs that have a number, with it. */
  *entries(): Generator<[gib: number, value: number]> {
    for (let place = 0; place < this.#places.length; place++)
      if (this.#places[place] !== 0) yield [this.#base + place, this.#places[place]];
  }

  /** Sets the number of a GiB inside the window; 0 removes it. */
  set(gib: number, value: number): void {
    this.#used += value === 0 ? -1 : 1;
    this.#places[gib - this.#base] = value;
  }

  /** Is this GiB inside the window? */
  reaches(gib: number): boolean {
    return gib >= this.#base && gib < this.#base + this.#places.length;
  }

  /**
   * Extends the window to the GiBs from `first` to `last`. An empty window moves there.
   *
   * @param limit how many GiBs it may span
   * @returns whether they are inside now: false if the limit would be exceeded
   * @throws RangeError if there is no memory for it; nothing has changed then
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
    // Spare entries are added on the side where it grows, so that it seldom grows.
    const before = moves ? Math.floor((size - span) / 2) : first < this.#base ? size - span : 0;
    if (size > old.length) {
      this.#places = new Int32Array(size);
      if (!moves) this.#places.set(old, this.#base - start + before);
    }
    this.#base = start - before;
    return true;
  }
}
