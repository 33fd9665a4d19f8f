/** What was asked for of hugepages, and what is had: certain pages or an error that says why not, and notices otherwise. */
import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import {
  chmodSync,
  chownSync,
  linkSync,
  lstatSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmdirSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join, relative } from 'node:path';
import { describe, test, type TestContext } from 'node:test';
import { Eal } from './eal.js';
import { DmaError, isDmaError, type ErrorCode } from './errors.js';
import type { MemoryOptions } from './memory/owned/memory-settings.js';
import { openPlatform } from './platform/open.js';
import type { Platform } from './platform/ports.js';
import { hugePagesForTest } from '../test/shared/real-hugepages.js';
import { NOBODY, runAsNobody, whyNotAsNobody } from '../test/shared/users.js';
import { KiB, MiB } from './units.js';

const real = openPlatform();
const skip = real.limitation ?? false;
const P2 = 2 * MiB;
const PACKAGE = JSON.stringify(new URL('./index.js', import.meta.url).href);

const isError =
  (code: ErrorCode, ...texts: RegExp[]) =>
  (error: unknown): true => {
    if (!isDmaError(error)) throw error;
    assert.equal(error.code, code, error.message);
    for (const text of texts) assert.match(error.message, text);
    return true;
  };

/** Runs `use` with free hugepages and hugetlbfs mounts, one for each text of options. */
async function withMounts(
  t: TestContext,
  pages: number,
  mounts: readonly string[],
  use: (directories: string[]) => Promise<void>,
): Promise<void> {
  const borrowed = hugePagesForTest(real, pages);
  if (typeof borrowed === 'string') return t.skip(borrowed);
  const directories: string[] = [];
  try {
    for (const options of mounts) {
      const directory = mkdtempSync(join(tmpdir(), 'huge-'));
      const mounted = spawnSync('mount', ['-t', 'hugetlbfs', '-o', `pagesize=2M${options}`, 'none', directory]);
      if (mounted.status !== 0) {
        rmdirSync(directory);
        return t.skip('no hugetlbfs can be mounted here');
      }
      directories.push(directory);
    }
    await use(directories);
  } finally {
    for (const directory of directories) {
      spawnSync('umount', [directory]);
      rmdirSync(directory);
    }
    borrowed.giveBack();
  }
}

/** Allocates with these options, or tells how that failed. */
async function attempt(
  memory: MemoryOptions,
  platform: Platform = real,
): Promise<{ error?: unknown; notices: string[] }> {
  const notices: string[] = [];
  try {
    await using eal = await Eal.start({ platform, memory: { onNotice: (text) => notices.push(text), ...memory } });
    const block = eal.malloc(P2);
    block.bytes().fill(1);
    block.free();
    return { notices };
  } catch (error) {
    return { error, notices };
  }
}

/** The same as a user without rights, in a process of its own: `ok` and the kind of memory, or the error's code and text. */
function attemptAsNobody(memory: MemoryOptions): string {
  return runAsNobody(`
    import { Eal } from ${PACKAGE};
    try {
      const eal = await Eal.start({ memory: { ...${JSON.stringify(memory)}, onNotice: (text) => console.log('notice', text) } });
      eal.malloc(${P2}).bytes().fill(1);
      console.log('ok', eal.memory.facts().lists.map((list) => list.kind).join());
      await eal.stop();
    } catch (error) {
      console.log(error.code, error.message);
    }`);
}

const isRoot = process.geteuid?.() === 0;

