import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import fc from 'fast-check';
import { isDmaError } from '../errors.js';
import { GiB, KiB, MiB, TiB } from '../units.js';
import { TranslationTable } from './translation-table.js';

const PAGE = 4 * KiB;
const HUGE_PAGES = 512;
/** The pages that the property test plays on: six huge slots, which lie across a GiB boundary where the base makes it so. */
const PAGES = 6 * HUGE_PAGES;

type Step = [kind: 'add' | 'remove', page: number, count: number, iova: number, key: number];

/** Pages near the boundaries of huge slots more often than others. */
const page = fc.oneof(
  fc.nat(PAGES - 1),
  fc.tuple(fc.nat(5), fc.integer({ min: -2, max: 2 })).map(([huge, off]) => Math.max(0, huge * HUGE_PAGES + off)),
);
const count = fc.oneof(
  fc.integer({ min: 1, max: 4 }),
  fc.integer({ min: 1, max: PAGES }),
  fc.constantFrom(HUGE_PAGES, 2 * HUGE_PAGES),
);
const step: fc.Arbitrary<Step> = fc.tuple(
  fc.constantFrom<Step[0][]>('add', 'add', 'remove'),
  page,
  count,
  fc.oneof(fc.nat(2 ** 20), fc.constant((2 ** 53 - PAGES * PAGE) / PAGE)),
  fc.oneof(fc.constant(-1), fc.constantFrom(0, 1, 2 ** 31, 2 ** 32 - 1)),
);

