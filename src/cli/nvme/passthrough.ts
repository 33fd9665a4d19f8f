/** `anydma nvme admin` and `io`: any command, as the passthrough commands of nvme-cli send it. */
import { closeSync, openSync, readSync } from 'node:fs';
import type { Nvme, NvmeCommand, NvmeNamespace } from '../../entry/nvme.js';
import { DmaError, formatSize, MiB } from '../../index.js';
import { ADMIN, DATA_DIRECTION, NVM } from '../../nvme/commands.js';
import { callNode } from '../../platform/linux/node-errors.js';
import { paragraphs, type CommandContext, type CommandSpec } from '../shared/command.js';
import { sizeValue } from '../shared/values.js';
import { forceOption, mayDestroy } from './guard.js';
import { controllerOptions, namespaceOf, withController, type ControllerOptions, type OpenController } from './open.js';
import { InvalidArgumentError } from 'commander';

/** More than any command takes. */
const MOST_INPUT = 64 * MiB;
const STDIN = 0;

const WORDS = ['cdw2', 'cdw3', 'cdw10', 'cdw11', 'cdw12', 'cdw13', 'cdw14', 'cdw15'] as const;

interface PassthroughOptions extends ControllerOptions, Partial<Record<(typeof WORDS)[number], number>> {
  readonly opcode: number;
  readonly nsid?: number;
  /** bytes */
  readonly dataLen?: number;
  readonly inputFile?: string;
  readonly timeout?: number;
  readonly rawBinary?: boolean;
  readonly force?: boolean;
}

/** A number of up to 32 bits, decimal or hexadecimal. */
function wordValue(most: number): (text: string) => number {
  return (text) => {
    const value = /^(0x[0-9a-f]+|\d+)$/i.test(text) ? Number(text) : NaN;
    if (value >= 0 && value <= most) return value;
    throw new InvalidArgumentError(`It is a number from 0 to 0x${most.toString(16)}.`);
  };
}

/** Admin commands that change no data, firmware or set-up of the controller. */
const HARMLESS_ADMIN: readonly number[] = [ADMIN.IDENTIFY, ADMIN.GET_LOG_PAGE, ADMIN.GET_FEATURES, ADMIN.ABORT];
const HARMLESS_IO: readonly number[] = [NVM.READ, NVM.FLUSH, NVM.COMPARE, NVM.VERIFY];

function passthrough(
  name: 'admin' | 'io',
  opcode: string,
  example: readonly [string, string],
): CommandSpec<PassthroughOptions> {
  const isAdmin = name === 'admin';
  return {
    name,
    summary: isAdmin ? 'send any admin command' : 'send any I/O command',
    description: paragraphs(
      `Sends a command by its opcode and double words, and prints its result and the data that came back. The option names are those
      of nvme-cli. The direction of the data follows from the two low bits of the opcode; --data-len says how much there is.`,
      `On a PCI device, commands other than those that only read need --force.`,
    ),
    options: (command) => {
      controllerOptions(command)
        .requiredOption('--opcode <n>', `the opcode, such as ${opcode}`, wordValue(0xff))
        .option('--nsid <n>', 'the namespace; 0xffffffff means all of them', wordValue(0xffffffff));
      for (const word of WORDS)
        command.option(`--${word} <n>`, `command double word ${word.slice(3)}`, wordValue(0xffffffff));
      return command
        .option('--data-len <bytes>', 'how much data there is', sizeValue)
        .option('--input-file <path>', 'data for the controller; - is standard input')
        .option('--timeout <ms>', 'time limit in milliseconds', wordValue(2 ** 31 - 1))
        .option('--raw-binary', 'print the data as it is, and nothing else, on standard output')
        .addOption(forceOption());
    },
    examples: [example],
    async run(options, context) {
      const { opcode: number, dataLen, inputFile, rawBinary } = options;
      if (rawBinary === true && context.output.json) context.usage('--json and --raw-binary exclude each other');
      const direction = number & 3;
      const input = inputFile === undefined ? undefined : inputOf(inputFile, dataLen);
      if (input !== undefined && direction !== DATA_DIRECTION.TO_CONTROLLER)
        context.usage(
          `a command with opcode 0x${number.toString(16)} sends no data to the controller: its low bits are not 01`,
        );
      if (dataLen !== undefined && direction === DATA_DIRECTION.NONE)
        context.usage(`a command with opcode 0x${number.toString(16)} transfers no data: its low bits are 00`);
      await withController(options, context, async (open) => {
        const isHarmless = (isAdmin ? HARMLESS_ADMIN : HARMLESS_IO).includes(number);
        const what = `${name} command 0x${number.toString(16).padStart(2, '0')}`;
        if (!isHarmless) await mayDestroy(open, { what }, options.force);
        await send(open, options, context, isAdmin, input);
      });
    },
  };
}

