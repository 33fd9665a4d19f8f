/** Queue pairs that worker threads drive, over the served controller. */
import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { dmaError, throwsDma } from '../../../test/shared/errors.js';
import { Thread } from '../../../test/shared/thread.js';
import { until } from '../../../test/shared/until.js';
import type { Device } from '../../bus/model.js';
import { Eal } from '../../eal.js';
import type { Block } from '../../memory/heap/heap.js';
import { openPlatform } from '../../platform/open.js';
import { KiB, MiB } from '../../units.js';
import { spawnDevice, type DeviceProcess } from '../../vfio-user/device-process.js';
import { nvmeModel } from '../../vfio-user/devices/nvme/nvme.js';
import type { NvmeModelOptions } from '../../vfio-user/devices/nvme/options.js';
import type { Nvme } from './nvme.js';
import { nvmeDriver } from './nvme-driver.js';
import { ABORTED_BY_HOST, type NvmeQueue } from './queue.js';

const QUIET = { memory: { onNotice: () => undefined }, onForgotten: () => undefined };
/**
 * The controller loses each write but that of the content. Reads are never lost, even if the controller is reset, or the queue is
 * closed, before it has seen a write that was to be lost.
 */
const LOSES_WRITES: NvmeModelOptions = { faults: [{ do: 'lose', opcode: 1, nth: 2, times: 2 ** 20 }] };
const linux = { skip: openPlatform().limitation ?? false };

interface Room {
  readonly eal: Eal;
  readonly device: Device;
  readonly ssd: Nvme;
  readonly server: DeviceProcess;
  /** 1 MiB, whose content the disk has from block 0 on; it is zeros now. */
  readonly block: Block;
  readonly iova: number;
  readonly content: Uint8Array;
  readonly thread: Thread;
}

async function room(options: NvmeModelOptions, work: (room: Room) => Promise<void>, keys = ''): Promise<void> {
  await using server = await spawnDevice('nvme', { device: options });
  await using eal = await Eal.start(QUIET);
  await using thread = new Thread();
  const device = await eal.probe(`vfio-user:${server.socketPath}${keys}`);
  const ssd = device.use(nvmeDriver);
  const block = eal.malloc(MiB, { align: 4096 });
  const bytes = block.bytes();
  for (let i = 0; i < bytes.length; i++) bytes[i] = Math.imul(i, 2654435761) >>> 13;
  const content = Uint8Array.from(bytes);
  await ssd.namespace(1).write({ lba: 0, blocks: 2048, from: block });
  bytes.fill(0);
  await work({ eal, device, ssd, server, block, iova: device.iovaOf(block), content, thread });
  await thread.end();
}

/** Takes the queue in the thread. */
const take = (thread: Thread, queue: NvmeQueue): Promise<void> =>
  thread.run(
    "kept.queue = (await load('index.js')).attach(data); kept.sleep = (await import('node:timers/promises')).setTimeout;",
    queue.share(),
  );

/** Reads the first MiB in pieces of 4 KiB, as many at once as there are slots; returns the statuses other than 0. */
const READ_ALL = `
  const { queue } = kept;
  const free = [...Array(queue.capacity).keys()];
  const bad = [];
  for (let sent = 0, done = 0; done < 256; ) {
    for (; sent < 256 && free.length > 0; sent++) queue.read(free.pop(), 1, sent * 8, 8, data.iova + sent * 4096);
    queue.ring();
    const count = queue.poll();
    for (let i = 0; i < count; i++) {
      if (queue.statuses[i] !== 0) bad.push(queue.statuses[i]);
      free.push(queue.slots[i]);
    }
    done += count;
    if (count === 0) await kept.sleep(1);
  }
  Atomics.store(data.ended, 0, 1);
  Atomics.notify(data.ended, 0);
  return bad;`;

/** Polls here until something comes. */
async function polled(queue: NvmeQueue): Promise<number> {
  let count = 0;
  await until(() => (count = queue.poll()) > 0);
  return count;
}

