/** Maps the regions of a vfio-user device from the descriptors that its server sent. */
import { isDmaError } from '../errors.js';
import type { Platform } from '../platform/ports.js';
import { MappedArea } from '../platform/registers/region-registers.js';
import { alignUp } from '../units.js';
import type { SparseArea } from './messages.js';

/** A region that may be mapped. */
interface Mappable {
  readonly mappable: boolean;
  readonly fd: number | undefined;
  readonly fdOffset: number;
  readonly areas: readonly SparseArea[];
}

/** Which regions to map. */
export interface MapChoice {
  /** See `ClientOptions.mmap`. */
  readonly mmap: 'trust' | 'sealed' | 'never';
  /**
   * May a missing seal be added to the server's file? That takes the lock of the file's inode, which a hostile server
   * can hold for ever.
   */
  readonly seals: boolean;
}

/** Maps the parts of a region that can be mapped; the rest is accessed by messages. */
export function mapAreas(platform: Platform, region: Mappable, choice: MapChoice): MappedArea[] {
  const { memory } = platform;
  const { fd, fdOffset } = region;
  const mapped: MappedArea[] = [];
  try {
    const look = lookAt(platform, region, choice);
    if (fd === undefined || typeof look === 'string') return mapped;
    for (const area of region.areas)
      if (look.takes(area)) mapped.push(new MappedArea(memory, fd, fdOffset, area, look.page > memory.pageSize));
  } catch (error) {
    // A part that can not be mapped here (no memory, no system calls) still works by message.
    if (!isDmaError(error)) throw error;
  }
  return mapped;
}

/** Why a region is accessed by messages although its server allows mapping it; `undefined` if it is mapped. */
export function whyNotMapped(platform: Platform, region: Mappable, choice: MapChoice): string | undefined {
  if (!region.mappable || region.fd === undefined) return undefined;
  try {
    const look = lookAt(platform, region, choice);
    if (typeof look === 'string') return look;
    return region.areas.some(look.takes) ? undefined : 'its parts do not begin and end on pages of its file';
  } catch (error) {
    if (!isDmaError(error)) throw error;
    return error.reason;
  }
}

/** The parts of a region that can be mapped, or why none can. */
function lookAt(
  { files, memory }: Platform,
  { fd, fdOffset }: Mappable,
  { mmap, seals }: MapChoice,
): string | { readonly page: number; readonly takes: (area: SparseArea) => boolean } {
  if (fd === undefined) return 'the server sent no descriptor for it';
  if (mmap === 'never') return 'mmap=never is set';
  const what = files.foreign(fd);
  if (mmap === 'sealed' && what !== 'memory') return `its descriptor is a ${what}, not a memfd`;
  if (what === 'socket' || what === 'eventfd') return `its descriptor is a ${what}`;
  // The seal is checked before the size, because a sealed file can not shrink.
  const sealed = what === 'memory' && files.sealedAgainstShrinking(fd, seals);
  const { kind, size, writable, pageSize: page } = files.status(fd);
  if (!writable) return 'its descriptor is read-only';
  if (mmap === 'sealed' && !sealed) return 'the server could truncate its file';
  if (mmap === 'sealed' && page > memory.pageSize) return 'the server could remove hugepages from its file';
  const takes = (area: SparseArea): boolean => {
    const start = fdOffset + area.offset;
    if (start % page !== 0 || area.offset % page !== 0 || area.length % page !== 0 || area.length > memory.maxView)
      return false;
    return kind !== 'file' || start + area.length <= alignUp(size, page);
  };
  return { page, takes };
}
