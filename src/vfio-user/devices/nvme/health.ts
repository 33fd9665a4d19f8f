/** How a controller is: what it counts, and the errors that it remembers. */
import { CRITICAL_WARNING, ERROR_ENTRY, SMART } from '../../../nvme/log-pages.js';
import { now } from '../../../timers.js';
import type { Command } from './command.js';

/** Entries of the error log. */
export const ERROR_ENTRIES = 64;
/** Kelvins: how warm an emulated disk is, and when it would be too warm. */
export const TEMPERATURE = { NORMAL: 303, WARNING: 343, CRITICAL: 358 } as const;

/** Counters and errors of a controller, from its making on: resets leave them. */
export class Health {
  temperature: number = TEMPERATURE.NORMAL;
  /** Bits of {@link CRITICAL_WARNING} that stay once they are set. */
  warning = 0;
  /** blocks of 512 bytes */
  read = 0;
  written = 0;
  readCommands = 0;
  writeCommands = 0;
  powerCycles = 1;
  unsafeShutdowns = 0;
  mediaErrors = 0;
  readonly #begin = now();
  #errors = 0;
  /** A ring of entries. */
  readonly #log = new Uint8Array(ERROR_ENTRIES * ERROR_ENTRY.BYTES);
  readonly #view = new DataView(this.#log.buffer);

  get criticalWarning(): number {
    return this.warning | (this.temperature >= TEMPERATURE.WARNING ? CRITICAL_WARNING.TEMPERATURE : 0);
  }

  /** Remembers that a command failed. @param status the field of 15 bits */
  failed(command: Command, status: number): void {
    const at = (this.#errors % ERROR_ENTRIES) * ERROR_ENTRY.BYTES;
    this.#errors++;
    this.#log.fill(0, at, at + ERROR_ENTRY.BYTES);
    put64(this.#view, at + ERROR_ENTRY.COUNT, this.#errors);
    this.#view.setUint16(at + ERROR_ENTRY.SQ_ID, command.queue.id, true);
    this.#view.setUint16(at + ERROR_ENTRY.CID, command.cid, true);
    this.#view.setUint16(at + ERROR_ENTRY.STATUS, status << 1, true);
    this.#view.setUint16(at + ERROR_ENTRY.LOCATION, 0xffff, true);
    if (command.queue.id !== 0) {
      this.#view.setUint32(at + ERROR_ENTRY.LBA, command.dword(10), true);
      this.#view.setUint32(at + ERROR_ENTRY.LBA + 4, command.dword(11), true);
    }
    this.#view.setUint32(at + ERROR_ENTRY.NSID, command.nsid, true);
  }

  /** The error log page: the newest entry first. */
  errorPage(): Uint8Array {
    const page = new Uint8Array(this.#log.length);
    for (let n = 0; n < Math.min(this.#errors, ERROR_ENTRIES); n++) {
      const at = ((this.#errors - 1 - n) % ERROR_ENTRIES) * ERROR_ENTRY.BYTES;
      page.set(this.#log.subarray(at, at + ERROR_ENTRY.BYTES), n * ERROR_ENTRY.BYTES);
    }
    return page;
  }

  /** The page on health. */
  smartPage(): Uint8Array {
    const page = new Uint8Array(SMART.BYTES);
    const view = new DataView(page.buffer);
    page[SMART.CRITICAL_WARNING] = this.criticalWarning;
    view.setUint16(SMART.TEMPERATURE, this.temperature, true);
    page[SMART.SPARE] = 100;
    page[SMART.SPARE_THRESHOLD] = 10;
    put64(view, SMART.DATA_READ, Math.ceil(this.read / 1000));
    put64(view, SMART.DATA_WRITTEN, Math.ceil(this.written / 1000));
    put64(view, SMART.READ_COMMANDS, this.readCommands);
    put64(view, SMART.WRITE_COMMANDS, this.writeCommands);
    put64(view, SMART.POWER_CYCLES, this.powerCycles);
    put64(view, SMART.POWER_ON_HOURS, Math.floor((now() - this.#begin) / 3_600_000));
    put64(view, SMART.UNSAFE_SHUTDOWNS, this.unsafeShutdowns);
    put64(view, SMART.MEDIA_ERRORS, this.mediaErrors);
    put64(view, SMART.ERROR_ENTRIES, this.#errors);
    return page;
  }
}

/** Stores a number below 2^53 in 8 bytes. */
export function put64(view: DataView, at: number, value: number): void {
  view.setUint32(at, value % 2 ** 32, true);
  view.setUint32(at + 4, value / 2 ** 32, true);
}
