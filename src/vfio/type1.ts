/**
 * An address space of the type1 IOMMU driver, version 2 (drivers/vfio/vfio_iommu_type1.c): a container with groups
 * behind an ordinary IOMMU. A mapping can only be unmapped as a whole; the kernel returns how many bytes it unmapped.
 */
import type { Constraints, DmaAccess, Segment } from '../dma/address-space.js';
import { DmaError, undoAll, withUndo } from '../errors.js';
import type { IoctlPort, Platform } from '../platform/ports.js';
import { Struct } from '../platform/struct.js';
import * as vfio from '../platform/uapi/vfio.js';
import { Range } from '../ranges.js';
import { ADDRESS_LIMIT, type Iova, type Va } from '../units.js';
import type { VfioDevice } from './device.js';
import { DirtyPages, type DirtyTracking } from './dirty.js';
import { explained, mappingRefused } from './facts.js';
import { GroupContainer, type ContainerType } from './group-container.js';
import { pageSizesOf, sameWindows, windowsOf, type KernelSpace, type VfioNode } from './space.js';

const { IOCTL, VFIO_IOMMU_TYPE1_DMA_MAP: MAP, VFIO_IOMMU_TYPE1_DMA_UNMAP: UNMAP, VFIO_IOMMU_TYPE1_INFO: INFO } = vfio;

const TYPE1: ContainerType = {
  extension: vfio.VFIO_TYPE1v2_IOMMU,
  name: 'type1 v2',
  module: 'vfio_iommu_type1',
  groupPath: '/dev/vfio/',
};

/** A device's access as flags of VFIO_IOMMU_MAP_DMA. */
export const MAP_FLAGS: Readonly<Record<DmaAccess, number>> = {
  read: vfio.VFIO_DMA_MAP_FLAG_READ,
  write: vfio.VFIO_DMA_MAP_FLAG_WRITE,
  'read-write': vfio.VFIO_DMA_MAP_FLAG_READ | vfio.VFIO_DMA_MAP_FLAG_WRITE,
};

/** The argument of VFIO_IOMMU_MAP_DMA. */
export function newMap(): Struct {
  return new Struct(MAP.sizeof).set32(MAP.argsz, MAP.sizeof);
}

/** Fills the result of {@link newMap}. */
export function fillMap(argument: Struct, va: Va, iova: Iova, length: number, access: DmaAccess): void {
  argument.set32(MAP.flags, MAP_FLAGS[access]).set64(MAP.vaddr, va).set64(MAP.iova, iova).set64(MAP.size, length);
}

/** The argument of VFIO_IOMMU_UNMAP_DMA. */
export function newUnmap(): Struct {
  return new Struct(UNMAP.sizeof).set32(UNMAP.argsz, UNMAP.sizeof);
}

/** The result of VFIO_IOMMU_GET_INFO. */
export interface Type1Info {
  /** bytes, ascending */
  readonly pageSizes: readonly number[];
  /** Usable IOVA ranges. The same array until they change. */
  readonly windows: readonly Range<Iova>[];
  /** How many mappings are allowed at once (module parameter `dma_entry_limit`). */
  readonly entryLimit: number;
  /** Can it track dirty pages? */
  readonly tracksDirtyPages: boolean;
}

/** A mapping; this kind does not use the memory's descriptor. */
type MapSegment = Pick<Segment, 'va' | 'iova' | 'length' | 'access'>;

function constraintsOf({ pageSizes, windows, entryLimit }: Type1Info): Constraints {
  const [granule] = pageSizes;
  // Version 2 unmaps each mapping as a whole.
  return { granule, windows, entryLimit, iova: 'free', partialUnmap: false, pins: true };
}

/** An address space of type1. Its constraints are known from the first device on. */
export class Type1Space implements KernelSpace, DirtyTracking {
  readonly kind = 'vfio-type1';
  readonly name: string | undefined;
  readonly #platform: Platform;
  readonly #ioctl: IoctlPort;
  readonly #container: GroupContainer;
  readonly #unmapAllFlag: boolean;
  readonly #map = newMap();
  readonly #unmap = newUnmap();
  #info: Type1Info | undefined;
  /** The constraints, made from this info. */
  #constraints: { readonly info: Type1Info; readonly made: Constraints } | undefined;

