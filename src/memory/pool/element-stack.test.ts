import assert from 'node:assert/strict';
import { once } from 'node:events';
import { describe, it } from 'node:test';
import { isMainThread, Worker, workerData } from 'node:worker_threads';
import fc from 'fast-check';
import { isDmaError } from '../../errors.js';
import { openPlatform } from '../../platform/open.js';
import { Holders } from '../shared/holders.js';
import type { WordMemory } from '../shared/words.js';
import { ElementStack, MANY } from './element-stack.js';
import { PoolCache } from './pool-cache.js';

/** What a worker of this file is told. */
interface Orders {
  readonly pool: WordMemory;
  readonly holders: WordMemory;
  /** A word for each element: 0, or the worker that has it. */
  readonly owners: SharedArrayBuffer;
  readonly worker: number;
  readonly cacheSize: number;
  readonly rounds: number;
  /** End inside this call, when it comes to number `at`. */
  readonly die?: { readonly call: 'get' | 'put'; readonly at: number };
}

const { kernel } = openPlatform();
const SKIP = { skip: openPlatform().limitation ?? false };

/** A pool that others may attach to, and their table. */
function shared(elements: number, checked = false): { stack: ElementStack; holders: Holders; words: Int32Array } {
  const stack = ElementStack.create(elements, { checked });
  const holders = Holders.create(kernel);
  stack.share(holders);
  return { stack, holders, words: new Int32Array(stack.memory as SharedArrayBuffer) };
}

/** Takes 6 elements and puts 2 back; then ends inside a call, with the lock. */
function die(stack: ElementStack, { call, at }: NonNullable<Orders['die']>): void {
  const burst = new Int32Array(6);
  stack.get(burst, 6);
  stack.put(burst, 2, 4);
  const end = (target: Int32Array, key: string | symbol): void => {
    // Nothing that follows is run, not even a finally.
    if (key === String(at) && target.length === 4) process.exit(7);
  };
  const trap = new Proxy(burst.subarray(0, 4), {
    get: (target, key) => (call === 'put' && end(target, key), Reflect.get(target, key) as unknown),
    set: (target, key, value) => (end(target, key), Reflect.set(target, key, value)),
  });
  stack[call](trap, 4);
}

/** Takes and gives back bursts of many sizes; says at once when another worker has what it got. */
function hammer({ pool, holders, owners, worker, cacheSize, rounds, die: how }: Orders): void {
  const stack = ElementStack.attach(pool, Holders.attach(kernel, holders));
  if (how !== undefined) die(stack, how);
  const cache = cacheSize === 0 ? undefined : new PoolCache(stack, cacheSize);
  const owner = new Int32Array(owners);
  const held = new Int32Array(256);
  let count = 0;
  let state = worker;
  for (let round = 0; round < rounds; round++) {
    state = (Math.imul(state, 1664525) + 1013904223) | 0;
    const burst = (state >>> 8) % 49;
    if ((state & 0x80) === 0 && count + burst <= held.length) {
      if (!(cache ?? stack).get(held, burst, count)) continue;
      for (let i = count; i < count + burst; i++) {
        const other = Atomics.compareExchange(owner, held[i], 0, worker);
        if (other !== 0) throw new Error(`element ${held[i]} belongs to worker ${other}`);
      }
      count += burst;
    } else {
      const back = Math.min(burst, count);
      count -= back;
      for (let i = count; i < count + back; i++) {
        const other = Atomics.exchange(owner, held[i], 0);
        if (other !== worker) throw new Error(`element ${held[i]} went to worker ${other}`);
      }
      (cache ?? stack).put(held, back, count);
    }
  }
  for (let i = 0; i < count; i++) Atomics.store(owner, held[i], 0);
  (cache ?? stack).put(held, count);
  cache?.flush();
}

async function hammerAll(workers: number, elements: number, cacheSize: number, checked: boolean, rounds: number) {
  const { stack, holders } = shared(elements, checked);
  const owners = new SharedArrayBuffer(elements * 4);
  const start = (worker: number): Worker => {
    const common = { pool: stack.memory, holders: holders.buffer, owners };
    const orders: Orders = { ...common, worker, cacheSize, rounds };
    return new Worker(new URL(import.meta.url), { workerData: orders });
  };
  const ends = Array.from({ length: workers }, (_, i) => once(start(i + 1), 'exit'));
  // The main thread takes part: it sleeps on the lock like any other.
  const common = { pool: stack.memory, holders: holders.buffer, owners };
  hammer({ ...common, worker: workers + 1, cacheSize, rounds: rounds / 4 });
  for (const [status] of await Promise.all(ends)) assert.equal(status, 0);
  assertComplete(stack);
}

