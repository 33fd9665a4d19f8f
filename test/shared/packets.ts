/** Packets over a pool of their own, for tests: at the end every element must be back. */
import assert from 'node:assert/strict';
import { Pools } from '../../src/memory/pool/pools.js';
import type { Pool } from '../../src/memory/pool/pool.js';
import { Packets } from '../../src/net/packets.js';
import { testSources } from '../fakes/memory/heap-sources.js';

/** A test over such packets. */
export function withPackets(
  work: (packets: Packets, pool: Pool) => Promise<void> | void,
  { elements = 64, size = 256, headroom = 32 } = {},
): () => Promise<void> {
  return async () => {
    const sources = testSources();
    const pools = new Pools(sources);
    const pool = pools.create({ elements, elementSize: size, checked: true });
    await work(new Packets(pool, { headroom }), pool);
    assert.equal(pool.available, elements, 'elements are missing');
    pool.free();
    assert.deepEqual(pools.close(), []);
    sources.close();
  };
}