  /** @throws DmaError ENOENT, EACCES from /dev/vfio/vfio; ENOTSUP if this kernel has no type1 driver */
  constructor(platform: Platform, name?: string) {
    this.name = name;
    this.#platform = platform;
    this.#ioctl = platform.ioctl;
    this.#container = new GroupContainer(platform, TYPE1);
    try {
      this.#unmapAllFlag = this.#container.supports(vfio.VFIO_UNMAP_ALL);
    } catch (error) {
      throw withUndo(error, 'container', undoAll([() => this.#container.close()]));
    }
  }

  /** @throws DmaError ENODEV while no device is in it */
  get info(): Type1Info {
    if (this.#info === undefined)
      throw new DmaError({ code: 'ENODEV', operation: 'container', reason: 'it has no IOMMU before its first device' });
    return this.#info;
  }

  get constraints(): Constraints {
    const { info } = this;
    if (this.#constraints?.info !== info) this.#constraints = { info, made: constraintsOf(info) };
    return this.#constraints.made;
  }

  open(node: VfioNode): VfioDevice {
    // With a new IOMMU everything starts again.
    if (!this.#container.hasIommu) this.#info = undefined;
    const device = this.#container.open(node);
    try {
      this.#refresh();
      return device;
    } catch (error) {
      throw withUndo(error, 'open', undoAll([() => device.close(), () => this.release(node)]));
    }
  }

  release(node: VfioNode): void {
    this.#container.release(node);
    // Releasing a device can only widen the windows: if reading them fails, the old ones are still valid.
    if (this.#container.hasIommu) undoAll([() => this.#refresh()]);
  }

  /**
   * VFIO_IOMMU_MAP_DMA. All numbers are multiples of the smallest page size.
   *
   * @throws DmaError EEXIST if an IOVA is mapped already; EINVAL if misaligned, or outside the windows; ENOSPC beyond
   * the entry limit; ENOMEM beyond the locked-memory limit; EFAULT if the VA has no memory, or none that can be pinned
   */
  map({ va, iova, length, access }: MapSegment): undefined {
    fillMap(this.#map, va, iova, length, access);
    try {
      this.#ioctl.call(this.#container.fd, IOCTL.VFIO_IOMMU_MAP_DMA, this.#map.bytes, 'VFIO_IOMMU_MAP_DMA');
    } catch (error) {
      throw this.#notMapped(error, iova, length);
    }
  }

  /** Like {@link map}, on another thread. */
  async mapAsync({ va, iova, length, access }: MapSegment): Promise<undefined> {
    const argument = newMap();
    fillMap(argument, va, iova, length, access);
    try {
      await this.#callAsync(IOCTL.VFIO_IOMMU_MAP_DMA, argument, 'VFIO_IOMMU_MAP_DMA');
    } catch (error) {
      throw this.#notMapped(error, iova, length);
    }
  }

  /**
   * VFIO_IOMMU_UNMAP_DMA: unmaps all mappings inside the range; none may extend beyond it.
   *
   * @returns the bytes that the kernel unmapped; 0 if nothing was mapped there
   * @throws DmaError EINVAL if misaligned, or the range divides a mapping
   */
  unmap({ iova, length }: Pick<Segment, 'iova' | 'length'>): number {
    return this.#unmapWith(0, iova, length);
  }

  /** Like {@link unmap}, on another thread. */
  async unmapAsync({ iova, length }: Pick<Segment, 'iova' | 'length'>): Promise<number> {
    const argument = newUnmap().set64(UNMAP.iova, iova).set64(UNMAP.size, length);
    await this.#callAsync(IOCTL.VFIO_IOMMU_UNMAP_DMA, argument, 'VFIO_IOMMU_UNMAP_DMA');
    return argument.u64(UNMAP.size);
  }

  /** Unmaps everything. @returns the bytes unmapped */
  unmapAll(): number {
    if (!this.#container.hasIommu) return 0;
    return this.#unmapAllFlag
      ? this.#unmapWith(vfio.VFIO_DMA_UNMAP_FLAG_ALL, 0, 0)
      : this.#unmapWith(0, 0, ADDRESS_LIMIT);
  }

  /** How many more mappings the kernel accepts now; `undefined` before Linux 5.10. */
  available(): number | undefined {
    return this.#readInfo().available;
  }

  get dirty(): DirtyTracking {
    return this;
  }

  get pageSize(): number {
    return this.info.pageSizes[0];
  }

  start(): void {
    this.#dirty(vfio.VFIO_IOMMU_DIRTY_PAGES_FLAG_START);
  }

  stop(): void {
    this.#dirty(vfio.VFIO_IOMMU_DIRTY_PAGES_FLAG_STOP);
  }

  /**
   * If an IOMMU does not track writes, the kernel reports all mapped pages as dirty, since devices may write them at
   * any time.
   */
  read(range: Range<Iova>, options: { readonly keep?: boolean } = {}): DirtyPages {
    if (options.keep === true)
      throw new DmaError({
        code: 'ENOTSUP',
        operation: 'dirty pages',
        reason: 'type1 always clears the pages that it reports',
      });
    this.#mustTrack();
    const pages = new DirtyPages(range, this.pageSize);
    const { VFIO_IOMMU_TYPE1_DIRTY_BITMAP: HEAD, VFIO_IOMMU_TYPE1_DIRTY_BITMAP_GET: GET, VFIO_BITMAP: BITS } = vfio;
    const argument = new Struct(HEAD.sizeof + GET.sizeof)
      .set32(HEAD.argsz, HEAD.sizeof + GET.sizeof)
      .set32(HEAD.flags, vfio.VFIO_IOMMU_DIRTY_PAGES_FLAG_GET_BITMAP)
      .set64(HEAD.data + GET.iova, range.start)
      .set64(HEAD.data + GET.size, range.length)
      .set64(HEAD.data + GET.bitmap + BITS.pgsize, pages.pageSize)
      .set64(HEAD.data + GET.bitmap + BITS.size, pages.bitmap.length)
      .set64(HEAD.data + GET.bitmap + BITS.data, this.#platform.memory.addressOf(pages.bitmap));
    this.#call(IOCTL.VFIO_IOMMU_DIRTY_PAGES, argument, 'VFIO_IOMMU_DIRTY_PAGES');
    return pages;
  }

  close(): void {
    this.unmapAll();
  }

  end(): void {
    this.#container.close();
  }

  #dirty(flag: number): void {
    this.#mustTrack();
    const { VFIO_IOMMU_TYPE1_DIRTY_BITMAP: HEAD } = vfio;
    const argument = new Struct(HEAD.sizeof).set32(HEAD.argsz, HEAD.sizeof).set32(HEAD.flags, flag);
    this.#call(IOCTL.VFIO_IOMMU_DIRTY_PAGES, argument, 'VFIO_IOMMU_DIRTY_PAGES');
  }

  #mustTrack(): void {
    if (!this.info.tracksDirtyPages)
      throw new DmaError({
        code: 'ENOTSUP',
        operation: 'dirty pages',
        reason: 'this kernel does not support dirty page tracking',
      });
  }

  #unmapWith(flags: number, iova: number, length: number): number {
    this.#unmap.set32(UNMAP.flags, flags).set64(UNMAP.iova, iova).set64(UNMAP.size, length);
    this.#call(IOCTL.VFIO_IOMMU_UNMAP_DMA, this.#unmap, 'VFIO_IOMMU_UNMAP_DMA');
    return this.#unmap.u64(UNMAP.size);
  }

  #notMapped(error: unknown, iova: Iova, length: number): unknown {
    const range = new Range(iova, length);
    return explained(error, {
      ...mappingRefused(this.#platform, range),
      ENOSPC: () => {
        const { entryLimit } = this.info;
        return {
          reason: `the container has no room for another mapping: ${this.#used()} of ${entryLimit} are used`,
          hint: 'map fewer and larger ranges, or raise the parameter dma_entry_limit of vfio_iommu_type1 before opening the device',
        };
      },
      EINVAL: () => ({
        range,
        reason: 'the kernel takes no mapping at these IOVAs',
        hint: `the windows are ${this.info.windows.map(String).join(', ')}`,
      }),
    });
  }

  /** How many mappings the kernel counts now. */
  #used(): number | string {
    try {
      return this.info.entryLimit - (this.available() ?? 0);
    } catch {
      return 'all';
    }
  }

  #call(request: number, argument: Struct, name: string): void {
    this.#ioctl.call(this.#container.fd, request, argument.bytes, name);
  }

  async #callAsync(request: number, argument: Struct, name: string): Promise<void> {
    await this.#ioctl.callAsync(this.#container.fd, request, argument.bytes, name);
  }

  /** Reads the constraints again: adding or removing a group may change the windows. */
  #refresh(): void {
    const before = this.#info;
    const { pageSizes, ranges, available, tracksDirtyPages } = this.#readInfo();
    // Before Linux 5.4 the kernel does not report windows; it refuses IOVAs that its IOMMU can not reach.
    const windows = windowsOf(ranges ?? [{ start: 0, last: ADDRESS_LIMIT }]);
    this.#info = {
      pageSizes,
      windows: before === undefined ? windows : sameWindows(before.windows, windows),
      // Nothing is mapped when the first device is opened, and the limit does not change afterwards.
      entryLimit: before?.entryLimit ?? available ?? this.#parameter('dma_entry_limit') ?? Infinity,
      tracksDirtyPages,
    };
  }

  #parameter(name: string): number | undefined {
    const text = this.#platform.kernel.readText(`/sys/module/vfio_iommu_type1/parameters/${name}`);
    const value = Number.parseInt(text ?? '', 10);
    return value > 0 ? value : undefined;
  }

  #readInfo(): InfoFacts {
    const info = this.#askInfo();
    const facts: InfoFacts = {
      pageSizes: [this.#platform.memory.pageSize],
      ranges: undefined,
      available: undefined,
      tracksDirtyPages: false,
    };
    const flags = info.u32(INFO.flags);
    if ((flags & vfio.VFIO_IOMMU_INFO_PGSIZES) !== 0) {
      const sizes = pageSizesOf(info.u32(INFO.iova_pgsizes), info.u32(INFO.iova_pgsizes + 4));
      if (sizes.length > 0) facts.pageSizes = sizes;
    }
    if ((flags & vfio.VFIO_IOMMU_INFO_CAPS) === 0) return facts;
    const { VFIO_INFO_CAP_HEADER: HEADER } = vfio;
    let last = 0;
    // Each capability must follow the one before it.
    for (let at = info.u32(INFO.cap_offset); at > last; at = info.u32(last + HEADER.next)) {
      takeCapability(info, at, facts);
      last = at;
    }
    return facts;
  }

  #askInfo(): Struct {
    for (let size = 256; ;) {
      const info = new Struct(size).set32(INFO.argsz, size);
      this.#call(IOCTL.VFIO_IOMMU_GET_INFO, info, 'VFIO_IOMMU_GET_INFO');
      const needed = info.u32(INFO.argsz);
      if (needed <= size) return info;
      size = needed;
    }
  }
}

