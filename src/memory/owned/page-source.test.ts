import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { fstatSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test, type TestContext } from 'node:test';
import assert from 'node:assert/strict';
import { throwsDma } from '../../../test/shared/errors.js';
import fc from 'fast-check';
import { isDmaError } from '../../errors.js';
import { openPlatform } from '../../platform/open.js';
import type { LongStep } from '../../long-work.js';
import type { Platform } from '../../platform/ports.js';
import { portablePlatform } from '../../platform/portable.js';
import { failingPlatform, trackingPlatform } from '../../../test/fakes/platform/platforms.js';
import { hugePagesForTest } from '../../../test/shared/real-hugepages.js';
import { until } from '../../../test/shared/until.js';
import type { Va } from '../../units.js';
import { removeStale } from './hugepage-files.js';
import { HugePages } from '../hugepages.js';
import { anonymousPages, hugetlbfsPages, memfdPages, type PageSource } from './page-source.js';

const platform = trackingPlatform(openPlatform());
const { memory, files, limits } = platform;
const skip = platform.limitation ?? false;
const PAGE = memory.pageSize;
const PREFIX = 'test';

/** Every kind of source; those with files keep ordinary pages in an ordinary directory, which works the same way. */
const KINDS = ['anonymous', 'memfd', 'file', 'files', 'always', 'never', 'never-single'] as const;
type Kind = (typeof KINDS)[number];

function open(ports: Platform, kind: Kind, directory: string, pages = 16, pageSize = PAGE, node?: number): PageSource {
  const options = { pageSize, pages, node };
  if (kind === 'anonymous') return anonymousPages(ports, options);
  if (kind === 'memfd') return memfdPages(ports, { ...options, name: 'pages' });
  const singleFile = kind === 'file' || kind === 'never-single';
  const unlink = kind === 'always' ? kind : kind.startsWith('never') ? 'never' : undefined;
  return hugetlbfsPages(ports, { ...options, directory, prefix: PREFIX, singleFile, unlink });
}

function newDirectory(t: TestContext): string {
  const directory = mkdtempSync(join(tmpdir(), 'pages-'));
  t.after(() => rmSync(directory, { recursive: true }));
  return directory;
}

/** Addresses for a list of pages, for as long as `use` runs. */
function withReservation<T>(pages: number, pageSize: number, use: (at: (page: number) => Va) => T): T {
  const va = memory.reserve(pages * pageSize, pageSize);
  try {
    return use((page) => (va + page * pageSize) as Va);
  } finally {
    memory.unmap(va, pages * pageSize);
  }
}

/** Fills pages with a byte. */
function fill(va: Va, length: number, value: number): void {
  const buffer = memory.view(va, length);
  new Uint8Array(buffer).fill(value);
  memory.detach(buffer);
}

/** The only byte in pages. */
function content(va: Va, length: number): number {
  const buffer = memory.view(va, length);
  const bytes = new Uint8Array(buffer);
  const [first] = bytes;
  const same = Buffer.from(buffer).equals(Buffer.alloc(length, first));
  memory.detach(buffer);
  assert.ok(same, 'pages of different content');
  return first;
}

