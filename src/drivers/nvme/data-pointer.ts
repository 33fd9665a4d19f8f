/**
 * Where the data of a command is: memory of the program as the controller reaches it, cut into commands, and written down as
 * PRP entries or SGL descriptors (NVMe 1.4, sections 4.3 and 4.4).
 */
import type { MemoryPart } from '../../memory/part.js';
import { mustBeObject } from '../../check.js';
import { invalid } from '../../errors.js';
import { SGL, SQE } from '../../nvme/commands.js';
import { show } from '../../show.js';
import { alignUp, isAddress } from '../../units.js';
import { USES_SGL } from './queue.js';

/** Memory of a command: a block, a zone, external memory, or a part as `{ va, length }`; or several of them, in order. */
export type NvmeMemory = MemoryPart | readonly MemoryPart[];

/** What tells addresses of memory: a device, or one of another thread. */
export interface Addresses {
  readonly name: string;
  readonly domain?:
    | {
        readonly table: { iovaOf(va: number): number; iovaOfRange(va: number, length: number): number };
        /** Absent if only the thread that has the device knows what it may do. */
        mayUse?(iova: number, length: number, use: 'read' | 'write'): boolean;
      }
    | undefined;
  /** @throws DmaError EINVAL if it is not mapped in one piece */
  iovaOf(memory: MemoryPart): number;
}

/** Memory as the controller sees it: pieces, each contiguous for it. */
export interface Pieces {
  readonly iovas: readonly number[];
  /** bytes of each */
  readonly lengths: readonly number[];
  /** What was given, as VAs: start and length of each range. */
  readonly ranges: readonly number[];
}

/** The unit of the translation table. */
const TABLE_PAGE = 4096;

/**
 * Looks up the first `length` bytes of `memory`.
 *
 * @param name of the argument, for messages
 * @throws DmaError EINVAL when there is less of it, or some of it is not mapped for the device or was freed
 */
export function piecesOf(
  device: Addresses,
  memory: NvmeMemory,
  length: number,
  name: string,
  operation: string,
): Pieces {
  const list: readonly MemoryPart[] = Array.isArray(memory)
    ? (memory as readonly MemoryPart[])
    : [memory as MemoryPart];
  const iovas: number[] = [];
  const lengths: number[] = [];
  const ranges: number[] = [];
  let left = length;
  for (const each of list) {
    if (left === 0) break;
    mustBeObject(each, name, operation);
    const { va } = each;
    const bytes = Math.min(left, mustHaveBytes(each, name, operation));
    addPieces(device, each, Number(va), bytes, iovas, lengths);
    ranges.push(Number(va), bytes);
    left -= bytes;
  }
  if (left > 0)
    throw invalid(operation, `${name} has ${length - left} bytes, and ${length} are transferred`, {
      device: device.name,
      hint: 'give memory for all the blocks, or fewer blocks',
    });
  return { iovas, lengths, ranges };
}

/** The length of a piece of memory. @throws DmaError EINVAL if it has none */
export function mustHaveBytes({ va, length }: MemoryPart, name: string, operation: string): number {
  if (typeof va === 'number' && typeof length === 'number' && isAddress(va) && isAddress(length) && length > 0)
    return length;
  throw invalid(operation, `${name}: ${show(length)} bytes at ${show(va)} are no memory`, {
    hint: 'give memory, a block, a zone, or { va, length }, or a list of them',
  });
}

function addPieces(
  device: Addresses,
  memory: MemoryPart,
  va: number,
  bytes: number,
  iovas: number[],
  lengths: number[],
): void {
  const table = device.domain?.table;
  const isLive = memory.live !== false;
  const whole = table !== undefined && isLive ? table.iovaOfRange(va, bytes) : -1;
  if (whole >= 0) return addPiece(whole, bytes, iovas, lengths);
  // It is in pieces for the device, or says why there is no address.
  if (table === undefined || !isLive || table.iovaOf(va) < 0) {
    device.iovaOf(isLive ? { va, length: 1 } : memory);
    return;
  }
  for (let at = va; at < va + bytes;) {
    const step = Math.min(va + bytes - at, TABLE_PAGE - (at % TABLE_PAGE));
    const iova = table.iovaOf(at);
    if (iova < 0) device.iovaOf({ va: at, length: step });
    addPiece(iova, step, iovas, lengths);
    at += step;
  }
}

function addPiece(iova: number, bytes: number, iovas: number[], lengths: number[]): void {
  const last = iovas.length - 1;
  if (last >= 0 && iovas[last] + lengths[last] === iova) lengths[last] += bytes;
  else {
    iovas.push(iova);
    lengths.push(bytes);
  }
}

/** What a controller takes. */
export interface PointerRules {
  /** bytes */
  readonly pageSize: number;
  /** Most bytes of a command. */
  readonly maxTransfer: number;
  /** Are there SGLs, and must what they point to be whole words? */
  readonly sgl: 'none' | 'any' | 'words';
  /** Most descriptors of a command. */
  readonly maxDescriptors: number;
}

/** One command's share. */
export interface Cut {
  /** bytes, whole blocks */
  readonly length: number;
  /** The piece that it begins in, and where in there. */
  readonly piece: number;
  readonly offset: number;
  readonly sgl: boolean;
}

/**
 * Cuts memory into commands: as few as the controller allows.
 *
 * @param unit bytes that are not cut: a block
 * @returns `undefined` when there is no way to point to it (it begins at an odd address, or ranges meet inside a page and inside
 *   a block)
 */
