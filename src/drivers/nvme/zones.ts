/** Zones of a zoned namespace (NVMe Zoned Namespace Command Set 1.1). */
import { mustBeObject, optionsOf, type Shape } from '../../check.js';
import { invalid } from '../../errors.js';
import { CNS, NVM } from '../../nvme/commands.js';
import { numberAt, zonedControllerOf, zonedNamespaceOf } from '../../nvme/identify.js';
import { show } from '../../show.js';
import type { NvmeMemory } from './data-pointer.js';
import { CALL, type NvmeCallOptions } from './call-options.js';
import type { Data, NvmeResult } from './operation.js';
import { mustBeBlocks } from './requests.js';
import type { LentPart } from './spare-memory.js';
import { STAYS } from '../../stays.js';

/** A zone, as the controller reports it. */
export interface NvmeZone {
  /** The first block. */
  readonly lba: number;
  /** Blocks that can be written, from the first one on; the zone may be longer. */
  readonly capacity: number;
  /** The block that has to be written next; of no meaning when the zone is full, read only or offline. */
  readonly writePointer: number;
  readonly state:
    'empty' | 'implicitly-open' | 'explicitly-open' | 'closed' | 'read-only' | 'full' | 'offline' | 'unknown';
}

/** What all zones of a namespace have in common. */
export interface NvmeZoneLimits {
  /** Blocks from the beginning of one zone to the next. */
  readonly zoneSize: number;
  /** Most zones that may be open at once; `Infinity` without a limit. */
  readonly maxOpen: number;
  /** Most zones that may be open or closed at once; `Infinity` without a limit. */
  readonly maxActive: number;
  /** Most blocks of an append. */
  readonly maxAppend: number;
  /** May a read go over the end of a zone? */
  readonly readAcross: boolean;
}

/** What is done to a zone. `offline` takes a read-only zone out of use for good. */
export type ZoneAction = 'close' | 'finish' | 'open' | 'reset' | 'offline';

/** Options of {@link ZoneCalls.append}. */
export interface NvmeAppendOptions extends NvmeCallOptions {
  /** The first block of the zone. */
  readonly zone: number;
  /** Memory that is mapped for the device. */
  readonly from: NvmeMemory;
  /** How many blocks, from 1 on. */
  readonly blocks: number;
}

/** The namespace whose zones these are. */
export interface ZonedBlocks {
  readonly id: number;
  /** Blocks of the namespace. */
  readonly blocks: number;
  /** Bytes of a block as it is transferred. */
  readonly transferSize: number;
}

/** How commands are sent. */
export interface ZoneHost {
  /** Index of the format in use. */
  readonly format: number;
  /** Bytes of a page of CAP.MPSMIN. */
  readonly minPageSize: number;
  /** Most bytes of a command. */
  readonly maxTransfer: number;
  /** Memory of the driver's own for one call. */
  page(length: number): LentPart;
  /** IDENTIFY with the zoned command set. */
  identify(cns: number): Promise<Uint8Array>;
  /** One command; `length` is the bytes of its data. */
  send(
    operation: string,
    opcode: number,
    words: Readonly<Record<string, number>>,
    call: NvmeCallOptions,
    data: Data,
    length: number,
  ): Promise<NvmeResult>;
  /** How `length` bytes of memory are pointed to. @throws DmaError EINVAL */
  dataOf(memory: NvmeMemory, length: number, operation: string): Data;
}

const STATES: ReadonlyMap<number, NvmeZone['state']> = new Map<number, NvmeZone['state']>([
  [0x1, 'empty'],
  [0x2, 'implicitly-open'],
  [0x3, 'explicitly-open'],
  [0x4, 'closed'],
  [0xd, 'read-only'],
  [0xe, 'full'],
  [0xf, 'offline'],
]);
const ACTIONS: Readonly<Record<ZoneAction, number>> = { close: 1, finish: 2, open: 3, reset: 4, offline: 5 };
const SELECT_ALL = 1 << 8;
/** Zone management receive: report zones, in all states, and count only those that are in the answer. */
const PARTIAL_REPORT = 1 << 16;
/** Bytes of a report's header, of a zone in it, and of a whole report. */
const REPORT = { HEADER: 64, ZONE: 64, BYTES: 16384 } as const;
const APPEND: Shape<NvmeAppendOptions> = { ...CALL, zone: 'number', from: 'object', blocks: 'number' };

/** The calls about the zones of one namespace: `namespace.zones`. */
export class ZoneCalls {
  /** @internal */
  readonly stays = STAYS;
  readonly #of: ZonedBlocks;
  readonly #host: ZoneHost;
  #limits: Promise<NvmeZoneLimits> | undefined;

  /** @internal */
  constructor(of: ZonedBlocks, host: ZoneHost) {
    this.#of = of;
    this.#host = host;
  }

