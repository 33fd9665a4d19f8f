/** What the forwarder does with packets between receiving and sending them: testpmd's forwarding modes, by their names. */
import { checksum, folded, sumOf, sumOfPacket } from './checksum.js';
import {
  ARP,
  ETHER_TYPE,
  ETHERNET,
  ICMP,
  IPV4,
  IPV6,
  newShape,
  PROTOCOL,
  putU16,
  putU24,
  readShape,
  swap,
  TCP,
  u16,
  u24,
  UDP,
} from './frames.js';
import { OFFLOAD } from './offloads.js';
import { NONE, type Packets } from './packets.js';

/** What a mode knows of the stream that it works for. */
export interface ModeContext {
  readonly packets: Packets;
  /** The station address of the port that sends. */
  readonly from: Uint8Array;
  /** The address of the one that is behind that port. */
  readonly to: Uint8Array;
  /** `OFFLOAD` bits that the port that sends can do. */
  readonly offloads: number;
}

/** A mode. */
export interface Mode {
  /** For help pages. */
  readonly about: string;
  /** Does it take packets from ports? */
  readonly receives: boolean;
  /** Does it give packets to ports? */
  readonly sends: boolean;
  /** Does it make packets of its own? */
  readonly generates: boolean;
  /**
   * Changes the packets of a burst. Those to be sent are left in `burst` from its beginning; others are released.
   *
   * @returns how many are to be sent
   */
  readonly change: (context: ModeContext, burst: Int32Array, count: number) => number;
}

const asTheyAre = (_context: ModeContext, _burst: Int32Array, count: number): number => count;
const drop = ({ packets }: ModeContext, burst: Int32Array, count: number): number => {
  packets.release(burst, count);
  return 0;
};

/** All modes. */
export const MODES = {
  io: { about: 'forwards packets as they are', receives: true, sends: true, generates: false, change: asTheyAre },
  mac: {
    about: "writes the sending port's address as source, and its peer's as destination",
    receives: true,
    sends: true,
    generates: false,
    change: newAddresses,
  },
  macswap: {
    about: 'swaps source and destination of Ethernet',
    receives: true,
    sends: true,
    generates: false,
    change: each(swapMac),
  },
  '5tswap': {
    about: 'swaps source and destination of Ethernet, IP, and TCP or UDP',
    receives: true,
    sends: true,
    generates: false,
    change: each(swapAll),
  },
  csum: {
    about: 'computes the check sums of IPv4, TCP and UDP anew, or lets the sending port do it',
    receives: true,
    sends: true,
    generates: false,
    change: each(newSums),
  },
  icmpecho: {
    about: 'answers ARP requests and pings, and drops all else',
    receives: true,
    sends: true,
    generates: false,
    change: echo,
  },
  rxonly: { about: 'receives, and drops', receives: true, sends: false, generates: false, change: drop },
  txonly: { about: 'sends UDP packets of its own', receives: false, sends: true, generates: true, change: asTheyAre },
  flowgen: {
    about: 'sends UDP packets of many flows, and drops what it receives',
    receives: true,
    sends: true,
    generates: true,
    change: drop,
  },
} as const satisfies Readonly<Record<string, Mode>>;

/** The name of a mode. */
export type ModeName = keyof typeof MODES;

/** All names. */
export const MODE_NAMES = Object.keys(MODES) as readonly ModeName[];

type Change = (
  packets: Packets,
  packet: number,
  bytes: Uint8Array,
  at: number,
  length: number,
  offloads: number,
) => void;

/** A mode that changes each packet for itself. Frames without a whole Ethernet header are passed on as they are. */
function each(change: Change): Mode['change'] {
  return ({ packets, offloads }, burst, count) => {
    for (let i = 0; i < count; i++) {
      const packet = burst[i] ?? NONE;
      const length = packets.length[packet] ?? 0;
      if (length >= ETHERNET.BYTES)
        change(packets, packet, packets.view(packet), packets.start(packet), length, offloads);
    }
    return count;
  };
}

function newAddresses({ packets, from, to }: ModeContext, burst: Int32Array, count: number): number {
  const toUpper = u24(to, 0);
  const toLower = u24(to, 3);
  const fromUpper = u24(from, 0);
  const fromLower = u24(from, 3);
  const { length } = packets;
  for (let i = 0; i < count; i++) {
    const packet = burst[i];
    if (length[packet] < ETHERNET.BYTES) continue;
    const bytes = packets.view(packet);
    const at = packets.start(packet);
    putU24(bytes, at + ETHERNET.TO, toUpper);
    putU24(bytes, at + ETHERNET.TO + 3, toLower);
    putU24(bytes, at + ETHERNET.FROM, fromUpper);
    putU24(bytes, at + ETHERNET.FROM + 3, fromLower);
  }
  return count;
}

function swapMac(_packets: Packets, _packet: number, bytes: Uint8Array, at: number): void {
  swap(bytes, at + ETHERNET.TO, at + ETHERNET.FROM, 6);
}

const shape = newShape();

function swapAll(_packets: Packets, _packet: number, bytes: Uint8Array, at: number, length: number): void {
  swapMac(_packets, _packet, bytes, at);
  const { type, l2, l3, protocol } = readShape(bytes, at, length, shape);
  if (l3 === 0) return;
  const ip = at + l2;
  // Sums do not change with the order of what is summed up.
  if (type === ETHER_TYPE.IPV4) swap(bytes, ip + IPV4.FROM, ip + IPV4.TO, 4);
  else swap(bytes, ip + IPV6.FROM, ip + IPV6.TO, 16);
  if ((protocol === PROTOCOL.TCP || protocol === PROTOCOL.UDP) && length >= l2 + l3 + 4)
    swap(bytes, ip + l3 + UDP.FROM, ip + l3 + UDP.TO, 2);
}

