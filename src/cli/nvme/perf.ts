/** `anydma nvme perf`: how fast a disk is, in fio's words. */
import { rmSync } from 'node:fs';
import { join } from 'node:path';
import { Option } from 'commander';
import { atExit } from '../../at-exit.js';
import type { ContainerChoice } from '../../entry/driver.js';
import { nvmeDriver, type NvmeNamespace } from '../../entry/nvme.js';
import { spawnDevice } from '../../entry/model.js';
import { Eal, formatSize, KiB, MiB, type Device } from '../../index.js';
import { alignUp } from '../../units.js';
import { temporaryFolder } from '../../platform/linux/temporary-folder.js';
import { iommuOption } from '../iommu.js';
import { paragraphs, type CommandContext, type CommandSpec } from '../shared/command.js';
import { integerValue, sizeValue } from '../shared/values.js';
import { forceOption, mayDestroy } from './guard.js';
import { formatTime } from '../shared/format-time.js';
import { picture, type LatencyDocument } from './latencies.js';
import { namespaceOf, nsidOption } from './open.js';
import { runPerf, type PerfOptions, type PerfResult, type PerfTarget } from './perf-run.js';
import { PATTERNS, writes, type PatternName } from './workload.js';

interface PerfCommandOptions {
  readonly device?: string;
  readonly nsid?: number;
  readonly iommu: ContainerChoice;
  readonly rw: PatternName;
  readonly rwmixread: number;
  readonly bs: number;
  readonly iodepth: number;
  readonly runtime: number;
  readonly size?: number;
  readonly numjobs: number;
  readonly rateIops?: number;
  readonly verify?: 'sha256';
  readonly randseed: number;
  readonly force?: boolean;
}

/** The disk that is made when no device is named, unless `--size` asks for a larger one. */
const OWN_DISK = 256 * MiB;

export const nvmePerf: CommandSpec<PerfCommandOptions> = {
  name: 'perf',
  summary: 'measure a disk: commands a second, bandwidth, latencies',
  description: paragraphs(
    `Keeps a disk busy and tells what came of it, with fio's option names where they mean the same. Without --device, a controller of
    our own is started in another process over a temporary disk image, so that it works on any machine, unprivileged: then it is our
    controller and the file system that are measured.`,
    `The program polls for completions, as fio does with --hipri. CPU is the time of this process only, for each command.`,
    `What writes destroys what is on the disk: on a PCI device it needs --force.`,
  ),
  options: (command) =>
    command
      .option('--device <name>', 'the controller; default: one of our own, over a temporary file')
      .addOption(nsidOption())
      .addOption(iommuOption())
      .addOption(new Option('--rw <pattern>', 'what to do').choices(PATTERNS).default('randread'))
      .option('--rwmixread <percent>', 'rw and randrw: how many of 100 commands read', integerValue(0, 100), 50)
      .option('--bs <size>', 'bytes of a command', sizeValue, 4 * KiB)
      .option('--iodepth <n>', 'commands that run at a time, for each job', integerValue(1, 4095), 32)
      .option('--runtime <seconds>', 'how long', integerValue(1, 86_400), 5)
      .option(
        '--size <size>',
        'use only the first part of the namespace (default: all; of our own, 256 MiB)',
        sizeValue,
      )
      .option('--numjobs <n>', 'queue pairs, each with its own part of the disk', integerValue(1, 64), 1)
      .option('--rate-iops <n>', 'most commands a second, for each job', integerValue(1, 1e8))
      .addOption(new Option('--verify <how>', 'check what is read against what was written').choices(['sha256']))
      .option('--randseed <n>', 'the same number gives the same sequence', integerValue(0, 2 ** 32 - 1), 1)
      .addOption(forceOption()),
  examples: [
    ['anydma nvme perf', '4 KiB random reads on a disk of our own'],
    ['anydma nvme perf --device pci:0000:04:00.0 --iodepth 1', 'the latency of a real one'],
    ['anydma nvme perf --rw randrw --verify sha256 --runtime 30', 'reads and writes, every byte checked'],
    ['anydma nvme perf --device pci:0000:04:00.0 --rw read --bs 128k --json', 'sequential, for programs'],
  ],
  async run(options, context) {
    if (options.verify !== undefined && !writes(options.rw))
      context.usage('--verify checks what this run has written: it needs --rw write, randwrite, rw or randrw');
    const { output, signal } = context;
    await using own = options.device === undefined ? await ownDisk(options.size) : undefined;
    const onNotice = (text: string): void => output.note(`note: ${text}`);
    const { iommu } = options;
    await using eal = await Eal.start({ iommu, origins: false, onForgotten: () => undefined, memory: { onNotice } });
    signal.throwIfAborted();
    const device = await eal.probe(own === undefined ? (options.device ?? '') : `vfio-user:${own.socketPath}`);
    const ssd = device.use(nvmeDriver);
    const ns = namespaceOf(ssd, options.nsid);
    if (writes(options.rw))
      await mayDestroy({ eal, device, ssd }, { what: `--rw ${options.rw}`, nsid: ns.id }, options.force);
    const result = await measure({ eal, device, ssd, ns }, options, context);
    report(context, device, ns, options, own !== undefined, result);
  },
};

