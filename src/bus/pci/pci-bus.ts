/** The bus of PCI functions that a VFIO driver has: `pci:0000:00:02.0`, `pci:00:02.0,container=mine`. */
import { mustBe } from '../../check.js';
import type { AddressSpace } from '../../dma/address-space.js';
import { DmaError, forPeople, isDmaError, throwFirst, undoAll, withUndo, type DmaErrorDetails } from '../../errors.js';
import { nonsense, type Fields } from '../../fields.js';
import type { Platform } from '../../platform/ports.js';
import { PCI_COMMAND, PCI_COMMAND_MASTER, PCI_COMMAND_MEMORY } from '../../platform/uapi/pci-regs.js';
import {
  VFIO_PCI_CONFIG_REGION_INDEX,
  VFIO_PCI_ERR_IRQ_INDEX,
  VFIO_PCI_REQ_IRQ_INDEX,
} from '../../platform/uapi/vfio.js';
import { Container, type Containers, type KernelSpace, type VfioNode } from '../../vfio/containers.js';
import type { VfioDevice } from '../../vfio/device.js';
import { isNoIommuGroup } from '../../vfio/facts.js';
import { closedDevice } from '../closed-device.js';
import { handedIds, readIds } from '../handed-ids.js';
import type { Bus, Device, IdMatch, OpenedDevice, OpenOptions, TakenDevice } from '../model.js';
import type { Description } from '../description.js';
import { ArmedInterrupts } from '../armed-interrupts.js';
import { VfioAccess } from '../vfio-access.js';
import { parsePciAddress } from './address.js';
import type { PciClaimer } from './claimer.js';
import { pciDocument, PciReader, pciText } from './facts.js';
import { faultsInLog, LogMark } from './faults.js';
import { isBridge, isVfio, PciSysfs, type PciFunction } from './sysfs.js';
import { usability } from './usable.js';

/** What the bus needs. */
export interface PciBusOptions {
  readonly platform: Platform;
  /** @internal */
  readonly containers: Pick<Containers, 'default' | 'find' | 'open' | 'takeOverDevice' | typeof Symbol.iterator>;
  /**
   * Vendors' ways to open functions that stay with their kernel drivers; the first that takes a function opens it.
   * Default: none.
   */
  readonly claimers?: readonly PciClaimer[];
}

/**
 * The bus `pci`. Key of device names: `container=NAME`, the container that the device is put into; default: the default
 * container. Devices in one container share their mappings.
 */
export class PciBus implements Bus {
  readonly name = 'pci';
  readonly naming =
    'by its address, domain:bus:device.function in hexadecimal, such as 0000:00:02.0 or 00:02.0: a device is at most 1f, a function at most 7';
  readonly keys = ['container'];
  readonly takesContainers = true;
  readonly #options: PciBusOptions;
  readonly #sysfs: PciSysfs;
  /** Address spaces of open functions, by address. Functions in one container have the same one. */
  readonly #spaces = new Map<string, KernelSpace>();

  constructor(options: PciBusOptions) {
    this.#options = options;
    this.#sysfs = new PciSysfs(options.platform.kernel);
  }

  /** Accepts a PCI address, with or without the domain. */
  parse(name: string): string | undefined {
    return parsePciAddress(name);
  }

  /** All functions except bridges, with any driver or none. */
  async scan(): Promise<readonly string[]> {
    return this.#sysfs
      .scan()
      .filter((fn) => !isBridge(fn))
      .map(({ address }) => address);
  }

