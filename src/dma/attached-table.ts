/** The translation table of another thread's domain: this thread's copy of it, which is brought up to date before each look-up. */
import { DmaError, invalid } from '../errors.js';
import { wordsIn, type WordMemory } from '../memory/shared/words.js';
import { shortForm } from '../short-form.js';
import {
  COUNT_AT,
  isLog,
  MAPPED,
  NUMBERS,
  OP,
  OVERFLOWN_AT,
  PIECES_AT,
  piecesIn,
  RECORD,
  RING,
  RING_AT,
  SEQUENCE,
  UNMAPPED,
} from './table-log.js';
import { TranslationTable } from './translation-table.js';
import { STAYS } from '../stays.js';

/** How often a copy is begun again, because more changed meanwhile than the ring has. */
const MOST_TRIES = 1000;
/** How often a record is read again that is being written. */
const MOST_LOOKS = 1_000_000;

/**
 * From VA to IOVA and key, as `TranslationTable`, for a domain of another thread. What was unmapped is not answered any more once the call
 * that unmapped it has returned. A look-up costs one atomic load more than in the thread that has the device.
 */
export class AttachedTable {
  /** @internal */
  readonly stays = STAYS;
  readonly #changes: Int32Array;
  readonly #buffer: WordMemory;
  #table = new TranslationTable();
  /** The changes that the copy has. */
  #seen = 0;
  /** What was read of a record: VA, length, IOVA, key. */
  readonly #numbers = new Float64Array(4);
  readonly #halves = new Int32Array(this.#numbers.buffer);

  /** @internal made by `attach` @throws DmaError EINVAL if it is no log of a table */
  constructor(changes: WordMemory, pieces: WordMemory) {
    this.#changes = wordsIn(changes, 'changes of a table', 'attach');
    this.#buffer = pieces;
    if (!isLog(this.#changes)) throw invalid('attach', 'the shared memory has no translation table');
    this.#copy();
  }

  /** Changes with every map and unmap. Cached answers are valid as long as it is unchanged. */
  get generation(): number {
    return Atomics.load(this.#changes, COUNT_AT);
  }

  /** The IOVA of an address in [0, 2^53), exact to the byte; -1 if it is not mapped. The next page can be anywhere. */
  iovaOf(va: number): number {
    if (Atomics.load(this.#changes, COUNT_AT) !== this.#seen) this.#follow();
    return this.#table.iovaOf(va);
  }

  /**
   * The IOVA of the first byte of a range that is contiguous for the device; -1 if it is not, or not all mapped.
   *
   * @param va in [0, 2^53)
   * @param length bytes, not negative; 0 counts as 1
   */
  iovaOfRange(va: number, length: number): number {
    if (Atomics.load(this.#changes, COUNT_AT) !== this.#seen) this.#follow();
    return this.#table.iovaOfRange(va, length);
  }

  /** The key of the mapping that contains an address in [0, 2^53); -1 if it has no key or is not mapped. */
  keyOf(va: number): number {
    if (Atomics.load(this.#changes, COUNT_AT) !== this.#seen) this.#follow();
    return this.#table.keyOf(va);
  }

  /** The key that a whole range has; -1 if a byte of it has another key, none, or is not mapped. */
  keyOfRange(va: number, length: number): number {
    if (Atomics.load(this.#changes, COUNT_AT) !== this.#seen) this.#follow();
    return this.#table.keyOfRange(va, length);
  }

  /** Reads the changes since the last look-up. */
  #follow(): void {
    if (!this.#catchUp()) this.#copy();
  }

  /** @returns false if the ring does not have all of them any more */
  #catchUp(): boolean {
    const changes = this.#changes;
    for (;;) {
      const count = Atomics.load(changes, COUNT_AT);
      const behind = (count - this.#seen) | 0;
      if (behind === 0) return true;
      if (behind < 0 || behind > RING) return false;
      for (let i = 0; i < behind; i++) {
        const next = (this.#seen + 1) | 0;
        const at = RING_AT + (next & (RING - 1)) * RECORD;
        if (Atomics.load(changes, at + SEQUENCE) !== next) return false;
        const op = this.#read(changes, at);
        if (Atomics.load(changes, at + SEQUENCE) !== next) return false;
        this.#apply(op);
        this.#seen = next;
      }
    }
  }

  /** Makes a new copy of everything. */
  #copy(): void {
    const changes = this.#changes;
    for (let tries = 0; tries < MOST_TRIES; tries++) {
      if (Atomics.load(changes, OVERFLOWN_AT) !== 0)
        throw new DmaError({
          code: 'ENOSPC',
          operation: 'iovaOf',
          reason: 'more is mapped in the domain than other threads can be told of',
          hint: 'map larger pieces, or look addresses up in the thread that has the device',
        });
      this.#table = new TranslationTable();
      // First the count: what changes from here on is read as a change, too.
      this.#seen = Atomics.load(changes, COUNT_AT);
      const count = Atomics.load(changes, PIECES_AT);
      const pieces = piecesIn(this.#buffer);
      const most = Math.min(count, Math.floor(pieces.length / RECORD));
      for (let index = 0; index < most; index++) if (this.#readPiece(pieces, index * RECORD)) this.#apply(MAPPED);
      if (this.#catchUp()) return;
    }
    // Nothing is known: the next look-up begins again.
    this.#table = new TranslationTable();
    this.#seen = (Atomics.load(changes, COUNT_AT) + 2 * RING) | 0;
    throw new DmaError({
      code: 'EBUSY',
      operation: 'iovaOf',
      reason: 'mappings of the domain change faster than this thread can follow',
      hint: 'try again',
    });
  }

  /** @returns whether there is a piece, which is in `#numbers` then */
  #readPiece(pieces: Int32Array, at: number): boolean {
    for (let looks = 0; looks < MOST_LOOKS; looks++) {
      const before = Atomics.load(pieces, at + SEQUENCE);
      if (before === 0) return false;
      if ((before & 1) !== 0) continue;
      const op = this.#read(pieces, at);
      if (Atomics.load(pieces, at + SEQUENCE) === before) return op === MAPPED;
    }
    // Its writer ended meanwhile, and the device with it.
    return false;
  }

  #read(words: Int32Array, at: number): number {
    for (let word = 0; word < this.#halves.length; word++)
      this.#halves[word] = Atomics.load(words, at + NUMBERS + word);
    return Atomics.load(words, at + OP);
  }

  #apply(op: number): void {
    const [va, length, iova, key] = this.#numbers;
    if (op !== MAPPED && op !== UNMAPPED) throw invalid('iovaOf', 'the shared translation table is damaged');
    this.#table.remove(va, length);
    if (op === MAPPED) this.#table.add(va, length, iova, key);
  }
}

shortForm(AttachedTable, 'AttachedTable', ({ generation }) => ({ generation }));
