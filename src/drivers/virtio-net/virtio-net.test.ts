/** The virtio-net driver with a device that notes what a driver must not do, and that can do wrong itself. */
import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { capability, FakeVirtioNet, OFFERED } from '../../../test/fakes/net/virtio-net.js';
import { FakeSplitRing, type FakeRing } from '../../../test/fakes/net/virtio-rings.js';
import { dmaError, throwsDma } from '../../../test/shared/errors.js';
import { frameOf, ipFrame, pseudo, put } from '../../../test/shared/frames.js';
import type { Device } from '../../bus/model.js';
import { Eal } from '../../eal.js';
import { isDmaError } from '../../errors.js';
import type { Pool } from '../../memory/pool/pool.js';
import { OFFLOAD } from '../../net/offloads.js';
import { NONE, Packets } from '../../net/packets.js';
import { portOf } from '../../net/port-of.js';
import type { Port, PortConfig, PortEvent } from '../../net/port.js';
import { PCI_COMMAND, PCI_COMMAND_MASTER } from '../../platform/uapi/pci-regs.js';
import type { InterruptCounts } from '../../vfio-user/devices/model.js';
import { FEATURE, STATUS, STRUCTURE } from './layout.js';
import { virtioNetDriver } from './virtio-net-driver.js';

const ELEMENTS = 512;
const HEADROOM = 64;

interface Room {
  readonly eal: Eal;
  readonly device: Device;
  readonly card: FakeVirtioNet;
  readonly port: Port;
  readonly pool: Pool;
  readonly packets: Packets;
  start(config?: Partial<PortConfig>): Promise<void>;
}

interface RoomOptions {
  /** Rings are packed. Default: split. */
  readonly packed?: boolean;
  readonly interrupts?: InterruptCounts;
  readonly buffer?: number;
  /** Before the driver sees it. */
  readonly prepare?: (card: FakeVirtioNet) => unknown;
}

