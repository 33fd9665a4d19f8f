/**
 * VFIO without an IOMMU: the kernel makes groups for devices that no IOMMU translates for. Such a device accesses all
 * memory of the machine, by physical addresses. The kernel maps nothing; the books are still kept, so that memory is
 * not freed while a device uses it. Only memory with known physical addresses (its area has an IOVA table) can be
 * mapped. Unsafe by design; every use emits a warning.
 */
import type { Constraints, Segment } from '../dma/address-space.js';
import { DmaError, withUndo, undoAll } from '../errors.js';
import type { Platform } from '../platform/ports.js';
import { VFIO_NOIOMMU_IOMMU } from '../platform/uapi/vfio.js';
import { Range } from '../ranges.js';
import { ADDRESS_LIMIT, type Iova } from '../units.js';
import type { VfioDevice } from './device.js';
import { noIommuMode } from './facts.js';
import { GroupContainer, type ContainerType } from './group-container.js';
import type { KernelSpace, VfioNode } from './space.js';

const NOIOMMU: ContainerType = {
  extension: VFIO_NOIOMMU_IOMMU,
  name: 'no-IOMMU',
  module: 'vfio enable_unsafe_noiommu_mode=1',
  groupPath: '/dev/vfio/noiommu-',
};

/** The address space of a device without an IOMMU. */
export class NoIommuSpace implements KernelSpace {
  readonly kind = 'vfio-noiommu';
  readonly name: string | undefined;
  readonly constraints: Constraints;
  readonly #container: GroupContainer;

  /**
   * Opening a device emits a process warning with code ANYDMA_NOIOMMU.
   *
   * @throws DmaError ENOTSUP if the mode is off, or not built into this kernel; ENOENT, EACCES from /dev/vfio/vfio
   */
  constructor(platform: Platform, name?: string) {
    if (noIommuMode(platform.kernel) !== true)
      throw new DmaError({
        code: 'ENOTSUP',
        operation: 'container',
        reason: 'no-IOMMU mode is off',
        hint:
          'switch the IOMMU on instead; or, if the device may reach all memory of this machine, ' +
          '"echo Y > /sys/module/vfio/parameters/enable_unsafe_noiommu_mode" and bind the device again (the kernel needs CONFIG_VFIO_NOIOMMU)',
      });
    this.name = name;
    this.constraints = {
      granule: platform.memory.pageSize,
      windows: [new Range(0 as Iova, ADDRESS_LIMIT - 1)],
      entryLimit: Infinity,
      iova: 'table',
      partialUnmap: true,
      pins: false,
    };
    this.#container = new GroupContainer(platform, NOIOMMU);
  }

  open(node: VfioNode): VfioDevice {
    const device = this.#container.open(node);
    try {
      process.emitWarning(
        `${node.name} is used without an IOMMU: it can read and write all memory of this machine, and so can anyone who controls it`,
        { code: 'ANYDMA_NOIOMMU' },
      );
      return device;
    } catch (error) {
      throw withUndo(error, 'open', undoAll([() => device.close(), () => this.release(node)]));
    }
  }

  release(node: VfioNode): void {
    this.#container.release(node);
  }

  map(): undefined {
    return undefined;
  }

  unmap({ length }: Pick<Segment, 'length'>): number {
    return length;
  }

  close(): void {
    // The kernel holds no mappings.
  }

  end(): void {
    this.#container.close();
  }
}
