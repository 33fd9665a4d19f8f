/**
 * An emulated device, independent of its host: the vfio-user server in another process, or the vdev bus in this one. A
 * model knows registers and descriptors; its host knows sockets, memory and interrupts.
 */

import { mustHave } from '../../check.js';
import { DmaError, isDmaError } from '../../errors.js';
import { thrown } from '../../show.js';

/** PCI identity, as at the beginning of configuration space (PCI Local Bus Specification 3.0, 6.1). */
export interface PciIdentity {
  readonly vendor: number;
  readonly device: number;
  readonly subsystemVendor: number;
  readonly subsystem: number;
  readonly revision: number;
  /** base class, sub-class and programming interface: 24 bits */
  readonly classCode: number;
}

/** The region of one base address register. */
export interface ModelRegion {
  /** the BAR, 0 to 5 */
  readonly index: number;
  /** bytes, a power of two, at least 16 */
  readonly size: number;
  /**
   * Parts that are plain memory, which a client may map: offset and length in bytes, multiples of the page size. The
   * host allocates the memory, and gives it to the model through {@link ModelHost.regionMemory}; accesses to it do not
   * call `read` and `write`.
   */
  readonly memory?: readonly { readonly offset: number; readonly length: number }[];
}

/** Interrupt vectors by kind. 0: the device has none of that kind. */
export interface InterruptCounts {
  readonly intx: number;
  readonly msi: number;
  readonly msix: number;
}

/**
 * How a device accesses memory. Every call checks that the whole range is mapped and granted before it moves a byte.
 * Otherwise it throws a `DmaError`: EFAULT (some of it is not mapped; `range` is the requested part) or EACCES (mapped
 * without that permission).
 */
export interface DeviceDma {
  /**
   * The bytes at [iova, iova + length) themselves, if the host has them mapped in one piece; `undefined` if they can
   * only be copied. Valid until the model returns control to the host (returns or awaits). Once the client has unmapped
   * them the view is empty; work that still uses it neither faults nor reaches memory of another owner.
   */
  direct(iova: number, length: number, access: 'read' | 'write'): Uint8Array | undefined;
  /**
   * The address in this process of the memory at [iova, iova + length), for calls of the system, if the host has it mapped in one piece;
   * -1 if not. Valid as long as {@link DeviceDma.direct}; the memory may be of another process, and change at any time.
   */
  address?(iova: number, length: number, access: 'read' | 'write'): number;
  /** Reads memory at `iova` into `into`. `undefined` if the bytes are there already, else resolves when they are. */
  read(iova: number, into: Uint8Array): Promise<void> | undefined;
  /** Writes `from` to memory at `iova`. `undefined` if the other side has them already, else resolves when it has. */
  write(iova: number, from: Uint8Array): Promise<void> | undefined;
}

/** What the host offers to a model. */
export interface ModelHost {
  readonly dma: DeviceDma;
  /** Signals interrupt vector `vector` of the kind that the client has enabled; does nothing if there is none. */
  interrupt(vector: number): void;
  /** The bytes of the region's memory part at `offset` (see {@link ModelRegion.memory}). */
  regionMemory(region: number, offset: number): Uint8Array;
}

/** An exception of a model, as the error of the client's call: EIO, with the exception as the cause. */
export function modelFault(error: unknown, operation: string): DmaError {
  if (isDmaError(error)) return error;
  const reason = `the device's model threw: ${thrown(error)}`;
  return new DmaError({ code: 'EIO', operation, reason, cause: error });
}

/**
 * An emulated PCI device. Its methods never throw because of a client: hardware ignores nonsense, or reads all ones.
 */
export interface DeviceModel {
  /** `edu`, `copy` */
  readonly name: string;
  readonly identity: PciIdentity;
  readonly regions: readonly ModelRegion[];
  readonly interrupts: InterruptCounts;
  /** PCI capabilities besides those of interrupts: their bytes, read-only. The first is the id; the second, the link, is set by the host. */
  readonly capabilities?: readonly Uint8Array[];
  /** The client loads `into.length` bytes at `offset` of region `region`; the host has checked that they are inside. */
  read(region: number, offset: number, into: Uint8Array): void;
  /** The client stores `from` at `offset` of region `region`; the host has checked that it is inside. */
  write(region: number, offset: number, from: Uint8Array): void;
  /** Resets to the state after power-on; running transfers are abandoned and write nothing more. */
  reset(): void;
  /**
   * Resolves when no transfer is running, so that memory can be unmapped; none begins until the host calls `resume`.
   * `undefined` if none is running.
   */
  quiesce(): Promise<void> | undefined;
  /** Transfers may begin again. */
  resume(): void;
  /** The host ends, and calls nothing else any more: gives back what the model holds, such as open files. */
  close?(): void;
}

/** Makes a model for a host. */
export type ModelFactory = (host: ModelHost) => DeviceModel;

/**
 * Calls `factory`.
 *
 * @throws DmaError EIO, with the factory's exception as the cause; EINVAL if it does not return a model
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
