/**
 * A virtio network device that behaves as virtio 1.2 says, and otherwise where a test asks for it. It writes down what a driver must not do:
 * registers in another order or width, rings that can not be, memory that it can not reach, frames that are too short.
 */
import { checksum, sumOf } from '../../../src/net/checksum.js';
import { putU16 } from '../../../src/net/frames.js';
import {
  COMMAND,
  COMMON,
  CONFIG,
  FEATURE,
  HEADER,
  HEADER_FLAG,
  ISR,
  LINK_UP,
  NO_VECTOR,
  SEGMENTATION,
  STATUS,
  STRUCTURE,
} from '../../../src/drivers/virtio-net/layout.js';
import type { DeviceModel, InterruptCounts, ModelHost } from '../../../src/vfio-user/devices/model.js';
import { FakeMemory, FakePackedRing, FakeSplitRing, type FakeRing } from './virtio-rings.js';

const BAR = 4;
const BAR_BYTES = 0x4000;
const AT = { COMMON: 0, ISR: 0x1000, DEVICE: 0x2000, NOTIFY: 0x3000 } as const;
const MULTIPLIER = 4;
const LEAST = 60;
const MAC = [0x52, 0x54, 0x00, 0x12, 0x34, 0x56];

/** Registers of the common configuration that are not of 4 bytes. */
const WIDTHS: ReadonlyMap<number, number> = new Map([
  [COMMON.STATUS, 1],
  [COMMON.GENERATION, 1],
  ...[
    COMMON.CONFIG_VECTOR,
    COMMON.QUEUES,
    COMMON.QUEUE_SELECT,
    COMMON.QUEUE_SIZE,
    COMMON.QUEUE_VECTOR,
    COMMON.QUEUE_ENABLE,
    COMMON.QUEUE_NOTIFY_OFFSET,
  ].map((offset) => [offset, 2] as const),
]);

/** What it offers unless it is told otherwise. */
export const OFFERED: readonly number[] = [
  ...[FEATURE.CSUM, FEATURE.GUEST_CSUM, FEATURE.MAC, FEATURE.HOST_TSO4, FEATURE.HOST_TSO6, FEATURE.MRG_RXBUF],
  ...[FEATURE.STATUS, FEATURE.CTRL_VQ, FEATURE.CTRL_RX, FEATURE.MQ, FEATURE.CTRL_MAC_ADDR, FEATURE.VERSION_1],
  ...[FEATURE.ACCESS_PLATFORM, FEATURE.SPEED_DUPLEX],
];

/** A vendor capability (4.1.4). */
export function capability(kind: number, at: number, size: number, { bar = BAR, multiplier = -1 } = {}): Uint8Array {
  const bytes = new Uint8Array(multiplier < 0 ? 16 : 20);
  const words = new DataView(bytes.buffer);
  bytes.set([9, 0, bytes.length, kind, bar]);
  words.setUint32(8, at, true);
  words.setUint32(12, size, true);
  if (multiplier >= 0) words.setUint32(16, multiplier, true);
  return bytes;
}

/** What is wrong with a frame that is received. */
export interface Wrong {
  /** What the device says that it has written, to the last element. */
  readonly written?: number;
  /** The number of elements that the header tells. */
  readonly buffers?: number;
  /** The chain that it gives back, instead of the right one. */
  readonly id?: number;
  /** It gives it back twice. */
  readonly twice?: boolean;
  /** Flags of the header, and where a sum is to be completed. */
  readonly flags?: number;
  readonly sum?: readonly [start: number, offset: number];
}

interface Queue {
  size: number;
  vector: number;
  enabled: boolean;
  readonly words: Uint32Array;
  ring: FakeRing | undefined;
}

