import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { dmaError } from '../../test/shared/errors.js';
import { DmaError, isDmaError } from '../errors.js';
import type { ExternalMemory } from '../memory/external.js';
import { MiB, type Va } from '../units.js';
import type { AddressSpace } from '../dma/address-space.js';
import { type Device, type Driver, TRY_NEXT } from './model.js';
import { matchesIds } from './match.js';
import {
  bench,
  gate,
  Script,
  FakeBus,
  fakeDriver,
  fakeSpaces,
  sharedKey,
  TestRegistry,
} from '../../test/fakes/bus/bus.js';

const IDS = { vendor: 0x1234, device: 0x11e8, subsystemVendor: 1, subsystem: 2, classCode: 0x00ff00 };

describe('registering', () => {
  it('refuses a second bus or driver of the same name', () => {
    const { registry, script } = bench();
    assert.throws(() => registry.registerBus(new FakeBus(script)), dmaError('EEXIST', /bus fake/));
    assert.throws(() => registry.registerDriver(fakeDriver(script, 'one')), dmaError('EEXIST', /driver one/));
    assert.deepEqual([...registry.buses].length, 1);
    assert.deepEqual(registry.drivers.length, 1);
  });

  const whole = fakeSpaces(new Script()).spaceOf;
  const parts: [missing: string, part: (space: AddressSpace) => Partial<AddressSpace>][] = [
    ['unmap', ({ kind, constraints, map, close }) => ({ kind, constraints, map, close })],
    ['map', ({ kind, constraints, unmap, close }) => ({ kind, constraints, unmap, close })],
    ['close', ({ kind, constraints, map, unmap }) => ({ kind, constraints, map, unmap })],
    ['map and no unmap and no close', () => ({})],
  ];
  for (const [missing, part] of parts)
    it(`DM-23: refuses an address space without ${missing}, of a bus or a driver`, async () => {
      const { registry, script } = bench();
      const half = (device: Device): AddressSpace => part(whole(device)) as AddressSpace;
      registry.registerDriver(fakeDriver(script, 'two', { buses: ['fake', 'other'], spaceOf: half }));
      registry.registerBus(new FakeBus(script, { name: 'other', spaceOf: half }));
      registry.registerDriver(fakeDriver(script, 'three', { buses: ['other'] }));
      for (const name of ['bus=fake,name=a/driver=two', 'bus=other,name=a/driver=three'])
        await assert.rejects(registry.probe(name), dmaError('EINVAL', new RegExp(`no ${missing}`)));
      assert.deepEqual(registry.devices(), [], 'nothing is probed');
      assert.ok(script.take().includes('close a'), 'nothing is left open');
    });
});

