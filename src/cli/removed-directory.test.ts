import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { mkdtempSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { it } from 'node:test';
import { fileURLToPath } from 'node:url';
import { openPlatform } from '../platform/open.js';

const skip = openPlatform().limitation ?? false;
const MAIN = fileURLToPath(new URL('./main.js', import.meta.url));

/** Runs the command in a working directory that was removed. */
function runGone(...args: string[]): { status: number | null; stderr: string } {
  const directory = mkdtempSync(join(tmpdir(), 'anydma-gone-'));
  const script = 'cd "$1" && rmdir "$1" && shift && exec "$@"';
  const argv = ['-c', script, 'sh', directory, process.execPath, MAIN, ...args];
  const { status, stderr } = spawnSync('sh', argv, { encoding: 'utf8', timeout: 120_000 });
  return { status, stderr };
}

it('in a working directory that was removed, what needs none works, and a relative path has a reason', { skip }, () => {
  assert.equal(runGone('demo', '--size', '1M', '--json').status, 0);
  assert.equal(runGone('devices', '--json').status, 0);
  for (const args of [
    ['serve', 'copy', '--socket', 'x.sock'],
    ['map', '--device', 'vfio-user:./x.sock', '--size', '4K'],
  ]) {
    const { status, stderr } = runGone(...args);
    assert.equal(status, 1, stderr);
    assert.match(stderr, /the working directory, which is unknown: was it removed/);
    assert.match(stderr, /give a path that begins with/);
    assert.doesNotMatch(stderr, /internal error/);
  }
});
