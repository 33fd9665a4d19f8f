/** Where things are in Ethernet frames with IP inside (IEEE 802.3 and 802.1Q, RFC 826, 791, 8200, 768, 9293, 792). Offsets in bytes. */

export const ETHERNET = { TO: 0, FROM: 6, TYPE: 12, BYTES: 14 } as const;
/** Bytes of an 802.1Q tag. */
export const TAG = 4;
export const ETHER_TYPE = { IPV4: 0x0800, ARP: 0x0806, VLAN: 0x8100, QINQ: 0x88a8, IPV6: 0x86dd } as const;
export const IPV4 = {
  TOTAL: 2,
  ID: 4,
  FRAGMENT: 6,
  TTL: 8,
  PROTOCOL: 9,
  SUM: 10,
  FROM: 12,
  TO: 16,
  BYTES: 20,
} as const;
export const IPV6 = { LENGTH: 4, NEXT: 6, FROM: 8, TO: 24, BYTES: 40 } as const;
export const PROTOCOL = { ICMP: 1, TCP: 6, UDP: 17 } as const;
export const UDP = { FROM: 0, TO: 2, LENGTH: 4, SUM: 6, BYTES: 8 } as const;
export const TCP = { FROM: 0, TO: 2, OFFSET: 12, SUM: 16, BYTES: 20 } as const;
export const ICMP = { TYPE: 0, CODE: 1, SUM: 2, BYTES: 8 } as const;
export const ARP = {
  HARDWARE: 0,
  PROTOCOL: 2,
  SIZES: 4,
  OPERATION: 6,
  FROM_MAC: 8,
  FROM_IP: 14,
  TO_MAC: 18,
  TO_IP: 24,
  BYTES: 28,
} as const;

/** What a frame is, as far as its first segment tells. */
export interface FrameShape {
  /** The type behind all VLAN tags. */
  type: number;
  /** Bytes of Ethernet header and tags. */
  l2: number;
  /** Bytes of the IP header; 0 if it is no IP, or cut. */
  l3: number;
  /** The IP protocol; -1 if there is none, or this is not the first fragment. */
  protocol: number;
  /** Bytes of the IP payload, by the IP header. */
  payload: number;
  /** Is it a fragment? Its protocol's check sum is over more than this frame then. */
  isFragment: boolean;
}

/** Reads it into `shape`, which is reused. `length` bytes are there from `at`; nothing behind them is read. */
export function readShape(bytes: Uint8Array, at: number, length: number, shape: FrameShape): FrameShape {
  shape.type = -1;
  shape.l2 = ETHERNET.BYTES;
  shape.l3 = 0;
  shape.protocol = -1;
  shape.payload = 0;
  shape.isFragment = false;
  if (length < ETHERNET.BYTES) return shape;
  let type = u16(bytes, at + ETHERNET.TYPE);
  while ((type === ETHER_TYPE.VLAN || type === ETHER_TYPE.QINQ) && length >= shape.l2 + TAG) {
    type = u16(bytes, at + shape.l2 + 2);
    shape.l2 += TAG;
  }
  shape.type = type;
  const ip = at + shape.l2;
  const left = length - shape.l2;
  if (type === ETHER_TYPE.IPV4 && left >= IPV4.BYTES) {
    const header = ((bytes[ip] ?? 0) & 0xf) * 4;
    if ((bytes[ip] ?? 0) >> 4 !== 4 || header < IPV4.BYTES || header > left) return shape;
    const total = u16(bytes, ip + IPV4.TOTAL);
    if (total < header) return shape;
    shape.l3 = header;
    shape.payload = total - header;
    const fragment = u16(bytes, ip + IPV4.FRAGMENT);
    shape.isFragment = (fragment & 0x3fff) !== 0;
    if ((fragment & 0x1fff) === 0) shape.protocol = bytes[ip + IPV4.PROTOCOL] ?? -1;
  } else if (type === ETHER_TYPE.IPV6 && left >= IPV6.BYTES) {
    if ((bytes[ip] ?? 0) >> 4 !== 6) return shape;
    // Extension headers are not followed: what is behind them has no protocol here.
    shape.l3 = IPV6.BYTES;
    shape.payload = u16(bytes, ip + IPV6.LENGTH);
    shape.protocol = bytes[ip + IPV6.NEXT] ?? -1;
  }
  return shape;
}

/** A shape to read into. */
export function newShape(): FrameShape {
  return { type: -1, l2: 0, l3: 0, protocol: -1, payload: 0, isFragment: false };
}

/** A number of 16 bits in network order. */
export function u16(bytes: Uint8Array, at: number): number {
  return ((bytes[at] ?? 0) << 8) | (bytes[at + 1] ?? 0);
}

/** Stores a number of 16 bits in network order. */
export function putU16(bytes: Uint8Array, at: number, value: number): void {
  bytes[at] = value >> 8;
  bytes[at + 1] = value & 0xff;
}

/** A number of 24 bits in network order: half of a station address. */
export function u24(bytes: Uint8Array, at: number): number {
  return (bytes[at] << 16) | (bytes[at + 1] << 8) | bytes[at + 2];
}

/** Stores a number of 24 bits in network order. */
export function putU24(bytes: Uint8Array, at: number, value: number): void {
  bytes[at] = value >> 16;
  bytes[at + 1] = value >> 8;
  bytes[at + 2] = value;
}

/** Swaps `count` bytes at `a` with those at `b`. */
export function swap(bytes: Uint8Array, a: number, b: number, count: number): void {
  for (let i = 0; i < count; i++) {
    const kept = bytes[a + i] ?? 0;
    bytes[a + i] = bytes[b + i] ?? 0;
    bytes[b + i] = kept;
  }
}
