/** The connection manager of one device: its event channel, and the listeners for each id. */
import { DmaError, undoAll, withUndo } from '../errors.js';
import type { Platform, Watch } from '../platform/ports.js';
import type { CmChannel, CmEvent, CmId, RdmaCmPort } from '../platform/rdma/rdma-cm-port.js';

/** @internal Receives the events of an id. */
export interface CmListening {
  event(event: CmEvent): void;
  /** No more events will follow. */
  lost(error: DmaError): void;
}

/** @internal The events of one device's listeners and connections. Its channel is open while there are any. */
export class CmHub {
  readonly #platform: Pick<Platform, 'rdmaCm' | 'readiness'>;
  readonly #ids = new Map<CmId, CmListening>();
  /** Ids that keep the process alive. */
  readonly #awake = new Set<CmId>();
  #channel: CmChannel | undefined;
  #watch: Watch | undefined;

  constructor(platform: Pick<Platform, 'rdmaCm' | 'readiness'>) {
    this.#platform = platform;
  }

  get cm(): RdmaCmPort {
    return this.#platform.rdmaCm;
  }

  create(listening: CmListening): CmId {
    const { cm } = this;
    const channel = (this.#channel ??= cm.createChannel());
    try {
      this.#watch ??= this.#platform.readiness.watch(channel.fd, { readable: true }, () => this.#takeEvents());
      const id = cm.createId(channel);
      this.adopt(id, listening);
      return id;
    } catch (error) {
      throw withUndo(error, 'rdma_create_id', this.#rest());
    }
  }

  adopt(id: CmId, listening: CmListening): void {
    this.#ids.set(id, listening);
    this.#awake.add(id);
    this.#watch?.setRef(true);
  }

  /** The id no longer keeps the process alive. */
  calm(id: CmId): void {
    this.#awake.delete(id);
    if (this.#awake.size === 0) this.#watch?.setRef(false);
  }

  /** @returns what failed */
  destroy(id: CmId): unknown[] {
    this.calm(id);
    this.#ids.delete(id);
    return [...undoAll([() => this.cm.destroyId(id)]), ...this.#rest()];
  }

  /** Closes the channel when no id is left. */
  #rest(): unknown[] {
    const channel = this.#channel;
    if (channel === undefined || this.#ids.size > 0) return [];
    const watch = this.#watch;
    this.#channel = this.#watch = undefined;
    return undoAll([() => watch?.close(), () => this.cm.destroyChannel(channel)]);
  }

  #takeEvents(): void {
    while (this.#channel !== undefined) {
      let event: CmEvent | undefined;
      try {
        event = this.cm.nextEvent(this.#channel);
      } catch (cause) {
        const reason = 'reading the events of the connection manager failed';
        const error = new DmaError({ code: 'EIO', operation: 'rdma_get_cm_event', reason, cause });
        for (const each of [...this.#ids.values()]) each.lost(error);
        return;
      }
      if (event === undefined) return;
      this.#ids.get(event.listener ?? event.id)?.event(event);
    }
  }
}
