import assert from 'node:assert/strict';
import { test } from 'node:test';
import { DmaError, isDmaError } from '../../errors.js';
import { Job, type JobOptions, type JobQueue } from './jobs.js';
import { Latencies } from './latencies.js';
import { Workload, type PatternName } from './workload.js';

const BYTES = 512;

/** A queue over a disk in memory. Commands complete in any order, some at each poll. */
class MemoryQueue implements JobQueue {
  readonly disk = new Map<number, Uint8Array>();
  readonly slots = new Uint16Array(64);
  readonly statuses = new Uint16Array(64);
  readonly #memory: Uint8Array;
  readonly #pending: { slot: number; status: number }[] = [];
  #unrung = 0;
  most = 0;
  /** The status of commands for this LBA. */
  bad: number | undefined;

  constructor(memory: Uint8Array) {
    this.#memory = memory;
  }

  get running(): number {
    return this.#pending.length;
  }

  read(slot: number, _nsid: number, lba: number, _blocks: number, iova: number): void {
    const there = this.disk.get(lba);
    this.#memory.subarray(iova - 4096, iova - 4096 + BYTES).set(there ?? new Uint8Array(BYTES));
    this.#add(slot, lba);
  }

  write(slot: number, _nsid: number, lba: number, _blocks: number, iova: number): void {
    this.disk.set(lba, this.#memory.slice(iova - 4096, iova - 4096 + BYTES));
    this.#add(slot, lba);
  }

  #add(slot: number, lba: number): void {
    this.#pending.push({ slot, status: lba === this.bad ? 0x281 : 0 });
    this.#unrung++;
    this.most = Math.max(this.most, this.#pending.length);
  }

  ring(): void {
    this.#unrung = 0;
  }

  poll(): number {
    assert.equal(this.#unrung, 0, 'commands that were submitted but never told');
    let found = 0;
    while (this.#pending.length > 0 && found < 3) {
      const [{ slot, status }] = this.#pending.splice((this.#pending.length * 7) % this.#pending.length, 1);
      this.slots[found] = slot;
      this.statuses[found++] = status;
    }
    return found;
  }
}

function jobOf(pattern: PatternName, more: Partial<JobOptions> = {}, units = 10) {
  const depth = more.depth ?? 8;
  const bytes = new Uint8Array(depth * BYTES);
  const queue = new MemoryQueue(bytes);
  const reads = new Latencies();
  const writes = new Latencies();
  const job = new Job(
    queue,
    new Workload(pattern, units, 50, 5),
    {
      ...{ nsid: 1, firstLba: 100, blocks: 1, bytes: BYTES, depth, rate: undefined, memory: { bytes, iova: 4096 } },
      ...{ verify: false, seed: 1 },
      failure: (status, what) => new DmaError({ code: 'EIO', operation: 'test', reason: `${what}: ${status}` }),
      ...more,
    },
    reads,
    writes,
  );
  return { job, queue, reads, writes };
}

test('the queue is kept full, and what ran comes back at the end', () => {
  const { job, queue, reads, writes } = jobOf('randrw');
  job.begin(0);
  for (let now = 0; now < 100; now++) job.step(now, true);
  assert.equal(queue.most, 8);
  while (job.running > 0) job.step(100, false);
  assert.equal(reads.count, job.readsDone);
  assert.equal(writes.count, job.writesDone);
  assert.ok(job.readsDone > 50 && job.writesDone > 50);
  assert.equal(queue.running, 0);
});

test('a rate is kept', () => {
  const { job } = jobOf('randread', { rate: 100 });
  job.begin(1000);
  for (let now = 1000; now <= 2000; now++) job.step(now, true);
  while (job.running > 0) job.step(2000, false);
  assert.ok(job.readsDone >= 100 && job.readsDone <= 101, `${job.readsDone}`);
});

test('what was written is compared when it is read, and all of it at the end', () => {
  const { job, queue } = jobOf('randrw', { verify: true }, 50);
  job.begin(0);
  for (let now = 0; now < 200; now++) job.step(now, true);
  while (job.running > 0) job.step(200, false);
  const during = job.checked;
  assert.ok(during > 0);
  const all = job.checkAll();
  assert.equal(all, queue.disk.size);
  while (job.unchecked > 0 || job.running > 0) job.step(300, true);
  assert.equal(job.checked, during + all);
});

test('a byte that changed on the disk is found', () => {
  const { job, queue } = jobOf('write', { verify: true }, 20);
  job.begin(0);
  for (let now = 0; now < 20; now++) job.step(now, true);
  while (job.running > 0) job.step(20, false);
  const unit = queue.disk.get(105);
  assert.ok(unit !== undefined);
  unit[300] ^= 4;
  job.checkAll();
  assert.throws(
    () => {
      while (job.unchecked > 0 || job.running > 0) job.step(30, true);
    },
    (error) => isDmaError(error, 'EILSEQ') && /LBA 105 .*SHA-256/.test(error.message),
  );
});

test('a command that fails ends it, and is named', () => {
  const { job, queue } = jobOf('read');
  queue.bad = 104;
  job.begin(0);
  assert.throws(
    () => {
      for (let now = 0; now < 100; now++) job.step(now, true);
    },
    (error) => isDmaError(error, 'EIO') && error.message.includes('read of 1 block at LBA 104: 641'),
  );
  // What came back together with it is back as well.
  assert.equal(job.running, queue.running);
});

test('what came back together with a command that failed has come back, too', () => {
  const { job, queue } = jobOf('read');
  queue.bad = 100;
  job.begin(0);
  job.step(0, true);
  assert.throws(
    () => job.step(1, false),
    (error) => isDmaError(error, 'EIO'),
  );
  while (queue.running > 0) job.step(2, false);
  assert.equal(job.running, 0);
});

test('a command that does not come back is named once it is late', () => {
  const { job, queue } = jobOf('write', { depth: 1 });
  job.begin(0);
  job.step(5, true);
  assert.equal(queue.running, 1);
  assert.equal(job.late(104, 100), undefined);
  assert.equal(job.late(105, 100), 'write of 1 block at LBA 100');
  job.step(106, false);
  assert.equal(job.late(1000, 100), undefined);
});
