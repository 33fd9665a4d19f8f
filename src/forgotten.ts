/** Reports what a program forgot to release, in one line per place in the program. */
import { placeOf, type Origin } from './origin.js';
import { formatSize } from './units.js';

/** One forgotten object. */
export interface Forgotten {
  /** Singular and plural: `mapping`, `mappings`. */
  readonly kind: readonly [one: string, several: string];
  /** Describes a single one: `mapping [...] on vdev:copy0`. */
  readonly text: string;
  /** The verb for its creation: `made`, `registered`. */
  readonly verb: string;
  /** Its size; 0 if that means nothing */
  readonly bytes: number;
  /** Where it was created; if not recorded, how to record it. */
  readonly origin: Origin | string | undefined;
}

/** The most lines of a report; the last one counts the rest. */
const MOST_LINES = 20;

/** A line per place, in the order of the first object created there. */
export function forgottenLines(all: Iterable<Forgotten>): string[] {
  const groups = new Map<string, { readonly first: Forgotten; readonly place: string; count: number; bytes: number }>();
  for (const each of all) {
    const place = typeof each.origin === 'string' ? each.origin : placeOf(each.origin);
    const key = `${each.kind[0]} ${place}`;
    const group = groups.get(key);
    if (group === undefined) groups.set(key, { first: each, place, count: 1, bytes: each.bytes });
    else {
      group.count++;
      group.bytes += each.bytes;
    }
  }
  const lines = [...groups.values()].map(({ first, place, count, bytes }) => {
    const [one, several] = first.kind;
    const size = bytes === 0 ? '' : `, ${formatSize(bytes)}`;
    if (typeof first.origin === 'string') return `${count} ${count === 1 ? one : several}${size} (${place})`;
    if (count === 1) return `${first.text}, ${first.verb} at ${place}`;
    return `${count} ${several}${size}, ${first.verb} at ${place}; the first is ${first.text}`;
  });
  if (lines.length <= MOST_LINES) return lines;
  const rest = [...groups.values()].slice(MOST_LINES - 1);
  const more = rest.reduce((sum, { count }) => sum + count, 0);
  return [...lines.slice(0, MOST_LINES - 1), `and ${more} more, made at ${rest.length} other places`];
}
