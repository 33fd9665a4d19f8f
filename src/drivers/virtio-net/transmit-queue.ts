/**
 * A transmit queue. A packet is a chain: its header, in memory of the driver's own, together with the beginning of the frame if a tag is put
 * in; its segments; and zeros behind a short frame.
 */
import type { DeviceBuffers } from '../../net/device-buffers.js';
import { ETHERNET, ETHER_TYPE, IPV4, putU16, TAG, TCP, UDP } from '../../net/frames.js';
import { OFFLOAD } from '../../net/offloads.js';
import { NONE, type Packets } from '../../net/packets.js';
import { COUNT, LEAST_FRAME } from '../../net/port-base.js';
import { isShownIn } from '../ports/memory-use.js';
import type { QueuedPackets } from '../ports/queued-packets.js';
import { clearHeader, putHeader16 } from './header.js';
import { HEADER, HEADER_FLAG, SEGMENTATION } from './layout.js';
import { NO_CHAIN, type Ring } from './ring.js';
import type { Notifier } from './transport.js';

/** Segments of a packet. */
export const MOST_SEGMENTS = 40;
/** Descriptors of a packet besides those of its segments. */
export const MORE_DESCRIPTORS = 2;
/** Bytes of a packet that is to be cut: an IP packet has no more. */
const MOST_CUT = ETHERNET.BYTES + 0xffff;
/** Bytes for each chain: the header, two addresses and a tag. */
export const HEADER_SLOT = 32;

const L4_SUMS = OFFLOAD.TX_TCP | OFFLOAD.TX_UDP;
/** Flags of packets that ask for something. */
const ANY_TX = OFFLOAD.TX_VLAN | OFFLOAD.TX_IP | L4_SUMS | OFFLOAD.TX_TSO | OFFLOAD.TX_IPV6;

/** What a queue is made of. */
export interface TransmitQueueParts {
  readonly queue: number;
  readonly ring: Ring;
  readonly packets: Packets;
  readonly notifier: Notifier;
  /** {@link HEADER_SLOT} bytes for each chain, and where the device finds them. */
  readonly headers: Uint8Array;
  readonly headersIova: number;
  /** Where the device finds {@link LEAST_FRAME} zeros. */
  readonly zerosIova: number;
  /** By packet: a queue of the port has it. The same for all its queues. */
  readonly queued: QueuedPackets;
  readonly maxFrame: number;
  /** `OFFLOAD` bits that the device does. */
  readonly offloads: number;
  /** By `COUNT`. */
  readonly counters: Float64Array;
}

/** A transmit queue. */
export class TransmitQueue {
  readonly ring: Ring;
  readonly #parts: TransmitQueueParts;
  readonly #packets: Packets;
  readonly #counters: Float64Array;
  readonly #queued: QueuedPackets;
  /** By chain: its packet, and the bytes of its frame. */
  readonly #packetOf: Int32Array;
  readonly #bytesOf: Uint32Array;
  readonly #done: Int32Array;

  constructor(parts: TransmitQueueParts) {
    const { size } = parts.ring;
    this.ring = parts.ring;
    this.#parts = parts;
    this.#packets = parts.packets;
    this.#counters = parts.counters;
    this.#queued = parts.queued;
    this.#packetOf = new Int32Array(size).fill(NONE);
    this.#bytesOf = new Uint32Array(size);
    this.#done = new Int32Array(size);
  }

  /** Was everything sent? */
  get isEmpty(): boolean {
    return this.ring.free === this.ring.size;
  }

