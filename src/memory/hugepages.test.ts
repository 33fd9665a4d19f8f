import { mkdirSync, mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test, type TestContext } from 'node:test';
import assert from 'node:assert/strict';
import { throwsDmaOf } from '../../test/shared/errors.js';
import { DmaError, isDmaError } from '../errors.js';
import { openPlatform } from '../platform/open.js';
import type { KernelPort } from '../platform/ports.js';
import { portablePlatform } from '../platform/portable.js';
import { failingPlatform } from '../../test/fakes/platform/platforms.js';
import { hugePagesForTest } from '../../test/shared/real-hugepages.js';
import { GiB, KiB, MiB } from '../units.js';
import { HugePages } from './hugepages.js';

const platform = openPlatform();
const skip = platform.limitation ?? false;

/** Counts of one directory: total, free, surplus, and reserved where there is such a file. */
type Counts = readonly [total: number, free: number, surplus: number, reserved?: number];

/** A machine made of files in a new directory. */
class FakePageFiles {
  readonly root = mkdtempSync(join(tmpdir(), 'hugepages-'));

  constructor(t: TestContext) {
    t.after(() => rmSync(this.root, { recursive: true }));
    mkdirSync(join(this.root, 'proc'));
  }

  size(pageSize: number, [total, free, surplus, reserved]: Counts, node?: number): string {
    const base = node === undefined ? 'sys/kernel/mm' : `sys/devices/system/node/node${node}`;
    const directory = join(this.root, base, 'hugepages', `hugepages-${pageSize / KiB}kB`);
    mkdirSync(directory, { recursive: true });
    const put = (name: string, value: number): void => writeFileSync(join(directory, name), `${value}\n`);
    put('nr_hugepages', total);
    put('free_hugepages', free);
    put('surplus_hugepages', surplus);
    if (reserved !== undefined) put('resv_hugepages', reserved);
    return join(directory, 'nr_hugepages');
  }

  put(path: string, text: string): void {
    writeFileSync(join(this.root, path), text);
  }

  open(kernel: KernelPort = platform.kernel): HugePages {
    return new HugePages(kernel, { sysfs: join(this.root, 'sys'), proc: join(this.root, 'proc') });
  }
}

/** Two nodes, two sizes; node 2 has a processor but no memory. */
function numaMachine(t: TestContext): { machine: FakePageFiles; node0: string; node1: string } {
  const machine = new FakePageFiles(t);
  machine.size(GiB, [1, 1, 0, 0]);
  machine.size(2 * MiB, [12, 7, 1, 3]);
  machine.size(GiB, [1, 1, 0], 0);
  machine.size(GiB, [0, 0, 0], 10);
  const node0 = machine.size(2 * MiB, [8, 5, 1], 0);
  const node1 = machine.size(2 * MiB, [4, 2, 0], 10);
  mkdirSync(join(machine.root, 'sys/devices/system/node/node2'));
  mkdirSync(join(machine.root, 'sys/devices/system/node/power'));
  return { machine, node0, node1 };
}

/** The kernel, but of `most` pages at most in a file. */
function scarce(most: number): KernelPort {
  const { kernel } = platform;
  return { ...kernel, writeText: (path, text) => kernel.writeText(path, `${Math.min(Number(text), most)}\n`) };
}
const numberIn = (path: string): number => parseInt(readFileSync(path, 'utf8'), 10);
test('what the machine has, by size and node', { skip }, (t) => {
  const { machine } = numaMachine(t);
  const pages = machine.open();
  assert.deepEqual(pages.nodes(), [0, 10]);
  assert.deepEqual(pages.sizes(), [
    {
      pageSize: 2 * MiB,
      total: 12,
      free: 7,
      surplus: 1,
      reserved: 3,
      nodes: [
        { node: 0, total: 8, free: 5, surplus: 1 },
        { node: 10, total: 4, free: 2, surplus: 0 },
      ],
    },
    {
      pageSize: GiB,
      total: 1,
      free: 1,
      surplus: 0,
      reserved: 0,
      nodes: [
        { node: 0, total: 1, free: 1, surplus: 0 },
        { node: 10, total: 0, free: 0, surplus: 0 },
      ],
    },
  ]);
});

