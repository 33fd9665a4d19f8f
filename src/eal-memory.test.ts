/** Memory that every device reaches by itself: the library's own, and heaps over the user's. */
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { mkdtempSync, readdirSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import { dmaError } from '../test/shared/errors.js';
import { FREE, Script, FakeBus, fakeDriver, fakeSpaces } from '../test/fakes/bus/bus.js';
import { copyEngineDriver } from './drivers/copy-engine-driver.js';
import { eduDriver } from './drivers/edu-driver.js';
import { Eal, type EalOptions } from './eal.js';
import { isDmaError } from './errors.js';
import type { Block } from './memory/heap/heap.js';
import { HugePages } from './memory/hugepages.js';
import { poolOf, fakeHugePages } from '../test/fakes/memory/hugepages.js';
import { openPlatform } from './platform/open.js';
import { portablePlatform } from './platform/portable.js';
import { hugePagesForTest } from '../test/shared/real-hugepages.js';
import { until } from '../test/shared/until.js';
import { failingPlatform, trackingPlatform } from '../test/fakes/platform/platforms.js';
import { Range } from './ranges.js';
import { KiB, MiB, type Iova } from './units.js';
import { spawnDevice, type DeviceProcess } from './vfio-user/device-process.js';

const SKIP = { skip: openPlatform().limitation ?? false };
const P2 = 2 * MiB;
const QUIET = { onForgotten: () => undefined } as const;

/** An Eal on a machine with some hugepages, and what is left when it stops. */
async function start(options: EalOptions = {}, { pages = 40, pageSize = P2 } = {}) {
  const platform = trackingPlatform(openPlatform());
  const faked = fakeHugePages(platform, [{ pageSize, pages: [pages] }]);
  const eal = await Eal.start({ platform: faked, ...QUIET, ...options });
  const stop = async (): Promise<void> => {
    await eal.stop();
    assert.deepEqual(platform.leaks(), []);
    assert.equal(faked.free.get(poolOf(pageSize)), pages);
  };
  return { eal, stop, free: faked.free };
}

function withFakeBus(constraints = FREE): { script: Script; bus: FakeBus } {
  const script = new Script();
  return { script, bus: new FakeBus(script, { spaceOf: fakeSpaces(script, { constraints }).spaceOf }) };
}

function fill(block: Block, seed: number): Uint8Array {
  const bytes = block.bytes();
  for (let i = 0; i < bytes.length; i++) bytes[i] = (i * 7 + seed) % 253;
  return bytes.slice();
}

describe('memory for every device', SKIP, () => {
  it('is reached by devices of before and after, and no longer by those that left', async () => {
    const { eal, stop } = await start();
    const early = await eal.probe('vdev:copy0');
    const [from, to] = [eal.malloc(64 * KiB), eal.malloc(64 * KiB, { zero: true })];
    const content = fill(from, 1);
    assert.equal(from.iova, undefined, 'each device has its own');
    await early.use(copyEngineDriver).copy(early.iovaOf(from), early.iovaOf(to), from.length);
    assert.deepEqual(to.bytes(), content);
    const late = await eal.probe('vdev:edu0');
    const at = late.iovaOf(from);
    assert.ok(at > 0 && at + from.length <= 2 ** 28, 'an address that its 28 bits can name');
    const edu = late.use(eduDriver);
    await edu.copyIn(at, 0, 4000);
    await edu.copyOut(late.iovaOf(to), 0, 4000);
    assert.deepEqual(to.bytes(0, 4000), content.subarray(0, 4000));
    await eal.remove(early);
    assert.equal(from.area.holders.has(early.name), false);
    assert.equal(from.area.holders.get(late.name), 1);
    await stop();
  });

  it('few mappings: one an extent', async () => {
    const { eal, stop } = await start({}, { pages: 320, pageSize: 64 * KiB });
    const device = await eal.probe('vdev:edu0');
    const blocks = Array.from({ length: 300 }, () => eal.malloc(64 * KiB));
    const extents = eal.memory.facts().lists.reduce((sum, list) => sum + list.extents, 0);
    assert.equal(device.domain?.entries, extents);
    assert.ok(extents <= 12);
    const later = await eal.probe('vdev:edu1');
    assert.equal(later.domain?.entries, extents);
    for (const block of blocks) block.free();
    eal.memory.trim();
    assert.equal(device.domain?.entries, 0);
    assert.equal(later.domain?.entries, 0);
    await stop();
  });

  it('1.10.3: a device that can not take more: ENOMEM, and nothing has happened', async () => {
    const { script, bus } = withFakeBus();
    const { eal, stop, free } = await start({
      buses: [bus],
      drivers: [fakeDriver(script, 'one')],
      memory: { pageSizes: [P2] },
    });
    await eal.probe('fake:a');
    await eal.probe('fake:b');
    eal.malloc(P2);
    script.take();
    const before = free.get(poolOf(P2));
    script.failing.set('map b', 'ENOSPC');
    assert.throws(() => eal.malloc(P2), dmaError('ENOMEM', /map b/));
    assert.deepEqual(script.take(), ['map a', 'map b', 'unmap a']);
    assert.equal(free.get(poolOf(P2)), before);
    script.failing.clear();
    eal.malloc(P2);
    await stop();
  });

  it('a device that does not let go keeps it, and so do the others', async () => {
    const { script, bus } = withFakeBus();
    const notices: string[] = [];
    const { eal, stop } = await start({
      buses: [bus],
      drivers: [fakeDriver(script, 'one')],
      memory: { matchAllocations: true, onNotice: (text) => notices.push(text) },
    });
    const devices = [await eal.probe('fake:a'), await eal.probe('fake:b')];
    const block = eal.malloc(P2);
    script.take();
    script.failing.set('unmap a', 'EIO');
    block.free();
    assert.match(notices.join(), /could not be given back/);
    assert.deepEqual(script.take(), ['unmap b', 'unmap a', 'map b']);
    assert.equal(eal.memory.heaps[0].total, P2);
    for (const device of devices) assert.equal(device.domain?.entries, 1);
    script.failing.clear();
    assert.equal(eal.memory.trim(), P2);
    for (const device of devices) assert.equal(device.domain?.entries, 0);
    await stop();
  });

  it('a device that can not be mapped for does not matter', async () => {
    const script = new Script();
    const bus = new FakeBus(script);
    const { eal, stop } = await start({ buses: [bus], drivers: [fakeDriver(script, 'one')] });
    await eal.probe('fake:a');
    eal.malloc(64);
    await eal.probe('fake:b');
    await stop();
  });

  it('a device with narrow windows takes what fits, in smaller pieces if need be', async () => {
    const windows = [new Range(P2 as Iova, 8 * MiB)];
    const { script, bus } = withFakeBus({ ...FREE, windows });
    const { eal, stop } = await start({
      buses: [bus],
      drivers: [fakeDriver(script, 'one')],
      memory: { pageSizes: [P2] },
    });
    const device = await eal.probe('fake:a');
    for (let n = 0; n < 4; n++) eal.malloc(P2);
    assert.throws(() => eal.malloc(P2), dmaError('ENOMEM', /IOVAs are free in one piece/));
    assert.equal(device.domain?.bytes, 8 * MiB);
    await stop();
  });

  it('buses vote on the addresses', async () => {
    const { bus } = withFakeBus();
    const voting = Object.assign(bus, { iovaWish: () => 'pa' as const });
    const { eal, stop } = await start({ buses: [voting] });
    const { votes, mode } = eal.memory.iova;
    assert.deepEqual(votes, [
      { bus: 'vdev', wish: 'va' },
      { bus: 'vfio-user', wish: 'va' },
      { bus: 'pci', wish: 'any' },
      { bus: 'fake', wish: 'pa' },
      { bus: 'rdma', wish: 'any' },
    ]);
    assert.ok(mode === 'pa' || mode === 'va');
    await stop();
    await assert.rejects(start({ memory: { noHuge: true, iovaMode: 'pa' } }), dmaError('EINVAL', /physical/));
  });
});

describe('heaps of an Eal', SKIP, () => {
  it('DM-49, DM-50, DM-51: are reached by every device, from before and after', async () => {
    const { eal, stop } = await start();
    const early = await eal.probe('vdev:copy0');
    eal.heaps.create('mine');
    const memory = eal.external.allocate(MiB);
    eal.heaps.addMemory('mine', memory);
    const [from, to] = [eal.malloc(100_000, { heap: 'mine' }), eal.calloc(1000, 100, { heap: 'mine' })];
    const content = fill(from, 3);
    await early.use(copyEngineDriver).copy(early.iovaOf(from), early.iovaOf(to), 100_000);
    assert.deepEqual(to.bytes(), content);
    const late = await eal.probe('vdev:copy1');
    const entries = late.domain?.entries ?? 0;
    assert.throws(() => memory.unregister(), dmaError('EBUSY'));
    from.free();
    const own = eal.realloc(to, 50_000, { node: 0 });
    assert.equal(own.heap.name, 'socket_0');
    assert.deepEqual(own.bytes(), content.subarray(0, 50_000));
    eal.heaps.removeMemory('mine', { va: memory.va, length: memory.length });
    assert.equal(late.domain?.entries, entries, 'less the heap, and more by what the library owns');
    memory.unregister();
    eal.heaps.destroy('mine');
    await stop();
  });

  it('native ones have names, and can not be changed', async () => {
    const { eal, stop } = await start();
    assert.equal(eal.heaps.find('socket_0'), eal.memory.heapOf(0));
    assert.throws(() => eal.heaps.destroy('socket_0'), dmaError('EPERM'));
    assert.throws(() => eal.heaps.create('socket_0'), dmaError('EEXIST'));
    const memory = eal.external.allocate(4096);
    assert.throws(() => eal.heaps.addMemory('socket_0', memory), dmaError('EPERM'));
    assert.throws(() => eal.heaps.removeMemory('socket_0', { va: memory.va, length: 4096 }), dmaError('EPERM'));
    assert.equal(eal.malloc(64, { heap: 'socket_0' }).heap.id, 0);
    assert.throws(() => eal.malloc(64, { heap: 'nobody' }), dmaError('ENOENT', /heaps here: socket_0/));
    eal.heaps.create('b');
    assert.throws(() => eal.malloc(64, { heap: 'b', node: 0 }), dmaError('EINVAL'));
    assert.deepEqual(
      [...eal.heaps].map((heap) => heap.name),
      ['socket_0', 'b'],
    );
    await stop();
  });

  it('a device that can not take the memory: it is not added', async () => {
    const { script, bus } = withFakeBus();
    const { eal, stop } = await start({ buses: [bus], drivers: [fakeDriver(script, 'one')] });
    await eal.probe('fake:a');
    eal.heaps.create('h');
    const memory = eal.external.allocate(8192);
    script.failing.set('map a', 'ENOSPC');
    assert.throws(() => eal.heaps.addMemory('h', memory), dmaError('ENOSPC'));
    assert.equal(eal.heaps.find('h')?.total, 0);
    memory.unregister();
    await stop();
  });

  it('work where no system call can be made', async () => {
    const eal = await Eal.start({ platform: portablePlatform('a test'), ...QUIET });
    eal.heaps.create('h');
    eal.heaps.addMemory('h', eal.external.allocate(64 * KiB));
    const device = await eal.probe('vdev:copy0');
    const [from, to] = [eal.malloc(1000, { heap: 'h' }), eal.malloc(1000, { heap: 'h' })];
    const content = fill(from, 5);
    await device.use(copyEngineDriver).copy(device.iovaOf(from), device.iovaOf(to), 1000);
    assert.deepEqual(to.bytes(), content);
    const last = eal.heaps.find('h')?.mallocLargest() ?? assert.fail();
    assert.equal(last.bytes(last.length).length, 0, 'an empty part at the very end of the heap');
    assert.throws(() => eal.malloc(64), dmaError('ENOTSUP', /a test/));
    await eal.stop();
    await assert.rejects(
      Eal.start({ platform: portablePlatform('a test'), memory: { size: MiB } }),
      dmaError('ENOTSUP'),
    );
  });
});

describe('starting and stopping with memory', SKIP, () => {
  it('what is not freed is reported, and gone', async () => {
    for (const origins of [false, true]) {
      const forgotten: string[] = [];
      const { eal, stop } = await start({
        onForgotten: (what) => forgotten.push(...what),
        memory: { origins, size: P2 },
      });
      eal.heaps.create('h');
      eal.heaps.addMemory('h', eal.external.allocate(8192));
      const blocks = [eal.malloc(64), eal.malloc(64), eal.malloc(64, { heap: 'h' })];
      const views = blocks.map((block) => block.bytes());
      await eal.probe('vdev:edu0');
      await stop();
      assert.ok(views.every((view) => view.length === 0) && blocks.every((block) => !block.live));
      const text = forgotten.join('\n');
      if (origins) assert.match(text, /64 bytes of the heap socket_0, made at .*eal-memory\.test/);
      else assert.match(text, /2 blocks of the heap socket_0, 128 bytes[^]*1 block of the heap h/);
      assert.throws(() => eal.malloc(64), dmaError('ECANCELED', /stopped/));
    }
  });

  it('a start that fails leaves nothing', async () => {
    const listeners = process.listenerCount('exit');
    const platform = trackingPlatform(openPlatform());
    const faked = fakeHugePages(platform, [{ pageSize: P2, pages: [4] }]);
    const memory = { size: 64 * MiB, pageSizes: [P2] };
    await assert.rejects(Eal.start({ platform: faked, memory }), dmaError('ENOMEM', /56 MiB of the 64 MiB/));
    await assert.rejects(
      Eal.start({ platform: faked, memory: { noHuge: true, hugeUnlink: 'never' } }),
      dmaError('EINVAL'),
    );
    assert.deepEqual(platform.leaks(), []);
    assert.equal(faked.free.get(poolOf(P2)), 4);
    assert.equal(process.listenerCount('exit'), listeners);
  });

  it('whichever system call fails, nothing is left', async () => {
    for (let n = 1, done = false; !done; n++) {
      const tracking = trackingPlatform(openPlatform());
      const platform = failingPlatform(fakeHugePages(tracking, [{ pageSize: P2, pages: [8] }]));
      const eal = await Eal.start({ platform, ...QUIET, memory: { pageSizes: [P2] } });
      platform.failCall(n, 'ENOMEM');
      try {
        const device = await eal.probe('vdev:copy0');
        const [from, to] = [eal.malloc(P2), eal.calloc(3, MiB)];
        from.bytes().fill(9);
        await device.use(copyEngineDriver).copy(device.iovaOf(from), device.iovaOf(to), MiB);
        await eal.probe('vdev:edu0');
        eal.realloc(from, 3 * MiB).free();
        to.free();
      } catch (error) {
        assert.ok(isDmaError(error), String(error));
      }
      done = platform.failed() === undefined;
      platform.failCall(0, 'EIO', 'none');
      await eal.stop();
      assert.deepEqual(tracking.leaks(), [], `call ${n}`);
      assert.ok(n < 200);
    }
  });
});

describe('a device in another process', SKIP, () => {
  let copying: DeviceProcess;
  before(async () => {
    copying = await spawnDevice('copy', { maxDmaMaps: 8 });
  });
  after(() => copying.close());

  it('reaches blocks of both kinds of heaps, in few mappings', async () => {
    const { eal, stop } = await start({}, { pages: 100 });
    eal.heaps.create('h');
    eal.heaps.addMemory('h', eal.external.allocate(MiB));
    const from = eal.malloc(300_000);
    const content = fill(from, 8);
    const device = await eal.probe(copying.socketPath);
    const there = eal.malloc(300_000, { heap: 'h' });
    const engine = device.use(copyEngineDriver);
    await engine.copy(device.iovaOf(from), device.iovaOf(there), 300_000);
    assert.deepEqual(there.bytes(), content);
    const grown = Array.from({ length: 30 }, () => eal.malloc(P2));
    const last = grown[29];
    await engine.copy(device.iovaOf(there), device.iovaOf(last), 300_000);
    assert.deepEqual(last.bytes(0, 300_000), content);
    assert.ok((device.domain?.entries ?? 99) <= 8);
    for (const block of grown) block.free();
    eal.memory.trim();
    await engine.copy(device.iovaOf(from), device.iovaOf(there), 64);
    await stop();
  });
});

describe('real hugepages', SKIP, () => {
  /** Runs `work` with free hugepages, or skips the test. */
  async function withPages(
    t: { skip: (why: string) => void },
    count: number,
    work: (free: () => number) => Promise<void>,
  ): Promise<void> {
    const platform = openPlatform();
    const pages = hugePagesForTest(platform, count);
    if (typeof pages === 'string') return t.skip(pages);
    const free = (): number => platform.limits.freeHugePages(P2) ?? 0;
    const before = free();
    try {
      await work(free);
      assert.equal(free(), before, 'all are back');
    } finally {
      pages.giveBack();
    }
  }

  it('are used, run out without killing anybody, and go back', (t) =>
    withPages(t, 6, async (free) => {
      const notices: string[] = [];
      await using eal = await Eal.start({
        ...QUIET,
        memory: { pageSizes: [P2], onNotice: (text) => notices.push(text) },
      });
      const device = await eal.probe('vdev:edu0');
      const count = free();
      const blocks: Block[] = [];
      for (let n = 0; n < count; n++) blocks.push(eal.malloc(P2));
      assert.equal(free(), 0);
      for (const block of blocks) block.bytes().fill(1);
      assert.throws(() => eal.malloc(64), dmaError('ENOMEM', /not so many pages/));
      assert.throws(() => eal.malloc(P2 * (count + 5)), dmaError('ENOMEM'));
      assert.equal(blocks[0].area.pageSize, P2);
      assert.ok((device.domain?.entries ?? 99) <= count);
      for (const block of blocks) block.free();
      eal.memory.trim();
      assert.equal(free(), count);
      assert.deepEqual(notices, []);
    }));

  it('in physical mode have the addresses of the page map', (t) =>
    withPages(t, 4, async () => {
      let eal: Eal;
      try {
        eal = await Eal.start({ ...QUIET, memory: { pageSizes: [P2], iovaMode: 'pa' } });
      } catch (error) {
        assert.ok(isDmaError(error, 'EINVAL'), String(error));
        return t.skip(error.message);
      }
      const block = eal.malloc(2 * P2);
      const frames = eal.platform.memory.frames(block.area.range.start, P2, block.area.range.length / P2);
      assert.deepEqual([...(block.area.iovas ?? [])], [...(frames ?? [])]);
      const [first, second] = frames ?? [];
      assert.equal(block.iova, second === first + P2 ? first : undefined, 'only where it is in one piece');
      const device = await eal.probe('vdev:copy0');
      assert.equal(device.domain?.iovaOf(block.va + 100), (frames?.[0] ?? 0) + 100);
      await eal.stop();
    }));

  it('EF-04: in files, by each way of keeping them; and what a killed process left goes at the next start', (t) =>
    withPages(t, 8, async (free) => {
      const platform = openPlatform();
      const directory = mkdtempSync(join(tmpdir(), 'anydma-huge-'));
      const huge = new HugePages(platform.kernel);
      try {
        huge.mount(directory, { pageSize: P2 });
      } catch (error) {
        rmSync(directory, { recursive: true });
        return t.skip(`no hugetlbfs can be mounted: ${String(error)}`);
      }
      const files = (): string[] => readdirSync(directory);
      try {
        const before = free();
        for (const more of [{}, { singleFileSegments: true }, { hugeUnlink: 'always' }] as const) {
          await using eal = await Eal.start({
            ...QUIET,
            memory: { hugeDir: directory, filePrefix: 'test', pageSizes: [P2], ...more },
          });
          const device = await eal.probe('vdev:copy0');
          const own = device.domain?.entries ?? 0;
          const [a, b] = [eal.malloc(3 * P2, { zero: true }), eal.malloc(64)];
          const content = fill(a, 2);
          await device.use(copyEngineDriver).copy(device.iovaOf(a), device.iovaOf(b), 64);
          assert.deepEqual(b.bytes(), content.subarray(0, 64));
          const single = 'singleFileSegments' in more;
          assert.equal((device.domain?.entries ?? 0) - own, single ? 2 : before - free());
          assert.equal(files().length, 'hugeUnlink' in more ? 0 : single ? 1 : before - free());
        }
        assert.deepEqual(files(), []);

        // A program that grows until it is killed.
        const program = `
          import { Eal } from ${JSON.stringify(new URL('./index.js', import.meta.url).href)};
          const eal = await Eal.start({ memory: { hugeDir: ${JSON.stringify(directory)}, filePrefix: 'test', pageSizes: [${P2}], matchAllocations: true } });
          for (;;) {
            const blocks = [];
            for (let n = 0; n < 6; n++) blocks.push(eal.malloc(${P2}));
            process.stdout.write('.');
            for (const block of blocks) block.free();
          }`;
        const child = spawn(process.execPath, ['--input-type=module', '-e', program], {
          stdio: ['ignore', 'pipe', 'inherit'],
        });
        await new Promise((resolve) => child.stdout.once('data', resolve));
        await new Promise((resolve) => setTimeout(resolve, 5));
        const ended = new Promise((resolve) => child.once('exit', resolve));
        for (let n = 0; n < 1000 && files().length === 0; n++) await new Promise(setImmediate);
        child.kill('SIGKILL');
        await ended;
        t.diagnostic(`${files().length} files were left`);
        const eal = await Eal.start({ ...QUIET, memory: { hugeDir: directory, filePrefix: 'test', pageSizes: [P2] } });
        assert.deepEqual(files(), []);
        // Others that look at the killed process (as tests do in /proc) may keep its memory for a moment longer.
        await until(() => free() === before);
        eal
          .malloc(4 * P2)
          .bytes()
          .fill(1);
        await eal.stop();
        assert.deepEqual(files(), []);
      } finally {
        huge.unmount(directory);
        rmSync(directory, { recursive: true });
      }
    }));

  it('are taken at the start', (t) =>
    withPages(t, 4, async (free) => {
      const before = free();
      const eal = await Eal.start({ ...QUIET, memory: { size: 3 * P2, pageSizes: [P2] } });
      assert.equal(free(), before - 3);
      const block = eal.malloc(2 * P2);
      block.free();
      eal.memory.trim();
      assert.equal(free(), before - 3);
      await eal.stop();
    }));
});

describe('zones and pools of an Eal', SKIP, () => {
  it('every device reaches them, now and later, and stopping takes them all back', async () => {
    const { eal, stop } = await start();
    const early = await eal.probe('vdev:edu0');
    const zone = eal.zones.reserve('rings', 4096);
    const pool = eal.pools.create({ elements: 64, elementSize: 2048, cache: 16 });
    const late = await eal.probe('vdev:copy0');
    for (const device of [early, late]) {
      assert.notEqual(device.domain?.iovaOf(zone.va), -1);
      assert.ok(pool.iovasFor(device).every((iova) => iova >= 0));
    }
    assert.ok(
      pool.iovasFor(early).every((iova) => iova < 2 ** 28),
      'edu reaches 28 bits only',
    );
    const { cache } = pool;
    assert.ok(cache !== undefined);
    const first = cache.getInPlace(4);
    const burst = cache.numbers.slice(first, first + 4);
    assert.equal(new Set(burst).size, 4);
    assert.equal(pool.available, 60);
    cache.numbers.set(burst, cache.roomFor(4));
    cache.putInPlace(cache.roomFor(4), 4);
    assert.equal(pool.available, 64);
    assert.equal(eal.zones.find('rings'), zone);
    const bytes = zone.bytes();
    zone.free();
    assert.equal(bytes.length, 0);
    pool.free();
    await stop();
  });

  it('external memory is in one pool or heap at a time', async () => {
    const { eal, stop } = await start();
    const memory = eal.external.allocate(16 * 4096);
    const pool = eal.pools.create({ elements: 8, elementSize: 1024, external: [memory] });
    eal.heaps.create('h');
    assert.throws(() => eal.heaps.addMemory('h', memory), dmaError('EBUSY', /in the pool/));
    pool.free();
    eal.heaps.addMemory('h', memory);
    assert.throws(
      () => eal.pools.create({ elements: 8, elementSize: 1024, external: [memory] }),
      (error) => isDmaError(error, 'EEXIST'),
    );
    eal.heaps.removeMemory('h', { va: memory.va, length: memory.length });
    memory.unregister();
    await stop();
  });
});

it('mapping a block of the library’s own memory says that it is mapped, and not to unmap it', async () => {
  await using eal = await Eal.start({ memory: { noHuge: true } });
  const device = await eal.probe('vdev:copy0');
  const block = eal.malloc(64 * KiB, { align: 4096 });
  const other = device.iovaOf(block) + 2 ** 40;
  assert.throws(
    () => device.dmaMap({ va: block.va, length: 4096 }, { iova: other }),
    (error) => {
      assert.ok(isDmaError(error, 'EEXIST'), String(error));
      assert.match(error.hint ?? '', /mapped for every device by itself: device\.iovaOf/);
      assert.doesNotMatch(error.hint ?? '', /unmap/);
      return true;
    },
  );
  block.free();
});
