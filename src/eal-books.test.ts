/** What is on the books and stays true, whatever a program does in whatever order: by the public API, with software devices. */
import assert from 'node:assert/strict';
import { closeSync, mkdtempSync, openSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, it } from 'node:test';
import { dmaError } from '../test/shared/errors.js';
import { Eal } from './eal.js';
import { isDmaError } from './errors.js';
import { openPlatform } from './platform/open.js';
import { trackingPlatform } from '../test/fakes/platform/platforms.js';
import { MiB, type Va } from './units.js';

const skip = openPlatform().limitation ?? false;

describe('memory that is mapped for every device', { skip }, () => {
  it('is held before there is a device, and each device has it', async () => {
    await using eal = await Eal.start();
    const memory = eal.external.allocate(MiB);
    const all = eal.dmaMapAll(memory);
    assert.throws(() => memory.unregister(), dmaError('EBUSY', /eal\.dmaMapAll/));
    const device = await eal.probe('vdev:copy0');
    assert.equal(all.of(device)?.va, memory.va);
    all.unmap();
    memory.unregister();
  });

  it('without a device is refused for what no device could write', async () => {
    await using eal = await Eal.start();
    const directory = mkdtempSync(join(tmpdir(), 'anydma-test-'));
    const path = join(directory, 'file');
    writeFileSync(path, Buffer.alloc(4096));
    const fd = openSync(path, 'r');
    try {
      using memory = eal.external.fromFd(fd);
      assert.throws(() => eal.dmaMapAll(memory, undefined, { access: 'write' }), dmaError('EACCES'));
      eal.dmaMapAll(memory).unmap();
    } finally {
      closeSync(fd);
      rmSync(directory, { recursive: true });
    }
  });

  it("of the library and of heaps is not a device's to unmap, by address or by handle", async () => {
    await using eal = await Eal.start({ memory: { noHuge: true } });
    const device = await eal.probe('vdev:copy0');
    const block = eal.malloc(MiB);
    const heapMemory = eal.external.allocate(MiB);
    eal.heaps.create('mine');
    const before = device.dmaMap(heapMemory);
    eal.heaps.addMemory('mine', heapMemory);
    const { range } = block.area;
    assert.throws(() => device.dmaUnmap({ va: range.start, length: range.length }), dmaError('EINVAL', /every device/));
    assert.throws(() => device.dmaUnmap({ va: block.va, length: 4096 }), dmaError('EINVAL'));
    const own = device.dmaMap({ va: range.start, length: range.length });
    device.dmaUnmap({ va: range.start, length: range.length });
    assert.equal(own.live, false);
    assert.notEqual(device.domain?.iovaOf(block.va), -1, 'the library has its own still');
    device.dmaUnmap(heapMemory);
    assert.equal(before.live, false);
    assert.throws(() => device.dmaUnmap(heapMemory), dmaError('EINVAL', /every device/));
    const kept = [...(device.domain?.mappings() ?? [])].filter(({ va }) => va === range.start || va === heapMemory.va);
    assert.equal(kept.length, 2);
    for (const mapping of kept) assert.throws(() => mapping.unmap(), dmaError('EBUSY', /every device/));
    block.free();
    eal.heaps.removeMemory('mine', { va: heapMemory.va, length: heapMemory.length });
    heapMemory.unregister();
  });

  it('is what it was when it was asked for', async () => {
    await using eal = await Eal.start();
    const memory = eal.external.allocate(2 * MiB);
    const target = { va: memory.va, length: MiB };
    const first = eal.dmaMapAll(target);
    target.va = (memory.va + MiB) as Va;
    const second = eal.dmaMapAll(target);
    const device = await eal.probe('vdev:copy0');
    assert.deepEqual([first.of(device)?.va, second.of(device)?.va], [memory.va, memory.va + MiB]);
    first.unmap();
    second.unmap();
    memory.unregister();
  });
});

