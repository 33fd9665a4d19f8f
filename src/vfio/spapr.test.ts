/** sPAPR v2: the calls in their order, windows, and registration of memory, on the kernel model. */
import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { codeOf } from '../../test/shared/errors.js';
import { DmaError } from '../errors.js';
import { openPlatform } from '../platform/open.js';
import type { Platform } from '../platform/ports.js';
import { ioctlPort } from '../../test/fakes/platform/platforms.js';
import { GiB, type Iova, type Va } from '../units.js';
import { SpaprSpace, type SpaprOptions } from './spapr.js';
import { SPAPR_MACHINE } from '../../test/fakes/vfio/spapr.js';
import { fakeVfioKernel, type VfioKernel } from '../../test/fakes/vfio/kernel.js';

const real = openPlatform();
const skip = real.limitation ?? false;
const PAGE = real.memory.pageSize;
const A = '0000:00:02.0';
const B = '0000:00:03.0';

function world(
  use: (kernel: VfioKernel, space: SpaprSpace, calls: string[], va: Va) => void,
  options?: SpaprOptions,
): void {
  using kernel = fakeVfioKernel({ iommu: 'spapr', devices: [{ name: A }, { name: B }] });
  const calls: string[] = [];
  const { ioctl } = kernel.platform;
  const platform: Platform = {
    ...kernel.platform,
    ioctl: ioctlPort((fd, request, argument, name) => {
      if (name.includes('IOMMU')) calls.push(name.replace('VFIO_IOMMU_', '').replace('SPAPR_', ''));
      return ioctl.call(fd, request, argument, name);
    }),
  };
  const space = new SpaprSpace(platform, options);
  const length = 8 * PAGE;
  const va = real.memory.map({ length });
  const node = kernel.node(A);
  const device = space.open(node);
  try {
    use(kernel, space, calls, va);
  } finally {
    device.close();
    space.release(node);
    space.end();
    real.memory.unmap(va, length);
  }
  assert.deepEqual(kernel.leaks(), []);
}

