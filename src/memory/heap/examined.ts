/**
 * Remembers which free blocks of a size class were found unsuitable, so that they are not examined again. They are the
 * oldest of the list of the class. What is too small for one request is too small for every request that asks for as
 * much or more.
 */

/**
 * How many bytes may be in one block, where not all neighbours may (IOVA contiguity).
 *
 * @returns of `length` bytes from `start`, how many may be in one block, counted from the first; `length` for all. The
 *   search goes on after them.
 */
export type RunOf = (start: number, length: number) => number;

/** What an allocation asks for; see `BlockAllocator.allocate`. */
export interface Wanted {
  readonly length: number;
  readonly alignment: number;
  readonly boundary: number;
  readonly runOf: RunOf | undefined;
}

/** The examined blocks of all size classes, each class for one kind of request. */
export class Examined {
  /** The newest examined block of each class; all older ones were examined too. -1: none was. */
  readonly from: Int32Array;
  /** The request for which they are unsuitable. */
  readonly #wanted: (Wanted | undefined)[] = [];

  constructor(classes: number) {
    this.from = new Int32Array(classes).fill(-1);
  }

  /** Are the examined blocks unsuitable for this request too? */
  covers(sizes: number, { length, alignment, boundary, runOf }: Wanted): boolean {
    const known = this.#wanted[sizes];
    return (
      known !== undefined &&
      known.length <= length &&
      known.alignment <= alignment &&
      (known.boundary === 0 || (boundary !== 0 && boundary <= known.boundary)) &&
      (known.runOf === undefined || known.runOf === runOf)
    );
  }

  /**
   * Goes on with this request: blocks that are examined now are unsuitable for it, but perhaps not for one that asks for less. Those that
   * were examined before stay if they are unsuitable for it too.
   */
  begin(sizes: number, wanted: Wanted): void {
    if (!this.covers(sizes, wanted)) this.from[sizes] = -1;
    this.#wanted[sizes] = wanted;
  }
}
