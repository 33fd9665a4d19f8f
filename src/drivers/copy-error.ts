/** Errors of copies by the copy engine. */
import { DmaError, type ErrorCode } from '../errors.js';
import type { Range } from '../ranges.js';
import { COPY_ABANDONED } from './copy-engine-state.js';
import { COPY_CODE } from '../vfio-user/devices/copy-engine-layout.js';

const CODES: ReadonlyMap<number, readonly [ErrorCode, string]> = new Map<number, readonly [ErrorCode, string]>([
  [COPY_ABANDONED, ['ECANCELED', 'the thread that had the engine ended, and the engine was reset']],
  [COPY_CODE.BAD_DESCRIPTOR, ['EINVAL', 'the device refuses the descriptor']],
  [COPY_CODE.READ_UNMAPPED, ['EFAULT', 'the device can not read memory that is not mapped']],
  [COPY_CODE.READ_DENIED, ['EACCES', 'the device may not read this memory']],
  [COPY_CODE.READ_FAILED, ['EIO', 'the device failed to read memory']],
  [COPY_CODE.WRITE_UNMAPPED, ['EFAULT', 'the device can not write memory that is not mapped']],
  [COPY_CODE.WRITE_DENIED, ['EACCES', 'the device may not write this memory']],
  [COPY_CODE.WRITE_FAILED, ['EIO', 'the device failed to write memory']],
  [COPY_CODE.BAD_RING, ['EINVAL', 'the device refuses the ring']],
  [COPY_CODE.BAD_DOORBELL, ['EPROTO', 'the device refuses the doorbell']],
]);

/** The error of a code other than OK (`COPY_CODE`, as in `CopyEngine.codes`), about `range`. */
export function copyError(code: number, range: Range, operation: string): DmaError {
  const [name, reason] = CODES.get(code) ?? ['EPROTO', `the device ended with the unknown code ${code}`];
  return new DmaError({ code: name, operation, reason, range });
}