test('pages come zeroed, are backed as said, and go without a trace', { skip }, (t) => {
  for (const kind of KINDS) {
    const directory = newDirectory(t);
    const source = open(platform, kind, directory);
    withReservation(16, PAGE, (at) => {
      const runs = source.take(at(3), 4, 3);
      assert.equal(runs[0].va, at(3));
      assert.equal(
        runs.reduce((sum, run) => sum + run.length, 0),
        4 * PAGE,
      );
      assert.ok(runs.every((run) => !run.dirty));
      assert.equal(content(at(3), 4 * PAGE), 0);
      fill(at(3), 4 * PAGE, 5);
      for (const run of runs) {
        if (kind === 'anonymous') assert.equal(run.backing, undefined);
        else {
          assert.ok(run.backing !== undefined);
          const { fd, offset } = run.backing;
          const bytes = new Uint8Array(run.length);
          assert.equal(files.readAt(fd, offset, bytes), run.length);
          assert.ok(bytes.every((byte) => byte === 5));
          if (kind === 'memfd') assert.ok(files.sealedAgainstShrinking(fd, false));
        }
      }
      const names = readdirSync(directory);
      const expected = { file: ['testmap_0'], 'never-single': ['testmap_0'] } as Partial<Record<Kind, string[]>>;
      const each = ['testmap_3', 'testmap_4', 'testmap_5', 'testmap_6'];
      assert.deepEqual(names.sort(), expected[kind] ?? (['files', 'never'].includes(kind) ? each : []));

      source.giveBack(at(4), 2, 4);
      assert.equal(memory.protection(at(4), PAGE), 'none');
      assert.deepEqual([content(at(3), PAGE), content(at(6), PAGE)], [5, 5]);
      source.take(at(5), 1, 5);
      assert.equal(content(at(5), PAGE), 0);
      source.giveBack(at(5), 2, 5);
      source.giveBack(at(3), 1, 3);
      assert.equal(memory.protection(at(3), PAGE), 'none');
      assert.deepEqual(readdirSync(directory), []);
      assert.ok(platform.leaks().length === 1, platform.leaks().join());
    });
    source.close();
    source.close();
    assert.deepEqual([readdirSync(directory), platform.leaks()], [[], []], kind);
  }
});

test('pages of a single file are its own: what is given back is out of the file', { skip }, () => {
  const source = memfdPages(platform, { pageSize: PAGE, pages: 1000 });
  withReservation(1000, PAGE, (at) => {
    const [{ backing }] = source.take(at(0), 1000, 0);
    assert.ok(backing !== undefined);
    const blocks = (): number => (fstatSync(backing.fd).blocks * 512) / PAGE;
    assert.deepEqual([blocks(), fstatSync(backing.fd).size], [1000, 1000 * PAGE]);
    source.giveBack(at(10), 900, 10);
    assert.deepEqual([blocks(), fstatSync(backing.fd).size], [100, 1000 * PAGE]);
    source.close();
  });
  assert.deepEqual(platform.leaks(), []);
});

test('what is closed with pages taken leaves no file, except with never', { skip }, (t) => {
  for (const kind of KINDS) {
    const directory = newDirectory(t);
    const source = open(platform, kind, directory);
    withReservation(16, PAGE, (at) => {
      source.take(at(0), 2, 0);
      fill(at(0), 2 * PAGE, 7);
      source.close();
      // Still mapped, so still there.
      assert.equal(content(at(0), 2 * PAGE), 7);
      throwsDma('EINVAL', () => source.take(at(5), 1, 5), /closed/);
      throwsDma('EINVAL', () => source.giveBack(at(0), 2, 0), /closed/);
    });
    const keeps = kind === 'never' || kind === 'never-single';
    assert.equal(readdirSync(directory).length > 0, keeps, kind);
    if (keeps) {
      const again = open(platform, kind, directory);
      withReservation(16, PAGE, (at) => {
        const runs = again.take(at(0), 3, 0);
        assert.equal(runs[0].dirty, true);
        if (kind === 'never')
          assert.deepEqual(
            runs.map((run) => run.dirty),
            [true, true, false],
          );
        assert.equal(content(at(0), 2 * PAGE), 7);
        again.giveBack(at(0), 3, 0);
        again.close();
      });
      assert.deepEqual(readdirSync(directory), []);
    }
    assert.deepEqual(platform.leaks(), []);
  }
});

test('what a dead process left is made anew, what a live one has is EBUSY', { skip }, (t) => {
  const directory = newDirectory(t);
  writeFileSync(join(directory, 'testmap_1'), 'old');
  const first = open(platform, 'files', directory);
  const second = open(platform, 'files', directory);
  withReservation(16, PAGE, (at) => {
    const [run] = first.take(at(1), 1, 1);
    assert.equal(run.dirty, false);
    assert.equal(content(at(1), PAGE), 0);
    throwsDma('EBUSY', () => second.take(at(4), 4, 0), /testmap_1/);
    assert.deepEqual(readdirSync(directory), ['testmap_1']);
    assert.equal(memory.protection(at(4), PAGE), 'none');
    assert.deepEqual(removeStale(platform, directory, PREFIX), []);
    first.close();
    second.close();
  });
  assert.deepEqual(platform.leaks(), []);
});

