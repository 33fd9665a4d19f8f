/**
 * Device registers. Drivers access registers only through this file, because a plain `view[i]` is not safe: V8 narrows
 * a masked load to one byte, drops a load whose value is unused and may merge two loads of a DataView; it splits
 * DataView and Buffer stores into bytes until the code is optimised. A device that needs 32-bit accesses would see
 * other accesses.
 */
import { typeHint } from '../../check.js';
import { DmaError, invalid } from '../../errors.js';
import { show } from '../../show.js';
import { hex, isAddress } from '../../units.js';

/** Registers that are only stored to, such as doorbells. */
export type RegisterStores = Pick<Registers, 'write32'>;

/**
 * The registers of one region of a device. Offsets are in bytes, naturally aligned; values are little-endian unsigned.
 *
 * Stores are posted, as on a bus: they reach the device in order, and before a later load or `flush` takes effect. If
 * the device refuses a store, the caller is not told; `DeviceAccess.writeRegion` waits for the device and reports it.
 */
export interface Registers {
  /** bytes in the region */
  readonly size: number;
  /** One 8-bit load. */
  read8(offset: number): number;
  /** One 8-bit store of the low 8 bits of `value`. EINVAL if `value` is not an integer. */
  write8(offset: number, value: number): void;
  /** One 16-bit load. */
  read16(offset: number): number;
  /** One 16-bit store of the low 16 bits of `value`. EINVAL if `value` is not an integer. */
  write16(offset: number, value: number): void;
  /** One 32-bit load. */
  read32(offset: number): number;
  /** One 32-bit store of the low 32 bits of `value`. EINVAL if `value` is not an integer. */
  write32(offset: number, value: number): void;
  /** One 64-bit load. ERANGE if the value does not fit a Number (2^53 and more): use {@link Registers.readBig64}. */
  read64(offset: number): number;
  /** One 64-bit store of `value`, an integer in [0, 2^53). For larger values use {@link Registers.writeBig64}. */
  write64(offset: number, value: number): void;
  /** One 64-bit load of all 64 bits. It creates a BigInt: not for hot paths. */
  readBig64(offset: number): bigint;
  /** One 64-bit store of `value`, in [0, 2^64). */
  writeBig64(offset: number, value: bigint): void;
  /** Waits until earlier stores have reached the device, by a load from `offset` that is never optimised away. */
  flush(offset: number): void;
}

/** Throws EINVAL unless `offset` is a multiple of `width` and the access lies inside `size` bytes. */
export function checkRegister(offset: number, width: number, size: number): void {
  if (!Number.isInteger(offset) || offset < 0 || offset % width !== 0 || offset + width > size) {
    const at = isAddress(offset) ? hex(offset) : show(offset);
    throw invalid('registers', `${width * 8}-bit access at ${at} of a region of ${hex(size)} bytes`, {
      hint: width === 1 ? 'it has to be inside' : `it has to be inside, at a multiple of ${width} bytes`,
    });
  }
}

/** Throws EINVAL unless `value` is an integer. A store keeps its low bits. */
export function checkValue(value: number): void {
  if (Number.isSafeInteger(value)) return;
  throw invalid('registers', `${show(value)} is not an integer`, {
    hint:
      typeHint(value, 'number') ??
      'a store takes an integer from -2^53 + 1 to 2^53 - 1, of which it keeps the low bits',
  });
}

/** Throws EINVAL unless `value` is an integer in [0, 2^53), the range of a 64-bit store. */
export function checkValue64(value: number): void {
  if (isAddress(value)) return;
  const hint =
    typeof value === 'bigint' || Number.isInteger(value)
      ? 'writeBig64 takes a BigInt of up to 64 bits'
      : (typeHint(value, 'number') ?? 'write64 takes an integer, writeBig64 a BigInt of up to 64 bits');
  throw invalid('registers', `${show(value)} is not an integer from 0 to 2^53 - 1`, { hint });
}

/** Throws EINVAL unless `value` is a BigInt in [0, 2^64). */
export function checkBigValue(value: bigint): void {
  if (typeof value !== 'bigint' || BigInt.asUintN(64, value) !== value)
    throw invalid('registers', `${show(value)} is not a BigInt from 0 to 2^64 - 1`, {
      hint: typeof value === 'bigint' ? 'BigInt.asUintN(64, value) keeps the low 64 bits' : 'write64 takes a Number',
    });
}

/** The error of a 64-bit load that does not fit a Number. */
export function tooWide(offset: number): DmaError {
  const reason = `the 64-bit register at ${hex(offset)} holds 2^53 or more, which a Number can not hold exactly`;
  return new DmaError({
    code: 'ERANGE',
    operation: 'registers',
    reason,
    hint: `readBig64(${hex(offset)}) gives a BigInt`,
  });
}

