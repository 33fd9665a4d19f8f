/** Rings in one thread: bursts, errors, waiting, and what happens when shared words are overwritten. */
import assert from 'node:assert/strict';
import { readdirSync } from 'node:fs';
import { afterEach, beforeEach, describe, it } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { failingPlatform } from '../../../test/fakes/platform/platforms.js';
import { dmaError, throwsDma, throwsDmaOf } from '../../../test/shared/errors.js';
import { Random } from '../../../test/shared/random.js';
import { Eal } from '../../eal.js';
import { attach } from '../../share/attach.js';
import { openPlatform } from '../../platform/open.js';
import { portablePlatform } from '../../platform/portable.js';
import type { Platform } from '../../platform/ports.js';
import type { Pool } from './pool.js';
import { Ring } from './ring.js';
import { HEAD_AT, HEAD_LOCK_AT, TAIL_AT, TAIL_LOCK_AT } from './ring-words.js';
import type { RingOptions } from './rings.js';

const SKIP = { skip: openPlatform().limitation ?? false };

const start = (platform?: Platform): Promise<Eal> =>
  Eal.start({ platform, onForgotten: () => undefined, memory: { noHuge: true } });

/** The words that all who have the ring see. */
function wordsOf(ring: Ring): Int32Array {
  return new Int32Array(ring.share().words as SharedArrayBuffer);
}

function counting(from: number, count: number): Int32Array {
  return Int32Array.from({ length: count }, (_, i) => from + i);
}

