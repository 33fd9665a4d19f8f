/** The header in front of each frame (5.1.6), in bytes of memory. */
import { HEADER } from './layout.js';

/** A field of 16 bits. */
export function header16(bytes: Uint8Array, at: number): number {
  return bytes[at] | (bytes[at + 1] << 8);
}

/** Sets a field of 16 bits. */
export function putHeader16(bytes: Uint8Array, at: number, value: number): void {
  bytes[at] = value;
  bytes[at + 1] = value >> 8;
}

/** A header that asks for nothing. */
export function clearHeader(bytes: Uint8Array, at: number): void {
  for (let i = 0; i < HEADER.BYTES; i++) bytes[at + i] = 0;
}
