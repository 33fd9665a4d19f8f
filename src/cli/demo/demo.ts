/** `anydma demo`: lets a device use memory, and takes it away again; every step is checked. */
import { createHash, randomFillSync } from 'node:crypto';
import { readSync } from 'node:fs';
import { Option } from 'commander';
import { DmaError, Eal, formatSize, hex, type Device, type ExternalMemory, type Progress } from '../../index.js';
import type { ContainerChoice } from '../../entry/driver.js';
import { spawnDevice, type DeviceProcess } from '../../entry/model.js';
import { openPlatform } from '../../platform/open.js';
import { DEVICE_KEYS_TEXT } from '../shared/device-keys.js';
import { paragraphs, type CommandSpec, type CommandContext } from '../shared/command.js';
import { copierOf, type Copier } from './copier.js';
import { openInput, type InputFile } from './input-file.js';
import { iommuOption } from '../iommu.js';
import { modeOption, MODES_TEXT, modesOf, reachExternal, takeMemory, TIMES_TEXT } from './modes.js';
import type { Mode, ModeChoice, Reached, Reacher } from './modes.js';
import type { Output } from '../shared/output.js';
import { inPieces } from './pieces.js';
import { formatTime } from '../shared/format-time.js';
import { sizeValue } from '../shared/values.js';

interface DemoOptions {
  /** Bytes; default: depends on the device. */
  readonly size?: number;
  readonly mode: ModeChoice;
  readonly file?: string;
  readonly device?: string;
  readonly iommu: ContainerChoice;
}

/** The result for one area, as in the document. */
interface AreaReport {
  readonly name: string;
  /** How the memory was allocated. */
  readonly mode: Mode;
  readonly va: string;
  readonly iova: string;
  /**
   * Bytes that the device can access: whole pages for external memory and heaps, the requested size for owned memory.
   */
  readonly length: number;
  /** The time until the device could access it; see {@link Reached.mapMicroseconds}. */
  readonly mapMicroseconds: number;
  /** Bytes of the measured copy. */
  readonly bytesMoved: number;
  /** 10^9 bytes per second. */
  readonly gigabytesPerSecond: number;
  /** SHA-256 of the source. */
  readonly sha256: string;
  /** Whether the destination equals the source, and nothing else was written. */
  readonly verified: boolean;
}

/** The result of the device's access to memory that was unmapped. */
interface Afterwards {
  readonly refused: boolean;
  readonly explain: string;
  /** What reported it; `undefined` if the only sign was that the device moved nothing. */
  readonly reportedBy: string | undefined;
}

/** What the device shall copy. */
interface Source {
  readonly name: string;
  readonly mode: Mode;
  /** Bytes to copy: files do not end on page boundaries. */
  readonly bytes: number;
  readonly open: (reacher: Reacher) => Promise<Reached>;
  /** Fills or reads a part of the memory: the bytes at `offset` of the data. */
  readonly fill: (piece: Uint8Array, offset: number) => void;
}

/** The result for one area, and the access after it was unmapped. */
interface Moved {
  readonly report: AreaReport;
  readonly after: Afterwards;
}

/** How memory of each mode is taken from the device, for people. */
const WITHDRAWAL = {
  external: 'unmapping',
  heap: 'taking it out of the heap',
  owned: 'freeing it and giving it back',
} as const;

/** Destinations are filled with this, so that bytes that the device did not write are noticed. */
const UNTOUCHED = 0xa5;

/** Most bytes of the access that must be refused. */
const LATE_ACCESS = 4096;

