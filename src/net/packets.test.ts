/** Packets over a pool: their segments, clones and attached buffers, against a plain model. */
import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import fc from 'fast-check';
import { throwsDma } from '../../test/shared/errors.js';
import { withPackets } from '../../test/shared/packets.js';
import { NONE, Packets } from './packets.js';

const SIZE = 256;
const HEADROOM = 32;

const bytesOf = (length: number, seed = 1): Uint8Array =>
  Uint8Array.from({ length }, (_, i) => (i * 31 + seed * 17) & 0xff);

describe('packets', () => {
  it(
    'are elements of the pool: empty at first, one segment, behind the headroom',
    withPackets((packets) => {
      const burst = new Int32Array(4);
      assert.equal(packets.take(burst, 4), true);
      for (const packet of burst) {
        assert.equal(packets.inUse(packet), true);
        assert.deepEqual(
          [packets.offset[packet], packets.length[packet], packets.total[packet], packets.segments[packet]],
          [HEADROOM, 0, 0, 1],
        );
        assert.equal(packets.next[packet], NONE);
      }
      packets.release(burst, 4);
      for (const packet of burst) assert.equal(packets.inUse(packet), false);
    }),
  );

  it(
    'have no room for more than the pool has, and nothing is taken then',
    withPackets((packets, pool) => {
      const burst = new Int32Array(65);
      assert.equal(packets.take(burst, 65), false);
      assert.equal(pool.available, 64);
      assert.equal(packets.from(bytesOf(64 * (SIZE - HEADROOM) + 1)), NONE);
      assert.equal(pool.available, 64);
    }),
  );

  it(
    'of many segments have their bytes in order',
    withPackets((packets) => {
      for (const length of [0, 1, packets.room - 1, packets.room, packets.room + 1, 9014]) {
        const data = bytesOf(length);
        const packet = packets.from(data);
        assert.equal(packets.total[packet], length);
        assert.equal(packets.segments[packet], Math.max(1, Math.ceil(length / packets.room)));
        assert.deepEqual(packets.copy(packet), data);
        packets.releaseOne(packet);
      }
    }),
  );

  it(
    'are refused when they are released twice, alone, in a burst, and while a clone lives',
    withPackets((packets, pool) => {
      const burst = new Int32Array(3);
      packets.take(burst, 3);
      packets.releaseOne(burst[1]);
      throwsDma('EINVAL', () => packets.release(burst, 3), /is no packet in use/);
      assert.equal(packets.inUse(burst[0]), false, 'those before it are released');
      assert.equal(packets.inUse(burst[2]), true, 'those behind it are not');
      packets.releaseOne(burst[2]);

      const packet = packets.from(bytesOf(100));
      const clone = packets.clone(packet);
      packets.releaseOne(packet);
      throwsDma('EINVAL', () => packets.releaseOne(packet));
      assert.deepEqual(packets.copy(clone), bytesOf(100));
      assert.equal(pool.available, 62);
      packets.releaseOne(clone);
      throwsDma('EINVAL', () => packets.releaseOne(clone));
      for (const nonsense of [-1, 64, 2 ** 31 - 1]) throwsDma('EINVAL', () => packets.releaseOne(nonsense));
    }),
  );

  it(
    'that run in a circle are refused, and nothing of them is released',
    withPackets((packets, pool) => {
      const packet = packets.from(bytesOf(3 * packets.room));
      const second = packets.next[packet];
      const third = packets.next[second];
      packets.next[third] = second;
      throwsDma('EINVAL', () => packets.releaseOne(packet), /do not end/);
      assert.equal(pool.available, 61);
      packets.next[third] = NONE;
      packets.releaseOne(packet);
    }),
  );

  it(
    'clones show the same bytes until the last one goes',
    withPackets((packets, pool) => {
      const data = bytesOf(500);
      const packet = packets.from(data);
      packets.vlan[packet] = 7;
      const clones = [packets.clone(packet), packets.clone(packet)];
      clones.push(packets.clone(clones[0]));
      packets.bytes(packet)[0] ^= 0xff;
      data[0] ^= 0xff;
      for (const clone of clones) {
        assert.deepEqual(packets.copy(clone), data);
        assert.equal(packets.vlan[clone], 7);
      }
      packets.releaseOne(packet);
      packets.releaseOne(clones[0]);
      assert.equal(pool.available, 64 - 3 * 3, 'the bytes, and two clones');
      packets.releaseOne(clones[1]);
      assert.deepEqual(packets.copy(clones[2]), data);
      packets.releaseOne(clones[2]);
    }),
  );

  it(
    'show attached buffers, which are told when the last packet goes',
    withPackets((packets) => {
      const told: number[] = [];
      for (let round = 0; round < 200; round++) {
        const data = bytesOf(1000, round);
        const packet = packets.takeOne();
        packets.attach(packet, { bytes: data, va: 0x1000, released: () => told.push(round) }, 10, 900);
        assert.deepEqual(packets.copy(packet), data.subarray(10, 910));
        const clone = packets.clone(packet);
        packets.releaseOne(packet);
        assert.equal(told.length, round);
        assert.deepEqual(packets.copy(clone), data.subarray(10, 910));
        packets.releaseOne(clone);
        assert.equal(told.length, round + 1);
      }
      const packet = packets.from(bytesOf(1));
      const external = { bytes: bytesOf(10), va: 0, released: () => undefined };
      throwsDma('EINVAL', () => packets.attach(packet, external), /has data already/);
      packets.releaseOne(packet);
      throwsDma('EINVAL', () => packets.attach(packet, external), /no packet in use/);
      const empty = packets.takeOne();
      for (const [offset, length] of [
        [11, 0],
        [0, 11],
        [-1, 1],
        [0.5, 1],
        [0, Number.NaN],
      ])
        throwsDma('EINVAL', () => packets.attach(empty, external, offset, length));
      packets.releaseOne(empty);
    }),
  );

  it(
    'grow in front up to the headroom, and shrink at both ends',
    withPackets((packets, pool) => {
      const packet = packets.from(bytesOf(600));
      packets.prepend(packet, HEADROOM);
      assert.equal(packets.total[packet], 600 + HEADROOM);
      throwsDma('ENOSPC', () => packets.prepend(packet, 1), /headroom/);
      packets.trimFront(packet, HEADROOM + 4);
      assert.deepEqual(packets.copy(packet), bytesOf(600).subarray(4));
      throwsDma('EINVAL', () => packets.trimFront(packet, 10_000));
      throwsDma('EINVAL', () => packets.truncate(packet, 597));
      packets.truncate(packet, 300);
      assert.deepEqual(packets.copy(packet), bytesOf(600).subarray(4, 304));
      assert.equal(pool.available, 62);
      packets.truncate(packet, 0);
      assert.equal(packets.segments[packet], 1);
      packets.releaseOne(packet);
    }),
  );

  it(
    'refuse pools that have no room for data',
    withPackets((_, pool) => {
      throwsDma('EINVAL', () => new Packets(pool, { headroom: SIZE }), /can not have packets/);
      throwsDma('EINVAL', () => new Packets(pool, { headroom: -1 }));
      throwsDma('EINVAL', () => new Packets(null as never));
    }),
  );

  it('are as a plain model says, whatever is done', async () => {
    const step = fc.record({
      kind: fc.constantFrom('from', 'clone', 'chain', 'release', 'attach', 'truncate', 'trim', 'prepend'),
      a: fc.nat(1000),
      b: fc.nat(1000),
    });
    await fc.assert(
      fc.asyncProperty(fc.array(step, { maxLength: 60 }), async (steps) => {
        await withPackets((packets, pool) => {
          const model = new Map<number, number[]>();
          let attached = 0;
          const pick = (n: number): number | undefined => [...model.keys()].at(n % Math.max(1, model.size));
          for (const { kind, a, b } of steps) {
            const packet = pick(a);
            if (kind === 'from') {
              const data = bytesOf(a, b);
              const made = packets.from(data);
              if (made !== NONE) model.set(made, [...data]);
              else assert.ok(pool.available < Math.max(1, Math.ceil(a / packets.room)));
            } else if (kind === 'attach') {
              const made = packets.takeOne();
              if (made === NONE) continue;
              const data = bytesOf(a, b);
              attached++;
              packets.attach(made, { bytes: data, va: 4096, released: () => attached-- });
              model.set(made, [...data]);
            } else if (packet === undefined) continue;
            else {
              const data = model.get(packet) ?? [];
              const other = pick(b);
              if (kind === 'clone') {
                const made = packets.clone(packet);
                if (made !== NONE) model.set(made, [...data]);
              } else if (kind === 'chain') {
                if (other === undefined || other === packet) continue;
                packets.chain(packet, other);
                model.set(packet, [...data, ...(model.get(other) ?? [])]);
                model.delete(other);
              } else if (kind === 'truncate') {
                const length = Math.min(b, data.length);
                packets.truncate(packet, length);
                model.set(packet, data.slice(0, length));
              } else if (kind === 'trim') {
                const length = Math.min(b, packets.length[packet]);
                packets.trimFront(packet, length);
                model.set(packet, data.slice(length));
              } else if (kind === 'prepend') {
                // What is written in front of a clone's data is seen by all that share it: outside of their data here.
                const length = Math.min(b % 8, packets.offset[packet]);
                packets.prepend(packet, length);
                packets.trimFront(packet, length);
              } else {
                packets.releaseOne(packet);
                model.delete(packet);
              }
            }
            for (const [made, expected] of model) assert.deepEqual([...packets.copy(made)], expected);
          }
          for (const made of model.keys()) packets.releaseOne(made);
          assert.equal(attached, 0);
        })();
      }),
      { numRuns: 60 },
    );
  });
});
