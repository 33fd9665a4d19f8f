/**
 * A receive queue: a ring of descriptors, extended or legacy, each with an element of the pool. The adapter has those from its head up to the tail;
 * one always stays out, as a tail that is equal to the head means that it has none.
 */
import { DmaError } from '../../errors.js';
import type { DeviceBuffers } from '../../net/device-buffers.js';
import { TAG } from '../../net/frames.js';
import { OFFLOAD } from '../../net/offloads.js';
import { NONE, type Packets } from '../../net/packets.js';
import { COUNT } from '../../net/port-base.js';
import type { RegisterStores } from '../../platform/registers/registers.js';
import { isShownIn } from '../ports/memory-use.js';
import { DESCRIPTOR_BYTES, extendedStatus, LEGACY_RX, RX, RX_QUEUE } from './registers.js';

/** Descriptors that are given back together: the tail is a register, and a store to it is dear. */
const BATCH = 16;

/** What a queue is made of. */
export interface ReceiveRingParts {
  readonly queue: number;
  readonly descriptors: number;
  /** The ring's memory, four words a descriptor, and where the adapter finds it. */
  readonly words: Uint32Array;
  readonly iova: number;
  readonly registers: RegisterStores;
  readonly packets: Packets;
  /** Bytes that the adapter writes into an element at most. */
  readonly bufferBytes: number;
  readonly maxFrame: number;
  /** `OFFLOAD` bits that are wanted. */
  readonly offloads: number;
  /** Are descriptors legacy ones? */
  readonly isLegacy: boolean;
  /** By `COUNT`. */
  readonly counters: Float64Array;
}

const WANTS = {
  VLAN: OFFLOAD.RX_VLAN_STRIPPED,
  IP: OFFLOAD.RX_IP_GOOD | OFFLOAD.RX_IP_BAD,
  L4: OFFLOAD.RX_L4_GOOD | OFFLOAD.RX_L4_BAD,
  HASH: OFFLOAD.RX_HASH,
} as const;

/** A receive queue. */
export class ReceiveRing {
  readonly #parts: ReceiveRingParts;
  readonly #packets: Packets;
  readonly #words: Uint32Array;
  readonly #counters: Float64Array;
  readonly #size: number;
  readonly #bufferBytes: number;
  readonly #most: number;
  readonly #offloads: number;
  readonly #isLegacy: boolean;
  /** The word of a descriptor that says whether it is done. */
  readonly #statusWord: number;
  /** By descriptor: its element. */
  readonly #elements: Int32Array;
  readonly #fresh = new Int32Array(BATCH);
  /** The descriptor that is given back next, and how many from it on the adapter has. */
  #next = 0;
  #given = 0;
  /** The first descriptor that it has not, which is its tail, and what the register says. */
  #tail = 0;
  #told = 0;
  /** Descriptors without an element, as far as they were counted. */
  #starved = 0;
  /** A packet whose end has not come yet. */
  #first = NONE;
  #last = NONE;
  /** Is the rest of a packet thrown away, up to its end? */
  #drops = false;

  constructor(parts: ReceiveRingParts) {
    this.#parts = parts;
    this.#packets = parts.packets;
    this.#words = parts.words;
    this.#counters = parts.counters;
    this.#size = parts.descriptors;
    this.#bufferBytes = parts.bufferBytes;
    // A tag of 802.1Q comes on top.
    this.#most = parts.maxFrame + TAG;
    this.#offloads = parts.offloads;
    this.#isLegacy = parts.isLegacy;
    this.#statusWord = parts.isLegacy ? LEGACY_RX.STATUS : 2;
    this.#elements = new Int32Array(parts.descriptors).fill(NONE);
  }

