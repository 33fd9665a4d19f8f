/** What the kernel tells about PCI functions: /sys/bus/pci and /sys/kernel/iommu_groups (Documentation/ABI/testing/sysfs-bus-pci). */
import type { KernelPort } from '../../platform/ports.js';
import type { IdMatch } from '../model.js';
import { parsePciAddress } from './address.js';

/** One base address register, or the ROM. */
export interface PciResource {
  /** 0 to 5 are BARs, 6 is the ROM */
  readonly index: number;
  /** physical address; above 2^53 it is rounded */
  readonly start: number;
  /** bytes */
  readonly size: number;
  readonly kind: 'memory' | 'io';
}

/** One function of a PCI device, as it was when it was read. */
export interface PciFunction {
  /** `0000:00:02.0` */
  readonly address: string;
  /** What can not be read is all ones, as a bus answers for what is not there. */
  readonly ids: Required<IdMatch>;
  readonly revision: number;
  /** NUMA node; `undefined` when the kernel names none */
  readonly node: number | undefined;
  /** The BARs and the ROM that it has. */
  readonly resources: readonly PciResource[];
  /** The kernel driver that has it. */
  readonly driver: string | undefined;
  /** The only driver that may take it, when one was set. */
  readonly driverOverride: string | undefined;
  /** IOMMU group; `undefined` when no IOMMU translates for it */
  readonly group: number | undefined;
  /** Its name as a VFIO device, such as `vfio0`, when a VFIO driver has it and the kernel is new enough to tell. */
  readonly vfioName: string | undefined;
  /** Network interfaces that its driver made of it. */
  readonly interfaces: readonly string[];
  /** SR-IOV virtual functions that are switched on. */
  readonly virtualFunctions: number;
  /** What modules are found by; empty when it can not be read. */
  readonly modalias: string;
}

/** A bridge forwards for the devices behind it. VFIO does not take it, and it does not keep a group from being used. */
export function isBridge({ ids }: PciFunction): boolean {
  const subClass = ids.classCode >>> 8;
  return subClass === 0x0604 || subClass === 0x0609;
}

/** Drivers that hand a device to user space by VFIO; there are variants for some devices, such as `mlx5-vfio-pci`. */
export function isVfioDriver(driver: string | undefined): boolean {
  return driver !== undefined && /(?:^|[-_])vfio[-_]pci(?:$|[-_])/.test(driver);
}

/** Is the function with a VFIO driver? */
export function isVfio({ driver, vfioName }: PciFunction): boolean {
  return driver !== undefined && (vfioName !== undefined || isVfioDriver(driver));
}

/** PCI as sysfs shows it, read anew by every call. A file that is missing leaves one fact out and nothing else. */
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

  /** One function; `undefined` when it is not there. */
  read(address: string): PciFunction | undefined {
    // A directory that is gone reads like one without files.
    return this.kernel.list(this.directory(address)).length === 0 ? undefined : this.#read(address);
  }

  /** The driver that has a function now. */
  driver(address: string): string | undefined {
    return this.#linkName(`${this.directory(address)}/driver`);
  }

  /** Is there such a driver, loaded or built in? */
  hasDriver(driver: string): boolean {
    return this.kernel.list(`/sys/bus/pci/drivers/${driver}`).length > 0;
  }

  /** Has the kernel found any IOMMU? */
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

  /** The last part of where a link points to. */
  #linkName(path: string): string | undefined {
    return this.kernel.readLink(path)?.split('/').at(-1);
  }
}

/** The network interfaces of the function in `directory`. A virtio function has them under the virtio device that it carries. */
export function interfacesOf(kernel: Pick<KernelPort, 'list'>, directory: string): string[] {
  const carried = kernel.list(directory).filter((name) => /^virtio\d+$/.test(name));
  return ['', ...carried.map((name) => `/${name}`)].flatMap((part) => kernel.list(`${directory}${part}/net`));
}

/** `0x8086` or `-1`; `undefined` when it is no number. */
function readNumber(text: string | undefined): number | undefined {
  const number = text === undefined || text.trim() === '' ? NaN : Number(text);
  return Number.isSafeInteger(number) ? number : undefined;
}

const IORESOURCE_IO = 0x100;
const IORESOURCE_MEM = 0x200;

/** Lines of start, end and flags (include/linux/ioport.h), all zero for what is not there. */
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
