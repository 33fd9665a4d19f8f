/**
 * The primary's side of sharing with other processes: what a secondary may ask, and what it has. Every request is made
 * here, through the same calls as the program's own, so that there is one ledger, and errors are the same. What a
 * secondary has is given back when it ends, however it ends.
 */
import type { Device } from '../bus/model.js';
import { optionsOf, type Shape } from '../check.js';
import { copyEngineDriver } from '../drivers/copy-engine-driver.js';
import { nvmeDriver } from '../drivers/nvme/nvme-driver.js';
import { DmaError, invalid } from '../errors.js';
import type { LongWorkOptions } from '../long-work.js';
import type { External, ExternalMemory } from '../memory/external.js';
import type { Block } from '../memory/heap/heap.js';
import type { Heaps } from '../memory/heap/heaps.js';
import type { MallocOptions } from '../memory/heap/malloc-request.js';
import type { MemoryHandlers } from '../memory/memory-events.js';
import type { OwnedMemory } from '../memory/owned/owned.js';
import type { Zone, Zones } from '../memory/owned/zones.js';
import type { Pools } from '../memory/pool/pools.js';
import type { Rings } from '../memory/pool/rings.js';
import { rangeOf } from '../memory/part.js';
import type { Pin } from '../memory/pins.js';
import type { Mapping } from '../dma/mapping.js';
import type { Platform } from '../platform/ports.js';
import type { Va } from '../units.js';
import type { LentToProcess, ProcessLoan } from '../bus/lent-to-process.js';
import { copiesOf, type Answer, type Question } from './peer.js';
import { PrimaryPools } from './primary-pools.js';
import { pieceOf, Regions } from './regions.js';
import type { SecondaryQueueOptions } from './secondary-devices.js';
import { Server, type Method, type Session } from './server.js';
import { nameIn, optionsIn } from './wire.js';
import type { Fields, JsonObject } from '../fields.js';
import type { Offer } from './hand-over.js';
import type { SharedWords } from './shared-words.js';
import { libraryVersion } from './version.js';
import type { AddressWindow } from './window.js';

const QUEUE_OPTIONS: Shape<SecondaryQueueOptions> = { entries: 'number', interrupts: 'boolean' };

/** What of an `Eal` its secondaries reach. */
export interface PrimarySources {
  readonly platform: Platform;
  readonly name: string;
  /** How long a secondary has to answer when memory changes, in milliseconds. */
  readonly timeoutMs: number;
  readonly window: AddressWindow;
  readonly memory: OwnedMemory;
  readonly handlers: MemoryHandlers;
  readonly heaps: Heaps;
  readonly zones: Zones;
  readonly pools: Pools;
  readonly rings: Rings;
  readonly words: SharedWords;
  readonly external: External;
  readonly devices: () => readonly Device[];
  readonly find: (name: string) => Device | undefined;
  readonly probe: (name: string) => Promise<Device>;
  readonly remove: (device: Device) => Promise<void>;
  readonly mallocAsync: (size: number, options: MallocOptions & LongWorkOptions) => Promise<Block>;
}

/** Something that a secondary has. */
interface Handle {
  /** What it is, for errors. */
  readonly what: string;
  /** Lets go of it. */
  readonly giveBack: (options: JsonObject) => void | Promise<void>;
}

/** What one secondary has. */
class Holdings {
  /** Does it want to know of memory? From its `attach` on. */
  joined = false;
  readonly handles = new Map<number, { readonly handle: Handle; readonly forget: () => void }>();
  /** External memory that it has attached. */
  readonly external = new Map<ExternalMemory, number>();
  /** Long calls that it can cancel, by the number that it gave them. */
  readonly works = new Map<number, AbortController>();
  #next = 1;

  constructor(readonly session: Session) {}

