/** What a driver works a device through, the same for vfio-user, VFIO and devices emulated in this process. */
import { mustBeFunction, reading } from '../check.js';
import { invalid, isDmaError, type DmaError, type ErrorCode } from '../errors.js';
import { show } from '../show.js';
import { hex } from '../units.js';
import type { Registers } from '../platform/registers/registers.js';

/** PCI region indexes, as VFIO numbers them (include/uapi/linux/vfio.h, VFIO_PCI_BAR0_REGION_INDEX ...). */
export const PCI_REGION = { BAR0: 0, BAR1: 1, BAR2: 2, BAR3: 3, BAR4: 4, BAR5: 5, ROM: 6, CONFIG: 7 } as const;

/** One region of a device. */
export interface RegionInfo {
  readonly index: number;
  /** bytes; 0 when the device does not have this region */
  readonly size: number;
  readonly readable: boolean;
  readonly writable: boolean;
  /** Why its registers are reached by message although the server offers to map them; absent when they are not. */
  readonly notMapped?: string;
}

/** A kind of PCI interrupt. */
export type InterruptKind = 'intx' | 'msi' | 'msix';

/** Interrupts that are enabled; closing is idempotent and disables them. */
export interface Interrupts {
  /** Should they keep the process alive? They do at first. */
  setRef(keepAlive: boolean): void;
  /** Disables them; no handler is called afterwards. */
  close(): void;
}

/**
 * An open PCI device. All calls may throw what the way to the device throws; once the device is gone they all do (ENODEV, or
 * ECONNRESET and its like for a device behind a socket).
 */
export interface DeviceAccess {
  readonly regions: readonly RegionInfo[];
  /** The registers of a region. EINVAL for a region that the device does not have. The same object each time. */
  registers(region: number): Registers;
  /** Loads bytes from a region, configuration space included. */
  readRegion(region: number, offset: number, length: number): Uint8Array;
  /** Stores bytes to a region, configuration space included. */
  writeRegion(region: number, offset: number, bytes: Uint8Array): void;
  /** How many vectors of a kind the device has. */
  interruptCount(kind: InterruptKind): number;
  /**
   * Calls `handlers[v]` from the event loop whenever vector `v` was signalled. One kind at a time; enabling another
   * replaces it. EINVAL for more handlers than vectors.
   */
  enableInterrupts(kind: InterruptKind, handlers: readonly (() => void)[]): Interrupts;
  /** Resets the device; mappings and interrupts stay. ENOTSUP when it has no reset. */
  reset(): void;
}

/** All kinds of interrupts. */
export const INTERRUPT_KINDS: readonly InterruptKind[] = ['intx', 'msi', 'msix'];

/** The error of a region that there is not. */
export function noRegion(regions: readonly RegionInfo[], region: number): DmaError {
  const there = regions.map(({ index }) => index).join(', ');
  return invalid('registers', `the device has no region ${show(region)}`, { hint: `there are: ${there}` });
}

/** @throws DmaError EINVAL unless the region is there, and has these bytes */
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
      { hint: 'what is read and written is 1 byte or more, and inside the region' },
    );
}

/** The handlers of a caller, copied: the list is his to change. @throws DmaError EINVAL for more than there are vectors, and for what is no function */
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

/** Does `error`, of a call of {@link DeviceAccess}, say that the device can not be reached any more? */
export function isGone(error: unknown): boolean {
  return isDmaError(error) && GONE.includes(error.code);
}
