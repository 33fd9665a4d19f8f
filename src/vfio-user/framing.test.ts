import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { isDmaError } from '../errors.js';
import { Framer } from './framing.js';
import { HEADER_SIZE, MAX_MESSAGE, put16, put32 } from './messages.js';

function encode(id: number, payload: Uint8Array): Uint8Array {
  const bytes = new Uint8Array(HEADER_SIZE + payload.length);
  put16(bytes, 0, id);
  put16(bytes, 2, 9);
  put32(bytes, 4, bytes.length);
  bytes.set(payload, HEADER_SIZE);
  return bytes;
}

const eproto = (error: unknown): boolean => isDmaError(error, 'EPROTO');

/** Feeds `bytes` as one chunk, as far as there is room at once. */
function feed(framer: Framer, bytes: Uint8Array, fds: readonly number[] = []): void {
  const space = framer.space();
  assert.ok(space.length >= bytes.length);
  space.set(bytes);
  framer.received(bytes.length, fds);
}

test('messages come out whole and in order, however the stream is cut', () => {
  const one = fc.record({ size: fc.nat(300), cuts: fc.nat(50), fds: fc.nat(3) });
  fc.assert(
    fc.property(fc.array(one, { minLength: 1, maxLength: 40 }), fc.nat(), (list, seed) => {
      const framer = new Framer(MAX_MESSAGE);
      const seen: { id: number; payload: Uint8Array; fds: readonly number[] }[] = [];
      const expected: typeof seen = [];
      let random = seed;
      const below = (n: number): number => {
        random = (Math.imul(random, 1103515245) + 12345) >>> 1;
        return random % n;
      };
      let waiting = new Uint8Array();
      const flush = (): void => {
        // What was sent without descriptors may be cut anywhere, and glued to what follows.
        while (waiting.length > 0) {
          const n = 1 + below(waiting.length);
          feed(framer, waiting.subarray(0, n));
          waiting = waiting.slice(n);
          if (below(2) === 0) drain();
        }
      };
      const drain = (): void => {
        for (let message = framer.next(); message !== undefined; message = framer.next())
          seen.push({ id: message.id, payload: message.payload.slice(), fds: message.fds });
      };
      list.forEach(({ size, fds }, id) => {
        const payload = Uint8Array.from({ length: size }, (_, i) => i + id);
        const descriptors = Array.from({ length: fds }, (_, i) => id * 10 + i);
        expected.push({ id, payload, fds: descriptors });
        const bytes = encode(id, payload);
        if (fds === 0) {
          waiting = Buffer.concat([waiting, bytes]);
          return;
        }
        // Descriptors ride on the first byte, and end the chunk they are in; what came before may be glued in front.
        if (below(2) === 0) flush();
        const cut = 1 + below(bytes.length);
        feed(framer, Buffer.concat([waiting, bytes.subarray(0, cut)]), descriptors);
        waiting = bytes.slice(cut);
        if (below(2) === 0) drain();
      });
      flush();
      drain();
      assert.deepEqual(seen, expected);
      assert.deepEqual(framer.takeFds(), []);
    }),
    { numRuns: 300 },
  );
});

test('a size that is impossible is refused from the header, before anything is allocated for it', () => {
  for (const size of [0, 15, MAX_MESSAGE + 1, 0xffffffff]) {
    const framer = new Framer(MAX_MESSAGE);
    const bytes = encode(1, new Uint8Array(16));
    put32(bytes, 4, size);
    feed(framer, bytes);
    assert.throws(() => framer.next(), eproto, `${size}`);
    assert.ok(framer.space().length <= 65536);
  }
});

test('the buffer grows as bytes arrive, not as they are announced, and no further than a message', () => {
  const framer = new Framer(MAX_MESSAGE);
  const bytes = encode(1, new Uint8Array(MAX_MESSAGE - HEADER_SIZE).fill(7));
  feed(framer, bytes.subarray(0, 100));
  assert.equal(framer.next(), undefined);
  assert.ok(framer.space().length <= 65536);
  let at = 100;
  while (at < bytes.length) {
    const space = framer.space();
    assert.ok(space.length > 0 && space.length <= MAX_MESSAGE + 65536);
    const n = Math.min(space.length, bytes.length - at);
    space.set(bytes.subarray(at, at + n));
    framer.received(n, []);
    at += n;
    if (at < bytes.length) assert.equal(framer.next(), undefined);
  }
  assert.equal(framer.next()?.payload.at(-1), 7);
});

test('descriptors in the middle of a message are refused, and can be closed', () => {
  const bytes = encode(1, new Uint8Array(100));
  for (const cut of [1, 15, 16, 50]) {
    const framer = new Framer(MAX_MESSAGE);
    feed(framer, bytes.subarray(0, cut), [3]);
    const rest = bytes.subarray(cut);
    framer.space().set(rest);
    assert.throws(() => framer.received(rest.length, [4, 5]), eproto, `cut at ${cut}`);
    assert.deepEqual(framer.takeFds(), [3, 4, 5]);
  }
});

test('descriptors of a message that is not complete can be closed', () => {
  const framer = new Framer(MAX_MESSAGE);
  feed(framer, encode(1, new Uint8Array(10)).subarray(0, 12), [8, 9]);
  assert.equal(framer.next(), undefined);
  assert.deepEqual(framer.takeFds(), [8, 9]);
});
