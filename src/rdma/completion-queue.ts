/**
 * A completion queue. Use it in one of three ways: poll it (`poll` and `spin`, for programs that can not wait for the
 * event loop), await it (`next`, or `for await`), or let the event loop serve it, for a handler and for the promises of
 * queue pairs.
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
import { STAYS } from '../stays.js';

/** Options of a completion queue. */
export interface CompletionQueueOptions {
  /** Least number of completions it must hold. Default 256. */
  readonly entries?: number;
  /**
   * Notify the event loop of completions? Default true. Otherwise the program must call {@link CompletionQueue.poll}.
   */
  readonly events?: boolean;
  /** The device's completion vector (interrupt) for notifications. Default 0. */
  readonly vector?: number;
  /** Most completions that one poll takes. Default 64. */
  readonly batch?: number;
}

const QUEUE_OPTIONS: Shape<CompletionQueueOptions> = {
  entries: 'number',
  events: 'boolean',
  vector: 'number',
  batch: 'number',
};

/** Request ids from here on belong to promises; smaller ones to the program. */
export const PROMISE_IDS = 2 ** 52;
/** Slots of one queue pair: 65536 sends and 65536 receives. */
const SLOTS = 2 ** 17;

/** A queue pair, whose promises wait for completions. */
export interface Promised {
  /** The request in `slot` has ended; its result is completion `index`. */
  settle(slot: number, completions: Completions, index: number): void;
  /** No completion will follow. */
  fail(error: DmaError): void;
}

/** The queue is with another thread: what is asked meanwhile. */
export interface CompletionsLent {
  /** EBUSY, naming the thread. */
  busy(operation: string): DmaError;
  /** No completion will follow. */
  failed(error: DmaError): void;
}

/** How many rounds in a row completions may keep the event loop from other work. */
const ROUNDS = 16;

/** Polls between two reads of the clock, each of which costs as much as a few polls. */
const POLLS = 64;

/** A completion queue. Created by `RdmaDevice.createCompletionQueue`; close it after its queue pairs. */
export class CompletionQueue implements Disposable, AsyncIterable<number> {
  /** @internal */
  readonly stays = STAYS;
  /** The completions of the last poll, from slot 0 on. Valid until the next poll. */
  readonly completions: Completions;
  /** @internal */
  readonly cq: VerbsCq;
  readonly #rdma: RdmaContext;
  readonly #channel: VerbsChannel | undefined;
  readonly #watch: Watch | undefined;
  readonly #closed: (queue: CompletionQueue) => void;
  /** Queue pairs by tag. */
  readonly #promised = new Map<number, Promised>();
  #tags = 0;
  /** How many completions its queue pairs can have in it at once. */
  #reserved = 0;
  /** How many promises are pending. */
  #waiting = 0;
  #handler: ((completions: Completions, count: number) => void) | undefined;
  #wake: (() => void) | undefined;
  #armed = false;
  #failure: DmaError | undefined;
  /** Set while another thread polls it. */
  #lent: CompletionsLent | undefined;
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

  /** How many completions it holds. */
  get entries(): number {
    return this.cq.entries;
  }

  /** Is it open? */
  get live(): boolean {
    return this.#open;
  }

  /** Why it stopped, such as an overflow; `undefined` while it works. */
  get failure(): DmaError | undefined {
    return this.#failure;
  }

  /** Completions left for further queue pairs: its entries, less those that its queue pairs can have in it at once. */
  get room(): number {
    return this.entries - this.#reserved;
  }

