import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { NvmeHost, type HostQueue } from '../../../../test/fakes/vfio-user/nvme-host.js';
import { heldCalls } from '../../../../test/fakes/vfio-user/image-calls.js';
import { pattern, turn, type Reach } from '../../../../test/fakes/vfio-user/model-host.js';
import { Random } from '../../../../test/shared/random.js';
import { ADMIN, ALL_NAMESPACES, FEATURE, IO_CDW12, LOG, NVM } from '../../../nvme/commands.js';
import { CRITICAL_WARNING, healthOf } from '../../../nvme/log-pages.js';
import { STATUS } from '../../../nvme/status.js';
import { type ImageCalls, NODE_CALLS } from './image.js';

const PAGE = 4096;
const BYTES = 512 * 1024;

/** Calls that note what reaches the file, and in which order. */
function noting(): { readonly notes: string[]; readonly calls: ImageCalls } {
  const notes: string[] = [];
  const calls: ImageCalls = {
    ...NODE_CALLS,
    fdatasync: ((fd: number, done: (error: Error | null) => void) => {
      notes.push('sync');
      NODE_CALLS.fdatasync(fd, (error) => done(error));
    }) as ImageCalls['fdatasync'],
  };
  return { notes, calls };
}

/** Random commands against a plain array: every byte is compared. */
async function compareWithModel(nvme: NvmeHost, queue: HostQueue, blockSize: number, commands: number): Promise<void> {
  const random = new Random(blockSize);
  const disk = new Uint8Array(BYTES);
  const blocks = BYTES / blockSize;
  const memory = nvme.pages(40);
  const ranges = nvme.pages();
  for (let n = 0; n < commands; n++) {
    const count = 1 + random.below(Math.min(32, (128 * 1024) / blockSize));
    const lba = random.below(blocks - count + 1);
    const at = memory + 4 * random.below(1024);
    const bytes = nvme.at(at, count * blockSize);
    const content = disk.subarray(lba * blockSize, (lba + count) * blockSize);
    switch (random.below(7)) {
      case 0:
      case 1: {
        bytes.set(pattern(bytes.length, n));
        content.set(bytes);
        assert.equal((await nvme.write(queue, lba, count, at, blockSize)).status, 0);
        break;
      }
      case 2:
      case 3:
        bytes.fill(0x55);
        assert.equal((await nvme.read(queue, lba, count, at, blockSize)).status, 0);
        assert.deepEqual(bytes, content, `command ${n}`);
        break;
      case 4: {
        const deallocate = random.oneIn(2) ? IO_CDW12.DEALLOCATE : 0;
        const entry = { opcode: NVM.WRITE_ZEROES, nsid: 1, cdw10: lba, cdw12: (count - 1) | deallocate };
        assert.equal(await nvme.status(entry, queue), 0);
        content.fill(0);
        break;
      }
      case 5: {
        nvme.at(ranges, 32).fill(0);
        nvme.view.setUint32(nvme.at(ranges, 16).byteOffset + 4, count, true);
        nvme.put64(ranges + 8, lba);
        // The second range is empty.
        const entry = { opcode: NVM.DATASET_MANAGEMENT, nsid: 1, prp1: ranges, cdw10: 1, cdw11: 4 };
        assert.equal(await nvme.status(entry, queue), 0);
        content.fill(0);
        break;
      }
      default: {
        bytes.set(content);
        const entry = nvme.io(NVM.COMPARE, lba, count, at, blockSize);
        assert.equal(await nvme.status(entry, queue), 0);
        bytes[random.below(bytes.length)] ^= 1;
        assert.equal(await nvme.status(entry, queue), STATUS.COMPARE_FAILURE);
        assert.equal(await nvme.status({ opcode: NVM.VERIFY, nsid: 1, cdw10: lba, cdw12: count - 1 }, queue), 0);
      }
    }
  }
}

