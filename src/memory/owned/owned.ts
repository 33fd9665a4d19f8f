/**
 * Memory that the library owns: one heap per NUMA node, which grows when it has no room and frees unused memory.
 *
 * Steps of growing, in this order: ask validators, take pages, ask handlers, map for every device, add to the heap,
 * tell handlers. If a step fails, the earlier ones are undone. Shrinking is the reverse. An extent is mapped and freed
 * as a whole.
 */
import { type Gate, mustBeObject, mustHandle, open, reading } from '../../check.js';
import { debug } from '../../debug.js';
import { DmaError, invalid, isDmaError, NO_DESCRIPTORS, undoAll, withUndo } from '../../errors.js';
import {
  briefStep,
  isGivenUp,
  longWorkOf,
  mustGoOn,
  progressOf,
  remainingMs,
  RunningWorks,
  tellProgress,
  Turns,
  UNATTENDED,
  type LongStep,
  type LongWorkOptions,
  type RunningWork,
} from '../../long-work.js';
import type { Platform } from '../../platform/ports.js';
import { RangeMap } from '../../range-map.js';
import { runSteps, runStepsAsync, type Steps } from '../../steps.js';
import { formatSize, MiB, type Va } from '../../units.js';
import type { AreaIndex } from '../area-index.js';
import { planGrowth, type GrowthStep, type Need } from '../heap/growth.js';
import { checkedProduct, type MallocOptions, type RoomRequest, zeroed } from '../heap/malloc-request.js';
import { Heap, type Block, type HeapMemory, type HeapStatistics } from '../heap/heap.js';
import type { IovaDecision, IovaMode } from '../iova-mode.js';
import {
  MemoryValidators,
  type MemoryChange,
  type MemoryHandler,
  type MemoryHandlers,
  type MemoryValidator,
  type Reach,
  type ReachAsync,
} from '../memory-events.js';
import { START, type MemorySettings } from './memory-settings.js';
import { PageLists } from './page-lists.js';
import { PAGE_OPERATIONS } from './page-source.js';
import type { Extent } from './segment-list.js';
import { Views } from '../views.js';
import { shortForm } from '../../short-form.js';
import { show, thrown } from '../../show.js';
import { clearTimeout, now, setTimeout } from '../../timers.js';
import { STAYS } from '../../stays.js';

/** Up to this much empty memory is kept for the next allocation, in bytes, however little else the heap has. */
const KEPT = 64 * MiB;

/** How long empty memory stays before it is freed, in milliseconds. */
const IDLE_MS = 500;

/** What {@link OwnedMemory} needs. */
export interface OwnedMemoryOptions {
  readonly platform: Platform;
  readonly areas: AreaIndex;
  readonly settings: MemorySettings;
  readonly handlers: MemoryHandlers;
  /** Throws when handlers and validators may not be added now. */
  readonly gate?: Gate;
  readonly reach: Reach;
  readonly reachAsync: ReachAsync;
  /** Runs long operations, and cancels them when the Eal stops. Default: they can not be cancelled that way. */
  readonly running?: RunningWorks;
  /** Decides what devices use as addresses; called once, when it first matters. */
  readonly decideIova: () => IovaDecision;
  /** All devices map in multiples of this, in bytes, a power of two. Default 1. */
  readonly unit?: () => number;
  /** How long empty memory stays before it is freed, in milliseconds. Default 500. */
  readonly idleMs?: number;
}

/** Facts about the library's own memory. */
export interface OwnedMemoryFacts {
  /** Absent until something needed it. */
  readonly iova?: IovaDecision;
  readonly heaps: readonly ({ readonly name: string; readonly node: number } & HeapStatistics)[];
  /** Its lists of pages: each has one page size and one node. */
  readonly lists: readonly {
    readonly kind: 'memfd' | 'hugetlbfs' | 'anonymous';
    /** bytes */
    readonly pageSize: number;
    readonly node: number;
    /** number of pages */
    readonly pages: number;
    /**
     * Number of extents. Each is one mapping for a device, or one mapping per page if each page has a file of its own.
     */
    readonly extents: number;
    readonly va: Va;
    /** bytes of addresses that are reserved for it */
    readonly reserved: number;
  }[];
}

/** The release of memory that no device has. */
const NOTHING = briefStep(() => undefined);

/** An extent in a heap. */
class Part implements HeapMemory {
  readonly range;
  readonly pageSize;
  readonly areas;
  readonly handedOut;
  /** Views for the library. */
  readonly #own: Views;
  /** Views for models of devices in this process, which may keep them. */
  readonly #lent: Views;
  /** Unmaps it from all devices or, on failure, from none. Set once they have it. */
  release: LongStep = NOTHING;

