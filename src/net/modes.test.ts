/** What each mode makes of frames. */
import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { withPackets } from '../../test/shared/packets.js';
import { checksum, sumOf } from './checksum.js';
import { macBytes } from './mac-address.js';
import { OFFLOAD } from './offloads.js';
import { MODES, pseudoSum, type ModeName } from './modes.js';
import type { Packets } from './packets.js';

const MAC = { a: '02:00:00:00:00:0a', b: '02:00:00:00:00:0b', port: '02:00:00:00:00:01', peer: '02:00:00:00:00:02' };
const IP = { a: [10, 0, 0, 1], b: [10, 0, 0, 2] };

interface Udp {
  readonly data?: number;
  readonly tags?: number;
  readonly v6?: boolean;
  readonly sum?: number;
  readonly protocol?: number;
  readonly fragment?: number;
}

/** A frame of UDP (or TCP) with check sums of nonsense. */
function frame({ data = 21, tags = 0, v6 = false, sum = 0xdead, protocol = 17, fragment = 0 }: Udp = {}): number[] {
  const l4 = protocol === 6 ? 20 : 8;
  const header =
    protocol === 6
      ? [0, 80, 1, 187, 0, 0, 0, 1, 0, 0, 0, 2, 0x50, 0x18, 1, 0, sum >> 8, sum & 255, 0, 0]
      : [0, 80, 1, 187, (8 + data) >> 8, (8 + data) & 255, sum >> 8, sum & 255];
  const length = l4 + data;
  const ip = v6
    ? [
        0x60,
        0,
        0,
        0,
        length >> 8,
        length & 255,
        protocol,
        64,
        ...Array<number>(15).fill(1),
        0xa,
        ...Array<number>(15).fill(2),
        0xb,
      ]
    : [
        0x45,
        0,
        (20 + length) >> 8,
        (20 + length) & 255,
        0,
        1,
        fragment >> 8,
        fragment & 255,
        64,
        protocol,
        0xbe,
        0xef,
        ...IP.a,
        ...IP.b,
      ];
  return [
    ...macBytes(MAC.b),
    ...macBytes(MAC.a),
    ...Array.from({ length: tags }, (_, i) => [
      i === 0 && tags === 2 ? 0x88 : 0x81,
      i === 0 && tags === 2 ? 0xa8 : 0,
      0,
      i + 1,
    ]).flat(),
    ...(v6 ? [0x86, 0xdd] : [8, 0]),
    ...ip,
    ...header,
    ...Array.from({ length: data }, (_, i) => (i * 7 + 1) & 255),
  ];
}

/** What comes out of a mode. */
function through(packets: Packets, mode: ModeName, ...frames: readonly (readonly number[])[]): number[][] {
  const burst = Int32Array.from(frames, (bytes) => packets.from(Uint8Array.from(bytes)));
  const context = { packets, from: macBytes(MAC.port), to: macBytes(MAC.peer), offloads: 0 };
  const count = MODES[mode].change(context, burst, burst.length);
  const out = Array.from(burst.subarray(0, count), (packet) => [...packets.copy(packet)]);
  packets.release(burst, count);
  return out;
}

/** Is the check sum at the end of the IP header, and that of the layer above, right? */
function hasGoodSums(bytes: readonly number[], l2 = 14): boolean {
  const all = Uint8Array.from(bytes);
  const isV4 = all[l2] >> 4 === 4;
  const l3 = isV4 ? 20 : 40;
  const payload = bytes.length - l2 - l3;
  const protocol = isV4 ? all[l2 + 9] : all[l2 + 6];
  const header = isV4 ? checksum(sumOf(all, l2, 20)) : 0;
  return header === 0 && checksum(sumOf(all, l2 + l3, payload, pseudoSum(all, l2, isV4, protocol, payload))) === 0;
}

