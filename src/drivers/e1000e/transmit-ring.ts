/**
 * A transmit queue: a ring of descriptors. A packet has one for each page of each segment, one before them (the context) if check sums are computed, one
 * for a tag that the adapter does not insert, and one behind them that pads short frames with zeros. One descriptor of the ring always stays free, as a
 * tail that is equal to the head means that there is nothing to send.
 */
import { invalid } from '../../errors.js';
import type { DeviceBuffers } from '../../net/device-buffers.js';
import { ETHERNET, ETHER_TYPE, IPV4, putU16, TAG, TCP, UDP } from '../../net/frames.js';
import { OFFLOAD } from '../../net/offloads.js';
import { NONE, type Packets } from '../../net/packets.js';
import { COUNT, LEAST_FRAME } from '../../net/port-base.js';
import type { RegisterStores } from '../../platform/registers/registers.js';
import { isShownIn } from '../ports/memory-use.js';
import { DESCRIPTOR_BYTES, TX, TX_QUEUE } from './registers.js';

/** Segments of a packet. */
export const MOST_SEGMENTS = 40;
/** Descriptors of a packet besides those of the pages of its segments. */
const MORE_DESCRIPTORS = 3;
/**
 * A descriptor shows bytes of one page. An adapter does not need that, but QEMU's drops a frame with a descriptor whose pages are not side by side
 * in the machine's memory, as those of ordinary pages behind an IOMMU are.
 */
const PAGE = 4096;
/** The pages of a frame besides one or two for each segment: as many as the longest frame fills. */
const MORE_PAGES = 3;
/** Bytes for each descriptor where the header is put together of a frame with a tag. */
export const HEADER_BYTES = 16;

const SUMS = OFFLOAD.TX_IP | OFFLOAD.TX_TCP | OFFLOAD.TX_UDP;
const L4_SUMS = OFFLOAD.TX_TCP | OFFLOAD.TX_UDP;
/** What it can do. */
export const TX_OFFLOADS = OFFLOAD.TX_VLAN | SUMS | OFFLOAD.TX_IPV6;
/** Flags of packets that ask for something. */
const ANY_TX = TX_OFFLOADS | OFFLOAD.TX_TSO;

/** What a queue is made of. */
export interface TransmitRingParts {
  readonly queue: number;
  readonly descriptors: number;
  /** The ring's memory, four words a descriptor, and where the adapter finds it. */
  readonly words: Uint32Array;
  readonly iova: number;
  /** {@link HEADER_BYTES} for each descriptor, and where the adapter finds them. */
  readonly headers: Uint8Array;
  readonly headersIova: number;
  /** Where the adapter finds {@link LEAST_FRAME} zeros. */
  readonly zerosIova: number;
  readonly registers: RegisterStores;
  readonly packets: Packets;
  /** By packet: a queue of the port has it. The same for all its queues. */
  readonly queued: Uint8Array;
  /** Does the adapter insert tags? It does only if it strips them, too. */
  readonly insertsTags: boolean;
  /** Are packets without check sums to be computed shown by legacy descriptors? */
  readonly isLegacy: boolean;
  readonly maxFrame: number;
  /** By `COUNT`. */
  readonly counters: Float64Array;
}

/** A transmit queue. */
export class TransmitRing {
  readonly #parts: TransmitRingParts;
  readonly #packets: Packets;
  readonly #words: Uint32Array;
  readonly #counters: Float64Array;
  readonly #queued: Uint8Array;
  readonly #size: number;
  /** By the first descriptor of a packet: the packet, its last descriptor, and the bytes of its frame. */
  readonly #packetOf: Int32Array;
  readonly #lastOf: Int32Array;
  readonly #bytesOf: Uint32Array;
  readonly #done: Int32Array;
  /** By descriptor: the segment that it shows, if it shows one. */
  readonly #segmentOf: Int32Array;
  /** The first descriptor that the adapter may not have finished; the first that is free; and what it was told of. */
  #clean = 0;
  #tail = 0;
  #told = 0;

