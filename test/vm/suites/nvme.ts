/** QEMU's NVMe controller through the driver of the library: bytes of every size, from all kinds of memory, and the kernel beside it. */
import { spawn } from 'node:child_process';
import { createHash } from 'node:crypto';
import { once } from 'node:events';
import { closeSync, existsSync, fsyncSync, openSync, readSync, writeFileSync, writeSync } from 'node:fs';
import { before, test } from 'node:test';
import assert from 'node:assert/strict';
import { isDmaError, KiB, MiB, type Va } from '../../../src/index.js';
import { nvmeDriver } from '../../../src/entry/nvme.js';
import { OACS } from '../../../src/nvme/identify.js';
import { againstModel } from '../../shared/nvme-model.js';
import { until } from '../../shared/until.js';
import { bindToVfio, CHOICE, driverOf, EDU_HOTPLUG, KIND, release, WHOLE, width } from '../guest.js';
import { host } from '../host.js';
import { DISK, fill, openDisk as open, sum } from '../nvme-disk.js';

const NODE = '/dev/nvme0n1';

before(() => bindToVfio([DISK]));

test('the driver takes it by its class; driver=raw opts out', async () => {
  await using room = await open();
  const { device, ssd, disk, eal } = room;
  assert.equal(device.domain?.kind, KIND);
  assert.equal(device.driver, nvmeDriver);
  assert.equal(ssd.identity.serial, 'anydma');
  assert.equal(ssd.identity.vendor, 0x1b36);
  assert.equal(disk.size, 64 * MiB);
  assert.ok(ssd.limits.vectors > 1 && ssd.limits.queues >= 2, JSON.stringify(ssd.limits));
  assert.ok(device.domain?.constraints.windows.every(({ end }) => end <= 2 ** width()));
  await eal.remove(device);
  const raw = await eal.probe(`bus=pci,addr=${DISK}/driver=raw`);
  assert.equal(raw.driver?.name, 'raw');
});

test('every size from a block to 1 MiB, at odd offsets, from all three kinds of memory', async () => {
  await using room = await open();
  const { eal, device, ssd, disk } = room;
  using external = eal.external.allocate(2 * MiB);
  using _mapping = device.dmaMap(external);
  using user = eal.external.allocate(4 * MiB);
  eal.heaps.create('user');
  eal.heaps.addMemory('user', user);
  const [own, heap] = [eal.malloc(2 * MiB), eal.malloc(2 * MiB, { heap: 'user' })];
  const most = MiB / disk.blockSize;
  const sizes: number[] = [];
  for (let blocks = 1; blocks <= most; blocks *= 2)
    sizes.push(...[blocks - 1, blocks, blocks + 1].filter((n) => n > 0 && n <= most));
  for (const memory of [external, own, heap])
    for (const [index, blocks] of [...new Set(sizes)].entries()) {
      // QEMU's controller has SGLs for what is no multiple of 4.
      const offset = [0, 4, 512, 4092, 2048 + 8, ssd.limits.sgl ? 1 : 16][index % 6];
      const length = blocks * disk.blockSize;
      const bytes = memory.bytes(offset, length);
      fill(bytes, blocks);
      const wanted = sum(bytes);
      const range = { va: (memory.va + offset) as Va, length };
      const lba = 17 * index;
      await disk.write({ lba, from: range });
      bytes.fill(0);
      await disk.read({ lba, blocks, into: range });
      assert.equal(sum(bytes), wanted, `${blocks} blocks at ${offset}`);
    }
  own.free();
  heap.free();
  eal.heaps.removeMemory('user', user);
  eal.heaps.destroy('user');
});

