/**
 * Keeps a PCI function responding to loads and stores while its regions are mapped.
 *
 * The kernel answers an access to a mapped region with SIGBUS, which kills the process, if the function does not decode
 * memory: PCI_COMMAND.MEMORY is clear in VFIO's virtual configuration space (since Linux 5.8), or the function is in D3
 * (since Linux 5.19; `__vfio_pci_memory_enabled` in drivers/vfio/pci). In D1 and D2 it does not respond either. All
 * these states are entered by stores to configuration space, which are checked here.
 *
 * The following do not raise SIGBUS: a reset by VFIO or by a store to configuration space, of this function or its
 * whole bus, because the kernel removes the pages and an access waits until the reset is done; a reset by sysfs, error
 * recovery and surprise removal, during or after which loads return all ones (on PC hardware; other machines may stop);
 * removal of the device, which waits until this process has unmapped its regions. Two cases are beyond this process's
 * control: the device does not resume after the machine slept, or another process that was given the descriptor does
 * what is forbidden here.
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

/** The configuration space that VFIO presents. */
export interface ConfigAccess {
  read(offset: number, into: Uint8Array): void;
  write(offset: number, from: Uint8Array): void;
}

/** Checks stores to the configuration space of one function. */
export class MemoryDecoding {
  readonly #config: ConfigAccess;
  readonly #bytes = new Uint8Array(new ArrayBuffer(2));
  /** Offsets of the power state in the power management capabilities; found at first use. */
  #powerStates: readonly number[] | undefined;

  constructor(config: ConfigAccess) {
    this.#config = config;
  }

  /**
   * Makes sure that the function decodes memory. Call it before mapping a region.
   *
   * @throws DmaError ENODEV if the function does not respond; EIO if it is in a low power state
   */
  switchOn(): void {
    const command = this.#read16(PCI_COMMAND);
    if (command === 0xffff)
      throw new DmaError({ code: 'ENODEV', operation: 'registers', reason: 'the device no longer responds' });
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
    // Stored even if set already: then the kernel also restores the function's addresses, if it lost them in a reset
    // that the kernel did not see.
    this.#bytes[0] = (command & 0xff) | PCI_COMMAND_MEMORY;
    this.#bytes[1] = command >>> 8;
    this.#config.write(PCI_COMMAND, this.#bytes);
  }

  /**
   * Call it before a store to configuration space while a region is mapped.
   *
   * @throws DmaError EBUSY if the function would not decode memory afterwards
   */
  check(offset: number, bytes: Uint8Array): void {
    // Only the byte with this bit matters, and the kernel accepts single bytes.
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
    // Each capability has at least 4 bytes, so a longer list is a cycle.
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

/** The byte at `index`; `undefined` outside. */
function at(bytes: Uint8Array, index: number): number | undefined {
  return index < 0 ? undefined : bytes.at(index);
}

function forbidden(what: string): DmaError {
  return new DmaError({
    code: 'EBUSY',
    operation: 'vfio config write',
    reason: `this would ${what} while regions are mapped, and the next access to one would kill this process`,
    hint: 'registers() maps a region until the device is closed: do this before, or close and reopen the device',
  });
}