/** The device. */
export class FakeVirtioNet implements DeviceModel {
  readonly name = 'virtio-net';
  readonly identity = {
    ...{ vendor: 0x1af4, device: 0x1041, subsystemVendor: 0x1af4, subsystem: 1 },
    ...{ revision: 1, classCode: 0x020000 },
  };
  readonly regions = [{ index: BAR, size: BAR_BYTES }];
  readonly interrupts: InterruptCounts;
  /** Its capabilities; a test may change them before the driver sees them. */
  capabilities: Uint8Array[] = [
    capability(STRUCTURE.COMMON, AT.COMMON, COMMON.BYTES),
    capability(STRUCTURE.ISR, AT.ISR, 1),
    capability(STRUCTURE.DEVICE, AT.DEVICE, CONFIG.BYTES),
    capability(STRUCTURE.NOTIFY, AT.NOTIFY, 0x1000, { multiplier: MULTIPLIER }),
  ];
  /** Numbers of features. */
  offered = new Set<number>(OFFERED);
  /** It does not take the features that the driver wants. */
  refusesFeatures = false;
  pairs = 2;
  queueSize = 128;
  mtu = 1500;
  speed = 10_000;
  readonly mac = Uint8Array.from(MAC);
  /** What a driver did that it must not do. */
  readonly violations: string[] = [];
  /** Frames that were sent. */
  readonly sent: Uint8Array[] = [];
  /** Vectors that were raised. */
  readonly raised: number[] = [];
  /** Commands that came: class, number and data. */
  readonly commands: number[][] = [];
  /** How often it was told of what is in receive, transmit and control queues. */
  notifications = 0;
  resets = 0;
  /** Sends only what {@link step} says. */
  holds = false;
  /** It is unplugged: registers read as all ones. */
  gone = false;
  /** So many loads of the status after it was told to reset, it still works: each writes a frame to a receive buffer. */
  lateLoads = 0;
  neverResets = false;
  refusesCommands = false;
  neverAnswers = false;
  refusesVectors = false;
  /** What it passes besides its own frames. */
  promiscuous = true;
  readonly #host: ModelHost;
  readonly #memory: FakeMemory;
  #status = 0;
  #isResetting = false;
  #generation = 0;
  #isr = 0;
  #up = true;
  #configVector = NO_VECTOR;
  #select = { device: 0, driver: 0, queue: 0 };
  #driverFeatures = [0, 0];
  #queues: Queue[] = [];
  #pairsInUse = 1;

  constructor(host: ModelHost, interrupts: InterruptCounts = { intx: 1, msi: 0, msix: 8 }) {
    this.#host = host;
    this.#memory = new FakeMemory(host.dma, this.violations);
    this.interrupts = interrupts;
    this.#reset();
  }

  // --- registers ---

  read(_region: number, offset: number, into: Uint8Array): void {
    const value = this.gone ? 0xffffffff : this.#load(offset, into.length);
    for (let i = 0; i < into.length; i++) into[i] = value / 2 ** (8 * i);
  }

