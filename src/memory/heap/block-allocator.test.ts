import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import fc from 'fast-check';
import { isDmaError } from '../../errors.js';
import { GiB, KiB, MiB, TiB } from '../../units.js';
import { BlockAllocator, type BlockInfo } from './block-allocator.js';
import type { RunOf } from './examined.js';

const up = (value: number, granule: number): number => Math.ceil(value / granule) * granule;
const down = (value: number, granule: number): number => Math.floor(value / granule) * granule;

/** A block, and which range it was added with. */
interface ModelBlock extends BlockInfo {
  readonly region: number;
}

/** What an allocator is, in the simplest words: a sorted list of blocks, in which free ones of one range never touch. */
class Model {
  blocks: ModelBlock[] = [];
  #added = 0;

  add(start: number, size: number): boolean {
    if (this.blocks.some((block) => block.start < start + size && start < block.start + block.size)) return false;
    this.#put([{ start, size, region: this.#added++, free: true }]);
    return true;
  }

  remove(start: number, size: number): boolean {
    const parts = this.#inside(start, size);
    if (parts.some((block) => !block.free) || sum(parts) !== size) return false;
    this.#cut(start, size, []);
    return true;
  }

  take(start: number, size: number): boolean {
    const block = this.blocks.find((each) => each.free && each.start <= start && start < each.start + each.size);
    if (block === undefined || start + size > block.start + block.size) return false;
    this.#cut(start, size, [{ start, size, region: block.region, free: false }]);
    return true;
  }

  free(start: number): number {
    const block = this.allocatedAt(start);
    if (block === undefined) return -1;
    this.#cut(start, block.size, [{ ...block, free: true }]);
    return block.size;
  }

  resize(start: number, asked: number): boolean {
    const block = this.allocatedAt(start);
    const size = up(asked, 64);
    if (block === undefined || size === 0) return false;
    if (size > block.size) {
      const behind = start + block.size;
      const rest = this.#inside(behind, size - block.size);
      if (rest.length !== 1 || !rest[0].free || rest[0].region !== block.region) return false;
      if (rest[0].start !== behind || sum(rest) !== size - block.size) return false;
    }
    const parts: ModelBlock[] = [{ ...block, size }];
    if (size < block.size) parts.push({ ...block, start: start + size, size: block.size - size, free: true });
    this.#cut(start, Math.max(size, block.size), parts);
    return true;
  }

  allocatedAt(start: number): ModelBlock | undefined {
    return this.blocks.find((block) => !block.free && block.start === start);
  }

  /** The largest block, up to `most` bytes, that there is room for. */
  room(most: number, alignment: number, boundary: number, runOf?: RunOf): number {
    let best = 0;
    for (const { start, size, free } of this.blocks) {
      if (!free) continue;
      for (let at = up(start, Math.max(64, alignment)); at < start + size && best < most;) {
        let length = Math.min(most, start + size - at);
        if (boundary !== 0) length = Math.min(length, down(at, boundary) + boundary - at);
        if (runOf !== undefined) length = Math.min(length, runOf(at, length));
        best = Math.max(best, down(length, 64));
        // A better place is behind an edge of some kind. Without any, it is here.
        if (boundary === 0 && runOf === undefined) break;
        at += Math.max(64, alignment);
      }
    }
    return best;
  }

