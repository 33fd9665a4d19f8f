/** What `anydma forward --capture` writes in each mode, as tshark reads it: addresses, tags, ports, and whether check sums are right. */
import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { writeFileSync } from 'node:fs';
import { describe, test } from 'node:test';
import { Room } from '../../../test/shared/command.js';
import { CaptureWriter } from '../../entry/net.js';
import { checksum, sumOf } from '../../net/checksum.js';
import { putU16 } from '../../net/frames.js';

const SKIP = { skip: spawnSync('tshark', ['--version']).error === undefined ? false : 'without tshark' };

const TO = [2, 0, 0, 0, 0, 1];
const FROM = [2, 0, 0, 0, 0, 2];
const TCP = 6;
const UDP = 17;

interface Kind {
  readonly version: 4 | 6;
  readonly protocol: typeof TCP | typeof UDP;
  readonly tags: readonly number[];
}

/** Both versions of IP, both protocols; without, with one and with two VLAN tags. */
const KINDS: readonly Kind[] = ([4, 6] as const).flatMap((version) =>
  ([TCP, UDP] as const).flatMap((protocol) => [[], [7], [100, 7]].map((tags): Kind => ({ version, protocol, tags }))),
);

/** A frame with 31 bytes of data, from port 1000 to 2000. @param wrong added to each check sum */
function frameOf({ version, protocol, tags }: Kind, wrong = 0): Uint8Array {
  const ports = [1000 >> 8, 1000 & 255, 2000 >> 8, 2000 & 255];
  const data = Array.from({ length: 31 }, (_, i) => i);
  const header =
    protocol === TCP ? [...ports, 0, 0, 0, 1, 0, 0, 0, 2, 0x50, 0x18, 1, 0, 0, 0, 0, 0] : [...ports, 0, 8 + 31, 0, 0];
  const size = header.length + data.length;
  const addresses =
    version === 4
      ? [10, 0, 0, 1, 10, 0, 0, 2]
      : [1, 2].flatMap((host) => [0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, host]);
  const ip =
    version === 4
      ? [0x45, 0, 0, 20 + size, 0, 1, 0, 0, 64, protocol, 0, 0, ...addresses]
      : [0x60, 0, 0, 0, 0, size, protocol, 64, ...addresses];
  const types = [...tags.flatMap((tag) => [0x81, 0, 0, tag]), ...(version === 4 ? [8, 0] : [0x86, 0xdd])];
  const frame = Uint8Array.from([...TO, ...FROM, ...types, ...ip, ...header, ...data]);
  const at = 12 + types.length;
  if (version === 4) putU16(frame, at + 10, checksum(sumOf(frame, at, 20) + wrong));
  const l4 = at + ip.length;
  const pseudo = sumOf(Uint8Array.from(addresses), 0, addresses.length) + protocol + size;
  putU16(frame, l4 + (protocol === TCP ? 16 : 6), checksum(sumOf(frame, l4, size, pseudo) + wrong));
  return frame;
}

const PING = Uint8Array.from([
  ...[...TO, ...FROM, 8, 0, 0x45, 0, 0, 46, 0, 1, 0, 0, 64, 1, 0x66, 0xcc, 10, 0, 0, 1, 10, 0, 0, 2],
  ...[8, 0, 0xf7, 0xfd, 0, 1, 0, 1, ...new Uint8Array(18)],
]);
const ARP = Uint8Array.from([
  ...[...new Uint8Array(6).fill(255), ...FROM, 8, 6, 0, 1, 8, 0, 6, 4, 0, 1, ...FROM, 10, 0, 0, 1],
  ...[0, 0, 0, 0, 0, 0, 10, 0, 0, 2, ...new Uint8Array(18)],
]);

function capture(frames: readonly Uint8Array[]): Uint8Array {
  const parts: Uint8Array[] = [];
  const writer = new CaptureWriter('pcapng', 1, (bytes) => parts.push(bytes.slice()));
  for (const [i, frame] of frames.entries()) {
    writer.begin({ seconds: 1_700_000_000 + i, nanos: i, wire: frame.length }, frame.length);
    writer.add(frame);
    writer.end(frame.length);
  }
  writer.flush();
  return Uint8Array.from(Buffer.concat(parts));
}

const SUMS = ['ip', 'tcp', 'udp', 'icmp'];

/** The fields of each frame; several values of one field have commas between them. */
function fieldsOf(path: string, ...fields: string[]): string[] {
  const sums = SUMS.flatMap((name) => (name === 'icmp' ? [] : ['-o', `${name}.check_checksum:TRUE`]));
  const args = [
    '-n',
    '-r',
    path,
    ...sums,
    '-T',
    'fields',
    '-E',
    'separator= ',
    ...fields.flatMap((field) => ['-e', field]),
  ];
  const { stdout, status, stderr } = spawnSync('tshark', args, { encoding: 'utf8' });
  assert.equal(status, 0, stderr);
  return stdout.split('\n').slice(0, -1);
}

