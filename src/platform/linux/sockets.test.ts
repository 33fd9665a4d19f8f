import { spawn } from 'node:child_process';
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';
import assert from 'node:assert/strict';
import { throwsDmaOf } from '../../../test/shared/errors.js';
import { openPlatform } from '../open.js';
import { trackingPlatform } from '../../../test/fakes/platform/platforms.js';

const platform = trackingPlatform(openPlatform());
const { files, memory, sockets, events } = platform;
const skip = platform.limitation ?? false;
const directory = mkdtempSync(join(tmpdir(), 'sockets-'));
after(() => rmSync(directory, { recursive: true }));

const closeAll = (...fds: readonly number[]): void => fds.forEach((fd) => files.close(fd));
const text = (value: string): Uint8Array => new TextEncoder().encode(value);
const flagsOf = (fd: number): number =>
  parseInt(/^flags:\s*(\d+)/m.exec(readFileSync(`/proc/self/fdinfo/${fd}`, 'utf8'))?.[1] ?? '0', 8);

test('bytes go both ways, in order, and would-block is a value', { skip }, () => {
  const [a, b] = sockets.pair();
  const into = new Uint8Array(64);
  assert.equal(sockets.receive(b, into, 4), undefined);
  assert.equal(sockets.send(a, text('hello world'), 6, []), 5);
  assert.equal(sockets.send(a, text('!'), 0, []), 1);
  assert.deepEqual(sockets.receive(b, into, 4), { bytes: 6, fds: [], truncated: false });
  assert.equal(Buffer.from(into).toString('latin1', 0, 6), 'world!');
  assert.equal(sockets.send(b, new Uint8Array([1, 2, 3]).subarray(1, 2), 0, []), 1);
  const part = into.subarray(10, 12);
  assert.equal(sockets.receive(a, part, 0)?.bytes, 1);
  assert.equal(into[10], 2);
  closeAll(b);
  assert.equal(sockets.receive(a, into, 0)?.bytes, 0);
  throwsDmaOf('EPIPE', 'sendmsg', () => sockets.send(a, into, 0, []));
  closeAll(a);
  assert.deepEqual(platform.leaks(), []);
});

test('descriptors arrive as the same files, with close-on-exec', { skip }, () => {
  const [a, b] = sockets.pair();
  const sent = [1, 2, 3].map((each) => memory.memfd({ name: `m${each}`, length: 4096 * each }));
  assert.equal(sockets.send(a, text('x'), 0, sent), 1);
  const received = sockets.receive(b, new Uint8Array(8), 8);
  assert.ok(received);
  assert.equal(received.fds.length, 3);
  assert.equal(received.truncated, false);
  received.fds.forEach((fd, i) => {
    assert.ok(!sent.includes(fd));
    assert.equal(files.status(fd).size, 4096 * (i + 1));
    assert.notEqual(flagsOf(fd) & 0o2000000, 0);
  });
  files.writeAt(sent[1], 0, new Uint8Array([9]));
  const into = new Uint8Array(1);
  files.readAt(received.fds[1], 0, into);
  assert.equal(into[0], 9);
  assert.equal(platform.leaks().length, 8);
  closeAll(a, b, ...sent, ...received.fds);
  assert.deepEqual(platform.leaks(), []);
});

test('each count of descriptors that is one too small is told, and what came is kept', { skip }, () => {
  const [a, b] = sockets.pair();
  const into = new Uint8Array(8);
  for (const [sent, taken] of [
    [3, 2],
    [2, 1],
    [3, 0],
    [1, 1],
    [4, 3],
  ]) {
    const fds = Array.from({ length: sent }, () => events.create());
    sockets.send(a, text('x'), 0, fds);
    const received = sockets.receive(b, into, taken);
    assert.ok(received);
    assert.deepEqual([received.bytes, received.fds.length, received.truncated], [1, taken, sent > taken]);
    closeAll(...fds, ...received.fds);
  }
  // Nothing of an earlier message shows up in a later one.
  sockets.send(a, text('y'), 0, []);
  assert.deepEqual(sockets.receive(b, into, 253), { bytes: 1, fds: [], truncated: false });
  closeAll(a, b);
  assert.deepEqual(platform.leaks(), []);
});

test('as many descriptors as the kernel takes in a message', { skip }, () => {
  const [a, b] = sockets.pair();
  const fd = events.create();
  sockets.send(a, text('x'), 0, new Array<number>(253).fill(fd));
  const received = sockets.receive(b, new Uint8Array(8), 253);
  assert.equal(received?.fds.length, 253);
  assert.equal(new Set(received.fds).size, 253);
  throwsDmaOf('EINVAL', 'sendmsg', () => sockets.send(a, text('x'), 0, new Array<number>(254).fill(fd)));
  throwsDmaOf('EINVAL', 'recvmsg', () => sockets.receive(b, new Uint8Array(8), 254));
  closeAll(a, b, fd, ...received.fds);
  assert.deepEqual(platform.leaks(), []);
});