  /** @param kept until the end, even when it is empty */
  constructor(
    readonly heap: Heap,
    readonly extent: Extent,
    readonly kept: boolean,
    platform: Platform,
  ) {
    this.range = extent.range;
    this.pageSize = extent.list.source.pageSize;
    this.areas = extent.areas;
    this.handedOut = extent.handedOut;
    this.#own = new Views(platform.memory, this.range.start, this.range.length, undefined);
    this.#lent = new Views(platform.memory, this.range.start, this.range.length, extent.handedOut, true);
  }

  bytes(va: Va, length: number): Uint8Array {
    return this.#own.bytes(va - this.range.start, length);
  }

  lend(va: Va, length: number): Uint8Array {
    return this.#lent.bytes(va - this.range.start, length);
  }

  detach(): void {
    this.#own.detach();
    this.#lent.detach();
  }

  get change(): MemoryChange {
    const { heap, range, areas, pageSize } = this;
    return { heap: heap.name, range, areas, pageSize, node: heap.node };
  }
}

/** The memory that the library owns. Costs nothing until first use. Made by `Eal.start`. */
export class OwnedMemory {
  /** @internal */
  readonly stays = STAYS;
  readonly #platform: Platform;
  readonly #areas: AreaIndex;
  readonly #settings: MemorySettings;
  readonly #handlers: MemoryHandlers;
  readonly #gate: Gate;
  readonly #validators = new MemoryValidators();
  readonly #reach: Reach;
  readonly #lists: PageLists;
  readonly #parts = new RangeMap<Part>();
  /** The empty part that each heap keeps. */
  readonly #spare = new Map<Heap, Part>();
  readonly #idleMs: number;
  /** Parts that are freed unless they are used again, and when they became empty; the oldest first. */
  readonly #idle = new Map<Part, number>();
  #timer: NodeJS.Timeout | undefined;
  readonly #reachAsync: ReachAsync;
  readonly #decideIova: () => IovaDecision;
  readonly #unit: () => number;
  readonly #running: RunningWorks;
  /** The last asynchronous change of memory: changes run one after the other. Never rejects. */
  #last: Promise<unknown> = Promise.resolve();
  /** bytes that are being added to each heap */
  readonly #coming = new Map<Heap, number>();
  #iova: IovaDecision | undefined;
  #heaps: readonly Heap[] | undefined;
  /** Pages are being taken or freed. */
  #changing = false;
  #closed = false;
  #noticed = false;

  /** @internal */
  constructor(options: OwnedMemoryOptions) {
    const { platform, areas, settings } = options;
    this.#platform = platform;
    this.#areas = areas;
    this.#settings = settings;
    this.#handlers = options.handlers;
    this.#gate = options.gate ?? open;
    this.#reach = options.reach;
    this.#reachAsync = options.reachAsync;
    this.#running = options.running ?? new RunningWorks();
    this.#decideIova = options.decideIova;
    this.#unit = options.unit ?? (() => 1);
    this.#idleMs = options.idleMs ?? IDLE_MS;
    this.#lists = new PageLists(platform, areas, settings, () => this.iova.mode === 'pa');
    settings.numaLimit.forEach((limit, node) => {
      if (limit > 0) this.#validators.add({ name: 'numaLimit', node, limit });
    });
  }

