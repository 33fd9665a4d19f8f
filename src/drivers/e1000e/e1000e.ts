/** A port of an Intel 82574L: its queues, how it is started and stopped, its link and its counters. */
import { isGone } from '../../bus/device-access.js';
import type { Device, ProbeContext } from '../../bus/model.js';
import { optionsOf } from '../../check.js';
import { type DmaError, invalid, throwFirst, undoAll, withUndo } from '../../errors.js';
import { mustGoOn } from '../../long-work.js';
import { OFFLOAD } from '../../net/offloads.js';
import type { Packets } from '../../net/packets.js';
import { COUNT, LEAST_FRAME, PortBase, USUAL_FRAME, type CheckedConfig } from '../../net/port-base.js';
import type { Link, PortLimits, PortStatistics } from '../../net/port.js';
import { shortForm } from '../../short-form.js';
import { now } from '../../timers.js';
import { alignUp } from '../../units.js';
import { DmaMemory } from '../dma-memory.js';
import { Bell, until } from '../wait.js';
import { Adapter, NO_LINK } from './adapter.js';
import { AdapterInterrupts } from './interrupts.js';
import { ReceiveRing } from './receive-ring.js';
import {
  ALL_ONES,
  BUFFER_SIZES,
  CTRL,
  DESCRIPTOR_BYTES,
  MRQC,
  RCTL,
  REG,
  RETA_ENTRIES,
  RETA_QUEUE_SHIFT,
  RFCTL,
  RSS_KEY_BYTES,
  RXCSUM,
  STATISTICS,
  TARC,
  TCTL,
  TX_QUEUE,
} from './registers.js';
import { HEADER_BYTES, MOST_SEGMENTS, TransmitRing, TX_OFFLOADS } from './transmit-ring.js';

const PAGE = 4096;
const QUEUES = 2;
const IP_SUMS = OFFLOAD.RX_IP_GOOD | OFFLOAD.RX_IP_BAD;
const L4_SUMS = OFFLOAD.RX_L4_GOOD | OFFLOAD.RX_L4_BAD;

/** What the adapter can do. */
export const E1000E_LIMITS: PortLimits = {
  rxQueues: QUEUES,
  txQueues: QUEUES,
  // The length of a ring is a multiple of 128 bytes.
  descriptors: { least: 64, most: 4096, multiple: 8 },
  // As other drivers: 9,234 bytes with the check sum.
  maxFrame: 9230,
  segments: MOST_SEGMENTS,
  offloads: OFFLOAD.RX_VLAN_STRIPPED | IP_SUMS | L4_SUMS | OFFLOAD.RX_HASH | TX_OFFLOADS,
};

/** And with legacy descriptors. */
export const LEGACY_LIMITS: PortLimits = {
  ...E1000E_LIMITS,
  rxQueues: 1,
  offloads: E1000E_LIMITS.offloads & ~OFFLOAD.RX_HASH,
};

/** How often a queue that is idle, or full, looks whether the adapter is still there: once in so many calls. */
const LOOK_CALLS = 4096;
/** How long a reader sleeps before it looks again, in milliseconds: with interrupts only in case one was lost. */
const SLEEP_MS = { polling: 1, interrupts: 100 } as const;
/** How long `stop` waits for what was given to `tx`, in milliseconds. */
const DRAIN_MS = 100;

/** For both directions of a flow RSS gives the same queue with a key that repeats every 16 bits. */
const RSS_KEY_WORD = 0x5a6d5a6d;

const READABLE = { signal: 'signal', timeoutMs: 'number' } as const;

/** Which counters of the adapter make up which of the port's. */
const ERRORS: readonly (readonly [register: number, count: number])[] = [
  [STATISTICS.MISSED, COUNT.RX_MISSED],
  [STATISTICS.CRC_ERRORS, COUNT.RX_ERRORS],
  [STATISTICS.ALIGNMENT_ERRORS, COUNT.RX_ERRORS],
  [STATISTICS.RX_ERRORS, COUNT.RX_ERRORS],
  [STATISTICS.CARRIER_EXTENSION_ERRORS, COUNT.RX_ERRORS],
  [STATISTICS.UNDERSIZE, COUNT.RX_ERRORS],
  [STATISTICS.FRAGMENTS, COUNT.RX_ERRORS],
  [STATISTICS.OVERSIZE, COUNT.RX_ERRORS],
  [STATISTICS.JABBER, COUNT.RX_ERRORS],
  [STATISTICS.EXCESSIVE_COLLISIONS, COUNT.TX_ERRORS],
  [STATISTICS.LATE_COLLISIONS, COUNT.TX_ERRORS],
];

