/** Memory of another thread, as `attach` gives it: the same bytes at the same addresses. */
import { ended, mustBeString, rest } from '../check.js';
import { invalid, throwFirst, undoAll } from '../errors.js';
import type { MemoryPort } from '../platform/ports.js';
import { Range } from '../ranges.js';
import { hex, type Iova, type Va } from '../units.js';
import { lend, pinnedError, Pins, type LendOptions, type Pin } from './pins.js';
import { HandedOut } from './retired.js';
import type { Hold } from './shared/hold.js';
import { checkPart, Views } from './views.js';
import { shortForm } from '../short-form.js';
import { STAYS } from '../stays.js';

/** What a description says of memory. */
export interface MemoryFacts {
  /** The name of a zone; else `undefined`. */
  readonly name?: string;
  /** The name in messages. */
  readonly label: string;
  readonly va: Va;
  /** bytes */
  readonly length: number;
  /** The IOVA that all devices use, if there is one. */
  readonly iova?: Iova;
  /** Where views are made of, if that is another mapping of the same bytes. */
  readonly viewsAt?: Va;
}

/** Keeps what a view is over, as long as the view exists. */
const kept = new WeakMap<ArrayBufferLike, readonly unknown[]>();

/**
 * Memory that another thread of this process, or another process, shares. Made by `attach`. While it is attached, its owner can not free it
 * (EBUSY). Disposing it lets go of it; when the thread ends in whatever way, that is the same.
 */
export class AttachedMemory implements Disposable {
  /** @internal */
  readonly stays = STAYS;
  /** The name, if it is a zone. */
  readonly name: string | undefined;
  /** Address of the first byte: the same in all threads. */
  readonly va: Va;
  /** bytes */
  readonly length: number;
  /** The IOVA that every device uses for it, if there is one: see `Block.iova`. `AttachedDevice.iovaOf` tells that of one device. */
  readonly iova: Iova | undefined;
  readonly #label: string;
  readonly #hold: Hold;
  readonly #handedOut = new HandedOut();
  readonly #views: Views;
  readonly #pins = new Pins();

  /** @internal made by `attach` */
  constructor(facts: MemoryFacts, hold: Hold, port: MemoryPort) {
    this.name = facts.name;
    this.va = facts.va;
    this.length = facts.length;
    this.iova = facts.iova;
    this.#label = facts.label;
    this.#hold = hold;
    this.#views = new Views(port, facts.viewsAt ?? facts.va, facts.length, this.#handedOut);
  }

  /** Is it attached? False after this thread has let go of it. Its bytes are there as long as it is. */
  get live(): boolean {
    return !this.#hold.left;
  }

  /**
   * The bytes of the memory, or of a part, without a copy. After this thread has let go of it, the view is empty.
   *
   * @param offset bytes from the start
   * @param length bytes; default: all that follow `offset`
   * @throws DmaError EINVAL if the part is not inside, this thread has let go of it, or its ArrayBuffer was transferred; ENOTSUP if it
   *   is longer than one ArrayBuffer can be (4 GiB on Node 20): ask for parts
   */
  bytes(offset = 0, length = rest(this.length, offset)): Uint8Array {
    this.#mustBeLive('bytes');
    checkPart(offset, length, this.length, 'bytes');
    const bytes = this.#views.bytes(offset, length);
    kept.set(bytes.buffer, this.#hold.kept);
    return bytes;
  }

  /**
   * Runs `work` on the bytes, or on a part, and pins the memory: letting go of it is EBUSY until the result of `work` has settled. This is
   * the way to give bytes to `fs`, `crypto` and `zlib`, which work on them in threads of Node.
   */
  async lend<T>(work: (bytes: Uint8Array) => T, options?: LendOptions): Promise<Awaited<T>> {
    return lend(this, work, options);
  }

  /** Pins it while something works on its views: letting go of it is EBUSY until the pin is disposed. */
  pin(reason = 'a running transfer'): Pin {
    this.#mustBeLive('pin');
    mustBeString(reason, 'the reason of a pin', 'pin');
    return this.#pins.add(reason);
  }

  /**
   * Lets go of it: its views become empty, and its owner can free it.
   *
   * @throws DmaError EINVAL if that was done before; EBUSY while it is pinned
   */
  detach(): void {
    this.#mustBeLive('detach');
    const { reason } = this.#pins;
    if (reason !== undefined) throw pinnedError('detach', this.#label, reason, this.#range);
    const errors = undoAll([() => this.#views.detach()]);
    // A view that is left could reach the memory after it is freed.
    throwFirst(errors, 'detach');
    this.#hold.leave(this.#handedOut);
  }

  /** Lets go of it, unless that was done before. @throws DmaError EBUSY while it is pinned */
  [Symbol.dispose](): void {
    if (this.live) this.detach();
  }

  get #range(): Range<Va> {
    return new Range(this.va, this.length);
  }

  #mustBeLive(operation: string): void {
    if (this.live) return;
    throw ended(operation, `this thread has let go of ${this.#label}`, 'memory.live', { range: this.#range });
  }
}

shortForm(AttachedMemory, 'AttachedMemory', ({ name, va, length, live }) => ({ name, va: hex(va), length, live }));

/** Reads what a description says of memory. It is sealed, so only its form can be wrong. @throws DmaError EINVAL */
export function memoryFacts(facts: Readonly<Record<string, unknown>>, operation: string): MemoryFacts {
  const { name, label, va, length, iova, viewsAt } = facts;
  if (typeof va !== 'number' || typeof length !== 'number' || typeof label !== 'string')
    throw invalid(operation, 'the description says nothing of memory');
  return {
    name: typeof name === 'string' ? name : undefined,
    label,
    va: va as Va,
    length,
    iova: typeof iova === 'number' ? (iova as Iova) : undefined,
    viewsAt: typeof viewsAt === 'number' ? (viewsAt as Va) : undefined,
  };
}
