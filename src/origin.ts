/** Where in the program something was made, for reports of what was forgotten. */

/** A place in the program; the text is made only when asked for. */
export interface Origin {
  readonly stack?: string;
}

/** Where the program is now. Costs about a microsecond: frames are kept, the text is made on first use. */
export function captureOrigin(): Origin {
  const origin: Origin = {};
  Error.captureStackTrace(origin, captureOrigin);
  return origin;
}

const LIBRARY = new URL('.', import.meta.url).href;

/**
 * The innermost place of a stack that is not in this library, such as `main (app.js:3:7)`; the innermost of all when every
 * one is; `an unknown place` when there is none.
 */
export function placeOf(origin: Origin | undefined): string {
  const frames = (origin?.stack?.split('\n') ?? [])
    .map((line) => line.trim())
    .filter((line) => line.startsWith('at '))
    .map((line) => line.slice('at '.length));
  const outside = frames.find((frame) => !frame.includes(LIBRARY) || frame.includes('.test.'));
  return outside ?? frames[0] ?? 'an unknown place';
}
