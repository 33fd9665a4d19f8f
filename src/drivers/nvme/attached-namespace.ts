/** Blocks of a namespace, through a queue pair that another thread opened: calls with a promise each. */
import type { MemoryPart } from '../../memory/part.js';
import type { NvmeCallOptions } from './call-options.js';

/** Options of {@link AttachedNvmeNamespace.read}. */
export interface AttachedReadOptions extends NvmeCallOptions {
  /** The first block, counted from 0. */
  readonly lba: number;
  /** Default: as many as there is memory for. */
  readonly blocks?: number;
  /** Where they go: memory that is mapped for the device, or a part of it as `{ va, length }`. */
  readonly into: MemoryPart;
  /** Read from the media and not from a cache. */
  readonly fua?: boolean;
}

/** Options of {@link AttachedNvmeNamespace.write}. */
export interface AttachedWriteOptions extends NvmeCallOptions {
  /** The first block, counted from 0. */
  readonly lba: number;
  /** Default: as many as there is memory for. */
  readonly blocks?: number;
  /** Where they come from: as `into` of {@link AttachedReadOptions}. */
  readonly from: MemoryPart;
  /** Durable when this resolves. Default false: `flush` makes it so. */
  readonly fua?: boolean;
}

/**
 * A namespace in a thread that has attached to a queue pair. Calls go through that queue, by stores of this thread. The thread that has
 * the controller takes part only when something goes wrong: it aborts what has a time limit or a signal, and resets.
 *
 * Attach to the mapping of the memory, too: then it can not be unmapped.
 */
export interface AttachedNvmeNamespace {
  readonly id: number;
  /** Bytes of a block as it is transferred: with its metadata, where that is behind each block's data. */
  readonly blockSize: number;
  /**
   * Reads blocks into memory. What is more than a command can have is read by several.
   *
   * @throws DmaError (rejects), before anything is sent: EINVAL (what can not be; memory that is not mapped for the device, or that it
   *   can not point to), EBADF (the queue was given back); then an `NvmeError` with what the controller said; ECANCELED (aborted, or the
   *   controller was reset or closed meanwhile), ETIMEDOUT. When it rejects, the controller uses the memory no more
   */
  read(options: AttachedReadOptions): Promise<void>;
  /** Writes blocks from memory. Otherwise as {@link read}; a write is durable once `flush` has resolved, or with `fua`. */
  write(options: AttachedWriteOptions): Promise<void>;
  /** Makes all that was written, and has resolved, durable. */
  flush(options?: NvmeCallOptions): Promise<void>;
}
