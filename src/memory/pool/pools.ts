/** The pools of one `Eal`: creates them, finds them by name, and tells handlers when they come and go. */
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
import { PoolCache } from './pool-cache.js';
import { Pool } from './pool.js';
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

/** What a pool is to be like, and where its memory comes from: the library's own, a heap, or external memory. */
export interface PoolOptions extends Pick<MallocOptions, 'heap' | 'node' | 'pageSizes' | 'pageSizeHint'> {
  /** No other pool has it meanwhile. Default: made up. */
  readonly name?: string;
  /** How many, 1 to 2^28. */
  readonly elements: number;
  /** bytes */
  readonly elementSize: number;
  /** Elements begin at multiples of this power of two, in bytes. Default 64. */
  readonly align?: number;
  /** Bytes in front of each element that are its own, for headers that are put before what is in it. Default 0. */
  readonly headroom?: number;
  /** How many free elements each thread keeps for itself, 1 to 512, or 0 for none. Default 0. */
  readonly cache?: number;
  /** The user's memory, as much of it as it takes, instead of that of a heap. It can be in no other pool, and in no heap. */
  readonly external?: readonly ExternalMemory[];
  /**
   * Will devices use the elements? Then each is contiguous for them. Default true. Without, elements may lie where no device
   * would find them in one piece, and there are no IOVAs.
   */
  readonly forDevices?: boolean;
  /** Fill them with zeros? Default false: what is in them then is whatever was there before. */
  readonly zero?: boolean;
  /** For debugging: refuse at once what is put twice. Default false. */
  readonly checked?: boolean;
}

/** Told of pools, in the order handlers were added. */
export interface PoolHandler {
  /** The pool has all its elements, and nobody has it yet. What this throws refuses it: all is undone. */
  ready?(pool: Pool): void;
  /** Nobody can use it any more, and its memory is about to go. What this throws is an uncaught exception. */
  destroy?(pool: Pool): void;
}

/** bytes that are cleared in a turn of the event loop: some milliseconds */
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

/** The pools of one `Eal`. */
export class Pools {
  readonly #sources: HeapSources;
  readonly #port: Pick<MemoryPort, 'keeper'> | undefined;
  readonly #pools = new Map<string, Pool>();
  readonly #handlers = new Handlers<PoolHandler>();
  /** External memory that is in a pool, and the name of that. */
  readonly #external = new Map<Area, string>();
  #made = 0;

  /** @internal */
  constructor(sources: HeapSources, port?: Pick<MemoryPort, 'keeper'>) {
    this.#sources = sources;
    this.#port = port;
  }

  /** All pools, in the order they were made. */
  [Symbol.iterator](): IterableIterator<Pool> {
    return this.#pools.values();
  }

  /** The pool of that name, if there is one. @throws DmaError EINVAL for what is no name */
  find(name: string): Pool | undefined {
    mustBeString(name, 'the name of a pool', 'pools.find');
    return this.#pools.get(name);
  }

