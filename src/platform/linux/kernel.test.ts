import { spawnSync } from 'node:child_process';
import {
  chmodSync,
  existsSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';
import assert from 'node:assert/strict';
import { throwsDmaOf } from '../../../test/shared/errors.js';
import { isDmaError } from '../../errors.js';
import { loadLibc } from './libc.js';
import { linuxKernel } from './kernel.js';
import { openPlatform } from '../open.js';
import type { KernelRoute } from '../ports.js';
import { NOBODY, runAsNobody, whyNotAsNobody } from '../../../test/shared/users.js';

const platform = openPlatform();
const { kernel } = platform;
const skip = platform.limitation ?? false;
const directory = mkdtempSync(join(tmpdir(), 'kernel-'));
after(() => rmSync(directory, { recursive: true }));

test('texts are read and written, and never made', { skip }, () => {
  const path = join(directory, 'setting');
  assert.equal(kernel.readText(path), undefined);
  throwsDmaOf('ENOENT', 'open', () => kernel.writeText(path, '1'));
  assert.equal(existsSync(path), false);
  writeFileSync(path, 'before');
  kernel.writeText(path, '12');
  assert.equal(kernel.readText(path), '12');
  throwsDmaOf('EISDIR', 'open', () => kernel.writeText(directory, '1'));
  throwsDmaOf('EINVAL', 'write', () => kernel.writeText('a\0b', '1'));
  assert.match(kernel.readText('/proc/self/status') ?? '', /^Name:/);
});

test('the kernel’s refusal of a value is thrown', { skip }, (t) => {
  const path = '/proc/self/oom_score_adj';
  const before = kernel.readText(path);
  if (before === undefined) return t.skip('there is no /proc');
  assert.throws(
    () => kernel.writeText(path, 'nonsense'),
    (error) => isDmaError(error, 'EINVAL') && error.operation === 'write' && error.reason.includes(path),
  );
  kernel.writeText(path, before.trim());
});

test('directories are listed in order, and made with those above them', { skip }, () => {
  const path = join(directory, 'a', 'b');
  assert.deepEqual(kernel.list(path), []);
  kernel.makeDirectory(path);
  kernel.makeDirectory(path);
  for (const name of ['2', '10', '1']) writeFileSync(join(path, name), '');
  assert.deepEqual(kernel.list(path), ['1', '10', '2']);
  throwsDmaOf('ENOTDIR', 'mkdir', () => kernel.makeDirectory(join(path, '1', 'x')));
  throwsDmaOf('ENOTDIR', 'mkdir', () => kernel.makeDirectory(join(path, '1')));
});

test('a directory that can not be made is an error, in /proc too, where none ever can', { skip }, () => {
  throwsDmaOf('ENOENT', 'mkdir', () => kernel.makeDirectory('/proc/x'));
  throwsDmaOf('ENOENT', 'mkdir', () => kernel.makeDirectory('/proc/x/y'));
});

test('a path has one real name', { skip }, () => {
  const path = join(directory, 'real');
  kernel.makeDirectory(path);
  symlinkSync(path, join(directory, 'name'));
  const real = kernel.realPath(path);
  assert.equal(kernel.realPath(join(directory, 'name')), real);
  assert.equal(kernel.realPath(`${path}/../real/`), real);
  assert.equal(kernel.realPath(join(directory, 'nothing')), undefined);
});

test('links are read, and nothing else is one', { skip }, () => {
  const path = join(directory, 'link');
  symlinkSync('../not/there', path);
  assert.equal(kernel.readLink(path), '../not/there');
  assert.equal(kernel.readLink(directory), undefined);
  assert.equal(kernel.readLink(join(directory, 'nothing')), undefined);
  assert.equal(kernel.readLink('a\0b'), undefined);
});

test('what may be opened is told without opening it', { skip }, (t) => {
  const path = join(directory, 'node');
  assert.equal(kernel.mayOpen(path), 'no-such-file');
  writeFileSync(path, '');
  assert.equal(kernel.mayOpen(path), 'yes');
  assert.equal(kernel.mayOpen(join(path, 'x')), 'no-such-file');
  chmodSync(path, 0o400);
  if (process.getuid?.() !== 0) return assert.equal(kernel.mayOpen(path), 'no-permission');
  // Root may open everything: ask as somebody else.
  chmodSync(directory, 0o755);
  const why = whyNotAsNobody(directory);
  if (why !== undefined) return t.skip(why);
  const url = new URL('../open.js', import.meta.url).href;
  const answer = runAsNobody(
    `import { openPlatform } from '${url}'; console.log(openPlatform().kernel.mayOpen('${path}'))`,
  );
  assert.equal(answer.trim(), 'no-permission');
});

test('the log of the kernel is text', { skip }, (t) => {
  const log = kernel.log();
  if (log === undefined) return t.skip('the kernel does not show its log to this process');
  assert.match(log, /^<\d+>/);
});

test('owners are changed, and -1 leaves them', { skip }, (t) => {
  const path = join(directory, 'owned');
  throwsDmaOf('ENOENT', 'chown', () => kernel.changeOwner(path, -1, -1));
  writeFileSync(path, '');
  const { uid, gid } = statSync(path);
  kernel.changeOwner(path, uid, -1);
  if (uid !== 0) return throwsDmaOf('EPERM', 'chown', () => kernel.changeOwner(path, 0, -1));
  try {
    kernel.changeOwner(path, NOBODY, -1);
  } catch (error) {
    return t.skip(String(error));
  }
  assert.deepEqual([statSync(path).uid, statSync(path).gid], [NOBODY, gid]);
  kernel.changeOwner(path, -1, 12);
  assert.deepEqual([statSync(path).uid, statSync(path).gid], [NOBODY, 12]);
});

test('file systems are mounted and unmounted by who may', { skip }, () => {
  const target = join(directory, 'mount');
  kernel.makeDirectory(target);
  const options = { source: 'nodev', target, type: 'tmpfs', options: 'size=64K' };
  throwsDmaOf('EINVAL', 'mount', () => kernel.mount({ ...options, options: 'a\0b' }));
  throwsDmaOf('ENOENT', 'mount', () => kernel.mount({ ...options, target: '' }));
  let mounted = false;
  try {
    kernel.mount(options);
    mounted = true;
  } catch (error) {
    assert.ok(isDmaError(error, 'EPERM'));
  }
  assert.equal(readFileSync('/proc/mounts', 'utf8').includes(` ${target} tmpfs `), mounted);
  if (mounted) kernel.unmount(target);
  assert.throws(() => kernel.unmount(target), { operation: 'umount2' });
});

test('nodes of devices are told by kind and number, and nothing else is one', { skip }, () => {
  assert.deepEqual(kernel.nodeAt('/dev/null'), { kind: 'character', number: '1:3' });
  assert.equal(kernel.nodeAt(directory), undefined);
  assert.equal(kernel.nodeAt(join(directory, 'nothing')), undefined);
});

test('a claim is of the very device that was meant', { skip }, () => {
  const node = { kind: 'character', number: '1:3' } as const;
  const claim = kernel.claim('/dev/null', node);
  claim[Symbol.dispose]();
  claim[Symbol.dispose]();
  throwsDmaOf('ENOENT', 'open', () => kernel.claim('/dev/null', { ...node, number: '1:5' }));
  throwsDmaOf('ENOENT', 'open', () => kernel.claim('/dev/null', { ...node, kind: 'block' }));
  throwsDmaOf('ENOENT', 'open', () => kernel.claim(join(directory, 'nothing'), node));
});

test('routes of all tables are read: those of the loopback interface are in the local one', { skip }, () => {
  const index = Number(kernel.readText('/sys/class/net/lo/ifindex'));
  const local = kernel.routes().filter(({ interfaces }) => interfaces.includes(index));
  for (const { table, destination, family } of local) {
    assert.ok(table > 0);
    assert.match(destination, family === 4 ? /^\d+\.\d+\.\d+\.\d+\/\d+$/ : /^[\da-f:]+\/\d+$/);
  }
  if (/^127\.0\.0\.1$|0100007F/m.test(kernel.readText('/proc/net/fib_trie') ?? '') || local.length > 0)
    assert.ok(
      local.some(({ type, table, destination }) => type === 'local' && table === 255 && destination === '127.0.0.1/32'),
    );
});

test('a network namespace of its own: another table, several hops, next hops with numbers, IPv6', { skip }, (t) => {
  const script = `
    import { openPlatform } from ${JSON.stringify(new URL('../open.js', import.meta.url).href)};
    const { kernel } = openPlatform();
    const indexOf = (name) => Number(kernel.readText('/sys/class/net/' + name + '/ifindex')) || undefined;
    console.log(JSON.stringify(kernel.routes()));`;
  const ip = [
    'ip link add name one type dummy && ip link add name two type dummy && ip link set one up && ip link set two up',
    'ip address add 192.0.2.1/24 dev one && ip address add 198.51.100.1/24 dev two',
    'ip route add 10.0.0.0/8 dev one table 1234',
    'ip route add 10.0.0.0/8 nexthop via 192.0.2.9 nexthop via 198.51.100.9',
    'ip route add fd00:0:1::/48 dev two',
    'ip route add unreachable 10.9.0.0/16',
    'ip nexthop add id 7 dev two && ip route add 10.7.0.0/16 nhid 7 && sysctl -qw net.ipv4.nexthop_compat_mode=0',
    '"$0" --input-type=module -e "$1"; ip -o link',
  ].join('\n');
  const { stdout, status } = spawnSync('unshare', ['--net', 'sh', '-ec', ip, process.execPath, script], {
    encoding: 'utf8',
  });
  if (status !== 0) return t.skip('no network namespace can be made here, or dummy interfaces are missing');
  const [json, ...links] = stdout.split('\n');
  const indexOf = (name: string): number =>
    Number(links.map((line) => /^(\d+): (\w+)/.exec(line)).find((m) => m?.[2] === name)?.[1]);
  const routes = JSON.parse(json) as KernelRoute[];
  const find = (destination: string): KernelRoute[] => routes.filter((route) => route.destination === destination);
  const [a, b] = [indexOf('one'), indexOf('two')];
  assert.deepEqual(
    find('10.0.0.0/8').map(({ table, interfaces }) => [table, interfaces]),
    [
      [254, [a, b]],
      [1234, [a]],
    ],
  );
  assert.deepEqual(find('10.7.0.0/16')[0].interfaces, [b]);
  assert.deepEqual(
    find('fd00:0:1::/48').map(({ family, interfaces }) => [family, interfaces]),
    [[6, [b]]],
  );
  assert.equal(find('10.9.0.0/16')[0].type, 'other');
  assert.deepEqual(
    find('198.51.100.1/32').map(({ type, interfaces }) => [type, interfaces]),
    [['local', [b]]],
  );
});

test('names of users and groups', { skip }, () => {
  assert.deepEqual([kernel.idOf('user', 'root'), kernel.idOf('group', 'root')], [0, 0]);
  assert.equal(kernel.idOf('user', 'no such user'), undefined);
  throwsDmaOf('EINVAL', 'getpwnam', () => kernel.idOf('user', 'a\0b'));
});

test("a kernel's log that is not shown is none; every other failure is told", { skip }, () => {
  const libc = loadLibc();
  if (typeof libc === 'string') assert.fail(libc);
  for (const [errno, code] of [
    [1, undefined],
    [38, undefined],
    [24, 'EMFILE'],
    [12, 'ENOMEM'],
  ] as const)
    for (const failsAt of [1, 2]) {
      let calls = 0;
      const asked = linuxKernel({ ...libc, klogctl: () => (++calls === failsAt ? -1 : 4096), errno: () => errno });
      if (code === undefined) assert.equal(asked.log(), undefined);
      else throwsDmaOf(code, 'syslog', () => asked.log());
    }
});
