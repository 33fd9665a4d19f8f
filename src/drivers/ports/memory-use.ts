/** Which memory a packet of a queue is in. */
import { NONE, type Packets } from '../../net/packets.js';

/** Does the packet show a byte of [start, end)? VAs. */
export function isShownIn(packets: Packets, packet: number, start: number, end: number): boolean {
  for (let segment = packet; segment !== NONE; segment = packets.next[segment]) {
    const { va, length } = packets.placeOf(packets.buffer[segment]);
    if (va < end && va + length > start) return true;
  }
  return false;
}
