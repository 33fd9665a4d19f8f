/** A made-up machine with PCI functions, for tests: sysfs as a {@link KernelPort}, with what the kernel does when it is written. */
import { DmaError, type ErrorCode } from '../../../src/errors.js';
import type { DeviceNode, KernelPort, KernelRoute } from '../../../src/platform/ports.js';

/** A function of the machine. Options that are left out have common values. */
export interface FakeFunction {
  readonly address: string;
  /** Default 8086:10d3 */
  readonly vendor?: number;
  readonly device?: number;
  /** Default 020000: Ethernet */
  readonly classCode?: number;
  /** Its driver at the start, which takes it again by itself unless it is a VFIO driver. Default `e1000e`; `null` for none. */
  readonly driver?: string | null;
  /** Default: none */
  readonly group?: number;
  readonly node?: number;
  /** There as long as its own driver has it. */
  readonly interfaces?: readonly string[];
  /** More files of its directory. */
  readonly files?: Readonly<Record<string, string>>;
}

/** A device with a number, in the tree of sysfs. */
export interface FakeNode {
  readonly number: string;
  /** Where it is: `0000:00:03.0/nvme/nvme0/nvme0n1` below a function, `virtual/block/dm-0` elsewhere. */
  readonly path: string;
  /** Default block */
  readonly kind?: DeviceNode['kind'];
  /** Names of the block devices upon it. */
  readonly holders?: readonly string[];
  /** Other files of its directory. */
  readonly files?: Readonly<Record<string, string>>;
  /** Whether the kernel holds it. Default: if it has holders. */
  readonly held?: boolean;
}

/** What the machine is like. */
export interface FakeMachineOptions {
  readonly functions?: readonly FakeFunction[];
  /** Loaded drivers, besides those of the functions. Default: vfio-pci. */
  readonly drivers?: readonly string[];
  /** Has it an IOMMU? Default: when a function has a group. */
  readonly iommu?: boolean;
  /** Other files, by path. */
  readonly files?: Readonly<Record<string, string>>;
  /** What VFIO has nodes for: groups, groups without an IOMMU, devices (with iommufd), or groups and devices. Default both. */
  readonly vfio?: 'groups' | 'noiommu' | 'devices' | 'both';
}

/** See the head of the file. */
export class FakeMachine implements KernelPort {
  /** What was written, as `text > path`, `chown user:group path`. */
  readonly writes: string[] = [];
  readonly files = new Map<string, string>();
  readonly links = new Map<string, string>();
  /** Files under /dev, and whether this process may open them. */
  readonly nodes = new Map<string, 'yes' | 'no-permission'>();
  /** What `nodeAt` says, by path. */
  readonly devices = new Map<string, DeviceNode>();
  /** Paths of device files that the kernel holds. */
  readonly held = new Set<string>();
  /** Paths of nodes that are claimed now. */
  readonly claimed: string[] = [];
  readonly routeTable: KernelRoute[] = [];
  /** Functions whose ids were added to vfio-pci (new_id). */
  readonly vfioClaims = new Set<string>();
  /** Names of users and groups: `user alice`. */
  readonly ids = new Map<string, number>();
  /** Paths that fail when they are read, listed, or opened; and `routes`. */
  readonly unreadable = new Map<string, ErrorCode>();
  /** `driver address`: binding these fails. */
  readonly failing = new Map<string, ErrorCode>();
  /** What keeps a driver from a function besides; `undefined`: nothing. */
  refusesToBind: (driver: string, address: string) => ErrorCode | undefined = () => undefined;
  /** The kernel log; `undefined` when it is not for this process. */
  logText: string | undefined = '';
  readonly #functions = new Map<string, FakeFunction>();
  readonly #vfio: NonNullable<FakeMachineOptions['vfio']>;

