import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { BASE, NvmeHost } from '../../../../test/fakes/vfio-user/nvme-host.js';
import { turn, type Reach } from '../../../../test/fakes/vfio-user/model-host.js';
import { ADMIN, NVM, QUEUE } from '../../../nvme/commands.js';
import { completionDoorbell, needsDoorbell, submissionDoorbell } from '../../../nvme/registers.js';
import { STATUS } from '../../../nvme/status.js';

describe('NVMe queues', () => {
  for (const reach of ['direct', 'copied', 'messages'] as const satisfies readonly Reach[])
    it(`the phase turns at every wrap, in queues of unlike sizes, ${reach}`, async () => {
      const nvme = await new NvmeHost(undefined, reach).enable();
      for (const [id, size, cqSize] of [
        [1, 2, 2],
        [2, 5, 3],
        [3, 4, 7],
        [4, 64, 64],
      ]) {
        const queue = await nvme.createQueue(id, size, cqSize);
        const page = nvme.pages();
        let completed = 0;
        for (let round = 0; round < 25; round++) {
          // As many as the smaller queue holds: one less than its entries.
          const batch = Math.min(size, cqSize) - 1;
          const ids = Array.from({ length: batch }, () => nvme.put(queue, nvme.io(NVM.READ, 0, 1, page)));
          nvme.ring(queue);
          const got = await nvme.finish(queue, batch);
          assert.deepEqual(
            got.map(({ cid }) => cid),
            ids,
          );
          for (const each of got) assert.deepEqual([each.status, each.sq], [0, id]);
          completed += batch;
          assert.equal(got[batch - 1].sqHead, completed % size);
        }
      }
      nvme.close();
    });

  it('more commands than completions fit: nothing is lost or overwritten', async () => {
    const nvme = await new NvmeHost().enable();
    const queue = await nvme.createQueue(1, 64, 4);
    const page = nvme.pages();
    const ids: number[] = [];
    for (let n = 0; n < 63; n++) ids.push(nvme.put(queue, nvme.io(NVM.READ, n, 1, page)));
    nvme.ring(queue);
    await turn(20);
    const got = nvme.take(queue, true);
    assert.equal(got.length, 3, 'a queue of 4 entries holds 3');
    await turn(20);
    assert.deepEqual(nvme.take(queue, true), []);
    nvme.host.write32(completionDoorbell(1, 4), queue.head);
    got.push(...(await nvme.finish(queue, 60)));
    assert.deepEqual(
      got.map(({ cid }) => cid),
      ids,
    );
    nvme.close();
  });

  it('more than completions fit, with doorbells in memory', async () => {
    const nvme = await new NvmeHost().enable();
    const queue = await nvme.createQueue(1, 64, 4);
    const [doorbells, events] = [nvme.pages(), nvme.pages()];
    assert.equal(await nvme.status({ opcode: ADMIN.DOORBELL_BUFFER_CONFIG, prp1: doorbells, prp2: events }), 0);
    const page = nvme.pages();
    for (let n = 0; n < 63; n++) nvme.put(queue, nvme.io(NVM.READ, n, 1, page));
    nvme.view.setUint32(doorbells + 8 - BASE, queue.tail, true);
    nvme.ring(queue);
    let got = 0;
    await nvme.until(() => {
      const before = queue.head;
      got += nvme.take(queue, true).length;
      nvme.view.setUint32(doorbells + 12 - BASE, queue.head, true);
      // As the host must: only if the event index was passed.
      if (queue.head !== before && nvme.view.getUint32(events + 12 - BASE, true) === before)
        nvme.host.write32(completionDoorbell(1, 4), queue.head);
      return got === 63;
    });
    nvme.close();
  });

  for (const size of [2, 5, 33])
    it(`a busy queue of ${size} entries needs no message, with doorbells in memory`, async () => {
      const nvme = await new NvmeHost().enable();
      const queue = await nvme.createQueue(1, size);
      const [doorbells, events] = [nvme.pages(), nvme.pages()];
      assert.equal(await nvme.status({ opcode: ADMIN.DOORBELL_BUFFER_CONFIG, prp1: doorbells, prp2: events }), 0);
      const page = nvme.pages();
      let messages = 0;
      // As a host does it: by message only if the event index was passed.
      const tell = (which: 0 | 1, value: number, register: number): void => {
        const at = 8 + 4 * which - BASE;
        const old = nvme.view.getUint32(doorbells + at, true);
        nvme.view.setUint32(doorbells + at, value, true);
        if (!needsDoorbell(nvme.view.getUint32(events + at, true), value, old)) return;
        messages++;
        nvme.host.write32(register, value);
      };
      for (let round = 0; round < 40; round++) {
        const batch = round % 3 === 0 ? 1 : size - 1;
        for (let n = 0; n < batch; n++) nvme.put(queue, nvme.io(NVM.READ, 0, 1, page));
        tell(0, queue.tail, submissionDoorbell(1, 4));
        let got = 0;
        await nvme.until(() => {
          got += nvme.take(queue, true).length;
          return got === batch;
        });
        tell(1, queue.head, completionDoorbell(1, 4));
      }
      // The first one wakes it. On a busy machine it may fall asleep between two rounds, of which each could need two.
      assert.ok(messages >= 1 && messages < 20, `${messages} messages`);
      nvme.close();
    });

  /** Holds messages about one address, until they are let go. */
  function hold(nvme: NvmeHost, what: 'read' | 'write', at: number): () => void {
    let letGo: () => void = () => undefined;
    const gate = new Promise<void>((resolve) => {
      letGo = resolve;
    });
    const move = nvme.memory[what].bind(nvme.memory);
    nvme.memory[what] = (iova: number, bytes: Uint8Array) =>
      iova === at ? gate.then(() => void move(iova, bytes)) : move(iova, bytes);
    return letGo;
  }

  it('commands that come after their queue was deleted are not carried out', async () => {
    const nvme = await new NvmeHost(undefined, 'copied').enable();
    const queue = await nvme.createQueue();
    const letGo = hold(nvme, 'read', queue.sq);
    nvme.put(queue, nvme.io(NVM.READ, 0, 1, nvme.pages()));
    nvme.ring(queue);
    await turn(3);
    assert.equal(await nvme.status({ opcode: ADMIN.DELETE_SQ, cdw10: 1 }), 0);
    assert.equal(await nvme.status({ opcode: ADMIN.DELETE_CQ, cdw10: 1 }), 0);
    // The host uses the memory for something else.
    nvme.at(queue.cq, 1024).fill(0xee);
    letGo();
    await turn(5);
    assert.ok(nvme.at(queue.cq, 1024).every((byte) => byte === 0xee));
    nvme.close();
  });

  it('a completion queue is gone when nothing is on its way into it', async () => {
    const nvme = await new NvmeHost(undefined, 'copied').enable();
    const queue = await nvme.createQueue();
    const letGo = hold(nvme, 'write', queue.cq);
    nvme.put(queue, nvme.io(NVM.READ, 0, 1, nvme.pages()));
    nvme.ring(queue);
    await turn(3);
    assert.equal(await nvme.status({ opcode: ADMIN.DELETE_SQ, cdw10: 1 }), 0);
    nvme.put(nvme.admin, { opcode: ADMIN.DELETE_CQ, cdw10: 1 });
    nvme.ring(nvme.admin);
    await turn(3);
    assert.deepEqual(nvme.take(nvme.admin), []);
    letGo();
    assert.equal((await nvme.finish(nvme.admin))[0].status, 0);
    nvme.close();
  });

  it('doorbells in memory are those of each queue, whatever it is paired with', async () => {
    const nvme = await new NvmeHost().enable();
    const first = await nvme.createQueue(1, 16, 64);
    const page = nvme.pages();
    const second = nvme.queue(2, 16);
    const createSq = (id: number, sq: number): Promise<number> =>
      nvme.status({ opcode: ADMIN.CREATE_SQ, prp1: sq, cdw10: id | (15 << 16), cdw11: 1 | (1 << 16) });
    assert.equal(await createSq(2, second.sq), 0);
    await nvme.read(first, 0, 1, page);
    await nvme.read(first, 0, 1, page);
    nvme.put(second, nvme.io(NVM.READ, 0, 1, page));
    nvme.ring(second);
    await nvme.finish(first);
    const [doorbells, events] = [nvme.pages(), nvme.pages()];
    assert.equal(await nvme.status({ opcode: ADMIN.DOORBELL_BUFFER_CONFIG, prp1: doorbells, prp2: events }), 0);
    const words = (): number[] => [2, 3, 4, 5].map((n) => nvme.view.getUint32(doorbells - BASE + 4 * n, true));
    assert.deepEqual(words(), [2, 3, 1, 0], 'tails and heads of queues 1 and 2');
    // A submission queue that is made anew leaves the head of the completion queue with the same number.
    assert.equal(await nvme.status({ opcode: ADMIN.DELETE_SQ, cdw10: 1 }), 0);
    assert.equal(await createSq(1, first.sq), 0);
    assert.deepEqual(words(), [0, 3, 1, 0]);
    nvme.close();
  });

  it('two submission queues share a completion queue', async () => {
    const nvme = await new NvmeHost().enable();
    const first = await nvme.createQueue(1, 16, 64);
    const second = nvme.queue(2, 16);
    assert.equal(
      await nvme.status({
        opcode: ADMIN.CREATE_SQ,
        prp1: second.sq,
        cdw10: 2 | (15 << 16),
        cdw11: QUEUE.CONTIGUOUS | (1 << 16),
      }),
      0,
    );
    const page = nvme.pages();
    for (const queue of [first, second]) {
      nvme.put(queue, nvme.io(NVM.READ, 0, 1, page));
      nvme.ring(queue);
    }
    const got = await nvme.finish(first, 2);
    assert.deepEqual(new Set(got.map(({ sq }) => sq)), new Set([1, 2]));
    // It can not go while it is used.
    assert.equal(await nvme.status({ opcode: ADMIN.DELETE_CQ, cdw10: 1 }), STATUS.INVALID_QUEUE_DELETION);
    assert.equal(await nvme.status({ opcode: ADMIN.DELETE_SQ, cdw10: 1 }), 0);
    assert.equal(await nvme.status({ opcode: ADMIN.DELETE_CQ, cdw10: 1 }), STATUS.INVALID_QUEUE_DELETION);
    assert.equal(await nvme.status({ opcode: ADMIN.DELETE_SQ, cdw10: 2 }), 0);
    assert.equal(await nvme.status({ opcode: ADMIN.DELETE_CQ, cdw10: 1 }), 0);
    assert.equal(await nvme.status({ opcode: ADMIN.DELETE_SQ, cdw10: 2 }), STATUS.INVALID_QUEUE_ID);
    const again = await nvme.createQueue(1);
    assert.equal((await nvme.read(again, 0, 1, page)).status, 0);
    nvme.close();
  });

  it('those that can not be are refused, each by its status', async () => {
    const nvme = await new NvmeHost({ queues: 4, queueEntries: 64 }).enable();
    const page = nvme.pages();
    const cq = (more: object): Promise<number> =>
      nvme.status({ opcode: ADMIN.CREATE_CQ, prp1: page, cdw10: 1 | (7 << 16), cdw11: QUEUE.CONTIGUOUS, ...more });
    const sq = (more: object): Promise<number> =>
      nvme.status({ opcode: ADMIN.CREATE_SQ, prp1: page, cdw10: 1 | (7 << 16), cdw11: 1 | (1 << 16), ...more });
    assert.equal(await cq({ cdw10: 7 << 16 }), STATUS.INVALID_QUEUE_ID);
    assert.equal(await cq({ cdw10: 5 | (7 << 16) }), STATUS.INVALID_QUEUE_ID);
    assert.equal(await cq({ cdw10: 1 }), STATUS.INVALID_QUEUE_SIZE);
    assert.equal(await cq({ cdw10: 1 | (64 << 16) }), STATUS.INVALID_QUEUE_SIZE);
    assert.equal(await cq({ cdw11: 0 }), STATUS.INVALID_FIELD);
    assert.equal(await cq({ prp1: page + 64 }), STATUS.INVALID_PRP_OFFSET);
    assert.equal(await cq({ cdw11: 1 | (5 << 16) }), STATUS.INVALID_VECTOR);
    assert.equal(await sq({}), STATUS.INVALID_CQ);
    assert.equal(await sq({ cdw11: 1 | (9 << 16) }), STATUS.INVALID_QUEUE_ID);
    assert.equal(await cq({ cdw10: 1 | (63 << 16) }), 0);
    assert.equal(await cq({}), STATUS.INVALID_QUEUE_ID);
    assert.equal(await sq({ cdw10: 1 }), STATUS.INVALID_QUEUE_SIZE);
    assert.equal(await sq({ cdw10: 1 | (1 << 16) }), 0);
    assert.equal(await sq({}), STATUS.INVALID_QUEUE_ID);
    for (const cdw10 of [0, 3, 0xffff]) {
      assert.equal(await nvme.status({ opcode: ADMIN.DELETE_SQ, cdw10 }), STATUS.INVALID_QUEUE_ID);
      assert.equal(await nvme.status({ opcode: ADMIN.DELETE_CQ, cdw10 }), STATUS.INVALID_QUEUE_ID);
    }
    nvme.close();
  });

  it('an identifier that is outstanding is refused, and the first command goes on', async () => {
    const nvme = await new NvmeHost({ faults: [{ do: 'late', ms: 1 }] }).enable();
    const queue = await nvme.createQueue();
    const page = nvme.pages();
    nvme.put(queue, nvme.io(NVM.READ, 0, 1, page, 512, { cid: 7 }));
    nvme.put(queue, nvme.io(NVM.READ, 0, 1, page, 512, { cid: 7 }));
    nvme.ring(queue);
    const got = await nvme.finish(queue, 2);
    assert.deepEqual(
      got.map(({ cid, status }) => [cid, status]),
      [
        [7, STATUS.ID_CONFLICT],
        [7, 0],
      ],
    );
    nvme.close();
  });

  it('thousands of commands are under way at once', async () => {
    const nvme = await new NvmeHost({ queueEntries: 4096 }).enable();
    const queues = [await nvme.createQueue(1, 4096), await nvme.createQueue(2, 4096)];
    const page = nvme.pages();
    for (const queue of queues) {
      for (let n = 0; n < 4095; n++) nvme.put(queue, nvme.io(NVM.COMPARE, n, 1, page));
      nvme.ring(queue);
    }
    for (const queue of queues) {
      const got = await nvme.finish(queue, 4095);
      assert.ok(got.every(({ status }) => status === 0));
      assert.equal(new Set(got.map(({ cid }) => cid)).size, 4095);
    }
    nvme.close();
  });
});
