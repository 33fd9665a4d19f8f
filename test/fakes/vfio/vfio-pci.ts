/** For tests: a device as vfio-pci shows it, around an emulated device. */
import type { Platform } from '../../../src/platform/ports.js';
import * as vfio from '../../../src/platform/uapi/vfio.js';
import { PCI_COMMAND, PCI_COMMAND_MASTER } from '../../../src/platform/uapi/pci-regs.js';
import { alignUp, type Va } from '../../../src/units.js';
import { CONFIG_SPACE_SIZE, ConfigSpace, placeMsix } from '../../../src/vfio-user/config-space.js';
import type {
  DeviceDma,
  DeviceModel,
  ModelFactory,
  ModelHost,
  ModelRegion,
} from '../../../src/vfio-user/devices/model.js';
import { refuse, type Argument } from './argument.js';

const {
  IOCTL,
  VFIO_DEVICE_INFO: INFO,
  VFIO_INFO_CAP_HEADER: HEADER,
  VFIO_IRQ_INFO: IRQ,
  VFIO_IRQ_SET: SET,
  VFIO_PCI_CONFIG_REGION_INDEX: CONFIG,
  VFIO_PCI_NUM_IRQS,
  VFIO_PCI_NUM_REGIONS,
  VFIO_REGION_INFO: REGION,
  VFIO_REGION_INFO_CAP_SPARSE_MMAP: SPARSE,
  VFIO_REGION_SPARSE_MMAP_AREA: AREA,
} = vfio;

/** vfio-pci puts region i here, in a device's descriptor. */
const REGION_SPACE = 2 ** 40;

/** What is there when a test says nothing else: one BAR of plain memory, one MSI vector. */
export const PLAIN_DEVICE: ModelFactory = () => ({
  name: 'plain',
  identity: { vendor: 0x1234, device: 0x0001, subsystemVendor: 0, subsystem: 0, revision: 0, classCode: 0xff0000 },
  regions: [{ index: 0, size: 4096, memory: [{ offset: 0, length: 4096 }] }],
  interrupts: { intx: 1, msi: 1, msix: 0 },
  read: (_region, _offset, into) => into.fill(0xff),
  write: () => undefined,
  reset: () => undefined,
  quiesce: () => undefined,
  resume: () => undefined,
});

interface Memory {
  readonly fd: number;
  readonly va: Va;
  readonly buffer: ArrayBuffer;
  readonly bytes: Uint8Array;
}

/** See the head of the file. */
export class FakeVfioDevice implements ModelHost {
  readonly model: DeviceModel;
  readonly dma: DeviceDma;
  /** How often it was reset. */
  resets = 0;
  readonly #platform: Platform;
  readonly #memory = new Map<number, Memory>();
  readonly #config: ConfigSpace;
  readonly #msix: ModelRegion | undefined;
  readonly #msixTable: Uint8Array;
  /** Descriptors of our own, by kind and vector. */
  readonly #eventfds = new Map<number, Map<number, number>>();
  readonly #masked = new Set<number>();

  /** @param dma what its accesses meet, once bus mastering is on */
  constructor(platform: Platform, factory: ModelFactory, dma: DeviceDma) {
    this.#platform = platform;
    const whenMaster = <T>(access: () => T): T => {
      if (!this.isBusMaster) throw refuse('EFAULT', 'bus mastering is off');
      return access();
    };
    this.dma = {
      direct: () => undefined,
      read: (iova, into) => whenMaster(() => dma.read(iova, into)),
      write: (iova, from) => whenMaster(() => dma.write(iova, from)),
    };
    this.model = factory(this);
    const msix = placeMsix(this.model);
    this.#msix = msix;
    this.#msixTable = new Uint8Array(msix?.size ?? 0);
    this.#config = new ConfigSpace(this.model, msix);
    for (const { index, size, memory = [] } of this.model.regions) if (memory.length > 0) this.#makeMemory(index, size);
  }

  /** Is PCI_COMMAND.MASTER set? */
  get isBusMaster(): boolean {
    const command = new Uint8Array(2);
    this.#config.read(PCI_COMMAND, command);
    return (command[0] & PCI_COMMAND_MASTER) !== 0;
  }

  regionMemory(index: number, offset: number): Uint8Array {
    const length = this.#region(index)?.memory?.find((part) => part.offset === offset)?.length;
    const memory = this.#memory.get(index);
    if (memory === undefined || length === undefined) throw refuse('EINVAL', `region ${index} has no memory there`);
    return memory.bytes.subarray(offset, offset + length);
  }

