/** Event counters on Linux. */
import { ERRNO } from '../../errors.js';
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
  const one = new Uint32Array([1, 0]);
  const count = new Uint32Array(2);
  const pollfd = new Uint32Array(POLLFD.sizeof / 4);
  const vector = new BigUint64Array(IOVEC.sizeof / 8);
  vector.set([BigInt(libc.addressOf(count)), 8n]);

  /** Checked first, because a descriptor from another process may be blocking. */
  const isReady = (fd: number, events: number): boolean => {
    pollfd[0] = fd;
    pollfd[1] = events;
    return libc.poll(pollfd, 1, 0) !== 0;
  };

  const signal = (fd: number): void => {
    checkFd(fd, 'write');
    // The sender may have made it blocking, and it may have become full since the check.
    const flags = libc.fcntl(fd, F_GETFL, 0);
    if (flags !== -1 && (flags & O_NONBLOCK) === 0) libc.fcntl(fd, F_SETFL, flags | O_NONBLOCK);
    if (!isReady(fd, POLLOUT)) fail(ERRNO.EAGAIN, 'write', `fd ${fd}`);
    check(libc, libc.write(fd, one, 8), 'write', `fd ${fd}`);
  };
  /** Made when it is needed first; null where it can not be made. */
  let adder: EventAdder | undefined | null;

  return {
    create: () => check(libc, libc.eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC), 'eventfd'),

    signal,

    signalForeign(fd) {
      checkFd(fd, 'io_submit');
      adder ??= adder === undefined ? (EventAdder.make(libc) ?? null) : null;
      if (adder === null) return signal(fd);
      const errno = adder.add(fd);
      if (errno !== 0) fail(errno, 'io_submit', `fd ${fd}`);
    },

    take(fd) {
      checkFd(fd, 'read');
      if (!isReady(fd, POLLIN)) return 0;
      // Another holder may have taken the count since; this call must not wait then.
      if (libc.preadv2(fd, vector, 1, RWF_NOWAIT) !== -1) return count[0] + count[1] * 2 ** 32;
      let errno = libc.errno();
      if (errno === ERRNO.ENOTSUP || errno === ERRNO.ENOSYS) {
        if (libc.read(fd, count, 8) !== -1) return count[0] + count[1] * 2 ** 32;
        errno = libc.errno();
      }
      return errno === ERRNO.EAGAIN ? 0 : fail(errno, 'read', `fd ${fd}`);
    },
  };
}
