/**
 * How much more memory this process may pin, without asking the kernel each time: that costs more than a small mapping.
 * The known amount is used up before the kernel is asked again; if other processes lock memory meanwhile, the kernel
 * still refuses.
 */
import type { LimitsPort } from '../platform/ports.js';

/** The remaining budget of lockable memory. */
export class LockedBudget {
  readonly #limits: Pick<LimitsPort, 'lockedMemory'>;
  /** bytes that were free when the kernel was asked, minus what was taken since */
  #left = 0;

  constructor(limits: Pick<LimitsPort, 'lockedMemory'>) {
    this.#limits = limits;
  }

  /** Takes `bytes` from what is left. @returns the limit and what is used of it, in bytes, if there is not enough */
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
