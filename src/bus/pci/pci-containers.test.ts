import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { dmaError } from '../../../test/shared/errors.js';
import { openPlatform } from '../../platform/open.js';
import { failingPlatform, trackingPlatform } from '../../../test/fakes/platform/platforms.js';
import { Containers } from '../../vfio/containers.js';
import { fakeVfioKernel, type VfioKernel } from '../../../test/fakes/vfio/kernel.js';
import { Script, fakeDriver, TestRegistry } from '../../../test/fakes/bus/bus.js';
import { PciBus } from './pci-bus.js';

const skip = openPlatform().limitation ?? false;
const PAGE = openPlatform().memory.pageSize;
const A = '0000:00:02.0';
const B = '0000:00:03.0';
const C = '0000:00:04.0';
const BUSY = '0000:00:05.0';

interface Bench {
  readonly kernel: VfioKernel;
  readonly registry: TestRegistry;
  readonly containers: Containers;
  readonly bus: PciBus;
}

/** Runs `body` with a machine whose functions B and C share a group; whatever it does, nothing is left. */
async function withMachine(iommu: 'type1' | 'iommufd', body: (bench: Bench) => Promise<void>): Promise<void> {
  using kernel = fakeVfioKernel({
    iommu,
    // The registry's memory is made up.
    realMemory: false,
    devices: [
      { name: A, group: 1 },
      { name: B, group: 2 },
      { name: C, group: 2 },
      { name: BUSY, group: 3, driver: 'e1000e' },
    ],
  });
  const platform = trackingPlatform(kernel.platform);
  const containers = new Containers(platform);
  const bus = new PciBus({ platform, containers });
  const registry = new TestRegistry(new Script());
  registry.registerBus(bus);
  registry.registerDriver(fakeDriver(registry.script, 'one', { buses: ['pci'] }));
  try {
    await body({ kernel, registry, containers, bus });
  } finally {
    await registry.close();
    containers.close();
  }
  assert.deepEqual(platform.leaks(), []);
  assert.deepEqual(kernel.leaks(), []);
}

for (const iommu of ['type1', 'iommufd'] as const)
  describe(`PCI functions over ${iommu}`, { skip }, () => {
    it('two in one container share a domain, and each mapping', () =>
      withMachine(iommu, async ({ kernel, registry }) => {
        const a = await registry.probe('pci:00:02.0');
        const b = await registry.probe(`pci:${B}`);
        assert.equal(a.domain, b.domain);
        assert.equal(a.domain?.kind, iommu === 'type1' ? 'vfio-type1' : 'iommufd');
        const memory = registry.external.allocate(PAGE);
        const first = a.dmaMap(memory);
        const second = b.dmaMap(memory);
        for (const name of [A, B]) assert.equal(kernel.mappings(name).length, 1);
        first.unmap();
        for (const name of [A, B]) assert.equal(kernel.mappings(name).length, 1);
        second.unmap();
        for (const name of [A, B]) assert.equal(kernel.mappings(name).length, 0);
        b.dmaMap(memory);
        await registry.remove(a);
        assert.equal(kernel.mappings(B).length, 1, 'the one that is left keeps its own');
        await registry.remove(b);
        memory.unregister();
      }));

    it('one in a container of its own is never mapped in the default one', () =>
      withMachine(iommu, async ({ kernel, registry, containers }) => {
        using mine = containers.create({ name: 'mine' });
        const a = await registry.probe(`pci:${A}`);
        const b = await registry.probe(`pci:${B},container=mine`);
        assert.notEqual(a.domain, b.domain);
        assert.deepEqual(mine.devices, [B]);
        const memory = registry.external.allocate(PAGE);
        b.dmaMap(memory);
        assert.deepEqual([kernel.mappings(A).length, kernel.mappings(B).length], [0, 1]);
        a.dmaMap(memory).unmap();
        assert.deepEqual([kernel.mappings(A).length, kernel.mappings(B).length], [0, 1]);
        await registry.remove(b);
        await registry.remove(a);
        memory.unregister();
      }));

    it('a container can be used again, after its last device', () =>
      withMachine(iommu, async ({ registry }) => {
        for (let n = 0; n < 3; n++) {
          const a = await registry.probe(`pci:${A}`);
          const memory = registry.external.allocate(PAGE);
          a.dmaMap(memory);
          await registry.remove(a);
          memory.unregister();
        }
      }));

    it('members of one group can not be in two containers: the error names them', () =>
      withMachine(iommu, async ({ registry, containers }) => {
        containers.create({ name: 'mine' });
        await registry.probe(`pci:${B},container=mine`);
        await assert.rejects(
          registry.probe(`pci:${C}`),
          dmaError('EBUSY', /group 2 is in container "mine".*0000:00:03\.0/),
        );
        await registry.probe(`pci:${C},container=mine`);
      }));

    it('a function of the kernel is left alone, and the error says how to get it', () =>
      withMachine(iommu, async ({ registry }) => {
        await assert.rejects(
          registry.probe(`pci:${BUSY}`),
          dmaError('EBUSY', /the driver e1000e has it.*hint: .*anydma bind 0000:00:05\.0/),
        );
      }));

    it('a file that may not be opened is named', () =>
      withMachine(iommu, async ({ kernel, registry, bus }) => {
        const { device } = kernel.node(A);
        kernel.forbidden.add('/dev/vfio/1');
        if (device !== undefined) kernel.forbidden.add(device);
        await assert.rejects(registry.probe(`pci:${A}`), dmaError('EACCES', /\/dev\/vfio\/.*hint: /));
        assert.ok((await bus.scan()).includes(A));
      }));

    it('whichever call fails while it is opened: an error says so, and nothing is left', async () => {
      using kernel = fakeVfioKernel({ iommu, devices: [{ name: A, group: 1 }] });
      for (let n = 1; ; n++) {
        const failing = failingPlatform(kernel.platform);
        const platform = trackingPlatform(failing);
        const containers = new Containers(platform);
        const bus = new PciBus({ platform, containers });
        failing.failCall(n, 'ENOMEM');
        try {
          await (await bus.open(A, new Map())).close();
        } catch (error) {
          dmaError('ENOMEM')(error);
        }
        assert.deepEqual([...platform.leaks(), ...kernel.leaks()], [], `call ${n}: ${failing.failed() ?? 'none'}`);
        if (failing.failed() === undefined) break;
      }
    });
  });
