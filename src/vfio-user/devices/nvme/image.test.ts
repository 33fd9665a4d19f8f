import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import {
  closeSync,
  existsSync,
  mkdtempSync,
  openSync,
  readFileSync,
  rmSync,
  statSync,
  truncateSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { heldCalls } from '../../../../test/fakes/vfio-user/image-calls.js';
import { NvmeHost } from '../../../../test/fakes/vfio-user/nvme-host.js';
import { pattern } from '../../../../test/fakes/vfio-user/model-host.js';
import { trackingPlatform } from '../../../../test/fakes/platform/platforms.js';
import { isDmaError } from '../../../errors.js';
import { NVM } from '../../../nvme/commands.js';
import { namespaceIdentityOf } from '../../../nvme/identify.js';
import { STATUS } from '../../../nvme/status.js';
import { openPlatform } from '../../../platform/open.js';
import type { FileSystem, Platform } from '../../../platform/ports.js';
import { FakeModelHost } from '../../../../test/fakes/vfio-user/model-host.js';
import { Image, type ImageCalls, NODE_CALLS } from './image.js';
import { nvmeModel } from './nvme.js';
import type { NvmeModelOptions } from './options.js';

const BYTES = 256 * 1024;
const WRITABLE = { readOnly: false, thin: false };

async function inDirectory(work: (directory: string) => Promise<void> | void, where = tmpdir()): Promise<void> {
  const directory = mkdtempSync(join(where, 'anydma-image-'));
  try {
    await work(directory);
  } finally {
    rmSync(directory, { recursive: true, force: true });
  }
}

const refused =
  (code: string, reason: RegExp) =>
  (error: unknown): boolean => {
    assert.ok(isDmaError(error));
    assert.equal(error.code, code);
    assert.match(`${error.message} ${error.hint ?? ''}`, reason);
    return true;
  };

/** As if files were on a disk, wherever they are. */
function onDisk(): Platform {
  const platform = openPlatform();
  const fileSystem = (fd: number): FileSystem => ({ ...platform.files.fileSystem(fd), kind: 'other' });
  return { ...platform, files: { ...platform.files, fileSystem } };
}

const make = (options: NvmeModelOptions): FakeModelHost => new FakeModelHost(nvmeModel(options));

describe('NVMe disk image', () => {
  it('a file that is not there is made, only if a size is given', () =>
    inDirectory((directory) => {
      const file = join(directory, 'disk.img');
      assert.throws(() => make({ file }), refused('ENOENT', /say a size/));
      assert.ok(!existsSync(file));
      make({ file, size: BYTES }).model.close?.();
      assert.equal(statSync(file).size, BYTES);
      make({ file }).model.close?.();
    }));

  it('one that is shorter or longer than was said is refused, and not changed', () =>
    inDirectory((directory) => {
      const file = join(directory, 'disk.img');
      writeFileSync(file, pattern(BYTES));
      assert.throws(() => make({ file, size: 2 * BYTES }), refused('EINVAL', /256 KiB .* 512 KiB .*truncate/));
      assert.throws(() => make({ file, size: BYTES / 2 }), refused('EINVAL', /was asked for/));
      assert.deepEqual(new Uint8Array(readFileSync(file)), pattern(BYTES));
      assert.throws(() => make({ file: directory, readOnly: true }), refused('EINVAL', /not a plain file/));
    }));

  it('two writers can not have it, readers can', () =>
    inDirectory((directory) => {
      const file = join(directory, 'disk.img');
      const first = make({ file, size: BYTES });
      assert.throws(() => make({ file }), refused('EBUSY', /another process uses it/));
      first.model.close?.();
      const readers = [make({ file, readOnly: true }), make({ file, readOnly: true })];
      assert.throws(() => make({ file }), refused('EBUSY', /another process uses it/));
      for (const reader of readers) reader.model.close?.();
      make({ file }).model.close?.();
    }));

  it('one that is read only is said to be so, and refuses writes by status', () =>
    inDirectory(async (directory) => {
      const file = join(directory, 'disk.img');
      writeFileSync(file, pattern(BYTES));
      const nvme = await new NvmeHost({ file, readOnly: true }).enable();
      const queue = await nvme.createQueue();
      assert.equal(namespaceIdentityOf(await nvme.identify(0, 1)).writeProtected, true);
      const page = nvme.pages();
      assert.equal((await nvme.read(queue, 0, 8, page)).status, 0);
      assert.deepEqual(nvme.at(page, 4096), pattern(BYTES).subarray(0, 4096));
      for (const opcode of [NVM.WRITE, NVM.WRITE_ZEROES, NVM.DATASET_MANAGEMENT])
        assert.equal(
          await nvme.status(nvme.io(opcode, 0, 1, page), queue),
          STATUS.NAMESPACE_WRITE_PROTECTED,
          `opcode ${opcode}`,
        );
      assert.equal(await nvme.status({ opcode: NVM.FLUSH, nsid: 1 }, queue), 0);
      nvme.close();
      assert.deepEqual(new Uint8Array(readFileSync(file)), pattern(BYTES));
    }));

  it('holes that the file system has no room for are refused, unless a thin image is asked for', () =>
    inDirectory((directory) => {
      const file = join(directory, 'disk.img');
      writeFileSync(file, '');
      truncateSync(file, 2 ** 30);
      const platform = openPlatform();
      const full = {
        ...platform,
        files: { ...platform.files, fileSystem: (fd: number) => ({ ...platform.files.fileSystem(fd), left: 2 ** 20 }) },
      };
      const options = { file, size: undefined, readOnly: false, thin: false };
      assert.throws(() => new Image(full, options), refused('ENOSPC', /1 GiB of it are holes.*room for 1 MiB.*thin/));
      new Image(full, { ...options, thin: true }).close();
      new Image(full, { ...options, readOnly: true }).close();
    }));

  it('what is refused leaves no file that was not there, and an empty one as it was', () =>
    inDirectory((directory) => {
      const platform = openPlatform();
      const fileSystem = (fd: number): FileSystem => ({ ...platform.files.fileSystem(fd), left: 2 ** 20 });
      const full: Platform = { ...platform, files: { ...platform.files, fileSystem } };
      const file = join(directory, 'disk.img');
      const options = { file, size: 2 ** 30, ...WRITABLE };
      assert.throws(() => new Image(full, options), refused('ENOSPC', /1 GiB of it are holes/));
      assert.ok(!existsSync(file));
      writeFileSync(file, '');
      assert.throws(() => new Image(full, options), refused('ENOSPC', /1 GiB of it are holes/));
      assert.equal(statSync(file).size, 0);
      assert.throws(() => make({ file }), refused('EINVAL', /0 bytes, less than a block of 512.*say a size/));
    }));

  it('a full file system is told before a write is acknowledged; shorter calls go on', () =>
    inDirectory(async (directory) => {
      const file = join(directory, 'disk.img');
      let moved = 1000;
      const calls: ImageCalls = {
        ...NODE_CALLS,
        writev: ((fd: number, parts: Uint8Array[], position: number, done: (error: null, count: number) => void) => {
          const part = parts[0].subarray(0, moved);
          NODE_CALLS.write(fd, part, 0, part.length, position, (_error, count) => done(null, count));
        }) as ImageCalls['writev'],
        write: ((fd: number, bytes: Uint8Array, _at: number, length: number, position: number, done: never) => {
          const end = done as (error: Error | null, count: number) => void;
          if (moved === 1000) NODE_CALLS.write(fd, bytes, 0, Math.min(length, 700), position, end);
          else end(Object.assign(new Error('full'), { code: 'ENOSPC' }), 0);
        }) as never,
      };
      const nvme = await new NvmeHost({ file, size: BYTES }, 'direct', calls).enable();
      const queue = await nvme.createQueue();
      if (statSync(file).dev === statSync('/dev/shm').dev) return;
      const page = nvme.pages();
      nvme.at(page, 4096).set(pattern(4096));
      assert.equal((await nvme.write(queue, 0, 8, page)).status, 0);
      assert.deepEqual(new Uint8Array(readFileSync(file).subarray(0, 4096)), pattern(4096));
      moved = 512;
      assert.equal((await nvme.write(queue, 0, 8, page)).status, STATUS.CAPACITY_EXCEEDED);
      nvme.close();
    }));

  for (const where of ['/dev/shm', tmpdir()])
    it(`one that becomes shorter is told by status, and not made longer, below ${where}`, () =>
      inDirectory(async (directory) => {
        const file = join(directory, 'disk.img');
        const nvme = await new NvmeHost({ file, size: BYTES }).enable();
        const queue = await nvme.createQueue();
        truncateSync(file, 4096);
        const page = nvme.pages(2);
        assert.equal((await nvme.write(queue, 64, 8, page)).status, STATUS.WRITE_FAULT);
        assert.equal((await nvme.write(queue, 64, 8, page + 512)).status, STATUS.WRITE_FAULT);
        for (const [lba, flags] of [
          [64, 0],
          [64, 1 << 25],
        ] as const) {
          const zeroes = { opcode: NVM.WRITE_ZEROES, nsid: 1, cdw10: lba, cdw12: 7 | flags };
          assert.equal(await nvme.status(zeroes, queue), STATUS.WRITE_FAULT, `flags ${flags}`);
        }
        assert.equal((await nvme.read(queue, 64, 8, page)).status, STATUS.UNRECOVERED_READ);
        assert.equal((await nvme.read(queue, 0, 8, page)).status, 0);
        assert.equal(statSync(file).size, 4096);
        nvme.close();
      }, where));

  it('deallocated blocks give their storage back', () =>
    inDirectory(async (directory) => {
      const file = join(directory, 'disk.img');
      writeFileSync(file, pattern(BYTES));
      const nvme = await new NvmeHost({ file }).enable();
      const queue = await nvme.createQueue();
      const before = namespaceIdentityOf(await nvme.identify(0, 1)).used;
      const entry = { opcode: NVM.WRITE_ZEROES, nsid: 1, cdw10: 128, cdw12: 255 | (1 << 25) };
      assert.equal(await nvme.status(entry, queue), 0);
      assert.ok(namespaceIdentityOf(await nvme.identify(0, 1)).used < before);
      assert.ok(
        readFileSync(file)
          .subarray(65536, 65536 + 131072)
          .every((byte) => byte === 0),
      );
      assert.deepEqual(new Uint8Array(readFileSync(file).subarray(0, 65536)), pattern(BYTES).subarray(0, 65536));
      nvme.close();
    }, '/dev/shm'));

  it('neighbours become one call', () =>
    inDirectory(async (directory) => {
      const file = join(directory, 'disk.img');
      writeFileSync(file, pattern(BYTES));
      const reads: number[] = [];
      const calls: ImageCalls = {
        ...NODE_CALLS,
        readv: ((fd: number, parts: Uint8Array[], position: number, done: never) => {
          reads.push(parts.length);
          NODE_CALLS.readv(fd, parts, position, done);
        }) as never,
      };
      const image = new Image(onDisk(), { file, size: undefined, readOnly: true, thin: false }, calls);
      assert.equal(image.instant, false);
      const buffers = Array.from({ length: 40 }, () => new Uint8Array(4096));
      const done = buffers.map(
        (buffer, n) => new Promise<number>((resolve) => image.read((n < 30 ? n : n + 10) * 4096, buffer, resolve)),
      );
      image.submit();
      assert.deepEqual(await Promise.all(done), new Array(40).fill(0));
      assert.deepEqual(reads, [30, 10]);
      const whole = pattern(BYTES);
      for (const [n, buffer] of buffers.entries()) {
        const at = (n < 30 ? n : n + 10) * 4096;
        assert.deepEqual(buffer, whole.subarray(at, at + 4096));
      }
      image.close();
    }));

  it('a write that was under way when a sync began is covered by the next one', () =>
    inDirectory((directory) => {
      const { held, calls } = heldCalls('read', 'write', 'sync');
      const image = new Image(onDisk(), { file: join(directory, 'disk.img'), size: BYTES, ...WRITABLE }, calls);
      const ended: string[] = [];
      const end = (what: string): void =>
        held
          .splice(
            held.findIndex((each) => each.what === what),
            1,
          )[0]
          .end();
      for (const at of [0, 8192]) image.write(at, new Uint8Array(4096), () => ended.push('write'));
      image.submit();
      end('write');
      image.sync(() => ended.push('sync'));
      end('sync');
      end('write');
      assert.deepEqual(ended, ['write', 'sync', 'write']);
      image.sync(() => ended.push('sync'));
      assert.deepEqual(
        held.map(({ what }) => what),
        ['sync'],
        'the second write is not on the disk yet',
      );
      end('sync');
      image.sync(() => ended.push('sync'));
      assert.deepEqual([ended.length, held.length], [5, 0], 'there is nothing more to do');
      image.close();
    }));

  it('reads and writes take turns, however many wait', () =>
    inDirectory((directory) => {
      const { held, calls } = heldCalls('read', 'write', 'sync');
      const image = new Image(onDisk(), { file: join(directory, 'disk.img'), size: BYTES, ...WRITABLE }, calls);
      for (let n = 0; n < 20; n++) {
        image.read(n * 8192, new Uint8Array(512), () => undefined);
        image.write(n * 8192, new Uint8Array(512), () => undefined);
      }
      image.submit();
      const begun = held.map(({ what }) => what);
      for (let n = 0; n < 8; n++) {
        held.shift()?.end();
        begun.push(held[held.length - 1].what);
      }
      for (const what of ['read', 'write'] as const)
        assert.equal(begun.filter((each) => each === what).length, 6, what);
      while (held.length > 0) held.shift()?.end();
      image.close();
    }));

  it('zeroes that wait to be written take no memory each', () =>
    inDirectory((directory) => {
      const { held, calls } = heldCalls('read', 'write', 'sync');
      const image = new Image(onDisk(), { file: join(directory, 'disk.img'), size: BYTES, ...WRITABLE }, calls);
      for (const at of [0, 131072]) image.zero(at, 65536, () => undefined);
      assert.equal(held.length, 2);
      assert.equal(held[0].parts[0].buffer, held[1].parts[0].buffer);
      while (held.length > 0) held.shift()?.end();
      image.close();
    }));

  it('nothing is left open, also when a later image can not be opened', () =>
    inDirectory((directory) => {
      const platform = trackingPlatform(openPlatform());
      const file = join(directory, 'disk.img');
      const namespaces = [{ file, size: BYTES }, { file: join(directory, 'none') }];
      assert.throws(() => new FakeModelHost(nvmeModel({ namespaces }, platform)), refused('ENOENT', /none/));
      assert.deepEqual(platform.leaks(), []);
      const host = new FakeModelHost(nvmeModel({ file }, platform));
      host.model.close?.();
      host.model.close?.();
      assert.deepEqual(platform.leaks(), []);
      closeSync(openSync(file, 'r'));
    }));
});

describe('NVMe model options', () => {
  it('are checked before anything is opened', () => {
    for (const [options, reason] of [
      [{ blockSize: 1024 }, /not 512 or 4096/],
      [{ size: 1000 }, /whole number of blocks/],
      [{ size: 0 }, /whole number of blocks/],
      [{ file: '' }, /file is empty/],
      [{ queues: 0 }, /queues/],
      [{ queueEntries: 1 }, /queueEntries/],
      [{ maxTransfer: 5000 }, /maxTransfer/],
      [{ doorbellStride: 2 }, /doorbellStride/],
      [{ doorbellStride: 1024 }, /do not fit into a page/],
      [{ serial: 'x'.repeat(21) }, /serial/],
      [{ model: 'ü' }, /model/],
      [{ faults: [{ do: 'explode' }] }, /do/],
      [{ faults: [{ do: 'late', nth: 0 }] }, /nth/],
      [{ namespaces: [{ blocksize: 512 }] }, /blocksize/],
      [{ namespaces: [1] }, /namespace/],
    ] as readonly (readonly [object, RegExp])[])
      assert.throws(() => nvmeModel(options), refused('EINVAL', reason));
  });
});
