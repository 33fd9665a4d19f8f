/**
 * The uses of a PCI function through its current driver: taking it away would cost data, the network, the display, or a
 * user's work. Read from sysfs, /proc and rtnetlink. Questions that could not be answered are kept apart from "not
 * used".
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

/** The uses of a function. */
export interface FunctionUses {
  readonly uses: readonly Use[];
  /** Questions that could not be answered; empty if `uses` is complete. */
  readonly unknown: readonly Unasked[];
}

/** The uses, while the function's disks are claimed for this process, so that no new use can begin. */
export interface ClaimedUses extends FunctionUses, Disposable {}

/**
 * The uses of a machine's functions. Answers are kept and reused for the next function, so make a new object for each
 * look.
 */
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

  /** The uses of a function, as far as this user may ask. */
  of(fn: PciFunction): FunctionUses {
    let about = this.#known.get(fn.address);
    if (about === undefined) {
      using claimed = this.claim(fn);
      about = { uses: claimed.uses, unknown: claimed.unknown };
      this.#known.set(fn.address, about);
    }
    return about;
  }

  /** The same, and claims those of the function's disks that are not in use until the result is disposed of. */
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
      return [{ text, todo: 'stop the programs in that namespace ("lsns -t net" lists them)' }];
    }
    const network = this.#network();
    this.#know(network, asking);
    return all.flatMap((name) => interfaceUses(this.#kernel, asking, network, name));
  }

  /**
   * Whether its interfaces are in another network namespace: sysfs then shows the directory, but no interface in it.
   */
  #hasHiddenInterface({ address }: PciFunction, asking: Asking): boolean {
    const directory = this.#sysfs.directory(address);
    const parts = asking.ask(() => this.#kernel.list(directory), []).filter((name) => /^virtio\d+$/.test(name));
    return [directory, ...parts.map((name) => `${directory}/${name}`)].some(
      (each) =>
        asking.ask(() => this.#kernel.list(each), []).includes('net') &&
        asking.ask(() => this.#kernel.list(`${each}/net`).length === 0, false),
    );
  }

  /** The processes that have its devices open, and the devices that the kernel serves to others. */
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

  /** The programs that drive it. */
  #vfioUses({ group, vfioName, address }: PciFunction, asking: Asking): Use[] {
    const pathsOfGroup = group === undefined ? [] : [`/dev/vfio/${group}`, `/dev/vfio/noiommu-${group}`];
    const ofGroup = this.#nodesAt(pathsOfGroup, asking);
    // The processes may be invisible, but only one program at a time can open a group, and not while a device of it is
    // open by iommufd.
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
    return [{ text: `another program has ${taken.path} open, or the device by iommufd`, todo: 'stop that program' }];
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

  /** Its virtual functions disappear with its driver, so their uses count too. */
  #virtualUses(fn: PciFunction, asking: Asking): Use[] {
    const { address, virtualFunctions: count } = fn;
    if (count === 0) return [];
    const directory = this.#sysfs.directory(address);
    const uses: Use[] = [
      {
        text: `${count} virtual ${count === 1 ? 'function of it is' : 'functions of it are'} enabled`,
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

/** The part that the paths of all devices below it in /sys/devices contain. */
function part({ address }: PciFunction): string {
  return `/${address}/`;
}

/** How many uses one sentence lists. */
const MOST = 4;

/** Uses as one clause. */
export function usesText(uses: readonly Pick<Use, 'text'>[]): string {
  const more = uses.length - MOST;
  const told = uses.slice(0, MOST).map(({ text }) => text);
  return [...told, ...(more > 0 ? [`and ${more} more`] : [])].join('; ');
}

/** What ends the uses, as one clause. */
export function usesTodo(uses: readonly Use[]): string {
  return [...new Set(uses.map(({ todo }) => todo))].slice(0, MOST).join('; ');
}