test('a receive ends with the message that carried descriptors', { skip }, () => {
  const [a, b] = sockets.pair();
  const fd = events.create();
  sockets.send(a, text('one'), 0, []);
  sockets.send(a, text('two'), 0, [fd]);
  sockets.send(a, text('three'), 0, []);
  const into = new Uint8Array(64);
  const first = sockets.receive(b, into, 4);
  assert.deepEqual([first?.bytes, first?.fds.length], [6, 1]);
  assert.deepEqual(sockets.receive(b, into, 4), { bytes: 5, fds: [], truncated: false });
  closeAll(a, b, fd, ...(first?.fds ?? []));
});

test('a full socket takes nothing, not even descriptors', { skip }, () => {
  const [a, b] = sockets.pair();
  const fd = events.create();
  const chunk = new Uint8Array(65536);
  let total = 0;
  for (let sent; (sent = sockets.send(a, chunk, 0, [])) > 0;) total += sent;
  assert.ok(total >= 65536);
  assert.equal(sockets.send(a, chunk, 0, [fd]), 0);
  const into = new Uint8Array(1 << 20);
  let received = 0;
  for (let got; (got = sockets.receive(b, into, 4)) !== undefined; received += got.bytes) assert.deepEqual(got.fds, []);
  assert.equal(received, total);
  closeAll(a, b, fd);
});

test('what can not be sent or received is refused', { skip }, () => {
  const [a, b] = sockets.pair();
  throwsDmaOf('EINVAL', 'sendmsg', () => sockets.send(a, new Uint8Array(4), 4, []));
  throwsDmaOf('EINVAL', 'sendmsg', () => sockets.send(a, new Uint8Array(4), -1, []));
  throwsDmaOf('EINVAL', 'sendmsg', () => sockets.send(a, new Uint8Array(4), 0.5, []));
  throwsDmaOf('EINVAL', 'sendmsg', () => sockets.send(a, new Uint8Array(0), 0, []));
  throwsDmaOf('EBADF', 'sendmsg', () => sockets.send(a, new Uint8Array(4), 0, [99999]));
  throwsDmaOf('EBADF', 'sendmsg', () => sockets.send(a, new Uint8Array(4), 0, [NaN]));
  throwsDmaOf('EBADF', 'sendmsg', () => sockets.send(-1, new Uint8Array(4), 0, []));
  throwsDmaOf('EINVAL', 'recvmsg', () => sockets.receive(b, new Uint8Array(0), 0));
  throwsDmaOf('EINVAL', 'recvmsg', () => sockets.receive(b, new Uint8Array(4), NaN));
  const detached = new Uint8Array(128);
  sockets.send(a, detached, 0, []);
  assert.equal(sockets.receive(b, detached, 0)?.bytes, 128);
  memory.detach(detached.buffer);
  throwsDmaOf('EINVAL', 'recvmsg', () => sockets.receive(b, detached, 0));
  throwsDmaOf('EINVAL', 'sendmsg', () => sockets.send(a, detached, 0, []));
  assert.equal(sockets.receive(b, new Uint8Array(4), 0), undefined);
  sockets.shutdown(a);
  assert.equal(sockets.receive(b, new Uint8Array(4), 0)?.bytes, 0);
  throwsDmaOf('EBADF', 'shutdown', () => sockets.shutdown(99999));
  closeAll(a, b);
});

test('a server is reached at its path, and the file stays when it is gone', { skip }, () => {
  const path = join(directory, 'server');
  throwsDmaOf('ENOENT', 'connect', () => sockets.connect(path));
  const server = sockets.listen(path, 4);
  assert.deepEqual(readdirSync(directory), ['server']);
  assert.equal(sockets.accept(server), undefined);
  const client = sockets.connect(path);
  const connection = sockets.accept(server);
  assert.ok(connection !== undefined);
  assert.notEqual(flagsOf(connection) & 0o4000, 0, 'non-blocking');
  assert.notEqual(flagsOf(connection) & 0o2000000, 0, 'close-on-exec');
  sockets.send(client, text('hi'), 0, []);
  assert.equal(sockets.receive(connection, new Uint8Array(8), 0)?.bytes, 2);
  throwsDmaOf('EADDRINUSE', 'listen', () => sockets.listen(path, 4));
  closeAll(client, connection, server);
  throwsDmaOf('ECONNREFUSED', 'connect', () => sockets.connect(path));
  const second = sockets.listen(path, 4);
  closeAll(sockets.connect(path), second);
  assert.deepEqual(readdirSync(directory), ['server']);
  assert.deepEqual(platform.leaks(), []);
  rmSync(path);
});

