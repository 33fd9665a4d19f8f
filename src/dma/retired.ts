/** What used to be mapped, so that a late access by a device can be explained. */
import { Range } from '../ranges.js';
import type { Iova } from '../units.js';
import type { Entry } from './ledger.js';

/** A mapping that is gone. */
export interface Retired {
  readonly entry: Entry;
  /** the device that unmapped it */
  readonly device: string;
  /** when, in milliseconds of the domain's clock */
  readonly at: number;
}

/** The last so many retired mappings: a ring that is looked through only when something went wrong. */
export class RetiredMappings {
  readonly #ring: Retired[] = [];
  readonly #capacity: number;
  #next = 0;

  /** @param capacity how many to remember; the oldest is forgotten first */
  constructor(capacity: number) {
    this.#capacity = capacity;
  }

  add(entry: Entry, device: string, at: number): void {
    if (this.#capacity === 0) return;
    this.#ring[this.#next] = { entry, device, at };
    this.#next = (this.#next + 1) % this.#capacity;
  }

  /** The mapping that held any of [iova, iova + length) and was unmapped last. O(capacity). */
  latest(iova: Iova, length: number): Retired | undefined {
    const range = new Range(iova, length);
    for (let back = 1; back <= this.#ring.length; back++) {
      const retired = this.#ring[(this.#next - back + this.#ring.length) % this.#ring.length];
      if (retired.entry.iovaRange.overlaps(range)) return retired;
    }
    return undefined;
  }
}
