/** The pages that calls use: tells at once of most memory that no call uses it, however many calls there are. */

const PAGE = 4096;
/** Counts; pages share one when they are a multiple of 64 MiB apart. */
const COUNTS = 1 << 14;

/** How many calls use each page of 4 KiB. Where that is none, nothing uses a byte of it; where it is some, something may. */
export class BusyPages {
  readonly #counts = new Uint32Array(COUNTS);
  #ranges = 0;

  /** Is none used? */
  get isIdle(): boolean {
    return this.#ranges === 0;
  }

  /** A call uses `length` bytes at `va` from now on (1), or one that was counted with these does not any more (-1). */
  count(va: number, length: number, by: 1 | -1): void {
    const counts = this.#counts;
    this.#ranges += by;
    const first = firstOf(va);
    for (let i = pagesIn(va, length) - 1; i >= 0; i--) counts[(first + i) & (COUNTS - 1)] += by;
  }

  /** May a call use a byte of [start, end)? */
  has(start: number, end: number): boolean {
    if (this.#ranges === 0) return false;
    const first = firstOf(start);
    for (let i = pagesIn(start, end - start) - 1; i >= 0; i--)
      if (this.#counts[(first + i) & (COUNTS - 1)] !== 0) return true;
    return false;
  }
}

/** The count of the page that `va` is in. `&` takes the low bits of any address, and costs less than `%`. */
function firstOf(va: number): number {
  return (va / PAGE) & (COUNTS - 1);
}

function pagesIn(va: number, length: number): number {
  return Math.ceil(((va & (PAGE - 1)) + length) / PAGE);
}
