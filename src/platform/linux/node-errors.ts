/** Turns errors of Node's own system calls into errors of this library. */
import { ERRNO, invalid } from '../../errors.js';
import type { DmaErrorDetails } from '../../errors.js';
import { errnoOf, isError } from '../../realms.js';
import { systemFailure } from './libc.js';

/** The path does not exist, or its device is gone (nodes of /dev, attributes of sysfs). */
const ABSENT: readonly number[] = [ERRNO.ENOENT, ERRNO.ENOTDIR, ERRNO.ENODEV, ERRNO.ENXIO];

/**
 * Converts an error of Node's into a DmaError with the kernel's errno; `operation` is the system call that failed. An
 * error that is not a system error is returned unchanged.
 *
 * @param subject the object of the call, for the reason: usually a path
 */
export function fromNode(error: Error, subject: string, more?: Partial<DmaErrorDetails>): Error;
export function fromNode(error: unknown, subject: string, more?: Partial<DmaErrorDetails>): unknown;
export function fromNode(error: unknown, subject: string, more: Partial<DmaErrorDetails> = {}): unknown {
  if (!isError(error)) return error;
  // Node checks paths before the kernel does.
  if ('code' in error && error.code === 'ERR_INVALID_ARG_VALUE') return invalid('open', error.message, more);
  const errno = errnoOf(error);
  if (errno === undefined) return error;
  const operation = 'syscall' in error ? String(error.syscall).split(' ', 1)[0] : 'system call';
  return systemFailure(errno, operation, subject, { cause: error, ...more });
}

/** Runs a Node call; its errors are converted by {@link fromNode}. */
export function callNode<T>(subject: string, call: () => T, more?: Partial<DmaErrorDetails>): T {
  try {
    return call();
  } catch (error) {
    throw fromNode(error, subject, more);
  }
}

/** Like {@link callNode}, but returns `undefined` if the path does not exist. All other errors are thrown. */
export function ifPresent<T>(subject: string, call: () => T): T | undefined {
  try {
    return call();
  } catch (error) {
    if (ABSENT.includes(errnoOf(error) ?? 0)) return undefined;
    throw fromNode(error, subject);
  }
}
