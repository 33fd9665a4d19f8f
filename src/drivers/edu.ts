/** A driver for the `edu` PCI device: QEMU's own over VFIO, or the model of it. */
import { closedDriver } from '../bus/closed-device.js';
import type { DeviceAccess, Interrupts } from '../bus/device-access.js';
import { mustBe, mustBeFunction, mustBeMs, mustBeWhole, mustHave, optionsOf, type Shape } from '../check.js';
import { DmaError, invalid } from '../errors.js';
import type { Registers } from '../platform/registers/registers.js';
import { Range } from '../ranges.js';
import { hex, type IovaLike } from '../units.js';
import {
  EDU_BUFFER,
  EDU_COMMAND,
  EDU_DMA_MASK_BITS,
  EDU_IDENTITY,
  EDU_REGION,
  EDU_REGISTER,
  EDU_STATUS,
} from '../vfio-user/devices/edu-layout.js';
import type { Paused } from '../handed.js';
import { Bell, until } from './wait.js';
import { shortForm } from '../short-form.js';
import { STAYS } from '../stays.js';

/** Options of an edu device. */
export interface EduOptions {
  /**
   * Address bits that the device uses. It silently ignores higher bits, so larger IOVAs are refused here. Default 28,
   * QEMU's default for its `dma_mask` property.
   */
  readonly dmaMaskBits?: number;
  /** Time limit of one step of the device in milliseconds. A transfer takes 100 ms in QEMU. Default 5000. */
  readonly timeoutMs?: number;
}

const EDU_OPTIONS: Shape<EduOptions> = { dmaMaskBits: 'number', timeoutMs: 'number' };

/** Most bytes of one transfer. */
const CHUNK = 2048;

/** Usable bytes of the device's buffer: QEMU up to 7.2 crashes when a transfer reaches the last byte. */
const USABLE = EDU_BUFFER.LENGTH - 1;

/**
 * An edu device. It has one DMA engine, one buffer and one factorial unit, so operations run one after the other.
 *
 * The device does not report failed transfers: a transfer to or from memory that is not mapped moves nothing, but looks
 * complete.
 */
export class Edu implements Disposable {
  /** @internal */
  readonly stays = STAYS;
  /** The PCI identity of this driver's devices. */
  static readonly matches = EDU_IDENTITY;

  readonly #registers: Registers;
  readonly #access: DeviceAccess;
  readonly #addressLimit: number;
  readonly #timeoutMs: number;
  readonly #bell = new Bell();
  #last: Promise<unknown> = Promise.resolve();
  /** What the device does now. */
  #step: Promise<unknown> = Promise.resolve();
  /** Resolves when the next step may begin, while it may not. */
  #held: Promise<void> | undefined;
  #interrupts: Interrupts | undefined;
  /** Why no operation can start any more. */
  #closed: DmaError | undefined;

  private constructor(access: DeviceAccess, registers: Registers, options: EduOptions) {
    this.#access = access;
    this.#registers = registers;
    this.#addressLimit = 2 ** (options.dmaMaskBits ?? EDU_DMA_MASK_BITS);
    this.#timeoutMs = options.timeoutMs ?? 5000;
  }

  /**
   * Starts using the device. It is not reset, because QEMU's device has no reset: the first operation waits for what an
   * earlier driver left running. The caller owns `access`, and keeps it open while this driver is used.
   *
   * @throws DmaError ENODEV if it is not an edu device
   */
  static open(access: DeviceAccess, options?: EduOptions): Edu {
    const operation = 'edu.open';
    mustHave(access, ['registers', 'enableInterrupts', 'interruptCount'], 'access to a device', operation);
    const checked = optionsOf(options, EDU_OPTIONS, operation);
    if (checked.dmaMaskBits !== undefined) mustBeWhole(checked.dmaMaskBits, 1, 53, 'dmaMaskBits', operation);
    if (checked.timeoutMs !== undefined) mustBeMs(checked.timeoutMs, 'timeoutMs', operation);
    const registers = access.registers(EDU_REGION.INDEX);
    const id = registers.size >= EDU_REGION.SIZE ? registers.read32(EDU_REGISTER.IDENTIFICATION) : 0;
    if ((id & 0xffff) !== 0x00ed)
      throw new DmaError({
        code: 'ENODEV',
        operation,
        reason: `region 0 has ${hex(registers.size)} bytes and identification ${hex(id)}, which is not an edu device`,
      });
    return new Edu(access, registers, checked);
  }

