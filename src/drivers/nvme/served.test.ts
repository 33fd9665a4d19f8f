/** The NVMe driver and the served controller together, in one process and in two. */
import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { existsSync, mkdtempSync, readFileSync, rmSync, statSync, truncateSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, it } from 'node:test';
import { throwsDma } from '../../../test/shared/errors.js';
import { againstModel } from '../../../test/shared/nvme-model.js';
import type { Device } from '../../bus/model.js';
import { Eal } from '../../eal.js';
import { isDmaError } from '../../errors.js';
import { openPlatform } from '../../platform/open.js';
import { ADMIN, FEATURE, LOG } from '../../nvme/commands.js';
import { errorEntriesOf } from '../../nvme/log-pages.js';
import { KiB, MiB, type Va } from '../../units.js';
import { spawnDevice } from '../../vfio-user/device-process.js';
import type { ModelHost } from '../../vfio-user/devices/model.js';
import type { NvmeFault } from '../../vfio-user/devices/nvme/faults.js';
import { NODE_CALLS, type ImageCalls } from '../../vfio-user/devices/nvme/image.js';
import { nvmeModel } from '../../vfio-user/devices/nvme/nvme.js';
import type { NvmeModelOptions } from '../../vfio-user/devices/nvme/options.js';
import type { NvmeNamespace } from './namespace.js';
import type { Nvme } from './nvme.js';
import { nvmeDriver } from './nvme-driver.js';

const QUIET = { memory: { onNotice: () => undefined } };
/** Is any lent? */
const GET_HOST_MEMORY = { opcode: ADMIN.GET_FEATURES, cdw10: FEATURE.HOST_MEMORY };
const linux = { skip: openPlatform().limitation ?? false };
const sum = (bytes: Uint8Array): string => createHash('sha256').update(bytes).digest('hex');

interface Room {
  readonly eal: Eal;
  readonly device: Device;
  readonly ssd: Nvme;
  readonly disk: NvmeNamespace;
}

/** In this process. */
async function inProcess(
  options: NvmeModelOptions,
  work: (room: Room) => Promise<void>,
  calls?: ImageCalls,
): Promise<void> {
  await using eal = await Eal.start(QUIET);
  eal.vdev.define('disk', nvmeModel(options, undefined, calls));
  const device = await eal.probe('vdev:disk0');
  const ssd = device.use(nvmeDriver);
  await work({ eal, device, ssd, disk: ssd.namespaces[0] });
}

/** In a process of its own. */
async function served(
  options: NvmeModelOptions,
  work: (room: Room & { readonly pid: number }) => Promise<void>,
): Promise<void> {
  await using server = await spawnDevice('nvme', { device: options });
  await using eal = await Eal.start(QUIET);
  const device = await eal.probe(`vfio-user:${server.socketPath}`);
  const ssd = device.use(nvmeDriver);
  await work({ eal, device, ssd, disk: ssd.namespaces[0], pid: server.pid });
}

/** Every transfer size, at odd alignments, is read back as it was written. */
async function everySize({ eal, disk }: Room): Promise<void> {
  const block = eal.malloc(4 * MiB, { align: 4096 });
  const bytes = block.bytes();
  for (let i = 0; i < bytes.length; i++) bytes[i] = Math.imul(i, 2654435761) >>> 13;
  const back = eal.malloc(2 * MiB, { align: 4096 });
  for (const [blocks, offset] of [
    [1, 0],
    [1, 4],
    [2, 4092],
    [7, 512],
    [8, 0],
    [9, 4],
    [16, 1024],
    [33, 4],
    [255, 8],
    [256, 0],
    [2048, 4],
    [2049, 0],
    [3000, 20],
  ]) {
    const length = blocks * 512;
    const from = { va: (block.va + offset) as Va, length };
    const into = { va: (back.va + offset) as Va, length };
    await disk.write({ lba: blocks, blocks, from });
    back.bytes().fill(0);
    await disk.read({ lba: blocks, blocks, into });
    assert.equal(sum(back.bytes(offset, length)), sum(block.bytes(offset, length)), `${blocks} blocks at ${offset}`);
  }
  block.free();
  back.free();
}

