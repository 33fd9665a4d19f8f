/** Zones; MZ-nn are the cases of DPDK's memzone_autotest, ME-nn those of its memory_autotest. */
import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { throwsDma } from '../../../test/shared/errors.js';
import { openPlatform } from '../../platform/open.js';
import { Range } from '../../ranges.js';
import { GiB, KiB, MiB, type Va } from '../../units.js';
import type { Area } from '../area.js';
import type { MallocOptions } from '../heap/malloc-request.js';
import { testSources, type TestSources, type TestSourcesOptions } from '../../../test/fakes/memory/heap-sources.js';
import { Zones, type Zone } from './zones.js';

const SKIP = { skip: openPlatform().limitation ?? false };
const P2 = 2 * MiB;

/** Zones over the memory of a test, which is checked for leaks at the end. */
function withZones(work: (zones: Zones, sources: TestSources) => void, options?: TestSourcesOptions): () => void {
  return () => {
    const sources = testSources(options);
    const zones = new Zones(sources);
    work(zones, sources);
    for (const zone of [...zones]) zone.free();
    sources.close();
  };
}

const names = (zones: Iterable<Zone>): string[] => [...zones].map(({ name }) => name);

function assertDisjoint(zones: readonly Zone[]): void {
  const ranges = zones.map(({ va, length }) => new Range(va, length));
  ranges.forEach((range, i) => ranges.slice(i + 1).forEach((other) => assert.ok(!range.overlaps(other))));
}

/** Adds a heap over memory of the user's, with 4 KiB pages. */
function addHeap({ heaps: heap, external }: TestSources, name: string, length: number, iovas?: number[]): void {
  heap.create(name);
  heap.addMemory(name, external.allocate(length, { iovas }));
}

