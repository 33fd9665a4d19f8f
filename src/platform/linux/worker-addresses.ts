/**
 * Addresses that end with their worker thread. No code of ours runs in a terminated worker to unmap its memory; but V8
 * releases the thread's buffers, however it ends. So all addresses of a worker come out of growable SharedArrayBuffers,
 * whose addresses V8 reserves up front (up to `maxByteLength`) and unmaps as a whole, with everything that was mapped
 * over them.
 *
 * A SharedArrayBuffer lives until the last thread that holds it releases it. So a thread that uses memory of another
 * thread holds the buffer of its addresses ({@link WorkerAddresses.keeper}), and does not fault if the owner ends
 * first.
 */
import { AddressSet } from '../../address-set.js';
import { RangeMap } from '../../range-map.js';
import { Range } from '../../ranges.js';
import { alignUp, GiB, MiB } from '../../units.js';
import { ERRNO } from '../../errors.js';
import type { Libc } from './libc.js';
import { BARE, holdBare, makeBare } from './bare-addresses.js';
import { MAP_FIXED, MAP_HUGE_SHIFT, MAP_HUGETLB, PROT_NONE } from '../uapi/mman.js';
import { AT_EMPTY_PATH } from '../uapi/fcntl.js';
import { STATX, STATX_TYPE } from '../uapi/stat.js';

/** The least bytes that one buffer reserves; also the most on Node 20. */
const ARENA = 4 * GiB;

/** Node 20: how many extra buffers are tried to find adjacent ones. */
const SPARE_PIECES = 16;

/** A range of addresses and the buffers that reserve it. */
interface Arena {
  readonly range: Range;
  readonly buffers: readonly SharedArrayBuffer[];
}

/** The calls of {@link Libc} that map and unmap addresses, for a worker thread. */
export class WorkerAddresses {
  readonly #libc: Libc;
  readonly #pageSize: number;
  readonly #arenas = new RangeMap<Arena>();
  readonly #free = new AddressSet();
  readonly #status = new Uint32Array(STATX.sizeof / 4);

  constructor(libc: Libc) {
    this.#libc = libc;
    this.#pageSize = libc.getpagesize();
  }

  /** mmap(2); an address of 0 means any of this thread's. */
  readonly mmap: Libc['mmap'] = (va, length, prot, flags, fd, offset) => {
    const libc = this.#libc;
    if (va !== 0) return libc.mmap(va, length, prot, flags, fd, offset);
    const alignment = this.#alignment(length, flags, fd);
    const room = alignUp(length, alignment);
    const at = this.#take(room, alignment);
    if (at === -1) {
      libc.setErrno(ERRNO.ENOMEM);
      return -1;
    }
    // The addresses are bare already.
    if (prot === PROT_NONE && flags === BARE) return at;
    if (libc.mmap(at, length, prot, flags | MAP_FIXED, fd, offset) !== -1) return at;
    const errno = libc.errno();
    holdBare(libc, at, room);
    this.#give(at, room);
    libc.setErrno(errno);
    return -1;
  };

  /** munmap(2). This thread's own addresses become bare, and can be used again. */
  readonly munmap: Libc['munmap'] = (va, length) => {
    const arena = this.#arenas.at(va);
    if (arena === undefined || va + length > arena.range.end) return this.#libc.munmap(va, length);
    if (makeBare(this.#libc, va, length) === -1) return -1;
    this.#give(va, length);
    return 0;
  };

  /** The buffers that keep the memory at `va` in place; `undefined` for addresses of other threads. */
  readonly keeper = (va: number): readonly SharedArrayBuffer[] | undefined => this.#arenas.at(va)?.buffers;

  /** The alignment that a mapping needs: the kernel does not align a fixed address. */
  #alignment(length: number, flags: number, fd: number): number {
    const page = this.#pageSize;
    if ((flags & MAP_HUGETLB) !== 0) return 2 ** ((flags >>> MAP_HUGE_SHIFT) & 0x3f);
    if (fd !== -1 && this.#libc.statx(fd, '', AT_EMPTY_PATH, STATX_TYPE, this.#status) === 0) {
      // The page size of hugetlb memory; harmless for other files.
      const block = this.#status[STATX.stx_blksize / 4];
      if (block > page && Number.isInteger(Math.log2(block))) return block;
    }
    return length >= 2 * MiB ? 2 * MiB : page;
  }

  /** @returns -1 if no addresses are left */
  #take(length: number, alignment: number): number {
    const at = this.#free.take(length, alignment);
    if (at !== -1 || !this.#grow(length + alignment + this.#pageSize)) return at;
    return this.#free.take(length, alignment);
  }

  #give(va: number, length: number): void {
    const range = this.#arenas.at(va)?.range;
    if (range === undefined) return;
    this.#free.add(va, va + length);
    // An arena of the usual size is kept for the next mapping.
    if (range.length <= ARENA || !this.#free.covers(range.start, range.end)) return;
    this.#free.remove(range.start, range.end);
    this.#arenas.delete(range.start);
  }

  /** Reserves at least `length` bytes more. */
  #grow(length: number): boolean {
    const size = Math.max(ARENA, alignUp(length, this.#pageSize));
    const arena = this.#arena(size) ?? this.#arenaOfPieces(size) ?? this.#arena(alignUp(length, this.#pageSize));
    if (arena === undefined) return false;
    const { start, end } = arena.range;
    this.#arenas.insert(start, end - start, arena);
    // Arenas never touch: the first page of each is its buffer's own.
    this.#free.add(start, end);
    return true;
  }

  #arena(size: number): Arena | undefined {
    const buffer = this.#reserve(size);
    // The first page belongs to the buffer itself.
    return buffer && this.#arenaOf(this.#addressOf(buffer), size, [buffer]);
  }

  /** Node 20: a buffer has at most 4 GiB, but the kernel tends to place buffers next to each other. */
  #arenaOfPieces(size: number): Arena | undefined {
    const needed = Math.ceil(size / ARENA);
    if (needed === 1) return undefined;
    /** Adjacent buffers, lowest first. */
    let run: SharedArrayBuffer[] = [];
    let start = 0;
    for (let i = 0; i < needed + SPARE_PIECES; i++) {
      const buffer = this.#reserve(ARENA);
      if (buffer === undefined) return undefined;
      const at = this.#addressOf(buffer);
      if (at + ARENA === start) run.unshift(buffer);
      else if (at === start + run.length * ARENA) run.push(buffer);
      else run = [buffer];
      if (run[0] === buffer) start = at;
      if (run.length === needed) return this.#arenaOf(start, needed * ARENA, run);
    }
    return undefined;
  }

  #arenaOf(start: number, size: number, buffers: readonly SharedArrayBuffer[]): Arena {
    return { range: Range.between(start + this.#pageSize, start + size), buffers };
  }

  #reserve(size: number): SharedArrayBuffer | undefined {
    try {
      return new SharedArrayBuffer(this.#pageSize, { maxByteLength: size });
    } catch (error) {
      if (error instanceof RangeError) return undefined;
      throw error;
    }
  }

  #addressOf(buffer: SharedArrayBuffer): number {
    return this.#libc.addressOf(new Uint8Array(buffer));
  }
}
