/**
 * An NVMe controller for tests of the driver: a small disk in memory, and whatever misbehaviour a test asks for. It is a
 * device model, so that it is reached as any device of the bus vdev: by registers, and by DMA through an IOMMU in software.
 */
import type { DeviceModel, ModelFactory, ModelHost, PciIdentity } from '../../../src/vfio-user/devices/model.js';
import { ADMIN, CNS, COMMAND_SET, CQE, DSM, FEATURE, NVM, SGL, SQE } from '../../../src/nvme/commands.js';
import {
  CONTROLLER,
  DESCRIPTOR_TYPE,
  IDENTIFY_BYTES,
  NAMESPACE,
  OACS,
  ONCS,
  putPadded,
  ZONED,
} from '../../../src/nvme/identify.js';
import { capabilityWords, CC, CSTS, ENTRY, NVME_REGISTER as REG, versionWord } from '../../../src/nvme/registers.js';
import { STATUS } from '../../../src/nvme/status.js';
import { FakeZones, type FakeZoneOptions } from './zones.js';

/** A command that the controller has fetched. */
export interface FakeCommand {
  /** The submission queue; 0 is the admin queue. */
  readonly queue: number;
  readonly opcode: number;
  readonly id: number;
  readonly nsid: number;
  /** The entry as it was. */
  readonly entry: DataView;
  readonly cdw10: number;
  readonly cdw11: number;
  readonly cdw12: number;
}

/** What is done with a command instead of doing it; `undefined`: it is done. */
export type Misbehaviour =
  | undefined
  /** It is never completed, unless it is aborted. */
  | 'lose'
  /** It is never completed, and aborting it does not help. */
  | 'lose-for-good'
  /** It completes with this status. */
  | { readonly status: number }
  /** It is done when the test says so: `letGo`. */
  | 'hold'
  /** It is done, and completed twice. */
  | 'twice'
  /** It is done, and completed with an identifier that there is not. */
  | 'unknown-id'
  /** It is done, and completed as if it were of another queue. */
  | 'wrong-queue'
  /** The controller fails: CSTS.CFS. */
  | 'fatal'
  /** All registers read as ones from now on. */
  | 'unplugged';

/** What the controller is. */
export interface FakeNvmeOptions {
  /** Bytes of a block. Default 512. */
  readonly blockSize?: number;
  /** Default 8192. */
  readonly blocks?: number;
  /** Default 1. */
  readonly namespaces?: number;
  /** MDTS: a power of two of pages; 0: no limit. Default 5, 128 KiB. */
  readonly mdts?: number;
  /** Most entries of a queue. Default 64. */
  readonly maxEntries?: number;
  /** Bytes between doorbells. Default 4. */
  readonly doorbellStride?: number;
  /** Queue pairs for I/O. Default 4. */
  readonly queues?: number;
  /** Interrupt vectors (MSI-X). Default 4; 0: polled. */
  readonly vectors?: number;
  /** The low bits of SGLS. Default 0: none. */
  readonly sgls?: number;
  /** OACS besides. Default: format. */
  readonly oacs?: number;
  readonly oncs?: number;
  /** HMPRE and HMMIN, in units of 4 KiB. Default 0. */
  readonly hostMemory?: number;
  /** Asked about each command. */
  readonly misbehave?: (command: FakeCommand) => Misbehaviour;
  /** Metadata bytes a block, kept apart. Default 0. */
  readonly metadataSize?: number;
  /** The metadata is behind each block's data instead. Default false. */
  readonly metadataInline?: boolean;
  /** DPS, the type of the protection information. Default 0. */
  readonly protection?: number;
  /** CAP.MPSMIN, bytes. Default 4096. */
  readonly minPageSize?: number;
  /** Offers weighted round robin. Default false. */
  readonly weighted?: boolean;
  /** Makes the namespaces zoned. */
  readonly zones?: FakeZoneOptions;
  /** ZASL: a power of two of pages of CAP.MPSMIN; 0: as MDTS. Default 0. */
  readonly zasl?: number;
  /** What the descriptors of a namespace name as its command set. Default: none; 2 of zoned ones. */
  readonly commandSet?: number;
}

