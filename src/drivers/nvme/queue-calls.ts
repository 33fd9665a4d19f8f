/** Calls with a promise each, over a queue pair of a controller that another thread has. */
import { mustBeWhole, optionsOf, type Shape } from '../../check.js';
import { DmaError } from '../../errors.js';
import { mustBePart, type MemoryPart } from '../../memory/part.js';
import { IO_CDW12, NVM } from '../../nvme/commands.js';
import { shortForm } from '../../short-form.js';
import { clearTimeout, queueMicrotask, setTimeout } from '../../timers.js';
import type { AttachedNvmeNamespace, AttachedReadOptions, AttachedWriteOptions } from './attached-namespace.js';
import { CALL, type NvmeCallOptions } from './call-options.js';
import { BusyPages } from './busy-pages.js';
import { Commands } from './commands.js';
import type { Data } from './operation.js';
import { ENTRY_WORDS, type NvmeQueue } from './queue.js';
import { dataIn, limitsOf, mustBeBlocks, type RequestContext } from './requests.js';
import { RUN } from './queue-state.js';

/** What the calls need of their queue, and of the thread that has the controller. */
export interface CallsLink {
  readonly queue: NvmeQueue;
  readonly context: RequestContext;
  /** Is there an interrupt for the queue alone? */
  readonly interrupts: boolean;
  /** Milliseconds that an aborted command has to come back. */
  readonly abortMs: number;
  /** Bytes of a block of namespace `nsid`. @throws DmaError EINVAL if it is not there */
  blockBytes(nsid: number): number;
  /** Looks at what the other thread has told, and passes it on by {@link QueueCalls.changed}. */
  look(): void;
  /** Asks the other thread to abort the command of a slot. */
  abort(slot: number): void;
  isAborting(slot: number): boolean;
  /** Asks the other thread to reset the controller. */
  reset(why: unknown): void;
}

/** How often it looks whether the other thread has started the controller again, or has answered, milliseconds. */
const LOOK_MS = 10;

const READ: Shape<AttachedReadOptions> = {
  lba: 'number',
  blocks: 'number',
  into: 'object',
  fua: 'boolean',
  signal: 'signal',
  timeoutMs: 'number',
};
const WRITE: Shape<AttachedWriteOptions> = (({ into, ...rest }) => ({ ...rest, from: into }))(READ);

/** The calls of one queue. */
export class QueueCalls {
  readonly #link: CallsLink;
  readonly #commands: Commands;
  readonly #namespaces = new Map<number, NamespaceOfThread>();
  #timer: ReturnType<typeof setTimeout> | undefined;
  /** Why the controller works no more. */
  #ended: DmaError | undefined;

  constructor(link: CallsLink) {
    const { queue, context, interrupts, abortMs } = link;
    this.#link = link;
    const reason = (): DmaError => this.#ended ?? wasReset(context.device.name);
    const host = {
      check: () => undefined,
      abort: async (_queue: number, slot: number) => this.#abort(slot),
      recover: (why: DmaError) => this.#reset(why),
      failed: (error: unknown) => this.#reset(error),
      get resetReason() {
        return reason();
      },
      resubmits: false,
      abortMs,
    };
    this.#commands = new Commands(queue, host, context.rules.pageSize, interrupts, new BusyPages());
  }

  /** How many calls wait or run. */
  get size(): number {
    return this.#commands.size;
  }

  namespace(id: number): AttachedNvmeNamespace {
    const known = this.#namespaces.get(id);
    if (known !== undefined) return known;
    this.#link.blockBytes(id);
    const made = new NamespaceOfThread(id, this.#link, this.#commands, () => this.#started());
    this.#namespaces.set(id, made);
    return made;
  }

  /** The controller has interrupted. */
  interrupt(): void {
    this.#commands.interrupt();
  }

