/** What still works on memory when it is freed, or everything is stopped: pins hold it, and views that are left harm nobody. */
import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { randomFill } from 'node:crypto';
import { once } from 'node:events';
import { describe, it } from 'node:test';
import { promisify } from 'node:util';
import { runInThisContext } from 'node:vm';
import { MessageChannel, Worker } from 'node:worker_threads';
import { dmaError } from '../test/shared/errors.js';
import { copyEngineDriver } from './drivers/copy-engine-driver.js';
import { Eal, type EalOptions } from './eal.js';
import { collected } from '../test/shared/garbage.js';
import { openPlatform } from './platform/open.js';
import { trackingPlatform } from '../test/fakes/platform/platforms.js';
import { KiB, MiB } from './units.js';

const SKIP = { skip: openPlatform().limitation ?? false };
const fill = promisify(randomFill);

/** Has another thread fill `bytes`. */
async function randomize(bytes: Uint8Array): Promise<Uint8Array> {
  await fill(bytes);
  return bytes;
}

async function start(options: EalOptions = {}) {
  const platform = trackingPlatform(openPlatform());
  const eal = await Eal.start({ platform, onForgotten: () => undefined, memory: { noHuge: true }, ...options });
  return { platform, eal };
}

/** Moves what `view` is on into another ArrayBuffer. */
async function moved(view: Uint8Array): Promise<Uint8Array> {
  const stream = new ReadableStream({ type: 'bytes', pull: (controller) => controller.byobRequest?.respond(1) });
  const { value } = await stream.getReader({ mode: 'byob' }).read(view);
  assert.ok(value !== undefined);
  return new Uint8Array(value.buffer);
}

describe('pins', SKIP, () => {
  it('of blocks refuse everything that ends the block; stop() works once they are gone', async () => {
    const { platform, eal } = await start();
    const block = eal.malloc(64 * KiB);
    const pin = block.pin('the test works on it');
    const busy = dmaError('EBUSY', /the test works on it/);
    assert.throws(() => block.free(), busy);
    assert.throws(() => eal.realloc(block, MiB), busy);
    assert.equal(eal.memory.trim(), 0);
    const work = fill(block.bytes());
    await assert.rejects(eal.stop(), busy);
    await work;
    assert.ok(block.live && block.bytes().some((byte) => byte !== 0));
    await assert.rejects(eal.stop(), busy, 'as long as it is pinned');
    pin[Symbol.dispose]();
    assert.throws(() => eal.malloc(64), dmaError('ECANCELED'));
    block.free();
    await eal.stop();
    await eal.stop();
    assert.deepEqual(platform.leaks(), []);
  });

  it('of a block over memory of the user holds stop() as well, and the memory with it', async () => {
    const { platform, eal } = await start();
    eal.heaps.create('mine');
    const memory = eal.external.allocate(MiB);
    eal.heaps.addMemory('mine', memory);
    const [held, other] = [eal.malloc(64, { heap: 'mine' }), eal.malloc(64, { heap: 'mine' })];
    const pin = held.pin('the test works on it');
    const view = held.bytes().fill(7);
    assert.throws(() => eal.heaps.removeMemory('mine', { va: memory.va, length: memory.length }), dmaError('EBUSY'));
    assert.throws(() => eal.heaps.destroy('mine'), dmaError('EBUSY'));
    assert.throws(() => memory.unregister(), dmaError('EBUSY', /in the heap mine/));
    await assert.rejects(eal.stop(), dmaError('EBUSY', /the test works on it/));
    assert.deepEqual([held.live, other.live, memory.live, view[63]], [true, false, true, 7]);
    pin[Symbol.dispose]();
    await eal.stop();
    assert.deepEqual([held.live, memory.live, view.length], [false, false, 0]);
    assert.deepEqual(platform.leaks(), []);
  });

  it('are held by lend() of memory, blocks and zones while it runs', async () => {
    const { eal } = await start();
    const memory = eal.external.allocate(MiB);
    const block = eal.malloc(64 * KiB);
    const zone = eal.zones.reserve('zone', 64 * KiB);
    const works = [memory, block, zone].map((each) => each.lend(randomize));
    assert.throws(() => memory.unregister(), dmaError('EBUSY', /work on its bytes/));
    assert.throws(() => block.free(), dmaError('EBUSY', /work on its bytes/));
    assert.throws(() => zone.free(), dmaError('EBUSY', /work on its bytes/));
    await assert.rejects(eal.stop(), dmaError('EBUSY', /work on its bytes/));
    for (const result of await Promise.all(works)) assert.ok(result.some((byte) => byte !== 0));
    await eal.stop();
    await assert.rejects(
      block.lend(() => undefined),
      dmaError('EINVAL', /was freed/),
    );
  });

  it('of external memory: a stop() that was refused is not refused for ever', async () => {
    const { eal } = await start();
    const memory = eal.external.allocate(MiB);
    const pin = memory.pin('the test works on it');
    await assert.rejects(eal.stop(), dmaError('EBUSY', /the test works on it/));
    pin[Symbol.dispose]();
    await eal.stop();
    assert.equal(memory.live, false);
  });
});

