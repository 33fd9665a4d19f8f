/** The allocator where hundreds of free blocks have nearly the same size, so that what it remembers of its searches matters. */
import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import fc from 'fast-check';
import { KiB } from '../../units.js';
import { BlockAllocator } from './block-allocator.js';
import type { RunOf } from './examined.js';

const BASE = 0x7f00_0000_0000;
/** From the start of one place to that of the next. */
const PLACE = 8 * KiB;
const UNIT = 1024;

/** Memory that is contiguous in units only, but where `pairs` says that two of them are. */
function contiguity(pairs: ReadonlySet<number>): RunOf {
  return (start, length) => {
    const unit = Math.floor((start - BASE) / UNIT);
    const end = BASE + (unit + (pairs.has(unit) ? 2 : 1)) * UNIT;
    return Math.min(length, end - start);
  };
}

/** Free blocks of `sizeOf(i)` bytes, with gaps between them. */
function crowd(count: number, sizeOf: (i: number) => number): BlockAllocator {
  const allocator = new BlockAllocator();
  for (let i = 0; i < count; i++) allocator.addRange(BASE + i * PLACE, sizeOf(i));
  return allocator;
}

/** Is there a place? Every start is tried. */
function hasPlace(
  allocator: BlockAllocator,
  length: number,
  alignment: number,
  boundary: number,
  runOf?: RunOf,
): boolean {
  for (const { start, size, free } of allocator.blocks())
    for (let at = start; free && at + length <= start + size; at += 64)
      if (
        at % alignment === 0 &&
        (boundary === 0 || Math.floor(at / boundary) === Math.floor((at + length - 1) / boundary)) &&
        (runOf === undefined || runOf(at, length) >= length)
      )
        return true;
  return false;
}

void describe('BlockAllocator in a crowd', () => {
  void it('looks at an unsuitable block once', () => {
    let looks = 0;
    const runs = contiguity(new Set([8 * 999]));
    const runOf: RunOf = (start, length) => {
      looks++;
      return runs(start, length);
    };
    const allocator = crowd(1000, () => 3 * UNIT);
    const ask = (length = 2 * UNIT): number => {
      looks = 0;
      return allocator.allocate(length, 64, 0, runOf);
    };
    assert.equal(ask(), BASE + 999 * PLACE);
    assert.equal(ask(), -1);
    assert.ok(looks > 900);
    assert.equal(ask(), -1);
    assert.equal(ask(3 * UNIT), -1, 'more is asked for');
    assert.equal(looks, 0);
    // What was cut and merged again was not looked at.
    const one = allocator.allocate(64);
    allocator.free(one);
    allocator.free(BASE + 999 * PLACE);
    assert.equal(ask(), BASE + 999 * PLACE);
    assert.ok(looks < 20);
    assert.equal(ask(), -1);
    assert.ok(looks < 20);
  });

  void it('finds what was too small for a greater request, also when smaller ones were looked for before', () => {
    const runOf = contiguity(new Set([8 * 22 + 1]));
    const allocator = crowd(40, () => 2 * UNIT + 64);
    const place = BASE + 22 * PLACE + UNIT;
    const ask = (length: number): number => allocator.allocate(length, 64, 0, runOf);
    // From now on the blocks that were tried before this one are known to be unsuitable.
    assert.equal(ask(UNIT + 64), place);
    allocator.free(place);
    assert.equal(ask(UNIT + 128), -1);
    assert.equal(ask(UNIT + 64), place);
  });

  void it('finds the largest block again and again without looking at all', () => {
    const sizes = Array.from({ length: 500 }, (_, i) => 4 * KiB + 64 * ((i * 7) % 2));
    const allocator = crowd(500, (i) => sizes[i]);
    for (const size of [...sizes].sort((a, b) => b - a)) {
      assert.equal(allocator.greatestFree, size);
      const start = allocator.allocateLargest();
      assert.equal(allocator.sizeOf(start), size);
      if (start % (2 * PLACE) === 0) {
        allocator.free(start);
        assert.equal(allocator.greatestFree, size);
        assert.equal(allocator.allocateLargest(), start);
      }
    }
    assert.equal(allocator.greatestFree, 0);
    assert.equal(allocator.allocateLargest(), -1);
  });

  void it('finds room where there is some, and the largest block, whatever it was asked before', () => {
    const step = fc.oneof(
      { weight: 5, arbitrary: fc.record({ units: fc.integer({ min: 1, max: 40 }), hard: fc.nat(5) }) },
      { weight: 4, arbitrary: fc.record({ free: fc.nat() }) },
      { weight: 1, arbitrary: fc.constant({ largest: true }) },
    );
    const pairs = fc.uniqueArray(fc.nat(8 * 100), { maxLength: 30 });
    fc.assert(
      fc.property(pairs, fc.array(step, { maxLength: 120, size: 'max' }), (paired, steps) => {
        const runOf = contiguity(new Set(paired));
        const allocator = crowd(100, (i) => 2 * UNIT + 64 * (i % 3));
        const held: number[] = [];
        for (const each of steps) {
          if ('free' in each) {
            const [start] = held.splice(each.free % Math.max(1, held.length), 1);
            if (start !== undefined) assert.ok(allocator.free(start) > 0);
          } else if ('largest' in each) {
            const greatest = allocator.greatestFree;
            const sizes = [...allocator.blocks()].map(({ size, free }) => (free ? size : 0));
            assert.equal(greatest, Math.max(...sizes));
            const start = allocator.allocateLargest();
            assert.equal(allocator.sizeOf(start), greatest === 0 ? -1 : greatest);
            if (start >= 0) held.push(start);
          } else {
            const length = 64 * each.units;
            const alignment = [64, 64, 2048, 64, 512, 64][each.hard];
            const boundary = [0, 0, 0, 4096, 0, 8192][each.hard];
            const runs = each.hard === 1 || each.hard === 4 ? runOf : undefined;
            const fits = hasPlace(allocator, length, alignment, boundary, runs);
            const start = allocator.allocate(length, alignment, boundary, runs);
            assert.equal(start >= 0, fits);
            if (start < 0) continue;
            assert.equal(start % alignment, 0);
            if (runs !== undefined) assert.ok(runs(start, length) >= length);
            held.push(start);
          }
        }
        for (const start of held) assert.ok(allocator.free(start) > 0);
        assert.equal(allocator.freeBlocks, 100);
      }),
      { numRuns: 40 },
    );
  });
});
