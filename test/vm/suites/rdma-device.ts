/** RDMA between two hosts on Soft-RoCE: bytes, rights, errors and what is said about them. */
import assert from 'node:assert/strict';
import { chmodSync, readdirSync } from 'node:fs';
import { after, before, describe, it } from 'node:test';
import { dmaError } from '../../shared/errors.js';
import { Thread } from '../../shared/thread.js';
import { until } from '../../shared/until.js';
import { Eal, KiB, type Block, type ExternalMemory, type Mapping, type Va } from '../../../src/index.js';
import type { PeerSession, QueuePair } from '../../../src/entry/rdma.js';
import { verbsDeviceOf } from '../../../src/bus/rdma/verbs-device-of.js';
import { openPlatform } from '../../../src/platform/open.js';
import { FAR, makeNetwork, NEAR, run, startFarPeer, type FarPeer } from '../rdma-network.js';
import { joinPeer, near, type Near } from '../rdma-near.js';
import { BYTES, fill, memoryOf, wrongAt } from '../rdma-peer.js';

/** The network card of the guest. */
const NET = '0000:00:04.0';

before(makeNetwork);

for (const kind of ['external', 'heap', 'owned'])
  describe(`two hosts with ${kind} memory`, () => {
    let side: Near;
    let far: FarPeer;
    let memory: ExternalMemory | Block;
    let pair: QueuePair;
    let session: PeerSession;
    let remote: { address: number; rkey: number };
    const local = (length = BYTES): { va: Va; length: number } => ({ va: memory.va, length });
    const join = async (): Promise<void> => {
      ({ pair, session } = await joinPeer(side, { host: FAR.ipv4, port: far.port }));
    };

    before(async () => {
      side = await near();
      far = await startFarPeer(kind);
      memory = memoryOf(side.eal, kind);
      if (kind === 'external') side.device.dmaMap(memory);
      await join();
      remote = session.hello.memory[0] ?? assert.fail();
    });
    after(async () => {
      pair.close();
      session.close();
      await far[Symbol.asyncDispose]();
      if (kind === 'external') side.device.dmaUnmap(memory);
      if ('unregister' in memory) memory.unregister();
      else memory.free();
      await side.eal.stop();
    });

    it('writes', async () => {
      fill(memory.bytes(), 1);
      await pair.write({ local: local(), remote });
      assert.equal(await session.ask('check', 1), -1);
    });

    it('reads', async () => {
      await session.ask('fill', 2);
      await pair.read({ local: local(), remote });
      assert.equal(wrongAt(memory.bytes(), 2), -1);
    });

    it('sends', async () => {
      fill(memory.bytes(), 3);
      const received = session.ask('receive', null);
      await pair.send({ local: local(), immediate: 0x12345678 });
      assert.deepEqual(await received, { length: BYTES, immediate: 0x12345678 });
      assert.equal(await session.ask('check', 3), -1);
    });

    it('does atomics', async () => {
      const old = (): bigint => new DataView(memory.bytes().buffer, memory.bytes().byteOffset).getBigUint64(0, true);
      const before = BigInt(String(await session.ask('word', null)));
      await pair.fetchAndAdd({ local: local(), remote, add: 41 });
      assert.equal(old(), before);
      await pair.compareAndSwap({ local: local(), remote, compare: before + 41n, exchange: 42 });
      assert.equal(old(), before + 41n);
      assert.equal(await session.ask('word', null), '42');
    });

    it('does many at once', async () => {
      await Promise.all(
        Array.from({ length: 200 }, (_, n) => {
          const at = (n % 64) * KiB;
          const part = { va: memory.va + at, length: KiB };
          return pair.write({ local: part, remote: { ...remote, address: remote.address + at } });
        }),
      );
    });

    it('is refused after the peer took the right back, and told why', async () => {
      await session.ask('close', null);
      await assert.rejects(
        pair.write({ local: local(64), remote }),
        dmaError(
          'EACCES',
          kind === 'external' ? /REM_ACCESS_ERR.*was unmapped \d+ ms ago by rdma:rxefar/ : /which was closed/,
        ),
      );
      await assert.rejects(pair.write({ local: local(64), remote }), dmaError('ECANCELED'));
      pair.close();
      session.close();
      await join();
      const rkey = Number(await session.ask('open', null));
      remote = { ...remote, rkey };
      await pair.write({ local: local(64), remote });
    });

    it('is refused past the end, and told so', async () => {
      const address = remote.address + BYTES - 32;
      await assert.rejects(
        pair.write({ local: local(64), remote: { ...remote, address } }),
        dmaError('EACCES', kind === 'external' ? /past the end/ : /are not inside/),
      );
      pair.close();
      session.close();
      await join();
    });
  });

