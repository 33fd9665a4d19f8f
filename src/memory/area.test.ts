import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { isDmaError, type ErrorCode } from '../errors.js';
import { Range } from '../ranges.js';
import { MiB, type Va } from '../units.js';
import { Area, type AreaDetails } from './area.js';
import { AreaIndex } from './area-index.js';

const PAGE = 4096;
const A = 0x10000000;

function area(start: number, length: number, details: Partial<AreaDetails> = {}): Area {
  const range = new Range(start as Va, length);
  return new Area({ range, pageSize: PAGE, owner: 'external', label: `at ${start}`, ...details });
}

function error(code: ErrorCode, ...texts: string[]): (thrown: unknown) => true {
  return (thrown) => {
    if (!isDmaError(thrown)) throw thrown;
    assert.equal(thrown.code, code, thrown.message);
    for (const text of texts) assert.ok(thrown.message.includes(text), thrown.message);
    return true;
  };
}

test('what an area can not be', () => {
  for (const pageSize of [0, -PAGE, 3 * PAGE, 1.5, NaN, Infinity])
    assert.throws(() => area(A, 12 * PAGE, { pageSize }), error('EINVAL', 'not a power of two'));
  assert.throws(() => area(A + 8, PAGE), error('EINVAL', 'start 0x10000008'));
  assert.throws(() => area(A, PAGE + 8), error('EINVAL', 'length 0x1008'));
  assert.throws(() => area(A + PAGE, 2 * MiB, { pageSize: 2 * MiB }), error('EINVAL', 'start'));
  const table =
    (...iovas: number[]): (() => Area) =>
    () =>
      area(A, 2 * PAGE, { iovas });
  assert.throws(table(), error('EINVAL', '0 entries for 2 pages'));
  assert.throws(table(PAGE), error('EINVAL', '1 entries for 2 pages'));
  assert.throws(table(PAGE, 0, 0), error('EINVAL', '3 entries for 2 pages'));
  for (const bad of [1, -PAGE, NaN, 2 ** 53, 2 ** 53 - PAGE, 0.5])
    assert.throws(table(PAGE, bad), error('EINVAL', `entry 1 of the IOVA table, ${bad}`));
  table(0, 2 ** 53 - 2 * PAGE)();
});

test('what an area tells, and that its table is a copy', () => {
  const iovas = [0x5000, 0x6000];
  const one = area(A, 2 * PAGE, { iovas, node: 3, backing: { fd: 9, offset: 0x10000 }, writable: false });
  iovas[0] = 1;
  assert.deepEqual([one.iovas?.[0], one.node, one.writable], [0x5000, 3, false]);
  assert.deepEqual(one.backingAt((A + PAGE + 5) as Va), { fd: 9, offset: 0x11005 });
  const plain = area(A, PAGE);
  assert.deepEqual(
    [plain.node, plain.writable, plain.iovas, plain.backingAt(A as Va)],
    [-1, true, undefined, undefined],
  );
  assert.equal(plain.iovaRuns(plain.range), undefined);
});

test('holds are counted by name', () => {
  const one = area(A, PAGE);
  one.hold('d0');
  one.hold('d1');
  one.hold('d0');
  one.release('d0');
  assert.deepEqual(
    [...one.holders],
    [
      ['d0', 1],
      ['d1', 1],
    ],
  );
  one.release('d0');
  one.release('d0');
  one.release('never');
  assert.deepEqual([...one.holders], [['d1', 1]]);
});

test('runs of a table are those of a byte-by-byte look', () => {
  fc.assert(
    fc.property(
      fc.array(fc.integer({ min: 0, max: 12 }), { minLength: 1, maxLength: 16 }),
      fc.constantFrom(16, 64),
      fc.nat(),
      fc.nat(),
      (pages, pageSize, a, b) => {
        const one = area(1024, pages.length * pageSize, { pageSize, iovas: pages.map((page) => page * pageSize) });
        const start = a % one.range.length;
        const length = 1 + (b % (one.range.length - start));
        const iovaAt = (offset: number): number =>
          pages[Math.floor(offset / pageSize)] * pageSize + (offset % pageSize);
        const naive: { va: number; iova: number; length: number }[] = [];
        for (let at = start; at < start + length; at++) {
          const last = naive.at(-1);
          if (last !== undefined && last.iova + last.length === iovaAt(at)) last.length++;
          else naive.push({ va: 1024 + at, iova: iovaAt(at), length: 1 });
        }
        assert.deepEqual(one.iovaRuns(new Range((1024 + start) as Va, length)), naive);
      },
    ),
  );
});

test('10,000 areas: each is found, all are in order, every overlap is refused', () => {
  const index = new AreaIndex();
  const areas = Array.from({ length: 10_000 }, (_, i) => area(A + i * 4 * PAGE, 3 * PAGE));
  for (const each of [...areas.filter((_, i) => i % 2 === 1), ...areas.filter((_, i) => i % 2 === 0)]) index.add(each);
  assert.equal(index.size, 10_000);
  assert.deepEqual([...index], areas);
  for (const i of [0, 1, 17, 5000, 9999]) {
    const { range } = areas[i];
    assert.equal(index.at(range.start), areas[i]);
    assert.equal(index.at(range.end - 1), areas[i]);
    assert.equal(index.at(range.end), undefined);
    assert.equal(index.exact(range), areas[i]);
    assert.equal(index.exact(new Range(range.start, PAGE)), undefined);
    for (const [from, pages] of [
      [-1, 2],
      [0, 3],
      [1, 1],
      [2, 2],
      [-1, 5],
      [0, 1],
    ])
      assert.throws(
        () => index.add(area(range.start + from * PAGE, pages * PAGE), 'try'),
        error('EEXIST', 'try: it overlaps the external area', 'at '),
      );
  }
  index.add(area(areas[7].range.end, PAGE));
  for (const each of areas) index.remove(each);
  assert.equal(index.size, 1);
});

test('the area that covers a range, or why there is none', () => {
  const index = new AreaIndex();
  const one = area(A, 2 * PAGE, { label: 'mine' });
  index.add(one);
  assert.equal(index.covering(new Range((A + 1) as Va, PAGE), 'find'), one);
  assert.throws(() => index.covering(new Range((A - 1) as Va, 2), 'find'), error('EINVAL', 'not registered'));
  assert.throws(
    () => index.covering(new Range(A as Va, 2 * PAGE + 17), 'find'),
    error('EINVAL', '17 bytes past the end of mine'),
  );
});
