import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { dmaError } from '../../../test/shared/errors.js';
import { DmaError } from '../../errors.js';
import type { KernelRoute } from '../../platform/ports.js';
import { PciBinder, type BindOptions, type BindResult } from './bind.js';
import {
  FakeMachine,
  type FakeFunction,
  type FakeMachineOptions,
  type FakeNode,
} from '../../../test/fakes/bus/pci-machine.js';

const A = '0000:00:02.0';
const B = '0000:00:03.0';
const C = '0000:01:00.0';
const BRIDGE = '0000:00:1c.0';

const GROUPED: readonly FakeFunction[] = [
  { address: A, group: 5, interfaces: ['eth0'] },
  { address: B, group: 5, driver: 'ahci' },
  { address: BRIDGE, group: 5, driver: 'pcieport', classCode: 0x060400 },
  { address: C, group: 6, driver: null },
];

function setUp(options: FakeMachineOptions = {}): { machine: FakeMachine; binder: PciBinder } {
  const machine = new FakeMachine({ functions: GROUPED, ...options });
  return { machine, binder: new PciBinder(machine) };
}

/** Binds what texts name. */
function bind(binder: PciBinder, texts: readonly string[], options?: BindOptions): BindResult[] {
  return binder.bind(binder.resolve(texts), options);
}

function only<T>(results: readonly T[]): T {
  assert.equal(results.length, 1);
  return results[0];
}

function errorOf(result: BindResult): DmaError {
  assert.ok(result.error !== undefined);
  return result.error;
}

/** eth0 has the default route. */
const ROUTE: KernelRoute = { family: 4, table: 254, type: 'unicast', destination: '0.0.0.0/0', interfaces: [2] };

describe('binding', () => {
  it('from the kernel to vfio-pci: override, unbind, probe, and no override afterwards', () => {
    const { machine, binder } = setUp();
    assert.deepEqual(only(bind(binder, [A])), { address: A, from: 'e1000e', to: 'vfio-pci', error: undefined });
    assert.deepEqual(machine.writes, [
      `vfio-pci > /sys/bus/pci/devices/${A}/driver_override`,
      `${A} > /sys/bus/pci/drivers/e1000e/unbind`,
      `${A} > /sys/bus/pci/drivers_probe`,
      ` > /sys/bus/pci/devices/${A}/driver_override`,
    ]);
    assert.equal(machine.driver(A), 'vfio-pci');
    assert.equal(machine.driver(B), 'ahci');
  });

  it('a function without a driver', () => {
    const { machine, binder } = setUp();
    const { from, to } = only(bind(binder, ['01:00.0']));
    assert.deepEqual([from, to, machine.override(C)], [undefined, 'vfio-pci', undefined]);
  });

  it('a function that has the driver already stays unchanged', () => {
    const { machine, binder } = setUp();
    bind(binder, [A]);
    machine.writes.length = 0;
    assert.deepEqual(only(bind(binder, [A])), { address: A, from: 'vfio-pci', to: 'vfio-pci', error: undefined });
    assert.deepEqual(machine.writes, []);
  });

  it('several, and each once', () => {
    const { binder } = setUp();
    const results = bind(binder, ['00:02.0', A, 'eth0', '0000:01:*']);
    assert.deepEqual(
      results.map(({ address, to }) => [address, to]),
      [
        [A, 'vfio-pci'],
        [C, 'vfio-pci'],
      ],
    );
  });

  it('to any other driver, and to none', () => {
    const { machine, binder } = setUp({ drivers: ['vfio-pci', 'uio_pci_generic'] });
    assert.equal(only(bind(binder, [A], { driver: 'uio_pci_generic' })).to, 'uio_pci_generic');
    assert.equal(only(bind(binder, [A], { driver: 'none' })).to, undefined);
    assert.equal(only(bind(binder, [A], { driver: 'none' })).error, undefined);
    assert.equal(machine.driver(A), undefined);
  });

  it('a whole group, without its bridges', () => {
    const { machine, binder } = setUp();
    const results = bind(binder, [A], { wholeGroup: true });
    assert.deepEqual(
      results.map(({ address, from, to }) => [address, from, to]),
      [
        [A, 'e1000e', 'vfio-pci'],
        [B, 'ahci', 'vfio-pci'],
      ],
    );
    assert.equal(machine.driver(BRIDGE), 'pcieport');
    assert.equal(machine.driver(C), undefined);
  });

  it('the owner of the device files', () => {
    const { machine, binder } = setUp();
    bind(binder, [A], { owner: { user: 1000 } });
    const chowns = (): string[] => machine.writes.filter((line) => line.startsWith('chown'));
    assert.equal(chowns().length, 2);
    assert.match(chowns()[0], /^chown 1000:-1 \/dev\/vfio\/devices\/vfio\d+$/);
    assert.equal(chowns()[1], 'chown 1000:-1 /dev/vfio/5');
    machine.writes.length = 0;
    bind(binder, [A], { owner: { user: 1, group: 2 } });
    assert.equal(chowns()[1], 'chown 1:2 /dev/vfio/5', 'also for one that was bound before');
  });
});

