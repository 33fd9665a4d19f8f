/** A port of a virtio network device: what it negotiates, its queues, how it is started and stopped, and its link. */
import { randomBytes } from 'node:crypto';
import { isGone } from '../../bus/device-access.js';
import type { Device, ProbeContext } from '../../bus/model.js';
import { DmaError, invalid, throwFirst, undoAll, withUndo } from '../../errors.js';
import { ETHERNET } from '../../net/frames.js';
import { macBytes, macText } from '../../net/mac-address.js';
import { OFFLOAD } from '../../net/offloads.js';
import { LEAST_FRAME, type CheckedConfig } from '../../net/port-base.js';
import type { Link, PortLimits } from '../../net/port.js';
import { shortForm } from '../../short-form.js';
import { alignUp } from '../../units.js';
import { DmaMemory, type DmaPart } from '../dma-memory.js';
import { AdapterPort } from '../ports/adapter-port.js';
import { QueuedPackets } from '../ports/queued-packets.js';
import { until } from '../wait.js';
import { COMMAND_BYTES, CONTROL_DESCRIPTORS, ControlQueue } from './control-queue.js';
import { VirtioInterrupts } from './interrupts.js';
import { COMMAND, CONFIG, FEATURE, HEADER, LINK_UP, MOST_DESCRIPTORS, NO_VECTOR, STATUS } from './layout.js';
import { ReceiveQueue, RX_OFFLOADS } from './receive-queue.js';
import { PackedRing, packedRingBytes } from './packed-ring.js';
import type { Ring, RingMemory } from './ring.js';
import { SplitRing, splitRingBytes } from './split-ring.js';
import { HEADER_SLOT, MORE_DESCRIPTORS, MOST_SEGMENTS, TransmitQueue } from './transmit-queue.js';
import { VirtioTransport, type Notifier } from './transport.js';

const PAGE = 4096;
/** Pairs of queues that are used at most. */
const MOST_PAIRS = 16;
const LEAST_DESCRIPTORS = 64;
/** Bytes of IP packets at most. */
const MOST_MTU = 65_535;
/** How long `stop` waits for what was given to `tx`, in milliseconds. */
const DRAIN_MS = 100;
/** The speed that a device does not know (5.1.4). */
const UNKNOWN_SPEED = 0xffffffff;

/** Features that are taken whenever they are offered. */
const ALWAYS: readonly number[] = [
  FEATURE.MTU,
  FEATURE.MAC,
  FEATURE.MRG_RXBUF,
  FEATURE.STATUS,
  FEATURE.CTRL_VQ,
  FEATURE.CTRL_RX,
  FEATURE.CTRL_MAC_ADDR,
  FEATURE.VERSION_1,
  FEATURE.ACCESS_PLATFORM,
  FEATURE.RING_PACKED,
  FEATURE.ORDER_PLATFORM,
  FEATURE.SPEED_DUPLEX,
];

/** The queues of a port that is started, and what keeps their memory. */
interface Running {
  readonly memory: DmaMemory;
  readonly receive: readonly ReceiveQueue[];
  readonly transmit: readonly TransmitQueue[];
  readonly control: ControlQueue | undefined;
  readonly notifiers: readonly Notifier[];
  readonly use: Disposable | undefined;
}

/** A port. Made by `virtioNetDriver`. */
export class VirtioNetPort extends AdapterPort<ReceiveQueue, TransmitQueue> {
  readonly limits: PortLimits;
  readonly mac: string;
  readonly #transport: VirtioTransport;
  readonly #interrupts: VirtioInterrupts;
  /** Pairs of queues that the device has: the control queue is behind them. */
  readonly #pairs: number;
  #running: Running | undefined;
  #promiscuous = false;

