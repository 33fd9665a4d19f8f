/** The rules of mapping, one by one. Names that begin with `DM-` are items of the conformance list. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { DmaError, isDmaError, type ErrorCode } from '../errors.js';
import { Range } from '../ranges.js';
import { GiB, KiB, MiB, type Iova, type Va } from '../units.js';
import { Domain } from './domain.js';
import { Bench, PAGE, part } from '../../test/fakes/dma/address-space.js';

/** An assertion on an error: its code and parts of its text. */
function error(code: ErrorCode, ...texts: (string | RegExp)[]): (thrown: unknown) => true {
  return (thrown) => {
    if (!isDmaError(thrown)) throw thrown;
    assert.equal(thrown.code, code, thrown.message);
    for (const text of texts)
      assert.ok(typeof text === 'string' ? thrown.message.includes(text) : text.test(thrown.message), thrown.message);
    return true;
  };
}

const A = 0x10000000;
const iova = (value: number): Iova => value as Iova;

function window(start: number, end: number): Range<Iova> {
  return Range.between(iova(start), end);
}

/** One area of 16 pages at A, mappable wherever it says. */
function bench(options: ConstructorParameters<typeof Bench>[0] = {}): Bench {
  const made = new Bench(options);
  made.area(A, 16, { label: 'the area' });
  return made;
}

// --- dispatch: what is checked before anything is done ---

test('DM-04 memory that is not registered is EINVAL, with a hint', () => {
  const { domain, space } = bench();
  assert.throws(() => domain.mapFor('d0', part(A + 64 * PAGE, PAGE)), error('EINVAL', 'not registered', 'register it'));
  assert.throws(() => domain.mapFor('d0', part(A - PAGE, 2 * PAGE)), error('EINVAL', 'not registered'));
  assert.deepEqual(space.calls, []);
});

test('DM-05 a range that ends outside of its area is EINVAL', () => {
  const made = bench();
  made.area(A + 16 * PAGE, 1, { label: 'neighbour' });
  const { domain, space } = made;
  const past = error('EINVAL', '4 KiB past the end of the area', 'stays inside one area');
  assert.throws(() => domain.mapFor('d0', part(A, 17 * PAGE)), past);
  assert.deepEqual(space.calls, []);
  domain.mapFor('d0', part(A, 16 * PAGE));
});

test('DM-06 memory that the library owns is mapped in the same way', () => {
  const made = new Bench();
  made.area(A, 4, { owner: 'owned' });
  made.area(2 * A, 4, { owner: 'heap' });
  assert.equal(made.domain.mapFor('d0', part(A, 4 * PAGE)).iova, A);
  assert.equal(made.domain.mapFor('d0', part(2 * A, PAGE)).length, PAGE);
});

test('DM-07 an address of no area is EINVAL, even when areas are around it', () => {
  const made = bench();
  made.area(A + 32 * PAGE, 1);
  assert.throws(() => made.domain.mapFor('d0', part(A + 20 * PAGE, PAGE)), error('EINVAL', 'not registered'));
});

test("DM-08 an IOVA that contradicts the area's table is EINVAL; the table is the default", () => {
  const made = new Bench();
  const iovas = Float64Array.from({ length: 8 }, (_, i) => 2 ** 32 + i * PAGE);
  made.area(A, 8, { iovas, label: 'tabled' });
  const { domain } = made;
  const says = error('EINVAL', 'tabled has an IOVA table, which says 0x100001000, not 0x10001000');
  assert.throws(() => domain.mapFor('d0', part(A + PAGE, PAGE), { iova: iova(A + PAGE) }), says);
  using mapping = domain.mapFor('d0', part(A + PAGE, 2 * PAGE));
  assert.equal(mapping.iova, 2 ** 32 + PAGE);
  using same = domain.mapFor('d1', part(A + PAGE, 2 * PAGE), { iova: iova(2 ** 32 + PAGE) });
  assert.equal(same.iova, mapping.iova);
});

test('arguments are checked first, each cause with one code', () => {
  const made = bench({ constraints: { windows: [window(A, A + GiB)] } });
  made.area(2 * A, 2, { writable: false, label: 'a picture' });
  const { domain, space } = made;
  const map = (va: number, length: number, options = {}) => domain.mapFor('d0', part(va, length), options);
  assert.throws(() => map(A, 0), error('EINVAL', '0 bytes is not a valid length'));
  assert.throws(() => map(A, -PAGE), error('EINVAL'));
  assert.throws(() => map(NaN, PAGE), error('EINVAL'));
  assert.throws(() => map(A, 1.5), error('EINVAL'));
  assert.throws(() => map(2 ** 53 - PAGE, 2 * PAGE), error('EINVAL'));
  assert.throws(() => map(A + 1, PAGE), error('EINVAL', 'not aligned', '4 KiB'));
  assert.throws(() => map(A, PAGE + 1), error('EINVAL', 'not aligned'));
  assert.throws(() => map(A, PAGE, { iova: 12 }), error('EINVAL', 'not a multiple'));
  assert.throws(() => map(A, PAGE, { iova: -PAGE }), error('EINVAL'));
  assert.throws(() => map(A, PAGE, { iova: NaN }), error('EINVAL'));
  assert.throws(() => map(A, 2 * PAGE, { iova: 2 ** 53 - PAGE }), error('EINVAL', 'not an IOVA'));
  assert.throws(() => map(A, PAGE, { access: 'rw' }), error('EINVAL', 'rw'));
  assert.throws(() => map(2 * A, PAGE, { access: 'write' }), error('EACCES', 'a picture is read-only', "'read'"));
  assert.throws(() => map(2 * A, PAGE, { access: 'read-write' }), error('EACCES'));
  assert.throws(() => map(A, PAGE, { iova: 0x1000 }), error('ERANGE', '[0x1000, 0x2000)', '[0x10000000, 0x50000000)'));
  assert.throws(() => map(A, 2 * PAGE, { iova: A + GiB - PAGE }), error('ERANGE'));
  assert.deepEqual(space.calls, []);
  assert.equal(map(2 * A, PAGE).access, 'read');
});

test('an error names operation, range and device', () => {
  const { domain } = bench();
  for (const wrong of [part(A, 0), part(A + 1, PAGE), part(2 * A, PAGE), part(A, 99 * PAGE)])
    assert.throws(
      () => domain.mapFor('vdev:x', wrong),
      (thrown) => isDmaError(thrown, 'EINVAL') && thrown.device === 'vdev:x' && thrown.operation === 'dmaMap',
    );
  const mapping = domain.mapFor('vdev:x', part(A, PAGE));
  assert.throws(
    () => domain.mapFor('vdev:y', part(A, 2 * PAGE)),
    (thrown) =>
      isDmaError(thrown, 'EEXIST') && thrown.range?.length === 2 * PAGE && /vdev:x of the area/.test(thrown.message),
  );
  mapping.unmap();
});

