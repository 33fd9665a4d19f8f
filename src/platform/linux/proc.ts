/** What the kernel tells in text: files of /proc and /sys. */
import { closeSync, openSync, readSync, statSync } from 'node:fs';
import { ifPresent } from './node-errors.js';

/** Nothing is kept in it between calls. Longer files take several reads; the kernel gives at most a few pages at a time. */
const buffer = Buffer.allocUnsafeSlow(16 * 1024);

/** The text of `path`; `undefined` where there is no such file. What keeps it from being read is thrown: EMFILE, EACCES ... */
export function readKernelText(path: string): string | undefined {
  return ifPresent(path, () => readAll(path));
}

/** As {@link readKernelText}, for files that are often absent: an error of Node's takes longer than asking first. */
export function readRareText(path: string): string | undefined {
  return ifPresent(path, () => (statSync(path, { throwIfNoEntry: false }) === undefined ? undefined : readAll(path)));
}

/** Such files have no length that could be asked for, and are read often: faster than Node's `readFileSync`. */
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
