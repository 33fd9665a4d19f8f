/** Interrupts of a virtio device: by MSI-X one vector for each receive queue and one for the configuration, or fewer; or by its wire. */
import type { DeviceAccess, Interrupts } from '../../bus/device-access.js';
import { ISR, NO_VECTOR } from './layout.js';
import type { VirtioTransport } from './transport.js';

/** What is called, from the event loop. */
export interface InterruptHandlers {
  /** A queue may have packets. */
  readonly received: (queue: number) => void;
  /** The configuration has changed, or the device needs a reset, or is gone. */
  readonly changed: () => void;
}

const CONFIG_VECTOR = 0;

/** The interrupts. Whether a queue interrupts is written in its ring. */
export class VirtioInterrupts {
  /** `undefined`: the device has none. */
  readonly kind: 'msix' | 'intx' | undefined;
  readonly #interrupts: Interrupts | undefined;
  /** Vectors that queues share; 0: there are none. */
  readonly #forQueues: number;

  /** @param queues receive queues at most */
  constructor(access: DeviceAccess, transport: VirtioTransport, queues: number, handlers: InterruptHandlers) {
    const vectors = access.interruptCount('msix');
    const all = Array.from({ length: queues }, (_, queue) => queue);
    const received = (some: readonly number[]): void => {
      for (const queue of some) handlers.received(queue);
    };
    this.kind = vectors > 1 ? 'msix' : access.interruptCount('intx') > 0 ? 'intx' : undefined;
    this.#forQueues = this.kind === 'msix' ? Math.min(queues, vectors - 1) : 0;
    if (this.kind === undefined) return;
    const forQueues = Array.from(
      { length: this.#forQueues },
      (_, vector) => () => received(all.filter((queue) => queue % this.#forQueues === vector)),
    );
    const onWire = (): void => {
      // An error means that it is gone, which is noticed by who looks at it.
      let why = ISR.QUEUE | ISR.CONFIG;
      try {
        why = transport.takeInterrupts();
      } catch {
        // See above.
      }
      if ((why & ISR.QUEUE) !== 0) received(all);
      if ((why & ISR.CONFIG) !== 0) handlers.changed();
    };
    this.#interrupts = access.enableInterrupts(
      this.kind,
      this.kind === 'msix' ? [() => handlers.changed(), ...forQueues] : [onWire],
    );
    // Who waits for packets keeps the process alive, and not a port that is idle.
    this.#interrupts.setRef(false);
  }

  /** The vector of the configuration. */
  get configVector(): number {
    return this.kind === 'msix' ? CONFIG_VECTOR : NO_VECTOR;
  }

  /** The vector of a receive queue. */
  vectorOf(queue: number): number {
    return this.kind === 'msix' ? CONFIG_VECTOR + 1 + (queue % this.#forQueues) : NO_VECTOR;
  }

  close(): void {
    this.#interrupts?.close();
  }
}
