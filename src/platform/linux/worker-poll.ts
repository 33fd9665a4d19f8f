/**
 * Readiness of descriptors in worker threads. koffi's poll handles would crash the process there: a terminated worker
 * runs no JavaScript to close them, and its event loop is freed while they are still in it.
 *
 * Here Node owns the only handle in the event loop, and closes it however the thread ends: a UDP socket, whose
 * descriptor is replaced by an epoll set before the loop first waits for it. When a descriptor in the set is ready, the
 * loop finds the socket readable, fails to receive from it (ENOTSOCK) and reports the error, once per turn while it
 * stays readable.
 */
import { createRequire } from 'node:module';
import { HERE } from '../../here.js';
import { ERRNO } from '../../errors.js';
import { check, fail } from './libc.js';
import type { Libc, PollHandle } from './libc.js';
import {
  EPOLL_CLOEXEC,
  EPOLL_CTL_ADD,
  EPOLL_CTL_DEL,
  EPOLL_EVENT,
  EPOLL_EVENT_ROOM,
  EPOLLIN,
  EPOLLOUT,
} from '../uapi/eventpoll.js';
import { O_CLOEXEC } from '../uapi/fcntl.js';
import { AF_INET, SOCK_CLOEXEC, SOCK_DGRAM, SOCK_NONBLOCK } from '../uapi/socket.js';
import { setImmediate } from '../../timers.js';

/** How many descriptors are reported in one turn of the event loop; the others follow in the next. */
const EVENTS_A_TURN = 64;

/** {@link Libc.pollHandle} for a worker thread. */
export function pollInWorker(libc: Libc): Libc['pollHandle'] {
  let set: PollSet | undefined;
  return (fd, { readable, writable }, onEvent) => {
    set ??= new PollSet(libc, () => (set = undefined));
    return set.add(fd, (readable ? EPOLLIN : 0) | (writable ? EPOLLOUT : 0), onEvent);
  };
}

/** One descriptor in the set. */
interface Entry {
  readonly onEvent: (status: number) => void;
  ref: boolean;
}

/** The epoll set of this thread; closed after it has been empty for a turn. */
class PollSet {
  readonly #libc: Libc;
  readonly #fd: number;
  readonly #socket: { ref(): unknown; unref(): unknown; close(): unknown };
  readonly #onEnd: () => void;
  /** Entries by the number in the epoll event. Not by descriptor: the number of a closed one is soon reused. */
  readonly #entries = new Map<number, Entry>();
  /** The entry of each descriptor. */
  readonly #byFd = new Map<number, Entry>();
  #lastNumber = 0;
  readonly #events = new Uint32Array((EVENTS_A_TURN * EPOLL_EVENT_ROOM) / 4);
  readonly #event = new Uint32Array(EPOLL_EVENT_ROOM / 4);
  #refs = 0;
  #ending = false;

  constructor(libc: Libc, onEnd: () => void) {
    this.#libc = libc;
    this.#onEnd = onEnd;
    const { createSocket } = createRequire(HERE)('node:dgram') as typeof import('node:dgram');
    const epoll = check(libc, libc.epoll_create1(EPOLL_CLOEXEC), 'epoll_create1');
    try {
      this.#fd = check(libc, libc.socket(AF_INET, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), 'socket');
      const socket = createSocket('udp4');
      try {
        socket.bind({ fd: this.#fd, exclusive: true });
      } catch (error) {
        libc.close(this.#fd);
        throw error;
      }
      socket.unref();
      socket.on('error', () => this.#dispatch());
      this.#socket = socket;
      if (libc.dup3(epoll, this.#fd, O_CLOEXEC) === -1) {
        const errno = libc.errno();
        socket.close();
        fail(errno, 'dup3', `fd ${this.#fd}`);
      }
    } finally {
      libc.close(epoll);
    }
  }

  add(fd: number, events: number, onEvent: (status: number) => void): PollHandle {
    const number = this.#newNumber();
    const event = this.#event.fill(0);
    event[0] = events;
    event[EPOLL_EVENT.data / 4] = number;
    check(this.#libc, this.#libc.epoll_ctl(this.#fd, EPOLL_CTL_ADD, fd, event), 'epoll_ctl', `fd ${fd}`);
    const entry: Entry = { onEvent, ref: false };
    this.#entries.set(number, entry);
    this.#byFd.set(fd, entry);
    this.#setRef(entry, true);
    return {
      ref: () => {
        if (this.#entries.has(number)) this.#setRef(entry, true);
      },
      unref: () => this.#setRef(entry, false),
      close: () => {
        if (!this.#entries.delete(number)) return;
        this.#setRef(entry, false);
        // The descriptor may have been closed and its number reused by another one in the set.
        if (this.#byFd.get(fd) === entry) {
          this.#byFd.delete(fd);
          this.#libc.epoll_ctl(this.#fd, EPOLL_CTL_DEL, fd, event);
        }
        this.#endSoon();
      },
    };
  }

  /** A number that no entry has, and that was not used recently. */
  #newNumber(): number {
    do this.#lastNumber = (this.#lastNumber + 1) >>> 0;
    while (this.#entries.has(this.#lastNumber));
    return this.#lastNumber;
  }

  #setRef(entry: Entry, ref: boolean): void {
    if (entry.ref === ref) return;
    entry.ref = ref;
    this.#refs += ref ? 1 : -1;
    if (this.#refs > 0) this.#socket.ref();
    else this.#socket.unref();
  }

  #dispatch(): void {
    const events = this.#events;
    const count = this.#libc.epoll_wait(this.#fd, events, EVENTS_A_TURN, 0);
    if (count === -1 && this.#libc.errno() !== ERRNO.EINTR) fail(this.#libc.errno(), 'epoll_wait');
    for (let i = 0; i < count; i++) {
      // One callback may close the handle of another.
      this.#entries.get(events[(i * EPOLL_EVENT.sizeof + EPOLL_EVENT.data) / 4])?.onEvent(0);
    }
  }

  /** Waits a turn, because changing the interest closes one handle and opens another. */
  #endSoon(): void {
    if (this.#entries.size > 0 || this.#ending) return;
    this.#ending = true;
    setImmediate(() => {
      this.#ending = false;
      if (this.#entries.size > 0) return;
      this.#onEnd();
      this.#socket.close();
    });
  }
}
