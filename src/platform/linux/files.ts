/** Files and descriptors on Linux. */
import { readFileSync, readlinkSync } from 'node:fs';
import { ERRNO, invalid } from '../../errors.js';
import { isAddress } from '../../units.js';
import { check, checkFd, checkPath, fail } from './libc.js';
import type { Libc } from './libc.js';
import type { FilesPort, FileStatus, FileSystem, Foreign } from '../ports.js';
import { FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE } from '../uapi/falloc.js';
import {
  AT_EMPTY_PATH,
  F_ADD_SEALS,
  F_DUPFD_CLOEXEC,
  F_GET_SEALS,
  F_GETFL,
  F_SEAL_SHRINK,
  LOCK_EX,
  LOCK_NB,
  LOCK_SH,
  O_ACCMODE,
  O_CLOEXEC,
  O_CREAT,
  O_DIRECTORY,
  O_EXCL,
  O_NOFOLLOW,
  O_NONBLOCK,
  O_RDONLY,
  O_RDWR,
  O_WRONLY,
} from '../uapi/fcntl.js';
import {
  S_IFBLK,
  S_IFCHR,
  S_IFDIR,
  S_IFIFO,
  S_IFMT,
  S_IFREG,
  S_IFSOCK,
  S_PERMISSIONS,
  STAT_BLOCK,
  STATX,
  STATX_BLOCKS,
  STATX_MODE,
  STATX_NLINK,
  STATX_SIZE,
  STATX_TYPE,
  STATX_UID,
} from '../uapi/stat.js';
import { HUGETLBFS_MAGIC, STATFS, TMPFS_MAGIC } from '../uapi/statfs.js';

/** File types by their number in stat.h; a descriptor that the kernel itself created (anon_inode) has none. */
const KINDS: ReadonlyMap<number, FileStatus['kind']> = new Map([
  [S_IFREG, 'file'],
  [S_IFSOCK, 'socket'],
  [S_IFIFO, 'pipe'],
  [S_IFDIR, 'directory'],
  [S_IFCHR, 'device'],
  [S_IFBLK, 'device'],
]);

const PUNCH = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;

function checkPart(fd: number, offset: number, length: number): void {
  checkFd(fd, 'fallocate');
  if (!isAddress(offset) || !isAddress(length) || !isAddress(offset + length) || length === 0)
    throw invalid('fallocate', `${length} bytes at offset ${offset} is not a valid range`);
}

function partText(fd: number, offset: number, length: number): string {
  return `${length} bytes at offset ${offset} of fd ${fd}`;
}

const WANTED = STATX_TYPE | STATX_MODE | STATX_NLINK | STATX_UID | STATX_SIZE | STATX_BLOCKS;

