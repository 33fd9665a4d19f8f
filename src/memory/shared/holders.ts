/**
 * Who is there: a table of the threads and processes that use one shared memory, in words that all of them have.
 *
 * Each has a number, which fits into 16 bits, so that a lock, an element of a pool or a bit set can say who has it. Nothing has to run
 * when a thread ends: others ask the kernel whether it lives. A number of a thread can belong to another thread soon; the time at which
 * it started tells them apart.
 */
import { threadId } from 'node:worker_threads';
import { DmaError, invalid, isDmaError } from '../../errors.js';
import type { KernelPort } from '../../platform/ports.js';
import { show } from '../../show.js';
import { isOfKind, LINE_WORDS, setKind, wordsIn, type WordMemory } from './words.js';

/** The number of nobody. */
export const NOBODY = 0;
/** The greatest number of a holder. */
export const MOST_HOLDERS = 0xffff;
/** How many holders a table has room for, unless it is made in given memory. */
const USUAL_HOLDERS = 4095;

const KIND = 0x484f4c44;
const CAPACITY_AT = 1;
/** No number above this one was ever given out. */
const HIGHEST_AT = 2;
/** The lock of {@link Holders.recoveryLock}. */
const RECOVERY_AT = 3;

// An entry, in words. Entry 0 is the header.
const ENTRY_WORDS = LINE_WORDS;
/** The thread, as the kernel numbers it. It is written first, and claims the entry; 0: the entry is free. */
const TID = 0;
const PID = 1;
/** When the thread started, in clock ticks since the machine started: lower and upper half. */
const START = 2;
const STATE = 4;
/** Node's number of the thread: 0 is the main thread. */
const THREAD = 5;
const NAME_LENGTH = 6;
const NAME = 8;
const NAME_BYTES = (ENTRY_WORDS - NAME) * 4;

const UNUSED = 0;
const LIVING = 1;
const LEFT = 2;

/** In {@link TID}: somebody is clearing the entry. */
const CLEARING = -1;

/** What a table asks the kernel. */
export type HoldersKernel = Pick<KernelPort, 'readText' | 'readLink'>;

/** The threads and processes that use a shared memory. Each thread has an object of its own over the same words. */
export class Holders {
  /** What other threads and processes need for {@link attach}. */
  readonly buffer: WordMemory;
  /** The greatest number that it can give out. */
  readonly capacity: number;
  readonly #kernel: HoldersKernel;
  readonly #words: Int32Array;
  /** Without it all are threads of this process, which leave by themselves. */
  readonly #hasProc: boolean;
  #mine = NOBODY;

  private constructor(kernel: HoldersKernel, buffer: WordMemory, words: Int32Array, capacity: number) {
    this.#kernel = kernel;
    this.buffer = buffer;
    this.#words = words;
    this.capacity = capacity;
    this.#hasProc = kernel.readLink('/proc/thread-self') !== undefined;
  }

  /**
   * A new table.
   *
   * @param buffer where it is put, all zeros; as many holders as fit into it. Default: a SharedArrayBuffer for 4095
   * @throws DmaError EINVAL unless there is room for one holder or more
   */
  static create(kernel: HoldersKernel, buffer?: WordMemory): Holders {
    const memory = buffer ?? new SharedArrayBuffer(Holders.bytesFor(USUAL_HOLDERS));
    const words = wordsIn(memory, 'holders', 'holders.create');
    const capacity = Math.min(MOST_HOLDERS, Math.floor(words.length / ENTRY_WORDS) - 1);
    if (capacity < 1)
      throw invalid('holders.create', `${words.length * 4} bytes are too few for a table of holders`, {
        hint: `each takes ${ENTRY_WORDS * 4} bytes, and so does the header`,
      });
    words[CAPACITY_AT] = capacity;
    setKind(words, KIND);
    return new Holders(kernel, memory, words, capacity);
  }

  /**
   * The table that another thread or process made.
   *
   * @throws DmaError EINVAL if there is none in `buffer`
   */
  static attach(kernel: HoldersKernel, buffer: WordMemory): Holders {
    const words = wordsIn(buffer, 'holders', 'holders.attach');
    // Read once: who has the memory may change it at any time.
    const capacity = words.length < ENTRY_WORDS ? 0 : words[CAPACITY_AT];
    const fits = capacity >= 1 && capacity <= MOST_HOLDERS && (capacity + 1) * ENTRY_WORDS <= words.length;
    if (!fits || !isOfKind(words, KIND)) throw invalid('holders.attach', 'the shared memory has no table of holders');
    return new Holders(kernel, buffer, words, capacity);
  }

