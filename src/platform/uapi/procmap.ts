/** Queries of /proc/PID/maps for one address, since Linux 6.11: include/uapi/linux/fs.h. */

/** ioctl(2) whose argument is {@link PROCMAP_QUERY_ARGUMENT}. */
export const PROCMAP_QUERY = 0xc0686611;

export const PROCMAP_QUERY_VMA_READABLE = 0x01;
export const PROCMAP_QUERY_VMA_WRITABLE = 0x02;

/** `struct procmap_query`; the members here are u64. */
export const PROCMAP_QUERY_ARGUMENT = {
  sizeof: 104,
  size: 0,
  query_flags: 8,
  query_addr: 16,
  vma_start: 24,
  vma_end: 32,
  vma_flags: 40,
} as const;
