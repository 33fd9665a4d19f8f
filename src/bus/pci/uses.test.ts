import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { DmaError } from '../../errors.js';
import type { KernelRoute } from '../../platform/ports.js';
import { PciSysfs } from './sysfs.js';
import {
  interfaceIndex,
  FakeMachine,
  type FakeMachineOptions,
  type FakeNode,
} from '../../../test/fakes/bus/pci-machine.js';
import { MachineUses } from './uses.js';

const NVME = '0000:00:03.0';
const NET = '0000:00:02.0';
const DISK: FakeNode = { number: '259:0', path: `${NVME}/nvme/nvme0/nvme0n1`, held: true };
const PART: FakeNode = { number: '259:1', path: `${NVME}/nvme/nvme0/nvme0n1/nvme0n1p1`, held: true };

function setUp(nodes: readonly FakeNode[] = [], options: FakeMachineOptions = {}): FakeMachine {
  const machine = new FakeMachine({
    functions: [
      { address: NET, group: 5, interfaces: ['eth0'] },
      { address: NVME, group: 6, driver: 'nvme', classCode: 0x010802 },
    ],
    ...options,
  });
  for (const node of nodes) machine.addNode(node);
  return machine;
}

function usesOf(machine: FakeMachine, address = NVME): string[] {
  const fn = new PciSysfs(machine).read(address);
  assert.ok(fn !== undefined);
  const { uses, unknown } = new MachineUses(machine).of(fn);
  assert.deepEqual(unknown, []);
  assert.deepEqual(machine.claimed, [], 'nothing stays claimed');
  for (const { todo } of uses) assert.notEqual(todo, '');
  return uses.map(({ text }) => text);
}

function mounted(...lines: string[]): string {
  return `20 1 0:20 / / rw - overlay overlay rw\n${lines.join('\n')}\n`;
}

