/**
 * For tests: a kernel with VFIO in this process. It answers for /dev/vfio, /dev/iommu, the character devices and the files of
 * /sys that tell about them, with the rules of Linux 7.3 for what is used here: which calls are refused, in which order things
 * are checked, what they return. All else is the platform's below it, so that memory is real and devices reach it.
 */
import { DmaError, type ErrorCode } from '../../../src/errors.js';
import type { DmaAccess } from '../../../src/dma/address-space.js';
import { grants } from '../../../src/dma/address-space.js';
import { openPlatform } from '../../../src/platform/open.js';
import type { KernelPort, Platform } from '../../../src/platform/ports.js';
import { ioctlPort } from '../platform/platforms.js';
import * as iommufdUapi from '../../../src/platform/uapi/iommufd.js';
import * as vfio from '../../../src/platform/uapi/vfio.js';
import { Range } from '../../../src/ranges.js';
import type { Va } from '../../../src/units.js';
import { blocksGroup } from '../../../src/vfio/facts.js';
import type { VfioNode } from '../../../src/vfio/space.js';
import { deviceNode, FakeMachine } from '../bus/pci-machine.js';
import { Argument, named, refuse } from './argument.js';
import { FakeVfioDevice } from './device.js';
import { answerFault, FakeIommufd, readFaults, type FaultQueue } from './iommufd.js';
import { FakeMemory, type FakeMapping, type FakePageTable } from './pages.js';
import { FakeSpapr, type SpaprMemory } from './spapr.js';
import { FakeType1, type IovaSpan, type FakeIommu } from './type1.js';

const { IOCTL } = vfio;

/** A device of the fake kernel, with a BAR of plain memory. */
export interface KernelDevice {
  /** `0000:00:02.0` */
  readonly name: string;
  /** Its IOMMU group. Default: one of its own. */
  readonly group?: number;
  /** The kernel driver that has it; `''`: none. Default `vfio-pci`. */
  readonly driver?: string;
  /** bits of its IOMMU. Default: the kernel's. */
  readonly width?: number;
  /** IOVAs that are reserved for it, besides 0xfee00000 to 0xfeefffff for interrupts. */
  readonly reserved?: readonly IovaSpan[];
  /** Can its IOMMU track dirty pages (iommufd)? Default false. */
  readonly tracksDirtyPages?: boolean;
}

/** What the machine is like. */
export interface KernelOptions {
  /** Which ways to have devices there are. `type1` and `spapr`: groups; `iommufd`: character devices; `both`: type1 and iommufd. */
  readonly iommu: 'type1' | 'iommufd' | 'both' | 'spapr' | 'noiommu';
  /** bits of an IOVA. Default 48. */
  readonly width?: number;
  readonly devices: readonly KernelDevice[];
  /** dma_entry_limit of type1. Default 65535. */
  readonly entryLimit?: number;
  /** bytes that may be locked. Default: no limit. */
  readonly lockedLimit?: number;
  /** Has iommufd IOMMU_IOAS_MAP_FILE? Default true. */
  readonly mapsFiles?: boolean;
  /** Are interrupts isolated? When not, nothing is handed out. Default true. */
  readonly isolated?: boolean;
  /**
   * What firmware keeps mapped for all devices, which are not handed out then: the error of kernels before Linux 6.6 (EPERM of
   * VFIO_SET_IOMMU), or of those since (EINVAL of whatever takes the DMA). Default: nothing.
   */
  readonly firmware?: 'EPERM' | 'EINVAL';
  /** Does the kernel show its log? Default true. */
  readonly showsLog?: boolean;
  /** Look at the memory that is mapped? When not, any address can be. Default true. */
  readonly realMemory?: boolean;
  /** Default: this machine's. */
  readonly platform?: Platform;
}

/** What a device can reach at an IOVA. */
export interface KernelMapping {
  readonly iova: number;
  readonly length: number;
  readonly access: DmaAccess;
  /** `undefined` for what was mapped by its descriptor */
  readonly va: Va | undefined;
}

