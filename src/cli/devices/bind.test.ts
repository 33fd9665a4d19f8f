import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { FakeMachine, type FakeMachineOptions } from '../../../test/fakes/bus/pci-machine.js';
import { isDmaError } from '../../errors.js';
import { bindDevices, type BindCommandOptions } from './bind.js';
import { documentOf, Listener, Room } from '../../../test/shared/command.js';
import { PciReader, pciDocument, pciText } from '../../bus/pci/facts.js';
import { unbindDevices } from './unbind.js';

const A = '0000:00:02.0';
const B = '0000:00:03.0';
const BRIDGE = '0000:00:1c.0';

const MACHINE: FakeMachineOptions = {
  functions: [
    { address: A, group: 5, interfaces: ['eth0'], node: 0 },
    { address: B, group: 5, driver: 'ahci', classCode: 0x010601, node: 1 },
    { address: BRIDGE, group: 6, driver: 'pcieport', classCode: 0x060400 },
  ],
  files: {
    '/usr/share/misc/pci.ids': '8086  Intel Corporation\n\t10d3  82574L Gigabit\n',
    '/proc/sys/kernel/osrelease': '6.1\n',
    '/lib/modules/6.1/modules.alias': 'alias pci:v00008086d000010D3sv*sd*bc*sc*i* e1000e\n',
  },
};

function bound(machine: FakeMachine, names: string[], options: BindCommandOptions = {}): Listener {
  const output = new Listener(false);
  bindDevices(machine, names, options, output);
  return output;
}

function released(machine: FakeMachine, names: string[], options = {}): Listener {
  const output = new Listener(false);
  unbindDevices(machine, names, options, output);
  return output;
}

describe('anydma bind on a made-up machine', () => {
  test('says what it did, and what else there is to do', () => {
    const machine = new FakeMachine(MACHINE);
    const output = bound(machine, [A]);
    assert.equal(
      output.said,
      [
        'PCI           NAME                              WAS WITH  IS WITH   USABLE NOW',
        `${A}  Intel Corporation 82574L Gigabit  e1000e    vfio-pci  no: its IOMMU group 5 is shared with ${B}, which the driver ahci has`,
        '',
        'To use those that can not be used now:',
        `  - anydma bind --group ${A}`,
        '',
      ].join('\n'),
    );
    assert.equal(output.failed, false);
    const whole = bound(machine, [A], { group: true });
    assert.match(whole.said, /02\.0 .* vfio-pci +vfio-pci +yes, by iommufd or by its group\n/);
    assert.match(whole.said, /03\.0 .* ahci +vfio-pci +yes/);
    assert.doesNotMatch(whole.said, /To use/);
  });

  test('the document has each device, before and after', () => {
    const { documents } = bound(new FakeMachine(MACHINE), [A, BRIDGE]);
    const [{ ok, devices }] = documents as [{ ok: boolean; devices: Record<string, never>[] }];
    assert.equal(ok, false);
    const [a, bridge] = devices;
    assert.deepEqual([a['ok'], a['address'], a['from'], a['to'], a['changed']], [true, A, 'e1000e', 'vfio-pci', true]);
    assert.equal(a['device']['usable'], false);
    assert.deepEqual([bridge['ok'], bridge['error']['code'], bridge['to']], [false, 'ENOTSUP', 'pcieport']);
  });

  test('one that fails is told, and the others are done', () => {
    const machine = new FakeMachine(MACHINE);
    machine.routeTable.push({ family: 4, table: 254, type: 'unicast', destination: '0.0.0.0/0', interfaces: [2] });
    const output = bound(machine, [A, B]);
    assert.equal(output.failed, true);
    assert.match(output.notes, /eth0 carries the default route/);
    assert.deepEqual([machine.driver(A), machine.driver(B)], ['e1000e', 'vfio-pci']);
    assert.equal(bound(machine, ['eth0'], { force: true }).failed, false);
    assert.equal(machine.driver(A), 'vfio-pci');
  });

  test('the owner by name', () => {
    const machine = new FakeMachine(MACHINE);
    machine.ids.set('user alice', 1001).set('group dma', 77);
    bound(machine, [A], { uid: 'alice', gid: 'dma' });
    assert.ok(machine.writes.includes('chown 1001:77 /dev/vfio/5'));
    machine.writes.length = 0;
    for (const options of [{ uid: 'bob' }, { gid: 'alice' }, { uid: '' }, { uid: '4294967295' }, { uid: '-1' }])
      assert.throws(
        () => bound(machine, [A], options),
        (error) => isDmaError(error, 'EINVAL') && /there is no (?:user|group) "/.test(error.message),
      );
    assert.deepEqual(machine.writes, []);
  });

  test('a device in use: why not, what --dry-run says, and what is said before it is forced', () => {
    const machine = new FakeMachine(MACHINE);
    machine.addNode({ number: '8:0', path: `${B}/ata1/block/sda`, held: true });
    machine.files.set('/proc/self/mountinfo', '22 1 8:0 / /data rw - ext4 /dev/sda rw\n');
    const refused = bound(machine, [B]);
    assert.equal(refused.failed, true);
    assert.match(refused.notes, /it is in use: its disk sda is mounted at \/data/);
    const dry = bound(machine, [A, B], { dryRun: true });
    assert.match(
      dry.said,
      /02\.0 .* would get vfio-pci +-\n.*03\.0 .* ahci +would be refused +its disk sda is mounted at \/data\n/,
    );
    assert.match(dry.said, /Nothing was changed/);
    const [{ ok, dryRun, devices }] = dry.documents as [
      { ok: boolean; dryRun: boolean; devices: Record<string, unknown>[] },
    ];
    assert.deepEqual([ok, dryRun, devices.map(({ action }) => action)], [false, true, ['bind', 'refuse']]);
    assert.deepEqual(devices[1]['usedBy'], ['its disk sda is mounted at /data']);
    const forced = bound(machine, [B], { dryRun: true, force: true });
    assert.equal(forced.failed, false);
    assert.deepEqual(machine.writes, []);
    assert.match(
      bound(machine, [B], { force: true }).notes,
      /03\.0 is taken although its disk sda is mounted at \/data/,
    );
    assert.equal(machine.driver(B), 'vfio-pci');
  });

  test('what can not be asked is said before it is forced, too', () => {
    const machine = new FakeMachine(MACHINE);
    machine.unreadable.set('routes', 'EPERM');
    assert.match(bound(machine, [A]).notes, /is not known whether it is in use/);
    assert.equal(machine.driver(A), 'e1000e');
    assert.match(
      bound(machine, [A], { force: true }).notes,
      /02\.0 is taken although it is not known whether it is in use: .*routes/,
    );
  });

  test('the owner, and another driver', () => {
    const machine = new FakeMachine(MACHINE);
    bound(machine, [A], { uid: '1000' });
    assert.ok(machine.writes.includes('chown 1000:-1 /dev/vfio/5'));
    const output = bound(machine, [A], { driver: 'none' });
    assert.match(output.said, /WAS WITH +IS WITH\n.* vfio-pci +no driver\n$/);
  });

  test('no-IOMMU mode is told about', () => {
    const machine = new FakeMachine({ functions: [{ address: A }] });
    assert.throws(
      () => bound(machine, [A]),
      (error) => isDmaError(error, 'ENODEV') && /--noiommu-mode/.test(error.message),
    );
    assert.match(bound(machine, [A], { noiommuMode: true }).notes, /can access all memory/);
  });

  test('a driver in place of a device', () => {
    const machine = new FakeMachine(MACHINE);
    assert.throws(
      () => bound(machine, ['vfio-pci', A]),
      (error) =>
        isDmaError(error, 'ENODEV') && error.hint === 'vfio-pci is a driver: anydma bind --driver vfio-pci DEVICE',
    );
    assert.deepEqual(machine.writes, []);
  });
});