describe('matching', () => {
  const driver = (ids?: Driver['ids']): Driver => ({ name: 'd', buses: ['fake'], ids, probe: () => undefined });
  const cases: [what: string, ids: Driver['ids'], device: Required<typeof IDS> | undefined, matches: boolean][] = [
    ['driver without ids, device without ids', undefined, undefined, true],
    ['no ids asked for', undefined, IDS, true],
    ['driver with ids, device without ids', [{}], undefined, false],
    ['a wildcard', [{}], IDS, true],
    ['vendor and device', [{ vendor: 0x1234, device: 0x11e8 }], IDS, true],
    ['another device', [{ vendor: 0x1234, device: 0x11e9 }], IDS, false],
    ['an undefined field', [{ vendor: undefined, device: 0x11e8 }], IDS, true],
    ['the second of two', [{ vendor: 1 }, { classCode: 0x00ff00 }], IDS, true],
    ['subsystem', [{ subsystemVendor: 1, subsystem: 3 }], IDS, false],
    ['an empty list', [], IDS, false],
  ];
  for (const [what, ids, device, matches] of cases)
    it(`by ids: ${what}`, () => {
      assert.equal(matchesIds(driver(ids), device), matches);
    });

  it('tries drivers in the order they were registered, and the next one after TRY_NEXT', async () => {
    const { registry, script } = bench({
      drivers: (script) => [
        fakeDriver(script, 'otherBus', { buses: ['else'] }),
        fakeDriver(script, 'otherIds', { ids: [{ vendor: 1 }] }),
        fakeDriver(script, 'declines', { probe: () => TRY_NEXT }),
        fakeDriver(script, 'takes'),
        fakeDriver(script, 'late'),
      ],
    });
    const device = await registry.probe('fake:a');
    assert.equal(device.driver?.name, 'takes');
    assert.deepEqual(script.take(), [
      'open a',
      'domain a',
      'declines.probe a',
      'closeDomain a',
      'domain a',
      'takes.probe a',
    ]);
  });

  it('drivers of every bus are tried after those that name the bus, also those registered later', async () => {
    const { registry, script } = bench({
      drivers: (script) => [fakeDriver(script, 'every', { buses: undefined, keys: [] })],
    });
    registry.registerBus(Object.assign(new FakeBus(script, { name: 'other' }), { keys: [] }));
    assert.equal((await registry.probe('fake:a')).driver?.name, 'every');
    registry.registerDriver(fakeDriver(script, 'named', { buses: ['other'], keys: ['k'] }));
    assert.equal((await registry.probe('other:a,k=1')).driver?.name, 'named');
    assert.equal((await registry.probe('bus=other,name=b/driver=every')).driver?.name, 'every');
    await assert.rejects(registry.probe('other:c,l=1'), dmaError('EINVAL', /known keys: k/));
    assert.throws(
      () => registry.registerDriver({ ...fakeDriver(script, 'bad'), buses: 'fake' as never }),
      dmaError('EINVAL', /array of bus names/),
    );
  });

  it('memory that a driver mapped before it declined is unmapped', async () => {
    const { registry, memory, spaces } = bench({
      drivers: (script) => [
        fakeDriver(script, 'declines', {
          probe: (device) => {
            device.dmaMap(memory);
            return TRY_NEXT;
          },
        }),
        fakeDriver(script, 'takes'),
      ],
    });
    const device = await registry.probe('fake:a');
    assert.equal(spaces.mapped.size, 0);
    assert.equal(device.domain?.entries, 0);
    memory.unregister();
  });

  it('asks the bus whether a driver matches', async () => {
    const { registry, bus } = bench({
      drivers: (script) => [fakeDriver(script, 'one'), fakeDriver(script, 'two')],
    });
    bus.match = (_opened, { name }) => name === 'two';
    assert.equal((await registry.probe('fake:a')).driver?.name, 'two');
  });

  it('takes the driver and the class given in the name', async () => {
    const { registry } = bench({
      drivers: (script) => [fakeDriver(script, 'one'), fakeDriver(script, 'two', { deviceClass: 'dma' })],
    });
    assert.equal((await registry.probe('bus=fake,name=a/driver=two')).driver?.name, 'two');
    assert.equal((await registry.probe('bus=fake,name=b/class=dma')).driver?.name, 'two');
    await assert.rejects(registry.probe('bus=fake,name=c/class=net'), dmaError('ENOTSUP'));
    await assert.rejects(
      registry.probe('bus=fake,name=c/driver=three'),
      dmaError('ENOTSUP', /registered drivers: one, two/),
    );
  });
});

