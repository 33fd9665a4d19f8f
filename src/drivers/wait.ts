/** Waiting for a device without blocking the event loop. */
import { DmaError } from '../errors.js';
import { clearTimeout, now, setImmediate, setTimeout } from '../timers.js';

/** Turns of the event loop that a wait polls before it sleeps: a fast device needs no timer. */
export const SPIN_TURNS = 50;

/** A sleep that can be ended early, for example by an interrupt. */
export class Bell {
  #wake: (() => void) | undefined;

  /** Ends the current sleep, if any. */
  ring(): void {
    this.#wake?.();
  }

  /**
   * Resolves after `ms` milliseconds, or when the bell is rung; with 0 after a turn of the event loop. One at a time.
   */
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
 * Resolves once `condition` holds. It is tried at every turn of the event loop at first, then every millisecond and
 * whenever `bell` is rung. Rejects with an exception of `condition`, and with ETIMEDOUT after `timeoutMs` milliseconds.
 *
 * @param operation for the error, with `what`: the awaited event, as a clause
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
