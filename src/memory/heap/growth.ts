/**
 * How much memory to take, and of which page size, when a heap has no room. Only the policy; nothing is taken here.
 *
 * A heap doubles when it grows, so that it has few extents however large it gets; each extent is one mapping for a
 * device. It leaves half of the free hugepages to others. If the larger amount is not available, it takes only what is
 * needed.
 */
import { alignUp, GiB, KiB, MiB } from '../../units.js';

/** The most that is taken beyond what is needed, in bytes: pages are faulted in at once, which takes time. */
const MOST_AHEAD = GiB;
/** The least that is taken of ordinary pages, in bytes. */
const LEAST = 2 * MiB;
/**
 * Memory is taken in multiples of the largest ordinary page size of common machines, in bytes, for devices that come
 * later.
 */
const COMMON_UNIT = 64 * KiB;

/** The block that there must be room for. */
export interface Need {
  /** bytes */
  readonly size: number;
  /** bytes, a power of two */
  readonly align: number;
  /** bytes, a power of two; 0 for none */
  readonly boundary: number;
}

/** Pages of one size that could be taken. */
export interface PageChoice {
  /** bytes */
  readonly pageSize: number;
  /** How many are free; Infinity if the system does not tell. */
  readonly free: number;
  /** How many bytes of this size may still be taken. */
  readonly left: number;
  readonly huge: boolean;
}

/** One attempt. */
export interface GrowthStep {
  /** bytes */
  readonly pageSize: number;
  readonly pages: number;
  /** The first page is at a multiple of this, in bytes. */
  readonly alignment: number;
}

/**
 * The attempts, in order: the largest hugepages that the growth fills, then larger hugepages from the smallest on, then
 * ordinary pages.
 *
 * @param total bytes that the heap has
 * @param exact never take more than is needed
 * @param unit devices map in multiples of this, in bytes, a power of two
 */
export function planGrowth(
  need: Need,
  total: number,
  choices: readonly PageChoice[],
  exact: boolean,
  unit = 1,
): GrowthStep[] {
  const ahead = exact ? 0 : Math.min(total, MOST_AHEAD);
  const volume = Math.max(need.size, ahead);
  const rank = ({ pageSize, huge }: PageChoice): number => {
    if (!huge) return Infinity;
    return pageSize <= volume ? -pageSize : pageSize;
  };
  return [...choices]
    .sort((a, b) => rank(a) - rank(b))
    .flatMap((choice) => {
      const { pageSize, free, left, huge } = choice;
      const most = Math.min(free, Math.floor(left / pageSize));
      const exactly = pagesFor(need, pageSize);
      const alignment = Math.max(unit, pageSize);
      const common = exact ? alignment : Math.max(alignment, COMMON_UNIT);
      const step = (wanted: number): GrowthStep => {
        const pages = alignUp(wanted, common / pageSize);
        return pages <= most
          ? { pageSize, pages, alignment: common }
          : { pageSize, pages: alignUp(wanted, alignment / pageSize), alignment };
      };
      const { pages } = step(exactly);
      if (pages > most) return [];
      const least = huge || exact ? 0 : LEAST;
      const wish = Math.floor(Math.max(ahead, least) / pageSize);
      const modest = huge ? Math.ceil(free / 2) : free;
      const more = Math.max(pages, Math.min(wish, modest, most));
      const steps = more > pages ? [step(more), step(exactly)] : [step(exactly)];
      return steps.filter((each) => each.pages <= most);
    });
}

/** How many adjacent pages are enough for the block, wherever they begin. */
function pagesFor({ size, align, boundary }: Need, pageSize: number): number {
  // A block that begins on a boundary does not cross it.
  const slack = Math.max(align, boundary > pageSize ? boundary : 0, pageSize) - pageSize;
  return alignUp(size + slack, pageSize) / pageSize;
}
