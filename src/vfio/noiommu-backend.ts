/**
 * The address space of devices without an IOMMU: all memory of the machine, by physical address. There is nothing to map;
 * the books are kept, so that memory does not go while a device is told to use it, and only memory whose physical addresses
 * are known (its area has an IOVA table) can be mapped.
 */
import type { DomainBackend, DomainConstraints, Segment } from '../dma/backend.js';
import { Range } from '../ranges.js';
import { ADDRESS_LIMIT, type Iova } from '../units.js';

/** See the head of the file. */
export class NoIommuBackend implements DomainBackend {
  readonly kind = 'vfio-noiommu';
  readonly constraints: DomainConstraints;

  /** @param granule bytes a page of memory has */
  constructor(granule: number) {
    const windows = [new Range(0 as Iova, ADDRESS_LIMIT - 1)];
    this.constraints = { granule, windows, entryLimit: Infinity, iova: 'table', partialUnmap: true, pins: false };
  }

  map(): undefined {
    return undefined;
  }

  unmap({ length }: Segment): number {
    return length;
  }

  async mapAsync(): Promise<undefined> {
    return undefined;
  }

  async unmapAsync({ length }: Segment): Promise<number> {
    return length;
  }

  close(): void {
    // There is nothing behind it.
  }
}
