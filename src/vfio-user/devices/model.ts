/**
 * What an emulated device is, whoever hosts it: the vfio-user server in a process of its own, or the vdev bus in this one.
 * A model knows registers and descriptors; its host knows sockets, memory and interrupts.
 */

import { mustHave } from '../../check.js';
import { DmaError, isDmaError } from '../../errors.js';
import { thrown } from '../../show.js';

/** PCI identity, as the first bytes of configuration space tell it (PCI Local Bus Specification 3.0, 6.1). */
export interface PciIdentity {
  readonly vendor: number;
  readonly device: number;
  readonly subsystemVendor: number;
  readonly subsystem: number;
  readonly revision: number;
  /** base class, sub-class and programming interface: 24 bits */
  readonly classCode: number;
}

/** One base address register's region. */
export interface ModelRegion {
  /** 0 to 5: which BAR */
  readonly index: number;
  /** bytes, a power of two, at least 16 */
  readonly size: number;
  /**
   * Parts that are plain memory, which a client may map: offset and length in bytes, multiples of the page size. The host
   * allocates that memory and hands it to the model through {@link ModelHost.regionMemory}; accesses to it do not reach
   * `read` and `write`.
   */
  readonly memory?: readonly { readonly offset: number; readonly length: number }[];
}

/** Interrupt vectors by kind. A count of 0 means that the device has none of that kind. */
export interface InterruptCounts {
  readonly intx: number;
  readonly msi: number;
  readonly msix: number;
}

/**
 * How a device reaches memory. Every call checks that the whole range is mapped and granted, before it moves a byte, and
 * throws a `DmaError` EFAULT (some of it is not mapped; `range` is the part asked for) or EACCES (mapped without that
 * permission) otherwise.
 */
export interface DeviceDma {
  /**
   * The bytes at [iova, iova + length) themselves, when the host has them mapped in one piece; `undefined` when they can
   * only be copied. Good until the model next gives control back to the host (returns or awaits): it is empty once the client
   * has unmapped them, and what still reaches them then neither faults nor meets another owner.
   */
  direct(iova: number, length: number, access: 'read' | 'write'): Uint8Array | undefined;
  /** Fills `into` from memory at `iova`. Resolves when the bytes are there; `undefined` when they are there already. */
  read(iova: number, into: Uint8Array): Promise<void> | undefined;
  /** Stores `from` to memory at `iova`. Resolves when the other side has them; `undefined` when it has them already. */
  write(iova: number, from: Uint8Array): Promise<void> | undefined;
}

/** What the host gives to a model. */
export interface ModelHost {
  readonly dma: DeviceDma;
  /** Signals interrupt vector `vector` of whichever kind the client has enabled; nothing happens when it has none. */
  interrupt(vector: number): void;
  /** The bytes of the region's memory part that begins at `offset` (see {@link ModelRegion.memory}). */
  regionMemory(region: number, offset: number): Uint8Array;
}

/** What a model threw, as the client's call fails: EIO, with what it threw as the cause. */
export function modelFault(error: unknown, operation: string): DmaError {
  if (isDmaError(error)) return error;
  const reason = `the device's model threw: ${thrown(error)}`;
  return new DmaError({ code: 'EIO', operation, reason, cause: error });
}

/** An emulated PCI device. Its methods never throw for what a client does: hardware ignores nonsense, or reads all ones. */
export interface DeviceModel {
  /** `edu`, `copy` */
  readonly name: string;
  readonly identity: PciIdentity;
  readonly regions: readonly ModelRegion[];
  readonly interrupts: InterruptCounts;
  /** The client loads `into.length` bytes at `offset` of region `region`; inside the region, which the host has checked. */
  read(region: number, offset: number, into: Uint8Array): void;
  /** The client stores `from` at `offset` of region `region`; inside the region, which the host has checked. */
  write(region: number, offset: number, from: Uint8Array): void;
  /** Back to the state after power-on; running transfers are abandoned and write nothing more. */
  reset(): void;
  /**
   * Resolves when no transfer is running, so that memory can be unmapped under it; no new one begins until the host calls
   * `resume`. `undefined` when nothing is running.
   */
  quiesce(): Promise<void> | undefined;
  /** Transfers may begin again. */
  resume(): void;
}

/** Makes a model for a host. */
export type ModelFactory = (host: ModelHost) => DeviceModel;

/**
 * What `factory` makes.
 *
 * @throws DmaError EIO with what the factory threw as the cause; EINVAL for what is no model
 */
export function makeModel(factory: ModelFactory, host: ModelHost): DeviceModel {
  const operation = 'device model';
  let model: DeviceModel;
  try {
    model = factory(host);
  } catch (error) {
    if (isDmaError(error)) throw error;
    throw new DmaError({ code: 'EIO', operation, reason: `what makes it threw: ${thrown(error)}`, cause: error });
  }
  const members = ['identity', 'regions', 'interrupts', 'read', 'write', 'reset', 'quiesce', 'resume'];
  mustHave(model, members, operation, operation, 'return a DeviceModel from the function that makes devices');
  return model;
}