// --- the domain layer ---

test('DM-30 a length of 0 is EINVAL for map and unmap', () => {
  const { domain } = bench();
  assert.throws(() => domain.mapFor('d0', part(A, 0)), error('EINVAL'));
  assert.throws(() => domain.unmapFor('d0', part(A, 0)), error('EINVAL'));
});

test('DM-31 DM-32 a domain that is closed or failed takes nothing: ENODEV, nothing recorded', async () => {
  const { domain, space } = bench();
  domain.attach('d0');
  await domain.detach('d0');
  assert.throws(() => domain.mapFor('d0', part(A, PAGE)), error('ENODEV', 'closed'));
  await assert.rejects(domain.mapForAsync('d0', part(A, PAGE)), error('ENODEV', 'closed'));
  assert.deepEqual([domain.entries, space.calls.length, space.closed], [0, 0, 1]);
});

test('DM-33 the same mapping twice is one entry with two claims', () => {
  const made = bench();
  const { domain, space } = made;
  const first = domain.mapFor('d0', part(A, 4 * PAGE));
  const second = domain.mapFor('d1', part(A, 4 * PAGE));
  const third = domain.mapFor('d0', part(A, 4 * PAGE), { iova: first.iova, access: 'read-write' });
  assert.deepEqual([domain.entries, space.calls.length, [...domain.mappings()].length], [1, 1, 3]);
  assert.equal(second.iova, first.iova);
  first.unmap();
  third.unmap();
  assert.deepEqual([domain.entries, second.live, second.iova], [1, true, A]);
  assert.equal(domain.iovaOf(A + 5), A + 5);
  second.unmap();
  assert.deepEqual([domain.entries, space.table.length, domain.iovaOf(A)], [0, 0, -1]);
  assert.deepEqual(made.differences(), []);
});

test("DM-34 the space's EEXIST is an error like any other", () => {
  const { domain, space } = bench();
  space.fail('map', 1, 'EEXIST');
  assert.throws(() => domain.mapFor('d0', part(A, PAGE)), error('EEXIST', 'fake map', 'on d0'));
  assert.deepEqual([domain.entries, domain.iovaOf(A)], [0, -1]);
});

test('DM-34 overlaps that are not the very same mapping are EEXIST and name what is in the way', () => {
  const { domain } = bench();
  const inTheWay = domain.mapFor('d0', part(A + 4 * PAGE, 4 * PAGE));
  const overlaps = error('EEXIST', 'of d0 of the area', 'VA [0x10004000, 0x10008000)');
  for (const [page, pages] of [
    [3, 2],
    [7, 2],
    [5, 1],
    [4, 3],
    [5, 3],
    [0, 16],
  ])
    assert.throws(() => domain.mapFor('d1', part(A + page * PAGE, pages * PAGE)), overlaps);
  assert.throws(() => domain.mapFor('d1', inTheWay, { access: 'read' }), error('EEXIST', 'with read access'));
  assert.throws(() => domain.mapFor('d1', inTheWay, { iova: iova(0x5000) }), error('EEXIST', 'at IOVA 0x5000'));
  // Another VA, the same IOVA.
  assert.throws(
    () => domain.mapFor('d1', part(A, PAGE), { iova: iova(A + 7 * PAGE) }),
    error('EEXIST', 'IOVA 0x10007000'),
  );
  domain.mapFor('d1', part(A + 3 * PAGE, PAGE));
  domain.mapFor('d1', part(A + 8 * PAGE, PAGE));
});

test('DM-35 what the space refuses is not recorded, and its IOVA is free again', () => {
  const made = bench({ constraints: { windows: [window(PAGE, 3 * PAGE)] } });
  const { domain, space } = made;
  for (let round = 0; round < 4; round++) {
    space.fail('map', 1, 'EFAULT');
    assert.throws(() => domain.mapFor('d0', part(A, 2 * PAGE)), error('EFAULT', 'fake map: as told'));
  }
  assert.deepEqual([domain.entries, domain.bytes, made.areas.at(A)?.holders.size], [0, 0, 0]);
  assert.equal(domain.mapFor('d0', part(A, 2 * PAGE)).iova, PAGE);
});

test('DM-36 DM-37 neighbours are never merged: each is unmapped alone', () => {
  const made = bench();
  const { domain } = made;
  const left = domain.mapFor('d0', part(A, PAGE));
  const right = domain.mapFor('d0', part(A + PAGE, PAGE));
  domain.mapFor('d0', part(A + 2 * PAGE, PAGE), { iova: iova(0x1000) });
  domain.mapFor('d0', part(A + 4 * PAGE, PAGE), { iova: iova(0x2000) });
  assert.equal(domain.entries, 4);
  right.unmap();
  assert.deepEqual([left.live, domain.entries], [true, 3]);
  assert.deepEqual(made.differences(), []);
});

test('DM-38 the entry limit of the space is ENOSPC, and the space is not called', () => {
  const { domain, space } = bench({ constraints: { entryLimit: 3 } });
  for (let i = 0; i < 3; i++) domain.mapFor('d0', part(A + i * PAGE, PAGE));
  assert.throws(() => domain.mapFor('d0', part(A + 3 * PAGE, PAGE)), error('ENOSPC', 'takes 3 mappings; 0 are left'));
  domain.mapFor('d1', part(A, PAGE));
  assert.deepEqual([domain.entries, space.calls.length], [3, 3]);
});

test('DM-38 there is no limit of the library: 2,000 mappings, neither shared nor merged', () => {
  const made = new Bench();
  made.area(A, 4000);
  const mappings = Array.from({ length: 2000 }, (_, i) => made.domain.mapFor('d0', part(A + i * 2 * PAGE, PAGE)));
  assert.equal(made.domain.entries, 2000);
  for (const mapping of mappings) mapping.unmap();
  assert.deepEqual([made.domain.entries, made.differences()], [0, []]);
});

test('DM-39 unmapping exactly what was mapped, by handle or by range', () => {
  const { domain, space, areas } = bench();
  domain.mapFor('d0', part(A, 2 * PAGE));
  domain.unmapFor('d0', { ...part(A, 2 * PAGE), iova: iova(A) });
  const mapping = domain.mapFor('d0', part(A, 2 * PAGE));
  domain.unmapFor('d0', mapping);
  assert.deepEqual([mapping.live, domain.entries, space.table, areas.at(A)?.holders.size], [false, 0, [], 0]);
});