describe('blocks whose view was transferred away', SKIP, () => {
  it('are never handed out again, in heaps of either kind, and statistics say so', async () => {
    const { platform, eal } = await start();
    eal.heaps.create('mine');
    const memory = eal.external.allocate(MiB);
    eal.heaps.addMemory('mine', memory);
    const views: Uint8Array[] = [];
    for (const options of [{}, { heap: 'mine' }]) {
      const block = eal.malloc(64 * KiB, options);
      const { va, heap } = block;
      const view = await moved(block.bytes());
      views.push(view);
      assert.throws(() => block.bytes(), dmaError('EINVAL', /transferred away/));
      block.free();
      const statistics = heap.statistics();
      assert.deepEqual([statistics.escapedBlocks, statistics.escaped], [1, 64 * KiB]);
      assert.equal(heap.blockAt(va), undefined);
      const others = Array.from({ length: 12 }, () => eal.malloc(64 * KiB, options));
      for (const other of others) other.bytes().fill(9);
      assert.ok(view.every((byte) => byte === 0));
      for (const other of others) {
        assert.ok(other.va + other.length <= va || other.va >= va + 64 * KiB);
        other.free();
      }
    }
    assert.throws(
      () => eal.heaps.removeMemory('mine', { va: memory.va, length: memory.length }),
      dmaError('EBUSY', /1 block of the heap mine that were freed stay in it: .*transferred away/),
    );
    eal.memory.trim();
    assert.equal(eal.memory.facts().heaps[0].escapedBlocks, 1);
    await eal.stop();
    for (const view of views) assert.ok(view.fill(5).every((byte) => byte === 5));
    assert.deepEqual(platform.leaks(), []);
  });

  it('are moved by realloc, not made longer in place', async () => {
    const { eal } = await start();
    const block = eal.malloc(4 * KiB);
    block.bytes().fill(3);
    const view = await moved(block.bytes());
    const next = eal.realloc(block, 2 * KiB);
    assert.notEqual(next.va, block.va);
    assert.ok(next.bytes().every((byte) => byte === 3));
    next.bytes().fill(4);
    assert.ok(view.every((byte) => byte === 3));
    assert.equal(next.heap.statistics().escapedBlocks, 1);
    await eal.stop();
  });

  it('keep a pool’s memory as well', async () => {
    const { eal } = await start();
    const pool = eal.pools.create({ elements: 8, elementSize: 64 });
    const view = await moved(pool.bytes(0));
    assert.throws(() => pool.bytes(0), dmaError('EINVAL', /transferred away/));
    assert.throws(() => pool.bytes(1), dmaError('EINVAL', /transferred away/));
    const { heaps } = eal.memory;
    pool.free();
    assert.equal(heaps[0].statistics().escapedBlocks, 1);
    await eal.stop();
    assert.ok(view.fill(1).every((byte) => byte === 1));
  });
});

