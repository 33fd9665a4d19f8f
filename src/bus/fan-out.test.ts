import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { dmaError } from '../../test/shared/errors.js';
import { isDmaError } from '../errors.js';
import type { Va } from '../units.js';
import { bench, sharedKey } from '../../test/fakes/bus/bus.js';

describe('one range on a list of devices', () => {
  it('is mapped on each, and unmapped in reverse', async () => {
    const { registry, script, memory } = bench();
    const devices = [await registry.probe('fake:a'), await registry.probe('fake:b'), await registry.probe('fake:c')];
    script.take();
    const group = registry.mapAll(memory, [...devices, devices[0]], { access: 'read' });
    assert.deepEqual(script.take(), ['map a', 'map b', 'map c']);
    assert.deepEqual(
      group.mappings.map(({ device, access }) => [device, access]),
      [
        ['fake:a', 'read'],
        ['fake:b', 'read'],
        ['fake:c', 'read'],
      ],
    );
    assert.equal(group.of(devices[1])?.device, 'fake:b');
    group[Symbol.dispose]();
    assert.deepEqual(script.take(), ['unmap c', 'unmap b', 'unmap a']);
    group[Symbol.dispose]();
    assert.deepEqual(script.take(), []);
    assert.deepEqual(group.mappings, []);
    memory.unregister();
  });

  for (const [nth, name] of ['a', 'b', 'c'].entries())
    it(`when it fails on device ${nth + 1}, it is on none`, async () => {
      const { registry, script, memory, spaces } = bench();
      const devices = [await registry.probe('fake:a'), await registry.probe('fake:b'), await registry.probe('fake:c')];
      script.take();
      script.failing.set(`map ${name}`, 'EPERM');
      assert.throws(
        () => registry.mapAll(memory, devices),
        (error) => isDmaError(error, 'EPERM') && error.device === `fake:${name}` && error.undo.length === 0,
      );
      assert.equal(spaces.mapped.size, 0);
      const undone = script.take().filter((step) => step.startsWith('unmap'));
      assert.deepEqual(undone, ['unmap b', 'unmap a'].slice(2 - nth));
      memory.unregister();
    });

  it('tells what could not be undone, and undoes the rest', async () => {
    const { registry, script, memory } = bench();
    const devices = [await registry.probe('fake:a'), await registry.probe('fake:b'), await registry.probe('fake:c')];
    script.failing.set('map c', 'EPERM');
    script.failing.set('unmap b', 'EIO');
    assert.throws(
      () => registry.mapAll(memory, devices),
      (error) => {
        assert.ok(isDmaError(error, 'EPERM'));
        assert.equal(error.undo.length, 1);
        assert.ok(isDmaError(error.undo[0], 'EIO'));
        assert.match(error.message, /undoing it failed too/);
        return true;
      },
    );
    assert.throws(() => memory.unregister(), dmaError('EBUSY', /by fake:b$|by fake:b /));
    script.failing.clear();
    devices[1].dmaUnmap(memory);
    memory.unregister();
  });

  it('mappings that existed before stay when it fails', async () => {
    const { registry, memory } = bench({ keyOf: sharedKey });
    const devices = [await registry.probe('fake:a'), await registry.probe('fake:b')];
    const before = devices[0].dmaMap(memory);
    const other = registry.external.allocate(4096);
    devices[1].dmaMap(other, { iova: 0x5000 });
    assert.throws(() => registry.mapAll(other, devices, { iova: 0x6000 }), dmaError('EEXIST'));
    assert.equal(before.live, true);
    assert.deepEqual(registry.mapAll(memory, devices).mappings.length, 2);
  });

  it('a device that is not probed is EINVAL, and it is on none', async () => {
    const { registry, memory, spaces } = bench();
    const a = await registry.probe('fake:a');
    const b = await registry.probe('fake:b');
    await registry.remove(b);
    assert.throws(() => registry.mapAll(memory, [a, b]), dmaError('EINVAL', /fake:b/));
    assert.equal(spaces.mapped.size, 0);
  });

  it('a device that was removed is no longer in the group, also after it is probed again', async () => {
    const { registry, memory } = bench();
    const a = await registry.probe('fake:a');
    const b = await registry.probe('fake:b');
    const group = registry.mapAll(memory, [a, b]);
    await registry.remove(b);
    assert.equal(group.of(b), undefined);
    const again = await registry.probe('fake:b');
    assert.equal(group.of(again), undefined);
    group.unmap();
    memory.unregister();
  });

  it('an unmap that failed can be tried again', async () => {
    const { registry, script, memory } = bench();
    const devices = [await registry.probe('fake:a'), await registry.probe('fake:b'), await registry.probe('fake:c')];
    const group = registry.mapAll(memory, devices);
    script.failing.set('unmap b', 'EIO');
    assert.throws(() => group.unmap(), dmaError('EIO'));
    assert.deepEqual(
      group.mappings.map(({ device }) => device),
      ['fake:b'],
    );
    script.failing.clear();
    group.unmap();
    memory.unregister();
  });

  it('a mapping that was unmapped before does not disturb the group', async () => {
    const { registry, script, memory } = bench();
    const devices = [await registry.probe('fake:a'), await registry.probe('fake:b')];
    const group = registry.mapAll(memory, devices);
    group.of(devices[0])?.unmap();
    script.take();
    group.unmap();
    assert.deepEqual(script.take(), ['unmap b']);
  });
});