test('a server of somebody else is not replaced, nor is a file, nor where a link leads', { skip }, async () => {
  const path = join(directory, 'other');
  const server = createServer();
  await new Promise<void>((resolve) => server.listen(path, resolve));
  throwsDmaOf('EADDRINUSE', 'listen', () => sockets.listen(path, 1));
  await new Promise((resolve) => server.close(resolve));
  writeFileSync(path, 'precious');
  throwsDmaOf('EEXIST', 'listen', () => sockets.listen(path, 1));
  throwsDmaOf('EEXIST', 'listen', () => sockets.listen(directory, 1));
  const link = join(directory, 'link');
  symlinkSync(path, link);
  throwsDmaOf('EEXIST', 'listen', () => sockets.listen(link, 1));
  assert.equal(readFileSync(path, 'utf8'), 'precious');
  rmSync(path);
  rmSync(link);
  assert.deepEqual(readdirSync(directory), []);
  assert.deepEqual(platform.leaks(), []);
});

test('a full queue is EAGAIN, and its server counts as alive', { skip }, () => {
  const path = join(directory, 'full');
  const server = sockets.listen(path, 0);
  const clients: number[] = [];
  throwsDmaOf('EAGAIN', 'connect', () => {
    for (let i = 0; i < 10; i++) clients.push(sockets.connect(path));
  });
  assert.ok(clients.length > 0);
  throwsDmaOf('EADDRINUSE', 'listen', () => sockets.listen(path, 1));
  closeAll(server, ...clients);
  assert.deepEqual(platform.leaks(), []);
});

test('paths: 107 bytes fit, 108 do not, and bad ones are refused before anything is made', { skip }, () => {
  const longest = join(directory, 'x'.repeat(107 - directory.length - 1));
  const server = sockets.listen(longest, 1);
  closeAll(sockets.connect(longest), server);
  for (const action of [(path: string) => sockets.connect(path), (path: string) => sockets.listen(path, 1)]) {
    assert.throws(() => action(`${longest}x`), { code: 'ENAMETOOLONG' });
    assert.throws(() => action(join(directory, 'é'.repeat(50))), { code: 'ENAMETOOLONG' });
    assert.throws(() => action('a\0b'), { code: 'EINVAL' });
    assert.throws(() => action(''), { code: 'ENOENT' });
  }
  throwsDmaOf('ENOENT', 'bind', () => sockets.listen(join(directory, 'none/server'), 1));
  assert.ok(!existsSync(join(directory, 'none')));
  const umlaut = join(directory, 'grün');
  const other = sockets.listen(umlaut, 1);
  assert.ok(existsSync(umlaut));
  closeAll(other);
  assert.deepEqual(platform.leaks(), []);
});

test('of servers that begin at once on a socket whose server has ended, one serves and stays', { skip }, async () => {
  const folder = mkdtempSync(join(directory, 'begin-'));
  const path = join(folder, 'stale');
  const script = `
    const { openPlatform } = await import(${JSON.stringify(new URL('../open.js', import.meta.url).href)});
    const { sockets, files } = openPlatform();
    let fd;
    process.on('message', ({ at, path }) => {
      if (fd !== undefined) files.close(fd);
      fd = undefined;
      if (at === undefined) return process.disconnect();
      while (Date.now() < at);
      try {
        fd = sockets.listen(path, 4);
      } catch (error) {
        return process.send(error.code);
      }
      process.send('serves');
    });
    process.send('ready');`;
  const servers = Array.from({ length: 3 }, () =>
    spawn(process.execPath, ['--input-type=module', '-e', script], { stdio: ['ignore', 'inherit', 'inherit', 'ipc'] }),
  );
  const answers = (): Promise<unknown[]> =>
    Promise.all(servers.map((server) => new Promise((resolve) => server.once('message', resolve))));
  try {
    await answers();
    platform.files.close(sockets.listen(path, 4));
    for (let round = 0; round < 25; round++) {
      const outcome = answers();
      for (const server of servers) server.send({ at: Date.now() + 8, path });
      assert.deepEqual((await outcome).sort(), ['EADDRINUSE', 'EADDRINUSE', 'serves'], `round ${round}`);
      platform.files.close(sockets.connect(path));
      assert.deepEqual(readdirSync(folder), ['stale']);
      // The one that serves closes its socket at the next round, and the others find it stale.
    }
  } finally {
    const ended = servers.map((server) => new Promise((resolve) => server.once('exit', resolve)));
    for (const server of servers) server.send({});
    await Promise.all(ended);
    rmSync(folder, { recursive: true });
  }
  assert.deepEqual(platform.leaks(), []);
});
