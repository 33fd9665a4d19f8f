/**
 * The environment abstraction layer: one object that everything hangs off. It starts what there is, ties the rooms
 * together, and gives everything back when it stops. Two can live in one process; they share nothing.
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
import type { BookSettings, MapAsyncOptions } from './dma/domain.js';
import type { MapOptions, MapTarget } from './dma/plan.js';
import { builtinDrivers } from './drivers/builtin.js';
import { mustBe, mustBeObject, optionsOf, reading, type Shape, stopped } from './check.js';
import { type DmaError, invalid, NO_PERMISSION, throwFirst, undoAll, unlessFails, withUndo } from './errors.js';
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
import { Block, MALLOC_OPTIONS, type Heap, type MallocOptions } from './memory/heap/heap.js';
import { chooseHeaps, type PlacedMallocOptions } from './memory/owned/heap-choice.js';
import { Pools } from './memory/pool/pools.js';
import { Zones } from './memory/owned/zones.js';
import { Heaps } from './memory/heap/heaps.js';
import { hasPhysicalAddresses, decideIovaMode, hasIommuGroups, type IovaDecision } from './memory/iova-mode.js';
import { MemoryHandlers } from './memory/memory-events.js';
import { memorySettings, START, type MemoryOptions } from './memory/owned/memory-settings.js';
import { OwnedMemory } from './memory/owned/owned.js';
import { captureOrigin, type Origin } from './origin.js';
import { formatSize, isAddress, type Va } from './units.js';
import { openPlatform } from './platform/open.js';
import type { Platform } from './platform/ports.js';
import { shortForm } from './short-form.js';
import { queueMicrotask } from './timers.js';

/** How to start. All may be left out. */
export interface EalOptions extends BookSettings, LongWorkOptions {
  /** System calls; another platform than this machine's is for tests. */
  readonly platform?: Platform;
  /**
   * How PCI devices get at their IOMMU, where a container does not say it. Default `auto`: iommufd where there is one, else
   * VFIO's older containers. `noiommu` has to be asked for: devices then reach all memory of the machine.
   */
  readonly iommu?: ContainerChoice;
  /** More buses, besides those that come with the library. */
  readonly buses?: readonly Bus[];
  /** More drivers; they are tried before the built-in ones. */
  readonly drivers?: readonly Driver[];
  /** Memory that the library owns: how much, of which pages, kept where. */
  readonly memory?: MemoryOptions;
  /**
   * What to do with what the program forgot to unmap or unregister, each named with the place that made it. Default: a
   * process warning (code `ANYDMA_FORGOTTEN`). It is given back in any case.
   */
  readonly onForgotten?: (forgotten: readonly string[]) => void;
}

/** How to probe a device. */
export interface ProbeOptions {
  /** The container that a PCI device is put in. `container=NAME` in its name says one by its name. Default: `eal.containers.default`. */
  readonly container?: Container;
}

/** What `Eal.events` tells, after it happened. */
export interface EalEvents {
  /** A device was probed. */
  probed: [device: Device];
  /** A device reported an error of its own, such as a failed access; it is still there. See `Device.explainFaults`. */
  failed: [device: Device, error: DmaError];
  /** A device was removed. */
  removed: [device: Device];
  /** A device went without being asked to; its mappings are gone. */
  lost: [device: Device, error: DmaError];
  /** External memory was registered. */
  registered: [memory: ExternalMemory];
  /** External memory was unregistered. */
  unregistered: [memory: ExternalMemory];
}