  /** The other thread has told what the controller does. @param ended why it will not work again */
  changed(run: number, ended: DmaError | undefined): void {
    if (ended !== undefined) {
      this.#ended = ended;
      this.#commands.end(ended);
    } else if (run !== RUN.ON) {
      this.#commands.hold();
      this.#lookLater();
    } else if (this.#commands.isHeld) queueMicrotask(() => this.#commands.resume());
  }

  /** Who has the controller has ended, and the controller with it: so has all that runs. */
  lose(why: DmaError): void {
    clearTimeout(this.#timer);
    this.#ended = why;
    this.#commands.lose(why);
  }

  /** No more of them. @param why the error of later calls */
  end(why: DmaError): void {
    clearTimeout(this.#timer);
    this.#commands.end(why);
  }

  #reset(why: unknown): void {
    if (this.#ended === undefined) this.#link.reset(why);
  }

  #started(): void {
    if (this.#commands.isHeld) this.#lookLater();
  }

  /** While the controller is being reset, nothing else looks whether it works again. */
  #lookLater(): void {
    if (this.#timer !== undefined) return;
    this.#timer = setTimeout(() => {
      this.#timer = undefined;
      this.#link.look();
      this.#commands.check();
      this.#commands.interrupt();
      if (this.#commands.isHeld && this.#commands.size > 0) this.#lookLater();
    }, LOOK_MS);
  }

  async #abort(slot: number): Promise<void> {
    this.#link.abort(slot);
    while (this.#link.isAborting(slot) && this.#ended === undefined)
      await new Promise((resolve) => setTimeout(resolve, LOOK_MS));
  }
}

/** A namespace of {@link QueueCalls}. */
class NamespaceOfThread implements AttachedNvmeNamespace {
  readonly id: number;
  readonly #link: CallsLink;
  readonly #commands: Commands;
  readonly #started: () => void;

  constructor(id: number, link: CallsLink, commands: Commands, started: () => void) {
    this.id = id;
    this.#link = link;
    this.#commands = commands;
    this.#started = started;
  }

  get blockSize(): number {
    return this.#link.blockBytes(this.id);
  }

  async read(options: AttachedReadOptions): Promise<void> {
    const operation = 'nvme.read';
    const { into, ...rest } = optionsOf<AttachedReadOptions>(options, READ, operation);
    await this.#transfer(NVM.READ, rest, into, 'into', operation);
  }

  async write(options: AttachedWriteOptions): Promise<void> {
    const operation = 'nvme.write';
    const { from, ...rest } = optionsOf<AttachedWriteOptions>(options, WRITE, operation);
    await this.#transfer(NVM.WRITE, rest, from, 'from', operation);
  }

  async flush(options?: NvmeCallOptions): Promise<void> {
    const operation = 'nvme.flush';
    const call = optionsOf<NvmeCallOptions>(options, CALL, operation);
    await this.#run(operation, NVM.FLUSH, call, { lba: 0, blocks: 0, unit: 0, data: { kind: 'none' } });
  }

  async #transfer(
    opcode: number,
    options: Partial<Omit<AttachedReadOptions, 'into'>>,
    memory: MemoryPart | undefined,
    name: string,
    operation: string,
  ): Promise<void> {
    mustBePart(memory, operation);
    mustBeWhole(memory.length, 1, Number.MAX_SAFE_INTEGER, `the length of ${name}`, operation);
    const unit = this.blockSize;
    const { lba = NaN, blocks = Math.floor(memory.length / unit), fua = false, ...call } = options;
    mustBeBlocks(lba, blocks, Number.MAX_SAFE_INTEGER, operation);
    const use = opcode === NVM.READ ? 'write' : 'read';
    const data = dataIn(this.#link.context, memory, blocks * unit, unit, name, use, operation);
    const owned = data.kind === 'cuts' ? { ...data, va: Number(memory.va) } : data;
    await this.#run(operation, opcode, call, { lba, blocks, unit, data: owned }, fua ? IO_CDW12.FUA : 0);
  }

  async #run(
    operation: string,
    opcode: number,
    call: NvmeCallOptions,
    what: { readonly lba: number; readonly blocks: number; readonly unit: number; readonly data: Data },
    flags = 0,
  ): Promise<void> {
    const { context, queue } = this.#link;
    const entry = new Uint32Array(ENTRY_WORDS);
    entry[0] = opcode;
    entry[1] = this.id;
    entry[12] = flags;
    const limits = limitsOf(context, call, operation);
    this.#link.look();
    const maxBlocks = Math.min(65536, Math.floor(queue.maxTransfer / Math.max(1, what.unit)));
    const device = context.device.name;
    const ended = this.#commands.run({ operation, device, entry, ...what, maxBlocks, ...limits, repeatable: false });
    this.#started();
    await ended;
  }
}

function wasReset(device: string): DmaError {
  return new DmaError({
    code: 'ECANCELED',
    operation: 'nvme',
    device,
    reason: 'the thread that has the controller reset it',
    hint: 'events() of the controller tells that thread why',
  });
}

shortForm(NamespaceOfThread, 'AttachedNvmeNamespace', ({ id }) => ({ id }));
