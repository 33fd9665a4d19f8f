/**
 * An IOMMU in software, for devices that are emulated in this process. It has its own page table: a device can access
 * only what is mapped, and only with the access that was mapped.
 */
import { DmaError } from '../../errors.js';
import { grants, type DmaAccess, type AddressSpace, type Constraints, type Segment } from '../../dma/address-space.js';
import { RangeMap } from '../../range-map.js';
import { Range } from '../../ranges.js';
import type { Iova, Va } from '../../units.js';

/** Translates the accesses of a device: the device's side of a software IOMMU. */
export interface Translator {
  /**
   * @returns the address of the byte at `iova`, and how many of the `length` bytes follow it contiguously
   * @throws DmaError EFAULT if the first byte is not mapped; EACCES if it is mapped without `access`
   */
  translate(iova: number, length: number, access: 'read' | 'write'): { va: Va; length: number };
}

/** Settings of an emulated IOMMU. */
export interface EmulatedOptions {
  /** Bytes, a power of two. Default 4096. */
  readonly granule?: number;
  /** Default: everything below 2^48. */
  readonly windows?: readonly Range<Iova>[];
  /** Default: no limit. */
  readonly entryLimit?: number;
}

/** A software IOMMU's address space. */
export class EmulatedIommu implements AddressSpace, Translator {
  readonly kind = 'emulated';
  readonly constraints: Constraints;
  readonly #pages = new RangeMap<Segment>();

  constructor(options: EmulatedOptions = {}) {
    const { granule = 4096, windows = [new Range(0 as Iova, 2 ** 48)], entryLimit = Infinity } = options;
    this.constraints = { granule, windows, entryLimit, iova: 'free', partialUnmap: true, pins: false };
  }

  map(segment: Segment): undefined {
    const { va, iova, length, access, backing } = segment;
    const entry = { va, iova, length, access, backing };
    if (this.#pages.insert(iova, length, entry) === undefined) return;
    const range = new Range(iova, length);
    throw new DmaError({
      code: 'EEXIST',
      operation: 'emulated map',
      range,
      reason: 'part of the range is mapped already',
    });
  }

  unmap({ iova, length }: Segment): number {
    let unmapped = 0;
    for (let here = this.#overlapping(iova, length); here !== undefined; here = this.#overlapping(iova, length)) {
      this.#pages.delete(here.iova);
      const from = Math.max(here.iova, iova);
      const to = Math.min(here.iova + here.length, iova + length);
      unmapped += to - from;
      this.#keep(here, here.iova, from);
      this.#keep(here, to, here.iova + here.length);
    }
    return unmapped;
  }

  translate(iova: number, length: number, access: DmaAccess): { va: Va; length: number } {
    const here = this.#pages.at(iova);
    const refuse = (code: 'EFAULT' | 'EACCES', reason: string): DmaError =>
      new DmaError({ code, operation: 'device DMA', range: new Range(iova, length), reason });
    if (here === undefined) throw refuse('EFAULT', 'the address is not mapped for the device');
    if (!grants(here.access, access)) throw refuse('EACCES', `the mapping does not let the device ${access}`);
    const offset = iova - here.iova;
    return { va: (here.va + offset) as Va, length: Math.min(length, here.length - offset) };
  }

  close(): void {
    this.#pages.clear();
  }

  #overlapping(iova: number, length: number): Segment | undefined {
    return this.#pages.overlapping(iova, iova + length);
  }

  /** Keeps a part of an entry that was cut: its IOVAs from `from` up to `to`. */
  #keep(entry: Segment, from: number, to: number): void {
    if (from >= to) return;
    const va = (entry.va + (from - entry.iova)) as Va;
    this.#pages.insert(from, to - from, { ...entry, va, iova: from as Iova, length: to - from });
  }
}