interface Queue {
  readonly iova: number;
  readonly entries: number;
  head: number;
  tail: number;
}

interface Completions extends Queue {
  readonly vector: number | undefined;
  phase: number;
}

/** A controller, and what a test sees and does of it. */
export class FakeNvme implements DeviceModel {
  readonly name = 'nvme-fake';
  readonly identity: PciIdentity = {
    vendor: 0x1b36,
    device: 0x0010,
    subsystemVendor: 0x1af4,
    subsystem: 0x1100,
    revision: 2,
    classCode: 0x010802,
  };
  readonly regions = [{ index: 0, size: 16384 }];
  readonly interrupts: { intx: number; msi: number; msix: number };
  /** The content of each namespace, and its metadata. */
  readonly disks: Uint8Array[];
  readonly metadata: Uint8Array[];
  /** The zones of each namespace, if it has any. */
  readonly zones: readonly FakeZones[];
  /** Every command that was fetched. */
  readonly log: FakeCommand[] = [];
  /** Stores to doorbells, by offset. */
  readonly doorbells = new Map<number, number>();
  /** Completions that were put where the host had not said that there is room. */
  overruns = 0;
  misbehave: (command: FakeCommand) => Misbehaviour;
  /** Times that it was enabled. */
  enabled = 0;
  /** Does CSTS.RDY follow CC.EN? */
  follows = true;
  /** Was it told of a shutdown? */
  wasShutDown = false;
  /** CC.AMS as it was enabled with. */
  arbitration = 0;
  /** The priority of each I/O submission queue: 0 urgent to 3 low. */
  readonly priorities = new Map<number, number>();
  readonly #host: ModelHost;
  readonly #options: Required<Omit<FakeNvmeOptions, 'misbehave' | 'zones'>>;
  /** Bytes of a page, as CC.MPS says. */
  #page = 4096;
  /** Bytes of a block as it is transferred. */
  readonly #unit: number;
  readonly #registers = new DataView(new ArrayBuffer(0x1000));
  readonly #submissions = new Map<number, Queue & { readonly completions: number }>();
  readonly #completions = new Map<number, Completions>();
  /** Commands that were lost but can be aborted, by queue and id. */
  readonly #lost = new Map<string, FakeCommand>();
  readonly #events: FakeCommand[] = [];
  readonly #kept: FakeCommand[] = [];
  #told: number[] = [];
  #unplugged = false;
  #epoch = 0;
  #scheduled = false;
  #shadow: { readonly values: number; readonly events: number } | undefined;

