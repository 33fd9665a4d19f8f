/** The queues of a controller, as it sees them (NVM Express Base Specification 1.4, section 4.1). */
import { ENTRY } from '../../../nvme/registers.js';
import type { DeviceDma } from '../model.js';

/** Words of a completion. */
const WORDS = ENTRY.COMPLETION / 4;
/** The phase, in the last word of a completion. */
const PHASE = 1 << 16;

/** A completion queue: what is to be posted waits here until the host has room. */
export class CompletionQueue {
  /** The host has taken what is before it. */
  head = 0;
  /** The next entry to post. */
  tail = 0;
  /** The head for which the event index was set to one that does not come; -1: there is none. */
  mindedHead = -1;
  /** Submission queues that complete here. */
  users = 0;
  /** Completions that were posted, for interrupts. */
  posted = 0;
  /** Are completions under way by message? */
  writing = false;
  /** Called when those are there, of a queue that was deleted meanwhile. */
  onWritten: (() => void) | undefined;
  #phase = PHASE;
  /** Completions that wait: entries without the phase, in a ring. */
  #words = new Uint32Array(64 * WORDS);
  #from = 0;
  #count = 0;

  /**
   * @param size entries
   * @param vector of its interrupt
   * @param interrupts are they wanted?
   */
  constructor(
    readonly id: number,
    readonly iova: number,
    readonly size: number,
    readonly vector: number,
    readonly interrupts: boolean,
  ) {}

  /** Completions that wait to be posted. */
  get waiting(): number {
    return this.#count;
  }

  /** Entries that the host has not taken yet. */
  get unseen(): number {
    return (this.tail - this.head + this.size) % this.size;
  }

  get isFull(): boolean {
    return this.unseen === this.size - 1;
  }

  /** Adds a completion. @param status the field of 15 bits, without the phase */
  push(result: number, high: number, sqId: number, sqHead: number, cid: number, status: number): void {
    const capacity = this.#words.length / WORDS;
    if (this.#count === capacity) this.#grow(capacity);
    const at = ((this.#from + this.#count) % (this.#words.length / WORDS)) * WORDS;
    const words = this.#words;
    words[at] = result;
    words[at + 1] = high;
    words[at + 2] = sqHead | (sqId << 16);
    words[at + 3] = cid | (status << 17);
    this.#count++;
  }

  /**
   * Posts as many as the host has room for. `undefined` if that is done, else resolves when the client has some of them.
   *
   * @throws DmaError if the queue's memory can not be reached
   */
  post(dma: DeviceDma): Promise<void> | undefined {
    while (this.#count > 0 && !this.isFull) {
      const room = this.size - 1 - this.unseen;
      const run = Math.min(this.#count, room, this.size - this.tail);
      const iova = this.iova + this.tail * ENTRY.COMPLETION;
      const bytes = dma.direct(iova, run * ENTRY.COMPLETION, 'write');
      if (bytes === undefined || bytes.byteOffset % 4 !== 0) {
        const copy = new Uint32Array(run * WORDS);
        this.#move(copy, run);
        const wait = dma.write(iova, new Uint8Array(copy.buffer));
        if (wait === undefined) continue;
        this.writing = true;
        return wait.then(
          () => {
            this.writing = false;
          },
          (error: unknown) => {
            this.writing = false;
            throw error;
          },
        );
      }
      this.#move(new Uint32Array(bytes.buffer, bytes.byteOffset, run * WORDS), run);
    }
    return undefined;
  }

  /** Moves `run` waiting completions to `to`, the word with the phase last. */
  #move(to: Uint32Array, run: number): void {
    const words = this.#words;
    const capacity = words.length / WORDS;
    for (let n = 0; n < run; n++) {
      const from = this.#from * WORDS;
      const at = n * WORDS;
      to[at] = words[from];
      to[at + 1] = words[from + 1];
      to[at + 2] = words[from + 2];
      // All that was stored before is seen before it.
      Atomics.store(to, at + 3, words[from + 3] | this.#phase);
      this.#from = this.#from + 1 === capacity ? 0 : this.#from + 1;
    }
    this.#count -= run;
    this.posted += run;
    this.tail += run;
    if (this.tail === this.size) {
      this.tail = 0;
      this.#phase ^= PHASE;
    }
  }

  #grow(capacity: number): void {
    const larger = new Uint32Array(2 * this.#words.length);
    const first = this.#words.subarray(this.#from * WORDS);
    larger.set(first);
    larger.set(this.#words.subarray(0, this.#words.length - first.length), first.length);
    this.#words = larger;
    this.#from = 0;
    this.#count = capacity;
  }
}

/** A submission queue. */
export class SubmissionQueue {
  /** The next entry to fetch. */
  head = 0;
  /** The host has filled what is before it. */
  tail = 0;
  /** Commands that were fetched and are not completed. */
  outstanding = 0;
  /** Are entries under way by message? */
  fetching = false;
  /** Called once when nothing is outstanding any more; while it is there, nothing is fetched. */
  onIdle: (() => void) | undefined;
  /** A bit for each identifier that is in use. */
  readonly #ids = new Uint32Array(65536 / 32);

  /** @param size entries */
  constructor(
    readonly id: number,
    readonly iova: number,
    readonly size: number,
    readonly cq: CompletionQueue,
  ) {}

  /** Entries that are ready to be fetched. */
  get ready(): number {
    const count = this.tail - this.head;
    return count < 0 ? count + this.size : count;
  }

  /** Takes an identifier. Returns false if a command that has it is outstanding. */
  takeId(cid: number): boolean {
    const bit = 1 << (cid & 31);
    if ((this.#ids[cid >>> 5] & bit) !== 0) return false;
    this.#ids[cid >>> 5] |= bit;
    return true;
  }

  giveId(cid: number): void {
    this.#ids[cid >>> 5] &= ~(1 << (cid & 31));
  }
}
