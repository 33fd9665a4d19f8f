/** The e1000e driver with an adapter that notes what a driver must not do, and that can do wrong itself. */
import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { FakeE1000e } from '../../../test/fakes/net/e1000e.js';
import { dmaError, throwsDma } from '../../../test/shared/errors.js';
import { frameOf, ipFrame, pseudo, put } from '../../../test/shared/frames.js';
import type { Device } from '../../bus/model.js';
import { Eal } from '../../eal.js';
import { isDmaError } from '../../errors.js';
import type { Pool } from '../../memory/pool/pool.js';
import { checksum } from '../../net/checksum.js';
import { OFFLOAD } from '../../net/offloads.js';
import { NONE, Packets } from '../../net/packets.js';
import { portOf } from '../../net/port-of.js';
import type { Port, PortConfig, PortEvent } from '../../net/port.js';
import { PCI_COMMAND, PCI_COMMAND_MASTER } from '../../platform/uapi/pci-regs.js';
import type { InterruptCounts } from '../../vfio-user/devices/model.js';
import { e1000eDriver } from './e1000e-driver.js';
import {
  CTRL_EXT,
  GCR,
  GCR2_COMPLETIONS,
  PHY_CONTROL,
  RCTL,
  REG,
  RX,
  STATISTICS,
  TARC,
  TX_QUEUE,
  TXDCTL_COUNT,
} from './registers.js';

const ELEMENTS = 512;
const HEADROOM = 64;
const SUMS = OFFLOAD.RX_IP_GOOD | OFFLOAD.RX_IP_BAD | OFFLOAD.RX_L4_GOOD | OFFLOAD.RX_L4_BAD;

interface Room {
  readonly eal: Eal;
  readonly device: Device;
  readonly card: FakeE1000e;
  readonly port: Port;
  readonly pool: Pool;
  readonly packets: Packets;
  start(config?: Partial<PortConfig>): Promise<void>;
}

interface RoomOptions {
  readonly interrupts?: InterruptCounts;
  readonly buffer?: number;
  readonly name?: string;
  /** Before the driver sees it. */
  readonly prepare?: (card: FakeE1000e) => void;
}

/** A port of an adapter; at the end the driver did nothing wrong, and every element is back. */
function withCard(work: (room: Room) => Promise<void>, options: RoomOptions = {}): () => Promise<void> {
  return async () => {
    await using eal = await Eal.start();
    const cards: FakeE1000e[] = [];
    eal.vdev.define('card', (host) => {
      const made = new FakeE1000e(host, options.interrupts);
      options.prepare?.(made);
      cards.push(made);
      return made;
    });
    const device = await eal.probe(options.name ?? 'vdev:card0');
    const [card] = cards;
    const port = device.use(e1000eDriver);
    const elementSize = HEADROOM + (options.buffer ?? 2048);
    const pool = eal.pools.create({ elements: ELEMENTS, elementSize, checked: true });
    const packets = new Packets(pool, { headroom: HEADROOM });
    const start: Room['start'] = (config) => port.start({ packets, rxDescriptors: 64, txDescriptors: 64, ...config });
    await work({ eal, device, card, port, pool, packets, start });
    if (device.state === 'probed') await eal.remove(device);
    assert.deepEqual(card.violations, []);
    assert.equal(pool.available, ELEMENTS, 'elements are missing');
    pool.free();
  };
}

function takeAll(port: Port, queue = 0): number[] {
  const burst = new Int32Array(64);
  return [...burst.subarray(0, port.rx(queue, burst))];
}

/** One packet, its bytes and flags; it is released. */
function takeOne({ port, packets }: Room, queue = 0): { bytes: Uint8Array; flags: number; vlan: number; hash: number } {
  const [packet, ...more] = takeAll(port, queue);
  assert.ok(packet !== undefined && more.length === 0, `${more.length + 1} packets`);
  const bytes = packets.copy(packet);
  const [flags, vlan, hash] = [packets.flags[packet], packets.vlan[packet], packets.hash[packet]];
  packets.releaseOne(packet);
  return { bytes, flags, vlan, hash };
}

/** Packets in use of so many bytes. */
function inUse(packets: Packets, bytes: number): number[] {
  return Array.from({ length: ELEMENTS }, (_, i) => i).filter((i) => packets.inUse(i) && packets.total[i] === bytes);
}

function send(port: Port, ...burst: number[]): number {
  return port.tx(0, Int32Array.from(burst));
}

