/**
 * Free blocks of one size class, largest first: a binary heap. Blocks that were allocated stay in it until they come to
 * the top; the caller tells which entries are still valid.
 */
export class LargestFirst {
  #rows: Int32Array;
  #sizes: Float64Array;
  #count = 0;

  /** @param capacity number of entries */
  constructor(capacity: number) {
    this.#rows = new Int32Array(capacity);
    this.#sizes = new Float64Array(capacity);
  }

  /** Adds a block. @returns false if it is full; then nothing was added */
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

  /** The largest block whose entry is still valid; -1 if there is none. */
  first(isCurrent: (row: number, size: number) => boolean): number {
    while (this.#count > 0) {
      if (isCurrent(this.#rows[0], this.#sizes[0])) return this.#rows[0];
      this.#drop();
    }
    return -1;
  }

  /** Removes the first entry: the last one takes its place and sinks. */
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
