import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import fc from 'fast-check';
import { isDmaError } from '../errors.js';
import { MiB } from '../units.js';
import type { MapKeys } from './address-space.js';
import { KeyCache, type KeyCacheOptions, type KeyedPool } from './key-cache.js';
import type { Mapping } from './mapping.js';
import { Bench, PAGE, part } from '../../test/fakes/dma/address-space.js';

const HUGE = 2 * MiB;
/** An area of three huge slots and a bit, at the middle of a page below the first. */
const BASE = 2 ** 46 - 5 * PAGE;
const PAGES = 3 * 512 + 11;

/** A domain as verbs have it, whose registrations each have a key that no other had; keys use all 32 bits. */
function bench(partialUnmap = false): Bench {
  let made = 0;
  const keys = (): MapKeys => {
    const lkey = Math.imul(++made, 0x9e3779b1) >>> 0;
    return { lkey, rkey: lkey ^ 1 };
  };
  const result = new Bench({ constraints: { iova: 'ignored', partialUnmap }, asynchronous: true, keys });
  result.area(BASE, PAGES);
  return result;
}

function cacheOf({ domain }: Bench, options: Partial<KeyCacheOptions> = {}): KeyCache {
  return new KeyCache({ device: 'd0', table: domain.table, ...options });
}

function poolOf(vas: number[], elementSize: number, headroom = 0): KeyedPool & { live: boolean } {
  return { name: 'a pool', vas: Float64Array.from(vas), elementSize, headroom, live: true };
}

/** The bytes of a 32-bit number, the other way round, by other means. */
function otherWay(key: number): number {
  const view = new DataView(new ArrayBuffer(4));
  view.setUint32(0, key, true);
  return view.getUint32(0, false);
}

