/**
 * How much memory to take, and of which pages, when a heap has no room: the policy alone.
 *
 * A heap grows by as much as it has already, so that however much lives in it is in a handful of extents, each of which is
 * one mapping for a device. It leaves half of the free hugepages to others, and what it really needs is always asked for
 * when the larger wish is not granted.
 */
import { alignUp, GiB, KiB, MiB } from '../../units.js';

/** Most that is taken beyond what is needed, in bytes: it is faulted in at once, which takes time. */
const MOST_AHEAD = GiB;
/** Least that is taken of ordinary pages, in bytes. */
const LEAST = 2 * MiB;
/** Memory is taken in multiples of the largest ordinary page that peers have, for the devices that come later, in bytes. */
const COMMON_UNIT = 64 * KiB;

/** What there has to be room for. */
export interface Need {
  /** bytes */
  readonly size: number;
  /** bytes, a power of two */
  readonly align: number;
  /** bytes, a power of two; 0 for none */
  readonly boundary: number;
}

/** Pages that could be taken. */
export interface PageChoice {
  /** bytes */
  readonly pageSize: number;
  /** How many are free; Infinity when the system does not tell. */
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
  /** The first page is at a multiple of so many bytes. */
  readonly alignment: number;
}

/**
 * What to try, in order. The largest hugepages that the growth fills come first, then larger ones, the smallest first,
 * then ordinary pages.
 *
 * @param total bytes that the heap has
 * @param exact never take more than is needed
 * @param unit what devices map comes in multiples of so many bytes, a power of two
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

/** How many neighbouring pages are surely enough, wherever they begin. */
function pagesFor({ size, align, boundary }: Need, pageSize: number): number {
  // A block that begins on a boundary does not cross it.
  const slack = Math.max(align, boundary > pageSize ? boundary : 0, pageSize) - pageSize;
  return alignUp(size + slack, pageSize) / pageSize;
}
