/**
 * The address space of a device behind a vfio-user connection: a mapping is a DMA_MAP message with the memory's
 * descriptor.
 */
import type { AddressSpace, Constraints, Segment } from '../dma/address-space.js';
import { Range } from '../ranges.js';
import { ADDRESS_LIMIT, KiB, type Iova } from '../units.js';
import type { VfioUserClient } from './client.js';

/** The address space of one client. Closing it leaves the connection open: the connection belongs to the device. */
export class VfioUserSpace implements AddressSpace {
  readonly kind = 'vfio-user';
  readonly constraints: Constraints;
  readonly #client: VfioUserClient;

  constructor(client: VfioUserClient) {
    this.#client = client;
    const { pgsizes, maxDmaMaps } = client.capabilities;
    this.constraints = {
      granule: Math.max(4 * KiB, lowestBit(pgsizes)),
      windows: [new Range(0 as Iova, ADDRESS_LIMIT - 1)],
      entryLimit: maxDmaMaps,
      iova: 'free',
      // A DMA_UNMAP must name exactly one DMA_MAP.
      partialUnmap: false,
      pins: false,
    };
  }

  map(segment: Segment): undefined {
    this.#client.dmaMap(segment);
  }

  unmap({ iova, length }: Segment): number {
    return this.#client.dmaUnmap(iova, length);
  }

  async mapAsync(segment: Segment): Promise<undefined> {
    await this.#client.dmaMapAsync(segment);
  }

  async unmapAsync({ iova, length }: Segment): Promise<number> {
    return this.#client.dmaUnmapAsync(iova, length);
  }

  lingering(unneeded: AbortSignal): Promise<void> | undefined {
    return this.#client.lingering(unneeded);
  }

  close(): void {
    // Mappings are unmapped one by one before this; any that are left end with the connection.
  }
}

/** The smallest page size of a set that is given as a bit mask. */
function lowestBit(sizes: number): number {
  let size = 1;
  while (sizes % (size * 2) === 0) size *= 2;
  return size;
}
