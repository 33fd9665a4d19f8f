/** What `queue.share()` tells another thread. */
import type { DeviceFacts } from '../../bus/attached-device.js';
import type { PointerRules } from './data-pointer.js';
import type { SharedPart } from '../dma-memory.js';
import type { LentStores } from '../../bus/lent-registers.js';

/** What another thread needs to work a queue: plain data. */
export interface NvmeQueueFacts {
  /** The device's name. */
  readonly device: string;
  /** Its driver, and the domain that its memory is mapped in: the table of that is among what is shared. */
  readonly driver: string | undefined;
  readonly domain: DeviceFacts['domain'];
  readonly id: number;
  readonly entries: number;
  /** Does the controller interrupt for it? */
  readonly interrupts: boolean;
  /** The eventfd of its interrupts, if they are its alone. */
  readonly interrupt: number | undefined;
  /** The eventfd that calls the thread which has the controller. */
  readonly calls: number;
  /** The time limit of calls that give none, and of aborted commands, milliseconds. */
  readonly timeoutMs: number;
  readonly abortMs: number;
  readonly rules: PointerRules;
  readonly pageSize: number;
  readonly maxTransfer: number;
  readonly listBytes: number;
  readonly submissions: SharedPart;
  readonly completions: SharedPart;
  readonly lists: SharedPart;
  /** How it stores to the doorbells; absent: the thread that has the controller does, when it is called. */
  readonly registers: LentStores | undefined;
  /** Where they are in the registers, bytes. */
  readonly tail: number;
  readonly head: number;
  /** Memory instead of doorbells, and their indexes in it. */
  readonly shadow:
    | { readonly values: number; readonly events: number; readonly length: number; readonly indexes: readonly number[] }
    | undefined;
  /** The submission ring in the controller's memory buffer: bytes from the beginning of the registers. */
  readonly remote: { readonly registers: LentStores; readonly offset: number } | undefined;
}
