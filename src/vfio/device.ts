/** A device opened through VFIO: regions, interrupts and reset, by its descriptor. */
import { lostDevice } from '../dma/mapping.js';
import { DmaError, invalid, isDmaError, undoAll, withUndo } from '../errors.js';
import type { Fields, JsonObject } from '../fields.js';
import type { Platform } from '../platform/ports.js';
import { MappedArea, RegionRegisters } from '../platform/registers/region-registers.js';
import type { LentRegisters, RegionPart } from '../platform/registers/region-registers.js';
import type { Registers } from '../platform/registers/registers.js';
import { Struct } from '../platform/struct.js';
import {
  IOCTL,
  VFIO_IRQ_SET,
  VFIO_IRQ_SET_ACTION_MASK,
  VFIO_IRQ_SET_ACTION_TRIGGER,
  VFIO_IRQ_SET_ACTION_UNMASK,
  VFIO_IRQ_SET_DATA_EVENTFD,
  VFIO_IRQ_SET_DATA_NONE,
  VFIO_PCI_CONFIG_REGION_INDEX,
  VFIO_PCI_MSIX_IRQ_INDEX,
} from '../platform/uapi/vfio.js';
import { hex, isAddress } from '../units.js';
import type { InterruptRequest } from '../vfio-user/client-options.js';
import { readDeviceInfo } from './device-info.js';
import type { VfioDeviceInfo, VfioIrq, VfioRegion } from './device-info.js';
import { MemoryDecoding } from './memory-decoding.js';

export type { VfioIrq, VfioRegion } from './device-info.js';

const ACTION = {
  mask: VFIO_IRQ_SET_ACTION_MASK,
  unmask: VFIO_IRQ_SET_ACTION_UNMASK,
  trigger: VFIO_IRQ_SET_ACTION_TRIGGER,
} as const;

/** INTx, MSI and MSI-X: a PCI function uses only one of them at a time. */
const KINDS = ['INTx', 'MSI', 'MSI-X'] as const;

/**
 * A device opened through VFIO. It owns the descriptor and its mapped regions. While a region is mapped, EBUSY refuses
 * stores to configuration space that would make an access to it kill this process: see `memory-decoding.ts`.
 */
export class VfioDevice {
  readonly info: VfioDeviceInfo['info'];
  /** By index. Size 0 if the device does not have the region. */
  readonly regions: readonly VfioRegion[];
  /** By index. Count 0 if the device does not have the kind. */
  readonly interrupts: readonly VfioIrq[];

  readonly #platform: Platform;
  readonly #registers = new Map<number, RegionRegisters>();
  readonly #mapped: MappedArea[] = [];
  /** Only for PCI devices. */
  readonly #decoding: MemoryDecoding | undefined;
  /** A struct vfio_irq_set, large enough for all requests. */
  readonly #irqSet: Struct;
  /** Vectors that the kernel has set up, by interrupt index, while the kind is enabled. */
  readonly #enabled = new Map<number, number>();
  #failure: DmaError | undefined;
  #closed = false;

