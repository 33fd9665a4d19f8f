/**
 * What one client has mapped for the device, on the server's side: how accesses of the device find the client's memory.
 */
import { DmaError, invalid, isDmaError, undoAll, withUndo } from '../errors.js';
import { LentMemory } from '../memory/lent-memory.js';
import type { Platform } from '../platform/ports.js';
import { Range } from '../ranges.js';
import { RangeMap } from '../range-map.js';
import { alignDown, alignUp, formatSize, isAddress, type Va } from '../units.js';
import type { DeviceDma } from './devices/model.js';
import { COMMAND, operationOf } from './messages.js';
import type { DmaMapRequest } from './messages.js';

/** Accesses regions whose memory only the client can reach. */
export interface DmaMessages {
  read(iova: number, into: Uint8Array): Promise<void>;
  write(iova: number, from: Uint8Array): Promise<void>;
}

interface RegionMapping {
  readonly memory: LentMemory;
  /** Start of the mapping; the region begins `skip` bytes into it. */
  readonly va: Va;
  readonly skip: number;
  /** May its pages be missing, so that it must be copied by system calls? */
  readonly guarded: boolean;
}

/** One region of the client, by how its memory is accessed. */
class Region {
  constructor(
    readonly request: DmaMapRequest,
    /** Without one, the memory is reached by messages. */
    readonly mapping: RegionMapping | undefined,
  ) {}

  get end(): number {
    return this.request.iova + this.request.length;
  }

  /** `length` bytes at `at`, for use inside the server; `undefined` if they are copied by calls or messages. */
  bytes(at: number, length: number): Uint8Array | undefined {
    if (this.mapping === undefined || this.mapping.guarded) return undefined;
    const start = this.mapping.skip + at;
    return this.mapping.memory.bytes().subarray(start, start + length);
  }

  /** As {@link bytes}, for a model. */
  lend(at: number, length: number): Uint8Array | undefined {
    if (this.mapping === undefined || this.mapping.guarded) return undefined;
    const start = this.mapping.skip + at;
    return this.mapping.memory.lend().subarray(start, start + length);
  }

  /** The client unmaps it. @throws DmaError of {@link LentMemory.close}; nothing has changed then */
  close(): void {
    this.mapping?.memory.close();
  }

  /** The client is gone. */
  abandon(): void {
    this.mapping?.memory.abandon();
  }
}

function notMapped(range: Range): DmaError {
  return new DmaError({ code: 'EFAULT', operation: 'device DMA', reason: 'not all of it is mapped', range });
}

/**
 * The DMA regions of one client. Looking up an address takes O(log n).
 *
 * A region with a descriptor is mapped, and accessed directly if its file is sealed against shrinking. Otherwise the
 * client could kill this process by truncating the file, so the mapping is copied by system calls, which fail for
 * missing pages. Hugepages can be taken out of a sealed file, too: those of a client that is not trusted are copied so.
 *
 * Nothing is called that takes the lock of a file's inode, such as pwrite(2): a client can hold that lock for ever, with
 * a write(2) whose data is in a page that does not come (FUSE, userfaultfd). Only for a client that is trusted a missing
 * seal is added, which takes it. A region without a descriptor is accessed by messages.
 */
export class DmaTable implements DeviceDma {
  /** Set while a client is connected. */
  messages: DmaMessages | undefined;
  /** Is the client trusted not to take pages away that it has shared? */
  trusted = false;
  /** The most regions of this client. */
  maxMaps: number;
  readonly #regions = new RangeMap<Region>();

  /** @param maxMaps the most regions */
  constructor(
    private readonly platform: Platform,
    maxMaps: number,
  ) {
    this.maxMaps = maxMaps;
  }

  get size(): number {
    return this.#regions.size;
  }

