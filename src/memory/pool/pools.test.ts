/** Pools; MP-nn are the cases of DPDK's mempool_autotest that are about DMA. */
import assert from 'node:assert/strict';
import { once } from 'node:events';
import { describe, it } from 'node:test';
import { isMainThread, parentPort, Worker, workerData } from 'node:worker_threads';
import { throwsDma } from '../../../test/shared/errors.js';
import { until } from '../../../test/shared/until.js';
import fc from 'fast-check';
import { DmaError } from '../../errors.js';
import { openPlatform } from '../../platform/open.js';
import { portablePlatform } from '../../platform/portable.js';
import type { Platform } from '../../platform/ports.js';
import { failingPlatform, type FailingPlatform } from '../../../test/fakes/platform/platforms.js';
import { GiB, KiB, MiB, type Va } from '../../units.js';
import { AreaIndex } from '../area-index.js';
import { External, type ExternalMemory } from '../external.js';
import { chunksIn, elementShape, runsIn } from './pool-layout.js';
import { Pool, type PoolDescription, type PoolDevice } from './pool.js';
import { Holders } from '../shared/holders.js';
import { Pools, type PoolHandler, type PoolOptions, type PoolsSharing } from './pools.js';
import { testSources, type TestSources, type TestSourcesOptions } from '../../../test/fakes/memory/heap-sources.js';

const PAGE = 4 * KiB;
const SKIP = { skip: openPlatform().limitation ?? false };

/** Pools over the memory of a test, which is checked for leaks at the end. */
function withPools(work: (pools: Pools, sources: TestSources) => void, options?: TestSourcesOptions): () => void {
  return () => {
    const sources = testSources(options);
    const pools = new Pools(sources, sharingOf(sources));
    work(pools, sources);
    assert.deepEqual(pools.close(), []);
    sources.close();
  };
}

/** Every element is where it belongs: in its memory, aligned, apart from all others, and as its view shows. */
function checkElements(pool: Pool): void {
  const { elements, vas, iovas, headroom, elementSize, chunks, chunkOf, offsetOf } = pool;
  assert.equal(vas.length, elements);
  assert.equal(
    chunks.reduce((sum, { count }) => sum + count, 0),
    elements,
  );
  const order = Array.from(vas, (_, i) => i).sort((a, b) => vas[a] - vas[b]);
  order.forEach((element, i) => {
    const { va, iova, length } = chunks[chunkOf[element]];
    const offset = offsetOf[element];
    assert.equal(vas[element], va + offset);
    assert.equal(iovas?.[element], iovas === undefined || iova === undefined ? undefined : iova + offset);
    assert.ok(offset >= headroom && offset + elementSize <= length);
    if (i > 0) assert.ok(vas[element] - headroom >= vas[order[i - 1]] + elementSize);
  });
}

/** A device whose domain puts every byte `delta` further. */
class FakeDevice implements PoolDevice {
  readonly name = 'fake:0';
  lookUps = 0;
  readonly table = {
    generation: 0,
    iovaOfRange: (va: number, length: number): number => {
      this.lookUps++;
      for (const at of [va, va + length - 1])
        if (!this.isMapped(at) || this.deltaOf(at) !== this.deltaOf(va)) return -1;
      return va + this.deltaOf(va);
    },
  };
  readonly domain = { table: this.table };
  isMapped = (_va: number): boolean => true;
  deltaOf = (_va: number): number => 2 ** 40;
}

