/** What controllers differ in: pages, metadata, arbitration, the addresses that they reach. */
import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { fill, QUIET, sum, withDisk } from '../../../test/fakes/nvme/disk.js';
import { dmaError, throwsDma } from '../../../test/shared/errors.js';
import { until } from '../../../test/shared/until.js';
import { Eal } from '../../eal.js';
import { NVM, SQE } from '../../nvme/commands.js';
import { KiB, MiB, type Va } from '../../units.js';
import { nvmeDriver } from './nvme-driver.js';

describe('pages', () => {
  it('of 16 KiB at least: MDTS counts in them, and lists are of them', () =>
    withDisk({ minPageSize: 16 * KiB, mdts: 3, blocks: 4096 }, async ({ eal, ssd, disk, fake }) => {
      assert.deepEqual([ssd.limits.pageSize, ssd.limits.maxTransfer], [16 * KiB, 128 * KiB]);
      using memory = eal.malloc(MiB, { align: 16 * KiB, contiguous: true });
      for (const offset of [0, 4, 4096, 12 * KiB + 512]) {
        const range = { va: (memory.va + offset) as Va, length: 512 * KiB };
        const bytes = fill(memory.bytes(offset, range.length), offset);
        const wanted = sum(bytes);
        fake.log.length = 0;
        await disk.write({ lba: 7, from: range });
        assert.equal(fake.log.filter(({ queue }) => queue > 0).length, 4);
        bytes.fill(0);
        await disk.read({ lba: 7, into: range });
        assert.equal(sum(bytes), wanted, `offset ${offset}`);
      }
    }));
});

describe('metadata', () => {
  it('behind each block is a part of the transfer, which is cut between blocks', () =>
    withDisk({ metadataSize: 16, metadataInline: true, mdts: 1 }, async ({ disk, fake, block }) => {
      assert.deepEqual([disk.blockSize, disk.transferSize], [512, 528]);
      const bytes = fill(block.bytes(4, 60 * 528), 1);
      const range = { va: (block.va + 4) as Va, length: bytes.length };
      const wanted = sum(bytes);
      fake.log.length = 0;
      await disk.write({ lba: 3, from: range });
      assert.deepEqual(
        fake.log.filter(({ queue }) => queue > 0).map(({ cdw10, cdw12 }) => [cdw10, cdw12 + 1]),
        [
          [3, 15],
          [18, 15],
          [33, 15],
          [48, 15],
        ],
      );
      assert.equal(sum(fake.disks[0].subarray(3 * 528, 63 * 528)), wanted);
      bytes.fill(0);
      await disk.read({ lba: 3, into: range });
      assert.equal(sum(bytes), wanted);
    }));

  it('apart has to be given: without a place the controller would use address 0', () =>
    withDisk({ metadataSize: 16 }, async ({ ssd, device, disk, fake, block }) => {
      assert.equal(disk.hasMetadataApart, true);
      const before = fake.log.length;
      for (const call of [
        disk.read({ lba: 0, blocks: 1, into: block }),
        disk.write({ lba: 0, blocks: 1, from: block }),
        disk.compare({ lba: 0, blocks: 1, to: block }),
      ])
        await assert.rejects(call, dmaError('EINVAL', /16 bytes of metadata for each block.*metadata/));
      assert.equal(fake.log.length, before);
      const queue = await ssd.openQueue({ entries: 4 });
      throwsDma('EINVAL', () => queue.read(0, 1, 0, 1, device.iovaOf(block)), /metadata apart/);
    }));

  it('that is protection information and nothing else is made and taken off by the controller', () =>
    withDisk({ metadataSize: 8, protection: 1, mdts: 1 }, async ({ disk, fake, block }) => {
      fake.log.length = 0;
      await disk.write({ lba: 100, blocks: 32, from: block });
      await disk.read({ lba: 100, blocks: 32, into: block });
      await disk.writeZeroes({ lba: 100, blocks: 32 });
      const sent = fake.log.filter(({ queue }) => queue > 0);
      // PRACT, and reference tags that are block numbers.
      assert.ok(sent.every(({ cdw12 }) => ((cdw12 >>> 26) & 0xf) === 8));
      assert.deepEqual(
        sent.map(({ opcode, entry }) => [opcode, entry.getUint32(SQE.CDW14, true)]),
        [
          [NVM.WRITE, 100],
          [NVM.WRITE, 116],
          [NVM.READ, 100],
          [NVM.READ, 116],
          [NVM.WRITE_ZEROES, 100],
        ],
      );
      await assert.rejects(disk.compare({ lba: 100, blocks: 1, to: block }), dmaError('EINVAL', /metadata/));
    }));
});

describe('arbitration', () => {
  it('is weighted where there is such a choice, with the priority that a queue asks for', () =>
    withDisk({ weighted: true }, async ({ ssd, fake }) => {
      assert.equal(fake.arbitration, 1);
      const priorities = ['urgent', 'high', 'low'] as const;
      const ids: number[] = [];
      for (const priority of priorities) ids.push((await ssd.openQueue({ entries: 4, priority })).id);
      assert.deepEqual(
        ids.map((id) => fake.priorities.get(id)),
        [0, 1, 3],
      );
      await ssd.reset();
      assert.deepEqual([fake.arbitration, fake.priorities.get(1)], [1, 2]);
      assert.deepEqual(
        ids.map((id) => fake.priorities.get(id)),
        [0, 1, 3],
      );
    }));

  it('is round robin elsewhere', () =>
    withDisk({}, async ({ fake }) => {
      assert.equal(fake.arbitration, 0);
      return Promise.resolve();
    }));
});

describe('addresses', () => {
  it('stay below what the controller reaches', async () => {
    await using eal = await Eal.start(QUIET);
    for (const bits of [32, 39]) {
      const device = await eal.probe(`vdev:nvme${bits},dma-mask=${bits}`);
      const ssd = device.use(nvmeDriver);
      using block = eal.malloc(64 * KiB, { align: 4096 });
      const queue = await ssd.openQueue({ entries: 4 });
      const mappings = [...(device.domain?.mappings() ?? [])];
      assert.ok(mappings.length > 0);
      assert.ok(mappings.every(({ iova, length }) => iova + length <= 2 ** bits));
      const wanted = sum(fill(block.bytes(), bits));
      await ssd.namespace(1).write({ lba: 0, from: block });
      block.bytes().fill(0);
      queue.read(0, 1, 0, 128, device.iovaOf(block));
      queue.ring();
      await until(() => queue.poll() === 1, 'it is back');
      assert.equal(sum(block.bytes()), wanted);
      await eal.remove(device);
    }
    for (const wrong of ['31', '65', 'x'])
      await assert.rejects(eal.probe(`vdev:nvme9,dma-mask=${wrong}`), dmaError('EINVAL', /32 to 64/));
  });
});