describe('NVMe I/O', () => {
  for (const blockSize of [512, 4096])
    for (const reach of ['direct', 'copied', 'messages'] as const satisfies readonly Reach[])
      it(`is what a plain array does, blocks of ${blockSize}, ${reach}`, async () => {
        const nvme = await new NvmeHost({ size: BYTES, blockSize }, reach).enable();
        await compareWithModel(nvme, await nvme.createQueue(), blockSize, reach === 'messages' ? 60 : 150);
        nvme.close();
      });

  it('is the same on a file of a disk, whose calls take time', async () => {
    const directory = mkdtempSync(join(tmpdir(), 'anydma-nvme-'));
    const file = join(directory, 'disk.img');
    try {
      writeFileSync(file, new Uint8Array(BYTES));
      const nvme = await new NvmeHost({ file, blockSize: 4096 }).enable();
      await compareWithModel(nvme, await nvme.createQueue(), 4096, 60);
      nvme.close();
    } finally {
      rmSync(directory, { recursive: true, force: true });
    }
  });

  it('blocks behind the end are refused: 64-bit addresses, and counts from 1 on', async () => {
    const nvme = await new NvmeHost({ size: BYTES }).enable();
    const queue = await nvme.createQueue();
    const page = nvme.pages();
    const blocks = BYTES / 512;
    for (const opcode of [NVM.READ, NVM.WRITE, NVM.COMPARE, NVM.WRITE_ZEROES, NVM.VERIFY]) {
      const status = (lba: number, count: number, high = 0): Promise<number> =>
        nvme.status(nvme.io(opcode, lba, count, page, 512, { cdw11: high }), queue);
      assert.equal(await status(blocks - 1, 1), 0);
      assert.equal(await status(blocks - 8, 8), 0);
      assert.equal(await status(blocks - 7, 8), STATUS.LBA_OUT_OF_RANGE);
      assert.equal(await status(blocks, 1), STATUS.LBA_OUT_OF_RANGE);
      assert.equal(await status(0, 1, 1), STATUS.LBA_OUT_OF_RANGE);
      assert.equal(await status(0xffffffff, 1, 0xffffffff), STATUS.LBA_OUT_OF_RANGE);
    }
    const range = nvme.pages();
    nvme.put64(range, 8 * 2 ** 32);
    nvme.put64(range + 8, blocks - 7);
    const entry = { opcode: NVM.DATASET_MANAGEMENT, nsid: 1, prp1: range, cdw11: 4 };
    assert.equal(await nvme.status(entry, queue), STATUS.LBA_OUT_OF_RANGE);
    nvme.close();
  });

  it('namespaces are apart, and ids that are none are refused', async () => {
    const nvme = await new NvmeHost({ namespaces: [{ size: BYTES }, { size: BYTES, blockSize: 4096 }] }).enable();
    const queue = await nvme.createQueue();
    const page = nvme.pages();
    nvme.at(page, PAGE).fill(1);
    assert.equal(await nvme.status(nvme.io(NVM.WRITE, 0, 1, page, 4096, { nsid: 2 }), queue), 0);
    assert.equal((await nvme.read(queue, 0, 8, page)).status, 0);
    assert.ok(nvme.at(page, PAGE).every((byte) => byte === 0));
    for (const nsid of [0, 3, ALL_NAMESPACES])
      assert.equal(await nvme.status(nvme.io(NVM.READ, 0, 1, page, 512, { nsid }), queue), STATUS.INVALID_NAMESPACE);
    assert.equal(await nvme.status({ opcode: NVM.FLUSH, nsid: ALL_NAMESPACES }, queue), 0);
    // Two commands that are to be one are not offered.
    assert.equal(await nvme.status(nvme.io(NVM.READ, 0, 1, page, 512, { flags: 1 }), queue), STATUS.INVALID_FIELD);
    nvme.close();
  });
});