export const demo: CommandSpec<DemoOptions> = {
  name: 'demo',
  summary: 'show the whole way of memory to a device: map, copy by the device, verify, unmap',
  description: paragraphs(
    `Starts an emulated device in another process. Maps memory for it, lets it copy that memory to other memory, compares the
    SHA-256 of both, and unmaps them. Then the device tries again: its access is refused, and anydma explains which mapping was
    at that address before.`,
    MODES_TEXT,
    TIMES_TEXT,
    `GB/s is measured on the second copy: the first one also faults the pages into the device's process.`,
    `With --device, another device copies: a copy engine, or QEMU's edu device behind a real IOMMU. edu copies a few KiB per
    second, so the default size is 8 KiB. It does not report a failed access: the memory shows that nothing was copied, and the
    kernel's log, if it is readable, has the fault.`,
    DEVICE_KEYS_TEXT,
  ),
  options: (command) =>
    command
      .addOption(
        new Option('--size <size>', 'how much memory to copy; default: 64 MiB, and 8 KiB by an edu device').argParser(
          sizeValue,
        ),
      )
      .addOption(modeOption())
      .option('--file <path>', 'also copy this file, as external memory; it is only read; do not truncate it meanwhile')
      .option('--device <name>', 'let this device copy; default: start one in another process')
      .addOption(iommuOption()),
  examples: [
    ['anydma demo', 'copies 64 MiB by an embedded device in another process'],
    ['anydma demo --mode all', 'the same in each mode: external, heap and owned'],
    ['anydma demo --mode owned --size 1GiB', "copies memory of the library's own, which needs no mapping call"],
    ['anydma demo --size 1GiB --file ./data.bin', 'copies 1 GiB of memory, and then the file'],
    ['anydma demo --device vfio-user:/tmp/copy.sock', 'uses the device of "anydma serve copy --socket /tmp/copy.sock"'],
    ['anydma demo --device pci:0000:00:02.0 --mode all', 'uses a PCI device, behind the IOMMU of this machine'],
    ['anydma demo --device rdma:rxe0 --mode all', 'uses an RDMA device, which writes to this process itself'],
    ['anydma demo --json | jq .areas[0].gigabytesPerSecond', 'the same for programs'],
  ],
  async run(options, context) {
    const { output } = context;
    using input = options.file === undefined ? undefined : openInput(options.file);
    const platform = openPlatform();
    const isolated = options.device === undefined && platform.limitation === undefined;
    if (platform.limitation !== undefined)
      output.note(`${platform.limitation}: this is anonymous memory, and a device in this process`);
    await using served = isolated ? await spawnDevice('copy') : undefined;
    const onNotice = (text: string): void => output.text(`Note: ${text}.`);
    const { iommu } = options;
    const memory = { onNotice };
    await using eal = await Eal.start({ platform, iommu, origins: false, onForgotten: () => undefined, memory });
    context.signal.throwIfAborted();
    const embedded = served === undefined ? 'vdev:copy0' : `vfio-user:${served.socketPath}`;
    const device = await eal.probe(options.device ?? embedded);
    const copier = copierOf(device);
    output.text(`The device is ${output.strong(device.name)}, ${copier.kind}${whereIs(served, device)}.`);

    const { size = copier.usualSize } = options;
    const sources = modesOf(options.mode).map((mode) => memorySource(mode, size));
    if (input !== undefined) sources.push(fileSource(eal, options.file ?? '', input));
    const moves: Moved[] = [];
    for (const source of sources)
      moves.push(await moveArea({ eal, device, copier, context, signal: context.signal }, source));

    const areas = moves.map(({ report }) => report);
    const { after: afterUnmap } = moves.find(({ after }) => !after.refused) ?? moves[0];
    const wrong = areas.find(({ verified }) => !verified);
    printReport(output, moves);
    output.document({ ok: wrong === undefined && afterUnmap.refused, device: device.name, areas, afterUnmap });
    if (wrong !== undefined) output.complain(notVerified(wrong, device));
    if (!afterUnmap.refused) output.complain(notRefused(device));
  },
};

/** Where the device is, and what translates its memory accesses. */
function whereIs(served: DeviceProcess | undefined, { domain, bus }: Device): string {
  if (served !== undefined) return ` that runs in process ${served.pid}`;
  return bus.name === 'pci' && domain !== undefined ? `; its memory accesses go by ${domain.kind}` : '';
}

