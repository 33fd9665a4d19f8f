/**
 * What needs a real IOMMU and real devices besides copying: which IOVAs there are and who chooses them, what the kernel was
 * asked for, devices that share and that leave, interrupts, and the rules of the conformance list (docs/from-dpdk.md).
 */
/* eslint-disable @typescript-eslint/no-deprecated -- the old way is tested as well */
import { readFileSync } from 'node:fs';
import { before, test } from 'node:test';
import assert from 'node:assert/strict';
import { throwsDma } from '../../shared/errors.js';
import { until } from '../../shared/until.js';
import {
  Eal,
  eduDriver,
  isDmaError,
  KiB,
  MiB,
  Range,
  rawDriver,
  type Device,
  type EalOptions,
  type ExternalMemory,
  type Iova,
  type Mapping,
  type Va,
} from '../../../src/index.js';
import type { AddressSpace, Driver, Platform } from '../../../src/entry/driver.js';
import { openPlatform } from '../../../src/platform/open.js';
import { IommufdSpace } from '../../../src/vfio/iommufd.js';
import { Type1Space } from '../../../src/vfio/type1.js';
import { bindToVfio, CHOICE, EDU, EDU_HOTPLUG, EDU_SECOND, KIND, release, width } from '../guest.js';
import { host } from '../host.js';
import { DEVICES } from '../machine.js';

/** Bytes of one copy. */
const LENGTH = 2 * KiB;
const PAGE = 4 * KiB;
const isType1 = CHOICE === 'type1';

before(() => bindToVfio([EDU, EDU_SECOND]));

function start(options: EalOptions = {}): Promise<Eal> {
  return Eal.start({ iommu: CHOICE, ...options });
}

/** A device that can use all IOVAs of the IOMMU. */
function raw(eal: Eal, address: string = EDU): Promise<Device> {
  return eal.probe(`bus=pci,addr=${address}/driver=raw`);
}

/** Has the device copy within `memory`, from its start to its middle, and checks the bytes. */
async function mustCopy(device: Device, memory: ExternalMemory, mapping: Mapping, seed = 1): Promise<void> {
  const edu = device.use(eduDriver);
  const bytes = memory.bytes();
  const sent = Uint8Array.from({ length: LENGTH }, (_, i) => (i * 13 + seed * 29) & 0xff);
  const middle = memory.length / 2;
  bytes.set(sent);
  await edu.copyIn(mapping.iova, 0, LENGTH);
  await edu.copyOut(mapping.iova + middle, 0, LENGTH);
  assert.deepEqual(bytes.slice(middle, middle + LENGTH), sent);
}

/** The kernel's address space behind the default container. */
function spaceOf(eal: Eal): Type1Space | IommufdSpace {
  const { space } = eal.containers.default;
  assert.ok(space instanceof Type1Space || space instanceof IommufdSpace);
  return space;
}

/** This machine, and the names of the ioctls that are made of it. */
function listened(): { platform: Platform; calls: string[] } {
  const platform = openPlatform();
  const calls: string[] = [];
  const ioctl: Platform['ioctl'] = {
    call: (fd, request, argument, name) => {
      calls.push(name);
      return platform.ioctl.call(fd, request, argument, name);
    },
    callAsync: (fd, request, argument, name) => {
      calls.push(name);
      return platform.ioctl.callAsync(fd, request, argument, name);
    },
  };
  return { platform: { ...platform, ioctl }, calls };
}

/** bytes that this process has pinned for devices, however the kernel counts them */
function pinned(): number {
  const status = readFileSync('/proc/self/status', 'utf8');
  const [, kib] = /^Vm(?:Pin|Lck):\s+([1-9]\d*) kB$/m.exec(status) ?? [];
  return Number(kib ?? 0) * KiB;
}

// --- who chooses IOVAs ---

