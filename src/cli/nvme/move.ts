/** `anydma nvme read`, `write` and `verify`: between a file or a pipe and a range of blocks. */
import { createHash, type Hash } from 'node:crypto';
import { createReadStream, createWriteStream, statSync } from 'node:fs';
import type { Writable } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import type { NvmeNamespace } from '../../entry/nvme.js';
import { DmaError, formatSize } from '../../index.js';
import { callNode, fromNode } from '../../platform/linux/node-errors.js';
import { paragraphs, type CommandContext, type CommandSpec } from '../shared/command.js';
import { forceOption, mayDestroy } from './guard.js';
import { blocksValue, lbaValue, namespaceOf, namespaceOptions, withController, type NamespaceOptions } from './open.js';

interface MoveOptions extends NamespaceOptions {
  readonly lba: number;
  readonly blocks?: number;
  readonly file?: string;
  readonly pad?: boolean;
  readonly fua?: boolean;
  readonly force?: boolean;
}

/** `-` is a pipe, as for other tools. */
const PIPE = '-';
/** The same file as the process's standard streams. */
const STDIN = 0;
const STDOUT = 1;

export const nvmeRead: CommandSpec<MoveOptions> = {
  name: 'read',
  summary: 'read a range of blocks into a file or a pipe',
  description: paragraphs(
    `Reads blocks of a namespace into a file, or to standard output with "--file -". Prints the SHA-256 of what was read.`,
    `The data goes by DMA from the disk to memory of this process, several commands at a time.`,
  ),
  options: (command) =>
    namespaceOptions(command)
      .option('--lba <n>', 'the first block', lbaValue, 0)
      .option('--blocks <n>', 'number of blocks (default: all that follow)', blocksValue)
      .requiredOption('--file <path>', 'the file to write, which is replaced; - is standard output'),
  examples: [
    ['anydma nvme read --device pci:0000:04:00.0 --blocks 8 --file first.bin', 'the first 8 blocks'],
    ['anydma nvme read --device vfio-user:/run/disk.sock --file - | sha256sum', 'a whole disk, to a pipe'],
  ],
  async run(options, context) {
    const file = fileOf(options, context);
    if (file === PIPE && context.output.json) context.usage('--json and the data can not both be on standard output');
    await withController(options, context, async ({ device, ssd }) => {
      const ns = namespaceOf(ssd, options.nsid);
      const { lba } = options;
      const blocks = rangeOf(ns, options);
      const to = file === PIPE ? createWriteStream('', { fd: STDOUT, autoClose: false }) : createWriteStream(file);
      const from = ns.readable({ lba, blocks, signal: context.signal });
      const how = { context, name: 'read', total: blocks * ns.transferSize };
      const moved = await move(from, to, how).catch((error: unknown) => {
        throw fromNode(error, file === PIPE ? 'standard output' : file);
      });
      tell(context, { device: device.name, ns, lba, blocks, ...moved }, file === PIPE);
    });
  },
};

export const nvmeWrite: CommandSpec<MoveOptions> = {
  name: 'write',
  summary: 'write a file or a pipe to a range of blocks',
  description: paragraphs(
    `Writes a file, or standard input with "--file -", to blocks of a namespace, then makes it durable by a flush. Prints the SHA-256
    of what was written; "anydma nvme verify --file" compares.`,
    `On a PCI device this needs --force: without it, the command tells what would be destroyed.`,
  ),
  options: (command) =>
    namespaceOptions(command)
      .option('--lba <n>', 'the first block', lbaValue, 0)
      .option('--blocks <n>', 'write no more blocks than this (default: all that the file has)', blocksValue)
      .requiredOption('--file <path>', 'the file to read; - is standard input')
      .option('--pad', 'fill up the last block with zeroes, if the file does not end with a block')
      .addOption(forceOption()),
  examples: [
    ['anydma nvme write --device vfio-user:/run/disk.sock --lba 2048 --file part.img', 'a file, from block 2048 on'],
    ['zcat disk.gz | anydma nvme write --device pci:0000:04:00.0 --file - --force', 'a whole disk, from a pipe'],
  ],
  async run(options, context) {
    const file = fileOf(options, context);
    await withController(options, context, async (open) => {
      const ns = namespaceOf(open.ssd, options.nsid);
      const { lba } = options;
      const unit = ns.transferSize;
      const space = rangeOf(ns, options) * unit;
      const input = inputOf(file, options.blocks === undefined ? undefined : space);
      checkLength('nvme write', input, unit, space, options);
      const what = `writing ${input.length === undefined ? 'standard input' : formatSize(input.length)} at LBA ${lba}`;
      await mayDestroy(open, { what, nsid: ns.id }, options.force);
      const moved = await move(
        within(space, lba, bytesOf(input, 'nvme write', context.signal)),
        ns.writable({ lba, blocks: space / unit, signal: context.signal }),
        { context, name: 'write', total: input.length ?? space },
        (bytes) => paddingOf(bytes, unit, options.pad === true),
      );
      await ns.flush({ signal: context.signal });
      tell(context, { device: open.device.name, ns, lba, blocks: Math.ceil(moved.bytes / unit), ...moved }, false);
    });
  },
};

