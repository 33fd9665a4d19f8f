/** Units: sizes and addresses. */

import { show } from './show.js';

declare const brand: unique symbol;

/** A virtual address in this process, in bytes; an integer in [0, 2^53). */
export type Va = number & { readonly [brand]: 'Va' };

/** An address that a device uses, in bytes; an integer in [0, 2^53). */
export type Iova = number & { readonly [brand]: 'Iova' };

/** A {@link Va} as an argument: any number, such as a sum, but not an {@link Iova}. */
export type VaLike = number & { readonly [brand]?: 'Va' };

/** An {@link Iova} as an argument: any number, such as a sum or an array element, but not a {@link Va}. */
export type IovaLike = number & { readonly [brand]?: 'Iova' };

/** 2^10, for sizes in bytes. */
export const KiB = 1024;
/** 2^20, for sizes in bytes. */
export const MiB = 1024 * KiB;
/** 2^30, for sizes in bytes. */
export const GiB = 1024 * MiB;
/** 2^40, for sizes in bytes. */
export const TiB = 1024 * GiB;

/** One past the largest address that a Number holds exactly. */
export const ADDRESS_LIMIT = 2 ** 53;

/** Is `value` an integer in [0, 2^53), so that it can be an address or a length? */
export function isAddress(value: number): boolean {
  return Number.isSafeInteger(value) && value >= 0;
}

/** Is `value` a power of two (1 included)? Exact for every safe integer. */
export function isPowerOfTwo(value: number): boolean {
  if (!Number.isSafeInteger(value) || value <= 0) return false;
  const high = Math.floor(value / 2 ** 32);
  const low = value >>> 0;
  return high === 0 ? (low & (low - 1)) === 0 : low === 0 && (high & (high - 1)) === 0;
}

/**
 * Is `value`, in [0, 2^53), a multiple of `unit`? A quotient that is not an integer differs from one by at least `1 /
 * unit`, more than the rounding error; dividing is much faster than `%`, which has no instruction for such numbers.
 */
export function isMultiple(value: number, unit: number): boolean {
  return Number.isInteger(value / unit);
}

/** `value` rounded down to a multiple of `granule`. No bit operators: addresses can exceed 32 bits. */
export function alignDown(value: number, granule: number): number {
  return value - (value % granule);
}

/** `value` rounded up to a multiple of `granule`. */
export function alignUp(value: number, granule: number): number {
  const over = value % granule;
  return over === 0 ? value : value - over + granule;
}

/** An address or length in hexadecimal, as in kernel logs and debuggers: `0x7f00c0000000`. */
export function hex(value: number): string {
  if (typeof value !== 'number') return show(value);
  return `0x${value.toString(16)}`;
}

const SUFFIXES: ReadonlyMap<string, number> = new Map([
  ['', 1],
  ['k', KiB],
  ['m', MiB],
  ['g', GiB],
  ['t', TiB],
  ['p', 1024 * TiB],
]);

/**
 * Parses a size such as `64MiB`, `2M`, `4k`, `0x1000` or `4096` to bytes. Suffixes are powers of 1024, in any case,
 * with or without `B` or `iB`.
 *
 * @returns a safe integer, or `undefined` if the text is not a size.
 */
export function parseSize(text: string): number | undefined {
  if (typeof text !== 'string') return undefined;
  if (/^0x[0-9a-f]+$/i.test(text)) {
    const value = Number(text);
    return isAddress(value) ? value : undefined;
  }
  const match = /^(\d+(?:\.\d+)?)\s*([kmgtp]?)(?:i?b)?$/i.exec(text.trim());
  if (match === null) return undefined;
  const bytes = Number(match[1]) * (SUFFIXES.get(match[2].toLowerCase()) ?? 1);
  return isAddress(bytes) ? bytes : undefined;
}

/** Formats a length: `64 MiB`, `4 KiB`, `17 bytes`. Exact for a whole number of the unit, else one decimal. */
export function formatSize(bytes: number): string {
  if (typeof bytes !== 'number') return show(bytes);
  for (const [unit, name] of [
    [TiB, 'TiB'],
    [GiB, 'GiB'],
    [MiB, 'MiB'],
    [KiB, 'KiB'],
  ] as const) {
    if (bytes >= unit) return `${Number((bytes / unit).toFixed(1))} ${name}`;
  }
  return bytes === 1 ? '1 byte' : `${bytes} bytes`;
}