test(`with ${width()} bits, IOVAs are the virtual addresses where those fit`, async () => {
  await using eal = await start();
  const device = await raw(eal);
  using memory = eal.external.allocate(MiB);
  using mapping = device.dmaMap(memory);
  if (width() === 48) assert.equal(Number(mapping.iova), Number(memory.va));
  else assert.ok(mapping.iova < 2 ** width());
  const block = eal.malloc(MiB);
  const iova = device.iovaOf(block);
  assert.ok(width() === 48 ? iova === Number(block.va) : iova >= 0 && iova < 2 ** width());
  assert.equal(eal.memory.iova.mode, 'va');
  block.free();
});

test('a device that reaches more than 28 bits does DMA at such addresses', async () => {
  const mask = 2 ** width() - 1;
  await host.deviceAdd({ driver: 'edu', id: 'wide', bus: 'port0', dma_mask: mask });
  await bindToVfio([EDU_HOTPLUG], { wait: true });
  try {
    await using eal = await start();
    const device = await eal.probe(`pci:${EDU_HOTPLUG},dma-mask=${width()}`);
    using memory = eal.external.allocate(64 * KiB);
    {
      using mapping = device.dmaMap(memory);
      if (width() === 48) assert.equal(Number(mapping.iova), Number(memory.va));
      await mustCopy(device, memory, mapping);
    }
    using high = device.dmaMap(memory, { iova: 2 ** width() - MiB });
    await mustCopy(device, memory, high, 2);
  } finally {
    await host.deviceDel('wide');
    await host.deviceGone('wide');
  }
});

// --- groups and containers ---

test('two devices of one group, behind a bridge, in one container', async () => {
  await bindToVfio([DEVICES.edu2, DEVICES.edu3]);
  {
    await using eal = await start();
    const first = await eal.probe(`pci:${DEVICES.edu2}`);
    const second = await eal.probe(`pci:${DEVICES.edu3}`);
    assert.equal(first.domain, second.domain);
    assert.deepEqual(eal.containers.default.devices, [DEVICES.edu2, DEVICES.edu3]);
    using memory = eal.external.allocate(64 * KiB);
    using one = first.dmaMap(memory);
    using two = second.dmaMap(memory);
    await mustCopy(first, memory, one, 1);
    await mustCopy(second, memory, two, 2);
    // The group stays while one of them is there.
    await eal.remove(first);
    await mustCopy(second, memory, two, 3);
  }
  release([DEVICES.edu2, DEVICES.edu3]);
});

test('DM-52: as many containers as anybody wants', async () => {
  await using eal = await start();
  const made = Array.from({ length: 100 }, () => eal.containers.create());
  assert.equal(new Set(made.map(({ name }) => name)).size, 100);
  const device = await eal.probe(`pci:${EDU}`, { container: made[99] });
  assert.deepEqual(made[99].devices, [EDU]);
  throwsDma('EBUSY', () => made[99].close());
  await eal.remove(device);
  for (const each of made) each.close();
  await assert.rejects(eal.probe(`pci:${EDU}`, { container: made[99] }), (error) => isDmaError(error, 'EINVAL'));
});

test('DM-53: a new container has nothing but what is mapped for every device', async () => {
  await using eal = await start();
  const first = await eal.probe(`pci:${EDU}`);
  using memory = eal.external.allocate(64 * KiB);
  using mapping = first.dmaMap(memory);
  const block = eal.malloc(LENGTH);
  using own = eal.containers.create();
  const second = await eal.probe(`pci:${EDU_SECOND}`, { container: own });
  assert.equal(second.domain?.iovaOf(mapping.va), -1);
  assert.ok(second.iovaOf(block) >= 0);
  block.free();
  await eal.remove(second);
});

