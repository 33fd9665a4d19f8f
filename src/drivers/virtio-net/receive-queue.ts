/**
 * A receive queue. Each element of the pool is a chain of one buffer: the device writes its header into the last bytes of the headroom, and
 * the frame behind it. A frame that is longer goes on in the elements that the device gives back next, without another header (5.1.6.3.2).
 */
import { DmaError } from '../../errors.js';
import { checksum, sumOfPacket } from '../../net/checksum.js';
import type { DeviceBuffers } from '../../net/device-buffers.js';
import { TAG } from '../../net/frames.js';
import { OFFLOAD } from '../../net/offloads.js';
import { NONE, type Packets } from '../../net/packets.js';
import { COUNT } from '../../net/port-base.js';
import { isShownIn } from '../ports/memory-use.js';
import { header16 } from './header.js';
import { HEADER, HEADER_FLAG } from './layout.js';
import { NO_CHAIN, type Ring } from './ring.js';
import type { Notifier } from './transport.js';

/** Buffers that are given together, if the ring has so many: telling the device is dear. */
const BATCH = 16;

/** `OFFLOAD` bits that it can do. */
export const RX_OFFLOADS = OFFLOAD.RX_L4_GOOD | OFFLOAD.RX_L4_BAD;

/** What a queue is made of. */
export interface ReceiveQueueParts {
  readonly queue: number;
  readonly ring: Ring;
  readonly packets: Packets;
  /** Can a frame be in several elements? */
  readonly merges: boolean;
  readonly maxFrame: number;
  /** `OFFLOAD` bits that are wanted. */
  readonly offloads: number;
  /** By `COUNT`. */
  readonly counters: Float64Array;
}

/** A receive queue. */
export class ReceiveQueue {
  readonly ring: Ring;
  readonly #parts: ReceiveQueueParts;
  readonly #packets: Packets;
  readonly #counters: Float64Array;
  /** Bytes that the device may write into an element, header included, and from where in it. */
  readonly #bufferBytes: number;
  readonly #from: number;
  readonly #most: number;
  readonly #batch: number;
  readonly #wantsSums: boolean;
  /** By chain: its element. */
  readonly #elements: Int32Array;
  readonly #fresh: Int32Array;
  #notifier: Notifier | undefined;
  /** Descriptors without an element, as far as they were counted. */
  #starved = 0;
  /** A packet of which so many elements have not come yet. */
  #first = NONE;
  #last = NONE;
  #toCome = 0;
  /** Is the rest of it thrown away? */
  #drops = false;

  constructor(parts: ReceiveQueueParts) {
    const { ring, packets, maxFrame } = parts;
    this.ring = ring;
    this.#parts = parts;
    this.#packets = packets;
    this.#counters = parts.counters;
    this.#bufferBytes = packets.room + HEADER.BYTES;
    this.#from = packets.headroom - HEADER.BYTES;
    // A tag of 802.1Q comes on top.
    this.#most = maxFrame + TAG;
    this.#batch = Math.min(BATCH, ring.size / 2);
    this.#wantsSums = (parts.offloads & RX_OFFLOADS) !== 0;
    this.#elements = new Int32Array(ring.size).fill(NONE);
    this.#fresh = new Int32Array(this.#batch);
  }

  /** The device works: it has what was filled in, and is told from now on. */
  go(notifier: Notifier): void {
    this.#notifier = notifier;
    this.#tell();
  }

  /** Fills it, without a word to the device. @throws DmaError ENOMEM if the pool has too few elements */
  fill(buffers: DeviceBuffers): void {
    this.#fill(buffers);
    const { pool } = this.#packets;
    const { free, size } = this.ring;
    if (free > 0)
      throw new DmaError({
        code: 'ENOMEM',
        operation: 'port.start',
        reason: `the pool ${pool.name} has ${size - free} elements for receive queue ${this.#parts.queue}, which has ${size} descriptors`,
        hint: 'make a pool with more elements, or start the port with fewer rxDescriptors',
      });
  }

  /** Would `take` give something? */
  get isReady(): boolean {
    return this.ring.isReady;
  }

  /** Has it so many free descriptors that it is worth to give the device more? */
  get isDue(): boolean {
    return this.ring.free >= this.#batch;
  }