export function cutsOf(pieces: Pieces, length: number, unit: number, rules: PointerRules): Cut[] | undefined {
  const cuts: Cut[] = [];
  const most = rules.maxTransfer - (rules.maxTransfer % unit);
  let piece = 0;
  let offset = 0;
  for (let left = length; left > 0;) {
    const want = Math.min(left, most);
    const prp = whole(prpReach(pieces, piece, offset, want, rules.pageSize), unit);
    const sgl = prp === want ? 0 : whole(sglReach(pieces, piece, offset, want, rules), unit);
    const bytes = Math.max(prp, sgl);
    if (bytes === 0) return undefined;
    cuts.push({ length: bytes, piece, offset, sgl: sgl > prp });
    left -= bytes;
    for (let rest = bytes; rest > 0;) {
      const step = Math.min(rest, pieces.lengths[piece] - offset);
      rest -= step;
      offset += step;
      if (offset < pieces.lengths[piece]) continue;
      piece++;
      offset = 0;
    }
  }
  return cuts;
}

function whole(bytes: number, unit: number): number {
  return bytes - (bytes % unit);
}

/** How many bytes from there can be told by PRP entries: only the first may begin in a page, only the last may end in one. */
function prpReach({ iovas, lengths }: Pieces, piece: number, offset: number, want: number, pageSize: number): number {
  if ((iovas[piece] + offset) % 4 !== 0) return 0;
  let bytes = lengths[piece] - offset;
  for (let each = piece; bytes < want; each++) {
    if ((iovas[each] + lengths[each]) % pageSize !== 0 || iovas[each + 1] % pageSize !== 0) break;
    bytes += lengths[each + 1];
  }
  return Math.min(bytes, want);
}

/** How many bytes from there can be told by SGL descriptors. */
function sglReach(
  { iovas, lengths }: Pieces,
  piece: number,
  offset: number,
  want: number,
  rules: PointerRules,
): number {
  if (rules.sgl === 'none') return 0;
  let bytes = 0;
  for (let each = piece, from = offset; bytes < want && each - piece < rules.maxDescriptors; each++, from = 0) {
    const step = Math.min(lengths[each] - from, want - bytes);
    if (rules.sgl === 'words' && ((iovas[each] + from) % 4 !== 0 || step % 4 !== 0)) break;
    bytes += step;
  }
  return bytes;
}

/** The list of a slot: words to fill, and where it is for the controller. */
export interface List {
  readonly words: Uint32Array;
  readonly iova: number;
}

/** Puts the data pointer of a command into its entry, and what does not fit there into `list`. */
export function putPointer(entry: Uint32Array, list: List, pieces: Pieces, cut: Cut, pageSize: number): void {
  if (cut.sgl) putSgl(entry, list, pieces, cut);
  else putPrp(entry, list, pieces, cut, pageSize);
}

function putPrp(entry: Uint32Array, list: List, { iovas, lengths }: Pieces, cut: Cut, pageSize: number): void {
  const first = iovas[cut.piece] + cut.offset;
  putAddress(entry, SQE.PRP1 / 4, first);
  // Pages after the first one.
  const count = Math.ceil(((first % pageSize) + cut.length) / pageSize) - 1;
  if (count === 0) return;
  let { piece } = cut;
  let address = first - (first % pageSize);
  const next = (): number => {
    address += pageSize;
    if (address < iovas[piece] + lengths[piece]) return address;
    piece++;
    return (address = iovas[piece]);
  };
  if (count === 1) return putAddress(entry, SQE.PRP2 / 4, next());
  putAddress(entry, SQE.PRP2 / 4, list.iova);
  const inPage = pageSize / 8;
  for (let left = count, at = 0; left > 0; at++) {
    const isLink = at % inPage === inPage - 1 && left > 1;
    putAddress(list.words, at * 2, isLink ? list.iova + (at + 1) * 8 : next());
    if (!isLink) left--;
  }
}

function putSgl(entry: Uint32Array, list: List, { iovas, lengths }: Pieces, cut: Cut): void {
  entry[0] |= USES_SGL;
  const single = lengths[cut.piece] - cut.offset >= cut.length;
  if (single) return putDescriptor(entry, SQE.SGL / 4, iovas[cut.piece] + cut.offset, cut.length, SGL.DATA_BLOCK);
  let count = 0;
  for (let piece = cut.piece, from = cut.offset, left = cut.length; left > 0; piece++, from = 0, count++) {
    const bytes = Math.min(left, lengths[piece] - from);
    putDescriptor(list.words, count * 4, iovas[piece] + from, bytes, SGL.DATA_BLOCK);
    left -= bytes;
  }
  putDescriptor(entry, SQE.SGL / 4, list.iova, count * SGL.BYTES, SGL.LAST_SEGMENT);
}

function putDescriptor(words: Uint32Array, at: number, address: number, length: number, type: number): void {
  putAddress(words, at, address);
  words[at + 2] = length;
  words[at + 3] = type << 28;
}

/** Stores 64 bits. */
export function putAddress(words: Uint32Array, at: number, address: number): void {
  words[at] = address;
  words[at + 1] = address / 4294967296;
}

/** Bytes of lists that a slot needs at least for so many descriptors. */
export function descriptorBytes(count: number, pageSize: number): number {
  return alignUp(count * SGL.BYTES, pageSize);
}