  /** @internal Continues with a device that another process has handed over; it is not accessed. */
  static takeOver(access: DeviceAccess, options: EduOptions): Edu {
    return new Edu(access, access.registers(EDU_REGION.INDEX), options);
  }

  /**
   * @internal Waits for the transfer that runs, and begins no other one, so that another process can continue. What is
   *   waiting begins when it is resumed, and fails when it is ended. Interrupts are not the driver's to hand over.
   */
  async handOver(): Promise<Paused> {
    let go = (): void => undefined;
    this.#held = new Promise((resolve) => (go = resolve));
    const resume = (): void => {
      this.#held = undefined;
      go();
    };
    await this.#step;
    const end = (error: DmaError): void => {
      this.#closed ??= error;
      resume();
    };
    return { state: {}, fds: [], resume, end };
  }

  /** The identification register: `0xRRrr00ed`, major and minor version. */
  get identification(): number {
    return this.#open('edu.identification').read32(EDU_REGISTER.IDENTIFICATION);
  }

  /**
   * Stores `value` (32 bits) in the liveness register and returns what it reads: the complement if the device works.
   */
  liveness(value: number): number {
    const registers = this.#open('edu.liveness');
    registers.write32(EDU_REGISTER.LIVENESS, value);
    return registers.read32(EDU_REGISTER.LIVENESS);
  }

