import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { dmaError } from '../../test/shared/errors.js';
import { DmaError } from '../errors.js';
import { openPlatform } from '../platform/open.js';
import { failingPlatform, trackingPlatform } from '../../test/fakes/platform/platforms.js';
import { VfioDevice } from '../vfio/device.js';
import { FakeDeviceFile } from '../../test/fakes/vfio/device.js';
import { VfioAccess } from './vfio-access.js';

const skip = openPlatform().limitation ?? false;
const PAGE = openPlatform().memory.pageSize;
const CONFIG = 7;

/** Waits until `condition` holds. */
async function soon(condition: () => boolean): Promise<void> {
  for (const deadline = performance.now() + 10_000; !condition();) {
    assert.ok(performance.now() < deadline, 'it does not happen');
    await new Promise((resolve) => setTimeout(resolve, 1));
  }
}

interface Bench {
  readonly kernel: FakeDeviceFile;
  readonly platform: ReturnType<typeof failingPlatform>;
  readonly device: VfioDevice;
  readonly access: VfioAccess;
}

/** Runs `body` with a device of the kernel's; nothing is left of it afterwards. */
async function withAccess(body: (bench: Bench) => Promise<void> | void): Promise<void> {
  const kernel = new FakeDeviceFile(openPlatform(), { 0: { size: PAGE, mappable: true }, 2: { size: 64 } });
  const tracking = trackingPlatform(kernel.platform);
  const platform = failingPlatform(tracking);
  const device = VfioDevice.fromFd(platform, platform.files.open(kernel.path, 'read-write'), 'a');
  const access = new VfioAccess(platform, device);
  try {
    await body({ kernel, platform, device, access });
  } finally {
    access.close();
    device.close();
    kernel.dispose();
  }
  assert.deepEqual(tracking.leaks(), []);
  assert.ok(kernel.released);
  assert.deepEqual(kernel.crashes, []);
}

