/**
 * Who uses a PCI function through the driver that it has, so that taking it away would cost data, the network, the screen, or
 * somebody's work. Asked of sysfs, /proc and rtnetlink; what can not be asked is told apart from what is not there.
 */
import { isDmaError } from '../../errors.js';
import type { DeviceNode, KernelPort } from '../../platform/ports.js';
import { Disks, readNodes, type SysNode } from './disks.js';
import { Asking, once, type Unasked, type Use } from './found.js';
import { readMounts, readSwaps } from './mounts.js';
import { processText, readOpenNodes } from './open-nodes.js';
import { interfacesBelow, interfaceUses, readNetwork } from './routes.js';
import { isVfio, PciSysfs, type PciFunction } from './sysfs.js';

export type { Unasked, Use } from './found.js';

/** Who uses a function. */
export interface FunctionUses {
  readonly uses: readonly Use[];
  /** What could not be asked; empty when `uses` is all there is. */
  readonly unknown: readonly Unasked[];
}

/** With the function's disks claimed for this process, so that nobody begins to use them meanwhile. */
export interface ClaimedUses extends FunctionUses, Disposable {}

/** Who uses the functions of a machine: what is asked for one is kept for the others, so make a new one for each look. */
export class MachineUses {
  readonly #kernel: KernelPort;
  readonly #sysfs: PciSysfs;
  readonly #known = new Map<string, FunctionUses>();
  readonly #nodes = once((asking) => readNodes(this.#kernel, asking));
  readonly #mounts = once((asking) => readMounts(this.#kernel, asking));
  readonly #swaps = once((asking) => asking.ask(() => readSwaps(this.#kernel), []));
  readonly #openNodes = once((asking) => readOpenNodes(this.#kernel, asking));
  readonly #network = once((asking) => readNetwork(this.#kernel, asking));

  constructor(kernel: KernelPort) {
    this.#kernel = kernel;
    this.#sysfs = new PciSysfs(kernel);
  }

  /** Who uses it, as far as this user may ask. */
  of(fn: PciFunction): FunctionUses {
    let about = this.#known.get(fn.address);
    if (about === undefined) {
      using claimed = this.claim(fn);
      about = { uses: claimed.uses, unknown: claimed.unknown };
      this.#known.set(fn.address, about);
    }
    return about;
  }

