/**
 * A ring of numbers: elements of a pool, slots, whatever a program hands from thread to thread. DPDK calls it rte_ring.
 *
 * Each side has an index that only it writes, on a cache line of its own. A burst is written first and then published by one store of the
 * index, so a thread that dies in the middle has done nothing, and there is nothing to repair. A side of many threads has a lock,
 * which survives its owner. A side of one has a word that says which thread that is.
 *
 * **Elements of a pool belong to whoever put them in until they are out, and then to whoever took them out.** Their owner (element-stack.ts)
 * is written before the index that publishes or takes them. So an element is always in the ring, or its owner has it.
 */
import {
  ended,
  mustBeMs,
  mustBeObject,
  mustBeString,
  mustBeWhole,
  mustHave,
  optionsOf,
  reading,
  type Shape,
} from '../../check.js';
import { DmaError, invalid, throwFirst, undoAll, withUndo } from '../../errors.js';
import type { Platform } from '../../platform/ports.js';
import { shortForm } from '../../short-form.js';
import { STAYS } from '../../stays.js';
import { Hold } from '../shared/hold.js';
import { Holders, NOBODY } from '../shared/holders.js';
import { ENDED, ENDING, Holds, OPEN } from '../shared/holds.js';
import { RobustLock } from '../shared/robust-lock.js';
import type { Shared } from '../shared/shared.js';
import type { Share } from '../shared/shares.js';
import type { WordMemory } from '../shared/words.js';
import { Bell, type WaitOptions } from './bell.js';
import { checkBurst, copyNumbers, MANY, PartCopies, type ElementNumbers } from './element-stack.js';
import type { Pool, PoolDescription } from './pool.js';
import {
  BELL_AT,
  HEAD_AT,
  HEAD_LOCK_AT,
  ringIn,
  ROOM_BELL_AT,
  TAIL_AT,
  TAIL_LOCK_AT,
  type RingSide,
  type RingWords,
} from './ring-words.js';
import { WordViews, type WordsOrPlace } from './word-places.js';

/** What another thread or process needs to use the ring. It can be sent any number of times. */
export interface RingDescription {
  readonly kind: 'ring';
  readonly name: string;
  /** @internal What `attach` opens; absent in what another process is told. */
  readonly sealed?: Shared<Ring>;
  /** @internal Indexes and numbers. */
  readonly words: WordsOrPlace;
  /** @internal Who has attached: the words of `Holds`. */
  readonly threads: WordsOrPlace;
  /** @internal The table of all threads and processes that share. */
  readonly holders: WordsOrPlace;
  /** @internal A descriptor of the event that numbers came in, in this process. */
  readonly event: number;
  /** @internal The same of the event that there is room again. */
  readonly roomEvent: number;
  /** @internal */
  readonly pool: PoolDescription | undefined;
}

/** How a ring is shared: for the thread that made it, and for one that attached. */
export interface RingSharing {
  readonly holders: Holders;
  readonly holds: Holds;
  /** What it is shared by, in this thread. */
  readonly words: { readonly words: WordMemory; readonly threads: WordMemory; readonly holders: WordMemory };
  readonly description: RingDescription;
  /** What the `Eal` knows of it; absent in other threads. */
  readonly share?: Share;
  /** Are threads told where the words are, as they are in no SharedArrayBuffer? Then `share` has holds of its own. */
  readonly isByPlace?: boolean;
}

/** Options of `Ring.attach`. */
export interface RingAttaching {
  /** Where in the program, for messages of the maker. */
  readonly place?: string;
  readonly pool?: PoolOpening;
  readonly wordHold?: Hold;
}

/** How the pool of a ring is opened in a thread that attaches. */
export interface PoolOpening {
  /** The same for rings of one pool. */
  readonly key: string | number;
  readonly open: () => Pool;
}