describe('a queue pair in a worker thread', linux, () => {
  for (const [name, options] of [
    ['doorbells in memory', {}],
    ['doorbells by message', { shadowDoorbells: false }],
    ['doorbells far apart, in the memory of the controller', { doorbellStride: 64, queues: 4, memoryBuffer: MiB }],
  ] as const)
    it(`reads at full depth without the other thread: ${name}`, () =>
      room(options, async ({ ssd, block, iova, content, thread }) => {
        const queue = await ssd.openQueue({ entries: 16, controllerMemory: 'memoryBuffer' in options });
        await take(thread, queue);
        const ended = new Int32Array(new SharedArrayBuffer(4));
        const reading = thread.run<number[]>(READ_ALL, { iova, ended });
        // Nothing runs in this thread meanwhile, not even its event loop.
        assert.notEqual(Atomics.wait(ended, 0, 0, 60_000), 'timed-out');
        assert.deepEqual(await reading, []);
        assert.deepEqual(Buffer.compare(block.bytes(), content), 0);
        await thread.run('kept.queue[Symbol.dispose]()');
        await ssd.takeBack(queue);
        queue.read(3, 1, 0, 8, iova);
        queue.ring();
        assert.equal(await polled(queue), 1);
        assert.deepEqual([queue.slots[0], queue.statuses[0]], [3, 0]);
        await ssd.closeQueue(queue);
      }));

  it('belongs to one thread at a time, and errors name it', () =>
    room({}, async ({ eal, device, ssd, iova, thread }) => {
      const queue = await ssd.openQueue({ entries: 16 });
      const shared = queue.share();
      throwsDma('EBUSY', () => queue.read(0, 1, 0, 8, iova), /offered to other threads/);
      await ssd.takeBack(queue);
      await assert.rejects(thread.run("(await load('index.js')).attach(data)", shared), {
        code: 'EINVAL',
        message: /queue 2 of .* was freed/,
      });
      await take(thread, queue);
      const named = /queue 2 .*worker thread \d+ of process \d+/;
      for (const use of [
        () => queue.read(0, 1, 0, 8, iova),
        () => queue.flush(0, 1),
        () => queue.submit(0, new Uint32Array(16)),
        () => queue.ring(),
        () => queue.poll(),
      ])
        throwsDma('EBUSY', use, named);
      for (const end of [
        () => ssd.takeBack(queue),
        () => ssd.closeQueue(queue),
        () => eal.remove(device),
        () => eal.stop(),
      ])
        await assert.rejects(end(), dmaError('EBUSY', named));
      await using other = new Thread();
      await assert.rejects(take(other, queue), { code: 'EBUSY', message: /worker thread \d+ .* has queue 2/ });
      // None of it has changed anything.
      assert.deepEqual(await thread.run(READ_ALL, { iova, ended: new Int32Array(new SharedArrayBuffer(4)) }), []);
      // From thread to thread, without the one that opened it.
      await thread.run('kept.queue[Symbol.dispose]()');
      await assert.rejects(thread.run('kept.queue.poll()'), { code: 'EBADF' });
      await take(other, queue);
      assert.deepEqual(await other.run(READ_ALL, { iova, ended: new Int32Array(new SharedArrayBuffer(4)) }), []);
    }));

  it('is handed on with commands that run', () =>
    room({ faults: [{ do: 'late', ms: 200, opcode: 2, times: 3 }] }, async ({ ssd, block, iova, content, thread }) => {
      const queue = await ssd.openQueue({ entries: 16 });
      queue.read(5, 1, 0, 8, iova);
      queue.ring();
      await take(thread, queue);
      throwsDma('EBUSY', () => block.free(), /read of 8 blocks at LBA 0 of namespace 1/);
      await thread.run(
        'const { queue } = kept; queue.read(6, 1, 8, 8, data + 4096); queue.ring(); queue.read(7, 1, 16, 8, data + 8192);',
        iova,
      );
      await thread.run('kept.queue[Symbol.dispose]()');
      await ssd.takeBack(queue);
      assert.equal(queue.running, 3);
      throwsDma('EBUSY', () => queue.read(6, 1, 8, 8, iova), /slot 6 is in use: read of 8 blocks at LBA 8/);
      queue.ring();
      const ended: number[] = [];
      while (ended.length < 3) ended.push(...queue.slots.subarray(0, await polled(queue)));
      assert.deepEqual(ended.sort(), [5, 6, 7]);
      assert.equal(Buffer.compare(block.bytes(0, 12288), content.subarray(0, 12288)), 0);
      block.free();
    }));

  it('comes back, too, when another thread has the number of the one that ended by then', () =>
    room({}, async ({ ssd, block, iova, thread }) => {
      const queue = await ssd.openQueue({ entries: 16 });
      await take(thread, queue);
      await thread.end();
      // What has ended is given back within a quarter of a second, and its place in the table of threads is given out again.
      await sleep(700);
      await using other = new Thread();
      await other.run("kept.memory = (await load('index.js')).attach(data)", block.share());
      await assert.rejects(take(other, queue), { code: 'EBUSY', message: /a thread that has ended had queue/ });
      await ssd.takeBack(queue);
      queue.read(3, 1, 0, 8, iova);
      queue.ring();
      assert.equal(await polled(queue), 1);
      await other.end();
    }));

  it('comes back when its thread is ended, and its commands reach no memory any more', () =>
    room(LOSES_WRITES, async ({ ssd, block, iova, content, thread }) => {
      const queue = await ssd.openQueue({ entries: 16 });
      await take(thread, queue);
      await thread.run(
        'const { queue } = kept; for (const slot of [3, 4]) queue.write(slot, 1, slot * 8, 8, data); queue.ring();',
        iova,
      );
      throwsDma('EBUSY', () => block.free(), /LBA 24/);
      await thread.end();
      throwsDma('EBUSY', () => queue.poll(), /was with a thread that has ended/);
      await ssd.takeBack(queue);
      assert.equal(queue.running, 2);
      assert.equal(queue.poll(), 2);
      assert.deepEqual([...queue.slots.subarray(0, 2)], [3, 4]);
      assert.deepEqual([...queue.statuses.subarray(0, 2)], [ABORTED_BY_HOST, ABORTED_BY_HOST]);
      assert.equal(queue.running, 0);
      // It works as a new one, here and in another thread.
      queue.read(3, 1, 0, 8, iova);
      queue.ring();
      assert.equal(await polled(queue), 1);
      assert.equal(Buffer.compare(block.bytes(0, 4096), content.subarray(0, 4096)), 0);
      await using other = new Thread();
      await take(other, queue);
      assert.deepEqual(await other.run(READ_ALL, { iova, ended: new Int32Array(new SharedArrayBuffer(4)) }), []);
      assert.equal(Buffer.compare(block.bytes(), content), 0);
      await other.end();
      await ssd.closeQueue(queue);
      block.free();
    }));

  it('with commands of an ended thread can be closed, and the device removed', () =>
    room(LOSES_WRITES, async ({ eal, device, ssd, iova, thread }) => {
      const [one, two] = [await ssd.openQueue({ entries: 16 }), await ssd.openQueue({ entries: 16 })];
      for (const queue of [one, two]) {
        await take(thread, queue);
        await thread.run('kept.queue.write(3, 1, 0, 8, data); kept.queue.ring();', iova);
      }
      await thread.end();
      await ssd.closeQueue(one);
      await eal.remove(device);
      throwsDma('ECANCELED', () => two.read(1, 1, 0, 8, iova));
    }));

  it('goes through resets of the controller', () =>
    room(LOSES_WRITES, async ({ ssd, block, iova, content, thread }) => {
      const [queue, idle] = [await ssd.openQueue({ entries: 16 }), await ssd.openQueue({ entries: 16 })];
      await using other = new Thread();
      await take(thread, queue);
      await take(other, idle);
      await thread.run('kept.queue.write(3, 1, 0, 8, data); kept.queue.ring();', iova);
      await ssd.reset();
      // Its thread learns of it when it looks.
      const [slot, status] = await thread.run<number[]>(`
        const { queue } = kept;
        while (queue.poll() === 0);
        return [queue.slots[0], queue.statuses[0]];`);
      assert.deepEqual([slot, status], [3, ABORTED_BY_HOST]);
      await thread.run(
        "for (;;) try { kept.queue.read(3, 1, 0, 8, data); return; } catch (error) { if (error.code !== 'EAGAIN') throw error; await kept.sleep(1); }",
        iova,
      );
      await thread.run('kept.queue.ring(); while (kept.queue.poll() === 0) await kept.sleep(1);');
      assert.deepEqual(await thread.run(READ_ALL, { iova, ended: new Int32Array(new SharedArrayBuffer(4)) }), []);
      assert.equal(Buffer.compare(block.bytes(), content), 0);
      // Another reset, of which the thread of the idle queue learns only when it gives it back.
      await ssd.reset();
      await other.run('kept.queue[Symbol.dispose]()');
      await ssd.takeBack(idle);
      idle.read(1, 1, 0, 8, iova);
      idle.ring();
      await polled(idle);
      assert.equal(idle.statuses[0], 0);
    }));

  it('is an error and no fault once the device is lost', () =>
    room({}, async ({ eal, device, ssd, server, iova, thread }) => {
      const queue = await ssd.openQueue({ entries: 16 });
      await take(thread, queue);
      await thread.run('kept.queue.read(3, 1, 0, 8, data); kept.queue.ring();', iova);
      process.kill(server.pid, 'SIGKILL');
      await until(() => eal.find(device.name) === undefined);
      const code = await thread.run(
        `
        for (;;) try { kept.queue.read(4, 1, 0, 8, data); kept.queue.ring(); await kept.sleep(1); } catch (error) { return error.code; }`,
        iova,
      );
      assert.match(String(code), /ECANCELED|EPIPE|EBUSY/);
      await thread.run('kept.queue.poll(); kept.queue[Symbol.dispose]();');
    }));

  it('does not get between the parts of long messages of the other thread', () =>
    room(
      { shadowDoorbells: false, memoryBuffer: MiB },
      async ({ device, ssd, block, iova, content, thread }) => {
        const queue = await ssd.openQueue({ entries: 16 });
        await take(thread, queue);
        const ended = new Int32Array(new SharedArrayBuffer(4));
        let isReading = true;
        const reading = thread
          .run<number[]>(
            `const bad = []; for (let i = 0; i < 4; i++) bad.push(...await (async () => {${READ_ALL}})()); return bad;`,
            { iova, ended },
          )
          .finally(() => (isReading = false));
        const long = new Uint8Array(256 * KiB).fill(7);
        while (isReading) {
          device.access.writeRegion(2, 0, long);
          await new Promise((resolve) => setImmediate(resolve));
        }
        assert.deepEqual(await reading, []);
        assert.equal(Buffer.compare(block.bytes(), content), 0);
        assert.deepEqual(device.access.readRegion(2, 256 * KiB - 1, 1), Uint8Array.of(7));
      },
      ',mmap=never',
    ));

  it('is refused where another thread can not reach the doorbells, or this one polls it', async () => {
    await room({}, async ({ ssd }) => {
      const queue = await ssd.openQueue({ onCompletions: () => undefined });
      throwsDma('ENOTSUP', () => queue.share(), /polled from the event loop/);
    });
    await room(
      { shadowDoorbells: false },
      async ({ ssd }) => {
        const queue = await ssd.openQueue();
        throwsDma('ENOTSUP', () => queue.share(), /stores=answered/);
        queue.flush(0, 1);
        queue.ring();
        await polled(queue);
      },
      ',stores=answered',
    );
    await using eal = await Eal.start(QUIET);
    eal.vdev.define('disk', nvmeModel({}));
    const device = await eal.probe('vdev:disk0');
    const queue = await device.use(nvmeDriver).openQueue();
    throwsDma('ENOTSUP', () => queue.share(), /only be reached from the thread that opened it/);
    queue.flush(0, 1);
    queue.ring();
    await polled(queue);
  });
});