test('the same memory in two containers', async (t) => {
  const { platform, calls } = listened();
  await using eal = await start({ platform });
  using own = eal.containers.create();
  const first = await eal.probe(`pci:${EDU}`);
  const second = await eal.probe(`pci:${EDU_SECOND}`, { container: own });
  const before = pinned();
  using memory = eal.external.allocate(16 * MiB);
  const one = first.dmaMap(memory);
  const once = pinned() - before;
  const two = second.dmaMap(memory);
  const twice = pinned() - before;
  t.diagnostic(`pinned: ${once} bytes for one, ${twice} for both`);
  assert.equal(once, 16 * MiB);
  assert.equal(twice, isType1 ? 32 * MiB : 16 * MiB);
  assert.equal(calls.includes('IOMMU_IOAS_COPY'), !isType1);
  await mustCopy(second, memory, two, 1);
  // What was copied does not depend on where it was copied from.
  one.unmap();
  await mustCopy(second, memory, two, 2);
  using again = first.dmaMap(memory);
  await mustCopy(first, memory, again, 3);
  two.unmap();
  await mustCopy(first, memory, again, 4);
  again.unmap();
  assert.equal(pinned(), before);
  await eal.remove(second);
});

test('memory of a descriptor is mapped by it', { skip: isType1 }, async () => {
  for (const [source, call] of [
    ['memfd', 'IOMMU_IOAS_MAP_FILE'],
    ['anonymous', 'IOMMU_IOAS_MAP'],
  ] as const) {
    const { platform, calls } = listened();
    await using eal = await start({ platform });
    const device = await eal.probe(`pci:${EDU}`);
    using memory = eal.external.allocate(64 * KiB, { source });
    using mapping = device.dmaMap(memory);
    assert.deepEqual(
      calls.filter((name) => name.startsWith('IOMMU_IOAS_MAP')),
      [call],
    );
    await mustCopy(device, memory, mapping);
  }
});

test('dirty pages are told where the kernel can', async () => {
  await using eal = await start();
  const device = await eal.probe(`pci:${EDU}`);
  const space = spaceOf(eal);
  const { dirty } = eal.containers.default;
  using memory = eal.external.allocate(64 * KiB);
  using mapping = device.dmaMap(memory);
  const range = new Range(mapping.iova, mapping.length);
  if (space instanceof IommufdSpace) {
    // QEMU's IOMMU has no second-stage dirty bits.
    assert.equal(space.tracksDirtyPages, false);
    throwsDma('ENOTSUP', () => dirty.start(), /dirty/);
    throwsDma('ENOTSUP', () => dirty.read(range));
    return;
  }
  assert.equal(space.info.tracksDirtyPages, true);
  throwsDma('EINVAL', () => dirty.read(range));
  dirty.start();
  await mustCopy(device, memory, mapping);
  // An IOMMU of which nobody knows what devices wrote: all of it.
  assert.equal(dirty.read(range).count, 16);
  throwsDma('ENOTSUP', () => dirty.read(range, { keep: true }));
  dirty.stop();
});

// --- the ways to map ---

test('in pieces, with progress; and given up in the middle', async () => {
  await using eal = await start();
  const device = await raw(eal);
  using memory = eal.external.allocate(32 * MiB);
  const space = spaceOf(eal);
  const free = space instanceof Type1Space ? space.available() : undefined;
  const seen: number[] = [];
  const chunkBytes = 4 * MiB;
  const onProgress = ({ doneBytes }: { doneBytes: number }): void => void seen.push(doneBytes);
  const mapping = await device.dmaMapAsync(memory, { chunkBytes, onProgress });
  assert.deepEqual(
    seen,
    Array.from({ length: 8 }, (_, i) => (i + 1) * chunkBytes),
  );
  assert.equal(device.domain?.entries, 8);
  mapping.unmap();
  const stop = new AbortController();
  let pieces = 0;
  const given = device.dmaMapAsync(memory, {
    chunkBytes,
    signal: stop.signal,
    onProgress: () => {
      if (++pieces === 3) stop.abort();
    },
  });
  await assert.rejects(given, (error) => isDmaError(error, 'ECANCELED'));
  assert.deepEqual([device.domain.entries, device.domain.bytes], [0, 0]);
  if (space instanceof Type1Space) assert.equal(space.available(), free);
  // The kernel has nothing left either.
  assert.equal(space.unmapAll(), 0);
});

