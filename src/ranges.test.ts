import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { isDmaError } from './errors.js';
import { joined, Range } from './ranges.js';

const small = fc.tuple(fc.nat(40), fc.integer({ min: 1, max: 20 })).map(([start, length]) => new Range(start, length));
const bytes = ({ start, end }: Range): number[] => Array.from({ length: end - start }, (_, i) => start + i);

test('impossible ranges are EINVAL, in the name of the operation', () => {
  for (const [start, length] of [
    [-1, 1],
    [0, 0],
    [0, -1],
    [0.5, 1],
    [0, 1.5],
    [NaN, 1],
    [0, NaN],
    [2 ** 53, 1],
    [0, 2 ** 53],
    [1, 2 ** 53 - 1 + 1],
    [2 ** 53 - 1, 2],
  ])
    assert.throws(
      () => new Range(start, length, 'dmaMap'),
      (error) => isDmaError(error, 'EINVAL') && error.operation === 'dmaMap',
      `${start}, ${length}`,
    );
  assert.equal(new Range(2 ** 53 - 1, 1).end, 2 ** 53);
  assert.equal(new Range(1, 2 ** 53 - 1).end, 2 ** 53);
  assert.throws(() => Range.between(5, 5), { code: 'EINVAL' });
  assert.throws(() => Range.between(5, 4), { code: 'EINVAL' });
  assert.deepEqual(Range.between(4, 6), new Range(4, 2));
});

test('the arithmetic is that of sets of bytes', () => {
  fc.assert(
    fc.property(small, small, fc.nat(64), (a, b, at) => {
      const both = bytes(a).filter((byte) => b.contains(byte));
      assert.equal(a.contains(at), bytes(a).includes(at));
      assert.equal(a.overlaps(b), both.length > 0);
      assert.equal(b.overlaps(a), both.length > 0);
      assert.equal(
        a.covers(b),
        bytes(b).every((byte) => a.contains(byte)),
      );
      assert.equal(a.equals(b), a.covers(b) && b.covers(a));
      const intersection = a.intersection(b);
      assert.deepEqual(intersection === undefined ? [] : bytes(intersection), both);
    }),
  );
});

test('alignment', () => {
  fc.assert(
    fc.property(small, fc.constantFrom(1, 2, 4, 8, 16), (range, granule) => {
      const inside = range.alignedInside(granule);
      assert.equal(range.isAligned(granule), range.start % granule === 0 && range.end % granule === 0);
      const units = bytes(range).filter((byte) => byte % granule === 0 && byte + granule <= range.end);
      assert.equal(inside?.length ?? 0, units.length * granule);
      if (inside !== undefined) assert.ok(inside.isAligned(granule) && range.covers(inside));
    }),
  );
});

test('text and JSON', () => {
  const range = new Range(0x1000, 0x2000);
  assert.equal(String(range), '[0x1000, 0x3000)');
  assert.equal(JSON.stringify(range), '{"start":"0x1000","length":8192}');
});

test('joined ranges have the same bytes, and neither overlap nor touch', () => {
  fc.assert(
    fc.property(fc.array(small), (ranges) => {
      const result = joined(ranges);
      const all = new Set(ranges.flatMap(bytes));
      assert.deepEqual(
        result.flatMap(bytes),
        [...all].sort((a, b) => a - b),
      );
      result.slice(1).forEach((range, i) => assert.ok(range.start > result[i].end));
    }),
  );
});
