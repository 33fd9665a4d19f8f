/** A namespace: its blocks are read, written and looked after. */
import type { Readable, Writable } from 'node:stream';
import type { MemoryPart } from '../../memory/part.js';
import { mustBeObject, mustBeWhole, optionsOf, type Shape } from '../../check.js';
import { DmaError, invalid, undoAll, withUndo } from '../../errors.js';
import { COMMAND_SET, DSM, IO_CDW12, NVM, SQE } from '../../nvme/commands.js';
import {
  ONCS,
  type NvmeControllerIdentity,
  type NvmeDescriptors,
  type NvmeNamespaceIdentity,
} from '../../nvme/identify.js';
import { shortForm } from '../../short-form.js';
import { show } from '../../show.js';
import type { Bounce, BounceCopy, BounceMemory } from './bounce.js';
import type { Commands } from './commands.js';
import { piecesOf, type NvmeMemory } from './data-pointer.js';
import { CALL, type NvmeCallOptions } from './call-options.js';
import type { Data, NvmeResult, OperationParts, Settle } from './operation.js';
import { ENTRY_WORDS } from './queue.js';
import type { LentPart } from './spare-memory.js';
import {
  commandOf,
  dataIn,
  dataOf,
  deadlineOf,
  limitsOf,
  mustBeBlocks,
  putMetadata,
  type NvmeCommand,
  type RequestContext,
} from './requests.js';
import { readableOf, writableOf, type NvmeStreamOptions } from './streams.js';
import { ZoneCalls } from './zones.js';
import { STAYS } from '../../stays.js';

/** Protection information of a namespace that has it (NVMe 1.4, section 8.3). */
export interface NvmeProtection {
  /**
   * The controller makes it when writing, and takes it off when reading: metadata that is nothing else (8 bytes) is not transferred.
   * Default false: it is in the metadata.
   */
  readonly action?: boolean;
  /** What is checked: `guard`, `application`, `reference`. Default: nothing. */
  readonly check?: readonly ('guard' | 'application' | 'reference')[];
  /** The reference tag of the first block; it counts up in types 1 and 2. Default: the block's number; 0 in type 3. */
  readonly reference?: number;
  /** The application tag, and which bits of it are checked. */
  readonly application?: number;
  readonly applicationMask?: number;
}

/** Blocks, and what every call about them takes. */
export interface NvmeBlocks extends NvmeCallOptions {
  /** The first block, counted from 0. */
  readonly lba: number;
}

/** Options of {@link NvmeNamespace.read}. */
export interface NvmeReadOptions extends NvmeBlocks {
  /** Default: as many as there is memory for. */
  readonly blocks?: number;
  /** Where they go: memory that is mapped for the device; with `bounce`, any bytes. */
  readonly into: NvmeMemory | BounceMemory;
  /**
   * Memory for the metadata of a namespace that keeps it apart, in one piece for the device. It has to be given, unless the metadata is
   * protection information and nothing else: then the controller makes it and takes it off.
   */
  readonly metadata?: MemoryPart;
  readonly protection?: NvmeProtection;
  /** Read from the media and not from a cache. */
  readonly fua?: boolean;
  /** Have the library copy, through memory of its own, for what the controller can not reach or point to. Default false. */
  readonly bounce?: boolean;
}

/** Options of {@link NvmeNamespace.write} and {@link NvmeNamespace.compare}. */
export interface NvmeWriteOptions extends NvmeBlocks {
  /** Default: as many as there is memory for. */
  readonly blocks?: number;
  /** Where they come from: as `into` of {@link NvmeReadOptions}. */
  readonly from: NvmeMemory | BounceMemory;
  /** As in {@link NvmeReadOptions}; a comparison always needs it. */
  readonly metadata?: MemoryPart;
  readonly protection?: NvmeProtection;
  /** Durable when this resolves ("force unit access"). Default false: `flush` makes it so. */
  readonly fua?: boolean;
  readonly bounce?: boolean;
}

