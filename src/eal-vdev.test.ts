/** Software devices, end to end: the program's memory, an IOMMU in software, and models in this process. */
import assert from 'node:assert/strict';
import { mkdtempSync, openSync, closeSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, it } from 'node:test';
import { dmaError } from '../test/shared/errors.js';
import type { Device } from './bus/model.js';
import { PCI_REGION } from './bus/device-access.js';
import { copyEngineDriver } from './drivers/copy-engine-driver.js';
import type { CopyEngine } from './drivers/copy-engine.js';
import { eduDriver } from './drivers/edu-driver.js';
import { rawDriver } from './drivers/raw-driver.js';
import { Eal } from './eal.js';
import { isDmaError } from './errors.js';
import type { ExternalMemory } from './memory/external.js';
import { openPlatform } from './platform/open.js';
import { portablePlatform } from './platform/portable.js';
import type { Platform } from './platform/ports.js';
import { KiB, type Iova } from './units.js';
import { deviceModel } from './vfio-user/devices/catalog.js';
import { EDU_COMMAND, EDU_REGISTER } from './vfio-user/devices/edu-layout.js';
import type { ModelFactory } from './vfio-user/devices/model.js';

const PLATFORMS: readonly Platform[] = [openPlatform(), portablePlatform('the test says so')];

function fill(memory: ExternalMemory): Uint8Array {
  const bytes = memory.bytes();
  for (let i = 0; i < bytes.length; i++) bytes[i] = (i * 7) % 253;
  return bytes.slice();
}

/** A device with one 32-bit counter, whose store interrupts, and a page of memory. */
const counter: ModelFactory = (host) => {
  let value = 0;
  return {
    name: 'counter',
    identity: { vendor: 0x1af4, device: 0x10f0, subsystemVendor: 1, subsystem: 2, revision: 3, classCode: 0x123456 },
    regions: [{ index: 2, size: 8192, memory: [{ offset: 4096, length: 4096 }] }],
    interrupts: { intx: 0, msi: 2, msix: 0 },
    read: (_region, _offset, into) => new DataView(into.buffer, into.byteOffset).setUint32(0, value, true),
    write: (_region, _offset, from) => {
      value = new DataView(from.buffer, from.byteOffset).getUint32(0, true) + host.regionMemory(2, 4096)[0];
      host.interrupt(1);
    },
    reset: () => void (value = 0),
    quiesce: () => undefined,
    resume: () => undefined,
  };
};

for (const platform of PLATFORMS)
  describe(`software devices, ${platform.name}`, () => {
    const source = platform.limitation === undefined ? 'memfd' : 'anonymous';

    it('DM-24 a copy engine copies between allocated memories, behind an IOMMU or not', async () => {
      for (const iommu of ['emulated', 'identity']) {
        await using eal = await Eal.start({ platform });
        const device = await eal.probe(`vdev:copy0,iommu=${iommu}`);
        assert.equal(device.domain?.kind, iommu);
        using from = eal.external.allocate(300 * KiB, { source });
        using to = eal.external.allocate(300 * KiB, { source });
        using read = device.dmaMap(from, { access: 'read' });
        using write = device.dmaMap(to, { access: 'write' });
        const expected = fill(from);
        await device.use(copyEngineDriver).copy(read.iova, write.iova, from.length);
        assert.deepEqual(to.bytes(), expected);
      }
    });

    it('an edu device computes, interrupts, and moves memory both ways at low IOVAs', async () => {
      await using eal = await Eal.start({ platform });
      const device = await eal.probe('vdev:edu0');
      const edu = device.use(eduDriver);
      assert.equal(edu.liveness(0x12345678), 0xedcba987);
      assert.equal(await edu.factorial(10), 3628800);
      const reasons: number[] = [];
      using memory = eal.external.allocate(8192, { source });
      using mapping = device.dmaMap(memory);
      assert.ok(mapping.iova + mapping.length <= 2 ** 28, 'its 28 bits reach there');
      const expected = fill(memory);
      const interrupts = edu.enableInterrupt((reason) => reasons.push(reason));
      await edu.copyIn(mapping.iova, 0, 4000);
      await edu.copyOut(mapping.iova + 4096, 0, 4000);
      assert.deepEqual(memory.bytes(4096, 4000), expected.subarray(0, 4000));
      assert.ok(reasons.length > 0);
      interrupts.close();
      assert.throws(() => device.dmaMap(memory, { iova: 2 ** 28 }), dmaError('ERANGE'));
    });
  });

