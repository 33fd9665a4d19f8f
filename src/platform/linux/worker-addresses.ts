/**
 * Addresses that end with their worker thread. Nothing of a terminated worker runs any more that could unmap its memory; but
 * V8 gives back what the thread's buffers take, in whatever way it ends. So all addresses of a worker come out of
 * growable SharedArrayBuffers, whose addresses V8 reserves up front (up to `maxByteLength`) and unmaps as a whole, with
 * whatever was mapped over them.
 *
 * A SharedArrayBuffer lives until the last thread that has it lets go of it. So who works on memory of another thread holds
 * the buffer that its addresses are in ({@link WorkerAddresses.keeper}), and nothing faults when its owner ends first.
 */
import { RangeMap } from '../../range-map.js';
import { Range } from '../../ranges.js';
import { alignUp, GiB, MiB } from '../../units.js';
import { ERRNO } from '../../errors.js';
import type { Libc } from './libc.js';
import { BARE, holdBare, makeBare } from './bare-addresses.js';
import { MAP_FIXED, MAP_HUGE_SHIFT, MAP_HUGETLB, PROT_NONE } from '../uapi/mman.js';
import { AT_EMPTY_PATH } from '../uapi/fcntl.js';
import { STATX, STATX_TYPE } from '../uapi/stat.js';

/** What one buffer reserves at least; Node 20 takes no more for one. */
const ARENA = 4 * GiB;

/** Node 20: how many buffers more than necessary are tried for neighbouring ones. */
const SPARE_PIECES = 16;

/** Addresses in a row, and the buffers that they are in. */
interface Arena {
  readonly range: Range;
  readonly buffers: readonly SharedArrayBuffer[];
}

/** The calls of {@link Libc} that take and give back addresses, for a worker thread. */
export class WorkerAddresses {
  readonly #libc: Libc;
  readonly #pageSize: number;
  readonly #arenas = new RangeMap<Arena>();
  readonly #free = new RangeMap<Range>();
  readonly #status = new Uint32Array(STATX.sizeof / 4);

  constructor(libc: Libc) {
    this.#libc = libc;
    this.#pageSize = libc.getpagesize();
  }

  /** mmap(2); an address of 0 means one of this thread's. */
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
    // Bare addresses are what is there already.
    if (prot === PROT_NONE && flags === BARE) return at;
    if (libc.mmap(at, length, prot, flags | MAP_FIXED, fd, offset) !== -1) return at;
    const errno = libc.errno();
    holdBare(libc, at, room);
    this.#give(at, room);
    libc.setErrno(errno);
    return -1;
  };

  /** munmap(2). Addresses of this thread become bare, and can be taken again. */
  readonly munmap: Libc['munmap'] = (va, length) => {
    const arena = this.#arenas.at(va);
    if (arena === undefined || va + length > arena.range.end) return this.#libc.munmap(va, length);
    if (makeBare(this.#libc, va, length) === -1) return -1;
    this.#give(va, length);
    return 0;
  };

  /** What keeps the memory at `va` in place for as long as somebody holds it; `undefined` for addresses that are not of this thread. */
  readonly keeper = (va: number): readonly SharedArrayBuffer[] | undefined => this.#arenas.at(va)?.buffers;

  /** What the address of a mapping has to be a multiple of: with a fixed one the kernel does not see to that. */
  #alignment(length: number, flags: number, fd: number): number {
    const page = this.#pageSize;
    if ((flags & MAP_HUGETLB) !== 0) return 2 ** ((flags >>> MAP_HUGE_SHIFT) & 0x3f);
    if (fd !== -1 && this.#libc.statx(fd, '', AT_EMPTY_PATH, STATX_TYPE, this.#status) === 0) {
      // The size of a page of hugetlb memory; of other files something harmless.
      const block = this.#status[STATX.stx_blksize / 4];
      if (block > page && Number.isInteger(Math.log2(block))) return block;
    }
    return length >= 2 * MiB ? 2 * MiB : page;
  }

  /** @returns -1 when there are none */
  #take(length: number, alignment: number): number {
    const fits = (): Range | undefined => this.#free.fit(length, alignment);
    const free = fits() ?? (this.#grow(length + alignment + this.#pageSize) ? fits() : undefined);
    if (free === undefined) return -1;
    const at = alignUp(free.start, alignment);
    this.#free.delete(free.start);
    this.#insert(free.start, at);
    this.#insert(at + length, free.end);
    return at;
  }

  #give(va: number, length: number): void {
    const arena = this.#arenas.at(va);
    if (arena === undefined) return;
    let start = va;
    let end = va + length;
    const before = this.#free.floor(va);
    if (before?.end === va && before.start >= arena.range.start) {
      this.#free.delete(before.start);
      ({ start } = before);
    }
    const after = this.#free.above(va);
    if (after?.start === end && after.end <= arena.range.end) {
      this.#free.delete(after.start);
      ({ end } = after);
    }
    // An arena of the usual size is kept: the next mapping wants one again.
    if (start === arena.range.start && end === arena.range.end && arena.range.length > ARENA)
      this.#arenas.delete(arena.range.start);
    else this.#insert(start, end);
  }

  #insert(start: number, end: number): void {
    if (end > start) this.#free.insert(start, end - start, new Range(start, end - start));
  }

  /** Reserves at least `length` bytes more. */
  #grow(length: number): boolean {
    const size = Math.max(ARENA, alignUp(length, this.#pageSize));
    const arena = this.#arena(size) ?? this.#arenaOfPieces(size) ?? this.#arena(alignUp(length, this.#pageSize));
    if (arena === undefined) return false;
    const { start, end } = arena.range;
    this.#arenas.insert(start, end - start, arena);
    this.#insert(start, end);
    return true;
  }

  #arena(size: number): Arena | undefined {
    const buffer = this.#reserve(size);
    // The first page is the buffer's own.
    return buffer && this.#arenaOf(this.#addressOf(buffer), size, [buffer]);
  }

  /** Node 20: no buffer is longer than 4 GiB, but the kernel puts one beside the other. */
  #arenaOfPieces(size: number): Arena | undefined {
    const needed = Math.ceil(size / ARENA);
    if (needed === 1) return undefined;
    /** Neighbours, lowest first. */
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
