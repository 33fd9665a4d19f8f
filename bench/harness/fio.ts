/** fio, the usual benchmark of storage, with io_uring. */
import { execFile, spawnSync } from 'node:child_process';
import { promisify } from 'node:util';

/** What a run does, in fio's words. */
export interface FioRun {
  /** `/dev/nvme0n1`; it is only read. */
  readonly disk: string;
  readonly rw: 'read' | 'randread';
  /** bytes */
  readonly bs: number;
  readonly iodepth: number;
  /** seconds */
  readonly runtime: number;
  /** Poll for completions, which needs a driver with queues for that. */
  readonly hipri: boolean;
}

/** What it comes to. */
export interface FioResult {
  /** From submission to completion, mean; milliseconds. */
  readonly latency: number;
  /** Reads a second. */
  readonly iops: number;
}

/** Its version, or why it can not be used. */
export function fioVersion(): { readonly version: string } | string {
  const { stdout } = spawnSync('fio', ['--version'], { encoding: 'utf8' });
  const version = /fio-(\S+)/.exec(stdout ?? '')?.[1];
  return version === undefined ? 'no fio (its name on Debian)' : { version };
}

/**
 * Runs it, with all that makes it fast: memory and file are registered with io_uring, memory is in hugepages, no map of the blocks
 * that were read is kept, and at larger depths reads are submitted 16 at a time, and taken as many as there are. At depth 1
 * it keeps statistics of the latency, otherwise it looks at the clock as little as it can.
 *
 * @throws Error with what it said, when it fails
 */
export async function runFio({ disk, rw, bs, iodepth, runtime, hipri }: FioRun): Promise<FioResult> {
  const options = {
    ...{
      name: 'bench',
      filename: disk,
      readonly: '',
      ioengine: 'io_uring',
      direct: 1,
      fixedbufs: '',
      registerfiles: '',
    },
    ...{ rw, bs, iodepth, runtime, time_based: '', ramp_time: '500ms', norandommap: '', iomem: 'mmaphuge' },
    ...(iodepth > 1 ? { iodepth_batch_submit: Math.min(16, iodepth), iodepth_batch_complete_max: iodepth } : {}),
    ...(iodepth > 1 ? { gtod_reduce: 1 } : {}),
    ...(hipri ? { hipri: '' } : {}),
    'output-format': 'json',
  };
  const args = Object.entries(options).map(([name, value]) => (value === '' ? `--${name}` : `--${name}=${value}`));
  const { stdout } = await promisify(execFile)('fio', args);
  const report = JSON.parse(stdout.slice(stdout.indexOf('{'))) as Report;
  const { error, read } = report.jobs[0];
  if (error !== 0 || read.total_ios === 0) throw new Error(`fio has read nothing: ${stdout}`);
  return { latency: read.lat_ns.mean / 1e6, iops: read.iops };
}

/** What is used of fio's report. */
interface Report {
  readonly jobs: readonly [
    {
      readonly error: number;
      readonly read: {
        readonly iops: number;
        readonly total_ios: number;
        readonly lat_ns: { readonly mean: number };
      };
    },
  ];
}