test('impossible requests are refused, and change nothing', { skip }, (t) => {
  for (const kind of KINDS) {
    const source = open(platform, kind, newDirectory(t));
    withReservation(16, PAGE, (at) => {
      source.take(at(2), 2, 2);
      const before = platform.leaks();
      for (const [va, pages, index] of [
        [at(0), 0, 0],
        [at(0), -1, 0],
        [at(0), 0.5, 0],
        [at(0), NaN, 0],
        [at(0), 1, -1],
        [at(0), 1, 0.5],
        [at(0), 1, 16],
        [at(0), 17, 0],
        [at(0), 2, 15],
        [(at(0) + 1) as Va, 1, 0],
        [NaN as Va, 1, 0],
      ] as const) {
        throwsDma('EINVAL', () => source.take(va, pages, index));
        throwsDma('EINVAL', () => source.giveBack(va, pages, index));
      }
      throwsDma('EINVAL', () => source.take(at(3), 2, 3), /page 3 is taken/);
      throwsDma('EINVAL', () => source.giveBack(at(1), 2, 1), /page 1 is not/);
      // Not the reservation's addresses: nothing may be mapped there.
      throwsDma('EINVAL', () => source.take(at(16), 1, 5), /reservation/);
      assert.deepEqual(platform.leaks(), before);
      source.giveBack(at(2), 2, 2);
    });
    source.close();
    assert.deepEqual(platform.leaks(), []);
  }
});

test('impossible sources are refused', { skip }, () => {
  for (const pageSize of [0, 1, PAGE / 2, 3 * PAGE, NaN])
    throwsDma('EINVAL', () => memfdPages(platform, { pageSize, pages: 1 }));
  for (const pages of [0, -1, 0.5, NaN, 2 ** 50])
    throwsDma('EINVAL', () => memfdPages(platform, { pageSize: PAGE, pages }));
  for (const node of [-2, 0.5, NaN])
    throwsDma('EINVAL', () => anonymousPages(platform, { pageSize: PAGE, pages: 1, node }));
  const options = { pageSize: PAGE, pages: 1, directory: '/tmp' };
  throwsDma('EINVAL', () => hugetlbfsPages(platform, { ...options, prefix: '../x' }));
  throwsDma('EINVAL', () => hugetlbfsPages(platform, { ...options, prefix: 'x', firstFile: -1 }));
  assert.deepEqual(platform.leaks(), []);
});

test('without system calls it is ENOTSUP', () => {
  const source = memfdPages(portablePlatform('a test'), { pageSize: 4096, pages: 4 });
  throwsDma('ENOTSUP', () => source.take(0x1000 as Va, 1, 0), /a test/);
  source.close();
});

test('pages of the wrong node are refused and given back', { skip }, (t) => {
  for (const kind of KINDS) {
    const directory = newDirectory(t);
    const away = {
      ...platform,
      memory: { ...memory, bind: () => {}, nodesOf: () => Int32Array.of(1, 1, 0, 1) },
    };
    const source = open(away, kind, directory, 16, PAGE, 1);
    withReservation(16, PAGE, (at) => {
      throwsDma('ENOMEM', () => source.take(at(0), 4, 0), /page 2 of 4 is on NUMA node 0, not on 1/);
      assert.deepEqual([readdirSync(directory), platform.leaks().length], [[], 1]);
    });
    source.close();
    const own = open(platform, kind, directory, 16, PAGE, 0);
    withReservation(16, PAGE, (at) => {
      own.take(at(0), 4, 0);
      assert.ok(memory.nodesOf(at(0), PAGE, 4).every((node) => node <= 0));
      own.giveBack(at(0), 4, 0);
    });
    own.close();
  }
  assert.deepEqual(platform.leaks(), []);
});

