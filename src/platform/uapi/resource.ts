/** Limits of a process: include/uapi/asm-generic/resource.h and include/uapi/linux/capability.h. */

export const RLIMIT_FSIZE = 1;
export const RLIMIT_DATA = 2;
export const RLIMIT_NOFILE = 7;
export const RLIMIT_MEMLOCK = 8;
export const RLIMIT_AS = 9;

/** `struct rlimit`: both u64; all bits set means no limit. */
export const RLIMIT = { sizeof: 16, rlim_cur: 0, rlim_max: 8 } as const;

/** The capability that lifts RLIMIT_MEMLOCK: a bit number. */
export const CAP_IPC_LOCK = 14;
