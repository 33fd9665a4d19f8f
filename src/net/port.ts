/** An Ethernet port: what every driver offers, hardware or not. */
import type { DmaError } from '../errors.js';
import type { Packets } from './packets.js';

/** The state of a link. */
export interface Link {
  readonly up: boolean;
  /** Mbit/s; 0 if it is down or not known. */
  readonly speed: number;
  readonly fullDuplex: boolean;
}

/** What a port can do. */
export interface PortLimits {
  /** Number of receive and transmit queues. */
  readonly rxQueues: number;
  readonly txQueues: number;
  /** Descriptors of a queue: least, most, and of what their number must be a multiple. */
  readonly descriptors: { readonly least: number; readonly most: number; readonly multiple: number };
  /** Bytes of the largest frame, without its check sum. */
  readonly maxFrame: number;
  /** Segments of a packet that is sent. */
  readonly segments: number;
  /** `OFFLOAD` bits that it can do. */
  readonly offloads: number;
}

/** Counters since the port was opened, or since they were reset. They do not wrap. */
export interface PortStatistics {
  readonly rxPackets: number;
  /** Bytes of frames without their check sum. */
  readonly rxBytes: number;
  /** Frames that were lost because the program did not give descriptors in time. */
  readonly rxMissed: number;
  /** Frames with errors: check sum, length, symbol. */
  readonly rxErrors: number;
  /** How often a descriptor could not be refilled because the pool was empty. */
  readonly rxNoBuffers: number;
  readonly txPackets: number;
  readonly txBytes: number;
  /** Packets that were accepted by `tx` but not sent. */
  readonly txErrors: number;
}

/** How a port is started. */
export interface PortConfig {
  /** Where received packets are put, and from where those come that are sent. */
  readonly packets: Packets;
  /** Number of queues in use. Default 1 each. */
  readonly rxQueues?: number;
  readonly txQueues?: number;
  /** Descriptors of each queue. Default 512, or what the port has. */
  readonly rxDescriptors?: number;
  readonly txDescriptors?: number;
  /** Bytes of the largest frame that is received, without its check sum. Default 1,514. */
  readonly maxFrame?: number;
  /** `OFFLOAD` bits (`RX_...`) that are wanted on receive. Default 0. */
  readonly offloads?: number;
}

/** A change of a port, from {@link Port.events}. */
export type PortEvent =
  { readonly kind: 'link'; readonly link: Link } | { readonly kind: 'lost'; readonly error: DmaError };

/**
 * An Ethernet port. It is opened by its driver, started with packets, and polled. `rx` and `tx` allocate nothing per packet, and
 * are called by one thread per queue.
 */
export interface Port {
  /** The name of its device. */
  readonly name: string;
  readonly limits: PortLimits;
  /** Its station address, as `02:00:00:00:00:01`. */
  readonly mac: string;
  readonly link: Link;
  /** Does it take frames for any address? Set it before or after `start`. */
  promiscuous: boolean;
  readonly started: boolean;
  /** Nothing more will be received: a file has ended, or the port is lost. */
  readonly ended: boolean;
  /** Why it was lost; `undefined` if it was not. */
  readonly lost: DmaError | undefined;
  /**
   * Makes the queues, fills those for receive, and lets frames in.
   *
   * @throws DmaError EINVAL for a configuration outside of `limits`, or if it is started; ENOMEM if the pool has too few
   *   elements; as `pool.iovasFor` if the memory is not mapped for the device
   */
  start(config: PortConfig): Promise<void>;
  /** Stops DMA, and releases all packets that the queues have. Does nothing if it is not started. */
  stop(): Promise<void>;
  /**
   * Takes up to `count` received packets, and writes their numbers to `burst`.
   *
   * @returns how many; 0 also when the port is stopped or lost
   */
  rx(queue: number, burst: Int32Array, count?: number): number;
  /**
   * Gives up to `count` packets to the port, from the beginning of `burst`. What it takes belongs to the port, which
   * releases it once it was sent; the rest stays the caller's.
   *
   * @returns how many it took
   * @throws DmaError EINVAL for a packet that is not in use
   */
  tx(queue: number, burst: Int32Array, count?: number): number;
  /** Resolves when a queue may have packets, by interrupt where there is one. @throws DmaError ECANCELED once `signal` is aborted; ENODEV when the port is lost */
  readable(queue: number, options?: { readonly signal?: AbortSignal; readonly timeoutMs?: number }): Promise<void>;
  /** Bursts of received packets, as they come; each belongs to the program. Ends when the port is stopped. */
  packets(queue?: number): AsyncIterableIterator<Int32Array>;
  /** Changes of the port, as they come. Ends when the port is closed. */
  events(): AsyncIterableIterator<PortEvent>;
  /** Counters: read from hardware at this moment. */
  statistics(): PortStatistics;
  /** From now on they count from 0. */
  resetStatistics(): void;
}
