import { test } from 'node:test';
import assert from 'node:assert/strict';
import { isDmaError } from '../errors.js';
import type { Va } from '../units.js';
import { portablePlatform } from './portable.js';
import { trackingPlatform } from '../../test/fakes/platform/platforms.js';

const REASON = 'this is a test';
const portable = (): ReturnType<typeof trackingPlatform> => trackingPlatform(portablePlatform(REASON));
const PAGE = 4096;

test('what needs a system call is ENOTSUP with the reason', () => {
  const platform = portable();
  assert.deepEqual([platform.name, platform.limitation], ['portable', REASON]);
  const { memory, files, sockets, events, readiness, ioctl, limits, kernel } = platform;
  for (const action of [
    () => files.open('/', 'read'),
    () => files.create('x'),
    () => files.remove('x'),
    () => files.hasName(0),
    () => files.truncate(0, 0),
    () => files.allocateRange(0, 0, 1),
    () => files.punch(0, 0, 1),
    () => files.lock(0, 'shared'),
    () => kernel.writeText('/x', '1'),
    () => kernel.changeOwner('/x', 0, 0),
    () => kernel.makeDirectory('/x'),
    () => kernel.mount({ source: 'x', target: '/x', type: 'x', options: '' }),
    () => kernel.unmount('/x'),
    () => memory.reserve(PAGE, PAGE),
    () => memory.commit(0 as Va, { length: PAGE }),
    () => memory.populate(0 as Va, PAGE),
    () => memory.decommit(0 as Va, PAGE),
    () => memory.bind(0 as Va, PAGE, 0),
    () => memory.lock(0 as Va, PAGE),
    () => files.close(0),
    () => files.duplicate(0),
    () => files.status(0),
    () => files.sealedAgainstShrinking(0, false),
    () => files.readAt(0, 0, new Uint8Array(1)),
    () => files.writeAt(0, 0, new Uint8Array(1)),
    () => files.read(0, new Uint8Array(1)),
    () => files.write(0, new Uint8Array(1)),
    () => sockets.connect('x'),
    () => sockets.listen('x', 1),
    () => sockets.accept(0),
    () => sockets.pair(),
    () => sockets.send(0, new Uint8Array(1), 0, []),
    () => sockets.receive(0, new Uint8Array(1), 0),
    () => sockets.shutdown(0),
    () => events.create(),
    () => events.signal(0),
    () => events.take(0),
    () => readiness.watch(0, { readable: true }, () => {}),
    () => readiness.wait([], 0),
    () => ioctl.call(0, 0, 0, 'X'),
    () => memory.memfd({ name: 'x', length: PAGE }),
    () => memory.map({ length: PAGE, fd: 3 }),
    () => memory.map({ length: PAGE, writable: false }),
    () => memory.map({ length: PAGE, hugePageSize: 2 ** 21 }),
  ])
    assert.throws(action, (error) => isDmaError(error, 'ENOTSUP') && error.reason.includes(REASON), String(action));
  assert.deepEqual(limits.lockedMemory(), { limit: Infinity, used: 0 });
  assert.equal(limits.pinnedMemory(), 0);
  assert.equal(limits.freeHugePages(2 ** 21), undefined);
  assert.equal(kernel.readText('/proc/self/status'), undefined);
  assert.deepEqual(kernel.list('/'), []);
  assert.equal(kernel.readLink('/proc/self'), undefined);
  assert.equal(kernel.mayOpen('/'), 'no-such-file');
  assert.equal(kernel.log(), undefined);
  assert.deepEqual([...memory.nodesOf(0 as Va, PAGE, 2)], [-1, -1]);
  assert.equal(memory.frames(0 as Va, PAGE, 2), undefined);
});

test('memory has made-up addresses on pages of its own, with holes between', () => {
  const platform = portable();
  const { memory } = platform;
  const first = memory.map({ length: 2 * PAGE, populate: true });
  const second = memory.map({ length: PAGE });
  assert.equal(first % PAGE, 0);
  assert.ok(second >= first + 3 * PAGE);
  const buffer = memory.view(first, 2 * PAGE);
  assert.equal(memory.view(first, 2 * PAGE), buffer);
  assert.equal(buffer.byteLength, 2 * PAGE);
  assert.equal(memory.addressOf(buffer), first);
  assert.equal(memory.addressOf(new Uint8Array(buffer, 100)), first + 100);
  assert.equal(memory.addressOf(new DataView(buffer, 7)), first + 7);
  assert.throws(() => memory.view(first, PAGE), { code: 'ENOTSUP' });
  assert.throws(() => memory.view((first + PAGE) as Va, PAGE), { code: 'ENOTSUP' });
  assert.equal(memory.protection(first, 2 * PAGE), 'read-write');
  assert.equal(memory.protection((first + PAGE) as Va, 5), 'read-write');
  assert.equal(memory.protection((first + PAGE) as Va, PAGE + 1), 'none');
  assert.throws(() => memory.unmap(first, PAGE), { code: 'EINVAL' });
  assert.throws(() => memory.unmap((first + PAGE) as Va, PAGE), { code: 'EINVAL' });
  memory.detach(buffer);
  memory.detach(buffer);
  assert.equal(buffer.byteLength, 0);
  memory.unmap(first, 2 * PAGE);
  assert.throws(() => memory.unmap(first, 2 * PAGE), { code: 'EINVAL' });
  memory.unmap(second, PAGE);
  assert.equal(memory.protection(second, PAGE), 'none');
  assert.deepEqual(platform.leaks(), []);
});

test('impossible lengths are refused', () => {
  const { memory } = portable();
  for (const length of [0, 1, -PAGE, NaN, PAGE + 1]) assert.throws(() => memory.map({ length }), { code: 'EINVAL' });
  assert.throws(() => memory.map({ length: 2 ** 52 }), { code: 'ENOMEM', operation: 'mmap' });
});

test('a buffer of the program gets an address on the first question, and keeps it', () => {
  const { memory } = portable();
  const buffer = new ArrayBuffer(10_000);
  const va = memory.addressOf(new Uint8Array(buffer, 5000, 10));
  assert.equal(va % PAGE, 5000 % PAGE);
  assert.equal(memory.addressOf(buffer), va - 5000);
  assert.equal(memory.view((va - 5000) as Va, 10_000), buffer);
  assert.equal(memory.protection(va, 5000), 'read-write');
  assert.equal(memory.protection(va, 5001), 'none');
  const shared = new SharedArrayBuffer(8);
  assert.equal(memory.addressOf(shared), memory.addressOf(new Int32Array(shared)));
  const data = new DataView(buffer);
  memory.detach(buffer);
  for (const empty of [buffer, data, new Uint8Array(0), new ArrayBuffer(0)])
    assert.throws(() => memory.addressOf(empty), { code: 'EINVAL', operation: 'addressOf' });
  assert.equal(memory.protection(va, 1), 'none');
});
