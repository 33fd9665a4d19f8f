/** iommufd's own: copies between address spaces, files, promised IOVAs, dirty pages, page requests. */
import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { codeOf } from '../../test/shared/errors.js';
import type { DmaAccess, Segment } from '../dma/address-space.js';
import { openPlatform } from '../platform/open.js';
import { Range } from '../ranges.js';
import type { Iova, Va } from '../units.js';
import { Containers, type ContainerOptions } from './containers.js';
import { IommufdSpace } from './iommufd.js';
import { fakeVfioKernel, type KernelOptions, type VfioKernel } from '../../test/fakes/vfio/kernel.js';
import { Type1Space } from './type1.js';

const real = openPlatform();
const skip = real.limitation ?? false;
const PAGE = real.memory.pageSize;
const A = '0000:00:02.0';
const B = '0000:00:03.0';

interface World {
  readonly kernel: VfioKernel;
  readonly containers: Containers;
  /** Opens a device in a new container. */
  open(name: string, options?: ContainerOptions): IommufdSpace;
  /** A memfd of `pages` pages, with its mapping. */
  readonly fd: number;
  readonly va: Va;
  readonly bytes: Uint8Array;
}

function world(options: Partial<KernelOptions>, use: (world: World) => void): void {
  using kernel = fakeVfioKernel({ iommu: 'iommufd', devices: [{ name: A }, { name: B }], ...options });
  const containers = new Containers(kernel.platform);
  const length = 8 * PAGE;
  const fd = real.memory.memfd({ name: 'test', length });
  const va = real.memory.map({ fd, length });
  const buffer = real.memory.view(va, length);
  const open = (name: string, more?: ContainerOptions): IommufdSpace => {
    const { space } = containers.open(containers.create(more), kernel.node(name));
    assert.ok(space instanceof IommufdSpace);
    return space;
  };
  try {
    use({ kernel, containers, open, fd, va, bytes: new Uint8Array(buffer) });
  } finally {
    real.memory.detach(buffer);
    real.memory.unmap(va, length);
    real.files.close(fd);
  }
  assert.deepEqual(containers.close(), []);
  assert.deepEqual(kernel.leaks(), []);
}

function segment(world: World, page: number, pages: number, iova: number, access: DmaAccess, isFile = true): Segment {
  return {
    va: (world.va + page * PAGE) as Va,
    iova: iova as Iova,
    length: pages * PAGE,
    access,
    backing: isFile ? { fd: world.fd, offset: page * PAGE } : undefined,
  };
}