/** Where the check sum of TCP or UDP is, from the end of the IP header; -1 for other protocols. */
function sumField(protocol: number): number {
  if (protocol === PROTOCOL.TCP) return TCP.SUM;
  return protocol === PROTOCOL.UDP ? UDP.SUM : -1;
}

function newSums(
  packets: Packets,
  packet: number,
  bytes: Uint8Array,
  at: number,
  length: number,
  offloads: number,
): void {
  const { type, l2, l3, protocol, payload, isFragment } = readShape(bytes, at, length, shape);
  if (l3 === 0) return;
  const ip = at + l2;
  const isV4 = type === ETHER_TYPE.IPV4;
  packets.l2[packet] = l2;
  packets.l3[packet] = l3;
  if (isV4) {
    putU16(bytes, ip + IPV4.SUM, 0);
    if ((offloads & OFFLOAD.TX_IP) === 0) putU16(bytes, ip + IPV4.SUM, checksum(sumOf(bytes, ip, l3)));
    else packets.flags[packet] |= OFFLOAD.TX_IP;
  }
  const field = sumField(protocol);
  const l4 = ip + l3;
  if (field < 0 || isFragment || length < l2 + l3 + field + 2) return;
  const total = packets.total[packet] ?? 0;
  if (total < l2 + l3 + payload) return;
  // A sender of UDP over IPv4 may leave its sum out (RFC 768).
  if (isV4 && protocol === PROTOCOL.UDP && u16(bytes, l4 + field) === 0) return;
  const pseudo = pseudoSum(bytes, ip, isV4, protocol, payload);
  const offload = protocol === PROTOCOL.TCP ? OFFLOAD.TX_TCP : OFFLOAD.TX_UDP;
  const wanted = isV4 ? offload : offload | OFFLOAD.TX_IPV6;
  // Hardware sums up to the end of the frame: also what may be behind the packet.
  if ((offloads & wanted) === wanted && total === l2 + l3 + payload) {
    putU16(bytes, l4 + field, pseudo);
    packets.flags[packet] |= wanted;
    return;
  }
  putU16(bytes, l4 + field, 0);
  const sum = checksum(sumOfPacket(packets, packet, l2 + l3, payload, pseudo));
  putU16(bytes, l4 + field, sum === 0 && protocol === PROTOCOL.UDP ? 0xffff : sum);
}

/** The sum of the pseudo header (RFC 768 and 9293; RFC 8200, section 8.1). */
export function pseudoSum(bytes: Uint8Array, ip: number, isV4: boolean, protocol: number, payload: number): number {
  const addresses = isV4 ? sumOf(bytes, ip + IPV4.FROM, 8) : sumOf(bytes, ip + IPV6.FROM, 32);
  return folded(addresses + protocol + payload);
}

function echo({ packets, from }: ModeContext, burst: Int32Array, count: number): number {
  let answers = 0;
  for (let i = 0; i < count; i++) {
    const packet = burst[i] ?? NONE;
    if (answer(packets, packet, from)) burst[answers++] = packet;
    else packets.releaseOne(packet);
  }
  return answers;
}

/** Makes a request its own answer. @returns false if it is no request */
function answer(packets: Packets, packet: number, mac: Uint8Array): boolean {
  const length = packets.length[packet] ?? 0;
  const bytes = packets.view(packet);
  const at = packets.start(packet);
  const { type, l2, l3, protocol, isFragment } = readShape(bytes, at, length, shape);
  const body = at + l2;
  if (type === ETHER_TYPE.ARP) {
    if (length < l2 + ARP.BYTES || u16(bytes, body + ARP.OPERATION) !== 1) return false;
    if (u16(bytes, body + ARP.HARDWARE) !== 1 || u16(bytes, body + ARP.PROTOCOL) !== ETHER_TYPE.IPV4) return false;
    putU16(bytes, body + ARP.OPERATION, 2);
    swap(bytes, body + ARP.FROM_IP, body + ARP.TO_IP, 4);
    bytes.copyWithin(body + ARP.TO_MAC, body + ARP.FROM_MAC, body + ARP.FROM_MAC + 6);
    bytes.set(mac, body + ARP.FROM_MAC);
    bytes.copyWithin(at + ETHERNET.TO, at + ETHERNET.FROM, at + ETHERNET.FROM + 6);
    bytes.set(mac, at + ETHERNET.FROM);
    return true;
  }
  if (type !== ETHER_TYPE.IPV4 || protocol !== PROTOCOL.ICMP || isFragment) return false;
  const icmp = body + l3;
  if (length < l2 + l3 + ICMP.BYTES || bytes[icmp + ICMP.TYPE] !== 8 || bytes[icmp + ICMP.CODE] !== 0) return false;
  // A ping of a group is not answered (RFC 1122, section 3.2.2.6).
  if (((bytes[body + IPV4.TO] ?? 0) & 0xf0) === 0xe0 || ((bytes[at] ?? 0) & 1) === 1) return false;
  swap(bytes, at + ETHERNET.TO, at + ETHERNET.FROM, 6);
  swap(bytes, body + IPV4.FROM, body + IPV4.TO, 4);
  bytes[icmp + ICMP.TYPE] = 0;
  // The type went from 8 to 0: the sum is changed by that alone (RFC 1624).
  putU16(bytes, icmp + ICMP.SUM, checksum((~u16(bytes, icmp + ICMP.SUM) & 0xffff) + (~0x0800 & 0xffff)));
  return true;
}
