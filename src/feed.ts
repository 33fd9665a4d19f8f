/** Hands things that happen to everybody who listens, as asynchronous iterators. */

/** What nobody takes is kept, up to so many; the oldest go first. */
const MOST_KEPT = 256;

/** A feed of things that happen. */
export class Feed<T> {
  readonly #listeners = new Set<Listener<T>>();
  #ended = false;

  /** Those from now on, until the feed ends. */
  listen(): AsyncGenerator<T, void> {
    // It hears from the call on, and not only from the first `next`.
    const listener = new Listener<T>(() => this.#listeners.delete(listener));
    this.#listeners.add(listener);
    if (this.#ended) listener.end();
    return listener;
  }

  tell(event: T): void {
    for (const listener of this.#listeners) listener.add(event);
  }

  end(): void {
    this.#ended = true;
    for (const listener of this.#listeners) listener.end();
  }
}

/** What one listener hears. A generator function would do, but it is left only when the next thing happens, if it waits for one. */
class Listener<T> implements AsyncGenerator<T, void> {
  readonly #kept: IteratorYieldResult<T>[] = [];
  readonly #waiting: ((result: IteratorResult<T, void>) => void)[] = [];
  readonly #left: () => void;
  #ended = false;

  /** @param left called when it ends */
  constructor(left: () => void) {
    this.#left = left;
  }

  add(value: T): void {
    const first = this.#waiting.shift();
    if (first !== undefined) return first({ done: false, value });
    if (this.#kept.length === MOST_KEPT) this.#kept.shift();
    this.#kept.push({ done: false, value });
  }

  /** Nothing more will come; what is kept can still be taken. */
  end(): void {
    this.#ended = true;
    this.#left();
    for (const resolve of this.#waiting.splice(0)) resolve(DONE);
  }

  next(): Promise<IteratorResult<T, void>> {
    const kept = this.#kept.shift();
    if (kept !== undefined) return Promise.resolve(kept);
    if (this.#ended) return Promise.resolve(DONE);
    return new Promise((resolve) => this.#waiting.push(resolve));
  }

  return(): Promise<IteratorResult<T, void>> {
    this.#kept.length = 0;
    this.end();
    return Promise.resolve(DONE);
  }

  async throw(error: unknown): Promise<never> {
    await this.return();
    throw error;
  }

  [Symbol.asyncIterator](): this {
    return this;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.return();
  }
}

const DONE = { done: true, value: undefined } as const;