describe('modes', () => {
  it(
    'io leaves frames as they are, also what is no frame',
    withPackets((packets) => {
      const frames = [frame(), [], [1], frame({ data: 1000 })];
      assert.deepEqual(through(packets, 'io', ...frames), frames);
    }),
  );

  it(
    'mac writes the address of the port and its peer, and leaves short frames alone',
    withPackets((packets) => {
      const expected = frame();
      expected.splice(0, 12, ...macBytes(MAC.peer), ...macBytes(MAC.port));
      assert.deepEqual(through(packets, 'mac', frame(), [1, 2, 3]), [expected, [1, 2, 3]]);
    }),
  );

  it(
    'macswap swaps, and twice is as before',
    withPackets((packets) => {
      const [swapped] = through(packets, 'macswap', frame());
      assert.deepEqual(swapped.slice(0, 12), [...macBytes(MAC.a), ...macBytes(MAC.b)]);
      assert.deepEqual(swapped.slice(12), frame().slice(12));
      assert.deepEqual(through(packets, 'macswap', swapped), [frame()]);
    }),
  );

  for (const shape of [
    {},
    { v6: true },
    { tags: 1 },
    { tags: 2, v6: true },
    { protocol: 6 },
    { protocol: 6, v6: true },
  ])
    it(
      `5tswap keeps sums right: ${JSON.stringify(shape)}`,
      withPackets((packets) => {
        const l2 = 14 + 4 * (shape.tags ?? 0);
        const [summed] = through(packets, 'csum', frame(shape));
        assert.equal(hasGoodSums(frame(shape), l2), false);
        assert.equal(hasGoodSums(summed, l2), true);
        const [swapped] = through(packets, '5tswap', summed);
        assert.equal(hasGoodSums(swapped, l2), true);
        const l3 = shape.v6 === true ? 40 : 20;
        assert.deepEqual(swapped.slice(l2 + l3, l2 + l3 + 4), [1, 187, 0, 80]);
        assert.notDeepEqual(swapped, summed);
        assert.deepEqual(through(packets, '5tswap', swapped), [summed]);
      }),
    );

  it(
    'csum sums over segments of odd lengths',
    withPackets(
      (packets) => {
        for (const data of [0, 1, 90, 91, 200, 201, 1000])
          for (const protocol of [6, 17]) {
            const [summed] = through(packets, 'csum', frame({ data, protocol }));
            assert.equal(hasGoodSums(summed), true, `${data} bytes of ${protocol}`);
          }
      },
      // Room for the headers, and an odd number of bytes.
      { size: 32 + 75 },
    ),
  );

  it(
    'csum leaves to the sending port what that can do: it finds the lengths of headers, and the sum of the pseudo header',
    withPackets((packets) => {
      const all = OFFLOAD.TX_IP | OFFLOAD.TX_TCP | OFFLOAD.TX_UDP | OFFLOAD.TX_IPV6;
      for (const protocol of [6, 17])
        for (const v6 of [false, true])
          for (const can of [all, OFFLOAD.TX_IP, all & ~OFFLOAD.TX_IPV6, all & ~OFFLOAD.TX_IP, OFFLOAD.TX_TCP]) {
            const bytes = frame({ protocol, v6, tags: 1 });
            const [summed] = through(packets, 'csum', bytes);
            const burst = Int32Array.of(packets.from(Uint8Array.from(bytes)));
            const context = { packets, from: macBytes(MAC.port), to: macBytes(MAC.peer), offloads: can };
            assert.equal(MODES.csum.change(context, burst, 1), 1);
            const [packet] = burst;
            const flags = packets.flags[packet];
            const l4 = protocol === 6 ? OFFLOAD.TX_TCP : OFFLOAD.TX_UDP;
            const wanted = v6 ? l4 | OFFLOAD.TX_IPV6 : l4;
            const expected = ((can & wanted) === wanted ? wanted : 0) | (v6 ? 0 : can & OFFLOAD.TX_IP);
            assert.equal(flags, expected);
            // What a port does then.
            const l3 = v6 ? 40 : 20;
            const out = packets.copy(packet);
            if (flags !== 0) assert.deepEqual([packets.l2[packet], packets.l3[packet]], [18, l3]);
            const put = (at: number, from: number, length: number): void => {
              const sum = checksum(sumOf(out, from, length));
              out.set([sum >> 8, sum & 255], at);
            };
            if ((flags & OFFLOAD.TX_IP) !== 0) put(18 + 10, 18, 20);
            if ((flags & l4) !== 0) put(18 + l3 + (protocol === 6 ? 16 : 6), 18 + l3, out.length - 18 - l3);
            assert.deepEqual([...out], summed);
            packets.release(burst, 1);
          }
      // A port sums up to the end of the frame, and so what is behind the packet would count.
      const padded = Int32Array.of(packets.from(Uint8Array.from([...frame(), 1, 2, 3])));
      const context = { packets, from: macBytes(MAC.port), to: macBytes(MAC.peer), offloads: all };
      MODES.csum.change(context, padded, 1);
      assert.equal(packets.flags[padded[0]], OFFLOAD.TX_IP);
      packets.release(padded, 1);
    }),
  );

  it(
    'csum leaves alone what has no sum, or is only a part',
    withPackets((packets) => {
      const noSum = through(packets, 'csum', frame({ sum: 0 }))[0];
      assert.deepEqual(noSum.slice(40, 42), [0, 0], 'UDP without a sum');
      const fragment = through(packets, 'csum', frame({ fragment: 0x2000 }))[0];
      assert.deepEqual(fragment.slice(40, 42), [0xde, 0xad], 'the first fragment');
      const cut = frame().slice(0, 45);
      assert.deepEqual(through(packets, 'csum', cut)[0].slice(40, 42), [0xde, 0xad], 'a cut frame');
      for (let length = 0; length < 45; length++) through(packets, 'csum', frame().slice(0, length));
    }),
  );

  it(
    'icmpecho answers ARP requests and pings, and drops all else',
    withPackets((packets) => {
      const arp = [
        ...Array<number>(6).fill(255),
        ...macBytes(MAC.a),
        8,
        6,
        0,
        1,
        8,
        0,
        6,
        4,
        0,
        1,
        ...macBytes(MAC.a),
        ...IP.a,
        0,
        0,
        0,
        0,
        0,
        0,
        ...IP.b,
      ];
      const [answer] = through(packets, 'icmpecho', arp);
      assert.deepEqual(answer, [
        ...macBytes(MAC.a),
        ...macBytes(MAC.port),
        8,
        6,
        0,
        1,
        8,
        0,
        6,
        4,
        0,
        2,
        ...macBytes(MAC.port),
        ...IP.b,
        ...macBytes(MAC.a),
        ...IP.a,
      ]);
      assert.deepEqual(through(packets, 'icmpecho', answer), [], 'a reply is not answered');

      const icmp = [8, 0, 0, 0, 0x12, 0x34, 0, 1, 97, 98, 99];
      const sum = checksum(sumOf(Uint8Array.from(icmp), 0, icmp.length));
      icmp.splice(2, 2, sum >> 8, sum & 255);
      const ping = [...frame({ protocol: 1, data: 3 }).slice(0, 34), ...icmp];
      const [pong] = through(packets, 'icmpecho', ping);
      assert.deepEqual(pong.slice(0, 12), [...macBytes(MAC.a), ...macBytes(MAC.b)]);
      assert.deepEqual(pong.slice(26, 34), [...IP.b, ...IP.a]);
      assert.equal(pong[34], 0);
      assert.equal(checksum(sumOf(Uint8Array.from(pong), 34, icmp.length)), 0);
      assert.deepEqual(through(packets, 'icmpecho', pong, frame(), [], ping.with(30, 224), ping.slice(0, 40)), []);
    }),
  );

  it(
    'rxonly and flowgen drop what comes',
    withPackets((packets) => {
      assert.deepEqual(through(packets, 'rxonly', frame(), frame({ data: 900 })), []);
      assert.deepEqual(through(packets, 'flowgen', frame()), []);
    }),
  );
});
