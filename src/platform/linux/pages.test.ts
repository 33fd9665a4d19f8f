import { spawnSync } from 'node:child_process';
import { test } from 'node:test';
import assert from 'node:assert/strict';
import { throwsDmaOf } from '../../../test/shared/errors.js';
import { ERRNO, isDmaError } from '../../errors.js';
import { MiB } from '../../units.js';
import type { Va } from '../../units.js';
import { loadLibc } from './libc.js';
import type { Libc } from './libc.js';
import { linuxMemory } from './memory.js';
import { openPlatform } from '../open.js';
import type { MemoryPort } from '../ports.js';
import { hugePagesForTest } from '../../../test/shared/real-hugepages.js';

const platform = openPlatform();
const { memory, files, limits } = platform;
const skip = platform.limitation ?? false;
const PAGE = memory.pageSize;
const isRoot = process.getuid?.() === 0;

/** Runs `use` on new memory of the system's pages, which nobody has touched. */
function withMemory(pages: number, use: (va: Va) => void, port = memory): void {
  const va = port.map({ length: pages * PAGE });
  try {
    use(va);
  } finally {
    port.unmap(va, pages * PAGE);
  }
}
/** A memory port on a C library some of whose functions fail with `errno`. */
function without(errno: number, ...names: (keyof Libc)[]): MemoryPort {
  const libc = loadLibc();
  assert.ok(typeof libc !== 'string');
  let last: number | undefined;
  const replaced: Libc = new Proxy(libc, {
    get(target, key, receiver): unknown {
      const own: unknown = Reflect.get(target, key, receiver);
      if (key === 'errno') return () => last ?? libc.errno();
      return (...args: unknown[]): unknown => {
        last = names.some((name) => name === key) ? errno : undefined;
        return last === undefined && typeof own === 'function' ? Reflect.apply(own, target, args) : -1;
      };
    },
  });
  return linuxMemory(replaced);
}
/** A kernel before 5.14, as far as populating is concerned. */
const older = (): MemoryPort => without(ERRNO.EINVAL, 'madvise');

test('populate faults every page in and keeps what is there', { skip }, () => {
  for (const port of [memory, older()]) {
    withMemory(
      2000,
      (va) => {
        const buffer = port.view((va + 5 * PAGE) as Va, PAGE);
        new Uint8Array(buffer).fill(9);
        port.detach(buffer);
        assert.equal(port.nodesOf(va, PAGE, 10).filter((node) => node !== -1).length <= 1, true);
        port.populate(va, 2000 * PAGE);
        const nodes = port.nodesOf(va, PAGE, 2000);
        assert.ok(nodes.every((node) => node === -1) || nodes.every((node) => node >= 0), String(nodes));
        const again = port.view(va, 6 * PAGE);
        assert.deepEqual([...new Uint8Array(again)].filter((each) => each !== 0).length, PAGE);
        port.detach(again);
      },
      port,
    );
  }
  throwsDmaOf('EINVAL', 'madvise', () => memory.populate(0 as Va, 0));
  throwsDmaOf('EINVAL', 'madvise', () => memory.populate(1 as Va, PAGE));
  withMemory(2, (va) => {
    memory.unmap((va + PAGE) as Va, PAGE);
    throwsDmaOf('ENOMEM', 'madvise', () => memory.populate(va, 2 * PAGE));
    const port = older();
    throwsDmaOf('ENOMEM', 'process_vm_readv', () => port.populate(va, 2 * PAGE));
  });
  const bare = without(ERRNO.ENOSYS, 'madvise', 'process_vm_readv');
  withMemory(1, (va) => throwsDmaOf('ENOSYS', 'process_vm_readv', () => bare.populate(va, PAGE)));
});

test('a page past the end of a file is ENOMEM and no signal', { skip }, () => {
  const fd = memory.memfd({ name: 'short', length: PAGE });
  const va = memory.map({ fd, length: 4 * PAGE });
  throwsDmaOf('ENOMEM', 'madvise', () => memory.populate(va, 4 * PAGE));
  throwsDmaOf('ENOMEM', 'process_vm_readv', () => older().populate(va, 4 * PAGE));
  memory.unmap(va, 4 * PAGE);
  files.close(fd);
});

test('more hugepages than there are: ENOMEM, the process lives, and what came is given back', { skip }, (t) => {
  const pages = hugePagesForTest(platform, 3);
  if (typeof pages === 'string') return t.skip(pages);
  const { pageSize } = pages;
  try {
    const free = limits.freeHugePages(pageSize) ?? 0;
    const length = (free + 2) * pageSize;
    for (const port of [memory, older()]) {
      for (const backed of [true, false]) {
        // DONTFORK of anonymous memory is an advice as well.
        if (port !== memory && !backed) continue;
        const va = port.reserve(length, pageSize);
        const fd = backed ? port.memfd({ name: 'too many', length, hugePageSize: pageSize }) : undefined;
        port.commit(va, fd === undefined ? { length, hugePageSize: pageSize } : { length, fd });
        throwsDmaOf('ENOMEM', port === memory ? 'madvise' : 'process_vm_readv', () => port.populate(va, length));
        assert.equal(limits.freeHugePages(pageSize), 0);
        port.decommit(va, length);
        if (fd !== undefined) files.punch(fd, 0, length);
        assert.equal(limits.freeHugePages(pageSize), free);
        if (fd !== undefined) {
          throwsDmaOf('ENOSPC', 'fallocate', () => files.allocateRange(fd, 0, length));
          files.close(fd);
        }
        port.unmap(va, length);
      }
    }
  } finally {
    pages.giveBack();
  }
});

