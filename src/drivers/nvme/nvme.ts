/** A controller: brought up, its queues, its namespaces, and started anew when something goes wrong. */
import { isMainThread } from 'node:worker_threads';
import { closedDriver } from '../../bus/closed-device.js';
import {
  isGone,
  PCI_REGION,
  type InterruptKind,
  type InterruptLoan,
  type Interrupts,
} from '../../bus/device-access.js';
import { registersFor, type LentStores } from '../../bus/lent-registers.js';
import type { LentToProcess, ProcessLoan } from '../../bus/lent-to-process.js';
import type { Device, ProbeContext } from '../../bus/model.js';
import { mustBeMs, mustBeObject, mustBeWhole, optionsOf, type Shape } from '../../check.js';
import { DmaError, forPeople, invalid, isDmaError, throwFirst, undoAll, withUndo } from '../../errors.js';
import { Feed } from '../../feed.js';
import {
  ADMIN,
  CNS,
  COMMAND_SET,
  EVENT_CONFIG,
  EVENT_TYPE,
  EVENT,
  FEATURE,
  FEATURE_SELECT,
  FORMAT,
  LOG,
  QUEUE,
} from '../../nvme/commands.js';
import {
  controllerIdentityOf,
  descriptorsOf,
  IDENTIFY_BYTES,
  namespaceIdentityOf,
  namespaceListOf,
  OACS,
  type NvmeControllerIdentity,
  type NvmeNamespaceIdentity,
} from '../../nvme/identify.js';
import {
  completionDoorbell,
  ENTRY,
  NVME_REGISTER as REG,
  submissionDoorbell,
  type NvmeMemoryBuffer,
} from '../../nvme/registers.js';
import { tellHandler } from '../../memory/handlers.js';
import type { Shared } from '../../memory/shared/shared.js';
import { notShareable } from '../../memory/shared/shares.js';
import type { Registers } from '../../platform/registers/registers.js';
import { PCI_COMMAND, PCI_COMMAND_MASTER } from '../../platform/uapi/pci-regs.js';
import { shortForm } from '../../short-form.js';
import { show } from '../../show.js';
import { alignUp, formatSize, KiB, MiB } from '../../units.js';
import { queueName } from './attached-queue.js';
import { BUFFER_ADDRESS, ControllerBar } from './bar.js';
import { BusyPages } from './busy-pages.js';
import { Bounce } from './bounce.js';
import { Commands, type CommandsHost } from './commands.js';
import { piecesOf, putAddress, type NvmeMemory, type PointerRules } from './data-pointer.js';
import { DmaMemory } from '../dma-memory.js';
import { Doorbell, type ShadowDoorbells } from './doorbells.js';
import { eventOf, type NvmeEvent } from './events.js';
import { NvmeNamespace, type NamespaceFacts, type NamespaceHost } from './namespace.js';
import { CALL, type NvmeCallOptions } from './call-options.js';
import type { Data, NvmeResult } from './operation.js';
import { Lending } from './lending.js';
import { Poller } from './poller.js';
import { GARBAGE, hasMetadataApart, listBytesFor, NvmeQueue, type AttachedNvmeQueue } from './queue.js';
import { ABORT, METADATA_APART, QUEUE_WORD, QueueState, RUN } from './queue-state.js';
import { bytesOf, commandOf, limitsOf, type NvmeCommand, type RequestContext } from './requests.js';
import { STAYS } from '../../stays.js';
import type { NvmeQueueFacts } from './shared-queue.js';
import { SpareMemory } from './spare-memory.js';
import { clearTimeout, now, setTimeout } from '../../timers.js';

/** What a controller takes, and has. */
export interface NvmeLimits {
  /** Most bytes of a command; calls of namespaces cut what is longer. */
  readonly maxTransfer: number;
  /** Most queue pairs for I/O, the library's own included. */
  readonly queues: number;
  /** Most entries of a queue. */
  readonly queueEntries: number;
  /** bytes */
  readonly pageSize: number;
  /** Are there SGLs, for memory that is not in pages? */
  readonly sgl: boolean;
  /** Interrupt vectors that are in use; 0: completions are polled for. */
  readonly vectors: number;
}

/** How a controller is worked. */
export interface NvmeSettings {
  /** The time limit of calls that give none, in milliseconds. Default 30000. */
  readonly timeoutMs?: number;
  /** How long a command may take to come back after it was aborted, before the controller is reset. Default 5000 ms. */
  readonly abortMs?: number;
  /** Are reads that a reset interrupted sent again? Default false: they reject, as writes do. */
  readonly resubmitReads?: boolean;
}

/** Options of {@link Nvme.openQueue}. */
export interface NvmeQueueOptions {
  /** Entries of its rings: one more than commands can run. Default 256, or the most that the controller has. */
  readonly entries?: number;
  /**
   * Called from the event loop with what has completed, which is in the arrays of the queue. An exception in it is uncaught, and does
   * not disturb the queue. Default: the program polls.
   */
  readonly onCompletions?: (count: number, queue: NvmeQueue) => void;
  /** Does the controller interrupt for it? Default: if there is `onCompletions`. */
  readonly interrupts?: boolean;
  /** Put its submission ring into the controller's memory buffer. Default false; ENOTSUP where there is none. */
  readonly controllerMemory?: boolean;
  /** For weighted round robin, where that was asked for. Default `medium`. */
  readonly priority?: 'urgent' | 'high' | 'medium' | 'low';
}

const SETTINGS: Shape<NvmeSettings> = { timeoutMs: 'number', abortMs: 'number', resubmitReads: 'boolean' };
const PRIORITIES = ['urgent', 'high', 'medium', 'low'] as const;
const QUEUE_OPTIONS: Shape<NvmeQueueOptions> = {
  entries: 'number',
  onCompletions: 'function',
  interrupts: 'boolean',
  controllerMemory: 'boolean',
  priority: PRIORITIES,
};

const ADMIN_ENTRIES = 64;
/** What its lists are made for: they are allocated before identify says how much the controller takes. */
const MOST_ADMIN_TRANSFER = MiB;
/** Entries of the queue of promises: enough for the fastest disks, and of lists, 1 MiB. */
const IO_ENTRIES = 256;
/** Most bytes of a command, where the controller would take more. */
const MOST_TRANSFER = 4 * MiB;
/** And where it has no limit of its own. */
const USUAL_TRANSFER = MiB;
/** How many queue pairs are asked for. */
const WANTED_QUEUES = 64;
const MOST_VECTORS = 32;
/** How often it looks whether the threads that have queues know that the controller is stopped, milliseconds. */
const QUIET_MS = 10;
/** How often a queue that is polled by the program has the controller looked at, at most, milliseconds. */
const LOOK_MS = 20;
/** Outstanding requests for events. */
const EVENT_REQUESTS = 4;
/** How often the controller is brought up again after a reset that failed. */
const ATTEMPTS = 2;
const MOST_DESCRIPTORS = 256;

/** Memory that the controller has on loan. */
interface HostMemory {
  readonly list: DmaMemory;
  /** VAs: start and length of each range. */
  readonly ranges: readonly number[];
  readonly count: number;
  readonly pages: number;
}

/** The feature "host memory buffer" (NVMe 1.4, section 5.21.1.13): bits of CDW11, and bytes of a descriptor. */
const HMB = { ENABLE: 1 << 0, AGAIN: 1 << 1, DESCRIPTOR: 16 } as const;

/** Bytes of the controller's memory buffer. */
interface BufferPart {
  readonly offset: number;
  readonly length: number;
}

/** A queue pair, and what it is made of at the controller. */
interface QueueRecord {
  readonly queue: NvmeQueue;
  readonly memory: DmaMemory;
  readonly submissions: number;
  readonly completions: number;
  readonly entries: number;
  readonly vector: number | undefined;
  readonly priority: number;
  readonly doorbells: readonly [tail: Doorbell, head: Doorbell];
  /** Its part of the controller's memory buffer. */
  readonly buffer: BufferPart | undefined;
  /** Looks after it, when the program does not poll. */
  readonly poller: Poller | undefined;
  readonly onInterrupt: (() => void) | undefined;
  /** For another thread. */
  readonly shared: Pick<NvmeQueueFacts, 'submissions' | 'completions' | 'lists' | 'listBytes'>;
}

/** @internal What another process asks of a queue. */
export interface QueueForProcessOptions {
  readonly entries?: number;
  readonly interrupts?: boolean;
}

/** The state of a queue that threads share. */
function stateOf({ state: { buffer } }: NvmeQueue): SharedArrayBuffer {
  if (buffer instanceof SharedArrayBuffer) return buffer;
  throw invalid('nvmeQueue.share', 'the queue is for another process');
}

/** An NVMe controller. Made by `nvmeDriver`. */
export class Nvme {
  /** @internal */
  readonly stays = STAYS;
  /** What it says of itself. */
  identity: NvmeControllerIdentity;
  limits: NvmeLimits;
  /** Its version, such as `1.4.0`. */
  readonly version: string;

