/** Where in the program something was made, for reports of what was forgotten. */

import { HERE } from './here.js';
import { now } from './timers.js';

/** A place in the program; the text is made only when asked for. It is whatever the program's own `Error.prepareStackTrace` makes. */
export interface Origin {
  readonly stack?: unknown;
}

/** Frames that are kept: what there is of the library between the program and the call, and one or more of the program. */
const DEPTH = 5;

/**
 * Where the program is now. Costs some microseconds: frames are kept, the text is made on first use. The cost grows with
 * the frames, so that only a few are kept. Where the program has changed or frozen what V8 does there, the place may be unknown.
 *
 * @param below a function that the program is in: its own frame and those inside of it are left out
 * @param depth frames to keep, where the library is deeper than usual
 */
export function captureOrigin(below: (...args: never[]) => unknown = captureOrigin, depth = DEPTH): Origin {
  const origin: Origin = {};
  const { stackTraceLimit } = Error;
  try {
    Error.stackTraceLimit = depth;
    Error.captureStackTrace(origin, below);
  } catch {
    // Frozen, or without the function: there is no place then.
  }
  try {
    Error.stackTraceLimit = stackTraceLimit;
  } catch {
    // Frozen: it was not changed either.
  }
  return origin;
}

/**
 * What to note: every place, none, or by default some, at a cost that does not count: of the first {@link FIRST} those that do not
 * come one on the heels of the other, and one of {@link SAMPLE} in any case. A program that maps in a loop does not pay for each,
 * and what it forgot shows up all the same.
 */
export class OriginNotes {
  readonly #all: boolean | undefined;
  readonly #now: () => number;
  #asked = 0;
  /** When the last of {@link SAMPLE} was asked for, and have those after the one before come quickly? */
  #since = -Infinity;
  #isLoop = false;

  /** @param all true: every place; false: none; `undefined`: some @param clock milliseconds */
  constructor(all: boolean | undefined, clock = now) {
    this.#all = all;
    this.#now = clock;
  }

  /** Where the program is now, when that is to be noted; see {@link captureOrigin}. */
  note(below: (...args: never[]) => unknown): Origin | undefined {
    if (this.#all !== undefined) return this.#all ? captureOrigin(below) : undefined;
    const asked = this.#asked++;
    if (asked % SAMPLE !== 0) return asked < FIRST && !this.#isLoop ? captureOrigin(below) : undefined;
    if (asked < FIRST) {
      const time = this.#now();
      this.#isLoop = time - this.#since < SAMPLE * LOOP_MS;
      this.#since = time;
    }
    return captureOrigin(below);
  }
}

const FIRST = 1000;
const SAMPLE = 64;
/** What comes sooner than this after the one before is of a loop, in milliseconds: some twenty times what a note costs. */
const LOOP_MS = 0.2;

const LIBRARY = new URL('.', HERE).href;

/**
 * The innermost place of a stack that is neither in this library nor in Node, such as `main (app.js:3:7)`; the innermost of
 * all when there is none such; `an unknown place` when there is none at all.
 */
export function placeOf(origin: Origin | undefined): string {
  const frames = stackOf(origin)
    .split('\n')
    .map((line) => line.trim())
    .filter((line) => line.startsWith('at '))
    .map((line) => line.slice('at '.length));
  const outside = frames.find(
    (frame) => (!frame.includes(LIBRARY) && !/(^|\()node:/.test(frame)) || frame.includes('.test.'),
  );
  return outside ?? frames[0] ?? 'an unknown place';
}

/** The stack as text; empty when it is none, or can not be made. */
function stackOf(origin: Origin | undefined): string {
  try {
    const stack = origin?.stack;
    return typeof stack === 'string' ? stack : '';
  } catch {
    return '';
  }
}
