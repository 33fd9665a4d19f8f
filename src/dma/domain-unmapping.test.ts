/** What the translation table says while a mapping is being undone. */
import { test } from 'node:test';
import assert from 'node:assert/strict';
import { isDmaError } from '../errors.js';
import { Bench, PAGE, part } from '../../test/fakes/dma/address-space.js';

for (const outcome of ['works', 'fails'] as const)
  test(`nobody is told an address while it is being unmapped, whether that then ${outcome}`, async () => {
    const bench = new Bench({ asynchronous: true });
    const { domain, space } = bench;
    bench.area(16 * PAGE, 4);
    const mapping = domain.mapFor('a', part(16 * PAGE, 2 * PAGE));
    const { iova } = mapping;
    const before = domain.table.generation;
    if (outcome === 'fails') space.fail('unmap', 1, 'EIO');
    const letGo = space.hold();
    const unmapping = mapping.unmapAsync();
    assert.equal(domain.iovaOf(16 * PAGE), -1);
    assert.notEqual(domain.table.generation, before);
    letGo();
    if (outcome === 'works') await unmapping;
    else await assert.rejects(unmapping, (error) => isDmaError(error, 'EIO'));
    assert.equal(domain.iovaOf(16 * PAGE), outcome === 'works' ? -1 : iova);
    assert.equal(mapping.live, outcome === 'fails');
  });

test('what a command uses is not unmapped, in whole or in part, and its error names the command', async () => {
  const bench = new Bench({ constraints: { partialUnmap: true } });
  const { domain } = bench;
  bench.area(16 * PAGE, 4);
  const mapping = domain.mapFor('a', part(16 * PAGE, 4 * PAGE));
  let busy: number | undefined = 17 * PAGE;
  const use = domain.addUser({
    device: 'a',
    uses: (start, stop) => (busy !== undefined && start <= busy && busy < stop ? 'a read of block 7' : undefined),
  });
  const refused = (error: unknown): boolean =>
    isDmaError(error, 'EBUSY') && /a read of block 7 uses this memory/.test(error.message) && error.device === 'a';
  assert.throws(() => mapping.unmap(), refused);
  await assert.rejects(mapping.unmapAsync(), refused);
  assert.throws(() => domain.unmapFor('a', part(16 * PAGE, 2 * PAGE)), refused);
  assert.equal(mapping.live, true);
  assert.notEqual(domain.iovaOf(17 * PAGE), -1);
  // Another device of the domain has it too: that one may let go of it, this one may not.
  const other = domain.mapFor('b', part(16 * PAGE, 4 * PAGE));
  assert.throws(() => mapping.unmap(), refused);
  other.unmap();
  busy = undefined;
  mapping.unmap();
  use[Symbol.dispose]();
  use[Symbol.dispose]();
});
