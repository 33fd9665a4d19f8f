import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { NvmeHost, type Entry } from '../../../../test/fakes/vfio-user/nvme-host.js';
import { turn } from '../../../../test/fakes/vfio-user/model-host.js';
import { ADMIN, ALL_NAMESPACES, CNS, EVENT_CONFIG, FEATURE, LOG, NVM } from '../../../nvme/commands.js';
import {
  controllerIdentityOf,
  descriptorsOf,
  namespaceIdentityOf,
  namespaceListOf,
  ONCS,
} from '../../../nvme/identify.js';
import { CRITICAL_WARNING, EFFECTS, errorEntriesOf, firmwareOf, healthOf } from '../../../nvme/log-pages.js';
import { STATUS } from '../../../nvme/status.js';
import type { NvmeModelOptions } from './options.js';

const MIB = 2 ** 20;

async function withHost(work: (nvme: NvmeHost) => Promise<void>, options?: NvmeModelOptions): Promise<void> {
  const nvme = await new NvmeHost(options).enable();
  try {
    await work(nvme);
  } finally {
    nvme.close();
  }
}

async function logPage(nvme: NvmeHost, log: number, length: number, more: Partial<Entry> = {}): Promise<Uint8Array> {
  const page = nvme.pages();
  const dwords = length / 4 - 1;
  const entry = {
    opcode: ADMIN.GET_LOG_PAGE,
    prp1: page,
    cdw10: log | ((dwords & 0xffff) << 16),
    cdw11: dwords >>> 16,
  };
  assert.equal(await nvme.status({ ...entry, ...more }), 0);
  return nvme.at(page, length);
}

