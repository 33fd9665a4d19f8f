/** The pages behind mapped addresses on Linux: populating, locating and locking them. */
import { DmaError, ERRNO, invalid } from '../../errors.js';
import { hex, isAddress } from '../../units.js';
import type { Va } from '../../units.js';
import { check, fail } from './libc.js';
import type { Libc } from './libc.js';
import { checkPages, checkRange } from './page-checks.js';
import { readKernelText } from './proc.js';
import type { MemoryPort } from '../ports.js';
import { O_CLOEXEC, O_RDONLY } from '../uapi/fcntl.js';
import { MPOL_BIND } from '../uapi/mempolicy.js';
import { MADV_DONTNEED, MADV_POPULATE_READ, MADV_POPULATE_WRITE } from '../uapi/mman.js';

/** More NUMA nodes than any kernel supports (CONFIG_NODES_SHIFT is at most 10). */
const MOST_NODES = 1024;

/** The most parts of one vectored read (UIO_MAXIOV of include/uapi/linux/uio.h). */
const MOST_PARTS = 1024;

/** The kernel itself refuses mbind to no process; the seccomp profiles of containers do. */
const SANDBOXED =
  'a sandbox denies the system call mbind: give the container CAP_SYS_NICE (docker run --cap-add SYS_NICE), or allow mbind in its seccomp profile';
/**
 * An entry of /proc/self/pagemap: 64 bits; the top bit is set if the page is present, the low 55 bits are its frame
 * number.
 */
const ENTRY_SIZE = 8;
const ENTRIES_AT_ONCE = 512;
/** Errors of opening it where it is hidden: the kernel lacks the file, or this user may not open it. */
const HIDDEN: readonly number[] = [ERRNO.ENOENT, ERRNO.EACCES, ERRNO.EPERM];

/** What {@link Pages} has. */
export type PagesPort = Pick<
  MemoryPort,
  'lanes' | 'populate' | 'populateAsync' | 'dropAsync' | 'bind' | 'nodesOf' | 'frames' | 'lock'
>;

/** The part of the {@link MemoryPort} about single pages. */
export class Pages implements PagesPort {
  readonly lanes: number;
  readonly #libc: Libc;
  readonly #pageSize: number;
  #knowsPopulate: boolean | undefined;

  constructor(libc: Libc, pageSize: number) {
    this.lanes = libc.later.lanes;
    this.#libc = libc;
    this.#pageSize = pageSize;
  }

