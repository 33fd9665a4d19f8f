/**
 * Long work that does not block the event loop: its progress, its cancellation, the size of its pieces, and running
 * several at once.
 */
import { isSignal, mustBeObject, noSignal, reading, stopped } from './check.js';
import { DmaError, invalid, isDmaError } from './errors.js';
import { thrown } from './show.js';
import { MiB } from './units.js';
import { now, setImmediate } from './timers.js';

/** The progress of long work. */
export interface Progress {
  readonly doneBytes: number;
  readonly totalBytes: number;
  /** Estimated milliseconds for the rest at the present speed, 0 or more; `undefined` before anything is done. */
  readonly remainingMs: number | undefined;
}

/** Options of long work. */
export interface LongWorkOptions {
  /** Called after each piece. An exception cancels the work: it is undone, and the promise rejects with ECANCELED. */
  readonly onProgress?: (progress: Progress) => void;
  /** Cancels the work within one piece: it is undone, and the promise rejects with ECANCELED. */
  readonly signal?: AbortSignal;
}

/** @throws DmaError EINVAL for invalid options of long work */
export function checkLongWork({ onProgress, signal }: LongWorkOptions, operation: string): void {
  if (onProgress !== undefined && typeof onProgress !== 'function')
    throw invalid(operation, 'onProgress is not a function', {
      hint: 'such as ({ doneBytes }) => console.log(doneBytes)',
    });
  if (signal !== undefined && !isSignal(signal)) throw noSignal('signal', signal, operation);
}

/**
 * Separates the options of long work from the others.
 *
 * @throws DmaError EINVAL if the options of long work are invalid or can not be read; ECANCELED if the signal is
 * aborted already
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
  const hint = own ?? 'the signal was aborted; call it again with a new signal';
  throw new DmaError({ code: 'ECANCELED', operation, reason: `given up: ${why}`, hint, cause });
}

/** See {@link Progress.remainingMs}. @param began on the clock of `now()` */
export function remainingMs(began: number, doneBytes: number, totalBytes: number): number | undefined {
  return doneBytes > 0 ? ((now() - began) * Math.max(0, totalBytes - doneBytes)) / doneBytes : undefined;
}

/** The operation of errors of `onProgress`, until the cancelled call is known. */
export const ON_PROGRESS = 'onProgress';

/** Is this the error of a cancellation, by `signal` or an exception of `onProgress`? */
export function isGivenUp(error: unknown, signal: AbortSignal | undefined): error is DmaError {
  return isDmaError(error, 'ECANCELED') && (signal?.aborted === true || error.operation === ON_PROGRESS);
}

/** Calls `onProgress`. @throws DmaError ECANCELED for an exception in it; a DmaError is passed on */
export function tellProgress(onProgress: LongWorkOptions['onProgress'], progress: Progress): void {
  try {
    onProgress?.(progress);
  } catch (cause) {
    if (isDmaError(cause)) throw cause;
    const hint = 'an exception in onProgress cancels the work: catch it there to continue';
    throw new DmaError({
      code: 'ECANCELED',
      operation: ON_PROGRESS,
      reason: `cancelled, because onProgress threw: ${thrown(cause)}`,
      hint,
      cause,
    });
  }
}

/** Reports progress of `totalBytes` to `onProgress`. @returns a function to call with the bytes done so far */
export function progressOf(onProgress: LongWorkOptions['onProgress'], totalBytes: number): (doneBytes: number) => void {
  const began = now();
  return (doneBytes) => {
    tellProgress(onProgress, { doneBytes, totalBytes, remainingMs: remainingMs(began, doneBytes, totalBytes) });
  };
}

/** Long work in progress for one owner; ending the owner cancels it. */
export class RunningWorks {
  readonly #running = new Map<Promise<unknown>, AbortController>();

