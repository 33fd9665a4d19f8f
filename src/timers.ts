/** Node's timers and clock as they were at import, so that tests with fake timers do not stop devices. */
import { setTimeout as sleep } from 'node:timers/promises';

export const { setTimeout, clearTimeout, setInterval, clearInterval, setImmediate, clearImmediate, queueMicrotask } =
  globalThis;
/** `timers/promises.setTimeout` */
export const delay = sleep;
/** `performance.now` */
export const now = performance.now.bind(performance);
/** Milliseconds since 1970, with fractions. */
export const wallClock = (): number => performance.timeOrigin + now();
