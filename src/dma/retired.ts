/** Mappings that were unmapped, so that a late access by a device can be explained. */
import { Range } from '../ranges.js';
import type { Iova } from '../units.js';
import type { Entry } from './ledger.js';

/** A mapping that was unmapped. */
export interface Retired {
  readonly entry: Entry;
  /** the device that unmapped it */
  readonly device: string;
  /** when, in milliseconds of the domain's clock */
  readonly at: number;
}

/** The most recent retired mappings: a ring, which is searched only after an error. */
export class RetiredMappings {
  /** A ring with one array per field: an object per mapping would be one more long-lived object. */
  readonly #entries: Entry[] = [];
  readonly #devices: string[] = [];
  readonly #times: number[] = [];
  readonly #capacity: number;
  #next = 0;

  /** @param capacity how many to remember; the oldest is forgotten first */
  constructor(capacity: number) {
    this.#capacity = capacity;
  }

  add(entry: Entry, device: string, at: number): void {
    if (this.#capacity === 0) return;
    const slot = this.#next;
    this.#entries[slot] = entry;
    this.#devices[slot] = device;
    this.#times[slot] = at;
    this.#next = slot + 1 === this.#capacity ? 0 : slot + 1;
  }

  /** The most recently unmapped mapping that held any of [iova, iova + length). O(capacity). */
  latest(iova: Iova, length: number): Retired | undefined {
    const range = new Range(iova, length);
    const count = this.#entries.length;
    for (let back = 1; back <= count; back++) {
      const slot = (this.#next - back + count) % count;
      const entry = this.#entries[slot];
      if (entry.iovaRange.overlaps(range)) return { entry, device: this.#devices[slot], at: this.#times[slot] };
    }
    return undefined;
  }
}
