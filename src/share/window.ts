/**
 * The addresses of memory that other processes map: one range, which the primary reserves at its start, and each
 * secondary when it attaches, before anything else can be placed there. All memory with a descriptor is inside.
 */
import { AddressSet } from '../address-set.js';
import { DmaError, invalid, isDmaError, undoAll, withUndo } from '../errors.js';
import type { MmapOptions, Platform, MemoryPort } from '../platform/ports.js';
import { Range } from '../ranges.js';
import { formatSize, GiB, hex, isAddress, TiB, type Va } from '../units.js';

/**
 * Where windows are: between the places of V8's heap (below 64 TiB) and those of programs (from 85.3 TiB on) and
 * libraries. There are several slots, so that one process can be attached to several primaries, and again to the next one
 * with a name while something still uses addresses of the last one.
 */
const FIRST = 65 * TiB;
const SLOTS = 40;
/** Bytes of addresses in a window; they cost nothing. As much as DPDK's processes can have by default. */
const LENGTH = TiB / 2;
/** For memory whose addresses are IOVAs, devices with few address bits count: from 4 GiB on, as in DPDK. */
const LOW_FIRST = 4 * GiB;
const LOW_LENGTH = 64 * GiB;

/** What decides where a window is. */
export interface WindowOptions {
  /** The name of the Eal. */
  readonly name: string;
  /** Its first address, if the program says it. */
  readonly baseAddress?: number;
  /** Are addresses of the process used as IOVAs by all devices? */
  readonly low: boolean;
  /** The window of another process, whose memory this one takes over. Default: a new one. */
  readonly taken?: Range<Va>;
}

/** A window of addresses in the primary. */
export class AddressWindow {
  /** The window. */
  readonly range: Range<Va>;
  /** A {@link MemoryPort} that places memory with descriptors in the window, and all other memory anywhere. */
  readonly memory: MemoryPort;
  readonly #platform: Platform;
  /** Addresses that nothing uses. */
  readonly #free = new AddressSet();
  #closed = false;

  /**
   * Reserves it.
   *
   * @throws DmaError EEXIST if the addresses are taken, with what is there; EINVAL for an impossible base address;
   *   ENOMEM if the process may not have so many addresses (RLIMIT_AS)
   */
  constructor(platform: Platform, options: WindowOptions) {
    this.#platform = platform;
    this.range = reserved(platform.memory, options);
    this.#free.add(this.range.start, this.range.end);
    const { memory } = platform;
    this.memory = {
      ...memory,
      reserve: (length, alignment) => this.#take(length, Math.max(alignment, memory.pageSize)),
      reserveAt: (va, length) => this.#takeAt(va, length),
      map: (wanted) => this.#map(wanted),
      unmap: (va, length) => this.#unmap(va, length),
    };
  }

  /** Gives the addresses back, once all memory in them is gone: some may wait until its views are collected. */
  close(): void {
    this.#closed = true;
    if (this.#free.bytes === this.range.length) this.#platform.memory.unmap(this.range.start, this.range.length);
  }

  #take(length: number, alignment: number): Va {
    const { memory } = this.#platform;
    if (!isAddress(length) || length === 0 || length % memory.pageSize !== 0)
      throw invalid('mmap', `the length ${hex(length)} is not a multiple of the page size ${hex(memory.pageSize)}`);
    const va = this.#free.take(length, alignment);
    if (va === -1)
      throw new DmaError({
        code: 'ENOMEM',
        operation: 'mmap',
        range: this.range,
        reason: `${formatSize(length)} of addresses are not free among the ${formatSize(this.range.length)} that other processes know`,
        hint: 'free memory, or start Eals with other names for the rest',
      });
    return va as Va;
  }

  #takeAt(va: Va, length: number): void {
    if (va < this.range.start || va >= this.range.end) return this.#platform.memory.reserveAt(va, length);
    const range = new Range(va, length);
    if (!this.#free.covers(range.start, range.end))
      throw new DmaError({ code: 'EEXIST', operation: 'mmap', range, reason: 'the addresses are in use' });
    this.#free.remove(range.start, range.end);
  }

  #map(wanted: MmapOptions): Va {
    const { memory, files } = this.#platform;
    const { fd, length, offset, writable = true, readOnly = false, populate = false } = wanted;
    // Private copies of a file belong to this process.
    if (fd === undefined || (!writable && !readOnly)) return memory.map(wanted);
    const va = this.#take(length, Math.max(files.status(fd).pageSize, memory.pageSize));
    try {
      memory.commit(va, { length, fd, offset, writable: !readOnly });
      if (populate) memory.populate(va, length, readOnly ? 'read' : 'write');
      return va;
    } catch (error) {
      const failure = withUndo(error, 'mmap', undoAll([() => this.#unmap(va, length)]));
      // Before Linux 6.7 a file that is sealed against writing can only be mapped privately.
      if (readOnly && isDmaError(failure, 'EPERM')) return memory.map(wanted);
      throw failure;
    }
  }

  #unmap(va: Va, length: number): void {
    const { memory } = this.#platform;
    if (va < this.range.start || va >= this.range.end) return memory.unmap(va, length);
    memory.decommit(va, length);
    this.#free.add(va, va + length);
    if (this.#closed) this.close();
  }
}

function reserved(memory: MemoryPort, { name, baseAddress, low, taken }: WindowOptions): Range<Va> {
  const operation = 'Eal.start';
  if (taken !== undefined) return reserve(memory, taken.start, taken.length);
  const length = low ? LOW_LENGTH : LENGTH;
  if (baseAddress !== undefined) {
    if (!isAddress(baseAddress) || baseAddress === 0 || baseAddress % GiB !== 0)
      throw invalid(operation, `memory.baseAddress: ${hex(baseAddress)} is not possible`, {
        hint: 'it is a multiple of 1 GiB, such as 0x4a0000000000',
      });
    return reserve(memory, baseAddress, length);
  }
  if (low) return reserve(memory, LOW_FIRST, length);
  let failure: unknown;
  for (let n = 0; n < SLOTS; n++) {
    try {
      return reserve(memory, FIRST + ((hashOf(name) + process.pid + n) % SLOTS) * LENGTH, length);
    } catch (error) {
      if (!isDmaError(error, 'EEXIST')) throw error;
      failure = error;
    }
  }
  throw failure;
}

function reserve(memory: MemoryPort, va: number, length: number): Range<Va> {
  const range = new Range(va as Va, length);
  try {
    memory.reserveAt(range.start, length);
    return range;
  } catch (error) {
    throw addressesTaken('Eal.start', error);
  }
}

/** The error of reserving addresses, as that of `operation`; EEXIST with what to do about it. */
export function addressesTaken(operation: string, error: unknown): unknown {
  if (!isDmaError(error)) return error;
  const named = error.with({ operation });
  if (error.code !== 'EEXIST') return named;
  return named.with({
    hint:
      'start the primary with memory: { baseAddress } at addresses that are free in all processes, such as ' +
      `${hex(FIRST)} or ${hex(2 * TiB)}; in a secondary attach early, before other memory is mapped`,
  });
}

/** FNV-1a */
function hashOf(name: string): number {
  let hash = 0x811c9dc5;
  for (const byte of Buffer.from(name)) hash = Math.imul(hash ^ byte, 0x01000193);
  return hash >>> 0;
}
