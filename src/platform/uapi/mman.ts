/** Memory mappings: include/uapi/asm-generic/mman.h and mman-common.h (the architectures that `libc.ts` accepts share them). */

export const PROT_NONE = 0x0;
export const PROT_READ = 0x1;
export const PROT_WRITE = 0x2;

export const MAP_SHARED = 0x01;
export const MAP_PRIVATE = 0x02;
export const MAP_FIXED = 0x10;
export const MAP_ANONYMOUS = 0x20;
export const MAP_NORESERVE = 0x4000;
export const MAP_POPULATE = 0x8000;
export const MAP_HUGETLB = 0x40000;
/** Map at exactly this address or fail. Since Linux 4.17; older kernels take the address as a hint. */
export const MAP_FIXED_NOREPLACE = 0x100000;
/** The binary logarithm of a hugetlb page size stands from this bit on in mmap's flags. */
export const MAP_HUGE_SHIFT = 26;

export const MADV_DONTNEED = 4;
export const MADV_DONTFORK = 10;
/** Linux 5.14. */
export const MADV_POPULATE_READ = 22;
/** Linux 5.14. */
export const MADV_POPULATE_WRITE = 23;
