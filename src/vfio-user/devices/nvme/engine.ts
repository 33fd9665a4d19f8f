/**
 * What moves commands: fetches them from the submission queues in turn, hands them out, posts their completions, and stands still
 * when the host asks for it. What commands do is in `admin.ts` and `io.ts`.
 */
import { isDmaError } from '../../../errors.js';
import { PSDT } from '../../../nvme/commands.js';
import { ENTRY } from '../../../nvme/registers.js';
import { STATUS } from '../../../nvme/status.js';
import { clearTimeout, now, setImmediate } from '../../../timers.js';
import { KiB, MiB } from '../../../units.js';
import type { DeviceDma } from '../model.js';
import { Command } from './command.js';
import { Lists, WAIT } from './lists.js';
import { walkPrp } from './prp.js';
import type { CompletionQueue, SubmissionQueue } from './queues.js';
import { walkSgl } from './sgl.js';
import type { ShadowDoorbells } from './shadow-doorbells.js';

/** Most commands and bytes of one turn, before the host gets its own. */
const SLICE_COMMANDS = 256;
const SLICE_BYTES = 4 * MiB;
/**
 * Most commands that are taken from one queue before the next one has its turn. No more than half of what is ready, but some:
 * so the host deals with the completions of one half while the other one is carried out.
 */
const BURST = 32;
const LEAST_BURST = 8;
/** And bytes of data. */
const BURST_BYTES = 512 * KiB;
/** Most commands of a queue under way: a host that takes no completions, or has a slow disk, must not fill the memory. */
const MOST_OUTSTANDING = 8192;
/** Most bytes of buffers for data under way; then no command is fetched until some are free. */
const MOST_BUFFERED = 64 * MiB;
/**
 * Milliseconds without work until the host is asked to ring, after which this side sleeps. More when there was work soon after that,
 * whatever woke it cost, and less when there was none for long.
 */
const LEAST_IDLE_MS = 0.05;
const MOST_IDLE_MS = 0.5;
const SOON_MS = 2;

/** What the engine asks of the rest of the controller. */
export interface EngineOwner {
  /** Carries out a command, which calls {@link Engine.complete} now or later. */
  execute(command: Command): void;
  /** In a turn, in which the host's memory may be touched. */
  inTurn(): void;
  /** A turn is over: begins what was gathered in it. */
  submit(): void;
  /** Memory of a queue can not be reached: the controller can not go on. */
  fatal(): void;
  /** Signals the interrupt of a queue that has got `count` completions. */
  signal(queue: CompletionQueue, count: number): void;
  /** A command has failed. */
  failed(command: Command, status: number): void;
  /** Nothing is under way any more: no call to a file, no transfer. */
  idle(): void;
  /** The host has written what can not be to a doorbell in memory. */
  badDoorbell(): void;
}

/** The queues and commands of a controller. */
export class Engine {
  /** By id; the admin queues are 0. */
  readonly sqs = new Map<number, SubmissionQueue>();
  readonly cqs = new Map<number, CompletionQueue>();
  shadow: ShadowDoorbells | undefined;
  /** Size of the host's pages, bytes. */
  pageSize = 4096;
  /** Counts lives: commands of earlier ones end without a trace. */
  epoch = 0;

  /** The host's memory, and what the controller has of its own. */
  readonly dma: DeviceDma;
  readonly #owner: EngineOwner;
  /** As `sqs`, for going through it. */
  #order: SubmissionQueue[] = [];
  #turn = 0;
  readonly #dirty: CompletionQueue[] = [];
  readonly #pool: Command[] = [];
  readonly #lists: Lists;
  #running = false;
  #scheduled = false;
  /** When something was done last, by `now`; and for how long nothing must be done until the host is asked to ring. */
  #workedAt = 0;
  #idleMs = LEAST_IDLE_MS;
  /** Was the host asked to ring since? */
  #hasSlept = false;
  #inSlice = false;
  /** Has the host stopped transfers? */
  #paused = false;
  /** Transfers by message that are under way. */
  #transfers = 0;
  #quiet: (() => void) | undefined;
  /** What became possible while transfers were stopped. */
  readonly #afterPause: (() => void)[] = [];
  /** Calls to files that are under way. */
  #calls = 0;
  #buffered = 0;
  #sliceBytes = 0;
  /** Commands that do nothing now, but could be aborted: delayed or lost on purpose, or waiting for an event. */
  readonly held = new Set<Command>();

