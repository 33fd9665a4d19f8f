/** How a queue tells the controller of its tail or head: by a register, or by memory that the controller looks at. */
import { needsDoorbell } from '../../nvme/registers.js';
import type { RegisterStores } from '../../platform/registers/registers.js';

/** Memory that stands for the doorbells (Doorbell Buffer Config; NVMe 1.4, sections 5.7 and 7.13). */
export interface ShadowDoorbells {
  /** One value a doorbell, as this side last set it. */
  readonly values: Uint32Array;
  /** The value that the controller wants to hear of by the register, for each doorbell. */
  readonly events: Uint32Array;
}

/** One doorbell. */
export class Doorbell {
  readonly #registers: RegisterStores;
  readonly #offset: number;
  #shadow: ShadowDoorbells | undefined;
  #index = 0;
  #last = 0;

  /** @param offset of its register, bytes */
  constructor(registers: RegisterStores, offset: number) {
    this.#registers = registers;
    this.#offset = offset;
  }

  /** Uses memory from now on. @param index of the doorbell in it */
  useShadow(shadow: ShadowDoorbells | undefined, index: number): void {
    this.#shadow = shadow;
    this.#index = index;
    this.#last = 0;
  }

  /** Goes on with the value that another thread wrote last. */
  load(): void {
    this.#last = this.#shadow === undefined ? 0 : Atomics.load(this.#shadow.values, this.#index);
  }

  /**
   * Tells the controller. What was stored before is seen by it first: stores leave the processor in program order on x86, and
   * JavaScript engines keep that order.
   */
  write(value: number): void {
    const shadow = this.#shadow;
    if (shadow !== undefined) {
      const old = this.#last;
      this.#last = value;
      // A full barrier: the controller stores its index before it looks at the value, and this side the other way round.
      Atomics.store(shadow.values, this.#index, value);
      if (!needsDoorbell(Atomics.load(shadow.events, this.#index), value, old)) return;
    }
    this.#registers.write32(this.#offset, value);
  }
}
