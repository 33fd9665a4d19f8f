/** Connections by the connection manager, on an emulated fabric; the real one is tested in a guest. */
import { describe, it } from 'node:test';
import assert from 'node:assert/strict';
import { dmaError } from '../../test/shared/errors.js';
import { verbsDriver } from '../drivers/verbs-driver.js';
import { Eal } from '../eal.js';
import { openPlatform } from '../platform/open.js';
import { trackingPlatform, type TrackingPlatform } from '../../test/fakes/platform/platforms.js';
import type { Va } from '../units.js';
import type { RdmaDevice } from './device.js';
import { connectToPeer, listenForPeers } from './exchange.js';
import { Fabric, type FakeDeviceOptions } from '../../test/fakes/rdma/fabric.js';

const PAGE = 4096;

interface Side {
  readonly platform: TrackingPlatform;
  readonly rdma: RdmaDevice;
  readonly va: Va;
  readonly rkey: number;
  bytes(): Uint8Array;
  stop(): Promise<void>;
}

async function side(fabric: Fabric, ...devices: FakeDeviceOptions[]): Promise<Side> {
  const platform = trackingPlatform(fabric.host(openPlatform(), devices));
  const eal = await Eal.start({ platform, onForgotten: () => undefined });
  const device = await eal.probe(`rdma:${devices[0]?.name ?? ''}`);
  const memory = eal.external.allocate(2 * PAGE);
  const mapping = device.dmaMap(memory, { remote: 'read-write' });
  return {
    platform,
    rdma: device.use(verbsDriver),
    va: memory.va,
    rkey: mapping.rkey ?? assert.fail(),
    bytes: () => memory.bytes(),
    stop: () => eal.stop(),
  };
}

