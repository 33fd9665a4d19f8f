/** Limits of an RDMA device: errors and hints name the limit, its value, and how much this process uses. */
import { DmaError, invalid, isDmaError, type ErrorCode } from '../errors.js';
import type { VerbsDeviceAttributes } from '../platform/rdma/verbs-types.js';
import { show } from '../show.js';
import { formatSize } from '../units.js';

/** The limited resources: a display name, the attribute, and its name in libibverbs. */
const KINDS = {
  regions: ['memory regions', 'maxMrs', 'max_mr'],
  windows: ['memory windows', 'maxMws', 'max_mw'],
  queuePairs: ['queue pairs', 'maxQps', 'max_qp'],
  completionQueues: ['completion queues', 'maxCqs', 'max_cq'],
  addresses: ['address handles', 'maxAhs', 'max_ah'],
} as const satisfies Readonly<Record<string, readonly [name: string, limit: keyof VerbsDeviceAttributes, c: string]>>;

/** A limited resource of a device. */
export type Limited = keyof typeof KINDS;

/** Errors of a device that has no more of a resource. */
const FULL: readonly ErrorCode[] = ['ENOMEM', 'ENOSPC', 'EAGAIN', 'EINVAL'];

/** The limits of one device and their use by this process. One per context. */
export class Limits {
  readonly #device: string;
  readonly #attributes: VerbsDeviceAttributes;
  readonly #used: Record<Limited, number> = {
    regions: 0,
    windows: 0,
    queuePairs: 0,
    completionQueues: 0,
    addresses: 0,
  };

  constructor(device: string, attributes: VerbsDeviceAttributes) {
    this.#device = device;
    this.#attributes = attributes;
  }

  /** How many of a resource this process uses. */
  used(kind: Limited): number {
    return this.#used[kind];
  }

  /**
   * Creates one more, and counts it until {@link Limits.gave}.
   *
   * @throws DmaError ENOSPC if this process uses all that the device has; errors of `make`, with the figures
   */
  make<T>(kind: Limited, operation: string, make: () => T): T {
    this.#mustHaveRoom(kind, operation);
    const made = this.explained(kind, make);
    this.#used[kind]++;
    return made;
  }

  /** Like {@link Limits.make}, on another thread. */
  async makeAsync<T>(kind: Limited, operation: string, make: () => Promise<T>): Promise<T> {
    this.#mustHaveRoom(kind, operation);
    this.#used[kind]++;
    try {
      return await make();
    } catch (error) {
      this.#used[kind]--;
      throw this.#explained(kind, error);
    }
  }

  /** Counts one more. */
  add(kind: Limited): void {
    this.#used[kind]++;
  }

  /** Counts one less. */
  gave(kind: Limited): void {
    this.#used[kind]--;
  }

  /** Runs `make`; adds the figures to an error for lack of the resource. */
  explained<T>(kind: Limited, make: () => T): T {
    try {
      return make();
    } catch (error) {
      throw this.#explained(kind, error);
    }
  }

  /** For hints: the limit of a resource and its use. */
  facts(kind: Limited): string {
    const [name, key, c] = KINDS[kind];
    return `${this.#used[kind]} of the device's ${this.#attributes[key]} ${name} (${c}) are in use by this process; other processes may use the rest`;
  }

  /**
   * @throws DmaError EINVAL unless `value` is an integer from `least` to the device's limit; `own` is the library's
   * limit
   */
  mustHave(
    value: unknown,
    what: string,
    { least, own, limit, c, operation }: { least: number; own: number; limit: number; c: string; operation: string },
  ): void {
    const most = limit > 0 ? Math.min(own, limit) : own;
    if (typeof value === 'number' && Number.isInteger(value) && value >= least && value <= most) return;
    const whose = most === limit ? `; the device has ${limit} (${c})` : '';
    throw invalid(operation, `${what} is ${show(value)}, not an integer from ${least} to ${most}${whose}`, {
      device: this.#device,
    });
  }

  /** @throws DmaError EINVAL if `length` is more bytes than one region of the device can have */
  mustBeRegion(length: number, operation: string): void {
    const { maxMrLength } = this.#attributes;
    if (maxMrLength === 0 || length <= maxMrLength) return;
    throw invalid(
      operation,
      `${formatSize(length)} are more than the ${formatSize(maxMrLength)} limit of a memory region of the device (max_mr_size)`,
      { device: this.#device, hint: `map parts of at most ${formatSize(maxMrLength)}; each has keys of its own` },
    );
  }

  #mustHaveRoom(kind: Limited, operation: string): void {
    const [name, key, c] = KINDS[kind];
    const limit = this.#attributes[key];
    // 0: the device reports no limit.
    if (limit === 0 || this.#used[kind] < limit) return;
    throw new DmaError({
      code: 'ENOSPC',
      operation,
      device: this.#device,
      reason: `the device has ${limit} ${name} (${c}), and all are in use here`,
      hint: 'close some that are not needed any more, or share them',
    });
  }

  #explained(kind: Limited, error: unknown): unknown {
    if (!isDmaError(error) || error.hint !== undefined || !FULL.includes(error.code)) return error;
    return error.with({ device: this.#device, hint: this.facts(kind) });
  }
}