/** Writes the pieces from `data.from` to `data.to` to the peer, 4 KiB each, 16 at once; `data.endless`: again and again. */
const WRITE = `
  const { attach } = await load('index.js');
  const [pair, mapping] = [attach(data.pair), attach(data.mapping)];
  const requests = pair.sendRequests(1);
  const started = new Int32Array(data.started);
  for (let sent = 0, done = 0; data.endless || done < data.to - data.from; ) {
    for (; (data.endless || sent < data.to - data.from) && sent - done < 16; sent++) {
      const offset = (data.from + (sent % (data.to - data.from))) * 4096;
      requests.setId(0, sent);
      requests.setLocal(0, mapping.va + offset, 4096, pair.keys.keyOf(mapping.va + offset, 4096));
      requests.write(0, data.remote.address + offset, data.remote.rkey, 2);
      pair.post(requests);
    }
    const count = pair.spin(1000);
    for (let i = 0; i < count; i++)
      if (pair.completions.status(i) !== 0) throw new Error('status ' + pair.completions.status(i));
    done += count;
    Atomics.store(started, 0, 1);
  }
  mapping[Symbol.dispose]();
  pair[Symbol.dispose]();`;

describe('one host', () => {
  it('two workers work two queue pairs at once; one that is ended in the middle gives its pair back', async () => {
    const { eal, device, rdma } = await near();
    const memory = eal.external.allocate(BYTES);
    const target = eal.external.allocate(BYTES);
    const mapping = device.dmaMap(memory);
    const remote = { address: target.va, rkey: device.dmaMap(target, { remote: 'write' }).rkey ?? assert.fail() };
    const connected = (): QueuePair => {
      const [a, b] = [rdma.createQueuePair(), rdma.createQueuePair()];
      a.connect(b.address);
      b.connect(a.address);
      return a;
    };
    const pairs = [connected(), connected()];
    fill(memory.bytes(), 21);
    const half = BYTES / 4096 / 2;
    const started = new SharedArrayBuffer(4);
    const jobs = pairs.map((pair, each) => ({
      ...{ pair: pair.share(), mapping: mapping.share(), remote, started, endless: false },
      ...{ from: each * half, to: (each + 1) * half },
    }));
    const [one, two] = [new Thread(), new Thread()];
    try {
      await Promise.all([one.run(WRITE, jobs[0]), two.run(WRITE, jobs[1])]);
      assert.equal(wrongAt(target.bytes(), 21), -1);
      Atomics.store(new Int32Array(started), 0, 0);
      const endless = one.run(WRITE, { ...jobs[0], endless: true }).catch(() => undefined);
      await until(() => Atomics.load(new Int32Array(started), 0) === 1);
      const [pair] = pairs;
      for (const call of [() => pair.takeBack(), () => pair.close(), () => pair.completions.poll()])
        assert.throws(call, dmaError('EBUSY', /is with worker thread/));
      await assert.rejects(eal.remove(device), dmaError('EBUSY', /worker thread/));
      await one.end();
      await endless;
      assert.equal(pair.takeBack(), false);
      // What it had posted completes here; and the pair works on.
      fill(memory.bytes(), 22);
      await pair.write({ local: { va: memory.va, length: BYTES }, remote });
      assert.equal(wrongAt(target.bytes(), 22), -1);
      assert.ok(pairs[1].takeBack());
    } finally {
      await one.end();
      await two.end();
    }
    await eal.stop();
  });

  it('a queue that knew a key sees the unmap', async () => {
    const { eal, device, rdma } = await near();
    const memory = eal.external.allocate(64 * KiB);
    const target = eal.external.allocate(64 * KiB);
    const mapping = device.dmaMap(target, { remote: 'write' });
    device.dmaMap(memory);
    using a = rdma.createQueuePair();
    using b = rdma.createQueuePair();
    a.connect(b.address);
    b.connect(a.address);
    const request = {
      local: { va: memory.va, length: 64 },
      remote: { address: target.va, rkey: mapping.rkey ?? assert.fail() },
    };
    await a.write(request);
    const stale = a.keys.keyOf(memory.va, 64);
    device.dmaUnmap(memory);
    await assert.rejects(a.write(request), dmaError('EFAULT', /was unmapped/));
    device.dmaMap(memory);
    assert.notEqual(a.keys.keyOf(memory.va, 64), -1);
    await a.write(request);

    // A program that kept the key is refused by the device.
    device.dmaUnmap(memory);
    const requests = a.sendRequests(1);
    requests.setId(0, 1);
    requests.setLocal(0, memory.va, 64, stale);
    requests.write(0, target.va, request.remote.rkey, 2);
    a.post(requests);
    assert.equal(await a.completions.next(), 1);
    assert.notEqual(a.completions.completions.status(0), 0);
    device.dmaUnmap(target);
    for (const each of [memory, target]) each.unregister();
    await eal.stop();
  });

  it('checks rights before the device does, and lets the device check the rest', async () => {
    const { eal, device, rdma } = await near();
    const memory = eal.external.allocate(64 * KiB);
    device.dmaMap(memory, { access: 'read', remote: 'read' });
    using a = rdma.createQueuePair();
    using b = rdma.createQueuePair();
    a.connect(b.address);
    b.connect(a.address);
    const rkey = device.dmaMap(memory, { access: 'read', remote: 'read' }).rkey ?? assert.fail();
    const request = { local: { va: memory.va, length: 64 }, remote: { address: memory.va, rkey } };
    await assert.rejects(a.read(request), dmaError('EACCES', /LOC_PROT_ERR|LOC_ACCESS_ERR/));
    assert.throws(() => device.dmaMap(memory, { access: 'read', remote: 'write' }), dmaError('EINVAL'));
    for (let i = 0; i < 2; i++) device.dmaUnmap(memory);
    memory.unregister();
    await eal.stop();
  });

  it('sends datagrams', async () => {
    const { eal, device, rdma } = await near();
    const memory = eal.external.allocate(64 * KiB);
    device.dmaMap(memory);
    using a = rdma.createQueuePair({ type: 'ud' });
    using b = rdma.createQueuePair({ type: 'ud' });
    using address = rdma.createAddress(b.address);
    fill(memory.bytes(0, 500), 9);
    const message = b.receive({ va: memory.va + 4096, length: 4096 });
    await a.send({
      local: { va: memory.va, length: 500 },
      to: { address, number: b.address.number, qkey: b.address.qkey },
    });
    const { offset, length, sourceQp } = await message;
    assert.deepEqual([offset, length, sourceQp], [40, 500, a.number]);
    assert.equal(wrongAt(memory.bytes(4096 + offset, length), 9), -1);
    device.dmaUnmap(memory);
    memory.unregister();
    await eal.stop();
  });

  it('gives and takes rights by windows', async () => {
    const { eal, device, rdma } = await near();
    const memory = eal.external.allocate(64 * KiB);
    const mapping = device.dmaMap(memory);
    for (const type of [1, 2] as const) {
      using a = rdma.createQueuePair();
      using b = rdma.createQueuePair();
      a.connect(b.address);
      b.connect(a.address);
      using window = rdma.createWindow(type);
      const rkey = await b.bind(window, { va: memory.va + 4096, length: 4096 }, 'write');
      const local = { va: memory.va, length: 4096 };
      const remote = { address: memory.va + 4096, rkey };
      fill(memory.bytes(0, 4096), type);
      await a.write({ local, remote });
      assert.equal(wrongAt(memory.bytes(4096, 4096), type), -1);
      assert.throws(() => mapping.unmap(), dmaError('EBUSY', /memory window/));
      await b.unbind(window);
      await assert.rejects(a.write({ local, remote }), dmaError('EACCES', /REM_ACCESS_ERR/));
    }
    mapping.unmap();
    memory.unregister();
    await eal.stop();
  });

  it('pages on demand', async (t) => {
    const { eal, device, rdma } = await near();
    const { odp } = rdma.attributes;
    t.diagnostic(`on-demand paging: ${JSON.stringify(odp)}`);
    const memory = eal.external.allocate(256 * KiB);
    const target = eal.external.allocate(256 * KiB);
    const { rkey = assert.fail() } = device.dmaMap(target, { paging: 'on-demand', remote: 'write' });
    device.dmaMap(memory, { paging: 'on-demand' });
    // The provider of rxe has no such call in every release.
    try {
      rdma.prefetch(target);
    } catch (error) {
      dmaError('ENOTSUP')(error);
      t.diagnostic('no prefetch');
    }
    using a = rdma.createQueuePair();
    using b = rdma.createQueuePair();
    a.connect(b.address);
    b.connect(a.address);
    fill(memory.bytes(), 4);
    // What does not begin with a page, Soft-RoCE of Linux 7.3 puts at the page's beginning: each write is one packet here.
    for (let at = 0; at < memory.length; at += 4096)
      await a.write({ local: { va: memory.va + at, length: 1024 }, remote: { address: target.va + at, rkey } });
    for (let at = 0; at < memory.length; at += 4096) assert.deepEqual(target.bytes(at, 1024), memory.bytes(at, 1024));
    if ((odp.general & 2) !== 0) {
      using all = rdma.registerEverything();
      assert.notEqual(all.lkey, 0);
    } else assert.throws(() => rdma.registerEverything(), dmaError('ENOTSUP'));
    for (const each of [memory, target]) {
      device.dmaUnmap(each);
      each.unregister();
    }
    await eal.stop();
  });

  it('says which limit keeps memory from being mapped', () => {
    for (const name of readdirSync('/dev/infiniband')) chmodSync(`/dev/infiniband/${name}`, 0o666);
    const index = new URL('../../../src/index.js', import.meta.url).href;
    const program = `
      const { Eal, KiB } = await import(${JSON.stringify(index)});
      const eal = await Eal.start({ onForgotten: () => undefined });
      const device = await eal.probe('rdma:${NEAR.device}');
      const memory = eal.external.allocate(256 * KiB);
      const attempt = (at, length) => {
        try { device.dmaMap({ va: memory.va + at * KiB, length: length * KiB }); return 'mapped'; }
        catch (error) { return error.code + ' ' + error.message; }
      };
      console.log(JSON.stringify([attempt(0, 32), attempt(32, 32), attempt(64, 32), attempt(128, 128)]));
      await eal.stop();`;
    const user = ['--reuid', '65534', '--clear-groups', '--inh-caps=-all', '--bounding-set=-all', '--no-new-privs'];
    const limited = ['prlimit', '--memlock=65536', process.execPath, '--input-type=module', '-e', program];
    const [first, second, third, fourth] = JSON.parse(run('setpriv', ...user, ...limited)) as string[];
    assert.deepEqual([first, second], ['mapped', 'mapped']);
    assert.match(
      third ?? '',
      /^ENOMEM .*RLIMIT_MEMLOCK is 64 KiB; 64 KiB are pinned for rxenear .* this needs 32 KiB more/,
    );
    assert.match(fourth ?? '', /^ENOMEM .*RLIMIT_MEMLOCK is 64 KiB/);
  });

  it('knows keys as they are, whatever is mapped and unmapped', async () => {
    const { eal, device, rdma } = await near();
    const pages = 64;
    const memory = eal.external.allocate(pages * 4096);
    const pair = (): QueuePair[] => {
      const [a, b] = [rdma.createQueuePair(), rdma.createQueuePair()];
      a.connect(b.address);
      b.connect(a.address);
      return [a, b];
    };
    const queues = [...pair(), ...pair()];
    const target = eal.external.allocate(4096);
    const rkey = device.dmaMap(target, { remote: 'write' }).rkey ?? assert.fail();
    const model = new Map<number, { mapping: Mapping; pages: number }>();
    const keyAt = (page: number): number => {
      for (const [start, { mapping, pages: count }] of model)
        if (page >= start && page < start + count) return mapping.lkey ?? -1;
      return -1;
    };
    let seed = 12345;
    const random = (below: number): number => {
      seed = (Math.imul(seed, 1103515245) + 12345) >>> 0;
      return (seed >>> 8) % below;
    };
    for (let step = 0; step < 600; step++) {
      const page = random(pages);
      const count = 1 + random(Math.min(8, pages - page));
      const [start] = [...model.keys()];
      if (random(3) === 0 && start !== undefined) {
        model.get(start)?.mapping.unmap();
        model.delete(start);
      } else if (Array.from({ length: count }, (_, i) => keyAt(page + i)).every((key) => key < 0)) {
        const mapping = device.dmaMap({ va: memory.va + page * 4096, length: count * 4096 });
        model.set(page, { mapping, pages: count });
      }
      for (const queue of queues) {
        const asked = random(pages);
        assert.equal(queue.keys.keyOf(memory.va + asked * 4096 + random(4096), 1), keyAt(asked), `step ${step}`);
      }
      if (step % 20 !== 0) continue;
      // The device agrees.
      const queue = queues[random(queues.length)] ?? assert.fail();
      const request = { local: { va: memory.va + page * 4096, length: 4096 }, remote: { address: target.va, rkey } };
      if (keyAt(page) < 0) await assert.rejects(queue.write(request), dmaError('EFAULT'));
      else await queue.write(request);
    }
    await eal.stop();
  });

  it('registers a dma-buf where the device can', async (t) => {
    const { eal, rdma } = await near();
    const memory = eal.external.allocate(64 * KiB);
    const { files, ioctl } = eal.platform;
    const udmabuf = files.open('/dev/udmabuf', 'read-write');
    // struct udmabuf_create (linux/udmabuf.h): memfd, flags, offset, size
    const create = new Uint32Array([memory.fd ?? assert.fail(), 1, 0, 0, 64 * KiB, 0]);
    const fd = ioctl.call(udmabuf, 0x40187542, new Uint8Array(create.buffer), 'UDMABUF_CREATE');
    try {
      using region = rdma.registerDmabuf({ fd, length: 64 * KiB, remote: 'read' });
      assert.notEqual(region.rkey, 0);
    } catch (error) {
      dmaError('ENOTSUP')(error);
      t.diagnostic('no dma-bufs');
    }
    for (const each of [fd, udmabuf]) files.close(each);
    await eal.stop();
  });

  it('is what a PCI function is used through that stays with its kernel driver', async () => {
    const { kernel } = openPlatform();
    assert.equal(verbsDeviceOf(kernel, NET), undefined);
    const [netdev = assert.fail()] = kernel.list(`/sys/bus/pci/devices/${NET}/net`);
    run('rdma', 'link', 'add', 'rxepci', 'type', 'rxe', 'netdev', netdev);
    assert.equal(verbsDeviceOf(kernel, NET), 'rxepci');
    const eal = await Eal.start({ onForgotten: () => undefined });
    const device = await eal.probe(`pci:${NET}`);
    assert.equal(device.driver?.name, 'verbs');
    assert.notEqual(device.ids, undefined);
    const other = await eal.probe('rdma:rxepci');
    const memory = eal.external.allocate(64 * KiB);
    assert.equal(device.dmaMap(memory).lkey, other.dmaMap(memory).lkey);
    assert.equal(device.domain, other.domain);
    await eal.stop();
    run('rdma', 'link', 'delete', 'rxepci');
  });

  it('DM-61: unmaps exactly what was mapped, once', async () => {
    const { eal, device } = await near();
    const memory = eal.external.allocate(64 * KiB);
    const { lkey } = device.dmaMap(memory);
    const inner = { va: (memory.va + 4 * KiB) as Va, length: 4 * KiB };
    assert.throws(() => device.dmaUnmap(inner), dmaError('ENOTSUP'));
    assert.equal(device.domain?.table.keyOf(memory.va), lkey);
    device.dmaUnmap(memory);
    assert.equal(device.domain?.entries, 0);
    assert.throws(() => device.dmaUnmap(memory), dmaError('EINVAL'));
    memory.unregister();
    await eal.stop();
  });

  it('DM-63: two devices map each for itself', async () => {
    run('rdma', 'link', 'add', 'siw0', 'type', 'siw', 'netdev', NEAR.netdev);
    const { eal, device } = await near();
    const other = await eal.probe('rdma:siw0');
    const memory = eal.external.allocate(64 * KiB);
    const mapping = device.dmaMap(memory);
    assert.notEqual(device.domain, other.domain);
    assert.equal(other.domain?.iovaOf(memory.va), -1);
    const also = other.dmaMap(memory);
    mapping.unmap();
    assert.deepEqual([also.live, other.domain.entries, device.domain?.entries], [true, 1, 0]);
    also.unmap();
    memory.unregister();
    await eal.stop();
    run('rdma', 'link', 'delete', 'siw0');
  });

  it('maps, unmaps and closes without a trace', async () => {
    const count = (): string => run('rdma', 'resource', 'show').replace(/curr_mm_id \d+/g, '');
    const before = count();
    const { eal, device, rdma } = await near();
    const memory = eal.external.allocate(64 * KiB);
    device.dmaMap(memory);
    rdma.createQueuePair();
    rdma.expose(memory, 'read');
    assert.notEqual(count(), before);
    await eal.remove(device);
    assert.equal(count(), before);
    memory.unregister();
    await eal.stop();
  });

  it('maps memory of iWARP devices', async () => {
    run('rdma', 'link', 'add', 'siw0', 'type', 'siw', 'netdev', NEAR.netdev);
    const { eal, device, rdma } = await near('siw0');
    const memory = eal.external.allocate(64 * KiB);
    const mapping = device.dmaMap(memory, { remote: 'read-write' });
    assert.notEqual(mapping.rkey, undefined);
    const pair = rdma.createQueuePair();
    assert.throws(() => pair.connect(pair.address), dmaError('ENOTSUP', /connection manager/));
    mapping.unmap();
    memory.unregister();
    await eal.stop();
    run('rdma', 'link', 'delete', 'siw0');
  });

  it('tells of ports that go down, and of devices that go', async () => {
    run('ip', 'link', 'add', 'late0', 'type', 'veth', 'peer', 'name', 'late1');
    run('ip', 'addr', 'add', '10.78.0.1/24', 'dev', 'late0');
    for (const name of ['late0', 'late1']) run('ip', 'link', 'set', name, 'up');
    run('rdma', 'link', 'add', 'rxelate', 'type', 'rxe', 'netdev', 'late0');
    const { eal, device, rdma } = await near('rxelate');
    const memory = eal.external.allocate(64 * KiB);
    device.dmaMap(memory);
    const queue = rdma.createQueuePair();
    const waiting = queue.receive({ va: memory.va, length: 64 });
    const failed = new Promise<string>((resolve) => eal.events.on('failed', (_, error) => resolve(error.reason)));
    run('ip', 'link', 'set', 'late0', 'down');
    assert.match(await failed, /PORT_ERR on port 1/);
    const lost = new Promise<string>((resolve) => eal.events.on('lost', (_, error) => resolve(error.code)));
    waiting.catch(() => undefined);
    run('rdma', 'link', 'delete', 'rxelate');
    assert.equal(await lost, 'ENODEV');
    await assert.rejects(waiting, dmaError('ENODEV'));
    memory.unregister();
    await eal.stop();
  });
});
