/** A queue pair that another thread made, in the thread that works it. */
import { isA, mustBeMs, mustBeWhole } from '../check.js';
import { AttachedTable } from '../dma/attached-table.js';
import { KeyCache } from '../dma/key-cache.js';
import { DmaError } from '../errors.js';
import type { Hold } from '../memory/shared/hold.js';
import { Holders } from '../memory/shared/holders.js';
import type { Shared, SharedFacts } from '../memory/shared/shared.js';
import { Turn, TURN, whoHas } from '../memory/shared/turn.js';
import type { Platform } from '../platform/ports.js';
import type { VerbsAh, VerbsCq, VerbsQp } from '../platform/rdma/verbs-types.js';
import { Completions, ReceiveRequests, SendRequests } from '../platform/rdma/verbs-work.js';
import { shortForm } from '../short-form.js';
import { STAYS } from '../stays.js';
import { now } from '../timers.js';
import { noRequests } from './queue-pair-requests.js';
import { PAIR_RUN as RUN, PAIR_WORD as WORD, type QueuePairFacts } from './queue-pair-state.js';

/** The name of a queue pair in messages. */
export function pairName({ device, loan }: Pick<QueuePairFacts, 'device' | 'loan'>): string {
  return `queue pair ${loan.number} of ${device}`;
}

/** The facts of a shared queue pair, which the seal says `share` made. */
export function queuePairFacts({ text }: SharedFacts): QueuePairFacts {
  return JSON.parse(String(text)) as QueuePairFacts;
}

/** Polls between two reads of the clock, each of which costs as much as a few polls. */
const POLLS = 64;

/**
 * A queue pair of another thread, which this thread works: requests are built, posted and polled as those of `QueuePair`. Made by
 * `attach`. The device's driver is called directly; the other thread takes no part in it. Disposing it gives the queue pair back, with
 * the requests that are posted.
 */
export class AttachedQueuePair implements Disposable {
  /** @internal */
  readonly stays = STAYS;
  /** The name of its device. */
  readonly device: string;
  /** Its queue pair number on the device. */
  readonly number: number;
  readonly type: 'rc' | 'uc' | 'ud';
  /** How many destinations came with it, for datagrams: see {@link setDestination}. */
  readonly destinations: number;
  /** Most sends and receives that can be posted at once. */
  readonly sends: number;
  readonly receives: number;
  /** Most bytes of a send with IBV_SEND_INLINE. */
  readonly inline: number;
  /** Translates addresses to keys: it follows what the other thread maps and unmaps. */
  readonly keys: KeyCache;
  /** The completions of the last {@link poll}. Valid until the next one. */
  readonly completions: Completions;
  /** The completions of the last {@link pollReceives}; the same as {@link completions} if one queue is for both. */
  readonly receiveCompletions: Completions;
  readonly #qp: VerbsQp;
  readonly #destinations: readonly { readonly ah: VerbsAh; readonly number: number; readonly qkey: number }[];
  readonly #platform: Pick<Platform, 'verbs' | 'memory'>;
  readonly #words: Int32Array;
  readonly #turn: Turn;
  readonly #owner: number;
  readonly #hold: Hold;
  #left = false;

  private constructor(
    facts: QueuePairFacts,
    qp: VerbsQp,
    words: Int32Array,
    table: AttachedTable,
    [turn, owner, hold]: readonly [Turn, number, Hold],
    platform: Pick<Platform, 'verbs' | 'memory'>,
  ) {
    const { device, batch, receiveBatch, loan } = facts;
    this.device = device;
    this.number = loan.number;
    this.type = loan.type;
    this.destinations = facts.destinations.length;
    this.#destinations = facts.destinations.map(({ ah, ...to }) => ({ ah: { address: ah, pd: qp.pd }, ...to }));
    this.sends = loan.sends;
    this.receives = loan.receives;
    this.inline = loan.inline;
    this.keys = new KeyCache({ device, table });
    this.completions = new Completions(platform.memory, batch);
    this.receiveCompletions =
      qp.sendCq === qp.receiveCq ? this.completions : new Completions(platform.memory, receiveBatch);
    this.#qp = qp;
    this.#words = words;
    this.#turn = turn;
    this.#owner = owner;
    this.#hold = hold;
    this.#platform = platform;
  }

  /**
   * @internal For `attach`.
   *
   * @param hold of this thread, which ends with it
   * @throws DmaError EBUSY while another thread has the queue pair, or its maker took it back
   */
  static attach(
    { holders: table, more: [buffer, changes, pieces] }: Pick<Shared<unknown>, 'holders' | 'more'>,
    facts: QueuePairFacts,
    hold: Hold,
    platform: Pick<Platform, 'verbs' | 'memory' | 'kernel'>,
  ): AttachedQueuePair {
    const holders = Holders.attach(platform.kernel, table);
    const owner = holders.enter();
    const words = new Int32Array(buffer);
    const turn = new Turn(words, WORD.OWNER, holders);
    const before = turn.take(owner);
    if (before !== TURN.OFFERED) {
      hold.leave();
      throw taken(facts, before, holders);
    }
    try {
      const qp = platform.verbs.borrow(facts.loan);
      const addresses = new AttachedTable(changes, pieces);
      return new AttachedQueuePair(facts, qp, words, addresses, [turn, owner, hold], platform);
    } catch (error) {
      hold.leave();
      turn.leave(owner);
      throw error;
    }
  }

  /** Is it this thread's, and does it work? */
  get live(): boolean {
    return !this.#left && Atomics.load(this.#words, WORD.RUN) === RUN.ON && this.#hold.live;
  }

