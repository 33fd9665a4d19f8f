/** Who else could open a PCI function: one that stays with its kernel driver, and is used through that. */
import type { IdMatch, OpenedDevice } from '../model.js';

/** What the PCI bus asks before it opens a function by VFIO. A vendor brings one, and bus/builtin.ts lists it. */
export interface PciClaimer {
  /**
   * Opens the function, which no VFIO driver has, the vendor's way.
   *
   * @param address such as `0000:03:00.0`
   * @returns `undefined` when the function is none of the vendor's
   * @throws DmaError when it is, and could not be opened
   */
  open(address: string, ids: Required<IdMatch>): OpenedDevice | undefined;
}
