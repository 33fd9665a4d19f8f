import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { BASE, NvmeHost } from '../../../../test/fakes/vfio-user/nvme-host.js';
import { heldCalls } from '../../../../test/fakes/vfio-user/image-calls.js';
import { pattern, turn } from '../../../../test/fakes/vfio-user/model-host.js';
import { ADMIN, EVENT_TYPE, LOG, NVM } from '../../../nvme/commands.js';
import { controllerIdentityOf } from '../../../nvme/identify.js';
import { healthOf } from '../../../nvme/log-pages.js';
import { capabilitiesOf, CC, CSTS, NVME_REGISTER as REG, submissionDoorbell } from '../../../nvme/registers.js';
import { STATUS } from '../../../nvme/status.js';
import { NODE_CALLS, type ImageCalls } from './image.js';
import type { NvmeModelOptions } from './options.js';

async function withHost(
  work: (nvme: NvmeHost) => Promise<void>,
  options?: NvmeModelOptions,
  calls?: ImageCalls,
): Promise<void> {
  const nvme = new NvmeHost(options, 'direct', calls);
  try {
    await work(nvme);
  } finally {
    nvme.close();
  }
}

const csts = (nvme: NvmeHost): number => nvme.host.read32(REG.CSTS);

describe('NVMe controller: registers', () => {
  it('tell what the options say', () =>
    withHost(
      async (nvme) => {
        const { host } = nvme;
        const of = capabilitiesOf(host.read32(REG.CAP), host.read32(REG.CAP + 4));
        assert.deepEqual([of.maxEntries, of.doorbellStride, of.contiguous, of.commandSets], [256, 32, true, 1]);
        assert.deepEqual([of.minPageSize, of.maxPageSize], [4096, 65536]);
        assert.equal(host.read32(REG.VS), 0x00010400);
        assert.equal(host.read64(REG.CAP), (BigInt(host.read32(REG.CAP + 4)) << 32n) | BigInt(host.read32(REG.CAP)));
        assert.equal(host.load(REG.VS + 1, 1)[0], 4);
        for (const register of [REG.CAP, REG.VS, REG.CSTS]) {
          const before = host.read32(register);
          host.write32(register, ~before);
          assert.equal(host.read32(register), before);
        }
        assert.equal(host.model.interrupts.msix, 9);
        assert.equal(host.model.regions[0].size, 8192);
        assert.equal(host.model.identity.classCode, 0x010802);
      },
      { queues: 8, queueEntries: 256, doorbellStride: 32 },
    ));

  it('queues can not be moved while it is enabled; accesses that are no whole words store nothing', () =>
    withHost(async (nvme) => {
      const { host } = nvme;
      host.store(REG.AQA, new Uint8Array([1, 0]));
      host.store(REG.AQA + 2, new Uint8Array([1, 0, 0, 0]));
      assert.equal(host.read32(REG.AQA), 0);
      await nvme.enable();
      const before = [host.read32(REG.AQA), host.read64(REG.ASQ), host.read64(REG.ACQ)];
      host.write32(REG.AQA, 0x00030003);
      host.write64(REG.ASQ, 0x123456000n);
      host.write64(REG.ACQ, 0x123456000n);
      assert.deepEqual([host.read32(REG.AQA), host.read64(REG.ASQ), host.read64(REG.ACQ)], before);
    }));

  for (const [what, prepare] of [
    ['an admin queue of one entry', (nvme: NvmeHost) => nvme.host.write32(REG.AQA, 0x000f0000)],
    ['a completion queue of one entry', (nvme: NvmeHost) => nvme.host.write32(REG.AQA, 0x0000000f)],
  ] as const)
    it(`${what} is fatal, and never ready`, () =>
      withHost(async (nvme) => {
        prepare(nvme);
        nvme.host.write64(REG.ASQ, BigInt(nvme.admin.sq));
        nvme.host.write64(REG.ACQ, BigInt(nvme.admin.cq));
        nvme.host.write32(REG.CC, CC.EN);
        assert.equal(csts(nvme), CSTS.CFS);
        nvme.host.write32(REG.CC, 0);
        assert.equal(csts(nvme), 0);
        await nvme.enable();
        assert.equal(csts(nvme), CSTS.RDY);
      }));

  for (const [what, bits] of [
    ['a page size', 5 << CC.MPS_SHIFT],
    ['a command set', 1 << CC.CSS_SHIFT],
    ['an arbitration', 1 << CC.AMS_SHIFT],
    ['an entry size', 7 << CC.IOCQES_SHIFT],
  ] as const)
    it(`${what} that there is not is fatal`, () =>
      withHost(async (nvme) => {
        await nvme.enable(bits);
        assert.equal(csts(nvme), CSTS.CFS);
      }));

  it('admin queues that are not mapped are fatal, also for a controller that is ready', () =>
    withHost(async (nvme) => {
      await nvme.enable();
      nvme.put(nvme.admin, { opcode: ADMIN.IDENTIFY });
      nvme.memory.unmap(BASE);
      nvme.ring(nvme.admin);
      await nvme.until(() => csts(nvme) !== CSTS.RDY);
      assert.equal(csts(nvme), CSTS.RDY | CSTS.CFS);
      nvme.memory.map(BASE, nvme.bytes);
      await nvme.disable();
      await nvme.enable();
      assert.equal(controllerIdentityOf(await nvme.identify(1)).model, 'anydma NVMe');
    }));

  it('a queue at an address that no host has is fatal, not a crash', () =>
    withHost(async (nvme) => {
      await nvme.enable();
      const bad = { opcode: ADMIN.CREATE_CQ, cdw10: 1 | (7 << 16), cdw11: 1 };
      assert.equal(await nvme.status({ ...bad, prp1: 2 ** 63 }), 0);
      assert.equal(
        await nvme.status({ opcode: ADMIN.CREATE_SQ, prp1: 2 ** 63, cdw10: 1 | (7 << 16), cdw11: 1 | (1 << 16) }),
        0,
      );
      nvme.host.write32(submissionDoorbell(1, 4), 3);
      await nvme.until(() => (csts(nvme) & CSTS.CFS) !== 0);
    }));

  it('interrupts that are masked come when they are unmasked', () =>
    withHost(async (nvme) => {
      await nvme.enable();
      nvme.host.write32(REG.INTMS, 1);
      assert.equal(nvme.host.read32(REG.INTMS), 1);
      await nvme.identify(1);
      assert.deepEqual(nvme.vectors, []);
      nvme.host.write32(REG.INTMC, 1);
      assert.deepEqual(nvme.vectors, [0]);
      assert.equal(nvme.host.read32(REG.INTMC), 0);
    }));
});

