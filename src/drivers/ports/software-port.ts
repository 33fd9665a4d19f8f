/** What ports without hardware have in common: they are polled, and their packets are moved by the program itself. */
import { DmaError } from '../../errors.js';
import { optionsOf } from '../../check.js';
import { Bell } from '../wait.js';
import { PortBase } from '../../net/port-base.js';
import type { Link, PortLimits } from '../../net/port.js';
import { now } from '../../timers.js';

const READABLE = 'port.readable';

/** How often a port without an interrupt is looked at while its reader waits, in milliseconds. */
const LOOK_MS = 1;

/** Queues that a port may have. */
export const MOST_QUEUES = 64;

/** The link of ports that have no cable. */
export const NO_CABLE: Link = { up: true, speed: 10_000, fullDuplex: true };

/** The link of a port whose other end nobody has. */
export const NO_LINK: Link = { up: false, speed: 0, fullDuplex: false };

/** Limits of software. */
export const SOFTWARE_LIMITS: PortLimits = {
  rxQueues: 1,
  txQueues: 1,
  descriptors: { least: 1, most: 65_536, multiple: 1 },
  maxFrame: 65_535,
  segments: 65_535,
  offloads: 0,
};

/** A port without hardware. */
export abstract class SoftwarePort extends PortBase {
  readonly limits: PortLimits = SOFTWARE_LIMITS;
  readonly mac: string;
  promiscuous = true;
  /** @internal Rung when somebody who waits shall look. */
  protected readonly bell = new Bell();

  /**
   * Makes a port that is stopped.
   *
   * @param name of the device
   * @param number of the device: part of its address, which is a locally administered one (IEEE 802, bit 1)
   */
  constructor(name: string, number: number) {
    super(name);
    this.mac = `02:61:64:00:${hexByte(number >> 8)}:${hexByte(number)}`;
  }

  get link(): Link {
    return NO_CABLE;
  }

  /** Closes it. @internal */
  abstract close(): void;

  /** Would `rx` have something to do? */
  protected abstract get hasPackets(): boolean;

  async readable(
    _queue: number,
    options: { readonly signal?: AbortSignal; readonly timeoutMs?: number } = {},
  ): Promise<void> {
    const { signal, timeoutMs } = readableOptions(options);
    const until = now() + timeoutMs;
    while (this.started && !this.ended && !this.hasPackets && now() < until) {
      if (signal?.aborted === true) throw aborted(this.name, signal);
      await this.bell.sleep(Math.min(LOOK_MS, Math.max(0, until - now())));
    }
  }
}

/** @throws DmaError EINVAL */
export function readableOptions(options: { readonly signal?: AbortSignal; readonly timeoutMs?: number }): {
  readonly signal: AbortSignal | undefined;
  readonly timeoutMs: number;
} {
  const { signal, timeoutMs = Infinity } = optionsOf(options, { signal: 'signal', timeoutMs: 'number' }, READABLE);
  return { signal, timeoutMs };
}

/** What a wait that is given up rejects with. */
export function aborted(device: string, signal: AbortSignal): DmaError {
  return new DmaError({
    code: 'ECANCELED',
    operation: READABLE,
    device,
    reason: 'it was aborted',
    cause: signal.reason,
  });
}

function hexByte(value: number): string {
  return (value & 0xff).toString(16).padStart(2, '0');
}
