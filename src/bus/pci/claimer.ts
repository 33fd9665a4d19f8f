/** Another way to open a PCI function: one that stays with its kernel driver, and is used through that driver. */
import type { IdMatch, OpenedDevice } from '../model.js';

/** Asked by the PCI bus before it opens a function by VFIO. A vendor implements it, and bus/builtin.ts lists it. */
export interface PciClaimer {
  /**
   * Opens a function that no VFIO driver has, in the vendor's way.
   *
   * @param address such as `0000:03:00.0`
   * @returns `undefined` if the function is not one of the vendor's
   * @throws DmaError if it is, but can not be opened
   */
  open(address: string, ids: Required<IdMatch>): OpenedDevice | undefined;
}
