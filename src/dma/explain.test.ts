import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Range } from '../ranges.js';
import { MiB, type Iova } from '../units.js';
import { Bench, PAGE, part } from '../../test/fakes/dma/address-space.js';

const A = 0x10000000;
const iova = (value: number): Iova => value as Iova;

/** A domain with an area of 16 pages, mapped nowhere yet; IOVAs are above 1 MiB and below 64 MiB. */
function bench(options: { remember?: number; origins?: boolean } = {}): Bench {
  const windows = [Range.between(iova(MiB), 64 * MiB)];
  const made = new Bench({ constraints: { windows, partialUnmap: true }, domain: { holdBackMs: 100, ...options } });
  made.area(A, 16, { label: 'the ring' });
  return made;
}

test('what is mapped', () => {
  const { domain } = bench();
  domain.mapFor('vdev:a', part(A, 2 * PAGE), { iova: iova(0x200000), access: 'read' });
  domain.mapFor('vdev:b', part(A, 2 * PAGE), { access: 'read' });
  const there = domain.explain(iova(0x200010), 16, 'read');
  assert.equal(there.kind, 'mapped');
  assert.match(
    there.text,
    /^0x200010 is in the read mapping \[0x200000, 0x202000\) of the ring by vdev:a and vdev:b, made at .*explain\.test/,
  );
  assert.deepEqual(
    [there.mapping?.start, there.devices, there.agoMs, there.distance],
    [0x200000, ['vdev:a', 'vdev:b'], undefined, undefined],
  );
});

test('access that was not granted', () => {
  const { domain } = bench();
  domain.mapFor('d0', part(A, PAGE), { iova: iova(0x200000), access: 'read' });
  const refused = domain.explain(iova(0x200000), 4, 'write');
  assert.equal(refused.kind, 'wrong-access');
  assert.match(refused.text, /^0x200000 may not be used for write: it is in the read mapping \[0x200000, 0x201000\)/);
  assert.equal(domain.explain(iova(0x200000), 4).kind, 'mapped');
});

test('past the end, wholly or with its last bytes', () => {
  const { domain } = bench();
  domain.mapFor('d0', part(A, PAGE), { iova: iova(0x200000) });
  const beyond = domain.explain(iova(0x201010));
  assert.deepEqual([beyond.kind, beyond.distance, beyond.mapping?.end], ['past-end', 17, 0x201000]);
  assert.match(
    beyond.text,
    /^0x201010 is 17 bytes past the end of the read-write mapping \[0x200000, 0x201000\) of the ring by d0/,
  );
  const astride = domain.explain(iova(0x200ff0), 33);
  assert.deepEqual([astride.kind, astride.distance], ['past-end', 17]);
  assert.match(astride.text, /^33 bytes at 0x200ff0 end 17 bytes past the end of the read-write mapping/);
  assert.equal(domain.explain(iova(0x201000)).distance, 1);
  assert.match(domain.explain(iova(0x201000)).text, / 1 byte past /);
  assert.equal(domain.explain(iova(0x200fff)).kind, 'mapped');
});

test('before the start, when that is nearer', () => {
  const { domain } = bench();
  domain.mapFor('d0', part(A, PAGE), { iova: iova(0x200000) });
  domain.mapFor('d0', part(A + PAGE, PAGE), { iova: iova(0x210000) });
  const before = domain.explain(iova(0x20fff8), 4);
  assert.deepEqual([before.kind, before.distance, before.mapping?.start], ['before-start', 8, 0x210000]);
  assert.match(before.text, /^0x20fff8 is 8 bytes before the read-write mapping \[0x210000, 0x211000\)/);
  assert.equal(domain.explain(iova(0x1ff000)).kind, 'before-start');
});

test('unmapped: when, and by whom', () => {
  const made = bench();
  const { domain } = made;
  domain.mapFor('vdev:a', part(A, 4 * PAGE), { iova: iova(0x200000) }).unmap();
  made.ms += 12;
  const late = domain.explain(iova(0x200800), 64, 'write');
  assert.deepEqual([late.kind, late.agoMs, late.devices], ['unmapped', 12, ['vdev:a']]);
  assert.match(
    late.text,
    /^0x200800 was unmapped 12 ms ago by vdev:a: it was in the read-write mapping \[0x200000, 0x204000\) of the ring by vdev:a, made at/,
  );
  made.ms += 60_000;
  assert.match(domain.explain(iova(0x200800)).text, /unmapped 60 s ago/);
  // What is mapped there now comes first, and of two that were, the later one.
  domain.mapFor('d1', part(A, PAGE), { iova: iova(0x200000) });
  assert.equal(domain.explain(iova(0x200800)).kind, 'mapped');
  domain.unmapFor('d1', part(A, PAGE));
  assert.deepEqual(domain.explain(iova(0x200800)).devices, ['d1']);
  assert.deepEqual(domain.explain(iova(0x201800)).devices, ['vdev:a']);
});