/** What a ring needs of the platform. */
export type RingPlatform = Pick<Platform, 'memory' | 'kernel' | 'events' | 'readiness' | 'files'>;

/** The descriptors of its events. */
export interface RingEvents {
  /** The event that numbers came in. */
  readonly event: number;
  /** The event that there is room again. */
  readonly roomEvent: number;
}

/** The parts of a ring in one thread. */
interface RingParts {
  readonly name: string;
  readonly words: RingWords;
  readonly platform: RingPlatform;
  readonly pool: Pool | undefined;
  /** Makes what is needed to share it. */
  readonly share: (events: RingEvents) => RingSharing;
  readonly attached?: { readonly sharing: RingSharing; readonly events: RingEvents };
  /** Gives back what it is made of. */
  readonly end: () => void;
  readonly made: boolean;
}

const FREE_OPTIONS = { force: 'boolean' } as const;
const READABLE_OPTIONS: Shape<WaitOptions> = { signal: 'signal', timeoutMs: 'number' };

/** Views of slots, each of some 100 bytes, that a ring may have. */
const MOST_PARTS = 4096;

/** Pools that rings of this thread have opened: rings of one pool share it, and its cache. By {@link PoolOpening.key}. */
const opened = new Map<string | number, { readonly pool: Pool; rings: number }>();

/**
 * A ring. Made by `Rings.create`, and in other threads and processes by `attach` and `secondary.rings`. Bursts make no garbage and no system
 * call, unless somebody waits. Disposing it frees it.
 */
export class Ring implements Disposable {
  /** @internal */
  readonly stays = STAYS;
  readonly name: string;
  /** How many numbers it can hold. */
  readonly size: number;
  readonly producers: RingSide;
  readonly consumers: RingSide;
  /** The pool whose elements it carries, if it was made for one: opened in this thread, and freed with its last ring. */
  readonly pool: Pool | undefined;
  readonly #words: Int32Array;
  readonly #slots: Int32Array;
  /** Copies from the slots; absent when there are so many that the views would take much memory. */
  readonly #parts: PartCopies | undefined;
  readonly #mask: number;
  readonly #platform: RingPlatform;
  readonly #share: RingParts['share'];
  readonly #end: () => void;
  readonly #made: boolean;
  #sharing: RingSharing | undefined;
  /** This thread, once the ring is shared. */
  #me = NOBODY;
  #events: RingEvents | undefined;
  #bells: { readonly filled: Bell; readonly room: Bell } | undefined;
  #tailLock: RobustLock | undefined;
  #headLock: RobustLock | undefined;
  // What this thread last saw of the other side's index, which only goes on. While this thread is its side alone, it is looked at again when
  // it is not enough, as each look takes the cache line from the other side. With others at this side it could be as old as 2^32 numbers.
  #headSeen = 0;
  #tailSeen = 0;
  #live = true;

  /** @internal */
  constructor({ name, words, platform, pool, share, attached, end, made }: RingParts) {
    this.name = name;
    this.size = words.size;
    this.producers = words.producers;
    this.consumers = words.consumers;
    this.pool = pool;
    this.#words = words.header;
    this.#slots = words.slots;
    this.#parts = words.slots.length <= MOST_PARTS ? new PartCopies(words.slots) : undefined;
    this.#mask = words.slots.length - 1;
    this.#platform = platform;
    this.#share = share;
    this.#end = end;
    this.#made = made;
    if (attached === undefined) return;
    this.#events = attached.events;
    this.#useWith(attached.sharing);
  }

