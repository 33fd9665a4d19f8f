import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { dmaError } from '../../test/shared/errors.js';
import { Range } from '../ranges.js';
import { GiB, type Iova } from '../units.js';
import { bench, FREE, gate, fakeDriver, sharedKey } from '../../test/fakes/bus/bus.js';

/** A driver whose devices `narrow...` emit 28 bits. */
const BITS = { dmaAddressBits: (args: ReadonlyMap<string, string>) => (args.has('narrow') ? 28 : undefined) };

describe('devices whose spaces have the same key', () => {
  it('share one domain, and one mapping of the same range', async () => {
    const { registry, script, memory } = bench({ keyOf: sharedKey });
    const a = await registry.probe('fake:a');
    const b = await registry.probe('fake:b');
    assert.equal(a.domain, b.domain);
    assert.deepEqual([...(a.domain?.devices ?? [])], ['fake:a', 'fake:b']);
    script.take();
    const first = a.dmaMap(memory);
    const second = b.dmaMap(memory);
    assert.equal(first.iova, second.iova);
    assert.deepEqual(script.take(), ['map shared']);
    first.unmap();
    assert.deepEqual(script.take(), []);
    assert.equal(second.live, true);
    assert.throws(() => memory.unregister(), dmaError('EBUSY', /fake:b/));
    second.unmap();
    assert.deepEqual(script.take(), ['unmap shared']);
    memory.unregister();
  });

  it('the last device closes it; a device that leaves earlier removes only its own mappings', async () => {
    const { registry, script, memory } = bench({ keyOf: sharedKey });
    const other = registry.external.allocate(4096);
    const a = await registry.probe('fake:a');
    const b = await registry.probe('fake:b');
    const shared = a.dmaMap(memory);
    const kept = b.dmaMap(memory);
    const own = a.dmaMap(other);
    script.take();
    await registry.remove(a);
    assert.deepEqual(script.take(), ['one.remove a', 'unmap shared', 'close a']);
    assert.deepEqual([shared.live, own.live, kept.live], [false, false, true]);
    other.unregister();
    b.dmaUnmap(kept);
    assert.deepEqual(script.take(), ['unmap shared']);
    b.dmaMap(memory);
    await registry.remove(b);
    assert.deepEqual(script.take(), ['map shared', 'one.remove b', 'unmap shared', 'closeDomain shared', 'close b']);
    memory.unregister();
    const again = await registry.probe('fake:a');
    assert.notEqual(again.domain, a.domain);
    assert.deepEqual(script.take(), ['open a', 'domain a', 'one.probe a']);
  });

  it('a device that fails to probe leaves the others alone', async () => {
    const { registry, script, memory } = bench({ keyOf: sharedKey });
    const a = await registry.probe('fake:a');
    const mapping = a.dmaMap(memory);
    script.failing.set('one.probe b', 'EIO');
    script.take();
    await assert.rejects(registry.probe('fake:b'), dmaError('EIO'));
    assert.deepEqual(script.take(), ['open b', 'domain b', 'one.probe b', 'close b']);
    assert.equal(mapping.live, true);
    assert.deepEqual([...(a.domain?.devices ?? [])], ['fake:a']);
  });

  it('a lost device leaves the others their mappings', async () => {
    const { registry, script, bus, memory } = bench({ keyOf: sharedKey });
    const a = await registry.probe('fake:a');
    const b = await registry.probe('fake:b');
    const own = registry.external.allocate(4096);
    const gone = a.dmaMap(own);
    a.dmaMap(memory);
    const kept = b.dmaMap(memory);
    script.take();
    bus.lose('a');
    await new Promise(setImmediate);
    assert.deepEqual(script.take(), ['one.remove a', 'unmap shared', 'close a']);
    assert.deepEqual([gone.live, kept.live], [false, true]);
    own.unregister();
    const next = registry.external.allocate(4096);
    b.dmaMap(next).unmap();
    assert.deepEqual(script.take(), ['map shared', 'unmap shared']);
    await registry.remove(b);
    assert.deepEqual(script.take(), ['one.remove b', 'unmap shared', 'closeDomain shared', 'close b']);
    assert.deepEqual(registry.events.slice(2), ['lost fake:a', 'removed fake:b']);
  });

  it('one is lost while the other is still being removed', async () => {
    const wait = gate();
    const { registry, bus, memory, script } = bench({
      keyOf: sharedKey,
      drivers: (script) => [
        { ...fakeDriver(script, 'slow'), remove: (d) => (d.busName === 'a' ? wait.opened : undefined) },
      ],
    });
    const a = await registry.probe('fake:a');
    const b = await registry.probe('fake:b');
    a.dmaMap(memory);
    const own = registry.external.allocate(4096);
    b.dmaMap(own);
    bus.lose('a');
    await registry.remove(b);
    own.unregister();
    assert.ok(!script.take().includes('closeDomain shared'), 'a is still in it');
    wait.open();
    await new Promise(setImmediate);
    assert.ok(script.take().includes('closeDomain shared'));
    assert.deepEqual(registry.devices(), []);
  });

  it('all are lost', async () => {
    const { registry, script, bus, memory } = bench({ keyOf: sharedKey });
    const a = await registry.probe('fake:a');
    const b = await registry.probe('fake:b');
    a.dmaMap(memory);
    b.dmaMap(memory);
    script.take();
    bus.lose('a');
    bus.lose('b');
    memory.unregister();
    await new Promise(setImmediate);
    assert.deepEqual(script.take().sort(), [
      'close a',
      'close b',
      'closeDomain shared',
      'one.remove a',
      'one.remove b',
    ]);
  });

  it('the device with the fewest address bits limits IOVAs, as long as it is there', async () => {
    const { registry } = bench({
      keyOf: sharedKey,
      drivers: (script) => [fakeDriver(script, 'one', BITS)],
      constraints: { ...FREE, windows: [new Range(0x1000 as Iova, 0x1000), new Range((2 ** 27) as Iova, GiB)] },
    });
    const windows = (): string => a.domain?.constraints.windows.map(String).join(' ') ?? '';
    const a = await registry.probe('fake:a');
    const wide = windows();
    assert.match(wide, /0x48000000/);
    const b = await registry.probe('fake:b,narrow=1');
    assert.equal(windows(), '[0x1000, 0x2000) [0x8000000, 0x10000000)');
    const memory = registry.external.allocate(4096);
    assert.ok(b.dmaMap(memory).iova < 2 ** 28);
    assert.throws(() => a.dmaMap(memory, { iova: 2 ** 28 }), dmaError('ERANGE'));
    await registry.remove(b);
    assert.equal(windows(), wide);
    assert.equal(a.dmaMap(memory, { iova: 2 ** 28 }).iova, 2 ** 28);
  });

  it('a driver that declined limits no IOVAs', async () => {
    const { registry } = bench({
      keyOf: sharedKey,
      drivers: (script) => [
        fakeDriver(script, 'narrow', { dmaAddressBits: () => 20, ids: [{ vendor: 1 }] }),
        fakeDriver(script, 'one'),
      ],
    });
    const a = await registry.probe('fake:a');
    assert.equal(a.domain?.constraints.windows[0].end, 2 ** 48);
  });

  it('windows beyond the address bits of the device: ENOSPC', async () => {
    const { registry, memory } = bench({
      drivers: (script) => [fakeDriver(script, 'one', { dmaAddressBits: () => 20 })],
      constraints: { ...FREE, windows: [new Range((2 ** 32) as Iova, GiB)] },
    });
    const a = await registry.probe('fake:a');
    assert.throws(() => a.dmaMap(memory), dmaError('ENOSPC'));
  });
});

describe('leaving a shared domain', () => {
  it('with a mapping that can not be unmapped: an error, and the memory stays', async () => {
    const { registry, script, memory } = bench({ keyOf: sharedKey });
    const a = await registry.probe('fake:a');
    const b = await registry.probe('fake:b');
    a.dmaMap(memory);
    script.failing.set('unmap shared', 'EIO');
    await assert.rejects(registry.remove(a), dmaError('EIO'));
    assert.throws(() => memory.unregister(), dmaError('EBUSY'), 'b may still reach it');
    script.failing.clear();
    await registry.remove(b);
    memory.unregister();
  });
});
