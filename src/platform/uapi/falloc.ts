/** fallocate(2): include/uapi/linux/falloc.h. */

export const FALLOC_FL_KEEP_SIZE = 0x1;
export const FALLOC_FL_PUNCH_HOLE = 0x2;
