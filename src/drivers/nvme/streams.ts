/** Blocks as streams: several commands run ahead of who reads, or behind who writes. */
import { Readable, Writable } from 'node:stream';
import { mustBeWhole, optionsOf, type Shape } from '../../check.js';
import { closedDriver } from '../../bus/closed-device.js';
import { invalid, withUndo, type DmaError } from '../../errors.js';
import { KiB } from '../../units.js';
import type { Bounce } from './bounce.js';
import type { DmaMemory } from '../dma-memory.js';
import type { NvmeCallOptions } from './call-options.js';
import { mustBeBlocks } from './requests.js';

/** Options of `NvmeNamespace.readable` and `writable`. */
export interface NvmeStreamOptions extends NvmeCallOptions {
  /** The first block. */
  readonly lba: number;
  /** How many. Default: all that follow. */
  readonly blocks?: number;
  /** bytes of one command, rounded down to whole blocks. Default 256 KiB. */
  readonly chunkBytes?: number;
  /** Commands that run at once. Default 4; a zoned namespace is written by one at a time. */
  readonly ahead?: number;
}

/** What is streamed. */
export interface StreamedBlocks {
  readonly capabilities: { readonly zoned: boolean };
  readonly blocks: number;
  readonly transferSize: number;
  read(options: { lba: number; blocks: number; into: ReturnType<DmaMemory['range']> } & NvmeCallOptions): Promise<void>;
  write(
    options: { lba: number; blocks: number; from: ReturnType<DmaMemory['range']> } & NvmeCallOptions,
  ): Promise<void>;
}

const STREAM: Shape<NvmeStreamOptions> = {
  lba: 'number',
  blocks: 'number',
  chunkBytes: 'number',
  ahead: 'number',
  signal: 'signal',
  timeoutMs: 'number',
};

interface Plan {
  readonly lba: number;
  readonly blocks: number;
  /** blocks of a command */
  readonly chunk: number;
  readonly ahead: number;
  readonly call: NvmeCallOptions;
}

function planOf(of: StreamedBlocks, asked: NvmeStreamOptions, operation: string): Plan {
  const options = optionsOf<NvmeStreamOptions>(asked, STREAM, operation);
  const { lba = NaN, blocks = of.blocks - lba, chunkBytes = 256 * KiB, ahead = 4, signal, timeoutMs } = options;
  mustBeBlocks(lba, options.blocks ?? Math.max(1, blocks), of.blocks, operation);
  mustBeWhole(ahead, 1, 1024, 'ahead', operation);
  if (!(chunkBytes >= of.transferSize))
    throw invalid(operation, `chunkBytes is ${chunkBytes}, less than a block of ${of.transferSize} bytes`);
  const call: NvmeCallOptions = {
    ...(signal === undefined ? {} : { signal }),
    ...(timeoutMs === undefined ? {} : { timeoutMs }),
  };
  return { lba, blocks, chunk: Math.min(blocks, Math.floor(chunkBytes / of.transferSize)), ahead, call };
}

/** @throws DmaError EINVAL, ERANGE */
export function readableOf(of: StreamedBlocks, bounce: Bounce, options: NvmeStreamOptions): Readable {
  const plan = planOf(of, options, 'nvme.readable');
  return Readable.from(chunksOf(of, bounce, plan), { objectMode: false });
}

async function* chunksOf(of: StreamedBlocks, bounce: Bounce, plan: Plan): AsyncGenerator<Buffer, void> {
  const { lba, blocks, chunk, ahead, call } = plan;
  const unit = of.transferSize;
  const memories: DmaMemory[] = [];
  const running: { readonly memory: DmaMemory; readonly blocks: number; readonly done: Promise<void> }[] = [];
  let next = 0;
  const send = (memory: DmaMemory): void => {
    const count = Math.min(chunk, blocks - next);
    const done = of.read({ ...call, lba: lba + next, blocks: count, into: memory.range(count * unit) });
    // Whoever stops reading leaves commands behind.
    done.catch(() => undefined);
    running.push({ memory, blocks: count, done });
    next += count;
  };
  try {
    while (memories.length < ahead && next < blocks) {
      const memory = bounce.allocate(chunk * unit);
      memories.push(memory);
      send(memory);
    }
    for (let first = running.shift(); first !== undefined; first = running.shift()) {
      await first.done;
      const bytes = Buffer.from(first.memory.part(0, first.blocks * unit).bytes);
      if (next < blocks) send(first.memory);
      yield bytes;
    }
  } finally {
    await Promise.allSettled(running.map(({ done }) => done));
    for (const memory of memories) memory[Symbol.dispose]();
  }
}

