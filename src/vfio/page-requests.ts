/**
 * Page requests: a device with PCI PRI requests a page that is not mapped, and waits for the response. The kernel
 * queues the requests in iommufd (drivers/iommu/iommufd/eventq.c). Devices without PRI cause IOMMU faults instead,
 * which are in the kernel's log.
 */
import { mustBeObject, mustBeOneOf, mustBeWhole, reading } from '../check.js';
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

/** A page request of a device. */
export interface PageRequest {
  /** The device, by its name in sysfs (`0000:00:02.0`); `undefined` if it has left. */
  readonly device: string | undefined;
  /** PASID of the process address space; `undefined` for the device's own. */
  readonly pasid: number | undefined;
  /** Requests of one group get one response, for the last one. */
  readonly group: number;
  readonly isLast: boolean;
  readonly iova: Iova;
  readonly reads: boolean;
  readonly writes: boolean;
  /** Identifies the response. */
  readonly cookie: number;
}

/** The calls of an iommufd context that are needed here. */
export interface IommufdCalls {
  readonly fd: number;
  call(request: number, argument: Struct, name: string): void;
  destroy(id: number): void;
}

const OUTCOMES = ['mapped', 'refused'] as const;

/** The most requests of one read. It must hold a whole group, and PCI allows no more than this outstanding. */
const ROOM = 512;

/** The page requests of the devices of a container. */
export interface PageRequestQueue {
  /** The waiting requests, oldest first. Never blocks. */
  read(): PageRequest[];
  /**
   * Responds to a group of requests, by its last one.
   *
   * @param outcome `mapped`: the device retries; `refused`: the access fails
   * @throws DmaError EINVAL if no request with this cookie waits
   */
  answer(request: Pick<PageRequest, 'cookie'>, outcome: 'mapped' | 'refused'): void;
}

/** The queue of page requests of one address space. */
export class PageRequests implements PageRequestQueue {
  /** The object's number, for page tables. */
  readonly id: number;
  /** Readable when requests wait. Owned by this object. */
  readonly fd: number;
  readonly #platform: Platform;
  readonly #context: IommufdCalls;
  readonly #nameOf: (id: number) => string | undefined;
  readonly #room = new Struct(ROOM * REQUEST.sizeof);

  /** @throws DmaError ENOTSUP before Linux 6.11 */
  constructor(platform: Platform, context: IommufdCalls, nameOf: (id: number) => string | undefined) {
    this.#nameOf = nameOf;
    this.#platform = platform;
    this.#context = context;
    const argument = new Struct(ALLOC.sizeof).set32(ALLOC.size, ALLOC.sizeof);
    explaining(
      { ENOTTY: () => ({ code: 'ENOTSUP', reason: 'page requests are not supported before Linux 6.11' }) },
      () => context.call(IOCTL.IOMMU_FAULT_QUEUE_ALLOC, argument, 'IOMMU_FAULT_QUEUE_ALLOC'),
    );
    this.id = argument.u32(ALLOC.out_fault_id);
    this.fd = argument.u32(ALLOC.out_fault_fd);
  }

  /** The waiting requests, oldest first; empty if there are none. Does not block. */
  read(): PageRequest[] {
    const bytes = this.#platform.files.read(this.fd, this.#room.bytes);
    return Array.from({ length: Math.floor(bytes / REQUEST.sizeof) }, (_, i) => this.#request(i * REQUEST.sizeof));
  }

  /**
   * Responds to a group of requests, by the cookie of its last one.
   *
   * @param outcome `mapped`: the device retries; `refused`: the access fails
   * @throws DmaError EINVAL if no request with this cookie waits
   */
  answer(request: Pick<PageRequest, 'cookie'>, outcome: 'mapped' | 'refused'): void {
    mustBeObject(request, 'page requests', 'answer');
    const cookie: unknown = reading('answer', 'the page request', () => request.cookie);
    mustBeWhole(cookie, 0, 0xffff_ffff, 'the cookie of a page request', 'answer');
    mustBeOneOf(outcome, OUTCOMES, 'outcome', 'answer');
    const code = outcome === 'mapped' ? iommufd.IOMMUFD_PAGE_RESP_SUCCESS : iommufd.IOMMUFD_PAGE_RESP_INVALID;
    const response = new Struct(RESPONSE.sizeof).set32(RESPONSE.cookie, cookie).set32(RESPONSE.code, code);
    this.#platform.files.write(this.fd, response.bytes);
  }

  /** Closes it; first destroy the page tables that use it. */
  close(): void {
    throwFirst(undoAll([() => this.#platform.files.close(this.fd), () => this.#context.destroy(this.id)]), 'close');
  }

  #request(at: number): PageRequest {
    const room = this.#room;
    const flags = room.u32(at + REQUEST.flags);
    const permissions = room.u32(at + REQUEST.perm);
    return {
      device: this.#nameOf(room.u32(at + REQUEST.dev_id)),
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