  /**
   * Opens a function that a VFIO driver has, and enables memory decoding and bus mastering.
   *
   * @throws DmaError ENOTSUP: VFIO is not available here, or it is a bridge; ENODEV: it does not exist, or no driver
   *   has it; EBUSY: another kernel driver has it, or its IOMMU group is not viable; ENOENT: there is no such
   *   container; and all errors of `Containers.open`; each with a hint
   */
  async open(address: string, args: ReadonlyMap<string, string>, options: OpenOptions = {}): Promise<OpenedDevice> {
    const { platform, containers } = this.#options;
    const { limitation } = platform;
    if (limitation !== undefined)
      throw new DmaError({
        code: 'ENOTSUP',
        operation: 'open',
        device: `pci:${address}`,
        reason: `PCI devices need Linux's VFIO, which is not available here: ${limitation}`,
        hint: 'vdev devices work everywhere: "anydma demo" uses one',
      });
    const claimed = this.#openClaimed(address);
    if (claimed !== undefined) return claimed;
    const container = this.#containerOf(args, options);
    const fn = this.#find(address);
    const mark = new LogMark(forPeople(() => platform.kernel.log()));
    const undo: (() => void)[] = [];
    try {
      const { device, space, release } = this.#explained(fn, () => containers.open(container, nodeOf(fn)));
      undo.unshift(release);
      const config = new Command(device);
      undo.unshift(() => config.stop());
      config.start();
      const access = new VfioAccess(platform, device);
      undo.unshift(() => access.close());
      const notices = new Notices(platform, device, config);
      undo.unshift(() => notices.close());
      notices.listen();
      this.#spaces.set(address, space);
      undo.unshift(() => void this.#spaces.delete(address));
      return this.#opened({ address, ids: fn.ids, container, device, access, notices, mark, undo });
    } catch (error) {
      throw withUndo(error, 'open', undoAll(undo)).with({ device: `pci:${address}` });
    }
  }

  /** Continues with a function that another process has handed over, in the container of the same name. */
  takeOver(
    address: string,
    _args: ReadonlyMap<string, string>,
    { state, fds }: { readonly state: Fields; readonly fds: readonly number[] },
  ): TakenDevice {
    const { platform, containers } = this.#options;
    const left = new Set(fds);
    const undo: (() => void)[] = [];
    try {
      const container = containers.find(state.string('container'));
      const [fd, ...others] = fds;
      if (container === undefined || fd === undefined)
        throw nonsense('takeOver', `pci:${address} without its container`);
      left.delete(fd);
      const { device, space, release } = containers.takeOverDevice(container, nodeOf(this.#find(address)), fd);
      undo.unshift(() => device.close());
      device.takeOver(state.objectAt('device'));
      const access = new VfioAccess(platform, device);
      undo.unshift(() => access.abandon());
      const signals = others.splice(0, state.number('interruptFds'));
      for (const each of signals) left.delete(each);
      access.takeOver(state.objectAt('interrupts'), signals);
      const notices = new Notices(platform, device, new Command(device));
      undo.unshift(() => notices.abandon());
      for (const each of others) left.delete(each);
      notices.takeOver(state.numbers('notices'), others);
      this.#spaces.set(address, space);
      undo.unshift(() => void this.#spaces.delete(address));
      const mark = new LogMark(forPeople(() => platform.kernel.log()));
      const closing = [
        () => void this.#spaces.delete(address),
        () => notices.close(),
        () => access.close(),
        () => new Command(device).stop(),
        release,
      ];
      const ids = readIds(state, 'ids');
      return {
        opened: this.#opened({ address, ids, container, device, access, notices, mark, undo: closing }),
        start: () => {
          access.start();
          notices.resume();
        },
        abandon: () => throwFirst(undoAll(undo), 'takeOver'),
      };
    } catch (error) {
      const errors = undoAll([...undo, ...[...left].map((fd) => () => platform.files.close(fd))]);
      throw withUndo(error, 'takeOver', errors).with({ device: `pci:${address}` });
    }
  }

  #opened({ address, ids, container, device, access, notices, mark, undo }: Parts): OpenedDevice {
    const { platform } = this.#options;
    return {
      ids,
      access,
      faults: () => faultsInLog(mark.newer(platform.kernel.log() ?? ''), address),
      onError: (failed) => notices.onError(failed),
      onLost: (lost) => notices.onLost(lost),
      handOver: async () => {
        const interrupts = access.handOver();
        const { indexes, fds } = notices.handOver();
        return {
          state: {
            ...{ container: container.name, ids: handedIds(ids), device: device.handOver() },
            ...{ interrupts: interrupts.state, interruptFds: interrupts.fds.length, notices: indexes },
          },
          fds: [device.fd, ...interrupts.fds, ...fds],
          resume: () => {
            access.resume();
            notices.resume();
          },
          end: () => {
            this.#spaces.delete(address);
            throwFirst(undoAll([() => notices.abandon(), () => access.abandon(), () => device.close()]), 'handOver');
          },
        };
      },
      close: () => {
        throwFirst(undoAll(undo.splice(0)), 'close');
      },
    };
  }

  /** The address space of the container that the device is in. */
  spaceOf({ name, busName }: Device): AddressSpace {
    const space = this.#spaces.get(busName);
    if (space !== undefined) return space;
    throw closedDevice(name);
  }

  /** All functions of the machine, with what to do before each can be used. */
  describe(): Description {
    const { platform } = this.#options;
    const all = platform.limitation === undefined ? new PciReader(platform.kernel).all() : [];
    const devices = all.filter(({ fn }) => !isBridge(fn)).length;
    const summary = devices === 0 ? undefined : `${devices}, see below`;
    return { document: { pci: all.map(pciDocument) }, text: pciText(all), summary };
  }

  /** Without an IOMMU, devices use physical addresses. */
  iovaWish(): 'pa' | undefined {
    if (this.#options.containers.default.choice !== 'noiommu') return undefined;
    const exposed = (fn: PciFunction): boolean =>
      isVfio(fn) && fn.group !== undefined && isNoIommuGroup(this.#sysfs.kernel, fn.group);
    return this.#sysfs.scan().some(exposed) ? 'pa' : undefined;
  }

  #containerOf(args: ReadonlyMap<string, string>, options: OpenOptions): Container {
    const { containers } = this.#options;
    if (options.container !== undefined) {
      mustBe(options.container, Container, 'container', 'open');
      return options.container;
    }
    const name = args.get('container');
    if (name === undefined) return containers.default;
    const container = containers.find(name);
    if (container !== undefined) return container;
    const hint = `containers: ${[...containers].map((each) => each.name).join(', ')}; create others first`;
    throw new DmaError({ code: 'ENOENT', operation: 'open', reason: `there is no container "${name}"`, hint });
  }

  /** Opens a function that stays with its kernel driver, through the first vendor that takes it. */
  #openClaimed(address: string): OpenedDevice | undefined {
    const { claimers = [] } = this.#options;
    if (claimers.length === 0) return undefined;
    const fn = this.#sysfs.read(address);
    if (fn === undefined || isVfio(fn)) return undefined;
    for (const claimer of claimers) {
      const opened = claimer.open(address, fn.ids);
      if (opened !== undefined) return opened;
    }
    return undefined;
  }

  /** The function, if a VFIO driver has it. */
  #find(address: string): PciFunction {
    const fn = this.#sysfs.read(address);
    const details = { operation: 'open', device: `pci:${address}` };
    if (fn === undefined) {
      const hint = 'anydma devices lists all devices';
      throw new DmaError({ code: 'ENODEV', reason: 'there is no such PCI device', hint, ...details });
    }
    if (!isVfio(fn)) throw new DmaError({ ...details, ...this.#advice(fn) });
    return fn;
  }

  #explained<T>(fn: PciFunction, call: () => T): T {
    try {
      return call();
    } catch (error) {
      if (!isDmaError(error) || error.hint !== undefined) throw error;
      throw error.with({ cause: error, hint: forPeople(() => this.#advice(fn).hint) });
    }
  }

  /** The most basic reason why the function can not be used, with a hint. */
  #advice(fn: PciFunction): Pick<DmaErrorDetails, 'code' | 'reason' | 'hint'> {
    const { problems } = usability(this.#sysfs, fn);
    if (problems.length === 0) return { code: 'EIO', reason: 'the device can not be used', hint: undefined };
    const [{ code }] = problems;
    const hint = [...new Set(problems.map(({ todo }) => todo))].join('; then: ');
    return { code, reason: problems.map(({ reason }) => reason).join(', and '), hint };
  }
}

/** What an open function is made of. */
interface Parts {
  readonly address: string;
  readonly ids: Required<IdMatch> | undefined;
  readonly container: Container;
  readonly device: VfioDevice;
  readonly access: VfioAccess;
  readonly notices: Notices;
  readonly mark: LogMark;
  /** What closing it does. */
  readonly undo: (() => void)[];
}

function nodeOf({ address, group, vfioName }: PciFunction): VfioNode {
  // Without an IOMMU, this library does not use the character device of iommufd.
  const named = vfioName !== undefined && !vfioName.startsWith('noiommu-');
  return { name: address, group, device: named ? `/dev/vfio/devices/${vfioName}` : undefined };
}

/** The command register: enables memory decoding and DMA (bus mastering). */
class Command {
  readonly #device: VfioDevice;
  readonly #word = new Uint8Array(2);

  constructor(device: VfioDevice) {
    this.#device = device;
  }

  /** @throws DmaError ENODEV if the function does not answer */
  start(): void {
    const command = this.#read();
    if (command === 0xffff)
      throw new DmaError({
        code: 'ENODEV',
        operation: 'open',
        reason: 'the device does not answer: its configuration space reads as all ones',
        hint: 'it may have lost power or its link; write 1 to its "remove" and then to /sys/bus/pci/rescan',
      });
    this.#write(command | PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER);
  }

  /** Disables its DMA. Does nothing if the function can no longer be reached. */
  stop(): void {
    if (this.#device.failure !== undefined) return;
    const command = this.#read();
    if (command !== 0xffff) this.#write(command & ~PCI_COMMAND_MASTER);
  }

  #read(): number {
    this.#device.regionRead(VFIO_PCI_CONFIG_REGION_INDEX, PCI_COMMAND, this.#word);
    return this.#word[0] + this.#word[1] * 256;
  }

  #write(command: number): void {
    this.#word[0] = command & 0xff;
    this.#word[1] = command >>> 8;
    this.#device.regionWrite(VFIO_PCI_CONFIG_REGION_INDEX, PCI_COMMAND, this.#word);
  }
}

/** Requests of the kernel for a device, sent as VFIO interrupts: release the device, and an error was reported. */
class Notices {
  readonly #platform: Platform;
  readonly #device: VfioDevice;
  readonly #command: Command;
  readonly #armed = new Map<number, ArmedInterrupts>();
  #lost: DmaError | undefined;
  #tellLost: ((error: DmaError) => void) | undefined;
  #tellError: ((error: DmaError) => void) | undefined;

  constructor(platform: Platform, device: VfioDevice, command: Command) {
    this.#platform = platform;
    this.#device = device;
    this.#command = command;
  }

  /** Begins to listen. If it throws, `close` still has to be called. */
  listen(): void {
    for (const index of NOTICES) {
      const irq = this.#device.interrupts.at(index);
      if (irq === undefined || irq.count === 0 || !irq.eventfd) continue;
      const armed = this.#arm(index);
      armed.listen();
      // Listening alone does not keep the program alive.
      armed.setRef(false);
      this.#device.setInterrupts({ index, action: 'trigger', eventfds: armed.fds });
      armed.armed();
    }
  }

  /** Hears nothing from now on: another process, which gets the eventfds, can. */
  handOver(): { readonly indexes: readonly number[]; readonly fds: readonly number[] } {
    for (const armed of this.#armed.values()) armed.pause();
    return { indexes: [...this.#armed.keys()], fds: [...this.#armed.values()].flatMap(({ fds }) => fds) };
  }

  /** Continues with what another process listened to. @param fds the eventfds, which belong to this object from now on */
  takeOver(indexes: readonly number[], fds: readonly number[]): void {
    for (const [i, index] of indexes.entries()) {
      const armed = this.#arm(index, fds.slice(i, i + 1));
      armed.setRef(false);
      armed.armed();
    }
  }

  /** Ends {@link handOver}, or begins to listen after {@link takeOver}. */
  resume(): void {
    for (const armed of this.#armed.values()) armed.listen();
  }

  /** Another process has the eventfds. */
  abandon(): void {
    throwFirst(undoAll([...this.#armed.values()].map((armed) => () => armed.abandon())), 'close');
  }

  onLost(lost: (error: DmaError) => void): void {
    this.#tellLost = lost;
    if (this.#lost !== undefined) lost(this.#lost);
  }

  onError(failed: (error: DmaError) => void): void {
    this.#tellError = failed;
  }

  /** Idempotent. */
  close(): void {
    throwFirst(undoAll([...this.#armed.values()].reverse().map((armed) => () => armed.close())), 'close');
  }

  /** The kernel repeats this until the device is closed, and waits for it. */
  #givenBack(): void {
    if (this.#lost !== undefined) return;
    const device = `pci:${this.#device.name}`;
    const reason = 'the kernel wants the device back: it is being unplugged, or unbound from its driver';
    this.#lost = new DmaError({ code: 'ENODEV', operation: 'pci', device, reason });
    // Its memory will be taken away, so stop its DMA. If the device is unplugged already, that fails.
    undoAll([() => this.#command.stop(), () => this.close()]);
    this.#device.fail(this.#lost);
    this.#tellLost?.(this.#lost);
  }

  #arm(index: number, fds?: readonly number[]): ArmedInterrupts {
    const armed = new ArmedInterrupts(this.#platform, {
      handlers: [index === VFIO_PCI_REQ_IRQ_INDEX ? () => this.#givenBack() : () => this.#failed()],
      afterwards: undefined,
      ...(fds === undefined ? {} : { fds }),
      disable: () => {
        if (this.#device.failure === undefined) this.#device.setInterrupts({ index, action: 'trigger' });
      },
      closed: () => void this.#armed.delete(index),
    });
    this.#armed.set(index, armed);
    return armed;
  }

  #failed(): void {
    this.#tellError?.(
      new DmaError({
        code: 'EIO',
        operation: 'pci',
        device: `pci:${this.#device.name}`,
        reason: 'the device reported an error that the bus could not correct (PCI Express AER)',
        hint: 'the kernel log shows the error; reset the device before it is used again',
      }),
    );
  }
}

/** The interrupts of {@link Notices}. */
const NOTICES = [VFIO_PCI_REQ_IRQ_INDEX, VFIO_PCI_ERR_IRQ_INDEX] as const;
