import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { NvmeHost } from '../../../../test/fakes/vfio-user/nvme-host.js';
import { turn } from '../../../../test/fakes/vfio-user/model-host.js';
import { ADMIN, NVM } from '../../../nvme/commands.js';
import { CSTS, NVME_REGISTER as REG } from '../../../nvme/registers.js';
import { STATUS } from '../../../nvme/status.js';
import type { NvmeFault } from './faults.js';

async function bench(
  ...faults: NvmeFault[]
): Promise<{ nvme: NvmeHost; queue: Awaited<ReturnType<NvmeHost['createQueue']>>; page: number }> {
  const nvme = await new NvmeHost({ faults }).enable();
  return { nvme, queue: await nvme.createQueue(), page: nvme.pages() };
}

describe('NVMe faults on purpose', () => {
  it('a command is lost, and can be aborted; its id is not free before', async () => {
    const { nvme, queue, page } = await bench({ do: 'lose', nth: 2 });
    assert.equal((await nvme.read(queue, 0, 1, page)).status, 0);
    const lost = nvme.put(queue, nvme.io(NVM.READ, 0, 1, page));
    const next = nvme.put(queue, nvme.io(NVM.READ, 0, 1, page));
    nvme.ring(queue);
    assert.equal((await nvme.finish(queue))[0].cid, next);
    const abort = await nvme.run(nvme.admin, { opcode: ADMIN.ABORT, cdw10: 1 | (lost << 16) });
    assert.equal(abort.result, 0);
    const [aborted] = await nvme.finish(queue);
    assert.deepEqual([aborted.cid, aborted.status], [lost, STATUS.ABORT_REQUESTED]);
    // What is not there can not be aborted.
    assert.equal((await nvme.run(nvme.admin, { opcode: ADMIN.ABORT, cdw10: 1 | (lost << 16) })).result, 1);
    nvme.close();
  });

  it('a queue with a lost command can be deleted', async () => {
    const { nvme, queue, page } = await bench({ do: 'lose' });
    const lost = nvme.put(queue, nvme.io(NVM.READ, 0, 1, page));
    nvme.ring(queue);
    await turn(3);
    assert.equal(await nvme.status({ opcode: ADMIN.DELETE_SQ, cdw10: 1 }), 0);
    const [aborted] = await nvme.finish(queue);
    assert.deepEqual([aborted.cid, aborted.status], [lost, STATUS.ABORT_SQ_DELETED]);
    nvme.close();
  });

  it('a command is late, and is never carried out after a reset', async () => {
    const { nvme, queue, page } = await bench({ do: 'late', ms: 5, times: 2 });
    assert.equal((await nvme.read(queue, 0, 1, page)).status, 0);
    nvme.put(queue, nvme.io(NVM.WRITE, 0, 1, page));
    nvme.ring(queue);
    await turn(3);
    await nvme.disable();
    await new Promise((resolve) => setTimeout(resolve, 20));
    assert.deepEqual(nvme.take(queue, true), []);
    nvme.close();
  });

  it('a command fails with any status', async () => {
    const { nvme, queue, page } = await bench({ do: 'fail', opcode: NVM.WRITE, status: 0x4281 });
    assert.equal((await nvme.read(queue, 0, 1, page)).status, 0);
    const failed = await nvme.write(queue, 0, 1, page);
    assert.deepEqual([failed.status, failed.dnr], [STATUS.UNRECOVERED_READ, true]);
    assert.equal((await nvme.write(queue, 0, 1, page)).status, 0);
    nvme.close();
  });

  for (const kind of ['unknown-id', 'twice', 'wrong-queue'] as const)
    it(`a completion too many: ${kind}`, async () => {
      const { nvme, queue, page } = await bench({ do: kind });
      const cid = nvme.put(queue, nvme.io(NVM.READ, 0, 1, page));
      nvme.ring(queue);
      const [wrong, right] = await nvme.finish(queue, 2);
      assert.deepEqual([right.cid, right.sq, right.status], [cid, 1, 0]);
      assert.equal(wrong.cid === cid, kind !== 'unknown-id');
      assert.equal(wrong.sq === 1, kind !== 'wrong-queue');
      assert.equal((await nvme.read(queue, 0, 1, page)).status, 0);
      nvme.close();
    });

  it('a fatal status: ready, and nothing more, until a reset', async () => {
    const { nvme, queue, page } = await bench({ do: 'fatal' });
    nvme.put(queue, nvme.io(NVM.READ, 0, 1, page));
    nvme.ring(queue);
    await nvme.until(() => nvme.host.read32(REG.CSTS) === (CSTS.RDY | CSTS.CFS));
    nvme.put(nvme.admin, { opcode: ADMIN.IDENTIFY, prp1: page, cdw10: 1 });
    nvme.ring(nvme.admin);
    await turn(5);
    assert.deepEqual(nvme.take(nvme.admin, true), []);
    await nvme.disable();
    await nvme.enable();
    assert.equal((await nvme.read(await nvme.createQueue(), 0, 1, page)).status, 0);
    nvme.close();
  });

  it('gone: all ones', async () => {
    const { nvme, queue, page } = await bench({ do: 'gone' });
    nvme.put(queue, nvme.io(NVM.READ, 0, 1, page));
    nvme.ring(queue);
    await nvme.until(() => nvme.host.read32(REG.CSTS) === 0xffffffff);
    assert.equal(nvme.host.read32(REG.CAP), 0xffffffff);
    nvme.host.write32(REG.CC, 0);
    assert.equal(nvme.host.read32(REG.CC), 0xffffffff);
    nvme.host.model.reset();
    assert.equal(nvme.host.read32(REG.CSTS), 0);
    nvme.close();
  });
});
