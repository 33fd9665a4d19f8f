/** The forwarder between ports that take all, a part, or nothing. */
import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { FakePort } from '../../test/fakes/net/port.js';
import { dmaError, throwsDma } from '../../test/shared/errors.js';
import { withPackets } from '../../test/shared/packets.js';
import { DmaError } from '../errors.js';
import { checksum, sumOf } from './checksum.js';
import { Forwarder, type ForwarderOptions } from './forwarder.js';
import type { Packets } from './packets.js';

async function started(packets: Packets, ...names: string[]): Promise<FakePort[]> {
  const ports = names.map((name) => new FakePort(name));
  for (const port of ports) await port.start({ packets });
  return ports;
}

function forwarderOf(
  packets: Packets,
  ports: readonly FakePort[],
  options?: Omit<ForwarderOptions, 'packets'>,
): Forwarder {
  const forwarder = new Forwarder({ packets, ...options });
  for (const port of ports) forwarder.add(port);
  return forwarder;
}

const frames = (count: number, seed = 0): Uint8Array[] =>
  Array.from({ length: count }, (_, i) => Uint8Array.from({ length: 60 }, (_, byte) => (i + byte + seed) & 255));

describe('a forwarder', () => {
  for (const [topology, to] of [
    ['paired', [1, 0, 3, 2, 4]],
    ['chained', [1, 2, 3, 4, 0]],
    ['loop', [0, 1, 2, 3, 4]],
  ] as const)
    it(
      `${topology}: each port sends to its partner, in order`,
      withPackets(async (packets) => {
        const ports = await started(packets, 'a', 'b', 'c', 'd', 'e');
        ports.forEach((port, i) => port.incoming.push(...frames(70, i)));
        await forwarderOf(packets, ports, { topology }).run();
        ports.forEach((_, i) => assert.deepEqual(ports[to[i]].sent, frames(70, i), `from ${i}`));
      }),
    );

  it(
    'keeps what a port does not take, and receives no more until it does',
    withPackets(async (packets) => {
      const [from, to] = await started(packets, 'a', 'b');
      from.incoming.push(...frames(40));
      to.room = 5;
      const forwarder = forwarderOf(packets, [from, to], { burst: 8 });
      assert.equal(forwarder.turn(), 8);
      assert.equal(forwarder.turn(), 0);
      assert.equal(to.sent.length, 5);
      assert.equal(from.incoming.length, 32);
      to.room = Infinity;
      await forwarder.run();
      assert.deepEqual(to.sent, frames(40));
      assert.deepEqual(forwarder.statistics()[0], { from: 'a', to: 'b', received: 40, sent: 40, dropped: 0 });
    }),
  );

  it(
    'drops them if it is told to, and what it keeps at the end',
    withPackets(async (packets) => {
      const [from, to] = await started(packets, 'a', 'b');
      from.incoming.push(...frames(40));
      to.room = 5;
      const dropping = forwarderOf(packets, [from, to], { burst: 8, whenFull: 'drop' });
      await dropping.run();
      assert.deepEqual(dropping.statistics()[0], { from: 'a', to: 'b', received: 40, sent: 5, dropped: 35 });

      from.incoming.push(...frames(8));
      const keeping = forwarderOf(packets, [from, to], { burst: 8 });
      await keeping.run({ durationMs: 20 });
      assert.deepEqual(keeping.statistics()[0], { from: 'a', to: 'b', received: 8, sent: 0, dropped: 8 });
    }),
  );

  it(
    'takes ports that come late, and lets them go',
    withPackets(async (packets) => {
      const [first, late] = await started(packets, 'a', 'b');
      const forwarder = forwarderOf(packets, [first]);
      first.ends = late.ends = false;
      const running = forwarder.run();
      first.incoming.push(...frames(3));
      while (first.sent.length < 3) await new Promise((resolve) => setTimeout(resolve, 1));
      forwarder.add(late);
      throwsDma('EINVAL', () => forwarder.add(late), /before/);
      first.incoming.push(...frames(4, 9));
      while (late.sent.length < 4) await new Promise((resolve) => setTimeout(resolve, 1));
      forwarder.remove(late);
      first.incoming.push(...frames(2));
      first.ends = true;
      await running;
      assert.deepEqual(first.sent, [...frames(3), ...frames(2)]);
      assert.deepEqual(late.sent, frames(4, 9));
      throwsDma('EINVAL', () => forwarder.add(new FakePort('c')), /not started/);
    }),
  );

  it(
    'goes on when a port is lost, and ends when all are',
    withPackets(async (packets) => {
      const [from, to] = await started(packets, 'a', 'b');
      from.ends = to.ends = false;
      from.incoming.push(...frames(20));
      const forwarder = forwarderOf(packets, [from, to], { burst: 4 });
      forwarder.turn();
      to.unplug();
      const running = forwarder.run();
      while (from.incoming.length > 0) await new Promise((resolve) => setTimeout(resolve, 1));
      from.unplug();
      await assert.rejects(running, dmaError('ENODEV', /all ports are lost/));
      assert.deepEqual(forwarder.statistics()[0], { from: 'a', to: 'b', received: 20, sent: 4, dropped: 16 });
    }),
  );

  it(
    'ends with the error of a port, and gives back what it had',
    withPackets(async (packets) => {
      const [from, to] = await started(packets, 'a', 'b');
      from.incoming.push(...frames(20));
      to.fails = new DmaError({ code: 'ENOSPC', operation: 'port.tx', reason: 'full' });
      await assert.rejects(forwarderOf(packets, [from, to]).run(), dmaError('ENOSPC'));
    }),
  );

  it(
    'ends at once when its signal is aborted, or was',
    withPackets(async (packets) => {
      const [port] = await started(packets, 'a');
      port.ends = false;
      const forwarder = forwarderOf(packets, [port]);
      await forwarder.run({ signal: AbortSignal.abort() });
      const abort = new AbortController();
      const running = forwarder.run({ signal: abort.signal });
      setTimeout(() => abort.abort(), 5);
      await running;
    }),
  );

  it(
    'makes packets of its own: any segments, right sums, as many flows as wanted',
    withPackets(async (packets) => {
      const [port] = await started(packets, 'a');
      for (const [mode, txPackets] of [
        ['txonly', [64]],
        ['txonly', [60, 33, 100]],
        ['flowgen', [64]],
      ] as const) {
        port.sent.length = 0;
        port.room = 50;
        const forwarder = forwarderOf(packets, [port], { mode, txPackets, flows: 7, peers: ['02:00:00:00:00:aa'] });
        while (port.sent.length < 50) forwarder.turn();
        await forwarder.run({ durationMs: 1 });
        assert.equal(port.sent.length, 50);
        const total = txPackets.reduce((sum, length) => sum + length, 0);
        const destinations = new Set<string>();
        for (const frame of port.sent) {
          assert.equal(frame.length, total);
          assert.equal(frame[5], 0xaa);
          assert.equal(checksum(sumOf(frame, 14, 20)), 0);
          assert.equal((frame[16] << 8) | frame[17], total - 14);
          destinations.add([...frame.subarray(30, 34)].join('.'));
          assert.ok(
            frame.subarray(42).every((byte) => byte === 0),
            'nothing of what was in the memory is sent',
          );
        }
        assert.equal(destinations.size, mode === 'flowgen' ? 7 : 1);
      }
    }),
  );

  it(
    'refuses options that can not be',
    withPackets(async (packets) => {
      const [port] = await started(packets, 'a');
      for (const options of [
        { mode: 'bridge' },
        { burst: 0 },
        { burst: 513 },
        { topology: 'star' },
        { peers: ['nobody'] },
        { flows: 0 },
        { whenFull: 'explode' },
        { unknown: 1 },
      ])
        throwsDma('EINVAL', () => new Forwarder({ packets, ...options } as never), /./);
      for (const txPackets of [[], [41], [59], [64, 1000], [64, 0], [64.5]])
        throwsDma('EINVAL', () => forwarderOf(packets, [port], { mode: 'txonly', txPackets }), /can not be made/);
    }),
  );
});