describe('driver and served controller', linux, () => {
  for (const [how, run] of [
    ['in one process', inProcess],
    ['in two', served],
  ] as const) {
    it(`every size and alignment, ${how}`, () => run({ size: 8 * MiB }, everySize));

    it(`every size and alignment without SGLs and shadow doorbells, ${how}`, () =>
      run({ size: 8 * MiB, sgl: false, shadowDoorbells: false, maxTransfer: 64 * KiB, doorbellStride: 16 }, everySize));

    for (const blockSize of [512, 4096])
      it(`random commands against a model of the disk, blocks of ${blockSize}, ${how}`, () =>
        run({ size: 4 * MiB, blockSize, maxTransfer: 16 * KiB }, async ({ eal, disk }) => {
          const counts = await againstModel(eal, disk, { seed: blockSize, commands: 600, span: disk.blocks });
          for (const [kind, count] of Object.entries(counts)) assert.ok(count > 0, kind);
        }));
  }

  for (const [how, run] of [
    ['in one process', inProcess],
    ['in two', served],
  ] as const)
    it(`memory that is lent to it is used, given back, and lent again after a reset, ${how}`, () =>
      run({ size: MiB, hostMemory: 64 * KiB }, async ({ eal, device, ssd }) => {
        const { hostMemoryPreferred, hostMemoryMinimum } = ssd.identity;
        assert.deepEqual([hostMemoryPreferred, hostMemoryMinimum], [64 * KiB, 64 * KiB]);
        using block = eal.malloc(128 * KiB, { align: 4096 });
        const part = (offset: number, length: number): { va: Va; length: number } => ({
          va: (block.va + offset) as Va,
          length,
        });
        const failed = async (nsid: number): Promise<number[]> => {
          await assert.rejects(ssd.admin({ opcode: 0xfe, nsid }));
          return errorEntriesOf(await ssd.logPage(LOG.ERROR, 4096)).map(({ namespace }) => namespace);
        };
        const there = (): number[] =>
          errorEntriesOf(Uint8Array.from(block.bytes(64 * KiB, 4096))).map(({ namespace }) => namespace);
        await ssd.lendMemory([part(64 * KiB, 8 * KiB), part(0, 56 * KiB)]);
        assert.deepEqual(await failed(21), [21]);
        assert.deepEqual(await failed(22), [22, 21]);
        assert.deepEqual(there(), [22, 21]);
        assert.equal((await ssd.admin({ ...GET_HOST_MEMORY, into: part(60 * KiB, 4096) })).result, 1);
        throwsDma('EBUSY', () => block.free(), /lent to \(lendMemory\)/);
        await ssd.reset();
        assert.deepEqual(await failed(23), [23, 22, 21]);
        assert.deepEqual(there(), [23, 22, 21]);
        // Somebody writes there, which the controller notices.
        const events = ssd.events();
        block.bytes(64 * KiB, 64).fill(0xff);
        assert.deepEqual(errorEntriesOf(await ssd.logPage(LOG.ERROR, 4096)).length, 3);
        assert.equal((await events.next()).value?.what, 'transient internal error');
        await ssd.takeMemoryBack();
        block.bytes().fill(0);
        assert.deepEqual(await failed(24), [24, 23, 22, 21]);
        assert.ok(block.bytes().every((byte) => byte === 0));
        // Of a controller that is gone nothing is lent.
        await ssd.lendMemory(part(0, 64 * KiB));
        await eal.remove(device);
        block.bytes().fill(0);
      }));

  it('interrupts that cover several completions, or come late, lose nothing', async () => {
    await using eal = await Eal.start(QUIET);
    // Late commands complete while the driver sleeps, in bursts.
    const faults: NvmeFault[] = [{ do: 'late', opcode: 2, ms: 30, nth: 100, times: 400 }];
    let interrupts = 0;
    eal.vdev.define('disk', (host) => {
      const counted: ModelHost = {
        dma: host.dma,
        interrupt: (vector) => {
          if (vector > 0) interrupts++;
          host.interrupt(vector);
        },
        regionMemory: (region, offset) => host.regionMemory(region, offset),
      };
      return nvmeModel({ size: MiB, faults })(counted);
    });
    const device = await eal.probe('vdev:disk0');
    const ssd = device.use(nvmeDriver);
    const [disk] = ssd.namespaces;
    const block = eal.malloc(32 * KiB, { align: 4096 });
    const read = (n: number): Promise<void> => disk.read({ lba: n, into: { va: block.va + n * 512, length: 512 } });
    for (let n = 0; n < 40; n++) await read(n);
    const before = interrupts;
    // After 8 of them, or 25.5 ms: later than the driver looks by itself.
    await ssd.setFeature(FEATURE.COALESCING, 7 | (255 << 8));
    interrupts = 0;
    for (let n = 0; n < 40; n++) await read(n);
    assert.ok(interrupts < before, `${interrupts} instead of ${before}`);
    for (let round = 0; round < 6; round++)
      await Promise.all(Array.from({ length: round === 5 ? 3 : 60 }, (_, n) => read(n)));
    // A queue of the program's own, which is called from interrupts.
    let done = 0;
    await new Promise<void>((resolve, reject) => {
      void ssd
        .openQueue({
          entries: 32,
          onCompletions: (count, queue) => {
            for (let i = 0; i < count; i++) if (queue.statuses[i] !== 0) reject(new Error('a read failed'));
            if ((done += count) === 13) resolve();
          },
        })
        .then((queue) => {
          const iova = device.iovaOf(block);
          for (let slot = 0; slot < 13; slot++) queue.read(slot, 1, slot, 1, iova + slot * 512);
          queue.ring();
        });
    });
    block.free();
  });

  it('thousands of commands at depth 31 by numbers', () =>
    served({ size: MiB }, async ({ eal, device, ssd }) => {
      const queue = await ssd.openQueue({ entries: 32 });
      const block = eal.malloc(128 * KiB, { align: 4096 });
      const iova = device.iovaOf(block);
      let [sent, done] = [0, 0];
      for (; sent < 31; sent++) queue.read(sent, 1, sent, 8, iova + sent * 4096);
      queue.ring();
      while (done < 5000) {
        const count = queue.poll();
        for (let n = 0; n < count; n++) {
          assert.equal(queue.statuses[n], 0);
          done++;
          if (sent < 5000) queue.read(queue.slots[n], 1, sent++ % 2000, 8, iova + queue.slots[n] * 4096);
        }
        if (count > 0) queue.ring();
        else await new Promise((resolve) => setImmediate(resolve));
      }
      await ssd.closeQueue(queue);
      block.free();
    }));

  for (const [how, run] of [
    ['in this process', inProcess],
    ['in its own process', served],
  ] as const)
    it(`other work goes on at depth 128, ${how}`, () =>
      run({ size: 8 * MiB }, async ({ eal, disk }) => {
        const depth = 128;
        const commands = 20_000;
        const block = eal.malloc(depth * 4 * KiB, { align: 4096 });
        let [left, turns, timers] = [commands, 0, 0];
        const immediate = (): void => {
          turns++;
          if (left > 0) setImmediate(immediate);
        };
        setImmediate(immediate);
        const timer = setInterval(() => timers++, 1);
        await Promise.all(
          Array.from({ length: depth }, async (_, n) => {
            while (left > 0) {
              const lba = (left-- * 8) % 8192;
              await disk.read({ lba, blocks: 8, into: { va: block.va + n * 4 * KiB, length: 4 * KiB } });
            }
          }),
        );
        clearInterval(timer);
        block.free();
        // No turn has more than a few queues full of commands.
        assert.ok(turns >= commands / (4 * depth), `${turns} turns for ${commands} commands`);
        assert.ok(timers > 0, 'a timer had its turn');
      }));

  for (const place of [tmpdir(), '/dev/shm'].filter((each) => existsSync(each)))
    it(`an image that becomes shorter is told, and not made longer, below ${place}`, async () => {
      const directory = mkdtempSync(join(place, 'anydma-shrinks-'));
      const file = join(directory, 'disk.img');
      try {
        await inProcess({ file, size: 2 * MiB }, async ({ eal, disk }) => {
          const block = eal.malloc(64 * KiB, { align: 4096 });
          const part = (n: number): { va: Va; length: number } => ({
            va: (block.va + n * 4 * KiB) as Va,
            length: 4 * KiB,
          });
          block.bytes().fill(9);
          truncateSync(file, MiB);
          // Several at a time, some of them behind the end.
          const all = await Promise.allSettled(
            Array.from({ length: 8 }, (_, n) => disk.read({ lba: n * 512, blocks: 8, into: part(n) })),
          );
          assert.deepEqual(
            all.map(({ status }) => status),
            [...Array<string>(4).fill('fulfilled'), ...Array<string>(4).fill('rejected')],
          );
          assert.deepEqual([block.bytes()[0], block.bytes()[4 * 4 * KiB]], [0, 9]);
          await assert.rejects(disk.write({ lba: 2048, blocks: 8, from: part(0) }), { code: 'EIO' });
          assert.equal(statSync(file).size, MiB);
          block.free();
        });
      } finally {
        rmSync(directory, { recursive: true });
      }
    });

  it('several namespaces; events when one goes', () =>
    inProcess(
      {
        namespaces: [{ size: MiB }, { size: 2 * MiB, blockSize: 4096 }],
        faults: [{ do: 'detach', nsid: 2, opcode: 2, nth: 2 }],
      },
      async ({ eal, ssd, disk }) => {
        assert.deepEqual(
          ssd.namespaces.map(({ id, blockSize, blocks }) => [id, blockSize, blocks]),
          [
            [1, 512, 2048],
            [2, 4096, 512],
          ],
        );
        const events = ssd.events();
        const block = eal.malloc(4096);
        await disk.read({ lba: 0, blocks: 1, into: block });
        await disk.read({ lba: 0, blocks: 1, into: block });
        const { value } = await events.next();
        assert.ok(value !== undefined);
        assert.deepEqual(
          ssd.namespaces.map(({ id }) => id),
          [1],
        );
        await events.return();
        block.free();
      },
    ));

  it('a flush that came together with a write does not stand for the next one', () => {
    let syncs = 0;
    const fdatasync = (fd: number, done: (error: Error | null) => void): void => {
      syncs++;
      NODE_CALLS.fdatasync(fd, (error) => done(error));
    };
    return inProcess(
      { size: MiB },
      async ({ eal, disk }) => {
        const block = eal.malloc(4096);
        await disk.write({ lba: 0, blocks: 8, from: block });
        await Promise.all([disk.write({ lba: 8, blocks: 8, from: block }), disk.flush()]);
        assert.equal(syncs, 1);
        await disk.flush();
        assert.equal(syncs, 2, 'the second write may not have been on the disk at the first flush');
        await disk.flush();
        assert.equal(syncs, 2);
        block.free();
      },
      { ...NODE_CALLS, fdatasync: fdatasync as ImageCalls['fdatasync'] },
    );
  });

  it('removing a disk that could not store everything says so, and lets go of it all the same', () => {
    const fdatasync = (_fd: number, done: (error: Error) => void): void => {
      setImmediate(() => done(Object.assign(new Error('broken'), { code: 'EIO' })));
    };
    return inProcess(
      { size: MiB },
      async ({ eal, device, disk }) => {
        const block = eal.malloc(4096);
        await disk.write({ lba: 0, blocks: 8, from: block });
        await assert.rejects(eal.remove(device), (error) => isDmaError(error, 'EIO') && /CSTS.CFS/.test(error.message));
        block.free();
        await eal.remove(await eal.probe('vdev:disk0'));
      },
      { ...NODE_CALLS, fdatasync: fdatasync as ImageCalls['fdatasync'] },
    );
  });

  it('the controller is killed: a typed error, and what was flushed is in the image', async () => {
    const directory = mkdtempSync(join(tmpdir(), 'anydma-nvme-'));
    const file = join(directory, 'disk.img');
    try {
      await served({ file, size: MiB }, async ({ eal, device, disk, pid }) => {
        const block = eal.malloc(4096);
        block.bytes().fill(0x5a);
        await disk.write({ lba: 16, blocks: 8, from: block });
        await disk.flush();
        process.kill(pid, 'SIGKILL');
        await assert.rejects(
          async () => {
            for (;;) await disk.write({ lba: 24, blocks: 8, from: block });
          },
          (error) => isDmaError(error),
        );
        assert.ok(device.lost !== undefined);
        block.free();
      });
      assert.ok(
        readFileSync(file)
          .subarray(8192, 8192 + 4096)
          .every((byte) => byte === 0x5a),
      );
      await served({ file }, async ({ eal, disk }) => {
        const block = eal.malloc(4096);
        await disk.read({ lba: 16, blocks: 8, into: block });
        assert.ok(block.bytes().every((byte) => byte === 0x5a));
        block.free();
      });
    } finally {
      rmSync(directory, { recursive: true, force: true });
    }
  });

  it('goes on without doorbells in memory, when they are refused after a reset', () => {
    const faults = [{ do: 'fail', queue: 'admin', opcode: 0x7c, nth: 2, status: 1 }] as const;
    return inProcess({ size: MiB, faults }, async ({ eal, ssd, disk }) => {
      const block = eal.malloc(4096);
      await disk.write({ lba: 0, blocks: 8, from: block });
      await ssd.reset();
      await disk.read({ lba: 0, blocks: 8, into: block, timeoutMs: 1000 });
      block.free();
    });
  });

  for (const fault of [
    { do: 'lose' },
    { do: 'unknown-id' },
    { do: 'twice' },
    { do: 'wrong-queue' },
    { do: 'fatal' },
    { do: 'fail', status: 0x281 },
  ] as const satisfies readonly NvmeFault[])
    it(`goes on after a command that goes wrong: ${fault.do}`, () =>
      inProcess({ size: MiB, faults: [{ ...fault, opcode: 2, nth: 2 }] }, async ({ eal, ssd, disk }) => {
        ssd.configure({ timeoutMs: 50, abortMs: 50 });
        const block = eal.malloc(4096);
        block.bytes().fill(7);
        await disk.write({ lba: 0, blocks: 8, from: block });
        await disk.read({ lba: 0, blocks: 8, into: block });
        await disk.read({ lba: 0, blocks: 8, into: block }).catch((error: unknown) => assert.ok(isDmaError(error)));
        // Whatever has happened, the disk is there again.
        for (let left = 200; !ssd.ready && left > 0; left--) await new Promise((resolve) => setTimeout(resolve, 5));
        block.bytes().fill(0);
        await disk.read({ lba: 0, blocks: 8, into: block });
        assert.ok(block.bytes().every((byte) => byte === 7));
        block.free();
      }));
});
