/** The buses that come with the library, in the order they are asked. A new one is a folder beside this, and a line here. */
import type { Gate } from '../check.js';
import type { AddressSpace } from '../dma/address-space.js';
import type { Domain } from '../dma/domain.js';
import type { Platform } from '../platform/ports.js';
import { RdmaContexts } from '../rdma/context.js';
import { Containers, type ContainerChoice } from '../vfio/containers.js';
import type { Bus } from './model.js';
import { PciBus } from './pci/pci-bus.js';
import { RdmaBus } from './rdma/rdma-bus.js';
import { rdmaClaimer } from './rdma/rdma-claimer.js';
import { softwareModel, softwareSpaces } from './vdev/software-devices.js';
import type { BytesAt } from './vdev/translated-dma.js';
import { VDEV_KEYS, VdevBus } from './vdev/vdev-bus.js';
import { VFIO_USER_KEYS, VfioUserBus } from './vfio-user/vfio-user-bus.js';

export { Container, CONTAINER_CHOICES, type ContainerChoice } from '../vfio/containers.js';
export type { Containers, VdevBus };

/** What the keys of device names mean that these buses know, in sentences for help pages. */
export const BUS_KEYS: readonly string[] = [VFIO_USER_KEYS, VDEV_KEYS];

/** What buses are made with. */
export interface BusHost {
  readonly platform: Platform;
  /** How PCI devices get at their IOMMU, where a container does not say it. */
  readonly iommu: ContainerChoice | undefined;
  /** Asked before anything is added to them. */
  readonly gate: Gate;
  /** The domain of what is mapped in an address space, while there is one. */
  readonly domainOf: (space: AddressSpace) => Domain | undefined;
  /** Registered memory, for devices that this process moves the bytes for. */
  readonly bytesAt: BytesAt;
}

/** The buses, and those of their parts that programs work with. */
export interface BuiltinBuses {
  readonly buses: readonly Bus[];
  readonly vdev: VdevBus;
  readonly containers: Containers;
}

/** Makes the buses of one `Eal`. */
export function builtinBuses({ platform, iommu, gate, domainOf, bytesAt }: BusHost): BuiltinBuses {
  const vdev = new VdevBus({ model: softwareModel, space: softwareSpaces(platform.memory.pageSize, bytesAt), gate });
  const vfioUser = new VfioUserBus({ platform, bytesAt });
  const containers = new Containers(platform, { choice: iommu, gate, domainOf });
  // One for both buses, so that both names of a device are the same one.
  const contexts = new RdmaContexts(platform);
  const pci = new PciBus({ platform, containers, claimers: [rdmaClaimer(platform.kernel, contexts)] });
  return { buses: [vdev, vfioUser, pci, new RdmaBus(contexts)], vdev, containers };
}
