/**
 * Which free blocks of a size class were looked at and found unsuitable, so that nobody looks again: they are the older part of
 * the list of the class. What was unsuitable for one request is so for every request that asks for no less.
 */

/**
 * Which bytes may be in one block, where not all neighbours may (IOVA contiguity).
 *
 * @returns of the `length` bytes from `start` on, how many, from the first on, may be in one block; `length` for all.
 *   The search goes on behind them.
 */
export type RunOf = (start: number, length: number) => number;

/** What an allocation asks for; see `BlockAllocator.allocate`. */
export interface Wanted {
  readonly length: number;
  readonly alignment: number;
  readonly boundary: number;
  readonly runOf: RunOf | undefined;
}

/** See the head of the file. */
export class Examined {
  /** The newest block of each class that was looked at, as all older ones were; -1 when none was. */
  readonly from: Int32Array;
  /** What they are unsuitable for. */
  readonly #wanted: (Wanted | undefined)[] = [];

  constructor(classes: number) {
    this.from = new Int32Array(classes).fill(-1);
  }

  /** Is what was found out about a class true of this request too? */
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

  /** From here on it is about this request; nothing of the class was looked at. */
  begin(sizes: number, wanted: Wanted): void {
    this.#wanted[sizes] = wanted;
    this.from[sizes] = -1;
  }
}
