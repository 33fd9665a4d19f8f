/** What becomes of calls when an NVMe controller misbehaves. */
import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { fakeNvme, type FakeCommand, type Misbehaviour } from '../../../test/fakes/nvme/controller.js';
import { QUIET, withDisk as withAnyDisk } from '../../../test/fakes/nvme/disk.js';
import { dmaError, throwsDma } from '../../../test/shared/errors.js';
import { until } from '../../../test/shared/until.js';
import { Eal } from '../../eal.js';
import { isDmaError } from '../../errors.js';
import { ADMIN, FEATURE, NVM } from '../../nvme/commands.js';
import { STATUS, STATUS_FIELD } from '../../nvme/status.js';
import { NvmeError, type NvmeOutcome } from './nvme-error.js';
import { ABORTED_BY_HOST } from './queue.js';

const withDisk: typeof withAnyDisk = (options, work) =>
  withAnyDisk(options, async (room) => {
    room.ssd.configure({ abortMs: 20 });
    await work(room);
  });

/** Misbehaves with the first I/O command of this opcode, or for this block. */
function once(what: Misbehaviour, wanted: (command: FakeCommand) => boolean): (command: FakeCommand) => Misbehaviour {
  let done = false;
  return (command) => {
    if (done || command.queue === 0 || !wanted(command)) return undefined;
    done = true;
    return what;
  };
}

const isRead = ({ opcode }: FakeCommand): boolean => opcode === NVM.READ;

function outcome(error: unknown): NvmeOutcome | undefined {
  return error instanceof NvmeError ? error.nvme.outcome : undefined;
}

async function failure(promise: Promise<unknown>): Promise<unknown> {
  return promise.then(
    () => assert.fail('it resolved'),
    (error: unknown) => error,
  );
}