describe('NVMe controller: reset and shutdown', () => {
  it('a reset forgets queues and commands, and ids begin anew', () =>
    withHost(async (nvme) => {
      await nvme.enable();
      const queue = await nvme.createQueue();
      const page = nvme.pages();
      nvme.put(queue, nvme.io(NVM.READ, 0, 1, page));
      nvme.ring(queue);
      await nvme.disable();
      await turn(5);
      assert.deepEqual(nvme.take(queue, true), [], 'nothing is written after the reset');
      await nvme.enable();
      nvme.host.write32(submissionDoorbell(1, 4), 1);
      await turn(3);
      const again = await nvme.createQueue();
      assert.equal((await nvme.read(again, 0, 1, page)).status, 0);
    }));

  it('it stays ready until what is under way in files has ended, and so does the next life begin', async () => {
    const { calls, held } = heldCalls('sync');
    await withHost(
      async (nvme) => {
        await nvme.enable();
        const queue = await nvme.createQueue();
        const page = nvme.pages();
        await nvme.write(queue, 0, 1, page);
        nvme.put(queue, { opcode: NVM.FLUSH, nsid: 1 });
        nvme.ring(queue);
        await nvme.until(() => held.length === 1);
        nvme.host.write32(REG.CC, 0);
        await turn(3);
        assert.equal(csts(nvme), CSTS.RDY, 'a write of before could still reach the disk');
        held.shift()?.end();
        assert.equal(csts(nvme), 0);
        await turn(3);
        assert.deepEqual(nvme.take(queue, true), []);
      },
      undefined,
      calls,
    );
  });

  it('a host that does not wait for that gets a controller that works all the same', async () => {
    const { calls, held } = heldCalls('sync');
    await withHost(
      async (nvme) => {
        await nvme.enable();
        const queue = await nvme.createQueue();
        await nvme.write(queue, 0, 1, nvme.pages());
        nvme.put(queue, { opcode: NVM.FLUSH, nsid: 1 });
        nvme.ring(queue);
        await nvme.until(() => held.length === 1);
        nvme.host.write32(REG.CC, 0);
        const enabled = nvme.enable();
        assert.equal(csts(nvme), 0, 'not ready before the last life has ended');
        held.shift()?.end();
        await enabled;
        assert.equal(controllerIdentityOf(await nvme.identify(1)).model, 'anydma NVMe');
      },
      undefined,
      calls,
    );
  });

  it('resets in the middle of transfers do not use up the room for data', async () => {
    const nvme = await new NvmeHost({ size: 2 ** 20 }, 'copied').enable();
    const memory = nvme.pages(256);
    const prps = nvme.prps(memory, 2 ** 20);
    const held: (() => void)[] = [];
    const write = nvme.memory.write.bind(nvme.memory);
    nvme.memory.write = (iova, bytes) =>
      iova === memory && bytes.length === 2 ** 20 ? new Promise((resolve) => held.push(resolve)) : write(iova, bytes);
    for (let round = 0; round < 4; round++) {
      const queue = await nvme.createQueue();
      for (let n = 0; n < 40; n++) nvme.put(queue, { opcode: NVM.READ, nsid: 1, ...prps, cdw12: 2047 });
      nvme.ring(queue);
      await nvme.until(() => held.length >= 20);
      nvme.host.write32(REG.CC, 0);
      for (const resolve of held.splice(0)) resolve();
      await nvme.disable();
      await nvme.enable();
    }
    const queue = await nvme.createQueue();
    assert.equal((await nvme.read(queue, 0, 1, memory)).status, 0);
    nvme.close();
  });

  it('a shutdown is complete when the disks have everything', async () => {
    const { calls, held } = heldCalls('sync');
    await withHost(
      async (nvme) => {
        await nvme.enable();
        const queue = await nvme.createQueue();
        await nvme.write(queue, 0, 1, nvme.pages());
        nvme.host.write32(REG.CC, nvme.host.read32(REG.CC) | (1 << CC.SHN_SHIFT));
        assert.equal((csts(nvme) >>> 2) & 3, 1);
        await nvme.until(() => held.length === 1);
        assert.equal((csts(nvme) >>> 2) & 3, 1);
        held.shift()?.end();
        assert.equal((csts(nvme) >>> 2) & 3, 2);
        nvme.host.model.reset();
        assert.equal(csts(nvme), 0);
      },
      undefined,
      calls,
    );
  });

  it('a shutdown that could not store everything is fatal, and not complete', async () => {
    const fdatasync = (_fd: number, done: (error: Error) => void): void => {
      setImmediate(() => done(Object.assign(new Error('broken'), { code: 'EIO' })));
    };
    await withHost(
      async (nvme) => {
        await nvme.enable();
        await nvme.write(await nvme.createQueue(), 0, 1, nvme.pages());
        nvme.host.write32(REG.CC, nvme.host.read32(REG.CC) | (1 << CC.SHN_SHIFT));
        await nvme.until(() => (csts(nvme) & CSTS.CFS) !== 0);
        assert.equal((csts(nvme) >>> 2) & 3, 1);
      },
      undefined,
      { ...NODE_CALLS, fdatasync: fdatasync as ImageCalls['fdatasync'] },
    );
  });

  it('a reset of the device without a shutdown is counted as unsafe', () =>
    withHost(async (nvme) => {
      await nvme.enable();
      nvme.host.model.reset();
      await nvme.enable();
      const page = nvme.pages();
      await nvme.run(nvme.admin, { opcode: ADMIN.GET_LOG_PAGE, prp1: page, cdw10: LOG.SMART | (127 << 16) });
      const health = healthOf(nvme.at(page, 512));
      assert.deepEqual([health.unsafeShutdowns, health.powerCycles], [1, 2]);
    }));
});

