/**
 * A secondary: a process that uses the memory and the devices of another one, the primary. Memory is at the same
 * addresses in both. What changes anything is asked of the primary, so that all of it is asynchronous.
 */
import { EventEmitter } from 'node:events';
import { isMainThread } from 'node:worker_threads';
import { mustBeMs, optionsOf, stopped, type Shape } from '../check.js';
import type { MapAsyncOptions } from '../dma/domain.js';
import { DmaError, invalid, isDmaError, throwFirst, undoAll } from '../errors.js';
import { longWorkOf, tellProgress, remainingMs, type LongWorkOptions } from '../long-work.js';
import type { AllocateOptions, FromFdOptions } from '../memory/external.js';
import type { HeapStatistics } from '../memory/heap/heap.js';
import type { MallocOptions } from '../memory/heap/malloc-request.js';
import { rangeOf, type MemoryPart } from '../memory/part.js';
import type { Platform } from '../platform/ports.js';
import { Range } from '../ranges.js';
import { shortForm } from '../short-form.js';
import { thrown } from '../show.js';
import { now, queueMicrotask } from '../timers.js';
import type { Iova, Va } from '../units.js';
import { connectToPrimary } from './connect.js';
import { Mirror, type Mapped } from './mirror.js';
import type { Answer, Peer, Question, Reply } from './peer.js';
import { SecondaryDevice, SecondaryMapping, type DeviceKeeper } from './secondary-devices.js';
import { SecondaryQueues } from './secondary-queues.js';
import { SecondaryPools, SecondaryRings } from './secondary-pools.js';
import { SecondaryBlock, SecondaryExternal, SecondaryZone } from './secondary-memory.js';
import { nonsense, type Fields, type Json, type JsonObject } from '../fields.js';
import { errorFromWire } from './wire.js';
import { libraryVersion } from './version.js';
import { STAYS } from '../stays.js';

const OPERATION = 'Eal.attach';

/** Options of `Eal.attach`. */
export interface AttachOptions {
  /** Names this process in errors and lists of the primary. Default: the name of its program. */
  readonly label?: string;
  /** How long the primary has to admit this process, in milliseconds. Default 5000. */
  readonly timeoutMs?: number;
  /** System calls. Default: this machine's; tests pass others. */
  readonly platform?: Platform;
}

const ATTACH_OPTIONS: Shape<AttachOptions> = { label: 'string', timeoutMs: 'number', platform: 'object' };

/** Events of `Secondary.events`. */
export interface SecondaryEvents {
  /**
   * The primary has ended, or has given this process up because it did not answer in time. Emitted once. Memory stays
   * until the secondary is closed; every call that asks the primary fails with this error.
   */
  ended: [error: DmaError];
}

/** What a call needs of the connection. */
interface Connection {
  ask(name: string, question: JsonObject, fds?: readonly number[]): Promise<Reply>;
  /** A call that can be cancelled, with progress. */
  work(name: string, question: JsonObject, options: object, operation: string, fds?: readonly number[]): Promise<Reply>;
  readonly keeper: DeviceKeeper;
  readonly platform: Platform;
}

/** A connection to a primary. Made by `Eal.attach`; close it when it is not needed any more. */
export class Secondary implements AsyncDisposable {
  /** @internal */
  readonly stays = STAYS;
  /** The name of the primary's Eal. */
  readonly name: string;
  /** Process id of the primary. */
  readonly pid: number;
  /** Tells once when the primary ends. */
  readonly events: EventEmitter<SecondaryEvents>;
  /** Zones of the primary. */
  readonly zones: SecondaryZones;
  /** Pools of the primary. */
  readonly pools: SecondaryPools;
  /** Rings of the primary. */
  readonly rings: SecondaryRings;
  /** Heaps of the primary. */
  readonly heaps: SecondaryHeaps;
  /** External memory of the primary. */
  readonly external: SecondaryExternals;
  readonly #emitter = new EventEmitter<SecondaryEvents>();
  readonly #queues: SecondaryQueues;
  readonly #connection: Connection;
  readonly #works = new Map<number, (doneBytes: number, totalBytes: number) => void>();
  readonly #platform: Platform;
  readonly #peer: Peer;
  #mirror: Mirror | undefined;
  #nextWork = 1;
  #why: DmaError | undefined;
  #failure: DmaError | undefined;
  #closed = false;

