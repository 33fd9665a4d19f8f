/** Devices of a primary, and what is mapped for them, as a secondary uses them. */
import { ended } from '../check.js';
import type { AttachedCopyEngine } from '../drivers/attached-copy-engine.js';
import type { AttachedNvmeQueue } from '../drivers/nvme/queue.js';
import type { DmaAccess } from '../dma/address-space.js';
import type { MapAsyncOptions } from '../dma/domain.js';
import { DmaError } from '../errors.js';
import type { IovaRun } from '../memory/area.js';
import { rangeOf, type MemoryPart } from '../memory/part.js';
import { shortForm } from '../short-form.js';
import { hex, type Iova, type Va } from '../units.js';
import type { Fields } from '../fields.js';
import type { MemoryKeeper } from './secondary-memory.js';
import { STAYS } from '../stays.js';

/** What devices need of their secondary. */
export interface DeviceKeeper extends MemoryKeeper {
  /** Asks the primary to map memory. */
  map(device: string, part: { va: number; length: number }, options: MapAsyncOptions): Promise<SecondaryMapping>;
  iovaOf(device: string, part: { va: number; length: number }): Promise<Iova>;
  openQueue(device: string, options: SecondaryQueueOptions): Promise<AttachedNvmeQueue>;
  openCopyEngine(device: string): Promise<AttachedCopyEngine>;
}

/** Options of {@link SecondaryDevice.openQueue}. */
export interface SecondaryQueueOptions {
  /** Entries of its rings: one more than commands can run. Default 256, or the most that the controller has. */
  readonly entries?: number;
  /** An interrupt for this queue alone, for `wait` and for calls that wait. Default false. */
  readonly interrupts?: boolean;
}

/** A device of the primary. Memory is mapped for it by the primary. */
export class SecondaryDevice {
  /** @internal */
  readonly stays = STAYS;
  /** `bus:name` */
  readonly name: string;
  /** The name of its bus. */
  readonly bus: string;
  /** The name of its driver; `undefined` if it had none when it was asked for. */
  readonly driver: string | undefined;
  /** The name of its domain; `undefined` if no memory can be mapped for it. */
  readonly domain: string | undefined;
  readonly #keeper: DeviceKeeper;

  /** @internal */
  constructor(keeper: DeviceKeeper, facts: Fields) {
    this.#keeper = keeper;
    this.name = facts.string('name');
    this.bus = facts.string('bus');
    this.driver = facts.has('driver') ? facts.string('driver') : undefined;
    this.domain = facts.has('domain') ? facts.string('domain') : undefined;
  }

