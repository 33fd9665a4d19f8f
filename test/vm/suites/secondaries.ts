/** Devices on a real IOMMU that a secondary process and worker threads use: what they map, and what reaches it. */
import { before, test } from 'node:test';
import assert from 'node:assert/strict';
import { Eal, eduDriver, KiB, MiB } from '../../../src/index.js';
import { nvmeDriver } from '../../../src/entry/nvme.js';
import { ownPlaces } from '../../shared/places.js';
import { SecondaryProcess } from '../../shared/secondary-process.js';
import { Thread } from '../../shared/thread.js';
import { until } from '../../shared/until.js';
import { bindToVfio, CHOICE, EDU, EDU_SECOND, KIND } from '../guest.js';
import { DEVICES } from '../machine.js';

const DISK = DEVICES.disk0;
const PART = 2 * KiB;

ownPlaces();
before(() => bindToVfio([EDU, EDU_SECOND, DISK]));

/** What functions keep in the secondary. */
interface Kept {
  readonly memory: { bytes(offset?: number, length?: number): Uint8Array };
}

/** The checksum of bytes. */
const sumOf = (bytes: Uint8Array): number => bytes.reduce((sum, byte) => (Math.imul(sum, 31) + byte) >>> 0, 0);

test('a secondary maps memory for edu and sees its DMA, and works a queue of a disk while the primary does nothing', async () => {
  await using eal = await Eal.start({
    ...{ name: 'guest', iommu: CHOICE, memory: { noHuge: true }, onForgotten: () => undefined },
  });
  const device = await eal.probe(`pci:${EDU}`);
  assert.equal(device.domain?.kind, KIND);
  const edu = device.use(eduDriver);
  const isMapped = (): boolean => [...(device.domain?.mappings() ?? [])].some((each) => each.iova === iova);
  await using store = await SecondaryProcess.attach('guest', 'mapper');
  const iova = await store.run(async ({ store, kept }, part) => {
    const memory = await store.external.allocate(64 * 1024, { label: 'of the secondary' });
    memory.bytes(0, part).fill(0xa5);
    const device = (await store.devices()).find(({ driver }) => driver === 'edu');
    const mapping = await device?.dmaMap(memory, { iova: 0x100000 });
    Object.assign(kept, { memory });
    return mapping?.iova;
  }, PART);
  assert.equal(iova, 0x100000);
  assert.ok(isMapped());
  await edu.copyIn(iova, 0, PART);
  await edu.copyOut(iova + 16 * KiB, 0, PART);
  const wrong = await store.run(({ kept }, part) => {
    const { memory } = kept as Kept;
    return memory.bytes(16 * 1024, part).findIndex((byte) => byte !== 0xa5);
  }, PART);
  assert.equal(wrong, -1);

  const disk = await eal.probe(`pci:${DISK}`);
  const namespace = disk.use(nvmeDriver).namespace(1);
  using written = eal.external.allocate(MiB);
  using mapping = disk.dmaMap(written);
  const bytes = written.bytes();
  for (let i = 0; i < bytes.length; i++) bytes[i] = Math.imul(i, 2654435761) >>> 13;
  await namespace.write({ lba: 0, blocks: MiB / namespace.blockSize, from: written });
  // It says when it begins (1), is told that nobody looks any more (2), and says that it is done (3).
  const turn = eal.zones.reserve('turn', 4096).bytes();
  const words = new Int32Array(turn.buffer, turn.byteOffset, 1);
  const reading = store.run(async ({ store }, blockSize) => {
    const device = (await store.devices()).find(({ driver }) => driver === 'nvme');
    const turn = (await store.zones.find('turn'))?.bytes();
    if (device === undefined || turn === undefined) throw new Error('no disk');
    const words = new Int32Array(turn.buffer, turn.byteOffset, 1);
    const memory = await store.malloc(2 ** 20, { align: 4096, zero: true });
    const queue = await device.openQueue({ entries: 16, interrupts: true });
    const iova = queue.iovaOf(memory);
    Atomics.store(words, 0, 1);
    while (Atomics.load(words, 0) !== 2) await new Promise((resolve) => setTimeout(resolve, 5));
    const free = [...Array(queue.capacity).keys()];
    for (let sent = 0, done = 0; done < 64;) {
      for (; sent < 64 && free.length > 0; sent++)
        queue.read(free.pop() ?? 0, 1, (sent * 16384) / blockSize, 16384 / blockSize, iova + sent * 16384);
      queue.ring();
      const count = queue.poll();
      if (count === 0 && !queue.wait(10_000)) throw new Error('no interrupt');
      for (let i = 0; i < count; i++) {
        if (queue.statuses[i] !== 0) throw new Error(`status ${queue.statuses[i]}`);
        free.push(queue.slots[i]);
      }
      done += count;
    }
    const sums: number[] = [];
    const add = (): void => {
      let sum = 0;
      for (const byte of memory.bytes()) sum = (Math.imul(sum, 31) + byte) >>> 0;
      sums.push(sum);
    };
    add();
    memory.bytes().fill(0);
    await queue.namespace(1).read({ lba: 0, into: memory });
    add();
    Atomics.store(words, 0, 3);
    return sums;
  }, namespace.blockSize);
  await until(() => Atomics.load(words, 0) === 1);
  Atomics.store(words, 0, 2);
  // This thread sleeps: no event reaches it.
  const clock = new Int32Array(new SharedArrayBuffer(4));
  for (let n = 0; n < 6000 && Atomics.load(words, 0) !== 3; n++) Atomics.wait(clock, 0, 0, 10);
  assert.equal(Atomics.load(words, 0), 3);
  assert.deepEqual(await reading, [sumOf(bytes), sumOf(bytes)]);

  await store.kill();
  await until(() => eal.secondaries.length === 0);
  await until(() => !isMapped());
  // The same IOVA is this process's now, and the controller has given up all of the other one's.
  using own = eal.external.allocate(64 * KiB);
  const mine = device.dmaMap(own, { iova });
  await edu.copyOut(iova + 16 * KiB, 0, PART);
  assert.ok(own.bytes(16 * KiB, PART).every((byte) => byte === 0xa5));
  mine.unmap();
  mapping.unmap();
  await eal.remove(disk);
  // Nobody has a page of it mapped any more: it can be opened again.
  await eal.probe(`pci:${DISK}`);
});

