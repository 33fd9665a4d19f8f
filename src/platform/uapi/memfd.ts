/** Files that live in memory: include/uapi/linux/memfd.h. */

export const MFD_CLOEXEC = 0x1;
export const MFD_ALLOW_SEALING = 0x2;
export const MFD_HUGETLB = 0x4;
/** memfd_create's flags hold the binary logarithm of the hugetlb page size from this bit on. */
export const MFD_HUGE_SHIFT = 26;