  constructor(dma: DeviceDma, owner: EngineOwner) {
    this.dma = dma;
    this.#owner = owner;
    this.#lists = new Lists(dma, false);
  }

  /** Is something under way that began in this life or in an earlier one? */
  get isBusy(): boolean {
    return this.#calls > 0 || this.#transfers > 0;
  }

  /** Are commands handed out now, so that what they gather is submitted before the host gets its turn? */
  get inTurn(): boolean {
    return this.#inSlice;
  }

  // --- the life of the controller ---

  start(): void {
    this.#running = true;
  }

  /** Forgets all queues and commands. What is under way ends without a trace. */
  stop(): void {
    this.#running = false;
    this.epoch++;
    this.sqs.clear();
    this.cqs.clear();
    this.#order = [];
    this.#dirty.length = 0;
    this.#afterPause.length = 0;
    // What is under way ends without giving its buffers back.
    this.#buffered = 0;
    this.shadow = undefined;
    for (const command of this.held) this.#forget(command);
    this.held.clear();
  }

  /** Does nothing more, until it is stopped and started. */
  halt(): void {
    this.#running = false;
  }

  quiesce(): Promise<void> | undefined {
    this.#paused = true;
    if (this.#transfers === 0) return undefined;
    return new Promise((resolve) => (this.#quiet = resolve));
  }

  resume(): void {
    this.#paused = false;
    for (const work of this.#afterPause.splice(0)) work();
    this.#owner.submit();
    this.schedule();
  }

  // --- queues ---

  addCompletionQueue(queue: CompletionQueue): void {
    this.cqs.set(queue.id, queue);
    this.#clearShadow((shadow) => shadow.setHead(queue.id, 0), queue.id);
  }

  addSubmissionQueue(queue: SubmissionQueue): void {
    this.sqs.set(queue.id, queue);
    queue.cq.users++;
    this.#order = [...this.sqs.values()];
    this.#clearShadow((shadow) => shadow.setTail(queue.id, 0), queue.id);
  }

  deleteSubmissionQueue(queue: SubmissionQueue): void {
    this.sqs.delete(queue.id);
    queue.cq.users--;
    this.#order = [...this.sqs.values()];
  }

  /** @param done called when nothing is on its way into the queue any more */
  deleteCompletionQueue(queue: CompletionQueue, done: () => void): void {
    this.cqs.delete(queue.id);
    const at = this.#dirty.indexOf(queue);
    if (at >= 0) this.#dirty.splice(at, 1);
    if (queue.writing) queue.onWritten = done;
    else done();
  }

  /** The host says that completion queue `queue` has room again. */
  headMoved(queue: CompletionQueue): void {
    if (queue.waiting > 0) this.#markDirty(queue);
    this.schedule();
  }

  /** Takes the turn soon. */
  schedule(): void {
    if (this.#scheduled || this.#inSlice || !this.#running || this.#paused) return;
    this.#scheduled = true;
    setImmediate(() => {
      this.#scheduled = false;
      this.#slice();
    });
  }

  // --- commands ---

  /** A command is done. @param status the field of 15 bits; @param result the first word of the result */
  complete(command: Command, status: number, result = 0): void {
    const queue = command.queue;
    if (command.epoch === this.epoch) {
      if (status !== 0) this.#owner.failed(command, status);
      queue.cq.push(result, command.resultHigh, queue.id, queue.head, command.cid, status);
      this.#markDirty(queue.cq);
      queue.giveId(command.cid);
      queue.outstanding--;
      if (queue.outstanding === 0 && queue.onIdle !== undefined) {
        const onIdle = queue.onIdle;
        queue.onIdle = undefined;
        onIdle();
      }
      if (!this.#inSlice) this.schedule();
    }
    this.#release(command);
  }

  /** Posts a completion that belongs to no command, as broken devices do. */
  inject(queue: CompletionQueue, sqId: number, sqHead: number, cid: number): void {
    queue.push(0, 0, sqId, sqHead, cid, 0);
    this.#markDirty(queue);
  }

  /** Completes a command that is held. */
  abort(command: Command, status: number): void {
    if (!this.held.delete(command)) return;
    this.#forget(command);
    this.complete(command, status);
  }

  /**
   * Finds the memory of a command, `length` bytes of it. Returns a status, or WAIT: then it is worth trying again when
   * {@link whenListed} says so.
   */
  point(command: Command, length: number, toHost: boolean): number {
    const lists = command.lists ?? this.#lists;
    const psdt = command.flags >>> PSDT.SHIFT;
    const status =
      psdt === PSDT.PRP
        ? walkPrp(command.segments, lists, command.words, length, this.pageSize)
        : walkSgl(command.segments, lists, command.words, length, toHost);
    if (status !== WAIT) return status;
    if (command.lists === undefined) {
      // Once more, and by message.
      command.lists = new Lists(this.dma, true);
      return this.point(command, length, toHost);
    }
    return command.lists.wait === undefined ? STATUS.DATA_TRANSFER_ERROR : WAIT;
  }

  /** Calls `again` when the lists have come that {@link point} waits for. */
  whenListed(command: Command, again: () => void): void {
    const wait = command.lists?.wait;
    if (wait !== undefined) this.#transfer(wait, command, again);
  }

  /** Copies `from` to a command's memory, then calls `done` with a status. */
  scatter(command: Command, from: Uint8Array, done: (status: number) => void): void {
    this.whenRunning(command, () => this.#move(command, () => command.segments.scatter(this.dma, from), done));
  }

  /** Fills `into` from a command's memory, or from other pieces, then calls `done` with a status. */
  gather(command: Command, into: Uint8Array, done: (status: number) => void, from = command.segments): void {
    this.whenRunning(command, () => this.#move(command, () => from.gather(this.dma, into), done));
  }

  /** Runs what touches the host's memory: now, or when transfers may begin again; never after the command's life. */
  whenRunning(command: Command, work: () => void): void {
    if (command.epoch !== this.epoch) this.#release(command);
    else if (this.#paused) this.#afterPause.push(work);
    else work();
  }

  /** Waits for a call to a file: `begin` gets what to call at its end. */
  call(command: Command, begin: (ended: (status: number) => void) => void, done: (status: number) => void): void {
    this.#calls++;
    begin((status) => {
      this.#calls--;
      if (command.epoch === this.epoch) done(status);
      else this.#release(command);
      if (!this.isBusy) this.#owner.idle();
    });
  }

  /** A transfer by message that belongs to no command. @param failed called if it fails */
  track(wait: Promise<void>, failed: () => void): void {
    this.#transfers++;
    const ended = (): void => {
      this.#transferEnded();
      if (!this.isBusy) this.#owner.idle();
    };
    wait.then(ended, () => {
      failed();
      ended();
    });
  }

  /** Counts bytes that were moved at once, so that a turn does not take too long. */
  moved(bytes: number): void {
    this.#sliceBytes += bytes;
  }

  /** A buffer for data under way. */
  buffer(length: number): Uint8Array {
    this.#buffered += length;
    return new Uint8Array(Buffer.allocUnsafeSlow(length).buffer);
  }

  /** Gives a {@link buffer} back. */
  giveBuffer(buffer: Uint8Array): void {
    this.#buffered -= buffer.length;
    if (this.#buffered + buffer.length >= MOST_BUFFERED) this.schedule();
  }

  // --- inside ---

  #move(command: Command, begin: () => Promise<void> | undefined, done: (status: number) => void): void {
    let wait: Promise<void> | undefined;
    try {
      wait = begin();
    } catch (error) {
      if (!isDmaError(error)) throw error;
      done(STATUS.DATA_TRANSFER_ERROR);
      return;
    }
    if (wait === undefined) done(STATUS.SUCCESS);
    else this.#transfer(wait, command, done);
  }

  /** A transfer by message is under way. */
  #transfer(wait: Promise<void>, command: Command, done: (status: number) => void): void {
    this.#transfers++;
    const ended = (status: number): void => {
      this.#transferEnded();
      if (command.epoch === this.epoch) this.whenRunning(command, () => done(status));
      else this.#release(command);
      this.#owner.submit();
      if (!this.isBusy) this.#owner.idle();
    };
    wait.then(
      () => ended(STATUS.SUCCESS),
      () => ended(STATUS.DATA_TRANSFER_ERROR),
    );
  }

  #transferEnded(): void {
    this.#transfers--;
    if (this.#transfers > 0 || this.#quiet === undefined) return;
    const quiet = this.#quiet;
    this.#quiet = undefined;
    quiet();
  }

  #slice(): void {
    if (!this.#running || this.#paused || this.#inSlice) return;
    this.#inSlice = true;
    this.#sliceBytes = 0;
    if (this.shadow?.open() === false) this.shadow = undefined;
    let left = SLICE_COMMANDS;
    let worked = false;
    while (this.#running && left > 0 && this.#sliceBytes < SLICE_BYTES) {
      const count = this.#round(left);
      this.#owner.submit();
      // The host deals with these while the next ones are carried out.
      worked = this.#flush() || worked;
      if (count === 0) break;
      worked = true;
      left -= count;
    }
    this.#owner.inTurn();
    this.#inSlice = false;
    this.#rest(worked);
    this.shadow?.close();
  }

  /** Fetches commands from all queues in turn, at most `most`, and hands them out. Returns how many. */
  #round(most: number): number {
    this.#readTails();
    let left = most;
    for (let n = this.#order.length; n > 0 && left > 0 && this.#running; n--) {
      this.#turn = this.#turn + 1 < this.#order.length ? this.#turn + 1 : 0;
      const queue = this.#order[this.#turn];
      if (!this.#mayFetch(queue)) continue;
      const burst = Math.max(LEAST_BURST, Math.min(BURST, queue.ready >>> 1));
      left -= this.#fetch(queue, Math.min(left, burst));
    }
    return most - left;
  }

  /** After a turn: takes the next one, or sleeps until the host rings. */
  #rest(worked: boolean): void {
    if (!this.#running) return;
    if (worked) this.#noteWork();
    if (
      this.#order.some((queue) => this.#mayFetch(queue)) ||
      this.#dirty.some((queue) => !queue.writing && !queue.isFull)
    )
      this.schedule();
    else if (this.shadow !== undefined) {
      if (now() - this.#workedAt < this.#idleMs || this.#armDoorbells()) this.schedule();
      else this.#hasSlept = true;
    }
  }

  /** Looks longer before it sleeps if the last sleep was hardly worth it, and less long if it was. */
  #noteWork(): void {
    const at = now();
    if (this.#hasSlept) {
      this.#hasSlept = false;
      const isSoon = at - this.#workedAt < SOON_MS;
      this.#idleMs = Math.min(MOST_IDLE_MS, Math.max(LEAST_IDLE_MS, this.#idleMs * (isSoon ? 2 : 0.5)));
    }
    this.#workedAt = at;
  }

  #mayFetch(queue: SubmissionQueue): boolean {
    return (
      queue.ready > 0 &&
      !queue.fetching &&
      queue.onIdle === undefined &&
      queue.cq.waiting < 64 &&
      queue.outstanding < MOST_OUTSTANDING &&
      this.#buffered < MOST_BUFFERED
    );
  }

  /** Takes up to `most` commands out of a queue and hands them out. Returns how many. */
  #fetch(queue: SubmissionQueue, most: number): number {
    const count = Math.min(queue.ready, most, queue.size - queue.head);
    const iova = queue.iova + queue.head * ENTRY.SUBMISSION;
    try {
      const bytes = this.dma.direct(iova, count * ENTRY.SUBMISSION, 'read');
      if (bytes !== undefined) {
        if (bytes.byteOffset % 4 === 0)
          return this.#take(queue, new Uint32Array(bytes.buffer, bytes.byteOffset, count * 16), count);
        const copy = bytes.slice();
        return this.#take(queue, new Uint32Array(copy.buffer), count);
      }
      const copy = new Uint32Array(count * 16);
      const wait = this.dma.read(iova, new Uint8Array(copy.buffer));
      if (wait === undefined) return this.#take(queue, copy, count);
      queue.fetching = true;
      this.#transfers++;
      const epoch = this.epoch;
      const ended = (came: boolean): void => {
        queue.fetching = false;
        this.#transferEnded();
        if (this.#isThere(queue, epoch)) {
          if (!came) this.#owner.fatal();
          else if (this.#paused) this.#afterPause.push(() => this.#took(queue, copy, count));
          else this.#took(queue, copy, count);
        }
        if (!this.isBusy) this.#owner.idle();
      };
      wait.then(
        () => ended(true),
        () => ended(false),
      );
    } catch (error) {
      if (!isDmaError(error)) throw error;
      this.#owner.fatal();
    }
    return 0;
  }

  /** Is this queue of that life there? It may have been deleted while entries were on their way. */
  #isThere(queue: SubmissionQueue, epoch: number): boolean {
    return epoch === this.epoch && this.sqs.get(queue.id) === queue;
  }

  /** Commands came by message. */
  #took(queue: SubmissionQueue, words: Uint32Array, count: number): void {
    if (!this.#running || !this.#isThere(queue, this.epoch)) return;
    this.#inSlice = true;
    this.#take(queue, words, count);
    this.#inSlice = false;
    this.#owner.submit();
    this.schedule();
  }

  #take(queue: SubmissionQueue, words: Uint32Array, count: number): number {
    let taken = 0;
    const most = this.#sliceBytes + BURST_BYTES;
    while (taken < count && this.#running && queue.onIdle === undefined && this.#sliceBytes < most) {
      const command = this.#command(queue);
      for (let word = 0, at = taken * 16; word < 16; word++) command.words[word] = words[at + word];
      taken++;
      queue.head = queue.head + 1 === queue.size ? 0 : queue.head + 1;
      queue.outstanding++;
      if (!queue.takeId(command.cid)) this.#conflict(queue, command);
      else this.#owner.execute(command);
    }
    return taken;
  }

  /** A command with the identifier of one that is outstanding; that one keeps it. */
  #conflict(queue: SubmissionQueue, command: Command): void {
    this.#owner.failed(command, STATUS.ID_CONFLICT);
    queue.cq.push(0, 0, queue.id, queue.head, command.cid, STATUS.ID_CONFLICT);
    this.#markDirty(queue.cq);
    queue.outstanding--;
    this.#release(command);
  }

  #command(queue: SubmissionQueue): Command {
    const command = this.#pool.pop();
    if (command === undefined) {
      const made = new Command(queue);
      made.epoch = this.epoch;
      return made;
    }
    command.queue = queue;
    command.epoch = this.epoch;
    return command;
  }

  #release(command: Command): void {
    command.lists = undefined;
    command.resultHigh = 0;
    if (this.#pool.length < 1024) this.#pool.push(command);
  }

  #forget(command: Command): void {
    clearTimeout(command.timer);
    command.timer = undefined;
  }

  #markDirty(queue: CompletionQueue): void {
    if (!this.#dirty.includes(queue)) this.#dirty.push(queue);
  }

  /** Posts completions, and one interrupt for each queue that got some. Returns whether there were any. */
  #flush(): boolean {
    const had = this.#dirty.length > 0;
    if (this.#paused || !this.#running) return false;
    for (let n = this.#dirty.length - 1; n >= 0; n--) {
      const queue = this.#dirty[n];
      if (!queue.writing) this.#post(queue);
      if (!this.#running) break;
      if (queue.waiting === 0) this.#dirty.splice(n, 1);
    }
    return had;
  }

  #post(queue: CompletionQueue): void {
    const before = queue.posted;
    let wait: Promise<void> | undefined;
    try {
      if (queue.isFull) this.#findRoom(queue);
      this.#mindHead(queue);
      wait = queue.post(this.dma);
      if (wait === undefined && queue.isFull && queue.waiting > 0 && this.#findRoom(queue)) {
        this.#mindHead(queue);
        wait = queue.post(this.dma);
      }
    } catch (error) {
      if (!isDmaError(error)) throw error;
      this.#owner.fatal();
      return;
    }
    if (wait === undefined) {
      if (queue.posted !== before && queue.interrupts) this.#owner.signal(queue, queue.posted - before);
      return;
    }
    this.#transfers++;
    const epoch = this.epoch;
    const ended = (came: boolean): void => {
      this.#transferEnded();
      if (epoch === this.epoch) {
        if (this.cqs.get(queue.id) === queue) {
          if (!came) this.#owner.fatal();
          else if (queue.interrupts) this.#owner.signal(queue, queue.posted - before);
          if (queue.waiting > 0) this.#markDirty(queue);
        }
        queue.onWritten?.();
        this.schedule();
      }
      if (!this.isBusy) this.#owner.idle();
    };
    wait.then(
      () => ended(true),
      () => ended(false),
    );
  }

  /** Clears a doorbell in memory of a new queue, which is `queue`. */
  #clearShadow(clear: (shadow: ShadowDoorbells) => void, queue: number): void {
    const { shadow } = this;
    if (shadow === undefined || queue === 0) return;
    const { isOpen } = shadow;
    if (isOpen || shadow.open()) clear(shadow);
    if (!isOpen) shadow.close();
  }

  #readTails(): void {
    const { shadow } = this;
    if (shadow === undefined) return;
    for (const queue of this.#order) {
      if (queue.id === 0) continue;
      const tail = shadow.tail(queue.id);
      if (tail === queue.tail) continue;
      if (tail >= queue.size) return this.#badDoorbell();
      queue.tail = tail;
      // It is looked at again soon: no message, unless the host goes once around.
      shadow.askAtTail(queue.id, tail === 0 ? queue.size - 1 : tail - 1);
    }
  }

