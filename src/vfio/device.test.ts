import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { dmaError } from '../../test/shared/errors.js';
import fc from 'fast-check';
import { DmaError, isDmaError } from '../errors.js';
import { openPlatform } from '../platform/open.js';
import { failingPlatform, trackingPlatform } from '../../test/fakes/platform/platforms.js';
import type { FailingPlatform, TrackingPlatform } from '../../test/fakes/platform/platforms.js';
import { PCI_CAP_ID_PM, PCI_COMMAND } from '../platform/uapi/pci-regs.js';
import { VfioDevice } from './device.js';
import { FAKE_PM, FakeDeviceFile } from '../../test/fakes/vfio/device.js';
import type { FakeRegion } from '../../test/fakes/vfio/device.js';

const skip = openPlatform().limitation ?? false;
const PAGE = openPlatform().memory.pageSize;
const CONFIG = 7;
const GiB = 2 ** 30;

const REGIONS: Readonly<Record<number, FakeRegion>> = {
  0: { size: 4 * PAGE, mappable: true },
  1: { size: 256, mappable: true },
  2: { size: 64 },
  3: {
    size: 4 * PAGE,
    mappable: [
      { offset: 0, length: PAGE },
      { offset: 3 * PAGE, length: PAGE },
    ],
  },
  4: { size: 4096 * GiB, mappable: true },
  6: { size: PAGE, writable: false },
};

interface Bench {
  readonly kernel: FakeDeviceFile;
  readonly platform: TrackingPlatform;
  readonly device: VfioDevice;
  /** A new eventfd, closed at the end. */
  eventfd(): number;
}

/** Runs `body` with an open device; whatever it does, nothing is left and nothing would have killed the process. */
function withDevice(
  body: (bench: Bench) => void,
  {
    regions = REGIONS,
    prepare = () => {},
  }: { readonly regions?: typeof REGIONS; readonly prepare?: (kernel: FakeDeviceFile) => void } = {},
): void {
  const kernel = new FakeDeviceFile(openPlatform(), regions);
  const platform = trackingPlatform(kernel.platform);
  const events: number[] = [];
  try {
    prepare(kernel);
    const device = VfioDevice.fromFd(platform, platform.files.open(kernel.path, 'read-write'), '0000:00:07.0');
    const eventfd = (): number => {
      const fd = platform.events.create();
      events.push(fd);
      return fd;
    };
    try {
      body({ kernel, platform, device, eventfd });
    } finally {
      device.close();
      device.close();
    }
    for (const fd of events) platform.files.close(fd);
    assert.deepEqual(platform.leaks(), []);
    assert.ok(kernel.released);
    assert.equal(kernel.connected, 0);
    assert.deepEqual(kernel.crashes, []);
  } finally {
    kernel.dispose();
  }
}

const write = (device: VfioDevice, offset: number, ...bytes: number[]): void =>
  device.regionWrite(CONFIG, offset, Uint8Array.from(bytes));

