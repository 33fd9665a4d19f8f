/** The driver's interface to a device that speaks VFIO, through a vfio-user connection or the kernel. */
import { mustBe, mustBeOneOf } from '../check.js';
import { DmaError, invalid, undoAll } from '../errors.js';
import type { EventsPort, Platform, Watch } from '../platform/ports.js';
import type { Holders } from '../memory/shared/holders.js';
import type { LentRegisters } from '../platform/registers/region-registers.js';
import type { RegisterLoan } from './lent-registers.js';
import type { Registers } from '../platform/registers/registers.js';
import {
  checkRegionAccess,
  handlersOf,
  INTERRUPT_KINDS,
  noRegion,
  type DeviceAccess,
  type InterruptKind,
  type InterruptLoan,
  type Interrupts,
  type RegionInfo,
} from './device-access.js';

/** The members that `VfioUserClient` and `VfioDevice` have in common. */
export interface VfioLike {
  readonly info: { readonly resettable: boolean };
  /** By index. A region that the device does not have has size 0. */
  readonly regions: readonly RegionInfo[];
  /** By index. */
  readonly interrupts: readonly { readonly count: number; readonly automasked: boolean }[];
  /** Why a region is accessed by messages although it could be mapped. Absent if all such regions are mapped. */
  notMapped?(region: number): string | undefined;
  /** Why the device can no longer be used. */
  readonly failure: DmaError | undefined;
  registers(region: number): Registers;
  /** Keeps mapped registers for another thread; `undefined` if they are not mapped. */
  lendRegisters(region: number, offset: number, length: number): LentRegisters | undefined;
  /** Lets another thread store to registers by message. Absent, or throws ENOTSUP, if that can not be. */
  lendStores?(region: number, holders: Holders): RegisterLoan;
  regionRead(region: number, offset: number, into: Uint8Array): void;
  regionWrite(region: number, offset: number, from: Uint8Array): void;
  /** `trigger` with neither `eventfds` nor `count` disables the whole kind. */
  setInterrupts(request: {
    readonly index: number;
    readonly action: 'trigger' | 'unmask';
    readonly eventfds?: readonly number[];
    readonly count?: number;
  }): void;
  reset(): void;
}

/** Interrupt indexes, from VFIO_PCI_INTX_IRQ_INDEX on (include/uapi/linux/vfio.h). */
const IRQ_INDEX: Record<InterruptKind, number> = { intx: 0, msi: 1, msix: 2 };

/** Registers, configuration space and interrupts of one device. */
export class VfioAccess implements DeviceAccess {
  readonly regions: readonly RegionInfo[];
  readonly #platform: Platform;
  readonly #device: VfioLike;
  #enabled: Interrupts | undefined;

  constructor(platform: Platform, device: VfioLike) {
    this.#platform = platform;
    this.#device = device;
    this.regions = device.regions
      .filter((region) => region.size > 0)
      .map(({ index, size, readable, writable }) => {
        const notMapped = device.notMapped?.(index);
        return { index, size, readable, writable, ...(notMapped === undefined ? {} : { notMapped }) };
      });
  }

  registers(region: number): Registers {
    if (!this.regions.some((info) => info.index === region)) throw noRegion(this.regions, region);
    return this.#device.registers(region);
  }

  lendRegisters(region: number, offset: number, length: number, holders: Holders): RegisterLoan {
    checkRegionAccess(this.regions, region, offset, length);
    const lent = this.#device.lendRegisters(region, offset, length);
    if (lent !== undefined) {
      const { va, offset: from, length: bytes } = lent;
      return {
        stores: { kind: 'mapped', va: va + from, offset: from, length: bytes },
        [Symbol.dispose]: () => lent[Symbol.dispose](),
      };
    }
    const loan = this.#device.lendStores?.(region, holders);
    if (loan !== undefined) return loan;
    throw new DmaError({
      code: 'ENOTSUP',
      operation: 'lendRegisters',
      reason: `region ${region} is not mapped there, so that no other thread can reach its registers`,
    });
  }

  readRegion(region: number, offset: number, length: number): Uint8Array {
    checkRegionAccess(this.regions, region, offset, length);
    const bytes = new Uint8Array(length);
    this.#device.regionRead(region, offset, bytes);
    return bytes;
  }

  writeRegion(region: number, offset: number, bytes: Uint8Array): void {
    mustBe(bytes, Uint8Array, 'the bytes to write', 'writeRegion');
    checkRegionAccess(this.regions, region, offset, bytes.length);
    this.#device.regionWrite(region, offset, bytes);
  }

  interruptCount(kind: InterruptKind): number {
    mustBeOneOf(kind, INTERRUPT_KINDS, 'kind of interrupt', 'interruptCount');
    return this.#device.interrupts[IRQ_INDEX[kind]]?.count ?? 0;
  }

