/** The address space of a device behind a vfio-user connection: mapping is sending DMA_MAP, with the memory's descriptor. */
import type { AddressSpace, Constraints, Segment } from '../dma/address-space.js';
import { Range } from '../ranges.js';
import { ADDRESS_LIMIT, KiB, type Iova } from '../units.js';
import type { VfioUserClient } from './client.js';

/** See the head of the file. Closing it leaves the connection open: that is the device's. */
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
      // A DMA_UNMAP has to name exactly one DMA_MAP.
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
    // What was mapped is unmapped one by one, and what is not goes with the connection.
  }
}

/** The smallest page size of an or-ed set. */
function lowestBit(sizes: number): number {
  let size = 1;
  while (sizes % (size * 2) === 0) size *= 2;
  return size;
}
