/**
 * Free blocks of one size class by their size, for who wants the largest again and again: a binary heap. Blocks that are taken
 * stay in it until they come up; who asks says which of them are still what they were.
 */
export class LargestFirst {
  #rows: Int32Array;
  #sizes: Float64Array;
  #count = 0;

  /** @param capacity how many entries it has room for */
  constructor(capacity: number) {
    this.#rows = new Int32Array(capacity);
    this.#sizes = new Float64Array(capacity);
  }

  /** Adds a block. @returns false, and nothing is added, when it is full */
  add(row: number, size: number): boolean {
    if (this.#count === this.#rows.length) return false;
    let at = this.#count++;
    for (; at > 0; at = (at - 1) >>> 1) {
      const above = (at - 1) >>> 1;
      if (this.#sizes[above] >= size) break;
      this.#move(above, at);
    }
    this.#rows[at] = row;
    this.#sizes[at] = size;
    return true;
  }

  /** The largest block that is still what it was when it was added; -1 when there is none. */
  first(isCurrent: (row: number, size: number) => boolean): number {
    while (this.#count > 0) {
      if (isCurrent(this.#rows[0], this.#sizes[0])) return this.#rows[0];
      this.#drop();
    }
    return -1;
  }

  /** Forgets the first entry: the last one takes its place, and sinks. */
  #drop(): void {
    const last = --this.#count;
    const size = this.#sizes[last];
    const row = this.#rows[last];
    let at = 0;
    for (let below = 1; below < last; below = 2 * at + 1) {
      if (below + 1 < last && this.#sizes[below + 1] > this.#sizes[below]) below++;
      if (this.#sizes[below] <= size) break;
      this.#move(below, at);
      at = below;
    }
    this.#rows[at] = row;
    this.#sizes[at] = size;
  }

  #move(from: number, to: number): void {
    this.#rows[to] = this.#rows[from];
    this.#sizes[to] = this.#sizes[from];
  }
}