test(
  'timers run while much is mapped, one of them gives it up, and nothing is left',
  { skip: width() !== 48 },
  async (t) => {
    await using eal = await start();
    const device = await raw(eal);
    const space = spaceOf(eal);
    const free = space instanceof Type1Space ? space.available() : undefined;
    const before = pinned();
    const [less, length] = [128 * MiB, 512 * MiB];
    let last = performance.now();
    let longest = 0;
    let ticks = 0;
    const timer = setInterval(() => {
      const now = performance.now();
      longest = Math.max(longest, now - last);
      last = now;
      ticks++;
    }, 5);
    t.after(() => clearInterval(timer));
    // Its pages are not there yet: getting them is most of the work.
    using memory = eal.external.allocate(less, { populate: false });
    const began = performance.now();
    [last, longest, ticks] = [began, 0, 0];
    const mapping = await device.dmaMapAsync(memory);
    const took = performance.now() - began;
    t.diagnostic(`${took.toFixed()} ms, ${ticks} ticks, the longest delay ${longest.toFixed()} ms`);
    assert.equal(pinned() - before, less);
    assert.ok(longest < took / 4, `a delay of ${longest.toFixed()} ms in ${took.toFixed()} ms`);
    ticks = 0;
    await mapping.unmapAsync();
    assert.ok(ticks > 0, 'the loop stood still while it was unmapped');
    assert.equal(pinned(), before);

    using more = eal.external.allocate(length, { populate: false });
    const stop = new AbortController();
    let doneBytes = 0;
    const given = device.dmaMapAsync(more, {
      signal: stop.signal,
      onProgress: (progress) => ({ doneBytes } = progress),
    });
    setTimeout(() => stop.abort(), took / 2);
    await assert.rejects(given, (error) => isDmaError(error, 'ECANCELED'));
    t.diagnostic(`given up after ${doneBytes / MiB} MiB`);
    assert.ok(doneBytes < length);
    assert.deepEqual([device.domain?.entries, device.domain?.bytes, pinned()], [0, 0, before]);
    if (space instanceof Type1Space) assert.equal(space.available(), free);
    assert.equal(space.unmapAll(), 0);
  },
);

test('the old way, for programs that are being ported', async () => {
  const warnings: string[] = [];
  const listen = (warning: Error & { code?: string }): void => void warnings.push(`${warning.name} ${warning.code}`);
  process.on('warning', listen);
  await using eal = await start();
  const device = await eal.probe(`pci:${EDU}`);
  const { domain } = device;
  assert.ok(domain !== undefined);
  const container = eal.containers.default;
  using memory = eal.external.allocate(64 * KiB);
  const mapping = container.map(memory, { iova: 0x80_0000 });
  await mustCopy(device, memory, mapping);
  container.unmap({ va: memory.va, length: memory.length, iova: mapping.iova });
  assert.equal(domain.entries, 0);
  container.unmap(container.map(memory));
  throwsDma('EINVAL', () => container.unmap(memory));
  await new Promise((resolve) => setImmediate(resolve));
  process.off('warning', listen);
  assert.deepEqual(warnings, ['DeprecationWarning ANYDMA_CONTAINER_MAP']);
});

