/**
 * A memory window: a right of peers to a part of a mapping, with an rkey of its own, that is given and taken without
 * registering anything. A mapping can not be unmapped while a window is bound to it.
 */
import type { VerbsMw } from '../platform/rdma/verbs-types.js';
import type { Range } from '../ranges.js';
import type { RdmaContext, Region, RegionUser } from './context.js';

/** What a window is bound to. */
export interface WindowBinding {
  readonly region: Region;
  readonly range: Range;
}

/** See the head of the file. Made by `RdmaDevice.createWindow`, bound by `QueuePair.bind`. */
export class MemoryWindow implements Disposable, RegionUser {
  /** @internal */
  readonly mw: VerbsMw;
  readonly #rdma: RdmaContext;
  readonly #closed: (window: MemoryWindow) => void;
  #rkey: number;
  #bound: WindowBinding | undefined;

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

  /** What peers name it by; another one after each binding. */
  get rkey(): number {
    return this.#rkey;
  }

  /** What it is bound to; `undefined` when it is not. */
  get bound(): WindowBinding | undefined {
    return this.#bound;
  }

  /** @internal The key of the next binding: the low 8 bits are the program's to choose. */
  nextKey(): number {
    return ((this.#rkey & ~0xff) | ((this.#rkey + 1) & 0xff)) >>> 0;
  }

  /** @internal A binding, or unbinding, has ended. */
  became(rkey: number, bound: WindowBinding | undefined): void {
    this.#bound?.region.users.delete(this);
    this.#rkey = rkey;
    this.#bound = bound;
    bound?.region.users.add(this);
  }

  /** Closes it, bound or not: the right it gives ends. Idempotent. */
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
