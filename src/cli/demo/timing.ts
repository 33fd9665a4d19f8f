/** Measures times. */

/** The result of `work`, and its time in microseconds, to a tenth. */
export function timed<T>(work: () => T): [value: T, microseconds: number] {
  const started = performance.now();
  const value = work();
  return [value, Math.round((performance.now() - started) * 1e4) / 10];
}

/** As {@link timed}, for asynchronous work. */
export async function timedAsync<T>(work: () => Promise<T>): Promise<[value: T, microseconds: number]> {
  const started = performance.now();
  const value = await work();
  return [value, Math.round((performance.now() - started) * 1e4) / 10];
}
