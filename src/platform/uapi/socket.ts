/** Sockets: include/linux/socket.h, include/uapi/linux/un.h and uio.h; all as 64-bit little-endian machines lay them out. */

export const AF_UNIX = 1;
export const AF_INET = 2;
export const AF_INET6 = 10;
export const SOCK_STREAM = 1;
export const SOCK_DGRAM = 2;
export const SOCK_NONBLOCK = 0o4000;
export const SOCK_CLOEXEC = 0o2000000;

export const SOL_SOCKET = 1;
/** Does close(2) wait for unsent data? */
export const SO_LINGER = 13;
/** `struct linger`: is it on, and seconds; both int. */
export const LINGER = { sizeof: 8, l_onoff: 0, l_linger: 4 } as const;
/** The process at the other end of a UNIX socket: a `struct ucred` of pid, uid and gid. */
export const SO_PEERCRED = 17;
/** The control message that carries descriptors. */
export const SCM_RIGHTS = 1;

/** In received flags: control data was truncated, so descriptors were lost. */
export const MSG_CTRUNC = 0x8;
export const MSG_DONTWAIT = 0x40;
export const MSG_NOSIGNAL = 0x4000;
export const MSG_CMSG_CLOEXEC = 0x40000000;

export const SHUT_RDWR = 2;

/** The most descriptors in one message (SCM_MAX_FD of include/net/scm.h, which is not exported to user space). */
export const MOST_FDS = 253;

/** `struct sockaddr_un`: sun_family u16, then the path, ended by a NUL here. */
export const SOCKADDR_UN = { sizeof: 110, sun_family: 0, sun_path: 2 } as const;

/** `struct sockaddr_in`: sin_family u16, sin_port and sin_addr big-endian. */
export const SOCKADDR_IN = { sizeof: 16, sin_family: 0, sin_port: 2, sin_addr: 4 } as const;

/** `struct sockaddr_in6`: sin6_family u16, sin6_port and sin6_addr big-endian, sin6_scope_id u32: the index of an interface. */
export const SOCKADDR_IN6 = { sizeof: 28, sin6_family: 0, sin6_port: 2, sin6_addr: 8, sin6_scope_id: 24 } as const;

/** `struct msghdr`: msg_name, msg_iov, msg_iovlen, msg_control and msg_controllen are u64, msg_flags is int. */
export const MSGHDR = {
  sizeof: 56,
  msg_name: 0,
  msg_iov: 16,
  msg_iovlen: 24,
  msg_control: 32,
  msg_controllen: 40,
  msg_flags: 48,
} as const;

/** `struct iovec`: both u64. */
export const IOVEC = { sizeof: 16, iov_base: 0, iov_len: 8 } as const;

/** `struct cmsghdr`: cmsg_len is u64 and counts this header, the rest int; the data follow, and the next header at a multiple of 8. */
export const CMSGHDR = { sizeof: 16, cmsg_len: 0, cmsg_level: 8, cmsg_type: 12 } as const;