describe('TranslationTable', () => {
  for (const [place, base] of [
    ['at 0', 0],
    ['across a GiB boundary', 0x7f0000000000 - 6 * MiB],
    ['across 2^48', 2 ** 48 - 6 * MiB],
    ['up to 2^53', 2 ** 53 - PAGES * PAGE],
  ] as const) {
    it(`does as a map of pages does, ${place}`, () => {
      fc.assert(
        fc.property(fc.array(step, { maxLength: 150, size: 'max' }), (steps) => {
          const table = new TranslationTable();
          const iovas = new Float64Array(PAGES).fill(-1);
          const keys = new Float64Array(PAGES).fill(-1);
          const compare = (at: number): void => {
            if (at < 0 || at >= PAGES) return;
            const va = base + at * PAGE;
            // Without `assert` in the common case: there are millions of them.
            if (table.iovaOf(va) !== iovas[at]) assert.equal(table.iovaOf(va), iovas[at]);
            const offset = 1 + ((at * 37) % (PAGE - 1));
            const inside = iovas[at] < 0 ? -1 : iovas[at] + offset;
            if (table.iovaOf(va + offset) !== inside) assert.equal(table.iovaOf(va + offset), inside);
            if (table.keyOf(va + offset) !== keys[at]) assert.equal(table.keyOf(va + offset), keys[at]);
          };
          for (const [kind, first, wanted, iova, key] of steps) {
            const end = Math.min(first + wanted, PAGES);
            const { generation } = table;
            if (kind === 'remove') {
              table.remove(base + first * PAGE, (end - first) * PAGE);
              iovas.fill(-1, first, end);
              keys.fill(-1, first, end);
              assert.notEqual(table.generation, generation);
            } else if (iovas.subarray(first, end).every((known) => known < 0)) {
              table.add(base + first * PAGE, (end - first) * PAGE, iova * PAGE, key);
              for (let at = first; at < end; at++) {
                iovas[at] = (iova + at - first) * PAGE;
                keys[at] = key;
              }
            }
            for (const at of [first - 1, first, end - 1, end, (first + end) >>> 1]) compare(at);
            for (const [from, to] of [
              [first, end],
              [first, Math.min(end + 1, PAGES)],
              [Math.max(0, first - 1), first + 1],
            ]) {
              const wanted = keys.subarray(from, to).every((known) => known === keys[from]) ? keys[from] : -1;
              const [va, length] = [base + from * PAGE + 7, (to - from) * PAGE - 7];
              if (table.keyOfRange(va, length) !== wanted) assert.equal(table.keyOfRange(va, length), wanted);
            }
          }
          for (let at = 0; at < PAGES; at++) compare(at);
          if (base > 0) assert.equal(table.iovaOf(base - 1), -1);
          table.remove(base, PAGES * PAGE);
          for (let at = 0; at < PAGES; at++) assert.equal(table.iovaOf(base + at * PAGE), -1);
        }),
        { numRuns: 80 },
      );
    });
  }

  it('does as a map does for addresses far apart, whichever comes first', () => {
    // GiBs around the ends and in the middle of where a process has memory.
    const gib = fc
      .tuple(fc.constantFrom(0, 0x5555, 0x15555, 2 ** 17), fc.integer({ min: -40, max: 40 }))
      .map(([around, off]) => Math.min(Math.max(around + off, 0), 2 ** 18));
    const change = fc.tuple(fc.constantFrom('add', 'add', 'remove'), gib, fc.constantFrom(0, 1, 511, 2 ** 18 - 1));
    fc.assert(
      fc.property(fc.array(change, { maxLength: 120, size: 'max' }), (changes) => {
        const table = new TranslationTable();
        const known = new Map<number, number>();
        changes.forEach(([kind, gib, page], i) => {
          const va = gib * GiB + page * PAGE;
          if (kind === 'remove') {
            table.remove(gib * GiB, GiB);
            for (const other of known.keys()) if (Math.floor(other / GiB) === gib) known.set(other, -1);
          } else if ((known.get(va) ?? -1) < 0) {
            table.add(va, PAGE, i * PAGE, i);
            known.set(va, i);
          }
          if (!known.has(va)) known.set(va, -1);
          for (const [at, number] of known) {
            if (table.iovaOf(at + 5) !== (number < 0 ? -1 : number * PAGE + 5)) assert.fail(`iovaOf(${at}) is wrong`);
            if (table.keyOf(at + 5) !== number) assert.fail(`keyOf(${at}) is wrong`);
          }
        });
      }),
      { numRuns: 40 },
    );
  });

  it('takes memory for what is mapped, and not for the distances', () => {
    const lowest = 0x1000;
    const highest = 0x7fff_ffff_f000;
    const tables = Array.from({ length: 500 }, (_, i) => {
      const table = new TranslationTable();
      assert.equal(table.bytes, 0);
      for (const va of i % 2 === 0 ? [lowest, highest] : [highest, lowest]) table.add(va, PAGE, i * PAGE, i);
      return table;
    });
    tables.forEach((table, i) => {
      assert.ok(table.bytes <= 64 * KiB, `${table.bytes} bytes`);
      assert.equal(table.keyOf(lowest), i);
      assert.equal(table.keyOf(highest), i);
      for (const va of [0, lowest + PAGE, GiB, 2 ** 46, highest - PAGE, highest + PAGE])
        assert.equal(table.keyOf(va), -1);
    });
  });

  for (const [direction, step] of [
    ['upwards', 1],
    ['downwards', -1],
  ] as const)
    it(`grows ${direction}, GiB by GiB`, () => {
      const table = new TranslationTable();
      const va = (i: number): number => 2 ** 46 + step * i * GiB;
      for (let i = 0; i < 600; i++) {
        table.add(va(i), HUGE_PAGES * PAGE, i * GiB, i);
        assert.equal(table.keyOf(va(i) - PAGE), -1);
        assert.equal(table.keyOf(va(i >>> 1)), i >>> 1);
      }
      for (let i = 0; i < 600; i++) assert.equal(table.iovaOf(va(i) + 1), i * GiB + 1);
      // Twice what the leaves take, which grow by doubling.
      assert.ok(table.bytes < 2 * 601 * 8.1 * KiB, `${table.bytes} bytes`);
      for (let i = 0; i < 600; i++) table.remove(va(i), GiB);
      for (let i = 0; i < 600; i++) assert.equal(table.iovaOf(va(i)), -1);
    });

  it('shares nothing with other tables', () => {
    const [table, other] = [new TranslationTable(), new TranslationTable()];
    table.pairs.fill(0);
    assert.equal(other.iovaOf(MiB), -1);
    assert.equal(new TranslationTable().keyOf(MiB), -1);
  });

  it('knows nothing at first, anywhere', () => {
    const table = new TranslationTable();
    for (const va of [0, 4095, 2 ** 47, 2 ** 48, 2 ** 53 - 1]) {
      assert.equal(table.iovaOf(va), -1);
      assert.equal(table.keyOf(va), -1);
    }
    table.remove(2 ** 40, GiB);
    assert.equal(table.iovaOf(2 ** 40), -1);
  });

  it('gives both answers from one look-up', () => {
    const table = new TranslationTable();
    table.add(0x7f1234567000, 3 * PAGE, 0x10000, 77);
    const va = 0x7f1234568123;
    const slot = table.slotOf(va);
    assert.equal(va + table.pairs[slot], 0x11123);
    assert.equal(table.pairs[slot + 1], 77);
    const none = table.slotOf(va + 2 * PAGE);
    assert.ok(va + table.pairs[none] < 0);
    assert.equal(table.pairs[none + 1], -1);
  });

  it('splits a huge slot when a part of it goes, and keeps the rest', () => {
    const table = new TranslationTable();
    table.add(4 * MiB, 4 * MiB, 0, 5);
    table.remove(5 * MiB, PAGE);
    assert.equal(table.iovaOf(5 * MiB - 1), MiB - 1);
    assert.equal(table.iovaOf(5 * MiB), -1);
    assert.equal(table.keyOf(5 * MiB), -1);
    assert.equal(table.iovaOf(5 * MiB + PAGE), MiB + PAGE);
    assert.equal(table.keyOf(7 * MiB), 5);
  });

  it('is exact for an IOVA far above or below the VA', () => {
    const table = new TranslationTable();
    table.add(0, PAGE, 2 ** 53 - PAGE);
    table.add(2 ** 53 - PAGE, PAGE, 0);
    assert.equal(table.iovaOf(4095), 2 ** 53 - 1);
    assert.equal(table.iovaOf(2 ** 53 - 1), 4095);
    assert.equal(table.iovaOf(2 ** 53 - PAGE - 1), -1);
  });

  it('uses again what removals leave empty', () => {
    const table = new TranslationTable();
    const cycle = (i: number): void => {
      const base = 2 ** 46 + i * GiB;
      table.add(base + PAGE, GiB + MiB, i * PAGE);
      table.remove(base + 3 * MiB, PAGE);
      assert.equal(table.iovaOf(base + PAGE), i * PAGE);
      table.remove(base, 2 * GiB);
      assert.equal(table.iovaOf(base + PAGE), -1);
    };
    cycle(0);
    const { bytes } = table;
    for (let i = 1; i < 500; i++) cycle(i);
    assert.equal(table.bytes, bytes);
  });

  it('needs no memory to take out what was added', () => {
    const table = new TranslationTable();
    table.add(PAGE, GiB, 0);
    table.add(2 ** 46, 4 * MiB, 0);
    const { bytes } = table;
    table.remove(PAGE, GiB);
    table.remove(2 ** 46, 4 * MiB);
    assert.equal(table.bytes, bytes);
  });

  it('has no limit to the number of areas', () => {
    const table = new TranslationTable();
    for (let i = 0; i < 20_000; i++) table.add(TiB + i * 3 * PAGE, 2 * PAGE, i * 2 * PAGE, i);
    for (let i = 0; i < 20_000; i += 7) {
      assert.equal(table.iovaOf(TiB + i * 3 * PAGE + 5000), i * 2 * PAGE + 5000);
      assert.equal(table.keyOf(TiB + i * 3 * PAGE), i);
      assert.equal(table.iovaOf(TiB + i * 3 * PAGE + 2 * PAGE), -1);
    }
  });

  it('refuses impossible arguments and changes nothing', () => {
    const table = new TranslationTable();
    table.add(MiB, PAGE, MiB);
    const { bytes, generation } = table;
    for (const wrong of [
      () => table.add(100, PAGE, 0),
      () => table.add(0, 100, 0),
      () => table.add(0, 0, 0),
      () => table.add(0, PAGE, 100),
      () => table.add(0, PAGE, -PAGE),
      () => table.add(0, 2 * PAGE, 2 ** 53 - PAGE),
      () => table.add(0, PAGE, 0, -2),
      () => table.add(0, PAGE, 0, NaN),
      () => table.remove(NaN, PAGE),
      () => table.remove(0, 5),
    ]) {
      assert.throws(wrong, (error) => isDmaError(error, 'EINVAL'));
    }
    assert.throws(
      () => table.add(2 * MiB, 2 ** 53 - 2 * MiB, 0),
      (error) => isDmaError(error, 'ENOMEM'),
    );
    assert.deepEqual([table.bytes, table.generation], [bytes, generation]);
    assert.equal(table.iovaOf(0), -1);
    assert.equal(table.iovaOf(2 * MiB), -1);
    assert.equal(table.iovaOf(MiB), MiB);
  });
});
