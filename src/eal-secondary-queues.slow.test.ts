/** Queue pairs of a primary's NVMe controller that secondaries work. */
import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { dmaError } from '../test/shared/errors.js';
import { ownPlaces } from '../test/shared/places.js';
import { SecondaryProcess } from '../test/shared/secondary-process.js';
import { until } from '../test/shared/until.js';
import { nvmeDriver, type Nvme } from './entry/nvme.js';
import { spawnDevice } from './entry/model.js';
import { Eal, MiB, type Device } from './index.js';
import { openPlatform } from './platform/open.js';
import type { NvmeModelOptions } from './vfio-user/devices/nvme/options.js';

ownPlaces();

interface Room {
  readonly eal: Eal;
  readonly device: Device;
  readonly ssd: Nvme;
  readonly store: SecondaryProcess;
  /** The first MiB of the disk. */
  readonly content: Uint8Array;
}

async function room(options: NvmeModelOptions, work: (room: Room) => Promise<void>): Promise<void> {
  await using server = await spawnDevice('nvme', { device: options });
  const eal = await Eal.start({ name: 'store', memory: { noHuge: true }, onForgotten: () => undefined });
  try {
    const device = await eal.probe(`vfio-user:${server.socketPath}`);
    const ssd = device.use(nvmeDriver);
    const block = eal.malloc(MiB, { align: 4096 });
    const bytes = block.bytes();
    for (let i = 0; i < bytes.length; i++) bytes[i] = Math.imul(i, 2654435761) >>> 13;
    await ssd.namespace(1).write({ lba: 0, blocks: 2048, from: block });
    const content = Uint8Array.from(bytes);
    block.free();
    await using store = await SecondaryProcess.attach('store', 'worker');
    await work({ eal, device, ssd, store, content });
  } finally {
    await eal.stop();
  }
}

/** Opens a queue, and a block of 1 MiB, there. */
const open = (store: SecondaryProcess, entries = 16): Promise<number> =>
  store.run(async ({ store, kept }, entries) => {
    const [device] = await store.devices();
    const block = await store.malloc(2 ** 20, { align: 4096, zero: true });
    const queue = await device.openQueue({ entries });
    Object.assign(kept, { all: { queue, block, iova: await device.iovaOf(block) } });
    return block.va;
  }, entries);

/** What functions keep there. */
interface Kept {
  readonly queue: Awaited<ReturnType<Awaited<ReturnType<SecondaryDevices>>[number]['openQueue']>>;
  readonly block: { bytes(): Uint8Array };
  readonly iova: number;
}
type SecondaryDevices = import('./share/secondary.js').Secondary['devices'];

/** Reads the first MiB there, as much at once as the queue takes. @returns statuses other than 0, and the bytes' checksum */
const readAll = (store: SecondaryProcess): Promise<{ bad: number[]; sum: number }> =>
  store.run(async ({ kept }) => {
    const { queue, block, iova } = Reflect.get(kept, 'all') as Kept;
    const free = [...Array(queue.capacity).keys()];
    const bad: number[] = [];
    for (let sent = 0, done = 0; done < 256;) {
      for (; sent < 256 && free.length > 0; sent++) queue.read(free.pop() ?? 0, 1, sent * 8, 8, iova + sent * 4096);
      queue.ring();
      const count = queue.poll();
      for (let i = 0; i < count; i++) {
        if (queue.statuses[i] !== 0) bad.push(queue.statuses[i]);
        free.push(queue.slots[i]);
      }
      done += count;
      if (count === 0) await new Promise((resolve) => setTimeout(resolve, 1));
    }
    const bytes = block.bytes();
    let sum = 0;
    for (let i = 0; i < bytes.length; i++) sum = (Math.imul(sum, 31) + bytes[i]) >>> 0;
    return { bad, sum };
  });

const sumOf = (bytes: Uint8Array): number => bytes.reduce((sum, byte) => (Math.imul(sum, 31) + byte) >>> 0, 0);

/** Has no thread or process a queue? */
function isFree(ssd: Nvme): boolean {
  try {
    ssd.mustBeFree('remove');
    return true;
  } catch {
    return false;
  }
}

