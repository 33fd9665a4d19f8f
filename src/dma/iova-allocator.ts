/**
 * Which IOVAs of a domain are in use, and where the next mapping goes when nobody says where.
 *
 * Every address of the windows is *allocated*, *held back* or *free*. What is released is held back for a moment before
 * `allocate` gives it out again: a device that still writes to memory that was unmapped a moment ago then meets an IOMMU
 * fault, which is seen, and not the next owner's memory, which would be silent corruption.
 */
import { invalid } from '../errors.js';
import { RangeMap } from '../range-map.js';
import { joined, Range } from '../ranges.js';
import { ADDRESS_LIMIT, alignUp, isAddress, isMultiple, isPowerOfTwo } from '../units.js';
import type { Iova } from '../units.js';
import { now as clock } from '../timers.js';

/** What an {@link IovaAllocator} works with. */
export interface IovaAllocatorOptions {
  /** Where IOVAs can be; what is not a whole granule at their ends is left out. */
  readonly windows: readonly Range<Iova>[];
  /** Bytes, a power of two: the unit of allocation. */
  readonly granule: number;
  /** For how many milliseconds a released range is held back; 100 unless told. */
  readonly holdBackMs?: number;
  /** The time in milliseconds, never going back; the process's monotonic clock unless told. */
  readonly now?: () => number;
}

/**
 * First-fit allocation of IOVAs in the windows of one domain.
 *
 * Every operation on one range is O(log n) in the number of ranges, amortised; the first request for an alignment and
 * `setWindows` look at every range. Lengths and starts are multiples of the granule, and anything else is EINVAL.
 */
export class IovaAllocator {
  readonly #granule: number;
  readonly #holdBackMs: number;
  readonly #now: () => number;
  #windows: AddressSet;
  #free: AddressSet;
  /**
   * All that is not free: allocated, or held back, as it was asked for. What comes and goes at one place changes no tree. That
   * something is allocated takes no object of its own.
   */
  readonly #taken = new RangeMap<Held>();
  #heldBackBytes = 0;
  /** The held-back ranges as a ring: `next` of this one, which stands for no range, is the oldest. */
  readonly #queue = new Held();
  /** A Held that stands for no range any more: the next one is not made anew. */
  #spare: Held | undefined;

  /** @throws DmaError EINVAL when the granule is not a power of two */
  constructor({ windows, granule, holdBackMs = 100, now = clock }: IovaAllocatorOptions) {
    if (!isPowerOfTwo(granule)) throw invalid('iova', `a granule of ${granule} bytes is not a power of two`);
    this.#granule = granule;
    this.#holdBackMs = holdBackMs;
    this.#now = now;
    this.#windows = this.#union(windows);
    this.#free = this.#unused();
  }

  /** Bytes that `allocate` can give out without touching what is held back. The first granule at 0 is none of them. */
  get freeBytes(): number {
    this.#giveBackExpired();
    return this.#free.bytes;
  }

  /** Bytes that are held back, whether inside the windows of today or not. */
  get heldBackBytes(): number {
    this.#giveBackExpired();
    return this.#heldBackBytes;
  }

  /** Bytes of the largest free range; 0 when nothing is free. */
  get largestFree(): number {
    this.#giveBackExpired();
    return this.#free.ranges.room(this.#granule);
  }

