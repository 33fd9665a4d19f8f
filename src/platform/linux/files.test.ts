import { execFileSync } from 'node:child_process';
import {
  closeSync,
  fstatSync,
  ftruncateSync,
  mkdtempSync,
  openSync,
  readFileSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';
import assert from 'node:assert/strict';
import { tcpPair } from '../../../test/hostile/kinds.js';
import { throwsDmaOf } from '../../../test/shared/errors.js';
import { until } from '../../../test/shared/until.js';
import { openPlatform } from '../open.js';
import { loadLibc } from './libc.js';
import { trackingPlatform } from '../../../test/fakes/platform/platforms.js';

const platform = trackingPlatform(openPlatform());
const { files, memory, sockets, events } = platform;
const skip = platform.limitation ?? false;
const directory = mkdtempSync(join(tmpdir(), 'files-'));
after(() => rmSync(directory, { recursive: true }));

/** Runs `use` on a descriptor that is closed afterwards. */
function using<T>(fd: number, use: (fd: number) => T): T {
  try {
    return use(fd);
  } finally {
    files.close(fd);
  }
}
const isCloseOnExec = (fd: number): boolean => {
  const flags = /^flags:\s*(\d+)/m.exec(readFileSync(`/proc/self/fdinfo/${fd}`, 'utf8'));
  return (parseInt(flags?.[1] ?? '0', 8) & 0o2000000) !== 0;
};

test('status tells kind, size and access', { skip }, () => {
  const path = join(directory, 'status');
  writeFileSync(path, 'hello');
  const status = (fd: number): unknown =>
    using(fd, (each) => {
      const { kind, size, writable } = files.status(each);
      return { kind, size, writable };
    });
  assert.deepEqual(status(files.open(path, 'read')), { kind: 'file', size: 5, writable: false });
  assert.deepEqual(status(files.open(path, 'read-write')), { kind: 'file', size: 5, writable: true });
  assert.deepEqual(status(memory.memfd({ name: 'm', length: 2 ** 33 })), {
    kind: 'file',
    size: 2 ** 33,
    writable: true,
  });
  using(files.open(directory, 'read'), (fd) => {
    assert.deepEqual([files.status(fd).kind, files.status(fd).writable], ['directory', false]);
  });
  assert.deepEqual(status(files.open('/dev/null', 'read-write')), { kind: 'device', size: 0, writable: true });
  assert.deepEqual(status(events.create()), { kind: 'other', size: 0, writable: true });
  const [a, b] = sockets.pair();
  assert.equal(files.status(a).kind, 'socket');
  files.close(a);
  files.close(b);
  assert.deepEqual(platform.leaks(), []);
});

test('errors of files have the kernel’s code and the path', { skip }, () => {
  throwsDmaOf('ENOENT', 'open', () => files.open(join(directory, 'none'), 'read'));
  throwsDmaOf('ENOENT', 'open', () => files.open('', 'read'));
  throwsDmaOf('EINVAL', 'open', () => files.open('a\0b', 'read'));
  assert.throws(() => files.open('/no/such', 'read'), /open: \/no\/such: no such file/);
  throwsDmaOf('EBADF', 'close', () => files.close(99999));
  throwsDmaOf('EBADF', 'close', () => files.close(-1));
  throwsDmaOf('EBADF', 'statx', () => files.status(99999));
  throwsDmaOf('EBADF', 'fcntl', () => files.duplicate(99999));
  throwsDmaOf('EBADF', 'fcntl', () => files.sealedAgainstShrinking(99999, false));
});

test('everything made here closes on exec', { skip }, () => {
  const made = [
    files.open('/dev/null', 'read'),
    memory.memfd({ name: 'x', length: 4096 }),
    events.create(),
    ...sockets.pair(),
  ];
  made.push(files.duplicate(made[0]));
  for (const fd of made) {
    assert.ok(isCloseOnExec(fd), `fd ${fd}`);
    files.close(fd);
  }
});

test(
  'what is to be a directory, and is a pipe: ENOTDIR at once, not when somebody opens its other end',
  { skip },
  () => {
    const path = join(directory, 'pipe');
    execFileSync('mkfifo', [path]);
    // The other end is open: what would wait gets a descriptor here.
    const other = openSync(path, 'r+');
    try {
      assert.throws(() => files.open(path, 'read', { directory: true }), { code: 'ENOTDIR' });
    } finally {
      closeSync(other);
    }
    using(files.open(directory, 'read', { directory: true }), (fd) => assert.equal(files.status(fd).kind, 'directory'));
  },
);

test('a sealed memfd can not shrink or grow; an unsealed one can be sealed', { skip }, () => {
  using(memory.memfd({ name: 'sealed', length: 8192 }), (fd) => {
    assert.ok(files.sealedAgainstShrinking(fd, false));
    assert.throws(() => ftruncateSync(fd, 4096), /EPERM/);
    assert.throws(() => ftruncateSync(fd, 16384), /EPERM/);
  });
  using(memory.memfd({ name: 'unsealed', length: 8192, sealed: false }), (fd) => {
    assert.equal(files.sealedAgainstShrinking(fd, false), false);
    ftruncateSync(fd, 4096);
    assert.ok(files.sealedAgainstShrinking(fd, true));
    assert.throws(() => ftruncateSync(fd, 100), /EPERM/);
  });
  const path = join(directory, 'plain');
  writeFileSync(path, 'x');
  using(files.open(path, 'read-write'), (fd) => assert.equal(files.sealedAgainstShrinking(fd, true), false));
  using(events.create(), (fd) => assert.equal(files.sealedAgainstShrinking(fd, true), false));
});

test('readAt and writeAt move all there is, and never make a file longer', { skip }, () => {
  const path = join(directory, 'data');
  writeFileSync(path, Buffer.from([1, 2, 3, 4, 5, 6]));
  using(files.open(path, 'read-write'), (fd) => {
    const into = new Uint8Array(4);
    assert.equal(files.readAt(fd, 1, into), 4);
    assert.deepEqual([...into], [2, 3, 4, 5]);
    assert.equal(files.readAt(fd, 4, into), 2);
    assert.deepEqual([...into], [5, 6, 4, 5]);
    assert.equal(files.readAt(fd, 100, into), 0);
    assert.equal(files.readAt(fd, 0, new Uint8Array(0)), 0);
    assert.equal(files.writeAt(fd, 4, new Uint8Array([7, 8, 9])), 2);
    assert.equal(files.writeAt(fd, 6, new Uint8Array([9])), 0);
    assert.equal(files.writeAt(fd, 2 ** 40, new Uint8Array([9])), 0);
    // A part of a larger array: its own offset counts.
    assert.equal(files.writeAt(fd, 0, new Uint8Array([90, 91, 92]).subarray(1)), 2);
    throwsDmaOf('EINVAL', 'pread', () => files.readAt(fd, -1, into));
    throwsDmaOf('EINVAL', 'pwrite', () => files.writeAt(fd, NaN, into));
  });
  assert.deepEqual([...readFileSync(path)], [91, 92, 3, 4, 7, 8]);
  using(files.open(path, 'read'), (fd) =>
    throwsDmaOf('EBADF', 'pwrite', () => files.writeAt(fd, 0, new Uint8Array(1))),
  );
  using(files.open('/dev/null', 'read-write'), (fd) => assert.equal(files.writeAt(fd, 7, new Uint8Array(9)), 9));
  const [a, b] = sockets.pair();
  assert.throws(() => files.readAt(a, 0, new Uint8Array(1)), /pread/);
  files.close(a);
  files.close(b);
});

test('read and write are for what has no offsets', { skip }, () => {
  const fd = events.create();
  const into = new Uint8Array(16);
  throwsDmaOf('EAGAIN', 'read', () => files.read(fd, into));
  assert.equal(files.write(fd, new Uint8Array([3, 0, 0, 0, 0, 0, 0, 0])), 8);
  assert.equal(files.read(fd, into), 8);
  assert.deepEqual([...into.subarray(0, 9)], [3, 0, 0, 0, 0, 0, 0, 0, 0]);
  throwsDmaOf('EINVAL', 'write', () => files.write(fd, new Uint8Array(3)));
  files.close(fd);
  throwsDmaOf('EBADF', 'read', () => files.read(NaN, into));
  throwsDmaOf('EBADF', 'write', () => files.write(-1, into));
});

test('files are made for this user alone, and only anew when asked to', { skip }, () => {
  const path = join(directory, 'made');
  using(files.create(path, { exclusive: true }), (fd) => {
    assert.ok(isCloseOnExec(fd));
    assert.equal(statSync(path).mode & 0o777, 0o600);
    files.truncate(fd, 10);
    files.writeAt(fd, 0, new Uint8Array([1]));
    throwsDmaOf('EEXIST', 'open', () => files.create(path, { exclusive: true }));
    using(files.create(path), (second) => assert.deepEqual(files.status(second).size, 10));
    assert.equal(files.hasName(fd), true);
    files.remove(path);
    assert.equal(files.hasName(fd), false);
    throwsDmaOf('ENOENT', 'unlink', () => files.remove(path));
    throwsDmaOf('EINVAL', 'ftruncate', () => files.truncate(fd, -1));
  });
  throwsDmaOf('ENOENT', 'open', () => files.create(join(directory, 'no', 'directory')));
  throwsDmaOf('EINVAL', 'open', () => files.create('a\0b'));
  throwsDmaOf('ENOENT', 'unlink', () => files.remove(''));
  throwsDmaOf('EISDIR', 'unlink', () => files.remove(directory));
  throwsDmaOf('EBADF', 'ftruncate', () => files.truncate(99999, 1));
  throwsDmaOf('EBADF', 'statx', () => files.hasName(99999));
  using(memory.memfd({ name: 'm', length: 1 }), (fd) => assert.equal(files.hasName(fd), false));
  assert.deepEqual(platform.leaks(), []);
});

test('pages are put into a file and taken out again, seals against shrinking or not', { skip }, () => {
  const page = memory.pageSize;
  const blocks = (fd: number): number => fstatSync(fd).blocks * 512;
  using(memory.memfd({ name: 'sparse', length: 8 * page }), (fd) => {
    assert.equal(blocks(fd), 0);
    files.allocateRange(fd, 2 * page, 3 * page);
    assert.equal(blocks(fd), 3 * page);
    files.writeAt(fd, 2 * page, new Uint8Array([7]));
    files.punch(fd, 2 * page, 2 * page);
    assert.equal(blocks(fd), page);
    assert.equal(files.status(fd).size, 8 * page);
    const into = new Uint8Array([1]);
    files.readAt(fd, 2 * page, into);
    assert.equal(into[0], 0);
    throwsDmaOf('EPERM', 'fallocate', () => files.allocateRange(fd, 8 * page, page));
    for (const [offset, length] of [
      [-1, page],
      [0, 0],
      [0, NaN],
      [2 ** 52, 2 ** 52],
    ])
      for (const call of [files.allocateRange, files.punch])
        throwsDmaOf('EINVAL', 'fallocate', () => call(fd, offset, length));
  });
  throwsDmaOf('EBADF', 'fallocate', () => files.punch(99999, 0, page));
});

test('a lock keeps others out until the last descriptor of its file is closed', { skip }, () => {
  const path = join(directory, 'lock');
  const first = files.create(path);
  const second = files.create(path);
  assert.equal(files.lock(first, 'exclusive'), true);
  assert.equal(files.lock(first, 'exclusive'), true);
  assert.equal(files.lock(second, 'shared'), false);
  assert.equal(files.lock(second, 'exclusive'), false);
  const copy = files.duplicate(first);
  files.close(first);
  assert.equal(files.lock(second, 'shared'), false);
  files.close(copy);
  assert.equal(files.lock(second, 'shared'), true);
  using(files.create(path), (third) => {
    assert.equal(files.lock(third, 'shared'), true);
    assert.equal(files.lock(third, 'exclusive'), false);
  });
  files.close(second);
  throwsDmaOf('EBADF', 'flock', () => files.lock(99999, 'shared'));
  throwsDmaOf('EBADF', 'flock', () => files.lock(NaN, 'shared'));
  assert.deepEqual(platform.leaks(), []);
});

test('offsets past 2^32 arrive whole', { skip }, () => {
  using(memory.memfd({ name: 'far', length: 2 ** 33 }), (fd) => {
    files.writeAt(fd, 2 ** 32 + 7, new Uint8Array([42]));
    const into = new Uint8Array(1);
    files.readAt(fd, 7, into);
    assert.equal(into[0], 0);
    files.readAt(fd, 2 ** 32 + 7, into);
    assert.equal(into[0], 42);
  });
});

test('a duplicate is the same file and outlives the first', { skip }, () => {
  const fd = memory.memfd({ name: 'twice', length: 4096 });
  const second = files.duplicate(fd);
  files.writeAt(fd, 0, new Uint8Array([5]));
  files.close(fd);
  const into = new Uint8Array(1);
  files.readAt(second, 0, into);
  assert.equal(into[0], 5);
  files.close(second);
  assert.deepEqual(platform.leaks(), []);
});

test(
  'a socket that lingers for hours over what nobody reads is closed at once, and so is what comes next',
  { skip },
  async () => {
    const libc = loadLibc();
    assert.ok(typeof libc !== 'string');
    const others: number[] = [];
    const fds = [tcpPair(libc, others).lingering(), openSync('/dev/null', 'r')];
    for (const fd of fds) files.closeForeign(fd);
    await until(() => files.closing() === 0);
    for (const fd of fds) assert.throws(() => fstatSync(fd), { code: 'EBADF' });
    others.forEach((fd) => void libc.close(fd));
  },
);
