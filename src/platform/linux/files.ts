/** Files and descriptors on Linux. */
import { readFileSync, readlinkSync } from 'node:fs';
import { ERRNO, invalid } from '../../errors.js';
import { isAddress } from '../../units.js';
import { bound } from './bound.js';
import { LinuxFileBatch } from './file-batch.js';
import { FileStatusReader } from './file-status.js';
import { check, checkFd, checkPath, fail } from './libc.js';
import type { Libc } from './libc.js';
import type { FileBatch, FilesPort, FileStatus, FileSystem, Foreign } from '../ports.js';
import { FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE } from '../uapi/falloc.js';
import {
  F_ADD_SEALS,
  F_DUPFD_CLOEXEC,
  F_GET_SEALS,
  F_SEAL_SHRINK,
  LOCK_EX,
  LOCK_NB,
  LOCK_SH,
  O_CLOEXEC,
  O_CREAT,
  O_DIRECTORY,
  O_EXCL,
  O_NOFOLLOW,
  O_NONBLOCK,
  O_RDONLY,
  O_RDWR,
} from '../uapi/fcntl.js';
import { LINGER, SO_LINGER, SOL_SOCKET } from '../uapi/socket.js';

/** A `struct linger` that drops unsent data and does not wait. */
const AT_ONCE = new Int32Array([1, 0]);

const PUNCH = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;

function checkPart(fd: number, offset: number, length: number): void {
  checkFd(fd, 'fallocate');
  if (!isAddress(offset) || !isAddress(length) || !isAddress(offset + length) || length === 0)
    throw invalid('fallocate', `${length} bytes at offset ${offset} is not a valid range`);
}

function partText(fd: number, offset: number, length: number): string {
  return `${length} bytes at offset ${offset} of fd ${fd}`;
}

/** The {@link FilesPort} that makes real system calls. */
export function linuxFiles(libc: Libc): FilesPort {
  return bound(new LinuxFiles(libc));
}

class LinuxFiles implements FilesPort {
  readonly #libc: Libc;
  readonly #status: FileStatusReader;
  /** Descriptors of other processes that are not closed yet. */
  #closing = 0;

  constructor(libc: Libc) {
    this.#libc = libc;
    this.#status = new FileStatusReader(libc);
  }

