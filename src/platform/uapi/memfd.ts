/** Files that live in memory: include/uapi/linux/memfd.h. */

export const MFD_CLOEXEC = 0x1;
export const MFD_ALLOW_SEALING = 0x2;
export const MFD_HUGETLB = 0x4;
/** The binary logarithm of a hugetlb page size stands from this bit on in memfd_create's flags. */
export const MFD_HUGE_SHIFT = 26;
