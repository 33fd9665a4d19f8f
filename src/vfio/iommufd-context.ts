/**
 * /dev/iommu, opened once for all address spaces of one {@link Containers}: objects of one descriptor can be joined, so
 * that a page that is mapped in two address spaces is pinned once.
 */
import { DmaError } from '../errors.js';
import type { Platform } from '../platform/ports.js';
import { Struct } from '../platform/struct.js';
import { IOCTL, IOMMU_DESTROY } from '../platform/uapi/iommufd.js';
import { openNode } from './facts.js';

/** Where iommufd is. */
export const IOMMUFD = '/dev/iommu';

/** See the head of the file. Open as long as somebody uses it. */
export class IommufdContext<Space> {
  /** The address spaces that are open in it. */
  readonly spaces = new Set<Space>();
  /** Has the kernel IOMMU_IOAS_MAP_FILE? Not known before the first try. */
  mapsFiles: boolean | undefined;
  readonly #platform: Platform;
  #fd = -1;

  constructor(platform: Platform) {
    this.#platform = platform;
  }

  /** @throws DmaError EBADF while nobody uses it */
  get fd(): number {
    if (this.#fd < 0) throw new DmaError({ code: 'EBADF', operation: 'iommufd', reason: `${IOMMUFD} is not open` });
    return this.#fd;
  }

  /** Opens it for its first user. @throws DmaError ENOENT, EACCES */
  enter(space: Space): void {
    if (this.#fd < 0)
      this.#fd = openNode(
        this.#platform,
        IOMMUFD,
        'the kernel needs CONFIG_IOMMUFD ("modprobe iommufd"); type1 containers do without',
      );
    this.spaces.add(space);
  }

  /** Closes it after its last user. */
  leave(space: Space): void {
    if (!this.spaces.delete(space) || this.spaces.size > 0) return;
    const fd = this.#fd;
    this.#fd = -1;
    this.#platform.files.close(fd);
  }

  /** One call. */
  call(request: number, argument: Struct, name: string): void {
    this.#platform.ioctl.call(this.fd, request, argument.bytes, name);
  }

  /** As {@link call}, on another thread. */
  async callAsync(request: number, argument: Struct, name: string): Promise<void> {
    await this.#platform.ioctl.callAsync(this.fd, request, argument.bytes, name);
  }

  /** IOMMU_DESTROY. @throws DmaError EBUSY while something uses the object */
  destroy(id: number): void {
    const argument = new Struct(IOMMU_DESTROY.sizeof).set32(IOMMU_DESTROY.size, IOMMU_DESTROY.sizeof);
    this.call(IOCTL.IOMMU_DESTROY, argument.set32(IOMMU_DESTROY.id, id), 'IOMMU_DESTROY');
  }
}
