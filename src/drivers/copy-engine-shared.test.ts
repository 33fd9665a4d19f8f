/** Copy engines that worker threads drive, over served ones. */
import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { dmaError, throwsDma } from '../../test/shared/errors.js';
import { Thread } from '../../test/shared/thread.js';
import { until } from '../../test/shared/until.js';
import type { Device } from '../bus/model.js';
import { Eal } from '../eal.js';
import type { Mapping } from '../dma/mapping.js';
import type { ExternalMemory } from '../memory/external.js';
import { openPlatform } from '../platform/open.js';
import { MiB } from '../units.js';
import { spawnDevice, type DeviceProcess } from '../vfio-user/device-process.js';
import { COPY_ABANDONED, type CopyEngine } from './copy-engine.js';
import { copyEngineDriver } from './copy-engine-driver.js';

const QUIET = { memory: { onNotice: () => undefined }, onForgotten: () => undefined };
const linux = { skip: openPlatform().limitation ?? false };

interface Room {
  readonly eal: Eal;
  readonly server: DeviceProcess;
  readonly device: Device;
  readonly engine: CopyEngine;
  /** 2 MiB: the first half is copied to the second. */
  readonly memory: ExternalMemory;
  readonly mapping: Mapping;
  readonly thread: Thread;
}

async function room(work: (room: Room) => Promise<void>): Promise<void> {
  await using server = await spawnDevice('copy');
  await using eal = await Eal.start(QUIET);
  await using thread = new Thread();
  const device = await eal.probe(`vfio-user:${server.socketPath}`);
  const memory = eal.external.allocate(2 * MiB);
  const bytes = memory.bytes(0, MiB);
  for (let i = 0; i < bytes.length; i++) bytes[i] = Math.imul(i, 2654435761) >>> 13;
  const mapping = device.dmaMap(memory);
  await work({ eal, server, device, engine: device.use(copyEngineDriver), memory, mapping, thread });
  await thread.end();
}

const take = (thread: Thread, { engine, mapping }: Pick<Room, 'engine' | 'mapping'>): Promise<void> =>
  thread.run(
    `const { attach } = await load('index.js');
    kept.engine = attach(data.engine);
    kept.mapping = attach(data.mapping);
    kept.sleep = (await import('node:timers/promises')).setTimeout;`,
    { engine: engine.share(), mapping: mapping.share() },
  );

/** Copies the first MiB to the second in pieces of 4 KiB, 64 at once; returns the codes other than 0. */
const COPY_ALL = `
  const { engine, mapping } = kept;
  const iova = engine.iovaOf({ va: mapping.va, length: mapping.length });
  const bad = [];
  for (let sent = 0, done = 0; done < 256; ) {
    for (; sent < 256 && sent - done < 64; sent++) engine.submit(iova + sent * 4096, iova + 1048576 + sent * 4096, 4096);
    engine.ring();
    const count = engine.poll();
    for (let i = 0; i < count; i++) if (engine.codes[i] !== 0) bad.push(engine.codes[i]);
    done += count;
    if (count === 0) await kept.sleep(1);
  }
  if (data?.ended !== undefined) { Atomics.store(data.ended, 0, 1); Atomics.notify(data.ended, 0); }
  return bad;`;

const isCopied = (memory: ExternalMemory): boolean =>
  Buffer.compare(memory.bytes(0, MiB), memory.bytes(MiB, MiB)) === 0;