/** A controller of our own in another process, over a temporary file. Disposing it ends it and removes the file. */
async function ownDisk(size = 0): Promise<{ readonly socketPath: string } & AsyncDisposable> {
  const directory = temporaryFolder('nvme perf', 'the disk image');
  const remove = (): void => {
    forgetExit();
    rmSync(directory, { recursive: true, force: true });
  };
  const forgetExit = atExit(remove);
  try {
    const namespaces = [{ file: join(directory, 'disk.img'), size: Math.max(OWN_DISK, alignUp(size, 4 * KiB)) }];
    const served = await spawnDevice('nvme', { device: { namespaces } });
    return {
      socketPath: served.socketPath,
      [Symbol.asyncDispose]: async () => {
        await served.close();
        remove();
      },
    };
  } catch (error) {
    remove();
    throw error;
  }
}

async function measure(
  target: PerfTarget,
  options: PerfCommandOptions,
  { output, signal }: CommandContext,
): Promise<PerfResult> {
  using live = output.live();
  const run: PerfOptions = {
    ...options,
    bytes: options.size,
    seed: options.randseed,
    verify: options.verify !== undefined,
    signal,
    onSecond: ({ seconds, commands, bytes }) =>
      live.show(
        `${Math.round(commands)} commands/s, ${formatSize(Math.round(bytes))}/s  [${seconds.toFixed(0)} of ${options.runtime} s]`,
      ),
    onChecking: (units) => live.show(`checking the ${units} units that were written`),
  };
  return await runPerf(target, run);
}

function report(
  { output }: CommandContext,
  device: Device,
  ns: NvmeNamespace,
  options: PerfCommandOptions,
  isOwn: boolean,
  result: PerfResult,
): void {
  const { rw, bs, iodepth, numjobs } = options;
  const where = isOwn ? 'a controller of our own, over a temporary file' : device.name;
  output.text(
    `${output.strong(where)}, namespace ${ns.id}: ${rw}, ${formatSize(bs)}, depth ${iodepth}${numjobs > 1 ? `, ${numjobs} jobs` : ''}`,
  );
  for (const [name, part] of [
    ['read', result.read],
    ['write', result.write],
  ] as const) {
    if (part.latency === undefined) continue;
    output.text();
    output.text(
      `${output.strong(name)}: ${Math.round(part.iops)} commands/s, ${formatSize(Math.round(part.bandwidth))}/s`,
    );
    for (const line of latencyLines(part.latency)) output.text(line);
  }
  output.text();
  output.text(`CPU: ${result.cpuMicroseconds.toFixed(2)} us of this process a command`);
  output.text(`event loop: longest delay ${formatTime(result.longestDelay * 1000)}`);
  if (result.checked > 0) output.text(`checked: ${result.checked} reads are what was written`);
  output.document({
    ok: true,
    device: device.name,
    own: isOwn,
    nsid: ns.id,
    rw,
    bs,
    iodepth,
    numjobs,
    ...result,
  });
}

function latencyLines(latency: LatencyDocument): string[] {
  const { mean, deviation, least, most, percentiles } = latency;
  const parts = percentiles.map(({ percent, within }) => `${percent} % ${formatTime(within)}`);
  return [
    `  latency: mean ${formatTime(mean)}, deviation ${formatTime(deviation)}, least ${formatTime(least)}, most ${formatTime(most)}`,
    `  within: ${parts.join(', ')}`,
    ...picture(latency).map((row) => `  ${row}`),
  ];
}
