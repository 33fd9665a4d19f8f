/**
 * A port whose cable goes to the kernel of this machine: an interface (tap), to which addresses and routes can be given. What the kernel
 * sends there is received, and what is sent the kernel receives.
 *
 * Frames are read and written in batches, into and out of the memory of packets. A header of 10 bytes is in front of each (virtio_net_hdr),
 * in the packet's headroom: it asks the kernel for check sums.
 */
import { invalid, DmaError, ERRNO, isDmaError } from '../../errors.js';
import { checksum, sumOf } from '../../net/checksum.js';
import { IPV4, putU16, TCP, UDP } from '../../net/frames.js';
import { OFFLOAD } from '../../net/offloads.js';
import { NONE, type Packets } from '../../net/packets.js';
import { COUNT, type CheckedConfig } from '../../net/port-base.js';
import type { Link, PortLimits } from '../../net/port.js';
import type { FileBatch } from '../../platform/ports.js';
import { VIRTIO_NET_HDR_F_NEEDS_CSUM, VNET_HDR } from '../../platform/uapi/tun.js';
import { clearInterval, clearTimeout, setInterval, setTimeout } from '../../timers.js';
import { aborted, NO_CABLE, NO_LINK, readableOptions, SOFTWARE_LIMITS, SoftwarePort } from './software-port.js';
import type { TapInterface, TapPlatform } from './tap-interface.js';

const HEADER = VNET_HDR.sizeof;
/** Frames shorter than an Ethernet header are refused by the kernel. */
const LEAST = 14;
const OFFLOADS = OFFLOAD.TX_IP | OFFLOAD.TX_TCP | OFFLOAD.TX_UDP | OFFLOAD.TX_IPV6;
/** How often it is looked whether the interface is switched on, in milliseconds. */
const LOOK_MS = 200;

/** What the kernel did not take now, but may take later. It is EIO while the interface is switched off. */
const LATER: readonly number[] = [ERRNO.EAGAIN, ERRNO.EIO, ERRNO.ENOBUFS, ERRNO.ENOMEM, ERRNO.EINTR];

/** A queue: a descriptor, and what is read and written at once. */
interface TapQueue {
  readonly fd: number;
  /** Absent where the kernel has no asynchronous I/O: then frames go one by one. */
  readonly batch: FileBatch | undefined;
  /** How many frames are asked for: more after each full burst. */
  wanted: number;
}

/** `vdev:tap0`. */
export class TapPort extends SoftwarePort {
  override readonly limits: PortLimits;
  readonly #platform: TapPlatform;
  readonly #interface: TapInterface;
  #queues: TapQueue[] = [];
  /** A frame with its header, where packets can not be read or written in place. */
  #scratch = new Uint8Array(0);
  readonly #unused = new Int32Array(512);
  #up = false;
  #look: NodeJS.Timeout | undefined;
  #wakes = new Set<() => void>();

  /** @param tap is closed with the port */
  constructor(name: string, number: number, platform: TapPlatform, tap: TapInterface) {
    super(name, number);
    this.#platform = platform;
    this.#interface = tap;
    const queues = tap.fds.length;
    this.limits = { ...SOFTWARE_LIMITS, rxQueues: queues, txQueues: queues, offloads: OFFLOADS };
  }

  /** Up while the interface is switched on. */
  override get link(): Link {
    return this.lost === undefined && this.#isUp() ? NO_CABLE : NO_LINK;
  }

