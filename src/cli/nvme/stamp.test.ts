import assert from 'node:assert/strict';
import { test } from 'node:test';
import { stamp, wrongStamp } from './stamp.js';

test('a stamped unit is right at its place only, and wrong once any byte differs', () => {
  const unit = new Uint8Array(512);
  for (const lba of [0, 1, 2 ** 40 + 5]) {
    stamp(unit, lba, 3);
    assert.equal(wrongStamp(unit, lba), undefined);
    assert.match(wrongStamp(unit, lba + 1) ?? '', new RegExp(`written to LBA ${lba}$`));
    for (const at of [0, 31, 32, 39, 40, 511]) {
      unit[at] ^= 1;
      assert.match(wrongStamp(unit, lba) ?? '', /SHA-256/);
      unit[at] ^= 1;
    }
  }
  assert.match(wrongStamp(new Uint8Array(512), 0) ?? '', /zero/);
});

test('another seed, and another place, give other bytes', () => {
  const units = [
    [1, 1],
    [1, 2],
    [2, 1],
  ].map(([lba, seed]) => {
    const unit = new Uint8Array(4096);
    stamp(unit, lba, seed);
    return Buffer.from(unit.subarray(40)).toString('base64');
  });
  assert.equal(new Set(units).size, 3);
});
