/** A queue pair that another thread opened, in the thread that works it. */
import { attachStores, type AttachedStores, type LentStores } from '../../bus/lent-registers.js';
import { closedDriver } from '../../bus/closed-device.js';
import { AttachedDevice } from '../../bus/attached-device.js';
import { mustBeMs } from '../../check.js';
import { DmaError, invalid, throwFirst, undoAll, withUndo } from '../../errors.js';
import { Holders } from '../../memory/shared/holders.js';
import type { HoldOf } from '../../memory/shared/hold.js';
import type { SharedFacts } from '../../memory/shared/shared.js';
import type { SharedWithQueue, WordMemory } from '../../memory/shared/words.js';
import type { Platform } from '../../platform/ports.js';
import type { RegisterStores } from '../../platform/registers/registers.js';
import { shortForm } from '../../short-form.js';
import { show } from '../../show.js';
import type { MemoryPart } from '../../memory/part.js';
import type { Iova, IovaLike, Va, VaLike } from '../../units.js';
import type { AttachedNvmeNamespace } from './attached-namespace.js';
import type { DmaPart, SharedPart } from '../dma-memory.js';
import { Doorbell, type ShadowDoorbells } from './doorbells.js';
import { hasMetadataApart, NvmeQueue, type AttachedNvmeQueue } from './queue.js';
import { QueueCalls } from './queue-calls.js';
import type { NvmeQueueFacts } from './shared-queue.js';
import { Turn, TURN, whoHas } from '../../memory/shared/turn.js';
import { ABORT, METADATA_APART, QUEUE_WORD as WORD, QueueState, RUN } from './queue-state.js';

/**
 * A queue pair of another thread's controller, which this thread works: see {@link NvmeQueue}. Commands are stores to memory and to
 * the controller; the other thread takes no part in it. Disposing it gives the queue back, with what still runs.
 *
 * Either the program works it by slots, or {@link NvmeQueueOfThread.namespace} gives calls.
 *
 * While the controller is being reset, commands are refused (EAGAIN), and those that ran are returned by `poll` with the status
 * `ABORTED_BY_HOST`, as in the thread that opened the queue. It works again once that thread's event loop has started it again.
 */
export class NvmeQueueOfThread extends NvmeQueue implements AttachedNvmeQueue {
  /** The name of its device. */
  readonly device: string;
  readonly #queueState: QueueState;
  readonly #words: Int32Array;
  readonly #own: OwnParts;
  readonly #hold: HoldOf;
  readonly #turn: Turn;
  readonly #owner: number;
  readonly #facts: NvmeQueueFacts;
  /** Works the queue by calls, with a queue object of their own over the same rings. */
  #calls: { readonly queue: NvmeQueueOfThread; readonly calls: QueueCalls } | undefined;
  /** Told what the other thread has told. */
  #changed: ((run: number, ended: DmaError | undefined) => void) | undefined;
  #epoch = -1;
  /** Is the controller stopped? */
  #stopped = false;
  #ended = false;

  private constructor(
    facts: NvmeQueueFacts,
    hold: HoldOf,
    turn: Turn,
    owner: number,
    state: QueueState,
    own: OwnParts,
  ) {
    const { id, entries, interrupts, listBytes, pageSize, maxTransfer } = facts;
    super({
      ...{ id, entries, interrupts, listBytes, pageSize, maxTransfer, state },
      ...own.parts,
      formatOf: (nsid) => formatOf(state, nsid),
      failed: (error) => this.#broke(error),
    });
    this.device = facts.device;
    this.#facts = facts;
    this.#hold = hold;
    this.#queueState = state;
    this.#words = state.words;
    this.#own = own;
    this.#turn = turn;
    this.#owner = owner;
    this.#look();
  }