describe('pools in use elsewhere', SKIP, () => {
  it('are not freed, also not by force, while a block of theirs is pinned, and go on', async () => {
    const { platform, eal } = await start();
    const pool = eal.pools.create({ elements: 8, elementSize: 64, name: 'pinned' });
    const pin = eal.memory.heaps[0].blockAt(pool.vas[0])?.pin('the test works on it');
    assert.ok(pin !== undefined);
    const busy = dmaError('EBUSY', /the test works on it/);
    assert.throws(() => pool.free(), busy);
    assert.throws(() => pool.free({ force: true }), busy);
    assert.deepEqual([pool.live, eal.pools.find('pinned'), pool.bytes(7).length], [true, pool, 64]);
    assert.throws(() => eal.pools.create({ elements: 8, elementSize: 64, name: 'pinned' }), dmaError('EEXIST'));
    await assert.rejects(eal.stop(), busy);
    pin[Symbol.dispose]();
    await eal.stop();
    assert.deepEqual([pool.live, platform.leaks()], [false, []]);
  });

  for (const kind of ['heap', 'external'] as const)
    it(`whose view was transferred away in another thread end, and their memory stays: ${kind}`, async () => {
      const { eal } = await start();
      const external = kind === 'external' ? [eal.external.allocate(64 * KiB)] : undefined;
      const pool = eal.pools.create({ elements: 8, elementSize: 64, external });
      const { escaped } = eal.external.retired;
      const program = `
        const { parentPort, workerData } = require('node:worker_threads');
        (async () => {
          const { Eal, Pool } = await import(${JSON.stringify(new URL('./index.js', import.meta.url).href)});
          const eal = await Eal.start();
          const pool = Pool.attach(workerData, eal.platform);
          const stream = new ReadableStream({ type: 'bytes', pull: (controller) => controller.byobRequest?.respond(1) });
          const { value } = await stream.getReader({ mode: 'byob' }).read(pool.bytes(0));
          const view = new Uint8Array(value.buffer);
          pool.free();
          await eal.stop();
          parentPort.on('message', () => {
            view.fill(5);
            parentPort.postMessage('done');
            parentPort.close();
          });
          parentPort.postMessage('freed');
        })();
      `;
      const worker = new Worker(program, { eval: true, workerData: pool.share() });
      await once(worker, 'message');
      assert.equal(pool.threads, 0);
      pool.free();
      if (external === undefined) assert.equal(eal.memory.heaps[0].statistics().escapedBlocks, 1);
      external?.[0].unregister();
      const others = Array.from({ length: 20 }, () => eal.external.allocate(64 * KiB));
      const blocks = Array.from({ length: 20 }, () => eal.malloc(64));
      worker.postMessage('fill');
      await once(worker, 'message');
      for (const each of [...others, ...blocks]) assert.ok(each.bytes().every((byte) => byte === 0));
      await once(worker, 'exit');
      await eal.stop();
      assert.equal(eal.external.retired.escaped.ranges, escaped.ranges + 1);
    });

  it('memory whose view was transferred away is not taken into a heap', async () => {
    const { eal } = await start();
    eal.heaps.create('mine');
    for (const memory of [eal.external.allocate(64 * KiB), eal.external.registerPagesOf(new Uint8Array(MiB)).memory]) {
      await moved(memory.bytes());
      assert.throws(() => eal.heaps.addMemory('mine', memory), dmaError('EBUSY', /transferred away/));
      assert.equal(memory.area.owner, 'external');
    }
    await eal.stop();
  });
});

