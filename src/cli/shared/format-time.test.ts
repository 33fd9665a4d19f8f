import assert from 'node:assert/strict';
import { test } from 'node:test';
import { formatTime } from './format-time.js';

test('times for people', () => {
  assert.deepEqual([0.5, 1.25, 99.6, 1500, 25_000, 2e6].map(formatTime), [
    '500 ns',
    '1.3 us',
    '100 us',
    '1.5 ms',
    '25 ms',
    '2.0 s',
  ]);
});