describe('an adapter is opened', () => {
  it(
    'it has the address that a reset put into its registers, errata are applied, and the driver says that it is there',
    withCard(async ({ port, card, device }) => {
      assert.equal(port.mac, '52:54:00:12:34:56');
      assert.equal(portOf(device), port);
      assert.deepEqual(port.link, { up: true, speed: 1000, fullDuplex: true });
      for (const queue of [0, 1]) assert.ok((card.peek(TX_QUEUE.DCTL + 0x100 * queue) & TXDCTL_COUNT) !== 0);
      assert.ok((card.peek(TX_QUEUE.ARBITRATION) & TARC.RESERVED_26) !== 0);
      assert.equal(card.peek(TX_QUEUE.ARBITRATION) & TARC.RESERVED_27_TO_30, 0);
      const gcr = GCR.RESERVED_22 | GCR.L1_WITHOUT_L0S;
      assert.equal(card.peek(REG.GCR) & gcr, gcr);
      assert.equal(card.peek(REG.GCR2) & GCR2_COMPLETIONS, GCR2_COMPLETIONS);
      assert.equal(card.peek(REG.CTRL_EXT) & (CTRL_EXT.RESERVED_22 | CTRL_EXT.RESERVED_23), CTRL_EXT.RESERVED_22);
      assert.ok((card.peek(REG.CTRL_EXT) & CTRL_EXT.DRIVER_LOADED) !== 0);
    }),
  );

  const NONE_THERE = { address: [0, 0, 0, 0, 0, 0] };
  it(
    'or the one in its EEPROM',
    withCard(
      async ({ port, card, start }) => {
        assert.equal(port.mac, '52:54:00:12:34:56');
        await start();
        assert.equal(card.receive(frameOf(60)), 0, 'its filter has it');
        await port.stop();
      },
      { prepare: (card) => Object.assign(card, NONE_THERE).reset() },
    ),
  );

  async function opened(prepare: (card: FakeE1000e) => void): Promise<unknown> {
    await using eal = await Eal.start();
    eal.vdev.define('card', (host) => {
      const card = new FakeE1000e(host);
      prepare(card);
      return card;
    });
    return await eal.probe('vdev:card0').then(
      () => undefined,
      (error: unknown) => error,
    );
  }

  it('not if its EEPROM is damaged, the PHY refuses, or nothing answers', async () => {
    const codeOf = async (prepare: (card: FakeE1000e) => void): Promise<string> => {
      const error = await opened(prepare);
      return isDmaError(error) ? `${error.code} ${error.reason}` : String(error);
    };
    const damaged = await codeOf((card) => {
      Object.assign(card, NONE_THERE).reset();
      card.eeprom[7]++;
    });
    assert.match(damaged, /^EIO its EEPROM is damaged/);
    const group = await codeOf((card) => {
      Object.assign(card, NONE_THERE).reset();
      card.eeprom[0]++;
      card.eeprom[7]--;
    });
    assert.match(group, /^EIO .*53:54:00:12:34:56, which is no station address/);
    assert.match(await codeOf((card) => (card.phyFails = true)), /^EIO the PHY/);
    assert.match(await codeOf((card) => (card.gone = true)), /^ENODEV .*all ones/);
  });

  it(
    'a PHY that was switched off is switched on',
    withCard(
      async ({ card }) => {
        assert.equal(card.phyControl & (PHY_CONTROL.POWER_DOWN | PHY_CONTROL.AUTONEGOTIATE), PHY_CONTROL.AUTONEGOTIATE);
      },
      { prepare: (card) => (card.phyControl = PHY_CONTROL.POWER_DOWN) },
    ),
  );
});

