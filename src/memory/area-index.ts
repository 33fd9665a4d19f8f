/** All areas by address. Areas never overlap. Look-up takes O(log n) for n areas; their number has no limit. */
import { DmaError, invalid } from '../errors.js';
import { RangeMap } from '../range-map.js';
import type { Range } from '../ranges.js';
import { formatSize, type Va } from '../units.js';
import type { Area } from './area.js';
import type { Shares } from './shared/shares.js';
import { MemoryUsers } from './users.js';

/** The areas of one `Eal`. */
export class AreaIndex {
  readonly #areas = new RangeMap<Area>();
  /** What works on the memory of all areas. */
  readonly users = new MemoryUsers();
  /** What is shared with other threads; `undefined` if nothing can be. */
  readonly shares: Shares | undefined;

  constructor(shares?: Shares) {
    this.shares = shares;
  }

  /** How many areas there are. */
  get size(): number {
    return this.#areas.size;
  }

  /** @throws DmaError EEXIST if any byte of it is in another area; the error names that area */
  add(area: Area, operation = 'register'): void {
    const { range } = area;
    const other = this.#areas.insert(range.start, range.length, area);
    if (other === undefined) return;
    throw new DmaError({
      code: 'EEXIST',
      operation,
      range,
      reason: `it overlaps the ${other.owner} area ${other.label} ${other.range.toString()}`,
      hint: 'unregister that area first, or register a range beside it',
    });
  }

  /** Removes an area that `add` added. */
  remove(area: Area): void {
    this.#areas.delete(area.range.start);
  }

  /** The area that holds `va`. */
  at(va: number): Area | undefined {
    return this.#areas.at(va);
  }

  /** The area that is exactly `range`. */
  exact(range: Range<Va>): Area | undefined {
    return this.#areas.exact(range.start, range.length);
  }

  /**
   * The area that holds all of `range`.
   * @throws DmaError EINVAL if no area holds its first byte, or if it goes past the end of that area
   */
  covering(range: Range<Va>, operation: string): Area {
    const area = this.#areas.at(range.start);
    if (area === undefined) {
      throw invalid(operation, 'the memory is not registered', {
        range,
        hint: 'register it first: eal.external.register, .allocate, .fromFd or .fromAddress',
      });
    }
    if (area.range.covers(range)) return area;
    throw invalid(operation, `the range goes ${formatSize(range.end - area.range.end)} past the end of ${area.label}`, {
      range,
      hint: `that area is ${area.range.toString()}; a mapping stays inside one area`,
    });
  }

  /** All areas, in address order. */
  [Symbol.iterator](): IterableIterator<Area> {
    return this.#areas.values();
  }
}
