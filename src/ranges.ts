/** The half-open address range. All range arithmetic of the library is here, checked. */
import { typeHint } from './check.js';
import { invalid } from './errors.js';
import { show } from './show.js';
import { ADDRESS_LIMIT, alignDown, alignUp, hex, isAddress, isMultiple } from './units.js';

/**
 * The addresses `start <= a < end`; never empty, never past 2^53. Immutable.
 *
 * @typeParam A what kind of address: `Va`, `Iova` or a plain offset.
 */
export class Range<A extends number = number> {
  /** The first address. */
  readonly start: A;
  /** How many bytes; at least 1. */
  readonly length: number;

  /**
   * @param operation named in the error for an invalid range
   * @throws DmaError EINVAL unless start is an address, length a positive safe integer, and the end at most 2^53
   */
  constructor(start: A, length: number, operation = 'range') {
    if (!isAddress(start))
      throw invalid(operation, `${show(start)} is not an address (an integer from 0 to 2^53 - 1)`, {
        hint: typeHint(start, 'number'),
      });
    if (!isAddress(length) || length === 0)
      throw invalid(operation, `${show(length)} bytes is not a valid length`, {
        hint: typeHint(length, 'number') ?? 'the length must be a whole number of bytes, 1 or more',
      });
    if (length > ADDRESS_LIMIT - start)
      throw invalid(operation, `${length} bytes from ${hex(start)} extend beyond 2^53`, {
        hint: 'addresses and lengths must be below 2^53; is the length in bytes?',
      });
    this.start = start;
    this.length = length;
  }

  /** The range from `start` up to but excluding `end`. Throws EINVAL if that is empty. */
  static between<A extends number>(start: A, end: number, operation = 'range'): Range<A> {
    return new Range(start, end - start, operation);
  }

  /** One past the last address. */
  get end(): number {
    return this.start + this.length;
  }

  /** Is the address inside? */
  contains(address: number): boolean {
    return address >= this.start && address < this.end;
  }

  /** Is all of `other` inside this range? */
  covers(other: Range): boolean {
    return other.start >= this.start && other.end <= this.end;
  }

  /** Do the ranges have an address in common? */
  overlaps(other: Range): boolean {
    return other.start < this.end && this.start < other.end;
  }

  /** The addresses in both; `undefined` if there are none. */
  intersection(other: Range): Range<A> | undefined {
    const start = Math.max(this.start, other.start);
    const end = Math.min(this.end, other.end);
    return start < end ? new Range(start as A, end - start) : undefined;
  }

  /** Are the ranges equal? */
  equals(other: Range): boolean {
    return other.start === this.start && other.length === this.length;
  }

  /** Are start and length multiples of `granule`? */
  isAligned(granule: number): boolean {
    return isMultiple(this.start, granule) && isMultiple(this.length, granule);
  }

  /** The largest part that begins and ends on multiples of `granule`; `undefined` if there is none. */
  alignedInside(granule: number): Range<A> | undefined {
    const start = alignUp(this.start, granule);
    const end = alignDown(this.end, granule);
    return start < end ? new Range(start as A, end - start) : undefined;
  }

  /** `[0x1000, 0x3000)` */
  toString(): string {
    return `[${hex(this.start)}, ${hex(this.end)})`;
  }

  /** For JSON.stringify: the start in hexadecimal, because JSON parsers may not support large numbers. */
  toJSON(): { start: string; length: number } {
    return { start: hex(this.start), length: this.length };
  }
}

/** The same addresses in as few ranges as possible, ascending: overlapping and adjacent ranges are merged. */
export function joined<A extends number>(ranges: Iterable<Range<A>>): Range<A>[] {
  const result: Range<A>[] = [];
  for (const range of [...ranges].sort((a, b) => a.start - b.start)) {
    const last = result.at(-1);
    if (last === undefined || last.end < range.start) result.push(range);
    else if (range.end > last.end) result[result.length - 1] = Range.between(last.start, range.end);
  }
  return result;
}