  /** The kernel says that it can be written only while it is switched on, also when it was moved to another network namespace. */
  #isUp(): boolean {
    const fds = this.#interface.fds.map((fd) => ({ fd, readable: false, writable: true }));
    return this.#platform.readiness.wait(fds, 0) || this.#interface.isUp;
  }

  /** The kernel's name of the interface. */
  get interfaceName(): string {
    return this.#interface.name;
  }

  /** Bytes of a packet without its Ethernet header, as the kernel has it now; 0 if the interface is gone. */
  get mtu(): number {
    return this.#interface.mtu;
  }

  protected get hasPackets(): boolean {
    return this.#queues.some(({ fd }) => this.#platform.readiness.wait([{ fd, readable: true, writable: false }], 0));
  }

  /** @throws DmaError EINVAL if the headroom of packets is smaller than the header of 10 bytes */
  protected begin({ packets }: CheckedConfig): void {
    if (packets.headroom < HEADER)
      throw invalid('port.start', `the headroom of ${packets.headroom} bytes is too small for a header of ${HEADER}`, {
        device: this.name,
        hint: `new Packets(pool, { headroom: 128 }) is usual`,
      });
    this.#queues = this.#interface.fds.map((fd) => ({ fd, batch: this.#platform.files.batch(), wanted: 1 }));
    this.#scratch = new Uint8Array(HEADER + SOFTWARE_LIMITS.maxFrame + 1);
    this.#up = this.link.up;
    this.#look = setInterval(() => this.#tellLink(), LOOK_MS);
    this.#look.unref();
  }

  protected finish(): void {
    clearInterval(this.#look);
    for (const { batch } of this.#queues) batch?.close();
    this.#queues = [];
    for (const wake of this.#wakes) wake();
  }

  close(): void {
    this.#interface[Symbol.dispose]();
    this.endEvents();
  }

  #tellLink(): void {
    const { link } = this;
    if (link.up === this.#up) return;
    this.#up = link.up;
    this.tell({ kind: 'link', link });
  }

  /** @throws DmaError ENODEV if the interface was removed: the port is lost then; as read(2) */
  rx(queue: number, burst: Int32Array, count = burst.length): number {
    const { config, counters } = this;
    const from = this.#queues[queue];
    if (config === undefined || from === undefined || this.lost !== undefined) return 0;
    const { packets, maxFrame } = config;
    const most = Math.min(count, burst.length, from.wanted);
    // A byte more than a frame may have shows that it was longer.
    const taken =
      from.batch === undefined || maxFrame >= packets.room
        ? this.#readEach(from, packets, maxFrame, burst, most)
        : this.#readBatch(from, from.batch, packets, maxFrame, burst, most);
    from.wanted = taken === most ? Math.min(2 * from.wanted, from.batch?.capacity ?? 128) : Math.max(1, taken);
    counters[COUNT.RX_PACKETS] += taken;
    for (let i = 0; i < taken; i++) counters[COUNT.RX_BYTES] += packets.total[burst[i]];
    return taken;
  }

  #readBatch(
    { fd }: TapQueue,
    batch: FileBatch,
    packets: Packets,
    maxFrame: number,
    burst: Int32Array,
    most: number,
  ): number {
    const { counters } = this;
    const { headroom, length, total, pool } = packets;
    const unused = this.#unused;
    if (!packets.take(burst, most)) {
      counters[COUNT.RX_NO_BUFFERS]++;
      return 0;
    }
    const { vas } = pool;
    for (let i = 0; i < most; i++) batch.read(fd, 0, vas[burst[i]] + headroom - HEADER, HEADER + maxFrame + 1, false);
    batch.run();
    let [taken, left] = [0, 0];
    let failed = 0;
    for (let i = 0; i < most; i++) {
      const packet = burst[i];
      const size = batch.results[i] - HEADER;
      if (size > 0 && size <= maxFrame) {
        length[packet] = size;
        total[packet] = size;
        burst[taken++] = packet;
        continue;
      }
      unused[left++] = packet;
      if (size > 0) counters[COUNT.RX_ERRORS]++;
      else if (batch.results[i] < 0) failed = -batch.results[i];
    }
    packets.release(unused, left);
    if (taken === 0 && failed !== 0) this.#mustBeLater(failed, 'port.rx');
    return taken;
  }

  #readEach({ fd }: TapQueue, packets: Packets, maxFrame: number, burst: Int32Array, most: number): number {
    const { counters } = this;
    const scratch = this.#scratch;
    let taken = 0;
    while (taken < most) {
      const empty = packets.takeOne();
      if (empty === NONE) {
        counters[COUNT.RX_NO_BUFFERS]++;
        break;
      }
      // The frame may need more than this one.
      packets.releaseOne(empty);
      const result = this.#transfer('read', fd, scratch.subarray(0, HEADER + maxFrame + 1));
      if (result < 0) {
        if (taken === 0) this.#mustBeLater(-result, 'port.rx');
        break;
      }
      const packet = result - HEADER > maxFrame ? NONE : packets.from(scratch.subarray(HEADER, result));
      if (packet !== NONE) burst[taken++] = packet;
      else if (result - HEADER > maxFrame) counters[COUNT.RX_ERRORS]++;
      else counters[COUNT.RX_MISSED]++;
    }
    return taken;
  }

  /**
   * What the kernel does not take stays the caller's, also while the interface is switched off. Frames that it refuses, such as those
   * without a whole Ethernet header, count as `txErrors`.
   *
   * @throws DmaError EINVAL for a packet that is not in use; as `rx`
   */
  tx(queue: number, burst: Int32Array, count = burst.length): number {
    const { config } = this;
    const to = this.#queues[queue];
    if (config === undefined || to === undefined || this.lost !== undefined) return 0;
    const { packets } = config;
    let sent = 0;
    while (sent < count) {
      const together = this.#addPlain(to, packets, burst, sent, count);
      const took =
        together > 0 ? this.#writeBatch(to, packets, burst, sent, together) : this.#writeOne(to, packets, burst[sent]);
      if (took < 0) {
        // The next call tells it: those before it are the port's.
        if (sent === 0) this.#mustBeLater(-took, 'port.tx');
        break;
      }
      sent += took;
      if (took < together) break;
    }
    return sent;
  }

  /** Adds packets that can be written in place, up to the first other one. @returns how many */
  #addPlain({ fd, batch }: TapQueue, packets: Packets, burst: Int32Array, from: number, end: number): number {
    if (batch === undefined) return 0;
    const { vas } = packets.pool;
    const { offset, length } = packets;
    let at = from;
    for (; at < end && batch.count < batch.capacity; at++) {
      const packet = burst[at];
      if (!packets.isPlain(packet) || offset[packet] < HEADER) break;
      putHeader(packets.view(packet), packets.start(packet) - HEADER, packets, packet);
      batch.write(fd, 0, vas[packet] + offset[packet] - HEADER, HEADER + length[packet]);
    }
    return at - from;
  }

  /** @returns how many were taken; a negative errno if none was */
  #writeBatch({ batch }: TapQueue, packets: Packets, burst: Int32Array, from: number, count: number): number {
    if (batch === undefined) return 0;
    const { results } = batch;
    batch.run();
    // Behind the last one that went, or that never will.
    let took = count;
    while (took > 0 && results[took - 1] < 0 && isLater(-results[took - 1])) took--;
    if (took === 0) return results[0];
    this.#count(packets, burst, from, took, results);
    packets.release(burst, took, from);
    return took;
  }

  #count(packets: Packets, burst: Int32Array, from: number, took: number, results: Int32Array): void {
    const { counters } = this;
    for (let i = 0; i < took; i++)
      if (results[i] < 0) counters[COUNT.TX_ERRORS]++;
      else {
        counters[COUNT.TX_PACKETS]++;
        counters[COUNT.TX_BYTES] += packets.total[burst[from + i]];
      }
  }

  /** A packet of several segments, or whose bytes others see. @returns 1 if it was taken; a negative errno otherwise */
  #writeOne({ fd }: TapQueue, packets: Packets, packet: number): number {
    const { counters } = this;
    if (!packets.inUse(packet))
      throw invalid('port.tx', `${packet} is no packet in use`, {
        device: this.name,
        hint: 'it was released before, or sent: what tx takes belongs to the port',
      });
    const total = packets.total[packet];
    let result = -ERRNO.EMSGSIZE;
    if (total <= SOFTWARE_LIMITS.maxFrame) {
      this.#scratch.set(packets.copy(packet), HEADER);
      putHeader(this.#scratch, 0, packets, packet);
      result = this.#transfer('write', fd, this.#scratch.subarray(0, HEADER + total));
    }
    if (result < 0 && isLater(-result)) return result;
    if (result < 0) counters[COUNT.TX_ERRORS]++;
    else {
      counters[COUNT.TX_PACKETS]++;
      counters[COUNT.TX_BYTES] += total;
    }
    packets.releaseOne(packet);
    return 1;
  }

  /** @returns the bytes, or a negative errno */
  #transfer(what: 'read' | 'write', fd: number, bytes: Uint8Array): number {
    try {
      return this.#platform.files[what](fd, bytes);
    } catch (error) {
      if (isDmaError(error)) return -error.errno;
      throw error;
    }
  }

  /** @throws DmaError ENODEV, and others that do not pass */
  #mustBeLater(errno: number, operation: string): void {
    if (LATER.includes(errno) || this.lost !== undefined) return;
    const error = new DmaError({
      code: 'ENODEV',
      operation,
      device: this.name,
      reason: `the interface ${this.#interface.name} is gone (errno ${errno})`,
      hint: 'somebody has removed it ("ip link del"), or moved its namespace away',
    });
    this.lose(error);
    throw error;
  }

  override async readable(
    queue: number,
    options: { readonly signal?: AbortSignal; readonly timeoutMs?: number } = {},
  ): Promise<void> {
    const fd = this.#queues[queue]?.fd;
    const { signal, timeoutMs } = readableOptions(options);
    if (fd === undefined || this.lost !== undefined) return;
    await new Promise<void>((resolve, reject) => {
      const over = (): void => {
        this.#wakes.delete(over);
        watch.close();
        clearTimeout(timer);
        signal?.removeEventListener('abort', over);
        if (signal?.aborted === true) reject(aborted(this.name, signal));
        else resolve();
      };
      const watch = this.#platform.readiness.watch(fd, { readable: true }, () => over());
      const timer = timeoutMs === Infinity ? undefined : setTimeout(over, timeoutMs);
      this.#wakes.add(over);
      signal?.addEventListener('abort', over);
      if (signal?.aborted === true) over();
    });
  }
}