  /**
   * Allocates the lowest range that is free.
   *
   * When nothing free fits, ranges that are held back become free before their time, oldest first, until it fits: a
   * certain failure now is worse than a possible fault that goes unseen. A request that is larger than all there is leaves
   * them alone. The first granule at 0 is never given out, since an IOVA of 0 looks like none.
   *
   * @param length bytes, a multiple of the granule
   * @param alignment bytes, a power of two; the granule unless told, and at least that
   * @param preferred bytes, a power of two: an alignment that is nice to have. It is had when something free allows it, and
   *   nothing that is held back is given up for it.
   * @returns where the range starts; `undefined` when it does not fit
   * @throws DmaError EINVAL for an impossible length or alignment
   */
  allocate(length: number, alignment: number = this.#granule, preferred = alignment): Iova | undefined {
    const bytes = this.#endOf(0, length, 'iova.allocate');
    for (const each of [alignment, preferred])
      if (!isPowerOfTwo(each)) throw invalid('iova.allocate', `an alignment of ${each} is not a power of two`);
    const least = Math.max(alignment, this.#granule);
    let boundary = Math.max(preferred, least);
    this.#giveBackExpired();
    let range = this.#free.ranges.fit(bytes, boundary);
    if (range === undefined && boundary > least) range = this.#free.ranges.fit(bytes, (boundary = least));
    while (range === undefined && this.#heldBackBytes > 0 && bytes <= this.#free.bytes + this.#heldBackBytes) {
      this.#giveBack(this.#queue.next);
      range = this.#free.ranges.fit(bytes, boundary);
    }
    if (range === undefined) return undefined;
    const start = alignUp(this.#free.ranges.foundStart, boundary);
    this.#free.remove(start, start + bytes);
    this.#taken.insert(start, bytes, ALLOCATED);
    return start as Iova;
  }

  /**
   * Allocates exactly this range, 0 or not; what is left of a held-back range stays held back.
   *
   * @param tenant whose the range is to be: addresses that are held back are taken only when they were its own. Without one
   *   they are taken in any case.
   * @returns false, with nothing changed, when a part of it is allocated, held back from this tenant or outside the windows
   * @throws DmaError EINVAL when start or length is not a multiple of the granule
   */
  take(start: Iova, length: number, tenant?: object): boolean {
    const end = this.#endOf(start, length, 'iova.take');
    if (!this.#windows.covers(start, end)) return false;
    const taken = this.#taken;
    let first = taken.overlapping(start, end);
    if (first !== undefined && isFor(first, tenant) && taken.foundStart === start && taken.foundEnd === end) {
      taken.replaceFound(ALLOCATED);
      this.#unhold(first);
      return true;
    }
    if (first !== undefined) {
      this.#giveBackExpired();
      first = taken.overlapping(start, end);
    }
    for (let each = first; each !== undefined && taken.foundStart < end; each = taken.above(taken.foundStart))
      if (!isFor(each, tenant)) return false;
    for (let held = first; held !== undefined; held = taken.overlapping(start, end)) this.#cutOut(held, start, end);
    this.#free.remove(start, end);
    taken.insert(start, length, ALLOCATED);
    return true;
  }

  /**
   * Ends the allocation of a range, which may be a part of one that was allocated, or several that touch. It is held back
   * from now on.
   *
   * @param tenant whose it was, see {@link take}
   * @param now on the allocator's clock, for who has asked it
   * @throws DmaError EINVAL when not all of it is allocated, or start or length is not a multiple of the granule
   */
  release(start: Iova, length: number, tenant?: object, now = this.#now()): void {
    const end = this.#endOf(start, length, 'iova.release');
    // Two go for one that comes, so that the queue is short even when nobody ever allocates.
    this.#giveBackExpired(2, now);
    const until = now + this.#holdBackMs;
    const taken = this.#taken;
    let found = taken.at(start);
    if (found === ALLOCATED && taken.foundStart === start && taken.foundEnd === end) {
      taken.replaceFound(this.#hold(start, end, until, this.#queue.previous, tenant));
      return;
    }
    const pieces: [start: number, end: number][] = [];
    let at: number = start;
    while (found === ALLOCATED && taken.foundStart <= at && at < end) {
      pieces.push([taken.foundStart, taken.foundEnd]);
      at = taken.foundEnd;
      found = taken.above(taken.foundStart);
    }
    if (at < end) throw invalid('iova.release', 'not allocated', { range: new Range(start, length) });
    for (const [from, to] of pieces) {
      taken.delete(from);
      if (from < start) taken.insert(from, start - from, ALLOCATED);
      if (to > end) taken.insert(end, to - end, ALLOCATED);
    }
    taken.insert(start, length, this.#hold(start, end, until, this.#queue.previous, tenant));
  }

  /** From now on these are the windows. What is allocated stays so, wherever it is. */
  setWindows(windows: readonly Range<Iova>[]): void {
    this.#windows = this.#union(windows);
    this.#free = this.#unused();
  }

  /** Where a range ends. @throws DmaError EINVAL when it is none, or not aligned */
  #endOf(start: number, length: number, operation: string): number {
    const granule = this.#granule;
    const end = start + length;
    if (isAddress(start) && isAddress(length) && length > 0 && end <= ADDRESS_LIMIT)
      if (isMultiple(start, granule) && isMultiple(length, granule)) return end;
    const range = new Range(start, length, operation);
    throw invalid(operation, `not aligned to the granule of ${granule} bytes`, { range });
  }

  #union(windows: readonly Range<Iova>[]): AddressSet {
    const union = new AddressSet();
    for (const window of joined(windows)) {
      const inside = window.alignedInside(this.#granule);
      if (inside === undefined) continue;
      union.remove(inside.start, inside.end);
      union.add(inside.start, inside.end);
    }
    return union;
  }

  /** What is in the windows and neither allocated nor held back. */
  #unused(): AddressSet {
    const unused = new AddressSet();
    this.#addInsideWindows(unused, 0, ADDRESS_LIMIT);
    for (const [start, length] of this.#taken.entries()) unused.remove(start, start + length);
    return unused;
  }

  /** Adds those addresses of `[start, end)` that `allocate` may give out. */
  #addInsideWindows(set: AddressSet, start: number, end: number): void {
    for (let at = Math.max(start, this.#granule); at < end;) {
      const { ranges } = this.#windows;
      if (ranges.overlapping(at, end) === undefined) return;
      const { foundStart, foundEnd } = ranges;
      set.add(Math.max(at, foundStart), Math.min(end, foundEnd));
      at = foundEnd;
    }
  }

  /** Frees `[start, end)` of a range that is held back; the rest takes its place in the queue: no younger one goes before it. */
  #cutOut(held: Held, start: number, end: number): void {
    const { start: from, end: to, until, tenant } = held;
    let place = held.previous;
    this.#unhold(held);
    this.#taken.delete(from);
    if (from < start) {
      place = this.#hold(from, start, until, place, tenant);
      this.#taken.insert(from, start - from, place);
    }
    if (to > end) this.#taken.insert(end, to - end, this.#hold(end, to, until, place, tenant));
  }

  /** Holds a range back; its place in the queue is right behind `place`. */
  #hold(start: number, end: number, until: number, place: Held, tenant: object | undefined): Held {
    const held = this.#spare ?? new Held();
    this.#spare = undefined;
    held.start = start;
    held.end = end;
    held.until = until;
    held.tenant = tenant;
    held.previous = place;
    held.next = place.next;
    held.previous.next = held;
    held.next.previous = held;
    this.#heldBackBytes += end - start;
    return held;
  }

  /** Takes a range out of the queue. */
  #unhold(held: Held): void {
    held.previous.next = held.next;
    held.next.previous = held.previous;
    this.#heldBackBytes -= held.end - held.start;
    held.tenant = undefined;
    held.previous = held.next = held;
    this.#spare = held;
  }

  #giveBack(held: Held): void {
    const { start, end } = held;
    this.#unhold(held);
    this.#taken.delete(start);
    this.#addInsideWindows(this.#free, start, end);
  }

