/**
 * Which elements of a pool are free: a stack of their numbers, 0 to n - 1, in words that threads and processes may share.
 *
 * A lock guards it once it is shared. It is held while at most a few hundred numbers are copied; DPDK's ring would reserve, copy and wait
 * for slower threads to commit. A stack hands out what was used last, which is still in the processor's cache. (A stack
 * without a lock needs a 64-bit compare-and-swap against ABA. JavaScript has that only for BigInts, which are garbage.)
 * Threads seldom meet here, because each has a `PoolCache`.
 *
 * **A shared stack survives deaths and nonsense.** Each element has an owner: 0 while it is in the stack, else the number of the thread
 * that has it, in hand or in its cache. An owner changes from and to 0 only under the lock, and before the count of the stack does. So
 * owners are always right, and the stack can be made anew from them: when the owner of the lock has died in the middle, and when a
 * number or the count is impossible. What a dead thread had comes back by {@link ElementStack.recover}.
 */
import { ended } from '../../check.js';
import { DmaError, invalid } from '../../errors.js';
import { typedArrayName } from '../../realms.js';
import { show } from '../../show.js';
import { NOBODY, type Holders } from '../shared/holders.js';
import { RobustLock } from '../shared/robust-lock.js';
import { isOfKind, setKind, sharedBuffers, wordsIn, type WordMemory, type WordSource } from '../shared/words.js';

// The header, in 32-bit words; words that change have cache lines of their own.
const ELEMENTS_AT = 1;
const CHECKED_AT = 2;
/** 1 once other threads may use it. */
const SHARED_AT = 3;
/** 1 once rings carry elements: who recovers has to look into them. */
const RINGED_AT = 4;
const LOCK_AT = 16;
const COUNT_AT = 17;
/** How often others took over what a thread had, by the last bits of its number. */
const CLAIMED_AT = 32;
const CLAIMED_WORDS = 64;
const HEADER_WORDS = CLAIMED_AT + CLAIMED_WORDS;

const KIND = 0x454c4d53;
const MOST_ELEMENTS = 2 ** 28;

/** Numbers of elements. Both kinds of array work; a caller that always uses the same kind is faster. */
export type ElementNumbers = Int32Array | Uint32Array;

/** Options of {@link ElementStack.create}. */
export interface ElementStackOptions {
  /**
   * For debugging: a bit per element tells whether it is free, so that an element that is put twice or does not exist
   * is refused at once. Default false: then only a total above the size of the pool is noticed.
   */
  readonly checked?: boolean;
}

/**
 * The free elements of a pool; each thread has an object of its own over the same words. {@link get} and {@link put} make no garbage.
 * Before {@link share} only the thread that made it may use it, without a lock.
 */
export class ElementStack {
  /** What other threads need for {@link attach}, after {@link share}. */
  readonly memory: WordMemory;
  /** Number of elements of the pool. */
  readonly elements: number;
  /** {@link ElementStackOptions.checked} */
  readonly checked: boolean;
  readonly #header: Int32Array;
  /** The numbers of the free elements; the last one is taken first. */
  readonly #stack: Int32Array;
  /** A bit for each element that no user has; empty unless checked. */
  readonly #isFree: Int32Array;
  /** Who has each element, once it is shared. */
  readonly #owners: Uint16Array;
  #lock: RobustLock | undefined;
  #isPlain: boolean;
  #me = NOBODY;

  private constructor(memory: WordMemory, words: Int32Array, elements: number, checked: boolean) {
    this.memory = memory;
    this.elements = elements;
    this.checked = checked;
    this.#isPlain = !checked;
    this.#header = words.subarray(0, HEADER_WORDS);
    this.#stack = words.subarray(HEADER_WORDS, HEADER_WORDS + elements);
    const bitsAt = HEADER_WORDS + elements;
    const ownersAt = bitsAt + bitWords(elements, checked);
    this.#isFree = words.subarray(bitsAt, ownersAt);
    this.#owners = new Uint16Array(words.buffer, words.byteOffset + ownersAt * 4, elements);
  }

