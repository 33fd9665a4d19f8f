/**
 * A worker for each queue: two worker threads read a disk, each through a queue pair of its own, into memory that this thread has
 * mapped. Nothing of it passes through this thread; at the end it takes the queues back.
 *
 *     node examples/worker-per-queue.ts [DEVICE]
 *
 * DEVICE is an NVMe controller, such as pci:0000:04:00.0. Without it, one is served by another process.
 */
import { once } from 'node:events';
import { isMainThread, parentPort, Worker, workerData } from 'node:worker_threads';
import { attach, Eal, MiB, type AttachedMapping, type Shared } from 'anydma';
import { nvmeDriver, type AttachedNvmeQueue } from 'anydma/nvme';
import { spawnDevice } from 'anydma/model';

const WORKERS = 2;
const BYTES = 16 * MiB;
const COMMAND = 32 * 1024;

interface Job {
  readonly queue: Shared<AttachedNvmeQueue>;
  readonly memory: Shared<AttachedMapping>;
  readonly blockSize: number;
  /** The first block, and bytes from there. */
  readonly lba: number;
  readonly length: number;
}

if (isMainThread) await main(process.argv[2]);
else parentPort?.postMessage(await read(workerData as Job));

async function main(name: string | undefined): Promise<void> {
  const served = name === undefined ? await spawnDevice('nvme') : undefined;
  const eal = await Eal.start();
  try {
    const device = await eal.probe(name ?? `vfio-user:${served?.socketPath}`);
    const ssd = device.use(nvmeDriver);
    const { blockSize } = ssd.namespace(1);
    const jobs = [];
    for (let each = 0; each < WORKERS; each++) {
      const memory = eal.external.allocate(BYTES);
      const mapping = device.dmaMap(memory);
      const queue = await ssd.openQueue({ entries: 64 });
      const job: Job = {
        queue: queue.share(),
        memory: mapping.share(),
        blockSize,
        lba: (each * BYTES) / blockSize,
        length: BYTES,
      };
      const worker = new Worker(new URL(import.meta.url), { workerData: job });
      jobs.push({ worker, queue, mapping, memory, done: once(worker, 'message') });
    }
    for (const { worker, queue, mapping, memory, done } of jobs) {
      const [commands] = (await done) as [number];
      console.log(`${commands} commands through queue ${queue.id}, by a worker of its own`);
      await worker.terminate();
      await ssd.takeBack(queue);
      await ssd.closeQueue(queue);
      mapping.unmap();
      memory.unregister();
    }
  } finally {
    await eal.stop();
    await served?.close();
  }
}

/** In a worker: reads its part of the disk, as many commands at once as the queue takes. */
async function read({ queue: shared, memory, blockSize, lba, length }: Job): Promise<number> {
  const queue = attach(shared);
  const { iova } = attach(memory);
  const blocks = COMMAND / blockSize;
  const free = Array.from({ length: queue.capacity }, (_, slot) => slot);
  const commands = length / COMMAND;
  for (let sent = 0, done = 0; done < commands;) {
    for (; sent < commands; sent++) {
      const slot = free.pop();
      if (slot === undefined) break;
      queue.read(slot, 1, lba + sent * blocks, blocks, iova + sent * COMMAND);
    }
    queue.ring(); // one store for all of them
    const count = queue.poll();
    if (queue.statuses.subarray(0, count).some((status) => status !== 0)) throw new Error('a read has failed');
    free.push(...queue.slots.subarray(0, count));
    done += count;
    if (count === 0) await new Promise((resolve) => setImmediate(resolve));
  }
  queue[Symbol.dispose]();
  return commands;
}
