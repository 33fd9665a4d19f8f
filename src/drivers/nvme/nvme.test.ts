/** The NVMe driver, by a controller that does what it is told, through the doors that programs use. */
import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { describe, it } from 'node:test';
import type { FakeNvme } from '../../../test/fakes/nvme/controller.js';
import { fill, QUIET, sum, withDisk } from '../../../test/fakes/nvme/disk.js';
import { dmaError, throwsDma } from '../../../test/shared/errors.js';
import { until } from '../../../test/shared/until.js';
import type { Device } from '../../bus/model.js';
import { Eal } from '../../eal.js';
import { ADMIN, CNS, FEATURE, NVM, SQE } from '../../nvme/commands.js';
import { KiB, MiB, type Va } from '../../units.js';
import { deviceModel } from '../../vfio-user/devices/catalog.js';
import { nvmeDriver } from './nvme-driver.js';
import { ABORTED_BY_HOST, type NvmeQueue } from './queue.js';

/** Mappings of a device, those of the driver itself included. */
const mapped = ({ domain }: Device): number => [...(domain?.mappings() ?? [])].length;

describe('a controller', () => {
  it('is taken by its class, and says who it is; driver=raw opts out', () =>
    withDisk({ namespaces: 2, blockSize: 4096, blocks: 100 }, async ({ eal, device, ssd, fake }) => {
      assert.equal(device.driver?.name, 'nvme');
      const { serial, model, firmware, vendor } = ssd.identity;
      assert.deepEqual(
        { serial, model, firmware, vendor },
        { serial: 'FAKE 1', model: 'a fake of the tests', firmware: '1.0', vendor: 0x1b36 },
      );
      assert.equal(ssd.version, '1.4.0');
      assert.equal(ssd.limits.maxTransfer, 128 * KiB);
      assert.equal(ssd.limits.queues, 4);
      assert.deepEqual(
        ssd.namespaces.map(({ id, blockSize, blocks, size }) => [id, blockSize, blocks, size]),
        [
          [1, 4096, 100, 409600],
          [2, 4096, 100, 409600],
        ],
      );
      assert.equal(ssd.namespace(2), ssd.namespaces[1]);
      throwsDma('ENXIO', () => ssd.namespace(3), /there are: 1, 2/);
      await eal.remove(device);
      assert.equal(fake.wasShutDown, true);
      const raw = await eal.probe('bus=vdev,name=disk0/driver=raw');
      assert.equal(raw.driver?.name, 'raw');
    }));

  it('with doorbells far apart, and one queue', () =>
    withDisk({ doorbellStride: 64, queues: 1, vectors: 0 }, async ({ eal, ssd, disk, fake }) => {
      const block = eal.malloc(4096, { align: 4096 });
      fill(block.bytes(), 3);
      await disk.write({ lba: 5, blocks: 8, from: block });
      assert.deepEqual(fake.disks[0].slice(5 * 512, 13 * 512), Uint8Array.from(block.bytes()));
      await assert.rejects(ssd.openQueue(), dmaError('ENOSPC', /1 queue pairs/));
      block.free();
    }));

  it('any admin command; features, log pages, format', () =>
    withDisk({}, async ({ eal, ssd, disk, fake, block }) => {
      const page = eal.malloc(4096, { align: 4096 });
      await ssd.admin({ opcode: 0x06, cdw10: 1, into: page });
      assert.equal(Buffer.from(page.bytes(4, 6)).toString(), 'FAKE 1');
      assert.equal(await ssd.feature(6), 6);
      assert.deepEqual(await ssd.logPage(2, 512), new Uint8Array(512).fill(2));
      fake.disks[0].fill(7);
      await ssd.format(disk);
      assert.ok(fake.disks[0].every((byte) => byte === 0));
      // PRP entries have no end: the controller would write behind it.
      const small = { va: block.va, length: 512 };
      for (const [send, bytes] of [
        [() => ssd.admin({ opcode: 0x06, cdw10: 1, into: small }), 4096],
        [() => ssd.admin({ opcode: 0x02, cdw10: 2 | (255 << 16), into: small }), 1024],
        [() => disk.io({ opcode: 0x02, cdw12: 7, into: small }), 4096],
        [() => disk.io({ opcode: 0x01, cdw12: 1, from: block, length: 512 }), 1024],
        [() => disk.io({ opcode: 0x09, cdw10: 32, cdw11: 4, from: small }), 528],
      ] as const)
        await assert.rejects(
          send(),
          dmaError('EINVAL', new RegExp(`transfers ${bytes} bytes, and the memory has 512`)),
        );
      await assert.rejects(ssd.admin({ opcode: 0xc3 }), (error: unknown) => {
        assert.ok(dmaError('ENOTSUP', /invalid command opcode/)(error));
        const { nvme } = error as { nvme: { type: number; code: number; name: string; dnr: boolean } };
        assert.deepEqual([nvme.type, nvme.code, nvme.name, nvme.dnr], [0, 1, 'INVALID_OPCODE', false]);
        return true;
      });
      page.free();
    }));

  it('formats its own namespaces only, as they were', () =>
    withDisk({ metadataSize: 8, protection: 2 | 8, metadataInline: true }, ({ ssd, disk, fake }) =>
      withDisk({}, async ({ disk: another }) => {
        await assert.rejects(ssd.format(another), dmaError('EINVAL', /of this controller/));
        await assert.rejects(ssd.format(disk, { fromat: 1 } as object), dmaError('EINVAL', /fromat/));
        const formats = (): number[] =>
          fake.log.filter(({ queue, opcode }) => queue === 0 && opcode === ADMIN.FORMAT).map(({ cdw10 }) => cdw10);
        assert.deepEqual(formats(), []);
        await ssd.format(disk, { erase: 1 });
        // Metadata in line, protection information of type 2 in its first bytes, user data erased.
        assert.deepEqual(formats(), [0x10 | (2 << 5) | (1 << 8) | (1 << 9)]);
      }),
    ));

  it('a log page in several parts is read whole before its event may come again', () =>
    withDisk({}, async ({ ssd, fake }) => {
      await ssd.logPage(2, 12_288);
      const reads = fake.log.filter(({ queue, opcode }) => queue === 0 && opcode === ADMIN.GET_LOG_PAGE);
      assert.deepEqual(
        reads.map(({ cdw10 }) => (cdw10 & (1 << 15)) !== 0),
        [true, true, false],
        'retain asynchronous event, in all but the last',
      );
    }));

  it('an older list of namespaces does not end one that a newer list has', () =>
    withDisk({}, async ({ ssd, fake }) => {
      let isHeld = false;
      fake.misbehave = ({ queue, opcode, cdw10 }) => {
        if (isHeld || queue !== 0 || opcode !== ADMIN.IDENTIFY || cdw10 !== CNS.NAMESPACE) return undefined;
        isHeld = true;
        return 'hold';
      };
      const older = ssd.rescan();
      await until(() => isHeld);
      fake.disks.push(new Uint8Array(8192 * 512));
      fake.metadata.push(new Uint8Array(0));
      const newer = ssd.rescan();
      for (let turn = 0; turn < 50; turn++) await new Promise((resolve) => setImmediate(resolve));
      fake.letGo();
      await Promise.all([older, newer]);
      assert.deepEqual(
        ssd.namespaces.map(({ id, live }) => [id, live]),
        [
          [1, true],
          [2, true],
        ],
      );
    }));

  it('stops telling of events at once, also who waits for one', () =>
    withDisk({}, async ({ ssd }) => {
      const events = ssd.events();
      const waiting = events.next();
      assert.deepEqual(await events.return(), { done: true, value: undefined });
      assert.deepEqual(await waiting, { done: true, value: undefined });
      await ssd.reset();
      assert.equal((await events.next()).done, true);
      const never = ssd.events();
      await never.return();
      await ssd.reset();
      assert.equal((await never.next()).done, true);
      const leaving = ssd.events();
      await ssd.reset();
      for await (const { kind } of leaving) {
        assert.equal(kind, 'reset');
        break;
      }
      await assert.rejects(ssd.events().throw(new Error('mine')), /mine/);
    }));

  it('takes a signal and a time limit with each call', () =>
    withDisk({}, async ({ ssd, disk }) => {
      const signal = AbortSignal.abort();
      for (const call of [
        () => ssd.logPage(2, 512, { signal }),
        () => ssd.feature(6, { signal }),
        () => ssd.setFeature(6, 1, { signal }),
        () => ssd.format(disk, { signal }),
        () => disk.flush({ signal }),
      ])
        await assert.rejects(call(), dmaError('ECANCELED', /aborted/));
      await assert.rejects(ssd.feature(6, { timeoutMs: -1 }), dmaError('EINVAL', /timeoutMs is -1/));
    }));

  it('tells of events, and of namespaces that come and go', () =>
    withDisk({ namespaces: 1 }, async ({ ssd, fake }) => {
      const events = ssd.events();
      fake.tell(0x1 | (0x01 << 8) | (0x02 << 16));
      const health = await events.next();
      assert.equal(health.done, false);
      assert.deepEqual([health.value?.kind, health.value?.what], ['health', 'temperature past a threshold']);
      assert.deepEqual(health.value?.log, new Uint8Array(512).fill(2));
      fake.disks.push(new Uint8Array(8192 * 512));
      fake.metadata.push(new Uint8Array(0));
      // More than are outstanding at once.
      for (let i = 0; i < 6; i++) fake.tell(0x2 | (0x00 << 8) | (0x04 << 16));
      for (let i = 0; i < 6; i++) assert.equal((await events.next()).value?.what, 'namespaces changed');
      assert.deepEqual(
        ssd.namespaces.map(({ id }) => id),
        [1, 2],
      );
      const [, second] = ssd.namespaces;
      fake.disks.pop();
      fake.tell(0x2 | (0x00 << 8) | (0x04 << 16));
      await events.next();
      assert.equal(second.live, false);
      await assert.rejects(second.flush(), dmaError('ENXIO'));
    }));
});

