/** A queue pair that is offered to other threads, in the thread that opened it. */
import type { Device } from '../../bus/model.js';
import { DmaError, undoAll } from '../../errors.js';
import type { Holders } from '../../memory/shared/holders.js';
import type { Share } from '../../memory/shared/shares.js';
import type { AttachedNvmeQueue, NvmeQueue } from './queue.js';
import { Turn, TURN } from '../../memory/shared/turn.js';
import { ABORT, QUEUE_WORD as WORD, RUN } from './queue-state.js';

/** What was lent with a queue, and who has it. */
export class Lending {
  readonly queue: NvmeQueue;
  /** What other threads get; `undefined` for the one process that has it. */
  readonly share: Share<AttachedNvmeQueue> | undefined;
  /** Does the controller have it? */
  exists = true;
  /** While the controller makes it anew. */
  making: Promise<void> | undefined;
  readonly #device: Device;
  readonly #turn: Turn;
  readonly #loans: Disposable[];
  readonly #wake: () => void;

  /**
   * @param wake wakes the thread that waits for its interrupt
   * @param loans what has to stay while other threads can use the queue: given back by {@link end}
   */
  constructor(
    device: Device,
    queue: NvmeQueue,
    share: Share<AttachedNvmeQueue> | undefined,
    holders: Holders,
    loans: Disposable[],
    wake: () => void,
  ) {
    this.#device = device;
    this.queue = queue;
    this.share = share;
    this.#turn = new Turn(queue.state.words, WORD.OWNER, holders);
    this.#loans = loans;
    this.#wake = wake;
  }

  /** Lets another thread have it, from where it is. */
  offer(): void {
    const { queue } = this;
    queue.save();
    queue.state.aborts.fill(ABORT.NONE);
    queue.state.store(WORD.RESET, 0);
    queue.refuse(() => this.busy('nvmeQueue'));
    this.#turn.offer();
  }

  /** Is it out of the maker's hands? */
  get isOut(): boolean {
    return this.#turn.isOut;
  }

  /** A thread has ended. */
  forget(holder: number): void {
    this.#turn.forget(holder);
  }

  /** The thread that has it, as a text; `undefined` if it has ended, or nobody has it. */
  get user(): string | undefined {
    return this.#turn.user;
  }

  /**
   * Is nobody at its rings? So it is when no thread has it, or the one that has it knows that the controller is stopped.
   * Afterwards only {@link tell} lets a thread use them again.
   */
  get isQuiet(): boolean {
    const { state } = this.queue;
    return this.user === undefined || state.load(WORD.SEEN) === state.load(WORD.EPOCH);
  }

  /** Tells the thread that has it what the controller does. */
  tell(run: number, shadow: boolean): void {
    const { state } = this.queue;
    state.store(WORD.BROKEN, run === RUN.ON ? 0 : state.load(WORD.BROKEN));
    state.tell(run, shadow);
    // It may be too late: the loan has ended, or nobody waits.
    undoAll([this.#wake]);
  }

  /**
   * Takes it out of the hands of nobody, or of a thread that has ended.
   *
   * @returns can it go on as it is? False: the controller has to make it anew
   * @throws DmaError EBUSY while a thread has it
   */
  take(operation: string): boolean {
    const { state } = this.queue;
    const how = this.#turn.takeBack();
    if (how === 'busy') throw this.busy(operation);
    return how === 'whole' && this.exists && state.load(WORD.BROKEN) === 0;
  }

  /** EBUSY, naming who has it. */
  busy(operation: string): DmaError {
    const { user, queue } = this;
    const isOffered = this.#turn.owner === TURN.OFFERED;
    return new DmaError({
      code: 'EBUSY',
      operation,
      device: this.#device.name,
      reason:
        user !== undefined
          ? `queue ${queue.id} is with ${user}`
          : isOffered
            ? `queue ${queue.id} is offered to other threads or processes`
            : `queue ${queue.id} was with a thread that has ended`,
      hint:
        user !== undefined
          ? 'it is free when that thread disposes it, or ends'
          : 'takeBack(queue) gives it back to this thread',
    });
  }

  /** Gives back all that was lent with it: nobody can use it any more. */
  end(): unknown[] {
    this.queue.refuse(undefined);
    // Who has it of a lost device knows that, and uses it no more.
    if (this.user === undefined) this.share?.end('nvme.takeBack');
    else this.share?.lose();
    return undoAll(this.#loans.splice(0).map((loan) => () => loan[Symbol.dispose]()));
  }
}
