/** Namespaces of QEMU's NVMe controller that come and go, are zoned, or have metadata and protection information. */
import { afterEach, before, test } from 'node:test';
import assert from 'node:assert/strict';
import { isDmaError, KiB, MiB, type Block, type ErrorCode, type Va } from '../../../src/index.js';
import { NvmeError, type Nvme, type NvmeNamespace } from '../../../src/entry/nvme.js';
import { bindToVfio } from '../guest.js';
import { DETACHED } from '../machine.js';
import { DISK, fill, openDisk, sum, type DiskRoom } from '../nvme-disk.js';

before(() => bindToVfio([DISK]));

/** Namespace attachment (NVMe 1.4, section 5.12): the command, and what it is asked for. */
const ATTACHMENT = { OPCODE: 0x15, ATTACH: 0, DETACH: 1 } as const;

const attached = new Set<number>();
afterEach(async () => {
  if (attached.size === 0) return;
  await using room = await openDisk();
  for (const id of attached) await attachment(room, id, ATTACHMENT.DETACH);
  attached.clear();
});

/** Attaches a namespace to the controller, or detaches it. */
async function attachment({ eal, ssd }: Pick<DiskRoom, 'eal' | 'ssd'>, nsid: number, what: number): Promise<void> {
  using list = eal.malloc(4096, { align: 4096 });
  const words = new Uint16Array(list.bytes().buffer, list.bytes().byteOffset, 2048);
  words.fill(0);
  words[0] = 1;
  words[1] = ssd.identity.controllerId;
  await ssd.admin({ opcode: ATTACHMENT.OPCODE, nsid, cdw10: what, from: list });
}

/** Attaches a namespace until the end of the test. */
async function attach(room: DiskRoom, nsid: number): Promise<NvmeNamespace> {
  await attachment(room, nsid, ATTACHMENT.ATTACH);
  attached.add(nsid);
  await room.ssd.rescan();
  return room.ssd.namespace(nsid);
}

/** Part of a block, for calls. */
const part = (of: Block, offset: number, length: number): { va: Va; length: number } => ({
  va: (of.va + offset) as Va,
  length,
});

async function fails(promise: Promise<unknown>, code: ErrorCode, name: string): Promise<void> {
  const error = await promise.then(
    () => assert.fail(`${name} was expected`),
    (failure: unknown) => failure,
  );
  assert.ok(error instanceof NvmeError, String(error));
  assert.deepEqual([error.code, error.nvme.name], [code, name], error.message);
}

async function nextChange(ssd: Nvme, events: ReturnType<Nvme['events']>): Promise<number[]> {
  for (;;) {
    const { value } = await events.next();
    assert.ok(value !== undefined, 'the events have ended');
    if (value.what === 'namespaces changed') return ssd.namespaces.map(({ id }) => id);
  }
}

test('namespaces that are attached and detached are told by an event', async () => {
  await using room = await openDisk();
  const { eal, ssd } = room;
  const events = ssd.events();
  const { id } = DETACHED.protected;
  assert.throws(() => ssd.namespace(id), { code: 'ENXIO' });
  for (let round = 0; round < 3; round++) {
    await attachment(room, id, ATTACHMENT.ATTACH);
    attached.add(id);
    assert.deepEqual(await nextChange(ssd, events), [1, id]);
    const namespace = ssd.namespace(id);
    using block = eal.malloc(4096, { align: 4096 });
    await namespace.read({ lba: 0, blocks: 8, into: block });
    await attachment(room, id, ATTACHMENT.DETACH);
    attached.delete(id);
    assert.deepEqual(await nextChange(ssd, events), [1]);
    assert.equal(namespace.live, false);
    await assert.rejects(namespace.read({ lba: 0, blocks: 8, into: block }), { code: 'ENXIO' });
  }
});

