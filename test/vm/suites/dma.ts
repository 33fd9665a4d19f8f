/**
 * Memory mapped for real PCI devices behind a real IOMMU, in each of the three ways, and what happens when it goes away
 * again: the same tests over every kind of container and both widths of the IOMMU.
 */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { closeSync, openSync, rmSync, writeFileSync, writeSync } from 'node:fs';
import { before, test } from 'node:test';
import assert from 'node:assert/strict';
import { Eal, eduDriver, isDmaError, KiB, MiB, type Device, type EalOptions } from '../../../src/index.js';
import { PCI_REGION, type Edu } from '../../../src/entry/driver.js';
import { bindToVfio, CHOICE, EDU, EDU_HOTPLUG, EDU_SECOND, KIND, width } from '../guest.js';
import { host } from '../host.js';

/** Bytes of one copy: few, since QEMU's edu takes 100 ms for 2 KiB. */
const LENGTH = 2 * KiB;

before(() => bindToVfio([EDU, EDU_SECOND]));

async function start(options: EalOptions = {}): Promise<Eal> {
  return Eal.start({ iommu: CHOICE, ...options });
}

function pattern(length: number, seed: number): Uint8Array {
  return Uint8Array.from({ length }, (_, i) => (i * 31 + seed * 17 + (i >> 8)) & 0xff);
}

/** Copies `from` to `to` by the device, both of them IOVAs. */
async function copy(edu: Edu, from: number, to: number, length = LENGTH): Promise<void> {
  await edu.copyIn(from, 0, length);
  await edu.copyOut(to, 0, length);
}

function eduOf(device: Device): Edu {
  return device.use(eduDriver);
}

test('the device is there: ids, registers, configuration space, interrupts', async () => {
  await using eal = await start();
  const device = await eal.probe(`pci:${EDU}`);
  assert.equal(device.domain?.kind, KIND);
  assert.equal(device.ids?.vendor, 0x1234);
  assert.equal(device.ids.device, 0x11e8);
  const edu = eduOf(device);
  assert.equal(edu.identification & 0xffff, 0x00ed);
  assert.equal(edu.liveness(0x12345678), ~0x12345678 >>> 0);
  assert.equal(await edu.factorial(10), 3628800);
  assert.deepEqual([...device.access.readRegion(PCI_REGION.CONFIG, 0, 2)], [0x34, 0x12]);
  assert.equal(device.access.interruptCount('msi'), 1);
  const reasons = new Promise<number>((resolve) => edu.enableInterrupt(resolve));
  edu.raiseInterrupt(0x42);
  assert.equal(await reasons, 0x42);
});

test('the constraints are those of this IOMMU', async () => {
  await using eal = await start();
  const { domain } = await eal.probe(`pci:${EDU}`);
  assert.ok(domain !== undefined);
  const { granule, windows, pins } = domain.constraints;
  assert.equal(granule, 4 * KiB);
  assert.equal(pins, true);
  // The device's own mask is the narrower one.
  assert.ok(windows.every((window) => window.end <= 2 ** 28));
  await using own = await start();
  const raw = await own.probe(`bus=pci,addr=${EDU_SECOND}/driver=raw`);
  const last = Math.max(...(raw.domain?.constraints.windows.map((window) => window.end) ?? []));
  assert.equal(last, 2 ** width());
  assert.ok((raw.domain?.constraints.windows.length ?? 0) > 1, 'the place of MSI is left out');
});

test('external memory: bytes go both ways, and after the unmap the device reaches it no more', async () => {
  await using eal = await start();
  const device = await eal.probe(`pci:${EDU}`);
  const edu = eduOf(device);
  using memory = eal.external.allocate(MiB);
  const bytes = memory.bytes();
  const sent = pattern(LENGTH, 1);
  bytes.set(sent);
  const mapping = device.dmaMap(memory);
  await copy(edu, mapping.iova, mapping.iova + MiB / 2);
  assert.deepEqual(bytes.slice(MiB / 2, MiB / 2 + LENGTH), sent);

  const { iova } = mapping;
  mapping.unmap();
  bytes.fill(0xee, 0, LENGTH);
  // The device does not notice that its write was blocked; the memory does not change, and the fault is explained.
  await edu.copyOut(iova, 0, LENGTH);
  assert.ok(bytes.subarray(0, LENGTH).every((byte) => byte === 0xee));
  const [fault] = await device.explainFaultsAsync({ timeoutMs: 30_000 });
  assert.equal(fault?.iova, iova);
  assert.equal(fault.access, 'write');
  assert.equal(fault.explanation.kind, 'unmapped');
  assert.match(fault.explanation.text, /was unmapped .* ago by pci:/);
});