describe('sPAPR v2', { skip }, () => {
  it('replaces the default window by one that takes all, with as few levels as possible', () => {
    world(
      (kernel, space, calls) => {
        assert.deepEqual(calls, ['VFIO_SET_IOMMU', 'TCE_GET_INFO', 'TCE_REMOVE', 'TCE_CREATE', 'TCE_CREATE']);
        assert.deepEqual(kernel.spapr(A).windows, [{ start: 0, size: 64 * GiB, pageSize: 4096, levels: 2 }]);
        assert.deepEqual([String(space.window.range), space.window.pageSize], ['[0x0, 0x1000000000)', PAGE]);
        calls.length = 0;
        const node = kernel.node(B);
        const device = space.open(node);
        assert.deepEqual(calls, [], 'the window is the new group’s as well');
        device.close();
        space.release(node);
      },
      { windowBytes: 48 * GiB },
    );
    world((_kernel, space) => assert.ok(space.window.range.length >= GiB));
  });

  it('registers memory before the first mapping of it, and unregisters it after the last', () => {
    world(
      (kernel, space, calls, va) => {
        calls.length = 0;
        const at = (page: number): Va => (va + page * PAGE) as Va;
        space.map({ va: at(0), iova: 0x10000 as Iova, length: 4 * PAGE, access: 'read-write' });
        assert.deepEqual(calls, ['REGISTER_MEMORY', 'MAP_DMA']);
        kernel.write(A, 0x10000 + PAGE - 1, Uint8Array.of(1, 2));
        assert.deepEqual([...kernel.read(A, 0x10000 + PAGE - 1, 2)], [1, 2]);
        // A part of it elsewhere needs no registration of its own.
        space.map({ va: at(1), iova: 0x80000 as Iova, length: PAGE, access: 'read' });
        assert.deepEqual([space.registrations, kernel.spapr(A).registrations, kernel.pinned], [1, 1, 4 * PAGE]);
        assert.equal(
          codeOf(() => space.map({ va: at(3), iova: 0x90000 as Iova, length: 2 * PAGE, access: 'read' })),
          'EBUSY',
        );
        calls.length = 0;
        assert.equal(space.unmap({ va: at(1), iova: (0x10000 + PAGE) as Iova, length: 2 * PAGE }), 2 * PAGE);
        assert.equal(space.unmap({ va: at(1), iova: 0x80000 as Iova, length: PAGE }), PAGE);
        assert.equal(space.unmap({ va: at(0), iova: 0x10000 as Iova, length: PAGE }), PAGE);
        assert.deepEqual(calls, ['UNMAP_DMA', 'UNMAP_DMA', 'UNMAP_DMA']);
        assert.equal(space.unmap({ va: at(3), iova: (0x10000 + 3 * PAGE) as Iova, length: PAGE }), PAGE);
        assert.deepEqual(calls.slice(3), ['UNMAP_DMA', 'UNREGISTER_MEMORY']);
        assert.equal(kernel.pinned, 0);
        assert.equal(
          codeOf(() => space.unmap({ va: at(0), iova: 0x10000 as Iova, length: PAGE })),
          'EINVAL',
        );
        // A map that fails leaves no registration.
        assert.equal(
          codeOf(() => space.map({ va: at(0), iova: (2 ** 40) as Iova, length: PAGE, access: 'read' })),
          'EINVAL',
        );
        assert.equal(
          codeOf(() => space.map({ va: at(0), iova: 0x10001 as Iova, length: PAGE, access: 'read' })),
          'EINVAL',
        );
        assert.deepEqual([space.registrations, kernel.pinned], [0, 0]);
        space.map({ va: at(0), iova: 0x10000 as Iova, length: PAGE, access: 'write' });
        space.map({ va: at(2), iova: 0x20000 as Iova, length: PAGE, access: 'write' });
        assert.equal(space.unmapAll(), 2 * PAGE);
        assert.equal(space.unmapAll(), 0);
        assert.deepEqual([space.registrations, kernel.pinned], [0, 0]);
        space.map({ va: at(2), iova: 0x20000 as Iova, length: PAGE, access: 'write' });
      },
      { windowBytes: 4 * GiB },
    );
  });

  it('maps nothing of memory that is being registered or unregistered on another thread', async () => {
    using kernel = fakeVfioKernel({ iommu: 'spapr', devices: [{ name: A }] });
    let meanwhile: (name: string) => void = () => undefined;
    const { ioctl } = kernel.platform;
    const platform: Platform = {
      ...kernel.platform,
      ioctl: ioctlPort((fd, request, argument, name) => {
        meanwhile(name);
        return ioctl.call(fd, request, argument, name);
      }),
    };
    const space = new SpaprSpace(platform, { windowBytes: 4 * GiB });
    const node = kernel.node(A);
    const device = space.open(node);
    const length = 2 * PAGE;
    const va = real.memory.map({ length });
    const codes: (string | undefined)[] = [];
    meanwhile = (name) => {
      if (!name.includes('REGISTER_MEMORY')) return;
      meanwhile = () => undefined;
      codes.push(
        codeOf(() => space.map({ va: (va + PAGE) as Va, iova: 0x80000 as Iova, length: PAGE, access: 'read' })),
      );
    };
    const again = meanwhile;
    await space.mapAsync({ va, iova: 0x10000 as Iova, length, access: 'read-write' });
    space.unmap({ va: (va + PAGE) as Va, iova: (0x10000 + PAGE) as Iova, length: PAGE });
    meanwhile = again;
    assert.equal(await space.unmapAsync({ va, iova: 0x10000 as Iova, length: PAGE }), PAGE);
    assert.deepEqual(codes, ['EBUSY', 'EBUSY']);
    assert.deepEqual([space.registrations, kernel.pinned], [0, 0]);
    space.map({ va: (va + PAGE) as Va, iova: 0x80000 as Iova, length: PAGE, access: 'read' });
    device.close();
    space.release(node);
    space.end();
    real.memory.unmap(va, length);
    assert.deepEqual(kernel.leaks(), []);
  });

  it('refuses windows that it can not have', () => {
    using kernel = fakeVfioKernel({ iommu: 'spapr', devices: [{ name: A }] });
    for (const windowBytes of [0, -1, NaN, 2 ** 53])
      assert.equal(
        codeOf(() => new SpaprSpace(kernel.platform, { windowBytes })),
        'EINVAL',
      );
    let tries = 0;
    const platform: Platform = {
      ...kernel.platform,
      ioctl: ioctlPort((fd, request, argument, name) => {
        if (name !== 'VFIO_IOMMU_SPAPR_TCE_CREATE') return kernel.platform.ioctl.call(fd, request, argument, name);
        tries++;
        throw new DmaError({ code: 'ENOMEM', operation: name, reason: 'as told' });
      }),
    };
    const space = new SpaprSpace(platform);
    assert.equal(
      codeOf(() => space.open(kernel.node(A))),
      'ENOMEM',
    );
    assert.equal(tries, SPAPR_MACHINE.maxLevels);
    space.end();
    assert.deepEqual(kernel.leaks(), []);
  });
});