  /**
   * Maps memory for the device. The primary makes the mapping, so that it has to know the memory: external memory with a
   * descriptor, which is attached here. (Owned memory, and that of heaps, is mapped for every device already.) It is
   * unmapped when this process ends.
   *
   * @throws DmaError ENOTSUP for memory that only this process has; ENODEV, EINVAL, EEXIST and others of `Device.dmaMap`
   */
  async dmaMap(part: MemoryPart, options: MapAsyncOptions = {}): Promise<SecondaryMapping> {
    const operation = 'dmaMap';
    const range = rangeOf(part, operation);
    if (!this.#keeper.mirror.has(range.start, range.length))
      throw new DmaError({
        code: 'ENOTSUP',
        operation,
        range,
        device: this.name,
        reason: 'this memory is only in this process, and the primary, which makes the mapping, can not reach it',
        hint: 'memory with a descriptor can be mapped: external.allocate(), external.fromFd() and external.attach()',
      });
    return this.#keeper.map(this.name, { va: range.start, length: range.length }, options);
  }

  /**
   * Opens a queue pair of an NVMe controller of the primary, which this process works by slots, with stores of its own: see `NvmeQueue`.
   * Addresses come from {@link iovaOf} or from a mapping. Where the controller has doorbells in memory (Doorbell Buffer Config) a busy one
   * needs no more; else the primary stores them, when this process wakes it.
   *
   * It is closed when it is disposed, or when this process ends, in whatever way: the controller then gives up what runs before the
   * primary gives memory of this process back.
   *
   * @throws DmaError EINVAL; ENOTSUP for devices that are no NVMe controllers; as `Nvme.openQueue`; why the connection ended
   */
  async openQueue(options: SecondaryQueueOptions = {}): Promise<AttachedNvmeQueue> {
    return this.#keeper.openQueue(this.name, options);
  }

  /**
   * Opens a copy engine of the primary, which this process works by stores of its own: see `AttachedCopyEngine`. Until it is disposed, or this
   * process ends in whatever way, calls of the engine are EBUSY in the primary. The device is reset then: copies that still run are given
   * up before the primary gives memory of this process back.
   *
   * @throws DmaError EINVAL for devices that are no copy engines; EBUSY while it is used, or another thread or process has it; why the
   *   connection ended
   */
  async openCopyEngine(): Promise<AttachedCopyEngine> {
    return this.#keeper.openCopyEngine(this.name);
  }

  /** The IOVA of memory that is mapped for the device. @throws DmaError as `Device.iovaOf` */
  async iovaOf(part: MemoryPart): Promise<Iova> {
    const range = rangeOf(part, 'iovaOf');
    return this.#keeper.iovaOf(this.name, { va: range.start, length: range.length });
  }
}

shortForm(SecondaryDevice, 'SecondaryDevice', ({ name, driver, domain }) => ({ name, driver, domain }));

/** Memory that the primary has mapped for a device on behalf of this process. */
export class SecondaryMapping implements AsyncDisposable {
  /** @internal */
  readonly stays = STAYS;
  /** The name of the device. */
  readonly device: string;
  readonly va: Va;
  /** bytes */
  readonly length: number;
  readonly access: DmaAccess;
  /** What is mapped, in VA order. */
  readonly segments: readonly IovaRun[];
  /** Keys of the memory region, for devices that have keys (verbs). */
  readonly lkey: number | undefined;
  readonly rkey: number | undefined;
  readonly #keeper: MemoryKeeper;
  readonly #id: number;
  #live = true;

  /** @internal */
  constructor(keeper: MemoryKeeper, facts: Fields) {
    this.#keeper = keeper;
    this.#id = facts.number('id');
    this.device = facts.string('device');
    this.va = facts.number('va') as Va;
    this.length = facts.number('length');
    this.access = facts.string('access') as DmaAccess;
    this.segments = facts.list('segments').map((run) => ({
      va: run.number('va') as Va,
      iova: run.number('iova') as Iova,
      length: run.number('length'),
    }));
    this.lkey = facts.has('lkey') ? facts.number('lkey') : undefined;
    this.rkey = facts.has('rkey') ? facts.number('rkey') : undefined;
  }

  /** The IOVA of the first byte. @throws DmaError EINVAL if it is in several pieces: see {@link segments} */
  get iova(): Iova {
    if (this.segments.length === 1) return this.segments[0].iova;
    throw ended('iova', 'the mapping has several pieces, each with an IOVA of its own', 'mapping.segments.length');
  }

  /** Was it not unmapped by this process? The primary's device may be lost all the same. */
  get live(): boolean {
    return this.#live;
  }

  /** Unmaps it. @throws DmaError EINVAL if that was done before; errors of `Mapping.unmapAsync` */
  async unmap(): Promise<void> {
    if (!this.#live) throw ended('unmap', 'it was unmapped already', 'mapping.live');
    await this.#keeper.release(this.#id, 'unmap', {});
    this.#live = false;
  }

  /** Unmaps it, unless that was done before. */
  async [Symbol.asyncDispose](): Promise<void> {
    if (this.#live) await this.unmap();
  }
}

shortForm(SecondaryMapping, 'SecondaryMapping', ({ device, va, length, live }) => ({
  device,
  va: hex(va),
  length,
  live,
}));