test('zones: what there is, and every block of them', async () => {
  await using room = await openDisk();
  const { eal } = room;
  const { id, zoneBytes, zoneCapacity, maxOpen, maxActive } = DETACHED.zoned;
  const disk = await attach(room, id);
  assert.equal(disk.capabilities.zoned, true);
  assert.equal(disk.identifiers.commandSet, 2);
  assert.throws(() => room.disk.zones, { code: 'ENOTSUP' });
  const { zones } = disk;
  const [zoneSize, capacity] = [zoneBytes / 512, zoneCapacity / 512];
  const limits = await zones.limits();
  // QEMU's controller takes 512 KiB a command (MDTS).
  assert.deepEqual(limits, { zoneSize, maxOpen, maxActive, maxAppend: 1024, readAcross: false });
  await zones.manage('reset', 'all');
  const count = disk.blocks / zoneSize;
  assert.deepEqual(
    await zones.report(),
    Array.from({ length: count }, (_, i) => {
      const lba = i * zoneSize;
      return { state: 'empty', capacity, lba, writePointer: lba };
    }),
  );
  const last = await zones.report((count - 2) * zoneSize + 5);
  assert.deepEqual(
    last.map(({ lba }) => lba),
    [(count - 2) * zoneSize, (count - 1) * zoneSize],
  );
  await assert.rejects(zones.report(disk.blocks), { code: 'ERANGE' });

  // A zone is filled by a write of two commands, a write of zeroes, and a stream.
  using block = eal.malloc(MiB, { align: 4096 });
  fill(block.bytes(), 1);
  const zone = zoneSize;
  await disk.write({ lba: zone, blocks: 1200, from: block });
  const [opened] = await zones.report(zone);
  assert.deepEqual(opened, { state: 'implicitly-open', capacity, lba: zone, writePointer: zone + 1200 });
  await fails(disk.write({ lba: zone, blocks: 1, from: block }), 'EINVAL', 'ZONE_INVALID_WRITE');
  await fails(disk.write({ lba: zone + 1201, blocks: 1, from: block }), 'EINVAL', 'ZONE_INVALID_WRITE');
  await fails(disk.write({ lba: zone + 1200, blocks: 400, from: block }), 'ERANGE', 'ZONE_BOUNDARY');
  await disk.writeZeroes({ lba: zone + 1200, blocks: 36 });
  const stream = disk.writable({ lba: zone + 1236, blocks: 300, chunkBytes: 8 * KiB });
  await new Promise<void>((resolve, reject) => {
    stream.on('error', reject);
    stream.end(Buffer.from(block.bytes(0, 300 * 512)), resolve);
  });
  assert.equal((await zones.report(zone))[0].state, 'full');
  await fails(disk.write({ lba: zone, blocks: 1, from: block }), 'ENOSPC', 'ZONE_FULL');
  await fails(zones.append({ zone, blocks: 1, from: block }), 'ENOSPC', 'ZONE_FULL');
  const wanted = Buffer.alloc(zoneCapacity);
  wanted.set(block.bytes(0, 1200 * 512));
  wanted.set(block.bytes(0, 300 * 512), 1236 * 512);
  block.bytes().fill(0xee);
  await disk.read({ lba: zone, blocks: capacity, into: block });
  assert.equal(sum(block.bytes(0, zoneCapacity)), sum(wanted));
  await fails(disk.read({ lba: zone + zoneSize - 1, blocks: 2, into: block }), 'ERANGE', 'ZONE_BOUNDARY');
});

