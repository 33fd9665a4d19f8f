/** Whether a PCI function can be used through VFIO now. If not: why, and what to do about it. */
import { DmaError, NO_DESCRIPTORS, type ErrorCode } from '../../errors.js';
import { blocksGroup, groupMembers, isNoIommuGroup, noIommuMode, type GroupMember } from '../../vfio/facts.js';
import { KernelModules } from './modules.js';
import { isBridge, isVfio, type PciFunction, type PciSysfs } from './sysfs.js';
import { MachineUses, usesText, usesTodo, type Unasked, type Use } from './uses.js';

/** One reason why a function can not be used. */
export interface UseProblem {
  readonly code: ErrorCode;
  /** A clause. */
  readonly reason: string;
  /** What to do: one sentence without a full stop. */
  readonly todo: string;
}

/** A way to open a function: iommufd and its own character device, its IOMMU group, or its group without an IOMMU. */
export type PciWay = 'iommufd' | 'group' | 'no-iommu';

/** The answer of {@link usability}. */
export interface PciUsability {
  readonly usable: boolean;
  /** The ways that work. */
  readonly ways: readonly PciWay[];
  /** The problems, the most basic first; empty if it is usable. */
  readonly problems: readonly UseProblem[];
  /** Its uses through its current driver, and the programs that have it open. */
  readonly uses: readonly Use[];
  /** Questions about its uses that this user can not answer. */
  readonly unknown: readonly Unasked[];
  /** Whether it, or a function that would have to be taken with it, is in use. */
  readonly inUse: boolean;
}

/**
 * Checks everything that VFIO checks, and the current uses of the function.
 *
 * @throws DmaError EMFILE, ENFILE: its uses can not be found out without file descriptors; try again later
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
  // Taking a device that is in use would do harm, so the command is not suggested.
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
        todo: 'boot without iommu=pt or iommu=off if they were given; some devices are never behind an IOMMU',
      },
    ];
  return [
    {
      code: 'ENODEV',
      reason: 'the machine has no IOMMU, or it is off',
      todo:
        'enable it in the firmware (VT-d, AMD-Vi, SMMU) and boot with intel_iommu=on on Intel machines; give a virtual machine a ' +
        'virtual IOMMU; without an IOMMU only no-IOMMU mode is left, which protects nothing (anydma bind --noiommu-mode)',
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

/** How to load vfio-pci. */
export function loadVfio(modules: KernelModules): string {
  return modules.has('vfio-pci') === false
    ? 'install a kernel that was built with VFIO (CONFIG_VFIO_PCI): this kernel has no such module'
    : 'modprobe vfio-pci';
}

/** The problem that another member of the group is not with a VFIO driver. */
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

/** The members of a group, other than `address`, whose drivers keep the group from being opened by user space. */
export function blockingNeighbours(sysfs: PciSysfs, address: string, group: number): GroupMember[] {
  return groupMembers(sysfs.kernel, group).filter(({ name, driver }) => name !== address && blocksGroup(driver));
}

/** The files under /dev that VFIO opens for a function, for each way. */
export function nodesOf(sysfs: PciSysfs, { group, vfioName }: PciFunction): Map<PciWay, readonly [string, string]> {
  const nodes = new Map<PciWay, readonly [string, string]>();
  if (vfioName !== undefined && !vfioName.startsWith('noiommu-'))
    nodes.set('iommufd', ['/dev/iommu', `/dev/vfio/devices/${vfioName}`]);
  if (group !== undefined)
    if (isNoIommuGroup(sysfs.kernel, group)) nodes.set('no-iommu', ['/dev/vfio/vfio', `/dev/vfio/noiommu-${group}`]);
    else nodes.set('group', ['/dev/vfio/vfio', `/dev/vfio/${group}`]);
  return nodes;
}

/** The ways that this process may use; if there are none, the reason. */
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
  // Every kernel has the way by the group, so errors name its files.
  const problem: UseProblem =
    forbidden.length > 0
      ? {
          code: 'EACCES',
          reason: `this user may not open ${forbidden.at(-1) ?? ''}`,
          todo: `as root: chown $USER ${[...new Set(forbidden)].join(' ')}`,
        }
      : {
          code: 'ENOENT',
          reason: missing.length > 0 ? `there is no ${missing.at(-1) ?? ''}` : 'VFIO has no device file for the device',
          todo: 'check that devtmpfs is mounted at /dev, and that the container has the files under /dev/vfio',
        };
  return { ways, problem };
}
