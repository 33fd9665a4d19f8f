import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { dmaError } from '../../test/shared/errors.js';
import { Bench, PAGE } from '../../test/fakes/dma/address-space.js';
import type { MapAsyncOptions } from '../dma/domain.js';
import type { MapOptions } from '../dma/plan.js';
import type { PoolChunk } from '../memory/pool/pool-layout.js';
import type { Va } from '../units.js';
import { dmaMapPool, dmaMapPoolAsync, type MappablePool } from './map-pool.js';
import type { MemoryPart } from '../memory/part.js';

const A = 0x10000000;

/** A domain with keys and a device in it. */
function bench(asynchronous = false): { made: Bench; device: ReturnType<typeof deviceOf>; calls(): string[] } {
  let key = 0;
  const constraints = { iova: 'ignored', pins: true, regions: { onDemand: false } } as const;
  const made = new Bench({ constraints, asynchronous, keys: () => ({ lkey: ++key, rkey: key }) });
  const calls = (): string[] =>
    made.space.calls
      .splice(0)
      .map(({ call, segment }) => `${call} ${(segment.va - A) / PAGE} ${segment.length / PAGE} ${segment.access}`);
  return { made, device: deviceOf(made), calls };
}

function deviceOf({ domain }: Bench) {
  return {
    name: 'd0',
    dmaMap: (target: MemoryPart, options?: MapOptions) => domain.mapFor('d0', target, options),
    dmaMapAsync: async (target: MemoryPart, options?: MapAsyncOptions) => domain.mapForAsync('d0', target, options),
  };
}

/** A pool whose chunks are `[page, pages]` from A. */
function poolOf(...chunks: [page: number, pages: number][]): MappablePool {
  const chunkOf = ([page, pages]: [number, number]): PoolChunk => {
    return { va: (A + page * PAGE) as Va, length: pages * PAGE - 1, iova: undefined, count: pages };
  };
  return { name: 'packets', forDevices: true, live: true, chunks: chunks.map(chunkOf) };
}

describe('dmaMapPool', () => {
  it('maps each area of the pool once, however many chunks are in it', () => {
    const { made, device, calls } = bench();
    made.area(A, 8);
    made.area(A + 8 * PAGE, 4);
    made.area(A + 100 * PAGE, 4);
    made.area(A + 200 * PAGE, 4);
    const pool = poolOf([100, 1], [0, 1], [1, 1], [2, 3], [8, 1], [9, 1], [7, 1], [101, 2]);
    const mapping = dmaMapPool(device, pool, made.areas);
    assert.deepEqual(calls(), ['map 100 4 read-write', 'map 0 8 read-write', 'map 8 4 read-write']);
    assert.equal(mapping.mappings.length, 3);
    // With the program's own mapping of the same memory it is one.
    const own = device.dmaMap({ va: A, length: 8 * PAGE });
    mapping.unmap();
    assert.deepEqual(calls(), ['unmap 8 4 read-write', 'unmap 100 4 read-write']);
    assert.equal(own.live, true);
    mapping.unmap();
    assert.deepEqual(calls(), []);
  });

  it('maps nothing for memory that is mapped for every device', () => {
    const { made, device, calls } = bench();
    made.area(A, 8, { owner: 'owned' });
    made.area(A + 8 * PAGE, 8, { owner: 'heap' });
    made.area(A + 16 * PAGE, 8);
    using mapping = dmaMapPool(device, poolOf([1, 1], [9, 2], [16, 8]), made.areas, { access: 'write' });
    assert.deepEqual(calls(), ['map 16 8 write']);
    assert.equal(mapping.mappings.length, 1);
  });

  it('maps all or nothing', async () => {
    const { made, device, calls } = bench(true);
    for (let i = 0; i < 3; i++) made.area(A + 10 * i * PAGE, 1);
    const pool = poolOf([0, 1], [10, 1], [20, 1]);
    made.space.fail('map', 3, 'ENOMEM');
    assert.throws(() => dmaMapPool(device, pool, made.areas), dmaError('ENOMEM'));
    const undone = [0, 10, 20].map((page) => `map ${page} 1 read-write`);
    undone.push('unmap 10 1 read-write', 'unmap 0 1 read-write');
    assert.deepEqual(calls(), undone);
    made.space.fail('map', 3, 'ENOMEM');
    await assert.rejects(dmaMapPoolAsync(device, pool, made.areas), dmaError('ENOMEM'));
    assert.deepEqual(calls(), undone);
    assert.deepEqual([made.domain.entries, made.differences()], [0, []]);
  });

  it('maps without blocking: one registration for each area, progress over all, and abort', async () => {
    const { made, device, calls } = bench(true);
    made.area(A, 200_000);
    made.area(A + 300_000 * PAGE, 100_000);
    const pool = poolOf([0, 100], [300_000, 1]);
    const progress: number[] = [];
    const onProgress = ({ doneBytes, totalBytes }: { doneBytes: number; totalBytes: number }): void => {
      progress.push(doneBytes / totalBytes);
    };
    {
      await using mapping = await dmaMapPoolAsync(device, pool, made.areas, { onProgress });
      assert.deepEqual(progress, [2 / 3, 1]);
      assert.deepEqual(calls(), ['map 0 200000 read-write', 'map 300000 100000 read-write']);
      assert.equal(mapping.mappings.length, 2);
      made.space.fail('unmap', 1, 'EBUSY');
      await assert.rejects(mapping.unmapAsync(), dmaError('EBUSY'));
    }
    assert.deepEqual(calls(), [
      'unmap 300000 100000 read-write',
      'unmap 0 200000 read-write',
      'unmap 300000 100000 read-write',
    ]);
    const abort = new AbortController();
    const onFirst = (): void => abort.abort();
    const aborted = dmaMapPoolAsync(device, pool, made.areas, { onProgress: onFirst, signal: abort.signal });
    await assert.rejects(aborted, dmaError('ECANCELED'));
    assert.deepEqual([made.domain.entries, made.differences()], [0, []]);
  });

  it('refuses pools that are not for devices, are freed, or belong to another Eal', async () => {
    const { made, device, calls } = bench();
    made.area(A, 8);
    const pool = poolOf([0, 1]);
    for (const [wrong, says] of [
      [{ ...pool, forDevices: false }, /packets is not for devices/],
      [{ ...pool, live: false }, /packets was freed/],
      [poolOf([0, 1], [8, 1]), /not registered here/],
    ] as const) {
      assert.throws(() => dmaMapPool(device, wrong, made.areas), dmaError('EINVAL', says));
      await assert.rejects(dmaMapPoolAsync(device, wrong, made.areas), dmaError('EINVAL', says));
    }
    assert.deepEqual(calls(), []);
  });
});