/** New memory, filled with random bytes. */
function memorySource(mode: Mode, bytes: number): Source {
  const label = `${formatSize(bytes)} of memory`;
  const open = async (reacher: Reacher): Promise<Reached> =>
    takeMemory(mode, reacher, bytes, { label, access: 'read' });
  return { name: 'memory', mode, bytes, open, fill: (piece) => void randomFillSync(piece) };
}

/** A file: the file itself if it can be mapped, else a copy of it. */
function fileSource({ external, platform }: Eal, path: string, { fd, size: bytes }: InputFile): Source {
  const mapped = platform.limitation === undefined;
  const label = `the file ${path}`;
  const take = async (): Promise<ExternalMemory> =>
    mapped
      ? external.fromFd(fd, { writable: false, label })
      : external.allocateAsync(bytes, { label: `a copy of ${label}` });
  return {
    ...{ name: path, mode: 'external', bytes },
    open: async (reacher) => reachExternal(reacher, await take(), { access: 'read' }),
    fill: (piece, offset) => {
      if (!mapped) readSync(fd, piece, 0, piece.length, offset);
    },
  };
}

/** What copying an area needs. */
interface Mover extends Reacher {
  readonly copier: Copier;
  readonly context: CommandContext;
}

/** Copies one area: maps it and a destination, copies twice, verifies, unmaps both, and tries the copy again. */
async function moveArea(mover: Mover, { name, mode, bytes, open, fill }: Source): Promise<Moved> {
  const { copier, context } = mover;
  const { output, signal } = context;
  await using memory = await open(mover);
  const { va, iova, length, mapMicroseconds } = memory;
  await using destination = await takeMemory(mode, mover, length, {
    ...copier.destination,
    label: 'the destination',
    access: 'write',
  });
  const hash = createHash('sha256');
  await inPieces(`filling ${name}`, bytes, context, (offset, part) => {
    const piece = memory.bytes(offset, part);
    fill(piece, offset);
    hash.update(piece);
  });
  const sha256 = hash.digest('hex');

  const copy = async (what: string): Promise<number> => {
    using progress = output.progress(what, bytes);
    const onProgress = ({ doneBytes }: Progress): void => progress.update(doneBytes);
    const started = performance.now();
    await copier.copy(iova, destination.iova, bytes, { onProgress, signal });
    return performance.now() - started;
  };

  await copy(`copying ${name} for the first time`);
  await inPieces('clearing the destination', length, context, (offset, piece) => {
    destination.bytes(offset, piece).fill(UNTOUCHED);
  });
  const milliseconds = await copy(`copying ${name}`);
  const report: AreaReport = {
    name,
    mode,
    va: hex(va),
    iova: hex(iova),
    length,
    mapMicroseconds,
    bytesMoved: bytes,
    gigabytesPerSecond: Number((bytes / milliseconds / 1e6).toPrecision(4)),
    sha256,
    verified: (await digestOf(destination, bytes, context)) === sha256 && isUntouched(destination, bytes),
  };
  return { report, after: await tryAgain(mover, memory, destination, Math.min(bytes, LATE_ACCESS)) };
}

/** SHA-256 of the first `bytes` bytes. */
async function digestOf(memory: Reached, bytes: number, context: CommandContext): Promise<string> {
  const hash = createHash('sha256');
  await inPieces('verifying', bytes, context, (offset, length) => {
    hash.update(memory.bytes(offset, length));
  });
  return hash.digest('hex');
}

/** Whether everything from `end` on is unchanged. */
function isUntouched(memory: Reached, end: number): boolean {
  return end === memory.length || memory.bytes(end).every((byte) => byte === UNTOUCHED);
}

/** How long to wait for an IOMMU's report of a blocked access, in milliseconds. Not every access is reported. */
const REPORT_MS = 500;

