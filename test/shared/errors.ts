/** Assertions about errors, for tests. */
import assert from 'node:assert/strict';
import { DmaError, isDmaError, type ErrorCode } from '../../src/errors.js';

/** For `assert.throws` and `assert.rejects`: a DmaError of this code that says this. */
export function dmaError(code: ErrorCode, says = /(?:)/): (error: unknown) => boolean {
  return (error) => {
    assert.ok(error instanceof DmaError, String(error));
    assert.equal(error.code, code, error.message);
    assert.match(error.message, says);
    return true;
  };
}

/** Asserts that `work` throws a DmaError of this code that says this. */
export function throwsDma(code: ErrorCode, work: () => unknown, says?: RegExp): void {
  assert.throws(work, dmaError(code, says));
}

/** As {@link throwsDma}, of this operation. */
export function throwsDmaOf(code: ErrorCode, operation: string, work: () => unknown, says?: RegExp): void {
  assert.throws(work, (error) => {
    assert.ok(dmaError(code, says)(error));
    assert.equal((error as DmaError).operation, operation, String(error));
    return true;
  });
}

/** The code of the DmaError that `work` throws; `undefined` when it throws none. */
export function codeOf(work: () => unknown): ErrorCode | undefined {
  try {
    work();
    return undefined;
  } catch (error) {
    assert.ok(isDmaError(error), String(error));
    return error.code;
  }
}