test('DM-40 unmapping what was never mapped, or twice, is EINVAL', () => {
  const { domain, space } = bench();
  assert.throws(() => domain.unmapFor('d0', part(A, PAGE)), error('EINVAL', 'nothing is mapped at its first byte'));
  const mapping = domain.mapFor('d0', part(A, PAGE));
  assert.throws(() => domain.unmapFor('d1', part(A, PAGE)), error('EINVAL', 'd0 has [0x10000000, 0x10001000) mapped'));
  mapping.unmap();
  assert.throws(() => mapping.unmap(), error('EINVAL', 'the mapping is gone'));
  assert.throws(() => domain.unmapFor('d0', part(A, PAGE)), error('EINVAL'));
  for (const read of [() => mapping.iova, () => mapping.lkey, () => mapping.rkey, () => mapping.iovaOf(A)])
    assert.throws(read, error('EINVAL'));
  mapping[Symbol.dispose]();
  assert.equal(space.calls.length, 2);
});

test('DM-41 the right VA with the wrong IOVA is EINVAL', () => {
  const { domain } = bench();
  const mapping = domain.mapFor('d0', part(A, PAGE), { iova: iova(0x7000) });
  assert.throws(
    () => domain.unmapFor('d0', { ...part(A, PAGE), iova: iova(A) }),
    error('EINVAL', 'at IOVA 0x7000, not'),
  );
  assert.equal(mapping.live, true);
  domain.unmapFor('d0', { ...part(A, PAGE), iova: iova(0x7000) });
});

test('DM-42 a space that can not cut: a part is ENOTSUP', () => {
  const { domain } = bench();
  const mapping = domain.mapFor('d0', part(A, 4 * PAGE));
  for (const [page, pages] of [
    [0, 1],
    [1, 1],
    [3, 1],
  ])
    assert.throws(
      () => domain.unmapFor('d0', part(A + page * PAGE, pages * PAGE)),
      error('ENOTSUP', 'can not unmap a part'),
    );
  assert.throws(() => domain.unmapFor('d0', part(A + 1, PAGE)), error('EINVAL', 'not aligned'));
  assert.equal(mapping.segments.length, 1);
});

test('DM-43 unmapping across two mappings is EINVAL: unmap them one by one', () => {
  const { domain } = bench({ constraints: { partialUnmap: true } });
  domain.mapFor('d0', part(A, 2 * PAGE));
  domain.mapFor('d0', part(A + 2 * PAGE, 2 * PAGE));
  assert.throws(() => domain.unmapFor('d0', part(A, 4 * PAGE)), error('EINVAL', 'mapping by mapping'));
  assert.throws(() => domain.unmapFor('d0', part(A + PAGE, 2 * PAGE)), error('EINVAL', 'mapping by mapping'));
  assert.equal(domain.entries, 2);
});

test('DM-44 a space that can cut: head, middle and tail, and what is left stays', () => {
  const made = bench({ constraints: { partialUnmap: true } });
  const { domain, space } = made;
  const mapping = domain.mapFor('d0', part(A, 8 * PAGE), { iova: iova(0x100000) });
  domain.unmapFor('d0', part(A + 2 * PAGE, 2 * PAGE));
  assert.deepEqual(mapping.segments, [
    { ...part(A, 2 * PAGE), iova: 0x100000 },
    { ...part(A + 4 * PAGE, 4 * PAGE), iova: 0x104000 },
  ]);
  assert.deepEqual(
    [domain.iovaOf(A + PAGE), domain.iovaOf(A + 2 * PAGE), domain.vaOf(0x103000)],
    [0x101000, -1, undefined],
  );
  domain.unmapFor('d0', part(A, PAGE));
  domain.unmapFor('d0', part(A + 7 * PAGE, PAGE));
  assert.deepEqual(
    mapping.segments.map((each) => [each.va - A, each.length]),
    [
      [PAGE, PAGE],
      [4 * PAGE, 3 * PAGE],
    ],
  );
  assert.throws(() => domain.unmapFor('d0', part(A + PAGE, 2 * PAGE)), error('EINVAL', 'unmapped already'));
  assert.throws(() => domain.mapFor('d0', part(A, 8 * PAGE)), error('EEXIST'));
  assert.deepEqual(made.differences(), []);
  // The hole can be mapped again, and the whole handle unmaps only what is its own.
  const hole = domain.mapFor('d1', part(A + 2 * PAGE, 2 * PAGE));
  mapping.unmap();
  assert.deepEqual(
    space.table.map(({ va }) => va),
    [hole.va],
  );
  assert.deepEqual([made.differences(), [...(made.areas.at(A)?.holders.keys() ?? [])]], [[], ['d1']]);
});

test('DM-44 a mapping of many pieces knows the addresses of its own, also where another one is in a hole of it', () => {
  const made = new Bench({ constraints: { partialUnmap: true } });
  const iovas = Array.from({ length: 8 }, (_, page) => 0x100000 + ((page * 3) % 8) * 2 * PAGE);
  made.area(A, 8, { iovas });
  const { domain } = made;
  const mapping = domain.mapFor('d0', part(A, 8 * PAGE));
  for (let page = 0; page < 8; page++) {
    assert.equal(mapping.iovaOf((A + page * PAGE + 17) as Va), iovas[page] + 17);
    assert.throws(() => mapping.iovaOf(A + page * PAGE + 0.5), error('EINVAL'));
  }
  for (const outside of [A - 1, A + 8 * PAGE]) assert.throws(() => mapping.iovaOf(outside), error('EINVAL'));
  domain.unmapFor('d0', part(A + 2 * PAGE, PAGE));
  const hole = domain.mapFor('d1', part(A + 2 * PAGE, PAGE));
  assert.throws(() => mapping.iovaOf(A + 2 * PAGE), error('EINVAL', 'not in this mapping'));
  assert.deepEqual([hole.iovaOf((A + 2 * PAGE) as Va), mapping.iovaOf((A + 3 * PAGE) as Va)], [iovas[2], iovas[3]]);
});

test('DM-44 cutting all parts off one by one ends the mapping', () => {
  const made = bench({ constraints: { partialUnmap: true } });
  const mapping = made.domain.mapFor('d0', part(A, 3 * PAGE));
  for (const page of [0, 2, 1]) made.domain.unmapFor('d0', part(A + page * PAGE, PAGE));
  assert.deepEqual([mapping.live, made.domain.entries, made.areas.at(A)?.holders.size], [false, 0, 0]);
  assert.deepEqual([...made.domain.mappings()], []);
});

test('DM-44 a part of what another device maps too is EBUSY', () => {
  const { domain } = bench({ constraints: { partialUnmap: true } });
  domain.mapFor('d0', part(A, 4 * PAGE));
  const other = domain.mapFor('d1', part(A, 4 * PAGE));
  assert.throws(() => domain.unmapFor('d0', part(A, PAGE)), error('EBUSY', '2 times', 'd0, d1'));
  other.unmap();
  domain.unmapFor('d0', part(A, PAGE));
});

