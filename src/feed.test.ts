import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Feed } from './feed.js';

test('everybody hears what is told from the call on, in order, and what was kept after the end', async () => {
  const feed = new Feed<number | undefined>();
  feed.tell(0);
  const [a, b] = [feed.listen(), feed.listen()];
  const first = a.next();
  const second = a.next();
  for (const n of [1, undefined, 3]) feed.tell(n);
  feed.end();
  assert.deepEqual(await first, { done: false, value: 1 });
  assert.deepEqual(await second, { done: false, value: undefined });
  assert.deepEqual(await a.next(), { done: false, value: 3 });
  assert.equal((await a.next()).done, true);
  const heard = [];
  for await (const n of b) heard.push(n);
  assert.deepEqual(heard, [1, undefined, 3]);
  assert.equal((await feed.listen().next()).done, true);
});

test('who does not take them loses the oldest', async () => {
  const feed = new Feed<number>();
  const slow = feed.listen();
  for (let n = 0; n < 1000; n++) feed.tell(n);
  assert.equal((await slow.next()).value, 744);
});

test('leaving takes effect at once: before the first, while waiting, and in the middle', async () => {
  const feed = new Feed<number>();
  const never = feed.listen();
  await never.return();
  const waits = feed.listen();
  const next = waits.next();
  await waits.return();
  assert.equal((await next).done, true);
  const middle = feed.listen();
  feed.tell(1);
  feed.tell(2);
  for await (const n of middle) {
    assert.equal(n, 1);
    break;
  }
  for (const left of [never, waits, middle]) assert.equal((await left.next()).done, true);
  await assert.rejects(feed.listen().throw(new Error('mine')), /mine/);
});
