/** PRP lists and SGL segments in the client's memory, as the words that are there. */
import { STATUS } from '../../../nvme/status.js';
import { ADDRESS_LIMIT } from '../../../units.js';
import type { DeviceDma } from '../model.js';

/** Instead of a status: the list comes by message, and {@link Lists.wait} tells when it is there. */
export const WAIT = -1;

/** Most bytes that are loaded at a time: a PRP list in the largest page of the host. */
const LARGEST = 65536;

/** Loads lists. What was loaded is a copy: the client can not change it between the check and the use. */
export class Lists {
  /** Why {@link load} gave nothing: a status, or {@link WAIT}. */
  status = 0;
  /** Settles when a list has come that was waited for; a failure is told by the next {@link load} of it. */
  wait: Promise<void> | undefined;
  readonly #dma: DeviceDma;
  readonly #patient: boolean;
  #words = new Uint32Array(1024);
  #bytes = new Uint8Array(this.#words.buffer);
  /** By address; `undefined` for what could not be reached. */
  readonly #came = new Map<number, Uint32Array | undefined>();

  /** @param patient may it load by message, and keep what came? Otherwise it only looks at memory in one piece */
  constructor(dma: DeviceDma, patient: boolean) {
    this.#dma = dma;
    this.#patient = patient;
  }

  /**
   * The words at [iova, iova + length), until the next call. `undefined` if they are not there; {@link status} says
   * why.
   *
   * @param length bytes, a multiple of 8, at most 64 KiB
   */
  load(iova: number, length: number): Uint32Array | undefined {
    this.status = STATUS.DATA_TRANSFER_ERROR;
    if (iova + length > ADDRESS_LIMIT || length > LARGEST) return undefined;
    if (this.#came.has(iova)) return this.#came.get(iova);
    try {
      const bytes = this.#dma.direct(iova, length, 'read');
      if (bytes === undefined) return this.#patient ? this.#later(iova, length) : this.#mustWait();
      if (length > this.#bytes.length) {
        this.#words = new Uint32Array(LARGEST / 4);
        this.#bytes = new Uint8Array(this.#words.buffer);
      }
      this.#bytes.set(bytes);
      return this.#words;
    } catch {
      return undefined;
    }
  }

  #mustWait(): undefined {
    this.status = WAIT;
  }

  #later(iova: number, length: number): Uint32Array | undefined {
    const words = new Uint32Array(length / 4);
    const wait = this.#dma.read(iova, new Uint8Array(words.buffer));
    if (wait === undefined) return words;
    this.status = WAIT;
    this.wait = wait.then(
      () => void this.#came.set(iova, words),
      () => void this.#came.set(iova, undefined),
    );
    return undefined;
  }
}