describe('NVMe identify', () => {
  const options: NvmeModelOptions = {
    serial: 'S-1',
    model: 'A disk',
    namespaces: [{ size: MIB }, { size: 2 * MIB, blockSize: 4096 }, { size: 3 * MIB }],
  };

  it('the controller: texts padded with blanks, and what is announced is there', () =>
    withHost(async (nvme) => {
      const page = await nvme.identify(CNS.CONTROLLER);
      assert.equal(Buffer.from(page.subarray(4, 24)).toString(), 'S-1'.padEnd(20));
      assert.equal(Buffer.from(page.subarray(24, 64)).toString(), 'A disk'.padEnd(40));
      const of = controllerIdentityOf(page);
      assert.deepEqual([of.serial, of.model, of.version, of.namespaces, of.mdts], ['S-1', 'A disk', 0x10400, 3, 8]);
      assert.equal(of.writeCache, true);
      assert.equal(of.capacity, 6 * MIB);
      assert.match(of.subsystem, /^nqn\.2014-08\.org\.nvmexpress:uuid:[0-9a-f-]{36}$/);
      assert.equal(
        of.oncs,
        ONCS.COMPARE | ONCS.DATASET_MANAGEMENT | ONCS.WRITE_ZEROES | ONCS.FEATURE_SAVE | ONCS.TIMESTAMP | ONCS.VERIFY,
      );
      // Every command of the effects log is answered otherwise than as unknown, and every other one as unknown.
      const effects = await logPage(nvme, LOG.COMMAND_EFFECTS, EFFECTS.BYTES);
      const words = new DataView(effects.slice().buffer);
      const queue = await nvme.createQueue();
      for (let opcode = 0; opcode < 256; opcode++) {
        if (opcode === ADMIN.ASYNC_EVENT || opcode === ADMIN.FORMAT) continue;
        const supported = (words.getUint32(EFFECTS.ADMIN + 4 * opcode, true) & EFFECTS.SUPPORTED) !== 0;
        const status = await nvme.status({ opcode, nsid: 77, cdw10: 0xffff00ff });
        assert.equal(status !== STATUS.INVALID_OPCODE, supported, `admin ${opcode}`);
      }
      for (let opcode = 0; opcode < 256; opcode++) {
        const supported = (words.getUint32(EFFECTS.IO + 4 * opcode, true) & EFFECTS.SUPPORTED) !== 0;
        const status = await nvme.status({ opcode, nsid: 77 }, queue);
        assert.equal(status, supported ? STATUS.INVALID_NAMESPACE : STATUS.INVALID_OPCODE, `I/O ${opcode}`);
      }
    }, options));

  it('namespaces, their lists and descriptors', () =>
    withHost(async (nvme) => {
      const second = namespaceIdentityOf(await nvme.identify(CNS.NAMESPACE, 2));
      assert.deepEqual([second.blocks, second.blockSize, second.metadataSize, second.format], [512, 4096, 0, 1]);
      assert.deepEqual(
        second.formats.map(({ blockSize }) => blockSize),
        [512, 4096],
      );
      assert.deepEqual([second.deallocatedZeroes, second.writeProtected, second.used], [true, false, 0]);
      const nguids = new Set<string>();
      for (const id of [1, 2, 3]) {
        const { nguid, uuid, commandSet } = descriptorsOf(await nvme.identify(CNS.NAMESPACE_DESCRIPTORS, id));
        assert.equal(nguid, namespaceIdentityOf(await nvme.identify(CNS.NAMESPACE, id)).nguid);
        assert.deepEqual([uuid, commandSet], [undefined, 0]);
        nguids.add(nguid ?? '');
      }
      assert.equal(nguids.size, 3);
      for (const cns of [CNS.ACTIVE_NAMESPACES, CNS.ALLOCATED_NAMESPACES]) {
        assert.deepEqual(namespaceListOf(await nvme.identify(cns)), [1, 2, 3]);
        assert.deepEqual(namespaceListOf(await nvme.identify(cns, 2)), [3]);
        assert.deepEqual(namespaceListOf(await nvme.identify(cns, 3)), []);
      }
      const common = namespaceIdentityOf(await nvme.identify(CNS.NAMESPACE, ALL_NAMESPACES));
      assert.equal(common.formats.length, 2);
    }, options));

  it('what is not there is refused', () =>
    withHost(async (nvme) => {
      const ask = (cns: number, nsid: number): Promise<number> =>
        nvme.status({ opcode: ADMIN.IDENTIFY, nsid, prp1: nvme.pages(), cdw10: cns });
      assert.equal(await ask(CNS.NAMESPACE, 0), STATUS.INVALID_NAMESPACE);
      assert.equal(await ask(CNS.NAMESPACE, 4), STATUS.INVALID_NAMESPACE);
      assert.equal(await ask(CNS.NAMESPACE_DESCRIPTORS, 4), STATUS.INVALID_NAMESPACE);
      assert.equal(await ask(CNS.ACTIVE_NAMESPACES, 0xfffffffe), STATUS.INVALID_NAMESPACE);
      assert.equal(await ask(0x7f, 0), STATUS.INVALID_FIELD);
      assert.equal(await nvme.status({ opcode: ADMIN.IDENTIFY, prp1: 0x3000, cdw10: 1 }), STATUS.DATA_TRANSFER_ERROR);
    }, options));
});