  /**
   * What devices use as addresses, and why. Decided when it is first read, at the latest by the first allocation.
   *
   * @throws DmaError EINVAL if physical addresses are required, and the kernel does not tell them
   */
  get iova(): IovaDecision {
    return (this.#iova ??= this.#decideIova());
  }

  /**
   * One heap per NUMA node, called `socket_<node>`, in ascending order. Only `socket_any` (node -1) if the machine has several
   * nodes and a sandbox does not let this process choose one.
   */
  get heaps(): readonly Heap[] {
    this.#heaps ??= this.#lists.heapNodes.map((node) => this.#newHeap(node));
    return this.#heaps;
  }

  /** The heaps; empty if nothing needed them yet. */
  get heapsInUse(): readonly Heap[] {
    return this.#heaps ?? [];
  }

  /** The heap of a node. @throws DmaError EINVAL if there is no such node; EPERM if this process may not choose a node */
  heapOf(node: number, operation = 'malloc'): Heap {
    const { nodes, unbound } = this.#lists;
    const exists = nodes.includes(node);
    if (exists && unbound !== undefined) throw unbound.with({ operation });
    const heap = exists ? this.heaps.find((each) => each.node === node) : undefined;
    if (heap !== undefined) return heap;
    const hint = `the nodes are: ${nodes.join(', ')}`;
    throw invalid(operation, `there is no NUMA node ${show(node)}`, { hint });
  }

  /** @internal See `Eal.malloc`. @throws DmaError as `Heap.malloc`; EINVAL for a node that does not exist */
  malloc(size: number, options?: MallocOptions): Block {
    const node = options === undefined ? undefined : nodeIn(options, 'malloc');
    if (node !== undefined) return this.heapOf(node).malloc(size, options);
    const { heaps } = this;
    try {
      return heaps[0].malloc(size, options);
    } catch (error) {
      if (!isDmaError(error, 'ENOMEM')) throw error;
      for (const heap of heaps.slice(1)) {
        try {
          return heap.malloc(size, options);
        } catch (another) {
          if (!isDmaError(another, 'ENOMEM')) throw another;
        }
      }
      throw error;
    }
  }

  /**
   * @internal As {@link OwnedMemory.malloc}, without blocking the event loop: see `Heap.mallocAsync`.
   *
   * @throws DmaError as `Heap.mallocAsync`; EINVAL for a node that does not exist
   */
  async mallocAsync(size: number, options: MallocOptions & LongWorkOptions = {}): Promise<Block> {
    const node = nodeIn(options, 'mallocAsync');
    let failure: unknown;
    for (const heap of node === undefined ? this.heaps : [this.heapOf(node, 'mallocAsync')]) {
      try {
        return await heap.mallocAsync(size, options);
      } catch (error) {
        if (!isDmaError(error, 'ENOMEM')) throw error;
        failure ??= error;
      }
    }
    throw failure;
  }

  /**
   * @internal Allocates `count` times `size` bytes, zeroed; otherwise as {@link OwnedMemory.malloc}. @throws DmaError also EINVAL
   * if the product is not a valid size
   */
  calloc(count: number, size: number, options?: MallocOptions): Block {
    const product = checkedProduct(count, size);
    return this.malloc(product, zeroed(options));
  }

  /**
   * Adds a handler, which is told of memory that is added to heaps and removed from them, until the result is disposed.
   * @throws DmaError EEXIST if it was added already
   */
  addHandler(handler: MemoryHandler): Disposable {
    this.#gate('memory.addHandler');
    mustHandle(handler, ['grow', 'grown', 'shrink', 'shrunk'], 'memory.addHandler');
    return this.#handlers.add(handler);
  }

  /**
   * Adds a validator, which is asked before this memory grows, until the result is disposed. What it does not allow
   * fails with ENOMEM, with the validator's name in the hint.
   *
   * @throws DmaError EINVAL for one without a name; EEXIST if it was added already
   */
  addValidator(validator: MemoryValidator): Disposable {
    this.#gate('memory.addValidator');
    mustHandle(validator, ['allows'], 'memory.addValidator');
    return this.#validators.add(validator);
  }

  /**
   * Frees all empty memory, except what was taken at the start. Memory that a device or handler refuses to release
   * stays.
   *
   * @returns bytes freed
   */
  trim(): number {
    const before = this.#total();
    for (const part of [...this.#parts.values()]) {
      if (!this.#changing && !part.kept && part.heap.isEmpty(part)) this.#giveBackQuietly(part);
    }
    return before - this.#total();
  }

  /**
   * As {@link OwnedMemory.trim}, without blocking the event loop: other threads free the pages.
   *
   * @returns bytes freed
   * @throws DmaError EINVAL for invalid options; ECANCELED when `options.signal` is aborted or the Eal stops: what is
   *   not freed by then stays
   */
  async trimAsync(options: LongWorkOptions = {}): Promise<number> {
    const operation = 'trimAsync';
    this.#gate(operation);
    const [{ onProgress, signal }] = longWorkOf(options, operation);
    return this.#inTurn(signal, operation, async (either) => {
      const parts = [...this.#parts.values()].filter((part) => !part.kept && part.heap.isEmpty(part));
      const report = progressOf(
        onProgress,
        parts.reduce((sum, { range }) => sum + range.length, 0),
      );
      let done = 0;
      let given = 0;
      for (const part of parts) {
        mustGoOn(either, operation);
        if (part.heap.isEmpty(part) && (await this.#giveBackQuietlyAsync(part))) given += part.range.length;
        done += part.range.length;
        report(done);
      }
      return given;
    });
  }

  /**
   * @internal The most bytes that `heaps` can provide: what is free in them, and what they could grow by now. Infinity
   *   if one of them is over memory of the user: searching it takes nothing from the machine.
   */
  most(heaps: readonly Heap[]): number {
    const nodes = heaps.filter((heap) => this.heaps.includes(heap)).map(({ node }) => node);
    if (nodes.length === 0) return Infinity;
    const choices = nodes.flatMap((node) => this.#lists.choices(node));
    const hugepages = choices.reduce((bytes, { pageSize, free, huge }) => bytes + (huge ? free * pageSize : 0), 0);
    const isOrdinary = choices.some(({ huge }) => !huge);
    const room = isOrdinary ? this.#platform.limits.room(nodes.length === 1 ? nodes[0] : -1).bytes : 0;
    return heaps.reduce((bytes, heap) => bytes + heap.statistics().free, hugepages + room);
  }

  /** Facts about this memory, for display. */
  facts(): OwnedMemoryFacts {
    return {
      ...(this.#iova === undefined ? {} : { iova: this.#iova }),
      heaps: this.heapsInUse.map((heap) => ({ name: heap.name, node: heap.node, ...heap.statistics() })),
      lists: this.#lists.lists.map((list) => ({
        kind: list.source.kind,
        pageSize: list.source.pageSize,
        node: list.source.node,
        pages: list.pages,
        extents: [...list.extents].length,
        va: list.reserved.start,
        reserved: list.reserved.length,
      })),
    };
  }

  /** @internal The bytes at [va, va + length); `undefined` unless they are all in one extent. */
  bytesAt(va: Va, length: number): Uint8Array | undefined {
    const part = this.#parts.at(va);
    return part === undefined || va + length > part.range.end ? undefined : part.lend(va, length);
  }

  /**
   * @internal Checks the settings against the machine, removes what a dead process left, and takes what is wanted at
   *   the start.
   *
   * @throws DmaError EINVAL for settings that this machine can not satisfy; ENOMEM if there is not so much memory;
   *   ENOTSUP where the library can have no memory
   */
  start(): void {
    runSteps(this.#starting(), (step) => step.now());
  }

  /** @internal As {@link start}, without blocking the event loop. @throws DmaError also ECANCELED */
  async startAsync({ onProgress, signal }: LongWorkOptions = {}): Promise<void> {
    const { size, numaMem } = this.#settings;
    const total = numaMem.reduce((sum, bytes) => sum + bytes, size);
    if (total === 0) {
      mustGoOn(signal, START);
      return runSteps(this.#starting(), (step) => step.now());
    }
    // The first start loads the C library in this turn of the event loop.
    await new Turns().next();
    const report = progressOf(onProgress, total);
    await this.#inTurn(signal, START, async (either, giveUp) => {
      let before = 0;
      const onPart = orGiveUp(giveUp, (done, length) => {
        report(before + done);
        // Progress of each extent starts at 0.
        if (done === length) before += length;
      });
      await this.#later(this.#starting(either), { signal: either, report: onPart });
    });
  }

  *#starting(signal?: AbortSignal): Steps<LongStep, void> {
    const { size, numaMem, numaLimit, iovaMode } = this.#settings;
    this.#lists.start();
    // Nobody knows what comes from a node then, so its limit can not be kept.
    const unbound = numaLimit.some((bytes) => bytes > 0) ? this.#lists.unbound : undefined;
    if (unbound !== undefined) throw unbound.with({ operation: START });
    if (iovaMode === 'pa') this.#iova = this.#decideIova();
    for (const [node, bytes] of numaMem.entries())
      if (bytes > 0) yield* this.#preallocating([this.heapOf(node, START)], bytes, signal);
    if (size > 0) yield* this.#preallocating(this.heaps, size, signal);
  }

  /** @internal From here on it neither grows nor shrinks: it is about to be closed. */
  end(): void {
    this.#closed = true;
    clearTimeout(this.#timer);
  }

  /**
   * @internal Frees everything, including blocks that are in use. No device may have it mapped.
   *
   * @returns the errors, such as pinned blocks; a later call tries again
   */
  close(): unknown[] {
    return runSteps(this.#closing(), (step) => step.now());
  }

  /**
   * @internal As {@link close}, without blocking the event loop.
   *
   * @param keep do other processes go on with its content? Default false
   */
  async closeAsync(keep = false): Promise<unknown[]> {
    return runStepsAsync(this.#closing(keep), (step) => step.later(UNATTENDED));
  }

  *#closing(keep = false): Steps<LongStep, unknown[]> {
    this.end();
    const errors: unknown[] = [];
    for (const part of [...this.#parts.values()].reverse()) {
      try {
        yield part.release;
      } catch (error) {
        errors.push(error);
      }
      part.release = NOTHING;
    }
    for (const heap of this.heapsInUse) errors.push(...heap.expire());
    for (const part of this.#parts.values()) errors.push(...undoAll([() => part.detach()]));
    // A view that is left would fault.
    if (errors.length > 0) return errors;
    this.#parts.clear();
    return yield* this.#lists.closing(keep);
  }

  // --- growing ---

  #newHeap(node: number): Heap {
    const heap: Heap = new Heap({
      name: `socket_${node < 0 ? 'any' : node}`,
      id: Math.max(node, 0),
      node,
      memory: this.#platform.memory,
      areas: this.#areas,
      iovaMode: (): IovaMode => this.iova.mode,
      sameIova: this.#settings.sameIova,
      origins: this.#settings.origins,
      ownViews: true,
      grow: (request, fits) => this.#growFor(heap, request, fits),
      growAsync: (request, fits, options) => this.#growForAsync(heap, request, fits, options),
      emptied: (memory) => {
        // The common case: a program allocates one block and frees it, again and again.
        if (memory === this.#spare.get(heap) && isModest(memory, heap)) return;
        for (const part of this.#surplus(memory))
          if (this.#settings.matchAllocations) this.#giveBackQuietly(part);
          else this.#letGo(part);
      },
      emptiedAsync: (memory) => this.#emptiedAsync(memory),
      running: this.#running,
    });
    return heap;
  }

  /** Grows `heap` until `fits`. @throws DmaError ENOMEM, with what was tried */
  #growFor(heap: Heap, request: RoomRequest, fits: () => boolean): void {
    this.#mustBeIdle();
    this.#alone(() => runSteps(this.#growingFor(heap, request, fits), (step) => step.now()));
  }

  /**
   * As {@link #growFor}, without blocking the event loop; one growth after the other. @throws DmaError also ECANCELED
   */
  async #growForAsync(
    heap: Heap,
    request: RoomRequest,
    fits: () => boolean,
    { onProgress, signal }: LongWorkOptions,
  ): Promise<void> {
    await this.#inTurn(signal, undefined, async (either, giveUp) => {
      // The change before may have left enough.
      if (fits()) return;
      this.#mustBeIdle();
      const began = now();
      const report = orGiveUp(giveUp, (doneBytes, totalBytes) =>
        tellProgress(onProgress, { doneBytes, totalBytes, remainingMs: remainingMs(began, doneBytes, totalBytes) }),
      );
      await this.#later(this.#growingFor(heap, request, fits, either), { signal: either, report });
    });
  }

  /** Runs `work` after the change before it, unless it was cancelled by then. */
  async #inTurn<T>(
    signal: AbortSignal | undefined,
    operation: string | undefined,
    work: (signal: AbortSignal, giveUp: (why: unknown) => void) => Promise<T>,
  ): Promise<T> {
    return this.#running.run(signal, operation, async (either, giveUp) => {
      const before = this.#last;
      const { promise, resolve } = settled();
      this.#last = promise;
      try {
        await before;
        mustGoOn(either, operation ?? 'grow');
        return await work(either, giveUp);
      } catch (error) {
        // A caller that gave up does not need the new addresses.
        const why: unknown = either.reason;
        if (isGivenUp(why, undefined)) throw why;
        throw isGivenUp(error, either) ? error.with({ range: undefined }) : error;
      } finally {
        resolve();
      }
    });
  }

  /**
   * Runs the steps without blocking the event loop. Handlers are told as in the synchronous form: memory can not change
   * meanwhile.
   */
  async #later<T>(steps: Steps<LongStep, T>, work: RunningWork): Promise<T> {
    return runStepsAsync(
      steps,
      (step) => step.later(work),
      (go) => this.#alone(go),
    );
  }