describe('a software device behind an IOMMU', () => {
  async function start(): Promise<{ eal: Eal; device: Device; engine: CopyEngine }> {
    const eal = await Eal.start();
    const device = await eal.probe('vdev:copy0');
    return { eal, device, engine: device.use(copyEngineDriver) };
  }

  it('may not write what is mapped for reading, and that is explained', async () => {
    const { eal, device, engine } = await start();
    const from = eal.external.allocate(4096);
    const to = eal.external.allocate(4096);
    const read = device.dmaMap(from, { access: 'read' });
    const alsoRead = device.dmaMap(to, { access: 'read' });
    from.bytes().fill(1);
    await assert.rejects(engine.copy(read.iova, alsoRead.iova, 4096), (error) => {
      assert.ok(isDmaError(error, 'EACCES'));
      assert.equal(error.range?.start, alsoRead.iova);
      return true;
    });
    assert.ok(to.bytes().every((byte) => byte === 0));
    const { kind, text } = device.explain(alsoRead.iova, 4096, 'write');
    assert.equal(kind, 'wrong-access');
    assert.match(text, /eal-vdev\.test/);
    await eal.remove(device);
    from.unregister();
    to.unregister();
    await eal.stop();
  });

  it('may not reach what is not mapped, or not any more, and that is explained', async () => {
    const { eal, device, engine } = await start();
    const from = eal.external.allocate(8192);
    const to = eal.external.allocate(8192);
    const read = device.dmaMap(from);
    const write = device.dmaMap(to);
    const { iova } = write;
    write.unmap();
    await assert.rejects(engine.copy(read.iova, iova, 100), dmaError('EFAULT'));
    assert.equal(device.explain(iova, 100).kind, 'unmapped');
    await assert.rejects(engine.copy(read.iova + 8192 - 50, iova, 100), dmaError('EFAULT'));
    assert.equal(device.explain((read.iova + 8192) as Iova).kind, 'past-end');
    assert.equal(device.explain((2 ** 40) as Iova).kind, 'never-mapped');
    assert.equal(device.explain((2 ** 50) as Iova).kind, 'outside-windows');
    assert.ok(to.bytes().every((byte) => byte === 0));
    await using _eal = eal;
    read.unmap();
    from.unregister();
    to.unregister();
  });

  it('loses what is cut out of a mapping, and nothing else', async () => {
    const { eal, device, engine } = await start();
    await using _eal = eal;
    using from = eal.external.allocate(3 * 4096);
    using to = eal.external.allocate(3 * 4096);
    using read = device.dmaMap(from);
    using write = device.dmaMap(to);
    const { iova } = write;
    fill(from);
    device.dmaUnmap({ va: to.va + 4096, length: 4096 });
    await assert.rejects(engine.copy(read.iova, iova, 3 * 4096), dmaError('EFAULT'));
    await engine.copy(read.iova, iova, 4096);
    await engine.copy(read.iova + 8192, iova + 8192, 4096);
    assert.deepEqual(to.bytes(8192, 4096), from.bytes(8192, 4096));
    assert.ok(to.bytes(4096, 4096).every((byte) => byte === 0));
  });

  it('two of them do not reach what is mapped for the other', async () => {
    const { eal, device, engine } = await start();
    await using _eal = eal;
    const other = await eal.probe('vdev:copy1');
    using memory = eal.external.allocate(8192);
    using mine = other.dmaMap(memory);
    await assert.rejects(engine.copy(mine.iova, mine.iova + 4096, 64), dmaError('EFAULT'));
    await other.use(copyEngineDriver).copy(mine.iova, mine.iova + 4096, 64);
    using all = eal.dmaMapAll(memory);
    const where = all.of(device)?.iova ?? 0;
    await engine.copy(where, where + 4096, 64);
  });
});

