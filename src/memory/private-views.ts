/** The program's views of a file that it may not write: of a mapping of its own, whose stores nobody else sees. */
import type { MemoryPort } from '../platform/ports.js';
import type { Range } from '../ranges.js';
import type { Va } from '../units.js';
import { giveMappingBack, HandedOut } from './retired.js';
import { Views } from './views.js';

/** See the head of the file. The mapping is made when it is first looked at. */
export class PrivateViews extends Views {
  readonly #port: MemoryPort;
  readonly #map: () => Range<Va>;
  #made: { readonly range: Range<Va>; readonly views: Views; readonly handedOut: HandedOut } | undefined;

  /**
   * @param shared the mapping of the file that devices read
   * @param map makes the private one
   */
  constructor(port: MemoryPort, shared: Range<Va>, map: () => Range<Va>) {
    // What devices read are copies.
    super(port, shared.start, shared.length, undefined);
    this.#port = port;
    this.#map = map;
  }

  override bytes(offset: number, length: number): Uint8Array {
    if (this.#made === undefined) {
      const range = this.#map();
      const handedOut = new HandedOut();
      this.#made = { range, handedOut, views: new Views(this.#port, range.start, range.length, handedOut) };
    }
    return this.#made.views.bytes(offset, length);
  }

  /** What is in the file now, for a device in this process: a copy, because a store to the shared mapping would end the process. */
  copy(offset: number, length: number): Uint8Array {
    return super.bytes(offset, length).slice();
  }

  override detach(): void {
    super.detach();
    this.#made?.views.detach();
  }

  /** Gives the private mapping back, if there is one; views have been detached. */
  unmap(): void {
    const made = this.#made;
    if (made !== undefined) giveMappingBack(this.#port, made.range, made.handedOut);
    this.#made = undefined;
  }
}
