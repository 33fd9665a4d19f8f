/**
 * From VA to IOVA, per look-up, with one page mapped in each of so many places with gaps between them. The C peer has a
 * radix table made for the page size at hand, and makes the same areas and addresses from the same random numbers.
 */
import { TranslationTable } from '../src/dma/translation-table.js';
import { KiB, MiB } from '../src/index.js';
import { ADDRESSES, areaStarts, randomNumbers } from './harness/areas.js';
import { measure, timeWork, type Case, type Effort, type Result } from './harness/harness.js';
import { Peer } from './harness/peer.js';

const AREA_COUNTS = [1, 64, 1_000, 100_000];
const ORDERS = ['sequential', 'random'] as const;

type Order = (typeof ORDERS)[number];

/** Measures look-ups. */
export async function benchTranslate({ quick, progress }: Effort): Promise<Result[]> {
  const peer = Peer.start('translate');
  await using _closed = typeof peer === 'string' ? undefined : peer;
  const results: Result[] = [];
  for (const page of [2 * MiB, 4 * KiB]) {
    progress(`translate: pages of ${page / KiB} KiB`);
    const cases = AREA_COUNTS.flatMap((areas) => {
      const { table, starts } = mapAreas(page, areas);
      return ORDERS.flatMap((order) => casesOf(peer, table, starts, page, order, quick));
    });
    results.push(...(await measure(cases, quick ? { warmUp: 10, measured: 9 } : { warmUp: 40, measured: 41 })));
  }
  return results;
}

/** The library's case, and that of the peer if there is one. */
function casesOf(
  peer: Peer | string,
  table: TranslationTable,
  starts: Float64Array,
  page: number,
  order: Order,
  quick: boolean,
): Case[] {
  const passes = quick ? 4 : 8;
  const what = `${page === 4 * KiB ? '4 KiB' : '2 MiB'} areas, ${starts.length.toLocaleString('en')}, ${order}`;
  const trace = traceOf(starts, page, order);
  const expected = sumOfIovas(table, trace);
  const check = (sum: number, who: string): void => {
    if (sum !== expected) throw new Error(`${who} translated ${what} wrong: ${sum}, not ${expected}`);
  };
  const common = { unit: 'ns', count: passes * trace.length } as const;
  const ours: Case = {
    ...common,
    name: `iovaOf, ${what}`,
    ...(typeof peer === 'string' ? { note: peer } : { to: `C, ${what}` }),
    round: () => {
      let sum = 0;
      const ms = timeWork(() => {
        for (let pass = 0; pass < passes; pass++) sum = sumOfIovas(table, trace);
      });
      check(sum, 'the library');
      return ms;
    },
  };
  if (typeof peer === 'string') return [ours];
  const theirs: Case = {
    ...common,
    name: `C, ${what}`,
    round: async () => {
      const [ns, sum] = await peer.ask(`${page} ${starts.length} ${order} ${passes}`);
      check(sum, 'the peer');
      return ns / 1e6;
    },
  };
  return [ours, theirs];
}

/** What is measured. */
function sumOfIovas(table: TranslationTable, trace: Float64Array): number {
  let sum = 0;
  for (let i = 0; i < trace.length; i++) sum += table.iovaOf(trace[i]);
  return sum;
}

/** Areas with gaps between them; IOVAs without gaps. */
function mapAreas(page: number, areas: number): { table: TranslationTable; starts: Float64Array } {
  const table = new TranslationTable();
  const starts = areaStarts(page, areas);
  starts.forEach((va, i) => table.add(va, page, i * page));
  return { table, starts };
}

/** Addresses in the areas: `sequential` goes through all areas once, upwards. */
function traceOf(starts: Float64Array, page: number, order: Order): Float64Array {
  const trace = new Float64Array(ADDRESSES);
  const random = randomNumbers();
  for (let i = 0; i < trace.length; i++) {
    const area = order === 'random' ? random(starts.length) : Math.floor((i * starts.length) / trace.length);
    trace[i] = starts[area] + random(page);
  }
  return trace;
}