test('DM-30 to DM-46 on the real kernel', async () => {
  await using eal = await start({ holdBackMs: 0 });
  const device = await eal.probe(`pci:${EDU}`);
  const { domain } = device;
  assert.ok(domain !== undefined);
  using memory = eal.external.allocate(600 * PAGE);
  const part = (first: number, pages: number): { va: Va; length: number } => ({
    va: (memory.va + first * PAGE) as Va,
    length: pages * PAGE,
  });
  const at = (page: number): Iova => (0x10_0000 + page * PAGE) as Iova;
  // DM-30
  throwsDma('EINVAL', () => device.dmaMap({ va: memory.va, length: 0 }));
  // DM-33: the same again is counted, and the kernel has it once.
  const [one, two] = [device.dmaMap(part(0, 4)), device.dmaMap(part(0, 4))];
  assert.equal(domain.entries, 1);
  one.unmap();
  assert.equal(domain.entries, 1);
  two.unmap();
  // DM-40: a second time is refused.
  throwsDma('EINVAL', () => device.dmaUnmap(part(0, 4)));
  // DM-34: the kernel has something there that is not in the books.
  const space = spaceOf(eal);
  space.map({ va: part(100, 1).va, iova: at(0), length: PAGE, access: 'read' });
  throwsDma('EEXIST', () => device.dmaMap(part(0, 1), { iova: at(0) }), /kernel/);
  assert.equal(domain.entries, 0);
  assert.equal(space.unmap({ iova: at(0), length: PAGE }), PAGE);
  // DM-35: what the kernel refuses is not in the books, and its IOVA is free again.
  const { memory: port } = eal.platform;
  const gone = port.reserve(PAGE, PAGE);
  port.commit(gone, { length: PAGE });
  const absent = eal.external.fromAddress(gone, PAGE);
  port.decommit(gone, PAGE);
  throwsDma('EFAULT', () => device.dmaMap(absent, { iova: at(0) }));
  assert.deepEqual([domain.entries, domain.bytes], [0, 0]);
  device.dmaMap(part(0, 1), { iova: at(0) }).unmap();
  absent.unregister();
  port.unmap(gone, PAGE);
  // DM-36, DM-37: neighbours stay what they are.
  const [low, high] = [device.dmaMap(part(0, 2), { iova: at(0) }), device.dmaMap(part(2, 2), { iova: at(2) })];
  assert.equal(domain.entries, 2);
  // DM-43: nothing is unmapped that was not mapped as one.
  throwsDma('EINVAL', () => device.dmaUnmap(part(0, 4)));
  // DM-41: the right address, and another IOVA.
  throwsDma('EINVAL', () => device.dmaUnmap({ ...part(0, 2), iova: at(2) }));
  // DM-42: the kernel cuts no mapping.
  throwsDma('ENOTSUP', () => device.dmaUnmap(part(0, 1)));
  low.unmap();
  await mustCopyPages(device, memory, high);
  // DM-39
  device.dmaUnmap({ ...part(2, 2), iova: at(2) });
  assert.equal(domain.entries, 0);
  // DM-38, DM-45: no limit of 256.
  const many = Array.from({ length: 600 }, (_, n) => device.dmaMap(part(n, 1)));
  assert.equal(domain.entries, 600);
  for (const each of many) each.unmap();
  // DM-46: the kernel unmaps less than it was asked to.
  const lost = device.dmaMap(part(0, 4), { iova: at(0) });
  assert.equal(space.unmap({ iova: at(0), length: 4 * PAGE }), 4 * PAGE);
  throwsDma(isType1 ? 'EIO' : 'ENOENT', () => lost.unmap());
  assert.equal(lost.live, true);
  space.map({ va: part(0, 4).va, iova: at(0), length: 4 * PAGE, access: 'read-write' });
  lost.unmap();
  assert.deepEqual([domain.entries, domain.bytes], [0, 0]);
});

test('DM-31, DM-32: a domain whose last device has left takes nothing', async () => {
  await using eal = await start();
  const device = await raw(eal);
  const { domain } = device;
  assert.ok(domain !== undefined);
  using memory = eal.external.allocate(64 * KiB);
  await eal.remove(device);
  throwsDma('ENODEV', () => eal.containers.default.map(memory));
  assert.deepEqual([domain.entries, domain.bytes], [0, 0]);
});

