/**
 * The state of a queue pair that more than one thread looks at: who has it, whether the controller works, and what runs in each
 * slot. One buffer, so that it can be sent to another thread.
 */

import { wordsIn, type WordMemory } from '../../memory/shared/words.js';

/** Namespaces whose format a thread that attaches can look up. */
export const MOST_FORMATS = 128;

/** Instead of the bytes of a block: each block has metadata apart, for which a queue has no memory. */
export const METADATA_APART = 0;

/** Words at the beginning of the buffer. */
export const QUEUE_WORD = {
  /** Changes with `RUN`, with the formats and with `SHADOW`: who uses the queue looks at the others then. */
  EPOCH: 0,
  /** Whose turn it is: see `Turn`. */
  OWNER: 1,
  RUN: 2,
  /** The epoch that the thread which has the queue saw last. From then on it leaves the rings alone until the next one. */
  SEEN: 3,
  /** 1: do the doorbells go to memory? */
  SHADOW: 4,
  /** 1: the controller put something impossible into it, so that it has to be made anew. */
  BROKEN: 5,
  // Where its rings are: stored when it is given to somebody else.
  TAIL: 6,
  RUNG: 7,
  HEAD: 8,
  PHASE: 9,
  /** Completions that the controller was not told of. */
  UNTOLD: 10,
  /** 1: the thread that has it asks for a reset of the controller. */
  RESET: 12,
  // Doorbells that the thread which has the controller stores: one more than the value; 0: there is nothing to store.
  TAIL_BELL: 13,
  HEAD_BELL: 14,
  /** How many formats follow. */
  FORMATS: 11,
  /** The number of a namespace, and the bytes of its blocks. */
  FORMAT: 16,
} as const;

/** What the controller does, in `QUEUE_WORD.RUN`. */
export const RUN = {
  /** It works. */
  ON: 0,
  /** It is being stopped: commands may still run. */
  HALTED: 1,
  /** It is stopped, and reaches no memory: what ran has ended. */
  STOPPED: 2,
  /** It will not work again, and reaches no memory. */
  ENDED: 3,
} as const;

/** In the array of states. */
export const SLOT = {
  FREE: 0,
  RUNNING: 1,
  /** The controller was stopped while it ran; `poll` has not returned it yet. */
  ABANDONED: 2,
} as const;

/** In the array of aborts. */
export const ABORT = {
  NONE: 0,
  /** The thread that has the queue asks for it. */
  WANTED: 1,
  /** The thread that has the controller has asked that for it. */
  SENT: 2,
} as const;

const HEADER_BYTES = 4 * (QUEUE_WORD.FORMAT + 2 * MOST_FORMATS);
const SLOT_BYTES = 3 * 8 + 2 * 4 + 3;

/** The state of one queue. Each thread has an object of its own over the same buffer. */
export class QueueState {
  readonly buffer: WordMemory;
  readonly words: Int32Array;
  /** Of each slot: is it running? What it does, on which blocks and addresses, for messages and for checks. */
  readonly states: Uint8Array;
  readonly opcodes: Uint8Array;
  /** Of each slot: is its command to be aborted? `ABORT`. */
  readonly aborts: Uint8Array;
  readonly nsids: Uint32Array;
  readonly lbas: Float64Array;
  readonly blocks: Uint32Array;
  /** Where its memory is for the device; below 0: at this VA, negated, in this process. */
  readonly iovas: Float64Array;
  readonly lengths: Float64Array;

  /** @param memory what another thread made, or zeros; absent: a new one */
  constructor(capacity: number, memory: WordMemory = new SharedArrayBuffer(QueueState.bytesFor(capacity))) {
    this.buffer = memory;
    const { buffer, byteOffset } = wordsIn(memory, 'the state of a queue', 'nvmeQueue');
    this.words = new Int32Array(buffer, byteOffset, HEADER_BYTES / 4);
    let at = byteOffset + HEADER_BYTES;
    const next = (bytes: number): number => (at += bytes * capacity) - bytes * capacity;
    this.lbas = new Float64Array(buffer, next(8), capacity);
    this.iovas = new Float64Array(buffer, next(8), capacity);
    this.lengths = new Float64Array(buffer, next(8), capacity);
    this.nsids = new Uint32Array(buffer, next(4), capacity);
    this.blocks = new Uint32Array(buffer, next(4), capacity);
    this.states = new Uint8Array(buffer, next(1), capacity);
    this.opcodes = new Uint8Array(buffer, next(1), capacity);
    this.aborts = new Uint8Array(buffer, next(1), capacity);
  }

  /** Bytes for so many slots. */
  static bytesFor(capacity: number): number {
    return HEADER_BYTES + capacity * SLOT_BYTES;
  }

  /** How many slots are in this state. */
  count(state: number): number {
    let count = 0;
    for (const each of this.states) if (each === state) count++;
    return count;
  }

  load(word: number): number {
    return Atomics.load(this.words, word);
  }

  store(word: number, value: number): void {
    Atomics.store(this.words, word, value);
  }

  /** Changes what the thread that has the queue has to know. */
  tell(run: number, shadow: boolean): void {
    this.store(QUEUE_WORD.RUN, run);
    this.store(QUEUE_WORD.SHADOW, shadow ? 1 : 0);
    Atomics.add(this.words, QUEUE_WORD.EPOCH, 1);
  }

  /** Stores the formats of namespaces: bytes of a block, by number. What is beyond {@link MOST_FORMATS} is left out. */
  setFormats(formats: Iterable<readonly [nsid: number, blockBytes: number]>): void {
    let count = 0;
    for (const [nsid, blockBytes] of formats) {
      if (count === MOST_FORMATS) break;
      this.store(QUEUE_WORD.FORMAT + 2 * count, nsid);
      this.store(QUEUE_WORD.FORMAT + 2 * count + 1, blockBytes);
      count++;
    }
    this.store(QUEUE_WORD.FORMATS, count);
    Atomics.add(this.words, QUEUE_WORD.EPOCH, 1);
  }

  /** Bytes of a block of namespace `nsid`; `undefined` if it is not there, {@link METADATA_APART} if queues do not transfer its blocks. */
  formatOf(nsid: number): number | undefined {
    const count = Math.min(MOST_FORMATS, this.load(QUEUE_WORD.FORMATS));
    for (let n = 0; n < count; n++)
      if (this.load(QUEUE_WORD.FORMAT + 2 * n) === nsid) return this.load(QUEUE_WORD.FORMAT + 2 * n + 1);
    return undefined;
  }
}
