/** The file behind a namespace. */
import { fdatasync, read, readv, readvSync, write, writev, writevSync } from 'node:fs';
import { DmaError, ERRNO, isDmaError, undoAll, withUndo } from '../../../errors.js';
import { STATUS } from '../../../nvme/status.js';
import type { FileBatch, FilesPort, Platform } from '../../../platform/ports.js';
import { formatSize, KiB, MiB } from '../../../units.js';

/** A file, as the options name it. */
export interface ImageOptions {
  /** The path; without one, the content is in memory, and ends with the device. */
  readonly file: string | undefined;
  /** Bytes. A file that is not there, or is empty, gets this size; any other must have it. */
  readonly size: number | undefined;
  readonly readOnly: boolean;
  /** May it have holes that the file system has no room for? */
  readonly thin: boolean;
}

/** Size of an image without a file or a size. */
export const DEFAULT_SIZE = 64 * MiB;

/** Calls that read and write files, on other threads. */
export interface ImageCalls {
  readonly read: typeof read;
  readonly write: typeof write;
  readonly readv: typeof readv;
  readonly writev: typeof writev;
  readonly fdatasync: typeof fdatasync;
}

export const NODE_CALLS: ImageCalls = { read, write, readv, writev, fdatasync };

/** Called with a status of NVMe. */
export type Finished = (status: number) => void;

/** Calls of one image that run at once; the others wait, and neighbours among them become one call. */
const LANES = 4;
/** Most parts and bytes of one call. */
const MOST_PARTS = 64;
const MOST_BYTES = MiB;
/** What is written where a file can have no holes, as much as at a time. */
const ZEROES = new Uint8Array(256 * KiB);

interface Transfer {
  readonly position: number;
  readonly bytes: Uint8Array;
  readonly done: Finished;
}

/** An open image. All positions and lengths are in bytes. */
export class Image {
  readonly bytes: number;
  readonly readOnly: boolean;
  /** Is the file in memory, so that reading and writing it never waits for a disk? */
  readonly instant: boolean;
  /** Is it worth trying to read what may be in memory, without waiting for the disk? */
  triesCached: boolean;
  /** Can it have holes, which read as zeroes? */
  readonly canPunch: boolean;
  readonly #platform: Platform;
  readonly #calls: ImageCalls;
  readonly #fd: number;
  readonly #reads: Transfer[] = [];
  readonly #writes: Transfer[] = [];
  #running = 0;
  /** Do reads have the next turn, where there are writes too? */
  #readsNext = true;
  /** Those that wait for the sync that runs, and for the one after it. */
  #syncing: Finished[] | undefined;
  #syncNext: Finished[] = [];
  /** Has a write ended since the last sync began? A sync may miss what was still under way when it began. */
  #dirty = false;
  /** An earlier sync failed: what it should have written may be lost. */
  #lost = false;
  #closing = false;
  /** Where the file ends, in this turn; -1 until it was asked. */
  #knownEnd = -1;

  /**
   * Opens an image, and finds out what would go wrong later.
   *
   * @throws DmaError EACCES, ENOENT, EROFS ... (it can not be opened; a hint says how to read it only), EINVAL (not a
   *   plain file, or not the size that was asked for), EBUSY (another device uses it), ENOSPC (it has holes, and the
   *   file system no room for them)
   */
  constructor(platform: Platform, options: ImageOptions, calls: ImageCalls = NODE_CALLS) {
    const { files } = platform;
    const { fd, isNew } = openImage(platform, options);
    this.#platform = platform;
    this.#calls = calls;
    this.readOnly = options.readOnly;
    this.#fd = fd;
    try {
      const { bytes, instant } = checkImage(platform, fd, options);
      this.bytes = bytes;
      this.instant = instant;
      this.triesCached = !instant;
      this.canPunch = !this.readOnly && canPunch(platform, fd, this.bytes);
    } catch (error) {
      const { file } = options;
      const undo = [() => files.close(fd), () => (isNew && file !== undefined ? files.remove(file) : undefined)];
      throw withUndo(error, OPERATION, undoAll(undo));
    }
  }