  private constructor(
    platform: Platform,
    readonly fd: number,
    /** Its name in messages. */
    readonly name: string,
    described: VfioDeviceInfo,
  ) {
    this.#platform = platform;
    this.info = described.info;
    this.regions = described.regions;
    this.interrupts = described.interrupts;
    this.#irqSet = new Struct(VFIO_IRQ_SET.sizeof + 4 * Math.max(1, ...this.interrupts.map(({ count }) => count)));
    const config = this.regions.at(VFIO_PCI_CONFIG_REGION_INDEX)?.size ?? 0;
    if (this.info.pci && config > 0)
      this.#decoding = new MemoryDecoding({
        read: (offset, into) => this.regionRead(VFIO_PCI_CONFIG_REGION_INDEX, offset, into),
        write: (offset, from) => this.regionWrite(VFIO_PCI_CONFIG_REGION_INDEX, offset, from),
      });
  }

  /**
   * Queries the device of `fd`, and takes ownership of `fd`: if it throws, `fd` is closed.
   *
   * @param name for messages
   * @throws DmaError errors of the kernel
   */
  static fromFd(platform: Platform, fd: number, name: string): VfioDevice {
    try {
      return new VfioDevice(platform, fd, name, readDeviceInfo(platform.ioctl, fd));
    } catch (error) {
      throw withUndo(error, 'vfio device', undoAll([() => platform.files.close(fd)])).with({ device: name });
    }
  }

  /** Why it can not be used: it is gone, or was closed; `undefined` while it works. */
  get failure(): DmaError | undefined {
    return this.#failure;
  }

  /**
   * The registers of a region: accessed directly where it can be mapped, else by calls of the kernel. Returns the same
   * object each time; once the device is gone or closed, all accesses throw the reason. A 64-bit access by a call may
   * reach the device as two of 32 bits (before Linux 6.11).
   *
   * Mapping a region of a PCI function switches its memory decoding on.
   *
   * @throws DmaError EINVAL if the device does not have the region; EIO if it is in a low power state; ENODEV if it
   * does not respond; errors of mapping
   */
  registers(index: number): Registers {
    this.#usable('registers');
    const known = this.#registers.get(index);
    if (known !== undefined) return known;
    const region = this.#region('registers', index);
    const areas = region.mappable.filter((area) => this.#canMap(region, area));
    const mapped: MappedArea[] = [];
    try {
      if (areas.length > 0) this.#decoding?.switchOn();
      for (const area of areas) mapped.push(new MappedArea(this.#platform.memory, this.fd, region.offset, area));
    } catch (error) {
      const undo = undoAll(mapped.reverse().map((area) => () => area.close()));
      throw withUndo(error, 'registers', undo).with({ device: this.name });
    }
    this.#mapped.push(...mapped);
    const registers = new RegionRegisters(this, index, region.size, mapped);
    this.#registers.set(index, registers);
    return registers;
  }

  /** Keeps mapped registers for another thread; `undefined` if they are not mapped. */
  lendRegisters(index: number, offset: number, length: number): LentRegisters | undefined {
    this.registers(index);
    return this.#registers.get(index)?.lend(offset, length);
  }

  /** Reads `into` from `offset` of a region or of configuration space. */
  regionRead(index: number, offset: number, into: Uint8Array): void {
    const operation = 'vfio region read';
    const region = this.#part(operation, index, offset, into.length);
    if (!region.readable) throw invalid(operation, `region ${index} can not be read`, { device: this.name });
    const { files } = this.#platform;
    this.#done(operation, into.length, () => files.readAt(this.fd, region.offset + offset, into));
  }

  /**
   * Writes `from` at `offset` of a region or of configuration space.
   *
   * @throws DmaError EBUSY for a store to configuration space that would make mapped regions inaccessible
   */
  regionWrite(index: number, offset: number, from: Uint8Array): void {
    const operation = 'vfio region write';
    const region = this.#part(operation, index, offset, from.length);
    if (!region.writable) throw invalid(operation, `region ${index} can not be written`, { device: this.name });
    if (index === VFIO_PCI_CONFIG_REGION_INDEX && this.#mapped.length > 0)
      this.#explained(operation, () => this.#decoding?.check(offset, from));
    const { files } = this.#platform;
    this.#done(operation, from.length, () => files.writeAt(this.fd, region.offset + offset, from));
  }

  /**
   * Connects interrupt vectors to eventfds, triggers them, or masks or unmasks them. Disabling a disabled kind does
   * nothing.
   *
   * Without `count` and `eventfds`, one vector is masked or unmasked.
   *
   * A kind that can not grow while it is enabled (MSI, and MSI-X before Linux 6.5) is disabled and enabled again by a
   * request that begins at vector 0, and thus names all vectors; signals in between are lost.
   *
   * @throws DmaError EINVAL for vectors that do not exist, or can not be added; EBUSY while another of INTx, MSI and
   * MSI-X is enabled; ENOTSUP for an action that this kind does not support; ENOSPC if the machine does not have enough
   * vectors. If the kernel refuses, some of the vectors may be connected: connect all again, or disable the kind
   */
  setInterrupts(request: Omit<InterruptRequest, 'detach'>): void {
    const operation = 'VFIO_DEVICE_SET_IRQS';
    this.#usable(operation);
    const { index, action, start = 0, eventfds = [] } = request;
    const irq = isAddress(index) ? this.interrupts.at(index) : undefined;
    const details = { device: this.name };
    if (irq === undefined) throw invalid(operation, `no interrupts of kind ${index}`, details);
    const count = eventfds.length > 0 ? eventfds.length : (request.count ?? (action === 'trigger' ? 0 : 1));
    if (request.count !== undefined && request.count !== count)
      throw invalid(operation, `${eventfds.length} eventfds for ${request.count} vectors`, details);
    if (!isAddress(start) || !isAddress(count) || start + count > irq.count)
      throw invalid(operation, `vectors ${start} to ${start + count - 1} of ${irq.count}`, details);
    const can = (eventfds.length === 0 || irq.eventfd) && (action === 'trigger' || irq.maskable);
    if (!can)
      throw new DmaError({ code: 'ENOTSUP', operation, reason: `interrupts of kind ${index} can not`, ...details });
    if (action !== 'trigger') this.#setIrqs(action, irq, start, count, eventfds);
    else if (count === 0) this.#disable(irq);
    else if (eventfds.length === 0) this.#setIrqs(action, irq, start, count, eventfds);
    else this.#connect(irq, start, eventfds);
  }

  /**
   * Resets the device; registers, mappings and interrupts stay. Accesses to mapped regions wait until it is done.
   *
   * @throws DmaError ENOTSUP if it has no reset; EAGAIN while the kernel is busy with it, such as removing it
   */
  reset(): void {
    const operation = 'VFIO_DEVICE_RESET';
    this.#usable(operation);
    if (!this.info.resettable)
      throw new DmaError({ code: 'ENOTSUP', operation, reason: 'the device has no reset', device: this.name });
    this.#explained(operation, () => this.#platform.ioctl.call(this.fd, IOCTL.VFIO_DEVICE_RESET, 0, operation));
  }

  /**
   * Ends the use of a device that is gone, or must be released: unmaps its regions; every later call throws `error`.
   * The descriptor stays open until {@link close}, for which the kernel waits.
   */
  fail(error: DmaError): void {
    if (this.#failure !== undefined) return;
    const lost = lostDevice(error.operation, this.name, error);
    this.#failure = lost;
    // A region that could not be unmapped is not accessible anyway, and the caller could do nothing about it.
    this.#failure = withUndo(lost, error.operation, this.#unmap());
  }

  /** Unmaps its regions and closes the descriptor, which disables interrupts and stops DMA. Idempotent. */
  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    const { files } = this.#platform;
    this.#failure ??= new DmaError({ code: 'ENODEV', operation: 'vfio device', reason: 'the device has been closed' });
    const errors = [...this.#unmap(), ...undoAll([() => files.close(this.fd)])];
    if (errors.length > 0) throw errors[0];
  }

  /**
   * The vectors that the kernel has set up, kind by kind, for another process.
   */
  handOver(): JsonObject {
    return { enabled: [...this.#enabled].map(([index, vectors]) => ({ index, vectors })) };
  }

  /** Continues with a device that another process has handed over. */
  takeOver(state: Fields): void {
    for (const each of state.list('enabled')) this.#enabled.set(each.number('index'), each.number('vectors'));
  }

  [Symbol.dispose](): void {
    this.close();
  }

  #unmap(): unknown[] {
    return undoAll(this.#mapped.splice(0).map((area) => () => area.close()));
  }

  /** Can this area be mapped and viewed? If not, it is accessed by calls. */
  #canMap({ offset, size }: VfioRegion, area: RegionPart): boolean {
    const { pageSize, maxView } = this.#platform.memory;
    // The last page of a small region belongs to the region alone: the kernel ensures this.
    const isWhole = area.length % pageSize === 0 || (area.offset + area.length === size && area.length % 4 === 0);
    return (offset + area.offset) % pageSize === 0 && area.offset % pageSize === 0 && isWhole && area.length <= maxView;
  }

  #usable(operation: string): void {
    if (this.#failure !== undefined) throw this.#failure.with({ operation, device: this.name });
  }

  #region(operation: string, index: number): VfioRegion {
    const region = isAddress(index) ? this.regions.at(index) : undefined;
    if (region === undefined || region.size === 0)
      throw invalid(operation, `the device has no region ${index}`, { device: this.name });
    return region;
  }

  /** Returns the region; EINVAL unless it has `length` bytes at `offset`. */
  #part(operation: string, index: number, offset: number, length: number): VfioRegion {
    this.#usable(operation);
    const region = this.#region(operation, index);
    if (!isAddress(offset) || offset + length > region.size) {
      const reason = `${length} bytes at ${hex(offset)} of region ${index}, which has ${hex(region.size)}`;
      throw invalid(operation, reason, { device: this.name });
    }
    return region;
  }

  /** Runs a transfer; EIO unless it transfers all `length` bytes. */
  #done(operation: string, length: number, transfer: () => number): void {
    const bytes = this.#explained(operation, transfer);
    if (bytes !== length)
      throw new DmaError({
        code: 'EIO',
        operation,
        reason: `the kernel transferred ${bytes} of ${length} bytes`,
        device: this.name,
      });
  }

  #connect(irq: VfioIrq, start: number, eventfds: readonly number[]): void {
    const operation = 'VFIO_DEVICE_SET_IRQS';
    const { index } = irq;
    const end = start + eventfds.length;
    const other = [...this.#enabled.keys()].find((each) => each !== index && each <= VFIO_PCI_MSIX_IRQ_INDEX);
    if (this.info.pci && index <= VFIO_PCI_MSIX_IRQ_INDEX && other !== undefined)
      throw new DmaError({
        code: 'EBUSY',
        operation,
        reason: `${KINDS[index]} can not be used while ${KINDS[other]} is`,
        device: this.name,
      });
    const have = this.#enabled.get(index);
    if (have !== undefined && end > have && !irq.resizable) {
      if (start > 0)
        throw invalid(operation, `vector ${end - 1} can not be added to the ${have} that are enabled`, {
          device: this.name,
          hint: 'connect all vectors in one request, from vector 0 on',
        });
      this.#disable(irq);
    }
    this.#setIrqs('trigger', irq, start, eventfds.length, eventfds);
    this.#enabled.set(index, Math.max(end, this.#enabled.get(index) ?? 0));
  }

  #disable(irq: VfioIrq): void {
    // The kernel returns EINVAL for disabling a disabled kind.
    if (!this.#enabled.has(irq.index)) return;
    this.#setIrqs('trigger', irq, 0, 0, []);
    this.#enabled.delete(irq.index);
  }

  #setIrqs(
    action: keyof typeof ACTION,
    { index }: VfioIrq,
    start: number,
    count: number,
    eventfds: readonly number[],
  ): void {
    const operation = 'VFIO_DEVICE_SET_IRQS';
    const set = this.#irqSet;
    set
      .set32(VFIO_IRQ_SET.argsz, VFIO_IRQ_SET.sizeof + 4 * eventfds.length)
      .set32(
        VFIO_IRQ_SET.flags,
        ACTION[action] | (eventfds.length > 0 ? VFIO_IRQ_SET_DATA_EVENTFD : VFIO_IRQ_SET_DATA_NONE),
      )
      .set32(VFIO_IRQ_SET.index, index)
      .set32(VFIO_IRQ_SET.start, start)
      .set32(VFIO_IRQ_SET.count, count);
    for (let i = 0; i < eventfds.length; i++) set.set32(VFIO_IRQ_SET.data + 4 * i, eventfds[i]);
    const { ioctl } = this.#platform;
    const possible = this.#explained(operation, () =>
      ioctl.call(this.fd, IOCTL.VFIO_DEVICE_SET_IRQS, set.bytes, operation),
    );
    // The kernel changed nothing in this case.
    if (possible > 0)
      throw new DmaError({
        code: 'ENOSPC',
        operation,
        reason: `the machine has only ${possible} of the ${start + count} requested vectors`,
        device: this.name,
      });
  }

  /** Runs `call`; an error of it names the operation and the device. */
  #explained<T>(operation: string, call: () => T): T {
    try {
      return call();
    } catch (error) {
      if (!isDmaError(error)) throw error;
      const hint = error.code === 'EAGAIN' ? 'the kernel is busy with the device, such as removing it' : error.hint;
      throw error.with({ operation, device: this.name, hint });
    }
  }
}
