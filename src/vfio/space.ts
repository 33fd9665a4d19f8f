/** What VFIO's address spaces have in common, however the kernel makes them. */
import type { AddressSpace, DmaAccess } from '../dma/address-space.js';
import { Range } from '../ranges.js';
import { ADDRESS_LIMIT, type Iova } from '../units.js';
import type { VfioDevice } from './device.js';

/** How the kernel makes an address space for devices. */
export type ContainerKind = 'vfio-type1' | 'iommufd' | 'vfio-spapr' | 'vfio-noiommu';

/**
 * Which of them to use. `auto`: iommufd when the kernel has it and the device has a character device, else type1, else
 * sPAPR. No-IOMMU mode is never chosen unless it is asked for by name: a device then reaches all memory of the machine.
 */
export type ContainerChoice = 'auto' | 'iommufd' | 'type1' | 'spapr' | 'noiommu';

/** Where the kernel has a device for VFIO. */
export interface VfioNode {
  /** Its name in sysfs, such as `0000:00:02.0`. */
  readonly name: string;
  /** The number of its IOMMU group; `undefined` when it is in none. */
  readonly group: number | undefined;
  /** Its character device, such as `/dev/vfio/devices/vfio0`; `undefined` when the kernel makes none. */
  readonly device: string | undefined;
}

/** An address space of the kernel's, which devices are opened in. */
export interface KernelSpace extends AddressSpace {
  readonly kind: ContainerKind;
  /** Opens a device in it. @throws DmaError with a hint made of live facts; then nothing is left open */
  open(node: VfioNode): VfioDevice;
  /** Takes a device out of it, after `VfioDevice.close`. Nothing happens when it is not in it. */
  release(node: VfioNode): void;
  /** Gives it back to the kernel, with all that is mapped in it. Idempotent. @throws DmaError EBUSY while devices are in it */
  end(): void;
}

/** May a device read, or write, what is mapped with this access? */
export const READS: Readonly<Record<DmaAccess, boolean>> = { read: true, write: false, 'read-write': true };
/** See {@link READS}. */
export const WRITES: Readonly<Record<DmaAccess, boolean>> = { read: false, write: true, 'read-write': true };

/**
 * IOVA windows from the kernel's ranges, whose ends are inclusive and may be any 64-bit number: what addresses of this
 * library can name, in ascending order.
 */
export function windowsOf(ranges: readonly { readonly start: number; readonly last: number }[]): Range<Iova>[] {
  const windows: Range<Iova>[] = [];
  for (const { start, last } of ranges) {
    if (start >= ADDRESS_LIMIT || last < start) continue;
    // A Number is exact below the limit only, and no range has all addresses up to it.
    const end = last >= ADDRESS_LIMIT - 1 ? ADDRESS_LIMIT : last + 1;
    windows.push(new Range(start as Iova, Math.min(end - start, ADDRESS_LIMIT - 1)));
  }
  return windows.sort((a, b) => a.start - b.start);
}

/** `windows` when it says the same as `before`, and then `before` itself, so that who compares objects sees no change. */
export function sameWindows(before: readonly Range<Iova>[], windows: readonly Range<Iova>[]): readonly Range<Iova>[] {
  const same = before.length === windows.length && before.every((each, i) => each.equals(windows[i]));
  return same ? before : windows;
}

/** The page sizes that an or-ed 64-bit set of them names, ascending; given as its two halves. */
export function pageSizesOf(low: number, high: number): number[] {
  const sizes: number[] = [];
  for (let bit = 0; bit < 53; bit++) {
    const word = bit < 32 ? low : high;
    if ((word >>> (bit % 32)) % 2 === 1) sizes.push(2 ** bit);
  }
  return sizes;
}
