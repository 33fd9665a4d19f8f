import assert from 'node:assert/strict';
import { test } from 'node:test';
import { measure, type Case } from './harness.js';

/** A case whose rounds take these milliseconds in turn. */
function taking(name: string, times: readonly number[], more: Partial<Case> = {}): Case {
  let round = 0;
  return { name, unit: 'us', count: 1, round: () => times[round++ % times.length], ...more };
}

test('a goal is for the ratio, or the median without one, or told by the share of another case', async () => {
  const cases = [
    taking('theirs', [10, 20]),
    taking('kernel', [5, 10]),
    taking('met', [12, 24], { to: 'theirs', goal: 1.2 }),
    taking('missed', [13, 26], { to: 'theirs', goal: 1.2 }),
    taking('share, met', [5.2, 10.4], { to: 'theirs', goal: { times: 1.05, of: 'kernel' } }),
    taking('share, missed', [5.5, 11], { to: 'theirs', goal: { times: 1.05, of: 'kernel' } }),
    taking('share of what was not measured', [1], { to: 'theirs', goal: { times: 1.05, of: 'nothing' } }),
    taking('share without anything to compare with', [1], { goal: { times: 1.05, of: 'kernel' } }),
    taking('median, met', [0.3], { goal: 300 }),
    taking('median, missed', [0.31], { goal: 300 }),
    taking('median beside a ratio, met', [0.3, 0.3], { to: 'theirs', goal: { most: 300 } }),
    taking('median beside a ratio, missed', [0.31, 0.31], { to: 'theirs', goal: { most: 300 } }),
  ];
  const results = await measure(cases, { warmUp: 2, measured: 4 });
  assert.deepEqual(
    results.map(({ goal }) => goal),
    [
      undefined,
      undefined,
      { value: 1.2, met: true },
      { value: 1.2, met: false },
      { value: 0.525, met: true },
      { value: 0.525, met: false },
      undefined,
      undefined,
      { value: 300, met: true },
      { value: 300, met: false },
      { value: 300, met: true },
      { value: 300, met: false },
    ],
  );
});