test('whichever call fails, a take leaves nothing and can be done again', { skip }, (t) => {
  const swept = new Set<string>();
  for (const kind of KINDS) {
    for (const before of [0, 2]) {
      for (let n = 1; ; n++) {
        const directory = newDirectory(t);
        const failing = failingPlatform(platform);
        const source = open(failing, kind, directory, 16, PAGE, 0);
        const done = withReservation(16, PAGE, (at) => {
          if (before > 0) source.take(at(0), before, 0);
          const leaks = platform.leaks();
          const names = readdirSync(directory);
          failing.failCall(n, 'EIO');
          let error: unknown;
          try {
            source.take(at(4), 3, 4);
          } catch (caught) {
            error = caught;
          }
          const name = failing.failed();
          if (name === undefined) {
            assert.equal(error, undefined);
            return true;
          }
          swept.add(name);
          assert.ok(isDmaError(error, 'EIO') && error.operation === `${source.kind}.take`, String(error));
          assert.deepEqual(
            [error.undo, platform.leaks(), readdirSync(directory)],
            [[], leaks, names],
            `${kind} ${name}`,
          );
          source.take(at(4), 3, 4);
          assert.equal(content(at(4), 3 * PAGE), 0);
          return false;
        });
        source.close();
        assert.deepEqual(platform.leaks(), []);
        if (done) break;
      }
    }
  }
  for (const name of [
    'memory.commit',
    'memory.bind',
    'memory.populate',
    'memory.nodesOf',
    'memory.memfd',
    'files.lock',
  ])
    assert.ok(swept.has(name), `${name} was not made to fail`);
});

test('whichever call fails, what is given back is still there and can be given back again', { skip }, (t) => {
  for (const kind of KINDS) {
    for (const name of ['memory.decommit', 'files.punch', 'files.remove'] as const) {
      for (const all of [false, true]) {
        for (let n = 1; ; n++) {
          const directory = newDirectory(t);
          const failing = failingPlatform(platform);
          const source = open(failing, kind, directory);
          const done = withReservation(16, PAGE, (at) => {
            source.take(at(0), 4, 0);
            fill(at(0), 4 * PAGE, 9);
            const pages = all ? 4 : 2;
            failing.failCall(n, 'EIO', name);
            let error: unknown;
            try {
              source.giveBack(at(0), pages, 0);
            } catch (caught) {
              error = caught;
            }
            if (failing.failed() === undefined) {
              assert.equal(error, undefined);
              failing.failCall(Infinity, 'EIO');
            } else {
              assert.ok(isDmaError(error, 'EIO') && error.undo.length === 0, String(error));
              assert.equal(content(at(0), 4 * PAGE), 9);
              throwsDma('EINVAL', () => source.take(at(0), 1, 0));
              source.giveBack(at(0), pages, 0);
            }
            if (!all) source.giveBack(at(2), 2, 2);
            assert.deepEqual([readdirSync(directory), platform.leaks().length], [[], 1]);
            return error === undefined;
          });
          source.close();
          assert.deepEqual(platform.leaks(), [], kind);
          if (done) break;
        }
      }
    }
  }
});

test('any order of taking and giving back: content, zeroes and files as in a model', { skip }, (t) => {
  const step = fc.record({ take: fc.boolean(), index: fc.nat(15), pages: fc.integer({ min: 1, max: 5 }) });
  fc.assert(
    fc.property(fc.constantFrom(...KINDS), fc.array(step, { maxLength: 30 }), (kind, steps) => {
      const directory = newDirectory(t);
      const source = open(platform, kind, directory);
      withReservation(16, PAGE, (at) => {
        const model = new Array<number>(16).fill(0);
        let value = 0;
        for (const { take, index, pages } of steps) {
          const range = model.slice(index, index + pages);
          const possible = index + pages <= 16 && range.every((each) => (take ? each === 0 : each !== 0));
          const act = (): unknown =>
            take ? source.take(at(index), pages, index) : source.giveBack(at(index), pages, index);
          if (!possible) {
            throwsDma('EINVAL', act);
            continue;
          }
          act();
          value = (value % 250) + 1;
          if (take) {
            assert.equal(content(at(index), pages * PAGE), 0);
            fill(at(index), pages * PAGE, value);
          }
          model.fill(take ? value : 0, index, index + pages);
        }
        for (const [page, each] of model.entries()) {
          if (each === 0) assert.equal(memory.protection(at(page), PAGE), 'none');
          else assert.equal(content(at(page), PAGE), each);
        }
        const taken = model.filter((each) => each !== 0).length;
        const named = { files: taken, never: taken, file: Math.sign(taken), 'never-single': Math.sign(taken) };
        assert.equal(readdirSync(directory).length, (named as Partial<Record<Kind, number>>)[kind] ?? 0);
      });
      source.close();
      assert.deepEqual(platform.leaks(), []);
    }),
    { numRuns: 60 },
  );
});

