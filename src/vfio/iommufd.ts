/**
 * An address space of iommufd: an IOAS (Documentation/userspace-api/iommufd.rst; drivers/iommu/iommufd) with devices
 * opened by their character devices. A mapping can only be unmapped as a whole; the kernel returns how many bytes it
 * unmapped.
 */
import type { Constraints, DmaAccess, Segment } from '../dma/address-space.js';
import { DmaError, isDmaError, throwFirst, undoAll, withUndo } from '../errors.js';
import type { Platform } from '../platform/ports.js';
import { Struct } from '../platform/struct.js';
import * as iommufd from '../platform/uapi/iommufd.js';
import { IOCTL as VFIO_IOCTL, VFIO_DEVICE_ATTACH_IOMMUFD_PT, VFIO_DEVICE_BIND_IOMMUFD } from '../platform/uapi/vfio.js';
import { RangeMap } from '../range-map.js';
import { Range } from '../ranges.js';
import { runSteps, runStepsAsync, type Steps } from '../steps.js';
import type { Iova, Va } from '../units.js';
import { VfioDevice } from './device.js';
import { DirtyPages, type DirtyTracking } from './dirty.js';
import {
  blockers,
  explained,
  explaining,
  mappingRefused,
  notViable,
  openNode,
  whyNotHanded,
  type Reasons,
} from './facts.js';
import type { IommufdContext } from './iommufd-context.js';
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
  IOMMU_HWPT_ALLOC: HWPT,
  IOMMU_HWPT_GET_DIRTY_BITMAP: DIRTY,
  IOMMU_HWPT_SET_DIRTY_TRACKING: TRACK,
  IOMMU_HW_INFO: HW_INFO,
  IOMMU_IOAS_ALLOC: ALLOC,
  IOMMU_IOAS_ALLOW_IOVAS: ALLOW,
  IOMMU_IOAS_IOVA_RANGES: RANGES,
  IOMMU_IOAS_UNMAP: UNMAP,
  IOMMU_IOVA_RANGE: RANGE,
} = iommufd;

/** A context shared by address spaces. */
export type SharedIommufd = IommufdContext<IommufdSpace>;

/** A hardware page table that this library allocated because it needs certain features. */
interface PageTable {
  readonly id: number;
  readonly tracksDirtyPages: boolean;
  readonly devices: Set<string>;
}

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
export class IommufdSpace implements KernelSpace, DirtyTracking {
  readonly kind = 'iommufd';
  readonly name: string | undefined;
  /** Page requests of its devices; `undefined` unless enabled in the options. */
  readonly pageRequests: PageRequests | undefined;
  readonly #platform: Platform;
  readonly #context: SharedIommufd;
  readonly #id: number;
  /** Arguments of synchronous calls; calls on other threads have their own. */
  readonly #arguments: Arguments;
  /** Segments mapped by {@link map}, by VA. */
  readonly #placed = new RangeMap<MapSegment>();
  readonly #pageTables: PageTable[] = [];
  /** By name, the numbers that the kernel gave them. */
  readonly #devices = new Map<string, number>();
  #windows: readonly Range<Iova>[] = [];
  #granule: number;
  #constraints: Constraints | undefined;
  #tracking = false;
  #closed = false;

