/** For tests of drivers: a device model in this process, reached as a driver reaches devices. */
import type { DeviceAccess, InterruptKind, Interrupts, RegionInfo } from '../../../src/bus/device-access.js';
import { DmaError, invalid } from '../../../src/errors.js';
import type { Registers } from '../../../src/platform/registers/registers.js';
import { checkRegister } from '../../../src/platform/registers/registers.js';
import type { FakeModelHost } from '../vfio-user/model-host.js';

/** {@link DeviceAccess} over the model of a {@link FakeModelHost}. */
export class FakeAccess implements DeviceAccess {
  readonly regions: readonly RegionInfo[];
  /** Set: every register access throws ENODEV. */
  gone = false;
  /** Every 64-bit store, by offset. */
  readonly wideStores: number[] = [];
  /** The kind of interrupt that is enabled. */
  enabled: InterruptKind | undefined;
  readonly #host: FakeModelHost;
  readonly #registers: Registers;

  constructor(host: FakeModelHost) {
    this.#host = host;
    this.regions = host.model.regions.map(({ index, size }) => ({ index, size, readable: true, writable: true }));
    const { size } = host.model.regions[0];
    const check = (offset: number, width: number): void => {
      checkRegister(offset, width, size);
      if (this.gone) throw new DmaError({ code: 'ENODEV', operation: 'registers', reason: 'the device is gone' });
    };
    const narrow = (): never => {
      throw new DmaError({ code: 'ENOTSUP', operation: 'registers', reason: 'this test has no narrow registers' });
    };
    this.#registers = {
      size,
      read8: narrow,
      write8: narrow,
      read16: narrow,
      write16: narrow,
      read32: (offset) => {
        check(offset, 4);
        return host.read32(offset);
      },
      write32: (offset, value) => {
        check(offset, 4);
        host.write32(offset, value);
      },
      read64: (offset) => {
        check(offset, 8);
        return Number(host.read64(offset));
      },
      write64: (offset, value) => {
        check(offset, 8);
        this.wideStores.push(offset);
        host.write64(offset, BigInt(value));
      },
      readBig64: (offset) => {
        check(offset, 8);
        return host.read64(offset);
      },
      writeBig64: (offset, value) => {
        check(offset, 8);
        this.wideStores.push(offset);
        host.write64(offset, value);
      },
      flush: (offset) => {
        check(offset, 4);
      },
    };
  }

  registers(region: number): Registers {
    if (region !== 0) throw invalid('registers', `no region ${region}`);
    return this.#registers;
  }

  readRegion(region: number, offset: number, length: number): Uint8Array {
    const bytes = new Uint8Array(length);
    this.#host.model.read(region, offset, bytes);
    return bytes;
  }

  writeRegion(region: number, offset: number, bytes: Uint8Array): void {
    this.#host.model.write(region, offset, bytes);
  }

  interruptCount(kind: InterruptKind): number {
    return this.#host.model.interrupts[kind];
  }

  enableInterrupts(kind: InterruptKind, handlers: readonly (() => void)[]): Interrupts {
    if (handlers.length > this.interruptCount(kind)) throw invalid('enableInterrupts', `too many vectors`);
    const onInterrupt = (vector: number): void => {
      setImmediate(() => {
        if (this.#host.onInterrupt === onInterrupt) handlers[vector]();
      });
    };
    this.#host.onInterrupt = onInterrupt;
    this.enabled = kind;
    return {
      setRef: () => undefined,
      close: () => {
        if (this.#host.onInterrupt !== onInterrupt) return;
        this.#host.onInterrupt = () => {};
        this.enabled = undefined;
      },
    };
  }

  reset(): void {
    this.#host.model.reset();
  }
}
