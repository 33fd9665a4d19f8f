import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { glob } from './glob.js';
import { KernelModules } from './modules.js';
import { classKind, className, PciNames } from './names.js';
import { FakeMachine } from '../../../test/fakes/bus/pci-machine.js';

const PCI_IDS = [
  '# a comment',
  '1af4  Red Hat, Inc.',
  '\t1041  Virtio network device',
  '\t\t1af4 1041  a subsystem',
  '\t1042  Virtio block device',
  '',
  '8086  Intel Corporation',
  '\t10d3  82574L Gigabit Network Connection',
  '\t10d4  Stra\u00c3\u009fe',
  'C 02  Network controller',
  '\t00  Ethernet controller',
  '',
].join('\n');

describe('names of PCI devices', () => {
  const machine = new FakeMachine({ files: { '/usr/share/hwdata/pci.ids': PCI_IDS } });
  const names = new PciNames(machine);
  const cases: [vendor: number, device: number, text: string][] = [
    [0x8086, 0x10d3, 'Intel Corporation 82574L Gigabit Network Connection'],
    [0x1af4, 0x1042, 'Red Hat, Inc. Virtio block device'],
    [0x8086, 0x1041, 'Intel Corporation device 1041'],
    [0x8086, 0x10d4, 'Intel Corporation Straße'],
    [0x1234, 0x11e8, '1234:11e8'],
    [0x1041, 0x1af4, '1041:1af4'],
  ];
  for (const [vendor, device, text] of cases)
    it(text, () => {
      assert.equal(names.describe({ vendor, device }), text);
    });

  it('without a list the ids are shown', () => {
    assert.equal(new PciNames(new FakeMachine()).describe({ vendor: 0x1af4, device: 1 }), '1af4:0001');
  });

  it('classes are known without a list', () => {
    assert.deepEqual([classKind(0x020000), className(0x020000)], ['network', 'Ethernet']);
    assert.deepEqual([classKind(0x010802), className(0x010802)], ['storage', 'NVMe']);
    assert.deepEqual([classKind(0x00ff00), className(0x00ff00)], ['old device', 'old device']);
    assert.deepEqual([classKind(0x770000), classKind(0xffffff)], ['class 77', 'unclassified']);
  });
});

describe('kernel modules', () => {
  const files = {
    '/proc/sys/kernel/osrelease': '6.1.0-9-amd64\n',
    '/lib/modules/6.1.0-9-amd64/modules.dep': 'kernel/drivers/vfio/pci/vfio-pci.ko.xz: kernel/a.ko\nkernel/b_c.ko:\n',
    '/lib/modules/6.1.0-9-amd64/modules.builtin': 'kernel/fs/ext4/ext4.ko\n',
    '/lib/modules/6.1.0-9-amd64/modules.alias': [
      'alias pci:v00008086d000010D3sv*sd*bc*sc*i* e1000e',
      'alias pci:v00008086d00001[1-9]D3sv*sd*bc*sc*i* other',
      'alias pci:v*d*sv*sd*bc02sc00i* generic',
      'alias pci:v00001AF4d*sv*sd*bc*sc*i* virtio_pci',
      'alias usb:v00008086d* nothing',
    ].join('\n'),
  };
  const modules = new KernelModules(new FakeMachine({ files }));

  it('which modules exist', () => {
    assert.deepEqual(
      ['vfio-pci', 'vfio_pci', 'b-c', 'ext4', 'ext', 'uio'].map((name) => modules.has(name)),
      [true, true, true, true, false, false],
    );
    assert.equal(new KernelModules(new FakeMachine()).has('vfio-pci'), undefined);
  });

  it('which modules support a device', () => {
    assert.deepEqual(modules.forModalias('pci:v00008086d000010D3sv00008086sd00000000bc02sc00i00'), [
      'e1000e',
      'generic',
    ]);
    assert.deepEqual(modules.forModalias('pci:v00001AF4d00001041sv00001AF4sd00000041bcFFscFFi00'), ['virtio_pci']);
    assert.deepEqual(modules.forModalias(''), []);
  });
});

describe('patterns', () => {
  const cases: [pattern: string, fits: string[], not: string[]][] = [
    ['0000:00:*', ['0000:00:02.0'], ['0001:00:02.0']],
    ['00:0?.[0-3]', ['00:02.0', '00:0f.3'], ['00:02.4', '00:012.0', '00x02.0']],
    ['a[!b]c', ['axc'], ['abc', 'ac']],
    ['a[', ['a['], ['a']],
    ['a[z-a]', ['a[z-a]'], ['az']],
    ['a[\\]', ['a\\'], ['a']],
    ['a.b+(c)', ['a.b+(c)'], ['axb+(c)']],
    ['*', ['', 'x\ny'], []],
  ];
  for (const [pattern, fits, not] of cases)
    it(pattern, () => {
      for (const text of fits) assert.match(text, glob(pattern));
      for (const text of not) assert.doesNotMatch(text, glob(pattern));
    });
});
