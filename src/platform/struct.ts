/** C structs as arguments of ioctl(2). */
import { invalid } from '../errors.js';

/**
 * The bytes of one C struct, in its own memory, which never moves. Offsets are in bytes and naturally aligned (64-bit
 * members: to 4 bytes); numbers are little-endian, as on every architecture that the Linux platform accepts. Create a
 * struct once and use it for many calls: only the constructor allocates. Throws EINVAL for a member outside the struct,
 * which a typed array would silently ignore.
 */
export class Struct {
  /** The whole struct, to pass to a system call. */
  readonly bytes: Uint8Array;
  readonly #halves: Uint16Array;
  readonly #words: Uint32Array;

  /** @param size bytes, all 0 at first. The memory is rounded up to a multiple of 4; `bytes` is not */
  constructor(size: number) {
    // V8 keeps the contents of an explicit ArrayBuffer outside its heap, so the garbage collector does not move them.
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

  /** As a Number: exact below 2^53, rounded above; all ones give 2^64. */
  u64(at: number): number {
    return this.u32(at + 4) * 2 ** 32 + this.u32(at);
  }

  /** Stores the low 8 bits of `value`; set16 and set32 store the low 16 and 32 bits. */
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

  /** @param value an integer in [0, 2^53), or 2^64, which stores all ones */
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