describe('it receives', () => {
  it(
    'frames of any length, also of exactly the size of a buffer, or of several',
    withCard(
      async (room) => {
        await room.start({ maxFrame: 9014 });
        for (const length of [60, 61, 255, 256, 257, 511, 512, 513, 1514, 2048, 9014]) {
          const frame = frameOf(length, length);
          assert.equal(room.card.receive(frame), 0);
          assert.deepEqual(takeOne(room).bytes, frame, String(length));
        }
        const { rxPackets, rxBytes, rxErrors } = room.port.statistics();
        assert.deepEqual([rxPackets, rxBytes, rxErrors], [11, 60 + 61 + 3 * 256 + 3 * 512 + 1514 + 2048 + 9014, 0]);
        await room.port.stop();
      },
      { buffer: 256 },
    ),
  );

  it(
    'no runts: they are counted',
    withCard(async (room) => {
      await room.start();
      for (const length of [6, 13, 14, 59]) assert.equal(room.card.receive(frameOf(length)), -1);
      assert.deepEqual(takeAll(room.port), []);
      assert.equal(room.port.statistics().rxErrors, 4);
      await room.port.stop();
    }),
  );

  it(
    'a frame whose last descriptor is empty',
    withCard(async (room) => {
      await room.start({ maxFrame: 4000 });
      const frame = frameOf(2048);
      room.card.receive(frame, { emptyEnd: true });
      assert.deepEqual(takeOne(room).bytes, frame);
      await room.port.stop();
    }),
  );

  it(
    'nothing of a descriptor that is not done, whatever else it says',
    withCard(async (room) => {
      await room.start();
      room.card.receive(frameOf(100), { unfinished: true });
      assert.deepEqual(takeAll(room.port), []);
      room.card.finish();
      assert.deepEqual(takeOne(room).bytes, frameOf(100));
      await room.port.stop();
    }),
  );

  it(
    'and not what is damaged, longer than its buffer, empty, or without an end; the next frame is whole',
    withCard(async (room) => {
      await room.start();
      const { card, port } = room;
      const wrongs = [
        () => card.receive(frameOf(100), { errors: 1 << 24 }),
        () => card.receive(frameOf(100), { length: 2049 }),
        () => card.receive(frameOf(100), { length: 0xffff }),
        () => card.receive(frameOf(100), { length: 0 }),
      ];
      for (const [i, wrong] of wrongs.entries()) {
        wrong();
        assert.deepEqual(takeAll(port), []);
        assert.equal(port.statistics().rxErrors, i + 1);
        card.receive(frameOf(90, i));
        assert.deepEqual(takeOne(room).bytes, frameOf(90, i));
      }
      // One that never ends is thrown away, up to an end, as soon as it is too long.
      for (let i = 0; i < 4; i++) card.receive(frameOf(1000), { noEnd: true });
      assert.deepEqual(takeAll(port), []);
      card.receive(frameOf(100));
      assert.deepEqual(takeAll(port), []);
      assert.equal(port.statistics().rxErrors, wrongs.length + 1);
      card.receive(frameOf(101));
      assert.deepEqual(takeOne(room).bytes, frameOf(101));
      card.receive(frameOf(300), { noEnd: true });
      assert.deepEqual(takeAll(port), []);
      await port.stop();
    }),
  );

  it(
    'not what says that it is longer than the buffer, although a frame may be',
    withCard(
      async (room) => {
        await room.start();
        room.card.receive(frameOf(200), { length: 257 });
        assert.deepEqual(takeAll(room.port), []);
        assert.equal(room.port.statistics().rxErrors, 1);
        room.card.receive(frameOf(300), { length: 1000 });
        assert.deepEqual(takeAll(room.port), [], 'as the last part of a chain');
        assert.equal(room.port.statistics().rxErrors, 2);
        room.card.receive(frameOf(200));
        assert.deepEqual(takeOne(room).bytes, frameOf(200));
        await room.port.stop();
      },
      { buffer: 256 },
    ),
  );

  it(
    'long frames only if it was asked to',
    withCard(async ({ card, port, start, packets }) => {
      await start();
      assert.deepEqual([card.receive(frameOf(1514)), card.receive(frameOf(1515))], [0, -1]);
      packets.releaseOne(takeAll(port)[0]);
      assert.equal(port.statistics().rxErrors, 1);
      await port.stop();
      await start({ maxFrame: 1000 });
      card.receive(frameOf(1005));
      assert.deepEqual(takeAll(port), [], 'shorter than the adapter can be told');
      await port.stop();
    }),
  );

  it(
    'its own frames and those for all; the others once it is promiscuous, before or while it runs',
    withCard(async ({ card, port, start, packets }) => {
      const [own, all, other, group] = [frameOf(60), frameOf(60), frameOf(60), frameOf(60)];
      all.fill(0xff, 0, 6);
      other[5]++;
      group[0] |= 1;
      const found = (): number[] => {
        const queues = [own, all, other, group].map((frame) => card.receive(frame));
        for (const packet of takeAll(port)) packets.releaseOne(packet);
        return queues;
      };
      await start();
      assert.deepEqual(found(), [0, 0, -1, -1]);
      port.promiscuous = true;
      assert.deepEqual(found(), [0, 0, 0, 0]);
      port.promiscuous = false;
      assert.deepEqual(found(), [0, 0, -1, -1]);
      await port.stop();
      port.promiscuous = true;
      await start();
      assert.deepEqual(found(), [0, 0, 0, 0]);
      await port.stop();
    }),
  );

  it(
    'more than the ring has; the tail never catches the head, and is told once a burst',
    withCard(async ({ card, port, start, packets }) => {
      await start();
      let next = 0;
      for (let turn = 0; turn < 50; turn++) {
        const before = turn;
        while (card.receive(frameOf(60, next)) === 0) next++;
        const doorbells = card.doorbells;
        const burst = takeAll(port);
        assert.equal(burst.length, 63, String(before));
        assert.equal(card.doorbells, doorbells + 1);
        for (const packet of burst) packets.releaseOne(packet);
      }
      assert.equal(port.statistics().rxMissed, 50);
      await port.stop();
    }),
  );

  it(
    'while the pool is empty nothing, and again when it is not',
    withCard(async ({ card, port, start, packets, pool }) => {
      await start();
      const hoard = new Int32Array(pool.available);
      assert.ok(packets.take(hoard, hoard.length));
      for (let i = 0; i < 63; i++) card.receive(frameOf(60, i));
      const held = takeAll(port);
      assert.equal(held.length, 63);
      for (let i = 0; i < 5; i++) assert.deepEqual(takeAll(port), []);
      assert.equal(port.statistics().rxNoBuffers, 63, 'each descriptor once');
      assert.equal(card.receive(frameOf(60)), -1);
      packets.release(hoard, hoard.length);
      // Who waits does not wait for ever: no interrupt comes for a ring that is empty.
      const waits = port.readable(0);
      for (let i = 0; card.receive(frameOf(60, 9)) < 0; i++) {
        assert.ok(i < 1000);
        await new Promise((resolve) => setTimeout(resolve, 1));
      }
      await waits;
      held.push(...takeAll(port));
      assert.equal(held.length, 64);
      for (const packet of held) packets.releaseOne(packet);
      await port.stop();
    }),
  );

  it(
    'not with elements that are too few or too small, and then nothing is kept',
    withCard(async ({ eal, port, pool, packets, start }) => {
      const few = eal.pools.create({ elements: 40, elementSize: 1024 });
      await assert.rejects(start({ packets: new Packets(few) }), dmaError('ENOMEM', /has 40 elements/));
      assert.equal(few.available, 40);
      few.free();
      const small = eal.pools.create({ elements: 100, elementSize: HEADROOM + 255 });
      await assert.rejects(start({ packets: new Packets(small, { headroom: HEADROOM }) }), dmaError('EINVAL', /255/));
      small.free();
      for (const wrong of [{ rxDescriptors: 68 }, { txDescriptors: 56 }, { rxQueues: 3 }, { maxFrame: 9231 }])
        await assert.rejects(start(wrong), dmaError('EINVAL'));
      await assert.rejects(start({ offloads: OFFLOAD.TX_TSO }), dmaError('ENOTSUP'));
      assert.equal(pool.available, ELEMENTS);
      await start({ packets });
      await port.stop();
    }),
  );
});

