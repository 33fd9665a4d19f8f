/** A mapping whose bytes are lent to code that is not the library's: device models. */
import { undoAll } from '../errors.js';
import type { MemoryPort } from '../platform/ports.js';
import type { Range } from '../ranges.js';
import type { Va } from '../units.js';
import { giveMappingBack, HandedOut, retired } from './retired.js';

/** See the head of the file. Its view is made on first use: views of much memory cost garbage collections. */
export class LentMemory {
  readonly #port: MemoryPort;
  readonly #range: Range<Va>;
  readonly #handedOut = new HandedOut();
  #view: { readonly buffer: ArrayBuffer; readonly bytes: Uint8Array } | undefined;
  /** Has anybody else seen the view? */
  #lent = false;

  /** @param range a mapping that is this object's from here on, no longer than one view can be */
  constructor(port: MemoryPort, range: Range<Va>) {
    this.#port = port;
    this.#range = range;
  }

  /** All bytes, for the library's own use. */
  bytes(): Uint8Array {
    if (this.#view !== undefined && this.#view.buffer.byteLength === 0) {
      // Somebody moved it away, and reaches the memory for good.
      this.#handedOut.escape();
      this.#view = undefined;
    }
    if (this.#view === undefined) {
      const buffer = this.#port.view(this.#range.start, this.#range.length);
      this.#view = { buffer, bytes: new Uint8Array(buffer) };
      this.#lent = false;
    }
    return this.#view.bytes;
  }

  /** All bytes, for others. They are empty after {@link close}. */
  lend(): Uint8Array {
    const bytes = this.bytes();
    this.#lent = true;
    return bytes;
  }

  /**
   * Empties the view and gives the mapping back; what still reaches the memory neither faults nor meets another owner.
   *
   * @throws DmaError EBUSY when the addresses of too much memory wait for views to be collected; it is as it was then,
   *   but for the view
   */
  close(): void {
    this.#empty();
    giveMappingBack(this.#port, this.#range, this.#handedOut);
  }

  /** As {@link close}, for an owner that is gone: what can not be given back now is tried again later. */
  abandon(): void {
    this.#empty();
    const { start, length } = this.#range;
    const failed = undoAll([() => giveMappingBack(this.#port, this.#range, this.#handedOut)]);
    if (failed.length > 0) retired.add(start, length, this.#handedOut, () => this.#port.unmap(start, length));
  }

  #empty(): void {
    const view = this.#view;
    this.#view = undefined;
    if (view === undefined) return;
    if (view.buffer.byteLength === 0) this.#handedOut.escape();
    else {
      this.#port.detach(view.buffer);
      if (this.#lent) this.#handedOut.emptied(view.buffer);
    }
  }
}
