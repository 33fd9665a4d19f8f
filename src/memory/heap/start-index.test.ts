import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import fc from 'fast-check';
import { StartIndex } from './start-index.js';

/** Compares with a plain map over steps that put (a value) or take out what is at an address. */
function compare(steps: Iterable<[start: number, value: number | undefined]>, asked: (step: number) => boolean): void {
  const index = new StartIndex();
  const model = new Map<number, number>();
  let count = 0;
  for (const [start, value] of steps) {
    if (value !== undefined) {
      index.set(start, value);
      model.set(start, value);
    } else if (model.delete(start)) {
      index.delete(start);
    }
    assert.equal(index.get(start), model.get(start) ?? -1);
    assert.equal(index.get(start + 1), -1);
    if (!asked(count++)) continue;
    const sorted = [...model.keys()].sort((a, b) => a - b);
    for (const address of [start - 1, start, start + 1, start + 2048, start + 2 ** 31, start * 2]) {
      const below = sorted.findLast((each) => each <= address);
      assert.equal(index.floor(address), below === undefined ? -1 : model.get(below), `floor of ${address}`);
    }
  }
  for (const start of model.keys()) index.delete(start);
  for (const start of model.keys()) assert.equal(index.get(start), -1);
  assert.equal(index.floor(2 ** 53 - 1), -1);
}

void describe('StartIndex', () => {
  void it('agrees with a map, however near or far the addresses are', () => {
    // Lines around places where leaves and nodes of every level end.
    const edge = fc.tuple(fc.constantFrom(0, 11, 21, 31, 41, 51), fc.nat(3), fc.integer({ min: -2, max: 2 }));
    const start = edge
      .map(([power, times, lines]) => Math.max(0, 2 ** power * times + lines * 64))
      .map((at) => at - (at % 64));
    const step = fc.tuple(start, fc.option(fc.nat(1000), { nil: undefined, freq: 2 }));
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
    const steps: [number, number | undefined][] = [];
    for (let i = 0; i < 10_000; i++) {
      const start = random(2) * 2 ** 45 + random(60) * 2 ** 32 + random(40) * 2 ** 22 + random(4) * 64;
      steps.push([start, i % 4000 < 3000 || random(4) === 0 ? i : undefined]);
    }
    compare(steps, (step) => step % 200 === 0);
  });

  void it('has nothing at what is no address', () => {
    const index = new StartIndex();
    for (const address of [-1, -64, -2048, NaN, Infinity, -Infinity, 2 ** 60, 0.5]) {
      assert.equal(index.get(address), -1);
      assert.equal(index.floor(address), -1);
    }
    index.set(0, 7);
    for (const address of [-1, -64, -2048, NaN, -Infinity]) assert.equal(index.floor(address), -1);
    for (const address of [1, 32, 63, 0.5, 2 ** 53, 2 ** 60]) {
      assert.equal(index.get(address), -1);
      assert.equal(index.floor(address), 7);
    }
  });
});
