/** Which heaps an allocation may come from, in the words that programs have for them. */
import type { Gate } from '../../check.js';
import { invalid, isDmaError, toldAs } from '../../errors.js';
import type { LongWorkOptions, RunningWorks } from '../../long-work.js';
import type { Steps } from '../../steps.js';
import type { Block, Heap, MallocOptions } from '../heap/heap.js';
import type { Heaps } from '../heap/heaps.js';
import type { OwnedMallocOptions, OwnedMemory } from './owned.js';

/** The memory of one `Eal` that allocations come from. */
export interface HeapSources {
  readonly memory: OwnedMemory;
  readonly heaps: Heaps;
  /** Asked before something is made of them. */
  readonly gate?: Gate;
  /** Who gives up what goes on for long. Default: nobody. */
  readonly running?: RunningWorks;
}

/** Where to allocate, and what the block has to be like. */
export interface PlacedMallocOptions extends OwnedMallocOptions {
  /** The heap of that name. Default: the library's own memory, of `node` or any. */
  readonly heap?: string;
}

/**
 * The heaps that these options name, in the order they are tried.
 *
 * @throws DmaError EINVAL for no name of a heap, and for a node there is not, or that the heap is not on; ENOENT for a heap
 *   there is not
 */
export function chooseHeaps(
  sources: HeapSources,
  { heap, node }: Pick<PlacedMallocOptions, 'heap' | 'node'>,
  operation: string,
): readonly Heap[] {
  const { memory } = sources;
  if (heap === undefined) return node === undefined ? memory.heaps : [memory.heapOf(node, operation)];
  const found = sources.heaps.find(heap, operation);
  if (node === undefined || node === found.node) return [found];
  throw invalid(operation, `the heap ${heap} is not on NUMA node ${node}`);
}

/** What heaps call their operations. */
const OF_HEAPS = ['malloc', 'mallocAsync', 'mallocLargest'];

/** An error of a heap as one of the call that needed a block of it; all others as they are. */
export function toldOf(operation: string, error: unknown): unknown {
  return toldAs(operation, OF_HEAPS, error);
}

/** An allocation that can be made at once, or while the event loop goes on. */
export interface Allocation {
  now(): void;
  later(work: LongWorkOptions): Promise<void>;
}

/**
 * The block of the first heap that has room.
 *
 * @param operation what the caller called: what a heap says of a block is told of that
 * @throws DmaError ENOMEM of the first one when none has; all others at once
 */
export function* allocatingFrom(
  heaps: readonly Heap[],
  size: number,
  options: MallocOptions,
  operation: string,
): Steps<Allocation, Block> {
  let failure: unknown;
  for (const heap of heaps) {
    try {
      let block: Block | undefined;
      yield {
        now: () => (block = heap.malloc(size, options)),
        later: async (work) => void (block = await heap.mallocAsync(size, { ...options, ...work })),
      };
      if (block !== undefined) return block;
    } catch (error) {
      const told = toldOf(operation, error);
      if (!isDmaError(told, 'ENOMEM')) throw told;
      failure ??= told;
    }
  }
  throw failure;
}