describe('it sends', () => {
  it(
    'packets of one and of many segments, also from attached memory',
    withCard(
      async ({ eal, device, card, port, start, packets }) => {
        await start();
        const frames = [60, 256, 257, 1514, 9000].map((length) => frameOf(length, length));
        assert.equal(send(port, ...frames.map((frame) => packets.from(frame))), 5);
        assert.deepEqual(card.sent.splice(0), frames);
        using memory = eal.external.allocate(4096);
        const mapping = device.dmaMap(memory);
        memory.bytes().set(frameOf(500, 3));
        let released = 0;
        const show = { bytes: memory.bytes(), va: memory.va, released: () => released++ };
        const head = packets.from(frameOf(64, 4));
        const more = packets.takeOne();
        packets.attach(more, show, 100, 300);
        packets.chain(head, more);
        assert.equal(send(port, head), 1);
        assert.deepEqual(card.sent.splice(0), [
          Uint8Array.from([...frameOf(64, 4), ...frameOf(500, 3).subarray(100, 400)]),
        ]);
        port.statistics();
        assert.equal(released, 1);
        mapping.unmap();
        // Memory that the adapter can not reach: counted, and the others go out.
        const lost = packets.takeOne();
        packets.attach(lost, show, 0, 300);
        assert.equal(send(port, packets.from(frames[0]), lost, packets.from(frames[1])), 3);
        assert.deepEqual(card.sent.splice(0), frames.slice(0, 2));
        const { txPackets, txBytes, txErrors } = port.statistics();
        assert.deepEqual(
          [txPackets, txBytes, txErrors, released],
          [8, 60 + 256 + 257 + 1514 + 9000 + 364 + 60 + 256, 1, 2],
        );
        await port.stop();
      },
      { buffer: 256 },
    ),
  );

  it(
    'packets whose segments lie across pages: a descriptor for each page, as far as the ring has any',
    withCard(
      async ({ eal, device, card, port, start, packets }) => {
        await start();
        using memory = eal.external.allocate(1 << 20);
        const mapping = device.dmaMap(memory);
        card.holds = true;
        /** A packet of segments that are each half in one page, and half in the next. */
        const across = (segments: number): number => {
          const head = packets.takeOne();
          for (let i = 0; i < segments; i++) {
            const piece = i === 0 ? head : packets.takeOne();
            const bytes = memory.bytes().subarray(i * 8192, (i + 2) * 8192);
            packets.attach(piece, { bytes, va: memory.va + i * 8192, released: () => undefined }, 4096 - 50, 100);
            if (i > 0) packets.chain(head, piece);
          }
          return head;
        };
        const large = across(28);
        const burst = [...Array.from({ length: 10 }, () => across(1)), large, across(35), across(3)];
        assert.equal(send(port, ...burst), 10, 'the large one finds no room yet');
        card.step();
        assert.equal(send(port, ...burst.slice(10)), 2, 'what never finds any is refused');
        card.step();
        assert.equal(send(port, ...burst.slice(12)), 1);
        card.step();
        const { txPackets, txErrors } = port.statistics();
        assert.deepEqual([txPackets, txErrors], [12, 1]);
        assert.deepEqual(card.sent.map(({ length }) => length).slice(9), [100, 2800, 300]);
        await port.stop();
        mapping.unmap();
      },
      { buffer: 256 },
    ),
  );

  it(
    'short frames with zeros behind them, and not with what was in memory',
    withCard(async ({ card, port, start, packets }) => {
      await start();
      for (const length of [14, 20, 42, 59, 60]) {
        const packet = packets.from(new Uint8Array(2000).fill(0xee));
        packets.truncate(packet, length);
        assert.equal(send(port, packet), 1);
        const frame = new Uint8Array(60);
        frame.fill(0xee, 0, length);
        assert.deepEqual(card.sent.splice(0), [frame]);
      }
      await port.stop();
    }),
  );

  it(
    'not what is no frame: it is counted and released',
    withCard(
      async ({ card, port, start, packets }) => {
        await start();
        const [empty, runt] = [packets.takeOne(), packets.from(new Uint8Array(13))];
        const long = packets.from(frameOf(9231));
        const many = packets.from(frameOf(14));
        for (let i = 0; i < 40; i++) packets.chain(many, packets.from(Uint8Array.of(i)));
        const cut = packets.from(frameOf(100));
        packets.flags[cut] = OFFLOAD.TX_TSO;
        const bad = [empty, runt, long, many, cut];
        assert.equal(send(port, ...bad, packets.from(frameOf(70))), 6);
        assert.deepEqual(card.sent, [frameOf(70)]);
        assert.equal(port.statistics().txErrors, bad.length);
        for (const packet of bad) assert.ok(!packets.inUse(packet));
        await port.stop();
      },
      { buffer: 256 },
    ),
  );

  it(
    'as much of a burst as the ring takes; the rest stays the caller’s',
    withCard(async ({ card, port, start, packets }) => {
      await start();
      card.holds = true;
      const burst = Array.from({ length: 100 }, (_, i) => packets.from(frameOf(60 + i)));
      const doorbells = card.doorbells;
      const first = send(port, ...burst);
      assert.equal(card.doorbells, doorbells + 1);
      assert.ok(first > 50 && first < 64, String(first));
      assert.equal(send(port, ...burst.slice(first)), 0);
      card.step(10);
      const second = send(port, ...burst.slice(first));
      assert.ok(second > 0 && second <= 10);
      card.holds = false;
      card.step();
      const rest = burst.slice(first + second);
      assert.equal(send(port, ...rest), rest.length);
      assert.deepEqual(
        card.sent.map(({ length }) => length),
        burst.map((_, i) => 60 + i),
      );
      await port.stop();
    }),
  );

  it(
    'not what it has already, or what is in nobody’s hands: nothing of such a burst is taken',
    withCard(async ({ card, port, start, packets }) => {
      await start({ txQueues: 2 });
      card.holds = true;
      const [a, b] = [packets.from(frameOf(60)), packets.from(frameOf(61))];
      for (const wrong of [
        [a, a],
        [a, b, NONE],
        [b, 100_000],
      ]) {
        throwsDma('EINVAL', () => send(port, ...wrong));
        assert.ok(packets.inUse(a) && packets.inUse(b));
      }
      assert.equal(send(port, a), 1);
      throwsDma('EINVAL', () => port.tx(1, Int32Array.of(b, a)));
      card.step();
      assert.equal(send(port, b), 1, 'the one before it in the burst was not taken');
      card.step();
      assert.deepEqual(card.sent, [frameOf(60), frameOf(61)]);
      assert.equal(port.statistics().txPackets, 2);
      // A packet that the program released all the same does not stop the others.
      const [c, d] = [packets.from(frameOf(62)), packets.from(frameOf(63))];
      assert.equal(send(port, c, d), 2);
      packets.releaseOne(c);
      card.step();
      assert.equal(port.statistics().txPackets, 4);
      assert.ok(!packets.inUse(d));
      await port.stop();
    }),
  );

  it(
    'no segment of a chain that it has, nor a chain that runs in a circle; afterwards each is free again',
    withCard(async ({ card, port, start, packets, pool }) => {
      await start();
      card.holds = true;
      const [head, middle, end] = [packets.from(frameOf(60)), packets.from(frameOf(61)), packets.from(frameOf(62))];
      packets.chain(middle, end);
      packets.chain(head, middle);
      assert.equal(send(port, head), 1);
      for (const segment of [head, middle, end]) throwsDma('EINVAL', () => send(port, segment));
      card.step();
      port.statistics();
      assert.equal(pool.available, ELEMENTS - 63, 'released once');
      const [a, b] = [packets.from(frameOf(63)), packets.from(frameOf(64))];
      packets.chain(a, b);
      packets.next[b] = a;
      throwsDma('EINVAL', () => send(port, a));
      packets.next[b] = NONE;
      assert.equal(send(port, a), 1);
      card.step();
      assert.equal(port.statistics().txPackets, 2);
      await port.stop();
    }),
  );

  it(
    'nothing while the link is down, in the middle of a burst too; then the rest in order',
    withCard(async ({ card, port, start, packets }) => {
      await start();
      card.holds = true;
      const frames = Array.from({ length: 20 }, (_, i) => frameOf(60 + i));
      assert.equal(send(port, ...frames.map((frame) => packets.from(frame))), 20);
      card.step(7);
      card.setLink(false);
      card.step();
      assert.equal(port.statistics().txPackets, 7);
      card.holds = false;
      card.setLink(true);
      assert.deepEqual(card.sent, frames);
      assert.equal(port.statistics().txPackets, 20);
      await port.stop();
    }),
  );
});

