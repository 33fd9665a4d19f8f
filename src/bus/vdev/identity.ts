/**
 * No IOMMU at all: a device emulated in this process uses virtual addresses as they are, and reaches all registered memory
 * whether it is mapped or not. Mapping only keeps the books. For measuring the library itself, and for trusted models.
 */
import type { AddressSpace, Constraints, Segment } from '../../dma/address-space.js';
import { Range } from '../../ranges.js';
import type { Iova, Va } from '../../units.js';
import type { Translator } from './emulated.js';

/** The address space of a device that uses VAs. */
export class IdentitySpace implements AddressSpace, Translator {
  readonly kind = 'identity';
  readonly constraints: Constraints;

  /** @param granule bytes, a power of two; mappings are multiples of it */
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
    // There is nothing behind it.
  }
}