/** @throws DmaError EINVAL, ERANGE */
export function writableOf(of: StreamedBlocks, bounce: Bounce, options: NvmeStreamOptions): Writable {
  const plan = planOf(of, options, 'nvme.writable');
  // Zones are written at their write pointers: each command has to be over before the next one.
  return new BlockWriter(of, bounce, of.capabilities.zoned ? { ...plan, ahead: 1 } : plan);
}

/** Collects bytes into commands. */
class BlockWriter extends Writable {
  readonly #of: StreamedBlocks;
  readonly #bounce: Bounce;
  readonly #plan: Plan;
  readonly #idle: DmaMemory[] = [];
  readonly #running = new Set<Promise<void>>();
  /** Settles when what was written last has been taken. */
  #taking: Promise<void> = Promise.resolve();
  #current: DmaMemory | undefined;
  #filled = 0;
  #written = 0;
  #failure: DmaError | undefined;

  constructor(of: StreamedBlocks, bounce: Bounce, plan: Plan) {
    super();
    this.#of = of;
    this.#bounce = bounce;
    this.#plan = plan;
  }

  override _write(chunk: Buffer, _encoding: string, callback: (error?: Error | null) => void): void {
    this.#taking = this.#take(chunk);
    this.#taking.then(() => callback(), callback);
  }

  override _final(callback: (error?: Error | null) => void): void {
    this.#finish().then(() => callback(), callback);
  }

  override _destroy(error: Error | null, callback: (error?: Error | null) => void): void {
    const end = async (): Promise<void> => {
      await this.#taking.catch(() => undefined);
      await Promise.allSettled(this.#running);
      for (const memory of [...this.#idle.splice(0), this.#current]) memory?.[Symbol.dispose]();
      this.#current = undefined;
    };
    end().then(() => callback(error), callback);
  }

  async #take(bytes: Uint8Array): Promise<void> {
    const size = this.#plan.chunk * this.#of.transferSize;
    for (let at = 0; at < bytes.length;) {
      this.#mustBeWell();
      const memory = (this.#current ??= await this.#memory(size));
      const step = Math.min(bytes.length - at, size - this.#filled);
      memory.part(this.#filled, step).bytes.set(bytes.subarray(at, at + step));
      at += step;
      this.#filled += step;
      if (this.#filled === size) this.#send();
    }
  }

  async #memory(size: number): Promise<DmaMemory> {
    while (this.#idle.length === 0 && this.#running.size >= this.#plan.ahead) await Promise.race(this.#running);
    this.#mustBeWell();
    return this.#idle.pop() ?? this.#bounce.allocate(size);
  }

  #send(): void {
    const memory = this.#current;
    if (memory === undefined) return;
    const unit = this.#of.transferSize;
    const { lba, blocks, call } = this.#plan;
    const count = this.#filled / unit;
    const operation = 'nvme.writable';
    if (!Number.isInteger(count))
      throw invalid(operation, `the stream ends ${this.#filled % unit} bytes into a block of ${unit}`);
    if (this.#written + count > blocks) throw invalid(operation, `more than the ${blocks} blocks that it was made for`);
    const done = this.#of.write({ ...call, lba: lba + this.#written, blocks: count, from: memory.range(this.#filled) });
    const run = done
      .catch((error: unknown) => {
        this.#failure ??= withUndo(error, 'nvme.writable', []);
      })
      .finally(() => {
        this.#running.delete(run);
        this.#idle.push(memory);
      });
    this.#running.add(run);
    this.#written += count;
    this.#current = undefined;
    this.#filled = 0;
  }

  async #finish(): Promise<void> {
    if (this.#filled > 0) this.#send();
    await Promise.all(this.#running);
    this.#mustBeWell();
  }

  #mustBeWell(): void {
    if (this.#failure !== undefined) throw this.#failure;
    if (this.destroyed) throw closedDriver('nvme.writable').with({ reason: 'the stream was destroyed' });
  }
}
