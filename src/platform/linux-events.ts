/** Event counters on Linux. */
import { ERRNO } from '../errors.js';
import { check, checkFd, fail } from './libc.js';
import type { Libc } from './libc.js';
import type { EventsPort } from './ports.js';
import { POLLFD, POLLIN, POLLOUT } from './uapi/poll.js';
import { EFD_CLOEXEC, EFD_NONBLOCK } from './uapi/eventfd.js';

/** The {@link EventsPort} that makes real system calls. */
export function linuxEvents(libc: Libc): EventsPort {
  const one = new Uint32Array([1, 0]);
  const count = new Uint32Array(2);
  const pollfd = new Uint32Array(POLLFD.sizeof / 4);

  /** Asked first, because descriptors that came from another process may be blocking ones. */
  const isReady = (fd: number, events: number): boolean => {
    pollfd[0] = fd;
    pollfd[1] = events;
    return libc.poll(pollfd, 1, 0) !== 0;
  };

  return {
    create: () => check(libc, libc.eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC), 'eventfd'),

    signal(fd) {
      checkFd(fd, 'write');
      if (!isReady(fd, POLLOUT)) fail(ERRNO.EAGAIN, 'write', `fd ${fd}`);
      check(libc, libc.write(fd, one, 8), 'write', `fd ${fd}`);
    },

    take(fd) {
      checkFd(fd, 'read');
      if (!isReady(fd, POLLIN)) return 0;
      if (libc.read(fd, count, 8) !== -1) return count[0] + count[1] * 2 ** 32;
      const errno = libc.errno();
      return errno === ERRNO.EAGAIN ? 0 : fail(errno, 'read', `fd ${fd}`);
    },
  };
}
