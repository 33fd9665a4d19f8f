import { spawnSync } from 'node:child_process';
import { test } from 'node:test';
import assert from 'node:assert/strict';
import fc from 'fast-check';
import { isDmaError } from '../../errors.js';
import { openPlatform } from '../open.js';
import { MappedRegisters } from './registers.js';

const refused = (action: () => unknown): void => {
  assert.throws(action, (error) => isDmaError(error, 'EINVAL') && error.operation === 'registers');
};

test('registers are little-endian words at their offsets', () => {
  const buffer = new ArrayBuffer(64);
  const bytes = new Uint8Array(buffer);
  const registers = new MappedRegisters(buffer, 16, 32);
  assert.equal(registers.size, 32);
  registers.write32(4, 0x11223344);
  assert.deepEqual([...bytes.subarray(20, 24)], [0x44, 0x33, 0x22, 0x11]);
  registers.write64(8, 0x1f2233_44556677);
  assert.deepEqual([...bytes.subarray(24, 32)], [0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x1f, 0]);
  assert.equal(registers.read32(12), 0x1f2233);
  bytes.fill(0xff);
  assert.equal(registers.read32(28), 0xffffffff);
  registers.write32(0, -1);
  assert.equal(registers.read32(0), 0xffffffff);
  registers.write32(0, 2 ** 32 + 5);
  assert.equal(registers.read32(0), 5);
  registers.flush(0);
});

test('64-bit values below 2^53 are exact both ways; larger ones are ERANGE', () => {
  const buffer = new ArrayBuffer(8);
  const value64 = new BigUint64Array(buffer);
  const registers = new MappedRegisters(buffer);
  const check = (value: number): void => {
    registers.write64(0, value);
    assert.equal(value64[0], BigInt(value));
    assert.equal(registers.read64(0), value);
  };
  for (const value of [0, 1, 2 ** 31, 2 ** 32 - 1, 2 ** 32, 2 ** 52, 2 ** 53 - 1]) check(value);
  fc.assert(fc.property(fc.maxSafeNat(), check));
  fc.assert(
    fc.property(fc.bigInt(2n ** 53n, 2n ** 64n - 1n), (value) => {
      value64[0] = value;
      assert.throws(
        () => registers.read64(0),
        (error) => isDmaError(error, 'ERANGE') && /readBig64\(0x0\)/.test(error.hint ?? ''),
      );
    }),
  );
  fc.assert(
    fc.property(fc.bigInt(0n, 2n ** 64n - 1n), (value) => {
      registers.writeBig64(0, value);
      assert.equal(value64[0], value);
      assert.equal(registers.readBig64(0), value);
    }),
  );
  for (const value of [-1n, 2n ** 64n, 5]) refused(() => registers.writeBig64(0, value as bigint));
  for (const value of [-1, 0.5, 2 ** 53, NaN, Infinity]) refused(() => registers.write64(0, value));
});

test('an access outside, or across registers, is refused', () => {
  const registers = new MappedRegisters(new ArrayBuffer(64), 8, 20);
  for (const offset of [-4, 1, 2, 20, 24, 2 ** 32, 0.5, NaN, Infinity]) {
    refused(() => registers.read32(offset));
    refused(() => registers.write32(offset, 0));
    refused(() => registers.flush(offset));
  }
  for (const offset of [-8, 4, 16, 24, NaN]) {
    refused(() => registers.read64(offset));
    refused(() => registers.write64(offset, 0));
    refused(() => registers.readBig64(offset));
    refused(() => registers.writeBig64(offset, 0n));
  }
  const says = (offset: number, hint: RegExp): void =>
    assert.throws(
      () => registers.read32(offset),
      (error) => isDmaError(error, 'EINVAL') && hint.test(`${error.reason}: ${error.hint}`),
    );
  says(2, /at 0x2 of .*: it has to be inside, at a multiple of 4 bytes/);
  says(-4, /at -4 of /);
  for (const [offset, length] of [
    [4, 8],
    [0, 6],
    [0, 72],
    [64, 8],
    [-8, 8],
    [8, -4],
  ])
    refused(() => new MappedRegisters(new ArrayBuffer(64), offset, length));
});

