/** Memory of a primary, as a secondary uses it: the same bytes at the same addresses. */
import { ended, rest } from '../check.js';
import type { LendOptions, Pin } from '../memory/pins.js';
import { lend, pinnedError, Pins } from '../memory/pins.js';
import { checkPart, type Views } from '../memory/views.js';
import { Range } from '../ranges.js';
import { shortForm } from '../short-form.js';
import { hex, type Iova, type Va } from '../units.js';
import type { Fields, JsonObject } from '../fields.js';
import type { Mapped, Mirror } from './mirror.js';
import { STAYS } from '../stays.js';

/** What memory needs of its secondary. */
export interface MemoryKeeper {
  readonly mirror: Mirror;
  /** Lets go of what the primary keeps under this number. */
  release(id: number, operation: string, options: JsonObject): Promise<void>;
}

/** Memory that the primary keeps for this process until this process lets go of it, or ends. */
export abstract class SecondaryMemory implements AsyncDisposable {
  /** @internal */
  readonly stays = STAYS;
  /** Address of the first byte: the same in all processes. */
  readonly va: Va;
  /** bytes */
  readonly length: number;
  /** Page size in bytes. */
  readonly pageSize: number;
  /** NUMA node; -1 if unknown */
  readonly node: number;
  readonly #keeper: MemoryKeeper;
  readonly #id: number;
  readonly #pins = new Pins();
  #views: { readonly views: Views; readonly end: () => void } | undefined;
  #live = true;
  #leaving = false;

  /** @internal */
  constructor(keeper: MemoryKeeper, facts: Fields) {
    this.#keeper = keeper;
    this.#id = facts.number('id');
    this.va = facts.number('va') as Va;
    this.length = facts.number('length');
    this.pageSize = facts.number('pageSize');
    this.node = facts.has('node') && facts.raw['node'] !== -1 ? facts.number('node') : -1;
  }

  /** Can it be used? False once it was given back. It stays usable when the primary ends. */
  get live(): boolean {
    return this.#live;
  }

  /**
   * The bytes, or a part of them. The view is empty once the memory was given back, or the secondary was closed. For work
   * in other threads use {@link lend}.
   *
   * @param offset bytes from the start
   * @param length bytes; default: all that follow `offset`
   * @throws DmaError EINVAL if the part is not inside, or it was given back; EFAULT once the secondary was closed
   */
  bytes(offset = 0, length = rest(this.length, offset)): Uint8Array {
    this.#mustBeLive('bytes');
    checkPart(offset, length, this.length, 'bytes');
    this.#views ??= this.#keeper.mirror.views(this.va, this.length);
    return this.#views.views.bytes(offset, length);
  }

  /** Runs `work` on the bytes, and pins them meanwhile: giving the memory back fails with EBUSY. */
  async lend<T>(work: (bytes: Uint8Array) => T, options?: LendOptions): Promise<Awaited<T>> {
    return lend(this, work, options);
  }

  /** Pins it: giving it back fails with EBUSY until the pin is disposed. */
  pin(reason = 'a running transfer'): Pin {
    this.#mustBeLive('pin');
    return this.#pins.add(reason);
  }

  /** @internal Gives it back. When it fails, nothing has changed, but its views are empty. */
  protected async end(operation: string, options: JsonObject = {}): Promise<void> {
    this.#mustBeLive(operation);
    const { reason } = this.#pins;
    if (reason !== undefined)
      throw pinnedError(operation, 'this memory', reason, new Range(this.va, this.length, operation));
    this.#leaving = true;
    try {
      // Its next owner must not be reached by views of this one.
      this.#views?.end();
      this.#views = undefined;
      await this.#keeper.release(this.#id, operation, options);
      this.#live = false;
    } finally {
      this.#leaving = false;
    }
  }

  /** Gives it back, unless that was done before. */
  abstract [Symbol.asyncDispose](): Promise<void>;

  #mustBeLive(operation: string): void {
    if (!this.#live || this.#leaving)
      throw ended(operation, 'this memory was given back', 'memory.live', {
        range: new Range(this.va, this.length, operation),
      });
  }
}

shortForm(SecondaryMemory, 'SecondaryMemory', ({ va, length, live }) => ({ va: hex(va), length, live }));

/** A block that a secondary allocated. It is freed when its process ends. */
export class SecondaryBlock extends SecondaryMemory {
  /** The name of the heap that it is in. */
  readonly heap: string;
  /** The IOVA that every device uses for it, if there is one: see `Block.iova`. */
  readonly iova: Iova | undefined;

  /** @internal */
  constructor(keeper: MemoryKeeper, facts: Fields) {
    super(keeper, facts);
    this.heap = facts.string('heap');
    this.iova = facts.has('iova') ? (facts.number('iova') as Iova) : undefined;
  }

  /**
   * Frees it.
   *
   * @param options.wipe fill it with zeros before? Default false
   * @throws DmaError EINVAL if it was freed before; EBUSY while it is pinned; why the connection to the primary ended
   */
  async free(options: { readonly wipe?: boolean } = {}): Promise<void> {
    await this.end('free', { options: { wipe: options.wipe } });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    if (this.live) await this.free();
  }
}

/** A zone that a secondary found or reserved. While a process has it, no other can free it. */
export class SecondaryZone extends SecondaryMemory {
  readonly name: string;
  /** The name of the heap that it is in. */
  readonly heap: string;
  /** The IOVA that every device uses for it, if there is one: see `Block.iova`. */
  readonly iova: Iova | undefined;

  /** @internal */
  constructor(keeper: MemoryKeeper, facts: Fields) {
    super(keeper, facts);
    this.name = facts.string('name');
    this.heap = facts.string('heap');
    this.iova = facts.has('iova') ? (facts.number('iova') as Iova) : undefined;
  }

  /**
   * Frees the zone and its name, for all processes.
   *
   * @throws DmaError EINVAL if this process has let go of it; EBUSY while it is pinned, or another process uses it
   */
  async free(): Promise<void> {
    await this.end('zones.free', { options: { free: true } });
  }

  /** Lets go of it: the zone stays. @throws DmaError EINVAL if that was done before; EBUSY while it is pinned */
  async detach(): Promise<void> {
    await this.end('detach');
  }

  /** Lets go of it, unless that was done before. */
  async [Symbol.asyncDispose](): Promise<void> {
    if (this.live) await this.detach();
  }
}

/** External memory that a secondary attached or made. */
export class SecondaryExternal extends SecondaryMemory {
  readonly label: string;
  readonly #mapped: Mapped;
  readonly #gone: () => void;

  /** @internal @param gone called once it was detached */
  constructor(keeper: MemoryKeeper, facts: Fields, mapped: Mapped, gone: () => void) {
    super(keeper, facts);
    this.label = facts.string('label');
    this.#mapped = mapped;
    this.#gone = gone;
  }

  /**
   * Lets go of it, and unmaps it in this process. What this process made is unregistered.
   *
   * @throws DmaError EINVAL if that was done before; EBUSY while it is pinned, or what this process made is mapped for a
   *   device or attached by another process
   */
  async detach(): Promise<void> {
    // From its answer on the primary can use the addresses for other memory.
    this.#mapped.leaving = true;
    try {
      await this.end('external.detach');
    } catch (error) {
      this.#mapped.leaving = false;
      throw error;
    }
    this.#mapped.unmap();
    this.#gone();
  }

  /** Lets go of it, unless that was done before. */
  async [Symbol.asyncDispose](): Promise<void> {
    if (this.live) await this.detach();
  }
}
