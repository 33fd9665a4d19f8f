/** The registers of a controller: its capabilities, and how it is switched on and off (NVMe 1.4, sections 3.1 and 7.6). */
import { PCI_REGION, type DeviceAccess } from '../../bus/device-access.js';
import { DmaError } from '../../errors.js';
import {
  capabilitiesOf,
  CC,
  CMB,
  COMMAND_SETS,
  CSTS,
  ENTRY,
  memoryBufferOf,
  NVME_REGISTER as REG,
  SHUTDOWN,
  SHUTDOWN_STATUS,
  versionText,
  type NvmeCapabilities,
  type NvmeMemoryBuffer,
} from '../../nvme/registers.js';
import type { Registers } from '../../platform/registers/registers.js';
import { hex } from '../../units.js';
import { until } from '../wait.js';

/** What a controller is switched on with. */
export interface EnableOptions {
  /** Entries of the admin queue. */
  readonly entries: number;
  readonly submissions: number;
  readonly completions: number;
  /** bytes */
  readonly pageSize: number;
  /** CC.AMS: 0 round robin, 1 weighted. */
  readonly arbitration: number;
}

/** Where the memory buffer is for the controller: past all addresses that memory is mapped at. */
export const BUFFER_ADDRESS = 2 ** 52;

/** CAP.TO is 0 with some controllers that need a moment all the same. */
const LEAST_READY_MS = 1000;
/** How long a shutdown may take at least and at most, whatever the controller says. */
const LEAST_SHUTDOWN_MS = 5000;
const MOST_SHUTDOWN_MS = 60_000;
const ALL_ONES = 0xffffffff;

/** The registers of a controller. */
export class ControllerBar {
  readonly registers: Registers;
  readonly capabilities: NvmeCapabilities;
  /** `1.4.0` */
  readonly version: string;
  readonly #readyMs: number;

  /** @throws DmaError ENODEV if there is no controller behind it */
  constructor(access: DeviceAccess) {
    const operation = 'nvme.open';
    this.registers = access.registers(PCI_REGION.BAR0);
    const { registers } = this;
    if (registers.size < REG.DOORBELLS + 8)
      throw new DmaError({
        code: 'ENODEV',
        operation,
        reason: `BAR 0 has ${hex(registers.size)} bytes: it is no NVMe controller`,
      });
    const [low, high] = [registers.read32(REG.CAP), registers.read32(REG.CAP + 4)];
    if (low === ALL_ONES && high === ALL_ONES) throw gone(operation);
    this.capabilities = capabilitiesOf(low, high);
    this.version = versionText(registers.read32(REG.VS));
    this.#readyMs = Math.max(LEAST_READY_MS, this.capabilities.readyTimeoutMs);
  }

  /** CSTS. @throws DmaError ENODEV when it reads as all ones: the device is gone */
  status(): number {
    const status = this.registers.read32(REG.CSTS);
    if (status === ALL_ONES) throw gone('nvme');
    return status;
  }

  /** @throws DmaError EIO once the controller says that it has failed; ENODEV when it is gone */
  check(): void {
    if ((this.status() & CSTS.CFS) !== 0) throw fatal('nvme');
  }

  /**
   * Switches it off; when this resolves, it reaches no memory any more.
   *
   * @throws DmaError ETIMEDOUT, ENODEV
   */
  async disable(): Promise<void> {
    const { registers } = this;
    const configuration = registers.read32(REG.CC);
    if (configuration === ALL_ONES) throw gone('nvme');
    if ((configuration & CC.EN) !== 0) {
      // A controller that is still starting has to be ready first, unless it never will be.
      if ((this.status() & (CSTS.RDY | CSTS.CFS)) === 0)
        await this.#wait(CSTS.RDY, CSTS.RDY, 'starting').catch(() => undefined);
      registers.write32(REG.CC, configuration & ~CC.EN);
    }
    await this.#wait(CSTS.RDY, 0, 'stopping');
  }