test('memory that is only readable is not written', async () => {
  await using eal = await start();
  const device = await eal.probe(`pci:${EDU}`);
  const edu = eduOf(device);
  using memory = eal.external.allocate(64 * KiB);
  using mapping = device.dmaMap(memory, { access: 'read' });
  const bytes = memory.bytes();
  bytes.fill(7);
  await edu.copyIn(mapping.iova, 0, LENGTH);
  bytes.fill(8);
  // To a page that the device has not read: for those that it has, QEMU refuses the write without telling of it.
  await edu.copyOut(mapping.iova + 32 * KiB, 0, LENGTH);
  assert.ok(bytes.every((byte) => byte === 8));
  const faults = await device.explainFaultsAsync({ timeoutMs: 30_000 });
  assert.equal(faults.at(-1)?.explanation.kind, 'wrong-access');
});

for (const source of ['memfd', 'anonymous'] as const)
  test(`${source} memory, and an IOVA of the program's choice`, async () => {
    await using eal = await start();
    const device = await eal.probe(`pci:${EDU}`);
    using memory = eal.external.allocate(64 * KiB, { source });
    const iova = 0x0100_0000;
    using mapping = device.dmaMap(memory, { iova: iova });
    assert.equal(mapping.iova, iova);
    const bytes = memory.bytes();
    bytes.set(pattern(LENGTH, 2));
    await copy(eduOf(device), iova, iova + 32 * KiB);
    assert.deepEqual(bytes.slice(32 * KiB, 32 * KiB + LENGTH), pattern(LENGTH, 2));
  });

test('a Buffer of the program, registered as it is', async () => {
  await using eal = await start();
  const device = await eal.probe(`pci:${EDU}`);
  const buffer = new Uint8Array(256 * KiB);
  // Whole pages of it: where they begin, the refusal of the rest tells.
  const from = firstPage(eal, buffer);
  using memory = eal.external.register(buffer.subarray(from, from + 64 * KiB));
  using mapping = device.dmaMap(memory);
  const bytes = memory.bytes();
  bytes.set(pattern(LENGTH, 3));
  await copy(eduOf(device), mapping.iova, mapping.iova + 8 * KiB);
  assert.deepEqual(bytes.slice(8 * KiB, 8 * KiB + LENGTH), pattern(LENGTH, 3));
});

/** Where the first whole page of `buffer` begins. */
function firstPage(eal: Eal, buffer: Uint8Array): number {
  const start = eal.platform.memory.addressOf(buffer);
  return (4 * KiB - (start % (4 * KiB))) % (4 * KiB);
}

test('heap and owned memory are reached without a call, by hugepages', async () => {
  await using eal = await start();
  const device = await eal.probe(`pci:${EDU}`);
  const edu = eduOf(device);
  using memory = eal.external.allocate(MiB);
  eal.heaps.create('user');
  eal.heaps.addMemory('user', memory);
  for (const heap of ['user', undefined]) {
    const from = eal.malloc(LENGTH, { heap });
    const to = eal.malloc(LENGTH, { heap });
    from.bytes().set(pattern(LENGTH, 4));
    const iovaOf = (va: number): number => device.iovaOf(va);
    await copy(edu, iovaOf(from.va), iovaOf(to.va));
    assert.deepEqual(Uint8Array.from(to.bytes()), pattern(LENGTH, 4), heap ?? 'owned');
    from.free();
    to.free();
  }
  assert.ok(eal.memory.facts().lists.some(({ pageSize, pages }) => pageSize === 2 * MiB && pages > 0));
  eal.heaps.removeMemory('user', { va: memory.va, length: memory.length });
  eal.heaps.destroy('user');
});