/** The contents of one VFIO_IOMMU_GET_INFO; `undefined` for values that the kernel does not report. */
interface InfoFacts {
  pageSizes: readonly number[];
  ranges: { readonly start: number; readonly last: number }[] | undefined;
  /** how many more mappings */
  available: number | undefined;
  tracksDirtyPages: boolean;
}

function takeCapability(info: Struct, at: number, facts: InfoFacts): void {
  const {
    TYPE1_CAP,
    VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE: RANGES,
    VFIO_IOVA_RANGE: RANGE,
    VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL: AVAILABLE,
  } = vfio;
  switch (info.u16(at + vfio.VFIO_INFO_CAP_HEADER.id)) {
    case TYPE1_CAP.VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE:
      facts.ranges = Array.from({ length: info.u32(at + RANGES.nr_iovas) }, (_, i) => {
        const range = at + RANGES.iova_ranges + i * RANGE.sizeof;
        return { start: info.u64(range + RANGE.start), last: info.u64(range + RANGE.end) };
      });
      break;
    case TYPE1_CAP.VFIO_IOMMU_TYPE1_INFO_CAP_MIGRATION:
      facts.tracksDirtyPages = true;
      break;
    case TYPE1_CAP.VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL:
      facts.available = info.u32(at + AVAILABLE.avail);
      break;
  }
}
