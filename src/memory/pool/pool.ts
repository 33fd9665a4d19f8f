/**
 * A pool: memory that is cut into elements of one size. Any number of threads take elements and return them by number,
 * in bursts. Tables by number tell where each element is, for the program and for devices. Drivers take the buffers of
 * their rings from pools. DPDK calls it a mempool.
 *
 * Nothing is written into the elements: which of them are free is kept outside (element-stack.ts), and each thread has
 * a cache (pool-cache.ts).
 */
import { ended, mustBeObject, mustBeString, mustBeWhole, mustHave, optionsOf, reading } from '../../check.js';
import { DmaError, invalid, isDmaError, NO_DESCRIPTORS, throwFirst, undoAll } from '../../errors.js';
import type { Platform } from '../../platform/ports.js';
import { Range } from '../../ranges.js';
import { show } from '../../show.js';
import { now } from '../../timers.js';
import type { Va } from '../../units.js';
import type { Area } from '../area.js';
import type { MemoryUsers } from '../users.js';
import { checkBurst, ElementStack } from './element-stack.js';
import { PoolCache } from './pool-cache.js';
import type { ElementShape, PoolChunk } from './pool-layout.js';
import { HandedOut } from '../retired.js';
import { Hold } from '../shared/hold.js';
import { Holders } from '../shared/holders.js';
import { ENDED, ENDING, Holds, OPEN } from '../shared/holds.js';
import { Recovery } from '../shared/recovery.js';
import type { Shared } from '../shared/shared.js';
import type { Share } from '../shared/shares.js';
import { WordViews, type WordsOrPlace } from './word-places.js';
import { wordsIn, type WordMemory } from '../shared/words.js';
import { Views } from '../views.js';
import { shortForm } from '../../short-form.js';
import { STAYS } from '../../stays.js';

/** What another thread needs to use the pool. It can be sent (`workerData`, `postMessage`) any number of times. */
export interface PoolDescription {
  readonly kind: 'pool';
  readonly name: string;
  /** @internal What `attach` opens; absent in what another process is told. */
  readonly sealed?: Shared<Pool>;
  /** @internal */
  readonly shape: ElementShape;
  /** @internal {@link Pool.forDevices} */
  readonly forDevices: boolean;
  /** @internal {@link Pool.owner} */
  readonly owner: Area['owner'];
  /** @internal */
  readonly chunks: readonly PoolChunk[];
  /** @internal {@link Pool.cacheSize} */
  readonly cacheSize: number;
  /** @internal Which elements are free. */
  readonly stack: WordsOrPlace;
  /** @internal Who has attached: the words of `Holds`. */
  readonly threads: WordsOrPlace;
  /** @internal The table of all threads and processes that share. */
  readonly holders: WordsOrPlace;
  /** @internal They keep the memory alive, even after the thread that made the pool has ended. See `MemoryPort.keeper`. */
  readonly keepers: readonly SharedArrayBuffer[];
}

/** What a pool needs to know of a device. */
export interface PoolDevice {
  readonly name: string;
  readonly domain:
    | {
        readonly table: {
          /** Changes when something is unmapped. */
          readonly generation: number;
          /** The IOVA; -1 if not all of it is mapped, or not in one piece. */
          iovaOfRange(va: number, length: number): number;
        };
      }
    | undefined;
}

/** Who has attached to a pool, for the thread that made it. */
export interface PoolSharing {
  readonly holders: Holders;
  readonly holds: Holds;
  /** What it is shared by, in this thread. */
  readonly words: { readonly stack: WordMemory; readonly threads: WordMemory; readonly holders: WordMemory };
  readonly description: PoolDescription;
  /** What the `Eal` knows of it; absent in other threads. */
  readonly share?: Share;
  /** Are threads told where the words are, as they are in no SharedArrayBuffer? Then `share` has holds of its own. */
  readonly isByPlace?: boolean;
}