describe('memzone_autotest', SKIP, () => {
  it(
    'MZ-01 basic: sizes, addresses, look-up, duplicates, and what there is',
    withZones(
      (zones) => {
        const made = [
          zones.reserve('any', 100),
          zones.reserve('node 0', 1000, { node: 0 }),
          zones.reserve('node 1', 1000, { node: 1 }),
          zones.reserve('1024', 1024),
        ];
        assert.deepEqual(
          made.map(({ length }) => length),
          [128, 1024, 1024, 1024],
        );
        for (const zone of made) {
          assert.equal(zone.iova, undefined);
          assert.equal(zone.va % 64, 0);
          assert.equal(zones.find(zone.name), zone);
          zone.bytes().fill(7);
          assert.equal(zone.bytes(1, 2).length, 2);
        }
        assertDisjoint(made);
        assert.deepEqual(
          made.map(({ node, heap }) => [node, heap.id]),
          [
            [0, 0],
            [0, 0],
            [1, 1],
            [0, 0],
          ],
        );
        throwsDma('EEXIST', () => zones.reserve('any', 1), /"any"/);
        assert.deepEqual(names(zones), ['any', 'node 0', 'node 1', '1024']);
        assert.equal(zones.size, 4);
        for (const zone of made) zones.free(zone);
        assert.equal(zones.size, 0);
      },
      { pages: [{ pageSize: P2, pages: [4, 4] }] },
    ),
  );

  it(
    'MZ-02 free: the name is free again, and there can be any number',
    withZones((zones, { memory }) => {
      const zone = zones.reserve('a', 64);
      zones.free('a');
      assert.equal(zones.find('a'), undefined);
      throwsDma('EINVAL', () => zones.free(zone), /was freed/);
      throwsDma('EINVAL', () => zone.free());
      throwsDma('ENOENT', () => zones.free('a'), /no zone "a"/);
      const again = zones.reserve('a', 64);
      throwsDma('EINVAL', () => zones.free(zone));
      assert.equal(zones.find('a'), again);
      // DPDK's table has 2560 slots.
      for (let i = 0; i < 6000; i++) zones.reserve(`zone ${i}`, 64);
      assert.equal(zones.size, 6001);
      assert.equal(memory.heaps[0].statistics().allocatedBlocks, 6001);
      zones.free('zone 17');
      zones.reserve('the last', 64);
      assert.equal(names(zones).at(-1), 'the last');
    }),
  );

  it(
    'MZ-03 a size of -1, and others that are none, are refused',
    withZones((zones) => {
      for (const size of [-1, NaN, 1.5, Infinity, 2 ** 53 - 1]) throwsDma('EINVAL', () => zones.reserve('a', size));
      throwsDma('ENOMEM', () => zones.reserve('a', 2 ** 52));
      assert.equal(zones.size, 0);
    }),
  );

  it(
    'MZ-04 page sizes: what there is, what is wished for, what is demanded, and either of two',
    withZones(
      (zones) => {
        const on = (pageSizes: number[], pageSizeHint = false): number => {
          using zone = zones.reserve('z', 100, { pageSizes, pageSizeHint });
          return zone.pageSize;
        };
        assert.equal(on([P2]), P2);
        assert.equal(on([4 * KiB]), 4 * KiB);
        assert.notEqual(on([GiB], true), GiB);
        throwsDma('ENOMEM', () => on([GiB]), /1 GiB/);
        throwsDma('ENOMEM', () => on([16 * MiB, 16 * GiB]));
        assert.equal(on([P2, GiB]), P2);
      },
      { pages: [{ pageSize: P2, pages: [4] }] },
    ),
  );

  it(
    'MZ-05 aligned: addresses are as asked, at least 64',
    withZones((zones) => {
      const made = [32, 128, 256, 512, 1024].map((align) => zones.reserve(`${align}`, 100, { align }));
      for (const zone of made) {
        assert.equal(zone.va % Math.max(64, Number(zone.name)), 0);
        assert.equal(zone.length % 64, 0);
      }
      assertDisjoint(made);
    }),
  );

  it(
    'MZ-06 bounded: no zone crosses a multiple of its boundary',
    withZones((zones) => {
      throwsDma('EINVAL', () => zones.reserve('a', 100, { boundary: 2 ** 32 - 1 }), /power of two/);
      throwsDma('EINVAL', () => zones.reserve('a', 100, { boundary: 32 }));
      for (const [length, align, boundary] of [
        [100, 128, 128],
        [100, 256, 128],
        [100, 64, 1024],
        [0, 64, 1024],
      ]) {
        const made = Array.from({ length: 30 }, (_, i) => {
          zones.reserve(`filler ${length} ${align} ${boundary} ${i}`, 64 * (i % 5) + 1);
          return zones.reserve(`${length} ${align} ${boundary} ${i}`, length, { align, boundary });
        });
        for (const zone of made) {
          assert.equal(zone.length, length === 0 ? boundary : 128);
          assert.equal(Math.floor(zone.va / boundary), Math.floor((zone.va + zone.length - 1) / boundary));
        }
      }
    }),
  );

  it(
    'MZ-07 an alignment of 100 is refused',
    withZones((zones) => throwsDma('EINVAL', () => zones.reserve('a', 100, { align: 100 }), /power of two/)),
  );

  it(
    'MZ-08 reserve_max: all of the largest free block, without growth',
    withZones((zones, sources) => {
      const { memory } = sources;
      throwsDma('ENOMEM', () => zones.reserve('nothing is there yet', 0));
      zones.reserve('a', 100);
      const { greatestFree, total } = memory.heaps[0].statistics();
      const all = zones.reserve('all', 0);
      assert.equal(all.length, greatestFree);
      throwsDma('ENOMEM', () => zones.reserve('more', 0));
      all.free();
      const aligned = zones.reserve('aligned', 0, { align: 4 * KiB });
      assert.equal(aligned.va % (4 * KiB), 0);
      assert.ok(aligned.length <= greatestFree && aligned.length > greatestFree - 4 * KiB);
      assert.equal(memory.heaps[0].statistics().total, total);
      // When a node has nothing left, the next one has.
      addHeap(sources, 'mine', 64 * KiB);
      assert.equal(zones.reserve('mine', 0, { heap: 'mine' }).length, 64 * KiB);
    }),
  );

  it(
    'MZ-08 reserve_max goes on to the next node',
    withZones(
      (zones) => {
        zones.reserve('b', 100, { node: 1 });
        assert.equal(zones.reserve('all', 0).node, 1);
      },
      { pages: [{ pageSize: P2, pages: [4, 4] }] },
    ),
  );

  it('MZ-09 nothing is left, and zones end with their memory', () => {
    const sources = testSources();
    const zones = new Zones(sources);
    const before = sources.memory.malloc(64);
    const zone = zones.reserve('a', 100);
    const bytes = zone.bytes();
    {
      using _other = zones.reserve('b', 100);
    }
    assert.deepEqual(names(zones), ['a']);
    before.free();
    sources.close();
    assert.equal(bytes.length, 0);
    assert.equal(zone.live, false);
    assert.deepEqual(names(zones), []);
    assert.equal(zones.find('a'), undefined);
    zone[Symbol.dispose]();
    throwsDma('EINVAL', () => zone.bytes());
    throwsDma('EINVAL', () => zone.iova);
  });
});

