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
import { Bell, until } from './wait.js';
import { shortForm } from '../short-form.js';

/** What a driver has to be told about its edu device. */
export interface EduOptions {
  /**
   * Bits of an IOVA that the device uses. It drops the others silently, so that IOVAs with more are refused here. Default
   * 28, QEMU's default for its `dma_mask` property.
   */
  readonly dmaMaskBits?: number;
  /** How long one step of the device may take, in milliseconds. A transfer takes 100 in QEMU. Default 5000. */
  readonly timeoutMs?: number;
}

const EDU_OPTIONS: Shape<EduOptions> = { dmaMaskBits: 'number', timeoutMs: 'number' };

/** Bytes in one transfer at most. */
const CHUNK = 2048;

/** Bytes of the device's buffer that are used: QEMU up to 7.2 ends the machine when a transfer reaches the last one. */
const USABLE = EDU_BUFFER.LENGTH - 1;

/**
 * An edu device. It has one DMA engine, one buffer and one factorial unit, so that operations run one after the other.
 *
 * The device reports no failed transfers: one that meets memory which is not mapped moves nothing, and looks as if it had.
 */
export class Edu implements Disposable {
  /** The PCI identity of the devices that this driver is for. */
  static readonly matches = EDU_IDENTITY;

  readonly #registers: Registers;
  readonly #access: DeviceAccess;
  readonly #addressLimit: number;
  readonly #timeoutMs: number;
  readonly #bell = new Bell();
  #last: Promise<unknown> = Promise.resolve();
  #interrupts: Interrupts | undefined;
  /** Why nothing can be begun any more. */
  #closed: DmaError | undefined;

  private constructor(access: DeviceAccess, registers: Registers, options: EduOptions) {
    this.#access = access;
    this.#registers = registers;
    this.#addressLimit = 2 ** (options.dmaMaskBits ?? EDU_DMA_MASK_BITS);
    this.#timeoutMs = options.timeoutMs ?? 5000;
  }

  /**
   * Takes hold of the device. It is not reset, because QEMU's has no reset: what an earlier driver left running is waited
   * for by the first operation. `access` stays the caller's, and must be open as long as this driver is used.
   *
   * @throws DmaError ENODEV when it is no edu device
   */
  static open(access: DeviceAccess, asked?: EduOptions): Edu {
    const operation = 'edu.open';
    mustHave(access, ['registers', 'enableInterrupts', 'interruptCount'], 'access to a device', operation);
    const options = optionsOf(asked, EDU_OPTIONS, operation);
    if (options.dmaMaskBits !== undefined) mustBeWhole(options.dmaMaskBits, 1, 53, 'dmaMaskBits', operation);
    if (options.timeoutMs !== undefined) mustBeMs(options.timeoutMs, 'timeoutMs', operation);
    const registers = access.registers(EDU_REGION.INDEX);
    const id = registers.size >= EDU_REGION.SIZE ? registers.read32(EDU_REGISTER.IDENTIFICATION) : 0;
    if ((id & 0xffff) !== 0x00ed)
      throw new DmaError({
        code: 'ENODEV',
        operation,
        reason: `region 0 has ${hex(registers.size)} bytes and identification ${hex(id)}, which is no edu device`,
      });
    return new Edu(access, registers, options);
  }

  /** The identification register: `0xRRrr00ed`, major and minor version. */
  get identification(): number {
    return this.#open('edu.identification').read32(EDU_REGISTER.IDENTIFICATION);
  }

  /** Stores `value` (32 bits) in the liveness register and returns what reads back: its complement when the device lives. */
  liveness(value: number): number {
    const registers = this.#open('edu.liveness');
    registers.write32(EDU_REGISTER.LIVENESS, value);
    return registers.read32(EDU_REGISTER.LIVENESS);
  }

  /**
   * n! modulo 2^32, as the device computes it. QEMU's needs a step for each factor, so that a large n takes seconds.
   *
   * Rejects with EINVAL unless n is an integer in [0, 2^32), ETIMEDOUT when the device does not get ready.
   */
  factorial(n: number): Promise<number> {
    return this.#inTurn(async () => {
      mustBeWhole(n, 0, 2 ** 32 - 1, 'n', 'edu.factorial');
      await this.#computed();
      const registers = this.#open('edu.factorial');
      registers.write32(EDU_REGISTER.STATUS, this.#interrupts === undefined ? 0 : EDU_STATUS.INTERRUPT_AFTER);
      registers.write32(EDU_REGISTER.FACTORIAL, n);
      await this.#computed();
      return registers.read32(EDU_REGISTER.FACTORIAL);
    });
  }

  /**
   * Has the device read `length` bytes of memory at `iova` into its buffer at `bufferOffset`, in transfers of at most 2 KiB.
   *
   * The memory must stay mapped, readable by the device, until this settles. Rejects before anything starts with EINVAL for a
   * range outside the first 4095 bytes of the buffer, ERANGE for memory that the device's DMA mask does not reach; with
   * ETIMEDOUT when the device does not finish (it may still do later), ECANCELED when the driver is closed meanwhile.
   */
  copyIn(iova: IovaLike, bufferOffset: number, length: number): Promise<void> {
    return this.#copy('edu.copyIn', iova, bufferOffset, length, false);
  }

  /** Has the device write `length` bytes of its buffer from `bufferOffset` on to memory at `iova`; otherwise as {@link copyIn}. */
  copyOut(iova: IovaLike, bufferOffset: number, length: number): Promise<void> {
    return this.#copy('edu.copyOut', iova, bufferOffset, length, true);
  }

  /** Makes the device interrupt for the reasons `bits` (32 bits). */
  raiseInterrupt(bits: number): void {
    this.#open('edu.raiseInterrupt').write32(EDU_REGISTER.INTERRUPT_RAISE, bits);
  }

  /**
   * Enables the device's interrupt, by MSI when it has that. `handler` is called with the reasons (`EDU_INTERRUPT` and those
   * of {@link raiseInterrupt}), which have been acknowledged. Operations use interrupts too from then on. Replaces an
   * earlier handler; closing the result, or the driver, disables them.
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
          // The device is gone; the operation that waits finds that out for itself.
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
   * Ends the use of the driver; what runs rejects with ECANCELED. The device itself can not be stopped: a transfer that has
   * begun goes on, so let operations settle first when their memory is to be used for something else.
   *
   * @param why what runs, and what comes later, fails with this. Default: ECANCELED
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
          reason: 'this edu device does not reach that far',
          range: memory,
          hint: `map the memory at an IOVA that ends at or below ${hex(this.#addressLimit)}, or give the device a larger DMA mask`,
        });
      for (let at = 0; at < length; at += CHUNK)
        await this.#transfer(
          operation,
          iova + at,
          EDU_BUFFER.ADDRESS + offset + at,
          Math.min(CHUNK, length - at),
          toMemory,
        );
    });
  }

  async #transfer(operation: string, iova: number, buffer: number, length: number, toMemory: boolean): Promise<void> {
    // While a transfer runs the device drops what is stored to these registers.
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

  /** Runs `work` when all that was asked for before has ended. */
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
