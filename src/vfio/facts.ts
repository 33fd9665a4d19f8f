/** Why the kernel refused, told by what can be seen of the machine at that moment. */
import { DmaError, forPeople, isDmaError, type DmaErrorDetails, type ErrorCode, type ErrorRange } from '../errors.js';
import type { KernelPort, Platform } from '../platform/ports.js';
import { formatSize } from '../units.js';

/** A device of an IOMMU group. */
export interface GroupMember {
  /** its name in sysfs */
  readonly name: string;
  /** the kernel driver that has it */
  readonly driver: string | undefined;
}

/** The devices of IOMMU group `group`, by sysfs. */
export function groupMembers(kernel: Pick<KernelPort, 'list' | 'readLink'>, group: number): GroupMember[] {
  const directory = `/sys/kernel/iommu_groups/${group}/devices`;
  return kernel.list(directory).map((name) => {
    const driver = kernel.readLink(`${directory}/${name}/driver`);
    return { name, driver: driver?.slice(driver.lastIndexOf('/') + 1) };
  });
}

/**
 * Does a device with this kernel driver keep its group from being handed to a program? Not without a driver, and not with
 * one that leaves DMA to others: VFIO's own, pci-stub, and that of PCIe ports (Documentation/driver-api/vfio.rst).
 */
export function blocksGroup(driver: string | undefined): boolean {
  return driver !== undefined && !driver.includes('vfio') && driver !== 'pci-stub' && driver !== 'pcieport';
}

/** The members of the group that keep it from being used, as text: `0000:00:03.0 (driver e1000e)`; empty when none does. */
export function blockers(kernel: Pick<KernelPort, 'list' | 'readLink'>, group: number): string {
  const blocking = groupMembers(kernel, group).filter(({ driver }) => blocksGroup(driver));
  return blocking.map(({ name, driver }) => `${name} (driver ${driver ?? ''})`).join(', ');
}

/** VFIO's parameter that lets devices be used without an IOMMU. */
export const NO_IOMMU_MODE = '/sys/module/vfio/parameters/enable_unsafe_noiommu_mode';

/** May VFIO be used without an IOMMU? `undefined`: the module is not there, or was built without this mode. */
export function noIommuMode(kernel: Pick<KernelPort, 'readText'>): boolean | undefined {
  const text = kernel.readText(NO_IOMMU_MODE)?.trim();
  return text === undefined ? undefined : /^[yY1]/.test(text);
}

/** Was the group made by VFIO for a device that no IOMMU translates for? */
export function isNoIommuGroup(kernel: Pick<KernelPort, 'readText'>, group: number): boolean {
  return kernel.readText(`/sys/kernel/iommu_groups/${group}/name`)?.trim() === 'vfio-noiommu';
}

/** What to add to an error, by its code. */
export type Reasons = Partial<Record<ErrorCode, () => Partial<DmaErrorDetails>>>;

/** `error` with what `reasons` say of its code, in their words; other errors as they are. */
export function explained(error: unknown, reasons: Reasons): unknown {
  if (!isDmaError(error)) return error;
  const reason = reasons[error.code];
  const more = reason && forPeople(reason);
  return more === undefined ? error : error.with({ cause: error, ...more });
}

/** Runs `call`; an error of it is {@link explained}. */
export function explaining<T>(reasons: Reasons, call: () => T): T {
  try {
    return call();
  } catch (error) {
    throw explained(error, reasons);
  }
}

/** As {@link explaining}, of what takes its time. */
export async function explainingAsync<T>(reasons: Reasons, call: () => Promise<T>): Promise<T> {
  try {
    return await call();
  } catch (error) {
    throw explained(error, reasons);
  }
}

/** Opens a node of /dev for reading and writing. `absent`: why it is not there, and what to do about that. */
export function openNode(platform: Platform, path: string, absent: string, more: Reasons = {}): number {
  const reasons: Reasons = {
    ENOENT: () => ({ reason: `${path} is not there`, hint: absent }),
    // A node without a driver behind it.
    ENXIO: () => ({ code: 'ENODEV', reason: `nothing is behind ${path}`, hint: absent }),
    ENODEV: () => ({ reason: `nothing is behind ${path}`, hint: absent }),
    EACCES: () => ({
      reason: `no permission for ${path}`,
      hint: `this user has to be able to read and write it: "chown USER ${path}", or a udev rule for SUBSYSTEM "vfio"`,
    }),
    ...more,
  };
  return explaining(reasons, () => platform.files.open(path, 'read-write'));
}

/** Why the kernel did not map `range` for a device, where all kinds of container say the same. */
export function mappingRefused(platform: Platform, range: ErrorRange): Reasons {
  return {
    ENOMEM: () => lockedMemoryFacts(platform, range.length),
    EEXIST: () => ({ range, reason: 'the kernel has some of these IOVAs mapped already' }),
    EFAULT: () => ({
      reason: 'the kernel can not pin this memory',
      hint: 'it is not mapped in this process, or read-only and mapped for writing, or memory of a device',
    }),
  };
}

