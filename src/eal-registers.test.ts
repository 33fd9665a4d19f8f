/** Registers of every width, on devices in this process and behind a socket; and models of the user's that throw. */
import assert from 'node:assert/strict';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, it } from 'node:test';
import { dmaError } from '../test/shared/errors.js';
import { rawDriver } from './drivers/raw-driver.js';
import { Eal } from './eal.js';
import { isDmaError, type DmaError } from './errors.js';
import { openPlatform } from './platform/open.js';
import { MappedRegisters, type Registers } from './platform/registers/registers.js';
import type { ModelFactory } from './vfio-user/devices/model.js';

const skip = openPlatform().limitation ?? false;

/** A device whose region 0 is bytes that are kept, and that notes how wide each access was. */
function bytesModel(widths: number[]): ModelFactory {
  const bytes = new Uint8Array(64);
  return () => ({
    name: 'bytes',
    identity: { vendor: 0x1af4, device: 0x10f1, subsystemVendor: 1, subsystem: 2, revision: 3, classCode: 0x123456 },
    regions: [{ index: 0, size: 64 }],
    interrupts: { intx: 0, msi: 0, msix: 0 },
    read: (_region, offset, into) => {
      widths.push(into.length);
      into.set(bytes.subarray(offset, offset + into.length));
    },
    write: (_region, offset, from) => {
      if (from[0] === 0xee) throw new TypeError('a mistake in the model');
      widths.push(from.length);
      bytes.set(from, offset);
    },
    reset: () => void bytes.fill(0),
    quiesce: () => undefined,
    resume: () => undefined,
  });
}

/** What holds for all registers, and the widths that it takes. */
function exercise(registers: Registers): readonly number[] {
  registers.write8(3, 0x1ff);
  registers.write16(4, 0x1abcd);
  registers.write32(8, -1);
  registers.writeBig64(16, 2n ** 64n - 2n);
  assert.equal(registers.readBig64(16), 2n ** 64n - 2n);
  assert.throws(
    () => registers.read64(16),
    (error) => isDmaError(error, 'ERANGE') && /readBig64\(0x10\)/.test(error.hint ?? ''),
  );
  assert.equal(registers.read8(3), 0xff);
  assert.equal(registers.read8(5), 0xab);
  assert.equal(registers.read16(4), 0xabcd);
  assert.equal(registers.read16(2), 0xff00);
  assert.equal(registers.read32(8), 0xffff_ffff);
  const wrong = [NaN, 1.5, Infinity, 1e30, 2 ** 53];
  for (const value of [...wrong, '1', 1n, null, undefined, Symbol('s')]) {
    assert.throws(() => registers.write8(0, value as number), dmaError('EINVAL'));
    assert.throws(() => registers.write16(0, value as number), dmaError('EINVAL'));
    assert.throws(() => registers.write32(0, value as number), dmaError('EINVAL'));
    assert.throws(() => registers.write64(0, value as number), dmaError('EINVAL'));
  }
  assert.throws(() => registers.write64(0, -1), dmaError('EINVAL'));
  assert.throws(() => registers.writeBig64(0, 2n ** 64n), dmaError('EINVAL'));
  assert.equal(registers.read16(0), 0, 'nothing was stored');
  assert.throws(() => registers.read16(1), dmaError('EINVAL'));
  assert.throws(() => registers.write16(63, 0), dmaError('EINVAL'));
  assert.throws(() => registers.read8(64), dmaError('EINVAL'));
  return [1, 2, 4, 8, 8, 8, 1, 1, 2, 2, 4, 2];
}

describe('registers of 8, 16, 32 and 64 bits', { skip }, () => {
  it('in mapped memory', () => {
    exercise(new MappedRegisters(new ArrayBuffer(64)));
  });

  it('of a software device, each by one access of its width; what a model throws is EIO with the cause', async () => {
    await using eal = await Eal.start();
    const widths: number[] = [];
    eal.vdev.define('bytes', bytesModel(widths));
    const registers = (await eal.probe('vdev:bytes0')).use(rawDriver).registers(0);
    assert.deepEqual(exercise(registers), widths);

    const mistake = (error: unknown): boolean => isDmaError(error, 'EIO') && error.cause instanceof TypeError;
    assert.throws(() => registers.write8(0, 0xee), mistake);
  });

  it('of a served device, by messages; what its model throws is told to who serves it', async () => {
    const directory = mkdtempSync(join(tmpdir(), 'anydma-test-'));
    const socketPath = join(directory, 'bytes.sock');
    const script = `
      const { serve } = await import(${JSON.stringify(new URL('./vfio-user/server.js', import.meta.url).href)});
      const { openPlatform } = await import(${JSON.stringify(new URL('./platform/open.js', import.meta.url).href)});
      const bytesModel = ${bytesModel.toString()};
      const widths = [];
      const onEvent = (event) => { if (event.kind === 'failed') process.send({ message: event.error.message, code: event.error.code }); };
      const server = serve(openPlatform(), { socketPath: ${JSON.stringify(socketPath)}, model: bytesModel(widths), onEvent });
      process.on('disconnect', () => void server.close().then(() => process.exit(0)));
      process.send('ready');`;
    const { spawn } = await import('node:child_process');
    const child = spawn(process.execPath, ['--input-type=module', '-e', script], {
      stdio: ['ignore', 'inherit', 'inherit', 'ipc'],
    });
    const next = (): Promise<unknown> => new Promise((resolve) => child.once('message', resolve));
    try {
      assert.equal(await next(), 'ready');
      await using eal = await Eal.start();
      const device = await eal.probe(`vfio-user:${socketPath}`);
      const registers = device.use(rawDriver).registers(0);
      exercise(registers);
      const isTold = async (store: () => void): Promise<void> => {
        const told = next();
        store();
        const { code, message } = (await told) as DmaError;
        assert.equal(code, 'EIO');
        assert.match(message, /the device's model threw: a mistake in the model/);
      };
      // A store to a register is posted, also while the device may ask for memory; a write to the region waits.
      const posted = (): void => registers.write8(0, 0xee);
      await isTold(posted);
      device.dmaMap(eal.external.allocate(4096, { source: 'anonymous' }));
      await isTold(posted);
      const waits = (): void => device.access.writeRegion(0, 0, Uint8Array.of(0xee));
      await isTold(() => assert.throws(waits, dmaError('EIO')));
    } finally {
      child.disconnect();
      await new Promise((resolve) => child.once('exit', resolve));
      rmSync(directory, { recursive: true });
    }
  });
});
