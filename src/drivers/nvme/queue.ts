/**
 * A queue pair: commands go in by number, and completions come out in batches. Nothing is allocated for a command, and a
 * batch is one store to the controller.
 */
import { DmaError, invalid } from '../../errors.js';
import { CQE, NVM, PSDT, SQE, commandName } from '../../nvme/commands.js';
import { ENTRY } from '../../nvme/registers.js';
import { STATUS } from '../../nvme/status.js';
import type { Shared } from '../../memory/shared/shared.js';
import type { RegisterStores } from '../../platform/registers/registers.js';
import { shortForm } from '../../short-form.js';
import { show } from '../../show.js';
import { hex, type Iova, type IovaLike, type VaLike } from '../../units.js';
import type { MemoryPart } from '../../memory/part.js';
import type { AttachedNvmeNamespace } from './attached-namespace.js';
import type { Doorbell } from './doorbells.js';
import type { DmaPart } from '../dma-memory.js';
import { STAYS } from '../../stays.js';
import { QUEUE_WORD, QueueState, SLOT } from './queue-state.js';

/** The words of a submission entry. */
export const ENTRY_WORDS = ENTRY.SUBMISSION / 4;
const COMPLETION_WORDS = ENTRY.COMPLETION / 4;

/**
 * The status of a command that was running when the controller was reset: "command aborted by host" (path related, NVMe 2.0).
 * Whether it was done is not known.
 */
export const ABORTED_BY_HOST = STATUS.ABORTED_BY_HOST;

/** In so many calls of `poll` that find nothing, though something runs, the controller is looked at once: a power of two. */
const LOOK_POLLS = 1024;

/** EINVAL for blocks with metadata that is kept apart. */
export function hasMetadataApart(nsid: number): DmaError {
  const reason = `namespace ${nsid} has metadata apart from the data, for which there is no memory here`;
  const hint = 'submit an entry of your own, with its metadata pointer; or use namespace.read and write';
  return invalid('nvmeQueue', reason, { hint });
}

/** The operation of errors about completions that can not be. */
export const GARBAGE = 'nvmeQueue.poll';

const { FREE, RUNNING, ABANDONED } = SLOT;

/** What a queue needs to know of a namespace. */
export interface BlockFormat {
  /** Bytes of a block as they are transferred, metadata included where it is in line. */
  readonly blockBytes: number;
}

/** What a queue is made of. */
export interface QueueParts {
  /** 0 is the admin queue. */
  readonly id: number;
  /** Entries of each of its two rings. */
  readonly entries: number;
  readonly submissions: DmaPart;
  readonly completions: DmaPart;
  /** Memory for lists of pages, `listBytes` for each slot. */
  readonly lists: DmaPart;
  readonly listBytes: number;
  /** The controller's page, bytes. */
  readonly pageSize: number;
  /** Most bytes of a command. */
  readonly maxTransfer: number;
  readonly tail: Doorbell;
  readonly head: Doorbell;
  /** Does the controller interrupt for it? */
  readonly interrupts: boolean;
  /** The submission ring in the controller's memory buffer, if it is there: entries are copied to it. */
  readonly remote?: { readonly registers: RegisterStores; readonly offset: number };
  /** The format of namespace `nsid`. @throws DmaError EINVAL if there is none */
  readonly formatOf: (nsid: number) => BlockFormat;
  /** Told of a completion that is none of a running command, and of a register that can not be reached. */
  readonly failed: (error: unknown) => void;
  /** Looks whether the controller is alive: called while nothing comes, again and again. */
  readonly look?: () => void;
  /** What another thread made. Default: a new one. */
  readonly state?: QueueState;
  /** Offers it to other threads. @throws DmaError */
  readonly share?: (queue: NvmeQueue) => Shared<AttachedNvmeQueue>;
}

