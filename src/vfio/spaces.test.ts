/** Domains over the address spaces of VFIO, on the kernel model: the same promises over each of them. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { codeOf } from '../../test/shared/errors.js';
import fc from 'fast-check';
import type { DmaAccess } from '../dma/address-space.js';
import { Domain } from '../dma/domain.js';
import type { Mapping } from '../dma/mapping.js';
import { Area } from '../memory/area.js';
import { AreaIndex } from '../memory/area-index.js';
import { openPlatform } from '../platform/open.js';
import { Range } from '../ranges.js';
import { GiB, type Iova, type Va } from '../units.js';
import { Containers } from './containers.js';
import { fakeVfioKernel, type KernelOptions } from '../../test/fakes/vfio/kernel.js';

const real = openPlatform();
const skip = real.limitation ?? false;
const PAGE = 4096;
const A = '0000:00:02.0';
const B = '0000:00:03.0';
const C = '0000:00:04.0';

/** A kernel with two devices in one container and one in another, and a domain over each container. */
function world(options: Omit<KernelOptions, 'devices'>) {
  const kernel = fakeVfioKernel({
    ...options,
    realMemory: false,
    devices: [{ name: A }, { name: B }, { name: C }],
    platform: real,
  });
  const containers = new Containers(kernel.platform, {
    choice: options.iommu === 'noiommu' ? 'noiommu' : 'auto',
  });
  const areas = new AreaIndex();
  const domainOf = (names: readonly string[]): Domain => {
    const container = names.includes(A) ? containers.default : containers.create();
    const [space] = names.map((name) => containers.open(container, kernel.node(name)).space);
    const { limits } = kernel.platform;
    const domain = new Domain({ name: container.name, space, areas, limits, holdBackMs: 0 });
    for (const name of names) domain.attach(name);
    return domain;
  };
  const domains = [domainOf([A, B]), domainOf([C])] as const;
  const addArea = (va: number, pages: number, iovas?: number[]): Area => {
    const range = new Range(va as Va, pages * PAGE);
    const area = new Area({ range, pageSize: PAGE, owner: 'external', label: `area at ${va}`, iovas });
    areas.add(area);
    return area;
  };
  return { kernel, containers, domains, addArea };
}

interface Step {
  readonly what: 'map' | 'unmap' | 'unmapPart';
  readonly device: 0 | 1 | 2;
  readonly area: number;
  readonly page: number;
  readonly pages: number;
  readonly access: DmaAccess;
  readonly iova: number | undefined;
  readonly pick: number;
}

const step = fc.record<Step>({
  what: fc.constantFrom('map', 'map', 'unmap', 'unmapPart'),
  device: fc.constantFrom(0, 1, 2),
  area: fc.nat(2),
  page: fc.nat(11),
  pages: fc.integer({ min: 1, max: 5 }),
  access: fc.constantFrom<DmaAccess>('read', 'write', 'read-write'),
  iova: fc.option(fc.constantFrom(0x10000, 0x14000, 0xfedff000, 0x7fffffe000, 0x8000000000, 2 ** 47), {
    nil: undefined,
  }),
  pick: fc.nat(),
});