  open(path: string, access: 'read' | 'read-write', options: Parameters<FilesPort['open']>[2] = {}): number {
    const { follow = true, directory = false } = options;
    checkPath(path, 'open');
    const kind = (follow ? 0 : O_NOFOLLOW | O_NONBLOCK) | (directory ? O_DIRECTORY : 0);
    const flags = O_CLOEXEC | (access === 'read' ? O_RDONLY : O_RDWR) | kind;
    return check(this.#libc, this.#libc.open(path, flags, 0), 'open', path);
  }

  create(path: string, { exclusive = false }: { readonly exclusive?: boolean } = {}): number {
    checkPath(path, 'open');
    const flags = O_CLOEXEC | O_RDWR | O_CREAT | (exclusive ? O_EXCL : 0);
    return check(this.#libc, this.#libc.open(path, flags, 0o600), 'open', path);
  }

  remove(path: string): void {
    checkPath(path, 'unlink');
    check(this.#libc, this.#libc.unlink(path), 'unlink', path);
  }

  hasName(fd: number): boolean {
    checkFd(fd, 'statx');
    return this.#status.links(fd) > 0;
  }

  truncate(fd: number, length: number): void {
    checkFd(fd, 'ftruncate');
    if (!isAddress(length)) throw invalid('ftruncate', `${length} bytes is not a valid length`);
    check(this.#libc, this.#libc.ftruncate(fd, length), 'ftruncate', `fd ${fd} to ${length} bytes`);
  }

  allocateRange(fd: number, offset: number, length: number): void {
    this.#allocate(fd, 0, offset, length);
  }

  async allocateRangeAsync(fd: number, offset: number, length: number): Promise<void> {
    await this.#allocateAsync(fd, 0, offset, length);
  }

  punch(fd: number, offset: number, length: number): void {
    this.#allocate(fd, PUNCH, offset, length);
  }

  async punchAsync(fd: number, offset: number, length: number): Promise<void> {
    await this.#allocateAsync(fd, PUNCH, offset, length);
  }

  lock(fd: number, kind: 'shared' | 'exclusive'): boolean {
    checkFd(fd, 'flock');
    if (this.#libc.flock(fd, LOCK_NB | (kind === 'shared' ? LOCK_SH : LOCK_EX)) === 0) return true;
    const errno = this.#libc.errno();
    return errno === ERRNO.EAGAIN ? false : fail(errno, 'flock', `fd ${fd}`);
  }

  close(fd: number): void {
    checkFd(fd, 'close');
    check(this.#libc, this.#libc.close(fd), 'close', `fd ${fd}`);
  }

  foreign(fd: number): Foreign {
    checkFd(fd, 'fcntl');
    return foreignKind(this.#libc, fd);
  }

  closeForeign(fd: number): void {
    checkFd(fd, 'close');
    const libc = this.#libc;
    const kind = foreignKind(libc, fd);
    if (kind === 'memory' || kind === 'eventfd') {
      libc.close(fd);
      return;
    }
    this.#closing++;
    const closed = (): void => {
      this.#closing--;
    };
    // Setting it takes the socket's lock, which the other process can hold; looking at it does not.
    if (kind === 'socket' && lingers(libc, fd))
      void libc.later.setsockopt(fd, SOL_SOCKET, SO_LINGER, AT_ONCE, LINGER.sizeof).catch(() => undefined);
    // A failure needs no action: the number is free, or was never used.
    libc.later.close(fd).then(closed, closed);
  }

  closing(): number {
    return this.#closing;
  }

  duplicate(fd: number): number {
    checkFd(fd, 'fcntl');
    return check(this.#libc, this.#libc.fcntl(fd, F_DUPFD_CLOEXEC, 0), 'fcntl', `F_DUPFD_CLOEXEC of fd ${fd}`);
  }

  status(fd: number): FileStatus {
    checkFd(fd, 'statx');
    return this.#status.file(fd);
  }

  fileSystem(fd: number): FileSystem {
    checkFd(fd, 'fstatfs');
    return this.#status.fileSystem(fd);
  }

  sealedAgainstShrinking(fd: number, add: boolean): boolean {
    checkFd(fd, 'fcntl');
    const seals = this.#libc.fcntl(fd, F_GET_SEALS, 0);
    if (seals === -1) {
      const errno = this.#libc.errno();
      if (errno === ERRNO.EINVAL) return false; // not a memfd
      fail(errno, 'fcntl', `F_GET_SEALS of fd ${fd}`);
    }
    return (seals & F_SEAL_SHRINK) !== 0 || (add && this.#libc.fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK) === 0);
  }

  batch(): FileBatch | undefined {
    return LinuxFileBatch.make(this.#libc);
  }

  readAt(fd: number, offset: number, into: Uint8Array): number {
    checkFd(fd, 'pread');
    if (!isAddress(offset)) throw invalid('pread', `${offset} is not a valid offset`);
    return readOrWriteAll(this.#libc, 'pread', fd, offset, into, into.byteLength);
  }

  writeAt(fd: number, offset: number, from: Uint8Array, end?: number): number {
    checkFd(fd, 'pwrite');
    if (!isAddress(offset)) throw invalid('pwrite', `${offset} is not a valid offset`);
    // pwrite past the end makes a file longer; a device has a fixed end.
    const room = Math.max(0, (end ?? this.#status.end(fd)) - offset);
    return readOrWriteAll(this.#libc, 'pwrite', fd, offset, from, Math.min(from.byteLength, room));
  }

  read(fd: number, into: Uint8Array): number {
    checkFd(fd, 'read');
    return check(this.#libc, this.#libc.read(fd, into, into.byteLength), 'read', `fd ${fd}`);
  }

  write(fd: number, from: Uint8Array): number {
    checkFd(fd, 'write');
    return check(this.#libc, this.#libc.write(fd, from, from.byteLength), 'write', `fd ${fd}`);
  }

  #allocate(fd: number, mode: number, offset: number, length: number): void {
    checkPart(fd, offset, length);
    check(this.#libc, this.#libc.fallocate(fd, mode, offset, length), 'fallocate', partText(fd, offset, length));
  }

  async #allocateAsync(fd: number, mode: number, offset: number, length: number): Promise<void> {
    checkPart(fd, offset, length);
    const { result, errno } = await this.#libc.later.fallocate(fd, mode, offset, length);
    if (result === -1) fail(errno, 'fallocate', partText(fd, offset, length));
  }
}

/**
 * File systems that the kernel alone serves. Others (FUSE, NFS, 9p ...) wait for a process or another machine, which
 * may never answer.
 */
const LOCAL_FILE_SYSTEMS: ReadonlySet<string> = new Set(
  'ext2 ext3 ext4 xfs btrfs f2fs zfs bcachefs tmpfs ramfs hugetlbfs erofs squashfs overlay'.split(' '),
);

/** Would closing the socket wait? */
function lingers(libc: Libc, fd: number): boolean {
  const linger = new Int32Array(LINGER.sizeof / 4);
  const length = new Uint32Array([LINGER.sizeof]);
  return libc.getsockopt(fd, SOL_SOCKET, SO_LINGER, linger, length) === 0 && linger[LINGER.l_onoff / 4] !== 0;
}

/** See {@link FilesPort.foreign}. Uses only calls that do not reach the file system. */
function foreignKind(libc: Libc, fd: number): Foreign {
  // Only memory files have seals.
  if (libc.fcntl(fd, F_GET_SEALS, 0) !== -1) return 'memory';
  try {
    const link = readlinkSync(`/proc/self/fd/${fd}`);
    if (link === 'anon_inode:[eventfd]') return 'eventfd';
    if (link.startsWith('socket:[')) return 'socket';
    if (!link.startsWith('/')) return 'other';
    const mount = /^mnt_id:\s*(\d+)/m.exec(readFileSync(`/proc/self/fdinfo/${fd}`, 'latin1'))?.[1];
    const mounts = readFileSync('/proc/self/mountinfo', 'latin1');
    const type = mount === undefined ? undefined : new RegExp(`^${mount} .* - (\\S+) `, 'm').exec(mounts)?.[1];
    if (type === 'devtmpfs') return 'device';
    return type !== undefined && LOCAL_FILE_SYSTEMS.has(type) ? 'file' : 'other';
  } catch {
    return 'other';
  }
}

/**
 * pread or pwrite of the first `length` bytes of `bytes`, in as many calls as needed. Returns the bytes transferred
 * before the end.
 */
function readOrWriteAll(
  libc: Libc,
  operation: 'pread' | 'pwrite',
  fd: number,
  offset: number,
  bytes: Uint8Array,
  length: number,
): number {
  let done = 0;
  while (done < length) {
    const rest = done === 0 ? bytes : bytes.subarray(done);
    const count = libc[operation](fd, rest, length - done, offset + done);
    if (count === 0) break;
    if (count > 0) done += count;
    else {
      const errno = libc.errno();
      if (errno !== ERRNO.EINTR) fail(errno, operation, `fd ${fd} at offset ${offset + done}`);
    }
  }
  return done;
}
