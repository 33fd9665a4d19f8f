import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { faultsInLog, LogMark } from './faults.js';

const A = '0000:00:02.0';

/** `read 0x1000`, for short. */
function faults(log: string, address = A): string[] {
  return faultsInLog(log, address).map(({ access, iova }) => `${access ?? 'some'} 0x${iova.toString(16)}`);
}

describe('IOMMU faults in the kernel log', () => {
  const cases: [what: string, log: string, found: string[]][] = [
    [
      'Intel, with the domain',
      '<3>[  9.1] DMAR: DRHD: handling fault status reg 2\n<3>[  9.2] DMAR: [DMA Write NO_PASID] Request device ' +
        '[0000:00:02.0] fault addr 0x1002000 [fault reason 0x05] PTE Write access is not set\n',
      ['write 0x1002000'],
    ],
    [
      'Intel, without the domain',
      '<3>[   12.345678] DMAR: [DMA Read NO_PASID] Request device [00:02.0] fault addr 0xfffe000 [fault reason 0x06] PTE Read\n',
      ['read 0xfffe000'],
    ],
    [
      'Intel, older',
      'DMAR: [DMA Write] Request device [00:02.0] fault addr ffff1000 [fault reason 05] PTE',
      ['write 0xffff1000'],
    ],
    [
      'Intel, with a PASID',
      'DMAR: [DMA Read PASID 0x1] Request device [00:02.0] fault addr 0x1000 [fault',
      ['read 0x1000'],
    ],
    ['Intel, another function', 'DMAR: [DMA Read NO_PASID] Request device [00:02.1] fault addr 0x1000 [fault', []],
    ['Intel, another domain', 'DMAR: [DMA Read NO_PASID] Request device [0001:00:02.0] fault addr 0x1000 [fault', []],
    ['Intel, interrupts', 'DMAR: [INTR-REMAP] Request device [00:02.0] fault index 0x10 [fault reason 0x22]', []],
    [
      'an address that none can be',
      'DMAR: [DMA Read NO_PASID] Request device [00:02.0] fault addr 0xffffffffffff0000 [fault reason 0x06]',
      [],
    ],
    [
      'AMD, of a driver',
      '<3>[1.0] vfio-pci 0000:00:02.0: AMD-Vi: Event logged [IO_PAGE_FAULT domain=0x000d address=0xb000 flags=0x0020]\n',
      ['write 0xb000'],
    ],
    [
      'AMD, without one',
      'AMD-Vi: Event logged [IO_PAGE_FAULT device=0000:00:02.0 domain=0x0000 address=0xfffff000 flags=0x0000]\n' +
        'AMD-Vi: Event logged [IO_PAGE_FAULT device=01:00.0 domain=0x0000 address=0x1000 flags=0x0000]',
      ['read 0xfffff000'],
    ],
    [
      'Arm',
      'arm-smmu-v3 arm-smmu-v3.0.auto: event: F_TRANSLATION client: 0000:00:02.0 sid: 0x10 ssid: 0x0 iova: 0xabc000 ipa: 0x0\n' +
        'arm-smmu-v3 arm-smmu-v3.0.auto: unpriv data write s1 "Input address caused fault" stag: 0x0\n',
      ['write 0xabc000'],
    ],
    [
      'Arm, without its second line',
      'arm-smmu-v3 x: event: F_TRANSLATION client: 0000:00:02.0 sid: 0x10 ssid: 0x0 iova: 0xabc000 ipa: 0x0\n',
      ['some 0xabc000'],
    ],
    [
      'virtio',
      'virtio_iommu virtio0: page fault from EP 16 at 0x7000 [W]\nvirtio_iommu virtio0: page fault from EP 17 at 0x8000 [R]\n',
      ['write 0x7000'],
    ],
    ['nothing', 'e1000e 0000:00:02.0 eth0: NIC Link is Up 1000 Mbps\n', []],
    ['no log', '', []],
  ];
  for (const [what, log, found] of cases)
    it(what, () => {
      assert.deepEqual(faults(log), found);
    });

  it('in the order in which they were written, whoever wrote them', () => {
    const log =
      'AMD-Vi: Event logged [IO_PAGE_FAULT device=0000:00:02.0 domain=0x0000 address=0x1000 flags=0x0000]\n' +
      'DMAR: [DMA Read NO_PASID] Request device [00:02.0] fault addr 0x2000 [fault\n' +
      'AMD-Vi: Event logged [IO_PAGE_FAULT device=0000:00:02.0 domain=0x0000 address=0x3000 flags=0x0000]\n';
    assert.deepEqual(faults(log), ['read 0x1000', 'read 0x2000', 'read 0x3000']);
  });
});

describe('what is new in the kernel log', () => {
  const line = (n: number): string => `<6>[   ${n}.000000] message ${n}\n`;
  const lines = (from: number, to: number): string =>
    Array.from({ length: to - from }, (_, n) => line(from + n)).join('');

  it('is what was written after the mark', () => {
    const mark = new LogMark(lines(1, 100));
    assert.equal(mark.newer(lines(1, 100)), '');
    assert.equal(mark.newer(lines(1, 103)), lines(100, 103));
    assert.equal(mark.newer(lines(50, 103)), lines(100, 103), 'the kernel has dropped old lines');
  });

  it('is found by time if the mark was dropped', () => {
    const mark = new LogMark(lines(1, 100));
    assert.equal(mark.newer(lines(100, 200)).trim(), lines(100, 200).trim());
    assert.equal(mark.newer(lines(98, 102)).trim(), lines(100, 102).trim());
  });

  it('is the whole log if there was no mark', () => {
    for (const before of [undefined, '']) assert.equal(new LogMark(before).newer(line(1)), line(1));
  });
});
