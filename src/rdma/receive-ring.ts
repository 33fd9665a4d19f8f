/** Receives that are always posted: messages come one after the other, and the memory of each is posted again once it is done with. */
import { mustBe, optionsOf, type Shape } from '../check.js';
import { invalid } from '../errors.js';
import { isAddress } from '../units.js';
import { QueuePair, type Received } from './queue-pair.js';

/** Where the messages go. */
export interface ReceiveRingOptions {
  /** Memory of `count` times `size` bytes, in one mapping that the device may write. */
  readonly va: number;
  /** bytes of a message at most; of datagrams 40 more */
  readonly size: number;
  /** How many messages can come before the first is done with; at most what the queue pair receives */
  readonly count: number;
}

const RING_OPTIONS: Shape<ReceiveRingOptions> = { va: 'number', size: 'number', count: 'number' };

/** A message in the ring. */
export interface RingMessage extends Received {
  /** Gives its memory to the next message. Idempotent; what is iterated does it by itself. */
  release(): void;
}

/** See the head of the file. It ends with its queue pair. */
export class ReceiveRing implements AsyncIterable<Received> {
  readonly #pair: QueuePair;
  readonly #size: number;
  /** In the order that they are filled. */
  readonly #posted: Promise<Received>[] = [];

  /** @throws DmaError EINVAL for impossible sizes */
  constructor(pair: QueuePair, options: ReceiveRingOptions) {
    const operation = 'receive ring';
    mustBe(pair, QueuePair, 'the queue pair', operation);
    const { va = NaN, size = NaN, count = NaN } = optionsOf(options, RING_OPTIONS, operation);
    const whole = [va, size, count].every(isAddress) && isAddress(va + size * count);
    if (!whole || size === 0 || count === 0 || count > pair.qp.receives)
      throw invalid(operation, `${count} messages of ${size} bytes are not possible`);
    this.#pair = pair;
    this.#size = size;
    for (let slot = 0; slot < count; slot++) this.#post(va + slot * size);
  }

  /**
   * The next message.
   *
   * @throws DmaError as `QueuePair.receive`; EINVAL when all of its memory is with messages that were not released
   */
  async next(): Promise<RingMessage> {
    const posted = this.#posted.shift();
    if (posted === undefined) throw invalid('receive ring', 'no memory is left: release messages');
    const message = await posted;
    let isDone = false;
    return {
      ...message,
      release: () => {
        if (isDone) return;
        isDone = true;
        this.#post(message.va);
      },
    };
  }

  /** Messages until the queue pair stops; each is good until the next is asked for. */
  async *[Symbol.asyncIterator](): AsyncGenerator<Received, void> {
    while (this.#pair.live && this.#pair.failure === undefined) {
      let message: RingMessage;
      try {
        message = await this.next();
      } catch (error) {
        if (!this.#pair.live) return;
        throw error;
      }
      try {
        yield message;
      } finally {
        if (this.#pair.live) message.release();
      }
    }
  }

  #post(va: number): void {
    const posted = this.#pair.receive({ va, length: this.#size });
    // Whoever asks for it is told; nobody may.
    posted.catch(() => undefined);
    this.#posted.push(posted);
  }
}
