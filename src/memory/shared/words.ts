/**
 * Words that several threads or processes use at once: a SharedArrayBuffer, or memory that each of them has mapped.
 *
 * `Atomics` compile to the processor's atomic instructions on both. `Atomics.wait` and `notify` do not work on mapped memory, so
 * nothing here uses them between threads: code over such words is the same for workers and for processes.
 */
import { isA } from '../../check.js';
import { DmaError, invalid } from '../../errors.js';
import { isArrayBuffer, isSharedArrayBuffer } from '../../realms.js';

/** Bytes of a cache line: what different threads write has lines of its own. */
export const LINE = 64;
/** 32-bit words of a cache line. */
export const LINE_WORDS = LINE / Int32Array.BYTES_PER_ELEMENT;

/** The word that says what the words of a structure are. */
const KIND_AT = 0;

/** Says of which kind a structure is, in its first word, once the words behind it are there. @param kind an arbitrary number */
export function setKind(words: Int32Array, kind: number): void {
  Atomics.store(words, KIND_AT, kind);
}

/** Has a structure of this kind been made in these words? What it says is still to be checked: others may write it. */
export function isOfKind(words: Int32Array, kind: number): boolean {
  return words.length > KIND_AT && Atomics.load(words, KIND_AT) === kind;
}

/** A SharedArrayBuffer, an ArrayBuffer over mapped memory, or a part of one. It begins at a multiple of 64 bytes. */
export type WordMemory = ArrayBufferLike | Uint8Array;

/**
 * Memory for words, so that they can be put elsewhere than into a SharedArrayBuffer: processes put them into blocks of the library's
 * own memory.
 */
export interface WordSource {
  /** Zeros, from a multiple of 64 bytes on. @throws DmaError ENOMEM */
  allocate(bytes: number): WordMemory;
  /** Ends what {@link WordSource.allocate} returned. */
  free(memory: WordMemory): void;
}

/** Words in SharedArrayBuffers, which end when nobody has them any more. */
export const sharedBuffers: WordSource = {
  allocate(bytes) {
    try {
      return new SharedArrayBuffer(bytes);
    } catch (cause) {
      const reason = `there is no room for a SharedArrayBuffer of ${bytes} bytes`;
      throw new DmaError({ code: 'ENOMEM', operation: 'SharedArrayBuffer', reason, cause });
    }
  },
  free: () => undefined,
};

/**
 * The memory as 32-bit words.
 *
 * @param what for the error
 * @throws DmaError EINVAL unless it is such memory and begins at a multiple of 4 bytes
 */
export function wordsIn(memory: WordMemory, what: string, operation: string): Int32Array {
  const isView = isA(memory, Uint8Array);
  if (!isView && !isSharedArrayBuffer(memory) && !isArrayBuffer(memory))
    throw invalid(operation, `${what} are in a SharedArrayBuffer, an ArrayBuffer or a Uint8Array`);
  const { buffer, byteOffset, byteLength } = isView
    ? memory
    : { buffer: memory, byteOffset: 0, byteLength: memory.byteLength };
  if (byteOffset % Int32Array.BYTES_PER_ELEMENT !== 0)
    throw invalid(operation, `${what} begin at a multiple of 4 bytes`, {
      hint: `this memory begins at byte ${byteOffset}`,
    });
  return new Int32Array(buffer, byteOffset, Math.floor(byteLength / Int32Array.BYTES_PER_ELEMENT));
}

/** What comes with a queue of a device: the table of holders, its state, and what kinds need besides. */
export interface SharedWithQueue {
  readonly holders: WordMemory;
  readonly state: WordMemory;
  /** The two parts of the table of addresses, if the device has a domain; then words of stores by message. */
  readonly more: readonly WordMemory[];
}
