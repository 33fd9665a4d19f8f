/**
 * Measures cases against each other. All cases of one call take turns, one round each, forwards and then backwards, so that
 * whatever else the machine does hits all of them alike; and the ratio of two cases is taken round by round.
 */

import { workClock } from './clock.js';

/** What a value is in: things per second, time per thing, (counting bytes) throughput, or bytes of memory per thing. */
export type Unit = '/s' | 'ns' | 'us' | 'GB/s' | 'B';

/**
 * The ratio that is wanted at most: a number, or so many times the share that another case has of the time of the one that is
 * compared with. That is how a goal is told in terms of what the kernel alone takes in the same run. `most` is the value in `unit`, also
 * of a case that is compared with another one.
 */
export type Goal = number | { readonly times: number; readonly of: string } | { readonly most: number };

/** One thing to measure. */
export interface Case {
  readonly name: string;
  readonly unit: Exclude<Unit, 'B'>;
  /** How many things one round does: calls, look-ups or, for GB/s, bytes. */
  readonly count: number;
  /** Does one round. @returns the milliseconds that its `count` things took; preparations are left out */
  round(): number | Promise<number>;
  /** Name of the case that this one is compared with. */
  readonly to?: string;
  /** What the ratio to that one is wanted to be at most; without one, the value in `unit`. */
  readonly goal?: Goal;
  /** A remark, such as why there is no case to compare it with. */
  readonly note?: string;
  /** What it depends on besides Node.js, such as `Linux 7.3.4`. */
  readonly versions?: string;
}

/** A result. Values are in `unit`, over all rounds. */
export interface Result {
  readonly name: string;
  readonly unit: Unit;
  readonly median: number;
  readonly min: number;
  readonly max: number;
  /** How many times the time of `to` one thing takes, whatever the unit: 1 is the same, 2 takes twice as long. */
  readonly ratio?: { readonly to: string; readonly value: number; readonly min: number; readonly max: number };
  /** What the ratio, or the median (without a ratio, or if the case says so), is wanted to be at most. */
  readonly goal?: { readonly value: number; readonly met: boolean };
  readonly note?: string;
  readonly versions?: string;
}

/** How much to measure. */
export interface Effort {
  /** Whether to measure only for a few seconds in all. */
  readonly quick: boolean;
  /** Told what is being done. */
  readonly progress: (text: string) => void;
}

/** Rounds that count, and those before them that only warm up. */
export interface Rounds {
  readonly warmUp: number;
  readonly measured: number;
}

/** Measures all `cases`, interleaved. Results are in the order of the cases. */
export async function measure(cases: readonly Case[], { warmUp, measured }: Rounds): Promise<Result[]> {
  const times = new Map<string, number[]>(cases.map(({ name }) => [name, []]));
  for (let round = 0; round < warmUp + measured; round++) {
    for (const each of round % 2 === 0 ? cases : cases.toReversed()) {
      const ms = await each.round();
      if (round >= warmUp) times.get(each.name)?.push(ms / each.count);
    }
  }
  return cases.map((each) => {
    const theirs = times.get(each.to ?? '');
    return summary({ ...each, goal: goalOf(each.goal, times, theirs) }, times.get(each.name) ?? [], theirs);
  });
}

/** What {@link summary} takes; `undefined` when the case that it is told by was not measured. */
function goalOf(
  goal: Goal | undefined,
  times: ReadonlyMap<string, readonly number[]>,
  theirs: readonly number[] | undefined,
): number | { readonly most: number } | undefined {
  if (typeof goal !== 'object' || 'most' in goal) return goal;
  const share = times.get(goal.of);
  if (share === undefined || theirs === undefined) return undefined;
  return goal.times * spread(share.map((ms, round) => ms / theirs[round])).median;
}

/**
 * What was measured of one case.
 *
 * @param own milliseconds for one thing, of each round
 * @param theirs the same of what it is compared with
 */
export function summary(
  {
    name,
    unit,
    to,
    goal,
    note,
    versions,
  }: Omit<Case, 'round' | 'count' | 'goal'> & {
    readonly goal?: number | { readonly most: number };
  },
  own: readonly number[],
  theirs?: readonly number[],
): Result {
  const values = spread(own.map((ms) => inUnit(ms, unit)));
  const isCompared = to !== undefined && theirs !== undefined;
  const ratio = isCompared
    ? ratioOf(
        to,
        own.map((ms, round) => ms / theirs[round]),
      )
    : undefined;
  return {
    name,
    unit,
    ...values,
    ...(ratio === undefined ? {} : { ratio }),
    ...(goal === undefined ? {} : { goal: checked(goal, values.median, ratio?.value) }),
    ...(note === undefined ? {} : { note }),
    ...(versions === undefined ? {} : { versions }),
  };
}

function checked(
  goal: number | { readonly most: number },
  median: number,
  ratio: number | undefined,
): NonNullable<Result['goal']> {
  if (typeof goal === 'object') return { value: goal.most, met: median <= goal.most };
  return { value: goal, met: (ratio ?? median) <= goal };
}

/** The milliseconds of this thread's work that `work` takes; see `workClock`. */
export function timeWork(work: () => void): number {
  const start = workClock();
  work();
  return workClock() - start;
}

/** The milliseconds that go by while `work` is done. */
export function time(work: () => void): number {
  const start = performance.now();
  work();
  return performance.now() - start;
}

/** As {@link time}, for what is not done at once. */
export async function timeAsync(work: () => Promise<unknown>): Promise<number> {
  const start = performance.now();
  await work();
  return performance.now() - start;
}

/** @param ms milliseconds for one thing, or for one byte */
function inUnit(ms: number, unit: Exclude<Unit, 'B'>): number {
  switch (unit) {
    case '/s':
      return 1e3 / ms;
    case 'us':
      return ms * 1e3;
    case 'ns':
      return ms * 1e6;
    case 'GB/s':
      return 1e-6 / ms;
  }
}

function ratioOf(to: string, ratios: readonly number[]): NonNullable<Result['ratio']> {
  const { median, min, max } = spread(ratios);
  return { to, value: median, min, max };
}

function spread(values: readonly number[]): { median: number; min: number; max: number } {
  const sorted = values.toSorted((a, b) => a - b);
  const middle = (sorted.length - 1) / 2;
  return {
    median: (sorted[Math.floor(middle)] + sorted[Math.ceil(middle)]) / 2,
    min: sorted[0],
    max: sorted[sorted.length - 1],
  };
}
