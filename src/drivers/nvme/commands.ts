/** Operations over a queue: each gets slots when there are some, and its promise settles when all its commands are back. */
import { DmaError } from '../../errors.js';
import { now, queueMicrotask } from '../../timers.js';
import { Operation, type NvmeResult, type OperationParts, type Sent, type Settle } from './operation.js';
import type { BusyPages } from './busy-pages.js';
import { Poller } from './poller.js';
import { ABORTED_BY_HOST, type NvmeQueue } from './queue.js';

/** What the operations of a queue need of the controller. */
export interface CommandsHost {
  /** Looks whether the controller is alive; deals with it if it is not. */
  check(): void;
  /**
   * Asks the controller to abort a command. Resolves when that is over, whatever came of it.
   *
   * @param isWanted is it still to be aborted? Asked when the controller can be asked
   */
  abort(queue: number, slot: number, isWanted: () => boolean): Promise<void>;
  /** Resets the controller, because of `why`; all that runs settles then. */
  recover(why: DmaError): void;
  /** A register could not be reached. */
  failed(error: unknown): void;
  /** Why the controller was reset last. */
  readonly resetReason: DmaError | undefined;
  /** Is what changes nothing sent again after a reset? */
  readonly resubmits: boolean;
  /** Milliseconds that an aborted command has to come back. */
  readonly abortMs: number;
}

/** An abort of the slot's command is on its way; and the command has come back meanwhile. */
const ABORTING = 1;
const PARKED = 2;

/** How often the limits of operations are looked at, at most, in milliseconds. */
const LIMITS_MS = 10;

/** The operations of one queue. */
export class Commands {
  readonly queue: NvmeQueue;
  readonly #host: CommandsHost;
  readonly #pageSize: number;
  readonly #pages: BusyPages;
  readonly #poller: Poller;
  readonly #free: Uint16Array;
  #freeCount: number;
  /** The operation of each slot, and which command of it. */
  readonly #owners: (Operation | undefined)[];
  readonly #commands: Sent[];
  /** Operations with something to send, in the order that they came. */
  readonly #waiting: Operation[] = [];
  /** Running commands that complete only when something happens. */
  #standing = 0;
  readonly #aborting: Uint8Array;
  #lookedAt = 0;
  #isRinging = false;
  /** Why nothing is sent now: the controller is being reset. */
  #held = false;
  /** Why nothing can be sent any more. */
  #dead: DmaError | undefined;

  /** @param pages where the memory of its operations is counted */
  constructor(queue: NvmeQueue, host: CommandsHost, pageSize: number, interrupts: boolean, pages: BusyPages) {
    const { capacity } = queue;
    this.queue = queue;
    this.#host = host;
    this.#pageSize = pageSize;
    this.#pages = pages;
    this.#free = Uint16Array.from({ length: capacity }, (_, i) => capacity - 1 - i);
    this.#freeCount = capacity;
    this.#aborting = new Uint8Array(capacity);
    this.#owners = new Array<Operation | undefined>(capacity).fill(undefined);
    this.#commands = Array.from({ length: capacity }, () => ({ done: 0, index: 0, blocks: 0 }));
    this.#poller = new Poller(
      { poll: () => this.#poll(), busy: () => this.busy, check: () => this.check() },
      interrupts,
    );
  }

  /** Is something outstanding that will complete by itself? */
  get busy(): boolean {
    return this.queue.running > this.#standing || (this.#waiting.length > 0 && !this.#held);
  }

  /** How many operations wait or run. */
  get size(): number {
    return this.#waiting.length + this.queue.running - this.#standing;
  }

  /** Runs an operation. @param standing does it complete only when something happens? */
  run(parts: OperationParts, standing = false): Promise<NvmeResult> {
    return new Promise((resolve, reject) => {
      this.start(parts, (error, result) => (error === undefined ? resolve(result) : reject(error)), standing);
    });
  }