  /** Signals a vector of MSI-X, MSI or INTx, whichever is enabled. */
  interrupt(vector: number): void {
    for (const index of [vfio.VFIO_PCI_MSIX_IRQ_INDEX, vfio.VFIO_PCI_MSI_IRQ_INDEX, vfio.VFIO_PCI_INTX_IRQ_INDEX])
      if (this.#eventfds.has(index)) return this.signal(index, vector);
  }

  /** Signals a vector of kind `index`, such as the kernel's request to give the device back. */
  signal(index: number, vector = 0): void {
    const fd = this.#eventfds.get(index)?.get(vector);
    if (fd === undefined || this.#masked.has(index)) return;
    if (index === vfio.VFIO_PCI_INTX_IRQ_INDEX) this.#masked.add(index);
    this.#platform.events.signal(fd);
  }

  ioctl(request: number, argument: Argument | number): number {
    if (request === IOCTL.VFIO_DEVICE_RESET) {
      this.resets++;
      this.model.reset();
      this.#config.reset();
      return 0;
    }
    if (typeof argument === 'number') throw refuse('EFAULT');
    switch (request) {
      case IOCTL.VFIO_DEVICE_GET_INFO:
        argument.argsz(INFO.num_irqs + 4);
        argument.set32(INFO.flags, vfio.VFIO_DEVICE_FLAGS_PCI | vfio.VFIO_DEVICE_FLAGS_RESET);
        argument.set32(INFO.num_regions, VFIO_PCI_NUM_REGIONS);
        argument.set32(INFO.num_irqs, VFIO_PCI_NUM_IRQS);
        return 0;
      case IOCTL.VFIO_DEVICE_GET_REGION_INFO:
        return this.#regionInfo(argument);
      case IOCTL.VFIO_DEVICE_GET_IRQ_INFO:
        return this.#irqInfo(argument);
      case IOCTL.VFIO_DEVICE_SET_IRQS:
        return this.#setIrqs(argument);
      default:
        throw refuse('ENOTTY');
    }
  }

  /** pread of the device's descriptor. */
  readAt(offset: number, into: Uint8Array): number {
    const { index, inside } = this.#place(offset, into.length);
    if (index === CONFIG) this.#config.read(inside, into);
    else if (index === this.#msix?.index) into.set(this.#msixTable.subarray(inside, inside + into.length));
    else if (this.#isMemory(index, inside)) into.set(this.#bytes(index, inside, into.length));
    else this.model.read(index, inside, into);
    return into.length;
  }

  /** pwrite to it. */
  writeAt(offset: number, from: Uint8Array): number {
    const { index, inside } = this.#place(offset, from.length);
    if (index === CONFIG) this.#config.write(inside, from);
    else if (index === this.#msix?.index) this.#msixTable.set(from, inside);
    else if (this.#isMemory(index, inside)) this.#bytes(index, inside, from.length).set(from);
    else this.model.write(index, inside, from);
    return from.length;
  }

  /** What mmap of its descriptor maps. */
  mapping(offset: number, length: number): { fd: number; offset: number } {
    const { index, inside } = this.#place(offset, length);
    const memory = this.#memory.get(index);
    if (memory === undefined || !this.#isMemory(index, inside))
      throw refuse('EINVAL', `region ${index} can not be mapped`);
    return { fd: memory.fd, offset: inside };
  }

  /** Its descriptor was closed: the kernel switches off interrupts and bus mastering, and resets it. */
  release(): void {
    for (const index of [...this.#eventfds.keys()]) this.#disable(index);
    this.model.reset();
    this.#config.reset();
  }

  /** Frees everything. */
  close(): void {
    this.release();
    for (const { fd, va, buffer } of this.#memory.values()) {
      const { length } = new Uint8Array(buffer);
      this.#platform.memory.detach(buffer);
      this.#platform.memory.unmap(va, length);
      this.#platform.files.close(fd);
    }
    this.#memory.clear();
  }

  #region(index: number): ModelRegion | undefined {
    return this.model.regions.find((region) => region.index === index);
  }

  #sizeOf(index: number): number {
    if (index === CONFIG) return CONFIG_SPACE_SIZE;
    return index === this.#msix?.index ? this.#msix.size : (this.#region(index)?.size ?? 0);
  }

  #makeMemory(index: number, size: number): void {
    const { memory } = this.#platform;
    const length = alignUp(size, memory.pageSize);
    const fd = memory.memfd({ name: `region ${index}`, length });
    const va = memory.map({ fd, length });
    const buffer = memory.view(va, length);
    this.#memory.set(index, { fd, va, buffer, bytes: new Uint8Array(buffer) });
  }

  #isMemory(index: number, at: number): boolean {
    return this.#region(index)?.memory?.some(({ offset, length }) => at >= offset && at < offset + length) === true;
  }

  #bytes(index: number, at: number, length: number): Uint8Array {
    const memory = this.#memory.get(index);
    if (memory === undefined) throw refuse('EINVAL');
    return memory.bytes.subarray(at, at + length);
  }

  #place(offset: number, length: number): { index: number; inside: number } {
    const index = Math.floor(offset / REGION_SPACE);
    const inside = offset % REGION_SPACE;
    const size = alignUp(this.#sizeOf(index), index === CONFIG ? 1 : this.#platform.memory.pageSize);
    if (inside + length > size) throw refuse('EINVAL', `${length} bytes at ${inside} of region ${index}`);
    return { index, inside };
  }

  #regionInfo(argument: Argument): number {
    const argsz = argument.argsz(REGION.sizeof);
    const index = argument.u32(REGION.index);
    if (index >= VFIO_PCI_NUM_REGIONS) throw refuse('EINVAL', `region ${index}`);
    const size = this.#sizeOf(index);
    const areas = this.#region(index)?.memory ?? [];
    const isWhole = areas.length === 1 && areas[0].length >= size;
    let flags = size === 0 ? 0 : vfio.VFIO_REGION_INFO_FLAG_READ | vfio.VFIO_REGION_INFO_FLAG_WRITE;
    if (areas.length > 0) flags |= vfio.VFIO_REGION_INFO_FLAG_MMAP;
    let needed: number = REGION.sizeof;
    argument.set32(REGION.cap_offset, 0);
    if (areas.length > 0 && !isWhole) {
      flags |= vfio.VFIO_REGION_INFO_FLAG_CAPS;
      needed += SPARSE.sizeof + areas.length * AREA.sizeof;
      if (argsz >= needed) {
        const at = REGION.sizeof;
        argument.set32(REGION.cap_offset, at);
        argument.set16(at + HEADER.id, vfio.REGION_CAP.VFIO_REGION_INFO_CAP_SPARSE_MMAP);
        argument.set16(at + HEADER.version, 1);
        argument.set32(at + HEADER.next, 0);
        argument.set32(at + SPARSE.nr_areas, areas.length);
        areas.forEach(({ offset, length }, i) => {
          argument.set64(at + SPARSE.areas + i * AREA.sizeof + AREA.offset, offset);
          argument.set64(at + SPARSE.areas + i * AREA.sizeof + AREA.size, length);
        });
      }
    }
    if (argsz < needed) argument.set32(REGION.argsz, needed);
    argument.set32(REGION.flags, flags);
    argument.set64(REGION.size, size);
    argument.set64(REGION.offset, index * REGION_SPACE);
    return 0;
  }

  #vectors(index: number): number {
    const { intx, msi, msix } = this.model.interrupts;
    return [intx, msi, msix, 1, 1].at(index) ?? 0;
  }

  #irqInfo(argument: Argument): number {
    argument.argsz(IRQ.sizeof);
    const index = argument.u32(IRQ.index);
    if (index >= VFIO_PCI_NUM_IRQS) throw refuse('EINVAL', `interrupt ${index}`);
    const isIntx = index === vfio.VFIO_PCI_INTX_IRQ_INDEX;
    argument.set32(
      IRQ.flags,
      vfio.VFIO_IRQ_INFO_EVENTFD |
        (isIntx ? vfio.VFIO_IRQ_INFO_MASKABLE | vfio.VFIO_IRQ_INFO_AUTOMASKED : vfio.VFIO_IRQ_INFO_NORESIZE),
    );
    argument.set32(IRQ.count, this.#vectors(index));
    return 0;
  }

  #setIrqs(argument: Argument): number {
    const argsz = argument.argsz(SET.sizeof);
    const flags = argument.u32(SET.flags);
    const [index, start, count] = [SET.index, SET.start, SET.count].map((at) => argument.u32(at));
    const vectors = this.#vectors(index);
    if (index >= VFIO_PCI_NUM_IRQS || start >= vectors || start + count > vectors) throw refuse('EINVAL', 'vectors');
    const isEventfds = (flags & vfio.VFIO_IRQ_SET_DATA_EVENTFD) !== 0;
    const isNone = (flags & vfio.VFIO_IRQ_SET_DATA_NONE) !== 0;
    if (isEventfds && (argsz < SET.sizeof + 4 * count || count === 0)) throw refuse('EINVAL', 'no descriptors');
    if ((flags & vfio.VFIO_IRQ_SET_ACTION_MASK) !== 0) this.#masked.add(index);
    else if ((flags & vfio.VFIO_IRQ_SET_ACTION_UNMASK) !== 0) this.#masked.delete(index);
    else if (isNone && count === 0) this.#disable(index);
    else if (isNone) for (let i = 0; i < count; i++) this.signal(index, start + i);
    else if (isEventfds)
      for (let i = 0; i < count; i++) this.#connect(index, start + i, argument.s32(SET.data + 4 * i));
    else throw refuse('ENOTTY', 'booleans');
    return 0;
  }

  #connect(index: number, vector: number, fd: number): void {
    const { files } = this.#platform;
    const kinds: readonly number[] = [
      vfio.VFIO_PCI_INTX_IRQ_INDEX,
      vfio.VFIO_PCI_MSI_IRQ_INDEX,
      vfio.VFIO_PCI_MSIX_IRQ_INDEX,
    ];
    if (kinds.includes(index) && kinds.some((other) => other !== index && this.#eventfds.has(other)))
      throw refuse('EINVAL', 'another kind of interrupt is enabled');
    const own = fd < 0 ? undefined : files.duplicate(fd);
    const vectors = this.#eventfds.get(index) ?? new Map<number, number>();
    this.#eventfds.set(index, vectors);
    const old = vectors.get(vector);
    if (old !== undefined) files.close(old);
    if (own === undefined) vectors.delete(vector);
    else vectors.set(vector, own);
  }

  #disable(index: number): void {
    for (const fd of this.#eventfds.get(index)?.values() ?? []) this.#platform.files.close(fd);
    this.#eventfds.delete(index);
    this.#masked.delete(index);
  }
}
