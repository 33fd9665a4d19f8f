/**
 * The environment abstraction layer (EAL): the object that owns everything else. It opens the platform, connects
 * devices and memory, and releases everything when it stops. A process can have several, which share nothing.
 */
import { EventEmitter } from 'node:events';
import { atExit } from './at-exit.js';
import {
  builtinBuses,
  Container,
  CONTAINER_CHOICES,
  type ContainerChoice,
  type Containers,
  type VdevBus,
} from './bus/builtin.js';
import type { Bus, Device, Driver } from './bus/model.js';
import type { GroupMapping } from './bus/fan-out.js';
import { Registry } from './bus/registry.js';
import type { MapAsyncOptions } from './dma/domain.js';
import type { MapOptions } from './dma/plan.js';
import { builtinDrivers } from './drivers/builtin.js';
import { mustBe, mustBeMs, mustBeObject, optionsOf, reading, type Shape, stopped } from './check.js';
import { DmaError, invalid, isDmaError, NO_PERMISSION, throwFirst, undoAll, unlessFails, withUndo } from './errors.js';
import { forgottenLines, type Forgotten } from './forgotten.js';
import {
  checkLongWork,
  longWorkOf,
  RunningWorks,
  UNATTENDED,
  type LongStep,
  type LongWorkOptions,
} from './long-work.js';
import type { Area } from './memory/area.js';
import { AreaIndex } from './memory/area-index.js';
import { External, type ExternalMemory } from './memory/external.js';
import { Block, type Heap } from './memory/heap/heap.js';
import { MALLOC_OPTIONS, type MallocOptions } from './memory/heap/malloc-request.js';
import { chooseHeaps } from './memory/owned/heap-choice.js';
import { Pools } from './memory/pool/pools.js';
import { Rings } from './memory/pool/rings.js';
import { Zones } from './memory/owned/zones.js';
import { Heaps } from './memory/heap/heaps.js';
import { hasPhysicalAddresses, decideIovaMode, hasIommuGroups, type IovaDecision } from './memory/iova-mode.js';
import type { Holders } from './memory/shared/holders.js';
import { Shares } from './memory/shared/shares.js';
import { MemoryHandlers } from './memory/memory-events.js';
import { memorySettings, START, type MemoryOptions } from './memory/owned/memory-settings.js';
import { OwnedMemory } from './memory/owned/owned.js';
import { captureOrigin, type Origin } from './origin.js';
import { formatSize, isAddress, type Va } from './units.js';
import { openPlatform } from './platform/open.js';
import type { Platform } from './platform/ports.js';
import type { Range } from './ranges.js';
import { Offer, pauseAll, type Successor } from './share/hand-over.js';
import { checkEalName } from './share/places.js';
import { Primary } from './share/primary.js';
import { Secondary, type AttachOptions } from './share/secondary.js';
import { SharedWords } from './share/shared-words.js';
import { continueAll, Taken, type Continued } from './share/take-over.js';
import { AddressWindow } from './share/window.js';
import { shortForm } from './short-form.js';
import { queueMicrotask } from './timers.js';
import type { Paused } from './handed.js';
import type { MemoryPart } from './memory/part.js';
import { STAYS } from './stays.js';

/** Options of {@link Eal.start}, all optional. */
export interface EalOptions extends LongWorkOptions {
  /**
   * Its name for other processes of this user, which attach to it by {@link Eal.attach}: 1 to 31 letters, digits, dots,
   * dashes and underscores. Default: none, and nobody can attach.
   */
  readonly name?: string;
  /**
   * With a name: how long a process that is attached may take to map or unmap memory, in milliseconds, before it is
   * given up. Default 5000.
   */
  readonly secondaryTimeoutMs?: number;
  /** How long a freed IOVA is held back from reuse, in milliseconds. Default 100. */
  readonly holdBackMs?: number;
  /** How many retired mappings `device.explain` remembers. Default 1024. */
  readonly remember?: number;
  /**
   * Whether to note where each mapping was made and each external memory was registered. Noting costs some
   * microseconds. Default: for the first 1000, then for one in 64.
   */
  readonly origins?: boolean;
  /** System calls. Default: this machine's; tests pass others. */
  readonly platform?: Platform;
  /**
   * How PCI devices use the IOMMU, unless their container says otherwise. Default `auto`: iommufd if available, else
   * VFIO's older containers. `noiommu` must be requested: devices can then access all memory of the machine.
   */
  readonly iommu?: ContainerChoice;
  /** Buses in addition to the built-in ones. */
  readonly buses?: readonly Bus[];
  /** Drivers in addition to the built-in ones; they are tried first. */
  readonly drivers?: readonly Driver[];
  /** Memory owned by the library: amount, page size, and where it is. */
  readonly memory?: MemoryOptions;
  /**
   * Called with what the program forgot to unmap or unregister, each with the place that created it. Default: a process
   * warning (code `ANYDMA_FORGOTTEN`). It is released in any case.
   */
  readonly onForgotten?: (forgotten: readonly string[]) => void;
}

/** Options of {@link Eal.takeOver}. */
export interface TakeOverOptions extends Omit<EalOptions, 'name'> {
  /** How long the running program may take for each answer, in milliseconds. Default 30000. */
  readonly timeoutMs?: number;
}

