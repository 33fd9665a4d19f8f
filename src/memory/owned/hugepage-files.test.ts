import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test, type TestContext } from 'node:test';
import assert from 'node:assert/strict';
import { isDmaError } from '../../errors.js';
import { openPlatform } from '../../platform/open.js';
import { failingPlatform, trackingPlatform } from '../../../test/fakes/platform/platforms.js';
import { claimFile, hugePageFile, removeStale } from './hugepage-files.js';

const platform = trackingPlatform(openPlatform());
const { files } = platform;
const skip = platform.limitation ?? false;

function newDirectory(t: TestContext): string {
  const directory = mkdtempSync(join(tmpdir(), 'files-'));
  t.after(() => rmSync(directory, { recursive: true }));
  return directory;
}

test('a file is claimed by one, and what a dead process left is made anew', { skip }, (t) => {
  const directory = newDirectory(t);
  const path = hugePageFile(directory, 'rte', 3);
  assert.equal(path, join(directory, 'rtemap_3'));
  writeFileSync(path, 'old');
  for (const unlink of ['existing', 'always'] as const) {
    const { fd, reused } = claimFile(files, path, unlink);
    assert.deepEqual([reused, files.status(fd).size], [false, 0]);
    for (const other of ['existing', 'always', 'never'] as const)
      assert.throws(
        () => claimFile(files, path, other),
        (error) => isDmaError(error, 'EBUSY') && error.message.includes(path),
      );
    files.close(fd);
  }
  writeFileSync(path, 'old');
  const { fd, reused } = claimFile(files, path, 'never');
  assert.deepEqual([reused, files.status(fd).size], [true, 3]);
  files.close(fd);
  rmSync(path);
  const fresh = claimFile(files, path, 'never');
  assert.equal(fresh.reused, false);
  files.close(fresh.fd);
  assert.throws(() => claimFile(files, join(directory, 'none', 'x'), 'existing'), { code: 'ENOENT' });
  assert.deepEqual(platform.leaks(), []);
});

test('a file that is removed between making and locking it is made again', { skip }, (t) => {
  const path = hugePageFile(newDirectory(t), 'x', 0);
  let removals = 3;
  const racing = {
    ...files,
    lock: (fd: number, kind: 'shared' | 'exclusive'): boolean => {
      if (removals-- > 0) files.remove(path);
      return files.lock(fd, kind);
    },
  };
  const { fd } = claimFile(racing, path, 'existing');
  assert.equal(files.hasName(fd), true);
  assert.equal(removals < 0, true);
  files.close(fd);
  assert.deepEqual(platform.leaks(), []);
});

test('whichever call fails while a file is claimed, nothing stays open and nothing new stays', { skip }, (t) => {
  const directory = newDirectory(t);
  const path = hugePageFile(directory, 'x', 0);
  for (const left of [true, false]) {
    for (const unlink of ['existing', 'never'] as const) {
      for (let n = 1; ; n++) {
        rmSync(path, { force: true });
        if (left) writeFileSync(path, 'old');
        const failing = failingPlatform(platform);
        failing.failCall(n, 'EIO');
        let fd: number | undefined;
        try {
          ({ fd } = claimFile(failing.files, path, unlink));
        } catch (error) {
          assert.ok(isDmaError(error, 'EIO'), String(error));
          assert.equal(error.undo.length, 0);
        }
        if (fd !== undefined) files.close(fd);
        assert.deepEqual(platform.leaks(), []);
        if (failing.failed() === undefined) break;
        assert.equal(fd, undefined);
        if (readdirSync(directory).length === 1) assert.equal(readFileSync(path, 'utf8'), 'old');
      }
    }
  }
});

test('stale files are removed, and nothing else', { skip }, (t) => {
  const directory = newDirectory(t);
  const stays = ['rtemap_', 'rtemap_1x', 'rtemap_-1', 'rte2map_0', 'xrtemap_0', 'rtemap_0.bak', 'rtemap', 'other'];
  for (const name of [...stays, 'rtemap_0', 'rtemap_12', 'rtemap_7']) writeFileSync(join(directory, name), '');
  mkdirSync(join(directory, 'rtemap_5'));
  symlinkSync(join(directory, 'other'), join(directory, 'rtemap_6'));
  const used = files.open(join(directory, 'rtemap_7'), 'read-write');
  assert.ok(files.lock(used, 'shared'));
  assert.deepEqual(removeStale(platform, directory, 'rte'), [
    join(directory, 'rtemap_0'),
    join(directory, 'rtemap_12'),
  ]);
  assert.deepEqual(readdirSync(directory).sort(), [...stays, 'rtemap_5', 'rtemap_6', 'rtemap_7'].sort());
  files.close(used);
  assert.deepEqual(removeStale(platform, directory, 'rte'), [join(directory, 'rtemap_7')]);
  assert.deepEqual(removeStale(platform, directory, 'rte'), []);
  assert.deepEqual(removeStale(platform, join(directory, 'none'), 'rte'), []);
  // Signs of patterns are letters like any other.
  writeFileSync(join(directory, 'a.bmap_0'), '');
  writeFileSync(join(directory, 'axbmap_0'), '');
  assert.deepEqual(removeStale(platform, directory, 'a.b'), [join(directory, 'a.bmap_0')]);
  assert.deepEqual(platform.leaks(), []);
});

test('a file that gets another name’s owner while it is looked at stays', { skip }, (t) => {
  const directory = newDirectory(t);
  const path = hugePageFile(directory, 'x', 0);
  writeFileSync(path, 'dead');
  const racing = {
    ...platform,
    files: {
      ...files,
      lock: (fd: number, kind: 'shared' | 'exclusive'): boolean => {
        rmSync(path);
        writeFileSync(path, 'alive');
        return files.lock(fd, kind);
      },
    },
  };
  removeStale(racing, directory, 'x');
  assert.equal(readFileSync(path, 'utf8'), 'alive');
  assert.deepEqual(platform.leaks(), []);
});

test('an error while stale files are removed closes what was open', { skip }, (t) => {
  const directory = newDirectory(t);
  writeFileSync(hugePageFile(directory, 'x', 0), '');
  for (const [call, code] of [
    ['files.open', 'EIO'],
    ['files.lock', 'EIO'],
    ['files.hasName', 'EIO'],
    ['files.remove', 'EROFS'],
  ] as const) {
    const failing = failingPlatform(platform);
    failing.failCall(1, code, call);
    assert.throws(() => removeStale(failing, directory, 'x'), { code });
    assert.deepEqual(platform.leaks(), []);
  }
  const failing = failingPlatform(platform);
  failing.failCall(1, 'EACCES', 'files.open');
  assert.deepEqual(removeStale(failing, directory, 'x'), []);
});

test('a link in place of a file is neither followed nor removed', { skip }, (t) => {
  const directory = newDirectory(t);
  const victim = join(directory, 'victim');
  writeFileSync(victim, 'precious');
  const path = hugePageFile(directory, 'x', 0);
  symlinkSync(victim, path);
  for (const unlink of ['never', 'existing', 'always'] as const)
    assert.throws(() => claimFile(files, path, unlink), {
      code: 'EPERM',
      message: /is a symbolic link .*it was not touched/,
    });
  assert.deepEqual(removeStale(platform, directory, 'x'), []);
  assert.deepEqual(readdirSync(directory).sort(), ['victim', 'xmap_0']);
  assert.equal(readFileSync(victim, 'utf8'), 'precious');
  assert.deepEqual(platform.leaks(), []);
});
