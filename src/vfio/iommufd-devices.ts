/** Devices of iommufd: opening, binding and attaching their character devices, and why the kernel refuses. */
import { DmaError } from '../errors.js';
import type { Platform } from '../platform/ports.js';
import { Struct } from '../platform/struct.js';
import { IOCTL, VFIO_DEVICE_ATTACH_IOMMUFD_PT, VFIO_DEVICE_BIND_IOMMUFD } from '../platform/uapi/vfio.js';
import { blockers, explaining, notViable, openNode, whyNotHanded, type Reasons } from './facts.js';
import type { VfioNode } from './space.js';

/** @throws DmaError ENODEV if it has none; ENOENT, EACCES */
export function openCharacterDevice(platform: Platform, { name, device }: VfioNode): number {
  if (device === undefined)
    throw new DmaError({
      code: 'ENODEV',
      operation: 'open',
      reason: `${name} has no character device of VFIO`,
      hint: `bind it to vfio-pci ("anydma bind ${name}"); the kernel needs CONFIG_VFIO_DEVICE_CDEV (Linux 6.6), or use a type1 container`,
    });
  return openNode(
    platform,
    device,
    `bind ${name} to vfio-pci; the kernel needs CONFIG_VFIO_DEVICE_CDEV, or use a type1 container`,
  );
}

/** VFIO_DEVICE_BIND_IOMMUFD of the open device `fd`. @returns the number that iommufd gives it */
export function bindDevice(
  platform: Platform,
  iommufd: number,
  fd: number,
  { name, group, device = name }: VfioNode,
): number {
  const { kernel } = platform;
  const argument = new Struct(VFIO_DEVICE_BIND_IOMMUFD.sizeof)
    .set32(VFIO_DEVICE_BIND_IOMMUFD.argsz, VFIO_DEVICE_BIND_IOMMUFD.sizeof)
    .set32(VFIO_DEVICE_BIND_IOMMUFD.iommufd, iommufd);
  const reasons: Reasons = {
    EPERM: () => {
      if (group !== undefined && blockers(kernel, group) !== '') return notViable(kernel, group, 'open');
      return (
        whyNotHanded(platform, group, name, 'iommufd') ?? {
          reason: `the kernel does not give ${name} to this program`,
          hint:
            'another program has a device of its IOMMU group, or interrupts are not isolated on this machine: enable ' +
            'interrupt remapping (firmware, or "intremap=on" in QEMU), or take the risk with ' +
            '"echo Y > /sys/module/iommufd/parameters/allow_unsafe_interrupts"; the kernel log (dmesg) says which it was',
        }
      );
    },
    EBUSY: () =>
      group !== undefined && blockers(kernel, group) !== ''
        ? notViable(kernel, group, 'open')
        : { reason: `${name} is in use`, hint: `a program has its IOMMU group open, as /dev/vfio/${group ?? 'N'}` },
    // The arguments are correct, so the cause is another user of the device, or the IOMMU.
    EINVAL: () =>
      whyNotHanded(platform, group, name, 'iommufd') ?? {
        code: 'EBUSY',
        reason: `${name} is probably in use`,
        hint: `another program has ${device} open; if not, its IOMMU can not keep caches coherent: use type1`,
      },
  };
  explaining(reasons, () =>
    platform.ioctl.call(fd, IOCTL.VFIO_DEVICE_BIND_IOMMUFD, argument.bytes, 'VFIO_DEVICE_BIND_IOMMUFD'),
  );
  return argument.u32(VFIO_DEVICE_BIND_IOMMUFD.out_devid);
}

/** VFIO_DEVICE_ATTACH_IOMMUFD_PT: to a page table, or to the default one of an IOAS. */
export function attachDevice(platform: Platform, fd: number, pageTable: number, { name, group }: VfioNode): void {
  const argument = new Struct(VFIO_DEVICE_ATTACH_IOMMUFD_PT.sizeof)
    .set32(VFIO_DEVICE_ATTACH_IOMMUFD_PT.argsz, VFIO_DEVICE_ATTACH_IOMMUFD_PT.sizeof)
    .set32(VFIO_DEVICE_ATTACH_IOMMUFD_PT.pt_id, pageTable);
  const reasons: Reasons = {
    EADDRINUSE: () => ({
      reason: `${name} can not reach all IOVAs that are mapped in this address space`,
      hint: 'open it before the first mapping, or in a separate container',
    }),
    EPERM: () => whyNotHanded(platform, group, name, 'iommufd') ?? {},
    ENOMEM: () => ({
      reason: 'the kernel has no memory for the page tables of another IOMMU',
      hint: 'a device behind another IOMMU needs its own page tables for all mappings',
    }),
  };
  explaining(reasons, () =>
    platform.ioctl.call(fd, IOCTL.VFIO_DEVICE_ATTACH_IOMMUFD_PT, argument.bytes, 'VFIO_DEVICE_ATTACH_IOMMUFD_PT'),
  );
}
