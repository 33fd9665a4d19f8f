/** The state of a copy engine that more than one thread looks at. */
import type { LentStores } from '../bus/lent-registers.js';

/** Words of it. */
export const ENGINE_WORD = {
  /** Whose turn it is: see `Turn`. */
  OWNER: 0,
  /** 1: the engine was closed, or is gone. */
  ENDED: 1,
  /** Descriptors written, announced, and completions taken. The last two are kept up to date while another thread has it. */
  TAIL: 2,
  RUNG: 3,
  HEAD: 4,
  COUNT: 16,
} as const;

/** What another thread needs to work an engine: plain data. */
export interface CopyEngineFacts {
  /** The device's name, its driver, and the domain whose table is among what is shared. */
  readonly device: string;
  readonly driver: string | undefined;
  readonly domain: { readonly name: string; readonly kind: string } | undefined;
  readonly capacity: number;
  readonly maxTransfer: number;
  /** VAs of the two rings. */
  readonly descriptors: number;
  readonly completions: number;
  /** How it stores the doorbell; absent: the process that has the device does, when it is called. */
  readonly registers?: LentStores;
  /** The eventfd that calls it, for another process. */
  readonly calls?: number;
}

/** The code of a copy that was given up because the thread that had the engine ended: how much of it was done is not known. */
export const COPY_ABANDONED = 0xff;
