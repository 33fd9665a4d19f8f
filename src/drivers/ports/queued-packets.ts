/** Which packets the transmit queues of a port have: each is in one of them, once. */
import { invalid } from '../../errors.js';
import type { Packets } from '../../net/packets.js';

/** The packets that a port has to send. Makes no garbage. */
export class QueuedPackets {
  readonly #packets: Packets;
  readonly #queued: Uint8Array;

  constructor(packets: Packets) {
    this.#packets = packets;
    this.#queued = new Uint8Array(packets.pool.elements);
  }

  /**
   * The first `count` packets of a burst are the port's, if they can be.
   *
   * @throws DmaError EINVAL for a packet that is not in use or that the port has already; then it has none of the burst
   */
  claim(burst: Int32Array, count: number): void {
    const packets = this.#packets;
    const queued = this.#queued;
    for (let i = 0; i < count; i++) {
      const packet = burst[i];
      if (packets.inUse(packet) && queued[packet] === 0) queued[packet] = 1;
      else {
        for (let k = 0; k < i; k++) queued[burst[k]] = 0;
        throw invalid(
          'port.tx',
          packets.inUse(packet) ? `packet ${packet} was sent before` : `${packet} is no packet in use`,
          {
            hint: 'what tx takes belongs to the port until it was sent; packets.clone makes another packet of the same bytes',
          },
        );
      }
    }
  }

  /** A packet is not the port's any more. */
  leave(packet: number): void {
    this.#queued[packet] = 0;
  }
}
