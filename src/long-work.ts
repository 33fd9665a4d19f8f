/**
 * Long work that lets the event loop go on: how its progress is told and how it is given up, how much of it is done at a
 * time, and several parts at once.
 */
import { isSignal, mustBeObject, noSignal, reading, stopped } from './check.js';
import { DmaError, invalid, isDmaError } from './errors.js';
import { thrown } from './show.js';
import { MiB } from './units.js';
import { now, setImmediate } from './timers.js';

/** How far long work is. */
export interface Progress {
  readonly doneBytes: number;
  readonly totalBytes: number;
  /** How long the rest takes if it goes on as it has, in milliseconds: 0 or more, and `undefined` before anything is done. */
  readonly remainingMs: number | undefined;
}

/** How to do long work. */
export interface LongWorkOptions {
  /** Told how far it is, after each piece. What it throws ends the work, which is undone and rejects with ECANCELED. */
  readonly onProgress?: (progress: Progress) => void;
  /** Gives up, within one piece: what was done is undone, and the promise rejects with ECANCELED. */
  readonly signal?: AbortSignal;
}

/** @throws DmaError EINVAL when these are no options for long work */
export function checkLongWork({ onProgress, signal }: LongWorkOptions, operation: string): void {
  if (onProgress !== undefined && typeof onProgress !== 'function')
    throw invalid(operation, 'onProgress is no function', {
      hint: 'such as ({ doneBytes }) => console.log(doneBytes)',
    });
  if (signal !== undefined && !isSignal(signal)) throw noSignal('signal', signal, operation);
}

/**
 * Takes options apart: those about long work, and the others.
 *
 * @throws DmaError EINVAL when these are no options for long work, or can not be read; ECANCELED when it is given up already
 */
export function longWorkOf<T extends LongWorkOptions>(
  given: T,
  operation: string,
): [work: LongWorkOptions, options: Omit<T, keyof LongWorkOptions>] {
  mustBeObject(given, 'options', operation);
  const { onProgress, signal, ...options } = reading(operation, 'the options', () => ({ ...given }));
  const work = { onProgress, signal };
  checkLongWork(work, operation);
  mustGoOn(signal, operation);
  return [work, options];
}

/** @throws DmaError ECANCELED once `signal` is aborted */
export function mustGoOn(signal: AbortSignal | undefined, operation: string): void {
  if (signal?.aborted !== true) return;
  const cause: unknown = signal.reason;
  if (isDmaError(cause) && cause.operation === ON_PROGRESS) throw cause.with({ operation });
  const why = thrown(cause);
  const own = isDmaError(cause) ? cause.hint : undefined;
  const hint = own ?? 'the signal was aborted; with another one it can be called again';
  throw new DmaError({ code: 'ECANCELED', operation, reason: `given up: ${why}`, hint, cause });
}

/** See {@link Progress.remainingMs}. @param began on the clock of `now()` */
export function remainingMs(began: number, doneBytes: number, totalBytes: number): number | undefined {
  return doneBytes > 0 ? ((now() - began) * Math.max(0, totalBytes - doneBytes)) / doneBytes : undefined;
}

/** What errors of `onProgress` are told as, until it is known what they ended. */
export const ON_PROGRESS = 'onProgress';

/** Is this an error of who gave the work up: by `signal`, or by what `onProgress` threw? */
export function isGivenUp(error: unknown, signal: AbortSignal | undefined): error is DmaError {
  return isDmaError(error, 'ECANCELED') && (signal?.aborted === true || error.operation === ON_PROGRESS);
}

/** Calls `onProgress`. @throws DmaError ECANCELED for what that throws; a DmaError as it is */
export function tellProgress(onProgress: LongWorkOptions['onProgress'], progress: Progress): void {
  try {
    onProgress?.(progress);
  } catch (cause) {
    if (isDmaError(cause)) throw cause;
    const hint = 'what onProgress throws gives the work up: catch there what is not to';
    throw new DmaError({
      code: 'ECANCELED',
      operation: ON_PROGRESS,
      reason: `given up, because onProgress threw: ${thrown(cause)}`,
      hint,
      cause,
    });
  }
}

/** Tells `onProgress` of `totalBytes`. @returns what is called with the bytes that are done so far */
export function progressOf(onProgress: LongWorkOptions['onProgress'], totalBytes: number): (doneBytes: number) => void {
  const began = now();
  return (doneBytes) => {
    tellProgress(onProgress, { doneBytes, totalBytes, remainingMs: remainingMs(began, doneBytes, totalBytes) });
  };
}

/** Long work that is running for one owner, whose end gives it up. */
export class RunningWorks {
  readonly #running = new Map<Promise<unknown>, AbortController>();

  /**
   * Does `work`, which is given up by `signal`, by what `onProgress` throws, and by {@link RunningWorks.end}.
   *
   * @param operation what the caller called: whatever was being done then, it is that call that was given up. `undefined` for
   *   what is a part of another call
   */
  async run<T>(
    signal: AbortSignal | undefined,
    operation: string | undefined,
    work: (signal: AbortSignal, giveUp: (why: unknown) => void) => Promise<T>,
  ): Promise<T> {
    const giveUp = new AbortController();
    const either = signal === undefined ? giveUp.signal : AbortSignal.any([giveUp.signal, signal]);
    const run = work(either, (why) => giveUp.abort(why));
    this.#running.set(run, giveUp);
    try {
      return await run;
    } catch (error) {
      throw operation !== undefined && isGivenUp(error, either) ? error.with({ operation }) : error;
    } finally {
      this.#running.delete(run);
    }
  }

