import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { Turns } from './turns.js';

describe('turns', () => {
  it('are one at a time, and go round those who ask', async () => {
    const turns = new Turns();
    const order: string[] = [];
    let running = 0;
    const ask = (asker: string, name: string): Promise<void> =>
      turns.run(asker, async () => {
        assert.equal(++running, 1);
        await new Promise(setImmediate);
        order.push(name);
        running--;
        if (name === 'a2') throw new Error('no');
      });
    const all = ['a1', 'a2', 'a3', 'a4', 'b1', 'b2', 'c1'].map((name) => ask(name.slice(0, 1), name));
    const results = await Promise.allSettled(all);
    assert.deepEqual(order, ['a1', 'a2', 'b1', 'c1', 'a3', 'b2', 'a4']);
    assert.deepEqual(
      results.map(({ status }) => status === 'rejected'),
      [false, true, false, false, false, false, false],
    );
    await ask('d', 'd1');
  });

  it('are given up while they are waited for', async () => {
    const turns = new Turns();
    const abort = new AbortController();
    let end: () => void = () => undefined;
    const first = turns.run('a', () => new Promise<void>((resolve) => (end = resolve)), abort.signal);
    const second = turns.run('a', () => assert.fail('it was given up'), abort.signal);
    const third = turns.run('b', async () => 3);
    abort.abort(new Error('enough'));
    await assert.rejects(second, /enough/);
    await assert.rejects(
      turns.run('a', async () => 4, abort.signal),
      /enough/,
    );
    end();
    await first;
    assert.equal(await third, 3);
  });
});