function isLater(errno: number): boolean {
  return LATER.includes(errno) || errno === ERRNO.EBADFD;
}

/** Writes the header, whose data follows it, and the check sum of the IP header if that is asked for. */
function putHeader(bytes: Uint8Array, at: number, packets: Packets, packet: number): void {
  bytes.fill(0, at, at + HEADER);
  const flags = packets.flags[packet];
  if ((flags & OFFLOADS) === 0 || packets.total[packet] < LEAST) return;
  const ip = at + HEADER + packets.l2[packet];
  if ((flags & OFFLOAD.TX_IP) !== 0) {
    putU16(bytes, ip + IPV4.SUM, 0);
    putU16(bytes, ip + IPV4.SUM, checksum(sumOf(bytes, ip, packets.l3[packet])));
  }
  if ((flags & (OFFLOAD.TX_TCP | OFFLOAD.TX_UDP)) === 0) return;
  bytes[at + VNET_HDR.flags] = VIRTIO_NET_HDR_F_NEEDS_CSUM;
  putU16Little(bytes, at + VNET_HDR.csum_start, packets.l2[packet] + packets.l3[packet]);
  putU16Little(bytes, at + VNET_HDR.csum_offset, (flags & OFFLOAD.TX_TCP) === 0 ? UDP.SUM : TCP.SUM);
}

function putU16Little(bytes: Uint8Array, at: number, value: number): void {
  bytes[at] = value & 0xff;
  bytes[at + 1] = value >> 8;
}