  /** The same; the function's disks stay claimed until this is disposed of, those that nobody holds. */
  claim(fn: PciFunction): ClaimedUses {
    const asking = new Asking();
    const uses: Use[] = [];
    const claims: Disposable[] = [];
    if (isVfio(fn)) uses.push(...this.#vfioUses(fn, asking));
    else {
      const nodes = this.#nodesBelow(fn, asking);
      const disks = this.#disks(nodes, asking);
      claims.push(...disks.claim());
      uses.push(
        ...disks.uses,
        ...this.#tagUses(fn, asking),
        ...this.#networkUses(fn, asking),
        ...this.#screenUses(fn, nodes, asking),
      );
      uses.push(...this.#processUses([...nodes, ...disks.all], asking));
    }
    uses.push(...this.#virtualUses(fn, asking));
    return {
      uses: uses.filter(({ text }, n) => uses.findIndex((other) => other.text === text) === n),
      unknown: asking.unknown,
      [Symbol.dispose]: () => {
        for (const each of claims.splice(0)) each[Symbol.dispose]();
      },
    };
  }

  /** What has a number and is below the function, whatever buses are between. */
  #nodesBelow(fn: PciFunction, asking: Asking): SysNode[] {
    const all = this.#know(this.#nodes(), asking);
    const below = all.filter(({ path }) => path.includes(part(fn)));
    // With several ways to one disk, NVMe puts it above its controllers.
    const controllers = below.flatMap(({ path }) => /\/nvme\/(nvme\d+)$/.exec(path)?.[1] ?? []);
    if (controllers.length === 0) return below;
    const directory = '/sys/class/nvme-subsystem';
    const subsystems = asking
      .ask(() => this.#kernel.list(directory), [])
      .filter((name) =>
        asking.ask(() => this.#kernel.list(`${directory}/${name}`), []).some((each) => controllers.includes(each)),
      );
    const heads = all.filter(({ path }) => subsystems.some((name) => path.includes(`/nvme-subsystem/${name}/`)));
    return [...below, ...heads];
  }

  #disks(nodes: readonly SysNode[], asking: Asking): Disks {
    const own = nodes.filter(({ kind }) => kind === 'block');
    const facts =
      own.length === 0
        ? { nodes: [], mounts: [], swaps: [] }
        : {
            nodes: this.#know(this.#nodes(), asking),
            mounts: this.#know(this.#mounts(), asking),
            swaps: this.#know(this.#swaps(), asking),
          };
    return new Disks(this.#kernel, asking, facts, own);
  }

  /**
   * File systems that come from the host of a virtual machine: they have a tag in place of a disk, so that nothing can be
   * claimed, and one that is mounted where nobody sees it (below the root, as an initramfs leaves it) shows nowhere.
   */
  #tagUses(fn: PciFunction, asking: Asking): Use[] {
    const directory = '/sys/bus/virtio/devices';
    return this.#childrenOf(directory, fn, asking).flatMap((name) => {
      const driver = asking
        .ask(() => this.#kernel.readLink(`${directory}/${name}/driver`), undefined)
        ?.split('/')
        .at(-1);
      const type = TAGGED.get(driver ?? '');
      if (type === undefined) return [];
      const tag = asking
        .ask(() => this.#kernel.readText(`${directory}/${name}/mount_tag`), undefined)
        ?.replace(/\0|\n/g, '');
      const seen = this.#know(this.#mounts(), asking).filter(
        (mount) => mount.type === type && mount.source === (tag ?? mount.source),
      );
      if (seen.length === 0)
        asking.unknown.push({
          code: 'EBUSY',
          reason: `the host's file system ${tag ?? '(virtiofs)'} comes through it, and may be mounted where nobody sees it`,
        });
      return seen.map(({ target, source }) => ({
        text: `the host's file system ${source}, mounted at ${target}, comes through it`,
        todo: `umount ${target}`,
      }));
    });
  }

  #networkUses(fn: PciFunction, asking: Asking): Use[] {
    const names = asking.ask(() => interfacesBelow(this.#kernel, part(fn)), []);
    const all = [...new Set([...fn.interfaces, ...names])];
    if (all.length === 0) {
      if (fn.driver === undefined || !this.#hasHiddenInterface(fn, asking)) return [];
      const text = 'its network interface is in another network namespace';
      return [{ text, todo: 'end what has that namespace ("lsns -t net" lists them)' }];
    }
    const network = this.#network();
    this.#know(network, asking);
    return all.flatMap((name) => interfaceUses(this.#kernel, asking, network, name));
  }

  /** The directory of its interfaces is there, and shows none: sysfs shows those of this network namespace. */
  #hasHiddenInterface({ address }: PciFunction, asking: Asking): boolean {
    const directory = this.#sysfs.directory(address);
    const parts = asking.ask(() => this.#kernel.list(directory), []).filter((name) => /^virtio\d+$/.test(name));
    return [directory, ...parts.map((name) => `${directory}/${name}`)].some(
      (each) =>
        asking.ask(() => this.#kernel.list(each), []).includes('net') &&
        asking.ask(() => this.#kernel.list(`${each}/net`).length === 0, false),
    );
  }

  #screenUses(fn: PciFunction, nodes: readonly SysNode[], asking: Asking): Use[] {
    const read = (path: string): string => asking.ask(() => this.#kernel.readText(path), undefined)?.trim() ?? '';
    const uses: Use[] = [];
    const force = 'see that the machine can be reached without it, and use --force';
    if (read(`${this.#sysfs.directory(fn.address)}/boot_vga`) === '1')
      uses.push({ text: "it is the machine's primary display", todo: force });
    const frame = nodes.find(({ path }) => /\/graphics\/fb\d+$/.test(path));
    if (frame !== undefined)
      for (const name of asking.ask(() => this.#kernel.list('/sys/class/vtconsole'), [])) {
        const directory = `/sys/class/vtconsole/${name}`;
        if (/frame buffer/.test(read(`${directory}/name`)) && read(`${directory}/bind`) === '1')
          uses.push({
            text: `the text console is on its frame buffer ${frame.name}`,
            todo: `echo 0 > ${directory}/bind`,
          });
      }
    for (const name of read('/sys/class/tty/console/active').split(/\s+/)) {
      const isIts = nodes.some((node) => node.path.endsWith(`/tty/${name}`)) || this.#isVirtioConsole(name, fn, asking);
      if (name !== '' && isIts) uses.push({ text: `the machine's console is its ${name}`, todo: force });
    }
    return uses;
  }

  /** The kernel does not say which of them `hvc0` is. */
  #isVirtioConsole(name: string, fn: PciFunction, asking: Asking): boolean {
    const directory = '/sys/bus/virtio/devices';
    return (
      /^hvc\d+$/.test(name) &&
      this.#childrenOf(directory, fn, asking).some(
        (each) => Number(asking.ask(() => this.#kernel.readText(`${directory}/${each}/device`), undefined)) === 3,
      )
    );
  }

  #childrenOf(directory: string, fn: PciFunction, asking: Asking): string[] {
    return asking
      .ask(() => this.#kernel.list(directory), [])
      .filter((name) => asking.ask(() => this.#kernel.readLink(`${directory}/${name}`), undefined)?.includes(part(fn)));
  }

  #processUses(nodes: readonly Pick<SysNode, 'kind' | 'number'>[], asking: Asking): Use[] {
    if (nodes.length === 0) return [];
    const open = this.#know(this.#openNodes(), asking);
    return nodes.flatMap(({ kind, number }) =>
      (open.get(`${kind} ${number}`) ?? []).map((opener) => ({
        text: `${processText(opener)} has ${opener.path} open`,
        todo: `end process ${opener.process}`,
      })),
    );
  }

  /** Programs that drive it. */
  #vfioUses({ group, vfioName, address }: PciFunction, asking: Asking): Use[] {
    const names = [
      ...(group === undefined ? [] : [`/dev/vfio/${group}`, `/dev/vfio/noiommu-${group}`]),
      ...(vfioName === undefined ? [] : [`/dev/vfio/devices/${vfioName}`]),
    ];
    const nodes = names.flatMap((path) => {
      const node = asking.ask(() => this.#kernel.nodeAt(path), undefined);
      return node === undefined ? [] : [{ path, ...node }];
    });
    const below = this.#know(this.#nodes(), asking).filter((node) => node.path.includes(`/${address}/`));
    const uses = this.#processUses([...nodes, ...below], asking);
    if (uses.length > 0) return uses;
    // It may be a process that can not be seen from here: a group is opened by one at a time.
    for (const node of nodes)
      if (!node.path.startsWith('/dev/vfio/devices/') && asking.ask(() => this.#isTaken(node), false))
        return [{ text: `another program has ${node.path} open, or the device by iommufd`, todo: 'end that program' }];
    return [];
  }

  #isTaken({ path, ...node }: DeviceNode & { readonly path: string }): boolean {
    try {
      this.#kernel.claim(path, node)[Symbol.dispose]();
      return false;
    } catch (error) {
      if (isDmaError(error, 'EBUSY')) return true;
      throw error;
    }
  }

  /** Its virtual functions go with its driver, and what they are used for. */
  #virtualUses(fn: PciFunction, asking: Asking): Use[] {
    const { address, virtualFunctions: count } = fn;
    if (count === 0) return [];
    const directory = this.#sysfs.directory(address);
    const uses: Use[] = [
      {
        text: `${count} virtual ${count === 1 ? 'function of it is' : 'functions of it are'} switched on`,
        todo: `echo 0 > ${directory}/sriov_numvfs`,
      },
    ];
    for (const link of asking.ask(() => this.#kernel.list(directory), [])) {
      if (!/^virtfn\d+$/.test(link)) continue;
      const name =
        asking
          .ask(() => this.#kernel.readLink(`${directory}/${link}`), undefined)
          ?.split('/')
          .at(-1) ?? '';
      const virtual = asking.ask(() => this.#sysfs.read(name), undefined);
      if (virtual === undefined) continue;
      const about = this.of(virtual);
      uses.push(...about.uses.map(({ text, todo }) => ({ text: `virtual function ${name}: ${text}`, todo })));
      asking.unknown.push(...about.unknown);
    }
    return uses;
  }

  #know<T>({ value, unknown }: { readonly value: T; readonly unknown: readonly Unasked[] }, asking: Asking): T {
    for (const each of unknown) if (!asking.unknown.includes(each)) asking.unknown.push(each);
    return value;
  }
}

/** File systems by the drivers of virtio that bring them. */
const TAGGED: ReadonlyMap<string, string> = new Map([
  ['9pnet_virtio', '9p'],
  ['virtiofs', 'virtiofs'],
  ['virtio_fs', 'virtiofs'],
]);

/** What the path of all below it in /sys/devices has. */
function part({ address }: PciFunction): string {
  return `/${address}/`;
}

/** So many are told of in one sentence. */
const MOST = 4;

/** Uses as one clause. */
export function usesText(uses: readonly Pick<Use, 'text'>[]): string {
  const more = uses.length - MOST;
  const told = uses.slice(0, MOST).map(({ text }) => text);
  return [...told, ...(more > 0 ? [`and ${more} more`] : [])].join('; ');
}

/** What to do about uses, as one clause. */
export function usesTodo(uses: readonly Use[]): string {
  return [...new Set(uses.map(({ todo }) => todo))].slice(0, MOST).join('; ');
}
