/** What a container can do, through the public door, over a kernel of the tests'. */
/* eslint-disable @typescript-eslint/no-deprecated -- the old way is tested as well */
import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { fakeVfioKernel, type KernelOptions, type VfioKernel } from '../test/fakes/vfio/kernel.js';
import { Eal } from './eal.js';
import { isDmaError, type ErrorCode } from './errors.js';
import { openPlatform } from './platform/open.js';
import { Range } from './ranges.js';
import type { Iova } from './units.js';

const SKIP = { skip: openPlatform().limitation ?? false };
const A = '0000:00:02.0';
const B = '0000:00:03.0';
const PAGE = 4096;

/** Runs `body` on a machine of these devices. */
async function withEal(
  options: Partial<KernelOptions>,
  body: (eal: Eal, kernel: VfioKernel) => Promise<void>,
): Promise<void> {
  using kernel = fakeVfioKernel({ iommu: 'iommufd', devices: [{ name: A }, { name: B }], ...options });
  {
    await using eal = await Eal.start({ platform: kernel.platform, onForgotten: () => undefined });
    await body(eal, kernel);
  }
  assert.deepEqual(kernel.leaks(), []);
}

function coded(code: ErrorCode, says = /./): (error: unknown) => true {
  return (error) => {
    assert.ok(isDmaError(error, code), String(error));
    assert.match(error.message, says);
    return true;
  };
}

const iovas = (start: number, length: number): Range<Iova> => new Range(start as Iova, length);