describe('probing', () => {
  it('returns the object of the driver, for that driver only', async () => {
    const { registry, script } = bench();
    const device = await registry.probe('fake:a,k=v');
    const [driver] = registry.drivers;
    assert.equal(device.name, 'fake:a');
    assert.equal(device.state, 'probed');
    assert.deepEqual([...device.args], [['k', 'v']]);
    assert.equal(device.use(driver), 'one of a');
    assert.throws(() => device.use(fakeDriver(script, 'two')), dmaError('EINVAL', /driven by one, not by two/));
    assert.deepEqual(registry.events, ['probed fake:a']);
    await registry.remove(device);
    assert.throws(() => device.use(driver), dmaError('EINVAL', /was removed/));
    assert.equal(device.driver, undefined);
    assert.deepEqual(registry.events, ['probed fake:a', 'removed fake:a']);
  });

  it('refuses names of devices that can not exist', async () => {
    const { registry } = bench();
    await assert.rejects(registry.probe('nobus:a'), dmaError('ENODEV', /no bus "nobus".*registered buses: fake/));
    await assert.rejects(registry.probe('fake:x'), dmaError('ENODEV', /could be called "x"/));
    await assert.rejects(registry.probe('x'), dmaError('ENODEV'));
    await assert.rejects(registry.probe('fake:'), dmaError('EINVAL'));
    await assert.rejects(registry.probe('bus=fake'), dmaError('EINVAL', /names no device/));
    assert.throws(() => registry.find('nobus:a'), dmaError('ENODEV'));
  });

  it('finds the bus by itself', async () => {
    const { registry } = bench();
    const device = await registry.probe('a');
    assert.equal(device.name, 'fake:a');
    assert.equal(registry.find('a'), device);
    assert.equal(registry.find('bus=fake,name=a'), device);
    assert.equal(registry.find('b'), undefined);
  });

  it('refuses a device that is probed, and one that is being probed or removed', async () => {
    const wait = gate();
    const { registry, script } = bench({
      drivers: (script) => [fakeDriver(script, 'slow', { probe: async () => wait.opened })],
    });
    const first = registry.probe('fake:a');
    await assert.rejects(registry.probe('fake:a'), dmaError('EBUSY'));
    assert.equal(registry.find('fake:a'), undefined, 'it is not there yet');
    assert.deepEqual(registry.devices(), []);
    wait.open();
    const device = await first;
    await assert.rejects(registry.probe('fake:a'), dmaError('EEXIST', /fake:a/));
    await assert.rejects(registry.probe('bus=fake,name=a'), dmaError('EEXIST'));
    const removal = registry.remove(device);
    await assert.rejects(registry.remove(device), dmaError('EBUSY'));
    await assert.rejects(registry.probe('fake:a'), dmaError('EBUSY'));
    assert.deepEqual(registry.devices(), [], 'it is on its way out');
    await removal;
    await assert.rejects(registry.remove(device), dmaError('EINVAL'));
    script.take();
    await registry.probe('fake:a');
    assert.deepEqual(script.take(), ['open a', 'domain a', 'slow.probe a']);
    await assert.rejects(registry.remove(device), dmaError('EINVAL'), 'the old one is not the new one');
  });

  it('a device without a driver is closed', async () => {
    const { registry, script } = bench({ drivers: () => [] });
    await assert.rejects(registry.probe('fake:a'), dmaError('ENOTSUP', /no driver matches/));
    assert.deepEqual(script.take(), ['open a', 'close a']);
  });

  it('a device that every driver declines is closed, and so is its domain', async () => {
    const { registry, script } = bench({
      drivers: (script) => [fakeDriver(script, 'declines', { probe: () => TRY_NEXT })],
    });
    await assert.rejects(registry.probe('fake:a'), dmaError('ENOTSUP', /declined/));
    assert.deepEqual(script.take(), ['open a', 'domain a', 'declines.probe a', 'closeDomain a', 'close a']);
  });

  it('a driver that fails leaves nothing open', async () => {
    let mine: ExternalMemory | undefined;
    const { registry, script, memory, spaces } = bench({
      drivers: (script) => [
        fakeDriver(script, 'fails', {
          probe: (device, { external }) => {
            mine = external.allocate(4096);
            device.dmaMap(mine);
            device.dmaMap(memory);
            throw new RangeError('nonsense');
          },
        }),
      ],
    });
    await assert.rejects(registry.probe('fake:a'), (error) => {
      assert.ok(isDmaError(error, 'EIO'));
      assert.equal(error.device, 'fake:a');
      assert.match(error.message, /nonsense/);
      return true;
    });
    assert.deepEqual(script.take(), [
      'open a',
      'domain a',
      'fails.probe a',
      'map a',
      'map a',
      'unmap a',
      'unmap a',
      'closeDomain a',
      'close a',
    ]);
    assert.equal(spaces.mapped.size, 0);
    assert.deepEqual(registry.events, []);
    mine?.unregister();
    memory.unregister();
  });

  it('every failure of opening is a DmaError that names the device', async () => {
    const { registry, script, bus } = bench();
    script.failing.set('open a', 'EACCES');
    await assert.rejects(registry.probe('fake:a'), (error) => {
      assert.ok(isDmaError(error, 'EACCES'));
      assert.equal(error.device, 'fake:a');
      return true;
    });
    bus.open = () => Promise.reject(new TypeError('oops'));
    await assert.rejects(registry.probe('fake:a'), dmaError('EIO', /oops on fake:a/));
  });

  it('a domain that can not be opened leaves nothing open', async () => {
    const { registry, script } = bench();
    script.failing.set('domain a', 'EPERM');
    await assert.rejects(registry.probe('fake:a'), dmaError('EPERM'));
    assert.deepEqual(script.take(), ['open a', 'domain a', 'close a']);
  });

  it('a driver that does not know its address bits leaves no domain behind', async () => {
    const { registry, script } = bench({
      drivers: (script) => [
        fakeDriver(script, 'one', {
          dmaAddressBits: (args) => {
            if (args.has('bad')) throw new DmaError({ code: 'ERANGE', operation: 'bits', reason: 'bad' });
            return undefined;
          },
        }),
      ],
    });
    await assert.rejects(registry.probe('fake:a,bad=1'), dmaError('ERANGE'));
    assert.ok(!script.take().includes('domain a'));
    const device = await registry.probe('fake:a');
    assert.deepEqual(script.take(), ['open a', 'domain a', 'one.probe a']);
    await registry.remove(device);
    assert.deepEqual(script.take(), ['one.remove a', 'closeDomain a', 'close a']);
  });

  it('tells what could not be undone', async () => {
    const { registry, script, memory } = bench({
      drivers: (script) => [
        fakeDriver(script, 'fails', {
          probe: (device) => {
            device.dmaMap(memory);
            throw new DmaError({ code: 'EPROTO', operation: 'probe', reason: 'no' });
          },
        }),
      ],
    });
    script.failing.set('unmap a', 'EIO');
    script.failing.set('close a', 'EBADF');
    await assert.rejects(registry.probe('fake:a'), (error) => {
      assert.ok(isDmaError(error, 'EPROTO'));
      assert.deepEqual(
        error.undo.map((each) => isDmaError(each) && each.code),
        ['EIO', 'EBADF'],
      );
      return true;
    });
    assert.ok(script.take().includes('close a'), 'all of it was tried');
    memory.unregister();
  });

  it('scans bus by bus', async () => {
    const { registry, script, bus } = bench();
    const other = new FakeBus(script, { name: 'other' });
    registry.registerBus(other);
    other.scan = async () => ['c', 'd'];
    assert.deepEqual(await registry.scan(), ['other:c', 'other:d']);
    bus.scan = async () => ['b'];
    assert.deepEqual(await registry.scan(), ['fake:b', 'other:c', 'other:d']);
  });
});

