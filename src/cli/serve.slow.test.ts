import assert from 'node:assert/strict';
import { existsSync, writeFileSync } from 'node:fs';
import { describe, test } from 'node:test';
import { documentOf, Room, type Running } from '../../test/shared/command.js';

/** Starts a server in `room`, and waits until it is ready. */
async function served(room: Room, ...args: readonly string[]): Promise<{ server: Running; device: string }> {
  const server = room.start(['serve', ...args, '--socket', 'x.sock', '--json']);
  await server.saying('"ready":true');
  return { server, device: `vfio-user:${room.file('x.sock')}` };
}

interface Row {
  va: string;
  iova: string;
  length: number;
  mode: string;
  iovas: string[];
  pageSize: number;
  entries: number;
  access: string;
  source: string;
  mapMicroseconds: number;
  unmapMicroseconds: number;
}

describe('anydma serve and map', { concurrency: 2 }, () => {
  test('a served device can be mapped, and nothing is left behind', async () => {
    using room = new Room();
    const { server, device } = await served(room, 'edu', '--dma-mask', '40');
    const ended = await room.call(['map', '--device', device, '--size', '2MiB', '--json']);
    assert.equal(ended.status, 0, ended.stderr);
    assert.equal(ended.stderr, '');
    const document = documentOf(ended);
    assert.deepEqual([document['ok'], document['device'], document['driver']], [true, device, 'edu']);
    const { kind, granule, entryLimit, windows } = document['domain'] as Record<string, never>;
    assert.deepEqual([kind, granule], ['vfio-user', 4096]);
    // Half of the mappings that its process may still make.
    assert.ok(entryLimit > 1000 && entryLimit < 65530 / 2, String(entryLimit));
    assert.ok(Array.isArray(windows));
    const [row] = document['mappings'] as Row[];
    assert.deepEqual([row.length, row.access, row.source], [2 ** 21, 'read-write', 'memfd']);
    assert.match(row.va, /^0x[0-9a-f]+$/);
    assert.ok(Number(row.iova) + row.length <= 2 ** 28, 'the driver of edu keeps IOVAs below 2^28');
    assert.ok(row.mapMicroseconds > 0 && row.unmapMicroseconds > 0);

    server.child.kill('SIGTERM');
    const { status, stdout, stderr } = await server.ended;
    assert.equal(status, 143);
    assert.deepEqual(JSON.parse(stdout), {
      schema: 'serve/1',
      ready: true,
      socket: room.file('x.sock'),
      device: 'edu',
      pid: server.child.pid,
    });
    assert.match(stderr, /^anydma: a client has connected\nanydma: the client is gone/);
    assert.deepEqual(room.leftovers(), []);
    assert.deepEqual(room.processes(), []);
  });

  test('many pieces at chosen addresses, until the device takes no more', async () => {
    using room = new Room();
    const { server, device } = await served(room, 'edu', '--max-dma-maps', '3');
    const args = ['map', '--device', device, '--size', '4k', '--iova', '0x100000'];
    const fits = await room.call([...args, '--count', '3', '--access', 'read', '--source', 'anonymous', '--json']);
    assert.equal(fits.status, 0, fits.stderr);
    const rows = documentOf(fits)['mappings'] as Row[];
    assert.deepEqual(
      rows.map(({ iova, access, source }) => [iova, access, source]),
      ['0x100000', '0x101000', '0x102000'].map((iova) => [iova, 'read', 'anonymous']),
    );

    const tooMany = await room.call([...args, '--count', '4', '--json']);
    assert.equal(tooMany.status, 1);
    const { ok, error } = documentOf(tooMany);
    const { code, operation, hint, range } = error as Record<string, never>;
    assert.deepEqual([ok, code, operation], [false, 'ENOSPC', 'dmaMapAsync']);
    assert.deepEqual((error as { device: string }).device, device);
    assert.equal(typeof hint, 'string');
    assert.equal(range['length'], 4096);

    const people = await room.call([...args, '--count', '4']);
    assert.equal(people.status, 1);
    assert.match(people.stdout, /at most 3 mappings/);
    assert.match(people.stdout, /0x100000[^]*0x101000[^]*0x102000/);
    assert.match(people.stderr, /^anydma: dmaMapAsync: .*\nhint: .*\n$/);
    server.child.kill('SIGINT');
    assert.equal((await server.ended).status, 130);
    assert.deepEqual(room.leftovers(), []);
  });

  test('a file can be mapped', async () => {
    using room = new Room();
    writeFileSync(room.file('data.bin'), 'x'.repeat(5000));
    const args = ['map', '--device', 'vdev:copy0', '--file', room.file('data.bin'), '--json'];
    const reading = await room.call(args);
    assert.equal(reading.status, 0, reading.stderr);
    const [row] = documentOf(reading)['mappings'] as Row[];
    assert.deepEqual([row.length, row.access, row.source], [8192, 'read', 'file']);
    const writing = await room.call([...args, '--access', 'read-write']);
    assert.equal(writing.status, 0, writing.stderr);
    const [other] = documentOf(writing)['mappings'] as Row[];
    assert.equal(other.access, 'read-write');
  });

  test('each mode says what had to be mapped', async () => {
    using room = new Room();
    const { server, device } = await served(room, 'edu');
    const args = ['map', '--device', device, '--size', '64k', '--mode', 'all', '--count', '2'];
    const ended = await room.call([...args, '--json']);
    assert.equal(ended.status, 0, ended.stderr);
    assert.equal(ended.stderr, '');
    const rows = documentOf(ended)['mappings'] as Row[];
    assert.deepEqual(
      rows.map(({ mode, length, source }) => [mode, length, source]),
      ['external', 'external', 'heap', 'heap', 'owned', 'owned'].map((mode) => [mode, 65536, 'memfd']),
    );
    // The second block is where the first one's memory is, which the device reaches already.
    assert.deepEqual(
      rows.map(({ entries }) => entries),
      [1, 1, 1, 1, 1, 0],
    );
    for (const { iova, iovas, pageSize, unmapMicroseconds } of rows) {
      assert.deepEqual(iovas, [iova]);
      assert.ok(pageSize >= 4096 && unmapMicroseconds > 0);
    }
    const { status, stdout } = await room.call(args);
    assert.equal(status, 0);
    assert.match(stdout, /^MODE +VA +IOVA +LENGTH +PAGES OF +ENTRIES +ACCESS +MEMORY +MAP TIME +UNMAP TIME$/m);
    assert.match(stdout, /^heap: the program has nothing to map.*\nowned: the program has nothing to map/m);
    server.child.kill('SIGTERM');
    await server.ended;
    assert.deepEqual(room.leftovers(), []);
    assert.deepEqual(room.processes(), []);
  });

  test('the demo works on a served device; --once ends with the client', async () => {
    using room = new Room();
    const { server, device } = await served(room, 'copy', '--once');
    const ended = await room.call(['demo', '--device', device, '--size', '1MiB', '--json']);
    assert.equal(ended.status, 0, ended.stderr);
    assert.equal(documentOf(ended)['device'], device);
    const { status } = await server.ended;
    assert.equal(status, 0);
    assert.deepEqual(room.leftovers(), []);
  });

  test('two servers can not have one socket, and the second takes nothing away', async () => {
    using room = new Room();
    const { server } = await served(room, 'edu');
    const second = await room.run(['serve', 'edu', '--socket', 'x.sock', '--json']);
    assert.equal(second.status, 1);
    assert.equal((documentOf(second)['error'] as { code: string }).code, 'EADDRINUSE');
    assert.ok(existsSync(room.file('x.sock')));
    server.child.kill('SIGTERM');
    await server.ended;
    assert.ok(!existsSync(room.file('x.sock')));
  });

  test('a server that is killed while memory is mapped is a clear failure of the client', async () => {
    using room = new Room();
    const { server, device } = await served(room, 'copy');
    const client = room.start(['demo', '--device', device, '--size', '256MiB', '--json']);
    await server.saying('a client has connected');
    server.child.kill('SIGKILL');
    const ended = await client.ended;
    assert.equal(ended.status, 1);
    assert.equal(documentOf(ended)['ok'], false);
    assert.match(ended.stderr, /^anydma: /);
    assert.doesNotMatch(ended.stderr, /internal error/);
  });

  test('who nobody serves gets a reason and a hint', async () => {
    using room = new Room();
    const { status, stdout, stderr } = await room.call([
      'map',
      '--device',
      'vfio-user:/nowhere/x.sock',
      '--size',
      '4k',
    ]);
    assert.equal(status, 1);
    assert.equal(stdout, '');
    assert.match(stderr, /^anydma: .*\/nowhere\/x\.sock.*\nhint: there is no folder \/nowhere; .*"anydma serve .*\n$/);
  });
});