/** Options of {@link Eal.handOver}. */
export interface HandOverOptions {
  /**
   * Called when a program asks, before anything is stopped: the time to finish what should not be handed over. If it throws,
   * nothing is handed over, and the other program gets the error.
   */
  readonly prepare?: (successor: Successor) => void | Promise<void>;
  /** How long the other program may take from its request on, in milliseconds. Default 30000. */
  readonly timeoutMs?: number;
  /** Ends the readiness to hand over, or a hand-over that is not committed. */
  readonly signal?: AbortSignal;
}

/** Events of `Eal.events`, emitted afterwards. */
export interface EalEvents {
  /** A device was probed. */
  probed: [device: Device];
  /** A device reported an error, such as a failed access; it is still usable. See `Device.explainFaults`. */
  failed: [device: Device, error: DmaError];
  /** A device was removed. */
  removed: [device: Device];
  /** A device disappeared; its mappings are gone. */
  lost: [device: Device, error: DmaError];
  /** External memory was registered. */
  registered: [memory: ExternalMemory];
  /** External memory was unregistered. */
  unregistered: [memory: ExternalMemory];
}

/** The environment abstraction layer. Made by {@link Eal.start}; the caller must stop it. */
export class Eal implements AsyncDisposable {
  /** @internal */
  readonly stays = STAYS;
  /** The system calls of this machine. */
  readonly platform: Platform;
  /** External memory, owned by the user: allocate, register and find it. */
  readonly external: External;
  /** Heaps by name: those over external memory, and the library's own. */
  readonly heaps: Heaps;
  /** Named allocations, for callers that know only the name. */
  readonly zones: Zones;
  /** Pools of elements of one size, such as packet buffers. */
  readonly pools: Pools;
  /** Rings of numbers, such as elements of a pool, which pass between threads and processes without a message. */
  readonly rings: Rings;
  /** Memory owned by the library: its use, events and limits. */
  readonly memory: OwnedMemory;
  /** Events of devices and memory. An exception in a listener is uncaught, and does not disturb the library. */
  readonly events: EventEmitter<EalEvents>;
  /** Address spaces of the IOMMU for PCI devices: the default one, and those that the program creates. */
  readonly containers: Containers;
  /** The bus of software devices in this process. */
  readonly vdev: VdevBus;
  readonly #emitter = new EventEmitter<EalEvents>();
  readonly #areas: AreaIndex;
  /** What is shared with other threads. */
  readonly #shares: Shares;
  /** Memory of drivers, such as rings. It is freed with the device, so the program can not forget it. */
  readonly #driverMemory: External;
  readonly #registry: Registry;
  /** The standing mappings of memory of heaps. */
  readonly #reached = new Set<GroupMapping>();
  readonly #onForgotten: ((forgotten: readonly string[]) => void) | undefined;
  /** Asynchronous calls in progress; stopping cancels them. */
  readonly #running = new RunningWorks();
  /** Where in the program each device was probed. */
  readonly #probed = new WeakMap<Device, Origin>();
  readonly #handlers = new MemoryHandlers();
  readonly #window: AddressWindow | undefined;
  readonly #words: SharedWords | undefined;
  #primary: Primary | undefined;
  #offer: Offer | undefined;
  /** Do other processes go on with its memory after it has stopped? */
  #keepsContent = false;
  #forgetExit: () => void = () => undefined;
  /** Why nothing can be called: another process takes everything over, or has done so. */
  #handedOver: DmaError | undefined;
  /** `stop` in progress, or successful. */
  #stopping: Promise<void> | undefined;
  #stopped = false;

