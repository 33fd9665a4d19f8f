/** Makes operations of what programs ask for. */
import type { MemoryPart } from '../../memory/part.js';
import { isSignal, mustBeMs, mustBeWhole, noSignal } from '../../check.js';
import { DmaError, invalid } from '../../errors.js';
import { commandName, dataBytes, SQE } from '../../nvme/commands.js';
import { show } from '../../show.js';
import { now } from '../../timers.js';
import { hex, isAddress } from '../../units.js';
import {
  cutsOf,
  mustHaveBytes,
  piecesOf,
  putAddress,
  type Addresses,
  type NvmeMemory,
  type Pieces,
  type PointerRules,
} from './data-pointer.js';
import type { NvmeCallOptions } from './call-options.js';
import type { Data } from './operation.js';
import { ENTRY_WORDS } from './queue.js';

/** What requests are made with. */
export interface RequestContext {
  readonly device: Addresses;
  readonly rules: PointerRules;
  /** The time limit of operations that give none, in milliseconds. */
  readonly timeoutMs: number;
}

/** Any command, for `Nvme.admin` and `NvmeNamespace.io`. */
export interface NvmeCommand extends NvmeCallOptions {
  /** 0 to 255; its low two bits say which way data goes */
  readonly opcode: number;
  /** Default: 0 for `admin`, the namespace for `io`. */
  readonly nsid?: number;
  readonly cdw2?: number;
  readonly cdw3?: number;
  readonly cdw10?: number;
  readonly cdw11?: number;
  readonly cdw12?: number;
  readonly cdw13?: number;
  readonly cdw14?: number;
  readonly cdw15?: number;
  /** Memory that the controller writes. */
  readonly into?: NvmeMemory;
  /** Memory that the controller reads. */
  readonly from?: NvmeMemory;
  /** bytes of `into` or `from`. Default: all. */
  readonly length?: number;
  /** Memory for metadata, in one piece for the device. */
  readonly metadata?: MemoryPart;
  /** Two PRP entries of the caller's own, instead of `into` and `from`: what they point to has to stay mapped. */
  readonly prp?: readonly [first: number, second: number];
}

const COMMAND_WORDS = [
  ['cdw2', SQE.CDW2],
  ['cdw3', SQE.CDW3],
  ['cdw10', SQE.CDW10],
  ['cdw11', SQE.CDW11],
  ['cdw12', SQE.CDW12],
  ['cdw13', SQE.CDW13],
  ['cdw14', SQE.CDW14],
  ['cdw15', SQE.CDW15],
] as const;

/** A command of the caller's, checked. */
export interface CheckedCommand {
  readonly entry: Uint32Array;
  readonly data: Data;
  readonly unit: number;
  readonly ranges: readonly number[];
}

/**
 * @param blockBytes of namespace `nsid`, as they are transferred at least; 0 for an admin command
 * @throws DmaError EINVAL
 */