test('without NUMA there is node 0, with the counts of the machine', { skip }, (t) => {
  const machine = new FakePageFiles(t);
  const file = machine.size(2 * MiB, [5, 4, 0, 1]);
  const pages = machine.open();
  assert.deepEqual(pages.nodes(), [0]);
  assert.deepEqual(pages.sizes()[0].nodes, [{ node: 0, total: 5, free: 4, surplus: 0 }]);
  pages.reserve({ pageSize: 2 * MiB, pages: 9, node: 0 });
  assert.equal(numberIn(file), 9);
});

test('a machine without hugepages, or without system calls, has none', (t) => {
  const machine = new FakePageFiles(t);
  for (const kernel of [platform.kernel, portablePlatform('a test').kernel]) {
    const pages = machine.open(kernel);
    assert.deepEqual([pages.sizes(), pages.nodes(), pages.mounts(), pages.release()], [[], [0], [], 0]);
    throwsDmaOf(
      'EINVAL',
      'hugepages.reserve',
      () => pages.reserve({ pageSize: 2 * MiB, pages: 1 }),
      /no hugepages at all/,
    );
    throwsDmaOf('EINVAL', 'hugepages.mount', () => pages.mount('/x', { pageSize: 2 * MiB }));
    throwsDmaOf('ENOENT', 'hugepages.unmount', () => pages.unmount('/x'));
  }
});

test('pages are reserved on one node or on each, and released', { skip }, (t) => {
  const { machine, node0, node1 } = numaMachine(t);
  const pages = machine.open();
  pages.reserve({ pageSize: 2 * MiB, pages: 20, node: 10 });
  assert.deepEqual([numberIn(node0), numberIn(node1)], [8, 20]);
  pages.reserve({ pageSize: 2 * MiB, pages: 3 });
  assert.deepEqual([numberIn(node0), numberIn(node1)], [3, 3]);
  assert.equal(pages.release({ pageSize: 2 * MiB, node: 0 }), 0);
  assert.deepEqual([numberIn(node0), numberIn(node1)], [0, 3]);
  assert.equal(pages.release(), 0);
  assert.equal(
    pages.sizes().every((size) => size.nodes.every((node) => node.total === 0)),
    true,
  );
});

test('pages in use are told when they are released', { skip }, (t) => {
  const { machine, node0 } = numaMachine(t);
  const { kernel } = platform;
  const pages = machine.open({ ...kernel, writeText: (path) => kernel.writeText(path, '2\n') });
  assert.equal(pages.release({ pageSize: 2 * MiB, node: 0 }), 2);
  assert.equal(numberIn(node0), 2);
});

test('fewer pages than asked for: ENOMEM with how many came, and the counts are as before', { skip }, (t) => {
  const { machine, node0, node1 } = numaMachine(t);
  const pages = machine.open(scarce(9));
  throwsDmaOf(
    'ENOMEM',
    'hugepages.reserve',
    () => pages.reserve({ pageSize: 2 * MiB, pages: 10, node: 10 }),
    /only 9 of 10/,
  );
  throwsDmaOf('ENOMEM', 'hugepages.reserve', () => pages.reserve({ pageSize: 2 * MiB, pages: 10 }), /hugepagesz=2048K/);
  assert.deepEqual([numberIn(node0), numberIn(node1)], [8, 4]);
  pages.reserve({ pageSize: 2 * MiB, pages: 9 });
});

