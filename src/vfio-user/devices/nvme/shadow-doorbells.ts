/**
 * Shadow doorbells: the host writes its doorbells to memory, and to the registers only when the controller has asked for it by an
 * event index (NVM Express Base Specification 1.4, section 7.13). So a busy controller gets no messages, and an idle one sleeps.
 */
import type { DeviceDma } from '../model.js';

/** The two pages of a host: doorbells, and event indexes at the same offsets. */
export class ShadowDoorbells {
  readonly #dma: DeviceDma;
  readonly #doorbells: number;
  readonly #events: number;
  /** bytes of a page */
  readonly #length: number;
  /** Doorbells are this many words apart. */
  readonly #step: number;
  #values: Uint32Array | undefined;
  #wanted: Uint32Array | undefined;

  /**
   * @param doorbells address of the first page
   * @param events address of the second one
   * @param length bytes of each that are used
   * @param stride bytes from one doorbell to the next
   */
  constructor(dma: DeviceDma, doorbells: number, events: number, length: number, stride: number) {
    this.#dma = dma;
    this.#doorbells = doorbells;
    this.#events = events;
    this.#length = length;
    this.#step = stride / 4;
  }

  /** Looks the pages up, for use until the host gets its turn. Returns false if they are not there in one piece. */
  open(): boolean {
    try {
      this.#values = wordsOf(this.#dma.direct(this.#doorbells, this.#length, 'write'));
      this.#wanted = wordsOf(this.#dma.direct(this.#events, this.#length, 'write'));
      return this.#values !== undefined && this.#wanted !== undefined;
    } catch {
      return false;
    }
  }

  /** Are the pages looked up? */
  get isOpen(): boolean {
    return this.#values !== undefined;
  }

  /** Ends the use of the pages. */
  close(): void {
    this.#values = undefined;
    this.#wanted = undefined;
  }

  /** The tail of submission queue `queue`. Only between {@link open} and {@link close}. */
  tail(queue: number): number {
    return this.#value(2 * queue * this.#step);
  }

  /** The head of completion queue `queue`. */
  head(queue: number): number {
    return this.#value((2 * queue + 1) * this.#step);
  }

  /** Asks for a message when the tail goes beyond `tail`. Returns the tail that is there afterwards. */
  wakeAtTail(queue: number, tail: number): number {
    return this.#arm(2 * queue * this.#step, tail);
  }

  /** Asks for a message when the head goes beyond `head`. Returns the head that is there afterwards. */
  wakeAtHead(queue: number, head: number): number {
    return this.#arm((2 * queue + 1) * this.#step, head);
  }

  /** Asks for a message when the tail goes beyond `tail`, which the host has not reached or has passed already. */
  askAtTail(queue: number, tail: number): void {
    this.#ask(2 * queue * this.#step, tail);
  }

  /** As {@link askAtTail}, for the head. */
  askAtHead(queue: number, head: number): void {
    this.#ask((2 * queue + 1) * this.#step, head);
  }

  /** Sets the tail of submission queue `queue`, and asks for a message when it changes. */
  setTail(queue: number, tail: number): void {
    this.#set(2 * queue * this.#step, tail);
  }

  /** Sets the head of completion queue `queue`, and asks for a message when it changes. */
  setHead(queue: number, head: number): void {
    this.#set((2 * queue + 1) * this.#step, head);
  }

  #set(at: number, value: number): void {
    if (this.#values !== undefined) Atomics.store(this.#values, at, value);
    if (this.#wanted !== undefined) Atomics.store(this.#wanted, at, value);
  }

  #value(at: number): number {
    return this.#values === undefined ? 0 : Atomics.load(this.#values, at);
  }

  #ask(at: number, value: number): void {
    if (this.#wanted !== undefined) Atomics.store(this.#wanted, at, value);
  }

  #arm(at: number, value: number): number {
    // The store is seen before the load is done: either the host sees the event index, or we see its doorbell.
    this.#ask(at, value);
    return this.#value(at);
  }
}

function wordsOf(bytes: Uint8Array | undefined): Uint32Array | undefined {
  if (bytes === undefined || bytes.byteOffset % 4 !== 0) return undefined;
  return new Uint32Array(bytes.buffer, bytes.byteOffset, bytes.length >>> 2);
}