/**
 * Receives every register value read, whole. This second use of a load keeps V8 from narrowing it to the bits that the
 * caller uses, or dropping it if the caller uses none.
 */
const seen32 = new Uint32Array(1);
const seenBig = new BigUint64Array(1);

/**
 * 64-bit values pass through here as doubles: a load or store of a double is one 8-byte access and creates no BigInt.
 * All values below 2^53 have the bit patterns of tiny positive doubles, which no copy changes; NaNs, which a copy may
 * change, are out of range anyway.
 */
const double = new Float64Array(1);
const doubleWords = new Uint32Array(double.buffer);

/**
 * Registers in mapped memory: a region of a device, or ordinary memory that acts as one. Reads and writes are single
 * accesses of the register's width, from the first call on. Does not own the memory; once `buffer` is detached every
 * access throws EINVAL.
 */
export class MappedRegisters implements Registers {
  readonly #bytes: Uint8Array;
  readonly #halves: Uint16Array;
  readonly #words: Uint32Array;
  readonly #doubles: Float64Array;
  readonly #wides: BigUint64Array;

  /**
   * @param buffer a view of the region
   * @param offset where the registers begin in the buffer, in bytes; a multiple of 8
   * @param length bytes, a multiple of 4
   * @throws DmaError EINVAL if the range is not inside the buffer
   */
  constructor(buffer: ArrayBuffer, offset = 0, length = buffer.byteLength - offset) {
    const isInside = offset >= 0 && length >= 0 && offset + length <= buffer.byteLength;
    if (!isInside || offset % 8 !== 0 || length % 4 !== 0)
      throw invalid('registers', `${length} bytes from offset ${offset} of a buffer of ${buffer.byteLength}`);
    this.#bytes = new Uint8Array(buffer, offset, length);
    this.#halves = new Uint16Array(buffer, offset, length / 2);
    this.#words = new Uint32Array(buffer, offset, length / 4);
    this.#doubles = new Float64Array(buffer, offset, Math.floor(length / 8));
    this.#wides = new BigUint64Array(buffer, offset, Math.floor(length / 8));
  }

  get size(): number {
    return this.#words.byteLength;
  }

  read8(offset: number): number {
    const bytes = this.#bytes;
    checkRegister(offset, 1, bytes.byteLength);
    const value = bytes[offset];
    seen32[0] = value;
    return value;
  }

  write8(offset: number, value: number): void {
    const bytes = this.#bytes;
    checkRegister(offset, 1, bytes.byteLength);
    checkValue(value);
    bytes[offset] = value;
  }

  read16(offset: number): number {
    const halves = this.#halves;
    checkRegister(offset, 2, halves.byteLength);
    const value = halves[offset / 2];
    seen32[0] = value;
    return value;
  }

  write16(offset: number, value: number): void {
    const halves = this.#halves;
    checkRegister(offset, 2, halves.byteLength);
    checkValue(value);
    halves[offset / 2] = value;
  }

  read32(offset: number): number {
    const words = this.#words;
    checkRegister(offset, 4, words.byteLength);
    const value = words[offset / 4];
    seen32[0] = value;
    return value;
  }

  write32(offset: number, value: number): void {
    const words = this.#words;
    checkRegister(offset, 4, words.byteLength);
    checkValue(value);
    words[offset / 4] = value;
  }

  read64(offset: number): number {
    const doubles = this.#doubles;
    checkRegister(offset, 8, doubles.byteLength);
    double[0] = doubles[offset / 8];
    const high = doubleWords[1];
    if (high >= 2 ** 21) throw tooWide(offset);
    return high * 2 ** 32 + doubleWords[0];
  }

  write64(offset: number, value: number): void {
    const doubles = this.#doubles;
    checkRegister(offset, 8, doubles.byteLength);
    checkValue64(value);
    doubleWords[0] = value >>> 0;
    doubleWords[1] = value / 2 ** 32;
    doubles[offset / 8] = double[0];
  }

  readBig64(offset: number): bigint {
    const wides = this.#wides;
    checkRegister(offset, 8, wides.byteLength);
    const value = wides[offset / 8];
    seenBig[0] = value;
    return value;
  }

  writeBig64(offset: number, value: bigint): void {
    const wides = this.#wides;
    checkRegister(offset, 8, wides.byteLength);
    checkBigValue(value);
    wides[offset / 8] = value;
  }

  flush(offset: number): void {
    this.read32(offset);
  }
}
