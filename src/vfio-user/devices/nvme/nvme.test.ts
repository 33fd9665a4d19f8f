import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { NvmeHost } from '../../../../test/fakes/vfio-user/nvme-host.js';
import { pattern } from '../../../../test/fakes/vfio-user/model-host.js';
import { NVM } from '../../../nvme/commands.js';

describe('served NVMe controller', () => {
  it('reads what was written', async () => {
    const nvme = await new NvmeHost().enable();
    const queue = await nvme.createQueue();
    const from = nvme.pages(4);
    const into = nvme.pages(4);
    nvme.at(from, 16384).set(pattern(16384));
    assert.equal((await nvme.write(queue, 5, 32, from)).status, 0);
    assert.equal((await nvme.read(queue, 5, 32, into)).status, 0);
    assert.deepEqual(nvme.at(into, 16384), nvme.at(from, 16384));
    assert.equal((await nvme.run(queue, { opcode: NVM.FLUSH, nsid: 1 })).status, 0);
    nvme.close();
  });
});
