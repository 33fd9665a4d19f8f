import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { dmaError } from '../../test/shared/errors.js';
import { copyEngineModel } from '../vfio-user/devices/copy-engine.js';
import { EDU_COMMAND, EDU_INTERRUPT, EDU_REGISTER } from '../vfio-user/devices/edu-layout.js';
import type { EduModelOptions } from '../vfio-user/devices/edu.js';
import { eduModel } from '../vfio-user/devices/edu.js';
import type { Reach } from '../../test/fakes/vfio-user/model-host.js';
import { pattern, FakeModelHost, FakeDma, turn } from '../../test/fakes/vfio-user/model-host.js';
import type { EduOptions } from './edu.js';
import { Edu } from './edu.js';
import { FakeAccess } from '../../test/fakes/drivers/device-access.js';

function open(
  options?: EduOptions,
  modelOptions?: EduModelOptions,
  reach?: Reach,
): { host: FakeModelHost; access: FakeAccess; edu: Edu } {
  const host = new FakeModelHost(eduModel(modelOptions), new FakeDma(reach));
  const access = new FakeAccess(host);
  return { host, access, edu: Edu.open(access, options) };
}

describe('edu driver', () => {
  it('is for edu devices', () => {
    assert.deepEqual(Edu.matches, { vendor: 0x1234, device: 0x11e8 });
    assert.throws(() => Edu.open(new FakeAccess(new FakeModelHost(copyEngineModel()))), dmaError('ENODEV'));
    const { edu } = open();
    assert.equal(edu.identification, 0x010000ed);
    assert.equal(edu.liveness(0x12345678), 0xedcba987);
  });

  it('computes factorials, one after the other', async () => {
    const { edu } = open();
    assert.deepEqual(await Promise.all([edu.factorial(5), edu.factorial(0), edu.factorial(12)]), [120, 1, 479001600]);
    for (const n of [-1, 1.5, 2 ** 32, NaN]) await assert.rejects(edu.factorial(n), dmaError('EINVAL'));
    assert.equal(await edu.factorial(20), 2192834560);
  });

  for (const reach of ['direct', 'messages'] as const) {
    it(`copies in and out, at most 2 KiB at a time (${reach})`, async () => {
      const { host, edu } = open({}, {}, reach);
      const source = host.dma.map(0x10000, pattern(4096));
      const target = host.dma.map(0x20000, new Uint8Array(4096));
      await edu.copyIn(0x10000, 0, 4095);
      assert.equal(host.dma.calls, 2);
      await edu.copyOut(0x20010, 16, 4079);
      assert.equal(host.dma.calls, 4);
      assert.deepEqual(target.subarray(0x10), Uint8Array.from([...source.subarray(16, 4095), 0]));
    });
  }

  it('runs operations in turn', async () => {
    const { host, edu } = open({}, { dmaDelayMs: 1 });
    const a = host.dma.map(0x1000, pattern(256, 1));
    const b = host.dma.map(0x2000, pattern(256, 2));
    // Swap through the one buffer.
    await Promise.all([
      edu.copyIn(0x1000, 0, 256),
      edu.copyIn(0x2000, 256, 256),
      edu.copyOut(0x1000, 256, 256),
      edu.factorial(3),
      edu.copyOut(0x2000, 0, 256),
    ]);
    assert.deepEqual(a, pattern(256, 2));
    assert.deepEqual(b, pattern(256, 1));
  });

  it('refuses what the device would do wrong, and stays usable', async () => {
    const { host, edu } = open();
    host.dma.map(0, new Uint8Array(8192));
    await assert.rejects(edu.copyIn(0, 0, 4096), dmaError('EINVAL')); // reaches the last byte
    await assert.rejects(edu.copyIn(0, 4000, 96), dmaError('EINVAL'));
    await assert.rejects(edu.copyIn(0, -1, 16), dmaError('EINVAL'));
    await assert.rejects(edu.copyIn(0, 0, 0), dmaError('EINVAL'));
    await assert.rejects(edu.copyOut(NaN, 0, 16), dmaError('EINVAL'));
    await assert.rejects(edu.copyOut(2 ** 28 - 8, 0, 16), dmaError('ERANGE'));
    assert.equal(host.dma.calls, 0);
    await edu.copyIn(0, 4000, 95);
    assert.equal(host.dma.calls, 1);
  });

  it('stores 64 bits only where they are needed', async () => {
    const { host, access, edu } = open({ dmaMaskBits: 40 }, { dmaMaskBits: 40 });
    const low = host.dma.map(0xfffff000, pattern(64));
    await edu.copyIn(0xfffff000, 0, 64);
    assert.deepEqual(access.wideStores, []);
    const high = host.dma.map(0x1_2345_0000, new Uint8Array(64));
    await edu.copyOut(0x1_2345_0000, 0, 64);
    assert.deepEqual(access.wideStores, [EDU_REGISTER.DMA_DESTINATION]);
    assert.deepEqual(high, low);
  });

  it('waits for a transfer that somebody else left running', async () => {
    const { host, access } = open({}, { dmaDelayMs: 15 });
    const left = host.dma.map(0x1000, pattern(64));
    const registers = access.registers(0);
    registers.write32(EDU_REGISTER.DMA_SOURCE, 0x1000);
    registers.write32(EDU_REGISTER.DMA_DESTINATION, 0x40000);
    registers.write32(EDU_REGISTER.DMA_COUNT, 64);
    registers.write32(EDU_REGISTER.DMA_COMMAND, EDU_COMMAND.RUN);
    const target = host.dma.map(0x2000, new Uint8Array(64));
    await Edu.open(access).copyOut(0x2000, 0, 64);
    assert.deepEqual(target, left);
  });

  it('gives up after its time', async () => {
    const { host, edu } = open({ timeoutMs: 5 });
    host.dma.map(0, new Uint8Array(64));
    void host.model.quiesce();
    await assert.rejects(edu.copyIn(0, 0, 64), dmaError('ETIMEDOUT'));
    await assert.rejects(edu.copyIn(0, 0, 64), dmaError('ETIMEDOUT'));
    host.model.resume();
    await turn(2);
    await edu.copyIn(0, 0, 64);
  });

  it('works with interrupts, and hands their reasons on', async () => {
    const { host, access, edu } = open();
    host.dma.map(0, new Uint8Array(64));
    const reasons: number[] = [];
    const interrupts = edu.enableInterrupt((reason) => reasons.push(reason));
    assert.equal(access.enabled, 'msi');
    edu.raiseInterrupt(0x42);
    await turn(2);
    await edu.factorial(4);
    await turn(2);
    await edu.copyIn(0, 0, 64);
    await turn(2);
    assert.deepEqual(reasons, [0x42, EDU_INTERRUPT.FACTORIAL, EDU_INTERRUPT.DMA]);
    assert.equal(host.read32(EDU_REGISTER.INTERRUPT_STATUS), 0);
    interrupts.close();
    interrupts.close();
    assert.equal(access.enabled, undefined);
    await edu.copyIn(0, 0, 64);
    assert.equal(host.read32(EDU_REGISTER.INTERRUPT_STATUS), 0);
  });

  it('ends what runs when it is closed', async () => {
    const { host, access, edu } = open({}, { dmaDelayMs: 60_000 });
    host.dma.map(0, new Uint8Array(64));
    edu.enableInterrupt(() => {});
    const running = edu.copyIn(0, 0, 64);
    const waiting = edu.factorial(4);
    await turn(60);
    edu.close();
    edu[Symbol.dispose]();
    await assert.rejects(running, dmaError('ECANCELED'));
    await assert.rejects(waiting, dmaError('ECANCELED'));
    assert.throws(() => edu.liveness(1), dmaError('ECANCELED'));
    assert.equal(access.enabled, undefined);
    host.model.reset();
  });

  it('passes on that the device is gone', async () => {
    const { host, access, edu } = open();
    host.dma.map(0, new Uint8Array(64));
    const running = edu.copyIn(0, 0, 64);
    access.gone = true;
    await assert.rejects(running, dmaError('ENODEV'));
  });
});