describe('legacy descriptors', () => {
  const LEGACY = { name: 'vdev:card0,descriptors=legacy' };

  it(
    'have one receive queue and no hash; frames, errors, sums and tags are as with others',
    withCard(async (room) => {
      const { card, port, start, packets } = room;
      assert.equal(port.limits.rxQueues, 1);
      await assert.rejects(start({ rxQueues: 2 }), dmaError('EINVAL'));
      await assert.rejects(start({ offloads: OFFLOAD.RX_HASH }), dmaError('ENOTSUP'));
      await start({ maxFrame: 9014, offloads: OFFLOAD.RX_VLAN_STRIPPED | SUMS });
      for (const length of [60, 2048, 2049, 9014]) {
        card.receive(frameOf(length, length));
        assert.deepEqual(takeOne(room).bytes, frameOf(length, length));
      }
      card.receive(frameOf(100), { unfinished: true });
      assert.deepEqual(takeAll(port), []);
      card.finish();
      assert.deepEqual(takeOne(room).bytes, frameOf(100));
      card.receive(frameOf(100), { errors: 1 << 24 });
      assert.deepEqual(takeAll(port), []);
      assert.equal(port.statistics().rxErrors, 1);
      const good = OFFLOAD.RX_IP_GOOD | OFFLOAD.RX_L4_GOOD;
      card.receive(ipFrame(6, { tag: 0xa123 }));
      const tagged = takeOne(room);
      assert.deepEqual(
        [tagged.bytes, tagged.flags, tagged.vlan],
        [ipFrame(6), good | OFFLOAD.RX_VLAN_STRIPPED, 0xa123],
      );
      const wrong = ipFrame(17);
      wrong[wrong.length - 1]++;
      card.receive(wrong);
      assert.equal(takeOne(room).flags, OFFLOAD.RX_IP_GOOD | OFFLOAD.RX_L4_BAD);
      const [plain, long, tag] = [packets.from(frameOf(42)), packets.from(frameOf(9000)), packets.from(ipFrame(17))];
      packets.flags[tag] = OFFLOAD.TX_VLAN;
      packets.vlan[tag] = 0x2005;
      assert.equal(send(port, plain, long, tag), 3);
      const padded = new Uint8Array(60);
      padded.set(frameOf(42));
      assert.deepEqual(card.sent, [padded, frameOf(9000), ipFrame(17, { tag: 0x2005 })]);
      assert.ok(card.legacySent >= 8, `${card.legacySent} legacy descriptors`);
      await port.stop();
    }, LEGACY),
  );

  it('and no others than the two', async () => {
    await using eal = await Eal.start();
    eal.vdev.define('card', (host) => new FakeE1000e(host));
    await assert.rejects(eal.probe('vdev:card0,descriptors=new'), dmaError('EINVAL', /descriptors=new/));
  });
});