  /**
   * Opens the ring in another thread or process.
   *
   * @internal
   * @param pool opens the ring's pool, if it has one
   * @param wordHold keeps the words in place; the ring leaves it
   * @throws DmaError EINVAL if the ring was freed, or `description` does not describe a ring
   */
  static attach(
    description: RingDescription,
    platform: RingPlatform,
    { place = '', pool, wordHold }: RingAttaching = {},
  ): Ring {
    const operation = 'ring.attach';
    mustHave(platform, ['memory', 'kernel', 'events', 'readiness', 'files'], 'platform', operation);
    const copy = checkRingDescription(description, operation);
    const { name } = copy;
    const views = new WordViews(platform.memory);
    const undo: (() => void)[] = [() => views.end()];
    try {
      const words = {
        words: views.open(copy.words, operation),
        threads: views.open(copy.threads, operation),
        holders: views.open(copy.holders, operation),
      };
      const holders = Holders.attach(platform.kernel, words.holders);
      const shared = { holds: words.threads, holders: words.holders, keepers: [], more: [] };
      const hold = Hold.take(shared, platform, `the ring ${name}`, place, operation);
      undo.unshift(() => hold.leave());
      const parts = ringIn(words.words, operation);
      const opening = pool === undefined ? undefined : openPool(pool);
      if (opening !== undefined) undo.unshift(opening.close);
      const event = platform.files.duplicate(copy.event);
      undo.unshift(() => platform.files.close(event));
      const roomEvent = platform.files.duplicate(copy.roomEvent);
      undo.unshift(() => platform.files.close(roomEvent));
      const holds = Holds.attach(words.threads, holders.capacity, operation);
      const sharing: RingSharing = { holders, holds, words, description: copy };
      const end = (): void => throwFirst(undoAll([...undo, () => wordHold?.leave()]), 'ring.free');
      const attached = { sharing, events: { event, roomEvent } };
      const share = (): RingSharing => sharing;
      return new Ring({ name, words: parts, platform, pool: opening?.pool, share, attached, end, made: false });
    } catch (error) {
      undoAll(undo);
      throw error;
    }
  }

  /** Can it be used? False once it was freed, here or where it was made, or its pool was. */
  get live(): boolean {
    return this.#live && this.#words.length > 0 && this.pool?.live !== false;
  }