describe('a software device without an IOMMU', () => {
  it('reaches registered memory, and uses virtual addresses', async () => {
    await using eal = await Eal.start();
    const device = await eal.probe('vdev:copy0,iommu=identity');
    const engine = device.use(copyEngineDriver);
    using memory = eal.external.allocate(8192);
    using mapping = device.dmaMap(memory);
    assert.equal(Number(mapping.iova), Number(memory.va));
    assert.throws(() => device.dmaMap(memory, { iova: 0 }), dmaError('EINVAL'));
    await assert.rejects(engine.copy(memory.va + 8192, Number(memory.va), 64), dmaError('EFAULT'));
  });

  it('can not write read-only memory', async () => {
    const directory = mkdtempSync(join(tmpdir(), 'anydma-test-'));
    const file = join(directory, 'file');
    writeFileSync(file, new Uint8Array(4096).fill(7));
    const fd = openSync(file, 'r');
    try {
      await using eal = await Eal.start();
      const device = await eal.probe('vdev:copy0,iommu=identity');
      using fixed = eal.external.fromFd(fd);
      using memory = eal.external.allocate(4096);
      const engine = device.use(copyEngineDriver);
      await assert.rejects(engine.copy(Number(memory.va), Number(fixed.va), 64), dmaError('EFAULT'));
      await engine.copy(Number(fixed.va), Number(memory.va), 64);
      assert.equal(memory.bytes()[63], 7);
    } finally {
      closeSync(fd);
      rmSync(directory, { recursive: true });
    }
  });

  it('a device of 28 bits can not be mapped there, and it says so', async () => {
    await using eal = await Eal.start();
    const device = await eal.probe('vdev:edu0,iommu=identity');
    using memory = eal.external.allocate(4096);
    assert.throws(() => device.dmaMap(memory), dmaError('ERANGE'));
  });
});

describe('names of software devices', () => {
  it('that are not possible are refused, and nothing is left', async () => {
    await using eal = await Eal.start();
    const bad: [name: string, code: 'ENODEV' | 'EINVAL'][] = [
      ['vdev:edu', 'ENODEV'],
      ['vdev:nothing0', 'ENODEV'],
      ['vdev:EDU0', 'ENODEV'],
      ['vdev:0', 'ENODEV'],
      ['vdev:edu0,iommu=other', 'EINVAL'],
      ['vdev:edu0,dma-mask=x', 'EINVAL'],
      ['vdev:edu0,dma-mask=', 'EINVAL'],
      ['vdev:edu0,dma-mask=11', 'EINVAL'],
      ['vdev:edu0,dma-mask=53', 'EINVAL'],
      ['vdev:copy0,file=x', 'EINVAL'],
      ['vdev:nvme0,dma-mask=11', 'EINVAL'],
      ['vdev:copy0,dma-mask=40', 'EINVAL'],
      ['vdev:nvme0,blocksize=1000', 'EINVAL'],
      ['vdev:nvme0,size=large', 'EINVAL'],
    ];
    for (const [name, code] of bad) await assert.rejects(eal.probe(name), dmaError(code), name);
    assert.deepEqual(eal.devices(), []);
    await eal.probe('vdev:edu0');
  });

  it('have a mask of the program’s own, on both sides', async () => {
    await using eal = await Eal.start();
    const device = await eal.probe('vdev:edu0,dma-mask=40');
    using memory = eal.external.allocate(4096);
    using mapping = device.dmaMap(memory, { iova: 2 ** 39 });
    memory.bytes().fill(9, 0, 100);
    await device.use(eduDriver).copyIn(mapping.iova, 0, 100);
    await device.use(eduDriver).copyOut(mapping.iova + 100, 0, 100);
    assert.equal(memory.bytes()[199], 9);
  });

  it('what a device asks for past all addresses is refused', async () => {
    await using eal = await Eal.start();
    eal.vdev.define('wide-edu', deviceModel('edu', { dmaMaskBits: 53 }));
    const device = await eal.probe('bus=vdev,name=wide-edu0/driver=raw');
    const registers = device.use(rawDriver).registers(0);
    registers.write64(EDU_REGISTER.DMA_SOURCE, 2 ** 53 - 1);
    registers.write64(EDU_REGISTER.DMA_DESTINATION, 0x40000);
    registers.write64(EDU_REGISTER.DMA_COUNT, 64);
    registers.write64(EDU_REGISTER.DMA_COMMAND, EDU_COMMAND.RUN);
    for (let n = 0; n < 10 && registers.read32(EDU_REGISTER.DMA_COMMAND) !== 0; n++)
      await new Promise((resolve) => setTimeout(resolve, 5));
    assert.equal(registers.read32(EDU_REGISTER.DMA_COMMAND) & EDU_COMMAND.RUN, 0);
  });
});

