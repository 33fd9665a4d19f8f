/** Which NUMA node memory comes from: include/uapi/linux/mempolicy.h. */

export const MPOL_BIND = 2;