  /** Bytes of storage that the file takes. */
  get allocated(): number {
    try {
      return Math.min(this.bytes, this.#platform.files.status(this.#fd).allocated);
    } catch {
      return this.bytes;
    }
  }

  /**
   * Adds a transfer to a batch: of an image that is not {@link instant} a read of what is in memory. A write must not follow after
   * {@link hasShrunk}.
   */
  addTo(batch: FileBatch, position: number, va: number, length: number, toHost: boolean): void {
    if (toHost) batch.read(this.#fd, position, va, length, !this.instant);
    else batch.write(this.#fd, position, va, length);
  }

  /** A batch with writes of {@link addTo} was carried out. */
  wroteBatch(): void {
    this.#dirty = true;
  }

  /** A transfer of a batch was not done as a whole. @param result what the kernel said of it */
  failedBatch(result: number): void {
    if (result === -ERRNO.ENOTSUP || result === -ERRNO.EINVAL) this.triesCached = false;
  }

  /** Reads at once; for images that are {@link instant}. Returns a status. */
  readNow(position: number, into: Uint8Array): number {
    try {
      const count = this.#platform.files.readAt(this.#fd, position, into);
      return count === into.length ? STATUS.SUCCESS : STATUS.UNRECOVERED_READ;
    } catch {
      return STATUS.UNRECOVERED_READ;
    }
  }

  /** Writes at once; for images that are {@link instant}. Returns a status. */
  writeNow(position: number, from: Uint8Array): number {
    this.#dirty = true;
    try {
      const count = this.#platform.files.writeAt(this.#fd, position, from, this.#end());
      // The file has become shorter: what was behind its end is lost.
      return count === from.length ? STATUS.SUCCESS : STATUS.WRITE_FAULT;
    } catch (error) {
      return writeStatus(error);
    }
  }

  /** As {@link readNow}, into several parts. */
  readPartsNow(position: number, parts: readonly Uint8Array[], length: number): number {
    try {
      return readvSync(this.#fd, parts, position) === length ? STATUS.SUCCESS : STATUS.UNRECOVERED_READ;
    } catch {
      return STATUS.UNRECOVERED_READ;
    }
  }

  /** As {@link writeNow}, from several parts. */
  writePartsNow(position: number, parts: readonly Uint8Array[], length: number): number {
    this.#dirty = true;
    if (this.hasShrunk()) return STATUS.WRITE_FAULT;
    try {
      // A file system that becomes full takes a part of it.
      return writevSync(this.#fd, parts, position) === length ? STATUS.SUCCESS : STATUS.CAPACITY_EXCEEDED;
    } catch (error) {
      return writeStatus(error);
    }
  }

  /** Fills `into`. Several calls in one turn of the event loop are one, if they are neighbours; see {@link submit}. */
  read(position: number, into: Uint8Array, done: Finished): void {
    this.#reads.push({ position, bytes: into, done });
  }

  /** Writes `from`, which must stay as it is until `done`. See {@link submit}. */
  write(position: number, from: Uint8Array, done: Finished): void {
    this.#writes.push({ position, bytes: from, done });
  }

  /** Has somebody made the file shorter? A write behind its end would hide that. */
  hasShrunk(): boolean {
    return this.#end() < this.bytes;
  }

  /** Begins what was asked for since the last call. A turn of the event loop ends with it. */
  submit(): void {
    while (this.#running < LANES && (this.#reads.length > 0 || this.#writes.length > 0)) {
      // In turn, so that neither waits for ever.
      const reads = this.#reads.length > 0 && (this.#writes.length === 0 || this.#readsNext);
      this.#readsNext = !reads;
      this.#begin(reads ? this.#reads : this.#writes, reads);
    }
    this.#knownEnd = -1;
  }

  /** `done` when all that was written before is on the disk. */
  sync(done: Finished): void {
    if (this.#lost) {
      done(STATUS.WRITE_FAULT);
      return;
    }
    // A sync that runs already may have begun before the last write.
    if (this.#syncing !== undefined) {
      this.#syncNext.push(done);
      return;
    }
    if (!this.#dirty) {
      done(STATUS.SUCCESS);
      return;
    }
    this.#sync([done]);
  }

  /** Makes a range read as zeroes, without storage if that is possible. */
  deallocate(position: number, length: number, done: Finished): void {
    if (!this.canPunch) this.#writeZeroes(position, length, done);
    else this.#change((files) => files.punchAsync(this.#fd, position, length), done);
  }

  /** Makes a range read as zeroes, and keeps storage for it. */
  zero(position: number, length: number, done: Finished): void {
    if (!this.canPunch || length <= ZEROES.length) {
      this.#writeZeroes(position, length, done);
      return;
    }
    this.deallocate(position, length, (status) => {
      if (status !== 0) done(status);
      else this.#change((files) => files.allocateRangeAsync(this.#fd, position, length), done);
    });
  }

  /** Closes the file when nothing uses it any more. Idempotent. */
  close(): void {
    if (this.#closing) return;
    this.#closing = true;
    this.#reads.length = 0;
    this.#writes.length = 0;
    this.#closeIfIdle();
  }

  #begin(queue: Transfer[], reads: boolean): void {
    const first = queue[0];
    let count = 1;
    let bytes = first.bytes.length;
    while (
      count < queue.length &&
      count < MOST_PARTS &&
      bytes < MOST_BYTES &&
      queue[count].position === first.position + bytes
    )
      bytes += queue[count++].bytes.length;
    const parts = queue.splice(0, count);
    if (!reads && this.hasShrunk()) {
      for (const part of parts) part.done(STATUS.WRITE_FAULT);
      return;
    }
    this.#running++;
    const ended = (error: Error | null, moved: number): void => {
      this.#running--;
      if (!reads) this.#dirty = true;
      const status = error === null ? STATUS.SUCCESS : reads ? STATUS.UNRECOVERED_READ : writeStatus(error);
      let end = 0;
      for (const part of parts) {
        end += part.bytes.length;
        if (status === STATUS.SUCCESS && moved < end)
          this.#rest(part, Math.max(0, part.bytes.length - end + moved), reads);
        else part.done(status);
      }
      this.submit();
      this.#closeIfIdle();
    };
    const { calls, fd } = { calls: this.#calls, fd: this.#fd };
    const buffers = parts.map((part) => part.bytes);
    if (reads) calls.readv(fd, buffers, first.position, ended);
    else calls.writev(fd, buffers, first.position, ended);
  }

  /** Where the file ends, as it was found in this turn of the event loop. */
  #end(): number {
    if (this.#knownEnd >= 0) return this.#knownEnd;
    try {
      this.#knownEnd = this.#platform.files.status(this.#fd).size;
    } catch {
      this.#knownEnd = 0;
    }
    return this.#knownEnd;
  }

  /** A transfer of which only `moved` bytes were moved by a call: goes on with the rest, up to the end of the file. */
  #rest({ position, bytes, done }: Transfer, moved: number, reads: boolean): void {
    if (moved === bytes.length) {
      done(STATUS.SUCCESS);
      return;
    }
    this.#running++;
    const left = bytes.subarray(moved);
    const next = (error: Error | null, count: number): void => {
      this.#running--;
      if (!reads) this.#dirty = true;
      if (error !== null) done(reads ? STATUS.UNRECOVERED_READ : writeStatus(error));
      else if (count === 0) done(reads ? STATUS.UNRECOVERED_READ : STATUS.WRITE_FAULT);
      else this.#rest({ position: position + moved, bytes: left, done }, count, reads);
      this.submit();
      this.#closeIfIdle();
    };
    if (reads) this.#calls.read(this.#fd, left, 0, left.length, position + moved, next);
    else this.#calls.write(this.#fd, left, 0, left.length, position + moved, next);
  }

  #writeZeroes(position: number, length: number, done: Finished): void {
    const here = Math.min(length, ZEROES.length);
    this.write(position, ZEROES.subarray(0, here), (status) => {
      if (status !== 0 || here === length) done(status);
      else this.#writeZeroes(position + here, length - here, done);
    });
    this.submit();
  }

  #sync(waiting: Finished[]): void {
    this.#syncing = waiting;
    this.#dirty = false;
    this.#running++;
    this.#calls.fdatasync(this.#fd, (error) => {
      // After a failure the kernel forgets what it could not write: a later success would mean nothing.
      if (error !== null) this.#lost = true;
      const status = error === null ? STATUS.SUCCESS : writeStatus(error);
      const next = this.#syncNext;
      this.#syncNext = [];
      this.#syncing = undefined;
      this.#running--;
      if (next.length > 0 && !this.#lost) this.#sync(next);
      else for (const done of next) done(status);
      for (const done of waiting) done(status);
      this.#closeIfIdle();
    });
  }

  /** Changes where the file has storage. */
  #change(begin: (files: FilesPort) => Promise<void>, done: Finished): void {
    if (this.hasShrunk()) {
      done(STATUS.WRITE_FAULT);
      return;
    }
    this.#running++;
    const ended = (status: number): void => {
      this.#running--;
      this.#dirty = true;
      done(status);
      this.submit();
      this.#closeIfIdle();
    };
    void begin(this.#platform.files).then(
      () => ended(STATUS.SUCCESS),
      (error: unknown) => ended(writeStatus(error)),
    );
  }

  #closeIfIdle(): void {
    if (this.#closing && this.#running === 0) {
      // Not twice.
      this.#running = -1;
      this.#platform.files.close(this.#fd);
    }
  }
}