describe('a command', () => {
  it('that fails says type, code, text, whether to try again, and what to do', () =>
    withDisk({}, async ({ disk, fake, block }) => {
      const status = STATUS.UNRECOVERED_READ | STATUS_FIELD.DNR | STATUS_FIELD.MORE;
      fake.misbehave = ({ queue }) => (queue > 0 ? { status } : undefined);
      const error = await failure(disk.read({ lba: 5, blocks: 2, into: block }));
      assert.ok(
        dmaError(
          'EIO',
          /read of 2 blocks at LBA 5 of namespace 1 failed: unrecovered read error.*on vdev:disk0/,
        )(error),
      );
      assert.ok(error instanceof NvmeError);
      const { type, code, name, dnr, more } = error.nvme;
      assert.deepEqual(
        { type, code, name, dnr, more },
        { type: 2, code: 0x81, name: 'UNRECOVERED_READ', dnr: true, more: true },
      );
      assert.match(error.hint ?? '', /write the blocks anew/);
      assert.deepEqual(error.with({ device: 'x' }).nvme, error.nvme);
      for (const [field, wanted] of [
        [STATUS.LBA_OUT_OF_RANGE, 'ERANGE'],
        [STATUS.NAMESPACE_WRITE_PROTECTED, 'EROFS'],
        [STATUS.DATA_TRANSFER_ERROR, 'EFAULT'],
        [STATUS.CAPACITY_EXCEEDED, 'ENOSPC'],
        [0x7c5, 'EIO'],
      ] as const) {
        fake.misbehave = ({ queue }) => (queue > 0 ? { status: field } : undefined);
        await assert.rejects(disk.flush(), dmaError(wanted));
      }
    }));

  it('that does not come back is aborted', () =>
    withDisk({}, async ({ disk, fake, block }) => {
      fake.misbehave = once('lose', isRead);
      const others = [disk.write({ lba: 0, blocks: 8, from: block }), disk.flush()];
      const error = await failure(disk.read({ lba: 7, blocks: 1, into: block, timeoutMs: 20 }));
      assert.ok(dmaError('ETIMEDOUT', /time limit; it was aborted/)(error));
      assert.equal(outcome(error), 'aborted');
      await Promise.all(others);
      assert.equal(fake.enabled, 1, 'it was not reset');
      await disk.read({ lba: 7, blocks: 1, into: block });
    }));

  it('that can not be aborted ends with a reset; the others settle, and what waits is sent then', () =>
    withDisk({ maxEntries: 4 }, async ({ ssd, disk, fake, block }) => {
      const events = ssd.events();
      // The first three, which take all slots; each once.
      const first = new Set([7, 1, 2]);
      fake.misbehave = ({ queue, cdw10 }) => (queue > 0 && first.delete(cdw10) ? 'lose-for-good' : undefined);
      const lost = disk.read({ lba: 7, blocks: 1, into: block, timeoutMs: 20 });
      const running = [1, 2].map((lba) => failure(disk.write({ lba, blocks: 1, from: block })));
      const waiting = [disk.write({ lba: 3, blocks: 1, from: block }), disk.read({ lba: 4, blocks: 1, into: block })];
      const error = await failure(lost);
      assert.ok(dmaError('ETIMEDOUT', /time limit; the controller was reset/)(error));
      assert.equal(outcome(error), 'unknown');
      for (const each of await Promise.all(running)) {
        assert.ok(
          dmaError('ECANCELED', /reset while it ran .*did not come back 20 ms after it was aborted.*not known/)(each),
        );
        assert.equal(outcome(each), 'unknown');
      }
      await Promise.all(waiting);
      assert.equal(fake.enabled, 2);
      assert.equal(fake.ioQueues, 1);
      const event = await events.next();
      assert.equal(event.value?.kind, 'reset');
    }));

  it('that comes back late, when it was given up, is told so; its identifier is not used again before', () =>
    withDisk({ maxEntries: 4 }, async ({ ssd, disk, fake, block }) => {
      ssd.configure({ abortMs: 5000 });
      fake.misbehave = once('hold', isRead);
      const late = failure(disk.read({ lba: 7, blocks: 1, into: block, timeoutMs: 5 }));
      await until(() => fake.log.some(({ opcode, queue }) => queue === 0 && opcode === ADMIN.ABORT), 'it is aborted');
      const { id } = fake.log.find(({ queue }) => queue > 0) ?? assert.fail();
      for (let i = 0; i < 10; i++) await disk.write({ lba: i, blocks: 1, from: block });
      assert.equal(fake.log.filter((command) => command.queue > 0 && command.id === id).length, 1);
      throwsDma('EBUSY', () => block.free(), /read of 1 block at LBA 7/);
      fake.letGo();
      const error = await late;
      assert.ok(dmaError('ETIMEDOUT', /it was done all the same/)(error));
      assert.equal(outcome(error), 'completed');
      assert.equal(fake.enabled, 1);
    }));

  it('is aborted by a signal: before, while it waits, and while it runs', () =>
    withDisk({ maxEntries: 2 }, async ({ disk, fake, block }) => {
      const aborted = AbortSignal.abort(new Error('no'));
      const error = await failure(disk.read({ lba: 0, blocks: 1, into: block, signal: aborted }));
      assert.ok(dmaError('ECANCELED', /aborted/)(error));
      assert.equal(outcome(error), 'not-sent');
      assert.match(String((error as Error).cause), /no/);
      fake.misbehave = once('lose', isRead);
      const [first, second] = [new AbortController(), new AbortController()];
      const runs = failure(disk.read({ lba: 0, blocks: 1, into: block, signal: first.signal }));
      const waits = failure(disk.write({ lba: 5, blocks: 1, from: block, signal: second.signal }));
      const after = disk.write({ lba: 6, blocks: 1, from: block });
      await until(() => fake.log.some(({ queue }) => queue > 0), 'it runs');
      second.abort();
      assert.equal(outcome(await waits), 'not-sent');
      first.abort();
      assert.equal(outcome(await runs), 'aborted');
      await after;
      assert.ok(!fake.log.some(({ queue, cdw10 }) => queue > 0 && cdw10 === 5));
    }));
});