describe('anydma unbind on a made-up machine', () => {
  test('gives devices back, and leaves the rest alone', () => {
    const machine = new FakeMachine(MACHINE);
    bound(machine, [A]);
    const output = released(machine, ['00:0?.0']);
    assert.match(output.said, /02\.0 .* vfio-pci +e1000e\n.*03\.0 .* ahci +ahci\n$/);
    assert.deepEqual([machine.driver(A), machine.driver(B)], ['e1000e', 'ahci']);
    assert.equal(output.failed, false);
  });

  test('says which module would take a device that nobody took', () => {
    const machine = new FakeMachine(MACHINE);
    bound(machine, [A, B]);
    for (const driver of ['e1000e', 'ahci'])
      for (const file of ['bind', 'unbind']) machine.files.delete(`/sys/bus/pci/drivers/${driver}/${file}`);
    const output = released(machine, [A]);
    assert.equal(output.notes, `no driver of the kernel's took ${A}; modules for it: e1000e (see modprobe)\n`);
    assert.equal(output.failed, false);
    const [{ devices }] = output.documents as [{ devices: { from: string; to?: string }[] }];
    assert.deepEqual([devices[0].from, devices[0].to], ['vfio-pci', undefined]);
  });
});

describe('anydma unbind of what is claimed or in use', () => {
  test('a device that vfio-pci took again is no success', () => {
    const machine = new FakeMachine(MACHINE);
    bound(machine, [A]);
    machine.vfioClaims.add(A);
    const output = released(machine, [A]);
    assert.equal(output.failed, true);
    assert.match(output.notes, /vfio-pci took it again/);
  });

  test('--dry-run changes nothing', () => {
    const machine = new FakeMachine(MACHINE);
    bound(machine, [A]);
    machine.writes.length = 0;
    assert.match(
      released(machine, [A, B], { dryRun: true }).said,
      /would get one of the kernel's own drivers.*\n.*stays with ahci/,
    );
    assert.deepEqual(machine.writes, []);
  });
});