for (const transport of ['iwarp', 'ib'] as const)
  describe(`connections of ${transport}`, () => {
    const two = async (): Promise<{ a: Side; b: Side; stop: () => Promise<void> }> => {
      const fabric = new Fabric();
      const a = await side(fabric, { name: 'dev0', ipv4: '10.0.0.1', transport }, { name: 'dev1', ipv4: '10.9.9.1' });
      const b = await side(fabric, { name: 'dev0', ipv4: '10.0.0.2', transport });
      return {
        a,
        b,
        async stop() {
          await a.stop();
          await b.stop();
          for (const { platform } of [a, b])
            assert.deepEqual(
              platform.leaks().filter((line) => line.includes('rdma')),
              [],
            );
        },
      };
    };

    it('carry data both ways, and end with a word', async () => {
      const { a, b, stop } = await two();
      const one = a.rdma.createQueuePair();
      const other = b.rdma.createQueuePair();
      let heard = '';
      const listener = b.rdma.listen({ host: '10.0.0.2' }, async (request) => {
        heard = Buffer.from(request.data).toString();
        assert.equal(request.peer?.host, '10.0.0.1');
        await request.accept(other, { data: Buffer.from('welcome') });
      });
      const connection = await a.rdma.connect(one, { ...listener.address, data: Buffer.from('hello') });
      listener.close();
      assert.deepEqual([heard, Buffer.from(connection.data).toString()], ['hello', 'welcome']);
      a.bytes().fill(7);
      await one.write({ local: { va: a.va, length: PAGE }, remote: { address: b.va, rkey: b.rkey } });
      assert.ok(
        b
          .bytes()
          .subarray(0, PAGE)
          .every((byte) => byte === 7),
      );
      other.close();
      assert.equal((await connection.ended).code, 'ECONNRESET');
      const request = { local: { va: a.va, length: PAGE }, remote: { address: b.va, rkey: b.rkey } };
      await assert.rejects(one.write(request), dmaError('ECANCELED', /the peer ended/));
      await assert.rejects(a.rdma.connect(one, { host: '10.0.0.2', port: 1 }), dmaError('EINVAL', /was, connected/));
      await stop();
    });

    it('are refused where nobody listens, by who does not want them, and by who forgets to answer', async () => {
      const { a, b, stop } = await two();
      const port = 4711;
      const refused = async (says: RegExp): Promise<void> => {
        using pair = a.rdma.createQueuePair();
        await assert.rejects(a.rdma.connect(pair, { host: '10.0.0.2', port }), dmaError('ECONNREFUSED', says));
        assert.equal(pair.failure?.code, 'ECONNREFUSED');
      };
      await refused(/nobody listens/);
      for (const serve of [
        (request: { reject(): void }) => request.reject(),
        () => undefined,
        () => Promise.reject(new Error('no')),
      ]) {
        using _ = b.rdma.listen({ host: '10.0.0.2', port }, serve);
        await refused(/the peer refused/);
      }
      await stop();
    });

    it('are not made over other devices, or of queue pairs that can not be', async () => {
      const { a, b, stop } = await two();
      using pair = a.rdma.createQueuePair();
      const elsewhere = { host: '10.9.9.9', port: 1 };
      await assert.rejects(a.rdma.connect(pair, elsewhere), dmaError('ENODEV', /dev1 leads there/));
      assert.throws(() => a.rdma.listen({ host: '10.9.9.1' }, () => undefined), dmaError('ENODEV', /address of dev1/));
      assert.throws(() => a.rdma.listen({ host: '10.7.7.7' }, () => undefined), dmaError('ENODEV'));
      using datagrams = a.rdma.createQueuePair({ type: 'ud' });
      await assert.rejects(a.rdma.connect(datagrams, elsewhere), dmaError('EINVAL', /reliable/));
      using foreign = b.rdma.createQueuePair();
      await assert.rejects(a.rdma.connect(foreign, elsewhere), dmaError('EINVAL', /another device/));
      await stop();
    });

    it('give up when nobody answers in time', async () => {
      const { a, b, stop } = await two();
      using pair = a.rdma.createQueuePair();
      using listener = b.rdma.listen({ host: '10.0.0.2' }, () => new Promise(() => undefined));
      const slow = a.rdma.connect(pair, { ...listener.address, timeoutMs: 20 });
      await assert.rejects(slow, dmaError('ETIMEDOUT', /20 ms/));
      await stop();
    });
  });

it('sessions connect iWARP queue pairs by the connection manager', async () => {
  // Sessions are real TCP, on the loopback interface.
  const fabric = new Fabric();
  const a = await side(fabric, { name: 'dev0', ipv4: '127.0.0.1', transport: 'iwarp' });
  const b = await side(fabric, { name: 'dev0', ipv4: '127.0.0.1', transport: 'iwarp' });
  const server = await listenForPeers({ host: '127.0.0.1' }, async (session) => {
    const pairs = [b.rdma.createQueuePair(), b.rdma.createQueuePair()];
    session.greet({
      pairs: pairs.map(({ address }) => address),
      memory: [{ address: b.va, length: PAGE, rkey: b.rkey }],
    });
    await Promise.all(pairs.map((pair, i) => session.join(pair, session.hello.pairs[i])));
    await session.ended;
    for (const pair of pairs) pair.close();
  });
  const pairs = [a.rdma.createQueuePair(), a.rdma.createQueuePair()];
  const hello = { pairs: pairs.map(({ address }) => address), memory: [] };
  const session = await connectToPeer({ host: '127.0.0.1', port: server.port, hello });
  await Promise.all(pairs.map((pair, i) => session.join(pair, session.hello.pairs[i])));
  for (const [i, pair] of pairs.entries()) {
    a.bytes().fill(i + 1);
    await pair.write({ local: { va: a.va, length: PAGE }, remote: session.hello.memory[0] ?? assert.fail() });
    assert.equal(b.bytes()[PAGE - 1], i + 1);
  }
  session.close();
  for (const pair of pairs) pair.close();
  await server.close();
  await a.stop();
  await b.stop();
});
