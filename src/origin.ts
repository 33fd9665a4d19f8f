/** Where in the program something was created, for reports of forgotten objects. */

import { HERE } from './here.js';

/**
 * A place in the program. The text is made on first use, by the program's own `Error.prepareStackTrace` if it has one.
 */
export interface Origin {
  readonly stack?: unknown;
}

/** Frames kept: those of the library, and at least one of the program. */
const DEPTH = 5;

/**
 * Records the current place in the program. Costs some microseconds, more with each frame, so only a few are kept; the
 * text is made on first use. The place may be unknown if the program has changed or frozen V8's stack functions.
 *
 * @param below a function on the stack: its frame and those it called are omitted
 * @param depth frames to keep, for deeper calls of the library
 */
export function captureOrigin(below: (...args: never[]) => unknown = captureOrigin, depth = DEPTH): Origin {
  const origin: Origin = {};
  const { stackTraceLimit } = Error;
  try {
    Error.stackTraceLimit = depth;
    Error.captureStackTrace(origin, below);
  } catch {
    // Frozen, or the function is missing: no place is recorded.
  }
  try {
    Error.stackTraceLimit = stackTraceLimit;
  } catch {
    // Frozen: it was not changed either.
  }
  return origin;
}

/**
 * Decides which places to record: all, none, or by default some, at negligible cost: the first {@link FIRST}, then one
 * in {@link SAMPLE}. A program that maps in a loop does not pay for each mapping, and what it forgets is still
 * reported.
 */
export class OriginNotes {
  readonly #all: boolean | undefined;
  #asked = 0;

  /** @param all true: every place; false: none; `undefined`: some */
  constructor(all: boolean | undefined) {
    this.#all = all;
  }

  /** The current place, if it is to be recorded; see {@link captureOrigin}. */
  note(below: (...args: never[]) => unknown): Origin | undefined {
    const asked = this.#asked++;
    return (this.#all ?? (asked < FIRST || asked % SAMPLE === 0)) ? captureOrigin(below) : undefined;
  }
}

const FIRST = 1000;
const SAMPLE = 64;

const LIBRARY = new URL('.', HERE).href;

/**
 * The innermost frame outside this library and Node, such as `main (app.js:3:7)`; else the innermost frame; `an unknown
 * place` if there is none.
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

/** The stack as text; empty if there is none. */
function stackOf(origin: Origin | undefined): string {
  try {
    const stack = origin?.stack;
    return typeof stack === 'string' ? stack : '';
  } catch {
    return '';
  }
}
