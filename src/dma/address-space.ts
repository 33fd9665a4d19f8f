/** The contract of a DMA address space. Everything that it does not bring is done once, above it, in domain.ts. */
import type { Backing } from '../memory/area.js';
import type { Range } from '../ranges.js';
import type { Iova, Va } from '../units.js';

export type { Backing };

/** What a device may do with mapped memory, seen from the device: `read` is memory to device. */
export type DmaAccess = 'read' | 'write' | 'read-write';

/** Does `have` include all that `want` asks for? */
export function grants(have: DmaAccess, want: DmaAccess): boolean {
  return have === want || have === 'read-write';
}

/** What peers over the network may do with mapped memory, by its rkey. `read-write` includes atomics. */
export type RemoteAccess = 'none' | 'read' | 'write' | 'read-write';

/** Are the pages of a mapping held in memory as long as it lives, or fetched by the device as it needs them? */
export type Paging = 'pinned' | 'on-demand';

/** What a mapping is besides, where mappings are regions with keys (verbs). */
export interface RegionTraits {
  readonly remote: RemoteAccess;
  readonly paging: Paging;
}

/** What mappings are unless they are asked to be otherwise: pinned, and nothing to peers. */
export const LOCAL: RegionTraits = { remote: 'none', paging: 'pinned' };

/** What holds for every mapping of one address space. May change while the domain lives; it is read anew for each mapping. */
export interface Constraints {
  /** Bytes; a power of two. VA, IOVA and length of every mapping are multiples of it. */
  readonly granule: number;
  /** Where IOVAs can be; ascending, disjoint. Ignored when `iova` is `'ignored'`. */
  readonly windows: readonly Range<Iova>[];
  /** How many mappings the domain takes at once; `Infinity` when it tells no limit. */
  readonly entryLimit: number;
  /**
   * Who chooses the IOVA: `'free'`, anyone, inside the windows; `'identity'`, nobody, it is the VA; `'ignored'`, the
   * address space pays no attention and devices use the VA (verbs), so that asking for another one is refused; `'table'`, the
   * area's IOVA table alone, since nothing translates and IOVAs are physical addresses.
   */
  readonly iova: 'free' | 'identity' | 'ignored' | 'table';
  /** Can a part of a mapping be unmapped? */
  readonly partialUnmap: boolean;
  /** Does mapping pin pages, so that they count against RLIMIT_MEMLOCK? */
  readonly pins: boolean;
  /**
   * Present where mappings are regions with keys (verbs): peers can have rights to them, and a mapping is one piece, since
   * it has one key.
   */
  readonly regions?: {
    /** Can the device page on demand? */
    readonly onDemand: boolean;
  };
}

/** One contiguous piece to map: what one call of the address space does. */
export interface Segment {
  readonly va: Va;
  readonly iova: Iova;
  /** bytes */
  readonly length: number;
  readonly access: DmaAccess;
  /** `undefined` for memory that has no descriptor */
  readonly backing: Backing | undefined;
  /** Absent: no rights for peers, all pages pinned. Anything else only where the constraints have `regions`. */
  readonly region?: RegionTraits;
}

/** Keys that some address spaces give out for a mapping (verbs): what the device wants instead of, or besides, the IOVA. */
export interface MapKeys {
  readonly lkey: number;
  readonly rkey: number;
}

/**
 * An address space: what a vendor brings. Its calls are given arguments that have been checked against the constraints and
 * against all that is mapped, so that they only do the work: they throw a `DmaError` when it failed and nothing was mapped.
 */
export interface AddressSpace {
  /** `vfio-user`, `vfio-type1`, `iommufd`, `verbs`, `emulated`, `identity` */
  readonly kind: string;
  /** What messages call it. Absent: as its first device. */
  readonly name?: string;
  readonly constraints: Constraints;
  /** Maps a segment. @returns its keys, where the address space gives out any */
  map(segment: Segment): MapKeys | undefined;
  /**
   * Unmaps a segment that `map` was given (or, with `partialUnmap`, a part of one).
   * @returns the bytes that the other side says it unmapped; compared with the segment's length
   */
  unmap(segment: Segment): number;
  /**
   * As `map`, without blocking the event loop. Absent: `map` is called between turns of the loop, which is right where it
   * takes no time.
   */
  mapAsync?(segment: Segment): Promise<MapKeys | undefined>;
  /** As `unmap`, without blocking the event loop. */
  unmapAsync?(segment: Segment): Promise<number>;
  /**
   * For spaces whose other side holds on to memory by itself, asked when it has been lost: resolves when nothing is reached any
   * more. `undefined`, or absent: nothing is. `unneeded` is aborted when nobody has to know any more, because none of the memory
   * can be given to anybody: what watches the other side can go then.
   */
  lingering?(unneeded: AbortSignal): Promise<void> | undefined;
  /** Drops what is still mapped, after the last device left. Devices may join again later. */
  close(): void;
}
