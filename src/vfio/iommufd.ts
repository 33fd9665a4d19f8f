/**
 * An address space of iommufd: an IOAS (Documentation/userspace-api/iommufd.rst; drivers/iommu/iommufd), with devices that
 * are opened by their character devices. A mapping can only be unmapped as a whole; the kernel says how many bytes that were.
 */
import type { Backing, Constraints, DmaAccess, Segment } from '../dma/address-space.js';
import { DmaError, isDmaError, throwFirst, undoAll, withUndo } from '../errors.js';
import type { Platform } from '../platform/ports.js';
import { Struct } from '../platform/struct.js';
import * as iommufd from '../platform/uapi/iommufd.js';
import { IOCTL as VFIO_IOCTL, VFIO_DEVICE_ATTACH_IOMMUFD_PT, VFIO_DEVICE_BIND_IOMMUFD } from '../platform/uapi/vfio.js';
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

const {
  IOCTL,
  IOMMU_HWPT_ALLOC: HWPT,
  IOMMU_HWPT_GET_DIRTY_BITMAP: DIRTY,
  IOMMU_HWPT_SET_DIRTY_TRACKING: TRACK,
  IOMMU_HW_INFO: HW_INFO,
  IOMMU_IOAS_ALLOC: ALLOC,
  IOMMU_IOAS_ALLOW_IOVAS: ALLOW,
  IOMMU_IOAS_COPY: COPY,
  IOMMU_IOAS_IOVA_RANGES: RANGES,
  IOMMU_IOAS_MAP: MAP,
  IOMMU_IOAS_MAP_FILE: MAP_FILE,
  IOMMU_IOAS_UNMAP: UNMAP,
  IOMMU_IOVA_RANGE: RANGE,
} = iommufd;

/** The access of a device in flags of the three calls that map; the IOVA is always given. */
const MAP_FLAGS: Readonly<Record<DmaAccess, number>> = {
  read: iommufd.IOMMU_IOAS_MAP_FIXED_IOVA | iommufd.IOMMU_IOAS_MAP_READABLE,
  write: iommufd.IOMMU_IOAS_MAP_FIXED_IOVA | iommufd.IOMMU_IOAS_MAP_WRITEABLE,
  'read-write': iommufd.IOMMU_IOAS_MAP_FIXED_IOVA | iommufd.IOMMU_IOAS_MAP_READABLE | iommufd.IOMMU_IOAS_MAP_WRITEABLE,
};

/** A context that address spaces share. */
export type SharedIommufd = IommufdContext<IommufdSpace>;

/** A page table of the hardware's that was made by us, because of what it has to be able to do. */
interface PageTable {
  readonly id: number;
  readonly tracksDirtyPages: boolean;
  readonly devices: Set<string>;
}

/** Settings of an {@link IommufdSpace}. */
export interface IommufdOptions {
  /** Shall devices that can ask for missing pages (PCI page requests) do so, into a queue that the program answers? Default false. */
  readonly pageRequests?: boolean;
  /** What messages call it. */
  readonly name?: string;
}

/** What is mapped; without a descriptor, by its VA. */
type MapSegment = Pick<Segment, 'va' | 'iova' | 'length' | 'access'> & { readonly backing?: Backing };
/** What is unmapped; the VA is that of the first byte. */
type UnmapSegment = Pick<Segment, 'iova' | 'length'> & { readonly va?: Va };

/** See the head of the file. */
export class IommufdSpace implements KernelSpace, DirtyTracking {
  readonly kind = 'iommufd';
  readonly name: string | undefined;
  /** What devices ask for; `undefined` unless it was asked for. */
  readonly pageRequests: PageRequests | undefined;
  readonly #platform: Platform;
  readonly #context: SharedIommufd;
  readonly #id: number;
  /** Of calls that are made at once; those on other threads have their own. */
  readonly #arguments: Arguments;
  /** What {@link map} mapped, by VA. */
  readonly #placed = new Map<number, MapSegment>();
  readonly #pageTables: PageTable[] = [];
  readonly #devices = new Set<string>();
  #windows: readonly Range<Iova>[] = [];
  #granule: number;
  #constraints: Constraints | undefined;
  #tracking = false;
  #closed = false;