describe('offloads', () => {
  it(
    'check sums of received frames are told, if they are asked for and were checked',
    withCard(async (room) => {
      const { card, port, start } = room;
      await start({ offloads: SUMS });
      const flagsOf = (frame: Uint8Array, errors = 0): number => {
        card.receive(frame, { errors });
        return takeOne(room).flags;
      };
      for (const protocol of [6, 17] as const) {
        const right = ipFrame(protocol);
        assert.equal(flagsOf(right), OFFLOAD.RX_IP_GOOD | OFFLOAD.RX_L4_GOOD);
        const wrongIp = right.slice();
        wrongIp[14 + 8]--;
        assert.equal(flagsOf(wrongIp), OFFLOAD.RX_IP_BAD | OFFLOAD.RX_L4_GOOD);
        const wrongL4 = right.slice();
        wrongL4[wrongL4.length - 1]++;
        assert.equal(flagsOf(wrongL4), OFFLOAD.RX_IP_GOOD | OFFLOAD.RX_L4_BAD);
        assert.equal(flagsOf(right, RX.IGNORE_SUMS), 0);
      }
      assert.equal(flagsOf(frameOf(60)), 0, 'no IP');
      await port.stop();
      await start();
      assert.equal(flagsOf(ipFrame(6)), 0);
      await port.stop();
    }),
  );

  it(
    'tags are stripped if that is asked for',
    withCard(async (room) => {
      const { card, port, start } = room;
      await start({ offloads: OFFLOAD.RX_VLAN_STRIPPED });
      card.receive(ipFrame(17, { tag: 0xa123 }));
      const { bytes, flags, vlan } = takeOne(room);
      assert.deepEqual([bytes, flags, vlan], [ipFrame(17), OFFLOAD.RX_VLAN_STRIPPED, 0xa123]);
      assert.equal(port.statistics().rxBytes, ipFrame(17, { tag: 0 }).length, 'a tag counts, stripped or not');
      card.receive(ipFrame(17));
      assert.equal(takeOne(room).flags, 0);
      await port.stop();
      await start();
      card.receive(ipFrame(17, { tag: 0xa123 }));
      const whole = takeOne(room);
      assert.deepEqual([whole.bytes, whole.flags], [ipFrame(17, { tag: 0xa123 }), 0]);
      await port.stop();
    }),
  );

  /** A frame whose sums hardware is to compute. */
  function unsummed(packets: Packets, protocol: 6 | 17, flags: number): number {
    const frame = ipFrame(protocol);
    const length = frame.length - 34;
    put(frame, 14 + 10, 0);
    put(frame, 34 + (protocol === 6 ? 16 : 6), ~checksum(pseudo(frame, 14, protocol, length)) & 0xffff);
    const packet = packets.from(frame);
    packets.flags[packet] = flags;
    packets.l2[packet] = 14;
    packets.l3[packet] = 20;
    return packet;
  }

  for (const strips of [true, false])
    it(
      `check sums are computed and tags inserted, ${strips ? 'by the adapter' : 'or by the driver where the adapter does not strip'}`,
      withCard(async ({ card, port, start, packets }) => {
        await start({ offloads: strips ? OFFLOAD.RX_VLAN_STRIPPED : 0 });
        for (const [protocol, l4] of [
          [6, OFFLOAD.TX_TCP],
          [17, OFFLOAD.TX_UDP],
        ] as const)
          for (const tag of [-1, 0x2005]) {
            const flags = OFFLOAD.TX_IP | l4 | (tag < 0 ? 0 : OFFLOAD.TX_VLAN);
            const packet = unsummed(packets, protocol, flags);
            packets.vlan[packet] = tag;
            const bytes = packets.copy(packet);
            packets.clone(packet);
            assert.equal(send(port, packet), 1);
            assert.deepEqual(card.sent.splice(0), [ipFrame(protocol, { tag })]);
            const [clone] = Array.from({ length: ELEMENTS }, (_, i) => i).filter(
              (i) =>
                i !== packet && packets.inUse(i) && packets.total[i] === bytes.length && packets.buffer[i] === packet,
            );
            assert.deepEqual(packets.copy(clone), bytes, 'memory of packets is not written');
            packets.releaseOne(clone);
          }
        const plain = packets.from(frameOf(42));
        packets.flags[plain] = OFFLOAD.TX_VLAN;
        packets.vlan[plain] = 7;
        send(port, plain);
        const [tagged] = card.sent.splice(0);
        const wanted = [...frameOf(42).subarray(0, 12), 0x81, 0, 0, 7, ...frameOf(42).subarray(12)];
        assert.deepEqual([...tagged.subarray(0, 46)], wanted);
        assert.ok(tagged.length >= 60 && tagged.subarray(46).every((byte) => byte === 0));
        await port.stop();
      }),
    );

  it(
    'headers that are not in the frame are refused',
    withCard(async ({ card, port, start, packets }) => {
      await start();
      const wrongs: [Partial<{ l2: number; l3: number }>, number][] = [
        [{ l2: 0 }, OFFLOAD.TX_TCP],
        [{ l3: 0 }, OFFLOAD.TX_TCP],
        [{ l2: 70 }, OFFLOAD.TX_TCP],
        [{ l3: 300 }, OFFLOAD.TX_UDP],
        [{}, OFFLOAD.TX_TCP | OFFLOAD.TX_UDP],
        [{}, OFFLOAD.TX_IP | OFFLOAD.TX_IPV6],
      ];
      for (const [{ l2 = 14, l3 = 20 }, flags] of wrongs) {
        const packet = unsummed(packets, 6, flags);
        packets.l2[packet] = l2;
        packets.l3[packet] = l3;
        assert.equal(send(port, packet), 1);
      }
      assert.deepEqual(card.sent, []);
      assert.equal(port.statistics().txErrors, wrongs.length);
      await port.stop();
    }),
  );

  it(
    'flows are spread over two queues, both directions of one to the same, with their hash',
    withCard(async (room) => {
      const { card, port, start, packets } = room;
      await start({ rxQueues: 2, offloads: OFFLOAD.RX_HASH });
      const found = [0, 0];
      for (let i = 0; i < 40; i++) {
        const there = ipFrame(6, { from: 1, to: i + 2, ports: [1000 + i, 80] });
        const back = ipFrame(6, { from: i + 2, to: 1, ports: [80, 1000 + i] });
        const queue = card.receive(there);
        assert.equal(card.receive(back), queue);
        found[queue]++;
        const burst = takeAll(port, queue);
        assert.deepEqual(
          burst.map((packet) => packets.copy(packet)),
          [there, back],
        );
        assert.deepEqual(takeAll(port, 1 - queue), []);
        const [a, b] = burst;
        assert.equal(packets.flags[a] & OFFLOAD.RX_HASH, OFFLOAD.RX_HASH);
        assert.equal(packets.hash[a], packets.hash[b]);
        assert.equal((packets.hash[a] & 1) !== 0 ? 1 : 0, queue);
        for (const packet of burst) packets.releaseOne(packet);
      }
      assert.ok(found[0] > 5 && found[1] > 5, String(found));
      card.receive(frameOf(60));
      assert.equal(takeOne(room).flags, 0, 'what is no IP has none');
      await port.stop();
      await start({ offloads: OFFLOAD.RX_HASH });
      card.receive(ipFrame(6));
      assert.equal(takeOne(room).flags, OFFLOAD.RX_HASH, 'with one queue, too');
      await port.stop();
    }),
  );
});