  private constructor(platform: Platform, name: string, pid: number, peer: Peer) {
    this.#platform = platform;
    this.#peer = peer;
    this.name = name;
    this.pid = pid;
    this.events = this.#emitter;
    const connection: Connection = {
      platform,
      ask: (what, question, fds) => this.#ask(what, question, fds),
      work: (what, question, options, operation, fds) => this.#work(what, question, options, operation, fds),
      keeper: this.#keeper(),
    };
    this.#connection = connection;
    this.#queues = new SecondaryQueues(connection);
    this.zones = new SecondaryZones(connection);
    this.pools = new SecondaryPools(connection);
    this.rings = new SecondaryRings(connection, this.pools);
    this.heaps = new SecondaryHeaps(connection);
    this.external = new SecondaryExternals(connection);
  }

  /** @internal See `Eal.attach`. */
  static async attach(
    name: string,
    options: AttachOptions | undefined,
    openPlatform: () => Platform,
  ): Promise<Secondary> {
    const { label, timeoutMs = 5000, platform = openPlatform() } = optionsOf(options, ATTACH_OPTIONS, OPERATION);
    mustBeMs(timeoutMs, 'timeoutMs', OPERATION);
    if (!isMainThread)
      throw new DmaError({
        code: 'ENOTSUP',
        operation: OPERATION,
        reason: 'a worker thread can not attach, because its addresses end with it',
        hint: 'attach in the main thread, and share what workers need with them',
      });
    const made: { secondary?: Secondary } = {};
    const owner = {
      answer: (question: Question): Answer | undefined => {
        if (made.secondary === undefined) throw nonsense(OPERATION, `${question.name} before the hello was answered`);
        return made.secondary.#answer(question);
      },
      closed: (error: DmaError): void => {
        if (made.secondary !== undefined) made.secondary.#ended(error);
      },
    };
    const { peer, pid } = await connectToPrimary(platform, name, owner, {
      timeoutMs,
      label,
      version: libraryVersion(),
      keepAlive: false,
    });
    if (pid === process.pid) {
      const error = invalid(OPERATION, `this process is itself the primary with the name ${JSON.stringify(name)}`, {
        hint: 'use the Eal that Eal.start returned; its worker threads attach to what share() returns',
      });
      peer.close(error);
      throw error;
    }
    const secondary = new Secondary(platform, name, pid, peer);
    made.secondary = secondary;
    try {
      await peer.ask('attach', {}, [], timeoutMs);
      return secondary;
    } catch (error) {
      await secondary.close();
      throw error;
    }
  }

  /** Is the primary there? False once it has ended, and after `close`. */
  get live(): boolean {
    return !this.#closed && this.#failure === undefined;
  }

