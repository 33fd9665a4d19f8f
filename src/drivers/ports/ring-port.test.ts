/** Ports over rings: in one thread against a model, and with a worker that dies. */
import assert from 'node:assert/strict';
import { afterEach, beforeEach, describe, it } from 'node:test';
import fc from 'fast-check';
import { dmaError, throwsDma } from '../../../test/shared/errors.js';
import { Thread } from '../../../test/shared/thread.js';
import { until } from '../../../test/shared/until.js';
import { Eal } from '../../eal.js';
import { NONE, OFFLOAD, Packets, RingPort, ringPortDriver, type RingPortBase } from '../../entry/net.js';
import type { Pool } from '../../index.js';
import { openPlatform } from '../../platform/open.js';

const ELEMENTS = 256;
const bytesOf = (length: number, seed: number): Uint8Array =>
  Uint8Array.from({ length }, (_, i) => (i * 31 + seed * 17) & 0xff);

describe('a ring port', { skip: openPlatform().limitation ?? false }, () => {
  let eal: Eal;
  let pool: Pool;
  const threads: Thread[] = [];
  beforeEach(async () => {
    eal = await Eal.start({ onForgotten: () => undefined, memory: { noHuge: true } });
    pool = eal.pools.create({ name: 'packets', elements: ELEMENTS, elementSize: 256, cache: 16, checked: true });
  });
  afterEach(async () => {
    for (const each of threads.splice(0)) await each.end();
    await eal.stop();
  });

  /** Two ends in this thread, over rings of this size. */
  const ends = async (size: number, packets: Packets): Promise<readonly [RingPort, RingPort]> => {
    const [a, b] = ['a', 'b'].map((name) => eal.rings.create(name, { size, producers: 'one', consumers: 'one', pool }));
    const both = [new RingPort('left', [{ rx: a, tx: b }]), new RingPort('right', [{ rx: b, tx: a }])] as const;
    for (const port of both) await port.start({ packets });
    return both;
  };

  it('gives packets of all kinds on, in order, and keeps back what the ring does not take', async () => {
    const kinds = ['plain', 'chain', 'clone', 'shown', 'attached', 'take', 'take'] as const;
    const step = fc.record({
      kind: fc.constantFrom(...kinds),
      length: fc.nat(700),
      count: fc.integer({ min: 1, max: 7 }),
    });
    await fc.assert(
      fc.asyncProperty(fc.array(step, { maxLength: 60 }), fc.integer({ min: 4, max: 12 }), async (steps, size) => {
        const packets = new Packets(pool, { headroom: 32 });
        const [left, right] = await ends(size, packets);
        const sent: Uint8Array[] = [];
        let [bytes, released, attached] = [0, 0, 0];
        const waiting: number[] = [];
        const burst = new Int32Array(8);
        const take = (count: number): void => {
          const taken = right.rx(0, burst, count);
          for (const packet of burst.subarray(0, taken)) {
            const expected = sent.shift() ?? new Uint8Array();
            assert.deepEqual(packets.copy(packet), expected);
            assert.equal(packets.total[packet], expected.length);
            assert.equal(packets.vlan[packet], expected.length & 0xfff);
            assert.equal(packets.flags[packet], OFFLOAD.TX_VLAN);
          }
          packets.release(burst, taken);
        };
        const push = (): void => {
          const count = Math.min(burst.length, waiting.length);
          burst.set(waiting.slice(0, count));
          const took = left.tx(0, burst, count);
          for (const packet of waiting.splice(0, took)) assert.ok(packet >= 0);
        };
        for (const [i, { kind, length, count }] of steps.entries()) {
          if (kind === 'take') {
            take(count);
            push();
            continue;
          }
          const data = bytesOf(kind === 'plain' ? length % packets.room : length, i);
          let packet = NONE;
          if (kind === 'attached') {
            packet = packets.takeOne();
            attached++;
            packets.attach(packet, { bytes: data, va: 0, released: () => released++ });
          } else packet = packets.from(data);
          packets.vlan[packet] = data.length & 0xfff;
          packets.flags[packet] = OFFLOAD.TX_VLAN;
          bytes += data.length;
          sent.push(data);
          // A clone of it, or the one that was cloned, goes.
          const clone = kind === 'clone' || kind === 'shown' ? packets.clone(packet) : NONE;
          waiting.push(kind === 'clone' ? clone : packet);
          push();
          if (clone !== NONE) packets.releaseOne(kind === 'clone' ? packet : clone);
        }
        while (sent.length > 0) {
          take(8);
          push();
        }
        assert.equal(released, attached);
        const made = steps.filter(({ kind }) => kind !== 'take').length;
        const [out, inn] = [left.statistics(), right.statistics()];
        assert.deepEqual([out.txPackets, out.txBytes, out.txErrors], [made, bytes, 0]);
        assert.deepEqual([inn.rxPackets, inn.rxBytes], [made, bytes]);
        for (const port of [left, right]) {
          await port.stop();
          for (const { rx } of port.rings) rx.free();
        }
        assert.equal(pool.available, ELEMENTS);
      }),
      { numRuns: 60 },
    );
  });

  it('drops a packet of more segments than the ring holds, as it would never go', async () => {
    const packets = new Packets(pool, { headroom: 32 });
    const [left, right] = await ends(4, packets);
    const burst = Int32Array.of(packets.from(bytesOf(224 * 5, 1)), packets.from(bytesOf(224 * 4, 2)));
    assert.equal(left.tx(0, burst, 2), 2);
    assert.equal(left.statistics().txErrors, 1);
    assert.equal(right.rx(0, burst, 2), 1);
    assert.deepEqual(packets.copy(burst[0]), bytesOf(224 * 4, 2));
    packets.release(burst, 1);
  });

  it('sends those before a number that is no packet, and says what is wrong with it', async () => {
    const packets = new Packets(pool, { headroom: 32 });
    const [left] = await ends(8, packets);
    const good = packets.from(bytesOf(10, 1));
    assert.equal(left.tx(0, Int32Array.of(good, 77, good), 3), 1);
    throwsDma('EINVAL', () => left.tx(0, Int32Array.of(77), 1), /77 is no packet in use/);
    assert.equal(left.lost, undefined);
  });

  const table = (): Uint8Array => eal.zones.reserve('packets', Packets.tableBytes(ELEMENTS)).bytes();

  it('refuses packets that the other end can not know', async () => {
    const device = await eal.probe('vdev:ring0');
    const port = device.use(ringPortDriver);
    await assert.rejects(port.start({ packets: new Packets(pool) }), dmaError('EINVAL', /can not know/));
    assert.deepEqual([...eal.rings], [], 'its rings are gone again');
    const other = eal.pools.create({ name: 'other', elements: 8, elementSize: 256 });
    const ring = eal.rings.create('r', { size: 8, pool });
    const back = eal.rings.create('s', { size: 8, pool });
    const over = new RingPort('over', [{ rx: ring, tx: back }]);
    await assert.rejects(over.start({ packets: new Packets(other) }), dmaError('EINVAL', /another pool/));
    throwsDma('EINVAL', () => new Packets(pool, { table: new Uint8Array(100) }), /tableBytes/);
    throwsDma('EINVAL', () => new Packets(pool, { table: new Uint8Array(20_001).subarray(1) }), /aligned/);
    throwsDma('EINVAL', () => new RingPort('none', []), /no rings/);
    const bare = eal.rings.create('bare', { size: 8 });
    throwsDma('EINVAL', () => new RingPort('bare', [{ rx: bare, tx: bare }]), /no pool/);
    for (const name of ['vdev:ring1,size=0', 'vdev:ring1,queues=65', 'vdev:ring1,rx=x'])
      await assert.rejects(eal.probe(name), dmaError('EINVAL'));
  });

  /** A worker with the other end, which sends back what it receives, with its bytes changed, until it is told to end. */
  const echo = async (port: RingPortBase, memory: unknown): Promise<Thread> => {
    const thread = new Thread();
    threads.push(thread);
    const queues = port.rings.map(({ rx, tx }) => ({ rx: tx.share(), tx: rx.share() }));
    await thread.run(
      `const { attach } = await load('share/attach.js');
      const { Packets, RingPort } = await load('entry/net.js');
      const queues = data.queues.map(({ rx, tx }) => ({ rx: attach(rx), tx: attach(tx) }));
      const packets = new Packets(queues[0].rx.pool, { headroom: 32, table: attach(data.memory).bytes() });
      const port = new RingPort('there', queues);
      await port.start({ packets });
      kept.port = port;
      kept.work = () => {
        if (kept.ends) return;
        const burst = new Int32Array(32);
        let count = port.rx(0, burst);
        for (let i = 0; i < count; i++)
          for (let segment = burst[i]; segment >= 0; segment = packets.next[segment]) packets.bytes(segment)[0] ^= 0xff;
        while (count > 0) {
          const sent = port.tx(0, burst, count);
          burst.copyWithin(0, sent, count);
          count -= sent;
        }
        setImmediate(kept.work);
      };
      kept.end = async () => { kept.ends = true; await port.stop(); for (const { rx, tx } of queues) { rx.free(); tx.free(); } };
      kept.work();`,
      { queues, memory },
    );
    return thread;
  };

  it('gives packets to a thread and takes them back, and goes on with the next one when that dies', async () => {
    const zone = eal.zones.reserve('packets', Packets.tableBytes(ELEMENTS));
    const packets = new Packets(pool, { headroom: 32, table: zone.bytes() });
    const port = (await eal.probe('vdev:ring0,size=32')).use(ringPortDriver);
    await port.start({ packets });
    const links: boolean[] = [];
    void (async () => {
      for await (const event of port.events()) if (event.kind === 'link') links.push(event.link.up);
    })();
    assert.equal(port.link.up, false);
    const burst = new Int32Array(16);
    let seed = 0;
    const round = async (): Promise<void> => {
      const data = Array.from({ length: 8 }, () => bytesOf(1 + ((++seed * 61) % 600), seed));
      const waiting = data.map((each) => packets.from(each));
      const expected = data.map((each) => each.map((byte, at) => (at % packets.room === 0 ? byte ^ 0xff : byte)));
      while (expected.length > 0) {
        burst.set(waiting);
        waiting.splice(0, port.tx(0, burst, waiting.length));
        const count = port.rx(0, burst);
        for (const packet of burst.subarray(0, count)) assert.deepEqual(packets.copy(packet), expected.shift());
        packets.release(burst, count);
        if (count === 0) await port.readable(0, { timeoutMs: 1000 });
      }
    };
    const first = await echo(port, zone.share());
    assert.equal(port.link.up, true);
    await until(() => links.at(-1) === true);
    for (let i = 0; i < 50; i++) await round();
    // It dies with packets in its ring, which the next one gets.
    await first.run('kept.ends = true;');
    const some = Int32Array.from({ length: 20 }, (_, i) => packets.from(bytesOf(500, i)));
    const sent = port.tx(0, some);
    assert.equal(sent, 10, 'of three segments each, in a ring of 32');
    packets.release(some, 20 - sent, sent);
    await first.end();
    await until(() => links.at(-1) === false);
    const second = await echo(port, zone.share());
    await until(() => links.at(-1) === true);
    let back = 0;
    await until(() => {
      const count = port.rx(0, burst);
      for (const packet of burst.subarray(0, count)) {
        const expected = bytesOf(500, back++);
        for (let at = 0; at < 500; at += packets.room) expected[at] ^= 0xff;
        assert.deepEqual(packets.copy(packet), expected);
      }
      packets.release(burst, count);
      return back === sent;
    });
    await second.run('await kept.end()');
    await until(() => links.join() === 'true,false,true,false');
    await port.stop();
    assert.deepEqual([...eal.rings], []);
    await second.end();
    await until(() => pool.recover() >= 0 && pool.available === ELEMENTS);
  });

  it('brings everything back that a dead thread had, and its packets are whole again', async () => {
    const zone = eal.zones.reserve('packets', Packets.tableBytes(ELEMENTS));
    const packets = new Packets(pool, { headroom: 32, table: zone.bytes() });
    const port = (await eal.probe('vdev:ring0,size=64')).use(ringPortDriver);
    await port.start({ packets });
    const thread = await echo(port, zone.share());
    await thread.run('kept.ends = true;');
    const chains = Array.from({ length: 15 }, (_, i) => packets.from(bytesOf(224 * 3, i)));
    assert.equal(port.tx(0, Int32Array.from(chains)), 15);
    // It dies with some of them in its hand, and the others in the ring.
    assert.equal(await thread.run('return kept.port.rx(0, new Int32Array(8));'), 3, 'of three segments each');
    await thread.end();
    await port.stop();
    await until(() => pool.recover() >= 0 && pool.available === ELEMENTS);
    const all = new Int32Array(ELEMENTS);
    assert.equal(packets.take(all, ELEMENTS), true);
    for (const packet of all) assert.ok(packets.isPlain(packet), `element ${packet} is in a chain still`);
    packets.release(all, ELEMENTS);
  });

  it('tells who does not share the table that it does not', async () => {
    const packets = new Packets(pool, { headroom: 32, table: table() });
    const port = (await eal.probe('vdev:ring0')).use(ringPortDriver);
    await port.start({ packets });
    const [pair] = port.rings;
    const other = new RingPort('other', [{ rx: pair.tx, tx: pair.rx }]);
    await other.start({ packets: new Packets(pool, { headroom: 32, table: new Uint8Array(20_000) }) });
    assert.equal(port.tx(0, Int32Array.of(packets.from(bytesOf(20, 1))), 1), 1);
    throwsDma('EIO', () => other.rx(0, new Int32Array(4)), /no packet here/);
    assert.equal(other.lost?.code, 'EIO');
  });

  it('is lost when its rings are freed', async () => {
    const packets = new Packets(pool, { headroom: 32 });
    const [left, right] = await ends(8, packets);
    const waits = left.readable(0);
    for (const { rx, tx } of right.rings) for (const ring of [rx, tx]) ring.free();
    await assert.rejects(waits, dmaError('ENODEV'));
    assert.equal(left.lost?.code, 'ENODEV');
    assert.equal(left.rx(0, new Int32Array(1)), 0);
    throwsDma('ENODEV', () => right.tx(0, Int32Array.of(packets.from(bytesOf(20, 1))), 1), /rings were freed/);
  });
});