/** Every element is in the pool, once. */
function assertComplete(stack: ElementStack): void {
  assert.equal(stack.available, stack.elements);
  const all = new Int32Array(stack.elements);
  assert.ok(stack.get(all, all.length));
  assert.deepEqual(
    all.sort(),
    Int32Array.from(all, (_, i) => i),
  );
  assert.ok(!stack.get(all, 1));
  stack.put(all, all.length);
}

/** How the model test calls a stack or a cache. */
interface User {
  get(into: Int32Array, count: number, at: number): boolean;
  put(from: Int32Array, count: number, at: number): void;
}

/** `user`, whose `get` and `put` go through the memory of the cache itself where that is possible. */
function withoutCopy(user: ElementStack | PoolCache, most: number): User {
  if (!(user instanceof PoolCache) || most > user.size) return user;
  return {
    get: (into, count, at) => {
      const start = user.getInPlace(count);
      if (start >= 0) into.set(user.numbers.subarray(start, start + count), at);
      return start >= 0;
    },
    put: (from, count, at) => {
      const start = user.roomFor(most);
      user.numbers.set(from.subarray(at, at + count), start);
      user.putInPlace(start, count);
    },
  };
}

/** Shares it. @returns it, for another holder: the next one that this thread is */
function shareWithAnother(stack: ElementStack, holders: Holders): ElementStack {
  stack.share(holders);
  holders.leave(holders.mine);
  return ElementStack.attach(stack.memory, holders);
}

function ownersOf({ memory, elements }: ElementStack): Uint16Array {
  const { length } = new Uint16Array(memory as SharedArrayBuffer);
  const room = Math.ceil(elements / 2) * 2;
  return new Uint16Array(memory as SharedArrayBuffer, (length - room) * 2, elements);
}

/** What is in a cache belongs to its holder, 1 and 2; what is in a hand to somebody; and nobody has the rest. */
function assertOwners(stack: ElementStack, caches: readonly PoolCache[], held: ReadonlySet<number>): void {
  const owners = ownersOf(stack);
  const expected = Array.from(owners, (owner, element) => (held.has(element) ? owner || -1 : 0));
  for (const [index, { numbers, length }] of caches.entries())
    for (const element of numbers.subarray(0, length)) expected[element] = index + 1;
  assert.deepEqual([...owners], expected);
}

function isEinval(error: unknown): boolean {
  return isDmaError(error, 'EINVAL');
}

