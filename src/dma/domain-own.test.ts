/** Mappings of the domain itself, as `container.map` makes them. */
import { test } from 'node:test';
import assert from 'node:assert/strict';
import { isDmaError } from '../errors.js';
import { Bench, PAGE, part } from '../../test/fakes/dma/address-space.js';

test('a mapping of the domain belongs to no device, and is shared with them', async () => {
  const bench = new Bench();
  const { domain, space } = bench;
  const area = bench.area(16 * PAGE, 4);
  domain.attach('a');
  domain.attach('b');
  const mapping = domain.mapOwn(part(16 * PAGE, 2 * PAGE), undefined, 'container.map');
  assert.deepEqual([...domain.devices], ['a', 'b']);

  const same = domain.mapFor('a', part(16 * PAGE, 2 * PAGE));
  assert.equal(space.calls.length, 1);
  same.unmap();
  await domain.detach('a');
  assert.equal(space.table.length, 1, 'a device that leaves takes only what is its own');
  assert.ok(mapping.live);
  domain.unmapOwn(part(16 * PAGE, 2 * PAGE), 'container.unmap');
  assert.equal(space.table.length, 0);
  assert.deepEqual(area.holders.size, 0);
});

test('mappings of the domain end with its last device', async () => {
  const bench = new Bench();
  const { domain, space } = bench;
  bench.area(16 * PAGE, 4);
  domain.attach('a');
  const mapping = domain.mapOwn(part(16 * PAGE, PAGE), undefined, 'container.map');
  await domain.detach('a');
  assert.equal(mapping.live, false);
  assert.equal(space.table.length, 0);
  assert.equal(space.closed, 1);
  assert.deepEqual(space.violations, []);
});

test('only what the domain mapped can be unmapped as its own', () => {
  const bench = new Bench();
  const { domain } = bench;
  bench.area(16 * PAGE, 4);
  const mapping = domain.mapFor('a', part(16 * PAGE, PAGE));
  for (const target of [mapping, part(16 * PAGE, PAGE)])
    assert.throws(
      () => domain.unmapOwn(target, 'container.unmap'),
      (error) => isDmaError(error, 'EINVAL'),
    );
  assert.ok(mapping.live);
});

test('what may be locked is asked anew only when what was read is used up', () => {
  let asked = 0;
  let used = 0;
  const limits = {
    lockedMemory: () => {
      asked++;
      return { limit: 10 * PAGE, used };
    },
  };
  const bench = new Bench({ constraints: { pins: true }, domain: { limits } });
  const { domain } = bench;
  bench.area(16 * PAGE, 64);
  const pages = Array.from({ length: 10 }, (_, i) => domain.mapFor('a', part((16 + i) * PAGE, PAGE)));
  assert.equal(asked, 1);
  used = 10 * PAGE;
  assert.throws(
    () => domain.mapFor('a', part(40 * PAGE, PAGE)),
    (error) => isDmaError(error, 'ENOMEM') && error.hint?.includes('RLIMIT_MEMLOCK is 40 KiB, 40 KiB of it') === true,
  );
  assert.equal(asked, 2);
  pages[0].unmap();
  used = 9 * PAGE;
  domain.mapFor('a', part(40 * PAGE, PAGE));
  assert.equal(asked, 3);
});
