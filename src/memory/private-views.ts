/**
 * The program's views of a file that it may not write. They are of a private mapping: stores are seen by nobody else.
 */
import type { MemoryPort } from '../platform/ports.js';
import type { Range } from '../ranges.js';
import type { Va } from '../units.js';
import type { Share } from './shared/shares.js';
import { giveMappingBack, HandedOut } from './retired.js';
import { Views } from './views.js';

/** Views of a private mapping, which is made on first use. */
export class PrivateViews extends Views {
  readonly #port: MemoryPort;
  readonly #map: () => Range<Va>;
  #made: { readonly range: Range<Va>; readonly views: Views; readonly handedOut: HandedOut } | undefined;

  /**
   * @param shared the mapping of the file that devices read
   * @param map makes the private mapping
   */
  constructor(port: MemoryPort, shared: Range<Va>, map: () => Range<Va>) {
    // Devices get copies.
    super(port, shared.start, shared.length, undefined);
    this.#port = port;
    this.#map = map;
  }

  override bytes(offset: number, length: number): Uint8Array {
    return this.#making().views.bytes(offset, length);
  }

  /** The address of the private mapping. */
  get place(): Va {
    return this.#making().range.start;
  }

  /** Other threads had views of the private mapping. */
  shared(share: Share): void {
    this.#made?.handedOut.shared(share);
  }

  #making(): { readonly range: Range<Va>; readonly views: Views; readonly handedOut: HandedOut } {
    if (this.#made !== undefined) return this.#made;
    const range = this.#map();
    const handedOut = new HandedOut();
    return (this.#made = { range, handedOut, views: new Views(this.#port, range.start, range.length, handedOut) });
  }

  /**
   * A copy of what the file holds now, for a device in this process. A copy, because a store to the read-only shared
   * mapping would end the process.
   */
  copy(offset: number, length: number): Uint8Array {
    return super.bytes(offset, length).slice();
  }

  override detach(): void {
    super.detach();
    this.#made?.views.detach();
  }

  /** Unmaps the private mapping, if there is one. Its views were detached before. */
  unmap(): void {
    const made = this.#made;
    if (made !== undefined) giveMappingBack(this.#port, made.range, made.handedOut);
    this.#made = undefined;
  }
}
