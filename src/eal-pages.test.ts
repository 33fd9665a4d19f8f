/** Pages that are not there: an error before anyone is given their addresses, and no signal later. */
import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import {
  closeSync,
  ftruncateSync,
  mkdtempSync,
  openSync,
  rmdirSync,
  readFileSync,
  rmSync,
  writeFileSync,
  writeSync,
} from 'node:fs';
import { tmpdir, totalmem } from 'node:os';
import { join } from 'node:path';
import { test, type TestContext } from 'node:test';
import { copyEngineDriver } from './drivers/copy-engine-driver.js';
import { Eal, type EalOptions } from './eal.js';
import { isDmaError, type ErrorCode } from './errors.js';
import { openPlatform } from './platform/open.js';
import { failingPlatform, trackingPlatform } from '../test/fakes/platform/platforms.js';
import { hugePagesForTest } from '../test/shared/real-hugepages.js';
import { alignUp, GiB, KiB, MiB } from './units.js';
import { spawnDevice } from './vfio-user/device-process.js';

const real = openPlatform();
const skip = real.limitation ?? false;
const PAGE = real.memory.pageSize;

/** An Eal over ordinary pages, and what it leaves behind. */
async function start(options: EalOptions = {}): Promise<{ eal: Eal; leaks: () => string[] }> {
  const platform = trackingPlatform(options.platform ?? real);
  return { eal: await Eal.start({ memory: { noHuge: true }, ...options, platform }), leaks: () => platform.leaks() };
}

function failure(action: () => unknown, code: ErrorCode, ...texts: RegExp[]): void {
  assert.throws(action, (error) => {
    if (!isDmaError(error)) throw error;
    assert.equal(error.code, code, error.message);
    for (const text of texts) assert.match(error.message, text);
    return true;
  });
}

/** A file system in memory with room for `bytes`, for as long as the test runs; why not, where that takes other rights. */
function smallFileSystem(t: TestContext, bytes: number): string | undefined {
  const directory = mkdtempSync(join(tmpdir(), 'small-'));
  const mounted = spawnSync('mount', ['-t', 'tmpfs', '-o', `size=${bytes}`, 'tmpfs', directory], { encoding: 'utf8' });
  if (mounted.status !== 0) {
    rmdirSync(directory);
    t.skip(`no tmpfs can be mounted here: ${mounted.stderr.trim()}`);
    return undefined;
  }
  t.after(() => {
    // Files in it are closed by later hooks.
    spawnSync('umount', ['-l', directory]);
    rmdirSync(directory);
  });
  return directory;
}

/** A new file there. */
function fileIn(t: TestContext, directory: string, bytes: number, flags = 'w+'): number {
  const path = join(directory, `file-${Math.random()}`);
  const fd = openSync(path, 'w+');
  ftruncateSync(fd, bytes);
  if (flags === 'w+') {
    t.after(() => closeSync(fd));
    return fd;
  }
  closeSync(fd);
  const other = openSync(path, flags);
  t.after(() => closeSync(other));
  return other;
}

test(
  'a file with holes on a full tmpfs: ENOSPC with figures before it is handed out, and nothing is taken',
  { skip },
  async (t) => {
    const directory = smallFileSystem(t, MiB);
    if (directory === undefined) return;
    const { eal, leaks } = await start();
    const fd = fileIn(t, directory, 8 * MiB);
    failure(() => eal.external.fromFd(fd), 'ENOSPC', /missing 8 MiB/, /1 MiB of its 1 MiB are left/);
    assert.equal(real.files.status(fd).allocated, 0);
    // What was there before is kept, and what is missing beyond the part that is wanted does not matter.
    writeSync(fd, 'kept', 4 * MiB);
    failure(() => eal.external.fromFd(fd), 'ENOSPC');
    using part = eal.external.fromFd(fd, { offset: 4 * MiB, length: 512 * KiB });
    assert.equal(Buffer.from(part.bytes(0, 4)).toString(), 'kept');
    part.bytes().fill(1);
    part.unregister();
    await eal.stop();
    assert.deepEqual(leaks(), []);
  },
);

