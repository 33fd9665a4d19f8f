/** Ports without hardware, given bursts that can not be: they say so, take nothing, and go on. */
import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { join } from 'node:path';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { throwsDma } from '../../../test/shared/errors.js';
import { withPackets } from '../../../test/shared/packets.js';
import { CaptureWriter } from '../../net/capture/capture-writer.js';
import type { Packets } from '../../net/packets.js';
import type { Port } from '../../net/port.js';
import { NullPort } from './null-port.js';
import { PcapPort } from './pcap-port.js';
import type { SoftwarePort } from './software-port.js';

const FRAMES = 20;

function capture(path: string): string {
  const parts: Uint8Array[] = [];
  const writer = new CaptureWriter('pcap', 1, (bytes) => parts.push(bytes.slice()));
  for (let i = 0; i < FRAMES; i++) {
    writer.begin({ seconds: i, nanos: 0, wire: 60 }, 60);
    writer.add(new Uint8Array(60));
    writer.end(60);
  }
  writer.flush();
  writeFileSync(path, Buffer.concat(parts));
  return path;
}

const PORTS: Readonly<Record<string, (folder: string) => SoftwarePort>> = {
  null: () => new NullPort('vdev:null0', 0, 64),
  pcap: (folder) => new PcapPort('vdev:pcap0', 0, { rx: capture(join(folder, 'in')), tx: join(folder, 'out') }),
};

/** A test with a port of each kind, started; it must not be lost at the end. */
function withPorts(work: (port: Port, packets: Packets) => void): void {
  for (const [kind, open] of Object.entries(PORTS))
    it(
      kind,
      withPackets(async (packets) => {
        const folder = mkdtempSync(join(tmpdir(), 'anydma-'));
        const port = open(folder);
        try {
          await port.start({ packets });
          work(port, packets);
          assert.equal(port.lost, undefined);
          await port.stop();
        } finally {
          port.close();
          rmSync(folder, { recursive: true });
        }
      }),
    );
}

describe('a burst to be sent that can not be is refused before any packet of it is taken', () => {
  withPorts((port, packets) => {
    const good = new Int32Array(8);
    assert.ok(packets.take(good, 8));
    const before = packets.pool.available;
    const refused: readonly (readonly [burst: Int32Array, count: number, says: RegExp])[] = [
      [good.with(4, good[3]), 8, /twice/],
      [good.with(7, good[0]), 8, /twice/],
      [good.with(2, 4000), 8, /4000 is no packet/],
      [good.with(2, -1), 8, /-1 is no packet/],
      [good, 9, /9 elements/],
      [good, -3, /-3 elements/],
      [good, NaN, /NaN/],
      [good, 1.5, /1\.5/],
      [[...good] as never, 8, /Int32Array/],
    ];
    for (const [burst, count, says] of refused) {
      throwsDma('EINVAL', () => port.tx(0, burst, count), says);
      assert.equal(packets.pool.available, before);
    }
    assert.deepEqual([port.statistics().txPackets, port.statistics().txBytes], [0, 0]);
    assert.equal(port.tx(1, good), 0, 'there is one queue');
    assert.equal(port.tx(0, good), 8);
    throwsDma('EINVAL', () => port.tx(0, good), /no packet/);
    assert.equal(port.statistics().txPackets, 8);
  });
});

describe('packets are received into what they fit in', () => {
  withPorts((port, packets) => {
    const before = packets.pool.available;
    const burst = new Int32Array(8);
    for (const [into, count, says] of [
      [burst, 9, /9 elements/],
      [burst, -1, /-1 elements/],
      [burst, NaN, /NaN/],
      [[] as never, 4, /Int32Array/],
    ] as const)
      throwsDma('EINVAL', () => port.rx(0, into, count), says);
    assert.equal(port.rx(1, burst), 0, 'there is one queue');
    assert.equal(packets.pool.available, before);
    assert.equal(port.rx(0, burst), 8);
    packets.release(burst, 8);
  });
});
