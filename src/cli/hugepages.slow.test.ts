import assert from 'node:assert/strict';
import { existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { describe, test, type TestContext } from 'node:test';
import { throwsDma } from '../../test/shared/errors.js';
import { HugePages, type HugePageSize, type HugetlbfsMount } from '../memory/hugepages.js';
import { openPlatform } from '../platform/open.js';
import type { KernelPort } from '../platform/ports.js';
import { hugePagesForTest } from '../../test/shared/real-hugepages.js';
import { GiB, KiB, MiB } from '../units.js';
import { carryOut, type HugePagesOptions } from './hugepages.js';
import { documentOf, Listener, Room, type Ended } from '../../test/shared/command.js';

const platform = openPlatform();
const skip = platform.limitation ?? false;

/** How many pages of each size there are, node by node. */
type Counts = readonly (readonly [pageSize: number, nodes: readonly number[]])[];

/** A machine of files in a room of its own, which can mount. */
class Machine {
  /** What was done to it. */
  readonly changes: string[] = [];
  readonly #root: string;
  readonly #kernel: KernelPort;

  constructor(t: TestContext, counts: Counts, change: Partial<KernelPort> = {}) {
    const room = new Room();
    t.after(() => room[Symbol.dispose]());
    this.#root = room.path;
    for (const [pageSize, nodes] of counts) {
      this.#put(
        pageSize,
        nodes.reduce((sum, count) => sum + count, 0),
      );
      for (const [node, count] of nodes.entries()) this.#put(pageSize, count, node);
    }
    this.#write('proc/meminfo', 'Hugepagesize:       2048 kB\n');
    this.mount();
    const { kernel } = platform;
    this.#kernel = {
      ...kernel,
      writeText: (path, text) => {
        this.changes.push(`${text} into ${path.replace(/.*(node\d+)\/hugepages\/hugepages-(\d+kB).*/, '$1 $2')}`);
        kernel.writeText(path, text);
      },
      // Where something is to be mounted nothing is, whatever this machine has there.
      list: (directory) => (directory.startsWith(this.#root) ? kernel.list(directory) : []),
      makeDirectory: () => undefined,
      mount: ({ target, options }) => {
        this.changes.push(`mount ${target} ${options}`);
        this.mount(`nodev ${target} hugetlbfs rw,${options} 0 0`);
      },
      unmount: (target) => {
        this.changes.push(`unmount ${target}`);
        this.mount();
      },
      ...change,
    };
  }

  /** Has nothing mounted but this. */
  mount(...lines: readonly string[]): void {
    this.#write('proc/mounts', ['proc /proc proc rw 0 0', ...lines, ''].join('\n'));
  }

  count(pageSize: number, node: number): number {
    return Number(readFileSync(join(this.#root, fileOf(pageSize, node), 'nr_hugepages'), 'utf8'));
  }

  run(options: HugePagesOptions): Listener {
    const output = new Listener(false);
    const paths = { sysfs: join(this.#root, 'sys'), proc: join(this.#root, 'proc') };
    carryOut(new HugePages(this.#kernel, paths), options, output);
    return output;
  }

  #put(pageSize: number, count: number, node?: number): void {
    for (const name of ['nr_hugepages', 'free_hugepages'])
      this.#write(join(fileOf(pageSize, node), name), `${count}\n`);
  }

  #write(file: string, text: string): void {
    const path = join(this.#root, file);
    mkdirSync(dirname(path), { recursive: true });
    writeFileSync(path, text);
  }
}

function fileOf(pageSize: number, node?: number): string {
  const directory = node === undefined ? 'kernel/mm' : `devices/system/node/node${node}`;
  return `sys/${directory}/hugepages/hugepages-${pageSize / KiB}kB`;
}

/** Two nodes, with pages on both. */
const TWO_NODES: Counts = [
  [GiB, [0, 2]],
  [2 * MiB, [1792, 512]],
];

describe('anydma hugepages on a made-up machine', { skip }, () => {
  test('shows the columns of dpdk-hugepages.py, node by node', (t) => {
    const machine = new Machine(t, TWO_NODES);
    machine.mount('nodev /dev/hugepages hugetlbfs rw,pagesize=2M 0 0', 'nodev /mnt/1G hugetlbfs rw,pagesize=1024M 0 0');
    assert.equal(
      machine.run({}).said,
      [
        'Node  Pages  Size   Total  Free',
        '   0   1792   2Mb  3584Mb  1792',
        '   1    512   2Mb     1Gb   512',
        '   1      2   1Gb     2Gb     2',
        '',
        'Huge page filesystems mounted at: /dev/hugepages /mnt/1G',
        '',
      ].join('\n'),
    );
    assert.deepEqual(machine.changes, []);
  });

  test('says when there is nothing to show', (t) => {
    const nothing = 'No huge pages reserved\n\nNo huge page filesystems mounted\n';
    assert.equal(new Machine(t, [[2 * MiB, [0, 0]]]).run({}).said, nothing);
    assert.equal(new Machine(t, []).run({ show: true }).said, nothing);
  });

  test('the document tells all, whatever was asked for', (t) => {
    const machine = new Machine(t, [[2 * MiB, [3]]]);
    const [document] = machine.run({ mount: true, directory: '/huge' }).documents;
    assert.deepEqual(document, {
      ok: true,
      sizes: [
        {
          pageSize: 2 * MiB,
          total: 3,
          free: 3,
          surplus: 0,
          reserved: 0,
          nodes: [{ node: 0, total: 3, free: 3, surplus: 0 }],
        },
      ],
      mounts: [{ path: '/huge', pageSize: 2 * MiB }],
    });
  });

  test('reserves on each node or on one, in pages of the default size or another', (t) => {
    const machine = new Machine(t, TWO_NODES);
    assert.equal(machine.run({ reserve: 64 * MiB }).said, 'reserved 32 pages of 2 MiB on each node\n');
    assert.deepEqual([machine.count(2 * MiB, 0), machine.count(2 * MiB, 1)], [32, 32]);
    assert.equal(machine.run({ reserve: GiB, pagesize: GiB, node: 0 }).said, 'reserved 1 page of 1 GiB on node 0\n');
    assert.deepEqual([machine.count(GiB, 0), machine.count(GiB, 1)], [1, 2]);
  });

  test('clears all, or what is chosen', (t) => {
    const machine = new Machine(t, TWO_NODES);
    assert.equal(
      machine.run({ clear: true, pagesize: 2 * MiB, node: 1 }).said,
      'released the hugepages of 2 MiB on node 1\n',
    );
    assert.deepEqual(machine.changes, ['0 into node1 2048kB']);
    assert.equal(machine.run({ clear: true }).said, 'released the hugepages on each node\n');
    assert.deepEqual(machine.changes.slice(1), ['0 into node0 2048kB', '0 into node1 1048576kB']);
  });

  test('tells of pages that are in use', (t) => {
    const { kernel } = platform;
    const writeText: KernelPort['writeText'] = (path) => kernel.writeText(path, '2\n');
    const { notes } = new Machine(t, [[2 * MiB, [8]]], { writeText }).run({ clear: true });
    assert.match(notes, /^2 of them are in use/);
  });

  test('mounts and unmounts', (t) => {
    const machine = new Machine(t, TWO_NODES);
    const owned = { mount: true, user: 1000, group: 100 };
    assert.equal(machine.run(owned).said, 'mounted hugepages of 2 MiB at /dev/hugepages\n');
    const again = machine.run(owned);
    assert.equal(again.said, 'already mounted: hugepages of 2 MiB at /dev/hugepages\n');
    assert.match(again.notes, /owner of \/dev\/hugepages was not changed/);
    throwsDma('EBUSY', () => machine.run({ mount: true, pagesize: GiB }), /2 MiB pages/);
    assert.equal(machine.run({ unmount: true, directory: '/dev/hugepages/' }).said, 'unmounted /dev/hugepages\n');
    throwsDma('ENOENT', () => machine.run({ unmount: true }), /no hugetlbfs is mounted at \/dev\/hugepages/);
    assert.deepEqual(machine.changes, [
      'mount /dev/hugepages pagesize=2048K,uid=1000,gid=100',
      'unmount /dev/hugepages',
    ]);
  });

  test('does everything in one order: clear, unmount, reserve, mount, show', (t) => {
    const machine = new Machine(t, TWO_NODES);
    const { said } = machine.run({ setup: 2 * GiB, directory: '/huge', show: true });
    assert.deepEqual(said.split('\n').slice(0, 5), [
      'released the hugepages on each node',
      'reserved 1024 pages of 2 MiB on each node',
      'mounted hugepages of 2 MiB at /huge',
      '',
      'Node  Pages  Size  Total  Free',
    ]);
    const changes = [
      '0 into node0 2048kB',
      '0 into node1 2048kB',
      '1024 into node0 2048kB',
      '1024 into node1 2048kB',
      'mount /huge pagesize=2048K',
    ];
    assert.deepEqual(machine.changes, [...changes.slice(0, 2), '0 into node1 1048576kB', ...changes.slice(2)]);
    // What is mounted by then is mounted anew, here with another page size, to which everything is confined.
    machine.changes.length = 0;
    machine.run({
      mount: true,
      reserve: 3 * GiB,
      unmount: true,
      clear: true,
      pagesize: GiB,
      node: 1,
      directory: '/huge',
    });
    assert.deepEqual(machine.changes, ['unmount /huge', '3 into node1 1048576kB', 'mount /huge pagesize=1048576K']);
  });

  test('refuses what can not be before it changes anything', (t) => {
    const machine = new Machine(t, TWO_NODES);
    machine.mount('nodev /dev/hugepages hugetlbfs rw,pagesize=2M 0 0');
    throwsDma(
      'EINVAL',
      () => machine.run({ setup: 3 * MiB }),
      /3 MiB is not a multiple.* 2 MiB \(hint: 2 MiB or 4 MiB is\)/,
    );
    throwsDma('EINVAL', () => machine.run({ setup: MiB }), /hint: 2 MiB is\)/);
    throwsDma('EINVAL', () => machine.run({ clear: true, unmount: true, pagesize: 16 * MiB }), /2 MiB, 1 GiB/);
    throwsDma('EINVAL', () => machine.run({ setup: GiB, node: 2 }), /nodes: 0, 1/);
    throwsDma('ENOTSUP', () => new Machine(t, []).run({ clear: true }), /no hugepages/);
    assert.deepEqual(machine.changes, []);
  });

  test('mounts nothing over what is in use: it would be hidden from all programs', { skip }, (t) => {
    for (const directory of ['/proc', '/', '/etc', '/sys/kernel']) {
      // Of directories of this machine the real contents are asked; nothing real is mounted.
      const machine = new Machine(t, TWO_NODES, { list: (path) => platform.kernel.list(path) });
      const mount = { mount: true, directory };
      throwsDma('EBUSY', () => machine.run(mount), /is not empty.*would be hidden.*\(hint: take an empty directory/);
      throwsDma('EBUSY', () => machine.run({ setup: GiB, directory }), /is not empty/);
      throwsDma('EBUSY', () => machine.run({ ...mount, reserve: GiB }), /is not empty/);
      assert.deepEqual(machine.changes, []);
    }
  });

  test('fails when fewer come than were asked for', (t) => {
    const { kernel } = platform;
    const writeText: KernelPort['writeText'] = (path, text) => kernel.writeText(path, `${Math.min(5, Number(text))}\n`);
    const machine = new Machine(t, [[2 * MiB, [4]]], { writeText });
    throwsDma('ENOMEM', () => machine.run({ reserve: GiB }), /only 5 of 512 pages/);
    assert.equal(machine.count(2 * MiB, 0), 4);
  });
});

describe('anydma hugepages, the command', { concurrency: 4 }, () => {
  const wrong: [why: string, args: string[], says: RegExp][] = [
    ['a size that is none', ['--reserve', 'many'], /'many' is invalid/],
    ['no size at all', ['-r', '0'], /'0' is invalid/],
    ['a size that no address reaches', ['-r', '8PiB'], /too large: sizes are below 2\^53 bytes/],
    ['a size beyond all units', ['-r', '3EiB'], /too large/],
    ['two sizes to reserve', ['--setup', '1G', '--reserve', '1G'], /cannot be used with/],
    ['a page size for nothing', ['-p', '1G', '-s'], /--pagesize needs --clear or --reserve/],
    ['a node for a mount', ['--mount', '--node', '0'], /--node needs/],
    ['a node that is no number', ['-c', '-n', 'first'], /whole number/],
    ['a directory for nothing', ['-c', '-d', '/huge'], /--directory needs --unmount or --mount/],
    ['an owner of nothing', ['--unmount', '-U', '0'], /--user needs --mount or --setup/],
    ['an owner by name', ['--mount', '-G', 'root'], /whole number/],
  ];
  for (const [why, args, says] of wrong)
    test(`wrong usage is status 2: ${why}`, async () => {
      using room = new Room();
      const { status, stdout, stderr } = await room.call(['hugepages', ...args]);
      assert.equal(status, 2, stderr);
      assert.equal(stdout, '');
      assert.match(stderr, says);
    });

  test('shows this machine', { skip }, async () => {
    using room = new Room();
    const [people, program] = await Promise.all([room.run(['hugepages']), room.call(['hugepages', '--json'])]);
    assert.equal(people.status, 0, people.stderr);
    assert.match(
      people.stdout,
      /^(Node {2}Pages|No huge pages reserved)[^]*\n\n(Huge|No huge) page filesystems mounted/,
    );
    assert.equal(program.status, 0, program.stderr);
    assert.equal(documentOf(program)['ok'], true);
  });

  test('fails with a reason and a hint', { skip }, async () => {
    using room = new Room();
    const args = ['hugepages', '--unmount', '-d', room.file('nothing')];
    const [people, program] = await Promise.all([room.call(args), room.call([...args, '--json'])]);
    assert.equal(people.status, 1);
    assert.match(people.stderr, /^anydma: (hugepages.unmount: no hugetlbfs is mounted at|.*no hugepages).*\nhint: /);
    assert.equal(people.stdout, '');
    assert.equal(program.status, 1);
    assert.equal(documentOf(program)['ok'], false);
  });

  test('reserves, mounts, unmounts and releases on this machine', { skip }, async (t) => {
    const borrowed = hugePagesForTest(platform, 1);
    if (typeof borrowed === 'string') return t.skip(borrowed);
    const { pageSize } = borrowed;
    const size = `${pageSize}`;
    const ofSize = (ended: Ended): HugePageSize => {
      assert.equal(ended.status, 0, ended.stderr);
      const found = (documentOf(ended)['sizes'] as HugePageSize[]).find((each) => each.pageSize === pageSize);
      assert.ok(found);
      return found;
    };
    using room = new Room();
    const directory = room.file('huge');
    const mountsOf = (ended: Ended): HugetlbfsMount[] =>
      (documentOf(ended)['mounts'] as HugetlbfsMount[]).filter(({ path }) => path === directory);
    try {
      const before = ofSize(await room.call(['hugepages', '--json']));
      const [{ node, total }] = before.nodes;
      const choice = ['-p', size, '-n', String(node)];
      const reserve = (pages: number): string[] => [
        'hugepages',
        '--reserve',
        `${pages * pageSize}`,
        ...choice,
        '--json',
      ];
      const first = await room.call(reserve(total + 2));
      if (first.status !== 0 && /it takes root/.test(first.stderr)) return t.skip('hugepages can not be reserved here');
      assert.equal(ofSize(first).nodes[0].total, total + 2);

      try {
        const mounted = await room.call(['hugepages', '--mount', '-d', directory, '-p', size, '-U', '1', '--json']);
        assert.equal(mounted.status, 0, mounted.stderr);
        assert.deepEqual(mountsOf(mounted), [{ path: directory, pageSize }]);
        assert.ok(existsSync(directory));
      } finally {
        const unmounted = await room.call(['hugepages', '--unmount', '-d', directory, '--json']);
        assert.deepEqual(mountsOf(unmounted), []);
      }
      const after = ofSize(
        await room.call(total === 0 ? ['hugepages', '--clear', ...choice, '--json'] : reserve(total)),
      );
      assert.deepEqual(after, before);
    } finally {
      borrowed.giveBack();
    }
  });
});
