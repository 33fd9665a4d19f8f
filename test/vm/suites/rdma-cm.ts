/** Connections by the RDMA connection manager, between two hosts: iWARP (siw), which has no other way, and Soft-RoCE. */
import assert from 'node:assert/strict';
import { after, before, describe, it } from 'node:test';
import { dmaError } from '../../shared/errors.js';
import { KiB, type ExternalMemory } from '../../../src/index.js';
import type { PeerSession, QueuePair } from '../../../src/entry/rdma.js';
import { FAR, makeNetwork, NEAR, run, startFarPeer, type FarPeer } from '../rdma-network.js';
import { joinPeer, near, type Near } from '../rdma-near.js';
import { BYTES, fill, wrongAt } from '../rdma-peer.js';

/** Interfaces of their own: the manager finds the device by the address. */
const SIW_NEAR = { device: 'siwnear', netdev: 'near1', ipv4: '10.78.0.1' } as const;
const SIW_FAR = { device: 'siwfar', netdev: 'far1', ipv4: '10.78.0.2' } as const;

const KINDS = [
  { name: 'iWARP', own: SIW_NEAR, far: SIW_FAR, other: NEAR },
  { name: 'Soft-RoCE', own: NEAR, far: FAR, other: SIW_NEAR },
] as const;

before(() => {
  makeNetwork();
  const inside = ['-n', FAR.namespace];
  run('ip', 'link', 'add', SIW_NEAR.netdev, 'type', 'veth', 'peer', 'name', SIW_FAR.netdev, 'netns', FAR.namespace);
  run('ip', 'addr', 'add', `${SIW_NEAR.ipv4}/24`, 'dev', SIW_NEAR.netdev);
  run('ip', 'link', 'set', SIW_NEAR.netdev, 'up');
  run('ip', ...inside, 'addr', 'add', `${SIW_FAR.ipv4}/24`, 'dev', SIW_FAR.netdev);
  run('ip', ...inside, 'link', 'set', SIW_FAR.netdev, 'up');
  run('rdma', 'link', 'add', SIW_NEAR.device, 'type', 'siw', 'netdev', SIW_NEAR.netdev);
  const add = ['rdma', 'link', 'add', SIW_FAR.device, 'type', 'siw', 'netdev', SIW_FAR.netdev];
  run('ip', 'netns', 'exec', FAR.namespace, ...add);
});

