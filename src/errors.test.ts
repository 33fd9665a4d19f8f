import assert from 'node:assert/strict';
import { test } from 'node:test';
import { DmaError, ERRNO, errorCode, invalid, isDmaError, undoAll, withUndo } from './errors.js';
import { Range } from './ranges.js';

test('names and numbers belong together', () => {
  for (const [name, number] of Object.entries(ERRNO)) assert.equal(errorCode(number), name);
  assert.deepEqual([errorCode(0), errorCode(9999)], ['EIO', 'EIO']);
  // EWOULDBLOCK and EDEADLOCK are other names of numbers that are there; 41 and 58 belong to nobody.
  const missing = Array.from({ length: 133 }, (_, n) => n + 1).filter((n) => errorCode(n) === 'EIO' && n !== ERRNO.EIO);
  assert.deepEqual(missing, [41, 58]);
  const names = { EREMOTEIO: 121, ENODATA: 61, EUCLEAN: 117, ESTALE: 116, ENOTSUP: 95, EHWPOISON: 133, ENOBUFS: 105 };
  for (const [name, number] of Object.entries(names)) assert.equal(errorCode(number), name);
  assert.equal(new Set(Object.values(ERRNO)).size, Object.keys(ERRNO).length);
});

test('the message has every part, and each part is a property', () => {
  const cause = new Error('below');
  const error = new DmaError({
    code: 'EEXIST',
    operation: 'dmaMap',
    reason: 'it overlaps',
    range: new Range(0x1000, 0x1000),
    device: 'vdev:a',
    hint: 'unmap it',
    cause,
    undo: [new Error('stuck')],
  });
  const text = 'dmaMap: it overlaps [0x1000, 0x2000) on vdev:a; undoing it failed too: Error: stuck (hint: unmap it)';
  assert.equal(error.message, text);
  assert.deepEqual([error.name, error.code, error.errno, error.cause], ['DmaError', 'EEXIST', 17, cause]);
  assert.equal(String(error), `DmaError: ${text}`);
  const plain = invalid('dmaMap', 'no');
  assert.deepEqual([plain.message, plain.errno, 'cause' in plain, plain.undo], ['dmaMap: no', 22, false, []]);
});

test('with: the same error with other parts', () => {
  const error = new DmaError({ code: 'EIO', errno: 133, operation: 'ioctl', reason: 'odd', hint: 'h' });
  const named = error.with({ device: 'vdev:a', operation: 'dmaMap' });
  assert.deepEqual(
    [named.code, named.errno, named.device, named.hint, named.reason],
    ['EIO', 133, 'vdev:a', 'h', 'odd'],
  );
  assert.deepEqual([error.with({ code: 'ENOMEM' }).errno, error.with({ code: 'ENOMEM', errno: 5 }).errno], [12, 5]);
  assert.equal(error.device, undefined);
});

test('isDmaError', () => {
  const error = invalid('x', 'y');
  assert.ok(isDmaError(error) && isDmaError(error, 'EINVAL'));
  for (const other of [
    isDmaError(error, 'EIO'),
    isDmaError(new Error('EINVAL')),
    isDmaError({ code: 'EINVAL' }),
    isDmaError(null),
  ])
    assert.equal(other, false);
});

test('undoAll runs every step in order, and withUndo tells what failed', () => {
  const ran: number[] = [];
  const steps = [1, 2, 3].map((step) => () => {
    ran.push(step);
    if (step !== 2) throw new Error(`step ${step}`);
  });
  const undo = undoAll(steps);
  assert.deepEqual(
    [ran, undo.map(String)],
    [
      [1, 2, 3],
      ['Error: step 1', 'Error: step 3'],
    ],
  );
  const error = invalid('dmaMap', 'no');
  assert.equal(withUndo(error, 'other', []), error);
  assert.deepEqual(withUndo(withUndo(error, 'other', [1]), 'other', [2]).undo, [1, 2]);
  for (const thrown of [new TypeError('boom'), 'boom']) {
    const wrapped = withUndo(thrown, 'dmaMap', []);
    assert.deepEqual([wrapped.code, wrapped.message, wrapped.cause], ['EIO', 'dmaMap: boom', thrown]);
  }
});
