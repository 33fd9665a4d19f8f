/** What all who take part have in common: names, and words that all of them see. */
import type { Pool } from '../../src/index.js';

export const STORE = 'torture';
export const MIX_RING = 'mix';
export const LINE_RING = 'line';
export const BOARD_ZONE = 'board';

export const ELEMENTS = 2048;
/** Of those that take part at a time. */
export const SLOTS = 4;
/** The most elements in one's hand. */
export const MOST_IN_HAND = 200;
/** The most that ever take part, the killed ones included. */
export const MOST_IDS = 100_000;

/** The word that ends the work. */
export const STOP = 0;
/** First words of tables by number of who takes part: how many operations it has done, and whether it is killed. */
export const BOARD = { operations: 16, dead: 16 + MOST_IDS, words: 16 + 2 * MOST_IDS } as const;

/** What one that takes part is told. */
export interface Orders {
  /** Its number, 1 and up, which nobody else ever has. */
  readonly id: number;
  /** 0 puts into the ring of one producer, 1 takes out of it. */
  readonly slot: number;
  readonly seed: number;
}

/** Tells where the first word of an element is. */
export function wordOf(pool: Pool): (element: number) => { readonly words: Int32Array; readonly at: number } {
  const { chunkOf, offsetOf } = pool;
  const chunks = pool.chunks.map((_, chunk) => {
    const { buffer, byteOffset, byteLength } = pool.chunkBytes(chunk);
    return { words: new Int32Array(buffer, byteOffset, byteLength >> 2), at: 0 };
  });
  return (element) => {
    const place = chunks[chunkOf[element]];
    place.at = offsetOf[element] >> 2;
    return place;
  };
}
