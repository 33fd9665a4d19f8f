/** What a program forgot to give back, in a few lines: one a place of the program, however much was made there. */
import { placeOf, type Origin } from './origin.js';
import { formatSize } from './units.js';

/** One thing that was forgotten. */
export interface Forgotten {
  /** What it is called, and what several are called: `mapping`, `mappings`. */
  readonly kind: readonly [one: string, several: string];
  /** Names it when it is the only one of its place: `mapping [...] on vdev:copy0`. */
  readonly text: string;
  /** What was done there: `made`, `registered`. */
  readonly verb: string;
  /** 0 where that says nothing */
  readonly bytes: number;
  /** Where; when that was not noted, what to do so that it is. */
  readonly origin: Origin | string | undefined;
}

/** The most lines of one report; the last one counts the rest. */
const MOST_LINES = 20;

/** A line for each place, in the order of the first thing that was made there. */
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
