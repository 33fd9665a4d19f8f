/**
 * Keeps a PCI function answering loads and stores for as long as its regions are mapped.
 *
 * An access to a mapped region raises SIGBUS, which ends the process, when the kernel finds that the function does not decode
 * memory: PCI_COMMAND.MEMORY is clear in the configuration space that VFIO shows (since Linux 5.8), or the function is in
 * D3 (since Linux 5.19; `__vfio_pci_memory_enabled` in drivers/vfio/pci). In D1 and D2 it does not answer either. All of
 * them are entered by stores to configuration space, which pass through here.
 *
 * What does not raise SIGBUS: a reset by VFIO or by a store to configuration space, of this function or of its whole bus,
 * because the kernel takes the pages away and an access waits until it is over; a reset by sysfs, recovery from an error,
 * and pulling the device out, during or after which loads give all ones (as PC hardware does it; other machines may stop);
 * removing the device, which waits until this process has unmapped its regions. What is left is out of this process's
 * reach: that the machine sleeps and the device does not wake up with it, and that another process, to which the
 * descriptor was given, does what is forbidden here.
 */
import { DmaError } from '../errors.js';
import {
  PCI_CAP_ID_PM,
  PCI_CAP_LIST_ID,
  PCI_CAP_LIST_NEXT,
  PCI_CAPABILITY_LIST,
  PCI_CFG_SPACE_SIZE,
  PCI_COMMAND,
  PCI_COMMAND_MEMORY,
  PCI_PM_CTRL,
  PCI_PM_CTRL_STATE_MASK,
  PCI_STATUS,
  PCI_STATUS_CAP_LIST,
  PCI_STD_HEADER_SIZEOF,
} from '../platform/uapi/pci-regs.js';

/** Configuration space, as VFIO shows it. */
export interface ConfigAccess {
  read(offset: number, into: Uint8Array): void;
  write(offset: number, from: Uint8Array): void;
}

/** See the head of the file. */
export class MemoryDecoding {
  readonly #config: ConfigAccess;
  readonly #bytes = new Uint8Array(new ArrayBuffer(2));
  /** Where the power states of the power management capabilities are; found at first use. */
  #powerStates: readonly number[] | undefined;

  constructor(config: ConfigAccess) {
    this.#config = config;
  }

  /**
   * Makes sure that the function decodes memory. To be called before a region is mapped.
   *
   * @throws DmaError ENODEV when the function does not answer; EIO when it is in a low power state
   */
  switchOn(): void {
    const command = this.#read16(PCI_COMMAND);
    if (command === 0xffff)
      throw new DmaError({ code: 'ENODEV', operation: 'registers', reason: 'the device does not answer any more' });
    this.#powerStates ??= this.#findPowerStates();
    for (const at of this.#powerStates) {
      const state = this.#read8(at) & PCI_PM_CTRL_STATE_MASK;
      if (state === 0) continue;
      const hint = `write 0 to the low two bits of the byte at 0x${at.toString(16)} of its configuration space`;
      throw new DmaError({
        code: 'EIO',
        operation: 'registers',
        reason: `the device is in power state D${state}`,
        hint,
      });
    }
    // Stored also when it is set already: so the kernel has it too, and gives the function its addresses back if it lost
    // them by a reset that the kernel did not see.
    this.#bytes[0] = (command & 0xff) | PCI_COMMAND_MEMORY;
    this.#bytes[1] = command >>> 8;
    this.#config.write(PCI_COMMAND, this.#bytes);
  }

  /**
   * To be called before a store to configuration space while a region is mapped.
   *
   * @throws DmaError EBUSY when the function would not decode memory after it
   */
  check(offset: number, bytes: Uint8Array): void {
    // The register's other byte has nothing to do with it, and the kernel takes bytes that come alone for what they are.
    const command = at(bytes, PCI_COMMAND - offset);
    if (command !== undefined && (command & PCI_COMMAND_MEMORY) === 0) throw forbidden('switch memory decoding off');
    for (const control of this.#powerStates ?? []) {
      const state = (at(bytes, control - offset) ?? 0) & PCI_PM_CTRL_STATE_MASK;
      if (state !== 0) throw forbidden(`put the device into power state D${state}`);
    }
  }

  #findPowerStates(): readonly number[] {
    const found: number[] = [];
    if ((this.#read16(PCI_STATUS) & PCI_STATUS_CAP_LIST) === 0) return found;
    let next = this.#read8(PCI_CAPABILITY_LIST);
    // Each capability has 4 bytes at least, so that a longer list goes in circles.
    for (let left = (PCI_CFG_SPACE_SIZE - PCI_STD_HEADER_SIZEOF) / 4; left > 0; left--) {
      const capability = next & ~3;
      if (capability < PCI_STD_HEADER_SIZEOF) break;
      if (this.#read8(capability + PCI_CAP_LIST_ID) === PCI_CAP_ID_PM) found.push(capability + PCI_PM_CTRL);
      next = this.#read8(capability + PCI_CAP_LIST_NEXT);
    }
    return found;
  }

  #read8(offset: number): number {
    this.#config.read(offset, this.#bytes.subarray(0, 1));
    return this.#bytes[0];
  }

  #read16(offset: number): number {
    this.#config.read(offset, this.#bytes);
    return this.#bytes[0] + this.#bytes[1] * 256;
  }
}

/** The byte at `index`, which may be outside. */
function at(bytes: Uint8Array, index: number): number | undefined {
  return index < 0 ? undefined : bytes.at(index);
}

function forbidden(what: string): DmaError {
  return new DmaError({
    code: 'EBUSY',
    operation: 'vfio config write',
    reason: `this would ${what} while regions are mapped, and the next access to one would kill this process`,
    hint: 'regions are mapped from the first registers() of one until the device is closed: do it before, or after opening it anew',
  });
}
