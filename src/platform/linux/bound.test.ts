import assert from 'node:assert/strict';
import { test } from 'node:test';
import { bound } from './bound.js';

interface Port {
  readonly unit: number;
  add(count: number): number;
  twice(count: number): number;
}

class Counter implements Port {
  readonly unit = 4;
  #total = 0;

  add(count: number): number {
    return (this.#total += count * this.unit);
  }

  twice(count: number): number {
    this.add(count);
    return this.add(count);
  }
}

test('a port that is a class can be spread, and its methods passed on', () => {
  const port: Port = bound(new Counter());
  const other: Port = { ...port, twice: () => -1 };
  assert.deepEqual([other.unit, other.add(1), other.twice(1)], [4, 4, -1]);
  assert.deepEqual([1, 1].map(port.add), [8, 12]);
  assert.equal(port.twice(1), 20);
  assert.deepEqual(Object.keys(port).sort(), ['add', 'twice', 'unit']);
});