test('DM-45 a cut that would need more entries than there are is ENOSPC; one that needs none is done', () => {
  const made = bench({ constraints: { partialUnmap: true, entryLimit: 2 } });
  const { domain } = made;
  const mapping = domain.mapFor('d0', part(A, 8 * PAGE));
  domain.mapFor('d0', part(A + 8 * PAGE, PAGE));
  assert.throws(() => domain.unmapFor('d0', part(A + PAGE, PAGE)), error('ENOSPC', '2'));
  assert.equal(mapping.segments[0].length, 8 * PAGE);
  domain.unmapFor('d0', part(A, PAGE));
  domain.unmapFor('d0', part(A + 7 * PAGE, PAGE));
  assert.equal(mapping.segments[0].length, 6 * PAGE);
  assert.deepEqual(made.differences(), []);
});

test('DM-46 a wrong number of unmapped bytes is EIO; the mapping stays on the books and can be unmapped again', () => {
  const made = bench();
  const { domain, space, areas } = made;
  const mapping = domain.mapFor('d0', part(A, 2 * PAGE));
  for (const bytes of [0, PAGE, 3 * PAGE]) {
    space.fail('unmap', 1, { bytes });
    assert.throws(() => mapping.unmap(), error('EIO', `unmapped ${bytes} bytes instead of 8192`, 'may still reach'));
    assert.deepEqual([mapping.live, domain.entries, areas.at(A)?.holders.get('d0')], [true, 1, 1]);
  }
  mapping.unmap();
  assert.deepEqual([domain.entries, made.differences()], [0, []]);
});

test('DM-47 a domain without IOMMU keeps the same books', () => {
  const { domain } = bench({ constraints: { iova: 'identity' } });
  using mapping = domain.mapFor('d0', part(A, PAGE));
  assert.equal(mapping.iova, A);
  assert.throws(() => domain.mapFor('d1', part(A, 2 * PAGE)), error('EEXIST'));
  assert.throws(
    () => domain.mapFor('d1', part(A + PAGE, PAGE), { iova: iova(0x1000) }),
    error('EINVAL', 'uses VAs as IOVAs'),
  );
  domain.mapFor('d1', part(A + PAGE, PAGE), { iova: iova(A + PAGE) });
});

test('DM-48 nothing is replayed into a new domain by itself: the old one is empty, and so is the new one', async () => {
  const old = bench();
  old.domain.mapFor('d0', part(A, PAGE));
  await old.domain.detach('d0');
  assert.deepEqual([old.domain.entries, old.space.table, old.areas.at(A)?.holders.size], [0, [], 0]);
  const next = new Bench({ areas: old.areas });
  next.domain.attach('d0');
  assert.deepEqual([next.domain.entries, [...next.domain.mappings()]], [0, []]);
});

// --- placement ---

test('without an IOVA: the VA where the windows allow it, else what is free, never twice', () => {
  const made = bench({ constraints: { windows: [window(0, 0x100000), window(A + 8 * PAGE, A + 16 * PAGE)] } });
  const { domain } = made;
  assert.equal(domain.mapFor('d0', part(A + 8 * PAGE, PAGE)).iova, A + 8 * PAGE);
  const low = domain.mapFor('d0', part(A, 4 * PAGE));
  assert.ok(low.iova > 0 && low.iova < 0x100000);
  domain.mapFor('d0', part(A + 4 * PAGE, PAGE), { iova: iova(A + 9 * PAGE) });
  const moved = domain.mapFor('d0', part(A + 9 * PAGE, PAGE));
  assert.notEqual(moved.iova, A + 9 * PAGE);
  assert.deepEqual(made.differences(), []);
});

test('IOVAs of hugepage memory are on boundaries of its pages', () => {
  const made = new Bench({ constraints: { windows: [window(PAGE, GiB)] } });
  made.area(2 * GiB, 4, { pageSize: 2 * MiB });
  made.area(A, 1);
  made.domain.mapFor('d0', part(A, PAGE), { iova: iova(PAGE) });
  assert.equal(made.domain.mapFor('d0', part(2 * GiB, 4 * MiB)).iova % (2 * MiB), 0);
});

test('windows that touch are one: for the IOVA that is asked for, and for the one that is chosen', () => {
  const half = A + 8 * PAGE;
  const made = bench({ constraints: { windows: [window(half, A + 16 * PAGE), window(A, half)] } });
  const whole = part(A, 16 * PAGE);
  for (const options of [{}, { iova: iova(A) }]) made.domain.mapFor('d0', whole, options).unmap();
  made.area(2 * A, 16);
  assert.equal(made.domain.mapFor('d0', part(2 * A, 16 * PAGE)).iova, A);
});

test('an IOVA is aligned to pages of memory where that can be had, and never refused because it can not', () => {
  const pageSize = 256 * MiB;
  const made = new Bench({ constraints: { windows: [window(0, 2 ** 28)] } });
  made.area(2 ** 40, 1, { pageSize });
  for (const offset of [0, PAGE, 4 * PAGE]) {
    const mapping = made.domain.mapFor('d0', part(2 ** 40 + offset, PAGE));
    assert.equal(made.domain.iovaOf(mapping.va), mapping.iova);
    mapping.unmap();
  }
  const low = new Bench({ constraints: { windows: [window(0, 2 ** 30)] } });
  low.area(2 ** 40, 1, { pageSize });
  assert.equal(low.domain.mapFor('d0', part(2 ** 40, pageSize)).iova, pageSize);
});

test('no IOVA left is ENOSPC, and says what there is', () => {
  const { domain, space } = bench({ constraints: { windows: [window(PAGE, 5 * PAGE)] } });
  domain.mapFor('d0', part(A, 3 * PAGE));
  assert.throws(
    () => domain.mapFor('d0', part(A + 8 * PAGE, 2 * PAGE)),
    error('ENOSPC', 'no 8 KiB of IOVAs', '4 KiB are free', '[0x1000, 0x5000)'),
  );
  assert.equal(space.calls.length, 1);
  domain.mapFor('d0', part(A + 8 * PAGE, PAGE));
});

test('no IOVA left for a later piece: those before it are given back', () => {
  const made = new Bench({ constraints: { windows: [window(0, 0x10000)] } });
  made.area(A, 2, { iovas: [0x4000, 0x4000], label: 'twice' });
  made.area(2 * A, 1);
  const { domain } = made;
  assert.throws(() => domain.mapFor('d0', part(A, 2 * PAGE)), error('EINVAL', '0x4000 to two parts'));
  assert.deepEqual([domain.entries, domain.bytes], [0, 0]);
  assert.equal(domain.mapFor('d0', part(2 * A, PAGE), { iova: iova(0x4000) }).iova, 0x4000);
});

