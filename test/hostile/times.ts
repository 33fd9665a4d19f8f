/** How long it took until a process was back after an attack: serving the next one, or done with a bad one. */

/** A machine that has nothing else to do needs less. milliseconds */
const SOON = 1000;

/** The longest time of each kind of attack. */
export class Times {
  readonly #longest = new Map<string, number>();

  /** @param kind what it is a kind of, with words in common. @param ms milliseconds */
  note(kind: string, ms: number): void {
    this.#longest.set(kind, Math.max(ms, this.#longest.get(kind) ?? 0));
  }

  /** Does `work`, and notes how long that took. */
  async noting<T>(kind: string, work: () => Promise<T>): Promise<T> {
    const begin = performance.now();
    try {
      return await work();
    } finally {
      this.note(kind, performance.now() - begin);
    }
  }

  /** The longest first; those of more than a second are marked. */
  lines(most = 12): string[] {
    const sorted = [...this.#longest].sort(([, a], [, b]) => b - a);
    return sorted
      .slice(0, most)
      .map(([kind, ms]) => `${ms.toFixed(0).padStart(6)} ms  ${kind}${ms > SOON ? '  MORE THAN 1 s' : ''}`);
  }
}
