/**
 * Data that tells what it should be: the SHA-256 of the rest, where it belongs, and random bytes. So a unit that is read shows
 * whether it is whole, and whether it is the one that was asked for.
 */
import { createHash } from 'node:crypto';

const DIGEST_BYTES = 32;
const HEADER_BYTES = DIGEST_BYTES + 8;

/**
 * Fills `unit` for the place `lba`.
 *
 * @param unit at least 64 bytes, a multiple of 4
 * @param seed another one gives other bytes
 */
export function stamp(unit: Uint8Array, lba: number, seed: number): void {
  const words = new Uint32Array(unit.buffer, unit.byteOffset, unit.length / 4);
  words[DIGEST_BYTES / 4] = lba;
  words[DIGEST_BYTES / 4 + 1] = lba / 2 ** 32;
  let state = (seed ^ Math.imul(lba, 0x9e3779b9)) >>> 0 || 1;
  for (let at = HEADER_BYTES / 4; at < words.length; at++) {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    words[at] = state;
  }
  unit.set(digestOf(unit));
}

/** What is wrong with what was read from `lba`: a clause; `undefined` when nothing is. */
export function wrongStamp(unit: Uint8Array, lba: number): string | undefined {
  if (!digestOf(unit).equals(unit.subarray(0, DIGEST_BYTES)))
    return unit.every((byte) => byte === 0) ? 'all of it is zero' : 'its SHA-256 is not that of its bytes';
  const words = new Uint32Array(unit.buffer, unit.byteOffset, unit.length / 4);
  const there = words[DIGEST_BYTES / 4 + 1] * 2 ** 32 + words[DIGEST_BYTES / 4];
  return there === lba ? undefined : `it is what was written to LBA ${there}`;
}

function digestOf(unit: Uint8Array): Buffer {
  return createHash('sha256').update(unit.subarray(DIGEST_BYTES)).digest();
}
