/** What a program hands over to its new version. */
import type { DmaError } from './errors.js';
import type { JsonObject } from './fields.js';

/** Something that stopped, so that another process can continue it. Exactly one of `resume` and `end` follows. */
export interface Paused {
  readonly state: JsonObject;
  /** Descriptors that the other process needs. They stay the owner's. */
  readonly fds: readonly number[];
  /** It was not handed over: goes on. */
  resume(): void;
  /** The other process has it: gives up this process's share, and changes nothing for the device. */
  end(error: DmaError): void;
}
