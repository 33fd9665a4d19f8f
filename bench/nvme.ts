/**
 * What the NVMe driver itself costs for an I/O, in work of its thread. Its controller is this file: it completes commands at
 * once, by writing completions where the driver looks for them, and moves no data.
 */
import { nvmeDriver } from '../src/drivers/nvme/nvme-driver.js';
import type { NvmeNamespace, NvmeQueue } from '../src/entry/nvme.js';
import { Eal, KiB } from '../src/index.js';
import type { ModelHost } from '../src/vfio-user/devices/model.js';
import { NVME_REGISTER } from '../src/nvme/registers.js';
import { FakeNvme } from '../test/fakes/nvme/controller.js';
import { workClock } from './harness/clock.js';
import { measure, timeWork, type Case, type Effort, type Result } from './harness/harness.js';

const DEPTH = 32;
const BLOCKS = 8;
const TRANSFER = 4 * KiB;

/** Completes the commands of I/O queues as soon as their doorbell is written. */
class InstantNvme extends FakeNvme {
  readonly #rings = new Map<
    number,
    { submissions: Uint32Array; completions: Uint32Array; entries: number; head: number; tail: number; phase: number }
  >();

  override write(region: number, offset: number, from: Uint8Array): void {
    const index = (offset - NVME_REGISTER.DOORBELLS) / 4;
    if (index < 2) return super.write(region, offset, from);
    // Heads of completion queues are of no interest: there is always room.
    if (index % 2 === 0) this.#complete(index / 2, from[0] | (from[1] << 8));
  }

  #complete(id: number, tail: number): void {
    let ring = this.#rings.get(id);
    if (ring === undefined) this.#rings.set(id, (ring = { ...this.ringsOf(id), head: 0, tail: 0, phase: 1 }));
    const { submissions, completions, entries } = ring;
    while (ring.head !== tail) {
      const identifier = submissions[ring.head * 16] >>> 16;
      const at = ring.tail * 4;
      completions[at] = completions[at + 1] = 0;
      completions[at + 2] = id << 16;
      completions[at + 3] = identifier | (ring.phase << 16);
      ring.head = ring.head + 1 === entries ? 0 : ring.head + 1;
      if (++ring.tail < entries) continue;
      ring.tail = 0;
      ring.phase ^= 1;
    }
  }
}

/** Measures the driver alone. */
export async function benchNvme({ quick, progress }: Effort): Promise<Result[]> {
  progress('nvme: the driver alone, 4 KiB reads');
  await using eal = await Eal.start({ memory: { onNotice: () => undefined } });
  eal.vdev.define('instant-nvme', (host: ModelHost) => new InstantNvme(host, { maxEntries: 256 }));
  const device = await eal.probe('vdev:instant-nvme0');
  const ssd = device.use(nvmeDriver);
  const [disk] = ssd.namespaces;
  using block = eal.malloc(DEPTH * TRANSFER, { align: TRANSFER });
  const queue = await ssd.openQueue({ entries: 64 });
  const iova = device.iovaOf(block);
  const count = quick ? 20_000 : 200_000;
  const parts = Array.from({ length: DEPTH }, (_, i) => ({
    va: (block.va + i * TRANSFER) as typeof block.va,
    length: TRANSFER,
  }));
  const cases: Case[] = [
    {
      name: `hot path: submit, ring and poll, depth ${DEPTH}, the controller's work included`,
      unit: 'ns',
      count,
      goal: 400,
      round: () => timeWork(() => byNumbers(queue, iova, count)),
    },
    {
      name: `promises, depth ${DEPTH}, the controller's work and the event loop's included`,
      unit: 'ns',
      count,
      goal: 1200,
      round: () => byPromises(disk, parts, count),
    },
    {
      name: `promises, depth 1, with a turn of the event loop for each`,
      unit: 'ns',
      count: count / 10,
      round: () => byPromises(disk, parts.slice(0, 1), count / 10),
    },
  ];
  return await measure(cases, quick ? { warmUp: 2, measured: 5 } : { warmUp: 5, measured: 21 });
}

/** Each command that is back is sent again, in batches. */
function byNumbers(queue: NvmeQueue, iova: number, count: number): void {
  let [sent, back] = [0, 0];
  for (; sent < DEPTH; sent++) queue.read(sent, 1, sent * BLOCKS, BLOCKS, iova + sent * TRANSFER);
  queue.ring();
  while (back < count) {
    const found = queue.poll();
    for (let i = 0; i < found; i++) {
      const slot = queue.slots[i];
      if (queue.statuses[i] !== 0) throw new Error('a command failed');
      back++;
      if (sent >= count) continue;
      queue.read(slot, 1, (sent % 1000) * BLOCKS, BLOCKS, iova + slot * TRANSFER);
      sent++;
    }
    queue.ring();
  }
}

async function byPromises(
  disk: NvmeNamespace,
  parts: readonly Parameters<NvmeNamespace['read']>[0]['into'][],
  count: number,
): Promise<number> {
  const start = workClock();
  let left = count;
  await Promise.all(
    parts.map(async (into) => {
      while (left > 0) {
        left--;
        await disk.read({ lba: (left % 1000) * BLOCKS, blocks: BLOCKS, into });
      }
    }),
  );
  return workClock() - start;
}