/** Options of {@link NvmeNamespace.compare}. */
export interface NvmeCompareOptions extends Omit<NvmeWriteOptions, 'from'> {
  /** What the blocks are compared with. */
  readonly to: NvmeMemory | BounceMemory;
}

/** What reading, writing and comparing have in common. */
type TransferOptions = Omit<NvmeWriteOptions, 'from'>;

/** A range of blocks. */
export interface NvmeRange {
  readonly lba: number;
  readonly blocks: number;
}

/** What a namespace can do besides reading, writing and flushing. */
export interface NvmeNamespaceCapabilities {
  readonly compare: boolean;
  readonly writeZeroes: boolean;
  readonly deallocate: boolean;
  readonly verify: boolean;
  readonly copy: boolean;
  /** Is it a zoned namespace? */
  readonly zoned: boolean;
  /** Do deallocated blocks read as zeroes? */
  readonly deallocatedZeroes: boolean;
  readonly writeProtected: boolean;
  /** Type of the protection information, 1 to 3; 0: none. */
  readonly protection: number;
}

/** What a namespace needs of its controller. */
export interface NamespaceHost {
  readonly context: RequestContext;
  readonly identity: NvmeControllerIdentity;
  readonly io: Commands;
  readonly bounce: Bounce;
  /** Bytes of a page of CAP.MPSMIN. */
  readonly minPageSize: number;
  /** Memory of the driver's own for one call. */
  page(length: number): LentPart;
  /** IDENTIFY with a CNS, for this namespace. */
  identify(cns: number, nsid: number, commandSet: number): Promise<Uint8Array>;
}

/** What is known of a namespace. @internal */
export interface NamespaceFacts {
  readonly id: number;
  readonly identity: NvmeNamespaceIdentity;
  readonly descriptors: NvmeDescriptors;
}

const RANGE: Shape<NvmeRange> = { lba: 'number', blocks: 'number' };
const READ: Shape<NvmeReadOptions> = {
  lba: 'number',
  blocks: 'number',
  into: 'object',
  metadata: 'object',
  protection: 'object',
  fua: 'boolean',
  bounce: 'boolean',
  signal: 'signal',
  timeoutMs: 'number',
};
const WRITE: Shape<NvmeWriteOptions> = (({ into, ...rest }) => ({ ...rest, from: into }))(READ);
const COMPARE: Shape<NvmeCompareOptions> = (({ into, ...rest }) => ({ ...rest, to: into }))(READ);
const PROTECTION: Shape<NvmeProtection> = {
  action: 'boolean',
  check: 'array',
  reference: 'number',
  application: 'number',
  applicationMask: 'number',
};
const ZEROES: Shape<NvmeBlocks & { readonly blocks: number; readonly deallocate?: boolean; readonly fua?: boolean }> = {
  ...CALL,
  lba: 'number',
  blocks: 'number',
  deallocate: 'boolean',
  fua: 'boolean',
};
const COPY: Shape<NvmeCallOptions & { readonly to: number; readonly from: readonly NvmeRange[] }> = {
  ...CALL,
  to: 'number',
  from: 'array',
};

/** Bytes of protection information (NVMe 1.4, section 8.3). */
const PROTECTION_BYTES = 8;

/** Bits of PRINFO (NVMe 1.4, figure 384). */
const PRINFO = { action: 8, guard: 4, application: 2, reference: 1 } as const;

/** Most ranges of a copy command in its format 0, and the bytes of a descriptor. */
const COPY_LIMITS = { ranges: 128, bytes: 32, blocksARange: 65536 } as const;

/** A namespace of a controller. */
export class NvmeNamespace {
  /** @internal */
  readonly stays = STAYS;
  readonly #host: NamespaceHost;
  #facts: NamespaceFacts;
  #zones: ZoneCalls | undefined;
  readonly #entries = new Map<number, Uint32Array>();
  /** Set when it is gone. */
  #gone: DmaError | undefined;