describe('a device of VFIO', { skip }, () => {
  it('tells what the kernel told', () =>
    withDevice(({ device }) => {
      assert.deepEqual(device.info, { pci: true, resettable: true });
      assert.equal(device.name, '0000:00:07.0');
      assert.equal(device.regions.length, 9);
      assert.deepEqual(device.regions[0], {
        index: 0,
        size: 4 * PAGE,
        offset: 0,
        readable: true,
        writable: true,
        mappable: [{ offset: 0, length: 4 * PAGE }],
      });
      assert.deepEqual(device.regions[2].mappable, []);
      assert.equal(device.regions[2].offset, 2 * 2 ** 40);
      assert.deepEqual(device.regions[3].mappable, REGIONS[3].mappable);
      assert.deepEqual(
        device.regions.map(({ size }) => size),
        [4 * PAGE, 256, 64, 4 * PAGE, 4096 * GiB, 0, PAGE, 256, 0],
      );
      assert.equal(device.regions[6].writable, false);
      assert.deepEqual(device.interrupts[0], {
        index: 0,
        count: 1,
        eventfd: true,
        maskable: true,
        automasked: true,
        resizable: true,
      });
      assert.deepEqual(
        device.interrupts.map(({ count, resizable }) => [count, resizable]),
        [
          [1, true],
          [4, false],
          [8, false],
          [1, false],
          [1, false],
        ],
      );
    }));

  it('has registers that are mapped where they can be, and reached by calls elsewhere', () =>
    withDevice(({ device, kernel }) => {
      for (const index of [0, 1, 2, 3]) {
        const registers = device.registers(index);
        assert.equal(device.registers(index), registers);
        assert.equal(registers.size, REGIONS[index].size);
        for (let offset = 0; offset < registers.size; offset += registers.size / 8) {
          registers.write32(offset, 0xfedcba98 + offset);
          registers.write64(offset + 8 > registers.size ? 0 : offset, 2 ** 52 + offset);
          assert.equal(registers.read64(offset), 2 ** 52 + offset);
          assert.equal(registers.read32(offset), offset);
          registers.flush(offset);
          const seen = new Uint8Array(8);
          device.regionRead(index, offset, seen);
          assert.equal(new DataView(seen.buffer).getUint32(0, true), offset, 'both ways lead to the same bytes');
        }
        const last = registers.size - 4;
        registers.write32(last, -1);
        assert.equal(registers.read32(last), 0xffffffff);
        assert.throws(() => registers.read64(last - 4), dmaError('ERANGE'));
        assert.throws(() => registers.read32(registers.size), dmaError('EINVAL'));
        assert.throws(() => registers.read64(last), dmaError('EINVAL'));
        assert.throws(() => registers.write64(0, 2 ** 53), dmaError('EINVAL'));
        assert.throws(() => registers.read32(2), dmaError('EINVAL'));
      }
      const unit = 2 ** 40;
      assert.deepEqual(kernel.mapped, [
        `0+${4 * PAGE}`,
        `${unit}+${PAGE}`,
        `${3 * unit}+${PAGE}`,
        `${3 * unit + 3 * PAGE}+${PAGE}`,
      ]);
    }));

  it('reaches a region that no view is large enough for by calls', () =>
    withDevice(({ device, kernel }) => {
      assert.equal(device.registers(4).size, 4096 * GiB);
      assert.deepEqual(kernel.mapped, []);
    }));

  it('refuses what it does not have', () =>
    withDevice(({ device }) => {
      for (const index of [5, 8, 9, -1, 0.5]) {
        assert.throws(() => device.registers(index), dmaError('EINVAL', /no region.* on 0000:00:07\.0/));
        assert.throws(() => device.regionRead(index, 0, new Uint8Array(1)), dmaError('EINVAL'));
      }
      assert.throws(() => device.regionRead(0, 4 * PAGE - 3, new Uint8Array(4)), dmaError('EINVAL', /region 0/));
      assert.throws(() => device.regionRead(0, -1, new Uint8Array(1)), dmaError('EINVAL'));
      assert.throws(() => device.regionWrite(6, 0, new Uint8Array(1)), dmaError('EINVAL', /can not be written/));
      device.regionRead(6, 0, new Uint8Array(8));
    }));

  it('tells when not all bytes were transferred, and what the kernel said', () =>
    withDevice(({ device, kernel }) => {
      kernel.transferLimit = 3;
      assert.throws(() => device.registers(2).read32(0), dmaError('EIO', /3 of 4 bytes on 0000:00:07\.0/));
      assert.throws(() => device.registers(2).write32(0, 1), dmaError('EIO'));
      kernel.transferLimit = Infinity;
      write(device, PCI_COMMAND, 0);
      assert.throws(() => device.registers(2).read32(0), dmaError('EIO', /^vfio region read.* on 0000:00:07\.0/));
    }));

  it('is reset, where it can be', () => {
    withDevice(({ device, kernel }) => {
      device.reset();
      assert.equal(kernel.resets, 1);
    });
    withDevice(({ device }) => assert.throws(() => device.reset(), dmaError('ENOTSUP')), {
      prepare: (kernel) => (kernel.resettable = false),
    });
  });

  it('closes its descriptor when it can not be opened', () => {
    const kernel = new FakeDeviceFile(openPlatform(), REGIONS);
    const tracking = trackingPlatform(kernel.platform);
    const platform = failingPlatform(tracking);
    try {
      for (let n = 1; ; n++) {
        const fd = platform.files.open(kernel.path, 'read-write');
        platform.failCall(n, 'ENODEV');
        try {
          VfioDevice.fromFd(platform, fd, 'x').close();
          break;
        } catch (error) {
          assert.ok(dmaError('ENODEV', / on x/)(error));
          assert.deepEqual(tracking.leaks(), [], String(platform.failed()));
          assert.ok(kernel.released);
        }
      }
    } finally {
      kernel.dispose();
    }
  });
});