describe('an explicit wish is had or fails with its own code', { skip }, () => {
  test('no hugetlbfs for files: not at the directory, none at all, none of that page size', async (t) => {
    const noMounts: Platform = {
      ...real,
      kernel: { ...real.kernel, readText: (path) => (path.endsWith('/mounts') ? '' : real.kernel.readText(path)) },
    };
    for (const wish of [{ filePrefix: 'mine' }, { hugeUnlink: 'always' }, { singleFileSegments: true }] as const)
      assert.ok(
        isError('ENOENT', /no hugetlbfs is mounted/, /anydma hugepages --mount/)((await attempt(wish, noMounts)).error),
      );
    assert.ok(isError('EINVAL', /no hugetlbfs is mounted at/)((await attempt({ hugeDir: tmpdir() })).error));
    assert.ok(isError('EINVAL', /no hugetlbfs is mounted at/)((await attempt({ hugeDir: '/no/such' })).error));
    const folder = mkdtempSync(join(tmpdir(), 'huge-'));
    t.after(() => rmSync(folder, { recursive: true }));
    const pipe = join(folder, 'pipe');
    assert.equal(spawnSync('mkfifo', [pipe]).status, 0);
    // What opens it and waits for its other end waits for ever.
    assert.ok(isError('EINVAL', /no hugetlbfs is mounted at/)((await attempt({ hugeDir: pipe })).error));
    // Ordinary pages that are listed too are no wish for hugepages alone.
    const both = await attempt({ filePrefix: 'mine', pageSizes: [P2, real.memory.pageSize] }, noMounts);
    assert.equal(both.error, undefined);
  });

  test('page sizes there are not: ENOTSUP with those there are', async (t) => {
    if (real.limits.freeHugePages(P2) === undefined) return t.skip('this kernel has no hugepages of 2 MiB');
    assert.ok(isError('ENOTSUP', /64 KiB/, /it has: .*2 MiB/)((await attempt({ pageSizes: [64 * KiB] })).error));
  });

  test('memfds that the system refuses', async (t) => {
    const borrowed = hugePagesForTest(real, 2);
    if (typeof borrowed === 'string') return t.skip(borrowed);
    const refusing: Platform = {
      ...real,
      memory: {
        ...real.memory,
        memfd: (options) => {
          if (options.hugePageSize === undefined) return real.memory.memfd(options);
          throw new DmaError({ code: 'EPERM', operation: 'memfd_create', reason: 'not for you' });
        },
      },
    };
    try {
      assert.ok(isError('EPERM', /not for you/)((await attempt({ pageSizes: [P2] }, refusing)).error));
      // A mere preference leaves a notice that names the cause.
      const { error, notices } = await attempt({}, refusing);
      assert.equal(error, undefined);
      assert.equal(notices.length, 1);
      assert.match(notices[0], /ordinary pages are used: .*not for you/);
    } finally {
      borrowed.giveBack();
    }
  });

  test('a mount that is read-only, too small, or without room for files', async (t) => {
    await withMounts(t, 4, [',ro', ',size=2M', ',size=64M,nr_inodes=1'], async ([readOnly, small, few]) => {
      assert.ok(isError('EROFS')((await attempt({ hugeDir: readOnly })).error));
      const tooLarge = async (hugeDir: string): Promise<unknown> => {
        await using eal = await Eal.start({ platform: real, memory: { hugeDir } });
        try {
          return eal.malloc(2 * P2);
        } catch (error) {
          return error;
        }
      };
      assert.ok(
        isError('ENOMEM', /0 bytes of the 2 MiB of its mount|2 MiB of the 2 MiB of its mount/)(await tooLarge(small)),
      );
      assert.ok(isError('ENOSPC')((await attempt({ hugeDir: few })).error));
      for (const directory of [small, few]) assert.deepEqual(readdirSync(directory), []);
    });
  });

  test('a prefix that another process has', async (t) => {
    await withMounts(t, 4, [''], async ([hugeDir]) => {
      await using other = await Eal.start({ platform: real, memory: { hugeDir, filePrefix: 'same' } });
      const block = other.malloc(64);
      assert.ok(isError('EBUSY', /is in use/)((await attempt({ hugeDir, filePrefix: 'same' })).error));
      block.free();
    });
  });

  test('a directory that is not for this user', { skip: whyNotAsNobody(tmpdir()) ?? false }, async (t) => {
    await withMounts(t, 4, [',mode=700', `,uid=${NOBODY},mode=700`], async ([roots, nobodys]) => {
      assert.match(attemptAsNobody({ hugeDir: roots }), /^EACCES/);
      assert.match(attemptAsNobody({ hugeDir: nobodys }), /^ok hugetlbfs/);
      // Without a directory every mount is tried, not the first alone.
      assert.match(attemptAsNobody({ filePrefix: 'tried' }), /^ok hugetlbfs/);
      assert.deepEqual(readdirSync(roots), []);
    });
  });
});

