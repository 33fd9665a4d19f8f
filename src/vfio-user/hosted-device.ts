/**
 * An emulated device with everything that a vfio-user client sees: configuration space, mappable memory, interrupts.
 */
import { DmaError, invalid, undoAll } from '../errors.js';
import { LentMemory } from '../memory/lent-memory.js';
import type { Platform } from '../platform/ports.js';
import { Range } from '../ranges.js';
import { alignUp, hex, isAddress } from '../units.js';
import { CONFIG_SPACE_SIZE, ConfigSpace, placeMsix } from './config-space.js';
import { makeModel, type DeviceModel, type ModelFactory, type ModelHost } from './devices/model.js';
import { DmaTable } from './dma-table.js';
import { InterruptLines } from './interrupts.js';
import type { RegionDescription, SparseArea } from './messages.js';

/** Regions of a PCI device, numbered as in VFIO: six base address registers, ROM, configuration space, VGA. */
export const REGION_COUNT = 9;
const CONFIG_REGION = 7;

/** A part of a region that is plain memory. */
interface MemoryPart {
  /** bytes, from the beginning of the region */
  readonly offset: number;
  readonly end: number;
  readonly memory: LentMemory;
}

/** One region, as the client sees it. */
interface HostedRegion {
  /** bytes */
  readonly size: number;
  /** The sealed memfd behind all `parts`. */
  readonly fd: number | undefined;
  readonly parts: readonly MemoryPart[];
}

/** A device for one client at a time; {@link release} resets it for the next. */
export class HostedDevice implements ModelHost {
  readonly dma: DmaTable;
  readonly model: DeviceModel;
  readonly interrupts: InterruptLines;
  readonly #config: ConfigSpace;
  /** By index. */
  readonly #regions: HostedRegion[] = [];
  readonly #msixIndex: number | undefined;
  readonly #msixTable: Uint8Array;