test('256 MiB go there and come back, eight at a time; several ranges; a stream', async () => {
  await using room = await open();
  const { eal, disk } = room;
  const blocks = Array.from({ length: 8 }, () => eal.malloc(MiB, { align: 4096 }));
  const step = MiB / disk.blockSize;
  for (let pass = 0; pass < 4; pass++) {
    const [written, read] = [createHash('sha256'), createHash('sha256')];
    for (let at = 0; at < 64; at += 8) {
      for (const [i, block] of blocks.entries()) written.update(fill(block.bytes(), pass * 64 + at + i));
      await Promise.all(blocks.map((block, i) => disk.write({ lba: (at + i) * step, from: block })));
    }
    await disk.flush();
    for (let at = 0; at < 64; at += 8) {
      for (const block of blocks) block.bytes().fill(0);
      await Promise.all(blocks.map((block, i) => disk.read({ lba: (at + i) * step, into: block })));
      for (const block of blocks) read.update(block.bytes());
    }
    assert.equal(read.digest('hex'), written.digest('hex'), `pass ${pass}`);
  }
  const [first, second] = blocks;
  const part = (of: typeof first, offset: number, length: number): { va: Va; length: number } => ({
    va: (of.va + offset) as Va,
    length,
  });
  const ranges = [part(first, 512, 1024), part(second, 4096 + 2048, 512), part(first, 65536 + 256, 2560)];
  const joined = (): Buffer =>
    Buffer.concat(
      ranges.map(({ va, length }) =>
        (va >= second.va && va < second.va + MiB ? second : first).bytes(
          va - (va >= second.va && va < second.va + MiB ? second : first).va,
          length,
        ),
      ),
    );
  fill(first.bytes(), 1);
  fill(second.bytes(), 2);
  const wanted = sum(joined());
  await disk.write({ lba: 99, from: ranges });
  for (const block of [first, second]) block.bytes().fill(0);
  await disk.read({ lba: 99, into: ranges });
  assert.equal(sum(joined()), wanted);
  for (const block of blocks) block.free();
  const streamed = createHash('sha256');
  for await (const chunk of disk.readable({ lba: 99, blocks: 8 })) streamed.update(chunk as Uint8Array);
  assert.equal(streamed.digest('hex'), wanted);
});

test('random commands against a model of the disk', async () => {
  await using room = await open();
  const commands = WHOLE ? 1_000_000 : 5_000;
  const onProgress = (counts: object): void => console.log(JSON.stringify(counts));
  // Its disk keeps what was deallocated, and says that it does not. Many at a time: a turn of the event loop is dear in a guest.
  const counts = await againstModel(room.eal, room.disk, {
    ...{ seed: 12, commands, span: 16_384, depth: 128, deallocated: 'kept', onProgress },
  });
  for (const [kind, count] of Object.entries(counts)) assert.ok(count > 0, kind);
});

test('a queue of the program’s own, polled and by interrupts; two queues at once', async () => {
  await using room = await open();
  const { eal, device, ssd, disk } = room;
  const block = eal.malloc(256 * KiB, { align: 4096 });
  const iova = device.iovaOf(block);
  fill(block.bytes(), 3);
  await disk.write({ lba: 0, from: block });
  const wanted = sum(block.bytes());
  block.bytes().fill(0);
  const polled = await ssd.openQueue({ entries: 64 });
  let done = 0;
  const called = new Promise<void>((resolve) => {
    void ssd
      .openQueue({
        entries: 16,
        onCompletions: (count, queue) => {
          done += count;
          if (done === 10 && queue.running === 0) resolve();
        },
      })
      .then((queue) => {
        for (let slot = 0; slot < 10; slot++) queue.read(slot, 1, 0, 1, iova);
        queue.ring();
      });
  });
  await called;
  let [sent, back] = [0, 0];
  const units = block.length / 4096;
  for (let slot = 0; slot < 63; slot++, sent++) polled.read(slot, 1, sent * 8, 8, iova + sent * 4096);
  polled.ring();
  while (back < units) {
    const count = polled.poll();
    for (let i = 0; i < count; i++, back++) {
      assert.equal(polled.statuses[i], 0);
      if (sent < units) polled.read(polled.slots[i], 1, sent * 8, 8, iova + sent++ * 4096);
    }
    polled.ring();
    await new Promise((resolve) => setImmediate(resolve));
  }
  assert.equal(sum(block.bytes()), wanted);
  block.free();
});