test('a table with breaks becomes one entry a run; the handle tells each address', () => {
  const made = new Bench();
  const iovas = [0x100000, 0x101000, 0x300000, 0x200000].map(Number);
  made.area(A, 4, { iovas });
  const { domain, space } = made;
  const mapping = domain.mapFor('d0', part(A, 4 * PAGE));
  assert.deepEqual(
    mapping.segments.map((each) => [each.va - A, each.iova, each.length]),
    [
      [0, 0x100000, 2 * PAGE],
      [2 * PAGE, 0x300000, PAGE],
      [3 * PAGE, 0x200000, PAGE],
    ],
  );
  assert.deepEqual([domain.entries, space.calls.length], [3, 3]);
  for (const at of [0, 5000, 2 * PAGE, 3 * PAGE + 17])
    assert.deepEqual(
      [mapping.iovaOf((A + at) as Va), domain.iovaOf(A + at), domain.vaOf(iovas[Math.floor(at / PAGE)] + (at % PAGE))],
      [iovas[Math.floor(at / PAGE)] + (at % PAGE), iovas[Math.floor(at / PAGE)] + (at % PAGE), A + at],
    );
  const share = domain.mapFor('d1', part(A, 4 * PAGE));
  mapping.unmap();
  assert.equal(share.segments.length, 3);
  share.unmap();
  assert.deepEqual([domain.entries, made.differences()], [0, []]);
});

test('when the third of three pieces fails, two are undone, the last first', () => {
  const made = new Bench();
  made.area(A, 3, { iovas: [0x30000, 0x20000, 0x10000] });
  const { domain, space, areas } = made;
  space.fail('map', 3, 'EFAULT');
  assert.throws(() => domain.mapFor('d0', part(A, 3 * PAGE)), error('EFAULT'));
  assert.deepEqual(
    space.calls.map(({ call, segment }) => [call, segment.iova]),
    [
      ['map', 0x30000],
      ['map', 0x20000],
      ['map', 0x10000],
      ['unmap', 0x20000],
      ['unmap', 0x30000],
    ],
  );
  assert.deepEqual([domain.entries, areas.at(A)?.holders.size, made.differences()], [0, 0, []]);
});

test('an undo that fails is told, stays on the books, and keeps the memory', async () => {
  const made = new Bench();
  const area = made.area(A, 3, { iovas: [0x30000, 0x20000, 0x10000] });
  const { domain, space } = made;
  space.fail('map', 3, 'EFAULT');
  space.fail('unmap', 1, { bytes: 0 });
  assert.throws(
    () => domain.mapFor('d0', part(A, 3 * PAGE)),
    (thrown) => isDmaError(thrown, 'EFAULT') && thrown.undo.length === 1 && isDmaError(thrown.undo[0], 'EIO'),
  );
  assert.deepEqual([domain.entries, space.table.length, area.holders.get('d0')], [1, 1, 1]);
  assert.throws(() => domain.mapFor('d0', part(A, 3 * PAGE)), error('EEXIST', 'stuck'));
  assert.throws(() => domain.mapFor('d0', part(A + PAGE, PAGE)), error('EEXIST', 'stuck'));
  assert.throws(() => domain.unmapFor('d0', part(A + PAGE, PAGE)), error('EINVAL'));
  domain.attach('d1');
  await domain.detach('d0');
  assert.equal(area.holders.get('d0'), 1);
  await domain.detach('d1');
  assert.deepEqual([area.holders.size, domain.entries], [0, 0]);
});

test('windows that change are used from the next mapping on', () => {
  const made = bench({ constraints: { windows: [window(0x100000, 0x200000)] } });
  const { domain, space } = made;
  const before = domain.mapFor('d0', part(A, PAGE));
  assert.equal(before.iova, 0x100000);
  space.constraints = { ...space.constraints, windows: [window(0x800000, 0x900000)] };
  assert.equal(domain.mapFor('d0', part(A + PAGE, PAGE)).iova, 0x800000);
  before.unmap();
  assert.throws(() => domain.mapFor('d0', part(A, PAGE), { iova: iova(0x100000) }), error('ERANGE'));
});

test('keys come with the mapping, and into the table', () => {
  const { domain } = bench({
    constraints: { iova: 'ignored', windows: [] },
    keys: ({ va }) => ({ lkey: va / PAGE, rkey: 7 }),
  });
  const mapping = domain.mapFor('d0', part(A, 2 * PAGE));
  assert.deepEqual([mapping.iova, mapping.lkey, mapping.rkey], [A, A / PAGE, 7]);
  assert.equal(domain.table.keyOf(A + PAGE), A / PAGE);
  assert.throws(
    () => domain.mapFor('d0', part(A + 2 * PAGE, PAGE), { iova: iova(0x1000) }),
    error('EINVAL', 'no effect'),
  );
  mapping.unmap();
  assert.equal(domain.table.keyOf(A), -1);
});

test('the locked-memory limit is checked before, with live facts', () => {
  const made = bench({ constraints: { pins: true } });
  made.locked = { limit: 8 * KiB, used: 4 * KiB };
  assert.throws(
    () => made.domain.mapFor('d0', part(A, 2 * PAGE)),
    error('ENOMEM', 'RLIMIT_MEMLOCK is 8 KiB, 4 KiB of it are used, this mapping needs 8 KiB more', 'ulimit -l'),
  );
  assert.equal(made.space.calls.length, 0);
  made.domain.mapFor('d0', part(A, PAGE));
  made.locked = { limit: 8 * KiB, used: 8 * KiB };
  made.domain.mapFor('d1', part(A, PAGE));
});

test('a granule that translation can not hold is refused when the domain is made', () => {
  assert.throws(() => bench({ constraints: { granule: 512 } }), error('EINVAL', '512 bytes'));
  assert.throws(() => bench({ constraints: { granule: 3 * PAGE } }), error('EINVAL'));
});

test('a translation table that can not grow is ENOMEM, and nothing is left in the space', async () => {
  const made = new Bench({ constraints: { windows: [new Range(iova(0), 2 ** 53 - 1)] } });
  const area = made.area(0x1000, 2 ** 40 - 1, { label: 'more than all memory' });
  await assert.rejects(
    made.domain.mapForAsync('d0', part(0x1000, 2 ** 52 - PAGE)),
    error('ENOMEM', 'translation table'),
  );
  assert.throws(() => made.domain.mapFor('d0', part(0x1000, 2 ** 52 - PAGE)), error('ENOMEM', 'translation table'));
  assert.deepEqual([made.domain.entries, made.space.table, area.holders.size, made.differences()], [0, [], 0, []]);
  // The asynchronous form notices before it maps.
  assert.equal(made.space.calls.length, 2);
});

test('IOVAs past what a number holds are refused by the windows', () => {
  const made = bench({ constraints: { windows: [new Range(iova(0), 2 ** 53 - 1)] } });
  assert.throws(() => made.domain.mapFor('d0', part(A, PAGE), { iova: iova(2 ** 53 - PAGE) }), error('ERANGE'));
  assert.equal(made.domain.mapFor('d0', part(A, PAGE), { iova: iova(2 ** 53 - 2 * PAGE) }).iova, 2 ** 53 - 2 * PAGE);
  assert.equal(made.domain.iovaOf(A + 1), 2 ** 53 - 2 * PAGE + 1);
});

