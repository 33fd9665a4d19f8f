/**
 * Work that may take long and takes a thread, such as calls that wait for a peer to be found: one at a time, so that others that
 * need threads have some, and those who ask in turn, so that who asks often does not keep the others waiting.
 */

/** Who waits for a turn. */
type Wake = () => void;

/** See the head of the file. */
export class Turns {
  /** By who asks; who is next is first. */
  readonly #waiting = new Map<string, Wake[]>();
  #busy = false;

  /**
   * Does `work` when its turn comes.
   *
   * @param asker who asks, such as the address of a peer
   * @param signal gives up while it waits: the promise rejects with its reason. Work that has begun goes on.
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
        // As throwIfAborted: whatever the reason is.
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
    // Behind all others.
    if (others.length > 0) this.#waiting.set(asker, others);
    wake();
  }
}
