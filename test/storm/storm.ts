/** What a storm is: rounds of abuse, after which a process has to have no more than before. */
import type { Random } from '../shared/random.js';
import type { Figures } from './figures.js';

/** What a storm is made with. */
export interface Weather {
  /** All chance comes from here, so that a seed repeats a run. */
  readonly random: Random;
  /** Collects garbage at once; `undefined` without --expose-gc. */
  readonly gc: (() => void) | undefined;
}

/** A storm that has begun. */
export interface Storm {
  /** One round. Rounds are numbered from 0; a round that finds something wrong throws. */
  round(number: number): void | Promise<void>;
  /** Ends all that still runs, so that what a process has can be counted. The storm may go on afterwards. */
  calm?(): Promise<void>;
  /** Gives back all it has. */
  close(): Promise<void>;
  /** What happened so far, for the table: kinds and how often. Each has to happen. */
  readonly seen: Readonly<Record<string, number>>;
  /** What grows for good and rightly so, beyond noise; see where it is said. */
  readonly allowed?: () => Partial<Figures>;
}

/** What the file of a storm exports. */
export interface StormFile {
  begin(weather: Weather): Promise<Storm>;
}

/** How a storm is run. */
export interface StormEntry {
  /** The file in storms/. */
  readonly name: string;
  /** What it does, for the table and `--list`. */
  readonly what: string;
  /** Rounds of the whole, and of the short form. */
  readonly rounds: number;
  readonly short: number;
  /** Does it depend on when garbage is collected? It is then also run with --expose-gc, and collects at random moments. */
  readonly gc?: boolean;
  /** The limit of open descriptors it runs under. */
  readonly descriptors?: number;
}
