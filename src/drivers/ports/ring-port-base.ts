/**
 * A port whose cable is rings: what one end sends, the other receives, in another thread or process, or in this one. Packets pass by
 * number, nothing is copied; what the ring does not take stays the caller's.
 *
 * Both ends have the same pool, and packets with the same table (packet-table.ts). Each segment of a packet is in the ring, so that all of it
 * belongs to whoever has the packet: when that thread ends, its elements come back.
 */
import { DmaError, invalid, isDmaError } from '../../errors.js';
import type { Ring } from '../../memory/pool/ring.js';
import { NONE, type Packets } from '../../net/packets.js';
import { COUNT, type CheckedConfig } from '../../net/port-base.js';
import type { Link, PortLimits } from '../../net/port.js';
import { clearInterval, setInterval } from '../../timers.js';
import { NO_CABLE, NO_LINK, SOFTWARE_LIMITS, SoftwarePort } from './software-port.js';

/** How often it is looked whether the other end is there, in milliseconds. */
const LOOK_MS = 100;

/** The rings of a queue. Both carry elements of one pool, and both sides of each are of one thread. */
export interface RingPair {
  /** What this end receives. */
  readonly rx: Ring;
  /** What it sends. */
  readonly tx: Ring;
}

/** A port over rings. */
export abstract class RingPortBase extends SoftwarePort {
  override readonly limits: PortLimits;
  #pairs: readonly RingPair[] = [];
  #up = false;
  #look: NodeJS.Timeout | undefined;
  #stopping = new AbortController();
  /** Segments of packets behind the first. */
  #more = new Int32Array(8);

  constructor(name: string, number: number, queues: number) {
    super(name, number);
    this.limits = { ...SOFTWARE_LIMITS, rxQueues: queues, txQueues: queues };
  }

  /** The rings of its queues; none while it has none. */
  get rings(): readonly RingPair[] {
    return this.#pairs;
  }

  /** From now on it works these. */
  protected useRings(pairs: readonly RingPair[]): void {
    this.#pairs = pairs;
  }

  /** Up while a thread or process that lives works the other end. */
  override get link(): Link {
    return this.#isUp() ? NO_CABLE : NO_LINK;
  }

