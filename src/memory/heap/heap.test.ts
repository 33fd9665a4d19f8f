/** Heaps over memory of a test; MA-nn are the cases of DPDK's malloc_autotest. */
import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { throwsDma } from '../../../test/shared/errors.js';
import fc from 'fast-check';
import { isDmaError } from '../../errors.js';
import type { MemoryPort } from '../../platform/ports.js';
import { openPlatform } from '../../platform/open.js';
import { Range } from '../../ranges.js';
import { KiB, MiB, type Va } from '../../units.js';
import { Area } from '../area.js';
import { AreaIndex } from '../area-index.js';
import { External } from '../external.js';
import { Heap, type Block, type HeapMemory, type HeapOptions } from './heap.js';
import type { MallocOptions } from './malloc-request.js';
import { HandedOut } from '../retired.js';

const { memory } = openPlatform();
const BASE = 2 ** 40;

/** A heap, and memory for it that is Uint8Arrays at made-up addresses. */
class Bench {
  readonly areas = new AreaIndex();
  readonly heap: Heap;
  readonly emptied: HeapMemory[] = [];
  mode: 'va' | 'pa' = 'va';
  #next = BASE;

  constructor(more: Partial<HeapOptions> = {}) {
    this.heap = new Heap({
      name: 'h',
      id: 256,
      node: -1,
      memory,
      areas: this.areas,
      iovaMode: () => this.mode,
      origins: false,
      sameIova: false,
      ownViews: false,
      ...more,
    });
  }

