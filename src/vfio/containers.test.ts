/** Containers over the kernel model: every kind, what they share, and what they say when the kernel refuses. */
import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { DmaError, isDmaError, type ErrorCode } from '../errors.js';
import { openPlatform } from '../platform/open.js';
import type { Platform } from '../platform/ports.js';
import { failingPlatform, trackingPlatform } from '../../test/fakes/platform/platforms.js';
import { KiB, type Iova, type Va } from '../units.js';
import { Containers, type ContainerChoice, type KernelSpace } from './containers.js';
import { IommufdSpace } from './iommufd.js';
import { SpaprSpace } from './spapr.js';
import { fakeVfioKernel, type KernelOptions, type VfioKernel } from '../../test/fakes/vfio/kernel.js';
import { Type1Space } from './type1.js';

const real = openPlatform();
const skip = real.limitation ?? false;
const PAGE = real.memory.pageSize;
const A = '0000:00:02.0';
const B = '0000:00:03.0';
const C = '0000:00:04.0';

/** What `action` throws, which must have this code. */
function thrown(code: ErrorCode, action: () => unknown): DmaError {
  let error: unknown;
  try {
    action();
  } catch (caught) {
    error = caught;
  }
  assert.ok(isDmaError(error, code), `${code} expected: ${String(error)}`);
  return error;
}

/** Runs a test on a kernel and asserts that nothing is left. */
function world(
  options: KernelOptions,
  test: (kernel: VfioKernel, containers: Containers) => void,
  choice?: ContainerChoice,
) {
  using kernel = fakeVfioKernel(options);
  const containers = new Containers(kernel.platform, { choice });
  test(kernel, containers);
  assert.deepEqual(containers.close(), []);
  assert.deepEqual(kernel.leaks(), []);
}

function withMemory(pages: number, use: (va: Va, bytes: Uint8Array) => void): void {
  const length = pages * PAGE;
  const va = real.memory.map({ length });
  const buffer = real.memory.view(va, length);
  try {
    use(va, new Uint8Array(buffer));
  } finally {
    real.memory.detach(buffer);
    real.memory.unmap(va, length);
  }
}

function canMap(space: KernelSpace): space is Type1Space | IommufdSpace | SpaprSpace {
  return space instanceof Type1Space || space instanceof IommufdSpace || space instanceof SpaprSpace;
}

