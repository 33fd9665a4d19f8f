/**
 * What is mapped in a domain, in memory that other threads and processes read: its present state, and the last changes.
 *
 * There is one writer, which never waits, and any number of readers (attached-table.ts). Two buffers:
 *
 * - *changes*: a count of all changes ever, and a ring of the last ones. A reader compares one word with what it has seen.
 * - *pieces*: everything that is mapped, in no order. A reader that is new, or that slept through more changes than the ring has, reads all
 *   of it, and then the changes that were made meanwhile. Each piece and each change say the whole truth about their range, so that
 *   reading one twice does no harm.
 *
 * Each piece and each change is a *record*, which begins with a sequence number: it differs while the record is being written, so that a
 * reader that meets the writer sees that. All words are read and written by Atomics, which keep their order.
 */
import { RangeMap } from '../range-map.js';
import { isOfKind, LINE_WORDS, setKind, wordsIn, type WordMemory, type WordSource } from '../memory/shared/words.js';

/** Words of a record: its sequence number, what it says, and four doubles of two words each: VA, length, IOVA, key. */
export const RECORD = 10;
/** Offsets in a record. */
export const SEQUENCE = 0;
export const OP = 1;
export const NUMBERS = 2;

/** What a record says. */
export const NOTHING = 0;
export const MAPPED = 1;
export const UNMAPPED = 2;

const KIND = 0x54626c65;

// Words of the header of the changes.
/** How many changes there were, by the last 32 bits. */
export const COUNT_AT = LINE_WORDS;
/** How many pieces are in use: those after them are empty. */
export const PIECES_AT = LINE_WORDS + 1;
/** 1: there were more pieces than there is room for, so that readers do not know all. */
export const OVERFLOWN_AT = LINE_WORDS + 2;
export const RING_AT = 2 * LINE_WORDS;
/** Changes in the ring. */
export const RING = 4096;

/** How many pieces there can be: the addresses for them are reserved, and memory is taken as needed. */
const MOST_PIECES = 2 ** 21;
const FIRST_PIECES = 64;
/** For processes, whose memory does not grow: 2.5 MiB. */
const PROCESS_PIECES = 2 ** 16;

/** The buffers of a log. */
export interface LogBuffers {
  readonly changes: WordMemory;
  readonly pieces: WordMemory;
  /** Makes room for so many bytes of pieces, if possible. Absent: the room is what it is. */
  readonly grow?: (bytes: number) => boolean;
}

/** Bytes of the buffer of changes. */
export const CHANGES_BYTES = (RING_AT + RING * RECORD) * 4;

/** Something that is mapped in one piece. */
export interface MappedRun {
  readonly va: number;
  /** bytes */
  readonly length: number;
  readonly iova: number;
  /** -1: none */
  readonly key: number;
}

/** A piece, and where it is among the pieces. */
interface Piece extends MappedRun {
  index: number;
}

/** Buffers for the threads of this process. */
export function logBuffers(): LogBuffers & { readonly changes: SharedArrayBuffer; readonly pieces: SharedArrayBuffer } {
  const pieces = new SharedArrayBuffer(FIRST_PIECES * RECORD * 4, { maxByteLength: MOST_PIECES * RECORD * 4 });
  const grow = (bytes: number): boolean => {
    if (bytes > pieces.maxByteLength) return false;
    if (bytes > pieces.byteLength) pieces.grow(bytes);
    return true;
  };
  return { changes: new SharedArrayBuffer(CHANGES_BYTES), pieces, grow };
}

/**
 * Buffers for other processes, in memory that all of them have. There is room for {@link PROCESS_PIECES} pieces.
 *
 * @throws DmaError ENOMEM
 */
export function processBuffers(words: WordSource): LogBuffers {
  const changes = words.allocate(CHANGES_BYTES);
  try {
    return { changes, pieces: words.allocate(PROCESS_PIECES * RECORD * 4) };
  } catch (error) {
    words.free(changes);
    throw error;
  }
}

/** Checks the changes of a log. */
export function isLog(changes: Int32Array): boolean {
  return changes.length >= CHANGES_BYTES / 4 && isOfKind(changes, KIND);
}

/** The writer. */
export class TableLog {
  readonly #changes: Int32Array;
  #pieces: Int32Array;
  readonly #buffers: LogBuffers;
  readonly #byVa = new RangeMap<Piece>();
  readonly #byIndex: Piece[] = [];
  /** A double, and its words. */
  readonly #double = new Float64Array(1);
  readonly #halves = new Int32Array(this.#double.buffer);

