import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { dmaError } from '../test/shared/errors.js';
import type { Device } from './bus/model.js';
import { FakeMachine } from '../test/fakes/bus/pci-machine.js';
import { verbsDriver } from './drivers/verbs-driver.js';
import { Eal, type EalOptions } from './eal.js';
import { DmaError } from './errors.js';
import type { ExternalMemory } from './memory/external.js';
import { openPlatform } from './platform/open.js';
import { failingPlatform, trackingPlatform } from '../test/fakes/platform/platforms.js';
import type { RdmaDevice } from './rdma/device.js';
import { connectToPeer, listenForPeers } from './rdma/exchange.js';
import type { QueuePair } from './rdma/queue-pair.js';
import type { QueuePairOptions } from './rdma/queue-pair-options.js';
import { ReceiveRing } from './rdma/receive-ring.js';
import { Fabric, type FakeDeviceOptions, type FakeRdmaPlatform } from '../test/fakes/rdma/fabric.js';
import { IBV_QPS_ERR } from './platform/rdma/abi/queues.js';
import { IBV_SEND_SIGNALED, IBV_WC_RECV, IBV_WC_SUCCESS } from './platform/rdma/abi/requests.js';
import { KiB, type Va } from './units.js';

const PAGE = 4 * KiB;
/** What the rdma bus finds. */
async function rdmaNames(eal: Eal): Promise<string[]> {
  return (await eal.scan()).filter((name) => name.startsWith('rdma:'));
}

const turn = (): Promise<void> => new Promise(setImmediate);

/** One side: an Eal with the device rxe0 of a fabric. */
interface Side {
  readonly eal: Eal;
  readonly platform: FakeRdmaPlatform;
  readonly device: Device;
  readonly rdma: RdmaDevice;
  stop(): Promise<void>;
}

async function side(
  fabric = new Fabric(),
  { ipv4 = '10.0.0.1', ...more }: Partial<FakeDeviceOptions> & Pick<EalOptions, 'buses'> = {},
): Promise<Side> {
  const platform = fabric.host(openPlatform(), [{ name: 'rxe0', ipv4, ...more }]);
  const eal = await Eal.start({ platform, onForgotten: () => undefined, holdBackMs: 0 });
  const device = await eal.probe('rdma:rxe0');
  return {
    eal,
    platform,
    device,
    rdma: device.use(verbsDriver),
    async stop() {
      await eal.stop();
      assert.deepEqual(platform.verbsLeaks(), []);
    },
  };
}

function connect(a: RdmaDevice, b: RdmaDevice, options: QueuePairOptions = {}): [QueuePair, QueuePair] {
  const [x, y] = [a.createQueuePair(options), b.createQueuePair(options)];
  x.connect(y.address);
  y.connect(x.address);
  return [x, y];
}

/** Two hosts, connected; each with memory that the other may do anything with. */
async function two(options: QueuePairOptions = {}): Promise<{
  a: Side;
  b: Side;
  pair: [QueuePair, QueuePair];
  here: ExternalMemory;
  there: ExternalMemory;
  remote: (offset: number) => { address: number; rkey: number };
  stop: () => Promise<void>;
}> {
  const fabric = new Fabric();
  const a = await side(fabric);
  const b = await side(fabric, { ipv4: '10.0.0.2' });
  const here = a.eal.external.allocate(16 * PAGE);
  const there = b.eal.external.allocate(16 * PAGE);
  a.device.dmaMap(here);
  const mapping = b.device.dmaMap(there, { remote: 'read-write' });
  const rkey = mapping.rkey ?? assert.fail();
  return {
    a,
    b,
    here,
    there,
    pair: connect(a.rdma, b.rdma, options),
    remote: (offset) => ({ address: there.va + offset, rkey }),
    async stop() {
      await a.stop();
      await b.stop();
    },
  };
}

