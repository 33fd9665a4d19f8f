/**
 * A list of pages that the library owns: addresses reserved up front without any memory, and memory that comes and goes
 * inside them. DPDK calls it a memseg list; a page is its memseg.
 *
 * Pages come and go in *extents*: neighbouring pages that were taken together. An extent is the unit of everything that
 * costs a call: it is mapped for devices as a whole, and goes back as a whole, so that a mapping is never coarser than what
 * can be freed by itself. Only what an extent covers is in the area index; the rest of the reservation is no memory.
 */
import { DmaError, invalid, throwFirst, undoAll, withUndo } from '../../errors.js';
import { pauseStep, type LongStep } from '../../long-work.js';
import type { Platform } from '../../platform/ports.js';
import { Range } from '../../ranges.js';
import { runSteps, type Steps } from '../../steps.js';
import { formatSize, MiB, type Va } from '../../units.js';
import { Area } from '../area.js';
import type { AreaIndex } from '../area-index.js';
import { BlockAllocator } from '../heap/block-allocator.js';
import type { PageSource } from './page-source.js';
import { HandedOut, retired } from '../retired.js';

/** Lists begin at multiples of this, so that what is aligned in memory is in the files behind it too. bytes */
const LIST_ALIGNMENT = 2 * MiB;

/** Pages that were taken together, and go back together. */
export interface Extent {
  readonly list: SegmentList;
  readonly range: Range<Va>;
  /** The areas that cover it: one, or one a page where each page has a file of its own. */
  readonly areas: readonly Area[];
  /** What reaches it by views. */
  readonly handedOut: HandedOut;
  /** May it hold what an earlier process left? Otherwise it was all zeros when it was taken. */
  readonly dirty: boolean;
}

/** What a list is made of. */
export interface SegmentListOptions {
  readonly platform: Platform;
  readonly areas: AreaIndex;
  /** Where its pages come from; the list's, which closes it. */
  readonly source: PageSource;
  /** How many pages it can have: addresses are reserved for them. */
  readonly pages: number;
  /** Do devices use physical addresses? Then each page's is read when it is taken, and locked in place. */
  readonly physical: boolean;
  /** Has every device to use the same IOVAs for it? See `Area.sameIova`. */
  readonly sameIova: boolean;
}

/** Of so many pages the physical addresses are read before others may go on: each takes some microseconds. */
const FRAMES_A_STEP = 128;

/** See the head of the file. */
export class SegmentList {
  readonly source: PageSource;
  /** The addresses it has reserved. */
  readonly reserved: Range<Va>;
  readonly #platform: Platform;
  readonly #index: AreaIndex;
  readonly #physical: boolean;
  readonly #sameIova: boolean;
  /** Which of the reserved addresses have pages. */
  readonly #room = new BlockAllocator();
  readonly #extents = new Map<number, Extent>();
  /** Addresses whose memory went back, and that something still reaches. */
  readonly #retired = new Set<Range<Va>>();
  #retiredBytes = 0;
  /** How many areas a process that was lost may still write to: their descriptor gave it the whole file. */
  #lingering = 0;
  #closed = false;
  /** When closed: addresses that have to be given back. */
  #left: readonly Range<Va>[] | undefined;

  /** @throws DmaError ENOMEM when so many addresses can not be reserved */
  constructor(options: SegmentListOptions) {
    const { platform, source, pages } = options;
    this.#platform = platform;
    this.#index = options.areas;
    this.#physical = options.physical;
    this.#sameIova = options.sameIova;
    this.source = source;
    const length = pages * source.pageSize;
    // VAs that are to be IOVAs are such that IOMMUs of few address bits have them too.
    const low = options.sameIova && !options.physical;
    this.reserved = new Range(
      platform.memory.reserve(length, Math.max(source.pageSize, LIST_ALIGNMENT), low),
      length,
      'reserve',
    );
    this.#room.addRange(this.reserved.start, length);
  }