describe('registers of a device that goes away', { skip }, () => {
  it('throw why it is gone, at once, and leave no mapping', () =>
    withDevice(({ device, kernel, eventfd }) => {
      const all = [0, 1, 2, 3].map((index) => device.registers(index));
      assert.equal(kernel.mapped.length, 4);
      const gone = new DmaError({ code: 'ENODEV', operation: 'req', reason: 'the kernel wants it back' });
      device.fail(gone);
      device.fail(new DmaError({ code: 'EIO', operation: 'x', reason: 'too late' }));
      assert.deepEqual(kernel.mapped, []);
      assert.equal(device.failure?.cause, gone);
      const why = dmaError('ENODEV', /wants it back on 0000:00:07\.0/);
      for (const registers of all) {
        assert.throws(() => registers.read32(0), why);
        assert.throws(() => registers.write32(0, 1), why);
        assert.throws(() => registers.read64(0), why);
        assert.throws(() => registers.write64(0, 1), why);
        assert.throws(() => registers.flush(0), why);
      }
      assert.throws(() => device.registers(0), why);
      assert.throws(() => device.regionRead(0, 0, new Uint8Array(1)), why);
      assert.throws(() => device.regionWrite(0, 0, new Uint8Array(1)), why);
      assert.throws(() => device.setInterrupts({ index: 0, action: 'trigger', eventfds: [eventfd()] }), why);
      assert.throws(() => device.reset(), why);
      assert.ok(!kernel.released, 'the descriptor is closed by close()');
      device.close();
      assert.ok(kernel.released);
      assert.equal(device.failure?.cause, gone);
    }));

  it('say that it was closed', () =>
    withDevice(({ device, kernel }) => {
      const registers = device.registers(0);
      device.close();
      assert.deepEqual(kernel.mapped, []);
      assert.throws(() => registers.read32(0), dmaError('ENODEV', /closed/));
      assert.throws(() => device.registers(0), dmaError('ENODEV', /closed/));
    }));
});

