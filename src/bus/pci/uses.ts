/**
 * Who uses a PCI function through the driver that it has, so that taking it away would cost data, the network, the screen, or
 * somebody's work. Asked of sysfs, /proc and rtnetlink; what can not be asked is told apart from what is not there.
 */
import { isDmaError } from '../../errors.js';
import type { DeviceNode, KernelPort } from '../../platform/ports.js';
import { nodesOfFunction } from './belongings.js';
import { channelUses } from './channels.js';
import { Disks, readNodes, type SysNode } from './disks.js';
import { Asking, once, type Unasked, type Use } from './found.js';
import { memoryUses } from './machine-memory.js';
import { readMounts, readSwaps } from './mounts.js';
import { processText, readOpenNodes } from './open-nodes.js';
import { interfacesBelow, interfaceUses, readNetwork } from './routes.js';
import { screenUses } from './screens.js';
import { readServed } from './served.js';
import { shareUses } from './shares.js';
import { isVfio, PciSysfs, type PciFunction } from './sysfs.js';
import { thunderboltUses } from './thunderbolt.js';

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
  readonly #served = once((asking) => readServed(this.#kernel, asking));
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
      const { address } = fn;
      const nodes = nodesOfFunction(this.#kernel, asking, this.#know(this.#nodes(), asking), address);
      const disks = this.#disks(nodes, asking);
      claims.push(...disks.claim());
      uses.push(
        ...disks.uses,
        ...shareUses(this.#kernel, asking, address, () => this.#know(this.#mounts(), asking)),
        ...this.#networkUses(fn, asking),
        ...screenUses(this.#kernel, asking, address, nodes),
        ...channelUses(this.#kernel, asking, address),
        ...memoryUses(this.#kernel, asking, address),
        ...thunderboltUses(this.#kernel, asking, address),
        ...this.#openerUses([...nodes, ...disks.all], asking),
      );
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

  /** Who has them open: processes, and what the kernel serves to others. */
  #openerUses(nodes: readonly DeviceNode[], asking: Asking): Use[] {
    if (nodes.length === 0) return [];
    const isAmong = (one: DeviceNode): boolean =>
      nodes.some(({ kind, number }) => kind === one.kind && number === one.number);
    const served = this.#know(this.#served(), asking).filter(({ node }) => isAmong(node));
    return [
      ...this.#processUses(nodes, asking),
      ...served.map(({ path, by, todo }) => ({ text: `${by} serves ${path} to other machines`, todo })),
    ];
  }

  #processUses(nodes: readonly DeviceNode[], asking: Asking): Use[] {
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
    const pathsOfGroup = group === undefined ? [] : [`/dev/vfio/${group}`, `/dev/vfio/noiommu-${group}`];
    const ofGroup = this.#nodesAt(pathsOfGroup, asking);
    // Processes may be out of sight, but a group is opened by one at a time, and not while its devices are open otherwise.
    const states = ofGroup.map((node) => asking.ask(() => this.#isTaken(node), undefined));
    if (states.length > 0 && states.every((isTaken) => isTaken === false)) return [];
    const nodes = [
      ...ofGroup,
      ...this.#nodesAt(vfioName === undefined ? [] : [`/dev/vfio/devices/${vfioName}`], asking),
      ...this.#know(this.#nodes(), asking).filter((node) => node.path.includes(`/${address}/`)),
    ];
    const uses = this.#processUses(nodes, asking);
    const taken = ofGroup.find((_, n) => states[n] === true);
    if (uses.length > 0 || taken === undefined) return uses;
    return [{ text: `another program has ${taken.path} open, or the device by iommufd`, todo: 'end that program' }];
  }

  #nodesAt(paths: readonly string[], asking: Asking): (DeviceNode & { readonly path: string })[] {
    return paths.flatMap((path) => {
      const node = asking.ask(() => this.#kernel.nodeAt(path), undefined);
      return node === undefined ? [] : [{ path, ...node }];
    });
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

/** What the path of all below it in /sys/devices has. */
function part({ address }: PciFunction): string {
  return `/${address}/`;
}

/** How many uses one sentence names. */
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
