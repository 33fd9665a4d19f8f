/** Sharing with worker threads: every kind of thing, and every way in which a thread ends. */
import assert from 'node:assert/strict';
import { closeSync, mkdtempSync, openSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import { dmaError, throwsDma, throwsDmaOf } from '../../test/shared/errors.js';
import { ENDINGS, SharingWorker, WorkerFailure } from '../../test/shared/sharing-worker.js';
import { ownPlaces } from '../../test/shared/places.js';
import { SecondaryProcess } from '../../test/shared/secondary-process.js';
import { until } from '../../test/shared/until.js';
import { copyEngineDriver } from '../drivers/copy-engine-driver.js';
import { eduDriver } from '../drivers/edu-driver.js';
import type { Device } from '../bus/model.js';
import { Eal } from '../eal.js';
import { Holders } from '../memory/shared/holders.js';
import type { Pool } from '../memory/pool/pool.js';
import type { Shared } from '../memory/shared/shared.js';
import { openPlatform } from '../platform/open.js';
import { KiB, MiB } from '../units.js';
import { attach } from './attach.js';

/** Turns that two threads take. */
const ROUNDS = 300;

const SKIP = { skip: openPlatform().limitation ?? false };

/** Something that can be shared, and what frees it. */
interface Thing {
  readonly name: string;
  share(): Shared<unknown>;
  /** Its bytes; absent if it has none. */
  readonly bytes?: () => Uint8Array;
  readonly free: () => void | Promise<void>;
}

const start = (): Promise<Eal> => Eal.start({ onForgotten: () => undefined, memory: { onNotice: () => undefined } });

describe('what is shared with a worker thread', SKIP, () => {
  let eal: Eal;
  let folder: string;
  before(async () => {
    eal = await start();
    folder = mkdtempSync(join(tmpdir(), 'anydma-'));
  });
  after(async () => {
    await eal.stop();
    rmSync(folder, { recursive: true });
  });

  let made = 0;

  /** One of each kind. */
  async function things(): Promise<Thing[]> {
    const { external, platform } = eal;
    const name = `shared${made++}`;
    const path = join(folder, name);
    writeFileSync(path, Buffer.alloc(64 * KiB, 1));
    const file = (flags: string) => {
      const fd = openSync(path, flags);
      const memory = external.fromFd(fd);
      closeSync(fd);
      return memory;
    };
    const va = platform.memory.map({ length: 64 * KiB });
    const ofHeap = external.allocate(MiB);
    eal.heaps.create(name);
    eal.heaps.addMemory(name, ofHeap);
    const device = await eal.probe(`vdev:edu${made}`);
    const mapped = external.allocate(64 * KiB);
    const mapping = device.dmaMap(mapped);
    const everywhere = external.allocate(64 * KiB);
    const group = eal.dmaMapAll(everywhere);
    const inGroup = group.of(device);
    assert.ok(inGroup);
    const memories = {
      'a memfd': external.allocate(64 * KiB),
      'anonymous memory': external.allocate(64 * KiB, { source: 'anonymous' }),
      'a file': file('r+'),
      'a file that is only read': file('r'),
      'a SharedArrayBuffer': external.registerPagesOf(new SharedArrayBuffer(64 * KiB)).memory,
      'a Buffer': external.registerPagesOf(Buffer.allocUnsafeSlow(64 * KiB)).memory,
      'an address': external.fromAddress(va, 64 * KiB),
    };
    const blocks = {
      'a block of the library': eal.malloc(4096),
      'a block of a heap': eal.malloc(4096, { heap: name }),
      'a zone': eal.zones.reserve(name, 4096),
    };
    return [
      ...Object.entries(memories).map(([kind, memory]) => ({
        name: kind,
        share: () => memory.share(),
        bytes: () => memory.bytes(),
        free: kind === 'anonymous memory' ? () => memory.unregisterAsync() : () => memory.unregister(),
      })),
      ...Object.entries(blocks).map(([kind, block]) => ({
        name: kind,
        share: () => block.share(),
        bytes: () => block.bytes(),
        free: () => block.free(),
      })),
      {
        name: 'memory that is mapped for every device',
        share: () => everywhere.share(),
        bytes: () => everywhere.bytes(),
        free: () => everywhere.unregister(),
      },
      { name: 'a mapping of a group', share: () => inGroup.share(), free: () => group.unmap() },
      { name: 'a mapping', share: () => mapping.share(), free: () => mapping.unmap() },
      { name: 'a device', share: () => device.share(), free: () => eal.remove(device) },
    ];
  }

  for (const how of ['dispose', ...ENDINGS] as const)
    it(`is not freed while the thread has it, and is when it ends: ${how}`, async () => {
      const all = await things();
      await using worker = new SharingWorker();
      const shared = all.map((thing) => thing.share());
      const places = await worker.attach(...shared);
      for (const [i, { bytes }] of all.entries()) bytes?.().fill(i + 1);
      // The same bytes, both ways.
      const read = await worker.run(
        `return args[0].map((place) => {
          const bytes = held[place].bytes?.();
          if (bytes === undefined) return undefined;
          const first = bytes[0];
          bytes[1] = first + 100;
          return first;
        });`,
        places,
      );
      for (const [i, { name, bytes }] of all.entries())
        if (bytes !== undefined) {
          assert.equal((read as number[])[i], i + 1, name);
          assert.equal(bytes()[1], i + 101, name);
        }
      const holder = new RegExp(`held by worker thread ${worker.threadId} of process ${process.pid}`);
      for (const { name, free } of all)
        await assert.rejects(
          async () => free(),
          (error) => dmaError('EBUSY', name.includes('every device') ? /is mapped by/ : holder)(error),
          name,
        );
      if (how === 'dispose') await worker.run('for (const each of held) each[Symbol.dispose]();');
      else await worker.end(how);
      // First the group: it holds its memory.
      const order = [...all].sort((a, b) => Number(a.name.includes('every')) - Number(b.name.includes('every')));
      for (const { free } of order) await free();
      for (const [i, { name }] of all.entries())
        assert.throws(() => attach(shared[i]), dmaError('EINVAL', /was freed/), name);
    });

  it('is shared any number of times, with any number of threads', async () => {
    const memory = eal.external.allocate(64 * KiB);
    const shared = memory.share();
    assert.equal(memory.share(), shared);
    await using one = new SharingWorker();
    await using other = new SharingWorker();
    await one.attach(shared, shared);
    await other.attach(structuredClone(shared));
    await one.run('held[0].bytes()[0] = 7; held[0].detach();');
    // The thread attached twice: it has it as long as one is left.
    throwsDma('EBUSY', () => memory.unregister(), /and 1 more/);
    assert.equal(await other.run('return held[0].bytes()[0]'), 7);
    await other.end();
    throwsDma('EBUSY', () => memory.unregister(), new RegExp(`worker thread ${one.threadId} `));
    await one.run('held[1].detach()');
    memory.unregister();
  });

  it('can be attached in the thread that shares it, and by a worker of a worker', async () => {
    const memory = eal.external.allocate(64 * KiB);
    {
      using same = attach(memory.share());
      assert.equal(same.va, memory.va);
      same.bytes()[5] = 5;
      assert.equal(memory.bytes()[5], 5);
      throwsDma(
        'EBUSY',
        () => memory.unregister(),
        new RegExp(`held by process ${process.pid}, which attached at .*attach.test`),
      );
    }
    memory.unregister();
  });

  it('has views that end when the thread lets go of it, and pins that keep it', async () => {
    const memory = eal.external.allocate(64 * KiB);
    const held = attach(memory.share());
    const view = held.bytes(4096, 10);
    assert.equal(view.length, 10);
    const pin = held.pin('the ring');
    throwsDma('EBUSY', () => held.detach(), /in use: the ring/);
    await held.lend(async (bytes) => {
      assert.equal(bytes.length, 64 * KiB);
      throwsDma('EBUSY', () => held.detach());
    });
    pin[Symbol.dispose]();
    held.detach();
    assert.deepEqual([view.length, held.live], [0, false]);
    throwsDma('EINVAL', () => held.bytes(), /has let go of memfd memory/);
    throwsDma('EINVAL', () => held.detach());
    held[Symbol.dispose]();
    using again = attach(memory.share());
    throwsDma('EINVAL', () => again.bytes(64 * KiB, 1));
  });

  it('does not fault work that still runs on a view when the thread lets go and the memory is freed', async () => {
    await using worker = new SharingWorker();
    const memory = eal.external.allocate(64 * MiB);
    await worker.attach(memory.share());
    await worker.run(`
      const { randomFill } = await import('node:crypto');
      for (let i = 0; i < 4; i++) randomFill(held[0].bytes(), () => undefined);
      held[0].detach();`);
    const { waiting } = eal.external.retired;
    memory.unregister();
    // The content is gone at once, the addresses when the work is done and its views are collected.
    assert.equal(eal.external.retired.waiting.ranges, waiting.ranges + 1);
    await until(async () => {
      await worker.run(
        "globalThis.many = []; for (let i = 0; i < 100; i++) many.push(new ArrayBuffer(1000)); (await import('node:v8')).setFlagsFromString('--expose-gc'); (await import('node:vm')).runInNewContext('gc')();",
      );
      return eal.external.retired.waiting.ranges <= waiting.ranges;
    });
  });

  it('is kept for good when a view was transferred away', async () => {
    await using worker = new SharingWorker();
    const memory = eal.external.allocate(64 * KiB);
    await worker.attach(memory.share());
    await worker.run(`
      const pull = (controller) => controller.byobRequest?.respond(1);
      const { value } = await new ReadableStream({ type: 'bytes', pull }).getReader({ mode: 'byob' }).read(held[0].bytes());
      state.moved = new Uint8Array(value.buffer);
      state.moved[0] = 1;
      held[0].detach();`);
    const { escaped } = eal.external.retired;
    memory.unregister();
    assert.equal(eal.external.retired.escaped.ranges, escaped.ranges + 1);
    await worker.run('state.moved.fill(9);');
  });

  for (const how of ENDINGS)
    it(`is a pool, whose elements come back from a thread that ended: ${how}`, async () => {
      const pool = eal.pools.create({ elements: 64, elementSize: 128, cache: 16 });
      const shared = pool.share();
      await using worker = new SharingWorker();
      await worker.attach(shared);
      const element = await worker.run(`
        const burst = new Int32Array(10);
        held[0].get(burst, 10);
        held[0].bytes(burst[0]).fill(9);
        return burst[0];`);
      assert.equal(pool.bytes(Number(element))[127], 9);
      throwsDma('EBUSY', () => pool.free());
      assert.equal(pool.threads, 1);
      await worker.end(how);
      const all = new Int32Array(64);
      await until(() => pool.get(all, 64), 'all elements are back');
      assert.equal(new Set(all).size, 64);
      pool.put(all, 64);
      pool.free();
      assert.throws(() => attach(shared), dmaError('EINVAL', /was freed/));
    });

  it('is a pool, whose elements come back to a worker while the thread that made it does nothing', async () => {
    const pool = eal.pools.create({ elements: 64, elementSize: 64, cache: 8 });
    const shared = pool.share();
    await using one = new SharingWorker();
    await using other = new SharingWorker();
    await one.attach(shared);
    await other.attach(shared);
    await one.run('held[0].get(new Int32Array(64), 64);');
    const said = new Int32Array(new SharedArrayBuffer(4));
    other.tell(
      `const [pool, burst] = [held[0], new Int32Array(64)];
       for (const end = Date.now() + 8000; Date.now() < end && !pool.get(burst, 64); ) ;
       Atomics.store(args[0], 0, new Set(burst).size);
       Atomics.notify(args[0], 0);`,
      said,
    );
    const ended = one.end('process.exit()');
    // From here on nothing runs in this thread.
    Atomics.wait(said, 0, 0, 10_000);
    assert.equal(Atomics.load(said, 0), 64);
    await ended;
    await other.end();
    await until(() => pool.recover() >= 0 && pool.available === 64);
    pool.free();
  });

  it('leaves places in the table to more threads than it has room for', { timeout: 60_000 }, async () => {
    const pool = eal.pools.create({ elements: 16, elementSize: 64 });
    const { holders } = pool.share();
    const { kernel } = eal.platform;
    // Threads that have ended: no thread has such a number.
    let tid = 5_000_000;
    const ofDead = {
      readText: () => undefined,
      readLink: () => `${process.pid}/task/${tid++}`,
    };
    const enter = (): number => Holders.attach(ofDead, holders as SharedArrayBuffer).enter();
    const room = Holders.attach(kernel, holders as SharedArrayBuffer).capacity;
    let entered = 0;
    const seen = new Set<number>();
    await until(() => {
      try {
        for (; entered < room + 100; entered++) seen.add(enter());
      } catch (error) {
        assert.ok(dmaError('EAGAIN', /places of threads that ended/)(error));
      }
      return entered === room + 100;
    });
    assert.ok(seen.size < entered, 'places were given out twice');
    for (let n = 0; n < 2; n++) {
      await using worker = new SharingWorker();
      await worker.attach(pool.share());
      await worker.run('held[0].get(new Int32Array(16), 4);');
      await worker.end('process.exit()');
    }
    await until(() => [...Holders.attach(kernel, holders as SharedArrayBuffer).gone()].length === 0);
    assert.equal(pool.available, 16);
    pool.free();
  });

  it('is a pool that goes on after an element was put twice', () => {
    const pool = eal.pools.create({ elements: 32, elementSize: 64, cache: 8 });
    const there = attach(pool.share());
    const numbers = new Int32Array(4);
    const putTwice = (): void => {
      assert.ok(there.get(numbers, 4));
      there.put(numbers, 4);
      there.put(numbers, 2);
    };
    putTwice();
    throwsDma('EINVAL', () => there.cache?.flush(), /was put twice/);
    assert.equal(there.available, 32);
    there.cache?.flush();
    putTwice();
    // A put that has to make room in the cache says so, and puts nothing; the next one succeeds.
    const more = new Int32Array(8);
    assert.ok(pool.get(more, 8));
    throwsDma('EINVAL', () => there.put(more, 8), /was put twice/);
    there.put(more, 8);
    putTwice();
    there.free();
    const all = new Int32Array(32);
    assert.ok(pool.get(all, 32));
    assert.equal(new Set(all).size, 32);
    pool.put(all, 32);
    pool.free();
  });

  it('is no pool that was changed on its way', () => {
    const pool = eal.pools.create({ elements: 8, elementSize: 64 });
    const shared = pool.share();
    const { sealed } = shared;
    assert.ok(sealed);
    const [chunk] = pool.chunks;
    for (const facts of [
      { ...sealed.facts, chunks: [{ ...chunk, va: 4096 }] },
      { ...sealed.facts, chunks: [{ ...chunk, count: 1000 }] },
      { ...sealed.facts, shape: { size: 64, headroom: 0, align: 64, stride: 2 ** 30 } },
    ])
      throwsDma('EINVAL', () => attach({ ...shared, sealed: { ...sealed, facts } }));
    const [own] = [attach(shared)];
    assert.equal(own.elements, 8);
    throwsDma('EBUSY', () => pool.free(), /1 thread has attached/);
    own.free();
    pool.free();
  });

  it('is refused when it says something else than what was shared', async () => {
    const memory = eal.external.allocate(64 * KiB);
    const other = eal.external.allocate(64 * KiB);
    const shared = memory.share();
    const facts = shared.facts;
    const wrong: Record<string, unknown> = {
      'another address': { ...shared, facts: { ...facts, va: 4096 } },
      'another length': { ...shared, facts: { ...facts, length: 2 ** 40 } },
      'another kind': { ...shared, kind: 'device' },
      'a kind that there is not': { ...shared, kind: 'heap' },
      'another version': { ...shared, version: 2 },
      'words of its own': { ...shared, holds: new SharedArrayBuffer(shared.holds.byteLength) },
      'words of another': { ...shared, holds: other.share().holds },
      'a copy of the words': { ...shared, holds: copyOf(shared.holds) },
      'holders of its own': { ...shared, holders: new SharedArrayBuffer(shared.holders.byteLength) },
      'other keepers': { ...shared, keepers: [new SharedArrayBuffer(8)] },
      'no seal': { ...shared, seal: undefined },
      'the seal of another': { ...shared, seal: other.share().seal },
      'JSON of it': JSON.parse(JSON.stringify(shared)),
      nothing: undefined,
      'an empty object': {},
      'a text': 'memory',
      'an object that throws': {
        get kind(): never {
          throw new Error('mine');
        },
      },
      'facts that throw': {
        ...shared,
        facts: {
          get va(): never {
            throw new Error('mine');
          },
        },
      },
      'a cycle': { ...shared, facts: { va: shared } },
    };
    for (const [name, description] of Object.entries(wrong))
      assert.throws(
        () => attach(description as Shared<unknown>),
        (error) => dmaError('EINVAL')(error),
        name,
      );
    for (const platform of [{}, 5, null, { ...openPlatform(), memory: undefined }])
      throwsDmaOf('EINVAL', 'attach', () => attach(shared, platform as never), /this is no platform/);
    memory.unregister();
    other.unregister();
    const again = eal.external.allocate(64 * KiB);
    throwsDma('EINVAL', () => attach(shared), /was freed .*share\(\)/);
    again.unregister();
  });

  it('is no object of the library: those stay in their thread, and sending one says so', async () => {
    const device = await eal.probe('vdev:edu0');
    const memory = eal.external.allocate(64 * KiB);
    const mapping = device.dmaMap(memory);
    const group = eal.dmaMapAll(memory, []);
    const pool = eal.pools.create({ elements: 4, elementSize: 64, cache: 2 });
    const [block, zone] = [eal.malloc(64), eal.zones.reserve('sent', 64)];
    using attached = attach(memory.share());
    using attachedMapping = attach(mapping.share());
    using attachedDevice = attach(device.share());
    const [edu, engine] = [device.use(eduDriver), (await eal.probe('vdev:copy0')).use(copyEngineDriver)];
    const inPool = device.dmaMapPool(pool);
    const objects = {
      ...{ edu, engine, inPool, pin: block.pin() },
      ...{ eal, device, memory, mapping, group, pool, block, zone, attached, attachedMapping, attachedDevice },
      ...{ domain: device.domain, table: device.domain?.table, cache: pool.cache, heap: block.heap, area: memory.area },
      ...{ external: eal.external, heaps: eal.heaps, zones: eal.zones, pools: eal.pools, owned: eal.memory },
      ...{ containers: eal.containers, attachedTable: attachedDevice.domain?.table },
    };
    for (const [name, object] of Object.entries(objects))
      assert.throws(() => structuredClone(object), { name: 'DataCloneError', message: /could not be cloned/ }, name);
    for (const each of [attached, attachedMapping, attachedDevice]) each[Symbol.dispose]();
    objects.pin[Symbol.dispose]();
    inPool.unmap();
    pool.free();
    block.free();
    zone.free();
    await eal.remove(eal.devices('driver=copy')[0]);
    await eal.remove(device);
    memory.unregister();
  });

  it('leaves no trace of threads that ended: their places are given to others', async () => {
    const memory = eal.external.allocate(64 * KiB);
    const shared = memory.share();
    const kernel = eal.platform.kernel;
    const count = (): number => [...Holders.attach(kernel, shared.holders).gone()].length;
    for (let i = 0; i < 3; i++) {
      await using worker = new SharingWorker();
      await worker.attach(shared);
    }
    await until(() => count() === 0, 'all who are gone are forgotten');
    memory.unregister();
  });

  it('stops its Eal only when no thread has it, and releases nothing before', async () => {
    const own = await start();
    const device = await own.probe('vdev:edu0');
    const memory = own.external.allocate(64 * KiB);
    const mapping = device.dmaMap(memory);
    const block = own.malloc(64);
    const worker = new SharingWorker();
    await worker.attach(block.share());
    await assert.rejects(own.stop(), dmaError('EBUSY', /the block at .* is shared, and held by worker thread/));
    assert.deepEqual([mapping.live, device.state, memory.live, block.live], [true, 'probed', true, true]);
    throwsDma('ECANCELED', () => own.malloc(64));
    await worker.end();
    await own.stop();
    assert.deepEqual([mapping.live, device.state, memory.live], [false, 'gone', false]);
    throwsDma('EINVAL', () => memory.share());
  });

  it('outlives the worker that made it', async () => {
    const maker = new SharingWorker('package');
    const shared = (await maker.run(`
      state.eal = await anydma.Eal.start({ onForgotten: () => undefined, memory: { onNotice: () => undefined } });
      state.memory = state.eal.external.allocate(1 << 20);
      state.block = state.eal.malloc(8192);
      state.shared = state.eal.external.registerPagesOf(new SharedArrayBuffer(1 << 16)).memory;
      for (const each of [state.memory, state.block, state.shared]) each.bytes().fill(3);
      state.device = await state.eal.probe('vdev:edu0');
      state.mapping = state.device.dmaMap(state.memory);
      return [state.memory, state.block, state.shared, state.mapping, state.device].map((each) => each.share());`)) as Shared<{
      bytes(): Uint8Array;
      readonly live: boolean;
      [Symbol.dispose](): void;
    }>[];
    const buffer = await maker.run(`
      try { return state.eal.external.registerPagesOf(Buffer.allocUnsafeSlow(1 << 16)).memory.share(); }
      catch (error) { return error.code + ': ' + error.message; }`);
    assert.match(String(buffer), /^EINVAL: .*is a Buffer of this worker thread/);
    const [memory, block, shares, mapping, device] = shared.map((each) => attach(each));
    assert.match(
      String(await maker.run('try { state.block.free(); } catch (error) { return error.message; }')),
      new RegExp(`held by process ${process.pid}`),
    );
    assert.deepEqual([mapping.live, device.live], [true, true]);
    await maker.end();
    for (const each of [memory, block, shares]) {
      const bytes = each.bytes();
      assert.deepEqual([bytes[0], bytes.at(-1)], [3, 3]);
      bytes.fill(4);
      assert.equal(bytes.at(-1), 4);
    }
    // The devices went with the thread.
    assert.deepEqual([mapping.live, device.live], [false, false]);
    // What was not attached before can still be: whoever has the description keeps the memory.
    using late = attach(shared[0]);
    assert.equal(late.bytes()[0], 4);
    for (const each of [memory, block, shares, mapping, device]) each[Symbol.dispose]();
  });
});

describe('a pool of an Eal with a name', SKIP, () => {
  ownPlaces();

  it('is opened by a worker, too, which has it until it ends', async () => {
    const eal = await Eal.start({ name: 'pools', memory: { noHuge: true }, onForgotten: () => undefined });
    const pool = eal.pools.create({ elements: 32, elementSize: 128, cache: 4 });
    await using worker = new SharingWorker();
    await using other = new SharingWorker();
    await worker.attach(pool.share());
    await other.attach(structuredClone(pool.share()));
    const element = await worker.run(`
      const burst = new Int32Array(8);
      held[0].get(burst, 8);
      held[0].bytes(burst[0]).fill(5);
      return burst[0];`);
    assert.equal(pool.bytes(Number(element))[127], 5);
    assert.equal(pool.threads, 2);
    await other.run('state.bytes = held[0].chunkBytes(0); state.cache = held[0].cache; held[0].free();');
    assert.deepEqual(await other.run('return [state.bytes.length, held[0].available, held[0].threads];'), [0, 0, 0]);
    for (const call of ['getInPlace(1)', 'roomFor(1)', 'put(new Int32Array(1), 1)', 'get(new Int32Array(1), 1)'])
      await assert.rejects(
        other.run(`return state.cache.${call};`),
        (error) => error instanceof WorkerFailure && error.code === 'EINVAL',
        call,
      );
    await other.end();
    throwsDma('EBUSY', () => pool.free(), /1 thread has attached/);
    // Nothing is released before: other processes are told nothing.
    await assert.rejects(eal.stop(), dmaError('EBUSY', /the pool pool_0 is shared, and held by worker thread/));
    assert.equal(pool.live, true);
    await using child = await SecondaryProcess.attach('pools');
    assert.equal(await child.run(async ({ store }) => (await store.pools.find('pool_0'))?.elements), 32);
    await child.kill();
    const { holders } = pool.sharing ?? {};
    assert.ok(holders);
    await worker.end();
    await until(() => pool.available === 32 && [...holders.gone()].length === 0, 'places are given to others');
    const shared = pool.share();
    pool.free();
    assert.throws(() => attach(shared), dmaError('EINVAL', /was freed/));
    await eal.stop();
  });

  it('comes back to a secondary when its primary and another secondary were killed', async () => {
    await using primary = await SecondaryProcess.start();
    await primary.run(async ({ anydma, kept }) => {
      const eal = await anydma.Eal.start({ name: 'dying', memory: { noHuge: true } });
      const pool = eal.pools.create({ name: 'packets', elements: 32, elementSize: 64 });
      pool.share();
      pool.get(new Int32Array(10), 10);
      Object.assign(kept, { eal, pool });
    });
    await using one = await SecondaryProcess.attach('dying');
    await using other = await SecondaryProcess.attach('dying');
    for (const each of [one, other])
      await each.run(async ({ store, kept }) => {
        const pool = await store.pools.find('packets');
        pool?.get(new Int32Array(10), 10);
        Object.assign(kept, { pool });
      });
    await primary.kill();
    await other.kill();
    const all = await one.run(async ({ kept }) => {
      const pool = Reflect.get(kept, 'pool') as Pool;
      const burst = new Int32Array(22);
      for (let tries = 0; tries < 200; tries++) {
        if (pool.get(burst, 22)) return [...burst];
        await new Promise((resolve) => setTimeout(resolve, 10));
      }
      return [];
    });
    assert.equal(new Set(all).size, 22);
  });
});

describe('the addresses of a device in a worker thread', SKIP, () => {
  let eal: Eal;
  let device: Device;
  before(async () => {
    eal = await start();
    device = await eal.probe('vdev:edu0');
  });
  after(() => eal.stop());

  it('are those of the thread that has the device, and follow what it maps and unmaps', async () => {
    const memory = eal.external.allocate(4 * MiB);
    using before = device.dmaMap({ va: memory.va, length: MiB });
    await using worker = new SharingWorker();
    await worker.attach(device.share(), memory.share());
    const ask = async (va: number, length: number): Promise<unknown> =>
      worker.run('return held[0].domain.table.iovaOfRange(...args);', va, length);
    assert.equal(await ask(memory.va, MiB), before.iova);
    assert.equal(await ask(memory.va + MiB, 1), -1);
    const next = device.dmaMap({ va: memory.va + MiB, length: MiB });
    assert.equal(await ask(memory.va + MiB + 5, 100), next.iova + 5);
    next.unmap();
    assert.equal(await ask(memory.va + MiB + 5, 100), -1);
    // More than the ring of changes has.
    for (let i = 0; i < 5000; i++) device.dmaMap({ va: memory.va + 2 * MiB, length: 4096 }).unmap();
    const last = device.dmaMap({ va: memory.va + 2 * MiB, length: 8192 });
    assert.equal(await ask(memory.va + 2 * MiB, 8192), last.iova);
    assert.equal(await ask(memory.va, MiB), before.iova);
    assert.equal(await worker.run('return held[0].iovaOf({ va: held[1].va, length: 4096 });'), before.iova);
    await assert.rejects(
      worker.run('held[0].iovaOf(held[1]);'),
      (error) => error instanceof WorkerFailure && error.code === 'EINVAL' && /in one piece/.test(error.message),
    );
    last.unmap();
    await worker.end();
    before.unmap();
    memory.unregister();
  });

  it('never answer what was unmapped before', async () => {
    const memory = eal.external.allocate(2 * MiB);
    await using worker = new SharingWorker();
    await worker.attach(device.share());
    const word = new Int32Array(new SharedArrayBuffer(8));
    // The worker looks the address up as soon as it is mapped, and as soon as it is unmapped, and says if it saw something else.
    worker.tell(
      `const [word, va] = args;
       const { table } = held[0].domain;
       for (let round = 0; round < ${ROUNDS}; round++) {
         Atomics.wait(word, 0, round);
         // The main thread says: mapped (even) or unmapped (odd).
         const iova = table.iovaOfRange(va, 4096);
         if ((iova >= 0) !== ((round & 1) === 0)) { Atomics.store(word, 1, round + 1); }
         Atomics.store(word, 0, -round - 1);
         Atomics.notify(word, 0);
         Atomics.wait(word, 0, -round - 1);
       }`,
      word,
      memory.va,
    );
    let mapping: ReturnType<Device['dmaMap']> | undefined;
    for (let round = 0; round < ROUNDS; round++) {
      if ((round & 1) === 0) mapping = device.dmaMap({ va: memory.va, length: 4096 });
      else mapping?.unmap();
      Atomics.store(word, 0, round + 1);
      Atomics.notify(word, 0);
      Atomics.wait(word, 0, round + 1);
      Atomics.store(word, 0, round + 1);
      Atomics.notify(word, 0);
    }
    assert.equal(Atomics.load(word, 1), 0);
    await worker.end();
    memory.unregister();
  });
});

function copyOf(buffer: SharedArrayBuffer): SharedArrayBuffer {
  const copy = new SharedArrayBuffer(buffer.byteLength);
  new Uint8Array(copy).set(new Uint8Array(buffer));
  return copy;
}
