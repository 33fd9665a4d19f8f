import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { Bench, PAGE, part } from '../../test/fakes/dma/address-space.js';
import { dmaError } from '../../test/shared/errors.js';
import { Eal } from '../eal.js';
import { Range } from '../ranges.js';
import { GiB, KiB, MiB, type Iova } from '../units.js';

const A = GiB;

/** A domain whose IOVAs are in [start, start + length), with one area of `pages` pages. */
function bench(start = 0, length = 2 ** 40, pages = 64): Bench {
  const made = new Bench({ constraints: { windows: [new Range(start as Iova, length)] } });
  made.area(A + PAGE, pages);
  made.domain.attach('d0');
  made.domain.attach('d1');
  return made;
}

test('the VA is used if it is a multiple, else an IOVA that is one', () => {
  const { domain } = bench();
  assert.equal(domain.mapFor('d0', part(A + PAGE, PAGE), { iovaAlign: PAGE }).iova, A + PAGE);
  assert.equal(domain.mapFor('d0', part(A + 2 * PAGE, PAGE), { iovaAlign: 2 * PAGE }).iova, A + 2 * PAGE);
  const mapping = domain.mapFor('d0', part(A + 3 * PAGE, PAGE), { iovaAlign: MiB });
  assert.equal(mapping.iova % MiB, 0);
  mapping.unmap();
});

test('an IOVA that is given or can not be chosen has to be a multiple: EINVAL', () => {
  const { domain, space } = bench();
  const map = (options: object): unknown => domain.mapFor('d0', part(A + PAGE, PAGE), options);
  assert.throws(
    () => map({ iova: PAGE, iovaAlign: 2 * PAGE }),
    dmaError('EINVAL', /0x1000 is not a multiple of 0x2000/),
  );
  for (const iovaAlign of [0, -PAGE, 3 * PAGE, 1.5, NaN, Infinity, 2 ** 53])
    assert.throws(() => map({ iovaAlign }), dmaError('EINVAL', /iovaAlign is a power of two/), String(iovaAlign));
  for (const iovaAlign of ['4096', 4096n, null, {}]) assert.throws(() => map({ iovaAlign }), dmaError('EINVAL'));
  const table = new Bench();
  table.area(A, 2, { iovas: [3 * PAGE, 4 * PAGE] });
  assert.throws(
    () => table.domain.mapFor('d0', part(A, 2 * PAGE), { iovaAlign: 2 * PAGE }),
    dmaError('EINVAL', /table/),
  );
  assert.equal(table.domain.mapFor('d0', part(A + PAGE, PAGE), { iovaAlign: 4 * PAGE }).iova, 4 * PAGE);
  const identity = new Bench({ constraints: { iova: 'identity' } });
  identity.area(A + PAGE, 1);
  const aligned = (): unknown => identity.domain.mapFor('d0', part(A + PAGE, PAGE), { iovaAlign: 2 * PAGE });
  assert.throws(aligned, dmaError('EINVAL', /uses VAs as IOVAs.*not a multiple.*align: 8192/));
  assert.deepEqual([space.calls, identity.space.calls], [[], []]);
});

test('it is shared if it is a multiple, else EEXIST', () => {
  const { domain, space } = bench();
  const first = domain.mapFor('d0', part(A + PAGE, PAGE));
  assert.equal(first.iova, A + PAGE);
  assert.throws(
    () => domain.mapFor('d1', part(A + PAGE, PAGE), { iovaAlign: MiB }),
    dmaError('EEXIST', /multiple of 0x100000/),
  );
  const second = domain.mapFor('d1', part(A + PAGE, PAGE), { iovaAlign: PAGE });
  assert.deepEqual([second.iova, space.calls.length], [first.iova, 1]);
});

test('without room at a multiple: ENOSPC says so', () => {
  const { domain } = bench(PAGE, 6 * PAGE);
  assert.equal(domain.mapFor('d0', part(A + PAGE, PAGE), { iovaAlign: 4 * PAGE }).iova, 4 * PAGE);
  const again = (): unknown => domain.mapFor('d0', part(A + 2 * PAGE, PAGE), { iovaAlign: 4 * PAGE });
  assert.throws(again, dmaError('ENOSPC', /free in one piece at a multiple of 0x4000/));
  assert.ok(domain.mapFor('d0', part(A + 2 * PAGE, PAGE)).iova > 0);
});

test('any maps and unmaps, blocking or not: every IOVA is the multiple that was asked for', async () => {
  const step = fc.record({
    page: fc.nat(60),
    pages: fc.integer({ min: 1, max: 4 }),
    shift: fc.nat(10),
    isAsync: fc.boolean(),
    unmaps: fc.nat(3),
  });
  await fc.assert(
    fc.asyncProperty(fc.array(step, { maxLength: 40 }), async (steps) => {
      const made = bench(0, 64 * MiB);
      const { domain } = made;
      const live: ReturnType<typeof domain.mapFor>[] = [];
      for (const { page, pages, shift, isAsync, unmaps } of steps) {
        const target = part(A + (1 + page) * PAGE, pages * PAGE);
        const iovaAlign = PAGE * 2 ** shift;
        try {
          const mapping = isAsync
            ? await domain.mapForAsync('d0', target, { iovaAlign, chunkBytes: PAGE })
            : domain.mapFor('d0', target, { iovaAlign });
          assert.equal(mapping.iova % iovaAlign, 0);
          live.push(mapping);
        } catch (error) {
          dmaError('EEXIST')(error);
        }
        if (unmaps === 0) live.shift()?.unmap();
      }
      assert.deepEqual(made.differences(), []);
    }),
  );
});

test('through the public door: a device reaches memory at an aligned IOVA, and a group has one each', async () => {
  await using eal = await Eal.start();
  const device = await eal.probe('vdev:copy0');
  const other = await eal.probe('vdev:copy1,iommu=identity');
  const before = device.domain?.entries;
  using memory = eal.external.allocate(64 * KiB);
  using mapping = device.dmaMap(memory, { iovaAlign: GiB });
  assert.deepEqual([mapping.iova % GiB, device.iovaOf(memory)], [0, mapping.iova]);
  mapping.unmap();
  const all = (): unknown => eal.dmaMapAll(memory, [device, other], { iovaAlign: GiB });
  if (memory.va % GiB !== 0) assert.throws(all, dmaError('EINVAL', /uses VAs/));
  assert.equal(device.domain?.entries, before, 'all or none');
  const later = await device.dmaMapAsync(memory, { iovaAlign: 2 * GiB });
  assert.equal(later.iova % (2 * GiB), 0);
  later.unmap();
});