  /** The parts of blocks that are in the range. */
  #inside(start: number, size: number): ModelBlock[] {
    return this.blocks
      .filter((block) => block.start < start + size && start < block.start + block.size)
      .map((block) => {
        const from = Math.max(block.start, start);
        return { ...block, start: from, size: Math.min(block.start + block.size, start + size) - from };
      });
  }

  /** Replaces what is in the range. */
  #cut(start: number, size: number, by: ModelBlock[]): void {
    const end = start + size;
    const parts: ModelBlock[] = [];
    this.blocks = this.blocks.filter((block) => {
      if (block.start >= end || block.start + block.size <= start) return true;
      if (block.start < start) parts.push({ ...block, size: start - block.start });
      if (block.start + block.size > end) parts.push({ ...block, start: end, size: block.start + block.size - end });
      return false;
    });
    this.#put([...parts, ...by]);
  }

  #put(parts: ModelBlock[]): void {
    for (const part of parts) {
      let at = this.blocks.findIndex((block) => block.start > part.start);
      if (at < 0) at = this.blocks.length;
      this.blocks.splice(at, 0, part);
      for (const i of [at, at - 1]) {
        const [left, right] = [this.blocks[i], this.blocks[i + 1]];
        if (left === undefined || right === undefined || !left.free || !right.free) continue;
        if (left.start + left.size !== right.start || left.region !== right.region) continue;
        this.blocks.splice(i, 2, { ...left, size: left.size + right.size });
      }
    }
  }
}

function sum(blocks: readonly BlockInfo[]): number {
  return blocks.reduce((bytes, block) => bytes + block.size, 0);
}

/** Statistics are the model's. */
function checkStatistics(allocator: BlockAllocator, model: Model): void {
  let total = 0;
  let free = 0;
  let greatest = 0;
  let freeBlocks = 0;
  for (const block of model.blocks) {
    total += block.size;
    if (!block.free) continue;
    free += block.size;
    freeBlocks++;
    if (block.size > greatest) greatest = block.size;
  }
  assert.equal(allocator.totalBytes, total);
  assert.equal(allocator.freeBytes, free);
  assert.equal(allocator.allocatedBytes, total - free);
  assert.equal(allocator.greatestFree, greatest);
  assert.equal(allocator.freeBlocks, freeBlocks);
  assert.equal(allocator.allocatedBlocks, model.blocks.length - freeBlocks);
}

/** Every block, and every answer about every block, is the model's. */
function checkBlocks(allocator: BlockAllocator, model: Model): void {
  assert.deepEqual(
    [...allocator.blocks()],
    model.blocks.map(({ start, size, free }) => ({ start, size, free })),
  );
  model.blocks.forEach(({ start, size, free }, i) => {
    for (const address of [start, start + 1, start + size - 1]) {
      assert.equal(allocator.blockAt(address), free ? -1 : start);
      assert.equal(allocator.freeAt(address), free ? start : -1);
    }
    assert.equal(allocator.sizeOf(start), free ? -1 : size);
    assert.equal(allocator.freeSizeOf(start), free ? size : -1);
    assert.equal(allocator.sizeOf(start + 1), -1);
    assert.equal(allocator.freeSizeOf(start + 1), -1);
    const end = start + size;
    if (model.blocks[i + 1]?.start === end) return;
    assert.equal(allocator.blockAt(end), -1);
    assert.equal(allocator.freeAt(end), -1);
  });
}

/** Allocates in both; the place is the allocator's choice, and has to be a right one. */
function allocateBoth(
  allocator: BlockAllocator,
  model: Model,
  size: number,
  alignment: number,
  boundary: number,
  runOf?: RunOf,
): number {
  const length = up(size, 64);
  const start = allocator.allocate(size, alignment, boundary, runOf);
  if (start < 0) {
    assert.ok(model.room(length, alignment, boundary, runOf) < length, 'there was room');
    return start;
  }
  checkPlace(start, length, alignment, boundary, runOf);
  assert.ok(model.take(start, length), 'the block was not free');
  return start;
}

function checkPlace(start: number, length: number, alignment: number, boundary: number, runOf?: RunOf): void {
  assert.equal(start % 64, 0);
  if (alignment > 0) assert.equal(start % alignment, 0);
  if (boundary > 0) assert.equal(down(start, boundary), down(start + length - 1, boundary));
  if (runOf !== undefined) assert.ok(runOf(start, length) >= length);
}