describe('iommufd', { skip }, () => {
  it('pins once what two address spaces have', () => {
    for (const isFile of [true, false])
      world({}, (w) => {
        const first = w.open(A);
        const second = w.open(B);
        first.map(segment(w, 0, 2, 0x10000, 'read-write', isFile));
        second.map(segment(w, 0, 2, 0x50000, 'read', isFile));
        assert.equal(w.kernel.pinned, 2 * PAGE);
        w.kernel.write(A, 0x10000, Uint8Array.of(5));
        assert.equal(w.kernel.read(B, 0x50000, 1)[0], 5);
        assert.equal(w.bytes[0], 5);
        assert.equal(
          codeOf(() => w.kernel.write(B, 0x50000, Uint8Array.of(5))),
          'EACCES',
        );
        // Only the very same, and nothing that the other was not granted.
        second.map(segment(w, 1, 1, 0x60000, 'read', isFile));
        assert.equal(w.kernel.pinned, 3 * PAGE);
        first.map(segment(w, 4, 1, 0x20000, 'read', isFile));
        second.map(segment(w, 4, 1, 0x20000, 'read-write', isFile));
        assert.equal(w.kernel.pinned, 5 * PAGE);
        // The pages stay pinned for who still has them.
        assert.equal(first.unmap(segment(w, 0, 2, 0x10000, 'read-write')), 2 * PAGE);
        assert.equal(w.kernel.pinned, 5 * PAGE);
        assert.equal(w.kernel.read(B, 0x50000, 1)[0], 5);
        // What was unmapped behind its back is mapped anew.
        assert.equal(second.unmap({ iova: 0x50000 as Iova, length: 2 * PAGE }), 2 * PAGE);
        first.map(segment(w, 0, 2, 0x10000, 'read', isFile));
        assert.equal(w.kernel.read(A, 0x10000, 1)[0], 5);
      });
  });

  it('maps by descriptor where it can, and remembers where it can not', () => {
    for (const mapsFiles of [true, false])
      world({ mapsFiles }, (w) => {
        const space = w.open(A);
        space.map(segment(w, 0, 2, 0x10000, 'read-write'));
        assert.equal(w.kernel.mappings(A)[0].va, mapsFiles ? undefined : w.va);
        w.kernel.write(A, 0x10000 + PAGE - 1, Uint8Array.of(1, 2));
        assert.deepEqual([...w.bytes.subarray(PAGE - 1, PAGE + 1)], [1, 2]);
        assert.equal(
          codeOf(() => space.mapFile(w.fd, 0, 0x20000 as Iova, PAGE, 'read')),
          mapsFiles ? undefined : 'ENOTTY',
        );
        // Too short a descriptor, or none of memory: by address then.
        space.map({ ...segment(w, 4, 2, 0x30000, 'read'), backing: { fd: w.fd, offset: 7 * PAGE } });
        assert.equal(w.kernel.mappings(A).at(-1)?.va, w.va + 4 * PAGE);
        assert.equal(
          codeOf(() => space.map(segment(w, 6, 1, 0x10000, 'read'))),
          'EEXIST',
        );
        assert.equal(
          codeOf(() => space.map(segment(w, 6, 1, 0xfee00000, 'read'))),
          'EINVAL',
        );
      });
  });

  it('promised IOVAs stay usable', () => {
    world({ devices: [{ name: A }, { name: B, reserved: [{ start: 0x100000, last: 0x1fffff }] }] }, (w) => {
      const space = w.open(A);
      assert.equal(
        codeOf(() => space.allowIovas([new Range(0xfed00000 as Iova, 0x200000)])),
        'EADDRINUSE',
      );
      space.allowIovas([new Range(0x100000 as Iova, 0x10000)]);
      const [, container] = w.containers;
      assert.equal(
        codeOf(() => w.containers.open(container, w.kernel.node(B))),
        'EADDRINUSE',
      );
      space.allowIovas([]);
      w.containers.open(container, w.kernel.node(B));
    });
  });

  it('reads any number of windows', () => {
    const reserved = Array.from({ length: 40 }, (_, i) => ({
      start: i * 0x10000 + 0x8000,
      last: i * 0x10000 + 0x8fff,
    }));
    world({ devices: [{ name: A, reserved }] }, (w) => {
      assert.equal(w.open(A).windows.length, 42);
    });
    world({ iommu: 'type1', devices: [{ name: A, reserved }] }, (w) => {
      const { space } = w.containers.open(w.containers.default, w.kernel.node(A));
      assert.ok(space instanceof Type1Space);
      assert.equal(space.info.windows.length, 42);
    });
  });

  it('tracks dirty pages where the hardware does', () => {
    const devices = [{ name: A, tracksDirtyPages: true }, { name: B }];
    world({ devices }, (w) => {
      const space = w.open(A);
      assert.equal(space.tracksDirtyPages, true);
      space.map({ va: w.va, iova: 0x10000 as Iova, length: 8 * PAGE, access: 'read-write' });
      const range = new Range(0x10000 as Iova, 8 * PAGE);
      assert.equal(
        codeOf(() => space.dirty.read(range)),
        'EINVAL',
      );
      w.kernel.write(A, 0x10000, Uint8Array.of(1));
      space.dirty.start();
      assert.equal(space.dirty.read(range).count, 0);
      w.kernel.write(A, 0x10000 + 2 * PAGE - 1, Uint8Array.of(1, 2));
      w.kernel.write(A, 0x10000 + 7 * PAGE, Uint8Array.of(1));
      const kept = space.dirty.read(range, { keep: true });
      assert.deepEqual([...kept.ranges()].map(String), [`[0x11000, 0x13000)`, `[0x17000, 0x18000)`]);
      assert.deepEqual([kept.has(0x11fff), kept.has(0x10fff), kept.has(0x18000), kept.count], [true, false, false, 3]);
      assert.equal(space.dirty.read(range).count, 3);
      assert.equal(space.dirty.read(range).count, 0);
      space.dirty.stop();
      const [, container] = w.containers;
      w.containers.open(container, w.kernel.node(B));
      assert.equal(
        codeOf(() => space.dirty.start()),
        'ENOTSUP',
        'the other device could write unseen',
      );
    });
    world({ devices }, (w) => {
      const space = w.open(B);
      assert.equal(
        codeOf(() => space.dirty.start()),
        'ENOTSUP',
      );
    });
    world({ iommu: 'type1' }, (w) => {
      const { space } = w.containers.open(w.containers.default, w.kernel.node(A));
      assert.ok(space instanceof Type1Space);
      space.map({ va: w.va, iova: 0x10000 as Iova, length: 2 * PAGE, access: 'read-write' });
      const range = new Range(0x10000 as Iova, 4 * PAGE);
      assert.equal(
        codeOf(() => space.read(range)),
        'EINVAL',
      );
      space.start();
      assert.deepEqual([...space.read(range).ranges()].map(String), ['[0x10000, 0x12000)']);
      assert.equal(
        codeOf(() => space.read(new Range(0x11000 as Iova, PAGE))),
        'EINVAL',
      );
      assert.equal(
        codeOf(() => space.read(range, { keep: true })),
        'ENOTSUP',
      );
      space.stop();
      assert.equal(
        codeOf(() => space.read(range)),
        'EINVAL',
      );
    });
  });

  it('hands page requests over, and their answers back', () => {
    world({}, (w) => {
      const space = w.open(A, { pageRequests: true });
      const { pageRequests } = space;
      assert.ok(pageRequests !== undefined);
      assert.deepEqual(pageRequests.read(), []);
      const cookies = [w.kernel.requestPage(A, 0x5000, 'read'), w.kernel.requestPage(A, 0x7000, 'write')];
      const requests = pageRequests.read();
      assert.deepEqual(
        requests.map(({ iova, reads, writes, isLast, pasid, cookie }) => [iova, reads, writes, isLast, pasid, cookie]),
        [
          [0x5000, true, false, true, undefined, cookies[0]],
          [0x7000, false, true, true, undefined, cookies[1]],
        ],
      );
      pageRequests.answer(requests[0], 'mapped');
      pageRequests.answer(requests[1], 'refused');
      assert.equal(
        codeOf(() => pageRequests.answer(requests[1], 'refused')),
        'EINVAL',
      );
      assert.deepEqual(pageRequests.read(), []);
    });
  });
});