/** The queues of a port that is started, and what keeps their memory. */
interface Running {
  readonly memory: DmaMemory;
  readonly receive: readonly ReceiveRing[];
  readonly transmit: readonly TransmitRing[];
  readonly use: Disposable | undefined;
}

/** A port. Made by `e1000eDriver`. */
export class E1000ePort extends PortBase {
  readonly limits: PortLimits;
  readonly mac: string;
  readonly #device: Device;
  readonly #context: ProbeContext;
  readonly #adapter: Adapter;
  readonly #interrupts: AdapterInterrupts;
  readonly #isLegacy: boolean;
  readonly #waiting: readonly Set<Bell>[] = Array.from({ length: QUEUES }, () => new Set());
  #running: Running | undefined;
  /** The queues that may be used, while it is started and not lost. */
  #receive: readonly ReceiveRing[] = [];
  #transmit: readonly TransmitRing[] = [];
  #promiscuous = false;
  /** RCTL while it receives. */
  #rctl = 0;
  #link = NO_LINK;
  /** The last reset failed. */
  #isStuck = false;
  #idle = 0;

  private constructor(
    device: Device,
    context: ProbeContext,
    { adapter, mac }: { readonly adapter: Adapter; readonly mac: string },
  ) {
    super(device.name);
    this.#device = device;
    this.#context = context;
    this.#adapter = adapter;
    this.mac = mac;
    this.#isLegacy = device.args.get('descriptors') === 'legacy';
    this.limits = this.#isLegacy ? LEGACY_LIMITS : E1000E_LIMITS;
    this.#interrupts = new AdapterInterrupts(device.access, adapter, {
      received: (queue) => this.#wake(queue),
      changed: () => this.#look(),
    });
  }

  /** @internal Takes the adapter: resets it, and brings its link up. @throws DmaError when it can not be worked */
  static async open(device: Device, context: ProbeContext): Promise<E1000ePort> {
    const descriptors = device.args.get('descriptors') ?? 'extended';
    if (descriptors !== 'legacy' && descriptors !== 'extended')
      throw invalid('e1000e.open', `there are no descriptors=${descriptors}`, {
        device: device.name,
        hint: 'they are legacy or extended',
      });
    try {
      const adapter = new Adapter(device.access);
      await adapter.reset();
      await adapter.setUp();
      const port = new E1000ePort(device, context, { adapter, mac: await adapter.readMac() });
      port.#link = adapter.link;
      port.#interrupts.setUp();
      return port;
    } catch (error) {
      throw withUndo(error, 'e1000e.open', []).with({ device: device.name });
    }
  }

  get link(): Link {
    this.#look();
    return this.#link;
  }

  get promiscuous(): boolean {
    return this.#promiscuous;
  }

  set promiscuous(on: boolean) {
    this.#promiscuous = on;
    if (this.#running !== undefined && this.lost === undefined) this.#whileThere(() => this.#putRctl());
  }

  #putRctl(): void {
    const any = this.#promiscuous ? RCTL.UNICAST_PROMISCUOUS | RCTL.MULTICAST_PROMISCUOUS : 0;
    this.#adapter.registers.write32(REG.RCTL, this.#rctl | any);
  }

  protected async begin(config: CheckedConfig): Promise<void> {
    const { packets } = config;
    const size = BUFFER_SIZES.find(([bytes]) => bytes <= packets.room);
    if (size === undefined)
      throw invalid('port.start', `elements with room for ${packets.room} bytes are too small for the adapter`, {
        device: this.name,
        hint: 'it writes 256, 512, 1024, 2048, 4096, 8192 or 16384 bytes to an element, and the headroom comes on top',
      });
    // Before anything is made: is the memory mapped?
    packets.buffersFor(this.#device);
    if (this.#isStuck) await this.#reset();
    const running = this.#makeRings(config, size[0]);
    try {
      for (const ring of running.receive) ring.fill(packets.buffersFor(this.#device));
      const { registers } = this.#adapter;
      for (const ring of [...running.transmit, ...running.receive]) ring.setUp();
      this.#setUpTransmit(config);
      this.#setUpReceive(config, size[1]);
      this.#putRctl();
      // After it receives, as other drivers do.
      for (const ring of running.receive) ring.ring();
      registers.flush(REG.STATUS);
      this.#adapter.status();
    } catch (error) {
      // Registers fail only if the device is gone: it reaches no memory then.
      if (isGone(error)) this.#gone(error);
      throw withUndo(error, 'port.start', releaseRings(running));
    }
    this.#running = running;
    this.#receive = running.receive;
    this.#transmit = running.transmit;
  }

  #makeRings(config: CheckedConfig, bufferBytes: number): Running {
    const { packets, maxFrame, offloads, rxDescriptors, txDescriptors } = config;
    const { registers } = this.#adapter;
    const { counters } = this;
    const isLegacy = this.#isLegacy;
    const rxBytes = alignUp(rxDescriptors * DESCRIPTOR_BYTES, PAGE);
    const txBytes = alignUp(txDescriptors * DESCRIPTOR_BYTES, PAGE);
    const headerBytes = alignUp(txDescriptors * HEADER_BYTES, PAGE);
    const [rxs, txs] = [config.rxQueues, config.txQueues];
    const all = rxs * rxBytes + txs * (txBytes + headerBytes) + PAGE;
    const memory = new DmaMemory(this.#device, this.#context, all, PAGE, 'rings');
    let at = 0;
    const part = (length: number): { bytes: Uint8Array; iova: number } => {
      const made = memory.part(at, length);
      at += alignUp(length, PAGE);
      return made;
    };
    const zerosIova = part(LEAST_FRAME).iova;
    const queued = new Uint8Array(packets.pool.elements);
    const insertsTags = (offloads & OFFLOAD.RX_VLAN_STRIPPED) !== 0;
    const receive = Array.from({ length: rxs }, (_, queue) => {
      const { bytes, iova } = part(rxBytes);
      return new ReceiveRing({
        ...{ queue, descriptors: rxDescriptors, words: wordsOf(bytes), iova, registers, packets },
        ...{ bufferBytes, maxFrame, offloads, isLegacy, counters },
      });
    });
    const transmit = Array.from({ length: txs }, (_, queue) => {
      const { bytes, iova } = part(txBytes);
      const headers = part(headerBytes);
      return new TransmitRing({
        ...{ queue, descriptors: txDescriptors, words: wordsOf(bytes), iova, registers, packets },
        ...{ headers: headers.bytes, headersIova: headers.iova, zerosIova, queued, insertsTags },
        ...{ maxFrame: this.limits.maxFrame, isLegacy, counters },
      });
    });
    const use = this.#device.domain?.addUser({
      device: this.name,
      uses: (start, end) => usesOf({ memory, receive, transmit }, all, start, end),
    });
    return { memory, receive, transmit, use };
  }

  #setUpTransmit({ txQueues }: CheckedConfig): void {
    const { registers } = this.#adapter;
    for (let queue = 0; queue < txQueues; queue++) {
      const register = TX_QUEUE.ARBITRATION + queue * TX_QUEUE.STEP;
      registers.write32(register, registers.read32(register) | TARC.ENABLE);
    }
    if (txQueues === 0) return;
    // For half duplex: 15 attempts, and the time that a collision may take at 64 bytes.
    const kept =
      registers.read32(REG.TCTL) &
      ~((TCTL.THRESHOLD_MASK << TCTL.THRESHOLD_SHIFT) | (TCTL.DISTANCE_MASK << TCTL.DISTANCE_SHIFT));
    const half = (15 << TCTL.THRESHOLD_SHIFT) | (63 << TCTL.DISTANCE_SHIFT);
    registers.write32(REG.TCTL, kept | half | TCTL.ENABLE | TCTL.PAD | TCTL.RETRY_LATE);
  }

  #setUpReceive({ rxQueues, maxFrame, offloads }: CheckedConfig, sizeBits: number): void {
    const { registers } = this.#adapter;
    // IPv6 with extension headers that are malformed can stop the receiver: they are not looked into.
    const form = this.#isLegacy ? 0 : RFCTL.EXTENDED;
    registers.write32(REG.RFCTL, form | RFCTL.NO_IPV6_EXTENSIONS | RFCTL.NO_NEW_IPV6_EXTENSIONS);
    const sums = ((offloads & IP_SUMS) !== 0 ? RXCSUM.IP : 0) | ((offloads & L4_SUMS) !== 0 ? RXCSUM.L4 : 0);
    // The hash is in place of a check sum that nobody reads.
    registers.write32(REG.RXCSUM, RXCSUM.HASH | sums);
    for (let at = 0; at < RSS_KEY_BYTES; at += 4) registers.write32(REG.RSSRK + at, RSS_KEY_WORD);
    const second = rxQueues > 1 ? 1 << RETA_QUEUE_SHIFT : 0;
    for (let at = 0; at < RETA_ENTRIES; at += 4) registers.write32(REG.RETA + at, (second << 8) | (second << 24));
    const hashes = rxQueues > 1 || (offloads & OFFLOAD.RX_HASH) !== 0;
    const fields = MRQC.RSS | MRQC.TCP_IPV4 | MRQC.IPV4 | MRQC.TCP_IPV6 | MRQC.IPV6;
    registers.write32(REG.MRQC, hashes ? fields : 0);
    const strips = (offloads & OFFLOAD.RX_VLAN_STRIPPED) !== 0;
    const control = registers.read32(REG.CTRL) & ~CTRL.VLAN_MODE;
    registers.write32(REG.CTRL, strips ? control | CTRL.VLAN_MODE : control);
    const long = maxFrame > USUAL_FRAME ? RCTL.LONG : 0;
    this.#rctl = rxQueues === 0 ? 0 : RCTL.ENABLE | RCTL.BROADCAST | RCTL.STRIP_CRC | long | sizeBits;
  }

  protected async finish(): Promise<void> {
    const running = this.#running;
    // The program gets and gives nothing any more.
    this.#receive = [];
    this.#transmit = [];
    this.#wakeAll();
    if (running === undefined) return;
    const errors: unknown[] = [];
    if (this.lost === undefined)
      try {
        await this.#end(running);
      } catch (error) {
        if (isGone(error)) this.#gone(error);
        else errors.push(error);
      }
    this.#running = undefined;
    errors.push(...releaseRings(running));
    throwFirst(errors, 'port.stop');
  }

  /** Lets what was given to `tx` go out, and resets the adapter, which ends reception. */
  async #end(running: Running): Promise<void> {
    const adapter = this.#adapter;
    const isSent = (): boolean => {
      for (const ring of running.transmit) ring.reap();
      return running.transmit.every((ring) => ring.isEmpty) || !adapter.link.up;
    };
    await until(isSent, { operation: 'port.stop', what: 'sending', timeoutMs: DRAIN_MS }).catch((error: unknown) => {
      // What is left is counted as not sent.
      if (isGone(error)) throw error;
    });
    this.#collect();
    await this.#reset();
    this.#look();
  }

  async #reset(): Promise<void> {
    this.#isStuck = true;
    await this.#adapter.reset();
    await this.#adapter.setUp();
    this.#interrupts.setUp();
    this.#isStuck = false;
  }

  rx(queue: number, burst: Int32Array, count = burst.length): number {
    const ring = this.#receive[queue];
    const { config } = this;
    if (ring === undefined || config === undefined) return 0;
    const taken = ring.take(burst, count < burst.length ? count : burst.length);
    if (ring.isDue) this.#refill(ring, config.packets, taken > 0);
    if (taken === 0 && ++this.#idle >= LOOK_CALLS) this.#look();
    return taken;
  }

  #refill(ring: ReceiveRing, packets: Packets, hasTaken: boolean): void {
    try {
      ring.refill(packets.buffersFor(this.#device));
    } catch (error) {
      // What was taken is the program's; the next call fails, too.
      if (isGone(error)) this.#gone(error);
      else if (!hasTaken) throw error;
    }
  }

  tx(queue: number, burst: Int32Array, count = burst.length): number {
    const ring = this.#transmit[queue];
    const { config } = this;
    if (ring === undefined || config === undefined) return 0;
    ring.reap();
    const { packets } = config;
    const taken = ring.put(burst, count < burst.length ? count : burst.length, packets.buffersFor(this.#device));
    try {
      ring.ring();
    } catch (error) {
      this.#gone(error);
    }
    if (taken === 0 && ++this.#idle >= LOOK_CALLS) this.#look();
    return taken;
  }

  async readable(
    queue: number,
    options: { readonly signal?: AbortSignal; readonly timeoutMs?: number } = {},
  ): Promise<void> {
    const operation = 'port.readable';
    const { signal, timeoutMs = Infinity } = optionsOf(options, READABLE, operation);
    const deadline = now() + timeoutMs;
    const sleepMs = this.#interrupts.kind === undefined ? SLEEP_MS.polling : SLEEP_MS.interrupts;
    const bell = new Bell();
    const ring = (): void => bell.ring();
    const waiting = this.#waiting[queue] ?? new Set();
    waiting.add(bell);
    signal?.addEventListener('abort', ring);
    try {
      for (;;) {
        mustGoOn(signal, operation);
        if (this.lost !== undefined) throw this.lost.with({ operation });
        if (this.#isReadable(queue)) return;
        const left = deadline - now();
        if (left <= 0) return;
        this.#whileThere(() => this.#interrupts.arm(queue));
        // What came before it was armed does not interrupt.
        if (this.#isReadable(queue) || this.lost !== undefined) continue;
        // A queue that has no descriptors gets none by an interrupt, but when the pool has elements again.
        await bell.sleep(Math.min(left, this.#ringOf(queue)?.isDue === true ? SLEEP_MS.polling : sleepMs));
        this.#look();
        this.#feed(queue);
      }
    } finally {
      waiting.delete(bell);
      signal?.removeEventListener('abort', ring);
    }
  }

  /** Has the queue packets, or can it get none? */
  #isReadable(queue: number): boolean {
    return this.#ringOf(queue)?.isReady !== false;
  }

  #ringOf(queue: number): ReceiveRing | undefined {
    return this.#receive[queue];
  }

  #feed(queue: number): void {
    const ring = this.#ringOf(queue);
    const { config } = this;
    if (ring?.isDue === true && config !== undefined) this.#refill(ring, config.packets, true);
  }

  override statistics(): PortStatistics {
    for (const ring of this.#transmit) ring.reap();
    if (this.lost === undefined) this.#whileThere(() => this.#collect());
    return super.statistics();
  }

  override resetStatistics(): void {
    this.statistics();
    super.resetStatistics();
  }

  /** Adds what the adapter has counted since it was asked last; reading sets its counters to 0. */
  #collect(): void {
    const { registers } = this.#adapter;
    for (const [register, count] of ERRORS) {
      const value = registers.read32(register);
      // A counter that is full, or an adapter that is gone.
      if (value === ALL_ONES) this.#adapter.status();
      this.counters[count] += value;
    }
  }

  /** Looks at the link, and whether the adapter is there. */
  #look(): void {
    this.#idle = 0;
    if (this.lost !== undefined) return;
    this.#whileThere(() => {
      const { link } = this.#adapter;
      const before = this.#link;
      this.#link = link;
      if (link.up !== before.up || link.speed !== before.speed || link.fullDuplex !== before.fullDuplex)
        this.tell({ kind: 'link', link });
    });
  }

  /** Works with registers; a device that is gone is lost. */
  #whileThere(work: () => void): void {
    try {
      work();
    } catch (error) {
      this.#gone(error);
    }
  }

  /** @throws the error, if it is another one than that the device is gone */
  #gone(error: unknown): void {
    if (!isGone(error)) throw error;
    const why = withUndo(error, 'port', []).with({ device: this.name });
    this.#lose(why);
  }

  #lose(why: DmaError): void {
    this.lose(why);
    this.#link = NO_LINK;
    // Packets of its queues are released by `stop`.
    this.#receive = [];
    this.#transmit = [];
    this.#wakeAll();
  }

  #wake(queue: number): void {
    for (const bell of this.#waiting[queue]) bell.ring();
  }

  #wakeAll(): void {
    for (let queue = 0; queue < QUEUES; queue++) this.#wake(queue);
  }

  /** @internal Stops it, and gives the adapter up. @param why it is lost, if it is */
  async close(why?: DmaError): Promise<void> {
    if (why !== undefined) this.#lose(why);
    const errors: unknown[] = [];
    await this.stop().catch((error: unknown) => errors.push(error));
    errors.push(...undoAll([() => this.#interrupts.close()]));
    if (this.lost === undefined)
      try {
        this.#adapter.release();
      } catch (error) {
        if (!isGone(error)) errors.push(error);
      }
    this.endEvents();
    throwFirst(errors, 'e1000e.close');
  }
}

function wordsOf(bytes: Uint8Array): Uint32Array {
  return new Uint32Array(bytes.buffer, bytes.byteOffset, bytes.length / 4);
}

/** What of it works on a byte of [start, end), VAs. */
function usesOf(
  { memory, receive, transmit }: Pick<Running, 'memory' | 'receive' | 'transmit'>,
  bytes: number,
  start: number,
  end: number,
): string | undefined {
  if (memory.va < end && memory.va + bytes > start) return 'the rings of its queues, as long as the port is started,';
  const rx = receive.findIndex((ring) => ring.uses(start, end));
  if (rx >= 0) return `receive queue ${rx}`;
  const tx = transmit.findIndex((ring) => ring.uses(start, end));
  return tx >= 0 ? `transmit queue ${tx}` : undefined;
}

function releaseRings({ use, receive, transmit, memory }: Running): unknown[] {
  return undoAll([
    () => use?.[Symbol.dispose](),
    ...receive.map((ring) => () => ring.end()),
    ...transmit.map((ring) => () => ring.end()),
    () => memory[Symbol.dispose](),
  ]);
}

shortForm(E1000ePort, 'E1000ePort', ({ name, mac, started, lost }) => ({ name, mac, started, lost: lost?.message }));