test('DM-20, DM-23: on PCI, the address space of the driver is used and that of the bus is not; half of one is refused', async () => {
  const calls: string[] = [];
  const space: AddressSpace = {
    kind: 'own',
    constraints: {
      granule: PAGE,
      windows: [new Range(0 as Iova, 2 ** 40)],
      entryLimit: Infinity,
      iova: 'free',
      partialUnmap: false,
      pins: false,
    },
    map: ({ length }) => void calls.push(`map ${length}`),
    unmap: ({ length }) => {
      calls.push(`unmap ${length}`);
      return length;
    },
    close: () => undefined,
  };
  const driver: Driver = { name: 'own', buses: ['pci'], spaceOf: () => space, probe: () => 'taken' };
  const { unmap: _left, ...half } = space;
  const halfDriver: Driver = { ...driver, name: 'half', spaceOf: () => half as AddressSpace };
  await using eal = await start({ drivers: [driver, halfDriver] });
  await assert.rejects(eal.probe(`bus=pci,addr=${EDU}/driver=half`), (error) => isDmaError(error, 'EINVAL'));
  const device = await eal.probe(`bus=pci,addr=${EDU}/driver=own`);
  using memory = eal.external.allocate(64 * KiB);
  device.dmaMap(memory).unmap();
  assert.deepEqual(calls, [`map ${64 * KiB}`, `unmap ${64 * KiB}`]);
  await eal.remove(device);
  // Nothing was left with the kernel, and the same device is mapped by its bus again.
  const again = await raw(eal);
  assert.equal(again.domain?.kind, KIND);
});

/** As {@link mustCopy}, within what the mapping has. */
async function mustCopyPages(device: Device, memory: ExternalMemory, mapping: Mapping): Promise<void> {
  const edu = device.use(eduDriver);
  const bytes = memory.bytes(mapping.va - memory.va, mapping.length);
  bytes.fill(0x5a, 0, LENGTH);
  await edu.copyIn(mapping.iova, 0, LENGTH);
  await edu.copyOut(mapping.iova + PAGE, 0, LENGTH);
  assert.ok(bytes.subarray(PAGE, PAGE + LENGTH).every((byte) => byte === 0x5a));
}

test('DM-48: the last device leaves, and another comes', async () => {
  await using eal = await start();
  const first = await eal.probe(`pci:${EDU}`);
  using memory = eal.external.allocate(64 * KiB);
  const all = eal.dmaMapAll(memory);
  using other = eal.external.allocate(64 * KiB);
  const mapping = first.dmaMap(other);
  await eal.remove(first);
  assert.equal(mapping.live, false);
  const again = await eal.probe(`pci:${EDU}`);
  assert.equal(again.domain?.iovaOf(other.va), -1);
  const iova = again.iovaOf(memory);
  await mustCopy(again, memory, [...all.mappings][0] ?? assert.fail('not mapped'));
  assert.ok(iova >= 0);
  all.unmap();
});

test('DM-49 to DM-51: memory of heaps, given before and after the device came, and taken away', async () => {
  await using eal = await start();
  using before = eal.external.allocate(MiB);
  using plain = eal.external.allocate(MiB);
  eal.heaps.create('mine');
  eal.heaps.addMemory('mine', before);
  const device = await eal.probe(`pci:${EDU}`);
  assert.ok(device.iovaOf(before) >= 0);
  // What is only registered is not mapped.
  assert.equal(device.domain?.iovaOf(plain.va), -1);
  using after = eal.external.allocate(MiB);
  eal.heaps.addMemory('mine', after);
  assert.equal(device.domain?.bytes, 2 * MiB);
  eal.heaps.removeMemory('mine', { va: before.va, length: before.length });
  assert.equal(device.domain?.bytes, MiB);
  eal.heaps.removeMemory('mine', { va: after.va, length: after.length });
  assert.deepEqual([device.domain?.entries, spaceOf(eal).unmapAll()], [0, 0]);
  eal.heaps.destroy('mine');
});

// --- devices that leave ---

test('a device is unplugged, and the other one of its domain goes on', async () => {
  await host.deviceAdd({ driver: 'edu', id: 'late', bus: 'port0' });
  await bindToVfio([EDU_HOTPLUG], { wait: true });
  await using eal = await start();
  const stays = await eal.probe(`pci:${EDU}`);
  const goes = await eal.probe(`pci:${EDU_HOTPLUG}`);
  assert.equal(stays.domain, goes.domain);
  using shared = eal.external.allocate(64 * KiB);
  using alone = eal.external.allocate(64 * KiB);
  using mapping = stays.dmaMap(shared);
  const [too, its] = [goes.dmaMap(shared), goes.dmaMap(alone)];
  await mustCopy(goes, shared, too, 1);
  const lost = new Promise<Device>((resolve) => eal.events.once('lost', resolve));
  const alive = setInterval(() => undefined, 1000);
  await host.deviceDel('late');
  assert.equal(await lost, goes);
  clearInterval(alive);
  await host.deviceGone('late');
  assert.deepEqual([too.live, its.live, mapping.live], [false, false, true]);
  await until(() => stays.domain?.entries === 1, 'its mappings are gone', 5000);
  await mustCopy(stays, shared, mapping, 2);
});

