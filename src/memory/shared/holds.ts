/**
 * Who holds one shared thing, in words that all threads see: a bit for each holder. Nothing has to run when a holder ends: whoever
 * frees the thing asks which of the holders live.
 *
 * To attach: set the bit, then look at the state. To free: set the state, then look at the bits. So either the one sees that it comes too
 * late, or the other sees the bit.
 */
import { invalid } from '../../errors.js';
import type { Holders } from './holders.js';
import { isOfKind, LINE_WORDS, setKind, wordsIn, type WordMemory } from './words.js';

const KIND = 0x486f6c64;
const STATE_AT = 1;
/** The holder that made it. */
const MAKER_AT = 2;
/** 1: a view was transferred away, so that something can reach the memory for good. */
const ESCAPED_AT = 3;
/** How many holders there is room for. */
const CAPACITY_AT = 4;

/** Where the last holders attached, as texts, for messages. */
const NOTES_AT = LINE_WORDS;
const NOTES = 8;
const NOTE_WORDS = 2 * LINE_WORDS;
const NOTE_BYTES = (NOTE_WORDS - 2) * 4;
/** The bits of those that hold it, and then of those that let go while something of theirs could still reach it. */
const BITS_AT = NOTES_AT + NOTES * NOTE_WORDS;

/** The states of a shared thing. */
export const OPEN = 1;
/** It is being freed, if nobody holds it. */
export const ENDING = 2;
export const ENDED = 3;
/** It went away under its holders: the device was lost, or removed by force. */
export const LOST = 4;

/** Which of the two sets of bits. */
export type HoldSet = 'held' | 'lingering';

/** The words of one shared thing. Each thread has an object of its own over them. */
export class Holds {
  readonly #words: Int32Array;
  /** Words of one set of bits. */
  readonly #bitWords: number;

  private constructor(words: Int32Array) {
    this.#words = words;
    this.#bitWords = bitWordsFor(words[CAPACITY_AT]);
  }

  /** Bytes for a table of so many holders. */
  static bytesFor(capacity: number): number {
    return (BITS_AT + 2 * bitWordsFor(capacity)) * 4;
  }

  /** @param memory zeros @param maker its holder */
  static create(memory: WordMemory, capacity: number, maker: number): Holds {
    const words = wordsIn(memory, 'holds', 'share');
    words[CAPACITY_AT] = capacity;
    words[MAKER_AT] = maker;
    Atomics.store(words, STATE_AT, OPEN);
    setKind(words, KIND);
    return new Holds(words);
  }

  /** @throws DmaError EINVAL if there are none in `memory` */
  static attach(memory: WordMemory, capacity: number, operation: string): Holds {
    const words = wordsIn(memory, 'holds', operation);
    const fits = words.length >= Holds.bytesFor(capacity) / 4 && words[CAPACITY_AT] === capacity;
    if (!fits || !isOfKind(words, KIND)) throw invalid(operation, 'the shared memory does not say who holds it');
    return new Holds(words);
  }

  /** Were the words unmapped, because the process that made them has freed them? Then there is nothing to hold, and nobody to tell. */
  get gone(): boolean {
    return this.#words.length === 0;
  }

  get state(): number {
    return this.gone ? ENDED : Atomics.load(this.#words, STATE_AT);
  }

  /** @returns whether it was in state `from` */
  change(from: number, to: number): boolean {
    return Atomics.compareExchange(this.#words, STATE_AT, from, to) === from;
  }

  get maker(): number {
    return this.#words[MAKER_AT];
  }

  get escaped(): boolean {
    return Atomics.load(this.#words, ESCAPED_AT) === 1;
  }

  escape(): void {
    if (!this.gone) Atomics.store(this.#words, ESCAPED_AT, 1);
  }

  /** Is the bit of a holder set? */
  has(id: number, set: HoldSet): boolean {
    return !this.gone && (Atomics.load(this.#words, this.#wordOf(id, set)) & (1 << (id & 31))) !== 0;
  }

  /** Sets the bit of a holder. */
  set(id: number, set: HoldSet): void {
    if (!this.gone) Atomics.or(this.#words, this.#wordOf(id, set), 1 << (id & 31));
  }

  /** Clears the bit of a holder. */
  clear(id: number, set: HoldSet): void {
    if (!this.gone) Atomics.and(this.#words, this.#wordOf(id, set), ~(1 << (id & 31)));
  }

  /** The holders that live. The bits of others are cleared. @throws DmaError if the kernel can not tell who lives */
  living(holders: Holders, set: HoldSet): number[] {
    const living: number[] = [];
    if (this.gone) return living;
    const first = this.#wordOf(0, set);
    for (let word = 0; word < this.#bitWords; word++) {
      const bits = Atomics.load(this.#words, first + word);
      for (let bit = 0; bits !== 0 && bit < 32; bit++) {
        if ((bits & (1 << bit)) === 0) continue;
        const id = word * 32 + bit;
        if (holders.isAlive(id)) living.push(id);
        else this.clear(id, set);
      }
    }
    return living;
  }

  /** Notes where in the program a holder attached. */
  note(id: number, place: string): void {
    const at = NOTES_AT + (id % NOTES) * NOTE_WORDS;
    const bytes = new Uint8Array(NOTE_BYTES);
    const { written } = new TextEncoder().encodeInto(place, bytes);
    this.#words.set(new Int32Array(bytes.buffer), at + 2);
    this.#words[at + 1] = written;
    Atomics.store(this.#words, at, id);
  }

  /** Where a holder attached, if that is known. */
  placeOf(id: number): string | undefined {
    const at = NOTES_AT + (id % NOTES) * NOTE_WORDS;
    if (Atomics.load(this.#words, at) !== id || this.#words[at + 1] === 0) return undefined;
    const length = Math.max(0, Math.min(NOTE_BYTES, this.#words[at + 1]));
    const bytes = new Uint8Array(this.#words.slice(at + 2, at + NOTE_WORDS).buffer, 0, length);
    return new TextDecoder().decode(bytes).replaceAll(/[^\p{L}\p{N}\p{P}\p{S} ]/gu, '?');
  }

  #wordOf(id: number, set: HoldSet): number {
    return BITS_AT + (set === 'held' ? 0 : this.#bitWords) + (id >>> 5);
  }
}

function bitWordsFor(capacity: number): number {
  return Math.ceil((capacity + 1) / 32);
}
