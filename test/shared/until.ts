/** Waiting for what comes by itself, for tests. */
import { setTimeout as sleep } from 'node:timers/promises';

/** milliseconds; far beyond what the slowest machine takes. A test that needs it has failed. */
const NEVER = 120_000;

/**
 * Waits until `condition` holds, however long that takes on a busy machine.
 *
 * @param what it is, for the failure of the test
 */
export async function until(
  condition: () => boolean | Promise<boolean>,
  what = String(condition),
  timeoutMs = NEVER,
): Promise<void> {
  const deadline = performance.now() + timeoutMs;
  while (!(await condition())) {
    if (performance.now() > deadline) throw new Error(`waited ${timeoutMs} ms in vain: ${what}`);
    await sleep(5);
  }
}