  /** What all zones have in common. Asks the controller once. @throws DmaError (rejects) as `NvmeNamespace.read` */
  limits(): Promise<NvmeZoneLimits> {
    const asked = (this.#limits ??= this.#askLimits());
    asked.catch(() => (this.#limits = undefined));
    return asked;
  }

  /**
   * All zones from the one that holds block `lba` on, in order.
   *
   * @throws DmaError (rejects) as `NvmeNamespace.read`: EINVAL, ERANGE for a block past the end
   */
  async report(lba = 0, options?: NvmeCallOptions): Promise<NvmeZone[]> {
    const operation = 'nvme.zones.report';
    const call = optionsOf<NvmeCallOptions>(options, CALL, operation);
    mustBeBlocks(lba, 1, this.#of.blocks, operation);
    const { zoneSize } = await this.limits();
    const zones: NvmeZone[] = [];
    const length = Math.min(REPORT.BYTES, this.#host.maxTransfer);
    using page = this.#host.page(length);
    const { bytes, iova } = page;
    const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
    for (let from = lba; from < this.#of.blocks;) {
      const words = {
        cdw10: from % 2 ** 32,
        cdw11: Math.floor(from / 2 ** 32),
        cdw12: length / 4 - 1,
        cdw13: PARTIAL_REPORT,
      };
      await this.#host.send(operation, NVM.ZONE_RECEIVE, words, call, { kind: 'run', iova, va: NaN }, length);
      const count = Math.min(numberAt(view, 0, 8), (length - REPORT.HEADER) / REPORT.ZONE);
      if (count === 0) break;
      for (let index = 0; index < count; index++) zones.push(zoneAt(view, REPORT.HEADER + index * REPORT.ZONE));
      // A controller that repeats itself must not keep this call here.
      from = Math.max(from + 1, zones[zones.length - 1].lba + zoneSize);
    }
    return zones;
  }

  /**
   * Writes to the end of a zone, wherever that is by then: many appends to a zone may run at once. It is one command, of
   * `limits().maxAppend` blocks at most.
   *
   * @returns the block that the data begins at
   * @throws DmaError (rejects) as `NvmeNamespace.read`; ENOSPC when the zone is full, ERANGE when the blocks do not fit into the rest
   *   of it, EMFILE when too many zones are open or active
   */
  async append(options: NvmeAppendOptions): Promise<number> {
    const operation = 'nvme.zones.append';
    mustBeObject(options, 'options', operation);
    const { zone, from, blocks, ...call } = optionsOf<NvmeAppendOptions>(options, APPEND, operation);
    mustBeBlocks(zone, blocks, this.#of.blocks, operation);
    if (from === undefined || blocks === undefined || zone === undefined)
      throw invalid(operation, 'from is left out: the memory that is written');
    const { maxAppend } = await this.limits();
    if (blocks > maxAppend)
      throw invalid(operation, `${blocks} blocks; an append has ${maxAppend} at most`, {
        hint: 'append them in several calls; zones.limits() tells the most',
      });
    const length = blocks * this.#of.transferSize;
    const data = this.#host.dataOf(from, length, operation);
    if (data.kind === 'cuts' && data.cuts.length > 1)
      throw invalid(operation, 'the data is in too many pieces for one command, which an append has to be', {
        hint: 'give memory that is contiguous for the device: eal.malloc(bytes, { contiguous: true })',
      });
    const words = { cdw10: zone % 2 ** 32, cdw11: Math.floor(zone / 2 ** 32), cdw12: blocks - 1 };
    const { result, resultHigh } = await this.#host.send(operation, NVM.ZONE_APPEND, words, call, data, length);
    return resultHigh * 2 ** 32 + result;
  }

  /**
   * Does something to the zone that begins at block `zone`, or to all zones that it can be done to. `reset` loses what is in them.
   *
   * @throws DmaError (rejects) as `NvmeNamespace.read`; EMFILE when too many zones would be open or active; EINVAL, with the status
   *   `ZONE_TRANSITION`, when the zone's state does not allow it
   */
  async manage(action: ZoneAction, zone: number | 'all', options?: NvmeCallOptions): Promise<void> {
    const operation = 'nvme.zones.manage';
    const call = optionsOf<NvmeCallOptions>(options, CALL, operation);
    if (!Object.hasOwn(ACTIONS, action))
      throw invalid(operation, `there is no ${show(action)}`, {
        hint: `it is ${Object.keys(ACTIONS).join(', ')}`,
      });
    const lba = zone === 'all' ? 0 : zone;
    mustBeBlocks(lba, 1, this.#of.blocks, operation);
    const words = {
      cdw10: lba % 2 ** 32,
      cdw11: Math.floor(lba / 2 ** 32),
      cdw13: ACTIONS[action] | (zone === 'all' ? SELECT_ALL : 0),
    };
    await this.#host.send(operation, NVM.ZONE_SEND, words, call, { kind: 'none' }, 0);
  }

  async #askLimits(): Promise<NvmeZoneLimits> {
    const { format, minPageSize, maxTransfer } = this.#host;
    const { zoneSize, maxOpen, maxActive, readAcross } = zonedNamespaceOf(
      await this.#host.identify(CNS.IO_NAMESPACE),
      format,
    );
    const { appendPower } = zonedControllerOf(await this.#host.identify(CNS.IO_CONTROLLER));
    // 0: as much as any command.
    const most = appendPower === 0 ? maxTransfer : Math.min(maxTransfer, 2 ** appendPower * minPageSize);
    const maxAppend = Math.min(65536, Math.floor(most / this.#of.transferSize));
    return { zoneSize, maxOpen, maxActive, maxAppend, readAcross };
  }
}

function zoneAt(view: DataView, at: number): NvmeZone {
  return {
    state: STATES.get(view.getUint8(at + 1) >>> 4) ?? 'unknown',
    capacity: numberAt(view, at + 8, 8),
    lba: numberAt(view, at + 16, 8),
    writePointer: numberAt(view, at + 24, 8),
  };
}