// --- the device itself ---

test('a reset puts the registers back, and keeps what is mapped', async () => {
  await bindToVfio([DEVICES.disk0]);
  {
    await using eal = await start();
    const disk = await raw(eal, DEVICES.disk0);
    using memory = eal.external.allocate(64 * KiB);
    using mapping = disk.dmaMap(memory);
    // NVMe: the mask of interrupts, which a reset clears.
    const registers = disk.access.registers(0);
    registers.write32(0x0c, 5);
    assert.equal(registers.read32(0x0c), 5);
    disk.access.reset();
    assert.equal(disk.access.registers(0).read32(0x0c), 0);
    assert.equal(mapping.live, true);
    assert.equal(disk.access.readRegion(7, 4, 1)[0] & 6, 6, 'memory and bus mastering are on');
  }
  release([DEVICES.disk0]);
});

test('interrupts of the edu device: INTx and MSI, one after the other', async () => {
  await using eal = await start();
  const device = await raw(eal);
  const { access } = device;
  const registers = access.registers(0);
  for (const kind of ['msi', 'intx', 'msi'] as const) {
    const reasons: number[] = [];
    const interrupts = access.enableInterrupts(kind, [
      () => {
        const reason = registers.read32(0x24);
        registers.write32(0x64, reason);
        if (reason !== 0) reasons.push(reason);
      },
    ]);
    for (const reason of [1, 2, 4]) {
      registers.write32(0x60, reason);
      await until(() => reasons.includes(reason), `${kind} for ${reason}`, 10_000);
    }
    assert.deepEqual(reasons, [1, 2, 4]);
    interrupts.close();
    registers.write32(0x60, 8);
    await new Promise((resolve) => setTimeout(resolve, 50));
    assert.equal(reasons.includes(8), false);
    registers.write32(0x64, 8);
  }
  assert.equal(access.interruptCount('msix'), 0);
  throwsDma('EINVAL', () => access.enableInterrupts('msix', [() => undefined]));
  assert.equal(device.use(rawDriver), access);
});

test('MSI-X vectors of a network interface, each by itself', async () => {
  await bindToVfio([DEVICES.net0]);
  {
    await using eal = await start();
    const { access } = await raw(eal, DEVICES.net0);
    const registers = access.registers(0);
    const count = access.interruptCount('msix');
    assert.equal(count, 5);
    const [IVAR, IMS, IMC, ICS, ICR, OTHER] = [0xe4, 0xd0, 0xd8, 0xc8, 0xc0, 1 << 24];
    const heard = new Array<number>(count).fill(0);
    const listeners = heard.map((_, vector) => () => {
      heard[vector]++;
    });
    for (const vectors of [count, 2, count]) {
      const interrupts = access.enableInterrupts('msix', listeners.slice(0, vectors));
      for (let vector = 0; vector < vectors; vector++) {
        heard.fill(0);
        // Which vector the cause "other" raises, and that it does.
        registers.write32(IMC, 0xffff_ffff);
        registers.write32(ICR, 0xffff_ffff);
        registers.write32(IVAR, (0x8 | vector) << 16);
        registers.write32(IMS, OTHER);
        registers.write32(ICS, OTHER);
        await until(() => heard[vector] > 0, `vector ${vector} of ${vectors}`, 10_000);
        assert.equal(heard.filter((times) => times > 0).length, 1);
      }
      interrupts.close();
    }
    throwsDma('EINVAL', () => access.enableInterrupts('msix', [...listeners, () => undefined]));
  }
  release([DEVICES.net0]);
});
