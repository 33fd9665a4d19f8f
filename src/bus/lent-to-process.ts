/** A queue of a device that another process works: what the primary sends, and what it keeps for it. */
import type { ExternalMemory } from '../memory/external.js';
import type { Holders } from '../memory/shared/holders.js';
import type { RegisterFile } from './lent-registers.js';

/** What a driver needs to lend a queue to another process. */
export interface ProcessLoan {
  /** The table of the processes that share. */
  readonly holders: Holders;
  /** Tells the process to look at the state of the queue, as it has changed. */
  tell(): void;
}

/** A queue that another process works. Its rings and its state are in memory with descriptors. */
export interface LentToProcess {
  /** Plain data, for the driver's code in the other process. */
  readonly facts: object;
  /** What the process maps: the state first. */
  readonly memories: readonly ExternalMemory[];
  /** The eventfd that calls this process. */
  readonly calls: number;
  /** The eventfd of its interrupts, if they are its alone. */
  readonly interrupt: number | undefined;
  /** Its doorbells, if they can be mapped. Else this process stores them when it is called. */
  readonly registers: RegisterFile | undefined;
  /** The process lets go of it, or has ended. Once it resolves the device reaches no memory for it any more. */
  close(): Promise<void>;
}
