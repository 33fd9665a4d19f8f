import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { existsSync } from 'node:fs';
import { describe, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { ERRNO } from '../errors.js';
import { openPlatform } from '../platform/open.js';
import type { CodeGuide } from './error-codes.js';
import { documentOf, Room } from '../../test/shared/command.js';

const COMMANDS = [
  'demo',
  'map',
  'devices',
  'bind',
  'unbind',
  'hugepages',
  'serve',
  'attach',
  'forward',
  'explain',
  'completion',
];

describe('anydma', { concurrency: 4 }, () => {
  test('lists its commands, and only those that there are', async () => {
    using room = new Room();
    const { status, stdout, stderr } = await room.call(['--help']);
    assert.equal(status, 0);
    assert.equal(stderr, '');
    const listed = [...stdout.matchAll(/^ {2}([a-z]+) (?:\[|<)/gm)].map((match) => match[1]);
    assert.deepEqual(listed, [...COMMANDS, 'help']);
  });

  for (const command of COMMANDS)
    test(`${command} --help teaches by examples`, async () => {
      using room = new Room();
      const { status, stdout } = await room.call([command, '--help']);
      assert.equal(status, 0);
      assert.match(stdout, /--json/);
      assert.match(stdout, new RegExp(`Examples:\n {2}\\$ anydma ${command}`));
    });

  test('says its version', async () => {
    using room = new Room();
    const { status, stdout } = await room.run(['--version']);
    assert.equal(status, 0);
    assert.match(stdout, /^\d+\.\d+\.\d+\n$/);
  });

  const wrong: [why: string, args: string[], says: RegExp][] = [
    ['no command', [], /Usage: anydma/],
    ['an unknown command', ['dance'], /unknown command 'dance'[^]*anydma --help/],
    ['an unknown option', ['demo', '--loud'], /unknown option '--loud'[^]*anydma demo --help/],
    ['a size that is none', ['demo', '--size', 'huge'], /'huge' is invalid[^]*64MiB[^]*anydma demo --help/],
    ['no size at all', ['demo', '--size', '0'], /'0' is invalid/],
    ['no device to map on', ['map', '--size', '4k'], /required option '--device <name>'/],
    ['nothing to map', ['map', '--device', 'vdev:edu0'], /one of --size and --file/],
    ['a mode that there is not', ['demo', '--mode', 'rented'], /Allowed choices are external, heap, owned, all/],
    [
      'an address for memory that the library maps',
      ['map', '--device', 'vdev:edu0', '--size', '4k', '--mode', 'owned', '--iova', '0x1000'],
      /--iova is for --mode external/,
    ],
    ['a file that is in every mode', ['map', '--device', 'vdev:edu0', '--mode', 'all', '--file', 'x'], /--file is for/],
    ['two things to map', ['map', '--device', 'vdev:edu0', '--size', '4k', '--file', 'x'], /cannot be used with/],
    ['a device that can not be served', ['serve', 'nic', '--socket', 's'], /Allowed choices are edu, copy/],
    ['a server whose socket has no name', ['serve', 'edu', '--socket', ''], /--socket needs the path/],
    ['a server without a socket', ['serve', 'edu'], /required option '--socket <path>'/],
    ['an option of another device', ['serve', 'copy', '--socket', 's', '--dma-mask', '28'], /--dma-mask is for edu/],
    ['a disk of another device', ['serve', 'edu', '--socket', 's', '--file', 'x'], /--file is for nvme, not for edu/],
    ['a key of no namespace', ['serve', 'nvme', '--socket', 's', '--namespace', 'x,colour=red'], /There is no colour/],
    ['a namespace without a size', ['serve', 'nvme', '--socket', 's', '--namespace', 'x,size'], /size takes a value/],
    ['a fault that is none', ['serve', 'nvme', '--socket', 's', '--fault', 'nth=3'], /what goes wrong: do=/],
    ['bits that no address has', ['serve', 'edu', '--socket', 's', '--dma-mask', '64'], /from 1 to 53/],
    ['no device to bind', ['bind'], /missing required argument 'device'/],
    ['an unknown code', ['explain', 'EWHAT'], /EWHAT/],
  ];
  for (const [why, args, says] of wrong)
    test(`wrong usage is status 2: ${why}`, async () => {
      using room = new Room();
      // The first one in a process of its own: its exit status is the command's.
      const { status, stdout, stderr } = await (args.length === 0 ? room.run(args) : room.call(args));
      assert.equal(status, 2, stderr);
      assert.equal(stdout, '');
      assert.match(stderr, says);
      assert.deepEqual(room.leftovers(), []);
    });

  test('does not mind that nobody reads its output', () => {
    const main = fileURLToPath(new URL('./main.js', import.meta.url));
    const script = `"$0" "$1" explain | true; "$0" "$1" devices --json | head -c 1; echo "\${PIPESTATUS[*]}"`;
    const { stdout, stderr } = spawnSync('bash', ['-c', script, process.execPath, main], { encoding: 'utf8' });
    assert.equal(stderr, '');
    assert.equal(stdout, '{0 0\n');
  });
});

describe(
  'what keeps a command from its work is told as a reason and a hint, not as a stack',
  { concurrency: 4 },
  () => {
    const main = fileURLToPath(new URL('./main.js', import.meta.url));
    const run = (script: string): string => {
      const { status, stderr } = spawnSync('bash', ['-c', script, process.execPath, main], { encoding: 'utf8' });
      assert.equal(status, 1, stderr);
      assert.doesNotMatch(stderr, /\n\s+at |internal error/);
      return stderr;
    };

    test('standard output is full', { skip: existsSync('/dev/full') ? false : 'there is no /dev/full' }, () => {
      assert.match(
        run('"$0" "$1" devices > /dev/full'),
        /^anydma: standard output can not be written: .*no space left/,
      );
      assert.match(run('"$0" "$1" devices --json > /dev/full'), /^anydma: standard output can not be written/);
      using room = new Room();
      run(`"$0" "$1" serve copy --socket ${room.file('x.sock')} > /dev/full`);
      assert.ok(!existsSync(room.file('x.sock')), 'the socket is left');
    });

    test('there is no temporary folder', { skip: openPlatform().limitation ?? false }, () => {
      assert.match(run('TMPDIR=/nonexistent "$0" "$1" demo'), /\/nonexistent: no such file[^]*hint: .*set TMPDIR/);
    });

    test('names of devices that can not be', async () => {
      using room = new Room();
      const says = async (name: string): Promise<string> => {
        const { status, stderr } = await room.call(['devices', '--device', name, '--json']);
        assert.equal(status, 1);
        assert.doesNotMatch(stderr, /\n\s+at |internal error/);
        return stderr;
      };
      assert.match(await says('vdev:nosuch'), /the bus vdev has no device .*"nosuch"\nhint: on vdev .*edu0, copy0/);
      assert.match(await says('pci:00:99.0'), /the bus pci has no device .*"00:99.0"\nhint: on pci .*at most 1f/);
      assert.match(await says('vfio-user:x.sock'), /the bus vfio-user .*\nhint: .*with a slash/);
      assert.match(await says('bogus'), /"bogus" names no bus, .*\nhint: write bus:name/);
    });
  },
);

describe('anydma explain', { concurrency: 4 }, () => {
  test('knows every code', async () => {
    using room = new Room();
    const { status, stdout } = await room.call(['explain', '--json']);
    assert.equal(status, 0);
    const { ok, codes } = JSON.parse(stdout) as { ok: boolean; codes: (CodeGuide & { code: string; errno: number })[] };
    assert.equal(ok, true);
    assert.ok(codes.length >= 40);
    for (const { code, errno } of codes) assert.equal(new Map<string, number>(Object.entries(ERRNO)).get(code), errno);
    for (const { code, meaning, causes, next } of codes)
      assert.ok(meaning !== '' && causes.length > 0 && next.length > 0, code);
  });

  test('takes names and numbers', async () => {
    using room = new Room();
    const ended = await room.call(['explain', 'eexist', '14', '-19', '--json']);
    assert.equal(ended.status, 0, ended.stderr);
    const codes = documentOf(ended)['codes'] as { code: string }[];
    assert.deepEqual(
      codes.map(({ code }) => code),
      ['EEXIST', 'EFAULT', 'ENODEV'],
    );
  });

  test('knows codes that only the system uses, by both of their names', async () => {
    using room = new Room();
    const ended = await room.call(['explain', 'EREMOTEIO', '61', 'EOPNOTSUPP', '--json']);
    assert.equal(ended.status, 0, ended.stderr);
    const codes = documentOf(ended)['codes'] as { code: string; meaning: string }[];
    assert.deepEqual(
      codes.map(({ code }) => code),
      ['EREMOTEIO', 'ENODATA', 'ENOTSUP'],
    );
    assert.match(codes[0].meaning, /remote I\/O error/);
  });

  test('is text for people', async () => {
    using room = new Room();
    const { stdout } = await room.call(['explain', 'EBUSY']);
    assert.match(stdout, /^EBUSY \(16\): .+\ncauses:\n {2}- [^]+what to do:\n {2}- /);
  });
});

describe('anydma devices', { concurrency: 4 }, () => {
  test('lists buses and drivers', async () => {
    using room = new Room();
    const ended = await room.call(['devices', '--json']);
    assert.equal(ended.status, 0, ended.stderr);
    assert.equal(ended.stderr, '');
    const { ok, platform, buses, drivers, devices } = documentOf(ended);
    assert.equal(ok, true);
    assert.equal(platform, 'linux');
    const names = (list: unknown): string[] => (list as { name: string }[]).map(({ name }) => name);
    assert.ok(['vdev', 'vfio-user'].every((bus) => names(buses).includes(bus)));
    assert.ok(['copy', 'edu', 'raw'].every((driver) => names(drivers).includes(driver)));
    assert.deepEqual(devices, []);
  });

  test('shows devices', async () => {
    using room = new Room();
    const ended = await room.call(['devices', '--device', 'vdev:edu0', 'vdev:copy1', '--json']);
    assert.equal(ended.status, 0, ended.stderr);
    const [edu, copy] = documentOf(ended)['devices'] as Record<string, never>[];
    assert.equal(edu['name'], 'vdev:edu0');
    assert.equal(edu['driver'], 'edu');
    assert.equal(edu['ids']['vendor'], '0x1234');
    assert.deepEqual(edu['domain']['windows'], [{ start: '0x0', end: '0x10000000' }]);
    assert.equal(edu['domain']['entryLimit'], null);
    assert.equal(copy['interrupts']['msi'], 1);
    assert.ok((copy['regions'] as { name: string }[]).some(({ name }) => name === 'BAR0'));
  });

  test('shows those that there are, and fails for those that are not', async () => {
    using room = new Room();
    const args = ['devices', '--device', 'vfio-user:/nowhere/x.sock', 'vdev:edu0'];
    const { status, stdout, stderr } = await room.call(args);
    assert.equal(status, 1);
    assert.match(stdout, /vdev:edu0, driven by edu/);
    assert.match(stderr, /^anydma: .*\/nowhere\/x\.sock/);
    const ended = await room.call([...args, '--json']);
    assert.equal(ended.status, 1);
    const { ok, devices } = documentOf(ended);
    assert.equal(ok, false);
    const [lost, edu] = devices as Record<string, never>[];
    assert.equal(lost['ok'], false);
    assert.equal(lost['error']['code'], 'ENOENT');
    assert.equal(edu['ok'], true);
  });
});
