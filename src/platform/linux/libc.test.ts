import { spawnSync } from 'node:child_process';
import { test } from 'node:test';
import assert from 'node:assert/strict';
import { isDmaError } from '../../errors.js';
import { check, checkFd, checkPath, loadLibc } from './libc.js';

/** What a new process prints that runs `code`, with the module at `path` as `m`. */
function run(path: string, code: string, before = ''): string {
  const url = new URL(path, import.meta.url).href;
  const script = `${before}\nconst m = await import(${JSON.stringify(url)});\n${code}`;
  const child = spawnSync(process.execPath, ['--input-type=module', '-e', script], { encoding: 'utf8' });
  assert.equal(child.stderr, '');
  return child.stdout.trim();
}

/** Makes `require('koffi')` throw, as it does where there is no binary for the machine. */
const WITHOUT_KOFFI = `
  import { Module } from 'node:module';
  const load = Module._load;
  Module._load = (name, ...rest) => {
    if (name === 'koffi') throw new Error('no binary\\nfor this machine');
    return load(name, ...rest);
  };`;

test('importing loads nothing native', () => {
  const loaded = `console.log(process.report.getReport().sharedObjects.some((each) => each.includes('koffi')))`;
  assert.equal(run('../open.js', loaded), 'false');
  if (typeof loadLibc() !== 'string') assert.equal(run('../open.js', `m.openPlatform(); ${loaded}`), 'true');
});

test('where koffi is missing or the system is another, the portable platform says why', () => {
  const show = 'const p = m.openPlatform(); console.log(p.name, "|", p.limitation)';
  const reason = process.platform === 'linux' ? 'koffi can not be loaded: no binary' : 'the operating system is';
  assert.match(run('../open.js', show, WITHOUT_KOFFI), new RegExp(`^portable \\| ${reason}`));
  const elsewhere = `Object.defineProperty(process, 'platform', { value: 'darwin' });`;
  assert.equal(run('../open.js', show, elsewhere), 'portable | the operating system is darwin, not Linux');
  const unknown = `Object.defineProperty(process, 'platform', { value: 'linux' });
    Object.defineProperty(process, 'arch', { value: 'mips' });`;
  assert.equal(run('../open.js', show, unknown), 'portable | no system calls are known for the mips architecture');
});

test('the C library is loaded once in a thread', () => {
  assert.equal(loadLibc(), loadLibc());
});

test('check turns -1 into the error of errno, with words', (t) => {
  const libc = loadLibc();
  if (typeof libc === 'string') return t.skip(libc);
  assert.equal(check(libc, 7, 'anything'), 7);
  assert.throws(
    () => check(libc, libc.close(99999), 'close', 'fd 99999'),
    (error) =>
      isDmaError(error, 'EBADF') && error.operation === 'close' && error.reason === 'fd 99999: bad file descriptor',
  );
  assert.throws(
    () => check({ ...libc, errno: () => 18 }, -1, 'link'),
    (error) => isDmaError(error, 'EXDEV') && error.errno === 18 && error.reason === 'cross-device link not permitted',
  );
  // No kernel has this number.
  assert.throws(
    () => check({ ...libc, errno: () => 4000 }, -1, 'link'),
    (error) => isDmaError(error, 'EIO') && error.errno === 4000,
  );
});

test('errno is read right over many failing calls', (t) => {
  const libc = loadLibc();
  if (typeof libc === 'string') return t.skip(libc);
  for (let i = 0; i < 20_000; i++) {
    const bad = i % 2 === 0;
    const result: number = bad ? libc.close(99999) : libc.open('/no/such/file', 0, 0);
    const errno: number = result === -1 ? libc.errno() : 0;
    assert.equal(errno, bad ? 9 : 2);
  }
});

test('numbers and texts that C would take for others are refused', () => {
  for (const fd of [-1, 1.5, NaN, Infinity, 2 ** 31, 2 ** 40])
    assert.throws(
      () => checkFd(fd, 'close'),
      (error) => isDmaError(error, 'EBADF'),
    );
  checkFd(0, 'close');
  checkFd(2 ** 31 - 1, 'close');
  assert.throws(
    () => checkPath('a\0b', 'open'),
    (error) => isDmaError(error, 'EINVAL'),
  );
  assert.throws(
    () => checkPath('', 'open'),
    (error) => isDmaError(error, 'ENOENT'),
  );
});

test('Node is asked for the words of errors once, not for each failed call', () => {
  const count = `
    import { createRequire } from 'node:module';
    const util = createRequire(import.meta.url)('node:util');
    const ask = util.getSystemErrorMap;
    let asked = 0;
    util.getSystemErrorMap = () => (asked++, ask());`;
  const fail = `
    const texts = [2, 13, 2].map((errno) => m.systemFailure(errno, 'any').reason);
    console.log(asked, texts.join(', '));`;
  const texts = 'no such file or directory, permission denied, no such file or directory';
  assert.equal(run('libc.js', fail, count), `1 ${texts}`);
});
