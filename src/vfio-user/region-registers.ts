/** The registers of a vfio-user region: loads and stores where the server lets the region be mapped, messages elsewhere. */
import { DmaError, isDmaError } from '../errors.js';
import type { Platform } from '../platform/ports.js';
import { MappedRegisters, checkRegister } from '../platform/registers.js';
import type { Registers } from '../platform/registers.js';
import { alignUp, hex, isAddress } from '../units.js';
import { get32, get64, put32, put64 } from './messages.js';
import type { SparseArea } from './messages.js';

/** How registers that are not mapped are reached. */
export interface RegionMessages {
  regionRead(region: number, offset: number, into: Uint8Array): void;
  regionWrite(region: number, offset: number, from: Uint8Array): void;
}

/** A region that may be mapped. */
interface Mappable {
  readonly fd: number | undefined;
  readonly fdOffset: number;
  readonly areas: readonly SparseArea[];
}

/** A part of a region that is mapped into this process. */
export class MappedArea {
  readonly offset: number;
  /** One past the last byte; 0 once closed, so that no access lies inside. */
  end: number;
  readonly registers: MappedRegisters;
  readonly #release: () => void;

  /** Maps `area` of `fd`. */
  constructor(platform: Platform, fd: number, fdOffset: number, area: SparseArea) {
    const { memory } = platform;
    const { offset, length } = area;
    const va = memory.map({ fd, offset: fdOffset + offset, length });
    let buffer: ArrayBuffer;
    try {
      buffer = memory.view(va, length);
    } catch (error) {
      memory.unmap(va, length);
      throw error;
    }
    this.offset = offset;
    this.end = offset + length;
    this.registers = new MappedRegisters(buffer, 0, length);
    this.#release = () => {
      if (this.end === 0) return;
      this.end = 0;
      memory.detach(buffer);
      memory.unmap(va, length);
    };
  }

  /** Idempotent. */
  close(): void {
    this.#release();
  }
}

/**
 * Maps the parts of a region that can be mapped, and leaves out those that can not: what is left out is reached by message.
 *
 * @param trust map also from a file that the server can make shorter; an access past its end would then kill this process
 */
export function mapAreas(platform: Platform, region: Mappable, trust: boolean): MappedArea[] {
  const { files, memory } = platform;
  const { fd, fdOffset, areas } = region;
  const mapped: MappedArea[] = [];
  if (fd === undefined) return mapped;
  try {
    const { kind, size, writable } = files.status(fd);
    const safe = kind === 'file' && files.sealedAgainstShrinking(fd, true);
    if (!writable || (!safe && !trust)) return mapped;
    for (const area of areas) {
      const start = fdOffset + area.offset;
      const page = memory.pageSize;
      if (start % page !== 0 || area.offset % page !== 0 || area.length % page !== 0 || area.length > memory.maxView)
        continue;
      if (kind === 'file' && start + area.length > alignUp(size, page)) continue;
      mapped.push(new MappedArea(platform, fd, fdOffset, area));
    }
  } catch (error) {
    // What can not be mapped here (no memory, no system calls) still works by message.
    if (!isDmaError(error)) throw error;
  }
  return mapped;
}

/** See the head of the file. */
export class RegionRegisters implements Registers {
  readonly #bytes4 = new Uint8Array(4);
  readonly #bytes8 = new Uint8Array(8);

  /** @param areas not this object's; accesses to those that are closed go by message */
  constructor(
    private readonly messages: RegionMessages,
    private readonly region: number,
    /** bytes in the region */
    readonly size: number,
    private readonly areas: readonly MappedArea[],
  ) {}

  read32(offset: number): number {
    const area = this.#areaOf(offset, 4);
    if (area !== undefined) return area.registers.read32(offset - area.offset);
    this.messages.regionRead(this.region, offset, this.#bytes4);
    return get32(this.#bytes4, 0);
  }

  write32(offset: number, value: number): void {
    const area = this.#areaOf(offset, 4);
    if (area !== undefined) {
      area.registers.write32(offset - area.offset, value);
      return;
    }
    put32(this.#bytes4, 0, value);
    this.messages.regionWrite(this.region, offset, this.#bytes4);
  }

  read64(offset: number): number {
    const area = this.#areaOf(offset, 8);
    if (area !== undefined) return area.registers.read64(offset - area.offset);
    this.messages.regionRead(this.region, offset, this.#bytes8);
    const value = get64(this.#bytes8, 0);
    if (isAddress(value)) return value;
    throw new DmaError({ code: 'ERANGE', operation: 'registers', reason: `the value at ${hex(offset)} passes 2^53` });
  }

  write64(offset: number, value: number): void {
    const area = this.#areaOf(offset, 8);
    if (area !== undefined) {
      area.registers.write64(offset - area.offset, value);
      return;
    }
    put64(this.#bytes8, 0, value);
    this.messages.regionWrite(this.region, offset, this.#bytes8);
  }

  flush(offset: number): void {
    const area = this.#areaOf(offset, 4);
    if (area !== undefined) area.registers.flush(offset - area.offset);
    else this.messages.regionRead(this.region, offset, this.#bytes4);
  }

  /** The mapped area that an access lies in; `undefined` when it goes by message. EINVAL when it is no register. */
  #areaOf(offset: number, width: number): MappedArea | undefined {
    checkRegister(offset, width, this.size);
    // Areas are few (one, mostly), and begin and end on pages, so an aligned access is in one of them or in none.
    for (const area of this.areas) if (offset >= area.offset && offset < area.end) return area;
    return undefined;
  }
}
