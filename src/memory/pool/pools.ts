/**
 * The pools of one `Eal`: creates them, finds them by name, and notifies handlers when they are created and destroyed.
 */
import { mustBe, mustBeObject, mustBeString, mustHandle, optionsOf, type Shape } from '../../check.js';
import { DmaError, invalid, isDmaError, throwFirst, undoAll, withUndo } from '../../errors.js';
import { longWorkOf, mustGoOn, Turns, type LongWorkOptions } from '../../long-work.js';
import type { MemoryPort } from '../../platform/ports.js';
import type { Area } from '../area.js';
import { ElementStack } from './element-stack.js';
import { ExternalMemory } from '../external.js';
import { Handlers, tellHandler } from '../handlers.js';
import type { MallocOptions } from '../heap/malloc-request.js';
import { chooseHeaps, type Allocation, type HeapSources } from '../owned/heap-choice.js';
import type { IovaMode } from '../iova-mode.js';
import type { Holders } from '../shared/holders.js';
import { Holds } from '../shared/holds.js';
import { Recovery } from '../shared/recovery.js';
import { notShareable, type Shares } from '../shared/shares.js';
import { isSharedArrayBuffer } from '../../realms.js';
import { placesOf } from './word-places.js';
import { sharedBuffers, type WordSource } from '../shared/words.js';
import { PoolCache } from './pool-cache.js';
import { Pool, type PoolDescription, type PoolSharing } from './pool.js';
import { elementShape } from './pool-layout.js';
import {
  poolMemoryFromBlocks,
  poolMemoryFromExternal,
  type PoolMemory,
  type PoolMemoryRequest,
} from './pool-memory.js';
import { shortForm } from '../../short-form.js';
import { thrown } from '../../show.js';
import { runSteps, runStepsAsync, type Steps } from '../../steps.js';
import { MiB } from '../../units.js';
import { STAYS } from '../../stays.js';
import type { MemoryUsers } from '../users.js';

/** The properties of a pool, and the source of its memory: the library's own, a heap, or external memory. */
export interface PoolOptions extends Pick<MallocOptions, 'heap' | 'node' | 'pageSizes' | 'pageSizeHint'> {
  /** A unique name. Default: a generated one. */
  readonly name?: string;
  /** Number of elements, 1 to 2^28. */
  readonly elements: number;
  /** Bytes. */
  readonly elementSize: number;
  /** Alignment of elements in bytes, a power of two. Default 64. */
  readonly align?: number;
  /** Bytes before each element that belong to it, for headers that are put in front of its content. Default 0. */
  readonly headroom?: number;
  /** How many free elements each thread caches, 1 to 512, or 0 for none. Default 0. */
  readonly cache?: number;
  /**
   * External memory for the elements, used as far as needed, instead of a heap's. It can be in no other pool and no
   * heap.
   */
  readonly external?: readonly ExternalMemory[];
  /**
   * Whether devices will use the elements. Default true: each is contiguous for them. With false, an element may not be
   * contiguous for devices, and there are no IOVAs.
   */
  readonly forDevices?: boolean;
  /** Whether to fill them with zeros. Default false: their content is undefined. */
  readonly zero?: boolean;
  /** For debugging: refuse an element that is put back twice. Default false. */
  readonly checked?: boolean;
}

/** Notified about pools, in the order in which handlers were added. */
export interface PoolHandler {
  /**
   * The pool has all its elements, and is not in use yet. If this throws, the pool is refused and everything is undone.
   */
  ready?(pool: Pool): void;
  /** The pool can no longer be used, and its memory will be freed next. If this throws, it is an uncaught exception. */
  destroy?(pool: Pool): void;
}

/** Bytes that are cleared in one turn of the event loop: some milliseconds. */
const IN_A_TURN = 8 * MiB;

const POOL_OPTIONS: Shape<PoolOptions> = {
  heap: 'string',
  node: 'number',
  pageSizes: 'array',
  pageSizeHint: 'boolean',
  name: 'string',
  elements: 'number',
  elementSize: 'number',
  align: 'number',
  headroom: 'number',
  cache: 'number',
  external: 'array',
  forDevices: 'boolean',
  zero: 'boolean',
  checked: 'boolean',
};

