/**
 * The NVMe driver, by a queue of the program's own, against fio with io_uring on the kernel's driver, by interrupts and with
 * `--hipri`. It is the same disk, which is given to the one and to the other in turns; `npm run bench:vm` has one. It is only read.
 *
 * $ANYDMA_BENCH_DISK says which: the PCI address of a controller that nothing else uses.
 */
import { existsSync, readdirSync, writeFileSync } from 'node:fs';
import { release as linuxRelease } from 'node:os';
import { Workload } from '../src/cli/nvme/workload.js';
import { nvmeDriver, type NvmeNamespace, type NvmeQueue } from '../src/entry/nvme.js';
import { Eal, KiB, MiB, type Block, type Device } from '../src/index.js';
import { setImmediate } from '../src/timers.js';
import { until } from '../test/shared/until.js';
import { bindToVfio, release, sysfs } from '../test/vm/guest.js';
import { fioVersion, runFio } from './harness/fio.js';
import { measure, type Case, type Effort, type Result } from './harness/harness.js';

/** What is read, and how many times fio's time it may take. */
const LOADS = [
  { name: '4 KiB random reads, depth 1', rw: 'randread', bs: 4 * KiB, depth: 1, unit: 'us', goal: 1.2 },
  { name: '4 KiB random reads, depth 32', rw: 'randread', bs: 4 * KiB, depth: 32, unit: '/s', goal: 1 },
  { name: '128 KiB sequential reads, depth 32', rw: 'read', bs: 128 * KiB, depth: 32, unit: 'GB/s', goal: 1 },
] as const;
type Load = (typeof LOADS)[number];

/** The two ways of fio, and what their cases are called. */
const WAYS = [
  { hipri: false, name: 'fio' },
  { hipri: true, name: 'fio --hipri' },
];

/** After so many milliseconds the event loop gets a turn. */
const TURN_MS = 5;
/** At depth 1 the clock is looked at once in so many reads. */
const CLOCK_READS = 16;

/** Measures the driver and fio. */
export async function benchFio({ quick, progress }: Effort): Promise<Result[]> {
  const address = process.env.ANYDMA_BENCH_DISK;
  const fio = fioVersion();
  if (address === undefined || typeof fio === 'string') {
    progress(
      `fio: left out, ${typeof fio === 'string' ? fio : 'no disk to take (npm run bench:vm -- --only fio has one)'}`,
    );
    return [];
  }
  progress('fio: the driver, and fio with io_uring on the kernel’s driver');
  const seconds = quick ? 1 : 2;
  await using disk = new Disk(address);
  const versions = `Linux ${linuxRelease()}, fio ${fio.version}`;
  // All of ours, and then all of fio's, so that the disk changes hands once a round.
  const ours = LOADS.flatMap((load) =>
    WAYS.map(({ name }): Case => {
      const { unit, goal } = load;
      const round = async (): Promise<number> => perThing(load, await (await disk.ours()).read(load, seconds * 1000));
      return {
        name: `${load.name}, against ${name}`,
        unit,
        count: 1,
        to: `${load.name}, ${name}`,
        goal,
        versions,
        round,
      };
    }),
  );
  const theirs = LOADS.flatMap((load) =>
    WAYS.map(({ name, hipri }): Case => {
      const { rw, bs, depth: iodepth, unit } = load;
      const round = async (): Promise<number> => {
        const run = { disk: await disk.kernels(), rw, bs, iodepth, runtime: seconds, hipri };
        const { latency, iops } = await runFio(run);
        return perThing(load, iodepth === 1 ? latency : 1000 / iops);
      };
      return { name: `${load.name}, ${name}`, unit, count: 1, versions, round };
    }),
  );
  return await measure([...ours, ...theirs], quick ? { warmUp: 1, measured: 3 } : { warmUp: 2, measured: 9 });
}

/** The milliseconds of one read, or of one byte. */
function perThing({ unit, bs }: Load, perRead: number): number {
  return unit === 'GB/s' ? perRead / bs : perRead;
}

/** The disk, which is ours or the kernel's. */
class Disk implements AsyncDisposable {
  readonly #address: string;
  #reader: Reader | undefined;

