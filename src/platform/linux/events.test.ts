import { writeSync } from 'node:fs';
import { test } from 'node:test';
import assert from 'node:assert/strict';
import { isDmaError } from '../../errors.js';
import { openPlatform } from '../open.js';
import { F_SETFL } from '../uapi/fcntl.js';
import { loadLibc } from './libc.js';

const platform = openPlatform();
const { events, files, sockets } = platform;
const skip = platform.limitation ?? false;

test('signals are counted until they are taken', { skip }, () => {
  const fd = events.create();
  assert.equal(events.take(fd), 0);
  events.signal(fd);
  assert.equal(events.take(fd), 1);
  for (let i = 0; i < 1000; i++) events.signal(fd);
  assert.equal(events.take(fd), 1000);
  assert.equal(events.take(fd), 0);
  const second = files.duplicate(fd);
  events.signal(second);
  assert.equal(events.take(fd), 1);
  files.close(fd);
  files.close(second);
});

test('a count past 2^32 is told exactly', { skip }, () => {
  const fd = events.create();
  // As another program adds to it: any number at once.
  writeSync(fd, new BigUint64Array([2n ** 40n + 3n]));
  assert.equal(events.take(fd), 2 ** 40 + 3);
  files.close(fd);
});

test('the kernel adds to the eventfd of another process, which may be blocking and full', { skip }, () => {
  const fd = events.create();
  for (let i = 0; i < 1000; i++) events.signalForeign(fd);
  assert.equal(events.take(fd), 1000);
  const libc = loadLibc();
  assert.ok(typeof libc !== 'string');
  writeSync(fd, new BigUint64Array([2n ** 64n - 2n]));
  // A write(2) would wait from here on.
  assert.equal(libc.fcntl(fd, F_SETFL, 0), 0);
  events.signalForeign(fd);
  files.close(fd);
  const memory = platform.memory.memfd({ name: 'no event', length: 4096 });
  assert.throws(() => events.signalForeign(memory), { code: 'EINVAL', operation: 'io_submit' });
  files.close(memory);
});

test('a socket can stand for an event, and a full one says so', { skip }, () => {
  const [a, b] = sockets.pair();
  events.signal(a);
  assert.equal(events.take(b), 1);
  assert.throws(
    () => {
      for (let i = 0; i < 1_000_000; i++) events.signal(a);
    },
    (error) => isDmaError(error, 'EAGAIN') && error.operation === 'write',
  );
  files.close(a);
  files.close(b);
});

test('what is no descriptor is EBADF', { skip }, () => {
  for (const fd of [99999, -1, NaN]) {
    assert.throws(() => events.signal(fd), { code: 'EBADF', operation: 'write' });
    assert.throws(() => events.signalForeign(fd), { code: 'EBADF', operation: 'io_submit' });
    assert.throws(() => events.take(fd), { code: 'EBADF', operation: 'read' });
  }
});