describe('access to a device of VFIO', { skip }, () => {
  it('has its regions, registers and interrupts', () =>
    withAccess(({ access, kernel }) => {
      assert.deepEqual(
        access.regions.map(({ index, size }) => [index, size]),
        [
          [0, PAGE],
          [2, 64],
          [CONFIG, 256],
        ],
      );
      access.registers(0).write32(8, 7);
      assert.deepEqual([...access.readRegion(0, 8, 4)], [7, 0, 0, 0]);
      access.writeRegion(2, 4, Uint8Array.of(1, 2, 3, 4));
      assert.equal(access.registers(2).read32(4), 0x04030201);
      assert.throws(() => access.registers(5), dmaError('EINVAL'));
      assert.deepEqual(
        (['intx', 'msi', 'msix'] as const).map((kind) => access.interruptCount(kind)),
        [1, 4, 8],
      );
      access.reset();
      assert.equal(kernel.resets, 1);
    }));

  it('lets INTx go on after its handler ran, and not before', () =>
    withAccess(async ({ access, kernel }) => {
      let handled = 0;
      const interrupts = access.enableInterrupts('intx', [
        () => {
          handled++;
          assert.ok(kernel.intxMasked, 'the handler still has to see to the device');
        },
      ]);
      for (let expected = 1; expected <= 3; expected++) {
        kernel.signal('intx');
        assert.ok(kernel.intxMasked);
        await soon(() => !kernel.intxMasked);
        assert.equal(handled, expected);
      }
      interrupts.close();
      interrupts.close();
      assert.equal(kernel.connected, 0);
    }));

  it('does not unmask what its handler disabled, or a device that is gone', () =>
    withAccess(async ({ access, device, kernel }) => {
      const requests = (): number => kernel.ioctls.filter((name) => name === 'VFIO_DEVICE_SET_IRQS').length;
      const interrupts = access.enableInterrupts('intx', [() => interrupts.close()]);
      kernel.signal('intx');
      await soon(() => kernel.connected === 0);
      assert.equal(requests(), 2, 'on and off');

      access.enableInterrupts('intx', [
        () => device.fail(new DmaError({ code: 'ENODEV', operation: 'x', reason: 'gone' })),
      ]);
      kernel.signal('intx');
      await soon(() => device.failure !== undefined);
      assert.equal(requests(), 3);
    }));

  it('does not mask other kinds', () =>
    withAccess(async ({ access, kernel }) => {
      const rung: number[] = [];
      access.enableInterrupts('msix', [() => rung.push(0), () => rung.push(1), () => rung.push(2)]);
      const before = kernel.ioctls.length;
      kernel.signal('msix', 2);
      kernel.signal('msix', 0);
      await soon(() => rung.length === 2);
      assert.deepEqual(rung.sort(), [0, 2]);
      assert.equal(kernel.ioctls.length, before);
    }));

  it('lends a vector: its handler is called again when the loan has ended, also for what came meanwhile', () =>
    withAccess(async ({ access, kernel, platform }) => {
      const rung: number[] = [];
      const interrupts = access.enableInterrupts('msix', [() => rung.push(0), () => rung.push(1)]);
      const loan = interrupts.lend?.(1);
      assert.ok(loan);
      kernel.signal('msix', 1);
      kernel.signal('msix', 0);
      await soon(() => rung.length === 1);
      assert.deepEqual(rung, [0]);
      assert.equal(platform.events.take(loan.fd), 1);
      loan[Symbol.dispose]();
      assert.deepEqual(rung, [0, 1]);
      kernel.signal('msix', 1);
      await soon(() => rung.length === 3);
      // A loan that ends after the interrupts gives its descriptor back all the same.
      const late = interrupts.lend?.(1);
      interrupts.close();
      late?.[Symbol.dispose]();
      assert.equal(rung.length, 3);
    }));

  it('enabling another kind, or more vectors, replaces what was enabled', () =>
    withAccess(async ({ access, kernel }) => {
      const rung: string[] = [];
      const first = access.enableInterrupts('msi', [() => rung.push('msi')]);
      access.enableInterrupts('msi', [() => rung.push('msi 0'), () => rung.push('msi 1')]);
      kernel.signal('msi', 1);
      await soon(() => rung.length === 1);
      access.enableInterrupts('intx', [() => rung.push('intx')]);
      first.close();
      kernel.signal('msi', 0);
      kernel.signal('intx');
      await soon(() => rung.length === 2);
      assert.deepEqual(rung, ['msi 1', 'intx']);
      assert.throws(() => access.enableInterrupts('intx', [() => 0, () => 0]), dmaError('EINVAL'));
      assert.throws(() => access.enableInterrupts('intx', []), dmaError('EINVAL'));
    }));

  it('releases everything of a device that is gone', () =>
    withAccess(({ access, device, kernel }) => {
      access.enableInterrupts('msi', [() => 0]);
      const registers = access.registers(0);
      device.fail(new DmaError({ code: 'ENODEV', operation: 'x', reason: 'the kernel wants it back' }));
      assert.throws(() => registers.read32(0), dmaError('ENODEV', /wants it back/));
      const before = kernel.ioctls.length;
      access.close();
      assert.equal(kernel.ioctls.length, before);
    }));

  it('leaves nothing open if interrupts can not be enabled', async () => {
    let failures = 0;
    for (let n = 1, failed = true; failed; n++) {
      await withAccess(({ access, platform, kernel }) => {
        platform.failCall(n, 'EMFILE');
        try {
          access.enableInterrupts('msi', [() => 0, () => 0]);
        } catch (error) {
          assert.ok(dmaError('EMFILE')(error));
          assert.equal(kernel.connected, 0);
          failures++;
        }
        failed = platform.failed() !== undefined;
        platform.failCall(Infinity, 'EMFILE');
        access.enableInterrupts('msi', [() => 0]).close();
      });
    }
    assert.equal(failures, 5);
  });
});
