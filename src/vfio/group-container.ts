/**
 * A VFIO container: /dev/vfio/vfio with IOMMU groups (include/uapi/linux/vfio.h). The kernel gives it an IOMMU with the
 * first group, and removes the IOMMU and all mappings with the last.
 */
import { DmaError, undoAll, withUndo, type DmaErrorDetails } from '../errors.js';
import type { Platform } from '../platform/ports.js';
import { Struct } from '../platform/struct.js';
import { IOCTL, VFIO_API_VERSION, VFIO_GROUP_FLAGS_VIABLE, VFIO_GROUP_STATUS } from '../platform/uapi/vfio.js';
import { VfioDevice } from './device.js';
import { explaining, notViable, openNode, whyNotHanded, type Reasons } from './facts.js';
import type { VfioNode } from './space.js';

/** The kernel's IOMMU driver of a container. */
export interface ContainerType {
  /** Its number in VFIO_CHECK_EXTENSION and VFIO_SET_IOMMU. */
  readonly extension: number;
  /** for messages */
  readonly name: string;
  /** The kernel module of the driver. */
  readonly module: string;
  /** The path of a group, without its number. */
  readonly groupPath: string;
}

interface OpenGroup {
  readonly fd: number;
  /** names of the devices that are open */
  readonly devices: Set<string>;
}

const CONTAINER = '/dev/vfio/vfio';
const NO_MODULE = 'load the module: "modprobe vfio-pci" (the kernel needs CONFIG_VFIO and CONFIG_VFIO_GROUP)';

/** A VFIO container and its groups. */
export class GroupContainer {
  readonly #platform: Platform;
  readonly #type: ContainerType;
  readonly #fd: number;
  readonly #groups = new Map<number, OpenGroup>();
  readonly #status = new Struct(VFIO_GROUP_STATUS.sizeof);
  #closed = false;

