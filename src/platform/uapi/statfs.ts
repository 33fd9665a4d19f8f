/** File system status: include/uapi/asm-generic/statfs.h and include/uapi/linux/magic.h, on 64 bits. */

export const TMPFS_MAGIC = 0x01021994;
export const HUGETLBFS_MAGIC = 0x958458f6;

/** `struct statfs`: its size, and the offsets of the members used here, each a 64-bit number, in bytes. */
export const STATFS = {
  sizeof: 120,
  f_type: 0,
  f_bsize: 8,
  f_blocks: 16,
  f_bavail: 32,
  f_files: 40,
  f_ffree: 48,
} as const;
