/** The Internet check sum (RFC 1071), over bytes and over packets of several segments. */
import { NONE, type Packets } from './packets.js';

/** The sum of `length` bytes from `at` as 16-bit words in network order, added to `sum`; not folded. */
export function sumOf(bytes: Uint8Array, at: number, length: number, sum = 0): number {
  const end = at + length - (length & 1);
  let total = sum;
  for (let i = at; i < end; i += 2) total += ((bytes[i] ?? 0) << 8) | (bytes[i + 1] ?? 0);
  if ((length & 1) === 1) total += (bytes[end] ?? 0) << 8;
  return total;
}

/** Folds a sum to 16 bits. */
export function folded(sum: number): number {
  let total = sum;
  while (total > 0xffff) total = (total % 0x1_0000) + Math.floor(total / 0x1_0000);
  return total;
}

/** The check sum of a sum: its complement. */
export function checksum(sum: number): number {
  return ~folded(sum) & 0xffff;
}

/** The sum of `length` bytes of a packet from its byte `from`, over all its segments. */
export function sumOfPacket(packets: Packets, packet: number, from: number, length: number, sum = 0): number {
  let total = sum;
  let skip = from;
  let left = length;
  // A segment may begin with the second byte of a word.
  let odd = false;
  for (let segment = packet; segment !== NONE && left > 0; segment = packets.next[segment] ?? NONE) {
    const has = packets.length[segment] ?? 0;
    if (skip >= has) {
      skip -= has;
      continue;
    }
    const count = Math.min(left, has - skip);
    const part = sumOf(packets.view(segment), packets.start(segment) + skip, count);
    if (odd) {
      const word = folded(part);
      total += ((word & 0xff) << 8) | (word >> 8);
    } else total += part;
    if ((count & 1) === 1) odd = !odd;
    left -= count;
    skip = 0;
  }
  return total;
}