describe('removing', () => {
  it('undoes in reverse order, tries all steps, and throws the first error', async () => {
    const { registry, script, memory } = bench();
    const device = await registry.probe('fake:a');
    const mapping = device.dmaMap(memory);
    script.take();
    script.failing.set('one.remove a', 'ETIMEDOUT');
    script.failing.set('closeDomain a', 'EBADF');
    await assert.rejects(registry.remove(device), (error) => {
      assert.ok(isDmaError(error, 'ETIMEDOUT'));
      assert.deepEqual(
        error.undo.map((each) => isDmaError(each) && each.code),
        ['EBADF'],
      );
      return true;
    });
    assert.deepEqual(script.take(), ['one.remove a', 'unmap a', 'closeDomain a', 'close a']);
    assert.equal(mapping.live, false);
    assert.equal(device.state, 'gone');
    assert.equal(registry.find('fake:a'), undefined);
    memory.unregister();
  });

  it('lets a driver unmap, but no longer map', async () => {
    const wait = gate();
    const { registry, memory, script } = bench({
      drivers: (script) => [
        {
          ...fakeDriver(script, 'slow'),
          remove: async (device) => {
            device.dmaUnmap(memory);
            await wait.opened;
          },
        },
      ],
    });
    const device = await registry.probe('fake:a');
    const mapping = device.dmaMap(memory);
    const removal = registry.remove(device);
    assert.equal(mapping.live, false);
    assert.throws(() => device.dmaMap(memory), dmaError('EINVAL', /was removed/));
    await assert.rejects(device.dmaMapAsync(memory), dmaError('EINVAL', /was removed/));
    registry.mapAll(memory);
    wait.open();
    await removal;
    script.take();
    await registry.probe('fake:a');
    assert.ok(script.take().includes('map a'), 'what was mapped for all meanwhile is mapped when it comes back');
  });

  it('listeners may probe and remove', async () => {
    const script = new Script();
    const done: Promise<unknown>[] = [];
    let again = true;
    const registry: TestRegistry = new TestRegistry(script, {
      changed: (change, device) => {
        script.log.push(change);
        if (change === 'probed') done.push(registry.remove(device));
        if (change === 'removed' && again) done.push(registry.probe(device.name));
        if (change === 'removed') again = false;
      },
    });
    registry.registerBus(new FakeBus(script));
    registry.registerDriver(fakeDriver(script, 'one'));
    await registry.probe('fake:a');
    for (let n = 0; n < done.length; n++) await done[n];
    assert.deepEqual(
      script.take().filter((step) => !step.includes(' ')),
      ['probed', 'removed', 'probed', 'removed'],
    );
  });

  it('close removes all devices, last first, also those still being probed', async () => {
    const wait = gate();
    const { registry, script } = bench({
      drivers: (script) => [
        fakeDriver(script, 'one', { probe: (device) => (device.busName === 'c' ? wait.opened : undefined) }),
      ],
    });
    await registry.probe('fake:a');
    const b = await registry.probe('fake:b');
    const pending = registry.probe('fake:c');
    const removal = registry.remove(b);
    script.take();
    const closing = registry.close();
    const rejection = assert.rejects(pending, dmaError('ECANCELED'));
    await assert.rejects(registry.probe('fake:d'), dmaError('ECANCELED'));
    wait.open();
    assert.deepEqual(await closing, []);
    await removal;
    await rejection;
    assert.deepEqual(registry.devices(), []);
    assert.deepEqual(
      script.take().filter((step) => step.startsWith('close ')),
      ['close b', 'close c', 'close a'],
    );
  });
});

