import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { BASE, NvmeHost, type HostQueue } from '../../../../test/fakes/vfio-user/nvme-host.js';
import { pattern, type Reach } from '../../../../test/fakes/vfio-user/model-host.js';
import { ADMIN, NVM, PSDT, SGL } from '../../../nvme/commands.js';
import { STATUS } from '../../../nvme/status.js';

const PAGE = 4096;
const REACHES: readonly Reach[] = ['direct', 'copied', 'messages'];

/** A host with an I/O queue, and a disk of a known content. */
async function bench(
  reach: Reach = 'direct',
  maxTransfer?: number,
): Promise<{ nvme: NvmeHost; queue: HostQueue; disk: Uint8Array }> {
  const nvme = await new NvmeHost({ size: 4 * 2 ** 20, maxTransfer }, reach).enable();
  const queue = await nvme.createQueue();
  const disk = pattern(2 ** 20, 7);
  const from = nvme.pages(256);
  nvme.at(from, disk.length).set(disk);
  const step = Math.min(maxTransfer ?? 2 ** 20, 2 ** 20);
  for (let at = 0; at < disk.length; at += step)
    assert.equal((await nvme.write(queue, at / 512, step / 512, from + at)).status, 0);
  return { nvme, queue, disk };
}

function descriptor(type: number, iova: number, length: number, subtype = 0): Uint8Array {
  const bytes = new Uint8Array(16);
  const view = new DataView(bytes.buffer);
  view.setUint32(0, iova % 2 ** 32, true);
  view.setUint32(4, iova / 2 ** 32, true);
  view.setUint32(8, length, true);
  bytes[15] = (type << 4) | subtype;
  return bytes;
}

