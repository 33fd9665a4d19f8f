/**
 * How much more memory this process may pin, known without asking the kernel each time: reading it costs more than a small
 * mapping does. What was read once holds good until it is used up, since what others lock meanwhile the kernel still refuses.
 */
import type { LimitsPort } from '../platform/ports.js';

/** See the head of the file. */
export class LockedBudget {
  readonly #limits: Pick<LimitsPort, 'lockedMemory'>;
  /** bytes that were free when the kernel was asked, less what was taken since */
  #left = 0;

  constructor(limits: Pick<LimitsPort, 'lockedMemory'>) {
    this.#limits = limits;
  }

  /** Takes `bytes` out of what is left. @returns the limit and what is used of it, in bytes, when there is not so much */
  take(bytes: number): { readonly limit: number; readonly used: number } | undefined {
    if (bytes > this.#left) {
      const facts = this.#limits.lockedMemory();
      this.#left = facts.limit - facts.used;
      if (bytes > this.#left) return facts;
    }
    this.#left -= bytes;
    return undefined;
  }
}
