import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
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