describe('a ring', SKIP, () => {
  let eal: Eal;
  beforeEach(async () => {
    eal = await start();
  });
  afterEach(() => eal.stop());

  const sides: readonly Partial<RingOptions>[] = [
    {},
    { producers: 'one' },
    { consumers: 'one' },
    { producers: 'one', consumers: 'one' },
  ];
  for (const options of sides)
    for (const shared of [false, true])
      it(`${JSON.stringify(options)}${shared ? ', shared' : ''} gives what was put in, in the same order`, () => {
        const random = new Random(1);
        for (const size of [1, 2, 3, 48, 64]) {
          using ring = eal.rings.create('r', { size, ...options });
          if (shared) ring.share();
          const model: number[] = [];
          const burst = new Int32Array(80);
          let next = 0;
          for (let i = 0; i < 3000; i++) {
            const count = random.below(size + 3);
            const at = random.below(4);
            const all = random.oneIn(2);
            if (random.oneIn(2)) {
              burst.set(counting(next, count), at);
              const room = size - model.length;
              const went = count <= room ? count : all ? 0 : room;
              if (all) assert.equal(ring.enqueueAll(burst, count, at), went === count);
              else assert.equal(ring.enqueue(burst, count, at), went);
              model.push(...counting(next, went));
              next = (next + went) | 0;
            } else {
              const came = count <= model.length ? count : all ? 0 : model.length;
              burst.fill(-7);
              if (all) assert.equal(ring.dequeueAll(burst, count, at), came === count);
              else assert.equal(ring.dequeue(burst, count, at), came);
              assert.deepEqual([...burst.subarray(at, at + came)], model.splice(0, came));
              assert.ok(burst.subarray(at + came).every((number) => number === -7));
            }
            assert.deepEqual([ring.length, ring.room], [model.length, size - model.length]);
          }
        }
      });

  it('goes on when its indexes pass 2^31 and 2^32', () => {
    using ring = eal.rings.create('r', { size: 48 });
    const words = wordsOf(ring);
    const burst = new Int32Array(32);
    for (const index of [2 ** 31 - 40, -40]) {
      words[TAIL_AT] = index;
      words[HEAD_AT] = index;
      for (let i = 0; i < 9; i++) {
        assert.equal(ring.enqueue(counting(i * 32, 32), 32), 32);
        assert.equal(ring.length, 32);
        assert.equal(ring.dequeue(burst, 32), 32);
        assert.deepEqual(burst, counting(i * 32, 32));
      }
    }
  });

  it('takes any 32-bit numbers, from and into both kinds of array', () => {
    using ring = eal.rings.create('r', { size: 4 });
    assert.equal(ring.enqueue(Uint32Array.of(0, 2 ** 32 - 1, 2 ** 31), 3), 3);
    const into = new Uint32Array(3);
    assert.equal(ring.dequeue(into, 3), 3);
    assert.deepEqual(into, Uint32Array.of(0, 2 ** 32 - 1, 2 ** 31));
    assert.equal(ring.enqueue(Int32Array.of(-1), 1), 1);
    assert.equal(ring.dequeue(into, 1), 1);
    assert.equal(into[0], 2 ** 32 - 1);
  });

  it('refuses bursts that do not fit their array, and changes nothing', () => {
    using ring = eal.rings.create('r', { size: 4 });
    ring.enqueue(Int32Array.of(1, 2), 2);
    const burst = new Int32Array(4);
    for (const [numbers, count, at] of [
      [burst, 5, 0],
      [burst, 1, 4],
      [burst, -1, 0],
      [burst, 1, -1],
      [burst, 1.5, 0],
      [burst, NaN, 0],
      [burst, 2 ** 32, 0],
      [burst, '1', 0],
      [[1, 2], 2, 0],
      [new Uint8Array(4), 2, 0],
      [undefined, 0, 0],
    ] as [Int32Array, number, number][]) {
      throwsDma('EINVAL', () => ring.enqueue(numbers, count, at));
      throwsDma('EINVAL', () => ring.enqueueAll(numbers, count, at));
      throwsDma('EINVAL', () => ring.dequeue(numbers, count, at));
      throwsDma('EINVAL', () => ring.dequeueAll(numbers, count, at));
    }
    const gone = new Int32Array(4);
    structuredClone(gone.buffer, { transfer: [gone.buffer] });
    throwsDma('EINVAL', () => ring.enqueue(gone, 1), /the array is empty/);
    assert.equal(ring.length, 2);
    assert.equal(ring.enqueue(burst, 0, 4), 0);
  });

  it('is created with possible options only, and with a name of its own', () => {
    const { rings } = eal;
    const wrong: [string, unknown, RegExp][] = [
      ['', { size: 1 }, /the name of a ring is empty/],
      [1 as never, { size: 1 }, /the name of a ring/],
      ['r', undefined, /options/],
      ['r', {}, /size/],
      ['r', { size: 0 }, /size/],
      ['r', { size: 1.5 }, /size/],
      ['r', { size: 2 ** 28 + 1 }, /size/],
      ['r', { size: 1, producers: 'two' }, /producers/],
      ['r', { size: 1, consumers: 1 }, /consumers/],
      ['r', { size: 1, pool: {} }, /pool/],
      ['r', { size: 1, elements: 1 }, /elements/],
    ];
    for (const [name, options, says] of wrong)
      throwsDmaOf('EINVAL', 'rings.create', () => rings.create(name, options as RingOptions), says);
    throwsDma('EINVAL', () => rings.find(1 as never));
    assert.deepEqual([...rings], []);
    const ring = rings.create('r', { size: 5 });
    assert.deepEqual(
      [ring.name, ring.size, ring.producers, ring.consumers, ring.pool],
      ['r', 5, 'many', 'many', undefined],
    );
    throwsDma('EEXIST', () => rings.create('r', { size: 6 }), /it holds 5 numbers/);
    const other = rings.create('s', { size: 1 });
    assert.deepEqual([...rings], [ring, other]);
    assert.equal(rings.find('r'), ring);
    ring.free();
    assert.equal(rings.find('r'), undefined);
    rings.create('r', { size: 6 });
  });

  it('carries elements of a pool of its own Eal only', async () => {
    await using other = await start();
    const pool = other.pools.create({ elements: 4, elementSize: 64 });
    throwsDmaOf('EINVAL', 'rings.create', () => eal.rings.create('r', { size: 4, pool }), /was not made by this Eal/);
    // An attached one has the same name, but the thread that made it does not know rings of this Eal.
    const named = eal.pools.create({ name: pool.name, elements: 4, elementSize: 64 });
    using attached = attach(pool.share());
    throwsDma('EINVAL', () => eal.rings.create('r', { size: 4, pool: attached }), /was not made by this Eal/);
    eal.rings.create('r', { size: 4, pool: named }).free();
  });

  it('can not be used after it was freed, and its Eal not after stop', async () => {
    const ring = eal.rings.create('r', { size: 5 });
    ring.share();
    ring.free();
    assert.deepEqual([ring.live, ring.length], [false, 0]);
    const burst = new Int32Array(1);
    for (const use of [
      () => ring.enqueue(burst, 1),
      () => ring.dequeue(burst, 1),
      () => ring.wait(0),
      () => ring.share(),
      () => ring.free(),
    ])
      throwsDma('EINVAL', use, /the ring r was freed/);
    await assert.rejects(ring.readable(), dmaError('EINVAL', /the ring r was freed/));
    ring[Symbol.dispose]();
    const left = eal.rings.create('left', { size: 5 });
    await eal.stop();
    assert.equal(left.live, false);
    throwsDmaOf('ECANCELED', 'rings.create', () => eal.rings.create('r', { size: 5 }));
  });

  it('leaves nothing behind, whichever system call fails', async () => {
    await eal.stop();
    const failing = failingPlatform(openPlatform());
    eal = await start(failing);
    const descriptors = (): number => readdirSync('/proc/self/fd').length;
    const before = descriptors();
    let failed = 0;
    for (let nth = 1; ; nth++) {
      failing.failCall(nth, 'EMFILE');
      let error: unknown;
      try {
        using ring = eal.rings.create('r', { size: 5, pool: eal.pools.find('p') });
        ring.share();
        assert.equal(ring.wait(0), false);
        assert.equal(await ring.readable({ timeoutMs: 0 }), false);
      } catch (thrown) {
        error = thrown;
      }
      const done = failing.failed() === undefined;
      failing.failCall(0, 'EMFILE');
      eal.rings.find('r')?.free();
      assert.equal(descriptors(), before, String(nth));
      if (done) break;
      failed++;
      assert.ok(error === undefined || error instanceof Error);
    }
    assert.ok(failed > 0);
  });

  it('of an Eal without system calls works in its thread; sharing and waiting say why they can not', async () => {
    await eal.stop();
    eal = await start(portablePlatform('this is a test'));
    const ring = eal.rings.create('r', { size: 5 });
    assert.equal(ring.enqueue(counting(1, 3), 3), 3);
    assert.equal(await ring.readable(), true);
    assert.equal(ring.wait(5), true);
    const burst = new Int32Array(3);
    assert.equal(ring.dequeue(burst, 3), 3);
    throwsDmaOf('ENOTSUP', 'ring.share', () => ring.share(), /this is a test/);
    throwsDmaOf('ENOTSUP', 'ring.wait', () => ring.wait(5));
    await assert.rejects(ring.readable(), dmaError('ENOTSUP'));
  });
});

