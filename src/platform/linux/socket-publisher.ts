/** Paths of listening sockets, on Linux: one that works appears in one step, and replaces only one whose server has ended. */
import { dirname, join } from 'node:path';
import { DmaError, ERRNO } from '../../errors.js';
import { check, fail } from './libc.js';
import type { Libc } from './libc.js';
import { AT_FDCWD, AT_SYMLINK_NOFOLLOW, LOCK_EX, LOCK_NB, O_CLOEXEC, O_RDONLY } from '../uapi/fcntl.js';
import { S_IFMT, S_IFSOCK, STATX, STATX_TYPE } from '../uapi/stat.js';

/** How often, once per millisecond, a lock is tried. Others hold it only for a few system calls. */
const LOCK_TRIES = 2000;
const sleeper = new Int32Array(new SharedArrayBuffer(4));

/** A free name in the directory of `path`, so that it can be linked to `path`; short, for the limit of 107 bytes. */
export function temporaryBeside(path: string): string {
  return join(dirname(path), `.${Math.random().toString(36).slice(2, 8)}`);
}

/** Gives listening sockets their paths. */
export class SocketPublisher {
  readonly #libc: Libc;
  readonly #connect: (path: string) => number;

  /** @param connect connects to a socket, to see whether anyone listens */
  constructor(libc: Libc, connect: (path: string) => number) {
    this.#libc = libc;
    this.#connect = connect;
  }

  /** Links the listening socket at `temporary` to `path`, without ever replacing that of a live server. */
  publish(temporary: string, path: string): void {
    if (this.#libc.link(temporary, path) === 0) {
      check(this.#libc, this.#libc.unlink(temporary), 'unlink', temporary);
      return;
    }
    const errno = this.#libc.errno();
    if (errno !== ERRNO.EEXIST) fail(errno, 'link', path);
    // Only one server at a time: replacing moves the old socket away for a moment.
    this.#alone(dirname(path), () => this.#replace(temporary, path));
  }

  /** Replaces the socket of a server that has ended. */
  #replace(temporary: string, path: string): void {
    if (!isSocket(this.#libc, path)) {
      const reason = `${path} exists and is not a socket`;
      throw new DmaError({
        code: 'EEXIST',
        operation: 'listen',
        reason,
        hint: 'choose another path or remove the file',
      });
    }
    if (this.#isLive(path)) throw inUse(path);
    // Move it away and check again before removing it: a server that takes no lock may have replaced it since.
    const stale = temporaryBeside(path);
    if (this.#libc.rename(path, stale) === -1) {
      const failed = this.#libc.errno();
      if (failed !== ERRNO.ENOENT) fail(failed, 'rename', path);
    } else {
      const live = this.#isLive(stale);
      if (live) this.#libc.link(stale, path);
      check(this.#libc, this.#libc.unlink(stale), 'unlink', stale);
      if (live) throw inUse(path);
    }
    if (this.#libc.link(temporary, path) === -1) {
      const failed = this.#libc.errno();
      if (failed === ERRNO.EEXIST) throw inUse(path);
      fail(failed, 'link', path);
    }
    check(this.#libc, this.#libc.unlink(temporary), 'unlink', temporary);
  }

  /**
   * Runs `work` while no other server of this library replaces a socket in the folder. Gives up waiting for the lock
   * after the time that a server needs.
   */
  #alone(folder: string, work: () => void): void {
    const fd = this.#libc.open(folder, O_RDONLY | O_CLOEXEC, 0);
    try {
      for (let tries = 0; fd !== -1 && tries < LOCK_TRIES && this.#libc.flock(fd, LOCK_EX | LOCK_NB) !== 0; tries++)
        Atomics.wait(sleeper, 0, 0, 1);
      work();
    } finally {
      if (fd !== -1) this.#libc.close(fd);
    }
  }

  /** Is anyone listening at `path`? Only a refused connection means that nobody is. */
  #isLive(path: string): boolean {
    try {
      this.#libc.close(this.#connect(path));
      return true;
    } catch (error) {
      if (!(error instanceof DmaError)) throw error;
      return error.code !== 'ECONNREFUSED' && error.code !== 'ENOENT';
    }
  }
}

function inUse(path: string): DmaError {
  return new DmaError({ code: 'EADDRINUSE', operation: 'listen', reason: `${path} has a server already` });
}

function isSocket(libc: Libc, path: string): boolean {
  const into = new Uint16Array(STATX.sizeof / 2);
  return (
    libc.statx(AT_FDCWD, path, AT_SYMLINK_NOFOLLOW, STATX_TYPE, into) === 0 &&
    (into[STATX.stx_mode / 2] & S_IFMT) === S_IFSOCK
  );
}