  /** @throws DmaError ENOENT, EACCES: /dev/iommu; what the kernel says for want of memory */
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
      this.pageRequests = options.pageRequests === true ? new PageRequests(platform, context) : undefined;
    } catch (error) {
      throw withUndo(error, 'iommufd', undoAll(undo));
    }
  }

  /** Where IOVAs can be. The same array as long as it says the same. */
  get windows(): readonly Range<Iova>[] {
    return this.#windows;
  }

  /** bytes; VA, IOVA and length of every mapping are multiples of it */
  get granule(): number {
    return this.#granule;
  }

  get constraints(): Constraints {
    const granule = this.#granule;
    const windows = this.#windows;
    if (this.#constraints?.windows !== windows || this.#constraints.granule !== granule)
      // It has no limit of entries, and unmaps what one call mapped as a whole.
      this.#constraints = { granule, windows, entryLimit: Infinity, iova: 'free', partialUnmap: false, pins: true };
    return this.#constraints;
  }

  open(node: VfioNode): VfioDevice {
    const { name } = node;
    const fd = this.#openCharacterDevice(node);
    try {
      this.#attach(fd, this.#bind(fd, node), node);
    } catch (error) {
      throw withUndo(error, 'open', undoAll([() => this.#platform.files.close(fd), () => this.#forget(name)]));
    }
    this.#devices.add(name);
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
    // A device that leaves only makes windows wider: what could not be read again is still true.
    undoAll([() => this.#refresh()]);
  }

  /**
   * Maps a segment in the way that pins the least: as a copy of what another address space has of exactly the same, else
   * by its descriptor, else by its VA.
   *
   * @throws DmaError as {@link mapVa}
   */
  map(segment: MapSegment): undefined {
    runSteps(this.#placing(segment, this.#arguments), (call) => this.#call(call));
  }

  /** As {@link map}, on another thread. */
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
   * IOMMU_IOAS_UNMAP: all mappings inside the range, none of which may reach out of it.
   *
   * @returns the bytes that the kernel unmapped
   * @throws DmaError ENOENT: nothing is mapped there, or it cuts a mapping
   */
  unmap({ va, iova, length }: UnmapSegment): number {
    const { unmap } = this.#arguments;
    unmap.set64(UNMAP.iova, iova).set64(UNMAP.length, length);
    this.#context.call(IOCTL.IOMMU_IOAS_UNMAP, unmap, 'IOMMU_IOAS_UNMAP');
    if (va !== undefined) this.#placed.delete(va);
    return unmap.u64(UNMAP.length);
  }

  /** As {@link unmap}, on another thread. */
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
   * @throws DmaError EEXIST: an IOVA of it is mapped already; EINVAL: misaligned, or outside the windows; ENOMEM: the
   *   locked-memory limit; EFAULT: there is no memory at the VA, or none that can be pinned
   */
  mapVa(va: Va, iova: Iova, length: number, access: DmaAccess): void {
    this.#call(mapCall(this.#arguments, va, iova, length, access));
  }

  /**
   * IOMMU_IOAS_MAP_FILE: as {@link mapVa}, of `length` bytes at `offset` of a memfd.
   *
   * @throws DmaError ENOTTY: this kernel has it not (it came with Linux 6.13); EINVAL also for what is no memfd; as `mapVa`
   */
  mapFile(fd: number, offset: number, iova: Iova, length: number, access: DmaAccess): void {
    this.#call(mapFileCall(this.#arguments, { fd, offset }, iova, length, access));
  }

  /**
   * IOMMU_IOAS_COPY: maps what `source`, of the same context, has at `from`; its pages are pinned once for both.
   *
   * @throws DmaError ENOENT: not all of it is mapped there; EPERM: writing is asked for, and not granted there; as `mapVa`
   */
  copyFrom(source: IommufdSpace, from: Iova, iova: Iova, length: number, access: DmaAccess): void {
    this.#call(copyCall(this.#arguments, source.#id, from, iova, length, access));
  }

  /** Unmaps all there is. @returns the bytes */
  unmapAll(): number {
    if (this.#closed) return 0;
    const { unmap } = this.#arguments;
    unmap.set64(UNMAP.iova, 0).set64(UNMAP.length, 2 ** 64);
    try {
      this.#context.call(IOCTL.IOMMU_IOAS_UNMAP, unmap, 'IOMMU_IOAS_UNMAP');
    } catch (error) {
      // Older kernels say so when there was nothing.
      if (isDmaError(error, 'ENOENT')) return 0;
      throw error;
    }
    this.#placed.clear();
    return unmap.u64(UNMAP.length);
  }

  /**
   * Keeps these IOVAs usable: a device that can not reach them can not join any more (IOMMU_IOAS_ALLOW_IOVAS).
   *
   * @throws DmaError EADDRINUSE: one of the devices can not reach some of it; EINVAL: they overlap
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
          reason: 'not all devices reach these IOVAs',
          hint: `the windows are ${this.#windows.map(String).join(', ')}`,
        }),
      },
      () => this.#context.call(IOCTL.IOMMU_IOAS_ALLOW_IOVAS, argument, 'IOMMU_IOAS_ALLOW_IOVAS'),
    );
  }

  // --- dirty pages ---

  /** Can the IOMMUs of all its devices track what they write? */
  get tracksDirtyPages(): boolean {
    const tracked = this.#pageTables.filter((table) => table.tracksDirtyPages);
    return tracked.length > 0 && tracked.reduce((sum, { devices }) => sum + devices.size, 0) === this.#devices.size;
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
    // Each sets the bits of what its devices wrote and leaves the others.
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
      const reason = `it has devices: ${[...this.#devices].join(', ')}`;
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

  /** The calls of {@link map}, each made unless those before it did it. */
  *#placing(segment: MapSegment, structs: Arguments): Steps<MappingCall, void> {
    const placed = (yield* this.#placingAsCopy(segment, structs)) || (yield* this.#placingByFile(segment, structs));
    const { va, iova, length, access } = segment;
    if (!placed) yield mapCall(structs, va, iova, length, access);
    this.#placed.set(va, segment);
  }

  *#placingAsCopy(segment: MapSegment, structs: Arguments): Steps<MappingCall, boolean> {
    if (this.#context.spaces.size < 2) return false;
    const { va, iova, length, access } = segment;
    for (const space of [...this.#context.spaces]) {
      if (space === this) continue;
      const there = space.#placed.get(va);
      if (there === undefined || !isSame(there, segment)) continue;
      try {
        yield copyCall(structs, space.#id, there.iova, iova, length, access);
        return true;
      } catch (error) {
        // It was unmapped behind our back, or mapped for less: pin it anew.
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
      // EINVAL: the descriptor is of a file on disk, or shorter; ENOTSUP: of a DMA buffer that may not be mapped. Where
      // something else is wrong as well, mapping by VA says so.
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

  #openCharacterDevice({ name, device }: VfioNode): number {
    if (device === undefined)
      throw new DmaError({
        code: 'ENODEV',
        operation: 'open',
        reason: `${name} has no character device of VFIO`,
        hint: `it has to be bound to vfio-pci ("anydma bind ${name}"), and the kernel needs CONFIG_VFIO_DEVICE_CDEV (Linux 6.6); type1 containers do without`,
      });
    return openNode(
      this.#platform,
      device,
      `${name} has to be bound to vfio-pci, and the kernel needs CONFIG_VFIO_DEVICE_CDEV; type1 containers do without`,
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
            reason: `the kernel does not hand ${name} to this program`,
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
      // What is asked is right, so that only who else has it, or the IOMMU, can be wrong.
      EINVAL: () =>
        whyNotHanded(this.#platform, group, name, 'iommufd') ?? {
          code: 'EBUSY',
          reason: `${name} is in use, as far as the kernel tells`,
          hint: `another program has ${device} open; if none has, its IOMMU can not keep caches coherent: use type1`,
        },
    };
    explaining(reasons, () =>
      this.#platform.ioctl.call(fd, VFIO_IOCTL.VFIO_DEVICE_BIND_IOMMUFD, argument.bytes, 'VFIO_DEVICE_BIND_IOMMUFD'),
    );
    return argument.u32(VFIO_DEVICE_BIND_IOMMUFD.out_devid);
  }

  /** Puts a device into the address space, with a page table of its own when that can do more than what the kernel makes. */
  #attach(fd: number, id: number, node: VfioNode): void {
    const tracks = this.#hardwareTracks(id);
    if (!tracks && this.pageRequests === undefined) return this.#attachTo(fd, this.#id, node);
    for (const table of this.#pageTables) if (table.tracksDirtyPages === tracks && this.#joins(fd, table, node)) return;
    const table = this.#makePageTable(id, tracks);
    this.#pageTables.push(table);
    table.devices.add(node.name);
    this.#attachTo(fd, table.id, node);
  }

  /** Attaches to a page table that is there; false when the device's IOMMU can not use it. */
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
        reason: `${name} can not reach all that is mapped in this address space`,
        hint: 'open it before anything is mapped, or in a container of its own',
      }),
      EPERM: () => whyNotHanded(this.#platform, group, name, 'iommufd') ?? {},
      ENOMEM: () => ({
        reason: 'the kernel has no memory for the page tables of another IOMMU',
        hint: 'what is mapped in an address space is mapped anew for a device behind another IOMMU',
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
      // Linux before 6.6 has it not, or the IOMMU's driver.
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

  /** Takes a device off the books, which is closed, and destroys the page table that was its alone. */
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

  /** Reads the constraints anew: a device that joins or leaves may change them. */
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

/** The arguments of the calls that map and unmap in one IOAS. */
interface Arguments {
  readonly map: Struct;
  readonly mapFile: Struct;
  readonly copy: Struct;
  readonly unmap: Struct;
}

/** One of the calls that map. */
interface MappingCall {
  readonly request: number;
  readonly argument: Struct;
  readonly name: string;
  readonly mapped: { readonly iova: Iova; readonly length: number };
}

function newArguments(ioas: number): Arguments {
  return {
    map: new Struct(MAP.sizeof).set32(MAP.size, MAP.sizeof).set32(MAP.ioas_id, ioas),
    mapFile: new Struct(MAP_FILE.sizeof).set32(MAP_FILE.size, MAP_FILE.sizeof).set32(MAP_FILE.ioas_id, ioas),
    copy: new Struct(COPY.sizeof).set32(COPY.size, COPY.sizeof).set32(COPY.dst_ioas_id, ioas),
    unmap: new Struct(UNMAP.sizeof).set32(UNMAP.size, UNMAP.sizeof).set32(UNMAP.ioas_id, ioas),
  };
}

/** Where a call that maps has what all of them have. */
interface PlaceFields {
  readonly flags: number;
  readonly iova: number;
  readonly length: number;
}

const PLACE_OF_COPY: PlaceFields = { flags: COPY.flags, iova: COPY.dst_iova, length: COPY.length };

/** Fills in what all calls that map have. */
function place(
  argument: Struct,
  at: PlaceFields,
  iova: Iova,
  length: number,
  access: DmaAccess,
): MappingCall['mapped'] {
  argument.set32(at.flags, MAP_FLAGS[access]).set64(at.iova, iova).set64(at.length, length);
  return { iova, length };
}

function mapCall({ map }: Arguments, va: Va, iova: Iova, length: number, access: DmaAccess): MappingCall {
  map.set64(MAP.user_va, va);
  const mapped = place(map, MAP, iova, length, access);
  return { request: IOCTL.IOMMU_IOAS_MAP, argument: map, name: 'IOMMU_IOAS_MAP', mapped };
}

function mapFileCall(
  { mapFile }: Arguments,
  { fd, offset }: Backing,
  iova: Iova,
  length: number,
  access: DmaAccess,
): MappingCall {
  mapFile.set32(MAP_FILE.fd, fd).set64(MAP_FILE.start, offset);
  const mapped = place(mapFile, MAP_FILE, iova, length, access);
  return { request: IOCTL.IOMMU_IOAS_MAP_FILE, argument: mapFile, name: 'IOMMU_IOAS_MAP_FILE', mapped };
}

function copyCall(
  { copy }: Arguments,
  source: number,
  from: Iova,
  iova: Iova,
  length: number,
  access: DmaAccess,
): MappingCall {
  copy.set32(COPY.src_ioas_id, source).set64(COPY.src_iova, from);
  const mapped = place(copy, PLACE_OF_COPY, iova, length, access);
  return { request: IOCTL.IOMMU_IOAS_COPY, argument: copy, name: 'IOMMU_IOAS_COPY', mapped };
}

/** Are these the same bytes of the same memory, and does what is there grant what is wanted? */
function isSame(there: MapSegment, wanted: MapSegment): boolean {
  if (there.length !== wanted.length || (there.access === 'read' && wanted.access !== 'read')) return false;
  const a = there.backing;
  const b = wanted.backing;
  return a?.fd === b?.fd && a?.offset === b?.offset;
}
