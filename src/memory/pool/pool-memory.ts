/** The memory of a pool: blocks of heaps, or external memory, cut into chunks; and how to look at it and give it back. */
import { DmaError, invalid, isDmaError, undoAll, withUndo } from '../../errors.js';
import { Range } from '../../ranges.js';
import { formatSize, type Va } from '../../units.js';
import type { Area } from '../area.js';
import type { ExternalMemory } from '../external.js';
import type { Share } from '../shared/shares.js';
import type { Steps } from '../../steps.js';
import { allocatingFrom, type Allocation } from '../owned/heap-choice.js';
import type { Block, Heap } from '../heap/heap.js';
import type { MallocOptions } from '../heap/malloc-request.js';
import type { IovaMode } from '../iova-mode.js';
import { bytesFor, chunksIn, countIn, runsIn, type ElementShape, type PoolChunk } from './pool-layout.js';

/** What is asked for. */
export interface PoolMemoryRequest {
  readonly elements: number;
  readonly shape: ElementShape;
  readonly forDevices: boolean;
  /** See {@link runsIn}. */
  readonly iovaMode: () => IovaMode;
  /** No more bytes than these can be allocated now. */
  readonly most: () => number;
  /** What the caller called. */
  readonly operation: string;
}

/** What there is. */
export interface PoolMemory {
  /** They hold as many elements as were asked for. */
  readonly chunks: readonly PoolChunk[];
  /** What the chunks are in, each once. */
  readonly areas: readonly Area[];
  /** The bytes of a chunk. */
  view(chunk: number): Uint8Array;
  /** @throws DmaError EBUSY while some of it is pinned, so that it can not be given back */
  mustBeIdle(operation: string): void;
  /** Somebody reaches it for good: nobody else may get it. */
  escape(): void;
  /** Other threads had views of it, and have let go of it. */
  shared(share: Share): void;
  /** Gives it back. Each step of it is tried. */
  release(): unknown[];
}

/** Memory that elements are put into. */
interface Piece {
  readonly va: Va;
  bytes(offset: number, length: number): Uint8Array;
  /** false once it has ended in another way */
  readonly live?: boolean;
  /** Only of what goes with the pool. */
  mustBeIdle?(operation: string): void;
  escape(): void;
  shared(share: Share): void;
}

class Pieces implements PoolMemory {
  readonly chunks: PoolChunk[] = [];
  /** How many elements the chunks hold. */
  elements = 0;
  readonly #areas = new Set<Area>();
  readonly #places: Piece[] = [];
  readonly #release: (() => void)[] = [];

  add(piece: Piece, chunks: readonly PoolChunk[], areas: Iterable<Area>, release: () => void): void {
    for (const chunk of chunks) {
      this.chunks.push(chunk);
      this.#places.push(piece);
      this.elements += chunk.count;
    }
    for (const area of areas) this.#areas.add(area);
    this.#release.push(release);
  }

