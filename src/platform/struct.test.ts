import { test } from 'node:test';
import assert from 'node:assert/strict';
import fc from 'fast-check';
import { isDmaError } from '../errors.js';
import { openPlatform } from './open.js';
import { Struct } from './struct.js';

test('members are little-endian, and every store changes its own bytes only', () => {
  const struct = new Struct(24);
  struct.bytes.fill(0xaa);
  struct.set8(0, 0x11).set16(2, 0x2233).set32(4, 0x44556677).set64(8, 0x1f2233_44556677);
  assert.deepEqual(
    [...struct.bytes],
    [0x11, 0xaa, 0x33, 0x22, 0x77, 0x66, 0x55, 0x44, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x1f, 0].concat(
      Array<number>(8).fill(0xaa),
    ),
  );
  assert.deepEqual(
    [struct.u8(0), struct.u16(2), struct.u32(4), struct.u64(8)],
    [0x11, 0x2233, 0x44556677, 0x1f2233_44556677],
  );
  assert.equal(struct.clear(), struct);
  assert.ok(struct.bytes.every((byte) => byte === 0));
});

test('64-bit members are exact below 2^53, wherever they stand on 4 bytes; all ones are 2^64 both ways', () => {
  const struct = new Struct(16);
  fc.assert(
    fc.property(fc.maxSafeNat(), fc.constantFrom(0, 4, 8), (value, at) => {
      struct.clear().set64(at, value);
      assert.equal(new DataView(struct.bytes.buffer).getBigUint64(at, true), BigInt(value));
      assert.equal(struct.u64(at), value);
    }),
  );
  struct.clear().set64(8, 2 ** 64);
  assert.equal(new DataView(struct.bytes.buffer).getBigUint64(8, true), 2n ** 64n - 1n);
  assert.equal(struct.u64(8), 2 ** 64);
});

test('values are cut to the width of their member', () => {
  const struct = new Struct(8);
  struct.set8(0, 0x1ff).set16(2, -1).set32(4, -2);
  assert.deepEqual([struct.u8(0), struct.u16(2), struct.u32(4)], [0xff, 0xffff, 0xfffffffe]);
});

test('what is not a member is refused and changes nothing', () => {
  const struct = new Struct(10);
  assert.equal(struct.bytes.length, 10);
  assert.equal(struct.set16(8, 7).u16(8), 7);
  const refused = (action: () => unknown): void => {
    assert.throws(action, (error) => isDmaError(error, 'EINVAL') && error.operation === 'struct');
  };
  for (const at of [-1, 10, 0.5, NaN, 2 ** 32]) {
    refused(() => struct.u8(at));
    refused(() => struct.set8(at, 1));
  }
  for (const at of [-2, 1, 10, NaN, 2 ** 32]) {
    refused(() => struct.u16(at));
    refused(() => struct.set16(at, 1));
  }
  for (const at of [-4, 2, 8, 12, NaN, 2 ** 32]) {
    refused(() => struct.u32(at));
    refused(() => struct.set32(at, 1));
    refused(() => struct.u64(at));
    refused(() => struct.set64(at, 1));
  }
  refused(() => struct.set64(8, 1));
  assert.deepEqual([...struct.bytes], [0, 0, 0, 0, 0, 0, 0, 0, 7, 0]);
});

test('the bytes do not move', { skip: openPlatform().limitation ?? false }, () => {
  const { memory } = openPlatform();
  const structs = Array.from({ length: 100 }, () => new Struct(8));
  const addresses = structs.map((struct) => memory.addressOf(struct.bytes));
  for (let i = 0; i < 2000; i++) Array.from({ length: 1000 }, (_, j) => ({ j }));
  assert.deepEqual(
    structs.map((struct) => memory.addressOf(struct.bytes)),
    addresses,
  );
});