export function commandOf(
  context: RequestContext,
  command: Partial<NvmeCommand>,
  nsid: number,
  operation: string,
  blockBytes = 0,
): CheckedCommand {
  const { opcode, into, from, prp, metadata } = command;
  mustBeWhole(opcode, 0, 0xff, 'opcode', operation);
  const entry = new Uint32Array(ENTRY_WORDS);
  entry[0] = opcode;
  const { nsid: given = nsid } = command;
  mustBeWhole(given, 0, 0xffffffff, 'nsid', operation);
  entry[1] = given;
  for (const [name, offset] of COMMAND_WORDS) {
    const value = command[name] ?? 0;
    mustBeWhole(value, -(2 ** 31), 2 ** 32 - 1, name, operation);
    entry[offset / 4] = value;
  }
  const memory = into ?? from;
  if ([into, from, prp].filter((each) => each !== undefined).length > 1)
    throw invalid(operation, 'a command has one data pointer: into, from or prp');
  const ranges: number[] = [];
  if (metadata !== undefined)
    ranges.push(...putMetadata(context, entry, metadata, mustHaveBytes(metadata, 'metadata', operation), operation));
  if (prp !== undefined) {
    const [first, second] = prp;
    mustBeWhole(first, 0, Number.MAX_SAFE_INTEGER, 'the first PRP entry', operation);
    mustBeWhole(second, 0, Number.MAX_SAFE_INTEGER, 'the second PRP entry', operation);
    putAddress(entry, SQE.PRP1 / 4, first);
    putAddress(entry, SQE.PRP2 / 4, second);
  }
  if (memory === undefined) return { entry, data: { kind: 'none' }, unit: 0, ranges };
  const unit = command.length ?? bytesOf(memory, operation);
  mustBeWhole(unit, 1, context.rules.maxTransfer, 'the length of the data', operation);
  // PRP entries do not say where memory ends: the controller would go on behind it.
  const needed = given === nsid || blockBytes === 0 ? dataBytes(entry, blockBytes) : 0;
  if (unit < needed)
    throw invalid(
      operation,
      `${commandName(opcode, blockBytes === 0)} transfers ${needed} bytes, and the memory has ${unit}`,
      {
        hint: 'the double words of the command say how much it transfers: compare NLB, NUMD or NR',
      },
    );
  const pieces = piecesOf(context.device, memory, unit, into === undefined ? 'from' : 'into', operation);
  const data = dataOf(context, pieces, unit, unit, into === undefined ? 'read' : 'write', operation);
  if (data.kind === 'cuts' && data.cuts.length > 1) throw inPieces(context, operation);
  return { entry, data, unit, ranges };
}

/** How many bytes of memory were given. @throws DmaError EINVAL for what is no memory */
export function bytesOf(memory: NvmeMemory, operation: string): number {
  const list = Array.isArray(memory) ? (memory as readonly MemoryPart[]) : [memory as MemoryPart];
  return list.reduce((sum, each) => sum + mustHaveBytes(each, 'the data', operation), 0);
}

/** What the controller does with memory. */
export type MemoryUse = 'read' | 'write';

/**
 * How `length` bytes are pointed to.
 *
 * @param unit bytes that are not cut
 * @throws DmaError EINVAL when there is no way; EACCES when the memory was mapped for something else
 */
export function dataOf(
  { device, rules }: RequestContext,
  pieces: Pieces,
  length: number,
  unit: number,
  use: MemoryUse,
  operation: string,
): Data {
  for (const [index, each] of pieces.iovas.entries())
    if (device.domain?.mayUse?.(each, pieces.lengths[index], use) === false) throw notGranted(device, use, operation);
  const [iova] = pieces.iovas;
  // Ranges of several addresses here may be one for the device; but a run has one address.
  if (pieces.iovas.length === 1 && pieces.ranges.length === 2 && iova % 4 === 0)
    return { kind: 'run', iova, va: pieces.ranges[0] };
  const cuts = cutsOf(pieces, length, unit, rules);
  if (cuts !== undefined) return { kind: 'cuts', pieces, cuts };
  throw invalid(operation, whyNot(pieces, unit, rules), {
    device: device.name,
    hint: 'give memory at multiples of 4 whose ranges are whole blocks, or whole pages after the first, or let it be copied: bounce: true',
  });
}

/**
 * As {@link dataOf} of {@link piecesOf}, at once for memory that is in one piece for the device.
 *
 * @param name of the argument, for messages
 */
export function dataIn(
  context: RequestContext,
  memory: NvmeMemory,
  length: number,
  unit: number,
  name: string,
  use: MemoryUse,
  operation: string,
): Data {
  if (!Array.isArray(memory)) {
    const { va, length: has, live } = memory as MemoryPart;
    const { domain } = context.device;
    if (domain !== undefined && live !== false && has >= length && isAddress(va) && isAddress(has)) {
      const iova = domain.table.iovaOfRange(va, length);
      if (iova >= 0 && iova % 4 === 0 && domain.mayUse?.(iova, length, use) !== false) return { kind: 'run', iova, va };
    }
  }
  return dataOf(context, piecesOf(context.device, memory, length, name, operation), length, unit, use, operation);
}