describe('KeyCache', () => {
  it('has keys for what is mapped, in the order that is wanted', () => {
    const made = bench();
    const [verbs, hardware] = [cacheOf(made), cacheOf(made, { order: 'big-endian' })];
    assert.equal(verbs.keyOf(BASE, 1), -1);
    const mapping = made.domain.mapFor('d0', part(BASE, PAGE));
    assert.equal(verbs.keyOf(BASE + 5, 100), mapping.lkey);
    assert.equal(mapping.lkey, 0x9e3779b1);
    assert.equal(hardware.keyOf(BASE + 5, 100), 0xb179379e);
    mapping.unmap();
    assert.deepEqual([verbs.keyOf(BASE + 5, 100), hardware.keyOf(BASE + 5, 100)], [-1, -1]);
  });

  it('has none for an I/O that goes out of its registration, into nothing or into another', () => {
    const made = bench();
    const cache = cacheOf(made);
    const first = made.domain.mapFor('d0', part(BASE + PAGE, 600 * PAGE));
    const end = BASE + 601 * PAGE;
    assert.equal(cache.keyOf(BASE + PAGE, 600 * PAGE), first.lkey);
    assert.equal(cache.keyOf(end - 10, 10), first.lkey);
    assert.equal(cache.keyOf(end - 10, 11), -1);
    assert.equal(cache.keyOf(BASE + PAGE - 1, 2), -1);
    assert.equal(cache.keyOf(BASE + PAGE - 1, 1), -1);
    const second = made.domain.mapFor('d0', part(end, 700 * PAGE));
    assert.equal(cache.keyOf(end - 10, 11), -1);
    assert.equal(cache.keyOf(end, 700 * PAGE), second.lkey);
    assert.equal(cache.keyOf(end, 700 * PAGE + 1), -1);
    // Both ends have a key that is the same, but not what is between them.
    const cut = bench(true);
    const whole = cut.domain.mapFor('d0', part(BASE, PAGES * PAGE));
    const holed = cacheOf(cut);
    assert.equal(holed.keyOf(BASE, PAGES * PAGE), whole.lkey);
    cut.domain.unmapFor('d0', part(BASE + 700 * PAGE, PAGE));
    assert.equal(holed.keyOf(BASE, PAGES * PAGE), -1);
    assert.equal(holed.keyOf(BASE + 699 * PAGE, 3 * PAGE), -1);
    assert.equal(holed.keyOf(BASE, 700 * PAGE), whole.lkey);
    assert.equal(holed.keyOf(BASE + 701 * PAGE, (PAGES - 701) * PAGE), whole.lkey);
  });

  it('takes what no I/O can be for what is not mapped', () => {
    const made = bench();
    const cache = cacheOf(made);
    const { lkey } = made.domain.mapFor('d0', part(BASE, PAGES * PAGE));
    assert.equal(cache.keyOf(BASE, 2 ** 53 - BASE), -1);
    assert.equal(cache.keyOf(BASE, Infinity), -1);
    assert.equal(cache.keyOf(BASE, NaN), -1);
    assert.equal(cache.keyOf(BASE + HUGE, 0), lkey);
    assert.equal(cache.keyOf(BASE, 0), lkey);
  });

  it('asks once what can be done about a miss', () => {
    const made = bench();
    const asked: [number, number][] = [];
    let answer = false;
    const cache = cacheOf(made, {
      order: 'big-endian',
      miss: (va, length) => {
        asked.push([va, length]);
        if (answer) made.domain.mapFor('d0', part(BASE, PAGE));
        return answer;
      },
    });
    assert.equal(cache.keyOf(BASE + 1, 2), -1);
    answer = true;
    assert.equal(cache.keyOf(BASE + 1, 2), otherWay(0x9e3779b1));
    assert.equal(cache.keyOf(BASE + 1, 2), otherWay(0x9e3779b1));
    assert.deepEqual(asked, [
      [BASE + 1, 2],
      [BASE + 1, 2],
    ]);
    const failing = cacheOf(made, {
      miss: () => {
        throw new Error('no memory');
      },
    });
    assert.throws(() => failing.keyOf(BASE + PAGE, 2), /no memory/);
  });

  it('keeps the keys of a pool until something is unmapped, and no longer', () => {
    const made = bench();
    const cache = cacheOf(made);
    const pool = poolOf([BASE + 64, BASE + 1000 * PAGE + 64], 2048, 64);
    const says = (text: RegExp) => (error: unknown) => isDmaError(error, 'EINVAL') && text.test(error.message);
    assert.throws(() => cache.keysOf(pool), says(/element 0 of the pool a pool is not in one registration/));
    const first = made.domain.mapFor('d0', part(BASE, PAGE));
    assert.throws(() => cache.keysOf(pool), says(/element 1 /));
    const second = made.domain.mapFor('d0', part(BASE + 1000 * PAGE, PAGE));
    const keys = cache.keysOf(pool);
    assert.deepEqual([...keys], [first.lkey, second.lkey]);
    made.domain.mapFor('d0', part(BASE + 5 * PAGE, PAGE));
    assert.equal(cache.keysOf(pool), keys, 'what is mapped besides changes nothing');
    second.unmap();
    assert.throws(() => cache.keysOf(pool), says(/element 1 /));
    const again = made.domain.mapFor('d0', part(BASE + 1000 * PAGE, PAGE));
    assert.notEqual(again.lkey, second.range);
    assert.deepEqual([...cache.keysOf(pool)], [first.lkey, again.lkey]);
    pool.live = false;
    assert.throws(() => cache.keysOf(pool), says(/was freed/));
    // An element, with its headroom, has to be in one registration.
    assert.throws(() => cache.keysOf(poolOf([BASE + 32], 2048, 64)), says(/element 0/));
    assert.throws(() => cache.keysOf(poolOf([BASE + PAGE - 2047], 2048)), says(/element 0/));
  });
});

/** A step of the property: what, where (in pages), and how it is done. */
type Step =
  | { readonly kind: 'map'; readonly page: number; readonly pages: number; readonly async: boolean }
  | { readonly kind: 'unmap' | 'replace'; readonly pick: number; readonly async: boolean }
  | { readonly kind: 'look'; readonly queue: number; readonly at: number; readonly length: number }
  | { readonly kind: 'pool'; readonly queue: number; readonly pool: number };

const page = fc.oneof(
  fc.nat(PAGES - 1),
  fc.tuple(fc.nat(3), fc.integer({ min: -2, max: 2 })).map(([huge, off]) => Math.max(0, 5 + huge * 512 + off)),
);
const pages = fc.oneof(
  { weight: 3, arbitrary: fc.integer({ min: 1, max: 4 }) },
  { weight: 1, arbitrary: fc.integer({ min: 1, max: PAGES }) },
  { weight: 1, arbitrary: fc.constantFrom(512, 1024) },
);
const length = fc.oneof(
  { weight: 4, arbitrary: fc.integer({ min: 1, max: 2 * PAGE }) },
  { weight: 1, arbitrary: fc.integer({ min: 1, max: 2 * HUGE }) },
);
const QUEUES = 3;
const queue = fc.nat(QUEUES - 1);
const async = fc.boolean();
const step: fc.Arbitrary<Step> = fc.oneof(
  { weight: 4, arbitrary: fc.record({ kind: fc.constant('map' as const), page, pages, async }) },
  {
    weight: 3,
    arbitrary: fc.record({ kind: fc.constantFrom('unmap' as const, 'replace' as const), pick: fc.nat(), async }),
  },
  {
    weight: 8,
    arbitrary: fc.record({ kind: fc.constant('look' as const), queue, at: fc.nat(PAGES * PAGE), length }),
  },
  { weight: 2, arbitrary: fc.record({ kind: fc.constant('pool' as const), queue, pool: fc.nat(1) }) },
);

