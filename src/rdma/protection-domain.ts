/** The address space of an RDMA device: mapping is registering a memory region in its protection domain. */
import { LOCAL, type AddressSpace, type Constraints, type MapKeys, type Segment } from '../dma/address-space.js';
import { DmaError, forPeople, isDmaError } from '../errors.js';
import { IBV_ODP_SUPPORT } from '../platform/rdma/abi/devices.js';
import type { VerbsMr, VerbsMrOptions } from '../platform/rdma/verbs-types.js';
import { regionFlags } from './access.js';
import type { RdmaContext, Region } from './context.js';
import { Range } from '../ranges.js';
import { ADDRESS_LIMIT, formatSize, KiB, type Iova } from '../units.js';

/** The protection domain of one device. Closing it leaves the device open; the bus owns that. */
export class ProtectionDomain implements AddressSpace {
  readonly kind = 'verbs';
  readonly name: string;
  readonly constraints: Constraints;
  readonly #rdma: RdmaContext;
  #pinned = 0;

  constructor(rdma: RdmaContext) {
    this.#rdma = rdma;
    this.name = `verbs:${rdma.name}`;
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

  /** @throws DmaError as `VerbsPort.registerMemory`; ENOMEM with the limits and their use */
  map(segment: Segment): MapKeys {
    const { verbs, pd } = this.#rdma;
    try {
      return this.#registered(segment, verbs.registerMemory(pd, this.#options(segment)));
    } catch (error) {
      throw this.#notRegistered(error, segment);
    }
  }

  async mapAsync(segment: Segment): Promise<MapKeys> {
    const { verbs, pd } = this.#rdma;
    try {
      return this.#registered(segment, await verbs.registerMemoryAsync(pd, this.#options(segment)));
    } catch (error) {
      throw this.#notRegistered(error, segment);
    }
  }

  /**
   * The keys become invalid at once. @throws DmaError EBUSY while a window is bound to it, or it is exposed to peers
   */
  unmap(segment: Segment): number {
    const mapped = this.#mustBeUnused(segment);
    if (mapped === undefined) return 0;
    try {
      this.#rdma.verbs.deregisterMemory(mapped.mr);
    } catch (error) {
      throw this.#notDeregistered(error, mapped);
    }
    this.#rdma.regions.delete(segment.va);
    return this.#deregistered(segment);
  }

  async unmapAsync(segment: Segment): Promise<number> {
    const mapped = this.#mustBeUnused(segment);
    if (mapped === undefined) return 0;
    // From here on no new user can be added.
    this.#rdma.regions.delete(segment.va);
    try {
      await this.#rdma.verbs.deregisterMemoryAsync(mapped.mr);
    } catch (error) {
      this.#rdma.regions.insert(segment.va, segment.length, mapped);
      throw this.#notDeregistered(error, mapped);
    }
    return this.#deregistered(segment);
  }

  /** After a device is lost, regions may remain that nobody unmapped: deregisters them as far as possible. */
  close(): void {
    const { regions, verbs } = this.#rdma;
    const left = [...regions.values()];
    regions.clear();
    for (const { mr } of left) {
      try {
        verbs.deregisterMemory(mr);
        this.#rdma.limits.gave('regions');
      } catch {
        // The device is gone, and its regions with it.
      }
    }
  }

  #options({ va, length, access, region = LOCAL }: Segment): VerbsMrOptions {
    this.#rdma.limits.mustBeRegion(length, 'dmaMap');
    return { va, length, access: regionFlags(access, region, this.#rdma.attributes) };
  }

  #registered({ va, length, region = LOCAL }: Segment, mr: VerbsMr): MapKeys {
    this.#rdma.regions.insert(va, length, { mr, range: new Range(va, length), users: new Set() });
    this.#rdma.limits.add('regions');
    if (region.paging === 'pinned') this.#pinned += length;
    return { lkey: mr.lkey, rkey: mr.rkey };
  }

  #notRegistered(error: unknown, { length }: Segment): unknown {
    return isDmaError(error, 'ENOMEM') ? error.with({ hint: forPeople(() => this.#memoryFacts(length)) }) : error;
  }

  /** The region at the segment. @throws DmaError EBUSY if it has users */
  #mustBeUnused({ va, length }: Segment): Region | undefined {
    const mapped = this.#rdma.regions.exact(va, length);
    if (mapped !== undefined && mapped.users.size > 0) throw busy(mapped);
    return mapped;
  }

  #notDeregistered(error: unknown, mapped: Region): unknown {
    return isDmaError(error, 'EBUSY') ? busy(mapped, error).with({ device: this.#rdma.name }) : error;
  }

  #deregistered({ length, region = LOCAL }: Segment): number {
    this.#rdma.limits.gave('regions');
    if (region.paging === 'pinned') this.#pinned -= length;
    return length;
  }

  #memoryFacts(length: number): string {
    const { attributes, platform, regions, name, limits } = this.#rdma;
    const { limit } = platform.limits.lockedMemory();
    const pinned = `${formatSize(this.#pinned)} are pinned for ${name} by this process, and this needs ${formatSize(length)} more`;
    const lock =
      limit === Infinity
        ? `RLIMIT_MEMLOCK does not limit this process; ${pinned}`
        : `RLIMIT_MEMLOCK is ${formatSize(limit)}; ${pinned}: raise it with "ulimit -l" or LimitMEMLOCK= of the service`;
    const others = limits.used('regions') - regions.size;
    const beside = others === 0 ? '' : `, and ${others} beside mappings`;
    return `${lock}; ${regions.size} of the device's ${attributes.maxMrs} memory regions (max_mr) are in use here${beside}`;
  }
}

function busy({ range, users }: Region, cause?: unknown): DmaError {
  return new DmaError({
    code: 'EBUSY',
    operation: 'unmap',
    range,
    reason: `it is in use by ${users.size === 0 ? 'a memory window' : [...users].map(String).join(' and ')}`,
    hint: 'unbind or close that first',
    cause,
  });
}