describe('NVMe log pages', () => {
  it('errors: the newest first, with queue, command and block', () =>
    withHost(async (nvme) => {
      const queue = await nvme.createQueue();
      const cid = nvme.put(queue, { opcode: NVM.READ, nsid: 1, prp1: nvme.pages(), cdw10: 5, cdw11: 9 });
      nvme.ring(queue);
      await nvme.finish(queue);
      await nvme.status({ opcode: 0xfe, nsid: 3 });
      const entries = errorEntriesOf(await logPage(nvme, LOG.ERROR, 256));
      assert.deepEqual(
        entries.map(({ count, queue: id, status }) => [count, id, status & 0x7ff]),
        [
          [2, 0, STATUS.INVALID_OPCODE],
          [1, 1, STATUS.LBA_OUT_OF_RANGE],
        ],
      );
      assert.deepEqual([entries[1].commandId, entries[1].lba, entries[1].namespace], [cid, 9 * 2 ** 32 + 5, 1]);
      const second = errorEntriesOf(await logPage(nvme, LOG.ERROR, 64, { cdw12: 64 }));
      assert.deepEqual(second, [entries[1]], 'an offset is taken');
    }));

  it('health counts commands and data', () =>
    withHost(async (nvme) => {
      const queue = await nvme.createQueue();
      const page = nvme.pages(32);
      for (let n = 0; n < 8; n++) await nvme.write(queue, 0, 256, page);
      await nvme.read(queue, 0, 1, page);
      const health = healthOf(await logPage(nvme, LOG.SMART, 512));
      assert.deepEqual([health.writeCommands, health.readCommands], [8, 1]);
      assert.deepEqual([health.bytesWritten, health.bytesRead], [3 * 512_000, 512_000]);
      assert.equal(health.criticalWarning, 0);
      assert.equal(firmwareOf(await logPage(nvme, LOG.FIRMWARE, 512)).revisions[0], '1.0');
    }));

  it('pages that are not there, and offsets that are not in them, are refused', () =>
    withHost(async (nvme) => {
      const ask = (cdw10: number, more: Partial<Entry> = {}): Promise<number> =>
        nvme.status({ opcode: ADMIN.GET_LOG_PAGE, prp1: nvme.pages(), cdw10, ...more });
      assert.equal(await ask(0xc0 | (15 << 16)), STATUS.INVALID_LOG_PAGE);
      assert.equal(await ask(LOG.SMART | (127 << 16), { cdw12: 516 }), STATUS.INVALID_FIELD);
      assert.equal(await ask(LOG.SMART | (127 << 16), { cdw12: 2 }), STATUS.INVALID_FIELD);
      assert.equal(await ask(LOG.SMART | (127 << 16), { cdw13: 1 }), STATUS.INVALID_FIELD);
      assert.equal(await ask(LOG.SMART | (127 << 16), { nsid: 1 }), STATUS.INVALID_FIELD);
      assert.equal(await ask(LOG.ERROR | (0xffff << 16), { cdw11: 0xffff }), STATUS.INVALID_FIELD);
    }));
});

describe('NVMe features', () => {
  const get = (nvme: NvmeHost, feature: number, select = 0, more: Partial<Entry> = {}): ReturnType<NvmeHost['run']> =>
    nvme.run(nvme.admin, { opcode: ADMIN.GET_FEATURES, cdw10: feature | (select << 8), ...more });
  const set = (
    nvme: NvmeHost,
    feature: number,
    cdw11: number,
    more: Partial<Entry> = {},
  ): ReturnType<NvmeHost['run']> =>
    nvme.run(nvme.admin, { opcode: ADMIN.SET_FEATURES, cdw10: feature, cdw11, ...more });

  it('have a current value, a default and capabilities; a reset brings the default back', () =>
    withHost(async (nvme) => {
      assert.equal((await get(nvme, FEATURE.WRITE_CACHE)).result, 1);
      assert.equal((await set(nvme, FEATURE.WRITE_CACHE, 0)).status, 0);
      assert.equal((await get(nvme, FEATURE.WRITE_CACHE)).result, 0);
      assert.equal((await get(nvme, FEATURE.WRITE_CACHE, 1)).result, 1);
      assert.equal((await get(nvme, FEATURE.WRITE_CACHE, 3)).result, 4);
      assert.equal((await get(nvme, FEATURE.WRITE_CACHE, 5)).status, STATUS.INVALID_FIELD);
      assert.equal(
        await nvme.status({ opcode: ADMIN.SET_FEATURES, cdw10: 0x80000000 | FEATURE.WRITE_CACHE }),
        STATUS.FEATURE_NOT_SAVEABLE,
      );
      await nvme.disable();
      await nvme.enable();
      assert.equal((await get(nvme, FEATURE.WRITE_CACHE)).result, 1);
      for (const feature of [
        FEATURE.ARBITRATION,
        FEATURE.POWER,
        FEATURE.ERROR_RECOVERY,
        FEATURE.COALESCING,
        FEATURE.ATOMICITY,
      ])
        assert.equal((await get(nvme, feature)).status, 0);
      assert.equal((await set(nvme, FEATURE.POWER, 1)).status, STATUS.INVALID_FIELD);
      assert.equal((await get(nvme, 0x77)).status, STATUS.INVALID_FIELD);
      assert.equal((await set(nvme, 0x77, 0)).status, STATUS.INVALID_FIELD);
    }));

  it('the number of queues is 0-based, and only for a host that has none yet', () =>
    withHost(
      async (nvme) => {
        assert.equal((await set(nvme, FEATURE.QUEUES, 0x000f000f)).result, 0x00070007);
        assert.equal((await set(nvme, FEATURE.QUEUES, 0x00010001)).result, 0x00010001);
        assert.equal((await get(nvme, FEATURE.QUEUES)).result, 0x00010001);
        assert.equal((await set(nvme, FEATURE.QUEUES, 0xffff0001)).status, STATUS.INVALID_FIELD);
        await nvme.createQueue(2);
        assert.equal((await set(nvme, FEATURE.QUEUES, 0x00010001)).status, STATUS.COMMAND_SEQUENCE);
        const entry = { opcode: ADMIN.CREATE_CQ, prp1: nvme.pages(), cdw10: 3 | (7 << 16), cdw11: 1 };
        assert.equal(await nvme.status(entry), STATUS.INVALID_QUEUE_ID);
      },
      { queues: 8 },
    ));

  it('data comes with some of them', () =>
    withHost(async (nvme) => {
      const page = nvme.pages();
      nvme.at(page, 8).set([1, 2, 3, 4, 5, 0, 0, 0]);
      assert.equal((await set(nvme, FEATURE.TIMESTAMP, 0, { prp1: page })).status, 0);
      const back = nvme.pages();
      assert.equal((await get(nvme, FEATURE.TIMESTAMP, 0, { prp1: back })).status, 0);
      assert.deepEqual([...nvme.at(back + 2, 3)], [3, 4, 5]);
      nvme.at(page, 16).fill(9);
      assert.equal((await set(nvme, FEATURE.HOST_IDENTIFIER, 1, { prp1: page })).status, 0);
      assert.equal((await get(nvme, FEATURE.HOST_IDENTIFIER, 0, { prp1: back, cdw11: 1 })).status, 0);
      assert.deepEqual(nvme.at(back, 16), nvme.at(page, 16));
      assert.equal((await set(nvme, FEATURE.TIMESTAMP, 0, { prp1: 0x1000 })).status, STATUS.DATA_TRANSFER_ERROR);
    }));
});