  /** Frees what has been held back long enough, oldest first, and at most so many ranges. */
  #giveBackExpired(most = Infinity, now?: number): void {
    if (this.#queue.next === this.#queue) return;
    now ??= this.#now();
    for (let given = 0; given < most && this.#queue.next !== this.#queue && this.#queue.next.until <= now; given++)
      this.#giveBack(this.#queue.next);
  }
}

/** A range that is held back: a link of the queue. */
class Held {
  start = 0;
  end = 0;
  /** On the allocator's clock, in milliseconds: for how long. */
  until = 0;
  /** Whose it was. */
  tenant: object | undefined = undefined;
  previous: Held = this;
  next: Held = this;
}

/** Stands for every range that is allocated. */
const ALLOCATED = new Held();

/** Is it held back, and may `tenant` have it all the same? */
function isFor(taken: Held, tenant: object | undefined): boolean {
  return taken !== ALLOCATED && (tenant === undefined || tenant === taken.tenant);
}

/** A set of addresses, as ranges that neither overlap nor touch. */
class AddressSet {
  readonly ranges = new RangeMap<true>();
  /** How many addresses there are. */
  bytes = 0;

  covers(start: number, end: number): boolean {
    return this.ranges.at(start) !== undefined && this.ranges.foundEnd >= end;
  }

  /** Adds `[start, end)`, of which nothing is in the set. */
  add(start: number, end: number): void {
    const { ranges } = this;
    this.bytes += end - start;
    let from = start;
    let to = end;
    if (ranges.at(start - 1) !== undefined) ranges.delete((from = ranges.foundStart));
    if (ranges.at(end) !== undefined) {
      to = ranges.foundEnd;
      ranges.delete(end);
    }
    ranges.insert(from, to - from, true);
  }

  /** Removes what there is of `[start, end)`. */
  remove(start: number, end: number): void {
    const { ranges } = this;
    while (ranges.overlapping(start, end) !== undefined) {
      const from = ranges.foundStart;
      const to = ranges.foundEnd;
      ranges.delete(from);
      if (from < start) ranges.insert(from, start - from, true);
      if (to > end) ranges.insert(end, to - end, true);
      this.bytes -= Math.min(end, to) - Math.max(start, from);
    }
  }
}