describe('what uses a disk', () => {
  it('nothing', () => {
    assert.deepEqual(
      usesOf(
        setUp([
          { ...DISK, held: false },
          { ...PART, held: false },
        ]),
      ),
      [],
    );
    assert.deepEqual(usesOf(setUp()), []);
  });

  it('a mount, of the disk or of a partition, by its number, because names may be wrong', () => {
    const machine = setUp([DISK, PART]);
    machine.files.set('/proc/self/mountinfo', mounted('30 20 259:1 / /mnt/a\\040b rw shared:1 - ext4 /dev/root rw'));
    assert.deepEqual(usesOf(machine), ['its partition nvme0n1p1 is mounted at /mnt/a b']);
    machine.files.set('/proc/self/mountinfo', mounted('30 20 259:0 / / rw - xfs /dev/mapper/other rw'));
    assert.match(usesOf(machine)[0], /its disk nvme0n1 is mounted at \//);
  });

  it('a mount in another namespace', () => {
    const machine = setUp([DISK]);
    machine.addProcess(88, 'container', [], mounted('31 20 259:0 / /data rw - ext4 /dev/nvme0n1 rw'));
    assert.deepEqual(usesOf(machine), ['its disk nvme0n1 is mounted at /data for process 88']);
  });

  it('a mount that only the first process sees', () => {
    const machine = setUp([DISK]);
    machine.addProcess(1, 'init', []);
    machine.files.set('/proc/1/mountinfo', mounted('31 20 259:0 / /data rw - ext4 /dev/nvme0n1 rw'));
    assert.deepEqual(usesOf(machine), ['its disk nvme0n1 is mounted at /data']);
  });

  for (const [what, name] of [
    ['by its name', '/dev/nvme0n1p1'],
    ['whose node has blanks in its name', '/dev/my\\040disk'],
    ['whose node was removed', '/dev/nvme0n1p1\\040(deleted)'],
  ])
    it(`swap ${what}`, () => {
      const machine = setUp([DISK, PART]);
      machine.devices.set('/dev/my disk', { kind: 'block', number: '259:1' });
      machine.files.set('/proc/swaps', `Filename\tType\tSize\tUsed\tPriority\n${name} partition\t1024\t0\t-2\n`);
      assert.deepEqual(usesOf(machine), ['its partition nvme0n1p1 is swapped to']);
    });

  it('swap whose device file was removed: the kernel holds the disk, possibly for it', () => {
    const machine = setUp([DISK]);
    machine.files.set('/proc/swaps', 'Filename Type Size Used Priority\n/tmp/x\\040(deleted) partition 1024 0 -2\n');
    assert.deepEqual(usesOf(machine), [
      'its disk nvme0n1 is held by the kernel for an unknown purpose, perhaps for the swap area /tmp/x',
    ]);
  });

  it('a swap file on it', () => {
    const machine = setUp([DISK]);
    machine.files.set('/proc/self/mountinfo', mounted('30 20 259:0 / /mnt rw - ext4 /dev/nvme0n1 rw'));
    machine.files.set('/proc/swaps', 'Filename Type Size Used Priority\n/mnt/swap\\040(deleted) file 1024 0 -2\n');
    assert.ok(usesOf(machine).includes('its disk nvme0n1 has the swap file /mnt/swap'));
  });

  it('volumes and arrays on it, and their own uses', () => {
    const machine = setUp([
      { ...DISK, holders: ['md0'] },
      { ...PART, holders: ['dm-0'] },
      {
        number: '254:0',
        path: 'virtual/block/dm-0',
        holders: ['dm-1'],
        files: { 'dm/name': 'vg-root\n', 'dm/uuid': 'LVM-abc\n' },
      },
      { number: '254:1', path: 'virtual/block/dm-1', files: { 'dm/name': 'secret\n', 'dm/uuid': 'CRYPT-LUKS2-x\n' } },
      { number: '9:0', path: 'virtual/block/md0', files: { 'md/level': 'raid1\n' } },
      { number: '259:9', path: 'virtual/block/md0/md0p1' },
      { number: '254:7', path: 'virtual/block/dm-7', files: { 'dm/name': 'other\n' } },
    ]);
    machine.files.set(
      '/proc/self/mountinfo',
      mounted('30 20 254:1 / /secret rw - ext4 /dev/x rw', '31 20 259:9 / /array rw - ext4 /dev/y rw'),
    );
    const uses = usesOf(machine);
    assert.deepEqual(uses.slice(0, 2), [
      'dm-1 (encrypted volume secret) above dm-0 (LVM volume vg-root) above its partition nvme0n1p1 is mounted at /secret',
      'md0p1 above md0 (MD array, raid1) above its disk nvme0n1 is mounted at /array',
    ]);
    assert.ok(uses.includes('its disk nvme0n1 is held by md0 (MD array, raid1)'));
    assert.ok(uses.includes('its partition nvme0n1p1 is held by dm-0 (LVM volume vg-root)'));
    assert.ok(uses.every((text) => !text.includes('other')));
  });

  it('loops of it, and of files on it', () => {
    const machine = setUp([
      DISK,
      { number: '7:0', path: 'virtual/block/loop0', files: { 'loop/backing_file': '/mnt/image (deleted)\n' } },
      { number: '7:1', path: 'virtual/block/loop1', files: { 'loop/backing_file': '/dev/nvme0n1\n' } },
      { number: '7:2', path: 'virtual/block/loop2', files: { 'loop/backing_file': '/elsewhere\n' } },
    ]);
    machine.files.set(
      '/proc/self/mountinfo',
      mounted('30 20 259:0 / /mnt rw - ext4 x rw', '31 20 7:0 / /image rw - ext4 y rw'),
    );
    const uses = usesOf(machine);
    assert.match(uses[1], /^loop0 \(loop of .*\) above its disk nvme0n1 is mounted at \/image$/);
    assert.ok(uses.some((text) => text.startsWith('its disk nvme0n1 is held by loop1')));
    assert.ok(uses.every((text) => !text.includes('loop2')));
  });

  it('file systems without a number of their own: btrfs, on any of its disks, and others by their sources', () => {
    const machine = setUp([DISK, { number: '259:5', path: 'virtual/block/elsewhere' }]);
    machine.files.set('/proc/self/mountinfo', mounted('30 20 0:44 /@ /pool rw - btrfs /dev/elsewhere rw'));
    for (const name of ['nvme0n1', 'elsewhere']) machine.files.set(`/sys/fs/btrfs/1234/devices/${name}/dev`, '');
    assert.deepEqual(usesOf(machine), ['its disk nvme0n1 is mounted at /pool']);
    machine.files.set('/proc/self/mountinfo', mounted('30 20 0:45 / /p rw - bcachefs /dev/elsewhere:/dev/nvme0n1 rw'));
    assert.deepEqual(usesOf(machine), ['its disk nvme0n1 is mounted at /p']);
  });

  it('a use that is not listed anywhere (ZFS, a lazy unmount): the kernel holds the disk', () => {
    assert.deepEqual(usesOf(setUp([{ ...DISK, held: true }])), [
      'its disk nvme0n1 is held by the kernel for an unknown purpose',
    ]);
    const machine = setUp([DISK, PART, { number: '259:2', path: `${PART.path.slice(0, -1)}2` }]);
    assert.deepEqual(usesOf(machine), ['its partition nvme0n1p1 is held by the kernel for an unknown purpose']);
  });

  it('behind whatever buses: USB, SCSI, virtio, a domain of its own', () => {
    for (const path of [
      `${NVME}/usb1/1-1/1-1:1.0/host2/target2:0:0/2:0:0:0/block/sdb`,
      `${NVME}/virtio3/block/vda`,
      `${NVME}/pci10000:e0/10000:e0:1d.0/10000:e1:00.0/nvme/nvme3/nvme3n1`,
    ]) {
      const machine = setUp([{ number: '8:16', path, held: true }]);
      machine.files.set('/proc/self/mountinfo', mounted('30 20 8:16 / /usb rw - vfat /dev/sdb rw'));
      assert.match(usesOf(machine)[0], /is mounted at \/usb/, path);
    }
  });

  it('NVMe with several ways to one disk', () => {
    const machine = setUp([
      { number: '242:0', path: `${NVME}/nvme/nvme0`, kind: 'character' },
      { number: '259:7', path: 'virtual/nvme-subsystem/nvme-subsys0/nvme0n1', held: true },
    ]);
    machine.files.set('/sys/class/nvme-subsystem/nvme-subsys0/nvme0/dev', '');
    assert.deepEqual(usesOf(machine), ['its disk nvme0n1 is held by the kernel for an unknown purpose']);
  });

  it('NVMe over Fibre Channel, whose controllers are not below the adapter that they name', () => {
    const machine = setUp([
      { number: '242:0', path: 'virtual/nvme-fabrics/ctl/nvme4', kind: 'character' },
      { number: '259:7', path: 'virtual/nvme-fabrics/ctl/nvme4/nvme4n1', held: true },
      { number: '259:8', path: 'virtual/nvme-fabrics/ctl/nvme5/nvme5n1', held: true },
    ]);
    machine.links.set('/sys/class/fc_host/host2', `../../devices/pci0000:00/${NVME}/host2/fc_host/host2`);
    machine.files
      .set('/sys/class/fc_host/host2/port_name', '0x10000090fa945c1a\n')
      .set(
        '/sys/class/nvme/nvme4/address',
        'traddr=nn-0x1:pn-0x2,host_traddr=nn-0x20000090FA945C1A:pn-0x10000090FA945C1A\n',
      )
      .set('/sys/class/nvme/nvme5/address', 'traddr=nn-0x1:pn-0x2,host_traddr=nn-0x3:pn-0x4\n');
    assert.deepEqual(usesOf(machine), ['its disk nvme4n1 is held by the kernel for an unknown purpose']);
  });

  it('what the kernel serves to other machines without claiming it', () => {
    const machine = setUp([
      { ...DISK, held: false },
      { ...PART, held: false },
      { number: '242:0', path: `${NVME}/nvme/nvme0`, kind: 'character' },
    ]);
    const nvme = '/sys/kernel/config/nvmet/subsystems';
    const scsi = '/sys/kernel/config/target/core/fileio_0/data';
    machine.files
      .set(`${nvme}/one/namespaces/1/device_path`, '/dev/nvme0n1p1\n')
      .set(`${nvme}/one/namespaces/1/enable`, '0\n')
      .set(`${nvme}/two/passthru/device_path`, '/dev/nvme0\n')
      .set(`${nvme}/two/passthru/enable`, '0\n')
      .set(`${nvme}/two/namespaces/1/device_path`, '(null)\n')
      .set(`${scsi}/udev_path`, '/dev/nvme0n1\n')
      .set(`${scsi}/enable`, '0\n');
    assert.deepEqual(usesOf(machine), []);
    for (const path of machine.files.keys()) if (path.endsWith('/enable')) machine.files.set(path, '1\n');
    assert.deepEqual(usesOf(machine), [
      'the NVMe target one serves /dev/nvme0n1p1 to other machines',
      'the NVMe target two serves /dev/nvme0 to other machines',
      "the SCSI target's backstore fileio_0/data serves /dev/nvme0n1 to other machines",
    ]);
  });

  it('a file of /dev that is missing, or is another device: the use is not known', () => {
    for (const node of [undefined, { kind: 'block', number: '1:1' } as const]) {
      const machine = setUp([{ ...DISK, held: false }]);
      if (node === undefined) machine.devices.delete('/dev/nvme0n1');
      else machine.devices.set('/dev/nvme0n1', node);
      const fn = new PciSysfs(machine).read(NVME);
      assert.ok(fn !== undefined);
      const { uses, unknown } = new MachineUses(machine).of(fn);
      assert.deepEqual([uses, unknown.map(({ code }) => code)], [[], ['ENOENT']]);
    }
  });
});

describe('other uses', () => {
  it('programs that have a disk or a controller open; udev and this process do not count', () => {
    const machine = setUp([
      { ...DISK, held: false },
      { number: '242:0', path: `${NVME}/nvme/nvme0`, kind: 'character' },
    ]);
    machine.addProcess(4711, 'node', ['/dev/nvme0']);
    machine.addProcess(5, '(udev-worker)', ['/dev/nvme0n1']);
    machine.addProcess(6, 'other', ['/dev/null']);
    assert.deepEqual(usesOf(machine), []);
    machine.addProcess(7, 'qemu', ['/dev/null', '/dev/nvme0n1']);
    machine.addProcess(8, 'smartd', ['/dev/nvme0']);
    assert.deepEqual(usesOf(machine), [
      'process 7 (qemu) has /dev/nvme0n1 open',
      'process 8 (smartd) has /dev/nvme0 open',
    ]);
  });

  it('files of processes that can not be read: reported once for each cause, with a count', () => {
    const machine = setUp([{ ...DISK, held: false }]);
    let lists = 0;
    const list = machine.list.bind(machine);
    machine.list = (path) => {
      if (path === '/proc') lists++;
      return list(path);
    };
    const fds = Array.from({ length: 286 }, () => '/dev/null');
    machine.addProcess(1, 'init', fds);
    for (const fd of fds.keys()) machine.unreadable.set(`/proc/1/fd/${fd}`, 'EACCES');
    machine.addProcess(7, 'qemu', ['/dev/nvme0n1']);
    for (const process of [8, 9]) {
      machine.addProcess(process, 'other', ['/dev/null']);
      machine.unreadable.set(`/proc/${process}/fd`, 'EPERM');
    }
    const fn = new PciSysfs(machine).read(NVME);
    assert.ok(fn !== undefined);
    const { uses, unknown } = new MachineUses(machine).of(fn);
    assert.deepEqual(
      uses.map(({ text }) => text),
      ['process 7 (qemu) has /dev/nvme0n1 open'],
    );
    assert.deepEqual(unknown, [
      { code: 'EACCES', reason: 'made-up machine: /proc/1/fd/0, and 285 more like that' },
      { code: 'EPERM', reason: 'made-up machine: /proc/8/fd, and 1 more like that' },
    ]);
    // For the mounts, for the open files, and to see once which processes have ended.
    assert.equal(lists, 3);
  });

  it('a process that ended while it was asked has nothing open', () => {
    const machine = setUp([{ ...DISK, held: false }]);
    machine.addProcess(8, 'short', ['/dev/null']);
    const readLink = machine.readLink.bind(machine);
    machine.readLink = (path) => {
      if (path !== '/proc/8/fd/0') return readLink(path);
      for (const map of [machine.files, machine.links])
        for (const each of map.keys()) if (each.startsWith('/proc/8/')) map.delete(each);
      throw new DmaError({ code: 'ESRCH', operation: 'readlink', reason: path });
    };
    assert.deepEqual(usesOf(machine), []);
  });

  it('a program with another root directory', () => {
    const machine = setUp([{ ...DISK, held: false }]);
    machine.devices.set('/srv/root/dev/disk', { kind: 'block', number: '259:0' });
    machine.addProcess(7, 'qemu', ['/srv/root/dev/disk']);
    assert.deepEqual(usesOf(machine), ['process 7 (qemu) has /srv/root/dev/disk open']);
  });

  it('programs that use a graphics card through device files that sysfs does not show', () => {
    const machine = setUp();
    machine.files.set(`/proc/driver/nvidia/gpus/${NVME}/information`, 'Model: \t X\nDevice Minor: \t 1\n');
    for (const minor of [0, 1])
      machine.devices.set(`/dev/nvidia${minor}`, { kind: 'character', number: `195:${minor}` });
    machine.addProcess(7, 'python3', ['/dev/nvidia0']);
    assert.deepEqual(usesOf(machine), []);
    machine.addProcess(8, 'ollama', ['/dev/nvidia1']);
    assert.deepEqual(usesOf(machine), ['process 8 (ollama) has /dev/nvidia1 open']);
  });

  it('the kernel itself, by channels of a DMA engine', () => {
    const machine = setUp();
    for (const [name, clients] of ['0', '2'].entries()) {
      machine.links.set(`/sys/class/dma/dma0chan${name}`, `../../devices/pci0000:00/${NVME}/dma/dma0chan${name}`);
      machine.files.set(`/sys/class/dma/dma0chan${name}/in_use`, `${clients}\n`);
    }
    machine.links.set('/sys/class/dma/dma1chan0', `../../devices/pci0000:00/${NET}/dma/dma1chan0`);
    machine.files.set('/sys/class/dma/dma1chan0/in_use', '1\n');
    assert.deepEqual(usesOf(machine), ['the kernel uses its DMA channel dma0chan1']);
  });

  it('the kernel itself, by memory of a CXL device', () => {
    const machine = setUp();
    machine.links
      .set('/sys/bus/cxl/devices/mem0', `../../../devices/pci0000:00/${NVME}/mem0`)
      .set('/sys/bus/cxl/devices/mem1', `../../../devices/pci0000:00/${NET}/mem1`)
      .set('/sys/bus/cxl/devices/endpoint2/uport', `../../../pci0000:00/${NVME}/mem0`)
      .set('/sys/bus/cxl/devices/endpoint22/uport', `../../../pci0000:00/${NET}/mem1`);
    machine.files
      .set('/sys/bus/cxl/devices/decoder2.0/region', '\n')
      .set('/sys/bus/cxl/devices/decoder2.1/region', '\n')
      .set('/sys/bus/cxl/devices/decoder22.0/region', 'region7\n');
    assert.deepEqual(usesOf(machine), []);
    machine.files.set('/sys/bus/cxl/devices/decoder2.1/region', 'region0\n');
    assert.deepEqual(usesOf(machine), ['its memory is a part of region0']);
  });

  it('the kernel itself, by memory that a host provides', () => {
    const machine = setUp();
    machine.links.set('/sys/bus/virtio/devices/virtio2', `../../../devices/pci0000:00/${NVME}/virtio2`);
    assert.deepEqual(usesOf(machine), []);
    machine.links.set('/sys/bus/virtio/devices/virtio2/driver', '../../bus/virtio/drivers/virtio_mem');
    assert.deepEqual(usesOf(machine), ['it provides memory of this virtual machine']);
  });

  it('what is plugged into a Thunderbolt controller', () => {
    const machine = setUp();
    const domain = `../../../devices/pci0000:00/${NVME}/domain0`;
    machine.links
      .set('/sys/bus/thunderbolt/devices/domain0', domain)
      .set('/sys/bus/thunderbolt/devices/0-0', `${domain}/0-0`)
      .set('/sys/bus/thunderbolt/devices/0-0:1.1', `${domain}/0-0/usb4_port1/0-0:1.1`)
      .set('/sys/bus/thunderbolt/devices/1-1', `../../../devices/pci0000:00/${NET}/domain1/1-0/1-1`);
    assert.deepEqual(usesOf(machine), []);
    machine.links.set('/sys/bus/thunderbolt/devices/0-301', `${domain}/0-0/0-1/0-301`);
    machine.links.set('/sys/bus/thunderbolt/devices/0-1', `${domain}/0-0/0-1`);
    machine.files.set('/sys/bus/thunderbolt/devices/0-1/device_name', 'Dock\n');
    assert.deepEqual(usesOf(machine), [
      'the Thunderbolt device 0-1 (Dock) is plugged into it',
      'the Thunderbolt device 0-301 is plugged into it',
    ]);
  });

  it('in a container: programs outside are invisible, which is said; devices that can be claimed are known to be unused', () => {
    const machine = setUp([{ ...DISK, held: false }]);
    machine.links.set('/proc/self/ns/pid', 'pid:[4026532281]');
    const unknownOf = (address: string): string[] => {
      const fn = new PciSysfs(machine).read(address);
      assert.ok(fn !== undefined);
      return new MachineUses(machine).of(fn).unknown.map(({ reason }) => reason);
    };
    assert.deepEqual(unknownOf(NVME), ['processes outside of this container can not be seen']);
    machine.writeText(`/sys/bus/pci/drivers/e1000e/unbind`, NET);
    machine.writeText(`/sys/bus/pci/devices/${NET}/driver_override`, 'vfio-pci');
    machine.writeText(`/sys/bus/pci/drivers_probe`, NET);
    assert.deepEqual(unknownOf(NET), [], 'nobody has its group');
    machine.devices.delete('/dev/vfio/5');
    machine.devices.set('/dev/vfio/devices/vfio20', { kind: 'character', number: '511:0' });
    assert.deepEqual(unknownOf(NET), ['processes outside of this container can not be seen']);
    machine.links.set('/proc/self/ns/pid', 'pid:[4026531836]');
    assert.deepEqual([unknownOf(NVME), unknownOf(NET)], [[], []]);
  });

  it('virtual functions, and what they are used for', () => {
    const VF = '0000:00:03.1';
    const machine = setUp([{ ...DISK, path: `${VF}/nvme/nvme1/nvme0n1` }]);
    machine.plug({ address: VF, driver: 'nvme', classCode: 0x010802 });
    machine.files.set(`/sys/bus/pci/devices/${NVME}/sriov_numvfs`, '1\n');
    machine.links.set(`/sys/bus/pci/devices/${NVME}/virtfn0`, `../${VF}`);
    assert.deepEqual(usesOf(machine), [
      '1 virtual function of it is enabled',
      `virtual function ${VF}: its disk nvme0n1 is held by the kernel for an unknown purpose`,
    ]);
  });

  it('the display, the console', () => {
    const machine = setUp([
      { number: '29:0', path: `${NVME}/graphics/fb0`, kind: 'character' },
      { number: '4:68', path: `${NVME}/tty/ttyS4`, kind: 'character' },
    ]);
    assert.deepEqual(usesOf(machine), []);
    machine.files
      .set(`/sys/bus/pci/devices/${NVME}/boot_vga`, '1\n')
      .set('/sys/class/vtconsole/vtcon1/name', '(M) frame buffer device\n')
      .set('/sys/class/vtconsole/vtcon1/bind', '1\n')
      .set('/sys/class/tty/console/active', 'tty0 ttyS4\n');
    assert.deepEqual(usesOf(machine), [
      "it is the machine's primary display",
      'the text console is on its frame buffer fb0',
      "the machine's console is its ttyS4",
    ]);
  });

  it('file systems of a virtual machine’s host', () => {
    const machine = setUp();
    machine.links.set('/sys/bus/virtio/devices/virtio2', `../../../devices/pci0000:00/${NVME}/virtio2`);
    machine.links.set('/sys/bus/virtio/devices/virtio2/driver', '../../bus/virtio/drivers/9pnet_virtio');
    machine.files.set('/sys/bus/virtio/devices/virtio2/mount_tag', 'host\0');
    machine.files.set(
      '/proc/self/mountinfo',
      mounted('30 20 0:33 / /host rw - 9p host rw', '31 20 0:34 / /o rw - 9p other rw'),
    );
    assert.deepEqual(usesOf(machine), ["the host's file system host, mounted at /host, comes through it"]);
    machine.files.set('/proc/self/mountinfo', mounted());
    const fn = new PciSysfs(machine).read(NVME);
    assert.ok(fn !== undefined);
    const { uses, unknown } = new MachineUses(machine).of(fn);
    assert.deepEqual([uses, unknown.map(({ code }) => code)], [[], ['EBUSY']], 'it may be the root below the root');
  });

  it('a device of VFIO’s that is not open', () => {
    const machine = setUp();
    machine.links.set(`/sys/bus/pci/devices/${NVME}/driver`, '../../../bus/pci/drivers/vfio-pci');
    assert.deepEqual(usesOf(machine), []);
  });
});

describe('what uses an interface', () => {
  const route = (destination: string, more: Partial<KernelRoute> = {}): KernelRoute => ({
    family: destination.includes(':') ? 6 : 4,
    table: 254,
    type: 'unicast',
    destination,
    interfaces: [interfaceIndex('eth0')],
    ...more,
  });
  const other = [interfaceIndex('eth1')];
  const cases: [what: string, routes: readonly KernelRoute[], says: string | undefined][] = [
    ['nothing', [], undefined],
    ['the default route, before others', [route('192.0.2.0/24'), route('0.0.0.0/0')], 'carries the default route'],
    ['a net', [route('192.0.2.0/24')], 'carries the route to 192.0.2.0/24'],
    ['link-local', [route('169.254.0.0/16')], undefined],
    ['of another interface', [route('0.0.0.0/0', { interfaces: other })], undefined],
    ['one of several hops', [route('0.0.0.0/0', { interfaces: [...other, 2] })], 'carries the default route'],
    ['another table', [route('10.0.0.0/8', { table: 100 })], 'carries the route to 10.0.0.0/8 of table 100'],
    ['IPv6 default', [route('::/0')], 'carries the IPv6 default route'],
    ['an IPv6 net', [route('fd00::/64')], 'carries the route to fd00::/64'],
    ['IPv6 link-local', [route('fe80::/64'), route('fe80::1/128', { type: 'local', table: 255 })], undefined],
    ['multicast', [route('ff00::/8'), route('224.0.0.0/4')], undefined],
    ['an address alone', [route('192.0.2.1/32', { type: 'local', table: 255 })], 'has the address 192.0.2.1'],
    ['unreachable', [route('10.0.0.0/8', { type: 'other' })], undefined],
  ];
  for (const [what, routes, says] of cases)
    it(`routes: ${what}`, () => {
      const machine = setUp();
      machine.routeTable.push(...routes);
      assert.deepEqual(usesOf(machine, NET), says === undefined ? [] : [`its interface eth0 ${says}`]);
    });

  it('interfaces that use it: a VLAN above a bond', () => {
    const machine = setUp();
    machine.files
      .set('/sys/class/net/eth0/upper_bond0/mtu', '')
      .set('/sys/class/net/bond0/upper_bond0.7/mtu', '')
      .set('/sys/class/net/bond0.7/upper_eth0/mtu', '')
      .set('/sys/class/net/bond0.7/ifindex', '77\n');
    machine.links.set('/sys/class/net/eth0/master', '../../../virtual/net/bond0');
    machine.routeTable.push(route('0.0.0.0/0', { interfaces: [77] }));
    assert.deepEqual(usesOf(machine, NET), [
      'its interface eth0 is a port of bond0',
      'its interface eth0 carries the default route by bond0.7',
    ]);
  });

  it('a VRF that it is in counts by its routes', () => {
    const machine = setUp();
    machine.links.set('/sys/class/net/eth0/master', '../../../virtual/net/red');
    machine.files
      .set('/sys/class/net/eth0/upper_red/mtu', '')
      .set('/sys/class/net/red/uevent', 'DEVTYPE=vrf\nINTERFACE=red\n');
    assert.deepEqual(usesOf(machine, NET), []);
    machine.routeTable.push(route('192.0.2.0/24', { table: 10 }));
    assert.deepEqual(usesOf(machine, NET), ['its interface eth0 carries the route to 192.0.2.0/24 of table 10']);
  });

  it('programs that receive its packets', () => {
    const machine = setUp();
    machine.files.set('/proc/net/packet', 'sk RefCnt Type Proto Iface R Rmem User Inode\n0000 3 3 0003 2 1 0 0 123\n');
    assert.deepEqual(usesOf(machine, NET), ['a program receives the packets of its interface eth0']);
  });

  it('PPPoE over it, which needs no address and no route', () => {
    const machine = setUp();
    machine.files.set('/proc/net/pppoe', 'Id       Address              Device\n01000000 00:11:22:33:44:55     eth0\n');
    assert.deepEqual(usesOf(machine, NET), ['PPPoE runs over its interface eth0']);
  });

  it('an interface in another network namespace', () => {
    const machine = setUp();
    for (const map of [machine.files, machine.links])
      for (const path of [...map.keys()]) if (path.includes('eth0')) map.delete(path);
    // The directory is there, and shows nothing.
    const { list } = machine;
    machine.list = (path) => {
      const names = list.call(machine, path);
      return path === `/sys/bus/pci/devices/${NET}` ? [...names, 'net'] : names;
    };
    assert.deepEqual(usesOf(machine, NET), ['its network interface is in another network namespace']);
  });
});
