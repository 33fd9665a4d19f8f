/**
 * No IOMMU: a device emulated in this process uses virtual addresses directly, and can access all registered memory,
 * even if it is not mapped. Mapping only records the mapping. Used to measure the library itself, and for trusted
 * models.
 */
import type { AddressSpace, Constraints, Segment } from '../../dma/address-space.js';
import { Range } from '../../ranges.js';
import type { Iova, Va } from '../../units.js';
import type { Translator } from './emulated.js';

/** The address space of a device that uses VAs as IOVAs. */
export class IdentitySpace implements AddressSpace, Translator {
  readonly kind = 'identity';
  readonly constraints: Constraints;

  /** @param granule in bytes, a power of two; mappings are multiples of it */
  constructor(granule = 4096) {
    const windows = [new Range(0 as Iova, 2 ** 53 - 1)];
    this.constraints = { granule, windows, entryLimit: Infinity, iova: 'identity', partialUnmap: true, pins: false };
  }

  map(): undefined {
    return undefined;
  }

  unmap(segment: Segment): number {
    return segment.length;
  }

  translate(iova: number, length: number): { va: Va; length: number } {
    return { va: iova as Va, length };
  }

  close(): void {
    // There is nothing to close.
  }
}