  /**
   * Runs `work`. It is cancelled by `signal`, by an exception in `onProgress`, and by {@link RunningWorks.end}.
   *
   * @param operation the caller's operation, named in the error of a cancellation whatever step was running;
   * `undefined` for a part of another call
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

  /** Cancels all work, and waits until it is undone. */
  async end(): Promise<void> {
    while (this.#running.size > 0) {
      for (const giveUp of this.#running.values()) giveUp.abort(stopped('stop'));
      await Promise.allSettled(this.#running.keys());
    }
  }
}

/** How long work may block the event loop, in milliseconds. */
const LONGEST_TURN = 4;

/** Lets the event loop run during long work in this thread that has many short steps. */
export class Turns {
  #since = now();

  /** Has this turn taken long enough? Reads the clock. */
  get due(): boolean {
    return now() - this.#since > LONGEST_TURN;
  }

  /** Lets timers and sockets run. */
  async next(): Promise<void> {
    await new Promise<void>((resolve) => setImmediate(resolve));
    this.#since = now();
  }
}

/**
 * Milliseconds that a piece of work on another thread should take. While pages of a process are populated, the kernel
 * blocks all mapping and unmapping in it, which V8 does often during garbage collection.
 */
const PIECE_MS = 2;
/** Size of the first piece, and of the largest, in bytes. */
const FIRST_PIECE = 4 * MiB;
const LARGEST_PIECE = 1024 * MiB;
/** Smallest piece in bytes: the size of large pages of IOMMUs and memory. */
const SMALLEST_PIECE = 2 * MiB;

/** Chooses the size of pieces by the time that earlier ones took. */
export class Pace {
  readonly #least: number;
  readonly #ms: number;
  #bytes: number;

  /**
   * @param least bytes, a power of two
   * @param ms intended time of a piece; it may take half to twice as long
   */
  constructor(least = SMALLEST_PIECE, ms = PIECE_MS) {
    this.#least = Math.max(least, SMALLEST_PIECE);
    this.#ms = ms;
    this.#bytes = Math.max(this.#least, FIRST_PIECE);
  }

  /** Size of the next piece in bytes, a power of two. */
  get bytes(): number {
    return this.#bytes;
  }

  /** Records that a piece of `bytes` took `ms` milliseconds. */
  took(bytes: number, ms: number): void {
    if (ms > 2 * this.#ms) this.#bytes = Math.max(this.#least, this.#bytes / 2);
    else if (bytes >= this.#bytes && ms < this.#ms / 2) this.#bytes = Math.min(LARGEST_PIECE, this.#bytes * 2);
  }
}

/** Work of {@link inLanes}. */
export interface LaneWork {
  /** bytes in all */
  readonly length: number;
  /** How many pieces run at once. */
  readonly lanes: number;
  readonly pace: Pace;
  readonly signal?: AbortSignal | undefined;
  readonly operation: string;
  /** Does one piece. */
  piece(offset: number, bytes: number): Promise<void>;
  /** Called with the total of bytes done. */
  done?(bytes: number): void;
}

/**
 * Works through `length` bytes in pieces, several at once. When it throws, no piece is running any more.
 *
 * @throws DmaError ECANCELED; the first error of a piece, or of `done`
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

/** A long step of work that can run synchronously or asynchronously: see `steps.ts`. */
export interface LongStep {
  /** Runs it synchronously. */
  now(): void;
  /** Runs it without blocking the event loop. */
  later(work: RunningWork): Promise<void>;
}

/** What a step knows about the whole work. */
export interface RunningWork {
  /** Cancel when it is aborted. Undo steps ignore it. */
  readonly signal: AbortSignal | undefined;
  /** Reports `done` of `total` bytes. */
  readonly report: (done: number, total: number) => void;
}

/**
 * A step between many short steps: in asynchronous work it lets the event loop run if that is due. One per work.
 *
 * @param operation the operation to cancel there; absent for undo steps, which continue
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
 * Drops the contents of `length` bytes of memory in pieces, on another thread. The rest is freed with the memory
 * itself; small memory is left to that entirely, because it is faster than using another thread.
 */
export function dropStep(length: number, pageSize: number, piece: LaneWork['piece']): LongStep {
  const work = { length, lanes: 1, pace: new Pace(pageSize), operation: 'drop', piece };
  return { now: () => undefined, later: async () => (length > LITTLE ? inLanes(work) : undefined) };
}
/** Bytes that are not worth another thread. */
const LITTLE = 4 * MiB;

/** Work without cancellation or progress. */
export const UNATTENDED: RunningWork = { signal: undefined, report: () => undefined };

/** A step that takes negligible time. */
export function briefStep(work: () => void): LongStep {
  return { now: work, later: async () => work() };
}

/** Connects work to the caller's options. */
export function followedBy({ onProgress, signal }: LongWorkOptions): RunningWork {
  let report: ((doneBytes: number) => void) | undefined;
  return { signal, report: (done, total) => (report ??= progressOf(onProgress, total))(done) };
}