  constructor(host: ModelHost, options: FakeNvmeOptions) {
    const {
      blockSize = 512,
      blocks = 8192,
      namespaces = 1,
      mdts = 5,
      maxEntries = 64,
      doorbellStride = 4,
      queues = 4,
      vectors = 4,
      sgls = 0,
      oacs = OACS.FORMAT,
      oncs = ONCS.COMPARE | ONCS.DATASET_MANAGEMENT | ONCS.WRITE_ZEROES | ONCS.VERIFY | ONCS.COPY,
      metadataSize = 0,
      protection = 0,
      hostMemory = 0,
      metadataInline = false,
      minPageSize = 4096,
      weighted = false,
      zones,
      zasl = 0,
      commandSet = zones === undefined ? -1 : COMMAND_SET.ZONED,
      misbehave = () => undefined,
    } = options;
    this.#host = host;
    this.#options = {
      ...{ blockSize, blocks, namespaces, mdts, maxEntries, doorbellStride, queues, vectors, sgls, oacs, oncs },
      ...{ metadataSize, metadataInline, protection, hostMemory, minPageSize, weighted, zasl, commandSet },
    };
    this.#unit = blockSize + (metadataInline ? metadataSize : 0);
    this.interrupts = { intx: 0, msi: 0, msix: vectors };
    this.misbehave = misbehave;
    this.disks = Array.from({ length: namespaces }, () => new Uint8Array(blocks * this.#unit));
    this.zones = zones === undefined ? [] : this.disks.map(() => new FakeZones(blocks, zones));
    this.metadata = Array.from({ length: namespaces }, () => new Uint8Array(blocks * metadataSize));
    this.#powerOn();
  }

  /** The number of queue pairs for I/O that were created. */
  get ioQueues(): number {
    return [...this.#submissions.keys()].filter((id) => id > 0).length;
  }

  /** Memory that the host has mapped for it. */
  bytesAt(iova: number, length: number): Uint8Array {
    return this.#memory(iova, length);
  }

  /** The rings of queue pair `id`, for a benchmark that completes commands by itself. */
  ringsOf(id: number): {
    readonly submissions: Uint32Array;
    readonly completions: Uint32Array;
    readonly entries: number;
  } {
    const [sq, cq] = [this.#submissions.get(id), this.#completions.get(id)];
    if (sq === undefined || cq === undefined) throw new Error(`there is no queue ${id}`);
    const words = (iova: number, length: number): Uint32Array => {
      const bytes = this.#memory(iova, length, 'write');
      return new Uint32Array(bytes.buffer, bytes.byteOffset, length / 4);
    };
    return {
      submissions: words(sq.iova, sq.entries * ENTRY.SUBMISSION),
      completions: words(cq.iova, cq.entries * ENTRY.COMPLETION),
      entries: sq.entries,
    };
  }

  /** Tells the host of an asynchronous event. @param result dword 0 */
  tell(result: number): void {
    this.#told.push(result);
    this.#tellEvents();
  }

  /** Fails: CSTS.CFS. */
  fail(): void {
    this.#set(REG.CSTS, this.#get(REG.CSTS) | CSTS.CFS);
  }

  /** Does the commands that were held. */
  letGo(): void {
    for (const command of this.#kept.splice(0)) this.#do(command);
  }

  /** Puts a completion into queue `queue` that no command has. */
  forge(queue: number, id: number, sqId = queue, status = 0): void {
    this.#complete({ queue, id: id, opcode: 0 } as FakeCommand, status, 0, queue, sqId);
  }

  read(_region: number, offset: number, into: Uint8Array): void {
    if (this.#unplugged) return void into.fill(0xff);
    const bytes = new Uint8Array(this.#registers.buffer);
    for (let i = 0; i < into.length; i++) into[i] = bytes.at(offset + i) ?? 0;
  }

  write(_region: number, offset: number, from: Uint8Array): void {
    if (this.#unplugged) return;
    for (let at = 0; at + 4 <= from.length; at += 4)
      this.#store(offset + at, new DataView(from.buffer, from.byteOffset + at, 4).getUint32(0, true));
  }

  reset(): void {
    this.follows = true;
    this.#stop();
    this.#powerOn();
  }

  quiesce(): undefined {
    return undefined;
  }

  resume(): void {
    // Nothing was held up.
  }

  // --- registers ---

  #get(offset: number): number {
    return this.#registers.getUint32(offset, true);
  }

  #set(offset: number, value: number): void {
    this.#registers.setUint32(offset, value, true);
  }

  #powerOn(): void {
    const { maxEntries, doorbellStride, weighted, minPageSize } = this.#options;
    const { low, high } = capabilityWords({
      maxEntries,
      doorbellStride,
      contiguous: true,
      weightedRoundRobin: weighted,
      readyTimeoutMs: 500,
      subsystemReset: false,
      // NVM, and those that namespaces name.
      commandSets: this.zones.length === 0 ? 1 : 0x41,
      minPageSize,
      maxPageSize: minPageSize,
      memoryBuffer: false,
    });
    this.#set(REG.CAP, low);
    this.#set(REG.CAP + 4, high);
    this.#set(REG.VS, versionWord(1, 4));
    this.#set(REG.CC, 0);
    this.#set(REG.CSTS, 0);
  }

  #store(offset: number, value: number): void {
    if (offset >= REG.DOORBELLS) return this.#ring(offset, value);
    const before = this.#get(REG.CC);
    if (offset === REG.CSTS || offset < REG.INTMS) return;
    this.#set(offset, value);
    if (offset !== REG.CC) return;
    if (((value >>> CC.SHN_SHIFT) & CC.SHN_MASK) !== 0) {
      this.wasShutDown = true;
      this.#set(REG.CSTS, this.#get(REG.CSTS) | (2 << CSTS.SHST_SHIFT));
    }
    if ((value & CC.EN) !== 0 && (before & CC.EN) === 0) this.#start();
    if ((value & CC.EN) === 0 && (before & CC.EN) !== 0) this.#stop();
  }

  #start(): void {
    this.enabled++;
    const configuration = this.#get(REG.CC);
    this.arbitration = (configuration >>> CC.AMS_SHIFT) & CC.AMS_MASK;
    this.#page = 2 ** (12 + ((configuration >>> CC.MPS_SHIFT) & CC.MPS_MASK));
    if (this.#page < this.#options.minPageSize) return this.fail();
    const attributes = this.#get(REG.AQA);
    const address = (offset: number): number => this.#get(offset + 4) * 2 ** 32 + this.#get(offset);
    const entries = (attributes & 0xfff) + 1;
    this.#submissions.set(0, { iova: address(REG.ASQ), entries, head: 0, tail: 0, completions: 0 });
    const cq = { iova: address(REG.ACQ), entries: ((attributes >>> 16) & 0xfff) + 1, head: 0, tail: 0 };
    this.#completions.set(0, { ...cq, vector: 0, phase: 1 });
    if (this.follows) this.#set(REG.CSTS, CSTS.RDY);
  }

  #stop(): void {
    this.#epoch++;
    this.#submissions.clear();
    this.#completions.clear();
    this.#lost.clear();
    this.#kept.length = 0;
    this.#events.length = 0;
    this.#shadow = undefined;
    if (this.follows) this.#set(REG.CSTS, 0);
  }

  #ring(offset: number, value: number): void {
    this.doorbells.set(offset, (this.doorbells.get(offset) ?? 0) + 1);
    const index = (offset - REG.DOORBELLS) / this.#options.doorbellStride;
    const id = index >>> 1;
    const queue = index % 2 === 0 ? this.#submissions.get(id) : this.#completions.get(id);
    if (queue === undefined || value >= queue.entries)
      throw new Error(`a doorbell of no queue, or past it: ${id}, ${value}`);
    if (index % 2 === 0) queue.tail = value;
    else queue.head = value;
    this.#later();
  }

  #later(): void {
    if (this.#scheduled) return;
    this.#scheduled = true;
    setImmediate(() => {
      this.#scheduled = false;
      for (const id of [...this.#submissions.keys()]) this.#fetch(id);
    });
  }

  // --- commands ---

  #fetch(id: number): void {
    const queue = this.#submissions.get(id);
    const epoch = this.#epoch;
    if (queue === undefined) return;
    if (this.#shadow !== undefined && id > 0)
      queue.tail = this.#word(this.#shadow.values + 2 * id * this.#options.doorbellStride);
    while (queue.head !== queue.tail && epoch === this.#epoch && !this.#unplugged) {
      const bytes = this.#memory(queue.iova + queue.head * ENTRY.SUBMISSION, ENTRY.SUBMISSION);
      queue.head = (queue.head + 1) % queue.entries;
      const entry = new DataView(bytes.slice().buffer);
      this.#run({
        queue: id,
        opcode: entry.getUint8(SQE.OPCODE),
        id: entry.getUint16(SQE.CID, true),
        nsid: entry.getUint32(SQE.NSID, true),
        entry,
        cdw10: entry.getUint32(SQE.CDW10, true),
        cdw11: entry.getUint32(SQE.CDW11, true),
        cdw12: entry.getUint32(SQE.CDW12, true),
      });
    }
    if (this.#shadow === undefined || id === 0) return;
    // What it has seen: the host rings when it goes past that.
    const seen = this.#memory(this.#shadow.events + 2 * id * this.#options.doorbellStride, 4, 'write');
    new DataView(seen.buffer, seen.byteOffset).setUint32(0, queue.tail, true);
  }

  #run(command: FakeCommand): void {
    this.log.push(command);
    const what = this.misbehave(command);
    const key = `${command.queue}:${command.id}`;
    if (what === 'lose') this.#lost.set(key, command);
    else if (what === 'lose-for-good') return;
    else if (what === 'hold') this.#kept.push(command);
    else if (what === 'fatal') this.fail();
    else if (what === 'unplugged') this.#unplugged = true;
    else if (what === 'unknown-id') this.#complete({ ...command, id: 0xfff0 }, 0, 0);
    else if (what === 'wrong-queue') this.#complete(command, 0, 0, command.queue, command.queue + 7);
    else if (what === 'twice') {
      this.#do(command);
      this.#complete(command, 0, 0);
    } else if (what === undefined) this.#do(command);
    else this.#complete(command, what.status, 0);
  }

  #do(command: FakeCommand): void {
    try {
      const result = command.queue === 0 ? this.#admin(command) : this.#io(command);
      if (result === undefined) return;
      if (result >= 0) this.#complete(command, 0, result);
      else this.#complete(command, -result, 0);
    } catch {
      this.#complete(command, STATUS.DATA_TRANSFER_ERROR, 0);
    }
  }