  /** Switches it on, with an admin queue. @throws DmaError ETIMEDOUT; EIO when it fails; ENODEV */
  async enable({ entries, submissions, completions, pageSize, arbitration }: EnableOptions): Promise<void> {
    const { registers } = this;
    registers.write32(REG.AQA, (entries - 1) | ((entries - 1) << 16));
    this.write64(REG.ASQ, submissions);
    this.write64(REG.ACQ, completions);
    const sets = this.capabilities.commandSets;
    const css =
      (sets & 0x40) !== 0 ? COMMAND_SETS.ALL : (sets & 0x81) === 0x80 ? COMMAND_SETS.ADMIN_ONLY : COMMAND_SETS.NVM;
    registers.write32(
      REG.CC,
      CC.EN |
        (css << CC.CSS_SHIFT) |
        ((Math.log2(pageSize) - 12) << CC.MPS_SHIFT) |
        (arbitration << CC.AMS_SHIFT) |
        (ENTRY.SUBMISSION_POWER << CC.IOSQES_SHIFT) |
        (ENTRY.COMPLETION_POWER << CC.IOCQES_SHIFT),
    );
    await this.#wait(CSTS.RDY | CSTS.CFS, CSTS.RDY, 'starting');
  }

  /**
   * Switches the controller memory buffer on (NVMe 1.4, sections 3.1.11 to 3.1.14): memory in one of its BARs, which it takes for
   * addresses from {@link BUFFER_ADDRESS} on.
   *
   * @returns where it is; `undefined` if there is none that submission queues may be in
   */
  enableMemoryBuffer(): NvmeMemoryBuffer | undefined {
    const { registers } = this;
    if (!this.capabilities.memoryBuffer) return undefined;
    // As one store: QEMU's controller looks at the address when its low half is written.
    registers.write64(REG.CMBMSC, CMB.CRE);
    const buffer = memoryBufferOf(registers.read32(REG.CMBLOC), registers.read32(REG.CMBSZ));
    if (buffer === undefined || (buffer.uses & CMB.SQS) === 0) return undefined;
    registers.write64(REG.CMBMSC, BUFFER_ADDRESS + (CMB.CRE | CMB.CMSE));
    return (registers.read32(REG.CMBSTS) & 1) === 0 ? buffer : undefined;
  }

  /**
   * Tells the controller that it will be switched off, so that it makes everything durable. Resolves when it has.
   *
   * @param ms how long that may take, as the controller says; 0: it does not
   * @throws DmaError ETIMEDOUT; EIO when it fails; ENODEV
   */
  async shutdown(ms: number): Promise<void> {
    const { registers } = this;
    const configuration = registers.read32(REG.CC);
    if (configuration === ALL_ONES || (configuration & CC.EN) === 0) return;
    registers.write32(REG.CC, (configuration & ~(CC.SHN_MASK << CC.SHN_SHIFT)) | (SHUTDOWN.NORMAL << CC.SHN_SHIFT));
    const isOver = (): boolean => {
      const status = this.status();
      if (((status >>> CSTS.SHST_SHIFT) & CSTS.SHST_MASK) === SHUTDOWN_STATUS.COMPLETE) return true;
      if ((status & CSTS.CFS) !== 0) throw fatal('nvme.close');
      return false;
    };
    await until(isOver, {
      operation: 'nvme.close',
      what: 'the shutdown of the controller',
      timeoutMs: Math.min(MOST_SHUTDOWN_MS, Math.max(LEAST_SHUTDOWN_MS, ms)),
    });
  }

  /** Two stores, the low word first. */
  write64(offset: number, value: number): void {
    this.registers.write32(offset, value % 2 ** 32);
    this.registers.write32(offset + 4, Math.floor(value / 2 ** 32));
  }

  async #wait(mask: number, wanted: number, what: string): Promise<void> {
    const isStarting = wanted !== 0;
    await until(
      () => {
        const status = this.status();
        if (isStarting && (status & CSTS.CFS) !== 0) throw fatal('nvme');
        return (status & mask) === wanted;
      },
      {
        operation: 'nvme',
        what: `${what} the controller (CAP.TO allows ${this.capabilities.readyTimeoutMs} ms)`,
        timeoutMs: this.#readyMs,
      },
    );
  }
}

/** The error of a device whose registers read as all ones. */
export function gone(operation: string): DmaError {
  return new DmaError({
    code: 'ENODEV',
    operation,
    reason: 'the registers of the controller read as all ones: it was removed, or has lost its power',
    hint: 'eal.probe(name) opens it when it is back',
  });
}

/** The error of a controller that says it has failed. */
export function fatal(operation: string): DmaError {
  return new DmaError({
    code: 'EIO',
    operation,
    reason: 'the controller reports a fatal error (CSTS.CFS)',
    hint: 'its error log may say more, once it has been reset',
  });
}