  /**
   * Takes up to `count` packets; {@link ring} tells the device. What can not be sent (no Ethernet header, too long, too many segments, memory
   * that is not mapped, an offload that there is not) is taken, counted and released.
   *
   * @throws DmaError EINVAL for a packet that is not in use or was taken before, before anything is taken
   */
  put(burst: Int32Array, count: number, buffers: DeviceBuffers): number {
    this.#queued.claim(burst, count);
    const packets = this.#packets;
    const { segments } = packets;
    let taken = 0;
    for (; taken < count; taken++) {
      const packet = burst[taken];
      const pieces = segments[packet];
      if (pieces <= MOST_SEGMENTS && pieces + MORE_DESCRIPTORS > this.ring.free) break;
      if (pieces <= MOST_SEGMENTS && this.#describe(packet, buffers)) continue;
      this.#queued.leave(packet);
      packets.releaseOne(packet);
      this.#counters[COUNT.TX_ERRORS]++;
    }
    // The rest stays the caller's.
    for (let i = taken; i < count; i++) this.#queued.leave(burst[i]);
    return taken;
  }

  /** Makes a packet's chain. @returns false if it can not be sent; then nothing has changed */
  #describe(packet: number, buffers: DeviceBuffers): boolean {
    const { ring } = this;
    const packets = this.#packets;
    const { headers, headersIova } = this.#parts;
    const { buffer, offset, length, next } = packets;
    const flags = packets.flags[packet] & ANY_TX;
    const total = packets.total[packet];
    const most = (flags & OFFLOAD.TX_TSO) !== 0 ? MOST_CUT : this.#parts.maxFrame;
    if (total < ETHERNET.BYTES || total > most) return false;
    const chain = ring.begin();
    const slot = chain * HEADER_SLOT;
    clearHeader(headers, slot);
    let headerBytes: number = HEADER.BYTES;
    let bytes = total;
    /** Bytes of the first segment that were copied. */
    let skip = 0;
    if (flags !== 0) {
      if ((flags & ~this.#parts.offloads) !== 0) return false;
      const tag = (flags & OFFLOAD.TX_VLAN) !== 0 ? TAG : 0;
      if ((flags & (L4_SUMS | OFFLOAD.TX_TSO)) !== 0 && !this.#putSums(packet, flags, slot, tag)) return false;
      if (tag > 0) {
        bytes += TAG;
        if (length[packet] < ETHERNET.TYPE || bytes > most) return false;
        skip = ETHERNET.TYPE;
        headerBytes += this.#putTag(packet, slot + HEADER.BYTES);
      }
    }
    ring.add(headersIova + slot, headerBytes, false);
    for (let segment = packet; segment !== NONE; segment = next[segment]) {
      const size = length[segment] - skip;
      if (size > 0) {
        const iova = buffers.of(buffer[segment]);
        if (iova < 0) {
          ring.cancel();
          return false;
        }
        ring.add(iova + offset[segment] + skip, size, false);
      }
      skip = 0;
    }
    if (bytes < LEAST_FRAME) {
      ring.add(this.#parts.zerosIova, LEAST_FRAME - bytes, false);
      bytes = LEAST_FRAME;
    }
    ring.end();
    this.#packetOf[chain] = packet;
    this.#bytesOf[chain] = bytes;
    return true;
  }

  /** The addresses of a frame, and the tag behind them. @returns how many bytes these are */
  #putTag(packet: number, to: number): number {
    const packets = this.#packets;
    const { headers } = this.#parts;
    const view = packets.view(packet);
    const from = packets.start(packet);
    for (let i = 0; i < ETHERNET.TYPE; i++) headers[to + i] = view[from + i];
    putU16(headers, to + ETHERNET.TYPE, ETHER_TYPE.VLAN);
    putU16(headers, to + ETHERNET.TYPE + 2, packets.vlan[packet]);
    return ETHERNET.TYPE + TAG;
  }

  /** Which sums the device is to compute, and how it cuts (5.1.6.2). @param more bytes that are put in front @returns false if that can not be */
  #putSums(packet: number, flags: number, slot: number, more: number): boolean {
    const packets = this.#packets;
    const { headers } = this.#parts;
    const isCut = (flags & OFFLOAD.TX_TSO) !== 0;
    const isUdp = (flags & OFFLOAD.TX_UDP) !== 0;
    if (isUdp && (isCut || (flags & OFFLOAD.TX_TCP) !== 0)) return false;
    const l2 = packets.l2[packet];
    const l3 = packets.l3[packet];
    const l4 = l2 + l3;
    const field = isUdp ? UDP.SUM : TCP.SUM;
    const end = isCut ? l4 + packets.l4[packet] : l4 + field + 2;
    if (l2 < ETHERNET.BYTES || l3 < IPV4.BYTES || end > packets.total[packet]) return false;
    headers[slot + HEADER.FLAGS] = HEADER_FLAG.NEEDS_CSUM;
    putHeader16(headers, slot + HEADER.SUM_START, l4 + more);
    putHeader16(headers, slot + HEADER.SUM_OFFSET, field);
    if (!isCut) return true;
    const size = packets.segmentSize[packet];
    if (size === 0 || packets.l4[packet] < TCP.BYTES) return false;
    const isIpv6 = (flags & OFFLOAD.TX_IPV6) !== 0;
    headers[slot + HEADER.SEGMENTATION] = isIpv6 ? SEGMENTATION.TCPV6 : SEGMENTATION.TCPV4;
    putHeader16(headers, slot + HEADER.HEADERS, end + more);
    putHeader16(headers, slot + HEADER.SEGMENT_SIZE, size);
    return true;
  }

  /** Tells the device of what was put. */
  tell(): void {
    if (this.ring.publish()) this.#parts.notifier.tell();
  }

  /** Releases packets that were sent. */
  reap(): void {
    const { ring } = this;
    const packets = this.#packets;
    const done = this.#done;
    let count = 0;
    let sent = 0;
    let bytes = 0;
    for (let chain = ring.take(); chain !== NO_CHAIN; chain = ring.take()) {
      const packet = this.#packetOf[chain];
      this.#packetOf[chain] = NONE;
      this.#queued.leave(packet);
      // A program may have released what is not its own.
      if (packets.inUse(packet)) done[count++] = packet;
      sent++;
      bytes += this.#bytesOf[chain];
    }
    if (sent === 0) return;
    this.#counters[COUNT.TX_PACKETS] += sent;
    this.#counters[COUNT.TX_BYTES] += bytes;
    packets.release(done, count);
  }

  /** Releases what was not sent. The device must have ended. */
  end(): void {
    this.reap();
    for (const [chain, packet] of this.#packetOf.entries()) {
      if (packet === NONE) continue;
      this.#packetOf[chain] = NONE;
      this.#queued.leave(packet);
      if (this.#packets.inUse(packet)) this.#packets.releaseOne(packet);
      this.#counters[COUNT.TX_ERRORS]++;
    }
  }

  /** Does the device read a byte of [start, end)? VAs. */
  uses(start: number, end: number): boolean {
    return this.#packetOf.some((packet) => packet !== NONE && isShownIn(this.#packets, packet, start, end));
  }
}