/** See the head of the file. Made by {@link Eal.start}. */
export class Eal implements AsyncDisposable {
  /** What system calls this machine has. */
  readonly platform: Platform;
  /** Memory of the user's: allocate, register and find it. */
  readonly external: External;
  /** Heaps by name: those over memory of the user's, and the library's own. */
  readonly heaps: Heaps;
  /** Named allocations, for who has only the name. */
  readonly zones: Zones;
  /** Pools of elements of one size, such as packet buffers. */
  readonly pools: Pools;
  /** Memory of the library's own: what there is, and who follows and limits it. */
  readonly memory: OwnedMemory;
  /** What happens to devices and memory. A listener that throws is an uncaught exception, and disturbs nothing here. */
  readonly events: EventEmitter<EalEvents>;
  /** Address spaces of the IOMMU that PCI devices can be put in: the default one, and those that the program makes. */
  readonly containers: Containers;
  /** The bus of software devices in this process. */
  readonly vdev: VdevBus;
  readonly #emitter = new EventEmitter<EalEvents>();
  readonly #areas = new AreaIndex();
  /** Memory of drivers: rings and such, which go with their devices and are nothing that a program can forget. */
  readonly #driverMemory: External;
  readonly #registry: Registry;
  /** What of the standing groups is memory of heaps. */
  readonly #reached = new Set<GroupMapping>();
  readonly #onForgotten: ((forgotten: readonly string[]) => void) | undefined;
  /** What goes on while the event loop does: the end of this gives it up. */
  readonly #running = new RunningWorks();
  /** Where each device was probed. */
  readonly #probed = new WeakMap<Device, Origin>();
  #forgetExit: () => void = () => undefined;
  /** Runs now, or ended well. */
  #stopping: Promise<void> | undefined;
  #stopped = false;

