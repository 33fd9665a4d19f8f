/** PCI ids: which devices a driver matches by them, and how they are shown. */
import { hex } from '../units.js';
import type { Driver, IdMatch } from './model.js';

/** Whether one of the driver's ids matches. A device without ids is matched only by drivers that list no ids. */
export function matchesIds(driver: Driver, ids: Required<IdMatch> | undefined): boolean {
  if (driver.ids === undefined) return true;
  if (ids === undefined) return false;
  return driver.ids.some((wanted) =>
    (Object.keys(wanted) as (keyof IdMatch)[]).every((key) => wanted[key] === undefined || wanted[key] === ids[key]),
  );
}

/** For programs: `{ vendor: '0x1234', ... }` */
export function idsDocument(ids: IdMatch): object {
  const entries = Object.entries<number | undefined>({ ...ids });
  return Object.fromEntries(entries.map(([key, value]) => [key, value === undefined ? undefined : hex(value)]));
}
