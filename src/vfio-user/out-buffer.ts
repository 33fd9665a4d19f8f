/** The buffer in which one end of a connection writes the message that it will send next. */
import { MAX_MESSAGE } from './messages.js';

/** Messages up to this many bytes keep their view of the buffer. */
const SMALL = 256;

/**
 * A buffer that grows to the largest message needed. It reuses its views for small messages, which are the most
 * frequent.
 */
export class OutBuffer {
  /** Write here. {@link reserve} can replace it. */
  bytes = new Uint8Array(4096);
  readonly #small: (Uint8Array | undefined)[] = [];

  /** Makes room for a message of `size` bytes; earlier content may be lost. Returns {@link bytes}. */
  reserve(size: number): Uint8Array {
    if (this.bytes.length < size) {
      this.bytes = new Uint8Array(Math.max(size, Math.min(this.bytes.length * 2, MAX_MESSAGE)));
      this.#small.length = 0;
    }
    return this.bytes;
  }

  /** The first `size` bytes: the message to send. */
  message(size: number): Uint8Array {
    if (size > SMALL) return this.bytes.subarray(0, size);
    return (this.#small[size] ??= this.bytes.subarray(0, size));
  }
}
