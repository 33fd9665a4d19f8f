/** The address space of devices in a VFIO container of type 1. */
import type { DomainBackend, DomainConstraints, Segment } from '../dma/backend.js';
import type { Type1Info, Type1Space } from './type1.js';

/** See the head of the file. The space is the devices': closing this unmaps what is left and keeps it. */
export class VfioType1Backend implements DomainBackend {
  readonly kind = 'vfio-type1';
  readonly #space: Type1Space;
  /** What {@link constraints} was made from. */
  #info: Type1Info;
  #constraints: DomainConstraints;

  constructor(space: Type1Space) {
    this.#space = space;
    this.#info = space.info;
    this.#constraints = constraintsOf(space.info);
  }

  get constraints(): DomainConstraints {
    const { info } = this.#space;
    if (info !== this.#info) {
      this.#info = info;
      this.#constraints = constraintsOf(info);
    }
    return this.#constraints;
  }

  map({ va, iova, length, access }: Segment): undefined {
    this.#space.map(va, iova, length, access);
  }

  unmap({ iova, length }: Segment): number {
    return this.#space.unmap(iova, length);
  }

  async mapAsync({ va, iova, length, access }: Segment): Promise<undefined> {
    await this.#space.mapAsync(va, iova, length, access);
  }

  async unmapAsync({ iova, length }: Segment): Promise<number> {
    return this.#space.unmapAsync(iova, length);
  }

  close(): void {
    this.#space.unmapAll();
  }
}

function constraintsOf({ pageSizes, windows, entryLimit }: Type1Info): DomainConstraints {
  const [granule] = pageSizes;
  // Version 2 unmaps what one call mapped, as a whole.
  return { granule, windows, entryLimit, iova: 'free', partialUnmap: false, pins: true };
}
