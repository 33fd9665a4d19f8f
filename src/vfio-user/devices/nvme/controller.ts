/** The served controller: its registers, and its life (NVM Express Base Specification 1.4, sections 3.1 and 7.6). */
import { EVENT, EVENT_TYPE, eventResult, LOG } from '../../../nvme/commands.js';
import {
  capabilityWords,
  CC,
  COMMAND_SETS,
  CSTS,
  ENTRY,
  MAX_ADMIN_ENTRIES,
  NVME_REGISTER as REG,
  SHUTDOWN,
  SHUTDOWN_STATUS,
} from '../../../nvme/registers.js';
import { setTimeout } from '../../../timers.js';
import type { DeviceModel, InterruptCounts, ModelHost, ModelRegion, PciIdentity } from '../model.js';
import { loadWord } from '../words.js';
import type { FileBatch } from '../../../platform/ports.js';
import { executeAdmin } from './admin.js';
import { Batch } from './batch.js';
import type { Command } from './command.js';
import { Core, LEAST_PAGE, type Settings } from './core.js';
import { Engine, type EngineOwner } from './engine.js';
import type { Faults, Rule } from './faults.js';
import { NVME_IDENTITY, VERSION } from './identify-pages.js';
import { executeIo, moved } from './io.js';
import { BUFFER_REGION, MemoryBuffer } from './memory-buffer.js';
import type { Namespace } from './namespace.js';
import { CompletionQueue, SubmissionQueue } from './queues.js';

/** Largest page of the host, bytes. */
const MOST_PAGE = 65536;
/** Milliseconds within which the controller is ready, as CAP.TO tells. */
const READY_MS = 10_000;
/** An address of a queue in two registers; the low 12 bits are 0. */
const BASE_MASK = 0xfffff000;

/** Makes the controller. */
export class NvmeController implements DeviceModel, EngineOwner {
  readonly name = 'nvme';
  readonly identity: PciIdentity = {
    ...NVME_IDENTITY,
    subsystemVendor: NVME_IDENTITY.vendor,
    subsystem: NVME_IDENTITY.device,
    revision: 1,
  };
  readonly regions: readonly ModelRegion[];
  readonly interrupts: InterruptCounts;

  readonly #host: ModelHost;
  readonly #engine: Engine;
  readonly #core: Core;
  readonly #faults: Faults | undefined;
  readonly #buffer: MemoryBuffer | undefined;
  readonly #capabilities: { readonly low: number; readonly high: number };
  #cc = 0;
  /** AQA, ASQ and ACQ, as they were written. */
  #aqa = 0;
  readonly #bases = new Uint32Array(4);
  #ready = false;
  #fatal = false;
  #shutdown: number = SHUTDOWN_STATUS.NORMAL;
  /** Has the device been removed, on purpose? */
  #gone = false;
  /** Has a command failed since the last turn? */
  #hasFailed = false;
  /** Interrupts that the host has masked, and those that came meanwhile. */
  #masked = 0;
  #pending = 0;

