/** The pieces of the client's memory that a command is about, and how bytes get there and back. */
import type { DeviceDma } from '../model.js';

/** Stands for an address: bytes of a read that nobody wants (SGL bit bucket). */
export const BUCKET = -1;

/** A list of pieces, used again for one command after the other. */
export class Segments {
  count = 0;
  /** Bytes of all pieces. */
  bytes = 0;
  /** The address of each piece, or {@link BUCKET}. */
  iovas = new Float64Array(8);
  lengths = new Float64Array(8);

  clear(): void {
    this.count = 0;
    this.bytes = 0;
  }

  /** Adds a piece; one that continues the last one becomes a part of it. */
  add(iova: number, length: number): void {
    if (length === 0) return;
    this.bytes += length;
    const last = this.count - 1;
    if (last >= 0 && iova !== BUCKET && this.iovas[last] !== BUCKET && this.iovas[last] + this.lengths[last] === iova) {
      this.lengths[last] += length;
      return;
    }
    if (this.count === this.iovas.length) {
      this.iovas = grown(this.iovas);
      this.lengths = grown(this.lengths);
    }
    this.iovas[this.count] = iova;
    this.lengths[this.count] = length;
    this.count++;
  }

  /** Copies `from` to the pieces. `undefined` if it is there already. @throws DmaError if memory can not be reached */
  scatter(dma: DeviceDma, from: Uint8Array): Promise<void> | undefined {
    return this.#move(from, 0, 0, (iova, piece) => dma.write(iova, piece));
  }

  /** Fills `into` from the pieces. `undefined` if that is done. @throws DmaError if memory can not be reached */
  gather(dma: DeviceDma, into: Uint8Array): Promise<void> | undefined {
    return this.#move(into, 0, 0, (iova, piece) => dma.read(iova, piece));
  }

  #move(
    bytes: Uint8Array,
    first: number,
    from: number,
    copy: (iova: number, piece: Uint8Array) => Promise<void> | undefined,
  ): Promise<void> | undefined {
    let at = from;
    for (let n = first; n < this.count && at < bytes.length; n++) {
      const piece = bytes.subarray(at, at + this.lengths[n]);
      at += piece.length;
      if (this.iovas[n] === BUCKET) continue;
      const wait = copy(this.iovas[n], piece);
      if (wait !== undefined) {
        const next = n + 1;
        const rest = at;
        return wait.then(() => this.#move(bytes, next, rest, copy));
      }
    }
    return undefined;
  }
}

function grown(array: Float64Array): Float64Array<ArrayBuffer> {
  const larger = new Float64Array(2 * array.length);
  larger.set(array);
  return larger;
}