describe('describing devices', () => {
  it('returns what the bus says, until the device is removed', async () => {
    const { registry, bus } = bench();
    const open = bus.open.bind(bus);
    bus.open = async (name) => ({ ...(await open(name)), describe: () => ({ document: { name }, text: [name] }) });
    const device = await registry.probe('fake:a');
    assert.deepEqual(await device.describe(), { document: { name: 'a' }, text: ['a'] });
    await registry.remove(device);
    assert.equal(await device.describe(), undefined);
    bus.open = open;
    assert.equal(await (await registry.probe('fake:b')).describe(), undefined);
  });
});

describe('finding devices', () => {
  it('by a name without a bus: buses that accept any name are asked last', async () => {
    const { registry, script } = bench();
    const greedy = Object.assign(new FakeBus(script, { name: 'greedy' }), { takesAnyName: true, parse: String });
    const late = new FakeBus(script, { name: 'late' });
    late.parse = (name) => (name === 'x' ? name : undefined);
    for (const bus of [greedy, late]) registry.registerBus(bus);
    registry.registerDriver(fakeDriver(script, 'every', { buses: undefined }));
    assert.deepEqual(
      registry.buses.map(({ name }) => name),
      ['fake', 'late', 'greedy'],
    );
    for (const [text, name] of [
      ['a', 'fake:a'],
      ['x', 'late:x'],
      ['9', 'greedy:9'],
    ])
      assert.equal((await registry.probe(text)).name, name);
  });

  it('in the order they were probed, filtered in either form', async () => {
    const { registry, script } = bench({
      drivers: (script) => [
        fakeDriver(script, 'net', { ids: [{ vendor: 1 }], deviceClass: 'net' }),
        fakeDriver(script, 'any', { buses: ['fake', 'other'], deviceClass: 'raw' }),
      ],
    });
    const other = new FakeBus(script, { name: 'other' });
    registry.registerBus(other);
    const [bus] = registry.buses;
    assert.ok(bus instanceof FakeBus);
    bus.ids.set('b', { ...IDS, vendor: 1 });
    for (const name of ['fake:c', 'other:c', 'fake:b,k=1', 'fake:a']) await registry.probe(name);
    const names = (filter?: string): string[] => registry.devices(filter).map((device) => device.name);
    assert.deepEqual(names(), ['fake:c', 'other:c', 'fake:b', 'fake:a']);
    assert.deepEqual(names('bus=fake'), ['fake:c', 'fake:b', 'fake:a']);
    assert.deepEqual(names('bus=other'), ['other:c']);
    assert.deepEqual(names('driver=net'), ['fake:b']);
    assert.deepEqual(names('class=raw'), ['fake:c', 'other:c', 'fake:a']);
    assert.deepEqual(names('bus=fake/class=raw'), ['fake:c', 'fake:a']);
    assert.deepEqual(names('bus=fake/class=raw/driver=net'), []);
    assert.deepEqual(names('bus=fake,name=b'), ['fake:b']);
    assert.deepEqual(names('bus=fake,k=1'), ['fake:b']);
    assert.deepEqual(names('bus=fake,k=2'), []);
    assert.deepEqual(names('other:c'), ['other:c']);
    assert.deepEqual(names('c'), ['fake:c']);
    assert.deepEqual(names('fake:nothing'), []);
    assert.throws(() => names('bus=nobus'), dmaError('ENODEV', /nobus/));
    assert.throws(() => names('nobus:a'), dmaError('ENODEV'));
    assert.throws(() => names('bus=fake,k'), dmaError('EINVAL'));
    assert.throws(() => names(''), dmaError('EINVAL'));
  });
});