describe('a container', SKIP, () => {
  it('is passed to probe as it is, whatever its name', () =>
    withEal({}, async (eal) => {
      const mine = eal.containers.create({ name: 'a,container=default' });
      const device = await eal.probe(`pci:${A}`, { container: mine });
      assert.deepEqual([mine.devices, eal.containers.default.devices], [[A], []]);
      assert.equal(mine.domain, device.domain);
      assert.deepEqual(eal.devices(`bus=pci`), [device]);
    }));

  it('of another Eal, for a bus without containers, or said twice is EINVAL', () =>
    withEal({}, async (eal, kernel) => {
      await using other = await Eal.start({ platform: kernel.platform });
      const container = other.containers.create({ name: 'there' });
      eal.containers.create({ name: 'there' });
      await assert.rejects(eal.probe(`pci:${A}`, { container }), coded('EINVAL', /another Eal/));
      const own = eal.containers.default;
      await assert.rejects(eal.probe('vdev:edu0', { container: own }), coded('EINVAL', /vdev are not put into/));
      await assert.rejects(
        eal.probe(`pci:${A},container=there`, { container: own }),
        coded('EINVAL', /two containers/),
      );
      const closed = eal.containers.create();
      closed.close();
      await assert.rejects(eal.probe(`pci:${A}`, { container: closed }), coded('EINVAL', /is closed/));
      assert.deepEqual(eal.devices(), []);
    }));

  it('maps for itself, the old way, and says once that it is that', () =>
    withEal({}, async (eal, kernel) => {
      const container = eal.containers.default;
      const memory = eal.external.allocate(16 * PAGE);
      const warnings: string[] = [];
      const listen = (warning: Error & { code?: string }): void =>
        void warnings.push(`${warning.name} ${warning.code}`);
      process.on('warning', listen);
      assert.throws(() => container.map(memory), coded('ENODEV', /no device is in the container/));
      const device = await eal.probe(`pci:${A}`);
      const mapping = container.map(memory, { iova: 0x80_0000 });
      assert.equal(mapping.iova, 0x80_0000);
      assert.equal(device.dmaMap(memory).iova, 0x80_0000, 'devices share it');
      device.dmaUnmap(memory);
      assert.throws(() => device.dmaUnmap(memory), coded('EINVAL'));
      container.unmap({ va: memory.va, length: memory.length, iova: mapping.iova });
      assert.equal(kernel.mappings(A).length, 0);
      container.unmap(container.map(memory));
      assert.throws(() => container.unmap(memory), coded('EINVAL'));
      assert.throws(() => container.unmap(device.dmaMap(memory)), coded('EINVAL', /container.map did not make/));
      device.dmaUnmap(memory);
      const left = container.map({ va: memory.va, length: PAGE });
      await eal.remove(device);
      assert.equal(left.live, false, 'it ends with the last device');
      await new Promise((resolve) => setImmediate(resolve));
      process.off('warning', listen);
      assert.deepEqual(warnings, ['DeprecationWarning ANYDMA_CONTAINER_MAP']);
    }));

  it('promises IOVAs: a device that does not reach them is not taken in', () =>
    withEal(
      { devices: [{ name: A }, { name: B, reserved: [{ start: 0x100000, last: 0x1fffff }] }] },
      async (eal, kernel) => {
        const container = eal.containers.create();
        container.allowIovas([iovas(0x100000, 0x10000)]);
        await assert.rejects(eal.probe(`pci:${B}`, { container }), coded('EADDRINUSE'));
        await eal.probe(`pci:${A}`, { container });
        assert.equal(container.kind, 'iommufd');
        await assert.rejects(eal.probe(`pci:${B}`, { container }), coded('EADDRINUSE'));
        assert.throws(() => container.allowIovas([iovas(0xfed00000, 0x200000)]), coded('EADDRINUSE', /windows are/));
        assert.throws(
          () => container.allowIovas([iovas(0x2000, 0x2000), iovas(0x1000, 0x2000)]),
          coded('EINVAL', /overlap/),
        );
        for (const bad of [undefined, 5, [5], [{ start: 1, length: 2 }]])
          assert.throws(() => container.allowIovas(bad as never), coded('EINVAL'));
        await assert.rejects(
          eal.probe(`pci:${B}`, { container }),
          coded('EADDRINUSE'),
          'what was refused changes nothing',
        );
        container.allowIovas([]);
        await eal.probe(`pci:${B}`, { container });
        assert.deepEqual(container.devices, [A, B]);
        assert.equal(kernel.mappings(B).length, kernel.mappings(A).length);
      },
    ));

  it('tells dirty pages', () =>
    withEal({ devices: [{ name: A, tracksDirtyPages: true }, { name: B }] }, async (eal, kernel) => {
      const { dirty } = eal.containers.default;
      assert.throws(() => dirty.start(), coded('ENODEV'));
      const device = await eal.probe(`pci:${A}`);
      const memory = eal.external.allocate(8 * PAGE);
      const { iova, range } = device.dmaMap(memory, { iova: 0x10000 });
      const window = iovas(iova, range.length);
      assert.throws(() => dirty.read(window), coded('EINVAL', /not started/));
      dirty.start();
      assert.equal(dirty.pageSize, PAGE);
      kernel.write(A, iova + 2 * PAGE - 1, Uint8Array.of(1, 2));
      assert.deepEqual([...dirty.read(window, { keep: true }).ranges()].map(String), ['[0x11000, 0x13000)']);
      assert.equal(dirty.read(window).count, 2);
      assert.equal(dirty.read(window).count, 0);
      for (const bad of [undefined, 7, { start: iova, length: PAGE }])
        assert.throws(() => dirty.read(bad as never), coded('EINVAL'));
      assert.throws(() => dirty.read(window, { kept: true } as never), coded('EINVAL'));
      assert.throws(() => dirty.read(iovas(iova + 1, PAGE)), coded('EINVAL', /aligned/));
      dirty.stop();
      const other = eal.containers.create();
      await eal.probe(`pci:${B}`, { container: other });
      assert.throws(() => other.dirty.start(), coded('ENOTSUP'));
    }));

  it('hands page requests over, by the names of devices, and their answers back', () =>
    withEal({}, async (eal, kernel) => {
      const container = eal.containers.create({ pageRequests: true });
      assert.throws(() => eal.containers.default.pageRequests, coded('EINVAL', /not made for page requests/));
      assert.throws(() => container.pageRequests, coded('ENODEV'));
      await eal.probe(`pci:${A}`, { container });
      await eal.probe(`pci:${B}`, { container });
      const { pageRequests } = container;
      assert.deepEqual(pageRequests.read(), []);
      kernel.requestPage(A, 0x5000, 'read');
      kernel.requestPage(B, 0x7000, 'write');
      const requests = pageRequests.read();
      assert.deepEqual(
        requests.map(({ device, iova, reads, writes }) => [device, iova, reads, writes]),
        [
          [A, 0x5000, true, false],
          [B, 0x7000, false, true],
        ],
      );
      pageRequests.answer(requests[0], 'mapped');
      pageRequests.answer(requests[1], 'refused');
      assert.throws(() => pageRequests.answer(requests[1], 'refused'), coded('EINVAL'));
      for (const [request, outcome] of [
        [undefined, 'mapped'],
        [{}, 'mapped'],
        [{ cookie: -1 }, 'mapped'],
        [requests[0], 'maybe'],
      ])
        assert.throws(() => pageRequests.answer(request as never, outcome as never), coded('EINVAL'));
    }));

  it('of another kind than iommufd says what it can not do', () =>
    withEal({ iommu: 'type1' }, async (eal) => {
      const container = eal.containers.create({ pageRequests: true, kind: 'type1' });
      assert.throws(() => container.allowIovas([]), coded('ENOTSUP', /kind type1; only iommufd promises/));
      await eal.probe(`pci:${A}`, { container });
      assert.throws(() => container.pageRequests, coded('ENOTSUP', /page requests/));
      container.dirty.start();
      container.dirty.stop();
      const auto = eal.containers.create();
      auto.allowIovas([iovas(0x100000, 0x10000)]);
      await assert.rejects(eal.probe(`pci:${B}`, { container: auto }), (error) => isDmaError(error));
      auto.allowIovas([]);
      await eal.probe(`pci:${B}`, { container: auto });
    }));
});
