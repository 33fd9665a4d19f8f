import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { dmaError } from '../../test/shared/errors.js';
import { DmaError, isDmaError } from '../errors.js';
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

const turn = (): Promise<void> => new Promise(setImmediate);

describe('a device that is lost', () => {
  it('loses its mappings, is released by its driver, and can be probed again', async () => {
    const { registry, script, bus, memory } = bench();
    const device = await registry.probe('fake:a');
    const mapping = device.dmaMap(memory);
    const { domain } = device;
    script.take();
    bus.lose('a');
    assert.equal(mapping.live, false);
    assert.equal(domain?.iovaOf(memory.va), -1);
    memory.unregister();
    assert.throws(() => device.dmaMap(memory), dmaError('ENODEV', /a was pulled/));
    await assert.rejects(registry.probe('fake:a'), dmaError('EBUSY'));
    await turn();
    assert.deepEqual(script.take(), ['one.remove a', 'closeDomain a', 'close a']);
    assert.deepEqual(registry.events, ['probed fake:a', 'lost fake:a']);
    assert.equal(device.state, 'gone');
    assert.deepEqual(registry.devices(), []);
    assert.throws(() => domain?.mapFor('fake:a', memory), dmaError('ENODEV', /a was pulled/));
    await registry.remove(device);
    mapping[Symbol.dispose]();

    const again = await registry.probe('fake:a');
    const next = registry.external.allocate(4096);
    again.dmaMap(next).unmap();
    bus.lose('a');
    await turn();
    assert.deepEqual(registry.events.slice(2), ['probed fake:a', 'lost fake:a']);
  });

  it('calls that undo something succeed; all other calls are ENODEV with the cause', async () => {
    for (const keyOf of [undefined, sharedKey]) {
      const { registry, bus, memory, script } = bench({ keyOf });
      const device = await registry.probe('fake:a');
      const other = await registry.probe('fake:b');
      const driver = registry.drivers[0];
      const mapping = device.dmaMap(memory);
      const { iova } = mapping;
      const target = { va: memory.va, length: memory.length };
      const second = registry.mapAll(registry.external.allocate(4096), [device, other]);
      bus.lose('a');
      await Promise.all([registry.remove(device), registry.remove(device)]);
      assert.equal(device.state, 'gone');
      mapping.unmap();
      mapping.unmap();
      await mapping.unmapAsync();
      mapping[Symbol.dispose]();
      device.dmaUnmap(mapping);
      device.dmaUnmap(target);
      second.unmap();
      await registry.remove(device);
      assert.deepEqual(registry.events, ['probed fake:a', 'probed fake:b', 'lost fake:a']);
      const gone = (error: unknown): boolean =>
        error instanceof DmaError && error.code === 'ENODEV' && error.cause === device.lost;
      assert.throws(() => device.dmaMap(memory), gone);
      await assert.rejects(device.dmaMapAsync(memory), gone);
      assert.throws(() => device.use(driver), gone);
      assert.throws(() => device.access, gone);
      assert.throws(() => registry.mapAll(memory, [other, device]), gone);
      assert.throws(() => mapping.iova, gone);
      assert.throws(() => mapping.lkey, gone);
      assert.equal(device.explain(iova).kind, 'unmapped');
      assert.deepEqual(device.explainFaults(), []);
      assert.ok(!script.log.some((step) => step.startsWith('unmap a')), 'nobody is there to be asked');
      memory.unregister();
    }
  });

  it('a removed device is not a lost one: its mappings can not be unmapped twice', async () => {
    const { registry, memory } = bench();
    const device = await registry.probe('fake:a');
    const mapping = device.dmaMap(memory);
    await registry.remove(device);
    assert.throws(() => mapping.unmap(), dmaError('EINVAL'));
    assert.throws(() => device.dmaMap(memory), dmaError('EINVAL'));
    await assert.rejects(registry.remove(device), dmaError('EINVAL'));
  });

  it('reports the loss after everything is released, so that a listener can probe it again', async () => {
    const script = new Script();
    let why: DmaError | undefined;
    let again: Promise<unknown> | undefined;
    const registry: TestRegistry = new TestRegistry(script, {
      changed: (change, device, error) => {
        if (change !== 'lost') return;
        why = error;
        again = registry.probe(device.name);
      },
    });
    const bus = new FakeBus(script, { spaceOf: fakeSpaces(script).spaceOf });
    registry.registerBus(bus);
    registry.registerDriver(fakeDriver(script, 'one'));
    await registry.probe('fake:a');
    bus.lose('a');
    await turn();
    assert.equal(why?.code, 'ECONNRESET');
    await again;
    assert.equal(registry.devices().length, 1);
  });

  it('is removed even if every step fails', async () => {
    const { registry, script, bus } = bench();
    await registry.probe('fake:a');
    for (const step of ['one.remove a', 'closeDomain a', 'close a']) script.failing.set(step, 'EIO');
    bus.lose('a');
    await turn();
    assert.deepEqual(registry.events, ['probed fake:a', 'lost fake:a']);
  });

  it('while it is being probed: that fails, and leaves nothing', async () => {
    const wait = gate();
    const { registry, script, bus, memory } = bench({
      drivers: (script) => [
        fakeDriver(script, 'slow', {
          probe: async (device) => {
            device.dmaMap(memory);
            await wait.opened;
          },
        }),
      ],
    });
    const probing = registry.probe('fake:a');
    await turn();
    bus.lose('a');
    memory.unregister();
    wait.open();
    await assert.rejects(probing, dmaError('ECONNRESET', /a was pulled on fake:a/));
    assert.deepEqual(script.take(), [
      'open a',
      'domain a',
      'slow.probe a',
      'map a',
      'slow.remove a',
      'closeDomain a',
      'close a',
    ]);
    assert.deepEqual(registry.events, []);
    assert.deepEqual(registry.devices(), []);
  });

  it('while it is being opened, before a listener is set', async () => {
    const { registry, script, bus } = bench();
    const { open } = bus;
    bus.open = async (name) => ({
      ...(await open.call(bus, name)),
      onLost: (lost) => lost(new DmaError({ code: 'ENODEV', operation: 'fake', reason: 'it went at once' })),
    });
    await assert.rejects(registry.probe('fake:a'), dmaError('ENODEV', /went at once/));
    assert.ok(script.take().includes('close a'));
  });

  it('in any microtask around the one in which it becomes probed: reported once, and it can be probed again', async () => {
    const seen = new Set<string>();
    for (let gap = 0; gap < 40; gap++) {
      const { registry, bus, memory } = bench();
      const group = registry.mapAll(memory);
      const probing = registry.probe('fake:a').then(
        () => 'probed',
        (error: unknown) => (assert.ok(isDmaError(error, 'ECONNRESET')), 'refused'),
      );
      for (let i = 0; i < gap; i++) await Promise.resolve();
      bus.lose('a');
      const outcome = await probing;
      await turn();
      const lost = registry.devices().length === 0;
      if (outcome === 'refused') assert.deepEqual([registry.events, lost], [[], true]);
      else assert.deepEqual(registry.events, lost ? ['probed fake:a', 'lost fake:a'] : ['probed fake:a']);
      if (lost) await registry.probe('fake:a');
      seen.add(`${outcome}, ${lost ? 'lost' : 'there'}`);
      assert.deepEqual(await registry.close(), []);
      group.unmap();
      memory.unregister();
    }
    assert.ok(seen.has('refused, lost') && seen.has('probed, lost'), [...seen].join('; '));
  });

  it('while it is being removed: it is removed, not lost', async () => {
    const { registry, script, bus } = bench();
    const device = await registry.probe('fake:a');
    script.during.set('one.remove a', () => bus.lose('a'));
    await registry.remove(device);
    await turn();
    assert.deepEqual(registry.events, ['probed fake:a', 'removed fake:a']);
  });

  it('while standing groups are mapped for it', async () => {
    const { registry, script, bus, memory } = bench();
    const group = registry.mapAll(memory);
    script.during.set('map a', () => bus.lose('a'));
    await assert.rejects(registry.probe('fake:a'), dmaError('ECONNRESET'));
    assert.deepEqual(registry.devices(), []);
    group.unmap();
    memory.unregister();
  });

  it('in the middle of a map, and of an asynchronous one', async () => {
    const { registry, script, bus, memory } = bench();
    const device = await registry.probe('fake:a');
    let maps = 0;
    script.during.set('map a', () => {
      if (++maps === 2) bus.lose('a');
    });
    await assert.rejects(
      device.dmaMapAsync(memory, { chunkBytes: 4096 }),
      (error) => error instanceof DmaError && error.code === 'ENODEV' && error.cause === device.lost,
    );
    await turn();
    assert.ok(!script.take().includes('unmap a'), 'nobody is there to be asked');
    memory.unregister();

    const again = await registry.probe('fake:a');
    const next = registry.external.allocate(4096);
    maps = 1;
    assert.throws(() => again.dmaMap(next), dmaError('ENODEV', /a was pulled/));
    await turn();
    next.unregister();
    assert.deepEqual(registry.devices(), []);
  });

  it('in the middle of an unmap: the unmap succeeds', async () => {
    const { registry, script, bus, memory } = bench();
    const device = await registry.probe('fake:a');
    const mapping = device.dmaMap(memory, { iova: 0x1000 });
    script.during.set('unmap a', () => bus.lose('a'));
    mapping.unmap();
    assert.equal(mapping.live, false);
    memory.unregister();
  });
});
