/** For tests of what happens when garbage is collected. */
import assert from 'node:assert/strict';
import { setImmediate as turn, setTimeout as delay } from 'node:timers/promises';
import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';

/** Collects garbage, now. */
export function collect(): void {
  setFlagsFromString('--expose-gc');
  const gc: unknown = runInNewContext('gc');
  assert.ok(typeof gc === 'function');
  Reflect.apply(gc, undefined, []);
}

/** Collects garbage until `done`. Fails when it is not done in the end. */
export async function collected(done: () => boolean): Promise<void> {
  for (let round = 0; round < 200 && !done(); round++) {
    // What a promise or the stack of this turn still holds goes with the next one.
    await (round < 3 ? turn() : delay(5));
    collect();
  }
  await turn();
  assert.ok(done(), 'something is not collected');
}
