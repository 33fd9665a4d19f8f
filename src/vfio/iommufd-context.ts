/**
 * /dev/iommu, opened once for all address spaces of one {@link Containers}: objects of one descriptor can refer to each
 * other, so that a page mapped in two address spaces is pinned once.
 */
import { DmaError } from '../errors.js';
import type { Platform } from '../platform/ports.js';
import { Struct } from '../platform/struct.js';
import { IOCTL, IOMMU_DESTROY } from '../platform/uapi/iommufd.js';
import { openNode } from './facts.js';

/** The device node of iommufd. */
export const IOMMUFD = '/dev/iommu';

/** An open iommufd. It is open while address spaces use it. */
export class IommufdContext<Space> {
  /** The open address spaces. */
  readonly spaces = new Set<Space>();
  /** Does the kernel support IOMMU_IOAS_MAP_FILE? `undefined` before the first try. */
  mapsFiles: boolean | undefined;
  readonly #platform: Platform;
  #fd = -1;

  constructor(platform: Platform) {
    this.#platform = platform;
  }

  /** @throws DmaError EBADF while it is not open */
  get fd(): number {
    if (this.#fd < 0) throw new DmaError({ code: 'EBADF', operation: 'iommufd', reason: `${IOMMUFD} is not open` });
    return this.#fd;
  }

  /** Adds a user; the first one opens it. @throws DmaError ENOENT, EACCES */
  enter(space: Space): void {
    if (this.#fd < 0)
      this.#fd = openNode(
        this.#platform,
        IOMMUFD,
        'the kernel needs CONFIG_IOMMUFD ("modprobe iommufd"), or use a type1 container',
      );
    this.spaces.add(space);
  }

  /** Removes a user; the last one closes it. */
  leave(space: Space): void {
    if (!this.spaces.delete(space) || this.spaces.size > 0) return;
    const fd = this.#fd;
    this.#fd = -1;
    this.#platform.files.close(fd);
  }

  /** Makes one ioctl. */
  call(request: number, argument: Struct, name: string): void {
    this.#platform.ioctl.call(this.fd, request, argument.bytes, name);
  }

  /** Like {@link call}, on another thread. */
  async callAsync(request: number, argument: Struct, name: string): Promise<void> {
    await this.#platform.ioctl.callAsync(this.fd, request, argument.bytes, name);
  }

  /** IOMMU_DESTROY. @throws DmaError EBUSY while the object is used */
  destroy(id: number): void {
    const argument = new Struct(IOMMU_DESTROY.sizeof).set32(IOMMU_DESTROY.size, IOMMU_DESTROY.sizeof);
    this.call(IOCTL.IOMMU_DESTROY, argument.set32(IOMMU_DESTROY.id, id), 'IOMMU_DESTROY');
  }
}
