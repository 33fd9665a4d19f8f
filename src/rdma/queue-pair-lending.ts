/** A queue pair that is offered to other threads, in the thread that made it. */
import { isMainThread } from 'node:worker_threads';
import type { Domain } from '../dma/domain.js';
import { DmaError } from '../errors.js';
import type { Shared } from '../memory/shared/shared.js';
import { notShareable, type Share, type Shares } from '../memory/shared/shares.js';
import { Turn } from '../memory/shared/turn.js';
import type { VerbsPort } from '../platform/rdma/verbs-port.js';
import type { VerbsQp } from '../platform/rdma/verbs-types.js';
import { now } from '../timers.js';
import { pairName, type AttachedQueuePair } from './attached-queue-pair.js';
import type { CompletionQueue } from './completion-queue.js';
import type { Destination } from './queue-pair-requests.js';
import { PAIR_RUN as RUN, PAIR_WORD as WORD, type QueuePairFacts } from './queue-pair-state.js';

/** What is lent. */
export interface LentPair {
  readonly queue: {
    readonly qp: VerbsQp;
    readonly completions: CompletionQueue;
    readonly receiveCompletions: CompletionQueue;
  };
  /** The device's name. */
  readonly device: string;
  readonly domain: Domain;
  /** Absent for a device of no `Eal`. */
  readonly shares: Shares | undefined;
  readonly verbs: VerbsPort;
}

/** A call of a driver takes some microseconds. This is for a thread that gets no time to run, in milliseconds. */
const MOST_INSIDE_MS = 1000;

/** For pauses. */
const bed = new Int32Array(new SharedArrayBuffer(4));

/** What was lent with a queue pair, and who has it. */
export class QueuePairLending {
  readonly #device: string;
  readonly #words: Int32Array;
  readonly #turn: Turn;
  readonly #share: Share<AttachedQueuePair>;
  readonly #unwatch: () => void;
  #pins: readonly Disposable[] = [];

  /** Offers the queue pair. @throws DmaError EBUSY, ENOTSUP; then nothing has changed */
  constructor(
    { queue, device, domain, shares, verbs }: LentPair,
    destinations: readonly Destination[],
    operation: string,
  ) {
    const { qp, completions, receiveCompletions } = queue;
    if (shares === undefined) throw notShareable(operation);
    const refused = (reason: string, hint: string): DmaError =>
      new DmaError({ code: 'ENOTSUP', operation, device, reason, hint });
    if (!isMainThread)
      throw refused('the queue pair ends with this worker thread', 'open the device in the main thread');
    this.#device = device;
    this.#words = new Int32Array(new SharedArrayBuffer(WORD.COUNT * 4));
    const turn = new Turn(this.#words, WORD.OWNER, shares.holders);
    this.#turn = turn;
    const isOne = completions === receiveCompletions;
    const lent: CompletionQueue[] = [];
    try {
      for (const each of new Set([completions, receiveCompletions])) {
        each.lend(this, isOne ? 2 : 1, operation);
        lent.push(each);
      }
      const batch = completions.completions.slots;
      const receiveBatch = receiveCompletions.completions.slots;
      this.#pins = destinations.map(({ address }) => address.pin());
      const facts: QueuePairFacts = {
        ...{ device, loan: verbs.lend(qp), batch, receiveBatch },
        destinations: destinations.map(({ address, number, qkey }) => ({ ah: address.handle.address, number, qkey })),
      };
      this.#share = shares.add<AttachedQueuePair>(
        {
          kind: 'queue-pair',
          what: pairName(facts),
          facts: { text: JSON.stringify(facts) },
          more: [this.#words.buffer as SharedArrayBuffer, ...domain.sharedTable],
        },
        operation,
      );
    } catch (error) {
      for (const each of lent) each.takeBack();
      this.#unpin();
      throw error;
    }
    this.#unwatch = shares.addRecovery((id) => turn.forget(id));
    turn.offer();
  }

  /** What other threads get. */
  get description(): Shared<AttachedQueuePair> {
    return this.#share.description;
  }

  /** The living thread that has it, as a text. */
  get user(): string | undefined {
    return this.#turn.user;
  }

  /** The completion queue has failed, or the device is gone: the thread that has it is told. */
  failed(error: DmaError): void {
    const isLost = error.code === 'ENODEV';
    Atomics.store(this.#words, WORD.RUN, isLost ? RUN.LOST : RUN.FAILED);
    // What is lost holds up nothing.
    if (isLost) this.#share.lose();
  }

  /**
   * Takes it out of the hands of nobody, or of a thread that has ended.
   *
   * @returns did that thread give it back?
   * @throws DmaError EBUSY while a thread has it
   */
  take(operation: string): boolean {
    const how = this.#turn.takeBack();
    if (how === 'busy') throw this.busy(operation);
    return how === 'whole';
  }

  /** EBUSY, naming who has it. */
  busy(operation: string): DmaError {
    const { user } = this;
    const reason =
      user === undefined
        ? 'the queue pair is offered to other threads, or was with one that has ended'
        : `the queue pair is with ${user}`;
    const hint =
      user === undefined
        ? 'takeBack() gives it back to this thread'
        : 'it is free when that thread disposes it, or ends';
    return new DmaError({ code: 'EBUSY', operation, device: this.#device, reason, hint });
  }

  /**
   * Nobody can use it any more, so that it can be destroyed.
   *
   * @throws DmaError EBUSY while a thread has it; but not if it has failed: then that thread finds out with its next call
   */
  end(operation: string): void {
    if (Atomics.load(this.#words, WORD.RUN) === RUN.ON) {
      this.take(operation);
      this.#share.end(operation);
      this.#unwatch();
      this.#unpin();
      return;
    }
    // The thread looks at the word after it has said that it is inside. So it is outside for good once it was seen outside.
    for (const end = now() + MOST_INSIDE_MS; this.#isInside; Atomics.wait(bed, 0, 0, 0.05))
      if (now() > end) throw this.busy(operation);
    this.#share.lose();
    this.#unwatch();
    this.#unpin();
  }

  #unpin(): void {
    for (const pin of this.#pins) pin[Symbol.dispose]();
  }

  get #isInside(): boolean {
    return Atomics.load(this.#words, WORD.INSIDE) !== 0 && this.user !== undefined;
  }
}