  /**
   * @internal For `attach`.
   *
   * @param hold of this thread, which ends with it
   * @throws DmaError EBUSY while another thread has the queue, or its maker took it back
   */
  static attach(
    { holders: table, state: buffer, more }: SharedWithQueue,
    facts: NvmeQueueFacts,
    hold: HoldOf,
    platform: Platform,
    operation = 'attach',
  ): NvmeQueueOfThread {
    const holders = Holders.attach(platform.kernel, table);
    const owner = holders.enter();
    const state = new QueueState(facts.entries - 1, buffer);
    const turn = new Turn(state.words, WORD.OWNER, holders);
    const before = turn.take(owner);
    if (before !== TURN.OFFERED) {
      hold.leave();
      throw taken(facts, before, holders, operation);
    }
    const own = new OwnParts(platform, facts, state, more, holders, hold);
    try {
      own.open();
      return new NvmeQueueOfThread(facts, hold, turn, owner, state, own);
    } catch (error) {
      const undo = undoAll([() => own.close()]);
      hold.leave();
      turn.leave(owner);
      throw withUndo(error, operation, undo);
    }
  }

  /** Is it this thread's? False once it was given back. */
  get live(): boolean {
    return !this.#ended;
  }

  iovaOf(memory: MemoryPart | VaLike): Iova {
    return this.#own.addresses.iovaOf(memory);
  }