describe('several queues', () => {
  it('answer as a list of registrations does, and nothing of what was unmapped', async () => {
    await fc.assert(
      fc.asyncProperty(fc.array(step, { maxLength: 120, size: 'max' }), async (steps) => {
        const made = bench();
        const { domain } = made;
        const queues = Array.from({ length: QUEUES }, (_, i) => {
          const order = i === 1 ? ('big-endian' as const) : ('native' as const);
          return { order, cache: cacheOf(made, { order }) };
        });
        const pools = [
          poolOf([BASE + 100, BASE + 6 * PAGE - 50, BASE + 517 * PAGE - 10], 200),
          poolOf([BASE + 7 * PAGE], 3 * PAGE, PAGE),
        ];
        /** The model: what is registered, and the key of each. */
        const live: { readonly mapping: Mapping; readonly va: number; readonly end: number; readonly key: number }[] =
          [];
        const gone = new Set<number>();
        const expected = (va: number, bytes: number): number =>
          live.find((each) => va >= each.va && va + bytes <= each.end)?.key ?? -1;
        const compare = (which: number, va: number, bytes: number): void => {
          const { cache, order } = queues[which];
          const key = expected(va, bytes);
          const wanted = key >= 0 && order === 'big-endian' ? otherWay(key) : key;
          const answer = cache.keyOf(va, bytes);
          if (answer !== wanted) assert.equal(answer, wanted, `${va - BASE} + ${bytes}, queue ${which}`);
          assert.equal(gone.has(order === 'native' ? answer : otherWay(answer)), false, 'the key of what was unmapped');
        };
        const map = async (va: number, bytes: number, later: boolean): Promise<void> => {
          const mapping = later
            ? await domain.mapForAsync('d0', part(va, bytes))
            : domain.mapFor('d0', part(va, bytes));
          const { lkey = -1 } = mapping;
          live.push({ mapping, va, end: va + bytes, key: lkey });
        };
        for (const each of steps) {
          if (each.kind === 'map') {
            const va = BASE + each.page * PAGE;
            const end = Math.min(va + each.pages * PAGE, BASE + PAGES * PAGE);
            if (!live.some((other) => va < other.end && other.va < end)) await map(va, end - va, each.async);
          } else if (each.kind === 'look') {
            compare(each.queue, BASE + each.at, each.length);
            const near = live[each.at % Math.max(1, live.length)];
            if (near === undefined) continue;
            // Up to its end and one byte further, and all of it.
            compare(each.queue, near.end - Math.min(each.length, near.end - near.va), each.length);
            compare(each.queue, near.end - 1, 1);
            compare(each.queue, near.end - 1, 2);
            compare(each.queue, near.va, near.end - near.va);
            compare(each.queue, near.va, near.end - near.va + 1);
          } else if (each.kind === 'pool') {
            const pool = pools[each.pool];
            const { cache, order } = queues[each.queue];
            const keys = Array.from(pool.vas, (va) => expected(va - pool.headroom, pool.headroom + pool.elementSize));
            if (keys.includes(-1)) assert.throws(() => cache.keysOf(pool), /registration/);
            else assert.deepEqual([...cache.keysOf(pool)], order === 'native' ? keys : keys.map(otherWay));
          } else if (live.length > 0) {
            const [{ mapping, va, end, key }] = live.splice(each.pick % live.length, 1);
            // Every queue has it before, and none after.
            for (let which = 0; which < QUEUES; which++) assert.notEqual(queues[which].cache.keyOf(va, end - va), -1);
            gone.add(key);
            if (each.async) await mapping.unmapAsync();
            else mapping.unmap();
            for (let which = 0; which < QUEUES; which++) compare(which, va, end - va);
            if (each.kind === 'replace') await map(va, end - va, each.async);
            for (let which = 0; which < QUEUES; which++) compare(which, va, end - va);
          }
        }
        assert.deepEqual(made.differences(), []);
      }),
      { numRuns: Number(process.env.ANYDMA_RUNS ?? 100) },
    );
  });
});