  /** @returns the result; a negative status; `undefined`: it completes later */
  #admin(command: FakeCommand): number | undefined {
    const { opcode, cdw10, cdw11, nsid } = command;
    const id = cdw10 & 0xffff;
    const entries = (cdw10 >>> 16) + 1;
    switch (opcode) {
      case ADMIN.IDENTIFY:
        return this.#identify(command, cdw10 & 0xff, nsid, cdw11 >>> 24);
      case ADMIN.SET_FEATURES:
        return (cdw10 & 0xff) === FEATURE.QUEUES ? (this.#options.queues - 1) * 0x10001 : 0;
      case ADMIN.GET_FEATURES:
        return cdw10 & 0xff;
      case ADMIN.CREATE_CQ: {
        if (id === 0 || id > this.#options.queues || this.#completions.has(id)) return -STATUS.INVALID_QUEUE_ID;
        if (entries < 2 || entries > this.#options.maxEntries) return -STATUS.INVALID_QUEUE_SIZE;
        const vector = (cdw11 & 2) === 0 ? undefined : cdw11 >>> 16;
        this.#completions.set(id, { iova: this.#pointer(command), entries, head: 0, tail: 0, vector, phase: 1 });
        return 0;
      }
      case ADMIN.CREATE_SQ:
        if (id === 0 || this.#submissions.has(id)) return -STATUS.INVALID_QUEUE_ID;
        if (!this.#completions.has(cdw11 >>> 16)) return -STATUS.INVALID_CQ;
        this.priorities.set(id, (cdw11 >>> 1) & 3);
        this.#submissions.set(id, {
          iova: this.#pointer(command),
          entries,
          head: 0,
          tail: 0,
          completions: cdw11 >>> 16,
        });
        return 0;
      case ADMIN.DELETE_SQ:
        return this.#submissions.delete(id) ? 0 : -STATUS.INVALID_QUEUE_ID;
      case ADMIN.DELETE_CQ:
        return this.#completions.delete(id) ? 0 : -STATUS.INVALID_QUEUE_ID;
      case ADMIN.ABORT: {
        const lost = this.#lost.get(`${cdw10 & 0xffff}:${cdw10 >>> 16}`);
        if (lost === undefined) return 1;
        this.#lost.delete(`${cdw10 & 0xffff}:${cdw10 >>> 16}`);
        this.#complete(lost, STATUS.ABORT_REQUESTED, 0);
        return 0;
      }
      case ADMIN.ASYNC_EVENT:
        this.#events.push(command);
        this.#tellEvents();
        return undefined;
      case ADMIN.GET_LOG_PAGE: {
        const length = ((cdw10 >>> 16) + 1) * 4;
        this.#toHost(command, new Uint8Array(length).fill(cdw10 & 0xff));
        return 0;
      }
      case ADMIN.FORMAT:
        this.disks[nsid - 1].fill(0);
        return 0;
      case ADMIN.DOORBELL_BUFFER_CONFIG:
        this.#shadow = { values: this.#pointer(command), events: this.#pointer(command, SQE.PRP2) };
        return 0;
      default:
        return -STATUS.INVALID_OPCODE;
    }
  }

  #identify(command: FakeCommand, cns: number, nsid: number, set: number): number {
    const { namespaces, blocks, blockSize, mdts, sgls, oacs, oncs, metadataSize, protection, hostMemory } =
      this.#options;
    const { metadataInline, zasl, commandSet } = this.#options;
    const zones = this.zones.at(0)?.options;
    const bytes = new Uint8Array(IDENTIFY_BYTES);
    const view = new DataView(bytes.buffer);
    if (cns === CNS.CONTROLLER) {
      view.setUint16(CONTROLLER.VID, 0x1b36, true);
      putPadded(bytes, CONTROLLER.SN, 20, 'FAKE 1');
      putPadded(bytes, CONTROLLER.MN, 40, 'a fake of the tests');
      putPadded(bytes, CONTROLLER.FR, 8, '1.0');
      bytes[CONTROLLER.MDTS] = mdts;
      bytes[CONTROLLER.ACL] = 3;
      bytes[CONTROLLER.AERL] = 3;
      view.setUint16(CONTROLLER.OACS, oacs, true);
      view.setUint16(CONTROLLER.ONCS, oncs, true);
      view.setUint32(CONTROLLER.OAES, 1 << 8, true);
      view.setUint32(CONTROLLER.NN, namespaces, true);
      view.setUint32(CONTROLLER.SGLS, sgls, true);
      view.setUint32(CONTROLLER.HMPRE, hostMemory, true);
      view.setUint32(CONTROLLER.HMMIN, hostMemory, true);
    } else if (cns === CNS.ACTIVE_NAMESPACES) {
      let at = 0;
      for (let id = nsid + 1; id <= this.disks.length; id++, at += 4) view.setUint32(at, id, true);
    } else if (cns === CNS.NAMESPACE) {
      if (nsid < 1 || nsid > this.disks.length) return -STATUS.INVALID_NAMESPACE;
      for (const at of [NAMESPACE.NSZE, NAMESPACE.NCAP, NAMESPACE.NUSE]) view.setUint32(at, blocks, true);
      view.setUint32(NAMESPACE.LBAF, (Math.log2(blockSize) << 16) | metadataSize, true);
      bytes[NAMESPACE.FLBAS] = metadataInline ? 1 << 4 : 0;
      bytes[NAMESPACE.DPS] = protection;
      bytes[NAMESPACE.DLFEAT] = 1;
    } else if (cns === CNS.NAMESPACE_DESCRIPTORS) {
      if (commandSet >= 0) bytes.set([DESCRIPTOR_TYPE.CSI, 1, 0, 0, commandSet]);
    } else if (cns === CNS.IO_NAMESPACE && set === COMMAND_SET.ZONED && zones !== undefined) {
      view.setUint32(ZONED.MAR, zones.maxActive - 1, true);
      view.setUint32(ZONED.MOR, zones.maxOpen - 1, true);
      view.setUint32(ZONED.LBAFE, zones.size, true);
    } else if (cns === CNS.IO_CONTROLLER && set === COMMAND_SET.ZONED && zones !== undefined) bytes[ZONED.ZASL] = zasl;
    else return -STATUS.INVALID_FIELD;
    this.#toHost(command, bytes);
    return 0;
  }

  #io(command: FakeCommand): number {
    const { opcode, nsid, entry, cdw12 } = command;
    if (opcode === NVM.FLUSH) return 0;
    const disk = this.disks.at(nsid - 1);
    if (disk === undefined || nsid === 0) return -STATUS.INVALID_NAMESPACE;
    const { blocks: all, mdts, minPageSize } = this.#options;
    const metadataSize = this.#options.metadataInline ? 0 : this.#options.metadataSize;
    const blockSize = this.#unit;
    const zones = this.zones.at(nsid - 1);
    if (zones !== undefined && opcode === NVM.ZONE_SEND) return zones.manage(command);
    if (opcode === NVM.DATASET_MANAGEMENT) {
      const ranges = this.#fromHost(command, ((command.cdw10 & 0xff) + 1) * DSM.RANGE_BYTES);
      const view = new DataView(ranges.buffer, ranges.byteOffset);
      for (let at = 0; at < ranges.length; at += DSM.RANGE_BYTES) {
        const lba = Number(view.getBigUint64(at + DSM.RANGE_LBA, true));
        disk.fill(0, lba * blockSize, (lba + view.getUint32(at + DSM.RANGE_LENGTH, true)) * blockSize);
      }
      return 0;
    }
    const lba = entry.getUint32(SQE.CDW11, true) * 2 ** 32 + command.cdw10;
    if (opcode === NVM.COPY) {
      let to = lba;
      const ranges = this.#fromHost(command, ((cdw12 & 0xff) + 1) * 32);
      const view = new DataView(ranges.buffer, ranges.byteOffset);
      for (let at = 0; at < ranges.length; at += 32) {
        const from = Number(view.getBigUint64(at + 8, true));
        const count = view.getUint16(at + 16, true) + 1;
        disk.copyWithin(to * blockSize, from * blockSize, (from + count) * blockSize);
        to += count;
      }
      return 0;
    }
    if (zones !== undefined && opcode === NVM.ZONE_RECEIVE) {
      this.#toHost(command, zones.report(lba, (cdw12 + 1) * 4));
      return 0;
    }
    const blocks = (cdw12 & 0xffff) + 1;
    if (lba + blocks > all) return -STATUS.LBA_OUT_OF_RANGE;
    if (zones !== undefined && (opcode === NVM.WRITE || opcode === NVM.ZONE_APPEND || opcode === NVM.WRITE_ZEROES)) {
      const to = zones.write(lba, blocks, opcode === NVM.ZONE_APPEND);
      if (to < 0) return to;
      if (opcode === NVM.ZONE_APPEND) {
        disk.set(this.#fromHost(command, blocks * blockSize), to * blockSize);
        return to;
      }
    }
    const place = disk.subarray(lba * blockSize, (lba + blocks) * blockSize);
    if (mdts > 0 && opcode <= NVM.COMPARE && place.length > 2 ** mdts * minPageSize) return -STATUS.INVALID_FIELD;
    const metadata = this.metadata[nsid - 1].subarray(lba * metadataSize, (lba + blocks) * metadataSize);
    const pointer = entry.getUint32(SQE.MPTR + 4, true) * 2 ** 32 + entry.getUint32(SQE.MPTR, true);
    switch (opcode) {
      case NVM.READ:
        this.#toHost(command, place);
        if (pointer > 0) this.#memory(pointer, metadata.length, 'write').set(metadata);
        return 0;
      case NVM.WRITE:
        place.set(this.#fromHost(command, place.length));
        if (pointer > 0) metadata.set(this.#memory(pointer, metadata.length));
        return 0;
      case NVM.COMPARE:
        return Buffer.compare(place, this.#fromHost(command, place.length)) === 0 ? 0 : -STATUS.COMPARE_FAILURE;
      case NVM.WRITE_ZEROES:
        place.fill(0);
        return 0;
      case NVM.VERIFY:
        return 0;
      default:
        return -STATUS.INVALID_OPCODE;
    }
  }

  // --- data, which is looked at independently of the driver ---

  #toHost(command: FakeCommand, bytes: Uint8Array): void {
    let at = 0;
    for (const [iova, length] of this.#pieces(command, bytes.length)) {
      this.#memory(iova, length, 'write').set(bytes.subarray(at, at + length));
      at += length;
    }
  }

  #fromHost(command: FakeCommand, length: number): Uint8Array {
    return Buffer.concat(this.#pieces(command, length).map(([iova, bytes]) => this.#memory(iova, bytes)));
  }

  #pieces(command: FakeCommand, length: number): [iova: number, length: number][] {
    if (((command.entry.getUint8(SQE.FLAGS) >>> 6) & 3) !== 0) return this.#sglPieces(command, length);
    const pageSize = this.#page;
    const first = this.#pointer(command);
    if (first % 4 !== 0) throw new Error('the first PRP entry is not a multiple of 4');
    const pieces: [number, number][] = [[first, Math.min(length, pageSize - (first % pageSize))]];
    let left = length - pieces[0][1];
    if (left === 0) return pieces;
    const second = this.#pointer(command, SQE.PRP2);
    const add = (iova: number): void => {
      if (iova % pageSize !== 0) throw new Error('a PRP entry after the first has an offset');
      pieces.push([iova, Math.min(left, pageSize)]);
      left -= Math.min(left, pageSize);
    };
    if (left <= pageSize) {
      add(second);
      return pieces;
    }
    if (second % 8 !== 0) throw new Error('a list of PRP entries is not a multiple of 8');
    for (let list = second; left > 0;) {
      const inPage = (pageSize - (list % pageSize)) / 8;
      const entries = this.#memory(list, Math.min(inPage, Math.ceil(left / pageSize)) * 8).slice();
      const view = new DataView(entries.buffer);
      for (let index = 0; index * 8 < entries.length && left > 0; index++) {
        const value = Number(view.getBigUint64(index * 8, true));
        if (index === inPage - 1 && left > pageSize) {
          list = value;
          break;
        }
        add(value);
      }
    }
    return pieces;
  }

  #sglPieces({ entry }: FakeCommand, length: number): [number, number][] {
    const at = (view: DataView, offset: number): { address: number; bytes: number; type: number } => ({
      address: Number(view.getBigUint64(offset + SGL.ADDRESS, true)),
      bytes: view.getUint32(offset + SGL.LENGTH, true),
      type: view.getUint8(offset + SGL.TYPE) >>> 4,
    });
    const first = at(entry, SQE.SGL);
    const list =
      first.type === SGL.DATA_BLOCK
        ? [first]
        : Array.from({ length: first.bytes / SGL.BYTES }, (_, i) =>
            at(new DataView(this.#memory(first.address, first.bytes).slice().buffer), i * SGL.BYTES),
          );
    const pieces = list.map(({ address, bytes }): [number, number] => [address, bytes]);
    if (pieces.reduce((sum, [, bytes]) => sum + bytes, 0) !== length) throw new Error('the SGL has another length');
    return pieces;
  }

  #pointer({ entry }: FakeCommand, at: number = SQE.PRP1): number {
    return entry.getUint32(at + 4, true) * 2 ** 32 + entry.getUint32(at, true);
  }

  #memory(iova: number, length: number, access: 'read' | 'write' = 'read'): Uint8Array {
    const bytes = this.#host.dma.direct(iova, length, access);
    if (bytes === undefined) throw new Error('memory in pieces');
    return bytes;
  }

  #word(iova: number): number {
    return new DataView(this.#memory(iova, 4).slice().buffer).getUint32(0, true);
  }

  // --- completions ---

  #tellEvents(): void {
    while (this.#told.length > 0) {
      const request = this.#events.shift();
      if (request === undefined) return;
      this.#complete(request, 0, this.#told.shift() ?? 0);
    }
  }

