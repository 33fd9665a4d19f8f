/** The interrupts of an emulated device, as its vfio-user client connects them: eventfds by kind and vector. */
import { invalid } from '../errors.js';
import type { Platform, Watch } from '../platform/ports.js';
import type { InterruptCounts } from './devices/model.js';
import { COMMAND, IRQ, operationOf } from './messages.js';
import type { IrqDescription, SetIrqs } from './messages.js';

/** Kinds of interrupt that PCI devices have in VFIO's numbering. */
export const IRQ_KINDS = 5;

/** The most vectors of one kind (MSI-X: PCI Local Bus Specification 3.0, 6.8.2). */
const MAX_VECTORS = 2048;

interface Vector {
  /** The client's eventfd. We close it. */
  trigger: number | undefined;
  /** The client can signal this eventfd to unmask, instead of sending a message. */
  unmask: { readonly fd: number; readonly watch: Watch } | undefined;
  masked: boolean;
  /** Signalled while masked. */
  pending: boolean;
}

/** All vectors of a device. */
export class InterruptLines {
  /** Whether the client is trusted not to make its eventfds block. */
  trusted = false;
  readonly #kinds: readonly Vector[][];

  constructor(
    private readonly platform: Platform,
    counts: InterruptCounts,
  ) {
    // Error and request interrupts are never signalled, but clients connect them anyway.
    this.#kinds = [Math.min(counts.intx, 1), counts.msi, counts.msix, 1, 1].map((count) => {
      if (!Number.isInteger(count) || count < 0 || count > MAX_VECTORS)
        throw invalid('vfio-user device', `${count} interrupt vectors`);
      return Array.from({ length: count }, () => ({
        trigger: undefined,
        unmask: undefined,
        masked: false,
        pending: false,
      }));
    });
  }

  /** The answer of GET_IRQ_INFO. EINVAL for a kind that PCI devices do not have. */
  describe(index: number): IrqDescription {
    const count = this.#kind(index, COMMAND.GET_IRQ_INFO).length;
    return { index, count, eventfd: true, maskable: true, automasked: false };
  }

  /**
   * Carries out SET_IRQS. Takes the descriptors that it keeps out of `fds`.
   *
   * @throws DmaError EINVAL for vectors that do not exist, or if there is not one descriptor for each; nothing is
   *   changed then
   */
  set(request: SetIrqs, fds: number[]): void {
    const { index, start, count, action, data } = request;
    const kind = this.#kind(index, COMMAND.SET_IRQS);
    const operation = operationOf(COMMAND.SET_IRQS);
    if (start + count > kind.length) throw invalid(operation, `vectors ${start} to ${start + count} of ${kind.length}`);
    if (fds.length > 0 && (data !== 'eventfd' || fds.length !== count))
      throw invalid(operation, `${fds.length} descriptors for ${count} vectors`);
    const vectors = kind.slice(start, start + count);
    if (data === 'eventfd') {
      if (action === 'mask' || count === 0) throw invalid(operation, `eventfds to ${action} ${count} vectors`);
      for (const fd of fds) this.#checkEventfd(fd);
      for (const vector of vectors) {
        if (action === 'trigger') this.#setTrigger(vector, fds.shift());
        else this.#setUnmask(vector, fds.shift());
      }
      return;
    }
    if (data === 'none' && action === 'trigger' && count === 0) {
      if (start !== 0) throw invalid(operation, 'no vectors');
      for (const vector of kind) this.#disconnect(vector);
      return;
    }
    vectors.forEach((vector, i) => {
      if (data !== 'none' && data[i] === 0) return;
      if (action === 'trigger') this.#signal(vector);
      else this.#setMask(vector, action === 'mask');
    });
  }

  /** The device signals vector `vector` of the enabled kind. With INTx, all vectors are the one pin. */
  signal(vector: number): void {
    for (const index of [IRQ.MSIX, IRQ.MSI]) {
      const kind = this.#kinds[index];
      if (!kind.some(({ trigger }) => trigger !== undefined)) continue;
      const line = kind.at(vector);
      if (line !== undefined && vector >= 0) this.#signal(line);
      return;
    }
    const pin = this.#kinds[IRQ.INTX].at(0);
    if (pin !== undefined) this.#signal(pin);
  }

  /** Disconnects all vectors. */
  clear(): void {
    for (const kind of this.#kinds) for (const vector of kind) this.#disconnect(vector);
  }

  #kind(index: number, command: number): Vector[] {
    if (index >= IRQ_KINDS) throw invalid(operationOf(command), `no kind of interrupt ${index}`);
    return this.#kinds[index];
  }

  #checkEventfd(fd: number): void {
    // Any other descriptor could block, or end the event loop (a nested epoll descriptor does).
    const kind = this.platform.files.foreign(fd);
    if (kind !== 'eventfd') throw invalid(operationOf(COMMAND.SET_IRQS), `a ${kind} where an eventfd is needed`);
  }

  #setTrigger(vector: Vector, fd: number | undefined): void {
    this.#close(vector.trigger);
    vector.trigger = fd;
    vector.pending = false;
  }

  #setUnmask(vector: Vector, fd: number | undefined): void {
    vector.unmask?.watch.close();
    this.#close(vector.unmask?.fd);
    vector.unmask = undefined;
    if (fd === undefined) return;
    try {
      const watch = this.platform.readiness.watch(fd, { readable: true }, () => {
        try {
          this.platform.events.take(fd);
          this.#setMask(vector, false);
        } catch {
          // It is not an eventfd, and would stay readable for ever.
          this.#setUnmask(vector, undefined);
        }
      });
      vector.unmask = { fd, watch };
    } catch (error) {
      this.#close(fd);
      throw error;
    }
  }

  #setMask(vector: Vector, masked: boolean): void {
    vector.masked = masked;
    if (masked || !vector.pending) return;
    vector.pending = false;
    this.#signal(vector);
  }

  #signal(vector: Vector): void {
    const fd = vector.trigger;
    if (fd === undefined) return;
    if (vector.masked) {
      vector.pending = true;
      return;
    }
    const { events, readiness } = this.platform;
    try {
      // The eventfd is full, so the client has been notified already.
      if (!readiness.wait([{ fd, readable: false, writable: true }], 0)) return;
      if (this.trusted) events.signal(fd);
      else events.signalForeign(fd);
    } catch {
      // Only an eventfd can be signalled.
    }
  }

  #disconnect(vector: Vector): void {
    this.#setTrigger(vector, undefined);
    this.#setUnmask(vector, undefined);
    vector.masked = false;
  }

  #close(fd: number | undefined): void {
    if (fd !== undefined) this.platform.files.closeForeign(fd);
  }
}