/** The fake kernel, as a test holds it. Disposing it frees what its devices have. */
export interface VfioKernel extends Disposable {
  readonly platform: Platform;
  /** Paths of nodes that this user may not open. */
  readonly forbidden: Set<string>;
  /** Paths that are not there. */
  readonly absent: Set<string>;
  /** Numbers of groups, and names of devices, that another program has. */
  readonly inUse: Set<number | string>;
  /** bytes that may be locked */
  lockedLimit: number;
  /** bytes that are pinned */
  readonly pinned: number;
  node(name: string): VfioNode;
  /** All that the device can reach, by IOVA. */
  mappings(name: string): KernelMapping[];
  /** As the device's own access: EFAULT when it is in no address space, or nothing is mapped there; EACCES. */
  translate(name: string, iova: number, access: 'read' | 'write'): FakeMapping;
  /** The device loads. */
  read(name: string, iova: number, length: number): Uint8Array;
  /** The device stores. */
  write(name: string, iova: number, from: Uint8Array): void;
  /** The device asks for a page, in a queue of iommufd. @returns the cookie */
  requestPage(name: string, iova: number, access: 'read' | 'write'): number;
  /** The sPAPR windows and registrations of the device's container. */
  spapr(name: string): FakeSpapr;
  /** Descriptors of the kernel's that are open, and objects of iommufd's: empty when nothing was left behind. */
  leaks(): string[];
}

interface Group {
  readonly number: number;
  readonly devices: Machine[];
  /** Has anybody the group's file open? Devices that were opened through it keep it so. */
  users: number;
  container: Container | undefined;
  /** How many of its devices are open by their character devices, and for whom they are. */
  cdevs: number;
  owner: object | undefined;
}

interface Container {
  readonly groups: Set<Group>;
  driver: FakeType1 | FakeSpapr | 'none' | undefined;
}

/** One device and what the kernel knows of it. */
interface Machine {
  readonly info: KernelDevice;
  readonly iommu: FakeIommu;
  readonly group: Group;
  readonly device: FakeVfioDevice;
  /** Its number in iommufd, and the iommufd. */
  bound: { readonly iommufd: FakeIommufd; readonly id: number } | undefined;
}

type File =
  | { readonly kind: 'container'; readonly container: Container }
  | { readonly kind: 'group'; readonly group: Group }
  | { readonly kind: 'device'; readonly machine: Machine; readonly byGroup: boolean }
  | { readonly kind: 'iommufd'; readonly iommufd: FakeIommufd }
  | { readonly kind: 'fault'; readonly queue: FaultQueue };

/** What there are nodes for. */
const NODES = { type1: 'groups', spapr: 'groups', noiommu: 'noiommu', iommufd: 'devices', both: 'both' } as const;

const MSI: IovaSpan = { start: 0xfee00000, last: 0xfeefffff };

/** Makes a fake kernel. */
export function fakeVfioKernel(options: KernelOptions): VfioKernel {
  return new FakeKernel(options);
}

class FakeKernel implements VfioKernel {
  readonly platform: Platform;
  readonly forbidden = new Set<string>();
  readonly absent = new Set<string>();
  readonly inUse = new Set<number | string>();
  readonly #options: KernelOptions;
  readonly #base: Platform;
  readonly #memory: FakeMemory;
  /** The files of /sys that tell about the devices, and the nodes. */
  readonly #sysfs: FakeMachine;
  readonly #machines = new Map<string, Machine>();
  readonly #groups = new Map<number, Group>();
  readonly #files = new Map<number, File>();
  readonly #iommufds = new Set<FakeIommufd>();
  readonly #spaprMemory: SpaprMemory[] = [];
  #cookies = 0;