  /** How many numbers are in it. */
  get length(): number {
    if (!this.live) return 0;
    const used = (Atomics.load(this.#words, TAIL_AT) - Atomics.load(this.#words, HEAD_AT)) | 0;
    return Math.max(0, Math.min(this.size, used));
  }

  /** How many more it has room for. */
  get room(): number {
    return this.size - this.length;
  }

  /** How many threads and processes have attached and live, not counting the one that made it. */
  get threads(): number {
    return this.#held().length;
  }

  /** @internal How many of them are threads of this process. */
  get threadsHere(): number {
    return this.#held().filter((id) => this.#sharing?.holders.isHere(id)).length;
  }

  #held(): readonly number[] {
    const sharing = this.#sharing;
    return sharing === undefined ? [] : sharing.holds.living(sharing.holders, 'held');
  }

  /**
   * Puts up to `count` numbers in, from `from[at]` on (DPDK: `rte_ring_enqueue_burst`). Elements of the ring's pool must be in a hand: of
   * this thread, or of another one that gave them to it.
   *
   * @returns how many went in; 0 if it is full
   * @throws DmaError EINVAL if `from` is too short, if one of them is no element of the ring's pool or is free (then none is put in), or if the ring or
   *   its pool is freed; EBUSY if another thread is its one producer; EIO if others overwrote its indexes; ETIMEDOUT if a thread that is
   *   stopped is inside
   */
  enqueue(from: Int32Array | Uint32Array, count: number, at = 0): number {
    return this.#enqueue(from, count, at, false);
  }

  /**
   * As {@link Ring.enqueue}, all or none (DPDK: `rte_ring_enqueue_bulk`).
   *
   * @returns whether they went in
   */
  enqueueAll(from: Int32Array | Uint32Array, count: number, at = 0): boolean {
    return this.#enqueue(from, count, at, true) === count;
  }

  /**
   * Takes up to `count` numbers out, oldest first, and writes them to `into` from index `at` (DPDK: `rte_ring_dequeue_burst`). Elements of
   * the ring's pool belong to this thread then.
   *
   * @returns how many came out; 0 if it is empty
   * @throws DmaError EINVAL if `into` is too short, or the ring or its pool is freed; EBUSY if another thread is its one consumer; EIO if others
   *   overwrote its indexes, or a number, which is skipped; ETIMEDOUT if a thread that is stopped is inside
   */
  dequeue(into: Int32Array | Uint32Array, count: number, at = 0): number {
    return this.#dequeue(into, count, at, false);
  }

  /**
   * As {@link Ring.dequeue}, all or none (DPDK: `rte_ring_dequeue_bulk`).
   *
   * @returns whether they came out
   */
  dequeueAll(into: Int32Array | Uint32Array, count: number, at = 0): boolean {
    return this.#dequeue(into, count, at, true) === count;
  }

  #enqueue(from: ElementNumbers, count: number, at: number, all: boolean): number {
    checkBurst(from, count, at);
    if (!this.live) this.#mustBeLive('ring.enqueue');
    const lock = this.#tailLock;
    if (lock === undefined) {
      if (this.#words[TAIL_LOCK_AT] !== this.#me) this.#claimSide(TAIL_LOCK_AT, 'producer');
      return this.#add(from, count, at, all);
    }
    lock.lock('ring.enqueue');
    try {
      return this.#add(from, count, at, all);
    } finally {
      lock.unlock();
    }
  }

  #add(from: ElementNumbers, count: number, at: number, all: boolean): number {
    const words = this.#words;
    const tail = words[TAIL_AT];
    let room = this.size - ((tail - this.#headSeen) | 0);
    if (this.#tailLock !== undefined || room < count || room > this.size) {
      this.#headSeen = Atomics.load(words, HEAD_AT);
      room = this.size - this.#used(tail, this.#headSeen, 'ring.enqueue');
    }
    const n = count <= room ? count : all ? 0 : room;
    if (n === 0) return 0;
    const { pool } = this;
    if (pool !== undefined) {
      const wrong = this.#claim(pool, from, n, at);
      if (wrong >= 0) throw this.#notInHand(from[wrong], pool);
    }
    const slots = this.#slots;
    const start = tail & this.#mask;
    const first = Math.min(n, slots.length - start);
    copyNumbers(slots, start, from, at, first);
    if (first < n) copyNumbers(slots, 0, from, at + first, n - first);
    publish(words, TAIL_AT, tail + n);
    // After that store: see bell.ts.
    if (words[BELL_AT] !== 0) this.#theBells('ring.enqueue').filled.ring();
    return n;
  }

  #dequeue(into: ElementNumbers, count: number, at: number, all: boolean): number {
    checkBurst(into, count, at);
    if (!this.live) this.#mustBeLive('ring.dequeue');
    const lock = this.#headLock;
    if (lock === undefined) {
      if (this.#words[HEAD_LOCK_AT] !== this.#me) this.#claimSide(HEAD_LOCK_AT, 'consumer');
      return this.#remove(into, count, at, all);
    }
    lock.lock('ring.dequeue');
    try {
      return this.#remove(into, count, at, all);
    } finally {
      lock.unlock();
    }
  }

  #remove(into: ElementNumbers, count: number, at: number, all: boolean): number {
    const words = this.#words;
    const head = words[HEAD_AT];
    let used = (this.#tailSeen - head) | 0;
    if (this.#headLock !== undefined || used < count || used > this.size) {
      this.#tailSeen = Atomics.load(words, TAIL_AT);
      used = this.#used(this.#tailSeen, head, 'ring.dequeue');
    }
    let n = count <= used ? count : all ? 0 : used;
    if (n === 0) return 0;
    const slots = this.#slots;
    const start = head & this.#mask;
    const first = Math.min(n, slots.length - start);
    if (first < MANY || this.#parts === undefined) copyNumbers(into, at, slots, start, first);
    else this.#parts.copy(into, at, start, first);
    if (first < n) copyNumbers(into, at + first, slots, 0, n - first);
    if (this.pool !== undefined) {
      // From the copy, which nobody else can change. Owners are set before the head moves: until then they are in the ring.
      const wrong = this.#claim(this.pool, into, n, at);
      if (wrong >= 0) {
        if (wrong === at) {
          publish(words, HEAD_AT, head + 1);
          if (words[ROOM_BELL_AT] !== 0) this.#theBells('ring.dequeue').room.ring();
        }
        if (wrong === at || all) throw this.#wrongNumber(into[wrong], wrong === at);
        n = wrong - at;
      }
    }
    publish(words, HEAD_AT, head + n);
    if (words[ROOM_BELL_AT] !== 0) this.#theBells('ring.dequeue').room.ring();
    return n;
  }

  /** Makes elements this thread's. @returns the index of the first that is no element in anybody's hand; -1 if there is none */
  #claim({ stack, elements }: Pool, numbers: ElementNumbers, count: number, at: number): number {
    if (stack.isShared) return stack.claim(numbers, count, at);
    for (let i = at; i < at + count; i++) if (numbers[i] < 0 || numbers[i] >= elements) return i;
    return -1;
  }

  #used(tail: number, head: number, operation: string): number {
    const used = (tail - head) | 0;
    if (used >= 0 && used <= this.size) return used;
    throw new DmaError({
      code: 'EIO',
      operation,
      reason: `the indexes of the ring ${this.name} were overwritten: ${used} of ${this.size} numbers would be in it`,
      hint: 'one of the threads or processes that share it is broken: end it, free the ring, and create it again',
    });
  }

  #notInHand(number: number, { name, elements }: Pool): DmaError {
    const exists = number >= 0 && number < elements;
    return invalid('ring.enqueue', exists ? `element ${number} is free` : `there is no element ${number}`, {
      hint: exists
        ? `the pool ${name} has it: take it by get() first, or from a ring`
        : `elements of the pool ${name} have the numbers 0 to ${elements - 1}, which get() gives`,
    });
  }