  /**
   * Adds a region.
   *
   * @param fd its descriptor, if any; the table owns it from now on, even on error
   * @throws DmaError EEXIST (overlap), ENOSPC (too many), EINVAL (past the end of the file, or not a file), EACCES (the
   *   descriptor does not allow it), ENOMEM (its hugepages are not available to this process), or the error of mmap
   */
  map(request: DmaMapRequest, fd: number | undefined): void {
    try {
      this.#checkNew(request);
      const mapping = fd === undefined ? undefined : this.#mapFile(request, fd);
      this.#regions.insert(request.iova, request.length, new Region(request, mapping));
    } finally {
      if (fd !== undefined) this.platform.files.closeForeign(fd);
    }
  }

  /**
   * Removes a region. Views of it become empty.
   *
   * @throws DmaError ENOENT unless exactly this region was mapped; EBUSY if a model keeps views of too many removed
   *   regions
   */
  unmap(iova: number, length: number): void {
    const region = isAddress(iova) ? this.#regions.exact(iova, length) : undefined;
    if (region === undefined) {
      const reason = 'no region is exactly this range';
      throw new DmaError({ code: 'ENOENT', operation: operationOf(COMMAND.DMA_UNMAP), reason });
    }
    region.close();
    this.#regions.delete(iova);
  }

  /** Removes all regions. */
  clear(): void {
    const regions = [...this.#regions.values()];
    this.#regions.clear();
    for (const region of regions) region.abandon();
  }

  direct(iova: number, length: number, access: 'read' | 'write'): Uint8Array | undefined {
    const region = this.#check(iova, length, access);
    return region?.lend(iova - region.request.iova, length);
  }

  address(iova: number, length: number, access: 'read' | 'write'): number {
    const region = this.#check(iova, length, access);
    if (region?.mapping === undefined || region.mapping.guarded) return -1;
    return region.mapping.va + region.mapping.skip + iova - region.request.iova;
  }

  read(iova: number, into: Uint8Array): Promise<void> | undefined {
    return this.#transfer(iova, into, 'read');
  }

  write(iova: number, from: Uint8Array): Promise<void> | undefined {
    return this.#transfer(iova, from, 'write');
  }

  #checkNew({ iova, length }: DmaMapRequest): void {
    const operation = operationOf(COMMAND.DMA_MAP);
    const range = new Range(iova, length, operation);
    const other = this.#regions.overlapping(iova, range.end)?.request;
    if (other !== undefined) {
      const there = new Range(other.iova, other.length).toString();
      throw new DmaError({ code: 'EEXIST', operation, range, reason: `${there} is mapped there` });
    }
    if (this.#regions.size >= this.maxMaps)
      throw new DmaError({ code: 'ENOSPC', operation, range, reason: `${this.maxMaps} regions are mapped already` });
  }

  #mapFile({ offset, length, writable }: DmaMapRequest, fd: number): RegionMapping {
    const { files, memory } = this.platform;
    const operation = operationOf(COMMAND.DMA_MAP);
    const what = files.foreign(fd);
    if (what !== 'memory' && what !== 'file') {
      const hint = 'memory is a memfd, or a file of tmpfs, hugetlbfs or a local file system';
      throw invalid(operation, `the descriptor is a ${what}, not such a file`, { hint });
    }
    // The seal is checked before the size, which can not shrink any more then.
    const sealed = files.sealedAgainstShrinking(fd, this.trusted);
    const status = files.status(fd);
    if (status.kind !== 'file') throw invalid(operation, `the descriptor is a ${status.kind}, not a file`);
    const { pageSize } = status;
    if (offset + length > alignUp(status.size, pageSize))
      throw invalid(operation, `${formatSize(length)} from ${offset} on of a file of ${formatSize(status.size)}`);
    if (writable && !status.writable)
      throw new DmaError({
        code: 'EACCES',
        operation,
        reason: 'a region to write to, of a file that can only be read',
      });
    const start = alignDown(offset, pageSize);
    const mapped = alignUp(offset + length, pageSize) - start;
    const huge = pageSize > memory.pageSize;
    const guarded = (huge ? !this.trusted : !sealed) || mapped > memory.maxView;
    const va = memory.map({ fd, offset: start, length: mapped, writable, readOnly: guarded && !writable });
    try {
      // Hugepages that the client has not touched may not be available to this process (a limit of its control
      // group).
      if (huge) memory.populate(va, mapped, writable ? 'write' : 'read');
    } catch (error) {
      throw withUndo(error, operation, undoAll([() => memory.unmap(va, mapped)]));
    }
    return { memory: new LentMemory(memory, new Range(va, mapped)), va, skip: offset - start, guarded };
  }

