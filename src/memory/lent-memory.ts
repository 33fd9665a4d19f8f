/** Memory that is lent to code outside the library: models of devices. */
import { undoAll } from '../errors.js';
import type { MemoryPort } from '../platform/ports.js';
import type { Range } from '../ranges.js';
import type { Va } from '../units.js';
import { giveMappingBack, HandedOut, retired } from './retired.js';

/**
 * A mapping that is lent as one view. The view is made on first use: views of large memory cost garbage collections.
 */
export class LentMemory {
  readonly #port: MemoryPort;
  readonly #range: Range<Va>;
  readonly #handedOut = new HandedOut();
  #view: { readonly buffer: ArrayBuffer; readonly bytes: Uint8Array } | undefined;
  /** Was the view lent? */
  #lent = false;

  /** @param range a mapping, which this object owns from now on; at most as long as one view can be */
  constructor(port: MemoryPort, range: Range<Va>) {
    this.#port = port;
    this.#range = range;
  }

  /** All bytes, for use inside the library. */
  bytes(): Uint8Array {
    if (this.#view !== undefined && this.#view.buffer.byteLength === 0) {
      // Somebody transferred it, and can reach the memory for ever.
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
   * Detaches the view and unmaps the memory. Work that still runs on the view neither faults nor reaches memory of
   * another owner.
   *
   * @throws DmaError EBUSY if too many addresses wait for views to be collected; the memory stays mapped then
   */
  close(): void {
    this.#empty();
    giveMappingBack(this.#port, this.#range, this.#handedOut);
  }

  /** As {@link close}, for an owner that no longer exists: what can not be freed now is tried again later. */
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