describe('late work on memory of the library', SKIP, () => {
  it('meets nothing when the memory goes back: the addresses wait, and are used again afterwards', async () => {
    const { platform, eal } = await start({ memory: { matchAllocations: true, onNotice: () => undefined } });
    const use = async (): Promise<number> => {
      const block = eal.malloc(64 * MiB);
      const { va } = block;
      const running = fill(block.bytes());
      block.free();
      assert.equal(eal.memory.facts().lists[0].pages, 0);
      assert.equal(platform.retired().length, 1);
      const next = eal.malloc(64 * MiB, { zero: true });
      assert.ok(Math.abs(next.va - va) >= 64 * MiB);
      await running;
      assert.equal(Buffer.compare(next.bytes(), Buffer.alloc(64 * MiB)), 0);
      next.free();
      return va;
    };
    const va = await use();
    await collected(() => platform.retired().length === 0);
    const again = eal.malloc(64 * MiB);
    assert.equal(again.va, va);
    again.free();
    await eal.stop();
    assert.deepEqual(platform.leaks(), []);
  });

  it('may still run when the Eal stops, and the addresses go when it is done', async () => {
    const { platform, eal } = await start();
    const use = async (): Promise<void> => {
      const running = [eal.malloc(32 * MiB), eal.external.allocate(32 * MiB)].map((each) => fill(each.bytes()));
      await eal.stop();
      assert.equal(platform.retired().length, 2);
      assert.deepEqual(platform.leaks(), []);
      await Promise.all(running);
    };
    await use();
    await collected(() => platform.retired().length === 0);
    assert.deepEqual(platform.leaks(), []);
  });

  it('does not keep an Eal from being collected', async () => {
    const held: Uint8Array[] = [];
    const use = async (): Promise<WeakRef<Eal>> => {
      const { eal } = await start();
      held.push(eal.malloc(64).bytes(), eal.external.allocate(MiB).bytes());
      held.push(await moved(eal.external.allocate(MiB).bytes()));
      await eal.stop();
      return new WeakRef(eal);
    };
    const ref = await use();
    await collected(() => ref.deref() === undefined);
    assert.deepEqual(
      held.map(({ length }) => length),
      [0, 0, MiB],
    );
  });
});

describe('handlers', SKIP, () => {
  it('can neither destroy the heap whose memory changes nor take its memory', async () => {
    const { eal } = await start();
    eal.heaps.create('mine');
    eal.heaps.create('other');
    const memory = eal.external.allocate(MiB);
    const told: string[] = [];
    const refuse = (what: string): void => {
      told.push(what);
      assert.throws(() => eal.heaps.destroy('mine'), dmaError('EBUSY'));
      assert.throws(() => eal.heaps.removeMemory('mine', { va: memory.va, length: memory.length }), isRefusal);
    };
    const isRefusal = (error: unknown): boolean =>
      error instanceof Error && 'code' in error && (error.code === 'EBUSY' || error.code === 'ENOENT');
    const handler = eal.memory.addHandler({
      grow: () => refuse('grow'),
      grown: () => refuse('grown'),
      shrink: () => {
        refuse('shrink');
        eal.heaps.destroy('other');
      },
      shrunk: () => told.push('shrunk'),
    });
    eal.heaps.addMemory('mine', memory);
    eal.malloc(64, { heap: 'mine' }).free();
    eal.heaps.removeMemory('mine', { va: memory.va, length: memory.length });
    handler[Symbol.dispose]();
    assert.deepEqual(told, ['grow', 'grown', 'shrink', 'shrunk']);
    eal.heaps.destroy('mine');
    await eal.stop();
  });

  it('of `unregistered` find nothing at the addresses any more', async () => {
    const { eal } = await start();
    const memory = eal.external.allocate(MiB);
    const { va, length } = memory;
    let thrown: unknown;
    eal.events.on('unregistered', () => {
      try {
        eal.external.fromAddress(va, length);
      } catch (error) {
        thrown = error;
      }
    });
    memory.unregister();
    assert.ok(dmaError('EFAULT')(thrown));
    await eal.stop();
  });
});

