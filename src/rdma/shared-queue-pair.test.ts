/** Queue pairs that another thread works: over a driver in C, which both threads call, and in one thread over an emulated fabric. */
import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { after, describe, it } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { Fabric, type FakeRdmaPlatform } from '../../test/fakes/rdma/fabric.js';
import { dmaError, throwsDma } from '../../test/shared/errors.js';
import { Thread } from '../../test/shared/thread.js';
import { until } from '../../test/shared/until.js';
import type { Device } from '../bus/model.js';
import type { Mapping } from '../dma/mapping.js';
import { verbsDriver } from '../drivers/verbs-driver.js';
import { Eal } from '../eal.js';
import { DmaError } from '../errors.js';
import type { ExternalMemory } from '../memory/external.js';
import { loadLibc } from '../platform/linux/libc.js';
import { openPlatform } from '../platform/open.js';
import { IBV_SEND_SIGNALED, IBV_WC_SUCCESS } from '../platform/rdma/abi/requests.js';
import { loadLibibverbs } from '../platform/rdma/libibverbs.js';
import { linuxVerbs } from '../platform/rdma/linux-verbs.js';
import { attach } from '../share/attach.js';
import { KiB } from '../units.js';
import type { CompletionQueue } from './completion-queue.js';
import type { RdmaDevice } from './device.js';
import type { QueuePair } from './queue-pair.js';

const QUIET = { memory: { onNotice: () => undefined }, onForgotten: () => undefined };
const folder = mkdtempSync(join(tmpdir(), 'pairs-'));
after(() => rmSync(folder, { recursive: true }));

const LIBRARY = join(folder, 'fake-verbs.so');
/** A libibverbs without a device: a request is done when it is posted, and its completion waits to be polled. */
const SOURCE = resolve(import.meta.dirname, '../../../bench/peers/fake-verbs.c');

/** Why there is no driver in C; false if there is. */
function compiled(): string | false {
  const { limitation } = openPlatform();
  if (limitation !== undefined) return limitation;
  const { status } = spawnSync('gcc', ['-w', '-shared', '-fPIC', '-O1', '-o', LIBRARY, SOURCE]);
  return status === 0 ? false : 'no gcc, or no libibverbs-dev, here';
}

interface Room {
  readonly eal: Eal;
  readonly device: Device;
  readonly rdma: RdmaDevice;
  readonly queue: CompletionQueue;
  readonly pair: QueuePair;
  readonly memory: ExternalMemory;
  readonly mapping: Mapping;
  readonly thread: Thread;
}

async function room(work: (room: Room) => Promise<void>): Promise<void> {
  const libc = loadLibc();
  assert.ok(typeof libc !== 'string');
  const verbs = linuxVerbs(libc, (loaded) => loadLibibverbs(loaded, LIBRARY));
  await using eal = await Eal.start({ ...QUIET, platform: { ...openPlatform(), verbs } });
  await using thread = new Thread();
  const device = await eal.probe('rdma:fake0');
  const rdma = device.use(verbsDriver);
  const memory = eal.external.allocate(64 * KiB);
  const mapping = device.dmaMap(memory);
  const queue = rdma.createCompletionQueue({ entries: 64, events: false, batch: 16 });
  const pair = rdma.createQueuePair({ completions: queue, sends: 16, receives: 16 });
  await work({ eal, device, rdma, queue, pair, memory, mapping, thread });
  await thread.end();
}

const take = (thread: Thread, { pair, mapping }: Pick<Room, 'pair' | 'mapping'>): Promise<void> =>
  thread.run(
    `const { attach } = await load('index.js');
    kept.pair = attach(data.pair);
    kept.mapping = attach(data.mapping);
    kept.send = (ids) => {
      const requests = kept.pair.sendRequests(ids.length);
      const { va } = kept.mapping;
      ids.forEach((id, slot) => {
        requests.setId(slot, id);
        requests.setLocal(slot, va, 64, kept.pair.keys.keyOf(va, 64));
        requests.send(slot, ${IBV_SEND_SIGNALED});
      });
      return kept.pair.post(requests);
    };`,
    { pair: pair.share(), mapping: mapping.share() },
  );

const idsIn = ({ completions }: CompletionQueue, count: number): number[] =>
  Array.from({ length: count }, (_, index) => completions.id(index));

