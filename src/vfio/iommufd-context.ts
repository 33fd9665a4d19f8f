/**
 * /dev/iommu, opened once for all address spaces of one {@link Containers}: objects of one descriptor can refer to each
 * other, so that a page mapped in two address spaces is pinned once.
 */
import { DmaError } from '../errors.js';
import type { Platform } from '../platform/ports.js';
import { Struct } from '../platform/struct.js';
import { IOCTL, IOMMU_DESTROY, IOMMU_IOAS_CHANGE_PROCESS as CHANGE } from '../platform/uapi/iommufd.js';
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

  /**
   * Uses an open iommufd that another process has handed over, instead of opening one. Only while it has no users.
   *
   * @param fd belongs to the context from now on
   */
  takeOver(fd: number): void {
    this.#fd = fd;
  }

  /** Forgets all users, and closes this process's descriptor: another process has it, with all that is in it. */
  abandon(): void {
    this.spaces.clear();
    const fd = this.#fd;
    this.#fd = -1;
    if (fd >= 0) this.#platform.files.close(fd);
  }

  /**
   * IOMMU_IOAS_CHANGE_PROCESS (Linux 6.14): from now on the pinned pages of all mappings in this iommufd count for this
   * process. It is called by the process that takes over, with a descriptor of the same iommufd. The kernel changes nothing
   * when it refuses.
   *
   * What it asks for was seen on Linux 7.3: each mapping of each IOAS was made by IOMMU_IOAS_MAP_FILE (or copied from one
   * that was), else EINVAL. Devices may be attached and do DMA meanwhile. The pages of a process without CAP_IPC_LOCK move
   * from VmPin of the one process to that of the other; those of a process that had it when it mapped are not checked
   * against a limit, and its VmPin keeps them.
   *
   * @throws DmaError EINVAL for a mapping that is not by descriptor; ENOMEM beyond RLIMIT_MEMLOCK of this process; ENOTTY
   *   before Linux 6.14
   */
  changeProcess(): void {
    const argument = new Struct(CHANGE.sizeof).set32(CHANGE.size, CHANGE.sizeof);
    this.call(IOCTL.IOMMU_IOAS_CHANGE_PROCESS, argument, 'IOMMU_IOAS_CHANGE_PROCESS');
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