function tests(): void {
  void describe('ElementStack', () => {
    void it('starts full, and hands out what was put last', () => {
      const stack = ElementStack.create(5);
      const burst = new Uint32Array(8);
      assert.ok(stack.get(burst, 3, 2));
      assert.deepEqual([...burst], [0, 0, 0, 1, 2, 0, 0, 0]);
      assert.equal(stack.available, 2);
      stack.put(burst, 2, 3);
      assert.ok(stack.get(burst, 4));
      assert.deepEqual([...burst.subarray(0, 4)], [2, 1, 3, 4]);
      assert.ok(stack.get(burst, 0) && !stack.get(burst, 1));
    });

    void it('gives all or nothing', () => {
      const stack = ElementStack.create(4);
      const burst = new Int32Array(8).fill(-1);
      assert.equal(stack.get(burst, 5), false);
      assert.deepEqual([stack.available, ...burst.subarray(0, 2)], [4, -1, -1]);
    });

    void it('agrees with a model, with and without caches, checked or not', () => {
      const { boolean, nat } = fc;
      const step = fc.record({ cache: nat(2), count: nat(40), get: boolean(), inPlace: boolean(), flush: nat(15) });
      fc.assert(
        fc.property(
          fc.integer({ min: 24, max: 80 }),
          fc.integer({ min: 1, max: 16 }),
          fc.boolean(),
          fc.array(step, { maxLength: 80, size: 'max' }),
          (elements, size, checked, steps) => {
            const stack = ElementStack.create(elements, { checked });
            const holders = Holders.create(kernel, new SharedArrayBuffer(Holders.bytesFor(3)));
            // Half of the pools are shared with another holder.
            const isShared = elements % 2 === 0;
            const other = isShared ? shareWithAnother(stack, holders) : stack;
            const caches = [new PoolCache(stack, size), new PoolCache(other, size)];
            const users = [stack, ...caches];
            const held = new Set<number>();
            let last: readonly number[] = [];
            for (const { cache, count, get, inPlace, flush } of steps) {
              const user = inPlace ? withoutCopy(users[cache], count) : users[cache];
              const burst = new Int32Array(count + 3).fill(-1);
              if (get) {
                const reachable = stack.available + (cache === 0 ? 0 : caches[cache - 1].length);
                const before = reachable - count;
                assert.equal(user.get(burst, count, 2), before >= 0);
                if (before < 0) continue;
                const got = burst.subarray(2, count + 2);
                last = [...got];
                for (const element of got) {
                  assert.ok(element >= 0 && element < elements && !held.has(element), `element ${element}`);
                  held.add(element);
                }
              } else {
                // What was just got, by whomever; or any others.
                const isLast = flush % 2 === 1 && last.length <= count && last.every((element) => held.has(element));
                const back = isLast ? last : [...held].slice(0, count);
                burst.set(back, 2);
                user.put(burst, back.length, 2);
                for (const element of back) held.delete(element);
              }
              assert.deepEqual([burst[0], burst[1], burst[count + 2]], [-1, -1, -1]);
              if (isShared) assertOwners(stack, caches, held);
              if (flush === 0) caches[cache % 2].flush();
              const cached = caches.reduce((sum, each) => sum + each.length, 0);
              assert.equal(stack.available + cached + held.size, elements);
              for (const each of caches) assert.ok(each.length <= Math.floor(size * 1.5));
            }
            stack.put(Int32Array.from(held), held.size);
            for (const each of caches) each.flush();
            assertComplete(stack);
          },
        ),
        { numRuns: 300 },
      );
    });

    void it('refuses more elements than there are, always', () => {
      const stack = ElementStack.create(4);
      const burst = new Int32Array(4);
      assert.throws(() => stack.put(burst, 1), isEinval);
      assert.ok(stack.get(burst, 2));
      assert.throws(() => stack.put(burst, 3), isEinval);
      assert.equal(stack.available, 2);
      // The lock is free again after an error.
      stack.put(burst, 2);
      assertComplete(stack);
    });

    void it('checked: refuses an element that is free or does not exist, and puts none of the burst', () => {
      const stack = ElementStack.create(40, { checked: true });
      const cache = new PoolCache(stack, 8);
      for (const user of [stack, cache]) {
        const burst = new Int32Array(40);
        assert.ok(user.get(burst, 4));
        const [a, b, c] = burst;
        for (const wrong of [
          [a, b, a],
          [a, b, 40],
          [a, -1, b],
          [30, a, b],
          [a, b, 2 ** 31 - 1],
        ]) {
          // prettier-ignore
          assert.throws(() => user.put(Int32Array.from(wrong), 3), isEinval);
        }
        user.put(burst, 4);
        assert.throws(() => user.put(Int32Array.of(c), 1), isEinval);
        // In the cache it is free as well.
        assert.throws(() => stack.put(Int32Array.of(c), 1), isEinval);
      }
      cache.flush();
      assertComplete(stack);
    });

    void it('refuses bursts that do not fit their arrays', () => {
      const stack = ElementStack.create(100);
      const cache = new PoolCache(stack, 8);
      const burst = new Int32Array(8);
      for (const user of [stack, cache]) {
        for (const [count, at] of [
          [9, 0],
          [8, 1],
          [-1, 0],
          [1, -1],
          [NaN, 0],
          [1.5, 0],
          [1, NaN],
          [1, 0.5],
        ]) {
          // prettier-ignore
          assert.throws(() => user.get(burst, count, at), isEinval);
          assert.throws(() => user.put(burst, count, at), isEinval);
        }
      }
      assertComplete(stack);
    });

    void it('refuses impossible pools, caches (MP-03) and shared memory', () => {
      for (const elements of [0, -1, 1.5, NaN, 2 ** 28 + 1])
        assert.throws(() => ElementStack.create(elements), isEinval);
      const stack = ElementStack.create(1000);
      for (const size of [0, -1, 1.5, NaN, 513]) assert.throws(() => new PoolCache(stack, size), isEinval);
      assert.throws(() => new PoolCache(ElementStack.create(11), 8), isEinval);
      assert.equal(new PoolCache(ElementStack.create(12), 8).size, 8);
      const holders = Holders.create(kernel);
      for (const bytes of [0, 100, 128, 4128])
        assert.throws(() => ElementStack.attach(new SharedArrayBuffer(bytes), holders), isEinval);
      // It is not shared.
      assert.throws(() => ElementStack.attach(stack.memory, holders), isEinval);
      stack.share(holders);
      ElementStack.attach(stack.memory, holders);
      const shorter = new Uint8Array(stack.memory as SharedArrayBuffer, 0, stack.memory.byteLength - 4);
      assert.throws(() => ElementStack.attach(shorter, holders), isEinval);
    });

    void it('loses no element and hands none out twice among 3 workers and the main thread', async () => {
      await hammerAll(3, 150, 0, false, 40_000);
    });

    void it('nor with caches', async () => {
      await hammerAll(3, 400, 32, false, 40_000);
    });

    void it('nor when checked', async () => {
      await hammerAll(2, 300, 16, true, 20_000);
    });

    void it('shared: refuses an element that is free, and puts none of the burst', () => {
      const { stack } = shared(40);
      const cache = new PoolCache(stack, 8);
      for (const user of [stack, cache]) {
        const burst = new Int32Array(40);
        assert.ok(stack.get(burst, 4));
        const [a, b] = burst;
        for (const wrong of [
          [a, b, 39],
          [a, -1, b],
          [a, b, 2 ** 31 - 1],
        ])
          assert.throws(() => user.put(Int32Array.from(wrong), 3), isEinval);
        user.put(burst, 4);
      }
      assert.throws(() => stack.put(Int32Array.of(39), 1), isEinval);
      cache.flush();
      assertComplete(stack);
    });

    void it('a thread that ends inside a call, at any number, loses and doubles nothing', SKIP, async () => {
      for (const checked of [false, true])
        for (const call of ['get', 'put'] as const)
          for (const at of [0, 1, 3]) {
            const { stack, holders, words } = shared(20, checked);
            const orders: Orders = {
              pool: stack.memory,
              holders: holders.buffer,
              owners: new SharedArrayBuffer(4),
              worker: 1,
              cacheSize: 0,
              rounds: 0,
              die: { call, at },
            };
            const [status] = (await once(new Worker(new URL(import.meta.url), { workerData: orders }), 'exit')) as [
              number,
            ];
            assert.equal(status, 7);
            const [dead] = [...holders.gone()];
            // It had the lock, unless it ended while its burst was checked.
            assert.equal(words[16], checked && call === 'put' ? 0 : dead);
            const burst = new Int32Array(20);
            assert.ok(stack.get(burst, 5));
            stack.recover(dead);
            assert.equal(stack.available, 15);
            stack.put(burst, 5);
            assertComplete(stack);
          }
    });

    void it('recovers what a dead thread had, but not what it left in rings or what others took over', () => {
      const { stack, holders } = shared(10);
      const dead = 77;
      const owners = ownersOf(stack);
      const burst = new Int32Array(10);
      assert.ok(stack.get(burst, 4));
      owners.fill(dead, 0, 4);
      // Element 3 was put by this thread, element 0 is in a ring.
      assert.equal(stack.claim(Int32Array.of(3), 1, 0), -1);
      assert.equal(stack.recover(dead, [0, 5, -1, 99]), 2);
      assert.deepEqual([...owners.subarray(0, 6)], [holders.mine, 0, 0, holders.mine, 0, 0]);
      assert.equal(stack.available, 8);
      stack.put(Int32Array.of(3, 0), 2);
      assertComplete(stack);
    });

    void it('what is put belongs to who puts it, whichever element of the burst another one took', () => {
      for (let other = 0; other < 19; other++) {
        const { stack, holders } = shared(40);
        const cache = new PoolCache(stack, 20);
        const dead = 77;
        const owners = ownersOf(stack);
        const burst = new Int32Array(19);
        assert.ok(stack.get(burst, 19));
        owners[burst[other]] = dead;
        if (other % 2 === 0) cache.put(burst, 19);
        else {
          const start = cache.roomFor(19);
          cache.numbers.set(burst, start);
          cache.putInPlace(start, 19);
        }
        assert.equal(owners[burst[other]], holders.mine);
        assert.equal(stack.recover(dead), 0);
        cache.flush();
        assertComplete(stack);
        // One that is free is found at each place, too.
        assert.ok(stack.get(burst, 19));
        owners[burst[other]] = 0;
        assert.throws(() => cache.put(burst, 19), isEinval);
      }
    });

    void it('a cache takes nothing for its own because the place still has the number', () => {
      const { stack, holders } = shared(24);
      const cache = new PoolCache(stack, 4);
      const other = shareWithAnother(stack, holders);
      const owners = ownersOf(stack);
      const burst = new Int32Array(4);
      const theirs = new Int32Array(2);
      assert.ok(other.get(theirs, 2) && cache.get(burst, 4));
      // Written in place, but not put there.
      cache.numbers.set(theirs, cache.roomFor(2));
      cache.put(theirs, 2);
      assert.deepEqual([owners[theirs[0]], owners[theirs[1]]], [1, 1]);
      cache.put(burst, 4);
      // What went on to the stack is free, and is refused wherever the cache is.
      for (let out = 0; out <= 4; out++) {
        assert.ok(cache.get(burst, 4));
        cache.put(burst, 4);
        assert.ok(cache.get(burst, out));
        for (let element = 0; element < 24; element++)
          if (owners[element] === 0) assert.throws(() => cache.put(Int32Array.of(element), 1), isEinval);
        cache.put(burst, out);
        cache.flush();
        assert.throws(() => cache.put(burst, 1), isEinval);
      }
      assertComplete(stack);
    });

    void it('repairs numbers, counts and locks that others overwrote', SKIP, () => {
      let state = 3;
      const random = (below: number): number => {
        state = (Math.imul(state, 1664525) + 1013904223) | 0;
        return (state >>> 8) % below;
      };
      const nonsense = [-1, 40, 2 ** 31 - 1, -(2 ** 31), 7, 41];
      for (let round = 0; round < 60; round++) {
        const { stack, words } = shared(40);
        const held = new Int32Array(40);
        assert.ok(stack.get(held, 10));
        for (let i = 0; i < 8; i++) words[32 + random(40)] = nonsense[random(6)];
        words[17] = round % 3 === 0 ? nonsense[random(4)] : words[17];
        // No such thread lives.
        words[16] = round % 5 === 0 ? 1000 + random(50) : 0;
        const before = stack.available;
        const more = new Int32Array(40);
        if (stack.get(more, 20)) {
          const all = [...held.subarray(0, 10), ...more.subarray(0, 20)];
          assert.equal(new Set(all).size, 30, `${all.join()} after ${before}`);
          stack.put(more, 20);
        }
        stack.put(held, 10);
        stack.recover(60_000);
        assertComplete(stack);
      }
    });

    void it('goes on whatever is in its words, owners included', SKIP, () => {
      let state = 11;
      const random = (): number => (state = (Math.imul(state, 1664525) + 1013904223) | 0) >>> 8;
      for (let round = 0; round < 200; round++) {
        const { stack, words } = shared(40);
        const cache = new PoolCache(stack, 8);
        const held = new Int32Array(40);
        for (let i = 0; i < 20; i++) {
          words[[17, 32 + (random() % 60)][random() % 2]] = random() % 3 === 0 ? -1 : random() % 50;
          const user = random() % 2 === 0 ? stack : cache;
          try {
            if (user.get(held, random() % 12)) user.put(held, random() % 12);
          } catch (error) {
            assert.ok(isDmaError(error, 'EINVAL') || isDmaError(error, 'EIO'), String(error));
          }
          for (const number of held) assert.ok(number >= 0 && number < 40);
        }
      }
    });
  });

  void describe('PoolCache', () => {
    void it('meets the pool only when it is empty or 1.5 times full', () => {
      const stack = ElementStack.create(1000);
      const cache = new PoolCache(stack, 64);
      const burst = new Int32Array(200);
      assert.ok(cache.get(burst, 32));
      assert.deepEqual([cache.length, stack.available], [64, 1000 - 96]);
      assert.ok(cache.get(burst, 64, 32));
      assert.deepEqual([cache.length, stack.available], [0, 1000 - 96]);
      cache.put(burst, 64);
      cache.put(burst, 32, 64);
      assert.deepEqual([cache.length, stack.available], [96, 1000 - 96]);
      assert.ok(cache.get(burst, 32));
      cache.put(burst, 32);
      assert.deepEqual([cache.length, stack.available], [96, 1000 - 96]);
      assert.ok(stack.get(burst, 1));
      cache.put(burst, 1);
      assert.deepEqual([cache.length, stack.available], [64, 1000 - 64]);
      cache.flush();
      assertComplete(stack);
    });

    void it('hands out what was put last, and gives back what was put first', () => {
      const stack = ElementStack.create(100);
      using cache = new PoolCache(stack, 4);
      const burst = new Int32Array(7);
      assert.ok(stack.get(burst, 7));
      cache.put(burst, 4);
      cache.put(burst, 3, 4);
      assert.deepEqual([cache.length, stack.available], [4, 96]);
      assert.ok(cache.get(burst, 4));
      assert.deepEqual([...burst.subarray(0, 4)], [6, 5, 4, 3]);
      cache.put(burst, 4);
    });

    void it('takes only what is missing when the pool has no more, or the burst is larger than the cache', () => {
      const stack = ElementStack.create(40);
      const cache = new PoolCache(stack, 8);
      const burst = new Int32Array(40);
      assert.ok(cache.get(burst, 1));
      assert.ok(cache.get(burst, 20, 1));
      assert.deepEqual([cache.length, stack.available], [0, 19]);
      assert.ok(stack.get(burst, 14, 21));
      assert.ok(cache.get(burst, 5, 35));
      assert.equal(cache.get(new Int32Array(1), 1), false);
      assert.equal(new Set(burst).size, 40);
      cache.put(burst, 40);
      assert.deepEqual([cache.length, stack.available], [0, 40]);
    });

    void it('keeps the order of elements, in bursts of any size', () => {
      const stack = ElementStack.create(100);
      const cache = new PoolCache(stack, 40);
      const all = new Int32Array(100);
      assert.ok(stack.get(all, 100));
      const counts = Array.from({ length: 41 }, (_, count) => count);
      // Again from places where large bursts began before, as long as those and of other lengths.
      for (const count of [...counts, ...counts.toReversed(), ...counts])
        for (const user of [cache, stack]) {
          const put = all.slice(7, 7 + count);
          if (count % 2 === 0) user.put(put, count);
          else user.put(all, count, 7);
          const burst = new Int32Array(50).fill(-1);
          assert.ok(user.get(burst, count, 3));
          // Large ones come out of a cache as they were put.
          if (user === stack || count < MANY) put.reverse();
          assert.deepEqual([...burst.subarray(0, 4 + count)], [-1, -1, -1, ...put, -1]);
        }
    });

    void it('hands out and takes elements in its own memory', () => {
      const stack = ElementStack.create(100);
      const cache = new PoolCache(stack, 8);
      const start = cache.getInPlace(3);
      // Just what a get finds: the size is left.
      assert.deepEqual([cache.length, stack.available], [8, 89]);
      const got = [...cache.numbers.subarray(start, start + 3)];
      assert.deepEqual(got, [8, 9, 10]);
      const room = cache.roomFor(8);
      // 16 would be too many: room is made, and nothing is put yet.
      assert.deepEqual([room, cache.length, stack.available], [0, 0, 97]);
      cache.numbers.set(got, room);
      cache.putInPlace(room, 3);
      assert.deepEqual([cache.length, stack.available], [3, 97]);
      cache.flush();
      assertComplete(stack);
    });

    void it('refuses what has no place in its own memory', () => {
      for (const checked of [false, true]) {
        const stack = ElementStack.create(24, { checked });
        const cache = new PoolCache(stack, 8);
        for (const count of [9, -1, NaN, 0.5, 2 ** 32]) {
          assert.throws(() => cache.getInPlace(count), isEinval);
          assert.throws(() => cache.roomFor(count), isEinval);
          assert.throws(() => cache.putInPlace(0, count), isEinval);
        }
        const burst = new Int32Array(24);
        assert.ok(stack.get(burst, 24));
        assert.equal(cache.getInPlace(1), -1);
        assert.equal(cache.getInPlace(0), 0);
        cache.put(burst, 8);
        const room = cache.roomFor(4);
        // 12 are the most, and the room was for 4.
        assert.throws(() => cache.putInPlace(room, 5), isEinval);
        assert.throws(() => cache.putInPlace(room + 1, 1), isEinval);
        // That room is gone with the next call.
        cache.put(burst, 1, 8);
        assert.throws(() => cache.putInPlace(room, 1), isEinval);
        if (checked) {
          const again = cache.roomFor(2);
          cache.numbers.set([burst[9], burst[0]], again);
          assert.throws(() => cache.putInPlace(again, 2), isEinval);
        }
        assert.deepEqual([cache.length, stack.available], [9, 0]);
        cache.put(burst, 7, 9);
        cache.put(burst, 8, 16);
        cache.flush();
        assertComplete(stack);
      }
    });
  });
}

if (isMainThread) tests();
else hammer(workerData as Orders);
