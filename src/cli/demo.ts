/** `anydma demo`: the whole way of memory to a device and back, each step checked. */
import { createHash, randomFillSync } from 'node:crypto';
import { readSync } from 'node:fs';
import { Option } from 'commander';
import {
  copyEngineDriver,
  DmaError,
  Eal,
  formatSize,
  hex,
  isDmaError,
  MiB,
  spawnDevice,
  type CopyEngine,
  type Device,
  type DeviceProcess,
  type ExternalMemory,
  type Iova,
} from '../index.js';
import { openPlatform } from '../platform/open.js';
import { paragraphs, type CommandSpec, type Context } from './command.js';
import { openInput, type InputFile } from './input-file.js';
import type { Output } from './output.js';
import { inPieces } from './pieces.js';
import { formatMicroseconds, timed } from './timing.js';
import { sizeValue } from './values.js';

interface DemoOptions {
  /** bytes */
  readonly size: number;
  readonly file?: string;
  readonly device?: string;
}

/** What happened to one area, as the document tells it. */
interface AreaReport {
  readonly name: string;
  /** What the memory is: `memfd`, `file`, `anonymous`. */
  readonly mode: string;
  readonly va: string;
  readonly iova: string;
  /** bytes that are mapped */
  readonly length: number;
  readonly mapMicroseconds: number;
  /** bytes of the copy that is measured */
  readonly bytesMoved: number;
  /** 10^9 bytes a second */
  readonly gigabytesPerSecond: number;
  /** of what the device read */
  readonly sha256: string;
  /** Is what the device wrote the very same, and nothing else was written? */
  readonly verified: boolean;
}

/** What the device's access to an address that is not mapped any more came to. */
interface Afterwards {
  readonly refused: boolean;
  readonly explain: string;
}

/** Memory for the device to read. */
interface Source {
  readonly name: string;
  readonly memory: ExternalMemory;
  /** bytes of it that count: files do not end on page boundaries */
  readonly bytes: number;
  /** SHA-256 of those bytes, which this makes up or reads. */
  readonly digest: () => Promise<string>;
}

/** What destinations are filled with, so that what the device did not write is noticed. */
const UNTOUCHED = 0xa5;

/** Bytes of the access that has to be refused, at most. */
const LATE_ACCESS = 4096;

export const demo: CommandSpec<DemoOptions> = {
  name: 'demo',
  summary: 'show the whole way: register, map, copy by a device, verify, unmap',
  description: paragraphs(
    `Starts a device in a process of its own and lets it copy memory of this process: registers the memory, maps it,
    has the device copy it, compares SHA-256 of both ends, and unmaps it. Then the device tries once more: it is
    refused, and anydma tells which mapping used to be there.`,
    `GB/s is of the second copy: during the first one the device's process meets each page for the first time.`,
  ),
  options: (command) =>
    command
      .addOption(
        new Option('--size <size>', 'how much memory to copy').argParser(sizeValue).default(64 * MiB, '64 MiB'),
      )
      .option('--file <path>', 'copy this file too; it is only read, and must not be made shorter meanwhile')
      .option('--device <name>', 'use this copy engine; default: start one in a process of its own'),
  examples: [
    ['anydma demo', 'copies 64 MiB by an embedded device in another process'],
    ['anydma demo --size 1GiB --file ./data.bin', 'copies 1 GiB of memory, and then the file'],
    ['anydma demo --device vfio-user:/tmp/copy.sock', 'uses the device of "anydma serve copy --socket /tmp/copy.sock"'],
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
    await using eal = await Eal.start({ platform, origins: false, onForgotten: () => undefined });
    context.signal.throwIfAborted();
    const embedded = served === undefined ? 'vdev:copy0' : `vfio-user:${served.socketPath}`;
    const device = await eal.probe(options.device ?? embedded);
    const engine = engineOf(device);
    output.text(`The device is ${output.strong(device.name)}, ${whereIs(served)}.`);

    const sources = [() => memorySource(eal, options.size, context)];
    if (input !== undefined) sources.push(() => fileSource(eal, options.file ?? '', input, context));
    const reports: AreaReport[] = [];
    const afterwards: Afterwards[] = [];
    for (const open of sources) {
      const { report, after } = await moveArea({ eal, device, engine, context }, open);
      reports.push(report);
      afterwards.push(after);
    }

    const afterUnmap = afterwards.find(({ refused }) => !refused) ?? afterwards[0];
    const wrong = reports.find(({ verified }) => !verified);
    printReport(output, reports, afterUnmap);
    output.document({ ok: wrong === undefined && afterUnmap.refused, device: device.name, areas: reports, afterUnmap });
    if (wrong !== undefined) output.complain(notVerified(wrong, device));
    if (!afterUnmap.refused) output.complain(notRefused(device));
  },
};

/** The copy engine that the device is. @throws DmaError ENOTSUP when it is something else */
function engineOf(device: Device): CopyEngine {
  if (device.driver === copyEngineDriver) return device.use(copyEngineDriver);
  throw new DmaError({
    code: 'ENOTSUP',
    operation: 'demo',
    device: device.name,
    reason: `the device is no copy engine; its driver is ${device.driver?.name ?? 'none'}`,
    hint: `"anydma map --device ${device.name} --size 64MiB" maps memory on any device; "anydma serve copy" serves a copy engine`,
  });
}

function whereIs(served: DeviceProcess | undefined): string {
  return served === undefined ? 'a copy engine' : `a copy engine that runs in process ${served.pid}`;
}

