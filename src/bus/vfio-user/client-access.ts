/** A device behind a vfio-user connection, worked as drivers work any device. */
import { DmaError, invalid, undoAll } from '../../errors.js';
import type { EventsPort, Platform } from '../../platform/ports.js';
import type { Registers } from '../../platform/registers.js';
import type { VfioUserClient } from '../../vfio-user/client.js';
import type { DeviceAccess, InterruptKind, Interrupts, RegionInfo } from '../device-access.js';

/** VFIO_PCI_INTX_IRQ_INDEX and on (include/uapi/linux/vfio.h). */
const IRQ_INDEX: Record<InterruptKind, number> = { intx: 0, msi: 1, msix: 2 };

/** See the head of the file. */
export class ClientAccess implements DeviceAccess {
  readonly regions: readonly RegionInfo[];
  readonly #platform: Platform;
  readonly #client: VfioUserClient;
  #enabled: Interrupts | undefined;

  constructor(platform: Platform, client: VfioUserClient) {
    this.#platform = platform;
    this.#client = client;
    this.regions = client.regions
      .filter((region) => region.size > 0)
      .map(({ index, size, readable, writable }) => ({ index, size, readable, writable }));
  }

  registers(region: number): Registers {
    if (!this.regions.some((info) => info.index === region))
      throw invalid('registers', `the device has no region ${region}`);
    return this.#client.registers(region);
  }

  readRegion(region: number, offset: number, length: number): Uint8Array {
    const bytes = new Uint8Array(length);
    this.#client.regionRead(region, offset, bytes);
    return bytes;
  }

  writeRegion(region: number, offset: number, bytes: Uint8Array): void {
    this.#client.regionWrite(region, offset, bytes);
  }

  interruptCount(kind: InterruptKind): number {
    return this.#client.interrupts[IRQ_INDEX[kind]]?.count ?? 0;
  }

  enableInterrupts(kind: InterruptKind, handlers: readonly (() => void)[]): Interrupts {
    const index = IRQ_INDEX[kind];
    const count = this.interruptCount(kind);
    if (handlers.length > count || handlers.length === 0)
      throw invalid('enableInterrupts', `${handlers.length} handlers for ${count} vectors of ${kind}`);
    this.#enabled?.close();
    const undo: (() => void)[] = [];
    try {
      const eventfds = handlers.map((handler) => this.#listen(handler, undo));
      this.#client.setInterrupts({ index, action: 'trigger', eventfds });
      undo.push(() => {
        if (this.#client.failure === undefined) this.#client.setInterrupts({ index, action: 'trigger' });
      });
    } catch (error) {
      undoAll(undo.reverse());
      throw error;
    }
    const enabled: Interrupts = {
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
    if (!this.#client.info.resettable)
      throw new DmaError({ code: 'ENOTSUP', operation: 'reset', reason: 'the device has no reset' });
    this.#client.reset();
  }

  /** Gives back what interrupts took. The connection is the bus's to close. */
  close(): void {
    this.#enabled?.close();
  }

  /** A new eventfd whose signals call `handler`. */
  #listen(handler: () => void, undo: (() => void)[]): number {
    const { events, files, readiness } = this.#platform;
    const fd = events.create();
    undo.push(() => files.close(fd));
    const watch = readiness.watch(fd, { readable: true }, () => {
      if (signalled(events, fd)) handler();
    });
    undo.push(() => watch.close());
    return fd;
  }
}

/** Was it signalled? When that can not be told, an interrupt too many does less harm than one that is missed. */
function signalled(events: EventsPort, fd: number): boolean {
  try {
    return events.take(fd) > 0;
  } catch {
    return true;
  }
}