test('where iovaOf says that blocks, zones and pools are, the device writes, however often memory comes and goes', async () => {
  await using eal = await start();
  const device = await eal.probe(`pci:${EDU}`);
  const edu = eduOf(device);
  const sent = pattern(LENGTH, 10);
  {
    using from = eal.malloc(LENGTH);
    from.bytes().set(sent);
    await edu.copyIn(device.iovaOf(from), 0, LENGTH);
  }
  /** Has the device write to `iova`, where `bytes` are to be. */
  const mustWrite = async (iova: number, bytes: Uint8Array, what: string): Promise<void> => {
    bytes.fill(0xee);
    await edu.copyOut(iova, 0, bytes.length);
    assert.deepEqual(Uint8Array.from(bytes), sent.slice(0, bytes.length), what);
  };
  for (let round = 0; round < 20; round++) {
    const block = eal.malloc((4 + round) * MiB);
    const tail = block.length - LENGTH;
    await mustWrite(device.iovaOf(block) + tail, block.bytes(tail), `round ${round}`);
    block.free();
  }
  using zone = eal.zones.reserve('zone', 3 * MiB);
  await mustWrite(device.iovaOf(zone), zone.bytes(0, LENGTH), 'zone');
  using pool = eal.pools.create({ elements: 3000, elementSize: LENGTH });
  const iovas = pool.iovasFor(device);
  for (const element of [0, 1234, 2999])
    await mustWrite(iovas[element] ?? assert.fail(), pool.bytes(element), `element ${element}`);
});

test('of a file that may only be read the device reads the file, and what is stored through bytes() stays here', async (t) => {
  const path = '/dev/shm/read-only';
  const content = Buffer.alloc(64 * KiB, 'f');
  writeFileSync(path, content);
  const [reader, writer] = [openSync(path, 'r'), openSync(path, 'r+')];
  t.after(() => {
    for (const fd of [reader, writer]) closeSync(fd);
    rmSync(path);
  });
  await using eal = await start();
  const device = await eal.probe(`pci:${EDU}`);
  using target = eal.external.allocate(4 * KiB);
  using to = device.dmaMap(target);
  for (const [fd, writable] of [
    [reader, undefined],
    [writer, false],
  ] as const) {
    writeSync(writer, content, 0, content.length, 0);
    using memory = eal.external.fromFd(fd, { writable });
    const bytes = memory.bytes();
    bytes[0] = 1;
    using from = device.dmaMap(memory, { access: 'read' });
    bytes[1] = 2;
    // Whoever may write the file is heard, by the program only in pages that it has not stored to.
    writeSync(writer, 'w', 2);
    writeSync(writer, 'w', 4 * KiB);
    await copy(eduOf(device), from.iova, to.iova, 4);
    assert.equal(Buffer.from(target.bytes(0, 4)).toString(), 'ffwf');
    assert.deepEqual([...bytes.subarray(0, 4)], [1, 2, ...Buffer.from('ff')]);
    await copy(eduOf(device), from.iova + 4 * KiB, to.iova, 4);
    assert.equal(Buffer.from(target.bytes(0, 4)).toString(), 'wfff');
    assert.equal(Buffer.from(bytes.subarray(4 * KiB, 4 * KiB + 4)).toString(), 'wfff');
  }
});

test('two devices in one domain share a mapping; the last unmap takes it away', async () => {
  await using eal = await start();
  const first = await eal.probe(`pci:${EDU}`);
  const second = await eal.probe(`pci:${EDU_SECOND}`);
  assert.equal(first.domain, second.domain);
  using memory = eal.external.allocate(64 * KiB);
  const bytes = memory.bytes();
  const one = first.dmaMap(memory);
  const two = second.dmaMap(memory);
  assert.equal(one.iova, two.iova);
  assert.equal(first.domain?.entries, 1);
  bytes.set(pattern(LENGTH, 5));
  one.unmap();
  await copy(eduOf(second), two.iova, two.iova + 8 * KiB);
  assert.deepEqual(bytes.slice(8 * KiB, 8 * KiB + LENGTH), pattern(LENGTH, 5));
  const { iova } = two;
  two.unmap();
  bytes.fill(1);
  await eduOf(second).copyOut(iova, 0, LENGTH);
  assert.ok(bytes.every((byte) => byte === 1));
});