test('a node that fails undoes those before it, whichever write it is', { skip }, (t) => {
  const { machine, node0, node1 } = numaMachine(t);
  for (let n = 1; n <= 2; n++) {
    const failing = failingPlatform(platform);
    const pages = machine.open(failing.kernel);
    failing.failCall(n, 'EACCES', 'kernel.writeText');
    throwsDmaOf('EACCES', 'hugepages.reserve', () => pages.reserve({ pageSize: 2 * MiB, pages: 30 }), /root/);
    assert.equal(failing.failed(), 'kernel.writeText');
    assert.deepEqual([numberIn(node0), numberIn(node1)], [8, 4]);
  }
});

test('more than the machine has is refused before anything is written', { skip }, (t) => {
  const { machine, node0, node1 } = numaMachine(t);
  machine.put('proc/meminfo', 'MemTotal: 33554432 kB\nMemAvailable: 16777216 kB\nHugepagesize: 2048 kB\n');
  const pages = machine.open();
  const figures = /more are wanted, and 16 GiB of the machine's 32 GiB are available.*nothing was changed/;
  throwsDmaOf('ENOMEM', 'hugepages.reserve', () => pages.reserve({ pageSize: 2 * MiB, pages: 2 ** 25 }), figures);
  throwsDmaOf(
    'ENOMEM',
    'hugepages.reserve',
    () => pages.reserve({ pageSize: 2 * MiB, node: 0, pages: 8 + 8193 }),
    figures,
  );
  assert.deepEqual([numberIn(node0), numberIn(node1)], [8, 4]);
  pages.reserve({ pageSize: 2 * MiB, node: 0, pages: 8 + 8192 });
  assert.equal(numberIn(node0), 8200);
});

test('impossible choices are refused before anything is written', { skip }, (t) => {
  const { machine, node0 } = numaMachine(t);
  const pages = machine.open({
    ...platform.kernel,
    writeText: () => assert.fail('written'),
  });
  for (const count of [-1, 0.5, NaN, 2 ** 53])
    throwsDmaOf('EINVAL', 'hugepages.reserve', () => pages.reserve({ pageSize: 2 * MiB, pages: count }));
  for (const pageSize of [0, 4096, NaN, 16 * MiB])
    throwsDmaOf('EINVAL', 'hugepages.reserve', () => pages.reserve({ pageSize, pages: 1 }), /2 MiB, 1 GiB/);
  for (const node of [-1, 2, NaN, 99])
    throwsDmaOf('EINVAL', 'hugepages.release', () => pages.release({ pageSize: GiB, node }), /0, 10/);
  assert.equal(numberIn(node0), 8);
});

test('mounts with their page sizes; what is hidden is not there', { skip }, (t) => {
  const { machine } = numaMachine(t);
  machine.put('proc/meminfo', 'MemTotal: 1 kB\nHugepagesize:       2048 kB\n');
  machine.put(
    'proc/mounts',
    [
      'proc /proc proc rw 0 0',
      'hugetlbfs /dev/hugepages hugetlbfs rw,relatime,pagesize=2M 0 0',
      'nodev /mnt/huge\\0401G hugetlbfs rw,relatime,mode=700,pagesize=1024M,size=1G 0 0',
      'nodev /old hugetlbfs rw,relatime 0 0',
      'nodev /hidden hugetlbfs rw,pagesize=2M 0 0',
      'tmpfs /hidden tmpfs rw 0 0',
      'nodev /twice hugetlbfs rw,pagesize=2M 0 0',
      'nodev /twice hugetlbfs rw,pagesize=1G 0 0',
      Buffer.from('nodev /größe hugetlbfs rw,pagesize=2M 0 0').toString('latin1'),
      '',
    ].join('\n'),
  );
  const kernel = {
    ...platform.kernel,
    readText: (path: string) => (path.endsWith('mounts') ? readFileSync(path, 'utf8') : platform.kernel.readText(path)),
  };
  assert.deepEqual(machine.open(kernel).mounts(), [
    { path: '/dev/hugepages', pageSize: 2 * MiB },
    { path: '/mnt/huge 1G', pageSize: GiB },
    { path: '/old', pageSize: 2 * MiB },
    { path: '/twice', pageSize: GiB },
    { path: '/größe', pageSize: 2 * MiB },
  ]);
});