describe('NVMe PRP entries', () => {
  for (const reach of REACHES) {
    it(`name memory at every offset and length, ${reach}`, async () => {
      const { nvme, queue, disk } = await bench(reach);
      const into = nvme.pages(300);
      for (const [offset, blocks] of [
        [0, 1],
        [4, 8],
        [PAGE - 512, 1],
        [PAGE - 512, 2],
        // The second entry is data.
        [PAGE - 4, 9],
        [0, 16],
        // The second entry is a list.
        [4, 16],
        [0, 17],
        [1024, 1000],
        [0, 2048],
      ]) {
        nvme.at(into, 300 * PAGE).fill(0);
        const completed = await nvme.read(queue, 3 % (2048 - blocks + 1), blocks, into + offset);
        assert.equal(completed.status, 0);
        const first = (3 % (2048 - blocks + 1)) * 512;
        assert.deepEqual(nvme.at(into + offset, blocks * 512), disk.subarray(first, first + blocks * 512));
        assert.ok(nvme.at(into, offset).every((byte) => byte === 0));
        assert.ok(nvme.at(into + offset + blocks * 512, 512).every((byte) => byte === 0));
      }
      nvme.close();
    });

    it(`a list goes on in the next page, wherever it begins, ${reach}`, async () => {
      const { nvme, queue, disk } = await bench(reach);
      const into = nvme.pages(256);
      for (const offset of [0, PAGE - 8, PAGE - 16, PAGE - 24, PAGE - 8 * 255, PAGE - 8 * 254]) {
        nvme.at(into, 2 ** 20).fill(0);
        const entry = nvme.io(NVM.READ, 0, 2048, into, 512, nvme.prps(into, 2 ** 20, offset));
        assert.equal((await nvme.run(queue, entry)).status, 0, `list at ${offset}`);
        assert.deepEqual(nvme.at(into, 2 ** 20), disk, `list at ${offset}`);
      }
      nvme.close();
    });
  }

  it('pages in any order', async () => {
    const { nvme, queue, disk } = await bench();
    const pages = [7, 2, 5, 0];
    const into = nvme.pages(8);
    const entry = nvme.io(NVM.READ, 0, 32, into, 512, {
      prp1: into + pages[0] * PAGE,
      prp2: nvme.list(pages.slice(1).map((n) => into + n * PAGE)),
    });
    assert.equal((await nvme.run(queue, entry)).status, 0);
    for (const [n, page] of pages.entries())
      assert.deepEqual(nvme.at(into + page * PAGE, PAGE), disk.subarray(n * PAGE, (n + 1) * PAGE));
    nvme.close();
  });

  it('pages of 16 KiB, when the host has such', async () => {
    const nvme = await new NvmeHost({ size: 2 ** 20 }).enable(2 << 7);
    const queue = await nvme.createQueue(1, 64).catch(() => undefined);
    // Queues begin at whole pages of the host, too.
    assert.equal(queue, undefined);
    nvme.close();
  });

  it('with a wrong offset are refused, and nothing is moved', async () => {
    const { nvme, queue } = await bench();
    const into = nvme.pages(16);
    const read = (prp1: number, prp2: number, blocks: number): Promise<number> =>
      nvme.status({ opcode: NVM.READ, nsid: 1, prp1, prp2, cdw12: blocks - 1 }, queue);
    assert.equal(await read(into + 2, 0, 1), STATUS.INVALID_PRP_OFFSET);
    assert.equal(await read(into, into + PAGE + 4, 16), STATUS.INVALID_PRP_OFFSET);
    assert.equal(await read(into, nvme.list([into, into + 8]), 24), STATUS.INVALID_PRP_OFFSET);
    assert.equal(await read(into, nvme.list([into, into]) + 4, 24), STATUS.INVALID_PRP_OFFSET);
    // The address of the next list has an offset.
    const list = nvme.pages();
    nvme.put64(list + PAGE - 8, nvme.pages() + 8);
    assert.equal(await read(into, list + PAGE - 8, 24), STATUS.INVALID_PRP_OFFSET);
    assert.ok(nvme.at(into, PAGE).every((byte) => byte === 0));
    nvme.close();
  });

  it('that can not be reached are a transfer error', async () => {
    for (const reach of REACHES) {
      const { nvme, queue } = await bench(reach);
      const into = nvme.pages(16);
      const status = (prp1: number, prp2: number, blocks: number, opcode: number = NVM.READ): Promise<number> =>
        nvme.status({ opcode, nsid: 1, prp1, prp2, cdw12: blocks - 1 }, queue);
      assert.equal(await status(0x1000, 0, 1), STATUS.DATA_TRANSFER_ERROR);
      assert.equal(await status(0x1000, 0, 1, NVM.WRITE), STATUS.DATA_TRANSFER_ERROR);
      assert.equal(await status(2 ** 60, 0, 1), STATUS.DATA_TRANSFER_ERROR);
      assert.equal(await status(into, 0x1000, 16), STATUS.DATA_TRANSFER_ERROR);
      assert.equal(await status(into, 0x1000, 24), STATUS.DATA_TRANSFER_ERROR);
      assert.equal(await status(into, 2 ** 60, 24), STATUS.DATA_TRANSFER_ERROR);
      assert.equal(await status(into, nvme.list([into, 0x1000]), 24, NVM.WRITE), STATUS.DATA_TRANSFER_ERROR);
      // Memory that may only be read.
      nvme.memory.map(0x10000, new Uint8Array(PAGE), 'read');
      assert.equal(await status(0x10000, 0, 1), STATUS.DATA_TRANSFER_ERROR);
      assert.equal(await status(0x10000, 0, 1, NVM.WRITE), STATUS.SUCCESS);
      assert.equal(await status(into, 0, 1), STATUS.SUCCESS);
      nvme.close();
    }
  });

  it('a range over two mappings is reached as one', async () => {
    const { nvme, queue, disk } = await bench();
    const end = BASE + nvme.bytes.length;
    const more = nvme.memory.map(end, new Uint8Array(PAGE));
    assert.equal((await nvme.read(queue, 0, 16, end - PAGE)).status, 0);
    assert.deepEqual(nvme.at(end - PAGE, PAGE), disk.subarray(0, PAGE));
    assert.deepEqual(more, disk.subarray(PAGE, 2 * PAGE));
    nvme.close();
  });

  it('more than MDTS is refused: it counts in pages of 4 KiB', async () => {
    const { nvme, queue } = await bench('direct', 8192);
    const page = await nvme.identify(1);
    assert.equal(page[77], 1);
    const into = nvme.pages(4);
    assert.equal((await nvme.read(queue, 0, 16, into)).status, 0);
    assert.equal((await nvme.read(queue, 0, 17, into)).status, STATUS.INVALID_FIELD);
    nvme.close();
  });
});