/** By frame: is each check sum that it has right? 1: yes, 0: no. */
function sumsOf(path: string): string[] {
  return fieldsOf(path, ...SUMS.map((name) => `${name}.checksum.status`)).map((line) =>
    line.trim().replace(/ +/g, ' '),
  );
}

async function forward(room: Room, frames: readonly Uint8Array[], ...args: string[]): Promise<void> {
  writeFileSync(room.file('in.pcapng'), capture(frames));
  const ports = ['--port', `vdev:pcap0,rx=${room.file('in.pcapng')}`, '--port', 'vdev:null1'];
  const ended = await room.call(['forward', ...ports, '--capture', room.file('out.pcapng'), ...args]);
  assert.equal(ended.status, 0, ended.stderr);
}

describe('what anydma forward sends, as tshark reads it', SKIP, () => {
  const frames = KINDS.map((kind) => frameOf(kind));
  const right = KINDS.map(({ version }) => (version === 4 ? '1 1' : '1'));
  const tags = KINDS.map((kind) => kind.tags.join(','));

  for (const [mode, from, to, source, port] of [
    ['io', '02:00:00:00:00:02', '02:00:00:00:00:01', '10.0.0.1', '1000'],
    ['mac', '02:61:64:00:00:01', '02:00:00:00:00:aa', '10.0.0.1', '1000'],
    ['macswap', '02:00:00:00:00:01', '02:00:00:00:00:02', '10.0.0.1', '1000'],
    ['5tswap', '02:00:00:00:00:01', '02:00:00:00:00:02', '10.0.0.2', '2000'],
    ['csum', '02:00:00:00:00:02', '02:00:00:00:00:01', '10.0.0.1', '1000'],
  ] as const)
    test(`${mode}: addresses, tags, ports; and check sums stay right`, async () => {
      using room = new Room();
      await forward(room, frames, '--mode', mode, '--eth-peer', '1,02:00:00:00:00:aa');
      const out = room.file('out.pcapng');
      const all = fieldsOf(out, 'eth.src', 'eth.dst', 'vlan.id', 'ip.src', 'tcp.srcport', 'udp.srcport');
      const expected = KINDS.map(({ version, protocol }, i) =>
        [
          from,
          to,
          tags[i],
          version === 4 ? source : '',
          protocol === TCP ? port : '',
          protocol === UDP ? port : '',
        ].join(' '),
      );
      assert.deepEqual(
        all.map((line) => line.trimEnd()),
        expected.map((line) => line.trimEnd()),
      );
      assert.deepEqual(sumsOf(out), right);
    });

  test('csum: wrong check sums are right afterwards, behind tags as well', async () => {
    using room = new Room();
    const wrong = KINDS.map((kind) => frameOf(kind, 1));
    await forward(room, wrong, '--mode', 'csum');
    assert.deepEqual(
      sumsOf(room.file('in.pcapng')),
      right.map((line) => line.replaceAll('1', '0')),
    );
    assert.deepEqual(sumsOf(room.file('out.pcapng')), right);
  });

  test('icmpecho: requests as they came, and answers with right check sums', async () => {
    using room = new Room();
    await forward(room, [PING, ARP, ...frames], '--mode', 'icmpecho', '--topology', 'loop');
    const out = room.file('out.pcapng');
    const lines = fieldsOf(out, 'icmp.type', 'arp.opcode').map((line) => line.trim());
    // All that came, and the two answers.
    assert.deepEqual(lines, ['8', '1', ...KINDS.map(() => ''), '0', '2']);
    assert.deepEqual(sumsOf(out).slice(-2), ['1 1', '']);
  });

  for (const [mode, packets, ...more] of [
    ['txonly', '64', []],
    ['txonly', '64,100,7', []],
    ['flowgen', '60', ['--flows', '300']],
  ] as const)
    test(`${mode} of ${packets} bytes: UDP with right check sums`, async () => {
      using room = new Room();
      const out = room.file('out.pcapng');
      const ports = ['--port', 'vdev:null0', '--port', 'vdev:null1'];
      const args = ['--mode', mode, '--txpkts', packets, '--capture', out, ...more.flat()];
      const ended = await room.call(['forward', ...ports, ...args, '--duration', '1']);
      assert.equal(ended.status, 0, ended.stderr);
      const { stdout } = spawnSync('editcap', ['-r', out, room.file('some.pcapng'), '1-1000'], { encoding: 'utf8' });
      assert.equal(stdout, '');
      const bytes = packets.split(',').reduce((sum, each) => sum + Number(each), 0);
      const lines = fieldsOf(room.file('some.pcapng'), 'frame.len', 'udp.dstport', 'ip.checksum.status', 'ip.dst');
      assert.equal(lines.length, 1000);
      for (const line of lines) assert.ok(line.startsWith(`${bytes} 9 1 198.18.`), line);
      const flows = new Set(lines.map((line) => line.split(' ').at(-1))).size;
      assert.equal(flows, mode === 'flowgen' ? 300 : 1);
    });
});
