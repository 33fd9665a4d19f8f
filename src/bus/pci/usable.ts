/** Could a PCI function be used through VFIO now? If not: why, and exactly what to do about it. */
import { DmaError, NO_DESCRIPTORS, type ErrorCode } from '../../errors.js';
import { blocksGroup, groupMembers, isNoIommuGroup, noIommuMode, type GroupMember } from '../../vfio/facts.js';
import { KernelModules } from './modules.js';
import { isBridge, isVfio, type PciFunction, type PciSysfs } from './sysfs.js';
import { MachineUses, usesText, usesTodo, type Unasked, type Use } from './uses.js';

/** One thing that keeps a function from being used. */
export interface UseProblem {
  readonly code: ErrorCode;
  /** A clause. */
  readonly reason: string;
  /** What to do: one sentence without a full stop. */
  readonly todo: string;
}

/** A way to a function: iommufd and its own character device, its IOMMU group, or its group without an IOMMU. */
export type PciWay = 'iommufd' | 'group' | 'no-iommu';

/** The answer of {@link usability}. */
export interface PciUsability {
  readonly usable: boolean;
  /** The ways that are open. */
  readonly ways: readonly PciWay[];
  /** What is in the way, the most basic first; empty when it is usable. */
  readonly problems: readonly UseProblem[];
  /** Who uses it through the driver that it has, or has it open. */
  readonly uses: readonly Use[];
  /** What this user can not ask about who uses it. */
  readonly unknown: readonly Unasked[];
  /** Does somebody use it, or what would have to be taken along? */
  readonly inUse: boolean;
}

/**
 * Looks at all that VFIO will look at, and at who uses the function now.
 *
 * @throws DmaError EMFILE, ENFILE: without descriptors nobody can tell who uses it; ask again later
 */
export function usability(
  sysfs: PciSysfs,
  fn: PciFunction,
  modules: KernelModules = new KernelModules(sysfs.kernel),
  machine: MachineUses = new MachineUses(sysfs.kernel),
): PciUsability {
  const bridge = isBridge(fn);
  const about = bridge ? { uses: [], unknown: [] } : machine.of(fn);
  const neighbours = bridge ? [] : neighboursInTheWay(sysfs, fn, machine);
  mustHaveAsked([about, ...neighbours]);
  // Taking a device away would harm who uses it, so that nobody is told how to.
  const uses = [...about.uses, ...neighbours.flatMap((each) => each.uses)];
  const facts = { ...about, inUse: uses.length > 0 };
  const command = `anydma bind ${neighbours.length === 0 ? '' : '--group '}${fn.address}`;
  const todo = uses.length === 0 ? command : usesTodo(uses);
  const problems = bridge
    ? [BRIDGE]
    : [
        ...iommuProblems(sysfs, fn),
        ...usesProblems(about.uses),
        ...driverProblems(sysfs, fn, modules, todo),
        ...neighbours.map((each) => neighbourProblem(fn, each, todo)),
      ];
  if (problems.length > 0) return { usable: false, ways: [], problems, ...facts };
  const { ways, problem } = openWays(sysfs, fn);
  if (ways.length > 0) return { usable: true, ways, problems: [], ...facts };
  return { usable: false, ways, problems: problem === undefined ? [] : [problem], ...facts };
}

function mustHaveAsked(asked: readonly { readonly unknown: readonly Unasked[] }[]): void {
  for (const { code, reason } of asked.flatMap(({ unknown }) => unknown))
    if (NO_DESCRIPTORS.includes(code)) throw new DmaError({ code, operation: 'pci', reason });
}

const BRIDGE: UseProblem = {
  code: 'ENOTSUP',
  reason: 'it is a bridge',
  todo: 'nothing: a bridge forwards for the devices behind it, and VFIO does not take it',
};

function iommuProblems(sysfs: PciSysfs, { group, vfioName }: PciFunction): UseProblem[] {
  if (group !== undefined || vfioName !== undefined || noIommuMode(sysfs.kernel) === true) return [];
  if (sysfs.hasIommu())
    return [
      {
        code: 'ENODEV',
        reason: 'the IOMMU does not translate for it',
        todo: 'boot without iommu=pt or iommu=off if they were given; some devices are behind no IOMMU on any setting',
      },
    ];
  return [
    {
      code: 'ENODEV',
      reason: 'the machine has no IOMMU, or it is off',
      todo:
        'switch it on in the firmware (VT-d, AMD-Vi, SMMU) and boot with intel_iommu=on on Intel machines; a virtual ' +
        'machine must be given a virtual IOMMU; without one only no-IOMMU mode is left, where nothing is protected ' +
        '(anydma bind --noiommu-mode)',
    },
  ];
}

