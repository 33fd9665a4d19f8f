import assert from 'node:assert/strict';
import { test } from 'node:test';
import { PATTERNS, Workload, writes } from './workload.js';

const many = (workload: Workload, count: number): { units: number[]; written: number } => {
  const units: number[] = [];
  let written = 0;
  for (let n = 0; n < count; n++) {
    units.push(workload.next());
    if (workload.isWrite) written++;
  }
  return { units, written };
};

test('patterns in order take every unit, and begin again', () => {
  assert.deepEqual(many(new Workload('read', 3, 50, 1), 7).units, [0, 1, 2, 0, 1, 2, 0]);
  assert.deepEqual(many(new Workload('write', 3, 50, 1, 2), 3).units, [2, 0, 1]);
});

test('patterns at random stay inside, reach every unit, and are the same for the same seed', () => {
  for (const units of [1, 2, 100]) {
    const { units: seen } = many(new Workload('randread', units, 50, 7), 5000);
    assert.equal(new Set(seen).size, units);
    assert.ok(seen.every((unit) => unit >= 0 && unit < units));
    assert.deepEqual(many(new Workload('randread', units, 50, 7), 5000).units, seen);
  }
  const far = many(new Workload('randread', 2 ** 45, 50, 3), 100).units;
  assert.ok(far.every((unit) => Number.isSafeInteger(unit) && unit < 2 ** 45));
  assert.ok(far.some((unit) => unit > 2 ** 40));
});

test('the mix is what was asked for', () => {
  for (const [pattern, percent, expected] of [
    ['randrw', 70, 3000],
    ['rw', 70, 3000],
    ['randrw', 0, 10_000],
    ['randrw', 100, 0],
    ['read', 0, 0],
    ['randwrite', 100, 10_000],
  ] as const) {
    const { written } = many(new Workload(pattern, 1000, percent, 11), 10_000);
    assert.ok(Math.abs(written - expected) <= 200, `${pattern} ${percent}: ${written}`);
    if (expected === 0) assert.equal(written, 0);
  }
  assert.deepEqual(PATTERNS.filter(writes), ['write', 'randwrite', 'rw', 'randrw']);
});
