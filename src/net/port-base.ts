/** What all ports have in common: their configuration is checked once, and packets, events and counters are handed out the same way. */
import { mustBe, mustBeWhole, optionsOf } from '../check.js';
import { DmaError, invalid } from '../errors.js';
import { Feed } from '../feed.js';
import { hex } from '../units.js';
import { Packets } from './packets.js';
import type { Link, Port, PortConfig, PortEvent, PortLimits, PortStatistics } from './port.js';
import { STAYS } from '../stays.js';

/** A configuration with every choice made. */
export type CheckedConfig = Required<PortConfig>;

/** Indexes of the counters of a port. */
export const COUNT = {
  RX_PACKETS: 0,
  RX_BYTES: 1,
  RX_MISSED: 2,
  RX_ERRORS: 3,
  RX_NO_BUFFERS: 4,
  TX_PACKETS: 5,
  TX_BYTES: 6,
  TX_ERRORS: 7,
} as const;
const COUNTERS = 8;

/** Bytes of a frame without its check sum: the usual most, and the least that is sent. */
export const USUAL_FRAME = 1514;
export const LEAST_FRAME = 60;

const USUAL_DESCRIPTORS = 512;
/** Packets that `packets()` takes at once. */
const BURST = 64;

const CONFIG = {
  packets: 'object',
  rxQueues: 'number',
  txQueues: 'number',
  rxDescriptors: 'number',
  txDescriptors: 'number',
  maxFrame: 'number',
  offloads: 'number',
} as const;

/** A port, without its device. */
export abstract class PortBase implements Port {
  /** @internal */
  readonly stays = STAYS;
  readonly name: string;
  abstract readonly limits: PortLimits;
  abstract readonly mac: string;
  abstract readonly link: Link;
  abstract promiscuous: boolean;
  /** By `COUNT`. */
  protected readonly counters = new Float64Array(COUNTERS);
  #config: CheckedConfig | undefined;
  #busy = false;
  #lost: DmaError | undefined;
  readonly #feed = new Feed<PortEvent>();

  /** A port that is not started. @param name of its device */
  constructor(name: string) {
    this.name = name;
  }

  /** Makes the queues. If it throws, nothing is left of them. */
  protected abstract begin(config: CheckedConfig): Promise<void> | void;
  /** Ends DMA and releases the packets of the queues. Must not throw for a device that is lost. */
  protected abstract finish(config: CheckedConfig): Promise<void> | void;
  abstract rx(queue: number, burst: Int32Array, count?: number): number;
  abstract tx(queue: number, burst: Int32Array, count?: number): number;
  abstract readable(
    queue: number,
    options?: { readonly signal?: AbortSignal; readonly timeoutMs?: number },
  ): Promise<void>;

  /** No more packets will be received: a file has ended. */
  get ended(): boolean {
    return this.#lost !== undefined;
  }

  get started(): boolean {
    return this.#config !== undefined;
  }

  /** Why it was lost. */
  get lost(): DmaError | undefined {
    return this.#lost;
  }

  async start(config: PortConfig): Promise<void> {
    const operation = 'port.start';
    if (this.#config !== undefined || this.#busy) throw invalid(operation, `${this.name} is started already`);
    if (this.#lost !== undefined) throw this.#lost;
    const checked = this.#checked(config, operation);
    this.#busy = true;
    try {
      await this.begin(checked);
      this.#config = checked;
    } finally {
      this.#busy = false;
    }
  }

  async stop(): Promise<void> {
    const config = this.#config;
    if (config === undefined) return;
    this.#config = undefined;
    this.#busy = true;
    try {
      await this.finish(config);
    } finally {
      this.#busy = false;
    }
  }

  #checked(config: PortConfig, operation: string): CheckedConfig {
    const { limits } = this;
    const given = optionsOf(config, CONFIG, operation);
    const { packets, offloads = 0 } = given;
    mustBe(packets, Packets, 'packets', operation);
    const { least, most, multiple } = limits.descriptors;
    const usual = Math.max(least, Math.min(most, USUAL_DESCRIPTORS));
    const { rxQueues = 1, txQueues = 1, rxDescriptors = usual, txDescriptors = usual } = given;
    const { maxFrame = Math.min(USUAL_FRAME, limits.maxFrame) } = given;
    mustBeWhole(rxQueues, 0, limits.rxQueues, 'rxQueues', operation);
    mustBeWhole(txQueues, 0, limits.txQueues, 'txQueues', operation);
    for (const [what, descriptors] of Object.entries({ rxDescriptors, txDescriptors })) {
      mustBeWhole(descriptors, least, most, what, operation);
      if (descriptors % multiple !== 0)
        throw invalid(operation, `${what} is ${descriptors}, not a multiple of ${multiple}`, { device: this.name });
    }
    mustBeWhole(maxFrame, LEAST_FRAME, limits.maxFrame, 'maxFrame', operation);
    mustBeWhole(offloads, 0, 2 ** 31 - 1, 'offloads', operation);
    if ((offloads & ~limits.offloads) !== 0)
      throw new DmaError({
        code: 'ENOTSUP',
        operation,
        device: this.name,
        reason: `the port can not do the offloads ${hex(offloads & ~limits.offloads)}`,
        hint: `port.limits.offloads has the bits of OFFLOAD that it can do: ${hex(limits.offloads)}`,
      });
    return { packets, rxQueues, txQueues, rxDescriptors, txDescriptors, maxFrame, offloads };
  }

  /** @returns the configuration that it was started with; `undefined` while it is stopped */
  protected get config(): CheckedConfig | undefined {
    return this.#config;
  }

  async *packets(queue = 0): AsyncGenerator<Int32Array, void> {
    const burst = new Int32Array(BURST);
    while (this.#config !== undefined) {
      const count = this.rx(queue, burst);
      if (count > 0) yield burst.slice(0, count);
      else if (this.ended) return;
      else await this.readable(queue);
    }
  }

  events(): AsyncGenerator<PortEvent, void> {
    return this.#feed.listen();
  }

  /** Tells everybody who listens. */
  protected tell(event: PortEvent): void {
    this.#feed.tell(event);
  }

  /** The device is gone: the port does nothing from now on. */
  protected lose(error: DmaError): void {
    if (this.#lost !== undefined) return;
    this.#lost = error;
    this.#feed.tell({ kind: 'lost', error });
  }

  /** The port is closed. */
  protected endEvents(): void {
    this.#feed.end();
  }

  statistics(): PortStatistics {
    const of = (index: number): number => this.counters[index] ?? 0;
    return {
      rxPackets: of(COUNT.RX_PACKETS),
      rxBytes: of(COUNT.RX_BYTES),
      rxMissed: of(COUNT.RX_MISSED),
      rxErrors: of(COUNT.RX_ERRORS),
      rxNoBuffers: of(COUNT.RX_NO_BUFFERS),
      txPackets: of(COUNT.TX_PACKETS),
      txBytes: of(COUNT.TX_BYTES),
      txErrors: of(COUNT.TX_ERRORS),
    };
  }

  /** From now on they count from 0. */
  resetStatistics(): void {
    this.counters.fill(0);
  }
}