describe('containers', { skip }, () => {
  for (const iommu of ['type1', 'iommufd'] as const)
    for (const width of [39, 48])
      it(`${iommu}, ${width} bits: devices reach what is mapped, and no more`, () => {
        world({ iommu, width, devices: [{ name: A }, { name: B }] }, (kernel, containers) => {
          assert.equal(containers.default.kind, undefined);
          const { space, device } = containers.open(containers.default, kernel.node(A));
          assert.equal(containers.default.kind, iommu === 'type1' ? 'vfio-type1' : 'iommufd');
          assert.equal(device.name, A);
          assert.ok(space instanceof Type1Space || space instanceof IommufdSpace);
          const windows = space instanceof Type1Space ? space.info.windows : space.windows;
          assert.deepEqual(windows.map(String), ['[0x0, 0xfee00000)', `[0xfef00000, 0x${(2 ** width).toString(16)})`]);
          withMemory(4, (va, bytes) => {
            bytes.fill(7);
            space.map({ va, iova: 0x10000 as Iova, length: 2 * PAGE, access: 'read-write' });
            space.map({ va: (va + 2 * PAGE) as Va, iova: 0x40000 as Iova, length: PAGE, access: 'read' });
            containers.open(containers.default, kernel.node(B));
            for (const name of [A, B]) {
              assert.deepEqual([...kernel.read(name, 0x10000 + PAGE - 2, 4)], [7, 7, 7, 7]);
              kernel.write(name, 0x10000, Uint8Array.of(1, 2, 3));
              assert.deepEqual([...bytes.subarray(0, 4)], [1, 2, 3, 7]);
              bytes.fill(7);
              thrown('EACCES', () => kernel.write(name, 0x40000, Uint8Array.of(1)));
              thrown('EFAULT', () => kernel.read(name, 0x10000 + 2 * PAGE - 1, 2));
            }
            assert.equal(kernel.pinned, 3 * PAGE);
            thrown('EEXIST', () => space.map({ va, iova: (0x10000 + PAGE) as Iova, length: PAGE, access: 'read' }));
            const outside = thrown('EINVAL', () =>
              space.map({ va, iova: 0xfee00000 as Iova, length: PAGE, access: 'read' }),
            );
            assert.match(outside.hint ?? '', /windows are \[0x0, 0xfee00000\)/);
            thrown('EINVAL', () => space.map({ va, iova: (2 ** width) as Iova, length: PAGE, access: 'read' }));
            thrown('EFAULT', () =>
              space.map({ va: 0x1000 as Va, iova: 0x80000 as Iova, length: PAGE, access: 'read' }),
            );
            thrown(iommu === 'type1' ? 'EINVAL' : 'ENOENT', () => space.unmap({ iova: 0x10000 as Iova, length: PAGE }));
            assert.equal(space.unmap({ iova: 0x10000 as Iova, length: 2 * PAGE }), 2 * PAGE);
            thrown('EFAULT', () => kernel.read(A, 0x10000, 1));
            assert.equal(space.unmapAll(), PAGE);
            assert.equal(space.unmapAll(), 0);
          });
        });
      });

  it('chooses: iommufd, when both are there and allowed', () => {
    const devices = [{ name: A }, { name: B, driver: 'vfio-pci' }];
    world({ iommu: 'both', devices }, (kernel, containers) => {
      assert.equal(containers.open(containers.default, kernel.node(A)).space.kind, 'iommufd');
    });
    world({ iommu: 'both', devices }, (kernel, containers) => {
      kernel.forbidden.add('/dev/iommu');
      assert.equal(containers.open(containers.default, kernel.node(A)).space.kind, 'vfio-type1');
    });
    world({ iommu: 'both', devices }, (kernel, containers) => {
      const own = containers.create({ kind: 'type1' });
      assert.deepEqual([own.name, own.choice], ['container-1', 'type1']);
      const opened = containers.open(own, kernel.node(A));
      assert.equal(own.kind, 'vfio-type1');
      assert.equal(containers.open(containers.default, kernel.node(B)).space.kind, 'iommufd');
      opened.release();
      assert.equal(own.kind, undefined);
      opened.release();
    });
    world({ iommu: 'spapr', devices }, (kernel, containers) => {
      assert.equal(containers.open(containers.default, kernel.node(A)).space.kind, 'vfio-spapr');
    });
  });

  it('one group is in one container', () => {
    for (const iommu of ['type1', 'iommufd'] as const)
      world({ iommu, devices: [{ name: A, group: 5 }, { name: B, group: 5 }, { name: C }] }, (kernel, containers) => {
        const own = containers.create({ name: 'mine' });
        const first = containers.open(own, kernel.node(A));
        const refused = thrown('EBUSY', () => containers.open(containers.default, kernel.node(B)));
        assert.match(refused.message, /group 5 is in container "mine", with 0000:00:02\.0/);
        assert.equal(refused.device, B);
        thrown('EEXIST', () => containers.open(own, kernel.node(A)));
        const second = containers.open(own, kernel.node(B));
        assert.equal(first.space, second.space);
        assert.deepEqual(own.devices, [A, B]);
        assert.match(thrown('EBUSY', () => own.close()).message, /has devices: 0000:00:02\.0, 0000:00:03\.0/);
        first.release();
        thrown('EBUSY', () => containers.open(containers.default, kernel.node(A)));
        second.release();
        containers.open(containers.default, kernel.node(A)).release();
        own.close();
        own.close();
        assert.equal(containers.find('mine'), undefined);
        thrown('EINVAL', () => containers.open(own, kernel.node(C)));
        assert.deepEqual([...containers], [containers.default]);
        thrown('EEXIST', () => containers.create({ name: 'default' }));
      });
  });

  it('says which neighbour keeps a group from being viable', () => {
    for (const iommu of ['type1', 'iommufd'] as const)
      world(
        {
          iommu,
          devices: [
            { name: A, group: 5 },
            { name: B, group: 5, driver: 'e1000e' },
            { name: C, group: 5, driver: '' },
          ],
        },
        (kernel, containers) => {
          const error = thrown('EBUSY', () => containers.open(containers.default, kernel.node(A)));
          assert.match(error.message, /group 5 is not viable because of 0000:00:03\.0 \(driver e1000e\)/);
          assert.match(error.hint ?? '', /bind these to vfio-pci/);
          kernel.platform.kernel.writeText('/sys/bus/pci/drivers/e1000e/unbind', B);
          containers.open(containers.default, kernel.node(A));
        },
      );
  });

  it('says what else is in the way of a device', () => {
    const devices = [{ name: A, group: 9 }];
    const cases: [KernelOptions['iommu'], (kernel: VfioKernel) => void, ErrorCode, RegExp][] = [
      ['type1', (kernel) => kernel.inUse.add(9), 'EBUSY', /group 9 is in use .*\/dev\/vfio\/9 open/],
      ['type1', (kernel) => kernel.forbidden.add('/dev/vfio/9'), 'EACCES', /no permission for \/dev\/vfio\/9 .*chown/],
      ['type1', (kernel) => kernel.forbidden.add('/dev/vfio/vfio'), 'EACCES', /no permission for \/dev\/vfio\/vfio/],
      ['type1', (kernel) => kernel.absent.add('/dev/vfio/vfio'), 'ENOENT', /modprobe vfio-pci/],
      ['type1', (kernel) => kernel.absent.add('/dev/vfio/9'), 'ENOENT', /to vfio-pci/],
      ['iommufd', (kernel) => kernel.forbidden.add('/dev/iommu'), 'EACCES', /no permission for \/dev\/iommu/],
      ['iommufd', (kernel) => kernel.forbidden.add('/dev/vfio/devices/vfio20'), 'EACCES', /devices\/vfio20/],
      ['iommufd', (kernel) => kernel.inUse.add(9), 'EBUSY', /in use.*\/dev\/vfio\/9/],
      ['iommufd', (kernel) => kernel.inUse.add(A), 'EBUSY', /another program has .* open/],
    ];
    for (const [iommu, spoil, code, text] of cases)
      world({ iommu, devices }, (kernel, containers) => {
        spoil(kernel);
        const error = thrown(code, () => containers.open(containers.default, kernel.node(A)));
        assert.match(error.message, text);
        assert.equal(error.device, A);
        assert.deepEqual([containers.default.kind, containers.default.devices], [undefined, []]);
        for (const set of [kernel.inUse, kernel.forbidden, kernel.absent]) set.clear();
        containers.open(containers.default, kernel.node(A));
      });
    for (const [iommu, module] of [
      ['type1', 'vfio_iommu_type1'],
      ['iommufd', 'iommufd'],
    ] as const)
      world({ iommu, devices, isolated: false }, (kernel, containers) => {
        const error = thrown('EPERM', () => containers.open(containers.default, kernel.node(A)));
        const parameter = `/sys/module/${module}/parameters/allow_unsafe_interrupts`;
        assert.ok(error.hint?.includes(`echo Y > ${parameter}`), error.message);
        assert.match(error.message, /interrupts are not isolated/);
        kernel.platform.kernel.writeText(parameter, 'Y\n');
        containers.open(containers.default, kernel.node(A));
      });
    for (const [iommu, firmware, showsLog] of [
      ['type1', 'EPERM', true],
      ['type1', 'EPERM', false],
      ['type1', 'EINVAL', true],
      ['type1', 'EINVAL', false],
      ['iommufd', 'EINVAL', true],
      ['iommufd', 'EINVAL', false],
    ] as const)
      world({ iommu, devices, firmware, showsLog }, (kernel, containers) => {
        // Old kernels and new ones have another number for it, and one cause has one code.
        const error = thrown('EPERM', () => containers.open(containers.default, kernel.node(A)));
        assert.match(error.message, /the firmware keeps 0xbdf6f000 to 0xbdf7efff mapped for it/);
        assert.match(error.hint ?? '', /reserved_regions/);
        assert.doesNotMatch(error.message, /interrupt|allow_unsafe|added to this container|in use/);
        assert.deepEqual(containers.default.devices, []);
      });
    // Both: the log says which it was.
    world({ iommu: 'type1', devices, firmware: 'EPERM', isolated: false }, (kernel, containers) => {
      const open = (): unknown => containers.open(containers.default, kernel.node(A));
      assert.match(thrown('EPERM', open).message, /interrupts are not isolated/);
      kernel.platform.kernel.writeText('/sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts', 'Y\n');
      assert.match(thrown('EPERM', open).message, /the firmware keeps/);
    });
    // Without the log: nothing is kept for it, which leaves one cause.
    world({ iommu: 'type1', devices, isolated: false, showsLog: false }, (kernel, containers) => {
      const error = thrown('EPERM', () => containers.open(containers.default, kernel.node(A)));
      assert.match(error.message, /interrupts are not isolated/);
    });
    world({ iommu: 'iommufd', devices }, (kernel, containers) => {
      const node = { ...kernel.node(A), device: undefined };
      const { message } = thrown('ENODEV', () => containers.open(containers.create({ kind: 'iommufd' }), node));
      assert.match(message, /no character device .*CONFIG_VFIO_DEVICE_CDEV/);
    });
    world({ iommu: 'type1', devices }, (kernel, containers) => {
      const node = { ...kernel.node(A), group: undefined };
      assert.match(thrown('ENODEV', () => containers.open(containers.default, node)).message, /no IOMMU group/);
      const { message } = thrown('ENOENT', () =>
        containers.open(containers.create({ kind: 'iommufd' }), kernel.node(A)),
      );
      assert.match(message, /\/dev\/iommu is not there .*CONFIG_IOMMUFD/);
      thrown('ENOTSUP', () => containers.open(containers.create({ kind: 'spapr' }), kernel.node(A)));
      thrown('ENOTSUP', () => containers.open(containers.create({ kind: 'noiommu' }), kernel.node(A)));
      thrown('EINVAL', () => containers.open(containers.create({ kind: 'other' as ContainerChoice }), kernel.node(A)));
    });
  });

  it('no-IOMMU: only by name, with a warning', async () => {
    const warnings: Error[] = [];
    const take = (warning: Error): void => void warnings.push(warning);
    const printing = process.listeners('warning');
    process.removeAllListeners('warning');
    process.on('warning', take);
    world({ iommu: 'noiommu', devices: [{ name: A }] }, (kernel, containers) => {
      assert.match(
        thrown('ENODEV', () => containers.open(containers.default, kernel.node(A))).message,
        /request a container of kind "noiommu"/,
      );
      const { space } = containers.open(containers.create({ kind: 'noiommu' }), kernel.node(A));
      assert.equal(space.kind, 'vfio-noiommu');
    });
    await new Promise((resolve) => setImmediate(resolve));
    process.off('warning', take);
    for (const listener of printing) process.on('warning', listener);
    assert.deepEqual(
      warnings.map((warning) => 'code' in warning && warning.code),
      ['ANYDMA_NOIOMMU'],
    );
  });

  it('windows and what is mapped hold for devices that come later', () => {
    for (const iommu of ['type1', 'iommufd'] as const)
      world(
        {
          iommu,
          devices: [{ name: A }, { name: B, reserved: [{ start: 0x100000, last: 0x1fffff }] }, { name: C, width: 39 }],
        },
        (kernel, containers) => {
          const { space } = containers.open(containers.default, kernel.node(A));
          assert.ok(space instanceof Type1Space || space instanceof IommufdSpace);
          const windows = () => (space instanceof Type1Space ? space.info.windows : space.windows);
          const before = windows();
          withMemory(1, (va) => {
            space.map({ va, iova: 0x100000 as Iova, length: PAGE, access: 'read' });
            const code = iommu === 'type1' ? 'EINVAL' : 'EADDRINUSE';
            thrown(code, () => containers.open(containers.default, kernel.node(B)));
            assert.equal(windows(), before);
            space.unmap({ iova: 0x100000 as Iova, length: PAGE });
            const second = containers.open(containers.default, kernel.node(B));
            assert.deepEqual(windows().map(String).slice(0, 2), ['[0x0, 0x100000)', '[0x200000, 0xfee00000)']);
            second.release();
            assert.deepEqual(windows().map(String), before.map(String));
            space.map({ va, iova: (2 ** 40) as Iova, length: PAGE, access: 'read' });
            thrown(code, () => containers.open(containers.default, kernel.node(C)));
            space.unmapAll();
            containers.open(containers.default, kernel.node(C));
            assert.equal(windows().at(-1)?.end, 2 ** 39);
          });
        },
      );
  });

  it('limits are explained, and all is usable after them', () => {
    withMemory(8, (va) => {
      const page = (i: number): Va => (va + i * PAGE) as Va;
      const at = (i: number): Iova => (0x100000 + i * PAGE) as Iova;
      world({ iommu: 'type1', devices: [{ name: A }], entryLimit: 3 }, (kernel, containers) => {
        const { space } = containers.open(containers.default, kernel.node(A));
        assert.ok(space instanceof Type1Space);
        assert.equal(space.info.entryLimit, 3);
        for (let i = 0; i < 3; i++) space.map({ va: page(i), iova: at(i), length: PAGE, access: 'read' });
        assert.equal(space.available(), 0);
        const error = thrown('ENOSPC', () => space.map({ va: page(3), iova: at(3), length: PAGE, access: 'read' }));
        assert.match(error.message, /3 of 3 are used.*dma_entry_limit/);
        assert.equal(space.unmap({ iova: at(0), length: 3 * PAGE }), 3 * PAGE);
        space.map({ va: page(3), iova: at(3), length: PAGE, access: 'read' });
      });
      for (const iommu of ['type1', 'iommufd', 'spapr'] as const)
        world({ iommu, devices: [{ name: A }], lockedLimit: 2 * PAGE }, (kernel, containers) => {
          const { space } = containers.open(containers.default, kernel.node(A));
          assert.ok(canMap(space));
          const error = thrown('ENOMEM', () =>
            space.map({ va: page(0), iova: at(0), length: 3 * PAGE, access: 'read' }),
          );
          assert.match(error.message, new RegExp(`RLIMIT_MEMLOCK is ${(2 * PAGE) / KiB} KiB, 0 bytes of it are used`));
          space.map({ va: page(0), iova: at(0), length: 2 * PAGE, access: 'read' });
          assert.equal(kernel.pinned, 2 * PAGE);
        });
    });
  });
});