/** A hugetlbfs of its own, for as long as `use` runs. */
async function withHugetlbfs(
  pageSize: number,
  use: (directory: string) => void | Promise<void>,
): Promise<string | undefined> {
  const directory = mkdtempSync(join(tmpdir(), 'hugetlbfs-'));
  const pages = new HugePages(platform.kernel);
  try {
    try {
      pages.mount(directory, { pageSize });
    } catch (error) {
      assert.ok(isDmaError(error, 'EPERM'), String(error));
      return 'this process may not mount a hugetlbfs';
    }
    try {
      await use(directory);
    } finally {
      pages.unmount(directory);
    }
  } finally {
    rmSync(directory, { recursive: true });
  }
  return undefined;
}

test(
  'real hugepages of every kind: taken on their node, counted, zeroed, and all back in the end',
  { skip },
  async (t) => {
    const borrowed = hugePagesForTest(platform, 4);
    if (typeof borrowed === 'string') return t.skip(borrowed);
    const { pageSize } = borrowed;
    const free = (): number => limits.freeHugePages(pageSize) ?? 0;
    const run = (kind: Kind, directory: string): void => {
      const before = free();
      const source = open(platform, kind, directory, before + 8, pageSize, 0);
      withReservation(before + 8, pageSize, (at) => {
        source.take(at(1), 2, 1);
        assert.equal(free(), before - 2);
        assert.equal(content(at(1), 2 * pageSize), 0);
        fill(at(1), 2 * pageSize, 0xaa);
        // More than there are, by much and by one: an error, not the end of the process.
        throwsDma('ENOMEM', () => source.take(at(3), before + 2, 3), /hugepages of 2 MiB are needed/);
        assert.equal(free(), before - 2);
        throwsDma('ENOMEM', () => source.take(at(3), before - 1, 3), /reserve more as root/);
        assert.equal(free(), before - 2);
        assert.equal(content(at(1), 2 * pageSize), 0xaa);
        source.take(at(3), before - 2, 3);
        assert.equal(free(), 0);
        assert.ok(memory.nodesOf(at(1), pageSize, before).every((node) => node <= 0));
        source.giveBack(at(2), before - 1, 2);
        assert.equal(free(), before - 1);
        source.take(at(2), 1, 2);
        assert.equal(content(at(2), pageSize), 0);
        source.giveBack(at(1), 2, 1);
        assert.equal(free(), before);
        source.take(at(0), 1, 0);
        source.close();
      });
      if (!kind.startsWith('never')) assert.equal(free(), before);
    };
    try {
      run('memfd', '');
      run('anonymous', '');
      const reason = await withHugetlbfs(pageSize, (directory) => {
        for (const kind of KINDS.slice(2)) {
          run(kind, directory);
          removeStale(platform, directory, PREFIX);
          assert.deepEqual(readdirSync(directory), []);
        }
      });
      if (reason !== undefined) t.diagnostic(reason);
    } finally {
      borrowed.giveBack();
    }
    assert.deepEqual(platform.leaks(), []);
  },
);

/** Grows and shrinks for ever; told to stop by SIGKILL only. */
const GROWING = (directory: string, pageSize: number, singleFile: boolean): string => `
  const { openPlatform } = await import(${JSON.stringify(new URL('../../platform/open.js', import.meta.url).href)});
  const { hugetlbfsPages } = await import(${JSON.stringify(new URL('./page-source.js', import.meta.url).href)});
  const platform = openPlatform();
  const pageSize = ${pageSize};
  const options = { pageSize, pages: 4, directory: ${JSON.stringify(directory)}, prefix: '${PREFIX}', singleFile: ${singleFile} };
  const source = hugetlbfsPages(platform, options);
  const va = platform.memory.reserve(4 * pageSize, pageSize);
  for (let round = 0; ; round++) {
    for (let i = 0; i < 4; i++) source.take(va + i * pageSize, 1, i);
    if (round === 0) process.stdout.write('growing');
    for (let i = 0; i < 4; i++) source.giveBack(va + i * pageSize, 1, i);
  }`;

