/** epoll(7): include/uapi/linux/eventpoll.h. */

export const EPOLL_CLOEXEC = 0o2000000;
export const EPOLL_CTL_ADD = 1;
export const EPOLL_CTL_DEL = 2;
export const EPOLLIN = 0x1;
export const EPOLLOUT = 0x4;

/** Enough bytes for a `struct epoll_event` on any architecture. */
export const EPOLL_EVENT_ROOM = 16;

/** `struct epoll_event`: events u32, data u64. It is packed on x86-64 only. */
export const EPOLL_EVENT = process.arch === 'x64' ? { sizeof: 12, data: 4 } : { sizeof: 16, data: 8 };
