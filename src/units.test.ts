import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import {
  ADDRESS_LIMIT,
  alignDown,
  alignUp,
  formatSize,
  GiB,
  hex,
  isAddress,
  isMultiple,
  isPowerOfTwo,
  KiB,
  MiB,
  parseSize,
  TiB,
} from './units.js';

const address = fc.maxSafeInteger().map(Math.abs);

test('addresses', () => {
  for (const value of [0, 1, 2 ** 53 - 1]) assert.ok(isAddress(value));
  for (const value of [-1, 2 ** 53, 0.5, NaN, Infinity]) assert.equal(isAddress(value), false);
  assert.equal(ADDRESS_LIMIT, 2 ** 53);
});

test('powers of two', () => {
  const powers = new Set(Array.from({ length: 53 }, (_, i) => 2 ** i));
  for (const power of powers) {
    assert.ok(isPowerOfTwo(power));
    for (const near of [power - 1, power + 1]) assert.equal(isPowerOfTwo(near), powers.has(near), `${near}`);
  }
  for (const value of [0, -2, 0.5, 2 ** 53, NaN, Infinity]) assert.equal(isPowerOfTwo(value), false);
});

test('alignment is exact up to 2^53', () => {
  fc.assert(
    fc.property(address, fc.integer({ min: 0, max: 40 }), (value, bits) => {
      const granule = 2 ** bits;
      const down = alignDown(value, granule);
      assert.ok(down % granule === 0 && down <= value && value - down < granule);
      const up = alignUp(value, granule);
      assert.ok(up === down || up === down + granule);
      assert.equal(up === value, value % granule === 0);
    }),
  );
});

test('multiples up to 2^53, also of what is not a power of two', () => {
  for (const unit of [1, 3, 4 * KiB, 5 * MiB, 2 ** 52, 2 ** 52 + 1])
    for (const value of [0, 1, unit - 1, unit, unit + 1, 3 * unit, 2 ** 53 - 1, 2 ** 53 - 4 * KiB, 2 ** 52 - 1])
      if (value < ADDRESS_LIMIT) assert.equal(isMultiple(value, unit), value % unit === 0, `${value} of ${unit}`);
});

test('hex', () => {
  assert.deepEqual([hex(0), hex(0x7f00c0000000), hex(2 ** 53 - 1)], ['0x0', '0x7f00c0000000', '0x1fffffffffffff']);
});

test('sizes that are written', () => {
  for (const [text, bytes] of [
    ['0', 0],
    ['4096', 4096],
    ['0x1000', 4096],
    ['4k', 4 * KiB],
    ['4KB', 4 * KiB],
    ['64MiB', 64 * MiB],
    [' 2 M ', 2 * MiB],
    ['1.5g', 1.5 * GiB],
    ['1tib', TiB],
    ['17B', 17],
    ['8191t', 8191 * TiB],
    ['1PiB', 1024 * TiB],
  ] as const)
    assert.equal(parseSize(text), bytes, text);
  for (const text of [
    '',
    'k',
    '-1',
    '1e3',
    '4x',
    '0x',
    '0xg',
    '1.2.3',
    '0.1k',
    '8192t',
    '8p',
    '9007199254740992',
    'NaN',
    '1 2',
  ])
    assert.equal(parseSize(text), undefined, text);
});

test('sizes for people, and back', () => {
  assert.deepEqual([0, 1, 17, 1024, 1536, 64 * MiB, 2.5 * GiB, 3 * TiB].map(formatSize), [
    '0 bytes',
    '1 byte',
    '17 bytes',
    '1 KiB',
    '1.5 KiB',
    '64 MiB',
    '2.5 GiB',
    '3 TiB',
  ]);
  for (const unit of [KiB, MiB, GiB, TiB])
    for (const count of [1, 2, 1023]) assert.equal(parseSize(formatSize(count * unit)), count * unit);
});
