/**
 * Which IOVAs of a domain are in use, and where the next mapping goes if no IOVA is given.
 *
 * Every address of the windows is *allocated*, *held back* or *free*. Released addresses are held back for a moment
 * before `allocate` reuses them: a device that still writes to memory that was just unmapped then causes an IOMMU
 * fault, which is visible, instead of silently corrupting the memory of the next owner.
 */
import { AddressSet } from '../address-set.js';
import { invalid } from '../errors.js';
import { RangeMap } from '../range-map.js';
import { joined, Range } from '../ranges.js';
import { ADDRESS_LIMIT, isAddress, isMultiple, isPowerOfTwo } from '../units.js';
import type { Iova } from '../units.js';
import { now as clock } from '../timers.js';

/** Options of {@link IovaAllocator}. */
export interface IovaAllocatorOptions {
  /** Where IOVAs can be; partial granules at their ends are not used. */
  readonly windows: readonly Range<Iova>[];
  /** Bytes, a power of two: the unit of allocation. */
  readonly granule: number;
  /** How long a released range is held back, in milliseconds; default 100. */
  readonly holdBackMs?: number;
  /** The time in milliseconds, monotonic; default: the process's monotonic clock. */
  readonly now?: () => number;
}

/**
 * First-fit allocation of IOVAs in the windows of one domain.
 *
 * Every operation on a range takes O(log n) for n ranges, amortised; the first request for an alignment and
 * `setWindows` scan all ranges. Lengths and starts are multiples of the granule; anything else is EINVAL.
 */
export class IovaAllocator {
  readonly #granule: number;
  readonly #holdBackMs: number;
  readonly #now: () => number;
  #windows: AddressSet;
  #free: AddressSet;
  /**
   * Everything that is not free: allocated, or held back as it was requested. Repeated use of one place changes no
   * tree. Allocated ranges share one object.
   */
  readonly #taken = new RangeMap<Held>();
  #heldBackBytes = 0;
  /** The held-back ranges as a ring. This head stands for no range; its `next` is the oldest. */
  readonly #queue = new Held();
  /** A Held to reuse for the next range. */
  #spare: Held | undefined;

  /** @throws DmaError EINVAL if the granule is not a power of two */
  constructor({ windows, granule, holdBackMs = 100, now = clock }: IovaAllocatorOptions) {
    if (!isPowerOfTwo(granule)) throw invalid('iova', `a granule of ${granule} bytes is not a power of two`);
    this.#granule = granule;
    this.#holdBackMs = holdBackMs;
    this.#now = now;
    this.#windows = this.#union(windows);
    this.#free = this.#unused();
  }

  /** Bytes that `allocate` can give out without using held-back ranges. The first granule at 0 does not count. */
  get freeBytes(): number {
    this.#giveBackExpired();
    return this.#free.bytes;
  }

  /** Bytes that are held back, inside the current windows or not. */
  get heldBackBytes(): number {
    this.#giveBackExpired();
    return this.#heldBackBytes;
  }

  /** Bytes of the largest free range; 0 if nothing is free. */
  get largestFree(): number {
    this.#giveBackExpired();
    return this.#free.ranges.room(this.#granule);
  }

