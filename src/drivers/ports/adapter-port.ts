/** What ports of adapters have in common: their queues are polled, readers wait for interrupts, and a device that is gone is lost. */
import { isGone } from '../../bus/device-access.js';
import type { Device, ProbeContext } from '../../bus/model.js';
import { optionsOf } from '../../check.js';
import { type DmaError, withUndo } from '../../errors.js';
import { mustGoOn } from '../../long-work.js';
import type { DeviceBuffers } from '../../net/device-buffers.js';
import type { Packets } from '../../net/packets.js';
import { PortBase } from '../../net/port-base.js';
import type { Link, PortStatistics } from '../../net/port.js';
import { now } from '../../timers.js';
import { Bell } from '../wait.js';

/** How often a queue that is idle, or full, looks whether the adapter is still there: once in so many calls. */
const LOOK_CALLS = 4096;
/** How long a reader sleeps before it looks again, in milliseconds: with interrupts only in case one was lost. */
const SLEEP_MS = { polling: 1, interrupts: 100 } as const;

const READABLE = { signal: 'signal', timeoutMs: 'number' } as const;

/** The link of an adapter that has none. */
export const NO_LINK: Link = { up: false, speed: 0, fullDuplex: false };

/** A receive queue, as the port uses it. */
export interface ReceiveSide {
  /** Would `take` give something? */
  readonly isReady: boolean;
  /** Shall it be filled again? */
  readonly isDue: boolean;
  take(burst: Int32Array, count: number): number;
  refill(buffers: DeviceBuffers): void;
}

/** A transmit queue, as the port uses it. */
export interface TransmitSide {
  /** Releases what was sent. */
  reap(): void;
  put(burst: Int32Array, count: number, buffers: DeviceBuffers): number;
  /** Tells the adapter of what was put. */
  tell(): void;
}

/** A port of an adapter. */
export abstract class AdapterPort<Rx extends ReceiveSide, Tx extends TransmitSide> extends PortBase {
  protected readonly device: Device;
  protected readonly context: ProbeContext;
  readonly #waiting = new Map<number, Set<Bell>>();
  /** The queues that may be used, while it is started and not lost. */
  #receive: readonly Rx[] = [];
  #transmit: readonly Tx[] = [];
  #link = NO_LINK;
  #idle = 0;

  constructor(device: Device, context: ProbeContext) {
    super(device.name);
    this.device = device;
    this.context = context;
  }

  /** Does somebody who waits have to look again and again? */
  protected abstract get polls(): boolean;
  /** The next packet of a queue interrupts. */
  protected abstract arm(queue: number): void;
  /** Asks the adapter for its link. @throws DmaError ENODEV when the adapter is gone, and others that end it */
  protected abstract readLink(): Link;
  /** What a queue found out about its adapter while it worked; by default nothing. */
  protected checkQueue(_queue: Rx | Tx): void {
    // Nothing.
  }

  get link(): Link {
    this.look();
    return this.#link;
  }

  protected get transmitting(): readonly Tx[] {
    return this.#transmit;
  }

  /** The program may use these queues from now on. */
  protected open(receive: readonly Rx[], transmit: readonly Tx[]): void {
    this.#receive = receive;
    this.#transmit = transmit;
  }