  write(_region: number, offset: number, from: Uint8Array): void {
    if (!this.gone)
      this.#store(
        offset,
        from.reduce((sum, byte, i) => sum + byte * 2 ** (8 * i), 0),
        from.length,
      );
  }

  #checkWidth(offset: number, width: number): void {
    if (width !== (WIDTHS.get(offset) ?? 4)) this.violations.push(`an access of ${width} bytes at ${offset}`);
  }

  #load(offset: number, width: number): number {
    if (offset >= AT.NOTIFY) return 0;
    if (offset >= AT.DEVICE) return this.#loadConfig(offset - AT.DEVICE, width);
    if (offset >= AT.ISR) {
      const isr = this.#isr;
      this.#isr = 0;
      return isr;
    }
    this.#checkWidth(offset, width);
    const queue = this.#queues[this.#select.queue] as Queue | undefined;
    switch (offset) {
      case COMMON.DEVICE_FEATURE:
        return this.#bits(this.offered, this.#select.device);
      case COMMON.CONFIG_VECTOR:
        return this.refusesVectors ? NO_VECTOR : this.#configVector;
      case COMMON.QUEUES:
        return this.#queues.length;
      case COMMON.STATUS:
        return this.#loadStatus();
      case COMMON.GENERATION:
        return this.#generation & 0xff;
      case COMMON.QUEUE_SIZE:
        return queue?.size ?? 0;
      case COMMON.QUEUE_VECTOR:
        return queue?.vector ?? NO_VECTOR;
      case COMMON.QUEUE_NOTIFY_OFFSET:
        return this.#select.queue;
      default:
        this.violations.push(`a load from ${offset}`);
        return 0;
    }
  }

  #bits(features: ReadonlySet<number>, word: number): number {
    return (
      [...features].reduce((bits, feature) => (feature >>> 5 === word ? bits | (1 << (feature & 31)) : bits), 0) >>> 0
    );
  }

  #loadStatus(): number {
    if (!this.#isResetting) return this.#status;
    if (this.lateLoads > 0) {
      this.lateLoads--;
      this.#deliver(0, new Uint8Array(64).fill(0xee), {});
      return this.#status;
    }
    if (this.neverResets) return this.#status | STATUS.ACKNOWLEDGE;
    this.#reset();
    return 0;
  }

  #loadConfig(offset: number, width: number): number {
    const bytes = new Uint8Array(CONFIG.BYTES + 4);
    const view = new DataView(bytes.buffer);
    if (this.offered.has(FEATURE.MAC)) bytes.set(this.mac, CONFIG.MAC);
    view.setUint16(CONFIG.STATUS, this.#up ? LINK_UP : 0, true);
    view.setUint16(CONFIG.PAIRS, this.pairs, true);
    view.setUint16(CONFIG.MTU, this.mtu, true);
    view.setUint32(CONFIG.SPEED, this.speed, true);
    view.setUint8(CONFIG.DUPLEX, 1);
    if ((this.#status & STATUS.DRIVER) === 0) this.violations.push('the configuration is read before DRIVER');
    return width === 4 ? view.getUint32(offset, true) : width === 2 ? view.getUint16(offset, true) : bytes[offset];
  }

  #store(offset: number, value: number, width: number): void {
    if (offset >= AT.NOTIFY) {
      if (width !== 2 || offset !== AT.NOTIFY + value * MULTIPLIER)
        this.violations.push(`notified ${value} at ${offset}`);
      return this.#notified(value);
    }
    this.#checkWidth(offset, width);
    switch (offset) {
      case COMMON.DEVICE_FEATURE_SELECT:
        this.#select.device = value;
        return;
      case COMMON.DRIVER_FEATURE_SELECT:
        this.#select.driver = value;
        return;
      case COMMON.DRIVER_FEATURE:
        if ((this.#status & STATUS.FEATURES_OK) !== 0) this.violations.push('features after FEATURES_OK');
        this.#driverFeatures[this.#select.driver] = value;
        return;
      case COMMON.CONFIG_VECTOR:
        this.#configVector = value;
        return;
      case COMMON.STATUS:
        return this.#storeStatus(value);
      case COMMON.QUEUE_SELECT:
        this.#select.queue = value;
        return;
      default:
        this.#storeQueue(offset, value);
    }
  }

  #storeStatus(value: number): void {
    if (value === 0) {
      this.#isResetting = true;
      return;
    }
    const missing = this.#status & ~value & ~STATUS.NEEDS_RESET;
    if (missing !== 0) this.violations.push(`status bits ${missing} are taken away`);
    if (this.#isResetting) this.violations.push('the status is written while the device resets');
    if ((value & STATUS.FEATURES_OK & ~this.#status) !== 0) {
      const isOffered = [0, 1].every((word) => (this.#driverFeatures[word] & ~this.#bits(this.offered, word)) === 0);
      if (!isOffered) this.violations.push('features that are not offered');
      if (!this.has(FEATURE.VERSION_1)) this.violations.push('VERSION_1 is not taken');
      if (!isOffered || this.refusesFeatures) value &= ~STATUS.FEATURES_OK;
      this.#pairsInUse = 1;
    }
    if ((value & STATUS.DRIVER_OK & ~this.#status) !== 0 && (value & STATUS.FEATURES_OK) === 0)
      this.violations.push('DRIVER_OK before FEATURES_OK');
    this.#status = value;
  }

  #storeQueue(offset: number, value: number): void {
    const queue = this.#queues[this.#select.queue] as Queue | undefined;
    if (queue === undefined) return void this.violations.push(`there is no queue ${this.#select.queue}`);
    if ((this.#status & STATUS.FEATURES_OK) === 0) this.violations.push('a queue before FEATURES_OK');
    if (queue.enabled) this.violations.push('a queue that is enabled is changed');
    switch (offset) {
      case COMMON.QUEUE_SIZE:
        if ((value & (value - 1)) !== 0 || value === 0 || value > queue.size)
          this.violations.push(`a size of ${value}`);
        queue.size = value;
        return;
      case COMMON.QUEUE_VECTOR:
        queue.vector = value;
        return;
      case COMMON.QUEUE_ENABLE: {
        const address = (word: number): number => queue.words[word] + queue.words[word + 1] * 2 ** 32;
        const parts = { size: queue.size, descriptors: address(0), driver: address(2), device: address(4) };
        queue.enabled = true;
        const isPacked = this.has(FEATURE.RING_PACKED);
        if (parts.descriptors % 16 !== 0 || parts.driver % (isPacked ? 4 : 2) !== 0 || parts.device % 4 !== 0)
          this.violations.push('a ring that is not aligned');
        queue.ring = new (isPacked ? FakePackedRing : FakeSplitRing)(parts, this.#memory, this.violations);
        return;
      }
      default:
        if (offset < COMMON.QUEUE_DESCRIPTORS || offset >= COMMON.BYTES) this.violations.push(`a store to ${offset}`);
        else queue.words[(offset - COMMON.QUEUE_DESCRIPTORS) / 4] = value;
    }
  }

  /** Was this feature taken? */
  has(feature: number): boolean {
    return ((this.#driverFeatures[feature >>> 5] >>> (feature & 31)) & 1) === 1;
  }

  get status(): number {
    return this.#status;
  }

  // --- reset, link and interrupts ---

  /** As if its configuration space was used. */
  reset(): void {
    this.#reset();
  }

  #reset(): void {
    this.resets++;
    this.#status = 0;
    this.#isResetting = false;
    this.#isr = 0;
    this.#configVector = NO_VECTOR;
    this.#driverFeatures = [0, 0];
    this.promiscuous = true;
    this.#pairsInUse = 1;
    const queues = 2 * this.pairs + 1;
    this.#queues = Array.from({ length: queues }, () => ({
      ...{ size: this.queueSize, vector: NO_VECTOR, enabled: false, words: new Uint32Array(6), ring: undefined },
    }));
  }

  quiesce(): undefined {
    return undefined;
  }

  resume(): void {
    // Nothing runs by itself.
  }

  setLink(up: boolean): void {
    this.#up = up;
    this.#changed();
    if (up && !this.holds) this.step();
  }

  /** It says that it is out of order. */
  needReset(): void {
    this.#status |= STATUS.NEEDS_RESET;
    this.#changed();
  }

  #changed(): void {
    this.#generation++;
    if ((this.#status & STATUS.DRIVER_OK) !== 0) this.#interrupt(this.#configVector, ISR.CONFIG);
  }

  #interrupt(vector: number, why: number): void {
    if (this.interrupts.msix > 0) {
      if (vector === NO_VECTOR) return;
      this.raised.push(vector);
      this.#host.interrupt(vector);
    } else if (this.interrupts.intx > 0) {
      this.#isr |= why;
      this.raised.push(0);
      this.#host.interrupt(0);
    }
  }

  // --- queues ---

  /** The ring of a queue. */
  ringOf(queue: number): FakeRing {
    const ring = this.#queues[queue]?.ring;
    if (ring === undefined) throw new Error(`queue ${queue} is not set up`);
    return ring;
  }

  get #controlQueue(): number {
    return this.has(FEATURE.MQ) ? 2 * this.pairs : 2;
  }

  #notified(queue: number): void {
    this.notifications++;
    if ((this.#status & STATUS.DRIVER_OK) === 0) this.violations.push('notified before DRIVER_OK');
    const ring = this.#queues[queue]?.ring;
    if (ring === undefined) return void this.violations.push(`queue ${queue} is not set up`);
    if (queue === this.#controlQueue && this.has(FEATURE.CTRL_VQ)) this.#obey(ring);
    else if (queue % 2 === 0) ring.fetch();
    else if (!this.holds) this.step();
  }

  #obey(ring: FakeRing): void {
    ring.fetch();
    if (this.neverAnswers) return;
    for (const { id, buffers } of [...ring.chains]) {
      const [command, answer] = buffers;
      const [kind, number, ...data] = this.#memory.read(command.iova, command.bytes);
      this.commands.push([kind, number, ...data]);
      if (!this.refusesCommands) {
        const is = ([a, b]: readonly [number, number]): boolean => a === kind && b === number;
        if (is(COMMAND.PROMISCUOUS)) this.promiscuous = data[0] === 1;
        else if (is(COMMAND.SET_PAIRS)) this.#pairsInUse = data[0] | (data[1] << 8);
        else if (is(COMMAND.SET_MAC)) this.mac.set(data);
        else this.violations.push(`the command ${kind} ${number}`);
      }
      this.#memory.write(answer.iova, Uint8Array.of(this.refusesCommands ? 1 : 0));
      ring.giveBack([{ id, written: 1 }]);
    }
  }

  #isForIt(frame: Uint8Array): boolean {
    if (this.promiscuous) return true;
    const to = frame.subarray(0, 6);
    return to.every((byte) => byte === 0xff) || to.every((byte, i) => byte === this.mac[i]);
  }

  /**
   * A frame comes.
   *
   * @returns the receive queue that it was put into; -1 if it was not
   */
  receive(frame: Uint8Array, wrong: Wrong = {}): number {
    if (this.gone || !this.#up || (this.#status & STATUS.DRIVER_OK) === 0 || !this.#isForIt(frame)) return -1;
    const queue = frame.length > 11 ? frame[11] % this.#pairsInUse : 0;
    return this.#deliver(queue, frame, wrong) ? queue : -1;
  }

  #deliver(queue: number, frame: Uint8Array, wrong: Wrong): boolean {
    const { ring, vector } = this.#queues[2 * queue];
    if (ring === undefined) return false;
    ring.fetch();
    const merges = this.has(FEATURE.MRG_RXBUF);
    const used: { id: number; written: number }[] = [];
    const parts: { iova: number; bytes: Uint8Array }[] = [];
    const all = new Uint8Array(HEADER.BYTES + frame.length);
    all.set(frame, HEADER.BYTES);
    for (let at = 0; at < all.length;) {
      const chain = ring.chains[used.length] as (typeof ring.chains)[number] | undefined;
      if (chain === undefined || (!merges && used.length > 0)) return false;
      const [buffer] = chain.buffers;
      if (!buffer.isWritten || chain.buffers.length > 1)
        this.violations.push('a receive buffer that is not one to be written');
      const bytes = all.subarray(at, at + buffer.bytes);
      parts.push({ iova: buffer.iova, bytes });
      used.push({ id: chain.id, written: bytes.length });
      at += bytes.length;
    }
    const header = new DataView(all.buffer);
    header.setUint8(HEADER.FLAGS, wrong.flags ?? 0);
    if (wrong.sum !== undefined) {
      header.setUint16(HEADER.SUM_START, wrong.sum[0], true);
      header.setUint16(HEADER.SUM_OFFSET, wrong.sum[1], true);
    }
    header.setUint16(HEADER.BUFFERS, wrong.buffers ?? used.length, true);
    for (const { iova, bytes } of parts) this.#memory.write(iova, bytes);
    const last = used.length - 1;
    if (wrong.written !== undefined) used[last].written = wrong.written;
    if (wrong.id !== undefined) used[last].id = wrong.id;
    if (wrong.twice === true) used.push(used[last]);
    ring.giveBack(used);
    if (ring.wantsInterrupts) this.#interrupt(vector, ISR.QUEUE);
    return true;
  }

  /** Sends up to `count` frames. @param backwards gives back the last first, as it may */
  step(count = Infinity, backwards = false): void {
    let left = this.#up ? count : 0;
    for (let queue = 1; queue < 2 * this.#pairsInUse; queue += 2) {
      const ring = this.#queues[queue]?.ring;
      if (ring === undefined) continue;
      ring.fetch();
      const chains = ring.chains.slice(0, left);
      left -= chains.length;
      for (const { buffers } of chains) {
        if (buffers.some(({ isWritten }) => isWritten)) this.violations.push('a transmit buffer that is to be written');
        this.#send(Buffer.concat(buffers.map(({ iova, bytes }) => this.#memory.read(iova, bytes))));
      }
      if (backwards) chains.reverse();
      if (chains.length > 0) ring.giveBack(chains.map(({ id }) => ({ id, written: 0 })));
      if (chains.length > 0 && ring.wantsInterrupts) this.violations.push('sent frames interrupt');
    }
  }

  #send(bytes: Uint8Array): void {
    const header = new DataView(bytes.buffer, bytes.byteOffset, HEADER.BYTES);
    const frame = Uint8Array.from(bytes.subarray(HEADER.BYTES));
    if (frame.length < LEAST) this.violations.push(`a frame of ${frame.length} bytes`);
    const flags = header.getUint8(HEADER.FLAGS);
    if (flags !== 0 && (flags !== HEADER_FLAG.NEEDS_CSUM || !this.has(FEATURE.CSUM)))
      this.violations.push(`a header with the flags ${flags}`);
    const kind = header.getUint8(HEADER.SEGMENTATION);
    if (kind !== SEGMENTATION.NONE) return this.#cut(frame, kind, header);
    if (flags === HEADER_FLAG.NEEDS_CSUM) {
      const start = header.getUint16(HEADER.SUM_START, true);
      const field = start + header.getUint16(HEADER.SUM_OFFSET, true);
      if (field + 2 > frame.length) this.violations.push(`a sum at ${field} of ${frame.length} bytes`);
      else putU16(frame, field, checksum(sumOf(frame, start, frame.length - start)));
    }
    this.sent.push(frame);
  }

  /** Cuts a frame of TCP into several (5.1.6.2.2): without options of IPv4 or headers between IPv6 and TCP. */
  #cut(frame: Uint8Array, kind: number, header: DataView): void {
    const isIpv6 = kind === SEGMENTATION.TCPV6;
    if (!this.has(isIpv6 ? FEATURE.HOST_TSO6 : FEATURE.HOST_TSO4)) this.violations.push(`a frame to be cut as ${kind}`);
    const headers = header.getUint16(HEADER.HEADERS, true);
    const size = header.getUint16(HEADER.SEGMENT_SIZE, true);
    const tcp = header.getUint16(HEADER.SUM_START, true);
    const ip = tcp - (isIpv6 ? 40 : 20);
    if (header.getUint8(HEADER.FLAGS) !== HEADER_FLAG.NEEDS_CSUM || size === 0 || headers < tcp + 20)
      this.violations.push(`a frame to be cut into ${size} bytes behind ${headers}`);
    for (let at = headers; at < frame.length; at += size) {
      const piece = Uint8Array.from([...frame.subarray(0, headers), ...frame.subarray(at, at + size)]);
      const view = new DataView(piece.buffer);
      const length = piece.length - tcp;
      if (isIpv6) view.setUint16(ip + 4, length);
      else {
        view.setUint16(ip + 2, 20 + length);
        view.setUint16(ip + 4, view.getUint16(ip + 4) + (at - headers) / size);
        view.setUint16(ip + 10, 0);
        view.setUint16(ip + 10, checksum(sumOf(piece, ip, 20)));
      }
      view.setUint32(tcp + 4, view.getUint32(tcp + 4) + at - headers);
      // Only the last pushes, and ends.
      if (at + size < frame.length) piece[tcp + 13] &= ~9;
      view.setUint16(tcp + 16, 0);
      const addresses = isIpv6 ? sumOf(piece, ip + 8, 32) : sumOf(piece, ip + 12, 8);
      view.setUint16(tcp + 16, checksum(sumOf(piece, tcp, length, addresses + 6 + length)));
      this.sent.push(piece);
    }
  }
}
