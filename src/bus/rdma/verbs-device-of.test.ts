import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import type { KernelPort } from '../../platform/ports.js';
import { verbsDeviceOf } from './verbs-device-of.js';

/** sysfs with these files, and no others. */
function sysfs(files: Readonly<Record<string, string>>): Pick<KernelPort, 'list' | 'readText'> {
  return {
    readText: (path) => files[path],
    list(directory) {
      const names = Object.keys(files).flatMap((path) =>
        path.startsWith(`${directory}/`) ? [path.slice(directory.length + 1).split('/')[0] ?? ''] : [],
      );
      return [...new Set(names)].sort();
    },
  };
}

const PCI = '/sys/bus/pci/devices/0000:03:00.0';
const CLASS = '/sys/class/infiniband';

describe('the RDMA device of a PCI function', () => {
  it('is what its driver offers', () => {
    const kernel = sysfs({ [`${PCI}/infiniband/mlx5_0/x`]: '', [`${PCI}/net/eth0/x`]: '', [`${CLASS}/mlx5_0/x`]: '' });
    assert.equal(verbsDeviceOf(kernel, '0000:03:00.0'), 'mlx5_0');
  });

  it('is what software has made of its network interface', () => {
    const rxe = sysfs({
      [`${PCI}/net/eth0/x`]: '',
      [`${CLASS}/rxe0/parent`]: 'eth1\n',
      [`${CLASS}/rxe1/parent`]: 'eth0\n',
    });
    assert.equal(verbsDeviceOf(rxe, '0000:03:00.0'), 'rxe1');
    const siw = sysfs({
      [`${PCI}/virtio3/net/eth0/x`]: '',
      [`${CLASS}/siw0/ports/1/gid_attrs/ndevs/0`]: '',
      [`${CLASS}/siw0/ports/1/gid_attrs/ndevs/1`]: 'eth0\n',
    });
    assert.equal(verbsDeviceOf(siw, '0000:03:00.0'), 'siw0');
  });

  it('is undefined if there is none', () => {
    assert.equal(verbsDeviceOf(sysfs({}), '0000:03:00.0'), undefined);
    assert.equal(verbsDeviceOf(sysfs({ [`${PCI}/net/eth0/x`]: '' }), '0000:03:00.0'), undefined);
    const other = sysfs({ [`${PCI}/net/eth0/x`]: '', [`${CLASS}/rxe0/parent`]: 'eth1\n' });
    assert.equal(verbsDeviceOf(other, '0000:03:00.0'), undefined);
  });
});
