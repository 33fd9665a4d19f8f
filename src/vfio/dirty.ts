/** Which pages devices have written: what the kernel's two ways of telling it have in common. */
import { invalid } from '../errors.js';
import { Range } from '../ranges.js';
import { alignUp, formatSize, type Iova } from '../units.js';

/** Pages of a range of IOVAs, and which of them are dirty. */
export class DirtyPages {
  readonly range: Range<Iova>;
  /** bytes of a page */
  readonly pageSize: number;
  /** One bit a page, the lowest of the first byte for the first; a multiple of 8 bytes long, as the kernel wants it. */
  readonly bitmap: Uint8Array;

  /** No page is dirty. EINVAL unless the range begins and ends on multiples of the page size. */
  constructor(range: Range<Iova>, pageSize: number) {
    if (!range.isAligned(pageSize))
      throw invalid('dirty pages', `the range is not aligned to ${formatSize(pageSize)}`, { range });
    this.range = range;
    this.pageSize = pageSize;
    const pages = range.length / pageSize;
    this.bitmap = new Uint8Array(new ArrayBuffer(alignUp(Math.ceil(pages / 8), 8)));
  }

  /** Is the page with this address dirty? False outside of the range. */
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

  /** The dirty pages as ranges, ascending, none next to another. */
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

/** Tells which pages devices have written since tracking began, or since it was last asked. */
export interface DirtyTracking {
  /** bytes of a page that is tracked */
  readonly pageSize: number;
  /** Idempotent. */
  start(): void;
  /** Idempotent. */
  stop(): void;
  /**
   * The dirty pages of `range`, which must not cut what one call mapped.
   *
   * @param options.keep leaves them dirty, so that the next call tells them again; ENOTSUP where the kernel can not
   * @throws DmaError EINVAL: misaligned, or tracking was not started, or a mapping is cut
   */
  read(range: Range<Iova>, options?: { readonly keep?: boolean }): DirtyPages;
}
