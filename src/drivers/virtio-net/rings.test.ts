/** Random bursts against a model of the rings; the whole of it is `npm run model:virtio-net`, and with `-packed` behind it. */
import assert from 'node:assert/strict';
import { it } from 'node:test';
import { againstRings } from '../../../test/shared/adapter-rings.js';
import { Eal } from '../../eal.js';

for (const adapter of ['virtio-net', 'virtio-net-packed'] as const)
  it(`random bursts go through the rings as lists of frames do: ${adapter}`, async () => {
    await using eal = await Eal.start();
    const counts = await againstRings(eal, { adapter, seed: 14, steps: 2000 });
    for (const kind of ['received', 'chained', 'tooLong', 'missed', 'sent', 'partial', 'padded', 'refused'] as const)
      assert.ok(counts[kind] > 0, kind);
  });