  /**
   * @param mostDmaMaps the most DMA regions that a client may have at once
   * @throws DmaError EINVAL for a model that is not a possible PCI device; errors of the system, such as a lack of
   *   memory
   */
  constructor(
    private readonly platform: Platform,
    factory: ModelFactory,
    private readonly mostDmaMaps: number,
  ) {
    this.dma = new DmaTable(platform, mostDmaMaps);
    this.model = makeModel(factory, this);
    this.interrupts = new InterruptLines(platform, this.model.interrupts);
    const msix = placeMsix(this.model);
    this.#config = new ConfigSpace(this.model, msix);
    this.#msixIndex = msix?.index;
    this.#msixTable = new Uint8Array(msix?.size ?? 0);
    try {
      for (let index = 0; index < REGION_COUNT; index++) {
        const described = this.model.regions.find((region) => region.index === index);
        const memory = described?.memory ?? [];
        const size =
          index === CONFIG_REGION ? CONFIG_SPACE_SIZE : index === msix?.index ? msix.size : (described?.size ?? 0);
        const parts: MemoryPart[] = [];
        const fd =
          memory.length === 0
            ? undefined
            : platform.memory.memfd({
                name: `${this.model.name} region ${index}`,
                length: alignUp(size, platform.memory.pageSize),
              });
        this.#regions.push({ size, fd, parts });
        for (const { offset, length } of memory) parts.push(this.#mapPart(fd, size, offset, length));
      }
    } catch (error) {
      undoAll([() => this.close()]);
      throw error;
    }
  }

  /** The reply to GET_REGION_INFO, with the descriptor to send. EINVAL for an index that PCI devices do not have. */
  describeRegion(index: number): RegionDescription & { readonly fd: number | undefined } {
    const region = this.#regionOf(index, 'vfio-user GET_REGION_INFO');
    const areas: SparseArea[] = region.parts.map(({ offset, end }) => ({ offset, length: end - offset }));
    const there = region.size > 0;
    return {
      index,
      size: region.size,
      readable: there,
      writable: there,
      mappable: areas.length > 0,
      fdOffset: 0,
      areas,
      argsz: 0,
      fd: region.fd,
    };
  }

  /** A load of the client. EINVAL outside the region. */
  readRegion(index: number, offset: number, into: Uint8Array): void {
    const region = this.#checkAccess(index, offset, into.length);
    if (index === CONFIG_REGION) this.#config.read(offset, into);
    else if (index === this.#msixIndex) into.set(this.#msixTable.subarray(offset, offset + into.length));
    else
      eachPiece(region.parts, offset, into.length, (from, to, part) => {
        const piece = into.subarray(from - offset, to - offset);
        if (part === undefined) this.model.read(index, from, piece);
        else piece.set(part.memory.bytes().subarray(from - part.offset, to - part.offset));
      });
  }

  /** A store of the client. EINVAL outside the region. */
  writeRegion(index: number, offset: number, from: Uint8Array): void {
    const region = this.#checkAccess(index, offset, from.length);
    if (index === CONFIG_REGION) this.#config.write(offset, from);
    else if (index === this.#msixIndex) this.#msixTable.set(from, offset);
    else
      eachPiece(region.parts, offset, from.length, (start, to, part) => {
        const piece = from.subarray(start - offset, to - offset);
        if (part === undefined) this.model.write(index, start, piece);
        else part.memory.bytes().set(piece, start - part.offset);
      });
  }

  interrupt(vector: number): void {
    this.interrupts.signal(vector);
  }

  regionMemory(index: number, offset: number): Uint8Array {
    const part = this.#regions.at(index)?.parts.find((candidate) => candidate.offset === offset);
    if (part === undefined) throw invalid('regionMemory', `region ${index} has no memory at ${hex(offset)}`);
    return part.memory.lend();
  }

  /** A client has connected. @param trusted whether its memory and its eventfds are trusted */
  admit(trusted: boolean): void {
    this.dma.trusted = trusted;
    this.interrupts.trusted = trusted;
    this.dma.maxMaps = Math.max(1, Math.min(this.mostDmaMaps, this.#roomForMaps()));
  }

  /** The most DMA regions that the client may have at once. */
  get maxDmaMaps(): number {
    return this.dma.maxMaps;
  }

  /** Resets the device to power-on; the client's mappings and eventfds stay. Only while no transfer is running. */
  reset(): void {
    this.model.reset();
    this.#config.reset();
    this.#msixTable.fill(0);
  }

  /**
   * The client is gone: removes its mappings and eventfds, and resets. Returns `undefined` if that is done, else a
   * promise.
   */
  release(): Promise<void> | undefined {
    this.dma.messages = undefined;
    const finish = (): void => {
      this.dma.clear();
      this.interrupts.clear();
      for (const { parts } of this.#regions) for (const { memory } of parts) memory.bytes().fill(0);
      this.reset();
      this.model.resume();
    };
    const quiet = this.model.quiesce();
    if (quiet !== undefined) return quiet.then(finish);
    finish();
    return undefined;
  }

  /** Frees everything. */
  close(): void {
    const { files } = this.platform;
    this.model.close?.();
    this.dma.clear();
    this.interrupts.clear();
    for (const { fd, parts } of this.#regions.splice(0)) {
      for (const { memory } of parts) memory.abandon();
      if (fd !== undefined) files.close(fd);
    }
  }

  /**
   * Each region may be a mapping of this process, which needs some for itself: the client gets half of what is left
   * now.
   */
  #roomForMaps(): number {
    const { limit, used } = this.platform.limits.mappings();
    return Math.floor((limit - used) / 2);
  }

  #mapPart(fd: number | undefined, size: number, offset: number, length: number): MemoryPart {
    const { memory } = this.platform;
    const isWhole = offset % memory.pageSize === 0 && length % memory.pageSize === 0 && length > 0;
    if (fd === undefined || !isWhole || offset + length > size)
      throw invalid('vfio-user device', `memory of ${length} bytes at ${hex(offset)} of a region of ${size} bytes`);
    const lent = new LentMemory(memory, new Range(memory.map({ fd, offset, length }), length));
    try {
      lent.bytes();
      return { offset, end: offset + length, memory: lent };
    } catch (error) {
      lent.abandon();
      throw error;
    }
  }

  #regionOf(index: number, operation: string): HostedRegion {
    const region = this.#regions.at(index);
    if (region === undefined) throw invalid(operation, `no region ${index}`);
    return region;
  }

  #checkAccess(index: number, offset: number, length: number): HostedRegion {
    const region = this.#regionOf(index, 'vfio-user region');
    if (isAddress(offset) && offset + length <= region.size) return region;
    throw new DmaError({
      code: 'EINVAL',
      operation: 'vfio-user region',
      reason: `${length} bytes at ${hex(offset)} of region ${index}, which has ${region.size} bytes`,
    });
  }
}

/** Splits [offset, offset + length) where plain memory begins or ends. */
function eachPiece(
  parts: readonly MemoryPart[],
  offset: number,
  length: number,
  visit: (from: number, to: number, part: MemoryPart | undefined) => void,
): void {
  const end = offset + length;
  for (let from = offset; from < end;) {
    const start = from;
    const part = parts.find((candidate) => start >= candidate.offset && start < candidate.end);
    const limit = part?.end ?? Math.min(Infinity, ...parts.map((p) => p.offset).filter((at) => at > start));
    const to = Math.min(end, limit);
    visit(from, to, part);
    from = to;
  }
}