/** The parts of a pool in one thread. */
interface PoolParts {
  readonly facts: Omit<PoolDescription, 'stack' | 'threads' | 'holders'>;
  /** How it is shared, if it is: made on first use. */
  readonly sharing: (stack: ElementStack) => PoolSharing;
  /** The description that this thread attached to. */
  readonly attached?: PoolSharing;
  /** Brings back what threads had that ended. */
  readonly recover?: () => number;
  readonly stack: ElementStack;
  readonly cache: PoolCache | undefined;
  readonly view: (chunk: number) => Uint8Array;
  /** @throws DmaError EBUSY while some of the memory is pinned */
  readonly mustBeIdle?: (operation: string) => void;
  /** What may work on elements without a pin; only the thread that made the pool knows. */
  readonly users?: MemoryUsers;
  /** Frees the memory; `free` rethrows its errors. */
  readonly end: () => void;
  /** Did this thread make it? */
  readonly made: boolean;
}

/** What a thread that attaches to a pool has made. */
interface AttachedParts {
  readonly holders: Holders;
  readonly stack: ElementStack;
  readonly cache: PoolCache | undefined;
  readonly hold: Hold;
  readonly wordHold: Hold | undefined;
  readonly wordViews: WordViews;
}

/** How often a get that finds too few elements asks whether threads have ended that had some, in milliseconds. */
const RECOVER_MS = 20;

const FREE_OPTIONS = { force: 'boolean' } as const;

/** The keepers of memory, held as long as views of it exist. */
const kept = new WeakMap<ArrayBufferLike, readonly SharedArrayBuffer[]>();

/** A pool. Made by `Pools.create`, and in other threads by {@link Pool.attach}. Disposing it frees it. */
export class Pool implements Disposable {
  /** @internal */
  readonly stays = STAYS;
  /** @internal Rings of the same `Eal` that carry its elements. */
  readonly rings = new Set<{ readonly name: string; numbers(): Iterable<number> }>();
  readonly name: string;
  /** Number of elements; their numbers begin with 0. */
  readonly elements: number;
  /** bytes */
  readonly elementSize: number;
  /** bytes before each element that belong to it */
  readonly headroom: number;
  /** Elements in the cache of each thread; 0: no cache. */
  readonly cacheSize: number;
  /**
   * Are the elements meant for devices? As the program said when it created the pool (DPDK: the flag
   * RTE_MEMPOOL_F_NON_IO is not set).
   */
  readonly forDevices: boolean;
  /**
   * Who owns the memory: the library, a heap over the user's memory, or the user (external). `chunks` tell where it is.
   */
  readonly owner: Area['owner'];
  /** Where the elements are. The first chunk has the elements with the lowest numbers. */
  readonly chunks: readonly PoolChunk[];
  /** The tables by element that were asked for. */
  readonly #tables: { vas?: Float64Array; iovas?: Float64Array; chunkOf?: Int32Array; offsetOf?: Int32Array } = {};
  /** The first element of each chunk. */
  readonly #firsts: Int32Array;
  /** Does every element have one IOVA for all devices? */
  readonly #isSame: boolean;
  readonly #shape: ElementShape;
  readonly #stack: ElementStack;
  readonly #cache: PoolCache | undefined;
  readonly #share: PoolParts['sharing'];
  #sharing: PoolSharing | undefined;
  readonly #recover: (() => number) | undefined;
  #recovered = -Infinity;
  readonly #view: (chunk: number) => Uint8Array;
  readonly #mustBeIdle: ((operation: string) => void) | undefined;
  readonly #users: MemoryUsers | undefined;
  /** Has `put` to look before it takes elements back? Also when it was freed, so that it looks at one place only. */
  #looks = false;
  readonly #unwatch: (() => void) | undefined;
  readonly #end: () => void;
  readonly #made: boolean;
  /** Views of chunks and of elements, made when they are first asked for. */
  #chunkBytes: (Uint8Array | undefined)[] = [];
  #bytes: (Uint8Array | undefined)[] = [];
  readonly #iovasFor = new WeakMap<object, { readonly generation: number; readonly iovas: Float64Array }>();
  #live = true;

  /** @internal */
  constructor({ facts, sharing, attached, recover, stack, cache, view, mustBeIdle, users, end, made }: PoolParts) {
    const { shape, chunks, cacheSize } = facts;
    const { elements } = stack;
    this.#cache = cache;
    this.name = facts.name;
    this.elements = elements;
    this.elementSize = shape.size;
    this.headroom = shape.headroom;
    this.cacheSize = cacheSize;
    this.forDevices = facts.forDevices;
    this.owner = facts.owner;
    this.chunks = chunks;
    this.#firsts = new Int32Array(chunks.length);
    this.#isSame = chunks.every(({ iova }) => iova !== undefined);
    this.#shape = shape;
    this.#stack = stack;
    this.#share = sharing;
    this.#sharing = attached;
    this.#recover = recover;
    this.#view = view;
    this.#mustBeIdle = mustBeIdle;
    this.#users = users;
    this.#unwatch = users?.watch((some) => (this.#looks = some));
    this.#end = end;
    this.#made = made;
    let first = 0;
    chunks.forEach(({ count }, chunk) => {
      this.#firsts[chunk] = first;
      first += count;
    });
  }

