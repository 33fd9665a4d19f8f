/** The regions that a device has besides its mappings, those that were closed too: what a refused peer is told of them. */
import { Range } from '../ranges.js';
import { now } from '../timers.js';
import { hex } from '../units.js';
import type { ExtraRegion } from './extra-region.js';

/** How many closed regions are remembered. */
const REMEMBERED = 256;

/** See the head of the file. */
export class ExtraRegions {
  readonly #open = new Set<ExtraRegion>();
  /** The last one that was closed first. */
  readonly #closed: { readonly region: ExtraRegion; readonly at: number }[] = [];

  add(region: ExtraRegion): void {
    this.#open.add(region);
  }

  closed(region: ExtraRegion): void {
    this.#open.delete(region);
    this.#closed.unshift({ region, at: now() });
    this.#closed.length = Math.min(this.#closed.length, REMEMBERED);
  }

  /** Why a peer can not use these bytes by `rkey`; `undefined` if the key was of no region. */
  explain(address: number, length: number, rkey: number): string | undefined {
    const exposed = [...this.#open].find((region) => region.rkey === rkey);
    if (exposed?.range !== undefined) {
      if (exposed.range.covers(new Range(address, length)))
        return `${hex(address)} is in ${exposed.toString()}, which allows less`;
      return `${length} bytes at ${hex(address)} are not inside ${exposed.toString()}, which is ${exposed.range.toString()}`;
    }
    const gone = this.#closed.find(({ region }) => region.rkey === rkey && region.range?.contains(address) === true);
    if (gone !== undefined) {
      const ms = Math.round(now() - gone.at);
      return `${hex(address)} was in ${gone.region.toString()}, which was closed ${ms} ms ago`;
    }
    return undefined;
  }
}