describe('data', () => {
  it('of every length and offset goes both ways, from all kinds of memory', () =>
    withDisk({ blocks: 4096, mdts: 3 }, async ({ eal, device, disk, fake }) => {
      using external = eal.external.allocate(MiB);
      using _mapping = device.dmaMap(external);
      using user = eal.external.allocate(MiB);
      eal.heaps.create('user');
      eal.heaps.addMemory('user', user);
      const own = eal.malloc(512 * KiB);
      const heap = eal.malloc(512 * KiB, { heap: 'user' });
      for (const memory of [external, own, heap]) {
        for (const [blocks, offset] of [
          [1, 0],
          [1, 4],
          [8, 0],
          [8, 4092],
          [9, 0],
          [16, 512],
          [17, 4],
          [64, 0],
          [65, 8],
          [300, 2048],
          [1000, 4],
        ]) {
          const { va } = memory;
          const length = blocks * 512;
          const bytes = fill(memory.bytes(offset, length), blocks);
          const range = { va: (va + offset) as Va, length };
          await disk.write({ lba: 3, blocks, from: range });
          assert.equal(
            sum(fake.disks[0].subarray(3 * 512, 3 * 512 + length)),
            sum(bytes),
            `write ${blocks} at ${offset}`,
          );
          const wanted = sum(bytes);
          bytes.fill(0);
          await disk.read({ lba: 3, into: range });
          assert.equal(sum(bytes), wanted, `read ${blocks} at ${offset}`);
        }
      }
      own.free();
      heap.free();
      eal.heaps.removeMemory('user', user);
      eal.heaps.destroy('user');
    }));

  it('above MDTS is split into as many commands as that needs, and joined', () =>
    withDisk({ blocks: 4096, mdts: 3 }, async ({ eal, disk, fake }) => {
      const block = eal.malloc(MiB, { align: 4096 });
      fill(block.bytes(), 1);
      fake.log.length = 0;
      await disk.write({ lba: 0, from: block });
      const writes = fake.log.filter(({ queue, opcode }) => queue > 0 && opcode === NVM.WRITE);
      assert.equal(writes.length, 32);
      assert.deepEqual(
        writes.map(({ cdw10 }) => cdw10),
        Array.from({ length: 32 }, (_, i) => i * 64),
      );
      assert.equal(sum(fake.disks[0].subarray(0, MiB)), sum(block.bytes()));
      block.free();
    }));

  it('of 4 MiB in one command has lists that go on in another page', () =>
    withDisk({ blocks: 16384, mdts: 10 }, async ({ eal, device, disk, fake }) => {
      using memory = eal.external.allocate(5 * MiB);
      using _mapping = device.dmaMap(memory);
      for (const offset of [0, 4, 4092]) {
        const range = { va: (memory.va + offset) as Va, length: 4 * MiB };
        fill(memory.bytes(offset, 4 * MiB), offset);
        fake.log.length = 0;
        await disk.write({ lba: 1, blocks: 8192, from: range });
        assert.equal(fake.log.filter(({ queue }) => queue > 0).length, 1);
        assert.equal(
          sum(fake.disks[0].subarray(512, 512 + 4 * MiB)),
          sum(memory.bytes(offset, 4 * MiB)),
          `offset ${offset}`,
        );
      }
    }));

  for (const sgls of [0, 1, 2])
    it(`of several ranges is gathered and scattered${sgls === 0 ? ' by PRP lists' : ` by SGLs (${sgls})`}`, () =>
      withDisk({ sgls }, async ({ eal, device, disk, fake }) => {
        using memory = eal.external.allocate(MiB);
        using _mapping = device.dmaMap(memory);
        const part = (offset: number, length: number): { va: Va; length: number } => ({
          va: (memory.va + offset) as Va,
          length,
        });
        const lists = [
          // Pages that meet: one command, whatever there is.
          { ranges: [part(8192 - 512, 512), part(65536, 8192), part(16384, 512)], commands: 1 },
          // Blocks apart: one command a range without SGLs.
          { ranges: [part(512, 512), part(4096 + 1024, 1024), part(100 * 1024, 512)], commands: sgls === 0 ? 3 : 1 },
        ];
        for (const { ranges, commands } of lists) {
          fill(memory.bytes(), ranges.length + sgls);
          const wanted = Buffer.concat(ranges.map(({ va, length }) => memory.bytes(va - memory.va, length)));
          fake.log.length = 0;
          await disk.write({ lba: 9, from: ranges });
          assert.equal(fake.log.filter(({ queue }) => queue > 0).length, commands);
          assert.equal(sum(fake.disks[0].subarray(9 * 512, 9 * 512 + wanted.length)), sum(wanted));
          memory.bytes().fill(0);
          await disk.read({ lba: 9, into: ranges });
          assert.equal(
            sum(Buffer.concat(ranges.map(({ va, length }) => memory.bytes(va - memory.va, length)))),
            sum(wanted),
          );
        }
        // A block in two ranges that meet inside of a page.
        const torn = [part(0, 256), part(1024, 256)];
        if (sgls === 0)
          await assert.rejects(disk.write({ lba: 0, from: torn }), dmaError('EINVAL', /no SGLs.*bounce: true/));
        else await disk.write({ lba: 0, from: torn });
        // An odd address.
        const odd = part(8193, 512);
        if (sgls !== 1)
          await assert.rejects(disk.write({ lba: 0, from: odd }), dmaError('EINVAL', /no multiple of 4.*bounce: true/));
        else {
          memory.bytes().fill(5);
          await disk.write({ lba: 0, from: odd });
          assert.ok(fake.disks[0].subarray(0, 512).every((byte) => byte === 5));
        }
      }));

  it('that the device can not reach is refused, with what to do; and copied only when that is asked for', () =>
    withDisk({}, async ({ eal, device, disk, fake }) => {
      using memory = eal.external.allocate(64 * KiB);
      const before = fake.log.length;
      await assert.rejects(
        disk.read({ lba: 0, blocks: 8, into: memory }),
        dmaError('EINVAL', /not mapped for the device.*dmaMap/),
      );
      await assert.rejects(disk.read({ lba: 0, into: Buffer.alloc(512) }), dmaError('EINVAL', /bounce: true/));
      assert.equal(fake.log.length, before);
      const bytes = fill(Buffer.alloc(1024 + 3), 9);
      await disk.write({ lba: 7, blocks: 2, from: bytes.subarray(3), bounce: true });
      assert.deepEqual(fake.disks[0].slice(7 * 512, 9 * 512), Uint8Array.from(bytes.subarray(3)));
      const back = [Buffer.alloc(100), Buffer.alloc(924)];
      await disk.read({ lba: 7, blocks: 2, into: back, bounce: true });
      const away = new Uint8Array(512);
      const reading = disk.read({ lba: 7, blocks: 1, into: away, bounce: true });
      structuredClone(away.buffer, { transfer: [away.buffer] });
      await assert.rejects(reading, dmaError('EINVAL', /into was detached while the command ran/));
      assert.deepEqual(Buffer.concat(back), Buffer.from(bytes.subarray(3)));
      assert.equal(device.domain?.mappings().next().done, false);
    }));

  it('is compared, zeroed, deallocated, verified, copied and flushed', () =>
    withDisk({ blocks: 70_000, mdts: 5 }, async ({ eal, disk, fake }) => {
      const block = eal.malloc(4096, { align: 4096 });
      fill(block.bytes(), 4);
      await disk.write({ lba: 10, blocks: 8, from: block, fua: true });
      assert.equal(fake.log.at(-1)?.cdw12, (7 | (1 << 30)) >>> 0);
      await disk.compare({ lba: 10, blocks: 8, to: block });
      block.bytes()[77] ^= 1;
      await assert.rejects(disk.compare({ lba: 10, blocks: 8, to: block }), dmaError('EBADE', /compare failure/));
      await disk.copy({
        to: 100,
        from: [
          { lba: 10, blocks: 2 },
          { lba: 14, blocks: 1 },
        ],
      });
      assert.deepEqual(fake.disks[0].slice(100 * 512, 102 * 512), fake.disks[0].slice(10 * 512, 12 * 512));
      assert.deepEqual(fake.disks[0].slice(102 * 512, 103 * 512), fake.disks[0].slice(14 * 512, 15 * 512));
      await disk.deallocate([
        { lba: 10, blocks: 1 },
        { lba: 12, blocks: 2 },
      ]);
      assert.ok(fake.disks[0].subarray(10 * 512, 11 * 512).every((byte) => byte === 0));
      fake.disks[0].fill(1);
      fake.log.length = 0;
      await disk.writeZeroes({ lba: 0, blocks: 68_000 });
      assert.deepEqual(
        fake.log.map(({ cdw12 }) => (cdw12 & 0xffff) + 1),
        [65536, 2464],
      );
      assert.equal(fake.disks[0].indexOf(1), 68_000 * 512);
      await disk.verify({ lba: 0, blocks: 1000 });
      await disk.flush();
      block.free();
    }));

  it('past the end, none, and what is no number are refused before anything is sent', () =>
    withDisk({ blocks: 100, oncs: 0 }, async ({ eal, disk, fake }) => {
      const block = eal.malloc(4096, { align: 4096 });
      const before = fake.log.length;
      await assert.rejects(
        disk.read({ lba: 93, blocks: 8, into: block }),
        dmaError('ERANGE', /93 to 100 of a namespace that has 100/),
      );
      await assert.rejects(
        disk.read({ lba: 0, blocks: 9, into: block }),
        dmaError('EINVAL', /into has 4096 bytes, and 4608/),
      );
      for (const lba of [-1, 0.5, NaN, '0'])
        await assert.rejects(disk.read({ lba: lba as number, blocks: 1, into: block }), dmaError('EINVAL'));
      await assert.rejects(disk.read({ lba: 0, blocks: 0, into: block }), dmaError('EINVAL'));
      await assert.rejects(
        disk.read({ lba: 0, blocks: 1, into: block, nothing: 1 } as never),
        dmaError('EINVAL', /no option/),
      );
      await assert.rejects(disk.writeZeroes({ lba: 0, blocks: 1 }), dmaError('ENOTSUP', /capabilities/));
      assert.equal(fake.log.length, before);
      block.free();
      await assert.rejects(disk.read({ lba: 0, blocks: 1, into: block }), dmaError('EINVAL', /freed/));
    }));

  it('streams', () =>
    withDisk({ blocks: 4000 }, async ({ disk, fake }) => {
      const bytes = fill(Buffer.alloc(1000 * 512), 8);
      const writer = disk.writable({ lba: 50, blocks: 1000, chunkBytes: 64 * KiB });
      for (let at = 0; at < bytes.length; at += 7777) writer.write(bytes.subarray(at, at + 7777));
      await new Promise<void>((resolve, reject) => {
        writer.on('error', reject);
        writer.end(resolve);
      });
      assert.equal(sum(fake.disks[0].subarray(50 * 512, 1050 * 512)), sum(bytes));
      const parts: Uint8Array[] = [];
      for await (const part of disk.readable({ lba: 50, blocks: 1000, chunkBytes: 10_000 }))
        parts.push(part as Uint8Array);
      assert.equal(sum(Buffer.concat(parts)), sum(bytes));
      // Whoever stops in the middle leaves nothing behind.
      for await (const part of disk.readable({ lba: 0 })) {
        assert.ok((part as Uint8Array).length > 0);
        break;
      }
      const short = disk.writable({ lba: 0 });
      const failed = new Promise((resolve) => short.on('error', resolve));
      short.end(Buffer.alloc(700));
      assert.ok(dmaError('EINVAL', /ends 188 bytes into a block/)(await failed));
    }));

  it('a stream that is destroyed while a chunk waits writes nothing more, and keeps no memory', () =>
    withDisk({}, async ({ device, disk, fake }) => {
      const before = mapped(device);
      fake.misbehave = ({ queue, opcode }) => (queue > 0 && opcode === NVM.WRITE ? 'hold' : undefined);
      const writer = disk.writable({ lba: 0, chunkBytes: 4096, ahead: 1 });
      writer.write(Buffer.alloc(3 * 4096));
      const writes = (): number => fake.log.filter(({ queue, opcode }) => queue > 0 && opcode === NVM.WRITE).length;
      await until(() => writes() === 1);
      const closed = new Promise((resolve) => writer.once('close', resolve));
      writer.destroy();
      fake.letGo();
      await closed;
      for (let turn = 0; turn < 20; turn++) await new Promise((resolve) => setImmediate(resolve));
      assert.equal(writes(), 1);
      assert.equal(mapped(device), before);
    }));

  it('a copy that can not be delivered gives its memory back', () =>
    withDisk({}, async ({ device, disk }) => {
      const before = mapped(device);
      const target = new Uint8Array(512);
      const reading = disk.read({ lba: 0, into: target, bounce: true });
      structuredClone(target.buffer, { transfer: [target.buffer] });
      await assert.rejects(reading);
      assert.equal(mapped(device), before);
    }));

  it('has its metadata apart, and its protection information counts', () =>
    withDisk({ metadataSize: 8, protection: 1, mdts: 1 }, async ({ eal, disk, fake }) => {
      assert.equal(disk.metadataSize, 8);
      const block = eal.malloc(32 * KiB, { align: 4096 });
      const metadata = eal.malloc(64 * 8);
      fill(metadata.bytes(), 2);
      fake.log.length = 0;
      const protection = { check: ['guard', 'reference'] as const, reference: 1000, application: 5 };
      await disk.write({ lba: 16, blocks: 64, from: block, metadata, protection });
      const writes = fake.log.filter(({ queue }) => queue > 0);
      assert.deepEqual(
        writes.map(({ entry }) => entry.getUint32(SQE.CDW14, true)),
        [1000, 1016, 1032, 1048],
      );
      assert.ok(writes.every(({ cdw12 }) => ((cdw12 >>> 26) & 0xf) === 5));
      assert.deepEqual(fake.metadata[0].slice(16 * 8, 80 * 8), Uint8Array.from(metadata.bytes()));
      metadata.bytes().fill(0);
      await disk.read({ lba: 16, blocks: 64, into: block, metadata });
      assert.deepEqual(fake.metadata[0].slice(16 * 8, 80 * 8), Uint8Array.from(metadata.bytes()));
      block.free();
      metadata.free();
    }));
});