  /** Bytes of a table for `most` holders. */
  static bytesFor(most: number): number {
    return (most + 1) * ENTRY_WORDS * 4;
  }

  /** The number of this thread; {@link NOBODY} before {@link enter} and after {@link leave}. */
  get mine(): number {
    return this.#mine;
  }

  /**
   * Enters this thread. A thread that is in the table already has the number it had.
   *
   * @param name for {@link describe}; what is longer than 32 bytes is cut
   * @returns its number, 1 to 65535
   * @throws DmaError EAGAIN if the table is full
   */
  enter(name = ''): number {
    if (this.#mine !== NOBODY) return this.#mine;
    const { pid, tid } = this.#me();
    const start = this.#startOf(pid, tid) ?? 0;
    const words = this.#words;
    for (let id = 1; id <= this.#highest(); id++)
      if (Atomics.load(words, id * ENTRY_WORDS + STATE) === LIVING && this.#is(id, pid, tid, start))
        return (this.#mine = id);
    const id = this.#claim(tid);
    const at = id * ENTRY_WORDS;
    words[at + PID] = pid;
    words[at + START] = start | 0;
    words[at + START + 1] = Math.floor(start / 2 ** 32);
    words[at + THREAD] = threadId;
    const bytes = new Uint8Array(NAME_BYTES);
    const { written } = new TextEncoder().encodeInto(name, bytes);
    words[at + NAME_LENGTH] = written;
    words.set(new Int32Array(bytes.buffer), at + NAME);
    // Whoever sees this state sees the rest of the entry, too.
    Atomics.store(words, at + STATE, LIVING);
    return (this.#mine = id);
  }

  /** The thread with this number uses the memory no more. Its number is not given out again before {@link release}. */
  leave(id: number): void {
    if (!this.#exists(id)) return;
    Atomics.compareExchange(this.#words, id * ENTRY_WORDS + STATE, LIVING, LEFT);
    if (id === this.#mine) this.#mine = NOBODY;
  }

  /**
   * Does the thread with this number live, and has it not left? Asks the kernel: some microseconds. Zombies are dead.
   *
   * @throws DmaError if the kernel can not tell (EMFILE)
   */
  isAlive(id: number): boolean {
    if (!this.#exists(id)) return false;
    const at = id * ENTRY_WORDS;
    const words = this.#words;
    if (Atomics.load(words, at + STATE) !== LIVING) return false;
    return id === this.#mine || this.#runs(words[at + PID], words[at + TID], this.#startAt(at));
  }

  /** @internal The lock of those who give back what others had: see recovery.ts. */
  get recoveryLock(): { readonly words: Int32Array; readonly at: number } {
    return { words: this.#words, at: RECOVERY_AT };
  }

  /** Who has this number, as a text: `worker thread 3 of process 1234 (tid 1240)`, `process 1234 (store-worker)`. */
  describe(id: number): string {
    if (id === NOBODY) return 'nobody';
    if (!this.#exists(id) || this.#words[id * ENTRY_WORDS + STATE] === UNUSED)
      return `holder ${show(id)}, which is not there`;
    const at = id * ENTRY_WORDS;
    const thread = this.#words[at + THREAD];
    const process = `process ${this.#words[at + PID]}`;
    const name = this.#nameAt(at);
    const more = name === '' ? (thread === 0 ? '' : ` (tid ${this.#words[at + TID]})`) : ` (${name})`;
    return `${thread === 0 ? '' : `worker thread ${thread} of `}${process}${more}`;
  }

  /** Is it a thread of this process? */
  isHere(id: number): boolean {
    return this.#exists(id) && this.#words[id * ENTRY_WORDS + PID] === this.#me().pid;
  }

  /** The numbers of all that live. */
  *living(): IterableIterator<number> {
    for (let id = 1; id <= this.#highest(); id++) if (this.isAlive(id)) yield id;
  }

  /** The numbers of all that ended or left and were not released: what they had can be given back now. */
  *gone(): IterableIterator<number> {
    for (let id = 1; id <= this.#highest(); id++)
      if (Atomics.load(this.#words, id * ENTRY_WORDS + STATE) !== UNUSED && !this.isAlive(id)) yield id;
  }

  /**
   * Allows the number to be given out again, once all that its holder had was given back.
   *
   * @throws DmaError EBUSY if the holder lives
   */
  release(id: number): void {
    if (!this.#exists(id)) return;
    const words = this.#words;
    const at = id * ENTRY_WORDS;
    const tid = Atomics.load(words, at + TID);
    if (this.isAlive(id))
      throw new DmaError({ code: 'EBUSY', operation: 'holders.release', reason: `${this.describe(id)} is alive` });
    // Two that release the same number must not clear it when it was given out again in between.
    if (tid === 0 || Atomics.compareExchange(words, at + TID, tid, CLEARING) !== tid) return;
    Atomics.store(words, at + STATE, UNUSED);
    // Unless a thread has claimed it already: from the state on it may.
    Atomics.compareExchange(words, at + TID, CLEARING, 0);
  }

  /** Claims a free entry for the thread `tid`. */
  #claim(tid: number): number {
    const words = this.#words;
    for (let id = 1; id <= this.capacity; id++) {
      const at = id * ENTRY_WORDS;
      const claim = Atomics.load(words, at + TID);
      if (claim !== 0) {
        // A thread that was killed between its claim and the rest of its entry: nobody was told this number.
        // The kernel knows each thread by its own number, too.
        if (Atomics.load(words, at + STATE) !== UNUSED || !this.#hasProc || this.#runs(claim, claim, 0)) continue;
      }
      if (Atomics.compareExchange(words, at + TID, claim, tid) !== claim) continue;
      // As it is, not clamped: of nonsense, the exchange would never succeed.
      for (let seen = Atomics.load(words, HIGHEST_AT); seen < id; seen = Atomics.load(words, HIGHEST_AT))
        Atomics.compareExchange(words, HIGHEST_AT, seen, id);
      return id;
    }
    throw new DmaError({
      code: 'EAGAIN',
      operation: 'holders.enter',
      reason: `${this.capacity} threads and processes use this memory, which is as many as it has room for`,
      hint: 'places of threads that ended are free again once what they had was given back',
    });
  }

  #exists(id: number): boolean {
    return Number.isInteger(id) && id >= 1 && id <= this.capacity;
  }

  /** Clamped, as others may write anything there. */
  #highest(): number {
    return Math.max(0, Math.min(this.capacity, Atomics.load(this.#words, HIGHEST_AT)));
  }

  #startAt(at: number): number {
    return (this.#words[at + START] >>> 0) + this.#words[at + START + 1] * 2 ** 32;
  }

  #is(id: number, pid: number, tid: number, start: number): boolean {
    const at = id * ENTRY_WORDS;
    return this.#words[at + TID] === tid && this.#words[at + PID] === pid && this.#startAt(at) === start;
  }

  #nameAt(at: number): string {
    const length = Math.max(0, Math.min(NAME_BYTES, this.#words[at + NAME_LENGTH]));
    const bytes = new Uint8Array(this.#words.slice(at + NAME, at + NAME + NAME_BYTES / 4).buffer, 0, length);
    return new TextDecoder().decode(bytes).replaceAll(/[^\p{L}\p{N}\p{P}\p{S} ]/gu, '?');
  }

  /** This thread, as the kernel numbers it; where there is no /proc, as Node does. */
  #me(): { readonly pid: number; readonly tid: number } {
    const [pid, , tid] = this.#kernel.readLink('/proc/thread-self')?.split('/').map(Number) ?? [];
    return Number.isInteger(pid) && Number.isInteger(tid) ? { pid, tid } : { pid: process.pid, tid: threadId + 1 };
  }

  /** @param start when it started; 0 for any time */
  #runs(pid: number, tid: number, start: number): boolean {
    if (pid <= 0 || tid <= 0) return false;
    if (!this.#hasProc) return pid === process.pid;
    const found = this.#startOf(pid, tid);
    return found !== undefined && (start === 0 || found === start);
  }

  /** When a thread started; `undefined` if it does not run. */
  #startOf(pid: number, tid: number): number | undefined {
    let text: string | undefined;
    try {
      text = this.#kernel.readText(`/proc/${pid}/task/${tid}/stat`);
    } catch (error) {
      // It ended while its file was open.
      if (!isDmaError(error, 'ESRCH')) throw error;
    }
    // The name of the program is in parentheses, and may contain any character. The state is field 3, the time field 22.
    const fields = text?.slice(text.lastIndexOf(')') + 2).split(' ');
    const state = fields?.[0];
    if (fields === undefined || state === 'Z' || state === 'X' || state === 'x') return undefined;
    return Number(fields[19]);
  }
}
