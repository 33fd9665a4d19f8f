/** What one of many takes of the JavaScript heap and of ArrayBuffers. */
import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { collected } from '../../../test/shared/garbage.js';
import { Eal } from '../../eal.js';
import { KiB, MiB } from '../../units.js';

const COUNT = 30_000;

/** Bytes for each of what `make` makes, which is asked twice: what is there once is made by the first call. */
async function bytesEach(make: (i: number) => object): Promise<number> {
  const objects = new Array<object>(2 * COUNT).fill({});
  for (let i = 0; i < COUNT; i++) objects[i] = make(i);
  const before = await bytesInUse();
  for (let i = COUNT; i < 2 * COUNT; i++) objects[i] = make(i);
  return ((await bytesInUse()) - before) / COUNT;
}

async function bytesInUse(): Promise<number> {
  let rounds = 0;
  await collected(() => rounds++ > 3);
  const { heapUsed, arrayBuffers } = process.memoryUsage();
  return heapUsed + arrayBuffers;
}

describe('one of many', () => {
  for (const size of [64, 4 * KiB])
    it(`a block of ${size} bytes takes 128 bytes at most`, async () => {
      await using eal = await Eal.start({
        memory: { noHuge: true, size: 2 * COUNT * size + MiB },
        onForgotten: () => undefined,
      });
      const bytes = await bytesEach(() => eal.malloc(size));
      assert.ok(bytes < 128, `${bytes}`);
    });

  it('a zone takes 256 bytes at most', async () => {
    await using eal = await Eal.start({
      memory: { noHuge: true, size: 2 * COUNT * 64 + MiB },
      onForgotten: () => undefined,
    });
    const bytes = await bytesEach((i) => eal.zones.reserve(`zone ${i}`, 64));
    assert.ok(bytes < 256, `${bytes}`);
  });
});