describe('NVMe controller: the host may take memory away', () => {
  it('nothing begins between quiesce and resume, and what waited goes on', () =>
    withHost(async (nvme) => {
      await nvme.enable();
      const queue = await nvme.createQueue();
      const page = nvme.pages();
      nvme.put(queue, nvme.io(NVM.READ, 0, 1, page));
      nvme.ring(queue);
      assert.equal(nvme.host.model.quiesce(), undefined);
      const { calls } = nvme.memory;
      await turn(5);
      assert.equal(nvme.memory.calls, calls);
      nvme.host.model.resume();
      assert.equal((await nvme.finish(queue))[0].status, 0);
    }));

  it('a read from a disk that ends meanwhile is delivered after resume', async () => {
    const { calls, held } = heldCalls('sync');
    await withHost(
      async (nvme) => {
        await nvme.enable();
        const queue = await nvme.createQueue();
        await nvme.write(queue, 0, 1, nvme.pages());
        nvme.put(queue, { opcode: NVM.FLUSH, nsid: 1 });
        nvme.ring(queue);
        await nvme.until(() => held.length === 1);
        assert.equal(nvme.host.model.quiesce(), undefined);
        const { calls: before } = nvme.memory;
        held.shift()?.end();
        await turn(5);
        assert.equal(nvme.memory.calls, before);
        nvme.host.model.resume();
        assert.equal((await nvme.finish(queue))[0].status, 0);
      },
      undefined,
      calls,
    );
  });

  it('transfers by message are waited for', async () => {
    const nvme = await new NvmeHost(undefined, 'messages').enable();
    const queue = await nvme.createQueue();
    const page = nvme.pages();
    nvme.at(page, 512).set(pattern(512));
    nvme.put(queue, nvme.io(NVM.WRITE, 3, 1, page));
    nvme.ring(queue);
    await turn();
    const quiet = nvme.host.model.quiesce();
    assert.ok(quiet !== undefined);
    await quiet;
    const { calls } = nvme.memory;
    await turn(5);
    assert.equal(nvme.memory.calls, calls);
    nvme.host.model.resume();
    assert.equal((await nvme.finish(queue))[0].status, 0);
    nvme.close();
  });
});

