/** Frames for tests of Ethernet ports. */
import { checksum, sumOf } from '../../src/net/checksum.js';

/** The station address of adapters that tests work. */
const MAC = [0x52, 0x54, 0, 0x12, 0x34, 0x56];

/** A frame of any length to that address, the same for the same seed. */
export function frameOf(length: number, seed = 1): Uint8Array {
  const frame = Uint8Array.from({ length }, (_, i) => (i * 7 + seed * 13) & 0xff);
  frame.set(MAC.slice(0, length));
  if (length > 13) frame.set([0x88, 0xb5], 12);
  return frame;
}

/** A frame of TCP (6) or UDP (17) over IPv4, with right check sums. */
export function ipFrame(
  protocol: 6 | 17,
  { from = 1, to = 2, tag = -1, ports = [80, 443], data = 30 } = {},
): Uint8Array {
  const l4 = protocol === 6 ? 20 : 8;
  const length = l4 + data;
  const [a, b] = ports;
  const head = [a >> 8, a & 255, b >> 8, b & 255];
  const rest = protocol === 6 ? [0, 0, 0, 1, 0, 0, 0, 2, 0x50, 0x18, 1, 0, 0, 0, 0, 0] : [0, length, 0, 0];
  const ip = [0x45, 0, 0, 20 + length, 0, 1, 0, 0, 64, protocol, 0, 0, 10, 0, 0, from, 10, 0, 0, to];
  const ether = [...MAC, 2, 0, 0, 0, 0, 9, ...(tag < 0 ? [] : [0x81, 0, tag >> 8, tag & 255]), 8, 0];
  const payload = Array.from({ length: data }, (_, i) => (i * 11 + 3) & 0xff);
  const frame = Uint8Array.from([...ether, ...ip, ...head, ...rest, ...payload]);
  const l3 = ether.length;
  put(frame, l3 + 10, checksum(sumOf(frame, l3, 20)));
  const field = l3 + 20 + (protocol === 6 ? 16 : 6);
  put(frame, field, checksum(sumOf(frame, l3 + 20, length, pseudo(frame, l3, protocol, length))));
  return frame;
}

/** The sum of the pseudo header of IPv4. */
export function pseudo(frame: Uint8Array, l3: number, protocol: number, length: number): number {
  return sumOf(frame, l3 + 12, 8) + protocol + length;
}

/** Puts 16 bits in network order. */
export function put(frame: Uint8Array, at: number, value: number): void {
  frame.set([value >> 8, value & 0xff], at);
}
