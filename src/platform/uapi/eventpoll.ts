/** epoll(7): include/uapi/linux/eventpoll.h. */

export const EPOLL_CLOEXEC = 0o2000000;
export const EPOLL_CTL_ADD = 1;
export const EPOLLIN = 0x1;

/** Room for a `struct epoll_event`, which is packed on x86-64 (12 bytes) and is not elsewhere (16); events u32 comes first. */
export const EPOLL_EVENT_ROOM = 16;