  readonly #device: Device;
  readonly #context: ProbeContext;
  readonly #bar: ControllerBar;
  readonly #pageSize: number;
  readonly #feed = new Feed<NvmeEvent>();
  readonly #bounce: Bounce;
  readonly #adminRecord: QueueRecord;
  readonly #admin: Commands;
  /** Lists of commands, and pages for their answers. */
  readonly #spare = new SpareMemory((length) => this.#allocate(length, 'lists'));
  /** What calls use, for pools. */
  readonly #busyPages = new BusyPages();
  #io: Commands | undefined;
  readonly #records = new Map<number, QueueRecord>();
  /** Queues that were offered to other threads, by their numbers. */
  readonly #lendings = new Map<number, Lending>();
  /** Until queues are looked after whose threads did not know of a reset. */
  #later: ReturnType<typeof setTimeout> | undefined;
  readonly #namespaces = new Map<number, NvmeNamespace>();
  #scanning: Promise<void> = Promise.resolve();
  #interrupts: Interrupts | undefined;
  readonly #vectors: Set<() => void>[] = [];
  /** Those that other threads wait for. */
  readonly #lentVectors = new Set<number>();
  #requests: { device: Device; rules: PointerRules; timeoutMs: number };
  #buffer: NvmeMemoryBuffer | undefined;
  #hostMemory: HostMemory | undefined;
  #abortMs = 5000;
  #resubmitReads = false;
  #shadow: { readonly memory: DmaMemory; readonly doorbells: ShadowDoorbells } | undefined;
  #state: 'starting' | 'ready' | 'resetting' | 'ended' = 'starting';
  #resetting: Promise<void> | undefined;
  /** Why it was reset last. */
  #resetReason: DmaError | undefined;
  #why: DmaError | undefined;
  /** What went wrong while it was being brought up. */
  #broke: DmaError | undefined;
  readonly #aborts: (() => void)[] = [];
  #abortsRunning = 0;
  #lookedAt = 0;
  readonly #use: Disposable | undefined;

