import { spawnSync } from 'node:child_process';
import {
  chmodSync,
  existsSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';
import assert from 'node:assert/strict';
import { isDmaError } from '../errors.js';
import type { ErrorCode } from '../errors.js';
import { openPlatform } from './open.js';

const platform = openPlatform();
const { kernel } = platform;
const skip = platform.limitation ?? false;
const directory = mkdtempSync(join(tmpdir(), 'kernel-'));
after(() => rmSync(directory, { recursive: true }));

const throws = (code: ErrorCode, operation: string, action: () => unknown): void => {
  assert.throws(action, (error) => isDmaError(error, code) && error.operation === operation, `${code} of ${operation}`);
};

test('texts are read and written, and never made', { skip }, () => {
  const path = join(directory, 'setting');
  assert.equal(kernel.readText(path), undefined);
  throws('ENOENT', 'open', () => kernel.writeText(path, '1'));
  assert.equal(existsSync(path), false);
  writeFileSync(path, 'before');
  kernel.writeText(path, '12');
  assert.equal(kernel.readText(path), '12');
  throws('EISDIR', 'open', () => kernel.writeText(directory, '1'));
  throws('EINVAL', 'write', () => kernel.writeText('a\0b', '1'));
  assert.match(kernel.readText('/proc/self/status') ?? '', /^Name:/);
});

test('the kernel’s refusal of a value is thrown', { skip }, (t) => {
  const path = '/proc/self/oom_score_adj';
  const before = kernel.readText(path);
  if (before === undefined) return t.skip('there is no /proc');
  assert.throws(
    () => kernel.writeText(path, 'nonsense'),
    (error) => isDmaError(error, 'EINVAL') && error.operation === 'write' && error.reason.includes(path),
  );
  kernel.writeText(path, before.trim());
});

test('directories are listed in order, and made with those above them', { skip }, () => {
  const path = join(directory, 'a', 'b');
  assert.deepEqual(kernel.list(path), []);
  kernel.makeDirectory(path);
  kernel.makeDirectory(path);
  for (const name of ['2', '10', '1']) writeFileSync(join(path, name), '');
  assert.deepEqual(kernel.list(path), ['1', '10', '2']);
  throws('ENOTDIR', 'mkdir', () => kernel.makeDirectory(join(path, '1', 'x')));
});

test('links are read, and nothing else is one', { skip }, () => {
  const path = join(directory, 'link');
  symlinkSync('../not/there', path);
  assert.equal(kernel.readLink(path), '../not/there');
  assert.equal(kernel.readLink(directory), undefined);
  assert.equal(kernel.readLink(join(directory, 'nothing')), undefined);
  assert.equal(kernel.readLink('a\0b'), undefined);
});

test('what may be opened is told without opening it', { skip }, (t) => {
  const path = join(directory, 'node');
  assert.equal(kernel.mayOpen(path), 'no-such-file');
  writeFileSync(path, '');
  assert.equal(kernel.mayOpen(path), 'yes');
  assert.equal(kernel.mayOpen(join(path, 'x')), 'no-such-file');
  chmodSync(path, 0o400);
  if (process.getuid?.() !== 0) return assert.equal(kernel.mayOpen(path), 'no-permission');
  // Root may open everything: ask as somebody else, who must be able to get here and to read this library.
  const url = new URL('./open.js', import.meta.url).href;
  const code = `import { openPlatform } from '${url}'; console.log(openPlatform().kernel.mayOpen('${path}'))`;
  chmodSync(directory, 0o755);
  const capabilities = ['--bounding-set', '-all', '--inh-caps', '-all'];
  const args = [...capabilities, '--reuid', '65534', process.execPath, '--input-type=module', '-e', code];
  const child = spawnSync('setpriv', args, { encoding: 'utf8' });
  if (child.status !== 0) return t.skip(`another user can not run this: ${child.stderr || String(child.error)}`);
  assert.equal(child.stdout.trim(), 'no-permission');
});

test('the log of the kernel is text', { skip }, (t) => {
  const log = kernel.log();
  if (log === undefined) return t.skip('the kernel does not show its log to this process');
  assert.match(log, /^<\d+>/);
});

test('owners are changed, and -1 leaves them', { skip }, (t) => {
  const path = join(directory, 'owned');
  throws('ENOENT', 'chown', () => kernel.changeOwner(path, -1, -1));
  writeFileSync(path, '');
  const { uid, gid } = statSync(path);
  kernel.changeOwner(path, uid, -1);
  if (uid !== 0) return throws('EPERM', 'chown', () => kernel.changeOwner(path, 0, -1));
  try {
    kernel.changeOwner(path, 65534, -1);
  } catch (error) {
    return t.skip(String(error));
  }
  assert.deepEqual([statSync(path).uid, statSync(path).gid], [65534, gid]);
  kernel.changeOwner(path, -1, 12);
  assert.deepEqual([statSync(path).uid, statSync(path).gid], [65534, 12]);
});

test('file systems are mounted and unmounted by who may', { skip }, () => {
  const target = join(directory, 'mount');
  kernel.makeDirectory(target);
  const options = { source: 'nodev', target, type: 'tmpfs', options: 'size=64K' };
  throws('EINVAL', 'mount', () => kernel.mount({ ...options, options: 'a\0b' }));
  throws('ENOENT', 'mount', () => kernel.mount({ ...options, target: '' }));
  let mounted = false;
  try {
    kernel.mount(options);
    mounted = true;
  } catch (error) {
    assert.ok(isDmaError(error, 'EPERM'));
  }
  assert.equal(readFileSync('/proc/mounts', 'utf8').includes(` ${target} tmpfs `), mounted);
  if (mounted) kernel.unmount(target);
  assert.throws(() => kernel.unmount(target), { operation: 'umount2' });
});