  constructor({ functions = [], drivers = ['vfio-pci'], iommu, files = {}, vfio = 'both' }: FakeMachineOptions = {}) {
    this.#vfio = vfio;
    this.files.set('/sys/bus/pci/drivers_probe', '');
    const own = functions.flatMap(({ driver = 'e1000e' }) => driver ?? []);
    for (const driver of [...drivers, ...own]) {
      for (const file of ['bind', 'unbind']) this.files.set(`/sys/bus/pci/drivers/${driver}/${file}`, '');
    }
    if (iommu ?? functions.some(({ group }) => group !== undefined))
      this.files.set('/sys/class/iommu/dmar0/uevent', '');
    if (drivers.includes('vfio-pci')) {
      this.files.set('/sys/module/vfio/parameters/enable_unsafe_noiommu_mode', vfio === 'noiommu' ? 'Y\n' : 'N\n');
      if (this.#hasGroups) this.nodes.set('/dev/vfio/vfio', 'yes');
      if (this.#hasDevices) this.nodes.set('/dev/iommu', 'yes');
    }
    for (const fn of functions) this.plug(fn);
    this.links.set('/proc/self', '4711').set('/proc/self/ns/mnt', 'mnt:[1]');
    this.files.set('/proc/self/mountinfo', '22 1 0:20 / / rw - overlay overlay rw\n');
    for (const [path, text] of Object.entries(files)) this.files.set(path, text);
  }

  /** Adds a function, which its own driver takes. */
  plug(fn: FakeFunction): void {
    const { address, vendor = 0x8086, device = 0x10d3, classCode = 0x020000, driver = 'e1000e', group, node = -1 } = fn;
    this.#functions.set(address, fn);
    const hex = (value: number): string => `0x${value.toString(16)}\n`;
    const texts: Record<string, string> = {
      vendor: hex(vendor),
      device: hex(device),
      subsystem_vendor: hex(vendor),
      subsystem_device: '0x0000\n',
      class: hex(classCode),
      revision: '0x02\n',
      numa_node: `${node}\n`,
      resource: RESOURCE,
      driver_override: '(null)\n',
      modalias: `pci:v${digits(vendor, 8)}d${digits(device, 8)}sv00008086sd00000000bc02sc00i00\n`,
      ...fn.files,
    };
    for (const [file, text] of Object.entries(texts)) this.files.set(`${directory(address)}/${file}`, text);
    if (group !== undefined) {
      this.links.set(`${directory(address)}/iommu_group`, `../../../kernel/iommu_groups/${group}`);
      this.files.set(`/sys/kernel/iommu_groups/${group}/devices/${address}`, '');
      if (this.#vfio === 'noiommu') this.files.set(`/sys/kernel/iommu_groups/${group}/name`, 'vfio-noiommu\n');
    }
    if (driver !== null) this.#attach(driver, address);
  }

  /** Takes a function away. */
  unplug(address: string): void {
    this.#functions.delete(address);
    for (const map of [this.files, this.links])
      for (const path of map.keys())
        if (path.startsWith(`${directory(address)}/`) || path.endsWith(`/${address}`)) map.delete(path);
  }

  /** Adds a device with a number. */
  addNode({ number, path, kind = 'block', holders = [], files = {}, held = holders.length > 0 }: FakeNode): void {
    const directory = `/sys/dev/${kind === 'block' ? 'block' : 'char'}/${number}`;
    this.links.set(
      directory,
      path.startsWith('virtual/') ? `../../devices/${path}` : `../../devices/pci0000:00/${path}`,
    );
    for (const name of holders) this.files.set(`${directory}/holders/${name}/dev`, '');
    for (const [file, text] of Object.entries(files)) this.files.set(`${directory}/${file}`, text);
    const node = `/dev/${path.split('/').at(-1) ?? ''}`;
    this.devices.set(node, { kind, number });
    if (held) this.held.add(node);
  }

  /** Adds a process that has nodes open, and sees these mounts in a namespace of its own. */
  addProcess(id: number, name: string, open: readonly string[], mounts?: string): void {
    this.files.set(`/proc/${id}/comm`, `${name}\n`);
    this.links.set(`/proc/${id}/ns/mnt`, mounts === undefined ? 'mnt:[1]' : `mnt:[${id}]`);
    if (mounts !== undefined) this.files.set(`/proc/${id}/mountinfo`, mounts);
    for (const [fd, path] of open.entries()) {
      this.links.set(`/proc/${id}/fd/${fd}`, path);
      const node = this.devices.get(path);
      if (node !== undefined) this.devices.set(`/proc/${id}/fd/${fd}`, node);
    }
  }

  /** The driver of a function. */
  driver(address: string): string | undefined {
    return this.links
      .get(`${directory(address)}/driver`)
      ?.split('/')
      .at(-1);
  }

  /** What is set as the only driver for a function. */
  override(address: string): string | undefined {
    const text = this.files.get(`${directory(address)}/driver_override`)?.trim();
    return text === '(null)' || text === '' ? undefined : text;
  }

  /** The node of the function's group. */
  groupNode(group: number): string {
    return `/dev/vfio/${this.#vfio === 'noiommu' ? 'noiommu-' : ''}${group}`;
  }

  get #hasGroups(): boolean {
    return this.#vfio !== 'devices';
  }

  get #hasDevices(): boolean {
    return this.#vfio === 'devices' || this.#vfio === 'both';
  }

  // --- the port ---

  readText(path: string): string | undefined {
    this.#mayRead(path);
    return this.files.get(path);
  }

  writeText(path: string, text: string): void {
    this.writes.push(`${text.trim()} > ${path}`);
    if (!this.files.has(path)) throw failure('ENOENT', path);
    const [, driver, action] = /^\/sys\/bus\/pci\/drivers\/([^/]+)\/(bind|unbind)$/.exec(path) ?? [];
    if (action === 'bind') return this.#bind(driver, text.trim());
    if (action === 'unbind') return this.#unbind(driver, text.trim());
    if (path === '/sys/bus/pci/drivers_probe') return this.#probe(text.trim());
    this.files.set(path, path.endsWith('/driver_override') && text.trim() === '' ? '(null)\n' : text);
  }

  list(directory: string): string[] {
    this.#mayRead(directory);
    const start = `${directory}/`;
    const names = [...this.files.keys(), ...this.links.keys(), ...this.nodes.keys()]
      .filter((path) => path.startsWith(start))
      .map((path) => path.slice(start.length).split('/')[0]);
    return [...new Set(names)].sort();
  }

  readLink(path: string): string | undefined {
    this.#mayRead(path);
    // The members of a group are links to the devices.
    const member = /^\/sys\/kernel\/iommu_groups\/\d+\/devices\/([^/]+)\/driver$/.exec(path)?.[1];
    return this.links.get(path) ?? (member === undefined ? undefined : this.links.get(`${directory(member)}/driver`));
  }

  realPath(path: string): string {
    return path;
  }

  mayOpen(path: string): 'yes' | 'no-such-file' | 'no-permission' {
    return this.nodes.get(path) ?? 'no-such-file';
  }

  log(): string | undefined {
    return this.logText;
  }

  changeOwner(path: string, user: number, group: number): void {
    this.writes.push(`chown ${user}:${group} ${path}`);
  }

  makeDirectory(): void {
    throw failure('ENOTSUP', 'mkdir');
  }

  mount(): void {
    throw failure('ENOTSUP', 'mount');
  }

  unmount(): void {
    throw failure('ENOTSUP', 'umount');
  }

  nodeAt(path: string): DeviceNode | undefined {
    return this.devices.get(path);
  }

  claim(path: string, { kind, number }: DeviceNode): Disposable {
    this.#mayRead(path);
    const node = this.devices.get(path);
    if (node?.kind !== kind || node.number !== number) throw failure('ENOENT', path);
    if (this.held.has(path)) throw failure('EBUSY', path);
    this.claimed.push(path);
    return {
      [Symbol.dispose]: () => {
        const at = this.claimed.indexOf(path);
        if (at >= 0) this.claimed.splice(at, 1);
      },
    };
  }

  routes(): KernelRoute[] {
    this.#mayRead('routes');
    return this.routeTable;
  }

  idOf(kind: 'user' | 'group', name: string): number | undefined {
    return this.ids.get(`${kind} ${name}`);
  }

  #mayRead(path: string): void {
    const code = this.unreadable.get(path);
    if (code !== undefined) throw failure(code, path);
  }

