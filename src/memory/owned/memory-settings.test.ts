import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { isDmaError } from '../../errors.js';
import { GiB, KiB, MiB } from '../../units.js';
import { memorySettings, type MemoryOptions } from './memory-settings.js';

const refused = (options: MemoryOptions, says = /(?:)/): void =>
  assert.throws(
    () => memorySettings(options),
    (error) => isDmaError(error, 'EINVAL') && says.test(error.message),
    JSON.stringify(options),
  );

describe('options of the memory that the library owns', () => {
  it('EF-01, 1.3.10: no hugepages: alone or with a size, and not with what is about hugepages', () => {
    assert.equal(memorySettings({ noHuge: true }).noHuge, true);
    assert.equal(memorySettings({ noHuge: true, size: 18 * MiB }).size, 18 * MiB);
    refused({ noHuge: true, numaMem: [MiB] }, /noHuge and memory\.numaMem/);
    refused({ noHuge: true, matchAllocations: true });
    refused({ noHuge: true, hugeUnlink: 'always' });
    refused({ noHuge: true, singleFileSegments: true });
    refused({ noHuge: true, pageSizes: [2 * MiB] });
  });

  it('EF-02, 1.3.2: limits of page sizes', () => {
    const limits = (...pairs: [number, number][]): MemoryOptions => {
      return { pageSizeLimits: pairs.map(([pageSize, limit]) => ({ pageSize, limit })) };
    };
    refused(limits([2 * MiB, 3 * MiB]), /not a multiple/);
    refused(limits([3 * MiB, 6 * MiB]), /power of two/);
    refused(limits([2 * MiB, NaN]));
    refused({ noHuge: true, ...limits([2 * MiB, 4 * MiB]) });
    assert.deepEqual([...memorySettings(limits([2 * MiB, 64 * MiB], [KiB, 8 * KiB])).pageSizeLimits].length, 2);
    assert.equal(memorySettings(limits([KiB, 0])).pageSizeLimits.get(KiB), 0);
    assert.equal(memorySettings(limits([GiB, GiB], [GiB, 0])).pageSizeLimits.get(GiB), 0, 'the last counts');
  });

  it('EF-03: sizes for nodes', () => {
    assert.deepEqual(memorySettings({ numaMem: [0, 0] }).numaMem, [0, 0]);
    refused({ numaMem: [MiB, NaN] });
    refused({ numaMem: [-1] });
    refused({ size: MiB, numaMem: [MiB] }, /size and memory\.numaMem/);
    refused({ numaLimit: [1.5] });
  });

  it('1.3.10: where pages are kept', () => {
    refused({ inMemory: true, hugeUnlink: 'always' });
    refused({ inMemory: true, singleFileSegments: true });
    refused({ hugeUnlink: 'never', singleFileSegments: true });
    assert.equal(memorySettings({}).files, undefined);
    assert.equal(memorySettings({ inMemory: true, singleFileSegments: false }).files, undefined);
    const defaults = { directory: undefined, prefix: 'anydma', unlink: 'existing', singleFile: false };
    assert.deepEqual(memorySettings({ inMemory: false }).files, defaults);
    assert.deepEqual(memorySettings({ filePrefix: 'mine' }).files, { ...defaults, prefix: 'mine' });
    refused({ filePrefix: 'a/b' });
    refused({ filePrefix: '' });
    refused({ hugeUnlink: 'sometimes' as never });
    refused({ iovaMode: 'dc' as never });
    refused({ pageSizes: [] });
    refused({ pageSizes: [3] });
  });
});