test('what may only be read is looked at too: on tmpfs a hole that is read takes a page', { skip }, async (t) => {
  const directory = smallFileSystem(t, MiB);
  if (directory === undefined) return;
  const { eal, leaks } = await start();
  const fd = fileIn(t, directory, 8 * MiB, 'r');
  failure(() => eal.external.fromFd(fd), 'ENOMEM');
  await eal.stop();
  assert.deepEqual(leaks(), []);
});

test('a file without holes, or on a disk, is taken as it is', { skip }, async (t) => {
  const { eal, leaks } = await start();
  const directory = mkdtempSync(join(tmpdir(), 'sparse-'));
  const fd = fileIn(t, directory, MiB);
  t.after(() => rmSync(directory, { recursive: true }));
  using memory = eal.external.fromFd(fd);
  memory.bytes().fill(5);
  assert.ok(real.files.status(fd).allocated >= MiB);
  using again = eal.external.fromFd(fd, { writable: false });
  assert.equal(again.bytes()[MiB - 1], 5);
  again.unregister();
  memory.unregister();
  using sparse = eal.external.fromFd(fileIn(t, directory, 8 * MiB), { populate: false });
  assert.equal(sparse.length, 8 * MiB);
  sparse.unregister();
  await eal.stop();
  assert.deepEqual(leaks(), []);
});

test('a copy by a vdev device into a file that does not fit: refused before', { skip }, async (t) => {
  const directory = smallFileSystem(t, MiB);
  if (directory === undefined) return;
  const { eal } = await start();
  await eal.probe('vdev:copy0');
  const fd = fileIn(t, directory, 8 * MiB);
  failure(() => eal.dmaMapAll(eal.external.fromFd(fd)), 'ENOSPC');
  await eal.stop();
});