describe('devices', SKIP, () => {
  it('still reach memory whose view was transferred away by the program', async () => {
    const { eal } = await start();
    const device = await eal.probe('vdev:copy0');
    const memory = eal.external.allocate(MiB);
    const target = eal.external.allocate(MiB);
    const from = device.dmaMap(memory);
    const to = device.dmaMap(target);
    const view = (await moved(memory.bytes())).fill(7);
    await device.use(copyEngineDriver).copy(from.iova, to.iova, MiB);
    assert.equal(Buffer.compare(target.bytes(), view), 0);
    from.unmap();
    to.unmap();
    await eal.stop();
  });

  it('that are given a WebAssembly.Memory which grows say why they do not reach it any more', async () => {
    const { eal } = await start();
    const device = await eal.probe('vdev:copy0');
    const made: unknown = runInThisContext('new WebAssembly.Memory({ initial: 1, maximum: 2 })');
    const wasm = made as { readonly buffer: ArrayBuffer; grow(pages: number): number };
    const memory = eal.external.register(wasm.buffer);
    const from = device.dmaMap(memory);
    const target = eal.malloc(64 * KiB);
    const told: string[] = [];
    eal.events.on('failed', (which, error) => told.push(`${which.name}: ${error.message}`));
    wasm.grow(1);
    assert.throws(() => memory.bytes(), dmaError('EINVAL', /WebAssembly.Memory that grows/));
    const to = device.domain?.iovaOf(target.va) ?? -1;
    await assert.rejects(device.use(copyEngineDriver).copy(from.iova, to, 64), dmaError('EIO'));
    assert.match(told[0], /^vdev:copy0: .*transferred away.*WebAssembly.Memory that grows/);
    from.unmap();
    memory.unregister();
    await eal.stop();
  });
});

describe('pools', SKIP, () => {
  for (const how of [{}, { cache: 4 }, { checked: true }])
    it(`refuse arrays that can not hold numbers of elements, and are not locked afterwards: ${JSON.stringify(how)}`, async () => {
      const { eal } = await start();
      const pool = eal.pools.create({ elements: 16, elementSize: 64, ...how });
      const wrong: unknown[] = [
        new BigInt64Array(4),
        [0, 0, 0, 0],
        new Uint8Array(4),
        new Float64Array(4),
        null,
        undefined,
      ];
      // Passes for one, and throws when it is touched.
      const trap = new Proxy(new Int32Array(4), {
        get: (target, key) => (key === 'length' ? target.length : undefined),
        set: () => false,
      });
      for (const array of [...wrong, trap]) {
        assert.throws(() => Reflect.apply(pool.get.bind(pool), pool, [array, 2]));
        assert.throws(() => Reflect.apply(pool.put.bind(pool), pool, [array === trap ? null : array, 2]));
      }
      for (const array of wrong)
        assert.throws(() => Reflect.apply(pool.get.bind(pool), pool, [array, 2]), dmaError('EINVAL', /Int32Array/));
      const burst = new Int32Array(16);
      const began = performance.now();
      assert.ok(pool.get(burst, 16));
      pool.put(burst, 16);
      assert.ok(performance.now() - began < 5000);
      pool.free();
      await eal.stop();
    });
});

