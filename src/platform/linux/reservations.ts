/** Reserved addresses that get their memory piece by piece, on Linux. */
import { isMainThread } from 'node:worker_threads';
import { DmaError, ERRNO, invalid } from '../../errors.js';
import { Range } from '../../ranges.js';
import { RangeMap } from '../../range-map.js';
import { alignUp, formatSize, GiB, hex, isAddress, isPowerOfTwo } from '../../units.js';
import type { Va } from '../../units.js';
import { BARE, holdBare, makeBare } from './bare-addresses.js';
import { check, checkFd, fail } from './libc.js';
import type { Libc } from './libc.js';
import { readKernelText } from './proc.js';
import { checkPages, checkRange, hugePageFlag } from './page-checks.js';
import type { CommitOptions, MemoryPort } from '../ports.js';
import {
  MADV_DONTFORK,
  MAP_ANONYMOUS,
  MAP_FIXED,
  MAP_HUGE_SHIFT,
  MAP_HUGETLB,
  MAP_NORESERVE,
  MAP_PRIVATE,
  MAP_SHARED,
  PROT_NONE,
  PROT_READ,
  PROT_WRITE,
} from '../uapi/mman.js';

/** Where low reservations begin: above all 32-bit addresses, as in DPDK. */
const LOWEST = 4 * GiB;
/** How many addresses are tried for a low reservation. */
const LOW_TRIES = 16;

/** What {@link Reservations} has. */
export type ReservationsPort = Pick<MemoryPort, 'reserve' | 'reserveAt' | 'commit' | 'decommit' | 'retire' | 'unmap'>;

/**
 * The part of the {@link MemoryPort} about reservations. It remembers the addresses it reserved, because mapping over
 * others (MAP_FIXED) would silently destroy their contents.
 */
export class Reservations implements ReservationsPort {
  readonly #libc: Libc;
  readonly #pageSize: number;
  readonly #reservations = new RangeMap<{ readonly start: number; readonly length: number }>();

  constructor(libc: Libc, pageSize: number) {
    this.#libc = libc;
    this.#pageSize = pageSize;
  }