  // --- what the kernel does ---

  #bind(driver: string, address: string): void {
    const fn = this.#functions.get(address);
    if (fn === undefined || (this.override(address) ?? ownDriver(fn)) !== driver) throw failure('ENODEV', address);
    if (this.driver(address) !== undefined) throw failure('EBUSY', address);
    const code = this.failing.get(`${driver} ${address}`) ?? this.refusesToBind(driver, address);
    if (code !== undefined) throw failure(code, address);
    this.#attach(driver, address);
  }

  #probe(address: string): void {
    const fn = this.#functions.get(address);
    if (fn === undefined) throw failure('ENODEV', address);
    if (this.driver(address) !== undefined) return;
    const wanted = this.override(address) ?? (this.vfioClaims.has(address) ? 'vfio-pci' : ownDriver(fn));
    if (wanted === null || !this.files.has(`/sys/bus/pci/drivers/${wanted}/bind`)) return;
    // drivers_probe does not report the error of a driver.
    if (!this.failing.has(`${wanted} ${address}`) && this.refusesToBind(wanted, address) === undefined)
      this.#attach(wanted, address);
  }

  #attach(driver: string, address: string): void {
    const { group, interfaces = [] } = this.#functions.get(address) ?? {};
    this.links.set(`${directory(address)}/driver`, `../../../bus/pci/drivers/${driver}`);
    if (!driver.includes('vfio')) {
      for (const name of interfaces) {
        this.files.set(`${directory(address)}/net/${name}/mtu`, '1500\n');
        this.files.set(`/sys/class/net/${name}/mtu`, '1500\n');
        this.files.set(`/sys/class/net/${name}/ifindex`, `${interfaceIndex(name)}\n`);
        this.links.set(`/sys/class/net/${name}`, `../../devices/pci0000:00/${address}/net/${name}`);
      }
      return;
    }
    if (group !== undefined && this.#hasGroups) {
      this.nodes.set(this.groupNode(group), 'yes');
      this.devices.set(this.groupNode(group), { kind: 'character', number: `510:${group}` });
    }
    if (!this.#hasDevices) return;
    this.files.set(`${directory(address)}/vfio-dev/${vfioName(address)}/dev`, '511:0\n');
    this.nodes.set(deviceNode(address), 'yes');
  }

  #unbind(driver: string, address: string): void {
    if (this.driver(address) !== driver) throw failure('ENODEV', address);
    this.links.delete(`${directory(address)}/driver`);
    const { group, interfaces = [] } = this.#functions.get(address) ?? {};
    const gone = [`${directory(address)}/vfio-dev/`, `${directory(address)}/net/`];
    gone.push(...interfaces.map((name) => `/sys/class/net/${name}/`));
    for (const path of this.files.keys()) if (gone.some((start) => path.startsWith(start))) this.files.delete(path);
    for (const name of interfaces) this.links.delete(`/sys/class/net/${name}`);
    for (const [path, target] of this.links)
      if (path.startsWith('/sys/dev/') && target.includes(`/${address}/`)) this.links.delete(path);
    this.nodes.delete(deviceNode(address));
    if (group !== undefined && !this.#isWithVfio(group)) this.nodes.delete(this.groupNode(group));
  }

  #isWithVfio(group: number): boolean {
    return [...this.#functions.values()].some(
      (each) => each.group === group && this.driver(each.address)?.includes('vfio') === true,
    );
  }
}