test('overcommitted hugepages are used', { skip }, async (t) => {
  const borrowed = hugePagesForTest(real, 1);
  if (typeof borrowed === 'string') return t.skip(borrowed);
  const directory = '/sys/kernel/mm/hugepages/hugepages-2048kB';
  const before = Object.fromEntries(
    ['nr_hugepages', 'nr_overcommit_hugepages'].map((name) => [
      name,
      readFileSync(join(directory, name), 'utf8').trim(),
    ]),
  );
  try {
    writeFileSync(join(directory, 'nr_hugepages'), '0');
    writeFileSync(join(directory, 'nr_overcommit_hugepages'), '8');
    await using eal = await Eal.start({ platform: real, memory: { pageSizes: [P2] } });
    using block = eal.malloc(2 * P2);
    block.bytes().fill(1);
    using memory = eal.external.allocate(P2, { hugePageSize: P2 });
    memory.bytes().fill(1);
  } finally {
    for (const [name, value] of Object.entries(before)) writeFileSync(join(directory, name), value);
    borrowed.giveBack();
  }
});

test('a directory is what the file system says, however its name is written', { skip }, async (t) => {
  await withMounts(t, 4, [''], async ([directory]) => {
    const link = `${directory}-link`;
    symlinkSync(directory, link);
    mkdirSync(join(directory, 'inside'));
    try {
      const names = [
        `${directory}/`,
        relative(process.cwd(), directory),
        link,
        `${link}/`,
        `${directory}/../${directory.split('/').at(-1) ?? ''}`,
      ];
      for (const hugeDir of [...names, join(directory, 'inside')]) {
        const { error } = await attempt({ hugeDir });
        assert.equal(error, undefined, `${hugeDir}: ${String(error)}`);
      }
    } finally {
      rmSync(link);
      rmdirSync(join(directory, 'inside'));
    }
  });
});

describe('files of others are left alone', { skip: skip || (!isRoot && 'it takes root to make them') }, () => {
  test('whatever has a file’s name: it is not taken unless it is this user’s own file', async (t) => {
    await withMounts(t, 4, [',mode=1777'], async ([hugeDir]) => {
      const path = join(hugeDir, 'mymap_0');
      const traps: [string, () => void][] = [
        ['of user', () => (writeFileIn(path), chownSync(path, NOBODY, NOBODY))],
        ['others may write', () => (writeFileIn(path), chmodSync(path, 0o666))],
        ['other names', () => (writeFileIn(join(hugeDir, 'first')), linkSync(join(hugeDir, 'first'), path))],
        ['a pipe', () => spawnSync('mkfifo', [path])],
        ['a directory', () => mkdirSync(path)],
      ];
      try {
        for (const [what, set] of traps) {
          set();
          for (const hugeUnlink of ['never', 'existing'] as const) {
            const { error } = await attempt({ hugeDir, filePrefix: 'my', hugeUnlink });
            assert.ok(isDmaError(error), `${what} was taken with ${hugeUnlink}`);
            assert.ok(['EPERM', 'EISDIR'].includes(error.code), error.message);
            // A clean-up leaves it too.
            assert.ok(
              lstatSync(path, { throwIfNoEntry: false }) !== undefined,
              `${what} was removed with ${hugeUnlink}`,
            );
          }
          rmSync(path, { recursive: true });
          rmSync(join(hugeDir, 'first'), { force: true });
        }
        assert.deepEqual(readdirSync(hugeDir), []);
        // Its own file is used again.
        assert.equal((await attempt({ hugeDir, filePrefix: 'my', hugeUnlink: 'never' })).error, undefined);
      } finally {
        for (const name of readdirSync(hugeDir)) rmSync(join(hugeDir, name), { recursive: true });
      }
    });
  });
});

/** A file of hugetlbfs, which can not be written by write(2). */
function writeFileIn(path: string): void {
  writeFileSync(path, '');
}
