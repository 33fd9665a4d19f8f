/**
 * UNIX stream sockets that carry descriptors, on Linux. `send` and `receive` are the hot path of the vfio-user
 * protocol: their arguments to the kernel are laid out once, and they allocate only what they return.
 */
import { dirname, join } from 'node:path';
import { DmaError, ERRNO, invalid, undoAll } from '../../errors.js';
import { check, checkFd, checkPath, fail } from './libc.js';
import type { Libc } from './libc.js';
import type { Peer, ReceivedBytes, SocketsPort } from '../ports.js';
import { AT_FDCWD, AT_SYMLINK_NOFOLLOW, LOCK_EX, LOCK_NB, O_CLOEXEC, O_RDONLY } from '../uapi/fcntl.js';
import {
  AF_UNIX,
  CMSGHDR,
  IOVEC,
  MOST_FDS,
  MSG_CMSG_CLOEXEC,
  MSG_CTRUNC,
  MSG_DONTWAIT,
  MSG_NOSIGNAL,
  MSGHDR,
  SCM_RIGHTS,
  SHUT_RDWR,
  SO_PEERCRED,
  SOCK_CLOEXEC,
  SOCK_NONBLOCK,
  SOCK_STREAM,
  SOCKADDR_UN,
  SOL_SOCKET,
} from '../uapi/socket.js';
import { S_IFMT, S_IFSOCK, STATX, STATX_TYPE } from '../uapi/stat.js';

/** {@link SO_PEERCRED} as a pidfd (Linux 6.5, asm-generic/socket.h); the headers of older systems lack it. */
const SO_PEERPIDFD = 77;

const STREAM = SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC;
/** How often, once per millisecond, a lock is tried. Others hold it only for a few system calls. */
const LOCK_TRIES = 2000;
const sleeper = new Int32Array(new SharedArrayBuffer(4));

const NO_FDS: readonly number[] = Object.freeze<number[]>([]);

