/**
 * A memory region in addition to the mappings: a part of a mapping that is exposed to peers, a dma-buf, or all memory
 * of this process. It has its own keys, and is not in the domain's translation table.
 */
import type { VerbsMr } from '../platform/rdma/verbs-types.js';
import type { Range } from '../ranges.js';
import type { RdmaContext, Region } from './context.js';
import { STAYS } from '../stays.js';

/** A registered region. Disposing it deregisters it: its keys become invalid at once. */
export class ExtraRegion implements Disposable {
  /** @internal */
  readonly stays = STAYS;
  /** The addresses of its bytes in requests; `undefined` for all addresses of this process. */
  readonly range: Range | undefined;
  /** Its name in messages. */
  readonly label: string;
  readonly #rdma: RdmaContext;
  readonly #mr: VerbsMr;
  readonly #within: Region | undefined;
  readonly #closed: (region: ExtraRegion) => void;
  #open = true;

  /** @internal It owns `mr`. */
  constructor(
    rdma: RdmaContext,
    parts: {
      readonly mr: VerbsMr;
      readonly range: Range | undefined;
      readonly label: string;
      readonly within?: Region;
      readonly closed: (region: ExtraRegion) => void;
    },
  ) {
    this.#rdma = rdma;
    this.#mr = parts.mr;
    this.range = parts.range;
    this.label = parts.label;
    this.#within = parts.within;
    this.#closed = parts.closed;
    parts.within?.users.add(this);
  }

  get lkey(): number {
    return this.#mr.lkey;
  }

  get rkey(): number {
    return this.#mr.rkey;
  }

  /** Is it registered? */
  get live(): boolean {
    return this.#open;
  }

  /** Deregisters it. Idempotent. @throws DmaError EBUSY while a window is bound to it */
  unregister(): void {
    if (!this.#open) return;
    this.#rdma.verbs.deregisterMemory(this.#mr);
    this.#rdma.limits.gave('regions');
    this.#open = false;
    this.#within?.users.delete(this);
    this.#closed(this);
  }

  /** Calls {@link unregister}. */
  [Symbol.dispose](): void {
    this.unregister();
  }

  toString(): string {
    return `${this.label} (rkey 0x${this.rkey.toString(16)})`;
  }
}