/** A queue pair of another thread's controller, in the thread that attached to it. Disposing it gives the queue back. */
export interface AttachedNvmeQueue extends NvmeQueue, Disposable {
  /** The name of its device. */
  readonly device: string;
  /** Is it this thread's? False once it was given back. */
  readonly live: boolean;
  /**
   * A namespace, whose blocks are read and written by calls with a promise each. From the first use on the queue is worked by those calls:
   * its own (`read`, `submit`, `poll` ...) are EBUSY until it is attached again.
   *
   * @throws DmaError EINVAL if there is none; EBUSY while commands run in the queue
   */
  namespace(id: number): AttachedNvmeNamespace;
  /** The IOVA of memory that is mapped for the device: as `AttachedDevice.iovaOf`. */
  iovaOf(memory: MemoryPart | VaLike): Iova;
  /**
   * Blocks this thread until the controller interrupts for the queue, or what it does changes (a reset). Poll until nothing comes, then
   * wait: what completes in between is not missed.
   *
   * @param timeoutMs milliseconds
   * @returns false when the time is over
   * @throws DmaError ENOTSUP for a queue without `interrupts`, and where other queues have the same interrupt
   */
  wait(timeoutMs: number): boolean;
}

/**
 * A queue pair.
 *
 * A command is in a slot, which the caller chooses, 0 to {@link capacity} less one, and which is free again once
 * {@link poll} has returned it. So there is room for every command with a free slot, and the slot is its identifier: it is not
 * used again before the command has come back.
 *
 * Memory of running commands must stay mapped: it can not be unmapped or freed meanwhile.
 */
export class NvmeQueue {
  /** @internal */
  readonly stays = STAYS;
  /** Its number at the controller. */
  readonly id: number;
  /** Slots: most commands that can run. */
  readonly capacity: number;
  /** Most bytes of a command. */
  readonly maxTransfer: number;

  // What `poll` found, entry by entry. Valid until the next call of it.
  /** Slots of commands that have completed. */
  readonly slots: Uint16Array;
  /** How each ended: type and code as `STATUS` has them, with the bits of `STATUS_FIELD`; 0 is success. */
  readonly statuses: Uint16Array;
  /** The result of each (dword 0 of the completion). */
  readonly results: Uint32Array;
  /** Dword 1 of the completion: for commands with a result of 64 bits. */
  readonly resultsHigh: Uint32Array;

  readonly #parts: QueueParts;
  readonly #entries: number;
  readonly #sq: Uint32Array;
  readonly #cq: Uint32Array;
  readonly #lists: Uint32Array;
  readonly #listWords: number;
  readonly #pageSize: number;
  readonly #tailBell: Doorbell;
  readonly #headBell: Doorbell;
  readonly #state: QueueState;
  readonly #states: Uint8Array;
  readonly #opcodes: Uint8Array;
  readonly #nsids: Uint32Array;
  readonly #lbas: Float64Array;
  readonly #blocks: Uint32Array;
  readonly #iovas: Float64Array;
  readonly #lengths: Float64Array;
  /** Which pages the list of each slot has: the first one's address, and how many. */
  readonly #listed: Float64Array;
  readonly #listCounts: Uint32Array;
  #tail = 0;
  #rung = 0;
  #head = 0;
  #phase = 1;
  /** Completions that were taken and that the controller was not told of. */
  #untold = 0;
  #running = 0;
  /** Calls of `poll` that found nothing. */
  #empty = 0;
  /** The namespace of the last command, and the bytes of its blocks. */
  #nsid = NaN;
  #blockBytes = 0;
  /** Why nothing can be submitted now. */
  #halted: DmaError | undefined;
  /** The error of all calls while another thread has it. */
  #refuse: (() => DmaError) | undefined;
  /** Commands that the next `poll` returns because the controller was stopped. */
  #abandoned = 0;
  /** For the event loop: called by `ring` when there is something new. */
  onRing: (() => void) | undefined;