/** The status of a write that failed. */
function writeStatus(error: unknown): number {
  const code = isDmaError(error) ? error.code : error instanceof Error && 'code' in error ? error.code : undefined;
  return code === 'ENOSPC' || code === 'EDQUOT' || code === 'EFBIG' ? STATUS.CAPACITY_EXCEEDED : STATUS.WRITE_FAULT;
}

const OPERATION = 'disk image';

function openImage(
  { files, memory }: Platform,
  { file, size, readOnly }: ImageOptions,
): { fd: number; isNew: boolean } {
  if (file === undefined) return { fd: memory.memfd({ name: 'nvme', length: size ?? DEFAULT_SIZE }), isNew: true };
  try {
    return { fd: files.open(file, readOnly ? 'read' : 'read-write'), isNew: false };
  } catch (error) {
    if (!isDmaError(error)) throw error;
    if (error.code === 'ENOENT' && size !== undefined && !readOnly)
      return { fd: files.create(file, { exclusive: true }), isNew: true };
    const readable = error.code === 'EACCES' || error.code === 'EROFS' || error.code === 'EPERM';
    throw error.with({
      operation: OPERATION,
      hint:
        error.code === 'ENOENT'
          ? 'say a size, and the file is made'
          : readable && !readOnly
            ? 'it can be served to be read only, if that is asked for'
            : error.hint,
    });
  }
}

