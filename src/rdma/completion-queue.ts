/**
 * A completion queue. It is used in one of three ways: polled by the program (`poll` and `spin`, for who can not wait for the
 * event loop), awaited (`next`, or `for await`), or served by the event loop, for a handler and for the promises of queue pairs.
 */
import { mustBeFunction, mustBeMs, mustBeWhole, optionsOf, type Shape } from '../check.js';
import { lostDevice } from '../dma/mapping.js';
import { DmaError, throwFirst, undoAll, withUndo } from '../errors.js';
import type { Watch } from '../platform/ports.js';
import type { VerbsChannel, VerbsCq } from '../platform/rdma/verbs-types.js';
import { Completions } from '../platform/rdma/verbs-work.js';
import { IBV_WC_SUCCESS } from '../platform/rdma/abi/requests.js';
import type { RdmaContext } from './context.js';
import { shortForm } from '../short-form.js';
import { now, queueMicrotask, setImmediate } from '../timers.js';

/** Settings of a completion queue. */
export interface CompletionQueueOptions {
  /** Completions that it has to hold at least. Default 256. */
  readonly entries?: number;
  /** Tell the event loop of completions? Default true. Without, somebody has to call {@link CompletionQueue.poll}. */
  readonly events?: boolean;
  /** Which of the device's completion vectors (interrupts) tells. Default 0. */
  readonly vector?: number;
  /** Completions that one poll takes at most. Default 64. */
  readonly batch?: number;
}

const QUEUE_OPTIONS: Shape<CompletionQueueOptions> = {
  entries: 'number',
  events: 'boolean',
  vector: 'number',
  batch: 'number',
};

/** Identifiers of requests from here on are those of promises. The program's own are below. */
export const PROMISE_IDS = 2 ** 52;
/** Slots of one queue pair: 65536 of its send requests and as many of its receives. */
const SLOTS = 2 ** 17;

/** Who waits for completions by promise: a queue pair. */
export interface Promised {
  /** The request in `slot` has ended, as completion `index` says. */
  settle(slot: number, completions: Completions, index: number): void;
  /** No completion will come any more. */
  fail(error: DmaError): void;
}

/** How many times the event loop is kept from its other work in a row, when completions keep coming. */
const ROUNDS = 16;

/** Polls between two looks at the clock: that costs as much as a few of them. */
const POLLS = 64;

/** See the head of the file. Made by `RdmaDevice.createCompletionQueue`. */
export class CompletionQueue implements Disposable, AsyncIterable<number> {
  /** What the last poll brought; slots from 0 on. It holds until the next poll. */
  readonly completions: Completions;
  /** @internal */
  readonly cq: VerbsCq;
  readonly #rdma: RdmaContext;
  readonly #channel: VerbsChannel | undefined;
  readonly #watch: Watch | undefined;
  readonly #closed: (queue: CompletionQueue) => void;
  /** By tag. */
  readonly #promised = new Map<number, Promised>();
  #tags = 0;
  /** Completions that its queue pairs can have waiting in it at once. */
  #reserved = 0;
  /** How many promises wait. */
  #waiting = 0;
  #handler: ((completions: Completions, count: number) => void) | undefined;
  #wake: (() => void) | undefined;
  #armed = false;
  #failure: DmaError | undefined;
  #open = true;

