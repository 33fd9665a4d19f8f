import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { dmaError } from '../../test/shared/errors.js';
import { KeyCache } from '../dma/key-cache.js';
import { Bench, PAGE, part } from '../../test/fakes/dma/address-space.js';
import type { Area } from '../memory/area.js';
import { MapOnMiss, type MissUnit } from './map-on-miss.js';

const A = 0x10000000;

/** A device in a domain with keys, over an area of 16 pages at A; what its queue does about misses. */
function bench(
  unit?: MissUnit,
  granule?: number,
): {
  made: Bench;
  area: Area;
  onMiss: MapOnMiss;
  queue: KeyCache;
  calls(): string[];
} {
  let key = 100;
  const made = new Bench({
    constraints: { iova: 'ignored', ...(granule !== undefined && { granule }) },
    keys: () => ({ lkey: ++key, rkey: key }),
  });
  const area = made.area(A, 16, { label: 'the area' });
  const { domain } = made;
  const onMiss = new MapOnMiss(
    { domain, dmaMap: (target, options) => domain.mapFor('d0', target, options) },
    made.areas,
    unit,
  );
  const queue = new KeyCache({
    device: 'd0',
    table: domain.table,
    miss: (va, length) => onMiss.map({ va, length }),
  });
  const calls = (): string[] =>
    made.space.calls
      .splice(0)
      .map(({ call, segment }) => `${call} ${(segment.va - A) / PAGE} ${segment.length / PAGE}`);
  return { made, area, onMiss, queue, calls };
}

describe('MapOnMiss', () => {
  it('maps all of the area that the data path meets, once', () => {
    const { queue, area, onMiss, calls } = bench();
    assert.equal(queue.keyOf(A + 3 * PAGE + 1, 100), 101);
    assert.equal(queue.keyOf(A, 16 * PAGE), 101);
    assert.deepEqual(calls(), ['map 0 16']);
    assert.equal(area.holders.get('d0'), 1, 'the memory can not go');
    assert.equal(onMiss.mappings.length, 1);
    onMiss.close();
    assert.deepEqual(calls(), ['unmap 0 16']);
    assert.equal(area.holders.size, 0);
    assert.deepEqual(onMiss.mappings, []);
    onMiss.close();
    assert.deepEqual(calls(), []);
  });

  it('maps only the pages of the I/O when the area is in use already, or when that is wanted', () => {
    const { made, queue, calls } = bench();
    const own = made.domain.mapFor('d0', part(A, 2 * PAGE));
    assert.equal(queue.keyOf(A + 3 * PAGE - 1, 1), 102);
    assert.equal(queue.keyOf(A + 2 * PAGE - 1, 1), own.lkey);
    assert.deepEqual(calls(), ['map 0 2', 'map 2 1']);
    assert.equal(queue.keyOf(A + 2 * PAGE - 1, 2), -1, 'in two registrations');
    const pages = bench('pages');
    assert.equal(pages.queue.keyOf(A + 5 * PAGE - 1, 2 + PAGE), 101);
    assert.deepEqual(pages.calls(), ['map 4 3']);
  });

  it('takes the pages of the area, which may be larger than those of the domain', () => {
    const { made, queue, calls } = bench('pages');
    made.area(A + 64 * PAGE, 4, { pageSize: 8 * PAGE });
    queue.keyOf(A + 73 * PAGE, 10);
    assert.deepEqual(calls(), ['map 72 8']);
  });

  it('stays inside the area, even if its bounds are no multiples of the device page size', () => {
    for (const unit of ['area', 'pages'] as const) {
      const { made, queue, calls } = bench(unit, 16 * PAGE);
      made.area(A + 33 * PAGE, 47);
      made.area(A + 113 * PAGE, 2);
      for (const [page, length] of [
        [33, PAGE],
        [47, PAGE + 1],
        [113, 1],
      ])
        assert.equal(queue.keyOf(A + page * PAGE, length), -1, `page ${page}`);
      assert.deepEqual(calls(), []);
      assert.equal(queue.keyOf(A + 50 * PAGE, PAGE), 101);
      assert.deepEqual(calls(), [unit === 'area' ? 'map 48 32' : 'map 48 16']);
      assert.equal(queue.keyOf(A + 79 * PAGE, PAGE), unit === 'area' ? 101 : 102);
    }
  });

  it('leaves alone what is not registered, not external, or not in one area', () => {
    const { made, queue, calls } = bench();
    made.area(A + 32 * PAGE, 1, { owner: 'owned' });
    made.area(A + 16 * PAGE, 1);
    for (const [va, length] of [
      [A - 1, 1],
      [A + 32 * PAGE, 1],
      [A + 16 * PAGE - 1, 2],
      [A, 0],
      [A, NaN],
      [A, Infinity],
      [A, -1],
    ])
      assert.equal(queue.keyOf(va, length), -1, `${va}, ${length}`);
    assert.deepEqual(calls(), []);
  });

  it('does not map memory again if it has no key although it is mapped', () => {
    const made = new Bench();
    made.area(A, 16);
    const { domain } = made;
    using onMiss = new MapOnMiss({ domain, dmaMap: (target) => domain.mapFor('d0', target) }, made.areas);
    assert.equal(onMiss.map(part(A, 1)), true);
    assert.equal(domain.table.keyOf(A), -1);
    assert.equal(onMiss.map(part(A, 1)), false);
    assert.equal(made.space.calls.length, 1);
  });

  it('reports memory that can not be mapped', () => {
    const { made, queue, onMiss } = bench();
    made.space.fail('map', 1, 'ENOMEM');
    assert.throws(() => queue.keyOf(A, 1), dmaError('ENOMEM'));
    assert.deepEqual([onMiss.mappings, made.differences()], [[], []]);
    assert.equal(queue.keyOf(A, 1), 101);
  });

  it('releases a part of the memory, and maps it again when it is used again', () => {
    const { made, queue, onMiss, calls } = bench();
    made.area(A + 32 * PAGE, 1);
    queue.keyOf(A, 1);
    queue.keyOf(A + 32 * PAGE, 1);
    calls();
    onMiss.unmap(part(A + 31 * PAGE, PAGE));
    assert.deepEqual(calls(), []);
    made.space.fail('unmap', 1, 'EBUSY');
    assert.throws(() => onMiss.unmap(part(A, 16 * PAGE)), dmaError('EBUSY'));
    assert.equal(queue.keyOf(A, 1), 101);
    onMiss.unmap(part(A, 16 * PAGE));
    assert.deepEqual(calls(), ['unmap 0 16', 'unmap 0 16']);
    assert.equal(queue.keyOf(A, 1), 103);
    assert.equal(onMiss.mappings.length, 2);
  });

  it('starts again after its device was probed again', async () => {
    const { made, queue, onMiss } = bench();
    queue.keyOf(A, 1);
    made.domain.attach('d1');
    await made.domain.detach('d0');
    assert.deepEqual(onMiss.mappings, []);
    assert.equal(queue.keyOf(A, 1), 102);
    assert.equal(onMiss.mappings.length, 1);
  });
});
