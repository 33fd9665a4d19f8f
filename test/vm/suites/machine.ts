/** The machine itself: what the other suites count on is there and works. */
import assert from 'node:assert/strict';
import { execFileSync, spawnSync } from 'node:child_process';
import { existsSync, readFileSync, readdirSync } from 'node:fs';
import { test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { until } from '../../shared/until.js';
import { host } from '../host.js';
import { bindToVfio, driverOf, groupOf, iommu, kernel, release, sysfs } from '../guest.js';
import { DEVICES, GUEST_HUGEPAGES, HOTPLUG } from '../machine.js';

const read = (path: string): string => readFileSync(path, 'utf8').trim();

test('has its devices where they are said to be', () => {
  for (const [name, address] of Object.entries(DEVICES)) assert.ok(existsSync(sysfs(address)), `${name} is not there`);
  assert.equal(read(`${sysfs(DEVICES.edu0)}/vendor`), '0x1234');
  assert.equal(read(`${sysfs(DEVICES.edu0)}/device`), '0x11e8');
  assert.equal(driverOf(DEVICES.net0), 'e1000e');
  assert.equal(driverOf(DEVICES.disk0), 'nvme');
});

test('has huge pages, locked memory without limit, and the usual file systems', () => {
  assert.equal(read('/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages'), `${GUEST_HUGEPAGES}`);
  assert.match(read('/proc/self/limits'), /^Max locked memory +unlimited +unlimited/m);
  for (const mount of ['/dev/hugepages hugetlbfs', '/dev/shm tmpfs', '/run tmpfs', '/sys/fs/cgroup cgroup2'])
    assert.ok(read('/proc/mounts').includes(mount), mount);
  assert.equal(
    execFileSync('sh', ['-c', 'echo through /dev/fd | cat /dev/fd/0'], { encoding: 'utf8' }),
    'through /dev/fd\n',
  );
});

test('has an IOMMU of the width it is to have, or none', () => {
  assert.equal(existsSync('/dev/vfio/vfio'), true);
  if (iommu === 'none') {
    assert.equal(readdirSync('/sys/kernel/iommu_groups').length, 0);
    return;
  }
  // Bits 16 to 21 of the capability register: address bits less one.
  const capability = BigInt(`0x${read('/sys/class/iommu/dmar0/intel-iommu/cap')}`);
  assert.equal(((capability >> 16n) & 0x3fn) + 1n, BigInt(iommu));
  assert.notEqual(groupOf(DEVICES.edu0), groupOf(DEVICES.edu1));
  assert.equal(groupOf(DEVICES.edu2), groupOf(DEVICES.edu3));
  assert.equal(groupOf(DEVICES.edu2), groupOf(DEVICES.bridge0));
});

test('gives a device to vfio-pci', async () => {
  const before = readdirSync('/dev/vfio');
  await bindToVfio([DEVICES.edu0]);
  assert.equal(driverOf(DEVICES.edu0), 'vfio-pci');
  // The group's node, and that of the device where there are such.
  const nodes = readdirSync('/dev/vfio').filter((each) => !before.includes(each));
  const devices = kernel === 'built' ? ['devices'] : [];
  assert.deepEqual(nodes.sort(), [iommu === 'none' ? 'noiommu-0' : groupOf(DEVICES.edu0), ...devices].sort());
  assert.equal(existsSync('/dev/iommu'), kernel === 'built');
  release([DEVICES.edu0]);
  assert.equal(driverOf(DEVICES.edu0), undefined);
});

test('lets devices be put in and taken out', async () => {
  for (let times = 0; times < 2; times++) {
    await host.deviceAdd({ driver: 'edu', id: 'guest', bus: 'port0' });
    await until(() => existsSync(sysfs(HOTPLUG)), 'the kernel has found it', 30_000);
    await host.deviceDel('guest');
    await host.deviceGone('guest');
    assert.equal(existsSync(sysfs(HOTPLUG)), false);
  }
  await assert.rejects(host.deviceDel('nothing'), /DeviceNotFound/);
});

test('has RDMA in software', () => {
  execFileSync('rdma', ['link', 'add', 'rxe0', 'type', 'rxe', 'netdev', 'lo']);
  assert.match(read('/sys/class/infiniband/rxe0/ports/1/state'), /ACTIVE/);
  execFileSync('rdma', ['link', 'delete', 'rxe0']);
});

const skip =
  iommu !== '48' || process.env.ANYDMA_UAPI_INCLUDE === undefined
    ? 'once, and where the kernel comes with headers'
    : false;
test('has the numbers and layouts of src/platform/uapi in its headers', { skip }, () => {
  const file = fileURLToPath(new URL('../../../src/platform/uapi/uapi.test.js', import.meta.url));
  const { NODE_TEST_CONTEXT: _, ...env } = process.env;
  const { status, stdout, stderr } = spawnSync(process.execPath, ['--test', file], { encoding: 'utf8', env });
  assert.equal(status, 0, `${stdout}${stderr}`);
  assert.match(stdout, /# pass [1-9]/);
});
