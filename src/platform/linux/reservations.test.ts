import { spawnSync } from 'node:child_process';
import { test } from 'node:test';
import assert from 'node:assert/strict';
import { throwsDmaOf } from '../../../test/shared/errors.js';
import { GiB, hex, MiB, TiB } from '../../units.js';
import type { Va } from '../../units.js';
import { openPlatform } from '../open.js';
import { trackingPlatform } from '../../../test/fakes/platform/platforms.js';
import { hugePagesForTest } from '../../../test/shared/real-hugepages.js';

const platform = trackingPlatform(openPlatform());
const { memory, files, kernel } = platform;
const skip = platform.limitation ?? false;
const PAGE = memory.pageSize;

/** Runs `use` on a new reservation and unmaps it, with all that is in it. */
function withReservation(length: number, alignment: number, use: (va: Va) => void): void {
  const before = platform.leaks();
  const va = memory.reserve(length, alignment);
  try {
    use(va);
  } finally {
    memory.unmap(va, length);
  }
  assert.deepEqual(platform.leaks(), before);
}
const at = (va: Va, offset: number): Va => (va + offset) as Va;
/** What /proc/self/maps says may be done at `va`. */
const permissions = (va: Va): string | undefined => {
  for (const [, from, to, mode] of (kernel.readText('/proc/self/maps') ?? '').matchAll(/^(\w+)-(\w+) (\S+)/gm))
    if (parseInt(from, 16) <= va && va < parseInt(to, 16)) return mode;
  return undefined;
};
const bytes = (va: Va, length: number, use: (bytes: Uint8Array) => void): void => {
  const buffer = memory.view(va, length);
  try {
    use(new Uint8Array(buffer));
  } finally {
    memory.detach(buffer);
  }
};
const committed = (): number => {
  const text = kernel.readText('/proc/self/status') ?? '';
  return Number(/^VmData:\s*(\d+) kB/m.exec(text)?.[1]) * 1024;
};

test('a reservation is aligned, costs nothing, and can not be touched', { skip }, () => {
  const before = committed();
  withReservation(TiB, GiB, (va) => {
    assert.equal(va % GiB, 0);
    assert.equal(permissions(va), '---p');
    assert.equal(permissions(at(va, TiB - 1)), '---p');
    assert.equal(memory.protection(va, PAGE), 'none');
    assert.ok(committed() - before < 64 * MiB);
  });
  for (const alignment of [1, PAGE, 2 * MiB])
    withReservation(3 * PAGE, alignment, (va) => assert.equal(va % Math.max(alignment, PAGE), 0));
});

test('parts are committed, decommitted and committed again', { skip }, () => {
  withReservation(16 * PAGE, PAGE, (va) => {
    memory.commit(at(va, 4 * PAGE), { length: 4 * PAGE });
    memory.populate(at(va, 4 * PAGE), 4 * PAGE);
    assert.equal(memory.protection(at(va, 4 * PAGE), 4 * PAGE), 'read-write');
    assert.equal(memory.protection(at(va, 3 * PAGE), 2 * PAGE), 'none');
    bytes(at(va, 4 * PAGE), 4 * PAGE, (all) => {
      assert.ok(all.every((each) => each === 0));
      all.fill(7);
    });
    memory.decommit(at(va, 5 * PAGE), PAGE);
    assert.equal(permissions(at(va, 5 * PAGE)), '---p');
    memory.commit(at(va, 5 * PAGE), { length: PAGE });
    bytes(at(va, 4 * PAGE), 2 * PAGE, (all) => assert.deepEqual([all[PAGE - 1], all[PAGE]], [7, 0]));
    memory.commit(va, { length: PAGE, writable: false });
    assert.equal(memory.protection(va, PAGE), 'read');
  });
});

