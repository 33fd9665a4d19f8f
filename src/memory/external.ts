/**
 * External memory: memory of the user, registered so that the user can map it for DMA, device by device. The library
 * writes nothing into it, and no allocator uses it. DPDK: rte_extmem_*.
 */
import { isMainThread } from 'node:worker_threads';
import { ended, type Gate, mustBeNumber, mustBeString, open, optionsOf, rest, type Shape } from '../check.js';
import { DmaError, invalid, isDmaError, throwFirst, undoAll, withUndo, type ErrorCode } from '../errors.js';
import {
  followedBy,
  dropStep,
  inLanes,
  longWorkOf,
  Pace,
  RunningWorks,
  UNATTENDED,
  type LongStep,
  type LongWorkOptions,
} from '../long-work.js';
import type { Fields, JsonObject } from '../fields.js';
import { OriginNotes, type Origin } from '../origin.js';
import type { CommitOptions, FileStatus, MemoryPort, Platform } from '../platform/ports.js';
import { Range } from '../ranges.js';
import { show } from '../show.js';
import { runSteps, runStepsAsync, type Steps } from '../steps.js';
import { alignDown, alignUp, formatSize, hex, isAddress, isPowerOfTwo, type Va, type VaLike } from '../units.js';
import { Area, noPageSize, type Backing } from './area.js';
import type { AreaIndex } from './area-index.js';
import { isArrayBuffer, isSharedArrayBuffer } from '../realms.js';
import { checkHugePageSizes, HugePages } from './hugepages.js';
import { rangeOf, type MemoryPart } from './part.js';
import { lend, pinnedError, Pins, type LendOptions, type Pin } from './pins.js';
import { PrivateViews } from './private-views.js';
import { giveMappingBack, HandedOut, retired } from './retired.js';
import { OrdinaryMemory } from './ordinary-memory.js';
import { explainShortage, settle, settling } from './settle.js';
import type { AttachedMemory, MemoryFacts } from './attached-memory.js';
import type { Shared } from './shared/shared.js';
import { notShareable, type Share } from './shared/shares.js';
import { checkPart, viewMoved, Views } from './views.js';
import { shortForm } from '../short-form.js';
import { STAYS } from '../stays.js';

/** Options of every way to register memory. */
export interface RegisterOptions {
  /** Page size in bytes, a power of two; the memory must begin and end on multiples of it. Default: the system's. */
  readonly pageSize?: number;
  /** One IOVA for each page, for memory with predefined device addresses: mappings then use these. */
  readonly iovas?: ArrayLike<number>;
  /** The NUMA node of the memory, if known. */
  readonly node?: number;
  /** Its name in messages. Default: its source and address. */
  readonly label?: string;
}

/** Options of {@link External.allocate}. */
export interface AllocateOptions extends Omit<RegisterOptions, 'pageSize' | 'node'> {
  /**
   * `'memfd'` (the default) can be passed to devices in other processes by descriptor; such devices access
   * `'anonymous'` memory only by messages.
   */
  readonly source?: 'memfd' | 'anonymous';
  /** Take hugetlb pages of this size in bytes (2 MiB, 1 GiB ...) instead of ordinary ones. */
  readonly hugePageSize?: number;
  /** The NUMA node for all pages. Default: any. */
  readonly node?: number;
  /** Alignment in bytes, a power of two, for devices that map in larger units. Default: its page size. */
  readonly align?: number;
  /**
   * Whether to allocate every page now. Default true: a missing page is an error. With false, pages are allocated when
   * they are first used, for memory of which only a small part is used. If there is no page then, the process is killed
   * (SIGBUS, or the kernel's OOM killer).
   */
  readonly populate?: boolean;
}

/** Options of {@link External.fromFd}. */
export interface FromFdOptions extends RegisterOptions, Pick<AllocateOptions, 'populate'> {
  /** Offset of the memory in the file, in bytes, a multiple of the page size. Default 0. */
  readonly offset?: number;
  /** Length in bytes. Default: up to the end of the file, rounded up to a page. */
  readonly length?: number;
  /**
   * Whether devices may write it, and stores through views reach the file. Default: as the descriptor was opened. With
   * false, devices of every kind read the file, and a store through `bytes()` stays in this process: neither the file
   * nor any device sees it. (For hugepages `bytes()` is then a copy, made on first use; each stored-to page needs
   * another hugepage.)
   */
  readonly writable?: boolean;
}

/** @internal */
export const REGISTER_OPTIONS: Shape<RegisterOptions> = {
  pageSize: 'number',
  iovas: 'list',
  node: 'number',
  label: 'string',
};
const ALLOCATE_OPTIONS: Shape<AllocateOptions> = {
  iovas: 'list',
  node: 'number',
  label: 'string',
  source: ['memfd', 'anonymous'],
  hugePageSize: 'number',
  align: 'number',
  populate: 'boolean',
};
const ADDRESS_OPTIONS: Shape<RegisterOptions & { readonly writable?: boolean }> = {
  ...REGISTER_OPTIONS,
  writable: 'boolean',
};
const FD_OPTIONS: Shape<FromFdOptions> = {
  ...ADDRESS_OPTIONS,
  offset: 'number',
  length: 'number',
  populate: 'boolean',
};

interface Parts {
  readonly area: Area;
  readonly source: ExternalMemory['source'];
  /** The bytes for views; for a Buffer, the user's own bytes. */
  readonly views: Views | Uint8Array;
  /** Tracks what was handed out and can access the memory. */
  readonly handedOut: HandedOut;
  /** Discards the content, which is the slow part of freeing it. Absent if the memory is not the library's. */
  readonly empty: LongStep | undefined;
  /** Frees the memory, if it is the library's. If it throws, nothing was changed. */
  readonly giveBack: () => void;
  /** The steps after that. All of them run. */
  readonly release: readonly (() => void)[];
  readonly origin: Origin | undefined;
  /** What keeps it in place when this thread ends; `undefined`: its addresses tell. */
  readonly keepers: readonly SharedArrayBuffer[] | undefined;
}

/** The registry of a memory. */
interface Registry {
  /** Called after it was unregistered. */
  gone(memory: ExternalMemory): void;
}

