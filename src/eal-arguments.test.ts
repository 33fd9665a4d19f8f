/**
 * Every door of the library, with everything that is no argument of it: each is a DmaError or works, and nothing is left
 * behind. What a door takes is told by the kinds that are right for it; all others are EINVAL.
 */
import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { dmaError } from '../test/shared/errors.js';
import type { Device } from './bus/model.js';
import { copyEngineDriver } from './drivers/copy-engine-driver.js';
import { Eal } from './eal.js';
import { DmaError } from './errors.js';
import type { ExternalMemory } from './memory/external.js';
import type { Block } from './memory/heap/heap.js';
import type { Pool } from './memory/pool/pool.js';
import type { Zone } from './memory/owned/zones.js';
import { openPlatform } from './platform/open.js';
import { trackingPlatform } from '../test/fakes/platform/platforms.js';
import { BATTERY, HOSTILE, knock, type Door } from '../test/shared/arguments.js';
import { spawnDevice } from './vfio-user/device-process.js';

const skip = openPlatform().limitation ?? false;

interface Scene {
  readonly eal: Eal;
  readonly device: Device;
  readonly memory: ExternalMemory;
  readonly block: Block;
  readonly zone: Zone;
  readonly pool: Pool;
}

/** What takes which kinds, besides what is left out; the values of these kinds may be refused, too. */
const DOORS: readonly Door<Scene>[] = [
  ['probe', ['string'], ({ eal }, v) => eal.probe(v)],
  ['probe options', ['object'], ({ eal }, v) => eal.probe('vdev:edu7', v).then((device) => eal.remove(device))],
  ['probe container', [], ({ eal }, v) => eal.probe('vdev:edu7', { container: v })],
  ['remove', [], ({ eal }, v) => eal.remove(v)],
  ['devices', ['string'], ({ eal }, v) => eal.devices(v)],
  ['find', ['string'], ({ eal }, v) => eal.find(v)],
  ['registerBus', [], ({ eal }, v) => eal.registerBus(v)],
  ['registerDriver', [], ({ eal }, v) => eal.registerDriver(v)],
  ['dmaMapAll target', [], ({ eal }, v) => eal.dmaMapAll(v)],
  ['dmaMapAll devices', ['array', 'string'], ({ eal, memory }, v) => eal.dmaMapAll(memory, v).unmap()],
  ['dmaMapAll options', ['object'], ({ eal, memory }, v) => eal.dmaMapAll(memory, undefined, v).unmap()],
  ['malloc', ['number'], ({ eal }, v) => eal.malloc(v).free()],
  ['malloc options', ['object'], ({ eal }, v) => eal.malloc(64, v).free()],
  ['malloc align', ['number'], ({ eal }, v) => eal.malloc(64, { align: v }).free()],
  ['malloc zero', ['boolean'], ({ eal }, v) => eal.malloc(64, { zero: v }).free()],
  ['malloc contiguous', ['boolean'], ({ eal }, v) => eal.malloc(64, { contiguous: v }).free()],
  ['malloc boundary', ['number'], ({ eal }, v) => eal.malloc(64, { boundary: v }).free()],
  ['malloc pageSizes', ['array'], ({ eal }, v) => eal.malloc(64, { pageSizes: v }).free()],
  ['malloc heap', ['string'], ({ eal }, v) => eal.malloc(64, { heap: v }).free()],
  ['malloc node', ['number'], ({ eal }, v) => eal.malloc(64, { node: v }).free()],
  ['calloc count', ['number'], ({ eal }, v) => eal.calloc(v, 64).free()],
  ['calloc size', ['number'], ({ eal }, v) => eal.calloc(1, v).free()],
  ['calloc options', ['object'], ({ eal }, v) => eal.calloc(1, 64, v).free()],
  ['realloc block', [], ({ eal }, v) => eal.realloc(v, 64)],
  ['realloc size', [], ({ eal, block }, v) => eal.realloc(block, v)],
  ['memory.malloc', ['number'], ({ eal }, v) => eal.memory.malloc(v).free()],
  ['memory.malloc options', ['object'], ({ eal }, v) => eal.memory.malloc(64, v).free()],
  ['memory.calloc', ['number'], ({ eal }, v) => eal.memory.calloc(1, v).free()],
  ['memory.heapOf', ['number'], ({ eal }, v) => eal.memory.heapOf(v)],
  ['memory.addHandler', ['object', 'getter'], ({ eal }, v) => eal.memory.addHandler(v)[Symbol.dispose]()],
  ['memory.addHandler grow', ['function'], ({ eal }, v) => eal.memory.addHandler({ grow: v })[Symbol.dispose]()],
  ['memory.addValidator', [], ({ eal }, v) => eal.memory.addValidator(v)],
  ['memory.addValidator name', ['string'], ({ eal }, v) => eal.memory.addValidator({ name: v })[Symbol.dispose]()],
  [
    'memory.addValidator limit',
    ['number'],
    ({ eal }, v) => eal.memory.addValidator({ name: 'v', limit: v })[Symbol.dispose](),
  ],
  ['block.bytes offset', ['number'], ({ block }, v) => block.bytes(v)],
  ['block.bytes length', ['number'], ({ block }, v) => block.bytes(0, v)],
  ['block.pin', ['string'], ({ block }, v) => block.pin(v)[Symbol.dispose]()],
  ['block.free options', ['object'], ({ eal }, v) => freeing(eal, v)],
  ['heap.malloc', ['number'], ({ block }, v) => block.heap.malloc(v).free()],
  ['heap.malloc options', ['object'], ({ block }, v) => block.heap.malloc(64, v).free()],
  ['heap.mallocLargest options', ['object'], ({ block }, v) => block.heap.mallocLargest(v).free()],
  ['heap.calloc', ['number'], ({ block }, v) => block.heap.calloc(v, 1).free()],
  ['heap.realloc', [], ({ block }, v) => block.heap.realloc(v, 64)],
  ['heap.validate', [], ({ block }, v) => block.heap.validate(v)],
  ['heaps.create', ['string'], ({ eal }, v) => (eal.heaps.create(v), eal.heaps.destroy(v))],
  ['heaps.find', ['string'], ({ eal }, v) => eal.heaps.find(v)],
  ['heaps.destroy', ['string'], ({ eal }, v) => eal.heaps.destroy(v)],
  ['heaps.addMemory heap', ['string'], ({ eal, memory }, v) => eal.heaps.addMemory(v, memory)],
  ['heaps.addMemory memory', [], ({ eal }, v) => eal.heaps.addMemory('h', v)],
  ['heaps.addMemory va', [], ({ eal }, v) => eal.heaps.addMemory('h', { va: v, length: 4096 })],
  [
    'heaps.addMemory options',
    [],
    ({ eal, memory }, v) => eal.heaps.addMemory('h', memory, { clear: v, bogus: 1 } as never),
  ],
  ['heaps.removeMemory memory', [], ({ eal }, v) => eal.heaps.removeMemory('h', v)],
  ['heaps.removeMemory va', [], ({ eal }, v) => eal.heaps.removeMemory('h', { va: v, length: 4096 })],
  ['heaps.removeMemory length', [], ({ eal, memory }, v) => eal.heaps.removeMemory('h', { va: memory.va, length: v })],
  ['external.allocate', ['number'], ({ eal }, v) => eal.external.allocate(v).unregister()],
  ['external.allocate options', ['object'], ({ eal }, v) => eal.external.allocate(4096, v).unregister()],
  ['external.allocate source', ['string'], ({ eal }, v) => eal.external.allocate(4096, { source: v }).unregister()],
  [
    'external.allocate hugePageSize',
    ['number'],
    ({ eal }, v) => eal.external.allocate(4096, { hugePageSize: v }).unregister(),
  ],
  ['external.allocate iovas', ['array'], ({ eal }, v) => eal.external.allocate(4096, { iovas: v }).unregister()],
  ['external.allocate node', ['number'], ({ eal }, v) => eal.external.allocate(4096, { node: v }).unregister()],
  ['external.allocate label', ['string'], ({ eal }, v) => eal.external.allocate(4096, { label: v }).unregister()],
  ['external.fromFd', ['number'], ({ eal }, v) => eal.external.fromFd(v)],
  ['external.fromFd options', ['object'], ({ eal, memory }, v) => eal.external.fromFd(memory.fd ?? -1, v).unregister()],
  [
    'external.fromFd offset',
    ['number'],
    ({ eal, memory }, v) => eal.external.fromFd(memory.fd ?? -1, { offset: v }).unregister(),
  ],
  [
    'external.fromFd writable',
    ['boolean'],
    ({ eal, memory }, v) => eal.external.fromFd(memory.fd ?? -1, { writable: v }).unregister(),
  ],
  ['external.register', [], ({ eal }, v) => eal.external.register(v)],
  ['external.register options', [], ({ eal }, v) => eal.external.register(new Uint8Array(5), v)],
  ['external.fromAddress', [], ({ eal }, v) => eal.external.fromAddress(v, 4096)],
  ['external.fromAddress length', [], ({ eal, memory }, v) => eal.external.fromAddress(memory.va, v)],
  ['external.unregister', [], ({ eal }, v) => eal.external.unregister({ va: v, length: 4096 })],
  ['external.find', [], ({ eal }, v) => eal.external.find({ va: v, length: 4096 })],
  ['memory.bytes offset', ['number'], ({ memory }, v) => memory.bytes(v)],
  ['memory.bytes length', ['number'], ({ memory }, v) => memory.bytes(0, v)],
  ['memory.pin', ['string'], ({ memory }, v) => memory.pin(v)[Symbol.dispose]()],
  ['zones.reserve name', ['string'], ({ eal }, v) => eal.zones.reserve(v, 64).free()],
  ['zones.reserve length', ['number'], ({ eal }, v) => eal.zones.reserve('n', v).free()],
  ['zones.reserve options', ['object'], ({ eal }, v) => eal.zones.reserve('n', 64, v).free()],
  ['zones.free', ['string'], ({ eal }, v) => eal.zones.free(v)],
  ['zone.bytes', ['number'], ({ zone }, v) => zone.bytes(v)],
  ['zone.pin', ['string'], ({ zone }, v) => zone.pin(v)[Symbol.dispose]()],
  ['pools.create', [], ({ eal }, v) => eal.pools.create(v)],
  ['pools.create elements', ['number'], ({ eal }, v) => eal.pools.create({ elements: v, elementSize: 64 }).free()],
  ['pools.create elementSize', ['number'], ({ eal }, v) => eal.pools.create({ elements: 1, elementSize: v }).free()],
  ['pools.create name', ['string'], ({ eal }, v) => eal.pools.create({ name: v, elements: 1, elementSize: 64 }).free()],
  [
    'pools.create cache',
    ['number'],
    ({ eal }, v) => eal.pools.create({ cache: v, elements: 1, elementSize: 64 }).free(),
  ],
  [
    'pools.create external',
    ['array'],
    ({ eal }, v) => eal.pools.create({ external: v, elements: 1, elementSize: 64 }).free(),
  ],
  ['pools.addHandler', ['object', 'getter'], ({ eal }, v) => eal.pools.addHandler(v)[Symbol.dispose]()],
  ['pool.bytes', ['number'], ({ pool }, v) => pool.bytes(v)],
  ['pool.chunkBytes', ['number'], ({ pool }, v) => pool.chunkBytes(v)],
  ['containers.create', ['object'], ({ eal }, v) => eal.containers.create(v).close()],
  ['containers.create kind', [], ({ eal }, v) => eal.containers.create({ kind: v })],
  ['vdev.define', ['string'], ({ eal }, v) => eal.vdev.define(v, () => assert.fail())],
  [
    'vdev.define factory',
    ['function'],
    ({ eal }, v) => eal.vdev.define(`k-${'abcdefgh'[Math.floor(Math.random() * 8)]}`, v),
  ],
  ['device.use', [], ({ device }, v) => device.use(v)],
  ['dmaMap', [], ({ device }, v) => device.dmaMap(v)],
  ['dmaMap options', ['object'], ({ device, memory }, v) => device.dmaMap(memory, v).unmap()],
  ['dmaMap iova', ['number'], ({ device, memory }, v) => device.dmaMap(memory, { iova: v }).unmap()],
  ['dmaMap access', [], ({ device, memory }, v) => device.dmaMap(memory, { access: v })],
  ['dmaMap va', [], ({ device }, v) => device.dmaMap({ va: v, length: 4096 })],
  ['dmaMap length', [], ({ device, memory }, v) => device.dmaMap({ va: memory.va, length: v })],
  ['dmaMapAllAsync target', [], ({ eal }, v) => eal.dmaMapAllAsync(v)],
  [
    'dmaMapAllAsync devices',
    ['array', 'string'],
    ({ eal, memory }, v) => eal.dmaMapAllAsync(memory, v).then((group) => group.unmap()),
  ],
  [
    'dmaMapAllAsync options',
    ['object'],
    ({ eal, memory }, v) => eal.dmaMapAllAsync(memory, undefined, v).then((group) => group.unmap()),
  ],
  ['mallocAsync', ['number'], ({ eal }, v) => eal.mallocAsync(v).then((each) => each.free())],
  ['mallocAsync options', ['object'], ({ eal }, v) => eal.mallocAsync(64, v).then((each) => each.free())],
  ['mallocAsync heap', ['string'], ({ eal }, v) => eal.mallocAsync(64, { heap: v }).then((each) => each.free())],
  ['mallocAsync signal', [], ({ eal }, v) => eal.mallocAsync(64, { signal: v })],
  ['memory.mallocAsync options', ['object'], ({ eal }, v) => eal.memory.mallocAsync(64, v).then((each) => each.free())],
  ['trimAsync options', ['object'], ({ eal }, v) => eal.memory.trimAsync(v)],
  ['freeAsync options', ['object'], ({ eal }, v) => freeingAsync(eal, v)],
  ['allocateAsync', ['number'], ({ eal }, v) => eal.external.allocateAsync(v).then((each) => each.unregister())],
  [
    'allocateAsync options',
    ['object'],
    ({ eal }, v) => eal.external.allocateAsync(4096, v).then((each) => each.unregister()),
  ],
  ['reserveAsync name', ['string'], ({ eal }, v) => eal.zones.reserveAsync(v, 64).then((each) => each.free())],
  ['reserveAsync options', ['object'], ({ eal }, v) => eal.zones.reserveAsync('z', 64, v).then((each) => each.free())],
  ['createAsync', ['object'], ({ eal }, v) => eal.pools.createAsync(v)],
  ['dmaMapAsync', [], ({ device }, v) => device.dmaMapAsync(v)],
  [
    'dmaMapAsync options',
    ['object'],
    ({ device, memory }, v) => device.dmaMapAsync(memory, v).then((each) => each.unmap()),
  ],
  [
    'dmaMapAsync chunkBytes',
    ['number'],
    ({ device, memory }, v) => device.dmaMapAsync(memory, { chunkBytes: v }).then((each) => each.unmap()),
  ],
  ['dmaMapAsync signal', [], ({ device, memory }, v) => device.dmaMapAsync(memory, { signal: v })],
  [
    'dmaMapAsync onProgress',
    ['function'],
    ({ device, memory }, v) => device.dmaMapAsync(memory, { onProgress: v }).then((each) => each.unmap()),
  ],
  ['dmaUnmap', [], ({ device }, v) => device.dmaUnmap(v)],
  ['dmaUnmap iova', [], ({ device, memory }, v) => unmapping(device, memory, v)],
  ['explain', ['number'], ({ device }, v) => device.explain(v)],
  ['copy source', ['number'], ({ device }, v) => device.use(copyEngineDriver).copy(v, 0, 64)],
  ['copy length', ['number'], ({ device }, v) => device.use(copyEngineDriver).copy(0, 0, v)],
  ['spawnDevice', [], (_scene, v) => spawnDevice(v)],
  ['spawnDevice options', [], (_scene, v) => spawnDevice('edu', { bogus: v } as never)],
  ['spawnDevice maxDmaMaps', [], (_scene, v) => spawnDevice('edu', { maxDmaMaps: v })],
];

