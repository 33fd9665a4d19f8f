/**
 * Where the elements of a pool lie. *Chunks* are rows of adjacent elements; in a pool for devices a chunk is contiguous
 * for every device, so that no element crosses a gap in device addresses.
 */
import { invalid } from '../../errors.js';
import { Range } from '../../ranges.js';
import { alignUp, formatSize, GiB, isAddress, isPowerOfTwo, type Iova, type Va } from '../../units.js';
import type { Area } from '../area.js';
import type { IovaMode } from '../iova-mode.js';

/** The longest chunk in bytes, so that offsets are 32-bit integers and one view covers it. */
const LONGEST_CHUNK = GiB;

/** The size and spacing of elements, all in bytes. */
export interface ElementShape {
  /** Size of an element, without its headroom. */
  readonly size: number;
  /** Space before each element that belongs to it. */
  readonly headroom: number;
  /** Elements, without their headrooms, begin at multiples of this. */
  readonly align: number;
  /** Distance from one element to the next in a chunk. */
  readonly stride: number;
}

/** A row of elements in memory. Plain data, which can be sent to other threads. */
export interface PoolChunk {
  /** Address of the first byte, where the headroom of the first element begins. */
  readonly va: Va;
  /** bytes */
  readonly length: number;
  /** The IOVA of the first byte, if it is the same for all devices (see `Block.iova`); else `undefined`. */
  readonly iova: Iova | undefined;
  /** Number of elements. */
  readonly count: number;
}

/** A part of memory that is contiguous for the program and, in a pool for devices, for devices. */
export type Run = Omit<PoolChunk, 'count'>;

/** @throws DmaError EINVAL for sizes that are not possible */
export function elementShape(size: number, headroom: number, align: number, operation: string): ElementShape {
  if (!isAddress(size) || size === 0)
    throw invalid(operation, `elements of ${size} bytes are not possible`, {
      hint: 'the option "elementSize" is a whole number of bytes, 1 or more',
    });
  if (!isAddress(headroom))
    throw invalid(operation, `a headroom of ${headroom} bytes is not possible`, {
      hint: 'it is a whole number of bytes in front of each element, 0 or more',
    });
  if (!isPowerOfTwo(align))
    throw invalid(operation, `an alignment of ${align} bytes is not a power of two`, {
      hint: 'it is 64, 128, 4096 and the like; elements are rounded up to multiples of it',
    });
  const stride = alignUp(headroom + size, align);
  if (stride <= LONGEST_CHUNK) return { size, headroom, align, stride };
  throw invalid(operation, `elements of ${stride} bytes are not possible`, {
    hint: `${formatSize(LONGEST_CHUNK)} are the most, headroom and alignment included`,
  });
}

/** bytes that `count` elements need from a multiple of their alignment */
export function bytesFor({ size, headroom, align, stride }: ElementShape, count: number): number {
  return alignUp(headroom, align) + (count - 1) * stride + size;
}

/** How many elements fit into `bytes` from a multiple of their alignment; the inverse of {@link bytesFor} */
export function countIn({ size, headroom, align, stride }: ElementShape, bytes: number): number {
  return Math.max(0, Math.floor((bytes - alignUp(headroom, align) - size) / stride) + 1);
}

/**
 * The parts of `range` in which elements may lie, in address order.
 *
 * @param areaAt the area of an address in the range
 * @param mode the IOVA mode: with `va`, an area without IOVAs of its own is contiguous for every device
 * @param forDevices false: elements may lie anywhere, and no IOVA is known
 */
export function* runsIn(
  range: Range<Va>,
  areaAt: (va: Va) => Area,
  mode: () => IovaMode,
  forDevices: boolean,
): Iterable<Run> {
  if (!forDevices) {
    yield { va: range.start, length: range.length, iova: undefined };
    return;
  }
  let at = range.start;
  while (at < range.end) {
    const area = areaAt(at);
    const part = Range.between(at, Math.min(range.end, area.range.end));
    const runs = area.iovaRuns(part);
    if (runs !== undefined) yield* runs;
    // Every domain maps it in one piece.
    else if (mode() === 'va') yield { va: at, length: part.length, iova: undefined };
    else yield* pagesIn(part, area.pageSize);
    at = part.end as Va;
  }
}

/** Only domains know the addresses, and each page may have any. */
function* pagesIn(part: Range<Va>, pageSize: number): Iterable<Run> {
  for (let va = part.start, next: number; va < part.end; va = next as Va) {
    next = Math.min(part.end, va - (va % pageSize) + pageSize);
    yield { va, length: next - va, iova: undefined };
  }
}

/** Chunks for at most `most` elements in `runs`, filled in order; fewer if the runs have no room for more. */
export function* chunksIn(runs: Iterable<Run>, shape: ElementShape, most: number): Iterable<PoolChunk> {
  const { size, headroom, align, stride } = shape;
  const longest = Math.floor(LONGEST_CHUNK / stride);
  let left = most;
  for (const run of runs) {
    const end = run.va + run.length;
    for (let at: number = run.va; left > 0;) {
      const element = alignUp(at + headroom, align);
      const count = Math.min(left, longest, Math.floor((end - element - size) / stride) + 1);
      if (count < 1) break;
      const va = element - headroom;
      const length = headroom + (count - 1) * stride + size;
      const iova = run.iova === undefined ? undefined : ((run.iova + (va - run.va)) as Iova);
      yield { va: va as Va, length, iova, count };
      left -= count;
      at = va + length;
    }
    if (left === 0) return;
  }
}
