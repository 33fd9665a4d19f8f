/** Copies through memory of the library's own, for data that the controller can not reach: only when it is asked for. */
import type { MemoryPart } from '../../memory/part.js';
import { invalid } from '../../errors.js';
import type { NvmeMemory } from './data-pointer.js';
import type { DmaMemory } from '../dma-memory.js';

/** Bytes, or several pieces of them, in order: such as a Buffer, or memory with `bytes()`. */
export type BounceMemory = Uint8Array | readonly Uint8Array[];

/** Memory that takes the place of the program's for one call. Disposing it gives it back. */
export interface BounceCopy extends Disposable {
  readonly memory: MemoryPart;
  /** After reading: copies what came to where the program wants it. */
  finish(): void;
}

/** Makes memory for copies. */
export class Bounce {
  readonly #allocate: (length: number) => DmaMemory;

  /** @param allocate memory that is mapped for the device */
  constructor(allocate: (length: number) => DmaMemory) {
    this.#allocate = allocate;
  }

  /** Memory of the library's own, mapped for the device. */
  allocate(length: number): DmaMemory {
    return this.#allocate(length);
  }

  /**
   * Memory for `length` bytes.
   *
   * @param memory where they come from, or go
   * @param isWritten do they go to the device? Then they are copied now
   * @throws DmaError EINVAL if `memory` has no bytes to copy, or less; ENOMEM
   */
  take(
    memory: NvmeMemory | BounceMemory | undefined,
    length: number,
    isWritten: boolean,
    name: string,
    operation: string,
  ): BounceCopy {
    const parts = bytesOf(memory, name, operation);
    const has = parts.reduce((sum, part) => sum + part.length, 0);
    if (has < length) throw invalid(operation, `${name} has ${has} bytes, and ${length} are transferred`);
    const own = this.#allocate(length);
    const { bytes } = own.part(0, length);
    if (isWritten) eachPart(parts, length, (part, at) => bytes.set(part, at));
    return {
      memory: own.range(length),
      finish: () => {
        if (isWritten) return;
        // The program may have transferred it away meanwhile.
        if (parts.reduce((sum, part) => sum + part.length, 0) < length)
          throw invalid(operation, `the memory of ${name} was detached while the command ran`);
        eachPart(parts, length, (part, at) => part.set(bytes.subarray(at, at + part.length)));
      },
      [Symbol.dispose]: () => own[Symbol.dispose](),
    };
  }
}

function eachPart(parts: readonly Uint8Array[], length: number, use: (part: Uint8Array, at: number) => void): void {
  let at = 0;
  for (const part of parts) {
    if (at === length) return;
    const bytes = part.subarray(0, length - at);
    use(bytes, at);
    at += bytes.length;
  }
}

/** What `memory` has to copy. */
function bytesOf(memory: unknown, name: string, operation: string): Uint8Array[] {
  const list: readonly unknown[] = Array.isArray(memory) ? memory : [memory];
  return list.map((each) => {
    if (each instanceof Uint8Array) return each;
    const bytes: unknown = typeof each === 'object' && each !== null ? Reflect.get(each, 'bytes') : undefined;
    const view: unknown = typeof bytes === 'function' ? Reflect.apply(bytes, each, []) : undefined;
    if (view instanceof Uint8Array) return view;
    throw invalid(operation, `${name} has no bytes to copy`, {
      hint: 'with bounce: true, give a Uint8Array, or memory with bytes()',
    });
  });
}
