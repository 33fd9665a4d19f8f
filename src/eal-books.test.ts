/** What is on the books and stays true, whatever a program does in whatever order: by the public API, with software devices. */
import assert from 'node:assert/strict';
import { closeSync, mkdtempSync, openSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, it } from 'node:test';
import { dmaError } from './bus/testing.js';
import { Eal } from './eal.js';
import { openPlatform } from './platform/open.js';
import { MiB, type Va } from './units.js';

const skip = openPlatform().limitation ?? false;

describe('memory that is mapped for every device', { skip }, () => {
  it('is held before there is a device, and each device has it', async () => {
    await using eal = await Eal.start();
    const memory = eal.external.allocate(MiB);
    const all = eal.dmaMapAll(memory);
    assert.throws(() => memory.unregister(), dmaError('EBUSY', /eal\.dmaMapAll/));
    const device = await eal.probe('vdev:copy0');
    assert.equal(all.of(device)?.va, memory.va);
    all.unmap();
    memory.unregister();
  });

  it('without a device is refused for what no device could write', async () => {
    await using eal = await Eal.start();
    const directory = mkdtempSync(join(tmpdir(), 'anydma-test-'));
    const path = join(directory, 'file');
    writeFileSync(path, Buffer.alloc(4096));
    const fd = openSync(path, 'r');
    try {
      using memory = eal.external.fromFd(fd);
      assert.throws(() => eal.dmaMapAll(memory, undefined, { access: 'write' }), dmaError('EACCES'));
      eal.dmaMapAll(memory).unmap();
    } finally {
      closeSync(fd);
      rmSync(directory, { recursive: true });
    }
  });

  it("of the library and of heaps is not a device's to unmap, by address or by handle", async () => {
    await using eal = await Eal.start({ memory: { noHuge: true } });
    const device = await eal.probe('vdev:copy0');
    const block = eal.malloc(MiB);
    const heapMemory = eal.external.allocate(MiB);
    eal.heap.create('mine');
    const before = device.dmaMap(heapMemory);
    eal.heap.addMemory('mine', heapMemory);
    const { range } = block.area;
    assert.throws(() => device.dmaUnmap({ va: range.start, length: range.length }), dmaError('EINVAL', /every device/));
    assert.throws(() => device.dmaUnmap({ va: block.va, length: 4096 }), dmaError('EINVAL'));
    const own = device.dmaMap({ va: range.start, length: range.length });
    device.dmaUnmap({ va: range.start, length: range.length });
    assert.equal(own.live, false);
    assert.notEqual(device.domain?.iovaOf(block.va), -1, 'the library has its own still');
    device.dmaUnmap(heapMemory);
    assert.equal(before.live, false);
    assert.throws(() => device.dmaUnmap(heapMemory), dmaError('EINVAL', /every device/));
    const kept = [...(device.domain?.mappings() ?? [])].filter(({ va }) => va === range.start || va === heapMemory.va);
    assert.equal(kept.length, 2);
    for (const mapping of kept) assert.throws(() => mapping.unmap(), dmaError('EBUSY', /every device/));
    block.free();
    eal.heap.removeMemory('mine', heapMemory.va, heapMemory.length);
    heapMemory.unregister();
  });

  it('is what it was when it was asked for', async () => {
    await using eal = await Eal.start();
    const memory = eal.external.allocate(2 * MiB);
    const target = { va: memory.va, length: MiB };
    const first = eal.dmaMapAll(target);
    target.va = (memory.va + MiB) as Va;
    const second = eal.dmaMapAll(target);
    const device = await eal.probe('vdev:copy0');
    assert.deepEqual([first.of(device)?.va, second.of(device)?.va], [memory.va, memory.va + MiB]);
    first.unmap();
    second.unmap();
    memory.unregister();
  });
});
