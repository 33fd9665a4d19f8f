/** Keeps a queue of an NVMe controller full: the inner loop of `anydma nvme perf`. Nothing is allocated for a command. */
import { DmaError } from '../../errors.js';
import type { Latencies } from './latencies.js';
import { stamp, wrongStamp } from './stamp.js';
import type { Workload } from './workload.js';

/** What a job needs of a queue pair: see `NvmeQueue`. */
export interface JobQueue {
  readonly running: number;
  readonly slots: Uint16Array;
  readonly statuses: Uint16Array;
  read(slot: number, nsid: number, lba: number, blocks: number, iova: number): void;
  write(slot: number, nsid: number, lba: number, blocks: number, iova: number): void;
  ring(): void;
  poll(): number;
}

/** What a job does. */
export interface JobOptions {
  readonly nsid: number;
  /** The first block of its part of the namespace. */
  readonly firstLba: number;
  /** Blocks of one command. */
  readonly blocks: number;
  /** Bytes of one command. */
  readonly bytes: number;
  /** Most commands at a time. */
  readonly depth: number;
  /** Most commands a second; `undefined`: as many as go. */
  readonly rate: number | undefined;
  /** Memory of `depth` times `bytes`, and its address for the device. */
  readonly memory: { readonly bytes: Uint8Array; readonly iova: number };
  /** Is what is written checked when it is read? */
  readonly verify: boolean;
  readonly seed: number;
  /** The error of a command that failed. @param status as the completion has it, without the phase */
  readonly failure: (status: number, what: string) => DmaError;
}

/** How often a job looks for a unit that no write is under way to. */
const TRIES = 64;

/** One queue, its memory, and what it is asked to do. */
export class Job {
  readonly #queue: JobQueue;
  readonly #workload: Workload;
  readonly #options: JobOptions;
  readonly #reads: Latencies;
  readonly #writes: Latencies;
  // By slot: when its command was submitted, for which unit, and does it write?
  readonly #started: Float64Array;
  readonly #units: Float64Array;
  readonly #isWrite: Uint8Array;
  readonly #free: Uint16Array;
  #freeCount: number;
  #begun = 0;
  #submitted = 0;
  /** With `verify`: the units that were written, and those that a command is under way to. */
  readonly #written = new Set<number>();
  readonly #busy = new Set<number>();
  #checking: number[] | undefined;
  /** Commands that have completed, by what they did. */
  readsDone = 0;
  writesDone = 0;
  /** Units that were read and compared. */
  checked = 0;

  constructor(queue: JobQueue, workload: Workload, options: JobOptions, reads: Latencies, writes: Latencies) {
    const { depth } = options;
    this.#queue = queue;
    this.#workload = workload;
    this.#options = options;
    this.#reads = reads;
    this.#writes = writes;
    this.#started = new Float64Array(depth).fill(Infinity);
    this.#units = new Float64Array(depth);
    this.#isWrite = new Uint8Array(depth);
    this.#free = Uint16Array.from({ length: depth }, (_, slot) => slot);
    this.#freeCount = depth;
  }

  /** Commands that have not come back. */
  get running(): number {
    return this.#options.depth - this.#freeCount;
  }

  /** From now on the rate counts. @param now `performance.now()` */
  begin(now: number): void {
    this.#begun = now;
    this.#submitted = 0;
  }