function tests(): void {
  describe('mempool_autotest', SKIP, () => {
    it(
      'MP-01 a pool is made with all of its elements: there is nothing to fill in later',
      withPools((pools) => {
        const pool = pools.create({ elements: 20, elementSize: 1000 });
        assert.equal(pool.available, 20);
        const taken = new Uint32Array(20);
        assert.ok(pool.get(taken, 20));
        assert.equal(new Set(taken).size, 20);
        assert.equal(pool.get(new Uint32Array(1), 1), false);
        pool.put(taken, 20);
        assert.equal(pool.available, 20);
        assert.equal('populate' in pool, false);
        pool.free();
      }),
    );

    it(
      'MP-02 the IOVA of every element is that of its memory, without a look-up',
      withPools((pools, { external, heaps: heap, areas }) => {
        const iovas = [9, 3, 4, 5, 100, 20, 21, 7].map((page) => page * PAGE);
        heap.create('mine');
        heap.addMemory('mine', external.allocate(iovas.length * PAGE, { iovas }));
        for (const options of [{}, { heap: 'mine' }, { external: [external.allocate(8 * PAGE, { iovas })] }]) {
          const pool = pools.create({ elements: 20, elementSize: 1000, headroom: 100, ...options });
          checkElements(pool);
          pool.vas.forEach((va, element) => {
            const area = areas.at(va);
            assert.ok(area !== undefined);
            const offset = va - area.range.start;
            const page = Math.floor(offset / area.pageSize);
            const iova = area.iovas === undefined ? undefined : area.iovas[page] + (offset % area.pageSize);
            assert.equal(pool.iovas?.[element], iova);
          });
          pool.free();
        }
      }),
    );

    it(
      'more elements than the machine has memory for are refused before any is taken',
      withPools((pools, { memory }) => {
        let grown = 0;
        using _ = memory.addHandler({
          grow: () => {
            grown++;
          },
        });
        throwsDma('ENOMEM', () => pools.create({ elements: 2 ** 20, elementSize: 64 * MiB }), /0 of the \d+ elements/);
        assert.equal(grown, 0);
      }),
    );

    it(
      'MP-03 names that are used twice, caches that are too large, and impossible shapes are refused',
      withPools((pools, { external, memory }) => {
        const good: PoolOptions = { elements: 100, elementSize: 64 };
        const refused = (code: 'EINVAL' | 'EEXIST' | 'ENOENT' | 'ENOMEM', more: Partial<PoolOptions>, says?: RegExp) =>
          throwsDma(code, () => pools.create({ ...good, ...more }), says);
        using pool = pools.create({ ...good, name: 'a' });
        refused('EEXIST', { name: 'a' }, /pool "a"/);
        refused('EINVAL', { name: '' });
        refused('EINVAL', { cache: 513 });
        refused('EINVAL', { cache: 68 }, /1 to 67/);
        refused('EINVAL', { cache: -1 });
        refused('EINVAL', { elements: 0 });
        refused('EINVAL', { elements: 2 ** 29 });
        for (const elementSize of [0, -1, 1.5, NaN, 2 * GiB]) refused('EINVAL', { elementSize });
        for (const align of [0, 3, -64, 2 * GiB]) refused('EINVAL', { align });
        for (const headroom of [-1, GiB, NaN]) refused('EINVAL', { headroom });
        refused('EINVAL', { external: [], heap: 'mine' }, /external memory and heap/);
        refused('EINVAL', { node: 5 });
        refused('ENOENT', { heap: 'none' });
        refused('ENOMEM', { external: [] });
        const own = external.allocate(PAGE);
        refused('ENOMEM', { external: [own], elementSize: 65 }, /room for 32 of 100/);
        own.unregister();
        refused('EINVAL', { external: [own] }, /not registered/);
        throwsDma('EINVAL', () => pool.bytes(100));
        throwsDma('EINVAL', () => pool.bytes(-1));
        throwsDma('EINVAL', () => pool.bytes(0.5));
        throwsDma('EINVAL', () => pool.chunkBytes(1));
        assert.equal(pools.find('a'), pool);
        assert.deepEqual([...pools], [pool]);
        assert.equal(memory.heaps[0].statistics().allocatedBlocks, 1);
      }),
    );

    it(
      'MP-04 events: ready once a pool has all its elements, destroy before its memory goes',
      withPools((pools, { external }) => {
        const log: string[] = [];
        const handler = (id: number): PoolHandler => ({
          ready: (pool) => log.push(`${id} ready ${pool.name} ${pool.available}`),
          destroy: (pool) => log.push(`${id} destroy ${pool.name} ${external.bytesAt(pool.chunks[0].va, 1)?.length}`),
        });
        const take = (): string[] => log.splice(0);
        const [first] = [pools.addHandler(handler(0)), pools.addHandler(handler(1))];
        const make = (name: string): Pool =>
          pools.create({ name, elements: 4, elementSize: 64, external: [external.allocate(PAGE)] });
        const one = make('one');
        assert.deepEqual(take(), ['0 ready one 4', '1 ready one 4']);
        first[Symbol.dispose]();
        first[Symbol.dispose]();
        const two = make('two');
        assert.deepEqual(take(), ['1 ready two 4']);
        one.free();
        two.free();
        assert.deepEqual(take(), ['1 destroy one 1', '1 destroy two 1']);
      }),
    );

    it(
      'MP-05 events: handlers may go and come while they are told',
      withPools((pools) => {
        const log: string[] = [];
        const late: PoolHandler = { ready: () => log.push('late') };
        let lateHandle: Disposable | undefined;
        const others: Disposable[] = [];
        const selfHandle = pools.addHandler({
          ready: () => {
            log.push('once');
            selfHandle[Symbol.dispose]();
            for (const other of others) other[Symbol.dispose]();
            lateHandle ??= pools.addHandler(late);
            throwsDma('EEXIST', () => pools.addHandler(late));
          },
        });
        others.push(pools.addHandler({ ready: () => log.push('skipped') }));
        const shape = { elements: 4, elementSize: 64 };
        pools.create(shape);
        assert.deepEqual(log.splice(0), ['once']);
        pools.create(shape);
        assert.deepEqual(log, ['late']);
      }),
    );

    it(
      'MP-06 a pool that is not for devices is not, whatever memory it has, and its elements may lie anywhere',
      withPools((pools, { external }) => {
        const iovas = [3 * PAGE, PAGE];
        const shape = { elements: 1, elementSize: 2 * PAGE };
        const own = external.allocate(2 * PAGE, { iovas });
        throwsDma('ENOMEM', () => pools.create({ ...shape, external: [own] }));
        const pool = pools.create({ ...shape, external: [own], forDevices: false });
        assert.equal(pool.forDevices, false);
        assert.equal(pool.iovas, undefined);
        assert.equal(pool.bytes(0).length, 2 * PAGE);
        throwsDma('EINVAL', () => pool.iovasFor(new FakeDevice()), /not for devices/);
      }),
    );

    it(
      'MP-07 whether a pool is for devices is what the program said; it has IOVAs where all are known',
      withPools(
        (pools, { external }) => {
          const known = external.allocate(PAGE, { iovas: [7 * PAGE] });
          const pool = pools.create({
            elements: 4,
            elementSize: 2 * KiB,
            external: [external.allocate(PAGE), known],
          });
          assert.equal(pool.forDevices, true);
          assert.equal(pool.iovas, undefined);
          assert.deepEqual(
            pool.chunks.map(({ iova, count }) => [iova, count]),
            [
              [undefined, 2],
              [7 * PAGE, 2],
            ],
          );
          // What a domain made of it is known to that.
          assert.deepEqual(
            pool.iovasFor(new FakeDevice()),
            pool.vas.map((va) => va + 2 ** 40),
          );
        },
        { mode: 'pa' },
      ),
    );

    it(
      'MP-08 a pool on hugepages where there are any, and on others where not',
      withPools((pools, { areas }) => {
        const pageSizeOf = (pageSizes: number[]): number | undefined => {
          using pool = pools.create({ elements: 100, elementSize: 2 * KiB, pageSizes, pageSizeHint: true });
          checkElements(pool);
          return areas.at(pool.vas[0])?.pageSize;
        };
        assert.equal(pageSizeOf([2 * MiB]), 2 * MiB);
        assert.equal(pageSizeOf([GiB]), 2 * MiB);
        throwsDma('ENOMEM', () => pools.create({ elements: 1, elementSize: 1, pageSizes: [GiB] }));
      }),
    );
  });

  describe('elements of a pool', SKIP, () => {
    it(
      'are handed out and taken back by number, and their bytes are shown',
      withPools((pools) => {
        for (const cache of [0, 8]) {
          const pool = pools.create({ elements: 100, elementSize: 256, headroom: 64, cache });
          assert.equal(pool.available, 100);
          const burst = new Int32Array(100);
          assert.ok(pool.get(burst, 40));
          assert.equal(pool.available, 60);
          assert.ok(!pool.get(burst, 61, 39));
          throwsDma('EINVAL', () => pool.get(burst, 60, 41), /do not fit/);
          const held = burst.slice(0, 40);
          for (const element of held) {
            const bytes = pool.bytes(element);
            assert.equal(bytes.length, 256);
            assert.equal(pool.bytes(element), bytes);
            bytes.fill(element);
            const chunk = pool.chunkBytes(pool.chunkOf[element]);
            chunk.fill(255, pool.offsetOf[element] - 64, pool.offsetOf[element]);
          }
          for (const element of held) assert.ok(pool.bytes(element).every((byte) => byte === element));
          pool.put(burst, 30, 10);
          assert.equal(pool.available, 90);
          throwsDma('EBUSY', () => pool.free(), /10 elements of the pool/);
          pool.put(burst, 10);
          const bytes = pool.bytes(5);
          pool.free();
          assert.equal(bytes.length, 0);
          assert.equal(pool.get(burst, 1), false);
          throwsDma('EINVAL', () => pool.bytes(5), /was freed/);
          throwsDma('EINVAL', () => pool.free());
          throwsDma('EINVAL', () => pool.share());
          pool[Symbol.dispose]();
        }
      }),
    );

    it(
      'are not put twice in a checked pool',
      withPools((pools) => {
        const pool = pools.create({ elements: 10, elementSize: 1, checked: true, cache: 4 });
        const burst = new Int32Array(2);
        assert.ok(pool.get(burst, 2));
        pool.put(burst, 2);
        throwsDma('EINVAL', () => pool.put(burst, 1), /element \d is free already/);
      }),
    );

    it(
      'are zeroed if that is asked for, and are else as they were',
      withPools((pools, { external }) => {
        const own = external.allocate(PAGE);
        own.bytes().fill(3);
        const shape: PoolOptions = { elements: 4, elementSize: 1000, external: [own] };
        pools.create(shape).free();
        assert.ok(own.bytes().every((byte) => byte === 3));
        using pool = pools.create({ ...shape, zero: true });
        for (let i = 0; i < 4; i++) assert.ok(pool.bytes(i).every((byte) => byte === 0));
      }),
    );

    it(
      'can be as small and as large as anything',
      withPools((pools, { external }) => {
        const small = pools.create({ elements: 4096, elementSize: 1, align: 1, external: [external.allocate(PAGE)] });
        checkElements(small);
        const large = pools.create({ elements: 2, elementSize: 3 * MiB, align: 2 * MiB });
        checkElements(large);
        assert.ok(large.vas.every((va) => va % (2 * MiB) === 0));
        const first = elementShape(GiB, 0, 64, 'test');
        const chunks = [...chunksIn([{ va: 64 as Va, length: 4 * GiB, iova: undefined }], first, 10)];
        assert.deepEqual(
          chunks.map(({ va, count, length }) => [va, count, length]),
          [0, 1, 2, 3].map((i) => [64 + i * GiB, 1, GiB]),
        );
      }),
    );

    it('work where no system call can be made', () => {
      const platform = portablePlatform('a test');
      const external = new External(platform, new AreaIndex());
      const pools = new Pools({ memory: { iova: { mode: 'va' } } as never, heaps: undefined as never });
      const pool = pools.create({ elements: 4, elementSize: KiB, external: [external.allocate(PAGE)] });
      pool.bytes(3).fill(1);
      checkElements(pool);
      pool.free();
    });
  });

  describe('memory of a pool', SKIP, () => {
    it(
      'is in one block if it can be, and in several where a heap is in pieces',
      withPools((pools, { heaps: heap, external }) => {
        heap.create('mine');
        for (let i = 0; i < 4; i++) heap.addMemory('mine', external.allocate(PAGE));
        const shape = { elements: 4, elementSize: KiB, heap: 'mine' };
        const one = pools.create(shape);
        assert.equal(one.chunks.length, 1);
        assert.equal(one.owner, 'heap');
        const more = pools.create({ ...shape, elements: 12 });
        assert.equal(more.chunks.length, 3);
        checkElements(more);
        throwsDma('ENOMEM', () => pools.create({ ...shape, elements: 1 }), /0 of the 1 elements/);
        one.free();
        throwsDma('ENOMEM', () => pools.create({ ...shape, elements: 5 }), /4 of the 5 elements/);
        assert.equal(heap.find('mine')?.statistics().free, PAGE);
      }),
    );

    it(
      'is asked for element by element where devices have every page elsewhere',
      withPools(
        (pools, { heaps: heap, external }) => {
          heap.create('mine');
          // Pairs of pages that are contiguous, one page off.
          const iovas = Array.from({ length: 64 }, (_, page) => PAGE * (((page + 1) >> 1) * 10 + ((page + 1) & 1)));
          heap.addMemory('mine', external.allocate(64 * PAGE, { iovas }));
          const pool = pools.create({ elements: 30, elementSize: 2 * PAGE, heap: 'mine', align: 1 });
          checkElements(pool);
          assert.ok(pool.iovas?.every((iova) => iova > 0));
          throwsDma('ENOMEM', () => pools.create({ elements: 1, elementSize: 2 * PAGE, heap: 'mine' }));
        },
        { mode: 'pa' },
      ),
    );

    it(
      'stays registered, is in one pool only, and has to be writable',
      withPools((pools, sources) => {
        const { external, heaps: heap, platform } = sources;
        const [own, other] = [external.allocate(PAGE), external.allocate(PAGE)];
        const shape = { elements: 2, elementSize: KiB };
        const pool = pools.create({ ...shape, name: 'p', external: [own, other] });
        throwsDma('EBUSY', () => own.unregister(), /it is in the pool p/);
        // It was not needed.
        other.unregister();
        throwsDma('EEXIST', () => pools.create({ ...shape, external: [own] }), /in the pool p already/);
        pool.free();
        throwsDma('EEXIST', () => pools.create({ ...shape, name: 'q', external: [own, own] }), /in the pool q/);
        heap.create('h');
        heap.addMemory('h', own);
        throwsDma('EEXIST', () => pools.create({ ...shape, external: [own] }), /in a heap/);
        heap.removeMemory('h', { va: own.va, length: own.length });
        pools.create({ ...shape, external: [own] }).free();
        own.unregister();
        const fd = platform.memory.memfd({ name: 'test', length: PAGE });
        const fixed = external.fromFd(fd, { writable: false });
        platform.files.close(fd);
        throwsDma('EACCES', () => pools.create({ ...shape, external: [fixed] }));
      }),
    );

    it(
      'goes back, and all who were told are told, when a handler refuses the pool',
      withPools((pools, { memory, external }) => {
        const log: string[] = [];
        let kept: Pool | undefined;
        const follow = (name: string): PoolHandler => ({
          ready: (pool) => {
            log.push(`${name} ready`);
            kept = pool;
            assert.ok(pool.get(new Int32Array(1), 1));
          },
          destroy: () => log.push(`${name} destroy`),
        });
        pools.addHandler(follow('a'));
        pools.addHandler(follow('b'));
        const refuse = pools.addHandler({
          ready: () => {
            throw new Error('no room for another region');
          },
          destroy: () => log.push('it was never told'),
        });
        const own = external.allocate(PAGE);
        for (const more of [{}, { external: [own] }]) {
          const make = (): Pool => pools.create({ name: 'p', elements: 4, elementSize: 64, ...more });
          throwsDma('ECANCELED', make, /no room for another region/);
          assert.deepEqual(log.splice(0), ['a ready', 'b ready', 'b destroy', 'a destroy']);
          assert.equal(pools.find('p'), undefined);
          assert.equal(kept?.live, false);
        }
        refuse[Symbol.dispose]();
        const { allocatedBlocks } = memory.heaps[0].statistics();
        assert.equal(allocatedBlocks, 0);
        own.unregister();
      }),
    );

    it('goes back also when a handler throws, which is an uncaught exception later', async () => {
      const sources = testSources();
      const pools = new Pools(sources, sharingOf(sources));
      const pool = pools.create({ elements: 4, elementSize: 64 });
      pools.addHandler({
        destroy: () => {
          throw new Error('thrown by a test');
        },
      });
      const told: Error[] = [];
      process.setUncaughtExceptionCaptureCallback((error) => told.push(error));
      try {
        pool.free({ force: true });
        assert.deepEqual(told, []);
        await new Promise((resolve) => setImmediate(resolve));
      } finally {
        process.setUncaughtExceptionCaptureCallback(null);
      }
      assert.deepEqual(
        told.map(({ message }) => message),
        ['thrown by a test'],
      );
      assert.equal(sources.memory.heaps[0].statistics().allocatedBlocks, 0);
      sources.close();
    });

    it('goes back whichever system call fails', () => {
      let failing: FailingPlatform | undefined;
      const sources = testSources({ wrap: (platform) => (failing = failingPlatform(platform)) });
      const pools = new Pools(sources, sharingOf(sources));
      assert.ok(failing !== undefined);
      const make = (): void => {
        using own = sources.external.allocate(PAGE);
        using _a = pools.create({ elements: 8, elementSize: 64, external: [own], zero: true });
        using _b = pools.create({ elements: 1000, elementSize: KiB, zero: true });
      };
      let calls = 0;
      for (; calls < 100; calls++) {
        failing.failCall(calls + 1, 'ENOMEM');
        try {
          sources.memory.trim();
          make();
        } catch (error) {
          assert.ok(error instanceof DmaError, String(error));
        }
        if (failing.failed() === undefined) break;
        assert.deepEqual([...pools], []);
        assert.deepEqual([...sources.external], []);
        for (const heap of sources.memory.heaps) assert.equal(heap.statistics().allocatedBlocks, 0);
      }
      assert.ok(calls > 5 && calls < 100, String(calls));
      sources.close();
    });

    it('ends with the Eal: whoever has elements, their views are empty', () => {
      const sources = testSources();
      const pools = new Pools(sources, sharingOf(sources));
      const pool = pools.create({ elements: 4, elementSize: 64 });
      const bytes = pool.bytes(0);
      assert.ok(pool.get(new Int32Array(3), 3));
      assert.deepEqual(pools.close(), []);
      assert.equal(bytes.length, 0);
      sources.close();
      // In the wrong order, too.
      const others = testSources();
      const late = new Pools(others).create({ elements: 4, elementSize: 64 });
      others.close();
      late.free();
    });
  });

  describe('IOVAs of a pool for a device', SKIP, () => {
    it(
      'are those of its domain, asked for once until something is unmapped there',
      withPools((pools) => {
        const pool = pools.create({ elements: 50, elementSize: 100 });
        const [device, other] = [new FakeDevice(), new FakeDevice()];
        other.deltaOf = () => 2 ** 41;
        const iovas = pool.iovasFor(device);
        assert.deepEqual(
          iovas,
          pool.vas.map((va) => va + 2 ** 40),
        );
        assert.equal(pool.iovasFor(other)[3], pool.vas[3] + 2 ** 41);
        const { lookUps } = device;
        assert.equal(pool.iovasFor(device), iovas);
        assert.equal(device.lookUps, lookUps);
        device.deltaOf = () => 2 ** 42;
        device.table.generation++;
        assert.equal(pool.iovasFor(device)[0], pool.vas[0] + 2 ** 42);
        assert.equal(iovas[0], pool.vas[0] + 2 ** 40);
        pool.free();
        throwsDma('EINVAL', () => pool.iovasFor(device), /freed/);
      }),
    );

    it(
      'are refused where an element is not mapped, or in pieces, and are known once it is',
      withPools((pools, { external }) => {
        const pool = pools.create({ elements: 8, elementSize: KiB, external: [external.allocate(2 * PAGE)] });
        const device = new FakeDevice();
        const end = pool.vas[0] + PAGE;
        device.isMapped = (va) => va < end;
        throwsDma('EINVAL', () => pool.iovasFor(device), /element 4 .* on fake:0 .*map the external memory/);
        // Mapping more is no new generation.
        device.isMapped = () => true;
        assert.equal(pool.iovasFor(device).length, 8);
        device.table.generation++;
        device.deltaOf = (va) => (va < pool.vas[2] + 100 ? 0 : PAGE);
        throwsDma('EINVAL', () => pool.iovasFor(device), /element 2 .* one piece/);
        throwsDma('ENOTSUP', () => pool.iovasFor({ name: 'x', domain: undefined }), /on x/);
      }),
    );
  });

  describe('a pool in other threads', SKIP, () => {
    it(
      'is the same pool, and cannot be freed while they have it',
      withPools((pools, { platform }) => {
        const pool = pools.create({ elements: 30, elementSize: 64, cache: 10, headroom: 16 });
        Pool.attach(pool.share(), platform).free();
        // A clone is what other threads get.
        const there = Pool.attach(structuredClone(pool.share()), platform);
        assert.deepEqual([there.vas, there.iovas, there.name], [pool.vas, pool.iovas, pool.name]);
        assert.equal(pool.threads, 1);
        const burst = new Int32Array(5);
        assert.ok(there.get(burst, 5));
        there.bytes(burst[0]).fill(77);
        assert.ok(pool.bytes(burst[0]).every((byte) => byte === 77));
        throwsDma('EBUSY', () => pool.free(), /1 thread has attached/);
        assert.equal(pools.close().length, 1);
        assert.ok(pool.live);
        pool.put(burst, 5);
        const bytes = there.bytes(3);
        there.free();
        assert.equal(bytes.length, 0);
        assert.equal(pool.available, 30);
        const description = pool.share();
        throwsDma('EINVAL', () => Pool.attach({ ...description, chunks: [] }, platform), /30 elements/);
        pool.free();
        throwsDma('EINVAL', () => Pool.attach(description, platform), /was freed/);
        throwsDma('EINVAL', () => Pool.attach({ ...description, stack: new SharedArrayBuffer(8) }, platform));
      }),
    );

    it('gets back what a worker had that was terminated, which no longer holds it', { timeout: 60_000 }, async () => {
      const sources = testSources();
      const pools = new Pools(sources, sharingOf(sources));
      const pool = pools.create({ elements: 20, elementSize: 64, cache: 4 });
      const inRing = 2;
      const ring = { name: 'ring', numbers: () => [inRing] };
      pool.rings.add(ring);
      const worker = new Worker(new URL(import.meta.url), {
        workerData: { pool: pool.share(), id: 0 } satisfies Orders,
      });
      const [taken] = (await once(worker, 'message')) as [number[]];
      assert.ok(taken.includes(inRing));
      assert.equal(pool.threads, 1);
      const burst = new Int32Array(20);
      assert.equal(pool.get(burst, 19 - pool.threads), false);
      await worker.terminate();
      // All but the one in a ring.
      await until(() => pool.get(burst, 19));
      assert.ok(!burst.subarray(0, 19).includes(inRing));
      assert.equal(pool.threads, 0);
      pool.put(burst, 19);
      throwsDma('EBUSY', () => pool.free(), /the ring ring carries elements/);
      pool.rings.delete(ring);
      throwsDma('EBUSY', () => pool.free(), /1 element of/);
      pool.put(Int32Array.of(inRing), 1);
      pool.free();
      sources.close();
    });

    it(
      'can be freed by force, when they are gone',
      withPools((pools, { platform }) => {
        const pool = pools.create({ elements: 30, elementSize: 64, cache: 10 });
        const gone = Pool.attach(pool.share(), platform);
        assert.ok(gone.get(new Int32Array(5), 5));
        pool.free({ force: true });
        gone.free();
        throwsDma('EINVAL', () => Pool.attach(gone.share(), platform));
      }),
    );

    it('is used by three at once: no element is in two hands, and all come back', { timeout: 60_000 }, async () => {
      const sources = testSources();
      const pools = new Pools(sources, sharingOf(sources));
      for (const from of ['owned', 'external'] as const) {
        const pool = pools.create({
          elements: 600,
          elementSize: 128,
          cache: 32,
          zero: true,
          external: from === 'external' ? [sources.external.allocate(600 * 128)] : undefined,
        });
        const workers = [1, 2].map(
          (id) => new Worker(new URL(import.meta.url), { workerData: { pool: pool.share(), id } satisfies Orders }),
        );
        const ends = workers.map((worker) => once(worker, 'exit'));
        useElements(pool, 3);
        for (const [status] of await Promise.all(ends)) assert.equal(status, 0);
        assert.equal(pool.available, 600);
        assert.equal(pool.threads, 0);
        for (let i = 0; i < 600; i++) assert.ok(pool.bytes(i).every((byte) => byte === 0));
        pool.free();
      }
      sources.close();
    });
  });

  describe('pools against a model', SKIP, () => {
    it('100,000 bursts: every element is in one hand, and all come back', () => {
      const sources = testSources();
      const pools = new Pools(sources, sharingOf(sources));
      let state = 12345;
      const random = (below: number): number => {
        state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
        return Math.floor((state / 2 ** 32) * below);
      };
      for (const [cache, checked] of [
        [0, false],
        [16, false],
        [64, false],
        [16, true],
      ] as const) {
        const elements = 400;
        const pool = pools.create({ elements, elementSize: 100, cache, checked });
        checkElements(pool);
        const held: number[] = [];
        const isHeld = new Uint8Array(elements);
        const burst = new Int32Array(64);
        for (let round = 0; round < 25_000; round++) {
          const count = random(65);
          if (random(2) === 0) {
            const had = elements - held.length;
            const got = pool.get(burst, count);
            assert.equal(got, count <= had);
            if (!got) continue;
            for (let i = 0; i < count; i++) {
              const element = burst[i];
              assert.equal(isHeld[element]++, 0);
              held.push(element);
            }
          } else {
            const back = Math.min(count, held.length);
            for (let i = 0; i < back; i++) {
              const at = random(held.length);
              const element = held[at];
              const last = held.pop();
              if (last !== undefined && at < held.length) held[at] = last;
              isHeld[element]--;
              burst[i] = element;
            }
            pool.put(burst, back);
          }
          assert.equal(pool.available, elements - held.length);
        }
        pool.put(Int32Array.from(held), held.length);
        assert.equal(pool.available, elements);
        const all = new Int32Array(elements);
        assert.ok(pool.get(all, elements));
        assert.deepEqual(
          all.sort(),
          Int32Array.from(all, (_, i) => i),
        );
        pool.free({ force: true });
      }
      sources.close();
    });

    it('places as many elements as there is room for, each contiguous for devices', () => {
      const platform = openPlatform();
      const external = new External(platform, new AreaIndex());
      const pools = new Pools({ memory: { iova: { mode: 'va' } } as never, heaps: undefined as never });
      const arbitrary = fc.record({
        // The tables of some areas; gaps of 0 are pages that are contiguous.
        areas: fc.array(fc.array(fc.integer({ min: 0, max: 1 }), { minLength: 1, maxLength: 6 }), {
          minLength: 1,
          maxLength: 3,
        }),
        size: fc.integer({ min: 1, max: 3 * PAGE }),
        headroom: fc.integer({ min: 0, max: 300 }),
        align: fc.integer({ min: 0, max: 13 }).map((bits) => 2 ** bits),
      });
      fc.assert(
        fc.property(arbitrary, ({ areas, size, headroom, align }) => {
          const given: ExternalMemory[] = areas.map((gaps, i) => {
            let at = (i + 1) * 100;
            const iovas = gaps.map((gap) => (at += 1 + gap) * PAGE);
            return external.allocate(gaps.length * PAGE, { iovas });
          });
          const iovaAt = (va: number): number => {
            const area = given.find((each) => each.area.range.contains(va))?.area;
            assert.ok(area?.iovas !== undefined);
            const offset = va - area.range.start;
            return area.iovas[Math.floor(offset / PAGE)] + (offset % PAGE);
          };
          // Naively: the first place that an element fits at, and on behind it.
          let room = 0;
          for (const { area } of given) {
            let at: number = area.range.start;
            for (;;) {
              const va = Math.ceil((at + headroom) / align) * align;
              if (va + size > area.range.end) break;
              let cut = va - headroom;
              while (cut < va + size && iovaAt(cut) - iovaAt(va - headroom) === cut - (va - headroom))
                cut = Math.min(va + size, cut - (cut % PAGE) + PAGE);
              if (cut < va + size || iovaAt(va + size - 1) - iovaAt(va) !== size - 1)
                at = nextBreak(va - headroom, iovaAt);
              else {
                room++;
                at = va + size;
              }
            }
          }
          try {
            const shape = { elementSize: size, headroom, align, external: given };
            throwsDma('ENOMEM', () => pools.create({ ...shape, elements: room + 1 }));
            if (room === 0) return;
            using pool = pools.create({ ...shape, elements: room });
            checkElements(pool);
            for (const va of pool.vas) {
              assert.equal(va % align, 0);
              for (let at = va - headroom; at < va + size; at += 64) assert.equal(iovaAt(at) - iovaAt(va), at - va);
              assert.equal(iovaAt(va + size - 1) - iovaAt(va), size - 1);
            }
            assert.deepEqual([...(pool.iovas ?? [])], Array.from(pool.vas, iovaAt));
          } finally {
            for (const each of given) each.unregister();
          }
        }),
        { numRuns: 300 },
      );
    });

    it('cuts runs at the end of every area, and at every page whose place only domains know', () => {
      const external = new External(openPlatform(), new AreaIndex());
      using own = external.allocate(2 * PAGE);
      const runs = [
        ...runsIn(
          own.area.range,
          () => own.area,
          () => 'pa',
          true,
        ),
      ];
      assert.deepEqual(runs, [
        { va: own.va, length: PAGE, iova: undefined },
        { va: own.va + PAGE, length: PAGE, iova: undefined },
      ]);
    });
  });
}