  /** Keeps something until the secondary gives it back, or ends. @returns its number */
  keep(handle: Handle, isFirst = false): number {
    const id = this.#next++;
    const forget = this.session.own(() => {
      this.handles.delete(id);
      return handle.giveBack({});
    }, isFirst);
    this.handles.set(id, { handle, forget });
    return id;
  }

  /** @throws DmaError EINVAL if it has no such thing any more; the error of giving it back: then it still has it */
  async giveBack(id: number, options: JsonObject, operation: string): Promise<void> {
    const kept = this.handles.get(id);
    if (kept === undefined) throw invalid(operation, 'this process has let go of it already');
    this.handles.delete(id);
    try {
      await kept.handle.giveBack(options);
      kept.forget();
    } catch (error) {
      this.handles.set(id, kept);
      throw error;
    }
  }
}

/** Serves the secondaries of one `Eal`. */
export class Primary {
  readonly #sources: PrimarySources;
  readonly #server: Server;
  readonly #regions: Regions;
  readonly #handler: Disposable;
  readonly #holdings = new Map<Session, Holdings>();
  readonly #pools: PrimaryPools;
  readonly #methods: Map<string, Method>;
  #offer: Offer | undefined;

  /** @throws DmaError as {@link Server} */
  constructor(sources: PrimarySources) {
    this.#sources = sources;
    const { platform, name, timeoutMs, pools, rings, words } = sources;
    this.#pools = new PrimaryPools({
      pools,
      rings,
      words,
      platform,
      reaches: (session, va) => this.#reaches(session, va),
      work: (session, fields, run) => this.#work(session, fields, run),
    });
    this.#methods = new Map(Object.entries(this.#calls()));
    this.#regions = new Regions(platform, timeoutMs, (session, error) => this.#server.drop(session, error));
    this.#server = new Server(platform, {
      name,
      version: libraryVersion(),
      timeoutMs,
      methods: this.#methods,
      joined: (session) => {
        this.#holdings.set(session, new Holdings(session));
        // The last that is given back.
        session.own(() => words.reap());
      },
      left: (session, error) => this.#left(session, error),
    });
    this.#handler = sources.handlers.add(this.#regions);
  }

  /** The secondaries, in words. */
  get secondaries(): readonly { readonly pid: number; readonly label: string }[] {
    return this.#server.sessions.map(({ pid, label }) => ({ pid, label }));
  }

  /** Adds a call that secondaries may make. What it takes for a secondary it gives back by {@link Session.own}. */
  serve(name: string, method: Method): void {
    this.#methods.set(name, method);
  }

  /** Hands everything over to the first program that asks, from now on. */
  offer(offer: Offer | undefined): void {
    this.#offer = offer;
  }

  /** Ends the connection to a process. */
  drop(session: Session, error: DmaError): void {
    this.#server.drop(session, error);
  }

  /** The processes that use what it has: all but those that only ask. */
  get users(): string[] {
    return [...this.#holdings.values()].filter(({ joined }) => joined).map(({ session }) => session.label);
  }

  /**
   * Ends the connections. Secondaries keep the memory that they have mapped.
   *
   * @returns whether a process may still have some of it mapped
   */
  async close(): Promise<boolean> {
    const { isUsed } = this.#server;
    for (const { external } of this.#holdings.values())
      for (const memory of external.keys()) memory.contentStays = true;
    await this.#server.close();
    this.#handler[Symbol.dispose]();
    return isUsed;
  }

  #left(session: Session, error: DmaError): void {
    this.#offer?.left(session, error);
    const holdings = this.#holdings.get(session);
    if (holdings === undefined) return;
    this.#holdings.delete(session);
    for (const work of holdings.works.values()) work.abort();
    this.#regions.leave(session);
    this.#pools.left(session);
  }

  #of(session: Session): Holdings {
    const holdings = this.#holdings.get(session);
    if (holdings === undefined) throw session.failure ?? invalid('Eal.attach', 'the process is not attached');
    return holdings;
  }

  #calls(): Record<string, Method> {
    const { window, zones, heaps, external, devices } = this.#sources;
    return {
      attach: (session) => this.#attach(session, window),
      'takeOver.begin': (session) => this.#offered().begin(session),
      'takeOver.describe': (session, { fields }) => this.#offered().describe(session, fields),
      'takeOver.descriptors': (session, { fields }) => this.#offered().descriptors(session, fields),
      'takeOver.withdraw': (session) => this.#offer?.withdraw(session),
      'takeOver.commit': (session) => this.#offered().commit(session),
      bye: (session) => {
        session.clean = true;
        return {};
      },
      facts: () => ({ result: this.#facts() }),
      release: async (session, { fields }) => {
        const options = fields.has('options') ? fields.objectAt('options').raw : {};
        await this.#of(session).giveBack(fields.number('id'), options, fields.string('operation', 64));
        return {};
      },
      cancel: (session, { fields }) => {
        this.#of(session).works.get(fields.number('work'))?.abort();
        return {};
      },
      malloc: (session, question) => this.#malloc(session, question),
      'zones.list': () => ({ result: { zones: [...zones].map(zoneFacts) } }),
      'zones.find': (session, { fields }) => {
        const zone = zones.find(nameIn(fields));
        return { result: zone === undefined ? {} : { zone: this.#shareZone(session, zone, 'zones.find') } };
      },
      'zones.reserve': async (session, question) => {
        const { fields } = question;
        const zone = await this.#work(session, fields, (work) =>
          zones.reserveAsync(nameIn(fields), fields.raw['length'] as number, { ...optionsIn(fields), ...work }),
        );
        try {
          return { result: { zone: this.#shareZone(session, zone, 'zones.reserve') } };
        } catch (error) {
          zone.free();
          throw error;
        }
      },
      'zones.free': (_, { fields }) => {
        zones.free(nameIn(fields));
        return {};
      },
      ...this.#pools.calls(),
      'engines.open': (session, { fields }) => {
        const device = this.#device(fields, 'openCopyEngine');
        const open = async (loan: ProcessLoan): Promise<LentToProcess> =>
          device.use(copyEngineDriver).lendToProcess(loan);
        return this.#lend(session, device, open);
      },
      'queues.open': (session, { fields }) => this.#openQueue(session, fields),
      'heaps.list': () => ({
        result: { heaps: [...heaps].map((heap) => ({ name: heap.name, ...heap.statistics() })) },
      }),
      'heaps.attachMemory': (session, { fields }) => this.#heapMemory(session, fields, true),
      'heaps.detachMemory': (session, { fields }) => this.#heapMemory(session, fields, false),
      'external.list': (session) => {
        const has = this.#of(session).external;
        return {
          result: { external: [...external].map((each) => ({ ...externalFacts(each), attached: has.has(each) })) },
        };
      },
      'external.attach': (session, { fields }) => this.#attachExternal(session, fields),
      'external.detach': async (session, { fields }) => {
        const memory = this.#external(fields, 'external.detach');
        const id = this.#of(session).external.get(memory);
        if (id === undefined) throw notAttached('external.detach', memory.area.label);
        await this.#of(session).giveBack(id, {}, 'external.detach');
        return {};
      },
      'external.allocate': async (session, { fields }) => {
        const memory = await this.#work(session, fields, (work) =>
          external.allocateAsync(fields.raw['length'] as number, { ...optionsIn(fields), ...work }),
        );
        return this.#shareOwn(session, memory, 'external.allocate');
      },
      'external.fromFd': async (session, { fields, fds }) => {
        const memory = await this.#work(session, fields, (work) =>
          external.fromFdAsync(fds[0] ?? -1, { ...optionsIn(fields), ...work }),
        );
        return this.#shareOwn(session, memory, 'external.fromFd');
      },
      'devices.list': () => ({ result: { devices: devices().map(deviceFacts) } }),
      'devices.probe': async (_, { fields }) => ({
        result: { device: deviceFacts(await this.#sources.probe(fields.string('name'))) },
      }),
      'devices.remove': async (_, { fields }) => {
        await this.#sources.remove(this.#device(fields, 'remove'));
        return {};
      },
      'devices.map': (session, { fields }) => this.#map(session, fields),
      'devices.iovaOf': (_, { fields }) => {
        const device = this.#device(fields, 'iovaOf');
        return { result: { iova: device.iovaOf({ va: fields.number('va'), length: fields.number('length') }) } };
      },
    };
  }

  #offered(): Offer {
    if (this.#offer !== undefined) return this.#offer;
    const reason = 'the running program does not hand over';
    throw new DmaError({ code: 'EBUSY', operation: 'Eal.takeOver', reason, hint: 'it calls eal.handOver() for that' });
  }

  async #attach(session: Session, { range }: AddressWindow): Promise<Answer> {
    const holdings = this.#of(session);
    if (!holdings.joined) {
      holdings.joined = true;
      // It has to have the window before it can map anything.
      await session.peer.ask('window', { va: range.start, length: range.length });
      await this.#regions.join(session);
    }
    return {};
  }

  /** Runs a long call, which the secondary can cancel, and which ends with it. */
  async #work<T>(session: Session, fields: Fields, run: (work: LongWorkOptions) => Promise<T>): Promise<T> {
    const holdings = this.#of(session);
    const id = fields.has('work') ? fields.number('work') : undefined;
    const abort = new AbortController();
    const key = id ?? -holdings.works.size - 1;
    holdings.works.set(key, abort);
    const wantsProgress = id !== undefined && fields.has('progress');
    const onProgress = wantsProgress
      ? ({ doneBytes, totalBytes }: { doneBytes: number; totalBytes: number }): void =>
          session.peer.tell('progress', { work: id, doneBytes, totalBytes })
      : undefined;
    try {
      const result = await run({ signal: abort.signal, onProgress });
      return result;
    } finally {
      holdings.works.delete(key);
    }
  }

  async #malloc(session: Session, { fields }: Question): Promise<Answer> {
    const block = await this.#work(session, fields, (work) =>
      this.#sources.mallocAsync(fields.raw['size'] as number, { ...optionsIn(fields), ...work }),
    );
    try {
      this.#mustReach(session, block, 'malloc');
      const id = this.#of(session).keep({
        what: `a block of ${block.length} bytes`,
        giveBack: (options) => {
          if (block.live) block.free({ wipe: options['wipe'] === true });
        },
      });
      return { result: { block: { id, ...blockFacts(block) } } };
    } catch (error) {
      block.free();
      throw error;
    }
  }

  /** @throws DmaError ENOTSUP if another process can not map it */
  #mustReach(
    session: Session,
    { va, heap }: { readonly va: Va; readonly heap: { readonly name: string } },
    operation: string,
  ): void {
    if (this.#regions.has(session, va)) return;
    const reason = `the memory of the heap ${heap.name} has no descriptor, or is not attached, so this process can not reach it`;
    const hint = 'memory of external.allocate() and fromFd() has one; heaps.attachMemory attaches what was detached';
    throw new DmaError({ code: 'ENOTSUP', operation, reason, hint });
  }

  /** A zone that a secondary uses is not freed, unless the secondary itself frees it. */
  #shareZone(session: Session, zone: Zone, operation: string): JsonObject {
    this.#mustReach(session, zone, operation);
    const holdings = this.#of(session);
    const pinned = (): Pin => zone.pin(`${session.label} uses it`);
    let pin = pinned();
    const id = holdings.keep({
      what: `the zone ${zone.name}`,
      giveBack: (options) => {
        pin[Symbol.dispose]();
        if (options['free'] !== true) return;
        try {
          this.#sources.zones.free(zone);
        } catch (error) {
          if (zone.live) pin = pinned();
          throw error;
        }
      },
    });
    return { id, ...zoneFacts(zone) };
  }

  /** Is memory at this address mapped in the secondary? */
  #reaches(session: Session, va: number): boolean {
    return (
      this.#regions.has(session, va) ||
      [...this.#of(session).external.keys()].some(({ area }) => va >= area.range.start && va < area.range.end)
    );
  }

  async #heapMemory(session: Session, fields: Fields, attach: boolean): Promise<Answer> {
    const operation = attach ? 'heaps.attachMemory' : 'heaps.detachMemory';
    const name = fields.raw['name'] as string;
    // The name is checked first.
    this.#sources.heaps.find(name);
    const range = rangeOf({ va: fields.raw['va'] as number, length: fields.raw['length'] as number }, operation);
    const heap = this.#sources.heaps.named(name, operation);
    if (this.#sources.memory.heapsInUse.includes(heap))
      throw new DmaError({
        code: 'EPERM',
        operation,
        reason: `the memory of ${name} is the library's own, and always attached`,
      });
    const found = this.#regions.find(range.start, range.length);
    if (found?.heap !== name)
      throw new DmaError({
        code: 'ENOENT',
        operation,
        range,
        reason: `no memory of the heap ${name} is exactly this range`,
      });
    if (!found.mappable) throw noDescriptor(operation, `this memory of the heap ${name}`);
    if (this.#regions.isIn(session, range.start) === attach)
      throw attach
        ? new DmaError({ code: 'EEXIST', operation, range, reason: `this memory of ${name} is attached already` })
        : notAttached(operation, `this memory of ${name}`);
    await this.#regions.change(session, range.start, attach);
    return {};
  }

  /** The external memory that a secondary names, by its range or by its label. @throws DmaError EINVAL; ENOENT */
  #external(fields: Fields, operation: string): ExternalMemory {
    const { external } = this.#sources;
    if (fields.has('name')) {
      const name = fields.string('name');
      const found = [...external].find(({ area }) => area.label === name);
      if (found !== undefined) return found;
      const labels = [...external].slice(0, 8).map(({ area }) => area.label);
      throw new DmaError({
        code: 'ENOENT',
        operation,
        reason: `no external memory has the label ${JSON.stringify(name)}`,
        hint: labels.length === 0 ? 'the primary has none' : `there are: ${labels.join(', ')}`,
      });
    }
    const part = { va: fields.raw['va'] as number, length: fields.raw['length'] as number };
    const range = rangeOf(part, operation);
    const found = external.find(part);
    if (found !== undefined) return found;
    const hint = 'external.list() has all; memory is attached as a whole';
    throw new DmaError({
      code: 'ENOENT',
      operation,
      range,
      reason: 'the primary has no external memory that is exactly this range',
      hint,
    });
  }

  #attachExternal(session: Session, fields: Fields): Answer {
    const operation = 'external.attach';
    const memory = this.#external(fields, operation);
    const { area } = memory;
    const attached = this.#of(session).external;
    if (attached.has(memory))
      throw new DmaError({
        code: 'EEXIST',
        operation,
        range: area.range,
        reason: `${area.label} is attached already`,
      });
    if (area.owner === 'heap' && this.#regions.isIn(session, memory.va))
      throw new DmaError({
        code: 'EEXIST',
        operation,
        range: area.range,
        reason: `${area.label} is in a heap, and so attached already`,
      });
    const piece = pieceOf(area);
    if (piece === undefined || area.backing === undefined) throw noDescriptor(operation, area.label);
    const copies = copiesOf(this.#sources.platform, [area.backing.fd]);
    const pin = memory.pin(`${session.label} has attached it`);
    const id = this.#of(session).keep({
      what: area.label,
      giveBack: () => {
        attached.delete(memory);
        pin[Symbol.dispose]();
      },
    });
    attached.set(memory, id);
    return { result: { memory: { id, ...externalFacts(memory) }, pieces: [piece] }, ...copies };
  }

  /** Memory that a secondary made: it is unregistered when the secondary lets go of it. */
  #shareOwn(session: Session, memory: ExternalMemory, operation: string): Answer {
    const { area } = memory;
    const piece = pieceOf(area);
    try {
      if (piece === undefined || area.backing === undefined) throw noDescriptor(operation, area.label);
      const holdings = this.#of(session);
      const copies = copiesOf(this.#sources.platform, [area.backing.fd]);
      const id = holdings.keep({
        what: area.label,
        giveBack: () => {
          if (memory.live) memory.unregister();
          holdings.external.delete(memory);
        },
      });
      holdings.external.set(memory, id);
      return { result: { memory: { id, ...externalFacts(memory) }, pieces: [piece] }, ...copies };
    } catch (error) {
      memory.unregister();
      throw error;
    }
  }

  #device(fields: Fields, operation: string): Device {
    const name = fields.string('device');
    const device = this.#sources.find(name);
    if (device !== undefined) return device;
    const names = this.#sources.devices().map((each) => each.name);
    throw new DmaError({
      code: 'ENOENT',
      operation,
      reason: `the primary has no device ${JSON.stringify(name)}`,
      hint: names.length === 0 ? 'it has none: probe one' : `it has: ${names.join(', ')}`,
    });
  }

  async #map(session: Session, fields: Fields): Promise<Answer> {
    const device = this.#device(fields, 'dmaMap');
    const target = { va: fields.raw['va'] as Va, length: fields.raw['length'] as number };
    const mapping = await this.#work(session, fields, (work) =>
      device.dmaMapAsync(target, { ...optionsIn(fields), ...work }),
    );
    try {
      const id = this.#of(session).keep({
        what: `a mapping on ${device.name}`,
        giveBack: async () => {
          if (mapping.live) await mapping.unmapAsync();
        },
      });
      return { result: { mapping: { id, ...mappingFacts(mapping) } } };
    } catch (error) {
      await mapping.unmapAsync();
      throw error;
    }
  }

  /** A queue pair that the secondary works. When it ends, the controller gives up what runs before anything else is given back. */
  async #openQueue(session: Session, fields: Fields): Promise<Answer> {
    const operation = 'openQueue';
    const device = this.#device(fields, operation);
    const asked = optionsOf<SecondaryQueueOptions>(optionsIn(fields), QUEUE_OPTIONS, operation);
    return this.#lend(session, device, (loan) => device.use(nvmeDriver).openForProcess(asked, loan));
  }

  /** Lends something of a device to a secondary, which works it. It is the first that is given back when the secondary ends. */
  async #lend(session: Session, device: Device, open: (loan: ProcessLoan) => Promise<LentToProcess>): Promise<Answer> {
    const { words, platform } = this.#sources;
    const kept: { id?: number } = {};
    const tell = (): void => {
      if (kept.id !== undefined && session.failure === undefined) session.peer.tell('queues.look', { id: kept.id });
    };
    const table = device.domain?.lendTable(words);
    let lent: LentToProcess | undefined;
    let copies: Pick<Answer, 'fds' | 'sent'> | undefined;
    try {
      const { facts, memories, calls, interrupt, registers, close } = (lent = await open({
        holders: words.holders,
        tell,
      }));
      const [first, ...others] = memories;
      const tables = (table?.words ?? []).map((each) => words.memoryOf(each));
      const all = [words.memoryOf(words.holders.buffer), first, ...tables, ...others];
      const fds = [...all.flatMap(({ area }) => area.backing?.fd ?? []), calls];
      if (interrupt !== undefined) fds.push(interrupt);
      if (registers !== undefined) fds.push(registers.fd);
      copies = copiesOf(platform, fds);
      const giveBack = async (): Promise<void> => {
        await close();
        table?.[Symbol.dispose]();
      };
      const id = (kept.id = this.#of(session).keep({ what: `a queue of ${device.name}`, giveBack }, true));
      const { fdOffset, offset, length } = registers ?? {};
      return {
        result: {
          ...{ id, facts: JSON.stringify(facts), hasTable: table !== undefined, hasInterrupt: interrupt !== undefined },
          pieces: all.map(({ area, length }) => ({ bytes: length, ...pieceOf(area) })),
          registers: registers === undefined ? undefined : { fdOffset, offset, length },
        },
        ...copies,
      };
    } catch (error) {
      copies?.sent?.();
      await lent?.close();
      table?.[Symbol.dispose]();
      throw error;
    }
  }

  /** What is in it, for people and programs. */
  #facts(): JsonObject {
    const { name, memory, heaps, zones, pools, rings, external, devices, window } = this.#sources;
    const regions = [...this.#regions.changes()].map(({ heap, range, pageSize, node, areas }) => ({
      heap,
      va: range.start,
      length: range.length,
      pageSize,
      node,
      shared: areas.every(({ backing }) => backing !== undefined),
    }));
    return {
      name,
      pid: process.pid,
      version: libraryVersion(),
      window: { va: window.range.start, length: window.range.length },
      iovaMode: memory.facts().iova?.mode,
      heaps: [...memory.heapsInUse, ...heaps.made].map((heap) => {
        const { total, free, allocated, allocatedBlocks } = heap.statistics();
        return { name: heap.name, total, free, allocated, allocatedBlocks };
      }),
      memory: regions,
      zones: [...zones].map(({ name, heap, va, length }) => ({ name, heap: heap.name, va, length })),
      pools: [...pools].map(({ name, elements, elementSize, available }) => {
        return { name, elements, elementSize, available };
      }),
      rings: [...rings].map(({ name, size, length, producers, consumers, pool }) => {
        return { name, size, length, producers, consumers, pool: pool?.name };
      }),
      external: [...external].map(({ area, va, length, fd }) => {
        return { label: area.label, va, length, pageSize: area.pageSize, shareable: fd !== undefined };
      }),
      devices: devices().map(({ name, driver, domain }) => ({ name, driver: driver?.name, domain: domain?.name })),
      secondaries: [...this.#holdings.values()].map(({ session, handles }) => ({
        pid: session.pid,
        label: session.label,
        holds: handles.size,
      })),
    };
  }
}

