/** One call of the program that commands are made for: one, or as many as its data needs. */
import type { DmaError, DmaErrorDetails } from '../../errors.js';
import { now } from '../../timers.js';
import type { BusyPages } from './busy-pages.js';
import { putPointer, type Cut, type Pieces } from './data-pointer.js';
import { outcomeError, statusError, type NvmeOutcome } from './nvme-error.js';
import { ENTRY_WORDS, type NvmeQueue } from './queue.js';

/** What a finished operation tells. */
export interface NvmeResult {
  /** Dword 0 of the last completion. */
  readonly result: number;
  /** Dword 1 of it, for commands with a result of 64 bits. */
  readonly resultHigh: number;
}

/** Data in one piece for the controller, or in several. */
export type Data =
  | { readonly kind: 'none' }
  | { readonly kind: 'run'; readonly iova: number; readonly va: number }
  | {
      readonly kind: 'cuts';
      readonly pieces: Pieces;
      readonly cuts: readonly Cut[];
      /** Where all of it begins, for who looks after its memory by its commands. */
      readonly va?: number;
    };

/** What an operation is made of. */
export interface OperationParts {
  /** The name of the call, for errors. */
  readonly operation: string;
  /** The name of the device, for errors. */
  readonly device: string;
  /** A template of each entry: opcode, namespace, and dwords that are the same in all commands. */
  readonly entry: Uint32Array;
  /** The blocks that it is about; 0 when it is about none, and one command. */
  readonly lba: number;
  readonly blocks: number;
  /** Bytes of data a block; without blocks, of the whole command. */
  readonly unit: number;
  /** Most blocks of a command. */
  readonly maxBlocks: number;
  readonly data: Data;
  /** VAs of other memory that it uses, such as metadata: start and length of each range. */
  readonly ranges?: readonly number[] | undefined;
  readonly signal: AbortSignal | undefined;
  /** When it is given up, by `now`. */
  readonly deadline: number;
  /** May it be sent again after a reset, because that changes nothing? */
  readonly repeatable: boolean;
  /** Must each of its commands have succeeded before the next one is sent? Default false. */
  readonly inOrder?: boolean;
  /** Does its protection information or its metadata count blocks? Called with each command's first block, from 0 on. */
  readonly perCommand?: ((entry: Uint32Array, done: number) => void) | undefined;
}

/** A command of an operation: the blocks before it, which cut it is, its blocks. */
export interface Sent {
  done: number;
  index: number;
  blocks: number;
}

/** Ends a call: with an error, or with a result. */
export type Settle = (error: DmaError | undefined, result: NvmeResult) => void;

/** An operation that has not settled. */
export class Operation {
  readonly parts: OperationParts;
  /** Blocks that have been sent. */
  #sent = 0;
  /** Commands that have been sent, which are the next ones of `cuts`. */
  #next = 0;
  /** Commands that are to be sent again. */
  #again: Sent[] | undefined;
  /** The status of the last command that did not succeed. */
  #stopped = 0;
  /** Commands that run. */
  running = 0;
  /** Why it fails; no more is sent then. */
  error: DmaError | undefined;
  /** When the controller was asked to abort its commands; 0: it was not. */
  abortedAt = 0;
  #result = 0;
  #resultHigh = 0;
  readonly #settle: Settle;
  /** Where its memory is counted, and whether it is. */
  readonly #pages: BusyPages;
  #holds = true;
  onAbort: (() => void) | undefined;
  /** Does it complete only when something happens? */
  readonly standing: boolean;

  /** @param pages where its memory is counted, until it settles */
  constructor(parts: OperationParts, standing: boolean, settle: Settle, pages: BusyPages) {
    this.parts = parts;
    this.standing = standing;
    this.#settle = settle;
    this.#pages = pages;
    this.#count(1);
  }

  /** Is there something to send? */
  get hasMore(): boolean {
    if (this.error !== undefined || (this.parts.inOrder === true && this.running > 0)) return false;
    return this.#again !== undefined || (this.parts.blocks === 0 ? this.#next === 0 : this.#sent < this.parts.blocks);
  }

  /** Has nothing of it been sent? */
  get isNew(): boolean {
    return this.#next === 0;
  }

