/** For tests: a PCI function behind vfio-pci, by the rules of drivers/vfio/pci, whose BARs are memory of this process. */
import type { MmapOptions, Platform } from '../../../src/platform/ports.js';
import type { RegionPart } from '../../../src/platform/registers/region-registers.js';
import {
  PCI_CAPABILITY_LIST,
  PCI_CAP_ID_MSI,
  PCI_CAP_ID_PM,
  PCI_COMMAND,
  PCI_COMMAND_MEMORY,
  PCI_PM_CTRL,
  PCI_STATUS,
  PCI_STATUS_CAP_LIST,
} from '../../../src/platform/uapi/pci-regs.js';
import {
  IOCTL,
  REGION_CAP,
  VFIO_DEVICE_FLAGS_PCI,
  VFIO_DEVICE_FLAGS_RESET,
  VFIO_DEVICE_INFO,
  VFIO_INFO_CAP_HEADER,
  VFIO_IRQ_INFO,
  VFIO_IRQ_INFO_AUTOMASKED,
  VFIO_IRQ_INFO_EVENTFD,
  VFIO_IRQ_INFO_MASKABLE,
  VFIO_IRQ_INFO_NORESIZE,
  VFIO_IRQ_SET,
  VFIO_IRQ_SET_ACTION_MASK,
  VFIO_IRQ_SET_ACTION_TRIGGER,
  VFIO_IRQ_SET_DATA_EVENTFD,
  VFIO_PCI_CONFIG_REGION_INDEX,
  VFIO_PCI_NUM_IRQS,
  VFIO_PCI_NUM_REGIONS,
  VFIO_PCI_VGA_REGION_INDEX,
  VFIO_REGION_INFO,
  VFIO_REGION_INFO_CAP_SPARSE_MMAP,
  VFIO_REGION_INFO_FLAG_CAPS,
  VFIO_REGION_INFO_FLAG_MMAP,
  VFIO_REGION_INFO_FLAG_READ,
  VFIO_REGION_INFO_FLAG_WRITE,
  VFIO_REGION_SPARSE_MMAP_AREA,
} from '../../../src/platform/uapi/vfio.js';
import { alignUp, type Va } from '../../../src/units.js';
import { ioctlPort } from '../platform/platforms.js';
import { Argument, named, refuse } from './argument.js';

/** Where vfio-pci puts region `index` in the device's descriptor. */
const INDEX_SHIFT = 2 ** 40;
/** A BAR, or another region. */
export interface FakeRegion {
  /** bytes */
  readonly size: number;
  /** Default true. */
  readonly writable?: boolean;
  /** All of it, nothing, or these areas, which are told by a capability. Default nothing. */
  readonly mappable?: boolean | readonly RegionPart[];
}

/** Where {@link FakeVfioDevice} has its power management capability. */
export const FAKE_PM = 0x50;
/** Its regions by index, and how many vectors it has: 1 of INTx, 4 of MSI and 8 of MSI-X unless it is told. */
type DeviceOptions = [
  regions: Readonly<Record<number, FakeRegion>>,
  vectors?: { readonly intx?: number; readonly msi?: number; readonly msix?: number },
];

const KIND = { intx: 0, msi: 1, msix: 2 } as const;