/** `free` with these options, which gives the block back in any case. */
async function freeingAsync(eal: Eal, options: never): Promise<void> {
  using block = eal.malloc(64);
  await block.freeAsync(options);
}

function freeing(eal: Eal, options: never): void {
  const block = eal.malloc(64);
  try {
    block.free(options);
  } finally {
    block[Symbol.dispose]();
  }
}

/** `dmaUnmap` with this IOVA, which unmaps in any case. */
function unmapping(device: Device, memory: ExternalMemory, iova: never): void {
  using mapping = device.dmaMap(memory);
  device.dmaUnmap({ va: mapping.va, length: mapping.length, iova });
}

describe('arguments that are none', { skip }, () => {
  it('are refused at every door with a DmaError, and leave nothing', async () => {
    const platform = trackingPlatform(openPlatform());
    const eal = await Eal.start({ platform, memory: { noHuge: true } });
    const device = await eal.probe('vdev:copy0');
    const memory = eal.external.allocate(4096);
    eal.heaps.create('h');
    const scene: Scene = {
      eal,
      device,
      memory,
      block: eal.malloc(64),
      zone: eal.zones.reserve('zone', 64),
      pool: eal.pools.create({ elements: 4, elementSize: 64 }),
    };
    const books = (): unknown => ({
      devices: eal.devices().map(({ name }) => name),
      mappings: [...(device.domain?.mappings() ?? [])]
        .map(({ range, device: name }) => `${range.toString()} ${name}`)
        .sort(),
      memory: [...eal.external].length,
      holders: memory.area.holders.size,
      heaps: [...eal.heaps].map((heap) => [heap.name, heap.statistics().allocatedBlocks]),
      zones: [...eal.zones].map(({ name }) => name),
      pools: [...eal.pools].map(({ name }) => name),
      containers: [...eal.containers].length,
    });
    const before = books();
    assert.deepEqual(await knock(scene, DOORS), []);
    assert.deepEqual(books(), before);
    for (const held of [scene.block, scene.zone, scene.pool, memory]) held[Symbol.dispose]();
    await eal.stop();
    assert.deepEqual(platform.leaks(), []);
  });

  it('of starting are refused, and leave nothing', async () => {
    const names = [
      'holdBackMs',
      'remember',
      'origins',
      'platform',
      'iommu',
      'buses',
      'drivers',
      'memory',
      'onForgotten',
    ];
    const kinds: Record<string, string> = {
      holdBackMs: 'number',
      remember: 'number',
      origins: 'boolean',
      onForgotten: 'function',
    };
    const memory = [
      'size',
      'numaMem',
      'numaLimit',
      'pageSizes',
      'pageSizeLimits',
      'inMemory',
      'noHuge',
      'hugeDir',
      'filePrefix',
    ];
    const others = ['hugeUnlink', 'singleFileSegments', 'matchAllocations', 'iovaMode', 'origins', 'onNotice'];
    const listeners = process.listenerCount('exit');
    for (const [kind, value] of BATTERY) {
      for (const name of names) {
        if (
          kinds[name] === kind ||
          kind === 'array' ||
          kind === 'object' ||
          (kind === 'hostile' && name === 'platform')
        )
          continue;
        await assert.rejects(Eal.start({ [name]: value }), dmaError('EINVAL'), `${name} ${kind}`);
      }
      for (const name of [...memory, ...others]) {
        if (!['null', 'bigint', 'symbol', 'hostile'].includes(kind)) continue;
        await assert.rejects(Eal.start({ memory: { [name]: value } }), dmaError('EINVAL'), `memory.${name} ${kind}`);
      }
    }
    await assert.rejects(Eal.start({ iommu: 'bogus' as never }), dmaError('EINVAL', /auto, iommufd/));
    await assert.rejects(Eal.start({ bogus: 1 } as never), dmaError('EINVAL', /no option "bogus".*holdBackMs/));
    await assert.rejects(
      Eal.start({ memory: { bogus: 1 } as never }),
      dmaError('EINVAL', /no option "bogus".*numaMem/),
    );
    assert.equal(process.listenerCount('exit'), listeners);
  });

  it("of devices' names are refused with those there are", async () => {
    await using eal = await Eal.start();
    for (const name of [
      'vdev:edu2,bogus=1',
      'vdev:copy0,dma-mask=30',
      'vfio-user:/nowhere/x,trust=1',
      'pci:0000:00:09.0,bogus=1',
      'rdma:rxe7,x=y',
    ])
      await assert.rejects(eal.probe(name), dmaError('EINVAL', /key/), name);
    await assert.rejects(eal.probe('vdev:edu2,bogus=1'), dmaError('EINVAL', /known keys: iommu, dma-mask/));
    await assert.rejects(eal.probe('vfio-user:/nowhere/x,trust=1'), dmaError('EINVAL', /timeout, mmap/));
    assert.deepEqual(eal.devices(), []);
    await eal.probe('bus=vdev,name=edu0,dma-mask=30/driver=raw');
  });

  it('callbacks that throw what is no error refuse as any do', async () => {
    await using eal = await Eal.start({ memory: { noHuge: true } });
    for (const thing of [Object.create(null) as object, Symbol('s'), 1n, null, undefined, HOSTILE]) {
      const oops = (): never => {
        throw thing;
      };
      using _handler = eal.memory.addHandler({ grow: oops });
      assert.throws(
        () => eal.malloc(64),
        (error) => error instanceof DmaError,
      );
      using memory = eal.external.allocate(4096);
      eal.heaps.create('h');
      assert.throws(() => eal.heaps.addMemory('h', memory), dmaError('ECANCELED'));
      eal.heaps.destroy('h');
    }
    const copy = await eal.probe('vdev:copy0');
    using memory = eal.external.allocate(4096);
    const onProgress = (): never => {
      throw Object.create(null);
    };
    await assert.rejects(copy.dmaMapAsync(memory, { onProgress }), (error) => error instanceof DmaError);
    using _pools = eal.pools.addHandler({ ready: onProgress });
    assert.throws(() => eal.pools.create({ external: [memory], elements: 1, elementSize: 64 }), dmaError('ECANCELED'));
  });

  it('mistakes of the caller are EINVAL when a device is served', async () => {
    await assert.rejects(spawnDevice('bogus' as never), dmaError('EINVAL', /edu and copy|edu, copy/));
    await assert.rejects(spawnDevice('edu', { device: { dmaMaskBits: 99 } }), dmaError('EINVAL', /dmaMaskBits/));
    await assert.rejects(spawnDevice('edu', { maxDmaMaps: 0 }), dmaError('EINVAL', /maxDmaMaps/));
  });
});
