/** Chooses the heaps that an allocation may come from. */
import type { Gate } from '../../check.js';
import { invalid, isDmaError, toldAs } from '../../errors.js';
import type { LongWorkOptions, RunningWorks } from '../../long-work.js';
import type { Steps } from '../../steps.js';
import type { Block, Heap } from '../heap/heap.js';
import type { MallocOptions } from '../heap/malloc-request.js';
import type { Heaps } from '../heap/heaps.js';
import type { OwnedMemory } from './owned.js';

/** What allocations of one `Eal` come from. */
export interface HeapSources {
  readonly memory: OwnedMemory;
  readonly heaps: Heaps;
  /** Throws when nothing may be allocated now. */
  readonly gate?: Gate;
  /** Runs long operations, and cancels them when the Eal stops. Default: they can not be cancelled that way. */
  readonly running?: RunningWorks;
}

/**
 * The heaps that these options allow, in the order they are tried.
 *
 * @throws DmaError EINVAL for an invalid name, for a node that does not exist, and for a heap that is not on `node`;
 *   ENOENT if the heap does not exist
 */
export function chooseHeaps(
  sources: HeapSources,
  { heap, node }: Pick<MallocOptions, 'heap' | 'node'>,
  operation: string,
): readonly Heap[] {
  const { memory } = sources;
  if (heap === undefined) return node === undefined ? memory.heaps : [memory.heapOf(node, operation)];
  const found = sources.heaps.named(heap, operation);
  if (node === undefined || node === found.node) return [found];
  throw invalid(operation, `the heap ${heap} is not on NUMA node ${node}`);
}

/** The operations that errors of heaps name. */
const OF_HEAPS = ['malloc', 'mallocAsync', 'mallocLargest'];

/** An error of a heap, as an error of the call that wanted the block; other errors unchanged. */
export function toldOf(operation: string, error: unknown): unknown {
  return toldAs(operation, OF_HEAPS, error);
}

/** An allocation that is made at once, or while the event loop runs. */
export interface Allocation {
  now(): void;
  later(work: LongWorkOptions): Promise<void>;
}

/**
 * Allocates from the first heap that has room.
 *
 * @param operation the caller's operation, for errors
 * @throws DmaError ENOMEM of the first heap if none has room; any other error at once
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
