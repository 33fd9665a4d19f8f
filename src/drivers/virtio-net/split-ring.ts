/**
 * A split ring (2.7): a table of descriptors, a ring in which the driver names chains that are available, and one in which the device names
 * those that it has used. The table is never read back: what is in it is known here.
 */
import { DESCRIPTOR, DESCRIPTOR_BYTES, QUIET } from './layout.js';
import { NO_CHAIN, type Ring, type RingMemory, type RingParts } from './ring.js';

/** Both rings begin with flags and an index of 16 bits each. */
const FLAGS = 0;
const INDEX = 1;
const HEAD_BYTES = 4;

/** The driver's ring follows the table; the device's begins on the next multiple of 4. */
function layoutOf(size: number): { readonly driver: number; readonly device: number; readonly bytes: number } {
  const driver = size * DESCRIPTOR_BYTES;
  const device = driver + HEAD_BYTES + 2 * size;
  return { driver, device: device + (device % 4), bytes: device + (device % 4) + HEAD_BYTES + 8 * size };
}

/** Bytes of a ring of `size` descriptors. */
export function splitRingBytes(size: number): number {
  return layoutOf(size).bytes;
}

/** A split ring. */
export class SplitRing implements Ring {
  readonly size: number;
  readonly parts: RingParts;
  free: number;
  written = 0;
  broken: string | undefined;
  readonly #mask: number;
  readonly #table: Uint32Array;
  readonly #available: Uint16Array;
  readonly #used: Uint16Array;
  readonly #usedWords: Uint32Array;
  /** By descriptor: the free one behind it. Descriptors of a chain are still linked as they were when they were free. */
  readonly #following: Uint16Array;
  /** By the first descriptor of a chain that the device has: how many it has, and the last. 0: it has no such chain. */
  readonly #lengths: Uint16Array;
  readonly #lasts: Uint16Array;
  /** The first free descriptor, and the one that the open chain takes next. */
  #firstFree = 0;
  #next = 0;
  /** Of the open chain. */
  #count = 0;
  #last = 0;
  #lastFlags = 0;
  /** Indexes of 16 bits: chains that were put, shown, taken, and that the device had used when it was looked at last. */
  #put = 0;
  #shown = 0;
  #taken = 0;
  #seen = 0;

  constructor(size: number, { bytes, iova }: RingMemory) {
    const { driver, device } = layoutOf(size);
    const { buffer, byteOffset } = bytes;
    this.size = size;
    this.free = size;
    this.parts = { descriptors: iova, driver: iova + driver, device: iova + device };
    this.#mask = size - 1;
    this.#table = new Uint32Array(buffer, byteOffset, size * 4);
    this.#available = new Uint16Array(buffer, byteOffset + driver, 2 + size);
    this.#used = new Uint16Array(buffer, byteOffset + device, 2);
    this.#usedWords = new Uint32Array(buffer, byteOffset + device + HEAD_BYTES, 2 * size);
    this.#following = Uint16Array.from({ length: size }, (_, i) => i + 1);
    this.#lengths = new Uint16Array(size);
    this.#lasts = new Uint16Array(size);
  }

  begin(): number {
    this.#count = 0;
    this.#next = this.#firstFree;
    return this.#firstFree;
  }

  add(iova: number, bytes: number, isWritten: boolean): void {
    const table = this.#table;
    const here = this.#next;
    const at = here * 4;
    const flags = isWritten ? DESCRIPTOR.WRITE : 0;
    // A store of a Number keeps its low 32 bits.
    table[at] = iova;
    table[at + 1] = iova / 2 ** 32;
    table[at + 2] = bytes;
    table[at + 3] = flags;
    if (this.#count > 0) table[this.#last * 4 + 3] = this.#lastFlags | DESCRIPTOR.NEXT | (here << 16);
    this.#last = here;
    this.#lastFlags = flags;
    this.#next = this.#following[here];
    this.#count++;
  }

  end(): void {
    const first = this.#firstFree;
    this.#lengths[first] = this.#count;
    this.#lasts[first] = this.#last;
    this.#firstFree = this.#next;
    this.free -= this.#count;
    this.#available[2 + (this.#put & this.#mask)] = first;
    this.#put = (this.#put + 1) & 0xffff;
  }

  cancel(): void {
    this.#next = this.#firstFree;
  }

  publish(): boolean {
    if (this.#shown === this.#put) return false;
    this.#shown = this.#put;
    // In order with what was written before and what is read behind it (2.7.13.3.1 and 2.7.13.4.1).
    Atomics.store(this.#available, INDEX, this.#put);
    return (Atomics.load(this.#used, FLAGS) & QUIET) === 0;
  }

  take(): number {
    if (this.#taken === this.#seen && !this.#look()) return NO_CHAIN;
    const at = (this.#taken & this.#mask) * 2;
    const chain = this.#usedWords[at];
    const length = chain < this.size ? this.#lengths[chain] : 0;
    if (length === 0) return this.#break(`gave back chain ${chain}, which it does not have`);
    this.written = this.#usedWords[at + 1];
    this.#lengths[chain] = 0;
    this.#following[this.#lasts[chain]] = this.#firstFree;
    this.#firstFree = chain;
    this.free += length;
    this.#taken = (this.#taken + 1) & 0xffff;
    return chain;
  }

  /** Reads the device's index. @returns whether there are chains behind it */
  #look(): boolean {
    if (this.broken !== undefined) return false;
    const index = Atomics.load(this.#used, INDEX);
    const came = (index - this.#taken) & 0xffff;
    const out = (this.#shown - this.#taken) & 0xffff;
    if (came > out) {
      this.#break(`set its index from ${this.#taken} to ${index}, and had ${out} chains`);
      return false;
    }
    this.#seen = index;
    return came > 0;
  }

  #break(what: string): typeof NO_CHAIN {
    this.broken ??= what;
    this.#seen = this.#taken;
    return NO_CHAIN;
  }

  get isReady(): boolean {
    return this.broken !== undefined || this.#taken !== this.#seen || Atomics.load(this.#used, INDEX) !== this.#taken;
  }

  setInterrupts(on: boolean): void {
    Atomics.store(this.#available, FLAGS, on ? 0 : QUIET);
  }
}
