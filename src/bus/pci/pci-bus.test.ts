import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { dmaError } from '../../../test/shared/errors.js';
import { DmaError, type ErrorCode } from '../../errors.js';
import { openPlatform } from '../../platform/open.js';
import type { Platform } from '../../platform/ports.js';
import { failingPlatform, trackingPlatform, type TrackingPlatform } from '../../../test/fakes/platform/platforms.js';
import { until } from '../../../test/shared/until.js';
import { Containers, type KernelSpace, type OpenedNode, type VfioNode } from '../../vfio/containers.js';
import { VfioDevice } from '../../vfio/device.js';
import { FakeDeviceFile } from '../../../test/fakes/vfio/device.js';
import type { DeviceFault, OpenedDevice } from '../model.js';
import { FREE, Script, fakeDriver, TestRegistry } from '../../../test/fakes/bus/bus.js';
import { PciBinder } from './bind.js';
import type { PciClaimer } from './claimer.js';
import { PciBus } from './pci-bus.js';
import { FakeMachine, type FakeMachineOptions } from '../../../test/fakes/bus/pci-machine.js';

const skip = openPlatform().limitation ?? false;
const PAGE = openPlatform().memory.pageSize;
const A = '0000:00:02.0';
const B = '0000:00:03.0';
const KERNELS = '0000:00:04.0';
const BRIDGE = '0000:00:1c.0';
const COMMAND = 4;
const MEMORY = 2;
const MASTER = 4;
const NO_ARGS = new Map<string, string>();
const REQUEST = 4;
const ERROR = 3;

const MACHINE: FakeMachineOptions = {
  functions: [
    { address: A, group: 5 },
    { address: B, group: 6 },
    { address: KERNELS, group: 7 },
    { address: BRIDGE, classCode: 0x060400, group: 8, driver: 'pcieport' },
  ],
};

/** A bus over one made-up device, which has all addresses. What it opened is in `opened`. */
class Bench {
  readonly machine: FakeMachine;
  readonly kernel = new FakeDeviceFile(openPlatform(), { 0: { size: 4 * PAGE, mappable: true } });
  readonly platform: TrackingPlatform;
  readonly containers: Containers;
  readonly bus: PciBus;
  /** `map default`, `close` ... */
  readonly log: string[] = [];
  readonly nodes: VfioNode[] = [];
  /** What opening a device in a container throws. */
  refusal: DmaError | undefined;

  constructor({
    machine = MACHINE,
    around = (platform) => platform,
    claimers,
  }: {
    readonly machine?: FakeMachineOptions;
    readonly around?: (platform: Platform) => Platform;
    readonly claimers?: readonly PciClaimer[];
  } = {}) {
    this.machine = new FakeMachine(machine);
    const binder = new PciBinder(this.machine);
    binder.bind(binder.resolve([A, B]));
    this.platform = trackingPlatform(around({ ...this.kernel.platform, kernel: this.machine }));
    this.containers = new Containers(this.platform);
    const { default: standard } = this.containers;
    const spaces = new Map<string, KernelSpace>();
    this.bus = new PciBus({
      platform: this.platform,
      claimers,
      containers: {
        default: standard,
        [Symbol.iterator]: () => this.containers[Symbol.iterator](),
        find: (name) => this.containers.find(name),
        takeOverDevice: () => assert.fail('nothing is taken over here'),
        open: ({ name }, node) => {
          const space = spaces.get(name) ?? this.#space(name);
          spaces.set(name, space);
          return this.#open(node, space);
        },
      },
    });
  }

  open(name = A, args: ReadonlyMap<string, string> = NO_ARGS): Promise<OpenedDevice> {
    return this.bus.open(name, args);
  }

  /** Nothing is open, and nothing was done that would have killed the process. */
  mustBeClean(): void {
    assert.deepEqual(this.platform.leaks(), []);
    assert.ok(this.kernel.released);
    assert.equal(this.kernel.connected, 0);
    assert.deepEqual(this.kernel.crashes, []);
  }

  #open(node: VfioNode, space: KernelSpace): OpenedNode {
    if (this.refusal !== undefined) throw this.refusal;
    this.nodes.push(node);
    const { files } = this.platform;
    const device = VfioDevice.fromFd(this.platform, files.open(this.kernel.path, 'read-write'), node.name);
    const release = (): void => {
      this.log.push(`release ${node.name}, master ${(this.kernel.config[COMMAND] & MASTER) !== 0}`);
      device.close();
    };
    return { device, space, release };
  }

  #space(name: string): KernelSpace {
    this.log.push(`space ${name}`);
    const unused = (): never => assert.fail('this is the containers');
    return {
      kind: 'vfio-type1',
      constraints: FREE,
      open: unused,
      release: unused,
      end: unused,
      map: ({ iova }) => void this.log.push(`map ${iova}`),
      unmap: ({ length }) => {
        this.log.push('unmap');
        return length;
      },
      close: () => void this.log.push('close space'),
    };
  }
}