describe('an RDMA device', () => {
  it('is found, probed, and tells what it is', async () => {
    const one = await side();
    assert.deepEqual(await rdmaNames(one.eal), ['rdma:rxe0']);
    assert.equal(one.device.driver, verbsDriver);
    assert.equal(one.device.domain?.kind, 'verbs');
    assert.equal(one.rdma.name, 'rxe0');
    assert.equal(one.rdma.ports()[0]?.state, 'active');
    assert.deepEqual(
      one.rdma.gids().map(({ ipv4 }) => ipv4),
      [undefined, '10.0.0.1'],
    );
    assert.throws(() => one.device.access, dmaError('ENOTSUP'));
    await assert.rejects(one.eal.probe('rdma:rxe1'), dmaError('ENODEV', /rxe0/));
    await one.stop();
  });

  it('says what to install, or do, where there is none', async () => {
    const platform = openPlatform();
    const limited = { ...platform, verbs: { ...platform.verbs, limitation: 'libibverbs is missing: install it' } };
    const eal = await Eal.start({ platform: limited });
    assert.deepEqual(await rdmaNames(eal), []);
    await assert.rejects(eal.probe('rdma:rxe0'), dmaError('ENOTSUP', /install it/));
    const none = await Eal.start({ platform: new Fabric().host(platform, []) });
    await assert.rejects(none.probe('rdma:rxe0'), dmaError('ENODEV', /rdma link add/));
    await eal.stop();
    await none.stop();
  });

  it('DM-60: maps one region for one range, and shares it when it is mapped again', async () => {
    const one = await side();
    const memory = one.eal.external.allocate(4 * PAGE);
    const mapping = one.device.dmaMap(memory);
    assert.equal(mapping.iova, Number(memory.va));
    assert.equal(typeof mapping.lkey, 'number');
    assert.throws(() => one.device.dmaMap(memory, { iova: 0x1000 }), dmaError('EINVAL', /no effect/));
    const again = one.device.dmaMap(memory);
    assert.equal(again.lkey, mapping.lkey);
    assert.equal(one.device.domain?.entries, 1);
    mapping.unmap();
    assert.equal(one.device.domain.table.keyOf(memory.va), again.lkey);
    again.unmap();
    await one.stop();
  });

  it('DM-61: unmaps exactly what was mapped, once, and the generation tells', async () => {
    const one = await side();
    const memory = one.eal.external.allocate(4 * PAGE);
    one.device.dmaMap(memory);
    const before = one.device.domain?.table.generation ?? 0;
    const inner = { va: (memory.va + PAGE) as Va, length: PAGE };
    assert.throws(() => one.device.dmaUnmap(inner), dmaError('ENOTSUP', /part/));
    one.device.dmaUnmap({ va: memory.va, length: memory.length });
    assert.equal(one.device.domain?.table.generation, before + 1);
    assert.throws(() => one.device.dmaUnmap({ va: memory.va, length: memory.length }), dmaError('EINVAL'));
    await one.stop();
  });

  it('DM-62: says with figures what the device has no more of', async () => {
    const one = await side(new Fabric(), { maxMrs: 2 });
    const memory = one.eal.external.allocate(4 * PAGE);
    const page = (n: number): { va: Va; length: number } => ({ va: (memory.va + n * PAGE) as Va, length: PAGE });
    one.device.dmaMap(page(0));
    // What others take of the device's regions, the library can not count.
    const other = one.rdma.expose(page(0), 'read');
    assert.throws(
      () => one.device.dmaMap(page(1)),
      dmaError('ENOMEM', /4 KiB are pinned.*1 of the device's 2 memory regions/),
    );
    other.unregister();
    one.device.dmaMap(page(1));
    assert.throws(() => one.device.dmaMap(page(2)), dmaError('ENOSPC', /takes 2 mappings/));
    assert.equal(one.device.domain?.entries, 2);
    await one.stop();
  });

  it('DM-63: two devices map each for itself; two names of one device share', async () => {
    const kernel = new FakeMachine({
      functions: [
        { address: '0000:03:00.0', interfaces: ['eth0'] },
        { address: '0000:04:00.0', files: { 'infiniband/rxe1/node_desc': '' } },
      ],
      files: { '/sys/class/infiniband/rxe0/parent': 'eth0\n' },
    });
    const platform = new Fabric().host({ ...openPlatform(), kernel }, [
      { name: 'rxe0', ipv4: '10.0.0.1' },
      { name: 'rxe1', ipv4: '10.0.0.2' },
    ]);
    const eal = await Eal.start({ platform, onForgotten: () => undefined });
    const first = await eal.probe('pci:0000:03:00.0');
    const second = await eal.probe('rdma:rxe0');
    const other = await eal.probe('pci:0000:04:00.0');
    assert.deepEqual([first.ids?.vendor, first.driver, other.domain?.name], [0x8086, verbsDriver, 'verbs:rxe1']);
    const memory = eal.external.allocate(PAGE);
    const mapping = first.dmaMap(memory, { remote: 'read' });
    assert.equal(first.domain, second.domain);
    assert.notEqual(first.domain, other.domain);
    assert.equal(other.domain?.iovaOf(memory.va), -1);
    const shared = second.dmaMap(memory, { remote: 'read' });
    assert.equal(shared.rkey, mapping.rkey);
    // One name goes; the device stays open for the other.
    await eal.remove(first);
    assert.equal(shared.live, true);
    const [x, y] = connect(second.use(verbsDriver), other.use(verbsDriver));
    assert.notEqual(x.number, y.number);
    await eal.stop();
    assert.deepEqual(platform.verbsLeaks(), []);
  });

  it('DM-64: a queue sees an unmap at its next look-up', async () => {
    const { a, here, pair, remote, stop } = await two();
    const [queue] = pair;
    const local = { va: here.va, length: 64 };
    await queue.write({ local, remote: remote(0) });
    const old = queue.keys.keyOf(here.va, 64);
    a.device.dmaUnmap(here);
    assert.equal(queue.keys.keyOf(here.va, 64), -1);
    await assert.rejects(queue.write({ local, remote: remote(0) }), dmaError('EFAULT', /was unmapped \d+ ms ago/));
    a.device.dmaMap(here);
    assert.notEqual(queue.keys.keyOf(here.va, 64), old);
    await queue.write({ local, remote: remote(0) });
    await stop();
  });

  it('says with figures what it has no more of, or never had', async () => {
    const one = await side(new Fabric(), {
      attributes: { maxMrLength: 2 * PAGE, maxQps: 2, maxCqs: 3, maxMws: 1, maxAhs: 1, maxRequests: 64, maxSges: 4 },
    });
    const memory = one.eal.external.allocate(4 * PAGE);
    const tooLong = dmaError('EINVAL', /16 KiB are more than the 8 KiB.*max_mr_size.*parts of at most 8 KiB/);
    assert.throws(() => one.device.dmaMap(memory), tooLong);
    await assert.rejects(one.device.dmaMapAsync(memory), tooLong);
    assert.throws(() => one.rdma.registerDmabuf({ fd: 0, length: 3 * PAGE }), dmaError('EINVAL', /12 KiB.*8 KiB/));
    one.device.dmaMap({ va: memory.va, length: 2 * PAGE });

    const { rdma } = one;
    assert.throws(() => rdma.createQueuePair({ sends: 65 }), dmaError('EINVAL', /sends is 65.*0 to 64.*max_qp_wr/));
    assert.throws(() => rdma.createQueuePair({ receives: 65 }), dmaError('EINVAL', /receives is 65.*max_qp_wr/));
    assert.throws(() => rdma.createQueuePair({ sendSges: 5 }), dmaError('EINVAL', /sendSges is 5.*1 to 4.*max_sge/));
    assert.throws(() => rdma.createQueuePair({ receiveSges: 5 }), dmaError('EINVAL', /receiveSges is 5.*max_sge/));
    assert.throws(() => rdma.createCompletionQueue({ entries: 40_000 }), dmaError('EINVAL', /32767.*max_cqe/));
    const few = { sends: 8, receives: 8 };
    const pairs = [rdma.createQueuePair(few), rdma.createQueuePair(few)];
    using _ = rdma.createCompletionQueue();
    assert.throws(() => rdma.createCompletionQueue(), dmaError('ENOSPC', /3 completion queues \(max_cq\)/));
    const completions = pairs[0]?.completions;
    assert.throws(() => rdma.createQueuePair({ ...few, completions }), dmaError('ENOSPC', /room for.*16/));
    pairs[1]?.close();
    using shared = rdma.createCompletionQueue();
    using _third = rdma.createQueuePair({ ...few, completions: shared });
    const fourth = (): QueuePair => rdma.createQueuePair({ ...few, completions: shared });
    assert.throws(fourth, dmaError('ENOSPC', /2 queue pairs \(max_qp\), and all are in use here/));
    // What was refused has not taken room.
    assert.equal(shared.room, 256 - 16);
    using _window = rdma.createWindow();
    assert.throws(() => rdma.createWindow(), dmaError('ENOSPC', /1 memory windows \(max_mw\)/));
    const address = pairs[0]?.address ?? assert.fail();
    using _address = rdma.createAddress(address);
    assert.throws(() => rdma.createAddress(address), dmaError('ENOSPC', /1 address handles \(max_ah\)/));
    await one.stop();
  });

  it('is reached at an address that leads somewhere', async () => {
    const linkLocal = '0000:0000:0000:0000:0000:ffff:a9fe:0304';
    const one = await side(new Fabric(), {
      ipv4: '10.1.2.3',
      gids: [linkLocal, 'febf:0000:0000:0000:0000:0000:0000:0001'],
    });
    using pair = one.rdma.createQueuePair();
    assert.equal(pair.address.gid, '0000:0000:0000:0000:0000:ffff:0a01:0203');
    const nobody = { ...pair.address, gid: 'ff02:0000:0000:0000:0000:0000:0000:0001' };
    assert.throws(() => pair.connect(nobody), dmaError('EINVAL', /not a unicast address/));
    assert.throws(() => one.rdma.createAddress(nobody), dmaError('EINVAL', /not a unicast address/));
    await one.stop();
  });

  it('gives peers rights only when asked to, and only such as can be', async () => {
    const one = await side();
    const memory = one.eal.external.allocate(2 * PAGE);
    const reads = { access: 'read', remote: 'write' } as const;
    assert.throws(() => one.device.dmaMap(memory, reads), dmaError('EINVAL', /peers can not get write access/));
    assert.throws(
      () => one.device.dmaMap(memory, { remote: 'all' as 'read' }),
      dmaError('EINVAL', /no remote access "all"/),
    );
    assert.throws(() => one.device.dmaMap(memory, { paging: 'on-demand' }), dmaError('ENOTSUP', /page on demand/));
    const mapping = one.device.dmaMap(memory, { access: 'read', remote: 'read' });
    assert.deepEqual(mapping.region, { remote: 'read', paging: 'pinned' });
    assert.throws(() => one.device.dmaMap(memory, { access: 'read' }), dmaError('EEXIST', /none access for peers/));
    one.device.dmaMap(memory, { access: 'read', remote: 'read' });
    const vdev = await one.eal.probe('vdev:edu0');
    assert.throws(() => vdev.dmaMap(memory, { remote: 'read' }), dmaError('ENOTSUP', /no peers/));
    await one.stop();
  });

  it('keeps a mapping in one piece, also when it is made without blocking', async () => {
    const one = await side();
    const memory = one.eal.external.allocate(8 * PAGE);
    const mapping = await one.device.dmaMapAsync(memory, { chunkBytes: PAGE });
    assert.equal(mapping.entries.length, 1);
    await mapping.unmapAsync();
    await one.stop();
  });

  it('pages on demand where the device can', async () => {
    const one = await side(new Fabric(), { onDemand: true });
    const memory = one.eal.external.allocate(4 * PAGE);
    one.device.dmaMap(memory, { paging: 'on-demand' });
    one.rdma.prefetch(memory);
    assert.throws(() => one.device.dmaMap(memory), dmaError('EEXIST', /asked for pinned, but is.*on-demand/));
    using all = one.rdma.registerEverything();
    assert.equal(typeof all.lkey, 'number');
    one.device.dmaUnmap(memory);
    assert.throws(() => one.rdma.prefetch(memory), dmaError('EINVAL', /not mapped/));
    await one.stop();
    const plain = await side();
    assert.throws(() => plain.rdma.registerEverything(), dmaError('ENOTSUP'));
    await plain.stop();
  });

  it('that fails for good is lost, with its mappings and all that waits for it', async () => {
    const { a, b, pair, here } = await two();
    const lost: string[] = [];
    a.eal.events.on('lost', (device, error) => lost.push(`${device.name} ${error.code}`));
    const waiting = pair[0].receive({ va: here.va, length: PAGE });
    a.platform.unplug('rxe0');
    await assert.rejects(waiting, dmaError('ENODEV', /removed/));
    await turn();
    await turn();
    assert.deepEqual(lost, ['rdma:rxe0 ENODEV']);
    assert.deepEqual([...here.area.holders], []);
    assert.deepEqual(a.platform.verbsLeaks(), []);
    await a.stop();
    await b.stop();
  });

  it('tells of ports that go down and queue pairs that fail', async () => {
    const { a, b, pair, here, stop } = await two();
    const failed: string[] = [];
    for (const { eal } of [a, b])
      eal.events.on('failed', (device, error) => failed.push(`${device.name}: ${error.reason}`));
    a.platform.portEvent('rxe0', 'PORT_ERR');
    a.platform.portEvent('rxe0', 'PORT_ACTIVE');
    await turn();
    assert.deepEqual(failed, ['rdma:rxe0: the device reported PORT_ERR on port 1']);
    const bad = { local: { va: here.va, length: 8 }, remote: { address: 4096, rkey: 1 } };
    await assert.rejects(pair[0].write(bad), dmaError('EACCES', /REM_ACCESS_ERR/));
    await turn();
    assert.match(failed[1] ?? '', /QP_ACCESS_ERR on queue pair/);
    assert.equal(pair[1].failure?.code, 'EACCES');
    await stop();
  });

  it('leaves nothing behind whichever call fails', async () => {
    for (let n = 1; ; n++) {
      const fabric = new Fabric();
      const fake = fabric.host(trackingPlatform(openPlatform()), [{ name: 'rxe0', ipv4: '10.0.0.1' }]);
      const platform = failingPlatform(fake);
      const eal = await Eal.start({ platform, onForgotten: () => undefined });
      platform.failCall(n, 'EIO');
      let failed = false;
      try {
        const device = await eal.probe('rdma:rxe0');
        const rdma = device.use(verbsDriver);
        const memory = eal.external.allocate(2 * PAGE);
        const mapping = device.dmaMap(memory, { remote: 'read-write' });
        const [x, y] = connect(rdma, rdma);
        using window = rdma.createWindow();
        const rkey = await x.bind(window, { va: memory.va, length: 64 }, 'write');
        await x.write({ local: { va: memory.va + 64, length: 64 }, remote: { address: memory.va, rkey } });
        const message = y.receive({ va: memory.va + PAGE, length: 64 });
        // A send without a receive waits for ever, so that both are waited for at once.
        await Promise.all([message, x.send({ local: { va: memory.va, length: 64 } })]);
        await x.unbind(window);
        for (const each of [x, y]) each.close();
        mapping.unmap();
        memory.unregister();
      } catch (error) {
        failed = true;
        assert.ok(error instanceof DmaError, String(error));
      }
      await eal.stop();
      assert.deepEqual(fake.verbsLeaks(), [], `call ${n}, ${String(platform.failed())}`);
      if (platform.failed() === undefined) {
        assert.equal(failed, false);
        assert.ok(n > 30, `only ${n} calls`);
        return;
      }
    }
  });
});

describe('queue pairs', () => {
  it('write, read and send what they are told to', async () => {
    const { here, there, pair, remote, stop } = await two();
    const [a, b] = pair;
    here.bytes().forEach((_, index, all) => (all[index] = index % 251));
    await a.write({ local: { va: here.va, length: 5000 }, remote: remote(8) });
    assert.deepEqual(there.bytes(8, 5000), here.bytes(0, 5000));
    await a.read({ local: { va: here.va + 8 * PAGE, length: 100 }, remote: remote(8) });
    assert.deepEqual(here.bytes(8 * PAGE, 100), here.bytes(0, 100));
    const message = b.receive({ va: there.va + 8 * PAGE, length: PAGE });
    await a.send({ local: { va: here.va, length: 33 }, immediate: 0xdeadbeef });
    assert.deepEqual(await message, {
      va: there.va + 8 * PAGE,
      offset: 0,
      length: 33,
      immediate: 0xdeadbeef,
      invalidated: undefined,
      sourceQp: undefined,
    });
    assert.deepEqual(there.bytes(8 * PAGE, 33), here.bytes(0, 33));
    const noted = b.receive({ va: there.va, length: PAGE });
    await a.write({ local: { va: here.va, length: 7 }, remote: remote(0), immediate: 1 });
    assert.equal((await noted).immediate, 1);
    const empty = b.receive({ va: there.va, length: 0 });
    await a.send({ local: { va: here.va, length: 0 } });
    assert.equal((await empty).length, 0);
    await stop();
  });

  it('do atomics', async () => {
    const { here, there, pair, remote, stop } = await two();
    const [a] = pair;
    const words = new BigUint64Array(there.bytes().buffer, there.bytes().byteOffset, 2);
    const old = (): bigint => new BigUint64Array(here.bytes().buffer, here.bytes().byteOffset, 1)[0];
    words[1] = 2n ** 63n;
    await a.fetchAndAdd({ local: { va: here.va }, remote: remote(8), add: 5 });
    assert.deepEqual([words[1], old()], [2n ** 63n + 5n, 2n ** 63n]);
    await a.compareAndSwap({ local: { va: here.va }, remote: remote(8), compare: 2n ** 63n + 5n, exchange: 7 });
    assert.deepEqual([words[1], old()], [7n, 2n ** 63n + 5n]);
    await a.compareAndSwap({ local: { va: here.va }, remote: remote(8), compare: 8, exchange: 9 });
    assert.deepEqual([words[1], old()], [7n, 7n]);
    await a.fetchAndAdd({ local: { va: here.va }, remote: remote(8), add: -8 });
    assert.equal(words[1], 2n ** 64n - 1n);
    await assert.rejects(
      a.fetchAndAdd({ local: { va: here.va }, remote: remote(4), add: 1 }),
      dmaError('EINVAL', /multiple of 8/),
    );
    await stop();
  });

  it('are refused where their completions have no room', async () => {
    const one = await side();
    const { rdma } = one;
    const queue = rdma.createCompletionQueue({ entries: 16 });
    const refused = (options: QueuePairOptions, says: RegExp): void =>
      assert.throws(() => rdma.createQueuePair({ completions: queue, ...options }), dmaError('ENOSPC', says));
    refused({}, /holds 16 completions, 0 of which.*256 sends and receives.*256 entries/);
    refused({ sends: 9, receives: 8 }, /17 sends and receives/);
    using receiveCompletions = rdma.createCompletionQueue({ entries: 4 });
    refused({ sends: 8, receives: 5, receiveCompletions }, /holds 4 completions.*room for a queue pair of 5/);
    refused({ sends: 17, receives: 4, receiveCompletions }, /holds 16 completions/);
    assert.deepEqual([queue.room, receiveCompletions.room], [16, 4]);
    const first = rdma.createQueuePair({ completions: queue, sends: 8, receives: 4, receiveCompletions });
    const second = rdma.createQueuePair({ completions: queue, sends: 4, receives: 4 });
    assert.deepEqual([queue.room, receiveCompletions.room], [0, 0]);
    refused({ sends: 1, receives: 0 }, /holds 16 completions, 16 of which are for other queue pairs.*17 entries/);
    first.close();
    first.close();
    assert.deepEqual([queue.room, receiveCompletions.room], [8, 4]);
    using _third = rdma.createQueuePair({ completions: queue, sends: 4, receives: 4 });
    second.close();
    await one.stop();
  });

  it('settle all that waits when their completion queue stops, and say why they are of no use', async () => {
    const fabric = new Fabric();
    const a = await side(fabric, { cqHolds: 4 });
    const b = await side(fabric, { ipv4: '10.0.0.2' });
    const here = a.eal.external.allocate(PAGE);
    const there = b.eal.external.allocate(PAGE);
    a.device.dmaMap(here);
    const rkey = b.device.dmaMap(there, { remote: 'write' }).rkey ?? assert.fail();
    using receiveCompletions = a.rdma.createCompletionQueue();
    const x = a.rdma.createQueuePair({ receiveCompletions });
    const y = b.rdma.createQueuePair();
    x.connect(y.address);
    y.connect(x.address);
    const codes: string[] = [];
    const failed = (error: unknown): void => void codes.push(error instanceof DmaError ? error.code : String(error));
    // One that waits in another queue, and more than there is room for in its own.
    x.receive({ va: here.va, length: 8 }).catch(failed);
    const write = (): Promise<void> =>
      x.write({ local: { va: here.va, length: 8 }, remote: { address: there.va, rkey } });
    for (let i = 0; i < 200; i++) write().catch(failed);
    for (let i = 0; i < 50; i++) await turn();
    assert.ok(codes.length > 190, `${codes.length} have failed`);
    assert.deepEqual([...new Set(codes)].sort(), ['ECANCELED', 'EIO']);
    assert.match(x.failure?.message ?? '', /CQ_ERR.*more completions came than the 256.*more entries/);
    assert.equal(x.completions.failure?.code, 'EIO');
    await assert.rejects(write(), dmaError('ECANCELED', /CQ_ERR/));
    assert.throws(() => x.post(x.sendRequests(1)), dmaError('ECANCELED', /CQ_ERR/));
    assert.throws(() => x.completions.poll(), dmaError('EIO', /CQ_ERR/));
    x.close();
    await a.stop();
    await b.stop();
  });

  it('take more requests than they hold, in the order they were made', async () => {
    const { here, there, pair, remote, stop } = await two({ sends: 4, receives: 4 });
    const [a, b] = pair;
    const order: number[] = [];
    const messages = Array.from({ length: 20 }, (_, n) =>
      b.receive({ va: there.va + n * 8, length: 8 }).then(({ immediate }) => order.push(immediate ?? -1)),
    );
    await Promise.all(
      Array.from({ length: 20 }, (_, n) => a.send({ local: { va: here.va, length: 8 }, immediate: n })),
    );
    await Promise.all(messages);
    assert.deepEqual(
      order,
      Array.from({ length: 20 }, (_, n) => n),
    );
    await Promise.all(
      Array.from({ length: 100 }, () => a.write({ local: { va: here.va, length: 8 }, remote: remote(0) })),
    );
    await stop();
  });

  it('wait for a receive of the peer', async () => {
    const { here, there, pair, stop } = await two();
    const [a, b] = pair;
    let sent = false;
    const sending = a.send({ local: { va: here.va, length: 8 } }).then(() => (sent = true));
    await turn();
    await turn();
    assert.equal(sent, false);
    await b.receive({ va: there.va, length: 8 });
    await sending;
    await stop();
  });

  it('keep receives posted', async () => {
    const { here, there, pair, stop } = await two();
    const [a, b] = pair;
    assert.throws(() => new ReceiveRing(b, { va: there.va, size: 64, count: 1000 }), dmaError('EINVAL'));
    const ring = new ReceiveRing(b, { va: there.va, size: 64, count: 2 });
    const bytes: number[] = [];
    const receiving = (async () => {
      for await (const { va, length } of ring) {
        bytes.push(there.bytes(va - there.va, length)[0]);
        if (bytes.length === 10) return;
      }
    })();
    for (let n = 0; n < 10; n++) {
      here.bytes()[0] = n;
      await a.send({ local: { va: here.va, length: 1 } });
    }
    await receiving;
    assert.deepEqual(
      bytes,
      Array.from({ length: 10 }, (_, n) => n),
    );
    const held = [ring.next(), ring.next()];
    for (let n = 0; n < 2; n++) await a.send({ local: { va: here.va, length: 1 } });
    const [first] = await Promise.all(held);
    await assert.rejects(ring.next(), dmaError('EINVAL', /release/));
    first?.release();
    first?.release();
    const last = ring.next();
    b.close();
    await assert.rejects(last, dmaError('ECANCELED'));
    await stop();
  });

  it('send datagrams', async () => {
    const fabric = new Fabric();
    const [a, b] = [await side(fabric), await side(fabric, { ipv4: '10.0.0.2' })];
    const [x, y] = [a.rdma.createQueuePair({ type: 'ud' }), b.rdma.createQueuePair({ type: 'ud', qkey: 7 })];
    const [here, there] = [a.eal.external.allocate(PAGE), b.eal.external.allocate(PAGE)];
    a.device.dmaMap(here);
    b.device.dmaMap(there);
    here.bytes().fill(9);
    const address = a.rdma.createAddress(y.address);
    const to = { address, number: y.address.number, qkey: y.address.qkey };
    const message = y.receive({ va: there.va, length: PAGE });
    await x.send({ local: { va: here.va, length: 12 }, to });
    const { offset, length, sourceQp } = await message;
    assert.deepEqual([offset, length, sourceQp], [40, 12, x.number]);
    assert.deepEqual(there.bytes(offset, length), here.bytes(0, 12));
    await assert.rejects(x.send({ local: { va: here.va, length: 12 } }), dmaError('EINVAL', /destination/));
    assert.throws(() => x.connect(y.address), dmaError('EINVAL', /no connection/));
    address.close();
    await assert.rejects(x.send({ local: { va: here.va, length: 12 }, to }), dmaError('EINVAL'));
    await a.stop();
    await b.stop();
  });

  it('explain what local memory was used wrongly', async () => {
    const { a, here, pair, remote, stop } = await two();
    const [queue] = pair;
    const readOnly = a.eal.external.allocate(PAGE);
    a.device.dmaMap(readOnly, { access: 'read' });
    const past = queue.write({ local: { va: here.va + 15 * PAGE, length: 2 * PAGE }, remote: remote(0) });
    await assert.rejects(past, dmaError('EFAULT', /past the end/));
    const never = queue.write({ local: { va: 4096, length: 8 }, remote: remote(0) });
    await assert.rejects(never, dmaError('EFAULT', /never mapped/));
    // The queue pair still works: nothing reached the device.
    await queue.write({ local: { va: readOnly.va, length: 8 }, remote: remote(0) });
    const wrong = queue.read({ local: { va: readOnly.va, length: 8 }, remote: remote(0) });
    const behind = queue.write({ local: { va: here.va, length: 8 }, remote: remote(0) });
    await assert.rejects(wrong, dmaError('EACCES', /LOC_PROT_ERR.*may not be used for write/));
    await assert.rejects(behind, dmaError('ECANCELED', /has stopped/));
    await assert.rejects(queue.write({ local: { va: here.va, length: 8 }, remote: remote(0) }), dmaError('ECANCELED'));
    assert.equal(queue.failure?.code, 'EACCES');
    await stop();
  });

  it('say when the peer is gone, and give up what is under way when they are closed', async () => {
    const { here, pair, remote, stop } = await two();
    const [a, b] = pair;
    const waiting = a.receive({ va: here.va, length: 8 });
    b.close();
    await assert.rejects(
      a.write({ local: { va: here.va, length: 8 }, remote: remote(0) }),
      dmaError('ETIMEDOUT', /RETRY_EXC_ERR/),
    );
    await assert.rejects(waiting, dmaError('ECANCELED'));
    a.close();
    a.close();
    await assert.rejects(a.receive({ va: here.va, length: 8 }), dmaError('EINVAL', /closed/));
    assert.throws(() => a.status(), dmaError('EINVAL', /closed/));
    await stop();
  });

  it('can be halted and closed with receives posted', async () => {
    const { here, pair, stop } = await two();
    const [a] = pair;
    const flushed = a.receive({ va: here.va, length: 8 });
    a.halt();
    await assert.rejects(flushed, dmaError('ECANCELED'));
    const { here: memory, pair: others, stop: end } = await two();
    const closed = others[0].receive({ va: memory.va, length: 8 });
    others[0].close();
    await assert.rejects(closed, dmaError('ECANCELED', /closed/));
    await end();
    await stop();
  });

  it('are connected in turn where the way to a peer has to be looked for, and hold up nobody', async () => {
    const fabric = new Fabric();
    fabric.resolveMs = 50;
    const a = await side(fabric);
    const bad = a.rdma.createQueuePair();
    const nowhere = { ...bad.address, gid: bad.address.gid.replace('0a00', '0a63') };
    const server = await listenForPeers({ host: '127.0.0.1' }, async (session) => {
      using pair = a.rdma.createQueuePair({ sends: 1, receives: 1 });
      session.greet({ pairs: [pair.address], memory: [] });
      await session.join(pair);
      await session.ended;
    });
    const options = { host: '127.0.0.1', port: server.port };
    let failed = 0;
    const all = Array.from({ length: 8 }, async () => {
      const session = await connectToPeer({ ...options, hello: { pairs: [nowhere], memory: [] } });
      await session.ended;
      failed++;
    });
    while (fabric.looking === 0) await turn();
    const pair = a.rdma.createQueuePair();
    const session = await connectToPeer({ ...options, hello: { pairs: [pair.address], memory: [] } });
    await session.join(pair);
    assert.ok(failed < 8, 'the good one came last');
    await Promise.all(all);
    // Two: the good one does not wait for its turn.
    assert.ok(fabric.mostLooking <= 2, `${fabric.mostLooking} at once`);
    session.close();
    await session.ended;
    await server.close();
    await assert.rejects(a.rdma.createAddressAsync(nowhere), dmaError('ETIMEDOUT'));
    (await a.rdma.createAddressAsync(pair.address)).close();
    await a.stop();
  });

  it('that are closed, halted or lost while they are being connected go when that is over', async () => {
    const fabric = new Fabric();
    fabric.resolveMs = 20;
    const one = await side(fabric);
    const connecting = async (): Promise<[QueuePair, Promise<void>]> => {
      const pair = one.rdma.createQueuePair();
      const connected = pair.connectAsync({ ...pair.address, gid: pair.address.gid.replace('0a00', '0a63') });
      connected.catch(() => undefined);
      while (fabric.looking === 0) await turn();
      assert.throws(() => pair.connect(pair.address), dmaError('EBUSY', /being connected/));
      return [pair, connected];
    };
    const [closed, first] = await connecting();
    const waiting = closed.receive({ va: 0, length: 0 });
    const leaks = one.platform.verbsLeaks().length;
    closed.close();
    closed.close();
    assert.equal(closed.live, false);
    assert.equal(one.platform.verbsLeaks().length, leaks);
    await assert.rejects(first, dmaError('ETIMEDOUT'));
    await assert.rejects(waiting, dmaError('ECANCELED'));
    assert.ok(one.platform.verbsLeaks().length < leaks);

    const [halted, second] = await connecting();
    halted.halt();
    await assert.rejects(second, dmaError('ETIMEDOUT'));
    assert.equal(halted.status().state, IBV_QPS_ERR);

    const [, third] = await connecting();
    const late = one.rdma.createQueuePair();
    const abort = new AbortController();
    const gid = halted.address.gid.replace('0a00', '0a64');
    const fourth = late.connectAsync({ ...late.address, gid }, { signal: abort.signal });
    abort.abort(new Error('enough'));
    await assert.rejects(fourth, dmaError('ECANCELED', /cancelled: enough/));
    await assert.rejects(third, dmaError('ETIMEDOUT'));
    late.close();

    const [, fifth] = await connecting();
    const address = one.rdma.createAddressAsync({ gid, lid: 0 });
    address.catch(() => undefined);
    await one.stop();
    await assert.rejects(fifth, dmaError('ETIMEDOUT'));
    await assert.rejects(address, DmaError);
  });

  it('of iWARP devices are not connected by addresses', async () => {
    const one = await side(new Fabric(), { transport: 'iwarp' });
    const pair = one.rdma.createQueuePair();
    assert.throws(() => pair.connect(pair.address), dmaError('ENOTSUP', /connection manager/));
    one.device.dmaMap(one.eal.external.allocate(PAGE)).unmap();
    await one.stop();
  });

  it('check addresses that came from elsewhere', async () => {
    const { pair, a, stop } = await two();
    const good = pair[1].address;
    const fresh = a.rdma.createQueuePair();
    for (const bad of [
      { ...good, number: 2 ** 24 },
      { ...good, psn: -1 },
      { ...good, mtu: 1500 },
      { ...good, gid: 'x' },
      { ...good, gid: 5 as never },
      { ...good, reads: 1.5 },
    ])
      assert.throws(() => fresh.connect(bad), dmaError('EINVAL', /address of a queue pair/));
    assert.throws(() => a.rdma.createQueuePair({ port: 2 }), dmaError('EINVAL', /no port 2/));
    assert.throws(() => a.rdma.createQueuePair({ gidIndex: 9 }), dmaError('EINVAL', /there are 0, 1/));
    await stop();
  });
});

describe('requests in batches', () => {
  it('are built once, posted often, and polled', async () => {
    const { here, there, pair, remote, stop } = await two();
    const [a, b] = pair;
    const requests = a.sendRequests(8);
    const key = a.keys.keyOf(here.va, PAGE);
    for (let slot = 0; slot < 8; slot++) {
      const { address, rkey } = remote(slot * 16);
      requests.setId(slot, slot);
      requests.setLocal(slot, here.va, 16, key);
      requests.write(slot, address, rkey, slot === 7 ? IBV_SEND_SIGNALED : 0);
    }
    here.bytes().fill(3);
    const queue = a.completions;
    for (let round = 0; round < 3; round++) {
      assert.equal(a.post(requests), 8);
      assert.equal(queue.poll(), 1);
      assert.equal(queue.completions.id(0), 7);
      assert.equal(queue.completions.status(0), IBV_WC_SUCCESS);
    }
    assert.deepEqual(there.bytes(0, 128), new Uint8Array(128).fill(3));
    assert.equal(queue.poll(), 0);

    const receives = b.receiveRequests(4);
    for (let slot = 0; slot < 4; slot++) {
      receives.setId(slot, 100 + slot);
      receives.setLocal(slot, there.va + slot * 64, 64, b.keys.keyOf(there.va, PAGE));
    }
    assert.equal(b.postReceives(receives), 4);
    for (let slot = 0; slot < 2; slot++) requests.send(slot, 0);
    a.post(requests, 0, 2);
    assert.equal(await b.completions.next(), 2);
    assert.deepEqual([b.completions.completions.id(1), b.completions.completions.opcode(1)], [101, IBV_WC_RECV]);
    await stop();
  });

  it('are awaited, iterated or handled', async () => {
    const { pair, stop } = await two();
    const [a, b] = pair;
    const receives = b.receiveRequests(1);
    receives.clearLocal(0);
    const requests = a.sendRequests(1);
    requests.clearLocal(0);
    requests.send(0, 0);
    const message = (): void => {
      b.postReceives(receives);
      a.post(requests);
    };
    const next = b.completions.next();
    await assert.rejects(b.completions.next(), dmaError('EBUSY'));
    assert.throws(() => b.completions.onCompletions(() => undefined), dmaError('EBUSY'));
    message();
    assert.equal(await next, 1);
    let seen = 0;
    for await (const count of [message(), b.completions][1] ?? []) {
      seen += count;
      if (seen === 3) break;
      message();
    }
    assert.equal(seen, 3);
    let handled = 0;
    let both = (): void => undefined;
    const done = new Promise<void>((resolve) => (both = resolve));
    const handler = b.completions.onCompletions((_, more) => {
      handled += more;
      if (handled === 2) both();
    });
    message();
    message();
    await done;
    handler[Symbol.dispose]();
    message();
    assert.equal(await b.completions.next(), 1);
    assert.equal(handled, 2, 'it is told of no more once it is removed');
    await stop();
  });

  it('work without events for who polls', async () => {
    const { a, b, here, remote, stop } = await two();
    const queue = a.rdma.createCompletionQueue({ events: false });
    await assert.rejects(queue.next(), dmaError('ENOTSUP'));
    const [x] = connect(a.rdma, b.rdma, {});
    assert.throws(() => x.completions.close(), dmaError('EBUSY'));
    const pair = a.rdma.createQueuePair({ completions: queue });
    const peer = b.rdma.createQueuePair();
    pair.connect(peer.address);
    peer.connect(pair.address);
    const write = (): Promise<void> => pair.write({ local: { va: here.va, length: 8 }, remote: remote(0) });
    const writing = write();
    assert.equal(queue.poll(), 1);
    await writing;
    assert.equal(queue.spin(0), 0);
    assert.equal(queue.spin(1), 0);
    const other = write();
    assert.equal(queue.spin(1000), 1);
    await other;
    for (const wrong of [-1, NaN, Infinity]) assert.throws(() => queue.spin(wrong), dmaError('EINVAL', /milliseconds/));
    pair.close();
    queue.close();
    assert.throws(() => queue.spin(1), dmaError('EINVAL', /closed/));
    assert.throws(() => queue.poll(), dmaError('EINVAL', /closed/));
    await stop();
  });
});

describe('rights of peers', () => {
  it('end with the mapping, and the peer says why', async () => {
    const fabric = new Fabric();
    const a = await side(fabric);
    const b = await side(fabric, { ipv4: '10.0.0.2' });
    const there = b.eal.external.allocate(4 * PAGE);
    const mapping = b.device.dmaMap(there, { remote: 'write' });
    const here = a.eal.external.allocate(PAGE);
    a.device.dmaMap(here);
    const memory = [{ address: there.va, length: there.length, rkey: mapping.rkey ?? 0 }];
    const server = await listenForPeers({ host: '127.0.0.1' }, async (session) => {
      const pair = b.rdma.createQueuePair();
      session.explainFrom(b.rdma);
      session.greet({ pairs: [pair.address], memory });
      await session.join(pair);
      await session.ended;
      pair.close();
    });
    const run = async (
      work: (pair: QueuePair, remote: { address: number; rkey: number }) => Promise<unknown>,
    ): Promise<void> => {
      const pair = a.rdma.createQueuePair();
      const session = await connectToPeer({
        host: '127.0.0.1',
        port: server.port,
        hello: { pairs: [pair.address], memory: [] },
      });
      await session.join(pair);
      const [remote] = session.hello.memory;
      await work(pair, remote ?? assert.fail());
      session.close();
      pair.close();
    };
    const local = { va: here.va, length: 64 };
    await run((pair, remote) => pair.write({ local, remote }));
    await run((pair, remote) =>
      assert.rejects(pair.read({ local, remote }), dmaError('EACCES', /the peer says: .*peers, who have write access/)),
    );
    const end = 4 * PAGE - 32;
    await run((pair, { address, rkey }) =>
      assert.rejects(
        pair.write({ local, remote: { address: address + end, rkey } }),
        dmaError('EACCES', /past the end/),
      ),
    );
    await run((pair, { address }) =>
      assert.rejects(pair.write({ local, remote: { address, rkey: 1 } }), dmaError('EACCES', /does not have rkey/)),
    );
    mapping.unmap();
    await run((pair, remote) =>
      assert.rejects(
        pair.write({ local, remote }),
        dmaError('EACCES', /REM_ACCESS_ERR.*was unmapped \d+ ms ago by rdma:rxe0/),
      ),
    );
    await server.close();
    await a.stop();
    await b.stop();
  });

  it('can be given to parts of what the library has mapped, and end before it is unmapped', async () => {
    const fabric = new Fabric();
    const a = await side(fabric);
    const b = await side(fabric, { ipv4: '10.0.0.2' });
    const block = b.eal.malloc(PAGE);
    const here = a.eal.external.allocate(PAGE);
    a.device.dmaMap(here);
    here.bytes().fill(5);
    const [x] = connect(a.rdma, b.rdma);
    const exposed = b.rdma.expose({ va: block.va, length: 256 }, 'read-write');
    await x.write({ local: { va: here.va, length: 256 }, remote: { address: block.va, rkey: exposed.rkey } });
    assert.deepEqual(block.bytes().subarray(0, 256), new Uint8Array(256).fill(5));
    const memory = b.eal.external.allocate(PAGE);
    const mapping = b.device.dmaMap(memory, { access: 'read' });
    assert.throws(() => b.rdma.expose(memory, 'write'), dmaError('EINVAL', /may not be used for write/));
    const part = b.rdma.expose(memory, 'read');
    assert.throws(() => mapping.unmap(), dmaError('EBUSY', /an exposed part/));
    part.unregister();
    mapping.unmap();
    assert.throws(() => b.rdma.expose(memory, 'read'), dmaError('EINVAL', /not mapped/));
    assert.match(b.rdma.explainPeer({ address: memory.va, length: 8, rkey: part.rkey }, 'read'), /which was closed/);
    exposed.unregister();
    await a.stop();
    await b.stop();
  });

  for (const type of [1, 2] as const)
    it(`can be given by windows of type ${type}`, async () => {
      const { b, here, pair, stop } = await two();
      const [x, y] = pair;
      const plain = b.eal.external.allocate(PAGE);
      const mapping = b.device.dmaMap(plain);
      const window = b.rdma.createWindow(type);
      const rkey = await y.bind(window, { va: plain.va, length: 64 }, 'write');
      assert.equal(rkey, window.rkey);
      const local = { va: here.va, length: 64 };
      await x.write({ local, remote: { address: plain.va, rkey } });
      assert.throws(() => mapping.unmap(), dmaError('EBUSY', /memory window/));
      await y.unbind(window);
      await assert.rejects(x.write({ local, remote: { address: plain.va, rkey } }), dmaError('EACCES'));
      mapping.unmap();
      await assert.rejects(y.bind(window, { va: plain.va, length: 64 }, 'write'), dmaError('EINVAL', /not mapped/));
      window.close();
      await stop();
    });

  it('are not those of the queue pair that has none', async () => {
    const { here, pair, remote, stop } = await two({ remote: 'read' });
    const [x] = pair;
    const local = { va: here.va, length: 64 };
    await x.read({ local, remote: remote(0) });
    await assert.rejects(x.write({ local, remote: remote(0) }), dmaError('EACCES'));
    await stop();
  });
});