/** A port of a device; at the end the driver did nothing wrong, and every element is back. */
function withSplit(work: (room: Room) => Promise<void>, options: RoomOptions = {}): () => Promise<void> {
  return async () => {
    await using eal = await Eal.start();
    const cards: FakeVirtioNet[] = [];
    eal.vdev.define('card', (host) => {
      const made = new FakeVirtioNet(host, options.interrupts);
      if (options.packed === true) made.offered.add(FEATURE.RING_PACKED);
      options.prepare?.(made);
      cards.push(made);
      return made;
    });
    const device = await eal.probe('vdev:card0');
    const [card] = cards;
    const port = device.use(virtioNetDriver);
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

const withCard = withSplit;

type RxCase = readonly [what: string, wrong: (card: FakeVirtioNet) => void, reason: RegExp];
type TxCase = readonly [what: string, wrong: (ring: FakeRing, card: FakeVirtioNet) => void];

/** Why a device is not opened. */
async function refused(prepare: (card: FakeVirtioNet) => unknown): Promise<string> {
  await using eal = await Eal.start();
  eal.vdev.define('card', (host) => {
    const card = new FakeVirtioNet(host);
    prepare(card);
    return card;
  });
  return await eal.probe('vdev:card0').then(
    () => 'opened',
    (error: unknown) => (isDmaError(error) ? `${error.code} ${error.reason}` : String(error)),
  );
}

function takeAll(port: Port, queue = 0): number[] {
  const burst = new Int32Array(64);
  return [...burst.subarray(0, port.rx(queue, burst))];
}

/** One packet, its bytes and flags; it is released. */
function takeOne({ port, packets }: Room, queue = 0): { bytes: Uint8Array; flags: number } {
  const [packet, ...more] = takeAll(port, queue);
  assert.ok(packet !== undefined && more.length === 0, `${more.length + 1} packets`);
  const bytes = packets.copy(packet);
  const flags = packets.flags[packet];
  packets.releaseOne(packet);
  return { bytes, flags };
}

function send(port: Port, ...burst: number[]): number {
  return port.tx(0, Int32Array.from(burst));
}

function without(...features: number[]): (card: FakeVirtioNet) => void {
  return (card) => {
    for (const feature of features) card.offered.delete(feature);
  };
}

describe('a device is opened', () => {
  it(
    'it has the address, link and limits that it tells',
    withCard(async ({ port, device, card }) => {
      assert.equal(portOf(device), port);
      assert.equal(port.mac, '52:54:00:12:34:56');
      assert.deepEqual(port.link, { up: true, speed: 10_000, fullDuplex: true });
      assert.deepEqual(port.limits.descriptors, { least: 64, most: 128, multiple: 1 });
      assert.deepEqual([port.limits.rxQueues, port.limits.txQueues, port.limits.maxFrame], [2, 2, 65_549]);
      card.speed = 0xffffffff;
      assert.equal(port.link.speed, 0, 'it does not know');
    }),
  );

  it(
    'one with less: no address, no link, no speed, one pair, a queue size that is no power of two, an MTU',
    withCard(
      async ({ port, card, start }) => {
        assert.match(port.mac, /^[0-9a-f][26ae](:[0-9a-f]{2}){5}$/);
        assert.deepEqual(port.link, { up: true, speed: 0, fullDuplex: true });
        assert.deepEqual(port.limits.descriptors, { least: 32, most: 32, multiple: 1 });
        assert.deepEqual([port.limits.rxQueues, port.limits.maxFrame], [1, 1400 + 14]);
        await start({ rxDescriptors: 32, txDescriptors: 32, maxFrame: 1414 });
        assert.deepEqual(card.commands[0].slice(0, 2), [1, 1], 'it is told its address');
        await port.stop();
      },
      {
        prepare: (card) => {
          without(FEATURE.MAC, FEATURE.STATUS, FEATURE.SPEED_DUPLEX, FEATURE.MQ)(card);
          card.offered.add(FEATURE.MTU);
          Object.assign(card, { queueSize: 48, mtu: 1400 });
          card.reset();
        },
      },
    ),
  );

  it('not if it is old, passes the IOMMU by, or is gone', async () => {
    assert.match(await refused(without(FEATURE.VERSION_1)), /^ENOTSUP .*VERSION_1/);
    assert.match(await refused(without(FEATURE.ACCESS_PLATFORM)), /^ENOTSUP .*ACCESS_PLATFORM/);
    assert.match(await refused((card) => (card.capabilities = [])), /^ENOTSUP .*before virtio 1\.0/);
    assert.match(await refused((card) => (card.gone = true)), /^ENODEV .*all ones/);
    assert.match(await refused((card) => (card.neverResets = true)), /^ETIMEDOUT .*reset/);
    for (const pairs of [0, 0x8001]) assert.match(await refused((card) => (card.pairs = pairs)), /^ENODEV .*pairs/);
    assert.match(
      await refused((card) => {
        card.queueSize = 2;
        card.reset();
      }),
      /^ENODEV a queue of the device has 2 descriptors/,
    );
  });

  const BAD: readonly (readonly [what: string, bad: Uint8Array, reason: RegExp])[] = [
    ['a BAR that there is not', capability(STRUCTURE.COMMON, 0, 56, { bar: 6 }), /common .*BAR 6, which there is not/],
    ['a BAR that is empty', capability(STRUCTURE.COMMON, 0, 56, { bar: 1 }), /common .*BAR 1, which has 0x0/],
    ['an end behind the BAR', capability(STRUCTURE.COMMON, 0x3fe0, 56), /common .*which has 0x4000/],
    ['an offset that wraps', capability(STRUCTURE.COMMON, 0xfffffffc, 56), /common .*which has 0x4000/],
    ['too short', capability(STRUCTURE.COMMON, 0, 55), /common .*fewer than 56/],
    ['not aligned', capability(STRUCTURE.COMMON, 2, 56), /common .*not at a multiple of 4/],
    ['without a multiplier', capability(STRUCTURE.NOTIFY, 0x3000, 0x1000), /notify .*without a multiplier/],
    ['an odd multiplier', capability(STRUCTURE.NOTIFY, 0x3000, 0x1000, { multiplier: 3 }), /notify .*multiplier of 3/],
    ['a configuration that is cut', capability(STRUCTURE.DEVICE, 0x2000, 12), /has 12 bytes, and 20 are needed/],
  ];
  for (const [what, bad, reason] of BAD) {
    const replace = (card: FakeVirtioNet): void => {
      card.capabilities = card.capabilities.filter((own) => own[3] !== bad[3]).concat([bad]);
    };
    it(`not with capabilities that can not be: ${what}`, async () => {
      assert.match(await refused(replace), reason);
    });
    if (bad[3] !== STRUCTURE.DEVICE)
      it(
        `and a good one behind it is used: ${what}`,
        withCard(
          async (room) => {
            await room.start();
            room.card.receive(frameOf(60));
            assert.deepEqual(takeOne(room).bytes, frameOf(60));
            await room.port.stop();
          },
          { prepare: (card) => (card.capabilities = [bad, ...card.capabilities]) },
        ),
      );
  }

  it(
    'notifications that are behind their structure are no notifications',
    withCard(
      async ({ start }) => {
        await assert.rejects(start(), dmaError('EIO', /notifications of queue 1 are at 0x4 of 0x4 bytes/));
      },
      {
        prepare: (card) =>
          (card.capabilities = card.capabilities
            .filter((own) => own[3] !== STRUCTURE.NOTIFY)
            .concat([capability(STRUCTURE.NOTIFY, 0x3000, 4, { multiplier: 4 })])),
      },
    ),
  );

  it(
    'what it does not take is said, and it can be started afterwards',
    withCard(async ({ card, start, port, pool }) => {
      card.refusesFeatures = true;
      await assert.rejects(start(), dmaError('ENOTSUP', /does not work with the features/));
      card.refusesFeatures = false;
      card.refusesVectors = true;
      await assert.rejects(start(), dmaError('EIO', /interrupt vector/));
      card.refusesVectors = false;
      card.refusesCommands = true;
      await assert.rejects(start(), dmaError('EIO', /answered 1: promiscuous off/));
      card.refusesCommands = false;
      card.neverAnswers = true;
      await assert.rejects(start(), dmaError('ETIMEDOUT', /did not answer/));
      card.neverAnswers = false;
      assert.deepEqual([pool.available, card.status & STATUS.DRIVER_OK], [ELEMENTS, 0]);
      await start();
      assert.ok((card.status & STATUS.DRIVER_OK) !== 0);
      await port.stop();
      assert.equal(card.status & STATUS.DRIVER_OK, 0);
    }),
  );
});

for (const packed of [false, true])
  describe(`it receives by ${packed ? 'packed' : 'split'} rings`, () => {
    const withCard: typeof withSplit = (work, options) => withSplit(work, { ...options, packed });
    it(
      'frames of any length, also of exactly the size of a buffer, or of several',
      withCard(
        async (room) => {
          await room.start({ maxFrame: 9014 });
          // 256 bytes and the header are an element, and the others of the frame have 268.
          const lengths = [60, 61, 255, 256, 257, 256 + 268, 256 + 269, 1514, 2048, 9014];
          for (const length of lengths) {
            const frame = frameOf(length, length);
            assert.equal(room.card.receive(frame), 0);
            assert.deepEqual(takeOne(room).bytes, frame, String(length));
          }
          const { rxPackets, rxBytes, rxErrors } = room.port.statistics();
          assert.deepEqual([rxPackets, rxBytes, rxErrors], [10, lengths.reduce((sum, length) => sum + length), 0]);
          await room.port.stop();
        },
        { buffer: 256 },
      ),
    );

    it(
      'whole frames into one element each, where there are none of several',
      withCard(
        async (room) => {
          await assert.rejects(room.start({ maxFrame: 2049 }), dmaError('EINVAL', /2048 bytes are too small/));
          await room.start({ maxFrame: 2048 });
          room.card.receive(frameOf(2048), { buffers: 77 });
          assert.deepEqual(takeOne(room).bytes, frameOf(2048), 'the number of buffers says nothing then');
          await room.port.stop();
        },
        { prepare: without(FEATURE.MRG_RXBUF) },
      ),
    );

    it(
      'and not what is longer than its buffer, shorter than a header, empty, or of elements that can not be; the next frame is whole',
      withCard(async (room) => {
        const { card, port } = room;
        await room.start();
        const wrongs = [
          { written: 2048 + 13 },
          { written: 0xffffffff },
          { written: 0 },
          { written: 11 },
          { written: 12 },
          { buffers: 0 },
          { buffers: 65 },
          { buffers: 0xffff },
        ];
        for (const [i, wrong] of wrongs.entries()) {
          card.receive(frameOf(100), wrong);
          assert.deepEqual(takeAll(port), []);
          assert.equal(port.statistics().rxErrors, i + 1, JSON.stringify(wrong));
          card.receive(frameOf(90, i));
          assert.deepEqual(takeOne(room).bytes, frameOf(90, i));
        }
        assert.equal(card.receive(frameOf(1519)), 0);
        card.receive(frameOf(1518));
        assert.equal(takeOne(room).bytes.length, 1518, 'there is room for a tag');
        assert.equal(port.statistics().rxErrors, wrongs.length + 1);
        // A frame whose other elements do not come is kept, and is released at the end.
        card.receive(frameOf(100), { buffers: 3 });
        card.receive(frameOf(100));
        assert.deepEqual(takeAll(port), []);
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
        card.refusesCommands = true;
        throwsDma('EIO', () => (port.promiscuous = true));
        assert.equal(port.promiscuous, false);
        card.refusesCommands = false;
        await port.stop();
        port.promiscuous = true;
        await start();
        assert.deepEqual(found(), [0, 0, 0, 0]);
        await port.stop();
      }),
    );

    it(
      'into as many queues as it is started with, and not into fewer than it sends with',
      withCard(async (room) => {
        const { card, port, start } = room;
        await assert.rejects(start({ rxQueues: 1, txQueues: 2 }), dmaError('EINVAL', /receive queues are too few/));
        await start({ rxQueues: 2, txQueues: 2 });
        const [even, odd] = [frameOf(60), frameOf(60)];
        [even[11], odd[11]] = [2, 3];
        assert.deepEqual([card.receive(even), card.receive(odd)], [0, 1]);
        assert.deepEqual([takeOne(room, 0).bytes, takeOne(room, 1).bytes], [even, odd]);
        const packet = room.packets.from(frameOf(77));
        assert.equal(port.tx(1, Int32Array.of(packet)), 1);
        assert.deepEqual(card.sent, [frameOf(77)]);
        await port.stop();
        await start();
        assert.equal(card.receive(odd), 0);
        takeOne(room);
        await port.stop();
        await start({ rxQueues: 0 });
        assert.equal(card.receive(even), -1);
        await port.stop();
      }),
    );

    it(
      'more than the ring has, again and again, round all its indexes; the device is told once a burst, if it wants',
      withCard(async ({ card, port, start, packets }) => {
        await start();
        let next = 0;
        const turns = 1100;
        for (let turn = 0; turn < turns; turn++) {
          while (card.receive(frameOf(60, next)) === 0) next++;
          const { notifications } = card;
          if (turn === 3) card.ringOf(0).setQuiet(true);
          const burst = takeAll(port);
          assert.equal(burst.length, 64);
          assert.equal(card.notifications, notifications + (turn < 3 ? 1 : 0));
          packets.release(Int32Array.from(burst), burst.length);
        }
        assert.ok(turns * 64 > 0x1_0000, 'the indexes have wrapped');
        await port.stop();
      }),
    );

    it(
      'while the pool is empty nothing, and again when it is not',
      withCard(async ({ card, port, start, packets, pool }) => {
        await start();
        const hoard = new Int32Array(pool.available);
        assert.ok(packets.take(hoard, hoard.length));
        for (let i = 0; i < 64; i++) card.receive(frameOf(60, i));
        const held = takeAll(port);
        assert.equal(held.length, 64);
        for (let i = 0; i < 5; i++) assert.deepEqual(takeAll(port), []);
        assert.equal(port.statistics().rxNoBuffers, 64, 'each descriptor once');
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
        assert.equal(held.length, 65);
        for (const packet of held) packets.releaseOne(packet);
        await port.stop();
      }),
    );

    it(
      'not with elements that are too few, or have no place for the header; and then nothing is kept',
      withCard(async ({ eal, port, pool, packets, start, card }) => {
        const few = eal.pools.create({ elements: 40, elementSize: 1024 });
        await assert.rejects(start({ packets: new Packets(few) }), dmaError('ENOMEM', /has 40 elements/));
        assert.equal(few.available, 40);
        const tight = new Packets(few, { headroom: 11 });
        await assert.rejects(start({ packets: tight }), dmaError('EINVAL', /11 bytes of headroom/));
        few.free();
        for (const wrong of [{ rxDescriptors: 96 }, { txDescriptors: 80 }, { rxQueues: 3 }, { maxFrame: 65_550 }])
          await assert.rejects(start(wrong), dmaError('EINVAL'));
        await assert.rejects(start({ offloads: OFFLOAD.RX_HASH }), dmaError('ENOTSUP'));
        assert.deepEqual([pool.available, card.status & STATUS.DRIVER_OK], [ELEMENTS, 0]);
        await start({ packets });
        await port.stop();
      }),
    );
  });

for (const packed of [false, true])
  describe(`it sends by ${packed ? 'packed' : 'split'} rings`, () => {
    const withCard: typeof withSplit = (work, options) => withSplit(work, { ...options, packed });
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
          // Memory that the device can not reach: counted, and the others go out.
          const lost = packets.from(frameOf(60));
          const hidden = packets.takeOne();
          packets.attach(hidden, show, 0, 300);
          packets.chain(lost, hidden);
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
          const long = packets.from(frameOf(1415));
          const many = packets.from(frameOf(14));
          for (let i = 0; i < 40; i++) packets.chain(many, packets.from(Uint8Array.of(i)));
          const header = packets.from(frameOf(100));
          packets.flags[header] = OFFLOAD.TX_IP;
          const bad = [empty, runt, long, many, header];
          assert.equal(send(port, ...bad, packets.from(frameOf(70))), 6);
          assert.deepEqual(card.sent, [frameOf(70)]);
          assert.equal(port.statistics().txErrors, bad.length);
          for (const packet of bad) assert.ok(!packets.inUse(packet));
          await port.stop();
        },
        {
          buffer: 256,
          prepare: (card) => {
            card.offered.add(FEATURE.MTU);
            card.mtu = 1400;
          },
        },
      ),
    );

    it(
      'as much of a burst as the ring takes, whatever the order is in which the device is done; the rest stays the caller’s',
      withCard(async ({ card, port, start, packets }) => {
        await start();
        card.holds = true;
        const burst = Array.from({ length: 100 }, (_, i) => packets.from(frameOf(60 + i)));
        const { notifications } = card;
        const first = send(port, ...burst);
        assert.equal(card.notifications, notifications + 1);
        assert.ok(first > 25 && first <= 32, `${first}: two descriptors each`);
        assert.equal(send(port, ...burst.slice(first)), 0);
        card.step(10, true);
        const second = send(port, ...burst.slice(first));
        assert.equal(second, 10);
        card.step(Infinity, true);
        let sent = first + second;
        while (sent < burst.length) {
          sent += send(port, ...burst.slice(sent));
          card.step(Infinity, true);
        }
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
        await start({ rxQueues: 2, txQueues: 2 });
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
      withCard(async ({ card, port, start, packets }) => {
        await start();
        card.holds = true;
        const [head, middle, end, a, b, c] = Array.from({ length: 6 }, (_, i) => packets.from(frameOf(60 + i)));
        packets.chain(middle, end);
        packets.chain(head, middle);
        assert.equal(send(port, head), 1);
        for (const segment of [head, middle, end]) throwsDma('EINVAL', () => send(port, c, segment));
        packets.chain(a, b);
        packets.next[b] = a;
        throwsDma('EINVAL', () => send(port, c, a));
        packets.next[b] = NONE;
        card.holds = false;
        card.step();
        assert.equal(send(port, c, a), 2, 'nothing of the burst before was taken');
        // One with more segments than it tells would not find room in the ring.
        const liar = packets.from(frameOf(60));
        for (let i = 0; i < 70; i++) packets.chain(liar, packets.from(frameOf(60)));
        packets.segments[liar] = 1;
        throwsDma('EINVAL', () => send(port, liar));
        packets.segments[liar] = 71;
        assert.equal(send(port, liar, packets.from(frameOf(99))), 2);
        assert.deepEqual([card.sent.at(-1), port.statistics().txErrors], [frameOf(99), 1]);
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

describe('offloads', () => {
  it(
    'sums are computed by the device, behind a tag that is put in, too',
    withCard(async ({ card, port, start, packets }) => {
      await start();
      for (const protocol of [6, 17] as const)
        for (const tag of [-1, 0x2005]) {
          const wanted = ipFrame(protocol, { tag });
          const frame = ipFrame(protocol);
          const length = frame.length - 34;
          put(frame, 34 + (protocol === 6 ? 16 : 6), pseudo(frame, 14, protocol, length));
          const packet = packets.from(frame);
          packets.flags[packet] = (protocol === 6 ? OFFLOAD.TX_TCP : OFFLOAD.TX_UDP) | (tag < 0 ? 0 : OFFLOAD.TX_VLAN);
          [packets.l2[packet], packets.l3[packet], packets.vlan[packet]] = [14, 20, tag];
          assert.equal(send(port, packet), 1);
          assert.deepEqual(card.sent.splice(0), [wanted]);
        }
      assert.equal(port.statistics().txErrors, 0);
      await port.stop();
    }),
  );

  it(
    'large packets of TCP are cut by the device, and the pieces are whole frames',
    withCard(async ({ card, port, start, packets }) => {
      await start();
      for (const tag of [-1, 7]) {
        const frame = ipFrame(6, { data: 3500 });
        const packet = packets.from(frame);
        packets.flags[packet] = OFFLOAD.TX_TSO | OFFLOAD.TX_TCP | (tag < 0 ? 0 : OFFLOAD.TX_VLAN);
        [packets.l2[packet], packets.l3[packet], packets.l4[packet], packets.vlan[packet]] = [14, 20, 20, tag];
        packets.segmentSize[packet] = 1000;
        assert.equal(send(port, packet), 1);
        const l2 = tag < 0 ? 14 : 18;
        const pieces = card.sent.splice(0);
        assert.deepEqual(
          pieces.map(({ length }) => length - l2 - 40),
          [1000, 1000, 1000, 500],
        );
        for (const piece of pieces) assert.equal(piece[l2 + 33] & 8, piece === pieces[3] ? 8 : 0, 'the last pushes');
        assert.deepEqual(
          Buffer.concat(pieces.map((piece) => piece.subarray(l2 + 40))),
          Buffer.from(frame.subarray(54)),
        );
      }
      const bad = [
        [14, 20, 19, 1000],
        [14, 20, 20, 0],
        [14, 20, 60, 1000],
      ].map(([l2, l3, l4, size]) => {
        const packet = packets.from(ipFrame(6, { data: 20 }));
        packets.flags[packet] = OFFLOAD.TX_TSO | OFFLOAD.TX_TCP;
        [packets.l2[packet], packets.l3[packet], packets.l4[packet]] = [l2, l3, l4];
        packets.segmentSize[packet] = size;
        return packet;
      });
      assert.equal(send(port, ...bad), 3);
      assert.deepEqual([card.sent.length, port.statistics().txErrors], [0, 3]);
      await port.stop();
    }),
  );

  it(
    'not where the sum is not in the frame, or the device computes none',
    withCard(async ({ card, port, start, packets }) => {
      await start();
      const made = (flags: number, l2: number, l3: number, length = 60): number => {
        const packet = packets.from(frameOf(length));
        packets.flags[packet] = flags;
        [packets.l2[packet], packets.l3[packet]] = [l2, l3];
        return packet;
      };
      const bad = [
        made(OFFLOAD.TX_TCP, 14, 29),
        made(OFFLOAD.TX_TCP, 13, 20),
        made(OFFLOAD.TX_TCP, 14, 19),
        made(OFFLOAD.TX_TCP | OFFLOAD.TX_UDP, 14, 20),
        made(OFFLOAD.TX_UDP, 14, 20, 41),
      ];
      assert.equal(send(port, ...bad), bad.length);
      assert.deepEqual([card.sent.length, port.statistics().txErrors], [0, bad.length]);
      await port.stop();
    }),
  );

  it(
    'what is received was checked by the device, or its sum is completed; if it is wanted only',
    withCard(async (room) => {
      const { card, port, start } = room;
      const half = ipFrame(17);
      put(half, 40, pseudo(half, 14, 17, half.length - 34));
      await start({ offloads: OFFLOAD.RX_L4_GOOD });
      assert.ok(card.has(FEATURE.GUEST_CSUM));
      card.receive(half, { flags: 1, sum: [34, 6] });
      assert.deepEqual(takeOne(room), { bytes: ipFrame(17), flags: OFFLOAD.RX_L4_GOOD });
      card.receive(ipFrame(6), { flags: 2 });
      assert.deepEqual(takeOne(room), { bytes: ipFrame(6), flags: OFFLOAD.RX_L4_GOOD });
      card.receive(ipFrame(6));
      assert.equal(takeOne(room).flags, 0);
      // Behind the end of the frame there is nothing to complete.
      for (const sum of [
        [34, half.length],
        [0xffff, 0xffff],
        [half.length - 1, 0],
      ] as const) {
        card.receive(half, { flags: 1, sum });
        assert.deepEqual(takeOne(room), { bytes: half, flags: 0 });
      }
      await port.stop();
      await start();
      assert.ok(!card.has(FEATURE.GUEST_CSUM));
      card.receive(ipFrame(6), { flags: 2 });
      assert.equal(takeOne(room).flags, 0);
      await port.stop();
    }),
  );

  it(
    'only those that are offered are limits',
    withCard(
      async ({ port, start, card }) => {
        assert.equal(port.limits.offloads, OFFLOAD.TX_VLAN);
        await start();
        assert.ok(!card.has(FEATURE.CSUM));
        await port.stop();
      },
      { prepare: (card) => (card.offered = new Set(OFFERED.filter((feature) => feature > FEATURE.GUEST_CSUM))) },
    ),
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
    'is not released while the device still works after the stop began',
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
    'is kept from a device that does not end, by its configuration space; it can be started again',
    withCard(async (room) => {
      const { card, port, start, device } = room;
      const isMaster = (): boolean => (device.access.readRegion(7, PCI_COMMAND, 1)[0] & PCI_COMMAND_MASTER) !== 0;
      device.access.writeRegion(7, PCI_COMMAND, Uint8Array.of(PCI_COMMAND_MASTER | 2, 0));
      await start();
      card.neverResets = true;
      await assert.rejects(port.stop(), dmaError('ETIMEDOUT', /reset/));
      assert.equal(isMaster(), false);
      assert.equal(room.pool.available, ELEMENTS);
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

for (const packed of [false, true])
  describe(`a device that writes nonsense into a ${packed ? 'packed' : 'split'} ring is lost, and nothing that it had`, () => {
    const withCard: typeof withSplit = (work, options) => withSplit(work, { ...options, packed });
    /** Only split rings have an index. */
    const ifSplit = <T>(cases: readonly T[]): readonly T[] => (packed ? [] : cases);
    const split = (card: FakeVirtioNet, queue: number): FakeSplitRing => {
      const ring = card.ringOf(queue);
      assert.ok(ring instanceof FakeSplitRing);
      return ring;
    };
    const RX: readonly RxCase[] = [
      [
        'a chain that can not be',
        (card) => card.receive(frameOf(60), { id: 64 }),
        /gave back chain 64, which it does not/,
      ],
      [
        'one far away',
        (card) => card.receive(frameOf(60), { id: 0xffffffff }),
        /gave back chain (4294967295|65535), which/,
      ],
      [
        'a chain twice',
        (card) => card.receive(frameOf(60), { twice: true }),
        /gave back chain 0, which it does not have/,
      ],
      ...ifSplit<RxCase>([
        [
          'an index that jumps ahead',
          (card) => {
            split(card, 0).index += 65;
            split(card, 0).show();
          },
          /set its index from 0 to 65, and had 64 chains/,
        ],
        [
          'an index that goes back',
          (card) => {
            split(card, 0).index = 0xffff;
            split(card, 0).show();
          },
          /set its index from 0 to 65535/,
        ],
      ]),
    ];
    for (const [what, wrong, reason] of RX)
      it(
        `received: ${what}`,
        withCard(async ({ card, port, start, packets, pool, eal, device }) => {
          await start();
          const events = port.events();
          const waits = port.readable(0);
          wrong(card);
          await waits;
          const burst = takeAll(port);
          // What came before the nonsense is the program's.
          assert.ok(burst.length <= 1);
          for (const packet of burst) packets.releaseOne(packet);
          assert.deepEqual(takeAll(port), []);
          assert.equal(port.lost?.code, 'EIO');
          assert.match(port.lost?.message ?? '', reason);
          const { value } = await events.next();
          assert.equal(value?.kind, 'lost');
          const packet = packets.from(frameOf(60));
          assert.deepEqual([send(port, packet), port.ended, port.link.up], [0, true, false]);
          packets.releaseOne(packet);
          await assert.rejects(port.readable(0), dmaError('EIO'));
          // Its memory is released after the device has ended.
          assert.ok(pool.available < ELEMENTS);
          card.lateLoads = 3;
          await port.stop();
          assert.deepEqual([card.lateLoads, pool.available, card.status & STATUS.DRIVER_OK], [0, ELEMENTS, 0]);
          await assert.rejects(start(), dmaError('EIO'));
          await eal.remove(device);
        }),
      );

    const TX: readonly TxCase[] = [
      ['a chain that it does not have', (ring) => ring.giveBack([{ id: 40, written: 0 }])],
      ['a chain that can not be', (ring) => ring.giveBack([{ id: 77, written: 0 }])],
      ['a chain twice', (ring) => ring.giveBack([0, 0].map((id) => ({ id, written: 0 })))],
      ...ifSplit<TxCase>([
        ['the middle of a chain', (ring) => ring.giveBack([{ id: 1, written: 0 }])],
        [
          'an index that jumps',
          (_, card) => {
            split(card, 1).index += 500;
            split(card, 1).show();
          },
        ],
      ]),
    ];
    for (const [what, wrong] of TX)
      it(
        `sent: ${what}`,
        withCard(async ({ card, port, start, packets, pool }) => {
          await start();
          card.holds = true;
          assert.equal(send(port, ...[60, 61, 62].map((length) => packets.from(frameOf(length)))), 3);
          card.ringOf(1).fetch();
          wrong(card.ringOf(1), card);
          const packet = packets.from(frameOf(63));
          assert.equal(send(port, packet), 0, 'it stays the caller’s');
          packets.releaseOne(packet);
          assert.equal(port.lost?.code, 'EIO');
          await port.stop();
          const { txPackets, txErrors } = port.statistics();
          assert.deepEqual([txPackets + txErrors, pool.available], [3, ELEMENTS]);
        }),
      );

    it(
      'also one that says itself that it needs a reset',
      withCard(async ({ card, port, start }) => {
        await start();
        const waits = port.readable(0);
        card.needReset();
        await assert.rejects(waits, dmaError('EIO', /needs a reset/));
        await port.stop();
      }),
    );
  });

describe('interrupts, link and loss', () => {
  for (const [what, interrupts, vectors] of [
    ['MSI-X, a vector each', { intx: 1, msi: 0, msix: 8 }, [1, 2]],
    ['MSI-X, one for all queues', { intx: 1, msi: 0, msix: 2 }, [1, 1]],
    ['a wire', { intx: 1, msi: 1, msix: 0 }, [0, 0]],
    ['looking, where there are none', { intx: 0, msi: 0, msix: 0 }, []],
  ] as const)
    it(
      `who waits for packets is woken by ${what}, and not while it polls`,
      withCard(
        async (room) => {
          const { card, port, start, packets } = room;
          await start({ rxQueues: 2 });
          const to = (queue: number, length: number): Uint8Array => {
            const frame = frameOf(length);
            frame[11] = queue;
            return frame;
          };
          card.receive(to(0, 60));
          assert.deepEqual(card.raised, [], 'it polls');
          await port.readable(0);
          takeOne(room);
          for (const queue of [0, 1]) {
            const waits = port.readable(queue);
            card.receive(to(queue, 70));
            await waits;
            assert.deepEqual(card.raised.splice(0), vectors.slice(queue, queue + 1));
            assert.deepEqual(takeOne(room, queue).bytes, to(queue, 70));
          }
          const found = (async (): Promise<Uint8Array | undefined> => {
            for await (const burst of port.packets(0)) {
              const bytes = packets.copy(burst[0]);
              packets.release(burst, burst.length);
              return bytes;
            }
            return undefined;
          })();
          card.receive(to(0, 64));
          assert.deepEqual(await found, to(0, 64));
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

  for (const [what, interrupts] of [
    ['MSI-X', { intx: 1, msi: 0, msix: 8 }],
    ['a wire', { intx: 1, msi: 0, msix: 0 }],
  ] as const)
    it(
      `changes of the link are events, by ${what}; a stopped port tells who asks`,
      withCard(
        async ({ card, port, start }) => {
          const events = port.events();
          const next = async (): Promise<PortEvent> => {
            const result = await events.next();
            assert.ok(result.done !== true);
            return result.value;
          };
          card.setLink(false);
          const down = { up: false, speed: 0, fullDuplex: false };
          const up = { up: true, speed: 10_000, fullDuplex: true };
          assert.deepEqual(port.link, down);
          assert.deepEqual(await next(), { kind: 'link', link: down });
          await start();
          card.setLink(true);
          assert.deepEqual(await next(), { kind: 'link', link: up });
          await port.stop();
        },
        { interrupts },
      ),
    );

  it(
    'a device that was unplugged is lost: who waits is told, its packets are released, its counters stay',
    withCard(async ({ card, port, start, packets, pool }) => {
      await start();
      card.receive(frameOf(60));
      packets.releaseOne(takeAll(port)[0]);
      card.holds = true;
      send(port, packets.from(frameOf(60)));
      const events = port.events();
      const waits = port.readable(0);
      card.gone = true;
      assert.equal(port.link.up, false);
      assert.equal(port.lost?.code, 'ENODEV');
      await assert.rejects(waits, dmaError('ENODEV', /all ones/));
      const { value } = await events.next();
      assert.equal(value?.kind, 'lost');
      const packet = packets.from(frameOf(60));
      assert.deepEqual([takeAll(port), send(port, packet), port.ended], [[], 0, true]);
      packets.releaseOne(packet);
      port.promiscuous = true;
      assert.equal(port.statistics().rxPackets, 1);
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

  it(
    'removing the device stops the port, and resets it',
    withCard(async ({ eal, device, port, card, start }) => {
      await start();
      const events = port.events();
      await eal.remove(device);
      assert.equal(port.started, false);
      assert.equal(card.status, 0);
      assert.deepEqual(await events.next(), { done: true, value: undefined });
    }),
  );
});