/** Opens two devices in one container and one in another, maps, looks and lets go. */
function life(kernel: VfioKernel, platform: Platform, choice: ContainerChoice, va: Va): void {
  const containers = new Containers(platform, { choice });
  const errors: unknown[] = [];
  try {
    const first = containers.open(containers.default, kernel.node(A));
    const second = containers.open(containers.default, kernel.node(B));
    const own = containers.create();
    const third = containers.open(own, kernel.node(C));
    for (const space of new Set([first.space, third.space])) {
      if (canMap(space)) space.map({ va, iova: 0x100000 as Iova, length: PAGE, access: 'read-write' });
    }
    if (first.space.kind !== 'vfio-noiommu') kernel.read(B, 0x100000, PAGE);
    second.release();
    third.release();
    own.close();
  } catch (error) {
    errors.push(error);
  }
  errors.push(...containers.close());
  if (errors.length > 0) throw errors[0];
}

for (const [iommu, choice] of [
  ['both', 'type1'],
  ['both', 'iommufd'],
  ['spapr', 'spapr'],
  ['noiommu', 'noiommu'],
] as const)
  for (const code of ['ENOMEM', 'EPERM', 'EINVAL'] as const)
    it(`${choice}: each system call fails with ${code}, and nothing is left`, { skip }, async () => {
      const emitted = process.listeners('warning');
      process.removeAllListeners('warning');
      withMemory(1, (va) => {
        let steps = 0;
        for (let n = 1; ; n++) {
          const devices = [{ name: A }, { name: B }, { name: C, tracksDirtyPages: true }];
          const before = trackingPlatform(real);
          using kernel = fakeVfioKernel({ iommu, devices, platform: before });
          const platform = failingPlatform(kernel.platform);
          platform.failCall(n, code);
          let error: unknown;
          try {
            life(kernel, platform, choice, va);
          } catch (caught) {
            error = caught;
          }
          assert.deepEqual(kernel.leaks(), [], `call ${n}, ${platform.failed() ?? 'none'}`);
          kernel[Symbol.dispose]();
          assert.deepEqual(before.leaks(), [], `call ${n}, ${platform.failed() ?? 'none'}`);
          if (platform.failed() === undefined) {
            assert.equal(error, undefined);
            break;
          }
          assert.ok(error === undefined || error instanceof DmaError, String(error));
          steps++;
        }
        assert.ok(steps > (choice === 'noiommu' ? 20 : 40), `${steps} steps`);
      });
      await new Promise((resolve) => setImmediate(resolve));
      for (const listener of emitted) process.on('warning', listener);
    });