/** What pools need to be shared. */
export interface PoolsSharing {
  readonly port: Pick<MemoryPort, 'keeper' | 'addressOf'>;
  /** The threads and processes that share what the `Eal` has; made on first use. */
  readonly holders: () => Holders;
  /** What the `Eal` shares; absent: threads are asked for by pools alone. */
  readonly shares?: Shares;
  /** Where words are put that others use. Default: SharedArrayBuffers. */
  readonly words?: WordSource;
}

/** Where the memory of pools is from, and what may work on it: absent, nothing does. */
export interface PoolSources extends HeapSources {
  readonly users?: MemoryUsers;
}

/** The pools of one `Eal`. */
export class Pools {
  /** @internal */
  readonly stays = STAYS;
  readonly #sources: PoolSources;
  readonly #sharing: PoolsSharing | undefined;
  readonly #pools = new Map<string, Pool>();
  readonly #handlers = new Handlers<PoolHandler>();
  /** External memory that is in a pool, and the name of the pool. */
  readonly #external = new Map<Area, string>();
  #made = 0;

  /** @internal */
  constructor(sources: PoolSources, sharing?: PoolsSharing) {
    this.#sources = sources;
    this.#sharing = sharing;
  }

  /** All pools, in the order of creation. */
  [Symbol.iterator](): IterableIterator<Pool> {
    return this.#pools.values();
  }

  /** The pool with that name, if any. @throws DmaError EINVAL if the name is not a string */
  find(name: string): Pool | undefined {
    mustBeString(name, 'the name of a pool', 'pools.find');
    return this.#pools.get(name);
  }