async function send(
  { eal, device, ssd }: OpenController,
  options: PassthroughOptions,
  { output, signal }: CommandContext,
  isAdmin: boolean,
  input: Uint8Array | undefined,
): Promise<void> {
  const { opcode, nsid, timeout, rawBinary } = options;
  const length = options.dataLen ?? input?.length ?? 0;
  const memory = length === 0 ? undefined : eal.malloc(length, { align: 4096, zero: true });
  try {
    if (input !== undefined) memory?.bytes().set(input);
    const isFrom = (opcode & 3) === DATA_DIRECTION.FROM_CONTROLLER;
    const words: Partial<Record<(typeof WORDS)[number], number>> = {};
    for (const word of WORDS) if (options[word] !== undefined) words[word] = options[word];
    const data = memory === undefined ? {} : isFrom ? { into: memory, length } : { from: memory, length };
    const command: NvmeCommand = {
      opcode,
      ...(nsid === undefined ? {} : { nsid }),
      ...words,
      ...data,
      ...(timeout === undefined ? {} : { timeoutMs: timeout }),
      signal,
    };
    const { result } = await (isAdmin ? ssd.admin(command) : pathOf(ssd, nsid).io(command));
    const bytes = memory !== undefined && isFrom ? memory.bytes() : new Uint8Array(0);
    if (rawBinary === true) {
      process.stdout.write(Buffer.from(bytes));
      return;
    }
    output.text(`${device.name}: done, result 0x${result.toString(16).padStart(8, '0')}`);
    for (const line of dump(bytes)) output.text(line);
    output.document({
      ok: true,
      device: device.name,
      result,
      ...(bytes.length === 0 ? {} : { data: Buffer.from(bytes).toString('base64') }),
    });
  } finally {
    memory?.free();
  }
}

/** A namespace to send a command by, which may be about all of them, or about one that is not there. */
function pathOf(ssd: Nvme, nsid: number | undefined): NvmeNamespace {
  const { namespaces } = ssd;
  const other = nsid === undefined ? undefined : (namespaces.find(({ id }) => id === nsid) ?? namespaces.at(0));
  return other ?? namespaceOf(ssd, nsid);
}

/** Rows of 16 bytes, with text; rows that repeat are left out, as hexdump does. */
export function dump(bytes: Uint8Array): string[] {
  const lines: string[] = [];
  let last = '';
  for (let at = 0; at < bytes.length; at += 16) {
    const row = bytes.subarray(at, at + 16);
    const hex = [...row].map((byte) => byte.toString(16).padStart(2, '0')).join(' ');
    const isRepeated = hex === last && at + 16 < bytes.length;
    last = hex;
    if (isRepeated) {
      if (lines.at(-1) !== '*') lines.push('*');
      continue;
    }
    const text = [...row].map((byte) => (byte >= 0x20 && byte < 0x7f ? String.fromCharCode(byte) : '.')).join('');
    lines.push(`${at.toString(16).padStart(6, '0')}  ${hex.padEnd(47)}  ${text}`);
  }
  return lines;
}

/** What is sent: the whole input, or its first `length` bytes. @throws DmaError E2BIG, EINVAL; those of open(2) and read(2) */
function inputOf(path: string, length: number | undefined): Uint8Array {
  if (length !== undefined && length > MOST_INPUT) throw tooMuch(`--data-len ${formatSize(length)} is`);
  const bytes = callNode(path === '-' ? 'standard input' : path, () => contents(path, length));
  if (bytes.length >= (length ?? 1)) return bytes;
  throw new DmaError({
    code: 'EINVAL',
    operation: 'nvme',
    reason: `the input has ${bytes.length} bytes${length === undefined ? '' : `, and --data-len says ${length}`}`,
    hint: 'name a file with as much data as the command takes',
  });
}

function tooMuch(what: string): DmaError {
  return new DmaError({
    code: 'E2BIG',
    operation: 'nvme',
    reason: `${what} more than ${formatSize(MOST_INPUT)}, which no command takes`,
    hint: '--data-len takes the first bytes of an input; "anydma nvme write" moves files of any size',
  });
}

/** Reads the first `length` bytes, or all. Some inputs never end, such as /dev/zero. */
function contents(path: string, length: number | undefined): Uint8Array {
  const fd = path === '-' ? STDIN : openSync(path, 'r');
  try {
    const parts: Uint8Array[] = [];
    let bytes = 0;
    while (bytes < (length ?? MOST_INPUT + 1)) {
      const part = new Uint8Array(Math.min((length ?? MOST_INPUT + 1) - bytes, MiB));
      const count = readSync(fd, part);
      if (count === 0) break;
      parts.push(part.subarray(0, count));
      bytes += count;
    }
    if (length === undefined && bytes > MOST_INPUT) throw tooMuch(`${path} has`);
    return Buffer.concat(parts);
  } finally {
    if (fd !== STDIN) closeSync(fd);
  }
}

export const nvmeAdmin = passthrough('admin', '0x06, identify', [
  'anydma nvme admin --device pci:0000:04:00.0 --opcode 0x06 --cdw10 1 --data-len 4096',
  'identifies the controller',
]);

export const nvmeIo = passthrough('io', '0x02, read', [
  'anydma nvme io --device vfio-user:/run/disk.sock --opcode 0x02 --nsid 1 --cdw10 0 --cdw12 7 --data-len 4096',
  'reads the first 8 blocks of 512 bytes',
]);