describe('a driver that does not take the device', () => {
  it('an override that was set before is set again if the driver does not take it', () => {
    const { machine, binder } = setUp();
    machine.files.set(`/sys/bus/pci/devices/${A}/driver_override`, 'e1000e\n');
    machine.failing.set(`vfio-pci ${A}`, 'EINVAL');
    const [{ to, error }] = bind(binder, [A]);
    assert.deepEqual([to, error?.code, machine.override(A)], ['e1000e', 'EINVAL', 'e1000e']);
  });

  it('the old driver gets it back; the error is that of the new driver', () => {
    const { machine, binder } = setUp();
    machine.failing.set(`vfio-pci ${A}`, 'EBUSY');
    const result = only(bind(binder, [A]));
    assert.deepEqual([result.from, result.to, machine.override(A)], ['e1000e', 'e1000e', undefined]);
    const error = errorOf(result);
    assert.deepEqual([error.code, error.device, error.undo], ['EBUSY', `pci:${A}`, []]);
    assert.match(error.hint ?? '', /sriov_numvfs/);
  });

  it('the old driver does not take it back: the error says that, too', () => {
    const { machine, binder } = setUp();
    machine.failing.set(`vfio-pci ${A}`, 'EINVAL').set(`e1000e ${A}`, 'ENOMEM');
    const result = only(bind(binder, [A]));
    assert.deepEqual([result.to, machine.override(A)], [undefined, undefined]);
    assert.equal(errorOf(result).code, 'EINVAL');
    assert.match(errorOf(result).message, /undoing it failed too/);
    assert.equal(errorOf(result).undo.length, 1);
  });

  it('other functions are still bound', () => {
    const { machine, binder } = setUp();
    machine.failing.set(`vfio-pci ${A}`, 'EINVAL');
    assert.deepEqual(
      bind(binder, [A, B]).map(({ to, error }) => [to, error?.code]),
      [
        ['e1000e', 'EINVAL'],
        ['vfio-pci', undefined],
      ],
    );
  });

  for (const n of [1, 2, 3, 4])
    it(`write ${n} of 4 fails: no override is left, and a driver has it`, () => {
      const { machine, binder } = setUp();
      const write = machine.writeText.bind(machine);
      let left = n;
      machine.writeText = (path, text) => {
        write(--left === 0 ? '/sys/nothing' : path, text);
      };
      const result = only(bind(binder, [A]));
      assert.equal(errorOf(result).code, 'ENOENT');
      assert.equal(result.to, n === 4 ? 'vfio-pci' : 'e1000e');
      if (n !== 4) assert.equal(machine.override(A), undefined);
    });

  it('without being root: the hint says so', () => {
    const { machine, binder } = setUp();
    machine.writeText = (path) => {
      throw new DmaError({ code: 'EACCES', operation: 'open', reason: `${path}: permission denied` });
    };
    const error = errorOf(only(bind(binder, [A])));
    assert.deepEqual([error.code, error.hint], ['EACCES', 'changing drivers needs root']);
  });

  it('a bridge is refused for VFIO', () => {
    const { machine, binder } = setUp();
    assert.equal(errorOf(only(bind(binder, [BRIDGE]))).code, 'ENOTSUP');
    assert.deepEqual(machine.writes, []);
  });
});

