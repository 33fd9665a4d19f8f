/** The state of a shared queue pair that more than one thread looks at. */
import type { VerbsLoan } from '../platform/rdma/verbs-types.js';

/** Words of it. */
export const PAIR_WORD = {
  /** Whose turn it is: see `Turn`. */
  OWNER: 0,
  /** A value of {@link PAIR_RUN}. */
  RUN: 1,
  /** 1 while the thread that has it is inside a call of the device's driver; on a cache line of its own. */
  INSIDE: 16,
  COUNT: 32,
} as const;

/** What became of it. */
export const PAIR_RUN = {
  ON: 0,
  /** Its completion queue has failed. */
  FAILED: 1,
  /** The device is gone. */
  LOST: 2,
} as const;

/** What another thread needs to work a queue pair: plain data. */
export interface QueuePairFacts {
  /** The device's name. */
  readonly device: string;
  readonly loan: VerbsLoan;
  /** For datagrams: addresses of `ibv_ah` structs, which stay as long as it is lent, and where they lead. */
  readonly destinations: readonly { readonly ah: number; readonly number: number; readonly qkey: number }[];
  /** Most completions of one poll, of both completion queues. */
  readonly batch: number;
  readonly receiveBatch: number;
}