export const nvmeVerify: CommandSpec<MoveOptions> = {
  name: 'verify',
  summary: 'compare a range of blocks with a file, or have the controller check it',
  description: paragraphs(
    `With --file, reads blocks and compares them with the file: the first difference is an error. Without it, the controller
    checks that the blocks can be read (command Verify), and no data is transferred.`,
  ),
  options: (command) =>
    namespaceOptions(command)
      .option('--lba <n>', 'the first block', lbaValue, 0)
      .option('--blocks <n>', 'number of blocks (default: as many as the file has, or all that follow)', blocksValue)
      .option('--file <path>', 'the file to compare with; - is standard input'),
  examples: [
    ['anydma nvme verify --device vfio-user:/run/disk.sock --lba 2048 --file part.img', 'compares with a file'],
    ['anydma nvme verify --device pci:0000:04:00.0 --blocks 1000', 'has the controller check 1000 blocks'],
  ],
  async run(options, context) {
    await withController(options, context, async ({ device, ssd }) => {
      const ns = namespaceOf(ssd, options.nsid);
      const { lba, file } = options;
      if (file === undefined) {
        const blocks = rangeOf(ns, options);
        await ns.verify({ lba, blocks, signal: context.signal });
        context.output.text(`${device.name}: the controller found ${count(blocks)} at LBA ${lba} to be readable`);
        context.output.document({ ok: true, device: device.name, nsid: ns.id, lba, blocks });
        return;
      }
      const unit = ns.transferSize;
      const most = rangeOf(ns, options);
      const input = inputOf(file, options.blocks === undefined ? undefined : most * unit);
      checkLength('nvme verify', input, unit, most * unit, { ...options, pad: true });
      const blocks = input.length === undefined ? most : Math.ceil(input.length / unit);
      const compared = await compare(ns, options, blocks, input, context);
      tell(context, { device: device.name, ns, lba, blocks: Math.ceil(compared.bytes / unit), ...compared }, false);
    });
  },
};

/** How many blocks: what was asked for, or all that follow. */
function rangeOf(ns: NvmeNamespace, { lba, blocks = ns.blocks - lba }: MoveOptions): number {
  if (lba < ns.blocks && lba + blocks <= ns.blocks) return blocks;
  throw new DmaError({
    code: 'ERANGE',
    operation: 'nvme',
    reason: `${count(Math.max(blocks, 1))} at LBA ${lba} are not all in namespace ${ns.id}`,
    hint: `it has ${ns.blocks} blocks of ${ns.blockSize} bytes`,
  });
}

function fileOf({ file }: MoveOptions, { usage }: CommandContext): string {
  return file === undefined || file === '' ? usage('--file needs the path of a file, or -') : file;
}

/** What is read from a file or a pipe. */
interface Input {
  readonly file: string;
  /** Bytes of the file that are taken; `undefined` for a pipe. */
  readonly length: number | undefined;
  /** Bytes that are taken, at most. */
  readonly most: number;
}

/** @param most bytes that are taken of it, at most. Default: all. @throws DmaError ENOENT ... */
function inputOf(file: string, most = Infinity): Input {
  const stats = file === PIPE ? undefined : callNode(file, () => statSync(file));
  return { file, most, length: stats?.isFile() === true ? Math.min(stats.size, most) : undefined };
}

