/** Registers of a device that another thread of this process stores to, without a message to the thread that opened the device. */
import { invalid, isDmaError, undoAll, withUndo } from '../errors.js';
import type { WordMemory } from '../memory/shared/words.js';
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

/** Registers in a descriptor, which another process maps. */
export interface FileStores extends RegisterFile {
  readonly kind: 'file';
}

/** What another thread or process needs to store to registers. Plain data. */
export type LentStores = MappedStores | FileStores | PostedRegisters;

/** Registers on loan. They stay usable until this is disposed, also when the device is closed or gone before. */
export interface RegisterLoan extends Disposable {
  readonly stores: LentStores;
  /** What stores by message need besides. */
  readonly words?: SharedArrayBuffer;
  /** Where mapped registers are, for another process, which maps them itself. */
  readonly file?: RegisterFile;
}

/** Registers in a descriptor that can be mapped. Plain data. */
export interface RegisterFile {
  readonly fd: number;
  /** Where the part begins in the descriptor; and in the region; and its length. Bytes. */
  readonly fdOffset: number;
  readonly offset: number;
  readonly length: number;
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
  words: WordMemory | undefined,
  holders: Holders,
): AttachedStores {
  if (stores.kind === 'mapped') return new Mapped(platform, stores);
  if (stores.kind === 'file') return mappedFile(platform, stores);
  if (words === undefined) throw invalid('attach', 'stores by message need the words of their loan');
  return new PostedStores(platform, stores, words, holders);
}

/** Maps registers. The descriptor is not needed any more then. */
function mappedFile(platform: Platform, { fd, fdOffset, offset, length }: FileStores): AttachedStores {
  const { memory } = platform;
  const va = memory.map({ fd, offset: fdOffset, length });
  try {
    return new Mapped(platform, { kind: 'mapped', va, offset, length }, () => memory.unmap(va, length));
  } catch (error) {
    throw withUndo(error, 'attach', undoAll([() => memory.unmap(va, length)]));
  }
}

class Mapped implements AttachedStores {
  readonly #offset: number;
  readonly #registers: MappedRegisters;
  readonly #end: () => void;
  #isOver = false;

  /** @param ended called once the registers are not used any more */
  constructor({ memory }: Platform, { va, offset, length }: MappedStores, ended?: () => void) {
    const buffer = memory.view(va as Parameters<typeof memory.view>[0], length);
    this.#offset = offset;
    this.#registers = new MappedRegisters(buffer, 0, length);
    this.#end = () => {
      memory.detach(buffer);
      ended?.();
    };
  }

  write32(offset: number, value: number): void {
    this.#registers.write32(offset - this.#offset, value);
  }

  [Symbol.dispose](): void {
    if (this.#isOver) return;
    this.#isOver = true;
    this.#end();
  }
}

/**
 * Registers that another process can map; `undefined` if it can not.
 *
 * @param holders of the threads of this process
 */
export function registersFor(
  access: { lendRegisters?(region: number, offset: number, length: number, holders: Holders): RegisterLoan },
  region: number,
  offset: number,
  length: number,
  holders: Holders,
): (RegisterLoan & { readonly file: RegisterFile }) | undefined {
  let loan: RegisterLoan | undefined;
  try {
    loan = access.lendRegisters?.(region, offset, length, holders);
  } catch (error) {
    if (!isDmaError(error, 'ENOTSUP')) throw error;
  }
  const { file } = loan ?? {};
  if (loan !== undefined && file !== undefined) return { ...loan, file };
  loan?.[Symbol.dispose]();
  return undefined;
}