test('zones: appends that run at once each get a place of their own', async () => {
  await using room = await openDisk();
  const { eal } = room;
  const disk = await attach(room, DETACHED.zoned.id);
  const { zones } = disk;
  await zones.manage('reset', 'all');
  const { zoneSize, maxAppend } = await zones.limits();
  const zone = 3 * zoneSize;
  using block = eal.malloc(MiB, { align: 4096 });
  fill(block.bytes(), 2);
  const places = await Promise.all(
    Array.from({ length: 32 }, (_, i) =>
      zones.append({ zone, blocks: 16, from: part(block, i * 8192 + 4 * (i % 3), 8192) }),
    ),
  );
  assert.deepEqual(
    [...places].sort((a, b) => a - b),
    places.map((_, i) => zone + i * 16),
  );
  using back = eal.malloc(8192, { align: 4096 });
  for (const [i, lba] of places.entries()) {
    await disk.read({ lba, blocks: 16, into: back });
    assert.equal(sum(back.bytes()), sum(block.bytes(i * 8192 + 4 * (i % 3), 8192)), `append ${i}`);
  }
  // 512 of 1536 blocks are written.
  assert.equal(await zones.append({ zone, blocks: maxAppend - 1, from: block }), zone + 512);
  await fails(zones.append({ zone, blocks: 2, from: block }), 'ERANGE', 'ZONE_BOUNDARY');
  await assert.rejects(zones.append({ zone: 4 * zoneSize, blocks: maxAppend + 1, from: block }), { code: 'EINVAL' });
  await fails(zones.append({ zone: zone + 1, blocks: 1, from: block }), 'EINVAL', 'INVALID_FIELD');
});

test('zones: each change of state, and the limits of open and active ones', async () => {
  await using room = await openDisk();
  const disk = await attach(room, DETACHED.zoned.id);
  const { zones } = disk;
  await zones.manage('reset', 'all');
  const { zoneSize } = await zones.limits();
  const at = (index: number): number => index * zoneSize;
  const states = async (count: number): Promise<string[]> =>
    (await zones.report()).slice(0, count).map(({ state }) => state);
  for (const index of [0, 1, 2]) await zones.manage('open', at(index));
  assert.deepEqual(await states(4), [...Array<string>(3).fill('explicitly-open'), 'empty']);
  await fails(zones.manage('open', at(3)), 'EMFILE', 'TOO_MANY_OPEN_ZONES');
  for (const index of [0, 1, 2]) await zones.manage('close', at(index));
  for (const index of [3, 4]) await zones.manage('open', at(index));
  assert.deepEqual(await states(5), [...Array<string>(3).fill('closed'), 'explicitly-open', 'explicitly-open']);
  await fails(zones.manage('open', at(5)), 'EMFILE', 'TOO_MANY_ACTIVE_ZONES');
  using block = room.eal.malloc(4096, { align: 4096 });
  await fails(disk.write({ lba: at(5), blocks: 1, from: block }), 'EMFILE', 'TOO_MANY_ACTIVE_ZONES');
  await zones.manage('finish', at(0));
  await zones.manage('open', at(5));
  assert.deepEqual(await states(1), ['full']);
  await zones.manage('reset', at(0));
  assert.deepEqual(await states(1), ['empty']);
  // What a state does not allow.
  await fails(zones.manage('close', at(0)), 'EINVAL', 'ZONE_TRANSITION');
  await fails(zones.manage('offline', at(0)), 'EINVAL', 'ZONE_TRANSITION');
  await fails(zones.manage('open', at(0) + 1), 'EINVAL', 'INVALID_FIELD');
  await assert.rejects(zones.manage('reset', disk.blocks), { code: 'ERANGE' });
  await zones.manage('close', 'all');
  assert.deepEqual(await states(6), ['empty', ...Array<string>(5).fill('closed')]);
  await zones.manage('finish', 'all');
  assert.equal((await states(6)).filter((state) => state === 'full').length, 5);
  await zones.manage('reset', 'all');
  assert.ok((await zones.report()).every(({ state }) => state === 'empty'));
});