describe('NVMe controller: doorbells', () => {
  it('those of no queue, and values out of range, are told as events', () =>
    withHost(async (nvme) => {
      await nvme.enable();
      const queue = await nvme.createQueue(1, 8);
      for (const [register, value, info] of [
        [submissionDoorbell(5, 4), 1, 0],
        [submissionDoorbell(1, 4), 8, 1],
        [submissionDoorbell(1, 4) + 4, 8, 1],
        // The head of a completion queue in which nothing is.
        [submissionDoorbell(1, 4) + 4, 3, 1],
      ]) {
        nvme.put(nvme.admin, { opcode: ADMIN.ASYNC_EVENT });
        nvme.ring(nvme.admin);
        await turn(2);
        nvme.host.write32(register, value);
        const [event] = await nvme.finish(nvme.admin);
        assert.deepEqual([event.status, event.result & 0xffff], [0, EVENT_TYPE.ERROR | (info << 8)]);
        assert.equal(event.result >>> 16, LOG.ERROR);
        const page = nvme.pages();
        await nvme.run(nvme.admin, { opcode: ADMIN.GET_LOG_PAGE, prp1: page, cdw10: LOG.ERROR | (15 << 16) });
      }
      assert.equal((await nvme.read(queue, 0, 1, nvme.pages())).status, 0, 'the queue still works');
    }));

  it('are at their stride, for several queues', () =>
    withHost(
      async (nvme) => {
        await nvme.enable();
        const queues = [await nvme.createQueue(1), await nvme.createQueue(2, 4), await nvme.createQueue(3, 32, 16)];
        for (const [n, queue] of queues.entries()) {
          const page = nvme.pages();
          nvme.at(page, 512).fill(n + 1);
          assert.equal((await nvme.write(queue, n, 1, page)).status, 0);
        }
        const into = nvme.pages();
        assert.equal((await nvme.read(queues[2], 0, 3, into)).status, 0);
        assert.deepEqual(
          [0, 1, 2].map((n) => nvme.at(into, 4096)[n * 512]),
          [1, 2, 3],
        );
        assert.deepEqual(new Set(nvme.vectors), new Set([0, 1, 2, 3]));
      },
      { doorbellStride: 64, queues: 4 },
    ));

  it('of memory: a busy queue needs no message, and an idle one asks for one', () =>
    withHost(async (nvme) => {
      await nvme.enable();
      const queue = await nvme.createQueue();
      const [doorbells, events] = [nvme.pages(), nvme.pages()];
      assert.equal(await nvme.status({ opcode: ADMIN.DOORBELL_BUFFER_CONFIG, prp1: doorbells, prp2: events }), 0);
      const tail = doorbells + 8;
      const wanted = events + 8;
      const u32 = (iova: number): number => nvme.view.getUint32(iova - BASE, true);
      const page = nvme.pages();
      await turn(30);
      assert.equal(u32(wanted), 0, 'it wants to hear of the first entry');
      // The first one rings; those that follow while it is awake need not.
      const submit = (): void => {
        nvme.put(queue, nvme.io(NVM.READ, 0, 1, page));
        nvme.view.setUint32(tail - BASE, queue.tail, true);
      };
      submit();
      nvme.ring(queue);
      await nvme.finish(queue);
      const { rung } = nvme;
      for (let n = 0; n < 20; n++) {
        submit();
        await nvme.finish(queue);
      }
      assert.equal(nvme.rung, rung);
      // Asleep: it has asked for the next entry, and does nothing without a message.
      await turn(30);
      assert.equal(u32(wanted), queue.tail);
      const { calls } = nvme.memory;
      submit();
      await turn(30);
      assert.equal(nvme.memory.calls, calls);
      nvme.ring(queue);
      assert.equal((await nvme.finish(queue))[0].status, 0);
    }));

  it('of memory: nonsense is told as an event, and the registers count again', () =>
    withHost(async (nvme) => {
      await nvme.enable();
      const queue = await nvme.createQueue(1, 8);
      const [doorbells, events] = [nvme.pages(), nvme.pages()];
      assert.equal(await nvme.status({ opcode: ADMIN.DOORBELL_BUFFER_CONFIG, prp1: doorbells, prp2: events }), 0);
      nvme.put(nvme.admin, { opcode: ADMIN.ASYNC_EVENT });
      nvme.ring(nvme.admin);
      nvme.view.setUint32(doorbells + 8 - BASE, 77, true);
      nvme.ring(queue);
      const [event] = await nvme.finish(nvme.admin);
      assert.equal(event.result & 0xffff, EVENT_TYPE.ERROR | (1 << 8));
      assert.equal((await nvme.read(queue, 0, 1, nvme.pages())).status, 0);
    }));

  it('of memory: pages that are not mapped, or not whole, are refused', () =>
    withHost(async (nvme) => {
      await nvme.enable();
      const page = nvme.pages();
      const config = { opcode: ADMIN.DOORBELL_BUFFER_CONFIG };
      assert.equal(await nvme.status({ ...config, prp1: page, prp2: page + 8 }), STATUS.INVALID_FIELD);
      assert.equal(await nvme.status({ ...config, prp1: page, prp2: 0x5000 }), STATUS.DATA_TRANSFER_ERROR);
      const without = await new NvmeHost({ shadowDoorbells: false }).enable();
      assert.equal(await without.status({ ...config, prp1: page, prp2: page }), STATUS.INVALID_OPCODE);
      assert.equal(controllerIdentityOf(await without.identify(1)).oacs & 0x100, 0);
      without.close();
    }));
});