test('two workers drive a device each, with mappings of their own at the same IOVA', async () => {
  const work = `
    const { Eal, eduDriver } = await load('index.js');
    const eal = await Eal.start({ iommu: data.iommu, onForgotten: () => undefined });
    try {
      const device = await eal.probe('pci:' + data.address);
      const edu = device.use(eduDriver);
      const memory = eal.external.allocate(65536);
      const { iova } = device.dmaMap(memory, { iova: 0x100000 });
      const bytes = memory.bytes();
      // Both are at work at the same time.
      Atomics.add(data.there, 0, 1);
      while (Atomics.load(data.there, 0) < 2) await new Promise((resolve) => setTimeout(resolve, 5));
      let wrong = 0;
      for (let round = 0; round < 2; round++) {
        bytes.fill(data.byte + round, 0, 1024);
        await edu.copyIn(iova, 0, 1024);
        await edu.copyOut(iova + 4096 * (round + 1), 0, 1024);
        wrong += bytes.subarray(4096 * (round + 1), 4096 * (round + 1) + 1024).filter((byte) => byte !== data.byte + round).length;
      }
      return wrong;
    } finally {
      await eal.stop();
    }`;
  const there = new Int32Array(new SharedArrayBuffer(4));
  await using one = new Thread();
  await using two = new Thread();
  const wrong = await Promise.all([
    one.run<number>(work, { iommu: CHOICE, address: EDU, byte: 0x10, there }),
    two.run<number>(work, { iommu: CHOICE, address: EDU_SECOND, byte: 0x60, there }),
  ]);
  assert.deepEqual(wrong, [0, 0]);
});