for (const [iommu, width] of [
  ['type1', 39],
  ['type1', 48],
  ['iommufd', 39],
  ['iommufd', 48],
  ['spapr', 48],
] as const)
  test(`${iommu}, ${width} bits: the kernel has exactly what the domain says`, { skip }, () => {
    fc.assert(
      fc.property(fc.array(step, { maxLength: 40 }), (steps) => {
        const { kernel, containers, domains, addArea } = world({ iommu, width, entryLimit: 6 });
        const areas = [addArea(0x40000000, 16), addArea(0x7f0000000000, 16), addArea(0xfedfe000, 16)];
        const live: Mapping[] = [];
        for (const { what, device, area, page, pages, access, iova, pick } of steps) {
          const name = [A, B, C][device];
          const domain = domains[device === 2 ? 1 : 0];
          if (what === 'map') {
            const target = {
              va: (areas[area].range.start + page * PAGE) as Va,
              length: Math.min(pages, 16 - page) * PAGE,
            };
            const code = codeOf(() =>
              live.push(domain.mapFor(name, target, { access, iova: iova as Iova | undefined })),
            );
            // One process can not register overlapping memory twice, in whichever container.
            const refusals = ['EEXIST', 'ENOSPC', 'ERANGE', ...(iommu === 'spapr' ? ['EINVAL'] : [])];
            assert.ok(code === undefined || refusals.includes(code), code);
          } else if (live.length > 0) {
            const mapping = live[pick % live.length];
            if (what === 'unmap') {
              mapping.unmap();
              live.splice(live.indexOf(mapping), 1);
            } else {
              const whose = mapping.device === C ? domains[1] : domains[0];
              const code = codeOf(() => whose.unmapFor(mapping.device, { va: mapping.range.start, length: PAGE }));
              if (mapping.range.length === PAGE || code === 'EINVAL') {
                // The first page was cut out before, or is all there is.
              } else assert.ok(code === 'ENOTSUP', code);
              if (!mapping.live) live.splice(live.indexOf(mapping), 1);
            }
          }
          for (const [i, each] of domains.entries()) {
            const there = kernel.mappings([A, C][i]);
            assert.equal(
              there.reduce((sum, { length }) => sum + length, 0),
              each.bytes,
            );
            if (iommu !== 'spapr') assert.equal(there.length, each.entries);
            for (const { iova: at, va, length, access: granted } of there) {
              const resolved = each.resolve(at, length, granted);
              assert.ok(typeof resolved === 'object' && resolved.va === va);
            }
            if (i === 0) assert.deepEqual(kernel.mappings(B), there);
          }
        }
        for (const mapping of live) mapping.unmap();
        assert.equal(kernel.pinned, 0);
        assert.deepEqual(containers.close(), []);
        assert.deepEqual(kernel.leaks(), []);
        kernel[Symbol.dispose]();
      }),
      { numRuns: 60 },
    );
  });

for (const iommu of ['type1', 'iommufd', 'spapr'] as const)
  test(`${iommu}: what is left is unmapped with the last device`, { skip }, async () => {
    const { kernel, containers, domains, addArea } = world({ iommu, lockedLimit: 1 * GiB });
    const area = addArea(0x40000000, 16);
    const { constraints } = domains[0];
    assert.equal(domains[0].constraints, constraints, 'the same object as long as nothing changes');
    assert.equal(constraints.pins, true);
    domains[0].mapFor(A, { va: area.range.start, length: 4 * PAGE });
    domains[0].mapFor(B, { va: area.range.start, length: 4 * PAGE });
    assert.equal(kernel.pinned, 4 * PAGE);
    await domains[0].detach(A);
    assert.equal(kernel.pinned, 4 * PAGE);
    await domains[0].detach(B);
    assert.equal(kernel.pinned, 0);
    const again = domains[1].mapFor(C, { va: area.range.start, length: 4 * PAGE });
    assert.equal(again.live, true);
    // Not unmapped: the kernel takes it back with the descriptors.
    assert.deepEqual(containers.close(), []);
    assert.deepEqual(kernel.leaks(), []);
    kernel[Symbol.dispose]();
  });

test('without an IOMMU only memory with a table can be mapped, at just these addresses', { skip }, async () => {
  const printing = process.listeners('warning');
  process.removeAllListeners('warning');
  const { kernel, containers, domains, addArea } = world({ iommu: 'noiommu' });
  const plain = addArea(0x40000000, 4);
  const tabled = addArea(0x50000000, 4, [0x1000, 0x2000, 0x9000, 0x5000]);
  const [domain] = domains;
  assert.deepEqual([domain.kind, domain.constraints.iova, domain.constraints.pins], ['vfio-noiommu', 'table', false]);
  assert.equal(
    codeOf(() => domain.mapFor(A, { va: plain.range.start, length: PAGE })),
    'EINVAL',
  );
  assert.equal(
    codeOf(() => domain.mapFor(A, { va: plain.range.start, length: PAGE }, { iova: 0x1000 })),
    'EINVAL',
  );
  assert.equal(
    codeOf(() => domain.mapFor(A, { va: tabled.range.start, length: PAGE }, { iova: 0x2000 })),
    'EINVAL',
  );
  const mapping = domain.mapFor(A, { va: tabled.range.start, length: 4 * PAGE });
  assert.deepEqual(
    [0, 1, 2, 3].map((page) => mapping.iovaOf((tabled.range.start + page * PAGE) as Va)),
    [0x1000, 0x2000, 0x9000, 0x5000],
  );
  mapping.unmap();
  assert.deepEqual(containers.close(), []);
  assert.deepEqual(kernel.leaks(), []);
  kernel[Symbol.dispose]();
  await new Promise((resolve) => setImmediate(resolve));
  for (const listener of printing) process.on('warning', listener);
});