  /** @throws DmaError ENOENT, EACCES from /dev/vfio/vfio; ENOTSUP if this kernel lacks this type */
  constructor(platform: Platform, type: ContainerType) {
    this.#platform = platform;
    this.#type = type;
    this.#fd = openNode(platform, CONTAINER, NO_MODULE);
    try {
      this.#mustBeSupported();
    } catch (error) {
      throw withUndo(error, 'container', undoAll([() => platform.files.close(this.#fd)]));
    }
  }

  /** The container's descriptor, for the calls of its IOMMU driver. */
  get fd(): number {
    return this.#fd;
  }

  /** Does it have an IOMMU? Only while it has devices. */
  get hasIommu(): boolean {
    return this.#groups.size > 0;
  }

  /** Does the kernel support `extension` (VFIO_CHECK_EXTENSION)? */
  supports(extension: number): boolean {
    return this.#call(IOCTL.VFIO_CHECK_EXTENSION, extension, 'VFIO_CHECK_EXTENSION') > 0;
  }

  /** Opens a device, and adds its group if it is not in the container yet. Undone on failure. */
  open(node: VfioNode): VfioDevice {
    const { group: number, name } = node;
    if (number === undefined) throw this.#noGroup(name);
    const known = this.#groups.get(number);
    const group = known ?? this.#join(number, name);
    try {
      const device = VfioDevice.fromFd(this.#platform, this.#deviceFd(group, name), name);
      group.devices.add(name);
      return device;
    } catch (error) {
      throw withUndo(error, 'open', known === undefined ? undoAll([() => this.#leave(number)]) : []);
    }
  }

  /** Removes a closed device; the last device of a group removes the group. */
  release({ group: number, name }: VfioNode): void {
    if (number === undefined) return;
    const group = this.#groups.get(number);
    if (group?.devices.delete(name) === true && group.devices.size === 0) this.#leave(number);
  }

  /** Idempotent. @throws DmaError EBUSY while it has devices */
  close(): void {
    if (this.#closed) return;
    const devices = [...this.#groups.values()].flatMap((group) => [...group.devices]);
    if (devices.length > 0)
      throw new DmaError({ code: 'EBUSY', operation: 'close', reason: `it has devices: ${devices.join(', ')}` });
    this.#closed = true;
    this.#platform.files.close(this.#fd);
  }

  #mustBeSupported(): void {
    const { extension, name, module } = this.#type;
    const version = this.#call(IOCTL.VFIO_GET_API_VERSION, 0, 'VFIO_GET_API_VERSION');
    const refuse = (reason: string, hint?: string): DmaError =>
      new DmaError({ code: 'ENOTSUP', operation: 'container', reason, hint });
    if (version !== VFIO_API_VERSION)
      throw refuse(`the kernel has version ${version} of VFIO, not ${VFIO_API_VERSION}`);
    if (!this.supports(extension))
      throw refuse(`the kernel has no IOMMU driver of type ${name} for VFIO`, `"modprobe ${module}"`);
  }

  #join(number: number, device: string): OpenGroup {
    const path = `${this.#type.groupPath}${number}`;
    const fd = openNode(
      this.#platform,
      path,
      `bind the device to vfio-pci ("anydma bind ${device}"); the kernel needs CONFIG_VFIO_GROUP`,
      {
        EBUSY: () => ({
          reason: `IOMMU group ${number} is in use`,
          hint: `another program has ${path} open, or a device of the group through iommufd; a group serves one at a time`,
        }),
        EPERM: () => ({
          reason: `opening ${path} requires CAP_SYS_RAWIO`,
          hint: 'a device without an IOMMU can access all memory: run as root',
        }),
      },
    );
    try {
      this.#mustBeViable(fd, number);
      this.#putInto(fd, number, device);
    } catch (error) {
      throw withUndo(error, 'open', undoAll([() => this.#platform.files.close(fd)]));
    }
    const group = { fd, devices: new Set<string>() };
    this.#groups.set(number, group);
    return group;
  }

  #leave(number: number): void {
    const group = this.#groups.get(number);
    if (group === undefined) return;
    this.#groups.delete(number);
    // Closing it also removes the group from the container, once all its devices are closed.
    this.#platform.files.close(group.fd);
  }

  #mustBeViable(fd: number, number: number): void {
    this.#status.clear().set32(VFIO_GROUP_STATUS.argsz, VFIO_GROUP_STATUS.sizeof);
    this.#platform.ioctl.call(fd, IOCTL.VFIO_GROUP_GET_STATUS, this.#status.bytes, 'VFIO_GROUP_GET_STATUS');
    if ((this.#status.u32(VFIO_GROUP_STATUS.flags) & VFIO_GROUP_FLAGS_VIABLE) === 0)
      throw notViable(this.#platform.kernel, number, 'open');
  }

  #putInto(fd: number, number: number, device: string): void {
    const { kernel, ioctl } = this.#platform;
    const container = new Struct(4).set32(0, this.#fd);
    const taken: Reasons = {
      EPERM: () => notViable(kernel, number, 'open'),
      EBUSY: () => notViable(kernel, number, 'open'),
      EINVAL: () =>
        whyNotHanded(this.#platform, number, device, 'vfio_iommu_type1') ?? {
          reason: `IOMMU group ${number} can not be added to this container`,
          hint: 'its IOMMU reaches too few addresses for what is mapped already: open this device first, or in a separate container',
        },
    };
    explaining({ ...taken, ...this.#mapFailures() }, () =>
      ioctl.call(fd, IOCTL.VFIO_GROUP_SET_CONTAINER, container.bytes, 'VFIO_GROUP_SET_CONTAINER'),
    );
    if (this.#groups.size > 0) return;
    explaining({ ...this.#iommuRefused(number, device), ...this.#mapFailures() }, () =>
      this.#call(IOCTL.VFIO_SET_IOMMU, this.#type.extension, 'VFIO_SET_IOMMU'),
    );
  }

  /** A group that is added gets all mappings of the container. */
  #mapFailures(): Reasons {
    return {
      ENOMEM: () => ({
        reason: 'the kernel has no memory for the page tables of another IOMMU',
        hint: 'a group behind another kind of IOMMU needs its own page tables for all mappings',
      }),
    };
  }

  #iommuRefused(number: number, device: string): Reasons {
    const { name, module } = this.#type;
    const why = (only?: 'interrupts'): Partial<DmaErrorDetails> | undefined =>
      whyNotHanded(this.#platform, number, device, 'vfio_iommu_type1', only);
    const unknown = `the kernel does not give IOMMU group ${number} to a program`;
    const hint =
      `the kernel log (dmesg) says why; usual causes: interrupts are not isolated (interrupt remapping is off), or the firmware ` +
      `keeps memory of a device mapped (/sys/kernel/iommu_groups/${number}/reserved_regions)`;
    return {
      EPERM: () => why('interrupts') ?? { reason: unknown, hint },
      EINVAL: () => why() ?? { reason: unknown, hint },
      ENODEV: () => ({
        reason: `the kernel has no IOMMU driver of type ${name} for this group`,
        hint: `"modprobe ${module}"`,
      }),
      EBUSY: () => notViable(this.#platform.kernel, number, 'open'),
    };
  }

  #deviceFd(group: OpenGroup, name: string): number {
    const bytes = new Struct(name.length + 1);
    bytes.bytes.set(Buffer.from(name, 'latin1'));
    const reasons: Reasons = {
      ENODEV: () => ({
        reason: `the kernel has no VFIO device ${name} in this group`,
        hint: `bind it to vfio-pci: "anydma bind ${name}"`,
      }),
      EBUSY: () => ({ reason: `${name} is in use`, hint: 'another program has it open' }),
    };
    return explaining(reasons, () =>
      this.#platform.ioctl.call(group.fd, IOCTL.VFIO_GROUP_GET_DEVICE_FD, bytes.bytes, 'VFIO_GROUP_GET_DEVICE_FD'),
    );
  }

  #noGroup(name: string): DmaError {
    return new DmaError({
      code: 'ENODEV',
      operation: 'open',
      reason: `${name} is in no IOMMU group: no IOMMU translates for it`,
      hint: 'switch the IOMMU on in the firmware and the kernel ("intel_iommu=on"); without an IOMMU, only no-IOMMU mode works',
    });
  }

  #call(request: number, value: number, name: string): number {
    return this.#platform.ioctl.call(this.#fd, request, value, name);
  }
}
