/** The run of `anydma nvme perf`: queues are opened, kept full for some time, and what came of it is counted. */
import { monitorEventLoopDelay } from 'node:perf_hooks';
import { ABORTED_BY_HOST, statusError, type Nvme, type NvmeNamespace, type NvmeQueue } from '../../entry/nvme.js';
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
/** How long a command may take, milliseconds. */
const COMMAND_MS = 30_000;
/** How long commands have to come back when the run has failed, milliseconds. The controller is closed then. */
const FAILED_MS = 500;

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
    const units = Math.floor(Math.floor((options.bytes ?? ns.size) / ns.blockSize) / blocks);
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
          // It was nobody's wish.
          failure: (status, what) =>
            status === ABORTED_BY_HOST ? statusError(status, what).with({ code: 'EIO' }) : statusError(status, what),
        },
        reads,
        writes,
      );
      jobs.push(job);
    }
    return await measured(jobs, options, reads, writes);
  } finally {
    if (await drain(jobs, FAILED_MS)) {
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
  const { size: most } = ns;
  const size = bytes ?? most;
  if (size > most)
    refuse(
      `--size ${formatSize(size)} is more than namespace ${ns.id} has`,
      `it has ${formatSize(most)}, which is the default`,
    );
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
      mustComeBack(jobs, now);
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
  await finish(jobs, signal);
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
  while (jobs.some((job) => job.unchecked > 0 || job.running > 0)) await turn(jobs, signal, true);
}

/** Waits until nothing runs any more. @throws DmaError of a command that failed, or did not come back */
async function finish(jobs: readonly Job[], signal: AbortSignal): Promise<void> {
  while (jobs.some(({ running }) => running > 0)) await turn(jobs, signal, false);
}

async function turn(jobs: readonly Job[], signal: AbortSignal, more: boolean): Promise<void> {
  signal.throwIfAborted();
  const now = performance.now();
  for (const job of jobs) job.step(now, more);
  mustComeBack(jobs, now);
  await new Promise((resolve) => setImmediate(resolve));
}

/** @throws DmaError ETIMEDOUT naming a command that has been running for too long */
function mustComeBack(jobs: readonly Job[], now: number): void {
  for (const job of jobs) {
    const late = job.late(now, COMMAND_MS);
    if (late === undefined) continue;
    throw new DmaError({
      code: 'ETIMEDOUT',
      operation: 'nvme perf',
      reason: `the ${late} did not come back within ${COMMAND_MS / 1000} s`,
      hint: 'is the device stuck? look at "anydma nvme log error", or try "anydma nvme reset"',
    });
  }
}

/** Waits for a while until nothing runs any more, whatever came of it: what failed was told before. @returns is it so? */
async function drain(jobs: readonly Job[], ms: number): Promise<boolean> {
  const end = performance.now() + ms;
  const isIdle = (): boolean => jobs.every(({ running }) => running === 0);
  while (!isIdle() && performance.now() < end) {
    for (const job of jobs)
      try {
        job.step(performance.now(), false);
      } catch {
        // The run has failed already.
      }
    await new Promise((resolve) => setImmediate(resolve));
  }
  return isIdle();
}
