import assert from 'node:assert/strict';
import { ftruncateSync, mkdtempSync, openSync, readSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { ERRNO } from '../../errors.js';
import type { FileBatch } from '../ports.js';
import { openPlatform } from '../open.js';

const platform = openPlatform();
const skip = platform.limitation ?? false;
const directory = mkdtempSync(join(tmpdir(), 'file-batch-'));
after(() => rmSync(directory, { recursive: true }));

const PIECE = 4096;

/** A batch, a file, and memory of as many pieces as there is room for. */
function within(
  name: string,
  use: (room: { batch: FileBatch; fd: number; va: number; bytes: Uint8Array }) => void,
): void {
  const { files, memory } = platform;
  const batch = files.batch();
  assert.ok(batch !== undefined);
  const length = batch.capacity * PIECE;
  const fd = openSync(join(directory, name), 'w+');
  const memfd = memory.memfd({ name, length });
  const va = memory.map({ fd: memfd, offset: 0, length, writable: true });
  try {
    use({ batch, fd, va, bytes: new Uint8Array(memory.view(va, length)) });
  } finally {
    batch.close();
    batch.close();
    memory.unmap(va, length);
    files.close(memfd);
    files.close(fd);
  }
}

test('as many transfers as it holds, in both directions', { skip }, () =>
  within('both', ({ batch, fd, va, bytes }) => {
    const { capacity } = batch;
    for (let n = 0; n < capacity; n++) bytes.fill(n + 1, n * PIECE, (n + 1) * PIECE);
    // At other places of the file than of the memory.
    for (let n = 0; n < capacity; n++) batch.write(fd, (capacity - 1 - n) * PIECE, va + n * PIECE, PIECE);
    assert.equal(batch.count, capacity);
    batch.run();
    assert.equal(batch.count, 0);
    assert.ok(batch.results.every((result) => result === PIECE));
    const found = new Uint8Array(1);
    for (let n = 0; n < capacity; n++) {
      readSync(fd, found, 0, 1, (capacity - 1 - n) * PIECE);
      assert.equal(found[0], n + 1);
    }
    bytes.fill(0);
    for (let n = 0; n < capacity; n++) batch.read(fd, n * PIECE, va + n * PIECE, PIECE, false);
    batch.run();
    for (let n = 0; n < capacity; n++) assert.deepEqual([bytes[n * PIECE], batch.results[n]], [capacity - n, PIECE]);
  }),
);

test('each transfer has its own result', { skip }, () =>
  within('results', ({ batch, fd, va, bytes }) => {
    ftruncateSync(fd, PIECE + 100);
    for (const cached of [false, true]) {
      bytes.fill(7);
      batch.read(fd, 0, va, PIECE, cached);
      batch.read(fd, PIECE, va + PIECE, PIECE, cached);
      batch.read(fd, 2 * PIECE, va + 2 * PIECE, PIECE, cached);
      batch.read(fd, 0, 8, PIECE, cached);
      batch.run();
      const [whole, part, none, lost] = batch.results;
      // A file system may not be able to tell whether it would wait.
      if (cached && whole === -ERRNO.ENOTSUP) continue;
      if (cached && whole === -ERRNO.EAGAIN) continue;
      assert.deepEqual([whole, part, none, lost], [PIECE, 100, 0, -ERRNO.EFAULT]);
      assert.deepEqual([bytes[0], bytes[PIECE - 1], bytes[PIECE + 100]], [0, 0, 7]);
    }
  }),
);

test('one transfer, and what the kernel does not take', { skip }, () =>
  within('one', ({ batch, fd, va }) => {
    batch.write(fd, 10, va, 5);
    batch.run();
    assert.equal(batch.results[0], 5);
    batch.read(0x7fffffff, 0, va, 5, false);
    batch.run();
    assert.equal(batch.results[0], -ERRNO.EBADF);
    batch.write(fd, 0, va, 5);
    batch.read(0x7fffffff, 0, va, 5, false);
    batch.read(fd, 0, va, 5, false);
    batch.run();
    // The first was done; of those behind the bad one nothing was.
    assert.equal(batch.results[0], 5);
    assert.ok(batch.results[1] < 0 && batch.results[2] < 0);
  }),
);
