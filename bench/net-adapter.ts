/** An e1000e that completes descriptors at once: as soon as a tail is stored, frames are in all that it was given, or all were sent. */
import { DESCRIPTOR_BYTES, RX, RX_QUEUE, TX, TX_QUEUE } from '../src/drivers/e1000e/registers.js';
import type { ModelHost } from '../src/vfio-user/devices/model.js';
import { loadWord } from '../src/vfio-user/devices/words.js';
import { FakeE1000e } from '../test/fakes/net/e1000e.js';

/** One ring of it. */
interface InstantRing {
  /** Four words a descriptor. */
  words: Uint32Array;
  /** The first descriptor that is not completed. */
  at: number;
}

/** The adapter. Its first queues are fast; all else is as in the tests. Frames are what their buffers have. */
export class InstantAdapter extends FakeE1000e {
  readonly #host: ModelHost;
  readonly #frame: number;
  readonly #receive: InstantRing = { words: new Uint32Array(0), at: 0 };
  readonly #transmit: InstantRing = { words: new Uint32Array(0), at: 0 };

  /** @param frame bytes of the frames that it receives */
  constructor(host: ModelHost, frame: number) {
    super(host);
    this.#host = host;
    this.#frame = frame;
  }

  override write(region: number, offset: number, from: Uint8Array): void {
    if (offset === RX_QUEUE.TAIL) this.#fill(loadWord(from, 0));
    else if (offset === TX_QUEUE.TAIL) this.#finish(loadWord(from, 0));
    else {
      super.write(region, offset, from);
      // A driver stores it when the ring is new.
      if (offset === RX_QUEUE.HEAD) this.#open(this.#receive, RX_QUEUE);
      else if (offset === TX_QUEUE.HEAD) this.#open(this.#transmit, TX_QUEUE);
    }
  }

  #fill(tail: number): void {
    const ring = this.#receive;
    const { words } = ring;
    const end = words.length;
    let at = ring.at;
    for (const last = tail * 4; at !== last; at = at + 4 === end ? 0 : at + 4) {
      words[at + 3] = this.#frame;
      words[at + 2] = RX.DONE | RX.END;
    }
    ring.at = at;
  }

  #finish(tail: number): void {
    const ring = this.#transmit;
    const { words } = ring;
    const end = words.length;
    let at = ring.at;
    for (const last = tail * 4; at !== last; at = at + 4 === end ? 0 : at + 4) words[at + 3] = TX.DONE;
    ring.at = at;
  }

  #open(
    ring: InstantRing,
    { BAL, BAH, LEN }: { readonly BAL: number; readonly BAH: number; readonly LEN: number },
  ): void {
    const iova = this.peek(BAL) + this.peek(BAH) * 2 ** 32;
    const bytes = this.#host.dma.direct(iova, this.peek(LEN), 'write');
    if (bytes === undefined || bytes.length < DESCRIPTOR_BYTES) throw new Error('the ring is not in one piece');
    ring.words = new Uint32Array(bytes.buffer, bytes.byteOffset, bytes.length / 4);
    ring.at = 0;
  }
}