test('hugetlbfs is mounted once, with the options asked for', { skip }, (t) => {
  const { machine } = numaMachine(t);
  machine.put('proc/mounts', 'nodev /there hugetlbfs rw,pagesize=2M 0 0\n');
  const done: unknown[] = [];
  const pages = machine.open({
    ...platform.kernel,
    makeDirectory: (path) => void done.push(path),
    mount: (options) => void done.push(options),
    unmount: (path) => void done.push(path),
  });
  assert.equal(pages.mount('/there', { pageSize: 2 * MiB }), false);
  throwsDmaOf('EBUSY', 'hugepages.mount', () => pages.mount('/there', { pageSize: GiB }));
  throwsDmaOf('EINVAL', 'hugepages.mount', () => pages.mount('/new', { pageSize: 4096 }));
  for (const user of [-1, 0.5, 2 ** 32])
    throwsDmaOf('EINVAL', 'hugepages.mount', () => pages.mount('/new', { pageSize: GiB, user }));
  throwsDmaOf('ENOENT', 'hugepages.unmount', () => pages.unmount('/new'), /\/there/);
  assert.deepEqual(done, []);
  assert.equal(pages.mount('/new', { pageSize: GiB, user: 1000, group: 100 }), true);
  pages.unmount('/there');
  assert.deepEqual(done, [
    '/new',
    { source: 'nodev', target: '/new', type: 'hugetlbfs', options: 'pagesize=1048576K,uid=1000,gid=100' },
    '/there',
  ]);
  const refusing = machine.open({
    ...platform.kernel,
    makeDirectory: () => {
      throw new DmaError({ code: 'EACCES', operation: 'mkdir', reason: 'no' });
    },
  });
  throwsDmaOf('EACCES', 'hugepages.mount', () => refusing.mount('/new', { pageSize: GiB }), /root/);
});

test('the real machine: reserve, mount, unmount, release', { skip }, (t) => {
  const borrowed = hugePagesForTest(platform, 1);
  if (typeof borrowed === 'string') return t.skip(borrowed);
  const directory = mkdtempSync(join(tmpdir(), 'hugetlbfs-'));
  try {
    const { pageSize } = borrowed;
    const pages = new HugePages(platform.kernel);
    const size = () => pages.sizes().find((each) => each.pageSize === pageSize);
    const before = size();
    assert.ok(before !== undefined && before.free >= 1);
    assert.equal(
      before.nodes.reduce((sum, node) => sum + node.total, 0),
      before.total,
    );
    const [{ node, total }] = before.nodes;
    try {
      pages.reserve({ pageSize, pages: total + 2, node });
      assert.equal(size()?.nodes[0].total, total + 2);
    } catch (error) {
      assert.ok(isDmaError(error, 'EACCES'));
      return t.skip('this process may not reserve hugepages');
    }
    pages.reserve({ pageSize, pages: total, node });
    assert.deepEqual(size(), before);
    const path = join(directory, 'mount');
    assert.equal(pages.mount(path, { pageSize }), true);
    assert.equal(pages.mount(path, { pageSize }), false);
    assert.deepEqual(
      pages.mounts().filter((mount) => mount.path === path),
      [{ path, pageSize }],
    );
    // One directory, however its name is written.
    const link = join(directory, 'link');
    symlinkSync(path, link);
    for (const name of [link, `${link}/`, `${path}/`, join(directory, 'none', '..', 'mount')]) {
      assert.equal(pages.mount(name, { pageSize }), false, name);
      assert.ok(pages.isMounted(name), name);
    }
    pages.unmount(link);
    throwsDmaOf('ENOENT', 'hugepages.unmount', () => pages.unmount(path));
    throwsDmaOf('ENOENT', 'hugepages.mount', () => pages.mount('/proc/x', { pageSize }));
  } finally {
    borrowed.giveBack();
    rmSync(directory, { recursive: true });
  }
});