  reserve(length: number, alignment: number, low = false): Va {
    checkPages('mmap', 'length', length, this.#pageSize);
    if (length === 0) throw invalid('mmap', 'the length of a reservation can not be 0');
    if (!isPowerOfTwo(alignment)) throw invalid('mmap', `${alignment} bytes is not a valid alignment`);
    const slack = Math.max(alignment, this.#pageSize) - this.#pageSize;
    if (!isAddress(length + slack)) throw invalid('mmap', `${length} bytes is too much to reserve`);
    if (low) {
      const unit = Math.max(alignment, this.#pageSize);
      const step = alignUp(length, unit);
      for (let place = 0, va = LOWEST; place < LOW_TRIES; place++, va += step)
        if (holdBare(this.#libc, alignUp(va, unit), length)) return this.#keep(alignUp(va, unit), length);
    }
    const subject = `${length} bytes to reserve`;
    const start = check(this.#libc, this.#libc.mmap(0, length + slack, PROT_NONE, BARE, -1, 0), 'mmap', subject);
    const va = alignUp(start, alignment);
    const tail = start + slack - va;
    // Bare addresses at the edges can always be unmapped: no mapping is split.
    if (va > start) this.#libc.munmap(start, va - start);
    if (tail > 0) this.#libc.munmap(va + length, tail);
    return this.#keep(va, length);
  }

  reserveAt(va: Va, length: number): void {
    checkRange('mmap', va, length, this.#pageSize);
    if (!isMainThread) {
      const reason = 'a worker thread can not choose addresses: they have to end with it';
      throw new DmaError({ code: 'ENOTSUP', operation: 'mmap', reason, hint: 'call it in the main thread' });
    }
    if (holdBare(this.#libc, va, length)) return void this.#keep(va, length);
    // Of the kernel's refusals only this one is about the process, not about what is there.
    if (this.#libc.errno() === ERRNO.ENOMEM)
      fail(ERRNO.ENOMEM, 'mmap', `${formatSize(length)} of addresses at ${hex(va)}`);
    const range = new Range(va, length);
    const [other] = mappingsIn(range);
    // Another thread may have given them back meanwhile.
    const what = other === undefined ? 'something' : other;
    throw new DmaError({ code: 'EEXIST', operation: 'mmap', range, reason: `these addresses are taken by ${what}` });
  }

  commit(va: Va, options: CommitOptions): void {
    const { length, writable = true, fd, offset = 0, hugePageSize } = options;
    this.#checkInside(va, length);
    checkPages('mmap', 'offset', offset, this.#pageSize);
    let flags = MAP_FIXED | MAP_NORESERVE;
    if (fd === undefined) flags |= MAP_PRIVATE | MAP_ANONYMOUS;
    else {
      checkFd(fd, 'mmap');
      flags |= MAP_SHARED;
    }
    if (hugePageSize !== undefined) {
      if (fd !== undefined)
        throw invalid('mmap', 'hugePageSize is for anonymous memory: a file has a page size of its own');
      const size = hugePageFlag('mmap', hugePageSize, MAP_HUGE_SHIFT);
      checkRange('mmap', va, length, hugePageSize);
      flags |= MAP_HUGETLB | size;
    }
    const prot = writable ? PROT_READ | PROT_WRITE : PROT_READ;
    if (this.#libc.mmap(va, length, prot, flags, fd ?? -1, offset) === -1) {
      const errno = this.#libc.errno();
      holdBare(this.#libc, va, length);
      fail(errno, 'mmap', `${length} bytes at ${hex(va)}`);
    }
    // After a fork, the next write of this process would go to a copy, while a device still uses the original page.
    if (fd === undefined && this.#libc.madvise(va, length, MADV_DONTFORK) === -1) {
      const errno = this.#libc.errno();
      this.#clear(va, length);
      fail(errno, 'madvise', `MADV_DONTFORK of ${length} bytes at ${hex(va)}`);
    }
  }

  decommit(va: Va, length: number): void {
    this.#checkInside(va, length);
    this.#clear(va, length);
  }

  retire(va: Va, length: number): void {
    checkRange('mmap', va, length, this.#pageSize);
    const reserved = this.#reservations.overlapping(va, va + length);
    if (reserved !== undefined) this.#checkInside(va, length);
    if (this.#libc.mmap(va, length, PROT_READ | PROT_WRITE, BARE | MAP_FIXED, -1, 0) !== -1) return;
    const errno = this.#libc.errno();
    holdBare(this.#libc, va, length);
    fail(errno, 'mmap', `${length} bytes at ${hex(va)}`);
  }

  unmap(va: Va, length: number): void {
    checkPages('munmap', 'address', va, this.#pageSize);
    checkPages('munmap', 'length', length, this.#pageSize);
    const end = va + length;
    const reserved = length === 0 ? undefined : this.#reservations.overlapping(va, end);
    if (reserved !== undefined && (reserved.start > va || reserved.start + reserved.length < end))
      throw invalid('munmap', `${length} bytes at ${hex(va)} are not inside one reservation`);
    check(this.#libc, this.#libc.munmap(va, length), 'munmap', `${length} bytes at ${hex(va)}`);
    if (reserved === undefined) return;
    const { start } = reserved;
    const behind = start + reserved.length - end;
    this.#reservations.delete(start);
    if (va > start) this.#reservations.insert(start, va - start, { start, length: va - start });
    if (behind > 0) this.#reservations.insert(end, behind, { start: end, length: behind });
  }

  #checkInside(va: number, length: number): void {
    checkRange('mmap', va, length, this.#pageSize);
    const around = this.#reservations.at(va);
    if (around === undefined || va + length > around.start + around.length)
      throw invalid('mmap', `${length} bytes at ${hex(va)} are not inside one reservation`);
  }

  /** Replaces mapped memory by bare addresses. */
  #clear(va: number, length: number): void {
    check(this.#libc, makeBare(this.#libc, va, length), 'mmap', `${length} bytes at ${hex(va)}`);
  }

  #keep(va: number, length: number): Va {
    this.#reservations.insert(va, length, { start: va, length });
    return va as Va;
  }
}

/** What is mapped in these addresses of this process, each as a phrase; by /proc/self/maps. */
function* mappingsIn({ start, end }: Range<Va>): Generator<string, void, undefined> {
  const maps = readKernelText('/proc/self/maps') ?? '';
  for (const [, from, to, name] of maps.matchAll(/^([0-9a-f]+)-([0-9a-f]+)(?: +\S+){4} *(.*)$/gm)) {
    if (parseInt(to, 16) <= start || parseInt(from, 16) >= end) continue;
    yield `${name === '' ? 'memory without a name' : name} at [0x${from}, 0x${to})`;
  }
}
