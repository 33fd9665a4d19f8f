/** A model of QEMU's `edu` PCI device; its registers are in `edu-layout.ts`. */
import { mustBeMs, mustBeWhole, optionsOf, type Shape } from '../../check.js';
import {
  EDU_BUFFER,
  EDU_COMMAND,
  EDU_DMA_MASK_BITS,
  EDU_IDENTIFICATION,
  EDU_IDENTITY,
  EDU_INTERRUPT,
  EDU_REGION,
  EDU_REGISTER,
  EDU_STATUS,
} from './edu-layout.js';
import type { DeviceModel, InterruptCounts, ModelFactory, ModelHost, ModelRegion, PciIdentity } from './model.js';
import { loadWord, storeWord } from './words.js';
import { clearTimeout, clearImmediate, setImmediate, setTimeout } from '../../timers.js';

/** How an edu device differs from QEMU's default. */
export interface EduModelOptions {
  /** Bits of an IOVA that the device uses, 1 to 53; the others are dropped as in QEMU. Default 28. */
  readonly dmaMaskBits?: number;
  /** How long a transfer takes in milliseconds (100 in QEMU). Default 0: it is done when the event loop turns. */
  readonly dmaDelayMs?: number;
}

const EDU_MODEL_OPTIONS: Shape<EduModelOptions> = { dmaMaskBits: 'number', dmaDelayMs: 'number' };

/**
 * Makes `edu` devices. They behave as QEMU's, except that
 * - a transfer that would leave the device's buffer moves nothing, where QEMU ends the machine or corrupts itself,
 *   depending on its version; it still completes and interrupts;
 * - there is a reset, which QEMU's device does not have.
 *
 * As in QEMU a transfer whose memory is not mapped, or not with that permission, moves nothing and completes.
 *
 * @throws DmaError EINVAL for options out of range
 */
export function eduModel(options?: EduModelOptions): ModelFactory {
  const { dmaMaskBits = EDU_DMA_MASK_BITS, dmaDelayMs = 0 } = optionsOf(options, EDU_MODEL_OPTIONS, 'eduModel');
  mustBeWhole(dmaMaskBits, 1, 53, 'dmaMaskBits', 'eduModel');
  mustBeMs(dmaDelayMs, 'dmaDelayMs', 'eduModel');
  return (host) => new EduModel(host, 2 ** dmaMaskBits, dmaDelayMs);
}

/** A 64-bit register; two words because a client may store what no Number holds. */
interface Wide {
  low: number;
  high: number;
}

class EduModel implements DeviceModel {
  readonly name = 'edu';
  // Class, revision and subsystem as QEMU gives them to the device.
  readonly identity: PciIdentity = {
    ...EDU_IDENTITY,
    subsystemVendor: 0x1af4,
    subsystem: 0x1100,
    revision: 0x10,
    classCode: 0x00ff00,
  };
  readonly regions: readonly ModelRegion[] = [{ index: EDU_REGION.INDEX, size: EDU_REGION.SIZE }];
  readonly interrupts: InterruptCounts = { intx: 1, msi: 1, msix: 0 };

  readonly #host: ModelHost;
  readonly #addressLimit: number;
  readonly #delayMs: number;

  #liveness = 0;
  #factorial = 0;
  #status = 0;
  #interruptStatus = 0;
  #dma = newDmaRegisters();
  #buffer = new Uint8Array(EDU_BUFFER.LENGTH);

  /** Counts resets; what was begun in an earlier epoch must not touch this one. */
  #epoch = 0;
  #cancelDelay: (() => void) | undefined;
  #paused = false;
  /** The transfer that waits for memory; never rejects. */
  #running: Promise<void> | undefined;
  /** A transfer that is due, but was found paused or behind another one. */
  #held = false;

  constructor(host: ModelHost, addressLimit: number, delayMs: number) {
    this.#host = host;
    this.#addressLimit = addressLimit;
    this.#delayMs = delayMs;
  }

