import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { copyEngineDriver } from './drivers/copy-engine-driver.js';
import { eduDriver } from './drivers/edu-driver.js';
import { Eal } from './eal.js';
import { openPlatform } from './platform/open.js';
import { spawnDevice } from './vfio-user/device-process.js';

const SKIP = { skip: openPlatform().limitation ?? false };

/** Fakes as the libraries of tests put them in place: nothing fires, and the clock stands. */
async function withFakes(work: () => Promise<void>): Promise<void> {
  const timers = {
    setTimeout,
    clearTimeout,
    setInterval,
    clearInterval,
    setImmediate,
    clearImmediate,
    queueMicrotask,
  };
  const realNow = performance.now;
  const never = (() => ({ unref: () => undefined })) as never;
  for (const name of Object.keys(timers)) Object.assign(globalThis, { [name]: never });
  performance.now = () => 0;
  try {
    await work();
  } finally {
    Object.assign(globalThis, timers);
    performance.now = realNow;
  }
}

/** All that waits: growth, mapping piece by piece, transfers, interrupts, unmapping. */
async function use(name: string): Promise<void> {
  await using eal = await Eal.start();
  const device = await eal.probe(name);
  using source = eal.external.allocate(65536);
  using target = eal.external.allocate(65536);
  source.bytes().fill(9);
  await using from = await device.dmaMapAsync(source, { chunkBytes: 16384 });
  using to = device.dmaMap(target);
  await device.use(copyEngineDriver).copy(from.iova, to.iova, 65536);
  assert.equal(target.bytes()[65535], 9);
  using block = await eal.mallocAsync(8 * 2 ** 20);
  assert.equal(block.bytes()[0], 0);
}

describe('fake timers that are switched on after the import', SKIP, () => {
  it('do not stop devices of vdev', () =>
    withFakes(async () => {
      await use('vdev:copy0');
      await using eal = await Eal.start();
      const device = await eal.probe('vdev:edu0');
      assert.equal(await device.use(eduDriver).factorial(5), 120);
    }));

  it('do not stop devices of vfio-user, nor their processes', () =>
    withFakes(async () => {
      await using device = await spawnDevice('copy');
      await use(`vfio-user:${device.socketPath}`);
    }));
});
