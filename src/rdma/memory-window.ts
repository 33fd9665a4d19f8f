/**
 * A memory window gives peers access to a part of a mapping by a separate rkey. Binding and unbinding it registers
 * nothing. A mapping can not be unmapped while a window is bound to it.
 */
import type { VerbsMw } from '../platform/rdma/verbs-types.js';
import type { Range } from '../ranges.js';
import type { RdmaContext, Region } from './context.js';
import { STAYS } from '../stays.js';

/** The binding of a window. */
interface Binding {
  readonly region: Region;
  readonly range: Range;
}

/** A memory window. Created by `RdmaDevice.createWindow`, bound by `QueuePair.bind`; close it when no longer needed. */
export class MemoryWindow implements Disposable {
  /** @internal */
  readonly stays = STAYS;
  /** @internal */
  readonly mw: VerbsMw;
  readonly #rdma: RdmaContext;
  readonly #closed: (window: MemoryWindow) => void;
  #rkey: number;
  #binding: Binding | undefined;

  /** @internal */
  constructor(rdma: RdmaContext, type: 1 | 2, closed: (window: MemoryWindow) => void) {
    this.mw = rdma.limits.make('windows', 'createWindow', () => rdma.verbs.allocateMw(rdma.pd, type));
    this.#rkey = this.mw.rkey;
    this.#rdma = rdma;
    this.#closed = closed;
  }

  /** @internal */
  isOf(rdma: RdmaContext): boolean {
    return this.#rdma === rdma;
  }

  /** The key for the peer; it changes with each binding. */
  get rkey(): number {
    return this.#rkey;
  }

  /** What it is bound to; `undefined` if it is not bound. */
  get bound(): Range | undefined {
    return this.#binding?.range;
  }

  /** @internal The region that it is bound to. */
  get region(): Region | undefined {
    return this.#binding?.region;
  }

  /** @internal The key of the next binding; the program chooses its low 8 bits. */
  nextKey(): number {
    return ((this.#rkey & ~0xff) | ((this.#rkey + 1) & 0xff)) >>> 0;
  }

  /** @internal A binding or unbinding has completed. */
  became(rkey: number, binding: Binding | undefined): void {
    this.#binding?.region.users.delete(this);
    this.#rkey = rkey;
    this.#binding = binding;
    binding?.region.users.add(this);
  }

  /** Closes it, bound or not; the peer's access ends. Idempotent. */
  close(): void {
    if (this.mw.address === 0) return;
    this.#rdma.verbs.deallocateMw(this.mw);
    this.#rdma.limits.gave('windows');
    this.became(this.#rkey, undefined);
    this.#closed(this);
  }

  /** Calls {@link close}. */
  [Symbol.dispose](): void {
    this.close();
  }

  toString(): string {
    return `the memory window of rkey 0x${this.#rkey.toString(16)}`;
  }
}