  /**
   * Allocates a block from the primary's memory: see `Eal.malloc`. The block is freed when this process ends.
   *
   * @throws DmaError as `Eal.mallocAsync`; ENOTSUP if the heap's memory can not be mapped here; why the connection ended
   */
  async malloc(size: number, options: MallocOptions & LongWorkOptions = {}): Promise<SecondaryBlock> {
    const { fields } = await this.#work('malloc', { size }, options, 'malloc');
    return new SecondaryBlock(this.#connection.keeper, fields.objectAt('block'));
  }

  /** The devices of the primary. @throws DmaError why the connection ended */
  async devices(): Promise<SecondaryDevice[]> {
    const { fields } = await this.#ask('devices.list', {});
    return fields.list('devices').map((facts) => new SecondaryDevice(this.#connection.keeper, facts));
  }

  /** The device of that name; `undefined` if the primary has none. @throws DmaError why the connection ended */
  async find(name: string): Promise<SecondaryDevice | undefined> {
    return (await this.devices()).find((device) => device.name === name);
  }

  /** Lets the primary open a device, for all processes: see `Eal.probe`. @throws DmaError as `Eal.probe` */
  async probe(name: string): Promise<SecondaryDevice> {
    const { fields } = await this.#ask('devices.probe', { name });
    return new SecondaryDevice(this.#connection.keeper, fields.objectAt('device'));
  }

  /** Lets the primary remove a device, for all processes: see `Eal.remove`. @throws DmaError as `Eal.remove` */
  async remove(device: SecondaryDevice): Promise<void> {
    if (!(device instanceof SecondaryDevice)) throw invalid('remove', 'what is removed is a device of this secondary');
    await this.#ask('devices.remove', { device: device.name });
  }

  /** What is in the primary, as plain data. @throws DmaError why the connection ended */
  async facts(): Promise<SharedFacts> {
    const { fields } = await this.#ask('facts', {});
    // The primary is of the same version of the protocol.
    return fields.raw as JsonObject & SharedFacts;
  }

  /**
   * Lets go of everything: detaches views, unmaps the memory, and ends the connection. Idempotent.
   *
   * @throws DmaError errors of unmapping
   */
  async close(): Promise<void> {
    if (this.#closed) return;
    this.#closed = true;
    const mirror = this.#mirror;
    this.#mirror = undefined;
    const errors = undoAll([
      () => this.#queues.close(this.#closedError('close')),
      () => this.rings.close(),
      () => this.pools.close(),
    ]);
    const kept = undoAll([() => mirror?.close()]);
    // From then on the primary can give the memory to others.
    if (this.#failure === undefined && kept.length === 0)
      await this.#peer.ask('bye', {}, [], 5000).catch(() => undefined);
    this.#peer.close(new DmaError({ code: 'ECANCELED', operation: OPERATION, reason: 'the secondary was closed' }));
    throwFirst([...kept, ...errors], 'close');
  }

  /** Calls {@link close}. */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }

  #keeper(): DeviceKeeper {
    const mirrorOf = (): Mirror => {
      if (this.#mirror === undefined) throw this.#closedError('bytes');
      return this.#mirror;
    };
    return {
      get mirror() {
        return mirrorOf();
      },
      release: async (id, operation, options) => {
        await this.#ask('release', { id, operation, ...options });
      },
      map: async (device, part, options: MapAsyncOptions) => {
        const { fields } = await this.#work('devices.map', { device, ...part }, options, 'dmaMap');
        return new SecondaryMapping(this.#connection.keeper, fields.objectAt('mapping'));
      },
      openQueue: async (device, options) =>
        this.#queues.openQueue(await this.#ask('queues.open', { device, options: plain(options) })),
      openCopyEngine: async (device) => this.#queues.openCopyEngine(await this.#ask('engines.open', { device })),
      iovaOf: async (device, part) => {
        const { fields } = await this.#ask('devices.iovaOf', { device, ...part });
        return fields.number('iova') as Iova;
      },
    };
  }

  async #ask(name: string, question: JsonObject, fds: readonly number[] = []): Promise<Reply> {
    if (this.#closed) throw this.#closedError(name);
    if (this.#failure !== undefined) throw this.#failure.with({ operation: name });
    try {
      return await this.#peer.ask(name, question, fds, Infinity);
    } catch (error) {
      const failure = this.#lost();
      if (failure !== undefined) throw failure.with({ operation: name });
      if (isDmaError(error)) throw error;
      throw invalid(name, `an argument can not be sent to the primary: ${thrown(error)}`);
    }
  }

  #lost(): DmaError | undefined {
    return this.#failure;
  }

  async #work(
    name: string,
    question: JsonObject,
    asked: object,
    operation: string,
    fds: readonly number[] = [],
  ): Promise<Reply> {
    const [{ onProgress, signal }, options] = longWorkOf(asked as LongWorkOptions, operation);
    const work = this.#nextWork++;
    const began = now();
    if (onProgress !== undefined)
      this.#works.set(work, (doneBytes, totalBytes) =>
        tellProgress(onProgress, { doneBytes, totalBytes, remainingMs: remainingMs(began, doneBytes, totalBytes) }),
      );
    const cancel = (): void => this.#peer.tell('cancel', { work });
    signal?.addEventListener('abort', cancel, { once: true });
    try {
      const progress = onProgress === undefined ? undefined : true;
      return await this.#ask(name, { ...question, options: plain(options), work, progress }, fds);
    } finally {
      signal?.removeEventListener('abort', cancel);
      this.#works.delete(work);
    }
  }

  /** Answers the primary. */
  #answer({ name, fields, fds }: Question): Answer | undefined {
    switch (name) {
      case 'window':
        if (this.#mirror !== undefined) throw nonsense(OPERATION, 'a second window');
        this.#mirror = Mirror.open(
          this.#platform,
          new Range(fields.number('va') as Va, fields.number('length'), OPERATION),
        );
        return undefined;
      case 'memory.add':
        this.#mirror?.add(fields.list('pieces'), fds);
        return undefined;
      case 'memory.remove':
        this.#mirror?.remove(fields.number('va'), fields.number('length'));
        return undefined;
      case 'queues.look':
        this.#queues.look(fields.number('id'));
        return undefined;
      case 'progress':
        this.#works.get(fields.number('work'))?.(fields.number('doneBytes'), fields.number('totalBytes'));
        return undefined;
      case 'ended':
        this.#why = errorFromWire(fields.raw, OPERATION);
        return undefined;
      default:
        throw new DmaError({ code: 'ENOSYS', operation: OPERATION, reason: `there is no call ${name}` });
    }
  }

  #ended(error: DmaError): void {
    if (this.#closed) return;
    const why = this.#why;
    const primary = `the primary ${JSON.stringify(this.name)} (process ${this.pid})`;
    const reason =
      why === undefined
        ? error.code === 'ECONNRESET'
          ? `${primary} has ended: ${error.reason}`
          : `the connection to ${primary} broke: ${error.reason}`
        : why.code === 'ECONNRESET'
          ? `${primary} was stopped`
          : `${primary} has given this process up: ${why.reason}`;
    this.#failure = new DmaError({
      code: (why ?? error).code,
      operation: OPERATION,
      reason,
      hint: 'memory stays as it is until close(); Eal.attach attaches to the next primary with this name',
      cause: error,
    });
    const failure = this.#failure;
    this.#queues.lose(failure);
    for (const listener of this.#emitter.rawListeners('ended')) {
      try {
        Reflect.apply(listener, this.#emitter, [failure]);
      } catch (thrownByIt) {
        queueMicrotask(() => {
          throw thrownByIt;
        });
      }
    }
  }

  #closedError(operation: string): DmaError {
    return stopped(operation).with({ reason: 'the secondary was closed', hint: 'Eal.attach attaches again' });
  }
}

shortForm(Secondary, 'Secondary', ({ name, pid, live }) => ({ name, pid, live }));

/** What `Secondary.facts` tells of a primary. Sizes in bytes. */
export interface SharedFacts {
  readonly name: string;
  readonly pid: number;
  /** The version of anydma in the primary. */
  readonly version: string;
  /** The addresses that all processes reserve for it. */
  readonly window: { readonly va: number; readonly length: number };
  readonly iovaMode?: string;
  readonly heaps: readonly {
    readonly name: string;
    readonly total: number;
    readonly free: number;
    readonly allocated: number;
    readonly allocatedBlocks: number;
  }[];
  /** The pieces of memory of heaps; `shared` tells whether secondaries can map one. */
  readonly memory: readonly {
    readonly heap: string;
    readonly va: number;
    readonly length: number;
    readonly pageSize: number;
    readonly node: number;
    readonly shared: boolean;
  }[];
  readonly zones: readonly {
    readonly name: string;
    readonly heap: string;
    readonly va: number;
    readonly length: number;
  }[];
  readonly pools: readonly {
    readonly name: string;
    readonly elements: number;
    /** bytes */
    readonly elementSize: number;
    /** Those in caches of other threads and processes do not count. */
    readonly available: number;
  }[];
  readonly rings: readonly {
    readonly name: string;
    readonly size: number;
    /** How many numbers are in it. */
    readonly length: number;
    readonly producers: 'many' | 'one';
    readonly consumers: 'many' | 'one';
    readonly pool?: string;
  }[];
  readonly external: readonly {
    readonly label: string;
    readonly va: number;
    readonly length: number;
    readonly pageSize: number;
    readonly shareable: boolean;
  }[];
  readonly devices: readonly { readonly name: string; readonly driver?: string; readonly domain?: string }[];
  /** The processes that are attached, and how many things each has. */
  readonly secondaries: readonly { readonly pid: number; readonly label: string; readonly holds: number }[];
}

/** Options as they can be sent: tables of IOVAs as lists. */
function plain(options: object): JsonObject {
  return Object.fromEntries(
    Object.entries(options).map(([key, value]: [string, unknown]) => [
      key,
      ArrayBuffer.isView(value) && !(value instanceof DataView) ? Array.from(value as Float64Array) : (value as Json),
    ]),
  );
}

/** The zones of a primary. */
export class SecondaryZones {
  /** @internal */
  readonly stays = STAYS;
  readonly #connection: Connection;

