/**
 * UNIX stream sockets that carry descriptors, on Linux. `send` and `receive` are the hot path of the vfio-user protocol: all
 * that they hand to the kernel is laid out once, and they allocate nothing but what they return.
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

/** {@link SO_PEERCRED} as a pidfd, since Linux 6.5, which the headers of older systems do not have (asm-generic/socket.h). */
const SO_PEERPIDFD = 77;

const STREAM = SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC;
/** How often, a millisecond apart, a lock is asked for that others hold for as long as some system calls take. */
const LOCK_TRIES = 2000;
const sleeper = new Int32Array(new SharedArrayBuffer(4));

const NO_FDS: readonly number[] = Object.freeze<number[]>([]);

/** The {@link SocketsPort} that makes real system calls. */
export function linuxSockets(libc: Libc): SocketsPort {
  const message = new SocketMessage(libc);

  const openSocket = (): number => check(libc, libc.socket(AF_UNIX, STREAM, 0), 'socket');

  /** Does `action` with a new socket, which is closed again when that fails. */
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

  /** Makes the listening socket at `temporary` appear at `path`, without ever taking the place of a live server's. */
  const publish = (temporary: string, path: string): void => {
    if (libc.link(temporary, path) === 0) {
      check(libc, libc.unlink(temporary), 'unlink', temporary);
      return;
    }
    const errno = libc.errno();
    if (errno !== ERRNO.EEXIST) fail(errno, 'link', path);
    // What is there is looked at by one after the other: who replaces it moves it away for a moment.
    alone(dirname(path), () => replace(temporary, path));
  };

  /** Takes the place of the socket of a server that has ended. */
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
    // It is moved away and looked at again before it goes: a server that knows nothing of locks may have taken its place since.
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
   * Does `work` while no other server of this library replaces a socket in the folder. Who holds the lock for long is not one, and is
   * waited for no longer than that takes.
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

  /** Does somebody listen at `path`? Only a refused connection says that nobody does. */
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
      // In the same directory, so that it can be linked, and short, so that it fits where most paths do.
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
        // A client that went away before it was accepted is nobody's error.
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
      // Before Linux 6.5, by the number, which may be another process's by now; then it is only waited for too long.
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
    const reason = `${path} has ${bytes.byteLength} bytes, the path of a socket at most ${most}`;
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

/** Where the parts of the one message are in its memory, in bytes. */
const VECTOR_AT = 64;
const CONTROL_AT = 80;
const FDS_AT = CONTROL_AT + CMSGHDR.sizeof;

/** A msghdr with its one iovec and its control data, used again for every sendmsg and recvmsg. */
class SocketMessage {
  readonly #libc: Libc;
  readonly #words = new Uint32Array((FDS_AT + MOST_FDS * 4 + 4) / 4);
  readonly #address: number;
  /** Where each array's first byte is: asking costs more than looking up, and makes a BigInt. */
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
    // No bytes, no message: the kernel would take neither a byte nor a descriptor, and 0 means "would block" here.
    if (!(length > 0) || !(offset >= 0) || !Number.isInteger(offset))
      throw invalid('sendmsg', `nothing can be sent from offset ${offset} of ${bytes.byteLength} bytes`);
    if (fds.length > MOST_FDS)
      throw invalid('sendmsg', `${fds.length} descriptors in one message, the kernel takes ${MOST_FDS}`);
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
    if (into.byteLength === 0) throw invalid('recvmsg', 'there is no room to receive into, or it is detached');
    if (!(maxFds >= 0 && maxFds <= MOST_FDS))
      throw invalid('recvmsg', `${maxFds} descriptors: 0 to ${MOST_FDS} are possible`);
    this.#setBuffer(into, 0, into.byteLength);
    // Not a byte more than asked for: the kernel would put another descriptor into the padding.
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

  /** The descriptors in the control data that recvmsg left. Nothing but SCM_RIGHTS is ever asked for. */
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