test('memory is bound to a node that there is', { skip }, () => {
  withMemory(4, (va) => {
    memory.bind(va, 4 * PAGE, 0);
    memory.populate(va, 4 * PAGE);
    const nodes = memory.nodesOf(va, PAGE, 4);
    assert.ok(nodes.every((node) => node === 0 || node === -1));
    for (const node of [-1, 0.5, NaN, 1024]) throwsDmaOf('EINVAL', 'mbind', () => memory.bind(va, PAGE, node));
    assert.throws(() => memory.bind(va, PAGE, 1000), { operation: 'mbind' });
  });
});

test('where nodes can not be asked for, the only node is the right one', { skip }, (t) => {
  const nodes = platform.kernel.readText('/sys/devices/system/node/online')?.trim() ?? '0';
  for (const errno of [ERRNO.ENOSYS, ERRNO.EPERM]) {
    const port = without(errno, 'mbind', 'move_pages');
    withMemory(2, (va) => {
      if (nodes === '0') port.bind(va, PAGE, 0);
      else t.diagnostic(`this machine has the nodes ${nodes}`);
      throwsDmaOf(errno === ERRNO.ENOSYS ? 'ENOTSUP' : 'EPERM', 'mbind', () => port.bind(va, PAGE, 1));
      if (errno === ERRNO.EPERM)
        assert.throws(
          () => port.bind(va, PAGE, 1),
          (error) => isDmaError(error) && /SYS_NICE/.test(error.hint ?? ''),
        );
      assert.deepEqual([...port.nodesOf(va, PAGE, 2)], [-1, -1]);
    });
  }
});

test('questions about impossible pages are refused', { skip }, () => {
  withMemory(1, (va) => {
    assert.equal(memory.nodesOf(va, PAGE, 0).length, 0);
    for (const [size, count] of [
      [0, 1],
      [1, 1],
      [NaN, 1],
      [PAGE, -1],
      [PAGE, 0.5],
      [PAGE, 2 ** 50],
    ]) {
      throwsDmaOf('EINVAL', 'move_pages', () => memory.nodesOf(va, size, count));
      throwsDmaOf('EINVAL', 'pagemap', () => memory.frames(va, size, count));
    }
    throwsDmaOf('EINVAL', 'move_pages', () => memory.nodesOf((va + 1) as Va, PAGE, 1));
  });
});

test('frames are physical addresses for who may see them, and unknown for others', { skip }, (t) => {
  withMemory(1200, (va) => {
    memory.populate(va, 1100 * PAGE);
    const frames = memory.frames(va, PAGE, 1200);
    if (frames === undefined) return t.skip('this process may not see physical addresses');
    const present = [...frames].filter((frame) => frame !== -1);
    assert.ok(frames.subarray(0, 1100).every((frame) => frame > 0 && frame % PAGE === 0));
    assert.equal(new Set(present).size, present.length);
    assert.equal(frames[1199], -1);
    const own = memory.frames((va + 1000 * PAGE) as Va, PAGE, 1);
    assert.equal(own?.[0], frames[1000]);
  });
  if (!isRoot) return;
  const url = new URL('../open.js', import.meta.url).href;
  const code = `import { openPlatform } from '${url}';
    const { memory } = openPlatform();
    const va = memory.map({ length: ${PAGE}, populate: true });
    console.log(memory.frames(va, ${PAGE}, 1));`;
  const drop = ['--bounding-set', '-sys_admin', '--inh-caps', '-sys_admin'];
  const child = spawnSync('setpriv', [...drop, process.execPath, '--input-type=module', '-e', code], {
    encoding: 'utf8',
  });
  if (child.status !== 0) return t.diagnostic(`setpriv: ${child.stderr || String(child.error)}`);
  assert.equal(child.stdout.trim(), 'undefined');
});

test('frames of hugepages are contiguous inside', { skip }, (t) => {
  const pages = hugePagesForTest(platform, 2);
  if (typeof pages === 'string') return t.skip(pages);
  try {
    const va = memory.map({ length: 2 * pages.pageSize, hugePageSize: pages.pageSize, populate: true });
    const frames = memory.frames(va, pages.pageSize, 2);
    const nodes = memory.nodesOf(va, pages.pageSize, 2);
    assert.ok(nodes.every((node) => node >= -1));
    if (frames === undefined) t.diagnostic('this process may not see physical addresses');
    else {
      assert.ok(frames.every((frame) => frame > 0 && frame % (2 * MiB) === 0));
      const inside = memory.frames((va + PAGE) as Va, PAGE, 1);
      assert.equal(inside?.[0], frames[0] + PAGE);
    }
    memory.unmap(va, 2 * pages.pageSize);
  } finally {
    pages.giveBack();
  }
});

test('locked memory counts as locked', { skip }, () => {
  withMemory(4, (va) => {
    const before = limits.lockedMemory();
    if (before.limit - before.used < 4 * PAGE) return;
    memory.lock(va, 4 * PAGE);
    assert.equal(limits.lockedMemory().used, before.used + 4 * PAGE);
    throwsDmaOf('EINVAL', 'mlock', () => memory.lock(va, 1));
    throwsDmaOf('EINVAL', 'mlock', () => memory.lock(va, 0));
  });
});
