/**
 * Worker threads that attach to memory, a device and a pool of this thread, and end at any moment: in the middle of `attach`, of a look-up, of
 * `get` and `put`. This thread goes on using all of it; afterwards nothing is held, and every element is there, once.
 */
import assert from 'node:assert/strict';
import { setTimeout as sleep } from 'node:timers/promises';
import { Worker } from 'node:worker_threads';
import { isDmaError } from '../../../src/errors.js';
import { Eal } from '../../../src/index.js';
import { until } from '../../shared/until.js';
import { ENDINGS, type Attaching } from '../attaching-worker.js';
import type { Storm, Weather } from '../storm.js';

/** So many at once. */
const WORKERS = 3;
const ELEMENTS = 64;

export async function begin({ random, gc }: Weather): Promise<Storm> {
  const eal = await Eal.start({ onForgotten: () => undefined, memory: { onNotice: () => undefined } });
  const device = await eal.probe('vdev:edu0');
  const pool = eal.pools.create({ elements: ELEMENTS, elementSize: 256, cache: 8 });
  const counts = new Int32Array(new SharedArrayBuffer(12));
  const seen = Object.fromEntries(
    [...ENDINGS, 'refused frees', 'turns', 'addresses', 'no addresses'].map((what) => [what, 0]),
  );
  let gone = 0;

  const one = async (work: Omit<Attaching, 'pool' | 'device' | 'counts'>, wait: number): Promise<void> => {
    const workerData: Attaching = { ...work, pool: pool.share(), device: device.share(), counts };
    const worker = new Worker(new URL('../attaching-worker.js', import.meta.url), { workerData, stderr: true });
    const errors: string[] = [];
    worker.on('error', (error) => errors.push(error instanceof Error ? error.message : String(error)));
    const exited = new Promise<number>((resolve) => worker.once('exit', resolve));
    if (work.ending === 'terminated') {
      // From before its first line until deep in its work.
      await sleep(wait);
      await worker.terminate();
    }
    const status = await exited;
    const expected = work.ending === 'throws' ? ['mine'] : [];
    assert.deepEqual(errors, expected, `${work.ending}: ${status}`);
    seen[work.ending]++;
    gone++;
  };

  return {
    seen,
    // As of the storm "workers".
    allowed: () => ({ mappings: 3 * gone, addresses: 3080 * gone, rss: 64 * gone }),
    async round(number) {
      const memory = eal.external.allocate(64 * 1024);
      const shared = memory.share();
      const all = Array.from({ length: WORKERS }, (_, n) => {
        // All of them happen in a short run, too.
        const ending = ENDINGS[(number + n) % ENDINGS.length];
        return one({ memory: shared, ending, turns: 1 + random.below(300) }, random.below(120));
      });
      let over = false;
      const ends = Promise.allSettled(all).then((results) => {
        over = true;
        return results;
      });
      const burst = new Int32Array(5);
      while (!over) {
        const mapping = device.dmaMap(memory);
        await sleep(1);
        mapping.unmap();
        if (!pool.get(burst, 5)) continue;
        try {
          pool.free();
          assert.fail('the pool was freed with elements in use');
        } catch (error) {
          if (!isDmaError(error, 'EBUSY')) throw error;
          seen['refused frees']++;
        }
        pool.put(burst, 5);
        await sleep(1);
      }
      for (const result of await ends) if (result.status === 'rejected') throw result.reason;
      // Whatever they held has ended with them.
      memory.unregister();
      const numbers = new Int32Array(ELEMENTS);
      await until(() => pool.get(numbers, ELEMENTS), 'all elements are back');
      assert.equal(new Set(numbers).size, ELEMENTS, 'an element is in two hands');
      pool.put(numbers, ELEMENTS);
      [seen['turns'], seen['addresses'], seen['no addresses']] = counts;
      if (gc !== undefined && random.oneIn(4)) gc();
    },
    async close() {
      pool.free();
      await eal.stop();
    },
  };
}
