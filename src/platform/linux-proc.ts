/** What the kernel tells in text: files of /proc and /sys. */
import { readFileSync } from 'node:fs';

/** The text of `path`, or `undefined` where it can not be read (not mounted, not there, not allowed). */
export function readKernelText(path: string): string | undefined {
  try {
    return readFileSync(path, 'latin1');
  } catch {
    return undefined;
  }
}
