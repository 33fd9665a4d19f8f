/** UNIX stream sockets that carry descriptors, on Linux. */
import { DmaError, ERRNO, undoAll } from '../../errors.js';
import { bound } from './bound.js';
import { check, checkFd, checkPath, fail } from './libc.js';
import type { Libc } from './libc.js';
import { SocketMessage } from './socket-message.js';
import { SocketPublisher, temporaryBeside } from './socket-publisher.js';
import type { Peer, ReceivedBytes, SocketsPort } from '../ports.js';
import {
  AF_UNIX,
  SHUT_RDWR,
  SO_PEERCRED,
  SOCK_CLOEXEC,
  SOCK_NONBLOCK,
  SOCK_STREAM,
  SOCKADDR_UN,
  SOL_SOCKET,
} from '../uapi/socket.js';

/** {@link SO_PEERCRED} as a pidfd (Linux 6.5, asm-generic/socket.h); the headers of older systems lack it. */
const SO_PEERPIDFD = 77;

const STREAM = SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC;

/** The {@link SocketsPort} that makes real system calls. */
export function linuxSockets(libc: Libc): SocketsPort {
  return bound(new LinuxSockets(libc));
}

class LinuxSockets implements SocketsPort {
  readonly #libc: Libc;
  readonly #message: SocketMessage;
  readonly #publisher: SocketPublisher;

  constructor(libc: Libc) {
    this.#libc = libc;
    this.#message = new SocketMessage(libc);
    this.#publisher = new SocketPublisher(libc, (path) => this.connect(path));
  }

  connect(path: string): number {
    const address = socketAddress(path, 'connect');
    return this.#withSocket((fd) =>
      check(this.#libc, this.#libc.connect(fd, address, address.byteLength), 'connect', path),
    );
  }

  listen(path: string, backlog: number): number {
    socketAddress(path, 'bind');
    const temporary = temporaryBeside(path);
    const address = socketAddress(temporary, 'bind');
    return this.#withSocket((fd) => {
      check(this.#libc, this.#libc.bind(fd, address, address.byteLength), 'bind', path);
      try {
        check(this.#libc, this.#libc.listen(fd, backlog), 'listen', path);
        this.#publisher.publish(temporary, path);
      } catch (error) {
        undoAll([() => this.#libc.unlink(temporary)]);
        throw error;
      }
    });
  }

  accept(fd: number): number | undefined {
    checkFd(fd, 'accept4');
    for (;;) {
      const connection = this.#libc.accept4(fd, null, null, SOCK_NONBLOCK | SOCK_CLOEXEC);
      if (connection !== -1) return connection;
      const errno = this.#libc.errno();
      if (errno === ERRNO.EAGAIN) return undefined;
      // A client that disconnected before it was accepted is not an error.
      if (errno !== ERRNO.EINTR && errno !== ERRNO.ECONNABORTED) fail(errno, 'accept4', `fd ${fd}`);
    }
  }

  pair(): [number, number] {
    const fds = new Int32Array(2);
    check(this.#libc, this.#libc.socketpair(AF_UNIX, STREAM, 0, fds), 'socketpair');
    return [fds[0], fds[1]];
  }

  send(fd: number, bytes: Uint8Array, offset: number, fds: readonly number[]): number {
    return this.#message.send(fd, bytes, offset, fds);
  }

  receive(fd: number, into: Uint8Array, maxFds: number): ReceivedBytes | undefined {
    return this.#message.receive(fd, into, maxFds);
  }

  peer(fd: number): Peer {
    const value = new Int32Array(3);
    const length = new Uint32Array([12]);
    checkFd(fd, 'getsockopt');
    check(
      this.#libc,
      this.#libc.getsockopt(fd, SOL_SOCKET, SO_PEERCRED, value, length),
      'getsockopt',
      `SO_PEERCRED of fd ${fd}`,
    );
    const [pid, uid] = value;
    const user = uid >>> 0;
    return { pid, user, trusted: user === 0 || user === this.#libc.geteuid() >>> 0 };
  }

  peerProcess(fd: number): number | 'ended' | undefined {
    const value = new Int32Array(1);
    const length = new Uint32Array([4]);
    checkFd(fd, 'getsockopt');
    if (this.#libc.getsockopt(fd, SOL_SOCKET, SO_PEERPIDFD, value, length) === 0) return this.#libc.own(value[0]);
    // Before Linux 6.5: by process number, which may have been reused; then the wait only takes longer.
    const { pid } = this.peer(fd);
    if (pid <= 0) return undefined;
    const process = this.#libc.pidfd_open(pid, 0);
    if (process !== -1) return process;
    const errno = this.#libc.errno();
    return errno === ERRNO.ESRCH ? 'ended' : fail(errno, 'pidfd_open', `process ${pid}`);
  }

  shutdown(fd: number): void {
    checkFd(fd, 'shutdown');
    check(this.#libc, this.#libc.shutdown(fd, SHUT_RDWR), 'shutdown', `fd ${fd}`);
  }

  /** Runs `action` with a new socket, and closes the socket if that fails. */
  #withSocket(action: (fd: number) => void): number {
    const fd = check(this.#libc, this.#libc.socket(AF_UNIX, STREAM, 0), 'socket');
    try {
      action(fd);
      return fd;
    } catch (error) {
      this.#libc.close(fd);
      throw error;
    }
  }
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