  #wrongNumber(number: number, isSkipped: boolean): DmaError {
    return new DmaError({
      code: 'EIO',
      operation: 'ring.dequeue',
      reason: `the ring ${this.name} has ${number}, which is no element that somebody had`,
      hint: isSkipped
        ? 'it was skipped: a thread or process put it back while it was in the ring, or wrote into the ring itself'
        : 'dequeue() takes those before it out',
    });
  }

  /** A side of one thread belongs to the first that uses it, until that frees its ring or ends. @throws DmaError EBUSY */
  #claimSide(at: number, side: 'producer' | 'consumer'): void {
    const holders = this.#sharing?.holders;
    const me = this.#me;
    if (holders === undefined) return;
    for (;;) {
      const other = Atomics.compareExchange(this.#words, at, NOBODY, me);
      const isMine = other === NOBODY || other === me;
      const isDead = !isMine && !holders.isAlive(other);
      if (isMine || (isDead && Atomics.compareExchange(this.#words, at, other, me) === other)) {
        // What this thread saw at an earlier time is too old.
        this.#headSeen = Atomics.load(this.#words, HEAD_AT);
        this.#tailSeen = Atomics.load(this.#words, TAIL_AT);
        return;
      }
      if (isDead) continue;
      throw new DmaError({
        code: 'EBUSY',
        operation: side === 'producer' ? 'ring.enqueue' : 'ring.dequeue',
        reason: `the ring ${this.name} has one ${side}, which is ${holders.describe(other)}`,
        hint: `create it with { ${side}s: 'many' }, or free the ring there`,
      });
    }
  }

  /**
   * Resolves once there are numbers in it, without blocking the event loop. Another consumer may take them first.
   *
   * @param options.signal gives up
   * @param options.timeoutMs gives up after so many milliseconds. Default: never
   * @returns whether there are any: false when the time is over
   * @throws DmaError ECANCELED if `options.signal` is aborted; EINVAL if the ring is freed, also meanwhile; ENOTSUP where there are no
   *   events
   */
  async readable(options?: { readonly signal?: AbortSignal; readonly timeoutMs?: number }): Promise<boolean> {
    return this.#until('filled', () => this.length > 0, options, 'ring.readable');
  }

  /**
   * Resolves once there is room, without blocking the event loop: the other way round as {@link Ring.readable}. Another producer may fill it
   * first.
   *
   * @param options.signal gives up
   * @param options.timeoutMs gives up after so many milliseconds. Default: never
   * @returns whether there is room: false when the time is over
   * @throws DmaError ECANCELED if `options.signal` is aborted; EINVAL if the ring is freed, also meanwhile; ENOTSUP where there are no
   *   events
   */
  async writable(options?: { readonly signal?: AbortSignal; readonly timeoutMs?: number }): Promise<boolean> {
    return this.#until('room', () => this.room > 0, options, 'ring.writable');
  }

  async #until(
    bell: 'filled' | 'room',
    isSo: () => boolean,
    options: WaitOptions | undefined,
    operation: string,
  ): Promise<boolean> {
    const { signal, timeoutMs } = optionsOf<WaitOptions>(options, READABLE_OPTIONS, operation);
    if (timeoutMs !== undefined) mustBeMs(timeoutMs, 'timeoutMs', operation);
    const isReady = (): boolean => {
      this.#mustBeLive(operation);
      return isSo();
    };
    this.#mustBeLive(operation);
    if (signal?.aborted !== true && isSo()) return true;
    return this.#theBells(operation)[bell].readable(isReady, { signal, timeoutMs }, operation);
  }

  /**
   * Blocks this thread until there are numbers in it, or the time is over: for workers.
   *
   * @param timeoutMs milliseconds, below 2^31
   * @returns whether there are any
   * @throws DmaError EINVAL if the ring is freed; ENOTSUP where there are no events
   */
  wait(timeoutMs: number): boolean {
    const operation = 'ring.wait';
    mustBeMs(timeoutMs, 'timeoutMs', operation);
    this.#mustBeLive(operation);
    return this.length > 0 || this.#theBells(operation).filled.wait(() => this.length > 0, timeoutMs);
  }

  /**
   * Blocks this thread until there is room, or the time is over: for workers.
   *
   * @param timeoutMs milliseconds, below 2^31
   * @returns whether there is room
   * @throws DmaError EINVAL if the ring is freed; ENOTSUP where there are no events
   */
  waitForRoom(timeoutMs: number): boolean {
    const operation = 'ring.waitForRoom';
    mustBeMs(timeoutMs, 'timeoutMs', operation);
    this.#mustBeLive(operation);
    return this.room > 0 || this.#theBells(operation).room.wait(() => this.room > 0, timeoutMs);
  }

  #theBells(operation: string): { readonly filled: Bell; readonly room: Bell } {
    const { event, roomEvent } = (this.#events ??= this.#newEvents(operation));
    return (this.#bells ??= {
      filled: new Bell(this.#platform, this.#words, BELL_AT, event),
      room: new Bell(this.#platform, this.#words, ROOM_BELL_AT, roomEvent),
    });
  }

  #newEvents(operation: string): RingEvents {
    const { events, files } = this.#platform;
    const made: number[] = [];
    try {
      for (const _ of ['filled', 'room']) made.push(events.create());
      return { event: made[0], roomEvent: made[1] };
    } catch (error) {
      const failures = undoAll(made.map((fd) => () => files.close(fd)));
      throw withUndo(error instanceof DmaError ? error.with({ operation }) : error, operation, failures);
    }
  }

  /** @internal Who shares it, if it is shared. */
  get sharing(): RingSharing | undefined {
    return this.#sharing;
  }

  /** @internal The numbers that are in it now, while others go on. */
  *numbers(): IterableIterator<number> {
    const head = Atomics.load(this.#words, HEAD_AT);
    const { length } = this;
    for (let i = 0; i < length; i++) yield Atomics.load(this.#slots, (head + i) & this.#mask);
  }

  /**
   * Does a thread or process that lives work this side? Asks the kernel: some microseconds. Only a side of one that is shared is known:
   * others are taken to be worked.
   */
  isWorked(side: 'producers' | 'consumers'): boolean {
    if (!this.live) return false;
    const holders = this.#sharing?.holders;
    if (this[side] !== 'one' || holders === undefined) return true;
    const who = Atomics.load(this.#words, side === 'producers' ? TAIL_LOCK_AT : HEAD_LOCK_AT);
    return who !== NOBODY && holders.isAlive(who);
  }

  /** @internal A holder that has ended has nothing of it any more, so that its number can be given out again. */
  forget(id: number): void {
    for (const at of [TAIL_LOCK_AT, HEAD_LOCK_AT]) Atomics.compareExchange(this.#words, at, id, NOBODY);
    for (const set of ['held', 'lingering'] as const) this.#sharing?.holds.clear(id, set);
  }

  /**
   * What other threads need: `attach(shared)` opens it there, with its pool.
   *
   * @throws DmaError EINVAL if it is freed; ENOTSUP where there are no events
   */
  share(): RingDescription {
    const operation = 'ring.share';
    this.#mustBeLive(operation);
    if (this.#sharing !== undefined) return this.#sharing.description;
    this.#events ??= this.#newEvents(operation);
    const sharing = this.#share(this.#events);
    this.#useWith(sharing);
    return sharing.description;
  }

  #useWith(sharing: RingSharing): void {
    this.#sharing = sharing;
    const { holders } = sharing;
    this.#me = holders.enter();
    const what = `the ring ${this.name}`;
    if (this.producers === 'many') this.#tailLock = new RobustLock(this.#words, TAIL_LOCK_AT, holders, what);
    if (this.consumers === 'many') this.#headLock = new RobustLock(this.#words, HEAD_LOCK_AT, holders, what);
  }

  /**
   * Frees the ring; elements of its pool that are in it go back to the pool. In a thread that attached, this only lets go of it.
   *
   * @param options.force free it although threads are attached. Default false
   * @throws DmaError EINVAL if it was freed before; EBUSY, naming one, while other threads are attached
   */
  free(options?: { readonly force?: boolean }): void {
    const operation = 'ring.free';
    if (!this.#live) this.#mustBeLive(operation);
    const force = options !== undefined && optionsOf(options, FREE_OPTIONS, operation).force === true;
    if (this.#made) this.#close(force, operation);
    const steps = [
      ...(this.#made ? [() => this.#putBack()] : [() => this.#leaveSides()]),
      () => this.#closeEvent(operation),
      this.#end,
    ];
    throwFirst(undoAll(steps), operation);
  }

  /** Frees it, unless it was freed before. @throws DmaError EBUSY as {@link Ring.free} */
  [Symbol.dispose](): void {
    if (this.#live) this.free();
  }

  /** Lets no more threads attach. @throws DmaError EBUSY */
  #close(force: boolean, operation: string): void {
    const sharing = this.#sharing;
    if (sharing === undefined) return;
    const { holds, holders } = sharing;
    if (force) {
      holds.change(OPEN, ENDED);
      return;
    }
    holds.change(OPEN, ENDING);
    try {
      const [first, ...others] = this.#held();
      if (first !== undefined) {
        const more = others.length === 0 ? '' : ` and ${others.length} more`;
        const reason = `the ring ${this.name} is held by ${holders.describe(first)}${more}`;
        throw new DmaError({ code: 'EBUSY', operation, reason, hint: 'free it there first, or end that thread' });
      }
      // Threads that have the words only by their address hold those first.
      if (sharing.isByPlace === true) sharing.share?.end(operation);
    } catch (error) {
      holds.change(ENDING, OPEN);
      throw error;
    }
    holds.change(ENDING, ENDED);
  }

  /** Numbers that are no elements in a hand stay where they are. */
  #putBack(): void {
    const { pool } = this;
    if (pool?.live !== true) return;
    const one = new Int32Array(1);
    for (const number of this.numbers()) {
      one[0] = number;
      if (this.#claim(pool, one, 1, 0) < 0) pool.put(one, 1);
    }
  }

  #leaveSides(): void {
    if (this.#words.length === 0) return;
    if (this.producers === 'one') Atomics.compareExchange(this.#words, TAIL_LOCK_AT, this.#me, NOBODY);
    if (this.consumers === 'one') Atomics.compareExchange(this.#words, HEAD_LOCK_AT, this.#me, NOBODY);
  }

  #closeEvent(operation: string): void {
    const error = ended(operation, `the ring ${this.name} was freed`, 'ring.live');
    for (const bell of [this.#bells?.filled, this.#bells?.room]) bell?.close(error);
    this.#live = false;
    if (!this.#made || this.#events === undefined) return;
    const { event, roomEvent } = this.#events;
    throwFirst(undoAll([event, roomEvent].map((fd) => () => this.#platform.files.close(fd))), operation);
  }

  #mustBeLive(operation: string): void {
    if (!this.#live) throw ended(operation, `the ring ${this.name} was freed`, 'ring.live');
    if (this.#words.length === 0)
      throw ended(operation, `the ring ${this.name} was freed by the process that made it`, 'ring.live');
    if (this.pool?.live === false)
      throw ended(operation, `the pool ${this.pool.name} of the ring ${this.name} was freed`, 'ring.live');
  }
}

shortForm(Ring, 'Ring', ({ name, size, producers, consumers, length, live }) => ({
  name,
  size,
  producers,
  consumers,
  length,
  live,
}));

/** Does a thread see the stores of another one in their order, as on x86? */
const STORES_IN_ORDER = process.arch === 'x64';

/**
 * Stores an index after all that was stored before. `Atomics.store` would wait besides until every other processor sees it, which takes
 * longer than a burst: who waits for that store looks again a moment later.
 */
function publish(words: Int32Array, at: number, index: number): void {
  if (STORES_IN_ORDER) words[at] = index;
  else Atomics.store(words, at, index | 0);
}

/** Opens the pool of a ring that is attached to, once for all rings of this thread. */
function openPool({ key, open }: PoolOpening): { readonly pool: Pool; readonly close: () => void } {
  const known = opened.get(key);
  const entry = known?.pool.live === true ? known : { pool: open(), rings: 0 };
  opened.set(key, entry);
  entry.rings++;
  const close = (): void => {
    entry.rings--;
    if (entry.rings > 0) return;
    if (opened.get(key) === entry) opened.delete(key);
    entry.pool[Symbol.dispose]();
  };
  return { pool: entry.pool, close };
}

/** @returns a copy @throws DmaError EINVAL if it was not made by `Ring.share` */
export function checkRingDescription(description: RingDescription, operation: string): RingDescription {
  mustBeObject(description, 'descriptions of rings', operation);
  return reading(operation, 'the description', () => {
    const { name, words, threads, holders, event, roomEvent, pool } = description;
    mustBeString(name, 'the name of a ring', operation);
    for (const memory of [words, threads, holders])
      if (typeof memory !== 'object') throw invalid(operation, 'the description has no words of a ring');
    for (const fd of [event, roomEvent]) mustBeWhole(fd, 0, 2 ** 31 - 1, 'the descriptor of an event', operation);
    return { kind: 'ring', name, words, threads, holders, event, roomEvent, pool };
  });
}
