/** For tests: the type1 IOMMU driver, with the rules of drivers/vfio/vfio_iommu_type1.c (Linux 7.3). */
import * as vfio from '../../../src/platform/uapi/vfio.js';
import type { Va } from '../../../src/units.js';
import type { Argument } from './argument.js';
import { refuse } from './argument.js';
import { FakePageTable, type FakeMemory } from './pages.js';

const { IOCTL, VFIO_IOMMU_TYPE1_INFO: INFO, VFIO_IOMMU_TYPE1_DMA_MAP: MAP, VFIO_IOMMU_TYPE1_DMA_UNMAP: UNMAP } = vfio;

/** IOVAs, both ends included. */
export interface IovaSpan {
  readonly start: number;
  readonly last: number;
}

/** What a group brings to its address space. */
export interface FakeIommu {
  /** bits of an IOVA */
  readonly width: number;
  /** page sizes, or-ed */
  readonly pageSizes: number;
  /** IOVAs that are not to be used, ascending */
  readonly reserved: readonly IovaSpan[];
}

/** The IOVAs that all of `iommus` can use. */
export function usableSpans(iommus: readonly FakeIommu[]): IovaSpan[] {
  const last = 2 ** Math.min(...iommus.map(({ width }) => width)) - 1;
  const reserved = iommus.flatMap((iommu) => iommu.reserved).sort((a, b) => a.start - b.start);
  const spans: IovaSpan[] = [];
  let start = 0;
  for (const hole of reserved) {
    if (hole.start > last) break;
    if (hole.start > start) spans.push({ start, last: hole.start - 1 });
    start = Math.max(start, hole.last + 1);
  }
  if (start <= last) spans.push({ start, last });
  return spans;
}

/** See the head of the file. One container's. */
export class FakeType1 {
  readonly table: FakePageTable;
  readonly #memory: FakeMemory;
  #available: number;
  #iommus: FakeIommu[] = [];
  #tracking = false;

  constructor(memory: FakeMemory, entryLimit: number) {
    this.#memory = memory;
    this.table = new FakePageTable(memory);
    this.#available = entryLimit;
  }

  /** EINVAL when the IOMMU does not reach what is mapped. */
  attach(iommu: FakeIommu): void {
    const iommus = [...this.#iommus, iommu];
    const spans = usableSpans(iommus);
    for (const { iova, length } of this.table.mappings.values())
      if (!isInside(spans, iova, iova + length - 1)) throw refuse('EINVAL', 'it does not reach what is mapped');
    this.#iommus = iommus;
  }

  detach(iommu: FakeIommu): void {
    this.#iommus.splice(this.#iommus.indexOf(iommu), 1);
  }

  /** The last group has left. */
  release(): void {
    this.table.clear();
  }

  checkExtension(extension: number): number {
    return [vfio.VFIO_TYPE1_IOMMU, vfio.VFIO_TYPE1v2_IOMMU, vfio.VFIO_UNMAP_ALL].includes(extension) ? 1 : 0;
  }

  ioctl(request: number, argument: Argument): number {
    switch (request) {
      case IOCTL.VFIO_IOMMU_GET_INFO:
        return this.#getInfo(argument);
      case IOCTL.VFIO_IOMMU_MAP_DMA:
        return this.#map(argument);
      case IOCTL.VFIO_IOMMU_UNMAP_DMA:
        return this.#unmap(argument);
      case IOCTL.VFIO_IOMMU_DIRTY_PAGES:
        return this.#dirtyPages(argument);
      default:
        throw refuse('ENOTTY');
    }
  }

  get #pageSizes(): number {
    return this.#iommus.reduce((sizes, iommu) => sizes & iommu.pageSizes, -1) >>> 0;
  }

  get #pageSize(): number {
    return lowestBit(this.#pageSizes);
  }