test('registers of a detached view are refused', () => {
  const { memory } = openPlatform();
  const va = memory.map({ length: memory.pageSize });
  const buffer = memory.view(va, memory.pageSize);
  const registers = new MappedRegisters(buffer);
  registers.write32(8, 1);
  memory.detach(buffer);
  memory.unmap(va, memory.pageSize);
  assert.equal(registers.size, 0);
  refused(() => registers.read32(8));
  refused(() => registers.write32(8, 1));
  refused(() => registers.read64(8));
  refused(() => registers.write64(8, 1));
});

/** An offset that no stack frame and no object of V8 has a field at, so that an access is recognised by it. */
const OFFSET = 0x3a98;

/**
 * Loops that are optimised, and printed by V8 as machine code. `naked` is what goes wrong without {@link MappedRegisters}:
 * it shows that the test can see a narrowed access.
 */
const LOOPS = `
  const buffer = new ArrayBuffer(65536);
  const view = new Uint32Array(buffer);
  const registers = new MappedRegisters(buffer);
  view[${OFFSET / 4}] = 1;
  function naked(n) { let sum = 0; for (let i = 0; i < n; i++) if (view[${OFFSET / 4}] & 1) sum++; return sum; }
  function loopRead32(n) { let sum = 0; for (let i = 0; i < n; i++) if (registers.read32(${OFFSET}) & 1) sum++; return sum; }
  function loopFlush(n) { for (let i = 0; i < n; i++) registers.flush(${OFFSET}); }
  function loopRead64(n) { let sum = 0; for (let i = 0; i < n; i++) if (registers.read64(${OFFSET}) & 1) sum++; return sum; }
  function loopReadBig64(n) { let sum = 0; for (let i = 0; i < n; i++) if (registers.readBig64(${OFFSET}) & 1n) sum++; return sum; }
  function loopWriteBig64(n) { for (let i = 0; i < n; i++) registers.writeBig64(${OFFSET}, 1n); }
  function loopWrite32(n) { for (let i = 0; i < n; i++) registers.write32(${OFFSET}, i & 1); }
  function loopWrite64(n) { for (let i = 0; i < n; i++) registers.write64(${OFFSET}, i & 1); }
  for (const loop of [naked, loopRead32, loopFlush, loopRead64, loopReadBig64, loopWrite32, loopWrite64, loopWriteBig64])
    for (let i = 0; i < 400; i++) loop(3000);`;

test('optimised code makes one access of the full width', (t) => {
  if (process.arch !== 'x64') return t.skip('the instructions are known for x64 only');
  const url = new URL('./registers.js', import.meta.url).href;
  const script = `import { MappedRegisters } from ${JSON.stringify(url)};${LOOPS}`;
  const flags = ['--print-opt-code', '--print-opt-code-filter=*', '--input-type=module', '-e', script];
  const child = spawnSync(process.execPath, flags, { encoding: 'latin1', maxBuffer: 64 * 1024 * 1024 });
  if (child.status !== 0) return t.skip(`this node prints no machine code: ${child.stderr.slice(0, 200)}`);

  /** The instructions that touch the register, by function. */
  const accesses = new Map<string, string[]>();
  let name = '';
  for (const line of child.stdout.split('\n')) {
    name = /^name = (\w+)/.exec(line)?.[1] ?? name;
    const instruction = /^0x[0-9a-f]+ +[0-9a-f]+ +[0-9a-f]+ +(.*\+0x3a98\].*)$/.exec(line)?.[1];
    if (instruction !== undefined) accesses.set(name, [...(accesses.get(name) ?? []), instruction]);
  }
  if (!accesses.get('naked')?.some((each) => each.startsWith('testb')))
    return t.skip('this node prints no machine code, or its V8 does not narrow loads');

  for (const [loop, expected] of [
    ['loopRead32', /^movl r\w+,\[/],
    ['loopFlush', /^movl r\w+,\[/],
    ['loopRead64', /^v?movsd xmm\d+,\[/],
    ['loopWrite32', /^movl \[.*\],r\w+$/],
    ['loopReadBig64', /^REX\.W movq r\w+,\[/],
    ['loopWriteBig64', /^REX\.W movq \[.*\],(r\w+|0x1)$/],
    ['loopWrite64', /^v?movsd \[.*\],xmm\d+$/],
  ] as const) {
    const found = accesses.get(loop) ?? [];
    assert.ok(found.length > 0, `${loop} makes no access`);
    for (const each of found) assert.match(each, expected, loop);
  }
});
