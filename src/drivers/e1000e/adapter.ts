/** An adapter without its queues: how it is reset, so that it reaches no memory, its station address and its link. */
import { isGone, PCI_REGION, type DeviceAccess } from '../../bus/device-access.js';
import { DmaError, forPeople, isDmaError } from '../../errors.js';
import { macText } from '../../net/mac-address.js';
import type { Link } from '../../net/port.js';
import type { Registers } from '../../platform/registers/registers.js';
import { PCI_COMMAND, PCI_COMMAND_MASTER } from '../../platform/uapi/pci-regs.js';
import { delay } from '../../timers.js';
import { hex } from '../../units.js';
import { until } from '../wait.js';
import {
  ALL_ONES,
  BAR_BYTES,
  CAUSE,
  CTRL,
  CTRL_EXT,
  EECD_AUTO_READ,
  EEPROM_SUM,
  EEPROM_WORDS,
  EERD,
  GCR,
  GCR2_COMPLETIONS,
  MDIC,
  MDIO_OWNED_BY_SOFTWARE,
  PHY_CONTROL,
  RAH_VALID,
  REG,
  STATUS,
  TARC,
  TCTL,
  TX_QUEUE,
  TXDCTL_COUNT,
} from './registers.js';

/** How long transfers that run may take to end, in milliseconds. */
const MASTER_MS = 100;
const RESET_MS = 1000;
/** After its registers are there, the PHY is set up from the EEPROM. No bit tells when that is over; other drivers wait as long. */
const PHY_SETTLES_MS = 25;
const MDIO_MS = 20;
const EEPROM_MS = 100;
const RECEIVE_ADDRESSES = 16;
const MULTICAST_WORDS = 128;

/** By bits 7:6 of STATUS, Mbit/s. */
const SPEEDS = [10, 100, 1000, 1000];

/** The link of an adapter that has none. */
export const NO_LINK: Link = { up: false, speed: 0, fullDuplex: false };

/** An adapter. */
export class Adapter {
  readonly registers: Registers;
  readonly #access: DeviceAccess;
  /** It was kept from memory in its configuration space. */
  #isCutOff = false;

  /** @throws DmaError ENODEV if there is no adapter behind it */
  constructor(access: DeviceAccess) {
    const operation = 'e1000e.open';
    this.#access = access;
    this.registers = access.registers(PCI_REGION.BAR0);
    const { size } = this.registers;
    if (size < BAR_BYTES)
      throw new DmaError({ code: 'ENODEV', operation, reason: `BAR 0 has ${hex(size)} bytes: it is no 82574` });
    this.status();
  }

  /** STATUS. @throws DmaError ENODEV when it reads as all ones: the device is gone */
  status(): number {
    const status = this.registers.read32(REG.STATUS);
    if (status === ALL_ONES) throw gone();
    return status;
  }

  get link(): Link {
    const status = this.status();
    if ((status & STATUS.LINK_UP) === 0) return NO_LINK;
    const speed = SPEEDS[(status >>> STATUS.SPEED_SHIFT) & STATUS.SPEED_MASK] ?? 0;
    return { up: true, speed, fullDuplex: (status & STATUS.FULL_DUPLEX) !== 0 };
  }

