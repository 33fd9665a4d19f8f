/** Which blocks a benchmark of storage accesses next, and how: fio's patterns, by fio's names. */

/** Every pattern; the `rand` ones take blocks at random, the others in order. */
export const PATTERNS = ['read', 'write', 'randread', 'randwrite', 'rw', 'randrw'] as const;

/** The name of a pattern. */
export type PatternName = (typeof PATTERNS)[number];

/** Does this pattern write? */
export function writes(pattern: PatternName): boolean {
  return pattern !== 'read' && pattern !== 'randread';
}

/** A sequence of accesses to `units` units of one size. Asking for the next one allocates nothing. */
export class Workload {
  readonly #units: number;
  readonly #isRandom: boolean;
  /** Of 2^32 accesses, how many read. */
  readonly #reads: number;
  /** Of xorshift; never 0. */
  #state: number;
  #at: number;
  /** Does the access that {@link next} returned last write? */
  isWrite = false;

  /**
   * @param units how many there are, at least 1
   * @param readPercent how many of 100 accesses read, in the mixed patterns
   * @param seed the same seed gives the same sequence
   * @param first the unit that a pattern in order begins with
   */
  constructor(pattern: PatternName, units: number, readPercent: number, seed: number, first = 0) {
    this.#units = units;
    this.#isRandom = pattern.startsWith('rand');
    const percent = !writes(pattern) ? 100 : pattern.endsWith('rw') ? readPercent : 0;
    this.#reads = (percent / 100) * 2 ** 32;
    this.#state = (seed ^ 0x9e3779b9) >>> 0 || 1;
    this.#at = first;
  }

  /** The next unit, 0 to `units` less one. */
  next(): number {
    this.isWrite = this.#reads < 2 ** 32 && this.#random() >= this.#reads;
    if (!this.#isRandom) {
      const at = this.#at;
      this.#at = at + 1 === this.#units ? 0 : at + 1;
      return at;
    }
    // 53 random bits, for more units than 2^32.
    return Math.floor(((this.#random() * 2 ** 21 + (this.#random() >>> 11)) / 2 ** 53) * this.#units);
  }

  /** 32 random bits (xorshift32 by George Marsaglia, 2003). */
  #random(): number {
    let x = this.#state;
    x ^= x << 13;
    x ^= x >>> 17;
    x ^= x << 5;
    return (this.#state = x >>> 0);
  }
}