describe('zones', SKIP, () => {
  it(
    'are refused for one reason at a time: the name, then whether it is new, then the shape, then the memory',
    withZones((zones) => {
      const bad: MallocOptions = { align: 3, heap: 'none' };
      throwsDma('EINVAL', () => zones.reserve('', -1, bad), /is not a valid name of a zone/);
      throwsDma('EINVAL', () => zones.reserve(17 as never, -1, bad), /is not a valid name of a zone/);
      throwsDma('ENAMETOOLONG', () => zones.reserve('x'.repeat(32), -1, bad), /32 bytes/);
      throwsDma('ENAMETOOLONG', () => zones.reserve('ä'.repeat(16), 1));
      zones.reserve('x'.repeat(31), 1);
      throwsDma('EEXIST', () => zones.reserve('x'.repeat(31), -1, bad));
      throwsDma('EINVAL', () => zones.reserve('a', -1, bad), /-1 bytes/);
      throwsDma('ENOENT', () => zones.reserve('a', 1, bad), /no heap "none"/);
      throwsDma('EINVAL', () => zones.reserve('a', 1, { node: 7 }), /no NUMA node 7/);
      throwsDma('EINVAL', () => zones.reserve('a', 1, { heap: 'socket_0', node: 1 }), /not on NUMA node 1/);
    }),
  );

  it(
    'come from heaps over memory of the user, and are contiguous if that is asked for',
    withZones((zones, sources) => {
      const page = 4 * KiB;
      addHeap(sources, 'mine', 4 * page, [8 * page, 100 * page, 101 * page, 7 * page]);
      const zone = zones.reserve('two pages', 2 * page, { heap: 'mine', contiguous: true });
      assert.equal(zone.iova, 100 * page);
      assert.deepEqual([zone.pageSize, zone.heap.name, zone.heap.id], [page, 'mine', 256]);
      throwsDma('ENOMEM', () => zones.reserve('b', 2 * page, { heap: 'mine', contiguous: true }));
      const [first, last] = [zones.reserve('c', page, { heap: 'mine' }), zones.reserve('d', page, { heap: 'mine' })];
      assert.deepEqual([first.iova, last.iova].sort(), [7 * page, 8 * page].sort());
      throwsDma('EBUSY', () => sources.heaps.destroy('mine'));
    }),
  );

  it(
    'are zeroed or wiped when that is asked for, and stay while they are pinned',
    withZones((zones, sources) => {
      addHeap(sources, 'mine', 4 * KiB);
      const at = { heap: 'mine' };
      zones
        .reserve('a', 4 * KiB, at)
        .bytes()
        .fill(1);
      zones.free('a');
      using dirty = zones.reserve('a', 4 * KiB, at);
      assert.ok(dirty.bytes().every((byte) => byte === 1));
      dirty.free();
      const clean = zones.reserve('a', 4 * KiB, { ...at, zero: true });
      assert.ok(clean.bytes().every((byte) => byte === 0));
      const pin = clean.pin('a test');
      throwsDma('EBUSY', () => zones.free(clean), /a test/);
      assert.equal(zones.find('a'), clean);
      pin[Symbol.dispose]();
      clean.bytes().fill(1);
      clean.free({ wipe: true });
      const [area] = sources.external;
      assert.ok(area.bytes().every((byte) => byte === 0));
    }),
  );

  it(
    'are refused when a handler takes their name while memory grows for them',
    withZones((zones, sources) => {
      zones.reserve('first', MiB);
      // Only until then: memory that goes back later may come again, when no zone can be made any more.
      using _taker = sources.memory.addHandler({
        grown: () => {
          if (zones.find('a') === undefined) zones.reserve('a', 64);
        },
      });
      const { allocatedBlocks } = sources.memory.heaps[0].statistics();
      throwsDma('EEXIST', () => zones.reserve('a', 64 * MiB));
      assert.equal(sources.memory.heaps[0].statistics().allocatedBlocks, allocatedBlocks + 1);
      assert.equal(zones.find('a')?.length, 64);
    }),
  );
});

describe('memory_autotest', SKIP, () => {
  it('ME-01 there is memory, and every byte of every page can be read', () => {
    const sources = testSources();
    sources.memory.malloc(3 * MiB);
    const { lists } = sources.memory.facts();
    assert.ok(lists.reduce((sum, { pages, pageSize }) => sum + pages * pageSize, 0) >= 4 * MiB);
    for (const { range } of sources.areas) {
      const bytes = sources.memory.bytesAt(range.start, range.length);
      assert.equal(bytes?.length, range.length);
      assert.ok(bytes.every((byte) => byte === 0));
    }
    sources.close();
  });

  it('ME-02 every page has a descriptor and an offset in it', () => {
    const sources = testSources();
    const block = sources.memory.malloc(3 * MiB);
    block.bytes().fill(9);
    const areas: Area[] = [...sources.areas];
    assert.ok(areas.length > 0);
    for (const area of areas) {
      for (let va: number = area.range.start; va < area.range.end; va += area.pageSize) {
        const backing = area.backingAt(va as Va);
        assert.ok(backing !== undefined);
        const one = new Uint8Array(1);
        assert.equal(sources.platform.files.readAt(backing.fd, backing.offset, one), 1);
        assert.equal(one[0], va >= block.va && va < block.va + block.length ? 9 : 0);
      }
    }
    sources.close();
  });
});