  /** @param mapped what is mapped now */
  constructor(buffers: LogBuffers, mapped: Iterable<MappedRun>) {
    this.#buffers = buffers;
    this.#changes = wordsIn(buffers.changes, 'changes of a table', 'share');
    this.#pieces = piecesIn(buffers.pieces);
    for (const run of mapped) this.add(run.va, run.length, run.iova, run.key);
    setKind(this.#changes, KIND);
  }

  /** Something was mapped. */
  add(va: number, length: number, iova: number, key: number): void {
    this.#insert(va, length, iova, key);
  }

  /** Whatever was mapped of a range is unmapped. */
  remove(va: number, length: number): void {
    const end = va + length;
    for (let piece = this.#byVa.overlapping(va, end); piece !== undefined; piece = this.#byVa.overlapping(va, end)) {
      this.#byVa.delete(piece.va);
      this.#drop(piece);
      const { va: start, length: bytes, iova, key } = piece;
      if (start < va) this.#insert(start, va - start, iova, key);
      if (start + bytes > end) this.#insert(end, start + bytes - end, iova + (end - start), key);
    }
    // Last: a reader that begins to read the pieces now does not read this change.
    this.#tell(UNMAPPED, va, length, 0, -1);
  }

  /** Adds a piece, and tells it: a reader that is reading the pieces may have been here already. */
  #insert(va: number, length: number, iova: number, key: number): void {
    const piece = { va, length, iova, key, index: this.#byIndex.length };
    this.#byVa.insert(va, length, piece);
    this.#byIndex.push(piece);
    this.#put(piece);
    this.#tell(MAPPED, va, length, iova, key);
  }

  /** Removes a piece; the last one takes its place. */
  #drop({ index }: Piece): void {
    const last = this.#byIndex.pop();
    if (last === undefined) return;
    if (last.index !== index) {
      last.index = index;
      this.#byIndex[index] = last;
      this.#put(last);
      this.#tell(MAPPED, last.va, last.length, last.iova, last.key);
    }
    Atomics.store(this.#changes, PIECES_AT, Math.min(this.#byIndex.length, this.#room));
  }

  #put(piece: Piece): void {
    const { index, va, length, iova, key } = piece;
    if (index >= this.#room && !this.#makeRoom((index + 1) * RECORD * 4)) {
      Atomics.store(this.#changes, OVERFLOWN_AT, 1);
      return;
    }
    const at = index * RECORD;
    const sequence = this.#pieces[at + SEQUENCE];
    // Odd while it is being written.
    Atomics.store(this.#pieces, at + SEQUENCE, sequence | 1);
    this.#write(this.#pieces, at, MAPPED, va, length, iova, key);
    Atomics.store(this.#pieces, at + SEQUENCE, (sequence | 1) + 1);
    Atomics.store(this.#changes, PIECES_AT, Math.min(this.#byIndex.length, this.#room));
  }

  /** Appends a change. */
  #tell(op: number, va: number, length: number, iova: number, key: number): void {
    const count = (Atomics.load(this.#changes, COUNT_AT) + 1) | 0;
    const at = RING_AT + (count & (RING - 1)) * RECORD;
    // No change that belongs here has this number.
    Atomics.store(this.#changes, at + SEQUENCE, ~count);
    this.#write(this.#changes, at, op, va, length, iova, key);
    Atomics.store(this.#changes, at + SEQUENCE, count);
    Atomics.store(this.#changes, COUNT_AT, count);
  }

  #write(words: Int32Array, at: number, op: number, va: number, length: number, iova: number, key: number): void {
    Atomics.store(words, at + OP, op);
    this.#store(words, at + NUMBERS, va);
    this.#store(words, at + NUMBERS + 2, length);
    this.#store(words, at + NUMBERS + 4, iova);
    this.#store(words, at + NUMBERS + 6, key);
  }

  #store(words: Int32Array, at: number, value: number): void {
    this.#double[0] = value;
    Atomics.store(words, at, this.#halves[0]);
    Atomics.store(words, at + 1, this.#halves[1]);
  }

  #makeRoom(bytes: number): boolean {
    const { grow, pieces } = this.#buffers;
    if (grow === undefined || !(grow(Math.max(bytes, 2 * this.#pieces.byteLength)) || grow(bytes))) return false;
    // A view has the length that the buffer had.
    this.#pieces = piecesIn(pieces);
    return true;
  }

  get #room(): number {
    return Math.floor(this.#pieces.length / RECORD);
  }
}

/** The words of the pieces, as many as there are now. */
export function piecesIn(pieces: WordMemory): Int32Array {
  return wordsIn(pieces, 'pieces of a table', 'share');
}