  /** The address of each element, after its headroom. This table and the next ones are made on first use. */
  get vas(): Float64Array {
    return (this.#tables.vas ??= this.#table(Float64Array, ({ va }, _, offset) => va + offset));
  }

  /**
   * The IOVA of each element, if all devices use the same one: see `Block.iova`. Otherwise, as usual with an IOMMU,
   * `undefined`: {@link Pool.iovasFor} tells what one device uses. `undefined` also if the pool is not for devices.
   */
  get iovas(): Float64Array | undefined {
    if (!this.#isSame) return undefined;
    return (this.#tables.iovas ??= this.#table(Float64Array, ({ iova }, _, offset) => Number(iova) + offset));
  }

  /** The chunk that each element is in. */
  get chunkOf(): Int32Array {
    return (this.#tables.chunkOf ??= this.#table(Int32Array, (_, chunk) => chunk));
  }

  /** Offset in bytes of each element in its chunk, after its headroom. */
  get offsetOf(): Int32Array {
    return (this.#tables.offsetOf ??= this.#table(Int32Array, (_, _chunk, offset) => offset));
  }

  #table<T extends Float64Array | Int32Array>(
    kind: new (length: number) => T,
    valueOf: (chunk: PoolChunk, index: number, offset: number) => number,
  ): T {
    const table = new kind(this.elements);
    const { headroom, stride } = this.#shape;
    let element = 0;
    this.chunks.forEach((chunk, index) => {
      for (let i = 0; i < chunk.count; i++) table[element++] = valueOf(chunk, index, headroom + i * stride);
    });
    return table;
  }

  /** The chunk of an existing element. */
  #chunkOf(element: number): number {
    const firsts = this.#firsts;
    let low = 0;
    for (let high = firsts.length; high - low > 1;) {
      const middle = (low + high) >>> 1;
      if (firsts[middle] <= element) low = middle;
      else high = middle;
    }
    return low;
  }

  /**
   * Opens the pool in another thread, from what {@link Pool.share} returned. Elements have the same numbers and
   * addresses; views are new. Free it before the thread ends: this returns the thread's cache, and lets the maker of
   * the pool free the memory.
   *
   * @param platform of this thread
   * @throws DmaError EINVAL if the pool was freed, or `description` does not describe a pool
   */
  static attach(description: PoolDescription, platform: Pick<Platform, 'memory' | 'kernel'>): Pool {
    return Pool.open(description, platform);
  }

  /**
   * As {@link Pool.attach}.
   *
   * @internal
   * @param place where in the program, for messages of the maker
   * @param wordHold keeps the words in place; the pool leaves it
   */
  static open(
    description: PoolDescription,
    platform: Pick<Platform, 'memory' | 'kernel'>,
    place = '',
    wordHold?: Hold,
  ): Pool {
    const operation = 'pool.attach';
    mustHave(platform, ['memory', 'kernel'], 'platform', operation);
    mustBeObject(description, 'descriptions of pools', operation);
    const { cacheSize, name, keepers } = reading(operation, 'the description', () => ({
      cacheSize: description.cacheSize,
      name: description.name,
      keepers: description.keepers,
    }));
    const wordViews = new WordViews(platform.memory);
    let hold: Hold | undefined;
    try {
      const words = reading(operation, 'the description', () => ({
        stack: wordViews.open(description.stack, operation),
        threads: wordViews.open(description.threads, operation),
        holders: wordViews.open(description.holders, operation),
      }));
      checkDescription(description, words, operation);
      const holders = Holders.attach(platform.kernel, words.holders);
      const shared = { holds: words.threads, holders: words.holders, keepers, more: [] };
      hold = Hold.take(shared, platform, `the pool ${name}`, place, operation);
      const stack = ElementStack.attach(words.stack, holders);
      const cache = cacheSize === 0 ? undefined : new PoolCache(stack, cacheSize);
      const placed = description.chunks.reduce((sum, { count }) => sum + count, 0);
      if (placed !== stack.elements)
        throw invalid(operation, `the chunks have ${placed} elements, the pool ${stack.elements} elements`);
      return Pool.#attached(description, words, { holders, stack, cache, hold, wordHold, wordViews }, platform);
    } catch (error) {
      hold?.leave();
      wordViews.end();
      throw error;
    }
  }

  static #attached(
    description: PoolDescription,
    words: PoolSharing['words'],
    { holders, stack, cache, hold, wordHold, wordViews }: AttachedParts,
    platform: Pick<Platform, 'memory'>,
  ): Pool {
    const holds = Holds.attach(words.threads, holders.capacity, 'pool.attach');
    const recovery = new Recovery(holders);
    // Who has ended is known before it is asked for rings: they put nothing into any more.
    const recover = (): number => recovery.run((id) => (stack.isRinged ? 0 : stack.recover(id)));
    const views = new Map<number, Views>();
    const handedOut = new HandedOut();
    const view = (chunk: number): Uint8Array => {
      const { va, length } = description.chunks[chunk];
      const made = views.get(chunk) ?? new Views(platform.memory, va, length, handedOut);
      views.set(chunk, made);
      const bytes = made.bytes(0, length);
      kept.set(bytes.buffer, description.keepers);
      return bytes;
    };
    const end = (): void => {
      const errors = undoAll([...views.values()].map((each) => () => each.detach()));
      // Views that are left would fault once the memory is freed.
      throwFirst(errors, 'pool.free');
      // The receiver of a transferred view can reach the memory for ever, so the maker must keep it.
      if (handedOut.escaped) holds.escape();
      hold.leave(wordHold === undefined ? handedOut : undefined);
      wordViews.end();
      wordHold?.leave(handedOut);
    };
    const attached: PoolSharing = { holders, holds, words, description };
    const sharing = (): PoolSharing => attached;
    return new Pool({ facts: description, sharing, attached, recover, stack, cache, view, end, made: false });
  }

  /** Can it be used? False once it was freed, here or by force in the process that made it. */
  get live(): boolean {
    return this.#live && !this.#stack.gone;
  }

  /** How many elements this thread could take now. Those in the caches of other threads do not count. */
  get available(): number {
    if (!this.live) return 0;
    return this.#stack.available + (this.#cache?.length ?? 0);
  }

  /**
   * The cache of this thread. Its `getInPlace` and `putInPlace` handle bursts without copying, for loops of drivers.
   * `undefined` in a pool without caches.
   */
  get cache(): PoolCache | undefined {
    return this.#cache;
  }

  /** How many threads and processes have attached and live, not counting the one that made it. */
  get threads(): number {
    const sharing = this.#sharing;
    return sharing === undefined || !this.#live ? 0 : sharing.holds.living(sharing.holders, 'held').length;
  }

  /** @internal How many of them are threads of this process: they reach its memory by this process's mapping. */
  get threadsHere(): number {
    const sharing = this.#sharing;
    if (sharing === undefined) return 0;
    const { holds, holders } = sharing;
    return holds.living(holders, 'held').filter((id) => holders.isHere(id)).length;
  }

  /**
   * Brings elements back that threads or processes had which have ended, in hand or in their caches. Elements in rings of this pool stay
   * there. `get` does so by itself when it finds too few elements, at most every 20 ms, in whatever thread or process has the pool; and
   * the `Eal` that made it does so within a second. While the pool has rings, only the thread that made it can: others get 0.
   *
   * @returns how many came back
   * @throws DmaError ETIMEDOUT if a thread that is stopped is inside `get` or `put`
   */
  recover(): number {
    this.#mustBeLive('pool.recover');
    return this.#recover?.() ?? 0;
  }

  /** @internal Was it made in this thread? */
  get isMine(): boolean {
    return this.#made;
  }

  /** @internal The stack, for rings. */
  get stack(): ElementStack {
    return this.#stack;
  }

  /**
   * Takes `count` elements, all or none, and writes their numbers to `into` from index `at`. Makes no garbage.
   *
   * @returns false if fewer are available, or the pool is freed
   * @throws DmaError EINVAL if `into` is too short; ETIMEDOUT if a thread that is stopped is inside `get` or `put`
   */
  get(into: Int32Array | Uint32Array, count: number, at = 0): boolean {
    if (!this.#live) return false;
    const user = this.#cache ?? this.#stack;
    if (user.get(into, count, at)) return true;
    return this.#recoverSeldom() > 0 && user.get(into, count, at);
  }

  /** A loop that waits for elements does not ask the kernel each time. */
  #recoverSeldom(): number {
    if (this.#sharing === undefined || this.#recover === undefined) return 0;
    const time = now();
    if (time - this.#recovered < RECOVER_MS) return 0;
    this.#recovered = time;
    try {
      return this.#recover();
    } catch (error) {
      // The kernel can not tell now who lives: the pool has too few elements until it can.
      if (isDmaError(error) && NO_DESCRIPTORS.includes(error.code)) return 0;
      throw error;
    }
  }

  /**
   * Returns `count` elements, whose numbers are in `from` from index `at`. Makes no garbage. Any thread may return what
   * another one took.
   *
   * An element that a call of a driver uses, such as a read of an NVMe namespace, is not taken back. That is seen in the thread
   * that made the pool only, not by {@link PoolCache.putInPlace}, and not for commands of a queue of the program's own.
   *
   * @throws DmaError EINVAL if `from` is too short, the pool is freed or would have too many elements; with `checked`, also for
   *   an element that is free already or does not exist, and in a pool that is shared for one that is in no hand. EBUSY,
   *   naming the call, while one uses an element. ETIMEDOUT as `get`. After an error nothing was put back
   */
  put(from: Int32Array | Uint32Array, count: number, at = 0): void {
    if (this.#looks) this.#look(from, count, at);
    const cache = this.#cache;
    if (cache === undefined) this.#stack.put(from, count, at);
    else cache.put(from, count, at);
  }

  /**
   * The bytes of an element, without its headroom: the same view each time. Once the pool is freed it is empty, unless
   * the memory is external.
   *
   * Do not return an element while another thread works on it: its next owner would see what that thread still writes.
   *
   * @throws DmaError EINVAL if there is no such element, the pool is freed, or its ArrayBuffer was transferred
   */
  bytes(element: number): Uint8Array {
    const bytes = typeof element === 'number' ? this.#bytes[element] : undefined;
    // An empty view: its ArrayBuffer was transferred by somebody else.
    return bytes !== undefined && bytes.length !== 0 ? bytes : this.#newBytes(element);
  }

  /**
   * The bytes of a chunk: the same view each time, as {@link Pool.bytes}. With `chunkOf` and `offsetOf` it shows all
   * elements of the chunk, with their headrooms.
   *
   * @throws DmaError EINVAL if there is no such chunk, or the pool is freed
   */
  chunkBytes(chunk: number): Uint8Array {
    const bytes = typeof chunk === 'number' ? this.#chunkBytes[chunk] : undefined;
    return bytes !== undefined && bytes.length !== 0 ? bytes : this.#newChunkBytes(chunk);
  }

  /**
   * The IOVA of each element for one device. Cached until something is unmapped in the device's domain, so that a call
   * is cheap; do not keep the result over a change of mappings.
   *
   * @throws DmaError EINVAL if the pool is freed or not for devices, or an element is not mapped for that device in one
   *   piece; ENOTSUP if the device has no domain
   */
  iovasFor(device: PoolDevice): Float64Array {
    const operation = 'pool.iovasFor';
    const domain = domainOf(device, operation);
    if (domain === undefined) {
      this.#mustBeLive(operation);
      const reason = 'its memory can not be mapped for a device without a domain';
      const hint = 'device.state is "probed" while it can be used, and device.domain is what memory is mapped in';
      throw new DmaError({ code: 'ENOTSUP', operation, device: device.name, reason, hint });
    }
    const { generation } = domain.table;
    const known = this.#iovasFor.get(domain);
    if (known?.generation === generation && this.#live) return known.iovas;
    this.#mustBeLive(operation);
    if (!this.forDevices)
      throw invalid(operation, `the pool ${this.name} is not for devices`, {
        device: device.name,
        hint: 'it was made with forDevices: false; elements of one that is for devices are contiguous for them',
      });
    const { headroom, elementSize } = this;
    const { stride } = this.#shape;
    const iovas = new Float64Array(this.elements);
    let element = 0;
    for (const chunk of this.chunks) {
      for (let i = 0; i < chunk.count; i++, element++) {
        const va = chunk.va + i * stride;
        const iova = domain.table.iovaOfRange(va, headroom + elementSize);
        if (iova < 0)
          throw invalid(operation, `element ${element} of the pool ${this.name} is not mapped in one piece`, {
            device: device.name,
            range: new Range(va as Va, headroom + elementSize),
            hint: this.owner === 'external' ? 'map the external memory on that device first' : undefined,
          });
        iovas[element] = iova + headroom;
      }
    }
    this.#iovasFor.set(domain, { generation, iovas });
    return iovas;
  }

  /** What other threads need for {@link Pool.attach}. @throws DmaError EINVAL if it is freed */
  share(): PoolDescription {
    this.#mustBeLive('pool.share');
    this.#sharing ??= this.#share(this.#stack);
    return this.#sharing.description;
  }

  /** @internal Who shares it, if it is shared. */
  get sharing(): PoolSharing | undefined {
    return this.#sharing;
  }

  /**
   * Frees the pool: views of elements become empty, heap memory is freed, and external memory can be unregistered
   * again. In a thread that attached, this returns the thread's cache and detaches from the pool.
   *
   * @param options.force free it although elements are in use or threads are attached? Only if the program knows that
   *   they were terminated: a thread that touches an element afterwards faults. Default false
   * @throws DmaError EINVAL if it was freed before; EBUSY while a ring carries its elements, while other threads are attached, and while
   *   elements are in use or in the caches of other threads; EBUSY, even with force, while a block behind it is pinned
   */
  free(options?: { readonly force?: boolean }): void {
    const operation = 'pool.free';
    this.#mustBeLive(operation);
    const force = options !== undefined && optionsOf(options, FREE_OPTIONS, operation).force === true;
    this.#mustBeIdle?.(operation);
    if (this.#made) this.#close(force, operation);
    this.#live = false;
    this.#unwatch?.();
    this.#looks = true;
    this.#chunkBytes = [];
    this.#bytes = [];
    throwFirst(undoAll([() => this.#cache?.end(), this.#end]), operation);
  }

  /** Frees it, unless it was freed before. @throws DmaError EBUSY as {@link Pool.free} */
  [Symbol.dispose](): void {
    if (this.#live) this.free();
  }

  /** Lets no more threads attach. @throws DmaError EBUSY */
  #close(force: boolean, operation: string): void {
    const { name, elements } = this;
    const busy = (reason: string, hint: string): DmaError => new DmaError({ code: 'EBUSY', operation, reason, hint });
    const [ring] = this.rings;
    if (ring !== undefined && !force)
      throw busy(`the ring ${ring.name} carries elements of the pool ${name}`, 'free the ring first');
    const mustBeBack = (): void => {
      this.#recover?.();
      const out = elements - this.available;
      const which = out === 1 ? '1 element' : `${out} elements`;
      if (out > 0) throw busy(`${which} of the pool ${name} are out`, 'put them back first');
    };
    const holds = this.#sharing?.holds;
    if (holds === undefined || force) {
      if (!force) mustBeBack();
      holds?.change(OPEN, ENDED);
      return;
    }
    // From now on no thread attaches.
    holds.change(OPEN, ENDING);
    try {
      const attached = this.threads;
      const which = attached === 1 ? '1 thread has' : `${attached} threads have`;
      if (attached > 0) throw busy(`${which} attached to the pool ${name}`, 'free it there first, or end that thread');
      // Only now: a thread that has just ended may have had some.
      mustBeBack();
      // Threads that have the words only by their address hold those first.
      if (this.#sharing?.isByPlace === true) this.#sharing.share?.end(operation);
    } catch (error) {
      holds.change(ENDING, OPEN);
      throw error;
    }
    holds.change(ENDING, ENDED);
  }

  /** @throws DmaError EINVAL if the pool is freed or `from` too short; EBUSY while a driver uses one of the elements */
  #look(from: Int32Array | Uint32Array, count: number, at: number): void {
    this.#mustBeLive('pool.put');
    if (this.#users === undefined || this.#users.areIdle) return;
    checkBurst(from, count, at);
    const { vas, headroom, elementSize, name } = this;
    for (let i = at; i < at + count; i++) {
      const va = vas[from[i]];
      // What does not exist is not used.
      const used = va === undefined ? undefined : this.#users.workOn(va - headroom, va + elementSize);
      if (used === undefined) continue;
      throw new DmaError({
        code: 'EBUSY',
        operation: 'pool.put',
        range: new Range((va - headroom) as Va, headroom + elementSize),
        device: used.device,
        reason: `${used.work} uses element ${from[i]} of the pool ${name}`,
        hint: 'put it back when that has ended; aborting its signal, or resetting the device, ends it early',
      });
    }
  }

  #newBytes(element: number): Uint8Array {
    this.#mustBeLive('pool.bytes');
    if (!(Number.isInteger(element) && element >= 0 && element < this.elements))
      throw invalid('pool.bytes', `the pool ${this.name} has no element ${show(element)}`, {
        hint: `elements have the numbers 0 to ${this.elements - 1}, which get() gives`,
      });
    const chunk = this.#chunkOf(element);
    const { headroom, stride } = this.#shape;
    const offset = headroom + (element - this.#firsts[chunk]) * stride;
    const bytes = this.chunkBytes(chunk).subarray(offset, offset + this.elementSize);
    // Filled at once: with holes that large, V8 would make the array a dictionary.
    if (this.#bytes.length === 0) this.#bytes = Array.from({ length: this.elements }, () => undefined);
    this.#bytes[element] = bytes;
    return bytes;
  }

  #newChunkBytes(chunk: number): Uint8Array {
    this.#mustBeLive('pool.bytes');
    if (!(Number.isInteger(chunk) && chunk >= 0 && chunk < this.chunks.length))
      throw invalid('pool.bytes', `the pool ${this.name} has no chunk ${show(chunk)}`, {
        hint: `chunks have the numbers 0 to ${this.chunks.length - 1}: chunkOf tells that of each element`,
      });
    const bytes = this.#view(chunk);
    if (this.#chunkBytes.length === 0) this.#chunkBytes = this.chunks.map(() => undefined);
    this.#chunkBytes[chunk] = bytes;
    return bytes;
  }

  #mustBeLive(operation: string): void {
    if (!this.#live) throw ended(operation, `the pool ${this.name} was freed`, 'pool.live');
  }
}

shortForm(Pool, 'Pool', ({ name, elements, elementSize, headroom, cacheSize, owner, live }) => ({
  name,
  elements,
  elementSize,
  headroom,
  cacheSize,
  owner,
  live,
}));

/** The domain of a device. @throws DmaError EINVAL if it is not a device */
function domainOf(device: PoolDevice, operation: string): PoolDevice['domain'] {
  mustBeObject(device, 'devices', operation);
  let isDomain: boolean;
  try {
    const { domain } = device;
    if (domain === undefined) return undefined;
    isDomain = typeof domain.table.iovaOfRange === 'function';
    if (isDomain) return domain;
  } catch (cause) {
    throw invalid(operation, 'the device can not be asked for its domain', { cause });
  }
  throw invalid(operation, 'this is no device: it has no domain');
}

/** @throws DmaError EINVAL if it was not made by {@link Pool.share} */
function checkDescription(description: PoolDescription, words: PoolSharing['words'], operation: string): void {
  reading(operation, 'the description', () => {
    const { name, shape, chunks, cacheSize } = description;
    const { stack, threads, holders } = words;
    mustBeString(name, 'the name of a pool', operation);
    wordsIn(stack, 'the stack of a pool', operation);
    wordsIn(threads, 'the holds of a pool', operation);
    wordsIn(holders, 'the holders of a pool', operation);
    mustBeWhole(cacheSize, 0, 2 ** 28, 'the size of the cache', operation);
    for (const size of [shape.size, shape.headroom, shape.stride])
      mustBeWhole(size, 0, Number.MAX_SAFE_INTEGER, 'a size of the elements', operation);
    if (!Array.isArray(chunks)) throw invalid(operation, 'the chunks of a pool are an array');
    for (const { va, length, count } of chunks as PoolDescription['chunks']) {
      new Range(va, length, operation);
      mustBeWhole(count, 1, 2 ** 28, 'the number of elements of a chunk', operation);
    }
  });
}