describe('memory', () => {
  it(
    'that queues use is not unmapped, and what uses it is named; after the stop it is',
    withCard(async ({ eal, device, card, port, start }) => {
      using memory = eal.external.allocate(1 << 20);
      const pool = eal.pools.create({ elements: 256, elementSize: 2176, external: [memory] });
      const mapped = device.dmaMapPool(pool);
      const packets = new Packets(pool);
      await start({ packets });
      assert.throws(() => mapped.unmap(), dmaError('EBUSY', /receive queue 0 uses this memory/));
      assert.throws(() => device.dmaUnmapAll(), dmaError('EBUSY', /rings of its queues/));
      await port.stop();
      await start({ packets, rxQueues: 0 });
      card.holds = true;
      assert.equal(send(port, packets.from(frameOf(60))), 1);
      assert.throws(() => mapped.unmap(), dmaError('EBUSY', /transmit queue 0 uses this memory/));
      card.step();
      port.statistics();
      mapped.unmap();
      await port.stop();
      await assert.rejects(start({ packets }), dmaError('EINVAL'));
      pool.free();
    }),
  );

  it(
    'is not released while transfers still run after the stop began',
    withCard(async ({ card, port, start, pool }) => {
      await start();
      const before = pool.available;
      card.lateLoads = 5;
      const stopped = port.stop();
      assert.equal(pool.available, before);
      await stopped;
      // Each of them would have been a violation if the memory had not been mapped any more.
      assert.equal(card.lateLoads, 0);
      assert.equal(pool.available, ELEMENTS);
    }),
  );

  it(
    'is kept from an adapter that does not end, by its configuration space; it can be started again',
    withCard(async (room) => {
      const { card, port, start, device } = room;
      const isMaster = (): boolean => (device.access.readRegion(7, PCI_COMMAND, 1)[0] & PCI_COMMAND_MASTER) !== 0;
      device.access.writeRegion(7, PCI_COMMAND, Uint8Array.of(PCI_COMMAND_MASTER | 2, 0));
      await start();
      card.neverEnds = true;
      card.neverResets = true;
      await assert.rejects(port.stop(), dmaError('ETIMEDOUT', /reset/));
      assert.equal(isMaster(), false);
      assert.equal(room.pool.available, ELEMENTS);
      card.neverEnds = false;
      card.neverResets = false;
      await start();
      assert.equal(isMaster(), true);
      card.receive(frameOf(60));
      assert.deepEqual(takeOne(room).bytes, frameOf(60));
      await port.stop();
    }),
  );

  it(
    'what was given to tx goes out before a stop, or is counted',
    withCard(async ({ card, port, start, packets, pool }) => {
      await start();
      card.holds = true;
      send(port, packets.from(frameOf(60)), packets.from(frameOf(61)));
      const stopped = port.stop();
      card.step(1);
      card.setLink(false);
      await stopped;
      const { txPackets, txErrors } = port.statistics();
      assert.deepEqual([txPackets, txErrors, pool.available], [1, 1, ELEMENTS]);
      card.setLink(true);
      await start();
      assert.equal(send(port, packets.from(frameOf(60))), 1, 'the ring is a new one');
      card.step();
      await port.stop();
    }),
  );
});

