/**
 * An address space of iommufd: an IOAS (Documentation/userspace-api/iommufd.rst; drivers/iommu/iommufd) with devices
 * opened by their character devices. A mapping can only be unmapped as a whole; the kernel returns how many bytes it
 * unmapped.
 */
import type { Constraints, DmaAccess, Segment } from '../dma/address-space.js';
import { DmaError, isDmaError, throwFirst, undoAll, withUndo } from '../errors.js';
import type { Fields, JsonObject } from '../fields.js';
import type { Platform } from '../platform/ports.js';
import { Struct } from '../platform/struct.js';
import * as iommufd from '../platform/uapi/iommufd.js';
import { RangeMap } from '../range-map.js';
import { Range } from '../ranges.js';
import { runSteps, runStepsAsync, type Steps } from '../steps.js';
import type { Iova, Va } from '../units.js';
import { VfioDevice } from './device.js';
import type { DirtyTracking } from './dirty.js';
import { explained, explaining, mappingRefused } from './facts.js';
import type { IommufdContext } from './iommufd-context.js';
import { bindDevice, openCharacterDevice } from './iommufd-devices.js';
import { PageTables } from './iommufd-page-tables.js';
import { PageRequests } from './page-requests.js';
import { sameWindows, windowsOf, type KernelSpace, type VfioNode } from './space.js';
import {
  type Arguments,
  type MapSegment,
  type MappingCall,
  copyCall,
  isSame,
  mapCall,
  mapFileCall,
  newArguments,
} from './iommufd-calls.js';

const {
  IOCTL,
  IOMMU_IOAS_ALLOC: ALLOC,
  IOMMU_IOAS_ALLOW_IOVAS: ALLOW,
  IOMMU_IOAS_IOVA_RANGES: RANGES,
  IOMMU_IOAS_UNMAP: UNMAP,
  IOMMU_IOVA_RANGE: RANGE,
} = iommufd;

/** A context shared by address spaces. */
export type SharedIommufd = IommufdContext<IommufdSpace>;

/** Options of an {@link IommufdSpace}. */
export interface IommufdOptions {
  /** Queue page requests of devices that support them (PCI PRI), for the program to answer? Default false. */
  readonly pageRequests?: boolean;
  /** Its name in messages. */
  readonly name?: string;
}

/** The range to unmap; `va` is the VA of its first byte. */
type UnmapSegment = Pick<Segment, 'iova' | 'length'> & { readonly va?: Va };

/** An address space of iommufd. Its owner ends it after the last device was released. */
export class IommufdSpace implements KernelSpace {
  readonly kind = 'iommufd';
  readonly name: string | undefined;
  /** Number of its IOAS in iommufd. */
  readonly id: number;
  /** Page requests of its devices; `undefined` unless enabled in the options. */
  readonly pageRequests: PageRequests | undefined;
  readonly #platform: Platform;
  readonly #context: SharedIommufd;
  /** Arguments of synchronous calls; calls on other threads have their own. */
  readonly #arguments: Arguments;
  /** Those of them that the kernel did not map by their descriptor, by VA. */
  readonly #notByFile = new Map<Va, MapSegment>();
  /** Segments mapped by {@link map}, by VA. */
  readonly #placed = new RangeMap<MapSegment>();
  readonly #pageTables: PageTables;
  /** By name, the numbers that the kernel gave them. */
  readonly #devices = new Map<string, number>();
  #windows: readonly Range<Iova>[] = [];
  #granule: number;
  #constraints: Constraints | undefined;
  #closed = false;