  /** @internal made by the driver */
  constructor(parts: QueueParts) {
    const { id, entries, submissions, completions, lists, listBytes, pageSize, maxTransfer } = parts;
    this.#parts = parts;
    this.id = id;
    this.#entries = entries;
    this.capacity = entries - 1;
    this.maxTransfer = maxTransfer;
    const { capacity } = this;
    this.slots = new Uint16Array(capacity);
    this.statuses = new Uint16Array(capacity);
    this.results = new Uint32Array(capacity);
    this.resultsHigh = new Uint32Array(capacity);
    this.#sq = wordsOf(submissions, entries * ENTRY_WORDS);
    this.#cq = wordsOf(completions, entries * COMPLETION_WORDS);
    this.#listWords = listBytes / 4;
    this.#lists = wordsOf(lists, capacity * this.#listWords);
    this.#pageSize = pageSize;
    this.#tailBell = parts.tail;
    this.#headBell = parts.head;
    const state = (this.#state = parts.state ?? new QueueState(capacity));
    this.#states = state.states;
    this.#opcodes = state.opcodes;
    this.#nsids = state.nsids;
    this.#lbas = state.lbas;
    this.#blocks = state.blocks;
    this.#iovas = state.iovas;
    this.#lengths = state.lengths;
    this.#listed = new Float64Array(capacity);
    this.#listCounts = new Uint32Array(capacity);
    if (parts.state === undefined) this.#cq.fill(0);
  }

  /** How many commands run, or wait to be returned by {@link poll}. */
  get running(): number {
    return this.#refuse === undefined ? this.#running : this.capacity - this.#state.count(FREE);
  }

  /** Is a command in this slot running? */
  isRunning(slot: number): boolean {
    return this.#states[slot] === RUNNING;
  }

  /**
   * Offers the queue to another thread: what this returns can be sent there any number of times, and the first one that attaches
   * to it (`attach(shared)`) has the queue. From now on all calls here are EBUSY, until `nvme.takeBack(queue)` has it back.
   * Commands that run go on, and are returned by `poll` to whoever has the queue then.
   *
   * @throws DmaError ENOTSUP for a queue with `onCompletions`, and where another thread can not reach the doorbells
   */
  share(): Shared<AttachedNvmeQueue> {
    const { share } = this.#parts;
    if (share !== undefined) return share(this);
    throw new DmaError({
      code: 'EBUSY',
      operation: 'nvmeQueue.share',
      reason: 'only the thread that opened a queue can offer it to others',
      hint: 'dispose it here first',
    });
  }

  /**
   * Reads `blocks` blocks from `lba` of namespace `nsid` to the memory at `iova`, which is in one piece for the device. The
   * controller sees it at the next {@link ring}. Allocates nothing.
   *
   * @param iova a multiple of 4
   * @throws DmaError EBUSY: the slot is in use; EINVAL for what no command can have; the reason once the controller is being reset
   *   (EAGAIN) or closed
   */
  read(slot: number, nsid: number, lba: number, blocks: number, iova: IovaLike): void {
    this.transfer(slot, NVM.READ, nsid, lba, blocks, iova, 0);
  }

  /** As {@link read}, the other way round. @param flags bits of CDW12, such as `IO_CDW12.FUA` */
  write(slot: number, nsid: number, lba: number, blocks: number, iova: IovaLike, flags = 0): void {
    this.transfer(slot, NVM.WRITE, nsid, lba, blocks, iova, flags);
  }

  /** Makes what was written to namespace `nsid` durable. @throws DmaError as {@link read} */
  flush(slot: number, nsid: number): void {
    this.#begin(slot, NVM.FLUSH, 0, nsid);
    this.#note(slot, NVM.FLUSH, nsid, 0, 0, 0, 0);
    this.#advance(slot);
  }

  /**
   * Submits an entry of the caller's own: 16 words, of which the identifier is put in here. Its data pointers are the caller's
   * business, and so is that what they point to stays mapped.
   *
   * @throws DmaError as {@link read}
   */
  submit(slot: number, entry: Uint32Array): void {
    if (entry.length !== ENTRY_WORDS)
      throw invalid('nvmeQueue.submit', `an entry has ${ENTRY_WORDS} words, not ${entry.length}`);
    const at = this.#begin(slot, entry[0] & 0xff, entry[0] & 0xff00, entry[1]);
    this.#sq.set(entry, at);
    this.#sq[at] = (entry[0] & 0xffff) | (slot << 16);
    this.#note(slot, entry[0] & 0xff, entry[1], 0, 0, 0, 0);
    this.#advance(slot);
  }

  /** Tells the controller of all that was submitted since the last call: one store, or none if there is nothing new. */
  ring(): void {
    if (this.#refuse !== undefined) throw this.#refuse();
    if (this.#rung === this.#tail || this.#halted !== undefined) return;
    if (this.#parts.remote !== undefined) this.#copyToController();
    // There is room for the completions of all that runs, whenever they come.
    if (this.#untold + this.#running >= this.#entries) this.#tellHead();
    this.#rung = this.#tail;
    this.#tailBell.write(this.#tail);
    this.onRing?.();
  }

  /**
   * Takes what has completed into {@link slots}, {@link statuses} and {@link results}. Reads memory only, but for one store that
   * tells the controller. A queue without interrupts tells it in {@link ring}, and only when there would be no room for more.
   *
   * @returns how many entries of the arrays are filled
   */
  poll(): number {
    if (this.#refuse !== undefined) throw this.#refuse();
    if (this.#abandoned > 0) return this.#takeAbandoned();
    const cq = this.#cq;
    // The queue was closed: its memory is freed.
    if (cq.length === 0) return 0;
    const head = this.#head;
    const entries = this.#entries;
    let at = head;
    let phase = this.#phase;
    let found = 0;
    let taken = 0;
    let failure: unknown;
    // At most one turn of the ring: a controller gone wild must not keep this side here.
    for (; taken < entries; taken++) {
      // The phase first, the rest after it.
      const last = Atomics.load(cq, at * COMPLETION_WORDS + CQE.CID / 4);
      if (((last >>> 16) & 1) !== phase) break;
      const first = at * COMPLETION_WORDS;
      const slot = last & 0xffff;
      const queue = cq[first + CQE.SQ_HEAD / 4] >>> 16;
      if (++at === entries) {
        at = 0;
        phase ^= 1;
      }
      if (queue !== this.id || this.#states[slot] !== RUNNING) {
        failure = this.#garbage(slot, queue);
        continue;
      }
      this.#states[slot] = FREE;
      this.#running--;
      this.slots[found] = slot;
      this.statuses[found] = last >>> 17;
      this.results[found] = cq[first];
      this.resultsHigh[found] = cq[first + 1];
      found++;
    }
    if (taken === 0) {
      if ((++this.#empty & (LOOK_POLLS - 1)) === 0 && this.#running > 0) this.#parts.look?.();
      return 0;
    }
    this.#head = at;
    this.#phase = phase;
    this.#untold += taken;
    try {
      // A controller that is being reset has no queues.
      if (this.#parts.interrupts && this.#halted === undefined) this.#tellHead();
    } catch (error) {
      failure = error;
    }
    // What has completed is returned all the same.
    if (failure !== undefined) this.#parts.failed(failure);
    return found;
  }

  /** What runs in a slot, as a noun phrase: `read of 8 blocks at LBA 64 of namespace 1`. */
  describe(slot: number): string {
    const opcode = this.#opcodes[slot];
    const blocks = this.#blocks[slot];
    const name = commandName(opcode, this.id === 0);
    const where = blocks === 0 ? '' : ` of ${blocks === 1 ? '1 block' : `${blocks} blocks`} at LBA ${this.#lbas[slot]}`;
    const nsid = this.#nsids[slot];
    return `${name}${where}${nsid === 0 ? '' : ` of namespace ${nsid}`}`;
  }

  /**
   * @internal What the running commands of `read` and `write` use of [start, end).
   *
   * @param vaOf the VA of an IOVA
   */
  usesOf(start: number, end: number, vaOf: (iova: number) => number | undefined): string | undefined {
    if (this.#running === 0 && this.#refuse === undefined) return undefined;
    for (let slot = 0; slot < this.capacity; slot++) {
      if (this.#states[slot] !== RUNNING || this.#lengths[slot] === 0) continue;
      const at = this.#iovas[slot];
      const va = at < 0 ? -at : vaOf(at);
      if (va !== undefined && va < end && va + this.#lengths[slot] > start) return this.describe(slot);
    }
    return undefined;
  }

  /** @internal `read`, `write` and their kin, by opcode. */
  transfer(slot: number, opcode: number, nsid: number, lba: number, blocks: number, iova: number, flags: number): void {
    if (nsid !== this.#nsid) this.#select(nsid);
    const length = blocks * this.#blockBytes;
    // Not so for NaN and fractions either.
    if (!(
      blocks >= 1 &&
      blocks <= 65536 &&
      length <= this.maxTransfer &&
      Number.isInteger(blocks) &&
      Number.isSafeInteger(lba) &&
      lba >= 0 &&
      iova >= 0 &&
      Number.isSafeInteger(iova) &&
      (iova & 3) === 0
    ))
      throw this.#impossible(lba, blocks, iova);
    const at = this.#begin(slot, opcode, 0, nsid);
    const sq = this.#sq;
    sq[at + 6] = iova;
    sq[at + 7] = iova / 4294967296;
    const offset = iova & (this.#pageSize - 1);
    const first = this.#pageSize - offset;
    if (length > first) {
      const second = length <= first + this.#pageSize ? iova + first : this.#list(slot, iova + first, length - first);
      sq[at + 8] = second;
      sq[at + 9] = second / 4294967296;
    }
    sq[at + 10] = lba;
    sq[at + 11] = lba / 4294967296;
    sq[at + 12] = flags | (blocks - 1);
    this.#note(slot, opcode, nsid, lba, blocks, iova, length);
    this.#advance(slot);
  }

  /**
   * @internal Puts an entry into the ring, for the driver: `entry` has all but the identifier.
   *
   * @param blocks for messages, with `lba`; 0 if it is about none
   * @param va of its memory, which must stay then, with `length`, bytes; 0: somebody else looks after it
   */
  put(slot: number, entry: Uint32Array, lba: number, blocks: number, va = 0, length = 0): void {
    const at = this.#begin(slot, entry[0] & 0xff, 0, entry[1]);
    this.#sq.set(entry, at);
    this.#sq[at] = (entry[0] & 0xffff) | (slot << 16);
    this.#note(slot, entry[0] & 0xff, entry[1], lba, blocks, -va, length);
    this.#advance(slot);
  }

  /** @internal The words of a slot's list, for the driver to fill, and where it is for the controller. */
  listOf(slot: number): { readonly words: Uint32Array; readonly iova: number } {
    this.#listCounts[slot] = 0;
    const words = this.#lists.subarray(slot * this.#listWords, (slot + 1) * this.#listWords);
    return { words, iova: this.#listIova(slot) };
  }

  /** @internal Namespaces may have another format now. */
  forgetFormat(): void {
    this.#nsid = NaN;
  }

  /** @internal Takes nothing more, because of `why`. */
  halt(why: DmaError): void {
    this.#halted = why;
  }

  /** @internal Refuses all calls with this error from now on, as another thread has it; `undefined`: takes them again. */
  refuse(error: (() => DmaError) | undefined): void {
    this.#refuse = error;
  }

  /** @internal Will the next `poll` return commands that were abandoned? */
  get hasAbandoned(): boolean {
    return this.#abandoned > 0;
  }

  /** @internal For another thread, and for who lends it. */
  get state(): QueueState {
    return this.#state;
  }

  /** @internal Stores where its rings are, for another thread. */
  save(): void {
    const state = this.#state;
    state.store(QUEUE_WORD.TAIL, this.#tail);
    state.store(QUEUE_WORD.RUNG, this.#rung);
    state.store(QUEUE_WORD.HEAD, this.#head);
    state.store(QUEUE_WORD.PHASE, this.#phase);
    state.store(QUEUE_WORD.UNTOLD, this.#untold);
  }

  /** @internal Goes on where another thread stopped. */
  load(): void {
    const state = this.#state;
    this.#tail = state.load(QUEUE_WORD.TAIL);
    this.#rung = state.load(QUEUE_WORD.RUNG);
    this.#head = state.load(QUEUE_WORD.HEAD);
    this.#phase = state.load(QUEUE_WORD.PHASE);
    this.#untold = state.load(QUEUE_WORD.UNTOLD);
    this.#running = this.capacity - state.count(FREE);
    this.#abandoned = state.count(ABANDONED);
    // The other thread has filled lists of its own.
    this.#listCounts.fill(0);
    this.#nsid = NaN;
    for (const bell of [this.#tailBell, this.#headBell]) bell.load();
  }

  /** @internal The controller is stopped: all that runs ends, with the next `poll`. */
  abandon(): void {
    for (let slot = 0; slot < this.capacity; slot++) {
      if (this.#states[slot] !== RUNNING) continue;
      this.#states[slot] = ABANDONED;
      this.#abandoned++;
    }
    this.onRing?.();
  }

  /** @internal The controller has it anew. */
  restart(): void {
    this.#cq.fill(0);
    this.resume();
  }

  /** @internal As {@link restart}, when the ring of completions is empty already. */
  resume(): void {
    this.#tail = this.#rung = this.#head = this.#untold = 0;
    this.#phase = 1;
    this.#nsid = NaN;
    this.#halted = undefined;
  }

  /** Lists the pages of `length` bytes from `iova`, which begins one. @returns where the list is for the controller */
  #list(slot: number, iova: number, length: number): number {
    const pageSize = this.#pageSize;
    const count = Math.ceil(length / pageSize);
    const list = this.#listIova(slot);
    // Who reads into the same memory again has the same list.
    if (this.#listed[slot] === iova && this.#listCounts[slot] >= count && count <= pageSize / 8) return list;
    fillPageList(this.#lists, slot * this.#listWords, list, pageSize, iova, count);
    this.#listed[slot] = iova;
    // A list with a link to another page is only right for this count.
    this.#listCounts[slot] = count <= pageSize / 8 ? count : 0;
    return list;
  }

  #listIova(slot: number): number {
    return this.#parts.lists.iova + slot * this.#listWords * 4;
  }

  /** The entry at the tail, cleared, for a command in `slot`. @returns its first word */
  #begin(slot: number, opcode: number, flags: number, nsid: number): number {
    if (this.#refuse !== undefined) throw this.#refuse();
    if (this.#halted !== undefined) throw this.#halted;
    if (this.#states[slot] !== FREE) throw this.#noSlot(slot);
    const at = this.#tail * ENTRY_WORDS;
    const sq = this.#sq;
    sq[at] = opcode | flags | (slot << 16);
    sq[at + SQE.NSID / 4] = nsid;
    for (let word = 2; word < ENTRY_WORDS; word++) sq[at + word] = 0;
    return at;
  }

  #note(slot: number, opcode: number, nsid: number, lba: number, blocks: number, iova: number, length: number): void {
    this.#opcodes[slot] = opcode;
    this.#nsids[slot] = nsid;
    this.#lbas[slot] = lba;
    this.#blocks[slot] = blocks;
    this.#iovas[slot] = iova;
    this.#lengths[slot] = length;
  }

  #advance(slot: number): void {
    this.#states[slot] = RUNNING;
    this.#running++;
    this.#tail = this.#tail + 1 === this.#entries ? 0 : this.#tail + 1;
  }

  #tellHead(): void {
    this.#untold = 0;
    this.#headBell.write(this.#head);
  }

  #select(nsid: number): void {
    this.#blockBytes = this.#parts.formatOf(nsid).blockBytes;
    this.#nsid = nsid;
  }

  #copyToController(): void {
    const { remote } = this.#parts;
    if (remote === undefined) return;
    for (let entry = this.#rung; entry !== this.#tail; entry = entry + 1 === this.#entries ? 0 : entry + 1)
      for (let word = entry * ENTRY_WORDS; word < (entry + 1) * ENTRY_WORDS; word++)
        remote.registers.write32(remote.offset + word * 4, this.#sq[word]);
  }

  #takeAbandoned(): number {
    let found = 0;
    for (let slot = 0; slot < this.capacity; slot++) {
      if (this.#states[slot] !== ABANDONED) continue;
      this.#states[slot] = FREE;
      this.slots[found] = slot;
      this.statuses[found] = ABORTED_BY_HOST;
      this.results[found] = this.resultsHigh[found] = 0;
      found++;
    }
    this.#running -= found;
    this.#abandoned = 0;
    return found;
  }

  #garbage(slot: number, queue: number): DmaError {
    const what =
      queue !== this.id
        ? `it is about queue ${queue}`
        : slot < this.capacity
          ? `command ${slot} is not running: it has completed before, or was never sent`
          : `there is no command ${slot}`;
    return new DmaError({
      code: 'EPROTO',
      operation: GARBAGE,
      reason: `the controller put a completion into queue ${this.id} that can not be: ${what}`,
      hint: 'the controller is reset, because it may have mistaken the memory of another command for this one’s',
    });
  }

  #noSlot(slot: number): DmaError {
    const operation = 'nvmeQueue';
    if (!Number.isInteger(slot) || slot < 0 || slot >= this.capacity)
      return invalid(operation, `there is no slot ${show(slot)}: they are 0 to ${this.capacity - 1}`);
    return new DmaError({
      code: 'EBUSY',
      operation,
      reason: `slot ${slot} is in use: ${this.describe(slot)}`,
      hint: 'a slot is free again once poll() has returned it',
    });
  }

  #impossible(lba: number, blocks: number, iova: number): DmaError {
    return invalid(
      'nvmeQueue',
      `${show(blocks)} blocks of ${this.#blockBytes} bytes at LBA ${show(lba)}, memory at ${hex(iova)}`,
      {
        hint: `a command has 1 to ${Math.min(65536, Math.floor(this.maxTransfer / this.#blockBytes))} blocks, and its memory begins at a multiple of 4`,
      },
    );
  }
}

/**
 * Fills a list of pages: `count` addresses from `iova` on. Where a page of the list is full and there are more, its last entry
 * is the address of the next one (NVMe 1.4, section 4.3).
 *
 * @param at the first word of the list, which begins a page and is at `list` for the controller
 */
function fillPageList(
  words: Uint32Array,
  at: number,
  list: number,
  pageSize: number,
  iova: number,
  count: number,
): void {
  const inPage = pageSize / 8;
  let address = iova;
  let entry = 0;
  for (let left = count; left > 0; entry++) {
    const word = at + entry * 2;
    if (entry % inPage === inPage - 1 && left > 1) {
      const next = list + (entry + 1) * 8;
      words[word] = next;
      words[word + 1] = next / 4294967296;
      continue;
    }
    words[word] = address;
    words[word + 1] = address / 4294967296;
    address += pageSize;
    left--;
  }
}

function wordsOf({ bytes }: DmaPart, length: number): Uint32Array {
  return new Uint32Array(bytes.buffer, bytes.byteOffset, length);
}

/** @internal Bytes of lists that a slot needs for transfers of `maxTransfer` bytes, in whole pages. */
export function listBytesFor(maxTransfer: number, pageSize: number): number {
  // All but the first page of the memory are listed, which may begin in the middle of one.
  const entries = Math.ceil(maxTransfer / pageSize) + 1;
  const pages = Math.max(1, Math.ceil(entries / (pageSize / 8 - 1)));
  return pages * pageSize;
}

/** @internal Puts the way that data pointers are given into the first word of an entry. */
export const USES_SGL = PSDT.SGL << (PSDT.SHIFT + 8);

shortForm(NvmeQueue, 'NvmeQueue', ({ id, capacity, running }) => ({ id, capacity, running }));
