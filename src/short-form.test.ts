import assert from 'node:assert/strict';
import { it } from 'node:test';
import { inspect } from 'node:util';
import { copyEngineDriver } from './drivers/copy-engine-driver.js';
import { eduDriver } from './drivers/edu-driver.js';
import { Eal } from './eal.js';
import { openPlatform } from './platform/open.js';

it(
  'every public object is short for console.log and can be made JSON, while it lives and afterwards',
  { skip: openPlatform().limitation ?? false },
  async () => {
    const eal = await Eal.start({ memory: { noHuge: true }, onForgotten: () => undefined });
    const device = await eal.probe('vdev:copy0');
    const edu = await eal.probe('vdev:edu0');
    const heap = eal.heaps.create('mine');
    const [memory, other] = [eal.external.allocate(8192), eal.external.allocate(8192)];
    eal.heaps.addMemory('mine', other);
    const block = eal.malloc(100);
    const objects: Record<string, object | undefined> = {
      Eal: eal,
      Device: device,
      Domain: device.domain,
      TranslationTable: device.domain?.table,
      Mapping: device.dmaMap(memory),
      GroupMapping: eal.dmaMapAll(memory, [edu]),
      External: eal.external,
      ExternalMemory: memory,
      Area: memory.area,
      Heaps: eal.heaps,
      Heap: heap,
      Block: block,
      Zones: eal.zones,
      Zone: eal.zones.reserve('zone', 64),
      Pools: eal.pools,
      Pool: eal.pools.create({ elements: 1000, elementSize: 64 }),
      OwnedMemory: eal.memory,
      Containers: eal.containers,
      VdevBus: eal.vdev,
      CopyEngine: device.use(copyEngineDriver),
      Edu: edu.use(eduDriver),
    };
    const look = (): void => {
      for (const [name, each] of Object.entries(objects)) {
        const shown = inspect(each);
        assert.ok(shown.startsWith(name), shown);
        assert.ok(shown.length < 600 && shown.split('\n').length <= 16, `${name}: ${shown}`);
        assert.equal(typeof JSON.parse(JSON.stringify(each)), 'object');
        assert.ok(inspect({ a: { b: { c: { d: each } } } }).length < 100);
        assert.ok(!Object.keys(each ?? {}).includes('toJSON'));
      }
    };
    look();
    assert.match(inspect(objects.Mapping), /device: 'vdev:copy0'.*va: '0x[0-9a-f]+'/s);
    assert.match(JSON.stringify(objects), /"heap":"socket_0"/);
    await eal.stop();
    look();
  },
);