describe('what is mapped for every device', () => {
  it('is mapped for devices that are probed later, and unmapped when they are removed', async () => {
    const { registry, script, memory } = bench();
    const a = await registry.probe('fake:a');
    const group = registry.mapAll(memory, undefined, { access: 'read' });
    assert.deepEqual([...registry.standing], [group]);
    script.take();
    const b = await registry.probe('fake:b');
    assert.deepEqual(script.take(), ['open b', 'domain b', 'one.probe b', 'map b']);
    assert.equal(group.of(b)?.access, 'read');
    await registry.remove(a);
    assert.deepEqual(script.take(), ['one.remove a', 'unmap a', 'closeDomain a', 'close a']);
    assert.equal(group.of(a), undefined);
    const again = await registry.probe('fake:a');
    assert.equal(group.of(again)?.live, true);
    group.unmap();
    assert.deepEqual([...registry.standing], []);
    script.take();
    await registry.probe('fake:c');
    assert.deepEqual(script.take(), ['open c', 'domain c', 'one.probe c'], 'it is not replayed any more');
    memory.unregister();
  });

  it('if it can not be mapped for a device that is probed later, probing fails, and other devices keep their mappings', async () => {
    const { registry, script, memory } = bench();
    const other = registry.external.allocate(4096);
    const a = await registry.probe('fake:a');
    const first = registry.mapAll(memory);
    const second = registry.mapAll(other);
    script.take();
    script.during.set('map b', () => {
      // The first group goes well, the second does not.
      if (script.log.filter((step) => step === 'map b').length === 2) script.failing.set('map b', 'ENOMEM');
    });
    await assert.rejects(registry.probe('fake:b'), dmaError('ENOMEM', /fake:b/));
    assert.deepEqual(script.take(), [
      'open b',
      'domain b',
      'one.probe b',
      'map b',
      'map b',
      'one.remove b',
      'unmap b',
      'closeDomain b',
      'close b',
    ]);
    assert.equal(registry.find('fake:b'), undefined);
    assert.deepEqual([first.of(a)?.live, second.of(a)?.live], [true, true]);
    assert.deepEqual([...registry.standing], [first, second]);
    script.failing.clear();
    script.during.clear();
    const b = await registry.probe('fake:b');
    assert.deepEqual([first.of(b)?.live, second.of(b)?.live], [true, true]);
    first.unmap();
    second.unmap();
    memory.unregister();
    other.unregister();
  });

  it('if it fails for one present device, it is mapped for none, now and later', async () => {
    const { registry, script, memory, spaces } = bench();
    await registry.probe('fake:a');
    await registry.probe('fake:b');
    script.failing.set('map b', 'EPERM');
    assert.throws(() => registry.mapAll(memory), dmaError('EPERM'));
    assert.deepEqual([...registry.standing], []);
    assert.equal(spaces.mapped.size, 0);
    script.failing.clear();
    await registry.probe('fake:c');
    assert.equal(spaces.mapped.size, 0);
    memory.unregister();
  });

  it('holds its memory from the start, even if there is no device yet', async () => {
    const { registry, memory } = bench();
    const group = registry.mapAll(memory);
    assert.throws(() => memory.unregister(), dmaError('EBUSY', /mapped by eal\.dmaMapAll/));
    const a = await registry.probe('fake:a');
    assert.equal(group.of(a)?.va, memory.va);
    assert.throws(() => memory.unregister(), dmaError('EBUSY', /eal\.dmaMapAll.*fake:a/));
    await registry.remove(a);
    assert.throws(() => memory.unregister(), dmaError('EBUSY', /eal\.dmaMapAll/));
    group.unmap();
    group.unmap();
    memory.unregister();
    await registry.probe('fake:a');
  });

  it('is refused even without a device, if it could be mapped for no device', () => {
    const { registry, memory } = bench();
    const { va, length } = memory;
    const beyond = { va, length: length + 4096 };
    assert.throws(() => registry.mapAll(beyond), dmaError('EINVAL'));
    assert.throws(() => registry.mapAll({ va, length: 0 }), dmaError('EINVAL'));
    assert.throws(() => registry.mapAll(memory, undefined, { access: 'all' as 'read' }), dmaError('EINVAL'));
    assert.throws(() => registry.mapAll(memory, undefined, { iova: -1 }), dmaError('EINVAL'));
    const remote = { access: 'read', remote: 'write' } as const;
    assert.throws(() => registry.mapAll(memory, undefined, remote), dmaError('EINVAL'));
    assert.deepEqual([...registry.standing], []);
    memory.unregister();
  });

  it('keeps the requested values, not the objects of the caller', async () => {
    const { registry, memory } = bench();
    const target = { va: memory.va, length: 4096 };
    const options: { access: 'read' | 'write' } = { access: 'read' };
    const first = registry.mapAll(target, undefined, options);
    target.va = (memory.va + 4096) as Va;
    options.access = 'write';
    const second = registry.mapAll(target, undefined, options);
    const a = await registry.probe('fake:a');
    assert.deepEqual([first.of(a)?.va, first.of(a)?.access], [memory.va, 'read']);
    assert.deepEqual([second.of(a)?.va, second.of(a)?.access], [memory.va + 4096, 'write']);
  });

  it('can not be unmapped from one device alone, by address or by handle; mappings of the program can', async () => {
    const { registry, memory } = bench();
    const a = await registry.probe('fake:a');
    const standing = registry.mapAll(memory);
    assert.throws(() => a.dmaUnmap(memory), dmaError('EINVAL', /for every device/));
    const its = standing.of(a);
    assert.throws(() => its?.unmap(), dmaError('EBUSY', /for every device/));
    assert.throws(() => its?.[Symbol.dispose](), dmaError('EBUSY'));
    await assert.rejects(async () => its?.unmapAsync(), dmaError('EBUSY'));
    const own = a.dmaMap(memory);
    a.dmaUnmap({ va: memory.va, length: memory.length });
    assert.deepEqual([own.live, its?.live], [false, true], 'it took the younger one, which is its own');
    assert.throws(() => a.dmaUnmap(memory), dmaError('EINVAL'));
    standing.unmap();
    assert.equal(its?.live, false);
    memory.unregister();
  });

  it('a lost device is dropped from it, and gets it again when it comes back', async () => {
    const { registry, bus, memory } = bench();
    const a = await registry.probe('fake:a');
    const group = registry.mapAll(memory);
    bus.lose('a');
    assert.equal(group.of(a), undefined);
    await new Promise(setImmediate);
    const again = await registry.probe('fake:a');
    assert.equal(group.of(again)?.live, true);
  });
});