  /** Checks a whole access. Returns the region if one region contains it. */
  #check(iova: number, length: number, access: 'read' | 'write'): Region | undefined {
    const first = isAddress(iova) ? this.#regions.at(iova) : undefined;
    // What nearly every access is: inside of one region that grants it.
    if (first !== undefined && length > 0 && isAddress(length) && iova + length <= first.end) {
      const { readable, writable } = first.request;
      if (access === 'read' ? readable : writable) return first;
    }
    const range = new Range(iova, length, 'device DMA');
    for (let region = first, at = iova; ; region = this.#regions.at(at)) {
      if (region === undefined) throw notMapped(range);
      if (!(access === 'read' ? region.request.readable : region.request.writable))
        throw new DmaError({ code: 'EACCES', operation: 'device DMA', reason: `mapped, but not for ${access}`, range });
      at = region.end;
      if (at >= range.end) return region === first ? region : undefined;
    }
  }

  #transfer(iova: number, data: Uint8Array, access: 'read' | 'write'): Promise<void> | undefined {
    if (data.length === 0) return undefined;
    const whole = this.#check(iova, data.length, access);
    if (whole !== undefined) return this.#transferIn(whole, iova, data, access);
    return this.#transferPieces(iova, data, access);
  }

  /** A checked access that spans regions: one region after the other. */
  #transferPieces(iova: number, data: Uint8Array, access: 'read' | 'write'): Promise<void> | undefined {
    for (let at = 0; at < data.length;) {
      const region = this.#regions.at(iova + at);
      if (region === undefined) throw notMapped(new Range(iova + at, data.length - at));
      const end = Math.min(data.length, region.end - iova);
      const wait = this.#transferIn(region, iova + at, data.subarray(at, end), access);
      if (wait !== undefined) return wait.then(() => this.#transferPieces(iova + end, data.subarray(end), access));
      at = end;
    }
    return undefined;
  }

  #transferIn(region: Region, iova: number, data: Uint8Array, access: 'read' | 'write'): Promise<void> | undefined {
    const at = iova - region.request.iova;
    if (region.mapping?.guarded === true) return this.#copy(region.mapping, iova, at, data, access);
    const bytes = region.bytes(at, data.length);
    if (bytes !== undefined) {
      if (access === 'read') data.set(bytes);
      else bytes.set(data);
      return undefined;
    }
    if (this.messages !== undefined)
      return access === 'read' ? this.messages.read(iova, data) : this.messages.write(iova, data);
    throw new DmaError({ code: 'ENOTCONN', operation: 'device DMA', reason: 'the client is gone' });
  }

  #copy({ va, skip }: RegionMapping, iova: number, at: number, data: Uint8Array, access: 'read' | 'write'): undefined {
    const { memory } = this.platform;
    try {
      if (access === 'read') memory.copyFrom((va + skip + at) as Va, data);
      else memory.copyTo((va + skip + at) as Va, data);
    } catch (cause) {
      if (!isDmaError(cause)) throw cause;
      const reason = 'the client has taken pages out of the memory that it gave';
      throw new DmaError({
        code: 'EFAULT',
        operation: 'device DMA',
        reason,
        range: new Range(iova, data.length),
        cause,
      });
    }
  }
}
