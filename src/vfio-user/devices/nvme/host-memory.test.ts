import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { NvmeHost, type Entry } from '../../../../test/fakes/vfio-user/nvme-host.js';
import { turn } from '../../../../test/fakes/vfio-user/model-host.js';
import { ADMIN, EVENT, EVENT_TYPE, eventResult, FEATURE, LOG } from '../../../nvme/commands.js';
import { controllerIdentityOf } from '../../../nvme/identify.js';
import { errorEntriesOf } from '../../../nvme/log-pages.js';
import { CC, NVME_REGISTER as REG, SHUTDOWN } from '../../../nvme/registers.js';
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
    // A page that is there twice, and memory that is not there.
    const pages = nvme.pages(4);
    nvme.put64(list, pages + 4096);
    nvme.put64(list + 16, pages);
    assert.equal(await nvme.status(lend), STATUS.INVALID_FIELD);
    nvme.put64(list, 0x9_0000_0000);
    assert.equal(await nvme.status(lend), STATUS.DATA_TRANSFER_ERROR);
    assert.equal((await nvme.run(nvme.admin, { ...get, prp1: nvme.pages() })).result, 0, 'none of it was taken');
    nvme.close();
    const without = await new NvmeHost().enable();
    assert.equal(await without.status({ ...lend }), STATUS.INVALID_FIELD);
    without.close();
  });

  it('is what the error log is read from, and is not trusted once somebody else has written to it', async () => {
    const { nvme, first, lend } = await bench();
    const page = nvme.pages();
    const log = { opcode: ADMIN.GET_LOG_PAGE, cdw10: LOG.ERROR | (1023 << 16), prp1: page };
    const read = async (): Promise<number[]> => {
      nvme.at(page, 4096).fill(0xee);
      assert.equal(await nvme.status(log), 0);
      return errorEntriesOf(nvme.at(page, 4096)).map(({ namespace }) => namespace);
    };
    const isOn = async (): Promise<number> => (await nvme.run(nvme.admin, { ...get, prp1: nvme.pages() })).result;
    assert.equal(await nvme.status({ opcode: 0xfe, nsid: 7 }), STATUS.INVALID_OPCODE);
    assert.equal(await nvme.status(lend), 0);
    assert.deepEqual(
      errorEntriesOf(nvme.at(first, 4096)).map(({ namespace }) => namespace),
      [7],
      'from the beginning',
    );
    assert.equal(await nvme.status({ opcode: 0xfe, nsid: 8 }), STATUS.INVALID_OPCODE);
    assert.deepEqual(await read(), [8, 7]);
    assert.equal(await isOn(), 1);
    // A byte of the log that is there.
    nvme.at(first, 4096)[70] ^= 1;
    const event = nvme.put(nvme.admin, { opcode: ADMIN.ASYNC_EVENT });
    nvme.put(nvme.admin, log);
    nvme.ring(nvme.admin);
    const told = (await nvme.finish(nvme.admin, 2)).find(({ cid }) => cid === event)?.result;
    assert.equal(told, eventResult(EVENT_TYPE.ERROR, EVENT.ERROR.TRANSIENT, LOG.ERROR));
    assert.deepEqual(
      errorEntriesOf(nvme.at(page, 4096)).map(({ namespace }) => namespace),
      [8, 7],
    );
    assert.equal(await isOn(), 0);
    // It can be lent anew, and a shutdown gives it back.
    assert.equal(await nvme.status(lend), 0);
    assert.equal(await isOn(), 1);
    nvme.host.write32(REG.CC, nvme.host.read32(REG.CC) | (SHUTDOWN.NORMAL << CC.SHN_SHIFT));
    assert.equal(await isOn(), 0);
    nvme.close();
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
