/** For tests: the argument of an ioctl as the kernel sees it. */
import { DmaError, isDmaError, type ErrorCode } from '../../../src/errors.js';

/** One past the largest 64-bit number, which a Number can hold; {@link Argument.u64} gives it for all ones. */
export const ALL_ONES = 2 ** 64;

/** The kernel refuses a call. */
export function refuse(code: ErrorCode, reason = code as string): DmaError {
  return new DmaError({ code, operation: 'kernel', reason });
}

/** Errors of the fake kernel name the call, as those of the kernel do. */
export function named<T>(operation: string, call: () => T): T {
  try {
    return call();
  } catch (error) {
    throw isDmaError(error) && error.operation === 'kernel' ? error.with({ operation }) : error;
  }
}

/** Bytes that a program handed over. */
export class Argument {
  readonly bytes: Uint8Array;
  readonly #view: DataView;

  constructor(bytes: Uint8Array) {
    this.bytes = bytes;
    this.#view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  }

  u8(at: number): number {
    return this.#view.getUint8(this.#in(at, 1));
  }

  u32(at: number): number {
    return this.#view.getUint32(this.#in(at, 4), true);
  }

  s32(at: number): number {
    return this.#view.getInt32(this.#in(at, 4), true);
  }

  u64(at: number): bigint {
    return this.#view.getBigUint64(this.#in(at, 8), true);
  }

  set16(at: number, value: number): this {
    this.#view.setUint16(this.#in(at, 2), value, true);
    return this;
  }

  set32(at: number, value: number): this {
    this.#view.setUint32(this.#in(at, 4), value, true);
    return this;
  }

  /** @param value ALL_ONES stands for 2^64 - 1 */
  set64(at: number, value: number | bigint): this {
    this.#view.setBigUint64(this.#in(at, 8), value === ALL_ONES ? 2n ** 64n - 1n : BigInt(value), true);
    return this;
  }

  /**
   * What VFIO's calls begin with: `argsz`, of which at least `least` bytes must be meant.
   *
   * @returns it
   */
  argsz(least: number): number {
    const size = this.u32(0);
    if (size < least) throw refuse('EINVAL', `argsz ${size}`);
    // A program that says more than there is would let the kernel write behind it.
    if (size > this.bytes.length) throw refuse('EFAULT', `argsz ${size} of ${this.bytes.length} bytes`);
    return size;
  }

  /** What iommufd's calls begin with: a size from `least` on, with nothing but zeros behind `known`. */
  size(least: number, known: number): void {
    const size = this.argsz(least);
    for (let at = known; at < size; at++) if (this.u8(at) !== 0) throw refuse('E2BIG');
  }

  #in(at: number, width: number): number {
    if (at + width > this.bytes.length) throw refuse('EFAULT', `offset ${at} of ${this.bytes.length} bytes`);
    return at;
  }
}