  constructor(options: KernelOptions) {
    this.#options = options;
    this.#base = options.platform ?? openPlatform();
    this.#memory = new FakeMemory(this.#base, options.realMemory ?? true);
    this.#memory.limit = options.lockedLimit ?? Infinity;
    options.devices.forEach((info, i) => this.#addDevice(info, i));
    this.#sysfs = this.#makeSysfs();
    this.platform = this.#makePlatform();
  }

  get lockedLimit(): number {
    return this.#memory.limit;
  }

  set lockedLimit(bytes: number) {
    this.#memory.limit = bytes;
  }

  get pinned(): number {
    return this.#memory.pinned;
  }

  node(name: string): VfioNode {
    const machine = this.#machine(name);
    return {
      name,
      group: machine.group.number,
      device: this.#hasNode(deviceNode(name)) ? deviceNode(name) : undefined,
    };
  }

  mappings(name: string): KernelMapping[] {
    const table = this.#tableOf(this.#machine(name))?.table;
    return [...(table?.mappings.values() ?? [])].map(({ iova, length, access, pages, offset }) => ({
      iova,
      length,
      access,
      va: pages.va === undefined ? undefined : ((pages.va + offset) as Va),
    }));
  }

  translate(name: string, iova: number, access: 'read' | 'write'): FakeMapping {
    const mapping = this.#tableOf(this.#machine(name))?.table.mappings.at(iova);
    const range = new Range(iova, 1);
    const fault = (code: ErrorCode, reason: string): DmaError =>
      new DmaError({ code, operation: 'device DMA', device: name, range, reason });
    if (mapping === undefined) throw fault('EFAULT', 'nothing is mapped there');
    if (!grants(mapping.access, access)) throw fault('EACCES', `it may not ${access} there`);
    return mapping;
  }

  read(name: string, iova: number, length: number): Uint8Array {
    const into = new Uint8Array(length);
    this.#eachPiece(name, iova, length, 'read', (bytes, at) => into.set(bytes, at));
    return into;
  }

  write(name: string, iova: number, from: Uint8Array): void {
    this.#eachPiece(name, iova, from.length, 'write', (bytes, at) => bytes.set(from.subarray(at, at + bytes.length)));
    const tracked = this.#tableOf(this.#machine(name));
    if (tracked?.tracking === true)
      for (let page = Math.floor(iova / 4096); page * 4096 < iova + from.length; page++) tracked.table.dirty.add(page);
  }

  requestPage(name: string, iova: number, access: 'read' | 'write'): number {
    const machine = this.#machine(name);
    const fault = this.#tableOf(machine)?.fault;
    if (fault === undefined) throw refuse('EFAULT', `${name} has no queue for page requests`);
    const { IOMMU_HWPT_PGFAULT: REQUEST, IOMMU_PGFAULT_FLAGS_LAST_PAGE } = iommufdUapi;
    const cookie = ++this.#cookies;
    const request = new Argument(new Uint8Array(REQUEST.sizeof));
    request.set32(REQUEST.flags, IOMMU_PGFAULT_FLAGS_LAST_PAGE);
    request.set32(REQUEST.dev_id, machine.bound?.id ?? 0);
    request.set32(
      REQUEST.perm,
      access === 'read' ? iommufdUapi.IOMMU_PGFAULT_PERM_READ : iommufdUapi.IOMMU_PGFAULT_PERM_WRITE,
    );
    request.set64(REQUEST.addr, iova);
    request.set32(REQUEST.cookie, cookie);
    fault.waiting.push({ cookie, bytes: request.bytes });
    return cookie;
  }

  spapr(name: string): FakeSpapr {
    const driver = this.#machine(name).group.container?.driver;
    if (!(driver instanceof FakeSpapr)) throw refuse('EINVAL', `${name} is in no sPAPR container`);
    return driver;
  }

  leaks(): string[] {
    const files = [...this.#files].map(([fd, file]) => {
      if (file.kind === 'group') return `fd ${fd} of group ${file.group.number}`;
      return file.kind === 'device' ? `fd ${fd} of device ${file.machine.info.name}` : `fd ${fd} of a ${file.kind}`;
    });
    const pinned = this.#memory.pinned === 0 ? [] : [`${this.#memory.pinned} bytes pinned`];
    return [...files, ...[...this.#iommufds].flatMap(({ objects }) => objects), ...pinned];
  }

  [Symbol.dispose](): void {
    for (const { device } of this.#machines.values()) device.dispose();
  }

  // --- the machine ---

  #addDevice(info: KernelDevice, index: number): void {
    const { name } = info;
    const number = info.group ?? index + 1;
    const group = this.#groups.get(number) ?? {
      number,
      devices: [],
      users: 0,
      container: undefined,
      cdevs: 0,
      owner: undefined,
    };
    this.#groups.set(number, group);
    const machine: Machine = {
      info,
      group,
      iommu: {
        width: info.width ?? this.#options.width ?? 48,
        pageSizes: 0x40201000,
        reserved: [MSI, ...(info.reserved ?? [])].sort((a, b) => a.start - b.start),
      },
      device: new FakeVfioDevice(this.#base, { 0: { size: 4096, mappable: true } }),
      bound: undefined,
    };
    group.devices.push(machine);
    this.#machines.set(name, machine);
  }

  #makeSysfs(): FakeMachine {
    const { devices, entryLimit = 65535, firmware, iommu } = this.#options;
    const files: Record<string, string> = {
      '/sys/module/vfio_iommu_type1/parameters/dma_entry_limit': `${entryLimit}\n`,
      '/sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts': 'N\n',
      '/sys/module/iommufd/parameters/allow_unsafe_interrupts': 'N\n',
    };
    for (const number of this.#groups.keys()) {
      const group = `/sys/kernel/iommu_groups/${number}`;
      const regions = firmware === undefined ? '' : FIRMWARE_REGION;
      files[`${group}/reserved_regions`] = `${regions}0x00000000fee00000 0x00000000feefffff msi\n`;
      if (iommu !== 'noiommu') files[`${group}/type`] = 'DMA-FQ\n';
    }
    const sysfs = new FakeMachine({
      functions: devices.map(({ name, driver = 'vfio-pci' }) => ({
        address: name,
        vendor: 0x1234,
        device: 1,
        classCode: 0xff0000,
        driver: driver === '' ? null : driver,
        group: this.#machine(name).group.number,
      })),
      vfio: NODES[iommu],
      files,
    });
    // A driver of the kernel's can not have a device whose group a program has.
    sysfs.refusesToBind = (driver, name) => {
      const { container, owner } = this.#machine(name).group;
      return blocks(driver) && (container !== undefined || owner !== undefined) ? 'EBUSY' : undefined;
    };
    return sysfs;
  }

  /** Is there such a node now? */
  #hasNode(path: string): boolean {
    return this.#sysfs.nodes.has(path) && !this.absent.has(path);
  }

