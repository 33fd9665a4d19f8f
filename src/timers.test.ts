import assert from 'node:assert/strict';
import { test } from 'node:test';
import { copyEngineDriver } from './drivers/copy-engine-driver.js';
import { Eal } from './eal.js';

test('fake timers that are switched on after the import do not stop devices', async () => {
  const originals = { setTimeout, clearTimeout, setImmediate, now: performance.now };
  const never = (() => ({ unref: () => undefined })) as never;
  Object.assign(globalThis, { setTimeout: never, clearTimeout: never, setImmediate: never });
  performance.now = () => 0;
  try {
    await using eal = await Eal.start();
    const device = await eal.probe('vdev:copy0');
    using source = eal.external.allocate(65536);
    using target = eal.external.allocate(65536);
    source.bytes().fill(9);
    using from = device.dmaMap(source);
    using to = device.dmaMap(target);
    await device.use(copyEngineDriver).copy(from.iova, to.iova, 65536);
    assert.equal(target.bytes()[65535], 9);
  } finally {
    const { now, ...timers } = originals;
    Object.assign(globalThis, timers);
    performance.now = now;
  }
});
