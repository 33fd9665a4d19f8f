/** Data that each side can generate and check by itself: each word follows from a seed and its position. */

/** The size of a block of words, in bytes. */
const WORD = 4;

function wordAt(seed: number, index: number): number {
  let word = (seed + Math.imul(index, 0x9e3779b1)) | 0;
  word = Math.imul(word ^ (word >>> 15), 0x85ebca6b);
  return (word ^ (word >>> 13)) >>> 0;
}

function byteAt(seed: number, offset: number): number {
  return (wordAt(seed, Math.floor(offset / WORD)) >>> ((offset % WORD) * 8)) & 0xff;
}

/** How many whole words the `bytes` at `offset` of the data contain: 0 if they do not begin at a word. */
function wordsOf(bytes: Uint8Array, offset: number): Uint32Array {
  const isAligned = offset % WORD === 0 && bytes.byteOffset % WORD === 0;
  return new Uint32Array(
    bytes.buffer,
    isAligned ? bytes.byteOffset : 0,
    isAligned ? Math.floor(bytes.length / WORD) : 0,
  );
}

/** Fills `bytes` with the data of `seed` from `offset` on. */
export function fillPattern(bytes: Uint8Array, seed: number, offset: number): void {
  const words = wordsOf(bytes, offset);
  const first = Math.floor(offset / WORD);
  for (let index = 0; index < words.length; index++) words[index] = wordAt(seed, first + index);
  for (let at = words.length * WORD; at < bytes.length; at++) bytes[at] = byteAt(seed, offset + at);
}

/**
 * The first position at which `bytes` differ from the data of `seed` from `offset` on, as an offset in the data; -1 if
 * none.
 */
export function wrongAt(bytes: Uint8Array, seed: number, offset: number): number {
  const words = wordsOf(bytes, offset);
  const first = Math.floor(offset / WORD);
  let at = 0;
  while (at < words.length && words[at] === wordAt(seed, first + at)) at++;
  for (let each = at * WORD; each < bytes.length; each++)
    if (bytes[each] !== byteAt(seed, offset + each)) return offset + each;
  return -1;
}
