import assert from 'node:assert/strict';
import { test } from 'node:test';
import { forgottenLines, type Forgotten } from './forgotten.js';

function thing(place: string, bytes = 4096): Forgotten {
  const origin = { stack: `Error\n    at ${place}` };
  return { kind: ['mapping', 'mappings'], text: `mapping of ${bytes}`, verb: 'made', bytes, origin };
}

test('one place is one line, with how many and how much', () => {
  const all = Array.from({ length: 1004 }, () => thing('main (app.js:3:7)'));
  assert.deepEqual(forgottenLines([...all, thing('other (app.js:9:1)', 64)]), [
    '1004 mappings, 3.9 MiB, made at main (app.js:3:7); the first is mapping of 4096',
    'mapping of 64, made at other (app.js:9:1)',
  ]);
});

test('many places are twenty lines, of which the last counts the rest', () => {
  const lines = forgottenLines(Array.from({ length: 1000 }, (_, i) => thing(`f (app.js:${i % 100}:1)`)));
  assert.equal(lines.length, 20);
  assert.equal(lines[19], 'and 810 more, made at 81 other places');
});

test('what has no place says how to get one', () => {
  const blocks = { kind: ['block', 'blocks'] as const, text: 'a block', verb: 'made', bytes: 64, origin: 'do this' };
  assert.deepEqual(forgottenLines([blocks, blocks]), ['2 blocks, 128 bytes (do this)']);
});