describe('threads', SKIP, () => {
  it('share memory by its address, which is lent meanwhile', async () => {
    const { eal } = await start();
    const memory = eal.external.allocate(64 * KiB);
    memory.bytes()[0] = 1;
    const program = `
      const { parentPort } = require('node:worker_threads');
      parentPort.once('message', async ({ va, length }) => {
        const { Eal } = await import(${JSON.stringify(new URL('./index.js', import.meta.url).href)});
        const eal = await Eal.start();
        const same = eal.external.fromAddress(va, length);
        same.bytes()[1] = same.bytes()[0] + 1;
        same.unregister();
        await eal.stop();
        parentPort.postMessage('done');
      });
    `;
    const worker = new Worker(program, { eval: true });
    const shared = memory.lend(async () => {
      worker.postMessage({ va: memory.va, length: memory.length });
      await once(worker, 'message');
    });
    assert.throws(() => memory.unregister(), dmaError('EBUSY'));
    await shared;
    assert.deepEqual([...memory.bytes(0, 2)], [1, 2]);
    await worker.terminate();
    await eal.stop();
  });

  it('do not share a view that is posted: it is refused, or on Node 20 a copy', async () => {
    const { eal } = await start();
    const memory = eal.external.allocate(64 * KiB);
    const { port1, port2 } = new MessageChannel();
    const view = memory.bytes();
    const got = once(port2, 'message');
    try {
      port1.postMessage(view, [view.buffer as ArrayBuffer]);
      const [copy] = (await got) as [Uint8Array];
      copy[0] = 1;
    } catch (error) {
      assert.match(String(error), /DataCloneError/);
    }
    assert.deepEqual([memory.bytes()[0], view.length], [0, 64 * KiB]);
    port1.close();
    await eal.stop();
  });
});

describe('external memory', SKIP, () => {
  it('of whole pages of a Buffer that begins anywhere', async () => {
    const { eal } = await start();
    const device = await eal.probe('vdev:copy0');
    const page = eal.platform.memory.pageSize;
    const buffer = Buffer.alloc(6 * page);
    using pages = eal.external.registerPagesOf(buffer.subarray(100));
    assert.ok(pages.memory.length >= 4 * page && pages.memory.va % page === 0);
    pages.view.fill(1);
    assert.equal(Buffer.compare(pages.view, pages.memory.bytes()), 0);
    const at = pages.view.byteOffset - buffer.byteOffset;
    assert.equal(buffer.indexOf(1), at);
    using mapping = device.dmaMap(pages.memory);
    assert.equal(mapping.length, pages.memory.length);
    assert.throws(
      () => eal.external.registerPagesOf(buffer.subarray(at + 1, at + page)),
      dmaError('EINVAL', /no whole page/),
    );
    assert.throws(
      () => eal.external.registerPagesOf(buffer, { pageSize: 5 }),
      dmaError('EINVAL', /not a power of two/),
    );
    assert.throws(() => eal.external.register(buffer.subarray(at + 1)), dmaError('EINVAL', /registerPagesOf/));
    mapping.unmap();
    pages.memory.unregister();
    await eal.stop();
  });

  it('with all descriptors taken is EMFILE with a way out', () => {
    const program = `
      import { closeSync, openSync } from 'node:fs';
      import { Eal } from ${JSON.stringify(new URL('./index.js', import.meta.url).href)};
      const eal = await Eal.start({ onForgotten: () => undefined });
      let error;
      try { for (;;) eal.external.allocate(4096); } catch (thrown) { error = thrown; }
      for (let i = 0; i < 2000; i++) eal.external.allocate(4096, { source: 'anonymous' });
      for (const each of [...eal.external]) each.unregister();
      const files = [];
      try { for (;;) files.push(openSync('/dev/null')); } catch {}
      let other;
      try { eal.external.allocate(4096); } catch (thrown) { other = thrown; }
      for (const file of files) closeSync(file);
      await eal.stop();
      console.log(error.code, error.operation, error.hint);
      console.log(other.code, other.operation, other.hint);
    `;
    const run = `ulimit -n 256; exec ${JSON.stringify(process.execPath)} --input-type=module -e "$0"`;
    const { stdout, stderr, status } = spawnSync('bash', ['-c', run, program], { encoding: 'utf8' });
    assert.equal(status, 0, stderr);
    assert.match(
      stdout,
      /^EMFILE external.allocate \d\d\d pieces of registered memory hold a descriptor each: .*anonymous/,
    );
    assert.match(stdout, /\nEMFILE external.allocate \d+ descriptors are open/, 'when others have them');
  });
});
