/** The calls of iommufd that map: their arguments, filled for a segment. */
import type { Backing, DmaAccess, Segment } from '../dma/address-space.js';
import { Struct } from '../platform/struct.js';
import * as iommufd from '../platform/uapi/iommufd.js';
import type { Iova, Va } from '../units.js';

const {
  IOCTL,
  IOMMU_IOAS_COPY: COPY,
  IOMMU_IOAS_MAP: MAP,
  IOMMU_IOAS_MAP_FILE: MAP_FILE,
  IOMMU_IOAS_UNMAP: UNMAP,
} = iommufd;

/** A device's access as flags of the three mapping calls. The IOVA is always fixed. */
const MAP_FLAGS: Readonly<Record<DmaAccess, number>> = {
  read: iommufd.IOMMU_IOAS_MAP_FIXED_IOVA | iommufd.IOMMU_IOAS_MAP_READABLE,
  write: iommufd.IOMMU_IOAS_MAP_FIXED_IOVA | iommufd.IOMMU_IOAS_MAP_WRITEABLE,
  'read-write': iommufd.IOMMU_IOAS_MAP_FIXED_IOVA | iommufd.IOMMU_IOAS_MAP_READABLE | iommufd.IOMMU_IOAS_MAP_WRITEABLE,
};

/** A mapping; without a descriptor it is mapped by its VA. */
export type MapSegment = Pick<Segment, 'va' | 'iova' | 'length' | 'access'> & { readonly backing?: Backing };

/** The arguments of the map and unmap calls of one IOAS. */
export interface Arguments {
  readonly map: Struct;
  readonly mapFile: Struct;
  readonly copy: Struct;
  readonly unmap: Struct;
}

/** One of the mapping calls. */
export interface MappingCall {
  readonly request: number;
  readonly argument: Struct;
  readonly name: string;
  readonly mapped: { readonly iova: Iova; readonly length: number };
}

export function newArguments(ioas: number): Arguments {
  return {
    map: new Struct(MAP.sizeof).set32(MAP.size, MAP.sizeof).set32(MAP.ioas_id, ioas),
    mapFile: new Struct(MAP_FILE.sizeof).set32(MAP_FILE.size, MAP_FILE.sizeof).set32(MAP_FILE.ioas_id, ioas),
    copy: new Struct(COPY.sizeof).set32(COPY.size, COPY.sizeof).set32(COPY.dst_ioas_id, ioas),
    unmap: new Struct(UNMAP.sizeof).set32(UNMAP.size, UNMAP.sizeof).set32(UNMAP.ioas_id, ioas),
  };
}

/** Offsets of the fields that all mapping calls have. */
interface PlaceFields {
  readonly flags: number;
  readonly iova: number;
  readonly length: number;
}

const PLACE_OF_COPY: PlaceFields = { flags: COPY.flags, iova: COPY.dst_iova, length: COPY.length };

/** Fills in the fields that all mapping calls have. */
function place(
  argument: Struct,
  at: PlaceFields,
  iova: Iova,
  length: number,
  access: DmaAccess,
): MappingCall['mapped'] {
  argument.set32(at.flags, MAP_FLAGS[access]).set64(at.iova, iova).set64(at.length, length);
  return { iova, length };
}

export function mapCall({ map }: Arguments, va: Va, iova: Iova, length: number, access: DmaAccess): MappingCall {
  map.set64(MAP.user_va, va);
  const mapped = place(map, MAP, iova, length, access);
  return { request: IOCTL.IOMMU_IOAS_MAP, argument: map, name: 'IOMMU_IOAS_MAP', mapped };
}

export function mapFileCall(
  { mapFile }: Arguments,
  { fd, offset }: Backing,
  iova: Iova,
  length: number,
  access: DmaAccess,
): MappingCall {
  mapFile.set32(MAP_FILE.fd, fd).set64(MAP_FILE.start, offset);
  const mapped = place(mapFile, MAP_FILE, iova, length, access);
  return { request: IOCTL.IOMMU_IOAS_MAP_FILE, argument: mapFile, name: 'IOMMU_IOAS_MAP_FILE', mapped };
}

export function copyCall(
  { copy }: Arguments,
  source: number,
  from: Iova,
  iova: Iova,
  length: number,
  access: DmaAccess,
): MappingCall {
  copy.set32(COPY.src_ioas_id, source).set64(COPY.src_iova, from);
  const mapped = place(copy, PLACE_OF_COPY, iova, length, access);
  return { request: IOCTL.IOMMU_IOAS_COPY, argument: copy, name: 'IOMMU_IOAS_COPY', mapped };
}

/** Are these the same bytes of the same memory, and does the existing mapping grant the requested access? */
export function isSame(there: MapSegment, wanted: MapSegment): boolean {
  if (there.length !== wanted.length || (there.access === 'read' && wanted.access !== 'read')) return false;
  const a = there.backing;
  const b = wanted.backing;
  return a?.fd === b?.fd && a?.offset === b?.offset;
}
