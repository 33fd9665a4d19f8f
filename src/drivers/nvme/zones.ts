/** Zones of a zoned namespace (NVMe Zoned Namespace Command Set 1.1). */
import { optionsOf, type Shape } from '../../check.js';
import { invalid } from '../../errors.js';
import { NVM } from '../../nvme/commands.js';
import { numberAt } from '../../nvme/identify.js';
import { show } from '../../show.js';
import type { NvmeMemory } from './data-pointer.js';
import type { DmaMemory } from './dma-memory.js';
import type { Data, NvmeCallOptions, NvmeResult } from './operation.js';

/** A zone. */
export interface NvmeZone {
  /** The first block. */
  readonly lba: number;
  /** Blocks that can be written: the zone may be longer. */
  readonly capacity: number;
  /** The block that is written next. */
  readonly writePointer: number;
  readonly state:
    'empty' | 'implicitly-open' | 'explicitly-open' | 'closed' | 'read-only' | 'full' | 'offline' | 'unknown';
}

/** What is done to a zone. */
export type ZoneAction = 'close' | 'finish' | 'open' | 'reset' | 'offline';

/** The namespace whose zones these are. */
export interface ZonedBlocks {
  readonly id: number;
  readonly blocks: number;
  readonly transferSize: number;
}

/** How commands are sent. */
export interface ZoneHost {
  page(length: number): DmaMemory;
  identify(cns: number): Promise<Uint8Array>;
  send(
    operation: string,
    opcode: number,
    words: Readonly<Record<string, number>>,
    call: NvmeCallOptions,
    data: Data,
    length: number,
  ): Promise<NvmeResult>;
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
const REPORT = { HEADER: 64, ZONE: 64, EXTENT: 16384 } as const;
const CALL: Shape<NvmeCallOptions> = { signal: 'signal', timeoutMs: 'number' };
const APPEND: Shape<NvmeCallOptions & { readonly zone: number; readonly from: NvmeMemory; readonly blocks: number }> = {
  ...CALL,
  zone: 'number',
  from: 'object',
  blocks: 'number',
};

/** The calls about the zones of one namespace. */
export class ZoneCalls {
  readonly #of: ZonedBlocks;
  readonly #host: ZoneHost;

  /** @internal */
  constructor(of: ZonedBlocks, host: ZoneHost) {
    this.#of = of;
    this.#host = host;
  }

  /** All zones from the one that holds `lba` on. @throws DmaError as `NvmeNamespace.read` */
  async report(lba = 0, options?: NvmeCallOptions): Promise<NvmeZone[]> {
    const operation = 'nvme.zones.report';
    const call = optionsOf<NvmeCallOptions>(options, CALL, operation);
    const zones: NvmeZone[] = [];
    using page = this.#host.page(REPORT.EXTENT);
    const { bytes, iova } = page.part(0, REPORT.EXTENT);
    const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
    for (let from = lba; from < this.#of.blocks;) {
      const words = {
        cdw10: from % 2 ** 32,
        cdw11: Math.floor(from / 2 ** 32),
        cdw12: REPORT.EXTENT / 4 - 1,
        // Report zones, all states, only those that fit.
        cdw13: 1 << 16,
      };
      await this.#host.send(operation, NVM.ZONE_RECEIVE, words, call, { kind: 'run', iova, va: NaN }, REPORT.EXTENT);
      const count = Math.min(numberAt(view, 0, 8), (REPORT.EXTENT - REPORT.HEADER) / REPORT.ZONE);
      if (count === 0) break;
      for (let index = 0; index < count; index++) zones.push(zoneAt(view, REPORT.HEADER + index * REPORT.ZONE));
      const last = zones[zones.length - 1];
      if (last.lba < from && zones.length > 1) break;
      const length = zones.length > 1 ? last.lba - zones[zones.length - 2].lba : this.#of.blocks;
      from = last.lba + Math.max(1, length);
    }
    return zones;
  }

  /**
   * Writes to the end of a zone.
   *
   * @param options.zone its first block
   * @returns the block that the data begins at
   */
  async append(
    options: NvmeCallOptions & { readonly zone: number; readonly from: NvmeMemory; readonly blocks: number },
  ): Promise<number> {
    const operation = 'nvme.zones.append';
    const { zone = NaN, from, blocks = NaN, ...call } = optionsOf<typeof options>(options, APPEND, operation);
    if (from === undefined || !(Number.isSafeInteger(zone) && blocks >= 1 && blocks <= 65536))
      throw invalid(operation, 'it takes the first block of a zone, 1 to 65536 blocks, and from');
    const length = blocks * this.#of.transferSize;
    const data = this.#host.dataOf(from, length, operation);
    if (data.kind === 'cuts' && data.cuts.length > 1)
      throw invalid(operation, 'an append is one command, and this is too much for it');
    const words = { cdw10: zone % 2 ** 32, cdw11: Math.floor(zone / 2 ** 32), cdw12: blocks - 1 };
    const { result, resultHigh } = await this.#host.send(operation, NVM.ZONE_APPEND, words, call, data, length);
    return resultHigh * 2 ** 32 + result;
  }

  /** Does something to the zone that begins at `zone`, or to all zones. @throws DmaError as `NvmeNamespace.read` */
  async manage(action: ZoneAction, zone: number | 'all', options?: NvmeCallOptions): Promise<void> {
    const operation = 'nvme.zones.manage';
    const call = optionsOf<NvmeCallOptions>(options, CALL, operation);
    if (!Object.hasOwn(ACTIONS, action))
      throw invalid(operation, `there is no ${show(action)}`, {
        hint: `it is ${Object.keys(ACTIONS).join(', ')}`,
      });
    const lba = zone === 'all' ? 0 : zone;
    if (!Number.isSafeInteger(lba) || lba < 0) throw invalid(operation, 'zones are told by their first block');
    const words = {
      cdw10: lba % 2 ** 32,
      cdw11: Math.floor(lba / 2 ** 32),
      cdw13: ACTIONS[action] | (zone === 'all' ? SELECT_ALL : 0),
    };
    await this.#host.send(operation, NVM.ZONE_SEND, words, call, { kind: 'none' }, 0);
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
