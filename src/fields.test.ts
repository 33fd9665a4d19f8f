import assert from 'node:assert/strict';
import { test } from 'node:test';
import { dmaError } from '../test/shared/errors.js';
import { Fields, type Json } from './fields.js';

test('values of another process are read as what they must be, or not at all', () => {
  const fields = new Fields({ word: 'file', numbers: [1, 2], strings: ['a'], list: [{ n: 3 }], nothing: null }, 'here');
  assert.equal(fields.word('word', ['memfd', 'file']), 'file');
  assert.deepEqual(fields.numbers('numbers'), [1, 2]);
  assert.deepEqual(fields.strings('strings'), ['a']);
  assert.deepEqual(
    fields.list('list').map((each) => each.number('n')),
    [3],
  );
  assert.deepEqual([fields.has('word'), fields.has('nothing'), fields.has('toString')], [true, false, false]);
  const wrong: readonly ((wrong: Fields) => unknown)[] = [
    (wrong) => wrong.word('key', ['memfd', 'file']),
    (wrong) => wrong.numbers('key'),
    (wrong) => wrong.strings('key'),
    (wrong) => wrong.list('key'),
    (wrong) => wrong.objectAt('key'),
    (wrong) => wrong.boolean('key'),
    (wrong) => wrong.number('key'),
  ];
  const values: readonly Json[] = ['socket', [1, -1], [1, 'a'], [[]], -1, 0.5];
  for (const value of values)
    for (const read of wrong)
      assert.throws(() => read(new Fields({ key: value }, 'here')), dmaError('EPROTO', /"key" is not/), String(read));
  assert.throws(() => new Fields({ key: [1, 2, 3] }, 'here').numbers('key', 2), dmaError('EPROTO'));
});
