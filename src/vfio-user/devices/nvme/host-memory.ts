/**
 * The host memory buffer: memory that the host lends to the controller alone, until it takes it back or resets the controller (NVM
 * Express Base Specification 1.4, section 5.21.1.13). This controller keeps a copy of its error log there.
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
    this.#pieces.clear();
    this.#told.fill(0);
  }

  /** Carries out SET_FEATURES: lends memory, or takes it back. */
  set(command: Command): void {
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
      this.#told.set([pages, low, high, count]);
      this.#enabled = true;
      end(STATUS.SUCCESS);
    });
  }

  /** Stores bytes at the beginning of the buffer. Only while transfers may run. Memory that is not there is not used again. */
  store(bytes: Uint8Array): void {
    if (!this.#enabled) return;
    try {
      const wait = this.#pieces.scatter(this.#engine.dma, bytes);
      if (wait !== undefined) this.#engine.track(wait, () => this.disable());
    } catch (error) {
      if (!isDmaError(error)) throw error;
      this.disable();
    }
  }

  /** Takes the host's list. Returns whether it is whole pages, and as many as it said. */
  #take(list: Uint32Array, pages: number): boolean {
    const { pageSize } = this.#engine;
    this.#pieces.clear();
    for (let at = 0; at < list.length; at += DESCRIPTOR_BYTES / 4) {
      if (list[at] % pageSize !== 0) return false;
      this.#pieces.add(list[at + 1] * 2 ** 32 + list[at], list[at + 2] * pageSize);
    }
    return this.#pieces.bytes === pages * pageSize;
  }
}