  /** @throws DmaError ENOENT, EACCES from /dev/iommu; errors of the kernel for lack of memory */
  constructor(platform: Platform, context: SharedIommufd, options: IommufdOptions = {}) {
    this.#platform = platform;
    this.name = options.name;
    this.#context = context;
    this.#granule = platform.memory.pageSize;
    context.enter(this);
    const undo: (() => void)[] = [() => context.leave(this)];
    try {
      const alloc = new Struct(ALLOC.sizeof).set32(ALLOC.size, ALLOC.sizeof);
      context.call(IOCTL.IOMMU_IOAS_ALLOC, alloc, 'IOMMU_IOAS_ALLOC');
      const id = alloc.u32(ALLOC.out_ioas_id);
      undo.unshift(() => context.destroy(id));
      this.#id = id;
      this.#arguments = newArguments(id);
      this.#refresh();
      this.pageRequests =
        options.pageRequests === true ? new PageRequests(platform, context, (id) => this.#nameOf(id)) : undefined;
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
    const fd = this.#openCharacterDevice(node);
    let id: number;
    try {
      id = this.#bind(fd, node);
      this.#attach(fd, id, node);
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
    await runStepsAsync(this.#placing(segment, newArguments(this.#id)), async ({ request, argument, name, mapped }) => {
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
    if (va !== undefined) this.#placed.delete(va);
    return unmap.u64(UNMAP.length);
  }

  /** Like {@link unmap}, on another thread. */
  async unmapAsync({ va, iova, length }: UnmapSegment): Promise<number> {
    const { unmap } = newArguments(this.#id);
    unmap.set64(UNMAP.iova, iova).set64(UNMAP.length, length);
    await this.#context.callAsync(IOCTL.IOMMU_IOAS_UNMAP, unmap, 'IOMMU_IOAS_UNMAP');
    if (va !== undefined) this.#placed.delete(va);
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
    this.#call(copyCall(this.#arguments, source.#id, from, iova, length, access));
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
      .set32(ALLOW.ioas_id, this.#id)
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

  // --- dirty pages ---

  /** Can the IOMMUs of all its devices track dirty pages? */
  get tracksDirtyPages(): boolean {
    const tracked = this.#pageTables.filter((table) => table.tracksDirtyPages);
    return tracked.length > 0 && tracked.reduce((sum, { devices }) => sum + devices.size, 0) === this.#devices.size;
  }

  get dirty(): DirtyTracking {
    return this;
  }

  get pageSize(): number {
    return this.#granule;
  }

  start(): void {
    this.#setTracking(true);
  }

  stop(): void {
    this.#setTracking(false);
  }

  read(range: Range<Iova>, options: { readonly keep?: boolean } = {}): DirtyPages {
    this.#mustTrack();
    if (!this.#tracking)
      throw new DmaError({ code: 'EINVAL', operation: 'dirty pages', reason: 'tracking was not started' });
    const pages = new DirtyPages(range, this.pageSize);
    const argument = new Struct(DIRTY.sizeof)
      .set32(DIRTY.size, DIRTY.sizeof)
      .set32(DIRTY.flags, options.keep === true ? iommufd.IOMMU_HWPT_GET_DIRTY_BITMAP_NO_CLEAR : 0)
      .set64(DIRTY.iova, range.start)
      .set64(DIRTY.length, range.length)
      .set64(DIRTY.page_size, pages.pageSize)
      .set64(DIRTY.data, this.#platform.memory.addressOf(pages.bitmap));
    // Each call sets the bits of pages its devices wrote and keeps the others.
    for (const { id } of this.#pageTables)
      this.#context.call(
        IOCTL.IOMMU_HWPT_GET_DIRTY_BITMAP,
        argument.set32(DIRTY.hwpt_id, id),
        'IOMMU_HWPT_GET_DIRTY_BITMAP',
      );
    return pages;
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
    throwFirst(
      undoAll([
        ...this.#pageTables.splice(0).map(
          ({ id }) =>
            () =>
              this.#context.destroy(id),
        ),
        () => this.pageRequests?.close(),
        // What is mapped goes with it.
        () => this.#context.destroy(this.#id),
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
    if (!placed) yield mapCall(structs, va, iova, length, access);
    this.#notePlaced(segment);
  }

  /** What is in its way there is not mapped any more: it was unmapped by its IOVAs alone. */
  #notePlaced(segment: MapSegment): void {
    const { va, length } = segment;
    let other = this.#placed.insert(va, length, segment);
    for (; other !== undefined; other = this.#placed.insert(va, length, segment)) this.#placed.delete(other.va);
  }

  *#placingAsCopy(segment: MapSegment, structs: Arguments): Steps<MappingCall, boolean> {
    const { va, iova, length, access } = segment;
    for (const space of [...this.#context.spaces]) {
      if (space === this) continue;
      const there = space.#placed.exact(va, length);
      if (there === undefined || !isSame(there, segment)) continue;
      try {
        yield copyCall(structs, space.#id, there.iova, iova, length, access);
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

  // --- devices ---

  #nameOf(id: number): string | undefined {
    for (const [name, number] of this.#devices) if (number === id) return name;
    return undefined;
  }

  #openCharacterDevice({ name, device }: VfioNode): number {
    if (device === undefined)
      throw new DmaError({
        code: 'ENODEV',
        operation: 'open',
        reason: `${name} has no character device of VFIO`,
        hint: `bind it to vfio-pci ("anydma bind ${name}"); the kernel needs CONFIG_VFIO_DEVICE_CDEV (Linux 6.6), or use a type1 container`,
      });
    return openNode(
      this.#platform,
      device,
      `bind ${name} to vfio-pci; the kernel needs CONFIG_VFIO_DEVICE_CDEV, or use a type1 container`,
    );
  }

  #bind(fd: number, { name, group, device = name }: VfioNode): number {
    const { kernel } = this.#platform;
    const argument = new Struct(VFIO_DEVICE_BIND_IOMMUFD.sizeof)
      .set32(VFIO_DEVICE_BIND_IOMMUFD.argsz, VFIO_DEVICE_BIND_IOMMUFD.sizeof)
      .set32(VFIO_DEVICE_BIND_IOMMUFD.iommufd, this.#context.fd);
    const reasons: Reasons = {
      EPERM: () => {
        if (group !== undefined && blockers(kernel, group) !== '') return notViable(kernel, group, 'open');
        return (
          whyNotHanded(this.#platform, group, name, 'iommufd') ?? {
            reason: `the kernel does not give ${name} to this program`,
            hint:
              'another program has a device of its IOMMU group, or interrupts are not isolated on this machine: enable ' +
              'interrupt remapping (firmware, or "intremap=on" in QEMU), or take the risk with ' +
              '"echo Y > /sys/module/iommufd/parameters/allow_unsafe_interrupts"; the kernel log (dmesg) says which it was',
          }
        );
      },
      EBUSY: () =>
        group !== undefined && blockers(kernel, group) !== ''
          ? notViable(kernel, group, 'open')
          : { reason: `${name} is in use`, hint: `a program has its IOMMU group open, as /dev/vfio/${group ?? 'N'}` },
      // The arguments are correct, so the cause is another user of the device, or the IOMMU.
      EINVAL: () =>
        whyNotHanded(this.#platform, group, name, 'iommufd') ?? {
          code: 'EBUSY',
          reason: `${name} is probably in use`,
          hint: `another program has ${device} open; if not, its IOMMU can not keep caches coherent: use type1`,
        },
    };
    explaining(reasons, () =>
      this.#platform.ioctl.call(fd, VFIO_IOCTL.VFIO_DEVICE_BIND_IOMMUFD, argument.bytes, 'VFIO_DEVICE_BIND_IOMMUFD'),
    );
    return argument.u32(VFIO_DEVICE_BIND_IOMMUFD.out_devid);
  }

  /** Attaches a device, with its own page table if that supports more than the kernel's default. */
  #attach(fd: number, id: number, node: VfioNode): void {
    const tracks = this.#hardwareTracks(id);
    if (!tracks && this.pageRequests === undefined) return this.#attachTo(fd, this.#id, node);
    for (const table of this.#pageTables) if (table.tracksDirtyPages === tracks && this.#joins(fd, table, node)) return;
    const table = this.#makePageTable(id, tracks);
    this.#pageTables.push(table);
    table.devices.add(node.name);
    this.#attachTo(fd, table.id, node);
  }

  /** Attaches to an existing page table; false if the device's IOMMU can not use it. */
  #joins(fd: number, table: PageTable, node: VfioNode): boolean {
    try {
      this.#attachTo(fd, table.id, node);
      table.devices.add(node.name);
      return true;
    } catch (error) {
      if (isDmaError(error, 'EINVAL')) return false;
      throw error;
    }
  }

  #attachTo(fd: number, pageTable: number, { name, group }: VfioNode): void {
    const argument = new Struct(VFIO_DEVICE_ATTACH_IOMMUFD_PT.sizeof)
      .set32(VFIO_DEVICE_ATTACH_IOMMUFD_PT.argsz, VFIO_DEVICE_ATTACH_IOMMUFD_PT.sizeof)
      .set32(VFIO_DEVICE_ATTACH_IOMMUFD_PT.pt_id, pageTable);
    const reasons: Reasons = {
      EADDRINUSE: () => ({
        reason: `${name} can not reach all IOVAs that are mapped in this address space`,
        hint: 'open it before the first mapping, or in a separate container',
      }),
      EPERM: () => whyNotHanded(this.#platform, group, name, 'iommufd') ?? {},
      ENOMEM: () => ({
        reason: 'the kernel has no memory for the page tables of another IOMMU',
        hint: 'a device behind another IOMMU needs its own page tables for all mappings',
      }),
    };
    explaining(reasons, () =>
      this.#platform.ioctl.call(
        fd,
        VFIO_IOCTL.VFIO_DEVICE_ATTACH_IOMMUFD_PT,
        argument.bytes,
        'VFIO_DEVICE_ATTACH_IOMMUFD_PT',
      ),
    );
  }

  #hardwareTracks(id: number): boolean {
    const info = new Struct(HW_INFO.sizeof).set32(HW_INFO.size, HW_INFO.sizeof).set32(HW_INFO.dev_id, id);
    try {
      this.#context.call(IOCTL.IOMMU_GET_HW_INFO, info, 'IOMMU_GET_HW_INFO');
    } catch (error) {
      // Not supported before Linux 6.6, or by the IOMMU's driver.
      if (isDmaError(error, 'ENOTTY') || isDmaError(error, 'ENOTSUP')) return false;
      throw error;
    }
    return info.u32(HW_INFO.out_capabilities) % 2 === iommufd.IOMMU_HW_CAP_DIRTY_TRACKING;
  }

  #makePageTable(device: number, tracksDirtyPages: boolean): PageTable {
    const faults = this.pageRequests;
    const argument = new Struct(HWPT.sizeof)
      .set32(HWPT.size, HWPT.sizeof)
      .set32(
        HWPT.flags,
        (tracksDirtyPages ? iommufd.IOMMU_HWPT_ALLOC_DIRTY_TRACKING : 0) |
          (faults === undefined ? 0 : iommufd.IOMMU_HWPT_FAULT_ID_VALID),
      )
      .set32(HWPT.dev_id, device)
      .set32(HWPT.pt_id, this.#id)
      .set32(HWPT.fault_id, faults?.id ?? 0);
    this.#context.call(IOCTL.IOMMU_HWPT_ALLOC, argument, 'IOMMU_HWPT_ALLOC');
    const id = argument.u32(HWPT.out_hwpt_id);
    try {
      if (tracksDirtyPages && this.#tracking) this.#track(id, true);
    } catch (error) {
      throw withUndo(error, 'open', undoAll([() => this.#context.destroy(id)]));
    }
    return { id, tracksDirtyPages, devices: new Set() };
  }

  /** Removes a closed device from the books, and destroys the page table that only it used. */
  #forget(name: string): void {
    this.#devices.delete(name);
    for (const table of [...this.#pageTables]) {
      if (!table.devices.delete(name) || table.devices.size > 0) continue;
      this.#pageTables.splice(this.#pageTables.indexOf(table), 1);
      this.#context.destroy(table.id);
    }
  }

  // --- the rest ---

  #mustTrack(): void {
    if (this.tracksDirtyPages) return;
    const reason = 'not all IOMMUs of this address space can track dirty pages';
    throw new DmaError({ code: 'ENOTSUP', operation: 'dirty pages', reason });
  }

  #setTracking(enable: boolean): void {
    this.#mustTrack();
    const done: number[] = [];
    try {
      for (const { id } of this.#pageTables) {
        this.#track(id, enable);
        done.push(id);
      }
    } catch (error) {
      throw withUndo(error, 'dirty pages', undoAll(done.map((id) => () => this.#track(id, !enable))));
    }
    this.#tracking = enable;
  }

  #track(pageTable: number, enable: boolean): void {
    const argument = new Struct(TRACK.sizeof)
      .set32(TRACK.size, TRACK.sizeof)
      .set32(TRACK.flags, enable ? iommufd.IOMMU_HWPT_DIRTY_TRACKING_ENABLE : 0)
      .set32(TRACK.hwpt_id, pageTable);
    this.#context.call(IOCTL.IOMMU_HWPT_SET_DIRTY_TRACKING, argument, 'IOMMU_HWPT_SET_DIRTY_TRACKING');
  }

  /** Reads the constraints again: opening or releasing a device may change them. */
  #refresh(): void {
    for (let room = 16; ;) {
      const list = new Struct(room * RANGE.sizeof);
      const argument = new Struct(RANGES.sizeof)
        .set32(RANGES.size, RANGES.sizeof)
        .set32(RANGES.ioas_id, this.#id)
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
