import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import assert from 'node:assert/strict';
import { isDmaError } from '../../../src/errors.js';
import type { Va } from '../../../src/units.js';
import { openPlatform } from '../../../src/platform/open.js';
import { portablePlatform } from '../../../src/platform/portable.js';
import type { IoctlPort, Platform } from '../../../src/platform/ports.js';
import { Struct } from '../../../src/platform/struct.js';
import { failingPlatform, ioctlPort, trackingPlatform } from './platforms.js';
import { IOMMU_FAULT_ALLOC } from '../../../src/platform/uapi/iommufd.js';

const skip = openPlatform().limitation ?? false;

test('the nth call fails, and only that', () => {
  const platform = failingPlatform(portablePlatform('a test'));
  const { memory } = platform;
  assert.deepEqual([platform.name, platform.limitation, memory.pageSize], ['portable', 'a test', 4096]);
  assert.equal(platform.memory, memory);
  platform.failCall(2, 'ENOMEM');
  const va = memory.map({ length: 4096 });
  assert.equal(platform.failed(), undefined);
  assert.throws(
    () => memory.map({ length: 4096 }),
    (error) => isDmaError(error, 'ENOMEM') && error.operation === 'memory.map',
  );
  assert.equal(platform.failed(), 'memory.map');
  memory.unmap(va, 4096);
  memory.unmap(memory.map({ length: 4096 }), 4096);
  assert.deepEqual([platform.calls('memory.map'), platform.calls('memory.unmap'), platform.calls()], [3, 2, 3]);
  assert.equal(platform.calls('memory.view'), 0);
});

test('calls are counted by name when one is given', () => {
  const platform = failingPlatform(portablePlatform('a test'));
  const { memory } = platform;
  platform.failCall(1, 'EIO', 'memory.view');
  const va = memory.map({ length: 4096 });
  assert.throws(() => memory.view(va, 4096), { code: 'EIO' });
  assert.equal(memory.view(va, 4096).byteLength, 4096);
  platform.failCall(1, 'EBUSY', 'memory.unmap');
  assert.throws(() => memory.unmap(va, 4096), { code: 'EBUSY' });
  memory.unmap(va, 4096);
  assert.equal(platform.failed(), 'memory.unmap');
});

test('clean-up fails only when asked for', () => {
  const spare = failingPlatform(portablePlatform('a test'));
  const va = spare.memory.map({ length: 4096 });
  spare.failCall(1, 'EIO');
  spare.memory.unmap(va, 4096);
  assert.equal(spare.failed(), undefined);
  const strict = failingPlatform(portablePlatform('a test'), { cleanup: true });
  const other = strict.memory.map({ length: 4096 });
  strict.failCall(1, 'EIO');
  assert.throws(() => strict.memory.unmap(other, 4096), { code: 'EIO' });
  assert.equal(strict.calls(), 2);
});

test('ioctls have their own names, and those that undo are clean-up', () => {
  const calls: string[] = [];
  const call: IoctlPort['call'] = (_fd, _request, _argument, name) => calls.push(name);
  const platform = failingPlatform({ ...portablePlatform('a test'), ioctl: ioctlPort(call) });
  platform.failCall(1, 'ENOSPC', 'ioctl.VFIO_IOMMU_MAP_DMA');
  platform.ioctl.call(7, 1, 0, 'VFIO_SET_IOMMU');
  assert.throws(() => platform.ioctl.call(7, 2, 0, 'VFIO_IOMMU_MAP_DMA'), { code: 'ENOSPC' });
  platform.failCall(1, 'EIO');
  platform.ioctl.call(7, 3, 0, 'VFIO_IOMMU_UNMAP_DMA');
  assert.equal(platform.failed(), undefined);
  assert.throws(() => platform.ioctl.call(7, 1, 0, 'VFIO_SET_IOMMU'), { code: 'EIO' });
  assert.deepEqual(calls, ['VFIO_SET_IOMMU', 'VFIO_IOMMU_UNMAP_DMA']);
  assert.equal(platform.calls('ioctl.VFIO_SET_IOMMU'), 2);
});

test('descriptors that ioctls make are told', () => {
  const portable = portablePlatform('a test');
  const call: IoctlPort['call'] = (_fd, _request, argument, name) => {
    if (name !== 'IOMMU_FAULT_QUEUE_ALLOC') return 40;
    if (typeof argument !== 'number') argument[IOMMU_FAULT_ALLOC.out_fault_fd] = 41;
    return 0;
  };
  const platform = trackingPlatform({
    ...portable,
    files: { ...portable.files, close: () => {} },
    ioctl: ioctlPort(call),
  });
  platform.ioctl.call(3, 1, new Uint8Array(8), 'VFIO_GROUP_GET_DEVICE_FD');
  platform.ioctl.call(4, 1, new Struct(IOMMU_FAULT_ALLOC.sizeof).bytes, 'IOMMU_FAULT_QUEUE_ALLOC');
  platform.ioctl.call(4, 1, 0, 'VFIO_CHECK_EXTENSION');
  assert.deepEqual(
    platform.leaks().map((line) => line.split('(')[0]),
    ['fd 40 of ioctl.VFIO_GROUP_GET_DEVICE_FD', 'fd 41 of ioctl.IOMMU_FAULT_QUEUE_ALLOC'],
  );
  for (const fd of [40, 41]) platform.files.close(fd);
  assert.deepEqual(platform.leaks(), []);
});

