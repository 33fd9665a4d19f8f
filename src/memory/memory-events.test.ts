import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { DmaError, isDmaError } from '../errors.js';
import { Range } from '../ranges.js';
import { MiB, type Va } from '../units.js';
import { MemoryHandlers, MemoryValidators, type MemoryChange, type MemoryHandler } from './memory-events.js';

const change: MemoryChange = {
  heap: 'h',
  range: new Range(0x1000 as Va, 0x1000),
  areas: [],
  pageSize: 4096,
  node: 0,
};

/** A handler that notes what it is told, as `a.grow`; and refuses some. */
function noting(
  log: string[],
  name: string,
  refuses?: 'grow' | 'shrink',
  error: unknown = new Error('no'),
): MemoryHandler {
  const note = (what: 'grow' | 'grown' | 'shrink' | 'shrunk') => (): void => {
    log.push(`${name}.${what}`);
    if (what === refuses) throw error;
  };
  return { grow: note('grow'), grown: note('grown'), shrink: note('shrink'), shrunk: note('shrunk') };
}

describe('handlers of memory events', () => {
  it('are told in order, until they are disposed', () => {
    const handlers = new MemoryHandlers();
    const log: string[] = [];
    handlers.add(noting(log, 'a'));
    const b = handlers.add(noting(log, 'b'));
    handlers.ask('grow', change);
    handlers.tell('grown', change);
    b[Symbol.dispose]();
    b[Symbol.dispose]();
    handlers.ask('shrink', change);
    handlers.tell('shrunk', change);
    assert.deepEqual(log, ['a.grow', 'b.grow', 'a.grown', 'b.grown', 'a.shrink', 'a.shrunk']);
  });

  it('when one refuses, those before it are told the opposite, in reverse', () => {
    for (const [question, opposite] of [
      ['grow', 'shrunk'],
      ['shrink', 'grown'],
    ] as const) {
      const handlers = new MemoryHandlers();
      const log: string[] = [];
      handlers.add(noting(log, 'a'));
      handlers.add(noting(log, 'b'));
      handlers.add(noting(log, 'c', question));
      handlers.add(noting(log, 'd'));
      assert.throws(
        () => handlers.ask(question, change),
        (error) => isDmaError(error, 'ECANCELED') && /refused: no/.test(error.message),
      );
      assert.deepEqual(log, [`a.${question}`, `b.${question}`, `c.${question}`, `b.${opposite}`, `a.${opposite}`]);
    }
  });

  it('what is taken back is told to all, in reverse; an error of their own comes through', () => {
    const handlers = new MemoryHandlers();
    const log: string[] = [];
    handlers.add(noting(log, 'a'));
    handlers.add(noting(log, 'b'));
    handlers.ask('grow', change)();
    assert.deepEqual(log, ['a.grow', 'b.grow', 'b.shrunk', 'a.shrunk']);
    const own = new DmaError({ code: 'ENOSPC', operation: 'mine', reason: 'full' });
    handlers.add(noting(log, 'c', 'grow', own));
    assert.throws(() => handlers.ask('grow', change), own);
  });

  it('1.7.1: one that is there already is EEXIST', () => {
    const handlers = new MemoryHandlers();
    const handler = {};
    const added = handlers.add(handler);
    assert.throws(
      () => handlers.add(handler),
      (error) => isDmaError(error, 'EEXIST'),
    );
    added[Symbol.dispose]();
    handlers.add(handler);
  });
});

describe('validators', () => {
  const request = { node: 0, pageSize: 2 * MiB, bytes: 2 * MiB, total: 8 * MiB };
  const allowed = (validators: MemoryValidators, more: Partial<typeof request> = {}): boolean => {
    try {
      validators.check({ ...request, ...more });
      return true;
    } catch (error) {
      assert.ok(isDmaError(error, 'ENOMEM'));
      assert.match(error.message, /strict does not allow/);
      return false;
    }
  };

  it('1.8.2: one with a limit is asked beyond it, for its node', () => {
    const validators = new MemoryValidators();
    const strict = validators.add({ name: 'strict', node: 0, limit: 10 * MiB });
    assert.equal(allowed(validators), true);
    assert.equal(allowed(validators, { bytes: 4 * MiB }), false);
    assert.equal(allowed(validators, { bytes: 4 * MiB, node: 1 }), true);
    strict[Symbol.dispose]();
    assert.equal(allowed(validators, { bytes: 4 * MiB }), true);
  });

  it('one that decides by itself, and those without a name', () => {
    const validators = new MemoryValidators();
    validators.add({ name: 'strict', allows: ({ pageSize }) => pageSize === 2 * MiB });
    assert.equal(allowed(validators), true);
    assert.equal(allowed(validators, { pageSize: 4096 }), false);
    assert.throws(
      () => validators.add({ name: '' }),
      (error) => isDmaError(error, 'EINVAL'),
    );
  });
});