  /** As {@link run}, for who has a promise already. @throws DmaError when nothing can be sent any more */
  start(parts: OperationParts, settle: Settle, standing = false): void {
    if (this.#dead !== undefined) throw this.#dead.with({ operation: parts.operation });
    const operation = new Operation(parts, standing, settle, this.#pages);
    const { signal } = parts;
    if (signal !== undefined) {
      operation.onAbort = () => this.#aborted(operation, signal);
      if (signal.aborted) return operation.onAbort();
      signal.addEventListener('abort', operation.onAbort);
    }
    if (standing) this.#standing++;
    if (this.#waiting.length === 0 && !this.#held) this.#feed(operation);
    if (operation.hasMore) this.#waiting.push(operation);
    else if (operation.running === 0) operation.settle();
    this.#soon();
  }

  /** The controller has something. */
  interrupt(): void {
    this.#poller.interrupt();
  }

  /** What works on [start, end), VAs. */
  usesOf(start: number, end: number): string | undefined {
    for (const [slot, owner] of this.#owners.entries())
      if (owner?.uses(start, end) === true) return this.queue.describe(slot);
    for (const operation of this.#waiting)
      if (operation.uses(start, end)) return `${operation.parts.operation}, which waits for a free slot,`;
    return undefined;
  }

  /** The controller is being reset: what is new waits. */
  hold(): void {
    this.#held = true;
  }

  /** The controller was stopped: what was running settles. */
  abandon(): void {
    this.queue.abandon();
    this.#poll();
  }

  /** The controller was started anew. */
  resume(): void {
    this.#held = false;
    this.#feedAll();
    this.#soon();
  }

  /** Nothing is sent any more; what waits fails with `why`. */
  end(why: DmaError): void {
    this.#dead ??= why;
    this.queue.halt(this.#dead);
    for (const operation of this.#waiting.splice(0)) {
      operation.error ??= why.with({ operation: operation.parts.operation });
      operation.settle();
    }
  }

  /** The controller is gone, and so may be the memory of the queue after this: all fails that waits or runs. */
  lose(why: DmaError): void {
    this.end(why);
    this.abandon();
    this.#poller.stop();
  }

  #poll(): number {
    const { queue } = this;
    let found: number;
    try {
      found = queue.poll();
    } catch (error) {
      this.#host.failed(error);
      return 0;
    }
    for (let i = 0; i < found; i++) {
      const slot = queue.slots[i];
      const operation = this.#owners[slot];
      if (operation === undefined) continue;
      this.#owners[slot] = undefined;
      this.#freeSlot(slot);
      if (operation.standing) this.#standing--;
      const hadMore = operation.hasMore;
      const field = queue.statuses[i];
      if (field === 0) operation.succeeded(queue.results[i], queue.resultsHigh[i]);
      else this.#failed(operation, slot, field);
      if (operation.running > 0) continue;
      if (operation.hasMore) {
        if (!hadMore) this.#waiting.unshift(operation);
      } else {
        if (hadMore) this.#drop(operation);
        operation.settle();
      }
    }
    if (this.#waiting.length > 0) this.#feedAll();
    return found;
  }

  #failed(operation: Operation, slot: number, field: number): void {
    const what = this.queue.describe(slot);
    const wasReset = field === ABORTED_BY_HOST;
    if (wasReset && this.#dead !== undefined) operation.end(this.#dead, what);
    operation.failed(
      what,
      this.#commands[slot],
      field,
      wasReset ? this.#host.resetReason : undefined,
      this.#host.resubmits,
    );
  }

  /** A slot whose command is back; but an abort that is still on its way must not meet the next command in it. */
  #freeSlot(slot: number): void {
    if (this.#aborting[slot] > 0) this.#aborting[slot] = PARKED;
    else this.#free[this.#freeCount++] = slot;
  }

  #abortSlot(slot: number): void {
    if (this.#aborting[slot] > 0) return;
    this.#aborting[slot] = ABORTING;
    const isWanted = (): boolean => this.#aborting[slot] === ABORTING;
    void this.#host.abort(this.queue.id, slot, isWanted).finally(() => {
      const isBack = this.#aborting[slot] === PARKED;
      this.#aborting[slot] = 0;
      if (!isBack) return;
      this.#free[this.#freeCount++] = slot;
      this.#feedAll();
    });
  }

  #drop(operation: Operation): void {
    const at = this.#waiting.indexOf(operation);
    if (at >= 0) this.#waiting.splice(at, 1);
  }

  #feedAll(): void {
    while (this.#waiting.length > 0 && this.#freeCount > 0 && !this.#held) {
      const [operation] = this.#waiting;
      this.#feed(operation);
      if (operation.hasMore) return this.#ring();
      this.#waiting.shift();
      if (operation.running === 0) operation.settle();
    }
    this.#ring();
  }

  /** Sends as much of an operation as there are slots. */
  #feed(operation: Operation): void {
    const { queue } = this;
    while (this.#freeCount > 0 && operation.hasMore) {
      const slot = this.#free[this.#freeCount - 1];
      try {
        operation.send(queue, slot, this.#pageSize, this.#commands[slot]);
      } catch (error) {
        operation.running--;
        operation.error ??=
          error instanceof DmaError
            ? error
            : new DmaError({ code: 'EIO', operation: 'nvme', reason: String(error), cause: error });
        return;
      }
      this.#freeCount--;
      this.#owners[slot] = operation;
    }
  }

  /** Tells the controller at the end of this turn of the microtasks, so that all that is called together is one store. */
  #soon(): void {
    if (this.#isRinging) return;
    this.#isRinging = true;
    queueMicrotask(this.#ringLater);
  }

  readonly #ringLater = (): void => {
    this.#isRinging = false;
    this.#ring();
    if (this.busy) this.#poller.start();
  };

  #ring(): void {
    try {
      this.queue.ring();
    } catch (error) {
      this.#host.failed(error);
    }
  }

  #aborted(operation: Operation, signal: AbortSignal): void {
    const hint = 'the signal was aborted; call it again with a new signal';
    operation.giveUp('ECANCELED', 'aborted', { cause: signal.reason, hint });
    this.#abortCommands(operation);
  }