describe('PCI devices as anydma devices lists them', () => {
  const list = (machine: FakeMachine): string => {
    const output = new Listener(false);
    output.show(pciText(new PciReader(machine).all()));
    return output.said;
  };

  test('by kind, bridges last, with what to do once', () => {
    const machine = new FakeMachine(MACHINE);
    assert.equal(
      list(machine),
      [
        'PCI             NAME                                     DRIVER    GROUP  SHARED WITH   NODE  USABLE NOW',
        'network',
        `  ${A}  Intel Corporation 82574L Gigabit (eth0)  e1000e    5      ${B}  0     no: the driver e1000e has it`,
        'storage',
        `  ${B}  Intel Corporation 82574L Gigabit         ahci      5      ${A}  1     no: the driver ahci has it`,
        'bridge',
        `  ${BRIDGE}  Intel Corporation 82574L Gigabit         pcieport  6      -             -     no: it is a bridge`,
        '',
        'To use those that can not be used now:',
        `  - anydma bind --group DEVICE, for DEVICE ${A} ${B}`,
        '',
      ].join('\n'),
    );
    bound(machine, [A, B]);
    assert.match(list(machine), /02\.0 .*vfio-pci +5 .* yes, by iommufd or by its group/);
    assert.doesNotMatch(list(machine), /To use/);
  });

  test('what is in use says by whom, and nobody is told to bind it, nor its group', () => {
    const machine = new FakeMachine({
      functions: [
        { address: A, group: 5, interfaces: ['eth0'] },
        { address: B, group: 5, driver: 'nvme', classCode: 0x010802 },
        { address: '0000:00:04.0', group: 6 },
      ],
    });
    machine.addNode({ number: '259:0', path: `${B}/nvme/nvme0/nvme0n1`, held: true });
    machine.files.set('/proc/swaps', 'Filename Type Size Used Priority\n/dev/nvme0n1 partition 1 0 -2\n');
    const text = list(machine);
    assert.match(text, /03\.0 .* no: its disk nvme0n1 is swapped to\n/);
    assert.doesNotMatch(text, /swapoff/);
    assert.deepEqual(text.match(/- .*DEVICE.*|- anydma.*/g), ['- anydma bind 0000:00:04.0']);
    assert.match(text, /For devices in use, .*dry-run/);
    const [, disk] = new PciReader(machine).all().map(pciDocument) as Record<string, unknown>[];
    assert.deepEqual(disk['usedBy'], ['its disk nvme0n1 is swapped to']);
  });

  test('what is for some only says for which', () => {
    const machine = new FakeMachine({ functions: [{ address: A, group: 1 }, { address: B }] });
    assert.match(list(machine), /- boot without iommu=pt.* \(for 0000:00:03\.0\)\n/);
  });

  test('for programs', () => {
    const [network] = new PciReader(new FakeMachine(MACHINE)).all().map(pciDocument) as Record<string, never>[];
    assert.deepEqual(
      ['address', 'kind', 'class', 'driver', 'group', 'numaNode', 'usable'].map((key) => network[key]),
      [A, 'network', 'Ethernet', 'e1000e', 5, 0, false],
    );
    assert.deepEqual(network['sharesGroupWith'], [{ name: B, driver: 'ahci' }]);
    assert.deepEqual(network['ids']['vendor'], '0x8086');
    assert.deepEqual(network['problems'][0], {
      code: 'EBUSY',
      reason: 'the driver e1000e has it',
      todo: `anydma bind --group ${A}`,
    });
  });
});

describe('anydma bind and devices on this machine', { concurrency: 2 }, () => {
  test('the PCI devices are listed', async () => {
    using room = new Room();
    const ended = await room.run(['devices', '--json']);
    assert.equal(ended.status, 0, ended.stderr);
    const pci = documentOf(ended)['pci'] as { address: string; usable: boolean; problems: unknown[] }[];
    for (const { address, usable, problems } of pci) {
      assert.match(address, /^[\da-f]{4,}:[\da-f]{2}:[\da-f]{2}\.\d$/);
      assert.equal(usable, problems.length === 0);
    }
  });

  for (const command of ['bind', 'unbind'])
    test(`${command} of a device that is not there`, async () => {
      using room = new Room();
      const { status, stdout, stderr } = await room.run([command, 'ffff:ff:1f.7', '--json']);
      assert.equal(status, 1);
      const { error } = JSON.parse(stdout) as { error: { code: string } };
      assert.equal(error.code, 'ENODEV');
      assert.match(stderr, /there is no PCI device "ffff:ff:1f.7"\nhint: anydma devices/);
    });
});