describe('interrupts, link and loss', () => {
  for (const [what, interrupts] of [
    ['MSI-X', { intx: 1, msi: 1, msix: 5 }],
    ['MSI', { intx: 1, msi: 1, msix: 0 }],
    ['a wire', { intx: 1, msi: 0, msix: 0 }],
    ['looking, where there are none', { intx: 0, msi: 0, msix: 0 }],
  ] as const)
    it(
      `who waits for packets is woken by ${what}, and not while it polls`,
      withCard(
        async (room) => {
          const { card, port, start, packets } = room;
          await start({ rxQueues: 2 });
          const has = interrupts.intx > 0;
          card.receive(frameOf(60));
          assert.deepEqual(card.raised, [], 'it polls');
          await port.readable(0);
          takeOne(room);
          for (let turn = 0; turn < 3; turn++) {
            const waits = port.readable(0);
            card.receive(frameOf(60, turn));
            await waits;
            assert.equal(card.raised.length, has ? turn + 1 : 0);
            assert.deepEqual(takeOne(room).bytes, frameOf(60, turn));
          }
          const found = (async (): Promise<Uint8Array | undefined> => {
            for await (const burst of port.packets(0)) {
              const bytes = packets.copy(burst[0]);
              packets.release(burst, burst.length);
              return bytes;
            }
            return undefined;
          })();
          card.receive(frameOf(64));
          assert.deepEqual(await found, frameOf(64));
          await port.stop();
        },
        { interrupts },
      ),
    );

  it(
    'a wait ends by its signal, its time, or the stop',
    withCard(async ({ port, start }) => {
      await start();
      await port.readable(0, { timeoutMs: 1 });
      const abort = new AbortController();
      const waits = [port.readable(0, { signal: abort.signal }), port.readable(0)];
      abort.abort();
      await assert.rejects(waits[0], dmaError('ECANCELED'));
      await port.stop();
      await waits[1];
    }),
  );

  it(
    'changes of the link are events, started or not',
    withCard(async ({ card, port, start }) => {
      const events = port.events();
      const next = async (): Promise<PortEvent> => {
        const result = await events.next();
        assert.ok(result.done !== true);
        return result.value;
      };
      card.setLink(false);
      assert.deepEqual(await next(), { kind: 'link', link: { up: false, speed: 0, fullDuplex: false } });
      await start();
      card.setLink(true, 1, false);
      assert.deepEqual(await next(), { kind: 'link', link: { up: true, speed: 100, fullDuplex: false } });
      assert.deepEqual(port.link, { up: true, speed: 100, fullDuplex: false });
      await port.stop();
      card.setLink(true, 0);
      assert.deepEqual(await next(), { kind: 'link', link: { up: true, speed: 10, fullDuplex: true } });
    }),
  );

  it(
    'counters are taken from the adapter before they wrap, and added up',
    withCard(async ({ card, port, start }) => {
      await start();
      card.count(STATISTICS.MISSED, 2 ** 32 - 2);
      assert.equal(port.statistics().rxMissed, 2 ** 32 - 2);
      card.count(STATISTICS.MISSED, 2 ** 32 - 1);
      card.count(STATISTICS.CRC_ERRORS, 3);
      card.count(STATISTICS.JABBER, 4);
      card.count(STATISTICS.LATE_COLLISIONS, 5);
      const { rxMissed, rxErrors, txErrors } = port.statistics();
      assert.deepEqual([rxMissed, rxErrors, txErrors], [2 ** 33 - 3, 7, 5]);
      assert.equal(port.statistics().rxMissed, 2 ** 33 - 3, 'reading sets them to 0');
      card.count(STATISTICS.MISSED, 9);
      port.resetStatistics();
      assert.equal(port.statistics().rxMissed, 0);
      await port.stop();
    }),
  );

  it(
    'an adapter that was unplugged is lost: who waits is told, its packets are released, its counters stay',
    withCard(async ({ card, port, start, packets, pool }) => {
      await start();
      card.receive(frameOf(60));
      packets.releaseOne(takeAll(port)[0]);
      card.holds = true;
      send(port, packets.from(frameOf(60)));
      const events = port.events();
      const waits = port.readable(0);
      card.gone = true;
      assert.equal(port.statistics().rxPackets, 1);
      assert.equal(port.lost?.code, 'ENODEV');
      await assert.rejects(waits, dmaError('ENODEV', /all ones/));
      const { value } = await events.next();
      assert.equal(value?.kind, 'lost');
      assert.deepEqual(port.link, { up: false, speed: 0, fullDuplex: false });
      const packet = packets.from(frameOf(60));
      assert.deepEqual([takeAll(port), send(port, packet), port.ended], [[], 0, true]);
      packets.releaseOne(packet);
      port.promiscuous = true;
      assert.equal(port.statistics().rxMissed, 0);
      await port.stop();
      assert.equal(pool.available, ELEMENTS);
      assert.equal(port.statistics().txErrors, 1);
      await assert.rejects(start(), dmaError('ENODEV'));
    }),
  );

  for (const way of ['polling', 'sending'] as const)
    it(
      `who is only ${way} notices it`,
      withCard(async ({ card, port, start, packets }) => {
        await start();
        card.gone = true;
        const burst = Int32Array.from({ length: 64 }, () => packets.from(frameOf(60)));
        let taken = 0;
        for (let i = 0; i < 10_000 && port.lost === undefined; i++)
          if (way === 'polling') takeAll(port);
          else taken += port.tx(0, burst.subarray(taken));
        assert.equal(port.lost?.code, 'ENODEV');
        packets.release(burst, burst.length - taken, taken);
        await port.stop();
      }),
    );

  it('one that goes at any access to its registers leaves nothing behind', async () => {
    /** Everything that a port does once. @returns how many accesses it took */
    const once = async (accesses: number): Promise<number> => {
      let used = 0;
      await withCard(async ({ card, port, start, packets }) => {
        card.accessesLeft = accesses;
        try {
          await start({ rxQueues: 2, txQueues: 2 });
          card.receive(frameOf(60));
          if (send(port, packets.from(frameOf(61))) === 0) packets.release(Int32Array.from(inUse(packets, 61)), 1);
          for (const packet of takeAll(port)) packets.releaseOne(packet);
          port.promiscuous = true;
          assert.equal(typeof port.link.up, 'boolean');
          port.statistics();
          await port.stop();
        } catch (error) {
          assert.ok(isDmaError(error) && error.code === 'ENODEV', String(error));
          await port.stop();
        }
        used = accesses - card.accessesLeft;
        if (card.gone) assert.equal(port.lost?.code ?? 'ENODEV', 'ENODEV');
      })();
      return used;
    };
    const all = await once(1e6);
    for (let left = all - 1; left >= 0; left -= 1 + Math.floor(left / 6)) await once(left);
  });

  it(
    'removing the device stops the port',
    withCard(async ({ eal, device, port, card, start }) => {
      await start();
      const { resets } = card;
      const events = port.events();
      await eal.remove(device);
      assert.equal(port.started, false);
      assert.equal(card.peek(REG.RCTL) & RCTL.ENABLE, 0);
      // One of the driver's, and one of the bus.
      assert.equal(card.resets, resets + 2);
      assert.deepEqual(await events.next(), { done: true, value: undefined });
    }),
  );
});
