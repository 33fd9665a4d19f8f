/** Clocks. */
import { createRequire } from 'node:module';

/** CLOCK_THREAD_CPUTIME_ID (include/uapi/linux/time.h). */
const THREAD_CPU_TIME = 3;

/**
 * The milliseconds of work of this thread so far, so that other programs on the machine do not count; the time that goes by
 * where the system does not tell. For what never waits.
 */
export const workClock: () => number = openWorkClock() ?? (() => performance.now());

function openWorkClock(): (() => number) | undefined {
  if (process.platform !== 'linux') return undefined;
  try {
    const koffi = createRequire(import.meta.url)('koffi') as typeof import('koffi');
    const read = koffi.load(null).func('int clock_gettime(int, void *)') as (id: number, into: Uint32Array) => number;
    // struct timespec of a 64-bit system: seconds and nanoseconds, whose upper halves are 0.
    const words = new Uint32Array(4);
    return () => (read(THREAD_CPU_TIME, words) === 0 ? words[0] * 1e3 + words[2] / 1e6 : NaN);
  } catch {
    return undefined;
  }
}