function checkImage(
  { files }: Platform,
  fd: number,
  { file, size, readOnly, thin }: ImageOptions,
): { readonly bytes: number; readonly instant: boolean } {
  const status = files.status(fd);
  const refuse = (code: 'EINVAL' | 'EBUSY' | 'ENOSPC', reason: string, hint: string): never => {
    throw new DmaError({ code, operation: OPERATION, reason: `${file ?? 'memory'}: ${reason}`, hint });
  };
  if (status.kind !== 'file')
    return refuse('EINVAL', `it is a ${status.kind}, not a plain file`, 'a disk image is a plain file');
  // Two devices on one image would destroy what the other wrote.
  if (file !== undefined && !files.lock(fd, readOnly ? 'shared' : 'exclusive'))
    return refuse(
      'EBUSY',
      'another process uses it',
      'an image is served once, or any number of times to be read only',
    );
  const bytes = status.size === 0 && size !== undefined && !readOnly ? size : status.size;
  if (size !== undefined && bytes !== size)
    return refuse(
      'EINVAL',
      `it has ${formatSize(status.size)} (${status.size}), where a size of ${formatSize(size)} (${size}) was asked for`,
      'leave the size out to use the file as it is, or make the file longer with truncate',
    );
  const { kind, left } = files.fileSystem(fd);
  const missing = bytes - status.allocated;
  if (file !== undefined && !readOnly && !thin && missing > left)
    return refuse(
      'ENOSPC',
      `${formatSize(missing)} of it are holes, and the file system has room for ${formatSize(left)}`,
      'make room, or ask for a thin image, whose writes fail with CAPACITY_EXCEEDED when the file system is full',
    );
  if (bytes !== status.size) files.truncate(fd, bytes);
  return { bytes, instant: kind === 'tmpfs' || kind === 'hugetlbfs' };
}

/** Can the file have holes? Tried behind its end, where nothing is. */
function canPunch({ files }: Platform, fd: number, bytes: number): boolean {
  try {
    files.punch(fd, Math.ceil(bytes / 4096) * 4096, 4096);
    return true;
  } catch {
    return false;
  }
}
