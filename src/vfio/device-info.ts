/** Device information from VFIO: regions and interrupts (include/uapi/linux/vfio.h). */
import { isDmaError } from '../errors.js';
import type { IoctlPort } from '../platform/ports.js';
import type { RegionPart } from '../platform/registers/region-registers.js';
import { Struct } from '../platform/struct.js';
import {
  IOCTL,
  REGION_CAP,
  VFIO_DEVICE_FLAGS_PCI,
  VFIO_DEVICE_FLAGS_RESET,
  VFIO_DEVICE_INFO,
  VFIO_INFO_CAP_HEADER,
  VFIO_IRQ_INFO,
  VFIO_IRQ_INFO_AUTOMASKED,
  VFIO_IRQ_INFO_EVENTFD,
  VFIO_IRQ_INFO_MASKABLE,
  VFIO_IRQ_INFO_NORESIZE,
  VFIO_REGION_INFO,
  VFIO_REGION_INFO_CAP_SPARSE_MMAP,
  VFIO_REGION_INFO_FLAG_CAPS,
  VFIO_REGION_INFO_FLAG_MMAP,
  VFIO_REGION_INFO_FLAG_READ,
  VFIO_REGION_INFO_FLAG_WRITE,
  VFIO_REGION_SPARSE_MMAP_AREA,
} from '../platform/uapi/vfio.js';

/** One region of a device. */
export interface VfioRegion {
  readonly index: number;
  /** bytes; 0 if the device does not have this region */
  readonly size: number;
  /** Where it begins in the device's file, in bytes. */
  readonly offset: number;
  readonly readable: boolean;
  readonly writable: boolean;
  /** The parts that can be mapped: one for the whole region, several, or none if it is only accessible by calls. */
  readonly mappable: readonly RegionPart[];
}

/** One kind of interrupt of a device. */
export interface VfioIrq {
  readonly index: number;
  /** vectors; 0 if the device does not have this kind */
  readonly count: number;
  /** Can it be signalled through eventfds? */
  readonly eventfd: boolean;
  readonly maskable: boolean;
  /** Does an interrupt mask itself when it is signalled? */
  readonly automasked: boolean;
  /** Can vectors be added while others are enabled? */
  readonly resizable: boolean;
}

/** The regions and interrupts of a device. */
export interface VfioDeviceInfo {
  readonly info: { readonly pci: boolean; readonly resettable: boolean };
  /** By index. */
  readonly regions: readonly VfioRegion[];
  /** By index. */
  readonly interrupts: readonly VfioIrq[];
}

/** Queries the kernel about the device of `fd`. */
export function readDeviceInfo(ioctl: IoctlPort, fd: number): VfioDeviceInfo {
  const info = new Struct(VFIO_DEVICE_INFO.sizeof).set32(VFIO_DEVICE_INFO.argsz, VFIO_DEVICE_INFO.sizeof);
  ioctl.call(fd, IOCTL.VFIO_DEVICE_GET_INFO, info.bytes, 'VFIO_DEVICE_GET_INFO');
  const flags = info.u32(VFIO_DEVICE_INFO.flags);
  const count = (length: number): number[] => Array.from({ length }, (_, index) => index);
  return {
    info: { pci: (flags & VFIO_DEVICE_FLAGS_PCI) !== 0, resettable: (flags & VFIO_DEVICE_FLAGS_RESET) !== 0 },
    regions: count(info.u32(VFIO_DEVICE_INFO.num_regions)).map((index) => readRegion(ioctl, fd, index)),
    interrupts: count(info.u32(VFIO_DEVICE_INFO.num_irqs)).map((index) => readInterrupt(ioctl, fd, index)),
  };
}