for (const { name, own, far, other } of KINDS)
  describe(`two hosts with ${name}`, () => {
    let side: Near;
    let peer: FarPeer;
    let memory: ExternalMemory;
    let pair: QueuePair;
    let session: PeerSession;
    let remote: { address: number; rkey: number };
    const local = (length = BYTES) => ({ va: memory.va, length });
    const join = async (): Promise<void> => {
      ({ pair, session } = await joinPeer(side, { host: far.ipv4, port: peer.port }, true));
    };
    const leave = (): void => {
      pair.close();
      session.close();
    };

    before(async () => {
      side = await near(own.device);
      peer = await startFarPeer('external', far, 'cm');
      memory = side.eal.external.allocate(BYTES);
      side.device.dmaMap(memory);
      await join();
      remote = session.hello.memory[0] ?? assert.fail();
    });
    after(async () => {
      leave();
      await peer[Symbol.asyncDispose]();
      side.device.dmaUnmap(memory);
      memory.unregister();
      await side.eal.stop();
    });

    it('writes, reads and sends', async () => {
      fill(memory.bytes(), 1);
      await pair.write({ local: local(), remote });
      // A write is done when it was sent; what comes after it finds it done.
      await pair.read({ local: local(64), remote });
      assert.equal(await session.ask('check', 1), -1);
      await session.ask('fill', 2);
      await pair.read({ local: local(), remote });
      assert.equal(wrongAt(memory.bytes(), 2), -1);
      fill(memory.bytes(), 3);
      // On iWARP nobody waits until a receive is posted.
      await session.ask('post', null);
      await pair.send({ local: local() });
      assert.equal(await session.ask('received', null), BYTES);
      assert.equal(await session.ask('check', 3), -1);
    });

    it('does many at once', async () => {
      await Promise.all(
        Array.from({ length: 200 }, (_, n) => {
          const at = (n % 64) * KiB;
          const part = { va: memory.va + at, length: KiB };
          return pair.write({ local: part, remote: { ...remote, address: remote.address + at } });
        }),
      );
      await pair.read({ local: local(64), remote });
      assert.equal(await session.ask('check', 3), -1);
    });

    it('is refused after the peer took the right back', async () => {
      await session.ask('close', null);
      // rxe answers that the key gives no right. With siw the peer ends the connection, and what was posted is flushed.
      await assert.rejects(
        pair.read({ local: local(64), remote }),
        name === 'Soft-RoCE' ? dmaError('EACCES', /REM_ACCESS_ERR/) : dmaError('ECANCELED', /WR_FLUSH_ERR/),
      );
      assert.notEqual(pair.failure, undefined);
      leave();
      await join();
      remote = { ...remote, rkey: Number(await session.ask('open', null)) };
      await pair.write({ local: local(64), remote });
    });

    it('hears that the peer left', async () => {
      await session.ask('leave', null);
      for (let i = 0; i < 500 && pair.failure === undefined; i++) await new Promise((next) => setTimeout(next, 10));
      assert.equal(pair.failure?.code, 'ECONNRESET', pair.failure?.message);
      await assert.rejects(pair.write({ local: local(64), remote }), dmaError('ECANCELED', /the peer ended/));
      leave();
      await join();
    });

    it('is refused where nobody listens, and by who does not want it', async () => {
      using one = side.rdma.createQueuePair();
      await assert.rejects(
        side.rdma.connect(one, { host: far.ipv4, port: 9 }),
        dmaError('ECONNREFUSED', new RegExp(far.ipv4)),
      );
      await assert.rejects(side.rdma.connect(one, { host: far.ipv4, port: 9 }), dmaError('EINVAL', /was, connected/));
      const asked: string[] = [];
      using listener = side.rdma.listen({ host: own.ipv4 }, (request) => {
        asked.push(Buffer.from(request.data).toString().replaceAll('\0', ''));
        request.reject();
      });
      using two = side.rdma.createQueuePair();
      const to = { ...listener.address, data: Buffer.from('hello') };
      await assert.rejects(side.rdma.connect(two, to), dmaError('ECONNREFUSED', /the peer refused/));
      assert.deepEqual(asked, ['hello']);
    });

    it('says which device leads to an address', async () => {
      using one = side.rdma.createQueuePair();
      await assert.rejects(
        side.rdma.connect(one, { host: other.ipv4, port: 9 }),
        dmaError('ENODEV', new RegExp(`${other.device} leads there`)),
      );
      assert.throws(
        () => side.rdma.listen({ host: other.ipv4 }, () => undefined),
        dmaError('ENODEV', new RegExp(`address of ${other.device}`)),
      );
    });

    it('is connected by numbers only where that works', () => {
      using one = side.rdma.createQueuePair();
      if (name === 'iWARP') assert.throws(() => one.connect(one.address), dmaError('ENOTSUP', /connection manager/));
      else one.connect(one.address);
    });
  });

it('connects to itself', async () => {
  const { eal, device, rdma } = await near(SIW_NEAR.device);
  const memory = eal.external.allocate(8 * KiB);
  const { rkey } = device.dmaMap(memory, { remote: 'read-write' });
  using a = rdma.createQueuePair();
  using b = rdma.createQueuePair();
  let data = '';
  using listener = rdma.listen({ host: SIW_NEAR.ipv4 }, async (request) => {
    data = Buffer.from(request.data).toString();
    await request.accept(b, { data: Buffer.from('welcome') });
  });
  const connection = await rdma.connect(a, { ...listener.address, data: Buffer.from('hello') });
  assert.deepEqual([data, Buffer.from(connection.data).toString()], ['hello', 'welcome']);
  fill(memory.bytes(0, 4 * KiB), 5);
  await a.write({
    local: { va: memory.va, length: 4 * KiB },
    remote: { address: memory.va + 4 * KiB, rkey: rkey ?? assert.fail() },
  });
  await a.read({ local: { va: memory.va, length: 64 }, remote: { address: memory.va, rkey: rkey ?? assert.fail() } });
  assert.equal(wrongAt(memory.bytes(4 * KiB, 4 * KiB), 5), -1);
  connection.close();
  assert.equal((await connection.ended).code, 'ECANCELED');
  a.close();
  b.close();
  listener.close();
  device.dmaUnmap(memory);
  memory.unregister();
  await eal.stop();
});
