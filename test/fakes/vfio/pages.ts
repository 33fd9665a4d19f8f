/** For tests: what an IOMMU of the fake kernel has mapped, and the memory behind it. */
import type { DmaAccess } from '../../../src/dma/address-space.js';
import type { Platform } from '../../../src/platform/ports.js';
import { RangeMap } from '../../../src/range-map.js';
import { alignDown, alignUp, type Va } from '../../../src/units.js';
import { refuse } from './argument.js';

/** Memory that is pinned: of this process, or of a file. Shared between the address spaces that it was copied to. */
export interface PinnedPages {
  readonly va: Va | undefined;
  /** A descriptor of the fake kernel's own. */
  readonly fd: number | undefined;
  /** bytes into the file */
  readonly offset: number;
  readonly length: number;
  readonly writable: boolean;
  /** how many mappings there are of it */
  users: number;
}

/** One mapping. */
export interface FakeMapping {
  readonly iova: number;
  readonly length: number;
  readonly access: DmaAccess;
  readonly pages: PinnedPages;
  /** bytes into `pages` */
  readonly offset: number;
}

/** The memory of the process, as the kernel's page pinning sees it. */
export class FakeMemory {
  /** bytes that are pinned */
  pinned = 0;
  readonly #platform: Platform;
  /** bytes that may be locked */
  limit = Infinity;
  /** Is there memory at the addresses that are mapped? When not, nothing is looked at. */
  readonly isReal: boolean;

  constructor(platform: Platform, isReal: boolean) {
    this.#platform = platform;
    this.isReal = isReal;
  }

  /** EFAULT, ENOMEM */
  pinVa(va: Va, length: number, writable: boolean): PinnedPages {
    this.#charge(length);
    if (this.isReal) {
      const { pageSize } = this.#platform.memory;
      const start = alignDown(va, pageSize);
      const there = this.#platform.memory.protection(start as Va, alignUp(va + length, pageSize) - start);
      if (there === 'none' || (writable && there === 'read')) throw refuse('EFAULT', 'no such memory');
    }
    this.pinned += length;
    return { va, fd: undefined, offset: 0, length, writable, users: 0 };
  }

  /** EBADF, EINVAL, ENOMEM */
  pinFile(fd: number, offset: number, length: number, writable: boolean): PinnedPages {
    const { files } = this.#platform;
    const { kind, size } = files.status(fd);
    if (kind !== 'file' || files.hasName(fd) || offset + length > size)
      throw refuse('EINVAL', 'no memfd, or too short');
    this.#charge(length);
    const own = files.duplicate(fd);
    this.pinned += length;
    return { va: undefined, fd: own, offset, length, writable, users: 0 };
  }

  unpin(pages: PinnedPages): void {
    this.pinned -= pages.length;
    if (pages.fd !== undefined) this.#platform.files.close(pages.fd);
  }

  /** Gives the bytes at [offset, offset + length) of pinned pages to `use`, for as long as that runs. */
  bytes<T>(pages: PinnedPages, offset: number, length: number, use: (bytes: Uint8Array) => T): T {
    const { memory } = this.#platform;
    if (pages.va !== undefined) {
      const buffer = memory.view((pages.va + offset) as Va, length);
      try {
        return use(new Uint8Array(buffer));
      } finally {
        memory.detach(buffer);
      }
    }
    const at = pages.offset + offset;
    const start = alignDown(at, memory.pageSize);
    const span = alignUp(at + length, memory.pageSize) - start;
    const va = memory.map({ fd: pages.fd, offset: start, length: span });
    const buffer = memory.view(va, span);
    try {
      return use(new Uint8Array(buffer, at - start, length));
    } finally {
      memory.detach(buffer);
      memory.unmap(va, span);
    }
  }

  #charge(length: number): void {
    if (this.pinned + length > this.limit) throw refuse('ENOMEM', 'RLIMIT_MEMLOCK');
  }
}

/** A page table. */
export class FakePageTable {
  readonly mappings = new RangeMap<FakeMapping>();
  /** Pages of 4 KiB that devices have written, by number. */
  readonly dirty = new Set<number>();
  readonly #memory: FakeMemory;

  constructor(memory: FakeMemory) {
    this.#memory = memory;
  }

  insert(mapping: FakeMapping): void {
    this.mappings.insert(mapping.iova, mapping.length, mapping);
    mapping.pages.users++;
  }

  remove(mapping: FakeMapping): void {
    this.mappings.delete(mapping.iova);
    if (--mapping.pages.users === 0) this.#memory.unpin(mapping.pages);
  }

  /** Removes everything. @returns the bytes */
  clear(): number {
    let bytes = 0;
    for (const mapping of [...this.mappings.values()]) {
      bytes += mapping.length;
      this.remove(mapping);
    }
    return bytes;
  }

  /** The mappings that have an address in [start, end). */
  inside(start: number, end: number): FakeMapping[] {
    const found: FakeMapping[] = [];
    for (let at = start; ;) {
      const next = this.mappings.overlapping(at, end);
      if (next === undefined) return found;
      found.push(next);
      at = next.iova + next.length;
      if (at >= end) return found;
    }
  }
}
