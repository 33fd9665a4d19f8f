/** Random bursts through the rings of an adapter's driver, against a model that is nothing but lists of frames. */
import assert from 'node:assert/strict';
import type { Driver } from '../../src/entry/driver.js';
import { e1000eDriver, NONE, Packets, virtioNetDriver, type Port } from '../../src/entry/net.js';
import { FEATURE } from '../../src/drivers/virtio-net/layout.js';
import { TAG } from '../../src/net/frames.js';
import type { Eal } from '../../src/index.js';
import type { DeviceModel, ModelHost } from '../../src/vfio-user/devices/model.js';
import { FakeE1000e } from '../fakes/net/e1000e.js';
import { FakeVirtioNet } from '../fakes/net/virtio-net.js';
import { Random } from './random.js';

/** The longest frame that ports are started for. */
const MOST = 1514;

/** An adapter that a test works. */
interface Card extends DeviceModel {
  readonly violations: string[];
  readonly sent: Uint8Array[];
  holds: boolean;
  /** @returns the queue; -1 if it was not received */
  receive(frame: Uint8Array): number;
  /** Sends; gives descriptors back in another order, if it may. */
  step(count: number, backwards: boolean): unknown;
}

const VIRTIO = { driver: virtioNetDriver, txDescriptors: 64, longest: MOST + TAG, counts: false } as const;

/** The adapters, and what they differ in. */
export const ADAPTERS = {
  e1000e: {
    make: (host: ModelHost): Card => new FakeE1000e(host),
    driver: e1000eDriver,
    txDescriptors: 72,
    // What is longer never comes to the driver.
    longest: Infinity,
    counts: true,
  },
  'virtio-net': {
    make: (host: ModelHost): Card => new FakeVirtioNet(host),
    ...VIRTIO,
  },
  'virtio-net-packed': {
    make: (host: ModelHost): Card => {
      const made = new FakeVirtioNet(host);
      made.offered.add(FEATURE.RING_PACKED);
      return made;
    },
    ...VIRTIO,
  },
} satisfies Record<string, AdapterKind>;
export type AdapterName = keyof typeof ADAPTERS;

interface AdapterKind {
  readonly make: (host: ModelHost) => Card;
  readonly driver: Driver<Port>;
  readonly txDescriptors: number;
  /** What is longer the driver throws away: there is room for a tag. */
  readonly longest: number;
  /** Does the adapter refuse frames that are too long, and count those that find no descriptor? */
  readonly counts: boolean;
}

export interface RingsOptions {
  readonly adapter: AdapterName;
  readonly seed: number;
  readonly steps: number;
  /** With legacy descriptors, and then one receive queue? */
  readonly isLegacy?: boolean;
  readonly onProgress?: (counts: RingsCounts) => void;
}

/** How often each thing happened. */
export interface RingsCounts {
  received: number;
  chained: number;
  tooLong: number;
  missed: number;
  sent: number;
  partial: number;
  padded: number;
  refused: number;
  unsent: number;
  restarts: number;
}

const ELEMENTS = 400;
const QUEUES = 2;
const STATION = [0x52, 0x54, 0, 0x12, 0x34, 0x56];

/** A frame of IPv4, so that RSS has something to spread. */
function frameOf(random: Random, length: number): Uint8Array {
  const frame = new Uint8Array(length);
  const seed = random.below(2 ** 30);
  for (let i = 0; i < length; i++) frame[i] = (seed >>> (i & 15)) + i;
  frame.set(STATION);
  frame.set([8, 0, 0x45, 0, (length - 14) >> 8, (length - 14) & 255], 12);
  frame.set([0, 0], 20);
  return frame;
}

/**
 * Does `steps` random steps with a card of `eal`, and compares after each.
 *
 * @throws an AssertionError at the first difference
 */
