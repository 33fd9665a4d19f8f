import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { NvmeHost, type HostQueue } from '../../../../test/fakes/vfio-user/nvme-host.js';
import { ADMIN, FEATURE } from '../../../nvme/commands.js';

/** After so many completions, or after 25 ms. */
const LEAST = 8;
const COALESCED = (LEAST - 1) | (255 << 8);

/** A host with two queue pairs that counts interrupts by vector. */
async function bench(): Promise<{ nvme: NvmeHost; queues: HostQueue[]; counts: number[] }> {
  const nvme = await new NvmeHost().enable();
  const queues = [await nvme.createQueue(1), await nvme.createQueue(2)];
  const counts = [0, 0, 0];
  nvme.host.onInterrupt = (vector) => {
    counts[vector]++;
  };
  return { nvme, queues, counts };
}

const set = (nvme: NvmeHost, feature: number, value: number): Promise<number> =>
  nvme.status({ opcode: ADMIN.SET_FEATURES, cdw10: feature, cdw11: value });

/** Reads `count` times, one after the other. */
async function reads(nvme: NvmeHost, queue: HostQueue, count: number): Promise<void> {
  const page = nvme.pages();
  for (let n = 0; n < count; n++) assert.equal((await nvme.read(queue, 0, 1, page)).status, 0);
}

describe('NVMe interrupt coalescing', () => {
  it('gives one interrupt for several completions of I/O queues, for vectors that are not excepted', async () => {
    const { nvme, queues, counts } = await bench();
    const [one, two] = queues;
    await reads(nvme, one, 64);
    assert.equal(counts[1], 64);
    assert.equal(await set(nvme, FEATURE.COALESCING, COALESCED), 0);
    await set(nvme, FEATURE.VECTOR, 2 | (1 << 16));
    counts.fill(0);
    await reads(nvme, one, 64);
    await reads(nvme, two, 16);
    // By count, and now and then by time where the machine is busy.
    assert.ok(counts[1] < 64, `${counts[1]} interrupts`);
    assert.equal(counts[2], 16);
    // Those of the admin queue are told one by one.
    counts.fill(0);
    for (let n = 0; n < 9; n++) await nvme.identify(1);
    assert.equal(counts[0], 9);
    nvme.close();
  });

  it('tells of too few when the time is over, or when it is switched off', async () => {
    const { nvme, queues, counts } = await bench();
    const [one] = queues;
    assert.equal(await set(nvme, FEATURE.COALESCING, 255 | (1 << 8)), 0);
    await reads(nvme, one, 1);
    await nvme.until(() => counts[1] === 1);
    assert.equal(await set(nvme, FEATURE.COALESCING, 255 | (255 << 8)), 0);
    await reads(nvme, one, 1);
    assert.equal(await set(nvme, FEATURE.COALESCING, 255), 0);
    assert.equal(counts[1], 2);
    // Without a time nothing waits.
    await reads(nvme, one, 3);
    assert.equal(counts[1], 5);
    nvme.close();
  });

  it('tells nothing of queues that a reset took', async () => {
    const { nvme, queues, counts } = await bench();
    assert.equal(await set(nvme, FEATURE.COALESCING, 255 | (255 << 8)), 0);
    await reads(nvme, queues[0], 1);
    await nvme.disable();
    const before = counts[1];
    await new Promise((resolve) => setTimeout(resolve, 40));
    assert.equal(counts[1], before);
    nvme.close();
  });
});
