/** Reads files of /proc and /sys. */
import { closeSync, openSync, readSync, statSync } from 'node:fs';
import { ifPresent } from './node-errors.js';

/** Holds nothing between calls. Longer files take several reads; the kernel returns at most a few pages at a time. */
const buffer = Buffer.allocUnsafeSlow(16 * 1024);

/** The text of `path`; `undefined` if it does not exist. Other errors are thrown: EMFILE, EACCES ... */
export function readKernelText(path: string): string | undefined {
  return ifPresent(path, () => readAll(path));
}

/** Like {@link readKernelText}, for files that are often absent: asking first is faster than an error of Node's. */
export function readRareText(path: string): string | undefined {
  return ifPresent(path, () => (statSync(path, { throwIfNoEntry: false }) === undefined ? undefined : readAll(path)));
}

/** These files have no known length and are read often; this is faster than Node's `readFileSync`. */
function readAll(path: string): string {
  const fd = openSync(path, 'r');
  try {
    let text = '';
    for (let count = -1; count !== 0; text += buffer.toString('latin1', 0, count))
      count = readSync(fd, buffer, 0, buffer.length, null);
    return text;
  } finally {
    closeSync(fd);
  }
}