  #isUp(): boolean {
    return (
      this.lost === undefined && this.#pairs.some(({ rx, tx }) => rx.isWorked('producers') && tx.isWorked('consumers'))
    );
  }

  protected get hasPackets(): boolean {
    return this.#pairs.some(({ rx }) => rx.length > 0);
  }

  /** @throws DmaError EINVAL if the packets are of another pool, or others can not know them; EBUSY if another thread works this end */
  protected begin({ packets, rxQueues, txQueues }: CheckedConfig): Promise<void> | void {
    const operation = 'port.start';
    for (const ring of this.#pairs.flatMap(({ rx, tx }) => [rx, tx])) {
      if (!ring.live) throw this.#gone(operation);
      if (!isSamePool(ring, packets))
        throw invalid(operation, `the ring ${ring.name} carries elements of another pool than ${packets.pool.name}`, {
          device: this.name,
          hint: `make the packets with ring.pool: its name is ${ring.pool?.name}`,
        });
      if (ring.sharing !== undefined && !packets.isShared)
        throw invalid(operation, 'who has the other end can not know what these packets are', {
          device: this.name,
          hint: 'make them with a table in memory that both have: new Packets(pool, { table: zone.bytes() })',
        });
    }
    // Whoever works a queue says so before the first packet. A burst of none moves nothing.
    for (const { rx } of this.#pairs.slice(0, rxQueues)) rx.dequeue(this.#more, 0);
    for (const { tx } of this.#pairs.slice(0, txQueues)) tx.enqueue(this.#more, 0);
    this.#stopping = new AbortController();
    this.#up = this.#isUp();
    this.#look = setInterval(() => this.#tellLink(), LOOK_MS);
    this.#look.unref();
  }

  protected finish(): Promise<void> | void {
    clearInterval(this.#look);
    this.#stopping.abort();
  }

  close(): void {
    this.endEvents();
  }

  #tellLink(): void {
    if (this.#pairs.some(({ rx, tx }) => !rx.live || !tx.live)) {
      this.lose(this.#gone('port'));
      this.#stopping.abort();
    }
    const up = this.#isUp();
    if (up === this.#up) return;
    this.#up = up;
    this.tell({ kind: 'link', link: up ? NO_CABLE : NO_LINK });
  }

  /** @throws DmaError EIO if the ring, or what is in it, was damaged: the port is lost then; EBUSY if another thread works this end */
  rx(queue: number, burst: Int32Array, count = burst.length): number {
    const { config, counters } = this;
    const ring = this.#pairs[queue]?.rx;
    if (config === undefined || ring === undefined || this.lost !== undefined) return 0;
    const { packets } = config;
    const { next, total } = packets;
    let taken = 0;
    let bytes = 0;
    try {
      const found = ring.dequeue(burst, Math.min(count, burst.length));
      for (let i = 0; i < found;) {
        const packet = burst[i++];
        if (!packets.inUse(packet)) throw this.#unknown(packet, ring);
        if (next[packet] !== NONE) i = this.#joinSegments(packets, packet, ring, burst, i, found);
        burst[taken++] = packet;
        bytes += total[packet];
      }
    } catch (error) {
      const told = this.#failed(error, ring, 'port.rx');
      // Those before it are good.
      if (taken === 0) throw told;
    }
    counters[COUNT.RX_PACKETS] += taken;
    counters[COUNT.RX_BYTES] += bytes;
    return taken;
  }

  /**
   * The segments behind the first are the next numbers: in the burst, or still in the ring, as all were put in at once.
   *
   * @returns the index behind the last one in the burst
   */
  #joinSegments(packets: Packets, packet: number, ring: Ring, burst: Int32Array, at: number, end: number): number {
    const { next } = packets;
    const count = packets.segments[packet] - 1;
    const here = Math.min(count, end - at);
    const more = this.#roomFor(count);
    more.set(burst.subarray(at, at + here));
    if (count > here && !ring.dequeueAll(more, count - here, here)) throw this.#unknown(packet, ring);
    let last = packet;
    for (let i = 0; i < count; i++) {
      next[last] = more[i];
      last = more[i];
    }
    next[last] = NONE;
    return at + here;
  }

  #roomFor(count: number): Int32Array {
    if (this.#more.length < count) this.#more = new Int32Array(2 * count);
    return this.#more;
  }

  /**
   * What shares its bytes with other packets, or shows attached memory, is copied.
   *
   * @throws DmaError EINVAL for a packet that is not in use; EIO as `rx`
   */
  tx(queue: number, burst: Int32Array, count = burst.length): number {
    const { config } = this;
    const ring = this.#pairs[queue]?.tx;
    if (config === undefined || ring === undefined || this.lost !== undefined) return 0;
    const { packets } = config;
    let sent = 0;
    try {
      while (sent < count) {
        const plain = this.#sendPlain(packets, ring, burst, sent, count);
        sent += plain;
        if (sent === count || packets.isPlain(burst[sent])) break;
        if (!this.#sendOther(packets, ring, burst[sent])) break;
        sent++;
      }
    } catch (error) {
      const told = this.#failed(error, ring, 'port.tx');
      // The next call throws: those before it are the port's.
      if (sent === 0) throw told;
    }
    return sent;
  }

  /** Packets of one segment go by number, up to the first other one. @returns how many */
  #sendPlain(packets: Packets, ring: Ring, burst: Int32Array, from: number, end: number): number {
    const { total } = packets;
    const { counters } = this;
    let bytes = 0;
    let at = from;
    for (; at < end && packets.isPlain(burst[at]); at++) bytes += total[burst[at]];
    const sent = ring.enqueue(burst, at - from, from);
    // The rest is still here; those that were sent may be changed already.
    for (let i = from + sent; i < at; i++) bytes -= total[burst[i]];
    counters[COUNT.TX_PACKETS] += sent;
    counters[COUNT.TX_BYTES] += bytes;
    return sent;
  }

  /** @returns whether it was taken */
  #sendOther(packets: Packets, ring: Ring, packet: number): boolean {
    const { counters } = this;
    const bytes = packets.total[packet];
    const isAlone = this.#isAlone(packets, packet);
    const count = isAlone ? packets.segments[packet] : Math.max(1, Math.ceil(bytes / packets.room));
    if (count > ring.size) {
      // It would never go.
      packets.releaseOne(packet);
      counters[COUNT.TX_ERRORS]++;
      return true;
    }
    if (ring.room < count) return false;
    const sent = isAlone ? packet : packets.copied(packet);
    if (sent === NONE) return false;
    const numbers = this.#roomFor(count);
    let segment = sent;
    for (let i = 0; i < count; i++) {
      numbers[i] = segment;
      segment = packets.next[segment];
    }
    if (!ring.enqueueAll(numbers, count)) {
      if (!isAlone) packets.releaseOne(sent);
      return false;
    }
    if (!isAlone) packets.releaseOne(packet);
    counters[COUNT.TX_PACKETS]++;
    counters[COUNT.TX_BYTES] += bytes;
    return true;
  }

  /** @throws DmaError EINVAL if it is no packet in use */
  #isAlone(packets: Packets, packet: number): boolean {
    if (!packets.inUse(packet))
      throw invalid('port.tx', `${packet} is no packet in use`, {
        device: this.name,
        hint: 'it was released before, or sent: what tx takes belongs to the port',
      });
    let count = packets.segments[packet];
    let segment = packet;
    for (; segment !== NONE && count > 0 && packets.isAlone(segment); count--) segment = packets.next[segment];
    return segment === NONE && count === 0;
  }

  override async readable(
    queue: number,
    options: { readonly signal?: AbortSignal; readonly timeoutMs?: number } = {},
  ): Promise<void> {
    const ring = this.#pairs[queue]?.rx;
    if (ring === undefined || !this.started || this.lost !== undefined) return;
    const { signal } = options;
    const stopping = this.#stopping.signal;
    try {
      const either = signal === undefined ? stopping : AbortSignal.any([signal, stopping]);
      await ring.readable({ ...options, signal: either });
    } catch (error) {
      if (signal?.aborted === true || !stopping.aborted) throw this.#failed(error, ring, 'port.readable');
    }
  }

  /** @returns the error to throw. A ring that is damaged or gone stays so */
  #failed(error: unknown, ring: Ring, operation: string): unknown {
    if (!isDmaError(error)) return error;
    if (!ring.live) {
      const gone = this.#gone(operation);
      this.lose(gone);
      return gone;
    }
    const told = error.device === undefined ? error.with({ device: this.name }) : error;
    if (told.code === 'EIO') this.lose(told);
    return told;
  }

  #gone(operation: string): DmaError {
    return new DmaError({
      code: 'ENODEV',
      operation,
      device: this.name,
      reason: 'its rings were freed',
      hint: 'the thread or process that made them has freed them, or ended',
    });
  }

  #unknown(packet: number, ring: Ring): DmaError {
    return new DmaError({
      code: 'EIO',
      operation: 'port.rx',
      device: this.name,
      reason: `the ring ${ring.name} has ${packet}, which is no packet here`,
      hint: 'both ends make their packets with the same table: new Packets(pool, { table: zone.bytes() })',
    });
  }
}

/** Threads and processes have objects of their own of one pool. */
function isSamePool({ pool }: Ring, packets: Packets): boolean {
  const other = packets.pool;
  return (
    pool === other ||
    (pool?.name === other.name && pool.elements === other.elements && pool.chunks[0].va === other.chunks[0].va)
  );
}
