/** Which mapping of a device is meant by a range, and what to do when it is none. */
import { invalid, type DmaError } from '../errors.js';
import type { Range } from '../ranges.js';
import type { Va } from '../units.js';
import type { Entry, Ledger } from './ledger.js';
import { Mapping } from './mapping.js';

/** The mapping of `device` that is `range`, or that contains it. @throws DmaError EINVAL */
export function claimOf(ledger: Ledger, device: string, range: Range<Va>, operation: string): Mapping {
  const entry = ledger.atVa(range.start);
  // A stuck entry has a claim that has ended. A mapping for every device can not be unmapped by the program.
  const claims = [...(entry?.claims ?? [])];
  const mine = claims.filter(
    (claim): claim is Mapping =>
      claim instanceof Mapping && claim.device === device && claim.live && claim.keeper === undefined,
  );
  const mapping = mine.find((each) => each.range.equals(range)) ?? mine.find((each) => each.range.covers(range));
  if (mapping !== undefined) return mapping;
  throw notMapped(entry, device, range, operation);
}

function notMapped(entry: Entry | undefined, device: string, range: Range<Va>, operation: string): DmaError {
  const hint = hintFor(entry, device);
  return invalid(operation, 'this device has nothing mapped at exactly this range', { range, device, hint });
}

function hintFor(entry: Entry | undefined, device: string): string {
  if (entry === undefined) return 'nothing is mapped at its first byte: it was unmapped, or never mapped';
  if (entry.state === 'stuck') return 'it could not be unmapped before, and stays mapped as long as the domain lives';
  const claim = entry.user;
  const kept = [...entry.claims].find((each) => each instanceof Mapping && each.keeper !== undefined);
  if (kept instanceof Mapping && kept.device === device)
    return `${kept.range.toString()} is mapped there for every device: ${String(kept.keeper)} ends it`;
  const whose = entry.devices.includes(device) ? 'this device' : entry.devices.join(', ');
  return `${whose} has ${(claim?.range ?? entry.vaRange).toString()} mapped there: unmap exactly that, mapping by mapping`;
}