/** Runs `body` with a bus; whatever it does, nothing is left. */
async function withBus(
  body: (bench: Bench) => Promise<void>,
  options: ConstructorParameters<typeof Bench>[0] = {},
): Promise<void> {
  const bench = new Bench(options);
  try {
    await body(bench);
    bench.mustBeClean();
  } finally {
    bench.kernel.dispose();
  }
}

const turn = (): Promise<void> => new Promise((resolve) => setTimeout(resolve, 5));

describe('describing the bus pci', () => {
  it('has all functions for programs, and counts those that can be opened', () => {
    const platform = { ...openPlatform(), limitation: undefined, kernel: new FakeMachine(MACHINE) };
    const { document, text, summary } = new PciBus({ platform, containers: new Containers(platform) }).describe();
    const all = document.pci as { address: string }[];
    assert.deepEqual(
      all.map(({ address }) => address),
      [A, B, KERNELS, BRIDGE],
    );
    assert.equal(summary, '3, see below');
    const [table] = text;
    assert.ok(typeof table === 'object' && table.rows.some(([cell]) => cell === `  ${KERNELS}`));
    const without = { ...platform, limitation: 'for a test' };
    const none = { document: { pci: [] }, text: [], summary: undefined };
    assert.deepEqual(new PciBus({ platform: without, containers: new Containers(without) }).describe(), none);
  });
});

describe('a PCI function that stays with its kernel driver', { skip }, () => {
  const asked: string[] = [];
  const claimer = (name: string, wanted?: string): PciClaimer => ({
    open(address, ids) {
      asked.push(`${name} ${address}`);
      if (address !== wanted) return undefined;
      return { ids, access: undefined, handle: name, onLost: () => undefined, close: () => undefined };
    },
  });

  it('is opened by the first claimer that takes it, and by no other', () =>
    withBus(
      async (bench) => {
        const opened = await bench.open(KERNELS);
        assert.equal(opened.handle, 'second');
        assert.equal(opened.ids?.vendor, 0x8086);
        assert.deepEqual(asked.splice(0), [`first ${KERNELS}`, `second ${KERNELS}`]);
        assert.deepEqual(bench.nodes, []);
        // Those that a VFIO driver has are opened by VFIO, and those that nobody claims are not.
        await (await bench.open(A)).close();
        assert.deepEqual(asked.splice(0), []);
        await assert.rejects(bench.open(BRIDGE), dmaError('ENOTSUP'));
        assert.deepEqual(asked.splice(0), [`first ${BRIDGE}`, `second ${BRIDGE}`, `third ${BRIDGE}`]);
      },
      { claimers: [claimer('first'), claimer('second', KERNELS), claimer('third', KERNELS)] },
    ));
});

