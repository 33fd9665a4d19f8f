/** A folder for the sockets of primaries, for tests: names in it are the test's own. */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after } from 'node:test';

/** Makes it the folder of this process, and of those that it starts, until the tests of the file are over. @returns its path */
export function ownPlaces(): string {
  const folder = mkdtempSync(join(tmpdir(), 'places-'));
  const before = process.env['XDG_RUNTIME_DIR'];
  process.env['XDG_RUNTIME_DIR'] = folder;
  after(() => {
    if (before === undefined) delete process.env['XDG_RUNTIME_DIR'];
    else process.env['XDG_RUNTIME_DIR'] = before;
    rmSync(folder, { recursive: true, force: true });
  });
  return folder;
}