  /**
   * Resets it: when this resolves, it reaches no memory any more, has no interrupts, and its registers are those of a new one.
   *
   * @throws DmaError ETIMEDOUT if it does not come back; it is then kept from memory all the same. ENODEV
   */
  async reset(): Promise<void> {
    const { registers } = this;
    this.status();
    registers.write32(REG.IMC, ALL_ONES);
    // First, as a receiver of an 82574 that is switched off in the middle of a frame may not come back.
    await this.#endTransfers();
    registers.write32(REG.RCTL, 0);
    registers.write32(REG.TCTL, TCTL.PAD);
    registers.flush(REG.STATUS);
    try {
      await this.#whileOwningMdio(async () => {
        registers.write32(REG.CTRL, registers.read32(REG.CTRL) | CTRL.RESET);
        // Registers must not be read for a microsecond.
        await delay(1);
        await this.#wait(REG.CTRL, CTRL.RESET, 0, 'the reset', RESET_MS);
      });
      registers.write32(REG.CTRL_EXT, registers.read32(REG.CTRL_EXT) | CTRL_EXT.EEPROM_RESET);
      await this.#wait(REG.EECD, EECD_AUTO_READ, EECD_AUTO_READ, 'reading the EEPROM', RESET_MS);
    } catch (error) {
      this.cutOff();
      throw error;
    }
    await delay(PHY_SETTLES_MS);
    registers.write32(REG.IMC, ALL_ONES);
    registers.read32(REG.ICR);
    this.status();
  }

  /** No transfer begins any more, and those that run have ended. */
  async #endTransfers(): Promise<void> {
    const { registers } = this;
    registers.write32(REG.CTRL, registers.read32(REG.CTRL) | CTRL.MASTER_DISABLE);
    try {
      await this.#wait(REG.STATUS, STATUS.MASTER_ENABLE, 0, 'ending transfers', MASTER_MS);
    } catch (error) {
      if (isGone(error)) throw error;
      this.cutOff();
    }
  }

  /** An adapter that can not be stopped must not reach memory that is used for something else. */
  cutOff(): void {
    this.#isCutOff = true;
    forPeople(() => this.#setMaster(false));
  }

  #setMaster(on: boolean): void {
    const [low, high] = this.#access.readRegion(PCI_REGION.CONFIG, PCI_COMMAND, 2);
    const command = on ? low | PCI_COMMAND_MASTER : low & ~PCI_COMMAND_MASTER;
    this.#access.writeRegion(PCI_REGION.CONFIG, PCI_COMMAND, Uint8Array.of(command, high));
  }

  /**
   * After a reset: errata, the address filters, and the link.
   *
   * @throws DmaError ETIMEDOUT or EIO if the PHY does not answer; ENODEV
   */
  async setUp(): Promise<void> {
    const { registers } = this;
    if (this.#isCutOff) this.#setMaster(true);
    this.#isCutOff = false;
    this.#applyErrata();
    // Other station addresses, multicast and flow control: none.
    for (let i = 1; i < RECEIVE_ADDRESSES; i++) {
      registers.write32(REG.RAL + 8 * i, 0);
      registers.write32(REG.RAH + 8 * i, 0);
    }
    for (let i = 0; i < MULTICAST_WORDS; i++) registers.write32(REG.MTA + 4 * i, 0);
    for (const register of [REG.FCAL, REG.FCAH, REG.FCT]) registers.write32(register, 0);
    await this.#wakePhy();
    const forced = CTRL.AUTO_SPEED | CTRL.FORCE_SPEED | CTRL.FORCE_DUPLEX | CTRL.INVERT_LOSS_OF_SIGNAL;
    const off = forced | CTRL.RX_FLOW | CTRL.TX_FLOW | CTRL.VLAN_MODE | CTRL.RESERVED_29;
    registers.write32(REG.CTRL, (registers.read32(REG.CTRL) & ~off) | CTRL.SET_LINK_UP);
  }

  /** What the public drivers set for the 82574, and why as far as they say. */
  #applyErrata(): void {
    const { registers } = this;
    const change = (register: number, set: number, clear = 0): void =>
      registers.write32(register, (registers.read32(register) & ~clear) | set);
    for (const queue of [0, 1]) change(TX_QUEUE.DCTL + queue * TX_QUEUE.STEP, TXDCTL_COUNT);
    change(TX_QUEUE.ARBITRATION, TARC.RESERVED_26, TARC.RESERVED_27_TO_30);
    change(REG.CTRL, 0, CTRL.RESERVED_29);
    change(REG.CTRL_EXT, CTRL_EXT.RESERVED_22 | CTRL_EXT.DRIVER_LOADED, CTRL_EXT.RESERVED_23);
    // Completions of PCIe that come in a wrong way, above all with ASPM, stop the transmitter otherwise.
    change(REG.GCR, GCR.RESERVED_22 | GCR.L1_WITHOUT_L0S);
    change(REG.GCR2, GCR2_COMPLETIONS);
  }

  /** It interrupts no more, and the management engine has it back. */
  release(): void {
    const { registers } = this;
    registers.write32(REG.IMC, ALL_ONES);
    registers.write32(REG.CTRL_EXT, registers.read32(REG.CTRL_EXT) & ~CTRL_EXT.DRIVER_LOADED);
  }

  /** Causes of interrupts, which reading clears. */
  causes(): number {
    const causes = this.registers.read32(REG.ICR);
    // All ones: it is gone. The link is looked at then, and shows it.
    return causes === ALL_ONES ? CAUSE.LINK : causes;
  }

  /**
   * Its station address: from its registers, where a reset puts it, else from its EEPROM.
   *
   * @throws DmaError EIO if neither has one; ETIMEDOUT; ENODEV
   */
  async readMac(): Promise<string> {
    const { registers } = this;
    const [low, high] = [registers.read32(REG.RAL), registers.read32(REG.RAH)];
    const address = Uint8Array.of(low, low >>> 8, low >>> 16, low >>> 24, high, high >>> 8);
    if ((high & RAH_VALID) === 0 || !isStation(address)) await this.#readEeprom(address);
    this.status();
    return macText(address);
  }

  async #readEeprom(into: Uint8Array): Promise<void> {
    let sum = 0;
    for (let word = 0; word < EEPROM_WORDS; word++) {
      const value = await this.#eepromWord(word);
      sum += value;
      if (word >= 3) continue;
      into[2 * word] = value;
      into[2 * word + 1] = value >>> 8;
    }
    const isRight = (sum & 0xffff) === EEPROM_SUM;
    if (!isRight || !isStation(into))
      throw new DmaError({
        code: 'EIO',
        operation: 'e1000e.open',
        reason: isRight
          ? `its EEPROM has ${macText(into)}, which is no station address`
          : `its EEPROM is damaged: its words add up to ${hex(sum & 0xffff)} instead of ${hex(EEPROM_SUM)}`,
        hint: "the adapter's vendor has tools that write the EEPROM",
      });
    const { registers } = this;
    registers.write32(REG.RAL, into[0] | (into[1] << 8) | (into[2] << 16) | (into[3] << 24));
    registers.write32(REG.RAH, into[4] | (into[5] << 8) | RAH_VALID);
  }

  async #eepromWord(word: number): Promise<number> {
    this.registers.write32(REG.EERD, (word << EERD.ADDRESS_SHIFT) | EERD.START);
    await this.#wait(REG.EERD, EERD.DONE, EERD.DONE, 'a word of the EEPROM', EEPROM_MS);
    return this.registers.read32(REG.EERD) >>> EERD.DATA_SHIFT;
  }

  /** A driver before this one may have switched the PHY off. One that is on keeps its link. */
  async #wakePhy(): Promise<void> {
    await this.#whileOwningMdio(async () => {
      const control = await this.#phy(MDIC.READ, PHY_CONTROL.REGISTER);
      if ((control & PHY_CONTROL.POWER_DOWN) === 0) return;
      const wanted = (control & ~PHY_CONTROL.POWER_DOWN) | PHY_CONTROL.AUTONEGOTIATE | PHY_CONTROL.RESTART;
      await this.#phy(MDIC.WRITE, PHY_CONTROL.REGISTER, wanted);
    });
  }

  async #phy(operation: number, register: number, value = 0): Promise<number> {
    this.registers.write32(REG.MDIC, value | (register << MDIC.REGISTER_SHIFT) | MDIC.PHY | operation);
    await this.#wait(REG.MDIC, MDIC.READY, MDIC.READY, 'the PHY', MDIO_MS);
    const answer = this.registers.read32(REG.MDIC);
    if ((answer & MDIC.ERROR) === 0) return answer & 0xffff;
    throw new DmaError({ code: 'EIO', operation: 'e1000e', reason: `the PHY refused register ${register}` });
  }

  /** The management engine uses the MDIO too. If it does not let go, other drivers go on as well. */
  async #whileOwningMdio(work: () => Promise<void>): Promise<void> {
    const { registers } = this;
    const owns = (): boolean => {
      registers.write32(REG.EXTCNF_CTRL, registers.read32(REG.EXTCNF_CTRL) | MDIO_OWNED_BY_SOFTWARE);
      return (registers.read32(REG.EXTCNF_CTRL) & MDIO_OWNED_BY_SOFTWARE) !== 0;
    };
    await until(owns, { operation: 'e1000e', what: 'the MDIO', timeoutMs: MDIO_MS }).catch((error: unknown) => {
      if (!isDmaError(error) || error.code !== 'ETIMEDOUT') throw error;
    });
    await work();
    registers.write32(REG.EXTCNF_CTRL, registers.read32(REG.EXTCNF_CTRL) & ~MDIO_OWNED_BY_SOFTWARE);
  }

  async #wait(register: number, mask: number, wanted: number, what: string, timeoutMs: number): Promise<void> {
    const isOver = (): boolean => {
      const value = this.registers.read32(register);
      if (value === ALL_ONES) this.status();
      return (value & mask) === wanted;
    };
    await until(isOver, { operation: 'e1000e', what, timeoutMs });
  }
}

/** Is it an address that a station can have? Neither all zeros nor one of a group. */
function isStation(address: Uint8Array): boolean {
  return (address[0] & 1) === 0 && address.some((byte) => byte !== 0);
}

function gone(): DmaError {
  return new DmaError({
    code: 'ENODEV',
    operation: 'e1000e',
    reason: 'the registers of the adapter read as all ones: it was removed, or has lost its power',
    hint: 'eal.probe(name) opens it when it is back',
  });
}
