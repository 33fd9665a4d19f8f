/** How much memory there is room for, on machines made of files. */
import assert from 'node:assert/strict';
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { test, type TestContext } from 'node:test';
import { GiB, KiB, MiB } from '../../units.js';
import { hugePageRoom, memoryRoom, type RoomPaths } from './available-memory.js';

/** What is kept for others of limits of 16 GiB and of 1 GiB. */
const KEPT_16G = 256 * MiB;
const KEPT_1G = 16 * MiB;

class Machine {
  readonly root = mkdtempSync(join(tmpdir(), 'room-'));
  readonly paths: RoomPaths = { proc: join(this.root, 'proc'), sysfs: join(this.root, 'sys') };
  #mounts = '';

  constructor(t: TestContext, availableGiB = 8, swap = 0) {
    t.after(() => rmSync(this.root, { recursive: true }));
    const lines = [
      `MemTotal: ${(16 * GiB) / KiB} kB`,
      `MemAvailable: ${(availableGiB * GiB) / KiB} kB`,
      `SwapFree: ${swap / KiB} kB`,
    ];
    this.put('proc/meminfo', lines.join('\n'));
  }

  put(file: string, text: string | number): void {
    const path = join(this.root, file);
    mkdirSync(dirname(path), { recursive: true });
    writeFileSync(path, `${text}\n`);
  }