function notGranted({ name }: Addresses, use: MemoryUse, operation: string): DmaError {
  const reason = `the memory is not mapped so that the device may ${use} it`;
  const hint = `device.dmaMap(memory, { access: 'read-write' }) maps it for both`;
  return new DmaError({ code: 'EACCES', operation, device: name, reason, hint });
}

function whyNot({ iovas }: Pieces, unit: number, { sgl, pageSize, maxDescriptors }: PointerRules): string {
  const odd = iovas.find((iova) => iova % 4 !== 0);
  if (odd !== undefined)
    return `memory at ${hex(odd)}, which is no multiple of 4, and the controller has no SGLs for that`;
  const has = sgl === 'none' ? 'the controller has no SGLs' : `its SGLs have ${maxDescriptors} entries at most`;
  return `a block of ${unit} bytes is in ranges that do not meet at pages of ${pageSize} bytes, and ${has}`;
}

/** EINVAL for the data of one command that is in too many pieces for it. */
function inPieces({ device }: RequestContext, operation: string): Error {
  return invalid(operation, 'the data is in too many pieces for one command', {
    device: device.name,
    hint: 'give memory that is contiguous for the device: eal.malloc(bytes, { contiguous: true })',
  });
}

/** Puts the metadata pointer into an entry. @returns the range of VAs. @throws DmaError EINVAL if it is in pieces */
export function putMetadata(
  { device }: RequestContext,
  entry: Uint32Array,
  metadata: MemoryPart,
  length: number,
  operation: string,
): readonly [number, number] {
  const has = mustHaveBytes(metadata, 'metadata', operation);
  if (has < length) throw invalid(operation, `metadata has ${has} bytes, and ${length} are transferred`);
  const iova = device.iovaOf(metadata);
  if (iova % 4 !== 0) throw invalid(operation, `the metadata is at ${hex(iova)}, which is no multiple of 4`);
  putAddress(entry, SQE.MPTR / 4, iova);
  return [Number(metadata.va), length];
}

/** When a call is given up, by `now`. @throws DmaError EINVAL for what is no time */
export function deadlineOf(
  { timeoutMs: usual }: RequestContext,
  timeoutMs: number | undefined,
  operation: string,
): number {
  if (timeoutMs !== undefined) mustBeMs(timeoutMs, 'timeoutMs', operation);
  return now() + (timeoutMs ?? usual);
}

/** When a call is given up, or aborted. @throws DmaError EINVAL for what is no time, or no signal */
export function limitsOf(
  context: RequestContext,
  { signal, timeoutMs }: NvmeCallOptions,
  operation: string,
): { readonly signal: AbortSignal | undefined; readonly deadline: number } {
  if (signal !== undefined && !isSignal(signal)) throw noSignal('signal', signal, operation);
  return { signal, deadline: deadlineOf(context, timeoutMs, operation) };
}

/** @throws DmaError EINVAL */
export function mustBeBlocks(lba: unknown, blocks: unknown, most: number, operation: string): void {
  if (!(typeof lba === 'number' && Number.isSafeInteger(lba) && lba >= 0))
    throw invalid(operation, `lba is ${show(lba)}, not a block number from 0`);
  if (!(typeof blocks === 'number' && Number.isSafeInteger(blocks) && blocks >= 1))
    throw invalid(operation, `blocks is ${show(blocks)}, not a number of blocks from 1`);
  if (lba + blocks > most)
    throw new DmaError({
      code: 'ERANGE',
      operation,
      reason: `blocks ${lba} to ${lba + blocks - 1} of a namespace that has ${most}`,
      hint: 'blocks are counted from 0',
    });
}
