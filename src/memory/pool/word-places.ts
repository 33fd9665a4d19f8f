/** Words in memory that this process has mapped: where they are, for threads that get no SharedArrayBuffer of them. */
import { invalid } from '../../errors.js';
import type { MemoryPort } from '../../platform/ports.js';
import { isAddress, type Va } from '../../units.js';
import { Views } from '../views.js';
import type { WordMemory } from '../shared/words.js';

/** Where words are. */
export interface WordPlace {
  readonly va: Va;
  /** bytes */
  readonly length: number;
}

/** Words, or where they are. */
export type WordsOrPlace = WordMemory | WordPlace;

/** Where these words are, for threads of this process. */
export function placesOf<T extends Readonly<Record<string, WordMemory>>>(
  port: Pick<MemoryPort, 'addressOf'>,
  words: T,
): { readonly [K in keyof T]: WordPlace } {
  const placeOf = (memory: WordMemory): WordPlace => ({ va: port.addressOf(memory), length: memory.byteLength });
  const places = Object.entries(words).map(([name, memory]) => [name, placeOf(memory)] as const);
  return Object.fromEntries(places) as { [K in keyof T]: WordPlace };
}

/** Views of words at places; they end together, before the memory is freed. */
export class WordViews {
  readonly #port: MemoryPort;
  readonly #views: Views[] = [];

  constructor(port: MemoryPort) {
    this.#port = port;
  }

  /** The words themselves. @throws DmaError EINVAL if it is no place of words */
  open(given: WordsOrPlace, operation: string): WordMemory {
    if (!isPlace(given)) return given;
    const { va, length } = given;
    if (!isAddress(va) || !isAddress(length) || va === 0 || length === 0)
      throw invalid(operation, 'the description does not say where the words are');
    const views = new Views(this.#port, va, length, undefined);
    this.#views.push(views);
    return views.bytes(0, length);
  }

  /** Detaches the views. */
  end(): void {
    for (const views of this.#views.splice(0)) views.detach();
  }
}

function isPlace(given: WordsOrPlace): given is WordPlace {
  return typeof given === 'object' && 'va' in given && 'length' in given && !ArrayBuffer.isView(given);
}
