/** Words of pools and rings that other processes use too: in memory with a descriptor, at addresses that all of them have. */
import type { External, ExternalMemory } from '../memory/external.js';
import { Holders, type HoldersKernel } from '../memory/shared/holders.js';
import { Recovery } from '../memory/shared/recovery.js';
import type { WordMemory, WordSource } from '../memory/shared/words.js';
import { invalid, isDmaError } from '../errors.js';
import { setTimeout } from '../timers.js';

/** Threads and processes that can use the pools and rings of one `Eal` at the same time. */
const MOST_HOLDERS = 1023;

/** Pause before words that were in use are given back again, in milliseconds. */
const AGAIN_MS = 250;

/** The words of one `Eal` with a name. */
export class SharedWords implements WordSource {
  /** Called before words end: other processes unmap them. */
  gone: (memory: ExternalMemory) => void = () => undefined;
  readonly #external: External;
  readonly #kernel: HoldersKernel;
  readonly #memories = new Map<WordMemory, ExternalMemory>();
  readonly #recovering = new Set<(id: number) => void>();
  #holders: Holders | undefined;

  /** @param external where the memory is from */
  constructor(external: External, kernel: HoldersKernel) {
    this.#external = external;
    this.#kernel = kernel;
  }

  /** The threads and processes that share. Made on first use. */
  get holders(): Holders {
    this.#holders ??= Holders.create(this.#kernel, this.allocate(Holders.bytesFor(MOST_HOLDERS)));
    return this.#holders;
  }

  /** Adds what gives back the things of a thread or process that has ended. */
  addRecovery(recover: (id: number) => void): void {
    this.#recovering.add(recover);
  }

  /** Gives back what threads and processes had that have ended, so that others can have their places in the table. */
  reap(): void {
    if (this.#holders === undefined) return;
    new Recovery(this.#holders).release((id) => {
      for (const recover of this.#recovering) recover(id);
    });
  }

  allocate(bytes: number): WordMemory {
    const memory = this.#external.allocate(bytes, { label: 'words of pools and rings' });
    const words = memory.bytes(0, bytes);
    this.#memories.set(words, memory);
    return words;
  }

  free(words: WordMemory): void {
    const memory = this.#memories.get(words);
    if (memory?.live !== true) return;
    this.gone(memory);
    this.#unregister(words, memory);
  }

  /** A secondary that has mapped it for a device does not keep a pool from being freed: it ends with that mapping. */
  #unregister(words: WordMemory, memory: ExternalMemory): void {
    try {
      if (memory.live) memory.unregister();
      this.#memories.delete(words);
    } catch (error) {
      if (!isDmaError(error, 'EBUSY')) throw error;
      setTimeout(() => this.#unregister(words, memory), AGAIN_MS).unref();
    }
  }

  /** Is this memory of words? */
  has(memory: ExternalMemory): boolean {
    return [...this.#memories.values()].includes(memory);
  }

  /** The memory that these words are in. */
  memoryOf(words: WordMemory): ExternalMemory {
    const memory = this.#memories.get(words);
    if (memory === undefined) throw invalid('share', 'these words are not in shared memory');
    return memory;
  }
}
