/** Our reading of many captures beside that of Wireshark and tcpdump; and theirs of what we write. `main.ts` runs it. */
import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { readdirSync, readFileSync, statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { after, describe, test } from 'node:test';
import { gunzipSync } from 'node:zlib';
import { captureKindOf, CaptureReader, CaptureWriter, LINK_ETHERNET } from '../../src/entry/net.js';
import { documentOf, Room } from '../shared/command.js';

interface Frame {
  readonly seconds: number;
  readonly nanos: number;
  readonly wire: number;
  readonly link: number;
  readonly data: Buffer;
}

interface Capture {
  readonly name: string;
  /** The file, not compressed. */
  readonly path: string;
  readonly frames: readonly Frame[];
  readonly overruns: readonly boolean[];
}

const { ANYDMA_CAPTURES: directory } = process.env;
if (directory === undefined) throw new Error('see main.ts');

const MAGICS = /^(a1b2c3d4|d4c3b2a1|a1b23c4d|4d3cb2a1|a1b2cd34|34cdb2a1|0a0d0d0a)$/;
/** How many are given to Wireshark at once. */
const BATCH = 64;
/** How many of them tcpdump and Wireshark do not know, or not as they are: at most. */
const FEW = 30;
/** The link types whose data Wireshark changes when it writes: SunATM. */
const CHANGED = 123;
/** Numbers that some systems put into files, and what Wireshark writes for them. */
const TODAY: ReadonlyMap<number, number> = new Map([
  [11, 100],
  [12, 101],
  [19, 106],
  [50, 9],
]);
/** The times that both formats can tell: seconds. */
const LATEST = 2 ** 32;

const room = new Room();
after(() => room[Symbol.dispose]());

function readCapture(path: string): Frame[] {
  const reader = new CaptureReader();
  const frames: Frame[] = [];
  reader.push(readFileSync(path));
  for (let frame = reader.next(); frame !== undefined; frame = reader.next())
    frames.push({ ...frame, data: Buffer.from(frame.data) });
  reader.end();
  return frames;
}

function writeCapture(path: string, link: number, frames: readonly Frame[]): void {
  const parts: Uint8Array[] = [];
  const writer = new CaptureWriter(captureKindOf(path), link, (bytes) => parts.push(bytes.slice()));
  for (const frame of frames) {
    writer.begin(frame, frame.data.length);
    writer.add(frame.data);
    writer.end(frame.data.length);
  }
  writer.flush();
  writeFileSync(path, Buffer.concat(parts));
}

/** As a text, for comparing. */
function told({ seconds, nanos, wire, link, data }: Frame): string {
  const bytes = link === CHANGED ? `${data.length} bytes` : data.toString('hex');
  return `${seconds}.${nanos} ${wire} ${TODAY.get(link) ?? link} ${bytes}`;
}

/** Is it the same for Wireshark? Of times whose microseconds run over, as damaged captures have, it makes others. */
function isSame(ours: Frame, theirs: Frame, ranOver: boolean): boolean {
  const { seconds, nanos } = ranOver ? theirs : ours;
  return told({ ...ours, seconds, nanos }) === told(theirs);
}

/** By frame of a pcap with microseconds: are they more than a second? */
function overruns(bytes: Buffer): boolean[] {
  const magic = bytes.toString('hex', 0, 4);
  if (magic !== 'a1b2c3d4' && magic !== 'd4c3b2a1') return [];
  const word = (at: number): number => (magic === 'd4c3b2a1' ? bytes.readUInt32LE(at) : bytes.readUInt32BE(at));
  const found: boolean[] = [];
  for (let at = 24; at < bytes.length; at += 16 + word(at + 8)) found.push(word(at + 4) >= 1_000_000);
  return found;
}

/** All captures of `paths`, one after the other, as Wireshark reads and writes them; `undefined` if it does not know one. */
function asWireshark(paths: readonly string[]): Frame[] | undefined {
  const out = room.file('merged');
  const { status, stderr } = spawnSync('mergecap', ['-a', '-F', 'pcapng', '-w', out, ...paths], { encoding: 'utf8' });
  if (status === 0) return readCapture(out);
  assert.match(stderr, /doesn't support|unsupported|can't be written/);
  return undefined;
}

/** Compares all; what Wireshark does not know is left out. @returns the names of those */
function compare(some: readonly Capture[]): string[] {
  const theirs = asWireshark(some.map(({ path }) => path));
  if (theirs === undefined) {
    if (some.length === 1) return some.map(({ name }) => name);
    const half = some.length >> 1;
    return [...compare(some.slice(0, half)), ...compare(some.slice(half))];
  }
  let at = 0;
  for (const { name, frames, overruns } of some)
    for (const [i, frame] of frames.entries()) {
      const other = theirs[at++];
      assert.ok(
        isSame(frame, other, overruns[i] ?? false),
        `${name}, frame ${i + 1}: ${told(frame)} is ${told(other)} for Wireshark`,
      );
    }
  assert.equal(at, theirs.length, 'Wireshark reads more frames');
  return [];
}

function open(from: string): Capture[] {
  const captures: Capture[] = [];
  for (const name of readdirSync(from, { recursive: true, encoding: 'utf8' }).sort()) {
    const file = join(from, name);
    if (!statSync(file).isFile()) continue;
    const content = readFileSync(file);
    const bytes = content[0] === 0x1f && content[1] === 0x8b ? gunzipSync(content) : content;
    if (!MAGICS.test(bytes.toString('hex', 0, 4))) continue;
    const path = room.file(`${captures.length}.in`);
    writeFileSync(path, bytes);
    captures.push({ name, path, frames: readCapture(path), overruns: overruns(bytes) });
  }
  return captures;
}

const captures = open(directory);

/** The frames of all captures that both formats can tell, by their link type. */
function byLink(): Map<number, Frame[]> {
  const all = new Map<number, Frame[]>();
  for (const frame of captures.flatMap(({ frames }) => frames)) {
    const same = all.get(frame.link) ?? [];
    if (frame.seconds < LATEST) same.push(frame);
    all.set(frame.link, same);
  }
  return all;
}

describe('the captures that come with tcpdump and Wireshark', () => {
  test('Wireshark reads the same frames: bytes, lengths, times, link types', () => {
    assert.ok(captures.length > 500, `there are ${captures.length} captures`);
    const unknown: string[] = [];
    for (let at = 0; at < captures.length; at += BATCH) unknown.push(...compare(captures.slice(at, at + BATCH)));
    assert.ok(unknown.length <= FEW, `Wireshark does not know ${unknown.length} of them`);
  });

  test('tcpdump reads as many frames', () => {
    const all = 'for file; do count=$(tcpdump -n --count -r "$file" 2>&1) || count=; echo "$count" | tail -n 1; done';
    const paths = captures.map(({ path }) => path);
    const { status, stdout } = spawnSync('sh', ['-c', all, 'sh', ...paths], { encoding: 'utf8' });
    assert.equal(status, 0);
    const lines = stdout.split('\n');
    assert.equal(lines.length, captures.length + 1);
    let unknown = 0;
    for (const [i, { name, frames }] of captures.entries()) {
      if (lines[i] === '') unknown++;
      else assert.match(lines[i], new RegExp(`^${frames.length} packets?$`), name);
    }
    assert.ok(unknown <= FEW, `tcpdump does not know ${unknown} of them`);
  });

  for (const kind of ['pcap', 'pcapng'])
    test(`what is written as ${kind} is the same for Wireshark and for us`, () => {
      for (const [link, frames] of byLink()) {
        const path = room.file(`${link}.${kind}`);
        writeCapture(path, link, frames);
        assert.deepEqual(readCapture(path).map(told), frames.map(told), `link type ${link}`);
        compare([{ name: path, path, frames, overruns: [] }]);
      }
    });

  test('anydma forward takes and writes them unchanged', async () => {
    const frames = byLink().get(LINK_ETHERNET) ?? [];
    writeCapture(room.file('all.pcapng'), LINK_ETHERNET, frames);
    for (const kind of ['pcap', 'pcapng']) {
      const port = `vdev:pcap0,rx=${room.file('all.pcapng')},tx=${room.file(`out.${kind}`)}`;
      const ended = await room.call(['forward', '--port', port, '--json']);
      assert.equal(ended.status, 0, ended.stderr);
      const streams = [
        { from: 'vdev:pcap0', to: 'vdev:pcap0', received: frames.length, sent: frames.length, dropped: 0 },
      ];
      assert.deepEqual(documentOf(ended).streams, streams);
      assert.deepEqual(readCapture(room.file(`out.${kind}`)).map(told), frames.map(told));
    }
  });
});