describe('NVMe scatter-gather lists', () => {
  for (const reach of REACHES)
    it(`name pieces of any length, in several segments, ${reach}`, async () => {
      const { nvme, queue, disk } = await bench(reach);
      const into = nvme.pages(4);
      const pieces = [
        [3, 1],
        [100, 700],
        [5000, 2000],
        [9001, 4096 - 2701],
      ];
      const first = nvme.pages();
      const second = nvme.pages();
      const descriptors = pieces.map(([at, length]) => descriptor(SGL.DATA_BLOCK, into + at, length));
      nvme.at(first, PAGE).set(descriptors[0]);
      nvme.at(first + 16, 16).set(descriptors[1]);
      nvme.at(first + 32, 16).set(descriptor(SGL.LAST_SEGMENT, second + 48, 32));
      nvme.at(second + 48, 16).set(descriptors[2]);
      nvme.at(second + 64, 16).set(descriptors[3]);
      const entry = { nsid: 1, sgl: descriptor(SGL.SEGMENT, first, 48), cdw10: 1, cdw12: 7 };
      assert.equal((await nvme.run(queue, { ...entry, opcode: NVM.READ })).status, 0);
      let from = 512;
      for (const [at, length] of pieces) {
        assert.deepEqual(nvme.at(into + at, length), disk.subarray(from, from + length));
        from += length;
      }
      // And back.
      assert.equal((await nvme.run(queue, { ...entry, opcode: NVM.WRITE, cdw10: 4000 })).status, 0);
      const back = nvme.pages();
      assert.equal((await nvme.read(queue, 4000, 8, back)).status, 0);
      assert.deepEqual(nvme.at(back, PAGE), disk.subarray(512, 512 + PAGE));
      nvme.close();
    });

  it('one descriptor in the entry; more than is needed is not used', async () => {
    const { nvme, queue, disk } = await bench();
    const into = nvme.pages();
    const read = (sgl: Uint8Array): Promise<number> => nvme.status({ opcode: NVM.READ, nsid: 1, sgl }, queue);
    assert.equal(await read(descriptor(SGL.DATA_BLOCK, into + 1, 600)), 0);
    assert.deepEqual(nvme.at(into + 1, 512), disk.subarray(0, 512));
    assert.ok(nvme.at(into + 513, 100).every((byte) => byte === 0));
    assert.equal(await read(descriptor(SGL.DATA_BLOCK, into, 511)), STATUS.DATA_SGL_LENGTH);
    nvme.close();
  });

  it('a bit bucket swallows bytes of a read, and is nothing for a write', async () => {
    const { nvme, queue, disk } = await bench();
    const into = nvme.pages();
    const list = nvme.pages();
    nvme.at(list, 16).set(descriptor(SGL.DATA_BLOCK, into, 100));
    nvme.at(list + 16, 16).set(descriptor(SGL.BIT_BUCKET, 0, 212));
    nvme.at(list + 32, 16).set(descriptor(SGL.DATA_BLOCK, into + 1000, 200));
    const entry = { nsid: 1, sgl: descriptor(SGL.LAST_SEGMENT, list, 48) };
    assert.equal((await nvme.run(queue, { ...entry, opcode: NVM.READ })).status, 0);
    assert.deepEqual(nvme.at(into, 100), disk.subarray(0, 100));
    assert.deepEqual(nvme.at(into + 1000, 200), disk.subarray(312, 512));
    assert.ok(nvme.at(into + 100, 900).every((byte) => byte === 0));
    assert.equal((await nvme.run(queue, { ...entry, opcode: NVM.WRITE })).status, STATUS.DATA_SGL_LENGTH);
    nvme.close();
  });

  it('nonsense is refused by the right status', async () => {
    const { nvme, queue } = await bench();
    const into = nvme.pages();
    const list = nvme.pages(2);
    const read = (sgl: Uint8Array, flags = PSDT.SGL << PSDT.SHIFT): Promise<number> =>
      nvme.status({ opcode: NVM.READ, nsid: 1, sgl, flags, cdw12: 7 }, queue);
    assert.equal(await read(descriptor(SGL.KEYED, into, PAGE)), STATUS.SGL_TYPE_INVALID);
    assert.equal(await read(descriptor(SGL.DATA_BLOCK, into, PAGE, 1)), STATUS.SGL_TYPE_INVALID);
    assert.equal(await read(descriptor(SGL.SEGMENT, list, 0)), STATUS.SGL_SEGMENT_INVALID);
    assert.equal(await read(descriptor(SGL.SEGMENT, list, 17)), STATUS.SGL_SEGMENT_INVALID);
    assert.equal(await read(descriptor(SGL.LAST_SEGMENT, 0x1000, 16)), STATUS.DATA_TRANSFER_ERROR);
    assert.equal(await read(descriptor(SGL.DATA_BLOCK, into, PAGE), 3 << PSDT.SHIFT), STATUS.INVALID_FIELD);
    // A segment that is not the last, and does not lead on; one that leads on in the middle; the last that leads on.
    nvme.at(list, 16).set(descriptor(SGL.DATA_BLOCK, into, 16));
    nvme.at(list + 16, 16).set(descriptor(SGL.DATA_BLOCK, into, 16));
    assert.equal(await read(descriptor(SGL.SEGMENT, list, 32)), STATUS.SGL_SEGMENT_INVALID);
    assert.equal(await read(descriptor(SGL.LAST_SEGMENT, list, 32)), STATUS.DATA_SGL_LENGTH);
    nvme.at(list, 16).set(descriptor(SGL.LAST_SEGMENT, list, 16));
    assert.equal(await read(descriptor(SGL.SEGMENT, list, 32)), STATUS.SGL_SEGMENT_INVALID);
    assert.equal(await read(descriptor(SGL.LAST_SEGMENT, list, 16)), STATUS.SGL_SEGMENT_INVALID);
    // Segments that go round for ever.
    nvme.at(list, 16).set(descriptor(SGL.SEGMENT, list, 16));
    assert.equal(await read(descriptor(SGL.SEGMENT, list, 16)), STATUS.SGL_COUNT_INVALID);
    nvme.at(list, 2 * PAGE).fill(0);
    // Descriptors of nothing, without an end.
    assert.equal(await read(descriptor(SGL.LAST_SEGMENT, list, 2 ** 31)), STATUS.SGL_COUNT_INVALID);
    assert.equal((await nvme.read(queue, 0, 1, into)).status, 0);
    nvme.close();
  });

  it('are refused where they are not offered, and on the admin queue', async () => {
    const nvme = await new NvmeHost({ sgl: false }).enable();
    const queue = await nvme.createQueue();
    const sgl = descriptor(SGL.DATA_BLOCK, nvme.pages(), PAGE);
    assert.equal(await nvme.status({ opcode: NVM.READ, nsid: 1, sgl }, queue), STATUS.INVALID_FIELD);
    assert.equal(await nvme.status({ opcode: ADMIN.IDENTIFY, sgl, cdw10: 1 }), STATUS.INVALID_FIELD);
    nvme.close();
  });
});
