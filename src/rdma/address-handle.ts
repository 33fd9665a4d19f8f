/** Destinations of datagrams. */
import type { VerbsAh } from '../platform/rdma/verbs-types.js';
import { DmaError } from '../errors.js';
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
  /** Queue pairs of datagrams that other threads send with, to here. */
  #users = 0;

  /** @internal It owns `handle`, which counts against the device's limit. */
  constructor(rdma: RdmaContext, handle: VerbsAh, closed: (handle: AddressHandle) => void) {
    this.handle = handle;
    this.#rdma = rdma;
    this.#closed = closed;
  }

  /** @internal Keeps it open for a queue pair that is offered to other threads. */
  pin(): Disposable {
    this.#users++;
    let isPinned = true;
    return {
      [Symbol.dispose]: () => {
        if (isPinned) this.#users--;
        isPinned = false;
      },
    };
  }

  /** Closes it. Idempotent. @throws DmaError EBUSY while it is a destination of a queue pair that was shared */
  close(): void {
    if (this.handle.address === 0) return;
    if (this.#users > 0)
      throw new DmaError({
        code: 'EBUSY',
        operation: 'close',
        reason: 'a queue pair that is offered to other threads sends to this address',
        hint: 'pair.takeBack() first, or close the pair',
      });
    this.#rdma.verbs.destroyAh(this.handle);
    this.#rdma.limits.gave('addresses');
    this.#closed(this);
  }

  /** Calls {@link close}. */
  [Symbol.dispose](): void {
    this.close();
  }
}
