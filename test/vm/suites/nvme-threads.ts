/** Queue pairs of QEMU's NVMe controller in worker threads: mapped doorbells, DMA through the IOMMU, and threads that end in the middle. */
import { createHash } from 'node:crypto';
import { before, test } from 'node:test';
import assert from 'node:assert/strict';
import { Eal, isDmaError, KiB, MiB } from '../../../src/index.js';
import { ABORTED_BY_HOST, nvmeDriver } from '../../../src/entry/nvme.js';
import { Thread } from '../../shared/thread.js';
import { until } from '../../shared/until.js';
import { bindToVfio, CHOICE, KIND } from '../guest.js';
import { DEVICES } from '../machine.js';

const DISK = DEVICES.disk0;
const COMMAND = 64 * KiB;

before(() => bindToVfio([DISK]));

/** Reads `data.commands` pieces of 64 KiB from `data.lba` on; `data.endless`: again and again. */
const READ = `
  kept.queue ??= (await load('index.js')).attach(data.queue);
  const { queue } = kept;
  const memory = (await load('index.js')).attach(data.memory);
  const free = [...Array(queue.capacity).keys()];
  let sent = 0;
  for (let done = 0; data.endless || done < data.commands; ) {
    for (; (data.endless || sent < data.commands) && free.length > 0; sent++) {
      const piece = sent % data.commands;
      queue.read(free.pop(), 1, data.lba + piece * data.blocks, data.blocks, memory.iova + data.offset + piece * 65536);
    }
    queue.ring();
    const count = queue.poll();
    for (let i = 0; i < count; i++) {
      if (queue.statuses[i] !== 0) throw new Error('status ' + queue.statuses[i]);
      free.push(queue.slots[i]);
    }
    done += count;
    if (done > 0 && data.endless) Atomics.store(data.started, 0, 1);
    if (count === 0) await new Promise((resolve) => setImmediate(resolve));
  }
  memory[Symbol.dispose]();
  queue[Symbol.dispose]();
  kept.queue = undefined;`;

test('two workers drive two queue pairs at once; one that is ended in the middle gives its queue back', async () => {
  await using eal = await Eal.start({ iommu: CHOICE });
  const device = await eal.probe(`pci:${DISK}`);
  assert.equal(device.domain?.kind, KIND);
  const ssd = device.use(nvmeDriver);
  const disk = ssd.namespace(1);
  const half = 4 * MiB;
  const commands = half / COMMAND;
  using memory = eal.external.allocate(2 * half);
  const mapping = device.dmaMap(memory);
  const bytes = memory.bytes();
  const words = new Uint32Array(bytes.buffer, bytes.byteOffset, bytes.length / 4);
  for (let i = 0; i < words.length; i++) words[i] = Math.imul(i, 2654435761);
  const sum = (): string => createHash('sha256').update(bytes).digest('hex');
  const written = sum();
  await disk.write({ lba: 0, blocks: (2 * half) / disk.blockSize, from: memory });
  bytes.fill(0);
  const queues = [await ssd.openQueue({ entries: 16 }), await ssd.openQueue({ entries: 16 })];
  const started = new Int32Array(new SharedArrayBuffer(4));
  const jobs = queues.map((queue, each) => ({
    ...{ queue: queue.share(), memory: mapping.share(), offset: each * half, started, endless: false },
    ...{ lba: (each * half) / disk.blockSize, blocks: COMMAND / disk.blockSize, commands },
  }));
  const [one, two] = [new Thread(), new Thread()];
  try {
    await Promise.all([one.run(READ, jobs[0]), two.run(READ, jobs[1])]);
    assert.equal(sum(), written);
    // One of them goes on until it is ended; what it has can not be taken meanwhile.
    const endless = one.run(READ, { ...jobs[0], endless: true }).catch(() => undefined);
    await until(() => Atomics.load(started, 0) === 1);
    for (const end of [() => ssd.takeBack(queues[0]), () => eal.remove(device)])
      await assert.rejects(end(), (error) => isDmaError(error, 'EBUSY') && /worker thread/.test(error.reason));
    await one.end();
    await endless;
    await ssd.takeBack(queues[0]);
    const left = queues[0].running;
    assert.equal(queues[0].poll(), left);
    for (let i = 0; i < left; i++) assert.equal(queues[0].statuses[i], ABORTED_BY_HOST);
    // Nothing of it reaches the memory any more; the other queue was not disturbed, and both work.
    bytes.fill(0);
    assert.equal(
      bytes.findIndex((byte) => byte !== 0),
      -1,
    );
    await Promise.all([two.run(READ, jobs[1]), new Promise<void>((resolve) => setTimeout(resolve, 100))]);
    assert.equal(
      bytes.subarray(0, half).findIndex((byte) => byte !== 0),
      -1,
    );
    await two.run(READ, { ...jobs[0], queue: queues[0].share() });
    assert.equal(sum(), written);
  } finally {
    await Promise.all([one.end(), two.end()]);
  }
  for (const queue of queues) await ssd.closeQueue(queue);
  mapping.unmap();
});