/** The {@link SocketsPort} that makes real system calls. */
export function linuxSockets(libc: Libc): SocketsPort {
  const message = new SocketMessage(libc);

  const openSocket = (): number => check(libc, libc.socket(AF_UNIX, STREAM, 0), 'socket');

  /** Runs `action` with a new socket, and closes the socket if that fails. */
  const withSocket = (action: (fd: number) => void): number => {
    const fd = openSocket();
    try {
      action(fd);
      return fd;
    } catch (error) {
      libc.close(fd);
      throw error;
    }
  };

  const connect = (path: string): number => {
    const address = socketAddress(path, 'connect');
    return withSocket((fd) => check(libc, libc.connect(fd, address, address.byteLength), 'connect', path));
  };

  /** Links the listening socket at `temporary` to `path`, without ever replacing that of a live server. */
  const publish = (temporary: string, path: string): void => {
    if (libc.link(temporary, path) === 0) {
      check(libc, libc.unlink(temporary), 'unlink', temporary);
      return;
    }
    const errno = libc.errno();
    if (errno !== ERRNO.EEXIST) fail(errno, 'link', path);
    // Only one server at a time: replacing moves the old socket away for a moment.
    alone(dirname(path), () => replace(temporary, path));
  };

  /** Replaces the socket of a server that has ended. */
  const replace = (temporary: string, path: string): void => {
    if (!isSocket(libc, path)) {
      const reason = `${path} exists and is not a socket`;
      throw new DmaError({
        code: 'EEXIST',
        operation: 'listen',
        reason,
        hint: 'choose another path or remove the file',
      });
    }
    if (isLive(path)) throw inUse(path);
    // Move it away and check again before removing it: a server that takes no lock may have replaced it since.
    const stale = temporaryBeside(path);
    if (libc.rename(path, stale) === -1) {
      const failed = libc.errno();
      if (failed !== ERRNO.ENOENT) fail(failed, 'rename', path);
    } else {
      const live = isLive(stale);
      if (live) libc.link(stale, path);
      check(libc, libc.unlink(stale), 'unlink', stale);
      if (live) throw inUse(path);
    }
    if (libc.link(temporary, path) === -1) {
      const failed = libc.errno();
      if (failed === ERRNO.EEXIST) throw inUse(path);
      fail(failed, 'link', path);
    }
    check(libc, libc.unlink(temporary), 'unlink', temporary);
  };

  /**
   * Runs `work` while no other server of this library replaces a socket in the folder. Gives up waiting for the lock
   * after the time that a server needs.
   */
  const alone = (folder: string, work: () => void): void => {
    const fd = libc.open(folder, O_RDONLY | O_CLOEXEC, 0);
    try {
      for (let tries = 0; fd !== -1 && tries < LOCK_TRIES && libc.flock(fd, LOCK_EX | LOCK_NB) !== 0; tries++)
        Atomics.wait(sleeper, 0, 0, 1);
      work();
    } finally {
      if (fd !== -1) libc.close(fd);
    }
  };

  /** Is anyone listening at `path`? Only a refused connection means that nobody is. */
  const isLive = (path: string): boolean => {
    try {
      libc.close(connect(path));
      return true;
    } catch (error) {
      if (!(error instanceof DmaError)) throw error;
      return error.code !== 'ECONNREFUSED' && error.code !== 'ENOENT';
    }
  };

  const peer = (fd: number): Peer => {
    const value = new Int32Array(3);
    const length = new Uint32Array([12]);
    checkFd(fd, 'getsockopt');
    check(libc, libc.getsockopt(fd, SOL_SOCKET, SO_PEERCRED, value, length), 'getsockopt', `SO_PEERCRED of fd ${fd}`);
    const [pid, uid] = value;
    const user = uid >>> 0;
    return { pid, user, trusted: user === 0 || user === libc.geteuid() >>> 0 };
  };

  return {
    connect,

    listen(path, backlog) {
      socketAddress(path, 'bind');
      // In the same directory, so that it can be linked, and short, so that it fits the limit of 107 bytes.
      const temporary = temporaryBeside(path);
      const address = socketAddress(temporary, 'bind');
      return withSocket((fd) => {
        check(libc, libc.bind(fd, address, address.byteLength), 'bind', path);
        try {
          check(libc, libc.listen(fd, backlog), 'listen', path);
          publish(temporary, path);
        } catch (error) {
          undoAll([() => libc.unlink(temporary)]);
          throw error;
        }
      });
    },

    accept(fd) {
      checkFd(fd, 'accept4');
      for (;;) {
        const connection = libc.accept4(fd, null, null, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (connection !== -1) return connection;
        const errno = libc.errno();
        if (errno === ERRNO.EAGAIN) return undefined;
        // A client that disconnected before it was accepted is not an error.
        if (errno !== ERRNO.EINTR && errno !== ERRNO.ECONNABORTED) fail(errno, 'accept4', `fd ${fd}`);
      }
    },

    pair() {
      const fds = new Int32Array(2);
      check(libc, libc.socketpair(AF_UNIX, STREAM, 0, fds), 'socketpair');
      return [fds[0], fds[1]];
    },

    send: (fd, bytes, offset, fds) => message.send(fd, bytes, offset, fds),
    receive: (fd, into, maxFds) => message.receive(fd, into, maxFds),

    peer,

    peerProcess(fd) {
      const value = new Int32Array(1);
      const length = new Uint32Array([4]);
      checkFd(fd, 'getsockopt');
      if (libc.getsockopt(fd, SOL_SOCKET, SO_PEERPIDFD, value, length) === 0) return libc.own(value[0]);
      // Before Linux 6.5: by process number, which may have been reused; then the wait only takes longer.
      const { pid } = peer(fd);
      if (pid <= 0) return undefined;
      const process = libc.pidfd_open(pid, 0);
      if (process !== -1) return process;
      const errno = libc.errno();
      return errno === ERRNO.ESRCH ? 'ended' : fail(errno, 'pidfd_open', `process ${pid}`);
    },

    shutdown(fd) {
      checkFd(fd, 'shutdown');
      check(libc, libc.shutdown(fd, SHUT_RDWR), 'shutdown', `fd ${fd}`);
    },
  };
}

function inUse(path: string): DmaError {
  return new DmaError({ code: 'EADDRINUSE', operation: 'listen', reason: `${path} has a server already` });
}

function temporaryBeside(path: string): string {
  return join(dirname(path), `.${Math.random().toString(36).slice(2, 8)}`);
}

/** `path` as a sockaddr_un. */
function socketAddress(path: string, operation: string): Uint8Array {
  checkPath(path, operation);
  const bytes = Buffer.from(path);
  const most = SOCKADDR_UN.sizeof - SOCKADDR_UN.sun_path - 1;
  if (bytes.byteLength > most) {
    const reason = `${path} has ${bytes.byteLength} bytes, but the path of a socket has at most ${most}`;
    throw new DmaError({ code: 'ENAMETOOLONG', operation, reason });
  }
  const address = new Uint8Array(SOCKADDR_UN.sun_path + bytes.byteLength + 1);
  address[SOCKADDR_UN.sun_family] = AF_UNIX;
  address.set(bytes, SOCKADDR_UN.sun_path);
  return address;
}

function isSocket(libc: Libc, path: string): boolean {
  const into = new Uint16Array(STATX.sizeof / 2);
  return (
    libc.statx(AT_FDCWD, path, AT_SYMLINK_NOFOLLOW, STATX_TYPE, into) === 0 &&
    (into[STATX.stx_mode / 2] & S_IFMT) === S_IFSOCK
  );
}

/** Offset of the iovec in the memory of the message, in bytes. */
const VECTOR_AT = 64;
const CONTROL_AT = 80;
const FDS_AT = CONTROL_AT + CMSGHDR.sizeof;

/** A msghdr with its one iovec and its control data, reused for every sendmsg and recvmsg. */
class SocketMessage {
  readonly #libc: Libc;
  readonly #words = new Uint32Array((FDS_AT + MOST_FDS * 4 + 4) / 4);
  readonly #address: number;
  /** The address of each array: a lookup is faster than asking koffi, which creates a BigInt. */
  readonly #addresses = new WeakMap<Uint8Array, number>();

  constructor(libc: Libc) {
    this.#libc = libc;
    this.#address = libc.addressOf(this.#words);
    this.#set64(MSGHDR.msg_iov, this.#address + VECTOR_AT);
    this.#set64(MSGHDR.msg_iovlen, 1);
  }

  send(fd: number, bytes: Uint8Array, offset: number, fds: readonly number[]): number {
    checkFd(fd, 'sendmsg');
    const length = bytes.byteLength - offset;
    // An empty message is refused: the kernel would send neither a byte nor a descriptor, and 0 means "would block"
    // here.
    if (!(length > 0) || !(offset >= 0) || !Number.isInteger(offset))
      throw invalid('sendmsg', `can not send from offset ${offset} of ${bytes.byteLength} bytes`);
    if (fds.length > MOST_FDS)
      throw invalid('sendmsg', `${fds.length} descriptors in one message, the kernel takes at most ${MOST_FDS}`);
    this.#setBuffer(bytes, offset, length);
    if (fds.length === 0) this.#setControl(0);
    else {
      this.#setControl(CMSGHDR.sizeof + fds.length * 4);
      const words = this.#words;
      words[(CONTROL_AT + CMSGHDR.cmsg_len) / 4] = CMSGHDR.sizeof + fds.length * 4;
      words[(CONTROL_AT + CMSGHDR.cmsg_len) / 4 + 1] = 0;
      words[(CONTROL_AT + CMSGHDR.cmsg_level) / 4] = SOL_SOCKET;
      words[(CONTROL_AT + CMSGHDR.cmsg_type) / 4] = SCM_RIGHTS;
      for (let i = 0; i < fds.length; i++) {
        checkFd(fds[i], 'sendmsg');
        words[FDS_AT / 4 + i] = fds[i];
      }
    }
    for (;;) {
      const sent = this.#libc.sendmsg(fd, this.#address, MSG_NOSIGNAL | MSG_DONTWAIT);
      if (sent !== -1) return sent;
      const errno = this.#libc.errno();
      if (errno === ERRNO.EAGAIN) return 0;
      if (errno !== ERRNO.EINTR) fail(errno, 'sendmsg', `fd ${fd}`);
    }
  }

  receive(fd: number, into: Uint8Array, maxFds: number): ReceivedBytes | undefined {
    checkFd(fd, 'recvmsg');
    if (into.byteLength === 0) throw invalid('recvmsg', 'the receive buffer is empty or detached');
    if (!(maxFds >= 0 && maxFds <= MOST_FDS))
      throw invalid('recvmsg', `${maxFds} descriptors: 0 to ${MOST_FDS} are possible`);
    this.#setBuffer(into, 0, into.byteLength);
    // Exactly the space needed: the kernel would put another descriptor into padding.
    this.#setControl(maxFds === 0 ? 0 : CMSGHDR.sizeof + maxFds * 4);
    for (;;) {
      const bytes = this.#libc.recvmsg(fd, this.#address, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
      if (bytes !== -1) return this.#received(bytes);
      const errno = this.#libc.errno();
      if (errno === ERRNO.EAGAIN) return undefined;
      if (errno !== ERRNO.EINTR) fail(errno, 'recvmsg', `fd ${fd}`);
    }
  }

  #received(bytes: number): ReceivedBytes {
    const truncated = this.#isTruncated();
    const came = this.#fds();
    if (came === NO_FDS) return { bytes, fds: NO_FDS, truncated };
    const fds = came.map((each) => this.#libc.own(each)).filter((each) => each !== -1);
    return { bytes, fds, truncated: truncated || fds.length < came.length };
  }

  #setBuffer(bytes: Uint8Array, offset: number, length: number): void {
    let address = this.#addresses.get(bytes);
    if (address === undefined) this.#addresses.set(bytes, (address = this.#libc.addressOf(bytes)));
    this.#set64(VECTOR_AT + IOVEC.iov_base, address + offset);
    this.#set64(VECTOR_AT + IOVEC.iov_len, length);
  }

  #setControl(length: number): void {
    this.#set64(MSGHDR.msg_control, length === 0 ? 0 : this.#address + CONTROL_AT);
    this.#words[MSGHDR.msg_controllen / 4] = length;
    this.#words[MSGHDR.msg_flags / 4] = 0;
  }

  /** The descriptors in the control data of recvmsg. Only SCM_RIGHTS is ever enabled. */
  #fds(): readonly number[] {
    const words = this.#words;
    if (words[MSGHDR.msg_controllen / 4] < CMSGHDR.sizeof) return NO_FDS;
    const end = (CONTROL_AT + words[(CONTROL_AT + CMSGHDR.cmsg_len) / 4]) / 4;
    const isRights =
      words[(CONTROL_AT + CMSGHDR.cmsg_level) / 4] === SOL_SOCKET &&
      words[(CONTROL_AT + CMSGHDR.cmsg_type) / 4] === SCM_RIGHTS;
    return isRights ? Array.from(words.subarray(FDS_AT / 4, end)) : NO_FDS;
  }

  #isTruncated(): boolean {
    return (this.#words[MSGHDR.msg_flags / 4] & MSG_CTRUNC) !== 0;
  }

  #set64(at: number, value: number): void {
    this.#words[at / 4] = value >>> 0;
    this.#words[at / 4 + 1] = value / 2 ** 32;
  }
}