  /**
   * @param taken the address space that another process has handed over, with the context; default: a new one
   * @throws DmaError ENOENT, EACCES from /dev/iommu; errors of the kernel for lack of memory; EPROTO for `taken`
   */
  constructor(platform: Platform, context: SharedIommufd, options: IommufdOptions = {}, taken?: Fields) {
    this.#platform = platform;
    this.name = options.name;
    this.#context = context;
    this.#granule = platform.memory.pageSize;
    context.enter(this);
    const undo: (() => void)[] = [() => context.leave(this)];
    try {
      const id = taken?.number('id') ?? allocate(context);
      if (taken === undefined) undo.unshift(() => context.destroy(id));
      this.id = id;
      this.#arguments = newArguments(id);
      this.#refresh();
      this.pageRequests =
        options.pageRequests === true ? new PageRequests(platform, context, (id) => this.#nameOf(id)) : undefined;
      this.#pageTables = new PageTables(platform, context, this);
      if (taken !== undefined) {
        this.#pageTables.takeOver(taken.objectAt('pageTables'));
        for (const device of taken.list('devices')) this.#devices.set(device.string('name'), device.number('id'));
      }
    } catch (error) {
      throw withUndo(error, 'iommufd', undoAll(undo));
    }
  }

  /** Usable IOVA ranges. Returns the same array until they change. */
  get windows(): readonly Range<Iova>[] {
    return this.#windows;
  }

  /** bytes; VA, IOVA and length of every mapping must be multiples of it */
  get granule(): number {
    return this.#granule;
  }

  get constraints(): Constraints {
    const granule = this.#granule;
    const windows = this.#windows;
    if (this.#constraints?.windows !== windows || this.#constraints.granule !== granule)
      // iommufd has no limit on mappings, and unmaps each as a whole.
      this.#constraints = { granule, windows, entryLimit: Infinity, iova: 'free', partialUnmap: false, pins: true };
    return this.#constraints;
  }

  open(node: VfioNode): VfioDevice {
    const { name } = node;
    const fd = openCharacterDevice(this.#platform, node);
    let id: number;
    try {
      id = bindDevice(this.#platform, this.#context.fd, fd, node);
      this.#pageTables.attach(fd, id, node);
    } catch (error) {
      throw withUndo(error, 'open', undoAll([() => this.#platform.files.close(fd), () => this.#forget(name)]));
    }
    this.#devices.set(name, id);
    let device: VfioDevice;
    try {
      device = VfioDevice.fromFd(this.#platform, fd, name);
    } catch (error) {
      throw withUndo(error, 'open', undoAll([() => this.#forget(name)]));
    }
    try {
      this.#refresh();
      return device;
    } catch (error) {
      throw withUndo(error, 'open', undoAll([() => device.close(), () => this.release(node)]));
    }
  }

  /**
   * What another process needs to continue with it.
   *
   * @throws DmaError ENOTSUP if it takes page requests, or has mappings that are not by descriptor: the error names them
   */
  handOver(): JsonObject {
    const refuse = (reason: string, hint?: string): DmaError =>
      new DmaError({ code: 'ENOTSUP', operation: 'handOver', reason: `${this.name ?? 'iommufd'}: ${reason}`, hint });
    if (this.pageRequests !== undefined) throw refuse('page requests can not be handed over');
    const others = [...this.#notByFile.values()].map(({ va, length }) => new Range(va, length).toString());
    if (others.length > 0)
      throw refuse(
        `${others.length} of its mappings ${others.length === 1 ? 'is' : 'are'} not by descriptor: ${others.slice(0, 5).join(', ')}${others.length > 5 ? ', ...' : ''}`,
        'the kernel counts their pages for the process that mapped them (IOMMU_IOAS_CHANGE_PROCESS): unmap them first, and ' +
          'map memory of memfds instead, such as that of external.allocate',
      );
    const devices = [...this.#devices].map(([name, id]) => ({ name, id }));
    return { id: this.id, devices, pageTables: this.#pageTables.handOver() };
  }

  /** Notes a segment that another process mapped in it. */
  takeOver({ va, iova, length, access, backing }: Segment): void {
    this.#notePlaced({ va, iova, length, access, backing });
  }

  /** Another process has it: this object has no devices and mappings any more. */
  abandon(): void {
    this.#closed = true;
    this.#devices.clear();
    this.#placed.clear();
    this.#notByFile.clear();
  }

  /** Continues with a device that another process has handed over. @param fd belongs to the result, also if it throws */
  takeOverDevice({ name }: VfioNode, fd: number): VfioDevice {
    return VfioDevice.fromFd(this.#platform, fd, name);
  }

  release({ name }: VfioNode): void {
    if (!this.#devices.has(name)) return;
    this.#forget(name);
    // Releasing a device can only widen the windows: if reading them fails, the old ones are still valid.
    undoAll([() => this.#refresh()]);
  }

  /**
   * Maps a segment in the way that pins the least memory: by copying an identical mapping of another address space,
   * else by its descriptor, else by its VA.
   *
   * @throws DmaError as {@link mapVa}
   */
  map(segment: MapSegment): undefined {
    runSteps(this.#placing(segment, this.#arguments), (call) => this.#call(call));
  }

  /** Like {@link map}, on another thread. */
  async mapAsync(segment: MapSegment): Promise<undefined> {
    await runStepsAsync(this.#placing(segment, newArguments(this.id)), async ({ request, argument, name, mapped }) => {
      try {
        await this.#context.callAsync(request, argument, name);
      } catch (error) {
        throw this.#notMapped(error, mapped);
      }
    });
  }

  /**
   * IOMMU_IOAS_UNMAP: unmaps all mappings inside the range; none may extend beyond it.
   *
   * @returns the bytes that the kernel unmapped
   * @throws DmaError ENOENT if nothing is mapped there, or the range divides a mapping
   */
  unmap({ va, iova, length }: UnmapSegment): number {
    const { unmap } = this.#arguments;
    unmap.set64(UNMAP.iova, iova).set64(UNMAP.length, length);
    this.#context.call(IOCTL.IOMMU_IOAS_UNMAP, unmap, 'IOMMU_IOAS_UNMAP');
    if (va !== undefined) this.#forgetPlaced(va);
    return unmap.u64(UNMAP.length);
  }

  /** Like {@link unmap}, on another thread. */
  async unmapAsync({ va, iova, length }: UnmapSegment): Promise<number> {
    const { unmap } = newArguments(this.id);
    unmap.set64(UNMAP.iova, iova).set64(UNMAP.length, length);
    await this.#context.callAsync(IOCTL.IOMMU_IOAS_UNMAP, unmap, 'IOMMU_IOAS_UNMAP');
    if (va !== undefined) this.#forgetPlaced(va);
    return unmap.u64(UNMAP.length);
  }

  /**
   * IOMMU_IOAS_MAP. All numbers are multiples of the granule.
   *
   * @throws DmaError EEXIST if an IOVA is mapped already; EINVAL if misaligned, or outside the windows; ENOMEM beyond
   * the locked-memory limit; EFAULT if the VA has no memory, or none that can be pinned
   */
  mapVa(va: Va, iova: Iova, length: number, access: DmaAccess): void {
    this.#call(mapCall(this.#arguments, va, iova, length, access));
  }

  /**
   * IOMMU_IOAS_MAP_FILE: like {@link mapVa}, for `length` bytes at `offset` of a memfd.
   *
   * @throws DmaError ENOTTY before Linux 6.13; EINVAL also for a file that is not a memfd; as `mapVa`
   */
  mapFile(fd: number, offset: number, iova: Iova, length: number, access: DmaAccess): void {
    this.#call(mapFileCall(this.#arguments, { fd, offset }, iova, length, access));
  }

  /**
   * IOMMU_IOAS_COPY: maps the memory that `source`, of the same context, has at `from`; the pages are pinned once for
   * both.
   *
   * @throws DmaError ENOENT if it is not all mapped there; EPERM if write access is requested but not granted there; as
   * `mapVa`
   */
  copyFrom(source: IommufdSpace, from: Iova, iova: Iova, length: number, access: DmaAccess): void {
    this.#call(copyCall(this.#arguments, source.id, from, iova, length, access));
  }

  /** Unmaps everything. @returns the bytes unmapped */
  unmapAll(): number {
    if (this.#closed) return 0;
    const { unmap } = this.#arguments;
    unmap.set64(UNMAP.iova, 0).set64(UNMAP.length, 2 ** 64);
    try {
      this.#context.call(IOCTL.IOMMU_IOAS_UNMAP, unmap, 'IOMMU_IOAS_UNMAP');
    } catch (error) {
      // Older kernels return this if nothing was mapped.
      if (isDmaError(error, 'ENOENT')) return 0;
      throw error;
    }
    this.#placed.clear();
    this.#notByFile.clear();
    return unmap.u64(UNMAP.length);
  }

  /**
   * Keeps these IOVAs usable: a device that can not reach them can not be opened here any more
   * (IOMMU_IOAS_ALLOW_IOVAS).
   *
   * @throws DmaError EADDRINUSE if one of the devices can not reach them; EINVAL if they overlap
   */
  allowIovas(ranges: readonly Range<Iova>[]): void {
    const list = new Struct(Math.max(1, ranges.length) * RANGE.sizeof);
    ranges.forEach(({ start, end }, i) => {
      list.set64(i * RANGE.sizeof + RANGE.start, start).set64(i * RANGE.sizeof + RANGE.last, end - 1);
    });
    const argument = new Struct(ALLOW.sizeof)
      .set32(ALLOW.size, ALLOW.sizeof)
      .set32(ALLOW.ioas_id, this.id)
      .set32(ALLOW.num_iovas, ranges.length)
      .set64(ALLOW.allowed_iovas, this.#platform.memory.addressOf(list.bytes));
    explaining(
      {
        EADDRINUSE: () => ({
          reason: 'not all devices can reach these IOVAs',
          hint: `the windows are ${this.#windows.map(String).join(', ')}`,
        }),
      },
      () => this.#context.call(IOCTL.IOMMU_IOAS_ALLOW_IOVAS, argument, 'IOMMU_IOAS_ALLOW_IOVAS'),
    );
  }

  get dirty(): DirtyTracking {
    return this.#pageTables;
  }

  /** Can the IOMMUs of all its devices track dirty pages? */
  get tracksDirtyPages(): boolean {
    return this.#pageTables.tracksDirtyPages;
  }

  close(): void {
    this.unmapAll();
  }

  end(): void {
    if (this.#closed) return;
    if (this.#devices.size > 0) {
      const reason = `it has devices: ${[...this.#devices.keys()].join(', ')}`;
      throw new DmaError({ code: 'EBUSY', operation: 'close', reason });
    }
    this.#closed = true;
    this.#placed.clear();
    this.#notByFile.clear();
    throwFirst(
      undoAll([
        () => this.#pageTables.close(),
        () => this.pageRequests?.close(),
        // What is mapped goes with it.
        () => this.#context.destroy(this.id),
        () => this.#context.leave(this),
      ]),
      'close',
    );
  }

  // --- mapping ---

  /** The calls of {@link map}, in order; each is made unless an earlier one succeeded. */
  *#placing(segment: MapSegment, structs: Arguments): Steps<MappingCall, void> {
    const isAlone = this.#context.spaces.size < 2;
    const placed =
      (!isAlone && (yield* this.#placingAsCopy(segment, structs))) || (yield* this.#placingByFile(segment, structs));
    const { va, iova, length, access } = segment;
    if (!placed) {
      yield mapCall(structs, va, iova, length, access);
      this.#notByFile.set(va, segment);
    }
    this.#notePlaced(segment);
  }

  /** What is in its way there is not mapped any more: it was unmapped by its IOVAs alone. */
  #notePlaced(segment: MapSegment): void {
    const { va, length } = segment;
    let other = this.#placed.insert(va, length, segment);
    for (; other !== undefined; other = this.#placed.insert(va, length, segment)) this.#forgetPlaced(other.va);
  }

  #forgetPlaced(va: Va): void {
    this.#placed.delete(va);
    if (this.#notByFile.size > 0) this.#notByFile.delete(va);
  }

  *#placingAsCopy(segment: MapSegment, structs: Arguments): Steps<MappingCall, boolean> {
    const { va, iova, length, access } = segment;
    for (const space of [...this.#context.spaces]) {
      if (space === this) continue;
      const there = space.#placed.exact(va, length);
      if (there === undefined || !isSame(there, segment)) continue;
      try {
        yield copyCall(structs, space.id, there.iova, iova, length, access);
        if (space.#notByFile.has(va)) this.#notByFile.set(va, segment);
        return true;
      } catch (error) {
        // The other space no longer maps it, or with less access: pin it again.
        if (!isDmaError(error, 'ENOENT') && !isDmaError(error, 'EPERM')) throw error;
      }
    }
    return false;
  }

  *#placingByFile({ backing, iova, length, access }: MapSegment, structs: Arguments): Steps<MappingCall, boolean> {
    if (this.#context.mapsFiles === false || backing === undefined) return false;
    try {
      yield mapFileCall(structs, backing, iova, length, access);
      this.#context.mapsFiles = true;
      return true;
    } catch (error) {
      if (isDmaError(error, 'ENOTTY')) this.#context.mapsFiles = false;
      // EINVAL: a file on disk, or too short; ENOTSUP: a DMA buffer that can not be mapped. Mapping by VA reports any
      // other error.
      else if (!isDmaError(error, 'EINVAL') && !isDmaError(error, 'ENOTSUP')) throw error;
      return false;
    }
  }

  #call({ request, argument, name, mapped }: MappingCall): void {
    try {
      this.#context.call(request, argument, name);
    } catch (error) {
      throw this.#notMapped(error, mapped);
    }
  }

  #notMapped(error: unknown, { iova, length }: MappingCall['mapped']): unknown {
    const range = new Range(iova, length);
    return explained(error, {
      ...mappingRefused(this.#platform, range),
      EINVAL: () => ({
        range,
        reason: 'the kernel takes no mapping of this memory at these IOVAs',
        hint: `the windows are ${this.#windows.map(String).join(', ')}`,
      }),
    });
  }

  #nameOf(id: number): string | undefined {
    for (const [name, number] of this.#devices) if (number === id) return name;
    return undefined;
  }

  /** Removes a closed device from the books. */
  #forget(name: string): void {
    this.#devices.delete(name);
    this.#pageTables.forget(name);
  }

  /** Reads the constraints again: opening or releasing a device may change them. */
  #refresh(): void {
    for (let room = 16; ;) {
      const list = new Struct(room * RANGE.sizeof);
      const argument = new Struct(RANGES.sizeof)
        .set32(RANGES.size, RANGES.sizeof)
        .set32(RANGES.ioas_id, this.id)
        .set32(RANGES.num_iovas, room)
        .set64(RANGES.allowed_iovas, this.#platform.memory.addressOf(list.bytes));
      try {
        this.#context.call(IOCTL.IOMMU_IOAS_IOVA_RANGES, argument, 'IOMMU_IOAS_IOVA_RANGES');
      } catch (error) {
        if (!isDmaError(error, 'EMSGSIZE') || argument.u32(RANGES.num_iovas) <= room) throw error;
        room = argument.u32(RANGES.num_iovas);
        continue;
      }
      const ranges = Array.from({ length: argument.u32(RANGES.num_iovas) }, (_, i) => ({
        start: list.u64(i * RANGE.sizeof + RANGE.start),
        last: list.u64(i * RANGE.sizeof + RANGE.last),
      }));
      this.#windows = sameWindows(this.#windows, windowsOf(ranges));
      this.#granule = Math.max(this.#platform.memory.pageSize, argument.u64(RANGES.out_iova_alignment));
      return;
    }
  }
}

/** IOMMU_IOAS_ALLOC. @returns the number of the IOAS */
function allocate(context: SharedIommufd): number {
  const alloc = new Struct(ALLOC.sizeof).set32(ALLOC.size, ALLOC.sizeof);
  context.call(IOCTL.IOMMU_IOAS_ALLOC, alloc, 'IOMMU_IOAS_ALLOC');
  return alloc.u32(ALLOC.out_ioas_id);
}