  constructor(address: string) {
    this.#address = address;
  }

  /** Takes it from the kernel, if that has it. */
  async ours(): Promise<Reader> {
    if (this.#reader !== undefined) return this.#reader;
    await bindToVfio([this.#address]);
    return (this.#reader = await Reader.open(this.#address));
  }

  /** Gives it to the kernel, with a queue for polling. @returns the file of its first namespace */
  async kernels(): Promise<string> {
    const address = this.#address;
    const namespace = (): string | undefined => {
      const directory = `${sysfs(address)}/nvme`;
      if (!existsSync(directory)) return undefined;
      const [controller] = readdirSync(directory);
      const name = readdirSync(`${directory}/${controller}`).find((each) => /^nvme\d+n\d+$/.test(each));
      return name === undefined || !existsSync(`/dev/${name}`) ? undefined : `/dev/${name}`;
    };
    if (this.#reader !== undefined || !existsSync(`${sysfs(address)}/nvme`)) {
      await this.#close();
      release([address]);
      writeFileSync('/sys/module/nvme/parameters/poll_queues', '1');
      writeFileSync('/sys/bus/pci/drivers_probe', address);
    }
    await until(() => namespace() !== undefined, 'the kernel has the disk');
    return namespace() ?? '';
  }

  async #close(): Promise<void> {
    const reader = this.#reader;
    this.#reader = undefined;
    await reader?.[Symbol.asyncDispose]();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.kernels();
  }
}

/** The library, with the disk and a queue that is polled. */
class Reader implements AsyncDisposable {
  readonly #eal: Eal;
  readonly #device: Device;
  readonly #memory: Block;
  readonly #queue: NvmeQueue;
  readonly #iova: number;
  readonly #disk: NvmeNamespace;

  private constructor(eal: Eal, device: Device, memory: Block, queue: NvmeQueue, disk: NvmeNamespace) {
    this.#eal = eal;
    this.#device = device;
    this.#memory = memory;
    this.#queue = queue;
    this.#iova = device.iovaOf(memory);
    this.#disk = disk;
  }

  static async open(address: string): Promise<Reader> {
    const eal = await Eal.start();
    try {
      const device = await eal.probe(`pci:${address}`);
      const ssd = device.use(nvmeDriver);
      const [disk] = ssd.namespaces;
      const memory = eal.malloc(Math.max(...LOADS.map(({ bs, depth }) => bs * depth)), {
        align: 2 * MiB,
        contiguous: true,
      });
      const queue = await ssd.openQueue({ interrupts: false });
      return new Reader(eal, device, memory, queue, disk);
    } catch (error) {
      await eal.stop();
      throw error;
    }
  }

  /** Reads for so many milliseconds. @returns how many one read took */
  async read({ rw, bs, depth }: Load, ms: number): Promise<number> {
    const queue = this.#queue;
    const iova = this.#iova;
    const disk = this.#disk;
    const blocks = bs / disk.blockSize;
    const workload = new Workload(rw, Math.floor(disk.blocks / blocks), 100, 1);
    const start = performance.now();
    let done = 0;
    let turn = start;
    let now = start;
    for (let slot = 0; slot < depth; slot++) queue.read(slot, 1, workload.next() * blocks, blocks, iova + slot * bs);
    queue.ring();
    for (let next = done + CLOCK_READS; now - start < ms; next = done + CLOCK_READS) {
      while (done < next) {
        const found = queue.poll();
        for (let i = 0; i < found; i++) {
          const slot = queue.slots[i];
          if (queue.statuses[i] !== 0) throw new Error(`a read failed: ${queue.statuses[i]}`);
          queue.read(slot, 1, workload.next() * blocks, blocks, iova + slot * bs);
        }
        if (found > 0) queue.ring();
        done += found;
      }
      now = performance.now();
      if (now - turn < TURN_MS) continue;
      await new Promise((resolve) => setImmediate(resolve));
      turn = performance.now();
    }
    while (queue.running > 0) queue.poll();
    return (now - start) / done;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#eal.remove(this.#device);
    this.#memory.free();
    await this.#eal.stop();
  }
}
