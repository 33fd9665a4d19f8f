import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { HostQueue, NvmeHost } from '../../../../test/fakes/vfio-user/nvme-host.js';
import { pattern } from '../../../../test/fakes/vfio-user/model-host.js';
import { ADMIN, NVM, QUEUE } from '../../../nvme/commands.js';
import { capabilitiesOf, memoryBufferOf, NVME_REGISTER as REG, submissionDoorbell } from '../../../nvme/registers.js';
import { STATUS } from '../../../nvme/status.js';
import { isDmaError } from '../../../errors.js';
import { nvmeModel } from './nvme.js';

const SIZE = 256 * 1024;
/** Where the host sees the buffer. */
const AT = 0x7_0000_0000;

describe('NVMe controller memory buffer', () => {
  it('is told only when the host has asked for it, and is reached by the addresses that the host gave it', async () => {
    const nvme = await new NvmeHost({ memoryBuffer: SIZE }).enable();
    const { host } = nvme;
    assert.equal(capabilitiesOf(host.read32(REG.CAP), host.read32(REG.CAP + 4)).memoryBuffer, true);
    assert.deepEqual([host.read32(REG.CMBLOC), host.read32(REG.CMBSZ)], [0, 0]);
    const queue = await nvme.createQueue();
    assert.equal((await nvme.read(queue, 0, 1, AT)).status, STATUS.DATA_TRANSFER_ERROR);
    host.write64(REG.CMBMSC, BigInt(AT) | 3n);
    assert.equal(host.read64(REG.CMBMSC), BigInt(AT) | 3n);
    const of = memoryBufferOf(host.read32(REG.CMBLOC), host.read32(REG.CMBSZ));
    assert.deepEqual(of, { bar: 2, offset: 0, length: SIZE, uses: 0x1f });
    // Data, and lists, in the buffer.
    const buffer = host.regionMemory(2);
    buffer.set(pattern(16384), 4096);
    const view = new DataView(buffer.buffer);
    for (const [n, page] of [3, 2, 4].entries()) view.setUint32(n * 8, (AT % 2 ** 32) + page * 4096, true);
    for (let n = 0; n < 3; n++) view.setUint32(n * 8 + 4, AT / 2 ** 32, true);
    const entry = { opcode: NVM.WRITE, nsid: 1, prp1: AT + 4096, prp2: AT, cdw12: 31 };
    assert.equal(await nvme.status(entry, queue), 0);
    const into = nvme.pages(4);
    assert.equal((await nvme.read(queue, 0, 32, into)).status, 0);
    const expected = pattern(16384);
    for (const [n, page] of [0, 2, 1, 3].entries())
      assert.deepEqual(nvme.at(into + n * 4096, 4096), expected.subarray(page * 4096, (page + 1) * 4096));
    // What begins inside and ends outside is not there.
    assert.equal((await nvme.read(queue, 0, 8, AT + SIZE - 2048)).status, STATUS.DATA_TRANSFER_ERROR);
    nvme.close();
  });

  it('holds queues', async () => {
    const nvme = await new NvmeHost({ memoryBuffer: SIZE }).enable();
    const { host } = nvme;
    host.write64(REG.CMBMSC, BigInt(AT) | 3n);
    const cdw10 = 1 | (7 << 16);
    const cq = nvme.pages();
    assert.equal(await nvme.status({ opcode: ADMIN.CREATE_CQ, prp1: cq, cdw10, cdw11: QUEUE.CONTIGUOUS }), 0);
    const sq = { opcode: ADMIN.CREATE_SQ, prp1: AT + 8192, cdw10, cdw11: QUEUE.CONTIGUOUS | (1 << 16) };
    assert.equal(await nvme.status(sq), 0);
    // The entry is made in the host's memory, and copied to the buffer.
    const scratch = new HostQueue(1, nvme.pages(), cq, 8, 8);
    for (let round = 0; round < 20; round++) {
      const at = scratch.tail;
      const cid = nvme.put(scratch, nvme.io(NVM.READ, 0, 1, AT));
      host.regionMemory(2).set(nvme.at(scratch.sq + at * 64, 64), 8192 + at * 64);
      host.write32(submissionDoorbell(1, 4), scratch.tail);
      const [completed] = await nvme.finish(scratch);
      assert.deepEqual([completed.cid, completed.status], [cid, 0]);
    }
    nvme.close();
  });

  it('stays over a reset of the controller, and not over one of the device; is not there by default', async () => {
    const nvme = await new NvmeHost({ memoryBuffer: SIZE }).enable();
    nvme.host.write64(REG.CMBMSC, BigInt(AT) | 3n);
    await nvme.disable();
    assert.notEqual(nvme.host.read32(REG.CMBSZ), 0);
    nvme.host.model.reset();
    assert.equal(nvme.host.read32(REG.CMBSZ), 0);
    nvme.close();
    const without = await new NvmeHost().enable();
    without.host.write64(REG.CMBMSC, BigInt(AT) | 3n);
    assert.equal(without.host.read32(REG.CMBSZ), 0);
    assert.equal(without.host.read64(REG.CMBMSC), 0n);
    without.close();
    for (const memoryBuffer of [4096, 100_000, 2 ** 31])
      assert.throws(
        () => nvmeModel({ memoryBuffer }),
        (error) => isDmaError(error, 'EINVAL'),
      );
  });
});