  #getInfo(argument: Argument): number {
    const argsz = argument.argsz(INFO.iova_pgsizes + 8);
    const {
      TYPE1_CAP,
      VFIO_INFO_CAP_HEADER: HEADER,
      VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE: RANGES,
      VFIO_IOMMU_TYPE1_INFO_CAP_MIGRATION: MIGRATION,
      VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL: AVAILABLE,
      VFIO_IOVA_RANGE: RANGE,
    } = vfio;
    const spans = usableSpans(this.#iommus);
    const sizes = [MIGRATION.sizeof, aligned8(AVAILABLE.sizeof), RANGES.sizeof + spans.length * RANGE.sizeof];
    const needed = INFO.sizeof + sizes.reduce((sum, size) => sum + size, 0);
    argument.set32(INFO.flags, vfio.VFIO_IOMMU_INFO_PGSIZES | vfio.VFIO_IOMMU_INFO_CAPS);
    argument.set64(INFO.iova_pgsizes, this.#pageSizes);
    if (argsz < needed) {
      argument.set32(INFO.argsz, needed);
      if (argsz >= INFO.sizeof) argument.set32(INFO.cap_offset, 0);
      return 0;
    }
    argument.set32(INFO.cap_offset, INFO.sizeof);
    let at: number = INFO.sizeof;
    const header = (id: number, size: number, isLast = false): number => {
      const here = at;
      at += size;
      argument.set16(here + HEADER.id, id);
      argument.set16(here + HEADER.version, 1);
      argument.set32(here + HEADER.next, isLast ? 0 : at);
      return here;
    };
    const migration = header(TYPE1_CAP.VFIO_IOMMU_TYPE1_INFO_CAP_MIGRATION, sizes[0]);
    argument.set32(migration + MIGRATION.flags, 0);
    argument.set64(migration + MIGRATION.pgsize_bitmap, this.#pageSize);
    argument.set64(migration + MIGRATION.max_dirty_bitmap_size, 256 * 1024 * 1024);
    const available = header(TYPE1_CAP.VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL, sizes[1]);
    argument.set32(available + AVAILABLE.avail, this.#available);
    const ranges = header(TYPE1_CAP.VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE, sizes[2], true);
    argument.set32(ranges + RANGES.nr_iovas, spans.length);
    spans.forEach((span, i) => {
      const range = ranges + RANGES.iova_ranges + i * RANGE.sizeof;
      argument.set64(range + RANGE.start, span.start);
      argument.set64(range + RANGE.end, span.last);
    });
    return 0;
  }

  #map(argument: Argument): number {
    argument.argsz(MAP.sizeof);
    const flags = argument.u32(MAP.flags);
    const READ = vfio.VFIO_DMA_MAP_FLAG_READ;
    const WRITE = vfio.VFIO_DMA_MAP_FLAG_WRITE;
    if ((flags & ~(READ | WRITE | vfio.VFIO_DMA_MAP_FLAG_VADDR)) !== 0) throw refuse('EINVAL', 'flags');
    const size64 = argument.u64(MAP.size);
    if (size64 === 0n) throw refuse('EINVAL', 'size 0');
    for (const start of [argument.u64(MAP.iova), argument.u64(MAP.vaddr)])
      if (start + size64 > 2n ** 64n) throw refuse('EOVERFLOW');
    if ((flags & (READ | WRITE)) === 0) throw refuse('EINVAL', 'no access');
    const [iova, va, size] = [argument.u64(MAP.iova), argument.u64(MAP.vaddr), size64].map(Number);
    for (const number of [iova, va, size]) if (number % this.#pageSize !== 0) throw refuse('EINVAL', 'misaligned');
    if (this.table.mappings.overlapping(iova, iova + size) !== undefined) throw refuse('EEXIST');
    if (this.#available === 0) throw refuse('ENOSPC');
    if (!isInside(usableSpans(this.#iommus), iova, iova + size - 1)) throw refuse('EINVAL', 'outside of the windows');
    const writes = (flags & WRITE) !== 0;
    const pages = this.#memory.pinVa(va as Va, size, writes);
    this.#available--;
    const access = writes ? ((flags & READ) !== 0 ? 'read-write' : 'write') : 'read';
    this.table.insert({ iova, length: size, access, pages, offset: 0 });
    return 0;
  }

  #unmap(argument: Argument): number {
    argument.argsz(UNMAP.sizeof);
    const flags = argument.u32(UNMAP.flags);
    if ((flags & ~vfio.VFIO_DMA_UNMAP_FLAG_ALL) !== 0) throw refuse('EINVAL', 'flags');
    const [start, size] = [argument.u64(UNMAP.iova), argument.u64(UNMAP.size)];
    const pageSize = BigInt(this.#pageSize);
    if (start % pageSize !== 0n) throw refuse('EINVAL', 'misaligned');
    if (flags !== 0) {
      if (start !== 0n || size !== 0n) throw refuse('EINVAL', 'all is from 0, with size 0');
    } else {
      if (size === 0n || size % pageSize !== 0n) throw refuse('EINVAL', 'size');
      if (start + size > 2n ** 64n) throw refuse('EOVERFLOW');
    }
    const iova = Number(start);
    const end = flags !== 0 ? Infinity : Number(start + size);
    const found = this.table.inside(iova, end);
    if (this.#cuts(iova, end)) throw refuse('EINVAL', 'it cuts a mapping');
    let unmapped = 0;
    for (const mapping of found) {
      unmapped += mapping.length;
      this.table.remove(mapping);
      this.#available++;
    }
    argument.set64(UNMAP.size, unmapped);
    return 0;
  }

  /** Behind an IOMMU all that is mapped counts as dirty. */
  #dirtyPages(argument: Argument): number {
    const {
      VFIO_IOMMU_TYPE1_DIRTY_BITMAP: HEAD,
      VFIO_IOMMU_TYPE1_DIRTY_BITMAP_GET: GET,
      VFIO_BITMAP: BITS,
      VFIO_IOMMU_DIRTY_PAGES_FLAG_START: START,
      VFIO_IOMMU_DIRTY_PAGES_FLAG_STOP: STOP,
      VFIO_IOMMU_DIRTY_PAGES_FLAG_GET_BITMAP: GET_BITMAP,
    } = vfio;
    const argsz = argument.argsz(HEAD.sizeof);
    const flags = argument.u32(HEAD.flags);
    if (flags === START || flags === STOP) {
      this.#tracking = flags === START;
      return 0;
    }
    if (flags !== GET_BITMAP || argsz < HEAD.sizeof + GET.sizeof) throw refuse('EINVAL', 'flags');
    const [iova, size] = [Number(argument.u64(HEAD.data + GET.iova)), Number(argument.u64(HEAD.data + GET.size))];
    const bits = HEAD.data + GET.bitmap;
    const [pageSize, bytes] = [Number(argument.u64(bits + BITS.pgsize)), Number(argument.u64(bits + BITS.size))];
    if (size === 0 || bytes < aligned8(Math.ceil(size / pageSize / 8))) throw refuse('EINVAL', 'size of the bitmap');
    if (pageSize !== this.#pageSize || iova % pageSize !== 0 || size % pageSize !== 0)
      throw refuse('EINVAL', 'misaligned');
    if (!this.#tracking || this.#cuts(iova, iova + size)) throw refuse('EINVAL', 'not tracking, or it cuts a mapping');
    this.#memory.bytes(bitmapAt(argument.u64(bits + BITS.data), bytes), 0, bytes, (bitmap) => {
      for (const mapping of this.table.inside(iova, iova + size))
        for (let at = mapping.iova - iova; at < mapping.iova - iova + mapping.length; at += pageSize) {
          const page = at / pageSize;
          bitmap[Math.floor(page / 8)] |= 1 << (page % 8);
        }
    });
    return 0;
  }

  #cuts(start: number, end: number): boolean {
    const first = this.table.mappings.at(start);
    const last = end === Infinity ? undefined : this.table.mappings.at(end - 1);
    return (first !== undefined && first.iova !== start) || (last !== undefined && last.iova + last.length !== end);
  }
}

/** Memory at an address that a program gave, as pages, so that it can be reached. */
export function bitmapAt(address: bigint, length: number): import('./pages.js').PinnedPages {
  return { va: Number(address) as Va, fd: undefined, offset: 0, length, writable: true, users: 1 };
}

export function isInside(spans: readonly IovaSpan[], start: number, last: number): boolean {
  return spans.some((span) => start >= span.start && last <= span.last);
}

export function lowestBit(bits: number): number {
  return (bits & -bits) >>> 0;
}

function aligned8(bytes: number): number {
  return Math.ceil(bytes / 8) * 8;
}