describe('a queue of the program’s own', () => {
  it('takes commands by number, and gives completions in batches, by one store each', () =>
    withDisk({ maxEntries: 8 }, async ({ eal, device, ssd, fake }) => {
      const queue = await ssd.openQueue({ entries: 8 });
      assert.equal(queue.capacity, 7);
      throwsDma('EINVAL', () => queue.read(0, -1, 0, 1, 4096), /no namespace -1/);
      const block = eal.malloc(64 * KiB, { align: 4096 });
      const iova = device.iovaOf(block);
      fake.disks[0].forEach((_, i, disk) => (disk[i] = (i >> 9) & 0xff));
      const bell = 0x1000 + 2 * queue.id * 4;
      // Many times around the rings, with their phases.
      for (let round = 0; round < 20; round++) {
        const before = fake.doorbells.get(bell) ?? 0;
        for (let slot = 0; slot < 7; slot++) queue.read(slot, 1, round * 7 + slot, 1, iova + slot * 512);
        assert.equal(queue.running, 7);
        throwsDma('EBUSY', () => queue.read(3, 1, 0, 1, iova), /slot 3 is in use: read of 1 block at LBA/);
        queue.ring();
        queue.ring();
        assert.equal(fake.doorbells.get(bell), before + 1);
        const back = new Set<number>();
        while (back.size < 7) {
          const count = queue.poll();
          for (let i = 0; i < count; i++) {
            assert.equal(queue.statuses[i], 0);
            back.add(queue.slots[i]);
          }
          await new Promise((resolve) => setImmediate(resolve));
        }
        for (let slot = 0; slot < 7; slot++) assert.equal(block.bytes()[slot * 512], (round * 7 + slot) & 0xff);
      }
      for (const [blocks, at] of [
        [0, iova],
        [1, iova + 2],
        [300, iova],
        [NaN, iova],
        [1, -4],
      ])
        throwsDma('EINVAL', () => queue.read(0, 1, 0, blocks, at), /1 to 256 blocks/);
      throwsDma('EINVAL', () => queue.read(7, 1, 0, 1, iova), /no slot 7/);
      throwsDma('EINVAL', () => queue.read(0, 9, 0, 1, iova), /no namespace 9/);
      await ssd.closeQueue(queue);
      assert.equal(fake.ioQueues, 1);
      throwsDma('ECANCELED', () => queue.read(0, 1, 0, 1, iova));
      block.free();
    }));

  it('tells of what was taken when there would be no room for more, or for each batch when it interrupts', () =>
    withDisk({}, async ({ eal, device, ssd, fake }) => {
      const block = eal.malloc(4096, { align: 4096 });
      const iova = device.iovaOf(block);
      const rounds = 100;
      for (const interrupts of [false, true]) {
        const queue = await ssd.openQueue({ entries: 64, interrupts });
        for (let round = 0; round < rounds; round++) {
          for (let slot = 0; slot < 7; slot++) queue.read(slot, 1, slot, 1, iova + slot * 512);
          queue.ring();
          await until(() => (queue.poll(), queue.running === 0), 'the commands complete');
        }
        const heads = fake.doorbells.get(0x1000 + (2 * queue.id + 1) * 4) ?? 0;
        // 57 may be untold beside 7 that run.
        if (interrupts) assert.ok(heads >= rounds, `${heads}`);
        else assert.equal(heads, Math.floor(((rounds - 1) * 7) / 63));
        assert.equal(fake.overruns, 0);
        await ssd.closeQueue(queue);
      }
      // As many as it can hold, again and again.
      const full = await ssd.openQueue({ entries: 4 });
      for (let round = 0; round < 10; round++) {
        for (let slot = 0; slot < 3; slot++) full.read(slot, 1, slot, 1, iova + slot * 512);
        full.ring();
        await until(() => (full.poll(), full.running === 0), 'the commands complete');
      }
      assert.equal(fake.overruns, 0);
      block.free();
    }));

  it('can be polled when it is closed, and when its device is: what ran is returned, and then nothing', () =>
    withDisk({}, async ({ eal, device, ssd, fake, block }) => {
      const closed = await ssd.openQueue({ entries: 4 });
      await ssd.closeQueue(closed);
      assert.equal(closed.poll(), 0);
      const queue = await ssd.openQueue({ entries: 4 });
      fake.misbehave = ({ queue: id }) => (id > 0 ? 'lose' : undefined);
      queue.read(2, 1, 0, 1, device.iovaOf(block));
      queue.ring();
      await eal.remove(device);
      assert.equal(queue.poll(), 1);
      assert.deepEqual([queue.slots[0], queue.statuses[0], queue.running], [2, ABORTED_BY_HOST, 0]);
      assert.equal(queue.poll(), 0);
    }));

  it('goes on when what it calls throws, which is an uncaught exception', () => {
    const program = `
      import { Eal } from ${JSON.stringify(new URL('../../index.js', import.meta.url).href)};
      import { nvmeDriver } from ${JSON.stringify(new URL('../../entry/nvme.js', import.meta.url).href)};
      process.on('uncaughtException', (error) => console.log('uncaught', error.message));
      const eal = await Eal.start({ memory: { noHuge: true } });
      const device = await eal.probe('vdev:nvme0');
      const ssd = device.use(nvmeDriver);
      const block = eal.malloc(4096, { align: 4096 });
      const onCompletions = (count, { slots: [slot] }) => {
        if (slot === 1) return console.log('the next one');
        throw new Error('oops');
      };
      const queue = await ssd.openQueue({ onCompletions });
      for (const slot of [0, 1]) {
        queue.read(slot, 1, 0, 1, device.iovaOf(block));
        queue.ring();
        for (let turn = 0; queue.running > 0 && turn < 2000; turn++) await new Promise((resolve) => setTimeout(resolve, 1));
      }
      block.free();
      await eal.stop();`;
    const args = ['--input-type=module', '--eval', program];
    const { status, stdout, stderr } = spawnSync(process.execPath, args, { encoding: 'utf8' });
    assert.equal(status, 0, stderr);
    assert.deepEqual(stdout.trim().split('\n'), ['uncaught oops', 'the next one']);
  });

  it('calls back with completions', () =>
    withDisk({}, async ({ eal, device, ssd }) => {
      const block = eal.malloc(4096, { align: 4096 });
      const iova = device.iovaOf(block);
      let [sent, done] = [0, 0];
      const finished = new Promise<void>((resolve) => {
        const onCompletions = (count: number, queue: NvmeQueue): void => {
          done += count;
          if (done === 100) return resolve();
          for (let i = 0; i < count && sent < 100; i++) queue.write(queue.slots[i], 1, sent++, 1, iova);
          queue.ring();
        };
        void ssd.openQueue({ entries: 16, onCompletions }).then((queue) => {
          for (let slot = 0; slot < 15; slot++) queue.write(slot, 1, sent++, 1, iova);
          queue.ring();
        });
      });
      await finished;
      assert.equal(done, 100);
      block.free();
    }));
});