  /**
   * Takes what has completed, and, when `more`, submits as many again.
   *
   * @returns how many commands have completed
   * @throws DmaError of the first command that failed, or read something else than was written
   */
  step(now: number, more: boolean): number {
    const queue = this.#queue;
    const found = queue.poll();
    let failure: DmaError | undefined;
    for (let n = 0; n < found; n++) {
      const error = this.#take(queue.slots[n], queue.statuses[n], now);
      failure ??= error;
    }
    if (failure !== undefined) throw failure;
    if (more && this.#freeCount > 0) this.#fill(now);
    return found;
  }

  /** What runs for longer than `ms`, as a noun phrase; `undefined` if nothing does. @param now `performance.now()` */
  late(now: number, ms: number): string | undefined {
    if (this.running === 0) return undefined;
    const { depth } = this.#options;
    for (let slot = 0; slot < depth; slot++) if (now - this.#started[slot] >= ms) return this.#describe(slot);
    return undefined;
  }

  /** From now on every unit that was written is read once. @returns how many that are */
  checkAll(): number {
    this.#checking = [...this.#written];
    return this.#checking.length;
  }

  /** Is there anything left of {@link checkAll}? */
  get unchecked(): number {
    return this.#checking?.length ?? 0;
  }

  /** @returns its error, if it failed or read something else than was written */
  #take(slot: number, status: number, now: number): DmaError | undefined {
    const { blocks, bytes, firstLba, memory, verify, failure } = this.#options;
    const isWrite = this.#isWrite[slot] === 1;
    const unit = this.#units[slot];
    const lba = firstLba + unit * blocks;
    const started = this.#started[slot];
    this.#free[this.#freeCount++] = slot;
    this.#started[slot] = Infinity;
    if (status !== 0) return failure(status, this.#describe(slot));
    if (this.#checking === undefined) (isWrite ? this.#writes : this.#reads).record(now - started);
    if (isWrite) this.writesDone++;
    else this.readsDone++;
    if (!verify) return undefined;
    this.#busy.delete(unit);
    if (isWrite) this.#written.add(unit);
    else if (this.#written.has(unit)) {
      const wrong = wrongStamp(memory.bytes.subarray(slot * bytes, (slot + 1) * bytes), lba);
      if (wrong !== undefined) return differs(lba, blocks, wrong);
      this.checked++;
    }
    return undefined;
  }

  /** `read of 8 blocks at LBA 64` */
  #describe(slot: number): string {
    const { blocks, firstLba } = this.#options;
    const lba = firstLba + this.#units[slot] * blocks;
    return `${this.#isWrite[slot] === 1 ? 'write' : 'read'} of ${blocks} block${blocks === 1 ? '' : 's'} at LBA ${lba}`;
  }

  #fill(now: number): void {
    const { rate, depth } = this.#options;
    let most = this.#freeCount;
    if (rate !== undefined)
      most = Math.min(most, Math.floor(((now - this.#begun) * rate) / 1000) + 1 - this.#submitted);
    let count = 0;
    for (; count < most && count < depth; count++) if (!this.#submit(now)) break;
    if (count === 0) return;
    this.#submitted += count;
    this.#queue.ring();
  }

  /** @returns false when there is nothing to do now */
  #submit(now: number): boolean {
    const { nsid, blocks, bytes, firstLba, memory, verify, seed } = this.#options;
    const workload = this.#workload;
    let unit: number | undefined;
    let isWrite = false;
    if (this.#checking !== undefined) unit = this.#checking.pop();
    else
      for (let tries = 0; tries < TRIES && unit === undefined; tries++) {
        const next = workload.next();
        if (verify && this.#busy.has(next)) continue;
        unit = next;
        isWrite = workload.isWrite;
      }
    if (unit === undefined) return false;
    const slot = this.#free[--this.#freeCount];
    const lba = firstLba + unit * blocks;
    if (verify) {
      this.#busy.add(unit);
      if (isWrite) stamp(memory.bytes.subarray(slot * bytes, (slot + 1) * bytes), lba, seed + this.#submitted);
    }
    this.#started[slot] = now;
    this.#units[slot] = unit;
    this.#isWrite[slot] = isWrite ? 1 : 0;
    const iova = memory.iova + slot * bytes;
    if (isWrite) this.#queue.write(slot, nsid, lba, blocks, iova);
    else this.#queue.read(slot, nsid, lba, blocks, iova);
    return true;
  }
}

/** The error of data that is not what was written. */
export function differs(lba: number, blocks: number, wrong: string): DmaError {
  return new DmaError({
    code: 'EILSEQ',
    operation: 'nvme verify',
    reason: `what was read from LBA ${lba} (${blocks} block${blocks === 1 ? '' : 's'}) is not what was written: ${wrong}`,
    hint: 'the disk, or the way to it, has changed data: look at "anydma nvme log error" and "anydma nvme log smart"',
  });
}
