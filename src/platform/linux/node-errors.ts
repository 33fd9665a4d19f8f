/** Errors of Node's own system calls as those of this library, and which of them mean that something is not there. */
import { ERRNO, invalid } from '../../errors.js';
import type { DmaErrorDetails } from '../../errors.js';
import { systemFailure } from './libc.js';

/** No such name; or a name with nothing behind it, as nodes of /dev and attributes of devices that went away are. */
const ABSENT: readonly number[] = [ERRNO.ENOENT, ERRNO.ENOTDIR, ERRNO.ENODEV, ERRNO.ENXIO];

/**
 * An error of Node's as a DmaError with the kernel's code; the operation is the system call that failed. What is no error of
 * the system is returned as it is.
 *
 * @param subject what it was done to
 */
export function fromNode(error: Error, subject: string, more?: Partial<DmaErrorDetails>): Error;
export function fromNode(error: unknown, subject: string, more?: Partial<DmaErrorDetails>): unknown;
export function fromNode(error: unknown, subject: string, more: Partial<DmaErrorDetails> = {}): unknown {
  if (!(error instanceof Error)) return error;
  // Node checks paths before the kernel does.
  if ('code' in error && error.code === 'ERR_INVALID_ARG_VALUE') return invalid('open', error.message, more);
  const errno = 'errno' in error ? -Number(error.errno) : NaN;
  if (!(errno > 0)) return error;
  const operation = 'syscall' in error ? String(error.syscall).split(' ', 1)[0] : 'system call';
  return systemFailure(errno, operation, subject, { cause: error, ...more });
}

/** Runs a call of Node's; its errors are told by {@link fromNode}. */
export function callNode<T>(subject: string, call: () => T, more?: Partial<DmaErrorDetails>): T {
  try {
    return call();
  } catch (error) {
    throw fromNode(error, subject, more);
  }
}

/** As {@link callNode}; `undefined` when the kernel says that it is not there. "Can not be told now" is thrown. */
export function ifPresent<T>(subject: string, call: () => T): T | undefined {
  try {
    return call();
  } catch (error) {
    if (error instanceof Error && 'errno' in error && ABSENT.includes(-Number(error.errno))) return undefined;
    throw fromNode(error, subject);
  }
}
