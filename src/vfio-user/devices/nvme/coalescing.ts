/**
 * Interrupt coalescing: one interrupt for several completions of I/O queues, as the host has set it (NVM Express Base
 * Specification 1.4, sections 5.21.1.8 and 5.21.1.9).
 */
import { clearTimeout, setTimeout } from '../../../timers.js';
import type { Features } from './features.js';

/** Milliseconds in a unit of the host's time. */
const UNIT_MS = 0.1;

/** Interrupts that are due, by vector. */
export class Coalescing {
  readonly #features: Features;
  readonly #raise: (vector: number) => void;
  /** Completions that no interrupt has told of, and the timer that will. */
  readonly #due = new Map<number, { count: number; readonly timer: ReturnType<typeof setTimeout> }>();

  constructor(features: Features, raise: (vector: number) => void) {
    this.#features = features;
    this.#raise = raise;
  }

  /** `count` completions of I/O queues of this vector were posted. */
  posted(vector: number, count: number): void {
    const { least, time } = this.#features.coalescing(vector);
    const due = this.#due.get(vector);
    const sum = (due?.count ?? 0) + count;
    if (time === 0 || sum >= least) this.raise(vector);
    else if (due !== undefined) due.count = sum;
    else {
      const timer = setTimeout(() => this.raise(vector), time * UNIT_MS);
      this.#due.set(vector, { count: sum, timer });
    }
  }

  /** Raises an interrupt now, which tells of all that has been posted. */
  raise(vector: number): void {
    this.#forget(vector);
    this.#raise(vector);
  }

  /** The host has changed its mind: what is due is told now. */
  changed(): void {
    for (const vector of [...this.#due.keys()]) this.raise(vector);
  }

  /** Forgets what is due: the queues are gone. */
  reset(): void {
    for (const vector of [...this.#due.keys()]) this.#forget(vector);
  }

  #forget(vector: number): void {
    clearTimeout(this.#due.get(vector)?.timer);
    this.#due.delete(vector);
  }
}
