/**
 * The host memory buffer: memory that the host lends to the controller alone, until it takes it back or resets the controller (NVM
 * Express Base Specification 1.4, section 5.21.1.13). This controller keeps its error log there, and answers with what it finds.
 */
import { STATUS, STATUS_FIELD } from '../../../nvme/status.js';
import { isDmaError } from '../../../errors.js';
import type { Command } from './command.js';
import type { Engine } from './engine.js';
import { Segments } from './segments.js';

/** A piece of the buffer, in the host's list: 64 bits of address, 32 of length in pages, 32 reserved. */
const DESCRIPTOR_BYTES = 16;
const MOST_DESCRIPTORS = 1024;

/** What the host has lent. */
export class HostMemory {
  readonly #engine: Engine;
  /** Bytes that it needs at least; 0: it takes none. */
  readonly #least: number;
  readonly #pieces = new Segments();
  /** As the host said it: pages, the address of its list in two words, and the entries of that. */
  readonly #told = new Uint32Array(4);
  /** What was stored last. Nobody else may change it there. */
  #stored: Uint8Array | undefined;
  #enabled = false;

  constructor(engine: Engine, least: number) {
    this.#engine = engine;
    this.#least = least;
  }

  get isOffered(): boolean {
    return this.#least > 0;
  }

  get isEnabled(): boolean {
    return this.#enabled;
  }

  /** The page that GET_FEATURES gives. */
  page(): Uint8Array {
    const page = new Uint8Array(4096);
    page.set(new Uint8Array(this.#told.buffer));
    return page;
  }

  /** The host takes it back, or the controller is reset: it is not touched any more. */
  disable(): void {
    this.#enabled = false;
    this.#stored = undefined;
    this.#pieces.clear();
    this.#told.fill(0);
  }

  /** Carries out SET_FEATURES: lends memory, or takes it back. @param first what is stored there at once */
  set(command: Command, first: () => Uint8Array): void {
    const engine = this.#engine;
    const end = (status: number): void => engine.complete(command, status);
    if ((command.dword(11) & 1) === 0) {
      this.disable();
      return end(STATUS.SUCCESS);
    }
    // Lent twice, it would be unclear what is to be given back.
    if (this.#enabled) return end(STATUS.COMMAND_SEQUENCE | STATUS_FIELD.DNR);
    const [pages, low, high, count] = [12, 13, 14, 15].map((n) => command.dword(n));
    const enough = pages * engine.pageSize >= this.#least;
    if (!enough || count === 0 || count > MOST_DESCRIPTORS || low % DESCRIPTOR_BYTES !== 0)
      return end(STATUS.INVALID_FIELD | STATUS_FIELD.DNR);
    const list = new Uint32Array((count * DESCRIPTOR_BYTES) / 4);
    command.segments.clear();
    command.segments.add(high * 2 ** 32 + low, list.byteLength);
    engine.gather(command, new Uint8Array(list.buffer), (status) => {
      if (status !== 0) return end(status);
      if (!this.#take(list, pages)) return end(STATUS.INVALID_FIELD | STATUS_FIELD.DNR);
      engine.whenRunning(command, () => {
        this.#told.set([pages, low, high, count]);
        this.#enabled = true;
        this.store(first());
        end(this.#enabled ? STATUS.SUCCESS : STATUS.DATA_TRANSFER_ERROR | STATUS_FIELD.DNR);
      });
    });
  }

  /** Stores bytes at the beginning of the buffer. Only while transfers may run. Memory that is not there is not used again. */
  store(bytes: Uint8Array): void {
    if (!this.#enabled) return;
    this.#stored = bytes;
    try {
      const wait = this.#pieces.scatter(this.#engine.dma, bytes);
      if (wait !== undefined) this.#engine.track(wait, () => this.disable());
    } catch (error) {
      if (!isDmaError(error)) throw error;
      this.disable();
    }
  }

  /**
   * Reads back what was stored.
   *
   * @param use gets it; `undefined` when nothing is there, or it is not as it was stored: then the memory is not used any more
   * @param spoilt called before that, if somebody else has changed it
   */
  recall(command: Command, use: (bytes: Uint8Array | undefined) => void, spoilt: () => void): void {
    const stored = this.#stored;
    if (stored === undefined) return use(undefined);
    const found = new Uint8Array(stored.length);
    this.#engine.gather(
      command,
      found,
      (status) => {
        if (this.#stored !== stored) return use(undefined);
        if (status === 0 && Buffer.compare(found, stored) === 0) return use(found);
        this.disable();
        if (status === 0) spoilt();
        use(undefined);
      },
      this.#pieces,
    );
  }

  /** Takes the host's list. Returns whether it is whole pages, each once, and as many as it said. */
  #take(list: Uint32Array, pages: number): boolean {
    const { pageSize } = this.#engine;
    const ranges: [start: number, end: number][] = [];
    this.#pieces.clear();
    for (let at = 0; at < list.length; at += DESCRIPTOR_BYTES / 4) {
      if (list[at] % pageSize !== 0) return false;
      const start = list[at + 1] * 2 ** 32 + list[at];
      ranges.push([start, start + list[at + 2] * pageSize]);
      this.#pieces.add(start, list[at + 2] * pageSize);
    }
    ranges.sort(([a], [b]) => a - b);
    const isTwice = ranges.some(([start], index) => index > 0 && start < ranges[index - 1][1]);
    return !isTwice && this.#pieces.bytes === pages * pageSize;
  }
}