  private constructor(options: EalOptions, platform: Platform, window: AddressWindow | undefined) {
    this.platform = platform;
    this.#window = window;
    this.#shares = new Shares(platform);
    this.#areas = new AreaIndex(this.#shares);
    // Memory that other processes map is where they can map it too.
    const placed = window === undefined ? platform : { ...platform, memory: window.memory };
    this.events = this.#emitter;
    this.#onForgotten = options.onForgotten;
    const tellChange = (change: 'registered' | 'unregistered', memory: ExternalMemory): void =>
      this.#tell(change, memory);
    const gate = (operation: string): void => this.#mustRun(operation);
    const running = this.#running;
    this.external = new External(placed, this.#areas, tellChange, options.origins, gate, running);
    this.#driverMemory = new External(placed, this.#areas, undefined, options.origins);
    const settings = memorySettings(options.memory ?? {});
    if (settings.baseAddress !== undefined && options.name === undefined)
      throw invalid(START, 'memory.baseAddress is for an Eal with a name', {
        hint: 'give it a name, so that other processes can attach',
      });
    const own = {
      platform: this.platform,
      areas: this.#areas,
      gate,
      running,
      handlers: this.#handlers,
      reach: (areas: readonly Area[]) => this.#reach(areas),
      reachAsync: (areas: readonly Area[], work: LongWorkOptions) => this.#reachAsync(areas, work),
    };
    const unit = (): number => this.#registry.granule;
    this.memory = new OwnedMemory({
      ...own,
      platform: placed,
      settings,
      decideIova: () => this.#decideIova(settings),
      unit,
    });
    this.heaps = new Heaps({
      ...own,
      iovaMode: () => this.memory.iova.mode,
      origins: settings.origins,
      native: () => this.memory.heaps,
    });
    const sources = { memory: this.memory, heaps: this.heaps, gate, running };
    this.zones = new Zones(sources);
    const words = window === undefined ? undefined : new SharedWords(this.#driverMemory, platform.kernel);
    this.#words = words;
    const holders = (): Holders => words?.holders ?? this.#shares.holders;
    const sharing = { port: platform.memory, holders, words, shares: this.#shares };
    this.pools = new Pools({ ...sources, users: this.#areas.users }, sharing);
    this.rings = new Rings(platform, this.pools, sharing, gate);
    const recover = (id: number): void => {
      this.rings.forget(id);
      this.pools.recoverFrom(id);
    };
    if (words === undefined) this.#shares.addRecovery(recover);
    else {
      // A primary has a second table, which other processes see.
      words.addRecovery(recover);
      this.#shares.alsoReap(() => words.reap());
    }
    this.#registry = new Registry({
      ...options,
      areas: this.#areas,
      limits: this.platform.limits,
      pages: this.platform.memory,
      context: { external: this.#driverMemory, shares: this.#shares, rings: this.rings, platform: this.platform },
      changed: (change, device, error) => {
        if (change === 'probed' || change === 'removed') this.#tell(change, device);
        else if (error !== undefined) this.#tell(change, device, error);
      },
    });
    const { buses, vdev, containers } = builtinBuses({
      platform: this.platform,
      iommu: options.iommu,
      gate,
      domainOf: (space) => this.#registry.domainOf(space),
      bytesAt: (va, length, access) => this.#bytesAt(va, length, access),
    });
    this.vdev = vdev;
    this.containers = containers;
    for (const bus of [...buses, ...(options.buses ?? [])]) this.#registry.registerBus(bus);
    for (const driver of [...(options.drivers ?? []), ...builtinDrivers]) this.#registry.registerDriver(driver);
    this.#forgetExit = atExit(() => this.#report(tell, [...this.#devicesLeft()]));
  }

  /**
   * Starts an Eal. Stop it with {@link Eal.stop}, or declare it with `await using`.
   *
   * It also starts where system calls are not available (no Linux, no koffi binary): devices in this process work,
   * everything else throws ENOTSUP with the reason in `platform.limitation`.
   *
   * @throws DmaError EEXIST, EINVAL for buses and drivers that can not be registered; EINVAL for invalid memory
   * options; ENOMEM if the initial memory is not available; with a name: EADDRINUSE if another process of this user has
   * it, EEXIST if the addresses for its memory are taken, EACCES if the folder of sockets is not this user's alone,
   * ENOTSUP in a worker thread and without system calls
   */
  static async start(options?: EalOptions): Promise<Eal> {
    const checked = checkedOptions(options);
    const platform = checked.platform ?? openPlatform();
    const eal = Eal.#make(checked, platform);
    try {
      eal.#becomePrimary(checked);
      await eal.memory.startAsync(checked);
      return eal;
    } catch (error) {
      const undo = await eal.stop().then(
        () => [],
        (failure: unknown) => [failure],
      );
      throw withUndo(error, START, undo);
    }
  }

  /**
   * Attaches to the Eal of that name in another process of this user: its memory is then mapped here at the same
   * addresses, and everything else is asked of it. Close the result, or declare it with `await using`.
   *
   * @param name what `Eal.start({ name })` was given there
   * @throws DmaError EINVAL for an impossible name; ENOENT if no process has it, with the names there are; EEXIST if the
   *   addresses of its memory are taken in this process, with what is there; EPROTONOSUPPORT for another version;
   *   EACCES for another user's; ENOTSUP in a worker thread, in another pid namespace, and without system calls;
   *   ETIMEDOUT
   */
  static async attach(name: string, options?: AttachOptions): Promise<Secondary> {
    return Secondary.attach(name, options, openPlatform);
  }

  /**
   * Takes everything over from the running program whose Eal has that name: its external memory at the same addresses, its
   * mappings, and its devices, which go on doing DMA meanwhile. The running program must have called {@link Eal.handOver}.
   * If this fails at any step before the last one, or this process ends, the running program goes on as before. Other
   * processes then attach to this Eal by the same name.
   *
   * `eal.devices()` has the devices, with the drivers of this program; `domain.mappings()` of a device its mappings, and
   * `eal.external` the memory, found by range or label. Interrupts that were enabled stay enabled: the first
   * `enableInterrupts` of the same kind gets them, with those that came meanwhile.
   *
   * @param name what `Eal.start({ name })` was given there
   * @throws DmaError ENOENT if no process has this name; EBUSY if it does not hand over now, with what keeps it; ENOTSUP if
   *   something of it can not be handed over, which the error names, or this program lacks a driver; EEXIST if the
   *   addresses are taken in this process; ENOMEM if this process may not lock the memory (`ulimit -l`); ETIMEDOUT; as
   *   `Eal.start`
   */
  static async takeOver(name: string, options?: TakeOverOptions): Promise<Eal> {
    const { timeoutMs = TAKE_OVER_MS, ...others } = optionsOf<TakeOverOptions>(options, TAKE_OVER_OPTIONS, TAKE_OVER);
    const checked = checkedOptions({ ...others, name });
    mustBeMs(timeoutMs, 'timeoutMs', TAKE_OVER);
    const platform = checked.platform ?? openPlatform();
    const taken = await Taken.from(platform, name, timeoutMs);
    let eal: Eal | undefined;
    let continued: Continued | undefined;
    try {
      eal = Eal.#make(checked, platform, taken.window);
      continued = eal.#continue(taken);
      await eal.memory.startAsync(checked);
      await taken.commit();
    } catch (error) {
      const undo = undoAll([() => continued?.abandon(gaveUp(error)), () => taken.giveUp()]);
      await eal?.stop().catch((failure: unknown) => undo.push(failure));
      throw withUndo(error, TAKE_OVER, undo);
    }
    continued.start();
    await eal.#registry.mapStanding();
    try {
      eal.#becomePrimary(checked);
    } catch (error) {
      // The devices are worth more than the name.
      if (!isDmaError(error)) throw error;
      process.emitWarning(`no process can attach: ${error.message}`, { code: 'ANYDMA_SHARE' });
    }
    return eal;
  }

  /**
   * Hands everything over to the first program that calls {@link Eal.takeOver} with the name of this Eal: resolves when
   * that program has it. This Eal then only remains to be stopped, or the process to be ended: neither unmaps or resets
   * anything, and views of memory stay valid until then. Every other call fails with ECANCELED, which names the program.
   *
   * If it fails, because the other program fails or ends at any step, because `prepare` throws or time runs out, everything
   * goes on here as before, and it can be called again. While a program takes over, calls that change something fail with
   * EBUSY; devices go on.
   *
   * External memory with a descriptor is handed over (of `allocate` and `fromFd`), mappings, devices on the buses `pci`
   * (with iommufd, Linux 6.14 or later) and `vfio-user` with the drivers `raw`, `edu` and `copy` and those of the program
   * that know how, and interrupts.
   *
   * @throws DmaError EINVAL if this Eal has no name; EBUSY if it hands over already, other processes are attached, other
   *   threads hold something, or memory is pinned; ENOTSUP for what can not be handed over: the error names it; ECANCELED;
   *   ETIMEDOUT
   */
  async handOver(options?: HandOverOptions): Promise<Successor> {
    this.#mustRun(HAND_OVER);
    const { prepare, timeoutMs = TAKE_OVER_MS, signal } = optionsOf(options, HAND_OVER_OPTIONS, HAND_OVER);
    mustBeMs(timeoutMs, 'timeoutMs', HAND_OVER);
    const primary = this.#primary;
    const window = this.#window;
    if (primary === undefined || window === undefined)
      throw invalid(HAND_OVER, 'this Eal has no name, so that no program can find it', {
        hint: 'Eal.start({ name }) gives it one',
      });
    if (this.#offer !== undefined)
      throw new DmaError({ code: 'EBUSY', operation: HAND_OVER, reason: 'it hands over already' });
    const { platform } = this;
    const offer = new Offer({
      platform,
      timeoutMs,
      prepare,
      pause: async () => this.#pause(primary, window),
      over: ({ label }) => (this.#handedOver = handedOver(label)),
      drop: (session, error) => primary.drop(session, error),
    });
    this.#offer = offer;
    primary.offer(offer);
    try {
      return await this.#running.run(signal, HAND_OVER, async (either) => {
        const successor = await offer.taken(either);
        this.#forgetExit();
        await primary.close();
        return successor;
      });
    } finally {
      this.#offer = undefined;
      primary.offer(undefined);
    }
  }

  /**
   * Opens the device `name` and attaches the first driver that takes it: see `Registry.probe` for the steps and errors.
   *
   * @param name `bus:name[,key=value...]`, such as `vfio-user:/run/device.sock` or `vdev:edu0`; DPDK's layered form
   * (`bus=vfio-user,name=/run/device.sock/driver=edu`) works too
   * @param options.container the container for a PCI device; `container=NAME` in its name chooses one by name. Default:
   *   `eal.containers.default`
   */
  async probe(name: string, options?: { readonly container?: Container }): Promise<Device> {
    this.#mustRun('probe');
    const { container } = optionsOf<{ readonly container?: Container }>(options, { container: Container }, 'probe');
    const origin = captureOrigin(this.probe);
    const device = await this.#registry.probe(name, { container });
    this.#probed.set(device, origin);
    return device;
  }

  /** Removes a device: detaches its driver and unmaps its memory. @throws DmaError as `Registry.remove` */
  async remove(device: Device): Promise<void> {
    if (this.#handedOver !== undefined) throw this.#handedOver.with({ operation: 'remove' });
    await this.#registry.remove(device);
  }

  /** The probed devices, or those that match `filter` (`bus=vdev`, `driver=edu`, or a name). */
  devices(filter?: string): Device[] {
    return this.#registry.devices(filter);
  }

  /** The probed device of that name; `undefined` if there is none. */
  find(name: string): Device | undefined {
    return this.#registry.find(name);
  }

  /** Names of the devices that buses discover; `probe` opens them. */
  async scan(): Promise<string[]> {
    this.#mustRun('scan');
    return this.#registry.scan();
  }

  /** The buses, in the order in which they are searched. */
  get buses(): readonly Bus[] {
    return this.#registry.buses;
  }

  /** The drivers, in the order in which they are tried. */
  get drivers(): readonly Driver[] {
    return this.#registry.drivers;
  }

  /**
   * Adds a driver; it is tried after the others.
   *
   * @throws DmaError EEXIST if the name is taken; EINVAL if it is not a driver
   */
  registerDriver(driver: Driver): void {
    this.#mustRun('registerDriver');
    this.#registry.registerDriver(driver);
  }

  /** Adds a bus. @throws DmaError EEXIST if the name is taken; EINVAL if it is not a bus */
  registerBus(bus: Bus): void {
    this.#mustRun('registerBus');
    this.#registry.registerBus(bus);
  }

  /**
   * Maps memory on all of `devices`, or on none if one fails. Without a list: on every device, including those probed
   * later, until the result is unmapped.
   *
   * @throws DmaError of the device that failed; errors of undoing it are in `undo`
   */
  dmaMapAll(target: MemoryPart, devices?: Iterable<Device>, options?: MapOptions): GroupMapping {
    this.#mustRun('dmaMapAll');
    return this.#registry.mapAll(target, devices, options);
  }

  /**
   * Like {@link Eal.dmaMapAll}, without blocking the event loop: device by device, each in pieces, with progress.
   *
   * @throws DmaError as `dmaMapAll`; ECANCELED if `options.signal` is aborted or the Eal stops, within one piece: then
   * it is mapped on no device
   */
  async dmaMapAllAsync(
    target: MemoryPart,
    devices?: Iterable<Device>,
    options: MapAsyncOptions = {},
  ): Promise<GroupMapping> {
    const operation = 'dmaMapAllAsync';
    this.#mustRun(operation);
    const [{ onProgress, signal }, how] = longWorkOf(options, operation);
    return this.#running.run(signal, operation, async (either) =>
      this.#registry.mapAllAsync(target, devices, how, { onProgress, signal: either }),
    );
  }

  /**
   * Allocates a block of memory that every device can access, including those probed later. Grows the library's own
   * memory if needed.
   *
   * @throws DmaError EINVAL for invalid arguments; ENOMEM if memory is not available, with what exists and what was
   * tried; ENOENT if the heap does not exist; see `Heap.malloc`
   */
  malloc(size: number, options?: MallocOptions): Block {
    this.#mustRun('malloc');
    if (options === undefined || !isPlaced(options, 'malloc')) return this.memory.malloc(size, options);
    return this.#heapFor(options).malloc(size, options);
  }

  /**
   * Like {@link Eal.malloc}, without blocking the event loop: new memory is populated on other threads, and mapped for
   * the devices in pieces. Pass `zero` for a zeroed block, like `calloc`.
   *
   * @throws DmaError as `malloc`; ECANCELED if `options.signal` is aborted or the Eal stops, within one piece: then
   * everything is undone
   */
  async mallocAsync(size: number, options: MallocOptions & LongWorkOptions = {}): Promise<Block> {
    this.#mustRun('mallocAsync');
    if (!isPlaced(options, 'mallocAsync')) return this.memory.mallocAsync(size, options);
    const { heap: _heap, node: _node, ...wanted } = options;
    return this.#heapFor(options).mallocAsync(size, wanted);
  }

  /**
   * Like {@link Eal.malloc}, for `count` times `size` bytes, zeroed. @throws DmaError also EINVAL if the product is not
   * a valid size
   */
  calloc(count: number, size: number, options?: MallocOptions): Block {
    this.#mustRun('calloc');
    if (options === undefined || !isPlaced(options, 'calloc')) return this.memory.calloc(count, size, options);
    return this.#heapFor(options).calloc(count, size, options);
  }

  /**
   * Resizes a block: see `Heap.realloc`. With `heap` or `node` the new block comes from there, else from its present
   * heap.
   *
   * @throws DmaError as `Heap.realloc`; ENOENT or EINVAL if the heap or node does not exist
   */
  realloc(block: Block, size: number, options?: MallocOptions): Block {
    this.#mustRun('realloc');
    mustBe(block, Block, 'the block to resize', 'realloc');
    if (options !== undefined) optionsOf<MallocOptions>(options, MALLOC_OPTIONS, 'realloc');
    const elsewhere = options?.heap !== undefined || options?.node !== undefined;
    return (elsewhere ? this.#heapFor(options) : block.heap).realloc(block, size, options);
  }

  /**
   * Stops: removes the devices, last first, and unregisters all memory. Reports what the program still held.
   * Idempotent.
   *
   * @throws DmaError EBUSY, before anything is released, while other threads hold what this Eal shares; the first failure
   * to release something, after everything was tried, such as EBUSY for pinned memory. Afterwards nothing can be started; another call retries what is left.
   */
  async stop(): Promise<void> {
    this.#stopping ??= this.#stop().catch((error: unknown) => {
      this.#stopping = undefined;
      throw error;
    });
    await this.#stopping;
  }

  /** Calls {@link Eal.stop}. */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.stop();
  }

  /** Stops using everything, so that another process can continue. @throws DmaError EBUSY, ENOTSUP */
  async #pause(primary: Primary, window: AddressWindow): Promise<Paused> {
    const why = new DmaError({ code: 'EBUSY', operation: HAND_OVER, reason: 'another program takes everything over' });
    mayHandOver(this.#obstacles(primary));
    this.#shares.mustBeFree(HAND_OVER);
    this.#handedOver = why;
    try {
      const { external, containers } = this;
      const paused = await pauseAll(
        {
          window,
          external,
          driverMemory: [...this.#driverMemory].filter((memory) => this.#words?.has(memory) !== true),
          containers,
          registry: this.#registry,
          leave: (group) => this.#reached.has(group),
        },
        why,
      );
      const resume = (): void => {
        this.#handedOver = undefined;
        paused.resume();
      };
      return { ...paused, resume };
    } catch (error) {
      this.#handedOver = undefined;
      throw error;
    }
  }

  /** What can not be handed over now, and what can not be at all. */
  #obstacles(primary: Primary): { readonly busy: readonly string[]; readonly never: readonly string[] } {
    const busy = primary.users.map((label) => `${label} is attached`);
    const never = this.#registry.handOverObstacles();
    for (const memory of [...this.external, ...this.#driverMemory]) {
      const obstacle = External.handOverObstacle(memory);
      if (obstacle !== undefined) (memory.pinned === undefined ? never : busy).push(obstacle);
    }
    for (const heap of [...this.memory.heapsInUse, ...this.heaps.made]) {
      const { total } = heap.statistics();
      if (total > 0) never.push(`the heap ${heap.name} has ${formatSize(total)}, and heaps stay in their process`);
    }
    for (const { name } of this.pools) never.push(`the pool ${name} stays in its process`);
    for (const { name } of this.rings) never.push(`the ring ${name} stays in its process`);
    return { busy, never };
  }

  /** Makes what another process has handed over its own. */
  #continue(taken: Taken): Continued {
    const { platform, external, containers } = this;
    return continueAll(
      { platform, external, driverMemory: this.#driverMemory, containers, registry: this.#registry },
      taken,
    );
  }

  static #make(options: EalOptions, platform: Platform, taken?: Range<Va>): Eal {
    const window = windowFor(options, platform, taken);
    try {
      return new Eal(options, platform, window);
    } catch (error) {
      window?.close();
      throw error;
    }
  }

  #becomePrimary({ name, secondaryTimeoutMs = 5000 }: EalOptions): void {
    const window = this.#window;
    const words = this.#words;
    if (name === undefined || window === undefined || words === undefined) return;
    const { platform, memory, heaps, zones, pools, rings, external } = this;
    this.#primary = new Primary({
      platform,
      name,
      timeoutMs: secondaryTimeoutMs,
      window,
      memory,
      handlers: this.#handlers,
      heaps,
      zones,
      pools,
      rings,
      words,
      external,
      devices: () => this.devices(),
      find: (device) => this.find(device),
      probe: (device) => this.probe(device),
      remove: (device) => this.remove(device),
      mallocAsync: (size, options) => this.mallocAsync(size, options),
    });
  }

  /** The processes that are attached to this Eal, if it has a name. */
  get secondaries(): readonly { readonly pid: number; readonly label: string }[] {
    return this.#primary?.secondaries ?? [];
  }

  async #stop(): Promise<void> {
    this.#forgetExit();
    const isDone = this.#stopped || this.#handedOver !== undefined;
    const errors = isDone ? [] : undoAll([() => this.#report(warn)]);
    this.#stopped = true;
    // Before other processes are told.
    this.#shares.mustBeFree('stop');
    if ((await this.#primary?.close()) === true) this.#keepsContent = true;
    this.memory.end();
    await this.#running.end();
    // Before anything is released: what other threads hold is in use, all of it.
    this.#shares.close('stop');
    for (const group of [...this.#registry.standing])
      if (!this.#reached.has(group)) await group.unmapAsync().catch((error: unknown) => errors.push(error));
    errors.push(...(await this.#registry.close()), ...this.containers.close());
    const pools = [...this.rings.close(), ...this.pools.close()];
    errors.push(...pools);
    // What other threads still use keeps its memory: unmapping it would crash them.
    if (pools.length === 0) errors.push(...this.heaps.close(), ...(await this.memory.closeAsync(this.#keepsContent)));
    for (const external of [this.external, this.#driverMemory])
      for (const memory of [...external].reverse())
        await memory.unregisterAsync().catch((error: unknown) => errors.push(error));
    if (errors.length === 0) this.#window?.close();
    throwFirst(errors, 'stop');
  }

  /** Reports what the program still holds, if anything. */
  #report(otherwise: (forgotten: readonly string[]) => void, more: readonly Forgotten[] = []): void {
    const forgotten = forgottenLines([...this.#held(), ...more]);
    if (forgotten.length > 0) (this.#onForgotten ?? otherwise)(forgotten);
  }

  /**
   * The program's external memory and its mappings. Mappings for every device are not counted: the library holds them.
   */
  *#held(): Iterable<Forgotten> {
    const standing = new Set([...this.#registry.standing].flatMap((group) => [...group.mappings]));
    const domains = new Set(this.devices().flatMap((device) => device.domain ?? []));
    const areas = new Set([...this.external].map((memory) => memory.area));
    for (const domain of domains)
      for (const mapping of domain.mappings()) {
        if (standing.has(mapping) || !mapping.entries.some(({ area }) => areas.has(area))) continue;
        const { range, device, origin } = mapping;
        const text = `mapping ${range.toString()} on ${device}`;
        yield { kind: ['mapping', 'mappings'], text, verb: 'made', bytes: range.length, origin };
      }
    for (const { area, length, origin } of this.external)
      yield { kind: ['external area', 'external areas'], text: area.label, verb: 'registered', bytes: length, origin };
    for (const heap of [...this.memory.heapsInUse, ...this.heaps.made]) {
      const kind = [`block of the heap ${heap.name}`, `blocks of the heap ${heap.name}`] as const;
      for (const { length, origin } of heap.blocks) {
        const text = `${formatSize(length)} of the heap ${heap.name}`;
        yield { kind, text, verb: 'made', bytes: length, origin: origin ?? NOT_NOTED };
      }
    }
  }

  /** `stop` removes devices, so any left at exit were forgotten. Devices in this process end with it. */
  *#devicesLeft(): Iterable<Forgotten> {
    for (const device of this.devices()) {
      if (device.bus === this.vdev) continue;
      const text = `device ${device.name}: eal.stop() was not called`;
      yield { kind: ['device', 'devices'], text, verb: 'probed', bytes: 0, origin: this.#probed.get(device) };
    }
  }

  /** The heap for these options. */
  #heapFor({ heap, node }: Pick<MallocOptions, 'heap' | 'node'>): Heap {
    if (heap === undefined) return this.memory.heapOf(node ?? -1);
    return chooseHeaps({ memory: this.memory, heaps: this.heaps }, { heap, node }, 'malloc')[0];
  }

  /** Maps areas for every device, including later ones, or none of them; undoing unmaps them. */
  #reach(areas: readonly Area[]): LongStep {
    const groups: GroupMapping[] = [];
    const release = this.#releaseOf(groups);
    try {
      for (const { range } of areas) {
        const target = { va: range.start, length: range.length };
        const group = this.#registry.reach(target, HEAP_KEEPER);
        groups.push(group);
        this.#reached.add(group);
      }
    } catch (error) {
      throw withUndo(error, 'reach', undoAll([() => release.now()]));
    }
    return release;
  }

  /** Unmaps them from the devices. */
  #releaseOf(groups: readonly GroupMapping[]): LongStep {
    const forget = (): void => groups.forEach((group) => this.#reached.delete(group));
    return {
      now: () => {
        this.#registry.unmapAll(groups);
        forget();
      },
      later: async () => {
        await this.#registry.unmapAllAsync(groups);
        forget();
      },
    };
  }

  /** Like {@link #reach}, without blocking the event loop. */
  async #reachAsync(areas: readonly Area[], { onProgress, signal }: LongWorkOptions): Promise<LongStep> {
    const groups: GroupMapping[] = [];
    const release = this.#releaseOf(groups);
    try {
      for (const { range } of areas) {
        const target = { va: range.start, length: range.length };
        const group = await this.#registry.reachAsync(target, HEAP_KEEPER, { onProgress, signal });
        groups.push(group);
        this.#reached.add(group);
      }
      return release;
    } catch (error) {
      const failures: unknown[] = [];
      await release.later(UNATTENDED).catch((why: unknown) => failures.push(why));
      throw withUndo(error, 'reach', failures);
    }
  }

  #decideIova({ iovaMode, noHuge }: Pick<MemoryOptions, 'iovaMode' | 'noHuge'>): IovaDecision {
    const { platform } = this;
    return decideIovaMode({
      forced: iovaMode,
      votes: this.#registry.buses.map((bus) => ({ bus: bus.name, wish: bus.iovaWish?.() ?? 'any' })),
      physicalAddresses: noHuge !== true && hasPhysicalAddresses(platform),
      // If this user may not see them: assume va mode, which reveals no physical addresses.
      iommu: unlessFails(NO_PERMISSION, () => hasIommuGroups(platform)) ?? true,
    });
  }

  #tell<K extends keyof EalEvents>(event: K, ...args: EalEvents[K]): void {
    for (const listener of this.#emitter.rawListeners(event)) {
      try {
        Reflect.apply(listener, this.#emitter, args);
      } catch (error) {
        queueMicrotask(() => {
          throw error;
        });
      }
    }
  }

  /** The memory at `va`, for a device in this process; `undefined` if the library does not know it. */
  #bytesAt(va: Va, length: number, access: 'read' | 'write'): Uint8Array | undefined {
    // A store to a read-only page would kill this process.
    if (access === 'write' && this.#areas.at(va)?.writable !== true) return undefined;
    return (
      this.memory.bytesAt(va, length) ??
      this.external.bytesAt(va, length) ??
      this.#driverMemory.bytesAt(va, length) ??
      this.heaps.bytesAt(va, length)
    );
  }

  #mustRun(operation: string): void {
    if (this.#handedOver !== undefined) throw this.#handedOver.with({ operation });
    if (this.#stopped) throw stopped(operation);
  }
}

shortForm(Eal, 'Eal', (eal) => ({
  devices: eal.devices().map(({ name }) => name),
  external: [...eal.external].length,
  heaps: eal.memory.heapsInUse.length + [...eal.heaps.made].length,
  zones: eal.zones.size,
  pools: [...eal.pools].map(({ name }) => name),
  rings: [...eal.rings].map(({ name }) => name),
}));

/** The addresses of an Eal that other processes attach to. */
function windowFor(
  { name, memory }: EalOptions,
  platform: Platform,
  taken: Range<Va> | undefined,
): AddressWindow | undefined {
  if (name === undefined) return undefined;
  if (platform.limitation !== undefined)
    throw new DmaError({ code: 'ENOTSUP', operation: START, reason: platform.limitation });
  const { baseAddress, sameIova, iovaMode } = memorySettings(memory ?? {});
  return new AddressWindow(platform, { name, baseAddress, low: sameIova && iovaMode !== 'pa', taken });
}

/** Whether these options name a heap. @throws DmaError EINVAL if they are invalid */
function isPlaced(options: MallocOptions, operation: string): boolean {
  mustBeObject(options, 'options', operation);
  return reading(operation, 'the options', () => options.heap) !== undefined;
}

/** @throws DmaError EINVAL */
function checkedOptions(options: EalOptions | undefined): EalOptions {
  const checked = optionsOf<EalOptions>(options, OPTIONS, START);
  const { holdBackMs = 0, remember = 0 } = checked;
  if (!(holdBackMs >= 0))
    throw invalid(START, `holdBackMs: ${holdBackMs} is not a time in milliseconds`, {
      hint: '0 or more; Infinity holds back forever',
    });
  if (!isAddress(remember))
    throw invalid(START, `remember: ${remember} is not a number of mappings`, {
      hint: 'use a whole number, 0 or more',
    });
  checkLongWork(checked, START);
  const { platform, name, secondaryTimeoutMs } = checked;
  if (name !== undefined) checkEalName(name, START);
  if (secondaryTimeoutMs !== undefined) mustBeMs(secondaryTimeoutMs, 'secondaryTimeoutMs', START);
  if (platform !== undefined)
    reading(START, 'the platform', () => {
      for (const port of [platform.memory, platform.files, platform.limits])
        mustBeObject(port, 'ports of a platform', START);
    });
  return checked;
}

const OPTIONS: Shape<EalOptions> = {
  name: 'string',
  secondaryTimeoutMs: 'number',
  holdBackMs: 'number',
  remember: 'number',
  origins: 'boolean',
  platform: 'object',
  iommu: CONTAINER_CHOICES,
  buses: 'array',
  drivers: 'array',
  memory: 'object',
  onForgotten: 'function',
  onProgress: 'function',
  signal: 'signal',
};

const { name: _name, ...UNNAMED } = OPTIONS;
const TAKE_OVER_OPTIONS: Shape<TakeOverOptions> = { ...UNNAMED, timeoutMs: 'number' };
const HAND_OVER_OPTIONS: Shape<HandOverOptions> = { prepare: 'function', timeoutMs: 'number', signal: 'signal' };

const TAKE_OVER = 'Eal.takeOver';
const HAND_OVER = 'handOver';

/** How long handing over may take, in milliseconds. */
const TAKE_OVER_MS = 30_000;

/** The error of everything that was handed over. */
function handedOver(label: string): DmaError {
  const reason = `everything was handed over to ${label}`;
  return new DmaError({ code: 'ECANCELED', operation: HAND_OVER, reason, hint: 'stop this Eal, or end the process' });
}

/** Why this process does not take over after all. */
function gaveUp(cause: unknown): DmaError {
  return new DmaError({ code: 'ECANCELED', operation: TAKE_OVER, reason: 'this process did not take over', cause });
}

/** @throws DmaError EBUSY, ENOTSUP */
function mayHandOver({ busy, never }: { readonly busy: readonly string[]; readonly never: readonly string[] }): void {
  const [code, why] = never.length > 0 ? (['ENOTSUP', never] as const) : (['EBUSY', busy] as const);
  if (why.length === 0) return;
  const reason = `${why.slice(0, 5).join('; ')}${why.length > 5 ? `; and ${why.length - 5} more` : ''}`;
  throw new DmaError({ code, operation: HAND_OVER, reason });
}

/** The owner of the mappings of heap memory, for messages. */
const HEAP_KEEPER = 'the heap that this memory is in';

const NOT_NOTED = 'start with memory: { origins: true } to see where they were created';

/** Process warnings are no longer printed at exit. */
function tell(forgotten: readonly string[]): void {
  for (const each of forgotten) process.stderr.write(`anydma: forgotten: ${each}\n`);
}

function warn(forgotten: readonly string[]): void {
  for (const each of forgotten) process.emitWarning(`forgotten: ${each}`, { code: 'ANYDMA_FORGOTTEN' });
}