  enableInterrupts(kind: InterruptKind, handlers: readonly (() => void)[]): Interrupts {
    const count = this.interruptCount(kind);
    const index = IRQ_INDEX[kind];
    const own = handlersOf(handlers, count, kind);
    if (own.length === 0) throw invalid('enableInterrupts', `no handlers for the ${count} vectors of ${kind}`);
    this.#enabled?.close();
    const undo: (() => void)[] = [];
    const vectors: Vector[] = [];
    const isOn = (): boolean => undo.length > 0 && this.#device.failure === undefined;
    const afterwards = this.#device.interrupts[index].automasked
      ? () => {
          // The handler has cleared the interrupt in the device, or disabled interrupts.
          if (isOn()) this.#unmask(index);
        }
      : undefined;
    try {
      const eventfds = own.map((handler) => this.#listen(handler, afterwards, undo, vectors));
      this.#device.setInterrupts({ index, action: 'trigger', eventfds });
      undo.push(() => {
        if (this.#device.failure === undefined) this.#device.setInterrupts({ index, action: 'trigger' });
      });
    } catch (error) {
      undoAll(undo.splice(0).reverse());
      throw error;
    }
    const enabled: Interrupts = {
      setRef: (keepAlive) => {
        for (const vector of vectors) vector.setRef(keepAlive);
      },
      // One that is masked by each signal is unmasked by this thread.
      ...(afterwards === undefined ? { lend: (vector: number) => vectors[vector].lend() } : {}),
      close: () => {
        const errors = undoAll(undo.splice(0).reverse());
        if (this.#enabled === enabled) this.#enabled = undefined;
        if (errors.length > 0) throw errors[0];
      },
    };
    this.#enabled = enabled;
    return enabled;
  }

  reset(): void {
    if (!this.#device.info.resettable)
      throw new DmaError({ code: 'ENOTSUP', operation: 'reset', reason: 'the device has no reset' });
    this.#device.reset();
  }

  /** Disables interrupts. The bus closes the connection or the device. */
  close(): void {
    this.#enabled?.close();
  }

  /** Creates an eventfd. Each signal calls `handler`, and then `afterwards` even if the handler throws. */
  #listen(handler: () => void, afterwards: (() => void) | undefined, undo: (() => void)[], vectors: Vector[]): number {
    const { events, files } = this.#platform;
    const fd = events.create();
    undo.push(() => files.close(fd));
    const vector = new Vector(this.#platform, fd, () => {
      try {
        handler();
      } finally {
        afterwards?.();
      }
    });
    undo.push(() => vector.close());
    vector.start();
    vectors.push(vector);
    return fd;
  }

  /** Unmasks a kind of interrupt that is masked by each signal. */
  #unmask(index: number): void {
    try {
      this.#device.setInterrupts({ index, action: 'unmask', count: 1 });
    } catch (error) {
      // The loss of the device is reported elsewhere.
      if (this.#device.failure === undefined) throw error;
    }
  }
}

/** One vector: its eventfd, which this thread waits for, unless another one does. */
class Vector {
  readonly #platform: Platform;
  readonly #fd: number;
  readonly #signalled: () => void;
  #watch: Watch | undefined;
  #keepAlive = true;
  #closed = false;

  constructor(platform: Platform, fd: number, onSignal: () => void) {
    this.#platform = platform;
    this.#fd = fd;
    this.#signalled = onSignal;
  }

  start(): void {
    const { events, readiness } = this.#platform;
    const fd = this.#fd;
    this.#watch = readiness.watch(fd, { readable: true }, () => {
      if (signalled(events, fd)) this.#signalled();
    });
    if (!this.#keepAlive) this.#watch.setRef(false);
  }

  setRef(keepAlive: boolean): void {
    this.#keepAlive = keepAlive;
    this.#watch?.setRef(keepAlive);
  }

  lend(): InterruptLoan {
    const { files } = this.#platform;
    const fd = files.duplicate(this.#fd);
    this.#watch?.close();
    this.#watch = undefined;
    let isLent = true;
    return {
      fd,
      signal: () => this.#platform.events.signal(fd),
      [Symbol.dispose]: () => {
        if (!isLent) return;
        isLent = false;
        files.close(fd);
        if (this.#closed) return;
        this.start();
        this.#signalled();
      },
    };
  }

  close(): void {
    this.#closed = true;
    this.#watch?.close();
  }
}

/**
 * Whether it was signalled. If reading the eventfd fails: true, because a missed interrupt does more harm than a
 * spurious one.
 */
function signalled(events: EventsPort, fd: number): boolean {
  try {
    return events.take(fd) > 0;
  } catch {
    return true;
  }
}