export async function againstRings(eal: Eal, options: RingsOptions): Promise<RingsCounts> {
  const kind: AdapterKind = ADAPTERS[options.adapter];
  const cards: Card[] = [];
  eal.vdev.define('card', (host) => {
    const made = kind.make(host);
    cards.push(made);
    return made;
  });
  const device = await eal.probe(options.isLegacy === true ? 'vdev:card0,descriptors=legacy' : 'vdev:card0');
  const pool = eal.pools.create({ elements: ELEMENTS, elementSize: 256 + 64, checked: true });
  const packets = new Packets(pool, { headroom: 64 });
  const model = new RingsModel(options, device.use(kind.driver), cards[0], packets);
  await model.run();
  await eal.remove(device);
  assert.equal(pool.available, ELEMENTS, 'elements are missing');
  pool.free();
  return model.counts;
}

class RingsModel {
  readonly counts: RingsCounts = {
    ...{ received: 0, chained: 0, tooLong: 0, missed: 0, sent: 0, partial: 0, padded: 0, refused: 0, unsent: 0 },
    restarts: 0,
  };
  readonly #random: Random;
  readonly #steps: number;
  readonly #onProgress: RingsOptions['onProgress'];
  readonly #port: Port;
  readonly #kind: AdapterKind;
  readonly #card: Card;
  readonly #packets: Packets;
  /** By queue: frames that the card took; `undefined` for those that the driver throws away. */
  #incoming: (Uint8Array | undefined)[][] = Array.from({ length: QUEUES }, () => []);
  /** By queue: frames that the port took, as they have to be on the wire. */
  #outgoing: Uint8Array[][] = Array.from({ length: QUEUES }, () => []);
  /** What the program has. */
  #held: number[] = [];
  readonly #burst = new Int32Array(48);
  #seen = 0;

  constructor({ adapter, seed, steps, onProgress }: RingsOptions, port: Port, card: Card, packets: Packets) {
    this.#kind = ADAPTERS[adapter];
    this.#random = new Random(seed);
    this.#steps = steps;
    this.#onProgress = onProgress;
    this.#port = port;
    this.#card = card;
    this.#packets = packets;
  }

