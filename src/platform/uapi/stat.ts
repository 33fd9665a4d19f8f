/** File status: include/uapi/linux/stat.h. `struct statx` is the same on every architecture. */

export const STATX_TYPE = 0x1;
export const STATX_MODE = 0x2;
export const STATX_NLINK = 0x4;
export const STATX_UID = 0x8;
export const STATX_SIZE = 0x200;
export const STATX_BLOCKS = 0x400;

export const S_IFMT = 0o170000;
export const S_IFSOCK = 0o140000;
export const S_IFREG = 0o100000;
export const S_IFBLK = 0o060000;
export const S_IFDIR = 0o040000;
export const S_IFCHR = 0o020000;
export const S_IFIFO = 0o010000;

/** The permission bits of stx_mode. */
export const S_PERMISSIONS = 0o7777;

/** `struct statx`: its size, and the offsets of the members used here (stx_blksize, stx_nlink and stx_uid u32, stx_mode u16, stx_size and stx_blocks u64), in bytes. */
export const STATX = {
  sizeof: 256,
  stx_blksize: 4,
  stx_nlink: 16,
  stx_uid: 20,
  stx_mode: 28,
  stx_size: 40,
  stx_blocks: 48,
} as const;
/** Unit of stx_blocks in bytes, independent of the file system's block size. */
export const STAT_BLOCK = 512;