// --- what devices may reach ---

test('resolve: the address, or why not', () => {
  const made = bench();
  made.domain.mapFor('d0', part(A, 2 * PAGE), { iova: iova(0x8000), access: 'read' });
  const { domain } = made;
  const there = domain.resolve(0x8010, 16, 'read');
  assert.ok(typeof there === 'object' && there.va === A + 0x10 && there.area === made.areas.at(A));
  assert.equal(domain.resolve(0x8010, 16, 'write'), 'EACCES');
  assert.equal(domain.resolve(0x8000, 2 * PAGE + 1, 'read'), 'EFAULT');
  assert.equal(domain.resolve(0x7fff, 1, 'read'), 'EFAULT');
});

// --- devices come and go ---

test('a device that leaves takes its mappings along, the last one first; shared ones stay', async () => {
  const made = bench();
  const { domain, space, areas } = made;
  domain.mapFor('d0', part(A, PAGE));
  const shared = domain.mapFor('d1', part(A, PAGE));
  const own = domain.mapFor('d0', part(A + PAGE, PAGE));
  domain.mapFor('d0', part(A + 2 * PAGE, PAGE));
  space.calls.length = 0;
  await domain.detach('d0');
  assert.deepEqual(
    space.calls.map(({ segment }) => segment.va),
    [A + 2 * PAGE, A + PAGE],
  );
  assert.deepEqual([shared.live, own.live, [...domain.devices], domain.entries], [true, false, ['d1'], 1]);
  assert.deepEqual([...(areas.at(A)?.holders ?? [])], [['d1', 1]]);
  assert.throws(() => own.unmap(), error('EINVAL', 'gone'));
  assert.equal(space.closed, 0);
  await domain.detach('d1');
  assert.deepEqual([space.closed, space.table], [1, []]);
  await domain.detach('d1');
  assert.equal(space.closed, 1);
});

test('a device that leaves while the space refuses: it is gone, the rest is tried, the entry sticks', async () => {
  const made = bench();
  const { domain, space, areas } = made;
  domain.attach('d1');
  domain.mapFor('d0', part(A, PAGE));
  domain.mapFor('d0', part(A + PAGE, PAGE));
  domain.mapFor('d0', part(A + 2 * PAGE, PAGE));
  space.fail('unmap', 2, 'EIO');
  await assert.rejects(domain.detach('d0'), error('EIO'));
  assert.deepEqual([[...domain.devices], domain.entries, space.table.length], [['d1'], 1, 1]);
  assert.deepEqual([...(areas.at(A)?.holders ?? [])], [['d0', 1]]);
  // What sticks is nobody's any more: it is in the way, can not be shared, and can not be unmapped by range.
  assert.throws(() => domain.mapFor('d1', part(A + PAGE, PAGE)), error('EEXIST', 'stuck'));
  assert.throws(() => domain.mapFor('d1', part(A + PAGE, PAGE), { iova: iova(A + PAGE) }), error('EEXIST', 'stuck'));
  await assert.rejects(domain.mapForAsync('d1', part(A + PAGE, PAGE)), error('EEXIST', 'stuck'));
  assert.throws(() => domain.unmapFor('d0', part(A + PAGE, PAGE)), error('EINVAL'));
  assert.throws(
    () => domain.mapFor('d1', part(A + 2 * PAGE, PAGE), { iova: iova(A + PAGE) }),
    error('EEXIST', 'stuck'),
  );
  assert.match(domain.explain(iova(A + PAGE)).text, /stuck/);
  assert.deepEqual(made.differences(), []);
  domain.attach('d0');
  assert.throws(() => domain.unmapFor('d0', part(A + PAGE, PAGE)), error('EINVAL'));
  await domain.detach('d0');
  await domain.detach('d1');
  assert.deepEqual([areas.at(A)?.holders.size, space.closed], [0, 1]);
});

test('when the other side dies, the books are cleared and memory is free', () => {
  const { domain, areas } = bench();
  const mapping = domain.mapFor('d0', part(A, PAGE));
  domain.mapFor('d1', part(A, PAGE));
  domain.fail(new DmaError({ code: 'ECONNRESET', operation: 'dma', reason: 'the server died' }));
  assert.deepEqual([domain.entries, domain.bytes, [...domain.mappings()], mapping.live], [0, 0, [], false]);
  assert.deepEqual([areas.at(A)?.holders.size, domain.iovaOf(A), domain.vaOf(A)], [0, -1, undefined]);
  assert.throws(() => domain.mapFor('d0', part(A, PAGE)), error('ENODEV', 'the server died'));
  mapping.unmap();
});

test('a failed domain is closed too, once, when its last device leaves', async () => {
  const { domain, space } = bench();
  domain.attach('d0');
  domain.attach('d1');
  domain.fail(new DmaError({ code: 'ENODEV', operation: 'dma', reason: 'pulled' }));
  await domain.detach('d0');
  assert.equal(space.closed, 0);
  await domain.detach('d1');
  await domain.detach('d1');
  assert.equal(space.closed, 1);
});

for (const asynchronous of [false, true]) {
  const form = asynchronous ? 'asynchronous' : 'synchronous';

  test(`the other side dies in the middle of an unmap (${form}): that is unmapped, too`, async () => {
    const made = bench({ asynchronous, constraints: { partialUnmap: true } });
    const { domain, space, areas } = made;
    const dies = (): void => domain.fail(new DmaError({ code: 'ECONNRESET', operation: 'dma', reason: 'died' }));
    const mapping = domain.mapFor('d0', part(A, 4 * PAGE));
    domain.mapFor('d0', part(A + 8 * PAGE, PAGE));
    space.fail('unmap', 1, { dies });
    if (asynchronous) await mapping.unmapAsync();
    else mapping.unmap();
    assert.deepEqual([mapping.live, domain.entries, areas.at(A)?.holders.size], [false, 0, 0]);
    await domain.detach('d0');
    assert.deepEqual([...domain.devices], []);
  });

  test(`the other side dies in the middle of a map (${form}): nothing is left`, async () => {
    const made = new Bench({ asynchronous });
    const area = made.area(A, 3, { iovas: [0x30000, 0x20000, 0x10000] });
    const { domain, space } = made;
    const dies = (): void => domain.fail(new DmaError({ code: 'ECONNRESET', operation: 'dma', reason: 'died' }));
    space.fail('map', 2, { dies });
    if (asynchronous) await assert.rejects(domain.mapForAsync('d0', part(A, 3 * PAGE)), error('ENODEV'));
    else assert.throws(() => domain.mapFor('d0', part(A, 3 * PAGE)), error('ENODEV'));
    assert.deepEqual([domain.entries, area.holders.size, [...domain.mappings()]], [0, 0, []]);
  });
}