describe('NVMe events', () => {
  const request = (nvme: NvmeHost): number => {
    const cid = nvme.put(nvme.admin, { opcode: ADMIN.ASYNC_EVENT });
    nvme.ring(nvme.admin);
    return cid;
  };

  it('one of a kind, until its log page was read', () =>
    withHost(
      async (nvme) => {
        const queue = await nvme.createQueue();
        await nvme.run(nvme.admin, { opcode: ADMIN.SET_FEATURES, cdw10: FEATURE.ASYNC_EVENTS, cdw11: 0xffff });
        const cid = request(nvme);
        await turn(2);
        await nvme.read(queue, 0, 1, nvme.pages());
        const [event] = await nvme.finish(nvme.admin);
        assert.deepEqual([event.cid, event.result], [cid, 0x00020101]);
        request(nvme);
        await nvme.read(queue, 0, 1, nvme.pages());
        await turn(5);
        assert.deepEqual(nvme.take(nvme.admin), []);
        // The page is read, once so that the event stays, and once so that it goes.
        const page = nvme.pages();
        const read = { opcode: ADMIN.GET_LOG_PAGE, prp1: page, cdw10: LOG.SMART | (127 << 16) };
        await nvme.run(nvme.admin, { ...read, cdw10: read.cdw10 | (1 << 15) });
        nvme.put(nvme.admin, read);
        nvme.ring(nvme.admin);
        const both = await nvme.finish(nvme.admin, 2);
        assert.deepEqual(new Set(both.map(({ result }) => result)), new Set([0, 0x00020101]));
        assert.equal(healthOf(nvme.at(page, 512)).criticalWarning, CRITICAL_WARNING.TEMPERATURE);
      },
      { faults: [{ do: 'hot', times: 2 }] },
    ));

  it('namespaces that go and come back are told with a list', () =>
    withHost(
      async (nvme) => {
        const queue = await nvme.createQueue();
        request(nvme);
        const page = nvme.pages();
        assert.equal((await nvme.read(queue, 0, 1, page)).status, 0);
        const [event] = await nvme.finish(nvme.admin);
        assert.equal(event.result, 0x00040002);
        assert.deepEqual(namespaceListOf(await nvme.identify(CNS.ACTIVE_NAMESPACES)), [1]);
        assert.deepEqual(namespaceListOf(await nvme.identify(CNS.ALLOCATED_NAMESPACES)), [1, 2]);
        const entry = { ...nvme.io(NVM.READ, 0, 1, page), nsid: 2 };
        assert.equal(await nvme.status(entry, queue), STATUS.INVALID_NAMESPACE);
        // What did not reach the host is told again.
        const nowhere = { opcode: ADMIN.GET_LOG_PAGE, prp1: 0x1000, cdw10: LOG.CHANGED_NAMESPACES | (1023 << 16) };
        assert.equal(await nvme.status(nowhere), STATUS.DATA_TRANSFER_ERROR);
        assert.deepEqual(namespaceListOf(await logPage(nvme, LOG.CHANGED_NAMESPACES, 4096)), [2]);
        assert.deepEqual(namespaceListOf(await logPage(nvme, LOG.CHANGED_NAMESPACES, 4096)), []);
      },
      { namespaces: [{ size: MIB }, { size: MIB }], faults: [{ do: 'detach', nsid: 2 }] },
    ));

  it('no more than announced wait; one can be aborted; unwanted ones do not come', () =>
    withHost(
      async (nvme) => {
        const queue = await nvme.createQueue();
        const { eventLimit } = controllerIdentityOf(await nvme.identify(CNS.CONTROLLER));
        const ids = Array.from({ length: eventLimit }, () => request(nvme));
        request(nvme);
        const [refused] = await nvme.finish(nvme.admin);
        assert.equal(refused.status, STATUS.EVENT_LIMIT);
        nvme.put(nvme.admin, { opcode: ADMIN.ABORT, cdw10: ids[1] << 16 });
        nvme.ring(nvme.admin);
        const [aborted, abort] = await nvme.finish(nvme.admin, 2);
        assert.deepEqual([aborted.cid, aborted.status], [ids[1], STATUS.ABORT_REQUESTED]);
        assert.deepEqual([abort.status, abort.result], [0, 0]);
        request(nvme);
        await nvme.run(nvme.admin, {
          opcode: ADMIN.SET_FEATURES,
          cdw10: FEATURE.ASYNC_EVENTS,
          cdw11: EVENT_CONFIG.NAMESPACES,
        });
        await nvme.read(queue, 0, 1, nvme.pages());
        await turn(5);
        assert.deepEqual(nvme.take(nvme.admin), []);
      },
      { faults: [{ do: 'hot' }] },
    ));
});

