import assert from 'node:assert/strict';
import { test } from 'node:test';
import { fuzzShare } from '../../test/fuzz/share-fuzzer.js';
import { openPlatform } from '../platform/open.js';

test('the channel of a primary survives hostile processes', { skip: openPlatform().limitation ?? false }, async () => {
  const { killed, ofOthers, ...report } = await fuzzShare({ inputs: 12_000, seed: 2 });
  assert.ok(killed + ofOthers >= 0);
  // The attacks get somewhere: they are answered, and carry descriptors.
  for (const [what, count] of Object.entries(report)) assert.ok(count > 0, what);
});
