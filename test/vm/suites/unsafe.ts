/** A machine whose IOMMU does not isolate interrupts: the kernel hands nothing out, unless somebody takes the risk. */
import { writeFileSync } from 'node:fs';
import { before, test } from 'node:test';
import assert from 'node:assert/strict';
import { Eal, eduDriver, isDmaError, KiB } from '../../../src/index.js';
import { bindToVfio, CHOICE, EDU } from '../guest.js';

const LENGTH = 2 * KiB;
const MODULE = { type1: 'vfio_iommu_type1', iommufd: 'iommufd', noiommu: '' }[CHOICE];
const PARAMETER = `/sys/module/${MODULE}/parameters/allow_unsafe_interrupts`;

before(() => bindToVfio([EDU]));

test('no device is handed out, and what to do is said', async () => {
  await using eal = await Eal.start({ iommu: CHOICE });
  await assert.rejects(eal.probe(`pci:${EDU}`), (error) => {
    assert.ok(isDmaError(error), String(error));
    assert.equal(error.code, 'EPERM', error.message);
    assert.match(error.message, /interrupts are not isolated on this machine/);
    assert.match(error.hint ?? '', /interrupt remapping/);
    assert.ok(error.hint?.includes(`echo Y > ${PARAMETER}`), error.hint);
    return true;
  });
  assert.deepEqual(eal.containers.default.devices, []);
});

test('who takes the risk gets it', async () => {
  writeFileSync(PARAMETER, 'Y');
  try {
    await using eal = await Eal.start({ iommu: CHOICE });
    const device = await eal.probe(`pci:${EDU}`);
    const edu = device.use(eduDriver);
    using memory = eal.external.allocate(64 * KiB);
    using mapping = device.dmaMap(memory);
    const bytes = memory.bytes();
    bytes.fill(0x77, 0, LENGTH);
    await edu.copyIn(mapping.iova, 0, LENGTH);
    await edu.copyOut(mapping.iova + 32 * KiB, 0, LENGTH);
    assert.ok(bytes.subarray(32 * KiB, 32 * KiB + LENGTH).every((byte) => byte === 0x77));
  } finally {
    writeFileSync(PARAMETER, 'N');
  }
});
