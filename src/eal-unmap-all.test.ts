/** Calls of a device that map or unmap more than one range. */
import assert from 'node:assert/strict';
import { it } from 'node:test';
import { Eal } from './eal.js';
import { isDmaError } from './errors.js';
import { openPlatform } from './platform/open.js';

const SKIP = { skip: openPlatform().limitation ?? false };
const PAGE = 4096;

for (const how of ['dmaUnmapAll', 'dmaUnmapAllAsync'] as const)
  it(`${how} takes all that the program mapped from one device, and nothing else`, SKIP, async () => {
    await using eal = await Eal.start({ onForgotten: () => undefined });
    const device = await eal.probe('vdev:edu0');
    const other = await eal.probe('vdev:edu1');
    const memory = eal.external.allocate(16 * PAGE);
    const everywhere = eal.external.allocate(PAGE);
    const block = eal.malloc(64);
    using group = eal.dmaMapAll(everywhere);
    const mappings = [0, 2, 4].map((page) => device.dmaMap({ va: memory.va + page * PAGE, length: PAGE }));
    const kept = other.dmaMap(memory);
    await device[how]();
    assert.deepEqual(
      mappings.map(({ live }) => live),
      [false, false, false],
    );
    assert.ok(kept.live && group.of(device)?.live === true && device.iovaOf(block) > 0);
    await device[how]();
    kept.unmap();
    memory.unregister();
    await eal.remove(device);
    await assert.rejects(
      async () => device[how](),
      (error) => isDmaError(error, 'EINVAL'),
    );
  });

it('dmaMapPool maps the external memory of a pool, and mapOnMiss what the data path meets', SKIP, async () => {
  await using eal = await Eal.start({ onForgotten: () => undefined });
  const device = await eal.probe('vdev:edu0');
  const memory = eal.external.allocate(16 * PAGE);
  const pool = eal.pools.create({ elements: 64, elementSize: 512, external: [memory] });
  assert.throws(
    () => pool.iovasFor(device),
    (error) => isDmaError(error, 'EINVAL'),
  );
  const mapped = device.dmaMapPool(pool);
  assert.equal(mapped.mappings.length, 1);
  assert.equal(pool.iovasFor(device).length, 64);
  mapped.unmap();
  await (await device.dmaMapPoolAsync(pool)).unmapAsync();
  for (const bad of [undefined, 5, {}])
    assert.throws(
      () => device.dmaMapPool(bad as never),
      (e) => isDmaError(e, 'EINVAL'),
    );
  pool.free();
  {
    using miss = device.mapOnMiss({ unit: 'pages' });
    assert.equal(miss.map({ va: memory.va + PAGE, length: 100 }), true);
    assert.deepEqual(
      miss.mappings.map(({ va, length }) => [va - memory.va, length]),
      [[PAGE, PAGE]],
    );
    assert.ok(device.iovaOf(memory.va + PAGE) >= 0);
  }
  assert.throws(
    () => device.mapOnMiss({ unit: 'all' } as never),
    (error) => isDmaError(error, 'EINVAL'),
  );
  memory.unregister();
});