  constructor(
    host: ModelHost,
    settings: Settings,
    namespaces: ReadonlyMap<number, Namespace>,
    faults: Faults | undefined,
    files?: FileBatch,
  ) {
    this.#host = host;
    this.#buffer = settings.memoryBuffer > 0 ? new MemoryBuffer(host, settings.memoryBuffer) : undefined;
    this.#engine = new Engine(this.#buffer ?? host.dma, this);
    const core = new Core(settings, namespaces, this.#engine, (vector) => this.#interrupt(vector));
    this.#core = core;
    if (files !== undefined)
      core.batch = new Batch(files, this.#engine.dma, (command, namespace, toHost, whole) =>
        moved(core, command, namespace, toHost, whole),
      );
    this.#faults = faults;
    this.#capabilities = capabilityWords({
      maxEntries: settings.entries,
      contiguous: true,
      weightedRoundRobin: false,
      readyTimeoutMs: READY_MS,
      doorbellStride: settings.doorbellStride,
      subsystemReset: false,
      commandSets: 1 << COMMAND_SETS.NVM,
      minPageSize: LEAST_PAGE,
      maxPageSize: MOST_PAGE,
      memoryBuffer: this.#buffer !== undefined,
    });
    const doorbells = 2 * (settings.queues + 1) * settings.doorbellStride;
    const size = settings.memoryBuffer;
    this.regions = [
      { index: 0, size: 2 ** Math.ceil(Math.log2(REG.DOORBELLS + doorbells)) },
      ...(size > 0 ? [{ index: BUFFER_REGION, size, memory: [{ offset: 0, length: size }] }] : []),
    ];
    this.interrupts = { intx: 1, msi: 0, msix: settings.queues + 1 };
  }

  // --- for the host ---

  read(_region: number, offset: number, into: Uint8Array): void {
    if (this.#gone) {
      into.fill(0xff);
      return;
    }
    // Loads of any width, as of plain memory.
    for (let at = 0; at < into.length; at++) {
      const word = (offset + at) & ~3;
      into[at] = this.#load(word) >>> (8 * ((offset + at) & 3));
    }
  }

  write(_region: number, offset: number, from: Uint8Array): void {
    // Registers take whole words only.
    if (this.#gone || (offset | from.length) % 4 !== 0) return;
    for (let at = 0; at < from.length; at += 4) this.#store(offset + at, loadWord(from, at));
  }

  reset(): void {
    if (this.#ready && this.#shutdown !== SHUTDOWN_STATUS.COMPLETE) this.#core.health.unsafeShutdowns++;
    this.#stop();
    this.#gone = false;
    this.#cc = 0;
    this.#aqa = 0;
    this.#bases.fill(0);
    this.#buffer?.reset();
    this.#ready = false;
    this.#core.health.powerCycles++;
  }

  quiesce(): Promise<void> | undefined {
    return this.#engine.quiesce();
  }

  resume(): void {
    this.#engine.resume();
  }

  close(): void {
    this.#stop();
    this.#core.batch?.close();
    for (const { image } of this.#core.namespaces.values()) image.close();
  }

  // --- for the engine ---

  execute(command: Command): void {
    const fault = this.#faults?.take(command);
    if (fault === undefined) this.#carryOut(command);
    else this.#goWrong(command, fault);
  }

  inTurn(): void {
    if (!this.#hasFailed) return;
    this.#hasFailed = false;
    const { hostMemory, health } = this.#core;
    if (hostMemory.isEnabled) hostMemory.store(health.errorPage());
  }

  submit(): void {
    this.#core.batch?.run();
    for (const { image } of this.#core.namespaces.values()) image.submit();
  }

  fatal(): void {
    this.#fatal = true;
    this.#engine.halt();
  }

  signal(queue: CompletionQueue, count: number): void {
    const { coalescing } = this.#core;
    // Those of the admin queue are told at once.
    if (queue.id === 0) coalescing.raise(queue.vector);
    else coalescing.posted(queue.vector, count);
  }

  #interrupt(vector: number): void {
    // Masks are for pins and MSI, which have at most 32 vectors.
    if (vector < 32 && (this.#masked & (1 << vector)) !== 0) this.#pending |= 1 << vector;
    else this.#host.interrupt(vector);
  }

  failed(command: Command, status: number): void {
    this.#core.health.failed(command, status);
    this.#hasFailed = true;
  }

  idle(): void {
    if (!this.#isEnabled) this.#ready = false;
    else if (!this.#ready) this.#start();
    if (this.#shutdown === SHUTDOWN_STATUS.OCCURRING) this.#finishShutdown();
  }

  badDoorbell(): void {
    this.#core.events.tell(eventResult(EVENT_TYPE.ERROR, EVENT.ERROR.BAD_DOORBELL_VALUE, LOG.ERROR));
  }

  // --- registers ---

  get #isEnabled(): boolean {
    return (this.#cc & CC.EN) !== 0;
  }

  #load(offset: number): number {
    switch (offset) {
      case REG.CAP:
        return this.#capabilities.low;
      case REG.CAP + 4:
        return this.#capabilities.high;
      case REG.VS:
        return VERSION;
      case REG.INTMS:
      case REG.INTMC:
        return this.#masked >>> 0;
      case REG.CC:
        return this.#cc;
      case REG.CSTS:
        return (this.#ready ? CSTS.RDY : 0) | (this.#fatal ? CSTS.CFS : 0) | (this.#shutdown << CSTS.SHST_SHIFT);
      case REG.AQA:
        return this.#aqa;
      case REG.ASQ:
      case REG.ASQ + 4:
      case REG.ACQ:
      case REG.ACQ + 4:
        return this.#bases[(offset - REG.ASQ) / 4];
      case REG.CMBLOC:
        return this.#buffer?.location ?? 0;
      case REG.CMBSZ:
        return this.#buffer?.size ?? 0;
      case REG.CMBMSC:
        return this.#buffer?.control[0] ?? 0;
      case REG.CMBMSC + 4:
        return this.#buffer?.control[1] ?? 0;
      default:
        return 0;
    }
  }

  #store(offset: number, value: number): void {
    switch (offset) {
      case REG.INTMS:
        this.#masked |= value;
        return;
      case REG.INTMC:
        this.#masked &= ~value;
        this.#unmask();
        return;
      case REG.CC:
        this.#configure(value);
        return;
      case REG.AQA:
        // Queues are given before the controller is enabled.
        if (!this.#isEnabled) this.#aqa = value & 0x0fff0fff;
        return;
      case REG.ASQ:
      case REG.ACQ:
        if (!this.#isEnabled) this.#bases[(offset - REG.ASQ) / 4] = value & BASE_MASK;
        return;
      case REG.ASQ + 4:
      case REG.ACQ + 4:
        if (!this.#isEnabled) this.#bases[(offset - REG.ASQ) / 4] = value;
        return;
      case REG.CMBMSC:
      case REG.CMBMSC + 4:
        this.#buffer?.setControl(offset === REG.CMBMSC ? 0 : 1, value);
        return;
    }
    if (offset >= REG.DOORBELLS && this.#ready && !this.#fatal) this.#doorbell(offset - REG.DOORBELLS, value & 0xffff);
  }

  #unmask(): void {
    const now = this.#pending & ~this.#masked;
    this.#pending &= ~now;
    for (let vector = 0; vector < 32; vector++) if ((now & (1 << vector)) !== 0) this.#host.interrupt(vector);
  }

  #configure(value: number): void {
    const before = this.#cc;
    this.#cc = value & 0x00fffff1;
    const enabled = (value & CC.EN) !== 0;
    if (enabled && (before & CC.EN) === 0) {
      // What is under way from before could still change the disk; a host that did not wait for that sees that it is not ready.
      this.#ready = false;
      if (!this.#engine.isBusy) this.#start();
    } else if (!enabled && (before & CC.EN) !== 0) {
      this.#stop();
      if (!this.#engine.isBusy) this.#ready = false;
    }
    const wanted = (value >>> CC.SHN_SHIFT) & CC.SHN_MASK;
    if (wanted !== SHUTDOWN.NONE && ((before >>> CC.SHN_SHIFT) & CC.SHN_MASK) === SHUTDOWN.NONE) {
      this.#shutdown = SHUTDOWN_STATUS.OCCURRING;
      if (!this.#engine.isBusy) this.#finishShutdown();
    }
  }

  /** Enables the controller, or finds that it was told something impossible. */
  #start(): void {
    const sqSize = (this.#aqa & 0xfff) + 1;
    const cqSize = ((this.#aqa >>> 16) & 0xfff) + 1;
    const pageSize = LEAST_PAGE * 2 ** ((this.#cc >>> CC.MPS_SHIFT) & CC.MPS_MASK);
    const possible =
      sqSize >= 2 &&
      cqSize >= 2 &&
      sqSize <= MAX_ADMIN_ENTRIES &&
      pageSize <= MOST_PAGE &&
      ((this.#cc >>> CC.CSS_SHIFT) & CC.CSS_MASK) === COMMAND_SETS.NVM &&
      ((this.#cc >>> CC.AMS_SHIFT) & CC.AMS_MASK) === 0 &&
      isEntrySize((this.#cc >>> CC.IOSQES_SHIFT) & CC.IOSQES_MASK, ENTRY.SUBMISSION_POWER) &&
      isEntrySize((this.#cc >>> CC.IOCQES_SHIFT) & CC.IOCQES_MASK, ENTRY.COMPLETION_POWER) &&
      this.#bases[0] % pageSize === 0 &&
      this.#bases[2] % pageSize === 0;
    if (!possible) {
      this.fatal();
      return;
    }
    const engine = this.#engine;
    engine.pageSize = pageSize;
    const [asqLow, asqHigh, acqLow, acqHigh] = this.#bases;
    const cq = new CompletionQueue(0, acqHigh * 2 ** 32 + acqLow, cqSize, 0, true);
    engine.addCompletionQueue(cq);
    engine.addSubmissionQueue(new SubmissionQueue(0, asqHigh * 2 ** 32 + asqLow, sqSize, cq));
    engine.start();
    this.#ready = true;
  }

  /** Abandons all work. */
  #stop(): void {
    this.#engine.stop();
    this.#core.reset();
    this.#fatal = false;
    this.#shutdown = SHUTDOWN_STATUS.NORMAL;
    this.#masked = 0;
    this.#pending = 0;
  }

  #finishShutdown(): void {
    const { epoch } = this.#engine;
    this.#core.hostMemory.disable();
    this.#core.syncAll((status) => {
      if (epoch !== this.#engine.epoch) return;
      if (status === 0) this.#shutdown = SHUTDOWN_STATUS.COMPLETE;
      else this.fatal();
    });
  }

  #doorbell(offset: number, value: number): void {
    const { doorbellStride } = this.#core.settings;
    const engine = this.#engine;
    if (offset % doorbellStride !== 0) return;
    const index = offset / doorbellStride;
    const id = index >>> 1;
    const inMemory = engine.shadow !== undefined && id !== 0;
    if ((index & 1) === 0) {
      const queue = engine.sqs.get(id);
      if (queue === undefined) return this.#error(EVENT.ERROR.BAD_DOORBELL);
      if (value >= queue.size) return this.#error(EVENT.ERROR.BAD_DOORBELL_VALUE);
      if (!inMemory) queue.tail = value;
      engine.schedule();
      return;
    }
    const queue = engine.cqs.get(id);
    if (queue === undefined) return this.#error(EVENT.ERROR.BAD_DOORBELL);
    // The head can not pass what was posted.
    if (value >= queue.size || (queue.tail - value + queue.size) % queue.size > queue.unseen)
      return this.#error(EVENT.ERROR.BAD_DOORBELL_VALUE);
    queue.head = value;
    engine.headMoved(queue);
  }

  #error(info: number): void {
    this.#core.events.tell(eventResult(EVENT_TYPE.ERROR, info, LOG.ERROR));
    this.#engine.schedule();
  }

  // --- commands ---

  #carryOut(command: Command): void {
    if (command.queue.id === 0) executeAdmin(this.#core, command);
    else executeIo(this.#core, command);
  }

  #goWrong(command: Command, fault: Rule): void {
    const engine = this.#engine;
    const { queue } = command;
    switch (fault.do) {
      case 'lose':
        engine.held.add(command);
        return;
      case 'late':
        engine.held.add(command);
        command.timer = setTimeout(() => {
          command.timer = undefined;
          engine.held.delete(command);
          engine.whenRunning(command, () => {
            this.#carryOut(command);
            this.submit();
          });
        }, fault.ms);
        return;
      case 'fail':
        engine.complete(command, fault.status);
        return;
      case 'fatal':
        this.fatal();
        return;
      case 'gone':
        this.#gone = true;
        engine.halt();
        return;
      case 'unknown-id':
        engine.inject(queue.cq, queue.id, queue.head, command.cid ^ 0xa5a5);
        break;
      case 'twice':
        engine.inject(queue.cq, queue.id, queue.head, command.cid);
        break;
      case 'wrong-queue':
        engine.inject(queue.cq, queue.id ^ 0x55, queue.head, command.cid);
        break;
      case 'hot':
        this.#core.health.temperature = fault.kelvins;
        this.#core.checkHealth();
        break;
      case 'detach':
      case 'attach':
        this.#core.attach(fault.nsid, fault.do === 'attach');
        break;
    }
    this.#carryOut(command);
  }
}

/** May a host set this power of an entry size? 0 is what a host has before it knows. */
function isEntrySize(power: number, right: number): boolean {
  return power === right || power === 0;
}