/** ENOMEM of a call that pins `length` bytes: the limit, what is used of it, and how to raise it. */
export function lockedMemoryFacts(platform: Platform, length: number): Partial<DmaErrorDetails> {
  const { limit, used: locked } = platform.limits.lockedMemory();
  // VFIO's containers count as locked what they pin; iommufd, apart from that, what all processes of a user pin.
  const used = Math.max(locked, platform.limits.pinnedMemory());
  if (limit - used >= length)
    return { reason: 'the kernel has no memory for it', hint: 'RLIMIT_MEMLOCK is not what is in the way' };
  return {
    reason: 'mapping it would pass the locked-memory limit',
    hint:
      `RLIMIT_MEMLOCK is ${formatSize(limit)}, ${formatSize(used)} of it are used, this map needs ${formatSize(length)} ` +
      'more: raise it with "ulimit -l" or LimitMEMLOCK= of the service',
  };
}

/** "The device can not be used by itself": what to do about neighbours in its group. */
export function notViable(kernel: Pick<KernelPort, 'list' | 'readLink'>, group: number, operation: string): DmaError {
  const who = blockers(kernel, group);
  return new DmaError({
    code: 'EBUSY',
    operation,
    reason:
      who === ''
        ? `IOMMU group ${group} is not viable: somebody else has its DMA`
        : `IOMMU group ${group} is not viable because of ${who}`,
    hint:
      who === ''
        ? 'all devices of the group must be without a driver, or have vfio-pci, and no other program may have them'
        : 'every device of a group is handed over together: bind these to vfio-pci too, or unbind them from their drivers',
  });
}

/** How kernels say in their log that firmware keeps a device for itself: since Linux 6.6, and Intel's driver before. */
const ONE_TO_ONE = /1:1 IOMMU mapping|platform RMRR requirement/;
/** How they say that a device could raise any interrupt: type 1 and iommufd. */
const NOT_ISOLATED = /No interrupt remapping support|MSI interrupts are not secure/;

/**
 * Why the kernel does not hand a device over: the same numbers (EPERM, and EINVAL since Linux 6.6) stand for several causes,
 * so its log is asked, and what it says of the device's group. `undefined`: neither says anything.
 *
 * @param device its name in sysfs
 * @param module whose parameter lets interrupts be
 * @param only what else it can be when neither does: a group that firmware keeps nothing for is refused for its interrupts
 */
export function whyNotHanded(
  { kernel }: Platform,
  group: number | undefined,
  device: string,
  module: 'vfio_iommu_type1' | 'iommufd',
  only?: 'interrupts',
): Partial<DmaErrorDetails> | undefined {
  const regions = group === undefined ? undefined : firmwareRegions(kernel, group);
  const parameter = `/sys/module/${module}/parameters/allow_unsafe_interrupts`;
  const isAllowed = /^[Yy1]/.test(factOf(() => kernel.readText(parameter)) ?? 'N');
  // The last word is about what was tried last. Lines of the first kind name the device.
  const last = (factOf(() => kernel.log()) ?? '')
    .split('\n')
    .reverse()
    .find((line) => (ONE_TO_ONE.test(line) && line.includes(device)) || (!isAllowed && NOT_ISOLATED.test(line)));
  if (last === undefined ? regions !== undefined && regions.length > 0 : ONE_TO_ONE.test(last))
    return {
      code: 'EPERM',
      reason:
        `the kernel does not hand ${device} to a program: the firmware keeps ` +
        `${(regions ?? []).join(', ') || 'memory'} mapped for it at the same addresses (1:1; RMRR on Intel machines)`,
      hint:
        'nothing that is set in Linux changes that: look for a setting of the firmware (shared memory or management of this slot), ' +
        'put the device into another slot, or ask the vendor of the machine; ' +
        (group === undefined ? 'the kernel log has more' : `see /sys/kernel/iommu_groups/${group}/reserved_regions`),
    };
  if (last === undefined && (only === undefined || regions === undefined || isAllowed)) return undefined;
  return {
    code: 'EPERM',
    reason: `the kernel does not hand ${device} to a program: interrupts are not isolated on this machine`,
    hint:
      'it could raise any interrupt. Enable interrupt remapping (firmware, or "intremap=on" in QEMU); ' +
      `or take the risk with "echo Y > ${parameter}"`,
  };
}

/** The ranges that have to stay mapped 1:1 for the devices of a group; those of `direct-relaxable` need not. `undefined`: it is not told. */
function firmwareRegions(kernel: Pick<KernelPort, 'readText'>, group: number): string[] | undefined {
  const text = factOf(() => kernel.readText(`/sys/kernel/iommu_groups/${group}/reserved_regions`));
  return text?.split('\n').flatMap((line) => {
    const [start, end, kind] = line.trim().split(/\s+/);
    return kind === 'direct' ? [`${shortHex(start)} to ${shortHex(end)}`] : [];
  });
}

/** Without the zeros in front that sysfs writes. */
function shortHex(text: string): string {
  return text.replace(/^0x0+(?=.)/, '0x');
}

/** `undefined` when it can not be asked now: facts for people do not hide what they are about. */
function factOf<T>(call: () => T): T | undefined {
  try {
    return call();
  } catch (error) {
    if (isDmaError(error)) return undefined;
    throw error;
  }
}