/** See the head of the file. */
export class FakeVfioDevice {
  readonly config = new Uint8Array(256);
  /** Vectors by kind of interrupt. */
  readonly vectors: readonly number[];
  /** Stores that took memory decoding away from mapped regions; the real kernel would have killed the process. */
  readonly crashes: string[] = [];
  /** Names of the ioctls, in order. */
  readonly ioctls: string[] = [];
  resets = 0;
  /** The most vectors that the machine has to give. */
  availableVectors = 2048;
  /** Can MSI-X vectors be added while it is enabled? */
  dynamicMsix = false;
  resettable = true;
  /** Bytes that one read or write transfers at most. */
  transferLimit = Infinity;
  readonly #base: Platform;
  readonly #regions: ReadonlyMap<number, FakeRegion>;
  /** Memfds of the regions. */
  readonly #memory = new Map<number, number>();
  /** How often it is open. */
  #users = 0;
  readonly #mapped = new Map<Va, string>();
  /** The kernel's own references to eventfds, by kind and vector. */
  readonly #eventfds = Array.from({ length: VFIO_PCI_NUM_IRQS }, () => new Map<number, number>());
  /** Vectors that were set up when a kind was enabled. */
  readonly #allocated = new Map<number, number>();
  #masked = false;
  #pending = false;
  constructor(base: Platform, ...[regions, vectors = {}]: DeviceOptions) {
    this.#base = base;
    this.vectors = [vectors.intx ?? 1, vectors.msi ?? 4, vectors.msix ?? 8, 1, 1];
    this.#regions = new Map<number, FakeRegion>([
      ...Object.entries(regions).map(([index, region]) => [Number(index), region] as const),
      [VFIO_PCI_CONFIG_REGION_INDEX, { size: 256 }] as const,
    ]);
    for (const [index, { size }] of this.#regions) {
      const length = alignUp(size, base.memory.pageSize);
      // Huge ones are only there to be described.
      if (length <= 2 ** 24) this.#memory.set(index, base.memory.memfd({ name: `bar${index}`, length }));
    }
    this.config[PCI_COMMAND] = PCI_COMMAND_MEMORY;
    this.config[PCI_STATUS] = PCI_STATUS_CAP_LIST;
    this.config[PCI_CAPABILITY_LIST] = 0x40;
    this.config.set([PCI_CAP_ID_MSI, FAKE_PM], 0x40);
    this.config.set([PCI_CAP_ID_PM, 0], FAKE_PM);
  }

  /** Is nobody using it any more? */
  get released(): boolean {
    return this.#users === 0 && this.#mapped.size === 0;
  }

  /** Eventfds that the kernel holds. */
  get connected(): number {
    return this.#eventfds.reduce((sum, each) => sum + each.size, 0);
  }

  /** Pages of it that are mapped, as `offset+length` in the descriptor. */
  get mapped(): string[] {
    return [...this.#mapped.values()];
  }

  /** The device interrupts. */
  signal(kind: keyof typeof KIND, vector = 0): void {
    const fd = this.#eventfds[KIND[kind]].get(vector);
    if (fd === undefined) return;
    if (kind === 'intx') {
      this.#pending = true;
      if (this.#masked) return;
      // The line stays up until the program sees to it, which is simulated as one signal a call.
      this.#masked = true;
      this.#pending = false;
    }
    this.#base.events.signal(fd);
  }

  /** Signals one of the kernel's own kinds: 3 an error, 4 the request to let go. */
  signalIndex(index: number): void {
    const fd = this.#eventfds[index].get(0);
    if (fd !== undefined) this.#base.events.signal(fd);
  }

  get intxMasked(): boolean {
    return this.#masked;
  }

  /** Gives back what it is made of. */
  dispose(): void {
    for (const kind of this.#eventfds.keys()) this.#disconnect(kind);
    for (const fd of this.#memory.values()) this.#base.files.close(fd);
    this.#memory.clear();
  }

  opened(): void {
    this.#users++;
  }

  closed(): void {
    this.#users--;
    this.#release();
  }

  /** mmap(2) of its descriptor. */
  map(options: MmapOptions): Va {
    const va = this.#base.memory.map(this.#mapping(options));
    this.#mapped.set(va, `${options.offset ?? 0}+${options.length}`);
    return va;
  }

  /** Something was unmapped, which may have been of this device. */
  unmapped(va: Va): void {
    if (this.#mapped.delete(va)) this.#release();
  }

  /** As `vfio_pci_core_close_device`, which waits for the mappings. */
  #release(): void {
    if (this.released) for (const kind of this.#eventfds.keys()) this.#disconnect(kind);
  }

  #region(offset: number): { index: number; at: number; region: FakeRegion; memory: number } {
    const index = Math.floor(offset / INDEX_SHIFT);
    const region = this.#regions.get(index);
    const memory = this.#memory.get(index);
    if (region === undefined || memory === undefined) throw refuse('EINVAL', 'region');
    return { index, at: offset % INDEX_SHIFT, region, memory };
  }

  #decodes(): boolean {
    return (this.config[PCI_COMMAND] & PCI_COMMAND_MEMORY) !== 0 && (this.config[FAKE_PM + PCI_PM_CTRL] & 3) < 3;
  }

  /** pread(2) of its descriptor. */
  readAt(offset: number, into: Uint8Array): number {
    const { index, at, region, memory } = this.#region(offset);
    const length = Math.min(into.length, region.size - at, this.transferLimit);
    if (index === VFIO_PCI_CONFIG_REGION_INDEX) into.set(this.config.subarray(at, at + length));
    else if (!this.#decodes()) throw refuse('EIO', 'pread');
    else this.#base.files.readAt(memory, at, into.subarray(0, length));
    return length;
  }

  /** pwrite(2) to its descriptor. */
  writeAt(offset: number, from: Uint8Array): number {
    const { index, at, region, memory } = this.#region(offset);
    const length = Math.min(from.length, region.size - at, this.transferLimit);
    if (index === VFIO_PCI_CONFIG_REGION_INDEX) {
      this.config.set(from.subarray(0, length), at);
      const state = this.config[FAKE_PM + PCI_PM_CTRL] & 3;
      if (this.#mapped.size > 0 && (!this.#decodes() || state !== 0)) this.crashes.push(`a store at ${at}`);
    } else if (region.writable === false) throw refuse('EINVAL', 'pwrite');
    else if (!this.#decodes()) throw refuse('EIO', 'pwrite');
    else this.#base.files.writeAt(memory, at, from.subarray(0, length));
    return length;
  }

  #mapping(options: MmapOptions): MmapOptions {
    const { at, region, memory } = this.#region(options.offset ?? 0);
    const { mappable = false, size } = region;
    const { pageSize } = this.#base.memory;
    const areas = mappable === true ? [{ offset: 0, length: alignUp(size, pageSize) }] : mappable || [];
    const inside = areas.some((area) => at >= area.offset && at + options.length <= area.offset + area.length);
    if (!inside || options.writable === false) throw refuse('EINVAL', 'mmap');
    if (!this.#decodes()) this.crashes.push(`a mapping at ${at} of what does not decode`);
    return { ...options, fd: memory, offset: at };
  }

  ioctl(request: number, argument: Argument | number, name: string): number {
    this.ioctls.push(name);
    if (request === IOCTL.VFIO_DEVICE_RESET) {
      if (!this.resettable) throw refuse('EINVAL');
      this.resets++;
      return 0;
    }
    if (typeof argument === 'number') throw refuse('EFAULT');
    if (request === IOCTL.VFIO_DEVICE_GET_INFO) return this.#info(argument);
    if (request === IOCTL.VFIO_DEVICE_GET_REGION_INFO) return this.#regionInfo(argument);
    if (request === IOCTL.VFIO_DEVICE_GET_IRQ_INFO) return this.#irqInfo(argument);
    if (request === IOCTL.VFIO_DEVICE_SET_IRQS) return this.#setIrqs(argument);
    throw refuse('ENOTTY');
  }

  #info(info: Argument): number {
    info.argsz(VFIO_DEVICE_INFO.num_irqs + 4);
    info
      .set32(VFIO_DEVICE_INFO.flags, VFIO_DEVICE_FLAGS_PCI | (this.resettable ? VFIO_DEVICE_FLAGS_RESET : 0))
      .set32(VFIO_DEVICE_INFO.num_regions, VFIO_PCI_NUM_REGIONS)
      .set32(VFIO_DEVICE_INFO.num_irqs, VFIO_PCI_NUM_IRQS);
    return 0;
  }

  #regionInfo(info: Argument): number {
    const index = info.u32(VFIO_REGION_INFO.index);
    const region = this.#regions.get(index);
    if (index === VFIO_PCI_VGA_REGION_INDEX && region === undefined) throw refuse('EINVAL', 'region info');
    const { size = 0, writable = true, mappable = false } = region ?? {};
    const areas = typeof mappable === 'boolean' ? [] : mappable;
    const need =
      VFIO_REGION_INFO.sizeof +
      (mappable === false
        ? 0
        : 2 * VFIO_INFO_CAP_HEADER.sizeof + 8 + areas.length * VFIO_REGION_SPARSE_MMAP_AREA.sizeof);
    const room = info.argsz(VFIO_REGION_INFO.sizeof);
    info
      .set32(
        VFIO_REGION_INFO.flags,
        size === 0
          ? 0
          : VFIO_REGION_INFO_FLAG_READ |
              (writable ? VFIO_REGION_INFO_FLAG_WRITE : 0) |
              (mappable === false ? 0 : VFIO_REGION_INFO_FLAG_MMAP | VFIO_REGION_INFO_FLAG_CAPS),
      )
      .set32(VFIO_REGION_INFO.cap_offset, 0)
      .set64(VFIO_REGION_INFO.size, size)
      .set64(VFIO_REGION_INFO.offset, index * INDEX_SHIFT);
    if (need > room) info.set32(VFIO_REGION_INFO.argsz, need);
    else if (mappable !== false) {
      // First one that says nothing of areas, as a BAR with an MSI-X table has.
      const first = VFIO_REGION_INFO.sizeof;
      const second = first + VFIO_INFO_CAP_HEADER.sizeof;
      info
        .set32(VFIO_REGION_INFO.cap_offset, first)
        .set16(first + VFIO_INFO_CAP_HEADER.id, REGION_CAP.VFIO_REGION_INFO_CAP_MSIX_MAPPABLE)
        .set32(first + VFIO_INFO_CAP_HEADER.next, mappable === true ? 0 : second);
      if (mappable === true) return 0;
      info
        .set16(second + VFIO_INFO_CAP_HEADER.id, REGION_CAP.VFIO_REGION_INFO_CAP_SPARSE_MMAP)
        .set32(second + VFIO_INFO_CAP_HEADER.next, 0)
        .set32(second + VFIO_REGION_INFO_CAP_SPARSE_MMAP.nr_areas, areas.length);
      areas.forEach(({ offset, length }, i) => {
        const at = second + VFIO_REGION_INFO_CAP_SPARSE_MMAP.areas + i * VFIO_REGION_SPARSE_MMAP_AREA.sizeof;
        info.set64(at, offset).set64(at + VFIO_REGION_SPARSE_MMAP_AREA.size, length);
      });
    }
    return 0;
  }

  #irqInfo(info: Argument): number {
    info.argsz(VFIO_IRQ_INFO.sizeof);
    const index = info.u32(VFIO_IRQ_INFO.index);
    if (index >= VFIO_PCI_NUM_IRQS) throw refuse('EINVAL', 'no such interrupts');
    const masks = index === KIND.intx ? VFIO_IRQ_INFO_MASKABLE | VFIO_IRQ_INFO_AUTOMASKED : 0;
    const fixed = index !== KIND.intx && !(index === KIND.msix && this.dynamicMsix) ? VFIO_IRQ_INFO_NORESIZE : 0;
    info
      .set32(VFIO_IRQ_INFO.flags, VFIO_IRQ_INFO_EVENTFD | masks | fixed)
      .set32(VFIO_IRQ_INFO.count, this.vectors[index]);
    return 0;
  }

  #setIrqs(set: Argument): number {
    const argsz = set.argsz(VFIO_IRQ_SET.sizeof);
    const flags = set.u32(VFIO_IRQ_SET.flags);
    const index = set.u32(VFIO_IRQ_SET.index);
    const start = set.u32(VFIO_IRQ_SET.start);
    const count = set.u32(VFIO_IRQ_SET.count);
    const hasFds = (flags & VFIO_IRQ_SET_DATA_EVENTFD) !== 0;
    const refused = refuse('EINVAL', 'set irqs');
    if (index >= VFIO_PCI_NUM_IRQS || start >= this.vectors[index] || start + count > this.vectors[index])
      throw refused;
    if (hasFds && argsz < VFIO_IRQ_SET.data + 4 * count) throw refused;
    const enabled = this.#allocated.has(index);
    if ((flags & VFIO_IRQ_SET_ACTION_TRIGGER) === 0) {
      if (index !== KIND.intx) throw refuse('ENOTTY', 'set irqs');
      if (!enabled || count !== 1) throw refused;
      this.#masked = (flags & VFIO_IRQ_SET_ACTION_MASK) !== 0;
      if (this.#pending) this.signal('intx');
      return 0;
    }
    if (!hasFds) {
      if (!enabled) throw refused;
      if (count === 0) this.#disconnect(index);
      for (let v = start; v < start + count; v++) {
        const fd = this.#eventfds[index].get(v);
        if (fd !== undefined) this.#base.events.signal(fd);
      }
      return 0;
    }
    const others = [...this.#allocated.keys()].some((each) => each !== index && each <= KIND.msix);
    if (count === 0 || (index <= KIND.msix && others)) throw refused;
    if (!enabled && index <= KIND.msix && start + count > this.availableVectors) return this.availableVectors;
    const growing = index === KIND.msix && this.dynamicMsix;
    if (enabled && !growing && start + count > (this.#allocated.get(index) ?? 0)) throw refused;
    if (!enabled) this.#masked = false;
    this.#allocated.set(index, Math.max(start + count, this.#allocated.get(index) ?? 0));
    for (let i = 0; i < count; i++) {
      const held = this.#eventfds[index].get(start + i);
      if (held !== undefined) this.#base.files.close(held);
      const fd = set.u32(VFIO_IRQ_SET.data + 4 * i);
      this.#eventfds[index].set(start + i, this.#base.files.duplicate(fd));
    }
    return 0;
  }

  #disconnect(kind: number): void {
    for (const fd of this.#eventfds[kind].values()) this.#base.files.close(fd);
    this.#eventfds[kind].clear();
    this.#allocated.delete(kind);
  }
}

/** A {@link FakeVfioDevice} that has a file of its own, which is opened without a container. */
export class FakeDeviceFile extends FakeVfioDevice {
  readonly path = '/dev/vfio/devices/vfio7';
  /** The platform that has the file; everything else is `base`'s. */
  readonly platform: Platform;
  readonly #open = new Set<number>();

  constructor(base: Platform, ...device: DeviceOptions) {
    super(base, ...device);
    const { files, ioctl, memory } = base;
    const isOpen = (fd: number | undefined): boolean => fd !== undefined && this.#open.has(fd);
    this.platform = {
      ...base,
      files: {
        ...files,
        open: (path, access) => {
          if (path !== this.path) return files.open(path, access);
          const fd = files.open('/dev/null', 'read-write');
          this.#open.add(fd);
          this.opened();
          return fd;
        },
        close: (fd) => {
          files.close(fd);
          if (this.#open.delete(fd)) this.closed();
        },
        readAt: (fd, offset, into) => (isOpen(fd) ? this.readAt(offset, into) : files.readAt(fd, offset, into)),
        writeAt: (fd, offset, from, end) =>
          isOpen(fd) ? this.writeAt(offset, from) : files.writeAt(fd, offset, from, end),
      },
      ioctl: ioctlPort((fd, request, argument, name) => {
        if (!isOpen(fd)) return ioctl.call(fd, request, argument, name);
        const struct = typeof argument === 'number' ? argument : new Argument(argument);
        return named(name, () => this.ioctl(request, struct, name));
      }),
      memory: {
        ...memory,
        map: (options) => (isOpen(options.fd) ? this.map(options) : memory.map(options)),
        unmap: (va, length) => {
          memory.unmap(va, length);
          this.unmapped(va);
        },
      },
    };
  }
}
