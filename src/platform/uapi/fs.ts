/** Flags of single reads and writes: include/uapi/linux/fs.h. */

/** Fail with EAGAIN instead of waiting. */
export const RWF_NOWAIT = 0x8;
