/** A machine whose firmware keeps memory of a device mapped at the same addresses: the kernel never hands that device to a program. */
import { readFileSync } from 'node:fs';
import { before, test } from 'node:test';
import assert from 'node:assert/strict';
import { Eal, isDmaError, KiB } from '../../../src/index.js';
import { RESERVED } from '../dmar.js';
import { bindToVfio, CHOICE, EDU, EDU_SECOND, groupOf } from '../guest.js';

before(() => bindToVfio([EDU, EDU_SECOND]));

test('the kernel took the table', () => {
  const regions = readFileSync(`/sys/kernel/iommu_groups/${groupOf(EDU_SECOND)}/reserved_regions`, 'utf8');
  assert.match(regions, /^0x0*fffc0000 0x0*fffc0fff direct$/m);
});

test('the error names what the firmware keeps, and not the interrupts', async () => {
  await using eal = await Eal.start({ iommu: CHOICE });
  await assert.rejects(eal.probe(`pci:${EDU_SECOND}`), (error) => {
    assert.ok(isDmaError(error), String(error));
    assert.equal(error.code, 'EPERM', error.message);
    assert.match(error.message, /the firmware keeps .* mapped for it/);
    assert.ok(
      error.message.includes(`0x${RESERVED.start.toString(16)} to 0x${RESERVED.end.toString(16)}`),
      error.message,
    );
    assert.doesNotMatch(error.message, /interrupt|allow_unsafe|in use/);
    return true;
  });
  assert.deepEqual(eal.containers.default.devices, []);
});

test('other devices are handed out', async () => {
  await using eal = await Eal.start({ iommu: CHOICE });
  const device = await eal.probe(`pci:${EDU}`);
  using memory = eal.external.allocate(64 * KiB);
  using mapping = device.dmaMap(memory);
  assert.equal(mapping.length, 64 * KiB);
});