  read(_region: number, offset: number, into: Uint8Array): void {
    const { length } = into;
    if (!isAccess(offset, length)) {
      into.fill(0);
      return;
    }
    into.fill(0xff);
    if (offset >= EDU_REGISTER.DMA_SOURCE) {
      const wide = this.#dma.get(offset);
      if (wide === undefined) return;
      storeWord(into, 0, wide.low);
      if (length === 8) storeWord(into, 4, wide.high);
    } else if (length === 4) {
      const value = this.#narrow(offset);
      if (value !== undefined) storeWord(into, 0, value);
    }
  }

  write(_region: number, offset: number, from: Uint8Array): void {
    const { length } = from;
    if (!isAccess(offset, length)) return;
    const value = loadWord(from, 0);
    if (offset >= EDU_REGISTER.DMA_SOURCE) this.#storeWide(offset, value, length === 8 ? loadWord(from, 4) : 0);
    else if (length === 4) this.#storeNarrow(offset, value);
  }

  reset(): void {
    this.#epoch++;
    this.#cancelDelay?.();
    this.#cancelDelay = undefined;
    this.#held = false;
    this.#liveness = 0;
    this.#factorial = 0;
    this.#status = 0;
    this.#interruptStatus = 0;
    this.#dma = newDmaRegisters();
    // A new array, because a transfer that was abandoned may still store into the old one.
    this.#buffer = new Uint8Array(EDU_BUFFER.LENGTH);
  }

  quiesce(): Promise<void> | undefined {
    this.#paused = true;
    return this.#running;
  }

  resume(): void {
    this.#paused = false;
    if (this.#held) this.#begin();
  }

  #narrow(offset: number): number | undefined {
    switch (offset) {
      case EDU_REGISTER.IDENTIFICATION:
        return EDU_IDENTIFICATION;
      case EDU_REGISTER.LIVENESS:
        return this.#liveness;
      case EDU_REGISTER.FACTORIAL:
        return this.#factorial;
      case EDU_REGISTER.STATUS:
        return this.#status;
      case EDU_REGISTER.INTERRUPT_STATUS:
        return this.#interruptStatus;
      default:
        return undefined;
    }
  }

