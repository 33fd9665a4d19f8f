/** Long work through the public door: the event loop goes on, and giving up takes effect between pieces. */
import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { Eal, isDmaError, MiB, type EalOptions, type Progress } from './index.js';
import { openPlatform } from './platform/open.js';
import { trackingPlatform } from './platform/testing.js';
import { vfioKernel } from './vfio/testing.js';

const skip = openPlatform().limitation ?? false;
const QUIET: EalOptions = { memory: { noHuge: true }, onForgotten: () => undefined };

/** Counts how often a timer ticks until it is told to stop. */
function ticking(): () => number {
  let ticks = 0;
  const timer = setInterval(() => ticks++, 1);
  return () => {
    clearInterval(timer);
    return ticks;
  };
}

function isCanceled(error: unknown): boolean {
  return isDmaError(error, 'ECANCELED');
}

describe('memory that grows without blocking', { skip }, () => {
  it('lets timers run, tells how far it is and how long the rest takes, and every device has it', async () => {
    await using eal = await Eal.start(QUIET);
    const device = await eal.probe('vdev:copy0');
    const told: Progress[] = [];
    const stop = ticking();
    using block = await eal.mallocAsync(256 * MiB, { onProgress: (progress) => told.push(progress) });
    assert.ok(stop() > 2, 'the event loop stood still');
    assert.notEqual(device.domain?.iovaOf(block.va), -1);
    assert.ok(told.length > 4);
    assert.deepEqual(told.at(-1)?.doneBytes, told.at(-1)?.totalBytes);
    assert.ok(told.every(({ remainingMs }) => remainingMs !== undefined && remainingMs >= 0));
    assert.ok(told.every(({ doneBytes }, i) => i === 0 || doneBytes > told[i - 1].doneBytes));
  });

  it('is given up by a timer before it is done, and nothing is left', async () => {
    const platform = trackingPlatform(openPlatform());
    const eal = await Eal.start({ ...QUIET, platform });
    const device = await eal.probe('vdev:copy0');
    const entries = device.domain?.entries;
    const abort = new AbortController();
    let last = 0;
    const growing = eal.mallocAsync(1024 * MiB, {
      signal: abort.signal,
      onProgress: ({ doneBytes, totalBytes }) => (last = doneBytes / totalBytes),
    });
    setTimeout(() => abort.abort(new Error('a timer')), 5);
    await assert.rejects(growing, isCanceled);
    assert.ok(last < 1);
    assert.equal(device.domain?.entries, entries);
    assert.equal(eal.memory.facts().heaps[0].total, 0);
    eal.malloc(MiB).free();
    await eal.stop();
    assert.deepEqual(platform.leaks(), []);
  });

  it('other allocations go on meanwhile, and the end of the Eal gives it up', async () => {
    const platform = trackingPlatform(openPlatform());
    const eal = await Eal.start({ ...QUIET, platform });
    const growing = eal.mallocAsync(1024 * MiB);
    const rejected = assert.rejects(growing, isCanceled);
    await new Promise((resolve) => setTimeout(resolve, 2));
    const block = eal.malloc(MiB);
    block.bytes().fill(1);
    await eal.stop();
    await rejected;
    assert.deepEqual(platform.leaks(), []);
  });

  it('one growth after the other: what the first brought serves the second', async () => {
    await using eal = await Eal.start(QUIET);
    const blocks = await Promise.all(Array.from({ length: 8 }, () => eal.mallocAsync(MiB, { zero: true })));
    assert.equal(new Set(blocks.map(({ va }) => va)).size, 8);
    assert.ok(eal.memory.facts().heaps[0].total <= 32 * MiB);
    assert.ok(blocks.every((block) => block.bytes().every((byte) => byte === 0)));
  });

  it('at the start, too', async () => {
    const stop = ticking();
    let last: Progress | undefined;
    await using eal = await Eal.start({
      memory: { noHuge: true, size: 256 * MiB },
      onProgress: (progress) => (last = progress),
    });
    assert.ok(stop() > 2, 'the event loop stood still');
    assert.equal(last?.doneBytes, 256 * MiB);
    assert.equal(eal.memory.facts().heaps[0].total, 256 * MiB);
    const abort = new AbortController();
    setTimeout(() => abort.abort(), 5);
    await assert.rejects(Eal.start({ memory: { noHuge: true, size: 1024 * MiB }, signal: abort.signal }), isCanceled);
  });

  it('refuses what are no options for it', async () => {
    await using eal = await Eal.start(QUIET);
    for (const wrong of [{ signal: {} }, { onProgress: 1 }, { bogus: 1 }])
      await assert.rejects(eal.mallocAsync(64, wrong as never), (error) => isDmaError(error, 'EINVAL'));
  });
});

for (const iommu of ['type1', 'iommufd'] as const)
  describe(`mapping for a device behind ${iommu} without blocking`, { skip }, () => {
    it('is given up by a timer between two pieces; meanwhile the memory is held', async () => {
      using kernel = vfioKernel({ iommu, devices: [{ name: '0000:00:02.0' }], mapsFiles: false });
      await using eal = await Eal.start({ ...QUIET, platform: kernel.platform, iommu });
      const device = await eal.probe('pci:0000:00:02.0');
      using memory = eal.external.allocate(64 * MiB);
      const abort = new AbortController();
      let last = 0;
      const mapping = device.dmaMapAsync(memory, {
        chunkBytes: 64 * 1024,
        signal: abort.signal,
        onProgress: ({ doneBytes, totalBytes }) => (last = doneBytes / totalBytes),
      });
      const rejected = assert.rejects(mapping, isCanceled);
      assert.throws(
        () => memory.unregister(),
        (error) => isDmaError(error, 'EBUSY'),
      );
      setTimeout(() => abort.abort(new Error('a timer')), 2);
      await rejected;
      assert.ok(last < 1);
      assert.deepEqual(kernel.mappings('0000:00:02.0'), []);

      const stop = ticking();
      const whole = await device.dmaMapAsync(memory);
      assert.equal(whole.segments.length, 1);
      await whole.unmapAsync();
      stop();
      assert.deepEqual(kernel.mappings('0000:00:02.0'), []);
    });
  });

describe('books of what runs', () => {
  it('an unmapAsync that begins while its device is removed is waited for', async () => {
    for (let gaps = 0; gaps < 12; gaps++) {
      await using eal = await Eal.start({ onForgotten: () => undefined });
      const device = await eal.probe('vdev:copy0');
      using memory = eal.external.allocate(4096);
      const map = device.dmaMap(memory);
      const removed = eal.remove(device);
      for (let i = 0; i < gaps; i++) await Promise.resolve();
      await map.unmapAsync().catch((error: unknown) => assert.ok(isDmaError(error, 'EINVAL')));
      await removed;
      assert.equal(memory.area.holders.size, 0);
    }
  });

  it('stop waits for a group that is being unmapped', async () => {
    const eal = await Eal.start({ onForgotten: () => undefined });
    await eal.probe('vdev:copy0');
    const memory = eal.external.allocate(4096);
    const group = eal.dmaMapAll(memory);
    const unmapping = group.unmapAsync();
    await eal.stop();
    await unmapping;
    assert.equal(memory.registered, false);
  });
});