  private constructor(options: EalOptions) {
    this.platform = options.platform ?? openPlatform();
    this.events = this.#emitter;
    this.#onForgotten = options.onForgotten;
    const tellChange = (change: 'registered' | 'unregistered', memory: ExternalMemory): void =>
      this.#tell(change, memory);
    const gate = (operation: string): void => this.#mustRun(operation);
    const running = this.#running;
    this.external = new External(this.platform, this.#areas, tellChange, options.origins, gate, running);
    this.#driverMemory = new External(this.platform, this.#areas, undefined, options.origins);
    const settings = memorySettings(options.memory ?? {});
    const own = {
      platform: this.platform,
      areas: this.#areas,
      gate,
      running,
      handlers: new MemoryHandlers(),
      reach: (areas: readonly Area[]) => this.#reach(areas),
      reachAsync: (areas: readonly Area[], work: LongWorkOptions) => this.#reachAsync(areas, work),
    };
    const unit = (): number => this.#registry.granule;
    this.memory = new OwnedMemory({ ...own, settings, decideIova: () => this.#decideIova(settings), unit });
    this.heaps = new Heaps({
      ...own,
      iovaMode: () => this.memory.iova.mode,
      origins: settings.origins,
      native: () => this.memory.heaps,
    });
    const sources = { memory: this.memory, heaps: this.heaps, gate, running };
    this.zones = new Zones(sources);
    this.pools = new Pools(sources, this.platform.memory);
    this.#registry = new Registry({
      ...options,
      areas: this.#areas,
      limits: this.platform.limits,
      pages: this.platform.memory,
      context: { external: this.#driverMemory },
      changed: (change, device, error) => {
        if (change === 'probed' || change === 'removed') this.#tell(change, device);
        else if (error !== undefined) this.#tell(change, device, error);
      },
    });
    const bytesAt = (va: Va, length: number, access: 'read' | 'write'): Uint8Array | undefined => {
      // Storing to a page that is mapped read-only would kill this process.
      if (access === 'write' && this.#areas.at(va)?.writable !== true) return undefined;
      return (
        this.memory.bytesAt(va, length) ??
        this.external.bytesAt(va, length) ??
        this.#driverMemory.bytesAt(va, length) ??
        this.heaps.bytesAt(va, length)
      );
    };
    const { buses, vdev, containers } = builtinBuses({
      platform: this.platform,
      iommu: options.iommu,
      gate,
      domainOf: (space) => this.#registry.domainOf(space),
      bytesAt,
    });
    this.vdev = vdev;
    this.containers = containers;
    for (const bus of [...buses, ...(options.buses ?? [])]) this.#registry.registerBus(bus);
    for (const driver of [...(options.drivers ?? []), ...builtinDrivers]) this.#registry.registerDriver(driver);
    this.#forgetExit = atExit(() => this.#report(tell, [...this.#devicesLeft()]));
  }

  /**
   * Starts. Stop it with {@link Eal.stop}, or hold it with `await using`.
   *
   * Where system calls can not be made (no Linux, no koffi binary) it starts all the same: devices in this process work,
   * and all else says ENOTSUP, with the reason that is in `platform.limitation`.
   *
   * @throws DmaError EEXIST, EINVAL for buses and drivers that can not be registered; EINVAL for options about memory that
   *   are not possible; ENOMEM when there is not so much memory as they want at the start
   */
  static async start(options?: EalOptions): Promise<Eal> {
    const checked = checkedOptions(options);
    const eal = new Eal(checked);
    try {
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
   * Opens the device called `name` and gives it to the first driver that takes it: see `Registry.probe` for the steps and
   * errors.
   *
   * @param name `bus:name[,key=value...]`, such as `vfio-user:/run/device.sock` or `vdev:edu0`; DPDK's layered form
   *   (`bus=vfio-user,name=/run/device.sock/driver=edu`) works too
   */
  async probe(name: string, options?: ProbeOptions): Promise<Device> {
    this.#mustRun('probe');
    const { container } = optionsOf<ProbeOptions>(options, { container: Container }, 'probe');
    const origin = captureOrigin(this.probe);
    const device = await this.#registry.probe(name, { container });
    this.#probed.set(device, origin);
    return device;
  }

  /** Takes a device away: its driver lets go, its mappings are unmapped. @throws DmaError as `Registry.remove` */
  async remove(device: Device): Promise<void> {
    await this.#registry.remove(device);
  }

  /** The devices that are probed, or those that match `filter` (`bus=vdev`, `driver=edu`, or a name). */
  devices(filter?: string): Device[] {
    return this.#registry.devices(filter);
  }

  /** The probed device of that name, if there is one. */
  find(name: string): Device | undefined {
    return this.#registry.find(name);
  }

  /** Names of the devices that buses find by themselves; `probe` opens them. */
  async scan(): Promise<string[]> {
    this.#mustRun('scan');
    return this.#registry.scan();
  }

  /** Buses, in the order they are asked. */
  get buses(): readonly Bus[] {
    return this.#registry.buses;
  }

  /** Drivers, in the order they are tried. */
  get drivers(): readonly Driver[] {
    return this.#registry.drivers;
  }

  /** Adds a driver; it is tried after those there are. @throws DmaError EEXIST, EINVAL (only some of the DMA calls) */
  registerDriver(driver: Driver): void {
    this.#mustRun('registerDriver');
    this.#registry.registerDriver(driver);
  }

  /** Adds a bus. @throws DmaError EEXIST, EINVAL (only some of the DMA calls) */
  registerBus(bus: Bus): void {
    this.#mustRun('registerBus');
    this.#registry.registerBus(bus);
  }

  /**
   * Maps memory on each of `devices`, or on none of them. Without a list: on every device there is, and on every one that
   * is probed later, until the result is unmapped.
   *
   * @throws DmaError of the device that failed, with what could not be undone in `undo`
   */
  dmaMapAll(target: MapTarget, devices?: Iterable<Device>, options?: MapOptions): GroupMapping {
    this.#mustRun('dmaMapAll');
    return this.#registry.mapAll(target, devices, options);
  }

  /**
   * As {@link Eal.dmaMapAll}, without blocking the event loop: device by device, each piece by piece, with progress.
   *
   * @throws DmaError as `dmaMapAll`; ECANCELED when `options.signal` is aborted or the Eal stops, within one piece: then no
   *   device has it
   */
  async dmaMapAllAsync(
    target: MapTarget,
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
   * Allocates a block of memory that every device can reach, now and later. It grows the library's own memory when there
   * is no room in it.
   *
   * @throws DmaError EINVAL for what is not possible; ENOMEM when it can not be had, with what there is and what was tried;
   *   ENOENT for a heap there is not; see `Heap.malloc`
   */
  malloc(size: number, options?: PlacedMallocOptions): Block {
    this.#mustRun('malloc');
    if (options === undefined || !isPlaced(options, 'malloc')) return this.memory.malloc(size, options);
    return this.#heapFor(options).malloc(size, options);
  }

  /**
   * As {@link Eal.malloc}, without blocking the event loop: memory that has to grow is got on other threads, and mapped for
   * the devices piece by piece. Give `zero` for what `calloc` does.
   *
   * @throws DmaError as `malloc`; ECANCELED when `options.signal` is aborted or the Eal stops, within one piece: then all is
   *   undone
   */
  async mallocAsync(size: number, options: PlacedMallocOptions & LongWorkOptions = {}): Promise<Block> {
    this.#mustRun('mallocAsync');
    if (!isPlaced(options, 'mallocAsync')) return this.memory.mallocAsync(size, options);
    const { heap: _heap, node: _node, ...wanted } = options;
    return this.#heapFor(options).mallocAsync(size, wanted);
  }

  /** As {@link Eal.malloc} for `count` times `size` bytes, zeroed. @throws DmaError also EINVAL when the product is no size */
  calloc(count: number, size: number, options?: PlacedMallocOptions): Block {
    this.#mustRun('calloc');
    if (options === undefined || !isPlaced(options, 'calloc')) return this.memory.calloc(count, size, options);
    return this.#heapFor(options).calloc(count, size, options);
  }

  /**
   * Makes a block longer or shorter: see `Heap.realloc`. With `heap` or `node` it comes from there afterwards, else from the
   * heap that it is of.
   *
   * @throws DmaError as `Heap.realloc`; ENOENT or EINVAL for a heap or node there is not
   */
  realloc(block: Block, size: number, options?: MallocOptions & Pick<PlacedMallocOptions, 'heap' | 'node'>): Block {
    this.#mustRun('realloc');
    mustBe(block, Block, 'what is made longer or shorter', 'realloc');
    if (options !== undefined) optionsOf<PlacedMallocOptions>(options, MALLOC_OPTIONS, 'realloc');
    const elsewhere = options?.heap !== undefined || options?.node !== undefined;
    return (elsewhere ? this.#heapFor(options) : block.heap).realloc(block, size, options);
  }

  /**
   * Stops: removes the devices, last first, and unregisters all memory. What the program still held is reported. Idempotent.
   *
   * @throws DmaError of the first thing that could not be given back, once all was tried, such as EBUSY for memory that is
   *   pinned. Nothing can be begun afterwards; another call tries what is left.
   */
  async stop(): Promise<void> {
    this.#stopping ??= this.#stop().catch((error: unknown) => {
      this.#stopping = undefined;
      throw error;
    });
    await this.#stopping;
  }

  /** As {@link Eal.stop}. */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.stop();
  }

  async #stop(): Promise<void> {
    this.#forgetExit();
    const errors = this.#stopped ? [] : undoAll([() => this.#report(warn)]);
    this.#stopped = true;
    this.memory.end();
    await this.#running.end();
    for (const group of [...this.#registry.standing])
      if (!this.#reached.has(group)) await group.unmapAsync().catch((error: unknown) => errors.push(error));
    errors.push(...(await this.#registry.close()), ...this.containers.close());
    const pools = this.pools.close();
    errors.push(...pools);
    // A pool that other threads still use keeps its memory: taking it away would kill them.
    if (pools.length === 0) errors.push(...this.heaps.close(), ...(await this.memory.closeAsync()));
    for (const { live } of [this.external, this.#driverMemory])
      for (const memory of [...live].reverse())
        await memory.unregisterAsync().catch((error: unknown) => errors.push(error));
    throwFirst(errors, 'stop');
  }

  /** Tells what the program still holds, if anything. */
  #report(otherwise: (forgotten: readonly string[]) => void, more: readonly Forgotten[] = []): void {
    const forgotten = forgottenLines([...this.#held(), ...more]);
    if (forgotten.length > 0) (this.#onForgotten ?? otherwise)(forgotten);
  }

  /** Mappings of the program's memory, and that memory. What is mapped for every device is held by nobody in particular. */
  *#held(): Iterable<Forgotten> {
    const standing = new Set([...this.#registry.standing].flatMap((group) => [...group.mappings]));
    const domains = new Set(this.devices().flatMap((device) => device.domain ?? []));
    const areas = new Set([...this.external.live].map((memory) => memory.area));
    for (const domain of domains)
      for (const mapping of domain.mappings()) {
        if (standing.has(mapping) || !mapping.entries.some(({ area }) => areas.has(area))) continue;
        const { range, device, origin } = mapping;
        const text = `mapping ${range.toString()} on ${device}`;
        yield { kind: ['mapping', 'mappings'], text, verb: 'made', bytes: range.length, origin };
      }
    for (const { area, length, origin } of this.external.live)
      yield { kind: ['external area', 'external areas'], text: area.label, verb: 'registered', bytes: length, origin };
    for (const heap of [...this.memory.heapsInUse, ...this.heaps.made]) {
      const kind = [`block of the heap ${heap.name}`, `blocks of the heap ${heap.name}`] as const;
      for (const { length, origin } of heap.blocks) {
        const text = `${formatSize(length)} of the heap ${heap.name}`;
        yield { kind, text, verb: 'made', bytes: length, origin: origin ?? NOT_NOTED };
      }
    }
  }

  /** `stop` removes devices; who ends the program without it has forgotten them. Those of this process end with it. */
  *#devicesLeft(): Iterable<Forgotten> {
    for (const device of this.devices()) {
      if (device.bus === this.vdev) continue;
      const text = `device ${device.name}, for want of eal.stop()`;
      yield { kind: ['device', 'devices'], text, verb: 'probed', bytes: 0, origin: this.#probed.get(device) };
    }
  }

  /** The heap that options name. */
  #heapFor({ heap, node }: Pick<PlacedMallocOptions, 'heap' | 'node'>): Heap {
    if (heap === undefined) return this.memory.heapOf(node ?? -1);
    return chooseHeaps({ memory: this.memory, heaps: this.heaps }, { heap, node }, 'malloc')[0];
  }

  /** Maps areas for every device, now and later; all or nothing, and so back. */
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

  /** Takes them from the devices again. */
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

  /** As {@link #reach}, while the event loop goes on. */
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
      // Where this user is not shown them: va, which gives out no physical address.
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

  #mustRun(operation: string): void {
    if (this.#stopped) throw stopped(operation);
  }
}

shortForm(Eal, 'Eal', (eal) => ({
  devices: eal.devices().map(({ name }) => name),
  external: [...eal.external.live].length,
  heaps: eal.memory.heapsInUse.length + [...eal.heaps.made].length,
  zones: eal.zones.size,
  pools: [...eal.pools].map(({ name }) => name),
}));

/** Is a heap named in these options? @throws DmaError EINVAL when they are none */
function isPlaced(options: PlacedMallocOptions, operation: string): boolean {
  mustBeObject(options, 'options', operation);
  return reading(operation, 'the options', () => options.heap) !== undefined;
}

/** @throws DmaError EINVAL */
function checkedOptions(options: EalOptions | undefined): EalOptions {
  const checked = optionsOf<EalOptions>(options, OPTIONS, START);
  const { holdBackMs = 0, remember = 0 } = checked;
  if (!(holdBackMs >= 0))
    throw invalid(START, `holdBackMs: ${holdBackMs} is no time in milliseconds`, {
      hint: 'it is 0 or more; Infinity holds back for good',
    });
  if (!isAddress(remember))
    throw invalid(START, `remember: ${remember} is no number of mappings`, { hint: 'it is a whole number, 0 or more' });
  checkLongWork(checked, START);
  const { platform } = checked;
  if (platform !== undefined)
    reading(START, 'the platform', () => {
      for (const port of [platform.memory, platform.files, platform.limits])
        mustBeObject(port, 'ports of a platform', START);
    });
  return checked;
}

const OPTIONS: Shape<EalOptions> = {
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

/** Whose the mappings of memory in heaps are, for messages. */
const HEAP_KEEPER = 'the heap that this memory is in';

const NOT_NOTED = 'with memory: { origins: true } this says where they were made';

/** At exit warnings are not printed any more. */
function tell(forgotten: readonly string[]): void {
  for (const each of forgotten) process.stderr.write(`anydma: forgotten: ${each}\n`);
}

function warn(forgotten: readonly string[]): void {
  for (const each of forgotten) process.emitWarning(`forgotten: ${each}`, { code: 'ANYDMA_FORGOTTEN' });
}
