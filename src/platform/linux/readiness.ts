/** Readiness of descriptors on Linux: libuv's poll for the event loop, poll(2) for blocking waits. */
import { atExit } from '../../at-exit.js';
import { ERRNO, invalid } from '../../errors.js';
import { check, checkFd, fail } from './libc.js';
import type { Libc, PollHandle } from './libc.js';
import type { ReadinessPort, Watch } from '../ports.js';
import { EPOLL_CLOEXEC, EPOLL_CTL_ADD, EPOLL_EVENT_ROOM, EPOLLIN } from '../uapi/eventpoll.js';
import { F_DUPFD_CLOEXEC } from '../uapi/fcntl.js';
import { POLLFD, POLLIN, POLLOUT } from '../uapi/poll.js';
import { now, setImmediate } from '../../timers.js';

/** The {@link ReadinessPort} that makes real system calls. */
export function linuxReadiness(libc: Libc): ReadinessPort {
  // koffi stops a watch whose handle is garbage-collected, so this set holds the open ones.
  const open = new Set<Watch>();
  // At process exit libuv runs once more, and a call into JavaScript would then abort the process.
  let forgetExit = (): void => undefined;
  const closeAll = (): void => {
    for (const watch of [...open]) watch.close();
  };
  let pollfds = new Uint32Array((8 * POLLFD.sizeof) / 4);

  return {
    watch(fd, interest, onReady) {
      const { readable = false, writable = false } = interest;
      if (!readable && !writable) throw invalid('watch', 'the interest is neither readable nor writable');
      checkFd(fd, 'watch');
      checkPollable(libc, fd);
      // libuv aborts the process if a descriptor is watched twice, or if its number is reused while it is still
      // watched; so each watch has its own duplicate. (So the other side of a socket sees no end before its watch is
      // closed too.)
      const own = check(libc, libc.fcntl(fd, F_DUPFD_CLOEXEC, 0), 'fcntl', `F_DUPFD_CLOEXEC of fd ${fd}`);
      let handle: PollHandle | undefined;
      let keepAlive = true;

      // In a direct callback from libuv, exceptions would be lost, and promises would not continue (Node 26) until the
      // next event. setImmediate runs before the next poll and avoids both.
      const ready = (status: number): void => {
        setImmediate(() => {
          if (handle === undefined) return;
          if (status < 0) restart();
          onReady();
        });
      };
      const start = (): void => {
        handle = libc.pollHandle(own, { readable, writable }, ready);
        if (!keepAlive) handle.unref();
      };
      /**
       * After an error condition libuv stops watching; a level-triggered watch has to continue until the error is dealt
       * with.
       */
      const restart = (): void => {
        handle?.close();
        start();
      };

      const watch: Watch = {
        setRef(keep) {
          keepAlive = keep;
          if (keep) handle?.ref();
          else handle?.unref();
        },
        close() {
          if (handle === undefined) return;
          open.delete(watch);
          if (open.size === 0) forgetExit();
          handle.close();
          handle = undefined;
          libc.close(own);
        },
      };
      try {
        start();
      } catch (error) {
        libc.close(own);
        throw error;
      }
      if (open.size === 0) forgetExit = atExit(closeAll);
      open.add(watch);
      return watch;
    },

    wait(fds, timeoutMs) {
      if (!(timeoutMs >= 0)) throw invalid('poll', `${timeoutMs} ms is not a valid timeout`);
      if (fds.length * POLLFD.sizeof > pollfds.byteLength)
        pollfds = new Uint32Array((fds.length * 2 * POLLFD.sizeof) / 4);
      for (let i = 0; i < fds.length; i++) {
        const { fd, readable, writable } = fds[i];
        checkFd(fd, 'poll');
        pollfds[2 * i] = fd;
        pollfds[2 * i + 1] = (readable ? POLLIN : 0) | (writable ? POLLOUT : 0); // the upper half, revents, is 0
      }
      const end = timeoutMs === 0 ? 0 : now() + timeoutMs;
      for (let left = timeoutMs; ; left = Math.max(0, end - now())) {
        const count = libc.poll(pollfds, fds.length, Math.min(Math.ceil(left), LONGEST_POLL));
        if (count > 0) {
          for (let i = 0; i < fds.length; i++) fds[i].ready = pollfds[2 * i + 1] >>> 16 !== 0;
          return true;
        }
        if (count === 0) {
          if (left <= LONGEST_POLL) return false;
        } else {
          const errno = libc.errno();
          if (errno !== ERRNO.EINTR) fail(errno, 'poll');
        }
      }
    },
  };
}

/** The longest timeout of one poll(2), in milliseconds. */
const LONGEST_POLL = 2 ** 31 - 1;

/**
 * Throws EPERM if the kernel can not poll `fd`; libuv would abort the process. Only epoll itself gives a reliable
 * answer.
 */
function checkPollable(libc: Libc, fd: number): void {
  const epoll = check(libc, libc.epoll_create1(EPOLL_CLOEXEC), 'epoll_create1');
  const event = new Uint32Array(EPOLL_EVENT_ROOM / 4);
  event[0] = EPOLLIN;
  const errno = libc.epoll_ctl(epoll, EPOLL_CTL_ADD, fd, event) === -1 ? libc.errno() : 0;
  libc.close(epoll);
  if (errno !== 0) fail(errno, 'watch', `fd ${fd} can not be polled`);
}
