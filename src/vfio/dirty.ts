/** Pages that devices have written: the common part of the kernel's two interfaces. */
import { invalid } from '../errors.js';
import { Range } from '../ranges.js';
import { alignUp, formatSize, type Iova } from '../units.js';
import { STAYS } from '../stays.js';

/** The dirty pages in a range of IOVAs. */
export class DirtyPages {
  /** @internal */
  readonly stays = STAYS;
  readonly range: Range<Iova>;
  /** page size in bytes */
  readonly pageSize: number;
  /**
   * One bit per page, beginning with the lowest bit of the first byte; its length is a multiple of 8 bytes, as the
   * kernel requires.
   */
  readonly bitmap: Uint8Array;

  /** Begins with no dirty pages. EINVAL unless the range begins and ends at multiples of the page size. */
  constructor(range: Range<Iova>, pageSize: number) {
    if (!range.isAligned(pageSize))
      throw invalid('dirty pages', `the range is not aligned to ${formatSize(pageSize)}`, { range });
    this.range = range;
    this.pageSize = pageSize;
    const pages = range.length / pageSize;
    this.bitmap = new Uint8Array(new ArrayBuffer(alignUp(Math.ceil(pages / 8), 8)));
  }

  /** Is the page at this address dirty? False outside the range. */
  has(iova: number): boolean {
    if (!this.range.contains(iova)) return false;
    const page = Math.floor((iova - this.range.start) / this.pageSize);
    return ((this.bitmap[Math.floor(page / 8)] >> (page % 8)) & 1) === 1;
  }

  /** How many pages are dirty. */
  get count(): number {
    let count = 0;
    for (const range of this.ranges()) count += range.length / this.pageSize;
    return count;
  }

  /** The dirty pages as ranges, ascending; adjacent pages are merged. */
  *ranges(): Generator<Range<Iova>> {
    const { range, pageSize } = this;
    let start = -1;
    for (let at: number = range.start; at < range.end; at += pageSize) {
      const dirty = this.has(at);
      if (dirty && start < 0) start = at;
      if (!dirty && start >= 0) {
        yield Range.between(start as Iova, at);
        start = -1;
      }
    }
    if (start >= 0) yield Range.between(start as Iova, range.end);
  }
}

/** Reports the pages that devices have written since tracking started, or since the last read. */
export interface DirtyTracking {
  /** page size of the tracking in bytes */
  readonly pageSize: number;
  /** Idempotent. */
  start(): void;
  /** Idempotent. */
  stop(): void;
  /**
   * The dirty pages of `range`, which must not divide a mapping.
   *
   * @param options.keep leaves them dirty, so that the next call reports them again; ENOTSUP if the kernel can not do
   * this
   * @throws DmaError EINVAL if it is misaligned, tracking was not started, or it divides a mapping
   */
  read(range: Range<Iova>, options?: { readonly keep?: boolean }): DirtyPages;
}
