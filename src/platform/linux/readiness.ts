/** Readiness of descriptors on Linux: libuv's poll for the event loop, poll(2) for blocking waits. */
import { atExit } from '../../at-exit.js';
import { ERRNO, invalid } from '../../errors.js';
import { bound } from './bound.js';
import { check, checkFd, fail } from './libc.js';
import type { Libc, PollHandle } from './libc.js';
import type { Polled, ReadinessPort, Watch } from '../ports.js';
import { EPOLL_CLOEXEC, EPOLL_CTL_ADD, EPOLL_EVENT_ROOM, EPOLLIN } from '../uapi/eventpoll.js';
import { F_DUPFD_CLOEXEC } from '../uapi/fcntl.js';
import { POLLFD, POLLIN, POLLOUT } from '../uapi/poll.js';
import { now, setImmediate } from '../../timers.js';

/** The {@link ReadinessPort} that makes real system calls. */
export function linuxReadiness(libc: Libc): ReadinessPort {
  return bound(new LinuxReadiness(libc));
}

class LinuxReadiness implements ReadinessPort {
  readonly #libc: Libc;
  readonly #open = new OpenWatches();
  /** The argument of poll(2), reused. */
  #pollfds = new Uint32Array((8 * POLLFD.sizeof) / 4);

  constructor(libc: Libc) {
    this.#libc = libc;
  }

  watch(fd: number, interest: Interest, onReady: () => void): Watch {
    if (interest.readable !== true && interest.writable !== true)
      throw invalid('watch', 'the interest is neither readable nor writable');
    checkFd(fd, 'watch');
    checkPollable(this.#libc, fd);
    return new LinuxWatch(this.#libc, fd, interest, onReady, this.#open);
  }

  wait(fds: readonly Polled[], timeoutMs: number): boolean {
    if (!(timeoutMs >= 0)) throw invalid('poll', `${timeoutMs} ms is not a valid timeout`);
    if (fds.length * POLLFD.sizeof > this.#pollfds.byteLength)
      this.#pollfds = new Uint32Array((fds.length * 2 * POLLFD.sizeof) / 4);
    for (let i = 0; i < fds.length; i++) {
      const { fd, readable, writable } = fds[i];
      checkFd(fd, 'poll');
      this.#pollfds[2 * i] = fd;
      this.#pollfds[2 * i + 1] = (readable ? POLLIN : 0) | (writable ? POLLOUT : 0); // the upper half, revents, is 0
    }
    const end = timeoutMs === 0 ? 0 : now() + timeoutMs;
    for (let left = timeoutMs; ; left = Math.max(0, end - now())) {
      const count = this.#libc.poll(this.#pollfds, fds.length, Math.min(Math.ceil(left), LONGEST_POLL));
      if (count > 0) {
        for (let i = 0; i < fds.length; i++) fds[i].ready = this.#pollfds[2 * i + 1] >>> 16 !== 0;
        return true;
      }
      if (count === 0) {
        if (left <= LONGEST_POLL) return false;
      } else {
        const errno = this.#libc.errno();
        if (errno !== ERRNO.EINTR) fail(errno, 'poll');
      }
    }
  }
}

type Interest = Parameters<ReadinessPort['watch']>[1];

/**
 * The open watches. koffi stops a watch whose handle is garbage-collected, so this set holds them. At process exit
 * libuv runs once more, and a call into JavaScript would then abort the process; so they are closed before.
 */
class OpenWatches {
  readonly #watches = new Set<LinuxWatch>();
  #forgetExit = (): void => undefined;

  add(watch: LinuxWatch): void {
    if (this.#watches.size === 0)
      this.#forgetExit = atExit(() => {
        for (const each of [...this.#watches]) each.close();
      });
    this.#watches.add(watch);
  }

  delete(watch: LinuxWatch): void {
    this.#watches.delete(watch);
    if (this.#watches.size === 0) this.#forgetExit();
  }
}

class LinuxWatch implements Watch {
  readonly #libc: Libc;
  readonly #interest: Required<Interest>;
  readonly #onReady: () => void;
  readonly #open: OpenWatches;
  /**
   * libuv aborts the process if a descriptor is watched twice, or if its number is reused while it is still watched; so
   * each watch has its own duplicate. (So the other side of a socket sees no end before its watch is closed too.)
   */
  readonly #fd: number;
  #handle: PollHandle | undefined;
  #keepsAlive = true;

  constructor(libc: Libc, fd: number, interest: Interest, onReady: () => void, open: OpenWatches) {
    this.#libc = libc;
    this.#interest = { readable: interest.readable ?? false, writable: interest.writable ?? false };
    this.#onReady = onReady;
    this.#open = open;
    this.#fd = check(libc, libc.fcntl(fd, F_DUPFD_CLOEXEC, 0), 'fcntl', `F_DUPFD_CLOEXEC of fd ${fd}`);
    try {
      this.#start();
    } catch (error) {
      libc.close(this.#fd);
      throw error;
    }
    open.add(this);
  }

  setRef(keepAlive: boolean): void {
    this.#keepsAlive = keepAlive;
    if (keepAlive) this.#handle?.ref();
    else this.#handle?.unref();
  }

  close(): void {
    if (this.#handle === undefined) return;
    this.#open.delete(this);
    this.#handle.close();
    this.#handle = undefined;
    this.#libc.close(this.#fd);
  }

  #start(): void {
    this.#handle = this.#libc.pollHandle(this.#fd, this.#interest, (status) => this.#ready(status));
    if (!this.#keepsAlive) this.#handle.unref();
  }

  /**
   * In a direct callback from libuv, exceptions would be lost, and promises would not continue (Node 26) until the next
   * event. setImmediate runs before the next poll and avoids both.
   */
  #ready(status: number): void {
    setImmediate(() => {
      if (this.#handle === undefined) return;
      if (status < 0) this.#restart();
      this.#onReady();
    });
  }

  /** After an error condition libuv stops watching; a level-triggered watch has to continue until the error is dealt with. */
  #restart(): void {
    this.#handle?.close();
    this.#start();
  }
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
