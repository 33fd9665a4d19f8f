/** PCI functions, as shown to people and as JSON. */
import type { KernelPort } from '../../platform/ports.js';
import { hex } from '../../units.js';
import { groupMembers, type GroupMember } from '../../vfio/facts.js';
import type { DescriptionPart, TableCell } from '../description.js';
import { idsDocument } from '../match.js';
import { KernelModules } from './modules.js';
import { classKind, className, PciNames } from './names.js';
import { PciSysfs, type PciFunction } from './sysfs.js';
import { usability, type PciUsability, type PciWay } from './usable.js';
import { MachineUses } from './uses.js';

/** Everything that is shown about a function. */
export interface PciFacts {
  readonly fn: PciFunction;
  /** Names of its vendor and device, where pci.ids has them. */
  readonly name: string;
  /** The other members of its IOMMU group. */
  readonly neighbours: readonly GroupMember[];
  readonly usability: PciUsability;
}

/** Collects the facts. Lists of the system are read once. */
export class PciReader {
  readonly #kernel: KernelPort;
  readonly #sysfs: PciSysfs;
  readonly #names: PciNames;
  readonly #modules: KernelModules;
  readonly #uses: MachineUses;

  constructor(kernel: KernelPort) {
    this.#kernel = kernel;
    this.#sysfs = new PciSysfs(kernel);
    this.#names = new PciNames(kernel);
    this.#modules = new KernelModules(kernel);
    this.#uses = new MachineUses(kernel);
  }

  /** All functions. */
  all(): PciFacts[] {
    return this.#sysfs.scan().map((fn) => this.#about(fn));
  }

  /** The current facts of the functions at these addresses; functions that no longer exist are left out. */
  some(addresses: readonly string[]): PciFacts[] {
    return addresses.flatMap((address) => {
      const fn = this.#sysfs.read(address);
      return fn === undefined ? [] : [this.#about(fn)];
    });
  }

  #about(fn: PciFunction): PciFacts {
    const members = fn.group === undefined ? [] : groupMembers(this.#kernel, fn.group);
    return {
      fn,
      name: this.#names.describe(fn.ids),
      neighbours: members.filter(({ name }) => name !== fn.address),
      usability: usability(this.#sysfs, fn, this.#modules, this.#uses),
    };
  }
}

/** A function as JSON. */
export function pciDocument({ fn, name, neighbours, usability }: PciFacts): object {
  const { uses, unknown, ...usable } = usability;
  const { address, ids, revision, driver, driverOverride, group, node, interfaces, vfioName, resources } = fn;
  return {
    address,
    kind: classKind(ids.classCode),
    class: className(ids.classCode),
    name,
    ids: idsDocument(ids),
    revision,
    driver,
    driverOverride,
    group,
    sharesGroupWith: neighbours,
    numaNode: node,
    interfaces,
    vfioDevice: vfioName,
    resources: resources.map(({ start, ...rest }) => ({ start: hex(start), ...rest })),
    ...usable,
    usedBy: uses.map(({ text }) => text),
    usesNotKnown: unknown.map(({ reason }) => reason),
  };
}

/** A table of functions by kind, and what to do before they can be used; bridges come last. */
export function pciText(all: readonly PciFacts[]): DescriptionPart[] {
  if (all.length === 0) return [];
  const kinds = new Map<string, PciFacts[]>();
  for (const each of [...all].sort((a, b) => Number(isBridge(a)) - Number(isBridge(b)))) {
    const kind = classKind(each.fn.ids.classCode);
    kinds.set(kind, [...(kinds.get(kind) ?? []), each]);
  }
  const columns = ['PCI', 'NAME', 'DRIVER', 'GROUP', 'SHARED WITH', 'NODE', 'USABLE NOW'].map((head) => ({ head }));
  const rows: TableCell[][] = [];
  for (const [kind, members] of kinds) {
    rows.push([{ text: kind, tone: 'strong' }]);
    for (const { fn, name, neighbours, usability } of members)
      rows.push([
        `  ${fn.address}`,
        [name, ...fn.interfaces.map((each) => `(${each})`)].join(' '),
        fn.driver ?? '-',
        String(fn.group ?? '-'),
        neighbours.map((each) => each.name).join(' ') || '-',
        String(fn.node ?? '-'),
        usableText(usability),
      ]);
  }
  // A list must not suggest commands that unmount the root or take the network down.
  const free = all.filter(({ usability }) => !usability.inUse);
  const text = [{ columns, rows }, ...todoLines(free)];
  if (free.length === all.length) return text;
  const nothing = 'For devices in use, "anydma bind --dry-run DEVICE" shows what would end their use.';
  return [...text, '', nothing];
}

/** Bridges are left out: if one keeps other functions from being used, that is said with those functions. */
function isBridge({ fn }: PciFacts): boolean {
  return classKind(fn.ids.classCode) === 'bridge';
}

const WAYS: Readonly<Record<PciWay, string>> = {
  iommufd: 'by iommufd',
  group: 'by its group',
  'no-iommu': 'without any protection',
};

/** `yes, by iommufd or by its group`, or `no: ` and the reason. */
export function usableText({ usable, ways, problems }: PciUsability): string {
  if (usable) return `yes, ${ways.map((way) => WAYS[way]).join(' or ')}`;
  return `no: ${problems[0]?.reason ?? 'the reason is unknown'}`;
}

/** The steps before the functions can be used: each step once, with the functions that need it. */
export function todoLines(all: readonly PciFacts[]): string[] {
  const unusable = all.filter((each) => !each.usability.usable && !isBridge(each));
  const steps = new Map<string, string[]>();
  for (const { fn, usability } of unusable)
    for (const { todo } of usability.problems) {
      const step = todo.replaceAll(fn.address, 'DEVICE');
      const addresses = steps.get(step) ?? [];
      if (!addresses.includes(fn.address)) steps.set(step, [...addresses, fn.address]);
    }
  if (steps.size === 0) return [];
  const lines = [...steps].map(([step, addresses]) => `  - ${stepText(step, addresses, unusable.length)}`);
  return ['', 'To use those that can not be used now:', ...lines];
}

/**
 * `anydma bind DEVICE, for DEVICE 0000:00:02.0 0000:00:03.0`; without the addresses if the step is for all functions.
 */
function stepText(step: string, addresses: readonly string[], all: number): string {
  const [first] = addresses;
  if (!step.includes('DEVICE')) return addresses.length === all ? step : `${step} (for ${addresses.join(' ')})`;
  return addresses.length === 1 ? step.replaceAll('DEVICE', first) : `${step}, for DEVICE ${addresses.join(' ')}`;
}
