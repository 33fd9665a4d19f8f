/**
 * What devices use as addresses of the library's own memory: virtual addresses, which needs an IOMMU or software
 * translation, or physical ones. Decided once per `Eal`, by DPDK's rules (rte_eal_init, rte_bus_get_iommu_class).
 */
import { DmaError, NO_PERMISSION, unlessFails } from '../errors.js';
import type { Platform } from '../platform/ports.js';
import { HugePages } from './hugepages.js';

/** `va`: a page's IOVA is its virtual address wherever a domain allows that. `pa`: it is its physical address. */
export type IovaMode = 'va' | 'pa';

/** The decision, what it depends on, and why. */
export interface IovaDecision {
  readonly mode: IovaMode;
  /** The reason, as a clause. */
  readonly reason: string;
  /** What the program asked for; it decides if given. */
  readonly forced?: IovaMode;
  /** What each bus wants; `any`: its devices work with both. */
  readonly votes: readonly { readonly bus: string; readonly wish: IovaMode | 'any' }[];
  /** Are there hugepages, and does the kernel tell their physical addresses? */
  readonly physicalAddresses: boolean;
  /** Does the machine have IOMMU groups? */
  readonly iommu: boolean;
}

/** What the decision depends on. */
export type IovaFacts = Omit<IovaDecision, 'mode' | 'reason'>;

/** @throws DmaError EINVAL if physical addresses are required, and the kernel does not tell them */
export function decideIovaMode(facts: IovaFacts): IovaDecision {
  const { mode, reason } = choose(facts);
  if (mode === 'va' || facts.physicalAddresses) return { ...facts, mode, reason };
  throw new DmaError({
    code: 'EINVAL',
    operation: 'iovaMode',
    reason: `IOVA mode pa (${reason}) needs physical addresses, which are not available`,
    hint: 'it takes hugepages (ordinary pages move), and CAP_SYS_ADMIN to read /proc/self/pagemap; with an IOMMU use va',
  });
}

function choose({ forced, votes, physicalAddresses, iommu }: IovaFacts): Pick<IovaDecision, 'mode' | 'reason'> {
  if (forced !== undefined) return { mode: forced, reason: 'the program asked for it' };
  const [va, pa] = (['va', 'pa'] as const).map((wish) => votes.filter((vote) => vote.wish === wish));
  const names = (group: IovaFacts['votes']): string => group.map((vote) => vote.bus).join(', ');
  if (va.length > 0 && pa.length === 0) return { mode: 'va', reason: `${names(va)} wants it` };
  if (pa.length > 0 && va.length === 0) return { mode: 'pa', reason: `${names(pa)} wants it` };
  const split = va.length > 0 ? `${names(va)} wants va and ${names(pa)} wants pa, and ` : '';
  if (!physicalAddresses) return { mode: 'va', reason: `${split}physical addresses are not available` };
  if (iommu) return { mode: 'va', reason: `${split}the machine has IOMMU groups` };
  return { mode: 'pa', reason: `${split}physical addresses are available, and there is no IOMMU` };
}

/** Does the machine have IOMMU groups? Groups that VFIO makes up for devices without an IOMMU do not count. */
export function hasIommuGroups({ kernel }: Pick<Platform, 'kernel'>): boolean {
  const directory = '/sys/kernel/iommu_groups';
  return kernel
    .list(directory)
    .some((group) => kernel.readText(`${directory}/${group}/name`)?.trim() !== 'vfio-noiommu');
}

/** Are there hugepages, and does the kernel tell this process physical addresses? Checked with a page of its own. */
export function hasPhysicalAddresses(platform: Platform): boolean {
  if (platform.limitation !== undefined) return false;
  // If this user may not read about hugepages, physical addresses are hidden too.
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
