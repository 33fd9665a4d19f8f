import assert from 'node:assert/strict';
import { once } from 'node:events';
import { describe, it } from 'node:test';
import { isMainThread, Worker, workerData } from 'node:worker_threads';
import { isDmaError } from '../../errors.js';
import { openPlatform } from '../../platform/open.js';
import { Holders } from './holders.js';
import { RobustLock } from './robust-lock.js';

const { kernel, limitation } = openPlatform();

/** What a worker of this file is told. Words: the lock, the counter. */
interface Orders {
  readonly words: SharedArrayBuffer;
  readonly holders: SharedArrayBuffer;
  readonly rounds: number;
  readonly dies: boolean;
}

function count({ words, holders, rounds, dies }: Orders): void {
  const shared = new Int32Array(words);
  const lock = new RobustLock(shared, 0, Holders.attach(kernel, holders), 'a test');
  for (let i = 0; i < rounds; i++) {
    lock.lock('count');
    // Two steps that are lost if two threads are in here.
    const before = shared[1];
    for (let j = 0; j < 20; j++) Atomics.load(shared, 2);
    shared[1] = before + 1;
    if (dies && i === rounds - 1) process.exit(0);
    lock.unlock();
  }
}

function tests(): void {
  void describe('RobustLock', { skip: limitation ?? false }, () => {
    void it('lets one in at a time, also when threads end inside', async () => {
      const words = new SharedArrayBuffer(12);
      const holders = Holders.create(kernel);
      const orders = { words, holders: holders.buffer as SharedArrayBuffer, rounds: 20_000 };
      const ends = [true, false, true].map((dies) =>
        once(new Worker(new URL(import.meta.url), { workerData: { ...orders, dies } satisfies Orders }), 'exit'),
      );
      count({ ...orders, dies: false });
      await Promise.all(ends);
      assert.equal(new Int32Array(words)[1], 80_000);
      // Two died inside; the last one may have left it behind.
      new RobustLock(new Int32Array(words), 0, holders, 'a test').lock('end');
    });

    void it('is taken from the dead, which is told, and from numbers that nobody has', async () => {
      const words = new SharedArrayBuffer(12);
      const shared = new Int32Array(words);
      const holders = Holders.create(kernel);
      const lock = new RobustLock(shared, 0, holders, 'a test');
      const orders: Orders = { words, holders: holders.buffer as SharedArrayBuffer, rounds: 1, dies: true };
      await once(new Worker(new URL(import.meta.url), { workerData: orders }), 'exit');
      const [dead] = [...holders.gone()];
      for (const owner of [dead, -1, 12345, 2 ** 31 - 1, holders.mine]) {
        shared[0] = owner;
        assert.equal(lock.lock('test'), true);
        assert.equal(shared[0], holders.mine);
        lock.unlock();
        assert.equal(shared[0], 0);
        assert.equal(lock.lock('test'), false);
        lock.unlock();
      }
    });

    void it('names an owner that lives and keeps it too long', (t) => {
      const words = new Int32Array(new SharedArrayBuffer(4));
      const holders = Holders.create(kernel);
      const lock = new RobustLock(words, 0, holders, 'the pool x');
      let clock = 0;
      t.mock.method(performance, 'now', () => clock);
      t.mock.method(Atomics, 'wait', () => ((clock += 0.05), 'timed-out'));
      t.mock.method(holders, 'isAlive', () => true);
      t.mock.method(holders, 'describe', () => 'process 5 (slow)');
      words[0] = 9;
      const named = (error: unknown): boolean =>
        isDmaError(error, 'ETIMEDOUT') &&
        error.reason === 'the lock of the pool x was held for 10000 ms by process 5 (slow)';
      assert.throws(() => lock.lock('pool.get'), named);
      assert.equal(words[0], 9);
    });

    void it('leaves a lock alone that was overwritten meanwhile', () => {
      const words = new Int32Array(new SharedArrayBuffer(4));
      const lock = new RobustLock(words, 0, Holders.create(kernel), 'a test');
      lock.lock('test');
      words[0] = 9;
      lock.unlock();
      assert.equal(words[0], 9);
    });
  });
}

if (isMainThread) tests();
else count(workerData as Orders);
