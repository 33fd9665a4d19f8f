/** Copy engines of a primary that secondaries work. */
import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { dmaError, throwsDma } from '../test/shared/errors.js';
import { ownPlaces } from '../test/shared/places.js';
import { SecondaryProcess } from '../test/shared/secondary-process.js';
import { until } from '../test/shared/until.js';
import type { AttachedCopyEngine, CopyEngine } from './entry/driver.js';
import { spawnDevice } from './entry/model.js';
import { copyEngineDriver, Eal, type Device } from './index.js';
import { openPlatform } from './platform/open.js';

ownPlaces();

interface Room {
  readonly eal: Eal;
  readonly device: Device;
  readonly engine: CopyEngine;
  readonly store: SecondaryProcess;
  /** Ends the device, which is another process. */
  readonly end: () => Promise<void>;
}

async function room(where: 'served' | 'here', work: (room: Room) => Promise<void>): Promise<void> {
  await using server = where === 'served' ? await spawnDevice('copy') : undefined;
  const eal = await Eal.start({ name: 'store', memory: { noHuge: true }, onForgotten: () => undefined });
  try {
    const device = await eal.probe(server === undefined ? 'vdev:copy0' : `vfio-user:${server.socketPath}`);
    await using store = await SecondaryProcess.attach('store', 'copier');
    const end = async (): Promise<void> => server?.close();
    await work({ eal, device, engine: device.use(copyEngineDriver), store, end });
  } finally {
    await eal.stop();
  }
}

/** What functions keep there. */
interface Kept {
  readonly engine: AttachedCopyEngine;
  readonly block: { bytes(offset?: number, length?: number): Uint8Array; readonly va: number; free(): Promise<void> };
}

/** Opens the engine, and a block of 2 MiB, there. */
const open = (store: SecondaryProcess): Promise<number> =>
  store.run(async ({ store, kept }) => {
    const [device] = await store.devices();
    const block = await store.malloc(2 ** 21, { align: 4096 });
    Object.assign(kept, { block, engine: await device.openCopyEngine() });
    return block.va;
  });

/** Copies the first MiB to the second there, 64 pieces of 4 KiB at once. @returns the codes other than 0, and whether all was copied */
const copyAll = (store: SecondaryProcess): Promise<{ bad: number[]; same: boolean }> =>
  store.run(async ({ kept }) => {
    const { engine, block } = kept as Kept;
    const bytes = block.bytes();
    for (let i = 0; i < 2 ** 20; i++) bytes[i] = Math.imul(i, 2654435761) >>> 13;
    bytes.fill(0, 2 ** 20);
    const iova = engine.iovaOf(block as never);
    const bad: number[] = [];
    for (let sent = 0, done = 0; done < 256;) {
      for (; sent < 256 && sent - done < 64; sent++)
        engine.submit(iova + sent * 4096, iova + 2 ** 20 + sent * 4096, 4096);
      engine.ring();
      const count = engine.poll();
      for (let i = 0; i < count; i++) if (engine.codes[i] !== 0) bad.push(engine.codes[i]);
      done += count;
      if (count === 0) await new Promise((resolve) => setTimeout(resolve, 1));
    }
    return { bad, same: Buffer.compare(bytes.subarray(0, 2 ** 20), bytes.subarray(2 ** 20)) === 0 };
  });

/** Disposes the engine there. */
const giveBack = (store: SecondaryProcess): Promise<void> =>
  store.run(({ kept }) => (kept as Kept).engine[Symbol.dispose]());

/** The code of the next submission there. */
const codeOf = (store: SecondaryProcess): Promise<string> =>
  store.run(({ kept }) => {
    const { engine } = kept as Kept;
    try {
      engine.submit(0, 4096, 4096);
      return 'none';
    } catch (error) {
      return `${(error as { code: string }).code} ${engine.live}`;
    }
  });

/** Copies a page in the primary: it has the engine. */
async function copyHere(eal: Eal, device: Device, engine: CopyEngine): Promise<void> {
  const block = eal.malloc(8192, { align: 4096 });
  block.bytes(0, 4096).fill(3);
  const iova = device.iovaOf(block);
  assert.equal(engine.poll(), 0);
  await engine.copy(iova, iova + 4096, 4096);
  assert.ok(block.bytes(4096, 4096).every((byte) => byte === 3));
  block.free();
}

const isFree = (engine: CopyEngine): boolean => {
  try {
    engine.poll();
    return true;
  } catch {
    return false;
  }
};

