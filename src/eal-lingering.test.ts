/** Memory that a server was given and never gave back: nobody else gets it before the server's process has ended. */
import assert from 'node:assert/strict';
import { fork, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { Eal, isDmaError, KiB, type MemoryOptions } from './index.js';
import { openPlatform } from './platform/open.js';
import { until } from '../test/shared/until.js';
import type { Platform } from './platform/ports.js';
import { failingPlatform, trackingPlatform } from '../test/fakes/platform/platforms.js';

const skip = openPlatform().limitation ?? false;

async function withDeafServer(
  work: (eal: Eal, path: string, server: ChildProcess) => Promise<void>,
  platform?: Platform,
  memory?: MemoryOptions,
): Promise<void> {
  const directory = mkdtempSync(join(tmpdir(), 'deaf-'));
  const path = join(directory, 's');
  const server = fork(fileURLToPath(new URL('../test/hostile/deaf-server.js', import.meta.url)), [path], {
    execArgv: [],
  });
  try {
    await once(server, 'message');
    const eal = await Eal.start({ drivers: [], platform, memory });
    try {
      await work(eal, path, server);
    } finally {
      await eal.stop();
    }
  } finally {
    server.kill('SIGKILL');
    rmSync(directory, { recursive: true });
  }
}

for (const form of ['unmap', 'unmapAsync'] as const)
  test(
    `${form}: without an answer it is an error, and the memory of heaps stays out of use until the server has ended`,
    { skip },
    () =>
      withDeafServer(async (eal, path, server) => {
        const given = eal.external.allocate(256 * KiB);
        const heap = eal.heaps.create('given');
        eal.heaps.addMemory('given', given);
        const device = await eal.probe(`bus=vfio-user,name=${path},timeout=1000/driver=raw`);
        const before = heap.malloc(64 * KiB);
        const own = eal.external.allocate(64 * KiB);
        const mapping = device.dmaMap(own);
        const failed = (error: unknown): boolean => {
          assert.ok(isDmaError(error, 'ETIMEDOUT'), String(error));
          assert.equal(error.device, device.name);
          assert.ok(error.range !== undefined && /may still write/.test(error.hint ?? ''), String(error));
          return true;
        };
        if (form === 'unmap') assert.throws(() => mapping.unmap(), failed);
        else await assert.rejects(mapping.unmapAsync(), failed);
        // Clean-up is quiet, and external memory lets its own file go.
        mapping[Symbol.dispose]();
        own.unregister();
        const { va } = before;
        before.free();
        assert.throws(
          () => heap.malloc(64),
          (error) => isDmaError(error, 'ENOMEM'),
        );
        const others = Array.from({ length: 8 }, () => eal.external.allocate(256 * KiB));
        server.send('write');
        await once(server, 'message');
        for (const other of others) assert.ok(other.bytes().every((byte) => byte === 0));
        const exited = once(server, 'exit');
        server.kill('SIGKILL');
        await exited;
        await until(() => heap.statistics().free > 0);
        assert.equal(heap.malloc(64 * KiB, { zero: true }).va, va);
      }),
  );

test(
  'what a server was given that leaves but lives stays out of use, in heaps and in memory of the library',
  { skip },
  () =>
    withDeafServer(
      async (eal, path, server) => {
        const heap = eal.heaps.create('given');
        eal.heaps.addMemory('given', eal.external.allocate(256 * KiB));
        const device = await eal.probe(`bus=vfio-user,name=${path},timeout=5000/driver=raw`);
        const kept = eal.malloc(4 * KiB, { zero: true });
        const blocks = [heap.malloc(64 * KiB), eal.malloc(64 * KiB)];
        const gone = blocks.map(({ va, length }) => ({ va, end: va + length }));
        server.send('leave');
        await until(() => device.lost !== undefined);
        for (const block of blocks) block.free();
        assert.throws(
          () => heap.malloc(64),
          (error) => isDmaError(error, 'ENOMEM'),
        );
        // As much as was free there, and more.
        const others = Array.from({ length: 64 }, () => eal.malloc(64 * KiB, { zero: true }));
        for (const { va, length } of others) assert.ok(gone.every((old) => va >= old.end || va + length <= old.va));
        server.send('write');
        await once(server, 'message');
        for (const other of others) assert.ok(other.bytes().every((byte) => byte === 0));
        assert.ok(
          kept.bytes().every((byte) => byte === 0xaa),
          'what is in use stays its owner’s, and may be written to',
        );
        const exited = once(server, 'exit');
        server.kill('SIGKILL');
        await exited;
        await until(() => heap.statistics().free > 0);
        heap.malloc(64 * KiB).free();
        for (const block of [kept, ...others]) block.free();
      },
      undefined,
      { noHuge: true },
    ),
);

test('with share=never a server that does not answer has nothing to hold on to', { skip }, () =>
  withDeafServer(async (eal, path, server) => {
    const heap = eal.heaps.create('given');
    eal.heaps.addMemory('given', eal.external.allocate(256 * KiB));
    const device = await eal.probe(`bus=vfio-user,name=${path},timeout=1000,share=never/driver=raw`);
    const own = eal.external.allocate(64 * KiB);
    const mapping = device.dmaMap(own);
    // The server is given up, and what it was never given is free at once.
    mapping.unmap();
    assert.ok(device.lost !== undefined);
    own.unregister();
    const block = heap.malloc(64 * KiB, { zero: true });
    server.send('write');
    await once(server, 'message');
    assert.ok(block.bytes().every((byte) => byte === 0));
    block.free();
  }),
);

test('a server that has ended has given everything back', { skip }, () =>
  withDeafServer(async (eal, path, server) => {
    const heap = eal.heaps.create('given');
    eal.heaps.addMemory('given', eal.external.allocate(256 * KiB));
    const device = await eal.probe(`bus=vfio-user,name=${path},timeout=1000/driver=raw`);
    const exited = once(server, 'exit');
    server.kill('SIGKILL');
    await exited;
    await until(() => device.lost !== undefined);
    heap.malloc(64 * KiB).free();
    assert.equal(heap.statistics().free, 256 * KiB);
  }),
);

test('its process is watched until the last memory that it was given has gone', { skip }, () => {
  const tracking = trackingPlatform(openPlatform());
  const watched = (): boolean => tracking.leaks().some((line) => line.includes('peerProcess'));
  return withDeafServer(async (eal, path) => {
    const [first, second] = [eal.external.allocate(64 * KiB), eal.external.allocate(64 * KiB)];
    const device = await eal.probe(`bus=vfio-user,name=${path},timeout=1000/driver=raw`);
    const mapping = device.dmaMap(first);
    device.dmaMap(second);
    assert.throws(() => mapping.unmap());
    first.unregister();
    assert.equal(watched(), true);
    await second.unregisterAsync();
    assert.equal(watched(), false);
    await eal.stop();
    assert.deepEqual(tracking.leaks(), []);
  }, tracking);
});

for (const call of ['readiness.wait', 'readiness.watch', 'Watch.setRef'])
  test(`${call} fails for its process: the memory stays out of use, and nothing is left`, { skip }, () => {
    const tracking = trackingPlatform(openPlatform());
    const platform = failingPlatform(tracking);
    return withDeafServer(async (eal, path) => {
      const given = eal.external.allocate(64 * KiB);
      const heap = eal.heaps.create('given');
      eal.heaps.addMemory('given', given);
      const device = await eal.probe(`bus=vfio-user,name=${path},timeout=1000/driver=raw`);
      const unmapping = device.dmaMap(eal.external.allocate(64 * KiB)).unmapAsync();
      platform.failCall(1, 'ENOMEM', call);
      await assert.rejects(unmapping, (error) => isDmaError(error, 'ETIMEDOUT'));
      assert.equal(platform.failed(), call);
      assert.throws(
        () => heap.malloc(64),
        (error) => isDmaError(error, 'ENOMEM'),
      );
      await eal.stop();
      assert.deepEqual(tracking.leaks(), []);
    }, platform);
  });
