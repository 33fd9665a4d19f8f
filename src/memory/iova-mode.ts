/**
 * What devices use as addresses of the library's own memory: virtual addresses, which takes an IOMMU or software in its
 * place, or physical ones. One decision for an `Eal`, by the rules of DPDK (rte_eal_init, rte_bus_get_iommu_class).
 */
import { DmaError, NO_PERMISSION, unlessFails } from '../errors.js';
import type { Platform } from '../platform/ports.js';
import { HugePages } from './hugepages.js';

/** `va`: a page's IOVA is its virtual address wherever a domain allows that. `pa`: it is its physical address. */
export type IovaMode = 'va' | 'pa';

/** What one bus says. */
export interface IovaVote {
  readonly bus: string;
  /** `any`: its devices work either way. */
  readonly wish: IovaMode | 'any';
}

/** What the decision is made from. */
export interface IovaFacts {
  /** What the program asked for; decides if it is given. */
  readonly forced?: IovaMode;
  readonly votes: readonly IovaVote[];
  /** Are there hugepages to use, and does the kernel tell their physical addresses? */
  readonly physicalAddresses: boolean;
  /** Does the machine have IOMMU groups? */
  readonly iommu: boolean;
}

/** The decision, and why. */
export interface IovaDecision extends IovaFacts {
  readonly mode: IovaMode;
  /** Why, in a clause. */
  readonly reason: string;
}

/** @throws DmaError EINVAL when physical addresses are asked for, and the kernel does not tell them */
export function decideIovaMode(facts: IovaFacts): IovaDecision {
  const { mode, reason } = choose(facts);
  if (mode === 'va' || facts.physicalAddresses) return { ...facts, mode, reason };
  throw new DmaError({
    code: 'EINVAL',
    operation: 'iovaMode',
    reason: `IOVA mode pa (${reason}) needs physical addresses, which can not be had`,
    hint: 'it takes hugepages (ordinary pages move), and CAP_SYS_ADMIN to read /proc/self/pagemap; with an IOMMU use va',
  });
}

function choose({ forced, votes, physicalAddresses, iommu }: IovaFacts): Pick<IovaDecision, 'mode' | 'reason'> {
  if (forced !== undefined) return { mode: forced, reason: 'the program asked for it' };
  const [va, pa] = (['va', 'pa'] as const).map((wish) => votes.filter((vote) => vote.wish === wish));
  const names = (group: readonly IovaVote[]): string => group.map((vote) => vote.bus).join(', ');
  if (va.length > 0 && pa.length === 0) return { mode: 'va', reason: `${names(va)} wants it` };
  if (pa.length > 0 && va.length === 0) return { mode: 'pa', reason: `${names(pa)} wants it` };
  const split = va.length > 0 ? `${names(va)} wants va and ${names(pa)} wants pa, and ` : '';
  if (!physicalAddresses) return { mode: 'va', reason: `${split}physical addresses can not be had` };
  if (iommu) return { mode: 'va', reason: `${split}the machine has IOMMU groups` };
  return { mode: 'pa', reason: `${split}physical addresses can be had, and there is no IOMMU` };
}

/** Has the machine any IOMMU group? Those that VFIO makes up for devices without an IOMMU are none. */
export function hasIommuGroups({ kernel }: Pick<Platform, 'kernel'>): boolean {
  const directory = '/sys/kernel/iommu_groups';
  return kernel
    .list(directory)
    .some((group) => kernel.readText(`${directory}/${group}/name`)?.trim() !== 'vfio-noiommu');
}

/** Are there hugepages, and does the kernel tell this process physical addresses? Asks about a page of its own. */
export function hasPhysicalAddresses(platform: Platform): boolean {
  if (platform.limitation !== undefined) return false;
  // What shows no hugepages to this user shows no physical addresses either.
  const sizes = unlessFails(NO_PERMISSION, () => new HugePages(platform.kernel).sizes()) ?? [];
  if (!sizes.some(({ total }) => total > 0)) return false;
  const { memory } = platform;
  const length = memory.pageSize;
  const va = memory.map({ length, populate: true });
  try {
    return memory.frames(va, length, 1)?.[0] !== undefined;
  } finally {
    memory.unmap(va, length);
  }
}