  get areas(): readonly Area[] {
    return [...this.#areas];
  }

  view(chunk: number): Uint8Array {
    const { va, length } = this.chunks[chunk];
    const piece = this.#places[chunk];
    return piece.bytes(va - piece.va, length);
  }

  mustBeIdle(operation: string): void {
    for (const place of new Set(this.#places)) if (place.live !== false) place.mustBeIdle?.(operation);
  }

  escape(): void {
    for (const place of new Set(this.#places)) place.escape();
  }

  shared(share: Share): void {
    for (const place of new Set(this.#places)) place.shared(share);
  }

  release(): unknown[] {
    return undoAll(this.#release.splice(0).reverse());
  }
}

/**
 * Memory from heaps: one block if possible, more where the heaps are in pieces or the block is not contiguous for devices.
 *
 * @param heaps to allocate from, in this order
 * @throws DmaError as `Heap.malloc`; nothing was allocated then
 */
export function* poolMemoryFromBlocks(
  request: PoolMemoryRequest,
  heaps: readonly Heap[],
  options: Pick<MallocOptions, 'pageSizes' | 'pageSizeHint'>,
): Steps<Allocation, PoolMemory> {
  const { elements, shape, forDevices, iovaMode, most: mostBytes, operation } = request;
  const { align } = shape;
  const memory = new Pieces();
  try {
    for (let most = elements; memory.elements < elements;) {
      const count = Math.min(most, elements - memory.elements);
      let block: Block;
      try {
        const how = { ...options, align, contiguous: forDevices && count === 1 };
        block = yield* allocatingFrom(heaps, bytesFor(shape, count), how, operation);
      } catch (error) {
        if (!isDmaError(error, 'ENOMEM') || count === 1) throw error;
        // Smaller pieces would take all that the machine has, and be given back in the end.
        if (bytesFor(shape, elements - memory.elements) > mostBytes()) throw error;
        // As many as the largest piece holds; when that was not it, half as many.
        const greatest = Math.max(...heaps.map((heap) => heap.statistics().greatestFree));
        const fits = countIn(shape, greatest);
        most = fits > 0 && fits < count ? fits : Math.ceil(count / 2);
        continue;
      }
      const { heap, va, length } = block;
      const range = new Range(va, length);
      let chunks: PoolChunk[];
      try {
        chunks = [
          ...chunksIn(
            runsIn(range, (at) => heap.areaAt(at), iovaMode, forDevices),
            shape,
            count,
          ),
        ];
      } catch (error) {
        block.free();
        throw error;
      }
      const fits = chunks.reduce((sum, chunk) => sum + chunk.count, 0);
      if (2 * fits < count) {
        // Too much of it would be of no use: single elements are asked for as contiguous, in the end.
        block.free();
        if (count > 1) {
          most = Math.ceil(count / 2);
          continue;
        }
        const reason = `no element of ${shape.size} bytes is contiguous for devices`;
        throw new DmaError({ code: 'ENOMEM', operation, reason });
      }
      memory.add(block, chunks, areasOf(heap, range), () => block[Symbol.dispose]());
    }
    return memory;
  } catch (error) {
    const hint = `${memory.elements} of the ${elements} elements had room`;
    const failure = withUndo(error, operation, memory.release());
    if (failure.code !== 'ENOMEM') throw failure;
    throw failure.with({ hint: failure.hint === undefined ? hint : `${hint}; ${failure.hint}` });
  }
}

/**
 * External memory, as much of it as it takes, in the order given. It can not be unregistered before it is given back.
 *
 * @param name of the pool, for messages
 * @throws DmaError EINVAL for memory that is not registered any more; EEXIST for memory that is in a heap; EACCES for memory
 *   that can not be written; ENOMEM when not all elements have room
 */
export function poolMemoryFromExternal(
  request: Omit<PoolMemoryRequest, 'most'>,
  given: readonly ExternalMemory[],
  name: string,
): PoolMemory {
  const { elements, shape, forDevices, iovaMode, operation } = request;
  for (const each of given) checkExternal(each, operation);
  const memory = new Pieces();
  try {
    for (const each of given) {
      const { area } = each;
      const runs = runsIn(area.range, () => area, iovaMode, forDevices);
      const chunks = [...chunksIn(runs, shape, elements - memory.elements)];
      if (chunks.length === 0) continue;
      const pin = each.pin(`it is in the pool ${name}`);
      memory.add(each, chunks, [area], () => pin[Symbol.dispose]());
    }
    if (memory.elements === elements) return memory;
    const total = given.reduce((sum, { length }) => sum + length, 0);
    throw new DmaError({
      code: 'ENOMEM',
      operation,
      reason: `the external memory, ${formatSize(total)}, has room for ${memory.elements} of ${elements} elements`,
      hint: `one takes ${shape.stride} bytes, and does not cross a place where it is not contiguous for devices`,
    });
  } catch (error) {
    throw withUndo(error, operation, memory.release());
  }
}

/** The areas that cover a range of a heap. */
function areasOf(heap: Heap, range: Range<Va>): Area[] {
  const areas: Area[] = [];
  for (let at: number = range.start; at < range.end;) {
    const area = heap.areaAt(at as Va);
    areas.push(area);
    at = area.range.end;
  }
  return areas;
}

function checkExternal({ area, live }: ExternalMemory, operation: string): void {
  const { range, label } = area;
  if (!live) throw invalid(operation, `${label} is not registered any more`, { range });
  if (area.owner !== 'external')
    throw new DmaError({ code: 'EEXIST', operation, range, reason: `${label} is in a heap` });
  if (!area.writable) throw new DmaError({ code: 'EACCES', operation, range, reason: `${label} can not be written` });
}