describe("a model of the program's own", () => {
  it('is a device as any other', async () => {
    await using eal = await Eal.start();
    eal.vdev.define('my-counter', counter);
    const device = await eal.probe('my-counter0');
    assert.equal(device.name, 'vdev:my-counter0');
    assert.deepEqual(device.ids, {
      vendor: 0x1af4,
      device: 0x10f0,
      subsystemVendor: 1,
      subsystem: 2,
      classCode: 0x123456,
    });
    const access = device.use(rawDriver);
    assert.deepEqual(
      access.regions.map(({ index }) => index),
      [2, PCI_REGION.CONFIG],
    );
    const registers = access.registers(2);
    assert.equal(access.registers(2), registers);
    const rung: number[] = [];
    const interrupts = access.enableInterrupts('msi', [() => rung.push(0), () => rung.push(1)]);
    registers.write32(4096, 5);
    assert.equal(registers.read32(4096), 5);
    registers.write32(0, 37);
    assert.equal(registers.read32(0), 42);
    await new Promise(setImmediate);
    assert.deepEqual(rung, [1]);
    interrupts.close();
    registers.write32(0, 1);
    await new Promise(setImmediate);
    assert.deepEqual(rung, [1]);
    access.reset();
    assert.equal(registers.read32(0), 0);
    assert.equal(access.readRegion(PCI_REGION.CONFIG, 0, 2)[0], 0xf4);
    assert.throws(() => access.registers(0), dmaError('EINVAL'));
    assert.throws(() => access.readRegion(2, 8190, 4), dmaError('EINVAL'));
    assert.throws(() => access.enableInterrupts('msi', [() => 0, () => 0, () => 0]), dmaError('EINVAL'));
    assert.throws(() => access.enableInterrupts('intx', [() => 0]), dmaError('EINVAL'));
    await eal.remove(device);
    assert.throws(() => registers.read32(0), dmaError('ENODEV'));
  });

  it('that can not be made is no device', async () => {
    await using eal = await Eal.start();
    eal.vdev.define('broken', () => {
      throw new TypeError('oops');
    });
    await assert.rejects(eal.probe('vdev:broken0'), dmaError('EIO', /oops on vdev:broken0/));
    for (const kind of ['', 'Upper', 'a_b', 'a0', 'a b'])
      assert.throws(() => eal.vdev.define(kind, counter), dmaError('EINVAL'), kind);
    for (const kind of ['broken', 'edu', 'copy'])
      assert.throws(() => eal.vdev.define(kind, counter), dmaError('EEXIST'));
  });
});