  #machine(name: string): Machine {
    const machine = this.#machines.get(name);
    if (machine === undefined) throw refuse('ENODEV', `no device ${name}`);
    return machine;
  }

  #tableOf(
    machine: Machine,
  ): { readonly table: FakePageTable; readonly tracking: boolean; readonly fault: FaultQueue | undefined } | undefined {
    if (machine.bound !== undefined) return machine.bound.iommufd.tableOf(machine.bound.id);
    const driver = machine.group.container?.driver;
    if (driver === undefined || driver === 'none') return undefined;
    return { table: driver.table, tracking: false, fault: undefined };
  }

  #eachPiece(
    name: string,
    iova: number,
    length: number,
    access: 'read' | 'write',
    visit: (bytes: Uint8Array, at: number) => void,
  ): void {
    const pieces: { mapping: FakeMapping; at: number; length: number }[] = [];
    for (let at = 0; at < length;) {
      const mapping = this.translate(name, iova + at, access);
      const here = Math.min(length - at, mapping.iova + mapping.length - (iova + at));
      pieces.push({ mapping, at, length: here });
      at += here;
    }
    for (const { mapping, at, length: here } of pieces)
      this.#memory.bytes(mapping.pages, mapping.offset + (iova + at - mapping.iova), here, (bytes) => visit(bytes, at));
  }

  // --- descriptors ---

  #makePlatform(): Platform {
    const base = this.#base;
    const of = (path: string): KernelPort => (isOurs(path) ? this.#sysfs : base.kernel);
    return {
      ...base,
      files: {
        ...base.files,
        open: (path, access) => this.#open(path) ?? base.files.open(path, access),
        close: (fd) => {
          const file = this.#files.get(fd);
          base.files.close(fd);
          if (file === undefined) return;
          this.#files.delete(fd);
          this.#closed(file);
        },
        readAt: (fd, offset, into) => this.#device(fd)?.readAt(offset, into) ?? base.files.readAt(fd, offset, into),
        writeAt: (fd, offset, from, end) =>
          this.#device(fd)?.writeAt(offset, from) ?? base.files.writeAt(fd, offset, from, end),
        read: (fd, into) => this.#faults(fd, (queue) => readFaults(queue, into)) ?? base.files.read(fd, into),
        write: (fd, from) => this.#faults(fd, (queue) => answerFault(queue, from)) ?? base.files.write(fd, from),
      },
      memory: {
        ...base.memory,
        map: (options) => {
          const device = options.fd === undefined ? undefined : this.#device(options.fd);
          return device === undefined ? base.memory.map(options) : device.map(options);
        },
        unmap: (va, length) => {
          base.memory.unmap(va, length);
          for (const { device } of this.#machines.values()) device.unmapped(va);
        },
      },
      ioctl: ioctlPort((fd, request, argument, name) => {
        const file = this.#files.get(fd);
        if (file === undefined) return base.ioctl.call(fd, request, argument, name);
        return named(name, () =>
          this.#ioctl(file, request, typeof argument === 'number' ? argument : new Argument(argument), name),
        );
      }),
      limits: {
        ...base.limits,
        lockedMemory: () => ({ limit: this.#memory.limit, used: this.#memory.pinned }),
        pinnedMemory: () => this.#memory.pinned,
      },
      kernel: {
        ...base.kernel,
        log: () => (this.#options.showsLog === false ? undefined : this.#logText),
        readText: (path) => of(path).readText(path),
        writeText: (path, text) => of(path).writeText(path, text),
        list: (directory) =>
          of(directory)
            .list(directory)
            .filter((name) => !this.absent.has(`${directory}/${name}`)),
        readLink: (path) => of(path).readLink(path),
        mayOpen: (path) => {
          if (this.absent.has(path)) return 'no-such-file';
          return this.forbidden.has(path) ? 'no-permission' : of(path).mayOpen(path);
        },
      },
    };
  }

  #device(fd: number): FakeVfioDevice | undefined {
    const file = this.#files.get(fd);
    if (file === undefined) return undefined;
    if (file.kind !== 'device') throw refuse('EINVAL', 'no device');
    if (!file.byGroup && file.machine.bound === undefined) throw refuse('EINVAL', 'it is not bound');
    return file.machine.device;
  }

  #faults(fd: number, work: (queue: FaultQueue) => number): number | undefined {
    const file = this.#files.get(fd);
    return file?.kind === 'fault' ? work(file.queue) : undefined;
  }

  #newFile(file: File): number {
    const fd = this.#base.events.create();
    this.#files.set(fd, file);
    if (file.kind === 'device') file.machine.device.opened();
    return fd;
  }

  #open(path: string): number | undefined {
    if (!path.startsWith('/dev/vfio/') && path !== '/dev/iommu') return undefined;
    const deny = (code: ErrorCode): DmaError => new DmaError({ code, operation: 'open', reason: path });
    if (!this.#hasNode(path)) throw deny('ENOENT');
    if (this.forbidden.has(path)) throw deny('EACCES');
    if (path === '/dev/vfio/vfio')
      return this.#newFile({ kind: 'container', container: { groups: new Set(), driver: undefined } });
    if (path === '/dev/iommu') {
      const iommufd = new FakeIommufd(this.#memory, {
        mapsFiles: this.#options.mapsFiles ?? true,
        faultDescriptor: (queue) => this.#newFile({ kind: 'fault', queue }),
      });
      this.#iommufds.add(iommufd);
      return this.#newFile({ kind: 'iommufd', iommufd });
    }
    for (const machine of this.#machines.values())
      if (path === deviceNode(machine.info.name)) return this.#newFile({ kind: 'device', machine, byGroup: false });
    const group = [...this.#groups.values()].find(({ number }) => path === this.#sysfs.groupNode(number));
    if (group === undefined) throw deny('ENOENT');
    if (group.users > 0 || group.cdevs > 0 || this.inUse.has(group.number)) throw deny('EBUSY');
    group.users = 1;
    return this.#newFile({ kind: 'group', group });
  }

  #closed(file: File): void {
    if (file.kind === 'group') this.#leaveGroup(file.group);
    else if (file.kind === 'fault') file.queue.users--;
    else if (file.kind === 'iommufd') {
      // Devices that are bound keep it, until they are closed as well.
      if (![...this.#machines.values()].some(({ bound }) => bound?.iommufd === file.iommufd))
        this.#closeIommufd(file.iommufd);
    } else if (file.kind === 'device') {
      const { machine } = file;
      machine.device.closed();
      if (file.byGroup) return this.#leaveGroup(machine.group);
      const { bound, group } = machine;
      if (bound === undefined) return;
      machine.bound = undefined;
      bound.iommufd.unbind(bound.id);
      if (--group.cdevs === 0) group.owner = undefined;
      const isOpen = [...this.#files.values()].some(
        (each) => each.kind === 'iommufd' && each.iommufd === bound.iommufd,
      );
      if (!isOpen) this.#closeIommufd(bound.iommufd);
    }
  }

  #closeIommufd(iommufd: FakeIommufd): void {
    iommufd.close();
    this.#iommufds.delete(iommufd);
  }

  /** A user of the group's file is gone; after the last, the group leaves its container. */
  #leaveGroup(group: Group): void {
    if (--group.users > 0) return;
    const { container } = group;
    if (container === undefined) return;
    group.container = undefined;
    container.groups.delete(group);
    const { driver } = container;
    if (driver instanceof FakeType1) driver.detach(group.devices[0].iommu);
    if (container.groups.size > 0) return;
    if (driver instanceof FakeType1 || driver instanceof FakeSpapr) driver.release();
    container.driver = undefined;
  }

  // --- calls ---

  #ioctl(file: File, request: number, argument: Argument | number, name: string): number {
    switch (file.kind) {
      case 'container':
        return this.#containerIoctl(file.container, request, argument);
      case 'group':
        return this.#groupIoctl(file.group, request, toStruct(argument));
      case 'device':
        return this.#deviceIoctl(file, request, argument, name);
      case 'iommufd':
        return file.iommufd.ioctl(request, toStruct(argument));
      case 'fault':
        throw refuse('ENOTTY');
    }
  }

  #containerIoctl(container: Container, request: number, argument: Argument | number): number {
    if (request === IOCTL.VFIO_GET_API_VERSION) return vfio.VFIO_API_VERSION;
    if (request === IOCTL.VFIO_CHECK_EXTENSION) return this.#checkExtension(container, Number(argument));
    if (request === IOCTL.VFIO_SET_IOMMU) return this.#setIommu(container, Number(argument));
    // Without an IOMMU nothing else is known.
    if (container.driver === undefined) throw refuse('EINVAL', 'no IOMMU');
    if (container.driver === 'none') throw refuse('ENOTTY');
    return container.driver.ioctl(request, toStruct(argument));
  }

  #checkExtension(container: Container, extension: number): number {
    const { iommu } = this.#options;
    if (container.driver instanceof FakeType1 || container.driver instanceof FakeSpapr)
      return container.driver.checkExtension(extension);
    if (iommu === 'noiommu') return extension === vfio.VFIO_NOIOMMU_IOMMU ? 1 : 0;
    if (iommu === 'spapr') return this.#newSpapr().checkExtension(extension);
    return new FakeType1(this.#memory, 0).checkExtension(extension);
  }

  #setIommu(container: Container, type: number): number {
    if (container.groups.size === 0 || container.driver !== undefined)
      throw refuse('EINVAL', 'no group, or done already');
    const { iommu, entryLimit = 65535 } = this.#options;
    if (this.#checkExtension(container, type) <= 0) throw refuse('ENODEV');
    if (iommu === 'noiommu') container.driver = 'none';
    else if (iommu === 'spapr') container.driver = this.#newSpapr();
    else {
      this.#mustBeIsolated('vfio_iommu_type1');
      for (const group of container.groups) this.#mustNotBeFirmwares(group, 'EPERM');
      const driver = new FakeType1(this.#memory, entryLimit);
      for (const group of container.groups) driver.attach(group.devices[0].iommu);
      container.driver = driver;
    }
    return 0;
  }

  #newSpapr(): FakeSpapr {
    return new FakeSpapr(this.#memory, this.#base.memory.pageSize, this.#spaprMemory);
  }

  #logText = '';

  #mustNotBeFirmwares(group: Group, code: 'EPERM' | 'EINVAL'): void {
    if (this.#options.firmware !== code) return;
    const { name } = group.devices[0].info;
    const says =
      code === 'EPERM'
        ? 'DMAR: Device is ineligible for IOMMU domain attach due to platform RMRR requirement.'
        : 'Firmware has requested this device have a 1:1 IOMMU mapping, rejecting configuring the device without a 1:1 mapping.';
    this.#logText += `<4>[   12.000000] vfio-pci ${name}: ${says}\n`;
    throw refuse(code, 'the firmware has it');
  }

  #mustBeIsolated(module: string): void {
    const allowed = this.#sysfs.readText(`/sys/module/${module}/parameters/allow_unsafe_interrupts`) ?? 'N';
    if (this.#options.isolated === false && !allowed.startsWith('Y')) {
      const says = module === 'iommufd' ? 'MSI interrupts are not secure' : 'No interrupt remapping support.';
      this.#logText += `<4>[   12.000000] ${module}: ${says}\n`;
      throw refuse('EPERM', 'interrupts are not isolated');
    }
  }

  /** Has somebody else the DMA of the group: a driver of the kernel's, another program, or the other way of having it? */
  #isOwned(group: Group): boolean {
    return (
      this.#isKernels(group) || group.devices.some(({ info }) => this.inUse.has(info.name)) || group.owner !== undefined
    );
  }

  /** Has a driver of the kernel's one of its devices? */
  #isKernels(group: Group): boolean {
    return group.devices.some(({ info }) => blocks(this.#driver(info.name)));
  }

  #driver(name: string): string {
    return this.#sysfs.driver(name) ?? '';
  }

  #groupIoctl(group: Group, request: number, argument: Argument): number {
    switch (request) {
      case IOCTL.VFIO_GROUP_GET_STATUS: {
        argument.argsz(vfio.VFIO_GROUP_STATUS.sizeof);
        const { VFIO_GROUP_FLAGS_VIABLE: VIABLE, VFIO_GROUP_FLAGS_CONTAINER_SET: SET } = vfio;
        const flags = group.container !== undefined ? SET | VIABLE : this.#isOwned(group) ? 0 : VIABLE;
        argument.set32(vfio.VFIO_GROUP_STATUS.flags, flags);
        return 0;
      }
      case IOCTL.VFIO_GROUP_SET_CONTAINER: {
        const file = this.#files.get(argument.s32(0));
        if (file === undefined) throw refuse('EBADF');
        if (group.container !== undefined) throw refuse('EINVAL', 'it is in a container');
        if (file.kind !== 'container') throw refuse('EINVAL', 'no container');
        if (this.#isOwned(group)) throw refuse('EPERM', 'its DMA is owned');
        this.#mustNotBeFirmwares(group, 'EINVAL');
        const { container } = file;
        if (container.driver instanceof FakeType1) {
          this.#mustBeIsolated('vfio_iommu_type1');
          container.driver.attach(group.devices[0].iommu);
        }
        container.groups.add(group);
        group.container = container;
        return 0;
      }
      case IOCTL.VFIO_GROUP_UNSET_CONTAINER:
        if (group.container === undefined) throw refuse('EINVAL');
        if (group.users > 1) throw refuse('EBUSY');
        group.users++;
        this.#leaveGroup(group);
        return 0;
      case IOCTL.VFIO_GROUP_GET_DEVICE_FD: {
        const end = argument.bytes.indexOf(0);
        const name = Buffer.from(argument.bytes.subarray(0, end < 0 ? undefined : end)).toString('latin1');
        const machine = group.devices.find((each) => each.info.name === name);
        if (machine === undefined || !this.#driver(name).includes('vfio')) throw refuse('ENODEV', name);
        if (group.container?.driver === undefined) throw refuse('EINVAL', 'no IOMMU');
        const fd = this.#newFile({ kind: 'device', machine, byGroup: true });
        group.users++;
        return fd;
      }
      default:
        throw refuse('ENOTTY');
    }
  }

  #deviceIoctl(
    { machine, byGroup }: Extract<File, { kind: 'device' }>,
    request: number,
    argument: Argument | number,
    name: string,
  ): number {
    if (request === IOCTL.VFIO_DEVICE_BIND_IOMMUFD) return this.#bindIommufd(machine, byGroup, toStruct(argument));
    if (!byGroup && machine.bound === undefined) throw refuse('EINVAL', 'it is not bound');
    if (byGroup || machine.bound === undefined) return machine.device.ioctl(request, argument, name);
    const { iommufd, id } = machine.bound;
    if (request === IOCTL.VFIO_DEVICE_ATTACH_IOMMUFD_PT) {
      const { VFIO_DEVICE_ATTACH_IOMMUFD_PT: ATTACH } = vfio;
      const struct = toStruct(argument);
      struct.argsz(ATTACH.pt_id + 4);
      if (struct.u32(ATTACH.flags) !== 0) throw refuse('EINVAL', 'flags');
      struct.set32(ATTACH.pt_id, iommufd.attach(id, struct.u32(ATTACH.pt_id)));
      return 0;
    }
    if (request === IOCTL.VFIO_DEVICE_DETACH_IOMMUFD_PT) {
      toStruct(argument).argsz(vfio.VFIO_DEVICE_DETACH_IOMMUFD_PT.pasid);
      iommufd.detach(id);
      return 0;
    }
    return machine.device.ioctl(request, argument, name);
  }

  #bindIommufd(machine: Machine, byGroup: boolean, argument: Argument): number {
    const { VFIO_DEVICE_BIND_IOMMUFD: BIND } = vfio;
    argument.size(BIND.out_devid + 4, BIND.sizeof);
    const { group } = machine;
    if (argument.s32(BIND.iommufd) < 0 || argument.u32(BIND.flags) !== 0 || byGroup) throw refuse('EINVAL');
    if (group.users > 0 || this.inUse.has(group.number)) throw refuse('EBUSY', 'its group is open');
    // A device that is open already can not be had twice this way.
    if (machine.bound !== undefined || this.inUse.has(machine.info.name)) throw refuse('EINVAL', 'it is bound');
    const file = this.#files.get(argument.s32(BIND.iommufd));
    if (file?.kind !== 'iommufd') throw refuse(file === undefined ? 'EBADF' : 'EINVAL');
    this.#mustBeIsolated('iommufd');
    const { iommufd } = file;
    if (this.#isKernels(group)) throw refuse('EPERM', 'its DMA is owned');
    if (group.owner !== undefined && group.owner !== iommufd) throw refuse('EPERM', 'its DMA is owned');
    this.#mustNotBeFirmwares(group, 'EINVAL');
    const { name, tracksDirtyPages = false } = machine.info;
    const id = iommufd.bind({ name, group: group.number, iommu: machine.iommu, tracksDirtyPages });
    machine.bound = { iommufd, id };
    group.owner = iommufd;
    group.cdevs++;
    argument.set32(BIND.out_devid, id);
    return 0;
  }
}

function isOurs(path: string): boolean {
  return [
    '/dev/vfio',
    '/dev/iommu',
    '/sys/kernel/iommu_groups',
    '/sys/bus/pci',
    '/sys/class/iommu',
    '/sys/module/vfio',
    '/sys/module/iommufd',
  ].some((start) => path.startsWith(start));
}

function toStruct(argument: Argument | number): Argument {
  if (typeof argument === 'number') throw refuse('EFAULT');
  return argument;
}

/** Does a kernel driver keep its device's group from programs? `''` is none. */
function blocks(driver: string): boolean {
  return driver !== '' && blocksGroup(driver);
}

const FIRMWARE_REGION =
  '0x00000000000e0000 0x00000000000fffff direct-relaxable\n0x00000000bdf6f000 0x00000000bdf7efff direct\n';