  /**
   * A new pool with all elements free; element 0 is taken first.
   *
   * @param elements number of elements, 1 to 2^28
   * @param source of its words. Default: a SharedArrayBuffer
   * @throws DmaError EINVAL for another number; ENOMEM if there is no room for the words
   */
  static create(
    elements: number,
    { checked = false }: ElementStackOptions = {},
    operation = 'pool',
    source: WordSource = sharedBuffers,
  ): ElementStack {
    if (!Number.isInteger(elements) || elements < 1 || elements > MOST_ELEMENTS) {
      throw invalid(operation, `${show(elements)} elements are not possible`, {
        hint: 'a pool has 1 to 2^28 elements, all of them from the start: the option "elements" says how many',
      });
    }
    const memory = source.allocate(wordsFor(elements, checked) * 4);
    const words = wordsIn(memory, 'elements', operation);
    words[ELEMENTS_AT] = elements;
    words[CHECKED_AT] = checked ? 1 : 0;
    words[COUNT_AT] = elements;
    const stack = new ElementStack(memory, words, elements, checked);
    for (let i = 0; i < elements; i++) stack.#stack[i] = elements - 1 - i;
    stack.#isFree.fill(-1);
    setKind(words, KIND);
    return stack;
  }

  /**
   * Opens the pool in `memory`, which another thread or process made and shared.
   *
   * @throws DmaError EINVAL if it holds no shared pool
   */
  static attach(memory: WordMemory, holders: Holders): ElementStack {
    const words = wordsIn(memory, 'elements', 'pool.attach');
    // Read once: others may change them at any time.
    const [elements, checked] = words.length < HEADER_WORDS ? [0, 0] : [words[ELEMENTS_AT], words[CHECKED_AT]];
    const isPossible = elements >= 1 && elements <= MOST_ELEMENTS && (checked === 0 || checked === 1);
    const fits = isPossible && words.length >= wordsFor(elements, checked === 1);
    if (!fits || !isOfKind(words, KIND) || Atomics.load(words, SHARED_AT) !== 1) {
      throw invalid('pool', 'the shared memory holds no pool', {
        hint: 'pool.share() gives what another thread attaches to',
      });
    }
    const stack = new ElementStack(memory, words, elements, checked === 1);
    stack.#useWith(holders);
    return stack;
  }

