/** A file that the user names as memory to map. */
import { closeSync, constants, fstatSync, openSync } from 'node:fs';
import { DmaError, errorCode, invalid, isDmaError } from '../../errors.js';

/** An open, non-empty file. Disposing it closes it. */
export interface InputFile extends Disposable {
  readonly fd: number;
  /** Bytes, at least 1. */
  readonly size: number;
}

/**
 * Opens the file at `path`.
 *
 * @throws DmaError of open(2); EINVAL for a file that is not regular, or is empty
 */
export function openInput(path: string, writable = false): InputFile {
  const operation = 'open';
  let fd: number;
  try {
    // Without O_NONBLOCK, opening a named pipe would block.
    fd = openSync(path, (writable ? constants.O_RDWR : constants.O_RDONLY) | constants.O_NONBLOCK);
  } catch (error) {
    throw systemError(error, operation, path);
  }
  try {
    const status = fstatSync(fd);
    if (!status.isFile()) throw invalid(operation, `${path} is not a regular file and can not be mapped`);
    if (status.size === 0) throw invalid(operation, `${path} is empty`, { hint: 'give a file of at least 1 byte' });
    return { fd, size: status.size, [Symbol.dispose]: () => closeSync(fd) };
  } catch (error) {
    closeSync(fd);
    throw isDmaError(error) ? error : systemError(error, operation, path);
  }
}

/** An error of node:fs as a DmaError. */
function systemError(error: unknown, operation: string, path: string): DmaError {
  const { errno = 0, message } = error as NodeJS.ErrnoException;
  // `ENOENT: no such file or directory, open '/x'`
  const reason = `${path}: ${message.replace(/^[A-Z0-9]+: /, '').replace(/, \w+( '.*')?$/, '')}`;
  return new DmaError({ code: errorCode(-errno), errno: -errno, operation, reason, cause: error });
}
