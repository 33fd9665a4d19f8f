import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { NvmeHost, type Entry } from '../../../../test/fakes/vfio-user/nvme-host.js';
import { turn } from '../../../../test/fakes/vfio-user/model-host.js';
import { ADMIN, FEATURE } from '../../../nvme/commands.js';
import { controllerIdentityOf } from '../../../nvme/identify.js';
import { errorEntriesOf } from '../../../nvme/log-pages.js';
import { STATUS } from '../../../nvme/status.js';

const set = { opcode: ADMIN.SET_FEATURES, cdw10: FEATURE.HOST_MEMORY };
const get = { opcode: ADMIN.GET_FEATURES, cdw10: FEATURE.HOST_MEMORY };

/** A host that lends two pieces of memory, a page and three. */
async function bench(): Promise<{ nvme: NvmeHost; first: number; list: number; lend: Entry }> {
  const nvme = await new NvmeHost({ hostMemory: 16384 }).enable();
  const list = nvme.pages();
  const first = nvme.pages();
  nvme.pages();
  const second = nvme.pages(3);
  nvme.put64(list, first);
  nvme.put64(list + 8, 1);
  nvme.put64(list + 16, second);
  nvme.put64(list + 24, 3);
  const lend = { ...set, cdw11: 1, cdw12: 4, cdw13: list % 2 ** 32, cdw14: list / 2 ** 32, cdw15: 2 };
  return { nvme, first, list, lend };
}

describe('NVMe host memory buffer', () => {
  it('is used from the time when it is lent to the time when it is taken back', async () => {
    const { nvme, first, lend } = await bench();
    const of = controllerIdentityOf(await nvme.identify(1));
    assert.deepEqual([of.hostMemoryPreferred, of.hostMemoryMinimum], [16384, 16384]);
    const fail = async (nsid: number): Promise<void> => {
      assert.equal(await nvme.status({ opcode: 0xfe, nsid }), STATUS.INVALID_OPCODE);
      await turn(3);
    };
    const seen = (): number[] => errorEntriesOf(nvme.at(first, 4096)).map(({ namespace }) => namespace);
    await fail(1);
    assert.deepEqual(seen(), []);
    assert.equal(await nvme.status(lend), 0);
    const page = nvme.pages();
    assert.equal((await nvme.run(nvme.admin, { ...get, prp1: page })).result, 1);
    assert.deepEqual(
      [0, 12].map((at) => nvme.view.getUint32(nvme.at(page, 16).byteOffset + at, true)),
      [4, 2],
    );
    await fail(2);
    assert.deepEqual(seen(), [2, 1]);
    assert.equal(await nvme.status(lend), STATUS.COMMAND_SEQUENCE, 'lent already');
    assert.equal(await nvme.status({ ...set, cdw11: 0 }), 0);
    nvme.at(first, 4096).fill(0);
    await fail(3);
    assert.deepEqual(seen(), []);
    assert.equal((await nvme.run(nvme.admin, { ...get, prp1: page })).result, 0);
    // A reset gives it back, too.
    assert.equal(await nvme.status(lend), 0);
    await nvme.disable();
    await nvme.enable();
    nvme.at(first, 4096).fill(0);
    await fail(4);
    assert.deepEqual(seen(), []);
    nvme.close();
  });

  it('is refused when it is too small, no list, or not whole pages; and without the option', async () => {
    const { nvme, list, lend } = await bench();
    assert.equal(await nvme.status({ ...lend, cdw12: 3 }), STATUS.INVALID_FIELD);
    assert.equal(await nvme.status({ ...lend, cdw12: 5 }), STATUS.INVALID_FIELD);
    assert.equal(await nvme.status({ ...lend, cdw15: 0 }), STATUS.INVALID_FIELD);
    assert.equal(await nvme.status({ ...lend, cdw15: 2 ** 31 }), STATUS.INVALID_FIELD);
    assert.equal(await nvme.status({ ...lend, cdw14: 0 }), STATUS.DATA_TRANSFER_ERROR);
    nvme.put64(list, nvme.pages() + 512);
    assert.equal(await nvme.status(lend), STATUS.INVALID_FIELD);
    nvme.close();
    const without = await new NvmeHost().enable();
    assert.equal(await without.status({ ...lend }), STATUS.INVALID_FIELD);
    without.close();
  });

  it('that the host unmaps without taking it back is not used, and nobody dies', async () => {
    const { nvme, list, lend } = await bench();
    const far = 0x9_0000_0000;
    nvme.memory.map(far, new Uint8Array(16384));
    nvme.put64(list, far);
    nvme.put64(list + 8, 4);
    assert.equal(await nvme.status({ ...lend, cdw15: 1 }), 0);
    nvme.memory.unmap(far);
    for (const nsid of [1, 2]) assert.equal(await nvme.status({ opcode: 0xfe, nsid }), STATUS.INVALID_OPCODE);
    assert.equal((await nvme.run(nvme.admin, { ...get, prp1: nvme.pages() })).result, 0);
    nvme.close();
  });
});
