/** Devices without an IOMMU: only for who asks for it, never in silence, and by physical addresses. */
import { readFileSync, writeFileSync } from 'node:fs';
import { before, test } from 'node:test';
import assert from 'node:assert/strict';
import { Room } from '../../shared/command.js';
import { Eal, eduDriver, isDmaError, KiB, MiB, type Device, type ErrorCode } from '../../../src/index.js';
import { bindToVfio, EDU, EDU_HOTPLUG } from '../guest.js';
import { host } from '../host.js';

const LENGTH = 2 * KiB;
const MODE = '/sys/module/vfio/parameters/enable_unsafe_noiommu_mode';
/** Bits that reach all memory of the guest; the usual edu device has 28. */
const BITS = 40;

before(async () => {
  await host.deviceAdd({ driver: 'edu', id: 'wide', bus: 'port0', dma_mask: 2 ** BITS - 1 });
  await bindToVfio([EDU_HOTPLUG], { wait: true });
  await bindToVfio([EDU]);
});

const wide = (eal: Eal): Promise<Device> => eal.probe(`pci:${EDU_HOTPLUG},dma-mask=${BITS}`);

async function refused(code: ErrorCode, work: () => Promise<unknown>, pattern: RegExp): Promise<void> {
  await assert.rejects(work, (error) => {
    assert.ok(isDmaError(error), String(error));
    assert.equal(error.code, code, error.message);
    assert.match(error.message, pattern);
    return true;
  });
}

test('nobody gets there without asking for it', async () => {
  for (const iommu of ['auto', 'type1', 'iommufd'] as const) {
    await using eal = await Eal.start({ iommu });
    await assert.rejects(
      () => wide(eal),
      (error) => isDmaError(error),
    );
  }
  await using eal = await Eal.start();
  await refused('ENODEV', () => wide(eal), /no IOMMU translates for it.*noiommu/);
});

test('nor where the mode is off', async () => {
  assert.equal(readFileSync(MODE, 'utf8').trim(), 'Y');
  writeFileSync(MODE, 'N');
  try {
    await using eal = await Eal.start({ iommu: 'noiommu' });
    await refused('ENOTSUP', () => wide(eal), /no-IOMMU mode is off .*enable_unsafe_noiommu_mode/);
  } finally {
    writeFileSync(MODE, 'Y');
  }
});

test('a loud warning, and copies by physical addresses of owned memory', async () => {
  const warnings: string[] = [];
  const listen = (warning: Error & { code?: string }): void =>
    void warnings.push(`${warning.code}: ${warning.message}`);
  process.on('warning', listen);
  await using eal = await Eal.start({ iommu: 'noiommu' });
  const device = await wide(eal);
  await new Promise((resolve) => setImmediate(resolve));
  process.off('warning', listen);
  assert.equal(warnings.length, 1);
  assert.match(warnings[0] ?? '', /^ANYDMA_NOIOMMU: .*all memory of this machine/);
  assert.equal(device.domain?.kind, 'vfio-noiommu');
  assert.equal(eal.memory.iova.mode, 'pa');
  const [from, to] = [eal.malloc(LENGTH), eal.malloc(LENGTH)];
  const sent = Uint8Array.from({ length: LENGTH }, (_, i) => (i * 7) & 0xff);
  from.bytes().set(sent);
  to.bytes().fill(0);
  const iova = device.iovaOf(from);
  // What the kernel itself says of where the page is.
  const frames = eal.platform.memory.frames(from.va, 4 * KiB, 1);
  assert.equal(iova, (frames?.[0] ?? -1) + (from.va % (4 * KiB)));
  const edu = device.use(eduDriver);
  await edu.copyIn(iova, 0, LENGTH);
  await edu.copyOut(device.iovaOf(to), 0, LENGTH);
  assert.deepEqual(Uint8Array.from(to.bytes()), sent);
  from.free();
  to.free();
});

test('memory whose physical addresses are not known is not mapped', async () => {
  await using eal = await Eal.start({ iommu: 'noiommu' });
  const device = await wide(eal);
  using memory = eal.external.allocate(MiB);
  assert.throws(
    () => device.dmaMap(memory),
    (error) => {
      assert.ok(isDmaError(error), String(error));
      assert.equal(error.code, 'EINVAL', error.message);
      assert.match(error.message, /IOVA|physical/);
      return true;
    },
  );
  assert.equal(device.domain?.entries, 0);
});

test('a device that does not reach all memory: what is below its limit is mapped, what is above is refused', async () => {
  await using eal = await Eal.start({ iommu: 'noiommu' });
  const device = await eal.probe(`pci:${EDU},dma-mask=28`);
  const { memory: port } = eal.platform;
  const page = port.pageSize;
  const va = port.map({ length: 2 * page });
  // Where the pages really are does not matter here: nothing is copied.
  for (const [at, iova] of [
    [va, 0x0800_0000],
    [va + page, 2 ** 28],
  ]) {
    const memory = eal.external.fromAddress(at, page, { iovas: [iova], pageSize: page });
    if (iova < 2 ** 28) {
      const mapping = device.dmaMap(memory);
      assert.equal(mapping.iova, iova);
      mapping.unmap();
    } else await refused('ERANGE', async () => device.dmaMap(memory), /window/);
    memory.unregister();
  }
  assert.equal(device.domain?.entries, 0);
  port.unmap(va, 2 * page);
});

test('anydma map tells what it is', async () => {
  using room = new Room();
  const args = ['map', '--device', `pci:${EDU_HOTPLUG},dma-mask=${BITS}`, '--size', '4k', '--mode', 'owned'];
  const { status, stderr } = await room.run(args);
  assert.equal(status, 1);
  assert.match(stderr, /noiommu/);
  const asked = await room.run([...args, '--iommu', 'noiommu']);
  assert.equal(asked.status, 0, asked.stderr);
  assert.match(asked.stderr, /ANYDMA_NOIOMMU/);
  assert.match(asked.stdout, /vfio-noiommu/);
});