/** The {@link FilesPort} that makes real system calls. */
export function linuxFiles(libc: Libc): FilesPort {
  const systemPageSize = libc.getpagesize();
  const words = new Uint32Array(Math.max(STATX.sizeof, STATFS.sizeof) / 4);
  const halves = new Uint16Array(words.buffer);

  /** Fills `words` with the status of `fd`. */
  const stat = (fd: number): void => {
    check(libc, libc.statx(fd, '', AT_EMPTY_PATH, WANTED, words), 'statx', `fd ${fd}`);
  };
  /** A 64-bit number of `words`; -1, which means no limit, becomes 2^64. */
  const long = (offset: number): number => words[offset / 4] + words[offset / 4 + 1] * 2 ** 32;
  const statSize = (): number => long(STATX.stx_size);
  /** statfs(2) of `fd`, into `words`. */
  const statFileSystem = (fd: number): void => {
    check(libc, libc.fstatfs(fd, words), 'fstatfs', `fd ${fd}`);
  };
  const fallocate = (fd: number, mode: number, offset: number, length: number): void => {
    checkPart(fd, offset, length);
    check(libc, libc.fallocate(fd, mode, offset, length), 'fallocate', partText(fd, offset, length));
  };
  const statType = (): number => halves[STATX.stx_mode / 2] & S_IFMT;

  return {
    open(path, access, { follow = true, directory = false } = {}) {
      checkPath(path, 'open');
      const kind = (follow ? 0 : O_NOFOLLOW | O_NONBLOCK) | (directory ? O_DIRECTORY : 0);
      const flags = O_CLOEXEC | (access === 'read' ? O_RDONLY : O_RDWR) | kind;
      return check(libc, libc.open(path, flags, 0), 'open', path);
    },

    create(path, { exclusive = false } = {}) {
      checkPath(path, 'open');
      const flags = O_CLOEXEC | O_RDWR | O_CREAT | (exclusive ? O_EXCL : 0);
      return check(libc, libc.open(path, flags, 0o600), 'open', path);
    },

    remove(path) {
      checkPath(path, 'unlink');
      check(libc, libc.unlink(path), 'unlink', path);
    },

    hasName(fd) {
      checkFd(fd, 'statx');
      stat(fd);
      return words[STATX.stx_nlink / 4] > 0;
    },

    truncate(fd, length) {
      checkFd(fd, 'ftruncate');
      if (!isAddress(length)) throw invalid('ftruncate', `${length} bytes is not a valid length`);
      check(libc, libc.ftruncate(fd, length), 'ftruncate', `fd ${fd} to ${length} bytes`);
    },

    allocateRange: (fd, offset, length) => fallocate(fd, 0, offset, length),
    async allocateRangeAsync(fd, offset, length) {
      checkPart(fd, offset, length);
      const { result, errno } = await libc.later.fallocate(fd, 0, offset, length);
      if (result === -1) fail(errno, 'fallocate', partText(fd, offset, length));
    },
    punch: (fd, offset, length) => fallocate(fd, PUNCH, offset, length),
    async punchAsync(fd, offset, length) {
      checkPart(fd, offset, length);
      const { result, errno } = await libc.later.fallocate(fd, PUNCH, offset, length);
      if (result === -1) fail(errno, 'fallocate', partText(fd, offset, length));
    },

    lock(fd, kind) {
      checkFd(fd, 'flock');
      if (libc.flock(fd, LOCK_NB | (kind === 'shared' ? LOCK_SH : LOCK_EX)) === 0) return true;
      const errno = libc.errno();
      return errno === ERRNO.EAGAIN ? false : fail(errno, 'flock', `fd ${fd}`);
    },

    close(fd) {
      checkFd(fd, 'close');
      check(libc, libc.close(fd), 'close', `fd ${fd}`);
    },

    foreign(fd) {
      checkFd(fd, 'fcntl');
      return foreignKind(libc, fd);
    },

    closeForeign(fd) {
      checkFd(fd, 'close');
      const kind = foreignKind(libc, fd);
      if (kind === 'memory' || kind === 'eventfd') libc.close(fd);
      // A failure needs no action: the number is free, or was never used.
      else void libc.later.close(fd).catch(() => undefined);
    },

    duplicate(fd) {
      checkFd(fd, 'fcntl');
      return check(libc, libc.fcntl(fd, F_DUPFD_CLOEXEC, 0), 'fcntl', `F_DUPFD_CLOEXEC of fd ${fd}`);
    },

    status(fd) {
      checkFd(fd, 'statx');
      stat(fd);
      const kind = KINDS.get(statType()) ?? 'other';
      const size = statSize();
      const allocated = long(STATX.stx_blocks) * STAT_BLOCK;
      const links = words[STATX.stx_nlink / 4];
      const user = words[STATX.stx_uid / 4];
      const mode = halves[STATX.stx_mode / 2] & S_PERMISSIONS;
      const flags = check(libc, libc.fcntl(fd, F_GETFL, 0), 'fcntl', `F_GETFL of fd ${fd}`);
      const readable = (flags & O_ACCMODE) !== O_WRONLY;
      const writable = (flags & O_ACCMODE) !== O_RDONLY;
      let pageSize = systemPageSize;
      if (kind === 'file') {
        statFileSystem(fd);
        if (words[STATFS.f_type / 4] === HUGETLBFS_MAGIC) pageSize = long(STATFS.f_bsize);
      }
      return { kind, size, readable, writable, allocated, pageSize, links, user, mode };
    },

    fileSystem(fd): FileSystem {
      checkFd(fd, 'fstatfs');
      statFileSystem(fd);
      const magic = words[STATFS.f_type / 4];
      const kind = magic === HUGETLBFS_MAGIC ? 'hugetlbfs' : magic === TMPFS_MAGIC ? 'tmpfs' : 'other';
      const blockSize = long(STATFS.f_bsize);
      const blocks = long(STATFS.f_blocks);
      const files = long(STATFS.f_files);
      // hugetlbfs and tmpfs report 0 or -1 for no limit.
      const isLimited = kind === 'other' || (blocks > 0 && blocks < 2 ** 63);
      return {
        kind,
        blockSize,
        size: isLimited ? blocks * blockSize : Infinity,
        left: isLimited ? long(STATFS.f_bavail) * blockSize : Infinity,
        filesLeft: files > 0 && files < 2 ** 63 ? long(STATFS.f_ffree) : Infinity,
      };
    },

    sealedAgainstShrinking(fd, add) {
      checkFd(fd, 'fcntl');
      const seals = libc.fcntl(fd, F_GET_SEALS, 0);
      if (seals === -1) {
        const errno = libc.errno();
        if (errno === ERRNO.EINVAL) return false; // not a memfd
        fail(errno, 'fcntl', `F_GET_SEALS of fd ${fd}`);
      }
      return (seals & F_SEAL_SHRINK) !== 0 || (add && libc.fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK) === 0);
    },

    readAt(fd, offset, into) {
      checkFd(fd, 'pread');
      if (!isAddress(offset)) throw invalid('pread', `${offset} is not a valid offset`);
      return readOrWriteAll(libc, 'pread', fd, offset, into, into.byteLength);
    },

    writeAt(fd, offset, from) {
      checkFd(fd, 'pwrite');
      if (!isAddress(offset)) throw invalid('pwrite', `${offset} is not a valid offset`);
      stat(fd);
      // pwrite past the end makes a file longer; a device has a fixed end.
      const room = statType() === S_IFREG ? Math.max(0, statSize() - offset) : Infinity;
      return readOrWriteAll(libc, 'pwrite', fd, offset, from, Math.min(from.byteLength, room));
    },

    read(fd, into) {
      checkFd(fd, 'read');
      return check(libc, libc.read(fd, into, into.byteLength), 'read', `fd ${fd}`);
    },

    write(fd, from) {
      checkFd(fd, 'write');
      return check(libc, libc.write(fd, from, from.byteLength), 'write', `fd ${fd}`);
    },
  };
}

/**
 * File systems that the kernel alone serves. Others (FUSE, NFS, 9p ...) wait for a process or another machine, which
 * may never answer.
 */
const LOCAL_FILE_SYSTEMS: ReadonlySet<string> = new Set(
  'ext2 ext3 ext4 xfs btrfs f2fs zfs bcachefs tmpfs ramfs hugetlbfs erofs squashfs overlay'.split(' '),
);

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