it('a queue knows the new format of a namespace', async () => {
  await using eal = await Eal.start(QUIET);
  eal.vdev.define('formatted', deviceModel('nvme', { size: MiB, blockSize: 512 }));
  const device = await eal.probe('vdev:formatted0');
  const ssd = device.use(nvmeDriver);
  const disk = ssd.namespace(1);
  const queue = await ssd.openQueue({ entries: 4 });
  using block = eal.malloc(16 * KiB, { align: 4096 });
  const read = async (): Promise<void> => {
    block.bytes().fill(9);
    queue.read(0, 1, 0, 2, device.iovaOf(block));
    queue.ring();
    await until(() => queue.poll() === 1, 'it is back');
    assert.equal(queue.statuses[0], 0);
    assert.equal(block.bytes().indexOf(9), 2 * disk.blockSize);
  };
  await read();
  await ssd.format(disk, { format: disk.identity.formats.findIndex(({ blockSize }) => blockSize === 4096) });
  assert.equal(disk.blockSize, 4096);
  await read();
});

describe('a controller’s own memory', () => {
  it('is a buffer that a submission ring can be in', async () => {
    await using eal = await Eal.start(QUIET);
    eal.vdev.define('buffered', deviceModel('nvme', { memoryBuffer: 64 * KiB, size: MiB }));
    const device = await eal.probe('vdev:buffered0');
    const ssd = device.use(nvmeDriver);
    using block = eal.malloc(64 * KiB, { align: 4096 });
    const iova = device.iovaOf(block);
    fill(block.bytes(), 6);
    await ssd.namespace(1).write({ lba: 0, from: block });
    const wanted = sum(block.bytes());
    for (let opened = 0; opened < 2; opened++) {
      const queue = await ssd.openQueue({ entries: 16, controllerMemory: true });
      block.bytes().fill(0);
      // Around the ring more than once.
      for (let at = 0; at < 128; at += 8) {
        for (let slot = 0; slot < 8; slot++) queue.read(slot, 1, at + slot, 1, iova + (at + slot) * 512);
        queue.ring();
        let back = 0;
        await until(() => (back += queue.poll()) === 8, 'they are back');
      }
      assert.equal(sum(block.bytes()), wanted);
      // Its place is free again, or is in use until the reset has put it there anew.
      if (opened === 0) await ssd.closeQueue(queue);
      else {
        await ssd.reset();
        queue.read(0, 1, 3, 1, iova);
        queue.ring();
        await until(() => queue.poll() === 1, 'it works after a reset');
        assert.equal(queue.statuses[0], 0);
      }
    }
    await assert.rejects(
      ssd.openQueue({ entries: 1024, controllerMemory: true }),
      dmaError('ENOSPC', /64 KiB is full/),
    );
  });

  it('is asked for in vain where there is none', () =>
    withDisk({}, async ({ eal, ssd }) => {
      await assert.rejects(ssd.openQueue({ controllerMemory: true }), dmaError('ENOTSUP', /no memory buffer/));
      using block = eal.malloc(4096, { align: 4096 });
      await assert.rejects(ssd.lendMemory(block), dmaError('ENOTSUP', /wants no memory/));
    }));

  it('is taken back, when the call that lent it was given up and done all the same', () =>
    withDisk({ hostMemory: 4 }, async ({ eal, ssd, fake }) => {
      const given = (): number[] =>
        fake.log
          .filter(
            ({ queue, opcode, cdw10 }) => queue === 0 && opcode === ADMIN.SET_FEATURES && cdw10 === FEATURE.HOST_MEMORY,
          )
          .map(({ cdw11 }) => cdw11);
      fake.misbehave = ({ cdw10, cdw11 }) => (cdw10 === FEATURE.HOST_MEMORY && cdw11 === 1 ? 'hold' : undefined);
      ssd.configure({ timeoutMs: 20, abortMs: 60_000 });
      using block = eal.malloc(16 * KiB, { align: 4096 });
      const lending = ssd.lendMemory(block);
      await until(() => fake.log.some(({ queue, opcode }) => queue === 0 && opcode === ADMIN.ABORT));
      ssd.configure({ timeoutMs: 30_000 });
      fake.letGo();
      await assert.rejects(lending, dmaError('ETIMEDOUT', /done all the same/));
      assert.deepEqual(given(), [1, 0]);
    }));

  it('is lent to it, stays lent over a reset, and can not be freed until it is taken back', () =>
    withDisk({ hostMemory: 4 }, async ({ eal, device, ssd, fake }) => {
      using small = eal.malloc(8 * KiB, { align: 4096 });
      await assert.rejects(ssd.lendMemory(small), dmaError('EINVAL', /needs 16 KiB/));
      using block = eal.malloc(64 * KiB, { align: 4096 });
      const range = (offset: number, length: number): { va: Va; length: number } => ({
        va: (block.va + offset) as Va,
        length,
      });
      await assert.rejects(ssd.lendMemory(range(512, 16 * KiB)), dmaError('EINVAL', /whole pages/));
      await ssd.lendMemory([range(0, 8 * KiB), range(32 * KiB, 8 * KiB)]);
      const given = (): FakeNvme['log'] =>
        fake.log.filter(
          ({ queue, opcode, cdw10 }) => queue === 0 && opcode === ADMIN.SET_FEATURES && cdw10 === FEATURE.HOST_MEMORY,
        );
      const { entry, cdw11, cdw12 } = given().at(-1) ?? assert.fail();
      assert.deepEqual([cdw11, cdw12, entry.getUint32(SQE.CDW15, true)], [1, 4, 2]);
      const list = entry.getUint32(SQE.CDW13, true) + entry.getUint32(SQE.CDW14, true) * 2 ** 32;
      const view = new DataView(fake.bytesAt(list, 32).slice().buffer);
      assert.deepEqual(
        [0, 16].map((at) => [Number(view.getBigUint64(at, true)), view.getUint32(at + 8, true)]),
        [range(0, 0), range(32 * KiB, 0)].map(({ va }) => [device.iovaOf(va), 2]),
      );
      throwsDma('EBUSY', () => block.free(), /lent to \(lendMemory\)/);
      await assert.rejects(ssd.lendMemory(block), dmaError('EBUSY', /takeMemoryBack/));
      await ssd.reset();
      assert.equal(given().at(-1)?.cdw11, 3, 'enabled, and what was there before');
      await ssd.takeMemoryBack();
      assert.equal(given().at(-1)?.cdw11, 0);
      block.free();
    }));
});