  private constructor(device: Device, context: ProbeContext) {
    this.#device = device;
    this.#context = context;
    this.#bar = new ControllerBar(device.access);
    const { capabilities } = this.#bar;
    this.version = this.#bar.version;
    this.#pageSize = Math.max(4 * KiB, capabilities.minPageSize);
    if (this.#pageSize > capabilities.maxPageSize)
      throw invalid('nvme.open', `the controller has pages of ${capabilities.maxPageSize} bytes at most`);
    // Until identify says more.
    const pageSize = this.#pageSize;
    const rules: PointerRules = { pageSize, maxTransfer: pageSize, sgl: 'none', maxDescriptors: MOST_DESCRIPTORS };
    this.#requests = { device, rules, timeoutMs: 30_000 };
    this.identity = controllerIdentityOf(new Uint8Array(IDENTIFY_BYTES));
    this.limits = { maxTransfer: pageSize, queues: 0, queueEntries: 0, pageSize, sgl: false, vectors: 0 };
    this.#bounce = new Bounce((length) => this.#allocate(length, 'copies'));
    this.#adminRecord = this.#makeQueue(0, ADMIN_ENTRIES, MOST_ADMIN_TRANSFER, 2, undefined, undefined);
    this.#admin = new Commands(this.#adminRecord.queue, this.#host(), pageSize, true, this.#busyPages);
    this.#use = device.domain?.addUser({
      device: device.name,
      uses: (start, end) => this.#usesOf(start, end),
      elements: {
        isIdle: () => this.#busyPages.isIdle && this.#hostMemory === undefined,
        uses: (start, end) =>
          this.#lentUsing(start, end) ?? (this.#busyPages.has(start, end) ? this.#callUsing(start, end) : undefined),
      },
    });
  }

  /** @internal Takes the controller: resets it, and brings it up. @throws DmaError when it can not be worked */
  static async open(device: Device, context: ProbeContext): Promise<Nvme> {
    const nvme = new Nvme(device, context);
    try {
      await nvme.#bar.disable();
      nvme.#enableInterrupts();
      await nvme.#bringUp();
      nvme.#state = 'ready';
      nvme.#listen();
      return nvme;
    } catch (error) {
      const failure = withUndo(nvme.#why ?? nvme.#broke ?? error, 'nvme.open', []);
      const undo: unknown[] = [];
      await nvme.close(failure).catch((why: unknown) => undo.push(why));
      throw withUndo(failure.with({ device: device.name }), 'nvme.open', undo);
    }
  }

  /** Its namespaces, by their numbers. */
  get namespaces(): readonly NvmeNamespace[] {
    return [...this.#namespaces.values()].sort((a, b) => a.id - b.id);
  }

  /** The namespace `id`. @throws DmaError ENXIO if it is not there */
  namespace(id: number): NvmeNamespace {
    const namespace = this.#namespaces.get(id);
    if (namespace !== undefined) return namespace;
    throw new DmaError({
      code: 'ENXIO',
      operation: 'nvme.namespace',
      device: this.#device.name,
      reason: `there is no namespace ${show(id)}`,
      hint: `there are: ${[...this.#namespaces.keys()].join(', ') || 'none'}`,
    });
  }

  /** Does it work? False while it is being reset, and once it is closed or gone. */
  get ready(): boolean {
    return this.#state === 'ready';
  }

  /** Changes how it is worked; what is left out stays. @throws DmaError EINVAL */
  configure(settings: NvmeSettings): void {
    const operation = 'nvme.configure';
    const { timeoutMs, abortMs, resubmitReads } = optionsOf<NvmeSettings>(settings, SETTINGS, operation);
    if (timeoutMs !== undefined) mustBeMs(timeoutMs, 'timeoutMs', operation);
    if (abortMs !== undefined) mustBeMs(abortMs, 'abortMs', operation);
    this.#requests.timeoutMs = timeoutMs ?? this.#requests.timeoutMs;
    this.#abortMs = abortMs ?? this.#abortMs;
    this.#resubmitReads = resubmitReads ?? this.#resubmitReads;
  }

  /**
   * Sends any admin command.
   *
   * @throws DmaError (rejects) as `NvmeNamespace.read`
   */
  async admin(command: NvmeCommand): Promise<NvmeResult> {
    const operation = 'nvme.admin';
    mustBeObject(command, 'a command', operation);
    this.#mustWork(operation);
    const checked = commandOf(this.#adminContext, command, 0, operation);
    return this.#send(operation, checked.entry, checked.data, checked.unit, command, checked.ranges);
  }

  /** Reads a log page. @param length bytes, a multiple of 4. @throws DmaError as {@link Nvme.admin} */
  async logPage(
    page: number,
    length: number,
    options: NvmeCallOptions & {
      readonly nsid?: number;
      readonly offset?: number;
      readonly keepEvent?: boolean;
    } = {},
  ): Promise<Uint8Array> {
    const operation = 'nvme.logPage';
    const shape: Shape<typeof options> = { ...CALL, nsid: 'number', offset: 'number', keepEvent: 'boolean' };
    const asked = optionsOf<typeof options>(options, shape, operation);
    const { nsid = 0xffffffff, offset = 0, keepEvent = false, ...call } = asked;
    mustBeWhole(page, 0, 0xff, 'the log page', operation);
    mustBeWhole(length, 4, 64 * MiB, 'the length of a log page', operation);
    mustBeWhole(offset, 0, Number.MAX_SAFE_INTEGER, 'offset', operation);
    if (length % 4 !== 0) throw invalid(operation, `a log page of ${length} bytes: it is read in words of 4 bytes`);
    const bytes = new Uint8Array(length);
    const most = Math.min(4 * KiB, this.limits.maxTransfer);
    for (let at = 0; at < length; at += most) {
      const part = Math.min(most, length - at);
      const words = part / 4 - 1;
      const from = offset + at;
      // The event stays until all of the page is here.
      const keep = keepEvent || at + part < length;
      const cdw = { cdw10: page | (keep ? 1 << 15 : 0) | ((words & 0xffff) << 16), cdw11: words >>> 16 };
      const where = { cdw12: from % 2 ** 32, cdw13: Math.floor(from / 2 ** 32) };
      bytes.set(await this.#read(operation, { ...call, opcode: ADMIN.GET_LOG_PAGE, nsid, ...cdw, ...where }, part), at);
    }
    return bytes;
  }

  /** The value of a feature. @throws DmaError as {@link Nvme.admin} */
  async feature(
    id: number,
    options: NvmeCallOptions & {
      readonly nsid?: number;
      readonly select?: 'current' | 'default' | 'saved';
      readonly cdw11?: number;
    } = {},
  ): Promise<number> {
    const operation = 'nvme.feature';
    const selects = ['current', 'default', 'saved'] as const;
    const shape: Shape<typeof options> = { ...CALL, nsid: 'number', select: selects, cdw11: 'number' };
    const { nsid = 0, select = 'current', cdw11 = 0, ...call } = optionsOf<typeof options>(options, shape, operation);
    mustBeWhole(id, 0, 0xff, 'the feature', operation);
    const which = { current: FEATURE_SELECT.CURRENT, default: FEATURE_SELECT.DEFAULT, saved: FEATURE_SELECT.SAVED }[
      select
    ];
    const command = { ...call, opcode: ADMIN.GET_FEATURES, nsid, cdw10: id | (which << FEATURE_SELECT.SHIFT), cdw11 };
    return (await this.#command(operation, command)).result;
  }

  /** Sets a feature. @returns what the controller answers. @throws DmaError as {@link Nvme.admin} */
  async setFeature(
    id: number,
    value: number,
    options: NvmeCallOptions & { readonly nsid?: number; readonly save?: boolean } = {},
  ): Promise<number> {
    const operation = 'nvme.setFeature';
    const shape: Shape<typeof options> = { ...CALL, nsid: 'number', save: 'boolean' };
    const { nsid = 0, save = false, ...call } = optionsOf<typeof options>(options, shape, operation);
    mustBeWhole(id, 0, 0xff, 'the feature', operation);
    const cdw10 = id | (save ? 1 << 31 : 0);
    return (await this.#command(operation, { ...call, opcode: ADMIN.SET_FEATURES, nsid, cdw10, cdw11: value })).result;
  }

  /**
   * Formats a namespace: all that is in it is lost.
   *
   * @param options.format index of the format, as `namespace.identity.formats` has them. Default: the one in use, with its protection
   *   information; another one has none
   * @param options.erase 1: user data; 2: the key of its encryption. Default 0
   * @throws DmaError as {@link Nvme.admin}; EINVAL also for a namespace of another controller; ENOTSUP
   */
  async format(
    namespace: NvmeNamespace,
    options?: NvmeCallOptions & { readonly format?: number; readonly erase?: number },
  ): Promise<void> {
    const operation = 'nvme.format';
    if (!(namespace instanceof NvmeNamespace) || this.#namespaces.get(namespace.id) !== namespace)
      throw invalid(operation, 'it takes a namespace of this controller');
    if ((this.identity.oacs & OACS.FORMAT) === 0)
      throw new DmaError({
        code: 'ENOTSUP',
        operation,
        device: this.#device.name,
        reason: 'the controller can not format',
      });
    const { identity, id: nsid } = namespace;
    const shape: Shape<NonNullable<typeof options>> = { ...CALL, format: 'number', erase: 'number' };
    const { format = identity.format, erase = 0, ...call } = optionsOf(options, shape, operation);
    mustBeWhole(format, 0, 15, 'format', operation);
    mustBeWhole(erase, 0, 2, 'erase', operation);
    const inline = identity.metadataInline ? FORMAT.METADATA_INLINE : 0;
    const first = identity.protectionFirst ? FORMAT.PI_FIRST : 0;
    const protection = format === identity.format ? (identity.protection << FORMAT.PI_SHIFT) | first : 0;
    const cdw10 = format | inline | protection | (erase << FORMAT.SES_SHIFT);
    await this.#command(operation, { ...call, opcode: ADMIN.FORMAT, nsid, cdw10 });
    await this.rescan();
  }

  /** Asks the controller anew which namespaces it has, and what they are. @throws DmaError as {@link Nvme.admin} */
  async rescan(): Promise<void> {
    this.#mustWork('nvme.rescan');
    await this.#scan();
  }

  /** What the controller tells from now on, until it is closed. A listener that does not take events loses the oldest. */
  events(): AsyncGenerator<NvmeEvent, void> {
    return this.#feed.listen();
  }

  /**
   * Lends the controller memory for tables of its own (host memory buffer; NVMe 1.4, section 8.9), for disks without any. It must not
   * be touched meanwhile, and can not be freed or unmapped. Blocks of `eal.malloc` that begin and end on pages will do.
   *
   * @throws DmaError (rejects): ENOTSUP when the controller wants none; EINVAL when it is less than it needs, or not whole pages; EBUSY
   *   when it has some already; as {@link Nvme.admin}
   */
  async lendMemory(memory: NvmeMemory): Promise<void> {
    const operation = 'nvme.lendMemory';
    this.#mustWork(operation);
    const { hostMemoryMinimum, hostMemoryPreferred } = this.identity;
    const refuse = (code: 'ENOTSUP' | 'EINVAL' | 'EBUSY', reason: string, hint?: string): DmaError =>
      new DmaError({ code, operation, device: this.#device.name, reason, hint });
    if (hostMemoryPreferred === 0) throw refuse('ENOTSUP', 'the controller wants no memory of the host');
    if (this.#hostMemory !== undefined)
      throw refuse('EBUSY', 'it has memory of the host already', 'takeMemoryBack ends that');
    const length = bytesOf(memory, operation);
    const least = formatSize(hostMemoryMinimum);
    if (length < hostMemoryMinimum)
      throw refuse('EINVAL', `it needs ${least}`, `it would like ${formatSize(hostMemoryPreferred)}`);
    const pieces = piecesOf(this.#device, memory, length, 'memory', operation);
    const { iovas, lengths, ranges } = pieces;
    if (iovas.some((iova) => iova % this.#pageSize !== 0) || lengths.some((bytes) => bytes % this.#pageSize !== 0))
      throw refuse('EINVAL', `it takes whole pages of ${this.#pageSize} bytes`, 'eal.malloc(bytes, { align: 4096 })');
    const list = this.#allocate(iovas.length * HMB.DESCRIPTOR, 'host memory');
    const { bytes } = list.part(0, iovas.length * HMB.DESCRIPTOR);
    const words = new Uint32Array(bytes.buffer, bytes.byteOffset, bytes.length / 4);
    for (const [index, iova] of iovas.entries()) {
      putAddress(words, index * 4, iova);
      words[index * 4 + 2] = lengths[index] / this.#pageSize;
    }
    const given: HostMemory = { list, ranges, count: iovas.length, pages: length / this.#pageSize };
    try {
      await this.#giveHostMemory(given, 0);
    } catch (error) {
      throw withUndo(error, operation, undoAll([() => list[Symbol.dispose]()]));
    }
  }

  /** Takes back what {@link lendMemory} lent; does nothing if that is nothing. @throws DmaError (rejects) as {@link Nvme.admin} */
  async takeMemoryBack(): Promise<void> {
    const operation = 'nvme.takeMemoryBack';
    const given = this.#hostMemory;
    if (given === undefined) return;
    this.#mustWork(operation);
    await this.#command(operation, { opcode: ADMIN.SET_FEATURES, cdw10: FEATURE.HOST_MEMORY, cdw11: 0 });
    this.#hostMemory = undefined;
    given.list[Symbol.dispose]();
  }

  /**
   * Opens a queue pair of the program's own, for many commands a second: see {@link NvmeQueue}. Close it by
   * {@link closeQueue}, or with the device.
   *
   * @throws DmaError (rejects): EINVAL; ENOSPC when the controller has no queue pair left; as {@link Nvme.admin}
   */
  async openQueue(options?: NvmeQueueOptions): Promise<NvmeQueue> {
    const operation = 'nvme.openQueue';
    const asked = optionsOf<NvmeQueueOptions>(options, QUEUE_OPTIONS, operation);
    // The controller is brought up with the queues that there were before.
    await this.#resetting;
    this.#mustWork(operation);
    const { onCompletions, interrupts = onCompletions !== undefined, priority = 'medium' } = asked;
    const { controllerMemory = false, entries = Math.min(IO_ENTRIES, this.limits.queueEntries) } = asked;
    mustBeWhole(entries, 2, this.limits.queueEntries, 'entries', operation);
    const buffer = controllerMemory ? this.#bufferPart(entries * ENTRY.SUBMISSION, operation) : undefined;
    const which = PRIORITIES.indexOf(priority);
    const record = this.#makeIoQueue(entries, interrupts, which, onCompletions, operation, buffer);
    try {
      await this.#createQueue(record);
    } catch (error) {
      throw withUndo(error, operation, undoAll([() => this.#dropQueue(record)]));
    }
    return record.queue;
  }

  /**
   * Takes a queue back that `queue.share()` offered to other threads. Commands that run go on here. If the thread that had it has
   * ended, in whatever way, the controller makes the queue anew, so that it reaches no memory of that thread's commands any more: the
   * next `poll` returns them with the status `ABORTED_BY_HOST`.
   *
   * @throws DmaError (rejects): EBUSY while a thread has it, which the error names; EINVAL; as {@link Nvme.admin}
   */
  async takeBack(queue: NvmeQueue): Promise<void> {
    const operation = 'nvme.takeBack';
    const record = this.#recordOf(queue, operation);
    this.#mustWork(operation);
    const lending = this.#lendings.get(queue.id);
    if (lending === undefined) return;
    if (this.#state !== 'ready') throw this.#beingReset(operation);
    if (!lending.take(operation)) await this.#makeAnew(record, lending, operation);
    queue.load();
    this.#lendings.delete(queue.id);
    throwFirst(lending.end(), operation);
  }

  /**
   * Closes a queue pair.
   *
   * @throws DmaError (rejects): EBUSY while commands run in it, or another thread has it; EINVAL; as {@link Nvme.admin}
   */
  async closeQueue(queue: NvmeQueue): Promise<void> {
    const operation = 'nvme.closeQueue';
    const record = this.#recordOf(queue, operation);
    this.#mustWork(operation);
    await this.takeBack(queue);
    if (queue.hasAbandoned) queue.poll();
    if (queue.running > 0)
      throw new DmaError({
        code: 'EBUSY',
        operation,
        reason: `${queue.running} commands run in queue ${queue.id}`,
        hint: 'poll until queue.running is 0',
      });
    queue.halt(closedDriver('nvmeQueue').with({ reason: 'the queue was closed' }));
    await this.#deleteQueue(queue.id, operation);
    this.#dropQueue(record);
  }

  /**
   * @internal Opens a queue for another process, which works it from then on: see `NvmeQueueOfThread`. Its rings and its state are in memory
   * with descriptors. Doorbells that are neither in memory nor in pages which can be mapped are stored by this thread, which it calls.
   *
   * @throws DmaError (rejects) as {@link Nvme.openQueue}
   */
  async openForProcess(asked: QueueForProcessOptions, { holders, tell }: ProcessLoan): Promise<LentToProcess> {
    const operation = 'openQueue';
    this.#mustWork(operation);
    const { shares } = this.#context;
    if (shares === undefined) throw notShareable(operation);
    const { entries = Math.min(IO_ENTRIES, this.limits.queueEntries), interrupts = false } = asked;
    mustBeWhole(entries, 2, this.limits.queueEntries, 'entries', operation);
    const { access, name: device } = this.#device;
    const stateBytes = QueueState.bytesFor(entries - 1);
    const stateMemory = this.#context.external.allocate(stateBytes, { label: `state of a queue of ${device}` });
    const undo: (() => void)[] = [() => stateMemory.unregister()];
    const loans: Disposable[] = [];
    try {
      const state = new QueueState(entries - 1, stateMemory.bytes(0, stateBytes));
      const record = this.#makeIoQueue(entries, interrupts, 2, undefined, operation, undefined, state);
      undo.push(() => this.#dropQueue(record));
      await this.#createQueue(record);
      const { queue } = record;
      const calls = shares.callFrom(() => this.#calledFrom(record));
      loans.push(calls);
      const interrupt = this.#lendVector(record);
      if (interrupt !== undefined) loans.push(interrupt);
      const [tail, head] = this.#doorbellsOf(queue.id);
      const registers = registersFor(access, PCI_REGION.BAR0, tail, head + 4 - tail, shares.holders);
      if (registers !== undefined) loans.push(registers);
      const facts = this.#factsOf(record, [tail, head], {
        ...{ calls: calls.fd, interrupt: interrupt?.fd, registers: undefined, remote: undefined },
      });
      const wake = (): void => {
        interrupt?.signal();
        tell();
      };
      const lending = new Lending(this.#device, queue, undefined, holders, loans, wake);
      state.setFormats(this.#formats());
      lending.tell(RUN.ON, this.#shadow !== undefined);
      this.#lendings.set(queue.id, lending);
      lending.offer();
      const shadow = facts.shadow === undefined ? [] : [this.#shadow?.memory.external ?? []].flat();
      return {
        ...{ facts, calls: calls.fd, interrupt: interrupt?.fd, registers: registers?.file },
        memories: [stateMemory, record.memory.external, ...shadow],
        close: () => this.#closeForProcess(record, lending, () => stateMemory[Symbol.dispose]()),
      };
    } catch (error) {
      undo.push(...loans.map((loan) => () => loan[Symbol.dispose]()));
      throw withUndo(error, operation, undoAll(undo.reverse()));
    }
  }

  /** The process let go of its queue, or has ended: what runs in it is given up, and its memory can be freed then. */
  async #closeForProcess(record: QueueRecord, lending: Lending, release: () => void): Promise<void> {
    const operation = 'closeQueue';
    const { queue } = record;
    await this.#resetting?.catch(() => undefined);
    if (this.#lendings.get(queue.id) === lending) {
      // When this process stops sharing, the other one may still be there: it is told.
      if (lending.user === undefined) lending.take(operation);
      else lending.tell(RUN.ENDED, false);
      if (this.#state !== 'ended' && lending.exists) {
        queue.halt(closedDriver('nvmeQueue').with({ reason: 'the queue was closed' }));
        try {
          await this.#deleteQueue(queue.id, operation);
        } catch (error) {
          // A controller that was reset or closed meanwhile has it no more.
          if (this.#state === 'ready' && lending.exists) throw error;
        }
      }
      this.#lendings.delete(queue.id);
      throwFirst(lending.end(), operation);
      if (this.#records.get(queue.id) === record) this.#dropQueue(record);
    }
    release();
  }

  /** @throws DmaError EBUSY, naming it, while another thread has a queue of the controller */
  mustBeFree(operation: string): void {
    for (const lending of this.#lendings.values()) if (lending.user !== undefined) throw lending.busy(operation);
  }

  /**
   * Resets the controller and brings it up again. Commands that run reject with ECANCELED, or are sent again
   * (`resubmitReads`); those that wait for a slot are sent then.
   *
   * @throws DmaError (rejects) when it does not come up again: then it can not be used any more
   */
  async reset(): Promise<void> {
    const operation = 'nvme.reset';
    this.#mustWork(operation);
    await this.#recover(new DmaError({ code: 'ECANCELED', operation, reason: 'a reset was asked for' }));
    if (this.#why !== undefined) throw this.#why.with({ operation });
  }

  /**
   * @internal Lets go of the controller: tells it that it will be switched off, and switches it off. All calls end.
   *
   * @param why the error of those. Default ECANCELED
   */
  async close(why: DmaError = closedDriver('nvme')): Promise<void> {
    if (this.#state === 'ended' && this.#use === undefined) return;
    await this.#resetting?.catch(() => undefined);
    const isLost = why.code === 'ENODEV';
    const wasReady = this.#state === 'ready';
    this.#state = 'ended';
    this.#why ??= why;
    this.#resetReason = this.#why;
    const errors: unknown[] = [];
    if (!isLost) {
      try {
        // It is switched off all the same; but what was written may not be durable.
        if (wasReady)
          await this.#bar.shutdown(this.identity.shutdownMs).catch((error: unknown) => {
            if (!isGone(error)) errors.push(error);
          });
        await this.#bar.disable();
      } catch (error) {
        if (!isGone(error)) errors.push(error);
        this.#cutOff();
      }
    }
    this.#settleAll(this.#why);
    this.#feed.end();
    this.#use?.[Symbol.dispose]();
    const records = [...this.#records.values(), this.#adminRecord];
    this.#records.clear();
    errors.push(...undoAll([() => this.#interrupts?.close()]));
    const release = (): unknown[] => [
      ...this.#takeLendings().flatMap((lending) => lending.end()),
      ...undoAll([
        () => this.#shadow?.memory[Symbol.dispose](),
        () => throwFirst(this.#spare.end(), 'nvme.close'),
        () => this.#hostMemory?.list[Symbol.dispose](),
        ...records.map(
          ({ memory }) =>
            () =>
              memory[Symbol.dispose](),
        ),
      ]),
    ];
    // A thread that has a queue of a lost device does not know it yet.
    // A process has a mapping of its own, which stays.
    const all = [...this.#lendings.values()];
    if (all.every(({ share, isQuiet }) => share === undefined || isQuiet)) errors.push(...release());
    else this.#whenQuiet(release);
    throwFirst(errors, 'nvme.close');
  }

  // --- bringing up ---

  async #bringUp(): Promise<void> {
    const record = this.#adminRecord;
    const { queue, entries, submissions, completions } = record;
    queue.restart();
    const arbitration = this.#bar.capabilities.weightedRoundRobin ? 1 : 0;
    await this.#bar.enable({ entries, submissions, completions, pageSize: this.#pageSize, arbitration });
    this.#admin.resume();
    this.#buffer = this.#bar.enableMemoryBuffer();
    this.#learn(controllerIdentityOf(await this.#identify(CNS.CONTROLLER, 0)));
    await this.#agreeOnQueues();
    await this.#useShadowDoorbells();
    if (this.#io === undefined) {
      const entriesWanted = Math.min(IO_ENTRIES, this.limits.queueEntries);
      const io = this.#makeIoQueue(entriesWanted, this.limits.vectors > 0, 2, undefined, 'nvme.open');
      this.#io = new Commands(io.queue, this.#host(), this.#pageSize, io.vector !== undefined, this.#busyPages);
      if (io.vector !== undefined) this.#vectors[io.vector].add(() => this.#io?.interrupt());
    }
    for (const each of this.#records.values()) {
      if (this.#lendings.has(each.queue.id)) continue;
      each.queue.restart();
      await this.#createQueue(each);
    }
    await this.#restartLendings();
    await this.#scan();
    await this.#switchEventsOn();
    if (this.#hostMemory !== undefined) await this.#giveHostMemory(this.#hostMemory, HMB.AGAIN);
  }

  #learn(identity: NvmeControllerIdentity): void {
    this.identity = identity;
    const { capabilities } = this.#bar;
    const told = identity.mdts === 0 ? USUAL_TRANSFER : 2 ** identity.mdts * capabilities.minPageSize;
    // What the lists of a queue are made for stays, whatever a controller says after a reset.
    const maxTransfer = Math.min(told, this.#io?.queue.maxTransfer ?? MOST_TRANSFER);
    const kind = identity.sgls & 3;
    const sgl = kind === 1 ? 'any' : kind === 2 ? 'words' : 'none';
    this.#requests.rules = { pageSize: this.#pageSize, maxTransfer, sgl, maxDescriptors: MOST_DESCRIPTORS };
    this.limits = {
      maxTransfer,
      queues: this.limits.queues,
      queueEntries: capabilities.maxEntries,
      pageSize: this.#pageSize,
      sgl: sgl !== 'none',
      vectors: this.#vectors.length,
    };
  }

  /** The feature "number of queues": both are 0-based. */
  async #agreeOnQueues(): Promise<void> {
    const wanted = WANTED_QUEUES - 1;
    const command = { opcode: ADMIN.SET_FEATURES, cdw10: FEATURE.QUEUES, cdw11: wanted | (wanted << 16) };
    const { result } = await this.#command('nvme.open', command);
    const queues = Math.min(result & 0xffff, result >>> 16, wanted) + 1;
    this.limits = { ...this.limits, queues };
  }

  /** Memory instead of doorbells, where the controller has that: emulated ones do. */
  async #useShadowDoorbells(): Promise<void> {
    if ((this.identity.oacs & OACS.DOORBELL_BUFFER) === 0) return;
    const stride = this.#bar.capabilities.doorbellStride;
    const bytes = this.#pageSize;
    const memory = this.#shadow?.memory ?? this.#allocate(2 * bytes, 'shadow doorbells');
    const [values, events] = [memory.part(0, bytes), memory.part(bytes, bytes)];
    values.bytes.fill(0);
    events.bytes.fill(0);
    const words = ({ bytes: of }: typeof values): Uint32Array =>
      new Uint32Array(of.buffer, of.byteOffset, of.length / 4);
    this.#shadow = { memory, doorbells: { values: words(values), events: words(events) } };
    const entry = new Uint32Array(16);
    entry[0] = ADMIN.DOORBELL_BUFFER_CONFIG;
    entry[6] = values.iova;
    entry[7] = values.iova / 2 ** 32;
    entry[8] = events.iova;
    entry[9] = events.iova / 2 ** 32;
    try {
      await this.#send('nvme.open', entry, { kind: 'none' }, 0, {}, []);
    } catch (error) {
      // It works without, as all controllers do.
      if (!isDmaError(error, 'ENOTSUP') && !isDmaError(error, 'EINVAL')) throw error;
      this.#shadow = undefined;
      for (const { doorbells } of this.#records.values()) for (const each of doorbells) each.useShadow(undefined, 0);
      if (this.#lendings.size === 0) memory[Symbol.dispose]();
      return;
    }
    for (const { queue, doorbells } of [this.#adminRecord, ...this.#records.values()])
      this.#shadowed(queue.id, doorbells, stride, bytes);
  }

  /** A queue's doorbells go to memory, if theirs fit into the page of it. */
  #shadowed(id: number, doorbells: readonly Doorbell[], stride: number, bytes: number): void {
    const shadow = this.#shadow?.doorbells;
    if (id === 0 || shadow === undefined) return;
    for (const [which, doorbell] of doorbells.entries()) {
      const at = (2 * id + which) * stride;
      doorbell.useShadow(at + 4 <= bytes ? shadow : undefined, at / 4);
    }
  }

  /** One after the other: an older list must not end a namespace that a newer one has. */
  #scan(): Promise<void> {
    const scan = this.#scanning.then(() => this.#scanOnce());
    this.#scanning = scan.catch(() => undefined);
    return scan;
  }

  async #scanOnce(): Promise<void> {
    const ids: number[] = [];
    for (let from = 0; ;) {
      const list = namespaceListOf(await this.#identify(CNS.ACTIVE_NAMESPACES, from));
      ids.push(...list);
      if (list.length < IDENTIFY_BYTES / 4) break;
      from = list[list.length - 1];
    }
    const found = new Set<number>();
    for (const id of ids) {
      const descriptors = await this.#descriptors(id);
      const { commandSet = COMMAND_SET.NVM } = descriptors;
      if (commandSet !== COMMAND_SET.NVM && commandSet !== COMMAND_SET.ZONED) continue;
      const identity = await this.#namespaceIdentity(id);
      if (identity === undefined) continue;
      found.add(id);
      const facts: NamespaceFacts = { id, identity, descriptors };
      const known = this.#namespaces.get(id);
      if (known === undefined) this.#namespaces.set(id, new NvmeNamespace(this.#namespaceHost(), facts));
      else known.update(facts);
    }
    for (const { queue } of this.#records.values()) queue.forgetFormat();
    for (const [id, namespace] of this.#namespaces) {
      if (found.has(id)) continue;
      namespace.end();
      this.#namespaces.delete(id);
    }
    for (const { queue } of this.#lendings.values()) queue.state.setFormats(this.#formats());
  }

  /** `undefined` if it is not there (any more), or has a format without blocks. */
  async #namespaceIdentity(id: number): Promise<NvmeNamespaceIdentity | undefined> {
    try {
      const identity = namespaceIdentityOf(await this.#identify(CNS.NAMESPACE, id));
      return identity.blocks === 0 || identity.blockSize === 0 ? undefined : identity;
    } catch (error) {
      if (isDmaError(error, 'ENXIO')) return undefined;
      throw error;
    }
  }

  /** Controllers before 1.3 have none, and a namespace that has gone meanwhile has none either. */
  async #descriptors(id: number): Promise<NamespaceFacts['descriptors']> {
    try {
      return descriptorsOf(await this.#identify(CNS.NAMESPACE_DESCRIPTORS, id));
    } catch (error) {
      if (!isDmaError(error, 'EINVAL') && !isDmaError(error, 'ENOTSUP') && !isDmaError(error, 'ENXIO')) throw error;
      return { eui64: undefined, nguid: undefined, uuid: undefined, commandSet: undefined };
    }
  }

  #namespaceHost(): NamespaceHost {
    const io = this.#io;
    if (io === undefined) throw closedDriver('nvme');
    const requests: RequestContext = this.#requests;
    const identity = (): NvmeControllerIdentity => this.identity;
    return {
      context: requests,
      get identity() {
        return identity();
      },
      io,
      bounce: this.#bounce,
      minPageSize: this.#bar.capabilities.minPageSize,
      page: (length) => this.#spare.take(length),
      identify: (cns, nsid, commandSet) => this.#identify(cns, nsid, commandSet),
    };
  }

  /** @param flags how it is given: for the first time, or again after a reset, with what the controller had put there */
  async #giveHostMemory(given: HostMemory, flags: number): Promise<void> {
    const { list, count, pages } = given;
    // From here on the controller may use it.
    this.#hostMemory = given;
    const address = { cdw13: list.iova % 2 ** 32, cdw14: Math.floor(list.iova / 2 ** 32) };
    const feature = { opcode: ADMIN.SET_FEATURES, cdw10: FEATURE.HOST_MEMORY, cdw11: HMB.ENABLE | flags };
    try {
      await this.#command('nvme.lendMemory', { ...feature, cdw12: pages, ...address, cdw15: count });
    } catch (error) {
      if (flags === 0) {
        this.#hostMemory = undefined;
        // What was given up may have been done all the same, and the memory is free again soon. After a reset the controller has none.
        const undo = this.#command('nvme.lendMemory', { opcode: ADMIN.SET_FEATURES, cdw10: FEATURE.HOST_MEMORY });
        await undo.catch(() => undefined);
      }
      throw error;
    }
  }

  // --- events ---

  async #switchEventsOn(): Promise<void> {
    const offered = this.identity.events;
    const wanted = EVENT_CONFIG.HEALTH_MASK | (offered & (EVENT_CONFIG.NAMESPACES | EVENT_CONFIG.FIRMWARE));
    const command = { opcode: ADMIN.SET_FEATURES, cdw10: FEATURE.ASYNC_EVENTS, cdw11: wanted };
    await this.#command('nvme.open', command).catch((error: unknown) => {
      if (!isDmaError(error, 'EINVAL') && !isDmaError(error, 'ENOTSUP')) throw error;
    });
  }

  /** Keeps requests for events outstanding. */
  #listen(): void {
    const count = Math.min(EVENT_REQUESTS, this.identity.eventLimit);
    for (let each = 0; each < count; each++) void this.#requestEvents();
  }

  async #requestEvents(): Promise<void> {
    const operation = 'nvme.events';
    try {
      while (this.#state === 'ready') {
        const entry = new Uint32Array(16);
        entry[0] = ADMIN.ASYNC_EVENT;
        const { result } = await this.#admin.run(
          this.#parts(operation, entry, { kind: 'none' }, 0, [], undefined, Infinity),
          true,
        );
        await this.#happened(result);
      }
    } catch {
      // The controller is being reset, or is gone, or has enough of them.
    }
  }

  async #happened(result: number): Promise<void> {
    const page = (result >>> 16) & 0xff;
    const isNotice = (result & 7) === EVENT_TYPE.NOTICE;
    const bytes = page === LOG.CHANGED_NAMESPACES ? 4096 : page === 0 ? 0 : 512;
    // Reading the page lets the next event of this kind come.
    const log = bytes === 0 ? undefined : await this.logPage(page, bytes).catch(() => undefined);
    if (isNotice && ((result >>> 8) & 0xff) === EVENT.NOTICE.NAMESPACES) await this.#scan().catch(() => undefined);
    this.#feed.tell(eventOf(result, log));
  }

  // --- commands ---

  #parts(
    operation: string,
    entry: Uint32Array,
    data: Data,
    unit: number,
    ranges: readonly number[],
    signal: AbortSignal | undefined,
    deadline: number,
  ): Parameters<Commands['run']>[0] {
    const device = this.#device.name;
    return {
      operation,
      device,
      entry,
      lba: 0,
      blocks: 0,
      unit,
      maxBlocks: 1,
      data,
      ranges,
      signal,
      deadline,
      repeatable: false,
    };
  }

  async #send(
    operation: string,
    entry: Uint32Array,
    data: Data,
    unit: number,
    call: NvmeCallOptions,
    ranges: readonly number[],
  ): Promise<NvmeResult> {
    const { signal, deadline } = limitsOf(this.#requests, call, operation);
    return this.#admin.run(this.#parts(operation, entry, data, unit, ranges, signal, deadline));
  }

  /** Lists of the admin queue are made before identify says how much the controller takes. */
  get #adminContext(): RequestContext {
    const { rules, ...rest } = this.#requests;
    return { ...rest, rules: { ...rules, maxTransfer: Math.min(rules.maxTransfer, MOST_ADMIN_TRANSFER) } };
  }

  async #command(operation: string, command: NvmeCommand): Promise<NvmeResult> {
    const { entry, data, unit, ranges } = commandOf(this.#requests, command, 0, operation);
    return this.#send(operation, entry, data, unit, command, ranges);
  }

  /** A command whose answer is `length` bytes. */
  async #read(operation: string, command: NvmeCommand, length: number): Promise<Uint8Array> {
    using memory = this.#spare.take(length);
    const { entry } = commandOf(this.#requests, command, 0, operation);
    const { bytes, iova } = memory;
    await this.#send(operation, entry, { kind: 'run', iova, va: NaN }, length, command, []);
    return Uint8Array.from(bytes);
  }

  #identify(cns: number, nsid: number, commandSet: number = COMMAND_SET.NVM): Promise<Uint8Array> {
    const command = { opcode: ADMIN.IDENTIFY, nsid, cdw10: cns, cdw11: commandSet << 24 };
    return this.#read('nvme.identify', command, IDENTIFY_BYTES);
  }

  #allocate(length: number, what: string): DmaMemory {
    return new DmaMemory(this.#device, this.#context, length, this.#pageSize, what);
  }

  // --- queues ---

  #makeIoQueue(
    entries: number,
    interrupts: boolean,
    priority: number,
    onCompletions: NvmeQueueOptions['onCompletions'],
    operation: string,
    buffer?: BufferPart,
    state?: QueueState,
  ): QueueRecord {
    let id = 1;
    while (this.#records.has(id)) id++;
    if (id > this.limits.queues)
      throw new DmaError({
        code: 'ENOSPC',
        operation,
        device: this.#device.name,
        reason: `the controller has ${this.limits.queues} queue pairs, and all are in use`,
        hint: 'close one by closeQueue',
      });
    const vector = interrupts ? this.#vectorFor(id) : undefined;
    const record = this.#makeQueue(
      id,
      entries,
      this.limits.maxTransfer,
      priority,
      vector,
      onCompletions,
      buffer,
      state,
    );
    this.#records.set(id, record);
    this.#shadowed(id, record.doorbells, this.#bar.capabilities.doorbellStride, this.#pageSize);
    return record;
  }

  /** A vector for queue `id`: not that of the admin queue if there are more, and none that another thread waits for. */
  #vectorFor(id: number): number | undefined {
    const vectors = this.#vectors.length;
    if (vectors === 0) return undefined;
    for (let each = 0; each < vectors - 1; each++) {
      const vector = 1 + ((id - 1 + each) % (vectors - 1));
      if (!this.#lentVectors.has(vector)) return vector;
    }
    return 0;
  }

  #makeQueue(
    id: number,
    entries: number,
    maxTransfer: number,
    priority: number,
    vector: number | undefined,
    onCompletions: NvmeQueueOptions['onCompletions'],
    buffer?: BufferPart,
    state?: QueueState,
  ): QueueRecord {
    const pageSize = this.#pageSize;
    const stride = this.#bar.capabilities.doorbellStride;
    const submissionBytes = alignUp(entries * ENTRY.SUBMISSION, pageSize);
    const completionBytes = alignUp(entries * ENTRY.COMPLETION, pageSize);
    const listBytes = listBytesFor(maxTransfer, pageSize);
    const listsAt = submissionBytes + completionBytes;
    const length = listsAt + (entries - 1) * listBytes;
    const memory = this.#allocate(length, `queue ${id}`);
    const tail = new Doorbell(this.#bar.registers, submissionDoorbell(id, stride));
    const head = new Doorbell(this.#bar.registers, completionDoorbell(id, stride));
    const submissions = memory.part(0, submissionBytes);
    const completions = memory.part(submissionBytes, completionBytes);
    const queue = new NvmeQueue({
      ...{ id, entries, submissions, completions, listBytes, pageSize, maxTransfer, tail, head },
      ...(state === undefined ? {} : { state }),
      interrupts: id === 0 || vector !== undefined,
      ...(buffer === undefined ? {} : { remote: this.#remoteRing(buffer) }),
      lists: memory.part(listsAt, length - listsAt),
      formatOf: (nsid) => this.#formatOf(nsid),
      failed: (error) => this.#failed(error),
      look: () => this.#look(),
      share: (of) => this.#share(of),
    });
    const poller = onCompletions === undefined ? undefined : this.#pollerOf(queue, onCompletions, vector);
    const onInterrupt = poller === undefined ? undefined : (): void => poller.interrupt();
    if (vector !== undefined && onInterrupt !== undefined) this.#vectors[vector].add(onInterrupt);
    return {
      ...{ queue, memory, entries, vector, priority, poller, onInterrupt, buffer },
      shared: {
        submissions: memory.shared(0, submissionBytes),
        completions: memory.shared(submissionBytes, completionBytes),
        lists: memory.shared(listsAt, length - listsAt),
        listBytes,
      },
      submissions: buffer === undefined ? submissions.iova : BUFFER_ADDRESS + buffer.offset,
      completions: completions.iova,
      doorbells: [tail, head],
    };
  }

  /** Calls the program with what completes. */
  #pollerOf(
    queue: NvmeQueue,
    onCompletions: (count: number, queue: NvmeQueue) => void,
    vector: number | undefined,
  ): Poller {
    const poll = (): number => {
      let count = 0;
      try {
        count = queue.poll();
      } catch (error) {
        this.#failed(error);
      }
      if (count > 0) tellHandler(() => onCompletions(count, queue));
      return count;
    };
    const poller = new Poller(
      { poll, busy: () => queue.running > 0, check: () => this.#check() },
      vector !== undefined,
    );
    queue.onRing = () => poller.start();
    return poller;
  }

  /** Room for a ring in the memory buffer. @throws DmaError ENOTSUP, ENOSPC */
  #bufferPart(bytes: number, operation: string): BufferPart {
    const buffer = this.#buffer;
    const refuse = (code: 'ENOTSUP' | 'ENOSPC', reason: string): DmaError =>
      new DmaError({ code, operation, device: this.#device.name, reason, hint: 'leave controllerMemory out' });
    if (buffer === undefined) throw refuse('ENOTSUP', 'the controller has no memory buffer for submission queues');
    const length = alignUp(bytes, this.#pageSize);
    const taken = [...this.#records.values()].flatMap(({ buffer: part }) => (part === undefined ? [] : [part]));
    let offset = 0;
    for (const part of taken.sort((a, b) => a.offset - b.offset)) {
      if (part.offset - offset >= length) break;
      offset = part.offset + part.length;
    }
    if (offset + length <= buffer.length) return { offset, length };
    throw refuse('ENOSPC', `its memory buffer of ${formatSize(buffer.length)} is full`);
  }

  #remoteRing(part: BufferPart): { readonly registers: Registers; readonly offset: number } {
    const { bar = 0, offset = 0 } = this.#buffer ?? {};
    return { registers: this.#device.access.registers(bar), offset: offset + part.offset };
  }

  // --- queues of other threads ---

  #recordOf(queue: NvmeQueue, operation: string): QueueRecord {
    const record = queue instanceof NvmeQueue ? this.#records.get(queue.id) : undefined;
    if (record === undefined || record.queue !== queue || record.queue === this.#io?.queue)
      throw invalid(operation, 'this is no queue that openQueue gave, or it was closed before');
    return record;
  }

  #share(queue: NvmeQueue): Shared<AttachedNvmeQueue> {
    const operation = 'nvmeQueue.share';
    const record = this.#recordOf(queue, operation);
    this.#mustWork(operation);
    const known = this.#lendings.get(queue.id);
    if (known?.share !== undefined) return known.share.description;
    if (known !== undefined) throw known.busy(operation);
    this.#mustBeShareable(record, operation);
    const { access, name: device } = this.#device;
    const { id } = queue;
    const [tail, head] = this.#doorbellsOf(id);
    const { shares } = this.#context;
    if (shares === undefined) throw notShareable(operation);
    const { holders } = shares;
    const { domain } = this.#device;
    const more: SharedArrayBuffer[] = [...(domain?.sharedTable ?? [])];
    const loans: Disposable[] = [];
    const lend = (bar: number, offset: number, length: number): LentStores => {
      if (access.lendRegisters === undefined)
        throw new DmaError({
          code: 'ENOTSUP',
          operation,
          device,
          reason: 'the registers of the device can only be reached from the thread that opened it',
          hint: 'serve the device in another process, and use it by the bus vfio-user',
        });
      const loan = access.lendRegisters(bar, offset, length, holders);
      loans.push(loan);
      if (loan.words !== undefined && !more.includes(loan.words)) more.push(loan.words);
      return loan.stores;
    };
    try {
      const registers = lend(PCI_REGION.BAR0, tail, head + 4 - tail);
      const { buffer } = record;
      const remote =
        buffer === undefined || this.#buffer === undefined
          ? undefined
          : {
              registers: lend(this.#buffer.bar, this.#buffer.offset + buffer.offset, buffer.length),
              offset: this.#buffer.offset + buffer.offset,
            };
      for (const memory of [record.memory, this.#shadow?.memory])
        if (memory !== undefined) loans.push(memory.pin(`queue ${id} of ${device} is offered to other threads`));
      const interrupt = this.#lendVector(record);
      if (interrupt !== undefined) loans.push(interrupt);
      const calls = shares.callFrom(() => this.#calledFrom(record));
      loans.push(calls);
      const facts = this.#factsOf(record, [tail, head], {
        ...{ calls: calls.fd, interrupt: interrupt?.fd, registers, remote },
      });
      const share = shares.add<AttachedNvmeQueue>(
        {
          kind: 'queue',
          what: queueName(facts),
          facts: { text: JSON.stringify(facts) },
          more: [stateOf(queue), ...more],
        },
        operation,
      );
      const lending = new Lending(this.#device, queue, share, holders, loans, () => interrupt?.signal());
      loans.push({ [Symbol.dispose]: shares.addRecovery((holder) => lending.forget(holder)) });
      queue.state.setFormats(this.#formats());
      lending.tell(RUN.ON, this.#shadow !== undefined);
      this.#lendings.set(id, lending);
      lending.offer();
      return share.description;
    } catch (error) {
      throw withUndo(error, operation, undoAll(loans.map((loan) => () => loan[Symbol.dispose]())));
    }
  }

  /** Where the doorbells of a queue are in the registers: tail and head. */
  #doorbellsOf(id: number): readonly [tail: number, head: number] {
    const stride = this.#bar.capabilities.doorbellStride;
    return [submissionDoorbell(id, stride), completionDoorbell(id, stride)];
  }

  /** What others need to work a queue. @param ways how they reach the controller, and this thread */
  #factsOf(
    { queue, entries, vector, shared }: QueueRecord,
    [tail, head]: readonly [tail: number, head: number],
    ways: Pick<NvmeQueueFacts, 'calls' | 'interrupt' | 'registers' | 'remote'>,
  ): NvmeQueueFacts {
    const { name: device, driver, domain } = this.#device;
    const { rules, timeoutMs } = this.#requests;
    const { id, maxTransfer } = queue;
    return {
      ...ways,
      ...{ device, driver: driver?.name, id, entries, timeoutMs, abortMs: this.#abortMs, maxTransfer, tail, head },
      domain: domain === undefined ? undefined : { name: domain.name, kind: domain.kind },
      interrupts: vector !== undefined,
      rules: { ...rules, maxTransfer },
      pageSize: this.#pageSize,
      ...shared,
      shadow: this.#sharedShadow(tail, head),
    };
  }

  /** The interrupt of a queue, for another thread; `undefined` if it is not the queue's alone. */
  #lendVector({ queue, vector }: QueueRecord): InterruptLoan | undefined {
    const isShared = [...this.#records.values()].some((other) => other.queue !== queue && other.vector === vector);
    if (vector === undefined || vector === 0 || isShared) return undefined;
    const loan = this.#interrupts?.lend?.(vector);
    if (loan === undefined) return undefined;
    this.#lentVectors.add(vector);
    return {
      fd: loan.fd,
      signal: () => loan.signal(),
      [Symbol.dispose]: () => {
        this.#lentVectors.delete(vector);
        loan[Symbol.dispose]();
      },
    };
  }

  /** Stores the doorbells for who can not. */
  #ringFor({ queue, entries }: QueueRecord): void {
    const [tail, head] = this.#doorbellsOf(queue.id);
    const bells = [
      [QUEUE_WORD.TAIL_BELL, tail],
      [QUEUE_WORD.HEAD_BELL, head],
    ] as const;
    for (const [word, offset] of bells) {
      const value = Atomics.exchange(queue.state.words, word, 0) - 1;
      if (value < 0 || value >= entries || this.#lendings.get(queue.id)?.exists !== true) continue;
      try {
        this.#bar.registers.write32(offset, value);
      } catch (error) {
        this.#failed(error);
      }
    }
  }

  /** The thread that has a queue wants something. */
  #calledFrom(record: QueueRecord): void {
    const { queue } = record;
    const { state, id } = queue;
    const lending = this.#lendings.get(id);
    const isThere = (): boolean => this.#lendings.get(id) === lending;
    this.#ringFor(record);
    if (Atomics.exchange(state.words, QUEUE_WORD.RESET, 0) !== 0 && this.#state === 'ready') {
      const reason = `the thread that has queue ${id} asked for a reset: a command did not come back, or could not be`;
      this.#failed(new DmaError({ code: 'ECANCELED', operation: 'nvme', reason }));
    }
    for (let slot = 0; slot < queue.capacity; slot++) {
      if (Atomics.compareExchange(state.aborts, slot, ABORT.WANTED, ABORT.SENT) !== ABORT.WANTED) continue;
      void this.#abort(id, slot, isThere).finally(() => Atomics.store(state.aborts, slot, ABORT.NONE));
    }
  }

  #mustBeShareable({ poller, queue }: QueueRecord, operation: string): void {
    const device = this.#device.name;
    if (!isMainThread)
      throw new DmaError({
        code: 'ENOTSUP',
        operation,
        device,
        reason: 'the memory of the queue ends with this worker thread',
        hint: 'open the device in the main thread, and share its queues from there',
      });
    if (poller !== undefined)
      throw new DmaError({
        code: 'ENOTSUP',
        operation,
        device,
        reason: `queue ${queue.id} is polled from the event loop of this thread`,
        hint: 'open a queue without onCompletions for another thread',
      });
    if (this.#state !== 'ready') throw this.#beingReset(operation);
  }

  #beingReset(operation: string): DmaError {
    const reason = 'the controller is being reset';
    return new DmaError({ code: 'EAGAIN', operation, device: this.#device.name, reason, hint: 'try again later' });
  }

  #sharedShadow(tail: number, head: number): NvmeQueueFacts['shadow'] {
    if (this.#shadow === undefined) return undefined;
    const { memory } = this.#shadow;
    const length = this.#pageSize;
    const indexes = [tail, head].map((offset) => (offset - REG.DOORBELLS) / 4);
    if (indexes.some((index) => index * 4 + 4 > length)) return undefined;
    return { values: memory.va, events: memory.va + length, length, indexes };
  }

  #formats(): (readonly [nsid: number, blockBytes: number])[] {
    return [...this.#namespaces.values()].map(
      ({ id, transferSize, hasMetadataApart: isApart }) => [id, isApart ? METADATA_APART : transferSize] as const,
    );
  }

  /** Tells the threads that have queues what the controller does: it has none of them then. */
  #tell(run: number): void {
    for (const lending of this.#lendings.values()) {
      lending.exists = false;
      lending.tell(run, this.#shadow !== undefined);
    }
  }

  #takeLendings(): Lending[] {
    const all = [...this.#lendings.values()];
    this.#lendings.clear();
    return all;
  }

  /**
   * Makes the queues of other threads after a reset: those whose thread does not know of it yet, and may still be at the rings, later.
   */
  async #restartLendings(): Promise<void> {
    let isLate = false;
    for (const lending of this.#lendings.values()) {
      const record = this.#records.get(lending.queue.id);
      if (lending.exists || record === undefined) continue;
      if (lending.isQuiet) await this.#makeAnew(record, lending, 'nvme.open');
      else isLate = true;
    }
    if (isLate) this.#restartLater();
  }

  #restartLater(): void {
    clearTimeout(this.#later);
    const again = (): void => {
      if (this.#state === 'ended') return;
      if (this.#state !== 'ready') return this.#restartLater();
      this.#restartLendings().catch((error: unknown) => {
        if (this.#state === 'ready') this.#failed(error);
      });
    };
    this.#later = setTimeout(again, QUIET_MS).unref();
  }

  /** Lets the controller make a queue that nobody is at. What ran in it, and nobody knows of, is returned by the next `poll`. */
  async #makeAnew(record: QueueRecord, lending: Lending, operation: string): Promise<void> {
    lending.making ??= this.#make(record, lending, operation).finally(() => (lending.making = undefined));
    await lending.making;
  }

  async #make(record: QueueRecord, lending: Lending, operation: string): Promise<void> {
    const { queue } = record;
    if (lending.exists) await this.#deleteQueue(queue.id, operation);
    lending.exists = false;
    if (lending.user === undefined) queue.abandon();
    queue.restart();
    this.#clearShadow(queue.id);
    queue.save();
    await this.#createQueue(record);
    lending.exists = true;
    lending.tell(RUN.ON, this.#shadow !== undefined);
  }

  async #deleteQueue(id: number, operation: string): Promise<void> {
    await this.#command(operation, { opcode: ADMIN.DELETE_SQ, cdw10: id });
    await this.#command(operation, { opcode: ADMIN.DELETE_CQ, cdw10: id });
  }

  /** The doorbells of a new queue are 0. */
  #clearShadow(id: number): void {
    if (this.#shadow === undefined) return;
    const stride = this.#bar.capabilities.doorbellStride;
    const { values, events } = this.#shadow.doorbells;
    for (const words of [values, events]) for (const which of [0, 1]) words[((2 * id + which) * stride) / 4] = 0;
  }

  /** Runs `work` once no thread is at the rings of a queue any more. */
  #whenQuiet(work: () => void): void {
    const look = (): void => {
      if ([...this.#lendings.values()].every(({ isQuiet }) => isQuiet)) work();
      else this.#whenQuiet(work);
    };
    setTimeout(look, QUIET_MS).unref();
  }

  #dropQueue(record: QueueRecord): void {
    this.#records.delete(record.queue.id);
    if (record.vector !== undefined && record.onInterrupt !== undefined)
      this.#vectors[record.vector].delete(record.onInterrupt);
    record.memory[Symbol.dispose]();
  }

  #formatOf(nsid: number): { readonly blockBytes: number } {
    const namespace = this.#namespaces.get(nsid);
    if (namespace === undefined)
      throw invalid('nvmeQueue', `there is no namespace ${nsid}`, {
        hint: `there are: ${[...this.#namespaces.keys()].join(', ')}`,
      });
    if (namespace.hasMetadataApart) throw hasMetadataApart(nsid);
    return { blockBytes: namespace.transferSize };
  }

  /** Create I/O completion queue, then the submission queue that uses it (NVMe 1.4, sections 5.3 and 5.4). */
  async #createQueue({ queue, entries, submissions, completions, vector, priority }: QueueRecord): Promise<void> {
    const operation = 'nvme.openQueue';
    const cdw10 = queue.id | ((entries - 1) << 16);
    const interrupts = vector === undefined ? 0 : QUEUE.INTERRUPTS | (vector << 16);
    const cq = { opcode: ADMIN.CREATE_CQ, cdw10, cdw11: QUEUE.CONTIGUOUS | interrupts, prp: [completions, 0] as const };
    await this.#command(operation, cq);
    const cdw11 = QUEUE.CONTIGUOUS | (priority << QUEUE.PRIORITY_SHIFT) | (queue.id << 16);
    try {
      await this.#command(operation, { opcode: ADMIN.CREATE_SQ, cdw10, cdw11, prp: [submissions, 0] });
    } catch (error) {
      // Its memory will be used for something else; a controller that is reset has no queues anyway.
      const undo: unknown[] = [];
      if (this.#state !== 'resetting')
        await this.#command(operation, { opcode: ADMIN.DELETE_CQ, cdw10: queue.id }).catch((why: unknown) =>
          undo.push(why),
        );
      throw withUndo(error, operation, undo);
    }
  }

  #enableInterrupts(): void {
    const { access } = this.#device;
    const kinds: readonly InterruptKind[] = ['msix', 'msi', 'intx'];
    const kind = kinds.find((each) => access.interruptCount(each) > 0);
    if (kind === undefined) return;
    const count = kind === 'msix' ? Math.min(access.interruptCount(kind), MOST_VECTORS) : 1;
    for (let vector = 0; vector < count; vector++) this.#vectors.push(new Set());
    const handlers = this.#vectors.map((listeners) => () => {
      for (const listener of listeners) listener();
    });
    this.#vectors[0].add(() => this.#admin.interrupt());
    this.#interrupts = access.enableInterrupts(kind, handlers);
    // Calls that run keep the process alive, and not a controller that is idle.
    this.#interrupts.setRef(false);
  }

  // --- when it goes wrong ---

  #host(): CommandsHost {
    const reason = (): DmaError | undefined => this.#resetReason;
    const abortMs = (): number => this.#abortMs;
    const resubmits = (): boolean => this.#resubmitReads;
    return {
      check: () => this.#check(),
      abort: (queue, slot, isWanted) => this.#abort(queue, slot, isWanted),
      recover: (why) => void this.#recover(why),
      failed: (error) => this.#failed(error),
      get resetReason() {
        return reason();
      },
      get resubmits() {
        return resubmits();
      },
      get abortMs() {
        return abortMs();
      },
    };
  }

  #check(): void {
    if (this.#state === 'ended') return;
    try {
      this.#bar.check();
    } catch (error) {
      this.#failed(error);
    }
  }

  /** For queues that the program polls, which nothing else looks after while they run alone. */
  #look(): void {
    const at = now();
    if (at - this.#lookedAt < LOOK_MS) return;
    this.#lookedAt = at;
    this.#check();
  }

  /** A register could not be reached, or says that all is lost. */
  #failed(error: unknown): void {
    const why = withUndo(error, 'nvme', []);
    if (this.#state === 'ended') return;
    // What a controller did wrong (EPROTO) it may do right after a reset.
    if (isGone(why) && why.operation !== GARBAGE) this.#end(why);
    else void this.#recover(why);
  }

  /** At most so many aborts run as the controller takes. */
  async #abort(queue: number, slot: number, isWanted: () => boolean): Promise<void> {
    if (this.#abortsRunning >= this.identity.abortLimit)
      await new Promise<void>((resolve) => {
        this.#aborts.push(resolve);
      });
    if (!isWanted() || this.#state !== 'ready') return this.#aborts.shift()?.();
    this.#abortsRunning++;
    try {
      await this.#command('nvme.abort', { opcode: ADMIN.ABORT, cdw10: queue | (slot << 16) });
    } catch {
      // What it was for is reset then.
    } finally {
      this.#abortsRunning--;
      this.#aborts.shift()?.();
    }
  }

  /** Resets the controller because of `why`. Resolves when it works again, or never will: then `#why` says why. */
  #recover(why: DmaError): Promise<void> {
    if (this.#state === 'starting' || this.#state === 'resetting') {
      // It went wrong while it was being brought up: what waits there ends.
      this.#resetReason = this.#broke = why;
      this.#admin.abandon();
      return this.#resetting ?? Promise.resolve();
    }
    if (this.#state === 'ended') return Promise.resolve();
    this.#state = 'resetting';
    this.#resetReason = why;
    this.#resetting = this.#startAnew(why).finally(() => {
      this.#resetting = undefined;
    });
    return this.#resetting;
  }

  async #startAnew(why: DmaError): Promise<void> {
    const halted = new DmaError({
      code: 'EAGAIN',
      operation: 'nvmeQueue',
      device: this.#device.name,
      reason: `the controller is being reset: ${why.reason}`,
      hint: 'poll the queue, and submit again: ssd.events() tells of the reset',
    });
    for (const commands of [this.#admin, this.#io]) commands?.hold();
    for (const { queue } of [this.#adminRecord, ...this.#records.values()]) queue.halt(halted);
    this.#tell(RUN.HALTED);
    try {
      await this.#stop();
    } catch (error) {
      return this.#end(withUndo(error, 'nvme', []));
    }
    // It reaches no memory any more: what was running can end.
    this.#abandonAll();
    this.#tell(RUN.STOPPED);
    let failure: DmaError | undefined;
    for (let attempt = 0; attempt < ATTEMPTS; attempt++) {
      try {
        if (attempt > 0) await this.#stop();
        this.#broke = undefined;
        await this.#bringUp();
        failure = undefined;
        break;
      } catch (error) {
        failure = withUndo(this.#broke ?? error, 'nvme', []);
        if (isGone(failure)) break;
      }
    }
    if (this.#state !== 'resetting') return;
    if (failure !== undefined) return this.#end(failure);
    this.#state = 'ready';
    this.#io?.resume();
    this.#listen();
    this.#feed.tell({ kind: 'reset', what: why.reason, result: 0, log: undefined });
  }

  /** Switches the controller off; a device that does not react to that is reset as a whole. */
  async #stop(): Promise<void> {
    try {
      await this.#bar.disable();
    } catch (error) {
      if (isGone(error)) throw error;
      this.#device.access.reset();
      await this.#bar.disable();
    }
  }

  #abandonAll(): void {
    this.#admin.abandon();
    this.#io?.abandon();
    for (const { queue, poller } of this.#records.values()) {
      if (queue === this.#io?.queue || this.#lendings.has(queue.id)) continue;
      queue.abandon();
      poller?.start();
    }
  }

  /** It can not be used any more. */
  #end(error: DmaError): void {
    if (this.#state === 'ended') return;
    this.#state = 'ended';
    this.#why = error.with({ device: this.#device.name });
    this.#resetReason = this.#why;
    if (!isGone(error)) this.#cutOff();
    this.#settleAll(this.#why);
    this.#feed.end();
  }

  #settleAll(why: DmaError): void {
    for (const commands of [this.#admin, this.#io]) commands?.end(why);
    for (const { queue } of this.#records.values()) queue.halt(why);
    this.#abandonAll();
    this.#tell(RUN.ENDED);
  }

  /** A controller that can not be stopped must not reach memory that is used for something else. */
  #cutOff(): void {
    forPeople(() => {
      const { access } = this.#device;
      const [low, high] = access.readRegion(PCI_REGION.CONFIG, PCI_COMMAND, 2);
      access.writeRegion(PCI_REGION.CONFIG, PCI_COMMAND, Uint8Array.of(low & ~PCI_COMMAND_MASTER, high));
    });
  }

  #mustWork(operation: string): void {
    if (this.#why !== undefined) throw this.#why.with({ operation });
  }

  /** The controller, if some of [start, end) was lent to it. */
  #lentUsing(start: number, end: number): string | undefined {
    const lent = this.#state === 'ended' ? [] : (this.#hostMemory?.ranges ?? []);
    for (let i = 0; i < lent.length; i += 2)
      if (lent[i] < end && lent[i] + lent[i + 1] > start) return 'the controller, which it was lent to (lendMemory),';
    return undefined;
  }

  /** The call that uses some of [start, end). */
  #callUsing(start: number, end: number): string | undefined {
    return this.#io?.usesOf(start, end) ?? this.#admin.usesOf(start, end);
  }

  /** What commands use of [start, end). */
  #usesOf(start: number, end: number): string | undefined {
    const { domain } = this.#device;
    const other = this.#lentUsing(start, end) ?? this.#callUsing(start, end);
    if (other !== undefined) return other;
    for (const { queue } of this.#records.values()) {
      if (queue === this.#io?.queue) continue;
      const work = queue.usesOf(start, end, (iova) => domain?.vaOf(iova));
      if (work !== undefined) return work;
    }
    return undefined;
  }
}

shortForm(Nvme, 'Nvme', ({ identity: { model, serial, firmware }, version, limits, namespaces, ready }) => ({
  ...{ model, serial, firmware, version, ready, limits },
  namespaces: namespaces.map(({ id, blockSize, blocks }) => ({ id, blockSize, blocks })),
}));
