/** Interrupts of an adapter: one vector for each receive queue and one for the link by MSI-X, else one for all. */
import type { DeviceAccess, InterruptKind, Interrupts } from '../../bus/device-access.js';
import type { Adapter } from './adapter.js';
import { CAUSE, CTRL_EXT, IVAR, REG, RX_QUEUE_CAUSES } from './registers.js';

/** What is called, from the event loop. */
export interface InterruptHandlers {
  /** A queue may have packets. */
  readonly received: (queue: number) => void;
  /** The link may have changed, or the adapter is gone. */
  readonly changed: () => void;
}

const OTHER_CAUSES = CAUSE.OTHER | CAUSE.LINK;
/** Causes of received frames where there is one vector for all. */
const ANY_RX = CAUSE.RX_TIMER | CAUSE.RX_OVERRUN | RX_QUEUE_CAUSES;
const VECTORS = { RX0: 0, RX1: 1, OTHER: 2, COUNT: 3 } as const;

/** The interrupts. A queue's is off until it is armed, and goes off when it comes. */
export class AdapterInterrupts {
  /** `undefined`: the adapter has none. */
  readonly kind: InterruptKind | undefined;
  readonly #adapter: Adapter;
  readonly #handlers: InterruptHandlers;
  readonly #interrupts: Interrupts | undefined;

  constructor(access: DeviceAccess, adapter: Adapter, handlers: InterruptHandlers) {
    this.#adapter = adapter;
    this.#handlers = handlers;
    const most = (kind: InterruptKind): boolean => access.interruptCount(kind) >= (kind === 'msix' ? VECTORS.COUNT : 1);
    this.kind = (['msix', 'msi', 'intx'] as const).find(most);
    if (this.kind === undefined) return;
    const own =
      this.kind === 'msix'
        ? [() => this.#onQueue(0), () => this.#onQueue(1), () => this.#onOther()]
        : [() => this.#onAny()];
    this.#interrupts = access.enableInterrupts(this.kind, own);
    // Who waits for packets keeps the process alive, and not a port that is idle.
    this.#interrupts.setRef(false);
  }

  /** After a reset: which vector each cause has. Changes of the link are told from here on. */
  setUp(): void {
    if (this.kind === undefined) return;
    const { registers } = this.#adapter;
    if (this.kind === 'msix') {
      registers.write32(REG.CTRL_EXT, registers.read32(REG.CTRL_EXT) | CTRL_EXT.PBA_CLEAR);
      registers.write32(REG.EIAC, RX_QUEUE_CAUSES);
      registers.write32(
        REG.IVAR,
        ((VECTORS.RX0 | IVAR.VALID) << IVAR.RX0_SHIFT) |
          ((VECTORS.RX1 | IVAR.VALID) << IVAR.RX1_SHIFT) |
          ((VECTORS.OTHER | IVAR.VALID) << IVAR.OTHER_SHIFT),
      );
    }
    registers.write32(REG.IMS, this.#other);
  }

  get #other(): number {
    return this.kind === 'msix' ? OTHER_CAUSES : CAUSE.LINK;
  }

  /** The next packet of a queue interrupts. Look at the queue after this: what came before does not. */
  arm(queue: number): void {
    if (this.kind === undefined) return;
    const { registers } = this.#adapter;
    const causes = this.kind === 'msix' ? CAUSE.RX_QUEUE << queue : ANY_RX;
    registers.write32(REG.ICR, causes);
    registers.write32(REG.IMS, causes);
  }

  #onQueue(queue: number): void {
    quietly(() => this.#adapter.registers.write32(REG.IMC, CAUSE.RX_QUEUE << queue));
    this.#handlers.received(queue);
  }

  #onOther(): void {
    let causes: number = CAUSE.LINK;
    quietly(() => {
      causes = this.#adapter.causes();
      // Where reading does not clear them.
      this.#adapter.registers.write32(REG.ICR, causes & ~RX_QUEUE_CAUSES);
    });
    // Reading may have cleared what is for the queues, too.
    for (const queue of [0, 1]) if ((causes & (CAUSE.RX_QUEUE << queue)) !== 0) this.#handlers.received(queue);
    this.#handlers.changed();
    quietly(() => this.#adapter.registers.write32(REG.IMS, this.#other));
  }

  #onAny(): void {
    let causes: number = CAUSE.LINK | ANY_RX;
    quietly(() => {
      causes = this.#adapter.causes();
      this.#adapter.registers.write32(REG.IMC, ANY_RX);
    });
    if ((causes & ANY_RX) !== 0) for (const queue of [0, 1]) this.#handlers.received(queue);
    if ((causes & CAUSE.LINK) !== 0) this.#handlers.changed();
  }

  close(): void {
    this.#interrupts?.close();
  }
}

/** A device that is gone is noticed by the port, which looks at its status. */
function quietly(work: () => void): void {
  try {
    work();
  } catch {
    // See above.
  }
}
