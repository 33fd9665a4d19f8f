/** A set of addresses, such as those that are free: as ranges that neither overlap nor touch. */
import { RangeMap } from './range-map.js';
import { alignUp } from './units.js';

/** A set of addresses. Every operation takes O(log n) for each of the n ranges that it changes. */
export class AddressSet {
  readonly ranges = new RangeMap<true>();
  /** Number of addresses. */
  bytes = 0;

  /** Are all of `[start, end)` in the set? */
  covers(start: number, end: number): boolean {
    return this.ranges.at(start) !== undefined && this.ranges.foundEnd >= end;
  }

  /** Adds `[start, end)`, none of which is in the set. */
  add(start: number, end: number): void {
    const { ranges } = this;
    this.bytes += end - start;
    let to = end;
    if (ranges.at(end) !== undefined) {
      to = ranges.foundEnd;
      ranges.delete(end);
    }
    if (ranges.at(start - 1) !== undefined) ranges.setFoundEnd(to);
    else ranges.insert(start, to - start, true);
  }

  /** Removes `[start, end)`, as far as it is in the set. */
  remove(start: number, end: number): void {
    const { ranges } = this;
    while (ranges.overlapping(start, end) !== undefined) {
      const from = ranges.foundStart;
      const to = ranges.foundEnd;
      if (from < start) ranges.setFoundEnd(start);
      else ranges.delete(from);
      if (to > end) ranges.insert(end, to - end, true);
      this.bytes -= Math.min(end, to) - Math.max(start, from);
    }
  }
  /**
   * Takes the lowest addresses that fit out of the set.
   *
   * @param length bytes
   * @param alignment bytes, a power of two: the result is a multiple of it
   * @returns the first of them; -1 if there is no room
   */
  take(length: number, alignment: number): number {
    if (this.ranges.fit(length, alignment) === undefined) return -1;
    const start = alignUp(this.ranges.foundStart, alignment);
    this.remove(start, start + length);
    return start;
  }
}