  /** Pages that it has now. */
  get pages(): number {
    return (this.#room.allocatedBytes - this.#retiredBytes) / this.source.pageSize;
  }

  /** What it has now, in the order it was taken. */
  get extents(): Iterable<Extent> {
    return this.#extents.values();
  }

  /**
   * Takes `pages` neighbouring pages: they are there, on the right node, and in the area index.
   *
   * @param alignment the first is at a multiple of so many bytes, a power of two. Default: the page size
   * @returns `undefined` when the reservation has no room for so many in one piece, and while a process that was lost may write to
   *   its file
   * @throws DmaError ENOMEM when the machine does not have so many; EPERM when physical addresses are wanted and not shown
   */
  take(pages: number, alignment?: number): Extent | undefined {
    return runSteps(this.taking(pages, alignment), (step) => step.now());
  }

  /** {@link take}, step by step. */
  *taking(pages: number, alignment?: number): Steps<LongStep, Extent | undefined> {
    if (this.#lingering > 0) return undefined;
    const { pageSize } = this.source;
    const length = pages * pageSize;
    const va = this.#room.allocate(length, alignment ?? pageSize) as Va;
    if (va < 0) return undefined;
    const undo: (() => void)[] = [() => void this.#room.free(va)];
    try {
      const runs = yield* this.source.taking(va, pages, this.#pageIndex(va));
      undo.unshift(() => this.source.giveBack(va, pages, this.#pageIndex(va)));
      const areas: Area[] = [];
      const pause = pauseStep('take');
      for (const run of runs) areas.push(yield* this.#area(new Range(run.va, run.length), run.backing, pause));
      for (const area of areas) {
        this.#index.add(area, 'take');
        undo.unshift(() => this.#index.remove(area));
      }
      const dirty = runs.some((run) => run.dirty);
      const extent: Extent = {
        list: this,
        range: new Range(va, length),
        areas,
        handedOut: new HandedOut(),
        dirty,
      };
      this.#extents.set(va, extent);
      return extent;
    } catch (error) {
      throw withUndo(error, 'take', undoAll(undo));
    }
  }

  /**
   * Gives an extent back to the system. No view of it may be left, and no device may have it mapped. Its addresses are used
   * again when nothing reaches them any more.
   *
   * @throws DmaError EBUSY while a device has it mapped; EINVAL for an extent that is not (any more) of this list
   */
  giveBack(extent: Extent): void {
    runSteps(this.givingBack(extent), (step) => step.now());
  }

  /** {@link giveBack}, step by step. */
  *givingBack(extent: Extent): Steps<LongStep, void> {
    const { range, areas } = extent;
    if (this.#extents.get(range.start) !== extent) throw invalid('giveBack', 'no such extent', { range });
    const held = areas.flatMap((area) => [...area.holders.keys()]);
    if (held.length > 0)
      throw new DmaError({ code: 'EBUSY', operation: 'giveBack', range, reason: `it is mapped by ${held.join(', ')}` });
    const reachable = !extent.handedOut.unreachable;
    if (reachable && !extent.handedOut.escaped) retired.mustHaveRoom(range.start, range.length, 'giveBack');
    const pages = range.length / this.source.pageSize;
    // Nobody can begin to use it meanwhile.
    for (const area of areas) this.#index.remove(area);
    try {
      yield* this.source.givingBack(range.start, pages, this.#pageIndex(range.start), reachable);
    } catch (error) {
      for (const area of areas) this.#index.add(area, 'giveBack');
      throw error;
    }
    this.#extents.delete(range.start);
    for (const area of areas) area.gone();
    if (reachable) this.#retire(extent);
    else this.#room.free(range.start);
  }

  /**
   * Gives everything back, and the addresses too, as soon as nothing reaches them.
   *
   * @throws the first error, once all was tried; it can be tried again
   */
  close(): void {
    runSteps(this.closing(), (step) => step.now());
  }

  /** {@link close}, step by step. */
  *closing(): Steps<LongStep, void> {
    const { memory } = this.#platform;
    const errors: unknown[] = [];
    for (const extent of [...this.#extents.values()]) {
      try {
        yield* this.givingBack(extent);
      } catch (error) {
        errors.push(error);
      }
    }
    if (errors.length === 0) errors.push(...undoAll([() => this.source.close()]));
    if (errors.length === 0) {
      this.#closed = true;
      this.#left ??= without(this.reserved, this.#retired);
      this.#left = this.#left.filter(({ start, length }) => {
        const [failure] = undoAll([() => memory.unmap(start, length)]);
        if (failure !== undefined) errors.push(failure);
        return failure !== undefined;
      });
    }
    throwFirst(errors, 'close');
  }

  #retire({ range, handedOut }: Extent): void {
    const { memory } = this.#platform;
    const { start, length } = range;
    this.#retired.add(range);
    this.#retiredBytes += length;
    retired.add(start, length, handedOut, () => {
      if (this.#closed) memory.unmap(start, length);
      else memory.decommit(start, length);
      this.#retired.delete(range);
      this.#retiredBytes -= length;
      this.#room.free(start);
    });
  }

  #pageIndex(va: number): number {
    return (va - this.reserved.start) / this.source.pageSize;
  }

  *#area(range: Range<Va>, backing: Area['backing'], pause: LongStep): Steps<LongStep, Area> {
    const { pageSize, node, kind } = this.source;
    const label = `owned memory (${kind}, ${formatSize(pageSize)} pages${node < 0 ? '' : `, node ${node}`})`;
    const iovas = this.#physical ? yield* this.#frames(range, pause) : undefined;
    const sameIova = this.#sameIova;
    const area = new Area({ range, pageSize, owner: 'owned', label, node, backing, iovas, sameIova }, 'take');
    // What is given back before that process has ended is not waited for, so that the file then is never used again.
    area.onLingerInList = (by) => void (this.#lingering += by);
    return area;
  }

  /** Locks the pages in place, and reads where they are. */
  *#frames(range: Range<Va>, pause: LongStep): Steps<LongStep, Float64Array> {
    const { memory } = this.#platform;
    const { pageSize } = this.source;
    const pages = range.length / pageSize;
    const all = new Float64Array(pages);
    for (let first = 0; first < pages; first += FRAMES_A_STEP) {
      yield pause;
      const some = Math.min(FRAMES_A_STEP, pages - first);
      const va = (range.start + first * pageSize) as Va;
      memory.lock(va, some * pageSize);
      const frames = memory.frames(va, pageSize, some);
      if (frames === undefined || frames.includes(-1))
        throw new DmaError({
          code: 'EPERM',
          operation: 'take',
          range,
          reason: 'the kernel does not show physical addresses',
          hint: 'reading them from /proc/self/pagemap needs CAP_SYS_ADMIN; with an IOMMU use IOVA mode va',
        });
      all.set(frames, first);
    }
    return all;
  }
}

/** What is left of a range without some others inside of it. */
function without(whole: Range<Va>, others: Iterable<Range<Va>>): Range<Va>[] {
  const rest: Range<Va>[] = [];
  let at: Va = whole.start;
  for (const { start, end } of [...others].sort((a, b) => a.start - b.start)) {
    if (start > at) rest.push(new Range(at, start - at));
    at = end as Va;
  }
  return at < whole.end ? [...rest, new Range(at, whole.end - at)] : rest;
}