  /** Takes up to `count` packets. Their descriptors are used again by {@link refill}. */
  take(burst: Int32Array, count: number): number {
    const { ring } = this;
    const elements = this.#elements;
    const packets = this.#packets;
    const { length, total } = packets;
    const bufferBytes = this.#bufferBytes;
    const most = this.#most;
    let taken = 0;
    let bytes = 0;
    while (taken < count) {
      const chain = ring.take();
      if (chain === NO_CHAIN) break;
      const element = elements[chain];
      elements[chain] = NONE;
      const { written } = ring;
      let packet = element;
      if (this.#toCome === 0) {
        const view = packets.view(element);
        const header = packets.start(element) - HEADER.BYTES;
        const size = written - HEADER.BYTES;
        const buffers = this.#parts.merges ? header16(view, header + HEADER.BUFFERS) : 1;
        if (buffers === 1 && size > 0 && written <= bufferBytes && size <= most) {
          length[element] = size;
          total[element] = size;
        } else {
          // A number that can not be says nothing of what follows.
          this.#drops = buffers === 0 || buffers > ring.size;
          this.#toCome = this.#drops ? 1 : buffers;
          packet = this.#addPiece(element, size);
        }
      } else {
        packets.offset[element] = this.#from;
        packet = this.#addPiece(element, written);
      }
      if (packet === NONE) continue;
      if (this.#wantsSums) this.#note(packet);
      bytes += total[packet];
      burst[taken++] = packet;
    }
    this.#counters[COUNT.RX_PACKETS] += taken;
    this.#counters[COUNT.RX_BYTES] += bytes;
    return taken;
  }

  /** Adds an element to a packet. @returns the packet, once it is whole */
  #addPiece(element: number, size: number): number {
    const packets = this.#packets;
    const { next, length, total, segments, room } = packets;
    const isFirst = this.#first === NONE;
    const most = packets.offset[element] === this.#from ? this.#bufferBytes : room;
    if (size <= 0 || size > most) this.#drops = true;
    if (this.#drops) packets.releaseOne(element);
    else {
      length[element] = size;
      if (isFirst) {
        this.#first = element;
        total[element] = size;
      } else {
        next[this.#last] = element;
        segments[this.#first]++;
        total[this.#first] += size;
      }
      this.#last = element;
      if (total[this.#first] > this.#most) this.#drops = true;
    }
    if (this.#drops) this.#forget();
    if (--this.#toCome > 0) return NONE;
    const packet = this.#first;
    this.#first = NONE;
    this.#drops = false;
    if (packet === NONE) this.#counters[COUNT.RX_ERRORS]++;
    return packet;
  }

  #forget(): void {
    if (this.#first !== NONE) this.#packets.releaseOne(this.#first);
    this.#first = NONE;
  }

  /** What the device found out. A sum that it has left undone is completed (5.1.6.4.2). */
  #note(packet: number): void {
    const packets = this.#packets;
    const view = packets.view(packet);
    const header = packets.start(packet) - HEADER.BYTES;
    const flags = view[header + HEADER.FLAGS];
    let found = 0;
    if ((flags & HEADER_FLAG.NEEDS_CSUM) !== 0) {
      const from = header16(view, header + HEADER.SUM_START);
      if (this.#complete(packet, from, from + header16(view, header + HEADER.SUM_OFFSET))) found = OFFLOAD.RX_L4_GOOD;
    } else if ((flags & HEADER_FLAG.DATA_VALID) !== 0) found = OFFLOAD.RX_L4_GOOD;
    packets.flags[packet] = found;
  }

  /** Puts the sum of what is behind `from` at `to`. @returns false if that is not in the first element */
  #complete(packet: number, from: number, to: number): boolean {
    const packets = this.#packets;
    if (to + 2 > packets.length[packet]) return false;
    const sum = checksum(sumOfPacket(packets, packet, from, packets.total[packet] - from));
    const view = packets.view(packet);
    const at = packets.start(packet) + to;
    // The sum of UDP that is 0 is written as all ones; for TCP both are the same number.
    const written = sum === 0 ? 0xffff : sum;
    view[at] = written >> 8;
    view[at + 1] = written;
    return true;
  }

  /** Gives the device elements for what it gave back, as far as the pool has any. */
  refill(buffers: DeviceBuffers): void {
    this.#fill(buffers);
    this.#tell();
  }

  #tell(): void {
    if (this.#notifier !== undefined && this.ring.publish()) this.#notifier.tell();
  }

  #fill(buffers: DeviceBuffers): void {
    const packets = this.#packets;
    const fresh = this.#fresh;
    let missing = this.ring.free;
    while (missing > 0) {
      let count = Math.min(missing, this.#batch);
      // The pool gives all or none: at the end of it, one by one.
      if (!packets.take(fresh, count)) {
        if (!packets.take(fresh, 1)) break;
        count = 1;
      }
      this.#give(fresh, count, buffers.elements);
      missing -= count;
    }
    if (missing > this.#starved) this.#counters[COUNT.RX_NO_BUFFERS] += missing - this.#starved;
    this.#starved = missing;
  }

  #give(fresh: Int32Array, count: number, iovas: Float64Array): void {
    const { ring } = this;
    const elements = this.#elements;
    const from = this.#from;
    const bytes = this.#bufferBytes;
    for (let i = 0; i < count; i++) {
      const element = fresh[i];
      elements[ring.begin()] = element;
      ring.add(iovas[element] + from, bytes, true);
      ring.end();
    }
  }

  /** Releases all elements. The device must have ended. */
  end(): void {
    this.#forget();
    this.#toCome = 0;
    const elements = this.#elements;
    for (let i = 0; i < elements.length; i++) {
      const element = elements[i];
      elements[i] = NONE;
      // A program may have released what is not its own.
      if (this.#packets.inUse(element)) this.#packets.releaseOne(element);
    }
  }

  /** Does the device write to a byte of [start, end)? VAs. */
  uses(start: number, end: number): boolean {
    return this.#elements.some((element) => element !== NONE && isShownIn(this.#packets, element, start, end));
  }
}