/** One piece of registered external memory. Disposing it unregisters it; see {@link ExternalMemory.unregister}. */
export class ExternalMemory implements Disposable {
  readonly area: Area;
  /** The kind of its source. */
  readonly source: 'memfd' | 'anonymous' | 'file' | 'buffer' | 'address';
  /** Where in the program it was registered; `undefined` if that was not noted (see `EalOptions.origins`). */
  readonly origin: Origin | undefined;
  /** @internal The views that can access it; while it is in a heap, the views of its blocks count too */
  readonly handedOut: HandedOut;
  /** @internal Does another process go on with its content? Then it is not discarded before it is unmapped. */
  contentStays = false;
  readonly #index: AreaIndex;
  readonly #views: Views | Uint8Array;
  #forDevices: Views | undefined;
  readonly #empty: LongStep | undefined;
  readonly #giveBack: () => void;
  readonly #release: readonly (() => void)[];
  readonly #running: RunningWorks;
  readonly #pins = new Pins();
  readonly #registry: Registry;
  readonly #keepers: readonly SharedArrayBuffer[] | undefined;
  #share: Share<AttachedMemory> | undefined;
  #registered = true;
  /** Whether `unregisterAsync` is in progress. */
  #leaving = false;

  /** @internal Created by {@link External}. */
  constructor(parts: Parts, index: AreaIndex, running: RunningWorks, registry: Registry) {
    this.area = parts.area;
    this.source = parts.source;
    this.origin = parts.origin;
    this.#views = parts.views;
    this.handedOut = parts.handedOut;
    this.#empty = parts.empty;
    this.#giveBack = parts.giveBack;
    this.#release = parts.release;
    this.#index = index;
    this.#running = running;
    this.#registry = registry;
    this.#keepers = parts.keepers;
    this.area.registration = this;
  }

  /** Address of the first byte. */
  get va(): Va {
    return this.area.range.start;
  }

  /** Length in bytes. */
  get length(): number {
    return this.area.range.length;
  }

  /** The descriptor of a `memfd` or `file`; the memory owns it. */
  get fd(): number | undefined {
    return this.area.backing?.fd;
  }

  /** Is it still registered? */
  get live(): boolean {
    return this.#registered;
  }

  /** @internal Whether it is registered there. */
  isOf(registry: Registry): boolean {
    return this.#registry === registry && this.#registered;
  }