const CALLS = `
  const { attach } = await load('index.js');
  kept.queue = attach(data.queue);
  kept.memory = data.memory === undefined ? undefined : attach(data.memory);
  kept.disk = kept.queue.namespace(1);
  kept.sleep = (await import('node:timers/promises')).setTimeout;`;

/** What a rejected promise says, as plain data. */
const TOLD = `const told = ({ code, message, nvme }) => ({ code, message, outcome: nvme?.outcome });`;

describe('calls over a queue pair in a worker thread', linux, () => {
  for (const interrupts of [true, false])
    it(`read and write with memory that the worker attached, ${interrupts ? 'by interrupts' : 'polled'}`, () =>
      room({ shadowDoorbells: interrupts }, async ({ eal, device, ssd, block, content, thread }) => {
        const queue = await ssd.openQueue({ entries: 8, interrupts });
        // Longer than a command can be, and not in one piece for a command.
        using memory = eal.external.allocate(2 * MiB);
        using mapping = device.dmaMap(memory);
        await thread.run(CALLS, { queue: queue.share(), memory: mapping.share() });
        const calls = thread.run<number>(
          `
          const { disk } = kept;
          const { va } = kept.memory;
          // More calls at once than there are slots.
          await Promise.all([...Array(64).keys()].map((n) => disk.read({ lba: n * 32, into: { va: va + n * 16384, length: 16384 } })));
          await disk.write({ lba: 65536 / disk.blockSize * 100, from: { va, length: 1048576 }, fua: true });
          await disk.flush();
          await disk.read({ lba: 65536 / disk.blockSize * 100, into: { va: va + 1048576 + 512, length: 524288 } });
          return disk.blockSize;`,
        );
        assert.equal(await calls, 512);
        assert.equal(Buffer.compare(memory.bytes(0, MiB), content), 0);
        assert.equal(Buffer.compare(memory.bytes(MiB + 512, MiB / 2), content.subarray(0, MiB / 2)), 0);
        assert.equal(queue.running, 0);
        await thread.run('kept.queue[Symbol.dispose](); kept.memory[Symbol.dispose]()');
        await ssd.takeBack(queue);
        queue.read(0, 1, 8, 8, device.iovaOf(block));
        queue.ring();
        assert.equal(await polled(queue), 1);
        await ssd.closeQueue(queue);
      }));

  it('say what is wrong before anything is sent, and what the controller said', () =>
    room({}, async ({ eal, ssd, device, thread }) => {
      const queue = await ssd.openQueue({ entries: 8 });
      using memory = eal.external.allocate(MiB);
      using mapping = device.dmaMap(memory);
      const unmapped = eal.external.allocate(MiB);
      await thread.run(CALLS, { queue: queue.share(), memory: mapping.share() });
      const told = await thread.run<{ code: string; message: string }[]>(
        `${TOLD}
        const { queue, disk } = kept;
        const { va } = kept.memory;
        const calls = [
          () => disk.read({ lba: 0, into: { va: data, length: 4096 } }),
          () => disk.read({ lba: -1, into: { va, length: 4096 } }),
          () => disk.read({ lba: 0, blocks: 16, into: { va, length: 4096 } }),
          () => disk.write({ lba: 2 ** 40, from: { va, length: 4096 } }),
          async () => queue.namespace(7),
          async () => queue.poll(),
          async () => queue.read(0, 1, 0, 8, 4096),
          async () => queue.wait(1),
        ];
        const said = [];
        for (const call of calls) said.push(await call().then(() => ({}), told));
        return said;`,
        unmapped.va,
      );
      await thread.run('kept.queue[Symbol.dispose](); kept.memory[Symbol.dispose]()');
      const codes = ['EINVAL', 'EINVAL', 'EINVAL', 'ERANGE', 'EINVAL', 'EBUSY', 'EBUSY', 'EBUSY'];
      assert.deepEqual(
        told.map(({ code }) => code),
        codes,
        JSON.stringify(told),
      );
      assert.match(told[0].message, /not mapped/);
      assert.match(told[5].message, /worked by calls/);
      unmapped.unregister();
    }));

  it('are aborted by a signal and by a time limit, which the thread with the controller does', () =>
    room(LOSES_WRITES, async ({ ssd, block, thread }) => {
      const queue = await ssd.openQueue({ entries: 8, interrupts: true });
      await thread.run(CALLS, { queue: queue.share(), memory: undefined });
      const seen = new Int32Array(new SharedArrayBuffer(4));
      const running = thread.run(
        `${TOLD}
        const { disk } = kept;
        const { va, seen } = data;
        const stop = new AbortController();
        const first = disk.write({ lba: 0, from: { va, length: 4096 }, signal: stop.signal }).then(() => ({}), told);
        while (Atomics.load(seen, 0) === 0) await kept.sleep(1);
        const second = disk.write({ lba: 8, from: { va, length: 4096 }, timeoutMs: 500 }).then(() => ({}), told);
        // What comes after them is back: the controller has lost both.
        await disk.read({ lba: 16, into: { va: va + 4096, length: 4096 } });
        stop.abort();
        const said = [await first, await second];
        await disk.read({ lba: 16, into: { va, length: 4096 } });
        return said;`,
        { va: block.va, seen },
      );
      await until(() => queue.running > 0);
      throwsDma('EBUSY', () => block.free(), /write of 8 blocks at LBA/);
      Atomics.store(seen, 0, 1);
      const [aborted, late] = (await running) as { code: string; outcome: string }[];
      assert.deepEqual([aborted.code, aborted.outcome], ['ECANCELED', 'aborted']);
      assert.deepEqual([late.code, late.outcome], ['ETIMEDOUT', 'aborted']);
      await thread.end();
      await ssd.closeQueue(queue);
      block.free();
    }));

  it('settle when the controller is reset, and what waits is sent afterwards', () =>
    room(LOSES_WRITES, async ({ eal, ssd, device, content, thread }) => {
      const queue = await ssd.openQueue({ entries: 2, interrupts: true });
      using memory = eal.external.allocate(MiB);
      using mapping = device.dmaMap(memory);
      await thread.run(CALLS, { queue: queue.share(), memory: mapping.share() });
      const running = thread.run(
        `${TOLD}
        const { disk } = kept;
        const { va } = kept.memory;
        const read = (n) => disk.read({ lba: n * 8, into: { va: va + n * 4096, length: 4096 } }).then(() => ({}), told);
        return Promise.all([disk.write({ lba: 0, from: { va, length: 4096 } }).then(() => ({}), told), read(1), read(2)]);`,
      );
      await until(() => queue.running > 0);
      await ssd.reset();
      const [ran, ...waited] = (await running) as { code?: string; outcome?: string; message?: string }[];
      assert.deepEqual([ran.code, ran.outcome], ['ECANCELED', 'unknown']);
      assert.match(String(ran.message), /reset/);
      assert.deepEqual(waited, [{}, {}]);
      assert.equal(Buffer.compare(memory.bytes(4096, 8192), content.subarray(4096, 12288)), 0);
      await thread.run('kept.queue[Symbol.dispose](); kept.memory[Symbol.dispose]()');
      await ssd.closeQueue(queue);
    }));

  it('have the controller reset when it does what can not be', () =>
    room({ faults: [{ do: 'twice', opcode: 2, times: 1 }] }, async ({ eal, ssd, device, thread }) => {
      const queue = await ssd.openQueue({ entries: 8 });
      using memory = eal.external.allocate(MiB);
      using mapping = device.dmaMap(memory);
      await thread.run(CALLS, { queue: queue.share(), memory: mapping.share() });
      let resets = 0;
      void (async () => {
        for await (const { kind } of ssd.events()) if (kind === 'reset') resets++;
      })();
      // A completion that can not be: the thread can not reset the controller, and asks for it.
      await thread.run(`
        const { disk } = kept;
        const { va } = kept.memory;
        for (let n = 0; n < 9; n++) await disk.read({ lba: 0, into: { va, length: 4096 } }).catch(() => undefined);`);
      await until(() => resets === 1);
      await thread.run('await kept.disk.read({ lba: 8, into: { va: kept.memory.va, length: 4096 } });');
      await thread.run('kept.queue[Symbol.dispose](); kept.memory[Symbol.dispose]()');
      await ssd.closeQueue(queue);
    }));

  it('reject once the device is lost, and giving back what runs is refused', () =>
    room({ faults: [{ do: 'lose', opcode: 2, times: 9 }] }, async ({ eal, ssd, device, server, thread }) => {
      const queue = await ssd.openQueue({ entries: 8, interrupts: true });
      const memory = eal.external.allocate(MiB);
      const mapping = device.dmaMap(memory);
      await thread.run(CALLS, { queue: queue.share(), memory: mapping.share() });
      const running = thread.run<{ code: string }>(
        `${TOLD}
        return kept.disk.read({ lba: 0, into: { va: kept.memory.va, length: 4096 } }).then(() => ({}), told);`,
      );
      await until(() => queue.running === 1);
      await assert.rejects(thread.run('kept.queue[Symbol.dispose]()'), { code: 'EBUSY', message: /1 calls run/ });
      process.kill(server.pid, 'SIGKILL');
      assert.match((await running).code, /ECANCELED|ENODEV/);
      const later = await thread.run<{ code: string }>(
        `${TOLD}
        return kept.disk.read({ lba: 0, into: { va: kept.memory.va, length: 4096 } }).then(() => ({}), told);`,
      );
      assert.match(later.code, /ECANCELED|ENODEV|EINVAL/);
      await thread.run('kept.queue[Symbol.dispose](); kept.memory[Symbol.dispose]()');
      await until(() => eal.find(device.name) === undefined);
    }));

  it('a polled queue waits for its interrupt in the worker, and a reset wakes it', () =>
    room({}, async ({ ssd, iova, thread }) => {
      const queue = await ssd.openQueue({ entries: 8, interrupts: true });
      await take(thread, queue);
      await thread.run(
        `const { queue } = kept;
        queue.read(0, 1, 0, 8, data);
        queue.ring();
        while (queue.poll() === 0) queue.wait(60_000);`,
        iova,
      );
      // An interrupt for what was polled before may be left.
      const waiting = thread.run<number>(
        'let waits = 0; for (;;) { waits++; if (!kept.queue.wait(60_000)) return -1; try { kept.queue.read(1, 1, 0, 8, data); kept.queue.ring(); while (kept.queue.poll() === 0) kept.queue.wait(60_000); } catch (error) { if (error.code === "EAGAIN") return waits; throw error; } }',
        iova,
      );
      await ssd.reset();
      assert.notEqual(await waiting, -1);
      await thread.run('kept.queue.poll(); kept.queue[Symbol.dispose]()');
      await ssd.takeBack(queue);
      const plain = await ssd.openQueue();
      await take(thread, plain);
      await assert.rejects(thread.run('kept.queue.wait(1)'), { code: 'ENOTSUP', message: /has no interrupt/ });
      await thread.run('kept.queue[Symbol.dispose]()');
    }));
});
