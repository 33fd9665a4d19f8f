/**
 * What the kernel shows about PCI functions: /sys/bus/pci and /sys/kernel/iommu_groups
 * (Documentation/ABI/testing/sysfs-bus-pci).
 */
import type { KernelPort } from '../../platform/ports.js';
import type { IdMatch } from '../model.js';
import { parsePciAddress } from './address.js';

/** One base address register, or the ROM. */
export interface PciResource {
  /** 0 to 5: BARs; 6: the ROM. */
  readonly index: number;
  /** Physical address; rounded above 2^53. */
  readonly start: number;
  /** Bytes. */
  readonly size: number;
  readonly kind: 'memory' | 'io';
}

/** One function of a PCI device, at the time it was read. */
export interface PciFunction {
  /** `0000:00:02.0` */
  readonly address: string;
  /** An id that can not be read is all ones, as the bus answers for a missing device. */
  readonly ids: Required<IdMatch>;
  readonly revision: number;
  /** NUMA node; `undefined` if the kernel names none. */
  readonly node: number | undefined;
  /** The BARs and the ROM that it has. */
  readonly resources: readonly PciResource[];
  /** Its current kernel driver. */
  readonly driver: string | undefined;
  /** The only driver that may take it (driver_override), if one is set. */
  readonly driverOverride: string | undefined;
  /** IOMMU group; `undefined` if no IOMMU translates for it. */
  readonly group: number | undefined;
  /** Its VFIO device name, such as `vfio0`, if a VFIO driver has it and the kernel shows the name. */
  readonly vfioName: string | undefined;
  /** Network interfaces that its driver created. */
  readonly interfaces: readonly string[];
  /** Number of enabled SR-IOV virtual functions. */
  readonly virtualFunctions: number;
  /** The key by which modules are found; empty if it can not be read. */
  readonly modalias: string;
}

/**
 * Whether it is a bridge, which forwards for the devices behind it. VFIO does not take it, and it does not make a group
 * unusable.
 */
export function isBridge({ ids }: PciFunction): boolean {
  const subClass = ids.classCode >>> 8;
  return subClass === 0x0604 || subClass === 0x0609;
}

/** Drivers that give a device to user space by VFIO; some devices have variants, such as `mlx5-vfio-pci`. */
export function isVfioDriver(driver: string | undefined): boolean {
  return driver !== undefined && /(?:^|[-_])vfio[-_]pci(?:$|[-_])/.test(driver);
}

/** Whether a VFIO driver has the function. */
export function isVfio({ driver, vfioName }: PciFunction): boolean {
  return driver !== undefined && (vfioName !== undefined || isVfioDriver(driver));
}

/** PCI devices in sysfs, read again by every call. A missing file only leaves one fact out. */
export class PciSysfs {
  readonly kernel: KernelPort;

  constructor(kernel: KernelPort) {
    this.kernel = kernel;
  }

  /** The directory of a function. */
  directory(address: string): string {
    return `/sys/bus/pci/devices/${address}`;
  }

  /** The addresses of all functions, in ascending order. */
  addresses(): string[] {
    return this.kernel.list('/sys/bus/pci/devices').filter((name) => parsePciAddress(name) === name);
  }

  /** All functions, those without a driver included, in ascending order. */
  scan(): PciFunction[] {
    return this.addresses().map((address) => this.#read(address));
  }

  /** One function; `undefined` if it does not exist. */
  read(address: string): PciFunction | undefined {
    // A missing directory reads like an empty one.
    return this.kernel.list(this.directory(address)).length === 0 ? undefined : this.#read(address);
  }

  /** The current driver of a function. */
  driver(address: string): string | undefined {
    return this.#linkName(`${this.directory(address)}/driver`);
  }

  /** Whether such a driver exists, loaded or built in. */
  hasDriver(driver: string): boolean {
    return this.kernel.list(`/sys/bus/pci/drivers/${driver}`).length > 0;
  }

  /** Whether the kernel has found any IOMMU. */
  hasIommu(): boolean {
    return this.kernel.list('/sys/class/iommu').length > 0;
  }

  #read(address: string): PciFunction {
    const directory = this.directory(address);
    const number = (file: string): number | undefined => readNumber(this.kernel.readText(`${directory}/${file}`));
    const override = this.kernel.readText(`${directory}/driver_override`)?.trim();
    const group = this.#linkName(`${directory}/iommu_group`);
    const node = number('numa_node') ?? -1;
    return {
      address,
      ids: {
        vendor: number('vendor') ?? 0xffff,
        device: number('device') ?? 0xffff,
        subsystemVendor: number('subsystem_vendor') ?? 0xffff,
        subsystem: number('subsystem_device') ?? 0xffff,
        classCode: number('class') ?? 0xffffff,
      },
      revision: number('revision') ?? 0,
      node: node < 0 ? undefined : node,
      resources: readResources(this.kernel.readText(`${directory}/resource`) ?? ''),
      driver: this.#linkName(`${directory}/driver`),
      driverOverride: override === '' || override === '(null)' ? undefined : override,
      group: group !== undefined && /^\d+$/.test(group) ? Number(group) : undefined,
      vfioName: this.kernel.list(`${directory}/vfio-dev`).at(0),
      interfaces: interfacesOf(this.kernel, directory),
      virtualFunctions: number('sriov_numvfs') ?? 0,
      modalias: this.kernel.readText(`${directory}/modalias`)?.trim() ?? '',
    };
  }

  /** The last part of a link's target. */
  #linkName(path: string): string | undefined {
    return this.kernel.readLink(path)?.split('/').at(-1);
  }
}

/** The network interfaces of the function in `directory`. A virtio function has them under its virtio device. */
export function interfacesOf(kernel: Pick<KernelPort, 'list'>, directory: string): string[] {
  const carried = kernel.list(directory).filter((name) => /^virtio\d+$/.test(name));
  return ['', ...carried.map((name) => `/${name}`)].flatMap((part) => kernel.list(`${directory}${part}/net`));
}

/** `0x8086` or `-1`; `undefined` for a text that is not a number. */
function readNumber(text: string | undefined): number | undefined {
  const number = text === undefined || text.trim() === '' ? NaN : Number(text);
  return Number.isSafeInteger(number) ? number : undefined;
}

const IORESOURCE_IO = 0x100;
const IORESOURCE_MEM = 0x200;

/** Lines of start, end and flags (include/linux/ioport.h); all zero for a missing resource. */
function readResources(text: string): PciResource[] {
  return text
    .split('\n')
    .slice(0, 7)
    .flatMap((line, index) => {
      const [start, end, flags] = line.split(' ').map(Number);
      if (!(end > 0) || (flags & (IORESOURCE_IO | IORESOURCE_MEM)) === 0) return [];
      return [{ index, start, size: end - start + 1, kind: (flags & IORESOURCE_IO) !== 0 ? 'io' : 'memory' } as const];
    });
}