  *#growingFor(heap: Heap, request: RoomRequest, fits: () => boolean, signal?: AbortSignal): Steps<LongStep, void> {
    const { matchAllocations } = this.#settings;
    // Memory that is about to be freed does not reduce what is taken.
    for (const part of [...this.#idle.keys()]) yield* this.#givingBackIdle(part);
    const steps = this.#plan(heap, request, matchAllocations, request.pageSizes);
    const failures: unknown[] = [];
    for (const { pageSize, pages, alignment } of steps) {
      try {
        const part = yield* this.#extending(heap, { pageSize, pages, alignment }, false);
        if (fits()) return this.#noticeFallback(pageSize, failures);
        yield* this.#givingBack(part);
        const reason = `${pages} pages of ${formatSize(pageSize)} were no help: they are not contiguous`;
        failures.push(new DmaError({ code: 'ENOMEM', operation: 'grow', reason }));
      } catch (error) {
        if (signal?.aborted === true) throw error;
        mustBeAboutPages(error);
        debug?.(`${heap.name}: no ${pages} pages of ${formatSize(pageSize)}, others are tried: ${String(error)}`);
        failures.push(error);
      }
    }
    throw this.#canNotGrow(heap, request.pageSizes, failures);
  }

  #plan(heap: Heap, need: Need, exact: boolean, pageSizes: readonly number[] | undefined): GrowthStep[] {
    const choices = this.#lists.choices(heap.node).filter(({ pageSize }) => pageSizes?.includes(pageSize) !== false);
    const steps = planGrowth(need, heap.total, choices, exact, this.#unit());
    this.#noticeOrdinary(steps[0]);
    return steps;
  }

  /** Tells once that there are no hugepages. */
  #noticeOrdinary(first: GrowthStep | undefined): void {
    const { noHuge, pageSizes, onNotice } = this.#settings;
    if (this.#noticed || noHuge || pageSizes !== undefined) return;
    if (first === undefined || first.pageSize !== this.#platform.memory.pageSize) return;
    this.#noticed = true;
    const sizes = this.#lists.hugeSizes.map(formatSize).join(', ');
    const { hidden } = this.#lists;
    const hint =
      hidden !== undefined
        ? `whether there are any is hidden: ${hidden.reason}`
        : sizes === ''
          ? 'this machine has none'
          : `as root, reserve some of ${sizes}: anydma hugepages`;
    onNotice(`no hugepages are free, so ordinary pages are used (${hint}; memory.noHuge says that this is intended)`);
  }

  /** Tells once why hugepages were not available and ordinary pages are used. */
  #noticeFallback(pageSize: number, failures: readonly unknown[]): void {
    const cause = failures.find(isAboutPages);
    if (this.#noticed || cause === undefined || pageSize !== this.#platform.memory.pageSize) return;
    this.#noticed = true;
    this.#settings.onNotice(`hugepages are not available, so ordinary pages are used: ${describe(cause)}`);
  }

  #canNotGrow(heap: Heap, pageSizes: readonly number[] | undefined, failures: readonly unknown[]): DmaError {
    const told = failures.map(describe);
    const wanted = pageSizes === undefined ? '' : ` of ${pageSizes.map(formatSize).join(' or ')}`;
    const reason =
      told.length === 0
        ? `it can not grow: not so many pages${wanted} are free, or allowed (${this.#pageFigures(heap)})`
        : `it can not grow: ${[...new Set(told)].join('; ')}`;
    // If certain pages were demanded, what prevents them is the cause.
    const isWish = (pageSizes ?? this.#settings.pageSizes ?? this.#settings.files) !== undefined;
    const own = isWish ? failures.find((error) => isAboutPages(error) && error.code !== 'ENOMEM') : undefined;
    const code = isDmaError(own) ? own.code : 'ENOMEM';
    return new DmaError({ code, operation: 'grow', reason, cause: own ?? failures.at(-1) });
  }

  /** For each page size that the heap may grow by, what is available. */
  #pageFigures(heap: Heap): string {
    const figures = this.#lists.choices(heap.node).map(({ pageSize, free, left }) => {
      const most = Math.min(free * pageSize, left);
      return `${formatSize(pageSize)}: ${most === Infinity ? 'no limit' : `${formatSize(most)} are available`}`;
    });
    return figures.length === 0 ? 'it may use no pages at all' : figures.join(', ');
  }

  #mustBePossible(): void {
    const { limitation } = this.#platform;
    if (limitation !== undefined) throw new DmaError({ code: 'ENOTSUP', operation: 'grow', reason: limitation });
  }

  #mustBeIdle(): void {
    this.#mustBePossible();
    if (this.#closed)
      throw new DmaError({
        code: 'ECANCELED',
        operation: 'grow',
        reason: 'the Eal was stopped',
        hint: 'Eal.start() starts another one',
      });
    if (!this.#changing) return;
    const reason = 'memory can not grow while it changes: this is a handler of memory events';
    const hint = 'allocate before or after, as in setImmediate';
    throw new DmaError({ code: 'EBUSY', operation: 'grow', reason, hint });
  }

  /** Takes pages, maps them for all devices and adds them to the heap. When it fails, nothing has changed. */
  *#extending(heap: Heap, { pageSize, pages, alignment }: GrowthStep, kept: boolean): Steps<LongStep, Part> {
    const { node } = heap;
    const bytes = pages * pageSize;
    const coming = this.#coming.get(heap) ?? 0;
    const undo: (() => void)[] = [];
    let extent: Extent | undefined;
    this.#validators.check({ node, pageSize, bytes, total: heap.total + coming });
    this.#coming.set(heap, coming + bytes);
    try {
      extent = yield* this.#lists.taking(pageSize, node, pages, alignment);
      const part = new Part(heap, extent, kept, this.#platform);
      undo.unshift(() => part.detach());
      const { change } = part;
      undo.unshift(this.#handlers.ask('grow', change));
      yield {
        now: () => (part.release = this.#reach(part.areas)),
        later: async ({ signal }) => {
          part.release = await this.#reachAsync(part.areas, { signal });
        },
      };
      this.#parts.insert(part.range.start, part.range.length, part);
      heap.add(part);
      debug?.(`${heap.name}: grown by ${pages} pages of ${formatSize(pageSize)} at ${part.range.toString()}`);
      this.#handlers.tell('grown', change);
      return part;
    } catch (error) {
      const failed = undoAll(undo);
      try {
        if (extent !== undefined) yield* extent.list.givingBack(extent);
      } catch (why) {
        failed.push(why);
      }
      throw withUndo(error, 'grow', failed);
    } finally {
      this.#coming.set(heap, (this.#coming.get(heap) ?? 0) - bytes);
    }
  }

  /** Takes `bytes` from the first of `heaps` that have it, and keeps them until the end. */
  *#preallocating(heaps: readonly Heap[], bytes: number, signal: AbortSignal | undefined): Steps<LongStep, void> {
    this.#mustBePossible();
    const failures: unknown[] = [];
    let left = bytes;
    for (const heap of heaps) {
      // As many of the largest pages as fit, then smaller ones; the rest is rounded up.
      for (let steps = this.#parting(heap, left); left > 0 && steps.length > 0;) {
        const [step] = steps;
        const { pageSize, pages } = step;
        try {
          yield* this.#extending(heap, step, true);
          this.#noticeFallback(pageSize, failures);
          left -= pages * pageSize;
          steps = this.#parting(heap, left);
        } catch (error) {
          if (signal?.aborted === true) throw error;
          mustBeAboutPages(error);
          failures.push(error);
          steps = steps.slice(1);
        }
      }
    }
    if (left <= 0) return;
    const error = this.#canNotGrow(heaps[0], this.#settings.pageSizes, failures);
    const reason = `${formatSize(left)} of the ${formatSize(bytes)} to have at the start are missing`;
    throw error.with({ operation: START, reason, hint: error.reason });
  }

  /** Ways to get closer to `bytes` with pages that are free now, the best first. */
  #parting(heap: Heap, bytes: number): GrowthStep[] {
    if (bytes <= 0) return [];
    const choices = this.#lists.choices(heap.node).reverse();
    const ways = choices.flatMap(({ pageSize, free, left, huge }) => {
      const most = Math.min(free, Math.floor(left / pageSize));
      const whole = Math.min(most, Math.floor(bytes / pageSize));
      const pages = whole > 0 ? whole : Math.min(most, 1);
      const step = { pageSize, pages, alignment: pageSize, fills: whole > 0, huge };
      return step.pages > 0 ? [step] : [];
    });
    const huge = ways.filter((way) => way.huge);
    const ordinary = ways.filter((way) => !way.huge);
    const over = huge.filter((way) => !way.fills).reverse();
    const steps = [...huge.filter((way) => way.fills), ...over, ...ordinary];
    this.#noticeOrdinary(steps[0]);
    return steps;
  }

  // --- shrinking ---

  /**
   * Frees `memory`, which became empty, or keeps it: the heap keeps the part that became empty last, if it is not too
   * large.
   *
   * @returns the parts to free, one by one
   */
  *#surplus(memory: HeapMemory): Generator<Part, void, undefined> {
    const part = this.#parts.at(memory.range.start);
    if (part === undefined || part.kept || this.#changing || this.#closed) return;
    const { heap } = part;
    const spare = this.#spare.get(heap);
    if (spare !== part) {
      this.#spare.delete(heap);
      if (spare !== undefined && heap.isEmpty(spare)) yield spare;
    }
    if (isModest(part, heap) && !this.#settings.matchAllocations) this.#spare.set(heap, part);
    else yield part;
  }

  /**
   * Frees a part after a while, on other threads, unless it is used again: `free` stays cheap, and a program that
   * allocates and frees in a loop does not fault in the same pages each time.
   */
  #letGo(part: Part): void {
    this.#idle.delete(part);
    this.#idle.set(part, now());
    this.#timer ??= setTimeout(() => void this.#giveIdleBack(), this.#idleMs).unref();
  }

  async #giveIdleBack(): Promise<void> {
    const work = this.#inTurn(undefined, 'shrink', async () => {
      for (const [part, since] of this.#idle) {
        if (this.#closed || now() - since < this.#idleMs) break;
        this.#idle.delete(part);
        if (this.#isSurplus(part)) await this.#giveBackQuietlyAsync(part);
      }
    });
    // If the Eal stops, `close` frees what is left.
    await work.catch(() => undefined);
    this.#timer = undefined;
    const [next] = this.#idle.values();
    if (next === undefined || this.#closed) return;
    this.#timer = setTimeout(() => void this.#giveIdleBack(), Math.max(1, next + this.#idleMs - now())).unref();
  }

  /** Is it empty, and not kept by its heap? */
  #isSurplus(part: Part): boolean {
    return this.#spare.get(part.heap) !== part && part.heap.isEmpty(part);
  }

  *#givingBackIdle(part: Part): Steps<LongStep, void> {
    this.#idle.delete(part);
    if (!this.#isSurplus(part)) return;
    try {
      yield* this.#givingBack(part);
    } catch (error) {
      this.#noticeStay(error);
    }
  }

  /** If the Eal stops, `close` frees what is left. */
  async #emptiedAsync(memory: HeapMemory): Promise<void> {
    for (const part of this.#surplus(memory)) {
      const work = this.#inTurn(undefined, 'shrink', async () => {
        if (part.heap.isEmpty(part)) await this.#giveBackQuietlyAsync(part);
      });
      await work.catch((error: unknown) => {
        if (!isDmaError(error, 'ECANCELED')) throw error;
      });
    }
  }

  /** If it can not be freed, it stays in its heap and can be used: no error for the program that freed a block. */
  #giveBackQuietly(part: Part): void {
    try {
      this.#alone(() => runSteps(this.#givingBack(part), (step) => step.now()));
    } catch (error) {
      this.#noticeStay(error);
    }
  }

  /** @returns whether it was freed */
  async #giveBackQuietlyAsync(part: Part): Promise<boolean> {
    try {
      await this.#later(this.#givingBack(part), UNATTENDED);
      return true;
    } catch (error) {
      this.#noticeStay(error);
      return false;
    }
  }

  #noticeStay(error: unknown): void {
    // A handler refused.
    if (isDmaError(error, 'ECANCELED')) return;
    this.#settings.onNotice(`memory could not be given back, and stays: ${thrown(error)}`);
  }

  /**
   * Removes an empty part from the heap, from the devices and from this process. When it fails, nothing has changed.
   */
  *#givingBack(part: Part): Steps<LongStep, void> {
    const { heap, extent, change } = part;
    const undo: (() => void)[] = [];
    try {
      undo.unshift(this.#handlers.ask('shrink', change));
      heap.remove(part);
      undo.unshift(() => heap.add(part));
      yield part.release;
      undo.unshift(() => (part.release = this.#reach(part.areas)));
      part.detach();
      yield* extent.list.givingBack(extent);
      debug?.(`${part.heap.name}: given back: ${part.range.toString()}`);
    } catch (error) {
      throw withUndo(error, 'shrink', undoAll(undo));
    }
    this.#parts.delete(part.range.start);
    if (this.#spare.get(heap) === part) this.#spare.delete(heap);
    this.#idle.delete(part);
    this.#handlers.tell('shrunk', change);
  }

  #alone<T>(work: () => T): T {
    const before = this.#changing;
    this.#changing = true;
    try {
      return work();
    } finally {
      this.#changing = before;
    }
  }

  #total(): number {
    return this.heapsInUse.reduce((sum, heap) => sum + heap.total, 0);
  }
}