  /**
   * The memory as bytes. The view can not outlive the memory: after the memory is freed, the view is empty, reads
   * return `undefined`, and nothing faults. (For a registered Buffer these are the Buffer's own bytes, which live as
   * long as they are referenced.)
   *
   * For calls that use bytes in another thread (`crypto.randomFill`, `fs.read`, `zlib`), use {@link
   * ExternalMemory.lend}. If the memory is freed during such a call, what it still writes is lost, and zlib kills the
   * process.
   *
   * @param offset bytes from the start
   * @param length bytes; default: all bytes after `offset`
   * @throws DmaError EINVAL if the part is not inside, the memory was freed, or its ArrayBuffer was transferred;
   *   ENOTSUP if it is longer than one ArrayBuffer can be (4 GiB on Node 20): ask for parts
   */
  bytes(offset = 0, length = rest(this.length, offset)): Uint8Array {
    this.#mustBeRegistered('bytes');
    checkPart(offset, length, this.length, 'bytes');
    if (this.#views instanceof Views) return this.#views.bytes(offset, length);
    if (this.#views.length === 0) throw viewMoved(this.area.range);
    return this.#views.subarray(offset, offset + length);
  }

  /**
   * @internal The bytes that a device in this process reads and writes, in a separate ArrayBuffer: what the program
   *   does with its own ArrayBuffer does not affect the device.
   */
  bytesForDevice(offset: number, length: number): Uint8Array {
    if (this.#views instanceof PrivateViews) return this.#views.copy(offset, length);
    if (!(this.#views instanceof Views)) return this.bytes(offset, length);
    this.#forDevices ??= this.#views.another();
    return this.#forDevices.bytes(offset, length);
  }

  /**
   * Runs `work` on the bytes of the memory, or on a part of them, and pins it meanwhile: unregistering fails with EBUSY
   * until the result of `work` has settled. Use it to give bytes to other threads: `await memory.lend((bytes) =>
   * file.read(bytes))`.
   *
   * @returns the result of `work`
   * @throws DmaError as {@link ExternalMemory.bytes}; the exception of `work`
   */
  async lend<T>(work: (bytes: Uint8Array) => T, options?: LendOptions): Promise<Awaited<T>> {
    return lend(this, work, options);
  }

  /** Whether a view of it was transferred: its new owner can then access the memory for good. */
  get escaped(): boolean {
    const views = this.#views;
    const moved = views instanceof Views ? views.escaped : views.length === 0;
    return moved || this.#forDevices?.escaped === true || this.handedOut.escaped;
  }

  /** @internal Notes that something unknown can access it for ever. */
  escape(): void {
    this.handedOut.escape();
  }

  /** @internal Other threads had views of it, and have let go of it. */
  shared(share: Share): void {
    this.handedOut.shared(share);
  }

  /** Why a pin keeps it from being unregistered now; `undefined` if it is not pinned. */
  get pinned(): string | undefined {
    return this.#pins.reason;
  }

  /**
   * Pins the memory while its views are in use: unregistering fails with EBUSY until the pin is disposed of.
   *
   * @param reason is shown in that error
   */
  pin(reason = 'a running transfer'): Pin {
    this.#mustBeRegistered('pin');
    mustBeString(reason, 'the reason of a pin', 'pin');
    return this.#pins.add(reason);
  }

  /**
   * What another thread needs to use the memory: send it there by `postMessage` or as `workerData`, any number of times, and give it to
   * `attach`. While a thread has it, `unregister` is EBUSY and names the thread.
   *
   * @throws DmaError EINVAL if it was unregistered, or is a Buffer of a worker, which ends with that worker; ENOTSUP where system calls
   *   are not available
   */
  share(): Shared<AttachedMemory> {
    const operation = 'share';
    this.#mustBeRegistered(operation);
    if (this.#share?.open === true) return this.#share.description;
    const { area } = this;
    const { range, label } = area;
    const { shares } = this.#index;
    if (shares === undefined) throw notShareable(operation);
    if (this.source === 'buffer' && this.#keepers === undefined && !isMainThread)
      throw invalid(operation, `${label} is a Buffer of this worker thread, and ends with it`, {
        range,
        hint: 'share what external.allocate returns, or register a SharedArrayBuffer',
      });
    const viewsAt = this.#views instanceof PrivateViews ? this.#views.place : undefined;
    const facts: MemoryFacts = { label, va: range.start, length: range.length, iova: area.iovaOf(range), viewsAt };
    const vas = viewsAt === undefined ? [range.start] : [range.start, viewsAt];
    this.#share = shares.add({ kind: 'memory', what: label, facts: { ...facts }, vas, keepers: this.#keepers });
    return this.#share.description;
  }

  /**
   * Unregisters the memory, detaches its views, and releases what the library had allocated for it (its mapping, its
   * descriptor). The bytes of a Buffer or of `fromAddress` stay unchanged.
   *
   * If views were created, the memory is freed at once, but its addresses are reused only after the views were
   * collected, so that a view that is still in use never accesses other memory; `External.retired` has the figures.
   *
   * @throws DmaError EBUSY while it is mapped for a device (the error names the devices), a view is pinned, or another
   *   thread has attached to it (the error names that), and if too many addresses wait for views to be collected; EINVAL if it was unregistered before; ENOMEM if the system can
   *   not free it now (`vm.max_map_count`). After ENOMEM it is still registered, its views are empty, and the call can
   *   be repeated
   */
  unregister(): void {
    this.#mustBeIdle('unregister');
    this.#detach();
    this.#giveBack();
    this.#index.remove(this.area);
    this.#end('unregister');
  }

  /**
   * As {@link ExternalMemory.unregister}, without blocking the event loop: other threads free the pages. From the call
   * on it can not be used for anything new. If it fails, the state is as after a failed `unregister`, and its content
   * may be lost.
   *
   * @throws DmaError as `unregister`
   */
  async unregisterAsync(): Promise<void> {
    const operation = 'unregisterAsync';
    this.#mustBeIdle(operation);
    this.#detach();
    this.#index.remove(this.area);
    this.#leaving = true;
    try {
      await this.#running.run(undefined, operation, async () => {
        if (!this.contentStays) await this.#empty?.later(UNATTENDED);
      });
      this.#giveBack();
    } catch (error) {
      this.#index.add(this.area, operation);
      throw error;
    } finally {
      this.#leaving = false;
    }
    this.#end(operation);
  }

  #mustBeIdle(operation: string): void {
    this.#mustBeRegistered(operation);
    const { area, pinned } = this;
    const { range } = area;
    if (area.holders.size > 0) {
      const reason = `${area.label} is mapped by ${[...area.holders.keys()].join(', ')}`;
      const hint =
        area.owner === 'heap' ? `${pinned ?? 'it is in a heap'}: removeMemory first` : 'unmap it there first';
      throw new DmaError({ code: 'EBUSY', operation, range, reason, hint });
    }
    if (pinned !== undefined) throw pinnedError(operation, area.label, pinned, range);
    if (this.#share === undefined) return;
    this.#share.end(operation);
    if (this.#views instanceof PrivateViews) this.#views.shared(this.#share);
    else this.handedOut.shared(this.#share);
    this.#share = undefined;
  }

  /** If this throws, a view could still access the memory, so it must stay. */
  #detach(): void {
    if (this.#views instanceof Views) this.#views.detach();
    this.#forDevices?.detach();
  }

  /** Completes the removal. */
  #end(operation: string): void {
    this.#registered = false;
    this.area.registration = undefined;
    const errors = undoAll(this.#release);
    this.area.gone();
    // Notified last: the listener may reuse the addresses.
    this.#registry.gone(this);
    throwFirst(errors, operation);
  }

  /** Unregisters it, unless it was unregistered before. @throws DmaError EBUSY as {@link ExternalMemory.unregister} */
  [Symbol.dispose](): void {
    if (this.#registered) this.unregister();
  }

  #mustBeRegistered(operation: string): void {
    const { area } = this;
    const { range } = area;
    if (this.#leaving) {
      const hint = 'await the result of unregisterAsync';
      throw new DmaError({ code: 'EBUSY', operation, range, reason: `${area.label} is being unregistered`, hint });
    }
    if (!this.#registered) throw ended(operation, `${area.label} is not registered any more`, 'memory.live', { range });
  }
}

shortForm(ExternalMemory, 'ExternalMemory', ({ area, live }) => ({
  label: area.label,
  va: hex(area.range.start),
  length: area.range.length,
  live,
}));

/**
 * The registered memory, in the order of registration. The newest one is kept beside the Set: if one memory is
 * registered and unregistered repeatedly, the Set stays unchanged. V8 would reallocate a Set each time it becomes
 * empty.
 */
class Registered implements Iterable<ExternalMemory> {
  readonly #older = new Set<ExternalMemory>();
  #youngest: ExternalMemory | undefined;

  add(memory: ExternalMemory): void {
    if (this.#youngest !== undefined) this.#older.add(this.#youngest);
    this.#youngest = memory;
  }

  delete(memory: ExternalMemory): void {
    if (memory === this.#youngest) this.#youngest = undefined;
    else this.#older.delete(memory);
  }

  *[Symbol.iterator](): Generator<ExternalMemory, void> {
    yield* this.#older;
    if (this.#youngest !== undefined) yield this.#youngest;
  }
}

/** The external memory of one `Eal`: registers it, and lists what is registered. */
export class External implements Iterable<ExternalMemory> {
  /** @internal */
  readonly stays = STAYS;
  readonly #platform: Platform;
  readonly #index: AreaIndex;
  readonly #live = new Registered();
  readonly #registry: Registry = {
    gone: (memory) => {
      this.#live.delete(memory);
      this.#changed('unregistered', memory);
    },
  };
  readonly #changed: (change: 'registered' | 'unregistered', memory: ExternalMemory) => void;
  readonly #origins: OriginNotes;
  readonly #gate: Gate;
  readonly #ordinary: OrdinaryMemory;
  readonly #running: RunningWorks;

  /**
   * @internal @param changed called after every registration and removal
   * @param origins whether to note where each was registered. Default: as `EalOptions.origins`
   * @param gate called before each registration
   * @param running cancels long work when the Eal stops. Default: nothing does
   */
  constructor(
    platform: Platform,
    index: AreaIndex,
    changed: (change: 'registered' | 'unregistered', memory: ExternalMemory) => void = () => undefined,
    origins?: boolean,
    gate: Gate = open,
    running = new RunningWorks(),
  ) {
    this.#gate = gate;
    this.#running = running;
    this.#origins = new OriginNotes(origins);
    this.#platform = platform;
    this.#ordinary = new OrdinaryMemory(platform);
    this.#index = index;
    this.#changed = changed;
  }

  /**
   * Addresses of memory that was freed while views of it existed, in this thread (also of other `Eal`s). Addresses that
   * wait are released after the views were collected. Addresses that escaped stay in use, because a view was
   * transferred.
   */
  get retired(): {
    /** Released after their views were collected. */
    readonly waiting: { readonly ranges: number; readonly bytes: number };
    /** A view was transferred: they stay in use until the process ends. */
    readonly escaped: { readonly ranges: number; readonly bytes: number };
  } {
    return retired.facts();
  }

  /** All registered memory, in the order of registration. */
  [Symbol.iterator](): IterableIterator<ExternalMemory> {
    return this.#live[Symbol.iterator]();
  }

  /**
   * Allocates at least `length` zeroed bytes, rounded up to whole pages, and registers them; they are freed when
   * unregistered. All pages are allocated when this returns, unless `populate` is false.
   *
   * @param length bytes
   * @throws DmaError EINVAL for an impossible length, page size, alignment, node or table; ENOMEM if the system has not
   *   enough such memory, with figures; EMFILE if the process can open no more descriptors (each memfd uses one);
   *   ENOTSUP if memory of that kind is not available, such as hugepages of a size that the machine does not support
   */
  allocate(length: number, options?: AllocateOptions): ExternalMemory {
    const operation = 'external.allocate';
    this.#gate(operation);
    const origin = this.#origins.note(this.allocate);
    return runSteps(this.#allocating(length, options, origin, operation), (step) => step.now());
  }

  /**
   * As {@link External.allocate}, without blocking the event loop: pages are allocated on other threads, several pieces
   * at a time, with progress.
   *
   * @throws DmaError as `allocate`; ECANCELED if `options.signal` is aborted or the Eal stops, within one piece: then
   *   everything is undone
   */
  async allocateAsync(length: number, options: AllocateOptions & LongWorkOptions = {}): Promise<ExternalMemory> {
    const operation = 'external.allocateAsync';
    return this.#later(operation, this.allocateAsync, options, (checked, origin) =>
      this.#allocating(length, checked, origin, operation),
    );
  }

  /**
   * Allocates memory without blocking the event loop.
   *
   * @param call the function that the program called, named by `operation`: the origin of the memory is its caller
   */
  async #later<T extends LongWorkOptions>(
    operation: string,
    call: (...args: never[]) => unknown,
    asked: T,
    getting: (options: Omit<T, keyof LongWorkOptions>, origin: Origin | undefined) => Steps<LongStep, ExternalMemory>,
  ): Promise<ExternalMemory> {
    this.#gate(operation);
    const [{ onProgress, signal }, options] = longWorkOf(asked, operation);
    const origin = this.#origins.note(call);
    return this.#running.run(signal, operation, async (either) => {
      const work = followedBy({ onProgress, signal: either });
      return runStepsAsync(getting(options, origin), (step) => step.later(work));
    });
  }

  *#allocating(
    length: number,
    asked: AllocateOptions | undefined,
    origin: Origin | undefined,
    operation: string,
  ): Steps<LongStep, ExternalMemory> {
    mustBeNumber(length, 'the length', operation);
    const options: AllocateOptions = optionsOf(asked, ALLOCATE_OPTIONS, operation);
    const { memory, files } = this.#platform;
    const { limitation } = this.#platform;
    const { hugePageSize, source = limitation === undefined ? 'memfd' : 'anonymous' } = options;
    const { node = -1, populate = limitation === undefined } = options;
    const pageSize = hugePageSize ?? memory.pageSize;
    const { align = pageSize } = options;
    if (!isPowerOfTwo(pageSize)) throw noPageSize(pageSize, operation);
    if (!isPowerOfTwo(align))
      throw invalid(operation, `an alignment of ${align} bytes is not a power of two`, {
        hint: 'leave it out to align to pages, or use a larger power of two such as 2 * MiB or GiB',
      });
    if (!isAddress(length) || length === 0 || !isAddress(length + pageSize + align)) {
      const hint = `use a whole number of bytes, 1 or more; it is rounded up to pages of ${formatSize(pageSize)}`;
      throw invalid(operation, `a length of ${length} bytes is not possible`, { hint });
    }
    const whole = alignUp(length, pageSize);
    const release: (() => void)[] = [];
    try {
      if (hugePageSize !== undefined) this.#checkHugePageSize(hugePageSize, operation);
      this.#checkNode(node, operation);
      if (populate && pageSize === memory.pageSize) this.#ordinary.check(whole, node, operation);
      let backing: Backing | undefined;
      if (source === 'memfd') {
        const fd = memory.memfd({ name: 'anydma', length: whole, hugePageSize });
        release.unshift(() => files.close(fd));
        backing = { fd, offset: 0 };
      }
      // A hugetlb memfd has its page size already.
      const what = backing === undefined ? { length: whole, hugePageSize } : { length: whole, fd: backing.fd };
      const va = align > pageSize ? this.#mapAligned(what, align, operation) : memory.map(what);
      const range = new Range(va, whole, operation);
      const empty = emptying(this.#platform, range, pageSize, backing);
      try {
        if (populate) yield* settling(this.#platform, this.#ordinary, { va, length: whole, pageSize, node }, operation);
        else if (node !== -1) memory.bind(va, whole, node);
        const extra = { backing, empty, release, origin, operation, owned: true };
        return this.#register(source, range, registering(options, pageSize), extra);
      } catch (error) {
        yield empty;
        throw withUndo(error, operation, undoAll([() => memory.unmap(va, whole)]));
      }
    } catch (error) {
      const failure = withUndo(error, operation, undoAll(release));
      if (failure.code === 'EMFILE') throw failure.with({ operation, hint: this.#descriptorHint() ?? failure.hint });
      if (hugePageSize === undefined) throw failure;
      throw explainShortage(this.#platform, failure, { length: whole, pageSize, node }, operation);
    }
  }

  /**
   * Registers memory that is a memfd or file. The descriptor is duplicated; the caller keeps its own.
   *
   * Memory that others can truncate is not safe to access: an access beyond the new end kills the process (SIGBUS).
   * Seal memfds (F_SEAL_SHRINK), and do not truncate files while they are registered. Holes of the file are allocated
   * first, so that accessing them is safe; see {@link AllocateOptions.populate}.
   *
   * @throws DmaError EINVAL: not a file or memfd, offset or length not a multiple of the page size (hugetlbfs has
   *   larger pages), the range not inside the file, impossible page size or table; EACCES: writable requested for a
   *   read-only descriptor; ENOSPC, ENOMEM: no space for the holes of the file, with figures; EBADF
   */
  fromFd(fd: number, options?: FromFdOptions): ExternalMemory {
    const operation = 'external.fromFd';
    this.#gate(operation);
    const origin = this.#origins.note(this.fromFd);
    return runSteps(this.#fromFd(fd, options, origin, operation), (step) => step.now());
  }

  /**
   * As {@link External.fromFd}, without blocking the event loop: holes and pages are allocated on other threads, piece
   * by piece, with progress. The descriptor is duplicated before this returns.
   *
   * @throws DmaError as `fromFd`; ECANCELED if `options.signal` is aborted or the Eal stops, within one piece: then
   *   nothing is registered. Holes that were allocated stay allocated, which changes no byte of the file
   */
  async fromFdAsync(fd: number, options: FromFdOptions & LongWorkOptions = {}): Promise<ExternalMemory> {
    const operation = 'external.fromFdAsync';
    return this.#later(operation, this.fromFdAsync, options, (checked, origin) =>
      this.#fromFd(fd, checked, origin, operation),
    );
  }

  *#fromFd(
    fd: number,
    asked: FromFdOptions | undefined,
    origin: Origin | undefined,
    operation: string,
  ): Steps<LongStep, ExternalMemory> {
    mustBeDescriptor(fd, operation);
    const options: FromFdOptions = optionsOf(asked, FD_OPTIONS, operation);
    const { memory, files } = this.#platform;
    const status = statusOf(this.#platform, fd, operation);
    const { offset = 0, writable = status.writable, pageSize = status.pageSize, populate = true } = options;
    const length = options.length ?? alignUp(Math.max(status.size - offset, 0), status.pageSize);
    checkFilePart(status, offset, length, operation);
    if (writable && !status.writable) {
      const reason = `descriptor ${fd} is open for reading only`;
      throw new DmaError({ code: 'EACCES', operation, reason, hint: 'open it read-write, or pass writable: false' });
    }
    if (!status.readable) {
      const reason = `descriptor ${fd} is open for writing only, but memory must be readable`;
      throw new DmaError({
        code: 'EACCES',
        operation,
        reason,
        hint: "open it for reading and writing, as with fs.openSync(path, 'r+')",
      });
    }
    const release: (() => void)[] = [];
    try {
      const own = files.duplicate(fd);
      release.unshift(() => files.close(own));
      const platform = this.#platform;
      const isReady =
        !populate ||
        (writable
          ? yield* fillingHoles(platform, this.#ordinary, own, status, { offset, length }, operation)
          : !readsNeedPages(platform, own, status));
      const va = mapFile(memory, { length, fd: own, offset, readOnly: !writable }, fd, operation);
      const range = new Range(va, length, operation);
      const views = writable
        ? undefined
        : new PrivateViews(memory, range, () => this.#mapPrivately(own, offset, length, status));
      const extra = { backing: { fd: own, offset }, release, origin, operation, writable, owned: true, views };
      try {
        if (!isReady) {
          const access = writable ? 'write' : 'read';
          const pages = { va, length, pageSize: status.pageSize, node: -1, access, fd: own } as const;
          yield* settling(platform, this.#ordinary, pages, operation);
        }
        return this.#register('file', range, registering(options, pageSize), extra);
      } catch (error) {
        throw withUndo(error, operation, undoAll([() => memory.unmap(va, length)]));
      }
    } catch (error) {
      const failure = withUndo(error, operation, undoAll(release));
      throw failure.code === 'EMFILE'
        ? failure.with({ operation, hint: this.#descriptorHint() ?? failure.hint })
        : failure;
    }
  }

  /**
   * Registers a page-aligned part of an existing Buffer, typed array or ArrayBuffer. It stays alive while it is
   * registered; do not transfer or detach its ArrayBuffer meanwhile.
   *
   * @throws DmaError EINVAL if it does not begin and end on page boundaries (`registerPagesOf` registers the pages
   *   inside), or for a resizable ArrayBuffer, whose memory can go away
   */
  register(view: ArrayBufferView | ArrayBufferLike, options?: RegisterOptions): ExternalMemory {
    const operation = 'external.register';
    this.#gate(operation);
    checkView(view, operation);
    const checked: RegisterOptions = optionsOf(options, REGISTER_OPTIONS, operation);
    const va = this.#platform.memory.addressOf(view);
    const bytes = bytesOf(view);
    if ((bytes.buffer as { resizable?: boolean }).resizable === true)
      throw invalid(operation, 'the memory of a resizable ArrayBuffer can go away while a device uses it');
    const range = new Range(va, bytes.byteLength, operation);
    const { pageSize = this.#platform.memory.pageSize } = checked;
    if (isPowerOfTwo(pageSize) && !range.isAligned(pageSize)) throw misalignedView(range, pageSize, operation);
    return this.#register('buffer', range, registering(checked, pageSize), { bytes, operation });
  }

  /**
   * Registers the whole pages inside an existing Buffer, typed array or ArrayBuffer, wherever it begins and ends; else
   * as `register`.
   *
   * @returns the memory, and `view`: its pages as a part of the argument, the same bytes as `memory.bytes()`. Disposing
   *   the result unregisters the memory
   * @throws DmaError EINVAL if it contains no whole page, or for an impossible page size; EINVAL as `register`
   */
  registerPagesOf(
    view: ArrayBufferView | ArrayBufferLike,
    options?: RegisterOptions,
  ): { readonly memory: ExternalMemory; readonly view: Uint8Array } & Disposable {
    const operation = 'external.registerPagesOf';
    this.#gate(operation);
    checkView(view, operation);
    const checked: RegisterOptions = optionsOf(options, REGISTER_OPTIONS, operation);
    const va = this.#platform.memory.addressOf(view);
    const bytes = bytesOf(view);
    const { pageSize = this.#platform.memory.pageSize } = checked;
    if (!isPowerOfTwo(pageSize)) throw noPageSize(pageSize, operation);
    const range = new Range(va, bytes.length, operation);
    const inside = range.alignedInside(pageSize);
    if (inside === undefined) {
      const reason = `the ${bytes.length} bytes at ${hex(va)} contain no whole page of ${formatSize(pageSize)}`;
      const hint = `${formatSize(2 * pageSize)} less 1 byte always contain one; external.allocate returns whole pages`;
      throw invalid(operation, reason, { range, hint });
    }
    const from = inside.start - va;
    const pages = bytes.subarray(from, from + inside.length);
    const memory = this.register(pages, checked);
    return { memory, view: pages, [Symbol.dispose]: () => memory[Symbol.dispose]() };
  }

  /**
   * Registers memory that is mapped at `va` already, by any means. The caller owns it, and must keep it mapped.
   *
   * @param options.writable whether it may be written. Default true. Give false for memory that is mapped read-only:
   *   devices may then only read it, and a store through a view of it kills the process, as it would in C
   * @throws DmaError EINVAL for address 0, or if it is not on page boundaries; EFAULT if not all of it is mapped in
   *   this process
   */
  fromAddress(va: VaLike, length: number, options?: RegisterOptions & { readonly writable?: boolean }): ExternalMemory {
    const operation = 'external.fromAddress';
    this.#gate(operation);
    const checked = optionsOf(options, ADDRESS_OPTIONS, operation);
    const range = rangeAt(va, length, operation);
    const { pageSize = this.#platform.memory.pageSize, writable = true } = checked;
    if (isPowerOfTwo(pageSize) && range.isAligned(pageSize)) {
      const allowed = this.#platform.memory.protection(range.start, length);
      if (allowed === 'none' || (writable && allowed === 'read')) {
        const reason = allowed === 'none' ? 'not all of it is mapped readable' : 'some of it is not writable';
        const hint =
          allowed === 'none'
            ? '/proc/self/maps lists what is mapped; external.allocate allocates new memory'
            : 'pass writable: false; devices may then only read it';
        throw new DmaError({ code: 'EFAULT', operation, range, reason, hint });
      }
    }
    return this.#register('address', range, registering(checked, pageSize), { operation, writable });
  }

  /**
   * @internal Why this memory can not be handed over to another process, as a clause; `undefined` if it can.
   */
  static handOverObstacle({ area, source, pinned }: ExternalMemory): string | undefined {
    const { label } = area;
    if (area.owner !== 'external') return `${label} is in a heap, and heaps can not be handed over`;
    if (area.backing === undefined || source === 'buffer' || source === 'address')
      return `${label} has no descriptor, so that another process can not have it`;
    return pinned === undefined ? undefined : `${label} is pinned: ${pinned}`;
  }

  /** @internal What another process needs to have this memory at the same addresses, besides its descriptor. */
  static handOver({ area, source }: ExternalMemory): JsonObject {
    const { range, pageSize, label, node, writable, iovas, backing } = area;
    return {
      ...{ va: range.start, length: range.length, source, pageSize, label, writable, node: node < 0 ? null : node },
      ...{ offset: backing?.offset ?? 0, iovas: iovas === undefined ? null : [...iovas] },
    };
  }

  /**
   * @internal Registers memory that another process has handed over, at the same addresses.
   *
   * @param fd its descriptor, which belongs to the memory from now on, also if this throws
   * @throws DmaError EEXIST if something of this process is at these addresses; ENOMEM; EPROTO
   */
  takeOver(state: Fields, fd: number): ExternalMemory {
    const operation = 'takeOver';
    const { memory, files } = this.#platform;
    const release = [() => files.close(fd)];
    try {
      const range = new Range(state.number('va') as Va, state.number('length'), operation);
      const source = state.word('source', ['memfd', 'file']);
      const [offset, pageSize, writable] = [
        state.number('offset'),
        state.number('pageSize'),
        state.boolean('writable'),
      ];
      const node = state.has('node') ? state.number('node') : undefined;
      const iovas = state.has('iovas') ? state.numbers('iovas') : undefined;
      const { start, length } = range;
      memory.reserveAt(start, length);
      try {
        memory.commit(start, { length, fd, offset, writable });
        const backing = { fd, offset };
        const views = writable
          ? undefined
          : new PrivateViews(memory, range, () => this.#mapPrivately(fd, offset, length, files.status(fd)));
        const empty = source === 'memfd' ? emptying(this.#platform, range, pageSize, backing) : undefined;
        return this.#register(
          source,
          range,
          { pageSize, iovas, node, label: state.string('label') },
          { backing, release, operation, writable, owned: true, views, empty },
        );
      } catch (error) {
        throw withUndo(error, operation, undoAll([() => memory.unmap(start, length)]));
      }
    } catch (error) {
      throw withUndo(error, operation, undoAll(release));
    }
  }

  /**
   * Unregisters by address, for callers that have no handle.
   *
   * @throws DmaError EINVAL for an impossible range; ENOENT unless exactly that range is registered as external memory;
   *   EBUSY as {@link ExternalMemory.unregister}
   */
  unregister(part: MemoryPart): void {
    const operation = 'external.unregister';
    const range = rangeOf(part, operation);
    const memory = this.#exactly(range);
    if (memory !== undefined) return memory.unregister();
    const near = this.#index.at(range.start);
    throw new DmaError({
      code: 'ENOENT',
      operation,
      range,
      reason: 'no external memory is exactly this range',
      hint:
        near === undefined
          ? 'nothing is registered there: it was unregistered, or never registered (iterate eal.external to list all)'
          : `the ${near.owner} area ${near.label} is ${near.range.toString()}`,
    });
  }

  /** The external memory that is exactly this part; `undefined` if there is none. @throws DmaError EINVAL for an impossible range */
  find(part: MemoryPart): ExternalMemory | undefined {
    return this.#exactly(rangeOf(part, 'external.find'));
  }

  #exactly(range: Range<Va>): ExternalMemory | undefined {
    return this.#registeredAs(this.#index.exact(range));
  }

  /** @internal Whether this is registered here now. */
  has(memory: ExternalMemory): boolean {
    return memory.isOf(this.#registry);
  }

  /** @internal The bytes at [va, va + length), if they are all in one external memory. */
  bytesAt(va: Va, length: number): Uint8Array | undefined {
    const area = this.#index.at(va);
    if (area === undefined || va + length > area.range.end) return undefined;
    return this.#registeredAs(area)?.bytesForDevice(va - area.range.start, length);
  }

  #registeredAs(area: Area | undefined): ExternalMemory | undefined {
    const memory = area?.registration;
    return memory instanceof ExternalMemory && memory.isOf(this.#registry) ? memory : undefined;
  }

  /** Maps at a multiple of `align` bytes. */
  #mapAligned(what: CommitOptions, align: number, operation: string): Va {
    const { memory } = this.#platform;
    const va = memory.reserve(what.length, align);
    try {
      memory.commit(va, what);
      return va;
    } catch (error) {
      throw withUndo(error, operation, undoAll([() => memory.unmap(va, what.length)]));
    }
  }

  /** The private copy that the program can store to, for a file that it may not write. */
  #mapPrivately(fd: number, offset: number, length: number, { pageSize }: FileStatus): Range<Va> {
    const { memory } = this.#platform;
    const va = memory.map({ length, fd, offset, writable: false });
    if (pageSize === memory.pageSize) return new Range(va, length);
    try {
      settle(this.#platform, this.#ordinary, { va, length, pageSize, node: -1, fd }, 'bytes');
      return new Range(va, length);
    } catch (error) {
      throw withUndo(error, 'bytes', undoAll([() => memory.unmap(va, length)]));
    }
  }

  #register(
    source: ExternalMemory['source'],
    range: Range<Va>,
    options: RegisterOptions & { pageSize: number },
    extra: {
      operation: string;
      backing?: Backing;
      empty?: LongStep;
      /** Whether it is noted already. */
      origin?: Origin;
      bytes?: Uint8Array;
      views?: PrivateViews;
      writable?: boolean;
      release?: readonly (() => void)[];
      /** Whether the library made the mapping. */
      owned?: boolean;
    },
  ): ExternalMemory {
    const { backing, writable, bytes, release = [], operation, owned = false } = extra;
    const { pageSize, iovas, node } = options;
    const label = options.label ?? (() => `${source} memory at ${hex(range.start)}`);
    this.#checkNode(node ?? -1, operation);
    const area = new Area({ range, pageSize, owner: 'external', label, node, writable, iovas, backing }, operation);
    this.#index.add(area, operation);
    if (bytes !== undefined) area.isEmptied = () => bytes.length === 0;
    const port = this.#platform.memory;
    const handedOut = new HandedOut();
    const views = bytes ?? extra.views ?? new Views(port, range.start, range.length, handedOut);
    const giveBack = (): void => {
      extra.views?.unmap();
      if (owned) giveMappingBack(port, range, handedOut);
    };
    const origin = 'origin' in extra ? extra.origin : this.#origins.note(this.#register);
    const keepers = bytes !== undefined && isSharedArrayBuffer(bytes.buffer) ? [bytes.buffer] : undefined;
    const parts = { area, source, views, handedOut, empty: extra.empty, giveBack, release, origin, keepers };
    const memory = new ExternalMemory(parts, this.#index, this.#running, this.#registry);
    this.#live.add(memory);
    this.#changed('registered', memory);
    return memory;
  }

  /** Throws ENOTSUP if the kernel has no hugepages of that size. */
  #checkHugePageSize(pageSize: number, operation: string): void {
    const { kernel, limitation } = this.#platform;
    if (limitation !== undefined) throw new DmaError({ code: 'ENOTSUP', operation, reason: limitation });
    checkHugePageSizes([pageSize], new HugePages(kernel).pageSizes(), operation);
  }

  /** Throws EINVAL if the NUMA node does not exist; -1 stands for any. */
  #checkNode(node: number, operation: string): void {
    if (node === -1) return;
    const nodes = new HugePages(this.#platform.kernel).nodes();
    if (nodes.includes(node)) return;
    throw invalid(operation, `there is no NUMA node ${node}`, { hint: `the nodes are: ${nodes.join(', ')}` });
  }

  /** The hint if no descriptors are left; `undefined` if registered memory does not use them. */
  #descriptorHint(): string | undefined {
    const held = [...this.#live].filter(({ fd }) => fd !== undefined).length;
    if (held === 0) return undefined;
    return (
      `${held} piece${held === 1 ? '' : 's'} of registered memory ${held === 1 ? 'holds' : 'hold'} a descriptor each: raise the limit ("ulimit -n"), take one larger piece ` +
      "(a heap over it hands out parts), or pass source: 'anonymous', which takes none"
    );
  }
}

shortForm(External, 'External', (external) => ({ live: [...external].length }));

/**
 * The common options of all ways to register, with the page size. (V8 would create a new object shape for each
 * `registering(options, pageSize)`.)
 */
function registering(
  { iovas, node, label }: RegisterOptions,
  pageSize: number,
): RegisterOptions & { readonly pageSize: number } {
  return { pageSize, iovas, node, label };
}

function checkView(view: unknown, operation: string): void {
  if (!ArrayBuffer.isView(view) && !isArrayBuffer(view) && !isSharedArrayBuffer(view))
    throw invalid(operation, `expected a Buffer, typed array or ArrayBuffer, not ${show(view)}`, {
      hint: 'external.fromFd takes descriptors, external.fromAddress addresses',
    });
}

function bytesOf(view: ArrayBufferView | ArrayBufferLike): Uint8Array {
  if (!ArrayBuffer.isView(view)) return new Uint8Array(view);
  return new Uint8Array(view.buffer, view.byteOffset, view.byteLength);
}

function rangeAt(va: VaLike, length: number, operation: string): Range<Va> {
  if (va === 0)
    throw invalid(operation, 'there is no memory at address 0', {
      hint: 'check whether the call that mapped it failed',
    });
  return new Range(va as Va, length, operation);
}

/** Discards the pages of new memory (of a memfd or anonymous), piece by piece on another thread. */
function emptying({ memory, files }: Platform, range: Range<Va>, pageSize: number, backing?: Backing): LongStep {
  const piece = async (offset: number, bytes: number): Promise<void> => {
    const at = (range.start + offset) as Va;
    const dropped = backing === undefined ? memory.dropAsync(at, bytes) : files.punchAsync(backing.fd, offset, bytes);
    // Pages that can not be discarded now are freed with the memory.
    await dropped.catch(() => undefined);
  };
  return dropStep(range.length, pageSize, piece);
}

function mustBeDescriptor(fd: unknown, operation: string): void {
  if (typeof fd === 'number' && Number.isInteger(fd) && Math.abs(fd) < 2 ** 31) return;
  const hint = "pass a number, such as fs.openSync(path, 'r+') returns, or the property fd of a FileHandle";
  throw invalid(operation, `${show(fd)} is not a file descriptor`, { hint });
}

/** The kind of a descriptor. @throws DmaError EBADF if it is not open */
function statusOf({ files }: Platform, fd: number, operation: string): FileStatus {
  try {
    return files.status(fd);
  } catch (cause) {
    if (!isDmaError(cause, 'EBADF')) throw cause;
    const reason = fd < 0 ? `${fd} is the number of no descriptor` : `this process has no descriptor ${fd}`;
    const hint =
      fd < 0
        ? 'calls that open a file return 0 or more, and -1 when they failed'
        : 'it was closed, or is one of another process: keep the FileHandle, which is closed when it is collected, until this returns';
    throw new DmaError({ code: 'EBADF', operation, reason, hint, cause });
  }
}

/**
 * Allocates storage for the holes of a file, so that a later store does not find the file system full.
 *
 * @returns false if that is not possible here; then only populating the pages shows whether there is space
 * @throws DmaError ENOSPC if the file system has no space left; ENOMEM if it is in memory, and there is no memory left
 */
function* fillingHoles(
  { files }: Platform,
  room: OrdinaryMemory,
  fd: number,
  { size, allocated, pageSize }: FileStatus,
  part: { readonly offset: number; readonly length: number },
  operation: string,
): Steps<LongStep, boolean> {
  const length = Math.min(part.length, size - part.offset);
  if (allocated >= size || length <= 0) return true;
  const fileSystem = files.fileSystem(fd);
  if (fileSystem.kind === 'hugetlbfs') return false;
  const least = Math.max(0, length - allocated);
  const figures = `${formatSize(fileSystem.left)} of its ${formatSize(fileSystem.size)} are left`;
  const full = (cause?: unknown): DmaError =>
    new DmaError({
      code: 'ENOSPC',
      operation,
      reason: `the file has holes, and its file system has no space for the missing ${formatSize(least)}`,
      hint: `${figures}; with populate: false it is registered as it is, and a store that finds no space then kills the process`,
      cause,
    });
  if (least > alignUp(fileSystem.left, pageSize)) throw full();
  if (fileSystem.kind === 'tmpfs') room.check(least, -1, operation);
  const piece = async (at: number, bytes: number): Promise<void> =>
    files.allocateRangeAsync(fd, part.offset + at, bytes);
  try {
    yield {
      now: () => files.allocateRange(fd, part.offset, length),
      // One at a time: the kernel locks the file.
      later: async ({ signal, report }) => {
        const done = (bytes: number): void => report(bytes, length);
        await inLanes({ length, lanes: 1, pace: new Pace(pageSize), signal, operation, piece, done });
      },
    };
    return true;
  } catch (error) {
    if (isDmaError(error, 'ENOSPC')) throw full(error);
    // A file system without fallocate (or a seal against it): populating allocates the pages.
    if (!isDmaError(error, 'ENOTSUP') && !isDmaError(error, 'EPERM')) throw error;
    return false;
  }
}

/** Whether reading a hole needs memory for new pages: only in file systems that live in memory. Others read zeros. */
function readsNeedPages({ files }: Platform, fd: number, { size, allocated }: FileStatus): boolean {
  return allocated < size && files.fileSystem(fd).kind !== 'other';
}

function checkFilePart(status: FileStatus, offset: number, length: number, operation: string): void {
  const { pageSize } = status;
  if (status.kind !== 'file')
    throw invalid(operation, `the descriptor is a ${status.kind}, not a file or memfd`, {
      hint:
        status.kind === 'directory'
          ? 'open a file in it; external.allocate() makes memory without one'
          : `read the data of the ${status.kind} into the bytes of external.allocate(), which devices can access`,
    });
  if (!isAddress(offset))
    throw invalid(operation, `an offset of ${offset} bytes is not possible`, {
      hint: `use 0 or a multiple of ${pageSize}; the file has ${status.size} bytes`,
    });
  if (offset % pageSize !== 0)
    throw invalid(operation, `offset ${offset} is not a multiple of the page size ${hex(pageSize)}`, {
      hint: `use ${alignDown(offset, pageSize)}; the byte at the offset is then byte ${offset % pageSize} of the memory`,
    });
  if (status.size === 0)
    throw invalid(operation, 'the file is empty', {
      hint: 'fs.ftruncateSync(fd, length) makes it longer; files of /proc are generated when they are read and have no memory',
    });
  if (!isAddress(length) || (length === 0 && offset < status.size))
    throw invalid(operation, `a length of ${length} bytes is not possible`, {
      hint: `use a multiple of ${pageSize}, or leave it out to register the rest of the file; the file has ${status.size} bytes`,
    });
  if (length % pageSize !== 0)
    throw invalid(operation, `a length of ${length} bytes is not a multiple of the page size ${hex(pageSize)}`, {
      hint: `the file has pages of ${formatSize(pageSize)}, which are mapped as a whole: use ${alignUp(length, pageSize)}`,
    });
  if (length === 0 || offset + length > alignUp(status.size, pageSize)) {
    throw invalid(operation, `${length} bytes at offset ${offset} are not inside the file`, {
      hint: `the file has ${status.size} bytes; an access beyond its end would kill the process`,
    });
  }
}

/** Maps a part of a file. @throws DmaError of the system, with a better reason for files that can not be mapped */
function mapFile(
  memory: MemoryPort,
  what: Parameters<MemoryPort['map']>[0],
  fd: number,
  operation: string,
): ReturnType<MemoryPort['map']> {
  try {
    return memory.map(what);
  } catch (error) {
    const told = isDmaError(error) ? WHY_NOT_MAPPED[error.code] : undefined;
    if (!isDmaError(error) || told === undefined) throw error;
    throw error.with({ operation, reason: `descriptor ${fd} ${told.reason}`, hint: told.hint, cause: error });
  }
}

const WHY_NOT_MAPPED: Partial<Record<ErrorCode, { readonly reason: string; readonly hint: string }>> = {
  EBADF: {
    reason: 'was opened with O_PATH, which gives no access to the bytes of the file',
    hint: "open it for reading and writing, as with fs.openSync(path, 'r+')",
  },
  ENODEV: {
    reason: 'is a file of a file system without mmap, such as sysfs',
    hint: 'read it into the bytes of external.allocate(), which devices can access',
  },
  EPERM: {
    reason: 'can not be mapped this way: it is sealed, or its file system forbids it',
    hint: 'a memfd that is sealed against writing can be registered with writable: false',
  },
};

function misalignedView(range: Range<Va>, pageSize: number, operation: string): DmaError {
  const inside = range.alignedInside(pageSize);
  const from = inside === undefined ? 0 : inside.start - range.start;
  return invalid(operation, `the view does not begin and end on ${formatSize(pageSize)} pages`, {
    range,
    hint:
      inside === undefined
        ? 'it contains no whole page; allocate more, or use external.allocate'
        : `bytes ${from} up to ${from + inside.length} of it are on pages: view.subarray(${from}, ${from + inside.length}), or registerPagesOf`,
  });
}
