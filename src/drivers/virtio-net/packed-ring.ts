/**
 * A packed ring (2.8): one ring of descriptors, in which the driver puts chains, and in which the device writes over them that it has used
 * them. Two bits of each descriptor tell whose it is; what they mean changes with each round. Descriptors are never read before they are the
 * driver's, and what is in them besides is known here.
 */
import { DESCRIPTOR, DESCRIPTOR_BYTES, EVENTS, PACKED } from './layout.js';
import { NO_CHAIN, type Ring, type RingMemory, type RingParts } from './ring.js';

/** Two words follow the ring: what the driver wants to be told, and what the device does. */
const EVENT_BYTES = 4;
/** In 16 bits: flags of a descriptor behind its address, length and chain; of an event behind its offset. */
const AT = { CHAIN: 6, FLAGS: 7, EVENT_FLAGS: 1 } as const;
const BOTH = PACKED.AVAILABLE | PACKED.USED;

/** Bytes of a ring of `size` descriptors. */
export function packedRingBytes(size: number): number {
  return size * DESCRIPTOR_BYTES + 2 * EVENT_BYTES;
}

/** A packed ring. */
export class PackedRing implements Ring {
  readonly size: number;
  readonly parts: RingParts;
  free: number;
  written = 0;
  broken: string | undefined;
  readonly #words: Uint32Array;
  readonly #halves: Uint16Array;
  readonly #driverEvents: Uint16Array;
  readonly #deviceEvents: Uint16Array;
  /** Numbers of chains that are free. */
  readonly #chains: Uint16Array;
  #freeChains: number;
  /** By chain: how many descriptors it has. 0: the device has no such chain. */
  readonly #lengths: Uint16Array;
  /** Where the open chain begins, and where its next descriptor is; bits of those that are available in this round. */
  #first = 0;
  #firstMark: number = PACKED.AVAILABLE;
  #next = 0;
  #mark: number = PACKED.AVAILABLE;
  #count = 0;
  #firstFlags = 0;
  /** The first chain that is not shown yet: all behind it are hidden by it. -1: all are shown. */
  #hidden = -1;
  #hiddenFlags = 0;
  /** Where the device tells that it has used something, and the bits of that in this round. */
  #used = 0;
  #usedMark: number = BOTH;
  /** Descriptors of chains that were shown. */
  #out = 0;
  #put = 0;

  constructor(size: number, { bytes, iova }: RingMemory) {
    const { buffer, byteOffset } = bytes;
    const driver = size * DESCRIPTOR_BYTES;
    this.size = size;
    this.free = size;
    this.parts = { descriptors: iova, driver: iova + driver, device: iova + driver + EVENT_BYTES };
    this.#words = new Uint32Array(buffer, byteOffset, size * 4);
    this.#halves = new Uint16Array(buffer, byteOffset, size * 8);
    this.#driverEvents = new Uint16Array(buffer, byteOffset + driver, 2);
    this.#deviceEvents = new Uint16Array(buffer, byteOffset + driver + EVENT_BYTES, 2);
    this.#chains = Uint16Array.from({ length: size }, (_, i) => size - 1 - i);
    this.#freeChains = size;
    this.#lengths = new Uint16Array(size);
  }

  begin(): number {
    this.#count = 0;
    this.#next = this.#first;
    this.#mark = this.#firstMark;
    return this.#chains[this.#freeChains - 1];
  }

  add(iova: number, bytes: number, isWritten: boolean): void {
    const words = this.#words;
    const here = this.#next;
    const at = here * 4;
    const chain = this.#chains[this.#freeChains - 1];
    if (this.#count > 0) this.#link();
    // A store of a Number keeps its low 32 bits.
    words[at] = iova;
    words[at + 1] = iova / 2 ** 32;
    words[at + 2] = bytes;
    const flags = this.#mark | (isWritten ? DESCRIPTOR.WRITE : 0);
    if (this.#count === 0) {
      // The first one stays hidden until the others are there (2.8.21.1).
      this.#halves[here * 8 + AT.CHAIN] = chain;
      this.#firstFlags = flags;
    } else words[at + 3] = chain | (flags << 16);
    this.#count++;
    if (++this.#next === this.size) {
      this.#next = 0;
      this.#mark ^= BOTH;
    }
  }

  /** The descriptor that was added last is followed by another one. */
  #link(): void {
    if (this.#count === 1) this.#firstFlags |= DESCRIPTOR.NEXT;
    else this.#halves[(this.#next === 0 ? this.size - 1 : this.#next - 1) * 8 + AT.FLAGS] |= DESCRIPTOR.NEXT;
  }

  end(): void {
    const chain = this.#chains[--this.#freeChains];
    this.#lengths[chain] = this.#count;
    this.free -= this.#count;
    this.#put += this.#count;
    if (this.#hidden < 0) {
      this.#hidden = this.#first;
      this.#hiddenFlags = this.#firstFlags;
    } else this.#halves[this.#first * 8 + AT.FLAGS] = this.#firstFlags;
    this.#first = this.#next;
    this.#firstMark = this.#mark;
  }

  cancel(): void {
    // A later chain may be shorter: what is behind it must not look as if it was available.
    let here = this.#first;
    let mark = this.#firstMark;
    for (let i = 0; i < this.#count; i++) {
      this.#halves[here * 8 + AT.FLAGS] = mark === PACKED.AVAILABLE ? 0 : BOTH;
      if (++here === this.size) {
        here = 0;
        mark ^= BOTH;
      }
    }
    this.#count = 0;
  }

  publish(): boolean {
    if (this.#hidden < 0) return false;
    // In order with what was written before and what is read behind it.
    Atomics.store(this.#halves, this.#hidden * 8 + AT.FLAGS, this.#hiddenFlags);
    this.#hidden = -1;
    this.#out += this.#put;
    this.#put = 0;
    return Atomics.load(this.#deviceEvents, AT.EVENT_FLAGS) !== EVENTS.OFF;
  }

  take(): number {
    if (!this.#isUsed || this.broken !== undefined) return NO_CHAIN;
    const chain = this.#halves[this.#used * 8 + AT.CHAIN];
    const length = chain < this.size ? this.#lengths[chain] : 0;
    if (length === 0) {
      this.broken = `gave back chain ${chain}, which it does not have`;
      return NO_CHAIN;
    }
    this.written = this.#words[this.#used * 4 + 2];
    this.#lengths[chain] = 0;
    this.#chains[this.#freeChains++] = chain;
    this.free += length;
    this.#out -= length;
    this.#used += length;
    if (this.#used >= this.size) {
      this.#used -= this.size;
      this.#usedMark ^= BOTH;
    }
    return chain;
  }

  /** What is in a ring of which the device has nothing says nothing. */
  get #isUsed(): boolean {
    return this.#out > 0 && (Atomics.load(this.#halves, this.#used * 8 + AT.FLAGS) & BOTH) === this.#usedMark;
  }

  get isReady(): boolean {
    return this.broken !== undefined || this.#isUsed;
  }

  setInterrupts(on: boolean): void {
    Atomics.store(this.#driverEvents, AT.EVENT_FLAGS, on ? EVENTS.ON : EVENTS.OFF);
  }
}
