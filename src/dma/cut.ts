/** Unmapping a part of a mapping: which entries that cuts, and what is left of them. */
import { DmaError } from '../errors.js';
import type { Range } from '../ranges.js';
import { formatSize, type Va } from '../units.js';
import type { Constraints } from './address-space.js';
import type { Entry } from './ledger.js';
import { mustNotBeBusy, type Mapping } from './mapping.js';

/** What is asked of the domain that the mapping is in. */
export interface CutBooks {
  readonly name: string;
  readonly constraints: Constraints;
  /** How many entries the domain has. */
  readonly entries: number;
}

/** An entry, and the part of it to unmap. */
export interface Cut {
  readonly entry: Entry;
  readonly cut: Entry;
}

/**
 * The entries that a cut touches, each with the part to unmap. Every check, no side effect.
 *
 * @throws DmaError EBUSY while the mapping is being unmapped, and for what others have mapped too; EINVAL for a part that is not
 *   aligned, or partly unmapped already; ENOTSUP where mappings can not be cut; ENOSPC when that takes more entries than there are
 */
export function planCut(books: CutBooks, mapping: Mapping, part: Range<Va>, operation: string): Cut[] {
  const { name, constraints, entries } = books;
  const { partialUnmap, granule, entryLimit } = constraints;
  const refuse = (code: 'ENOTSUP' | 'EINVAL' | 'EBUSY' | 'ENOSPC', reason: string): DmaError => {
    const hint = `the mapping is ${mapping.range.toString()}`;
    return new DmaError({ code, operation, range: part, device: mapping.device, reason, hint });
  };
  mustNotBeBusy(mapping, operation);
  if (!part.isAligned(granule)) throw refuse('EINVAL', `the part is not aligned to ${formatSize(granule)}`);
  if (!partialUnmap) throw refuse('ENOTSUP', `${name} can not unmap a part of a mapping`);
  const cuts = mapping.entries.flatMap((entry) => {
    const inside = entry.vaRange.intersection(part);
    return inside === undefined ? [] : [{ entry, cut: entry.part(inside.start, inside.length) }];
  });
  if (cuts.reduce((bytes, { cut }) => bytes + cut.length, 0) !== part.length)
    throw refuse('EINVAL', 'some of the part is unmapped already');
  const shared = cuts.find(({ entry }) => entry.uses > 1);
  if (shared !== undefined)
    throw refuse('EBUSY', `it is mapped ${shared.entry.uses} times, by ${shared.entry.devices.join(', ')}`);
  // Only a cut in the middle of an entry adds one, and a range has at most one such entry.
  const middle = cuts.some(({ entry, cut }) => leftOf(entry, cut).length > 1);
  if (middle && entries >= entryLimit)
    throw refuse('ENOSPC', `${name} takes ${entryLimit} mappings, and cutting in the middle needs one more`);
  return cuts;
}

/** What is left of an entry when a part of it is unmapped: nothing, one piece, or one on each side. */
export function leftOf(entry: Entry, cut: Entry): Entry[] {
  const end = cut.va + cut.length;
  const left: Entry[] = [];
  if (cut.va > entry.va) left.push(entry.part(entry.va, cut.va - entry.va));
  if (end < entry.va + entry.length) left.push(entry.part(end as Va, entry.va + entry.length - end));
  return left;
}
