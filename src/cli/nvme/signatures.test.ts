import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { SIGNATURE_BYTES, signaturesOf } from './signatures.js';

/** What a program of the system makes of an empty disk; `undefined` when it is not here. */
function madeBy(program: string, args: readonly string[], input?: string): Uint8Array | undefined {
  const directory = mkdtempSync(join(tmpdir(), 'anydma-test-'));
  const disk = join(directory, 'disk');
  try {
    writeFileSync(disk, '');
    truncateSync(disk, 64 * 2 ** 20);
    const { PATH = '' } = process.env;
    const { status, error } = spawnSync(program, [...args, disk], { input, env: { PATH: `${PATH}:/usr/sbin:/sbin` } });
    if (error !== undefined || status !== 0) return undefined;
    return readFileSync(disk).subarray(0, SIGNATURE_BYTES);
  } finally {
    rmSync(directory, { recursive: true });
  }
}

for (const [program, args, what, input] of [
  ['mkfs.ext4', ['-q', '-F'], /ext4/, undefined],
  ['mkfs.ext2', ['-q', '-F'], /ext2/, undefined],
  ['mkswap', [], /swap space/, undefined],
  ['mkfs.xfs', ['-q', '-f'], /XFS/, undefined],
  ['mkfs.vfat', [], /FAT/, undefined],
  ['sfdisk', ['-q', '--no-reread', '--no-tell-kernel'], /GUID partition table/, 'label: gpt\n,\n'],
  ['sfdisk', ['-q', '--no-reread', '--no-tell-kernel'], /MBR/, 'label: dos\n,\n'],
] as const) {
  const start = madeBy(program, args, input);
  test(
    `what ${program} makes is recognised${input === undefined ? '' : ` (${input.split('\n')[0]})`}`,
    {
      skip: start === undefined ? `${program} is not here` : false,
    },
    () => {
      assert.ok(start !== undefined);
      const found = signaturesOf(start, 512);
      assert.equal(found.length, 1, found.join());
      assert.match(found[0], what);
    },
  );
}

test('marks at their places, and nothing in zeroes, random bytes or too little', () => {
  assert.deepEqual(signaturesOf(new Uint8Array(SIGNATURE_BYTES), 512), []);
  assert.deepEqual(signaturesOf(new Uint8Array(0), 4096), []);
  const at = (offset: number, text: string | number[]): Uint8Array => {
    const start = new Uint8Array(SIGNATURE_BYTES);
    start.set(typeof text === 'string' ? Buffer.from(text, 'latin1') : text, offset);
    return start;
  };
  assert.match(signaturesOf(at(4096, 'EFI PART'), 4096).join(), /GUID/);
  assert.deepEqual(signaturesOf(at(4096, 'EFI PART'), 512), []);
  assert.match(signaturesOf(at(0x10040, '_BHRfS_M'), 512).join(), /Btrfs/);
  assert.match(signaturesOf(at(0, [0x4c, 0x55, 0x4b, 0x53, 0xba, 0xbe]), 512).join(), /LUKS/);
  assert.match(signaturesOf(at(4096, [0xfc, 0x4e, 0x2b, 0xa9]), 512).join(), /MD array/);
  assert.match(signaturesOf(at(512, 'LABELONE'), 512).join(), /LVM/);
});
