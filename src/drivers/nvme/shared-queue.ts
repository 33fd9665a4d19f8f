/** What `queue.share()` tells another thread. */
import type { LentStores } from '../../bus/lent-registers.js';

/** Memory of a queue, for another thread. */
export interface SharedPart {
  readonly va: number;
  readonly length: number;
  readonly iova: number;
}

/** What another thread needs to work a queue: plain data. */
export interface NvmeQueueFacts {
  /** The device's name. */
  readonly device: string;
  readonly id: number;
  readonly entries: number;
  /** Does the controller interrupt for it? */
  readonly interrupts: boolean;
  readonly pageSize: number;
  readonly maxTransfer: number;
  readonly listBytes: number;
  readonly submissions: SharedPart;
  readonly completions: SharedPart;
  readonly lists: SharedPart;
  /** Its doorbells: where they are in the registers, bytes. */
  readonly registers: LentStores;
  readonly tail: number;
  readonly head: number;
  /** Memory instead of doorbells, and their indexes in it. */
  readonly shadow:
    | { readonly values: number; readonly events: number; readonly length: number; readonly indexes: readonly number[] }
    | undefined;
  /** The submission ring in the controller's memory buffer: bytes from the beginning of the registers. */
  readonly remote: { readonly registers: LentStores; readonly offset: number } | undefined;
}
