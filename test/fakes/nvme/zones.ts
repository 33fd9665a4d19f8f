/** The zones of a namespace of the fake controller (NVMe Zoned Namespace Command Set 1.1). */
import { SQE } from '../../../src/nvme/commands.js';
import { STATUS } from '../../../src/nvme/status.js';
import type { FakeCommand } from './controller.js';

/** What the zones are. Numbers are blocks. */
export interface FakeZoneOptions {
  readonly size: number;
  readonly capacity: number;
  /** Zones that may be open, and active. */
  readonly maxOpen: number;
  readonly maxActive: number;
}

const STATE = { empty: 0x1, implicitly: 0x2, explicitly: 0x3, closed: 0x4, full: 0xe } as const;
type State = (typeof STATE)[keyof typeof STATE];
const ACTION = { close: 1, finish: 2, open: 3, reset: 4 } as const;

interface Zone {
  readonly lba: number;
  written: number;
  state: State;
}

/** Keeps the states of zones; data is the controller's. */
export class FakeZones {
  readonly options: FakeZoneOptions;
  readonly #zones: readonly Zone[];

  constructor(blocks: number, options: FakeZoneOptions) {
    this.options = options;
    const count = Math.floor(blocks / options.size);
    this.#zones = Array.from({ length: count }, (_, i) => ({ lba: i * options.size, written: 0, state: STATE.empty }));
  }

  /** A write begins. @returns the block that it goes to, or a negative status */
  write(lba: number, blocks: number, isAppend: boolean): number {
    const zone = this.#zoneOf(lba);
    if (zone === undefined || (isAppend && lba !== zone.lba)) return -STATUS.INVALID_FIELD;
    if (zone.state === STATE.full) return -STATUS.ZONE_FULL;
    const pointer = zone.lba + zone.written;
    if (!isAppend && lba !== pointer) return -STATUS.ZONE_INVALID_WRITE;
    if (zone.written + blocks > this.options.capacity) return -STATUS.ZONE_BOUNDARY;
    if (zone.state === STATE.empty && this.#active >= this.options.maxActive) return -STATUS.TOO_MANY_ACTIVE_ZONES;
    if (zone.state !== STATE.explicitly) zone.state = STATE.implicitly;
    zone.written += blocks;
    if (zone.written === this.options.capacity) zone.state = STATE.full;
    return pointer;
  }

  /** Zone management send. @returns 0 or a negative status */
  manage({ entry }: FakeCommand): number {
    const action = entry.getUint32(SQE.CDW13, true) & 0xff;
    const all = (entry.getUint32(SQE.CDW13, true) & 0x100) !== 0;
    const lba = entry.getUint32(SQE.CDW10, true);
    const zones = all ? this.#zones : this.#zones.filter((zone) => zone.lba === lba);
    if (zones.length === 0) return -STATUS.INVALID_FIELD;
    for (const zone of zones) {
      const status = this.#change(zone, action);
      if (status < 0 && !all) return status;
    }
    return 0;
  }

  /** Zone management receive: as many zones as fit into `length` bytes. */
  report(lba: number, length: number): Uint8Array {
    const bytes = new Uint8Array(length);
    const view = new DataView(bytes.buffer);
    const { size, capacity } = this.options;
    const list = this.#zones.filter((zone) => zone.lba + size > lba).slice(0, (length - 64) / 64);
    view.setUint32(0, list.length, true);
    for (const [index, zone] of list.entries()) {
      const at = 64 + 64 * index;
      view.setUint8(at, 2);
      view.setUint8(at + 1, zone.state << 4);
      view.setUint32(at + 8, capacity, true);
      view.setUint32(at + 16, zone.lba, true);
      view.setUint32(at + 24, zone.lba + zone.written, true);
    }
    return bytes;
  }

  get #active(): number {
    return this.#zones.filter(({ state }) => state !== STATE.empty && state !== STATE.full).length;
  }

  #zoneOf(lba: number): Zone | undefined {
    return this.#zones.find((zone) => lba >= zone.lba && lba < zone.lba + this.options.size);
  }

  #change(zone: Zone, action: number): number {
    const isOpen = zone.state === STATE.implicitly || zone.state === STATE.explicitly;
    if (action === ACTION.reset) {
      zone.state = STATE.empty;
      zone.written = 0;
    } else if (action === ACTION.finish) zone.state = STATE.full;
    else if (action === ACTION.close && isOpen) zone.state = STATE.closed;
    else if (action === ACTION.open && zone.state !== STATE.full) {
      const open = this.#zones.filter(({ state }) => state === STATE.explicitly).length;
      if (zone.state !== STATE.explicitly && open >= this.options.maxOpen) return -STATUS.TOO_MANY_OPEN_ZONES;
      zone.state = STATE.explicitly;
    } else return -STATUS.ZONE_TRANSITION;
    return 0;
  }
}