describe('memory', () => {
  it('that is mapped for something else is EACCES before anything is sent', () =>
    withDisk({}, async ({ eal, device, disk, fake }) => {
      using memory = eal.external.allocate(64 * KiB);
      using _mapping = device.dmaMap(memory, { access: 'read' });
      await disk.write({ lba: 0, from: memory });
      const before = fake.log.length;
      await assert.rejects(disk.read({ lba: 0, into: memory }), dmaError('EACCES', /may write it.*dmaMap/));
      await assert.rejects(disk.io({ opcode: NVM.READ, into: memory, length: 512 }), dmaError('EACCES'));
      assert.equal(fake.log.length, before);
    }));

  it('of the driver’s own is used again, so that looked-up addresses stay valid', () =>
    withDisk({}, async ({ device, ssd, disk }) => {
      await disk.deallocate([{ lba: 0, blocks: 1 }]);
      await ssd.logPage(2, 512);
      const { domain } = device;
      const before = [domain?.table.generation, domain?.entries];
      for (let lba = 0; lba < 20; lba++) await disk.deallocate([{ lba, blocks: 1 }]);
      await ssd.logPage(2, 512);
      // Nothing was mapped or unmapped.
      assert.deepEqual([domain?.table.generation, domain?.entries], before);
    }));

  it('is not freed or unmapped under a running command, which the error names', () =>
    withDisk({}, async ({ eal, device, ssd, disk, fake }) => {
      using memory = eal.external.allocate(64 * KiB);
      const mapping = device.dmaMap(memory);
      const block = eal.malloc(4096, { align: 4096 });
      fake.misbehave = ({ queue }) => (queue > 0 ? 'hold' : undefined);
      const running = [
        disk.read({ lba: 64, blocks: 8, into: block }),
        disk.write({ lba: 3, blocks: 16, from: memory }),
      ];
      throwsDma('EBUSY', () => block.free(), /read of 8 blocks at LBA 64 of namespace 1 uses this memory/);
      throwsDma('EBUSY', () => mapping.unmap(), /write of 16 blocks at LBA 3/);
      throwsDma('EBUSY', () => memory.unregister(), /mapped by vdev/);
      await until(() => fake.log.filter(({ queue }) => queue > 0).length === 2, 'both run');
      fake.letGo();
      await Promise.all(running);
      const queue = await ssd.openQueue({ entries: 4 });
      queue.read(0, 1, 5, 8, device.iovaOf(block));
      queue.ring();
      throwsDma('EBUSY', () => block.free(), /read of 8 blocks at LBA 5/);
      await until(() => fake.log.filter((command) => command.queue > 0).length === 3, 'it runs');
      fake.letGo();
      await until(() => queue.poll() === 1, 'it is back');
      block.free();
      mapping.unmap();
    }));

  it('of several places that are one for the device is held in all of them', () =>
    withDisk({}, async ({ eal, device, disk, fake }) => {
      const [first, second] = [eal.external.allocate(8 * KiB), eal.external.allocate(8 * KiB)];
      const [low] = [device.dmaMap(first, { iova: 0x4000_0000 })];
      const high = device.dmaMap(second, { iova: 0x4000_2000 });
      fake.misbehave = ({ queue }) => (queue > 0 ? 'hold' : undefined);
      const into = [
        { va: (first.va + 4096) as Va, length: 4096 },
        { va: second.va, length: 4096 },
      ];
      const read = disk.read({ lba: 0, blocks: 16, into });
      throwsDma('EBUSY', () => low.unmap(), /read of 16 blocks at LBA 0/);
      throwsDma('EBUSY', () => high.unmap(), /read of 16 blocks at LBA 0/);
      await until(() => fake.log.some(({ queue }) => queue > 0), 'it runs');
      fake.letGo();
      await read;
      for (const mapping of [low, high]) mapping.unmap();
      for (const memory of [first, second]) memory.unregister();
    }));
});

