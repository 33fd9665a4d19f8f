/** The registers of a virtio device on PCI (4.1): where they are, what it can do, how it is reset, and how its queues are set up. */
import { PCI_REGION, type DeviceAccess } from '../../bus/device-access.js';
import { DmaError, forPeople } from '../../errors.js';
import type { Registers } from '../../platform/registers/registers.js';
import {
  PCI_CAP_ID_VNDR,
  PCI_CAP_LIST_ID,
  PCI_CAP_LIST_NEXT,
  PCI_CAPABILITY_LIST,
  PCI_CFG_SPACE_SIZE,
  PCI_COMMAND,
  PCI_COMMAND_MASTER,
  PCI_STATUS,
  PCI_STATUS_CAP_LIST,
  PCI_STD_HEADER_SIZEOF,
} from '../../platform/uapi/pci-regs.js';
import { hex } from '../../units.js';
import { until } from '../wait.js';
import { CAPABILITY, COMMON, GONE, NO_VECTOR, STATUS, STRUCTURE } from './layout.js';
import type { RingParts } from './ring.js';

const OPEN = 'virtio.open';
const RESET_MS = 1000;
const LAST_BAR = PCI_REGION.BAR5;
/** How often a configuration that changes while it is read is read again. */
const ATTEMPTS = 100;

/** A structure of the device in one of its regions. */
interface Structure {
  readonly registers: Registers;
  /** Where it begins, and its size. */
  readonly at: number;
  readonly size: number;
  /** Of the notifications: bytes from one queue's register to the next. */
  readonly multiplier: number;
}

/** Which structures there have to be: their least size, and of what their offset is a multiple (4.1.4.1 and following). */
const STRUCTURES = {
  common: { kind: STRUCTURE.COMMON, size: COMMON.BYTES, align: 4 },
  notify: { kind: STRUCTURE.NOTIFY, size: 2, align: 2 },
  isr: { kind: STRUCTURE.ISR, size: 1, align: 1 },
  device: { kind: STRUCTURE.DEVICE, size: 1, align: 4 },
} as const;

/** The transport. */
export class VirtioTransport {
  /** Numbers of the features that it offers. */
  readonly offered: ReadonlySet<number>;
  /** The configuration of its kind of device. */
  readonly config: DeviceConfig;
  readonly #access: DeviceAccess;
  readonly #common: Structure;
  readonly #notify: Structure;
  readonly #isr: Structure;
  /** It was kept from memory in its configuration space. */
  #isCutOff = false;

  /** @throws DmaError ENOTSUP if it has the old interface only; ENODEV if it is gone, or what it says of itself can not be */
  constructor(access: DeviceAccess) {
    this.#access = access;
    const found = structuresOf(access);
    this.#common = found.common;
    this.#notify = found.notify;
    this.#isr = found.isr;
    this.config = new DeviceConfig(found.device, () => this.#read8(COMMON.GENERATION));
    this.status();
    this.offered = this.#readFeatures();
  }

  #read8(offset: number): number {
    return this.#common.registers.read8(this.#common.at + offset);
  }

