import { test } from 'node:test';
import assert from 'node:assert/strict';
import { Worker } from 'node:worker_threads';
import { throwsDmaOf } from '../../../test/shared/errors.js';
import { MiB } from '../../units.js';
import type { Va } from '../../units.js';
import { openPlatform } from '../open.js';
import { trackingPlatform } from '../../../test/fakes/platform/platforms.js';
import { hugePagesForTest } from '../../../test/shared/real-hugepages.js';

const platform = trackingPlatform(openPlatform());
const { memory, files } = platform;
const skip = platform.limitation ?? false;
const PAGE = memory.pageSize;

/** Maps, runs `use` on the address and one view, and gives both back. */
function withMapping(options: Parameters<typeof memory.map>[0], use: (bytes: Uint8Array, va: Va) => void): void {
  const va = memory.map(options);
  const buffer = memory.view(va, options.length);
  try {
    use(new Uint8Array(buffer), va);
  } finally {
    memory.detach(buffer);
    memory.unmap(va, options.length);
  }
}

test('anonymous memory is zero, writable and where it says', { skip }, () => {
  withMapping({ length: 3 * PAGE, populate: true }, (bytes, va) => {
    assert.equal(va % PAGE, 0);
    assert.ok(bytes.every((each) => each === 0));
    bytes[PAGE] = 7;
    const second = memory.view(va, 3 * PAGE);
    assert.equal(new Uint8Array(second)[PAGE], 7);
    memory.detach(second);
    assert.equal(memory.addressOf(bytes), va);
    assert.equal(memory.addressOf(bytes.buffer), va);
    assert.equal(memory.addressOf(bytes.subarray(5)), va + 5);
    assert.equal(memory.addressOf(new DataView(bytes.buffer, 9)), va + 9);
  });
  assert.deepEqual(platform.leaks(), []);
});

test('two mappings of one memfd are one memory', { skip }, () => {
  const fd = memory.memfd({ name: 'shared', length: 2 * PAGE });
  withMapping({ fd, length: 2 * PAGE }, (bytes) => {
    bytes[PAGE + 1] = 42;
    withMapping({ fd, length: PAGE, offset: PAGE }, (other) => assert.equal(other[1], 42));
    withMapping({ fd, length: PAGE, offset: PAGE, writable: false }, (other, va) => {
      assert.equal(other[1], 42);
      assert.equal(memory.protection(va, PAGE), 'read-write');
      other[1] = 43;
      assert.equal(bytes[PAGE + 1], 42, 'what is written to a mapping that is not writable stays in it');
    });
  });
  files.close(fd);
  assert.deepEqual(platform.leaks(), []);
});

test('a descriptor is mapped at offsets as large as those of device regions', { skip }, () => {
  for (const index of [1, 7, 4000]) {
    const offset = 2 ** 40 * index + PAGE;
    const fd = memory.memfd({ name: 'regions', length: offset + 2 * PAGE });
    withMapping({ fd, offset, length: 2 * PAGE }, (bytes) => {
      bytes[PAGE + 5] = index % 256;
      const back = new Uint8Array(1);
      assert.equal(files.readAt(fd, offset + PAGE + 5, back), 1);
      assert.equal(back[0], index % 256);
    });
    files.close(fd);
  }
  assert.deepEqual(platform.leaks(), []);
});

test('a detached view and all made on it is empty, and the memory stays', { skip }, () => {
  const va = memory.map({ length: PAGE });
  const buffer = memory.view(va, PAGE);
  const bytes = new Uint8Array(buffer);
  const words = new Uint32Array(buffer, 8, 4);
  const data = new DataView(buffer);
  const node = Buffer.from(buffer, 0, 16);
  bytes[0] = 5;
  memory.detach(buffer);
  memory.detach(buffer);
  assert.equal(buffer.byteLength, 0);
  assert.deepEqual([bytes[0], words[0], node[0], bytes.length], [undefined, undefined, undefined, 0]);
  bytes[0] = 9;
  assert.throws(() => data.getUint8(0), TypeError);
  throwsDmaOf('EINVAL', 'addressOf', () => memory.addressOf(bytes));
  throwsDmaOf('EINVAL', 'addressOf', () => memory.addressOf(data));
  throwsDmaOf('EINVAL', 'addressOf', () => memory.addressOf(buffer));
  const again = memory.view(va, PAGE);
  assert.equal(new Uint8Array(again)[0], 5);
  memory.detach(again);
  memory.unmap(va, PAGE);
  assert.deepEqual([bytes[0], words[3]], [undefined, undefined]);
  assert.deepEqual(platform.leaks(), []);
});

test('ordinary buffers have stable addresses', { skip }, () => {
  const small = new Uint8Array(3).fill(1);
  const va = memory.addressOf(small);
  assert.equal(memory.addressOf(small), va);
  const seen = memory.view(va, 3);
  small[1] = 200;
  assert.equal(new Uint8Array(seen)[1], 200);
  memory.detach(seen);
  assert.equal(small.length, 3);
  const shared = new SharedArrayBuffer(64);
  assert.equal(memory.addressOf(shared), memory.addressOf(new Int32Array(shared)));
  throwsDmaOf('EINVAL', 'addressOf', () => memory.addressOf(new Uint8Array(0)));
});

test('a view longer than V8 takes is refused, not fatal', { skip }, () => {
  const va = memory.map({ length: PAGE });
  assert.ok(memory.maxView >= 2 ** 32);
  throwsDmaOf('ENOTSUP', 'view', () => memory.view(va, memory.maxView + PAGE));
  throwsDmaOf('EINVAL', 'view', () => memory.view(va, 0));
  throwsDmaOf('EINVAL', 'view', () => memory.view(0 as Va, PAGE));
  throwsDmaOf('EINVAL', 'view', () => memory.view(NaN as Va, PAGE));
  memory.unmap(va, PAGE);
});