  /**
   * Allocates the lowest free range that fits.
   *
   * If nothing free fits, held-back ranges become free early, the oldest first, until it fits: a certain failure is
   * worse than a possible fault that goes unnoticed. They are kept if the request could not fit even then. The first
   * granule at 0 is never given out, because an IOVA of 0 looks like none.
   *
   * @param length bytes, a multiple of the granule
   * @param alignment bytes, a power of two; default, and minimum: the granule
   * @param preferred bytes, a power of two: used if a free range allows it; no held-back range is used for it
   * @returns the start of the range; `undefined` if it does not fit
   * @throws DmaError EINVAL for an impossible length or alignment
   */
  allocate(length: number, alignment: number = this.#granule, preferred = alignment): Iova | undefined {
    const bytes = this.#endOf(0, length, 'iova.allocate');
    for (const each of [alignment, preferred])
      if (!isPowerOfTwo(each)) throw invalid('iova.allocate', `an alignment of ${each} is not a power of two`);
    const least = Math.max(alignment, this.#granule);
    let boundary = Math.max(preferred, least);
    this.#giveBackExpired();
    let start = this.#free.take(bytes, boundary);
    if (start === -1 && boundary > least) start = this.#free.take(bytes, (boundary = least));
    while (start === -1 && this.#heldBackBytes > 0 && bytes <= this.#free.bytes + this.#heldBackBytes) {
      this.#giveBack(this.#queue.next);
      start = this.#free.take(bytes, boundary);
    }
    if (start === -1) return undefined;
    this.#taken.insert(start, bytes, ALLOCATED);
    return start as Iova;
  }

  /**
   * Allocates exactly this range, which may include 0. The rest of a held-back range stays held back.
   *
   * @param tenant the new owner: held-back addresses are given only to their last owner. Without a tenant they are
   *   given in any case.
   * @returns false, and nothing changes, if a part of it is allocated, held back from this tenant or outside the
   *   windows
   * @throws DmaError EINVAL if start or length is not a multiple of the granule
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
   * Releases a range, which may be a part of an allocated one, or several adjacent ones. It is held back from now on.
   *
   * @param tenant the owner, see {@link take}
   * @param now time on the allocator's clock, if the caller has read it
   * @throws DmaError EINVAL if not all of it is allocated, or start or length is not a multiple of the granule
   */
  release(start: Iova, length: number, tenant?: object, now = this.#now()): void {
    const end = this.#endOf(start, length, 'iova.release');
    // Two leave the queue for each one that enters, so it stays short even if nobody allocates.
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

  /** Replaces the windows. Allocated ranges stay allocated, wherever they are. */
  setWindows(windows: readonly Range<Iova>[]): void {
    this.#windows = this.#union(windows);
    this.#free = this.#unused();
  }

  /** The end of a range. @throws DmaError EINVAL if it is impossible or not aligned */
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

  /** Addresses in the windows that are neither allocated nor held back. */
  #unused(): AddressSet {
    const unused = new AddressSet();
    this.#addInsideWindows(unused, 0, ADDRESS_LIMIT);
    for (const [start, length] of this.#taken.entries()) unused.remove(start, start + length);
    return unused;
  }

  /** Adds the addresses of `[start, end)` that `allocate` may give out. */
  #addInsideWindows(set: AddressSet, start: number, end: number): void {
    for (let at = Math.max(start, this.#granule); at < end;) {
      const { ranges } = this.#windows;
      if (ranges.overlapping(at, end) === undefined) return;
      const { foundStart, foundEnd } = ranges;
      set.add(Math.max(at, foundStart), Math.min(end, foundEnd));
      at = foundEnd;
    }
  }

  /** Frees `[start, end)` of a held-back range; the rest keeps its place in the queue. */
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

  /** Holds a range back; its place in the queue is after `place`. */
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

  /** Removes a range from the queue. */
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

  /** Frees ranges that were held back long enough, the oldest first, at most `most`. */
  #giveBackExpired(most = Infinity, now?: number): void {
    if (this.#queue.next === this.#queue) return;
    now ??= this.#now();
    for (let given = 0; given < most && this.#queue.next !== this.#queue && this.#queue.next.until <= now; given++)
      this.#giveBack(this.#queue.next);
  }
}

/** A held-back range: a link of the queue. */
class Held {
  start = 0;
  end = 0;
  /** Until when, on the allocator's clock, in milliseconds. */
  until = 0;
  /** The last owner. */
  tenant: object | undefined = undefined;
  previous: Held = this;
  next: Held = this;
}

/** Stands for every allocated range. */
const ALLOCATED = new Held();

/** Is it held back, and may `tenant` have it nevertheless? */
function isFor(taken: Held, tenant: object | undefined): boolean {
  return taken !== ALLOCATED && (tenant === undefined || tenant === taken.tenant);
}