/** BAR0 of 128 KiB, I/O ports in BAR2. */
const RESOURCE = [
  '0x00000000feb80000 0x00000000feb9ffff 0x0000000000040200',
  '0x0000000000000000 0x0000000000000000 0x0000000000000000',
  '0x000000000000c000 0x000000000000c01f 0x0000000000040101',
  ...new Array<string>(10).fill('0x0000000000000000 0x0000000000000000 0x0000000000000000'),
  '',
].join('\n');

function directory(address: string): string {
  return `/sys/bus/pci/devices/${address}`;
}

/** The index that an interface has there: its name's last digit, and 2. */
export function interfaceIndex(name: string): number {
  return Number(/\d$/.exec(name)?.[0] ?? 7) + 2;
}

/** VFIO's name for a function. */
function vfioName(address: string): string {
  return `vfio${parseInt(address.replace(/\D/g, ''), 10)}`;
}

/** The node of a function, where VFIO has nodes for devices. */
export function deviceNode(address: string): string {
  return `/dev/vfio/devices/${vfioName(address)}`;
}

/** The driver that takes a function by itself. VFIO's have to be told. */
function ownDriver({ driver = 'e1000e' }: FakeFunction): string | null {
  return driver?.includes('vfio') === true ? null : driver;
}

function digits(value: number, width: number): string {
  return value.toString(16).toUpperCase().padStart(width, '0');
}

function failure(code: ErrorCode, subject: string): DmaError {
  return new DmaError({ code, operation: 'write', reason: `made-up machine: ${subject}` });
}