describe('the address space that maps', () => {
  const nowhere = { va: 0x1000 as Va, length: 0 };

  it('DM-01, DM-09: a device that is not probed is EINVAL, whatever is asked for', async () => {
    const { registry, memory } = bench();
    const device = await registry.probe('fake:a');
    await registry.remove(device);
    for (const target of [memory, nowhere]) {
      assert.throws(() => device.dmaMap(target), dmaError('EINVAL', /was removed/));
      assert.throws(() => device.dmaUnmap(target), dmaError('EINVAL', /was removed/));
      await assert.rejects(device.dmaMapAsync(target), dmaError('EINVAL', /was removed/));
    }
    assert.throws(() => device.explain(0), dmaError('EINVAL'));
  });

  it('DM-02, DM-22, DM-25: neither bus nor driver can map: ENOTSUP, also to unmap', async () => {
    const { registry, memory } = bench({ mappable: false });
    const device = await registry.probe('fake:a');
    assert.equal(device.domain, undefined);
    assert.throws(() => device.dmaMap(memory), dmaError('ENOTSUP', /neither its driver one nor the bus fake/));
    assert.throws(() => device.dmaUnmap(memory), dmaError('ENOTSUP'));
    await assert.rejects(device.dmaMapAsync(memory), dmaError('ENOTSUP'));
    assert.throws(() => device.access, dmaError('ENOTSUP', /no registers/));
    memory.unregister();
  });

  it('DM-03, DM-09: a length of 0 is EINVAL', async () => {
    const { registry, memory } = bench();
    const device = await registry.probe('fake:a');
    for (const target of [nowhere, { va: memory.va, length: 0 }]) {
      assert.throws(() => device.dmaMap(target), dmaError('EINVAL'));
      assert.throws(() => device.dmaUnmap(target), dmaError('EINVAL'));
    }
  });

  it('DM-04, DM-09: unregistered memory is EINVAL, and nothing is called', async () => {
    const { registry, script } = bench();
    const device = await registry.probe('fake:a');
    script.take();
    const target = { va: (16 * MiB) as Va, length: 4096 };
    assert.throws(() => device.dmaMap(target), dmaError('EINVAL'));
    assert.throws(() => device.dmaUnmap(target), dmaError('EINVAL'));
    assert.deepEqual(script.take(), []);
  });

  it('DM-10: what is mapped can not be unregistered; unmapped and unregistered, it can not be unmapped', async () => {
    const { registry, memory } = bench();
    const device = await registry.probe('fake:a');
    device.dmaMap(memory);
    assert.throws(() => memory.unregister(), dmaError('EBUSY', /fake:a/));
    device.dmaUnmap(memory);
    memory.unregister();
    assert.throws(() => device.dmaUnmap(memory), dmaError('EINVAL'));
  });

  it("DM-20: the driver's own address space is used, and the bus's is not", async () => {
    const script = new Script();
    const own = fakeSpaces(script, { prefix: 'own ' });
    const { registry, memory, spaces } = bench({
      drivers: () => [fakeDriver(script, 'one', { spaceOf: own.spaceOf })],
    });
    const device = await registry.probe('fake:a');
    const mapping = device.dmaMap(memory, { iova: 0x8000 });
    const [segment] = own.mapped.values();
    assert.deepEqual([segment.va, segment.iova, segment.length], [memory.va, 0x8000, memory.length]);
    assert.equal(spaces.mapped.size, 0);
    mapping.unmap();
    assert.deepEqual(script.take(), ['own domain a', 'one.probe a', 'own map a', 'own unmap a']);
    await registry.remove(device);
  });

  it("DM-21: if the driver has no address space, the bus's is used", async () => {
    const { registry, script, memory, spaces } = bench();
    const device = await registry.probe('fake:a');
    script.take();
    const mapping = device.dmaMap(memory);
    assert.deepEqual(script.take(), ['map a']);
    assert.equal(spaces.mapped.get(mapping.iova)?.va, memory.va);
    device.dmaUnmap(mapping);
    assert.deepEqual(script.take(), ['unmap a']);
  });

  it('the mapping of another device is refused', async () => {
    const { registry, memory } = bench();
    const a = await registry.probe('fake:a');
    const b = await registry.probe('fake:b');
    const mapping = a.dmaMap(memory);
    assert.throws(() => b.dmaUnmap(mapping), dmaError('EINVAL', /mapping belongs to fake:a/));
    assert.equal(mapping.live, true);
    assert.throws(() => b.dmaUnmap(memory), dmaError('EINVAL'));
  });

  it('spaces of bus and driver are different domains', async () => {
    const script = new Script();
    const own = fakeSpaces(script, { prefix: 'own ', keyOf: sharedKey });
    const { registry, memory, spaces } = bench({
      keyOf: sharedKey,
      drivers: (script) => [
        fakeDriver(script, 'special', { spaceOf: own.spaceOf, ids: [{ vendor: 0x1234 }] }),
        fakeDriver(script, 'one'),
      ],
    });
    const [bus] = registry.buses;
    assert.ok(bus instanceof FakeBus);
    bus.ids.set('a', IDS);
    const a = await registry.probe('fake:a');
    const b = await registry.probe('fake:b');
    a.dmaMap(memory);
    b.dmaMap(memory);
    assert.notEqual(a.domain, b.domain);
    assert.equal(own.mapped.size, 1);
    assert.equal(spaces.mapped.size, 1);
  });
});