  /** It gets and gives nothing any more. */
  protected shut(): void {
    this.#receive = [];
    this.#transmit = [];
    for (const queue of this.#waiting.keys()) this.wake(queue);
  }

  rx(queue: number, burst: Int32Array, count = burst.length): number {
    const ring = this.#receive[queue];
    const { config } = this;
    if (ring === undefined || config === undefined) return 0;
    const taken = ring.take(burst, count < burst.length ? count : burst.length);
    this.checkQueue(ring);
    if (ring.isDue) this.#refill(ring, config.packets, taken > 0);
    if (taken === 0 && ++this.#idle >= LOOK_CALLS) this.look();
    return taken;
  }

  #refill(ring: Rx, packets: Packets, hasTaken: boolean): void {
    try {
      ring.refill(packets.buffersFor(this.device));
    } catch (error) {
      // What was taken is the program's; the next call fails, too.
      if (isGone(error)) this.gone(error);
      else if (!hasTaken) throw error;
    }
  }

  tx(queue: number, burst: Int32Array, count = burst.length): number {
    const ring = this.#transmit[queue];
    const { config } = this;
    if (ring === undefined || config === undefined) return 0;
    ring.reap();
    this.checkQueue(ring);
    if (this.lost !== undefined) return 0;
    const { packets } = config;
    const taken = ring.put(burst, count < burst.length ? count : burst.length, packets.buffersFor(this.device));
    try {
      ring.tell();
    } catch (error) {
      this.gone(error);
    }
    if (taken === 0 && ++this.#idle >= LOOK_CALLS) this.look();
    return taken;
  }

  async readable(
    queue: number,
    options: { readonly signal?: AbortSignal; readonly timeoutMs?: number } = {},
  ): Promise<void> {
    const operation = 'port.readable';
    const { signal, timeoutMs = Infinity } = optionsOf(options, READABLE, operation);
    const deadline = now() + timeoutMs;
    const sleepMs = this.polls ? SLEEP_MS.polling : SLEEP_MS.interrupts;
    const bell = new Bell();
    const ring = (): void => bell.ring();
    const waiting = this.#waiting.get(queue) ?? new Set();
    this.#waiting.set(queue, waiting);
    waiting.add(bell);
    signal?.addEventListener('abort', ring);
    try {
      for (;;) {
        mustGoOn(signal, operation);
        if (this.lost !== undefined) throw this.lost.with({ operation });
        if (this.#isReadable(queue)) return;
        const left = deadline - now();
        if (left <= 0) return;
        this.whileThere(() => this.arm(queue));
        // What came before it was armed does not interrupt.
        if (this.#isReadable(queue) || this.lost !== undefined) continue;
        // A queue that has no descriptors gets none by an interrupt, but when the pool has elements again.
        await bell.sleep(Math.min(left, this.#queue(queue)?.isDue === true ? SLEEP_MS.polling : sleepMs));
        this.look();
        this.#feed(queue);
      }
    } finally {
      waiting.delete(bell);
      signal?.removeEventListener('abort', ring);
    }
  }

  /** Has the queue packets, or can it get none? */
  #isReadable(queue: number): boolean {
    return this.#queue(queue)?.isReady !== false;
  }

  /** A receive queue; `undefined` if it may not be used. */
  #queue(queue: number): Rx | undefined {
    return this.#receive[queue];
  }

  #feed(queue: number): void {
    const ring = this.#queue(queue);
    const { config } = this;
    if (ring?.isDue === true && config !== undefined) this.#refill(ring, config.packets, true);
  }

  override statistics(): PortStatistics {
    for (const ring of this.#transmit) {
      ring.reap();
      this.checkQueue(ring);
    }
    return super.statistics();
  }

  override resetStatistics(): void {
    this.statistics();
    super.resetStatistics();
  }

  /** Looks at the link, and whether the adapter is there. */
  protected look(): void {
    this.#idle = 0;
    if (this.lost !== undefined) return;
    this.whileThere(() => {
      const link = this.readLink();
      if (this.lost !== undefined) return;
      const before = this.#link;
      this.#link = link;
      if (link.up !== before.up || link.speed !== before.speed || link.fullDuplex !== before.fullDuplex)
        this.tell({ kind: 'link', link });
    });
  }

  /** Works with registers; a device that is gone is lost. */
  protected whileThere(work: () => void): void {
    try {
      work();
    } catch (error) {
      this.gone(error);
    }
  }

  /** @throws the error, if it is another one than that the device is gone */
  protected gone(error: unknown): void {
    if (!isGone(error)) throw error;
    this.loseAll(withUndo(error, 'port', []).with({ device: this.name }));
  }

  /** It can not be used any more. Packets of its queues are released by `stop`. */
  protected loseAll(why: DmaError): void {
    this.lose(why);
    this.#link = NO_LINK;
    this.shut();
  }

  /** Who waits for packets of a queue looks again. */
  protected wake(queue: number): void {
    for (const bell of this.#waiting.get(queue) ?? []) bell.ring();
  }
}
