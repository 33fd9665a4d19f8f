/** Which devices a driver is for, by their PCI ids. */
import type { Driver, IdMatch } from './model.js';

/** Does one of the driver's ids match? A device without ids is matched only by drivers that ask for none. */
export function matchesIds(driver: Driver, ids: Required<IdMatch> | undefined): boolean {
  if (driver.ids === undefined) return true;
  if (ids === undefined) return false;
  return driver.ids.some((wanted) =>
    (Object.keys(wanted) as (keyof IdMatch)[]).every((key) => wanted[key] === undefined || wanted[key] === ids[key]),
  );
}