describe('memory decoding of a mapped device', { skip }, () => {
  it('can not be switched off, nor can the device be put to sleep', () =>
    withDevice(({ device, kernel }) => {
      // Nothing is mapped yet.
      write(device, PCI_COMMAND, 0, 0);
      write(device, PCI_COMMAND, 2);
      write(device, FAKE_PM + 4, 3);
      write(device, FAKE_PM + 4, 0);
      device.registers(2);
      write(device, PCI_COMMAND, 0);
      device.registers(0).read32(0);
      assert.equal(kernel.config[PCI_COMMAND], 2, 'mapping switches it on');

      const refused = dmaError('EBUSY', /kill this process.*hint/);
      assert.throws(() => write(device, PCI_COMMAND, 0), refused);
      assert.throws(() => write(device, PCI_COMMAND, 4, 0), refused);
      assert.throws(() => write(device, PCI_COMMAND - 1, 0, 0), refused);
      assert.throws(() => write(device, PCI_COMMAND - 4, 0, 0, 0, 0, 0), refused);
      assert.throws(() => device.registers(CONFIG).write32(PCI_COMMAND, 4), refused);
      for (const state of [1, 2, 3]) assert.throws(() => write(device, FAKE_PM + 4, state), refused);
      assert.throws(() => write(device, FAKE_PM, 1, 0, 0, 0, 3), refused);

      device.registers(CONFIG).write32(PCI_COMMAND, 6);
      write(device, PCI_COMMAND + 1, 0);
      write(device, FAKE_PM + 4, 0, 1);
      write(device, FAKE_PM + 5, 3);
      write(device, PCI_COMMAND + 4, 0, 0);
      write(device, PCI_COMMAND - 2, 0, 0);
      assert.equal(device.registers(CONFIG).read32(PCI_COMMAND) & 0xff, 6);
    }));

  it('holds for every store', () => {
    const store = fc.record({
      at: fc.oneof(fc.integer({ min: 0, max: 12 }), fc.integer({ min: FAKE_PM - 2, max: FAKE_PM + 8 })),
      bytes: fc.array(fc.constantFrom(0, 1, 2, 3, 6, 0xff), { minLength: 1, maxLength: 12 }),
    });
    fc.assert(
      fc.property(fc.array(store, { maxLength: 20 }), (stores) =>
        withDevice(({ device }) => {
          device.registers(0);
          for (const { at, bytes } of stores) {
            try {
              write(device, at, ...bytes);
            } catch (error) {
              assert.ok(isDmaError(error, 'EBUSY'));
            }
          }
        }),
      ),
      { numRuns: 100 },
    );
  });

  it('is asked for before a region is mapped', () => {
    withDevice(({ device }) => {
      write(device, FAKE_PM + 4, 3);
      assert.throws(() => device.registers(0), dmaError('EIO', /power state D3.*write 0 .*0x54/));
      device.registers(2);
      write(device, FAKE_PM + 4, 0);
      device.registers(0).read32(0);
    });
    withDevice(({ device, kernel }) => {
      kernel.config.fill(0xff);
      assert.throws(() => device.registers(0), dmaError('ENODEV', /no longer responds/));
    });
  });

  it('finds the power state in any list of capabilities, even one without end', () => {
    // First in the list, and last.
    for (const [first, second] of [
      [FAKE_PM, 0x40],
      [0x40, FAKE_PM],
    ])
      withDevice(({ device, kernel }) => {
        kernel.config[0x34] = first;
        kernel.config[first + 1] = second;
        kernel.config[second + 1] = 0;
        device.registers(0);
        assert.throws(() => write(device, FAKE_PM + 4, 3), dmaError('EBUSY'));
      });
    withDevice(({ device, kernel }) => {
      kernel.config[FAKE_PM + 1] = 0x40;
      device.registers(0);
      assert.throws(() => write(device, FAKE_PM + 4, 3), dmaError('EBUSY'));
    });
    withDevice(({ device, kernel }) => {
      kernel.config[6] = 0;
      device.registers(0);
    });
    withDevice(({ device, kernel }) => {
      kernel.config[0x40] = PCI_CAP_ID_PM;
      kernel.config[0x41] = 0xff;
      device.registers(0);
      assert.throws(() => write(device, 0x44, 1), dmaError('EBUSY'));
    });
  });
});