describe('a queue pair in a worker thread', { skip: compiled() }, () => {
  it('posts and polls without the other thread, and comes back', () =>
    room(async (all) => {
      const { pair, queue, mapping, thread } = all;
      const requests = pair.sendRequests(1);
      await take(thread, all);
      const ended = new Int32Array(new SharedArrayBuffer(4));
      const working = thread.run<number[]>(
        `const { pair, mapping } = kept;
        const requests = pair.sendRequests(16);
        const key = pair.keys.keyOf(mapping.va, 64);
        for (let slot = 0; slot < 16; slot++) {
          requests.setLocal(slot, mapping.va, 64, key);
          requests.send(slot, ${IBV_SEND_SIGNALED});
        }
        const wrong = [];
        let done = 0;
        for (let sent = 0; done < 16000; ) {
          for (let slot = 0; slot < 16; slot++) requests.setId(slot, sent + slot);
          sent += pair.post(requests);
          for (let count = pair.poll(); count > 0; count = pair.poll())
            for (let i = 0; i < count; i++, done++)
              if (pair.completions.id(i) !== done || pair.completions.status(i) !== ${IBV_WC_SUCCESS}) wrong.push(done);
        }
        Atomics.store(data, 0, done);
        Atomics.notify(data, 0);
        return [key, done, pair.spin(1), ...wrong];`,
        ended,
      );
      // Nothing runs in this thread meanwhile, not even its event loop.
      assert.notEqual(Atomics.wait(ended, 0, 0, 60_000), 'timed-out');
      assert.deepEqual(await working, [mapping.lkey, 16_000, 0]);
      // Given back with completions that nobody has polled.
      await thread.run('kept.send([7, 8]); kept.pair[Symbol.dispose]();');
      await assert.rejects(thread.run('kept.pair.poll()'), { code: 'EBADF' });
      assert.equal(pair.takeBack(), true);
      assert.deepEqual(idsIn(queue, queue.poll()), [7, 8]);
      requests.setId(0, 9);
      requests.send(0, IBV_SEND_SIGNALED);
      assert.equal(pair.post(requests), 1);
      assert.deepEqual(idsIn(queue, queue.poll()), [9]);
    }));

  it('belongs to one thread at a time, and errors name it', () =>
    room(async (all) => {
      const { eal, device, rdma, pair, queue, memory, mapping, thread } = all;
      const requests = pair.sendRequests(1);
      const receives = pair.receiveRequests(1);
      const shared = pair.share();
      throwsDma('EBUSY', () => queue.poll(), /offered to other threads/);
      assert.equal(pair.takeBack(), true);
      await assert.rejects(thread.run("(await load('index.js')).attach(data)", shared), { code: 'EINVAL' });
      await take(thread, all);
      const named = /(is with|held by) worker thread \d+ of process \d+/;
      for (const call of [
        () => pair.post(requests),
        () => pair.postReceives(receives),
        () => pair.takeBack(),
        () => pair.close(),
        () => queue.poll(),
        () => queue.spin(1),
        () => queue.onCompletions(() => undefined),
      ])
        throwsDma('EBUSY', call, named);
      const local = { va: memory.va, length: 64 };
      await assert.rejects(pair.send({ local }), dmaError('EBUSY', named));
      await assert.rejects(pair.receive(local), dmaError('EBUSY', named));
      for (const end of [() => eal.remove(device), () => eal.stop()])
        await assert.rejects(end(), dmaError('EBUSY', named));
      assert.ok(pair.live && queue.live);
      await using other = new Thread();
      await assert.rejects(take(other, all), { code: 'EBUSY', message: /worker thread \d+ .* has the queue pair/ });
      // Its keys follow what is unmapped here.
      assert.equal(await thread.run('return kept.pair.keys.keyOf(kept.mapping.va, 64)'), mapping.lkey);
      await thread.run('kept.va = kept.mapping.va; kept.mapping[Symbol.dispose]()');
      mapping.unmap();
      assert.equal(await thread.run('return kept.pair.keys.keyOf(kept.va, 64)'), -1);
      await thread.run('kept.pair[Symbol.dispose]()');
      await other.run("kept.pair = (await load('index.js')).attach(data)", pair.share());
      assert.equal(await other.run('return kept.pair.poll()'), 0);
      await other.end();
      // Offered, or with a thread that has ended, it can be closed.
      pair.close();
      assert.ok(rdma.createQueuePair({ completions: queue, sends: 16, receives: 16 }).live);
    }));

  it('comes back when its thread is ended, also when another one has its number by then', () =>
    room(async (all) => {
      const { pair, queue, memory, thread } = all;
      await take(thread, all);
      await thread.run('kept.send([1, 2, 3])');
      await thread.end();
      throwsDma('EBUSY', () => queue.poll(), /one that has ended/);
      // Meanwhile its place in the table of threads is given out again.
      await sleep(700);
      await using other = new Thread();
      await other.run("kept.memory = (await load('index.js')).attach(data)", memory.share());
      await assert.rejects(take(other, all), { code: 'EBUSY', message: /a thread that has ended had the queue pair/ });
      assert.equal(pair.takeBack(), false);
      assert.deepEqual(idsIn(queue, queue.poll()), [1, 2, 3]);
      await take(other, all);
      assert.equal(await other.run('return kept.send([4])'), 1);
      await other.run('kept.memory[Symbol.dispose](); process.exit(3)').catch(() => undefined);
      await other.end();
      assert.equal(pair.takeBack(), false);
      assert.deepEqual(idsIn(queue, queue.poll()), [4]);
    }));
});

