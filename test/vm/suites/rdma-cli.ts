/** The commands of RDMA on Soft-RoCE, as users run them: rxe0 on one end of a veth pair, and processes that talk by it. */
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { after, before, test } from 'node:test';
import { documentOf, Room, type Ended, type Running } from '../../shared/command.js';
import { clearNetwork } from '../rdma-network.js';

const NETDEV = 'anycl0';
const ADDRESS = '192.0.2.11';

interface Moved {
  ok: boolean;
  verified: boolean;
  bytesMoved: number;
  gigabytesPerSecond: number;
  mode: string;
  latency?: { requests: number; median: number };
  remote?: { rkey: string; length: number };
  afterUnmap?: { refused: boolean; code: string; reason: string; explain: string };
}

function sh(command: string, ...args: string[]): string {
  return execFileSync(command, args, { encoding: 'utf8', stdio: ['ignore', 'pipe', 'inherit'] });
}

before(() => {
  clearNetwork();
  sh('ip', 'link', 'add', NETDEV, 'type', 'veth', 'peer', 'name', 'anycl1');
  sh('ip', 'addr', 'add', `${ADDRESS}/24`, 'dev', NETDEV);
  sh('ip', 'link', 'set', NETDEV, 'up');
  sh('ip', 'link', 'set', 'anycl1', 'up');
  sh('rdma', 'link', 'add', 'rxe0', 'type', 'rxe', 'netdev', NETDEV);
});

after(() => {
  sh('ip', 'link', 'del', NETDEV);
});

const room = new Room();
after(() => room[Symbol.dispose]());

/** Starts a server; it has to be ended. */
async function serve(...args: readonly string[]): Promise<{ server: Running; to: string }> {
  const server = room.start(['rdma', 'serve', '--port', '0', '--json', ...args]);
  let line = '';
  server.child.stdout?.on('data', (text: string) => (line += text));
  await server.saying('"ready":true');
  const { port, device, gid } = JSON.parse(line) as { port: number; device: string; gid: string };
  assert.equal(device, 'rxe0');
  assert.match(gid, /ffff:c000:020b$/);
  return { server, to: `${ADDRESS}:${port}` };
}

async function end({ child, ended }: Running): Promise<Ended> {
  child.kill('SIGINT');
  const how = await ended;
  assert.deepEqual([how.status, how.signal], [130, null], how.stderr);
  return how;
}

function moved(ended: Ended): Moved {
  assert.equal(ended.status, 0, ended.stderr + ended.stdout);
  assert.equal(ended.stderr, '');
  return JSON.parse(ended.stdout) as Moved;
}

/** What processes have on rxe0, apart from the kernel's own. */
function resources(): string {
  return sh('rdma', 'resource', 'show', 'qp', 'link', 'rxe0/1')
    .split('\n')
    .filter((line) => line.includes('pid '))
    .join('\n');
}

for (const mode of ['external', 'heap', 'owned'])
  test(`write, read and send, memory ${mode} on both sides, and an access after the unmap`, async () => {
    const { server, to } = await serve('--mode', mode);
    // Processes take seconds to start here.
    const verbs = mode === 'external' ? ['write', 'read', 'send'] : mode === 'heap' ? ['write', 'send'] : ['read'];
    for (const verb of verbs) {
      const late = verb === 'send' ? [] : ['--after-unmap'];
      const args = [
        '--size',
        '1000001',
        '--block',
        '64k',
        '--depth',
        '16',
        '--iterations',
        '2',
        '--mode',
        mode,
        ...late,
      ];
      const document = moved(await room.run(['rdma', verb, '--to', to, '--json', ...args]));
      assert.deepEqual([document.ok, document.verified, document.bytesMoved], [true, true, 2_000_002], verb);
      assert.ok(document.gigabytesPerSecond > 0);
      assert.ok((document.latency?.median ?? 0) > 0);
      if (verb === 'send') continue;
      const { refused, code, reason, explain } = document.afterUnmap ?? {
        refused: false,
        code: '',
        reason: '',
        explain: '',
      };
      assert.deepEqual([refused, code], [true, 'EACCES']);
      assert.match(reason, /REM_ACCESS_ERR/);
      assert.match(
        explain,
        mode === 'external' ? /the peer says: .* was unmapped \d+ ms ago/ : /the peer says: .* closed \d+ ms ago/,
      );
    }
    const { stderr } = await end(server);
    assert.equal(stderr.match(/all its resources are released/g)?.length, verbs.length, stderr);
    assert.equal(resources(), '');
  });

