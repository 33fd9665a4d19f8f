/**
 * The configuration space of an emulated PCI device: 256 bytes, each bit read-only or writable (PCI Local Bus
 * Specification 3.0, chapter 6). Writes have no other effect: a vfio-user client accesses regions by index and
 * interrupts by SET_IRQS, so addresses and enable bits are only stored to be read back.
 */
import { alignUp, isPowerOfTwo } from '../units.js';
import { invalid } from '../errors.js';
import type { DeviceModel } from './devices/model.js';
import { get16, put16, put32 } from './messages.js';

/** bytes */
export const CONFIG_SPACE_SIZE = 256;

const COMMAND = 0x04;
const STATUS = 0x06;
const BAR0 = 0x10;
const CAPABILITIES = 0x34;
const INTERRUPT_PIN = 0x3d;
const FIRST_CAPABILITY = 0x40;

/** I/O, memory, bus master, parity, SERR and interrupt disable. */
const COMMAND_WRITABLE = 0x0547;
const STATUS_CAPABILITY_LIST = 0x10;

const CAP_MSI = 0x05;
const CAP_MSIX = 0x11;

/** The region with the MSI-X table and the pending bits: plain memory that nothing reads. */
export interface MsixRegion {
  readonly index: number;
  /** bytes, a power of two */
  readonly size: number;
  /** offset of the pending bits, in bytes */
  readonly pending: number;
}

/** Places the MSI-X table of a model in the last base address register that the model does not use. */
export function placeMsix(model: DeviceModel): MsixRegion | undefined {
  const vectors = model.interrupts.msix;
  if (vectors === 0) return undefined;
  if (vectors > 2048) throw invalid('vfio-user device', `${vectors} MSI-X vectors; 2048 are possible`);
  const index = [5, 4, 3, 2, 1, 0].find((free) => !model.regions.some((region) => region.index === free));
  if (index === undefined) throw invalid('vfio-user device', 'no base address register is left for the MSI-X table');
  const pending = vectors * 16;
  const least = alignUp(pending + Math.ceil(vectors / 64) * 8, 4096);
  return { index, size: 2 ** Math.ceil(Math.log2(least)), pending };
}

/** The 256 bytes and their writable bits. */
export class ConfigSpace {
  readonly #initial = new Uint8Array(CONFIG_SPACE_SIZE);
  readonly #writable = new Uint8Array(CONFIG_SPACE_SIZE);
  readonly #bytes = new Uint8Array(CONFIG_SPACE_SIZE);

  /** @throws DmaError EINVAL if a region can not be a 32-bit memory base address register */
  constructor(model: DeviceModel, msix: MsixRegion | undefined) {
    const { identity, interrupts } = model;
    const bytes = this.#initial;
    put16(bytes, 0x00, identity.vendor);
    put16(bytes, 0x02, identity.device);
    put16(this.#writable, COMMAND, COMMAND_WRITABLE);
    put32(bytes, 0x08, (identity.classCode << 8) | identity.revision);
    this.#writable[0x0c] = 0xff;
    put16(bytes, 0x2c, identity.subsystemVendor);
    put16(bytes, 0x2e, identity.subsystem);
    this.#writable[0x3c] = 0xff;
    bytes[INTERRUPT_PIN] = interrupts.intx > 0 ? 1 : 0;

    for (const { index, size } of msix === undefined ? model.regions : [...model.regions, msix]) {
      if (!Number.isInteger(index) || index < 0 || index > 5 || !isPowerOfTwo(size) || size < 16 || size > 2 ** 31)
        throw invalid('vfio-user device', `region ${index} of ${size} bytes is no 32-bit base address register`);
      // 32-bit, not prefetchable, in memory: the low four bits are 0. The bits above the size are writable.
      put32(this.#writable, BAR0 + index * 4, 2 ** 32 - size);
    }

    let at = FIRST_CAPABILITY;
    let link = CAPABILITIES;
    const capability = (id: number, length: number): number => {
      const here = at;
      if (length < 2 || here + length > CONFIG_SPACE_SIZE)
        throw invalid('vfio-user device', `no room in configuration space for a capability of ${length} bytes`);
      bytes[link] = here;
      bytes[here] = id;
      put16(bytes, STATUS, get16(bytes, STATUS) | STATUS_CAPABILITY_LIST);
      link = here + 1;
      at = alignUp(here + length, 4);
      return here;
    };
    if (interrupts.msi > 0) {
      const here = capability(CAP_MSI, 14);
      // Message control: 64-bit addresses, vectors rounded up to a power of two; enable and count are writable.
      put16(bytes, here + 2, 0x80 | (Math.min(5, Math.ceil(Math.log2(interrupts.msi))) << 1));
      put16(this.#writable, here + 2, 0x71);
      put32(this.#writable, here + 4, 0xfffffffc);
      put32(this.#writable, here + 8, 0xffffffff);
      put16(this.#writable, here + 12, 0xffff);
    }
    if (msix !== undefined) {
      const here = capability(CAP_MSIX, 12);
      put16(bytes, here + 2, interrupts.msix - 1);
      put16(this.#writable, here + 2, 0xc000);
      put32(bytes, here + 4, msix.index);
      put32(bytes, here + 8, msix.pending | msix.index);
    }
    for (const own of model.capabilities ?? []) {
      const here = capability(own[0], own.length);
      bytes.set(own.subarray(2), here + 2);
    }
    this.reset();
  }

  /** Resets it to the state after power-on. */
  reset(): void {
    this.#bytes.set(this.#initial);
  }

  /** Reads bytes; the caller has checked that they are inside. */
  read(offset: number, into: Uint8Array): void {
    into.set(this.#bytes.subarray(offset, offset + into.length));
  }

  /** Writes the writable bits; the caller has checked that they are inside. */
  write(offset: number, from: Uint8Array): void {
    const bytes = this.#bytes;
    const writable = this.#writable;
    for (let i = 0; i < from.length; i++) {
      const mask = writable[offset + i];
      bytes[offset + i] = (bytes[offset + i] & ~mask) | (from[i] & mask);
    }
  }
}