  namespace(id: number): AttachedNvmeNamespace {
    if (this.#ended) throw this.#gone();
    if (Atomics.load(this.#words, WORD.EPOCH) !== this.#epoch && this.#calls === undefined) this.#look();
    formatOf(this.#queueState, id);
    return this.#callsOf('nvmeQueue.namespace').namespace(id);
  }

  wait(timeoutMs: number): boolean {
    const operation = 'nvmeQueue.wait';
    mustBeMs(timeoutMs, 'timeoutMs', operation);
    if (this.#ended) throw this.#gone();
    if (this.#calls !== undefined) throw this.#isOfCalls();
    return this.#own.wait(timeoutMs, operation);
  }

  override transfer(
    slot: number,
    opcode: number,
    nsid: number,
    lba: number,
    blocks: number,
    iova: IovaLike,
    flags: number,
  ): void {
    if (Atomics.load(this.#words, WORD.EPOCH) !== this.#epoch) this.#look();
    super.transfer(slot, opcode, nsid, lba, blocks, iova, flags);
  }

  override flush(slot: number, nsid: number): void {
    if (Atomics.load(this.#words, WORD.EPOCH) !== this.#epoch) this.#look();
    super.flush(slot, nsid);
  }

  override submit(slot: number, entry: Uint32Array): void {
    if (Atomics.load(this.#words, WORD.EPOCH) !== this.#epoch) this.#look();
    super.submit(slot, entry);
  }

  override ring(): void {
    if (Atomics.load(this.#words, WORD.EPOCH) !== this.#epoch) this.#look();
    super.ring();
  }

  override poll(): number {
    if (Atomics.load(this.#words, WORD.EPOCH) !== this.#epoch) this.#look();
    // The ring is the other thread's now, until it has started the controller again.
    if (this.#stopped && !this.hasAbandoned) return 0;
    return super.poll();
  }

  /** @internal The process that has the controller has ended: nothing can be submitted any more. */
  lose(why: DmaError): void {
    const error = why.with({ operation: 'nvmeQueue' });
    const errors = undoAll([() => this.#own.cutOff()]);
    this.refuse(() => error);
    this.#calls?.calls.lose(error);
    throwFirst(errors, 'nvmeQueue');
  }

  /** @internal Looks at what the process that has the controller has told, which says that there is something. */
  look(): void {
    const queue = this.#calls?.queue ?? this;
    if (Atomics.load(this.#words, WORD.EPOCH) !== queue.#epoch) queue.#look();
  }

  /** Gives the queue back: its maker, or another thread, goes on with it. Idempotent. */
  [Symbol.dispose](): void {
    if (this.#ended) return;
    if (this.#calls !== undefined) {
      const { queue, calls } = this.#calls;
      if (calls.size > 0) throw this.#isOfCalls(calls.size);
      calls.end(this.#gone());
      this.#ended = true;
      this.refuse(() => this.#gone());
      queue[Symbol.dispose]();
      return;
    }
    if (Atomics.load(this.#words, WORD.EPOCH) !== this.#epoch) this.#look();
    // The controller has none of what it was stopped in.
    if (this.#stopped) this.resume();
    this.#ended = true;
    this.save();
    this.refuse(() => this.#gone());
    this.#epoch = this.#queueState.load(WORD.EPOCH);
    const errors = undoAll([() => this.#own.close()]);
    this.#hold.leave();
    this.#turn.leave(this.#owner);
    throwFirst(errors, 'nvmeQueue.dispose');
  }

  /** Looks at what the thread that opened it has told. */
  #look(): void {
    if (this.#ended) return;
    const state = this.#queueState;
    const wasStopped = this.#stopped;
    const epoch = state.load(WORD.EPOCH);
    const run = state.load(WORD.RUN);
    if (this.#epoch === -1) this.load();
    this.forgetFormat();
    this.#own.useShadow(state.load(WORD.SHADOW) === 1);
    if (run !== RUN.ON) {
      this.halt(run === RUN.ENDED ? this.#closed() : beingReset(this.device));
      if (run !== RUN.HALTED && !wasStopped) this.abandon();
      // Nothing is stored to the controller any more.
      if (run === RUN.ENDED) this.#own.cutOff();
    } else if (wasStopped) this.resume();
    this.#stopped = run === RUN.STOPPED || run === RUN.ENDED;
    this.#epoch = epoch;
    // From here on the rings are left alone until the next epoch, unless the controller works.
    state.store(WORD.SEEN, epoch);
    this.#changed?.(run, run === RUN.ENDED ? this.#closed() : undefined);
  }

  #closed(): DmaError {
    return closedDriver('nvmeQueue').with({ device: this.device });
  }

  /** From now on the queue is worked by calls. */
  #callsOf(operation: string): QueueCalls {
    if (this.#calls !== undefined) return this.#calls.calls;
    if (this.running > 0)
      throw new DmaError({
        code: 'EBUSY',
        operation,
        device: this.device,
        reason: `${this.running} commands run in queue ${this.id}`,
        hint: 'poll until queue.running is 0, or use another queue for calls',
      });
    this.save();
    const own = this.#own;
    const state = this.#queueState;
    const queue = new NvmeQueueOfThread(this.#facts, this.#hold, this.#turn, this.#owner, state, own);
    const { rules, timeoutMs, abortMs } = this.#facts;
    const calls = new QueueCalls({
      ...{ queue, abortMs, interrupts: own.interrupts },
      context: { device: own.addresses, rules, timeoutMs },
      blockBytes: (nsid) => formatOf(state, nsid).blockBytes,
      look: () => {
        if (Atomics.load(this.#words, WORD.EPOCH) !== queue.#epoch) queue.#look();
      },
      abort: (slot) => {
        Atomics.store(state.aborts, slot, ABORT.WANTED);
        own.callMaker();
      },
      isAborting: (slot) => Atomics.load(state.aborts, slot) !== ABORT.NONE,
      reset: (why) => queue.#broke(why),
    });
    queue.#changed = (run, ended) => calls.changed(run, ended);
    own.watch(() => calls.interrupt());
    this.#calls = { queue, calls };
    this.refuse(() => this.#isOfCalls());
    return calls;
  }

  #isOfCalls(running?: number): DmaError {
    return new DmaError({
      code: 'EBUSY',
      operation: 'nvmeQueue',
      device: this.device,
      reason:
        running === undefined
          ? `queue ${this.id} is worked by calls of its namespaces`
          : `${running} calls run in queue ${this.id}`,
      hint:
        running === undefined
          ? 'use namespace(id).read and write; or dispose the queue, and attach to it again'
          : 'wait until they have settled, or abort them',
    });
  }

  #broke(error: unknown): void {
    const why = withUndo(error, 'nvmeQueue', []).with({ device: this.device });
    this.halt(why);
    this.#queueState.store(WORD.BROKEN, 1);
    this.#queueState.store(WORD.RESET, 1);
    this.#own.callMaker();
  }

  #gone(): DmaError {
    return new DmaError({
      code: 'EBADF',
      operation: 'nvmeQueue',
      device: this.device,
      reason: `queue ${this.id} was given back by this thread`,
      hint: 'attach to it again',
    });
  }
}

/** @internal The facts of a shared queue, which the seal says `share` made. */
export function nvmeQueueFacts({ text }: SharedFacts): NvmeQueueFacts {
  return JSON.parse(String(text)) as NvmeQueueFacts;
}

/** @internal Its name in messages. */
export function queueName({ id, device }: NvmeQueueFacts): string {
  return `queue ${id} of ${device}`;
}

/** What this thread has of its own: views of the memory, and doorbells. */
class OwnParts {
  readonly #platform: Platform;
  readonly #facts: NvmeQueueFacts;
  readonly #words: WordMemory | undefined;
  readonly #state: QueueState;
  readonly #holders: Holders;
  readonly #hold: HoldOf;
  readonly #tables: readonly WordMemory[];
  #addresses: AttachedDevice | undefined;
  #interrupt: number | undefined;
  #calls = -1;
  readonly #undo: (() => void)[] = [];
  readonly #stores = new Set<AttachedStores>();
  #parts: Parts | undefined;
  #shadow: ShadowDoorbells | undefined;

  constructor(
    platform: Platform,
    facts: NvmeQueueFacts,
    state: QueueState,
    more: readonly WordMemory[],
    holders: Holders,
    hold: HoldOf,
  ) {
    const tables = facts.domain === undefined ? 0 : 2;
    this.#platform = platform;
    this.#facts = facts;
    this.#state = state;
    this.#words = more.at(tables);
    this.#holders = holders;
    this.#tables = more.slice(0, tables);
    this.#hold = hold;
  }

  /** The addresses of memory for the device. @throws DmaError as `AttachedTable` */
  get addresses(): AttachedDevice {
    const { device: name, driver, domain } = this.#facts;
    return (this.#addresses ??= new AttachedDevice({ name, driver, domain }, this.#hold, this.#tables));
  }

  get parts(): Parts {
    if (this.#parts === undefined) throw closedDriver('nvmeQueue');
    return this.#parts;
  }

  open(): void {
    const { submissions, completions, lists, tail, head, registers, shadow, remote, interrupt, calls } = this.#facts;
    this.#calls = this.#duplicate(calls);
    if (interrupt !== undefined) this.#interrupt = this.#duplicate(interrupt);
    const stores = registers === undefined ? this.#storesByCall(tail) : this.#attach(registers);
    if (shadow !== undefined) {
      const words = (va: number): Uint32Array => new Uint32Array(this.#view(va, shadow.length));
      this.#shadow = { values: words(shadow.values), events: words(shadow.events) };
    }
    this.#parts = {
      submissions: this.#part(submissions),
      completions: this.#part(completions),
      lists: this.#part(lists),
      tail: new Doorbell(stores, tail),
      head: new Doorbell(stores, head),
      ...(remote === undefined ? {} : { remote: { registers: this.#attach(remote.registers), offset: remote.offset } }),
    };
  }

  /** Do the doorbells go to memory? */
  useShadow(isUsed: boolean): void {
    const { tail, head } = this.parts;
    const [tailAt = 0, headAt = 0] = this.#facts.shadow?.indexes ?? [];
    const shadow = isUsed ? this.#shadow : undefined;
    for (const [bell, index] of [[tail, tailAt] as const, [head, headAt] as const]) {
      bell.useShadow(shadow, index);
      bell.load();
    }
  }

  /** Is there an interrupt for this queue alone? */
  get interrupts(): boolean {
    return this.#interrupt !== undefined;
  }

  /** Blocks until the controller interrupts. */
  wait(timeoutMs: number, operation: string): boolean {
    const fd = this.#interrupt;
    const { events, readiness } = this.#platform;
    if (fd === undefined) throw noInterrupt(this.#facts, operation);
    const isReady = readiness.wait([{ fd, readable: true, writable: false }], timeoutMs);
    if (isReady) events.take(fd);
    return isReady;
  }

  /** Calls `interrupt` from the event loop for each interrupt, if there are any. They do not keep the process alive. */
  watch(interrupt: () => void): void {
    const fd = this.#interrupt;
    const { events, readiness } = this.#platform;
    if (fd === undefined) return;
    const watch = readiness.watch(fd, { readable: true }, () => {
      if (events.take(fd) > 0) interrupt();
    });
    this.#undo.push(() => watch.close());
    watch.setRef(false);
  }

  /** Calls the thread that has the controller. */
  callMaker(): void {
    this.#platform.events.signal(this.#calls);
  }

  /** Ends stores to the controller, whose registers may be gone. */
  cutOff(): void {
    throwFirst(undoAll([...this.#stores].map((stores) => () => stores[Symbol.dispose]())), 'nvmeQueue');
  }

  #duplicate(fd: number): number {
    const { files } = this.#platform;
    const own = files.duplicate(fd);
    this.#undo.push(() => files.close(own));
    return own;
  }

  close(): void {
    throwFirst(undoAll(this.#undo.splice(0).reverse()), 'nvmeQueue.dispose');
  }

  /** The thread that has the controller stores what is asked for. */
  #storesByCall(tail: number): RegisterStores {
    const { words } = this.#state;
    return {
      write32: (offset, value) => {
        Atomics.store(words, offset === tail ? WORD.TAIL_BELL : WORD.HEAD_BELL, value + 1);
        this.callMaker();
      },
    };
  }

  #attach(stores: LentStores): AttachedStores {
    const attached = attachStores(this.#platform, stores, this.#words, this.#holders);
    this.#stores.add(attached);
    this.#undo.push(() => attached[Symbol.dispose]());
    return attached;
  }

  #part({ va, length, iova }: SharedPart): DmaPart {
    return { bytes: new Uint8Array(this.#view(va, length)), iova };
  }

  #view(va: number, length: number): ArrayBuffer {
    const { memory } = this.#platform;
    const buffer = memory.view(va as Va, length);
    this.#undo.push(() => memory.detach(buffer));
    return buffer;
  }
}

interface Parts {
  readonly submissions: DmaPart;
  readonly completions: DmaPart;
  readonly lists: DmaPart;
  readonly tail: Doorbell;
  readonly head: Doorbell;
  readonly remote?: { readonly registers: AttachedStores; readonly offset: number };
}

function formatOf(state: QueueState, nsid: number): { readonly blockBytes: number } {
  const blockBytes = state.formatOf(nsid);
  if (blockBytes === METADATA_APART) throw hasMetadataApart(nsid);
  if (blockBytes !== undefined) return { blockBytes };
  throw invalid('nvmeQueue', `there is no namespace ${show(nsid)}`, {
    hint: 'the thread that opened the device knows which there are: disk.namespaces',
  });
}

function noInterrupt({ device, id, interrupts }: NvmeQueueFacts, operation: string): DmaError {
  return new DmaError({
    code: 'ENOTSUP',
    operation,
    device,
    reason: interrupts
      ? `the interrupt of queue ${id} is that of other queues, too, or it can not be waited for in another thread`
      : `queue ${id} has no interrupt`,
    hint: interrupts
      ? 'limits.vectors says how many there are; share queues before others are opened'
      : 'openQueue({ interrupts: true })',
  });
}

function beingReset(device: string): DmaError {
  return new DmaError({
    code: 'EAGAIN',
    operation: 'nvmeQueue',
    device,
    reason: 'the controller is being reset',
    hint: 'poll the queue, and submit again',
  });
}

/** EBUSY, as `before` has the queue. */
function taken({ id, device }: NvmeQueueFacts, before: number, holders: Holders, operation: string): DmaError {
  const isMaker = before === TURN.MAKER;
  return new DmaError({
    code: 'EBUSY',
    operation,
    device,
    reason: isMaker
      ? `the thread that opened queue ${id} works it itself, or has closed it`
      : `${whoHas(before, holders)} queue ${id}`,
    hint: isMaker
      ? 'queue.share() offers it again'
      : 'it is free once that thread disposes it, or takeBack(queue) returned',
  });
}

shortForm(NvmeQueueOfThread, 'AttachedNvmeQueue', ({ id, device, capacity, live }) => ({ id, device, capacity, live }));