  /**
   * Takes the available completions into {@link CompletionQueue.completions}, and settles the promises among them. Does
   * not wait, and allocates nothing if there are no promises: for loops.
   *
   * @returns how many it took; those with an `id` of 2^52 or more belonged to promises
   * @throws DmaError EINVAL if it is closed, ENODEV if the device is gone
   */
  poll(): number {
    if (this.#failure !== undefined) throw this.#failure;
    if (this.#lent !== undefined) throw this.#lent.busy('poll');
    const count = this.#poll();
    if (this.#waiting > 0) for (let index = 0; index < count; index++) this.#settle(index);
    return count;
  }

  /**
   * Polls until there are completions and takes them, like {@link CompletionQueue.poll}. Blocks the event loop: for
   * programs that can not wait for it.
   *
   * @param ms time limit in milliseconds, checked now and then
   * @returns how many it took; 0 if the time is over
   * @throws DmaError as `poll`; EINVAL for an invalid time
   */
  spin(ms: number): number {
    mustBeMs(ms, 'ms', 'spin');
    // Completions that come soon need no clock.
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
   * Waits for completions and takes them, like {@link CompletionQueue.poll}. One call at a time.
   *
   * @returns how many; never 0
   * @throws DmaError as `poll`; ENOTSUP for a queue without events; EBUSY while it is awaited or has a handler
   */
  async next(): Promise<number> {
    if (this.#channel === undefined) throw this.#error('ENOTSUP', 'it was created without events');
    if (this.#wake !== undefined || this.#handler !== undefined)
      throw this.#error('EBUSY', 'another caller takes its completions');
    for (;;) {
      let count = this.poll();
      if (count > 0) return count;
      this.#arm();
      // Completions from before it was armed cause no event.
      count = this.poll();
      if (count > 0) return count;
      await new Promise<void>((resolve) => {
        this.#wake = resolve;
        this.#hold();
      });
    }
  }

  /** Yields numbers of completions, like {@link CompletionQueue.next}, until it is closed. */
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
   * Calls `handler` from the event loop with new completions, instead of the one before. An exception in it is uncaught.
   *
   * @returns disposing it removes the handler
   * @throws DmaError ENOTSUP for a queue without events; EBUSY while it is awaited
   */
  onCompletions(handler: (completions: Completions, count: number) => void): Disposable {
    mustBeFunction(handler, 'a handler', 'onCompletions');
    if (this.#lent !== undefined) throw this.#lent.busy('onCompletions');
    if (this.#channel === undefined) throw this.#error('ENOTSUP', 'it was created without events');
    if (this.#wake !== undefined) throw this.#error('EBUSY', 'another caller takes its completions');
    this.#handler = handler;
    this.#hold();
    setImmediate(() => this.#serve());
    return {
      [Symbol.dispose]: () => {
        if (this.#handler !== handler) return;
        this.#handler = undefined;
        this.#hold();
      },
    };
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

  /** @internal No completion will follow: pending promises and callers fail with `error`. */
  fail(error: DmaError): void {
    this.#failure ??= error;
    this.#lent?.failed(error);
    for (const each of [...this.#promised.values()]) each.fail(error);
    this.#waiting = 0;
    this.#wakeUp();
    this.#hold();
  }

  /**
   * @internal Reserves room for a new queue pair that can have `count` completions here at once; `-count` releases it.
   *
   * @throws DmaError ENOSPC if there is no room: a device stops a queue that overflows
   */
  reserve(count: number, operation: string): void {
    const { room, entries } = this;
    if (count > room) {
      const others = entries - room;
      const needs = `a queue pair of ${count} sends and receives that complete in it`;
      const reason = `the completion queue holds ${entries} completions, ${others} of which are for other queue pairs, and has no room for ${needs}`;
      const hint = `make it with ${others + count} entries, take another one, or fewer sends and receives`;
      throw new DmaError({ code: 'ENOSPC', operation, device: this.#rdma.name, reason, hint });
    }
    this.#reserved += count;
  }

  /**
   * @internal Lets another thread poll it, until {@link takeBack}.
   *
   * @param lanes the directions of the queue pair that goes with it: nothing else may complete here
   * @throws DmaError EBUSY while it is used here
   */
  lend(lent: CompletionsLent, lanes: number, operation: string): void {
    const busy = (reason: string, hint: string): DmaError =>
      new DmaError({ code: 'EBUSY', operation, device: this.#rdma.name, reason, hint });
    if (this.#failure !== undefined) throw this.#failure;
    if (this.#promised.size > lanes)
      throw busy('another queue pair has the same completion queue', 'make each with a completion queue of its own');
    if (this.#waiting > 0) throw busy(`${this.#waiting} requests with promises are pending`, 'await them before');
    if (this.#wake !== undefined || this.#handler !== undefined)
      throw busy('its completions are awaited here', 'end that, and dispose the handler, before');
    this.#lent = lent;
  }

  /** @internal It is polled here again. */
  takeBack(): void {
    this.#lent = undefined;
  }

  /** @internal Adds a queue pair that will wait by promise. @returns the id of its slot 0 */
  promise(who: Promised): number {
    const tag = ++this.#tags;
    this.#promised.set(tag, who);
    return PROMISE_IDS + tag * SLOTS;
  }

  /** @internal */
  forget(firstId: number): void {
    this.#promised.delete((firstId - PROMISE_IDS) / SLOTS);
  }

  /** @internal Counts one more pending promise, before its request is posted; or one less. */
  expect(count: 1 | -1): void {
    if (count > 0 && this.#channel !== undefined && !this.#armed) {
      this.#arm();
      // A fast device has completed it by then.
      setImmediate(() => this.#serve());
    }
    this.#waiting += count;
    if (this.#waiting === Math.max(0, count)) this.#hold();
  }

  #poll(): number {
    try {
      return this.#rdma.verbs.pollCq(this.cq, this.completions);
    } catch (error) {
      const failure = error instanceof DmaError ? error : this.#error('EIO', 'polling it failed', error);
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
      this.fail(this.#error('EIO', 'reading its events failed', error));
      this.#watch?.close();
      return;
    }
    if (!this.#armed) this.#serve();
  }

  /** Takes completions for promises and the handler, and requests the next notification. */
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
      this.fail(error instanceof DmaError ? error : this.#error('EIO', 'polling it failed', error));
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

  /** Keeps the process alive while anyone waits for completions. */
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

/** Did the request of completion `index` succeed? */
export function succeeded(completions: Completions, index: number): boolean {
  return completions.status(index) === IBV_WC_SUCCESS;
}