describe('opening a PCI function', { skip }, () => {
  it('enables memory decoding and DMA; closing ends its DMA first, then releases everything', () =>
    withBus(async (bench) => {
      const { kernel } = bench;
      kernel.config.set([0x01, 0x05], COMMAND);
      const opened = await bench.open();
      assert.deepEqual([...kernel.config.subarray(COMMAND, COMMAND + 2)], [0x01 | MEMORY | MASTER, 0x05]);
      assert.equal(kernel.connected, 2, 'request and error');
      assert.deepEqual(opened.ids, {
        vendor: 0x8086,
        device: 0x10d3,
        subsystemVendor: 0x8086,
        subsystem: 0,
        classCode: 0x020000,
      });
      const registers = opened.access?.registers(0);
      registers?.write32(8, 0x1234);
      assert.equal(registers?.read32(8), 0x1234);
      await opened.close();
      assert.deepEqual(bench.log, ['space default', `release ${A}, master false`]);
      await opened.close();
      assert.equal(bench.log.length, 2, 'once');
      assert.throws(() => registers?.read32(8), dmaError('ENODEV'));
    }));

  it('tells VFIO its group and its character device', () =>
    withBus(async (bench) => {
      await (await bench.open()).close();
      const [{ name, group, device }] = bench.nodes;
      assert.deepEqual([name, group], [A, 5]);
      assert.match(device ?? '', /^\/dev\/vfio\/devices\/vfio\d+$/);
    }));

  it('names', () =>
    withBus(async ({ bus }) => {
      assert.deepEqual(
        ['00:02.0', A, '/run/x.sock', 'edu0'].map((name) => bus.parse(name)),
        [A, A, undefined, undefined],
      );
      assert.deepEqual(await bus.scan(), [A, B, KERNELS]);
    }));

  const refused: [what: string, name: string, args: [string, string][], code: ErrorCode, says: RegExp][] = [
    ['one that is not there', '0000:00:09.0', [], 'ENODEV', /no such PCI device.*pci:0000:00:09\.0.*anydma devices/],
    ['one of the kernel', KERNELS, [], 'EBUSY', /the driver e1000e has it.*anydma bind 0000:00:04\.0/],
    ['a bridge', BRIDGE, [], 'ENOTSUP', /it is a bridge/],
    ['a container that does not exist', A, [['container', 'x']], 'ENOENT', /no container "x".*containers: default/],
  ];
  for (const [what, name, args, code, says] of refused)
    it(`refuses ${what}`, () =>
      withBus(async (bench) => {
        await assert.rejects(bench.open(name, new Map(args)), dmaError(code, says));
        assert.deepEqual(bench.nodes, []);
      }));

  it('errors of VFIO keep their hint, or get one if they have none', () =>
    withBus(async (bench) => {
      bench.refusal = new DmaError({ code: 'EPERM', operation: 'x', reason: 'no', hint: 'do this', device: A });
      await assert.rejects(bench.open(), dmaError('EPERM', /no on pci:0000:00:02\.0 \(hint: do this\)/));
      bench.refusal = new DmaError({ code: 'EPERM', operation: 'x', reason: 'no' });
      bench.machine.nodes.clear();
      await assert.rejects(bench.open(), dmaError('EPERM', /hint: check that devtmpfs is mounted/));
    }));

  it('one that does not answer is closed again', () =>
    withBus(async (bench) => {
      bench.kernel.config.fill(0xff);
      await assert.rejects(bench.open(), dmaError('ENODEV', /does not answer/));
      assert.equal(bench.log.length, 2);
    }));

  it('whichever call fails: an error says so, and nothing is left', async () => {
    for (let n = 1; ; n++) {
      let failed: string | undefined;
      await withBus(
        async (bench) => {
          const platform = bench.platform as TrackingPlatform & ReturnType<typeof failingPlatform>;
          platform.failCall(n, 'EIO');
          try {
            await (await bench.open()).close();
          } catch (error) {
            failed = platform.failed();
            assert.ok(error instanceof DmaError, String(error));
          }
          failed = platform.failed();
        },
        { around: failingPlatform },
      );
      if (failed === undefined) {
        assert.ok(n > 15, 'all of them were tried');
        return;
      }
    }
  });
});

describe('what the kernel tells about an open PCI function', { skip }, () => {
  it('it wants the device back: DMA ends, and the device is lost, once', () =>
    withBus(async (bench) => {
      const opened = await bench.open();
      const lost: DmaError[] = [];
      opened.onLost((error) => lost.push(error));
      const registers = opened.access?.registers(0);
      bench.kernel.signalIndex(REQUEST);
      await until(() => lost.length > 0);
      assert.equal(lost[0].code, 'ENODEV');
      assert.match(lost[0].message, /the kernel wants the device back.*pci:0000:00:02\.0/);
      assert.equal(bench.kernel.config[COMMAND] & MASTER, 0);
      assert.equal(bench.kernel.connected, 0);
      assert.throws(() => registers?.read32(0), dmaError('ENODEV', /wants the device back/));
      assert.deepEqual(bench.kernel.mapped, []);
      await opened.close();
      assert.equal(lost.length, 1);
    }));

  it('before a listener is set: reported as soon as one is set', () =>
    withBus(async (bench) => {
      const opened = await bench.open();
      bench.kernel.signalIndex(REQUEST);
      await until(() => bench.kernel.connected === 0);
      const lost: string[] = [];
      opened.onLost(({ code }) => lost.push(code));
      assert.deepEqual(lost, ['ENODEV']);
      await opened.close();
    }));

  it('it has reported an error: the device stays', () =>
    withBus(async (bench) => {
      const opened = await bench.open();
      const errors: DmaError[] = [];
      bench.kernel.signalIndex(ERROR);
      await turn();
      opened.onError?.((error) => errors.push(error));
      bench.kernel.signalIndex(ERROR);
      await until(() => errors.length > 0);
      assert.match(errors[0].message, /could not correct.*pci:0000:00:02\.0/);
      assert.equal(opened.access?.registers(0).read32(0), 0);
      await opened.close();
    }));

  it('a kernel without these interrupts is fine', () =>
    withBus(async (bench) => {
      (bench.kernel.vectors as number[]).splice(3, 2, 0, 0);
      const opened = await bench.open();
      assert.equal(bench.kernel.connected, 0);
      await opened.close();
    }));

  it('faults: those since it was opened, of this device', () =>
    withBus(async (bench) => {
      const line = (device: string, iova: string): string =>
        `<3>[1.5] DMAR: [DMA Write NO_PASID] Request device [${device}] fault addr ${iova} [fault reason 0x05] x\n`;
      bench.machine.logText = line('00:02.0', '0x1000');
      const opened = await bench.open();
      const faults = (): readonly DeviceFault[] | undefined => opened.faults?.();
      assert.deepEqual(faults(), []);
      bench.machine.logText += line('00:02.0', '0x2000') + line('00:03.0', '0x3000');
      assert.deepEqual(faults(), [{ iova: 0x2000, access: 'write', source: 'kernel log' }]);
      bench.machine.logText = undefined;
      assert.deepEqual(faults(), []);
      await opened.close();
    }));
});