describe('NVMe write cache', () => {
  it('flush and FUA reach the disk before the host is told; other writes do not', async () => {
    const { notes, calls } = noting();
    const nvme = await new NvmeHost({ size: BYTES }, 'direct', calls).enable();
    const queue = await nvme.createQueue();
    const page = nvme.pages();
    assert.equal((await nvme.write(queue, 0, 1, page)).status, 0);
    assert.deepEqual(notes, []);
    assert.equal(await nvme.status({ opcode: NVM.FLUSH, nsid: 1 }, queue), 0);
    assert.deepEqual(notes, ['sync']);
    assert.equal(await nvme.status({ opcode: NVM.FLUSH, nsid: 1 }, queue), 0);
    assert.deepEqual(notes, ['sync'], 'there was nothing to flush');
    for (const entry of [nvme.io(NVM.WRITE, 0, 1, page), { opcode: NVM.WRITE_ZEROES, nsid: 1, cdw12: 0 }]) {
      notes.length = 0;
      assert.equal(await nvme.status({ ...entry, cdw12: IO_CDW12.FUA }, queue), 0);
      assert.deepEqual(notes, ['sync']);
    }
    nvme.close();
  });

  it('off: every write reaches the disk, and so does what was cached', async () => {
    const { notes, calls } = noting();
    const nvme = await new NvmeHost({ size: BYTES }, 'direct', calls).enable();
    const queue = await nvme.createQueue();
    const page = nvme.pages();
    assert.equal((await nvme.write(queue, 0, 1, page)).status, 0);
    assert.equal(await nvme.status({ opcode: ADMIN.SET_FEATURES, cdw10: FEATURE.WRITE_CACHE, cdw11: 0 }), 0);
    assert.deepEqual(notes, ['sync']);
    assert.equal((await nvme.write(queue, 0, 1, page)).status, 0);
    assert.deepEqual(notes, ['sync', 'sync']);
    nvme.close();
  });

  it('a flush covers writes that ended while another flush was under way', async () => {
    const { calls, held } = heldCalls('sync');
    const nvme = await new NvmeHost({ size: BYTES }, 'direct', calls).enable();
    const queue = await nvme.createQueue();
    const page = nvme.pages();
    await nvme.write(queue, 0, 1, page);
    nvme.put(queue, { opcode: NVM.FLUSH, nsid: 1 });
    nvme.ring(queue);
    await nvme.until(() => held.length === 1);
    await nvme.write(queue, 1, 1, page);
    const ids = [1, 2, 3].map(() => nvme.put(queue, { opcode: NVM.FLUSH, nsid: 1 }));
    nvme.ring(queue);
    await turn(5);
    assert.equal(held.length, 1);
    held.shift()?.end();
    await nvme.finish(queue, 1);
    assert.deepEqual(nvme.take(queue), [], 'the others wait for a sync that began after the write');
    assert.equal(held.length, 1, 'one for all of them');
    held.shift()?.end();
    const got = await nvme.finish(queue, 3);
    assert.deepEqual(new Set(got.map(({ cid }) => cid)), new Set(ids));
    nvme.close();
  });

  it('a sync that failed is told, and no later one says that all is well', async () => {
    let broken = true;
    const calls: ImageCalls = {
      ...NODE_CALLS,
      fdatasync: ((fd: number, done: (error: Error | null) => void) => {
        if (broken) setImmediate(() => done(Object.assign(new Error('broken'), { code: 'EIO' })));
        else NODE_CALLS.fdatasync(fd, (error) => done(error));
      }) as ImageCalls['fdatasync'],
    };
    const nvme = await new NvmeHost({ size: BYTES }, 'direct', calls).enable();
    const queue = await nvme.createQueue();
    await nvme.write(queue, 0, 1, nvme.pages());
    assert.equal(await nvme.status({ opcode: NVM.FLUSH, nsid: 1 }, queue), STATUS.WRITE_FAULT);
    broken = false;
    assert.equal(await nvme.status({ opcode: NVM.FLUSH, nsid: 1 }, queue), STATUS.WRITE_FAULT);
    const page = nvme.pages();
    await nvme.run(nvme.admin, { opcode: ADMIN.GET_LOG_PAGE, prp1: page, cdw10: LOG.SMART | (127 << 16) });
    assert.equal(healthOf(nvme.at(page, 512)).criticalWarning, CRITICAL_WARNING.RELIABILITY);
    nvme.close();
  });
});
