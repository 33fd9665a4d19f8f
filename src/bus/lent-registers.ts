/** Registers of a device that another thread of this process stores to, without a message to the thread that opened the device. */
import { invalid } from '../errors.js';
import type { Holders } from '../memory/shared/holders.js';
import type { Platform } from '../platform/ports.js';
import { MappedRegisters, type RegisterStores } from '../platform/registers/registers.js';
import { PostedStores, type PostedRegisters } from '../vfio-user/posted-stores.js';

/** Registers that are mapped into the process. */
export interface MappedStores {
  readonly kind: 'mapped';
  /** Where the part is. */
  readonly va: number;
  /** The part of the region that is mapped: bytes from its beginning, and bytes. */
  readonly offset: number;
  readonly length: number;
}

/** What another thread needs to store to registers. Plain data. */
export type LentStores = MappedStores | PostedRegisters;

/** Registers on loan. They stay usable until this is disposed, also when the device is closed or gone before. */
export interface RegisterLoan extends Disposable {
  readonly stores: LentStores;
  /** What stores by message need besides. */
  readonly words?: SharedArrayBuffer;
}

/** The registers in this thread; disposing ends their use, and not the loan. */
export interface AttachedStores extends RegisterStores, Disposable {}

/**
 * Uses registers that another thread has lent.
 *
 * @param words of the loan, for stores by message
 */
export function attachStores(
  platform: Platform,
  stores: LentStores,
  words: SharedArrayBuffer | undefined,
  holders: Holders,
): AttachedStores {
  if (stores.kind === 'mapped') return new Mapped(platform, stores);
  if (words === undefined) throw invalid('attach', 'stores by message need the words of their loan');
  return new PostedStores(platform, stores, words, holders);
}

class Mapped implements AttachedStores {
  readonly #offset: number;
  readonly #registers: MappedRegisters;
  readonly #end: () => void;

  constructor({ memory }: Platform, { va, offset, length }: MappedStores) {
    const buffer = memory.view(va as Parameters<typeof memory.view>[0], length);
    this.#offset = offset;
    this.#registers = new MappedRegisters(buffer, 0, length);
    this.#end = () => memory.detach(buffer);
  }

  write32(offset: number, value: number): void {
    this.#registers.write32(offset - this.#offset, value);
  }

  [Symbol.dispose](): void {
    this.#end();
  }
}