  /** Creates `slots` send requests, each of up to `sges` segments: as `QueuePair.sendRequests`. */
  sendRequests(slots: number, sges = this.#qp.sendSges): SendRequests {
    return new SendRequests(this.#platform.memory, slots, sges);
  }

  /** Creates `slots` receive requests, each of up to `sges` segments. */
  receiveRequests(slots: number, sges = this.#qp.receiveSges): ReceiveRequests {
    return new ReceiveRequests(this.#platform.memory, slots, sges);
  }

  /**
   * Sends a datagram to one of the destinations of `QueuePair.share`: call it after `send`, which forgets the one before.
   *
   * @param destination its index there
   * @throws DmaError EINVAL
   */
  setDestination(requests: SendRequests, slot: number, destination: number): void {
    const operation = 'setDestination';
    if (!isA(requests, SendRequests)) throw noRequests(operation, 'sendRequests');
    mustBeWhole(slot, 0, requests.slots - 1, 'slot', operation);
    if (this.destinations === 0)
      throw this.#error('EINVAL', operation, 'it was shared without destinations', 'pair.share({ destinations })');
    mustBeWhole(destination, 0, this.destinations - 1, 'destination', operation);
    const { ah, number, qkey } = this.#destinations[destination];
    requests.setDestination(slot, ah, number, qkey);
  }

  /**
   * Posts send requests in one call: as `QueuePair.post`. Their memory must stay mapped until they have completed; attach to the mapping
   * for that.
   *
   * @returns how many were posted; fewer than `count` if the queue is full
   * @throws DmaError if the first one was refused: ENOMEM if the queue is full, EINVAL; EBADF once it was given back; ENODEV if the device
   *   is gone, EIO if its completion queue has failed
   */
  post(requests: SendRequests, first = 0, count?: number): number {
    if (!isA(requests, SendRequests)) throw noRequests('post', 'sendRequests');
    this.#enter('post');
    try {
      return this.#platform.verbs.postSend(this.#qp, requests, first, count === undefined ? requests.slots : count);
    } finally {
      this.#leaveCall();
    }
  }

  /** Posts receives, like {@link post}. */
  postReceives(requests: ReceiveRequests, first = 0, count?: number): number {
    if (!isA(requests, ReceiveRequests)) throw noRequests('postReceives', 'receiveRequests');
    this.#enter('postReceives');
    try {
      return this.#platform.verbs.postReceive(this.#qp, requests, first, count === undefined ? requests.slots : count);
    } finally {
      this.#leaveCall();
    }
  }

  /**
   * Takes the available completions into {@link completions}: of sends, and of receives if one queue is for both. Does not wait, and
   * allocates nothing.
   *
   * @returns how many
   * @throws DmaError EBADF, ENODEV, EIO as {@link post}
   */
  poll(): number {
    return this.#poll(this.#qp.sendCq, this.completions);
  }

  /** Takes the available completions of receives into {@link receiveCompletions}: as {@link poll}. */
  pollReceives(): number {
    return this.#poll(this.#qp.receiveCq, this.receiveCompletions);
  }

  /**
   * Polls until there are completions, like {@link poll}. Blocks the event loop of this thread.
   *
   * @param ms time limit in milliseconds, checked now and then
   * @returns how many it took; 0 if the time is over
   * @throws DmaError as `poll`; EINVAL for an invalid time
   */
  spin(ms: number): number {
    mustBeMs(ms, 'ms', 'spin');
    for (let deadline: number | undefined; ;) {
      for (let polls = 0; polls < POLLS; polls++) {
        const count = this.poll();
        if (count > 0) return count;
      }
      const time = now();
      deadline ??= time + ms;
      if (time >= deadline) return 0;
    }
  }

  /** Gives the queue pair back: its maker, or another thread, goes on with it. Idempotent. */
  [Symbol.dispose](): void {
    if (this.#left) return;
    this.#left = true;
    this.#platform.verbs.giveBack(this.#qp);
    this.#hold.leave();
    this.#turn.leave(this.#owner);
  }

  #poll(cq: VerbsCq, into: Completions): number {
    this.#enter('poll');
    try {
      return this.#platform.verbs.pollCq(cq, into);
    } finally {
      this.#leaveCall();
    }
  }

  /** Says that this thread is inside of the driver, and then looks whether it may be: its maker does both in the other order. */
  #enter(operation: string): void {
    if (this.#left) throw this.#error('EBADF', operation, 'it was given back by this thread', 'attach to it again');
    Atomics.store(this.#words, WORD.INSIDE, 1);
    const run = Atomics.load(this.#words, WORD.RUN);
    if (run === RUN.ON) return;
    this.#leaveCall();
    throw run === RUN.LOST
      ? this.#error('ENODEV', operation, 'the device is gone')
      : this.#error('EIO', operation, 'its completion queue has failed', 'queue.failure there tells why');
  }

  #leaveCall(): void {
    Atomics.store(this.#words, WORD.INSIDE, 0);
  }

  #error(code: 'EBADF' | 'EINVAL' | 'EIO' | 'ENODEV', operation: string, reason: string, hint?: string): DmaError {
    return new DmaError({ code, operation, device: this.device, reason: `queue pair ${this.number}: ${reason}`, hint });
  }
}

/** EBUSY, as `before` has the queue pair. */
function taken(facts: QueuePairFacts, before: number, holders: Holders): DmaError {
  const isMaker = before === TURN.MAKER;
  return new DmaError({
    code: 'EBUSY',
    operation: 'attach',
    device: facts.device,
    reason: isMaker
      ? 'the thread that made the queue pair works it itself'
      : `${whoHas(before, holders)} the queue pair`,
    hint: isMaker
      ? 'queuePair.share() offers it again'
      : 'it is free once that thread disposes it, or takeBack() returned',
  });
}

shortForm(AttachedQueuePair, 'AttachedQueuePair', ({ device, number, type, live }) => ({ device, number, type, live }));