describe('what is refused before anything is changed', () => {
  const cases: [what: string, options: BindOptions, machine: FakeMachineOptions, code: string, says: RegExp][] = [
    ['a driver that is a device', { driver: '00:02.0' }, {}, 'EINVAL', /is a device, not a driver/],
    ['a driver that is an interface', { driver: 'eth0' }, {}, 'EINVAL', /is a device, not a driver/],
    ['a driver that is a path', { driver: '../x' }, {}, 'EINVAL', /not a driver.s name/],
    ['vfio-pci, not loaded', {}, { drivers: [] }, 'ENOTSUP', /vfio-pci is not loaded .*modprobe vfio-pci/],
    ['another driver, not loaded', { driver: 'igb_uio' }, {}, 'ENOTSUP', /hint: modprobe igb_uio/],
    ['no IOMMU', {}, { iommu: false }, 'ENODEV', /no IOMMU.*--noiommu-mode/],
  ];
  for (const [what, options, more, code, says] of cases)
    it(what, () => {
      const { machine, binder } = setUp(more);
      assert.throws(() => bind(binder, [A], options), dmaError(code as 'EINVAL', says));
      assert.deepEqual(machine.writes, []);
    });

  it('a device that is not there', () => {
    const { binder } = setUp();
    for (const text of ['0000:00:09.0', 'eth9', '0000:7?:*', '', '*x'])
      assert.throws(
        () => binder.resolve([A, text]),
        dmaError('ENODEV', new RegExp(`"${text.replace(/[*?]/g, '\\$&')}"`)),
      );
  });

  it('no-IOMMU mode is switched on when asked for, and is not needed for other drivers', () => {
    const { machine, binder } = setUp({ iommu: false, drivers: ['vfio-pci', 'uio_pci_generic'] });
    bind(binder, [A], { noIommuMode: true });
    assert.match(machine.writes[0], /^1 > .*enable_unsafe_noiommu_mode$/);
    assert.equal(machine.driver(A), 'vfio-pci');
    machine.writes.length = 0;
    bind(binder, [B]);
    assert.equal(machine.driver(B), 'vfio-pci', 'it is on already');
    const other = setUp({ iommu: false, drivers: ['uio_pci_generic'] });
    assert.equal(only(bind(other.binder, [A], { driver: 'uio_pci_generic' })).error, undefined);
  });
});

describe('patterns', () => {
  const cases: [pattern: string, addresses: string[]][] = [
    ['0000:00:*', [A, B]],
    ['00:0[23].?', [A, B]],
    ['eth?', [A]],
    ['*', [A, B, C]],
    [BRIDGE, [BRIDGE]],
  ];
  for (const [pattern, addresses] of cases)
    it(`${pattern} is ${addresses.join(' ')}`, () => {
      const { binder } = setUp();
      assert.deepEqual(
        binder.resolve([pattern]).map(({ address }) => address),
        addresses,
      );
    });
});

