/** Random bursts against a model of the rings; the whole of it is `npm run model:e1000e`. */
import assert from 'node:assert/strict';
import { it } from 'node:test';
import { againstRings } from '../../../test/shared/adapter-rings.js';
import { Eal } from '../../eal.js';

for (const isLegacy of [false, true])
  it(`random bursts go through the rings as lists of frames do, ${isLegacy ? 'legacy' : 'extended'} descriptors`, async () => {
    await using eal = await Eal.start();
    const counts = await againstRings(eal, { adapter: 'e1000e', seed: 14, steps: 2000, isLegacy });
    for (const kind of ['received', 'chained', 'tooLong', 'missed', 'sent', 'partial', 'padded', 'refused'] as const)
      assert.ok(counts[kind] > 0, kind);
  });
