/**
 * Page requests: a device that can (PCI's PRI) asks for a page that it did not find mapped, and waits for the answer. The
 * kernel puts them into a queue of iommufd (drivers/iommu/iommufd/eventq.c). Devices that can not do that make IOMMU faults,
 * which are in the kernel's log.
 */
import { throwFirst, undoAll } from '../errors.js';
import type { Platform } from '../platform/ports.js';
import { Struct } from '../platform/struct.js';
import * as iommufd from '../platform/uapi/iommufd.js';
import type { Iova } from '../units.js';
import { explaining } from './facts.js';

const {
  IOCTL,
  IOMMU_FAULT_ALLOC: ALLOC,
  IOMMU_HWPT_PAGE_RESPONSE: RESPONSE,
  IOMMU_HWPT_PGFAULT: REQUEST,
  IOMMU_PGFAULT_FLAGS_LAST_PAGE,
  IOMMU_PGFAULT_FLAGS_PASID_VALID,
} = iommufd;

/** One request of a device. */
export interface PageRequest {
  /** The device, by the number that the kernel gave it when it was bound to iommufd. */
  readonly deviceId: number;
  /** The process address space it is for; `undefined` for the device's own. */
  readonly pasid: number | undefined;
  /** Requests of one group are answered together, by the last. */
  readonly group: number;
  readonly isLast: boolean;
  readonly iova: Iova;
  readonly reads: boolean;
  readonly writes: boolean;
  /** What the answer has to name. */
  readonly cookie: number;
}

/** What it takes of an iommufd. */
interface IommufdCalls {
  readonly fd: number;
  call(request: number, argument: Struct, name: string): void;
  destroy(id: number): void;
}

/** Requests that one read takes at most. A group has to fit in, and PCI has no more than this outstanding. */
const ROOM = 512;

/** See the head of the file. */
export class PageRequests {
  /** The object's number, for page tables. */
  readonly id: number;
  /** Readable when requests wait. It belongs to this object. */
  readonly fd: number;
  readonly #platform: Platform;
  readonly #context: IommufdCalls;
  readonly #room = new Struct(ROOM * REQUEST.sizeof);

  /** @throws DmaError ENOTSUP: this kernel has no queue of faults (it came with Linux 6.11) */
  constructor(platform: Platform, context: IommufdCalls) {
    this.#platform = platform;
    this.#context = context;
    const argument = new Struct(ALLOC.sizeof).set32(ALLOC.size, ALLOC.sizeof);
    explaining(
      { ENOTTY: () => ({ code: 'ENOTSUP', reason: 'this kernel can not hand page requests of devices to programs' }) },
      () => context.call(IOCTL.IOMMU_FAULT_QUEUE_ALLOC, argument, 'IOMMU_FAULT_QUEUE_ALLOC'),
    );
    this.id = argument.u32(ALLOC.out_fault_id);
    this.fd = argument.u32(ALLOC.out_fault_fd);
  }

  /** The requests that wait, oldest first; none when none does. Never blocks. */
  read(): PageRequest[] {
    const bytes = this.#platform.files.read(this.fd, this.#room.bytes);
    return Array.from({ length: Math.floor(bytes / REQUEST.sizeof) }, (_, i) => this.#request(i * REQUEST.sizeof));
  }

  /**
   * Answers a group of requests, by the cookie of its last.
   *
   * @param outcome `mapped`: the device tries again; `refused`: the access fails
   * @throws DmaError EINVAL for what waits for no answer
   */
  answer({ cookie }: Pick<PageRequest, 'cookie'>, outcome: 'mapped' | 'refused'): void {
    const code = outcome === 'mapped' ? iommufd.IOMMUFD_PAGE_RESP_SUCCESS : iommufd.IOMMUFD_PAGE_RESP_INVALID;
    const response = new Struct(RESPONSE.sizeof).set32(RESPONSE.cookie, cookie).set32(RESPONSE.code, code);
    this.#platform.files.write(this.fd, response.bytes);
  }

  /** After the page tables that use it. */
  close(): void {
    throwFirst(undoAll([() => this.#platform.files.close(this.fd), () => this.#context.destroy(this.id)]), 'close');
  }

  #request(at: number): PageRequest {
    const room = this.#room;
    const flags = room.u32(at + REQUEST.flags);
    const permissions = room.u32(at + REQUEST.perm);
    return {
      deviceId: room.u32(at + REQUEST.dev_id),
      pasid: (flags & IOMMU_PGFAULT_FLAGS_PASID_VALID) === 0 ? undefined : room.u32(at + REQUEST.pasid),
      group: room.u32(at + REQUEST.grpid),
      isLast: (flags & IOMMU_PGFAULT_FLAGS_LAST_PAGE) !== 0,
      iova: room.u64(at + REQUEST.addr) as Iova,
      reads: (permissions & iommufd.IOMMU_PGFAULT_PERM_READ) !== 0,
      writes: (permissions & iommufd.IOMMU_PGFAULT_PERM_WRITE) !== 0,
      cookie: room.u32(at + REQUEST.cookie),
    };
  }
}
