/** Rings between a primary and its secondaries: found by name, used without a message, and whole when a process is killed. */
import assert from 'node:assert/strict';
import { readdirSync } from 'node:fs';
import { afterEach, beforeEach, describe, it } from 'node:test';
import { dmaError, throwsDma } from '../test/shared/errors.js';
import { ownPlaces } from '../test/shared/places.js';
import { SecondaryProcess } from '../test/shared/secondary-process.js';
import { SharingWorker } from '../test/shared/sharing-worker.js';
import { until } from '../test/shared/until.js';
import { Eal, type Ring } from './index.js';
import { TAIL_LOCK_AT } from './memory/pool/ring-words.js';
import { wordsIn } from './memory/shared/words.js';
import { openPlatform } from './platform/open.js';

ownPlaces();

describe('rings between processes', { skip: openPlatform().limitation ?? false }, () => {
  let eal: Eal;
  const processes: SecondaryProcess[] = [];
  const secondary = async (label?: string): Promise<SecondaryProcess> => {
    const made = await SecondaryProcess.attach('rings', label);
    processes.push(made);
    return made;
  };
  beforeEach(async () => {
    eal = await Eal.start({ name: 'rings', memory: { noHuge: true }, onForgotten: () => undefined });
  });
  afterEach(async () => {
    for (const each of processes.splice(0)) await each[Symbol.asyncDispose]();
    await eal.stop();
  });

  it('are found by name, and carry elements of a pool to and fro, in order', async () => {
    const pool = eal.pools.create({ name: 'packets', elements: 256, elementSize: 64, cache: 32 });
    const out = eal.rings.create('out', { size: 64, pool, producers: 'one', consumers: 'one' });
    const back = eal.rings.create('back', { size: 64, pool });
    const other = await secondary();
    const echoed = other.run(async ({ store }, rounds) => {
      const [from, to] = [await store.rings.find('out'), await store.rings.find('back')];
      if (from === undefined || to === undefined) return 'no ring';
      const { pool } = from;
      if (pool === undefined || pool !== to.pool) return 'no pool';
      const burst = new Int32Array(16);
      for (let left = rounds; left > 0;) {
        if (!from.wait(1000)) continue;
        const n = from.dequeue(burst, 16);
        for (let i = 0; i < n; i++) pool.bytes(burst[i])[1] = pool.bytes(burst[i])[0];
        for (let put = 0; put < n;) put += to.enqueue(burst, n - put, put);
        left -= n;
      }
      return [from.name, from.size, from.producers, to.producers, ...(await store.rings.list())].join();
    }, 5000);
    const burst = new Int32Array(16);
    let [sent, seen] = [0, 0];
    while (seen < 5000) {
      const n = Math.min(16, 5000 - sent);
      if (n > 0 && out.room >= n && pool.get(burst, n)) {
        for (let i = 0; i < n; i++) pool.bytes(burst[i])[0] = sent + i;
        assert.equal(out.enqueue(burst, n), n);
        sent += n;
      }
      if (!(await back.readable({ timeoutMs: 5 }))) continue;
      const came = back.dequeue(burst, 16);
      for (let i = 0; i < came; i++) assert.equal(pool.bytes(burst[i])[1], seen++ & 0xff);
      pool.put(burst, came);
    }
    assert.equal(await echoed, 'out,64,one,many,out,back');
  });

  it('are used by worker threads of the primary, too', async () => {
    const pool = eal.pools.create({ name: 'packets', elements: 64, elementSize: 64, cache: 8 });
    const ring = eal.rings.create('r', { size: 8, pool });
    const worker = new SharingWorker();
    try {
      await worker.attach(ring.share());
      const use = `const [ring] = held; const burst = new Int32Array(4);
        ring.pool.get(burst, 4); ring.pool.bytes(burst[0])[0] = 77; return ring.enqueue(burst, 4);`;
      assert.equal(await worker.run(use), 4);
      throwsDma('EBUSY', () => ring.free(), /held by worker thread/);
      await assert.rejects(eal.stop(), dmaError('EBUSY'));
      const other = await secondary();
      const seen = await other.run(async ({ store }) => {
        const ring = await store.rings.find('r');
        const burst = new Int32Array(8);
        const n = ring?.dequeue(burst, 8);
        return [n, ring?.pool?.bytes(burst[0])[0]];
      });
      assert.deepEqual(seen, [4, 77]);
    } finally {
      await worker.end();
    }
    await until(() => ring.threads === 1);
  });

  it('are created and freed through the primary; wrong ones are its errors', async () => {
    const pool = eal.pools.create({ name: 'packets', elements: 64, elementSize: 64 });
    const other = await secondary('maker');
    await other.run(async ({ store, kept }) => {
      const pool = await store.pools.find('packets');
      Object.assign(kept, { ring: await store.rings.create('r', { size: 9, consumers: 'one', pool }) });
    });
    const ring = eal.rings.find('r');
    assert.ok(ring);
    assert.deepEqual([ring.size, ring.producers, ring.consumers, ring.pool], [9, 'many', 'one', pool]);
    assert.equal(ring.threads, 1);
    throwsDma('EBUSY', () => ring.free(), new RegExp(`the ring r is held by process ${other.pid}`));
    const codes = await other.run(async ({ store, kept, anydma }) => {
      const { rings } = store;
      const unknown = Object.create(anydma.Pool.prototype, { name: { value: 'x' } }) as never;
      const codes: unknown[] = [];
      for (const work of [
        () => rings.create('r', { size: 9 }),
        () => rings.create('', { size: 9 }),
        () => rings.create('s', { size: 0 }),
        () => rings.create('s', { size: 1, producers: 'two' as never }),
        () => rings.create('s', undefined as never),
        () => rings.create('s', { size: 1, pool: {} as never }),
        () => rings.create('s', { size: 1, pool: unknown }),
        () => rings.find(5 as never),
        () => rings.free('none'),
        () => rings.free('r'),
      ])
        codes.push(
          await work().then(
            () => 'none',
            (error: unknown) => (error as { code: string }).code,
          ),
        );
      (Reflect.get(kept, 'ring') as Ring).free();
      codes.push(await rings.find('none'));
      await rings.free('r');
      return codes;
    });
    const invalid = 'EINVAL';
    const expected = ['EEXIST', invalid, invalid, invalid, invalid, invalid, invalid, invalid, 'ENOENT', 'EBUSY'];
    // JSON has no undefined in arrays.
    assert.deepEqual(codes, [...expected, null]);
    assert.deepEqual([...eal.rings], []);
  });

  it('with one producer refuse the second process, until the first one has ended', async () => {
    const ring = eal.rings.create('r', { size: 64, producers: 'one' });
    const use = async ({ store }: { store: SecondaryStore }): Promise<number> => {
      const ring = await store.rings.find('r');
      return ring?.enqueue(Int32Array.of(1), 1) ?? -1;
    };
    const [first, second] = [await secondary('first'), await secondary('second')];
    assert.equal(await first.run(use), 1);
    await assert.rejects(second.run(use), dmaError('EBUSY', new RegExp(`one producer, which is process ${first.pid}`)));
    throwsDma('EBUSY', () => ring.enqueue(Int32Array.of(1), 1));
    await first.kill();
    assert.equal(await second.run(use), 1);
    assert.equal(ring.length, 2);
  });

  it('let producers wait for room: in another process, and when the consumer was killed', async () => {
    const ring = eal.rings.create('r', { size: 4, consumers: 'one' });
    const [producer, consumer] = [await secondary('producer'), await secondary('consumer')];
    const sent = producer.run(async ({ store }) => {
      const ring = await store.rings.find('r');
      const one = new Int32Array(1);
      for (; one[0] < 100; one[0]++) while (ring?.enqueue(one, 1) === 0) await ring.writable();
      return one[0];
    });
    const take = async ({ store }: { store: SecondaryStore }): Promise<number[]> => {
      const ring = await store.rings.find('r');
      const burst = new Int32Array(50);
      for (let has = 0; has < 50; has += ring?.dequeue(burst, 50 - has, has) ?? 50) ring?.wait(1000);
      return [...burst];
    };
    const first = await consumer.run(take);
    await consumer.kill();
    await until(() => ring.room === 0);
    assert.equal(ring.waitForRoom(2), false);
    const next = await secondary('next');
    const all = [...first, ...(await next.run(take))];
    assert.deepEqual(
      all,
      Array.from({ length: 100 }, (_, i) => i),
    );
    assert.equal(await sent, 100);
  });

  it('lose nothing and double nothing when a process is killed that has elements everywhere', async () => {
    const pool = eal.pools.create({ name: 'packets', elements: 64, elementSize: 64, cache: 8 });
    const ring = eal.rings.create('r', { size: 32, pool });
    const burst = new Int32Array(64);
    assert.ok(pool.get(burst, 10));
    ring.enqueue(burst, 10);
    const other = await secondary();
    const number = await other.run(async ({ store }) => {
      const ring = await store.rings.find('r');
      const burst = new Int32Array(20);
      ring?.dequeue(burst, 6);
      ring?.pool?.get(burst, 12);
      ring?.enqueue(burst, 5);
      return ring?.length;
    });
    assert.equal(number, 9);
    // It died inside.
    const all = wordsOf(ring, 'words');
    all[TAIL_LOCK_AT] = 2;
    await other.kill();
    await until(() => all[TAIL_LOCK_AT] === 0 && ring.threads === 0);
    assert.ok(pool.get(burst, 55));
    assert.equal(ring.dequeue(burst, 9, 55), 9);
    assert.equal(new Set(burst).size, 64);
    pool.put(burst, 64);
    ring.free();
    pool.free();
  });

  it('are there for more processes than there is room for at a time, one after the other', async () => {
    eal.rings.create('r', { size: 8 });
    const other = await secondary();
    const find = async ({ store }: { store: SecondaryStore }): Promise<string> =>
      (await store.rings.find('r'))?.name ?? '';
    const highest = (): number => Math.max(...ids(eal));
    await other.run(find);
    const before = highest();
    for (let i = 0; i < 3; i++) {
      const next = await SecondaryProcess.attach('rings');
      await next.run(find);
      await next[Symbol.asyncDispose]();
      await until(() => eal.secondaries.length === 1 && [...ids(eal)].length === 2);
    }
    assert.equal(highest(), before);
  });

  it('stay usable among secondaries when the primary is gone, until they let go', async () => {
    const ring = eal.rings.create('r', { size: 8 });
    ring.enqueue(Int32Array.of(5, 6), 2);
    const other = await secondary();
    await other.run(async ({ store, kept }) => {
      Object.assign(kept, { ring: await store.rings.find('r') });
    });
    await eal.stop();
    assert.equal(ring.live, false);
    const seen = await other.run(async ({ store, kept }) => {
      const ring = Reflect.get(kept, 'ring') as Ring;
      const burst = new Int32Array(8);
      const n = ring.dequeue(burst, 8);
      const code = await store.rings.find('r').then(
        () => 'none',
        (error: unknown) => (error as { code: string }).code,
      );
      await store.close();
      return [n, burst[0], burst[1], code, ring.live];
    });
    assert.deepEqual(seen, [2, 5, 6, 'ECONNRESET', false]);
  });

  it('end in other processes when the primary frees them by force', async () => {
    const ring = eal.rings.create('r', { size: 8 });
    const other = await secondary();
    await other.run(async ({ store, kept }) => {
      const ring = await store.rings.find('r');
      const waits = ring?.readable().then(
        () => 'readable',
        (error: unknown) => (error as { code: string }).code,
      );
      Object.assign(kept, { ring, waits });
    });
    ring.free({ force: true });
    const seen = await other.run(async ({ kept }) => {
      const waited: unknown = await Promise.resolve<unknown>(Reflect.get(kept, 'waits'));
      const ring = Reflect.get(kept, 'ring') as Ring;
      let code = 'none';
      try {
        ring.enqueue(new Int32Array(1), 1);
      } catch (error) {
        ({ code } = error as { code: string });
      }
      const { live } = ring;
      ring[Symbol.dispose]();
      return [waited, code, live];
    });
    assert.deepEqual(seen, ['EINVAL', 'EINVAL', false]);
  });

  it('leave no descriptor behind, there and here', async () => {
    const descriptors = (): number => readdirSync('/proc/self/fd').length;
    eal.rings.create('r', { size: 8 }).share();
    const other = await secondary();
    const use = async ({ store }: { store: SecondaryStore }): Promise<number> => {
      const { readdirSync } = await import('node:fs');
      const rings = [await store.rings.find('r'), await store.rings.find('r')];
      for (const ring of rings) {
        ring?.wait(1);
        ring?.free();
      }
      return readdirSync('/proc/self/fd').length;
    };
    const [there, here] = [await other.run(use), descriptors()];
    assert.equal(await other.run(use), there);
    assert.equal(descriptors(), here);
  });
});

type SecondaryStore = Awaited<ReturnType<typeof Eal.attach>>;

function wordsOf(ring: Ring, which: 'words' | 'holders'): Int32Array {
  const words = ring.sharing?.words[which];
  assert.ok(words !== undefined);
  return wordsIn(words, 'words', 'test');
}

/** The numbers of all that are in the table of holders. */
function* ids(eal: Eal): Iterable<number> {
  const words = wordsOf([...eal.rings][0], 'holders');
  for (let at = 16; at < words.length; at += 16) if (words[at] !== 0) yield at / 16;
}
