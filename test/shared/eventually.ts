/** Waiting for what comes by itself, for tests. */
import assert from 'node:assert/strict';
import { setTimeout as sleep } from 'node:timers/promises';

/** Far beyond what the slowest machine takes. A test that needs it has failed. */
const NEVER = 120_000;

/**
 * Waits until `condition` holds, however long that takes on a busy machine.
 *
 * @param what it is, for the failure of the test
 */
export async function until(condition: () => boolean, what = String(condition)): Promise<void> {
  const deadline = performance.now() + NEVER;
  while (!condition()) {
    assert.ok(performance.now() < deadline, `this does not come: ${what}`);
    await sleep(5);
  }
}
