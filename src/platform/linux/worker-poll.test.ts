import assert from 'node:assert/strict';
import { setTimeout as sleep } from 'node:timers/promises';
import { describe, it } from 'node:test';
import { loadLibc } from './libc.js';
import { openPlatform } from '../open.js';
import { pollInWorker } from './worker-poll.js';

const libc = loadLibc();
const { events, files } = openPlatform();

/** Waits for what comes from the event loop. */
async function until(isSo: () => boolean): Promise<void> {
  for (let i = 0; i < 2000 && !isSo(); i++) await sleep(1);
  assert.ok(isSo());
}

describe('the poll of worker threads', { skip: typeof libc === 'string' ? libc : false }, () => {
  const poll = typeof libc === 'string' ? () => assert.fail() : pollInWorker(libc);
  const readable = { readable: true, writable: false };

  it('does not take a new descriptor for the one that had its number', async () => {
    const [first, second] = [events.create(), events.create()];
    const told: string[] = [];
    let fresh: { readonly fd: number; close(): void } | undefined;
    // Both are found ready in one look; the first that is told replaces the other by one that is not ready.
    const replace = (own: number, other: number, handle: () => { close(): void }) => (): void => {
      told.push('first');
      events.take(own);
      if (fresh !== undefined) return;
      handle().close();
      files.close(other);
      const fd = events.create();
      assert.equal(fd, other, 'the number is used again');
      const { close } = poll(fd, readable, () => told.push('fresh'));
      fresh = { fd, close };
    };
    events.signal(first);
    events.signal(second);
    const one = poll(
      first,
      readable,
      replace(first, second, () => two),
    );
    const two = poll(
      second,
      readable,
      replace(second, first, () => one),
    );
    await until(() => told.length > 0);
    await sleep(5);
    assert.deepEqual(told, ['first']);
    events.signal(fresh?.fd ?? -1);
    await until(() => told.includes('fresh'));
    fresh?.close();
    for (const handle of [one, two]) handle.close();
    for (const fd of [first, second]) files.close(fd);
  });

  it('loses nothing of who has the number now when a handle is closed late, or twice', async () => {
    const old = events.create();
    const late = poll(old, readable, () => assert.fail('nothing happens to it'));
    files.close(old);
    const fd = events.create();
    assert.equal(fd, old, 'the number is used again');
    let calls = 0;
    const handle = poll(fd, readable, () => {
      calls++;
      events.take(fd);
    });
    late.close();
    late.close();
    events.signal(fd);
    await until(() => calls > 0);
    assert.equal(calls, 1);
    handle.close();
    files.close(fd);
  });
});