describe('elements of a pool', () => {
  for (const cache of [0, 8])
    it(`are not put back while a call uses them, and can be afterwards${cache > 0 ? ' (with a cache)' : ''}`, () =>
      withDisk({}, async ({ eal, ssd, disk, fake }) => {
        using pool = eal.pools.create({ name: 'data', elements: 16, elementSize: 4096, headroom: 64, cache });
        const numbers = new Int32Array(4);
        assert.ok(pool.get(numbers, 4));
        const part = (index: number, offset: number, length: number): { va: Va; length: number } => ({
          va: (pool.vas[numbers[index]] + offset) as Va,
          length,
        });
        const before = pool.available;
        fake.misbehave = ({ queue }) => (queue > 0 ? 'hold' : undefined);
        const abort = new AbortController();
        const calls = Promise.allSettled([
          // The last byte, a part in the middle, and several of them.
          disk.read({ lba: 64, blocks: 1, into: part(0, 3584, 512) }),
          disk.write({ lba: 7, blocks: 2, from: [part(1, 512, 512), part(2, 1024, 512)], signal: abort.signal }),
        ]);
        throwsDma('EBUSY', () => pool.put(numbers, 1), /read of 1 block at LBA 64.* uses element \d+ of the pool data/);
        throwsDma('EBUSY', () => pool.put(numbers, 1, 1), /LBA 7/);
        throwsDma('EBUSY', () => pool.put(numbers, 1, 2), /LBA/);
        // All or none, and what can not be is said first.
        throwsDma('EBUSY', () => pool.put(Int32Array.of(numbers[3], numbers[0]), 2), /LBA 64/);
        throwsDma('EINVAL', () => pool.put(numbers, 5), /4/);
        assert.equal(pool.available, before);
        pool.put(numbers, 1, 3);
        assert.equal(pool.available, before + 1);
        // What waits for a slot counts, and so does what was given up until it is back.
        const waiting = Array.from({ length: 2000 }, (_, i) => disk.read({ lba: i, blocks: 1, into: part(0, 0, 512) }));
        throwsDma('EBUSY', () => pool.put(numbers, 1), /LBA/);
        abort.abort();
        throwsDma('EBUSY', () => pool.put(numbers, 1, 1), /LBA 7/);
        fake.misbehave = () => undefined;
        await until(() => fake.log.filter(({ queue }) => queue > 0).length > 2, 'they run');
        fake.letGo();
        await Promise.all([calls, ...waiting]);
        pool.put(numbers, 3);
        assert.equal(pool.available, 16);
        // By any command.
        assert.ok(pool.get(numbers, 1));
        fake.misbehave = () => 'hold';
        const admin = assert.rejects(
          ssd.admin({ opcode: ADMIN.IDENTIFY, cdw10: 1, into: part(0, 0, 4096) }),
          dmaError('ECANCELED'),
        );
        throwsDma('EBUSY', () => pool.put(numbers, 1), /^pool.put: identify uses element/);
        fake.misbehave = () => undefined;
        await ssd.reset();
        await admin;
        pool.put(numbers, 1);
      }));

  it('that were lent to the controller are not put back', () =>
    withDisk({ hostMemory: 4 }, async ({ eal, ssd }) => {
      using pool = eal.pools.create({ elements: 2, elementSize: 16 * KiB, align: 4096 });
      const numbers = new Int32Array(1);
      assert.ok(pool.get(numbers, 1));
      await ssd.lendMemory({ va: pool.vas[numbers[0]], length: 16 * KiB });
      throwsDma('EBUSY', () => pool.put(numbers, 1), /lent to \(lendMemory\), uses element/);
      await ssd.takeMemoryBack();
      pool.put(numbers, 1);
    }));
});