describe('a device that is in use', () => {
  /** The disk of B. */
  const DISK: FakeNode = { number: '8:0', path: `${B}/ata1/host0/target0:0:0/0:0:0:0/block/sda` };
  const mount = (number: string): string => `22 1 ${number} / /data rw - ext4 /dev/sda rw\n`;
  const inUse = (): { machine: FakeMachine; binder: PciBinder } => {
    const made = setUp();
    made.machine.addNode({ ...DISK, held: true });
    made.machine.files.set('/proc/self/mountinfo', mount('8:0'));
    return made;
  };

  it('is refused, and the others are not', () => {
    const { machine, binder } = setUp();
    machine.routeTable.push(ROUTE);
    const [a, b] = bind(binder, [A, B]);
    assert.equal(errorOf(a).code, 'EBUSY');
    assert.match(errorOf(a).message, /eth0 carries the default route.*--force/);
    assert.deepEqual([a.to, b.to], ['e1000e', 'vfio-pci']);
    assert.ok(machine.writes.every((line) => !line.includes(A)));
    assert.equal(only(bind(binder, [A], { driver: 'none' })).to, 'e1000e');
  });

  it('a disk: who uses it and what ends that; nothing is written', () => {
    const { machine, binder } = inUse();
    const { to, error } = only(bind(binder, [B]));
    assert.equal(to, 'ahci');
    assert.deepEqual([error?.code, error?.device], ['EBUSY', `pci:${B}`]);
    assert.equal(error?.reason, 'it is in use: its disk sda is mounted at /data');
    assert.match(error.hint ?? '', /umount \/data.*--force/);
    assert.deepEqual([machine.writes, machine.claimed], [[], []]);
  });

  it('unless it is forced', () => {
    const { machine, binder } = inUse();
    machine.routeTable.push(ROUTE);
    const results = bind(binder, [A, B], { force: true });
    assert.deepEqual(
      results.map(({ to }) => to),
      ['vfio-pci', 'vfio-pci'],
    );
  });

  it('a question that can not be answered does not mean "unused"; the code is that of the cause', () => {
    for (const [path, code] of [
      ['/proc/swaps', 'EACCES'],
      ['/proc/self/mountinfo', 'EMFILE'],
      ['/sys/dev/block', 'EMFILE'],
      ['/dev/sda', 'EACCES'],
      ['/proc', 'EACCES'],
    ] as const) {
      const { machine, binder } = setUp();
      machine.addNode(DISK);
      machine.unreadable.set(path, code);
      const { to, error } = only(bind(binder, [B]));
      assert.deepEqual([to, error?.code], ['ahci', code], path);
      assert.match(error?.message ?? '', /is not known whether it is in use: .*--force/, path);
      assert.deepEqual(machine.writes, []);
      assert.equal(only(bind(binder, [B], { force: true })).to, 'vfio-pci');
    }
    const { machine, binder } = setUp();
    machine.unreadable.set('routes', 'EPERM');
    assert.equal(errorOf(only(bind(binder, [A]))).code, 'EPERM');
  });

  it('a disk is claimed from the last check until it is unbound', () => {
    const { machine, binder } = setUp();
    machine.addNode(DISK);
    const write = machine.writeText.bind(machine);
    const claims: [string, number][] = [];
    machine.writeText = (path, text) => {
      claims.push([path.split('/').at(-1) ?? '', machine.claimed.length]);
      write(path, text);
    };
    assert.equal(only(bind(binder, [B])).to, 'vfio-pci');
    assert.deepEqual(claims, [
      ['driver_override', 1],
      ['unbind', 1],
      ['drivers_probe', 0],
      ['driver_override', 0],
    ]);
  });

  it('a use that begins after the plan was made: it is refused', () => {
    const { machine, binder } = setUp();
    machine.addNode(DISK);
    const functions = binder.resolve([B]);
    const plans = binder.plan(functions);
    assert.equal(plans[0].error, undefined);
    machine.held.add('/dev/sda');
    assert.equal(errorOf(only(binder.bind(functions, {}, plans))).code, 'EBUSY');
    assert.deepEqual([machine.writes, machine.claimed], [[], []]);
  });

  it('another device has taken its place after the plan was made: that device stays unchanged', () => {
    const { machine, binder } = setUp();
    const functions = binder.resolve([A, B]);
    const plans = binder.plan(functions);
    const back = binder.unbindPlan(functions);
    for (const other of [{ device: 0x1234 }, { vendor: 0x1af4 }, { classCode: 0x010802 }]) {
      machine.unplug(A);
      machine.plug({ address: A, group: 5, ...other });
      const [refused, done] = binder.bind(functions, {}, plans);
      assert.match(errorOf(refused).reason, /a different device is at this address now: .* instead of 8086:10d3/);
      assert.deepEqual([errorOf(refused).code, refused.to, done.error], ['ENODEV', 'e1000e', undefined]);
      assert.match(errorOf(refused).hint ?? '', /anydma devices/);
      assert.equal(errorOf(binder.unbind(functions, {}, back)[0]).code, 'ENODEV');
      assert.ok(!machine.writes.some((write) => write.includes(A)));
    }
  });

  it('what is refused is named by the command, with a next step', () => {
    for (const operation of ['bind', 'unbind'] as const) {
      const machine = new FakeMachine({ functions: GROUPED });
      const binder = new PciBinder(machine, operation);
      const refusals = [
        (): unknown => binder.resolve(['nosuch']),
        (): unknown => binder.plan(binder.resolve([A]), { driver: '../x' }),
        (): unknown => binder.plan(binder.resolve([A]), { driver: 'nosuch' }),
      ];
      for (const refused of refusals)
        assert.throws(refused, (error) => {
          assert.ok(error instanceof DmaError, String(error));
          assert.deepEqual([error.operation, error.hint === undefined], [operation, false], error.message);
          return true;
        });
      const [bridge] = binder.plan(binder.resolve([BRIDGE]));
      assert.deepEqual([bridge.error?.operation, bridge.error?.hint], [operation, 'name the devices behind it']);
    }
  });

  it('no member of a group is taken if one is in use', () => {
    const { machine, binder } = inUse();
    const [a, b] = bind(binder, [A], { wholeGroup: true });
    assert.deepEqual([a.to, b.to, errorOf(a).code], ['e1000e', 'ahci', 'EBUSY']);
    assert.match(errorOf(a).message, /0000:00:03\.0 in its IOMMU group can not be taken: it is in use: its disk sda/);
    assert.deepEqual(machine.writes, []);
  });

  it('a plan changes nothing, and says what would be done and why not', () => {
    const { machine, binder } = inUse();
    const plans = binder.plan(binder.resolve([A, B, C, BRIDGE]));
    assert.deepEqual(
      plans.map(({ action, to, error }) => [action, to, error?.code]),
      [
        ['bind', 'vfio-pci', undefined],
        ['bind', 'vfio-pci', 'EBUSY'],
        ['bind', 'vfio-pci', undefined],
        ['bind', 'vfio-pci', 'ENOTSUP'],
      ],
    );
    assert.deepEqual(
      plans.map(({ uses }) => uses.map(({ text }) => text)),
      [[], ['its disk sda is mounted at /data'], [], []],
    );
    const alone = new FakeMachine({ functions: [{ address: A }] });
    new PciBinder(alone).plan(new PciBinder(alone).resolve([A]), { noIommuMode: true });
    assert.deepEqual([machine.writes, machine.claimed, alone.writes], [[], [], []]);
  });
});