describe('a ring of elements', SKIP, () => {
  let eal: Eal;
  let pool: Pool;
  let ring: Ring;
  beforeEach(async () => {
    eal = await start();
    pool = eal.pools.create({ name: 'p', elements: 16, elementSize: 64 });
    ring = eal.rings.create('r', { size: 8, pool });
  });
  afterEach(() => eal.stop());

  for (const shared of [false, true])
    it(`takes none that does not exist${shared ? ' or is free' : ''}, and none of its burst`, () => {
      if (shared) ring.share();
      const burst = new Int32Array(4);
      assert.ok(pool.get(burst, 4));
      const [first, second] = burst;
      for (const number of [-1, 16, 2 ** 31 - 1, ...(shared ? [9] : [])])
        throwsDmaOf('EINVAL', 'ring.enqueue', () => ring.enqueue(Int32Array.of(first, number, second), 3), /element/);
      assert.equal(ring.length, 0);
      assert.equal(ring.enqueue(burst, 4), 4);
      assert.equal(ring.dequeue(burst, 4), 4);
      pool.put(burst, 4);
      assert.equal(pool.available, 16);
    });

  it('keeps its pool; when it is freed, its elements are in the pool again', () => {
    const burst = new Int32Array(16);
    ring.share();
    pool.get(burst, 6);
    ring.enqueue(burst, 6);
    throwsDma('EBUSY', () => pool.free(), /the ring r carries elements of the pool p/);
    assert.equal(pool.available, 10);
    ring.free();
    assert.equal(pool.available, 16);
    throwsDma('EINVAL', () => eal.rings.create('s', { size: 1, pool: freed(eal) }), /the pool gone was freed/);
    pool.free();
  });

  it('ends with its pool, if that is freed by force', async () => {
    pool.free({ force: true });
    assert.equal(ring.live, false);
    const burst = new Int32Array(1);
    throwsDma('EINVAL', () => ring.enqueue(burst, 1), /the pool p of the ring r was freed/);
    throwsDma('EINVAL', () => ring.dequeue(burst, 1), /the pool p of the ring r was freed/);
    await assert.rejects(ring.readable(), dmaError('EINVAL', /the pool p/));
    ring.free();
  });

  it('skips what is no element in a hand, and gives what is around it', () => {
    const words = wordsOf(ring);
    const slots = words.subarray(words.length - 8);
    const burst = new Int32Array(8);
    pool.get(burst, 5);
    const elements = [...burst.subarray(0, 5)];
    for (const nonsense of [-1, 16, 99, 2 ** 31 - 1, -(2 ** 31), 15]) {
      const head = words[HEAD_AT];
      assert.equal(ring.enqueue(Int32Array.from(elements), 5), 5);
      slots[(head + 2) & 7] = nonsense;
      assert.equal(ring.dequeue(burst, 8), 2);
      assert.deepEqual([...burst.subarray(0, 2)], elements.slice(0, 2));
      throwsDmaOf('EIO', 'ring.dequeue', () => ring.dequeue(burst, 8), new RegExp(`has ${nonsense}, .*skipped`));
      assert.equal(ring.dequeue(burst, 8), 2);
      assert.deepEqual([...burst.subarray(0, 2)], elements.slice(3));
      assert.equal(ring.length, 0);
    }
    pool.put(Int32Array.from(elements), 5);
    assert.equal(pool.available, 16);
  });
});