test('doorbells are in memory (Doorbell Buffer Config), and the controller says there when it wants to be rung', async (t) => {
  await using room = await open();
  const { eal, device, ssd } = room;
  // QEMU has it from 7.2 on.
  if ((ssd.identity.oacs & OACS.DOORBELL_BUFFER) === 0) return t.skip('this QEMU has no Doorbell Buffer Config');
  using block = eal.malloc(4096, { align: 4096 });
  const queue = await ssd.openQueue({ entries: 16 });
  for (let slot = 0; slot < 10; slot++) queue.read(slot, 1, slot, 1, device.iovaOf(block));
  queue.ring();
  let done = 0;
  await until(() => (done += queue.poll()) === 10, 'they are back');
  // Two pages of the driver's own, which nobody gives away: one of values, one of the controller's indexes.
  const memory = openSync('/proc/self/mem', 'r');
  const tail = 2 * queue.id;
  const shadows = (): number[][] =>
    [...(device.domain?.mappings() ?? [])]
      .filter(({ length }) => length === 8192)
      .map(({ va }) => {
        const words = new Uint32Array(2048);
        readSync(memory, words, 0, 8192, va);
        return [words[tail], words[1024 + tail]];
      });
  try {
    await until(() => shadows().some(([value, event]) => value === 10 && event === 10), 'both are there');
  } finally {
    closeSync(memory);
  }
});

test('a reset in the middle: every command settles, and the controller works on', async () => {
  await using room = await open();
  const { eal, ssd, disk } = room;
  ssd.configure({ resubmitReads: true });
  const block = eal.malloc(MiB, { align: 4096 });
  const calls = Array.from({ length: 32 }, (_, i) => disk.read({ lba: i * 128, blocks: 128, into: block }));
  const writes = Array.from({ length: 8 }, (_, i) => disk.write({ lba: 4096 + i * 128, blocks: 128, from: block }));
  const settled = Promise.allSettled([...calls, ...writes]);
  await ssd.reset();
  const results = await settled;
  assert.deepEqual(
    results.slice(0, 32).filter(({ status }) => status === 'rejected'),
    [],
  );
  for (const each of results)
    if (each.status === 'rejected') assert.ok(isDmaError(each.reason, 'ECANCELED'), String(each.reason));
  await disk.read({ lba: 0, blocks: 8, into: block });
  block.free();
});

test('the kernel reads what was written here, and the other way round', async () => {
  const bytes = Buffer.alloc(MiB);
  {
    await using room = await open();
    const { eal, disk } = room;
    const block = eal.malloc(MiB, { align: 4096 });
    bytes.set(fill(block.bytes(), 77));
    await disk.write({ lba: 1000, from: block });
    block.free();
  }
  release([DISK]);
  writeFileSync('/sys/bus/pci/drivers_probe', DISK);
  await until(() => existsSync(NODE), `${NODE} is there`, 30_000);
  const fd = openSync(NODE, 'r+');
  const read = Buffer.alloc(MiB);
  assert.equal(readSync(fd, read, 0, MiB, 1000 * 512), MiB);
  assert.equal(sum(read), sum(bytes));
  fill(bytes, 78);
  writeSync(fd, bytes, 0, MiB, 3000 * 512);
  fsyncSync(fd);
  closeSync(fd);
  await bindToVfio([DISK]);
  await using room = await open();
  const { eal, disk } = room;
  const block = eal.malloc(MiB, { align: 4096 });
  await disk.read({ lba: 3000, into: block });
  assert.equal(sum(block.bytes()), sum(bytes));
  block.free();
});