  constructor(parts: TransmitRingParts) {
    this.#parts = parts;
    this.#packets = parts.packets;
    this.#words = parts.words;
    this.#counters = parts.counters;
    this.#queued = parts.queued;
    this.#size = parts.descriptors;
    this.#packetOf = new Int32Array(parts.descriptors).fill(NONE);
    this.#lastOf = new Int32Array(parts.descriptors);
    this.#bytesOf = new Uint32Array(parts.descriptors);
    this.#done = new Int32Array(parts.descriptors);
    this.#segmentOf = new Int32Array(parts.descriptors).fill(NONE);
  }

  /** Tells the adapter where the ring is. */
  setUp(): void {
    const { registers, queue, iova } = this.#parts;
    const at = queue * TX_QUEUE.STEP;
    registers.write32(TX_QUEUE.BAL + at, iova % 2 ** 32);
    registers.write32(TX_QUEUE.BAH + at, Math.floor(iova / 2 ** 32));
    registers.write32(TX_QUEUE.LEN + at, this.#size * DESCRIPTOR_BYTES);
    registers.write32(TX_QUEUE.HEAD + at, 0);
    registers.write32(TX_QUEUE.TAIL + at, 0);
  }

  /** Was everything sent? */
  get isEmpty(): boolean {
    return this.#clean === this.#tail;
  }

  /**
   * Takes up to `count` packets; {@link ring} tells the adapter. What can not be sent (no Ethernet header, too long, too many segments, memory
   * that is not mapped, an offload that there is not) is taken, counted and released.
   *
   * @throws DmaError EINVAL for a packet that is not in use or was taken before, before anything is taken
   */
  put(burst: Int32Array, count: number, buffers: DeviceBuffers): number {
    this.#claim(burst, count);
    const packets = this.#packets;
    const { segments } = packets;
    let taken = 0;
    let free = this.#free;
    for (; taken < count; taken++) {
      const packet = burst[taken];
      const pieces = segments[packet];
      // Most that it may need; counted only if that is more than there is.
      let needed = 2 * pieces + MORE_PAGES + MORE_DESCRIPTORS;
      if (needed > free) needed = this.#count(packet, buffers) + MORE_DESCRIPTORS;
      const canBe = pieces <= MOST_SEGMENTS && needed < this.#size;
      if (canBe && needed > free) break;
      if (canBe && this.#describe(packet, buffers)) free = this.#free;
      else {
        this.#disown(packet);
        packets.releaseOne(packet);
        this.#counters[COUNT.TX_ERRORS]++;
      }
    }
    // The rest stays the caller's.
    for (let i = taken; i < count; i++) this.#disown(burst[i]);
    return taken;
  }

  /** Pages of the segments of a packet. */
  #count(packet: number, buffers: DeviceBuffers): number {
    const { buffer, offset, length, next } = this.#packets;
    let pages = 0;
    for (let segment = packet; segment !== NONE; segment = next[segment]) {
      const start = (buffers.of(buffer[segment]) + offset[segment]) & (PAGE - 1);
      pages += Math.ceil((start + length[segment]) / PAGE);
    }
    return pages;
  }

  /** The packets are the queue's, with all of their segments, if they can be. */
  #claim(burst: Int32Array, count: number): void {
    const packets = this.#packets;
    const queued = this.#queued;
    const { next } = packets;
    for (let i = 0; i < count; i++) {
      const packet = burst[i];
      let segment = packet;
      let claimed = 0;
      // A segment that is the queue's already ends it: also where a chain runs in a circle.
      for (; packets.inUse(segment) && queued[segment] === 0; segment = next[segment]) {
        queued[segment] = 1;
        claimed++;
      }
      if (segment === NONE && claimed > 0) continue;
      for (let own = packet; claimed > 0; own = next[own], claimed--) queued[own] = 0;
      for (let k = 0; k < i; k++) this.#disown(burst[k]);
      const before = packets.inUse(segment);
      throw invalid('port.tx', before ? `packet ${segment} was sent before` : `${segment} is no packet in use`, {
        hint: 'what tx takes belongs to the port until it was sent; packets.clone makes another packet of the same bytes',
      });
    }
  }