function freed(eal: Eal): Pool {
  const pool = eal.pools.create({ name: 'gone', elements: 1, elementSize: 1 });
  pool.free();
  return pool;
}

describe('a ring whose words others overwrite', SKIP, () => {
  let eal: Eal;
  beforeEach(async () => {
    eal = await start();
  });
  afterEach(() => eal.stop());

  it('says so when its indexes are impossible, while other rings go on', () => {
    const [ring, other] = ['r', 's'].map((name) => eal.rings.create(name, { size: 8 }));
    const words = wordsOf(ring);
    const burst = new Int32Array(8);
    for (const [at, value] of [
      [TAIL_AT, 9],
      [TAIL_AT, -1],
      [HEAD_AT, 5],
      [HEAD_AT, -(2 ** 31)],
      [TAIL_AT, 2 ** 31 - 1],
    ]) {
      const [tail, head] = [words[TAIL_AT], words[HEAD_AT]];
      words[at] = value;
      throwsDmaOf('EIO', 'ring.enqueue', () => ring.enqueue(burst, 1), /the indexes of the ring r were overwritten/);
      throwsDmaOf('EIO', 'ring.dequeue', () => ring.dequeue(burst, 1), /the indexes of the ring r were overwritten/);
      assert.ok(ring.length >= 0 && ring.length <= 8);
      [words[TAIL_AT], words[HEAD_AT]] = [tail, head];
      assert.equal(other.enqueue(burst, 8), 8);
      assert.equal(other.dequeue(burst, 8), 8);
      assert.equal(ring.enqueue(burst, 8), 8);
      assert.equal(ring.dequeue(burst, 8), 8);
    }
  });

  for (const side of ['many', 'one'] as const)
    it(`takes a side of ${side} from numbers that nobody has`, () => {
      const ring = eal.rings.create('r', { size: 8, producers: side, consumers: side });
      const words = wordsOf(ring);
      const burst = new Int32Array(8);
      for (const nonsense of [-1, 4000, 65_536, 2 ** 31 - 1]) {
        words[TAIL_LOCK_AT] = nonsense;
        assert.equal(ring.enqueue(burst, 3), 3);
        words[HEAD_LOCK_AT] = nonsense;
        assert.equal(ring.dequeue(burst, 8), 3);
      }
    });

  it('is refused where it is attached, if it is none', () => {
    const ring = eal.rings.create('r', { size: 8 });
    const description = ring.share();
    const words = wordsOf(ring);
    const { platform } = eal;
    for (const [at, value] of [
      [0, 1],
      [1, 0],
      [1, 2 ** 29],
      [1, 1000],
      [1, -1],
    ]) {
      const before = words[at];
      words[at] = value;
      throwsDma('EINVAL', () => Ring.attach(description, platform), /holds no ring/);
      words[at] = before;
    }
    for (const wrong of [
      undefined,
      {},
      { ...description, words: new SharedArrayBuffer(4) },
      { ...description, event: -1 },
      { ...description, name: 5 },
    ])
      throwsDma('EINVAL', () => Ring.attach(wrong as typeof description, platform));
    assert.equal(ring.threads, 0);
    using there = Ring.attach(description, platform);
    assert.equal(ring.threads, 1);
    assert.equal(there.enqueue(Int32Array.of(7), 1), 1);
    throwsDma('EBUSY', () => ring.free(), /the ring r is held by process \d+/);
  });
});