test('a process that is killed in the middle of I/O leaves nothing', async (t) => {
  const script = `
    import { Eal } from ${JSON.stringify(new URL('../../../src/index.js', import.meta.url).href)};
    import { nvmeDriver } from ${JSON.stringify(new URL('../../../src/entry/nvme.js', import.meta.url).href)};
    const eal = await Eal.start({ iommu: ${JSON.stringify(CHOICE)} });
    const [disk] = (await eal.probe('pci:${DISK}')).use(nvmeDriver).namespaces;
    const block = eal.malloc(1 << 20, { align: 4096 });
    for (let i = 0; ; i++) {
      await Promise.all(Array.from({ length: 16 }, (_, n) => disk.write({ lba: n * 2048, from: block })));
      if (i === 2) console.log('busy');
    }`;
  const child = spawn(process.execPath, ['--input-type=module', '-e', script], {
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  t.after(() => child.kill('SIGKILL'));
  await once(child.stdout, 'data');
  child.kill('SIGKILL');
  await once(child, 'exit');
  await using room = await open();
  const block = room.eal.malloc(4096, { align: 4096 });
  await room.disk.write({ lba: 0, blocks: 8, from: block });
  await room.disk.read({ lba: 0, blocks: 8, into: block });
  block.free();
});

test('two controllers share one domain; one that is unplugged in the middle of I/O ends its calls', async () => {
  await host.qmp('blockdev-add', { driver: 'null-co', 'node-name': 'late-disk', size: 64 * MiB, 'read-zeroes': true });
  await host.deviceAdd({
    driver: 'nvme',
    id: 'late-nvme',
    bus: 'port0',
    serial: 'late',
    drive: 'late-disk',
    cmb_size_mb: 2,
  });
  await bindToVfio([EDU_HOTPLUG], { wait: true });
  await using room = await open();
  const { eal, device, disk } = room;
  const late = await eal.probe(`pci:${EDU_HOTPLUG}`);
  const [other] = late.use(nvmeDriver).namespaces;
  assert.equal(late.domain, device.domain);
  const block = eal.malloc(MiB, { align: 4096 });
  fill(block.bytes(), 5);
  assert.equal(late.iovaOf(block), device.iovaOf(block));
  await disk.write({ lba: 0, from: block });
  await Promise.all([
    disk.read({ lba: 0, into: block }),
    other.read({ lba: 0, blocks: 8, into: { va: block.va + 512 * KiB, length: 4096 } }),
  ]);
  // QEMU's controller has a memory buffer for submission queues only; what is read there are zeroes.
  const ring = await late.use(nvmeDriver).openQueue({ entries: 16, controllerMemory: true });
  const where = { va: block.va, length: 4096 };
  for (let round = 0; round < 4; round++) {
    block.bytes(0, 4096).fill(9);
    for (let slot = 0; slot < 8; slot++) ring.read(slot, 1, slot, 1, late.iovaOf(where) + slot * 512);
    ring.ring();
    let back = 0;
    await until(() => (back += ring.poll()) === 8, 'they are back');
    assert.ok(block.bytes(0, 4096).every((byte) => byte === 0));
  }
  const alive = setInterval(() => undefined, 1000);
  const lost = once(eal.events, 'lost');
  let failure: unknown;
  const busy = (async () => {
    for (;;)
      await Promise.all(Array.from({ length: 16 }, (_, i) => other.read({ lba: i * 8, blocks: 8, into: block })));
  })().catch((error: unknown) => {
    failure = error;
  });
  await host.deviceDel('late-nvme');
  await lost;
  await busy;
  clearInterval(alive);
  await host.deviceGone('late-nvme');
  assert.ok(isDmaError(failure, 'ENODEV'), String(failure));
  // The other one goes on, and nothing of the one that is gone holds the memory.
  await disk.read({ lba: 0, into: block });
  block.free();
  await host.qmp('blockdev-del', { 'node-name': 'late-disk' });
  assert.equal(driverOf(DISK), 'vfio-pci');
});
