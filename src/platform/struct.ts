/** C structs, as ioctl(2) takes them. */
import { invalid } from '../errors.js';

/**
 * The bytes of one C struct, in memory of its own that never moves. Offsets are in bytes and naturally aligned (64-bit
 * members: to 4 bytes); numbers are little-endian, as on every architecture that the Linux platform accepts. A struct is
 * made once and used for many calls: no method but the constructor allocates. EINVAL for a member that is not inside, which
 * a typed array would overlook.
 */
export class Struct {
  /** All of it, to be handed to a system call. */
  readonly bytes: Uint8Array;
  readonly #halves: Uint16Array;
  readonly #words: Uint32Array;

  /** @param size bytes, rounded up to a multiple of 4 in memory but not in `bytes`; all are 0 at first */
  constructor(size: number) {
    // An ArrayBuffer made as such is outside of V8's heap, where the collector would move it.
    const buffer = new ArrayBuffer(Math.ceil(size / 4) * 4);
    this.bytes = new Uint8Array(buffer, 0, size);
    this.#halves = new Uint16Array(buffer);
    this.#words = new Uint32Array(buffer);
  }

  u8(at: number): number {
    this.#check(at, 1);
    return this.bytes[at];
  }

  u16(at: number): number {
    this.#check(at, 2);
    return this.#halves[at / 2];
  }

  u32(at: number): number {
    this.#check(at, 4);
    return this.#words[at / 4];
  }

  /** As a Number: exact below 2^53, rounded from there on, so that a limit of all ones is 2^64. */
  u64(at: number): number {
    return this.u32(at + 4) * 2 ** 32 + this.u32(at);
  }

  /** Stores the low 8 bits of `value`; so do the others with their widths. */
  set8(at: number, value: number): this {
    this.#check(at, 1);
    this.bytes[at] = value;
    return this;
  }

  set16(at: number, value: number): this {
    this.#check(at, 2);
    this.#halves[at / 2] = value;
    return this;
  }

  set32(at: number, value: number): this {
    this.#check(at, 4);
    this.#words[at / 4] = value;
    return this;
  }

  /** @param value an integer in [0, 2^53), or 2^64, which stands for all ones */
  set64(at: number, value: number): this {
    const isAllOnes = value >= 2 ** 64;
    this.set32(at + 4, isAllOnes ? 0xffffffff : value / 2 ** 32);
    return this.set32(at, isAllOnes ? 0xffffffff : value);
  }

  /** Sets every byte to 0. */
  clear(): this {
    this.bytes.fill(0);
    return this;
  }

  #check(at: number, width: number): void {
    if (at % width !== 0 || at < 0 || at + width > this.bytes.length)
      throw invalid('struct', `a struct of ${this.bytes.length} bytes has no member of ${width} bytes at ${at}`);
  }
}