function driverProblems(sysfs: PciSysfs, fn: PciFunction, modules: KernelModules, todo: string): UseProblem[] {
  if (isVfio(fn)) return [];
  const { driver } = fn;
  const problems: UseProblem[] = [];
  if (!sysfs.hasDriver('vfio-pci'))
    problems.push({ code: 'ENOTSUP', reason: 'the kernel module vfio-pci is not loaded', todo: loadVfio(modules) });
  problems.push({
    code: driver === undefined ? 'ENODEV' : 'EBUSY',
    reason: driver === undefined ? 'no driver has it' : `the driver ${driver} has it`,
    todo,
  });
  return problems;
}

function usesProblems(uses: readonly Use[]): UseProblem[] {
  return uses.length === 0 ? [] : [{ code: 'EBUSY', reason: usesText(uses), todo: usesTodo(uses) }];
}

/** How to get vfio-pci. */
export function loadVfio(modules: KernelModules): string {
  return modules.has('vfio-pci') === false
    ? 'install a kernel that was built with VFIO (CONFIG_VFIO_PCI): this one has no such module'
    : 'modprobe vfio-pci';
}

/** A member of the same group that has to go along. */
interface Neighbour extends GroupMember {
  readonly uses: readonly Use[];
  readonly unknown: readonly Unasked[];
}

function neighboursInTheWay(sysfs: PciSysfs, { address, group }: PciFunction, machine: MachineUses): Neighbour[] {
  if (group === undefined) return [];
  return blockingNeighbours(sysfs, address, group).map((member) => {
    const fn = sysfs.read(member.name);
    return { ...member, ...(fn === undefined ? { uses: [], unknown: [] } : machine.of(fn)) };
  });
}

function neighbourProblem({ group }: PciFunction, { name, driver, uses }: Neighbour, todo: string): UseProblem {
  const has = uses.length === 0 ? `which the driver ${driver ?? ''} has` : `which is in use: ${usesText(uses)}`;
  return { code: 'EBUSY', reason: `its IOMMU group ${group ?? ''} is shared with ${name}, ${has}`, todo };
}

/** The members of a group, besides `address`, whose drivers keep it from being given to user space. */
export function blockingNeighbours(sysfs: PciSysfs, address: string, group: number): GroupMember[] {
  return groupMembers(sysfs.kernel, group).filter(({ name, driver }) => name !== address && blocksGroup(driver));
}

/** The files under /dev that VFIO opens for a function, way by way. */
export function nodesOf(sysfs: PciSysfs, { group, vfioName }: PciFunction): Map<PciWay, readonly [string, string]> {
  const nodes = new Map<PciWay, readonly [string, string]>();
  if (vfioName !== undefined && !vfioName.startsWith('noiommu-'))
    nodes.set('iommufd', ['/dev/iommu', `/dev/vfio/devices/${vfioName}`]);
  if (group !== undefined)
    if (isNoIommuGroup(sysfs.kernel, group)) nodes.set('no-iommu', ['/dev/vfio/vfio', `/dev/vfio/noiommu-${group}`]);
    else nodes.set('group', ['/dev/vfio/vfio', `/dev/vfio/${group}`]);
  return nodes;
}

/** Which ways this process may go; when there is none, why. */
function openWays(sysfs: PciSysfs, fn: PciFunction): { ways: PciWay[]; problem: UseProblem | undefined } {
  const ways: PciWay[] = [];
  const missing: string[] = [];
  const forbidden: string[] = [];
  for (const [way, nodes] of nodesOf(sysfs, fn)) {
    const states = nodes.map((node) => [node, sysfs.kernel.mayOpen(node)] as const);
    if (states.every(([, state]) => state === 'yes')) ways.push(way);
    missing.push(...states.flatMap(([node, state]) => (state === 'no-such-file' ? [node] : [])));
    forbidden.push(...states.flatMap(([node, state]) => (state === 'no-permission' ? [node] : [])));
  }
  // The way by the group is the one that every kernel has, so its nodes are the ones to speak of.
  const problem: UseProblem =
    forbidden.length > 0
      ? {
          code: 'EACCES',
          reason: `this user may not open ${forbidden.at(-1) ?? ''}`,
          todo: `as root: chown $USER ${[...new Set(forbidden)].join(' ')}`,
        }
      : {
          code: 'ENOENT',
          reason: missing.length > 0 ? `there is no ${missing.at(-1) ?? ''}` : 'VFIO has no device file for it',
          todo: 'see that devtmpfs is mounted at /dev, and that a container was given the files under /dev/vfio',
        };
  return { ways, problem };
}