test('the longest view works on memory that is only reserved', { skip }, () => {
  // A file larger than the machine's memory: nothing of it is there until it is touched.
  const fd = memory.memfd({ name: 'huge', length: 2 ** 32 });
  const va = memory.map({ fd, length: 2 ** 32 });
  const buffer = memory.view(va, 2 ** 32);
  const bytes = new Uint8Array(buffer, 2 ** 32 - PAGE);
  bytes[PAGE - 1] = 3;
  assert.equal(bytes[PAGE - 1], 3);
  memory.detach(buffer);
  memory.unmap(va, 2 ** 32);
  files.close(fd);
});

test('impossible mappings are refused', { skip }, () => {
  for (const length of [0, 1, PAGE + 1, -PAGE, NaN, 2 ** 53, 0.5])
    throwsDmaOf('EINVAL', 'mmap', () => memory.map({ length }));
  throwsDmaOf('EINVAL', 'mmap', () => memory.map({ length: PAGE, offset: 5 }));
  throwsDmaOf('EBADF', 'mmap', () => memory.map({ length: PAGE, fd: NaN }));
  throwsDmaOf('EBADF', 'mmap', () => memory.map({ length: PAGE, fd: 99999 }));
  throwsDmaOf('ENOMEM', 'mmap', () => memory.map({ length: 2 ** 52 }));
  // Not EEXIST: nothing is there, the process may not have so many.
  throwsDmaOf('ENOMEM', 'mmap', () => memory.reserveAt((2 ** 40) as Va, 2 ** 52));
  throwsDmaOf('EINVAL', 'mmap', () => memory.map({ length: PAGE, hugePageSize: 2 * MiB }));
  throwsDmaOf('EINVAL', 'mmap', () => memory.map({ length: 3 * PAGE, hugePageSize: 3 * PAGE }));
  throwsDmaOf('EINVAL', 'munmap', () => memory.unmap(5 as Va, PAGE));
  throwsDmaOf('EINVAL', 'munmap', () => memory.unmap(0 as Va, NaN));
  throwsDmaOf('EINVAL', 'memfd_create', () => memory.memfd({ name: 'a\0', length: PAGE }));
  throwsDmaOf('EINVAL', 'ftruncate', () => memory.memfd({ name: 'a', length: -1 }));
  throwsDmaOf('EINVAL', 'memfd_create', () => memory.memfd({ name: 'n'.repeat(300), length: PAGE }));
  assert.deepEqual(platform.leaks(), []);
});

test('huge pages: mapped where there are any, ENOMEM where there are none', { skip }, () => {
  // Asked for none, so that only other tests are kept from changing how many there are.
  const pages = hugePagesForTest(platform, 0);
  const free = platform.limits.freeHugePages(2 * MiB);
  const map = (): Va => memory.map({ length: 2 * MiB, hugePageSize: 2 * MiB });
  if (free !== undefined && free > 0) {
    const va = map();
    assert.equal(va % (2 * MiB), 0);
    memory.unmap(va, 2 * MiB);
    const fd = memory.memfd({ name: 'huge', length: 2 * MiB, hugePageSize: 2 * MiB });
    assert.ok(files.sealedAgainstShrinking(fd, false));
    files.close(fd);
  } else if (free === 0) throwsDmaOf('ENOMEM', 'mmap', map);
  else assert.throws(map);
  if (typeof pages !== 'string') pages.giveBack();
  assert.deepEqual(platform.leaks(), []);
});

test('protection tells what may be done with all of a range', { skip }, () => {
  const fd = memory.memfd({ name: 'protection', length: 4 * PAGE });
  const va = memory.map({ fd, length: 4 * PAGE });
  assert.equal(memory.protection(va, 4 * PAGE), 'read-write');
  assert.equal(memory.protection((va + 5) as Va, PAGE), 'read-write');
  memory.unmap((va + PAGE) as Va, PAGE);
  assert.equal(memory.protection(va, PAGE), 'read-write');
  assert.equal(memory.protection(va, PAGE + 1), 'none');
  assert.equal(memory.protection((va + PAGE) as Va, 1), 'none');
  assert.equal(memory.protection((va + 2 * PAGE) as Va, 2 * PAGE), 'read-write');
  assert.equal(memory.protection(0 as Va, PAGE), 'none');
  assert.equal(memory.protection(va, 0), 'none');
  assert.equal(memory.protection(va, NaN), 'none');
  memory.unmap(va, PAGE);
  memory.unmap((va + 2 * PAGE) as Va, 2 * PAGE);
  files.close(fd);
});

test('a worker has ports of its own over the same memory', { skip }, async () => {
  const va = memory.map({ length: PAGE });
  const url = new URL('../open.js', import.meta.url).href;
  const code = `
    import(${JSON.stringify(url)}).then(({ openPlatform }) => {
      const { memory, files } = openPlatform();
      const buffer = memory.view(${va}, ${PAGE});
      let code;
      try { files.close(99999); } catch (error) { code = error.code; }
      if (code === 'EBADF') new Uint8Array(buffer)[0] = 77;
      memory.detach(buffer);
      if (buffer.byteLength !== 0) throw new Error('not detached');
    });`;
  const worker = new Worker(code, { eval: true });
  await new Promise((resolve, reject) => worker.once('exit', resolve).once('error', reject));
  const buffer = memory.view(va, PAGE);
  assert.equal(new Uint8Array(buffer)[0], 77);
  memory.detach(buffer);
  memory.unmap(va, PAGE);
});