shortForm(OwnedMemory, 'OwnedMemory', (memory) => {
  const { iova, heaps, lists } = memory.facts();
  return {
    iovaMode: iova?.mode,
    heaps: heaps.map(({ name, total, free }) => ({ name, total, free })),
    lists: lists.length,
  };
});

/** As `report`, but an error that it throws cancels the work, so that no other page size is tried. */
function orGiveUp(giveUp: (why: unknown) => void, report: RunningWork['report']): RunningWork['report'] {
  return (done, total) => {
    try {
      report(done, total);
    } catch (error) {
      giveUp(error);
      throw error;
    }
  };
}

/** A promise and its resolver. */
function settled(): { readonly promise: Promise<void>; readonly resolve: () => void } {
  let resolve = (): void => undefined;
  const promise = new Promise<void>((done) => (resolve = done));
  return { promise, resolve };
}

/** Rethrows errors that pages of another size would not avoid, such as a lack of descriptors. */
function mustBeAboutPages(error: unknown): void {
  if (isDmaError(error) && NO_DESCRIPTORS.includes(error.code)) throw error;
}

/** Were the pages not available? False if a device, a handler or a validator refused them. */
function isAboutPages(error: unknown): error is DmaError {
  return isDmaError(error) && PAGE_OPERATIONS.includes(error.operation);
}

function describe(error: unknown): string {
  if (!isDmaError(error)) return thrown(error);
  const hint = error.hint === undefined ? '' : ` (${error.hint})`;
  return `${error.reason}${error.device === undefined ? '' : ` on ${error.device}`}${hint}`;
}

/** May an empty part be kept: is it small, or not larger than the rest of its heap? */
function isModest({ range: { length } }: HeapMemory, heap: Heap): boolean {
  return length <= Math.max(KEPT, heap.total - length);
}

/** The node in options. @throws DmaError EINVAL if they are not options */
function nodeIn(options: MallocOptions, operation: string): number | undefined {
  mustBeObject(options, 'options', operation);
  return reading(operation, 'the options', () => options.node);
}
