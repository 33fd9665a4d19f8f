/**
 * The buses that come with the library, in the order in which they are asked. A new bus is a new folder here and one
 * line in this file.
 */
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

/** Explains the keys of device names that these buses accept, as sentences for help pages. */
export const BUS_KEYS: readonly string[] = [VFIO_USER_KEYS, VDEV_KEYS];

/** What the built-in buses need. */
export interface BusHost {
  readonly platform: Platform;
  /** How PCI devices reach their IOMMU if the container does not choose a way. */
  readonly iommu: ContainerChoice | undefined;
  /** Called before a device is added to an address space. */
  readonly gate: Gate;
  /** The domain of an address space, while one exists. */
  readonly domainOf: (space: AddressSpace) => Domain | undefined;
  /** Registered memory, for devices whose DMA this process does itself. */
  readonly bytesAt: BytesAt;
}

/** The buses, and those of their parts that programs use directly. */
export interface BuiltinBuses {
  readonly buses: readonly Bus[];
  readonly vdev: VdevBus;
  readonly containers: Containers;
}

/** Creates the buses of one `Eal`. */
export function builtinBuses({ platform, iommu, gate, domainOf, bytesAt }: BusHost): BuiltinBuses {
  const vdev = new VdevBus({ model: softwareModel, space: softwareSpaces(platform.memory.pageSize, bytesAt), gate });
  const vfioUser = new VfioUserBus({ platform, bytesAt });
  const containers = new Containers(platform, { choice: iommu, gate, domainOf });
  // Both buses share it, so that a device opened under either name counts as the same device.
  const contexts = new RdmaContexts(platform);
  const pci = new PciBus({ platform, containers, claimers: [rdmaClaimer(platform.kernel, contexts)] });
  return { buses: [vdev, vfioUser, pci, new RdmaBus(contexts)], vdev, containers };
}