  mount(type: string, options: string, root = '/', at = 'cg'): void {
    this.#mounts += `30 20 0:1 ${root} ${join(this.root, at)} rw - ${type} cgroup ${options}\n`;
    this.put('proc/self/mountinfo', this.#mounts);
  }

  /** A group of version 2. */
  group2(name: string, files: Readonly<Record<string, string | number>>): void {
    for (const [file, value] of Object.entries(files)) this.put(`cg${name}/${file}`, value);
  }
}

test('without limits: what is available, swap included, less what the process needs itself', (t) => {
  assert.equal(memoryRoom(-1, new Machine(t).paths).bytes, 8 * GiB - KEPT_16G);
  const { bytes, limit } = memoryRoom(-1, new Machine(t, 8, GiB).paths);
  assert.equal(bytes, 9 * GiB - KEPT_16G);
  assert.match(limit, /8 GiB of the machine's 16 GiB and 1 GiB of swap are available/);
  assert.equal(memoryRoom(-1, new Machine(t, 0).paths).bytes, 0);
  assert.equal(memoryRoom(-1, { proc: '/nowhere', sysfs: '/nowhere' }).bytes, Infinity);
});

test('version 2: every group above counts, memory.high too, and files that are cached can go', (t) => {
  const machine = new Machine(t);
  machine.mount('cgroup2', 'rw');
  machine.put('proc/self/cgroup', '0::/outer/inner');
  machine.group2('/outer/inner', { 'memory.max': 'max', 'memory.high': 'max', 'memory.current': 5 * MiB });
  machine.group2('/outer', { 'memory.max': GiB, 'memory.high': 'max', 'memory.current': 600 * MiB });
  machine.group2('/outer', {
    'memory.stat': `anon 1\ninactive_file ${90 * MiB}\nactive_file ${30 * MiB}\nfile_mapped ${15 * MiB}\nfile_dirty ${5 * MiB}`,
  });
  const { bytes, limit } = memoryRoom(-1, machine.paths);
  assert.equal(bytes, (1024 - 600 + 100) * MiB - KEPT_1G);
  assert.match(limit, /524 MiB of the 1 GiB of .*\/outer\/memory\.max/);
  machine.group2('/outer/inner', { 'memory.high': 64 * MiB });
  assert.match(memoryRoom(-1, machine.paths).limit, /59 MiB of the 64 MiB of .*inner\/memory\.high/);
});

test('version 2: swap helps as far as the group may use it', (t) => {
  const machine = new Machine(t, 8, 4 * GiB);
  machine.mount('cgroup2', 'rw');
  machine.put('proc/self/cgroup', '0::/a');
  machine.group2('/a', { 'memory.max': GiB, 'memory.current': GiB, 'memory.swap.max': 0, 'memory.swap.current': 0 });
  assert.equal(memoryRoom(-1, machine.paths).bytes, 0);
  machine.group2('/a', { 'memory.swap.max': 512 * MiB, 'memory.swap.current': 112 * MiB });
  assert.equal(memoryRoom(-1, machine.paths).bytes, 400 * MiB - KEPT_1G);
  machine.group2('/a', { 'memory.swap.max': 'max' });
  assert.equal(memoryRoom(-1, machine.paths).bytes, 4 * GiB - KEPT_1G);
});

test('version 1: the limit of memory, and that of memory and swap together', (t) => {
  const machine = new Machine(t, 8, 4 * GiB);
  machine.mount('cgroup', 'rw,cpu', '/', 'cpu');
  machine.mount('cgroup', 'rw,memory');
  machine.put('proc/self/cgroup', '5:cpu,cpuacct:/elsewhere\n4:memory:/a:b/c\n0::/');
  const files = {
    'memory.limit_in_bytes': GiB,
    'memory.usage_in_bytes': 200 * MiB,
    'memory.stat': `inactive_file ${GiB}\ntotal_inactive_file ${24 * MiB}`,
  };
  machine.group2('/a:b', files);
  machine.group2('/a:b/c', { 'memory.limit_in_bytes': '9223372036854771712', 'memory.usage_in_bytes': 1 });
  assert.equal(memoryRoom(-1, machine.paths).bytes, (1024 - 200 + 24) * MiB + 4 * GiB - KEPT_1G);
  machine.group2('/a:b', { 'memory.memsw.limit_in_bytes': GiB, 'memory.memsw.usage_in_bytes': 300 * MiB });
  const { bytes, limit } = memoryRoom(-1, machine.paths);
  assert.equal(bytes, (1024 - 300 + 24) * MiB - KEPT_1G);
  assert.match(limit, /memsw/);
});

test('in a container the group that is mounted is the root', (t) => {
  const machine = new Machine(t);
  machine.mount('cgroup2', 'rw', '/docker/abc');
  machine.put('proc/self/cgroup', '0::/docker/abc/job');
  machine.group2('', { 'memory.max': GiB, 'memory.current': 0 });
  machine.group2('/job', { 'memory.max': 'max', 'memory.current': 0 });
  assert.equal(memoryRoom(-1, machine.paths).bytes, GiB - KEPT_1G);
  machine.put('proc/self/cgroup', '0::/../elsewhere');
  assert.equal(memoryRoom(-1, machine.paths).bytes, GiB - KEPT_1G);
});

test('a node has what it has, and so have the nodes that a process may use', (t) => {
  const machine = new Machine(t);
  machine.put('proc/self/status', 'Mems_allowed_list:\t0-1');
  machine.put('sys/devices/system/node/online', '0-1');
  for (const [node, free] of [1, 7].entries()) {
    const counts = {
      MemTotal: 8 * GiB,
      MemFree: free * GiB,
      'Active(file)': 100 * MiB,
      'Inactive(file)': 50 * MiB,
      SReclaimable: 10 * MiB,
    };
    const lines = Object.entries(counts).map(([name, bytes]) => `Node ${node} ${name}: ${bytes / KiB} kB`);
    machine.put(`sys/devices/system/node/node${node}/meminfo`, lines.join('\n'));
  }
  assert.equal(memoryRoom(-1, machine.paths).bytes, 8 * GiB - KEPT_16G);
  assert.equal(memoryRoom(0, machine.paths).bytes, GiB + 160 * MiB - 128 * MiB);
  assert.match(memoryRoom(0, machine.paths).limit, /NUMA node 0/);
  machine.put('proc/self/status', 'Mems_allowed_list:\t0');
  assert.equal(memoryRoom(-1, machine.paths).bytes, GiB + 160 * MiB - 128 * MiB);
});

test('hugepages: every group above counts, in both versions', (t) => {
  const machine = new Machine(t);
  assert.equal(hugePageRoom(2 * MiB, machine.paths).bytes, Infinity);
  machine.mount('cgroup2', 'rw');
  machine.put('proc/self/cgroup', '0::/a/b');
  machine.group2('/a', { 'hugetlb.2MB.max': 8 * MiB, 'hugetlb.2MB.current': 6 * MiB });
  machine.group2('/a/b', {
    'hugetlb.2MB.max': 'max',
    'hugetlb.2MB.current': 0,
    'hugetlb.1GB.max': 0,
    'hugetlb.1GB.current': 0,
  });
  const { bytes, limit } = hugePageRoom(2 * MiB, machine.paths);
  assert.equal(bytes, 2 * MiB);
  assert.match(limit, /2 MiB of the 8 MiB of .*\/a\/hugetlb\.2MB\.max are left/);
  assert.equal(hugePageRoom(GiB, machine.paths).bytes, 0);
  assert.equal(hugePageRoom(64 * KiB, machine.paths).bytes, Infinity);
});
