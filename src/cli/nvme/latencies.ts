/** How long commands took: what fio's users look at, from a histogram of the runtime. */
import { createHistogram } from 'node:perf_hooks';
import { formatTime } from '../shared/format-time.js';

/** The percentiles that are told. */
const PERCENTILES = [50, 90, 95, 99, 99.9, 99.99] as const;

/** Rows of the picture: powers of two of nanoseconds. */
const BUCKETS = 48;

/** Latencies, in microseconds. */
export interface LatencyDocument {
  readonly mean: number;
  readonly deviation: number;
  readonly least: number;
  readonly most: number;
  /** Within so many microseconds, this percentage of the commands was done. */
  readonly percentiles: readonly { readonly percent: number; readonly within: number }[];
  /** How many commands took less than `below` microseconds, and not less than half of it. */
  readonly histogram: readonly { readonly below: number; readonly commands: number }[];
}

/** Times of commands. Recording one allocates nothing. */
export class Latencies {
  readonly #times = createHistogram({ lowest: 1, highest: 2 ** 42, figures: 3 });
  readonly #buckets = new Float64Array(BUCKETS);

  /** How many were recorded. */
  get count(): number {
    return this.#times.count;
  }

  /** @param ms what `performance.now` says that it took */
  record(ms: number): void {
    const ns = Math.min(2 ** 42, Math.max(1, Math.round(ms * 1e6)));
    this.#times.record(ns);
    this.#buckets[bucketOf(ns)]++;
  }

  /** `undefined` when nothing was recorded. */
  document(): LatencyDocument | undefined {
    const times = this.#times;
    if (times.count === 0) return undefined;
    const us = (ns: number): number => Math.round(ns) / 1000;
    return {
      mean: us(times.mean),
      deviation: us(times.stddev),
      least: us(times.min),
      most: us(times.max),
      percentiles: PERCENTILES.map((percent) => ({ percent, within: us(times.percentile(percent)) })),
      histogram: [...this.#buckets]
        .map((commands, bucket) => ({ below: us(2 ** (bucket + 1)), commands }))
        .filter(({ commands }) => commands > 0),
    };
  }
}

/** n for 2^n to 2^(n+1) less one. */
function bucketOf(ns: number): number {
  return ns < 2 ** 31 ? 31 - Math.clz32(ns) : Math.floor(Math.log2(ns));
}

/** A bar for each row of a histogram, the longest `width` characters. */
export function picture({ histogram }: LatencyDocument, width = 40): string[] {
  const all = histogram.reduce((sum, { commands }) => sum + commands, 0);
  const most = Math.max(...histogram.map(({ commands }) => commands));
  // Rows without commands between others are shown, so that the scale is even.
  const first = Math.log2(histogram[0]?.below ?? 1);
  const last = Math.log2(histogram.at(-1)?.below ?? 1);
  const rows: string[] = [];
  for (let power = first; power < last + 0.5; power++) {
    const row = histogram.find(({ below }) => Math.abs(Math.log2(below) - power) < 0.1);
    const commands = row?.commands ?? 0;
    const bar = '#'.repeat(Math.round((commands / most) * width)) || (commands > 0 ? '.' : '');
    const share = commands === 0 ? '' : `${((commands / all) * 100).toFixed(2)} %`;
    rows.push(`< ${formatTime(2 ** power).padStart(8)}  ${bar.padEnd(width)}  ${share.padStart(8)}`);
  }
  return rows;
}