describe('a queue pair in a secondary process', { skip: openPlatform().limitation ?? false }, () => {
  for (const shadowDoorbells of [true, false])
    it(`reads at full depth, with doorbells ${shadowDoorbells ? 'in memory' : 'that the primary stores'}`, () =>
      room({ shadowDoorbells }, async ({ eal, device, ssd, store, content }) => {
        await open(store);
        assert.deepEqual(await readAll(store), { bad: [], sum: sumOf(content) });
        await assert.rejects(eal.remove(device), dmaError('EBUSY', /queue 2 is with process \d+/));
        // Given back, and opened again: the number, and the memory, are free.
        await store.run(async ({ kept }) => (Reflect.get(kept, 'all') as Kept).queue[Symbol.dispose]());
        await until(() => isFree(ssd));
        await open(store, 64);
        assert.deepEqual(await readAll(store), { bad: [], sum: sumOf(content) });
      }));

  it('ends with its process: what runs is given up before its memory is freed', () =>
    room({ faults: [{ do: 'lose', opcode: 2, times: 3 }] }, async ({ eal, device, ssd, store }) => {
      const heap = eal.heaps.find('socket_0');
      assert.ok(heap);
      const before = heap.statistics().allocatedBlocks;
      const va = await open(store);
      await store.run(async ({ kept }) => {
        const { queue, iova } = Reflect.get(kept, 'all') as Kept;
        for (const slot of [1, 2, 3]) queue.read(slot, 1, slot * 8, 8, iova + slot * 4096);
        queue.ring();
      });
      const block = heap.blockAt(va);
      assert.ok(block);
      assert.throws(() => block.free(), dmaError('EBUSY', /read of 8 blocks at LBA 8/));
      await store.kill();
      await until(() => !block.live);
      assert.equal(heap.statistics().allocatedBlocks, before);
      // The controller has no trace of it: another secondary has the same queue.
      await using other = await SecondaryProcess.attach('store', 'other');
      await open(other);
      assert.deepEqual((await readAll(other)).bad, []);
      assert.equal(ssd.ready, true);
      await other.kill();
      await until(() => eal.secondaries.length === 0);
      await until(() => isFree(ssd));
      await eal.remove(device);
    }));

  it('goes through a reset of the controller, and is an error once the primary has stopped', () =>
    // The reset may come before the primary has stored the doorbell: then it is the next read that is late.
    room({ faults: [{ do: 'late', ms: 1000, opcode: 2, times: 1 }] }, async ({ eal, ssd, store, content }) => {
      await open(store);
      await store.run(async ({ kept }) => {
        const { queue, iova } = Reflect.get(kept, 'all') as Kept;
        queue.read(3, 1, 0, 8, iova);
        queue.ring();
      });
      await ssd.reset();
      const ended = await store.run(async ({ kept }) => {
        const { queue, iova } = Reflect.get(kept, 'all') as Kept;
        while (queue.poll() === 0) await new Promise((resolve) => setTimeout(resolve, 1));
        const ended = [queue.slots[0], queue.statuses[0]];
        for (;;)
          try {
            queue.read(3, 1, 0, 8, iova);
            break;
          } catch (error) {
            if ((error as { code: string }).code !== 'EAGAIN') throw error;
            await new Promise((resolve) => setTimeout(resolve, 1));
          }
        queue.ring();
        while (queue.poll() === 0) await new Promise((resolve) => setTimeout(resolve, 1));
        return ended;
      });
      assert.deepEqual(ended, [3, 0x371]);
      assert.deepEqual(await readAll(store), { bad: [], sum: sumOf(content) });
      await eal.stop();
      const code = await store.run(async ({ store, kept }) => {
        const { queue, iova } = Reflect.get(kept, 'all') as Kept;
        while (store.live) await new Promise((resolve) => setTimeout(resolve, 1));
        try {
          queue.read(1, 1, 0, 8, iova);
          return 'none';
        } catch (error) {
          return (error as { code: string }).code;
        } finally {
          await store.close();
        }
      });
      assert.equal(code, 'ECONNRESET');
    }));

  it('looks addresses up by itself, and follows what is mapped and unmapped', () =>
    room({}, async ({ eal, store }) => {
      await open(store);
      const found = await store.run(async ({ store, kept }) => {
        const { queue, block, iova } = Reflect.get(kept, 'all') as Kept & { block: { va: number; length: number } };
        const codes: string[] = [];
        const codeOf = (work: () => unknown): void => {
          try {
            work();
            codes.push('none');
          } catch (error) {
            codes.push((error as { code: string }).code);
          }
        };
        const same = queue.iovaOf(block) === iova && queue.iovaOf(block.va + 4096) === iova + 4096;
        const more = await store.external.allocate(65536);
        codeOf(() => queue.iovaOf(more));
        const [device] = await store.devices();
        const mapping = await device.dmaMap(more);
        const later = queue.iovaOf(more) === mapping.iova;
        await mapping.unmap();
        codeOf(() => queue.iovaOf(more));
        queue[Symbol.dispose]();
        codeOf(() => queue.iovaOf(block));
        return { same, later, codes };
      });
      assert.deepEqual(found, { same: true, later: true, codes: ['EINVAL', 'EINVAL', 'EINVAL'] });
      // The primary goes on telling nobody.
      using memory = eal.external.allocate(65536);
      const [device] = eal.devices();
      device.dmaMap(memory).unmap();
    }));

  it('has calls with promises, and an interrupt of its own', () =>
    room({}, async ({ store, content }) => {
      const done = await store.run(async ({ store, kept }) => {
        const [device] = await store.devices();
        const block = await store.malloc(2 ** 20, { align: 4096, zero: true });
        const queue = await device.openQueue({ entries: 16, interrupts: true });
        const iova = queue.iovaOf(block);
        const waits = [];
        for (let round = 0; round < 20; round++) {
          queue.read(0, 1, 0, 8, iova);
          queue.ring();
          while (queue.poll() === 0) waits.push(queue.wait(5000));
        }
        const [late, waited] = [waits.includes(false), waits.length > 10];
        const disk = queue.namespace(1);
        const size = disk.blockSize;
        const calls = Array.from({ length: 32 }, (_, n) =>
          disk.read({ lba: n * 64, blocks: 64, into: { va: block.va + n * 64 * size, length: 64 * size } }),
        );
        await Promise.all(calls);
        const bytes = block.bytes();
        let sum = 0;
        for (let i = 0; i < bytes.length; i++) sum = (Math.imul(sum, 31) + bytes[i]) >>> 0;
        bytes.fill(7);
        await disk.write({ lba: 4096, blocks: 64, from: { va: block.va, length: 64 * size } });
        await disk.flush();
        const out = await disk
          .read({ lba: 2 ** 40, blocks: 1, into: block })
          .catch((error: unknown) => (error as { code: string }).code);
        Object.assign(kept, { queue, disk, block });
        return { late, waited, sum, out };
      });
      assert.deepEqual(done, { late: false, waited: true, sum: sumOf(content), out: 'ERANGE' });
    }));

  it('rejects calls that run when the primary stops, and when it is closed', () =>
    room({ faults: [{ do: 'lose', opcode: 2, times: 2 }] }, async ({ eal, store }) => {
      const begin = (target: SecondaryProcess): Promise<void> =>
        target.run(async ({ store, kept }) => {
          const [device] = await store.devices();
          const block = await store.malloc(65536, { align: 4096 });
          const queue = await device.openQueue({ entries: 16, interrupts: true });
          const call = queue
            .namespace(1)
            .read({ lba: 0, blocks: 8, into: { va: block.va, length: 4096 }, timeoutMs: 600_000 })
            .then(
              () => 'read',
              (error: unknown) => (error as { code: string }).code,
            );
          Object.assign(kept, { call, queue });
        });
      await begin(store);
      await using other = await SecondaryProcess.attach('store', 'other');
      await begin(other);
      const closed = await other.run(async ({ store, kept }) => {
        const { call, queue } = kept as { call: Promise<string>; queue: { live: boolean } };
        await store.close();
        return [await call, queue.live];
      });
      assert.deepEqual(closed, ['ECANCELED', false]);
      await eal.stop();
      const stopped = await store.run(({ kept }) => (kept as { call: Promise<string> }).call);
      assert.match(stopped, /^(ECONNRESET|ECANCELED)$/);
      assert.equal(await store.run(async ({ store }) => store.close()), undefined);
    }));

  it('is refused for what is no NVMe controller, and what can not be', () =>
    room({}, async ({ eal, store }) => {
      await eal.probe('vdev:edu0');
      const codes = await store.run(async ({ store }) => {
        const devices = await store.devices();
        const codes: string[] = [];
        for (const device of devices)
          for (const options of [{ entries: 1 }, { entries: 16, bogus: 1 }, { interrupts: 1 as never }])
            await device.openQueue(options).catch((error: unknown) => codes.push((error as { code: string }).code));
        return codes;
      });
      assert.deepEqual(codes, Array<string>(6).fill('EINVAL'));
    }));
});
