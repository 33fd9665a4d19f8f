/** How drivers wait for a device without holding up the event loop. */
import { DmaError } from '../errors.js';
import { clearTimeout, now, setImmediate, setTimeout } from '../timers.js';

/** Turns of the event loop that a wait spends before it sleeps: a device that is quick is met without a timer. */
export const SPIN_TURNS = 50;

/** What a wait sleeps on; whoever knows that something happened (an interrupt) rings it. */
export class Bell {
  #wake: (() => void) | undefined;

  /** Ends the sleep that is going on, if any. */
  ring(): void {
    this.#wake?.();
  }

  /** Resolves after `ms` milliseconds, or when the bell is rung; with 0 when the event loop has turned. One at a time. */
  sleep(ms: number): Promise<void> {
    return new Promise((resolve) => {
      if (ms === 0) {
        setImmediate(resolve);
        return;
      }
      const timer = setTimeout(() => this.ring(), ms);
      this.#wake = () => {
        clearTimeout(timer);
        this.#wake = undefined;
        resolve();
      };
    });
  }
}

/**
 * Resolves once `condition` holds; it is tried at every turn of the event loop at first, then every millisecond and
 * whenever `bell` is rung. Rejects with what `condition` throws, and with ETIMEDOUT after `timeoutMs` milliseconds.
 *
 * @param operation and what is waited for, a clause, for the error
 */
export async function until(
  condition: () => boolean,
  {
    operation,
    what,
    timeoutMs,
    bell = new Bell(),
  }: { operation: string; what: string; timeoutMs: number; bell?: Bell },
): Promise<void> {
  const deadline = now() + timeoutMs;
  for (let turns = 0; !condition(); turns++) {
    if (now() >= deadline)
      throw new DmaError({ code: 'ETIMEDOUT', operation, reason: `${what} took longer than ${timeoutMs} ms` });
    await bell.sleep(turns < SPIN_TURNS ? 0 : 1);
  }
}