  /**
   * n! modulo 2^32, computed by the device. QEMU needs a step per factor, so a large n takes seconds.
   *
   * Rejects with EINVAL unless n is an integer in [0, 2^32), ETIMEDOUT if the device does not finish.
   */
  factorial(n: number): Promise<number> {
    return this.#inTurn(async () => {
      mustBeWhole(n, 0, 2 ** 32 - 1, 'n', 'edu.factorial');
      return this.#begin(async () => {
        await this.#computed();
        const registers = this.#open('edu.factorial');
        registers.write32(EDU_REGISTER.STATUS, this.#interrupts === undefined ? 0 : EDU_STATUS.INTERRUPT_AFTER);
        registers.write32(EDU_REGISTER.FACTORIAL, n);
        await this.#computed();
        return registers.read32(EDU_REGISTER.FACTORIAL);
      });
    });
  }

  /**
   * Lets the device read `length` bytes of memory at `iova` into its buffer at `bufferOffset`, in transfers of at most
   * 2 KiB.
   *
   * The memory must stay mapped, readable by the device, until the promise settles. Rejects before it starts with
   * EINVAL for a range outside the first 4095 bytes of the buffer, ERANGE for memory beyond the device's DMA mask;
   * later with ETIMEDOUT if the device does not finish (it still may), ECANCELED if the driver is closed.
   */
  copyIn(iova: IovaLike, bufferOffset: number, length: number): Promise<void> {
    return this.#copy('edu.copyIn', iova, bufferOffset, length, false);
  }

  /**
   * Lets the device write `length` bytes of its buffer at `bufferOffset` to memory at `iova`; otherwise like {@link
   * copyIn}.
   */
  copyOut(iova: IovaLike, bufferOffset: number, length: number): Promise<void> {
    return this.#copy('edu.copyOut', iova, bufferOffset, length, true);
  }

  /** Makes the device raise an interrupt with the reasons `bits` (32 bits). */
  raiseInterrupt(bits: number): void {
    this.#open('edu.raiseInterrupt').write32(EDU_REGISTER.INTERRUPT_RAISE, bits);
  }

  /**
   * Enables the device's interrupt, by MSI if it has it. `handler` is called with the reasons (`EDU_INTERRUPT` and
   * those of {@link raiseInterrupt}), already acknowledged. From then on operations use interrupts too. Replaces an
   * earlier handler; closing the result, or the driver, disables the interrupt.
   */
  enableInterrupt(handler: (reasons: number) => void): Interrupts {
    mustBeFunction(handler, 'a handler', 'edu.enableInterrupt');
    const registers = this.#open('edu.enableInterrupt');
    this.#interrupts?.close();
    const kind = this.#access.interruptCount('msi') > 0 ? 'msi' : 'intx';
    const inner = this.#access.enableInterrupts(kind, [
      () => {
        let reasons = 0;
        try {
          reasons = registers.read32(EDU_REGISTER.INTERRUPT_STATUS);
          registers.write32(EDU_REGISTER.INTERRUPT_ACKNOWLEDGE, reasons);
        } catch {
          // The device is gone; the waiting operation will notice.
        }
        this.#bell.ring();
        if (reasons !== 0) handler(reasons);
      },
    ]);
    const interrupts: Interrupts = {
      setRef: (keepAlive) => inner.setRef(keepAlive),
      close: () => {
        if (this.#interrupts === interrupts) this.#interrupts = undefined;
        inner.close();
      },
    };
    this.#interrupts = interrupts;
    return interrupts;
  }

  /**
   * Closes the driver; the running operation rejects with ECANCELED. The device itself can not be stopped: a transfer
   * continues, so wait for operations before the memory is used otherwise.
   *
   * @param why error of running and later operations. Default: ECANCELED
   */
  close(why?: DmaError): void {
    if (why !== undefined) mustBe(why, DmaError, 'why it is closed', 'edu.close');
    this.#closed ??= why ?? closedDriver('edu');
    this.#interrupts?.close();
    this.#bell.ring();
  }

  /** Calls {@link close}. */
  [Symbol.dispose](): void {
    this.close();
  }

  #copy(operation: string, iova: number, offset: number, length: number, toMemory: boolean): Promise<void> {
    return this.#inTurn(async () => {
      const memory = new Range(iova, length, operation);
      const buffer = new Range(offset, length, operation);
      if (buffer.end > USABLE)
        throw invalid(operation, `the buffer has ${USABLE} usable bytes, not ${buffer.end}`, { range: buffer });
      if (memory.end > this.#addressLimit)
        throw new DmaError({
          code: 'ERANGE',
          operation,
          reason: 'the address is beyond the DMA mask of this edu device',
          range: memory,
          hint: `map the memory at an IOVA that ends at or below ${hex(this.#addressLimit)}, or give the device a larger DMA mask`,
        });
      for (let at = 0; at < length; at += CHUNK)
        await this.#begin(() =>
          this.#transfer(
            operation,
            iova + at,
            EDU_BUFFER.ADDRESS + offset + at,
            Math.min(CHUNK, length - at),
            toMemory,
          ),
        );
    });
  }

  /** Runs one step of the device, once it may. */
  async #begin<T>(work: () => Promise<T>): Promise<T> {
    while (this.#held !== undefined) await this.#held;
    const step = work();
    this.#step = step.catch(() => undefined);
    return step;
  }

  async #transfer(operation: string, iova: number, buffer: number, length: number, toMemory: boolean): Promise<void> {
    // During a transfer the device ignores stores to these registers.
    await this.#idle(operation);
    const [source, destination] = toMemory ? [buffer, iova] : [iova, buffer];
    const registers = this.#open(operation);
    this.#storeWide(EDU_REGISTER.DMA_SOURCE, source);
    this.#storeWide(EDU_REGISTER.DMA_DESTINATION, destination);
    this.#storeWide(EDU_REGISTER.DMA_COUNT, length);
    registers.write32(
      EDU_REGISTER.DMA_COMMAND,
      EDU_COMMAND.RUN |
        (toMemory ? EDU_COMMAND.TO_MEMORY : 0) |
        (this.#interrupts === undefined ? 0 : EDU_COMMAND.INTERRUPT),
    );
    await this.#idle(operation);
  }

  #storeWide(offset: number, value: number): void {
    if (value < 2 ** 32) this.#registers.write32(offset, value);
    else this.#registers.write64(offset, value);
  }

  #idle(operation: string): Promise<void> {
    return this.#until(operation, 'a transfer', EDU_REGISTER.DMA_COMMAND, EDU_COMMAND.RUN);
  }

  #computed(): Promise<void> {
    return this.#until('edu.factorial', 'a factorial', EDU_REGISTER.STATUS, EDU_STATUS.COMPUTING);
  }

  #until(operation: string, what: string, offset: number, busyBit: number): Promise<void> {
    const ready = (): boolean => (this.#open(operation).read32(offset) & busyBit) === 0;
    return until(ready, { operation, what, timeoutMs: this.#timeoutMs, bell: this.#bell });
  }

  /** Runs `work` after all earlier operations. */
  #inTurn<T>(work: () => Promise<T>): Promise<T> {
    const result = this.#last.then(work);
    this.#last = result.catch(() => {});
    return result;
  }

  #open(operation: string): Registers {
    if (this.#closed !== undefined) throw this.#closed.with({ operation });
    return this.#registers;
  }
}

shortForm(Edu, 'Edu', () => ({}));
