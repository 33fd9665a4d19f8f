/**
 * The registers of a device region that is mapped as a whole, in parts or not at all; the rest is accessed by calls.
 */
import { alignUp, isAddress } from '../../units.js';
import type { MemoryPort } from '../ports.js';
import { MappedRegisters, checkRegister, tooWide } from './registers.js';
import type { Registers } from './registers.js';

/** Accesses registers that are not mapped. */
export interface RegionCalls {
  /** Reads all of `into` from `offset` of a region. */
  regionRead(region: number, offset: number, into: Uint8Array): void;
  /** Writes all of `from` at `offset` of a region; may return before the write arrives. */
  regionWrite(region: number, offset: number, from: Uint8Array): void;
}

/** A part of a region, in bytes. */
export interface RegionPart {
  readonly offset: number;
  readonly length: number;
}

/** Registers that are mapped into this process, for another thread of it: no copy, and no mapping of its own. */
export interface LentRegisters extends Disposable {
  /** Where the register at offset 0 of the region is, or would be. */
  readonly va: number;
  /** The part of the region that is mapped. */
  readonly offset: number;
  readonly length: number;
  /** What is mapped, for another process: the descriptor, and where the part begins in it. */
  readonly fd: number;
  readonly fdOffset: number;
}

/** A part of a region that is mapped into this process. */
export class MappedArea {
  readonly offset: number;
  /** One past the last byte; 0 once closed, so that no access is inside. */
  end: number;
  readonly registers: MappedRegisters;
  readonly #release: () => void;
  readonly #close: () => void;
  readonly #lent: Omit<LentRegisters, typeof Symbol.dispose>;
  /** It is unmapped when it is closed and nobody has it on loan. */
  #users = 1;

  /**
   * Maps `area` of the region that begins at `regionOffset` of `fd`. Bytes of the last page beyond the area are not
   * accessible.
   *
   * @param populate fault its pages in first? For hugepages, which may be missing for this process. Default false.
   */
  constructor(memory: MemoryPort, fd: number, regionOffset: number, area: RegionPart, populate = false) {
    const { offset, length } = area;
    const mapped = alignUp(length, memory.pageSize);
    const va = memory.map({ fd, offset: regionOffset + offset, length: mapped });
    let buffer: ArrayBuffer;
    try {
      if (populate) memory.populate(va, mapped);
      buffer = memory.view(va, length);
    } catch (error) {
      memory.unmap(va, mapped);
      throw error;
    }
    this.offset = offset;
    this.end = offset + length;
    this.registers = new MappedRegisters(buffer, 0, length);
    this.#lent = { va: va - offset, offset, length, fd, fdOffset: regionOffset + offset };
    this.#release = () => {
      if (--this.#users === 0) memory.unmap(va, mapped);
    };
    this.#close = () => {
      if (this.end === 0) return;
      this.end = 0;
      memory.detach(buffer);
      this.#release();
    };
  }

  /** Idempotent. What was lent stays mapped until it is given back. */
  close(): void {
    this.#close();
  }

  /** Keeps the area mapped for another thread. */
  lend(): LentRegisters {
    this.#users++;
    let ended = false;
    return {
      ...this.#lent,
      [Symbol.dispose]: () => {
        if (ended) return;
        ended = true;
        this.#release();
      },
    };
  }
}

/** Registers of one region: mapped areas are accessed directly, the rest by {@link RegionCalls}. */
export class RegionRegisters implements Registers {
  /** The value of a call, on its way. */
  readonly #words = new Uint32Array(2);
  readonly #value = new MappedRegisters(this.#words.buffer);
  readonly #bytes1 = new Uint8Array(this.#words.buffer, 0, 1);
  readonly #bytes2 = new Uint8Array(this.#words.buffer, 0, 2);
  readonly #bytes4 = new Uint8Array(this.#words.buffer, 0, 4);
  readonly #bytes8 = new Uint8Array(this.#words.buffer);

