/** A ring of posted receives: messages arrive in order, and the memory of each is posted again after use. */
import { mustBe, optionsOf, type Shape } from '../check.js';
import { invalid } from '../errors.js';
import { isAddress } from '../units.js';
import { QueuePair } from './queue-pair.js';
import type { Received } from './queue-pair-requests.js';
import { STAYS } from '../stays.js';

/** Memory of the messages. */
export interface ReceiveRingOptions {
  /** Memory of `count` times `size` bytes, in one mapping that the device may write. */
  readonly va: number;
  /** largest message in bytes; for datagrams add 40 */
  readonly size: number;
  /** How many messages can arrive before the first is released; at most `receives` of the queue pair */
  readonly count: number;
}

const RING_OPTIONS: Shape<ReceiveRingOptions> = { va: 'number', size: 'number', count: 'number' };

/** A message in the ring. */
export interface RingMessage extends Received {
  /** Returns its memory to the ring. Idempotent; iteration does it automatically. */
  release(): void;
}

/** Receives of one queue pair that are always posted. It ends with the queue pair. */
export class ReceiveRing implements AsyncIterable<Received> {
  /** @internal */
  readonly stays = STAYS;
  readonly #pair: QueuePair;
  readonly #size: number;
  /** Oldest first. */
  readonly #posted: Promise<Received>[] = [];

  /** @throws DmaError EINVAL for invalid sizes */
  constructor(pair: QueuePair, options: ReceiveRingOptions) {
    const operation = 'receive ring';
    mustBe(pair, QueuePair, 'the queue pair', operation);
    const { va = NaN, size = NaN, count = NaN } = optionsOf(options, RING_OPTIONS, operation);
    const whole = [va, size, count].every(isAddress) && isAddress(va + size * count);
    if (!whole || size === 0 || count === 0 || count > pair.qp.receives)
      throw invalid(operation, `${count} messages of ${size} bytes is not a valid size of the ring`);
    this.#pair = pair;
    this.#size = size;
    for (let slot = 0; slot < count; slot++) this.#post(va + slot * size);
  }

  /**
   * Returns the next message.
   *
   * @throws DmaError as `QueuePair.receive`; EINVAL if all memory belongs to messages that were not released
   */
  async next(): Promise<RingMessage> {
    const posted = this.#posted.shift();
    if (posted === undefined) throw invalid('receive ring', 'all memory belongs to messages that were not released');
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

  /** Messages until the queue pair stops. Each is valid until the next one is requested. */
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
    // Avoids an unhandled rejection: the caller may never ask for this message.
    posted.catch(() => undefined);
    this.#posted.push(posted);
  }
}