  /** @internal made by the driver */
  constructor(host: NamespaceHost, facts: NamespaceFacts) {
    this.#host = host;
    this.#facts = facts;
  }

  /** Its number, from 1 on. */
  get id(): number {
    return this.#facts.id;
  }

  /** Bytes of a block, without metadata. */
  get blockSize(): number {
    return this.#facts.identity.blockSize;
  }

  /** How many blocks it has. */
  get blocks(): number {
    return this.#facts.identity.blocks;
  }

  /** Bytes of all its blocks, without metadata. */
  get size(): number {
    return this.blocks * this.blockSize;
  }

  /** Bytes of metadata a block; 0 if it has none. */
  get metadataSize(): number {
    return this.#facts.identity.metadataSize;
  }

  /** Bytes of a block as it is transferred: with its metadata, where that is behind each block's data. */
  get transferSize(): number {
    const { blockSize, metadataSize, metadataInline } = this.#facts.identity;
    return blockSize + (metadataInline ? metadataSize : 0);
  }

  /** Does it have metadata that is kept apart from the data? Each read and write transfers it too: see `metadata`. */
  get hasMetadataApart(): boolean {
    return this.metadataSize > 0 && !this.identity.metadataInline;
  }

  /** All that it says of itself. */
  get identity(): NvmeNamespaceIdentity {
    return this.#facts.identity;
  }

  /** Its identifiers, as far as it has any. */
  get identifiers(): NvmeDescriptors {
    return this.#facts.descriptors;
  }

  /** Is it there? False once the controller says that it is gone. */
  get live(): boolean {
    return this.#gone === undefined;
  }

