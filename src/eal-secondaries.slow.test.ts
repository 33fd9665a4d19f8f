/** Processes that share the memory of a primary: the same addresses, one ledger, and what happens when one ends. */
import assert from 'node:assert/strict';
import { readdirSync, readlinkSync } from 'node:fs';
import { afterEach, beforeEach, describe, it } from 'node:test';
import { codeOf, dmaError, throwsDma } from '../test/shared/errors.js';
import { Room } from '../test/shared/command.js';
import { ownPlaces } from '../test/shared/places.js';
import { SecondaryProcess } from '../test/shared/secondary-process.js';
import { until } from '../test/shared/until.js';
import { whyNotAsNobody, NOBODY } from '../test/shared/users.js';
import { Eal, KiB, MiB, type Pool, type Ring } from './index.js';
import { openPlatform } from './platform/open.js';

const platform = openPlatform();
ownPlaces();

describe('a primary and its secondaries', { skip: platform.limitation ?? false }, () => {
  let eal: Eal;
  let store: SecondaryProcess;
  const more: AsyncDisposable[] = [];

  beforeEach(async () => {
    eal = await Eal.start({ name: 'store', memory: { noHuge: true }, onForgotten: () => undefined });
    eal.zones
      .reserve('early', 4 * KiB, { zero: true })
      .bytes()
      .set([1, 2, 3]);
    store = await SecondaryProcess.attach('store', 'worker');
  });

  afterEach(async () => {
    for (const each of [...more.splice(0), store]) await each[Symbol.asyncDispose]();
    await eal.stop();
  });

  it('see the same bytes at the same addresses, in both directions', async () => {
    const zone = eal.zones.find('early');
    assert.ok(zone);
    const seen = await store.run(async ({ store }) => {
      const zone = await store.zones.find('early');
      const bytes = zone?.bytes() ?? new Uint8Array();
      const seen = { va: zone?.va, length: zone?.length, first: [...bytes.subarray(0, 3)] };
      bytes[3] = 4;
      return seen;
    });
    assert.deepEqual(seen, { va: zone.va, length: zone.length, first: [1, 2, 3] });
    assert.equal(zone.bytes()[3], 4);
  });

  it('map what grows before the call of the primary returns', async () => {
    const block = eal.malloc(40 * MiB, { zero: true });
    block.bytes()[block.length - 1] = 9;
    const pages = await store.run(async ({ store }) => (await store.facts()).memory.length);
    assert.ok(pages >= 2);
    const zone = eal.zones.reserve('late', 30 * MiB);
    zone.bytes()[zone.length - 1] = 8;
    // Nothing was asked between: the secondary has it mapped already.
    assert.match(await mapsOf(store.pid, zone.va + zone.length - 1), /memfd:anydma/);
    const last = await store.run(async ({ store }) => {
      const zone = await store.zones.find('late');
      return zone?.bytes()[zone.length - 1];
    });
    assert.equal(last, 8);
  });

  it('unmap what shrinks before it is freed', async () => {
    const block = eal.malloc(200 * MiB);
    const { va } = block;
    assert.match(await mapsOf(store.pid, va), /rw-s .*memfd:anydma/);
    block.free();
    eal.memory.trim();
    assert.match(await mapsOf(store.pid, va), /---p/);
  });

  it('allocate and free through the ledger of the primary', async () => {
    const before = eal.heaps.find('socket_0')?.statistics().allocatedBlocks;
    const { va, length } = await store.run(async ({ store, kept }) => {
      const block = await store.malloc(3 * 2 ** 20, { zero: true, align: 4096 });
      Object.assign(kept, { block });
      block.bytes()[7] = 70;
      return { va: block.va, length: block.length };
    });
    const heap = eal.heaps.find('socket_0');
    assert.equal(heap?.blockAt(va)?.length, length);
    assert.equal(heap.blockAt(va)?.bytes()[7], 70);
    const after = await store.run(async ({ kept }) => {
      const block = Reflect.get(kept, 'block') as { free(): Promise<void>; bytes(): Uint8Array };
      const view = block.bytes();
      await block.free();
      let second = '';
      try {
        await block.free();
      } catch (error) {
        second = (error as { code: string }).code;
      }
      return { view: view.length, second };
    });
    assert.deepEqual(after, { view: 0, second: 'EINVAL' });
    assert.equal(heap.statistics().allocatedBlocks, before);
  });

  it('get the same errors as the primary', async () => {
    for (const [size, options] of [
      [0, {}],
      [-1, {}],
      ['x', {}],
      [64, { align: 3 }],
      [64, { bogus: 1 }],
      [64, { heap: 'none' }],
      [64, { node: 77 }],
      [2 ** 52, {}],
    ] as const) {
      const here = await eal.mallocAsync(size as number, options as never).then(
        () => undefined,
        (error: unknown) => error as { code: string; reason: string; operation: string },
      );
      const there = await store.run(
        async ({ store }, [size, options]) =>
          store.malloc(size as number, options as never).then(
            () => undefined,
            (error: unknown) => {
              const { code, reason, operation } = error as { code: string; reason: string; operation: string };
              return { code, reason, operation };
            },
          ),
        [size, options] as const,
      );
      assert.ok(here !== undefined);
      assert.equal(there?.code, here.code, JSON.stringify([size, options]));
      assert.equal(there.operation, here.operation);
    }
  });

  it('hold a zone that they found, and free it for all', async () => {
    await store.run(async ({ store, kept }) => void Object.assign(kept, { zone: await store.zones.find('early') }));
    throwsDma('EBUSY', () => eal.zones.free('early'), /process \d+ \(worker\) uses it/);
    const other = await SecondaryProcess.attach('store');
    more.push(other);
    await assert.rejects(
      other.run(async ({ store, kept }) => {
        const zone = await store.zones.find('early');
        Object.assign(kept, { zone });
        await zone?.free();
      }),
      dmaError('EBUSY', /worker/),
    );
    await other.run(({ kept }) => (Reflect.get(kept, 'zone') as { detach(): Promise<void> }).detach());
    await store.run(async ({ kept }) => (Reflect.get(kept, 'zone') as { free(): Promise<void> }).free());
    assert.equal(eal.zones.find('early'), undefined);
    await assert.rejects(
      other.run(({ store }) => store.zones.free('early')),
      dmaError('ENOENT', /no zone "early"/),
    );
  });

  it('attach external memory by its range and by its label', async () => {
    const memory = eal.external.allocate(64 * KiB, { label: 'frames' });
    const part = { va: memory.va, length: memory.length };
    memory.bytes()[0] = 5;
    const first = await store.run(async ({ store, kept }, part) => {
      const memory = await store.external.attach(part);
      Object.assign(kept, { memory });
      const seen = memory.bytes()[0];
      let again = '';
      await store.external.attach('frames').catch((error: unknown) => (again = (error as { code: string }).code));
      return { seen, again };
    }, part);
    assert.deepEqual(first, { seen: 5, again: 'EEXIST' });
    throwsDma('EBUSY', () => memory.unregister(), /process \d+ \(worker\) has attached it/);
    await store.run(({ store }) => store.external.detach('frames'));
    await assert.rejects(
      store.run(({ store }, part) => store.external.detach(part), part),
      dmaError('ENOENT', /not attached/),
    );
    await store.run(async ({ store }) => {
      await store.external.attach('frames');
    });
    await store.run(({ store }, part) => store.external.detach(part), part);
    memory.unregister();
    assert.doesNotMatch(await mapsOf(store.pid, part.va), /memfd/);
  });

  it('can not attach memory without a descriptor, and say so', async () => {
    const memory = eal.external.allocate(64 * KiB, { source: 'anonymous', label: 'private' });
    await assert.rejects(
      store.run(async ({ store }) => {
        await store.external.attach('private');
      }),
      dmaError('ENOTSUP', /has no descriptor/),
    );
    eal.heaps.create('hidden');
    eal.heaps.addMemory('hidden', memory);
    await assert.rejects(
      store.run(async ({ store }) => {
        await store.malloc(64, { heap: 'hidden' });
      }),
      dmaError('ENOTSUP', /has no descriptor/),
    );
    await assert.rejects(
      store.run(async ({ store }) => {
        await store.pools.create({ name: 'hidden', elements: 8, elementSize: 64, heap: 'hidden' });
      }),
      dmaError('ENOTSUP', /^pools.create: .* not attached in this process/),
    );
    assert.deepEqual([...eal.pools], []);
    assert.equal(eal.heaps.find('hidden')?.statistics().allocatedBlocks, 0);
    eal.heaps.removeMemory('hidden', memory);
  });

  it('use named heaps of the primary, also those that are made later', async () => {
    eal.heaps.create('pool');
    const memory = eal.external.allocate(256 * KiB);
    eal.heaps.addMemory('pool', memory);
    const va = await store.run(async ({ store }) => (await store.malloc(4096, { heap: 'pool' })).va);
    assert.ok(va >= memory.va && va < memory.va + memory.length);
    const part = { va: memory.va, length: memory.length };
    throwsDma('EBUSY', () => eal.heaps.removeMemory('pool', part));
    // Its block goes with it.
    await store.kill();
    await until(() => eal.heaps.find('pool')?.statistics().allocatedBlocks === 0);
    eal.heaps.removeMemory('pool', part);
  });

  it('take elements of pools and put them back, and lose those that they have when they are killed', async () => {
    const pool = eal.pools.create({ name: 'packets', elements: 64, elementSize: 256, cache: 8 });
    const numbers = new Int32Array(64);
    assert.ok(pool.get(numbers, 10));
    pool.put(numbers, 10);
    const taken = await store.run(async ({ store, kept }) => {
      const pool = await store.pools.find('packets');
      if (pool === undefined) throw new Error('no pool');
      const numbers = new Int32Array(20);
      const got = pool.get(numbers, 20);
      pool.bytes(numbers[0])[0] = 99;
      Object.assign(kept, { pool, numbers });
      return { got, first: numbers[0], va: pool.vas[numbers[0]], all: [...numbers] };
    });
    assert.equal(taken.got, true);
    assert.equal(new Set(taken.all).size, 20);
    assert.equal(taken.va, pool.vas[taken.first]);
    assert.equal(pool.bytes(taken.first)[0], 99);
    throwsDma('EBUSY', () => pool.free());
    await store.run(({ kept }) => {
      const { pool, numbers } = kept as never as { pool: { put(n: Int32Array, c: number): void }; numbers: Int32Array };
      pool.put(numbers, 5);
    });
    await store.kill();
    await until(() => pool.get(numbers, 64));
    assert.equal(new Set(numbers).size, 64);
    pool.put(numbers, 64);
    const next = await SecondaryProcess.attach('store');
    more.push(next);
    const made = await next.run(async ({ store }) => {
      const pool = await store.pools.create({ name: 'own', elements: 8, elementSize: 64 });
      const known = await store.pools.list();
      pool.free();
      return known;
    });
    assert.deepEqual(made, ['packets', 'own']);
    pool.free();
    await next.run(({ store }) => store.pools.free('own'));
    assert.equal(eal.pools.find('own'), undefined);
  });

  it('make rings of pools that they have opened from the same primary', async () => {
    eal.pools.create({ name: 'packets', elements: 8, elementSize: 64 });
    await using other = await Eal.start({ name: 'other', memory: { noHuge: true } });
    using _of = other.pools.create({ name: 'packets', elements: 8, elementSize: 64 });
    const pools = await store.run(async ({ store, anydma }) => {
      const pool = await store.pools.find('packets');
      const first = await store.rings.create('first', { size: 8, pool });
      // That of a ring is as good.
      const second = await store.rings.create('second', { size: 8, pool: first.pool });
      const other = await anydma.Eal.attach('other');
      const foreign = await other.pools.find('packets');
      const refused = store.rings.create('third', { size: 8, pool: foreign });
      const why = await refused.then(String, (error: unknown) => {
        const { code, message } = error as { readonly code: string; readonly message: string };
        return `${code} ${message}`;
      });
      await other.close();
      return [second.pool?.name, why];
    });
    assert.equal(pools[0], 'packets');
    assert.match(pools[1] ?? '', /^EINVAL .*the pool packets was not opened by this secondary/);
    assert.equal(eal.rings.find('third'), undefined);
  });

  it('map memory for devices through the primary', async () => {
    const device = await eal.probe('vdev:edu0');
    const got = await store.run(async ({ store, kept }) => {
      const device = await store.find('vdev:edu0');
      const memory = await store.external.allocate(16 * 1024);
      const mapping = await device?.dmaMap(memory);
      Object.assign(kept, { memory, mapping });
      return { va: memory.va, iova: mapping?.iova, same: await device?.iovaOf(memory) };
    });
    assert.equal(got.iova, got.same);
    assert.equal(device.iovaOf({ va: got.va, length: 16 * KiB }), got.iova);
    await assert.rejects(
      store.run(async ({ store }) => {
        const device = await store.find('vdev:edu0');
        await device?.dmaMap({ va: 0x10000, length: 4096 });
      }),
      dmaError('ENOTSUP', /only in this process/),
    );
    await store.run(async ({ kept }) => {
      await (Reflect.get(kept, 'mapping') as { unmap(): Promise<void> }).unmap();
    });
    throwsDma('EINVAL', () => device.iovaOf({ va: got.va, length: 16 * KiB }));
  });

  it('register memory behind a descriptor of their own', async () => {
    const label = await store.run(async ({ store, kept }) => {
      const { openSync, ftruncateSync, unlinkSync, closeSync } = process.getBuiltinModule('fs');
      const path = `/dev/shm/anydma-test-${process.pid}`;
      const fd = openSync(path, 'w+');
      unlinkSync(path);
      ftruncateSync(fd, 8192);
      const memory = await store.external.fromFd(fd, { label: 'file' });
      closeSync(fd);
      Object.assign(kept, { memory });
      memory.bytes()[8191] = 77;
      return memory.label;
    });
    const memory = [...eal.external].find(({ area }) => area.label === label);
    assert.equal(memory?.bytes()[8191], 77);
  });

  it('lose what they had when they are killed, within a moment', async () => {
    const device = await eal.probe('vdev:edu0');
    const descriptors = open();
    await store.run(async ({ store, kept }) => {
      const device = await store.find('vdev:edu0');
      const memory = await store.external.allocate(65536);
      const parts = [memory, await device?.dmaMap(memory), await store.malloc(1000), await store.zones.find('early')];
      Object.assign(kept, { parts });
      await store.external.attach('frames').catch(() => undefined);
    });
    const heap = eal.heaps.find('socket_0');
    const blocks = heap?.statistics().allocatedBlocks;
    await store.kill();
    await until(() => eal.secondaries.length === 0 && [...eal.external].length === 0);
    await until(() => heap?.statistics().allocatedBlocks === Number(blocks) - 1);
    assert.equal([...(device.domain?.mappings() ?? [])].filter(({ length }) => length === 65536).length, 0);
    await until(() => codeOf(() => eal.zones.free('early')) !== 'EBUSY');
    assert.equal(eal.zones.find('early'), undefined);
    await until(() => open() <= descriptors - 2);
  });

  it('lose what others still use when those let go of it: another secondary, a mapping of the primary', async () => {
    const device = await eal.probe('vdev:edu0');
    const other = await SecondaryProcess.attach('store', 'other\u001b[31m');
    more.push(other);
    assert.ok(eal.secondaries.some(({ label }) => label.endsWith('(other?[31m)')));
    const vas = await store.run(async ({ store, kept }) => {
      const [one, two] = [await store.external.allocate(65536), await store.external.allocate(65536)];
      Object.assign(kept, { one, two });
      return [one.va, two.va];
    });
    await other.run(async ({ store, kept }, va) => {
      Object.assign(kept, { memory: await store.external.attach({ va: va, length: 65536 }) });
    }, vas[0]);
    const mapping = device.dmaMap({ va: vas[1], length: 65536 });
    const left = (): number[] => [...eal.external].map(({ va }) => va);
    await store.kill();
    await until(() => eal.secondaries.length === 1);
    assert.deepEqual(left(), vas);
    await other.run(async ({ kept }) => (Reflect.get(kept, 'memory') as { detach(): Promise<void> }).detach());
    await until(() => left().length === 1);
    mapping.unmap();
    await until(() => left().length === 0);
  });

  it('attach and detach memory of a heap as DPDK does: EM-A06, EM-A07, EM-A12, EM-A13, EM-A17, EM-A18, EM-A21, EM-A22', async () => {
    eal.heaps.create('valid');
    const memory = eal.external.allocate(4 * MiB);
    const part = { va: memory.va, length: memory.length };
    const codes = await store.run(async ({ store }, { va, length }) => {
      const of = async (work: Promise<unknown>): Promise<string> =>
        work.then(
          () => 'done',
          (error: unknown) => (error as { code: string }).code,
        );
      const { heaps } = store;
      const part = { va, length };
      const long = 'x'.repeat(32);
      return {
        badAttach: await Promise.all(['', long, null].map((name) => of(heaps.attachMemory(name as string, part)))),
        badDetach: await Promise.all(['', long, null].map((name) => of(heaps.detachMemory(name as string, part)))),
        noHeap: [await of(heaps.attachMemory('none', part)), await of(heaps.detachMemory('none', part))],
        empty: [
          await of(heaps.attachMemory('valid', { va, length: 0 })),
          await of(heaps.detachMemory('valid', { va, length: 0 })),
        ],
        zero: [
          await of(heaps.attachMemory('valid', { va: 0, length })),
          await of(heaps.detachMemory('valid', { va: 0, length })),
        ],
        native: await of(heaps.attachMemory('socket_0', part)),
        notInIt: await of(heaps.attachMemory('valid', part)),
      };
    }, part);
    assert.deepEqual(codes.badAttach, ['EINVAL', 'EINVAL', 'EINVAL']);
    assert.deepEqual(codes.badDetach, ['EINVAL', 'EINVAL', 'EINVAL']);
    assert.deepEqual(codes.noHeap, ['ENOENT', 'ENOENT']);
    assert.deepEqual(codes.empty, ['EINVAL', 'EINVAL']);
    assert.deepEqual(codes.zero, ['EINVAL', 'EINVAL']);
    assert.deepEqual([codes.native, codes.notInIt], ['EPERM', 'ENOENT']);
    eal.heaps.addMemory('valid', memory);
    assert.match(await mapsOf(store.pid, memory.va), /rw-s/, 'memory of heaps is attached by itself');
    const steps = await store.run(async ({ store }, part) => {
      const codes: string[] = [];
      for (const step of ['attachMemory', 'detachMemory', 'detachMemory', 'attachMemory'] as const)
        await store.heaps[step]('valid', part).then(
          () => codes.push('done'),
          (error: unknown) => codes.push((error as { code: string }).code),
        );
      return codes;
    }, part);
    assert.deepEqual(steps, ['EEXIST', 'done', 'ENOENT', 'done']);
    assert.match(await mapsOf(store.pid, memory.va), /rw-s/);
    eal.heaps.removeMemory('valid', part);
    assert.doesNotMatch(await mapsOf(store.pid, part.va), /rw-s/);
    eal.heaps.destroy('valid');
  });

  it('are told which external memory there is not: EM-C02, EM-C03, EM-C06, EM-C09', async () => {
    const codes = await store.run(async ({ store }) => {
      const A = 0x7000_0000_0000 as never;
      const of = async (work: Promise<unknown>): Promise<string> =>
        work.then(
          () => 'done',
          (error: unknown) => (error as { code: string }).code,
        );
      const length = 4 * 2 ** 20;
      return [
        await of(store.external.attach({ va: A, length })),
        await of(store.external.attach({ va: A, length })),
        await of(store.external.detach({ va: A, length })),
        await of(store.external.attach({ va: A, length: 0 })),
        await of(store.external.attach({ va: A, length: 0 })),
        await of(store.external.attach({ va: 0, length })),
        await of(store.external.attach({ va: 0, length })),
      ];
    });
    assert.deepEqual(codes, ['ENOENT', 'ENOENT', 'ENOENT', 'EINVAL', 'EINVAL', 'EINVAL', 'EINVAL']);
  });

  it('are shown by "anydma attach", with what is in their primary', async () => {
    using room = new Room();
    await eal.probe('vdev:edu0');
    const pool = eal.pools.create({ name: 'packets', elements: 48, elementSize: 64 });
    const taken = new Int32Array(3);
    assert.ok(pool.get(taken, 3));
    eal.rings.create('work', { size: 24, consumers: 'one', pool }).enqueue(taken, 3);
    const env = { XDG_RUNTIME_DIR: String(process.env['XDG_RUNTIME_DIR']) };
    const shown = await room.run(['attach', 'store'], env);
    assert.equal(shown.status, 0, shown.stderr);
    for (const text of [
      /^store: process \d+/m,
      /early/,
      /vdev:edu0/,
      /process \d+ \(worker\)/,
      /socket_0/,
      /^packets +48 +45 +64 bytes/m,
      /^work +24 +3 +many +one +packets/m,
    ])
      assert.match(shown.stdout, text);
    const listed = JSON.parse((await room.run(['attach', '--json'], env)).stdout) as { running: unknown[] };
    assert.equal(listed.running.length, 1);
    const facts = JSON.parse((await room.run(['attach', 'store', '--json'], env)).stdout) as {
      eal: { secondaries: { pid: number }[] };
    };
    assert.deepEqual(
      facts.eal.secondaries.map(({ pid }) => pid),
      [store.pid],
    );
    const none = await room.run(['attach', 'none'], env);
    assert.equal(none.status, 1);
    assert.match(none.stderr, /no process of this user is a primary with the name "none"[^]*the names are: store/);
  });

  it('are given up when they do not answer in time, and hold nothing up', async () => {
    await eal.stop();
    eal = await Eal.start({ name: 'slow', memory: { noHuge: true }, secondaryTimeoutMs: 100 });
    const slow = await SecondaryProcess.attach('slow');
    more.push(slow);
    await slow.run(async ({ store, kept }) => {
      store.events.on('ended', (error) => void Object.assign(kept, { why: error.message }));
    });
    await slow.kill('SIGSTOP');
    const block = eal.malloc(90 * MiB);
    assert.equal(block.length, 90 * MiB);
    assert.deepEqual(eal.secondaries, []);
    await slow.kill('SIGCONT');
    await until(async () => slow.run(({ kept }) => 'why' in kept));
    const why = await slow.run(({ kept }) => Reflect.get(kept, 'why') as string);
    assert.match(why, /given this process up: .* did not answer within 100 ms/);
    block.free();
  });

  it('are told once that the primary stops, and keep their memory until they let go', async () => {
    eal.pools.create({ name: 'held', elements: 4, elementSize: 64 });
    await store.run(async ({ store, kept }) => {
      const told: string[] = [];
      store.events.on('ended', (error) => void told.push(`${error.code} ${error.message}`));
      Object.assign(kept, { told, zone: await store.zones.find('early'), pool: await store.pools.find('held') });
    });
    await eal.stop();
    const heard = async (): Promise<string[]> => store.run(({ kept }) => Reflect.get(kept, 'told') as string[]);
    await until(async () => (await heard()).length > 0);
    const told = await heard();
    assert.equal(told.length, 1);
    assert.match(told[0], /^ECONNRESET .*the primary "store" \(process \d+\) was stopped/);
    const kept = await store.run(async ({ kept, store }) => {
      const zone = Reflect.get(kept, 'zone') as { bytes(): Uint8Array };
      const bytes = [...zone.bytes().subarray(0, 3)];
      zone.bytes()[9] = 9;
      const failed = await store.malloc(64).catch((error: unknown) => (error as { code: string }).code);
      await store.close();
      return { bytes, failed, after: zone.bytes.length };
    });
    assert.deepEqual([kept.bytes, kept.failed], [[1, 2, 3], 'ECONNRESET']);
    eal = await Eal.start({ name: 'store', memory: { noHuge: true } });
    await store.run(async (inside) => {
      inside.store = await inside.anydma.Eal.attach('store');
    });
    assert.equal(eal.secondaries.length, 1);
  });

  it('survive a primary that is killed, and the next one starts clean', async () => {
    const primary = await SecondaryProcess.start();
    more.push(primary);
    await primary.run(async ({ anydma, kept }) => {
      const eal = await anydma.Eal.start({ name: 'killed', memory: { noHuge: true } });
      eal.zones.reserve('zone', 4096).bytes()[0] = 11;
      Object.assign(kept, { eal });
    });
    await assert.rejects(Eal.start({ name: 'killed' }), dmaError('EADDRINUSE', new RegExp(`process ${primary.pid} `)));
    const attached = await SecondaryProcess.attach('killed');
    more.push(attached);
    await attached.run(async ({ store, kept }) => {
      const told: string[] = [];
      store.events.on('ended', ({ code }) => void told.push(code));
      Object.assign(kept, { told, zone: await store.zones.find('zone') });
    });
    await primary.kill();
    await until(async () => attached.run(({ kept }) => (Reflect.get(kept, 'told') as string[]).length === 1));
    assert.equal(
      await attached.run(({ kept }) => (Reflect.get(kept, 'zone') as { bytes(): Uint8Array }).bytes()[0]),
      11,
    );
    await using next = await Eal.start({ name: 'killed', memory: { noHuge: true } });
    assert.deepEqual([...next.zones], []);
    const again = await SecondaryProcess.attach('killed');
    more.push(again);
    assert.equal(next.secondaries.length, 1);
  });

  it('are told by what addresses are taken, and how to move them', async () => {
    const other = await SecondaryProcess.start();
    more.push(other);
    await other.run(async ({ anydma, kept }) => {
      const eal = await anydma.Eal.start({ name: 'other', memory: { baseAddress: 96 * 2 ** 40 } });
      Object.assign(kept, { eal });
    });
    await using own = await Eal.start({ name: 'mine', memory: { baseAddress: 96 * 2 ** 40 } });
    await assert.rejects(
      other.run(async ({ anydma }) => {
        await anydma.Eal.attach('mine');
      }),
      dmaError('EEXIST', /these addresses are taken by memory without a name at \[0x600000000000.*baseAddress/),
    );
    await until(() => own.secondaries.length === 0);
  });

  it('attach once in a process, and again after they were closed, while their old views are still there', async () => {
    const seen = await store.run(async ({ anydma, store, kept }) => {
      const why = (error: Error): string => error.message;
      const zone = await store.zones.find('early');
      Object.assign(kept, { zone, bytes: zone?.bytes() });
      const twice = await anydma.Eal.attach('store').then(String, why);
      const found: unknown[] = [];
      for (let n = 0; n < 3; n++) {
        await store.close();
        store = await anydma.Eal.attach('store');
        const bytes = (await store.zones.find('early'))?.bytes() ?? new Uint8Array();
        Object.assign(kept, { [n]: bytes });
        found.push([...bytes.subarray(0, 3)]);
      }
      return { twice, found };
    });
    assert.match(seen.twice, /this process is attached to memory at these addresses already/);
    assert.deepEqual(
      seen.found,
      [1, 1, 1].map(() => [1, 2, 3]),
    );
    await assert.rejects(Eal.attach('store', {}), dmaError('EINVAL', /this process is itself the primary/));
    await until(() => eal.secondaries.length === 1);
  });

  it('let go of everything, also after they have put an element twice', async () => {
    const pool = eal.pools.create({ name: 'packets', elements: 32, elementSize: 64, cache: 8 });
    await store.run(async ({ store, kept }) => {
      const zone = await store.zones.find('early');
      const pool = await store.pools.find('packets');
      const numbers = new Int32Array(4);
      pool?.get(numbers, 4);
      pool?.put(numbers, 4);
      pool?.put(numbers, 2);
      Object.assign(kept, { zone });
      await store.close();
    });
    await until(() => eal.secondaries.length === 0);
    eal.zones.free('early');
    pool.free();
  });

  it('are told that a pool is gone which the primary has freed by force, and can use the next one', async () => {
    const make = (): void => {
      const pool = eal.pools.create({ name: 'packets', elements: 32, elementSize: 64, cache: 8, checked: true });
      eal.rings.create('work', { size: 32, pool });
    };
    make();
    await store.run(async ({ store, kept }) => {
      const [pool, ring] = [await store.pools.find('packets'), await store.rings.find('work')];
      pool?.get(new Int32Array(4), 4);
      Object.assign(kept, { pool, ring });
    });
    eal.rings.find('work')?.free({ force: true });
    eal.pools.find('packets')?.free({ force: true });
    type Kept = { readonly kept: { readonly pool: Pool; readonly ring: Ring } };
    await until(() => store.run(({ kept }) => !(kept as Kept['kept']).pool.live));
    const old = await store.run(({ kept }) => {
      const { pool, ring } = kept as Kept['kept'];
      const numbers = new Int32Array(32);
      const put = (): string => {
        try {
          pool.put(numbers, 20);
          return 'done';
        } catch (error) {
          return (error as Error).message;
        }
      };
      return [pool.get(numbers, 20), put(), pool.available, pool.recover(), pool.threads, ring.live, ring.length];
    });
    assert.match(String(old[1]), /was freed/);
    assert.deepEqual([old[0], ...old.slice(2)], [false, 0, 0, 0, false, 0]);
    make();
    const next = await store.run(async ({ store }) => {
      const [pool, ring] = [await store.pools.find('packets'), await store.rings.find('work')];
      const numbers = new Int32Array(4);
      const seen = [pool?.get(numbers, 4), ring?.enqueue(numbers, 4), ring?.dequeue(numbers, 4), ring?.pool?.live];
      pool?.put(numbers, 4);
      ring?.free();
      pool?.free();
      return seen;
    });
    assert.deepEqual(next, [true, 4, 4, true]);
    eal.rings.find('work')?.free();
    eal.pools.find('packets')?.free();
    await store.run(({ store }) => store.close());
  });

  it('say that a connection broke for want of descriptors, not that the primary has ended', async () => {
    eal.pools.create({ name: 'packets', elements: 8, elementSize: 64 });
    await assert.rejects(
      store.run(async ({ store }) => {
        const { closeSync, openSync } = await import('node:fs');
        const fds: number[] = [];
        try {
          for (;;) fds.push(openSync('/dev/null', 'r'));
        } catch {
          // There are no more.
        }
        try {
          await store.pools.find('packets');
        } finally {
          for (const fd of fds) closeSync(fd);
        }
      }),
      dmaError('EMFILE', /the connection to the primary "store" .* broke: this process can not open/),
    );
  });

  it('of another user get nothing', { skip: whyNotAsNobody() ?? false }, async () => {
    const other = await SecondaryProcess.start({ uid: NOBODY });
    more.push(other);
    const codes = await other.run(async ({ anydma }) =>
      anydma.Eal.attach('store').then(
        () => 'attached',
        (error: unknown) => (error as { code: string }).code,
      ),
    );
    assert.match(codes, /^E(ACCES|NOENT)$/);
    assert.equal(eal.secondaries.length, 1);
  });

  it('inherit nothing without attaching', async () => {
    const { va } = eal.malloc(4096);
    const child = await SecondaryProcess.start();
    more.push(child);
    assert.doesNotMatch(await mapsOf(child.pid, va), /memfd/);
    const fds = readdirSync(`/proc/${child.pid}/fd`).flatMap((fd) => {
      try {
        return readlinkSync(`/proc/${child.pid}/fd/${fd}`);
      } catch {
        return [];
      }
    });
    assert.ok(!fds.some((target) => target.includes('memfd:anydma')), fds.join(' '));
  });
});

describe('the name of an Eal', { skip: platform.limitation ?? false }, () => {
  it('is checked, and so is what goes with it', async () => {
    for (const name of ['', 'a b', '../x', 7 as never]) await assert.rejects(Eal.start({ name }), dmaError('EINVAL'));
    await assert.rejects(Eal.start({ memory: { baseAddress: 2 ** 40 } }), dmaError('EINVAL', /with a name/));
    for (const baseAddress of [0, 1.5, 4096, -1, 2 ** 60])
      await assert.rejects(Eal.start({ name: 'x', memory: { baseAddress } }), dmaError('EINVAL', /baseAddress/));
  });

  it('leaves nothing behind', async () => {
    const eal = await Eal.start({ name: 'tidy', memory: { noHuge: true, size: 4 * MiB } });
    await eal.stop();
    const descriptors = open();
    const again = await Eal.start({ name: 'tidy', memory: { noHuge: true, size: 4 * MiB } });
    again.external.allocate(8 * KiB).unregister();
    await again.stop();
    assert.equal(open(), descriptors);
  });
});

/** The descriptors of this process. */
function open(): number {
  return readdirSync('/proc/self/fd').length;
}

/** The line of /proc/PID/maps for an address; empty if nothing is there. */
async function mapsOf(pid: number, va: number): Promise<string> {
  const { readFile } = await import('node:fs/promises');
  for (const line of (await readFile(`/proc/${pid}/maps`, 'utf8')).split('\n')) {
    const [from, to] = line.split(/[- ]/, 2).map((text) => parseInt(text, 16));
    if (from <= va && va < to) return line;
  }
  return '';
}
