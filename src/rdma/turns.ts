/**
 * Runs long work that takes a thread, such as calls that resolve a peer, one at a time, so that others have threads
 * left. Parties take turns, so that one that asks often does not delay the others.
 */

/** Wakes a waiting call. */
type Wake = () => void;

/** The queue of such work. */
export class Turns {
  /** Waiting calls by party; the next party comes first. */
  readonly #waiting = new Map<string, Wake[]>();
  #busy = false;

  /**
   * Runs `work` when its turn comes.
   *
   * @param asker the party it is for, such as the address of a peer
   * @param signal cancels while waiting: the promise rejects with its reason. Work that has begun continues.
   */
  async run<T>(asker: string, work: () => Promise<T>, signal?: AbortSignal): Promise<T> {
    signal?.throwIfAborted();
    if (this.#busy) await this.#wait(asker, signal);
    else this.#busy = true;
    try {
      return await work();
    } finally {
      this.#next();
    }
  }

  async #wait(asker: string, signal: AbortSignal | undefined): Promise<void> {
    await new Promise<void>((resolve, reject) => {
      const wake = (): void => {
        signal?.removeEventListener('abort', giveUp);
        resolve();
      };
      const giveUp = (): void => {
        this.#forget(asker, wake);
        // Like throwIfAborted, with any reason.
        reject(signal?.reason as Error);
      };
      signal?.addEventListener('abort', giveUp, { once: true });
      const own = this.#waiting.get(asker);
      if (own === undefined) this.#waiting.set(asker, [wake]);
      else own.push(wake);
    });
  }

  #forget(asker: string, wake: Wake): void {
    const own = this.#waiting.get(asker)?.filter((each) => each !== wake) ?? [];
    if (own.length > 0) this.#waiting.set(asker, own);
    else this.#waiting.delete(asker);
  }

  #next(): void {
    const [first] = this.#waiting;
    if (first === undefined) {
      this.#busy = false;
      return;
    }
    const [asker, own] = first;
    const [wake, ...others] = own;
    this.#waiting.delete(asker);
    // The party goes to the end of the queue.
    if (others.length > 0) this.#waiting.set(asker, others);
    wake();
  }
}