describe('a PCI function in a registry', { skip }, () => {
  /** A registry that has the bus, and a driver. */
  function registryOf(bench: Bench): TestRegistry {
    const registry = new TestRegistry(new Script());
    registry.registerBus(bench.bus);
    registry.registerDriver(fakeDriver(registry.script, 'one', { buses: ['pci'] }));
    return registry;
  }

  it('one that the kernel wants back loses its own mappings, and no others', () =>
    withBus(async (bench) => {
      const registry = registryOf(bench);
      bench.containers.create({ name: 'mine' });
      const a = await registry.probe(`pci:${A},container=mine`);
      const memory = registry.external.allocate(PAGE);
      const gone = a.dmaMap(memory);
      bench.kernel.signalIndex(REQUEST);
      await until(() => registry.devices().length === 0);
      await until(() => bench.kernel.released);
      assert.equal(gone.live, false);
      assert.deepEqual(registry.events, [`probed pci:${A}`, `lost pci:${A}`]);
      memory.unregister();
      const again = await registry.probe(`pci:${A},container=mine`);
      again.dmaMap(registry.external.allocate(PAGE));
      await registry.remove(again);
    }));

  it('waiting for a fault: ends with its report, or with the time, or by a signal', () =>
    withBus(async (bench) => {
      const { machine } = bench;
      const registry = registryOf(bench);
      const device = await registry.probe(`pci:${A}`);
      const report = (iova: string): void => {
        machine.logText = `${machine.logText ?? ''}<3>[9.5] DMAR: [DMA Write NO_PASID] Request device [00:02.0] fault addr ${iova} [fault\n`;
      };
      assert.deepEqual(await device.explainFaultsAsync({ timeoutMs: 0 }), []);
      assert.deepEqual(await device.explainFaultsAsync({ timeoutMs: 30 }), []);
      setTimeout(() => report('0x1000'), 50);
      const found = await device.explainFaultsAsync({ timeoutMs: 30_000 });
      assert.deepEqual(
        found.map(({ iova, access, explanation }) => [iova, access, explanation.kind]),
        [[0x1000, 'write', 'never-mapped']],
      );
      assert.equal((await device.explainFaultsAsync({ after: 1, timeoutMs: 30 })).length, 1);
      setTimeout(() => report('0x2000'), 50);
      assert.equal((await device.explainFaultsAsync({ after: 1, timeoutMs: 30_000 })).length, 2);
      const signal = AbortSignal.timeout(30);
      await assert.rejects(device.explainFaultsAsync({ after: 9, timeoutMs: 30_000, signal }), dmaError('ECANCELED'));
      await assert.rejects(device.explainFaultsAsync({ timeoutMs: NaN }), dmaError('EINVAL', /timeoutMs/));
      await registry.remove(device);
    }));

  it('physical addresses are wanted only if functions are used without an IOMMU', () => {
    const files = { '/sys/kernel/iommu_groups/5/name': 'vfio-noiommu\n' };
    const wish = (choice: 'auto' | 'noiommu', machine: FakeMachine): string | undefined => {
      const platform = { ...openPlatform(), kernel: machine };
      const containers = new Containers(platform, { choice });
      return new PciBus({ platform, containers }).iovaWish();
    };
    const machine = new FakeMachine({ ...MACHINE, files });
    assert.equal(wish('noiommu', machine), undefined, 'the kernel has it');
    const binder = new PciBinder(machine);
    binder.bind(binder.resolve([A]));
    assert.equal(wish('noiommu', machine), 'pa');
    assert.equal(wish('auto', machine), undefined);
    assert.equal(wish('noiommu', new FakeMachine(MACHINE)), undefined);
  });
});
