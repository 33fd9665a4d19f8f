/**
 * Locks of the kernel that are held for ever: a call has taken one, and then waits for a page that does not come. Here
 * userfaultfd(2) keeps it; any user can do the same by a page of a file of FUSE.
 */
import { strict as assert } from 'node:assert';
import type { Libc } from '../../src/platform/linux/libc.js';
import { MAP_ANONYMOUS, MAP_PRIVATE, PROT_READ, PROT_WRITE } from '../../src/platform/uapi/mman.js';

const SYS_USERFAULTFD = process.arch === 'x64' ? 323 : 282;
/** From include/uapi/linux/userfaultfd.h. */
const UFFD_API = 0xaa;
const UFFDIO_API = 0xc018aa3f;
const UFFDIO_REGISTER = 0xc020aa00;
const UFFDIO_REGISTER_MODE_MISSING = 1;
const O_CLOEXEC = 0o2000000;
const LENGTH = 4096;

/** A page that does not come before {@link MissingPage.giveUp}. */
export class MissingPage {
  private constructor(
    private readonly libc: Libc,
    private readonly watcher: number,
    private readonly va: number,
  ) {}

  /** `undefined` where this user may not have one that the kernel waits for. */
  static make(libc: Libc): MissingPage | undefined {
    const syscall = libc.library('libc.so.6').func('syscall', 'intptr_t', 'intptr_t', 'intptr_t');
    const watcher = syscall(SYS_USERFAULTFD, O_CLOEXEC);
    if (watcher < 0) return undefined;
    const va = libc.mmap(0, LENGTH, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    const range = new BigUint64Array([BigInt(va), BigInt(LENGTH), BigInt(UFFDIO_REGISTER_MODE_MISSING), 0n]);
    const isWatched =
      libc.ioctl(watcher, UFFDIO_API, new BigUint64Array([BigInt(UFFD_API), 0n, 0n])) === 0 &&
      libc.ioctl(watcher, UFFDIO_REGISTER, range) === 0;
    if (isWatched) return new MissingPage(libc, watcher, va);
    libc.munmap(va, LENGTH);
    libc.close(watcher);
    return undefined;
  }

  /** Begins, on another thread, a call on `fd` that needs the page, and so ends after {@link giveUp} only. */
  use(call: 'write' | 'recv', fd: number): void {
    const library = this.libc.library('libc.so.6');
    const flags = call === 'recv' ? (['int'] as const) : [];
    const later = library.later(call, 'intptr_t', 'int', 'intptr_t', 'size_t', ...flags);
    void later(fd, this.va, LENGTH, ...flags.map(() => 0)).then(() => this.libc.munmap(this.va, LENGTH));
    // Until it has taken the lock.
    Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 5);
  }

  /** The page comes. */
  giveUp(): void {
    assert.equal(this.libc.close(this.watcher), 0);
  }
}
