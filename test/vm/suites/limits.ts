/** The limits of control groups: the tests beside the source, which are skipped where no groups can be made. Here they can. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { cgroupForTest } from '../../shared/cgroups.js';
import { MiB } from '../../../src/units.js';
import '../../../src/eal-cgroups.test.js';

for (const [controller, limit] of [
  ['hugetlb', 'hugetlb.2MB.max'],
  ['memory', 'memory.max'],
] as const)
  test(`a group that limits ${controller} can be made, so that no test is skipped`, () => {
    const group = cgroupForTest(controller, { [limit]: 64 * MiB });
    assert.ok(typeof group !== 'string', typeof group === 'string' ? group : '');
    group.giveBack();
  });
