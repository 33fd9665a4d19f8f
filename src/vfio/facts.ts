/** Explains errors of the kernel by the current state of the machine. */
import { DmaError, forPeople, isDmaError, type DmaErrorDetails, type ErrorCode, type ErrorRange } from '../errors.js';
import type { KernelPort, Platform } from '../platform/ports.js';
import { formatSize } from '../units.js';

/** A device of an IOMMU group. */
export interface GroupMember {
  /** its name in sysfs */
  readonly name: string;
  /** the kernel driver bound to it */
  readonly driver: string | undefined;
}

/** The devices of IOMMU group `group`, from sysfs. */
export function groupMembers(kernel: Pick<KernelPort, 'list' | 'readLink'>, group: number): GroupMember[] {
  const directory = `/sys/kernel/iommu_groups/${group}/devices`;
  return kernel.list(directory).map((name) => {
    const driver = kernel.readLink(`${directory}/${name}/driver`);
    return { name, driver: driver?.slice(driver.lastIndexOf('/') + 1) };
  });
}

/**
 * Does a device with this kernel driver keep a program from using its group? Not without a driver, nor with a driver
 * that leaves DMA to others: VFIO's own, pci-stub, and that of PCIe ports (Documentation/driver-api/vfio.rst).
 */
export function blocksGroup(driver: string | undefined): boolean {
  return driver !== undefined && !driver.includes('vfio') && driver !== 'pci-stub' && driver !== 'pcieport';
}

/** The members that block the group, as text: `0000:00:03.0 (driver e1000e)`; empty if none does. */
export function blockers(kernel: Pick<KernelPort, 'list' | 'readLink'>, group: number): string {
  const blocking = groupMembers(kernel, group).filter(({ driver }) => blocksGroup(driver));
  return blocking.map(({ name, driver }) => `${name} (driver ${driver ?? ''})`).join(', ');
}

/** VFIO's parameter that lets devices be used without an IOMMU. */
export const NO_IOMMU_MODE = '/sys/module/vfio/parameters/enable_unsafe_noiommu_mode';

/** Is VFIO's no-IOMMU mode on? `undefined` if the module is not loaded, or was built without this mode. */
export function noIommuMode(kernel: Pick<KernelPort, 'readText'>): boolean | undefined {
  const text = kernel.readText(NO_IOMMU_MODE)?.trim();
  return text === undefined ? undefined : /^[yY1]/.test(text);
}

/** Did VFIO make the group for a device without an IOMMU? */
export function isNoIommuGroup(kernel: Pick<KernelPort, 'readText'>, group: number): boolean {
  return kernel.readText(`/sys/kernel/iommu_groups/${group}/name`)?.trim() === 'vfio-noiommu';
}

/** Details to add to an error, by its code. */
export type Reasons = Partial<Record<ErrorCode, () => Partial<DmaErrorDetails>>>;

/** `error` with the details of `reasons` for its code; other errors unchanged. */
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

/** Like {@link explaining}, asynchronous. */
export async function explainingAsync<T>(reasons: Reasons, call: () => Promise<T>): Promise<T> {
  try {
    return await call();
  } catch (error) {
    throw explained(error, reasons);
  }
}

/** Opens a node of /dev for reading and writing. @param absent the hint if the node does not exist */
export function openNode(platform: Platform, path: string, absent: string, more: Reasons = {}): number {
  const reasons: Reasons = {
    ENOENT: () => ({ reason: `${path} is not there`, hint: absent }),
    // The node exists, but no driver serves it.
    ENXIO: () => ({ code: 'ENODEV', reason: `no driver serves ${path}`, hint: absent }),
    ENODEV: () => ({ reason: `no driver serves ${path}`, hint: absent }),
    EACCES: () => ({
      reason: `no permission for ${path}`,
      hint: `give this user read and write access: "chown USER ${path}", or a udev rule for SUBSYSTEM "vfio"`,
    }),
    ...more,
  };
  return explaining(reasons, () => platform.files.open(path, 'read-write'));
}

/** Explanations of a refused mapping of `range` that hold for all kinds of container. */
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

