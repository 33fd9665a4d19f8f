/** Hands things that happen to everybody who listens, as asynchronous iterators. */

/** What nobody takes is kept, up to so many; the oldest go first. */
const MOST_KEPT = 256;

/** A feed of things that happen. */
export class Feed<T> {
  readonly #listeners = new Set<Listener<T>>();
  #ended = false;

  /** Those from now on, until the feed ends. */
  listen(): AsyncGenerator<T, void> {
    const listener = new Listener<T>();
    // It hears from the call on, and not only from the first `next`.
    this.#listeners.add(listener);
    if (this.#ended) listener.end();
    return this.#heardBy(listener);
  }

  tell(event: T): void {
    for (const listener of this.#listeners) listener.add(event);
  }

  end(): void {
    this.#ended = true;
    for (const listener of this.#listeners) listener.end();
  }

  async *#heardBy(listener: Listener<T>): AsyncGenerator<T, void> {
    try {
      for (;;) {
        const event = await listener.next();
        if (event === undefined) return;
        yield event.value;
      }
    } finally {
      this.#listeners.delete(listener);
    }
  }
}

class Listener<T> {
  readonly #kept: { readonly value: T }[] = [];
  #wake: (() => void) | undefined;
  #ended = false;

  add(value: T): void {
    if (this.#kept.length === MOST_KEPT) this.#kept.shift();
    this.#kept.push({ value });
    this.#wake?.();
  }

  end(): void {
    this.#ended = true;
    this.#wake?.();
  }

  async next(): Promise<{ readonly value: T } | undefined> {
    while (this.#kept.length === 0 && !this.#ended)
      await new Promise<void>((resolve) => {
        this.#wake = resolve;
      });
    return this.#kept.shift();
  }
}