test('unmapped asynchronously, in part, by leaving, by failing to be mapped: all are remembered in the same way', async () => {
  const made = bench();
  const { domain, space } = made;
  domain.attach('d1');
  const mapping = await domain.mapForAsync('d0', part(A, PAGE), { iova: iova(0x200000) });
  await mapping.unmapAsync();
  domain.mapFor('d0', part(A + 4 * PAGE, 4 * PAGE), { iova: iova(0x400000) });
  domain.unmapFor('d0', part(A + 5 * PAGE, PAGE));
  domain.mapFor('d0', part(A + PAGE, PAGE), { iova: iova(0x600000) });
  await domain.detach('d0');
  for (const at of [0x200000, 0x401000, 0x400000, 0x403000, 0x600000]) {
    const { kind, text } = domain.explain(iova(at + 5));
    assert.equal(kind, 'unmapped');
    assert.match(
      text,
      /^0x\w+ was unmapped 0 ms ago by d0: it was in the read-write mapping \[0x\w+, 0x\w+\) of the ring/,
    );
  }
  space.fail('map', 2, 'EIO');
  await assert.rejects(domain.mapForAsync('d1', part(A, 2 * PAGE), { iova: iova(0x800000), chunkBytes: PAGE }));
  assert.match(
    domain.explain(iova(0x800000)).text,
    /unmapped 0 ms ago by d1: .* mapping \[0x800000, 0x801000\) of the ring$/,
  );
  assert.notEqual(domain.explain(iova(0x801000 + 2 * MiB)).kind, 'unmapped');
});

test('what is just being made or undone says so', async () => {
  const made = new Bench({ asynchronous: true });
  made.area(A, 2, { label: 'the ring' });
  const proceed = made.space.hold();
  const mapping = made.domain.mapForAsync('d0', part(A, PAGE));
  assert.match(made.domain.explain(iova(A)).text, /mapping \[0x10000000, 0x10001000\) \(mapping\) of the ring/);
  proceed();
  await mapping;
});

test('outside of the windows, and never mapped', () => {
  const { domain } = bench();
  const outside = domain.explain(iova(0x1000));
  assert.deepEqual([outside.kind, outside.mapping, outside.devices], ['outside-windows', undefined, []]);
  assert.equal(outside.text, "0x1000 is outside of the domain's IOVA windows [0x100000, 0x4000000)");
  const never = domain.explain(iova(0x300000));
  assert.equal(never.kind, 'never-mapped');
  assert.match(never.text, /^0x300000 was never mapped in this domain/);
  domain.mapFor('d0', part(A, PAGE), { iova: iova(0x200000) });
  assert.equal(domain.explain(iova(0x200000 + PAGE + MiB - 1)).kind, 'past-end');
  assert.equal(domain.explain(iova(0x200000 + PAGE + MiB)).kind, 'never-mapped');
  assert.throws(() => domain.explain(iova(-1)), { code: 'EINVAL' });
  assert.throws(() => domain.explain(iova(0x1000), 0), { code: 'EINVAL' });
});

test('it remembers as many as it was told to, the last ones', () => {
  for (const remember of [0, 3]) {
    const { domain } = bench({ remember, origins: false });
    for (let i = 0; i < 5; i++) domain.mapFor('d0', part(A, PAGE), { iova: iova((2 + 4 * i) * MiB) }).unmap();
    const kinds = [0, 1, 2, 3, 4].map((i) => domain.explain(iova((2 + 4 * i) * MiB)).kind === 'unmapped');
    assert.deepEqual(
      kinds,
      [0, 1, 2, 3, 4].map((i) => i >= 5 - remember),
    );
  }
  const { domain } = bench({ origins: false });
  const mapping = domain.mapFor('d0', part(A, PAGE));
  assert.doesNotMatch(domain.explain(mapping.iova).text, /made at/);
});

test('a freed IOVA is held back: it is not what the next mapping gets', () => {
  const made = bench();
  const { domain } = made;
  const first = domain.mapFor('d0', part(A, PAGE));
  const { iova: freed } = first;
  first.unmap();
  const second = domain.mapFor('d0', part(A + PAGE, PAGE));
  assert.notEqual(second.iova, freed);
  // The same memory neither: its late writer is as wrong as any other.
  const third = domain.mapFor('d0', part(A, PAGE));
  assert.notEqual(third.iova, freed);
  made.ms += 99;
  assert.notEqual(domain.mapFor('d0', part(A + 2 * PAGE, PAGE)).iova, freed);
  assert.equal(domain.explain(freed).kind, 'unmapped');
  made.ms += 1;
  assert.equal(domain.mapFor('d0', part(A + 3 * PAGE, PAGE)).iova, freed);
});

test('memory that comes to be where other memory was does not get its IOVA at once', () => {
  const made = new Bench();
  const { domain } = made;
  const old = made.area(A, 1);
  domain.mapFor('d0', part(A, PAGE)).unmap();
  domain.mapFor('d0', part(A, PAGE)).unmap();
  made.areas.remove(old);
  made.area(A, 1);
  const other = domain.mapFor('d0', part(A, PAGE));
  assert.notEqual(Number(other.iova), A, 'a device that still writes there would hit the new owner');
  other.unmap();
  domain.mapFor('d0', part(A, PAGE), { iova: iova(A) }).unmap();
  made.ms += 100;
  assert.equal(Number(domain.mapFor('d0', part(A, PAGE)).iova), A);
});

test('who asks for a freed IOVA gets it, and nobody fails for want of others', () => {
  const windows = [Range.between(iova(MiB), MiB + 2 * PAGE)];
  const made = new Bench({ constraints: { windows } });
  made.area(A, 4);
  made.domain.mapFor('d0', part(A, PAGE)).unmap();
  made.domain.mapFor('d0', part(A, PAGE), { iova: iova(MiB) }).unmap();
  made.domain.mapFor('d0', part(A, 2 * PAGE)).unmap();
  made.domain.mapFor('d0', part(A + PAGE, 2 * PAGE)).unmap();
});
