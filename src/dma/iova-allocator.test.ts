import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import fc from 'fast-check';
import { isDmaError } from '../errors.js';
import { Range } from '../ranges.js';
import { ADDRESS_LIMIT, GiB, MiB } from '../units.js';
import type { Iova } from '../units.js';
import { IovaAllocator } from './iova-allocator.js';

const PAGE = 4096;

function iova(address: number): Iova {
  return address as Iova;
}

function windows(...bounds: [start: number, end: number][]): Range<Iova>[] {
  return bounds.map(([start, end]) => Range.between(iova(start), end));
}

class Clock {
  ms = 0;
  readonly now = (): number => this.ms;
}

/** The allocator in the simplest words: what each page is, one by one. Pages are counted from `base`. */
class Model {
  readonly pages: ('free' | 'allocated' | { release: number; until: number })[];
  inside: boolean[] = [];
  #releases = 0;

  constructor(
    readonly base: number,
    readonly clock: Clock,
    count: number,
  ) {
    this.pages = new Array<'free'>(count).fill('free');
  }

  #every(page: number, count: number, is: (page: number) => boolean): boolean {
    for (let i = page; i < page + count; i++) if (i >= this.pages.length || !is(i)) return false;
    return true;
  }

  canBeGiven(page: number): boolean {
    return this.inside[page] && this.pages[page] === 'free' && this.base + page !== 0;
  }

  allocate(count: number, alignment: number): number | undefined {
    this.expire();
    for (;;) {
      for (let page = 0; page < this.pages.length; page++) {
        if ((this.base + page) % alignment !== 0 || !this.#every(page, count, (i) => this.canBeGiven(i))) continue;
        this.pages.fill('allocated', page, page + count);
        return page;
      }
      const held = this.pages.filter((page) => typeof page === 'object');
      if (held.length === 0 || count > held.length + this.pages.filter((_, i) => this.canBeGiven(i)).length) return;
      // The oldest release first; when pieces of it are apart, the lowest piece.
      const oldest = Math.min(...held.map((page) => page.release));
      const is = (i: number): boolean => {
        const page = this.pages[i];
        return typeof page === 'object' && page.release === oldest;
      };
      for (let i = this.pages.findIndex((_, at) => is(at)); is(i); i++) this.pages[i] = 'free';
    }
  }

  take(page: number, count: number): boolean {
    if (!this.#every(page, count, (i) => this.inside[i] && this.pages[i] !== 'allocated')) return false;
    this.pages.fill('allocated', page, page + count);
    return true;
  }

  release(page: number, count: number): boolean {
    if (!this.#every(page, count, (i) => this.pages[i] === 'allocated')) return false;
    this.pages.fill({ release: this.#releases++, until: this.clock.ms + 100 }, page, page + count);
    return true;
  }

  expire(): void {
    this.pages.forEach((page, i) => {
      if (typeof page === 'object' && page.until <= this.clock.ms) this.pages[i] = 'free';
    });
  }

  figures(): { freeBytes: number; heldBackBytes: number; largestFree: number } {
    this.expire();
    let free = 0;
    let run = 0;
    let largest = 0;
    for (let i = 0; i < this.pages.length; i++) {
      run = this.canBeGiven(i) ? run + 1 : 0;
      if (run > 0) free++;
      largest = Math.max(largest, run);
    }
    const held = this.pages.filter((page) => typeof page === 'object').length;
    return { freeBytes: free * PAGE, heldBackBytes: held * PAGE, largestFree: largest * PAGE };
  }
}

type Step =
  | ['allocate', count: number, alignment: number]
  | ['take', page: number, count: number]
  | ['release', page: number, count: number]
  | ['tick', ms: number]
  | ['setWindows', runs: number[]];

const PAGES = 48;

function pages(weight: number, name: 'take' | 'release', count: number): fc.WeightedArbitrary<Step> {
  return { weight, arbitrary: fc.tuple(fc.constant(name), fc.nat(PAGES - 1), fc.integer({ min: 1, max: count })) };
}

/** Lengths of what is by turns inside and outside of the windows. */
const runs = fc.array(fc.integer({ min: 0, max: 24 }), { minLength: 1, maxLength: 6 });

const step: fc.Arbitrary<Step> = fc.oneof(
  {
    weight: 8,
    arbitrary: fc.tuple(
      fc.constant('allocate' as const),
      fc.oneof(fc.integer({ min: 1, max: 6 }), fc.integer({ min: 1, max: PAGES })),
      fc.constantFrom(1, 1, 2, 4, 8, 16),
    ),
  },
  pages(6, 'take', 4),
  pages(14, 'release', 8),
  { weight: 4, arbitrary: fc.tuple(fc.constant('tick' as const), fc.nat(40)) },
  { weight: 1, arbitrary: fc.tuple(fc.constant('setWindows' as const), runs) },
);

describe('IovaAllocator', () => {
  for (const [place, base] of [
    ['at 0', 0],
    ['beyond 2^32', 2 ** 48 / PAGE],
    ['up to 2^53', ADDRESS_LIMIT / PAGE - PAGES],
  ] as const) {
    it(`does as a page by page model does, ${place}`, () => {
      fc.assert(
        fc.property(runs, fc.array(step, { maxLength: 200, size: 'max' }), (first, steps) => {
          const clock = new Clock();
          const model = new Model(base, clock, PAGES);
          const bytes = (page: number): Iova => iova((base + page) * PAGE);
          const enter = (lengths: number[]): Range<Iova>[] => {
            const list: Range<Iova>[] = [];
            model.inside = new Array<boolean>(PAGES).fill(false);
            let page = 0;
            lengths.forEach((length, i) => {
              const end = Math.min(page + length, PAGES);
              model.inside.fill(i % 2 === 0, page, end);
              if (i % 2 === 0 && end > page) list.push(Range.between(bytes(page), bytes(end)));
              page = end;
            });
            return list;
          };
          const allocator = new IovaAllocator({ windows: enter(first), granule: PAGE, now: clock.now });
          for (const now of steps) {
            if (now[0] === 'allocate') {
              const page = model.allocate(now[1], now[2]);
              assert.equal(allocator.allocate(now[1] * PAGE, now[2] * PAGE), page === undefined ? page : bytes(page));
            } else if (now[0] === 'tick') {
              clock.ms += now[1];
            } else if (now[0] === 'setWindows') {
              allocator.setWindows(enter(now[1]));
            } else {
              const start = bytes(now[1]);
              const count = Math.min(now[2], PAGES - now[1]);
              if (now[0] === 'take') {
                assert.equal(allocator.take(start, count * PAGE), model.take(now[1], count));
              } else if (model.release(now[1], count)) {
                allocator.release(start, count * PAGE);
              } else {
                assert.throws(
                  () => allocator.release(start, count * PAGE),
                  (error) => isDmaError(error, 'EINVAL'),
                );
              }
            }
            const { freeBytes, heldBackBytes, largestFree } = allocator;
            assert.deepEqual({ freeBytes, heldBackBytes, largestFree }, model.figures());
          }
        }),
        { numRuns: 150 },
      );
    });
  }

  it('never gives out 0, but lets it be taken', () => {
    const allocator = new IovaAllocator({ windows: windows([0, 2 * PAGE]), granule: PAGE, holdBackMs: 0 });
    assert.equal(allocator.freeBytes, PAGE);
    assert.equal(allocator.allocate(PAGE), PAGE);
    assert.equal(allocator.allocate(PAGE), undefined);
    assert.equal(allocator.take(iova(0), PAGE), true);
    assert.equal(allocator.take(iova(0), PAGE), false);
    allocator.release(iova(0), 2 * PAGE);
    assert.equal(allocator.allocate(PAGE), PAGE);
  });

  it('holds back what was released, until its time or until there is nothing else', () => {
    const clock = new Clock();
    const allocator = new IovaAllocator({ windows: windows([PAGE, 5 * PAGE]), granule: PAGE, now: clock.now });
    for (const page of [1, 2, 3]) assert.equal(allocator.allocate(PAGE), page * PAGE);
    allocator.release(iova(2 * PAGE), PAGE);
    clock.ms = 50;
    allocator.release(iova(PAGE), PAGE);
    assert.equal(allocator.allocate(PAGE), 4 * PAGE, 'untouched first');
    assert.equal(allocator.allocate(PAGE), 2 * PAGE, 'then the one held back longest');
    assert.equal(allocator.allocate(3 * PAGE), undefined);
    assert.equal(allocator.heldBackBytes, PAGE, 'a hopeless request gives nothing back');
    clock.ms = 149;
    assert.equal(allocator.freeBytes, 0);
    clock.ms = 150;
    assert.equal(allocator.freeBytes, PAGE);
  });

  it('keeps the place in the queue of what is left when a part of a held-back range is taken', () => {
    const clock = new Clock();
    const allocator = new IovaAllocator({ windows: windows([PAGE, 5 * PAGE]), granule: PAGE, now: clock.now });
    assert.equal(allocator.allocate(4 * PAGE), PAGE);
    allocator.release(iova(2 * PAGE), 3 * PAGE);
    clock.ms = 50;
    allocator.release(iova(PAGE), PAGE);
    assert.equal(allocator.take(iova(3 * PAGE), PAGE), true);
    assert.equal(allocator.heldBackBytes, 3 * PAGE);
    assert.deepEqual(
      [1, 2, 3].map(() => allocator.allocate(PAGE)),
      [2 * PAGE, 4 * PAGE, PAGE],
    );
  });

  it('aligns to more than the granule, also above holes that are large enough but not aligned', () => {
    const allocator = new IovaAllocator({ windows: windows([PAGE, GiB]), granule: PAGE, holdBackMs: 0 });
    assert.equal(allocator.allocate(2 * MiB, 2 * MiB), 2 * MiB);
    assert.equal(allocator.allocate(PAGE), PAGE);
    assert.equal(allocator.allocate(2 * MiB, 2 * MiB), 4 * MiB);
    assert.equal(allocator.allocate(MiB, 512), 2 * PAGE, 'a smaller alignment than the granule asks for nothing');
  });

  it('prefers an alignment where something free allows it, and gives nothing up for it', () => {
    const clock = new Clock();
    const allocator = new IovaAllocator({ windows: windows([PAGE, 8 * PAGE]), granule: PAGE, now: clock.now });
    assert.equal(allocator.allocate(PAGE, PAGE, 4 * PAGE), 4 * PAGE);
    allocator.release(iova(4 * PAGE), PAGE);
    assert.equal(allocator.allocate(PAGE, PAGE, 4 * PAGE), PAGE, 'what is held back stays so');
    assert.equal(allocator.allocate(PAGE, PAGE, 2 ** 40), 2 * PAGE, 'larger than all windows');
    assert.equal(allocator.allocate(2 * PAGE, 2 * PAGE, 4 * PAGE), 6 * PAGE, 'the alignment that is needed is had');
    assert.equal(allocator.heldBackBytes, PAGE);
    assert.throws(() => allocator.allocate(PAGE, PAGE, 3 * PAGE), { code: 'EINVAL' });
  });

  it('lets anyone take what was held back from them, once its time is over', () => {
    for (const holdBackMs of [0, 100]) {
      const clock = new Clock();
      const allocator = new IovaAllocator({
        windows: windows([0, 8 * PAGE]),
        granule: PAGE,
        now: clock.now,
        holdBackMs,
      });
      const [first, second] = [{}, {}];
      assert.equal(allocator.take(iova(2 * PAGE), 2 * PAGE, first), true);
      allocator.release(iova(2 * PAGE), 2 * PAGE, first);
      if (holdBackMs > 0) {
        clock.ms = holdBackMs - 1;
        assert.equal(allocator.take(iova(2 * PAGE), 2 * PAGE, second), false, 'the same range');
        assert.equal(allocator.take(iova(PAGE), 2 * PAGE, second), false, 'an overlapping one');
        clock.ms = holdBackMs;
      }
      assert.equal(allocator.take(iova(PAGE), 2 * PAGE, second), true);
      allocator.release(iova(PAGE), 2 * PAGE, second);
      clock.ms += holdBackMs;
      assert.equal(allocator.take(iova(PAGE), 2 * PAGE, first), true);
    }
  });

  it('joins windows that touch and leaves out what is no whole granule', () => {
    const allocator = new IovaAllocator({
      windows: windows([PAGE + 1, 4 * PAGE], [4 * PAGE, 6 * PAGE], [3 * PAGE, 5 * PAGE], [7 * PAGE, 8 * PAGE - 1]),
      granule: PAGE,
    });
    assert.equal(allocator.freeBytes, 4 * PAGE);
    assert.equal(allocator.largestFree, 4 * PAGE);
    assert.equal(allocator.take(iova(3 * PAGE), 2 * PAGE), true);
    assert.equal(allocator.take(iova(7 * PAGE), PAGE), false);
  });

  it('gives out nothing outside of new windows, and keeps what is allocated there', () => {
    const clock = new Clock();
    const allocator = new IovaAllocator({ windows: windows([PAGE, 9 * PAGE]), granule: PAGE, now: clock.now });
    assert.equal(allocator.allocate(2 * PAGE), PAGE);
    allocator.setWindows(windows([4 * PAGE, 5 * PAGE]));
    assert.equal(allocator.allocate(PAGE), 4 * PAGE);
    allocator.release(iova(PAGE), 2 * PAGE);
    clock.ms = 1000;
    assert.equal(allocator.allocate(PAGE), undefined);
    allocator.setWindows(windows([0, 4 * PAGE]));
    assert.equal(allocator.freeBytes, 3 * PAGE);
  });

  it('refuses impossible arguments and changes nothing', () => {
    const allocator = new IovaAllocator({ windows: windows([PAGE, GiB]), granule: PAGE });
    const before = allocator.freeBytes;
    for (const wrong of [
      () => new IovaAllocator({ windows: [], granule: 3000 }),
      () => allocator.allocate(0),
      () => allocator.allocate(NaN),
      () => allocator.allocate(100),
      () => allocator.allocate(PAGE, 3 * PAGE),
      () => allocator.take(iova(100), PAGE),
      () => allocator.take(iova(-PAGE), PAGE),
      () => allocator.take(iova(ADDRESS_LIMIT - PAGE), 2 * PAGE),
      () => allocator.release(iova(PAGE), PAGE),
      () => allocator.release(iova(PAGE), Infinity),
    ]) {
      assert.throws(wrong, (error) => isDmaError(error, 'EINVAL'));
    }
    assert.equal(allocator.freeBytes, before);
  });
});
