import assert from 'node:assert/strict';
import { it } from 'node:test';
import { Eal } from './eal.js';
import { isDmaError } from './errors.js';
import { portablePlatform } from './platform/portable.js';

it('without VFIO in this build a PCI device is ENOTSUP, and why', async () => {
  await using eal = await Eal.start({ platform: portablePlatform('the operating system is darwin, not Linux') });
  for (const name of ['pci:0000:00:02.0', 'pci:00:02.0', 'bus=pci,addr=0000:00:02.0'])
    await assert.rejects(eal.probe(name), (error) => {
      assert.ok(isDmaError(error, 'ENOTSUP'), String(error));
      assert.match(error.message, /VFIO.*the operating system is darwin/);
      return true;
    });
  assert.deepEqual([...eal.devices()], []);
});