test('the other side dies in the middle of a cut, and of a detach', async () => {
  for (const how of ['cut', 'detach']) {
    const { domain, space, areas } = bench({ constraints: { partialUnmap: true } });
    const dies = (): void => domain.fail(new DmaError({ code: 'ECONNRESET', operation: 'dma', reason: 'died' }));
    domain.mapFor('d0', part(A, 4 * PAGE));
    domain.mapFor('d0', part(A + 8 * PAGE, PAGE));
    space.fail('unmap', 1, { dies });
    if (how === 'cut') domain.unmapFor('d0', part(A, PAGE));
    else await domain.detach('d0');
    assert.deepEqual([domain.entries, areas.at(A)?.holders.size], [0, 0]);
  }
});

// --- in pieces, and at the same time ---

test('mapAsync maps in pieces, tells how far it is, and unmaps as one', async () => {
  for (const asynchronous of [false, true]) {
    const made = bench({ asynchronous });
    const { domain, space } = made;
    const progress: number[] = [];
    const mapping = await domain.mapForAsync('d0', part(A, 16 * PAGE), {
      chunkBytes: 5 * PAGE,
      onProgress: ({ doneBytes, totalBytes }) => progress.push(doneBytes / totalBytes),
    });
    assert.deepEqual(progress, [5 / 16, 10 / 16, 15 / 16, 1]);
    assert.deepEqual([domain.entries, space.calls.length, mapping.segments.length], [4, 4, 1]);
    assert.equal(mapping.segments[0].length, 16 * PAGE);
    assert.deepEqual(made.differences(), []);
    const share = await domain.mapForAsync('d1', part(A, 16 * PAGE), {
      onProgress: ({ doneBytes }) => progress.push(doneBytes),
    });
    assert.equal(progress.at(-1), 16 * PAGE);
    await mapping.unmapAsync();
    assert.deepEqual([share.live, mapping.live, domain.entries], [true, false, 4]);
    await share[Symbol.asyncDispose]();
    await share[Symbol.asyncDispose]();
    assert.deepEqual([domain.entries, space.table], [0, []]);
    await assert.rejects(share.unmapAsync(), error('EINVAL', 'gone'));
  }
});

test('pieces: whole pages and granules, as many as fit into the entry limit, by default such of pinned memory as take some milliseconds', async () => {
  const made = bench({ constraints: { entryLimit: 5 } });
  made.domain.mapFor('d0', part(A, PAGE));
  const mapping = await made.domain.mapForAsync('d0', part(A + PAGE, 15 * PAGE), { chunkBytes: 1 });
  assert.ok(made.domain.entries <= 5 && made.domain.entries > 2);
  await mapping.unmapAsync();

  const coarse = new Bench({ constraints: { granule: 64 * KiB } });
  coarse.area(16 * MiB, 64);
  const rough = await coarse.domain.mapForAsync('d0', part(16 * MiB, 64 * PAGE), { chunkBytes: 5 * PAGE });
  assert.deepEqual([coarse.domain.entries, coarse.differences()], [4, []]);
  rough.unmap();

  const pinned = new Bench({ constraints: { pins: true } });
  pinned.area(4 * GiB, 512, { pageSize: 2 * MiB });
  const quick = await pinned.domain.mapForAsync('d0', part(4 * GiB, GiB));
  // 4 MiB, and twice as much each time, as long as it takes no time.
  assert.ok(pinned.domain.entries > 4 && pinned.domain.entries <= 256, `${pinned.domain.entries} entries`);
  assert.ok(quick.entries.every(({ va, length }) => va % (2 * MiB) === 0 && length % (2 * MiB) === 0));

  const free = new Bench();
  free.area(4 * GiB, 512, { pageSize: 2 * MiB });
  await free.domain.mapForAsync('d0', part(4 * GiB, GiB), { chunkBytes: Infinity });
  assert.equal(free.domain.entries, 1);
  for (const chunkBytes of [0, -1, NaN, 4096n as never, '4096' as never])
    await assert.rejects(
      free.domain.mapForAsync('d0', part(4 * GiB, GiB), { chunkBytes }),
      error('EINVAL', String(chunkBytes)),
    );
  assert.equal(free.domain.entries, 1);
});

test('an aborted mapAsync leaves nothing', async () => {
  for (const asynchronous of [false, true]) {
    const made = bench({ asynchronous });
    const { domain, areas } = made;
    for (const at of [0, 1, 2, 3, 4]) {
      const stop = new AbortController();
      let left = at;
      if (at === 0) stop.abort();
      const signal = stop.signal;
      const onProgress = (): void => (--left === 0 ? stop.abort(new Error('enough')) : undefined);
      await assert.rejects(
        domain.mapForAsync('d0', part(A, 16 * PAGE), { chunkBytes: 4 * PAGE, signal, onProgress }),
        error('ECANCELED', 'given up', 'on d0'),
      );
      assert.deepEqual([domain.entries, made.differences(), areas.at(A)?.holders.size], [0, [], 0]);
    }
  }
});

test('a mapAsync whose space fails, or whose listener throws, leaves nothing', async () => {
  for (const asynchronous of [false, true]) {
    const made = bench({ asynchronous });
    const { domain, space, areas } = made;
    for (const at of [1, 2, 3, 4]) {
      space.fail('map', at, 'ENOMEM');
      await assert.rejects(
        domain.mapForAsync('d0', part(A, 16 * PAGE), { chunkBytes: 4 * PAGE }),
        error('ENOMEM', 'fake map'),
      );
      assert.deepEqual([domain.entries, made.differences(), areas.at(A)?.holders.size], [0, [], 0]);
    }
    const boom = (): never => {
      throw new TypeError('boom');
    };
    await assert.rejects(
      domain.mapForAsync('d0', part(A, PAGE), { onProgress: boom }),
      error('ECANCELED', 'onProgress threw: boom'),
    );
    assert.deepEqual([domain.entries, areas.at(A)?.holders.size], [0, 0]);
    const shared = domain.mapFor('d1', part(A, PAGE));
    await assert.rejects(
      domain.mapForAsync('d0', part(A, PAGE), { onProgress: boom }),
      error('ECANCELED', 'onProgress threw: boom'),
    );
    assert.deepEqual(
      [domain.entries, [...domain.mappings()], [...(areas.at(A)?.holders ?? [])]],
      [1, [shared], [['d1', 1]]],
    );
  }
});

test('an undo of a mapAsync that fails sticks', async () => {
  for (const asynchronous of [false, true]) {
    const made = bench({ asynchronous });
    const { domain, space, areas } = made;
    space.fail('map', 3, 'ENOMEM');
    space.fail('unmap', 2, 'EIO');
    await assert.rejects(
      domain.mapForAsync('d0', part(A, 16 * PAGE), { chunkBytes: 4 * PAGE }),
      (thrown) => isDmaError(thrown, 'ENOMEM') && thrown.undo.length === 1,
    );
    assert.deepEqual([domain.entries, space.table.length, areas.at(A)?.holders.get('d0')], [1, 1, 1]);
    assert.deepEqual(made.differences(), []);
  }
});

