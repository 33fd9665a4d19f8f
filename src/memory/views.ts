/** Views of raw memory that die with it: all that were handed out are detached before the memory goes away. */
import { invalid } from '../errors.js';
import type { MemoryPort } from '../platform/ports.js';
import { show } from '../show.js';
import { hex, isAddress, type Va } from '../units.js';

/** Checks a part of `length` bytes of memory. @throws DmaError EINVAL when it is not inside */
export function checkPart(offset: number, length: number, whole: number, operation: string): void {
  if (!isAddress(offset) || !isAddress(length) || offset + length > whole)
    throw invalid(operation, `${show(length)} bytes at offset ${show(offset)} are not inside ${hex(whole)} bytes`);
}

/** Makes the views of one mapping, and detaches them. */
export class Views {
  readonly #port: MemoryPort;
  readonly #va: Va;
  readonly #length: number;
  /** By where they begin. One, unless the memory is longer than one ArrayBuffer can be. */
  readonly #windows = new Map<number, ArrayBuffer>();
  /** Those of parts that are longer than half a window. */
  readonly #parts: ArrayBuffer[] = [];

  constructor(port: MemoryPort, va: Va, length: number) {
    this.#port = port;
    this.#va = va;
    this.#length = length;
  }

  /** The bytes [offset, offset + length); cheap after the first call. */
  bytes(offset: number, length: number): Uint8Array {
    if (length === 0) return new Uint8Array(0);
    const { maxView } = this.#port;
    // Windows overlap by half, so that whatever is not longer than that is inside of one.
    const half = this.#length <= maxView ? this.#length : maxView / 2;
    if (length > half) {
      const part = this.#view(offset, length);
      this.#parts.push(part);
      return new Uint8Array(part);
    }
    const start = Math.floor(offset / half) * half;
    let window = this.#windows.get(start);
    if (window === undefined) {
      window = this.#view(start, Math.min(maxView, this.#length - start));
      this.#windows.set(start, window);
    }
    return new Uint8Array(window, offset - start, length);
  }

  /** Makes every view that was handed out empty. New ones can be made afterwards. */
  detach(): void {
    for (const [start, window] of this.#windows) {
      this.#port.detach(window);
      this.#windows.delete(start);
    }
    for (let part = this.#parts.at(-1); part !== undefined; part = this.#parts.at(-1)) {
      this.#port.detach(part);
      this.#parts.pop();
    }
  }

  #view(offset: number, length: number): ArrayBuffer {
    return this.#port.view((this.#va + offset) as Va, length);
  }
}
