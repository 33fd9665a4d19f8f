import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import fc from 'fast-check';
import { GiB, KiB, MiB } from '../../units.js';
import { planGrowth, type GrowthStep, type Need, type PageChoice } from './growth.js';

const need = (size: number, more: Partial<Need> = {}): Need => ({ size, align: 64, boundary: 0, ...more });
const huge = (pageSize: number, free: number, left = Infinity): PageChoice => ({ pageSize, free, left, huge: true });
const ordinary: PageChoice = { pageSize: 4 * KiB, free: Infinity, left: Infinity, huge: false };

describe('how a heap grows', () => {
  const huge2 = (pages: number): GrowthStep => ({ pageSize: 2 * MiB, pages, alignment: 2 * MiB });

  it('by as much as it has, and by what is needed if that is not granted', () => {
    const choices = [huge(2 * MiB, 1000)];
    assert.deepEqual(planGrowth(need(64), 0, choices, false), [huge2(1)]);
    assert.deepEqual(planGrowth(need(64), 16 * MiB, choices, false), [huge2(8), huge2(1)]);
    assert.deepEqual(planGrowth(need(9 * MiB), 4 * MiB, choices, false), [huge2(5)]);
    assert.deepEqual(planGrowth(need(64), 16 * MiB, choices, true), [huge2(1)], 'exact');
  });

  it('leaves half of what is free to others, as long as that is enough', () => {
    const [first] = planGrowth(need(64), 100 * MiB, [huge(2 * MiB, 21)], false);
    assert.equal(first.pages, 11);
    const [larger] = planGrowth(need(30 * MiB), 100 * MiB, [huge(2 * MiB, 21)], false);
    assert.equal(larger.pages, 15);
  });

  it('takes the largest pages that it fills, then larger ones, then ordinary ones', () => {
    const choices = [huge(2 * MiB, 9999), huge(GiB, 9), ordinary];
    const order = (size: number, total: number): number[] => [
      ...new Set(planGrowth(need(size), total, choices, false).map((step) => step.pageSize)),
    ];
    assert.deepEqual(order(64, 0), [2 * MiB, GiB, 4 * KiB]);
    assert.deepEqual(order(GiB, 0), [GiB, 2 * MiB, 4 * KiB]);
    assert.deepEqual(order(64, GiB), [GiB, 2 * MiB, 4 * KiB]);
  });

  it('does not try what is not there, or not allowed', () => {
    assert.deepEqual(planGrowth(need(5 * MiB), 0, [huge(2 * MiB, 2)], false), []);
    assert.deepEqual(planGrowth(need(5 * MiB), 0, [huge(2 * MiB, 99, 4 * MiB)], false), []);
    const [step] = planGrowth(need(64), 100 * MiB, [huge(2 * MiB, 99, 4 * MiB)], false);
    assert.equal(step.pages, 2);
  });

  it('takes 2 MiB of ordinary pages at least', () => {
    assert.equal(planGrowth(need(64), 0, [ordinary], false)[0].pages, 512);
    assert.equal(planGrowth(need(64), 0, [ordinary], true)[0].pages, 1);
    assert.equal(
      planGrowth(need(64), 100 * GiB, [ordinary], false)[0].pages,
      GiB / (4 * KiB),
      'and 1 GiB ahead at most',
    );
  });

  it('in units that devices map, and in 64 KiB for those that come later where that is allowed', () => {
    const [first] = planGrowth(need(5 * MiB + 1), 0, [ordinary], false);
    assert.deepEqual(first, { pageSize: 4 * KiB, pages: (5 * MiB + 64 * KiB) / (4 * KiB), alignment: 64 * KiB });
    const [exact] = planGrowth(need(5 * MiB + 1), 0, [ordinary], true, 16 * KiB);
    assert.deepEqual(exact, { pageSize: 4 * KiB, pages: (5 * MiB + 16 * KiB) / (4 * KiB), alignment: 16 * KiB });
    const little = { ...ordinary, left: 5 * MiB + 4 * KiB };
    assert.equal(planGrowth(need(5 * MiB + 1), 0, [little], false)[0].pages, (5 * MiB + 4 * KiB) / (4 * KiB));
    assert.deepEqual(planGrowth(need(5 * MiB + 1), 0, [little], false, 16 * KiB), []);
  });

  it('is enough, wherever the pages begin', () => {
    const powers = (from: number, to: number): fc.Arbitrary<number> =>
      fc.integer({ min: from, max: to }).map((n) => 2 ** n);
    fc.assert(
      fc.property(
        fc.integer({ min: 1, max: 16 * MiB }),
        powers(0, 26),
        fc.option(powers(6, 26), { nil: 0 }),
        fc.nat(100),
        (size, align, wish, page) => {
          const boundary = wish === 0 ? 0 : Math.max(wish, 2 ** Math.ceil(Math.log2(Math.max(size, 64))));
          const [{ pages, pageSize }] = planGrowth(need(size, { align, boundary }), 0, [huge(2 * MiB, 1e9)], true);
          const start = page * pageSize;
          const step = Math.max(align, 64);
          let fits = false;
          for (let at = Math.ceil(start / step) * step; at + size <= start + pages * pageSize; at += step) {
            if (boundary !== 0 && Math.floor(at / boundary) !== Math.floor((at + size - 1) / boundary)) {
              at = (Math.floor(at / boundary) + 1) * boundary - step;
              continue;
            }
            fits = true;
            break;
          }
          assert.ok(fits);
        },
      ),
    );
  });
});
