/** The driver's interface to a device model in this process. */
import { mustBe, mustBeOneOf } from '../../check.js';
import { DmaError, invalid } from '../../errors.js';
import { RegionRegisters, type RegionCalls } from '../../platform/registers/region-registers.js';
import type { Registers } from '../../platform/registers/registers.js';
import { show } from '../../show.js';
import { hex } from '../../units.js';
import { ConfigSpace, CONFIG_SPACE_SIZE } from '../../vfio-user/config-space.js';
import {
  makeModel,
  modelFault,
  type DeviceDma,
  type DeviceModel,
  type ModelFactory,
  type ModelHost,
} from '../../vfio-user/devices/model.js';
import {
  checkRegionAccess,
  handlersOf,
  INTERRUPT_KINDS,
  noRegion,
  PCI_REGION,
  type DeviceAccess,
  type InterruptKind,
  type Interrupts,
  type RegionInfo,
} from '../device-access.js';
import { setImmediate } from '../../timers.js';

/** Hosts a model, and lets a driver use it. */
export class ModelAccess implements DeviceAccess, ModelHost {
  readonly dma: DeviceDma;
  readonly regions: readonly RegionInfo[];
  readonly model: DeviceModel;
  readonly #config: ConfigSpace;
  readonly #memory = new Map<string, Uint8Array>();
  readonly #registers = new Map<number, Registers>();
  readonly #calls: RegionCalls = {
    regionRead: (region, offset, into) => this.load(region, offset, into),
    regionWrite: (region, offset, from) => this.writeRegion(region, offset, from),
  };
  #handlers: readonly (() => void)[] = [];
  readonly #signalled = new Set<number>();
  #closed = false;

  constructor(factory: ModelFactory, dma: DeviceDma) {
    this.dma = dma;
    this.model = makeModel(factory, this);
    this.#config = new ConfigSpace(this.model, undefined);
    const config = { index: PCI_REGION.CONFIG, size: CONFIG_SPACE_SIZE };
    this.regions = [...this.model.regions, config].map(({ index, size }) => ({
      index,
      size,
      readable: true,
      writable: true,
    }));
  }

  // --- for the driver ---

  registers(region: number): Registers {
    const known = this.#registers.get(region);
    if (known !== undefined) return known;
    const registers = new RegionRegisters(this.#calls, region, this.#sizeOf(region), []);
    this.#registers.set(region, registers);
    return registers;
  }

  readRegion(region: number, offset: number, length: number): Uint8Array {
    checkRegionAccess(this.regions, region, offset, length);
    const bytes = new Uint8Array(length);
    this.load(region, offset, bytes);
    return bytes;
  }

  /** Reads from a region until `into` is full. */
  load(region: number, offset: number, into: Uint8Array): void {
    this.#check(region, offset, into.length);
    const memory = this.#memoryAt(region, offset, into.length);
    if (region === PCI_REGION.CONFIG) this.#config.read(offset, into);
    else if (memory !== undefined) into.set(memory);
    else this.#ask('read', () => this.model.read(region, offset, into));
  }

  writeRegion(region: number, offset: number, bytes: Uint8Array): void {
    mustBe(bytes, Uint8Array, 'the bytes to write', 'writeRegion');
    this.#check(region, offset, bytes.length);
    const memory = this.#memoryAt(region, offset, bytes.length);
    if (region === PCI_REGION.CONFIG) this.#config.write(offset, bytes);
    else if (memory !== undefined) memory.set(bytes);
    else this.#ask('write', () => this.model.write(region, offset, bytes));
  }

  interruptCount(kind: InterruptKind): number {
    mustBeOneOf(kind, INTERRUPT_KINDS, 'kind of interrupt', 'interruptCount');
    return this.model.interrupts[kind];
  }

  enableInterrupts(kind: InterruptKind, handlers: readonly (() => void)[]): Interrupts {
    const count = this.interruptCount(kind);
    const own = handlersOf(handlers, count, kind);
    this.#handlers = own;
    return {
      setRef: () => undefined,
      close: () => {
        if (this.#handlers === own) this.#handlers = [];
      },
    };
  }

  reset(): void {
    this.#ask('reset', () => this.model.reset());
    this.#config.reset();
  }

  /** Ends all access and resets the model: running transfers write nothing more. */
  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    this.#handlers = [];
    this.model.reset();
    this.model.close?.();
  }

  // --- for the model ---

  interrupt(vector: number): void {
    if (this.#signalled.has(vector)) return;
    this.#signalled.add(vector);
    setImmediate(() => {
      this.#signalled.delete(vector);
      this.#handlers[vector]?.();
    });
  }

  regionMemory(region: number, offset: number): Uint8Array {
    const key = `${region}:${offset}`;
    const known = this.#memory.get(key);
    if (known !== undefined) return known;
    const part = this.#partsOf(region).find((each) => each.offset === offset);
    if (part === undefined) throw invalid('regionMemory', `region ${region} has no memory at ${hex(offset)}`);
    const memory = new Uint8Array(part.length);
    this.#memory.set(key, memory);
    return memory;
  }

  /** @throws DmaError EIO if the model throws, with its error as the cause */
  #ask(operation: string, call: () => void): void {
    try {
      call();
    } catch (error) {
      throw modelFault(error, operation);
    }
  }

  #partsOf(region: number): readonly { readonly offset: number; readonly length: number }[] {
    return this.model.regions.find(({ index }) => index === region)?.memory ?? [];
  }

  #memoryAt(region: number, offset: number, length: number): Uint8Array | undefined {
    const part = this.#partsOf(region).find(
      (each) => offset >= each.offset && offset + length <= each.offset + each.length,
    );
    if (part === undefined) return undefined;
    const from = offset - part.offset;
    const memory = this.regionMemory(region, part.offset);
    if (memory.length === 0)
      throw new DmaError({
        code: 'EIO',
        operation: 'registers',
        reason: `the device's model transferred the memory of region ${region} (ArrayBuffer.transfer)`,
        hint: 'ArrayBuffer.transfer and byte stream readers detach the memory: the model must pass them a copy',
      });
    return memory.subarray(from, from + length);
  }

  #sizeOf(region: number): number {
    const info = this.regions.find(({ index }) => index === region);
    if (info === undefined) throw noRegion(this.regions, region);
    return info.size;
  }

  #check(region: number, offset: number, length: number): void {
    if (this.#closed) {
      const hint = 'the device was removed, or its Eal was stopped: eal.probe(name) opens it again';
      throw new DmaError({ code: 'ENODEV', operation: 'registers', reason: 'the device is closed', hint });
    }
    const size = this.#sizeOf(region);
    if (!Number.isInteger(offset) || offset < 0 || length < 1 || offset + length > size)
      throw invalid('registers', `${length} bytes at ${hex(offset)} of region ${show(region)}, which has ${hex(size)}`);
  }
}
