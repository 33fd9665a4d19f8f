/** Which packets the transmit queues of a port have: each is in one of them, once. */
import { invalid } from '../../errors.js';
import { NONE, type Packets } from '../../net/packets.js';

/** The packets that a port has to send, with all of their segments. Makes no garbage. */
export class QueuedPackets {
  readonly #packets: Packets;
  /** By segment. */
  readonly #queued: Uint8Array;

  constructor(packets: Packets) {
    this.#packets = packets;
    this.#queued = new Uint8Array(packets.pool.elements);
  }

  /**
   * The first `count` packets of a burst are the port's, if they can be.
   *
   * @throws DmaError EINVAL for a packet with a segment that is not in use or that the port has already, or that tells another number of segments; then it has none of the burst
   */
  claim(burst: Int32Array, count: number): void {
    const packets = this.#packets;
    const queued = this.#queued;
    const { next, segments } = packets;
    for (let i = 0; i < count; i++) {
      const packet = burst[i];
      let segment = packet;
      let claimed = 0;
      // A segment that the port has already ends it: also where a chain runs in a circle.
      for (; packets.inUse(segment) && queued[segment] === 0; segment = next[segment]) {
        queued[segment] = 1;
        claimed++;
      }
      // A chain that was made by hand may tell another number.
      const isWhole = segment === NONE && claimed > 0;
      if (isWhole && claimed === segments[packet]) continue;
      const has = claimed;
      for (let own = packet; claimed > 0; own = next[own], claimed--) queued[own] = 0;
      for (let k = 0; k < i; k++) this.leave(burst[k]);
      if (isWhole)
        throw invalid('port.tx', `packet ${packet} has ${has} segments, and tells ${segments[packet]}`, {
          hint: 'a chain is made by packets.chain',
        });
      const before = packets.inUse(segment);
      throw invalid('port.tx', before ? `packet ${segment} was sent before` : `${segment} is no packet in use`, {
        hint: 'what tx takes belongs to the port until it was sent; packets.clone makes another packet of the same bytes',
      });
    }
  }

  /** A packet is not the port's any more. It must not be released yet. */
  leave(packet: number): void {
    const queued = this.#queued;
    const { next } = this.#packets;
    for (let segment = packet; segment !== NONE && queued[segment] === 1; segment = next[segment]) queued[segment] = 0;
  }
}