  /** Takes the head of a full queue from memory. Returns whether there is room. */
  #findRoom(queue: CompletionQueue): boolean {
    const { shadow } = this;
    if (shadow === undefined || queue.id === 0) return !queue.isFull;
    this.#takeHead(queue, shadow.head(queue.id));
    // Only a host that has taken nothing is asked to tell.
    if (queue.isFull && this.shadow !== undefined) {
      queue.mindedHead = -1;
      this.#takeHead(queue, shadow.wakeAtHead(queue.id, queue.head));
    }
    return !queue.isFull;
  }

  /** The head of a queue, as the host has put it into memory. */
  #takeHead(queue: CompletionQueue, head: number): void {
    if (head >= queue.size) this.#badDoorbell();
    else if ((queue.tail - head + queue.size) % queue.size <= queue.unseen) queue.head = head;
  }

  /** The head is of interest only when there is no room: no message for one that is where it can not get. */
  #mindHead(queue: CompletionQueue): void {
    const { head, size } = queue;
    if (this.shadow === undefined || queue.id === 0 || queue.mindedHead === head || queue.isFull) return;
    this.shadow.askAtHead(queue.id, head === 0 ? size - 1 : head - 1);
    queue.mindedHead = head;
  }

  /** Asks the host to ring. Returns whether something has come meanwhile. */
  #armDoorbells(): boolean {
    const { shadow } = this;
    if (shadow === undefined) return false;
    let came = false;
    for (const queue of this.#order)
      if (queue.id !== 0) came ||= shadow.wakeAtTail(queue.id, queue.tail) !== queue.tail;
    return came;
  }

  /** Nonsense in memory is not looked at any more: from now on the registers are the doorbells. */
  #badDoorbell(): void {
    this.shadow = undefined;
    this.#owner.badDoorbell();
  }
}