test('a device in a container of its own is never mapped in the default one', async () => {
  await using eal = await start();
  using own = eal.containers.create({ name: 'own' });
  const inDefault = await eal.probe(`pci:${EDU}`);
  const inOwn = await eal.probe(`pci:${EDU_SECOND}`, { container: own });
  assert.notEqual(inDefault.domain, inOwn.domain);
  assert.deepEqual(own.devices, [EDU_SECOND]);
  using memory = eal.external.allocate(64 * KiB);
  const mapping = inOwn.dmaMap(memory);
  assert.equal(inDefault.domain?.entries, 0);
  const bytes = memory.bytes();
  bytes.fill(9);
  // The other device does not reach it.
  await eduOf(inDefault).copyOut(mapping.iova, 0, LENGTH);
  assert.ok(bytes.every((byte) => byte === 9));
  bytes.set(pattern(LENGTH, 6));
  await copy(eduOf(inOwn), mapping.iova, mapping.iova + 8 * KiB);
  assert.deepEqual(bytes.slice(8 * KiB, 8 * KiB + LENGTH), pattern(LENGTH, 6));
  // The same memory in both, each with a mapping of its own.
  using also = inDefault.dmaMap(memory);
  await copy(eduOf(inDefault), also.iova, also.iova + 16 * KiB);
  assert.deepEqual(bytes.slice(16 * KiB, 16 * KiB + LENGTH), pattern(LENGTH, 6));
  mapping.unmap();
  assert.throws(
    () => own.close(),
    (error) => isDmaError(error, 'EBUSY'),
  );
  await eal.remove(inOwn);
});

test('a late device gets what is mapped for every device, and takes it along', async () => {
  await using eal = await start();
  const first = await eal.probe(`pci:${EDU}`);
  using memory = eal.external.allocate(64 * KiB);
  const all = eal.dmaMapAll(memory);
  const bytes = memory.bytes();
  bytes.set(pattern(LENGTH, 7));
  using own = eal.containers.create();
  const late = await eal.probe(`pci:${EDU_SECOND}`, { container: own });
  const iova = late.iovaOf(memory);
  await copy(eduOf(late), iova, iova + 8 * KiB);
  assert.deepEqual(bytes.slice(8 * KiB, 8 * KiB + LENGTH), pattern(LENGTH, 7));
  assert.equal([...all.mappings].length, 2);
  await eal.remove(late);
  assert.equal([...all.mappings].length, 1);
  all.unmap();
  assert.equal(first.domain?.entries, 0);
});

test('a device that is unplugged while memory is mapped', async () => {
  await host.deviceAdd({ driver: 'edu', id: 'late', bus: 'port0' });
  await bindToVfio([EDU_HOTPLUG], { wait: true });
  await using eal = await start();
  const device = await eal.probe(`pci:${EDU_HOTPLUG}`);
  using memory = eal.external.allocate(64 * KiB);
  const mapping = device.dmaMap(memory);
  const bytes = memory.bytes();
  bytes.set(pattern(LENGTH, 8));
  await copy(eduOf(device), mapping.iova, mapping.iova + 8 * KiB);
  assert.deepEqual(bytes.slice(8 * KiB, 8 * KiB + LENGTH), pattern(LENGTH, 8));
  const lost = new Promise<Device>((resolve) => eal.events.once('lost', resolve));
  // Listening for it does not keep a process alive.
  const alive = setInterval(() => undefined, 1000);
  await host.deviceDel('late');
  const gone = await lost;
  clearInterval(alive);
  await host.deviceGone('late');
  assert.equal(gone, device);
  assert.equal(mapping.live, false);
  assert.equal(device.lost?.code, 'ENODEV');
  assert.throws(
    () => device.dmaMap(memory),
    (error) => isDmaError(error, 'ENODEV'),
  );
  assert.equal(eal.find(`pci:${EDU_HOTPLUG}`), undefined);
});

test('a process that is killed in the middle leaves nothing', async (t) => {
  const child = spawn(process.execPath, [new URL('../hold.js', import.meta.url).pathname, EDU], {
    env: { ...process.env },
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  t.after(() => child.kill('SIGKILL'));
  const [line] = (await once(child.stdout, 'data')) as [Buffer];
  assert.match(line.toString(), /holding/);
  {
    await using busy = await start();
    await assert.rejects(busy.probe(`pci:${EDU}`), (error) => {
      assert.ok(isDmaError(error), String(error));
      assert.equal(error.code, 'EBUSY', error.message);
      return true;
    });
  }
  child.kill('SIGKILL');
  await once(child, 'exit');
  await using eal = await start();
  const device = await eal.probe(`pci:${EDU}`);
  using memory = eal.external.allocate(64 * KiB);
  using mapping = device.dmaMap(memory, { iova: 0x0100_0000 });
  memory.bytes().set(pattern(LENGTH, 9));
  await copy(eduOf(device), mapping.iova, mapping.iova + 8 * KiB);
  assert.deepEqual(memory.bytes().slice(8 * KiB, 8 * KiB + LENGTH), pattern(LENGTH, 9));
});