  /** The packet is not the queue's. */
  #disown(packet: number): void {
    const { next } = this.#packets;
    for (let segment = packet; segment !== NONE; segment = next[segment]) this.#queued[segment] = 0;
  }

  get #free(): number {
    const free = this.#clean - this.#tail - 1;
    return free < 0 ? free + this.#size : free;
  }

  /** Writes the descriptors of a packet. @returns false if it can not be sent; then nothing has changed */
  #describe(packet: number, buffers: DeviceBuffers): boolean {
    const packets = this.#packets;
    const { buffer, offset, length, next } = packets;
    const flags = packets.flags[packet] & ANY_TX;
    const total = packets.total[packet];
    if (total < ETHERNET.BYTES || total > this.#parts.maxFrame) return false;
    const first = this.#tail;
    const isLegacy = this.#parts.isLegacy && (flags & SUMS) === 0;
    let command = isLegacy ? TX.INSERT_CRC : TX.DATA | TX.EXTENDED | TX.INSERT_CRC;
    let upper = 0;
    let bytes = total;
    /** Bytes of the first segment that were copied. */
    let skip = 0;
    if (flags !== 0) {
      if ((flags & OFFLOAD.TX_TSO) !== 0) return false;
      const hasTag = (flags & OFFLOAD.TX_VLAN) !== 0;
      const copies = hasTag && !this.#parts.insertsTags;
      if ((flags & SUMS) !== 0) {
        if (!this.#putContext(packet, flags, copies ? TAG : 0)) return false;
        upper |= ((flags & OFFLOAD.TX_IP) !== 0 ? TX.SUM_IP : 0) | ((flags & L4_SUMS) !== 0 ? TX.SUM_L4 : 0);
      }
      if (hasTag) {
        bytes += TAG;
        if (!copies) {
          command |= TX.INSERT_VLAN;
          upper |= packets.vlan[packet] << TX.VLAN_SHIFT;
        } else if (length[packet] >= ETHERNET.TYPE && bytes <= this.#parts.maxFrame) {
          skip = ETHERNET.TYPE;
          this.#putHeader(packet, command, upper);
        } else return this.#undo(first);
      }
    }
    for (let segment = packet; segment !== NONE; segment = next[segment]) {
      const size = length[segment] - skip;
      if (size > 0) {
        const iova = buffers.of(buffer[segment]);
        if (iova < 0) return this.#undo(first);
        this.#putPieces(segment, iova + offset[segment] + skip, size, command, upper);
      } else if (segment !== packet) this.#queued[segment] = 0;
      skip = 0;
    }
    if (bytes < LEAST_FRAME) {
      this.#putData(this.#parts.zerosIova, LEAST_FRAME - bytes, command, upper);
      bytes = LEAST_FRAME;
    }
    const last = this.#tail === 0 ? this.#size - 1 : this.#tail - 1;
    this.#words[last * 4 + 2] |= TX.END | TX.REPORT;
    this.#packetOf[first] = packet;
    this.#lastOf[first] = last;
    this.#bytesOf[first] = bytes;
    return true;
  }

  #undo(first: number): false {
    for (let at = first; at !== this.#tail; at = at + 1 === this.#size ? 0 : at + 1) this.#segmentOf[at] = NONE;
    this.#tail = first;
    return false;
  }

  /** A descriptor for each page that a segment is in. */
  #putPieces(segment: number, iova: number, size: number, command: number, upper: number): void {
    let at = iova;
    let left = size;
    while (left > 0) {
      const room = PAGE - (at & (PAGE - 1));
      const piece = left < room ? left : room;
      this.#segmentOf[this.#tail] = segment;
      this.#putData(at, piece, command, upper);
      at += piece;
      left -= piece;
    }
  }

  #putData(iova: number, size: number, command: number, upper: number): void {
    const words = this.#words;
    const at = this.#tail * 4;
    // A store of a Number keeps its low 32 bits.
    words[at] = iova;
    words[at + 1] = iova / 2 ** 32;
    words[at + 2] = size | command;
    words[at + 3] = upper;
    if (++this.#tail === this.#size) this.#tail = 0;
  }

  /** The addresses of a frame, and the tag behind them. */
  #putHeader(packet: number, command: number, upper: number): void {
    const packets = this.#packets;
    const { headers, headersIova } = this.#parts;
    const to = this.#tail * HEADER_BYTES;
    const view = packets.view(packet);
    const from = packets.start(packet);
    for (let i = 0; i < ETHERNET.TYPE; i++) headers[to + i] = view[from + i];
    putU16(headers, to + ETHERNET.TYPE, ETHER_TYPE.VLAN);
    putU16(headers, to + ETHERNET.TYPE + 2, packets.vlan[packet]);
    this.#putData(headersIova + to, ETHERNET.TYPE + TAG, command, upper);
  }

  /** Where check sums are. @param more bytes that are put in front of them @returns false if they are not in the frame */
  #putContext(packet: number, flags: number, more: number): boolean {
    const packets = this.#packets;
    const ip = packets.l2[packet] + more;
    const l4 = ip + packets.l3[packet];
    const isIpv4 = (flags & OFFLOAD.TX_IPV6) === 0;
    const isTcp = (flags & OFFLOAD.TX_TCP) !== 0;
    const ipSum = ip + IPV4.SUM;
    const l4Sum = l4 + (isTcp ? TCP.SUM : UDP.SUM);
    // Offsets have 8 bits. The adapter would write sums to what is behind the frame.
    const end = (flags & L4_SUMS) !== 0 ? l4Sum + 2 : l4;
    if (packets.l2[packet] < ETHERNET.BYTES || packets.l3[packet] < IPV4.BYTES) return false;
    if (end > 0xff || end > packets.total[packet] + more) return false;
    if (isTcp && (flags & OFFLOAD.TX_UDP) !== 0) return false;
    if (!isIpv4 && (flags & OFFLOAD.TX_IP) !== 0) return false;
    const words = this.#words;
    const at = this.#tail * 4;
    words[at] = ip | (ipSum << 8) | ((l4 - 1) << 16);
    // An end of 0: to the end of the frame.
    words[at + 1] = l4 | (l4Sum << 8);
    words[at + 2] = TX.EXTENDED | (isTcp ? TX.CONTEXT_TCP : 0) | (isIpv4 ? TX.CONTEXT_IPV4 : 0);
    words[at + 3] = 0;
    if (++this.#tail === this.#size) this.#tail = 0;
    return true;
  }

  /** Tells the adapter of what was put. */
  ring(): void {
    if (this.#tail === this.#told) return;
    this.#told = this.#tail;
    this.#parts.registers.write32(TX_QUEUE.TAIL + this.#parts.queue * TX_QUEUE.STEP, this.#tail);
  }

  /** Releases packets that were sent. */
  reap(): void {
    const words = this.#words;
    const packets = this.#packets;
    const done = this.#done;
    const told = this.#told;
    let clean = this.#clean;
    let count = 0;
    let sent = 0;
    let bytes = 0;
    while (clean !== told) {
      const last = this.#lastOf[clean];
      if ((words[last * 4 + 3] & TX.DONE) === 0) break;
      const packet = this.#takeBack(clean, last);
      // A program may have released what is not its own.
      if (packets.inUse(packet)) done[count++] = packet;
      sent++;
      bytes += this.#bytesOf[clean];
      clean = last + 1 === this.#size ? 0 : last + 1;
    }
    if (sent === 0) return;
    this.#clean = clean;
    this.#counters[COUNT.TX_PACKETS] += sent;
    this.#counters[COUNT.TX_BYTES] += bytes;
    packets.release(done, count);
  }

  /** Releases what was not sent. The adapter must have ended. */
  end(): void {
    this.#told = this.#tail;
    this.reap();
    while (this.#clean !== this.#tail) {
      const last = this.#lastOf[this.#clean];
      const packet = this.#takeBack(this.#clean, last);
      if (this.#packets.inUse(packet)) this.#packets.releaseOne(packet);
      this.#counters[COUNT.TX_ERRORS]++;
      this.#clean = last + 1 === this.#size ? 0 : last + 1;
    }
  }

  /** The packet of the descriptors from `first` to `last` is not the queue's any more. @returns it */
  #takeBack(first: number, last: number): number {
    const packet = this.#packetOf[first];
    this.#packetOf[first] = NONE;
    this.#queued[packet] = 0;
    for (let at = first; ; at = at + 1 === this.#size ? 0 : at + 1) {
      const segment = this.#segmentOf[at];
      if (segment !== NONE) this.#queued[segment] = 0;
      this.#segmentOf[at] = NONE;
      if (at === last) return packet;
    }
  }

  /** Does the adapter read a byte of [start, end)? VAs. */
  uses(start: number, end: number): boolean {
    return this.#packetOf.some((packet) => packet !== NONE && isShownIn(this.#packets, packet, start, end));
  }
}