describe('interrupts of a device of VFIO', { skip }, () => {
  const trigger = 'trigger' as const;

  it('are connected, signalled and switched off', () =>
    withDevice(({ device, kernel, platform, eventfd }) => {
      const fds = [eventfd(), eventfd(), eventfd()];
      device.setInterrupts({ index: 1, action: trigger, eventfds: fds });
      kernel.signal('msi', 2);
      assert.deepEqual(
        fds.map((fd) => platform.events.take(fd)),
        [0, 0, 1],
      );
      device.setInterrupts({ index: 1, action: trigger, start: 1, count: 2 });
      assert.deepEqual(
        fds.map((fd) => platform.events.take(fd)),
        [0, 1, 1],
      );
      device.setInterrupts({ index: 1, action: trigger, start: 1, eventfds: [fds[0]] });
      kernel.signal('msi', 1);
      assert.equal(platform.events.take(fds[0]), 1);
      device.setInterrupts({ index: 1, action: trigger });
      assert.equal(kernel.connected, 0);
      const before = kernel.ioctls.length;
      device.setInterrupts({ index: 1, action: trigger });
      device.setInterrupts({ index: 4, action: trigger });
      assert.equal(kernel.ioctls.length, before, 'what is off is not switched off');
    }));

  it('mask, and are masked by themselves', () =>
    withDevice(({ device, kernel, platform, eventfd }) => {
      const fd = eventfd();
      device.setInterrupts({ index: 0, action: trigger, eventfds: [fd] });
      kernel.signal('intx');
      assert.ok(kernel.intxMasked);
      assert.equal(platform.events.take(fd), 1);
      kernel.signal('intx');
      assert.equal(platform.events.take(fd), 0);
      device.setInterrupts({ index: 0, action: 'unmask' });
      assert.equal(platform.events.take(fd), 1);
      device.setInterrupts({ index: 0, action: 'unmask' });
      device.setInterrupts({ index: 0, action: 'mask' });
      assert.ok(kernel.intxMasked);
      assert.throws(() => device.setInterrupts({ index: 1, action: 'mask' }), dmaError('ENOTSUP'));
    }));

  it('of one kind at a time, beside those of the kernel', () =>
    withDevice(({ device, kernel, platform, eventfd }) => {
      const fd = eventfd();
      const request = eventfd();
      device.setInterrupts({ index: 4, action: trigger, eventfds: [request] });
      device.setInterrupts({ index: 2, action: trigger, eventfds: [fd] });
      assert.throws(
        () => device.setInterrupts({ index: 0, action: trigger, eventfds: [fd] }),
        dmaError('EBUSY', /INTx can not be used while MSI-X is/),
      );
      device.setInterrupts({ index: 3, action: trigger, eventfds: [fd] });
      kernel.signalIndex(4);
      assert.equal(platform.events.take(request), 1);
      device.setInterrupts({ index: 2, action: trigger });
      device.setInterrupts({ index: 0, action: trigger, eventfds: [fd] });
    }));

  it('grow where they can; elsewhere all are connected anew', () => {
    withDevice(({ device, kernel, platform, eventfd }) => {
      const [one, two, three] = [eventfd(), eventfd(), eventfd()];
      device.setInterrupts({ index: 1, action: trigger, eventfds: [one] });
      assert.throws(
        () => device.setInterrupts({ index: 1, action: trigger, start: 1, eventfds: [two] }),
        dmaError('EINVAL', /vector 1 can not be added to the 1 that are enabled.*hint.*from vector 0/),
      );
      device.setInterrupts({ index: 1, action: trigger, eventfds: [three, two] });
      kernel.signal('msi', 0);
      kernel.signal('msi', 1);
      assert.deepEqual(
        [one, two, three].map((fd) => platform.events.take(fd)),
        [0, 1, 1],
      );
      device.setInterrupts({ index: 1, action: trigger, eventfds: [one] });
      device.setInterrupts({ index: 1, action: trigger, start: 1, eventfds: [one] });
    });
    withDevice(
      ({ device, kernel, platform, eventfd }) => {
        const [one, two] = [eventfd(), eventfd()];
        device.setInterrupts({ index: 2, action: trigger, eventfds: [one] });
        device.setInterrupts({ index: 2, action: trigger, start: 5, eventfds: [two] });
        kernel.signal('msix', 0);
        kernel.signal('msix', 5);
        assert.deepEqual(
          [one, two].map((fd) => platform.events.take(fd)),
          [1, 1],
        );
      },
      { prepare: (kernel) => (kernel.dynamicMsix = true) },
    );
  });

  it('may be fewer than the device could use', () =>
    withDevice(({ device, kernel, eventfd }) => {
      kernel.availableVectors = 2;
      const fds = [eventfd(), eventfd(), eventfd()];
      assert.throws(
        () => device.setInterrupts({ index: 2, action: trigger, eventfds: fds }),
        dmaError('ENOSPC', /only 2 of the 3 requested vectors/),
      );
      device.setInterrupts({ index: 0, action: trigger, eventfds: fds.slice(0, 1) });
      device.setInterrupts({ index: 0, action: trigger });
      device.setInterrupts({ index: 2, action: trigger, eventfds: fds.slice(0, 2) });
    }));

  it('are refused when they make no sense', () =>
    withDevice(({ device, kernel, eventfd }) => {
      const fd = eventfd();
      const before = kernel.ioctls.length;
      for (const request of [
        { index: 5, action: trigger },
        { index: -1, action: trigger },
        { index: 1, action: trigger, eventfds: [fd, fd, fd, fd, fd] },
        { index: 1, action: trigger, start: 4, eventfds: [fd] },
        { index: 1, action: trigger, start: -1, eventfds: [fd] },
        { index: 1, action: trigger, eventfds: [fd], count: 2 },
        { index: 1, action: trigger, count: 0.5 },
      ])
        assert.throws(() => device.setInterrupts(request), dmaError('EINVAL'), JSON.stringify(request));
      assert.equal(kernel.ioctls.length, before);
    }));
});

