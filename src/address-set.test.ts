import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import fc from 'fast-check';
import { AddressSet } from './address-set.js';

const LENGTH = 64;

/** The ranges of a set of small addresses, as pairs of start and end. */
function rangesOf(set: AddressSet): [start: number, end: number][] {
  return [...set.ranges.entries()].map(([start, length]) => [start, start + length]);
}

/** The same of a model: which addresses are in it. */
function runsOf(model: readonly boolean[]): [start: number, end: number][] {
  const runs: [number, number][] = [];
  for (const [at, isIn] of model.entries()) {
    if (!isIn) continue;
    const last = runs.at(-1);
    if (last?.[1] === at) last[1] = at + 1;
    else runs.push([at, at + 1]);
  }
  return runs;
}

void describe('AddressSet', () => {
  void it('gives out the lowest addresses that fit, and joins what comes back', () => {
    const step = fc.record({
      length: fc.integer({ min: 1, max: 12 }),
      alignment: fc.constantFrom(1, 2, 8),
      back: fc.nat(),
    });
    fc.assert(
      fc.property(fc.array(step, { maxLength: 60 }), (steps) => {
        const set = new AddressSet();
        set.add(0, LENGTH);
        const model = new Array<boolean>(LENGTH).fill(true);
        const taken: [start: number, length: number][] = [];
        for (const { length, alignment, back } of steps) {
          let expected = -1;
          for (let at = 0; expected === -1 && at + length <= LENGTH; at += alignment)
            if (model.slice(at, at + length).every(Boolean)) expected = at;
          assert.equal(set.take(length, alignment), expected);
          if (expected !== -1) {
            model.fill(false, expected, expected + length);
            taken.push([expected, length]);
          }
          if (back % 2 === 0 && taken.length > 0) {
            const [[start, bytes]] = taken.splice(back % taken.length, 1);
            set.add(start, start + bytes);
            model.fill(true, start, start + bytes);
          }
          assert.deepEqual(rangesOf(set), runsOf(model));
          assert.equal(set.bytes, model.filter(Boolean).length);
        }
      }),
    );
  });

  void it('removes what is in it, and knows what it covers', () => {
    const set = new AddressSet();
    set.add(10, 20);
    set.add(30, 40);
    set.remove(15, 35);
    assert.deepEqual(rangesOf(set), [
      [10, 15],
      [35, 40],
    ]);
    assert.equal(set.bytes, 10);
    assert.deepEqual(
      [set.covers(10, 15), set.covers(10, 16), set.covers(9, 11), set.covers(15, 16)],
      [true, false, false, false],
    );
  });
});