/** The same numbers every time. */
function generator(seed: number): (below: number) => number {
  let state = seed;
  return (below) => {
    state = (Math.imul(state, 1664525) + 1013904223) | 0;
    return Math.floor((((state >>> 8) & 0xffffff) / 2 ** 24) * below);
  };
}

/** Memory whose pages are contiguous in runs of some pages only. */
function runsOf(page: number, pages: number): RunOf {
  return (start, length) => Math.min(length, down(start, page * pages) + page * pages - start);
}

const BASE = 0x7f00_0000_0000;

void describe('BlockAllocator', () => {
  void it('agrees with a sorted list of blocks over 100,000 operations, and returns to the start', () => {
    const random = generator(1);
    const allocator = new BlockAllocator();
    const model = new Model();
    const regions = 6;
    const range = 256 * KiB;
    const present = new Set<number>();
    const toggle = (i: number): void => {
      const start = BASE + i * range;
      if (present.has(i)) {
        const removed = allocator.removeRange(start, range);
        assert.equal(removed, model.remove(start, range));
        if (removed) present.delete(i);
      } else {
        allocator.addRange(start, range);
        assert.ok(model.add(start, range));
        present.add(i);
      }
    };
    for (let i = 0; i < regions; i++) toggle(i);
    const held: number[] = [];
    let kept = 200;
    for (let step = 0; step < 100_000; step++) {
      if (step % 5000 === 0) kept = 20 + random(280);
      const kind = random(100);
      if (kind < 1) toggle(random(regions));
      else if (kind < 8 && held.length > 0) {
        const start = held[random(held.length)];
        const size = 1 + random(3 * (model.allocatedAt(start)?.size ?? 0));
        assert.equal(allocator.resize(start, size), model.resize(start, size));
      } else if (kind < 54 && held.length < kept) {
        const shape = random(10);
        const size = 1 + random([64, 1000, 4 * KiB, 32 * KiB][random(4)]);
        const alignment = shape < 4 ? 64 : 2 ** random(13);
        const boundary = shape < 8 ? 0 : 2 ** (10 + random(8));
        const start = allocateBoth(
          allocator,
          model,
          size,
          alignment,
          boundary,
          shape === 7 ? runsOf(4096, 2) : undefined,
        );
        if (start >= 0) held.push(start);
      } else if (held.length > 0) {
        const i = random(held.length);
        const last = held.pop();
        const start = held[i] ?? last;
        if (i < held.length && last !== undefined) held[i] = last;
        assert.equal(allocator.free(start), model.free(start));
        assert.equal(allocator.free(start), -1);
      }
      checkStatistics(allocator, model);
      if (step % 1000 === 0) checkBlocks(allocator, model);
    }
    for (const start of held) assert.ok(allocator.free(start) > 0);
    assert.equal(allocator.allocatedBlocks, 0);
    assert.equal(allocator.freeBytes, present.size * range);
    for (const i of present) assert.ok(allocator.removeRange(BASE + i * range, range));
    assert.deepEqual([...allocator.blocks()], []);
    assert.deepEqual(
      [allocator.totalBytes, allocator.freeBytes, allocator.freeBlocks, allocator.greatestFree],
      [0, 0, 0, 0],
    );
  });

  void it('agrees with the model on any small scenario', () => {
    const place = fc.nat(40).map((lines) => lines * 64);
    const size = fc.oneof(fc.integer({ min: 1, max: 40 * 64 }), fc.constantFrom(64, 128, 192, 65, 63, 1024));
    const step = fc.oneof(
      fc.record({ kind: fc.constant('add' as const), at: place, size: place }),
      fc.record({ kind: fc.constant('remove' as const), at: place, size: place }),
      fc.record({
        kind: fc.constant('allocate' as const),
        size,
        alignment: fc.constantFrom(0, 1, 64, 64, 128, 512),
        boundary: fc.constantFrom(0, 0, 64, 256, 1024),
        run: fc.constantFrom(0, 0, 1, 3, 5),
      }),
      fc.record({
        kind: fc.constant('largest' as const),
        alignment: fc.constantFrom(0, 64, 128, 512),
        boundary: fc.constantFrom(0, 0, 64, 256, 1024),
        run: fc.constantFrom(0, 0, 1, 3, 5),
      }),
      fc.record({ kind: fc.constant('allocateAt' as const), at: place, size }),
      fc.record({ kind: fc.constant('free' as const), at: place, nth: fc.nat(9) }),
      fc.record({ kind: fc.constant('resize' as const), nth: fc.nat(9), size }),
    );
    // Around a place where leaves and nodes of the index end, too.
    const base = fc.constantFrom(0, 2 * MiB - 1024, 4 * GiB - 1280, 2 ** 53 - 80 * 64);
    fc.assert(
      fc.property(base, fc.array(step, { maxLength: 40, size: 'max' }), (origin, steps) => {
        const allocator = new BlockAllocator();
        const model = new Model();
        const nth = (n: number): number => {
          const allocated = model.blocks.filter((block) => !block.free);
          return allocated.length === 0 ? -64 : allocated[n % allocated.length].start;
        };
        for (const each of steps) {
          const runOf = 'run' in each && each.run > 0 ? runsOf(64, each.run) : undefined;
          const at = 'at' in each ? origin + each.at : 0;
          if (each.kind === 'add') {
            if (each.size === 0) assert.throws(() => allocator.addRange(at, 0), isEinval);
            else if (model.add(at, each.size)) allocator.addRange(at, each.size);
            else
              assert.throws(
                () => allocator.addRange(at, each.size),
                (error) => isDmaError(error, 'EEXIST'),
              );
          } else if (each.kind === 'remove') {
            if (each.size > 0) assert.equal(allocator.removeRange(at, each.size), model.remove(at, each.size));
          } else if (each.kind === 'allocate') {
            allocateBoth(allocator, model, each.size, each.alignment, each.boundary, runOf);
          } else if (each.kind === 'largest') {
            const { alignment, boundary } = each;
            const start = allocator.allocateLargest(alignment, boundary, runOf);
            const length = start < 0 ? 0 : allocator.sizeOf(start);
            assert.equal(length, model.room(Infinity, alignment, boundary, runOf));
            if (start < 0) continue;
            checkPlace(start, length, alignment, boundary, runOf);
            assert.ok(model.take(start, length));
          } else if (each.kind === 'allocateAt') {
            assert.equal(allocator.allocateAt(at, each.size), model.take(at, up(each.size, 64)));
          } else if (each.kind === 'free') {
            const start = each.nth < 8 ? nth(each.nth) : at;
            assert.equal(allocator.free(start), model.free(start));
          } else {
            const start = nth(each.nth);
            assert.equal(allocator.resize(start, each.size), model.resize(start, each.size));
          }
          checkStatistics(allocator, model);
          checkBlocks(allocator, model);
        }
      }),
      { numRuns: 600 },
    );
  });

  void it('MA-01: alignment 0 means 64', () => {
    const allocator = over(MiB);
    assert.equal(allocator.allocate(1, 0), BASE);
    assert.equal(allocator.allocate(1024, 0), BASE + 64);
  });

  void it('MA-02: impossible sizes and alignments give -1 and change nothing', () => {
    const allocator = over(MiB);
    for (const size of [0, -8, -1, NaN, Infinity, -Infinity, 2 ** 53, 2 ** 53 - 1, 2 ** 64 - 8, MiB + 1]) {
      assert.equal(allocator.allocate(size), -1, `size ${size}`);
      assert.equal(allocator.allocateAt(BASE, size), false, `size ${size}`);
    }
    for (const alignment of [17, 100, 65, 96, -64, NaN, Infinity, 0.5, 2 ** 53 + 2, 2 ** 32 + 64, -(2 ** 31)]) {
      assert.equal(allocator.allocate(64, alignment), -1, `alignment ${alignment}`);
      assert.equal(allocator.allocateLargest(alignment), -1, `alignment ${alignment}`);
    }
    for (const boundary of [2 ** 32 - 1, 17, 32, -64, NaN]) {
      assert.equal(allocator.allocate(64, 64, boundary), -1, `boundary ${boundary}`);
      assert.equal(allocator.allocateLargest(64, boundary), -1, `boundary ${boundary}`);
    }
    assert.equal(allocator.allocate(MiB, 2 ** 52), -1);
    assert.deepEqual([...allocator.blocks()], [{ start: BASE, size: MiB, free: true }]);
  });

  void it('MA-03: resizes in place while the memory behind is free', () => {
    const allocator = over(8 * KiB);
    const first = allocator.allocate(1024);
    assert.ok(allocator.resize(first, 2048));
    const second = allocator.allocate(1024);
    const third = allocator.allocate(2048);
    assert.deepEqual([second, third], [first + 2048, first + 3072]);
    assert.equal(allocator.resize(first, 2049), false);
    allocator.free(second);
    assert.ok(allocator.resize(first, 3072));
    assert.equal(allocator.resize(first, 3073), false);
    allocator.free(third);
    assert.ok(allocator.resize(first, 5120));
    assert.ok(allocator.resize(first, 8 * KiB));
    assert.equal(allocator.freeBytes, 0);
    assert.ok(allocator.resize(first, 512));
    assert.deepEqual([allocator.sizeOf(first), allocator.greatestFree, allocator.freeBlocks], [512, 8 * KiB - 512, 1]);
    // Free memory in front is of no use.
    const behind = allocator.allocate(8 * KiB - 512);
    allocator.free(first);
    assert.equal(allocator.resize(behind, 8 * KiB), false);
    assert.equal(allocator.resize(behind + 64, 64), false);
    assert.equal(allocator.resize(behind, 0), false);
    assert.equal(allocator.resize(behind, NaN), false);
    assert.equal(allocator.resize(behind, 2 ** 53), false);
  });

  void it('MA-05: blocks of different alignment never overlap, 10,000 rounds', () => {
    const allocator = over(MiB);
    for (let round = 0; round < 10_000; round++) {
      const blocks = [8, 64, 2048].map((alignment) => ({ alignment, start: allocator.allocate(1000, alignment) }));
      for (const { alignment, start } of blocks) {
        assert.ok(start >= 0 && start % alignment === 0 && allocator.sizeOf(start) >= 1000);
      }
      const [low, middle, high] = blocks.map(({ start }) => start).sort((a, b) => a - b);
      assert.ok(low + 1000 <= middle && middle + 1000 <= high);
      // Every 100th round's stay for a while.
      if (round % 100 !== 0) for (const { start } of blocks) allocator.free(start);
      else if (round % 1000 === 0) for (const block of [...allocator.blocks()]) allocator.free(block.start);
    }
  });

  void it('MA-06: frees in every order leave one free block', () => {
    const orders = [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]]; // prettier-ignore
    const allocator = over(MiB);
    for (let round = 0; round < 30; round++) {
      const blocks = [allocator.allocate(1000, 8), allocator.allocate(16_000, 64), allocator.allocate(1000, 2048)];
      for (const i of orders[round % 6]) assert.ok(allocator.free(blocks[i]) >= 1000);
      assert.deepEqual([...allocator.blocks()], [{ start: BASE, size: MiB, free: true }]);
    }
  });

  void it('MA-07: random sizes up to 64 KiB, alignments up to 2048, 10,000 rounds', () => {
    const allocator = over(32 * MiB);
    const random = generator(7);
    const held: number[] = [];
    for (let round = 0; round < 10_000; round++) {
      const size = 1 + random(64 * KiB);
      const alignment = 2 ** random(12);
      const start = allocator.allocate(size, alignment);
      assert.ok(start >= 0 && start % alignment === 0);
      assert.ok(allocator.sizeOf(start) >= size && allocator.sizeOf(start) < size + 64);
      held.push(start);
      if (held.length > 200) assert.ok(allocator.free(held.splice(random(200), 1)[0]) > 0);
    }
    for (const start of held) allocator.free(start);
    assert.deepEqual([allocator.freeBlocks, allocator.greatestFree], [1, 32 * MiB]);
  });

  void it('MA-08: only the start of an allocated block is one', () => {
    const allocator = over(MiB);
    const start = allocator.allocate(4096);
    const wild = [
      start + 1,
      start + 64,
      start - 64,
      start + 4096,
      0,
      -1,
      -64,
      -2048,
      NaN,
      Infinity,
      2 ** 53,
      0.5,
      2 ** 60,
    ];
    for (const address of wild) {
      assert.equal(allocator.sizeOf(address), -1, `${address}`);
      assert.equal(allocator.free(address), -1, `${address}`);
      assert.equal(allocator.resize(address, 64), false, `${address}`);
      assert.equal(allocator.allocateAt(address, 4096), address === start + 4096, `${address}`);
    }
    for (const address of [-1, -2048, NaN, -Infinity]) assert.equal(allocator.freeAt(address), -1);
    assert.equal(allocator.blockAt(start + 4095), start);
    assert.equal(allocator.free(start), 4096);
    assert.equal(allocator.free(start), -1);
  });

  void it('MA-10: statistics are exact', () => {
    const allocator = over(4 * MiB);
    const read = () => {
      const { totalBytes, freeBytes, allocatedBytes, greatestFree, allocatedBlocks, freeBlocks } = allocator;
      return { totalBytes, freeBytes, allocatedBytes, greatestFree, allocatedBlocks, freeBlocks };
    };
    const before = read();
    allocator.free(allocator.allocate(2048, 1024));
    assert.deepEqual(read(), before);
    const first = allocator.allocate(1024);
    const one = read();
    const second = allocator.allocate(1024);
    assert.deepEqual(read(), {
      ...one,
      allocatedBlocks: 2,
      allocatedBytes: one.allocatedBytes + 1024,
      freeBytes: one.freeBytes - 1024,
      greatestFree: one.greatestFree - 1024,
    });
    allocator.free(first);
    allocator.free(second);
    assert.deepEqual(read(), before);
  });

  void it('MZ-06, MZ-08: keeps within a boundary, and finds the largest block', () => {
    const allocator = over(MiB);
    for (const [size, alignment, boundary] of [
      [100, 128, 128],
      [100, 256, 128],
      [100, 64, 1024],
      [1024, 64, 1024],
    ]) {
      // prettier-ignore
      for (let i = 0; i < 20; i++) {
        const start = allocator.allocate(size, alignment, boundary);
        assert.ok(start >= 0 && start % alignment === 0);
        assert.equal(down(start, boundary), down(start + size - 1, boundary));
      }
    }
    const bounded = allocator.allocateLargest(64, 1024);
    assert.deepEqual([allocator.sizeOf(bounded), bounded % 1024], [1024, 0]);
    const greatest = allocator.greatestFree;
    const largest = allocator.allocateLargest();
    assert.equal(allocator.sizeOf(largest), greatest);
    // The largest block is not where the most is left behind a multiple of the alignment.
    const two = new BlockAllocator();
    two.addRange(BASE + 2 * 64, 130 * 64);
    two.addRange(BASE + MiB, 101 * 64);
    assert.deepEqual([two.allocateLargest(2048), two.sizeOf(BASE + MiB)], [BASE + MiB, 101 * 64]);
    const empty = new BlockAllocator();
    assert.equal(empty.allocateLargest(), -1);
    assert.equal(empty.allocate(64), -1);
  });

  void it('finds the last fitting block among many that alignment makes unsuitable', () => {
    const allocator = new BlockAllocator();
    for (let i = 0; i < 1000; i++) allocator.addRange(BASE + i * 16 * KiB + 64, 8 * KiB);
    const fitting = BASE + 2000 * 16 * KiB;
    allocator.addRange(fitting, 8 * KiB);
    for (let i = 1001; i < 2000; i++) allocator.addRange(BASE + i * 16 * KiB + 64, 8 * KiB);
    assert.equal(allocator.allocate(8 * KiB, 8 * KiB), fitting);
    assert.equal(allocator.allocate(8 * KiB, 8 * KiB), -1);
  });

  void it('7.8.1: gives all of a free block, at and around every size class', () => {
    for (let power = 6; power <= 52; power++) {
      for (const size of [-64, 0, 64].map((more) => 2 ** power + more)) {
        if (size < 64) continue;
        const allocator = new BlockAllocator();
        allocator.addRange(64, size);
        assert.equal(allocator.allocate(size + 1), -1, `${size}`);
        assert.equal(allocator.allocate(size), 64, `${size}`);
        assert.equal(allocator.allocate(1), -1);
        assert.equal(allocator.free(64), size);
        assert.equal(allocator.allocate(size - 63), 64);
        assert.equal(allocator.greatestFree, 0);
      }
    }
  });

  void it('works up to 2^53', () => {
    const allocator = new BlockAllocator();
    const most = 2 ** 53 - 64;
    allocator.addRange(64, most);
    assert.equal(allocator.greatestFree, most);
    const top = allocator.allocate(64, 2 ** 52);
    assert.equal(top, 2 ** 52);
    assert.ok(allocator.allocateAt(2 ** 53 - 64, 64));
    assert.equal(allocator.blockAt(2 ** 53 - 1), 2 ** 53 - 64);
    assert.equal(allocator.freeAt(2 ** 52 + 64), 2 ** 52 + 64);
    assert.equal(allocator.freeAt(2 ** 52 - 1), 64);
    assert.equal(allocator.resize(2 ** 53 - 64, 128), false);
    assert.equal(allocator.free(top), 64);
    assert.equal(allocator.free(2 ** 53 - 64), 64);
    assert.ok(allocator.removeRange(64, most));
    assert.equal(allocator.totalBytes, 0);
  });

  void it('1.4.19: merges and grows only inside of what was added at once', () => {
    const allocator = new BlockAllocator();
    allocator.addRange(BASE, 4096);
    allocator.addRange(BASE + 8192, 4096);
    allocator.addRange(BASE + 4096, 4096);
    assert.deepEqual([allocator.freeBlocks, allocator.greatestFree], [3, 4096]);
    assert.equal(allocator.allocate(4097), -1);
    assert.equal(allocator.allocateAt(BASE + 4032, 128), false);
    assert.ok(allocator.allocateAt(BASE, 4096));
    assert.equal(allocator.resize(BASE, 4160), false);
    assert.ok(allocator.resize(BASE, 4032));
    assert.ok(allocator.resize(BASE, 4096));
    // Nor when blocks of all of them come and go.
    const others = [allocator.allocate(4096), allocator.allocate(4096)];
    for (const start of others) assert.equal(allocator.free(start), 4096);
    allocator.addRange(BASE + 12288, 4096);
    assert.deepEqual([allocator.freeBlocks, allocator.greatestFree], [3, 4096]);
    // What is added in the place of a part that was removed is apart from what is left on both sides.
    assert.ok(allocator.removeRange(BASE + 9216, 1024));
    allocator.addRange(BASE + 9216, 1024);
    assert.deepEqual([allocator.freeBlocks, allocator.greatestFree], [5, 4096]);
    // Removal looks at bytes, not at ranges.
    assert.equal(allocator.removeRange(BASE, 16384), false);
    assert.ok(allocator.removeRange(BASE + 4160, 8192));
    assert.deepEqual(
      [...allocator.blocks()].map(({ start, size, free }) => [start - BASE, size, free]),
      [
        [0, 4096, false],
        [4096, 64, true],
        [12352, 4032, true],
      ],
    );
  });

  void it('knows how many bytes of a block were asked for', () => {
    const allocator = over(MiB);
    for (const size of [1, 63, 64, 65, 100, 4096, 4097]) {
      const start = allocator.allocate(size, 128);
      const number = allocator.numberOf(start);
      assert.equal(number, allocator.lastNumber);
      assert.equal(number, allocator.numberAt(start + size - 1));
      assert.deepEqual(
        [allocator.startOf(number), allocator.lengthOf(number), allocator.bytesOf(number)],
        [start, size, up(size, 64)],
      );
      for (const next of [size + 1, size + 200, up(size, 64), 7]) {
        assert.ok(allocator.resize(start, next));
        assert.deepEqual([allocator.numberOf(start), allocator.lengthOf(number)], [number, next]);
      }
    }
    assert.ok(allocator.allocateAt(BASE + MiB - 128, 99));
    assert.equal(allocator.lengthOf(allocator.lastNumber), 99);
    const free = allocator.freeNumber(allocator.lastNumber);
    assert.equal(allocator.startOf(free) + allocator.bytesOf(free), BASE + MiB);
    const largest = allocator.allocateLargest();
    assert.equal(allocator.lengthOf(allocator.numberOf(largest)), allocator.sizeOf(largest));
  });

  void it('1.4.9: keeps a block inside a contiguous run, and the largest too', () => {
    const allocator = over(MiB);
    const runOf = runsOf(4096, 3);
    const start = allocator.allocate(8192, 64, 0, runOf);
    assert.ok(start >= 0 && runOf(start, 8192) === 8192);
    assert.equal(allocator.allocate(12289, 64, 0, runOf), -1);
    const largest = allocator.allocateLargest(64, 0, runOf);
    assert.deepEqual([allocator.sizeOf(largest), runOf(largest, 12288)], [12288, 12288]);
    // An answer that makes no sense ends the search and not the program.
    for (const nonsense of [0, -1, NaN, -Infinity])
      assert.equal(
        allocator.allocate(64, 64, 0, () => nonsense),
        -1,
      );
  });

  void it('refuses impossible and double ranges', () => {
    const allocator = over(4096);
    for (const [start, length] of [
      [32, 64],
      [64, 32],
      [0, 0],
      [-64, 64],
      [NaN, 64],
      [2 ** 53 - 64, 128],
    ]) {
      // prettier-ignore
      assert.throws(() => allocator.addRange(start, length), isEinval);
      assert.throws(() => allocator.removeRange(start, length), isEinval);
    }
    for (const [start, length] of [
      [BASE, 4096],
      [BASE - 64, 128],
      [BASE + 4032, 128],
      [BASE - 64, 8192],
      [BASE + 64, 64],
    ]) {
      // prettier-ignore
      assert.throws(() => allocator.addRange(start, length), (error) => isDmaError(error, 'EEXIST'));
    }
    assert.equal(allocator.removeRange(BASE - 64, 128), false);
    assert.equal(allocator.removeRange(BASE + 4032, 128), false);
    assert.equal(allocator.removeRange(BASE + TiB, 64), false);
    assert.equal(allocator.totalBytes, 4096);
  });

  void it('may be changed while its blocks are walked', () => {
    const allocator = over(4096);
    for (let i = 0; i < 64; i++) allocator.allocate(64);
    let seen = 0;
    for (const block of allocator.blocks()) {
      seen++;
      allocator.free(block.start);
      allocator.free(block.start + 64);
    }
    assert.equal(seen, 32);
    assert.equal(allocator.freeBlocks, 1);
  });
});

function isEinval(error: unknown): boolean {
  return isDmaError(error, 'EINVAL');
}

function over(bytes: number): BlockAllocator {
  const allocator = new BlockAllocator();
  allocator.addRange(BASE, bytes);
  return allocator;
}