/** The bytes of an input. @throws DmaError (rejects) EINVAL if there are none; EIO for a file that became shorter; those of read(2) */
async function* bytesOf({ file, length, most }: Input, operation: string, signal: AbortSignal): AsyncGenerator<Buffer> {
  const from =
    file === PIPE ? createReadStream('', { fd: STDIN, autoClose: false, signal }) : createReadStream(file, { signal });
  let bytes = 0;
  try {
    for await (const chunk of from as AsyncIterable<Buffer>) {
      const part = chunk.subarray(0, Math.min(chunk.length, (length ?? most) - bytes));
      bytes += part.length;
      if (part.length > 0) yield part;
      if (bytes === (length ?? most)) return;
    }
  } catch (error) {
    throw fromNode(error, nameOf(file));
  }
  if (bytes === 0) throw isEmpty(operation, file);
  if (length !== undefined)
    throw new DmaError({ code: 'EIO', operation, reason: `${file} had ${length} bytes, and ended after ${bytes}` });
}

function checkLength(
  operation: string,
  { file, length }: Input,
  unit: number,
  space: number,
  { pad, lba }: MoveOptions,
): void {
  if (length === undefined) return;
  if (length === 0) throw isEmpty(operation, file);
  if (length % unit !== 0 && pad !== true)
    throw new DmaError({
      code: 'EINVAL',
      operation,
      reason: `the file has ${length} bytes, which is not a multiple of the block size of ${unit}`,
      hint: '--pad fills up the last block with zeroes',
    });
  if (length > space) throw noRoom(operation, 'the file', formatSize(length), space, lba);
}

/** No input is more often a mistake before the pipe than what was meant. */
function isEmpty(operation: string, file: string): DmaError {
  const reason = `${nameOf(file)} is empty`;
  return new DmaError({ code: 'EINVAL', operation, reason, hint: 'has what was to fill it failed?' });
}

function nameOf(file: string): string {
  return file === PIPE ? 'standard input' : file;
}

interface Moved {
  readonly bytes: number;
  readonly sha256: string;
  readonly milliseconds: number;
}

interface MoveHow {
  readonly context: CommandContext;
  readonly name: string;
  readonly total: number;
}

/** Moves all of a stream, counted and hashed. */
async function move(
  from: AsyncIterable<Buffer>,
  to: Writable,
  { context, name, total }: MoveHow,
  rest: (bytes: number) => Buffer | undefined = () => undefined,
): Promise<Moved> {
  using progress = context.output.progress(name, total);
  const hash = createHash('sha256');
  const started = performance.now();
  let bytes = 0;
  const counted = async function* (): AsyncGenerator<Buffer> {
    for await (const chunk of from) {
      bytes += chunk.length;
      hash.update(chunk);
      progress.update(bytes);
      yield chunk;
    }
    const more = rest(bytes);
    if (more !== undefined) yield more;
  };
  await pipeline(counted, to, { signal: context.signal });
  return { bytes, sha256: hash.digest('hex'), milliseconds: performance.now() - started };
}

/** As `from`, and no more than there is room for. @throws DmaError (rejects) ENOSPC */
async function* within(space: number, lba: number, from: AsyncIterable<Buffer>): AsyncGenerator<Buffer> {
  let bytes = 0;
  for await (const chunk of from) {
    bytes += chunk.length;
    if (bytes > space) throw noRoom('nvme write', 'the input', `more than ${formatSize(space)}`, space, lba);
    yield chunk;
  }
}

function noRoom(operation: string, what: string, length: string, space: number, lba: number): DmaError {
  return new DmaError({
    code: 'ENOSPC',
    operation,
    reason: `${what} has ${length}, and from LBA ${lba} on there are ${formatSize(space)}`,
    hint: 'choose another --lba, or take less of it by --blocks',
  });
}

/** What fills up the last block. @throws DmaError EINVAL when it is not whole, and is not to be filled up */
function paddingOf(bytes: number, unit: number, pad: boolean): Buffer | undefined {
  const rest = bytes % unit;
  if (rest === 0) return undefined;
  if (pad) return Buffer.alloc(unit - rest);
  throw new DmaError({
    code: 'EINVAL',
    operation: 'nvme write',
    reason: `the input ended after ${bytes} bytes, in the middle of a block of ${unit}`,
    hint: 'whole blocks were written; --pad fills up the last one with zeroes',
  });
}

