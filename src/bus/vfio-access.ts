/** The driver's interface to a device that speaks VFIO, through a vfio-user connection or the kernel. */
import { mustBe, mustBeOneOf } from '../check.js';
import type { Holders } from '../memory/shared/holders.js';
import type { LentRegisters } from '../platform/registers/region-registers.js';
import type { RegisterFile, RegisterLoan } from './lent-registers.js';
import { DmaError, invalid, throwFirst, undoAll } from '../errors.js';
import { nonsense, type Fields, type JsonObject } from '../fields.js';
import type { Platform } from '../platform/ports.js';
import type { Registers } from '../platform/registers/registers.js';
import { alignDown, alignUp } from '../units.js';
import { ArmedInterrupts } from './armed-interrupts.js';
import {
  checkRegionAccess,
  handlersOf,
  INTERRUPT_KINDS,
  noRegion,
  type DeviceAccess,
  type InterruptKind,
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
  #enabled: ArmedInterrupts | undefined;
  /** The kind of `#enabled`. */
  #kind: InterruptKind | undefined;
  /** May the device not be accessed yet, because another process has it? */
  #isHeld = false;
  /** What another process had enabled. */
  #taken: { readonly kind: InterruptKind; readonly fds: readonly number[] } | undefined;

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
      const { va, offset: from, length: bytes, fd, fdOffset } = lent;
      return {
        stores: { kind: 'mapped', va: va + from, offset: from, length: bytes },
        file: pagesOf({ fd, fdOffset, offset: from, length: bytes }, offset, length, this.#platform.memory.pageSize),
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
    const afterwards = this.#device.interrupts[index].automasked
      ? () => {
          // The handler has cleared the interrupt in the device, or disabled interrupts.
          if (this.#enabled === enabled && this.#device.failure === undefined) this.#unmask(index);
        }
      : undefined;
    const fds = this.#takenFds(kind, own.length);
    this.#enabled?.close();
    const enabled: ArmedInterrupts = new ArmedInterrupts(this.#platform, {
      ...{ handlers: own, afterwards, fds },
      disable: () => {
        if (this.#device.failure === undefined) this.#device.setInterrupts({ index, action: 'trigger' });
      },
      closed: () => {
        if (this.#enabled === enabled) this.#enabled = this.#kind = undefined;
      },
    });
    try {
      if (fds !== undefined) enabled.armed();
      if (!this.#isHeld) enabled.listen();
      if (fds === undefined) this.#device.setInterrupts({ index, action: 'trigger', eventfds: enabled.fds });
      enabled.armed();
    } catch (error) {
      undoAll([() => enabled.close()]);
      throw error;
    }
    this.#enabled = enabled;
    this.#kind = kind;
    return enabled;
  }

  /**
   * @internal Takes no interrupts from now on: another process, which gets the eventfds, can. {@link resume} or
   *   {@link abandon} follows.
   */
  handOver(): { readonly state: JsonObject; readonly fds: readonly number[] } {
    const handed = this.#enabled === undefined ? this.#taken : { kind: this.#kind, fds: this.#enabled.fds };
    this.#enabled?.pause();
    return { state: { kind: handed?.kind ?? null }, fds: handed?.fds ?? [] };
  }

  /** @internal It was not handed over. */
  resume(): void {
    this.#enabled?.listen();
  }

  /** @internal Another process has the eventfds. */
  abandon(): void {
    this.#enabled?.abandon();
    this.#dropTaken();
  }

  /**
   * @internal Interrupts that another process has handed over: the first `enableInterrupts` of the same kind, with as many
   *   handlers, continues with them, so that none is lost.
   *
   * @param fds the eventfds; they belong to this object from now on. No handler is called before {@link start}
   */
  takeOver(state: Fields, fds: readonly number[]): void {
    this.#isHeld = true;
    const kind = state.has('kind') ? state.word('kind', INTERRUPT_KINDS) : undefined;
    this.#taken = kind === undefined ? undefined : { kind, fds };
  }

  /** @internal Ends {@link takeOver}: the other process has let go of the device. */
  start(): void {
    this.#isHeld = false;
    this.#enabled?.listen();
  }

  /** Eventfds of {@link takeOver}, if they are for these interrupts. Other ones are disabled by the request that follows. */
  #takenFds(kind: InterruptKind, count: number): readonly number[] | undefined {
    const taken = this.#taken;
    if (taken === undefined) return undefined;
    if (taken.kind === kind && taken.fds.length === count) {
      this.#taken = undefined;
      return taken.fds;
    }
    if (this.#isHeld) throw nonsense('takeOver', `${taken.fds.length} vectors of ${taken.kind}`);
    if (this.#device.failure === undefined)
      this.#device.setInterrupts({ index: IRQ_INDEX[taken.kind], action: 'trigger' });
    this.#dropTaken();
    return undefined;
  }

  #dropTaken(): void {
    const fds = this.#taken?.fds ?? [];
    this.#taken = undefined;
    throwFirst(undoAll(fds.map((fd) => () => this.#platform.files.close(fd))), 'close');
  }

  reset(): void {
    if (!this.#device.info.resettable)
      throw new DmaError({ code: 'ENOTSUP', operation: 'reset', reason: 'the device has no reset' });
    this.#device.reset();
  }

  /** Disables interrupts. The bus closes the connection or the device. */
  close(): void {
    this.#enabled?.close();
    if (this.#taken !== undefined) this.#takenFds(this.#taken.kind, -1);
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

/** The pages of a file in which bytes [offset, offset + length) of the region are. */
function pagesOf(
  { fd, fdOffset, offset: from, length: bytes }: RegisterFile,
  offset: number,
  length: number,
  pageSize: number,
): RegisterFile {
  const skipped = alignDown(offset - from, pageSize);
  const end = Math.min(bytes, alignUp(offset + length - from, pageSize));
  return { fd, fdOffset: fdOffset + skipped, offset: from + skipped, length: end - skipped };
}
