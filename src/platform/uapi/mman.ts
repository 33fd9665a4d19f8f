/** Memory mappings: include/uapi/asm-generic/mman.h and mman-common.h (the architectures that `libc.ts` accepts share them). */

export const PROT_READ = 0x1;
export const PROT_WRITE = 0x2;

export const MAP_SHARED = 0x01;
export const MAP_PRIVATE = 0x02;
export const MAP_ANONYMOUS = 0x20;
export const MAP_POPULATE = 0x8000;
export const MAP_HUGETLB = 0x40000;
/** The binary logarithm of a hugetlb page size stands from this bit on in mmap's flags. */
export const MAP_HUGE_SHIFT = 26;