function noDescriptor(operation: string, what: string): DmaError {
  return new DmaError({
    code: 'ENOTSUP',
    operation,
    reason: `${what} has no descriptor, so another process can not map it`,
    hint: 'memory of external.allocate() and external.fromFd() has one',
  });
}

function notAttached(operation: string, what: string): DmaError {
  return new DmaError({ code: 'ENOENT', operation, reason: `${what} is not attached in this process` });
}

function blockFacts({ va, length, heap, area, iova }: Block): JsonObject {
  return { va, length, heap: heap.name, node: area.node, pageSize: area.pageSize, iova };
}

function zoneFacts(zone: Zone): JsonObject {
  const { name, va, length, heap, node, pageSize, iova } = zone;
  return { name, va, length, heap: heap.name, node, pageSize, iova };
}

function externalFacts({ va, length, area, source, fd }: ExternalMemory): JsonObject {
  const { label, pageSize, node, writable, owner } = area;
  return { va, length, label, source, pageSize, node, writable, owner, shareable: fd !== undefined };
}

function deviceFacts({ name, bus, driver, domain, state }: Device): JsonObject {
  return { name, bus: bus.name, driver: driver?.name, domain: domain?.name, state };
}

function mappingFacts(mapping: Mapping): JsonObject {
  const { device, va, length, access, segments } = mapping;
  const one = segments.length === 1;
  return {
    device,
    va,
    length,
    access,
    iova: one ? segments[0].iova : undefined,
    segments: segments.map((run) => ({ va: run.va, iova: run.iova, length: run.length })),
    lkey: one ? mapping.lkey : undefined,
    rkey: one ? mapping.rkey : undefined,
  };
}