describe('a copy engine in a secondary process', { skip: openPlatform().limitation ?? false }, () => {
  for (const where of ['served', 'here'] as const)
    it(`copies, of a device ${where}, and goes from one to the other`, () =>
      room(where, async ({ eal, device, engine, store }) => {
        await copyHere(eal, device, engine);
        await open(store);
        assert.deepEqual(await copyAll(store), { bad: [], same: true });
        throwsDma('EBUSY', () => engine.submit(0, 4096, 4096), /with process \d+/);
        throwsDma('EBUSY', () => engine.share(), /process/);
        await assert.rejects(engine.takeBack(), dmaError('EBUSY', /with process \d+/));
        await assert.rejects(eal.remove(device), dmaError('EBUSY', /with process \d+/));
        await using other = await SecondaryProcess.attach('store', 'other');
        await assert.rejects(open(other), dmaError('EBUSY', /with process \d+/));
        await giveBack(store);
        assert.equal(await codeOf(store), 'EBADF false');
        await until(() => isFree(engine));
        await copyHere(eal, device, engine);
        await open(other);
        assert.deepEqual(await copyAll(other), { bad: [], same: true });
        await other.kill();
        await until(() => isFree(engine));
        await copyHere(eal, device, engine);
      }));

  it('is given up with its process: nothing reaches the memory that runs in copies', () =>
    room('served', async ({ eal, device, engine, store }) => {
      const heap = eal.heaps.find('socket_0');
      assert.ok(heap);
      const va = await open(store);
      await store.run(({ kept }) => {
        const { engine, block } = kept as Kept;
        const iova = engine.iovaOf(block as never);
        for (let n = 0; n < 2000; n++) engine.submit(iova, iova + 2 ** 20, 2 ** 20);
        engine.ring();
      });
      const block = heap.blockAt(va);
      assert.ok(block);
      assert.throws(() => block.free(), dmaError('EBUSY', /a copy of 1048576 bytes/));
      await store.kill();
      await until(() => !block.live);
      await until(() => isFree(engine));
      await copyHere(eal, device, engine);
    }));

  it('is an error once the device, or the primary, is gone', () =>
    room('served', async ({ eal, store, end }) => {
      await open(store);
      await end();
      await until(() => eal.devices().length === 0);
      for (let code = ''; code !== 'ECANCELED false'; code = await codeOf(store))
        await new Promise((resolve) => setTimeout(resolve, 5));
      await eal.probe('vdev:copy0');
      await open(store);
      assert.deepEqual(await copyAll(store), { bad: [], same: true });
      await eal.stop();
      await store.run(async ({ store }) => {
        while (store.live) await new Promise((resolve) => setTimeout(resolve, 1));
      });
      assert.equal(await codeOf(store), 'ECONNRESET false');
      await store.run(({ store }) => store.close());
    }));

  it('is refused while copies run, and for what is none', () =>
    room('here', async ({ eal, engine, device, store }) => {
      const block = eal.malloc(8192, { align: 4096 });
      const iova = device.iovaOf(block);
      let asks = true;
      const copying = Array.from({ length: 4 }, async () => {
        while (asks) await engine.copy(iova, iova + 4096, 4096);
      });
      await assert.rejects(open(store), dmaError('EBUSY', /copies run/));
      asks = false;
      await Promise.all(copying);
      await open(store);
      assert.deepEqual(await copyAll(store), { bad: [], same: true });
      await eal.probe('vdev:edu0');
      const code = await store.run(async ({ store }) => {
        const device = (await store.devices()).find(({ driver }) => driver === 'edu');
        return device?.openCopyEngine().then(
          () => 'none',
          (error: unknown) => (error as { code: string }).code,
        );
      });
      assert.equal(code, 'EINVAL');
      block.free();
    }));

  it('can also be its own: an Eal there maps memory of the primary for devices that it opens itself', () =>
    room('here', async ({ eal, store }) => {
      const memory = eal.external.allocate(65536, { label: 'common' });
      memory.bytes(0, 4096).fill(8);
      const done = await store.run(async ({ anydma, store }) => {
        const attached = await store.external.attach('common');
        const own = await anydma.Eal.start({ onForgotten: () => undefined });
        const device = await own.probe('vdev:copy0');
        const registered = own.external.fromAddress(attached.va, attached.length);
        const mapping = device.dmaMap(registered);
        await device.use(anydma.copyEngineDriver).copy(mapping.iova, mapping.iova + 4096, 4096);
        mapping.unmap();
        registered.unregister();
        await own.stop();
        await attached.detach();
        return attached.live;
      });
      assert.equal(done, false);
      assert.ok(memory.bytes(4096, 4096).every((byte) => byte === 8));
      memory.unregister();
    }));
});