/** Details for ENOMEM of a call that pins `length` bytes: the limit, its use, and how to raise it. */
export function lockedMemoryFacts(platform: Platform, length: number): Partial<DmaErrorDetails> {
  const { limit, used: locked } = platform.limits.lockedMemory();
  // VFIO's containers count pinned memory as locked; iommufd counts it separately, for all processes of a user.
  const used = Math.max(locked, platform.limits.pinnedMemory());
  if (limit - used >= length)
    return { reason: 'the kernel has no memory for it', hint: 'RLIMIT_MEMLOCK is not the cause' };
  return {
    reason: 'this mapping would exceed the locked-memory limit',
    hint:
      `RLIMIT_MEMLOCK is ${formatSize(limit)}, ${formatSize(used)} of it are used, this mapping needs ${formatSize(length)} ` +
      'more: raise it with "ulimit -l" or LimitMEMLOCK= of the service',
  };
}

/** The error for a group that is not viable, with its other devices. */
export function notViable(kernel: Pick<KernelPort, 'list' | 'readLink'>, group: number, operation: string): DmaError {
  const who = blockers(kernel, group);
  return new DmaError({
    code: 'EBUSY',
    operation,
    reason:
      who === ''
        ? `IOMMU group ${group} is not viable: another program controls its DMA`
        : `IOMMU group ${group} is not viable because of ${who}`,
    hint:
      who === ''
        ? 'all devices of the group must have no driver or vfio-pci, and no other program may use them'
        : 'a group can only be used as a whole: bind these to vfio-pci too, or unbind their drivers',
  });
}

/** Kernel log messages about a device that firmware reserves: since Linux 6.6, and of Intel's driver before. */
const ONE_TO_ONE = /1:1 IOMMU mapping|platform RMRR requirement/;
/** Kernel log messages about interrupts that are not isolated: of type1 and iommufd. */
const NOT_ISOLATED = /No interrupt remapping support|MSI interrupts are not secure/;

/**
 * Why the kernel does not give a device to a program. EPERM (and EINVAL since Linux 6.6) have several causes, so this
 * reads the kernel's log and the reserved regions of the device's group. `undefined` if neither explains it.
 *
 * @param device its name in sysfs
 * @param module the module whose parameter allows interrupts that are not isolated
 * @param only the only other cause if neither explains it: a group without reserved regions is refused for its
 * interrupts
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
  // The last message is about the last attempt. Messages of the first kind name the device.
  const last = (factOf(() => kernel.log()) ?? '')
    .split('\n')
    .reverse()
    .find((line) => (ONE_TO_ONE.test(line) && line.includes(device)) || (!isAllowed && NOT_ISOLATED.test(line)));
  if (last === undefined ? regions !== undefined && regions.length > 0 : ONE_TO_ONE.test(last))
    return {
      code: 'EPERM',
      reason:
        `the kernel does not give ${device} to a program: the firmware keeps ` +
        `${(regions ?? []).join(', ') || 'memory'} mapped for it at the same addresses (1:1; RMRR on Intel machines)`,
      hint:
        'no setting of Linux changes that: look for a firmware setting (shared memory or management of this slot), ' +
        'put the device into another slot, or ask the vendor of the machine; ' +
        (group === undefined ? 'the kernel log has more' : `see /sys/kernel/iommu_groups/${group}/reserved_regions`),
    };
  if (last === undefined && (only === undefined || regions === undefined || isAllowed)) return undefined;
  return {
    code: 'EPERM',
    reason: `the kernel does not give ${device} to a program: interrupts are not isolated on this machine`,
    hint:
      'the device could raise any interrupt. Enable interrupt remapping (firmware, or "intremap=on" in QEMU); ' +
      `or take the risk with "echo Y > ${parameter}"`,
  };
}

/**
 * Ranges that must stay mapped 1:1 for the devices of a group; `direct-relaxable` ones need not. `undefined` if
 * unknown.
 */
function firmwareRegions(kernel: Pick<KernelPort, 'readText'>, group: number): string[] | undefined {
  const text = factOf(() => kernel.readText(`/sys/kernel/iommu_groups/${group}/reserved_regions`));
  return text?.split('\n').flatMap((line) => {
    const [start, end, kind] = line.trim().split(/\s+/);
    return kind === 'direct' ? [`${shortHex(start)} to ${shortHex(end)}`] : [];
  });
}

/** Removes the leading zeros that sysfs writes. */
function shortHex(text: string): string {
  return text.replace(/^0x0+(?=.)/, '0x');
}

/** `undefined` if the call fails: an error here must not hide the error to explain. */
function factOf<T>(call: () => T): T | undefined {
  try {
    return call();
  } catch (error) {
    if (isDmaError(error)) return undefined;
    throw error;
  }
}
