/** Mapping the regions of a vfio-user device from the descriptors that its server sent. */
import { isDmaError } from '../errors.js';
import type { Platform } from '../platform/ports.js';
import { MappedArea } from '../platform/region-registers.js';
import { alignUp } from '../units.js';
import type { SparseArea } from './messages.js';

/** A region that may be mapped. */
interface Mappable {
  readonly fd: number | undefined;
  readonly fdOffset: number;
  readonly areas: readonly SparseArea[];
}

/**
 * Maps the parts of a region that can be mapped, and leaves out those that can not: what is left out is reached by message.
 *
 * @param trust map also from a file that the server can make shorter; an access past its end would then kill this process
 */
export function mapAreas(platform: Platform, region: Mappable, trust: boolean): MappedArea[] {
  const { files, memory } = platform;
  const { fd, fdOffset, areas } = region;
  const mapped: MappedArea[] = [];
  if (fd === undefined) return mapped;
  try {
    const { kind, size, writable, pageSize: page } = files.status(fd);
    const safe = kind === 'file' && files.sealedAgainstShrinking(fd, true);
    if (!writable || (!safe && !trust)) return mapped;
    for (const area of areas) {
      const start = fdOffset + area.offset;
      if (start % page !== 0 || area.offset % page !== 0 || area.length % page !== 0 || area.length > memory.maxView)
        continue;
      if (kind === 'file' && start + area.length > alignUp(size, page)) continue;
      mapped.push(new MappedArea(memory, fd, fdOffset, area, page > memory.pageSize));
    }
  } catch (error) {
    // What can not be mapped here (no memory, no system calls) still works by message.
    if (!isDmaError(error)) throw error;
  }
  return mapped;
}