/** The next page boundary after `va` where devices go on elsewhere. */
function nextBreak(va: number, iovaAt: (va: number) => number): number {
  let at = va - (va % PAGE) + PAGE;
  while (iovaAt(at) === iovaAt(at - 1) + 1) at += PAGE;
  return at;
}

/** What a worker of this file is told. */
/** What an `Eal` gives its pools. */
function sharingOf({ platform }: { platform: Platform }): PoolsSharing {
  let holders: Holders | undefined;
  return { port: platform.memory, holders: () => (holders ??= Holders.create(platform.kernel)) };
}

interface Orders {
  readonly pool: PoolDescription;
  readonly id: number;
}

/** Writes its id into what it gets, and looks whether that is still there before it gives it back. */
function useElements(pool: Pool, id: number): void {
  const burst = new Int32Array(48);
  let state = id;
  for (let round = 0; round < 3000; round++) {
    state = (Math.imul(state, 1664525) + 1013904223) | 0;
    const count = (state >>> 8) % 49;
    if (!pool.get(burst, count)) continue;
    for (let i = 0; i < count; i++) {
      const bytes = pool.bytes(burst[i]);
      if (bytes[0] !== 0 || bytes[127] !== 0) throw new Error(`element ${burst[i]} belongs to ${bytes[0]}`);
      bytes.fill(id);
    }
    for (let i = 0; i < count; i++) {
      const bytes = pool.bytes(burst[i]);
      if (bytes[0] !== id || bytes[127] !== id) throw new Error(`element ${burst[i]} went to ${bytes[0]}`);
      bytes.fill(0);
    }
    pool.put(burst, count);
  }
}

if (isMainThread) tests();
else {
  const { pool, id } = workerData as Orders;
  const attached = Pool.attach(pool, openPlatform());
  if (id === 0) {
    // Until it is terminated, with elements in hand and in its cache.
    const burst = new Int32Array(10);
    attached.get(burst, 10);
    parentPort?.postMessage([...burst]);
    parentPort?.on('message', () => undefined);
  } else {
    useElements(attached, id);
    attached.free();
  }
}
