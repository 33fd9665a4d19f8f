/** A folder of this process's own below the system's temporary one. */
import { mkdtempSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { callNode } from './node-errors.js';

/**
 * Makes a new folder that only this user can enter.
 *
 * @param what needs it: a clause, for the hint
 * @throws DmaError ENOENT, EACCES, ENOSPC ...
 */
export function temporaryFolder(operation: string, what: string): string {
  const parent = tmpdir();
  return callNode(`a folder in ${parent}`, () => mkdtempSync(join(parent, 'anydma-')), {
    operation,
    hint: `${what} needs a temporary folder: set TMPDIR to one that is there and can be written`,
  });
}