test('more ordinary memory than the machine has: ENOMEM with figures, and nothing is taken', { skip }, async () => {
  const { eal, leaks } = await start();
  const size = alignUp(2.5 * totalmem(), GiB);
  const free = real.limits.room(-1).bytes;
  const figures = /of memory are needed, and [\d.]+ GiB are available/;
  failure(() => eal.malloc(size), 'ENOMEM', figures);
  failure(() => eal.external.allocate(size), 'ENOMEM', figures, /of the machine's [\d.]+ GiB/);
  failure(() => eal.external.allocate(size, { source: 'anonymous' }), 'ENOMEM', figures);
  failure(() => eal.zones.reserve('large', size), 'ENOMEM', figures);
  assert.ok(real.limits.room(-1).bytes > free - GiB);
  await eal.stop();
  assert.deepEqual(leaks(), []);
  await assert.rejects(
    Eal.start({ platform: real, memory: { noHuge: true, size } }),
    (error) => isDmaError(error, 'ENOMEM') && figures.test(error.message),
  );
});

test('pages are there when memory is handed out; sparse memory is by wish', { skip }, async () => {
  const { eal } = await start();
  const allocated = (fd: number | undefined): number => real.files.status(fd ?? -1).allocated;
  using memory = eal.external.allocate(4 * MiB);
  assert.equal(allocated(memory.fd), 4 * MiB);
  using sparse = eal.external.allocate(4 * MiB, { populate: false });
  assert.equal(allocated(sparse.fd), 0);
  using huge = eal.external.allocate(4096 * GiB, { populate: false });
  huge.bytes(0, 1)[0] = 1;
  assert.equal(allocated(huge.fd), PAGE);
  for (const each of [memory, sparse, huge]) each.unregister();
  await eal.stop();
});

test('whichever page can not be had, nothing is left', { skip }, async () => {
  const failing = failingPlatform(real);
  const { eal, leaks } = await start({ platform: failing });
  for (const source of ['memfd', 'anonymous'] as const) {
    failing.failCall(1, 'ENOMEM', 'memory.populate');
    failure(() => eal.external.allocate(MiB, { source }), 'ENOMEM');
    assert.equal(failing.failed(), 'memory.populate');
  }
  await eal.stop();
  assert.deepEqual(leaks(), []);
});

test('memory of a node: placed there, and EINVAL for a node there is not', { skip }, async () => {
  const { eal } = await start();
  for (const source of ['memfd', 'anonymous'] as const) {
    failure(
      () => eal.external.allocate(MiB, { source, node: 7 }),
      'EINVAL',
      /there is no NUMA node 7/,
      /the nodes are: 0/,
    );
    failure(() => eal.external.allocate(MiB, { source, node: 1.5 }), 'EINVAL');
    using memory = eal.external.allocate(MiB, { source, node: 0 });
    assert.equal(memory.area.node, 0);
    const nodes = real.memory.nodesOf(memory.va, PAGE, MiB / PAGE);
    assert.ok(nodes.every((node) => node === 0 || node === -1));
    memory.unregister();
  }
  const buffer = Buffer.alloc(4 * PAGE);
  const skipped = alignUp(real.memory.addressOf(buffer), PAGE) - real.memory.addressOf(buffer);
  failure(() => eal.external.register(buffer.subarray(skipped, skipped + PAGE), { node: 7 }), 'EINVAL', /NUMA node 7/);
  await eal.stop();
});

test('hugepages of a size there is not: ENOTSUP with those there are', { skip }, async (t) => {
  if (real.limits.freeHugePages(2 * MiB) === undefined) return t.skip('this kernel has no hugepages of 2 MiB');
  const { eal } = await start();
  for (const hugePageSize of [65536, PAGE])
    for (const source of ['memfd', 'anonymous'] as const)
      failure(() => eal.external.allocate(MiB, { hugePageSize, source }), 'ENOTSUP', /it has: .*2 MiB/);
  await eal.stop();
});

/** Runs `use` with a hugetlbfs of 2 MiB pages. */
function withHugetlbfs(t: TestContext, pages: number, use: (directory: string) => void): void {
  const borrowed = hugePagesForTest(real, pages);
  if (typeof borrowed === 'string') return t.skip(borrowed);
  const directory = mkdtempSync(join(tmpdir(), 'huge-'));
  try {
    const mounted = spawnSync('mount', ['-t', 'hugetlbfs', '-o', 'pagesize=2M', 'none', directory]);
    if (mounted.status !== 0) return t.skip('no hugetlbfs can be mounted here');
    use(directory);
  } finally {
    // Lazily: what failed may have left a file open, and its error is the one to see.
    spawnSync('umount', ['-l', directory]);
    rmdirSync(directory);
    borrowed.giveBack();
  }
}

test('the pages of a hugetlbfs file are taken and given back as a whole', { skip }, async (t) => {
  const { eal, leaks } = await start();
  withHugetlbfs(t, 4, (directory) => {
    const fd = openSync(join(directory, 'file'), 'w+');
    ftruncateSync(fd, 4 * MiB);
    failure(
      () => eal.external.fromFd(fd, { length: 4096 }),
      'EINVAL',
      /not a multiple of the page size 0x200000/,
      /the file has pages of 2 MiB, which are mapped as a whole: use 2097152/,
    );
    failure(() => eal.external.fromFd(fd, { offset: 4096 }), 'EINVAL', /not a multiple of the page size 0x200000/);
    const free = real.limits.freeHugePages(2 * MiB) ?? 0;
    const memory = eal.external.fromFd(fd, { length: 2 * MiB });
    assert.equal(memory.area.pageSize, 2 * MiB);
    assert.equal(real.limits.freeHugePages(2 * MiB), free - 1);
    memory.bytes().fill(3);
    memory.unregister();
    const all = eal.external.fromFd(fd, { pageSize: 4096 });
    assert.equal(all.length, 4 * MiB);
    all.unregister();
    closeSync(fd);
    rmSync(join(directory, 'file'));
    assert.equal(real.limits.freeHugePages(2 * MiB), free);
  });
  await eal.stop();
  assert.deepEqual(leaks(), []);
});

test('a file of more hugepages than are free: ENOMEM with figures, and nothing is taken', { skip }, async (t) => {
  const { eal, leaks } = await start();
  withHugetlbfs(t, 2, (directory) => {
    const free = real.limits.freeHugePages(2 * MiB) ?? 0;
    const fd = openSync(join(directory, 'file'), 'w+');
    ftruncateSync(fd, (free + 8) * 2 * MiB);
    failure(() => eal.external.fromFd(fd), 'ENOMEM');
    closeSync(fd);
    rmSync(join(directory, 'file'));
    assert.equal(real.limits.freeHugePages(2 * MiB), free);
  });
  await eal.stop();
  assert.deepEqual(leaks(), []);
});

test(
  'a file that may only be read: every device reads the file, and stores through bytes() stay here',
  { skip },
  async (t) => {
    const directory = mkdtempSync(join(tmpdir(), 'read-only-'));
    t.after(() => rmSync(directory, { recursive: true }));
    const { eal, leaks } = await start();
    const path = join(directory, 'file');
    writeFileSync(path, Buffer.alloc(4 * PAGE, 'f'));
    const writer = openSync(path, 'r+');
    const reader = openSync(path, 'r');
    const served = await spawnDevice('copy');
    try {
      for (const name of ['vdev:copy0', `vfio-user:${served.socketPath}`]) {
        writeSync(writer, Buffer.alloc(4 * PAGE, 'f'), 0, 4 * PAGE, 0);
        const device = await eal.probe(name);
        for (const [fd, writable] of [
          [reader, undefined],
          [writer, false],
        ] as const) {
          const memory = eal.external.fromFd(fd, { writable });
          const target = eal.external.allocate(4 * PAGE);
          memory.bytes()[0] = 1;
          const from = device.dmaMap(memory, { access: 'read' });
          memory.bytes()[PAGE] = 2;
          // Whoever may write the file is heard by the device, and here too but for what was stored to.
          writeSync(writer, 'w', 2 * PAGE);
          const to = device.dmaMap(target);
          await device.use(copyEngineDriver).copy(from.iova, to.iova, 4 * PAGE);
          const seen = target.bytes();
          const letter = (text: string): number => text.charCodeAt(0);
          assert.deepEqual([seen[0], seen[PAGE], seen[2 * PAGE]], [letter('f'), letter('f'), letter('w')], name);
          const own = memory.bytes();
          assert.deepEqual([own[0], own[PAGE], own[2 * PAGE], own[3 * PAGE]], [1, 2, letter('w'), letter('f')], name);
          for (const each of [from, to]) each.unmap();
          for (const each of [memory, target]) each.unregister();
          assert.equal(own.length, 0);
        }
        await eal.remove(device);
      }
      assert.equal(readFileSync(path)[0], 'f'.charCodeAt(0));
    } finally {
      for (const fd of [reader, writer]) closeSync(fd);
      await eal.stop();
      await served[Symbol.asyncDispose]();
    }
    assert.deepEqual(leaks(), []);
  },
);

test(
  'a file of hugepages that may only be read: bytes() is a copy, or ENOMEM, and never a signal',
  { skip },
  async (t) => {
    const { eal, leaks } = await start();
    withHugetlbfs(t, 3, (directory) => {
      const fd = openSync(join(directory, 'file'), 'w+');
      ftruncateSync(fd, 2 * MiB);
      const own = eal.external.fromFd(fd);
      own.bytes().fill(7);
      const memory = eal.external.fromFd(fd, { writable: false });
      const bytes = memory.bytes();
      assert.equal(bytes[1], 7);
      bytes.fill(8);
      assert.equal(own.bytes()[0], 7);
      for (const each of [memory, own]) each.unregister();
      closeSync(fd);
      rmSync(join(directory, 'file'));
    });
    await eal.stop();
    assert.deepEqual(leaks(), []);
  },
);
