/** poll(2): include/uapi/asm-generic/poll.h. */

export const POLLIN = 0x1;
export const POLLOUT = 0x4;

/** `struct pollfd`: fd int, events and revents short. */
export const POLLFD = { sizeof: 8, fd: 0, events: 4, revents: 6 } as const;
