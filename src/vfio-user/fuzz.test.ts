import assert from 'node:assert/strict';
import { test } from 'node:test';
import { fuzz } from '../../test/fuzz/vfio-user-fuzzer.js';
import { openPlatform } from '../platform/open.js';

test('both ends survive adversaries', { skip: openPlatform().limitation ?? false }, async () => {
  const report = await fuzz({ messages: 20_000, seed: 1, batch: 1000 });
  // The attacks get somewhere: they are answered, refused, and calls come through as well.
  for (const [what, count] of Object.entries(report)) assert.ok(count > 0, what);
});