  /** Has the controller abort what runs of an operation that was given up; one of which nothing runs settles. */
  #abortCommands(operation: Operation): void {
    this.#drop(operation);
    if (operation.running === 0) {
      operation.settle();
      return;
    }
    operation.abortedAt = now();
    this.#ring();
    for (const [slot, owner] of this.#owners.entries()) if (owner === operation) this.#abortSlot(slot);
    this.#poller.start();
  }

  /** Is the controller being reset, so that what is new waits? */
  get isHeld(): boolean {
    return this.#held;
  }

  /** Looks after what does not come back. */
  check(): void {
    this.#host.check();
    const at = now();
    if (at - this.#lookedAt < LIMITS_MS) return;
    this.#lookedAt = at;
    for (const operation of [...this.#owners, ...this.#waiting]) {
      if (operation === undefined) continue;
      if (operation.abortedAt > 0) {
        if (at - operation.abortedAt >= this.#host.abortMs && operation.error !== undefined)
          return this.#host.recover(
            new DmaError({
              code: 'ETIMEDOUT',
              operation: 'nvme',
              reason: `a command of ${operation.parts.operation} did not come back ${this.#host.abortMs} ms after it was aborted`,
              cause: operation.error,
            }),
          );
      } else if (operation.isLate(at) && operation.error === undefined) {
        const hint = 'is the device busy or stuck? timeoutMs of the call, or Nvme.configure, allows more';
        operation.giveUp('ETIMEDOUT', 'it took longer than its time limit', { hint });
        this.#abortCommands(operation);
      }
    }
  }
}