  /** Tells the adapter where the ring is. It has no descriptor until {@link fill}. */
  setUp(): void {
    const { registers, queue, iova } = this.#parts;
    const at = queue * RX_QUEUE.STEP;
    registers.write32(RX_QUEUE.BAL + at, iova % 2 ** 32);
    registers.write32(RX_QUEUE.BAH + at, Math.floor(iova / 2 ** 32));
    registers.write32(RX_QUEUE.LEN + at, this.#size * DESCRIPTOR_BYTES);
    registers.write32(RX_QUEUE.HEAD + at, 0);
    registers.write32(RX_QUEUE.TAIL + at, 0);
  }

  /** Fills it, without a word to the adapter. @throws DmaError ENOMEM if the pool has too few elements */
  fill(buffers: DeviceBuffers): void {
    this.#fill(buffers);
    const { pool } = this.#packets;
    if (this.#given < this.#size - 1)
      throw new DmaError({
        code: 'ENOMEM',
        operation: 'port.start',
        reason: `the pool ${pool.name} has ${this.#given} elements for receive queue ${this.#parts.queue}, which has ${this.#size} descriptors`,
        hint: 'make a pool with more elements, or start the port with fewer rxDescriptors',
      });
  }

  /** Would `take` give something? */
  get isReady(): boolean {
    return this.#given > 0 && (this.#words[this.#next * 4 + this.#statusWord] & RX.DONE) !== 0;
  }

  /** Has it fewer descriptors out than a batch less than it could? */
  get isDue(): boolean {
    return this.#size - 1 - this.#given >= BATCH;
  }

  /** Takes up to `count` packets. Their descriptors are given back by {@link refill}. */
  take(burst: Int32Array, count: number): number {
    const words = this.#words;
    const elements = this.#elements;
    const { length, total } = this.#packets;
    const bufferBytes = this.#bufferBytes;
    const most = this.#most;
    const offloads = this.#offloads;
    const isLegacy = this.#isLegacy;
    const statusWord = this.#statusWord;
    let next = this.#next;
    let given = this.#given;
    let taken = 0;
    let bytes = 0;
    while (taken < count && given > 0) {
      const at = next * 4;
      // Whether it is done is read first: until then, the other words are of the one before.
      let status = words[at + statusWord];
      if ((status & RX.DONE) === 0) break;
      const last = words[at + 3];
      const size = (isLegacy ? words[at + LEGACY_RX.LENGTH] : last) & 0xffff;
      if (isLegacy) status = extendedStatus(status);
      const element = elements[next];
      elements[next] = NONE;
      if (++next === this.#size) next = 0;
      given--;
      let packet = element;
      if (
        this.#first === NONE &&
        !this.#drops &&
        (status & (RX.END | RX.FRAME_ERRORS)) === RX.END &&
        size !== 0 &&
        size <= bufferBytes &&
        size <= most
      ) {
        length[element] = size;
        total[element] = size;
      } else {
        packet = this.#addPiece(element, size, status);
        if (packet === NONE) continue;
      }
      bytes += total[packet];
      if (offloads !== 0) bytes += this.#note(packet, status, last >>> 16, words[at], words[at + 1]);
      burst[taken++] = packet;
    }
    this.#next = next;
    this.#given = given;
    this.#counters[COUNT.RX_PACKETS] += taken;
    this.#counters[COUNT.RX_BYTES] += bytes;
    return taken;
  }

  /** Adds a part of a packet. @returns the packet, once it is whole */
  #addPiece(element: number, size: number, status: number): number {
    const packets = this.#packets;
    const { next, length, total, segments } = packets;
    const isEnd = (status & RX.END) !== 0;
    if (size > this.#bufferBytes || (status & RX.FRAME_ERRORS) !== 0) this.#drops = true;
    if (this.#drops || size === 0)
      // An end of 0 bytes: the last buffer was filled by the frame, and the check sum behind it was taken away.
      packets.releaseOne(element);
    else {
      length[element] = size;
      if (this.#first === NONE) {
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
    if (!isEnd) return NONE;
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

  /** What the adapter found out. @returns bytes that it took away from the frame */
  #note(packet: number, status: number, tag: number, type: number, hash: number): number {
    const packets = this.#packets;
    const offloads = this.#offloads;
    let flags = 0;
    if ((offloads & WANTS.VLAN) !== 0 && (status & RX.VLAN) !== 0) {
      flags |= OFFLOAD.RX_VLAN_STRIPPED;
      packets.vlan[packet] = tag;
    }
    if ((status & RX.IGNORE_SUMS) === 0) {
      if ((offloads & WANTS.IP) !== 0 && (status & RX.IP_CHECKED) !== 0)
        flags |= (status & RX.IP_ERROR) === 0 ? OFFLOAD.RX_IP_GOOD : OFFLOAD.RX_IP_BAD;
      if ((offloads & WANTS.L4) !== 0 && (status & (RX.TCP_CHECKED | RX.UDP_CHECKED)) !== 0)
        flags |= (status & RX.L4_ERROR) === 0 ? OFFLOAD.RX_L4_GOOD : OFFLOAD.RX_L4_BAD;
    }
    if ((offloads & WANTS.HASH) !== 0 && (type & RX.TYPE) !== 0) {
      flags |= OFFLOAD.RX_HASH;
      packets.hash[packet] = hash;
    }
    packets.flags[packet] = flags;
    return (flags & OFFLOAD.RX_VLAN_STRIPPED) !== 0 ? TAG : 0;
  }

  /** Gives the adapter elements for what it gave back, as far as the pool has any. */
  refill(buffers: DeviceBuffers): void {
    this.#fill(buffers);
    this.ring();
  }

  #fill(buffers: DeviceBuffers): void {
    const packets = this.#packets;
    const fresh = this.#fresh;
    const wanted = this.#size - 1 - this.#given;
    let missing = wanted;
    while (missing > 0) {
      let count = Math.min(missing, BATCH);
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

  /** Tells the adapter which descriptors it has. It must be receiving the first time. */
  ring(): void {
    if (this.#tail === this.#told) return;
    this.#told = this.#tail;
    this.#parts.registers.write32(RX_QUEUE.TAIL + this.#parts.queue * RX_QUEUE.STEP, this.#tail);
  }

  #give(fresh: Int32Array, count: number, iovas: Float64Array): void {
    const words = this.#words;
    const elements = this.#elements;
    const { headroom } = this.#packets;
    let tail = this.#tail;
    for (let i = 0; i < count; i++) {
      const element = fresh[i];
      const iova = iovas[element] + headroom;
      const at = tail * 4;
      elements[tail] = element;
      // A store of a Number keeps its low 32 bits.
      words[at] = iova;
      words[at + 1] = iova / 2 ** 32;
      words[at + 2] = 0;
      words[at + 3] = 0;
      if (++tail === this.#size) tail = 0;
    }
    this.#tail = tail;
    this.#given += count;
  }

  /** Releases all elements. The adapter must have ended. */
  end(): void {
    this.#forget();
    const elements = this.#elements;
    for (let i = 0; i < elements.length; i++) {
      const element = elements[i];
      elements[i] = NONE;
      // A program may have released what is not its own.
      if (this.#packets.inUse(element)) this.#packets.releaseOne(element);
    }
    this.#given = 0;
  }

  /** Does the adapter write to a byte of [start, end)? VAs. */
  uses(start: number, end: number): boolean {
    return this.#elements.some((element) => element !== NONE && isShownIn(this.#packets, element, start, end));
  }
}