function readRegion(ioctl: IoctlPort, fd: number, index: number): VfioRegion {
  let info = new Struct(VFIO_REGION_INFO.sizeof);
  const ask = (): boolean =>
    isThere(() => {
      info.set32(VFIO_REGION_INFO.argsz, info.bytes.length).set32(VFIO_REGION_INFO.index, index);
      ioctl.call(fd, IOCTL.VFIO_DEVICE_GET_REGION_INFO, info.bytes, 'VFIO_DEVICE_GET_REGION_INFO');
    });
  let there = ask();
  if (there && info.u32(VFIO_REGION_INFO.argsz) > info.bytes.length) {
    // The buffer was too small for the capabilities.
    info = new Struct(info.u32(VFIO_REGION_INFO.argsz));
    there = ask();
  }
  const size = there ? info.u64(VFIO_REGION_INFO.size) : 0;
  if (size === 0) return { index, size: 0, offset: 0, readable: false, writable: false, mappable: [] };
  const flags = info.u32(VFIO_REGION_INFO.flags);
  const readable = (flags & VFIO_REGION_INFO_FLAG_READ) !== 0;
  const writable = (flags & VFIO_REGION_INFO_FLAG_WRITE) !== 0;
  // Mappings here are always readable and writable, so only such regions are mapped.
  const mappable = readable && writable && (flags & VFIO_REGION_INFO_FLAG_MMAP) !== 0;
  const offset = info.u64(VFIO_REGION_INFO.offset);
  return { index, size, offset, readable, writable, mappable: mappable ? mappableAreas(info, size) : [] };
}

/** The areas of a region's sparse-mmap capability; without it, the whole region. */
function mappableAreas(info: Struct, size: number): readonly RegionPart[] {
  if ((info.u32(VFIO_REGION_INFO.flags) & VFIO_REGION_INFO_FLAG_CAPS) === 0) return [{ offset: 0, length: size }];
  // Each capability must follow the one before it; otherwise the chain could be endless.
  let at = info.u32(VFIO_REGION_INFO.cap_offset);
  for (let before = 0; at > before; before = at, at = info.u32(before + VFIO_INFO_CAP_HEADER.next)) {
    if (info.u16(at + VFIO_INFO_CAP_HEADER.id) !== REGION_CAP.VFIO_REGION_INFO_CAP_SPARSE_MMAP) continue;
    const areas: RegionPart[] = [];
    for (let i = 0; i < info.u32(at + VFIO_REGION_INFO_CAP_SPARSE_MMAP.nr_areas); i++) {
      const area = at + VFIO_REGION_INFO_CAP_SPARSE_MMAP.areas + i * VFIO_REGION_SPARSE_MMAP_AREA.sizeof;
      const offset = info.u64(area + VFIO_REGION_SPARSE_MMAP_AREA.offset);
      const length = info.u64(area + VFIO_REGION_SPARSE_MMAP_AREA.size);
      if (length > 0 && offset + length <= size) areas.push({ offset, length });
    }
    return areas;
  }
  return [{ offset: 0, length: size }];
}

function readInterrupt(ioctl: IoctlPort, fd: number, index: number): VfioIrq {
  const info = new Struct(VFIO_IRQ_INFO.sizeof)
    .set32(VFIO_IRQ_INFO.argsz, VFIO_IRQ_INFO.sizeof)
    .set32(VFIO_IRQ_INFO.index, index);
  const there = isThere(() => ioctl.call(fd, IOCTL.VFIO_DEVICE_GET_IRQ_INFO, info.bytes, 'VFIO_DEVICE_GET_IRQ_INFO'));
  const flags = there ? info.u32(VFIO_IRQ_INFO.flags) : 0;
  return {
    index,
    count: there ? info.u32(VFIO_IRQ_INFO.count) : 0,
    eventfd: (flags & VFIO_IRQ_INFO_EVENTFD) !== 0,
    maskable: (flags & VFIO_IRQ_INFO_MASKABLE) !== 0,
    automasked: (flags & VFIO_IRQ_INFO_AUTOMASKED) !== 0,
    resizable: (flags & VFIO_IRQ_INFO_NORESIZE) === 0,
  };
}

/** Does `ask` succeed? EINVAL means that the device does not have this region or interrupt (VGA, error reports). */
function isThere(ask: () => void): boolean {
  try {
    ask();
    return true;
  } catch (error) {
    if (isDmaError(error, 'EINVAL')) return false;
    throw error;
  }
}
