/** Rings between threads: order, waiting, sides of one, and threads that end in the middle. */
import assert from 'node:assert/strict';
import { afterEach, beforeEach, describe, it } from 'node:test';
import { dmaError, throwsDma } from '../../test/shared/errors.js';
import { ENDINGS, SharingWorker, WorkerFailure } from '../../test/shared/sharing-worker.js';
import { until } from '../../test/shared/until.js';
import { Eal } from '../eal.js';
import type { RingDescription } from '../memory/pool/ring.js';
import { HEAD_LOCK_AT, TAIL_LOCK_AT } from '../memory/pool/ring-words.js';
import { openPlatform } from '../platform/open.js';

const SKIP = { skip: openPlatform().limitation ?? false };

/** Takes elements until there are so many. */
const TAKE = `
  const [ring] = held;
  const burst = new Int32Array(args[0]);
  for (let has = 0; has < args[0]; has += ring.dequeue(burst, args[0] - has, has)) ring.wait(1000);
  return [...burst];`;

describe('a ring between threads', SKIP, () => {
  let eal: Eal;
  const workers: SharingWorker[] = [];
  const worker = async (...shared: readonly RingDescription[]): Promise<SharingWorker> => {
    const made = new SharingWorker();
    workers.push(made);
    await made.attach(...shared);
    return made;
  };
  beforeEach(async () => {
    eal = await Eal.start({ onForgotten: () => undefined, memory: { noHuge: true } });
  });
  afterEach(async () => {
    for (const each of workers.splice(0)) await each.end();
    await eal.stop();
  });

  it('gives numbers on, in order, both ways, while both wait', async () => {
    const there = eal.rings.create('there', { size: 20, producers: 'one', consumers: 'one' });
    const back = eal.rings.create('back', { size: 32 });
    const echo = await worker(there.share(), back.share());
    echo.tell(
      `
      const [from, to] = held;
      const burst = new Int32Array(16);
      for (let left = args[0]; left > 0; ) {
        if (!from.wait(1000)) continue;
        const n = from.dequeue(burst, 16);
        for (let out = 0; out < n; ) out += to.enqueue(burst, n - out, out);
        left -= n;
      }`,
      20_000,
    );
    const burst = new Int32Array(16);
    let [sent, seen] = [0, 0];
    while (seen < 20_000) {
      for (let i = 0; i < 16; i++) burst[i] = sent + i;
      sent += there.enqueue(burst, Math.min(16, 20_000 - sent));
      if (!(await back.readable({ timeoutMs: 5 }))) continue;
      const n = back.dequeue(burst, 16);
      for (let i = 0; i < n; i++) assert.equal(burst[i], seen++);
    }
  });

  it('wakes a thread that waits without end, and a loop that waits', async () => {
    const ring = eal.rings.create('r', { size: 4 });
    const other = await worker(ring.share());
    const taken = other.run(`const [ring] = held; const all = [];
      for (let i = 0; i < 50; i++) {
        if (i % 2 === 0) ring.wait(2 ** 31 - 1); else await ring.readable();
        const burst = new Int32Array(1);
        if (ring.dequeue(burst, 1) === 1) all.push(burst[0]);
      }
      return all;`);
    for (let i = 0; i < 50; i++) {
      ring.enqueue(Int32Array.of(i), 1);
      await until(() => ring.length === 0);
    }
    assert.deepEqual(
      await taken,
      Array.from({ length: 50 }, (_, i) => i),
    );
  });

  it('is the same there: its name, its sides, its pool, which all rings there share', async () => {
    const pool = eal.pools.create({ name: 'p', elements: 32, elementSize: 64, cache: 8, headroom: 16 });
    const [rx, tx] = ['rx', 'tx'].map((name) => eal.rings.create(name, { size: 9, consumers: 'one', pool }));
    const other = await worker(rx.share(), tx.share());
    const seen = await other.run(`const [rx, tx] = held;
      return [rx.name, tx.name, rx.size, rx.producers, rx.consumers, rx.pool === tx.pool, rx.pool.name, [...rx.pool.vas], rx.constructor.name];`);
    assert.deepEqual(seen, ['rx', 'tx', 9, 'many', 'one', true, 'p', [...pool.vas], 'Ring']);
    assert.deepEqual([rx.threads, pool.threads], [1, 1]);
    throwsDma(
      'EBUSY',
      () => rx.free(),
      new RegExp(`the ring rx is held by worker thread ${other.threadId} of process`),
    );
    throwsDma('EBUSY', () => pool.free());
    await other.run('held[0].free();');
    rx.free();
    assert.equal(await other.run('return held[1].pool.live'), true);
    await other.run('held[1].free();');
    assert.equal(pool.threads, 0);
    tx.free();
    pool.free();
  });

  it('is opened by what share() returned, and by nothing else', async () => {
    const pool = eal.pools.create({ elements: 32, elementSize: 64 });
    const shared = eal.rings.create('r', { size: 9, pool }).share();
    const other = new SharingWorker();
    workers.push(other);
    const { sealed } = shared;
    assert.ok(sealed !== undefined);
    for (const wrong of [
      { ...shared, sealed: undefined },
      { ...shared, sealed: { ...sealed, facts: { ...sealed.facts, event: 0 } } },
      { ...shared, sealed: { ...sealed, more: [] } },
      { ...shared, pool: undefined },
      { ...shared, pool: eal.pools.create({ elements: 32, elementSize: 64 }).share() },
      { ...shared, sealed: { ...sealed, kind: 'pool' as const } },
    ])
      await assert.rejects(other.attach(wrong), (error) => error instanceof WorkerFailure && error.code === 'EINVAL');
    // What is beside the seal is not looked at.
    await other.attach({ ...shared, name: 'x', event: -1 });
    assert.deepEqual(await other.run('return [held[0].name, held[0].pool.elements]'), ['r', 32]);
  });

  for (const side of ['producers', 'consumers'] as const)
    it(`with one of its ${side} refuses the second one, until the first one has let go or ended`, async () => {
      const ring = eal.rings.create('r', { size: 4, [side]: 'one' });
      const use = 'held[0].enqueue(Int32Array.of(1), 1); return held[0].dequeue(new Int32Array(1), 1);';
      const useHere = (): number => {
        ring.enqueue(Int32Array.of(1), 1);
        return ring.dequeue(new Int32Array(4), 1);
      };
      assert.equal(useHere(), 1);
      const [first, second] = [await worker(ring.share()), await worker(ring.share())];
      assert.equal(await first.run(use), 1);
      assert.equal(await first.run(use), 1);
      const one = side.slice(0, -1);
      const says = new RegExp(
        `the ring r has one ${one}, which is worker thread ${first.threadId} of process ${process.pid}`,
      );
      await assert.rejects(second.run(use), says);
      throwsDma('EBUSY', useHere, says);
      // What went in before it was refused.
      if (side === 'consumers') assert.equal(ring.length, 2);
      await first.run('held[0].free()');
      await second.run(use);
      throwsDma('EBUSY', useHere, new RegExp(`worker thread ${second.threadId} of`));
      await second.end();
      assert.equal(useHere(), 1);
    });

  for (const how of ENDINGS)
    it(`loses no element and doubles none when a thread ends: ${how}`, async () => {
      const pool = eal.pools.create({ elements: 64, elementSize: 64, cache: 8 });
      const ring = eal.rings.create('r', { size: 32, pool });
      const other = await worker(ring.share());
      const burst = new Int32Array(64);
      assert.ok(pool.get(burst, 10));
      assert.equal(ring.enqueue(burst, 10), 10);
      // In its hand, in its cache, and what it put into the ring.
      const has = (await other.run(TAKE, 6)) as number[];
      assert.deepEqual(has, [...burst.subarray(0, 6)]);
      await other.run(`
        const [ring] = held;
        const burst = new Int32Array(5);
        ring.pool.get(burst, 5);
        ring.enqueue(burst, 5);`);
      await other.end(how);
      await until(() => ring.threads === 0);
      pool.recover();
      assert.equal(ring.length, 9);
      assert.ok(pool.get(burst, 55));
      assert.equal(ring.dequeue(burst, 64 - 55, 55), 9);
      assert.equal(new Set(burst).size, 64);
      pool.put(burst, 64);
      ring.free();
      pool.free();
    });

  it('is taken over from a thread that ended inside, whose number is given out again only then', async () => {
    const ring = eal.rings.create('r', { size: 8 });
    const one = eal.rings.create('one', { size: 8, producers: 'one', consumers: 'one' });
    const words = [ring, one].map((each) => new Int32Array(each.share().words as SharedArrayBuffer));
    const other = await worker(ring.share(), one.share());
    // A side of one says who it is, which is the number of that thread.
    await other.run('held[1].enqueue(Int32Array.of(1), 1);');
    const id = words[1][TAIL_LOCK_AT];
    assert.ok(id > 0);
    await other.end();
    for (const at of [TAIL_LOCK_AT, HEAD_LOCK_AT]) words[0][at] = id;
    assert.equal(ring.enqueue(Int32Array.of(5), 1), 1);
    assert.equal(ring.dequeue(new Int32Array(1), 1), 1);
    for (const at of [TAIL_LOCK_AT, HEAD_LOCK_AT]) words[0][at] = id;
    // A thread that comes later may get that number, once nothing says it any more.
    await until(() => [TAIL_LOCK_AT, HEAD_LOCK_AT].every((at) => words.every((each) => each[at] !== id)));
    const next = await worker(ring.share(), one.share());
    await next.run('held[1].enqueue(Int32Array.of(1), 1);');
    assert.equal(words[1][TAIL_LOCK_AT], id);
  });

  it('goes on when a thread ends while it waits', async () => {
    const ring = eal.rings.create('r', { size: 8 });
    const [gone, stays] = [await worker(ring.share()), await worker(ring.share())];
    gone.tell('held[0].wait(2 ** 31 - 1);');
    const taken = stays.run(TAKE, 3);
    await gone.end();
    for (let i = 0; i < 3; i++) assert.equal(ring.enqueue(Int32Array.of(i), 1), 1);
    assert.deepEqual(await taken, [0, 1, 2]);
  });

  it('lets producers wait for room, in a thread and in a loop, until the consumer takes something', async () => {
    const ring = eal.rings.create('r', { size: 4, consumers: 'one' });
    const [producer, consumer] = [await worker(ring.share()), await worker(ring.share())];
    producer.tell(
      `
      const one = new Int32Array(1);
      for (; one[0] < args[0]; one[0]++) while (held[0].enqueue(one, 1) === 0) held[0].waitForRoom(2 ** 31 - 1);`,
      1000,
    );
    await until(() => ring.room === 0);
    const first = ring.writable();
    const taken = await consumer.run(TAKE, 1000);
    assert.deepEqual(
      taken,
      Array.from({ length: 1000 }, (_, i) => i),
    );
    assert.equal(await first, true);
    assert.equal(await ring.writable(), true);
  });

  it('lets producers wait when the consumer has ended: for another one, or until the time is over', async () => {
    const ring = eal.rings.create('r', { size: 2, consumers: 'one' });
    const [gone, next] = [await worker(ring.share()), await worker(ring.share())];
    assert.equal(ring.enqueue(Int32Array.of(0), 1), 1);
    assert.deepEqual(await gone.run(TAKE, 1), [0]);
    assert.equal(ring.enqueue(Int32Array.of(1, 2), 2), 2);
    await gone.end();
    assert.equal(ring.waitForRoom(2), false);
    assert.equal(await ring.writable({ timeoutMs: 2 }), false);
    const room = ring.writable();
    assert.deepEqual(await next.run(TAKE, 2), [1, 2]);
    assert.equal(await room, true);
    const aborted = new AbortController();
    assert.equal(ring.enqueue(Int32Array.of(1, 2), 2), 2);
    const waits = ring.writable({ signal: aborted.signal });
    aborted.abort();
    await assert.rejects(waits, dmaError('ECANCELED'));
    const ended = ring.writable();
    await next.end();
    ring.free();
    await assert.rejects(ended, dmaError('EINVAL'));
  });

  it('stops with its Eal only when no thread has it', async () => {
    const ring = eal.rings.create('r', { size: 8 });
    const other = await worker(ring.share());
    await assert.rejects(eal.stop(), /the ring r is (shared, and )?held by worker thread/);
    assert.equal(ring.live, true);
    await other.end();
    await eal.stop();
    assert.equal(ring.live, false);
  });
});