  /** @internal */
  constructor(connection: Connection) {
    this.#connection = connection;
  }

  /** All zones. This process has none of them: {@link find} does that. */
  async list(): Promise<{ readonly name: string; readonly heap: string; readonly va: Va; readonly length: number }[]> {
    const { fields } = await this.#connection.ask('zones.list', {});
    return fields.list('zones').map((zone) => ({
      name: zone.string('name'),
      heap: zone.string('heap'),
      va: zone.number('va') as Va,
      length: zone.number('length'),
    }));
  }

  /** The zone of that name, which nobody frees while this process has it; `undefined` if there is none. */
  async find(name: string): Promise<SecondaryZone | undefined> {
    const { fields } = await this.#connection.ask('zones.find', { name });
    return fields.has('zone') ? new SecondaryZone(this.#connection.keeper, fields.objectAt('zone')) : undefined;
  }

  /** Reserves a zone, which stays when this process ends. @throws DmaError as `Zones.reserveAsync` */
  async reserve(name: string, length: number, options: MallocOptions & LongWorkOptions = {}): Promise<SecondaryZone> {
    const { fields } = await this.#connection.work('zones.reserve', { name, length }, options, 'zones.reserve');
    return new SecondaryZone(this.#connection.keeper, fields.objectAt('zone'));
  }

  /** Frees a zone by its name. @throws DmaError as `Zones.free`; EBUSY while a process has it, this one included */
  async free(name: string): Promise<void> {
    await this.#connection.ask('zones.free', { name });
  }
}

/** The heaps of a primary. Memory of heaps is attached by itself, as far as it has descriptors. */
export class SecondaryHeaps {
  /** @internal */
  readonly stays = STAYS;
  readonly #connection: Connection;

  /** @internal */
  constructor(connection: Connection) {
    this.#connection = connection;
  }

  /** All heaps, with their figures. */
  async list(): Promise<({ readonly name: string } & HeapStatistics)[]> {
    const { fields } = await this.#connection.ask('heaps.list', {});
    return fields.list('heaps').map((heap) => heap.raw as JsonObject & { readonly name: string } & HeapStatistics);
  }

  /**
   * Attaches memory of a heap that was detached.
   *
   * @param part exactly what was added to the heap
   * @throws DmaError, in this order: EINVAL for an invalid name or range; ENOENT if there is no such heap; EPERM for the
   *   library's own memory; ENOENT if no memory of the heap is exactly this range; ENOTSUP if it has no descriptor; EEXIST
   *   if it is attached
   */
  async attachMemory(name: string, part: MemoryPart): Promise<void> {
    await this.#connection.ask('heaps.attachMemory', { name, ...bare(part, 'heaps.attachMemory') });
  }

  /**
   * Unmaps memory of a heap in this process. Blocks that this process has in it can not be accessed any more.
   *
   * @throws DmaError as {@link attachMemory}, and ENOENT if it is not attached
   */
  async detachMemory(name: string, part: MemoryPart): Promise<void> {
    await this.#connection.ask('heaps.detachMemory', { name, ...bare(part, 'heaps.detachMemory') });
  }
}

/** A range as the caller gave it: the primary checks it after the name. */
function bare(part: MemoryPart, operation: string): { va: number; length: number } {
  if (typeof part !== 'object' || part === null) rangeOf(part, operation);
  return { va: Number(part.va), length: part.length };
}

/** External memory of a primary. */
export class SecondaryExternals {
  /** @internal */
  readonly stays = STAYS;
  readonly #connection: Connection;

  /** @internal */
  constructor(connection: Connection) {
    this.#connection = connection;
  }

  /** All external memory of the primary. `shareable`: does it have a descriptor, so that it can be attached? */
  async list(): Promise<
    {
      readonly label: string;
      readonly va: Va;
      readonly length: number;
      readonly shareable: boolean;
      readonly attached: boolean;
    }[]
  > {
    const { fields } = await this.#connection.ask('external.list', {});
    return fields.list('external').map((memory) => ({
      label: memory.string('label'),
      va: memory.number('va') as Va,
      length: memory.number('length'),
      shareable: memory.boolean('shareable'),
      attached: memory.boolean('attached'),
    }));
  }

  /**
   * Maps external memory of the primary in this process, at the same addresses. As long as it is attached, the primary
   * can not unregister it.
   *
   * @param which exactly its range, or its label
   * @throws DmaError EINVAL for an impossible range; ENOENT if there is none; EEXIST if it is attached, or its addresses
   *   are taken in this process; ENOTSUP if it has no descriptor
   */
  async attach(which: MemoryPart | string): Promise<SecondaryExternal> {
    const operation = 'external.attach';
    const question = typeof which === 'string' ? { name: which } : bare(which, operation);
    return this.#attached(await this.#connection.ask(operation, question));
  }

  /** Detaches external memory by its range or label: see `SecondaryExternal.detach`. @throws DmaError ENOENT if it is not attached */
  async detach(which: MemoryPart | string): Promise<void> {
    const operation = 'external.detach';
    const question = typeof which === 'string' ? { name: which } : bare(which, operation);
    const known = [...this.#live].find((memory) =>
      typeof which === 'string' ? memory.label === which : memory.va === which.va && memory.length === which.length,
    );
    if (known !== undefined) return known.detach();
    await this.#connection.ask(operation, question);
  }

  /**
   * Lets the primary allocate external memory, and attaches it. It is unregistered when this process ends.
   *
   * @throws DmaError as `External.allocateAsync`
   */
  async allocate(length: number, options: AllocateOptions & LongWorkOptions = {}): Promise<SecondaryExternal> {
    const operation = 'external.allocate';
    return this.#attached(await this.#connection.work(operation, { length }, options, operation));
  }

  /**
   * Registers memory behind a descriptor of this process in the primary, and maps it here at the primary's address. It
   * is unregistered when this process ends. The descriptor stays the caller's.
   *
   * @throws DmaError as `External.fromFdAsync`
   */
  async fromFd(fd: number, options: FromFdOptions & LongWorkOptions = {}): Promise<SecondaryExternal> {
    const operation = 'external.fromFd';
    // It says best what is wrong with it.
    this.#connection.platform.files.status(fd);
    return this.#attached(await this.#connection.work(operation, {}, options, operation, [fd]));
  }

  readonly #live = new Set<SecondaryExternal>();

  #attached({ fields, fds }: Reply): SecondaryExternal {
    const { keeper, platform } = this.#connection;
    const facts: Fields = fields.objectAt('memory');
    let mapped: Mapped;
    try {
      mapped = keeper.mirror.add(fields.list('pieces'), fds);
    } catch (error) {
      void keeper.release(facts.number('id'), 'external.attach', {}).catch(() => undefined);
      throw error;
    } finally {
      for (const fd of fds) platform.files.close(fd);
    }
    const memory: SecondaryExternal = new SecondaryExternal(keeper, facts, mapped, () => this.#live.delete(memory));
    this.#live.add(memory);
    return memory;
  }
}