describe('NVMe format', () => {
  it('changes the size of blocks, and everything reads as zeroes', () =>
    withHost(
      async (nvme) => {
        const queue = await nvme.createQueue();
        const page = nvme.pages();
        nvme.at(page, 4096).fill(7);
        assert.equal((await nvme.write(queue, 8, 8, page)).status, 0);
        assert.equal(await nvme.status({ opcode: ADMIN.FORMAT, nsid: 1, cdw10: 1 }), 0);
        const of = namespaceIdentityOf(await nvme.identify(CNS.NAMESPACE, 1));
        assert.deepEqual([of.blockSize, of.blocks], [4096, 256]);
        assert.equal((await nvme.read(queue, 1, 1, page, 4096)).status, 0);
        assert.ok(nvme.at(page, 4096).every((byte) => byte === 0));
        assert.equal((await nvme.read(queue, 256, 1, page, 4096)).status, STATUS.LBA_OUT_OF_RANGE);
        await nvme.disable();
        await nvme.enable();
        assert.equal(namespaceIdentityOf(await nvme.identify(CNS.NAMESPACE, 1)).blockSize, 4096);
      },
      { size: MIB },
    ));

  it('is refused for what there is not', () =>
    withHost(async (nvme) => {
      const format = (cdw10: number, nsid = 1): Promise<number> => nvme.status({ opcode: ADMIN.FORMAT, nsid, cdw10 });
      assert.equal(await format(2), STATUS.INVALID_FORMAT);
      assert.equal(await format(1 << 5), STATUS.INVALID_FORMAT);
      assert.equal(await format(2 << 9), STATUS.INVALID_FIELD);
      assert.equal(await format(0, 9), STATUS.INVALID_NAMESPACE);
      assert.equal(await format(1 << 9, ALL_NAMESPACES), 0);
    }));
});