  add(length: number, { pageSize = 4 * KiB, iovas = undefined as number[] | undefined, hole = 0 } = {}): HeapMemory {
    const range = new Range((this.#next + hole) as Va, length);
    this.#next = range.end;
    const area = new Area({ range, pageSize, owner: 'heap', label: 'test memory', iovas });
    this.areas.add(area);
    const bytes = new Uint8Array(length).fill(0xa5);
    const part: HeapMemory = {
      range,
      pageSize,
      areas: [area],
      handedOut: new HandedOut(),
      bytes: (va, size) => bytes.subarray(va - range.start, va - range.start + size),
    };
    this.heap.add(part);
    return part;
  }
}

function bench(length = 4 * MiB): Bench {
  const made = new Bench();
  made.add(length);
  return made;
}

const text = (block: Block): string => Buffer.from(block.bytes()).toString('latin1').replace(/\0+$/, '');
const write = (block: Block, what: string): void =>
  void Buffer.from(block.bytes().buffer, block.bytes().byteOffset).write(what);

describe('malloc', () => {
  it('MA-01 zero_aligned_alloc: an alignment of 0 is 64', () => {
    const { heap } = bench();
    assert.equal(heap.malloc(1024, { align: 0 }).va % 64, 0);
    assert.equal(heap.malloc(1).va % 64, 0);
  });

  it('MA-02 bad_params', () => {
    const { heap } = bench();
    for (const size of [0, -8, NaN, 1.5, 2 ** 53, Infinity]) throwsDma('EINVAL', () => heap.malloc(size));
    for (const align of [17, -64, NaN, 2 ** 60, 96]) throwsDma('EINVAL', () => heap.malloc(64, { align }));
    const block = heap.malloc(64);
    throwsDma('EINVAL', () => heap.realloc(block, 0));
    throwsDma('EINVAL', () => heap.realloc(block, 64, { align: 17 }));
    assert.equal(block.live, true);
    throwsDma('EINVAL', () => heap.malloc(100, { boundary: 96 }), /not a power of two/);
    throwsDma('EINVAL', () => heap.malloc(100, { boundary: 32 }), /do not fit/);
    assert.equal(heap.malloc(20, { boundary: 32 }).va % 64, 0);
  });

  it('MA-03 realloc: in place where it fits, else somewhere else, and the content stays', () => {
    const { heap } = bench(64 * KiB);
    const a = heap.malloc(1024, { zero: true });
    write(a, 'hello');
    const b = heap.realloc(a, 2048, { zero: true });
    assert.equal(b.va, a.va);
    assert.equal(a.live, false);
    assert.equal(text(b), 'hello', 'and a tail of zeros');
    const behind = heap.calloc(1, 2048);
    assert.ok(behind.bytes().every((byte) => byte === 0));
    const further = heap.malloc(64);
    assert.equal(behind.va, b.va + 2048);
    behind.free();
    const c = heap.realloc(b, 3072);
    assert.equal(c.va, b.va, 'into what was freed behind it');
    const d = heap.realloc(c, 4096);
    assert.equal(d.va, b.va, 'into all of it');
    const e = heap.realloc(d, 512);
    assert.equal(e.va, b.va);
    const f = heap.realloc(e, 512, { align: 8 * KiB });
    assert.equal(f.va % (8 * KiB), 0);
    assert.equal(text(f), 'hello');
    const g = heap.malloc(64);
    const moved = heap.realloc(f, 32 * KiB);
    assert.equal(text(moved).slice(0, 5), 'hello');
    for (const block of [further, g, moved]) block.free();
    assert.deepEqual(heap.statistics(), { ...bench(64 * KiB).heap.statistics() });
    assert.equal(heap.validate(heap.malloc(1024)), 1024);
  });

  it('realloc: what does not hold any more moves it, and when there is no room the old one stays', () => {
    const { heap } = bench(16 * KiB);
    const first = heap.malloc(4096 - 64);
    const low = heap.malloc(64);
    const across = heap.realloc(low, 128, { boundary: 4096 });
    assert.notEqual(Math.floor(across.va / 4096), Math.floor((low.va + 4096) / 4096) - 1);
    write(across, 'stays');
    throwsDma('ENOMEM', () => heap.realloc(across, 64 * KiB), /16 KiB/);
    assert.equal(across.live, true);
    assert.equal(text(across).slice(0, 5), 'stays');
    first.free();
  });

  it('MA-04 realloc into another heap', () => {
    const one = bench();
    const other = new Bench();
    other.add(MiB, { hole: MiB * 16 });
    const block = one.heap.malloc(100);
    write(block, 'on its way');
    const there = other.heap.realloc(block, 200);
    assert.equal(there.heap, other.heap);
    assert.equal(text(there).slice(0, 10), 'on its way');
    assert.equal(block.live, false);
    assert.equal(one.heap.statistics().allocatedBlocks, 0);
  });

  it('MA-05, MA-06 align_overlap, reordered_free: aligned, apart, zero, freed in any order', () => {
    const { heap } = bench();
    const before = heap.statistics();
    for (const order of [
      [0, 1, 2],
      [0, 2, 1],
      [1, 0, 2],
      [1, 2, 0],
      [2, 0, 1],
      [2, 1, 0],
    ]) {
      const blocks = [
        heap.malloc(1000, { align: 8, zero: true }),
        heap.calloc(1000, 16),
        heap.malloc(1000, { align: 2048 }),
      ];
      assert.ok(blocks[0].bytes().every((byte) => byte === 0) && blocks[1].bytes().every((byte) => byte === 0));
      assert.equal(blocks[2].va % 2048, 0);
      blocks.forEach((block) => block.bytes().fill(0xff));
      const ranges = blocks.map(({ va, length }) => new Range(va, length));
      assert.ok(!ranges[0].overlaps(ranges[1]) && !ranges[1].overlaps(ranges[2]) && !ranges[0].overlaps(ranges[2]));
      for (const n of order) blocks[n].free();
      assert.deepEqual(heap.statistics(), before);
    }
  });

  it('MA-08 validate', () => {
    const { heap } = bench();
    const block = heap.malloc(100);
    assert.equal(heap.validate(block), 128);
    block.free();
    throwsDma('EINVAL', () => heap.validate(block));
    throwsDma('EINVAL', () => heap.validate(bench().heap.malloc(1)));
  });

  it('MA-10 multi_alloc_statistics', () => {
    const { heap } = bench();
    const empty = heap.statistics();
    assert.deepEqual(empty, {
      total: 4 * MiB,
      free: 4 * MiB,
      allocated: 0,
      greatestFree: 4 * MiB,
      allocatedBlocks: 0,
      escaped: 0,
      escapedBlocks: 0,
      freeBlocks: 1,
    });
    heap.malloc(2048, { align: 1024 }).free();
    assert.deepEqual(heap.statistics(), empty);
    const one = heap.malloc(1024);
    const first = heap.statistics();
    const two = heap.malloc(1024);
    const second = heap.statistics();
    assert.equal(second.allocated - first.allocated, 1024, 'there is no overhead');
    assert.equal(second.allocatedBlocks, 2);
    assert.equal(second.freeBlocks, first.freeBlocks);
    assert.equal(second.total, first.total);
    assert.ok(second.free < first.free);
    one.free();
    two.free();
    assert.deepEqual(heap.statistics(), empty);
  });

  it('MA-11 free_sensitive', () => {
    const made = new Bench();
    const part = made.add(MiB);
    const key = made.heap.malloc(128);
    key.bytes().fill(0x5a);
    key.free({ wipe: true });
    assert.ok(part.bytes(key.va, 128).every((byte) => byte === 0));
    assert.equal(part.bytes((key.va + 128) as Va, 1)[0], 0xa5);
    const kept = made.heap.malloc(128);
    kept.bytes().fill(0x5a);
    kept.free();
    assert.ok(
      part.bytes(kept.va, 128).every((byte) => byte === 0x5a),
      'not cleared without being asked for',
    );
  });

  it('1.4.14: a product that is no size is EINVAL', () => {
    const { heap } = bench();
    throwsDma('EINVAL', () => heap.calloc(2 ** 30, 2 ** 30));
    throwsDma('EINVAL', () => heap.calloc(-1, -8));
    throwsDma('EINVAL', () => heap.calloc(0, 8));
    assert.equal(heap.calloc(3, 5).length, 15);
  });

  it('says what there is when there is no room', () => {
    const { heap } = bench(64 * KiB);
    heap.malloc(60 * KiB);
    throwsDma('ENOMEM', () => heap.malloc(5 * KiB), /no room for 5 KiB.*64 KiB, 4 KiB of them free, at most 4 KiB/);
    throwsDma('ENOMEM', () => new Bench().heap.malloc(64), /it has no memory/);
  });

  it('keeps to boundaries, and to single pieces of memory', () => {
    const made = bench(64 * KiB);
    made.add(64 * KiB);
    const { heap } = made;
    for (let n = 0; n < 20; n++) {
      const { va, length } = heap.malloc(3000, { boundary: 4096 });
      assert.equal(Math.floor(va / 4096), Math.floor((va + length - 1) / 4096));
    }
    for (const block of [...heap.blocks]) block.free();
    throwsDma('ENOMEM', () => heap.malloc(100 * KiB), /128 KiB of them free, at most 64 KiB/);
  });

  it('on pages of the sizes that are wanted', () => {
    const made = new Bench({ grow: () => undefined });
    made.add(2 * MiB, { pageSize: 4 * KiB });
    made.add(2 * MiB, { pageSize: 2 * MiB, hole: 2 * MiB });
    const on = (options: MallocOptions): number => made.heap.malloc(64, options).area.pageSize;
    assert.equal(on({ pageSizes: [2 * MiB] }), 2 * MiB);
    assert.equal(on({ pageSizes: [4 * KiB] }), 4 * KiB);
    throwsDma('ENOMEM', () => on({ pageSizes: [1024 * MiB] }));
    assert.equal(on({ pageSizes: [1024 * MiB], pageSizeHint: true }), 4 * KiB);
    const small = made.heap.malloc(64, { pageSizes: [4 * KiB] });
    assert.equal(made.heap.realloc(small, 128, { pageSizes: [2 * MiB] }).area.pageSize, 2 * MiB);
    const users = new Bench();
    users.add(MiB);
    assert.equal(users.heap.malloc(64, { pageSizes: [2 * MiB] }).area.pageSize, 4 * KiB, '1.4.13: a wish there');
  });

  it('the largest that there is', () => {
    const made = bench(64 * KiB);
    made.add(256 * KiB, { hole: 64 * KiB, pageSize: 64 * KiB });
    const { heap } = made;
    const block = heap.mallocLargest();
    assert.equal(block.length, 256 * KiB);
    assert.equal(heap.statistics().allocatedBlocks, 1);
    assert.equal(heap.mallocLargest({ boundary: 4096 }).length, 4096);
    assert.equal(heap.mallocLargest({ align: 32 * KiB }).length, 32 * KiB);
    block.free();
    assert.equal(heap.mallocLargest({ pageSizes: [4096] }).length, 28 * KiB);
  });
});

describe('contiguity, and IOVAs', () => {
  const P = 4 * KiB;
  it('by the table of the area', () => {
    const made = new Bench();
    // Runs of 1, 2 and 1 pages.
    const part = made.add(4 * P, { iovas: [0x100000, 0x200000, 0x201000, 0x300000] });
    const pair = made.heap.malloc(2 * P, { contiguous: true });
    assert.equal(pair.va, part.range.start + P);
    assert.equal(pair.iova, 0x200000);
    pair.free();
    throwsDma('ENOMEM', () => made.heap.malloc(3 * P, { contiguous: true }));
    assert.equal(made.heap.mallocLargest({ contiguous: true }).length, 2 * P);
    const last = made.heap.malloc(100, { align: P });
    assert.equal(last.iova, [0x100000, 0x200000, 0x201000, 0x300000][(last.va - part.range.start) / P]);
  });

  it('a block that is in pieces for devices has no IOVA', () => {
    const made = new Bench();
    const part = made.add(4 * P, { iovas: [0x100000, 0x200000, 0x201000, 0x300000] });
    const all = made.heap.malloc(4 * P);
    assert.equal(all.va, part.range.start);
    assert.equal(all.iova, undefined);
    all.free();
    const inside = [made.heap.malloc(P), made.heap.malloc(P), made.heap.malloc(64)];
    assert.deepEqual(
      inside.map(({ iova }) => iova),
      [0x100000, 0x200000, 0x201000],
    );
  });

  it('without a table only domains know, unless all are to have the same', () => {
    const made = bench();
    const block = made.heap.malloc(3 * P, { contiguous: true });
    assert.equal(block.iova, undefined);
    block.area.sameIova = true;
    assert.equal(block.iova, Number(block.va));
    block.area.sameIova = false;
    made.mode = 'pa';
    assert.equal(block.iova, undefined);
    throwsDma('ENOMEM', () => made.heap.malloc(P + 1, { contiguous: true }));
    assert.equal(made.heap.malloc(P, { contiguous: true, align: 64 }).va % P, 0, 'inside one page it is contiguous');
  });

  it('in place only as far as it goes', () => {
    const made = new Bench();
    made.add(4 * P, { iovas: [0x100000, 0x101000, 0x300000, 0x301000] });
    const block = made.heap.malloc(P, { contiguous: true });
    const longer = made.heap.realloc(block, 2 * P, { contiguous: true });
    assert.equal(longer.va, block.va);
    throwsDma('ENOMEM', () => made.heap.realloc(longer, 3 * P, { contiguous: true }));
  });
});

describe('a block', () => {
  it('is found by any address in it', () => {
    const { heap } = bench();
    const block = heap.malloc(1000);
    assert.equal(heap.blockAt(block.va), block);
    assert.equal(heap.blockAt(block.va + 999), block);
    assert.equal(heap.blockAt(block.va + 1024), undefined);
    assert.equal(heap.blockAt(3), undefined);
    block.free();
    assert.equal(heap.blockAt(block.va), undefined);
  });

  it('is freed once, and disposed of as often as you like', () => {
    const { heap } = bench();
    const block = heap.malloc(64);
    block.free();
    throwsDma('EINVAL', () => block.free());
    block[Symbol.dispose]();
    for (const use of [() => block.bytes(), () => block.iova, () => block.area, () => block.pin()])
      throwsDma('EINVAL', use);
    throwsDma('EINVAL', () => heap.realloc(block, 64));
    {
      using scoped = heap.malloc(64);
      assert.equal(scoped.live, true);
    }
    assert.equal(heap.statistics().allocatedBlocks, 0);
  });

  it('that is pinned stays', () => {
    const { heap } = bench();
    const block = heap.malloc(64);
    const pin = block.pin('a transfer of the test');
    throwsDma('EBUSY', () => block.free(), /a transfer of the test/);
    throwsDma('EBUSY', () => heap.realloc(block, 128));
    pin[Symbol.dispose]();
    block.free();
  });

  it('that a command uses stays, and so does one that it uses a part of', () => {
    const { heap, areas } = bench();
    const [block, beside] = [heap.malloc(128), heap.malloc(64)];
    const uses = (start: number, end: number): string | undefined =>
      start <= block.va + 64 && block.va + 64 < end ? 'a write of 2 blocks' : undefined;
    const end = areas.users.add({ device: 'pci:1', uses });
    throwsDma('EBUSY', () => block.free(), /a write of 2 blocks uses this memory .*on pci:1/);
    throwsDma('EBUSY', () => heap.realloc(block, 256));
    beside.free();
    end();
    block.free();
  });

  it('tells where it was made, if that is wanted', () => {
    const made = new Bench({ origins: true });
    made.add(MiB);
    assert.match(String(made.heap.malloc(64).origin?.stack), /heap\.test/);
    assert.equal(bench().heap.malloc(64).origin, undefined);
  });
});

describe('memory of a heap', () => {
  it('is not taken away while a block is in it', () => {
    const made = new Bench();
    const part = made.add(MiB);
    const block = made.heap.malloc(64);
    throwsDma('EBUSY', () => made.heap.remove(part), /1 block of the heap h/);
    assert.equal(made.heap.isEmpty(part), false);
    block.free();
    made.heap.remove(part);
    assert.deepEqual(made.heap.statistics(), new Bench().heap.statistics());
  });

  it('is reported once nothing is in it', () => {
    const emptied: HeapMemory[] = [];
    const made = new Bench({ emptied: (part) => emptied.push(part) });
    const [a, b] = [made.add(64 * KiB), made.add(64 * KiB)];
    const blocks = [1, 2, 3, 4].map(() => made.heap.malloc(32 * KiB));
    for (const block of blocks) block.free();
    assert.deepEqual(new Set(emptied), new Set([a, b]));
    assert.equal(emptied.length, 2);
  });

  it('grows until it fits', () => {
    let calls = 0;
    const made: Bench = new Bench({
      grow: ({ size }, fits) => {
        calls++;
        assert.equal(size, 100 * KiB);
        made.add(64 * KiB);
        assert.equal(fits(), false);
        made.add(128 * KiB);
        assert.equal(fits(), true);
      },
    });
    assert.equal(made.heap.malloc(100 * KiB).length, 100 * KiB);
    assert.equal(calls, 1);
    made.heap.malloc(20 * KiB);
    assert.equal(calls, 1);
  });
});

describe('views of blocks', { skip: openPlatform().limitation ?? false }, () => {
  it('are exactly the block, and end with it', () => {
    const areas = new AreaIndex();
    const external = new External(openPlatform(), areas);
    const port: MemoryPort = openPlatform().memory;
    const source = external.allocate(64 * KiB);
    const options = {
      name: 'h',
      id: 256,
      node: -1,
      memory: port,
      areas,
      origins: false,
      sameIova: false,
      ownViews: true,
    };
    const heap = new Heap({ ...options, iovaMode: () => 'va' });
    const { range } = source.area;
    heap.add({
      range,
      pageSize: 4096,
      areas: [source.area],
      handedOut: source.handedOut,
      bytes: (va, length) => source.bytes(va - range.start, length),
    });
    const [first, second] = [heap.malloc(100, { zero: true }), heap.malloc(100)];
    const bytes = first.bytes();
    assert.equal(bytes.buffer.byteLength, 100, 'what is next to it can not be reached');
    bytes.fill(7);
    first.bytes(50).fill(9);
    assert.equal(source.bytes()[first.va - range.start + 99], 9);
    const longer = heap.realloc(first, 64);
    assert.equal(bytes.length, 0);
    assert.deepEqual([...longer.bytes(48, 4)], [7, 7, 9, 9]);
    const other = second.bytes();
    assert.equal(other.length, 100);
    throwsDma('EINVAL', () => second.bytes(90, 11));
    longer.free();
    assert.equal(other.length, 100);
    heap.expire();
    assert.equal(other.length, 0);
    source.unregister();
  });
});

describe('100,000 operations', () => {
  it('MA-07 random: agree with a naive model, and end where they began', () => {
    const made = bench(2 * MiB);
    made.add(2 * MiB, { hole: 4096 });
    made.add(2 * MiB, { pageSize: 2 * MiB, hole: 2 * MiB - 4096 });
    const { heap } = made;
    const empty = heap.statistics();
    let seed = 12345;
    const random = (below: number): number => {
      seed = (Math.imul(seed, 1103515245) + 12345) >>> 0;
      return Math.floor((seed / 2 ** 32) * below);
    };
    const live: Block[] = [];
    const marks = new Map<Block, number>();
    const forget = (n: number): Block => {
      const block = live[n];
      live[n] = live[live.length - 1];
      live.pop();
      const bytes = block.bytes();
      assert.ok(
        bytes[0] === marks.get(block) && bytes[bytes.length - 1] === marks.get(block),
        'nobody else wrote to it',
      );
      marks.delete(block);
      return block;
    };
    const keep = (block: Block): void => {
      const mark = random(256);
      const bytes = block.bytes();
      bytes[0] = mark;
      bytes[bytes.length - 1] = mark;
      live.push(block);
      marks.set(block, mark);
    };
    for (let n = 0; n < 100_000; n++) {
      const what = random(10);
      const options = { align: 2 ** random(12), contiguous: random(2) === 0, zero: random(100) === 0 };
      const size = 1 + random(random(4) === 0 ? 64 * KiB : 2 * KiB);
      try {
        if (what < 5) {
          const block = heap.malloc(size, options);
          assert.equal(block.va % Math.max(options.align, 64), 0);
          assert.ok(heap.validate(block) >= size);
          if (options.zero) assert.equal(block.bytes().indexOf(1), -1);
          keep(block);
        } else if (what < 9) {
          if (live.length > 0) forget(random(live.length)).free();
        } else if (live.length > 0) {
          keep(heap.realloc(forget(random(live.length)), size, { align: options.align }));
        }
      } catch (error) {
        assert.ok(isDmaError(error, 'ENOMEM'), String(error));
        // A block that could not be made longer is as it was.
        for (const block of heap.blocks) if (!marks.has(block)) keep(block);
      }
      if (n % 5000 === 0) {
        const sorted = [...live].sort((a, b) => a.va - b.va);
        for (let i = 1; i < sorted.length; i++) assert.ok(sorted[i - 1].va + sorted[i - 1].length <= sorted[i].va);
        const { allocated, allocatedBlocks, free, total } = heap.statistics();
        const rounded = live.reduce((sum, { length }) => sum + Math.ceil(length / 64) * 64, 0);
        assert.deepEqual(
          { allocated, allocatedBlocks, free },
          { allocated: rounded, allocatedBlocks: live.length, free: total - rounded },
        );
      }
    }
    while (live.length > 0) forget(0).free();
    assert.deepEqual(heap.statistics(), empty);
  });

  it('short sequences with pieces that come and go', () => {
    fc.assert(
      fc.property(fc.array(fc.tuple(fc.nat(5), fc.nat(40), fc.nat(9)), { maxLength: 60 }), (steps) => {
        const made = new Bench();
        const parts: HeapMemory[] = [];
        const live: Block[] = [];
        for (const [what, amount, which] of steps) {
          if (what === 0) parts.push(made.add(16 * KiB, { hole: which % 2 === 0 ? 0 : 4096 }));
          else if (what === 1 && parts.length > 0) {
            const part = parts[which % parts.length];
            const used = live.some(({ va }) => part.range.contains(va));
            if (used) throwsDma('EBUSY', () => made.heap.remove(part));
            else {
              made.heap.remove(part);
              parts.splice(parts.indexOf(part), 1);
            }
          } else if (what < 4) {
            try {
              const block = made.heap.malloc(amount * 100 + 1);
              assert.equal(parts.filter(({ range }) => range.covers(new Range(block.va, block.length))).length, 1);
              live.push(block);
            } catch (error) {
              assert.ok(isDmaError(error, 'ENOMEM'));
              assert.ok(made.heap.statistics().greatestFree < amount * 100 + 1);
            }
          } else if (live.length > 0) live.splice(which % live.length, 1)[0].free();
          assert.equal(made.heap.total, parts.length * 16 * KiB);
          assert.equal([...made.heap.blocks].length, live.length);
        }
      }),
    );
  });
});
