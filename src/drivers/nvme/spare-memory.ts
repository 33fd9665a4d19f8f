/** Memory of the driver's own that one call after the other uses, as mapping it takes longer than the command that it is for. */
import { undoAll } from '../../errors.js';
import type { DmaMemory, DmaPart } from '../dma-memory.js';

/** So much is kept for later calls. */
const MOST = 16;

/** Memory for one call, filled with zeros. Disposing it gives it back. */
export interface LentPart extends DmaPart, Disposable {}

/** What calls have given back. */
export class SpareMemory {
  readonly #allocate: (length: number) => DmaMemory;
  #spare: { readonly length: number; readonly memory: DmaMemory }[] = [];
  #ended = false;

  /** @param allocate memory that is mapped for the device */
  constructor(allocate: (length: number) => DmaMemory) {
    this.#allocate = allocate;
  }

  /** @throws DmaError ENOMEM, and what mapping throws */
  take(length: number): LentPart {
    const at = this.#spare.findIndex((each) => each.length === length);
    const [found] = at < 0 ? [] : this.#spare.splice(at, 1);
    const memory = found?.memory ?? this.#allocate(length);
    const { bytes, iova } = memory.part(0, length);
    bytes.fill(0);
    const giveBack = (): void => {
      if (this.#ended || this.#spare.length === MOST) memory[Symbol.dispose]();
      else this.#spare.push({ length, memory });
    };
    return { bytes, iova, [Symbol.dispose]: giveBack };
  }

  /** Frees what was given back; from now on that is freed at once. @returns the errors */
  end(): unknown[] {
    this.#ended = true;
    return undoAll(
      this.#spare.splice(0).map(
        ({ memory }) =>
          () =>
            memory[Symbol.dispose](),
      ),
    );
  }
}