  /** Puts its next command into a slot, and tells in `sent` which one that was. */
  send(queue: NvmeQueue, slot: number, pageSize: number, sent: Sent): void {
    const { entry, data, lba, unit, perCommand, blocks } = this.parts;
    const again = this.#again?.pop();
    if (again === undefined) {
      sent.done = this.#sent;
      sent.index = this.#next;
      sent.blocks = this.#blocksOf(this.#next);
      this.#sent += sent.blocks;
      this.#next++;
    } else {
      Object.assign(sent, again);
      if (this.#again?.length === 0) this.#again = undefined;
    }
    const { done, index, blocks: count } = sent;
    this.running++;
    if (data.kind === 'run' && perCommand === undefined && blocks > 0)
      return queue.transfer(slot, entry[0], entry[1], lba + done, count, data.iova + done * unit, entry[12]);
    const words = scratch;
    words.set(entry);
    if (data.kind === 'run') putRun(words, queue, slot, data.iova + done * unit, Math.max(1, count) * unit, pageSize);
    if (data.kind === 'cuts') putPointer(words, queue.listOf(slot), data.pieces, data.cuts[index], pageSize);
    if (blocks > 0) {
      words[10] = lba + done;
      words[11] = (lba + done) / 4294967296;
      words[12] |= count - 1;
    }
    perCommand?.(words, done);
    const va = data.kind === 'cuts' && data.va !== undefined ? data.va + done * unit : 0;
    queue.put(slot, words, lba + done, count, va, va === 0 ? 0 : count * unit);
  }

  /** A command has come back, and all is well with it. */
  succeeded(result: number, high: number): void {
    this.running--;
    this.#result = result;
    this.#resultHigh = high;
    if (this.abortedAt > 0 && this.running === 0) this.#tellOutcome(false);
  }

  /**
   * A command has come back, and has failed.
   *
   * @param what the command, as a noun phrase
   * @param command which one, as `send` told
   * @param field its status, without the phase
   * @param reset why the controller was reset, when that ended it
   * @param resubmits is it to be sent again then, if that changes nothing?
   */
  failed(what: string, command: Sent, field: number, reset: DmaError | undefined, resubmits: boolean): void {
    this.running--;
    if (reset !== undefined && resubmits && this.parts.repeatable && this.error === undefined) {
      (this.#again ??= []).push({ ...command });
      return;
    }
    this.#stopped = field;
    this.error ??= this.#failure(what, field, reset);
    if (this.abortedAt > 0 && this.running === 0) this.#tellOutcome(reset !== undefined);
  }

  /** Ends it, if nothing of it is outstanding. @returns did it? */
  settle(): boolean {
    if (this.running > 0 || this.hasMore) return false;
    if (this.#holds) this.#count(-1);
    this.#holds = false;
    const { signal } = this.parts;
    if (this.onAbort !== undefined) signal?.removeEventListener('abort', this.onAbort);
    this.#settle(this.error, { result: this.#result, resultHigh: this.#resultHigh });
    return true;
  }

  /** Gives it up: nothing more is sent. */
  giveUp(code: 'ECANCELED' | 'ETIMEDOUT', reason: string, more: Partial<DmaErrorDetails>): void {
    const { operation, device } = this.parts;
    const outcome: NvmeOutcome = this.isNew ? 'not-sent' : 'unknown';
    this.error ??= outcomeError(outcome, { code, operation, device, reason, ...more });
  }

  /** The controller is gone, or was closed, while the command `what` ran. */
  end(why: DmaError, what: string): void {
    const { operation, device } = this.parts;
    const { code, cause, hint } = why;
    const reason = `${why.reason}; whether the ${what} was done is not known`;
    this.error ??= outcomeError('unknown', { code, operation, device: why.device ?? device, reason, cause, hint });
  }

  /** Is it past its time? */
  isLate(at = now()): boolean {
    return at >= this.parts.deadline;
  }

  /** Does it use any of [start, end), VAs? */
  uses(start: number, end: number): boolean {
    let isUsed = false;
    this.#eachRange((va, length) => (isUsed ||= va < end && va + length > start));
    return isUsed;
  }

  /** Calls back for each range of VAs that it uses. */
  #eachRange(call: (va: number, length: number) => void): void {
    const { data, blocks, unit, ranges } = this.parts;
    if (data.kind === 'run') call(data.va, Math.max(1, blocks) * unit);
    const all = data.kind === 'cuts' ? data.pieces.ranges : [];
    for (const list of [all, ranges ?? []]) for (let i = 0; i < list.length; i += 2) call(list[i], list[i + 1]);
  }

  /** Its memory is used now, or not any more. */
  #count(by: 1 | -1): void {
    const { data, blocks, unit, ranges } = this.parts;
    // Nearly always it is this; the rest would only cost time.
    if (data.kind === 'run' && ranges === undefined) this.#pages.count(data.va, Math.max(1, blocks) * unit, by);
    else this.#eachRange((va, length) => this.#pages.count(va, length, by));
  }

  #failure(what: string, field: number, reset: DmaError | undefined): DmaError {
    const { operation, device } = this.parts;
    if (reset === undefined) return statusError(field, what, { operation, device });
    const reason = `the controller was reset while it ran (${reset.reason}): whether the ${what} was done is not known`;
    const hint = 'send it again: the controller was started anew';
    return outcomeError('unknown', { code: 'ECANCELED', operation, device, reason, cause: reset, hint }, field);
  }

  /** It was given up, and the last of its commands has come back. */
  #tellOutcome(wasReset: boolean): void {
    const { error } = this;
    if (error === undefined) return;
    const { code, operation, reason, device, hint, cause } = error;
    const isAll = this.parts.blocks === 0 || this.#sent === this.parts.blocks;
    const outcome = wasReset ? 'unknown' : this.#stopped === 0 && isAll ? 'completed' : 'aborted';
    const told = {
      completed: 'it was done all the same',
      aborted: 'it was aborted',
      unknown: 'the controller was reset',
    };
    const more = { code, operation, reason: `${reason}; ${told[outcome]}`, device, hint, cause };
    this.error = outcomeError(outcome, more, this.#stopped);
  }

  #blocksOf(index: number): number {
    const { data, blocks, unit, maxBlocks } = this.parts;
    if (blocks === 0) return 0;
    return data.kind === 'cuts' ? data.cuts[index].length / unit : Math.min(maxBlocks, blocks - this.#sent);
  }
}

/** An entry that is being made. */
const scratch = new Uint32Array(ENTRY_WORDS);

/** Points to memory in one run. */
function putRun(
  entry: Uint32Array,
  queue: NvmeQueue,
  slot: number,
  iova: number,
  length: number,
  pageSize: number,
): void {
  const pieces = { iovas: [iova], lengths: [length], ranges: [] };
  putPointer(entry, queue.listOf(slot), pieces, { length, piece: 0, offset: 0, sgl: false }, pageSize);
}
