/** A thing that one thread has at a time: a word says whose turn it is. */
import type { Holders } from './holders.js';

/** Values of the word; others are numbers of holders. */
export const TURN = {
  /** The thread that made it has it. */
  MAKER: 0,
  /** Whoever attaches first has it. Above all holders. */
  OFFERED: 0x10000,
  /** Who had it has ended, and its number may be another thread's by now. */
  ENDED: 0x10001,
} as const;

/** Who has it instead, for messages, when {@link Turn.take} was in vain; not for {@link TURN.MAKER}. */
export function whoHas(owner: number, holders: Holders): string {
  const isThere = owner !== TURN.ENDED && holders.isAlive(owner);
  return isThere ? `${holders.describe(owner)} has` : 'a thread that has ended had';
}

/** The word of one thing. Each thread has an object of its own. */
export class Turn {
  readonly #words: Int32Array;
  readonly #at: number;
  readonly #holders: Holders;

  /** @param at index of the word */
  constructor(words: Int32Array, at: number, holders: Holders) {
    this.#words = words;
    this.#at = at;
    this.#holders = holders;
  }

  /** Who has it: a holder, or a value of {@link TURN}. */
  get owner(): number {
    return Atomics.load(this.#words, this.#at);
  }

  /** Is it out of the maker's hands? */
  get isOut(): boolean {
    return this.owner !== TURN.MAKER;
  }

  /** The living thread that has it, as a text; `undefined` if it has ended, or nobody has it. */
  get user(): string | undefined {
    const { owner } = this;
    const isThere = owner !== TURN.MAKER && owner !== TURN.OFFERED && this.#holders.isAlive(owner);
    return isThere ? this.#holders.describe(owner) : undefined;
  }

  /** Whoever attaches first has it from now on. */
  offer(): void {
    Atomics.store(this.#words, this.#at, TURN.OFFERED);
  }

  /** Takes what is offered, for a thread. @returns who has it instead, {@link TURN.OFFERED} if this thread has it now */
  take(holder: number): number {
    return Atomics.compareExchange(this.#words, this.#at, TURN.OFFERED, holder);
  }

  /** @internal For `Shares.addRecovery`: a thread has ended. Its number is given to others after this. */
  forget(holder: number): void {
    Atomics.compareExchange(this.#words, this.#at, holder, TURN.ENDED);
  }

  /** A thread lets go of it. */
  leave(holder: number): void {
    Atomics.compareExchange(this.#words, this.#at, holder, TURN.OFFERED);
  }

  /**
   * The maker takes it back, from nobody, or from a thread that has ended.
   *
   * @returns `whole`, `ended` if the thread that had it did not let go of it, `busy` while a thread has it
   */
  takeBack(): 'whole' | 'ended' | 'busy' {
    // Whoever attaches at the same time has it.
    const before = Atomics.compareExchange(this.#words, this.#at, TURN.OFFERED, TURN.MAKER);
    if (before === TURN.MAKER || before === TURN.OFFERED) return 'whole';
    if (this.#holders.isAlive(before)) return 'busy';
    Atomics.store(this.#words, this.#at, TURN.MAKER);
    return 'ended';
  }
}