  /** @internal */
  constructor(
    rdma: RdmaContext,
    options: CompletionQueueOptions | undefined,
    closed: (queue: CompletionQueue) => void,
  ) {
    const operation = 'createCompletionQueue';
    const { entries = 256, events = true, vector = 0, batch = 64 } = optionsOf(options, QUEUE_OPTIONS, operation);
    const { verbs, platform, context, limits } = rdma;
    const { maxCqEntries } = rdma.attributes;
    limits.mustHave(entries, 'entries', { least: 1, own: 2 ** 31 - 1, limit: maxCqEntries, c: 'max_cqe', operation });
    mustBeWhole(vector, 0, Math.max(1, context.vectors) - 1, 'vector', operation);
    mustBeWhole(batch, 1, 65536, 'batch', operation);
    this.completions = new Completions(platform.memory, batch);
    const undo: (() => void)[] = [];
    try {
      if (events) {
        const channel = verbs.createChannel(context);
        this.#channel = channel;
        undo.unshift(() => verbs.destroyChannel(channel));
      }
      this.cq = limits.make('completionQueues', operation, () =>
        verbs.createCq(context, entries, this.#channel, vector),
      );
      undo.unshift(() => this.#destroy(rdma));
      if (this.#channel !== undefined) {
        this.#watch = platform.readiness.watch(this.#channel.fd, { readable: true }, () => this.#takeEvents());
        undo.unshift(() => this.#watch?.close());
        this.#watch.setRef(false);
      }
    } catch (error) {
      throw withUndo(error, 'createCompletionQueue', undoAll(undo));
    }
    this.#rdma = rdma;
    this.#closed = closed;
  }

  /** @internal */
  isOf(rdma: RdmaContext): boolean {
    return this.#rdma === rdma;
  }

  /** Completions it holds. */
  get entries(): number {
    return this.cq.entries;
  }

  /** Is it open? */
  get live(): boolean {
    return this.#open;
  }

  /** Why no completions come any more, such as more of them than it holds; `undefined` as long as it works. */
  get failure(): DmaError | undefined {
    return this.#failure;
  }

  /** Completions that its queue pairs can still be made for: what it holds, less what those it has can have waiting in it. */
  get room(): number {
    return this.entries - this.#reserved;
  }

  /**
   * Takes completions that are there, into {@link CompletionQueue.completions}, and settles the promises that are among
   * them. Does not wait, and allocates nothing when there are no promises: for loops.
   *
   * @returns how many there were; of those whose `id` is 2^52 or more the promise was settled
   * @throws DmaError EINVAL when it is closed, ENODEV when the device is gone
   */
  poll(): number {
    if (this.#failure !== undefined) throw this.#failure;
    const count = this.#poll();
    if (this.#waiting > 0) for (let index = 0; index < count; index++) this.#settle(index);
    return count;
  }

  /**
   * Polls until there are completions, and takes them as {@link CompletionQueue.poll} does: for who can not wait for the event
   * loop, which stands still meanwhile.
   *
   * @param ms at most; the clock is looked at now and then
   * @returns how many; 0 when the time is up
   * @throws DmaError as `poll`; EINVAL for what is no time
   */
  spin(ms: number): number {
    mustBeMs(ms, 'ms', 'spin');
    // What comes soon needs no clock.
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

  /**
   * Waits until there are completions and takes them, as {@link CompletionQueue.poll} does. One at a time.
   *
   * @returns how many; never 0
   * @throws DmaError as `poll`; ENOTSUP for a queue without events; EBUSY while it is awaited or served for a handler
   */
  async next(): Promise<number> {
    if (this.#channel === undefined) throw this.#error('ENOTSUP', 'it was made without events');
    if (this.#wake !== undefined || this.#handler !== undefined)
      throw this.#error('EBUSY', 'somebody else takes its completions');
    for (;;) {
      let count = this.poll();
      if (count > 0) return count;
      this.#arm();
      // What came before it was armed makes no event.
      count = this.poll();
      if (count > 0) return count;
      await new Promise<void>((resolve) => {
        this.#wake = resolve;
        this.#hold();
      });
    }
  }

  /** Counts of completions, as {@link CompletionQueue.next} gives them, until it is closed. */
  async *[Symbol.asyncIterator](): AsyncGenerator<number, void> {
    while (this.#open) {
      let count: number;
      try {
        count = await this.next();
      } catch (error) {
        if (!this.#open) return;
        throw error;
      }
      yield count;
    }
  }

  /**
   * Calls `handler` from the event loop with completions as they come; `undefined` ends that. An exception in it is an
   * uncaught one.
   *
   * @throws DmaError ENOTSUP for a queue without events; EBUSY while it is awaited
   */
  onCompletions(handler: ((completions: Completions, count: number) => void) | undefined): void {
    if (handler !== undefined) mustBeFunction(handler, 'a handler', 'onCompletions');
    if (this.#channel === undefined) throw this.#error('ENOTSUP', 'it was made without events');
    if (this.#wake !== undefined) throw this.#error('EBUSY', 'somebody else takes its completions');
    this.#handler = handler;
    this.#hold();
    if (handler !== undefined) setImmediate(() => this.#serve());
  }

  /**
   * Closes it. Idempotent.
   *
   * @throws DmaError EBUSY while a queue pair uses it
   */
  close(): void {
    if (!this.#open) return;
    const { verbs } = this.#rdma;
    this.#destroy(this.#rdma);
    this.#open = false;
    this.#closed(this);
    const channel = this.#channel;
    const { lost, name } = this.#rdma;
    const errors = undoAll([
      () =>
        this.fail(
          lost === undefined ? this.#error('EINVAL', 'it is closed') : lostDevice('completion queue', name, lost),
        ),
      () => this.#watch?.close(),
      () => {
        if (channel !== undefined) verbs.destroyChannel(channel);
      },
    ]);
    throwFirst(errors, 'close');
  }

  /** Calls {@link close}. */
  [Symbol.dispose](): void {
    this.close();
  }

  /** @internal No completion will come any more: who waits is told. */
  fail(error: DmaError): void {
    this.#failure ??= error;
    for (const each of [...this.#promised.values()]) each.fail(error);
    this.#waiting = 0;
    this.#wakeUp();
    this.#hold();
  }

  /**
   * @internal A queue pair that can have `count` completions waiting here at once is made; `-count`: it is gone.
   *
   * @throws DmaError ENOSPC when it does not hold so many: a device that has no room for a completion stops the queue
   */
  reserve(count: number, operation: string): void {
    const { room, entries } = this;
    if (count > room) {
      const others = entries - room;
      const needs = `a queue pair of ${count} sends and receives that end in it`;
      const reason = `the completion queue holds ${entries} completions, ${others} of which are for other queue pairs, and has no room for ${needs}`;
      const hint = `make it with ${others + count} entries, take another one, or fewer sends and receives`;
      throw new DmaError({ code: 'ENOSPC', operation, device: this.#rdma.name, reason, hint });
    }
    this.#reserved += count;
  }

  /** @internal A queue pair will wait by promise. @returns the identifier of its slot 0 */
  promise(who: Promised): number {
    const tag = ++this.#tags;
    this.#promised.set(tag, who);
    return PROMISE_IDS + tag * SLOTS;
  }

  /** @internal */
  forget(firstId: number): void {
    this.#promised.delete((firstId - PROMISE_IDS) / SLOTS);
  }

  /** @internal One more promise waits, before its request is posted; or one less. */
  expect(count: 1 | -1): void {
    if (count > 0 && this.#channel !== undefined && !this.#armed) {
      this.#arm();
      // A quick device has done it by then.
      setImmediate(() => this.#serve());
    }
    this.#waiting += count;
    if (this.#waiting === Math.max(0, count)) this.#hold();
  }

  #poll(): number {
    try {
      return this.#rdma.verbs.pollCq(this.cq, this.completions);
    } catch (error) {
      const failure = error instanceof DmaError ? error : this.#error('EIO', 'it can not be polled', error);
      this.fail(failure);
      throw failure;
    }
  }

  #destroy({ verbs, limits }: RdmaContext): void {
    verbs.destroyCq(this.cq);
    limits.gave('completionQueues');
  }

  #settle(index: number): void {
    const { completions } = this;
    const id = completions.id(index) - PROMISE_IDS;
    if (id < 0) return;
    this.#promised.get(Math.floor(id / SLOTS))?.settle(id % SLOTS, completions, index);
  }

  #takeEvents(): void {
    const channel = this.#channel;
    if (channel === undefined) return;
    try {
      while (this.#rdma.verbs.nextCqEvent(channel) !== undefined) this.#armed = false;
    } catch (error) {
      this.fail(this.#error('EIO', 'its events can not be read any more', error));
      this.#watch?.close();
      return;
    }
    if (!this.#armed) this.#serve();
  }

  /** Takes what is there for promises and the handler, and asks to be told of more. */
  #serve(): void {
    if (!this.#open || this.#failure !== undefined) return;
    if (this.#wake !== undefined) {
      this.#wakeUp();
      return;
    }
    try {
      for (let round = 0; this.#waiting > 0 || this.#handler !== undefined; round++) {
        if (round === ROUNDS) {
          setImmediate(() => this.#serve());
          return;
        }
        const count = this.poll();
        if (count > 0) this.#hand(count);
        else if (this.#armed) return;
        else this.#arm();
      }
    } catch (error) {
      this.fail(error instanceof DmaError ? error : this.#error('EIO', 'it can not be polled', error));
    }
  }

  #hand(count: number): void {
    try {
      this.#handler?.(this.completions, count);
    } catch (error) {
      queueMicrotask(() => {
        throw error;
      });
    }
  }

  #arm(): void {
    this.#rdma.verbs.requestNotify(this.cq, false);
    this.#armed = true;
  }

  /** Who waits for completions keeps the process alive. */
  #hold(): void {
    if (this.#open) this.#watch?.setRef(this.#waiting > 0 || this.#wake !== undefined || this.#handler !== undefined);
  }

  #wakeUp(): void {
    const wake = this.#wake;
    this.#wake = undefined;
    wake?.();
    this.#hold();
  }

  #error(code: 'EBUSY' | 'EINVAL' | 'EIO' | 'ENOTSUP', reason: string, cause?: unknown): DmaError {
    return new DmaError({ code, operation: 'completion queue', device: this.#rdma.name, reason, cause });
  }
}

shortForm(CompletionQueue, 'CompletionQueue', () => ({}));

/** Did the request of completion `index` do what it should? */
export function succeeded(completions: Completions, index: number): boolean {
  return completions.status(index) === IBV_WC_SUCCESS;
}
