/** What a file is: include/uapi/linux/stat.h. `struct statx` is the same on every architecture. */

export const STATX_TYPE = 0x1;
export const STATX_NLINK = 0x4;
export const STATX_SIZE = 0x200;

export const S_IFMT = 0o170000;
export const S_IFSOCK = 0o140000;
export const S_IFREG = 0o100000;
export const S_IFBLK = 0o060000;
export const S_IFDIR = 0o040000;
export const S_IFCHR = 0o020000;
export const S_IFIFO = 0o010000;

/** `struct statx`: its size, and the offsets of the members used here (stx_blksize u32, stx_nlink u32, stx_mode u16, stx_size u64), in bytes. */
export const STATX = { sizeof: 256, stx_blksize: 4, stx_nlink: 16, stx_mode: 28, stx_size: 40 } as const;
