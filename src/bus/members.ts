/** The devices in one domain: what all of them can reach, and one that calls can be made through. Every operation is O(1). */
import { AnyOf } from '../any-of.js';
import type { BoundDevice } from './device.js';

/** See the head of the file. */
export class Members {
  /** How many bits of an IOVA each can emit. */
  readonly #bits = new Map<BoundDevice, number>();
  /** How many devices there are of so many bits: of a few kinds only, however many devices. */
  readonly #widths = new Map<number, number>();
  #least = Infinity;
  /** Those that are not lost. */
  readonly #able = new AnyOf<BoundDevice>();

  get size(): number {
    return this.#bits.size;
  }

  /** IOVA bits that every member can emit; Infinity without members. Asked for by each mapping. */
  get bits(): number {
    return this.#least;
  }

  add(device: BoundDevice, bits: number): void {
    this.delete(device);
    this.#bits.set(device, bits);
    this.#widths.set(bits, (this.#widths.get(bits) ?? 0) + 1);
    this.#least = Math.min(this.#least, bits);
    this.#able.add(device);
  }

  delete(device: BoundDevice): void {
    const bits = this.#bits.get(device);
    if (bits === undefined) return;
    this.#bits.delete(device);
    this.#able.delete(device);
    const others = (this.#widths.get(bits) ?? 1) - 1;
    if (others > 0) this.#widths.set(bits, others);
    else this.#widths.delete(bits);
    this.#least = Math.min(...this.#widths.keys());
  }

  /** A member is gone, so that calls are made through others. @returns was it one, and is none left that is not? */
  lose(device: BoundDevice): boolean {
    if (!this.#bits.has(device)) return false;
    this.#able.delete(device);
    return this.#able.size === 0;
  }

  /** A member that is not lost; the same one as long as it can be. */
  get able(): BoundDevice | undefined {
    return this.#able.any;
  }
}
