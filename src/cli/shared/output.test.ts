import assert from 'node:assert/strict';
import { Writable } from 'node:stream';
import { test } from 'node:test';
import { Output } from './output.js';

/** A terminal of so many columns, and what was written to it. */
function terminal(columns: number): {
  readonly stream: Writable & { isTTY: boolean; columns: number };
  said(): string;
} {
  let said = '';
  const stream = new Writable({
    decodeStrings: false,
    write: (text: string, _encoding, done) => {
      said += text;
      done();
    },
  });
  return { stream: Object.assign(stream, { isTTY: true, columns }), said: () => said };
}

test('a line that replaces itself is never wrapped, and is taken away', () => {
  const { stream, said } = terminal(12);
  {
    using live = new Output(false, { stdout: stream, stderr: stream }).live();
    live.show('100 commands/s, 2 MiB/s');
    live.show('short');
  }
  assert.equal(said(), `\r100 command\rshort      \r${' '.repeat(5)}\r`);
});
