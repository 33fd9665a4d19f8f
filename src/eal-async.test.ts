/** Long work through the public door: the event loop goes on, and giving up takes effect between pieces. */
import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { Eal, isDmaError, MiB, type DmaError, type EalOptions, type Progress } from './index.js';
import { openPlatform } from './platform/open.js';
import { failingPlatform, trackingPlatform } from '../test/fakes/platform/platforms.js';
import { fakeVfioKernel } from '../test/fakes/vfio/kernel.js';

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

function isCanceled(error: unknown): error is DmaError {
  return isDmaError(error, 'ECANCELED');
}

function isBusy(error: unknown): boolean {
  return isDmaError(error, 'EBUSY');
}

/** A handler that does not let memory go when it is first asked. */
function refuseOnce(): () => void {
  let asked = false;
  return () => {
    if (asked) return;
    asked = true;
    throw new Error('not now');
  };
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
    await assert.rejects(growing, (error) => isCanceled(error) && error.operation === 'mallocAsync');
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

describe('every call that takes long has a form that lets the event loop go on', { skip }, () => {
  it('external.allocateAsync: its pages are there, and it is told how far it is', async () => {
    await using eal = await Eal.start(QUIET);
    const told: Progress[] = [];
    const stop = ticking();
    const memory = await eal.external.allocateAsync(256 * MiB, { onProgress: (progress) => told.push(progress) });
    assert.ok(stop() > 2, 'the event loop stood still');
    assert.equal(told.at(-1)?.doneBytes, 256 * MiB);
    assert.ok(memory.bytes(0, MiB).every((byte) => byte === 0));
    assert.ok(memory.origin !== undefined);
    const going = memory.unregisterAsync();
    assert.throws(() => memory.bytes(), isBusy);
    assert.throws(() => memory.unregister(), isBusy);
    await assert.rejects(eal.dmaMapAllAsync(memory), (error) => isDmaError(error, 'EINVAL'));
    await going;
    assert.equal(memory.live, false);
  });

  for (const source of ['memfd', 'anonymous'] as const)
    it(`external.allocateAsync is given up by a timer, or the end of the Eal, and undone: ${source}`, async () => {
      const platform = trackingPlatform(openPlatform());
      const eal = await Eal.start({ ...QUIET, platform });
      const abort = new AbortController();
      setTimeout(() => abort.abort(new Error('a timer')), 5);
      await assert.rejects(eal.external.allocateAsync(1024 * MiB, { source, signal: abort.signal }), isCanceled);
      assert.deepEqual([...eal.external], []);
      assert.deepEqual(platform.leaks(), []);
      const rejected = assert.rejects(eal.external.allocateAsync(1024 * MiB, { source }), isCanceled);
      await new Promise((resolve) => setTimeout(resolve, 2));
      await eal.stop();
      await rejected;
      assert.deepEqual(platform.leaks(), []);
    });

  for (const [kind, holes] of [
    ['with holes', true],
    ['that has its pages', false],
  ] as const)
    it(`external.fromFdAsync of a file ${kind}: its pages are there, and the descriptor is its own`, async () => {
      await using eal = await Eal.start(QUIET);
      const { files, memory: pages } = eal.platform;
      const fd = pages.memfd({ name: 'file', length: 256 * MiB });
      if (!holes) files.allocateRange(fd, 0, 256 * MiB);
      const told: Progress[] = [];
      const stop = ticking();
      const going = eal.external.fromFdAsync(fd, { onProgress: (progress) => told.push(progress) });
      const { allocated } = files.status(fd);
      files.close(fd);
      const memory = await going;
      const ticks = stop();
      if (holes) {
        assert.ok(allocated < 256 * MiB && ticks > 2, 'the event loop stood still');
        assert.equal(told.at(-1)?.doneBytes, 256 * MiB);
        assert.ok(
          told.every(({ remainingMs }) => remainingMs !== undefined && remainingMs >= 0 && remainingMs < Infinity),
        );
      }
      assert.equal(files.status(memory.fd ?? -1).allocated, 256 * MiB);
      memory.bytes(255 * MiB).fill(1);
      assert.ok(memory.origin !== undefined);
    });

  it('external.fromFdAsync is given up by a timer, or the end of the Eal: nothing is registered, no byte is changed', async () => {
    const platform = trackingPlatform(openPlatform());
    const eal = await Eal.start({ ...QUIET, platform });
    const fd = platform.memory.memfd({ name: 'file', length: 1024 * MiB });
    platform.files.writeAt(fd, 0, Uint8Array.of(1, 2, 3));
    const abort = new AbortController();
    const onProgress = (): void => abort.abort(new Error('enough'));
    const given = eal.external.fromFdAsync(fd, { signal: abort.signal, onProgress });
    await assert.rejects(given, { code: 'ECANCELED', operation: 'external.fromFdAsync' });
    assert.deepEqual([...eal.external], []);
    const rejected = assert.rejects(eal.external.fromFdAsync(fd), isCanceled);
    await eal.stop();
    await rejected;
    const bytes = new Uint8Array(3);
    platform.files.readAt(fd, 0, bytes);
    assert.deepEqual([...bytes, platform.files.status(fd).size], [1, 2, 3, 1024 * MiB]);
    platform.files.close(fd);
    assert.deepEqual(platform.leaks(), []);
  });

  it('external.fromFdAsync: whatever step fails, nothing is left', async () => {
    const failing = failingPlatform(openPlatform());
    const platform = trackingPlatform(failing);
    const eal = await Eal.start({ ...QUIET, platform });
    const fd = platform.memory.memfd({ name: 'file', length: 8 * MiB });
    const before = platform.leaks().length;
    for (let n = 1, isDone = false; !isDone; n++) {
      failing.failCall(n, 'EIO');
      const made = await eal.external.fromFdAsync(fd).catch((error: unknown) => {
        assert.ok(isDmaError(error), String(error));
        return undefined;
      });
      isDone = failing.failed() === undefined;
      assert.ok(!isDone || made !== undefined);
      made?.unregister();
      assert.equal(platform.leaks().length, before, `after call ${n} failed: ${String(failing.failed())}`);
      platform.files.punch(fd, 0, 8 * MiB);
    }
    platform.files.close(fd);
    await eal.stop();
  });

  it('memory that is mapped or pinned is not unregistered', async () => {
    await using eal = await Eal.start(QUIET);
    const device = await eal.probe('vdev:copy0');
    const memory = eal.external.allocate(MiB);
    const mapping = device.dmaMap(memory);
    await assert.rejects(memory.unregisterAsync(), isBusy);
    mapping.unmap();
    const pin = memory.pin();
    await assert.rejects(memory.unregisterAsync(), isBusy);
    pin[Symbol.dispose]();
    await memory.unregisterAsync();
    await assert.rejects(memory.unregisterAsync(), (error) => isDmaError(error, 'EINVAL'));
  });

  it('eal.dmaMapAllAsync: every device has it, and later ones too; or none', async () => {
    await using eal = await Eal.start(QUIET);
    const [a, b] = [await eal.probe('vdev:copy0'), await eal.probe('vdev:copy1')];
    const memory = eal.external.allocate(8 * MiB);
    const told: Progress[] = [];
    const some = await eal.dmaMapAllAsync(memory, [a, b], { onProgress: (progress) => told.push(progress) });
    assert.deepEqual(told.at(-1), { doneBytes: 16 * MiB, totalBytes: 16 * MiB, remainingMs: 0 });
    await some.unmapAsync();
    const abort = new AbortController();
    for (const devices of [[a, b], undefined]) {
      let pieces = 0;
      const onProgress = (): void => {
        // In the second device.
        if (++pieces === 6) abort.abort(new Error('enough'));
      };
      const options = { chunkBytes: 2 * MiB, onProgress, signal: abort.signal };
      await assert.rejects(eal.dmaMapAllAsync(memory, devices, options), isCanceled);
      assert.equal(memory.area.holders.size, 0);
    }
    const all = await eal.dmaMapAllAsync(memory);
    const c = await eal.probe('vdev:copy2');
    assert.deepEqual(
      [a, b, c].map((device) => all.of(device)?.live),
      [true, true, true],
    );
    assert.throws(() => memory.unregister(), isBusy);
    await all.unmapAsync();
    assert.equal(memory.area.holders.size, 0);
  });

  it('zones.reserveAsync, pools.createAsync and heaps.addMemoryAsync do what the others do', async () => {
    const platform = trackingPlatform(openPlatform());
    const eal = await Eal.start({ ...QUIET, platform });
    const device = await eal.probe('vdev:copy0');
    const stop = ticking();
    const zone = await eal.zones.reserveAsync('ring', 128 * MiB);
    const pool = await eal.pools.createAsync({ elements: 1024, elementSize: 64 * 1024, zero: true });
    assert.ok(stop() > 2, 'the event loop stood still');
    assert.equal(eal.zones.find('ring'), zone);
    assert.notEqual(device.domain?.iovaOf(zone.va), -1);
    await assert.rejects(eal.zones.reserveAsync('ring', 64), (error) => isDmaError(error, 'EEXIST'));
    assert.equal(pool.available, 1024);
    const memory = await eal.external.allocateAsync(4 * MiB);
    memory.bytes().fill(1);
    const heap = eal.heaps.create('mine');
    await eal.heaps.addMemoryAsync('mine', memory, { clear: true });
    assert.ok(memory.bytes().every((byte) => byte === 0));
    assert.notEqual(device.domain?.iovaOf(memory.va), -1);
    assert.equal(heap.total, 4 * MiB);
    await eal.heaps.removeMemoryAsync('mine', { va: memory.va, length: memory.length });
    assert.equal(device.domain?.iovaOf(memory.va), -1);
    assert.equal(heap.total, 0);
    await eal.stop();
    assert.deepEqual(platform.leaks(), []);
  });

  it('they are given up by a timer, and undone', async () => {
    const platform = trackingPlatform(openPlatform());
    const eal = await Eal.start({ ...QUIET, platform });
    await eal.probe('vdev:copy0');
    const begin: ((signal: AbortSignal) => Promise<unknown>)[] = [
      (signal) => eal.zones.reserveAsync('ring', 1024 * MiB, { signal }),
      (signal) => eal.pools.createAsync({ name: 'p', elements: 1024, elementSize: MiB, signal }),
      (signal) => eal.mallocAsync(1024 * MiB, { signal, zero: true }),
    ];
    for (const work of begin) {
      const abort = new AbortController();
      setTimeout(() => abort.abort(new Error('a timer')), 5);
      await assert.rejects(work(abort.signal), isCanceled);
      await assert.rejects(work(AbortSignal.abort()), isCanceled);
    }
    assert.deepEqual([eal.zones.size, [...eal.pools].length], [0, 0]);
    assert.equal(eal.memory.facts().heaps[0].total, 0);
    const memory = eal.external.allocate(64 * MiB);
    eal.heaps.create('mine');
    const abort = new AbortController();
    const adding = eal.heaps.addMemoryAsync('mine', memory, { clear: true, signal: abort.signal });
    abort.abort();
    await assert.rejects(adding, isCanceled);
    eal.heaps.destroy('mine');
    memory.unregister();
    await eal.stop();
    assert.deepEqual(platform.leaks(), []);
  });

  it('a heap is not destroyed while memory is on its way into it', async () => {
    await using eal = await Eal.start(QUIET);
    const heap = eal.heaps.create('mine');
    const [one, two] = [eal.external.allocate(8 * MiB), eal.external.allocate(8 * MiB)];
    const adding = [one, two].map((memory) => eal.heaps.addMemoryAsync('mine', memory));
    await assert.rejects(eal.heaps.addMemoryAsync('mine', one), isBusy);
    assert.throws(() => eal.heaps.destroy('mine'), isBusy);
    await Promise.all(adding);
    assert.equal(heap.total, 16 * MiB);
  });

  it('refuse what are no options for it', async () => {
    await using eal = await Eal.start(QUIET);
    const isInvalid = (error: unknown): boolean => isDmaError(error, 'EINVAL');
    const memory = eal.external.allocate(4096);
    eal.heaps.create('mine');
    for (const wrong of [{ signal: {} }, { onProgress: 1 }, 7]) {
      await assert.rejects(eal.external.allocateAsync(4096, wrong as never), isInvalid);
      await assert.rejects(eal.dmaMapAllAsync(memory, undefined, wrong as never), isInvalid);
      await assert.rejects(eal.zones.reserveAsync('ring', 64, wrong as never), isInvalid);
      await assert.rejects(eal.pools.createAsync(wrong as never), isInvalid);
      await assert.rejects(eal.heaps.addMemoryAsync('mine', memory, wrong as never), isInvalid);
      await assert.rejects(eal.memory.trimAsync(wrong as never), isInvalid);
    }
  });
});

describe('memory goes back without blocking', { skip }, () => {
  const SIZE = 512 * MiB;

  it('block.freeAsync, of the only block of its memory', async () => {
    await using eal = await Eal.start(QUIET);
    const device = await eal.probe('vdev:copy0');
    const block = await eal.mallocAsync(SIZE);
    const stop = ticking();
    await block.freeAsync({ wipe: true });
    assert.ok(stop() > 2, 'the event loop stood still');
    assert.equal(block.live, false);
    assert.equal(device.domain?.iovaOf(block.va), -1);
    assert.equal(eal.memory.facts().heaps[0].total, 0);
    await assert.rejects(block.freeAsync(), (error) => isDmaError(error, 'EINVAL'));
    eal.malloc(64).free();
  });

  it('memory.trimAsync, what a handler did not let go when it became empty', async () => {
    await using eal = await Eal.start(QUIET);
    const device = await eal.probe('vdev:copy0');
    const block = await eal.mallocAsync(SIZE);
    using _handler = eal.memory.addHandler({ shrink: refuseOnce() });
    await block.freeAsync();
    assert.equal(eal.memory.facts().heaps[0].total, SIZE);
    const told: Progress[] = [];
    const stop = ticking();
    assert.equal(await eal.memory.trimAsync({ onProgress: (progress) => told.push(progress) }), SIZE);
    assert.ok(stop() > 2, 'the event loop stood still');
    assert.equal(told.at(-1)?.doneBytes, SIZE);
    assert.equal(device.domain?.iovaOf(block.va), -1);
    assert.equal(eal.memory.facts().heaps[0].total, 0);
  });

  it('other blocks are allocated and freed meanwhile, and the end of the Eal waits for it', async () => {
    const platform = trackingPlatform(openPlatform());
    const eal = await Eal.start({ ...QUIET, platform });
    await eal.probe('vdev:copy0');
    const block = await eal.mallocAsync(SIZE);
    const freed = block.freeAsync();
    assert.equal(block.live, false);
    const other = eal.malloc(MiB);
    other.bytes().fill(1);
    const stopping = eal.stop();
    await freed;
    await stopping;
    assert.deepEqual(platform.leaks(), []);
  });

  it('the end of the Eal', async () => {
    const platform = trackingPlatform(openPlatform());
    const eal = await Eal.start({ ...QUIET, platform });
    await eal.mallocAsync(SIZE / 2);
    await eal.external.allocateAsync(SIZE / 2, { source: 'memfd' });
    await eal.external.allocateAsync(SIZE / 2, { source: 'anonymous' });
    const stop = ticking();
    await eal.stop();
    assert.ok(stop() > 2, 'the event loop stood still');
    assert.deepEqual(platform.leaks(), []);
  });

  it('the end of the Eal gives up a block that is being cleared', async () => {
    const platform = trackingPlatform(openPlatform());
    const eal = await Eal.start({ ...QUIET, platform });
    const held = eal.malloc(64);
    const clearing = assert.rejects(eal.mallocAsync(SIZE, { zero: true }), isCanceled);
    await new Promise((resolve) => setTimeout(resolve, 20));
    await eal.stop();
    await clearing;
    assert.equal(held.live, false);
    assert.deepEqual(platform.leaks(), []);
  });
});

for (const iommu of ['type1', 'iommufd'] as const)
  describe(`mapping for a device behind ${iommu} without blocking`, { skip }, () => {
    it('is given up by a timer between two pieces; meanwhile the memory is held', async () => {
      using kernel = fakeVfioKernel({ iommu, devices: [{ name: '0000:00:02.0' }], mapsFiles: false });
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
    assert.equal(memory.live, false);
  });
});