/** All that is done with a device. */
function story(kernel: FakeDeviceFile, platform: FailingPlatform): void {
  const undo: (() => void)[] = [];
  try {
    const eventfd = platform.events.create();
    undo.push(() => platform.files.close(eventfd));
    const device = VfioDevice.fromFd(platform, platform.files.open(kernel.path, 'read-write'), 'story');
    undo.push(() => device.close());
    for (const index of [0, 1, 2, 3]) device.registers(index).write32(4, device.registers(index).read32(8));
    for (let i = 0; i < 2; i++)
      device.setInterrupts({ index: 1, action: 'trigger', eventfds: Array(i + 1).fill(eventfd) });
    device.setInterrupts({ index: 4, action: 'trigger', eventfds: [eventfd] });
    device.setInterrupts({ index: 1, action: 'trigger' });
    device.setInterrupts({ index: 0, action: 'trigger', eventfds: [eventfd] });
    device.setInterrupts({ index: 0, action: 'unmask' });
    device.reset();
    device.registers(CONFIG).write32(PCI_COMMAND, 6);
  } finally {
    for (const step of undo.reverse()) step();
  }
}

it('whichever call fails, it is told, and nothing is left', { skip }, () => {
  let told = 0;
  for (let n = 1; ; n++) {
    const kernel = new FakeDeviceFile(openPlatform(), REGIONS);
    const tracking = trackingPlatform(kernel.platform);
    const platform = failingPlatform(tracking);
    platform.failCall(n, 'ENOMEM');
    try {
      story(kernel, platform);
      assert.equal(platform.failed(), undefined, `${String(platform.failed())} failed and nobody heard`);
    } catch (error) {
      assert.ok(dmaError('ENOMEM')(error));
      told++;
    }
    assert.deepEqual(tracking.leaks(), [], `call ${n}, ${String(platform.failed())}`);
    assert.ok(kernel.released);
    assert.equal(kernel.connected, 0);
    assert.deepEqual(kernel.crashes, []);
    kernel.dispose();
    if (platform.failed() === undefined) break;
  }
  assert.ok(told > 50, `${told}`);
});

it('a call that undoes may fail as well: all others are made all the same', { skip }, () => {
  for (const name of ['memory.detach', 'memory.unmap', 'files.close']) {
    const kernel = new FakeDeviceFile(openPlatform(), REGIONS);
    const platform = failingPlatform(kernel.platform);
    const device = VfioDevice.fromFd(platform, platform.files.open(kernel.path, 'read-write'), 'x');
    device.registers(0);
    device.registers(1);
    platform.failCall(1, 'EIO', name);
    assert.throws(() => device.close(), dmaError('EIO'));
    assert.equal(platform.failed(), name);
    device.close();
    assert.equal(kernel.mapped.length, name === 'files.close' ? 0 : 1);
    assert.throws(() => device.registers(0), dmaError('ENODEV'));
    if (name === 'files.close') platform.files.close(device.fd);
    kernel.dispose();
  }
});
