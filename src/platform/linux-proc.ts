/** What the kernel tells in text: files of /proc and /sys. */
import { readFileSync } from 'node:fs';
import { ifPresent } from './node-errors.js';

/** The text of `path`; `undefined` where there is no such file. What keeps it from being read is thrown: EMFILE, EACCES ... */
export function readKernelText(path: string): string | undefined {
  return ifPresent(path, () => readFileSync(path, 'latin1'));
}