describe('unbinding', () => {
  it('gives it back to the driver of the kernel', () => {
    const { machine, binder } = setUp();
    bind(binder, [A]);
    const { from, to } = only(binder.unbind(binder.resolve([A])));
    assert.deepEqual([from, to, machine.override(A)], ['vfio-pci', 'e1000e', undefined]);
  });

  it('also after somebody else has set an override', () => {
    const { machine, binder } = setUp();
    bind(binder, [A]);
    machine.writeText(`/sys/bus/pci/devices/${A}/driver_override`, 'vfio-pci\n');
    assert.equal(only(binder.unbind(binder.resolve([A]))).to, 'e1000e');
  });

  it('a function with a kernel driver stays unchanged; no driver taking it is not an error', () => {
    const { machine, binder } = setUp();
    const [a, c] = binder.unbind(binder.resolve([A, C]));
    assert.deepEqual(
      [a.from, a.to, a.error, c.from, c.to, c.error],
      ['e1000e', 'e1000e', undefined, undefined, undefined, undefined],
    );
    assert.ok(machine.writes.every((line) => !line.includes(`${A} >`)));
  });

  it('a device whose id was added to vfio-pci is taken again: an error', () => {
    const { machine, binder } = setUp();
    bind(binder, [A]);
    machine.vfioClaims.add(A);
    const { to, error } = only(binder.unbind(binder.resolve([A])));
    assert.deepEqual([to, error?.code], ['vfio-pci', 'EBUSY']);
    assert.match(
      error?.message ?? '',
      /vfio-pci took it again.*8086:10d3.*echo "8086 10d3" > \S+\/vfio-pci\/remove_id/,
    );
    machine.vfioClaims.clear();
    assert.equal(only(binder.unbind(binder.resolve([A]))).to, 'e1000e');
  });

  it('a device that a program has open is refused, unless it is forced', () => {
    const { machine, binder } = setUp();
    bind(binder, [A, B]);
    machine.addProcess(77, 'qemu', ['/dev/vfio/5']);
    machine.held.add('/dev/vfio/5');
    const { to, error } = only(binder.unbind(binder.resolve([A])));
    assert.deepEqual([to, error?.code], ['vfio-pci', 'EBUSY']);
    assert.match(error?.message ?? '', /process 77 \(qemu\) has \/dev\/vfio\/5 open/);
    assert.equal(only(binder.unbind(binder.resolve([A]), { force: true })).to, 'e1000e');
  });

  it('a group that an invisible process has open is in use, too', () => {
    const { machine, binder } = setUp();
    bind(binder, [A]);
    machine.held.add('/dev/vfio/5');
    assert.match(errorOf(only(binder.unbind(binder.resolve([A])))).message, /another program has \/dev\/vfio\/5 open/);
  });

  it('a plan of it changes nothing', () => {
    const { machine, binder } = setUp();
    bind(binder, [A]);
    machine.writes.length = 0;
    assert.deepEqual(
      binder.unbindPlan(binder.resolve([A, B])).map(({ action, to }) => [action, to]),
      [
        ['release', undefined],
        ['leave', 'ahci'],
      ],
    );
    assert.deepEqual(machine.writes, []);
  });

  it('a device that goes away meanwhile is an error of its own', () => {
    const { machine, binder } = setUp();
    const functions = binder.resolve([A, B]);
    machine.unplug(A);
    const [a, b] = binder.bind(functions);
    assert.deepEqual([a.error?.code, a.to, b.to], ['ENODEV', undefined, 'vfio-pci']);
  });
});