  /**
   * Creates a pool; all of its elements are free.
   *
   * @throws DmaError EINVAL for impossible values, and for external memory that is no longer registered; EEXIST for a
   *   name that is in use, and for external memory that is in a heap or another pool; EACCES for external memory that
   *   can not be written; ENOENT if the heap does not exist; ENOMEM if there is not enough memory for all elements; the
   *   error of a handler that refuses. After an error nothing has changed
   */
  create(options: PoolOptions): Pool {
    const operation = 'pools.create';
    this.#sources.gate?.(operation);
    mustBeObject(options, 'options', operation);
    return runSteps(this.#creating(options, operation), (step) => step.now());
  }

  /**
   * As {@link Pools.create}, without blocking the event loop: new memory is allocated on other threads.
   *
   * @throws DmaError as `create`; ECANCELED if `options.signal` is aborted or the Eal stops, within one piece: then
   *   everything is undone
   */
  async createAsync(options: PoolOptions & LongWorkOptions): Promise<Pool> {
    const operation = 'pools.createAsync';
    this.#sources.gate?.(operation);
    const [{ onProgress, signal }, checked] = longWorkOf(options, operation);
    const run = async (either: AbortSignal | undefined): Promise<Pool> =>
      runStepsAsync(this.#creating(checked, operation), (step) => step.later({ onProgress, signal: either }));
    return this.#sources.running === undefined ? run(signal) : this.#sources.running.run(signal, operation, run);
  }

  *#creating(asked: PoolOptions, operation: string): Steps<Allocation, Pool> {
    const { elements: wanted, elementSize: size, ...others } = optionsOf(asked, POOL_OPTIONS, operation);
    const options: PoolOptions = { elements: wanted ?? 0, elementSize: size ?? 0, ...others };
    for (const memory of options.external ?? []) mustBe(memory, ExternalMemory, 'external', operation);
    const { elements, elementSize, align = 64, headroom = 0, cache: cacheSize = 0, forDevices = true } = options;
    const { name = this.#newName() } = options;
    if (name === '') throw invalid(operation, 'the name of a pool is empty', { hint: 'leave it out to generate one' });
    const shape = elementShape(elementSize, headroom, align, operation);
    checkSource(options, operation);
    if (this.#pools.has(name)) throw this.#nameTaken(name, operation);
    const words = this.#sharing?.words ?? sharedBuffers;
    const stack = ElementStack.create(elements, options, operation, words);
    let cache: PoolCache | undefined;
    try {
      cache = cacheSize === 0 ? undefined : new PoolCache(stack, cacheSize, operation);
    } catch (error) {
      words.free(stack.memory);
      throw error;
    }
    const iovaMode = (): IovaMode => this.#sources.memory.iova.mode;
    let memory: PoolMemory;
    try {
      memory = yield* this.#memoryFor(options, { elements, shape, forDevices, iovaMode, operation }, name);
    } catch (error) {
      words.free(stack.memory);
      throw error;
    }
    const release = (): void =>
      throwFirst(undoAll([() => this.#release(memory), () => words.free(stack.memory)]), 'pool.free');
    const { chunks } = memory;
    try {
      // The name may have been taken while the event loop ran.
      if (this.#pools.has(name)) throw this.#nameTaken(name, operation);
      if (options.zero === true)
        for (let chunk = 0; chunk < chunks.length; chunk++) yield clearing(memory.view(chunk), operation);
      this.#sources.gate?.(operation);
    } catch (error) {
      throw withUndo(error, operation, undoAll([release]));
    }
    /** Handlers that must be notified if it is not created after all. */
    let told: PoolHandler[] | undefined = [];
    let pool: Pool;
    try {
      const owner = options.external === undefined ? memory.areas[0].owner : 'external';
      const keepers = [...new Set(chunks.flatMap(({ va }) => this.#sharing?.port.keeper(va) ?? []))];
      const facts = { kind: 'pool' as const, name, shape, forDevices, owner, chunks, cacheSize, keepers };
      const sharing = (shared: ElementStack): PoolSharing => this.#share(facts, shared);
      const end = (): void => {
        for (const handler of told ?? this.#handlers) tellHandler(() => handler.destroy?.(pool));
        this.#pools.delete(name);
        const share = pool.sharing?.share;
        if (pool.sharing?.holds.escaped === true) memory.escape();
        else if (share !== undefined) memory.shared(share);
        share?.ended();
        const threads = pool.sharing?.words.threads;
        throwFirst(undoAll([release, () => threads !== undefined && words.free(threads)]), 'pool.free');
      };
      const recover = (): number => this.#recover(pool);
      const view = (chunk: number): Uint8Array => memory.view(chunk);
      const mustBeIdle = (of: string): void => memory.mustBeIdle(of);
      const { users } = this.#sources;
      pool = new Pool({ facts, sharing, recover, stack, cache, view, mustBeIdle, users, end, made: true });
    } catch (error) {
      throw withUndo(error, operation, undoAll([release]));
    }
    this.#pools.set(name, pool);
    try {
      for (const handler of this.#handlers) {
        handler.ready?.(pool);
        told.unshift(handler);
      }
      told = undefined;
      return pool;
    } catch (error) {
      const undo = pool.live ? undoAll([() => pool.free({ force: true })]) : [];
      if (isDmaError(error)) throw withUndo(error, operation, undo);
      const reason = `a handler refused: ${thrown(error)}`;
      throw new DmaError({ code: 'ECANCELED', operation, reason, cause: error, undo });
    }
  }

  /**
   * Adds a handler that is notified of created and destroyed pools, until the result is disposed of.
   *
   * @throws DmaError EEXIST
   */
  addHandler(handler: PoolHandler): Disposable {
    const operation = 'pools.addHandler';
    this.#sources.gate?.(operation);
    mustHandle(handler, ['ready', 'destroy'], operation);
    return this.#handlers.add(handler, operation);
  }

  /**
   * @internal Frees all pools, even with elements in use, except pools that other threads of this process have attached to.
   *
   * @returns the errors; if there are any, the memory must stay
   */
  close(): unknown[] {
    return [...this.#pools.values()]
      .reverse()
      .flatMap((pool) => undoAll([() => pool.free({ force: pool.threadsHere === 0 })]));
  }

  *#memoryFor(
    options: PoolOptions,
    request: Omit<PoolMemoryRequest, 'most'>,
    name: string,
  ): Steps<Allocation, PoolMemory> {
    const { external } = options;
    if (external === undefined) {
      const heaps = chooseHeaps(this.#sources, options, request.operation);
      const { pageSizes, pageSizeHint } = options;
      const most = (): number => this.#sources.memory.most(heaps);
      return yield* poolMemoryFromBlocks({ ...request, most }, heaps, { pageSizes, pageSizeHint });
    }
    const seen = new Set<Area>();
    for (const { area } of external) {
      const other = this.#external.get(area) ?? (seen.has(area) ? name : undefined);
      if (other !== undefined)
        throw exists(
          request.operation,
          `${area.label} is in the pool ${other} already`,
          seen.has(area)
            ? 'the list contains it twice'
            : `pools.find(${JSON.stringify(other)})?.free() frees that pool`,
        );
      seen.add(area);
    }
    const memory = poolMemoryFromExternal(request, external, name);
    for (const area of memory.areas) this.#external.set(area, name);
    return memory;
  }

  /** Makes what other threads and processes attach to. */
  #share(facts: Omit<PoolDescription, 'stack' | 'threads' | 'holders'>, stack: ElementStack): PoolSharing {
    if (this.#sharing === undefined) throw notShareable('pool.share');
    const holders = this.#sharing.holders();
    const me = holders.enter();
    const threads = (this.#sharing.words ?? sharedBuffers).allocate(Holds.bytesFor(holders.capacity));
    const holds = Holds.create(threads, holders.capacity, me);
    stack.share(holders);
    const words = { stack: stack.memory, threads, holders: holders.buffer };
    const { shares } = this.#sharing;
    if (shares === undefined) return { holders, holds, words, description: { ...facts, ...words } };
    const what = `the pool ${facts.name}`;
    const { keepers, kind, ...told } = facts;
    const { stack: numbers } = words;
    if (isSharedArrayBuffer(numbers) && isSharedArrayBuffer(threads) && isSharedArrayBuffer(words.holders)) {
      const parts = { kind, facts: told, holds: threads, holders: words.holders, more: [numbers], keepers };
      const share = shares.adopt<Pool>(what, holds, parts);
      return { holders, holds, words, share, description: { ...facts, ...words, sealed: share.description } };
    }
    // Threads of this process reach them where they are mapped.
    const places = placesOf(this.#sharing.port, words);
    const share = shares.add<Pool>({ kind, what, facts: { ...told, ...places }, keepers }, 'pool.share');
    const description = { ...facts, ...places, sealed: share.description };
    return { holders, holds, words, share, isByPlace: true, description };
  }

  /** @internal Brings back what a thread or process had that has ended. */
  recoverFrom(id: number): void {
    for (const pool of this.#pools.values())
      if (pool.sharing !== undefined) {
        pool.stack.recover(id, inRingsOf(pool));
        for (const set of ['held', 'lingering'] as const) pool.sharing.holds.clear(id, set);
      }
  }

  #recover(pool: Pool): number {
    const { sharing, stack } = pool;
    if (sharing === undefined) return 0;
    // What is in rings is read after it is known who has ended: those put nothing into them any more.
    return new Recovery(sharing.holders).run((id) => stack.recover(id, inRingsOf(pool)));
  }

  #release(memory: PoolMemory): void {
    for (const area of memory.areas) this.#external.delete(area);
    throwFirst(memory.release(), 'pool.free');
  }

  #nameTaken(name: string, operation: string): DmaError {
    const { elements, elementSize } = this.#pools.get(name) ?? {};
    return exists(
      operation,
      `a pool ${JSON.stringify(name)} exists already`,
      `it has ${elements} elements of ${elementSize} bytes: pools.find(name) returns it; free it, or use another name`,
    );
  }

  #newName(): string {
    for (;;) {
      const name = `pool_${this.#made++}`;
      if (!this.#pools.has(name)) return name;
    }
  }
}

shortForm(Pools, 'Pools', (pools) => ({ names: [...pools].map(({ name }) => name) }));

/** The elements of a pool that are in rings now. */
function inRingsOf(pool: Pool): number[] {
  return [...pool.rings].flatMap((ring) => [...ring.numbers()]);
}

/** Fills bytes with zeros. */
function clearing(bytes: Uint8Array, operation: string): Allocation {
  return {
    now: () => void bytes.fill(0),
    later: async ({ signal }) => {
      const turns = new Turns();
      for (let at = 0; at < bytes.length; at += IN_A_TURN) {
        if (turns.due) await turns.next();
        mustGoOn(signal, operation);
        bytes.subarray(at, at + IN_A_TURN).fill(0);
      }
    },
  };
}

function checkSource({ external, heap, node, pageSizes, pageSizeHint }: PoolOptions, operation: string): void {
  if (external === undefined) return;
  for (const [name, value] of Object.entries({ heap, node, pageSizes, pageSizeHint }))
    if (value !== undefined)
      throw invalid(operation, `external memory and ${name} contradict each other`, {
        hint: `external memory has a fixed place: leave out ${name}, or external`,
      });
}

function exists(operation: string, reason: string, hint: string): DmaError {
  return new DmaError({ code: 'EEXIST', operation, reason, hint });
}
