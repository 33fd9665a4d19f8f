/** The contract of a DMA address space. Everything else is done once, above it, in domain.ts. */
import type { Backing } from '../memory/area.js';
import type { Range } from '../ranges.js';
import type { Iova, Va } from '../units.js';

export type { Backing };

/** What a device may do with mapped memory, as the device sees it: `read` means memory to device. */
export type DmaAccess = 'read' | 'write' | 'read-write';

/** Does `have` include `want`? */
export function grants(have: DmaAccess, want: DmaAccess): boolean {
  return have === want || have === 'read-write';
}

/** What peers over the network may do with mapped memory through its rkey. `read-write` includes atomics. */
export type RemoteAccess = 'none' | 'read' | 'write' | 'read-write';

/** Are the pages of a mapping pinned as long as it lives, or faulted in by the device on demand? */
export type Paging = 'pinned' | 'on-demand';

/** Properties of a mapping that is a region with keys (verbs). */
export interface RegionTraits {
  readonly remote: RemoteAccess;
  readonly paging: Paging;
}

/** The default: pinned, and no rights for peers. */
export const LOCAL: RegionTraits = { remote: 'none', paging: 'pinned' };

/**
 * The rules for mappings of one address space. They may change while the domain lives, and are read again for each
 * mapping.
 */
export interface Constraints {
  /** bytes, a power of two: VA, IOVA and length of every mapping are multiples of it */
  readonly granule: number;
  /** Where IOVAs can be; ascending and disjoint. Unused if `iova` is `'ignored'`. */
  readonly windows: readonly Range<Iova>[];
  /** The most mappings at a time; `Infinity` if there is no known limit. */
  readonly entryLimit: number;
  /**
   * Who chooses the IOVA. `'free'`: anyone, inside the windows. `'identity'`: nobody; it is the VA. `'ignored'`: the
   * address space ignores IOVAs and devices use VAs (verbs), so another IOVA is refused. `'table'`: only the area's
   * IOVA table, because nothing translates and IOVAs are physical addresses.
   */
  readonly iova: 'free' | 'identity' | 'ignored' | 'table';
  /** Can a part of a mapping be unmapped? */
  readonly partialUnmap: boolean;
  /** Does a mapping pin pages, so that they count against RLIMIT_MEMLOCK? */
  readonly pins: boolean;
  /**
   * Present if mappings are regions with keys (verbs): peers can get rights, and a mapping is one segment, because one
   * key covers all of it.
   */
  readonly regions?: {
    /** Can the device page on demand? */
    readonly onDemand: boolean;
  };
}

/** One contiguous piece to map, by one call of the address space. */
export interface Segment {
  readonly va: Va;
  readonly iova: Iova;
  /** bytes */
  readonly length: number;
  readonly access: DmaAccess;
  /** `undefined` for memory without a descriptor */
  readonly backing: Backing | undefined;
  /** Absent: no rights for peers, all pages pinned. Set only if the constraints have `regions`. */
  readonly region?: RegionTraits;
}

/** The keys of a mapping (verbs), which the device needs instead of the IOVA or in addition to it. */
export interface MapKeys {
  readonly lkey: number;
  readonly rkey: number;
}

/**
 * What a vendor implements. The arguments of its calls were checked against the constraints and against everything
 * mapped. A call that fails throws a `DmaError` and leaves nothing mapped.
 */
export interface AddressSpace {
  /** `vfio-user`, `vfio-type1`, `iommufd`, `verbs`, `emulated`, `identity` */
  readonly kind: string;
  /** The name in messages. Absent: the name of its first device. */
  readonly name?: string;
  readonly constraints: Constraints;
  /** Maps a segment. @returns its keys, if the address space has keys */
  map(segment: Segment): MapKeys | undefined;
  /**
   * Unmaps a segment that was given to `map` or, with `partialUnmap`, a part of one.
   * @returns the number of bytes that the other side reports as unmapped; it is compared with the segment's length
   */
  unmap(segment: Segment): number;
  /**
   * As `map`, without blocking the event loop. Absent: `map` is called between turns of the loop, which suits calls
   * that take no time.
   */
  mapAsync?(segment: Segment): Promise<MapKeys | undefined>;
  /** As `unmap`, without blocking the event loop. */
  unmapAsync?(segment: Segment): Promise<number>;
  /**
   * For address spaces whose other side can keep memory after it was lost: resolves once it can reach none of it any
   * more. `undefined`, or absent: it reaches nothing. `unneeded` is aborted if the result is not needed any more,
   * because the memory is never handed out again: stop watching the other side then.
   */
  lingering?(unneeded: AbortSignal): Promise<void> | undefined;
  /** Notes a segment that another process mapped in it, and handed over with it. Absent: nothing has to be noted. */
  takeOver?(segment: Segment): void;
  /** Drops what is still mapped, after the last device left. Devices may join again later. */
  close(): void;
}
