/**
 * The interface through which a driver uses a device: the same for vfio-user, VFIO and devices emulated in this
 * process.
 */
import { mustBeFunction, reading } from '../check.js';
import { invalid, isDmaError, type DmaError, type ErrorCode } from '../errors.js';
import { show } from '../show.js';
import { hex } from '../units.js';
import type { Holders } from '../memory/shared/holders.js';
import type { RegisterLoan } from './lent-registers.js';
import type { Registers } from '../platform/registers/registers.js';

/** PCI region indexes, as VFIO numbers them (include/uapi/linux/vfio.h, VFIO_PCI_BAR0_REGION_INDEX ...). */
export const PCI_REGION = { BAR0: 0, BAR1: 1, BAR2: 2, BAR3: 3, BAR4: 4, BAR5: 5, ROM: 6, CONFIG: 7 } as const;

/** One region of a device. */
export interface RegionInfo {
  readonly index: number;
  /** Size in bytes; 0 if the device does not have this region. */
  readonly size: number;
  readonly readable: boolean;
  readonly writable: boolean;
  /** Why its registers are accessed by messages although the server offers to map them; absent if they are mapped. */
  readonly notMapped?: string;
}

/** A kind of PCI interrupt. */
export type InterruptKind = 'intx' | 'msi' | 'msix';

/** Enabled interrupts. Closing is idempotent and disables them. */
export interface Interrupts {
  /** Whether they keep the process alive. They do at first. */
  setRef(keepAlive: boolean): void;
  /**
   * @internal Lends a vector to another thread of this process: its handler is not called until the loan is disposed, and once then, for
   * what came meanwhile. Absent if only the thread that opened the device can wait for it.
   */
  lend?(vector: number): InterruptLoan;
  /** Disables them; no handler is called afterwards. */
  close(): void;
}

/** A vector on loan. It stays open until this is disposed, also when the device is closed or gone before; then nothing comes. */
export interface InterruptLoan extends Disposable {
  /** An eventfd, of this loan: who uses it longer keeps a duplicate. */
  readonly fd: number;
  /** Wakes who waits, as the device does. */
  signal(): void;
}

/**
 * An open PCI device. Every call may throw the errors of the transport. After the device is gone, every call does:
 * ENODEV, or
 * for a device behind a socket also ECONNRESET and similar codes.
 */
export interface DeviceAccess {
  readonly regions: readonly RegionInfo[];
  /** The registers of a region: the same object on every call. EINVAL for a region that the device does not have. */
  registers(region: number): Registers;
  /** Reads bytes from a region, also from configuration space. */
  readRegion(region: number, offset: number, length: number): Uint8Array;
  /** Writes bytes to a region, also to configuration space. */
  writeRegion(region: number, offset: number, bytes: Uint8Array): void;
  /** How many interrupt vectors of a kind the device has. */
  interruptCount(kind: InterruptKind): number;
  /**
   * Calls `handlers[v]` from the event loop each time vector `v` is signalled. Only one kind is enabled at a time:
   * enabling another kind disables the first. EINVAL for more handlers than vectors.
   */
  enableInterrupts(kind: InterruptKind, handlers: readonly (() => void)[]): Interrupts;
  /**
   * @internal Lends registers to other threads of this process, for stores: bytes [offset, offset + length) of a region. Absent if they can
   * not be reached from there.
   *
   * @throws DmaError ENOTSUP with the reason
   */
  lendRegisters?(region: number, offset: number, length: number, holders: Holders): RegisterLoan;
  /** Resets the device; mappings and interrupts stay. ENOTSUP if the device has no reset. */
  reset(): void;
}

/** All kinds of interrupts. */
export const INTERRUPT_KINDS: readonly InterruptKind[] = ['intx', 'msi', 'msix'];

/** The error for a region that does not exist. */
export function noRegion(regions: readonly RegionInfo[], region: number): DmaError {
  const there = regions.map(({ index }) => index).join(', ');
  return invalid('registers', `the device has no region ${show(region)}`, { hint: `there are: ${there}` });
}

/** @throws DmaError EINVAL unless the region exists and contains these bytes */
export function checkRegionAccess(
  regions: readonly RegionInfo[],
  region: number,
  offset: number,
  length: number,
): void {
  const info = regions.find(({ index }) => index === region);
  if (info === undefined) throw noRegion(regions, region);
  const whole = Number.isInteger(offset) && Number.isInteger(length);
  if (!whole || offset < 0 || length < 1 || offset + length > info.size)
    throw invalid(
      'registers',
      `${show(length)} bytes at ${typeof offset === 'number' ? hex(offset) : show(offset)} of region ${region}, which has ${hex(info.size)}`,
      { hint: 'read or write at least 1 byte, all of it inside the region' },
    );
}

/**
 * A copy of the caller's list of handlers, which the caller may change later.
 *
 * @throws DmaError EINVAL for more handlers than vectors, or for a value that is not a function
 */
export function handlersOf(handlers: readonly (() => void)[], count: number, kind: InterruptKind): (() => void)[] {
  const operation = 'enableInterrupts';
  return reading(operation, 'the handlers', () => {
    if (!Array.isArray(handlers)) throw invalid(operation, `handlers are given as an array, not as ${show(handlers)}`);
    if (handlers.length > count)
      throw invalid(operation, `${handlers.length} handlers for ${count} vectors of ${kind}`);
    for (const handler of handlers) mustBeFunction(handler, 'a handler', operation);
    return [...(handlers as readonly (() => void)[])];
  });
}

const GONE: readonly ErrorCode[] = ['ENODEV', 'ECONNRESET', 'ECONNABORTED', 'ENOTCONN', 'EPIPE', 'EPROTO'];

/** Whether `error`, thrown by a {@link DeviceAccess}, means that the device can no longer be reached. */
export function isGone(error: unknown): boolean {
  return isDmaError(error) && GONE.includes(error.code);
}