  get #isZoned(): boolean {
    return this.#facts.descriptors.commandSet === COMMAND_SET.ZONED;
  }

  /** What it can do. */
  get capabilities(): NvmeNamespaceCapabilities {
    const { oncs } = this.#host.identity;
    const { identity } = this.#facts;
    return {
      compare: (oncs & ONCS.COMPARE) !== 0,
      writeZeroes: (oncs & ONCS.WRITE_ZEROES) !== 0,
      deallocate: (oncs & ONCS.DATASET_MANAGEMENT) !== 0,
      verify: (oncs & ONCS.VERIFY) !== 0,
      copy: (oncs & ONCS.COPY) !== 0,
      zoned: this.#isZoned,
      deallocatedZeroes: identity.deallocatedZeroes,
      writeProtected: identity.writeProtected,
      protection: identity.protection,
    };
  }

  /**
   * Reads blocks into memory. What is more than a command can have is read by several, and is then no longer atomic.
   *
   * @throws DmaError (rejects), before anything is sent: EINVAL (what can not be; memory that is not mapped for the device, or that it
   *   can not point to), ERANGE (blocks past the end); then an `NvmeError` with what the controller said; ECANCELED (aborted, or
   *   the controller was reset or closed meanwhile), ETIMEDOUT, ENODEV. When it rejects, the controller uses the memory no more
   */
  read(options: NvmeReadOptions): Promise<void> {
    const operation = 'nvme.read';
    return this.#promise((settle) => {
      const checked = optionsOf<NvmeReadOptions>(options, READ, operation);
      this.#transfer(NVM.READ, checked, checked.into, 'into', operation, settle);
    });
  }

  /**
   * Writes blocks from memory. Otherwise as {@link read}; a write is durable once `flush` has resolved, or with `fua`. Of a zoned
   * namespace one call writes its blocks in order; calls that run at once are better appends (`zones.append`).
   */
  write(options: NvmeWriteOptions): Promise<void> {
    const operation = 'nvme.write';
    return this.#promise((settle) => {
      const checked = optionsOf<NvmeWriteOptions>(options, WRITE, operation);
      this.#transfer(NVM.WRITE, checked, checked.from, 'from', operation, settle);
    });
  }

  /** Compares blocks with memory; otherwise as {@link read}. @throws DmaError also EBADE when they differ; ENOTSUP */
  compare(options: NvmeCompareOptions): Promise<void> {
    const operation = 'nvme.compare';
    return this.#promise((settle) => {
      const checked = optionsOf<NvmeCompareOptions>(options, COMPARE, operation);
      this.#mustHave('compare', operation);
      this.#transfer(NVM.COMPARE, checked, checked.to, 'to', operation, settle);
    });
  }

  /** Makes all that was written, and has resolved, durable. */
  async flush(options?: NvmeCallOptions): Promise<void> {
    await this.#plain('nvme.flush', NVM.FLUSH, {}, optionsOf<NvmeCallOptions>(options, CALL, 'nvme.flush'));
  }

  /**
   * Makes blocks read as zeroes, without transferring any.
   *
   * @param options.deallocate may the controller deallocate them? Default false
   * @throws DmaError as {@link read}; ENOTSUP
   */
  async writeZeroes(
    options: NvmeBlocks & { readonly blocks: number; readonly deallocate?: boolean; readonly fua?: boolean },
  ): Promise<void> {
    const operation = 'nvme.writeZeroes';
    const {
      lba,
      blocks,
      deallocate = false,
      fua = false,
      ...call
    } = optionsOf<typeof options>(options, ZEROES, operation);
    this.#mustHave('writeZeroes', operation);
    const flags = (deallocate ? IO_CDW12.DEALLOCATE : 0) | (fua ? IO_CDW12.FUA : 0);
    await this.#blocks(operation, NVM.WRITE_ZEROES, lba, blocks, flags, call);
  }

  /** Has the controller read blocks and check them, without transferring any. @throws DmaError as {@link read}; ENOTSUP */
  async verify(options: NvmeBlocks & { readonly blocks: number }): Promise<void> {
    const operation = 'nvme.verify';
    const shape: Shape<NvmeBlocks & { readonly blocks: number }> = { ...CALL, lba: 'number', blocks: 'number' };
    const { lba, blocks, ...call } = optionsOf<typeof options>(options, shape, operation);
    this.#mustHave('verify', operation);
    await this.#blocks(operation, NVM.VERIFY, lba, blocks, 0, call);
  }

  /**
   * Tells the controller that the content of ranges is not needed any more. What they read as then is the controller's choice
   * (`capabilities.deallocatedZeroes`).
   *
   * @throws DmaError as {@link read}; ENOTSUP
   */
  async deallocate(ranges: readonly NvmeRange[], options?: NvmeCallOptions): Promise<void> {
    const operation = 'nvme.deallocate';
    const call = optionsOf<NvmeCallOptions>(options, CALL, operation);
    this.#mustHave('deallocate', operation);
    const checked = this.#rangesOf(ranges, operation, 2 ** 32 - 1);
    for (let at = 0; at < checked.length; at += DSM.MAX_RANGES) {
      const some = checked.slice(at, at + DSM.MAX_RANGES);
      using page = this.#host.page(DSM.MAX_RANGES * DSM.RANGE_BYTES);
      const { bytes, iova } = page;
      const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
      for (const [index, { lba, blocks }] of some.entries()) {
        view.setUint32(index * DSM.RANGE_BYTES + DSM.RANGE_LENGTH, blocks, true);
        view.setBigUint64(index * DSM.RANGE_BYTES + DSM.RANGE_LBA, BigInt(lba), true);
      }
      const data: Data = { kind: 'run', iova, va: NaN };
      const words = { cdw10: some.length - 1, cdw11: DSM.DEALLOCATE };
      await this.#plain(operation, NVM.DATASET_MANAGEMENT, words, call, data, some.length * DSM.RANGE_BYTES);
    }
  }

  /**
   * Has the controller copy ranges, one behind the other, to the blocks from `to` on, without transferring any.
   *
   * @throws DmaError as {@link read}; ENOTSUP; EINVAL for more ranges than a command has (128)
   */
  async copy(options: NvmeCallOptions & { readonly to: number; readonly from: readonly NvmeRange[] }): Promise<void> {
    const operation = 'nvme.copy';
    const { to = NaN, from, ...call } = optionsOf<typeof options>(options, COPY, operation);
    this.#mustHave('copy', operation);
    const ranges = this.#rangesOf(from, operation, COPY_LIMITS.blocksARange);
    if (ranges.length > COPY_LIMITS.ranges)
      throw invalid(operation, `${ranges.length} ranges; a copy has ${COPY_LIMITS.ranges} at most`);
    mustBeBlocks(
      to,
      ranges.reduce((sum, { blocks }) => sum + blocks, 0),
      this.blocks,
      operation,
    );
    using page = this.#host.page(COPY_LIMITS.ranges * COPY_LIMITS.bytes);
    const { bytes, iova } = page;
    const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
    for (const [index, { lba, blocks }] of ranges.entries()) {
      view.setBigUint64(index * COPY_LIMITS.bytes + 8, BigInt(lba), true);
      view.setUint16(index * COPY_LIMITS.bytes + 16, blocks - 1, true);
    }
    const words = { cdw10: to % 2 ** 32, cdw11: Math.floor(to / 2 ** 32), cdw12: ranges.length - 1 };
    await this.#plain(
      operation,
      NVM.COPY,
      words,
      call,
      { kind: 'run', iova, va: NaN },
      ranges.length * COPY_LIMITS.bytes,
    );
  }

  /** Sends any I/O command to it. @throws DmaError as {@link read} */
  async io(command: NvmeCommand): Promise<NvmeResult> {
    const operation = 'nvme.io';
    mustBeObject(command, 'a command', operation);
    this.#mustBeThere(operation);
    const { context, io } = this.#host;
    const { entry, data, unit, ranges } = commandOf(context, command, this.id, operation, this.blockSize);
    return io.run({
      ...this.#base(operation, entry, command),
      ...{ lba: 0, blocks: 0, unit, maxBlocks: 1, data, ranges, repeatable: false },
    });
  }

  /** Its zones. @throws DmaError ENOTSUP unless it is a zoned namespace */
  get zones(): ZoneCalls {
    this.#mustBeThere('nvme.zones');
    const { context, minPageSize } = this.#host;
    if (this.#isZoned)
      return (this.#zones ??= new ZoneCalls(this, {
        format: this.identity.format,
        minPageSize,
        maxTransfer: context.rules.maxTransfer,
        page: (length) => this.#host.page(length),
        identify: (cns) => this.#host.identify(cns, this.id, COMMAND_SET.ZONED),
        send: (operation, opcode, words, call, data, length) =>
          this.#plain(operation, opcode, words, call, data, length),
        dataOf: (memory, length, operation) =>
          dataOf(
            context,
            piecesOf(context.device, memory, length, 'from', operation),
            length,
            length,
            'read',
            operation,
          ),
      }));
    throw this.#lacks('zones', 'nvme.zones');
  }

  /**
   * The blocks from `lba` on as a stream, read ahead of who takes them. Its memory is the library's own, and given back when it ends or is
   * destroyed. It fails as {@link read} does.
   *
   * @throws DmaError EINVAL, ERANGE
   */
  readable(options: NvmeStreamOptions): Readable {
    return readableOf(this, this.#host.bounce, options);
  }

  /**
   * A stream that writes the blocks from `lba` on. It has finished when all of them are written, which `flush` then makes durable. It
   * fails as {@link write} does, and with EINVAL for what does not fill a block at its end, or is more than `blocks`. What has been
   * written by then stays; a stream that is destroyed writes nothing more.
   *
   * @throws DmaError EINVAL, ERANGE
   */
  writable(options: NvmeStreamOptions): Writable {
    return writableOf(this, this.#host.bounce, options);
  }

  /** @internal The controller says something else of it now. */
  update(facts: NamespaceFacts): void {
    this.#facts = facts;
    this.#zones = undefined;
    this.#gone = undefined;
  }

  /** @internal It is gone. */
  end(): void {
    this.#gone = new DmaError({
      code: 'ENXIO',
      operation: 'nvme',
      reason: `namespace ${this.id} is gone`,
      hint: 'namespaces of the controller are the ones that are there now',
    });
  }

  /** One promise for a call, and no more: there are many of them a second. */
  #promise(start: (settle: Settle) => void): Promise<void> {
    return new Promise<void>((resolve, reject) => start((error) => (error === undefined ? resolve() : reject(error))));
  }

  #transfer(
    opcode: number,
    options: Partial<TransferOptions>,
    memory: NvmeMemory | BounceMemory | undefined,
    name: string,
    operation: string,
    settle: Settle,
  ): void {
    const { lba = NaN, metadata, protection, fua = false, bounce = false } = options;
    this.#mustBeThere(operation);
    const unit = this.#unitOf(protection);
    const { context, io } = this.#host;
    const blocks = options.blocks ?? Math.floor(bytesIn(memory, name, operation) / unit);
    mustBeBlocks(lba, blocks, this.blocks, operation);
    const length = blocks * unit;
    const copied = bounce ? this.#host.bounce.take(memory, length, opcode !== NVM.READ, name, operation) : undefined;
    try {
      if (copied === undefined && memory instanceof Uint8Array) throw notMapped(context, name, operation);
      const target = copied?.memory ?? (memory as NvmeMemory);
      const isPlain = metadata === undefined && protection === undefined && !this.hasMetadataApart;
      const entry = isPlain ? this.#entryOf(opcode, fua) : this.#entryOf(opcode, fua).slice();
      const parts: OperationParts = {
        operation,
        device: context.device.name,
        entry,
        lba,
        blocks,
        unit,
        maxBlocks: Math.min(65536, Math.floor(context.rules.maxTransfer / unit)),
        data: dataIn(context, target, length, unit, name, opcode === NVM.READ ? 'write' : 'read', operation),
        ranges: undefined,
        signal: options.signal,
        deadline: deadlineOf(context, options.timeoutMs, operation),
        repeatable: opcode === NVM.READ || opcode === NVM.COMPARE,
        // Zones are written at their write pointers.
        inOrder: opcode === NVM.WRITE && this.#isZoned,
        perCommand: undefined,
      };
      const all = isPlain ? parts : { ...parts, ...this.#metadata(parts, metadata, protection) };
      io.start(all, copied === undefined ? settle : finishing(copied, settle));
    } catch (error) {
      copied?.[Symbol.dispose]();
      throw error;
    }
  }

  /** The words that all commands of this kind have; not to be changed. */
  #entryOf(opcode: number, fua: boolean): Uint32Array {
    const key = opcode * 2 + (fua ? 1 : 0);
    let entry = this.#entries.get(key);
    if (entry === undefined) {
      entry = new Uint32Array(ENTRY_WORDS);
      entry[0] = opcode;
      entry[1] = this.id;
      entry[12] = fua ? IO_CDW12.FUA : 0;
      this.#entries.set(key, entry);
    }
    return entry;
  }

  /** Bytes of a block in a transfer: protection information that the controller makes and takes off is not transferred. */
  #unitOf(protection: NvmeProtection | undefined): number {
    return protection?.action === true && this.#isOnlyProtection ? this.blockSize : this.transferSize;
  }

  /** Has it metadata that is protection information, and nothing else? */
  get #isOnlyProtection(): boolean {
    return this.identity.protection !== 0 && this.metadataSize === PROTECTION_BYTES;
  }

  /** What metadata and protection information add to a transfer. */
  #metadata(
    { operation, entry, lba, blocks }: OperationParts,
    metadata: MemoryPart | undefined,
    protection: NvmeProtection | undefined,
  ): { ranges: readonly number[]; perCommand: (entry: Uint32Array, done: number) => void } {
    const { identity, metadataSize } = this;
    let ranges: readonly number[] = [];
    let pointer = 0;
    if (metadata !== undefined) {
      if (!this.hasMetadataApart)
        throw invalid(
          operation,
          metadataSize === 0 ? 'the namespace has no metadata' : 'its metadata is behind each block’s data',
        );
      ranges = putMetadata(this.#host.context, entry, metadata, blocks * metadataSize, operation);
      pointer = this.#host.context.device.iovaOf(metadata);
    }
    // Without a place for it the controller would use address 0.
    const isLeftOut = metadata === undefined && this.hasMetadataApart;
    const canMake = this.#isOnlyProtection && entry[0] !== NVM.COMPARE;
    const asked = protection ?? (isLeftOut && canMake ? { action: true } : undefined);
    if (isLeftOut && !(canMake && asked?.action === true)) throw this.#needsMetadata(operation);
    const reference = asked === undefined ? 0 : this.#putProtection(entry, asked, lba, operation);
    const counts = asked !== undefined && (identity.protection === 1 || identity.protection === 2);
    return {
      ranges,
      perCommand: (words, done) => {
        if (counts) words[SQE.CDW14 / 4] = reference + done;
        if (pointer === 0) return;
        const at = pointer + done * metadataSize;
        words[SQE.MPTR / 4] = at;
        words[SQE.MPTR / 4 + 1] = at / 4294967296;
      },
    };
  }

  /** Puts protection information into an entry. @returns the reference tag of the first block. @throws DmaError EINVAL */
  #putProtection(entry: Uint32Array, protection: NvmeProtection, lba: number, operation: string): number {
    const asked = optionsOf<NvmeProtection>(protection, PROTECTION, operation);
    const { action = false, check = [], application = 0, applicationMask = 0xffff } = asked;
    const type = this.identity.protection;
    if (type === 0) throw invalid(operation, 'the namespace has no protection information');
    const { reference = type === 3 ? 0 : lba % 2 ** 32 } = asked;
    mustBeWhole(reference, 0, 2 ** 32 - 1, 'protection.reference', operation);
    mustBeWhole(application, 0, 0xffff, 'protection.application', operation);
    mustBeWhole(applicationMask, 0, 0xffff, 'protection.applicationMask', operation);
    let info = action ? PRINFO.action : 0;
    for (const each of check) {
      if (!Object.hasOwn(PRINFO, each)) throw invalid(operation, `protection.check: there is no ${show(each)}`);
      info |= PRINFO[each];
    }
    entry[SQE.CDW12 / 4] |= info << IO_CDW12.PRINFO_SHIFT;
    entry[SQE.CDW14 / 4] = reference;
    entry[SQE.CDW15 / 4] = application | (applicationMask << 16);
    return reference;
  }

  #needsMetadata(operation: string): DmaError {
    const { id, metadataSize } = this;
    return invalid(
      operation,
      `namespace ${id} has ${metadataSize} bytes of metadata for each block, which are transferred too`,
      {
        device: this.#host.context.device.name,
        hint: 'give memory for them: metadata',
      },
    );
  }

  /** A command over blocks that transfers none, in as many parts as it needs. */
  async #blocks(
    operation: string,
    opcode: number,
    lba: number | undefined,
    blocks: number | undefined,
    flags: number,
    call: NvmeCallOptions,
  ): Promise<void> {
    this.#mustBeThere(operation);
    mustBeBlocks(lba, blocks, this.blocks, operation);
    const entry = new Uint32Array(ENTRY_WORDS);
    entry[0] = opcode;
    entry[1] = this.id;
    entry[12] = flags;
    let perCommand: OperationParts['perCommand'];
    if (opcode === NVM.WRITE_ZEROES && this.identity.protection !== 0) {
      // Zeroes have protection information too, so that later reads can check them.
      const reference = this.#putProtection(entry, { action: true }, Number(lba), operation);
      if (this.identity.protection !== 3) perCommand = (words, done) => (words[SQE.CDW14 / 4] = reference + done);
    }
    await this.#host.io.run({
      ...this.#base(operation, entry, call),
      ...{ lba: Number(lba), blocks: Number(blocks), unit: 0, maxBlocks: 65536 },
      ...{ data: { kind: 'none' } as const, repeatable: opcode === NVM.VERIFY },
      inOrder: opcode === NVM.WRITE_ZEROES && this.#isZoned,
      perCommand,
    });
  }

  /** One command that is about no blocks. */
  async #plain(
    operation: string,
    opcode: number,
    words: Readonly<Record<string, number>>,
    call: NvmeCallOptions,
    data: Data = { kind: 'none' },
    length = 0,
  ): Promise<NvmeResult> {
    this.#mustBeThere(operation);
    const { entry } = commandOf(this.#host.context, { opcode, ...words }, this.id, operation);
    return this.#host.io.run({
      ...this.#base(operation, entry, call),
      ...{ lba: 0, blocks: 0, unit: length, maxBlocks: 1, data, repeatable: false },
    });
  }

  #base(
    operation: string,
    entry: Uint32Array,
    call: NvmeCallOptions,
  ): { operation: string; device: string; entry: Uint32Array; signal: AbortSignal | undefined; deadline: number } {
    const { context } = this.#host;
    return { operation, device: context.device.name, entry, ...limitsOf(context, call, operation) };
  }

  #rangesOf(ranges: readonly NvmeRange[] | undefined, operation: string, most: number): NvmeRange[] {
    if (!Array.isArray(ranges) || ranges.length === 0)
      throw invalid(operation, 'it takes a list of ranges, each { lba, blocks }');
    const list: NvmeRange[] = [];
    for (const each of ranges as readonly NvmeRange[]) {
      const { lba = NaN, blocks = NaN } = optionsOf<NvmeRange>(each, RANGE, operation);
      mustBeBlocks(lba, blocks, this.blocks, operation);
      for (let done = 0; done < blocks; done += most)
        list.push({ lba: lba + done, blocks: Math.min(most, blocks - done) });
    }
    return list;
  }

  #mustBeThere(operation: string): void {
    if (this.#gone !== undefined) throw this.#gone.with({ operation });
  }

  #mustHave(what: 'compare' | 'writeZeroes' | 'deallocate' | 'verify' | 'copy', operation: string): void {
    this.#mustBeThere(operation);
    if (!this.capabilities[what]) throw this.#lacks(what, operation);
  }

  #lacks(what: string, operation: string): DmaError {
    return new DmaError({
      code: 'ENOTSUP',
      operation,
      device: this.#host.context.device.name,
      reason: `namespace ${this.id} has no ${what}`,
      hint: 'namespace.capabilities says what there is',
    });
  }
}

