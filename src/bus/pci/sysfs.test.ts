import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { isNoIommuGroup } from '../../vfio/facts.js';
import { isBridge, isVfio, isVfioDriver, PciSysfs, type PciFunction } from './sysfs.js';
import { FakeMachine, type FakeFunction } from '../../../test/fakes/bus/pci-machine.js';

const A = '0000:00:02.0';
const B = '0000:00:03.0';
const DIRECTORY = `/sys/bus/pci/devices/${A}`;

function only(fn: Partial<FakeFunction> = {}): { machine: FakeMachine; read: () => PciFunction } {
  const machine = new FakeMachine({ functions: [{ address: A, ...fn }] });
  const read = (): PciFunction => {
    const found = new PciSysfs(machine).read(A);
    assert.ok(found !== undefined);
    return found;
  };
  return { machine, read };
}

describe('PCI functions in sysfs', () => {
  it('all facts of a function', () => {
    const { read } = only({ group: 5, node: 1, interfaces: ['eth0'], files: { sriov_numvfs: '2\n' } });
    assert.deepEqual(read(), {
      address: A,
      ids: { vendor: 0x8086, device: 0x10d3, subsystemVendor: 0x8086, subsystem: 0, classCode: 0x020000 },
      revision: 2,
      node: 1,
      resources: [
        { index: 0, start: 0xfeb80000, size: 0x20000, kind: 'memory' },
        { index: 2, start: 0xc000, size: 0x20, kind: 'io' },
      ],
      driver: 'e1000e',
      driverOverride: undefined,
      group: 5,
      vfioName: undefined,
      interfaces: ['eth0'],
      virtualFunctions: 2,
      modalias: 'pci:v00008086d000010D3sv00008086sd00000000bc02sc00i00',
    });
  });

  it('a function without a driver is listed, too', () => {
    const machine = new FakeMachine({ functions: [{ address: B, driver: null }, { address: A }] });
    const all = new PciSysfs(machine).scan();
    assert.deepEqual(
      all.map(({ address, driver }) => [address, driver]),
      [
        [A, 'e1000e'],
        [B, undefined],
      ],
    );
  });

  const files =
    'vendor device subsystem_vendor subsystem_device class revision numa_node resource driver_override modalias';
  for (const file of files.split(' '))
    for (const text of [undefined, '', 'nonsense\n', '\0\n'])
      it(`${file} that ${text === undefined ? 'is missing' : `is ${JSON.stringify(text)}`} spoils nothing else`, () => {
        const { machine, read } = only({ group: 5 });
        if (text === undefined) machine.files.delete(`${DIRECTORY}/${file}`);
        else machine.files.set(`${DIRECTORY}/${file}`, text);
        machine.plug({ address: B });
        const { driver, group } = read();
        assert.deepEqual([driver, group], ['e1000e', 5]);
        assert.equal(new PciSysfs(machine).scan().length, 2);
      });

  it('ids that can not be read are all ones', () => {
    const { machine, read } = only();
    machine.files.delete(`${DIRECTORY}/vendor`);
    machine.files.delete(`${DIRECTORY}/class`);
    assert.deepEqual([read().ids.vendor, read().ids.classCode, read().ids.device], [0xffff, 0xffffff, 0x10d3]);
  });

  it('a missing function, and a text that is no address', () => {
    const { machine } = only();
    machine.files.set('/sys/bus/pci/devices/nonsense/vendor', '0x1\n');
    const sysfs = new PciSysfs(machine);
    assert.deepEqual(sysfs.addresses(), [A]);
    assert.equal(sysfs.read(B), undefined);
    machine.unplug(A);
    assert.deepEqual(sysfs.scan(), []);
    assert.deepEqual(new PciSysfs(new FakeMachine()).scan(), []);
  });

  it('the interface of a virtio function is under the virtio device', () => {
    const { machine, read } = only({ driver: 'virtio-pci' });
    machine.files.set(`${DIRECTORY}/virtio1/net/ens3/mtu`, '1500\n');
    assert.deepEqual(read().interfaces, ['ens3']);
  });

  it('a VFIO driver is recognised by its name, or by its VFIO device', () => {
    const { machine, read } = only({ group: 1 });
    assert.equal(isVfio(read()), false);
    machine.writeText(`/sys/bus/pci/drivers/e1000e/unbind`, A);
    machine.writeText(`${DIRECTORY}/driver_override`, 'vfio-pci');
    machine.writeText('/sys/bus/pci/drivers_probe', A);
    assert.deepEqual([isVfio(read()), read().driverOverride], [true, 'vfio-pci']);
    assert.match(read().vfioName ?? '', /^vfio\d+$/);
    for (const name of ['vfio-pci', 'mlx5_vfio_pci', 'nvgrace-gpu-vfio-pci', 'hisi-acc-vfio-pci', 'xe-vfio-pci'])
      assert.equal(isVfioDriver(name), true, name);
    for (const name of [undefined, 'virtio-pci', 'uio_pci_generic', 'e1000e'])
      assert.equal(isVfioDriver(name), false, name);
  });

  it('a group without an IOMMU', () => {
    const files = {
      '/sys/kernel/iommu_groups/7/name': 'dma\n',
      '/sys/kernel/iommu_groups/8/name': 'vfio-noiommu\n',
    };
    const sysfs = new PciSysfs(new FakeMachine({ files }));
    assert.deepEqual(
      [7, 8, 9].map((group) => isNoIommuGroup(sysfs.kernel, group)),
      [false, true, false],
    );
  });

  it('bridges', () => {
    assert.equal(isBridge(only({ classCode: 0x060400 }).read()), true);
    assert.equal(isBridge(only({ classCode: 0x060000 }).read()), false);
    assert.equal(isBridge(only().read()), false);
  });
});