describe('waiting for a ring', SKIP, () => {
  let eal: Eal;
  let ring: Ring;
  beforeEach(async () => {
    eal = await start();
    ring = eal.rings.create('r', { size: 8 });
  });
  afterEach(() => eal.stop());
  const one = Int32Array.of(1);

  it('ends with what is put in, for all that wait, and at once when there is something', async () => {
    const both = [ring.readable(), ring.readable({ timeoutMs: 2 ** 31 - 1 })];
    assert.equal(ring.enqueue(one, 1), 1);
    assert.deepEqual(await Promise.all(both), [true, true]);
    assert.equal(await ring.readable(), true);
    assert.equal(ring.wait(2 ** 31 - 1), true);
  });

  it('goes on when another one took it first', async () => {
    const readable = ring.readable();
    ring.enqueue(one, 1);
    ring.dequeue(new Int32Array(1), 1);
    const first = await Promise.race([readable, sleep(30)]);
    assert.equal(first, undefined);
    ring.enqueue(one, 1);
    assert.equal(await readable, true);
  });

  it('ends when the time is over, the signal is aborted, or the ring is freed', async () => {
    assert.equal(await ring.readable({ timeoutMs: 1 }), false);
    assert.equal(ring.wait(0), false);
    assert.equal(ring.wait(2), false);
    const abort = new AbortController();
    const readable = ring.readable({ signal: abort.signal });
    const freed = ring.readable();
    abort.abort(new Error('mine'));
    await assert.rejects(readable, dmaError('ECANCELED', /mine/));
    await assert.rejects(ring.readable({ signal: AbortSignal.abort() }), dmaError('ECANCELED'));
    ring.enqueue(one, 1);
    await assert.rejects(ring.readable({ signal: AbortSignal.abort() }), dmaError('ECANCELED'));
    assert.equal(await freed, true);
    ring.dequeue(new Int32Array(1), 1);
    const last = ring.readable();
    ring.free();
    await assert.rejects(last, dmaError('EINVAL', /the ring r was freed/));
  });

  it('refuses impossible options', async () => {
    for (const timeoutMs of [-1, NaN, '5', 2 ** 31] as number[]) {
      throwsDmaOf('EINVAL', 'ring.wait', () => ring.wait(timeoutMs));
      await assert.rejects(ring.readable({ timeoutMs }), dmaError('EINVAL', /timeoutMs/));
    }
    await assert.rejects(ring.readable({ signal: 5 as never }), dmaError('EINVAL', /signal/));
    await assert.rejects(ring.readable({ timeout: 5 } as never), dmaError('EINVAL', /timeout/));
  });

  it('costs one who puts in no system call, unless somebody waits', async () => {
    await eal.stop();
    const platform = openPlatform();
    let signals = 0;
    const signal = (fd: number): void => {
      signals++;
      platform.events.signal(fd);
    };
    eal = await start({ ...platform, events: { ...platform.events, signal } });
    ring = eal.rings.create('r', { size: 8 });
    ring.share();
    const burst = new Int32Array(8);
    for (let i = 0; i < 1000; i++) {
      ring.enqueue(burst, 8);
      ring.dequeue(burst, 8);
    }
    assert.equal(signals, 0);
    const readable = ring.readable();
    ring.enqueue(one, 1);
    assert.equal(signals, 1);
    await readable;
    const after = signals;
    ring.enqueue(one, 1);
    assert.equal(signals, after);
  });
});