  private constructor(device: Device, context: ProbeContext, transport: VirtioTransport) {
    super(device, context);
    this.#transport = transport;
    const { offered, config } = transport;
    this.#mustBeUsable(device);
    this.#pairs = offered.has(FEATURE.MQ) && offered.has(FEATURE.CTRL_VQ) ? config.read16(CONFIG.PAIRS) : 1;
    this.limits = this.#readLimits();
    this.mac = macText(offered.has(FEATURE.MAC) ? config.bytes(CONFIG.MAC, 6) : localAddress());
    this.#interrupts = new VirtioInterrupts(device.access, transport, this.limits.rxQueues, {
      received: (queue) => this.#received(queue),
      changed: () => this.look(),
    });
  }

  /** @internal Takes the device: resets it, and asks it what it is. @throws DmaError when it can not be worked */
  static async open(device: Device, context: ProbeContext): Promise<VirtioNetPort> {
    try {
      const transport = new VirtioTransport(device.access);
      await transport.reset();
      transport.acknowledge();
      const port = new VirtioNetPort(device, context, transport);
      port.look();
      return port;
    } catch (error) {
      throw withUndo(error, 'virtio.open', []).with({ device: device.name });
    }
  }

  /** @throws DmaError ENOTSUP for a device that is too old, or that does not go through the IOMMU; ENODEV if its configuration is cut */
  #mustBeUsable({ bus, domain }: Device): void {
    const { offered, config } = this.#transport;
    const refuse = (reason: string, hint: string): DmaError =>
      new DmaError({ code: 'ENOTSUP', operation: 'virtio.open', reason, hint });
    if (!offered.has(FEATURE.VERSION_1))
      throw refuse('the device does not offer VIRTIO_F_VERSION_1', 'it is older than virtio 1.0');
    // Without it a device uses physical addresses (6.1). A device behind a socket knows no others than those that are mapped.
    const isThroughIommu = offered.has(FEATURE.ACCESS_PLATFORM) || bus.name === 'vfio-user';
    if (!isThroughIommu && domain?.kind !== 'vfio-noiommu')
      throw refuse(
        'the device does not go through the IOMMU: it does not offer VIRTIO_F_ACCESS_PLATFORM',
        "QEMU's devices offer it with iommu_platform=on",
      );
    const needed = offered.has(FEATURE.SPEED_DUPLEX) ? CONFIG.BYTES : CONFIG.SPEED;
    if (config.size < needed)
      throw new DmaError({
        code: 'ENODEV',
        operation: 'virtio.open',
        reason: `the configuration of the device has ${config.size} bytes, and ${needed} are needed for what it offers`,
      });
  }

  #readLimits(): PortLimits {
    const { offered, config, queues } = this.#transport;
    const refuse = (reason: string): DmaError => new DmaError({ code: 'ENODEV', operation: 'virtio.open', reason });
    if (this.#pairs < 1 || this.#pairs > 0x8000 || queues < 2)
      throw refuse(`the device says it has ${this.#pairs} pairs of queues, and ${queues} queues in all`);
    const pairs = Math.min(this.#pairs, MOST_PAIRS);
    const sizes = Array.from({ length: 2 * pairs }, (_, queue) => this.#transport.queueSize(queue));
    // Those of more pairs may be there only once several are negotiated.
    const least = Math.min(...sizes.filter((size, queue) => size > 0 || queue < 2));
    // What is no power of two can be used in part (4.1.5.1.3).
    const most = 2 ** Math.floor(Math.log2(Math.min(least, MOST_DESCRIPTORS)));
    if (!(most > MORE_DESCRIPTORS)) throw refuse(`a queue of the device has ${least} descriptors`);
    const mtu = offered.has(FEATURE.MTU) ? config.read16(CONFIG.MTU) : MOST_MTU;
    const can = (feature: number, offloads: number): number => (offered.has(feature) ? offloads : 0);
    const sums = can(FEATURE.CSUM, OFFLOAD.TX_TCP | OFFLOAD.TX_UDP | OFFLOAD.TX_IPV6);
    const cuts = can(FEATURE.HOST_TSO4, OFFLOAD.TX_TSO) & can(FEATURE.HOST_TSO6, OFFLOAD.TX_TSO);
    return {
      rxQueues: pairs,
      txQueues: pairs,
      descriptors: { least: Math.min(LEAST_DESCRIPTORS, most), most, multiple: 1 },
      maxFrame: Math.max(LEAST_FRAME, mtu + ETHERNET.BYTES),
      segments: Math.min(MOST_SEGMENTS, most - MORE_DESCRIPTORS),
      offloads: OFFLOAD.TX_VLAN | sums | (sums === 0 ? 0 : cuts) | can(FEATURE.GUEST_CSUM, RX_OFFLOADS),
    };
  }

  protected get polls(): boolean {
    return this.#interrupts.kind === undefined;
  }

  get promiscuous(): boolean {
    return this.#promiscuous;
  }

  /** A device without filters takes everything, and one that has them is told at once. @throws DmaError EIO if it refuses */
  set promiscuous(on: boolean) {
    const control = this.lost === undefined ? this.#running?.control : undefined;
    if (control !== undefined) this.whileThere(() => this.#filter(control, on));
    this.#promiscuous = on;
  }

  #filter(control: ControlQueue, promiscuous: boolean): void {
    if (this.#transport.offered.has(FEATURE.CTRL_RX))
      control.send(COMMAND.PROMISCUOUS, [promiscuous ? 1 : 0], `promiscuous ${promiscuous ? 'on' : 'off'}`);
  }

  protected async begin(config: CheckedConfig): Promise<void> {
    this.#check(config);
    // Before anything is made: is the memory mapped?
    config.packets.buffersFor(this.device);
    const transport = this.#transport;
    let running: Running | undefined;
    try {
      await transport.reset();
      transport.acknowledge();
      transport.negotiate(this.#wanted(config));
      transport.setConfigVector(this.#interrupts.configVector);
      running = this.#makeQueues(config);
      transport.go();
      this.#command(running.control, config);
      const buffers = config.packets.buffersFor(this.device);
      for (const queue of running.receive) queue.fill(buffers);
      for (const [i, queue] of running.receive.entries()) queue.go(running.notifiers[i]);
      transport.status();
    } catch (error) {
      const errors = isGone(error) ? [] : await this.#reset();
      if (isGone(error)) this.gone(error);
      if (running !== undefined) errors.push(...releaseQueues(running));
      throw withUndo(error, 'port.start', errors);
    }
    this.#running = running;
    this.open(running.receive, running.transmit);
  }

  /** @throws DmaError EINVAL for what the device can not do */
  #check({ packets, rxQueues, txQueues, rxDescriptors, txDescriptors, maxFrame }: CheckedConfig): void {
    const refuse = (reason: string, hint: string): DmaError =>
      invalid('port.start', reason, { device: this.name, hint });
    for (const [what, count] of Object.entries({ rxDescriptors, txDescriptors }))
      if ((count & (count - 1)) !== 0)
        throw refuse(`${what} is ${count}`, 'queues of virtio devices have a power of two of descriptors');
    if (Math.max(rxQueues, txQueues) > 1 && rxQueues < txQueues)
      throw refuse(
        `${rxQueues} receive queues are too few for ${txQueues} transmit queues`,
        'the device puts packets into as many receive queues as there are pairs',
      );
    if (packets.headroom < HEADER.BYTES)
      throw refuse(
        `packets with ${packets.headroom} bytes of headroom have no place for the header of the device`,
        `it writes ${HEADER.BYTES} bytes in front of each frame`,
      );
    if (maxFrame > packets.room && !this.#transport.offered.has(FEATURE.MRG_RXBUF))
      throw refuse(
        `elements with room for ${packets.room} bytes are too small for frames of ${maxFrame}`,
        'the device can not put a frame into several: it does not offer VIRTIO_NET_F_MRG_RXBUF',
      );
  }

  #wanted({ rxQueues, txQueues, offloads }: CheckedConfig): number[] {
    const wanted = [...ALWAYS];
    const { limits } = this;
    // Each offload needs the sums (5.1.3.1).
    if ((limits.offloads & OFFLOAD.TX_TCP) !== 0) wanted.push(FEATURE.CSUM);
    if ((limits.offloads & OFFLOAD.TX_TSO) !== 0) wanted.push(FEATURE.HOST_TSO4, FEATURE.HOST_TSO6);
    if ((offloads & RX_OFFLOADS) !== 0) wanted.push(FEATURE.GUEST_CSUM);
    if (this.#pairs > 1 && Math.max(rxQueues, txQueues) > 1) wanted.push(FEATURE.MQ);
    return wanted;
  }

  /** Where the control queue is: behind all pairs, if several are negotiated (5.1.2). */
  #controlQueue({ rxQueues, txQueues }: CheckedConfig): number {
    return Math.max(rxQueues, txQueues) > 1 ? 2 * this.#pairs : 2;
  }

  #makeQueues(config: CheckedConfig): Running {
    const transport = this.#transport;
    const { packets, rxQueues, txQueues, rxDescriptors, txDescriptors, maxFrame, offloads } = config;
    const { counters, limits } = this;
    const hasControl = transport.offered.has(FEATURE.CTRL_VQ);
    const controlSize = hasControl
      ? Math.min(CONTROL_DESCRIPTORS, 2 ** Math.floor(Math.log2(transport.queueSize(this.#controlQueue(config)))))
      : 0;
    if (hasControl && controlSize < 2)
      throw new DmaError({ code: 'EIO', operation: 'port.start', reason: 'the device has no control queue' });
    const isPacked = transport.offered.has(FEATURE.RING_PACKED);
    const bytesOf = (size: number): number => alignUp(isPacked ? packedRingBytes(size) : splitRingBytes(size), PAGE);
    const ringOf = (size: number, of: RingMemory): Ring =>
      isPacked ? new PackedRing(size, of) : new SplitRing(size, of);
    const shape = {
      receive: bytesOf(rxDescriptors),
      transmit: bytesOf(txDescriptors),
      headers: alignUp(txDescriptors * HEADER_SLOT, PAGE),
      control: hasControl ? bytesOf(controlSize) + PAGE : 0,
    };
    const all = rxQueues * shape.receive + txQueues * (shape.transmit + shape.headers) + shape.control + PAGE;
    const memory = new DmaMemory(this.device, this.context, all, PAGE, 'rings');
    try {
      let at = 0;
      const part = (length: number): DmaPart => {
        const made = memory.part(at, length);
        at += length;
        return made;
      };
      const setUp = (queue: number, ring: Ring, vector: number): Notifier => {
        ring.setInterrupts(false);
        const most = transport.queueSize(queue);
        if (ring.size > most)
          throw new DmaError({
            code: 'EIO',
            operation: 'port.start',
            reason: `queue ${queue} of the device has ${most} descriptors, fewer than ${ring.size}`,
          });
        return transport.setUpQueue(queue, { size: ring.size, parts: ring.parts, vector });
      };
      const zeros = part(PAGE);
      const queued = new QueuedPackets(packets);
      const merges = transport.offered.has(FEATURE.MRG_RXBUF);
      const notifiers: Notifier[] = [];
      const receive = Array.from({ length: rxQueues }, (_, queue) => {
        const ring = ringOf(rxDescriptors, part(shape.receive));
        notifiers.push(setUp(2 * queue, ring, this.#interrupts.vectorOf(queue)));
        return new ReceiveQueue({ queue, ring, packets, merges, maxFrame, offloads, counters });
      });
      const transmit = Array.from({ length: txQueues }, (_, queue) => {
        const ring = ringOf(txDescriptors, part(shape.transmit));
        const headers = part(shape.headers);
        return new TransmitQueue({
          ...{ queue, ring, packets, queued, counters, notifier: setUp(2 * queue + 1, ring, NO_VECTOR) },
          ...{ headers: headers.bytes, headersIova: headers.iova, zerosIova: zeros.iova },
          ...{ maxFrame: limits.maxFrame, offloads: limits.offloads },
        });
      });
      let control: ControlQueue | undefined;
      if (hasControl) {
        const ring = ringOf(controlSize, part(shape.control - PAGE));
        const notifier = setUp(this.#controlQueue(config), ring, NO_VECTOR);
        control = new ControlQueue(ring, notifier, memory.part(at, COMMAND_BYTES));
      }
      const uses = (start: number, end: number): string | undefined =>
        usesOf({ memory, receive, transmit }, all, start, end);
      const use = this.device.domain?.addUser({ device: this.name, uses });
      return { memory, receive, transmit, control, notifiers, use };
    } catch (error) {
      // The device does not work before DRIVER_OK: it reaches none of it.
      throw withUndo(error, 'port.start', undoAll([() => memory[Symbol.dispose]()]));
    }
  }

  /** What the device has to know before it gets buffers. */
  #command(control: ControlQueue | undefined, { rxQueues, txQueues }: CheckedConfig): void {
    if (control === undefined) return;
    const { offered } = this.#transport;
    const pairs = Math.max(rxQueues, txQueues);
    if (pairs > 1) control.send(COMMAND.SET_PAIRS, [pairs & 0xff, pairs >> 8], `${pairs} pairs of queues`);
    if (!offered.has(FEATURE.MAC) && offered.has(FEATURE.CTRL_MAC_ADDR))
      control.send(COMMAND.SET_MAC, macBytes(this.mac), `the station address ${this.mac}`);
    this.#filter(control, this.#promiscuous);
  }

  protected async finish(): Promise<void> {
    const running = this.#running;
    this.shut();
    if (running === undefined) return;
    const errors: unknown[] = [];
    if (this.lost === undefined)
      try {
        await this.#drain(running);
      } catch (error) {
        if (isGone(error)) this.gone(error);
        else errors.push(error);
      }
    // One that did what no device may do is there, and has memory.
    if (!isGone(this.lost)) errors.push(...(await this.#reset()));
    this.#running = undefined;
    errors.push(...releaseQueues(running));
    if (this.lost === undefined) this.look();
    throwFirst(errors, 'port.stop');
  }

  /** Lets what was given to `tx` go out. */
  async #drain({ transmit }: Running): Promise<void> {
    const isSent = (): boolean => {
      for (const queue of transmit) queue.reap();
      return transmit.every(({ isEmpty, ring }) => isEmpty || ring.broken !== undefined) || !this.readLink().up;
    };
    await until(isSent, { operation: 'port.stop', what: 'sending', timeoutMs: DRAIN_MS }).catch((error: unknown) => {
      // What is left is counted as not sent.
      if (isGone(error)) throw error;
    });
  }

  /** The device reaches no memory any more. @returns errors */
  async #reset(): Promise<unknown[]> {
    try {
      await this.#transport.reset();
      this.#transport.acknowledge();
    } catch (error) {
      if (!isGone(error)) return [error];
      this.gone(error);
    }
    return [];
  }

  protected arm(queue: number): void {
    this.#running?.receive[queue]?.ring.setInterrupts(true);
  }

  #received(queue: number): void {
    this.#running?.receive[queue]?.ring.setInterrupts(false);
    this.wake(queue);
  }

  protected readLink(): Link {
    const { offered, config } = this.#transport;
    const status = this.#transport.status();
    if ((status & STATUS.NEEDS_RESET) !== 0 && this.started) this.#break('says that it needs a reset');
    // Without the feature it is up (5.1.4.2).
    const up = !offered.has(FEATURE.STATUS) || (config.read16(CONFIG.STATUS) & LINK_UP) !== 0;
    if (!up || !offered.has(FEATURE.SPEED_DUPLEX)) return { up, speed: 0, fullDuplex: up };
    const speed = config.read32(CONFIG.SPEED);
    return { up, speed: speed === UNKNOWN_SPEED ? 0 : speed, fullDuplex: config.read8(CONFIG.DUPLEX) !== 0 };
  }

  protected override checkQueue({ ring }: ReceiveQueue | TransmitQueue): void {
    if (ring.broken !== undefined) this.#break(ring.broken);
  }

  /** The device did what no device may do: nothing that it says can be trusted. */
  #break(what: string): void {
    this.loseAll(
      new DmaError({
        code: 'EIO',
        operation: 'port',
        device: this.name,
        reason: `the device ${what}`,
        hint: 'stop the port; eal.remove and eal.probe reset the device',
      }),
    );
  }

  /** @internal Stops it, and gives the device up. @param why it is lost, if it is */
  async close(why?: DmaError): Promise<void> {
    if (why !== undefined) this.loseAll(why);
    const errors: unknown[] = [];
    await this.stop().catch((error: unknown) => errors.push(error));
    errors.push(...undoAll([() => this.#interrupts.close()]));
    if (!isGone(this.lost))
      await this.#transport.reset().catch((error: unknown) => {
        if (!isGone(error)) errors.push(error);
      });
    this.endEvents();
    throwFirst(errors, 'virtio.close');
  }
}

/** A station address for a device that has none: locally administered, of no group. */
function localAddress(): Uint8Array {
  const bytes = new Uint8Array(randomBytes(6));
  bytes[0] = (bytes[0] & 0xfc) | 2;
  return bytes;
}

/** What of it works on a byte of [start, end), VAs. */
function usesOf(
  { memory, receive, transmit }: Pick<Running, 'memory' | 'receive' | 'transmit'>,
  bytes: number,
  start: number,
  end: number,
): string | undefined {
  if (memory.va < end && memory.va + bytes > start) return 'the rings of its queues, as long as the port is started,';
  const rx = receive.findIndex((queue) => queue.uses(start, end));
  if (rx >= 0) return `receive queue ${rx}`;
  const tx = transmit.findIndex((queue) => queue.uses(start, end));
  return tx >= 0 ? `transmit queue ${tx}` : undefined;
}

function releaseQueues({ use, receive, transmit, memory }: Running): unknown[] {
  return undoAll([
    () => use?.[Symbol.dispose](),
    ...receive.map((queue) => () => queue.end()),
    ...transmit.map((queue) => () => queue.end()),
    () => memory[Symbol.dispose](),
  ]);
}

shortForm(VirtioNetPort, 'VirtioNetPort', ({ name, mac, started, lost }) => ({
  name,
  mac,
  started,
  lost: lost?.message,
}));