interface Hosts {
  readonly eal: Eal;
  readonly platform: FakeRdmaPlatform;
  readonly device: Device;
  readonly rdma: RdmaDevice;
  readonly memory: ExternalMemory;
  /** Connected to each other. */
  readonly pairs: readonly [QueuePair, QueuePair];
}

async function hosts(work: (hosts: Hosts) => Promise<void>): Promise<void> {
  const platform = new Fabric().host(openPlatform(), [{ name: 'rxe0', ipv4: '10.0.0.1' }]);
  {
    await using eal = await Eal.start({ ...QUIET, platform, holdBackMs: 0 });
    const device = await eal.probe('rdma:rxe0');
    const rdma = device.use(verbsDriver);
    const memory = eal.external.allocate(64 * KiB);
    device.dmaMap(memory, { remote: 'read-write' });
    const pairs = [rdma.createQueuePair(), rdma.createQueuePair()] as const;
    pairs[0].connect(pairs[1].address);
    pairs[1].connect(pairs[0].address);
    await work({ eal, platform, device, rdma, memory, pairs });
  }
  assert.deepEqual(platform.verbsLeaks(), []);
}

describe('a shared queue pair', { skip: openPlatform().limitation ?? false }, () => {
  it('moves bytes, with completions of sends and receives', () =>
    hosts(async ({ platform, memory, pairs: [here, there] }) => {
      memory.bytes().fill(5, 0, 256);
      using pair = attach(here.share(), platform);
      const receiving = there.receive({ va: memory.va + 4096, length: 4096 });
      const requests = pair.sendRequests(1);
      requests.setId(0, 77);
      requests.setLocal(0, memory.va, 256, pair.keys.keyOf(memory.va, 256));
      requests.send(0, IBV_SEND_SIGNALED);
      assert.equal(pair.post(requests), 1);
      assert.equal((await receiving).length, 256);
      assert.deepEqual(memory.bytes(4096, 256), new Uint8Array(256).fill(5));
      assert.deepEqual([pair.poll(), pair.completions.id(0), pair.completions.status(0)], [1, 77, IBV_WC_SUCCESS]);
      const receives = pair.receiveRequests(1);
      receives.setId(0, 78);
      receives.setLocal(0, memory.va + 8192, 4096, pair.keys.keyOf(memory.va + 8192, 4096));
      assert.equal(pair.postReceives(receives), 1);
      await there.send({ local: { va: memory.va, length: 100 } });
      assert.equal(pair.pollReceives(), 1);
      assert.deepEqual([pair.receiveCompletions.id(0), pair.receiveCompletions.byteLength(0)], [78, 100]);
      for (const wrong of [undefined, {}, receives] as never[]) throwsDma('EINVAL', () => pair.post(wrong));
      for (const wrong of [undefined, {}, requests] as never[]) throwsDma('EINVAL', () => pair.postReceives(wrong));
      pair[Symbol.dispose]();
      assert.ok(here.takeBack());
      const again = there.receive({ va: memory.va + 4096, length: 4096 });
      await here.send({ local: { va: memory.va, length: 10 } });
      assert.equal((await again).length, 10);
    }));

  it('is refused while it is used here, and for what another thread could not use', () =>
    hosts(async ({ rdma, memory, pairs: [here, there] }) => {
      const pending = here.receive({ va: memory.va, length: 64 });
      throwsDma('EBUSY', () => here.share(), /1 requests with promises are pending/);
      await there.send({ local: { va: memory.va + 4096, length: 8 } });
      await pending;
      const handler = here.completions.onCompletions(() => undefined);
      throwsDma('EBUSY', () => here.share(), /awaited here/);
      handler[Symbol.dispose]();
      const queue = rdma.createCompletionQueue();
      const [one, two] = [1, 2].map(() => rdma.createQueuePair({ completions: queue, sends: 8, receives: 8 }));
      throwsDma('EBUSY', () => one?.share(), /another queue pair/);
      two?.close();
      one?.share();
      throwsDma('EBUSY', () => queue.poll(), /offered/);
      // Offered to nobody who took it, it can be closed, and the completion queue is usable again.
      one?.close();
      assert.equal(queue.poll(), 0);
      here.close();
      throwsDma('EINVAL', () => here.share(), /closed/);
    }));

  it('of datagrams sends to the destinations that came with it, whose addresses stay meanwhile', () =>
    hosts(async ({ platform, rdma, memory, pairs: [connected] }) => {
      const [here, there] = [rdma.createQueuePair({ type: 'ud' }), rdma.createQueuePair({ type: 'ud', qkey: 7 })];
      const address = rdma.createAddress(there.address);
      const to = { address, number: there.address.number, qkey: there.address.qkey };
      const closed = rdma.createAddress(there.address);
      closed.close();
      for (const destinations of [1, {}, [undefined], [{ ...to, qkey: -1 }], [{ ...to, address: closed }]] as never[])
        throwsDma('EINVAL', () => here.share({ destinations }));
      throwsDma('EINVAL', () => connected.share({ destinations: [to] }), /takes no destinations/);
      throwsDma('EINVAL', () => here.share({ other: [] } as never));
      using pair = attach(here.share({ destinations: [to] }), platform);
      assert.deepEqual([pair.type, pair.destinations], ['ud', 1]);
      throwsDma('EBUSY', () => address.close(), /offered to other threads/);
      memory.bytes().fill(6, 0, 64);
      const receiving = there.receive({ va: memory.va + 4096, length: 4096 });
      const requests = pair.sendRequests(2);
      requests.setId(0, 1);
      requests.setLocal(0, memory.va, 64, pair.keys.keyOf(memory.va, 64));
      requests.send(0, IBV_SEND_SIGNALED);
      throwsDma('EINVAL', () => pair.post(requests, 0, 1));
      for (const [slot, index] of [
        [0, 1],
        [0, -1],
        [2, 0],
        [0, 0.5],
      ])
        throwsDma('EINVAL', () => pair.setDestination(requests, slot, index));
      throwsDma('EINVAL', () => pair.setDestination({} as never, 0, 0));
      pair.setDestination(requests, 0, 0);
      assert.equal(pair.post(requests, 0, 1), 1);
      const { offset, length, sourceQp } = await receiving;
      assert.deepEqual([offset, length, sourceQp], [40, 64, here.number]);
      assert.ok(memory.bytes(4096 + offset, length).every((byte) => byte === 6));
      assert.equal(pair.poll(), 1);
      const receives = pair.receiveRequests(1);
      receives.setLocal(0, memory.va + 8192, 4096, pair.keys.keyOf(memory.va + 8192, 4096));
      assert.equal(pair.postReceives(receives), 1);
      const back = rdma.createAddress(here.address);
      await there.send({
        local: { va: memory.va, length: 8 },
        to: { address: back, number: here.address.number, qkey: here.address.qkey },
      });
      assert.equal(pair.pollReceives(), 1);
      assert.equal(pair.receiveCompletions.byteLength(0), 48);
      pair[Symbol.dispose]();
      assert.ok(here.takeBack());
      // Without destinations it only receives.
      {
        using again = attach(here.share(), platform);
        throwsDma('EINVAL', () => again.setDestination(requests, 0, 0), /without destinations/);
      }
      here.takeBack();
      address.close();
      // Closing the pair lets go of them, too.
      here.share({ destinations: [{ ...to, address: back }] });
      here.close();
      back.close();
    }));

  it('that another thread has is an error there, and no fault, once the device is lost or its queue has failed', () =>
    hosts(async ({ platform, pairs: [here, there] }) => {
      const [one, two] = [attach(here.share(), platform), attach(there.share(), platform)];
      const requests = one.sendRequests(1);
      assert.equal(one.poll(), 0);
      there.completions.fail(new DmaError({ code: 'EIO', operation: 'completion queue', reason: 'CQ_ERR' }));
      throwsDma('EIO', () => two.poll(), /completion queue has failed/);
      // Nobody calls anything here that could fail, so it can go.
      there.close();
      platform.unplug('rxe0');
      await until(() => !one.live);
      throwsDma('ENODEV', () => one.post(requests));
      throwsDma('ENODEV', () => one.poll());
      assert.equal(one.live, false);
      throwsDma('ENODEV', () => here.share());
      // Neither has been given back.
      await until(() => !here.live);
      one[Symbol.dispose]();
      two[Symbol.dispose]();
    }));
});
