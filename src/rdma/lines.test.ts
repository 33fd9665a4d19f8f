import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import * as fc from 'fast-check';
import { Lines } from './lines.js';

describe('lines', () => {
  it('are the same however they are cut', () => {
    fc.assert(
      fc.property(fc.array(fc.string({ maxLength: 40 })), fc.array(fc.nat(20)), (texts, cuts) => {
        const all = texts.map((text) => text.replaceAll('\n', ' '));
        let bytes = Buffer.from(all.map((text) => `${text}\n`).join(''));
        const lines = new Lines(1000);
        const got: string[] = [];
        const take = (part: Buffer): void => {
          assert.equal(
            lines.take(part, (line) => got.push(line.toString()) > 0),
            'fine',
          );
        };
        for (const cut of cuts) {
          take(bytes.subarray(0, cut));
          bytes = bytes.subarray(cut);
        }
        take(bytes);
        assert.deepEqual(got, all);
        assert.equal(lines.isOpen, false);
      }),
    );
  });

  it('cost what they are long, one byte at a time too', () => {
    const length = 2 ** 17;
    const lines = new Lines(length);
    const before = process.memoryUsage().arrayBuffers;
    const byte = Buffer.from('x');
    const take = (): string => lines.take(byte, () => true);
    const taken = Array.from({ length }, take);
    assert.ok(taken.every((each) => each === 'fine'));
    assert.equal(lines.isOpen, true);
    assert.equal(take(), 'too long');
    lines.clear();
    assert.equal(lines.isOpen, false);
    assert.ok(process.memoryUsage().arrayBuffers - before < 8 * length);
  });

  it('end where the callback says so, and are no longer than they may', () => {
    const got: string[] = [];
    const lines = new Lines(3);
    const take = (text: string, goesOn = true): string =>
      lines.take(Buffer.from(text), (line) => {
        got.push(line.toString());
        return goesOn;
      });
    assert.equal(take('abc\nabcd\n'), 'too long');
    assert.equal(take('ab\nc\n', false), 'fine');
    assert.deepEqual(got, ['abc', 'ab']);
  });
});
