import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import {
  capabilitiesOf,
  capabilityWords,
  completionDoorbell,
  memoryBufferOf,
  needsDoorbell,
  submissionDoorbell,
  versionText,
  versionWord,
} from './registers.js';

describe('NVMe registers', () => {
  it('CAP is taken apart as QEMU 11.1 has it', () => {
    // MQES 2047, CQR, TO 15, CSS NVM and all, MPSMAX 4, CMBS.
    const of = capabilitiesOf(0x0f0107ff, 0x02400820);
    assert.deepEqual(of, {
      maxEntries: 2048,
      contiguous: true,
      weightedRoundRobin: false,
      readyTimeoutMs: 7500,
      doorbellStride: 4,
      subsystemReset: false,
      commandSets: 0x41,
      minPageSize: 4096,
      maxPageSize: 65536,
      memoryBuffer: true,
    });
    assert.deepEqual(capabilityWords(of), { low: 0x0f0107ff, high: 0x02400820 });
  });

  it('CAP holds its largest values', () => {
    const words = { low: 0xff03ffff, high: 0x02ff1ff4 };
    const of = capabilitiesOf(words.low, words.high);
    assert.equal(of.maxEntries, 65536);
    assert.equal(of.readyTimeoutMs, 127_500);
    assert.equal(of.doorbellStride, 64);
    assert.equal(of.maxPageSize, 2 ** 27);
    assert.equal(of.weightedRoundRobin, true);
    assert.deepEqual(capabilityWords(of), words);
  });

  it('doorbells lie at the stride', () => {
    assert.equal(submissionDoorbell(0, 4), 0x1000);
    assert.equal(completionDoorbell(0, 4), 0x1004);
    assert.equal(submissionDoorbell(3, 4), 0x1018);
    assert.equal(completionDoorbell(3, 16), 0x1000 + 7 * 16);
  });

  it('a doorbell is needed when the event index was passed, also over a wrap', () => {
    assert.equal(needsDoorbell(5, 6, 5), true);
    assert.equal(needsDoorbell(5, 7, 6), false);
    assert.equal(needsDoorbell(9, 8, 5), false);
    assert.equal(needsDoorbell(63, 1, 62), true);
    // Every place where the other side may sleep between `old` and `value`, in a ring of 8.
    for (let old = 0; old < 8; old++)
      for (let steps = 1; steps < 8; steps++)
        for (let step = 0; step < steps; step++)
          assert.ok(needsDoorbell((old + step) % 8, (old + steps) % 8, old), `${old} ${steps} ${step}`);
  });

  it('versions are told and made', () => {
    assert.equal(versionText(0x00010400), '1.4.0');
    assert.equal(versionText(versionWord(2, 1, 3)), '2.1.3');
    assert.equal(versionWord(1, 4), 0x00010400);
  });

  it('the memory buffer is told in bytes', () => {
    assert.equal(memoryBufferOf(0, 0), undefined);
    // Units of 64 KiB: 3 of them, 2 units into BAR 2.
    assert.deepEqual(memoryBufferOf(0x2002, 0x00003101), { bar: 2, offset: 131072, length: 196608, uses: 1 });
  });
});
