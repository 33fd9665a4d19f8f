/** Devices that can copy memory, each with its own way. */
import {
  copyEngineDriver,
  DmaError,
  eduDriver,
  isDmaError,
  KiB,
  MiB,
  type Device,
  type LongWorkOptions,
  type MapOptions,
} from '../../index.js';
import type { Edu } from '../../entry/driver.js';
import { verbsDriver } from '../../entry/rdma.js';
import { progressOf } from '../../long-work.js';
import { rdmaCopier } from './copier-rdma.js';

/** A device that copies. */
export interface Copier {
  /** A description of it. */
  readonly kind: string;
  /** Default number of bytes to copy: takes at most a few seconds. */
  readonly usualSize: number;
  /** How external memory must be mapped as the destination of a copy. */
  readonly destination?: MapOptions;
  /** Has the device copy `length` bytes from one of its addresses to another. */
  copy(from: number, to: number, length: number, watch?: LongWorkOptions): Promise<void>;
  /**
   * Whether an error of `copy` means that the device was denied access. Devices without such errors just move nothing.
   */
  isRefusal(error: unknown): boolean;
}

/** The device as a copier. @throws DmaError ENOTSUP if it can not copy */
export function copierOf(device: Device): Copier {
  if (device.driver === copyEngineDriver) {
    const engine = device.use(copyEngineDriver);
    return {
      kind: 'a copy engine',
      usualSize: 64 * MiB,
      copy: (from, to, length, watch) => engine.copy(from, to, length, watch),
      isRefusal: (error) => isDmaError(error, 'EFAULT'),
    };
  }
  if (device.driver === verbsDriver) return rdmaCopier(device, device.use(verbsDriver));
  if (device.driver === eduDriver) {
    const edu = device.use(eduDriver);
    return {
      kind: "an edu device, which copies 2 KiB at a time by its own buffer (QEMU's takes 0.2 s for that)",
      usualSize: 8 * KiB,
      copy: (from, to, length, watch) => copyByBuffer(edu, from, to, length, watch),
      isRefusal: () => false,
    };
  }
  throw new DmaError({
    code: 'ENOTSUP',
    operation: 'demo',
    device: device.name,
    reason: `this command can not make the device copy; its driver is ${device.driver?.name ?? 'none'}`,
    hint: `"anydma map --device ${device.name} --size 64MiB" maps memory on any device; "anydma serve copy" serves a copy engine`,
  });
}

/** The largest transfer of an edu device, in bytes. */
const EDU_PIECE = 2 * KiB;

async function copyByBuffer(
  edu: Edu,
  from: number,
  to: number,
  length: number,
  { onProgress, signal }: LongWorkOptions = {},
): Promise<void> {
  const report = progressOf(onProgress, length);
  for (let at = 0; at < length; at += EDU_PIECE) {
    signal?.throwIfAborted();
    const piece = Math.min(EDU_PIECE, length - at);
    await edu.copyIn(from + at, 0, piece);
    await edu.copyOut(to + at, 0, piece);
    report(at + piece);
  }
}
