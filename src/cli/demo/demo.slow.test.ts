import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { createHash, randomBytes } from 'node:crypto';
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { describe, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { GiB, KiB } from '../../index.js';
import { documentOf, Room, type Ended } from '../../../test/shared/command.js';

interface Area {
  name: string;
  mode: string;
  va: string;
  iova: string;
  length: number;
  mapMicroseconds: number;
  bytesMoved: number;
  gigabytesPerSecond: number;
  sha256: string;
  verified: boolean;
}

const areasOf = (ended: Ended): Area[] => documentOf(ended)['areas'] as Area[];

/** A file in `room` with random content. */
function makeFile(room: Room, name: string, bytes: number): { path: string; sha256: string } {
  const content = randomBytes(bytes);
  const path = room.file(name);
  writeFileSync(path, content);
  return { path, sha256: createHash('sha256').update(content).digest('hex') };
}

/** Makes koffi impossible to load, as on machines that it has no binary for. */
function withoutKoffi(room: Room): Record<string, string> {
  const hook = room.file('hook.cjs');
  writeFileSync(
    hook,
    `const M = require('node:module'); const load = M._load;
     M._load = function (name, ...rest) { if (name === 'koffi') throw new Error('none'); return load.call(this, name, ...rest); };`,
  );
  return { NODE_OPTIONS: `--require ${hook}` };
}

/** The most bytes of memory that a process has had at once, while it is there. */
function residentMost(pid = 0): number {
  try {
    const [, kib = '0'] = /^VmHWM:\s*(\d+)/m.exec(readFileSync(`/proc/${pid}/status`, 'utf8')) ?? [];
    return Number(kib) * KiB;
  } catch {
    return 0;
  }
}

describe('anydma demo', { concurrency: 2 }, () => {
  test('shows the whole way, and leaves nothing behind', async () => {
    using room = new Room();
    const { status, stdout, stderr } = await room.run(['demo', '--size', '3MiB']);
    assert.equal(status, 0, stderr);
    assert.equal(stderr, '');
    assert.match(stdout, /copy\.sock, a copy engine that runs in process \d+/);
    assert.match(stdout, /^AREA +VA +IOVA +LENGTH +MAP TIME +BYTES MOVED +GB\/s +VERIFIED$/m);
    assert.match(stdout, /^memory \(external\) +0x[0-9a-f]+ +0x[0-9a-f]+ +3 MiB .* 3145728 .* yes$/m);
    assert.match(stdout, /was refused:\n {2}0x[0-9a-f]+ was unmapped .* of 3 MiB of memory/);
    assert.ok(!stdout.includes('\x1b'));
    assert.deepEqual(room.leftovers(), []);
    assert.deepEqual(room.processes(), []);
  });

  test('--json is one document with everything in it', async () => {
    using room = new Room();
    const file = makeFile(room, 'data.bin', 5001);
    const ended = await room.call(['demo', '--size', '1MiB', '--file', file.path, '--json']);
    assert.equal(ended.status, 0, ended.stderr);
    assert.equal(ended.stderr, '');
    const { schema, ok, device, areas, afterUnmap, ...rest } = documentOf(ended);
    assert.equal(schema, 'demo/1');
    assert.equal(ok, true);
    assert.match(device as string, /^vfio-user:.*copy\.sock$/);
    assert.deepEqual(rest, {});
    const { refused, explain } = afterUnmap as { refused: boolean; explain: string };
    assert.equal(refused, true);
    const [memory, second] = areas as Area[];
    assert.ok(explain.startsWith(`${memory.iova} was unmapped`), explain);
    for (const area of [memory, second]) {
      const keys = Object.keys(area).join();
      assert.equal(keys, 'name,mode,va,iova,length,mapMicroseconds,bytesMoved,gigabytesPerSecond,sha256,verified');
      assert.match(area.va, /^0x[0-9a-f]+$/);
      assert.match(area.iova, /^0x[0-9a-f]+$/);
      assert.ok(area.mapMicroseconds > 0 && area.gigabytesPerSecond > 0);
      assert.equal(area.verified, true);
    }
    assert.equal(memory.mode, 'external');
    assert.deepEqual([memory.length, memory.bytesMoved], [1048576, 1048576]);
    assert.equal(second.mode, 'external');
    assert.equal(second.name, file.path);
    assert.deepEqual([second.length, second.bytesMoved], [8192, 5001]);
    assert.equal(second.sha256, file.sha256);
    assert.deepEqual(room.leftovers('data.bin'), []);
    assert.deepEqual(room.processes(), []);
  });

  for (const bytes of [1, 4095, 4096, 4097, 3_000_001])
    test(`takes files of any length: ${bytes}`, async () => {
      using room = new Room();
      const file = makeFile(room, 'data.bin', bytes);
      const ended = await room.call(['demo', '--device', 'vdev:copy0', '--size', '1', '--file', file.path, '--json']);
      assert.equal(ended.status, 0, ended.stderr);
      const [, area] = areasOf(ended);
      assert.deepEqual(
        [area.sha256, area.verified, area.bytesMoved, area.length],
        [file.sha256, true, bytes, Math.ceil(bytes / 4096) * 4096],
      );
    });

  // In bytes; blocks of the library's own are as long as was asked for, the others are whole pages.
  for (const [mode, length] of [
    ['external', 12288],
    ['heap', 12288],
    ['owned', 10001],
  ] as const)
    for (const device of [undefined, 'vdev:copy0'])
      test(`--mode ${mode} on ${device ?? 'a device in another process'}`, async () => {
        using room = new Room();
        const where = device === undefined ? [] : ['--device', device];
        const ended = await room.call(['demo', '--mode', mode, '--size', '10001', ...where, '--json']);
        assert.equal(ended.status, 0, ended.stderr);
        assert.equal(ended.stderr, '');
        const { ok, afterUnmap } = documentOf(ended);
        const areas = areasOf(ended);
        const [area] = areas;
        assert.deepEqual(
          [ok, areas.length, area.name, area.mode, area.length, area.bytesMoved, area.verified],
          [true, 1, 'memory', mode, length, 10001, true],
        );
        assert.match(area.sha256, /^[0-9a-f]{64}$/);
        assert.ok(area.mapMicroseconds > 0);
        const { refused, explain } = afterUnmap as { refused: boolean; explain: string };
        assert.equal(refused, true);
        assert.ok(explain.startsWith(`${area.iova} was unmapped`), explain);
        assert.deepEqual(room.leftovers(), []);
        assert.deepEqual(room.processes(), []);
      });

  test('--mode all is an area for each mode, and one for the file', async () => {
    using room = new Room();
    const file = makeFile(room, 'data.bin', 5001);
    const args = ['demo', '--mode', 'all', '--size', '3MiB', '--file', file.path];
    const ended = await room.call([...args, '--json']);
    assert.equal(ended.status, 0, ended.stderr);
    const areas = areasOf(ended);
    assert.deepEqual(
      areas.map(({ name, mode, verified }) => [name, mode, verified]),
      [
        ['memory', 'external', true],
        ['memory', 'heap', true],
        ['memory', 'owned', true],
        [file.path, 'external', true],
      ],
    );
    assert.equal(areas[3].sha256, file.sha256);
    const shapes = new Set(areas.map((area) => Object.keys(area).join()));
    assert.deepEqual(
      [...shapes],
      ['name,mode,va,iova,length,mapMicroseconds,bytesMoved,gigabytesPerSecond,sha256,verified'],
    );
    assert.equal((documentOf(ended)['afterUnmap'] as { refused: boolean }).refused, true);

    const { status, stdout } = await room.call(args);
    assert.equal(status, 0);
    for (const mode of ['external', 'heap', 'owned'])
      assert.match(stdout, new RegExp(`^memory \\(${mode}\\) +0x.* yes$`, 'm'));
    assert.equal(stdout.match(/ was refused:\n {2}0x[0-9a-f]+ was unmapped/g)?.length, 4, stdout);
    assert.deepEqual(room.leftovers('data.bin'), []);
    assert.deepEqual(room.processes(), []);
  });

  test("the library's own memory needs system calls; a heap does not", async () => {
    using room = new Room();
    const heap = await room.run(['demo', '--mode', 'heap', '--size', '64k', '--json'], withoutKoffi(room));
    assert.equal(heap.status, 0, heap.stderr);
    assert.deepEqual(
      areasOf(heap).map(({ mode, verified }) => [mode, verified]),
      [['heap', true]],
    );
    const owned = await room.run(['demo', '--mode', 'owned', '--size', '64k', '--json'], withoutKoffi(room));
    assert.equal(owned.status, 1);
    assert.equal((documentOf(owned)['error'] as { code: string }).code, 'ENOTSUP');
  });

  const bad: [what: string, name: string, make: (path: string) => void, code: string, says: RegExp][] = [
    ['an empty file', 'empty', (path) => writeFileSync(path, ''), 'EINVAL', /empty is empty/],
    ['a directory', 'folder', (path) => mkdirSync(path), 'EINVAL', /folder is not a regular file/],
    ['no file', 'missing', () => {}, 'ENOENT', /missing: no such file or directory/],
  ];
  for (const [what, name, make, code, says] of bad)
    test(`refuses ${what}`, async () => {
      using room = new Room();
      const path = room.file(name);
      make(path);
      const ended = await room.call(['demo', '--file', path, '--json']);
      assert.equal(ended.status, 1);
      const { ok, error } = documentOf(ended);
      assert.equal(ok, false);
      assert.equal((error as { code: string }).code, code);
      assert.match(ended.stderr, says);
      assert.deepEqual(room.leftovers(name), []);
    });

  test('refuses a device that can not copy, with a hint', async () => {
    using room = new Room();
    const name = 'bus=vdev,name=edu0/driver=raw';
    const { status, stdout, stderr } = await room.call(['demo', '--device', name]);
    assert.equal(status, 1);
    assert.equal(stdout, '');
    assert.match(
      stderr,
      /^anydma: demo: this command can not make the device copy; its driver is raw on vdev:edu0\nhint: .*anydma map/,
    );
  });

  test('an edu device copies by its buffer, a little unless more is asked for', async () => {
    using room = new Room();
    const { status, stdout, stderr } = await room.call(['demo', '--device', 'vdev:edu0', '--mode', 'all']);
    assert.equal(status, 0, stderr);
    assert.match(stdout, /^The device is vdev:edu0, an edu device, which copies 2 KiB at a time/);
    for (const mode of ['external', 'heap', 'owned'])
      assert.match(stdout, new RegExp(`^memory \\(${mode}\\) .* 8 KiB .* 8192 .* yes$`, 'm'));
    assert.equal(stdout.match(/the next access of the device was refused:$/gm)?.length, 3);
    const more = await room.call(['demo', '--device', 'vdev:edu0', '--size', '20k', '--json']);
    assert.equal(areasOf(more)[0].bytesMoved, 20480);
  });

  test('an edu device that nothing keeps out is found out by what it moved', async () => {
    using room = new Room();
    const ended = await room.call(['demo', '--device', 'vdev:edu0,iommu=identity,dma-mask=48', '--json']);
    assert.equal(ended.status, 1, ended.stdout);
    assert.match(ended.stderr, /can still access memory that was unmapped/);
  });

  test('a device that nothing keeps out is a failure', async () => {
    using room = new Room();
    const ended = await room.call(['demo', '--device', 'vdev:copy0,iommu=identity', '--size', '64k', '--json']);
    assert.equal(ended.status, 1);
    const { ok, afterUnmap } = documentOf(ended);
    assert.equal(ok, false);
    assert.equal((afterUnmap as { refused: boolean }).refused, false);
    assert.match(ended.stderr, /can still access memory that was unmapped/);
  });

  test('without system calls it uses what there is, and says so', async () => {
    using room = new Room();
    const file = makeFile(room, 'data.bin', 10_000);
    const args = ['demo', '--size', '1MiB', '--file', file.path, '--json'];
    const ended = await room.run(args, withoutKoffi(room));
    assert.equal(ended.status, 0, ended.stderr);
    assert.match(ended.stderr, /koffi can not be loaded/);
    assert.equal(documentOf(ended)['device'], 'vdev:copy0');
    const [memory, second] = areasOf(ended);
    assert.deepEqual([memory.mode, memory.verified], ['external', true]);
    assert.deepEqual([second.mode, second.verified, second.sha256], ['external', true, file.sha256]);
  });

  test('a signal to the whole group, as a terminal sends it, is told once', async () => {
    using room = new Room();
    const main = fileURLToPath(new URL('../main.js', import.meta.url));
    for (const [signal, status] of [
      ['SIGINT', 130],
      ['SIGTERM', 143],
    ] as const) {
      const child = spawn(process.execPath, [main, 'demo', '--size', '4GiB'], {
        env: { ...process.env, NO_COLOR: '1', TMPDIR: room.path },
        stdio: ['ignore', 'pipe', 'pipe'],
        detached: true,
      });
      let stderr = '';
      child.stderr.setEncoding('utf8').on('data', (text: string) => (stderr += text));
      const closed = new Promise((resolve) => child.once('close', resolve));
      await new Promise((resolve) => child.stdout.once('data', resolve));
      process.kill(-(child.pid ?? 0), signal);
      assert.equal(await closed, status, stderr);
      assert.equal(stderr, `anydma: demo: interrupted by ${signal}\n`);
      assert.deepEqual([room.leftovers(), room.processes()], [[], []]);
    }
  });

  for (const [signal, status, mode] of [
    ['SIGINT', 130, 'external'],
    ['SIGINT', 130, 'heap'],
    ['SIGTERM', 143, 'owned'],
  ] as const)
    test(`cleans up after ${signal}, while it takes 4 GiB: ${mode}`, async () => {
      using room = new Room();
      const running = room.start(['demo', '--size', '4GiB', '--mode', mode]);
      await running.saying('a copy engine that runs in process');
      assert.equal(room.processes().length, 1);
      running.child.kill(signal);
      let most = 0;
      const watch = setInterval(() => (most = Math.max(most, residentMost(running.child.pid))), 20);
      const ended = await running.ended;
      clearInterval(watch);
      assert.ok(most < 4 * GiB, `it took ${most} bytes before it heard the signal`);
      assert.equal(ended.status, status);
      assert.match(ended.stderr, new RegExp(`^anydma: demo: interrupted by ${signal}\n$`));
      assert.deepEqual(room.leftovers(), []);
      assert.deepEqual(room.processes(), []);
    });

  test('anydma map hears a signal too, while it takes memory', async () => {
    using room = new Room();
    const running = room.start(['map', '--device', 'vdev:copy0', '--size', '4GiB']);
    await running.saying('driven by');
    running.child.kill('SIGTERM');
    let most = 0;
    const watch = setInterval(() => (most = Math.max(most, residentMost(running.child.pid))), 20);
    const { status, stderr } = await running.ended;
    clearInterval(watch);
    assert.equal(status, 143);
    assert.equal(stderr, 'anydma: map: interrupted by SIGTERM\n');
    assert.ok(most < 4 * GiB, `it took ${most} bytes before it heard the signal`);
  });
});
