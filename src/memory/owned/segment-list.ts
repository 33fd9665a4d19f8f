/**
 * A list of pages that the library owns: addresses that were reserved at the start without memory, and pages that come
 * and go inside them. DPDK calls it a memseg list; a page is its memseg.
 *
 * Pages come and go in *extents*: adjacent pages that were taken together. Each operation that costs a system call
 * handles a whole extent: it is mapped for devices as a whole and freed as a whole, so a mapping never covers more than
 * can be freed at once. The area index has only extents; the rest of the reservation is not memory.
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

/** Lists begin at multiples of this, in bytes, so that memory and the files behind it have the same alignment. */
const LIST_ALIGNMENT = 2 * MiB;

/** Pages that were taken together and are freed together. */
export interface Extent {
  readonly list: SegmentList;
  readonly range: Range<Va>;
  /** The areas that cover it: one, or one per page if each page has a file of its own. */
  readonly areas: readonly Area[];
  /** What can reach it through views. */
  readonly handedOut: HandedOut;
  /** May it hold what an earlier process left? Otherwise it was all zeros when it was taken. */
  readonly dirty: boolean;
}

/** What a list needs. */
export interface SegmentListOptions {
  readonly platform: Platform;
  readonly areas: AreaIndex;
  /** The source of its pages. The list owns it and closes it. */
  readonly source: PageSource;
  /** The most pages it can have; addresses are reserved for all of them. */
  readonly pages: number;
  /** Do devices use physical addresses? Then each page is locked in place when it is taken, and its address is read. */
  readonly physical: boolean;
  /** Must every device use the same IOVAs for it? See `Area.sameIova`. */
  readonly sameIova: boolean;
}

/** Pages whose physical addresses are read in one step: each takes some microseconds. */
const FRAMES_A_STEP = 128;

/** The pages of one size on one node, in one reservation of addresses. */
export class SegmentList {
  readonly source: PageSource;
  /** The reserved addresses. */
  readonly reserved: Range<Va>;
  readonly #platform: Platform;
  readonly #index: AreaIndex;
  readonly #physical: boolean;
  readonly #sameIova: boolean;
  /** Which of the reserved addresses are free. */
  readonly #room = new BlockAllocator();
  readonly #extents = new Map<number, Extent>();
  /** Addresses whose memory was freed while something can still reach them. */
  readonly #retired = new Set<Range<Va>>();
  #retiredBytes = 0;
  /** Number of areas that a lost process may still write to. It has the descriptor, and so the whole file. */
  #lingering = 0;
  #closed = false;
  /** Once closed: addresses that are still to be given back. */
  #left: readonly Range<Va>[] | undefined;

  /** @throws DmaError ENOMEM if so many addresses can not be reserved */
  constructor(options: SegmentListOptions) {
    const { platform, source, pages } = options;
    this.#platform = platform;
    this.#index = options.areas;
    this.#physical = options.physical;
    this.#sameIova = options.sameIova;
    this.source = source;
    const length = pages * source.pageSize;
    // VAs that must be IOVAs are chosen low enough for IOMMUs with few address bits.
    const low = options.sameIova && !options.physical;
    this.reserved = new Range(
      platform.memory.reserve(length, Math.max(source.pageSize, LIST_ALIGNMENT), low),
      length,
      'reserve',
    );
    this.#room.addRange(this.reserved.start, length);
  }

  /** Pages that are taken now. */
  get pages(): number {
    return (this.#room.allocatedBytes - this.#retiredBytes) / this.source.pageSize;
  }

  /** The extents, in the order they were taken. */
  get extents(): Iterable<Extent> {
    return this.#extents.values();
  }

  /**
   * Takes `pages` adjacent pages: they are present, on the right node, and in the area index.
   *
   * @param alignment the first page is at a multiple of this, in bytes, a power of two. Default: the page size
   * @returns `undefined` if the reservation has no gap of that size, and while a lost process may write to its file
   * @throws DmaError ENOMEM if the machine does not have so many; EPERM if physical addresses are needed but hidden
   */
  take(pages: number, alignment?: number): Extent | undefined {
    return runSteps(this.taking(pages, alignment), (step) => step.now());
  }

  /** {@link take} in steps. */
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
   * Frees an extent. It must not have views, and no device may have it mapped. Its addresses are reused once nothing
   * reaches them.
   *
   * @throws DmaError EBUSY while a device has it mapped; EINVAL for an extent that is not in this list
   */
  giveBack(extent: Extent): void {
    runSteps(this.givingBack(extent), (step) => step.now());
  }

  /** {@link giveBack} in steps. @param keep do the pages stay in their file, for other processes? */
  *givingBack(extent: Extent, keep = false): Steps<LongStep, void> {
    const { range, areas } = extent;
    if (this.#extents.get(range.start) !== extent) throw invalid('giveBack', 'no such extent', { range });
    const held = areas.flatMap((area) => [...area.holders.keys()]);
    if (held.length > 0)
      throw new DmaError({ code: 'EBUSY', operation: 'giveBack', range, reason: `it is mapped by ${held.join(', ')}` });
    const reachable = !extent.handedOut.unreachable;
    if (reachable && !extent.handedOut.escaped) retired.mustHaveRoom(range.start, range.length, 'giveBack');
    const pages = range.length / this.source.pageSize;
    // Nobody can start to use it meanwhile.
    for (const area of areas) this.#index.remove(area);
    try {
      yield* this.source.givingBack(range.start, pages, this.#pageIndex(range.start), reachable, keep);
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
   * Frees all pages, and the addresses once nothing reaches them.
   *
   * @throws the first error, after everything was tried; a later call tries again
   */
  close(): void {
    runSteps(this.closing(), (step) => step.now());
  }

  /** {@link close} in steps. @param keep as for {@link givingBack} */
  *closing(keep = false): Steps<LongStep, void> {
    const { memory } = this.#platform;
    const errors: unknown[] = [];
    for (const extent of [...this.#extents.values()]) {
      try {
        yield* this.givingBack(extent, keep);
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
    // A lost process is not waited for if the memory is freed first: the file is never used again then.
    area.onLingerInList = (by) => void (this.#lingering += by);
    return area;
  }

  /** Locks the pages in place, and reads their physical addresses. */
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

/** The parts of a range that none of the others covers. */
function without(whole: Range<Va>, others: Iterable<Range<Va>>): Range<Va>[] {
  const rest: Range<Va>[] = [];
  let at: Va = whole.start;
  for (const { start, end } of [...others].sort((a, b) => a.start - b.start)) {
    if (start > at) rest.push(new Range(at, start - at));
    at = end as Va;
  }
  return at < whole.end ? [...rest, new Range(at, whole.end - at)] : rest;
}
