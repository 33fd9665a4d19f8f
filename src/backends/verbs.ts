/** The address space of an RDMA device: mapping is registering a memory region in its protection domain. */
import { LOCAL, type DomainBackend, type DomainConstraints, type MapKeys, type Segment } from '../dma/backend.js';
import { DmaError, isDmaError } from '../errors.js';
import { IBV_ODP_SUPPORT } from '../platform/verbs-abi/devices.js';
import { regionFlags } from '../rdma/access.js';
import type { RdmaContext, Region } from '../rdma/context.js';
import { Range } from '../ranges.js';
import { ADDRESS_LIMIT, formatSize, KiB, type Iova } from '../units.js';

/** See the head of the file. Closing it leaves the device open: that is the bus's. */
export class VerbsBackend implements DomainBackend {
  readonly kind = 'verbs';
  readonly constraints: DomainConstraints;
  readonly #rdma: RdmaContext;
  #pinned = 0;

  constructor(rdma: RdmaContext) {
    this.#rdma = rdma;
    const { attributes } = rdma;
    this.constraints = {
      granule: 4 * KiB,
      windows: [new Range(0 as Iova, ADDRESS_LIMIT - 1)],
      entryLimit: attributes.maxMrs > 0 ? attributes.maxMrs : Infinity,
      iova: 'ignored',
      partialUnmap: false,
      pins: true,
      regions: { onDemand: (attributes.odp.general & IBV_ODP_SUPPORT) !== 0 },
    };
  }

  /** @throws DmaError as `VerbsPort.registerMemory`; ENOMEM says what there is, and what is used of it */
  map({ va, length, access, region = LOCAL }: Segment): MapKeys {
    const { verbs, pd, attributes, regions } = this.#rdma;
    try {
      const mr = verbs.registerMemory(pd, { va, length, access: regionFlags(access, region, attributes) });
      regions.insert(va, length, { mr, range: new Range(va, length), users: new Set() });
      if (region.paging === 'pinned') this.#pinned += length;
      return { lkey: mr.lkey, rkey: mr.rkey };
    } catch (error) {
      throw isDmaError(error, 'ENOMEM') ? error.with({ hint: this.#memoryFacts(length) }) : error;
    }
  }

  /** The keys stop working at once. @throws DmaError EBUSY while a window is bound to it, or it is exposed to peers */
  unmap({ va, length, region = LOCAL }: Segment): number {
    const { regions } = this.#rdma;
    const mapped = regions.exact(va, length);
    if (mapped === undefined) return 0;
    this.#deregister(mapped);
    regions.delete(va);
    if (region.paging === 'pinned') this.#pinned -= length;
    return length;
  }

  /** After a loss there may be regions that nobody has unmapped: they are given back as far as the system lets them. */
  close(): void {
    const { regions, verbs } = this.#rdma;
    const left = [...regions.values()];
    regions.clear();
    for (const { mr } of left) {
      try {
        verbs.deregisterMemory(mr);
      } catch {
        // The device is gone, and so is what it knew.
      }
    }
  }

  #deregister({ mr, range, users }: Region): void {
    const { verbs, name } = this.#rdma;
    const busy = (cause?: unknown): DmaError =>
      new DmaError({
        code: 'EBUSY',
        operation: 'unmap',
        range,
        reason: `it is in use by ${users.size === 0 ? 'a memory window' : [...users].map(String).join(' and ')}`,
        hint: 'unbind or close that first',
        cause,
      });
    if (users.size > 0) throw busy();
    try {
      verbs.deregisterMemory(mr);
    } catch (error) {
      throw isDmaError(error, 'EBUSY') ? busy(error).with({ device: name }) : error;
    }
  }

  #memoryFacts(length: number): string {
    const { attributes, platform, regions, name } = this.#rdma;
    const { limit } = platform.limits.lockedMemory();
    const pinned = `${formatSize(this.#pinned)} are pinned for ${name} by this process, and this needs ${formatSize(length)} more`;
    const lock =
      limit === Infinity
        ? `RLIMIT_MEMLOCK does not limit this process; ${pinned}`
        : `RLIMIT_MEMLOCK is ${formatSize(limit)}; ${pinned}: raise it with "ulimit -l" or LimitMEMLOCK= of the service`;
    return `${lock}; ${regions.size} of the device's ${attributes.maxMrs} memory regions are in use here`;
  }
}
