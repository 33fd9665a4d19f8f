/** Tells what is known about a device address: the first question after a DMA fault. */
import type { Range } from '../ranges.js';
import { placeOf } from '../origin.js';
import { formatSize, hex, type Iova } from '../units.js';
import { grants, type DmaAccess } from './address-space.js';
import type { Entry, EntryState, Ledger } from './ledger.js';
import type { Retired, RetiredMappings } from './retired.js';

/** The answer of `explain`. */
export interface Explanation {
  /** What the address is. */
  readonly kind:
    'mapped' | 'wrong-access' | 'unmapped' | 'past-end' | 'before-start' | 'outside-windows' | 'never-mapped';
  /** One sentence for display. */
  readonly text: string;
  /** The IOVAs of the mapping that the answer is about: the current or former one, or the nearest. */
  readonly mapping: Range<Iova> | undefined;
  /** The devices of that mapping. */
  readonly devices: readonly string[];
  /** For `unmapped`: how long ago, in milliseconds. */
  readonly agoMs: number | undefined;
  /** For `past-end` and `before-start`: how far from the mapping, in bytes, at least 1. */
  readonly distance: number | undefined;
}

/** Addresses farther than this from a mapping are not "past its end". bytes */
const NEIGHBOURHOOD = 2 ** 20;

/** What `explain` works from. */
export interface Evidence {
  readonly ledger: Ledger;
  readonly retired: RetiredMappings;
  readonly windows: readonly Range<Iova>[];
  /** milliseconds of the clock that retired mappings were stamped with */
  readonly now: number;
}

/**
 * Explains an access to `length` bytes at `iova`. `access`: what the device tried, if known; `by`: who made the access.
 */
export function explain(
  evidence: Evidence,
  iova: Iova,
  length: number,
  access: DmaAccess | undefined,
  by: 'device' | 'peer' = 'device',
): Explanation {
  const { ledger, retired, windows } = evidence;
  const here = ledger.atIova(iova);
  if (here !== undefined) return explainLive(here, iova, length, access, by);
  const was = retired.latest(iova, length);
  if (was !== undefined) return explainRetired(was, iova, evidence.now);
  const { below, above } = ledger.besideIova(iova);
  const past = below === undefined ? Infinity : iova - (below.iova + below.length) + 1;
  const before = above === undefined ? Infinity : above.iova - iova;
  if (below !== undefined && past <= before && past <= NEIGHBOURHOOD)
    return about('past-end', below, `${hex(iova)} is ${formatSize(past)} past the end of ${describe(below)}`, past);
  if (above !== undefined && before <= NEIGHBOURHOOD)
    return about('before-start', above, `${hex(iova)} is ${formatSize(before)} before ${describe(above)}`, before);
  if (!windows.some((window) => window.contains(iova))) {
    const list = windows.map(String).join(', ');
    return nothing('outside-windows', `${hex(iova)} is outside of the domain's IOVA windows ${list}`);
  }
  return nothing('never-mapped', `${hex(iova)} was never mapped in this domain, as far as it remembers`);
}

function explainLive(
  entry: Entry,
  iova: Iova,
  length: number,
  access: DmaAccess | undefined,
  by: 'device' | 'peer',
): Explanation {
  const { remote } = entry.region;
  if (by === 'peer' && (remote === 'none' || (access !== undefined && !grants(remote, access))))
    return about(
      'wrong-access',
      entry,
      `${hex(iova)} may not be used for ${access ?? 'access'} by peers, who have ${remote === 'none' ? 'no' : remote} access: it is in ${describe(entry)}`,
    );
  if (access !== undefined && !grants(entry.access, access))
    return about('wrong-access', entry, `${hex(iova)} may not be used for ${access}: it is in ${describe(entry)}`);
  const past = iova + length - (entry.iova + entry.length);
  if (past > 0) {
    const text = `${formatSize(length)} at ${hex(iova)} end ${formatSize(past)} past the end of ${describe(entry)}`;
    return about('past-end', entry, text, past);
  }
  const emptied =
    entry.area.isEmptied?.() === true
      ? ', whose ArrayBuffer was transferred away, or is that of a WebAssembly.Memory that grew'
      : '';
  return about('mapped', entry, `${hex(iova)} is in ${describe(entry)}${emptied}`);
}

function explainRetired({ entry, device, at }: Retired, iova: Iova, now: number): Explanation {
  const agoMs = now - at;
  const text = `${hex(iova)} was unmapped ${formatAge(agoMs)} ago by ${device}: it was in ${describe(entry, 'retired')}`;
  return { kind: 'unmapped', text, mapping: entry.iovaRange, devices: [device], agoMs, distance: undefined };
}

/** `the read-write mapping [0x.., 0x..) of memfd memory at 0x.. by vdev:a, made at main (app.js:3:7)` */
function describe(entry: Entry, state: EntryState | 'retired' = entry.state): string {
  const claim = entry.user;
  const by = entry.devices.length === 0 ? '' : ` by ${entry.devices.join(' and ')}`;
  const made = claim?.origin === undefined ? '' : `, made at ${placeOf(claim.origin)}`;
  const passing = state === 'live' || state === 'retired' ? '' : ` (${state})`;
  return `the ${entry.access} mapping ${entry.iovaRange.toString()}${passing} of ${entry.area.label}${by}${made}`;
}

function formatAge(ms: number): string {
  return ms < 10_000 ? `${Math.round(ms)} ms` : `${Math.round(ms / 1000)} s`;
}

function about(kind: Explanation['kind'], entry: Entry, text: string, distance?: number): Explanation {
  return { kind, text, mapping: entry.iovaRange, devices: entry.devices, agoMs: undefined, distance };
}

function nothing(kind: Explanation['kind'], text: string): Explanation {
  return { kind, text, mapping: undefined, devices: [], agoMs: undefined, distance: undefined };
}