describe('an Eal that was stopped', { skip }, () => {
  it('begins nothing any more, by any of its doors, and nothing is left', async () => {
    const platform = trackingPlatform(openPlatform());
    const eal = await Eal.start({ platform, memory: { noHuge: true }, onForgotten: () => undefined });
    const device = await eal.probe('vdev:copy0');
    const external = eal.external.allocate(4096);
    const page = new Uint8Array(new ArrayBuffer(4096));
    const block = eal.malloc(64);
    const zone = eal.zones.reserve('z', 64);
    const pool = eal.pools.create({ elements: 4, elementSize: 64 });
    const heap = eal.heaps.create('h');
    eal.heaps.addMemory('h', eal.external.allocate(4096));
    const native = block.heap;
    const all = eal.dmaMapAll(external);
    const doors: Record<string, () => unknown> = {
      probe: () => eal.probe('vdev:copy1'),
      scan: () => eal.scan(),
      registerBus: () =>
        eal.registerBus({ name: 'x', parse: () => undefined, open: () => Promise.reject(new Error()) }),
      registerDriver: () => eal.registerDriver({ name: 'x', buses: [], probe: () => undefined }),
      dmaMapAll: () => eal.dmaMapAll(external),
      malloc: () => eal.malloc(64),
      calloc: () => eal.calloc(1, 64),
      'malloc of a heap': () => eal.malloc(64, { heap: 'h' }),
      'memory.malloc': () => eal.memory.malloc(64),
      'memory.calloc': () => eal.memory.calloc(1, 64),
      'memory.addHandler': () => eal.memory.addHandler({}),
      'memory.addValidator': () => eal.memory.addValidator({ name: 'x' }),
      'native heap': () => native.malloc(64),
      'native heap, largest': () => native.mallocLargest(),
      'heap.malloc': () => heap.malloc(64),
      'heap.calloc': () => heap.calloc(1, 64),
      'heaps.create': () => eal.heaps.create('i'),
      'heaps.addMemory': () => eal.heaps.addMemory('h', external),
      'external.allocate': () => eal.external.allocate(4096),
      'external.fromFd': () => eal.external.fromFd(0),
      'external.register': () => eal.external.register(page),
      'external.fromAddress': () => eal.external.fromAddress(0x1000, 4096),
      'zones.reserve': () => eal.zones.reserve('y', 64),
      'pools.create': () => eal.pools.create({ elements: 4, elementSize: 64 }),
      'pools.addHandler': () => eal.pools.addHandler({}),
      'containers.create': () => eal.containers.create(),
      'vdev.define': () => eal.vdev.define('x', () => assert.fail()),
    };
    const stopping = eal.stop();
    for (const when of ['while it stops', 'afterwards']) {
      for (const [door, call] of Object.entries(doors)) {
        if (when === 'while it stops' && /native|^heap.[mc]alloc|memory.[mc]alloc/.test(door)) continue;
        await assert.rejects(async () => call(), dmaError('ECANCELED', /the Eal was stopped/), `${door} ${when}`);
      }
      await stopping;
    }
    assert.throws(() => block.bytes(), dmaError('EINVAL'));
    assert.throws(() => zone.bytes(), dmaError('EINVAL'));
    assert.throws(() => pool.bytes(0), dmaError('EINVAL'));
    assert.throws(() => external.bytes(), dmaError('EINVAL'));
    assert.throws(() => device.dmaMap(external), dmaError('ECANCELED'));
    for (const held of [block, zone, pool, external, all]) held[Symbol.dispose]();
    assert.equal(pool.get(new Int32Array(1), 1), false);
    assert.deepEqual([...eal.zones, ...eal.pools, ...eal.external, ...eal.devices()], []);
    assert.equal(eal.find('vdev:copy0'), undefined);
    assert.equal(eal.memory.trim(), 0);
    await eal.stop();
    assert.deepEqual(platform.leaks(), []);
  });

  it('can be stopped again when something kept it from giving all back', async () => {
    const platform = trackingPlatform(openPlatform());
    const eal = await Eal.start({ platform, onForgotten: () => undefined });
    const memory = eal.external.allocate(4096);
    const pin = memory.pin('a transfer');
    const refused = (error: unknown): boolean => isDmaError(error, 'EBUSY') && /a transfer/.test(error.message);
    await assert.rejects(eal.stop(), refused);
    await assert.rejects(eal.stop(), refused);
    assert.throws(() => eal.external.allocate(4096), dmaError('ECANCELED'));
    pin[Symbol.dispose]();
    await eal.stop();
    await eal.stop();
    assert.equal(memory.live, false);
    assert.deepEqual(platform.leaks(), []);
  });
});

describe('names', { skip }, () => {
  it('that are given anew while their zone is being freed are in use once', async () => {
    await using eal = await Eal.start({ memory: { noHuge: true, matchAllocations: false } });
    const second: unknown[] = [];
    const ring = eal.zones.reserve('ring', 128 * MiB);
    eal.memory.addHandler({
      shrunk: () => {
        if (second.length === 0) second.push(eal.zones.reserve('ring', 64, { heap: 'h' }));
      },
    });
    eal.heaps.create('h');
    eal.heaps.addMemory('h', eal.external.allocate(4096));
    ring.free();
    eal.memory.trim();
    assert.equal(second.length, 1);
    assert.equal(eal.zones.find('ring'), second[0]);
    assert.throws(() => eal.zones.reserve('ring', 64, { heap: 'h' }), dmaError('EEXIST'));
    assert.equal([...eal.zones].length, 1);
    eal.zones.free('ring');
    for (const memory of eal.external) eal.heaps.removeMemory('h', memory);
  });
});