describe('a copy engine in a worker thread', linux, () => {
  it('copies without the other thread, and goes back and forth', () =>
    room(async (all) => {
      const { engine, memory, mapping, thread } = all;
      engine.submit(mapping.iova, mapping.iova + MiB, 4096);
      engine.ring();
      await until(() => engine.poll() > 0);
      await take(thread, all);
      const ended = new Int32Array(new SharedArrayBuffer(4));
      const copying = thread.run<number[]>(COPY_ALL, { ended });
      // Nothing runs in this thread meanwhile, not even its event loop.
      assert.notEqual(Atomics.wait(ended, 0, 0, 60_000), 'timed-out');
      assert.deepEqual(await copying, []);
      assert.ok(isCopied(memory));
      // Handed on with a copy that runs.
      await thread.run(
        'const { engine, mapping } = kept; engine.submit(mapping.iova, mapping.iova + 1048576, 4096); engine.ring(); engine[Symbol.dispose]();',
      );
      await assert.rejects(thread.run('kept.engine.poll()'), { code: 'EBADF' });
      await engine.takeBack();
      await until(() => engine.poll() > 0);
      assert.equal(engine.codes[0], 0);
      await engine.copy(mapping.iova, mapping.iova + MiB, MiB);
    }));

  it('belongs to one thread at a time, and errors name it', () =>
    room(async (all) => {
      const { eal, device, engine, mapping, thread } = all;
      const shared = engine.share();
      throwsDma('EBUSY', () => engine.poll(), /offered to other threads/);
      await engine.takeBack();
      await assert.rejects(thread.run("(await load('index.js')).attach(data)", shared), {
        code: 'EINVAL',
        message: /was freed/,
      });
      await take(thread, all);
      const named = /(is with|held by) worker thread \d+ of process \d+/;
      throwsDma('EBUSY', () => engine.poll(), named);
      throwsDma('EBUSY', () => engine.ring(), named);
      throwsDma('EBUSY', () => engine.submit(mapping.iova, mapping.iova + MiB, 4096), named);
      await assert.rejects(engine.copy(mapping.iova, mapping.iova + MiB, 4096), dmaError('EBUSY', named));
      for (const end of [() => engine.takeBack(), () => eal.remove(device), () => eal.stop()])
        await assert.rejects(end(), dmaError('EBUSY', named));
      await using other = new Thread();
      await assert.rejects(take(other, all), { code: 'EBUSY', message: /worker thread \d+ .* has the engine/ });
      assert.deepEqual(await thread.run(COPY_ALL), []);
      await thread.run('kept.engine[Symbol.dispose](); kept.mapping[Symbol.dispose]()');
      await take(other, all);
      assert.deepEqual(await other.run(COPY_ALL), []);
    }));

  it('comes back when its thread is ended: the device is reset, and what ran is told', () =>
    room(async (all) => {
      const { engine, memory, mapping, server, thread } = all;
      await take(thread, all);
      // The server stands still, so that the copies run for as long as that.
      process.kill(server.pid, 'SIGSTOP');
      const cookies = await thread.run<number[]>(
        `const { engine, mapping } = kept;
        const cookies = [0, 1].map((n) => engine.submit(mapping.iova + n * 4096, mapping.iova + 1048576 + n * 4096, 4096));
        engine.ring();
        // Never announced.
        engine.submit(mapping.iova, mapping.iova + 1048576 + 8192, 4096);
        kept.mapping[Symbol.dispose]();
        return cookies;`,
      );
      throwsDma('EBUSY', () => mapping.unmap(), /a copy of 4096 bytes/);
      await thread.end();
      throwsDma('EBUSY', () => mapping.unmap(), /a copy of 4096 bytes/);
      throwsDma('EBUSY', () => engine.poll(), /one that has ended/);
      process.kill(server.pid, 'SIGCONT');
      await engine.takeBack();
      assert.equal(engine.poll(), 2);
      assert.deepEqual([...engine.cookies.subarray(0, 2)], cookies);
      for (const code of engine.codes.subarray(0, 2)) assert.ok(code === 0 || code === COPY_ABANDONED, String(code));
      await engine.copy(mapping.iova, mapping.iova + MiB, MiB);
      assert.ok(isCopied(memory));
      mapping.unmap();
    }));

  it('comes back, too, when another thread has the number of the one that ended by then', () =>
    room(async (all) => {
      const { engine, memory, mapping, thread } = all;
      await take(thread, all);
      await thread.end();
      // What has ended is given back within a quarter of a second, and its place in the table of threads is given out again.
      await sleep(700);
      await using other = new Thread();
      await other.run("kept.memory = (await load('index.js')).attach(data)", memory.share());
      await assert.rejects(take(other, all), { code: 'EBUSY', message: /a thread that has ended had the engine/ });
      await engine.takeBack();
      await engine.copy(mapping.iova, mapping.iova + MiB, MiB);
      await take(other, all);
      assert.deepEqual(await other.run(COPY_ALL), []);
      await other.end();
    }));

  it('is an error and no fault once the device is lost', () =>
    room(async (all) => {
      const { eal, device, engine, server, thread } = all;
      await take(thread, all);
      process.kill(server.pid, 'SIGKILL');
      await until(() => eal.find(device.name) === undefined);
      const code = await thread.run(`
        for (;;) try { kept.engine.submit(4096, 8192, 4096); kept.engine.ring(); kept.engine.poll(); await kept.sleep(1); }
        catch (error) { if (error.code !== 'EPIPE') return error.code; }`);
      assert.match(String(code), /ECANCELED|ENODEV|ECONNRESET/);
      assert.equal(await thread.run('return kept.engine.live'), false);
      throwsDma('ENODEV', () => engine.share());
      await thread.run('kept.engine[Symbol.dispose](); kept.mapping[Symbol.dispose]()');
    }));

  it('two workers drive two engines at the same time', () =>
    room(async (one) =>
      room(async (two) => {
        await take(one.thread, one);
        await take(two.thread, two);
        assert.deepEqual(await Promise.all([one.thread.run(COPY_ALL), two.thread.run(COPY_ALL)]), [[], []]);
        assert.ok(isCopied(one.memory) && isCopied(two.memory));
      }),
    ));

  it('is refused while copies run here, and where another thread can not reach the registers', async () => {
    await room(async ({ engine, mapping }) => {
      const copying = engine.copy(mapping.iova, mapping.iova + MiB, MiB);
      throwsDma('EBUSY', () => engine.share(), /1 copies run/);
      await copying;
      engine.share();
      await engine.takeBack();
    });
    await using eal = await Eal.start(QUIET);
    const device = await eal.probe('vdev:copy0');
    throwsDma('ENOTSUP', () => device.use(copyEngineDriver).share(), /only be reached from the thread that opened it/);
  });
});