  #storeNarrow(offset: number, value: number): void {
    switch (offset) {
      case EDU_REGISTER.LIVENESS:
        this.#liveness = ~value;
        break;
      case EDU_REGISTER.FACTORIAL:
        this.#compute(value);
        break;
      case EDU_REGISTER.STATUS:
        this.#status = (this.#status & EDU_STATUS.COMPUTING) | (value & EDU_STATUS.INTERRUPT_AFTER);
        break;
      case EDU_REGISTER.INTERRUPT_RAISE:
        this.#interrupt(value);
        break;
      case EDU_REGISTER.INTERRUPT_ACKNOWLEDGE:
        this.#interruptStatus &= ~value;
        break;
    }
  }

  #storeWide(offset: number, low: number, high: number): void {
    const wide = this.#dma.get(offset);
    // A transfer that runs owns its registers.
    if (wide === undefined || (this.#command() & EDU_COMMAND.RUN) !== 0) return;
    const starts = offset === EDU_REGISTER.DMA_COMMAND;
    if (starts && (low & EDU_COMMAND.RUN) === 0) return;
    wide.low = low;
    wide.high = high;
    if (starts) this.#cancelDelay = after(this.#delayMs, () => this.#begin());
  }

  #compute(n: number): void {
    if ((this.#status & EDU_STATUS.COMPUTING) !== 0) return;
    this.#factorial = n;
    this.#status |= EDU_STATUS.COMPUTING;
    const epoch = this.#epoch;
    // Later, so that a driver has to wait for the status as it has to with QEMU.
    setImmediate(() => {
      if (epoch !== this.#epoch) return;
      this.#factorial = factorial(n);
      this.#status &= ~EDU_STATUS.COMPUTING;
      if ((this.#status & EDU_STATUS.INTERRUPT_AFTER) !== 0) this.#interrupt(EDU_INTERRUPT.FACTORIAL);
    });
  }

  #interrupt(reasons: number): void {
    this.#interruptStatus |= reasons;
    if (this.#interruptStatus !== 0) this.#host.interrupt(0);
  }

  #command(): number {
    return this.#wide(EDU_REGISTER.DMA_COMMAND).low;
  }

  #begin(): void {
    this.#cancelDelay = undefined;
    this.#held = this.#paused || this.#running !== undefined;
    if (this.#held) return;
    const epoch = this.#epoch;
    const moved = this.#move();
    if (moved === undefined) {
      this.#finish();
      return;
    }
    const over = (): void => {
      this.#running = undefined;
      if (epoch === this.#epoch) this.#finish();
      if (this.#held) this.#begin();
    };
    this.#running = moved.then(over, over);
  }

  /** Moves the bytes; `undefined` when that is over, however it went: the device has no way to tell. */
  #move(): Promise<void> | undefined {
    const toMemory = (this.#command() & EDU_COMMAND.TO_MEMORY) !== 0;
    const source = this.#wide(EDU_REGISTER.DMA_SOURCE);
    const destination = this.#wide(EDU_REGISTER.DMA_DESTINATION);
    const [memory, buffer] = toMemory ? [destination, source] : [source, destination];
    const count = this.#wide(EDU_REGISTER.DMA_COUNT);
    const start = buffer.low - EDU_BUFFER.ADDRESS;
    if (count.high !== 0 || buffer.high !== 0 || count.low === 0) return undefined;
    if (start < 0 || start + count.low > EDU_BUFFER.LENGTH) return undefined;
    const bytes = this.#buffer.subarray(start, start + count.low);
    const iova = this.#masked(memory);
    try {
      return toMemory ? this.#host.dma.write(iova, bytes) : this.#host.dma.read(iova, bytes);
    } catch {
      return undefined;
    }
  }

  #finish(): void {
    const command = this.#wide(EDU_REGISTER.DMA_COMMAND);
    command.low = (command.low & ~EDU_COMMAND.RUN) >>> 0;
    if ((command.low & EDU_COMMAND.INTERRUPT) !== 0) this.#interrupt(EDU_INTERRUPT.DMA);
  }

  #masked(address: Wide): number {
    const limit = this.#addressLimit;
    if (limit <= 2 ** 32) return address.low % limit;
    return (address.high % (limit / 2 ** 32)) * 2 ** 32 + address.low;
  }

  #wide(offset: number): Wide {
    return this.#dma.get(offset) ?? { low: 0, high: 0 };
  }
}

function newDmaRegisters(): ReadonlyMap<number, Wide> {
  const { DMA_SOURCE, DMA_DESTINATION, DMA_COUNT, DMA_COMMAND } = EDU_REGISTER;
  return new Map([DMA_SOURCE, DMA_DESTINATION, DMA_COUNT, DMA_COMMAND].map((offset) => [offset, { low: 0, high: 0 }]));
}

/** Whether the device supports the access. Unsupported loads return 0. */
function isAccess(offset: number, length: number): boolean {
  return (length === 4 || length === 8) && offset % length === 0;
}

/** n! modulo 2^32. From 34 on it is 0: the product then has 32 factors of two. */
function factorial(n: number): number {
  if (n >= 34) return 0;
  let product = 1;
  for (let factor = 2; factor <= n; factor++) product = Math.imul(product, factor);
  return product >>> 0;
}

/** Calls `work` after `ms` milliseconds, or in the next turn of the event loop. Returns a function that cancels it. */
function after(ms: number, work: () => void): () => void {
  if (ms === 0) {
    const immediate = setImmediate(work);
    return () => clearImmediate(immediate);
  }
  const timer = setTimeout(work, ms);
  return () => clearTimeout(timer);
}