  #read16(offset: number): number {
    return this.#common.registers.read16(this.#common.at + offset);
  }

  #write8(offset: number, value: number): void {
    this.#common.registers.write8(this.#common.at + offset, value);
  }

  #write16(offset: number, value: number): void {
    this.#common.registers.write16(this.#common.at + offset, value);
  }

  #write32(offset: number, value: number): void {
    this.#common.registers.write32(this.#common.at + offset, value);
  }

  #readFeatures(): Set<number> {
    const features = new Set<number>();
    for (const word of [0, 1]) {
      this.#write32(COMMON.DEVICE_FEATURE_SELECT, word);
      const bits = this.#common.registers.read32(this.#common.at + COMMON.DEVICE_FEATURE);
      for (let bit = 0; bit < 32; bit++) if (((bits >>> bit) & 1) === 1) features.add(word * 32 + bit);
    }
    return features;
  }

  /** The device status. @throws DmaError ENODEV if it is gone */
  status(): number {
    const status = this.#read8(COMMON.STATUS);
    if (status === GONE)
      throw new DmaError({
        code: 'ENODEV',
        operation: 'virtio',
        reason: 'the registers of the device read as all ones: it is gone',
      });
    return status;
  }

  #addStatus(bits: number): void {
    this.#write8(COMMON.STATUS, this.status() | bits);
  }

  /**
   * Resets it: when this resolves, it reaches no memory any more, and has no interrupts (2.4 and 4.1.4.3.2).
   *
   * @throws DmaError ETIMEDOUT if it does not come back; it is then kept from memory all the same. ENODEV
   */
  async reset(): Promise<void> {
    this.status();
    this.#write8(COMMON.STATUS, 0);
    try {
      await until(() => this.status() === 0, {
        operation: 'virtio.reset',
        what: 'the reset of the device',
        timeoutMs: RESET_MS,
      });
    } catch (error) {
      this.#cutOff();
      throw error;
    }
    if (this.#isCutOff) setBusMaster(this.#access, true);
    this.#isCutOff = false;
  }

  /** A device that can not be stopped must not reach memory that is used for something else. */
  #cutOff(): void {
    this.#isCutOff = true;
    forPeople(() => setBusMaster(this.#access, false));
  }

  /** After a reset: its configuration may be read (3.1.1, steps 2 to 4). */
  acknowledge(): void {
    this.#addStatus(STATUS.ACKNOWLEDGE);
    this.#addStatus(STATUS.DRIVER);
  }

  /**
   * Takes those of `wanted` that it offers (3.1.1, steps 4 to 6).
   *
   * @returns them
   * @throws DmaError ENOTSUP if it does not work with these
   */
  negotiate(wanted: Iterable<number>): ReadonlySet<number> {
    const taken = new Set([...wanted].filter((feature) => this.offered.has(feature)));
    for (const word of [0, 1]) {
      let bits = 0;
      for (const feature of taken) if (feature >>> 5 === word) bits |= 1 << (feature & 31);
      this.#write32(COMMON.DRIVER_FEATURE_SELECT, word);
      this.#write32(COMMON.DRIVER_FEATURE, bits >>> 0);
    }
    this.#addStatus(STATUS.FEATURES_OK);
    if ((this.status() & STATUS.FEATURES_OK) === 0)
      throw new DmaError({
        code: 'ENOTSUP',
        operation: 'port.start',
        reason: `the device does not work with the features ${[...taken].join(', ')}`,
        hint: `it offers ${[...this.offered].join(', ')} (virtio 1.2, 5.1.3 and 6)`,
      });
    return taken;
  }

  /** The driver is set up: the device works from now on (3.1.1, step 8). */
  go(): void {
    this.#addStatus(STATUS.DRIVER_OK);
  }

  /** Number of queues. */
  get queues(): number {
    return this.#read16(COMMON.QUEUES);
  }

  /** Descriptors of a queue at most; 0 if there is none. Known after a reset. */
  queueSize(queue: number): number {
    this.#write16(COMMON.QUEUE_SELECT, queue);
    return this.#read16(COMMON.QUEUE_SIZE);
  }

  /**
   * Tells it where a queue is, and lets it use it (4.1.5.1.3).
   *
   * @returns what tells it that there is something in the queue
   * @throws DmaError EIO if it does not take the interrupt vector, or its notifications are not where it says
   */
  setUpQueue(queue: number, { size, parts, vector }: QueueSetUp): Notifier {
    this.#write16(COMMON.QUEUE_SELECT, queue);
    this.#write16(COMMON.QUEUE_SIZE, size);
    this.#setVector(COMMON.QUEUE_VECTOR, vector);
    for (const [offset, iova] of [
      [COMMON.QUEUE_DESCRIPTORS, parts.descriptors],
      [COMMON.QUEUE_DRIVER, parts.driver],
      [COMMON.QUEUE_DEVICE, parts.device],
    ] as const) {
      // 64 bits are written as two words (4.1.3.1).
      this.#write32(offset, iova % 2 ** 32);
      this.#write32(offset + 4, Math.floor(iova / 2 ** 32));
    }
    const offset = this.#read16(COMMON.QUEUE_NOTIFY_OFFSET) * this.#notify.multiplier;
    if (offset + 2 > this.#notify.size || (this.#notify.at + offset) % 2 !== 0)
      throw new DmaError({
        code: 'EIO',
        operation: 'port.start',
        reason: `the notifications of queue ${queue} are at ${hex(offset)} of ${hex(this.#notify.size)} bytes`,
      });
    this.#write16(COMMON.QUEUE_ENABLE, 1);
    const { registers, at } = this.#notify;
    return { tell: () => registers.write16(at + offset, queue) };
  }

  /** The interrupt for changes of its configuration. @throws DmaError EIO if it does not take it */
  setConfigVector(vector: number): void {
    this.#setVector(COMMON.CONFIG_VECTOR, vector);
  }

  #setVector(register: number, vector: number): void {
    this.#write16(register, vector);
    if (this.#read16(register) !== vector)
      throw new DmaError({
        code: 'EIO',
        operation: 'port.start',
        reason: `the device does not take interrupt vector ${vector === NO_VECTOR ? 'none' : vector}`,
      });
  }

  /** Why it interrupts by its wire; this ends the interrupt. */
  takeInterrupts(): number {
    return this.#isr.registers.read8(this.#isr.at);
  }
}

/** How a queue is set up. */
export interface QueueSetUp {
  readonly size: number;
  readonly parts: RingParts;
  readonly vector: number;
}

/** Tells the device that something is in a queue. */
export interface Notifier {
  tell(): void;
}

/** The configuration of a kind of device (2.5). */
export class DeviceConfig {
  readonly size: number;
  readonly #structure: Structure;
  readonly #generation: () => number;

  constructor(structure: Structure, generation: () => number) {
    this.size = structure.size;
    this.#structure = structure;
    this.#generation = generation;
  }

  read8(offset: number): number {
    return this.#structure.registers.read8(this.#structure.at + offset);
  }

  read16(offset: number): number {
    return this.#structure.registers.read16(this.#structure.at + offset);
  }

  read32(offset: number): number {
    return this.#structure.registers.read32(this.#structure.at + offset);
  }

  /** Several bytes that belong together (2.5.1). @throws DmaError EIO if they change again and again */
  bytes(offset: number, length: number): Uint8Array<ArrayBuffer> {
    for (let attempt = 0; attempt < ATTEMPTS; attempt++) {
      const before = this.#generation();
      const bytes = Uint8Array.from({ length }, (_, i) => this.read8(offset + i));
      if (this.#generation() === before) return bytes;
    }
    throw new DmaError({
      code: 'EIO',
      operation: OPEN,
      reason: 'the configuration of the device never stays the same',
    });
  }
}

/** The first usable capability of each kind. @throws DmaError ENOTSUP, ENODEV */
function structuresOf(access: DeviceAccess): Record<keyof typeof STRUCTURES, Structure> {
  const config = access.readRegion(PCI_REGION.CONFIG, 0, PCI_CFG_SPACE_SIZE);
  const capabilities = vendorCapabilities(config);
  if (capabilities.length === 0)
    throw new DmaError({
      code: 'ENOTSUP',
      operation: OPEN,
      reason: 'the device has the interface of before virtio 1.0 only',
      hint: "QEMU's devices have the modern one with disable-modern=off; driver=raw in the name of the device opens it without a driver",
    });
  const find = (name: keyof typeof STRUCTURES): Structure => {
    const reasons: string[] = [];
    for (const at of capabilities) {
      if (config[at + CAPABILITY.KIND] !== STRUCTURES[name].kind) continue;
      const found = structureAt(access, config, at, STRUCTURES[name]);
      if (typeof found !== 'string') return found;
      reasons.push(found);
    }
    throw new DmaError({
      code: 'ENODEV',
      operation: OPEN,
      reason: `the device has no usable ${name} structure${reasons.map((reason) => `: ${reason}`).join('')}`,
      hint: 'its PCI capabilities do not say what virtio 1.2, 4.1.4, asks for',
    });
  };
  return { common: find('common'), notify: find('notify'), isr: find('isr'), device: find('device') };
}

/** Where vendor capabilities begin that are whole. */
function vendorCapabilities(config: Uint8Array): number[] {
  const found: number[] = [];
  if ((config[PCI_STATUS] & PCI_STATUS_CAP_LIST) === 0) return found;
  let next = config[PCI_CAPABILITY_LIST];
  // Each has at least 4 bytes, so a longer list is a circle.
  for (let left = (PCI_CFG_SPACE_SIZE - PCI_STD_HEADER_SIZEOF) / 4; left > 0; left--) {
    const at = next & ~3;
    if (at < PCI_STD_HEADER_SIZEOF) break;
    const length = config[at + CAPABILITY.LENGTH];
    if (config[at + PCI_CAP_LIST_ID] === PCI_CAP_ID_VNDR && length >= CAPABILITY.BYTES && at + length <= config.length)
      found.push(at);
    next = config[at + PCI_CAP_LIST_NEXT];
  }
  return found;
}

/** @returns what is wrong with it, if it can not be used */
function structureAt(
  access: DeviceAccess,
  config: Uint8Array,
  at: number,
  { kind, size: least, align }: { readonly kind: number; readonly size: number; readonly align: number },
): Structure | string {
  const words = new DataView(config.buffer, config.byteOffset, config.length);
  const bar = config[at + CAPABILITY.BAR];
  const offset = words.getUint32(at + CAPABILITY.OFFSET, true);
  const size = words.getUint32(at + CAPABILITY.SIZE, true);
  const where = `${hex(size)} bytes at ${hex(offset)} of BAR ${bar}`;
  if (bar > LAST_BAR) return `${where}, which there is not`;
  const region = access.regions.find(({ index }) => index === bar)?.size ?? 0;
  if (size < least) return `${where}, fewer than ${least}`;
  if (offset % align !== 0) return `${where}, not at a multiple of ${align}`;
  if (offset + size > region) return `${where}, which has ${hex(region)}`;
  let multiplier = 0;
  if (kind === STRUCTURE.NOTIFY) {
    if (config[at + CAPABILITY.LENGTH] < CAPABILITY.MULTIPLIER + 4) return `${where}, without a multiplier`;
    multiplier = words.getUint32(at + CAPABILITY.MULTIPLIER, true);
    // 0, or an even power of two (4.1.4.4.1).
    if (multiplier % 2 !== 0) return `${where}, with a multiplier of ${multiplier}`;
  }
  return { registers: access.registers(bar), at: offset, size, multiplier };
}

/** Lets a device reach memory, or not. */
function setBusMaster(access: DeviceAccess, on: boolean): void {
  const [low, high] = access.readRegion(PCI_REGION.CONFIG, PCI_COMMAND, 2);
  const command = on ? low | PCI_COMMAND_MASTER : low & ~PCI_COMMAND_MASTER;
  access.writeRegion(PCI_REGION.CONFIG, PCI_COMMAND, Uint8Array.of(command, high));
}