  async run(): Promise<void> {
    await this.#start();
    for (let step = 0; step < this.#steps; step++) {
      const kind = this.#random.below(100);
      if (kind < 35) this.#receive();
      else if (kind < 60) this.#take();
      else if (kind < 80) this.#send();
      else if (kind < 88) this.#card.step(1 + this.#random.below(40), this.#random.oneIn(2));
      else if (kind < 96) this.#release();
      else if (kind < 97) this.#card.holds = !this.#card.holds;
      else if (kind < 98) this.#port.statistics();
      else if (this.#random.oneIn(400)) await this.#restart();
      this.#compareSent();
      assert.deepEqual(this.#card.violations, []);
      if (step % 10_000 === 0) {
        this.#onProgress?.(this.counts);
        // Other things have their turn.
        await new Promise((resolve) => setImmediate(resolve));
      }
    }
    await this.#stop();
  }

  async #start(): Promise<void> {
    const { txDescriptors } = this.#kind;
    const rxQueues = Math.min(QUEUES, this.#port.limits.rxQueues);
    await this.#port.start({
      ...{ packets: this.#packets, rxQueues, txQueues: QUEUES, rxDescriptors: 64, txDescriptors },
      maxFrame: MOST,
    });
  }

  /** Everything that the card has received is taken or lost; everything that the port has is sent or counted. */
  async #stop(): Promise<void> {
    this.#card.holds = this.#random.oneIn(2);
    const before = this.#port.statistics();
    await this.#port.stop();
    this.#compareSent();
    const after = this.#port.statistics();
    const left = this.#outgoing.flat().length;
    this.counts.unsent += left;
    const refused = this.counts.refused + this.counts.unsent;
    assert.deepEqual([after.txErrors, after.txPackets], [refused, this.counts.sent]);
    assert.deepEqual(
      [before.rxPackets, before.rxErrors, before.rxMissed],
      [this.counts.received, this.counts.tooLong, this.#kind.counts ? this.counts.missed : 0],
    );
    this.#incoming = this.#incoming.map(() => []);
    this.#outgoing = this.#outgoing.map(() => []);
    // A clone that is held keeps the element that it shows, so all are released before elements are counted.
    for (const packet of this.#held.splice(0)) this.#packets.releaseOne(packet);
    assert.equal(this.#packets.pool.available, ELEMENTS, 'the queues keep elements');
  }

  async #restart(): Promise<void> {
    await this.#stop();
    this.counts.restarts++;
    await this.#start();
    this.#card.holds = false;
  }

  /** Frames come; some are longer than the port takes. */
  #receive(): void {
    for (let i = this.#random.below(24); i >= 0; i--) {
      // Often exactly the size of a buffer, or a few of them.
      const long = this.#random.oneIn(3) ? 256 * (1 + this.#random.below(5)) : 60 + this.#random.below(MOST - 40);
      const frame = frameOf(this.#random, long);
      const queue = this.#card.receive(frame);
      if (queue >= 0) this.#incoming[queue].push(long <= this.#kind.longest ? frame : undefined);
      else if (long <= MOST || !this.#kind.counts) this.counts.missed++;
      else this.counts.tooLong++;
    }
  }

  #take(): void {
    const queue = this.#random.below(QUEUES);
    const wanted = this.#random.below(this.#burst.length + 1);
    const count = this.#port.rx(queue, this.#burst, wanted);
    const waits = this.#incoming[queue];
    const there = waits.filter((frame) => frame !== undefined).length;
    assert.equal(count, Math.min(wanted, there), `queue ${queue}`);
    const dropTooLong = (): void => {
      for (; waits.length > 0 && waits[0] === undefined; waits.shift()) this.counts.tooLong++;
    };
    for (const packet of this.#burst.subarray(0, count)) {
      dropTooLong();
      const frame = waits.shift();
      assert.ok(frame !== undefined && Buffer.compare(this.#packets.copy(packet), frame) === 0, 'another frame');
      this.counts.received++;
      if (this.#packets.segments[packet] > 1) this.counts.chained++;
      this.#held.push(packet);
    }
    if (count < wanted) dropTooLong();
  }

  /** Sends what it has: received, made, cloned, chained, cut; a few of which can not be sent. */
  #send(): void {
    const packets = this.#packets;
    const random = this.#random;
    const queue = random.below(QUEUES);
    const wanted = 1 + random.below(this.#burst.length);
    while (this.#held.length < wanted && random.below(3) > 0) {
      const made = random.oneIn(40)
        ? packets.from(new Uint8Array(random.below(14)))
        : packets.from(frameOf(random, 24 + random.below(500)));
      if (made === NONE) break;
      this.#held.push(made);
    }
    if (random.oneIn(4) && this.#held.length > 0) {
      const clone = packets.clone(random.pick(this.#held));
      if (clone !== NONE) this.#held.push(clone);
    }
    const count = Math.min(wanted, this.#held.length);
    const burst = this.#held.splice(0, count);
    for (const packet of burst) {
      if (packets.total[packet] > 20 && random.oneIn(6))
        packets.truncate(packet, 14 + random.below(packets.total[packet] - 13));
      packets.flags[packet] = 0;
    }
    const frames = burst.map((packet) => packets.copy(packet));
    const taken = this.#port.tx(queue, Int32Array.from(burst));
    if (taken < count) this.counts.partial++;
    for (const frame of frames.slice(0, taken)) {
      if (frame.length < 14) {
        this.counts.refused++;
        continue;
      }
      if (frame.length < 60) this.counts.padded++;
      const padded = new Uint8Array(Math.max(60, frame.length));
      padded.set(frame);
      this.#outgoing[queue].push(padded);
    }
    this.#held.push(...burst.slice(taken));
  }

  #release(): void {
    for (let i = this.#random.below(20); i >= 0 && this.#held.length > 0; i--) {
      const [packet] = this.#held.splice(this.#random.below(this.#held.length), 1);
      this.#packets.releaseOne(packet);
    }
  }

  /** What is on the wire is what the port took, queue by queue in order. */
  #compareSent(): void {
    const { sent } = this.#card;
    for (const frame of sent.splice(0)) {
      this.#seen++;
      const queue = this.#outgoing.findIndex(([first]) => first !== undefined && Buffer.compare(first, frame) === 0);
      assert.ok(queue >= 0, `frame ${this.#seen} of ${frame.length} bytes was not to be sent next`);
      this.#outgoing[queue].shift();
      this.counts.sent++;
    }
  }
}
