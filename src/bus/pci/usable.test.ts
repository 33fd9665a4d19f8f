import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { PciBinder } from './bind.js';
import { PciSysfs } from './sysfs.js';
import { FakeMachine, type FakeFunction, type FakeMachineOptions } from '../../../test/fakes/bus/pci-machine.js';
import { usability, type PciUsability } from './usable.js';

const A = '0000:00:02.0';
const B = '0000:00:03.0';
const C = '0000:00:1c.0';

function look(machine: FakeMachine, address = A): PciUsability {
  const sysfs = new PciSysfs(machine);
  const fn = sysfs.read(address);
  assert.ok(fn !== undefined);
  return usability(sysfs, fn);
}

function machineWith(fn: Partial<FakeFunction>, more: FakeMachineOptions = {}): FakeMachine {
  return new FakeMachine({ ...more, functions: [{ address: A, ...fn }, ...(more.functions ?? [])] });
}

/** The function is with vfio-pci. */
function bound(fn: Partial<FakeFunction> = {}, more: FakeMachineOptions = {}): FakeMachine {
  const machine = machineWith({ group: 5, ...fn }, more);
  const binder = new PciBinder(machine);
  const [{ error }] = binder.bind(binder.resolve([A]), { noIommuMode: true });
  assert.equal(error, undefined);
  return machine;
}

/** Codes and to-dos of what is in the way. */
const todo = ({ problems }: PciUsability): string[] => problems.map((each) => `${each.code}: ${each.todo}`);

describe('can a PCI function be used now?', () => {
  it('yes, by its group and by iommufd', () => {
    assert.deepEqual(look(bound()), {
      usable: true,
      ways: ['iommufd', 'group'],
      problems: [],
      uses: [],
      unknown: [],
      inUse: false,
    });
    assert.deepEqual(look(bound({}, { vfio: 'groups' })), {
      usable: true,
      ways: ['group'],
      problems: [],
      uses: [],
      unknown: [],
      inUse: false,
    });
  });

  it('the kernel has it: bind', () => {
    const found = look(machineWith({ group: 5 }));
    assert.deepEqual(todo(found), [`EBUSY: anydma bind ${A}`]);
    assert.match(found.problems[0].reason, /the driver e1000e has it/);
  });

  it('no driver has it: bind', () => {
    assert.deepEqual(todo(look(machineWith({ group: 5, driver: null }))), [`ENODEV: anydma bind ${A}`]);
  });

  it('vfio-pci is not loaded, or not there at all', () => {
    assert.deepEqual(todo(look(machineWith({ group: 5 }, { drivers: [] }))), [
      'ENOTSUP: modprobe vfio-pci',
      `EBUSY: anydma bind ${A}`,
    ]);
    const files = { '/proc/sys/kernel/osrelease': '1\n', '/lib/modules/1/modules.dep': 'kernel/a.ko:\n' };
    const [first] = look(machineWith({ group: 5 }, { drivers: [], files })).problems;
    assert.match(first.todo, /install a kernel .*CONFIG_VFIO_PCI/);
  });

  it('no IOMMU, or one that does not translate for it', () => {
    const [none] = look(machineWith({})).problems;
    assert.equal(none.code, 'ENODEV');
    assert.match(`${none.reason}: ${none.todo}`, /no IOMMU.*: .*intel_iommu=on.*virtual IOMMU/);
    const [other] = look(machineWith({}, { iommu: true })).problems;
    assert.match(other.reason, /does not translate for it/);
  });

  it('no-IOMMU mode: bind is all that is missing, then it is the only way', () => {
    const mode = { '/sys/module/vfio/parameters/enable_unsafe_noiommu_mode': 'Y\n' };
    assert.deepEqual(todo(look(machineWith({}, { files: mode }))), [`EBUSY: anydma bind ${A}`]);
    const machine = bound({ group: undefined }, { files: mode, vfio: 'groups' });
    machine.links.set(`/sys/bus/pci/devices/${A}/iommu_group`, '../../../kernel/iommu_groups/0');
    machine.files.set('/sys/kernel/iommu_groups/0/name', 'vfio-noiommu\n');
    machine.nodes.set('/dev/vfio/noiommu-0', 'yes');
    assert.deepEqual(look(machine), {
      usable: true,
      ways: ['no-iommu'],
      problems: [],
      uses: [],
      unknown: [],
      inUse: false,
    });
  });

  it('a neighbour that the kernel uses is named, with its driver', () => {
    const functions = [{ address: B, group: 5, driver: 'ahci' }];
    const found = look(bound({}, { functions }));
    assert.deepEqual(todo(found), [`EBUSY: anydma bind --group ${A}`]);
    assert.match(found.problems[0].reason, /group 5 is shared with 0000:00:03.0, which the driver ahci has/);
  });

  for (const driver of [null, 'pcieport', 'pci-stub'])
    it(`a neighbour with ${driver ?? 'no driver'} is in nobody's way`, () => {
      const functions = [{ address: C, group: 5, classCode: 0x060400, driver }];
      assert.equal(look(bound({}, { functions })).usable, true);
    });

  it('nor is one with a VFIO driver, or one of another bus without a driver', () => {
    const machine = bound({}, { functions: [{ address: B, group: 5 }] });
    machine.files.set('/sys/kernel/iommu_groups/5/devices/platform0', '');
    const binder = new PciBinder(machine);
    binder.bind(binder.resolve([B]));
    assert.equal(look(machine).usable, true);
    machine.links.set('/sys/kernel/iommu_groups/5/devices/platform0/driver', '../../x');
    assert.match(look(machine).problems[0].reason, /shared with platform0, which the driver x has/);
  });

  it('a file that may not be opened is named', () => {
    const machine = bound();
    for (const node of machine.nodes.keys())
      if (node.startsWith('/dev/vfio/') && node !== '/dev/vfio/vfio') machine.nodes.set(node, 'no-permission');
    const found = look(machine);
    assert.equal(found.usable, false);
    assert.match(found.problems[0].reason, /may not open \/dev\/vfio\/5/);
    assert.match(todo(found)[0], /^EACCES: as root: chown \$USER \/dev\/vfio\/devices\/vfio\d+ \/dev\/vfio\/5$/);
  });

  it('one way that is open is enough', () => {
    const machine = bound();
    machine.nodes.set('/dev/vfio/5', 'no-permission');
    assert.deepEqual(look(machine).ways, ['iommufd']);
    machine.nodes.set('/dev/vfio/5', 'yes').set('/dev/iommu', 'no-permission');
    assert.deepEqual(look(machine).ways, ['group']);
  });

  it('files that are missing, as in a container, are named', () => {
    const machine = bound({}, { vfio: 'groups' });
    machine.nodes.delete('/dev/vfio/5');
    const [problem] = look(machine).problems;
    assert.equal(problem.code, 'ENOENT');
    assert.match(problem.reason, /there is no \/dev\/vfio\/5/);
  });

  it('a physical function with virtual ones', () => {
    const [first] = look(machineWith({ group: 5, files: { sriov_numvfs: '4\n' } })).problems;
    assert.equal(first.todo, `echo 0 > /sys/bus/pci/devices/${A}/sriov_numvfs`);
  });

  it('a bridge is never', () => {
    const { usable, problems } = look(machineWith({ group: 5, classCode: 0x060400, driver: 'pcieport' }));
    assert.deepEqual([usable, problems.length, problems[0].code], [false, 1, 'ENOTSUP']);
  });
});