  /**
   * @param size bytes in the region
   * @param areas owned by the caller; they begin on pages, and end on pages or with the region. Once an area is closed,
   * its registers are accessed by calls
   */
  constructor(
    private readonly calls: RegionCalls,
    private readonly region: number,
    readonly size: number,
    private readonly areas: readonly MappedArea[],
  ) {}

  read8(offset: number): number {
    const area = this.#areaOf(offset, 1);
    if (area !== undefined) return area.registers.read8(offset - area.offset);
    this.calls.regionRead(this.region, offset, this.#bytes1);
    return this.#value.read8(0);
  }

  write8(offset: number, value: number): void {
    const area = this.#areaOf(offset, 1);
    if (area !== undefined) return area.registers.write8(offset - area.offset, value);
    this.#value.write8(0, value);
    this.calls.regionWrite(this.region, offset, this.#bytes1);
  }

  read16(offset: number): number {
    const area = this.#areaOf(offset, 2);
    if (area !== undefined) return area.registers.read16(offset - area.offset);
    this.calls.regionRead(this.region, offset, this.#bytes2);
    return this.#value.read16(0);
  }

  write16(offset: number, value: number): void {
    const area = this.#areaOf(offset, 2);
    if (area !== undefined) return area.registers.write16(offset - area.offset, value);
    this.#value.write16(0, value);
    this.calls.regionWrite(this.region, offset, this.#bytes2);
  }

  read32(offset: number): number {
    const area = this.#areaOf(offset, 4);
    if (area !== undefined) return area.registers.read32(offset - area.offset);
    this.calls.regionRead(this.region, offset, this.#bytes4);
    return this.#value.read32(0);
  }

  write32(offset: number, value: number): void {
    const area = this.#areaOf(offset, 4);
    if (area !== undefined) return area.registers.write32(offset - area.offset, value);
    this.#value.write32(0, value);
    this.calls.regionWrite(this.region, offset, this.#bytes4);
  }

  read64(offset: number): number {
    const area = this.#areaOf(offset, 8);
    if (area !== undefined) return area.registers.read64(offset - area.offset);
    this.calls.regionRead(this.region, offset, this.#bytes8);
    const value = this.#words[1] * 2 ** 32 + this.#words[0];
    if (isAddress(value)) return value;
    throw tooWide(offset);
  }

  write64(offset: number, value: number): void {
    const area = this.#areaOf(offset, 8);
    if (area !== undefined) return area.registers.write64(offset - area.offset, value);
    this.#value.write64(0, value);
    this.calls.regionWrite(this.region, offset, this.#bytes8);
  }

  readBig64(offset: number): bigint {
    const area = this.#areaOf(offset, 8);
    if (area !== undefined) return area.registers.readBig64(offset - area.offset);
    this.calls.regionRead(this.region, offset, this.#bytes8);
    return this.#value.readBig64(0);
  }

  writeBig64(offset: number, value: bigint): void {
    const area = this.#areaOf(offset, 8);
    if (area !== undefined) return area.registers.writeBig64(offset - area.offset, value);
    this.#value.writeBig64(0, value);
    this.calls.regionWrite(this.region, offset, this.#bytes8);
  }

  flush(offset: number): void {
    const area = this.#areaOf(offset, 4);
    if (area !== undefined) area.registers.flush(offset - area.offset);
    else this.calls.regionRead(this.region, offset, this.#bytes4);
  }

  /** The mapped area with all of these bytes, for another thread; `undefined` if calls make some of the accesses. */
  lend(offset: number, length: number): LentRegisters | undefined {
    return this.areas.find((area) => offset >= area.offset && offset + length <= area.end)?.lend();
  }

  /**
   * The mapped area that contains an access; `undefined` if a call makes it. EINVAL outside the region or misaligned.
   */
  #areaOf(offset: number, width: number): MappedArea | undefined {
    checkRegister(offset, width, this.size);
    // Areas are few (mostly one), and since they are page-aligned, an aligned access is fully in one area or in none.
    for (const area of this.areas) if (offset >= area.offset && offset < area.end) return area;
    return undefined;
  }
}
