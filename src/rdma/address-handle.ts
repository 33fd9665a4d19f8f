/** Destinations of datagrams. */
import type { VerbsAh } from '../platform/rdma/verbs-types.js';
import type { RdmaContext } from './context.js';
import { STAYS } from '../stays.js';

/** The path to a port. Created by `RdmaDevice.createAddress`. Close it after the last send to it has ended. */
export class AddressHandle implements Disposable {
  /** @internal */
  readonly stays = STAYS;
  /** @internal */
  readonly handle: VerbsAh;
  readonly #rdma: RdmaContext;
  readonly #closed: (handle: AddressHandle) => void;

  /** @internal It owns `handle`, which counts against the device's limit. */
  constructor(rdma: RdmaContext, handle: VerbsAh, closed: (handle: AddressHandle) => void) {
    this.handle = handle;
    this.#rdma = rdma;
    this.#closed = closed;
  }

  /** Closes it. Idempotent. */
  close(): void {
    if (this.handle.address === 0) return;
    this.#rdma.verbs.destroyAh(this.handle);
    this.#rdma.limits.gave('addresses');
    this.#closed(this);
  }

  /** Calls {@link close}. */
  [Symbol.dispose](): void {
    this.close();
  }
}