  /**
   * Makes a pool; all of its elements are free.
   *
   * @throws DmaError EINVAL for what is not possible, and for external memory that is not registered any more; EEXIST for a
   *   name that is in use, and for external memory that is in a heap or another pool; EACCES for external memory that can
   *   not be written; ENOENT if the heap does not exist; ENOMEM when not all elements have room; of the handler that refuses.
   *   When it throws, nothing has happened.
   */
  create(options: PoolOptions): Pool {
    const operation = 'pools.create';
    this.#sources.gate?.(operation);
    mustBeObject(options, 'options', operation);
    return runSteps(this.#creating(options, operation), (step) => step.now());
  }

  /**
   * As {@link Pools.create}, without blocking the event loop: memory that has to grow for it is got on other threads.
   *
   * @throws DmaError as `create`; ECANCELED when `options.signal` is aborted or the Eal stops, within one piece: then all is
   *   undone
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
    if (name === '') throw invalid(operation, 'a pool has a name', { hint: 'leave it out, and one is made up' });
    const shape = elementShape(elementSize, headroom, align, operation);
    const stack = ElementStack.create(elements, options, operation);
    const cache = cacheSize === 0 ? undefined : new PoolCache(stack, cacheSize, operation);
    checkSource(options, operation);
    if (this.#pools.has(name)) throw this.#nameTaken(name, operation);
    const iovaMode = (): IovaMode => this.#sources.memory.iova.mode;
    const memory = yield* this.#memoryFor(options, { elements, shape, forDevices, iovaMode, operation }, name);
    const { chunks } = memory;
    try {
      // Somebody may have taken the name meanwhile.
      if (this.#pools.has(name)) throw this.#nameTaken(name, operation);
      if (options.zero === true)
        for (let chunk = 0; chunk < chunks.length; chunk++) yield clearing(memory.view(chunk), operation);
      this.#sources.gate?.(operation);
    } catch (error) {
      throw withUndo(error, operation, undoAll([() => this.#release(memory)]));
    }
    /** Who has to know when it does not come after all. */
    let told: PoolHandler[] | undefined = [];
    let pool: Pool;
    try {
      const owner = options.external === undefined ? memory.areas[0].owner : 'external';
      const threads = new SharedArrayBuffer(2 * Int32Array.BYTES_PER_ELEMENT);
      const keepers = [...new Set(chunks.flatMap(({ va }) => this.#port?.keeper(va) ?? []))];
      const shared = { stack: stack.shared, threads, keepers };
      const description = { name, shape, forDevices, owner, chunks, cacheSize, ...shared };
      const end = (): void => {
        for (const handler of told ?? this.#handlers) tellHandler(() => handler.destroy?.(pool));
        this.#pools.delete(name);
        if (Atomics.load(new Int32Array(threads), 1) === 1) memory.escape();
        this.#release(memory);
      };
      const view = (chunk: number): Uint8Array => memory.view(chunk);
      const mustBeIdle = (of: string): void => memory.mustBeIdle(of);
      pool = new Pool({ description, stack, cache, view, mustBeIdle, end, made: true });
    } catch (error) {
      throw withUndo(error, operation, undoAll([() => this.#release(memory)]));
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

  /** Lets `handler` follow pools that come and go, until the result is disposed. @throws DmaError EEXIST */
  addHandler(handler: PoolHandler): Disposable {
    const operation = 'pools.addHandler';
    this.#sources.gate?.(operation);
    mustHandle(handler, ['ready', 'destroy'], operation);
    return this.#handlers.add(handler, operation);
  }

  /**
   * @internal Frees all pools, whoever has their elements, but for those that other threads have attached to.
   *
   * @returns what failed; while that is not nothing, the memory has to stay
   */
  close(): unknown[] {
    return [...this.#pools.values()]
      .reverse()
      .flatMap((pool) => undoAll([() => pool.free({ force: pool.threads === 0 })]));
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
          seen.has(area) ? 'it is in the list twice' : `pools.find(${JSON.stringify(other)})?.free() lets it go`,
        );
      seen.add(area);
    }
    const memory = poolMemoryFromExternal(request, external, name);
    for (const area of memory.areas) this.#external.set(area, name);
    return memory;
  }

  #release(memory: PoolMemory): void {
    for (const area of memory.areas) this.#external.delete(area);
    throwFirst(memory.release(), 'pool.free');
  }

  #nameTaken(name: string, operation: string): DmaError {
    const { elements, elementSize } = this.#pools.get(name) ?? {};
    return exists(
      operation,
      `there is a pool ${JSON.stringify(name)} already`,
      `it has ${elements} elements of ${elementSize} bytes: pools.find(name) finds it; free it, or take another name`,
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
        hint: `external memory is where it is: leave ${name} out, or external`,
      });
}

function exists(operation: string, reason: string, hint: string): DmaError {
  return new DmaError({ code: 'EEXIST', operation, reason, hint });
}