async function killWhileGrowing(directory: string, pageSize: number, singleFile: boolean, ms: number): Promise<void> {
  const code = GROWING(directory, pageSize, singleFile);
  const child = spawn(process.execPath, ['--input-type=module', '-e', code], { stdio: ['ignore', 'pipe', 'inherit'] });
  try {
    await Promise.race([once(child.stdout, 'data'), once(child, 'exit')]);
    assert.equal(child.exitCode, null);
    await new Promise((resolve) => setTimeout(resolve, ms));
    // While it lives its files are not anybody's to remove.
    removeStale(platform, directory, PREFIX);
    assert.ok(readdirSync(directory).length <= 5);
    assert.equal(child.exitCode, null);
  } finally {
    const gone = child.exitCode === null ? once(child, 'exit') : undefined;
    child.kill('SIGKILL');
    await gone;
  }
}

test('killed in the middle of growing: the next start cleans up and has all pages', { skip }, async (t) => {
  const borrowed = hugePagesForTest(platform, 4);
  const pageSize = typeof borrowed === 'string' ? PAGE : borrowed.pageSize;
  const free = (): number => (typeof borrowed === 'string' ? 0 : (limits.freeHugePages(pageSize) ?? 0));
  const run = async (directory: string): Promise<void> => {
    writeFileSync(join(directory, 'other'), '');
    const before = free();
    let left = 0;
    for (const [i, singleFile] of [false, true, false, true].entries()) {
      await killWhileGrowing(directory, pageSize, singleFile, 3 * i);
      left += readdirSync(directory).length - 1;
      removeStale(platform, directory, PREFIX);
      assert.deepEqual(readdirSync(directory), ['other']);
      // Others that look at the process (as tests do in /proc) may keep its memory for a moment longer.
      await until(() => free() === before);
      const source = open(platform, singleFile ? 'file' : 'files', directory, 4, pageSize, 0);
      withReservation(4, pageSize, (at) => {
        source.take(at(0), 4, 0);
        assert.equal(content(at(0), 4 * pageSize), 0);
        source.giveBack(at(0), 4, 0);
        source.close();
      });
    }
    t.diagnostic(`${left} files were left by 4 killed processes and removed`);
    rmSync(join(directory, 'other'));
  };
  try {
    const reason = typeof borrowed === 'string' ? borrowed : await withHugetlbfs(pageSize, run);
    if (reason !== undefined) {
      t.diagnostic(`with ordinary files, because ${reason}`);
      await run(newDirectory(t));
    }
  } finally {
    if (typeof borrowed !== 'string') borrowed.giveBack();
  }
  assert.deepEqual(platform.leaks(), []);
});

test('files of single pages are made and closed in steps, between which work is given up and undone', { skip }, (t) => {
  const directory = newDirectory(t);
  const source = open(platform, 'files', directory, 64);
  withReservation(64, PAGE, (at) => {
    const countSteps = (steps: Generator<LongStep, unknown, void>): number => {
      let count = 0;
      for (let next = steps.next(); next.done !== true; next = steps.next(), count++) next.value.now();
      return count;
    };
    assert.ok(countSteps(source.taking(at(0), 64, 0)) >= 8);
    assert.ok(countSteps(source.givingBack(at(0), 64, 0)) >= 8);
    assert.deepEqual(readdirSync(directory), []);

    const steps = source.taking(at(0), 64, 0);
    steps.next();
    assert.notDeepEqual(readdirSync(directory), []);
    assert.throws(() => {
      for (let next = steps.throw(new Error('given up')); next.done !== true; next = steps.next()) next.value.now();
    }, /given up/);
    assert.deepEqual(readdirSync(directory), []);
  });
  source.close();
  assert.deepEqual(platform.leaks(), []);
});