  /** Gives up all that runs, and waits until it is undone. */
  async end(): Promise<void> {
    while (this.#running.size > 0) {
      for (const giveUp of this.#running.values()) giveUp.abort(stopped('stop'));
      await Promise.allSettled(this.#running.keys());
    }
  }
}

/** How long work may keep the event loop, in milliseconds. */
const LONGEST_TURN = 4;

/** Turns of the event loop, for work in this thread that is long in all and short step by step. */
export class Turns {
  #since = now();

  /** Has this turn been long enough? Asking costs a look at the clock. */
  get due(): boolean {
    return now() - this.#since > LONGEST_TURN;
  }

  /** Lets timers and sockets go on. */
  async next(): Promise<void> {
    await new Promise<void>((resolve) => setImmediate(resolve));
    this.#since = now();
  }
}

/**
 * How long a piece of work on another thread should take, in milliseconds. The kernel lets nothing of a process be mapped or
 * unmapped while a piece of its pages is being got, and V8 does that many times when it collects garbage.
 */
const PIECE_MS = 2;
/** What pieces begin with, and the largest. bytes */
const FIRST_PIECE = 4 * MiB;
const LARGEST_PIECE = 1024 * MiB;
/** Pages of IOMMUs and of memory are of this size; pieces are no smaller. bytes */
const SMALLEST_PIECE = 2 * MiB;

/** How large pieces are, by the time that those before them took. */
export class Pace {
  readonly #least: number;
  readonly #ms: number;
  #bytes: number;

  /**
   * @param least bytes, a power of two
   * @param ms how long a piece should take: from half of it to twice as much
   */
  constructor(least = SMALLEST_PIECE, ms = PIECE_MS) {
    this.#least = Math.max(least, SMALLEST_PIECE);
    this.#ms = ms;
    this.#bytes = Math.max(this.#least, FIRST_PIECE);
  }

  /** bytes, a power of two */
  get bytes(): number {
    return this.#bytes;
  }

  /** A piece of `bytes` took so many milliseconds. */
  took(bytes: number, ms: number): void {
    if (ms > 2 * this.#ms) this.#bytes = Math.max(this.#least, this.#bytes / 2);
    else if (bytes >= this.#bytes && ms < this.#ms / 2) this.#bytes = Math.min(LARGEST_PIECE, this.#bytes * 2);
  }
}

/** What {@link inLanes} works on. */
export interface LaneWork {
  /** bytes in all */
  readonly length: number;
  /** How many pieces at once. */
  readonly lanes: number;
  readonly pace: Pace;
  readonly signal?: AbortSignal | undefined;
  readonly operation: string;
  /** Does one piece. */
  piece(offset: number, bytes: number): Promise<void>;
  /** So many bytes are done in all. */
  done?(bytes: number): void;
}

/**
 * Works through `length` bytes piece by piece, several at once. When it throws, no piece is running any more.
 *
 * @throws DmaError ECANCELED; the first thing that a piece, or `done`, throws
 */
export async function inLanes({ length, lanes, pace, signal, operation, piece, done }: LaneWork): Promise<void> {
  let next = 0;
  let finished = 0;
  const failures: unknown[] = [];
  const lane = async (): Promise<void> => {
    while (next < length && failures.length === 0) {
      try {
        mustGoOn(signal, operation);
        const offset = next;
        const bytes = Math.min(pace.bytes, length - offset);
        next += bytes;
        const began = now();
        await piece(offset, bytes);
        pace.took(bytes, now() - began);
        finished += bytes;
        done?.(finished);
      } catch (error) {
        failures.push(error);
      }
    }
  };
  await Promise.all(Array.from({ length: lanes }, lane));
  if (failures.length > 0) throw failures[0];
}

/** A long step of work that can also be done at once: see `steps.ts`. */
export interface LongStep {
  /** Does it at once. */
  now(): void;
  /** Does it while the event loop goes on. */
  later(work: RunningWork): Promise<void>;
}

/** What a step of long work is told about the whole. */
export interface RunningWork {
  /** Give up once it is aborted. Steps that undo do not look at it. */
  readonly signal: AbortSignal | undefined;
  /** So many bytes of `total` are done. */
  readonly report: (done: number, total: number) => void;
}

/**
 * A step between others that are short, and many: later it lets the event loop go on when that is due. One for each piece of
 * work.
 *
 * @param operation what is given up there; absent: what undoes, and goes on
 */
export function pauseStep(operation?: string): LongStep {
  const turns = new Turns();
  return {
    now: () => undefined,
    later: async ({ signal }) => {
      if (operation !== undefined) mustGoOn(signal, operation);
      if (turns.due) await turns.next();
    },
  };
}

/**
 * Drops what is in `length` bytes of memory piece by piece, on another thread. What that leaves goes with the memory, at once:
 * as little as takes less than going to another thread is left to that.
 */
export function dropStep(length: number, pageSize: number, piece: LaneWork['piece']): LongStep {
  const work = { length, lanes: 1, pace: new Pace(pageSize), operation: 'drop', piece };
  return { now: () => undefined, later: async () => (length > LITTLE ? inLanes(work) : undefined) };
}
/** bytes */
const LITTLE = 4 * MiB;

/** Work that is not given up, and that nobody follows. */
export const UNATTENDED: RunningWork = { signal: undefined, report: () => undefined };

/** A step that takes no time worth telling. */
export function briefStep(work: () => void): LongStep {
  return { now: work, later: async () => work() };
}

/** What work reports to, for who asked for it. */
export function followedBy({ onProgress, signal }: LongWorkOptions): RunningWork {
  let report: ((doneBytes: number) => void) | undefined;
  return { signal, report: (done, total) => (report ??= progressOf(onProgress, total))(done) };
}
