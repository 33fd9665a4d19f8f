/**
 * An address space of the sPAPR IOMMU driver, version 2 (POWER; drivers/vfio/vfio_iommu_spapr_tce.c). IOVAs are in
 * windows that are created on demand, each with one page size; memory is registered, which pins it, before any of it is
 * mapped.
 */
import type { Constraints, Segment } from '../dma/address-space.js';
import { DmaError, invalid, undoAll, withUndo } from '../errors.js';
import type { Platform } from '../platform/ports.js';
import { Struct } from '../platform/struct.js';
import * as vfio from '../platform/uapi/vfio.js';
import { RangeMap } from '../range-map.js';
import { Range } from '../ranges.js';
import { runSteps, runStepsAsync, type Steps } from '../steps.js';
import { ADDRESS_LIMIT, formatSize, GiB, hex, type Iova, type Va } from '../units.js';
import type { VfioDevice } from './device.js';
import { explained, lockedMemoryFacts } from './facts.js';
import { GroupContainer, type ContainerType } from './group-container.js';
import { pageSizesOf, type KernelSpace, type VfioNode } from './space.js';
import { fillMap, newMap, newUnmap } from './type1.js';

const {
  IOCTL,
  VFIO_IOMMU_SPAPR_REGISTER_MEMORY: REGISTER,
  VFIO_IOMMU_SPAPR_TCE_CREATE: CREATE,
  VFIO_IOMMU_SPAPR_TCE_INFO: INFO,
  VFIO_IOMMU_SPAPR_TCE_DDW_INFO: DYNAMIC,
  VFIO_IOMMU_SPAPR_TCE_REMOVE: REMOVE,
  VFIO_IOMMU_TYPE1_DMA_UNMAP: UNMAP,
} = vfio;

const SPAPR: ContainerType = {
  extension: vfio.VFIO_SPAPR_TCE_v2_IOMMU,
  name: 'sPAPR v2',
  module: 'vfio_iommu_spapr_tce',
  groupPath: '/dev/vfio/',
};

/** Registered memory, and how much of it is mapped. */
interface Registration {
  readonly va: Va;
  readonly length: number;
  /** bytes mapped now */
  mapped: number;
  /** Is it being registered or unregistered? Then nothing of it can be mapped. */
  passing: boolean;
}

/** The window of a container. */
export interface SpaprWindow {
  readonly range: Range<Iova>;
  /** bytes; mappings are multiples of it */
  readonly pageSize: number;
}

/** Options of a {@link SpaprSpace}. */
export interface SpaprOptions {
  /**
   * Size of the window in bytes, rounded up to a power of two. Default: twice the memory of the machine, so that all of
   * it can be mapped at once; the kernel needs 8 bytes per page for it.
   */
  readonly windowBytes?: number;
  /** Its name in messages. */
  readonly name?: string;
}

/** A mapping; this kind does not use the memory's descriptor. */
type MapSegment = Pick<Segment, 'va' | 'iova' | 'length' | 'access'>;
type UnmapSegment = Pick<Segment, 'va' | 'iova' | 'length'>;

/** An address space of sPAPR. */
export class SpaprSpace implements KernelSpace {
  readonly kind = 'vfio-spapr';
  readonly name: string | undefined;
  readonly #platform: Platform;
  readonly #container: GroupContainer;
  readonly #windowBytes: number;
  /** Registrations by VA. Those of one process must not overlap. */
  readonly #registered = new RangeMap<Registration>();
  #window: SpaprWindow | undefined;
  #constraints: Constraints | undefined;

