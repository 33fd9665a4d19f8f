/** The address space of devices in a VFIO container of type sPAPR v2. */
import type { DomainBackend, DomainConstraints, Segment } from '../dma/backend.js';
import type { SpaprSpace } from './spapr.js';

/** See the head of the file. The space is the devices': closing this unmaps what is left and keeps it. */
export class SpaprBackend implements DomainBackend {
  readonly kind = 'vfio-spapr';
  readonly constraints: DomainConstraints;
  readonly #space: SpaprSpace;

  constructor(space: SpaprSpace) {
    this.#space = space;
    const { range, pageSize } = space.window;
    // Any page could be unmapped, but the memory stays registered as a whole, and a part of it could not be mapped anew.
    this.constraints = {
      granule: pageSize,
      windows: [range],
      entryLimit: Infinity,
      iova: 'free',
      partialUnmap: false,
      pins: true,
    };
  }

  map({ va, iova, length, access }: Segment): undefined {
    this.#space.map(va, iova, length, access);
  }

  unmap({ va, iova, length }: Segment): number {
    return this.#space.unmap(va, iova, length);
  }

  async mapAsync({ va, iova, length, access }: Segment): Promise<undefined> {
    await this.#space.mapAsync(va, iova, length, access);
  }

  async unmapAsync({ va, iova, length }: Segment): Promise<number> {
    return this.#space.unmapAsync(va, iova, length);
  }

  close(): void {
    this.#space.unmapAll();
  }
}
