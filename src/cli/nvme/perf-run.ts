/** The run of `anydma nvme perf`: queues are opened, kept full for some time, and what came of it is counted. */
import { monitorEventLoopDelay } from 'node:perf_hooks';
import { statusError, type Nvme, type NvmeNamespace, type NvmeQueue } from '../../entry/nvme.js';
import { DmaError, formatSize, type Block, type Device, type Eal } from '../../index.js';
import { setImmediate } from '../../timers.js';
import { Job } from './jobs.js';
import { Latencies, type LatencyDocument } from './latencies.js';
import { Workload, type PatternName } from './workload.js';

/** What to run, in fio's words. */
export interface PerfOptions {
  readonly rw: PatternName;
  readonly rwmixread: number;
  /** bytes of a command */
  readonly bs: number;
  readonly iodepth: number;
  /** seconds */
  readonly runtime: number;
  /** Only this part of the namespace, from its start. */
  readonly bytes?: number;
  readonly numjobs: number;
  readonly rateIops?: number;
  readonly verify: boolean;
  readonly seed: number;
  readonly signal: AbortSignal;
  /** Called once a second with what was done in it. */
  readonly onSecond?: (done: { readonly seconds: number; readonly commands: number; readonly bytes: number }) => void;
  /** Called when what was written is going to be read. */
  readonly onChecking?: (units: number) => void;
}

/** What reads, or writes, came to. */
export interface PerfPart {
  readonly commands: number;
  /** commands a second */
  readonly iops: number;
  /** bytes a second */
  readonly bandwidth: number;
  readonly latency: LatencyDocument | undefined;
}

/** What a run came to. */
export interface PerfResult {
  /** measured, seconds */
  readonly seconds: number;
  readonly read: PerfPart;
  readonly write: PerfPart;
  /** CPU time of this process for each command. */
  readonly cpuMicroseconds: number;
  /** The longest that the event loop was late, milliseconds. */
  readonly longestDelay: number;
  /** Reads whose bytes were compared with what was written. */
  readonly checked: number;
}

/** Entries of a queue beside those of commands that run: the controller is told once in so many of what was taken. */
const ROOM = 128;
/** Milliseconds between two turns of the event loop, which timers and signals need. */
const TURN_MS = 2;
/** How long commands have to come back at the end, milliseconds. */
const DRAIN_MS = 30_000;

/** What is measured. */
export interface PerfTarget {
  readonly eal: Eal;
  readonly device: Device;
  readonly ssd: Nvme;
  readonly ns: NvmeNamespace;
}

/**
 * Runs the workload.
 *
 * @throws DmaError EINVAL for sizes that the disk does not have; that of a command that failed; EILSEQ when something else was read than
 *   was written; ECANCELED
 */
export async function runPerf({ eal, device, ssd, ns }: PerfTarget, options: PerfOptions): Promise<PerfResult> {
  const { bs, iodepth, numjobs, signal } = options;
  checkSizes(ssd, ns, options);
  const queues: NvmeQueue[] = [];
  const memories: Block[] = [];
  const reads = new Latencies();
  const writes = new Latencies();
  const jobs: Job[] = [];
  try {
    const blocks = bs / ns.transferSize;
    const units = Math.floor(Math.min(ns.blocks, Math.floor((options.bytes ?? ns.size) / ns.blockSize)) / blocks);
    const each = Math.floor(units / numjobs);
    for (let n = 0; n < numjobs; n++) {
      const queue = await ssd.openQueue({
        entries: Math.min(iodepth + ROOM, ssd.limits.queueEntries),
        interrupts: false,
      });
      queues.push(queue);
      const memory = eal.malloc(bs * iodepth, { align: 4096, contiguous: true });
      memories.push(memory);
      const workload = new Workload(options.rw, each, options.rwmixread, options.seed + n);
      const job = new Job(
        queue,
        workload,
        {
          nsid: ns.id,
          firstLba: n * each * blocks,
          blocks,
          bytes: bs,
          depth: iodepth,
          rate: options.rateIops,
          memory: { bytes: memory.bytes(), iova: device.iovaOf(memory) },
          verify: options.verify,
          seed: options.seed,
          failure: (status, what) => statusError(status, what),
        },
        reads,
        writes,
      );
      jobs.push(job);
    }
    return await measured(jobs, options, reads, writes);
  } finally {
    await drain(jobs).catch(() => undefined);
    if (jobs.every(({ running }) => running === 0)) {
      for (const queue of queues) await ssd.closeQueue(queue).catch(() => undefined);
      for (const memory of memories) memory.free();
    }
    signal.throwIfAborted();
  }
}

