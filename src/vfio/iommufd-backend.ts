/** The address space of devices in an IOAS of iommufd. */
import type { DomainBackend, DomainConstraints, Segment } from '../dma/backend.js';
import type { IommufdSpace } from './iommufd.js';

/** See the head of the file. The space is the devices': closing this unmaps what is left and keeps it. */
export class IommufdBackend implements DomainBackend {
  readonly kind = 'iommufd';
  readonly #space: IommufdSpace;
  #constraints: DomainConstraints;

  constructor(space: IommufdSpace) {
    this.#space = space;
    this.#constraints = constraintsOf(space);
  }

  get constraints(): DomainConstraints {
    const { windows, granule } = this.#space;
    if (windows !== this.#constraints.windows || granule !== this.#constraints.granule)
      this.#constraints = constraintsOf(this.#space);
    return this.#constraints;
  }

  map(segment: Segment): undefined {
    this.#space.place(segment);
  }

  unmap(segment: Segment): number {
    return this.#space.remove(segment);
  }

  async mapAsync(segment: Segment): Promise<undefined> {
    await this.#space.placeAsync(segment);
  }

  async unmapAsync(segment: Segment): Promise<number> {
    return this.#space.removeAsync(segment);
  }

  close(): void {
    this.#space.unmapAll();
  }
}

function constraintsOf({ granule, windows }: IommufdSpace): DomainConstraints {
  // It has no limit of entries, and unmaps what one call mapped as a whole.
  return { granule, windows, entryLimit: Infinity, iova: 'free', partialUnmap: false, pins: true };
}