  /**
   * @throws DmaError EINVAL for invalid options; ENOENT, EACCES from /dev/vfio/vfio; ENOTSUP if this kernel has no
   * sPAPR v2
   */
  constructor(platform: Platform, options: SpaprOptions = {}) {
    this.#platform = platform;
    this.name = options.name;
    const { windowBytes = 2 * memoryOfMachine(platform) } = options;
    this.#windowBytes = 2 ** Math.ceil(Math.log2(windowBytes));
    if (!(windowBytes >= 1 && this.#windowBytes < ADDRESS_LIMIT))
      throw invalid('container', `${windowBytes} bytes is not a valid size of a DMA window`);
    this.#container = new GroupContainer(platform, SPAPR);
  }

  /** @throws DmaError ENODEV while no device is in it */
  get window(): SpaprWindow {
    if (this.#window === undefined)
      throw new DmaError({
        code: 'ENODEV',
        operation: 'container',
        reason: 'it has no window before its first device',
      });
    return this.#window;
  }

  get constraints(): Constraints {
    const { range, pageSize } = this.window;
    // Any page could be unmapped, but the memory stays registered as a whole, so a part of it could not be mapped
    // again.
    return (this.#constraints ??= {
      granule: pageSize,
      windows: [range],
      entryLimit: Infinity,
      iova: 'free',
      partialUnmap: false,
      pins: true,
    });
  }

  /** How many ranges are registered. */
  get registrations(): number {
    return this.#registered.size;
  }

  open(node: VfioNode): VfioDevice {
    const device = this.#container.open(node);
    try {
      // Groups that are added later get the existing windows.
      this.#window ??= this.#makeWindow();
      return device;
    } catch (error) {
      throw withUndo(error, 'open', undoAll([() => device.close(), () => this.release(node)]));
    }
  }

  release(node: VfioNode): void {
    this.#container.release(node);
    if (this.#container.hasIommu) return;
    // The kernel has removed the windows and the registrations.
    this.#window = undefined;
    this.#constraints = undefined;
    this.#registered.clear();
  }

  /**
   * Registers the memory if needed, and maps it. All numbers are multiples of the window's page size. An existing
   * mapping at these IOVAs is replaced: the caller must prevent that.
   *
   * @throws DmaError EBUSY if a part of it, or more than it, is registered; ENOMEM beyond the locked-memory limit;
   * ENXIO outside the window; EINVAL if misaligned
   */
  map(segment: MapSegment): undefined {
    runSteps(this.#mapping(segment), (call) => this.#call(call.request, call.argument, call.name));
  }

  /** Like {@link map}, on another thread. */
  async mapAsync(segment: MapSegment): Promise<undefined> {
    await runStepsAsync(this.#mapping(segment), (call) => this.#callAsync(call));
  }

  /**
   * Unmaps a mapping, and unregisters the memory with its last one.
   *
   * @returns `length`: this kernel driver reports nothing
   */
  unmap({ va, iova, length }: UnmapSegment): number {
    runSteps(this.#unmapping(va, iova, length), (call) => this.#call(call.request, call.argument, call.name));
    return length;
  }

  /** Like {@link unmap}, on another thread. */
  async unmapAsync({ va, iova, length }: UnmapSegment): Promise<number> {
    await runStepsAsync(this.#unmapping(va, iova, length), (call) => this.#callAsync(call));
    return length;
  }

  /** Unmaps the whole window and unregisters all memory. @returns the bytes that were mapped */
  unmapAll(): number {
    if (this.#window === undefined || this.#registered.size === 0) return 0;
    const { range } = this.#window;
    const argument = newUnmap().set64(UNMAP.iova, range.start).set64(UNMAP.size, range.length);
    this.#call(IOCTL.VFIO_IOMMU_UNMAP_DMA, argument, 'VFIO_IOMMU_UNMAP_DMA');
    let bytes = 0;
    for (const registration of [...this.#registered.values()]) {
      bytes += registration.mapped;
      runSteps(this.#unregistering(registration), (call) => this.#call(call.request, call.argument, call.name));
    }
    return bytes;
  }

  close(): void {
    this.unmapAll();
  }

  end(): void {
    this.#container.close();
  }

  /** Replaces the kernel's small default window by one for all memory. */
  #makeWindow(): SpaprWindow {
    const info = new Struct(INFO.sizeof).set32(INFO.argsz, INFO.sizeof);
    this.#call(IOCTL.VFIO_IOMMU_SPAPR_TCE_GET_INFO, info, 'VFIO_IOMMU_SPAPR_TCE_GET_INFO');
    if ((info.u32(INFO.flags) & vfio.VFIO_IOMMU_SPAPR_INFO_DDW) === 0)
      throw new DmaError({ code: 'ENOTSUP', operation: 'open', reason: 'this platform can not create DMA windows' });
    const sizes = pageSizesOf(info.u32(INFO.ddw + DYNAMIC.pgsizes), info.u32(INFO.ddw + DYNAMIC.pgsizes + 4));
    const { pageSize: systemPage } = this.#platform.memory;
    // A page of the IOMMU must lie inside one page of memory.
    const pageSize = sizes.filter((size) => size <= systemPage).at(-1);
    if (pageSize === undefined)
      throw new DmaError({
        code: 'ENOTSUP',
        operation: 'open',
        reason: `the IOMMU has no pages of ${formatSize(systemPage)} or less`,
      });
    const remove = new Struct(REMOVE.sizeof)
      .set32(REMOVE.argsz, REMOVE.sizeof)
      .set64(REMOVE.start_addr, info.u32(INFO.dma32_window_start));
    this.#call(IOCTL.VFIO_IOMMU_SPAPR_TCE_REMOVE, remove, 'VFIO_IOMMU_SPAPR_TCE_REMOVE');
    const start = this.#createWindow(pageSize, info.u32(INFO.ddw + DYNAMIC.levels));
    return { range: new Range(start as Iova, this.#windowBytes), pageSize: Math.max(pageSize, systemPage) };
  }

  /**
   * Uses as few levels as memory allows: the kernel needs the table of a level in one piece. @returns the first IOVA
   */
  #createWindow(pageSize: number, maxLevels: number): number {
    const create = new Struct(CREATE.sizeof);
    for (let levels = 1; ; levels++) {
      create
        .clear()
        .set32(CREATE.argsz, CREATE.sizeof)
        .set32(CREATE.page_shift, Math.log2(pageSize))
        .set64(CREATE.window_size, this.#windowBytes)
        .set32(CREATE.levels, levels);
      try {
        this.#call(IOCTL.VFIO_IOMMU_SPAPR_TCE_CREATE, create, 'VFIO_IOMMU_SPAPR_TCE_CREATE');
        break;
      } catch (error) {
        if (levels < maxLevels) continue;
        throw explained(error, {
          ENOMEM: () => ({
            reason: `the kernel has no memory for a window of ${formatSize(this.#windowBytes)}`,
            hint: 'its tables count as locked memory too: raise RLIMIT_MEMLOCK ("ulimit -l"), or request a smaller window',
          }),
        });
      }
    }
    const start = create.u64(CREATE.start_addr);
    if (start + this.#windowBytes <= ADDRESS_LIMIT) return start;
    const remove = new Struct(REMOVE.sizeof).set32(REMOVE.argsz, REMOVE.sizeof);
    remove.bytes.set(create.bytes.subarray(CREATE.start_addr, CREATE.start_addr + 8), REMOVE.start_addr);
    const error = new DmaError({
      code: 'ERANGE',
      operation: 'open',
      reason: `the kernel made a DMA window at ${hex(start)}, above all addresses that this library supports`,
    });
    throw withUndo(
      error,
      'open',
      undoAll([() => this.#call(IOCTL.VFIO_IOMMU_SPAPR_TCE_REMOVE, remove, 'VFIO_IOMMU_SPAPR_TCE_REMOVE')]),
    );
  }

  /**
   * The registration that contains all of [va, va + length).
   *
   * @throws DmaError EBUSY if only a part is registered, or it is being registered or unregistered
   */
  #registrationOf(va: Va, length: number): Registration | undefined {
    const found = this.#registered.overlapping(va, va + length);
    if (found === undefined) return undefined;
    const isWhole = found.va <= va && va + length <= found.va + found.length;
    if (isWhole && !found.passing) return found;
    throw new DmaError({
      code: 'EBUSY',
      operation: 'map',
      range: new Range(va, length),
      reason: `some of it is registered ${found.passing ? 'or unregistered just now' : 'already'}, as ${new Range(found.va, found.length).toString()}`,
      hint: found.passing
        ? 'wait until that has ended'
        : 'the kernel refuses memory that overlaps a registration: unmap that first',
    });
  }

  *#mapping({ va, iova, length, access }: MapSegment): Steps<Call, void> {
    const known = this.#registrationOf(va, length);
    const registration = known ?? (yield* this.#registering(va, length));
    const argument = newMap();
    fillMap(argument, va, iova, length, access);
    // Its memory must stay registered meanwhile.
    registration.mapped += length;
    try {
      yield { request: IOCTL.VFIO_IOMMU_MAP_DMA, argument, name: 'VFIO_IOMMU_MAP_DMA' };
    } catch (error) {
      registration.mapped -= length;
      const undo: unknown[] = [];
      if (registration.mapped === 0) {
        try {
          yield* this.#unregistering(registration);
        } catch (why) {
          undo.push(why);
        }
      }
      throw withUndo(this.#notMapped(error, iova, length), 'map', undo);
    }
  }

  *#unmapping(va: Va, iova: Iova, length: number): Steps<Call, void> {
    const registration = this.#registrationOf(va, length);
    if (registration === undefined) throw invalid('unmap', `nothing is mapped at ${hex(va)}`);
    const argument = newUnmap().set64(UNMAP.iova, iova).set64(UNMAP.size, length);
    yield { request: IOCTL.VFIO_IOMMU_UNMAP_DMA, argument, name: 'VFIO_IOMMU_UNMAP_DMA' };
    registration.mapped -= length;
    if (registration.mapped === 0) yield* this.#unregistering(registration);
  }

  *#registering(va: Va, length: number): Steps<Call, Registration> {
    const registration = { va, length, mapped: 0, passing: true };
    // From here on no other call can register any of it.
    this.#registered.insert(va, length, registration);
    try {
      const name = 'VFIO_IOMMU_SPAPR_REGISTER_MEMORY';
      yield { request: IOCTL.VFIO_IOMMU_SPAPR_REGISTER_MEMORY, argument: memoryArgument(va, length), name };
      registration.passing = false;
      return registration;
    } catch (error) {
      this.#registered.delete(va);
      throw explained(error, {
        ENOMEM: () => lockedMemoryFacts(this.#platform, length),
        EINVAL: () => ({
          range: new Range(va, length),
          reason: 'the kernel does not register this memory',
          hint: 'another container of this process has registered an overlapping, different range',
        }),
      });
    }
  }

  *#unregistering(registration: Registration): Steps<Call, void> {
    const { va, length } = registration;
    const name = 'VFIO_IOMMU_SPAPR_UNREGISTER_MEMORY';
    registration.passing = true;
    try {
      yield { request: IOCTL.VFIO_IOMMU_SPAPR_UNREGISTER_MEMORY, argument: memoryArgument(va, length), name };
    } finally {
      registration.passing = false;
    }
    this.#registered.delete(va);
  }

  #notMapped(error: unknown, iova: Iova, length: number): unknown {
    return explained(error, {
      ENXIO: () => ({
        code: 'EINVAL',
        range: new Range(iova, length),
        reason: 'no DMA window is at these IOVAs',
        hint: `the window is ${this.window.range.toString()}`,
      }),
      EPERM: () => ({
        reason: 'the pages of the IOMMU are larger than those of the memory',
        hint: `mappings have to be in pages of ${formatSize(this.window.pageSize)}`,
      }),
    });
  }

  #call(request: number, argument: Struct, name: string): void {
    this.#platform.ioctl.call(this.#container.fd, request, argument.bytes, name);
  }

  async #callAsync({ request, argument, name }: Call): Promise<void> {
    await this.#platform.ioctl.callAsync(this.#container.fd, request, argument.bytes, name);
  }
}

/** One ioctl of the container. */
interface Call {
  readonly request: number;
  readonly argument: Struct;
  readonly name: string;
}

function memoryArgument(va: Va, length: number): Struct {
  const argument = new Struct(REGISTER.sizeof).set32(REGISTER.argsz, REGISTER.sizeof);
  return argument.set64(REGISTER.vaddr, va).set64(REGISTER.size, length);
}

/** Memory of the machine in bytes, from /proc/meminfo; 32 GiB if that can not be read. */
function memoryOfMachine(platform: Platform): number {
  const match = /^MemTotal:\s+(\d+) kB/m.exec(platform.kernel.readText('/proc/meminfo') ?? '');
  return match === null ? 32 * GiB : Number(match[1]) * 1024;
}