test('what is just being mapped or unmapped is EBUSY, for everything that touches it', async () => {
  const made = bench({ asynchronous: true, constraints: { partialUnmap: true } });
  const { domain, space, areas } = made;
  let proceed = space.hold();
  const mapping = domain.mapForAsync('d0', part(A, 4 * PAGE));
  const busy = error('EBUSY', 'wait until that has ended');
  assert.throws(() => domain.mapFor('d1', part(A, 4 * PAGE)), busy);
  assert.throws(() => domain.mapFor('d1', part(A + PAGE, PAGE)), busy);
  assert.throws(() => domain.mapFor('d1', part(A + 8 * PAGE, PAGE), { iova: iova(A) }), busy);
  await assert.rejects(domain.mapForAsync('d0', part(A, 4 * PAGE)), busy);
  assert.throws(() => domain.unmapFor('d0', part(A, 4 * PAGE)), error('EINVAL'));
  assert.equal(areas.at(A)?.holders.get('d0'), 1);
  assert.deepEqual([domain.iovaOf(A), [...domain.mappings()]], [-1, []]);
  proceed();
  const mapped = await mapping;
  assert.deepEqual([mapped.live, areas.at(A)?.holders.get('d0')], [true, 1]);

  proceed = space.hold();
  const gone = mapped.unmapAsync();
  const again = mapped.unmapAsync();
  assert.throws(() => mapped.unmap(), error('EBUSY'));
  assert.throws(() => domain.unmapFor('d0', part(A, 4 * PAGE)), error('EBUSY'));
  assert.throws(() => domain.unmapFor('d0', part(A, PAGE)), error('EBUSY'));
  assert.throws(() => domain.mapFor('d1', part(A, 4 * PAGE)), busy);
  assert.equal(domain.resolve(A, 1, 'read'), 'EFAULT');
  proceed();
  await Promise.all([gone, again]);
  assert.deepEqual([mapped.live, domain.entries, areas.at(A)?.holders.size], [false, 0, 0]);
});

test('an unmapAsync that fails leaves the rest mapped, and can be tried again', async () => {
  const made = bench({ asynchronous: true });
  const { domain, space } = made;
  const mapping = await domain.mapForAsync('d0', part(A, 16 * PAGE), { chunkBytes: 4 * PAGE });
  space.fail('unmap', 2, 'EIO');
  await assert.rejects(mapping.unmapAsync(), error('EIO'));
  assert.deepEqual([mapping.live, domain.entries, mapping.segments[0].length], [true, 3, 12 * PAGE]);
  assert.throws(() => domain.mapFor('d1', part(A, 16 * PAGE)), error('EEXIST'));
  assert.deepEqual([made.differences(), domain.iovaOf(A), domain.iovaOf(A + 15 * PAGE)], [[], A, -1]);
  await mapping.unmapAsync();
  assert.deepEqual([domain.entries, made.differences()], [0, []]);
});

test('a device that leaves gives up what it is mapping, and waits for what it is unmapping', async () => {
  const made = bench({ asynchronous: true });
  const { domain, space, areas } = made;
  domain.attach('d1');
  const old = domain.mapFor('d0', part(A + 8 * PAGE, PAGE));
  const proceed = space.hold();
  const mapping = domain.mapForAsync('d0', part(A, 8 * PAGE), { chunkBytes: PAGE });
  const unmapping = old.unmapAsync();
  const left = domain.detach('d0');
  proceed();
  await assert.rejects(mapping, error('ECANCELED', 'd0 is leaving'));
  await unmapping;
  await left;
  assert.deepEqual([domain.entries, [...domain.devices], areas.at(A)?.holders.size], [0, ['d1'], 0]);
  assert.deepEqual(made.differences(), []);
});

test('what a device begins to map while it leaves is given up, too', async () => {
  const made = bench({ asynchronous: true });
  const { domain, space } = made;
  domain.attach('d1');
  const proceed = space.hold();
  const first = domain.mapForAsync('d0', part(A, PAGE));
  const left = domain.detach('d0');
  const second = domain.mapForAsync('d0', part(A + PAGE, 8 * PAGE), { chunkBytes: PAGE });
  proceed();
  const results = await Promise.allSettled([first, second, left]);
  assert.deepEqual(
    results.map((each) => each.status),
    ['rejected', 'rejected', 'fulfilled'],
  );
  assert.deepEqual([[...domain.devices], domain.entries, space.table], [['d1'], 0, []]);
});

test('a domain that fails ends what is running', async () => {
  for (const asynchronous of [false, true]) {
    const made = bench({ asynchronous });
    const { domain, space, areas } = made;
    const old = domain.mapFor('d0', part(A + 8 * PAGE, PAGE));
    const proceed = space.hold();
    const mapping = domain.mapForAsync('d0', part(A, 8 * PAGE), { chunkBytes: PAGE });
    const unmapping = asynchronous ? old.unmapAsync() : undefined;
    const calls = space.calls.length;
    domain.fail(new DmaError({ code: 'ECONNRESET', operation: 'dma', reason: 'died' }));
    proceed();
    await assert.rejects(mapping, error('ENODEV', 'died'));
    await unmapping;
    assert.deepEqual([domain.entries, areas.at(A)?.holders.size, [...domain.mappings()]], [0, 0, []]);
    // Without asynchronous calls nothing was under way, and nothing is begun on a domain that failed.
    if (!asynchronous) assert.equal(space.calls.length, calls);
  }
});

test('two Domains do not know each other: the same memory in both', () => {
  const one = bench();
  const other = new Domain({
    name: 'other',
    space: new Bench().space,
    areas: one.areas,
    limits: { lockedMemory: () => one.locked },
  });
  const mapping = one.domain.mapFor('d0', part(A, PAGE));
  other.mapFor('d9', part(A, PAGE), { iova: iova(0x1000) });
  mapping.unmap();
  assert.deepEqual([...(one.areas.at(A)?.holders ?? [])], [['d9', 1]]);
  other.unmapFor('d9', part(A, PAGE));
});

test('using: a mapping lives as long as its block, and what is disposed twice is unmapped once', async () => {
  const made = bench({ asynchronous: true });
  const { domain, space } = made;
  {
    using first = domain.mapFor('d0', part(A, PAGE));
    await using second = await domain.mapForAsync('d0', part(A + PAGE, PAGE));
    assert.deepEqual([first.live, second.live, domain.entries], [true, true, 2]);
  }
  assert.deepEqual([domain.entries, space.calls.filter(({ call }) => call === 'unmap').length], [0, 2]);
});
