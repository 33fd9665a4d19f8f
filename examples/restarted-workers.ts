/**
 * A supervisor: workers fill packets of one pool, and are started again when they die. Whatever a dead one had, in hand and in its cache,
 * comes back, and the next one goes on where it stopped. Nothing has to run in the worker for that.
 *
 *     node examples/restarted-workers.ts
 */
import { isMainThread, parentPort, Worker, workerData } from 'node:worker_threads';
import { attach, Eal, KiB, type AttachedMemory, type Pool, type PoolDescription, type Shared } from 'anydma';

const SLOTS = 2;
const PACKETS = 600;
/** Each worker dies after so many packets, unless it is done. */
const LIFE = 150;
const BURST = 8;

interface Job {
  readonly slot: number;
  readonly pool: PoolDescription;
  /** How many packets each slot has finished: it outlives the workers. */
  readonly progress: Shared<AttachedMemory>;
}

if (isMainThread) await supervise();
else work(workerData as Job);

async function supervise(): Promise<void> {
  await using eal = await Eal.start();
  if (eal.platform.limitation !== undefined) return;
  using memory = eal.external.allocate(4 * KiB);
  const pool = eal.pools.create({ name: 'packets', elements: 64, elementSize: 2 * KiB, cache: 8 });
  const [description, progress] = [pool.share(), memory.share()];
  const finished = new Int32Array(memory.bytes().buffer, memory.bytes().byteOffset, SLOTS);
  let deaths = 0;
  const keep = async (slot: number): Promise<void> => {
    while (Atomics.load(finished, slot) < PACKETS) {
      const job: Job = { slot, pool: description, progress };
      const worker = new Worker(new URL(import.meta.url), { workerData: job, stderr: true });
      worker.on('error', (error) => console.log(`slot ${slot}: ${error.message}`));
      await new Promise((resolve) => worker.once('exit', resolve));
      if (Atomics.load(finished, slot) < PACKETS) deaths++;
    }
  };
  await Promise.all(Array.from({ length: SLOTS }, (_, slot) => keep(slot)));
  console.log(`${SLOTS * PACKETS} packets, by workers that died ${deaths} times`);
  await whole(pool);
  pool.free();
}

/** All elements are there, each once: the dead ones had some of them. */
async function whole(pool: Pool): Promise<void> {
  const all = new Int32Array(pool.elements);
  while (!pool.get(all, all.length)) await new Promise((resolve) => setTimeout(resolve, 20));
  if (new Set(all).size !== all.length) throw new Error('an element came back twice');
  pool.put(all, all.length);
  console.log(`all ${all.length} elements of the pool came back`);
}

/** In a worker: fills packets until all are done, or it dies in the middle, with a burst in its hand. */
function work({ slot, pool: description, progress }: Job): void {
  const pool = attach(description);
  const memory = attach(progress);
  const finished = new Int32Array(memory.bytes().buffer, memory.bytes().byteOffset, SLOTS);
  const burst = new Int32Array(BURST);
  for (let done = 0; Atomics.load(finished, slot) < PACKETS; done += BURST) {
    if (!pool.get(burst, BURST)) continue; // the other slot has them, or a dead worker: then get brings them back
    for (const element of burst) pool.bytes(element).fill(slot);
    if (done >= LIFE) {
      // Both ways to die; terminate() of the main thread is a third.
      if (slot === 0) process.exit(1);
      throw new Error('a worker died with 8 elements in its hand');
    }
    pool.put(burst, BURST);
    Atomics.add(finished, slot, BURST);
  }
  pool.free();
  memory.detach();
  parentPort?.close();
}
