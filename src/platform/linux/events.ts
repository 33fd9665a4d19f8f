/** Event counters on Linux. */
import { ERRNO } from '../../errors.js';
import { bound } from './bound.js';
import { check, checkFd, fail } from './libc.js';
import { EventAdder } from './event-adder.js';
import type { Libc } from './libc.js';
import type { EventsPort } from '../ports.js';
import { F_GETFL, F_SETFL, O_NONBLOCK } from '../uapi/fcntl.js';
import { POLLFD, POLLIN, POLLOUT } from '../uapi/poll.js';
import { RWF_NOWAIT } from '../uapi/fs.js';
import { IOVEC } from '../uapi/socket.js';
import { EFD_CLOEXEC, EFD_NONBLOCK } from '../uapi/eventfd.js';

/** The {@link EventsPort} that makes real system calls. */
export function linuxEvents(libc: Libc): EventsPort {
  return bound(new LinuxEvents(libc));
}

class LinuxEvents implements EventsPort {
  readonly #libc: Libc;
  readonly #one = new Uint32Array([1, 0]);
  /** What was read. */
  readonly #count = new Uint32Array(2);
  /** The argument of preadv2(2): where {@link #count} is. */
  readonly #vector = new BigUint64Array(IOVEC.sizeof / 8);
  readonly #pollfd = new Uint32Array(POLLFD.sizeof / 4);
  /** Made when it is needed first; null where it can not be made. */
  #adder: EventAdder | undefined | null;

  constructor(libc: Libc) {
    this.#libc = libc;
    this.#vector.set([BigInt(libc.addressOf(this.#count)), 8n]);
  }

  create(): number {
    return check(this.#libc, this.#libc.eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC), 'eventfd');
  }

  signal(fd: number): void {
    const libc = this.#libc;
    checkFd(fd, 'write');
    // The sender may have made it blocking, and it may have become full since the check.
    const flags = libc.fcntl(fd, F_GETFL, 0);
    if (flags !== -1 && (flags & O_NONBLOCK) === 0) libc.fcntl(fd, F_SETFL, flags | O_NONBLOCK);
    if (!this.#isReady(fd, POLLOUT)) fail(ERRNO.EAGAIN, 'write', `fd ${fd}`);
    check(libc, libc.write(fd, this.#one, 8), 'write', `fd ${fd}`);
  }

  signalForeign(fd: number): void {
    checkFd(fd, 'io_submit');
    if (this.#adder === undefined) this.#adder = EventAdder.make(this.#libc) ?? null;
    if (this.#adder === null) return this.signal(fd);
    const errno = this.#adder.add(fd);
    if (errno !== 0) fail(errno, 'io_submit', `fd ${fd}`);
  }

  take(fd: number): number {
    const libc = this.#libc;
    checkFd(fd, 'read');
    if (!this.#isReady(fd, POLLIN)) return 0;
    // Another holder may have taken the count since; this call must not wait then.
    if (libc.preadv2(fd, this.#vector, 1, RWF_NOWAIT) !== -1) return this.#taken();
    let errno = libc.errno();
    if (errno === ERRNO.ENOTSUP || errno === ERRNO.ENOSYS) {
      if (libc.read(fd, this.#count, 8) !== -1) return this.#taken();
      errno = libc.errno();
    }
    return errno === ERRNO.EAGAIN ? 0 : fail(errno, 'read', `fd ${fd}`);
  }

  #taken(): number {
    return this.#count[0] + this.#count[1] * 2 ** 32;
  }

  /** Checked first, because a descriptor from another process may be blocking. */
  #isReady(fd: number, events: number): boolean {
    this.#pollfd[0] = fd;
    this.#pollfd[1] = events;
    return this.#libc.poll(this.#pollfd, 1, 0) !== 0;
  }
}
