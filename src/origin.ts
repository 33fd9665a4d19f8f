/** Where in the program something was made, for reports of what was forgotten. */

import { HERE } from './here.js';

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
 * What to note: every place, none, or by default some, at a cost that does not count: the first {@link FIRST}, and from then
 * on one of {@link SAMPLE}. A program that maps in a loop does not pay for each, and what it forgot shows up all the same.
 */
export class OriginNotes {
  readonly #all: boolean | undefined;
  #asked = 0;

  /** @param all true: every place; false: none; `undefined`: some */
  constructor(all: boolean | undefined) {
    this.#all = all;
  }

  /** Where the program is now, when that is to be noted; see {@link captureOrigin}. */
  note(below: (...args: never[]) => unknown): Origin | undefined {
    const asked = this.#asked++;
    return (this.#all ?? (asked < FIRST || asked % SAMPLE === 0)) ? captureOrigin(below) : undefined;
  }
}

const FIRST = 1000;
const SAMPLE = 64;

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
