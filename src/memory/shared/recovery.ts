/**
 * Gives back what threads and processes had that have ended, one thread at a time. A lock in the table guards it: the place of somebody
 * who has ended is not given to another one while things of the former are still taken back.
 */
import type { Holders } from './holders.js';
import { RobustLock } from './robust-lock.js';

/** The recovery of one table. Any number of objects in any number of threads work on one table. */
export class Recovery {
  readonly #holders: Holders;
  readonly #lock: RobustLock;

  /** @param holders this thread enters it, if it has not yet */
  constructor(holders: Holders) {
    this.#holders = holders;
    const { words, at } = holders.recoveryLock;
    this.#lock = new RobustLock(words, at, holders, 'the table of threads and processes');
  }

  /**
   * Calls `giveBack` for each that has ended and was not released. None of them is released by another thread meanwhile.
   *
   * @returns the sum of what it returned
   * @throws DmaError ETIMEDOUT if a thread that is stopped is in the middle of this; if the kernel can not tell who lives (EMFILE)
   */
  run(giveBack: (id: number) => number): number {
    if (this.#holders.gone().next().done === true) return 0;
    this.#lock.lock('recover');
    try {
      let sum = 0;
      for (const id of this.#holders.gone()) sum += giveBack(id);
      return sum;
    } finally {
      this.#lock.unlock();
    }
  }

  /** As {@link run}; their places in the table can be given to others then. Everything that they had must be given back by this. */
  release(giveBack: (id: number) => void): void {
    this.run((id) => {
      giveBack(id);
      this.#holders.release(id);
      return 0;
    });
  }
}