  populate(va: Va, length: number, access: 'read' | 'write' = 'write'): void {
    checkRange('madvise', va, length, this.#pageSize);
    if (!this.#populates()) return this.#touch(va, length, access);
    const result = this.#libc.madvise(va, length, access === 'write' ? MADV_POPULATE_WRITE : MADV_POPULATE_READ);
    if (result !== 0) checkPopulated(result, this.#libc.errno(), va, length);
  }

  async populateAsync(va: Va, length: number, access: 'read' | 'write' = 'write'): Promise<void> {
    checkRange('madvise', va, length, this.#pageSize);
    if (!this.#populates()) {
      const reason = 'before Linux 5.14 only the calling thread can fault pages in';
      throw new DmaError({ code: 'ENOTSUP', operation: 'madvise', reason });
    }
    const advice = access === 'write' ? MADV_POPULATE_WRITE : MADV_POPULATE_READ;
    const { result, errno } = await this.#libc.later.madvise(va, length, advice);
    checkPopulated(result, errno, va, length);
  }

  async dropAsync(va: Va, length: number): Promise<void> {
    checkRange('madvise', va, length, this.#pageSize);
    const { result, errno } = await this.#libc.later.madvise(va, length, MADV_DONTNEED);
    if (result !== 0) fail(errno, 'madvise', `MADV_DONTNEED of ${length} bytes at ${hex(va)}`);
  }

  bind(va: Va, length: number, node: number): void {
    checkRange('mbind', va, length, this.#pageSize);
    if (!isAddress(node) || node >= MOST_NODES) throw invalid('mbind', `there is no NUMA node ${node}`);
    const nodes = new Uint32Array(MOST_NODES / 32);
    nodes[node >>> 5] = 1 << (node & 31);
    // The kernel uses one bit less than the number passed.
    if (this.#libc.mbind(va, length, MPOL_BIND, nodes, MOST_NODES + 1, 0) === 0) return;
    const errno = this.#libc.errno();
    const subject = `${length} bytes at ${hex(va)} to node ${node}`;
    const refused = errno === ERRNO.ENOSYS || errno === ERRNO.EPERM;
    if (refused && node === 0 && hasOneNode()) return;
    if (errno === ERRNO.EPERM) fail(errno, 'mbind', subject, { hint: SANDBOXED });
    if (errno !== ERRNO.ENOSYS) fail(errno, 'mbind', subject);
    const reason = `${subject}: this kernel is built without NUMA support`;
    throw new DmaError({ code: 'ENOTSUP', operation: 'mbind', reason });
  }

  nodesOf(va: Va, size: number, count: number): Int32Array {
    checkSpan('move_pages', va, size, count, this.#pageSize);
    const status = new Int32Array(count).fill(-1);
    if (count === 0) return status;
    const pages = new Uint32Array(count * 2);
    for (let i = 0; i < count; i++) putAddress(pages, i, va + i * size);
    if (this.#libc.move_pages(0, count, pages, null, status, 0) === -1) {
      const errno = this.#libc.errno();
      if (errno !== ERRNO.ENOSYS && errno !== ERRNO.EPERM) fail(errno, 'move_pages', `${count} pages at ${hex(va)}`);
      return status.fill(-1);
    }
    return status.map((node) => Math.max(node, -1));
  }

  frames(va: Va, size: number, count: number): Float64Array | undefined {
    checkSpan('pagemap', va, size, count, this.#pageSize);
    const fd = this.#libc.open('/proc/self/pagemap', O_CLOEXEC | O_RDONLY, 0);
    if (fd === -1) {
      const errno = this.#libc.errno();
      return HIDDEN.includes(errno) ? undefined : fail(errno, 'open', '/proc/self/pagemap');
    }
    try {
      const addresses = new Float64Array(count).fill(-1);
      // The file has one entry per system page; entries of neighbours are read together.
      const atOnce = size === this.#pageSize ? ENTRIES_AT_ONCE : 1;
      const entries = new Uint32Array(2 * atOnce);
      for (let i = 0; i < count; i += atOnce) {
        const some = Math.min(atOnce, count - i);
        const offset = ((va + i * size) / this.#pageSize) * ENTRY_SIZE;
        check(this.#libc, this.#libc.pread(fd, entries, some * ENTRY_SIZE, offset), 'pread', '/proc/self/pagemap');
        for (let j = 0; j < some; j++) {
          const high = entries[2 * j + 1];
          if (high >>> 31 === 0) continue;
          const frame = entries[2 * j] + (high & 0x7fffff) * 2 ** 32;
          if (frame === 0) return undefined;
          addresses[i + j] = frame * this.#pageSize;
        }
      }
      return addresses;
    } finally {
      this.#libc.close(fd);
    }
  }

  lock(va: Va, length: number): void {
    checkRange('mlock', va, length, this.#pageSize);
    check(this.#libc, this.#libc.mlock(va, length), 'mlock', `${length} bytes at ${hex(va)}`);
  }

  /** Does the kernel know MADV_POPULATE? With a length of 0, madvise only reports that. */
  #populates(): boolean {
    return (this.#knowsPopulate ??= this.#libc.madvise(0, 0, MADV_POPULATE_WRITE) === 0);
  }

  /**
   * Faults pages in on kernels before 5.14: the process reads one byte of every page from itself (for writing, into
   * itself), so that the kernel touches the page, and a missing page is an error (EFAULT) instead of a signal.
   */
  #touch(va: number, length: number, access: 'read' | 'write'): void {
    const parts = new Uint32Array(MOST_PARTS * 4);
    const into = access === 'write' ? parts : new Uint32Array(MOST_PARTS * 4);
    const bytes = new Uint8Array(MOST_PARTS);
    const bytesAt = this.#libc.addressOf(bytes);
    for (let from = va; from < va + length; from += MOST_PARTS * this.#pageSize) {
      const count = Math.min(MOST_PARTS, (va + length - from) / this.#pageSize);
      for (let i = 0; i < count; i++) {
        putAddress(parts, 2 * i, from + i * this.#pageSize);
        parts[4 * i + 2] = 1;
        if (access === 'write') continue;
        putAddress(into, 2 * i, bytesAt + i);
        into[4 * i + 2] = 1;
      }
      const done = this.#libc.process_vm_readv(process.pid, into, count, parts, count, 0);
      const errno = done === -1 ? this.#libc.errno() : ERRNO.EFAULT;
      if (errno !== ERRNO.EFAULT) fail(errno, 'process_vm_readv', 'faulting in pages');
      if (done !== count) throw missing('process_vm_readv', va, length);
    }
  }
}

/** @throws DmaError of what MADV_POPULATE returned */
function checkPopulated(result: number, errno: number, va: number, length: number): void {
  if (result === 0) return;
  // EFAULT replaces the signal that touching the page would have raised.
  if (errno === ERRNO.EFAULT || errno === ERRNO.ENOMEM) throw missing('madvise', va, length);
  fail(errno, 'madvise', `MADV_POPULATE of ${length} bytes at ${hex(va)}`);
}

/** Writes `address` as the 64-bit entry `index`, low half first. */
function putAddress(into: Uint32Array, index: number, address: number): void {
  into[2 * index] = address % 2 ** 32;
  into[2 * index + 1] = Math.floor(address / 2 ** 32);
}

function missing(operation: string, va: number, length: number): DmaError {
  const reason = `not all pages of ${length} bytes at ${hex(va)} are available`;
  return new DmaError({ code: 'ENOMEM', operation, reason });
}

function checkSpan(operation: string, va: number, size: number, count: number, pageSize: number): void {
  checkPages(operation, 'address', va, pageSize);
  checkPages(operation, 'page size', size, pageSize);
  if (size === 0 || !isAddress(count) || !isAddress(va + size * count))
    throw invalid(operation, `${count} pages of ${size} bytes at ${hex(va)} is not a valid range`);
}

/** Is node 0 the only NUMA node? */
function hasOneNode(): boolean {
  const online = readKernelText('/sys/devices/system/node/online');
  return online === undefined || online.trim() === '0';
}
