/** `anydma forward`, with captures that tshark reads too. */
import assert from 'node:assert/strict';
import { spawn, spawnSync } from 'node:child_process';
import { createReadStream, createWriteStream, mkdirSync, readFileSync, statSync, writeFileSync } from 'node:fs';
import { describe, test } from 'node:test';
import { documentOf, Room, type Ended } from '../../../test/shared/command.js';
import { until } from '../../../test/shared/until.js';
import { openPlatform } from '../../platform/open.js';
import { Eal } from '../../index.js';
import { CaptureReader, CaptureWriter } from '../../entry/net.js';

const tshark = spawnSync('tshark', ['--version']).error === undefined;
const NEEDS_CALLS = { skip: openPlatform().limitation ?? false };
const SKIP = { skip: tshark ? false : 'without tshark' };

/** A capture of `count` frames of UDP, of all lengths. */
function capture(count: number, seed = 1): Uint8Array {
  const parts: Uint8Array[] = [];
  const writer = new CaptureWriter('pcap', 1, (bytes) => parts.push(bytes.slice()));
  for (let i = 0; i < count; i++) {
    const length = 60 + ((i * 97 * seed) % 1455);
    const frame = Uint8Array.from({ length }, (_, byte) => (i + byte * seed) & 255);
    frame.set([2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0, 0x45, 0]);
    writer.begin({ seconds: 1_700_000_000 + i, nanos: (i * 1_234_567) % 1e9, wire: length + (i % 3) }, length);
    writer.add(frame);
    writer.end(length);
  }
  writer.flush();
  return Uint8Array.from(Buffer.concat(parts));
}

/** A capture of one frame. */
function captureOf(seconds: number, length: number): Uint8Array {
  const parts: Uint8Array[] = [];
  const writer = new CaptureWriter('pcapng', 1, (bytes) => parts.push(bytes.slice()));
  writer.begin({ seconds, nanos: 0, wire: length }, length);
  writer.add(new Uint8Array(length));
  writer.end(length);
  writer.flush();
  return Uint8Array.from(Buffer.concat(parts));
}

/** All frames, as texts. */
function framesOf(path: string): string[] {
  const reader = new CaptureReader();
  reader.push(readFileSync(path));
  const frames: string[] = [];
  for (let frame = reader.next(); frame !== undefined; frame = reader.next())
    frames.push(`${frame.seconds}.${frame.nanos} ${frame.wire} ${Buffer.from(frame.data).toString('hex')}`);
  reader.end();
  return frames;
}

/** What tshark reads in a capture. */
function asTshark(path: string): string {
  // A line with time and length for each frame, and all its bytes.
  const { stdout, status, stderr } = spawnSync('tshark', ['-n', '-t', 'e', '-x', '-r', path], {
    encoding: 'utf8',
    maxBuffer: 2 ** 28,
  });
  assert.equal(status, 0, stderr);
  return stdout;
}

/** What it says on standard error besides notes. */
function complaints({ stderr }: Ended): string {
  return stderr.replace(/^anydma: note: .*\n/gm, '');
}

/** Waits until other programs can attach to it, and its ports are started. */
async function attachable(room: Room, name: string): Promise<void> {
  await until(async () => {
    const { status, stdout } = await room.call(['attach', name, '--json']);
    return status === 0 && stdout.includes('"packets"');
  });
}

function good(ended: Ended): Ended {
  assert.equal(ended.status, 0, ended.stderr);
  return ended;
}

