/**
 * What a ring has in shared memory.
 *
 * Words: the header, the producers' line, the consumers' line, the line of those that wait, and the numbers.
 */
import { invalid } from '../../errors.js';
import { isOfKind, LINE_WORDS, setKind, wordsIn, type WordMemory } from '../shared/words.js';

const KIND = 0x52494e47;
const SIZE_AT = 1;
const FLAGS_AT = 2;
const MANY_PRODUCERS = 1;
const MANY_CONSUMERS = 2;

// Each side: its lock, or the one thread that it is; and its index, which counts on beyond 2^32.
export const TAIL_LOCK_AT = LINE_WORDS;
export const TAIL_AT = LINE_WORDS + 1;
export const HEAD_LOCK_AT = 2 * LINE_WORDS;
export const HEAD_AT = 2 * LINE_WORDS + 1;
export const BELL_AT = 3 * LINE_WORDS;
/** That of producers that wait for room. */
export const ROOM_BELL_AT = BELL_AT + 1;
const SLOTS_AT = 4 * LINE_WORDS;

/** The most numbers that a ring can hold. */
export const MOST_SLOTS = 2 ** 28;

/** How many threads are at one side of a ring. */
export type RingSide = 'many' | 'one';

/** The words of a ring, and what they say of it. */
export interface RingWords {
  readonly header: Int32Array;
  readonly slots: Int32Array;
  readonly size: number;
  readonly producers: RingSide;
  readonly consumers: RingSide;
}

/** Bytes of the words of a ring. */
export function bytesForRing(size: number): number {
  return (SLOTS_AT + slotsFor(size)) * Int32Array.BYTES_PER_ELEMENT;
}

/** Makes an empty ring. @param memory zeros, {@link bytesForRing} */
export function formatRing(memory: WordMemory, size: number, producers: RingSide, consumers: RingSide): RingWords {
  const words = wordsIn(memory, 'rings', 'rings.create');
  words[SIZE_AT] = size;
  words[FLAGS_AT] = (producers === 'many' ? MANY_PRODUCERS : 0) | (consumers === 'many' ? MANY_CONSUMERS : 0);
  setKind(words, KIND);
  return ringIn(memory, 'rings.create');
}

/** The ring in this memory. @throws DmaError EINVAL if there is none */
export function ringIn(memory: WordMemory, operation: string): RingWords {
  const words = wordsIn(memory, 'rings', operation);
  // Read once: others may change them at any time.
  const [size, flags] = words.length < SLOTS_AT ? [0, 0] : [words[SIZE_AT], words[FLAGS_AT]];
  const fits = size >= 1 && size <= MOST_SLOTS && words.length >= SLOTS_AT + slotsFor(size);
  if (!fits || !isOfKind(words, KIND))
    throw invalid(operation, 'the shared memory holds no ring', { hint: 'ring.share() gives what is attached to' });
  return {
    header: words.subarray(0, SLOTS_AT),
    slots: words.subarray(SLOTS_AT, SLOTS_AT + slotsFor(size)),
    size,
    producers: (flags & MANY_PRODUCERS) !== 0 ? 'many' : 'one',
    consumers: (flags & MANY_CONSUMERS) !== 0 ? 'many' : 'one',
  };
}

/** A power of two, so that an index is masked. */
function slotsFor(size: number): number {
  return 2 ** Math.ceil(Math.log2(size));
}