function checkSizes({ limits }: Nvme, ns: NvmeNamespace, { bs, iodepth, bytes, numjobs }: PerfOptions): void {
  const refuse = (reason: string, hint: string): never => {
    throw new DmaError({ code: 'EINVAL', operation: 'nvme perf', reason, hint });
  };
  if (bs % ns.transferSize !== 0)
    refuse(
      `--bs ${bs} is not a multiple of the block size`,
      `namespace ${ns.id} has blocks of ${ns.transferSize} bytes`,
    );
  if (bs > limits.maxTransfer)
    refuse(
      `--bs ${formatSize(bs)} is more than one command transfers`,
      `the controller takes ${formatSize(limits.maxTransfer)}`,
    );
  if (iodepth + 1 > limits.queueEntries)
    refuse(
      `--iodepth ${iodepth} is more than a queue holds`,
      `the controller's queues hold ${limits.queueEntries - 1}`,
    );
  // One is the library's own.
  const queues = limits.queues - 1;
  if (numjobs > queues)
    refuse(`--numjobs ${numjobs}, and the controller has ${queues} queues for programs`, 'use fewer jobs');
  const size = Math.min(bytes ?? ns.size, ns.size);
  if (Math.floor(size / bs) < numjobs)
    refuse(
      `${formatSize(size)} is less than --bs ${formatSize(bs)} for each job`,
      'use a larger --size or a smaller --bs',
    );
}

async function measured(
  jobs: readonly Job[],
  options: PerfOptions,
  reads: Latencies,
  writes: Latencies,
): Promise<PerfResult> {
  const { runtime, bs, signal, onSecond } = options;
  const delay = monitorEventLoopDelay({ resolution: 1 });
  delay.enable();
  const cpu = process.cpuUsage();
  const begun = performance.now();
  const end = begun + runtime * 1000;
  for (const job of jobs) job.begin(begun);
  let second = begun;
  let told = 0;
  for (let now = begun; now < end;) {
    signal.throwIfAborted();
    for (const turn = now + TURN_MS; now < turn; now = performance.now()) for (const job of jobs) job.step(now, true);
    if (now - second >= 1000) {
      const done = commandsOf(jobs);
      const passed = (now - second) / 1000;
      onSecond?.({
        seconds: (now - begun) / 1000,
        commands: (done - told) / passed,
        bytes: ((done - told) * bs) / passed,
      });
      second = now;
      told = done;
    }
    await new Promise((resolve) => setImmediate(resolve));
    now = performance.now();
  }
  await drain(jobs);
  const seconds = (performance.now() - begun) / 1000;
  const used = process.cpuUsage(cpu);
  delay.disable();
  const part = (latencies: Latencies): PerfPart => ({
    commands: latencies.count,
    iops: latencies.count / seconds,
    bandwidth: (latencies.count * bs) / seconds,
    latency: latencies.document(),
  });
  const result = { seconds, read: part(reads), write: part(writes) };
  const all = Math.max(1, result.read.commands + result.write.commands);
  await checkWritten(jobs, options);
  return {
    ...result,
    cpuMicroseconds: (used.user + used.system) / all,
    longestDelay: delay.max / 1e6,
    checked: jobs.reduce((sum, { checked }) => sum + checked, 0),
  };
}

function commandsOf(jobs: readonly Job[]): number {
  return jobs.reduce((sum, { readsDone, writesDone }) => sum + readsDone + writesDone, 0);
}

/** Reads all that was written, if that was asked for. */
async function checkWritten(jobs: readonly Job[], { verify, signal, onChecking }: PerfOptions): Promise<void> {
  if (!verify) return;
  onChecking?.(jobs.reduce((sum, job) => sum + job.checkAll(), 0));
  for (const job of jobs) job.begin(performance.now());
  while (jobs.some((job) => job.unchecked > 0 || job.running > 0)) {
    signal.throwIfAborted();
    for (const job of jobs) job.step(performance.now(), true);
    await new Promise((resolve) => setImmediate(resolve));
  }
}

/** Waits until nothing runs any more. @throws DmaError of the first command that failed meanwhile */
async function drain(jobs: readonly Job[]): Promise<void> {
  const end = performance.now() + DRAIN_MS;
  let failure: unknown;
  for (const job of jobs)
    while (job.running > 0 && performance.now() < end) {
      try {
        job.step(performance.now(), false);
      } catch (error) {
        failure ??= error;
      }
      await new Promise((resolve) => setImmediate(resolve));
    }
  if (failure !== undefined) throw failure;
}
