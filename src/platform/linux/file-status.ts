/** What statx(2) and fstatfs(2) tell about an open file, on Linux. */
import { check } from './libc.js';
import type { Libc } from './libc.js';
import type { FileStatus, FileSystem } from '../ports.js';
import { AT_EMPTY_PATH, F_GETFL, O_ACCMODE, O_RDONLY, O_WRONLY } from '../uapi/fcntl.js';
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

const WANTED = STATX_TYPE | STATX_MODE | STATX_NLINK | STATX_UID | STATX_SIZE | STATX_BLOCKS;

/** Reads both structs into memory of its own, which is reused. */
export class FileStatusReader {
  readonly #libc: Libc;
  readonly #pageSize: number;
  readonly #words = new Uint32Array(Math.max(STATX.sizeof, STATFS.sizeof) / 4);
  readonly #halves = new Uint16Array(this.#words.buffer);

  constructor(libc: Libc) {
    this.#libc = libc;
    this.#pageSize = libc.getpagesize();
  }

  /** How many names the file has. */
  links(fd: number): number {
    this.#stat(fd);
    return this.#words[STATX.stx_nlink / 4];
  }

  /** Where the file ends, in bytes; Infinity if it is no regular file. */
  end(fd: number): number {
    this.#stat(fd);
    const type = this.#halves[STATX.stx_mode / 2] & S_IFMT;
    return type === S_IFREG ? this.#long(STATX.stx_size) : Infinity;
  }

  file(fd: number): FileStatus {
    this.#stat(fd);
    const words = this.#words;
    const mode = this.#halves[STATX.stx_mode / 2];
    const kind = KINDS.get(mode & S_IFMT) ?? 'other';
    const size = this.#long(STATX.stx_size);
    const allocated = this.#long(STATX.stx_blocks) * STAT_BLOCK;
    const links = words[STATX.stx_nlink / 4];
    const user = words[STATX.stx_uid / 4];
    const flags = check(this.#libc, this.#libc.fcntl(fd, F_GETFL, 0), 'fcntl', `F_GETFL of fd ${fd}`);
    const readable = (flags & O_ACCMODE) !== O_WRONLY;
    const writable = (flags & O_ACCMODE) !== O_RDONLY;
    let pageSize = this.#pageSize;
    if (kind === 'file') {
      this.#statFileSystem(fd);
      if (words[STATFS.f_type / 4] === HUGETLBFS_MAGIC) pageSize = this.#long(STATFS.f_bsize);
    }
    return { kind, size, readable, writable, allocated, pageSize, links, user, mode: mode & S_PERMISSIONS };
  }

  fileSystem(fd: number): FileSystem {
    this.#statFileSystem(fd);
    const magic = this.#words[STATFS.f_type / 4];
    const kind = magic === HUGETLBFS_MAGIC ? 'hugetlbfs' : magic === TMPFS_MAGIC ? 'tmpfs' : 'other';
    const blockSize = this.#long(STATFS.f_bsize);
    const blocks = this.#long(STATFS.f_blocks);
    const files = this.#long(STATFS.f_files);
    // hugetlbfs and tmpfs report 0 or -1 for no limit.
    const isLimited = kind === 'other' || (blocks > 0 && blocks < 2 ** 63);
    return {
      kind,
      blockSize,
      size: isLimited ? blocks * blockSize : Infinity,
      left: isLimited ? this.#long(STATFS.f_bavail) * blockSize : Infinity,
      filesLeft: files > 0 && files < 2 ** 63 ? this.#long(STATFS.f_ffree) : Infinity,
    };
  }

  #stat(fd: number): void {
    const status = this.#libc.statx(fd, '', AT_EMPTY_PATH, WANTED, this.#words);
    check(this.#libc, status, 'statx', `fd ${fd}`);
  }

  #statFileSystem(fd: number): void {
    check(this.#libc, this.#libc.fstatfs(fd, this.#words), 'fstatfs', `fd ${fd}`);
  }

  /** A 64-bit number of the struct; -1, which means no limit, becomes 2^64. */
  #long(offset: number): number {
    return this.#words[offset / 4] + this.#words[offset / 4 + 1] * 2 ** 32;
  }
}