/** Reads blocks and compares them with an input. */
async function compare(
  ns: NvmeNamespace,
  { lba, blocks: asked }: MoveOptions,
  blocks: number,
  input: Input,
  { output, signal }: CommandContext,
): Promise<Moved> {
  using progress = output.progress('verify', blocks * ns.transferSize);
  const started = performance.now();
  const hash: Hash = createHash('sha256');
  const disk = ns.readable({ lba, blocks, signal })[Symbol.asyncIterator]();
  let there: Uint8Array = new Uint8Array(0);
  let bytes = 0;
  try {
    for await (const chunk of bytesOf(input, 'nvme verify', signal)) {
      for (let at = 0; at < chunk.length;) {
        if (there.length === 0) {
          const next = (await disk.next()) as IteratorResult<Buffer, undefined>;
          if (next.done === true) throw longer(ns, lba, blocks, input);
          there = next.value;
        }
        const length = Math.min(there.length, chunk.length - at);
        const expected = chunk.subarray(at, at + length);
        if (!expected.equals(there.subarray(0, length))) {
          let byte = 0;
          while (expected[byte] === there[byte]) byte++;
          throw differ(ns, lba, bytes + byte, expected[byte], there[byte], input);
        }
        hash.update(expected);
        there = there.subarray(length);
        at += length;
        bytes += length;
        progress.update(bytes);
      }
    }
  } finally {
    await disk.return?.();
  }
  if (asked !== undefined && bytes <= (asked - 1) * ns.transferSize) throw shorter(bytes, asked, ns.transferSize);
  return { bytes, sha256: hash.digest('hex'), milliseconds: performance.now() - started };
}

function differ(
  ns: NvmeNamespace,
  lba: number,
  byte: number,
  expected: number,
  there: number,
  { file }: Input,
): DmaError {
  const at = lba + Math.floor(byte / ns.transferSize);
  const hex = (value: number): string => `0x${value.toString(16).padStart(2, '0')}`;
  return new DmaError({
    code: 'EILSEQ',
    operation: 'nvme verify',
    reason: `byte ${byte} differs: ${nameOf(file)} has ${hex(expected)}, the disk ${hex(there)}, at byte ${byte % ns.transferSize} of LBA ${at}`,
    hint: 'what comes before it is the same',
  });
}

function longer(ns: NvmeNamespace, lba: number, blocks: number, { file }: Input): DmaError {
  return new DmaError({
    code: 'ERANGE',
    operation: 'nvme verify',
    reason: `${nameOf(file)} is longer than the ${count(blocks)} at LBA ${lba} of namespace ${ns.id}`,
    hint: 'what the namespace has is the same',
  });
}

function shorter(bytes: number, blocks: number, unit: number): DmaError {
  return new DmaError({
    code: 'EINVAL',
    operation: 'nvme verify',
    reason: `the file has ${bytes} bytes, and ${count(blocks)} of ${unit} bytes were to be compared`,
    hint: 'what the file has is the same as on the disk; without --blocks, as much is compared as the file has',
  });
}

interface Told extends Moved {
  readonly device: string;
  readonly ns: NvmeNamespace;
  readonly lba: number;
  readonly blocks: number;
}

function tell({ output }: CommandContext, { device, ns, lba, blocks, ...moved }: Told, isPiped: boolean): void {
  const seconds = moved.milliseconds / 1000;
  const rate = seconds > 0 ? `, ${formatSize(Math.round(moved.bytes / seconds))}/s` : '';
  const line = `${count(blocks)} at LBA ${lba} of namespace ${ns.id}: ${formatSize(moved.bytes)}${rate}, SHA-256 ${moved.sha256}`;
  if (isPiped) output.note(line);
  else output.text(line);
  output.document({ ok: true, device, nsid: ns.id, lba, blocks, ...moved });
}

function count(blocks: number): string {
  return blocks === 1 ? '1 block' : `${blocks} blocks`;
}