test('protection information of type 1: made, checked and taken off by the controller, or kept by the program', async () => {
  await using room = await openDisk();
  const { eal } = room;
  const disk = await attach(room, DETACHED.protected.id);
  const { metadata: bytes } = DETACHED.protected;
  assert.deepEqual([disk.metadataSize, disk.transferSize, disk.capabilities.protection], [bytes, 512, 1]);
  // More than one command: the reference tag goes on counting.
  const [lba, blocks] = [70, 1500];
  using block = eal.malloc(MiB, { align: 4096 });
  using metadata = eal.malloc(blocks * bytes, { align: 4096 });
  fill(block.bytes(), 3);
  const wanted = sum(block.bytes(0, blocks * 512));
  const all = { check: ['guard', 'application', 'reference'], reference: lba, application: 0x1234 } as const;
  await disk.write({ lba, blocks, from: block, protection: { ...all, action: true } });
  // Calls that say nothing of it work as well: the controller makes it, and takes it off.
  await disk.write({ lba: 9, blocks: 3, from: block });
  await disk.read({ lba: 9, blocks: 3, into: block, protection: { check: ['guard', 'reference'], action: true } });
  await disk.writeZeroes({ lba: 10, blocks: 1 });
  await disk.read({ lba: 9, blocks: 3, into: block, protection: { check: ['guard', 'reference'], action: true } });
  await assert.rejects(disk.compare({ lba: 9, blocks: 3, to: block }), { code: 'EINVAL' });
  block.bytes().fill(0);
  await disk.read({ lba, blocks, into: block, metadata, protection: all });
  assert.equal(sum(block.bytes(0, blocks * 512)), wanted);
  // 8 bytes a block, big-endian: the guard, the application tag, the reference tag.
  const view = new DataView(metadata.bytes().buffer, metadata.bytes().byteOffset, metadata.length);
  for (const index of [0, 1, 1023, 1024, blocks - 1])
    assert.deepEqual([view.getUint16(8 * index + 2), view.getUint32(8 * index + 4)], [0x1234, lba + index]);
  // With the tags that were read it can be written as it is, and not with others.
  await disk.write({ lba, blocks, from: block, metadata, protection: all });
  await disk.compare({ lba, blocks, to: block, metadata, protection: all });
  view.setUint16(8 * 1100, view.getUint16(8 * 1100) ^ 1);
  await fails(disk.write({ lba, blocks, from: block, metadata, protection: all }), 'EILSEQ', 'GUARD_CHECK');
  const read = (protection: object): Promise<void> =>
    disk.read({ lba, blocks, into: block, protection: { ...all, action: true, ...protection } });
  await read({});
  await fails(read({ application: 1 }), 'EILSEQ', 'APPLICATION_TAG_CHECK');
  await read({ application: 0x5534, applicationMask: 0xff });
  await assert.rejects(read({ reference: lba + 1 }), (error) => isDmaError(error));
});

test('metadata behind each block: transfers have both', async () => {
  await using room = await openDisk();
  const { eal } = room;
  const disk = await attach(room, DETACHED.inline.id);
  const unit = 512 + DETACHED.inline.metadata;
  assert.deepEqual([disk.blockSize, disk.metadataSize, disk.transferSize], [512, unit - 512, unit]);
  // QEMU takes no command of more than 1024 pieces of memory, and each block is two; and it moves metadata in whole sectors only.
  const blocks = 384;
  using block = eal.malloc(MiB + 64 * KiB, { align: 4096 });
  fill(block.bytes(), 4);
  for (const [offset, lba] of [
    [0, 0],
    [4, 5],
    [4092, 77],
  ]) {
    const range = part(block, offset, blocks * unit);
    const wanted = sum(block.bytes(offset, blocks * unit));
    await disk.write({ lba, from: range });
    block.bytes().fill(0);
    await disk.read({ lba, blocks, into: range });
    assert.equal(sum(block.bytes(offset, blocks * unit)), wanted, `at ${offset}`);
  }
  await assert.rejects(disk.read({ lba: 0, blocks: 1, into: block, metadata: part(block, 0, 16) }), { code: 'EINVAL' });
});