  /**
   * Allows other threads to attach. From now on a lock is taken, and each element has an owner: those that are not in the stack belong to
   * this thread.
   */
  share(holders: Holders): void {
    if (this.#lock !== undefined) return;
    this.#useWith(holders);
    this.#owners.fill(this.#me);
    for (let i = 0; i < this.#header[COUNT_AT]; i++) this.#owners[this.#stack[i]] = NOBODY;
    Atomics.store(this.#header, SHARED_AT, 1);
  }

  /** Do rings carry elements of it, which only the thread that made the pool knows all of? */
  get isRinged(): boolean {
    return !this.gone && Atomics.load(this.#header, RINGED_AT) === 1;
  }

  /** A ring is about to carry elements of it. */
  noteRing(): void {
    Atomics.store(this.#header, RINGED_AT, 1);
  }

  /** Is it used with a lock? */
  get isShared(): boolean {
    return this.#lock !== undefined;
  }

  /** Is it neither checked nor shared, so that nothing is noted of elements? @internal */
  get isPlain(): boolean {
    return this.#isPlain;
  }

  #useWith(holders: Holders): void {
    this.#isPlain = false;
    this.#lock = new RobustLock(this.#header, LOCK_AT, holders, 'the pool');
    this.#me = holders.enter();
  }

  /** Were its words unmapped, because the process that made the pool has freed it by force? */
  get gone(): boolean {
    return this.#header.length === 0;
  }

  /** How many elements are free now, without those in caches. */
  get available(): number {
    if (this.gone) return 0;
    return Math.max(0, Math.min(this.elements, Atomics.load(this.#header, COUNT_AT)));
  }

  /**
   * Takes `count` elements, all or none (DPDK: `rte_mempool_get_bulk`), and writes their numbers to `into` from index
   * `at`.
   *
   * @returns false if fewer are available
   * @throws DmaError EINVAL if `into` is too short; ETIMEDOUT if a thread that is stopped holds the lock
   */
  get(into: ElementNumbers, count: number, at = 0): boolean {
    if (!this.take(into, count, at)) return false;
    if (this.checked) this.markTaken(into, count, at);
    return true;
  }

  /**
   * Returns `count` elements, whose numbers are in `from` from index `at`.
   *
   * @throws DmaError EINVAL if `from` is too short, if there would be more elements than the pool has, or (checked or
   *   shared) if one of them is free already or does not exist; then none is put. ETIMEDOUT as {@link get}
   */
  put(from: ElementNumbers, count: number, at = 0): void {
    if (this.checked) this.markFree(from, count, at);
    this.give(from, count, at);
  }

  /** As {@link get}, for elements that stay free, in a cache. @internal */
  take(into: ElementNumbers, count: number, at: number): boolean {
    checkBurst(into, count, at);
    if (this.#lock !== undefined) return this.#takeShared(this.#lock, into, count, at);
    const left = this.#header[COUNT_AT] - count;
    if (left < 0) return false;
    copyReversed(into, at, this.#stack, left + count, count);
    this.#header[COUNT_AT] = left;
    return true;
  }

  /** As {@link put}, for elements that were free, in a cache. @internal */
  give(from: ElementNumbers, count: number, at: number): void {
    checkBurst(from, count, at);
    if (this.#lock !== undefined) {
      this.#giveShared(this.#lock, from, count, at);
      return;
    }
    const before = this.#header[COUNT_AT];
    if (before + count > this.elements) throw this.#tooMany();
    copyNumbers(this.#stack, before, from, at, count);
    this.#header[COUNT_AT] = before + count;
  }

  #takeShared(lock: RobustLock, into: ElementNumbers, count: number, at: number): boolean {
    if (this.gone) return false;
    if (lock.lock('pool.get')) this.#rebuild();
    try {
      for (let isRebuilt = false; ; isRebuilt = true) {
        const before = this.#header[COUNT_AT];
        if (before >= 0 && before <= this.elements) {
          if (before < count) return false;
          if (this.#takeFrom(before, into, count, at)) return true;
        }
        if (isRebuilt) throw this.#overwritten('pool.get');
        this.#rebuild();
      }
    } finally {
      lock.unlock();
    }
  }

  /** @returns false, and takes none, if a number is impossible */
  #takeFrom(before: number, into: ElementNumbers, count: number, at: number): boolean {
    const stack = this.#stack;
    const owners = this.#owners;
    const { elements } = this;
    const me = this.#me;
    for (let i = 0; i < count; i++) {
      // Read once, as others could change it after the check.
      const number = stack[before - 1 - i];
      if (number < 0 || number >= elements || owners[number] !== NOBODY) {
        for (let j = 0; j < i; j++) owners[into[at + j]] = NOBODY;
        return false;
      }
      owners[number] = me;
      into[at + i] = number;
    }
    this.#header[COUNT_AT] = before - count;
    return true;
  }

  #giveShared(lock: RobustLock, from: ElementNumbers, count: number, at: number): void {
    if (this.gone) throw this.#freed();
    if (lock.lock('pool.put')) this.#rebuild();
    try {
      let before = this.#header[COUNT_AT];
      // Each element of the burst has an owner, so there is room unless the count is nonsense, or the burst is.
      if (before < 0 || before + count > this.elements) before = this.#rebuild();
      if (before + count > this.elements) throw this.#tooMany();
      const stack = this.#stack;
      const owners = this.#owners;
      for (let i = 0; i < count; i++) {
        const number = from[at + i];
        const owner = owners[number];
        if (number < 0 || number >= this.elements || owner === NOBODY) {
          for (let j = 0; j < i; j++) owners[from[at + j]] = this.#me;
          throw this.#notOut(number);
        }
        if (owner !== this.#me) this.#noteClaim(owner);
        stack[before + i] = number;
        owners[number] = NOBODY;
      }
      this.#header[COUNT_AT] = before + count;
    } finally {
      lock.unlock();
    }
  }

  /** Makes the stack anew from the owners. The lock is held. @returns the count */
  #rebuild(): number {
    const owners = this.#owners;
    let count = 0;
    for (let number = this.elements - 1; number >= 0; number--)
      if (owners[number] === NOBODY) this.#stack[count++] = number;
    this.#header[COUNT_AT] = count;
    return count;
  }

  /**
   * Shared pools: notes that this thread has these elements, which it may have got from another one.
   *
   * @returns -1; the index of the first that is free or does not exist: those before it are this thread's then
   * @internal
   */
  claim(numbers: ElementNumbers, count: number, at: number): number {
    const owners = this.#owners;
    const { elements } = this;
    const me = this.#me;
    let last = me;
    for (let i = at; i < at + count; i++) {
      const number = numbers[i];
      const owner = owners[number];
      if (number < 0 || number >= elements || owner === NOBODY) return i;
      if (owner === me) continue;
      if (owner !== last) this.#noteClaim(owner);
      last = owner;
      owners[number] = me;
    }
    return -1;
  }

  /** Shared pools: does this thread have the element? @internal */
  isMine(number: number): boolean {
    return this.#owners[number] === this.#me;
  }

  /** Before elements of another thread become this one's, so that who sees that they did sees this too. */
  #noteClaim(owner: number): void {
    Atomics.add(this.#header, CLAIMED_AT + (owner & (CLAIMED_WORDS - 1)), 1);
  }

  /**
   * Changes whenever another thread takes over elements that this one had. Whatever hands one back to this thread orders the change before
   * it, so that this needs no atomic load, which V8 calls a function for. @internal
   */
  get claimed(): number {
    return this.#header[CLAIMED_AT + (this.#me & (CLAIMED_WORDS - 1))];
  }

  /**
   * As {@link claim}.
   *
   * Most elements that a thread puts back it took itself. So it first looks whether it has all of them: then nothing is written, and nothing
   * is decided for each one. That takes a third of the time of {@link claim}.
   *
   * @throws DmaError EINVAL for the first that is free or does not exist
   * @internal
   */
  mustClaim(numbers: ElementNumbers, count: number, at: number): void {
    const owners = this.#owners;
    const me = this.#me;
    const end = at + count;
    // An element that does not exist has no owner: `undefined ^ me` is not 0.
    let differ = 0;
    let i = at;
    for (; i + 8 <= end; i += 8)
      differ |=
        (owners[numbers[i]] ^ me) |
        (owners[numbers[i + 1]] ^ me) |
        (owners[numbers[i + 2]] ^ me) |
        (owners[numbers[i + 3]] ^ me) |
        (owners[numbers[i + 4]] ^ me) |
        (owners[numbers[i + 5]] ^ me) |
        (owners[numbers[i + 6]] ^ me) |
        (owners[numbers[i + 7]] ^ me);
    for (; i < end; i++) differ |= owners[numbers[i]] ^ me;
    if (differ === 0) return;
    const wrong = this.claim(numbers, count, at);
    if (wrong >= 0) throw this.#notOut(numbers[wrong]);
  }

  /**
   * Frees what a thread has that has ended: the elements in its hand and in its cache. The count is put right in any case.
   *
   * @param inRings numbers of elements that are in rings, read from them after the thread had ended: they become this thread's
   * @returns how many elements came back
   * @throws DmaError ETIMEDOUT as {@link get}
   */
  recover(id: number, inRings: Iterable<number> = []): number {
    const lock = this.#lock;
    if (lock === undefined || id === NOBODY || id === this.#me || this.gone) return 0;
    const owners = this.#owners;
    // Whoever takes one out of its ring meanwhile becomes its owner, before or after this: then it is not the dead one's.
    for (const number of inRings)
      if (number >= 0 && number < this.elements) Atomics.compareExchange(owners, number, id, this.#me);
    lock.lock('pool.recover');
    try {
      let found = 0;
      for (let number = 0; number < this.elements; number++) {
        if (owners[number] !== id) continue;
        if (this.checked) Atomics.or(this.#isFree, number >>> 5, 1 << (number & 31));
        if (Atomics.compareExchange(owners, number, id, NOBODY) === id) found++;
      }
      this.#rebuild();
      return found;
    } finally {
      lock.unlock();
    }
  }

  #freed(): DmaError {
    return ended('pool.put', 'the pool was freed by the process that made it', 'pool.live');
  }

  #tooMany(): DmaError {
    return invalid('pool.put', `the pool would have more than its ${this.elements} elements`, {
      hint: 'an element was put twice; create the pool with { checked: true } to find out which',
    });
  }

  #overwritten(operation: string): DmaError {
    return new DmaError({
      code: 'EIO',
      operation,
      reason: 'the words of the pool are overwritten as fast as they are repaired',
      hint: 'one of the threads or processes that share it is broken: end it',
    });
  }

  #notOut(number: number): DmaError {
    const exists = number >= 0 && number < this.elements;
    return invalid('pool.put', exists ? `element ${number} is free already` : `there is no element ${number}`, {
      hint: exists
        ? 'it was put twice: after put, an element no longer belongs to the caller'
        : `elements have the numbers 0 to ${this.elements - 1}, which get() gives`,
    });
  }

  /** Checked pools: notes that a user has these elements. @internal */
  markTaken(numbers: ElementNumbers, count: number, at: number): void {
    if (this.gone) return;
    for (let i = at; i < at + count; i++) Atomics.and(this.#isFree, numbers[i] >>> 5, ~(1 << (numbers[i] & 31)));
  }

  /**
   * Checked pools: notes that no user has these elements any more. @throws DmaError EINVAL, and notes none @internal
   */
  markFree(numbers: ElementNumbers, count: number, at: number): void {
    if (this.gone) throw this.#freed();
    checkBurst(numbers, count, at);
    for (let i = at; i < at + count; i++) {
      const number = numbers[i];
      const exists = number >= 0 && number < this.elements;
      const bit = 1 << (number & 31);
      if (exists && (Atomics.or(this.#isFree, number >>> 5, bit) & bit) === 0) continue;
      this.markTaken(numbers, i - at, at);
      throw this.#notOut(number);
    }
  }
}

function wordsFor(elements: number, checked: boolean): number {
  return HEADER_WORDS + elements + bitWords(elements, checked) + Math.ceil(elements / 2);
}

function bitWords(elements: number, checked: boolean): number {
  return checked ? Math.ceil(elements / 32) : 0;
}

/** A typed array ignores writes past its end, so elements would get lost. @throws DmaError EINVAL @internal */
export function checkBurst(numbers: ElementNumbers, count: number, at: number): void {
  try {
    if (
      // Other kinds of array would change the numbers, or throw. Those of this realm need no call.
      (numbers instanceof Int32Array || numbers instanceof Uint32Array) &&
      typeof count === 'number' &&
      typeof at === 'number' &&
      // `|` tells the compiler that they are small integers, and that it need not look whether a length is.
      (count | 0) === count &&
      (at | 0) === at &&
      count >= 0 &&
      at >= 0 &&
      at + count <= (numbers.length | 0)
    )
      return;
  } catch {
    // A proxy that does not even tell what it is.
  }
  checkUnusual(numbers, count, at);
}

/** {@link checkBurst} for what is wrong, or of another realm. It is apart, so that the compiler can put the rest into loops. */
function checkUnusual(numbers: ElementNumbers, count: number, at: number): void {
  const kind = typedArrayName(numbers);
  if (kind !== 'Int32Array' && kind !== 'Uint32Array') {
    const hint = 'new Int32Array(32) takes bursts of 32, and can be used again and again';
    throw invalid('pool', 'numbers of elements are kept in an Int32Array or Uint32Array', { hint });
  }
  const { length } = numbers;
  if ([count, at].every((each) => Number.isInteger(each) && each >= 0) && at + count <= length) return;
  const hint =
    length === 0
      ? 'the array is empty: it was made so, or its ArrayBuffer was transferred'
      : `the array has places 0 to ${length - 1}: the second argument is how many, the third the first place`;
  throw invalid('pool', `${show(count)} elements from place ${show(at)} on do not fit an array of ${length}`, { hint });
}

/** From so many numbers on, calling `set` takes less time than a loop. @internal */
export const MANY = 24;

/**
 * Copies `count` numbers from `from[start]` to `to[at]`.
 *
 * Once any ArrayBuffer of the process was detached (as when memory is freed), V8 checks for a detached buffer at each access. So as
 * little as possible is done besides: eight at a time. `set` checks once, but of a part of an array it would need a view, which is
 * garbage. @internal
 */
export function copyNumbers(to: ElementNumbers, at: number, from: ElementNumbers, start: number, count: number): void {
  if (count >= MANY && count === from.length) {
    to.set(from, at);
    return;
  }
  const end = at + count;
  let i = at;
  let j = start;
  for (; i + 8 <= end; i += 8, j += 8) {
    to[i] = from[j];
    to[i + 1] = from[j + 1];
    to[i + 2] = from[j + 2];
    to[i + 3] = from[j + 3];
    to[i + 4] = from[j + 4];
    to[i + 5] = from[j + 5];
    to[i + 6] = from[j + 6];
    to[i + 7] = from[j + 7];
  }
  for (; i < end; i++, j++) to[i] = from[j];
}

/**
 * Copies large bursts from places of one array by `set`, which takes half the time of a loop. The views that it needs stay, by their first
 * place, so they are no garbage. @internal
 */
export class PartCopies {
  readonly #numbers: Int32Array;
  #views: (Int32Array | undefined)[] = [];

  /** @param numbers as many views are made as it has places, at most */
  constructor(numbers: Int32Array) {
    this.#numbers = numbers;
  }

  /** Copies `count` numbers from place `start` on to `to[at]`: by one call where the burst is as long as the first one from there. */
  copy(to: ElementNumbers, at: number, start: number, count: number): void {
    const numbers = this.#numbers;
    // Filled at once: with holes that large, V8 would make the array a dictionary.
    if (this.#views.length === 0) this.#views = Array.from({ length: numbers.length }, () => undefined);
    const view = (this.#views[start] ??= numbers.subarray(start, start + count));
    if (view.length === count) to.set(view, at);
    else copyNumbers(to, at, numbers, start, count);
  }
}

/** As {@link copyNumbers}, in reverse order; `end` is the index after the first one that is copied. @internal */
export function copyReversed(to: ElementNumbers, at: number, from: ElementNumbers, end: number, count: number): void {
  const last = at + count;
  let i = at;
  let j = end - 1;
  for (; i + 8 <= last; i += 8, j -= 8) {
    to[i] = from[j];
    to[i + 1] = from[j - 1];
    to[i + 2] = from[j - 2];
    to[i + 3] = from[j - 3];
    to[i + 4] = from[j - 4];
    to[i + 5] = from[j - 5];
    to[i + 6] = from[j - 6];
    to[i + 7] = from[j - 7];
  }
  for (; i < last; i++, j--) to[i] = from[j];
}
