import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { codeOf } from '../../../test/shared/errors.js';
import fc from 'fast-check';
import { grants, type DmaAccess, type Segment } from '../../dma/address-space.js';
import type { Iova, Va } from '../../units.js';
import { EmulatedIommu } from './emulated.js';
import { IdentitySpace } from './identity.js';
import { translatedDma } from './translated-dma.js';

const PAGE = 4096;

function segment(iovaPage: number, pages: number, vaPage: number, access: DmaAccess = 'read-write'): Segment {
  return {
    va: (vaPage * PAGE) as Va,
    iova: (iovaPage * PAGE) as Iova,
    length: pages * PAGE,
    access,
    backing: undefined,
  };
}

describe('the emulated IOMMU', () => {
  it('is a page table: it behaves like one entry for each page', () => {
    const PAGES = 24;
    const step = fc.record({
      what: fc.constantFrom('map', 'map', 'unmap', 'unmap'),
      page: fc.nat(PAGES - 1),
      pages: fc.integer({ min: 1, max: 6 }),
      va: fc.nat(1000),
      access: fc.constantFrom<DmaAccess>('read', 'write', 'read-write'),
    });
    fc.assert(
      fc.property(fc.array(step, { maxLength: 40 }), (steps) => {
        const iommu = new EmulatedIommu();
        const model = new Map<number, { va: number; access: DmaAccess }>();
        for (const { what, page, pages, va, access } of steps) {
          const all = Array.from({ length: pages }, (_, i) => page + i);
          if (what === 'unmap') {
            const expected = all.filter((each) => model.delete(each)).length * PAGE;
            assert.equal(iommu.unmap(segment(page, pages, va)), expected);
          } else {
            const taken = all.some((each) => model.has(each));
            assert.equal(
              codeOf(() => iommu.map(segment(page, pages, va, access))),
              taken ? 'EEXIST' : undefined,
            );
            if (!taken) all.forEach((each, i) => model.set(each, { va: va + i, access }));
          }
          for (let each = 0; each < PAGES + 6; each++) {
            const there = model.get(each);
            for (const wanted of ['read', 'write'] as const) {
              const translate = (): unknown => iommu.translate(each * PAGE + 5, 10, wanted);
              if (there !== undefined && grants(there.access, wanted))
                assert.deepEqual(translate(), { va: there.va * PAGE + 5, length: 10 });
              else assert.equal(codeOf(translate), there === undefined ? 'EFAULT' : 'EACCES');
            }
          }
        }
      }),
    );
  });

  it('says how much is contiguous', () => {
    const iommu = new EmulatedIommu();
    iommu.map(segment(0, 2, 10));
    iommu.map(segment(2, 1, 50));
    assert.deepEqual(iommu.translate(PAGE, 3 * PAGE, 'read'), { va: 11 * PAGE, length: PAGE });
    assert.deepEqual(iommu.translate(2 * PAGE, PAGE, 'read'), { va: 50 * PAGE, length: PAGE });
    iommu.close();
    assert.equal(
      codeOf(() => iommu.translate(PAGE, 1, 'read')),
      'EFAULT',
    );
  });

  it('tells its constraints', () => {
    const { granule, windows, entryLimit, iova, partialUnmap, pins } = new EmulatedIommu({ entryLimit: 3 }).constraints;
    assert.deepEqual(
      [granule, String(windows[0]), entryLimit, iova, partialUnmap, pins],
      [4096, '[0x0, 0x1000000000000)', 3, 'free', true, false],
    );
  });
});

describe('DMA through a translator', () => {
  const memory = new Uint8Array(4 * PAGE).map((_, i) => i % 251);
  /** Pages 100 to 103 are there. */
  const bytesAt = (va: Va, length: number): Uint8Array | undefined =>
    va >= 100 * PAGE && va + length <= 104 * PAGE
      ? memory.subarray(va - 100 * PAGE, va - 100 * PAGE + length)
      : undefined;

  it('moves piece by piece what is contiguous only for the device', () => {
    const iommu = new EmulatedIommu();
    iommu.map(segment(1, 1, 102));
    iommu.map(segment(2, 1, 100));
    const dma = translatedDma(iommu, bytesAt);
    const into = new Uint8Array(200);
    assert.equal(dma.read(2 * PAGE - 100, into), undefined);
    assert.deepEqual(into.subarray(0, 100), memory.subarray(3 * PAGE - 100, 3 * PAGE));
    assert.deepEqual(into.subarray(100), memory.subarray(0, 100));
    assert.equal(dma.direct(2 * PAGE - 100, 200, 'read'), undefined, 'it is not in one piece');
    assert.equal(dma.direct(PAGE + 8, 16, 'read')?.byteOffset, 2 * PAGE + 8);
    void dma.write(2 * PAGE - 2, Uint8Array.of(1, 2, 3, 4));
    assert.deepEqual([...memory.subarray(3 * PAGE - 2, 3 * PAGE), memory[0], memory[1]], [1, 2, 3, 4]);
  });

  it('moves nothing unless the whole range can be accessed', () => {
    const iommu = new EmulatedIommu();
    iommu.map(segment(1, 1, 100));
    iommu.map(segment(2, 1, 101, 'read'));
    iommu.map(segment(3, 1, 999));
    const dma = translatedDma(iommu, bytesAt);
    const before = memory.slice();
    const data = new Uint8Array(200).fill(0xee);
    assert.equal(
      codeOf(() => dma.write(2 * PAGE - 100, data)),
      'EACCES',
    );
    assert.equal(
      codeOf(() => dma.write(PAGE - 100, data)),
      'EFAULT',
    );
    assert.equal(
      codeOf(() => dma.write(4 * PAGE - 100, data)),
      'EFAULT',
    );
    assert.equal(
      codeOf(() => dma.read(3 * PAGE - 100, data)),
      'EFAULT',
      'mapped, but nothing is registered there',
    );
    assert.equal(
      codeOf(() => dma.direct(2 * PAGE, 1, 'write')),
      'EACCES',
    );
    assert.deepEqual(memory, before);
    assert.ok(data.every((byte) => byte === 0xee));
  });

  it('a range beyond the last address is EFAULT', () => {
    const dma = translatedDma(new EmulatedIommu(), bytesAt);
    assert.equal(
      codeOf(() => dma.read(2 ** 53 - 1, new Uint8Array(8))),
      'EFAULT',
    );
    const identity = translatedDma(new IdentitySpace(), bytesAt);
    assert.equal(
      codeOf(() => identity.read(2 ** 53 - 1, new Uint8Array(8))),
      'EFAULT',
    );
  });

  it('without an IOMMU accesses all registered memory, mapped or not', () => {
    const dma = translatedDma(new IdentitySpace(), bytesAt);
    const into = new Uint8Array(4);
    void dma.read(101 * PAGE, into);
    assert.deepEqual(into, memory.slice(PAGE, PAGE + 4));
    assert.equal(
      codeOf(() => dma.read(104 * PAGE - 1, into)),
      'EFAULT',
    );
  });
});
