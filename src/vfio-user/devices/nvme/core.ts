/** What all commands of a controller share. */
import { EVENT, EVENT_CONFIG, EVENT_TYPE, eventResult, LOG } from '../../../nvme/commands.js';
import { CRITICAL_WARNING } from '../../../nvme/log-pages.js';
import { STATUS } from '../../../nvme/status.js';
import type { Batch } from './batch.js';
import { Coalescing } from './coalescing.js';
import type { Command } from './command.js';
import type { Engine } from './engine.js';
import { Events } from './events.js';
import { Features } from './features.js';
import { Health } from './health.js';
import { HostMemory } from './host-memory.js';
import { WAIT } from './lists.js';
import type { Namespace } from './namespace.js';

/** How a controller is made; see `NvmeModelOptions`. */
export interface Settings {
  readonly serial: string;
  readonly model: string;
  /** I/O queue pairs */
  readonly queues: number;
  /** most entries of an I/O queue */
  readonly entries: number;
  /** most bytes of a command: 2^mdts pages of 4 KiB */
  readonly mdts: number;
  /** bytes from one doorbell to the next */
  readonly doorbellStride: number;
  readonly sgl: boolean;
  readonly shadowDoorbells: boolean;
  /** bytes of the controller memory buffer; 0: there is none */
  readonly memoryBuffer: number;
  /** bytes of the host's memory that the controller asks for; 0: none */
  readonly hostMemory: number;
}

/** Bytes of the least page of the host, in which MDTS counts. */
export const LEAST_PAGE = 4096;

/** The controller, as its commands see it. */
export class Core {
  readonly features = new Features();
  readonly health = new Health();
  readonly events: Events;
  readonly hostMemory: HostMemory;
  readonly coalescing: Coalescing;
  /** For what can be moved without waiting; `undefined` where the system has no such thing. */
  batch: Batch | undefined;
  /** Namespaces that have come or gone since the host has read the log page. */
  readonly changed = new Set<number>();

  constructor(
    readonly settings: Settings,
    readonly namespaces: ReadonlyMap<number, Namespace>,
    readonly engine: Engine,
    interrupt: (vector: number) => void,
  ) {
    this.coalescing = new Coalescing(this.features, interrupt);
    this.events = new Events(engine);
    this.hostMemory = new HostMemory(engine, settings.hostMemory);
  }

  /** I/O queue pairs */
  get queues(): number {
    return this.settings.queues;
  }

  /** Most bytes of a command. */
  get maxTransfer(): number {
    return LEAST_PAGE * 2 ** this.settings.mdts;
  }

  /** The namespace of this id that the host sees. */
  namespace(id: number): Namespace | undefined {
    const found = this.namespaces.get(id);
    return found?.attached === true ? found : undefined;
  }

  /** Ids of the namespaces that the host sees, in order. */
  attached(): number[] {
    return [...this.namespaces.values()].filter(({ attached }) => attached).map(({ id }) => id);
  }

  /** Resets what a reset of the controller resets. */
  reset(): void {
    this.coalescing.reset();
    this.features.reset();
    this.events.clear();
    this.hostMemory.disable();
    this.changed.clear();
  }

  /** Answers with the first `length` bytes of `page`. @param sent called when the host has them */
  send(command: Command, page: Uint8Array, length: number, result = 0, sent?: () => void): void {
    const { engine } = this;
    const status = engine.point(command, length, true);
    if (status === WAIT) engine.whenListed(command, () => this.send(command, page, length, result, sent));
    else if (status !== 0) engine.complete(command, status);
    else
      engine.scatter(command, page.subarray(0, length), (ended) => {
        engine.complete(command, ended, ended === 0 ? result : 0);
        if (ended === 0) sent?.();
      });
  }

  /** Gets `length` bytes that come with a command; `use` completes it. */
  receive(command: Command, length: number, use: (bytes: Uint8Array) => void): void {
    const { engine } = this;
    const status = engine.point(command, length, false);
    if (status === WAIT) {
      engine.whenListed(command, () => this.receive(command, length, use));
      return;
    }
    if (status !== 0) {
      engine.complete(command, status);
      return;
    }
    const bytes = new Uint8Array(length);
    engine.gather(command, bytes, (ended) => {
      if (ended === 0) use(bytes);
      else engine.complete(command, ended);
    });
  }

  /** Brings all that was written to the disks. */
  syncAll(done: (status: number) => void): void {
    let left = this.namespaces.size;
    let worst: number = STATUS.SUCCESS;
    if (left === 0) done(worst);
    for (const namespace of this.namespaces.values())
      this.sync(namespace, (status) => {
        if (status !== 0) worst = status;
        if (--left === 0) done(worst);
      });
  }

  /** Brings all that was written to a namespace to its disk. What can not be is lost, and the host is told. */
  sync({ image }: Namespace, done: (status: number) => void): void {
    image.sync((status) => {
      if (status !== 0 && (this.health.warning & CRITICAL_WARNING.RELIABILITY) === 0) {
        this.health.warning |= CRITICAL_WARNING.RELIABILITY;
        this.checkHealth();
      }
      done(status);
    });
  }

  /** A namespace goes, or comes back. */
  attach(id: number, attached: boolean): void {
    const namespace = this.namespaces.get(id);
    if (namespace === undefined || namespace.attached === attached) return;
    namespace.attached = attached;
    this.changed.add(id);
    if ((this.features.events & EVENT_CONFIG.NAMESPACES) !== 0)
      this.events.tell(eventResult(EVENT_TYPE.NOTICE, EVENT.NOTICE.NAMESPACES, LOG.CHANGED_NAMESPACES));
  }

  /** Tells the host about its health, if it wants to know and there is something to tell. */
  checkHealth(): void {
    const { health, features } = this;
    const { temperature } = health;
    const wanted = features.events & EVENT_CONFIG.HEALTH_MASK;
    if (
      (wanted & CRITICAL_WARNING.TEMPERATURE) !== 0 &&
      (temperature >= features.over || temperature <= features.under)
    )
      this.events.tell(eventResult(EVENT_TYPE.HEALTH, EVENT.HEALTH.TEMPERATURE, LOG.SMART));
    if ((wanted & health.warning & CRITICAL_WARNING.RELIABILITY) !== 0)
      this.events.tell(eventResult(EVENT_TYPE.HEALTH, EVENT.HEALTH.RELIABILITY, LOG.SMART));
  }
}
