/** Memory of a driver's own that its device reaches: queues, lists and pages of its commands. */
import type { Device, ProbeContext } from '../bus/model.js';
import type { Mapping } from '../dma/mapping.js';
import { throwFirst, undoAll } from '../errors.js';
import type { ExternalMemory } from '../memory/external.js';
import { alignUp, type Va } from '../units.js';

/** A part of memory that the device reaches in one piece. */
export interface DmaPart {
  readonly bytes: Uint8Array;
  /** The address of the first byte for the device. */
  readonly iova: number;
}

/** Memory for another thread. Plain data. */
export interface SharedPart {
  readonly va: number;
  readonly length: number;
  readonly iova: number;
}

/** Memory in one piece, for this process and for the device. Disposing it unmaps and frees it. */
export class DmaMemory implements Disposable {
  readonly #memory: ExternalMemory;
  readonly #mapping: Mapping;

  /**
   * @param length bytes
   * @param pageSize the device's: the memory begins on a page of it, for the device too
   */
  constructor(device: Device, { external }: ProbeContext, length: number, pageSize: number, label: string) {
    const bytes = alignUp(length, pageSize);
    const align = pageSize > 4096 ? { align: pageSize } : {};
    this.#memory = external.allocate(bytes, { label: `${label} of ${device.name}`, ...align });
    try {
      this.#mapping = device.dmaMap(this.#memory, pageSize > 4096 ? { iovaAlign: pageSize } : {});
    } catch (error) {
      this.#memory.unregister();
      throw error;
    }
  }

  /** Where it begins for the device. */
  get iova(): number {
    return this.#mapping.iova;
  }

  /** A part, for another thread. */
  shared(offset: number, length: number): SharedPart {
    return { va: this.#memory.va + offset, length, iova: this.#mapping.iova + offset };
  }

  /** The memory itself, for another process. */
  get external(): ExternalMemory {
    return this.#memory;
  }

  /** The address of its first byte. */
  get va(): Va {
    return this.#memory.va;
  }

  /** Keeps it from being freed. @param reason for the error */
  pin(reason: string): Disposable {
    return this.#memory.pin(reason);
  }

  /** The part of `length` bytes at `offset`. */
  part(offset: number, length: number): DmaPart {
    return { bytes: this.#memory.bytes(offset, length), iova: this.#mapping.iova + offset };
  }

  /** The first `length` bytes of it, as memory for a call. */
  range(length: number): { readonly va: Va; readonly length: number } {
    return { va: this.#memory.va, length };
  }

  [Symbol.dispose](): void {
    const errors = undoAll([() => this.#mapping[Symbol.dispose](), () => this.#memory[Symbol.dispose]()]);
    throwFirst(errors, 'dmaUnmap');
  }
}
