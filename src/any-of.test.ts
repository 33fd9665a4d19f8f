import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { AnyOf } from './any-of.js';

test('gives one of what a set has, and the same one until it goes', () => {
  fc.assert(
    fc.property(fc.array(fc.tuple(fc.boolean(), fc.nat(12))), (steps) => {
      const some = new AnyOf<string>();
      const model = new Set<string>();
      let last: string | undefined;
      for (const [add, number] of steps) {
        const value = String(number);
        if (add) {
          some.add(value);
          model.add(value);
        } else {
          some.delete(value);
          model.delete(value);
        }
        const { any } = some;
        assert.equal(any !== undefined, model.size > 0);
        if (any !== undefined) assert.ok(model.has(any));
        if (last !== undefined && model.has(last)) assert.equal(any, last);
        last = any;
        assert.deepEqual([...some], [...model]);
        assert.equal(some.size, model.size);
        assert.equal(some.has(value), model.has(value));
      }
    }),
  );
});
