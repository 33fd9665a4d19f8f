/** What the kernel tells a program when it starts it: linux/auxvec.h. */

/** The address of random bytes. */
export const AT_RANDOM = 25;
/** How many there are. */
export const RANDOM_BYTES = 16;