test(
  'a descriptor’s pages keep what is in them when they are decommitted, and lose it when they are punched',
  { skip },
  () => {
    const fd = memory.memfd({ name: 'sparse', length: 64 * PAGE });
    assert.ok(files.sealedAgainstShrinking(fd, false));
    withReservation(8 * PAGE, PAGE, (va) => {
      memory.commit(va, { length: 2 * PAGE, fd, offset: 3 * PAGE });
      memory.populate(va, 2 * PAGE);
      bytes(va, 2 * PAGE, (all) => all.fill(9));
      memory.decommit(va, 2 * PAGE);
      memory.commit(va, { length: 2 * PAGE, fd, offset: 3 * PAGE });
      bytes(va, 2 * PAGE, (all) => assert.ok(all.every((each) => each === 9)));
      files.punch(fd, 4 * PAGE, PAGE);
      bytes(va, 2 * PAGE, (all) => assert.deepEqual([all[0], all[PAGE]], [9, 0]));
      assert.equal(files.status(fd).size, 64 * PAGE);
    });
    files.close(fd);
  },
);

test('nothing is mapped over what is not reserved here', { skip }, () => {
  const ordinary = memory.map({ length: 4 * PAGE });
  const fd = memory.memfd({ name: 'x', length: PAGE });
  withReservation(4 * PAGE, PAGE, (va) => {
    for (const [start, length] of [
      [ordinary, PAGE],
      [at(va, -PAGE), PAGE],
      [at(va, 3 * PAGE), 2 * PAGE],
      [at(va, 4 * PAGE), PAGE],
      [at(va, 1), PAGE],
      [va, 0],
      [va, PAGE + 1],
      [va, NaN],
      [NaN as Va, PAGE],
      [va, 2 ** 52],
    ] as const) {
      throwsDmaOf('EINVAL', 'mmap', () => memory.commit(start, { length }));
      throwsDmaOf('EINVAL', 'mmap', () => memory.decommit(start, length));
    }
    throwsDmaOf('EINVAL', 'mmap', () => memory.commit(va, { length: PAGE, offset: 1, fd }));
    throwsDmaOf('EINVAL', 'mmap', () => memory.commit(va, { length: PAGE, hugePageSize: 2 * MiB }));
    throwsDmaOf('EINVAL', 'mmap', () => memory.commit(va, { length: PAGE, fd, hugePageSize: 2 * MiB }));
    throwsDmaOf('EBADF', 'mmap', () => memory.commit(va, { length: PAGE, fd: 99999 }));
    throwsDmaOf('EBADF', 'mmap', () => memory.commit(va, { length: PAGE, fd: NaN }));
    assert.equal(permissions(va), '---p');
    throwsDmaOf('EINVAL', 'munmap', () => memory.unmap(at(va, PAGE), 4 * PAGE));
    throwsDmaOf('EINVAL', 'munmap', () => memory.unmap(at(va, -PAGE), 5 * PAGE));
    throwsDmaOf('EINVAL', 'mmap', () => memory.retire(at(va, PAGE), 4 * PAGE));
    throwsDmaOf('EINVAL', 'mmap', () => memory.retire(at(va, 1), PAGE));
    throwsDmaOf('EINVAL', 'mmap', () => memory.retire(va, 0));
    const second = openPlatform().memory;
    throwsDmaOf('EINVAL', 'mmap', () => second.commit(va, { length: PAGE }));
  });
  files.close(fd);
  memory.unmap(ordinary, 4 * PAGE);
  for (const [length, alignment] of [
    [0, PAGE],
    [1, PAGE],
    [NaN, PAGE],
    [PAGE, 0],
    [PAGE, 3 * PAGE],
    [PAGE, NaN],
    [2 ** 53 - PAGE, 2 ** 52],
  ])
    throwsDmaOf('EINVAL', 'mmap', () => memory.reserve(length, alignment));
  throwsDmaOf('ENOMEM', 'mmap', () => memory.reserve(2 ** 50, PAGE));
  assert.deepEqual(platform.leaks(), []);
});

test('a commit that fails leaves its part reserved', { skip }, () => {
  withReservation(4 * MiB, 2 * MiB, (va) => {
    // No directory can be mapped: the kernel finds out when it has unmapped what was there.
    const fd = files.open('/', 'read');
    assert.throws(() => memory.commit(va, { length: PAGE, fd, writable: false }), { code: 'ENODEV' });
    files.close(fd);
    assert.equal(permissions(va), '---p');
    assert.throws(() => memory.commit(va, { length: 2 * MiB, hugePageSize: 2 ** 40 }));
    assert.equal(permissions(va), '---p');
  });
});

