import assert from 'node:assert/strict';
import { test } from 'node:test';
import { fuzzNvme } from '../../../../test/fuzz/nvme-fuzzer.js';

test('the served NVMe controller survives a hostile host', async () => {
  const report = await fuzzNvme({ inputs: 16_000, seed: 1 });
  // The attacks get somewhere: commands are carried out, refused, and the controller is brought to give up.
  for (const [what, count] of Object.entries(report)) assert.ok(count > 0, what);
});
