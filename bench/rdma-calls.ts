/**
 * What posting a request and polling its completion costs by themselves: on a libibverbs without a device (`peers/fake-verbs.c`),
 * which completes a request while it is posted.
 */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Eal, type Device } from '../src/index.js';
import { verbsDriver } from '../src/entry/rdma.js';
import { loadLibc } from '../src/platform/linux/libc.js';
import { loadLibibverbs } from '../src/platform/rdma/libibverbs.js';
import { linuxVerbs } from '../src/platform/rdma/linux-verbs.js';
import { openPlatform } from '../src/platform/open.js';
import { IBV_SEND_SIGNALED } from '../src/platform/rdma/abi/requests.js';
import { measure, time, type Case, type Effort, type Result } from './harness/harness.js';
import { compilePeer } from './harness/peer.js';

/** Requests of a round, and at once. */
const COUNT = 100_000;
const BATCH = 16;
/** Nanoseconds for a request. */
const GOAL = 300;

export async function benchRdmaCalls({ quick, progress }: Effort): Promise<Result[]> {
  const libc = loadLibc();
  const directory = mkdtempSync(join(tmpdir(), 'anydma-bench-'));
  try {
    const reason = typeof libc === 'string' ? libc : compilePeer('fake-verbs', directory);
    if (typeof libc === 'string' || reason !== undefined) {
      progress(`rdma-calls: left out, ${reason ?? 'no calls of the system'}`);
      return [];
    }
    const verbs = linuxVerbs(libc, (loaded) => loadLibibverbs(loaded, join(directory, 'fake-verbs')));
    await using eal = await Eal.start({ platform: { ...openPlatform(), verbs }, onForgotten: () => undefined });
    const device = await eal.probe('rdma:fake0');
    progress('rdma-calls: post and poll without a device');
    return await measure(casesOf(eal, device), { warmUp: 3, measured: quick ? 5 : 31 });
  } finally {
    rmSync(directory, { recursive: true, force: true });
  }
}

function casesOf(eal: Eal, device: Device): Case[] {
  const rdma = device.use(verbsDriver);
  const memory = eal.external.allocate(4096);
  device.dmaMap(memory);
  const queue = rdma.createCompletionQueue({ entries: 2 * BATCH, events: false, batch: BATCH });
  const pair = rdma.createQueuePair({ completions: queue, sends: BATCH, receives: BATCH });
  const requests = pair.sendRequests(BATCH);
  const lkey = pair.keys.keyOf(memory.va, 64);
  for (let slot = 0; slot < BATCH; slot++) {
    requests.setLocal(slot, memory.va, 64, lkey);
    requests.send(slot, IBV_SEND_SIGNALED);
  }
  const run = (name: string, done: () => number): Case => ({
    name,
    unit: 'ns',
    count: COUNT,
    goal: GOAL,
    round: () =>
      time(() => {
        for (let count = 0; count < COUNT; count += done());
      }),
  });
  return [
    run('post one request and poll its completion', () => {
      pair.post(requests, 0, 1);
      return queue.poll();
    }),
    run(`post ${BATCH} requests at once and poll their completions`, () => {
      pair.post(requests, 0, BATCH);
      return queue.poll();
    }),
    run('poll an empty queue', () => {
      queue.poll();
      return 1;
    }),
  ];
}