test('hugepages are committed into a reservation', { skip }, (t) => {
  const pages = hugePagesForTest(platform, 2);
  if (typeof pages === 'string') return t.skip(pages);
  const { pageSize } = pages;
  try {
    const fd = memory.memfd({ name: 'huge', length: 100 * pageSize, hugePageSize: pageSize });
    withReservation(4 * pageSize, pageSize, (va) => {
      memory.commit(va, { length: pageSize, hugePageSize: pageSize });
      memory.commit(at(va, 2 * pageSize), { length: pageSize, fd, offset: 90 * pageSize });
      memory.populate(va, pageSize);
      memory.populate(at(va, 2 * pageSize), pageSize);
      bytes(at(va, 2 * pageSize), pageSize, (all) => (all[pageSize - 1] = 3));
      throwsDmaOf('EINVAL', 'mmap', () => memory.commit(va, { length: pageSize, fd, offset: PAGE }));
      assert.equal(permissions(va), '---p');
      // Half of a hugepage can not be unmapped.
      throwsDmaOf('EINVAL', 'mmap', () => memory.decommit(at(va, 2 * pageSize), pageSize / 2));
      assert.equal(memory.protection(at(va, 2 * pageSize), pageSize), 'read-write');
      memory.decommit(at(va, 2 * pageSize), pageSize);
    });
    files.close(fd);
  } finally {
    pages.giveBack();
  }
});

test('a child process does not get private committed memory', { skip }, () => {
  withReservation(PAGE, PAGE, (va) => {
    memory.commit(va, { length: PAGE });
    const smaps = kernel.readText('/proc/self/smaps') ?? '';
    const start = smaps.search(new RegExp(`^${hex(va).slice(2)}-`, 'm'));
    const flags = /^VmFlags:(.*)$/m.exec(smaps.slice(start))?.[1] ?? '';
    assert.match(flags, /\bdc\b/);
    bytes(va, PAGE, (all) => (all[0] = 1));
    assert.equal(spawnSync('true').status, 0);
    bytes(va, PAGE, (all) => assert.equal(all[0], 1));
  });
});

test(
  'what is retired can be touched, is zero, costs nothing until then, and is bare or gone afterwards',
  { skip },
  () => {
    const before = platform.leaks();
    const va = memory.reserve(16 * PAGE, PAGE);
    const fd = memory.memfd({ name: 'retired', length: 4 * PAGE });
    memory.commit(at(va, 4 * PAGE), { length: 4 * PAGE, fd });
    bytes(at(va, 4 * PAGE), 4 * PAGE, (all) => all.fill(7));
    memory.retire(at(va, 4 * PAGE), 4 * PAGE);
    assert.equal(permissions(at(va, 4 * PAGE)), 'rw-p');
    assert.equal(platform.retired().length, 1);
    bytes(at(va, 4 * PAGE), 4 * PAGE, (all) => assert.ok(all.every((each) => each === 0) && all.fill(1)));
    const file = new Uint8Array(1);
    files.readAt(fd, 0, file);
    assert.equal(file[0], 7, 'the file keeps what was in it');
    memory.decommit(at(va, 4 * PAGE), 2 * PAGE);
    assert.equal(permissions(at(va, 4 * PAGE)), '---p');
    // The reservation goes on without the parts that are unmapped.
    memory.unmap(at(va, 6 * PAGE), 2 * PAGE);
    assert.equal(permissions(at(va, 6 * PAGE)), undefined);
    throwsDmaOf('EINVAL', 'mmap', () => memory.commit(at(va, 5 * PAGE), { length: 2 * PAGE }));
    memory.commit(at(va, 8 * PAGE), { length: PAGE });
    memory.unmap(va, 6 * PAGE);
    memory.unmap(at(va, 8 * PAGE), 8 * PAGE);
    const mapping = memory.map({ length: 2 * PAGE, fd });
    memory.retire(mapping, 2 * PAGE);
    bytes(mapping, 2 * PAGE, (all) => assert.ok(all.every((each) => each === 0)));
    memory.unmap(mapping, 2 * PAGE);
    files.close(fd);
    assert.deepEqual([platform.retired(), platform.leaks()], [[], before]);
  },
);
