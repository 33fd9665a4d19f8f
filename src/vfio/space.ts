/** The common part of VFIO's address spaces. */
import type { AddressSpace, DmaAccess } from '../dma/address-space.js';
import { Range } from '../ranges.js';
import { ADDRESS_LIMIT, type Iova } from '../units.js';
import type { VfioDevice } from './device.js';
import type { DirtyTracking } from './dirty.js';
import type { PageRequestQueue } from './page-requests.js';

/** The kinds of address space that the kernel has for devices. */
export type ContainerKind = 'vfio-type1' | 'iommufd' | 'vfio-spapr' | 'vfio-noiommu';

/**
 * The kind to use. `auto`: iommufd if the kernel has it and the device has a character device, else type1, else sPAPR.
 * No-IOMMU mode is only used if requested by name: such a device accesses all memory of the machine.
 */
export type ContainerChoice = 'auto' | 'iommufd' | 'type1' | 'spapr' | 'noiommu';

/** How VFIO presents a device. */
export interface VfioNode {
  /** Its name in sysfs, such as `0000:00:02.0`. */
  readonly name: string;
  /** The number of its IOMMU group; `undefined` if it has none. */
  readonly group: number | undefined;
  /** Its character device, such as `/dev/vfio/devices/vfio0`; `undefined` if the kernel has none. */
  readonly device: string | undefined;
}

/** An address space of the kernel, in which devices are opened. */
export interface KernelSpace extends AddressSpace {
  readonly kind: ContainerKind;
  /** Tracks the pages that devices write; absent if the kernel can not. */
  readonly dirty?: DirtyTracking;
  /** Page requests of the devices; absent if they can not make any. */
  readonly pageRequests?: PageRequestQueue | undefined;
  /** Promises IOVAs, see `Container.allowIovas`. Absent if the kernel can not. */
  allowIovas?(ranges: readonly Range<Iova>[]): void;
  /** Opens a device in it. @throws DmaError with a hint about the machine's state; then nothing is left open */
  open(node: VfioNode): VfioDevice;
  /** Removes a device, after `VfioDevice.close`. Does nothing if the device is not in it. */
  release(node: VfioNode): void;
  /** Releases it and all its mappings. Idempotent. @throws DmaError EBUSY while it has devices */
  end(): void;
}

/** Does this access let a device read? */
export const READS: Readonly<Record<DmaAccess, boolean>> = { read: true, write: false, 'read-write': true };
/** Does this access let a device write? */
export const WRITES: Readonly<Record<DmaAccess, boolean>> = { read: false, write: true, 'read-write': true };

/**
 * The IOVA windows of the kernel's ranges, ascending, limited to this library's addresses. The kernel's ends are
 * inclusive and may be any 64-bit number.
 */
export function windowsOf(ranges: readonly { readonly start: number; readonly last: number }[]): Range<Iova>[] {
  const windows: Range<Iova>[] = [];
  for (const { start, last } of ranges) {
    if (start >= ADDRESS_LIMIT || last < start) continue;
    // A Number is exact only below the limit, so the last address is not used.
    const end = last >= ADDRESS_LIMIT - 1 ? ADDRESS_LIMIT : last + 1;
    windows.push(new Range(start as Iova, Math.min(end - start, ADDRESS_LIMIT - 1)));
  }
  return windows.sort((a, b) => a.start - b.start);
}

/** Returns `before` if `windows` is equal, so that callers can compare objects; else `windows`. */
export function sameWindows(before: readonly Range<Iova>[], windows: readonly Range<Iova>[]): readonly Range<Iova>[] {
  const same = before.length === windows.length && before.every((each, i) => each.equals(windows[i]));
  return same ? before : windows;
}

/** The page sizes in a 64-bit mask, ascending; the mask is passed as two halves. */
export function pageSizesOf(low: number, high: number): number[] {
  const sizes: number[] = [];
  for (let bit = 0; bit < 53; bit++) {
    const word = bit < 32 ? low : high;
    if ((word >>> (bit % 32)) % 2 === 1) sizes.push(2 ** bit);
  }
  return sizes;
}
