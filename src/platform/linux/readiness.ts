/** Readiness of raw descriptors on Linux: libuv's poll for the event loop, poll(2) for waiting in place. */
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
  // koffi stops a watch whose handle is collected, so the open ones are held here.
  const open = new Set<Watch>();
  // libuv runs once more when the process ends, and a call into JavaScript aborts it then.
  let forgetExit = (): void => undefined;
  const closeAll = (): void => {
    for (const watch of [...open]) watch.close();
  };
  let pollfds = new Uint32Array((8 * POLLFD.sizeof) / 4);

  return {
    watch(fd, interest, onReady) {
      const { readable = false, writable = false } = interest;
      if (!readable && !writable) throw invalid('watch', 'neither readable nor writable is asked for');
      checkFd(fd, 'watch');
      checkPollable(libc, fd);
      // libuv aborts the process when a descriptor is watched twice, or when its number is used again while it is still
      // watched; so each watch has its own. (Hence a socket's other side sees no end before its watch is closed too.)
      const own = check(libc, libc.fcntl(fd, F_DUPFD_CLOEXEC, 0), 'fcntl', `F_DUPFD_CLOEXEC of fd ${fd}`);
      let handle: PollHandle | undefined;
      let keepAlive = true;

      // Called straight from libuv, an exception would vanish and promises would not go on (Node 26) until something else
      // happens. An immediate comes before the next poll and has neither fault.
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
      /** On an error condition libuv stops watching; a level-triggered watch goes on until somebody has dealt with it. */
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
      if (!(timeoutMs >= 0)) throw invalid('poll', `a time of ${timeoutMs} ms is not possible`);
      if (fds.length * POLLFD.sizeof > pollfds.byteLength)
        pollfds = new Uint32Array((fds.length * 2 * POLLFD.sizeof) / 4);
      for (let i = 0; i < fds.length; i++) {
        const { fd, readable, writable } = fds[i];
        checkFd(fd, 'poll');
        pollfds[2 * i] = fd;
        pollfds[2 * i + 1] = (readable ? POLLIN : 0) | (writable ? POLLOUT : 0); // and revents, in the upper half, is 0
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

/** The longest time that one poll(2) takes, in milliseconds. */
const LONGEST_POLL = 2 ** 31 - 1;

/** Throws EPERM when the kernel can not poll `fd`, for libuv would abort the process. Only epoll itself knows for sure. */
function checkPollable(libc: Libc, fd: number): void {
  const epoll = check(libc, libc.epoll_create1(EPOLL_CLOEXEC), 'epoll_create1');
  const event = new Uint32Array(EPOLL_EVENT_ROOM / 4);
  event[0] = EPOLLIN;
  const errno = libc.epoll_ctl(epoll, EPOLL_CTL_ADD, fd, event) === -1 ? libc.errno() : 0;
  libc.close(epoll);
  if (errno !== 0) fail(errno, 'watch', `fd ${fd} can not be polled`);
}
