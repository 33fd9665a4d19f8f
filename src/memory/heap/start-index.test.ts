import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import fc from 'fast-check';
import { StartIndex } from './start-index.js';

/** Compares with a plain map over steps that put (a row) or take out what is at an address. */
function compare(steps: Iterable<[start: number, put: boolean]>, asked: (step: number) => boolean): void {
  const index = new StartIndex(1);
  const model = new Map<number, number>();
  const spare: number[] = [];
  let capacity = 1;
  let count = 0;
  for (const [start, put] of steps) {
    const known = model.get(start);
    if (put && known === undefined) {
      const row = spare.pop() ?? model.size;
      if (row >= capacity) index.grow((capacity *= 2));
      index.insert(row, start, index.floor(start));
      model.set(start, row);
    } else if (!put && known !== undefined) {
      index.remove(known);
      model.delete(start);
      spare.push(known);
    }
    assert.equal(index.get(start), model.get(start) ?? -1);
    assert.equal(index.get(start + 1), -1);
    if (!asked(count++)) continue;
    const sorted = [...model.keys()].sort((a, b) => a - b);
    for (const address of [start - 1, start, start + 1, start + 2048, start + 2 ** 31, start * 2]) {
      const below = sorted.findLast((each) => each <= address);
      assert.equal(index.floor(address), below === undefined ? -1 : model.get(below), `floor of ${address}`);
    }
    const chain: number[] = [];
    for (let row = index.first; row >= 0; row = index.after[row]) {
      chain.push(index.starts[row]);
      assert.equal(index.before[row], model.get(sorted[chain.length - 2]) ?? -1);
    }
    assert.deepEqual(chain, sorted);
  }
  for (const row of model.values()) index.remove(row);
  for (const start of model.keys()) assert.equal(index.get(start), -1);
  assert.deepEqual([index.floor(2 ** 53 - 1), index.first], [-1, -1]);
}

void describe('StartIndex', () => {
  void it('agrees with a map, however near or far the addresses are', () => {
    // Lines around places where leaves and nodes of every level end.
    const edge = fc.tuple(fc.constantFrom(0, 9, 18, 27, 36, 45, 51), fc.nat(3), fc.integer({ min: -2, max: 2 }));
    const start = edge
      .map(([power, times, lines]) => Math.max(0, 2 ** power * times + lines * 64))
      .map((at) => at - (at % 64));
    const step = fc.tuple(
      start,
      fc.nat(2).map((kind) => kind > 0),
    );
    fc.assert(
      fc.property(fc.array(step, { maxLength: 60, size: 'max' }), (steps) => compare(steps, () => true)),
      { numRuns: 500 },
    );
  });

  void it('agrees with a map of many addresses', () => {
    let state = 1;
    const random = (below: number): number => {
      state = (Math.imul(state, 1664525) + 1013904223) | 0;
      return Math.floor(((state >>> 8) / 2 ** 24) * below);
    };
    const steps: [number, boolean][] = [];
    for (let i = 0; i < 10_000; i++) {
      const start = random(2) * 2 ** 45 + random(60) * 2 ** 32 + random(40) * 2 ** 22 + random(4) * 64;
      steps.push([start, i % 4000 < 3000 || random(4) === 0]);
    }
    compare(steps, (step) => step % 200 === 0);
  });

  void it('has nothing at what is no address', () => {
    const index = new StartIndex(8);
    for (const address of [-1, -64, -2048, NaN, Infinity, -Infinity, 2 ** 60, 0.5]) {
      assert.equal(index.get(address), -1);
      assert.equal(index.floor(address), -1);
    }
    index.insert(7, 0, -1);
    for (const address of [-1, -64, -2048, NaN, -Infinity]) assert.equal(index.floor(address), -1);
    for (const address of [1, 32, 63, 0.5, 2 ** 53, 2 ** 60]) {
      assert.equal(index.get(address), -1);
      assert.equal(index.floor(address), 7);
    }
  });
});