test('two clients at the same time; one that is killed takes nobody with it', async () => {
  const { server, to } = await serve();
  const [one, two] = await Promise.all(
    ['write', 'send'].map((verb) => room.run(['rdma', verb, '--to', to, '--size', '2MiB', '--json'])),
  );
  assert.ok(moved(one).ok && moved(two).ok);
  const endless = room.start(['rdma', 'write', '--to', to, '--size', '1MiB', '--iterations', '1000000']);
  await server.saying('writes to 1 MiB');
  endless.child.kill('SIGKILL');
  await endless.ended;
  assert.ok(moved(await room.run(['rdma', 'read', '--to', to, '--size', '1MiB', '--json'])).ok);
  const interrupted = room.start(['rdma', 'read', '--to', to, '--size', '512k', '--iterations', '1000000']);
  await server.saying('reads from 512 KiB');
  await end(interrupted);
  await end(server);
  assert.equal(resources(), '');
});

test('people get tables, and small blocks their latency', async () => {
  const { server, to } = await serve();
  const { status, stdout } = await room.run([
    'rdma',
    'write',
    '--to',
    to,
    '--size',
    '64k',
    '--block',
    '64',
    '--after-unmap',
  ]);
  assert.equal(status, 0);
  assert.match(stdout, /^write +external +64 KiB +64 bytes? .* yes$/m);
  assert.match(stdout, /^Latency of \d+ single requests: least /m);
  assert.match(stdout, /the next access was refused: .*\n {2}the peer says: 0x[0-9a-f]+ was unmapped/);
  await end(server);
});

test('who is not served gets a reason and a hint', async () => {
  const { status, stderr } = await room.run(['rdma', 'write', '--to', `${ADDRESS}:1`]);
  assert.equal(status, 1);
  assert.match(stderr, /^anydma: connect: .*ECONNREFUSED.*\nhint: .*\n$/);
  const { server, to } = await serve('--memory', '1MiB');
  const refused = await room.run(['rdma', 'write', '--to', to, '--size', '2MiB', '--json']);
  assert.equal(refused.status, 1);
  assert.equal((documentOf(refused)['error'] as { code: string }).code, 'ENOSPC');
  assert.ok(moved(await room.run(['rdma', 'write', '--to', to, '--size', '1MiB', '--json'])).ok);
  await end(server);
});

test('anydma devices lists rxe0', async () => {
  const { rdma } = documentOf(await room.run(['devices', '--json'])) as { rdma: Record<string, never>[] };
  const rxe0 = rdma.find(({ name }) => name === 'rdma:rxe0');
  assert.ok(rxe0 !== undefined);
  const [{ state, gids }] = rxe0['ports'] as { state: string; gids: { ipv4?: string }[] }[];
  assert.equal(state, 'active');
  assert.ok(gids.some(({ ipv4 }) => ipv4 === ADDRESS));
  assert.ok((rxe0['limits'] as { regions: number }).regions > 0);
  const one = await room.run(['devices', '--device', 'rdma:rxe0']);
  assert.equal(one.status, 0, one.stderr);
  assert.match(one.stdout, /driven by verbs\n[^]*verbs, in units of 4 KiB[^]*rxe0\/1 +active/);
});

test('anydma demo on rxe0, in each mode', async () => {
  const ended = await room.run(['demo', '--device', 'rdma:rxe0', '--mode', 'all', '--size', '2000001', '--json']);
  assert.equal(ended.status, 0, ended.stderr);
  const { ok, areas, afterUnmap } = documentOf(ended) as {
    ok: boolean;
    areas: { mode: string; verified: boolean; bytesMoved: number }[];
    afterUnmap: { refused: boolean; explain: string };
  };
  assert.ok(ok && afterUnmap.refused);
  assert.match(afterUnmap.explain, /was unmapped/);
  assert.deepEqual(
    areas.map(({ mode, verified, bytesMoved }) => [mode, verified, bytesMoved]),
    ['external', 'heap', 'owned'].map((mode) => [mode, true, 2000001]),
  );
});

test('anydma map on rxe0', async () => {
  const ended = await room.run(['map', '--device', 'rdma:rxe0', '--size', '2MiB', '--mode', 'all', '--json']);
  assert.equal(ended.status, 0, ended.stderr);
  const rows = documentOf(ended)['mappings'] as { lkey: string; va: string; iova: string }[];
  assert.equal(rows.length, 3);
  for (const { lkey, va, iova } of rows) assert.ok(/^0x[0-9a-f]+$/.test(lkey) && va === iova);
});