  #complete(command: FakeCommand, status: number, result: number, into?: number, sqId = command.queue): void {
    const sq = this.#submissions.get(command.queue);
    const queue = this.#completions.get(into ?? sq?.completions ?? -1);
    if (queue === undefined) return;
    const bytes = this.#memory(queue.iova + queue.tail * ENTRY.COMPLETION, ENTRY.COMPLETION, 'write');
    const view = new DataView(bytes.buffer, bytes.byteOffset, ENTRY.COMPLETION);
    view.setUint32(CQE.RESULT, result, true);
    view.setUint32(CQE.RESULT_HIGH, 0, true);
    view.setUint16(CQE.SQ_HEAD, sq?.head ?? 0, true);
    view.setUint16(CQE.SQ_ID, sqId, true);
    view.setUint16(CQE.CID, command.id, true);
    view.setUint16(CQE.STATUS, (status << 1) | queue.phase, true);
    queue.tail = (queue.tail + 1) % queue.entries;
    if (queue.tail === queue.head && this.#shadow === undefined) this.overruns++;
    if (queue.tail === 0) queue.phase ^= 1;
    if (queue.vector !== undefined) this.#host.interrupt(queue.vector);
  }
}

/** Makes fakes for `eal.vdev.define`, and remembers the last one. */
export function fakeNvme(options: FakeNvmeOptions = {}): {
  readonly factory: ModelFactory;
  readonly controller: () => FakeNvme;
} {
  let last: FakeNvme | undefined;
  return {
    factory: (host) => (last = new FakeNvme(host, options)),
    controller: () => {
      if (last === undefined) throw new Error('it was not probed');
      return last;
    },
  };
}