describe('a controller', () => {
  for (const what of ['twice', 'unknown-id', 'wrong-queue'] as const)
    it(`whose completions are garbage (${what}) is reset, and works again`, () =>
      withDisk({}, async ({ ssd, disk, fake, block }) => {
        const events = ssd.events();
        fake.misbehave = once(what, isRead);
        const read = disk.read({ lba: 0, blocks: 1, into: block });
        if (what === 'twice') await read;
        else
          assert.ok(
            dmaError('ECANCELED', /reset while it ran .*completion into queue 1 that can not be/)(await failure(read)),
          );
        const { value } = await events.next();
        assert.equal(value?.kind, 'reset');
        assert.match(
          value?.what,
          { twice: /is not running/, 'unknown-id': /no command 65520/, 'wrong-queue': /about queue 8/ }[what],
        );
        assert.equal(fake.enabled, 2);
        await disk.read({ lba: 0, blocks: 1, into: block });
      }));

  it('that fails (CSTS.CFS) is reset; reads are sent again when that is asked for, and writes are not', () =>
    withDisk({}, async ({ ssd, disk, fake, block }) => {
      ssd.configure({ resubmitReads: true });
      fake.disks[0].fill(9);
      fake.misbehave = once('fatal', isRead);
      const read = disk.read({ lba: 0, blocks: 128, into: block });
      await read;
      assert.ok(block.bytes().every((byte) => byte === 9));
      assert.equal(fake.enabled, 2);
      fake.misbehave = once('fatal', ({ opcode }) => opcode === NVM.WRITE);
      const error = await failure(disk.write({ lba: 0, blocks: 1, from: block }));
      assert.ok(dmaError('ECANCELED', /fatal error \(CSTS\.CFS\).*send it again/)(error));
      assert.equal(fake.enabled, 3);
      await disk.write({ lba: 0, blocks: 1, from: block });
    }));

  it('that is pulled out ends all calls with ENODEV, and can be removed', () =>
    withDisk({}, async ({ eal, device, ssd, disk, fake, block }) => {
      fake.misbehave = once('unplugged', isRead);
      const calls = [
        failure(disk.read({ lba: 0, blocks: 1, into: block })),
        failure(disk.write({ lba: 0, blocks: 1, from: block })),
      ];
      for (const error of await Promise.all(calls)) assert.ok(dmaError('ENODEV', /all ones/)(error));
      await assert.rejects(disk.flush(), dmaError('ENODEV'));
      await assert.rejects(ssd.reset(), dmaError('ENODEV'));
      assert.equal(ssd.ready, false);
      await eal.remove(device);
    }));

  it('that does not come up again ends all calls, and says why', () =>
    withDisk({}, async ({ eal, device, ssd, disk, fake, block }) => {
      fake.misbehave = ({ queue, opcode }) =>
        queue > 0 ? 'lose-for-good' : opcode === ADMIN.IDENTIFY ? { status: STATUS.INTERNAL_ERROR } : undefined;
      const running = failure(disk.write({ lba: 0, blocks: 1, from: block }));
      await until(() => fake.log.some(({ queue }) => queue > 0), 'it runs');
      await assert.rejects(ssd.reset(), dmaError('EIO', /internal error/));
      assert.ok(isDmaError(await running));
      await assert.rejects(disk.write({ lba: 0, blocks: 1, from: block }), dmaError('EIO', /internal error/));
      await eal.remove(device);
    }));

  it('that is being reset gets what was called meanwhile when it is ready, and not before', () =>
    withDisk({}, async ({ ssd, fake }) => {
      const resetting = ssd.reset();
      const [, queue] = await Promise.all([ssd.feature(FEATURE.WRITE_CACHE), ssd.openQueue(), resetting]);
      assert.equal(fake.enabled, 2, 'once from the start, and once more');
      await ssd.closeQueue(queue);
    }));

  it('that refuses a submission queue has no completion queue for it either', () =>
    withDisk({}, async ({ ssd, fake }) => {
      let refused = 0;
      fake.misbehave = ({ queue, opcode }) =>
        queue === 0 && opcode === ADMIN.CREATE_SQ && refused++ === 0 ? { status: STATUS.INTERNAL_ERROR } : undefined;
      await assert.rejects(ssd.openQueue(), dmaError('EIO'));
      await ssd.closeQueue(await ssd.openQueue());
    }));

  it('that is reset on demand keeps its queues, those of the program too', () =>
    withDisk({}, async ({ device, ssd, fake, block }) => {
      const queue = await ssd.openQueue({ entries: 8 });
      const iova = device.iovaOf(block);
      fake.misbehave = once('lose', isRead);
      queue.read(2, 1, 0, 1, iova);
      queue.write(3, 1, 0, 1, iova);
      queue.ring();
      await until(() => queue.poll() === 1, 'the write is back');
      const reset = ssd.reset();
      throwsDma('EAGAIN', () => queue.read(0, 1, 0, 1, iova), /being reset.*events/);
      await reset;
      assert.equal(queue.poll(), 1);
      assert.deepEqual([queue.slots[0], queue.statuses[0]], [2, ABORTED_BY_HOST]);
      assert.equal(queue.running, 0);
      queue.read(2, 1, 0, 1, iova);
      queue.ring();
      await until(() => queue.poll() === 1, 'it works again');
      assert.equal(queue.statuses[0], 0);
    }));

  for (const what of ['fatal', 'unplugged'] as const)
    it(`that is ${what} while nothing but a queue of the program runs is noticed by polling`, () =>
      withDisk({}, async ({ device, ssd, fake, block }) => {
        const queue = await ssd.openQueue({ entries: 8 });
        fake.misbehave = once(what, isRead);
        queue.read(2, 1, 0, 1, device.iovaOf(block));
        queue.ring();
        const polls = (): boolean => {
          for (let n = 0; n < 1024; n++) if (queue.poll() > 0) return true;
          return false;
        };
        await until(polls, 'its command ends');
        assert.deepEqual([queue.slots[0], queue.statuses[0], queue.running], [2, ABORTED_BY_HOST, 0]);
        if (what === 'fatal') await until(() => ssd.ready, 'it works again');
        else throwsDma('ENODEV', () => queue.read(2, 1, 0, 1, device.iovaOf(block)), /all ones/);
      }));

  it('that is removed while commands run: they end, and nothing is left', () =>
    withDisk({}, async ({ eal, device, disk, fake, block }) => {
      fake.misbehave = ({ queue }) => (queue > 0 ? 'lose' : undefined);
      const running = failure(disk.write({ lba: 0, blocks: 1, from: block }));
      await until(() => fake.log.some(({ queue }) => queue > 0), 'it runs');
      await eal.remove(device);
      assert.ok(dmaError('ECANCELED', /closed.*not known/)(await running));
      await assert.rejects(disk.flush(), dmaError('ECANCELED', /closed/));
    }));

  it('that is fatal from the start, or does not get ready, is not taken, and leaves nothing', async () => {
    await using eal = await Eal.start(QUIET);
    for (const [kind, misbehave, code, says] of [
      [
        'never-identifies',
        ({ opcode }: FakeCommand) => (opcode === ADMIN.IDENTIFY ? { status: STATUS.INTERNAL_ERROR } : undefined),
        'EIO',
        /internal error/,
      ],
      ['fails', ({ opcode }: FakeCommand) => (opcode === ADMIN.SET_FEATURES ? 'fatal' : undefined), 'EIO', /CSTS\.CFS/],
      [
        'goes',
        ({ opcode }: FakeCommand) => (opcode === ADMIN.SET_FEATURES ? 'unplugged' : undefined),
        'ENODEV',
        /all ones/,
      ],
    ] as const) {
      const { factory } = fakeNvme({ misbehave });
      eal.vdev.define(kind, factory);
      await assert.rejects(eal.probe(`vdev:${kind}0`), dmaError(code, says));
      assert.equal(eal.find(`vdev:${kind}0`), undefined);
    }
  });
});

describe('a full queue', () => {
  it('holds up what comes, and loses nothing', () =>
    withDisk({ maxEntries: 4 }, async ({ disk, fake, block }) => {
      fake.disks[0].forEach((_, i, bytes) => (bytes[i] = (i >> 9) & 0xff));
      const calls = Array.from({ length: 128 }, (_, i) =>
        disk.read({ lba: i, blocks: 1, into: { va: block.va + i * 512, length: 512 } }),
      );
      await Promise.all(calls);
      assert.deepEqual(Uint8Array.from(block.bytes()), fake.disks[0].slice(0, 64 * 1024));
    }));
});