/** New memory, filled with random bytes. */
function memorySource(eal: Eal, bytes: number, context: Context): Source {
  const memory = eal.external.allocate(bytes, { label: `${formatSize(bytes)} of memory` });
  const digest = async (): Promise<string> => {
    const hash = createHash('sha256');
    await inPieces('filling memory', bytes, context, (offset, length) => {
      hash.update(randomFillSync(memory.bytes(offset, length)));
    });
    return hash.digest('hex');
  };
  return { name: 'memory', memory, bytes, digest };
}

/** A file, itself where it can be mapped, else a copy of it. */
function fileSource(eal: Eal, path: string, input: InputFile, context: Context): Source {
  const { fd, size: bytes } = input;
  const mapped = eal.platform.limitation === undefined;
  const label = `the file ${path}`;
  const memory = mapped
    ? eal.external.fromFd(fd, { writable: false, label })
    : eal.external.allocate(bytes, { label: `a copy of ${label}` });
  const digest = async (): Promise<string> => {
    const hash = createHash('sha256');
    await inPieces(`reading ${path}`, bytes, context, (offset, length) => {
      const piece = memory.bytes(offset, length);
      if (!mapped) readSync(fd, piece, 0, length, offset);
      hash.update(piece);
    });
    return hash.digest('hex');
  };
  return { name: path, memory, bytes, digest };
}

/** What areas are moved with. */
interface Mover {
  readonly eal: Eal;
  readonly device: Device;
  readonly engine: CopyEngine;
  readonly context: Context;
}

/** The way of one area: maps it and as much new memory, lets the device copy, verifies, unmaps, and tries again. */
async function moveArea(
  { eal, device, engine, context }: Mover,
  open: () => Source,
): Promise<{ report: AreaReport; after: Afterwards }> {
  const { output, signal } = context;
  const source = open();
  using memory = source.memory;
  const { name, bytes } = source;
  using destination = eal.external.allocate(memory.length, { label: 'the destination' });
  const sha256 = await source.digest();
  const [mapped, mapMicroseconds] = timed(() => device.dmaMap(memory, { access: 'read' }));
  using mapping = mapped;
  const { va, length, iova } = mapping;
  using target = device.dmaMap(destination, { access: 'write' });

  const copy = async (what: string): Promise<number> => {
    using progress = output.progress(what, bytes);
    const onProgress = (done: number): void => progress.update(done);
    const started = performance.now();
    await engine.copy(iova, target.iova, bytes, { onProgress, signal });
    return performance.now() - started;
  };

  await copy(`copying ${name} for the first time`);
  await inPieces('clearing the destination', length, context, (offset, piece) => {
    destination.bytes(offset, piece).fill(UNTOUCHED);
  });
  const milliseconds = await copy(`copying ${name}`);
  const report: AreaReport = {
    name,
    mode: memory.source,
    va: hex(va),
    iova: hex(iova),
    length,
    mapMicroseconds,
    bytesMoved: bytes,
    gigabytesPerSecond: Number((bytes / milliseconds / 1e6).toPrecision(4)),
    sha256,
    verified: (await digestOf(destination, bytes, context)) === sha256 && isUntouched(destination, bytes),
  };
  mapping.unmap();
  return { report, after: await tryAgain({ device, engine }, iova, target.iova, Math.min(bytes, LATE_ACCESS)) };
}

/** SHA-256 of the first `bytes` bytes. */
async function digestOf(memory: ExternalMemory, bytes: number, context: Context): Promise<string> {
  const hash = createHash('sha256');
  await inPieces('verifying', bytes, context, (offset, length) => {
    hash.update(memory.bytes(offset, length));
  });
  return hash.digest('hex');
}

/** Is everything from `end` on as it was before the copy? */
function isUntouched(memory: ExternalMemory, end: number): boolean {
  return memory.bytes(end).every((byte) => byte === UNTOUCHED);
}

/** Lets the device read what is not mapped any more. */
async function tryAgain(
  { device, engine }: Pick<Mover, 'device' | 'engine'>,
  iova: Iova,
  target: Iova,
  length: number,
): Promise<Afterwards> {
  try {
    await engine.copy(iova, target, length);
    return { refused: false, explain: device.explain(iova, length).text };
  } catch (error) {
    if (!isDmaError(error, 'EFAULT')) throw error;
    return { refused: true, explain: device.explain(iova, length).text };
  }
}

function notVerified({ name, sha256 }: AreaReport, device: Device): DmaError {
  const reason = `what the device wrote is not what ${name} is, whose SHA-256 is ${sha256}`;
  const hint = 'if the file was written meanwhile, that is why; else the device, or the way to it, is broken';
  return new DmaError({ code: 'EIO', operation: 'demo', device: device.name, reason, hint });
}

function notRefused(device: Device): DmaError {
  const reason = 'the device still reaches memory that was unmapped';
  const hint = `its domain is ${device.domain?.kind ?? 'none'}: without an IOMMU nothing keeps devices out`;
  return new DmaError({ code: 'EIO', operation: 'demo', device: device.name, reason, hint });
}

function printReport(output: Output, reports: readonly AreaReport[], after: Afterwards): void {
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
    reports.map((each) => [
      `${each.name} (${each.mode})`,
      each.va,
      each.iova,
      formatSize(each.length),
      formatMicroseconds(each.mapMicroseconds),
      String(each.bytesMoved),
      each.gigabytesPerSecond.toFixed(2),
      each.verified ? output.good('yes') : output.bad('NO'),
    ]),
  );
  output.text();
  for (const { name, sha256, verified } of reports)
    output.text(`SHA-256 of ${name}${verified ? ', at both ends' : ' is not what arrived'}: ${sha256}`);
  output.text();
  const verdict = after.refused ? output.good('was refused') : output.bad('was NOT refused');
  output.text(`After unmapping, the next access of the device ${verdict}:`);
  output.text(`  ${after.explain}`);
}
