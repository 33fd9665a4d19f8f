/** Pins: memory is not freed while something works on it. */
import { mustBeFunction, optionsOf, type Shape } from '../check.js';
import { DmaError } from '../errors.js';
import type { Range } from '../ranges.js';
import { shortForm } from '../short-form.js';
import type { Va } from '../units.js';
import { STAYS } from '../stays.js';

/** Keeps memory from being freed while something works on it; disposing is idempotent. */
export interface Pin extends Disposable {
  readonly reason: string;
}

/** What `lend` takes. */
export interface LendOptions {
  /** bytes from the start of the memory. Default 0. */
  readonly offset?: number;
  /** bytes. Default: all that follow `offset`. */
  readonly length?: number;
  /** The reason in errors while it is lent. Default: `work on its bytes`. */
  readonly reason?: string;
}

const LEND_OPTIONS: Shape<LendOptions> = { offset: 'number', length: 'number', reason: 'string' };

/** The pins of one piece of memory, as a linked list: removing any pin and finding the oldest take constant time. */
export class Pins {
  #oldest: Link | undefined;
  #newest: Link | undefined;

  /** Why it can not be freed now; `undefined` if nothing pins it. */
  get reason(): string | undefined {
    return this.#oldest?.reason;
  }

  add(reason: string): Pin {
    const link = new Link(reason, this, this.#newest);
    if (link.older === undefined) this.#oldest = link;
    else link.older.newer = link;
    return (this.#newest = link);
  }

  /** @internal for a pin that was not removed yet */
  remove({ older, newer }: Link): void {
    if (older === undefined) this.#oldest = newer;
    else older.newer = newer;
    if (newer === undefined) this.#newest = older;
    else newer.older = older;
  }
}

class Link implements Pin {
  /** @internal */
  readonly stays = STAYS;
  #pins: Pins | undefined;
  newer: Link | undefined;

  constructor(
    readonly reason: string,
    pins: Pins,
    public older: Link | undefined,
  ) {
    this.#pins = pins;
  }

  [Symbol.dispose](): void {
    this.#pins?.remove(this);
    this.#pins = undefined;
    this.older = this.newer = undefined;
  }
}

shortForm(Link, 'Pin', ({ reason }) => ({ reason }));

/** EBUSY because `what` is pinned. */
export function pinnedError(operation: string, what: string, reason: string, range?: Range<Va>): DmaError {
  const hint = 'wait until it ends, then free it';
  return new DmaError({ code: 'EBUSY', operation, range, reason: `${what} is in use: ${reason}`, hint });
}

/** Memory that can be pinned. */
export interface Pinnable {
  bytes(offset?: number, length?: number): Uint8Array;
  pin(reason?: string): Pin;
}

/** Runs `work` on the bytes of `memory`, and pins the memory until the result has settled. */
export async function lend<T>(
  memory: Pinnable,
  work: (bytes: Uint8Array) => T,
  options: LendOptions | undefined,
): Promise<Awaited<T>> {
  mustBeFunction(work, 'what to do with the bytes', 'lend');
  const { offset = 0, length, reason = 'work on its bytes' } = optionsOf(options, LEND_OPTIONS, 'lend');
  const bytes = memory.bytes(offset, length);
  const pin = memory.pin(reason);
  try {
    return await work(bytes);
  } finally {
    pin[Symbol.dispose]();
  }
}