/** Makes one of everything, and gives all back that it made, whatever fails. */
function scenario({ memory, files, events, sockets, readiness }: Platform): void {
  const undo: (() => void)[] = [];
  try {
    const fd = memory.memfd({ name: 'scenario', length: 4096 });
    undo.push(() => files.close(fd));
    const va = memory.map({ fd, length: 4096 });
    undo.push(() => memory.unmap(va, 4096));
    const view = memory.view(va, 4096);
    undo.push(() => memory.detach(view));
    const [a, b] = sockets.pair();
    undo.push(
      () => files.close(a),
      () => files.close(b),
    );
    sockets.send(a, new Uint8Array(1), 0, [fd, fd]);
    const received = sockets.receive(b, new Uint8Array(8), 4);
    for (const each of received?.fds ?? []) undo.push(() => files.close(each));
    const event = events.create();
    undo.push(() => files.close(event));
    const watch = readiness.watch(event, { readable: true }, () => {});
    undo.push(() => watch.close());
    watch.setRef(false);
  } finally {
    for (const step of undo.reverse()) step();
  }
}

test('a scenario is run again with its 1st, 2nd, ... call failing, and nothing is left', { skip }, () => {
  const tracked = trackingPlatform(openPlatform());
  const failed: string[] = [];
  for (let n = 1; ; n++) {
    const platform = failingPlatform(tracked);
    platform.failCall(n, 'EIO');
    let error: unknown;
    try {
      scenario(platform);
    } catch (caught) {
      error = caught;
    }
    assert.deepEqual(tracked.leaks(), []);
    const name = platform.failed();
    if (name === undefined) {
      assert.equal(error, undefined);
      assert.equal(platform.calls(), n - 1);
      assert.equal(platform.calls('Watch.close'), 1);
      break;
    }
    assert.ok(isDmaError(error, 'EIO') && error.operation === name);
    failed.push(name);
  }
  assert.deepEqual(failed, [
    'memory.memfd',
    'memory.map',
    'memory.view',
    'sockets.pair',
    'sockets.send',
    'sockets.receive',
    'events.create',
    'readiness.watch',
    'Watch.setRef',
  ]);
});

test('each thing that is left open is told, oldest first', { skip }, () => {
  const platform = trackingPlatform(openPlatform());
  const { memory, files, events, sockets, readiness } = platform;
  const fd = memory.memfd({ name: 'left', length: 4096 });
  const va = memory.map({ fd, length: 4096 });
  const view = memory.view(va, 4096);
  const second = files.duplicate(fd);
  const event = events.create();
  const watch = readiness.watch(event, { readable: true }, () => {});
  const [a, b] = sockets.pair();
  sockets.send(a, new Uint8Array(1), 0, [fd, fd]);
  const received = sockets.receive(b, new Uint8Array(1), 2)?.fds ?? [];
  const directory = mkdtempSync(join(tmpdir(), 'left-'));
  const path = join(directory, 'socket');
  assert.throws(() => sockets.connect(path));
  assert.equal(sockets.accept(sockets.listen(path, 1)), undefined);
  const leaks = platform.leaks();
  assert.equal(leaks.length, 11);
  for (const [i, pattern] of [/^fd \d+ of memory.memfd.*left/, /^mapping at 0x.*4096/, /^view of 4096/].entries())
    assert.match(leaks[i], pattern);
  assert.equal(leaks[5], `watch on fd ${event}`);
  assert.match(leaks[10], /^fd \d+ of sockets.listen\(".*socket"\)/);
  watch.close();
  memory.detach(view);
  memory.unmap(va, 4096);
  const server = Number(/\d+/.exec(leaks[10])?.[0]);
  for (const each of [fd, second, event, a, b, server, ...received]) files.close(each);
  rmSync(directory, { recursive: true });
  assert.deepEqual(platform.leaks(), []);
});

test('what is committed inside a reservation is told in the pieces that are left', { skip }, () => {
  const platform = trackingPlatform(openPlatform());
  const { memory, files } = platform;
  const page = memory.pageSize;
  const va = memory.reserve(8 * page, page);
  memory.commit(va, { length: 6 * page });
  memory.decommit((va + page) as Va, page);
  memory.decommit((va + 4 * page) as Va, 4 * page);
  const [reservation, ...parts] = platform.leaks();
  assert.match(reservation, /^mapping at 0x/);
  assert.deepEqual(
    parts.map((line) => Number(/^\d+/.exec(line)?.[0])),
    [page, 2 * page],
  );
  memory.unmap(va, 8 * page);
  assert.deepEqual(platform.leaks(), []);
  const directory = mkdtempSync(join(tmpdir(), 'made-'));
  const fd = files.create(join(directory, 'file'));
  assert.match(platform.leaks()[0], /^fd \d+ of files.create/);
  files.close(fd);
  rmSync(directory, { recursive: true });
  assert.deepEqual(platform.leaks(), []);
});

test('decommit, punch and remove are clean-up', { skip }, () => {
  const platform = failingPlatform(openPlatform());
  const { memory, files } = platform;
  const page = memory.pageSize;
  const fd = memory.memfd({ name: 'x', length: page });
  const va = memory.reserve(page, page);
  memory.commit(va, { length: page, fd });
  platform.failCall(1, 'EIO');
  memory.decommit(va, page);
  files.punch(fd, 0, page);
  assert.equal(platform.failed(), undefined);
  platform.failCall(1, 'EIO', 'files.punch');
  assert.throws(() => files.punch(fd, 0, page), { code: 'EIO', operation: 'files.punch' });
  memory.unmap(va, page);
  files.close(fd);
});