describe('anydma forward', { concurrency: 2 }, () => {
  for (const memory of ['owned', 'heap', 'anon', 'xmem'])
    for (const kind of ['pcap', 'pcapng'])
      test(`a capture as it is, to ${kind}, ${memory} memory`, async () => {
        using room = new Room();
        writeFileSync(room.file('in.pcap'), capture(3000));
        const args = [
          'forward',
          '--port',
          `vdev:pcap0,rx=${room.file('in.pcap')},tx=${room.file(`out.${kind}`)}`,
          '--memory',
          memory,
        ];
        const document = documentOf(good(await room.call([...args, '--json'])));
        assert.deepEqual(document.streams, [
          { from: 'vdev:pcap0', to: 'vdev:pcap0', received: 3000, sent: 3000, dropped: 0 },
        ]);
        assert.deepEqual(framesOf(room.file(`out.${kind}`)), framesOf(room.file('in.pcap')));
      });

  test('tshark reads the same in what was written', SKIP, async () => {
    using room = new Room();
    writeFileSync(room.file('in.pcap'), capture(500));
    for (const [rx, tx] of [
      ['in.pcap', 'out.pcapng'],
      ['out.pcapng', 'again.pcap'],
    ])
      good(await room.call(['forward', '--port', `vdev:pcap0,rx=${room.file(rx)},tx=${room.file(tx)}`]));
    const before = asTshark(room.file('in.pcap'));
    assert.ok(before.split('\n').length > 500);
    assert.equal(asTshark(room.file('out.pcapng')), before);
    assert.equal(asTshark(room.file('again.pcap')), before);
  });

  test('two ports, each to the other, changed on the way, and what passes as a capture', async () => {
    using room = new Room();
    writeFileSync(room.file('a.pcap'), capture(200, 1));
    writeFileSync(room.file('b.pcap'), capture(300, 3));
    const ports = ['a', 'b'].flatMap((name, i) => [
      '--port',
      `vdev:pcap${i},rx=${room.file(`${name}.pcap`)},tx=${room.file(`${name}.out`)}`,
    ]);
    good(
      await room.call(['forward', ...ports, '--mode', 'macswap', '--capture', room.file('all.pcapng'), '--burst', '7']),
    );
    const swapped = (frames: string[]): string[] =>
      frames.map((text) => text.replace(/ ([0-9a-f]{12})([0-9a-f]{12})/, ' $2$1'));
    assert.deepEqual(framesOf(room.file('b.out')), swapped(framesOf(room.file('a.pcap'))));
    assert.deepEqual(framesOf(room.file('a.out')), swapped(framesOf(room.file('b.pcap'))));
    assert.equal(framesOf(room.file('all.pcapng')).length, 500);
  });

  test('from a pipe, and to one', async () => {
    using room = new Room();
    writeFileSync(room.file('in.pcap'), capture(1000));
    for (const name of ['from', 'to']) assert.equal(spawnSync('mkfifo', [room.file(name)]).status, 0);
    const reader = spawn('cat', [room.file('to')], { stdio: ['ignore', 'pipe', 'inherit'] });
    const read = new Promise<void>((resolve) =>
      reader.stdout.pipe(createWriteStream(room.file('out'))).on('close', resolve),
    );
    await new Promise((resolve) => setTimeout(resolve, 200));
    const running = room.start(['forward', '--port', 'vdev:pcap0,rx=from,tx=to']);
    createReadStream(room.file('in.pcap'), { highWaterMark: 1000 }).pipe(createWriteStream(room.file('from')));
    good(await running.ended);
    await read;
    assert.deepEqual(framesOf(room.file('out')), framesOf(room.file('in.pcap')));
  });

  test('a pool of few elements', async () => {
    using room = new Room();
    writeFileSync(room.file('in.pcap'), capture(100));
    const port = `vdev:pcap0,rx=${room.file('in.pcap')},tx=${room.file('out')}`;
    good(await room.call(['forward', '--port', port, '--total-num-mbufs', '3']));
    assert.deepEqual(framesOf(room.file('out')), framesOf(room.file('in.pcap')));
  });

  test('Ctrl-C ends it cleanly, with what was done', async () => {
    using room = new Room();
    const running = room.start(['forward', '--port', 'vdev:null0,size=64', '--capture', 'all.pcapng']);
    while (statSync(room.file('all.pcapng'), { throwIfNoEntry: false })?.size === undefined)
      await new Promise((resolve) => setTimeout(resolve, 20));
    await new Promise((resolve) => setTimeout(resolve, 200));
    running.child.kill('SIGINT');
    const { status, stdout } = await running.ended;
    assert.equal(status, 130);
    assert.match(stdout, /vdev:null0/);
    assert.ok(framesOf(room.file('all.pcapng')).length > 0);
  });

  test('two programs, with rings between them: a capture goes through the other one', NEEDS_CALLS, async () => {
    using room = new Room();
    writeFileSync(room.file('in.pcap'), capture(3000));
    const name = `through-${process.pid}`;
    const ports = ['--port', 'vdev:pcap0,rx=in.pcap,tx=out.pcap', '--port', 'vdev:ring0,size=64'];
    const left = room.start(['forward', '--name', name, ...ports]);
    await attachable(room, name);
    const right = room.start(['forward', '--attach', name, '--port', 'vdev:ring0', '--mode', 'macswap', '--json']);
    const out = room.file('out.pcap');
    // Whole blocks are written; the rest when it ends.
    await until(() => (statSync(out, { throwIfNoEntry: false })?.size ?? 0) > 1_000_000);
    left.child.kill('SIGINT');
    const ended = await left.ended;
    assert.deepEqual([ended.status, complaints(ended)], [130, '']);
    const swapped = framesOf(room.file('in.pcap')).map((text) =>
      text.replace(/ ([0-9a-f]{12})([0-9a-f]{12})/, ' $2$1'),
    );
    const through = framesOf(out);
    assert.ok(through.length > 1000);
    assert.deepEqual(through, swapped.slice(0, through.length));
    const other = await right.ended;
    assert.equal(other.status, 1);
    assert.match(other.stderr, new RegExp(`the program ${name} .* has ended`));
    assert.equal((documentOf(other).error as { code: string }).code, 'ENODEV');
  });

  test('of two programs one may be killed, and the next one goes on', NEEDS_CALLS, async () => {
    using room = new Room();
    const name = `killed-${process.pid}`;
    const left = room.start(['forward', '--name', name, '--port', 'vdev:null0,size=64', '--port', 'vdev:ring0']);
    await attachable(room, name);
    const attach = ['forward', '--attach', name, '--port', 'vdev:ring0', '--mode', 'rxonly'];
    for (let round = 0; round < 3; round++) {
      const killed = room.start([...attach, '--capture', `${round}.pcap`]);
      await until(() => (statSync(room.file(`${round}.pcap`), { throwIfNoEntry: false })?.size ?? 0) > 1_000_000);
      killed.child.kill('SIGKILL');
      await killed.ended;
    }
    const last = good(await room.call([...attach, '--duration', '1', '--json']));
    const [port] = documentOf(last).ports as { rxPackets: number; rxBytes: number }[];
    assert.ok(port.rxPackets > 1000);
    assert.equal(port.rxBytes, port.rxPackets * 64);
    left.child.kill('SIGINT');
    const ended = await left.ended;
    assert.deepEqual([ended.status, complaints(ended)], [130, '']);
  });

  test(
    'refuses a program that is not there, that moves no packets, and adapters beside its packets',
    NEEDS_CALLS,
    async () => {
      using room = new Room();
      const ended = await room.call(['forward', '--attach', 'nobody', '--port', 'vdev:ring0']);
      assert.equal(ended.status, 1);
      assert.match(ended.stderr, /no process of this user .* "nobody"/);
      const both = await room.call(['forward', '--attach', 'a', '--name', 'b', '--port', 'vdev:ring0']);
      assert.equal(both.status, 2);
      const name = `without-${process.pid}`;
      await using eal = await Eal.start({ name, memory: { noHuge: true } });
      using zone = eal.zones.reserve('other', 64);
      assert.equal(zone.live, true);
      const without = await room.start(['forward', '--attach', name, '--port', 'vdev:ring0']).ended;
      assert.equal(without.status, 1);
      assert.match(without.stderr, /has no packets that others can use/);
    },
  );

  for (const [why, port, code, says] of [
    ['a file that is not there', 'vdev:pcap0,rx=nothing.pcap', 'ENOENT', /nothing\.pcap/],
    ['a directory', 'vdev:pcap0,rx=folder', 'EISDIR', /folder/],
    ['the same file twice', 'vdev:pcap0,rx=in.pcap,tx=./in.pcap', 'EINVAL', /the same file/],
    [
      'a file that another port writes',
      'vdev:pcap0,tx=o.pcap --port vdev:pcap1,tx=./o.pcap',
      'EINVAL',
      /the same file/,
    ],
    [
      'a file that another port reads',
      'vdev:pcap0,rx=in.pcap --port vdev:pcap1,tx=./in.pcap',
      'EINVAL',
      /the same file/,
    ],
    ['to empty a file that is read', 'vdev:pcap0,rx=in.pcap --capture ./in.pcap', 'EINVAL', /the same file/],
    ['a station behind no port', 'vdev:pcap0,rx=in.pcap --eth-peer 1,02:00:00:00:00:01', 'EINVAL', /names port 1/],
    ['a port without files', 'vdev:pcap0', 'EINVAL', /name them/],
    ['no capture', 'vdev:pcap0,rx=text', 'EINVAL', /no capture that is known/],
    ['a capture that is cut off', 'vdev:pcap0,rx=cut.pcap', 'EINVAL', /ends in the middle/],
    ['another kind of frames', 'vdev:pcap0,rx=other.pcap', 'EINVAL', /link=113/],
    ['a frame larger than the whole pool', 'vdev:pcap0,rx=large.pcapng', 'ENOMEM', /--total-num-mbufs/],
    ['a time that the format has not', 'vdev:pcap0,rx=late.pcapng,tx=out.pcap', 'ERANGE', /\.pcapng/],
    ['a full disk', 'vdev:pcap0,rx=in.pcap,tx=/dev/full', 'ENOSPC', /\/dev\/full/],
    ['a device that is no port', 'vdev:copy0', 'EINVAL', /none of Ethernet ports/],
    ['a size that no frame has', 'vdev:null0,size=20', 'EINVAL', /size=20/],
    ['a key that there is not', 'vdev:null0,rx=/x', 'EINVAL', /only the kind pcap/],
  ] as const)
    test(`refuses ${why}`, async () => {
      using room = new Room();
      mkdirSync(room.file('folder'));
      const all = capture(100);
      writeFileSync(room.file('in.pcap'), all);
      writeFileSync(room.file('cut.pcap'), all.subarray(0, -5));
      const other = all.slice();
      other[20] = 113;
      writeFileSync(room.file('other.pcap'), other);
      writeFileSync(room.file('text'), 'this is no capture');
      for (const [name, seconds, length] of [
        ['large.pcapng', 1, 6e6],
        ['late.pcapng', 2 ** 33, 60],
      ] as const)
        if (port.includes(name)) writeFileSync(room.file(name), captureOf(seconds, length));
      const there = port.replace(/(rx=|tx=|--capture )(?!\/)/g, `$1${room.path}/`);
      const ended = await room.call(['forward', '--json', ...`--port ${there}`.split(' ')]);
      assert.equal(ended.status, 1);
      assert.equal((documentOf(ended).error as { code: string }).code, code);
      assert.match(ended.stderr, says);
      assert.deepEqual(Uint8Array.from(readFileSync(room.file('in.pcap'))), all);
    });
});
