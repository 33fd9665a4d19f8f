/**
 * The suites, and where each runs: the file of that name in suites/ holds its tests (node:test), which are run in the guest
 * with nothing but that file. What they can count on there is in guest.ts, and what they can ask for in host.ts.
 */
import type { KernelName } from './kernels.js';
import type { IommuName } from './machine.js';

/** How a process gets at devices and their IOMMU. */
export type BackendName = 'type1' | 'iommufd' | 'noiommu';

/** A suite runs on every combination of these that exists. */
export interface Suite {
  readonly name: string;
  /** Default: both. */
  readonly kernels?: readonly KernelName[];
  /** Default: 48 and 39. */
  readonly iommus?: readonly IommuName[];
  /**
   * It runs once for each. `iommufd` exists on the built kernel only; so does `noiommu`, and only where the machine has no
   * IOMMU. Default: it runs once in each guest.
   */
  readonly backends?: readonly BackendName[];
  /** It is ended after so many seconds. Default: 300. */
  readonly seconds?: number;
  /** The same with `--whole`. Default: as `seconds`. */
  readonly wholeSeconds?: number;
}

/** In the order that they run in. */
export const SUITES: readonly Suite[] = [
  { name: 'machine', iommus: ['48', '39', 'none'] },
  { name: 'dma', backends: ['type1', 'iommufd'] },
  { name: 'nvme', kernels: ['built'], backends: ['type1', 'iommufd'], seconds: 900, wholeSeconds: 14_400 },
  { name: 'e1000e', kernels: ['built'], backends: ['type1', 'iommufd'], seconds: 900, wholeSeconds: 7200 },
  { name: 'e1000e-kernel', kernels: ['built'], iommus: ['48'], backends: ['type1', 'iommufd'] },
  { name: 'virtio-net', kernels: ['built'], backends: ['type1', 'iommufd'], seconds: 600, wholeSeconds: 7200 },
  { name: 'nvme-threads', kernels: ['built'], iommus: ['48'], backends: ['type1', 'iommufd'] },
  { name: 'secondaries', kernels: ['built'], iommus: ['48'], backends: ['iommufd'] },
  { name: 'nvme-namespaces', kernels: ['built'], iommus: ['48'], backends: ['type1', 'iommufd'] },
  { name: 'ledger', kernels: ['built'], backends: ['type1', 'iommufd'], seconds: 600 },
  { name: 'containers', kernels: ['built'], backends: ['type1', 'iommufd'] },
  { name: 'hand-over', kernels: ['built'], iommus: ['48'], backends: ['type1', 'iommufd'], seconds: 900 },
  { name: 'explained', kernels: ['built'], iommus: ['48'], backends: ['type1', 'iommufd'] },
  { name: 'unsafe', kernels: ['built'], iommus: ['unsafe'], backends: ['type1', 'iommufd'] },
  { name: 'firmware', kernels: ['built'], iommus: ['firmware'], backends: ['type1', 'iommufd'] },
  { name: 'in-use', kernels: ['built'], iommus: ['48'], seconds: 900 },
  { name: 'noiommu', kernels: ['built'], iommus: ['none'], backends: ['noiommu'] },
  { name: 'model', kernels: ['built'], iommus: ['48'], backends: ['type1', 'iommufd'], seconds: 600 },
  { name: 'cli', kernels: ['built'], iommus: ['39'], backends: ['type1', 'iommufd'], seconds: 900 },
  { name: 'limits', kernels: ['built'], iommus: ['none'] },
  { name: 'verbs-platform', kernels: ['built'], iommus: ['none'] },
  { name: 'rdma-device', kernels: ['built'], iommus: ['none'], seconds: 600 },
  { name: 'rdma-cli', kernels: ['built'], iommus: ['none'], seconds: 600 },
  { name: 'rdma-cm', kernels: ['built'], iommus: ['none'] },
];