shortForm(NvmeNamespace, 'NvmeNamespace', ({ id, blockSize, blocks, metadataSize, live }) => ({
  ...{ id, blockSize, blocks, metadataSize, live },
}));

/** The bytes of what was given, for calls without a number of blocks. */
function bytesIn(memory: unknown, name: string, operation: string): number {
  const list: readonly unknown[] = Array.isArray(memory) ? memory : [memory];
  let sum = 0;
  for (const each of list) {
    if (typeof each !== 'object' || each === null) throw invalid(operation, `${name} is left out, or is no memory`);
    const length: unknown = Reflect.get(each, 'length');
    sum += typeof length === 'number' ? length : NaN;
  }
  return sum;
}

/** Ends a call over a copy: what came is copied out, and the copy given back. */
function finishing(copied: BounceCopy, settle: Settle): Settle {
  return (error, result) => {
    const undo = undoAll([() => (error === undefined ? copied.finish() : undefined), () => copied[Symbol.dispose]()]);
    const failure = undo.length === 0 ? undefined : withUndo(undo[0], 'nvme', undo.slice(1));
    settle(error ?? failure, result);
  };
}

function notMapped({ device }: RequestContext, name: string, operation: string): DmaError {
  return invalid(operation, `${name} is a Uint8Array, whose memory the device can not reach`, {
    device: device.name,
    hint: 'give the memory that it is a view of, mapped by device.dmaMap, or have it copied: bounce: true',
  });
}