/** Unmaps source and destination, and lets the device read `source` once more. */
async function tryAgain(mover: Mover, source: Reached, destination: Reached, length: number): Promise<Afterwards> {
  const { device, copier } = mover;
  const { iova } = source;
  // Always external: blocks can share pages, which stay mapped until all blocks on them are freed.
  await using target = await takeMemory('external', mover, length, { ...copier.destination, access: 'write' });
  target.bytes().fill(UNTOUCHED);
  const content = Buffer.from(source.bytes(0, length));
  const earlier = device.explainFaults().length;
  await source.withdraw();
  await destination.withdraw();
  let isTold = false;
  try {
    await copier.copy(iova, target.iova, length);
  } catch (error) {
    if (!copier.isRefusal(error)) throw error;
    isTold = true;
  }
  // Errors of the device come at once; the report of the IOMMU may take a moment.
  const told = await device.explainFaultsAsync({ after: earlier, timeoutMs: isTold ? 0 : REPORT_MS });
  const faults = told.slice(earlier);
  const fault = faults.find((each) => each.iova >= iova && each.iova < iova + length);
  return {
    refused: isTold || fault !== undefined || !content.equals(target.bytes(0, length)),
    explain: fault?.explanation.text ?? device.explain(iova, length).text,
    reportedBy: isTold ? 'device' : fault?.source,
  };
}

function notVerified({ name, sha256 }: AreaReport, device: Device): DmaError {
  const reason = `the data that the device wrote differs from ${name}, whose SHA-256 is ${sha256}`;
  const hint = 'if the file was written meanwhile, that is the cause; else the device, or the path to it, is broken';
  return new DmaError({ code: 'EIO', operation: 'demo', device: device.name, reason, hint });
}

function notRefused(device: Device): DmaError {
  const reason = 'the device can still access memory that was unmapped';
  const hint = `its domain is ${device.domain?.kind ?? 'none'}: without an IOMMU, devices can access all memory`;
  return new DmaError({ code: 'EIO', operation: 'demo', device: device.name, reason, hint });
}

function printReport(output: Output, moves: readonly Moved[]): void {
  output.text();
  output.table(
    [
      { head: 'AREA' },
      { head: 'VA' },
      { head: 'IOVA' },
      { head: 'LENGTH', align: 'right' },
      { head: 'MAP TIME', align: 'right' },
      { head: 'BYTES MOVED', align: 'right' },
      { head: 'GB/s', align: 'right' },
      { head: 'VERIFIED' },
    ],
    moves.map(({ report: each }) => [
      nameOf(each),
      each.va,
      each.iova,
      formatSize(each.length),
      formatTime(each.mapMicroseconds),
      String(each.bytesMoved),
      rateText(each.gigabytesPerSecond),
      each.verified ? output.good('yes') : output.bad('NO'),
    ]),
  );
  output.text();
  for (const { report } of moves)
    output.text(
      `SHA-256 of ${nameOf(report)}${report.verified ? ', at both ends' : ' is not what arrived'}: ${report.sha256}`,
    );
  for (const { report, after } of moves) {
    const verdict = after.refused ? output.good('was refused') : output.bad('was NOT refused');
    const teller = after.reportedBy === undefined || after.reportedBy === 'device' ? '' : ` (${after.reportedBy})`;
    output.text();
    output.text(
      `${nameOf(report)}: after ${WITHDRAWAL[report.mode]}, the next access of the device ${verdict}${teller}:`,
    );
    output.text(`  ${after.explain}`);
  }
}

/** More decimal places for slow devices. */
function rateText(gigabytesPerSecond: number): string {
  return gigabytesPerSecond >= 0.01 ? gigabytesPerSecond.toFixed(2) : String(Number(gigabytesPerSecond.toPrecision(2)));
}

function nameOf({ name, mode }: AreaReport): string {
  return `${name} (${mode})`;
}
